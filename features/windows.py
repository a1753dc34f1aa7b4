"""What a window feature is, and the one call that builds them, for a cohort or for one patient.

A window feature is ``concept x statistic x lookback``. An event belongs to a window when its ``time`` lies in
``(t - lookback, t]``, and may be read when ``available_time <= t``. What a window says depends on the events in it
alone, however the kernel reaches them, and nothing is kept between calls: batch and online give the same bits, and
hindsight has nowhere to enter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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

_WORTH_A_THREAD: Final = 100_000
_ONE: Final = pd.Index([""])
_FINAL: Final = pd.Index(["final"])

Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]


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


@dataclass(frozen=True, slots=True)
class Columns:
    """What windows read of cleaned events, as arrays: codes (-1 = empty) with their labels, microseconds, values.

    ``sources`` gives the identities of some rows at their source, which few events are ever asked for.
    """

    encounter: Codes
    ids: pd.Index
    concept: Codes
    concepts: pd.Index
    time: Ints
    available: Ints
    value: npt.NDArray[np.float64]
    status: Codes
    statuses: pd.Index
    sources: Callable[[Ints], pd.Series]

    def __len__(self) -> int:
        return int(self.time.size)


def flatten(events: pd.DataFrame | Columns, concepts: Sequence[str], threads: int = 1) -> FlatEvents:
    """Sort the events of some concepts into flat arrays, ready for any number of prediction times.

    Parameters
    ----------
    events : DataFrame, or the Columns of one
        Cleaned canonical events; string columns may be categoricals. Deleted events and events without a number are
        left out; what a correction replaces stays known until the correction became available. Rows may come in any
        order; only reports of one fact that became available at the same instant are told apart by it, the last wins.
    concepts : sequence of str
        The concepts to keep.
    threads : int
        Large tables are shared out among so many; the result is the same.

    Raises
    ------
    DataError
        A column is missing or of the wrong type, or a value is infinite.
    """
    facts = events if isinstance(events, Columns) else _columns(events)
    names = tuple(dict.fromkeys(concepts))
    return _flatten(facts, _lookup(facts.concepts, names), names, threads)


def _columns(events: pd.DataFrame) -> Columns:
    check_columns(events.columns)
    return Columns(
        *present(*codes_of(events["encounter_id"])),
        *codes_of(events["concept"]),
        _micros(events, "time"),
        _micros(events, "available_time"),
        _numbers(events["numeric_value"]),
        *codes_of(events["status"]),
        # As text: the categories of a column read from a file stand in the order in which they came.
        lambda rows: events["source_id"].take(rows).astype("str"),
    )


def flatten_one(
    concept: Codes, time: Ints, available: Ints, value: npt.NDArray[np.float64], concepts: tuple[str, ...]
) -> FlatEvents:
    """The same for one encounter whose final events are arrays already: the quickest road for a service.

    ``concept`` counts among ``concepts`` (-1: not asked for), times are microseconds. Ties of time and availability
    break by value, since there are no identities at the source.
    """
    return flatten_arrays(np.zeros(concept.size, np.int32), _ONE, concept, time, available, value, concepts)


def flatten_arrays(
    encounter: Codes,
    encounter_ids: pd.Index,
    concept: Codes,
    time: Ints,
    available: Ints,
    value: npt.NDArray[np.float64],
    concepts: tuple[str, ...],
    sources: Callable[[Ints], pd.Series] | None = None,
    status: pd.Series | None = None,
) -> FlatEvents:
    """The same for any number of encounters, positions in ``encounter_ids``.

    ``sources`` gives the identities of some rows at the source, where there are such; ``status``, where not all events
    are final.
    """
    labels, known = _themselves(concepts)
    said, statuses = (np.zeros(concept.size, np.int32), _FINAL) if status is None else codes_of(status)
    facts = Columns(
        encounter,
        encounter_ids,
        concept,
        labels,
        time,
        available,
        value,
        said,
        statuses,
        sources or (lambda rows: pd.Series("", range(rows.size))),
    )
    return _flatten(facts, known, concepts)


@lru_cache(maxsize=64)
def _themselves(names: tuple[str, ...]) -> tuple[pd.Index, Codes]:
    """Labels that are the concepts asked for, and which is which."""
    labels = pd.Index(names)
    return labels, _lookup(labels, names)


def _flatten(facts: Columns, known: Codes, names: tuple[str, ...], threads: int = 1) -> FlatEvents:
    """``known`` says which of the names each concept is."""
    rank = np.array([_RANK.get(s, 1) for s in facts.statuses] + [1], dtype=np.int64)
    if bool((rank == 1).all()) or bool((rank[facts.status] == 1).all()):
        flat = _laid_out(facts, known, names, threads)
        if _rises(flat, threads):
            return flat
    return _settle(facts, known[facts.concept], names, rank)


def _laid_out(facts: Columns, known: Codes, names: tuple[str, ...], threads: int) -> FlatEvents:
    """Events group by group, as they came. Threads take a stretch each and know from the counts where to put it."""
    size = len(facts)
    parts = _parts(size, threads)
    stretches = [slice(k * size // parts, (k + 1) * size // parts) for k in range(parts)]
    counts = np.zeros((parts, len(facts.ids) * len(names)), np.int64)

    infinite = np.zeros(parts, np.int64)

    def count(k: int) -> None:
        s = stretches[k]
        codes = (facts.encounter[s], facts.concept[s], known, len(names))
        infinite[k] = kernels.count(*codes, facts.value[s], counts[k])

    each(count, parts, parts)
    _finite(int(infinite.sum()), size)
    start = np.zeros(counts.shape[1] + 1, np.int64)
    np.cumsum(counts.sum(axis=0), out=start[1:])
    place = start[:-1] + np.cumsum(counts, axis=0) - counts
    time, available = np.empty(start[-1], np.int64), np.empty(start[-1], np.int64)
    value = np.empty(start[-1], np.float64)

    def put(k: int) -> None:
        s = stretches[k]
        codes = (facts.encounter[s], facts.concept[s], known, len(names))
        told = (facts.time[s], facts.available[s], facts.value[s])
        kernels.lay_out(*codes, *told, place[k], time, available, value)

    each(put, parts, parts)
    return FlatEvents(facts.ids, names, start, time, available, value, np.empty(0, np.int64))


def _rises(flat: FlatEvents, threads: int) -> bool:
    """Whether every group rises strictly in (time, available), each thread looking at some of the groups."""
    groups, parts = flat.start.size - 1, _parts(len(flat), threads)
    found = np.zeros(parts, np.bool_)

    def look(k: int) -> None:
        start = flat.start[k * groups // parts : (k + 1) * groups // parts + 1]
        found[k] = kernels.rises(start, flat.time, flat.available)

    each(look, parts, parts)
    return bool(found.all())


def _parts(events: int, threads: int) -> int:
    return max(threads, 1) if events > _WORTH_A_THREAD else 1


def _finite(infinite: int, events: int) -> None:
    if infinite:
        raise DataError(
            f"{infinite:,} of {events:,} events have an infinite numeric_value. Run features.clean first."
        )


def each(work: Callable[[int], None], parts: int, threads: int) -> None:
    """Do so many parts of some work, on this thread or on several."""
    if threads <= 1:
        for k in range(parts):
            work(k)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(parts)))


def _settle(facts: Columns, concept: Codes, names: tuple[str, ...], rank: Ints) -> FlatEvents:
    """The general way: revisions are told apart, groups sorted, ties broken. ``concept`` counts among the names."""
    keep = np.flatnonzero((concept >= 0) & (facts.encounter >= 0))
    _finite(int(np.isinf(facts.value[keep]).sum()), facts.value.size)
    superseded, gone = _revisions(facts, concept, keep, rank[facts.status])
    absent = np.isnan(facts.value[keep])
    keep = keep[~(absent | gone[keep])] if gone.size else keep[~absent]
    order = kernels.spread(facts.encounter, len(facts.ids), kernels.spread(concept, len(names), keep))
    group = facts.encounter[order].astype(np.int64) * len(names) + concept[order]
    start = np.zeros(len(facts.ids) * len(names) + 1, np.int64)
    np.cumsum(np.bincount(group, minlength=start.size - 1), out=start[1:])
    unsettled = np.flatnonzero(kernels.unsettled(group, facts.time[order], facts.available[order]))
    if unsettled.size:
        rows = order[unsettled]
        source = pd.factorize(facts.sources(rows), sort=True)[0]
        keys = (facts.value[rows], source, facts.available[rows], facts.time[rows], group[unsettled])
        order[unsettled] = rows[np.lexsort(keys)]
    late = superseded[order] if superseded.size else superseded
    value = (
        facts.value[order] + 0.0
    )  # no negative zero: which of two zeros is the smaller would depend on the road
    return FlatEvents(facts.ids, names, start, facts.time[order], facts.available[order], value, late)


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
    _step(resample)
    wanted = tuple(dict.fromkeys(w.concept for w in windows))
    flat = events if isinstance(events, FlatEvents) else flatten(events, wanted)
    encounter, time = rows(prediction_times, flat.encounter_ids)
    matrix = np.empty((time.size, len(windows)), np.float32) if out is None else out
    fill(flat, encounter, time, plan(windows, flat.concepts), resample, threads, matrix)
    return matrix


def fill(
    flat: FlatEvents,
    encounter: Ints,
    time: Ints,
    plan: kernels.Plan,
    resample: timedelta | None,
    threads: int,
    out: npt.NDArray[np.float32],
    extra: npt.NDArray[np.float32] | None = None,
    finish: Callable[[Ints], None] | None = None,
    into: Ints | None = None,
) -> None:
    """The same on bare arrays, for callers that ask often or want more done on finished rows.

    Parameters
    ----------
    encounter, time : int64 arrays of shape (n,)
        Positions in ``flat.encounter_ids`` (-1: no events) and prediction times in microseconds, in any order.
    plan : what :func:`plan` made of the windows and ``flat.concepts``
    out, extra : float32 arrays with a row for each prediction
        The plan's last columns go to ``extra``, as many as it has, the others to ``out``.
    finish : callable, optional
        Told which rows are done, from the thread that did them.
    into : int64 array of shape (n,), optional
        The row of ``out`` and ``extra`` that each prediction goes to; without, they are in its order.
    """
    step = _step(resample)
    order = row_order(encounter, time)
    facts = kernels.Facts(
        flat.start, len(flat.concepts), flat.time, flat.available, flat.superseded, flat.value
    )
    more = np.empty((len(out), 0), np.float32) if extra is None else extra

    def work(part: Ints) -> None:
        goes = part if into is None else into[part]
        kernels.fill(encounter[part], time[part], goes, facts, plan, step, out, more)
        if finish is not None:
            finish(goes)

    if threads <= 1 or order.size < _WORTH_A_THREAD // 10:
        work(order)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, np.array_split(order, threads * 4)))


def _step(resample: timedelta | None) -> int:
    step = 0 if resample is None else resample // timedelta(microseconds=1)
    if resample is not None and step <= 0:
        raise SpecError(f"resample must be positive, got {resample}.")
    return step


def check_columns(found: Iterable[str]) -> None:
    """Refuse a table of events that lacks a column that windows read."""
    columns = ("encounter_id", "concept", "time", "available_time", "numeric_value", "status", "source_id")
    missing = [c for c in columns if c not in set(found)]
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


def codes_of(series: pd.Series) -> tuple[Codes, pd.Index]:
    """Integer codes (-1 = empty) and the strings they stand for; cheap when the column is a categorical already."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        return series.cat.codes.to_numpy().astype(np.int32), series.cat.categories
    codes, uniques = pd.factorize(series)
    return np.asarray(codes, dtype=np.int32), pd.Index(uniques)


def present(codes: Codes, labels: pd.Index) -> tuple[Codes, pd.Index]:
    """The same without labels that no row has, when most are such: a slice keeps the categories of its cohort."""
    if len(labels) <= codes.size + 16:
        return codes, labels
    used, place = np.unique(codes, return_inverse=True)
    lost = int(used.size > 0 and used[0] < 0)
    return (place - lost).astype(np.int32), labels[used[lost:]]


def _numbers(column: pd.Series) -> npt.NDArray[np.float64]:
    if not pd.api.types.is_any_real_numeric_dtype(column.dtype) and bool(column.notna().any()):
        raise no_number(column.dtype)
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def no_number(found: object) -> DataError:
    """What to say of values of this type."""
    return DataError(f"Column 'numeric_value' is {found}, expected numbers. Run features.clean first.")


def _lookup(labels: pd.Index, names: Sequence[str]) -> Codes:
    """Position of each label among the names, -1 when absent; one more -1 at the end serves code -1."""
    place = {name: i for i, name in enumerate(names)}
    return np.array([place.get(label, -1) for label in labels] + [-1], dtype=np.int32)


def rows(prediction_times: pd.DataFrame, ids: pd.Index) -> tuple[Ints, Ints]:
    """Prediction times as arrays: positions of their encounters among ``ids`` (-1 where absent), and microseconds.

    Raises
    ------
    DataError
        A column is missing or mistyped, or a time is empty.
    """
    codes, uniques, time = asked(prediction_times)
    known = np.append(ids.get_indexer(uniques), -1).astype(np.int64)
    return known[codes], time


def asked(prediction_times: pd.DataFrame) -> tuple[Codes, pd.Index, Ints]:
    """The same with the identifiers that the table itself has, and positions among them."""
    missing = [c for c in ("encounter_id", "prediction_time") if c not in prediction_times.columns]
    if missing:
        raise DataError(f"Prediction times lack {', '.join(missing)}. Give encounter_id and prediction_time.")
    return *codes_of(prediction_times["encounter_id"]), _micros(prediction_times, "prediction_time")


def row_order(encounter: Ints, time: Ints) -> Ints:
    """Rows by encounter, then time; most callers have them so already."""
    step, later = np.diff(encounter), np.diff(time)
    if bool(((step > 0) | ((step == 0) & (later >= 0))).all()):
        return np.arange(time.size, dtype=np.int64)
    return np.lexsort((time, encounter)).astype(np.int64)


def _revisions(facts: Columns, concept: Codes, keep: Ints, rank: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """When each event stopped being believed, and which events only say that another is gone.

    Rows with the same encounter, concept and source_id are reports of one fact, told in this order: preliminary, final,
    then corrected and deleted ones, so that no revision comes before what it revises; within each, by available_time,
    then by arrival, which is the order of the table. A report is superseded once a later revision is available, a
    preliminary one by any later report. So the order of rows matters among reports of one fact that share kind and
    available_time, and nowhere else. Both arrays are empty when every row is final, which is the usual case.
    """
    if bool((rank[keep] == 1).all()):
        return np.empty(0, np.int64), np.empty(0, np.bool_)
    encounter, available = facts.encounter, facts.available
    until = np.full(rank.size, _NEVER)
    source = pd.factorize(facts.sources(keep))[0]
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


def _same(i: int, rows: Ints, source: Ints, encounter: Codes, concept: Codes) -> bool:
    a, b = rows[i], rows[i + 1]
    return bool(source[i] == source[i + 1] and concept[a] == concept[b] and encounter[a] == encounter[b])


def plan(windows: Sequence[Window], concepts: tuple[str, ...]) -> kernels.Plan:
    """What the kernel is to do, for events flattened with ``concepts``; columns in the order of the windows.

    Raises
    ------
    DataError
        A window reads a concept that the events were flattened without.
    """
    return _plan(tuple(windows), concepts)


@lru_cache(maxsize=64)
def _plan(windows: tuple[Window, ...], flat: tuple[str, ...]) -> kernels.Plan:
    wanted = tuple(dict.fromkeys(w.concept for w in windows))
    absent = [c for c in wanted if c not in flat]
    if absent:
        raise DataError(
            f"These flat events were made without {', '.join(absent)}. Flatten with all the concepts."
        )
    levels: dict[str, dict[tuple[int, int], list[tuple[int, str]]]] = {name: {} for name in wanted}
    asked_before: Counter[Window] = Counter()
    for column, w in enumerate(windows):
        # The kernel knows one column for each statistic of a level: a window asked for again has a level of its own.
        levels[w.concept].setdefault((w.lookback_us, asked_before[w]), []).append((column, w.statistic))
        asked_before[w] += 1
    needs, level_start, lookback, depth, slot_start = [], [0], [], [], [0]
    statistic: list[int] = []
    columns: list[int] = []
    asked: list[int] = []
    place: list[list[int]] = []
    for name in wanted:
        every = [s for slots in levels[name].values() for _, s in slots]
        needs.append(int(np.bitwise_or.reduce([_NEEDS.get(s, 0) for s in every])))
        for (edge, _), slots in sorted(levels[name].items()):
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
    table = np.array(place, dtype=np.int64).reshape(-1, len(PLACED))
    c, n, starts, edges, depths, begins, what, cells, kinds = (np.array(x, dtype=np.int64) for x in lists)
    return kernels.Plan(c, n, starts, edges, depths, begins, what, cells, kinds, table, len(windows))


def _asked(statistics: Iterable[str]) -> int:
    """Which kinds of statistics one level asks for, as the kernel's bits."""
    wanted = set(statistics)
    bits = {
        kernels.AMOUNT: wanted & set(_AMOUNTS), kernels.LATEST: wanted & set(_LATEST),
        kernels.TALLY: wanted - set(PLACED),
    }  # fmt: skip
    return sum(bit for bit, found in bits.items() if found)
