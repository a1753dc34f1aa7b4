"""Events in the order they arrived, for whoever watches the feeds: counted, never shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pandas as pd
from sqlalchemy import Connection, func, select

from serving.store.facts import chunks
from serving.store.tables import encounters, events

COLUMNS: Final = (
    "seq", "encounter_id", "received_time", "time", "available_time", "code", "concept", "numeric_value", "raw_value",
    "raw_unit", "reason",
)  # fmt: skip


def first_since(connection: Connection, since: int) -> int:
    """The ``seq`` of the first event received at or after an instant (microseconds), or one past the last.

    Rows are received in the order of ``seq``, so that halving finds it without an index on the time.
    """
    low = int(connection.execute(select(func.min(events.c.seq))).scalar() or 1)
    high = int(connection.execute(select(func.max(events.c.seq))).scalar() or 0) + 1
    while low < high:
        middle = (low + high) // 2
        query = select(events.c.seq, events.c.received_time).where(events.c.seq >= middle)
        row = connection.execute(query.order_by(events.c.seq).limit(1)).first()
        if row is None or row.received_time >= since:
            high = middle
        else:
            low = int(row.seq) + 1
    return low


def received(connection: Connection, seq: int) -> int | None:
    """When the first event from a place in the store on was received, microseconds; None where there is none."""
    query = select(events.c.received_time).where(events.c.seq >= seq).order_by(events.c.seq).limit(1)
    when = connection.execute(query).scalar()
    return None if when is None else int(when)


def newest(connection: Connection) -> int | None:
    """When the newest event was received, microseconds; None where there is none."""
    when = connection.execute(select(events.c.received_time).order_by(events.c.seq.desc()).limit(1)).scalar()
    return None if when is None else int(when)


def read(connection: Connection, after: int, until: int, most: int = 50_000) -> Iterator[pd.DataFrame]:
    """Events with ``seq > after`` received before ``until``, so many at a time, with ``unit``: where the patient is.

    Columns are :data:`COLUMNS` and ``ward``, "" where nobody has said it.
    """
    e = events.c
    while True:
        query = select(*(e[name] for name in COLUMNS)).where(e.seq > after, e.received_time < until)
        rows = connection.execute(query.order_by(e.seq).limit(most)).all()
        if not rows:
            return
        table = pd.DataFrame([tuple(row) for row in rows], columns=list(COLUMNS))
        for name in ("numeric_value", "raw_value"):
            table[name] = table[name].astype(np.float64)
        wards = _wards(connection, table["encounter_id"].unique().tolist())
        yield table.assign(ward=table["encounter_id"].map(wards).fillna("").astype("str"))
        after = int(rows[-1].seq)


def _wards(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    e = encounters.c
    found: dict[str, str] = {}
    for some in chunks(ids):
        newest = select(func.max(e.seq)).where(e.encounter_id.in_(some)).group_by(e.encounter_id)
        query = select(e.encounter_id, e.unit).where(e.seq.in_(newest))
        found |= {who: ward or "" for who, ward in connection.execute(query)}
    return found
