"""From an archive to a feature table on disk: shard by shard, on some threads, in memory that does not grow.

A shard holds whole subjects, so its features need no other shard: threads, processes and machines may each take some
and the numbers are the same bit for bit. Each shard becomes one Parquet file of its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features import archive
from features.archive import Shard, ShardKey
from features.clock import UTC_US, parse_lookback
from features.concepts import loader
from features.errors import DataError, SpecError
from features.featureset import FeatureSet
from features.files import arrow_columns
from features.windows import Columns, FlatEvents, flatten

GROUP_ROWS: Final = 8_192
"""Predictions built and written at once: 13 MB of a set of 400 features."""
LONGEST: Final = timedelta(days=366)
"""A stay is scored no longer than this; a discharge years away is a typing error."""
READ: Final = ("encounter_id", "time", "available_time", "concept", "numeric_value", "status")
"""Columns of the events that windows always read."""
SOURCE: Final = "source_id"
"""The one that they read where ties and corrections make it matter."""
ABOUT: Final = ("encounter_id", "hospital_admission_time", "icu_admission_time")
"""Columns of the encounters that prediction times read."""

_KEYS: Final = (
    pa.field("encounter_id", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    pa.field("prediction_time", pa.timestamp("us", "UTC"), nullable=False),
)
_NAT: Final = np.iinfo(np.int64).min
_TILE: Final = 128
_LEAVING: Final = {
    "icu": ("icu_discharge", "hospital_discharge", "death"),
    "hospital": ("hospital_discharge", "death"),
}

Ints = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]


class PredictionTimes(Protocol):
    """When to make a score: a rule that looks at one shard at a time."""

    def rows(self, stays: pd.DataFrame, facts: Columns) -> tuple[pd.DataFrame, Counter[str]]:
        """Prediction times (``encounter_id``, ``prediction_time``) of a shard, and encounters left out by reason.

        Parameters
        ----------
        stays : DataFrame with :data:`ABOUT`
        facts : Columns of all of the shard's events
        """
        ...


@dataclass(frozen=True, slots=True)
class Grid:
    """Every so often from admission to discharge, the first at admission itself.

    ``start`` is ``"icu"`` (the ICU admission; encounters never there are left out) or ``"hospital"`` (the hospital
    admission, else the ICU's). A stay ends at the first discharge or death after its start that the archive knows,
    else at its last fact; the prediction at that instant is the last.
    """

    every: timedelta = timedelta(hours=1)
    start: str = "hospital"

    def __post_init__(self) -> None:
        if self.every < timedelta(minutes=1) or self.start not in _LEAVING:
            raise SpecError(
                f"A grid needs a step of a minute or more and a start of icu or hospital, got {self.every} and "
                f"{self.start!r}."
            )

    def rows(self, stays: pd.DataFrame, facts: Columns) -> tuple[pd.DataFrame, Counter[str]]:
        """See :class:`PredictionTimes`."""
        step, begin = self.every // timedelta(microseconds=1), _begin(stays, self.start)
        end = _end(facts, stays["encounter_id"], begin, _LEAVING[self.start])
        known = (begin != _NAT) & (end >= begin)
        long = known & (end - begin > LONGEST // timedelta(microseconds=1))
        end = np.where(long, begin + LONGEST // timedelta(microseconds=1), end)
        ticks = np.where(known, (end - begin) // step + 1, 0)
        stay = np.repeat(np.arange(len(stays)), ticks)
        tick = np.arange(stay.size) - np.repeat(np.cumsum(ticks) - ticks, ticks)
        left = Counter(
            no_start=int((begin == _NAT).sum()),
            no_end=int(((begin != _NAT) & ~known).sum()),
            cut_at_a_year=int(long.sum()),
        )
        return _table(stay, stays["encounter_id"], begin[stay] + tick * step), +left


@dataclass(frozen=True, slots=True)
class AtEvents:
    """Whenever a fact of some concepts becomes available: at each such instant once an encounter."""

    concepts: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.concepts) - set(loader.concepts()))
        if unknown or not self.concepts:
            raise SpecError(
                f"Unknown concepts to predict at: {', '.join(unknown) or 'none named'}. See concepts.csv."
            )

    def rows(self, stays: pd.DataFrame, facts: Columns) -> tuple[pd.DataFrame, Counter[str]]:
        """See :class:`PredictionTimes`."""
        ids = stays["encounter_id"]
        stay, asked = _stay(facts, ids), _of(facts, self.concepts)
        met = pd.DataFrame({"stay": stay[asked], "micros": facts.available[asked]}).drop_duplicates()
        met = met[met["stay"] >= 0].sort_values(["stay", "micros"])
        left = Counter(no_such_fact=len(stays) - met["stay"].nunique())
        return _table(met["stay"].to_numpy(), ids, met["micros"].to_numpy()), +left


class Listed:
    """Any list of ``encounter_id`` and ``prediction_time``, from a Parquet file; kept in memory, 16 bytes a row."""

    def __init__(self, path: Path) -> None:
        """Read the list.

        Raises
        ------
        DataError
            The file cannot be read, lacks a column, or has an empty encounter or time.
        """
        stays, micros = _listed(path)
        met = stays.dictionary_encode()
        code = met.indices.to_numpy()
        self._order = np.lexsort((micros, code))
        self._time = micros[self._order]
        self._first = np.append(np.searchsorted(code[self._order], np.arange(len(met.dictionary))), code.size)
        self._known = pd.Index(met.dictionary.to_pandas().astype(object))

    def __len__(self) -> int:
        return int(self._time.size)

    def rows(self, stays: pd.DataFrame, facts: Columns) -> tuple[pd.DataFrame, Counter[str]]:
        """See :class:`PredictionTimes`. Sorted by encounter and time; the keys say which row is which."""
        ids = stays["encounter_id"]
        place = self._known.get_indexer(pd.Index(ids.astype(object)))
        first, stop = self._first[place], self._first[place + 1]
        size = np.where(place >= 0, stop - first, 0)
        stay = np.repeat(np.arange(len(stays)), size)
        within = np.arange(stay.size) - np.repeat(np.cumsum(size) - size, size)
        return _table(stay, ids, self._time[first[stay] + within]), +Counter(
            not_listed=int((size == 0).sum())
        )


def prediction_times(text: str) -> PredictionTimes:
    """Read a rule as the command line writes it.

    ``hourly`` (hospital stay), ``hourly:icu``, ``4h``, ``4h:icu``, ``events:lactate,ph``, or a Parquet file with
    ``encounter_id`` and ``prediction_time``.

    Raises
    ------
    DataError, SpecError
        It is none of these.
    """
    if text.startswith("events:"):
        return AtEvents(tuple(c.strip() for c in text.removeprefix("events:").split(",") if c.strip()))
    if Path(text).is_file():
        return Listed(Path(text))
    step, _, start = text.partition(":")
    try:
        every = parse_lookback("1h" if step == "hourly" else step)
    except DataError:
        every = 0
    if not 0 < every < LONGEST // timedelta(microseconds=1):
        raise DataError(
            f"Prediction times {text!r} are no rule and no file. Write 'hourly', '4h:icu', 'events:lactate,ph', or "
            "name a Parquet file with encounter_id and prediction_time."
        )
    return Grid(timedelta(microseconds=every), start or "hospital")


@dataclass
class StreamAccount:
    """What was built: ``predictions``, ``encounters`` with one, ``events`` read, encounters ``left`` by reason."""

    predictions: int = 0
    encounters: int = 0
    events: int = 0
    shards: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def add(self, other: StreamAccount) -> None:
        """Take in the account of one more shard."""
        self.predictions += other.predictions
        self.encounters += other.encounters
        self.events += other.events
        self.shards += other.shards
        self.left.update(other.left)


def build_stream(
    features: FeatureSet,
    source: Path | Iterable[Shard],
    times: PredictionTimes,
    output: Path,
    *,
    threads: int = 1,
    say: Callable[[int], None] = lambda predictions: None,
) -> StreamAccount:
    """Build features of every shard into a folder of Parquet files.

    Parameters
    ----------
    features : FeatureSet
    source : Path of an archive, or an iterable of shards
    times : PredictionTimes
    output : Path
        New or empty folder. It appears when it is complete. One file a shard, columns ``encounter_id``,
        ``prediction_time`` and the features as float32, NaN = missing; the feature manifest in the file's metadata.
    threads : int
        So many shards are worked on at once, and so many are in memory. Same bits for any number.
    say : callable
        Told how many more predictions are on disk.

    Raises
    ------
    DataError
        The folder holds something, or the archive is not one.
    """
    work: Iterable[ShardKey | Shard] = archive.shards(source) if isinstance(source, Path) else source
    total = StreamAccount()
    with archive.building(output, "features") as place:
        for part in _spread(lambda shard: build_part(features, shard, times, place), work, max(threads, 1)):
            total.add(part)
            say(part.predictions)
    return total


def build_part(
    features: FeatureSet, source: ShardKey | Shard, times: PredictionTimes, folder: Path, threads: int = 1
) -> StreamAccount:
    """Features of one shard into ``folder/part-<shard>.parquet``; the file appears when it is complete.

    Doing it again, on any machine, gives the same file.
    """
    shard = _load(source, features.judge)
    facts = arrow_columns(shard.table, lambda: _sources(source))
    rows, left = times.rows(shard.encounters, facts)
    # Contradictions are looked for in tables; without, what was read goes as it is to the kernel.
    flat = features.flatten(shard.events) if features.judge else flatten(facts, features.concepts)
    path = folder / f"part-{shard.name}.parquet"
    waiting = path.with_suffix(f".{uuid4().hex}.partial")
    try:
        _write(features, flat, rows, waiting, threads)
        waiting.replace(path)
    finally:
        waiting.unlink(missing_ok=True)
    codes = rows["encounter_id"].cat.codes.to_numpy()
    return StreamAccount(len(rows), np.unique(codes).size, len(facts), 1, left)


def _load(source: ShardKey | Shard, all_columns: bool) -> Shard:
    if isinstance(source, Shard):
        return source
    return source.read((*READ, SOURCE) if all_columns else READ, ABOUT)


def _sources(source: ShardKey | Shard) -> pa.ChunkedArray:
    return (source.column(SOURCE) if isinstance(source, ShardKey) else source.table)[SOURCE]


def _spread(
    task: Callable[[ShardKey | Shard], StreamAccount], work: Iterable[ShardKey | Shard], threads: int
) -> Iterator[StreamAccount]:
    """Results as they come, never more than ``threads`` shards in hand."""
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[StreamAccount]] = set()
        for item in work:
            running.add(pool.submit(task, item))
            if len(running) >= threads:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in running)


def _write(features: FeatureSet, flat: FlatEvents, rows: pd.DataFrame, path: Path, threads: int) -> None:
    schema = _schema(features)
    how: dict[str, Any] = {
        "compression": "lz4",
        "use_dictionary": ["encounter_id"],
        "write_statistics": ["encounter_id", "prediction_time"],
        "write_batch_size": GROUP_ROWS,
    }
    # One room for all groups: new pages for each would be a tenth of the time, and make threads wait for each other.
    matrix = np.empty((min(len(rows), GROUP_ROWS), len(features.names)), np.float32)
    columns = np.empty(matrix.shape[::-1], np.float32)
    with pq.ParquetWriter(path, schema, **how) as writer:
        for first in range(0, len(rows), GROUP_ROWS):
            part = rows.iloc[first : first + GROUP_ROWS]
            made = features.build(flat, part, threads, matrix[: len(part)])
            writer.write_table(_arrow(part, made, columns, schema), row_group_size=len(part))


@lru_cache(maxsize=8)
def _schema(features: FeatureSet) -> pa.Schema:
    # Never null (missing is NaN), which spares each column its levels, and a third of the time of writing.
    numbers = [pa.field(name, pa.float32(), nullable=False) for name in features.names]
    manifest = json.dumps(features.manifest(), sort_keys=True)
    return pa.schema([*_KEYS, *numbers], metadata={"wardcast.features": manifest})


def _arrow(rows: pd.DataFrame, matrix: Singles, columns: Singles, schema: pa.Schema) -> pa.Table:
    """A matrix, turned on its side in ``columns``, as a table; until the next one is turned there."""
    keys = [
        pa.array(rows["encounter_id"].array).cast(schema.field(0).type),
        pa.array(rows["prediction_time"].array.asi8).cast(schema.field(1).type),
    ]
    for first in range(0, len(matrix), _TILE):  # rows that the cache holds, which is twice as fast
        tile = matrix[first : first + _TILE]
        columns[:, first : first + len(tile)] = tile.T
    whole, pitch, n = pa.py_buffer(columns), columns.strides[0], len(matrix)
    numbers = (
        pa.Array.from_buffers(pa.float32(), n, [None, whole.slice(k * pitch, n * columns.itemsize)], 0)
        for k in range(len(columns))
    )
    return pa.Table.from_arrays([*keys, *numbers], schema=schema)


def _table(stay: npt.NDArray[Any], ids: pd.Series, micros: Ints) -> pd.DataFrame:
    """Prediction times of some encounters, the identifiers as a categorical over all of the shard."""
    when = pd.DatetimeIndex(micros.view("datetime64[us]"), tz="UTC")
    labels = pd.Index(ids.astype(object), dtype="str")
    stays = pd.Categorical.from_codes(stay.astype(np.int64), categories=labels)
    return pd.DataFrame({"encounter_id": stays, "prediction_time": pd.Series(when).astype(UTC_US)})


def _begin(stays: pd.DataFrame, start: str) -> Ints:
    icu = stays["icu_admission_time"].array.asi8
    if start == "icu":
        return np.asarray(icu, dtype=np.int64)
    hospital = stays["hospital_admission_time"].array.asi8
    return np.asarray(np.where(hospital != _NAT, hospital, icu), dtype=np.int64)


def _end(facts: Columns, ids: pd.Series, begin: Ints, leaving: Sequence[str]) -> Ints:
    """The first leaving at or after the start of each encounter, else its last fact's time, else NaT."""
    stay, time, never = _stay(facts, ids), facts.time, np.iinfo(np.int64).max
    rows = np.flatnonzero(_of(facts, leaving) & (stay >= 0))
    rows = rows[time[rows] >= begin[stay[rows]]]
    end = np.full(len(ids), never)
    np.minimum.at(end, stay[rows], time[rows])
    open_ended = np.append(end == never, False)
    end[open_ended[:-1]] = _NAT
    rows = np.flatnonzero(open_ended[stay])  # few, as most stays are over
    np.maximum.at(end, stay[rows], time[rows])
    return end


def _stay(facts: Columns, ids: pd.Series) -> Ints:
    """Position of each event's encounter among the identifiers, -1 where it is none of them."""
    place = np.append(pd.Index(ids.astype(object)).get_indexer(facts.ids), -1)
    return np.asarray(place[facts.encounter], dtype=np.int64)


def _of(facts: Columns, concepts: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which events are of these concepts and not deleted."""
    asked = np.append(facts.concepts.isin(concepts), False)
    kept = np.append(facts.statuses != "deleted", True)
    return np.asarray(asked[facts.concept] & kept[facts.status])


def _listed(path: Path) -> tuple[pa.Array, Ints]:
    try:
        table = pq.read_table(path, columns=["encounter_id", "prediction_time"])
        stays = table["encounter_id"].cast(pa.string()).combine_chunks()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(
            f"{path.name} is no Parquet file with encounter_id and prediction_time. Write one with both columns."
        ) from error
    when = table["prediction_time"]
    if not pa.types.is_timestamp(when.type):
        raise DataError(f"Column prediction_time of {path.name} is {when.type}. Write timestamps, UTC.")
    empty = stays.null_count + when.null_count
    if empty:
        raise DataError(f"{path.name} has {empty:,} empty cells. Every row needs an encounter and a time.")
    micros = when.cast(pa.timestamp("us", when.type.tz), safe=False).cast(pa.int64())
    return stays, np.asarray(micros.to_numpy(), dtype=np.int64)


def read_features(folder: Path) -> pa.Table:
    """A whole feature folder as one table, parts in order: for cohorts that fit in memory."""
    files = sorted(folder.glob("part-*.parquet"))
    if not files:
        raise DataError(f"No features in {folder.name}. Build them: wardcast features build.")
    return pa.concat_tables([pq.read_table(f) for f in files], promote_options="permissive")


def rows_of(folder: Path) -> int:
    """Predictions in a feature folder, without reading them."""
    return sum(pq.read_metadata(f).num_rows for f in folder.glob("part-*.parquet"))
