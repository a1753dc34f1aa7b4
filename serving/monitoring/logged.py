"""The prediction log of a period, as the monitor reads it: lean, in chunks, features of whole stays up to a limit.

A year of a large hospital is nine million predictions. Who, where, when and how high are kept of all of them (some 30
bytes each); the features, a hundred times as much, of stays drawn at random, whole, since tests count stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from serving.clock import to_us
from serving.store import scores

if TYPE_CHECKING:
    from models.bundle import Bundle
    from serving.store.store import Store

MOST_ROWS: Final = 60_000
"""Predictions whose features are read; of a thousand features at four bytes, a quarter of a gigabyte."""
AT_ONCE: Final = 500_000
TEXTS: Final = ("encounter_id", "unit", "status", "reason")


@dataclass(frozen=True)
class Logged:
    """The prediction log of a period.

    Attributes
    ----------
    attempts : DataFrame
        Every prediction of this model, scored or not: ``encounter_id, prediction_time, status, reason, probability,
        page, unit``; in order of time.
    features : DataFrame, one row a scored prediction
        In the order of ``sample``; or, without one, indexed by the ``prediction_id`` that ``attempts`` then has.
    others : int
        Predictions of other models in the period.
    sample : DataFrame or None
        The scored predictions whose features are here: columns of ``attempts``.
    """

    attempts: pd.DataFrame
    features: pd.DataFrame
    others: int = 0
    sample: pd.DataFrame | None = None


def read_log(store: Store, bundle: Bundle, since: datetime, until: datetime, most: int = MOST_ROWS) -> Logged:
    """Read the period's predictions of this bundle, and the features of up to ``most`` of those that were scored."""
    opens, closes = to_us(since), to_us(until)
    with store.read() as connection:
        attempts, others = _compact(scores.attempts(connection, opens, closes, bundle.model_id))
        drawn = _draw(attempts, most)
        parts = list(scores.features_of(connection, drawn, opens, closes, bundle.model_id))
    names = list(bundle.feature_names)
    width = min([len(names), *(matrix.shape[1] for _, matrix in parts)])
    matrix = (
        np.concatenate([m[:, :width] for _, m in parts]) if parts else np.empty((0, len(names)), np.float32)
    )
    # A log narrower than the model is a finding, not a crash.
    features = pd.DataFrame(matrix, columns=names[: matrix.shape[1]])
    sample = pd.concat([table for table, _ in parts]) if parts else attempts.iloc[:0]
    sample = sample.assign(prediction_time=_instants(sample["prediction_time"]), status="scored")
    order = np.argsort(sample["prediction_time"].to_numpy(), kind="stable")
    return Logged(
        attempts.assign(prediction_time=_instants(attempts["prediction_time"])),
        features.iloc[order].reset_index(drop=True),
        others,
        sample.iloc[order].reset_index(drop=True),
    )


def _instants(micros: pd.Series) -> pd.Series:
    if isinstance(micros.dtype, pd.DatetimeTZDtype):
        return micros
    values = micros.to_numpy(np.int64).view("datetime64[us]")
    return pd.Series(pd.DatetimeIndex(values, tz="UTC"), index=micros.index)


def scored_parts(attempts: pd.DataFrame, since: datetime, most: int = AT_ONCE) -> Iterator[pd.DataFrame]:
    """The scored rows from an instant on, so many at a time, as :func:`serving.store.scores.read` has them."""
    rows = np.flatnonzero(
        (attempts["status"] == "scored").to_numpy() & (attempts["prediction_time"] >= since).to_numpy()
    )
    for start in range(0, len(rows), most):
        part = attempts.iloc[rows[start : start + most]]
        yield part[list(scores.COLUMNS)].assign(prediction_time=part["prediction_time"].array.asi8)


def _compact(parts: Iterable[tuple[pd.DataFrame, int]]) -> tuple[pd.DataFrame, int]:
    """Chunks as one table whose texts are categories: a name is kept once, a row has its number. And others' rows."""
    known: dict[str, dict[str, int]] = {name: {} for name in TEXTS}
    columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in scores.TRIED}
    others = 0
    for part, foreign in parts:
        others += foreign
        for name in TEXTS:
            codes, found = pd.factorize(part[name])
            mine = np.array([known[name].setdefault(v, len(known[name])) for v in found], np.int32)
            columns[name].append(mine[codes])
        for name in ("prediction_time", "probability", "page"):
            columns[name].append(part[name].to_numpy())
    empty = {"prediction_time": np.int64, "probability": np.float64, "page": np.bool_}
    whole: dict[str, Any] = {}
    for name, pieces in columns.items():
        column: Any = np.concatenate(pieces) if pieces else np.empty(0, empty.get(name, np.int32))
        pieces.clear()
        whole[name] = (
            pd.Categorical.from_codes(column, pd.Index(list(known[name]), dtype=object))
            if name in TEXTS
            else column
        )
    return pd.DataFrame(whole, copy=False), others


def _draw(attempts: pd.DataFrame, most: int) -> list[str]:
    """Whole stays at random, the same each time, until their scored rows reach the limit; all where they do not."""
    scored: Any = attempts.loc[(attempts["status"] == "scored").to_numpy(), "encounter_id"].array
    stays = scored.categories.to_numpy()
    size = np.bincount(scored.codes, minlength=len(stays))
    order = np.random.default_rng(0).permutation(len(stays)) if size.sum() > most else np.arange(len(stays))
    kept = order[(np.cumsum(size[order]) <= most) & (size[order] > 0)]
    return [str(s) for s in stays[kept]]
