"""What a reader of a score must know of what stands behind it: feeds that are down, clocks that are off, alarms.

The monitor's look at the feeds leaves ``var/monitor/feeds.json``, its run ``alarms.json``; each is read again only when
it has changed, so that a score pays one look at a file's date.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

from features.clock import HOUR_US
from serving.clock import iso

FEEDS: Final = "feeds.json"
ALARMS: Final = "alarms.json"
FEED_DOWN: Final = "feed_down"
CLOCK_SKEW: Final = "clock_skew"
TOO_OLD_US: Final = HOUR_US
"""What was seen of the feeds longer ago is no news of them."""
ALARMS_TOO_OLD_US: Final = 26 * HOUR_US
"""The monitor runs once a day, and has two hours of grace."""
DEGRADED: Final = "degraded"
MOST_NAMED: Final = 5


class Notices:
    """The last look at the feeds and the alarms of the last run, as notices for scores, pages and cards."""

    def __init__(self, home: Path) -> None:
        self._feeds = _Kept(home / FEEDS)
        self._alarms = _Kept(home / ALARMS)

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
        told = self._feeds.read(now, TOO_OLD_US)
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

    def degraded(self, site: str | None, now: int) -> list[dict[str, Any]]:
        """What makes the scores of a unit doubtful, in the monitor's words; of all units where ``site`` is None.

        Returns
        -------
        list of ``code`` (``feed_down``, ``clock_skew``, ``degraded``), ``what``, ``where``, ``since`` (microseconds or
        None), feeds first; silent feeds of one unit are one entry
        """
        feeds = self._feeds.read(now, TOO_OLD_US)
        alarms = self._alarms.read(now, ALARMS_TOO_OLD_US)
        silent: dict[str, list[dict[str, Any]]] = {}
        for down in feeds.get("down", []):
            silent.setdefault(down["site"], []).append(down)
        said = [_silent(unit, down) for unit, down in sorted(silent.items()) if site in (None, unit)]
        said += [
            _degraded(
                CLOCK_SKEW, "Facts are dated by a clock that is off.", _unit(late["site"]), late["since"]
            )
            for late in feeds.get("late", [])
            if site in (None, late["site"])
        ]
        return said + [
            _degraded(DEGRADED, a["what"], a["where"], a["since"])
            for a in alarms.get("alarms", [])
            if site is None or not a["units"] or site in a["units"]
        ]


class _Kept:
    """A file of the monitor's, read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, dict[str, Any]] = (-1, {})

    def read(self, now: int, too_old_us: int) -> dict[str, Any]:
        """What it says; nothing where there is no such file, it cannot be read, or it is too old to be news."""
        try:
            changed = self._path.stat().st_mtime_ns
            if changed != self._seen[0]:
                self._seen = (changed, json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}
        told = self._seen[1]
        return told if 0 <= now - int(told.get("now", 0)) <= too_old_us else {}


def _silent(unit: str, down: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = [str(d["concept"]).replace("_", " ") for d in down]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    what = f"Nothing comes any more of: {', '.join(names[:MOST_NAMED])}{more}."
    return _degraded(FEED_DOWN, what, _unit(unit), min(d["since"] for d in down))


def _unit(site: str) -> str:
    return f"unit {site}" if site else "no unit stated"


def _degraded(code: str, what: str, where: str, since: int | None) -> dict[str, Any]:
    return {"code": code, "what": what, "where": where, "since": since}


def _notice(code: str, concept: str | None, since: int, message: str) -> dict[str, Any]:
    return {"code": code, "concept": concept, "since": iso(since), "message": message}
