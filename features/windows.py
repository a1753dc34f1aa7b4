"""What a window feature is, and the one call that builds them, for a cohort or for one patient.

A window feature is ``concept x statistic x lookback``. An event belongs to a window when its ``time`` lies in
``(t - lookback, t]``, and may be read when ``available_time <= t``. The kernel rescans each window from the raw events
and keeps no state, so that batch and online are one computation and hindsight has nowhere to enter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features import kernels
from features.clock import STAY_US, UTC_US, parse_lookback
from features.errors import DataError, SpecError

STATISTICS: Final = (
    "last", "hours_since_last", "count", "min", "max", "mean", "std", "slope", "first", "delta", "delta_from_first",
    "sum", "twmean",
)  # fmt: skip

MEANING: Final[dict[str, str]] = {
    "last": "latest value",
    "hours_since_last": "hours from the latest value to the prediction",
    "count": "number of values; 0 when there are none",
    "min": "smallest value",
    "max": "largest value",
    "mean": "plain mean of the values",
    "std": "sample standard deviation (n - 1); missing below two values",
    "slope": "least-squares change per hour; missing below two distinct times",
    "first": "earliest value",
    "delta": "latest value minus the one before; missing below two values",
    "delta_from_first": "latest value minus the earliest",
    "sum": "sum of the values; missing when there are none",
    "twmean": "mean weighted by time: each value holds until the next one, the latest until the prediction",
}
"""Statistics over the values inside a lookback. All but ``count`` are missing (NaN) when there is no value."""

_DEPTH: Final = {"last": 1, "hours_since_last": 1, "delta": 2}
_NEEDS: Final = {
    "min": kernels.EXTREMES, "max": kernels.EXTREMES, "std": kernels.MOMENTS, "slope": kernels.TREND,
    "twmean": kernels.WEIGHTED,
}  # fmt: skip
_AMOUNTS: Final = ("count", "mean", "min", "max")
_LATEST: Final = ("last", "hours_since_last")
PLACED: Final = (*_AMOUNTS, *_LATEST)
"""The statistics that the kernel works out together, in its order."""
_UNIT_US: Final = {"d": 86_400_000_000, "h": 3_600_000_000, "min": 60_000_000, "s": 1_000_000, "us": 1}
_RANK: Final = {"preliminary": 0, "final": 1, "corrected": 2, "deleted": 3}
_NEVER: Final = np.iinfo(np.int64).max
_SUFFIX: Final = re.compile(r"(?P<statistic>[a-z_]+?)(?:_(?P<lookback>\d+(?:d|h|min|s|us)))?")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """One feature: a statistic of a concept over a lookback in microseconds (``STAY_US``: the whole encounter)."""

    concept: str
    statistic: str
    lookback_us: int

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            raise SpecError(
                f"Statistic {self.statistic!r} of {self.concept!r} is unknown. Choose one of {', '.join(STATISTICS)}."
            )
        if self.lookback_us <= 0:
            raise SpecError(
                f"The lookback of {self.concept}__{self.statistic} must be positive, like '6h' or 'stay'."
            )

    @property
    def name(self) -> str:
        """``heart_rate__max_24h``; hours up to a week, a lookback over the whole stay has no suffix."""
        if self.lookback_us == STAY_US:
            return f"{self.concept}__{self.statistic}"
        fits = [u for u, size in _UNIT_US.items() if self.lookback_us % size == 0]
        unit = "h" if "h" in fits and self.lookback_us < 7 * _UNIT_US["d"] else fits[0]
        return f"{self.concept}__{self.statistic}_{self.lookback_us // _UNIT_US[unit]}{unit}"

    @classmethod
    def parse(cls, concept: str, text: str) -> Window:
        """Read ``max_24h`` or ``hours_since_last`` as a window of a concept.

        Raises
        ------
        SpecError
            The statistic or the lookback is none we know.
        """
        match = _SUFFIX.fullmatch(text)
        if match is None or match["statistic"] not in STATISTICS:
            raise SpecError(
                f"{text!r} of {concept!r} is not a statistic with a lookback. Write for example 'last', 'max_24h' or "
                f"'mean_90min', with one of {', '.join(STATISTICS)}."
            )
        try:
            lookback = parse_lookback(match["lookback"] or "stay")
        except DataError as error:
            raise SpecError(f"{concept}__{text}: {error}") from None
        return cls(concept, match["statistic"], lookback)


@dataclass(frozen=True)
class FlatEvents:
    """Numbers only, sorted by encounter, concept, time, available_time, source_id, value.

    Encounter ``e`` (a position in ``encounter_ids``) and concept ``c`` (a position in ``concepts``) own the events
    ``start[e * len(concepts) + c] : start[e * len(concepts) + c + 1]``. Times are int64 microseconds, values canonical
    units. ``superseded`` is empty, or holds for each event when a correction or deletion became available.
    """

    encounter_ids: pd.Index
    concepts: tuple[str, ...]
    start: Ints
    time: Ints
    available: Ints
    value: npt.NDArray[np.float64]
    superseded: Ints

    def __len__(self) -> int:
        return int(self.time.size)

    @property
    def encounter(self) -> Ints:
        """Position of each event's encounter in ``encounter_ids``."""
        return self._group() // max(len(self.concepts), 1)

    @property
    def concept(self) -> npt.NDArray[np.int32]:
        """Position of each event's concept in ``concepts``."""
        return (self._group() % max(len(self.concepts), 1)).astype(np.int32)

    def _group(self) -> Ints:
        return np.repeat(np.arange(self.start.size - 1, dtype=np.int64), np.diff(self.start))


def flatten(events: pd.DataFrame, concepts: Sequence[str]) -> FlatEvents:
    """Sort the events of some concepts into flat arrays, ready for any number of prediction times.

    Parameters
    ----------
    events : DataFrame
        Cleaned canonical events; string columns may be categoricals. Deleted events and events without a number are
        left out; what a correction replaces stays known until the correction became available. Rows may come in any
        order; only reports of one fact that became available at the same instant are told apart by it, the last wins.
    concepts : sequence of str
        The concepts to keep.

    Raises
    ------
    DataError
        A column is missing or of the wrong type, or a value is infinite.
    """
    _check(events)
    names = tuple(dict.fromkeys(concepts))
    encounter, ids = _present(*_codes(events["encounter_id"]))
    label, labels = _codes(events["concept"])
    concept = _lookup(labels, names)[label] if len(labels) else np.full(len(events), -1, np.int64)
    keep = np.flatnonzero((concept >= 0) & (encounter >= 0))
    time, available = _micros(events, "time"), _micros(events, "available_time")
    value = events["numeric_value"].to_numpy(dtype=np.float64, na_value=np.nan)
    infinite = int(np.isinf(value[keep]).sum())
    if infinite:
        raise DataError(
            f"{infinite:,} of {keep.size:,} events have an infinite numeric_value. Run features.clean first."
        )
    superseded, gone = _revisions(events, keep, encounter, concept, available)
    absent = np.isnan(value[keep])
    keep = keep[~(absent | gone[keep])] if gone.size else keep[~absent]
    order = kernels.spread(encounter, len(ids), kernels.spread(concept, len(names), keep))
    group = encounter[order] * len(names) + concept[order]
    start = np.zeros(len(ids) * len(names) + 1, np.int64)
    np.cumsum(np.bincount(group, minlength=start.size - 1), out=start[1:])
    unsettled = np.flatnonzero(kernels.unsettled(group, time[order], available[order]))
    if unsettled.size:
        rows = order[unsettled]
        source = pd.factorize(events["source_id"].take(rows), sort=True)[0]
        keys = (value[rows], source, available[rows], time[rows], group[unsettled])
        order[unsettled] = rows[np.lexsort(keys)]
    late = superseded[order] if superseded.size else superseded
    return FlatEvents(ids, names, start, time[order], available[order], value[order], late)


def build(
    events: pd.DataFrame | FlatEvents,
    prediction_times: pd.DataFrame,
    windows: Sequence[Window],
    resample: timedelta | None = None,
    threads: int = 1,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Build window features at prediction times, from nothing that became known later.

    Parameters
    ----------
    events : DataFrame of cleaned canonical events, or FlatEvents
    prediction_times : DataFrame with ``encounter_id`` and ``prediction_time`` (``datetime64[us, UTC]``), any order
        An encounter without events has missing features and counts of 0.
    windows : sequence of Window
        The columns, in this order.
    resample : timedelta, optional
        Read at most one event per step back from the prediction time: bucket ``k`` is ``floor((t - time) / resample)``,
        its latest eligible event speaks for it, dated ``t - k * resample``. Counts then count buckets.
    threads : int
        Rows are shared out among this many threads; the result is the same bit for bit.
    out : float32 array of shape (n_predictions, at least n_windows), optional
        Where to write; its first columns are filled. It saves a copy when more columns follow.

    Returns
    -------
    float32 array of shape (n_predictions, n_windows), rows in the order of ``prediction_times``, NaN = missing.

    Raises
    ------
    DataError
        A table has a missing or mistyped column, an empty time, an infinite value, or FlatEvents lack a concept.
    """
    step = 0 if resample is None else resample // timedelta(microseconds=1)
    if resample is not None and step <= 0:
        raise SpecError(f"resample must be positive, got {resample}.")
    wanted = tuple(dict.fromkeys(w.concept for w in windows))
    flat = events if isinstance(events, FlatEvents) else flatten(events, wanted)
    absent = [c for c in wanted if c not in flat.concepts]
    if absent:
        raise DataError(
            f"These flat events were made without {', '.join(absent)}. Flatten with all the concepts."
        )
    encounter, time = _rows(prediction_times, flat.encounter_ids)
    order = _row_order(encounter, time)
    matrix = np.empty((time.size, len(windows)), np.float32) if out is None else out
    plan = _plan(tuple(windows), wanted, flat.concepts)

    facts = kernels.Facts(
        flat.start, len(flat.concepts), flat.time, flat.available, flat.superseded, flat.value
    )

    def fill(part: Ints) -> None:
        kernels.fill(encounter[part], time[part], part, facts, plan, step, matrix)

    if threads <= 1 or order.size < 10_000:
        fill(order)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, np.array_split(order, threads * 4)))
    return matrix


def _check(events: pd.DataFrame) -> None:
    columns = ("encounter_id", "concept", "time", "available_time", "numeric_value", "status", "source_id")
    missing = [c for c in columns if c not in events.columns]
    if missing:
        raise DataError(
            f"Event table lacks {', '.join(missing)}. See features/events.py for what each column means."
        )


def _micros(table: pd.DataFrame, column: str) -> Ints:
    series = table[column]
    if series.dtype != UTC_US:
        raise DataError(
            f"Column {column!r} is {series.dtype}, expected {UTC_US}. Read it with features.clock.to_utc."
        )
    micros: Ints = series.array.asi8
    empty = int((micros == np.iinfo(np.int64).min).sum())
    if empty:
        raise DataError(f"{empty:,} of {len(table):,} rows have no {column}. Every row needs one.")
    return micros


def _codes(series: pd.Series) -> tuple[Ints, pd.Index]:
    """Integer codes (-1 = empty) and the strings they stand for; cheap when the column is a categorical already."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        return series.cat.codes.to_numpy().astype(np.int64), series.cat.categories
    codes, uniques = pd.factorize(series)
    return np.asarray(codes, dtype=np.int64), pd.Index(uniques)


def _present(codes: Ints, labels: pd.Index) -> tuple[Ints, pd.Index]:
    """The same without labels that no row has, when most are such: a slice keeps the categories of its cohort."""
    if len(labels) <= codes.size + 16:
        return codes, labels
    used, place = np.unique(codes, return_inverse=True)
    lost = int(used.size > 0 and used[0] < 0)
    return place.astype(np.int64) - lost, labels[used[lost:]]


def _lookup(labels: pd.Index, names: Sequence[str]) -> Ints:
    """Position of each label among the names, -1 when absent; one more -1 at the end serves code -1."""
    place = {name: i for i, name in enumerate(names)}
    return np.array([place.get(label, -1) for label in labels] + [-1], dtype=np.int64)


def _rows(prediction_times: pd.DataFrame, ids: pd.Index) -> tuple[Ints, Ints]:
    missing = [c for c in ("encounter_id", "prediction_time") if c not in prediction_times.columns]
    if missing:
        raise DataError(f"Prediction times lack {', '.join(missing)}. Give encounter_id and prediction_time.")
    codes, uniques = _codes(prediction_times["encounter_id"])
    known = np.append(ids.get_indexer(uniques), -1).astype(np.int64)
    return known[codes], _micros(prediction_times, "prediction_time")


def _row_order(encounter: Ints, time: Ints) -> Ints:
    """Rows by encounter, then time; most callers have them so already."""
    step, later = np.diff(encounter), np.diff(time)
    if bool(((step > 0) | ((step == 0) & (later >= 0))).all()):
        return np.arange(time.size, dtype=np.int64)
    return np.lexsort((time, encounter)).astype(np.int64)


def _revisions(
    events: pd.DataFrame, keep: Ints, encounter: Ints, concept: Ints, available: Ints
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """When each event stopped being believed, and which events only say that another is gone.

    Rows with the same encounter, concept and source_id are reports of one fact, told in this order: preliminary, final,
    then corrected and deleted ones, so that no revision comes before what it revises; within each, by available_time,
    then by arrival, which is the order of the table. A report is superseded once a later revision is available, a
    preliminary one by any later report. So the order of rows matters among reports of one fact that share kind and
    available_time, and nowhere else. Both arrays are empty when every row is final, which is the usual case.
    """
    codes, labels = _codes(events["status"])
    rank = np.array([_RANK.get(s, 1) for s in labels] + [1], dtype=np.int64)[codes]
    if bool((rank[keep] == 1).all()):
        return np.empty(0, np.int64), np.empty(0, np.bool_)
    until = np.full(len(events), _NEVER)
    source = pd.factorize(events["source_id"].take(keep))[0]
    rows, source = keep[source >= 0], source[source >= 0]
    keys = (available[rows], np.minimum(rank[rows], 2), source, concept[rows], encounter[rows])
    sequence = np.lexsort((rows, *keys))
    rows, source = rows[sequence], source[sequence]
    report = revision = (
        _NEVER  # when the first of the later reports, and of the later revisions, is available
    )
    for i in range(rows.size - 1, -1, -1):
        row = rows[i]
        if i + 1 == rows.size or not _same(i, rows, source, encounter, concept):
            report = revision = _NEVER
        until[row] = report if rank[row] == 0 else revision
        report = min(report, available[row])
        if rank[row] >= 2:
            revision = min(revision, available[row])
    return until, rank == 3


def _same(i: int, rows: Ints, source: Ints, encounter: Ints, concept: Ints) -> bool:
    a, b = rows[i], rows[i + 1]
    return bool(source[i] == source[i + 1] and concept[a] == concept[b] and encounter[a] == encounter[b])


@lru_cache(maxsize=64)
def _plan(windows: tuple[Window, ...], wanted: tuple[str, ...], flat: tuple[str, ...]) -> kernels.Plan:
    """The windows as arrays: per concept its rising lookbacks, per lookback the statistics to write and where."""
    levels: dict[str, dict[int, list[tuple[int, str]]]] = {name: {} for name in wanted}
    for column, w in enumerate(windows):
        levels[w.concept].setdefault(w.lookback_us, []).append((column, w.statistic))
    needs, level_start, lookback, depth, slot_start = [], [0], [], [], [0]
    statistic: list[int] = []
    columns: list[int] = []
    asked: list[int] = []
    place: list[list[int]] = []
    for name in wanted:
        every = [s for slots in levels[name].values() for _, s in slots]
        needs.append(int(np.bitwise_or.reduce([_NEEDS.get(s, 0) for s in every])))
        for edge, slots in sorted(levels[name].items()):
            lookback.append(edge)
            depth.append(max(_DEPTH.get(s, int(kernels.ALL)) for _, s in slots))
            statistic.extend(STATISTICS.index(s) for _, s in slots)
            columns.extend(column for column, _ in slots)
            slot_start.append(len(columns))
            at = {s: column for column, s in slots}
            asked.append(_asked(at))
            place.append([at.get(s, len(windows)) for s in PLACED])
        level_start.append(len(lookback))
    concept = [flat.index(name) for name in wanted]
    lists = (concept, needs, level_start, lookback, depth, slot_start, statistic, columns, asked)
    arrays = [np.array(x, dtype=np.int64) for x in lists]
    table = np.array(place, dtype=np.int64).reshape(-1, len(PLACED))
    return kernels.Plan(*arrays, place=table, n_columns=len(windows))


def _asked(statistics: Iterable[str]) -> int:
    """Which kinds of statistics one level asks for, as the kernel's bits."""
    wanted = set(statistics)
    bits = {
        kernels.AMOUNT: wanted & set(_AMOUNTS), kernels.LATEST: wanted & set(_LATEST),
        kernels.TALLY: wanted - set(PLACED),
    }  # fmt: skip
    return sum(bit for bit, found in bits.items() if found)
