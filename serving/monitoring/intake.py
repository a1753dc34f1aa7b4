"""What came in: the store's arrivals counted into the ledger, feeds and units judged, and what is down written down.

The ledger lies in ``var/monitor/ledger.parquet`` and is read on from where it ended, so that a look every few minutes
costs what came since. ``var/monitor/feeds.json`` says which feeds are down, for the service to tell with its scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd
from sqlalchemy import Connection

from features.clock import HOUR_US
from serving.clock import to_us
from serving.monitoring import feeds, units
from serving.monitoring.findings import Finding
from serving.monitoring.inputs import MixUp
from serving.monitoring.ledger import KEEP_H, Ledger, facts_of, tell_apart
from serving.monitoring.result import write_atomically
from serving.monitoring.telling import tell
from serving.notices import FEEDS
from serving.store import arrivals

if TYPE_CHECKING:
    from serving.settings import Settings
    from serving.store.store import Store

LEDGER: Final = "ledger.parquet"
DAY_H: Final = 24


@dataclass(frozen=True)
class Intake:
    """What was found of the arrivals, the ledger with wrong hours marked, which feeds are down and which clocks off."""

    findings: list[Finding]
    ledger: Ledger
    down: Mapping[tuple[str, str], int]
    late: Mapping[str, int]


def read_on(store: Store, ledger: Ledger | None, now: int) -> Ledger:
    """The ledger with what the store received up to ``now`` (microseconds); begun anew where there is none.

    A ledger that knows more than the store (another store, or an older copy of it) is begun anew as well.
    """
    with store.read() as connection:
        if ledger is None or ledger.seq >= arrivals.first_since(connection, 2**62) or ledger.until > now:
            oldest = now - KEEP_H * HOUR_US
            first = arrivals.first_since(connection, oldest)
            begun = arrivals.received(connection, first)
            ledger = Ledger.empty(now if begun is None else max(begun, oldest)).reach(0, first - 1)
        for events in arrivals.read(connection, ledger.seq, now):
            until, seq = int(events["received_time"].max()), int(events["seq"].max())
            ledger = ledger.add(_told_apart(connection, events), until, seq)
    return ledger.reach(now)


def _told_apart(connection: Connection, events: pd.DataFrame) -> pd.DataFrame:
    """Arrivals as facts, those marked that the same patients had alike earlier that day."""
    day_us = DAY_H * HOUR_US
    midnight = int(events["received_time"].min()) // day_us * day_us
    who = events["encounter_id"].unique().tolist()
    before = arrivals.of_patients(connection, who, midnight, int(events["seq"].min()))
    return tell_apart(facts_of(events), facts_of(before) if len(before) else None)


def judge(
    ledger: Ledger, now: int, *, period_h: int, mix_ups: Mapping[str, Sequence[MixUp]], timezone: str = "UTC"
) -> Intake:
    """Feeds and units over the last day, and over the whole period where it is longer and enough lies before it."""
    known_h = (now - ledger.since) // HOUR_US
    window = max(DAY_H, min(period_h, known_h - 2 * feeds.LEAST_H))
    looked = feeds.look(ledger, now, window_h=window, timezone=timezone)
    spans = sorted({DAY_H, window})
    mixed = [f for span in spans for f in units.check_units(ledger, now, mix_ups, window_h=span)]
    said: dict[tuple[object, ...], Finding] = {}
    for finding in mixed:
        said.setdefault((finding.features, finding.where), finding)
    explained = set(said)
    others = [
        f for f in looked.findings if f.kind != "rejected_more" or (f.features, f.where) not in explained
    ]
    return Intake([*others, *said.values()], looked.ledger, looked.down, looked.late)


def look(store: Store, home: Path, now: int, timezone: str = "UTC") -> Intake:
    """The quick look that the service takes every few minutes: feeds only, over the last day.

    Reads on in ``home``'s ledger and writes both files there.
    """
    ledger = read_on(store, Ledger.load(home / LEDGER), now)
    looked = feeds.look(ledger, now, timezone=timezone)
    intake = Intake(looked.findings, looked.ledger, looked.down, looked.late)
    keep(home, intake, now)
    return intake


def watch(settings: Settings, due: datetime) -> str:
    """The job of the schedule: one look at the store's feeds; says how many are down.

    On a sender's clock, now is when the newest fact came.
    """
    from serving.store.store import Store

    store = Store.open(settings.store_url, settings.store_key or None, settings.site)
    try:
        with store.read() as connection:
            newest = arrivals.newest(connection) if settings.clock == "replay" else None
        now = to_us(due) if newest is None else newest + 1
        intake = look(store, settings.var / "monitor", now, settings.timezone)
        tell(store, settings, intake.findings, "feeds")
    finally:
        store.close()
    return f"{len(intake.down)} feeds down, {len(intake.late)} clocks off, {len(intake.findings)} findings"


def keep(home: Path, intake: Intake, now: int) -> None:
    """Write the ledger, and for scores (:mod:`serving.notices`) which feeds are down and which clocks are off."""
    intake.ledger.save(home / LEDGER)
    down = [
        {"concept": concept, "site": site, "since": since} for (concept, site), since in intake.down.items()
    ]
    late = [{"site": site, "since": since} for site, since in intake.late.items()]
    write_atomically(home / FEEDS, json.dumps({"now": now, "down": down, "late": late}) + "\n")
