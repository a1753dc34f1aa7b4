"""PhysioNet/CinC Challenge 2019: hourly ICU rows, as Parquet, become encounters and events.

Reyna et al., Crit Care Med 2020;48(2):210, doi 10.13026/v64v-d857, CC BY 4.0. The data carry no dates, so
ICU admission is set to 2000-01-01T00:00Z; a row's time, available time and prediction time are that plus
``ICULOS`` hours. ``SepsisLabel`` is not read here, whether it is there or not: labels come from
``features.labels.physionet2019``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.clock import HOUR_US, from_micros
from features.errors import DataError
from features.events import EVENT_COLUMNS, encounter_events
from features.sources.batch import Batch, ReadAccount, Say, quiet

ADMISSION_US: Final = 946_684_800_000_000
"""2000-01-01T00:00Z, the ICU admission of every patient."""

SYSTEM: Final = "PHYSIONET2019"
MEASURED: Final = (
    "HR", "O2Sat", "Temp", "SBP", "MAP", "DBP", "Resp", "EtCO2", "BaseExcess", "HCO3", "FiO2", "pH", "PaCO2", "SaO2",
    "AST", "BUN", "Alkalinephos", "Calcium", "Chloride", "Creatinine", "Bilirubin_direct", "Glucose", "Lactate",
    "Magnesium", "Phosphate", "Potassium", "Bilirubin_total", "TroponinI", "Hct", "Hgb", "PTT", "WBC", "Fibrinogen",
    "Platelets",
)  # fmt: skip
PERSONAL: Final = ("Age", "Gender", "Unit1", "Unit2", "HospAdmTime")
PATIENTS_A_BATCH: Final = 500
"""About 400,000 events."""
LONGEST_H: Final = 1_000_000
"""Hours beyond this (a century) are typing errors, and would not fit a clock."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """Some patients of one file, whole.

    Attributes
    ----------
    encounters : DataFrame with ``events.ENCOUNTER_COLUMNS``, one row a patient
    events : DataFrame with ``events.EVENT_COLUMNS``
        What the rows hold (not yet cleaned, ``concept`` empty) and what the encounters say; strings as
        categoricals.
    rows : DataFrame, one row an hour, by patient and time
        ``patient_id`` and ``hour`` as in the input, ``encounter_id``, ``prediction_time``, ``iculos``
        (hours), ``site``. The index is the row's place in the whole input.
    notes : tuple of str
        What had to be assumed about this file.
    """

    encounters: pd.DataFrame
    events: pd.DataFrame
    rows: pd.DataFrame
    notes: tuple[str, ...]


def files(path: Path) -> list[Path]:
    """The Parquet files that an input path means: itself, or those in the folder, by name.

    Raises
    ------
    DataError
        There is nothing there, or no Parquet file.
    """
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.parquet")) if path.is_dir() else []
    if not found:
        raise DataError(
            f"No Parquet file at {path}. Give a .parquet file, or a folder that holds setA.parquet and such."
        )
    return found


def read(path: Path, patients: int = 4000) -> Iterator[Chunk]:
    """Read a file or a folder of files, so many patients at a time.

    Parameters
    ----------
    path : Path
        Needs ``patient_id`` and ``ICULOS`` or ``hour``. A clinical column that is absent was never
        measured. Rows may come in any order.

    Raises
    ------
    DataError
        A column is missing, holds text or is empty where it must not be; a patient's hour is there twice;
        a patient is in two files. Names the column, the count and the remedy.
    """
    seen: pd.Index[Any] = pd.Index([], dtype=object)
    offset = 0
    for file in files(path):
        hours = _read_file(file)
        again = int(hours.ids.isin(seen).sum())
        if again:
            raise DataError(
                f"{again:,} patients of {file.name} are in an earlier file too. Keep a patient in one file."
            )
        seen = pd.Index(np.append(seen, hours.ids))
        for first in range(0, len(hours.ids), patients):
            yield hours.chunk(first, min(first + patients, len(hours.ids)), offset)
        offset += len(hours.patient)


@dataclass(frozen=True)
class _Hours:
    """One file, its rows sorted by patient (as they appear) and time; ``place`` is where each row stood."""

    ids: pd.Index
    keys: pd.DataFrame
    patient: Ints
    place: Ints
    iculos: Ints
    values: dict[str, Floats]
    notes: tuple[str, ...]

    def chunk(self, first: int, stop: int, offset: int) -> Chunk:
        low, high = np.searchsorted(self.patient, [first, stop])
        ids = self.ids[first:stop].astype(str)
        patient = self.patient[low:high] - first
        begins = low + np.searchsorted(patient, np.arange(stop - first))
        encounters = _encounters(ids, {c: self.values[c][begins] for c in PERSONAL})
        index = pd.Index(self.place[low:high] + offset)
        when = from_micros(ADMISSION_US + self.iculos[low:high] * HOUR_US).set_axis(index)
        rows = (
            self.keys.iloc[low:high]
            .set_axis(index)
            .assign(
                encounter_id=_categories(patient, ids),
                prediction_time=when,
                iculos=self.iculos[low:high],
                site=sites(ids)[patient],
            )
        )
        facts = _events(ids, patient, self.iculos[low:high], {c: self.values[c][low:high] for c in MEASURED})
        return Chunk(encounters, _joined(facts, encounter_events(encounters)), rows, self.notes)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn Arrow's and the system's errors over a file into a DataError that names it and says what to do."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        about = "is empty" if file.is_file() and not file.stat().st_size else "cannot be read as Parquet"
        raise DataError(
            f"{file.name} {about}. Give a complete Parquet file; convert CSV or text to Parquet first."
        ) from error


def _read_file(file: Path) -> _Hours:
    with reading(file):
        schema = pq.read_schema(file)
    _require(schema, file)
    wanted = ("patient_id", "hour", "ICULOS", *MEASURED, *PERSONAL)
    with reading(file):
        table = pq.read_table(file, columns=[c for c in wanted if c in schema.names])
    patient, ids = _patients(table, file)
    iculos, notes = _iculos(table, file)
    order = np.lexsort((iculos, patient))
    _check_hours(patient[order], iculos[order], file)
    keys = pd.DataFrame({"patient_id": table["patient_id"].to_pandas()})
    keys["hour"] = table["hour"].to_pandas() if "hour" in schema.names else _rank(patient, order)
    _check_order(patient[order], keys["hour"].to_numpy()[order], file)
    values = {c: _number(table, c, file)[order] for c in (*MEASURED, *PERSONAL)}
    absent = [c for c in (*MEASURED, *PERSONAL) if c not in schema.names]
    if absent:
        notes += (f"{file.name} has no {', '.join(absent)}: taken as never measured.",)
    return _Hours(ids, keys.iloc[order], patient[order], order, iculos[order], values, notes)


def _require(schema: pa.Schema, file: Path) -> None:
    if "patient_id" not in schema.names:
        raise DataError(f"{file.name} has no column patient_id. Say in it which rows belong together.")
    if "ICULOS" not in schema.names and "hour" not in schema.names:
        raise DataError(f"{file.name} has neither ICULOS nor hour. Give ICULOS, hours since ICU admission.")
    twice = sorted({c for c in schema.names if schema.names.count(c) > 1})
    if twice:
        raise DataError(f"{file.name} has the columns {', '.join(twice)} more than once. Keep one of each.")


def _patients(table: pa.Table, file: Path) -> tuple[Ints, pd.Index]:
    column = table["patient_id"].combine_chunks()
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    textual = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (textual or pa.types.is_integer(kind)):
        raise DataError(
            f"Column patient_id of {file.name} is {kind}. Write identifiers as text or whole numbers."
        )
    if column.null_count:
        raise DataError(
            f"Column patient_id of {file.name} is empty in {column.null_count:,} rows. Fill or remove them."
        )
    codes, ids = pd.factorize(column.to_pandas())
    return codes.astype(np.int64), pd.Index(ids)


def _iculos(table: pa.Table, file: Path) -> tuple[Ints, tuple[str, ...]]:
    name = "ICULOS" if "ICULOS" in table.column_names else "hour"
    hours = _number(table, name, file)
    if "hour" in table.column_names:
        _whole(_number(table, "hour", file), "hour", file)
    if name == "hour":
        return _whole(hours, name, file) + 1, (f"{file.name} has no ICULOS: hour + 1 stands for it.",)
    return _whole(hours, name, file), ()


def _whole(hours: Floats, name: str, file: Path) -> Ints:
    bad = int((~((hours >= 0) & (hours <= LONGEST_H) & (hours == np.floor(hours)))).sum())
    if bad:
        raise DataError(
            f"Column {name} of {file.name} is empty, negative or no whole number of hours in {bad:,} of "
            f"{len(hours):,} rows. Each row is one hour of a stay; write which."
        )
    return hours.astype(np.int64)


def _check_hours(patient: Ints, iculos: Ints, file: Path) -> None:
    twice = int(((np.diff(patient) == 0) & (np.diff(iculos) == 0)).sum())
    if twice:
        raise DataError(f"{file.name} repeats a patient's hour in {twice:,} rows. Keep one row an hour.")


def _check_order(patient: Ints, hour: npt.NDArray[Any], file: Path) -> None:
    against = int(((np.diff(patient) == 0) & (np.diff(hour.astype(np.float64)) <= 0)).sum())
    if against:
        raise DataError(
            f"In {file.name} hour and ICULOS order {against:,} rows differently. Correct one, or leave hour out."
        )


def _rank(patient: Ints, order: Ints) -> Ints:
    """Row number within the stay, from 0, by ICULOS: what stands for an absent ``hour``."""
    sorted_patient = patient[order]
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(sorted_patient, sorted_patient)
    return rank


def _number(table: pa.Table, name: str, file: Path) -> Floats:
    """A column as float64, missing as NaN; all missing where there is no such column."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    column = table[name]
    kind = column.type
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    ):
        raise DataError(
            f"Column {name} of {file.name} is {kind}, numbers were expected. Convert it, empty as null."
        )
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)


def sites(ids: pd.Index) -> npt.NDArray[Any]:
    """Which hospital each patient is of: the challenge numbers hospital A p0…, hospital B p1…; others are "".

    For reports by hospital only; no feature reads it.
    """
    prefix = ids.astype(str).str.extract(r"^(p[01])\d{5}$", expand=False)
    return np.asarray(prefix.map({"p0": "A", "p1": "B"}).fillna(""), dtype=object)


def _encounters(ids: pd.Index, first: dict[str, Floats]) -> pd.DataFrame:
    """One row a patient, from the patient's first hour: nothing is looked up in later rows."""
    admitted = first["HospAdmTime"]
    known = np.abs(admitted) <= LONGEST_H
    hospital = np.full(len(ids), ADMISSION_US)
    hospital[known] += np.rint(admitted[known] * HOUR_US).astype(np.int64)
    return pd.DataFrame(
        {
            "encounter_id": ids,
            "subject_id": ids,
            "encounter_class": "icu",
            "unit": "",
            "specialty": "",
            "age_years": first["Age"],
            "sex": np.select([first["Gender"] == 1, first["Gender"] == 0], ["male", "female"], ""),
            "icu_type": np.select([first["Unit1"] == 1, first["Unit2"] == 1], ["medical", "surgical"], ""),
            "hospital_admission_time": from_micros(hospital).where(pd.Series(known)),
            "icu_admission_time": from_micros(np.full(len(ids), ADMISSION_US)),
        }
    )


def _events(ids: pd.Index, patient: Ints, iculos: Ints, values: dict[str, Floats]) -> pd.DataFrame:
    """One event a measured cell, column by column, each in order of patient and time."""
    where = {c: np.flatnonzero(~np.isnan(v)) for c, v in values.items()}
    row = np.concatenate(list(where.values()))
    column = np.repeat(np.arange(len(where)), [len(w) for w in where.values()])
    person = _categories(patient[row], ids)
    when = from_micros(ADMISSION_US + iculos[row] * HOUR_US)
    stretch = int(iculos.max(initial=0)) + 1
    identity, used = pd.factorize(column * stretch + iculos[row])
    sources = [f"{MEASURED[u // stretch]}@{u % stretch}" for u in used]
    empty = _categories(np.full(len(row), -1), [""])
    facts = {
        "subject_id": person,
        "encounter_id": person,
        "time": when,
        "available_time": when,
        "code": _categories(column, [f"{SYSTEM}//{c}" for c in where]),
        "concept": empty,
        "numeric_value": np.concatenate([values[c][w] for c, w in where.items()]),
        "text_value": empty,
        "unit": empty,
        "status": _categories(np.zeros(len(row), dtype=np.int64), ["final"]),
        "source_id": _categories(identity, sources),
    }
    return pd.DataFrame(facts)


def _categories(codes: Ints, labels: Any) -> pd.Categorical[Any]:
    return pd.Categorical.from_codes(codes, categories=pd.Index(labels))


def _joined(facts: pd.DataFrame, personal: pd.DataFrame) -> pd.DataFrame:
    """Both tables as one, strings as categoricals (a plain concat would make millions of objects)."""
    joined = {}
    for name in EVENT_COLUMNS:
        one, two = facts[name], personal[name]
        if isinstance(one.dtype, pd.CategoricalDtype):
            labels = one.cat.categories
            labels = labels.append(pd.Index(two.dropna().unique(), dtype=labels.dtype)).unique()
            codes = np.concatenate([one.cat.codes.to_numpy(np.int64), labels.get_indexer(pd.Index(two))])
            joined[name] = pd.Series(_categories(codes, labels))
        else:
            joined[name] = pd.concat([one, two], ignore_index=True)
    return pd.DataFrame(joined)


def batches(
    path: Path,
    account: ReadAccount,
    *,
    timezone: str = "UTC",
    mapping: object = None,
    say: Say = quiet,
) -> Iterator[Batch]:
    """What :func:`read` gives, in the shape that every reader has; events that its encounters make are not repeated.

    ``timezone`` and ``mapping`` are not used: the data carry no dates. A row that measured nothing is counted as
    ``nothing_measured``.
    """
    for chunk in read(path, patients=PATIENTS_A_BATCH):
        rows, facts = len(chunk.rows), _measured(chunk.events)
        account.rows["hours"] += rows
        account.events["hours"] += len(facts)
        account.leave("hours", "nothing_measured", rows - _hours_of(facts))
        for note in chunk.notes:
            account.note(note)
        say(rows)
        yield Batch(chunk.encounters, facts)


def _hours_of(facts: pd.DataFrame) -> int:
    """How many rows of the file the events come from."""
    hour = facts["time"].array.asi8 // HOUR_US
    stay = facts["encounter_id"].cat.codes.to_numpy(np.int64)
    return len(np.unique(stay * int(hour.max(initial=0) + 1) + hour))


def _measured(events: pd.DataFrame) -> pd.DataFrame:
    """The events that hold a cell of a row."""
    return events[(events["source_id"] != "encounter").to_numpy()].reset_index(drop=True)
