"""PhysioNet/CinC Challenge 2012: the first 48 hours of ICU stays, as long event tables or the challenge's text files.

Silva et al., Computing in Cardiology 2012;39:245, ODC-By 1.0. The data carry no dates, so ICU admission is set to
2000-01-01T00:00Z; facts happen so many minutes after it. When they were visible is not said: a laboratory value has the
minute of its sample, so the policy of each concept decides. ``-1`` means that nobody knows. What came of the stays
(``Outcomes-*.txt``) is not read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from features.clock import from_micros
from features.errors import DataError
from features.sources.batch import Batch, ReadAccount, Say, no_encounters, quiet
from features.sources.stays import LATEST_US, Stays, coded, emit, facts, identity
from features.sources.tables import Kind, Tables, leave

ADMISSION_US: Final = 946_684_800_000_000
"""2000-01-01T00:00Z, the ICU admission of every stay."""
MINUTE_US: Final = 60_000_000
LONGEST_MIN: Final = 60_000_000
"""Minutes beyond this (a century) are typing errors, and would not fit a clock."""

SYSTEM: Final = "PHYSIONET2012"
UNKNOWN: Final = -1.0
COLUMNS: Final[dict[str, Kind]] = {
    "record_id": "id", "minutes": "number", "parameter": "text", "value": "number",
}  # fmt: skip
DESCRIBING: Final = ("RecordID", "Age", "Gender", "ICUType")
"""Parameters that describe the stay: they become its encounter, and their events are made from that."""
SEXES: Final = {0.0: "female", 1.0: "male"}
ICU_TYPES: Final = {1.0: "medical", 2.0: "surgical", 3.0: "medical", 4.0: "surgical"}
"""Coronary care, cardiac surgery recovery, medical and surgical ICU."""
FILES_AT_ONCE: Final = 500


def batches(
    path: Path,
    account: ReadAccount,
    *,
    timezone: str = "UTC",
    mapping: object = None,
    say: Say = quiet,
) -> Iterator[Batch]:
    """Read event tables (a file, or a folder of them) or a folder of text files, one a stay.

    Parameters
    ----------
    path : Path
        Tables need ``record_id``, ``minutes``, ``parameter`` and ``value``, rows in any order; a stay is in one table.
        Text files have the header ``Time,Parameter,Value`` and times as hours:minutes.
    timezone, mapping : not used; the data carry no dates

    Raises
    ------
    DataError
        There is nothing to read, a column is missing or holds what it should not, or a stay is there twice.
    """
    found = path.glob("*.txt") if path.is_dir() else [path]
    texts = sorted(f for f in found if f.suffix == ".txt" and f.stem.isdigit())
    yield from _read_texts(texts, account, say) if texts else _read_tables(path, account, say)


def _read_tables(path: Path, account: ReadAccount, say: Say) -> Iterator[Batch]:
    tables = Tables(path if path.is_dir() else path.parent)
    seen: pd.Index[Any] = pd.Index([], dtype="str")
    for name in _names(tables, path):
        encounters = _described(tables.stream(name, COLUMNS))
        again = int(encounters["encounter_id"].isin(seen).sum())
        if again:
            raise DataError(
                f"{again:,} stays of {name} are in an earlier table too. Keep a stay in one table."
            )
        seen = seen.append(pd.Index(encounters["encounter_id"]))
        stays = _stays(encounters)
        yield from stays.batches()
        for frame in tables.stream(name, COLUMNS, account=account, say=say):
            yield from emit(_events(frame, stays, account, name), account, name)


def _names(tables: Tables, path: Path) -> list[str]:
    """The tables meant by a path: a file itself, or all in a folder that hold events."""
    if path.is_file():
        return [path.name.lower().split(".")[0]]
    names = [n for n in tables.names() if set(COLUMNS) <= set(tables.columns(n))]
    if not names:
        raise DataError(
            f"No table in {path} has the columns {', '.join(COLUMNS)}. Give set-a.parquet and such."
        )
    return names


def _described(pieces: Iterator[pd.DataFrame]) -> pd.DataFrame:
    """The encounters of a table: one a record, by what its describing rows say."""
    found, facts_ = [], []
    for frame in pieces:
        found.append(frame["record_id"].dropna().drop_duplicates().astype("str"))
        told = frame[frame["parameter"].isin(DESCRIBING) & (frame["value"] != UNKNOWN)]
        facts_.append(told.astype({"record_id": "str", "parameter": "str"}))
    ids = pd.Index(pd.concat(found).drop_duplicates()) if found else pd.Index([], dtype="str")
    told = pd.concat(facts_) if facts_ else pd.DataFrame(columns=[*COLUMNS])
    told = told.sort_values("minutes", kind="stable").drop_duplicates(["record_id", "parameter"])
    wide = told.pivot(index="record_id", columns="parameter", values="value").reindex(
        index=ids, columns=["Age", "Gender", "ICUType"]
    )
    return _encounters(ids, wide.astype("float64"))


def _encounters(ids: pd.Index, said: pd.DataFrame) -> pd.DataFrame:
    table = no_encounters().reindex(range(len(ids)))
    return table.assign(
        encounter_id=ids,
        subject_id=ids,
        encounter_class="icu",
        unit="",
        specialty="",
        age_years=said["Age"].to_numpy(),
        sex=said["Gender"].map(SEXES).fillna("").to_numpy(),
        icu_type=said["ICUType"].map(ICU_TYPES).fillna("").to_numpy(),
        icu_admission_time=from_micros(np.full(len(ids), ADMISSION_US)),
    )


def _stays(encounters: pd.DataFrame) -> Stays:
    count = len(encounters)
    return Stays(encounters, np.full(count, ADMISSION_US), np.full(count, LATEST_US))


def _events(frame: pd.DataFrame, stays: Stays, account: ReadAccount, name: str) -> pd.DataFrame:
    minutes = frame["minutes"]
    frame = leave(frame, frame["record_id"].isna(), account, name, "no_encounter")
    bad = ~minutes.between(0, LONGEST_MIN)
    frame = leave(frame, bad.reindex(frame.index), account, name, "no_time")
    frame = leave(frame, frame["parameter"].isna(), account, name, "no_code")
    frame = leave(frame, frame["value"].isna(), account, name, "no_value")
    frame = leave(frame, frame["value"] == UNKNOWN, account, name, "unknown_marker")
    frame = leave(frame, frame["parameter"].isin(DESCRIBING), account, name, "describes_the_stay")
    when = from_micros(ADMISSION_US + np.rint(frame["minutes"].to_numpy() * MINUTE_US).astype(np.int64))
    return facts(
        stays,
        stays.place(frame["record_id"]),
        time=when,
        code=coded(SYSTEM, frame["parameter"]),
        value=frame["value"],
        source_id=identity(name, frame, None),
    )


def _read_texts(files: list[Path], account: ReadAccount, say: Say) -> Iterator[Batch]:
    """Text files, some hundred at a time. Their names are records, so no message holds one."""
    for first in range(0, len(files), FILES_AT_ONCE):
        some = files[first : first + FILES_AT_ONCE]
        frame = _Texts(files[0].parent.name, len(files)).read(some)
        account.rows["records"] += len(frame)
        say(len(frame))
        stays = _stays(_described(iter([frame])))
        yield from stays.batches()
        yield from emit(_events(frame, stays, account, "records"), account, "records")


@dataclass(frozen=True)
class _Texts:
    folder: str
    count: int

    def read(self, files: list[Path]) -> pd.DataFrame:
        """The rows of these files; the index is the row in its file."""
        parts = [self._one(file) for file in files]
        lengths = [p.num_rows for p in parts]
        table = pa.concat_tables(parts)
        rows = np.concatenate([np.arange(n) for n in lengths]) if lengths else np.zeros(0, np.int64)
        record = pd.Categorical.from_codes(
            np.repeat(np.arange(len(files)), lengths),
            categories=pd.Index([f.stem for f in files], dtype="str"),
        )
        return pd.DataFrame(
            {
                "record_id": record,
                "minutes": self._minutes(table["Time"]),
                "parameter": pd.Categorical(pd.array(table["Parameter"].to_pandas(), dtype="str")),
                "value": self._numbers(table["Value"]),
            },
            index=pd.Index(rows),
        )

    def _one(self, file: Path) -> pa.Table:
        text = pa.string()
        types = {"Time": text, "Parameter": text, "Value": text}
        convert = pyarrow.csv.ConvertOptions(
            column_types=types, include_columns=list(types), strings_can_be_null=True, null_values=[""]
        )
        try:
            return pyarrow.csv.read_csv(file, convert_options=convert)
        except (pa.ArrowException, OSError, KeyError):
            raise DataError(
                f"One of the {self.count:,} text files in {self.folder} is empty, or has not the header "
                "Time,Parameter,Value and three cells a row. Fetch the set again."
            ) from None

    def _minutes(self, times: pa.ChunkedArray) -> Any:
        parts = pc.extract_regex(times, r"^(?P<h>\d{1,4}):(?P<m>[0-5]\d)$").combine_chunks()
        bad = parts.null_count
        if bad:
            raise DataError(
                f"Column Time of the text files in {self.folder} is no hours:minutes in {bad:,} rows. Write 07:30."
            )
        hours, minutes = (pc.cast(pc.struct_field(parts, k), pa.float64()) for k in ("h", "m"))
        return hours.to_numpy(zero_copy_only=False) * 60 + minutes.to_numpy(zero_copy_only=False)

    def _numbers(self, values: pa.ChunkedArray) -> Any:
        numbers = pd.to_numeric(values.to_pandas(), errors="coerce")
        bad = int((numbers.isna() & values.to_pandas().notna()).sum())
        if bad:
            raise DataError(
                f"Column Value of the text files in {self.folder} holds text in {bad:,} rows, numbers were expected."
            )
        return numbers.to_numpy(dtype=np.float64)
