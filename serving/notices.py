"""What a reader of a score must know of the feeds behind it: which are down, and whose clock is off.

The monitor's look at the feeds leaves ``var/monitor/feeds.json``; it is read again only when it has changed, so that a
score pays one look at a file's date.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from features.clock import HOUR_US
from serving.clock import iso

FEEDS: Final = "feeds.json"
FEED_DOWN: Final = "feed_down"
CLOCK_SKEW: Final = "clock_skew"
TOO_OLD_US: Final = HOUR_US
"""What was seen of the feeds longer ago is no news of them."""


class Notices:
    """The last look at the feeds, as notices for scores."""

    def __init__(self, home: Path) -> None:
        self._path = home / FEEDS
        self._seen: tuple[int, dict[str, Any]] = (-1, {})

    def of(self, site: str | None, concepts: Collection[str], now: int) -> list[dict[str, Any]]:
        """What is to be said with a score for a patient at ``site``, of a model that reads ``concepts``.

        Parameters
        ----------
        site : the ward, as feeds name it; facts of patients whose ward nobody has said are at ""
        now : microseconds

        Returns
        -------
        list of ``code`` (``feed_down``, ``clock_skew``), ``concept`` (null for a clock), ``since``, ``message``
        """
        told = self._read()
        if not 0 <= now - int(told.get("now", 0)) <= TOO_OLD_US:
            return []
        here = site or ""
        notices = [
            _notice(FEED_DOWN, d["concept"], d["since"], "No value has come from this feed since.")
            for d in told.get("down", [])
            if d["site"] == here and d["concept"] in concepts
        ]
        return notices + [
            _notice(
                CLOCK_SKEW,
                None,
                d["since"],
                "Facts are dated by a clock that is off; times since may be wrong.",
            )
            for d in told.get("late", [])
            if d["site"] == here
        ]

    def _read(self) -> dict[str, Any]:
        """The file, or what was read of it before; nothing where there is none, or it cannot be read."""
        try:
            changed = self._path.stat().st_mtime_ns
            if changed != self._seen[0]:
                self._seen = (changed, json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}
        return self._seen[1]


def _notice(code: str, concept: str | None, since: int, message: str) -> dict[str, Any]:
    return {"code": code, "concept": concept, "since": iso(since), "message": message}
