"""A cohort on disk: cleaned events as a MEDS 0.4 data set, written and read in bounded memory.

What a reader hands over arrives table by table; windows need a subject's facts together. Writing goes in two passes:
each batch is cleaned and spilled into buckets by a hash of its subject, then each bucket is sorted and written. So
memory depends on the size of a shard, never of the cohort.

Layout, all of it plain MEDS but for two things beside it (``encounters/`` and ``metadata/wardcast.json``)::

    data/00000.parquet         events; a subject is in one file, contiguous, sorted by time
    encounters/00000.parquet   events.ENCOUNTER_COLUMNS of the same subjects
    metadata/dataset.json  codes.parquet  [subject_splits.parquet]  wardcast.json

MEDS wants int64 subjects and float32 values; ours are text and float64. ``source_subject_id`` keeps the text, ``value``
keeps a number wherever float32 would change it, ``arrival`` keeps the order of rows where corrections make it matter:
what is read back equals what was cleaned, bit for bit. A row group holds whole subjects and is what :func:`shards`
lists: the unit of streaming, of threads and of a cluster.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.clean import CONTRADICTION, clean, contradictions, fill_available_time
from features.clock import UTC_US
from features.concepts import loader
from features.errors import DataError
from features.events import ENCOUNTER_COLUMNS, EVENT_COLUMNS, TIMES, encounter_events
from features.sources.batch import Batch, ReadAccount, Say, quiet

FORMAT: Final = 1
MEDS_VERSION: Final = "0.4.1"
SHARD_ROWS: Final = 1_000_000
"""Events a file holds at most, unless one subject has more."""
GROUP_ROWS: Final = 131_072
"""Events a row group holds at most, unless one subject has more."""
UNCODED: Final = "WARDCAST//uncoded"
"""Code of an event whose source gave it none; MEDS wants one of every row."""
RESENT: Final = "duplicate"
"""Reason of a report that says again, word for word, what an earlier one of the same identity said."""

_BITS: Final = 6
_LEVELS: Final = 8
_INSTANT: Final = pa.timestamp("us")
_WHOLE: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")
_PLAIN: Final = ("text_value", "source_id")
_WORDS: Final = ("encounter_id", "concept", "unit", "status", "source_id")
_WRITING: Final[dict[str, Any]] = {"compression": "zstd", "compression_level": 1}
_RISING: Final = ("subject_id", "time", "available_time", "arrival")

DATA: Final = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("time", _INSTANT),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),
        pa.field("text_value", pa.large_string()),
        pa.field("available_time", _INSTANT),
        *(pa.field(name, pa.string()) for name in _WORDS),
        pa.field("value", pa.float64()),
        pa.field("source_subject_id", pa.string()),
        pa.field("arrival", pa.int64()),
    ]
)
"""Columns of ``data/``: MEDS's five, then ours."""

EXTENSIONS: Final[dict[str, list[str]]] = {
    "raw_source_id_columns": ["source_subject_id", "encounter_id", "source_id"],
    "code_modifier_columns": ["unit"],
    "other_extension_columns": ["available_time", "concept", "status", "value", "arrival"],
}
"""Which of our columns is what in MEDS's terms, as ``metadata/dataset.json`` says it."""

_ENCOUNTERS: Final = pa.schema(
    [pa.field("number", pa.int64())]
    + [
        pa.field(c, _INSTANT if c.endswith("_time") else pa.float64() if c == "age_years" else pa.string())
        for c in ENCOUNTER_COLUMNS
    ]
)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass
class ArchiveAccount:
    """What became of every event, from the reader to the disk. Counts, codes and reasons; never an identifier.

    Attributes
    ----------
    read : int
        Events handed over by the reader, and those that its encounters say of their patients.
    written : int
        Events on disk, mapped or not.
    filled : int
        Events whose ``available_time`` the declared policy gave.
    orphans : int
        Events on disk whose encounter no batch described: windows can read them, grids cannot start from them.
    by_code : dict of (code, concept) to Counter
        ``read``, ``converted``, ``repaired``, and events set aside by reason. Those of reason ``contradiction`` are on
        disk without their concept, those of reason ``duplicate`` are not.
    left : Counter of (table, reason) to rows, ``source`` the reader's own account
    """

    read: int = 0
    written: int = 0
    filled: int = 0
    orphans: int = 0
    subjects: int = 0
    encounters: int = 0
    by_code: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    source: ReadAccount = field(default_factory=ReadAccount)

    def to_json(self) -> dict[str, Any]:
        """The same for ``metadata/wardcast.json`` and for people."""
        counts = ("read", "written", "filled", "orphans", "subjects", "encounters")
        return {
            **{name: getattr(self, name) for name in counts},
            "rows": dict(self.source.rows),
            "events": dict(self.source.events),
            "left": [{"table": t, "reason": r, "rows": n} for (t, r), n in sorted(self.source.left.items())],
            "notes": list(self.source.notes),
            "by_code": [
                {
                    "code": code,
                    "concept": concept,
                    **self._label(code),
                    **{k: n for k, n in counter.items() if n},
                }
                for (code, concept), counter in sorted(self.by_code.items(), key=lambda i: -i[1]["read"])
            ],
        }

    def _label(self, code: str) -> dict[str, str]:
        """What the source calls a code, where it says so."""
        label = self.source.labels.get(code)
        return {"label": label} if label else {}


@dataclass(frozen=True)
class Shard:
    """Some subjects, whole: ``encounters`` with ``ENCOUNTER_COLUMNS``, ``table`` their cleaned canonical events.

    Rows of the Arrow table stand by subject and time, in the order of arrival where that matters.
    """

    name: str
    encounters: pd.DataFrame
    table: pa.Table

    @cached_property
    def events(self) -> pd.DataFrame:
        """The events as pandas has them.

        Text columns are categoricals, but for ``text_value`` and ``source_id``, which seldom say the same twice.
        """
        return pd.DataFrame({name: _pandas(self.table[name], name) for name in self.table.column_names})


@dataclass(frozen=True, slots=True)
class ShardKey:
    """Where a shard is: a row group of a file of an archive. Small, so that a cluster can send it about."""

    folder: Path
    file: str
    group: int
    events: int

    @property
    def name(self) -> str:
        """``00003-02``: file and row group."""
        return f"{self.file}-{self.group:02d}"

    def read(
        self, columns: Iterable[str] = EVENT_COLUMNS, about: Sequence[str] = tuple(ENCOUNTER_COLUMNS)
    ) -> Shard:
        """Load it, of the events these ``columns`` and of the encounters those of ``about``."""
        return Shard(self.name, _read_encounters(self, about), self.column(*columns))

    def column(self, *names: str) -> pa.Table:
        """Some columns of its events, in the order of every other."""
        stored = _read_group(self, names) if self.events else DATA.empty_table()
        return _canonical(stored, names)


# ------------------------------------------------------------ writing


def write(
    batches: Iterable[Batch],
    folder: Path,
    account: ReadAccount,
    *,
    name: str = "",
    shard_rows: int = SHARD_ROWS,
    group_rows: int = GROUP_ROWS,
    keep_unmapped: bool = True,
    judge: bool = True,
    splits: pd.DataFrame | None = None,
    created_at: datetime | None = None,
    threads: int = 1,
    say: Say = quiet,
) -> ArchiveAccount:
    """Clean everything a reader hands over and write it as a MEDS data set.

    Parameters
    ----------
    batches : iterable of Batch
    folder : Path
        New or empty. It appears when it is complete; a run that fails leaves nothing behind.
    account : ReadAccount
        The one the reader fills; it becomes part of the result.
    name : str
        Name of the data set in ``metadata/dataset.json``.
    shard_rows, group_rows : int
        Events in a file, and in a row group. Memory grows with the first, that of later streaming with the second.
    keep_unmapped : bool
        Write events whose code no table knows, with an empty concept; otherwise they are only counted.
    judge : bool
        Write facts that :func:`features.clean.contradictions` finds at odds with an empty concept: they keep code,
        canonical value and unit, no window reads them, and ``by_code`` counts them.
    splits : DataFrame with ``subject_id`` and ``split``, optional
        Written as ``metadata/subject_splits.parquet``.
    created_at : datetime, optional
        Stands in ``metadata/dataset.json``.
    threads : int
        Shards are sorted and written by this many threads; same bytes for any number.
    say : callable
        Told how many more events are on disk.

    Raises
    ------
    DataError
        The folder holds something; an encounter stands in two batches; two subjects share one number.

    Notes
    -----
    A final report that an interface sends again, with the same identity (``source_id``), times, value and words, is the
    same fact: it is written once, and counted as ``duplicate``.
    """
    result = ArchiveAccount(source=account)
    with building(folder) as place:
        for part in ("data", "encounters", "metadata"):
            (place / part).mkdir()
        with _Spill(place / ".spill" / "events") as events, _Spill(place / ".spill" / "encounters") as stays:
            for batch in batches:
                _take_in(batch, events, stays, result, keep_unmapped)
        jobs = _jobs(events, stays, shard_rows)
        written = _settle(jobs, place, _Manner(group_rows, judge), threads, say)
        for shard in written:
            result.written += shard.counts["events"]
            result.orphans += shard.counts["orphans"]
            result.subjects += shard.counts["subjects"]
            result.encounters += shard.counts["encounters"]
            _count(shard.aside, result)
        shutil.rmtree(place / ".spill")
        _write_metadata(place, name, created_at, splits, result, [shard.groups for shard in written])
    return result


@contextmanager
def building(folder: Path, what: str = "archive") -> Iterator[Path]:
    """A place beside the folder that becomes it when all went well, and vanishes otherwise.

    Raises
    ------
    DataError
        The folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder.name} exists and is not an empty folder. Name a new one for the {what}.")
    place = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
        if folder.exists():
            folder.rmdir()
        place.rename(folder)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _take_in(
    batch: Batch, events: _Spill, stays: _Spill, result: ArchiveAccount, keep_unmapped: bool
) -> None:
    """Clean one batch and spill it."""
    if len(batch.encounters):
        stays.add(_encounter_table(batch.encounters))
    for facts in (batch.events, encounter_events(batch.encounters)):
        if not len(facts):
            continue
        first = result.read
        result.read += len(facts)
        facts = _usable(facts, result.source)
        cleaned, account = clean(facts, keep_unmapped=keep_unmapped)
        _count(account.by_code, result)
        cleaned, filled = fill_available_time(cleaned)
        result.filled += filled
        events.add(_event_table(cleaned, first))


def _usable(events: pd.DataFrame, account: ReadAccount) -> pd.DataFrame:
    """Without events that belong to nobody or to no instant; they are counted."""
    lost = np.zeros(len(events), np.bool_)
    for column, reason in (
        ("subject_id", "no_subject"),
        ("encounter_id", "no_encounter"),
        ("time", "no_time"),
    ):
        empty = events[column].isna().to_numpy() & ~lost
        account.leave("archive", reason, int(empty.sum()))
        lost |= empty
    return events.loc[~lost].reset_index(drop=True) if lost.any() else events


def _event_table(events: pd.DataFrame, first: int) -> pa.Table:
    """Cleaned events in the columns of ``DATA``; ``first`` is the arrival of the first."""
    subject = _strings(events, "subject_id")
    value = events["numeric_value"].to_numpy(dtype=np.float64, na_value=np.nan)
    narrow, wide = _narrowed(value)
    columns = {
        "subject_id": _numbers(subject),
        "code": pc.fill_null(_strings(events, "code"), UNCODED),
        "numeric_value": narrow,
        "text_value": _strings(events, "text_value").cast(pa.large_string()),
        "value": wide,
        "source_subject_id": subject,
        "arrival": pa.array(np.arange(first, first + len(events), dtype=np.int64)),
        **{name: _instants(events, name) for name in TIMES},
        **{name: _strings(events, name) for name in _WORDS},
    }
    return pa.table([columns[name] for name in DATA.names], schema=DATA)


def _encounter_table(encounters: pd.DataFrame) -> pa.Table:
    missing = [c for c in ENCOUNTER_COLUMNS if c not in encounters.columns]
    if missing:
        raise DataError(
            f"Encounter table lacks {', '.join(missing)}. See features/events.py for each column."
        )
    columns = {"number": _numbers(_strings(encounters, "subject_id"))}
    for name in ENCOUNTER_COLUMNS:
        if name.endswith("_time"):
            columns[name] = _instants(encounters, name)
        elif name == "age_years":
            columns[name] = pa.array(encounters[name].to_numpy(dtype=np.float64, na_value=np.nan))
        else:
            columns[name] = _strings(encounters, name)
    return pa.table([columns[name] for name in _ENCOUNTERS.names], schema=_ENCOUNTERS)


def _strings(table: pd.DataFrame, column: str) -> pa.Array:
    """A text column as Arrow strings, empty as null; plain, ``str`` or categorical."""
    try:
        found = pa.array(table[column].array, from_pandas=True)
        if isinstance(found, pa.ChunkedArray):
            found = found.combine_chunks()
        return found.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        raise DataError(
            f"Column {column!r} mixes text with something else. Readers hand over text, empty as null."
        ) from None


def _instants(table: pd.DataFrame, column: str) -> pa.Array:
    if table[column].dtype != UTC_US:
        raise DataError(
            f"Column {column!r} is {table[column].dtype}, expected {UTC_US}. Read it with features.clock.to_utc."
        )
    micros = table[column].array.asi8
    return pa.array(micros, mask=micros == np.iinfo(np.int64).min).view(_INSTANT)


def _narrowed(value: npt.NDArray[np.float64]) -> tuple[pa.Array, pa.Array]:
    """The value as float32, and as float64 where that is not the same number."""
    with np.errstate(over="ignore"):
        narrow = value.astype(np.float32)
    fits = np.isfinite(narrow)
    same = (fits & (narrow.astype(np.float64) == value)) | np.isnan(value)
    return pa.array(narrow, mask=~fits), pa.array(value, mask=same)


@lru_cache(maxsize=65_536)
def subject_number(subject: str) -> int:
    """MEDS's int64 of a subject: itself when it is a whole number already, else a stable hash of the text."""
    if _WHOLE.fullmatch(subject) and -(2**63) <= int(subject) < 2**63:
        return int(subject)
    return int.from_bytes(blake2b(subject.encode(), digest_size=8).digest(), "big") >> 1


def _numbers(subject: pa.Array) -> pa.Array:
    met = subject.dictionary_encode()
    number = np.array([subject_number(s) for s in met.dictionary.to_pylist()], dtype=np.int64)
    return pa.array(number[met.indices.to_numpy()] if len(subject) else np.empty(0, np.int64))


def _count(by_code: Mapping[tuple[str, str], Mapping[str, int]], result: ArchiveAccount) -> None:
    for key, counts in by_code.items():
        result.by_code.setdefault(key, Counter()).update(counts)


# ------------------------------------------------------------ spilling


@dataclass(frozen=True, slots=True)
class _Bucket:
    path: Path
    rows: int


class _Spill:
    """Tables shared out to files by a hash of the subject. ``level`` says which bits of the hash to use."""

    def __init__(self, folder: Path, level: int = 0) -> None:
        self.folder, self.level = folder, level
        self.rows = np.zeros(1 << _BITS, np.int64)
        self._open: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Spill:
        self.folder.mkdir(parents=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, table: pa.Table) -> None:
        """Append the rows of a table, each to its bucket."""
        bucket = _bucket(table.column(0).to_numpy(), self.level)
        table = _taken(table, pa.array(np.argsort(bucket, kind="stable")))
        sizes = np.bincount(bucket, minlength=self.rows.size)
        first = np.cumsum(sizes) - sizes
        for k in np.flatnonzero(sizes).tolist():
            self._writer(k, table.schema).write_table(table.slice(first[k], sizes[k]))
        self.rows += sizes

    def _writer(self, k: int, schema: pa.Schema) -> pa.ipc.RecordBatchStreamWriter:
        if k not in self._open:
            options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
            writer = pa.ipc.new_stream(str(self._path(k)), schema, options=options)
            self._open[k] = self._stack.enter_context(writer)
        return self._open[k]

    def _path(self, k: int) -> Path:
        return self.folder / f"{k:02d}"

    def bucket(self, k: int) -> _Bucket:
        """The file of a bucket, and its rows."""
        return _Bucket(self._path(k), int(self.rows[k]))


def _bucket(number: Ints, level: int) -> npt.NDArray[np.uint8]:
    """Six bits of a mixed subject number (the finaliser of splitmix64), other ones on each level."""
    x = number.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return ((x >> np.uint64(_BITS * level)) & np.uint64((1 << _BITS) - 1)).astype(np.uint8)


Job = list[tuple[_Bucket, _Bucket]]


def _jobs(events: _Spill, stays: _Spill, shard_rows: int) -> list[Job]:
    """Buckets by shard: small ones together, large ones split by more bits of the hash."""
    jobs: list[Job] = [[]]
    size = 0
    for pair in _leaves(events, stays, shard_rows):
        if size and size + pair[0].rows > shard_rows:
            jobs.append([])
            size = 0
        jobs[-1].append(pair)
        size += pair[0].rows
    return jobs


def _leaves(events: _Spill, stays: _Spill, most: int) -> Iterator[tuple[_Bucket, _Bucket]]:
    for k in range(events.rows.size):
        one, two = events.bucket(k), stays.bucket(k)
        if one.rows <= most or events.level + 1 == _LEVELS:
            if one.rows or two.rows:
                yield one, two
            continue
        with (
            _Spill(one.path.with_suffix(".more"), events.level + 1) as finer,
            _Spill(two.path.with_suffix(".more"), events.level + 1) as fewer,
        ):
            for bucket, spill in ((one, finer), (two, fewer)):
                for batch in _batches(bucket):
                    spill.add(pa.Table.from_batches([batch]))
                bucket.path.unlink(missing_ok=True)
        yield from _leaves(finer, fewer, most)


def _batches(bucket: _Bucket) -> Iterator[pa.RecordBatch]:
    if bucket.rows:
        with pa.OSFile(str(bucket.path)) as file, pa.ipc.open_stream(file) as stream:
            yield from stream


# ------------------------------------------------------------ settling


Aside = dict[tuple[str, str], Counter[str]]


@dataclass(frozen=True, slots=True)
class _Manner:
    """How shards are written: events of a row group, and whether contradictions are judged."""

    group_rows: int
    judge: bool


@dataclass(frozen=True, slots=True)
class _Written:
    """What became of a shard: rows of each row group, counts, and events set aside by code, concept and reason."""

    groups: list[int]
    counts: Counter[str]
    aside: Aside


def _settle(jobs: list[Job], place: Path, how: _Manner, threads: int, say: Say) -> list[_Written]:
    def one(item: tuple[int, Job]) -> _Written:
        return _write_shard(item[1], place, f"{item[0]:05d}", how)

    done = []
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for shard in pool.map(one, enumerate(jobs)):
            say(shard.counts["events"])
            done.append(shard)
    return done


def _write_shard(job: Job, place: Path, name: str, how: _Manner) -> _Written:
    """Sort the buckets of one shard, set aside what repeats or contradicts another fact, and write the rest."""
    events = pa.Table.from_batches([b for e, _ in job for b in _batches(e)], DATA).combine_chunks()
    stays = pa.Table.from_batches([b for _, s in job for b in _batches(s)], _ENCOUNTERS)
    for pair in job:
        for bucket in pair:
            bucket.path.unlink(missing_ok=True)
    number = _check_numbers(events, stays)
    micros = events["time"].to_numpy().view(np.int64)
    arrival = events["arrival"].to_numpy()
    order = np.lexsort((arrival, micros, number))
    events, number = _taken(events, pa.array(order)), number[order]
    once = _once(events, number)
    aside = _asides(events, np.flatnonzero(~once), RESENT)
    if not once.all():
        events, number = _taken(events, pa.array(np.flatnonzero(once))), number[once]
    if how.judge:
        events, at_odds = _agreeing(events)
        aside = {key: aside.get(key, Counter()) + at_odds.get(key, Counter()) for key in aside | at_odds}
    edges = _edges(number, how.group_rows)
    # Instants of one subject rise slowly: their differences take half the space of a dictionary, and half the time.
    columns: dict[str, Any] = {
        "use_dictionary": [c for c in DATA.names if c not in _RISING],
        "column_encoding": dict.fromkeys(_RISING, "DELTA_BINARY_PACKED"),
    }
    with pq.ParquetWriter(place / "data" / f"{name}.parquet", DATA, **_WRITING, **columns) as writer:
        for low, high in pairwise(edges.tolist()):
            writer.write_table(_group(events, low, high), row_group_size=max(high - low, 1))
    _write_encounters(stays, number[edges[1:-1] - 1], place / "encounters" / f"{name}.parquet")
    known = pc.is_in(events["encounter_id"], value_set=stays["encounter_id"].combine_chunks())
    people = np.union1d(number, stays["number"].to_numpy()).size
    counts = Counter(
        events=len(events),
        orphans=len(events) - (pc.sum(known).as_py() or 0),
        subjects=people,
        encounters=len(stays),
    )
    return _Written(np.diff(edges).tolist(), counts, aside)


def _once(events: pa.Table, number: Ints) -> Bools:
    """Which rows to keep of final reports that say the same word for word: the first to arrive.

    Rows without an identity at their source are never the same; neither are reports with a status of another kind,
    whose order means something.
    """
    keep = np.ones(len(events), np.bool_)
    final = pc.and_(pc.is_valid(events["source_id"]), pc.equal(events["status"], "final"))
    rows = np.flatnonzero(pc.fill_null(final, False).to_numpy(zero_copy_only=False))
    bits = {"numeric_value": _bits(events["numeric_value"]), "value": _bits(events["value"])}
    mark = number.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    code = events["code"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.uint64)
    for column in (events["time"].to_numpy().view(np.uint64), code, *bits.values()):
        mark = (mark ^ column) * np.uint64(0xBF58476D1CE4E5B9)
    ranked = np.sort(mark[rows])
    met = np.unique(ranked[1:][ranked[1:] == ranked[:-1]])
    # Few rows share instant, code and value; only those are compared word for word.
    rows = rows[np.isin(mark[rows], met)]
    if rows.size:
        alike = events.take(pa.array(rows)).drop_columns(["arrival", *bits]).to_pandas()
        said = alike.assign(**{name: column[rows] for name, column in bits.items()})
        keep[rows[said.duplicated().to_numpy()]] = False
    return keep


def _bits(column: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """The bits of numbers as whole numbers, so that -0.0 is not 0.0 and an absent one is like another."""
    values = pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy()
    return np.asarray(values, dtype=np.float64).view(np.uint64)


def _agreeing(events: pa.Table) -> tuple[pa.Table, Aside]:
    """Empty the concept of facts that contradict each other, and count them."""
    paired = pa.array(sorted({concept for pair in loader.orders() for concept in pair}), pa.string())
    rows = np.flatnonzero(pc.is_in(events["concept"], value_set=paired).to_numpy(zero_copy_only=False))
    if not rows.size:
        return events, {}
    facts = events.select(["encounter_id", "concept", "status", *TIMES, "numeric_value", "value"])
    facts = facts.take(pa.array(rows))
    told: dict[str, Any] = {c: _categories(facts[c]) for c in ("encounter_id", "concept", "status")}
    told |= {c: _times(facts[c]) for c in TIMES} | {"numeric_value": _exact(facts).to_numpy()}
    wrong = rows[contradictions(pd.DataFrame(told))[1]["position"].to_numpy(dtype=np.int64)]
    counted = _asides(events, wrong, CONTRADICTION)
    if wrong.size:
        emptied = np.zeros(len(events), np.bool_)
        emptied[wrong] = True
        place = events.schema.get_field_index("concept")
        concept = pc.if_else(pa.array(emptied), pa.scalar(None, pa.string()), events["concept"])
        events = events.set_column(place, DATA.field("concept"), concept)
    return events, counted


def _asides(events: pa.Table, rows: Ints, reason: str) -> Aside:
    """Rows set aside for a reason, by code and concept as the account of cleaning has them."""
    some = events.select(["code", "concept"]).take(pa.array(rows, pa.int64()))
    pairs = Counter(zip(some["code"].to_pylist(), some["concept"].to_pylist(), strict=True))
    return {
        ("" if code == UNCODED else code, concept or ""): Counter({reason: n})
        for (code, concept), n in pairs.items()
    }


def _taken(table: pa.Table, rows: pa.Array) -> pa.Table:
    """Rows of a table in another order; column by column, which takes half the time of the table's own take."""
    return pa.table([column.take(rows) for column in table.columns], schema=table.schema)


def _check_numbers(events: pa.Table, stays: pa.Table) -> Ints:
    """The subject numbers of the events, once it is sure that one number is one subject and encounters stand once."""
    twice = len(stays) - pc.count_distinct(stays["encounter_id"], mode="all").as_py()
    if twice:
        raise DataError(
            f"{twice:,} encounters stand in the source more than once. Keep one row an encounter."
        )
    number = events["subject_id"].to_numpy()
    names = pa.chunked_array(events["source_subject_id"].chunks + stays["subject_id"].chunks, pa.string())
    every = np.concatenate([number, stays["number"].to_numpy()])
    subjects = names.unique()
    if len(subjects) != np.unique(every).size:
        raise DataError(
            "Two subjects share one 64-bit number. Rename one of them: the numbers are a hash of the names."
        )
    return np.asarray(number, dtype=np.int64)


def _edges(number: Ints, most: int) -> Ints:
    """Where row groups begin and end: at most so many rows, never within a subject."""
    starts = np.append(np.flatnonzero(np.diff(number, prepend=number[:1] - 1)), number.size)
    edges = [0]
    while edges[-1] < number.size:
        k = int(np.searchsorted(starts, edges[-1] + most, side="right")) - 1
        after = int(np.searchsorted(starts, edges[-1], side="right"))
        edges.append(int(starts[max(k, after)]))
    return np.array(edges if number.size else [0, 0], dtype=np.int64)


def _group(events: pa.Table, low: int, high: int) -> pa.Table:
    """The rows of a group; their arrival matters only where some report replaces another."""
    part = events.slice(low, high - low)
    if pc.all(pc.equal(part["status"], "final")).as_py() is not False:
        place = part.schema.get_field_index("arrival")
        part = part.set_column(place, DATA.field("arrival"), pa.nulls(len(part), pa.int64()))
    return part


def _write_encounters(stays: pa.Table, last: Ints, path: Path) -> None:
    """Encounters by subject, each with the row group its subject is in; ``last`` ends all groups but the last."""
    order = pc.sort_indices(stays, [("number", "ascending"), ("encounter_id", "ascending")])
    stays = stays.take(order)
    group = np.searchsorted(last, stays["number"].to_numpy(), side="left").astype(np.int32)
    table = stays.drop_columns("number").append_column("group", pa.array(group))
    pq.write_table(table, path, **_WRITING)


def _write_metadata(
    place: Path,
    name: str,
    created_at: datetime | None,
    splits: pd.DataFrame | None,
    result: ArchiveAccount,
    groups: list[list[int]],
) -> None:
    about: dict[str, Any] = {
        "dataset_name": name or "wardcast",
        "etl_name": "wardcast",
        "meds_version": MEDS_VERSION,
        **EXTENSIONS,
    }
    if created_at is not None:
        about["created_at"] = created_at.isoformat()
    _write_json(place / "metadata" / "dataset.json", about)
    pq.write_table(_code_table(result), place / "metadata" / "codes.parquet")
    if splits is not None:
        split = {"subject_id": _numbers(_strings(splits, "subject_id")), "split": _strings(splits, "split")}
        pq.write_table(pa.table(split), place / "metadata" / "subject_splits.parquet")
    shards = {f"{k:05d}": rows for k, rows in enumerate(groups)}
    policy = {c.name: c.available_after_min for c in loader.concepts().values()}
    ours = {"format": FORMAT, "shards": shards, "available_after_min": policy, "account": result.to_json()}
    _write_json(place / "metadata" / "wardcast.json", ours)


def _code_table(result: ArchiveAccount) -> pa.Table:
    """MEDS's list of codes: what each means, and the concept above it."""
    known, labels = loader.codes(), result.source.labels
    concepts: dict[str, set[str]] = {}
    for code, concept in result.by_code:
        above = concepts.setdefault(code or UNCODED, set())
        above |= {f"WARDCAST//{concept}"} - {"WARDCAST//", code}
    codes = sorted(concepts)
    rows = {
        "code": pa.array(codes, pa.string()),
        "description": pa.array(
            [known[c].display if c in known else labels.get(c) for c in codes], pa.string()
        ),
        "parent_codes": pa.array([sorted(concepts[c]) or None for c in codes], pa.list_(pa.string())),
    }
    return pa.table(rows)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ------------------------------------------------------------ reading


def shards(folder: Path) -> list[ShardKey]:
    """The shards of an archive in order, without reading them.

    Raises
    ------
    DataError
        The folder is no archive of ours, is of another format, or lacks a file.
    """
    listed = about(folder)["shards"]
    absent = [f for f in listed for part in ("data", "encounters") if not _file(folder, part, f).is_file()]
    if absent:
        raise DataError(f"{folder.name} lacks {len(absent):,} of its files. Write the archive again.")
    return [
        ShardKey(folder, name, k, rows) for name, groups in listed.items() for k, rows in enumerate(groups)
    ]


def about(folder: Path) -> dict[str, Any]:
    """``metadata/wardcast.json`` of an archive: ``shards``, ``available_after_min`` and the ``account``."""
    path = folder / "metadata" / "wardcast.json"
    if not folder.exists():
        raise DataError(f"There is no archive at {folder}. Check the path.")
    if not path.is_file():
        raise DataError(
            f"{folder.name} is no archive of Wardcast's. Make one: "
            "wardcast data convert --source meds --input … --output …"
        )
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if table.get("format") != FORMAT:
        raise DataError(
            f"{folder.name} is an archive of format {table.get('format')}, expected {FORMAT}. Convert it again."
        )
    return table


def read(folder: Path, columns: Iterable[str] = EVENT_COLUMNS) -> Iterator[Shard]:
    """Read an archive, one shard at a time."""
    wanted = list(columns)
    for key in shards(folder):
        yield key.read(wanted)


def _file(folder: Path, part: str, name: str) -> Path:
    return folder / part / f"{name}.parquet"


def _read_group(key: ShardKey, columns: Sequence[str]) -> pa.Table:
    names = {"value", "arrival"} | {"source_subject_id" if c == "subject_id" else c for c in columns}
    if "numeric_value" not in columns:
        names -= {"value"}
    path = _file(key.folder, "data", key.file)
    words = [f.name for f in DATA if f.name in names - {*_PLAIN} and f.type == pa.string()]
    try:
        with pq.ParquetFile(path, read_dictionary=words) as file:
            return file.read_row_group(key.group, columns=sorted(names), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} of the archive cannot be read. Write the archive again.") from error


def _canonical(stored: pa.Table, names: Sequence[str]) -> pa.Table:
    """Columns of an event table, values exact and rows in the order in which everything above expects them."""
    arrival = stored["arrival"]
    if arrival.null_count < len(stored):
        stored = stored.take(pc.sort_indices(arrival))
    made = {name: stored["source_subject_id" if name == "subject_id" else name] for name in names}
    if "numeric_value" in made:
        made["numeric_value"] = _exact(stored)
    return pa.table(made)


def _pandas(column: pa.ChunkedArray, name: str) -> Any:
    """A column of events as everything above the archive knows it."""
    if name in TIMES:
        return _times(column)
    if name == "numeric_value":
        return column.to_numpy()
    if name in _PLAIN:
        return column.cast(pa.string()).to_pandas().astype("str")
    return _categories(column)


def _times(column: pa.ChunkedArray) -> pd.Series:
    return pd.Series(pd.DatetimeIndex(column.to_numpy().astype("datetime64[us]"), tz="UTC"))


def _exact(table: pa.Table) -> pa.ChunkedArray:
    """The exact value where float32 is not, else the float32; NaN where there is none."""
    return pc.coalesce(table["value"], table["numeric_value"].cast(pa.float64()), pa.scalar(np.nan))


def _categories(column: pa.ChunkedArray) -> pd.Categorical[Any]:
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.unify_dictionaries().combine_chunks()
    labels = pd.Index(whole.dictionary.to_pandas().astype(object), dtype="str")
    codes = pc.fill_null(whole.indices, -1).to_numpy(zero_copy_only=False)
    return pd.Categorical.from_codes(codes, categories=labels)


def _read_encounters(key: ShardKey, columns: Sequence[str]) -> pd.DataFrame:
    path = _file(key.folder, "encounters", key.file)
    try:
        with pq.ParquetFile(path) as file:
            table = file.read([*columns, "group"], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"Encounters {path.name} cannot be read. Write the archive again.") from error
    table = table.filter(pc.equal(table["group"], key.group))
    made: dict[str, Any] = {}
    for name in columns:
        column = table[name]
        made[name] = _times(column) if name.endswith("_time") else column.to_pandas()
    return pd.DataFrame(made)
