"""Encounters and events: append-only, and readable as they were known at any moment.

A moment is a pair. ``available_time`` says what the hospital could have shown; ``seq`` (with ``received_time``) says
what had reached us. A score read up to such a pair can be read again, however many corrections have come since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    func,
    insert,
    or_,
    select,
    tuple_,
)

from features.clock import MINUTE_US
from features.events import EVENT_COLUMNS
from serving.store.tables import ENCOUNTER_FACTS, ENCOUNTER_TIMES, encounters, events

CHUNK = 400
"""Values in one IN list; SQLite and PostgreSQL both take more, planners like fewer."""

LASTING = ("age_years", "sex", "hospital_admission_time")
"""What scores read of an encounter and does not change by itself: another value corrects the one before."""
KNOWN_COLUMNS = ("encounter_id", "subject_id", "received_time", *ENCOUNTER_FACTS)


def _by_encounter(table: Table, value: ColumnElement[Any], *where: ColumnElement[bool]) -> Select[Any]:
    """A value of each of the encounters named by the parameter ``ids``."""
    who = table.c.encounter_id
    return select(who, value).where(who.in_(bindparam("ids", expanding=True)), *where).group_by(who)


# Asked with every score and card, so built once.
_PICTURED_TO = _by_encounter(encounters, func.max(encounters.c.seq))
_TOLD_TO = _by_encounter(events, func.max(events.c.seq), events.c.reason.is_(None))
_NEWEST_TIME = _by_encounter(events, func.max(events.c.time), events.c.reason.is_(None))
_LATEST = select(encounters).where(
    encounters.c.seq.in_(_PICTURED_TO.with_only_columns(func.max(encounters.c.seq)))
)
_E = events.c
_REPORTS = select(
    _E.seq, _E.encounter_id, _E.source_id, _E.content_hash, _E.concept, _E.status, _E.available_time, _E.dated,
    _E.reason,
).where(tuple_(_E.encounter_id, _E.source_id).in_(bindparam("named", expanding=True)))  # fmt: skip


def chunks(values: Iterable[Any]) -> Iterable[list[Any]]:
    """The values in lists short enough for one statement."""
    every = list(values)
    return (every[i : i + CHUNK] for i in range(0, len(every), CHUNK))


def content_hash(parts: Sequence[object], time: int = 0) -> bytes:
    """Identity of a fact: the same content from the same source is the same fact, however often it is sent.

    Parameters
    ----------
    parts : its content
    time : microseconds, optional
        When it happened, one of the parts. Its minute begins the identity, so that facts of one time lie side by side
        in the index: each message would else touch pages all over it, which a large store must encrypt and write.
    """
    hashed = hashlib.sha256("\x1f".join(map(repr, parts)).encode()).digest()
    return (time // MINUTE_US & 0xFFFFFFFF).to_bytes(4, "big") + hashed[:28]


def latest(connection: Connection, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What is known now of some encounters: seq and every fact, times as microseconds."""
    found: dict[str, dict[str, Any]] = {}
    for some in chunks(ids):
        rows = connection.execute(_LATEST, {"ids": some}).mappings()
        found |= {row["encounter_id"]: dict(row) for row in rows}
    return found


def of_subjects(connection: Connection, subject_ids: Iterable[str]) -> list[dict[str, Any]]:
    """What is known now of every encounter of some people, the one heard of last first."""
    ids: set[str] = set()
    for some in chunks(subject_ids):
        query = select(encounters.c.encounter_id).where(encounters.c.subject_id.in_(some)).distinct()
        ids |= set(connection.execute(query).scalars())
    return sorted(latest(connection, ids).values(), key=lambda row: -int(row["seq"]))


def has_ended(encounter: Mapping[str, Any], now: int) -> bool:
    """Whether the patient has left by ``now``."""
    left = encounter["discharge_time"]
    return left is not None and left <= now


def pictures(connection: Connection, encounter_id: str) -> list[dict[str, Any]]:
    """What was known of an encounter that lasts, each time something became known, oldest first."""
    e = encounters.c
    query = select(e.seq, e.received_time, *(e[name] for name in LASTING)).where(
        e.encounter_id == encounter_id
    )
    return [dict(row) for row in connection.execute(query.order_by(e.seq)).mappings()]


def version(connection: Connection, seq: int) -> dict[str, Any]:
    """One encounter as it was known with one row."""
    return dict(connection.execute(select(encounters).where(encounters.c.seq == seq)).mappings().one())


def add_encounters(
    connection: Connection, news: Sequence[tuple[str, str | None, Mapping[str, Any]]], received: int
) -> tuple[list[bool], dict[str, dict[str, Any]]]:
    """Write what is new about encounters.

    Parameters
    ----------
    news : sequence of (encounter_id, subject_id, facts)
        Facts that are absent keep what was known; facts that are None are no longer known. Without a subject, the
        known one stays, or the encounter's own identity serves.
    received : microseconds

    Returns
    -------
    list of bool
        Per item, whether it said anything new.
    dict
        The encounters as they are known now.
    """
    known = latest(connection, {item[0] for item in news})
    fresh: list[bool] = []
    rows: list[dict[str, Any]] = []
    for encounter_id, subject_id, facts in news:
        before = known.get(encounter_id, {})
        merged = {name: facts.get(name, before.get(name)) for name in ENCOUNTER_FACTS}
        subject = subject_id or before.get("subject_id", encounter_id)
        row = {"encounter_id": encounter_id, "subject_id": subject, **merged}
        fresh.append(any(before.get(name, row) != value for name, value in row.items()))
        if fresh[-1]:
            row["received_time"] = received
            rows.append(row)
            known[encounter_id] = row
    if rows:
        connection.execute(insert(encounters), rows)
        known |= latest(connection, {row["encounter_id"] for row in rows})
    return fresh, known


def add_events(connection: Connection, rows: Sequence[dict[str, Any]]) -> list[bool]:
    """Write events that are not there yet; per item, whether it was new."""
    seen: set[bytes] = set()
    for some in chunks(row["content_hash"] for row in rows):
        query = select(events.c.content_hash).where(events.c.content_hash.in_(some))
        seen |= {bytes(h) for (h,) in connection.execute(query)}
    fresh: list[bool] = []
    for row in rows:
        fresh.append(row["content_hash"] not in seen)
        seen.add(row["content_hash"])
    new = [row for row, is_new in zip(rows, fresh, strict=True) if is_new]
    if new:
        connection.execute(insert(events), new)
    return fresh


def reports(connection: Connection, named: Iterable[tuple[str, str]]) -> list[Row[Any]]:
    """What was told of some facts, named by encounter and ``source_id``, in the order received."""
    found: list[Row[Any]] = []
    for some in chunks(named):
        found.extend(connection.execute(_REPORTS, {"named": some}))
    return sorted(found, key=lambda row: int(row.seq))


def told(
    connection: Connection, encounter_id: str, concepts: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Every usable report about an encounter in the order received, corrections and deletions included."""
    e = events.c
    query = select(
        e.seq, e.source_id, e.concept, e.status, e.time, e.available_time, e.received_time, e.numeric_value
    ).where(e.encounter_id == encounter_id, e.reason.is_(None))
    if concepts is not None:
        query = query.where(e.concept.in_(concepts))
    return [dict(row) for row in connection.execute(query.order_by(e.seq)).mappings()]


def last_seq(connection: Connection) -> int:
    """How far the event table goes now."""
    return int(connection.execute(select(func.max(events.c.seq))).scalar() or 0)


def reach(connection: Connection, ids: Iterable[str]) -> dict[str, tuple[int, int]]:
    """How far the usable events (0 where there are none) and the picture of each of some encounters go, as ``seq``."""
    found: dict[str, tuple[int, int]] = {}
    for some in chunks(ids):
        told = {who: int(seq) for who, seq in connection.execute(_TOLD_TO, {"ids": some})}
        for who, seq in connection.execute(_PICTURED_TO, {"ids": some}):
            found[who] = (told.get(who, 0), int(seq))
    return found


def shown_between(connection: Connection, encounter_id: str, since: int, now: int) -> bool:
    """Whether a usable event became available after ``since`` and by ``now``, whenever it had reached us."""
    e = events.c
    query = select(e.seq).where(e.encounter_id == encounter_id, e.reason.is_(None))
    query = query.where(e.available_time > since, e.available_time <= now)
    return connection.execute(query.limit(1)).first() is not None


def read_events(
    connection: Connection,
    ids: Iterable[str],
    as_of: int,
    *,
    up_to: int | None = None,
    concepts: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Usable events of some encounters, as the canonical table.

    Parameters
    ----------
    as_of : microseconds
        Only what was available, and had been received, by then.
    up_to : int, optional
        Read up to this ``seq`` instead of up to a received time.
    concepts : optional
        Only these.
    """
    e = events.c
    limit: ColumnElement[bool] = e.received_time <= as_of if up_to is None else e.seq <= up_to
    parts: list[Any] = []
    for some in chunks(ids):
        query = select(
            e.subject_id, e.encounter_id, e.time, e.available_time, e.code, e.concept, e.numeric_value,
            e.raw_text, e.unit, e.status, e.source_id,
        ).where(e.encounter_id.in_(some), e.available_time <= as_of, e.reason.is_(None), limit)  # fmt: skip
        if concepts is not None:
            query = query.where(e.concept.in_(concepts))
        parts.extend(connection.execute(query.order_by(e.seq)).all())
    return event_table([tuple(row) for row in parts])


def event_table(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """Rows in the order of the canonical columns, times in microseconds, as the canonical table."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(EVENT_COLUMNS)
    table: dict[str, Any] = {}
    for name, values in zip(EVENT_COLUMNS, columns, strict=True):
        if name in ("time", "available_time"):
            table[name] = instants(values)
        elif name == "numeric_value":
            table[name] = np.array(values, dtype=np.float64)
        else:
            table[name] = pd.Series(values, dtype=object)
    return pd.DataFrame(table)


def read_encounters(connection: Connection, as_of: int) -> pd.DataFrame:
    """Every encounter as it was known at a moment; a time that lay ahead then is empty."""
    e = encounters.c
    newest = select(func.max(e.seq)).where(e.received_time <= as_of).group_by(e.encounter_id)
    rows = connection.execute(_columns().where(e.seq.in_(newest)).order_by(e.seq)).all()
    return encounter_table([tuple(row) for row in rows], as_of)


def open_encounters(connection: Connection, as_of: int) -> pd.DataFrame:
    """Encounters that have begun and not ended, as known at a moment."""
    e = encounters.c
    newest = select(func.max(e.seq)).where(e.received_time <= as_of).group_by(e.encounter_id)
    still_here = or_(e.discharge_time.is_(None), e.discharge_time > as_of)
    rows = connection.execute(_columns().where(e.seq.in_(newest), still_here).order_by(e.seq)).all()
    return encounter_table([tuple(row) for row in rows], as_of)


def _columns() -> Select[Any]:
    e = encounters.c
    return select(e.encounter_id, e.subject_id, e.received_time, *(e[name] for name in ENCOUNTER_FACTS))


def encounter_table(rows: Sequence[tuple[Any, ...]], as_of: int) -> pd.DataFrame:
    """Rows of :data:`KNOWN_COLUMNS` as a table of encounters; times after ``as_of`` are not known yet."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(KNOWN_COLUMNS)
    table: dict[str, Any] = {}
    for name, values in zip(KNOWN_COLUMNS, columns, strict=True):
        if name in ENCOUNTER_TIMES or name == "received_time":
            known = [v if v is not None and v <= as_of else None for v in values]
            table[name] = instants(known)
        elif name == "age_years":
            table[name] = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
        else:
            table[name] = pd.Series(values, dtype=object)
    return pd.DataFrame(table)


def instants(values: Sequence[int | None]) -> pd.Series:
    """Microseconds as instants, None as NaT."""
    nat = np.iinfo(np.int64).min
    raw = np.array([nat if v is None else v for v in values], dtype=np.int64)
    return pd.Series(pd.DatetimeIndex(raw.view("datetime64[us]"), tz="UTC"))


def counts(connection: Connection) -> dict[str, int]:
    """Events by why they were set aside; used ones under the empty reason."""
    query = select(func.coalesce(events.c.reason, ""), func.count()).group_by(events.c.reason)
    return {str(reason): int(n) for reason, n in connection.execute(query)}


def received_range(since: int | None, until: int | None, column: Any) -> ColumnElement[bool]:
    """``since <= column < until``, each end optional."""
    bounds = [column >= since] if since is not None else []
    bounds += [column < until] if until is not None else []
    return and_(True, *bounds)


def newest_event_times(connection: Connection, ids: Iterable[str]) -> dict[str, int]:
    """When the newest usable event of each encounter happened."""
    found: dict[str, int] = {}
    for some in chunks(ids):
        found |= {who: int(when) for who, when in connection.execute(_NEWEST_TIME, {"ids": some})}
    return found


def set_aside(connection: Connection, encounter_id: str) -> int:
    """How many events of an encounter could not be used."""
    query = select(func.count()).where(events.c.encounter_id == encounter_id, events.c.reason.is_not(None))
    return int(connection.execute(query).scalar_one())
