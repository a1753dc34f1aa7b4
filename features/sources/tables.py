"""Tables of a database on disk, CSV, CSV.GZ or Parquet, streamed in bounded memory with typed columns.

A hospital exports its tables as ``ADMISSIONS.csv.gz`` or ``hosp/admissions.parquet``, columns in capitals or not,
numbers as text or as numbers. Readers ask for a table and its columns by lower-case name and say what each column
holds; what does not fit is refused with the file, the column and the count, never with a cell's content.
"""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from features.clock import UTC_US
from features.errors import DataError
from features.sources.batch import ROWS, ReadAccount, Say, quiet

Kind = Literal["id", "text", "key", "time", "number"]
"""What a column holds, and so what it becomes:

``id``      identifiers: categorical of text; 7, 7.0 and "7" are the same one
``text``    words that repeat: categorical of text; a blank cell is missing
``key``     words or numbers that hardly repeat, such as row numbers: plain text
``time``    instants or dates: ``datetime64[us, UTC]``; naive ones are in the time zone of the tables
``number``  float64, missing as NaN
"""

SUFFIXES: Final = (".parquet", ".csv", ".csv.gz")
"""In order of preference, where one folder holds a table in several formats."""
DEEPEST: Final = 2
BLOCK_BYTES: Final = 2 << 20
"""How much text of a CSV is parsed at once; with ``ROWS`` this bounds memory whatever the size of a table."""
BUFFER_BYTES: Final = 1 << 20
NOTHING: Final = ("", "NULL", "null", "NaN", "nan", "NA", "\\N")
"""Cells of identifiers, times and numbers that say that there is nothing."""


class Tables:
    """The tables under a folder, found by name in any case, there or up to two folders below (``hosp/``, ``icu/``).

    Parameters
    ----------
    folder : Path
    timezone : str
        Of times that carry no offset.

    Raises
    ------
    DataError
        There is no such folder, or no table in it.
    """

    def __init__(self, folder: Path, *, timezone: str = "UTC") -> None:
        self.folder = Path(folder)
        self.timezone = timezone
        if not self.folder.is_dir():
            raise DataError(f"{self.folder} is no folder. Give the folder that holds the tables.")
        self._files = _found(self.folder)
        if not self._files:
            raise DataError(
                f"No table in {self.folder}. Expected files such as name.parquet, .csv or .csv.gz."
            )

    def has(self, name: str) -> bool:
        """Is there a table of this (lower-case) name?"""
        return name in self._files

    def names(self) -> list[str]:
        """The tables there are, in lower case, by name."""
        return sorted(self._files)

    def require(self, *names: str) -> None:
        """Refuse a folder without these tables.

        Raises
        ------
        DataError
            Names those that are missing.
        """
        missing = [name for name in names if name not in self._files]
        if missing:
            raise DataError(
                f"{self.folder} lacks the tables {', '.join(missing)}. Give the folder that holds them."
            )

    def file(self, name: str) -> Path:
        """The file that holds a table.

        Raises
        ------
        DataError
            The table is not there, or in two folders.
        """
        self.require(name)
        files = self._files[name]
        folders = sorted({str(f.parent.relative_to(self.folder)) for f in files})
        if len(folders) > 1:
            raise DataError(
                f"Table {name} stands in {len(folders)} folders of {self.folder}: {', '.join(folders)}. "
                "Give the folder of one of them."
            )
        return min(files, key=lambda f: SUFFIXES.index(_split(f)[1]))

    def columns(self, name: str) -> list[str]:
        """The columns of a table, in lower case."""
        return list(_header(self.file(name)))

    def stream(
        self,
        name: str,
        columns: Mapping[str, Kind],
        *,
        optional: Sequence[str] = (),
        rows: int = ROWS,
        account: ReadAccount | None = None,
        say: Say = quiet,
    ) -> Iterator[pd.DataFrame]:
        """The table piece by piece, in its order.

        Parameters
        ----------
        name : str
            In lower case.
        columns : mapping of lower-case column name to :data:`Kind`
        optional : names among ``columns`` that may be absent; they are then missing in every row
        rows : int
            At most so many rows in a piece.
        account : ReadAccount, optional
            Its ``rows[name]`` grows by the rows read.
        say : callable
            Told the number of rows of each piece.

        Yields
        ------
        DataFrame with these columns; its index is the row number in the table, from 0.

        Raises
        ------
        DataError
            The file is empty, cut short or no such format; a column is missing or holds what it should not.
        """
        file = self.file(name)
        present = _present(file, columns, optional)
        account = account if account is not None else ReadAccount()
        account.rows[name] += 0
        done = 0
        for piece in _pieces(file, present, columns, rows):
            frame = self._frame(piece, present, columns, file).set_axis(
                pd.RangeIndex(done, done + piece.num_rows), axis=0
            )
            done += piece.num_rows
            account.rows[name] += piece.num_rows
            say(piece.num_rows)
            yield frame
        if done == 0:
            account.note(f"Table {name} has no rows.")

    def whole(
        self,
        name: str,
        columns: Mapping[str, Kind],
        *,
        optional: Sequence[str] = (),
        account: ReadAccount | None = None,
        say: Say = quiet,
    ) -> pd.DataFrame:
        """A table small enough to hold, as one frame with index 0..n-1; otherwise as :meth:`stream`.

        Identifiers and texts are plain text here, so that frames can be joined.
        """
        pieces = [
            frame.astype({c: "str" for c, kind in columns.items() if kind in ("id", "text")})
            for frame in self.stream(name, columns, optional=optional, account=account, say=say)
        ]
        return pd.concat(pieces, ignore_index=True) if pieces else _no_rows(columns)

    def _frame(
        self, piece: pa.RecordBatch, present: Mapping[str, str], columns: Mapping[str, Kind], file: Path
    ) -> pd.DataFrame:
        made: dict[str, Any] = {}
        for column, kind in columns.items():
            where = f"Column {column} of {file.name}"
            values = piece.column(present[column]) if column in present else pa.nulls(piece.num_rows)
            made[column] = _typed(values, kind, where, self.timezone)
        return pd.DataFrame(made, index=pd.RangeIndex(piece.num_rows))


def leave(
    frame: pd.DataFrame, bad: npt.ArrayLike, account: ReadAccount, table: str, reason: str
) -> pd.DataFrame:
    """The rows that stay, after counting the bad ones under ``(table, reason)``."""
    mask = np.asarray(bad, dtype=bool)
    count = int(mask.sum())
    if not count:
        return frame
    account.leave(table, reason, count)
    return frame[~mask]


def _split(file: Path) -> tuple[str, str]:
    """Lower-case table name and suffix; the suffix is empty for what is no table."""
    name = file.name.lower()
    suffix = max((s for s in SUFFIXES if name.endswith(s)), key=len, default="")
    return name.removesuffix(suffix), suffix


def _found(folder: Path, depth: int = 0) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and depth < DEEPEST:
            for name, files in _found(entry, depth + 1).items():
                found.setdefault(name, []).extend(files)
        elif entry.is_file() and _split(entry)[1]:
            found.setdefault(_split(entry)[0], []).append(entry)
    return found


@contextmanager
def _reading(file: Path, broken: Sequence[str] = ()) -> Iterator[None]:
    """Turn errors of Arrow and of the system into one that names the file; Arrow's own text may quote a row."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError):
        if file.is_file() and not file.stat().st_size:
            raise DataError(f"{file.name} is empty. Give the complete table.") from None
        if broken:
            raise DataError(f"{file.name} {broken[0]}. Correct the row, or export the table again.") from None
        kind = "Parquet" if _split(file)[1] == ".parquet" else "CSV in UTF-8"
        raise DataError(
            f"{file.name} cannot be read as {kind}: cut short, or of another format. Export the table again."
        ) from None


def _header(file: Path) -> dict[str, str]:
    """Lower-case column name to the name as written.

    Raises
    ------
    DataError
        The file is empty or unreadable, or two columns differ in case only.
    """
    with _reading(file):
        names = pq.read_schema(file).names if _split(file)[1] == ".parquet" else _csv_header(file)
    if not names:
        raise DataError(f"{file.name} is empty. Give the complete table, with its header.")
    lower = [name.strip().lower() for name in names]
    twice = sorted({name for name in lower if lower.count(name) > 1})
    if twice:
        raise DataError(f"{file.name} has the columns {', '.join(twice)} more than once. Keep one of each.")
    return dict(zip(lower, names, strict=True))


def _csv_header(file: Path) -> list[str]:
    # pa.input_stream undoes .gz by the name's ending, as open_csv does.
    with pa.input_stream(str(file)) as stream:
        start = bytes(stream.read(BUFFER_BYTES))
    text = start.decode("utf-8-sig", errors="replace")
    return next(csv.reader(text.splitlines()), [])


def _present(file: Path, columns: Mapping[str, Kind], optional: Sequence[str]) -> dict[str, str]:
    """The asked-for columns that exist, as written in the file."""
    header = _header(file)
    missing = [c for c in columns if c not in header and c not in optional]
    if missing:
        raise DataError(
            f"{file.name} has no column {', '.join(missing)}; it has {', '.join(list(header)[:12])}. "
            "Export the table with all its columns."
        )
    return {c: header[c] for c in columns if c in header}


def _pieces(
    file: Path, present: Mapping[str, str], columns: Mapping[str, Kind], rows: int
) -> Iterator[pa.RecordBatch]:
    broken: list[str] = []
    if _split(file)[1] == ".parquet":
        words = [present[c] for c in present if columns[c] == "text"]
        batches = _parquet(file, list(present.values()), words, rows)
    else:
        batches = _csv(file, list(present.values()), broken)
    with closing(batches):
        while True:
            with _reading(file, broken):
                batch = next(batches, None)
            if batch is None:
                return
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)


def _parquet(
    file: Path, names: list[str], words: list[str], rows: int
) -> Generator[pa.RecordBatch, None, None]:
    # Buffered and without read-ahead: a row group of a hundred million rows is not held whole.
    with pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False, read_dictionary=words) as source:
        if names:
            yield from source.iter_batches(batch_size=rows, columns=names, use_threads=False)


def _csv(file: Path, names: list[str], broken: list[str]) -> Generator[pa.RecordBatch, None, None]:
    def refuse(row: Any) -> str:
        broken.append(f"has a row of {row.actual_columns} cells where the header has {row.expected_columns}")
        return "error"

    with pyarrow.csv.open_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=names,
            column_types={name: pa.string() for name in names},
            strings_can_be_null=True,
            null_values=[""],
        ),
    ) as reader:
        yield from reader


def _typed(values: pa.Array, kind: Kind, where: str, timezone: str) -> Any:
    if kind == "number":
        return _numbers(values, where)
    if kind == "time":
        return _times(values, where, timezone)
    if kind == "key":
        return pd.Series(pc.cast(_plain(values), pa.large_string()).to_pandas(), dtype="str").array
    return _categories(values, whole=kind == "id")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _plain(values: pa.Array) -> pa.Array:
    """Without a dictionary, and whole numbers that were stored as floats as whole numbers."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):
        whole = pc.all(pc.equal(pc.floor(values), values), min_count=0).as_py()
        values = pc.cast(values, pa.int64()) if whole else values
    return values


def _said(values: pa.Array) -> pa.Array:
    """Text cells of a typed column: trimmed, and missing where they say nothing."""
    trimmed = pc.utf8_trim_whitespace(values)
    nothing = pc.is_in(trimmed, value_set=pa.array(NOTHING, trimmed.type))
    return pc.if_else(nothing, pa.scalar(None, trimmed.type), trimmed)


def _categories(values: pa.Array, *, whole: bool) -> pd.Categorical[Any]:
    encoded = values if pa.types.is_dictionary(values.type) else _plain(values).dictionary_encode()
    labels = pc.cast(encoded.dictionary, pa.string())
    trimmed = _said(labels) if whole else pc.utf8_trim_whitespace(labels)
    if whole:
        trimmed = pc.replace_substring_regex(trimmed, pattern=r"^(-?\d+)\.0+$", replacement=r"\1")
    words = np.asarray(trimmed.to_pandas(), dtype=object)
    place, names = pd.factorize(np.where(pd.isna(words), "", words).astype(object))
    # Blank labels become missing; labels that are now the same become one.
    blank = np.array([name == "" for name in names], dtype=bool)
    order = np.where(blank, -1, np.cumsum(~blank) - 1) if len(names) else np.zeros(0, np.int64)
    code = np.append(order[place] if len(place) else np.zeros(0, np.int64), -1)
    index = encoded.indices.fill_null(len(place)).to_numpy(zero_copy_only=False)
    kept = pd.Index([name for name, empty in zip(names, blank, strict=True) if not empty], dtype="str")
    return pd.Categorical.from_codes(code[index], categories=kept)


def _numbers(values: pa.Array, where: str) -> npt.NDArray[np.float64]:
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    if pa.types.is_boolean(kind):
        values = pc.cast(values, pa.int8())
    elif _is_text(kind):
        values = _said(values)
    elif pa.types.is_temporal(kind) or pa.types.is_binary(kind):
        raise DataError(
            f"{where} is {kind}, numbers were expected. Export it as numbers, empty where unknown."
        )
    try:
        numbers = pc.cast(values, pa.float64(), safe=False)
    except pa.ArrowInvalid:
        bad = int(pd.to_numeric(values.drop_null().to_pandas(), errors="coerce").isna().sum())
        raise DataError(
            f"{where} holds text in at least {bad:,} rows, numbers were expected. Leave cells without a number empty."
        ) from None
    out = np.array(numbers.to_numpy(zero_copy_only=False), dtype=np.float64)
    out[~np.isfinite(out)] = np.nan
    return out


def _times(values: pa.Array, where: str, timezone: str) -> pd.Series:
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    if _is_text(kind):
        values = _spoken_times(_said(values), where)
    elif not (pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_null(kind)):
        raise DataError(
            f"{where} is {kind}, times were expected. Write ISO 8601, such as 2026-01-12 08:00:00."
        )
    zoned = pa.types.is_timestamp(values.type) and values.type.tz is not None
    micros = pc.cast(values, pa.timestamp("us", "UTC" if zoned else None), safe=False)
    naive = pd.Series(
        micros.cast(pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy().view("datetime64[us]")
    )
    if zoned or timezone == "UTC":
        return naive.dt.tz_localize("UTC").astype(UTC_US)
    # The hour that a clock shows twice is read as its first; one that it skips, as the next instant there is.
    first = np.ones(len(naive), dtype=bool)
    local = naive.dt.tz_localize(ZoneInfo(timezone), ambiguous=first, nonexistent="shift_forward")
    return local.dt.tz_convert("UTC").astype(UTC_US)


def _spoken_times(text: pa.Array, where: str) -> pa.Array:
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return pc.cast(text, kind)
        except pa.ArrowInvalid:
            continue
    words = text.to_pandas()
    read = pd.to_datetime(words, errors="coerce", utc=True, format="ISO8601")
    bad = int((read.isna() & words.notna()).sum())
    mixed = bool((words.str.contains(r"(?:Z|[+-]\d\d:?\d\d)$", na=False) != words.notna()).any())
    if bad or mixed:
        what = f"holds what is no time in at least {bad:,} rows" if bad else "has an offset in some rows only"
        raise DataError(f"{where} {what}. Write ISO 8601 all through, such as 2026-01-12 08:00:00.")
    return pa.array(read.astype(UTC_US))


def _no_rows(columns: Mapping[str, Kind]) -> pd.DataFrame:
    kinds: dict[str, Any] = {"time": UTC_US, "number": "float64"}
    return pd.DataFrame({c: pd.Series(dtype=kinds.get(kind, "str")) for c, kind in columns.items()})
