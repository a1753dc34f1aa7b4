"""Events in the order they arrived, for whoever watches the feeds: counted, never shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

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
        table = _table([tuple(row) for row in rows])
        wards = _wards(connection, table["encounter_id"].unique().tolist())
        yield table.assign(ward=table["encounter_id"].map(wards).fillna("").astype("str"))
        after = int(rows[-1].seq)


def of_patients(connection: Connection, ids: Sequence[str], since: int, before: int) -> pd.DataFrame:
    """Events of some encounters received since an instant (microseconds), with ``seq < before``; ``ward`` is ""."""
    e = events.c
    rows: list[tuple[Any, ...]] = []
    for some in chunks(ids):
        query = select(*(e[name] for name in COLUMNS)).where(e.encounter_id.in_(some))
        found = connection.execute(query.where(e.received_time >= since, e.seq < before))
        rows += [tuple(row) for row in found]
    return _table(rows).assign(ward="")


def _table(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(("numeric_value", "raw_value"), np.float64))


def _wards(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    e = encounters.c
    found: dict[str, str] = {}
    for some in chunks(ids):
        newest = select(func.max(e.seq)).where(e.encounter_id.in_(some)).group_by(e.encounter_id)
        query = select(e.encounter_id, e.unit).where(e.seq.in_(newest))
        found |= {who: ward or "" for who, ward in connection.execute(query)}
    return found
