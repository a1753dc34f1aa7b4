"""From a Parquet file of events to windows: all of it at once, or encounter by encounter while it is being read.

A cohort's file is usually sorted by patient, so a chunk of it holds all there is of some encounters, and their rows can
be finished before the next chunk is read. Threads take turns reading and work on their own chunk between turns, each
writing to its own rows. What lies in memory is the matrix and a chunk a thread, and the bits are those of the whole.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cached_property, lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features import kernels
from features.errors import DataError
from features.events import STATUSES
from features.windows import (
    Codes,
    Columns,
    FlatEvents,
    Window,
    asked,
    check_columns,
    each,
    fill,
    flatten,
    no_number,
    plan,
    present,
    row_order,
)

CHUNK_ROWS: Final = 131_072
"""Events of a file that a thread works on at once, and the encounter that they end in on top."""
FEWEST_ROWS: Final = 8_192
"""Smaller chunks would cost more to take up than a thread more can save."""
MORSELS: Final = 4
"""Several threads read a chunk in so many parts: the first is smaller, so that nobody waits for it, and so are the
last, so that all end together."""
KEPT: Final = {-1: 128 << 20, -2: 4 << 20, -3: 4 << 20}
"""glibc's ``M_TRIM_THRESHOLD``, ``M_TOP_PAD`` and ``M_MMAP_THRESHOLD``, in bytes."""

_WORDS: Final = ["encounter_id", "concept", "status"]
_CLOCKS: Final = ("time", "available_time")
_NONE: Final = pd.Index([])
_FINAL: Final = pd.Index(["final"])

Ints = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]


def build_file(
    path: Path,
    prediction_times: pd.DataFrame,
    windows: Sequence[Window],
    resample: timedelta | None = None,
    threads: int = 1,
    out: Singles | None = None,
) -> Singles:
    """The same as :func:`features.windows.build`, bit for bit, from a Parquet file of cleaned canonical events.

    A file whose encounters lie together, in any order, is never in memory as a whole. Of any other the events are all
    read first.

    Raises
    ------
    DataError
        As there; or the file is no Parquet. Where it counts rows, they are those of the chunk that was being read.
    """
    concepts = tuple(dict.fromkeys(w.concept for w in windows))
    matrix = np.empty((len(prediction_times), len(windows)), np.float32) if out is None else out
    rows, wanted = _Rows(prediction_times), plan(windows, concepts)

    def build(flat: FlatEvents, encounter: Ints, row: Ints, threads: int) -> None:
        fill(flat, encounter, rows.time[row], wanted, resample, threads, matrix, into=row)

    try:
        try:
            _by_encounter(path, concepts, rows, threads, build)
        except _TwoClocksError:
            _by_encounter(path, concepts, rows, threads, build, both_clocks=True)
    except _ScatteredError:
        flat = read_flat(path, concepts, threads)
        encounter = np.append(flat.encounter_ids.get_indexer(rows.ids), -1)[rows.encounter]
        build(flat, encounter, np.arange(rows.time.size), threads)
    return matrix


def read_flat(path: Path, concepts: Sequence[str], threads: int = 1) -> FlatEvents:
    """The same as :func:`features.windows.flatten` of a Parquet file of cleaned canonical events.

    Identities at the source are read only where they decide something: ties, and corrections. With more than one
    thread Arrow decodes columns side by side.

    Raises
    ------
    DataError
        As there; or the file is no Parquet.
    """
    try:
        with _opened(path, memory_map=True) as file:
            columns = _columns_of(file, both_clocks=not _stored_alike(path, file, *_CLOCKS))
            table = file.read(columns, use_threads=threads > 1)
    except (pa.ArrowException, OSError) as error:
        raise _no_parquet(path) from error
    facts = arrow_columns(table, lambda: pq.read_table(path, columns=["source_id"])["source_id"], threads)
    flat = flatten(facts, concepts, threads)
    del table, facts
    pa.default_memory_pool().release_unused()  # else the pages of what was read would lie beside the matrix
    return flat


def arrow_columns(table: pa.Table, sources: Callable[[], pa.ChunkedArray], threads: int = 1) -> Columns:
    """What windows read of an Arrow table of cleaned canonical events.

    Parameters
    ----------
    table : Table
        Without ``available_time``, events were available when they happened; without ``status``, all are final. The
        columns of text are cheapest as dictionaries.
    sources : callable
        Reads the column ``source_id``; called where ties or corrections make it matter.
    threads : int
        Columns are shared out among so many.

    Raises
    ------
    DataError
        A column is of the wrong type, or a time is empty.
    """
    words = [_all_alike(len(table))] * len(_WORDS)

    def work(k: int) -> None:
        if _WORDS[k] in table.column_names:
            words[k] = _arrow_codes(table[_WORDS[k]])

    each(work, len(_WORDS), threads)
    encounter, concept, status = words
    return _columns(
        table,
        present(*encounter),
        concept,
        status,
        lambda rows: sources().take(pa.array(rows)).to_pandas().astype("str"),
    )


def _columns(
    table: pa.Table,
    encounter: tuple[Codes, pd.Index],
    concept: tuple[Codes, pd.Index],
    status: tuple[Codes, pd.Index],
    sources: Callable[[Ints], pd.Series],
) -> Columns:
    time = _arrow_micros(table, "time")
    late = "available_time" in table.column_names
    available = _arrow_micros(table, "available_time") if late else time
    return Columns(
        *encounter, *concept, time, available, _arrow_numbers(table["numeric_value"]), *status, sources
    )


# ------------------------------------------------------------ encounter by encounter


class _ScatteredError(Exception):
    """Some encounter's events do not lie together."""


class _TwoClocksError(Exception):
    """Events were read as if available when they happened, and the file says otherwise."""


class _Rows:
    """Prediction times by encounter: ``encounter`` is a position in ``ids``, -1 where a row names none.

    They are put in order when that is first asked for, by a thread that would wait for its turn otherwise.
    """

    def __init__(self, prediction_times: pd.DataFrame) -> None:
        self.encounter, self.ids, self.time = asked(prediction_times)
        self._turn = Lock()

    @cached_property
    def _placed(self) -> tuple[Ints, Ints]:
        encounter = self.encounter.astype(np.int64)
        order = row_order(encounter, self.time)
        return order, np.searchsorted(encounter[order], np.arange(len(self.ids) + 1))

    def place(self) -> tuple[Ints, Ints]:
        """The rows in order, and where those of each encounter begin."""
        with self._turn:
            return self._placed

    def of(self, encounters: Ints) -> tuple[Ints, Ints]:
        """Which of some encounters each of their rows belongs to, counted from 0, and which row it is."""
        order, begins = self.place()
        first, stop = begins[encounters], begins[encounters + 1]
        size = stop - first
        which = np.repeat(np.arange(encounters.size), size)
        within = np.arange(which.size) - np.repeat(np.cumsum(size) - size, size)
        return which, order[np.repeat(first, size) + within]


def _by_encounter(
    path: Path,
    concepts: tuple[str, ...],
    rows: _Rows,
    threads: int,
    build: Callable[[FlatEvents, Ints, Ints, int], None],
    both_clocks: bool = False,
) -> None:
    """Let ``build`` make all rows: it is told events, each row's encounter among them, which row, how many threads.

    Raises
    ------
    _ScatteredError
        The encounters do not lie together; some rows are made and some are not.
    _TwoClocksError
        The clocks differ and one was read; some rows are made, and some of them are wrong.
    """
    books = [_Book(labels) for labels in (rows.ids, pd.Index(concepts), pd.Index(STATUSES))]
    met, guard = np.zeros(len(rows.ids), np.bool_), Lock()

    def take(table: pa.Table, sources: Callable[[Ints], pd.Series]) -> None:
        encounter, concept, status = (
            (book.codes(table[name]), book.labels) if name in table.column_names else _all_alike(len(table))
            for name, book in zip(_WORDS, books, strict=True)
        )
        local, here = _renumbered(encounter[0])
        with guard:
            if met[here].any():
                raise _ScatteredError
            met[here] = True
        facts = _columns(table, (local, pd.RangeIndex(here.size)), concept, status, sources)
        build(flatten(facts, concepts), *rows.of(here), 1)

    def work(k: int) -> None:
        if k == reader.threads - 1:  # the last thread to get a turn has the time
            rows.place()
            reader.share(take, sure=reader.check_clocks)
        else:
            reader.share(take)

    _keep_pages()
    with _Reader(path, max(threads, 1), both_clocks) as reader:
        each(work, reader.threads, reader.threads)
    if met.all() and rows.encounter.min(initial=0) >= 0:
        return
    left = np.flatnonzero(~np.append(met, False)[rows.encounter])
    if left.size:
        nothing = np.empty(0, np.int64)
        none = FlatEvents(_NONE, concepts, np.zeros(1, np.int64), nothing, nothing, np.empty(0), nothing)
        build(none, np.full(left.size, -1), left, threads)


@lru_cache(maxsize=1)
def _keep_pages() -> None:
    """Let this process use again what the arrays of a chunk leave behind, where its C library is glibc.

    Given back to the kernel, pages come back zeroed, under a lock that every other thread waits for: the same work then
    cost two threads a fifth more CPU than one, instead of a tenth.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        for option, size in KEPT.items():
            libc.mallopt(option, size)


class _Reader:
    """A file in chunks that end where an encounter does, for threads that take turns."""

    def __init__(self, path: Path, threads: int, both_clocks: bool) -> None:
        self._path, self._turn = path, Lock()
        self._carried: list[pa.RecordBatch] = []
        self._given = 0
        try:
            self._file = _opened(path, pre_buffer=False)
            self._both = both_clocks or not _may_be_alike(self._file, *_CLOCKS)
            columns = _columns_of(self._file, self._both)
        except (pa.ArrowException, OSError) as error:
            raise _no_parquet(path) from error
        self._events = int(self._file.metadata.num_rows)
        self.threads = min(threads, self._events // FEWEST_ROWS + 1)
        fewest = min(FEWEST_ROWS, CHUNK_ROWS)
        self._most = max(min(CHUNK_ROWS, self._events // (4 * self.threads)), fewest)
        self._least = max(self._most // MORSELS, fewest) if self.threads > 1 else self._most
        self._batches = self._file.iter_batches(self._least, columns=columns, use_threads=False)
        self._sources = _Sources(path)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def check_clocks(self) -> None:
        """Make sure of what was taken for granted when the file was opened.

        Raises
        ------
        _TwoClocksError
            It was wrong.
        """
        if not self._both and not _stored_alike(self._path, self._file, *_CLOCKS):
            raise _TwoClocksError

    def share(
        self,
        work: Callable[[pa.Table, Callable[[Ints], pd.Series]], None],
        sure: Callable[[], None] = lambda: None,
    ) -> None:
        """Once ``sure``, work on one chunk after another until the file has been read, or another thread failed."""
        try:
            sure()
            while pieces := self._next():
                table, first = pieces
                work(table, partial(self._sources, first))
        except BaseException:
            with self._turn:
                self._batches = iter(())
                self._carried = []
            raise

    def _next(self) -> tuple[pa.Table, int] | None:
        """Whole encounters, and how many events were given before; None at the end."""
        with self._turn:
            try:
                pieces = self._pieces()
            except (pa.ArrowException, OSError) as error:
                raise _no_parquet(self._path) from error
            if not pieces:
                return None
            table, first = pa.Table.from_batches(pieces), self._given
            self._given += len(table)
            return table, first

    def _pieces(self) -> list[pa.RecordBatch]:
        pieces, self._carried = self._carried, []
        wanted = self._wanted()
        for batch in self._batches:
            wanted -= len(batch)
            cut = _last_run(batch.column(0)) if wanted <= 0 else 0
            if cut:
                self._carried = [batch.slice(cut)]
                return [*pieces, batch.slice(0, cut)]
            if len(batch):
                pieces.append(batch)
        return pieces

    def _wanted(self) -> int:
        """Events of the next chunk."""
        if not self._given:
            return self._least
        left = self._events - self._given
        return max(min(self._most, left // (2 * self.threads)), self._least)


class _Sources:
    """Identities at the source of some rows of a file, by its row groups; the last one read is kept."""

    def __init__(self, path: Path) -> None:
        self._path, self._turn = path, Lock()
        self._read = lru_cache(maxsize=1)(self._groups)

    def __call__(self, before: int, chunk_rows: Ints) -> pd.Series:
        rows = chunk_rows + before
        with self._turn:
            sizes = _group_sizes(self._path)
            start = np.append(0, np.cumsum(sizes))
            first, last = (int(np.searchsorted(start, row, "right")) - 1 for row in (rows.min(), rows.max()))
            found = self._read(first, last)
        words: pd.Series = found.take(pa.array(rows - start[first])).to_pandas()
        return words.astype("str")

    def _groups(self, first: int, last: int) -> pa.ChunkedArray:
        with pq.ParquetFile(self._path) as file:
            return file.read_row_groups(range(first, last + 1), ["source_id"], use_threads=False)["source_id"]


class _Book:
    """Positions of words among some labels, -1 where they are none; what a dictionary means is found out once."""

    def __init__(self, labels: pd.Index) -> None:
        self.labels = labels
        self._last: tuple[pa.Array, Codes] | None = None

    def codes(self, column: pa.ChunkedArray) -> Codes:
        codes = [self._codes(chunk) for chunk in column.chunks]
        return codes[0] if len(codes) == 1 else np.concatenate(codes)

    def _codes(self, chunk: pa.Array) -> Codes:
        words = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        last = self._last  # looked at once: another thread may put its own there
        if last is None or not last[0].equals(words.dictionary):
            place = self.labels.get_indexer(words.dictionary.to_pandas())
            last = self._last = words.dictionary, np.append(place, -1).astype(np.int32)
        return kernels.looked_up(_indices(words), last[1])


def _all_alike(size: int) -> tuple[Codes, pd.Index]:
    """Codes and labels of so many final events."""
    return np.broadcast_to(np.int32(0), size), _FINAL


def _indices(words: pa.DictionaryArray) -> Codes:
    """Positions in the dictionary, -1 where a word is missing."""
    indices = words.indices.fill_null(-1) if words.null_count else words.indices
    return np.asarray(indices.to_numpy())


def _last_run(encounters: pa.Array) -> int:
    """Where the run of equal identifiers that a column ends in begins."""
    words = encounters if pa.types.is_dictionary(encounters.type) else encounters.dictionary_encode()
    codes = _indices(words)
    if not codes.size or codes[0] == codes[-1] == codes.min() == codes.max():
        return 0
    return codes.size - int(np.argmax(codes[::-1] != codes[-1]))


def _renumbered(encounter: Codes) -> tuple[Codes, Ints]:
    """Encounters counted from 0 on (-1 stays), and which each of them is; they come in runs."""
    first = np.flatnonzero(np.append(True, encounter[1:] != encounter[:-1]))[: encounter.size]
    met, local = np.unique(encounter[first], return_inverse=True)
    none = int(met.size > 0 and met[0] < 0)
    size = np.diff(np.append(first, encounter.size))
    return np.repeat(local - none, size).astype(np.int32), met[none:].astype(np.int64)


# ------------------------------------------------------------ Parquet and Arrow


def _no_parquet(path: Path) -> DataError:
    return DataError(f"{path.name} cannot be read as Parquet. Give a complete Parquet file.")


def _opened(path: Path, **how: bool) -> pq.ParquetFile:
    """A file whose columns were looked at, with words as dictionaries."""
    meta = pq.read_metadata(path)
    check_columns(meta.schema.to_arrow_schema().names)
    return pq.ParquetFile(path, metadata=meta, read_dictionary=_WORDS, **how)


def _columns_of(file: pq.ParquetFile, both_clocks: bool) -> list[str]:
    """The columns that windows read, without a second clock or a status that would say nothing new."""
    spared = [] if both_clocks else ["available_time"]
    spared += ["status"] if _all_final(file) else []
    every = (*_WORDS, *_CLOCKS, "numeric_value")
    return [name for name in every if name not in spared]


def _all_final(file: pq.ParquetFile) -> bool:
    """Whether the file's statistics say that every event is final, or has no status, which means the same."""
    meta, column = file.metadata, _leaves(file).index("status")
    groups = (meta.row_group(g).column(column).statistics for g in range(meta.num_row_groups))
    return all(g is not None and g.has_min_max and g.min == g.max == "final" for g in groups)


def _group_sizes(path: Path) -> Ints:
    """Rows of each row group."""
    meta = pq.read_metadata(path)
    return np.array([meta.row_group(g).num_rows for g in range(meta.num_row_groups)], dtype=np.int64)


def _may_be_alike(file: pq.ParquetFile, one: str, other: str) -> bool:
    """Whether what the file says of two columns leaves it open that they are the same bytes on disk."""
    kind = file.schema_arrow
    if not {one, other} <= set(kind.names) or kind.field(one).type != kind.field(other).type:
        return False
    return all(_told(a) == _told(b) for a, b in _paired(file, one, other))


def _stored_alike(path: Path, file: pq.ParquetFile, one: str, other: str) -> bool:
    """Whether two columns are the same bytes on disk, so that only one need be read: where both clocks agree, they are.

    Same bytes, type and encoding mean same values; the reverse need not hold, and then both are read.
    """
    if not _may_be_alike(file, one, other):
        return False
    with pa.memory_map(str(path)) as stored:
        whole = stored.read_buffer()
        return all(_chunk(whole, a).equals(_chunk(whole, b)) for a, b in _paired(file, one, other))


def _paired(
    file: pq.ParquetFile, one: str, other: str
) -> Iterator[tuple[pq.ColumnChunkMetaData, pq.ColumnChunkMetaData]]:
    """Two columns, row group by row group."""
    meta, names = file.metadata, _leaves(file)
    for g in range(meta.num_row_groups):
        group = meta.row_group(g)
        yield group.column(names.index(one)), group.column(names.index(other))


def _told(column: pq.ColumnChunkMetaData) -> tuple[Any, ...]:
    said = column.statistics
    range_ = (said.min, said.max, said.null_count) if said is not None and said.has_min_max else None
    return column.compression, column.encodings, column.total_compressed_size, range_


def _leaves(file: pq.ParquetFile) -> list[str]:
    """The columns as they are stored."""
    return [file.schema.column(k).path for k in range(file.metadata.num_columns)]


def _chunk(stored: pa.Buffer, column: pq.ColumnChunkMetaData) -> pa.Buffer:
    first = column.dictionary_page_offset or column.data_page_offset
    return stored.slice(first, column.total_compressed_size)


def _arrow_codes(column: pa.ChunkedArray) -> tuple[Codes, pd.Index]:
    """As :func:`features.windows.codes_of`, from Arrow."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    codes = whole.indices.fill_null(-1).to_numpy().astype(np.int32, copy=False)
    return codes, pd.Index(whole.dictionary.to_pandas())


def _arrow_micros(table: pa.Table, name: str) -> Ints:
    column = table[name]
    if not pa.types.is_timestamp(column.type) or column.type.unit != "us":
        raise DataError(f"Column {name!r} is {column.type}, expected timestamp[us] in UTC.")
    if column.null_count:
        raise DataError(f"{column.null_count:,} of {len(column):,} rows have no {name}. Every row needs one.")
    return np.asarray(column.combine_chunks().cast(pa.int64()).to_numpy(), dtype=np.int64)


def _arrow_numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    numeric = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
    if not numeric and column.null_count < len(column):
        raise no_number(column.type)
    return np.asarray(column.combine_chunks().to_numpy(zero_copy_only=False), dtype=np.float64)
