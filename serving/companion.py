"""The processes that ``wardcast serve`` keeps beside the one that answers, and how each of them ends."""

from __future__ import annotations

import signal
import threading


def told_to_stop() -> threading.Event:
    """Set when this process is asked to end. Ctrl-C goes to whoever keeps it, and they ask."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return stop
