"""Scores in order of time, lean and in chunks: for whoever watches a year of them at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from sqlalchemy import Connection, func, select

from serving.store.facts import chunks, received_range
from serving.store.tables import predictions

TRIED: Final = ("encounter_id", "unit", "prediction_time", "status", "reason", "probability", "page")
COLUMNS: Final = ("encounter_id", "unit", "prediction_time", "probability", "page")
AT_ONCE: Final = 50_000


def first(connection: Connection, model_id: str) -> int | None:
    """When the first prediction of a model was for, microseconds; None where there is none."""
    p = predictions.c
    when = connection.execute(select(func.min(p.prediction_time)).where(p.model_id == model_id)).scalar()
    return None if when is None else int(when)


def last(connection: Connection, model_id: str) -> int | None:
    """When the last prediction of a model was for, microseconds; None where there is none."""
    p = predictions.c
    when = connection.execute(select(func.max(p.prediction_time)).where(p.model_id == model_id)).scalar()
    return None if when is None else int(when)


def attempts(
    connection: Connection, since: int, until: int, model_id: str, most: int = AT_ONCE
) -> Iterator[tuple[pd.DataFrame, int]]:
    """Every prediction of a model in a period, scored or not, in order of time, so many at a time; :data:`TRIED`.

    ``prediction_time`` in microseconds, missing texts "", a missing probability NaN. With each part, how many
    predictions other bundles of the same product made meanwhile: counted in passing, since a year is long to read.
    """
    p = predictions.c
    product = model_id.partition("@")[0] + "@"
    query = select(*(p[name] for name in TRIED), (p.model_id == model_id).label("own")).where(
        received_range(since, until, p.prediction_time), p.model_id.startswith(product, autoescape=True)
    )
    result = connection.execution_options(yield_per=most).execute(query.order_by(p.prediction_time, p.seq))
    for rows in result.partitions(most):
        *values, own = zip(*rows, strict=True)
        columns = dict(zip(TRIED, values, strict=True))
        texts = ("encounter_id", "unit", "status", "reason")
        table = pd.DataFrame(
            {name: pd.Series(columns[name], dtype=object).fillna("") for name in texts}
            | {
                "prediction_time": np.array(columns["prediction_time"], np.int64),
                "probability": np.array(columns["probability"], np.float64),  # None becomes NaN
                "page": np.array(columns["page"], bool),
            }
        )
        mine = np.array(own, bool)
        yield (table if mine.all() else table[mine].reset_index(drop=True)), int((~mine).sum())


def features_of(
    connection: Connection, ids: Iterable[str], since: int, until: int, model_id: str
) -> Iterator[tuple[pd.DataFrame, npt.NDArray[np.float32]]]:
    """Scored predictions of some encounters with the features they read, as :func:`read` and shape (n, n_features).

    Rows whose features are of another length than the first of their batch are left out.
    """
    p = predictions.c
    for some in chunks(ids):
        query = select(*(p[name] for name in COLUMNS), p.features).where(
            p.encounter_id.in_(some), received_range(since, until, p.prediction_time), p.model_id == model_id,
            p.status == "scored",
        )  # fmt: skip
        rows = connection.execute(query.order_by(p.encounter_id, p.prediction_time, p.seq)).all()
        rows = [row for row in rows if len(row[-1]) == len(rows[0][-1])]
        if rows:
            matrix = np.frombuffer(b"".join(bytes(row[-1]) for row in rows), "<f4").reshape(len(rows), -1)
            table = pd.DataFrame([tuple(row[:-1]) for row in rows], columns=list(COLUMNS))
            yield table.assign(unit=table["unit"].fillna("")), matrix.astype(np.float32)


def read(
    connection: Connection, since: int, until: int, model_id: str, most: int = AT_ONCE
) -> Iterator[pd.DataFrame]:
    """Scored predictions of a model with ``since <= prediction_time < until``, so many at a time.

    Columns are :data:`COLUMNS`; ``prediction_time`` in microseconds, ``unit`` "" where nobody has said it.
    """
    p = predictions.c
    query = select(*(p[name] for name in COLUMNS)).where(
        received_range(since, until, p.prediction_time), p.model_id == model_id, p.status == "scored"
    )
    result = connection.execution_options(yield_per=most).execute(query.order_by(p.prediction_time, p.seq))
    for rows in result.partitions(most):
        who, unit, when, probability, page = zip(*rows, strict=True)
        yield pd.DataFrame(
            {
                "encounter_id": pd.Series(who, dtype=object),
                "unit": pd.Series(["" if u is None else u for u in unit], dtype=object),
                "prediction_time": np.array(when, np.int64),
                "probability": np.array(probability, np.float64),
                "page": np.array(page, bool),
            }
        )
