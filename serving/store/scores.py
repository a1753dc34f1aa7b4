"""Scores in order of time, lean and in chunks: for whoever watches a year of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd
from sqlalchemy import Connection, func, select

from serving.store.facts import received_range
from serving.store.tables import predictions

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
