"""The processes that ``wardcast serve`` keeps beside the one that answers, and how each of them ends."""

from __future__ import annotations

import gc
import signal
import threading


def told_to_stop() -> threading.Event:
    """Set when this process is asked to end. Ctrl-C goes to whoever keeps it, and they ask."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return stop


def keep_loaded() -> None:
    """Take what is loaded now out of the garbage collector's rounds, once a process is ready to work.

    Without this it walks models and libraries every few seconds: a quarter of a second in which nobody is answered.
    """
    gc.collect()
    gc.freeze()
