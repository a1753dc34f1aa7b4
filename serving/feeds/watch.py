"""Is HL7 v2 coming in, and is it being read: what ``/readyz`` and ``/metrics`` say of the listener and its log."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

from serving.settings import Settings
from serving.store import messages
from serving.store.messages import Backlog, MessageLog
from serving.store.store import Store

PATIENCE_S: Final = 1.0
BEHIND_S: Final = 60.0
"""How long a message may wait to be read before that is said: a score is due within seconds."""


@dataclass(frozen=True, slots=True)
class Watch:
    """The listener and its log at one moment.

    Attributes
    ----------
    listening : the port takes connections; None where it is not known, since any free one was asked for
    backlog : how the log stands
    waited_s : how long the first message that waits has waited; 0 where none does
    """

    listening: bool | None
    backlog: Backlog
    waited_s: float

    @property
    def problems(self) -> list[str]:
        """Reason codes: ``mllp_down`` nothing can be sent, ``mllp_behind`` what was sent is not read."""
        down = ["mllp_down"] if self.listening is False else []
        return down + (["mllp_behind"] if self.waited_s > BEHIND_S else [])

    def answer(self) -> dict[str, object]:
        """As ``/readyz`` gives it."""
        return {
            "listening": self.listening,
            "messages": self.backlog.kept,
            "waiting": self.backlog.waiting,
            "oldest_waiting_s": round(self.waited_s, 1),
        }

    def exposition(self) -> bytes:
        """As Prometheus reads it."""
        from prometheus_client import CollectorRegistry, Gauge, generate_latest

        registry = CollectorRegistry()
        told = {
            "wardcast_mllp_up": ("1 where the HL7 v2 port takes connections.", self.listening),
            "wardcast_mllp_messages": ("HL7 v2 messages that ever came.", self.backlog.kept),
            "wardcast_mllp_waiting": ("HL7 v2 messages not read into the store yet.", self.backlog.waiting),
            "wardcast_mllp_oldest_waiting_seconds": (
                "How long the first of those has waited.",
                self.waited_s,
            ),
            "wardcast_mllp_newest_timestamp_seconds": (
                "When the newest message came, Unix time.",
                None if self.backlog.newest is None else self.backlog.newest / 1e6,
            ),
        }
        for name, (meaning, value) in told.items():
            if value is not None:
                Gauge(name, meaning, registry=registry).set(value)
        return generate_latest(registry)


def look(settings: Settings, store: Store, log: MessageLog, now: int) -> Watch:
    """Look at the listener and its log; ``now`` is the wall's clock, microseconds."""
    with store.read() as connection:
        place = messages.applied_up_to(connection)
    backlog = log.backlog(place)
    waited = 0.0 if backlog.oldest is None else max(0.0, (now - backlog.oldest) / 1e6)
    return Watch(_listens(settings), backlog, waited)


def _listens(settings: Settings) -> bool | None:
    if not settings.mllp_port:
        return None
    try:
        socket.create_connection((settings.mllp_host, settings.mllp_port), PATIENCE_S).close()
    except OSError:
        return False
    return True
