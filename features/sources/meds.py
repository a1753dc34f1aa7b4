"""MEDS 0.4 data sets: ours, which say everything, and anybody's, which say less.

MEDS knows subjects, instants, codes and values. It has one clock, no encounters and no units, so a data set of another
house is read with what it has beside them:

- an encounter column (``encounter_id``, ``hadm_id``, ``visit_id`` …), else the subject's whole record is one encounter;
- ``available_time`` where it is there, else the declared policy of each concept. A fact at midnight sharp whose code no
  table knows and that has no number is a date (a diagnosis, a bill): it is known on the next day;
- a unit column, else a unit at the end of the code, ``LAB//50912//mg/dL``, when what stands before it is a known code;
- ``MEDS_BIRTH`` and ``GENDER//F`` say age and sex; rows without a time are known from admission on.

MEDS instants have no zone: they are read in ``timezone``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.clock import UTC_US
from features.concepts import loader
from features.errors import DataError
from features.events import ENCOUNTER_COLUMNS, EVENT_COLUMNS, empty_events
from features.sources.batch import ROWS, Batch, ReadAccount, Say, no_encounters, quiet

TABLE: Final = "data"
STAYS: Final = ("encounter_id", "hadm_id", "visit_id", "visit_occurrence_id", "csn", "stay_id")
"""Columns that name the encounter, the first that is there."""
UNITS: Final = ("unit", "units", "valueuom")
WORDS: Final = ("concept", "status", "source_id")
LEADS: Final[dict[str, tuple[str, str]]] = {
    "HOSPITAL_ADMISSION": ("hospital_admission", ""),
    "HOSPITAL_DISCHARGE": ("hospital_discharge", ""),
    "ICU_ADMISSION": ("location", "icu"),
    "ICU_DISCHARGE": ("icu_discharge", ""),
    "MEDS_DEATH": ("death", ""),
}
"""What the usual first parts of a code say: a concept, and the text that stands for its value (none: 1)."""
MEASURED: Final = ("LAB", "LABS", "VITAL", "VITALS", "CHART", "CHARTEVENTS", "LABEVENTS", "MEASUREMENT")
"""First parts of codes that ETLs of MIMIC put before an item's number."""
TOLD: Final = ("age_years", "male", "medical_icu", "icu_admission", "hours_before_icu")
"""Facts that an encounter of our own archives makes again (``events.encounter_events``)."""

_SEX: Final = re.compile(r"(?:gender|sex)/+(m|male|f|female)", re.IGNORECASE)
_NOT_A_UNIT: Final = ("", "UNK", "UNKNOWN", "NONE", "NULL", "NA")
_DAY_US: Final = 86_400_000_000
_YEAR_US: Final = 365.25 * _DAY_US
_NAT: Final = np.iinfo(np.int64).min
_NEVER: Final = np.iinfo(np.int64).max

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def batches(
    path: Path, account: ReadAccount, *, timezone: str = "UTC", mapping: Path | None = None, say: Say = quiet
) -> Iterator[Batch]:
    """Read a MEDS data set, some whole subjects at a time.

    Parameters
    ----------
    path : Path
        The folder with ``data/``. Where it has ``encounters/`` as well (our own archives), these are the encounters.
    account : ReadAccount
    timezone : str
        What MEDS's instants, which have no zone, are in.
    mapping : Path, optional
        Not used: MEDS needs none.
    say : callable
        Told how many more rows have been read.

    Raises
    ------
    DataError
        There is no data, or a column is missing or of another type than MEDS 0.4 says.
    """
    files = sorted((path / "data").rglob("*.parquet"))
    if not files:
        raise DataError(
            f"No data/*.parquet in {path.name}. Give the folder of a MEDS data set, the one above data/."
        )
    described = sorted((path / "encounters").glob("*.parquet"))
    for file in described:
        yield Batch(_described(file), empty_events())
    for file in files:
        for table in _people(file):
            batch = _Rows(table, timezone, account).batch(bool(described))
            say(len(table))
            yield batch


def _people(file: Path) -> Iterator[pa.Table]:
    """Tables of whole subjects, each of some hundred thousand rows at most unless one subject has more."""
    held: list[pa.Table] = []
    with _opened(file) as parquet:
        _check(parquet.schema_arrow, file)
        try:
            for batch in parquet.iter_batches(ROWS):
                table = pa.concat_tables([*held, pa.Table.from_batches([batch])])
                ids = table["subject_id"].to_numpy()
                other = np.flatnonzero(ids != ids[-1]) if ids.size else ids
                whole = int(other[-1]) + 1 if other.size else 0
                if whole:
                    yield table.slice(0, whole)
                held = [table.slice(whole)]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file.name} breaks off or is damaged. Give a complete Parquet file.") from error
    if held and len(held[0]):
        yield held[0]


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.name} cannot be read as Parquet. MEDS data are Parquet files.") from error


def _check(schema: pa.Schema, file: Path) -> None:
    right = {"subject_id": pa.types.is_integer, "time": pa.types.is_timestamp, "code": _is_text}
    missing = [c for c in right if c not in schema.names]
    if missing:
        raise DataError(f"{file.name} lacks {', '.join(missing)}. MEDS 0.4 needs subject_id, time and code.")
    right["numeric_value"] = right["value"] = lambda t: pa.types.is_floating(t) or pa.types.is_null(t)
    right["available_time"] = pa.types.is_timestamp
    for name, fits in right.items():
        if name in schema.names and not fits(schema.field(name).type):
            raise DataError(
                f"Column {name} of {file.name} is {schema.field(name).type}, which MEDS 0.4 does not allow. "
                "Write int64 subjects, timestamp[us] times, text codes and float values."
            )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _described(file: Path) -> pd.DataFrame:
    """The encounters of one file of our own archive."""
    with _opened(file) as parquet:
        missing = [c for c in ENCOUNTER_COLUMNS if c not in parquet.schema_arrow.names]
        if missing:
            raise DataError(f"encounters/{file.name} lacks {', '.join(missing)}. Convert the source again.")
        table = parquet.read(columns=list(ENCOUNTER_COLUMNS))
    made = {c: table[c].to_pandas() for c in ENCOUNTER_COLUMNS}
    for name in ("hospital_admission_time", "icu_admission_time"):
        made[name] = _instants(table[name].to_numpy().astype("datetime64[us]").view(np.int64))
    return pd.DataFrame(made)


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What a code is to us: how the tables know it, the unit it ends with, a concept and text of its own, a sex."""

    code: str
    unit: str
    concept: str
    text: str
    sex: str
    known: bool


@cache
def _by_item() -> dict[str, str]:
    """MIMIC's item numbers to codes the tables know."""
    return {
        r.code: key for key, r in loader.codes().items() if r.system.startswith("MIMIC") and r.code.isdigit()
    }


def _meaning(code: str) -> _Meaning:
    sex = _SEX.fullmatch(code)
    if sex:
        return _Meaning(code, "", "", "", "male" if sex[1][0] in "mM" else "female", False)
    name, unit = _known(code)
    if name:
        return _Meaning(name, unit, "", "", "", True)
    concept, text = LEADS.get(code.split("//")[0], ("", ""))
    return _Meaning(code, "", concept, text, "", False)


def _known(code: str) -> tuple[str, str]:
    """The code as the tables know it and the unit behind it, or nothing: the longest part of it that is a code."""
    whole = code if "//" in code else code.replace("/", "//", 1)
    parts = whole.split("//")
    for n in range(len(parts), 1, -1):
        head, rest = "//".join(parts[:n]), "//".join(parts[n:])
        unit = "" if rest.upper() in _NOT_A_UNIT else rest
        if head in loader.codes():
            return head, unit
        if n == 2 and parts[0].upper() in MEASURED and parts[1] in _by_item():
            return _by_item()[parts[1]], unit
    return "", ""


class _Rows:
    """The rows of some whole subjects, column by column, and what they make."""

    def __init__(self, table: pa.Table, timezone: str, account: ReadAccount) -> None:
        self.account, self.names = account, set(table.column_names)
        self.table = table.combine_chunks()
        account.rows[TABLE] += len(table)
        number = self.table["subject_id"]
        subject = self.table["source_subject_id"] if "source_subject_id" in self.names else number
        self.subject, self.subjects = _coded(subject.cast(pa.string()))
        self.time = self._micros("time", timezone)
        self.available = self._micros("available_time", timezone)
        code, codes = _coded(self.table["code"].cast(pa.string()))
        self.code = np.where(code < 0, len(codes), code)
        self.meanings = [_meaning(c) for c in codes] + [_Meaning("MEDS//uncoded", "", "", "", "", False)]
        self.codes = [*codes, ""]
        self.value = self._values()

    def batch(self, described: bool) -> Batch:
        """Encounters (unless they are described elsewhere) and events."""
        stay, stays = self._stay()
        told = self._told(described)
        if described:
            rows = np.flatnonzero(~told & (self.time != _NAT) & (stay >= 0))
            self._leave(~told & (self.time == _NAT), "no_time")
            self._leave(~told & (self.time != _NAT) & (stay < 0), "no_encounter")
            return Batch(no_encounters(), self._events(rows, stay[rows], stays, self.time[rows]))
        stay, owner = self._placed(stay, len(stays), ~told)
        start = self._starts(stay, len(stays), ~told)
        rows, at, when = self._spread(stay, owner, start, ~told)
        return Batch(self._encounters(stay, stays, owner, start), self._events(rows, at, stays, when))

    # -------------------------------------------------------- columns

    def _micros(self, name: str, timezone: str) -> Ints:
        if name not in self.names:
            return np.full(len(self.table), _NAT)
        column = self.table[name]
        zoned = column.type.tz is not None
        micros = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
        found = np.asarray(pc.fill_null(micros, _NAT).to_numpy(), dtype=np.int64)
        return found if zoned or timezone == "UTC" else _from_local(found, timezone)

    def _values(self) -> npt.NDArray[np.float64]:
        value = pa.nulls(len(self.table), pa.float64())
        for name in ("value", "numeric_value"):
            if name in self.names:
                value = pc.coalesce(value, self.table[name].cast(pa.float64()))
        return np.asarray(value.to_numpy(zero_copy_only=False), dtype=np.float64)

    def _text(self, name: str) -> tuple[Ints, list[str]]:
        if name not in self.names:
            return np.full(len(self.table), -1), []
        return _coded(self.table[name].cast(pa.string()))

    def _flag(self, test: Callable[[str, _Meaning], object]) -> Bools:
        """Which rows have a code (as written) and meaning of some kind."""
        fits = [bool(test(c, m)) for c, m in zip(self.codes, self.meanings, strict=True)]
        rows: Bools = np.array(fits, np.bool_)[self.code]
        return rows

    def _leave(self, rows: Bools, reason: str) -> None:
        self.account.leave(TABLE, reason, int(rows.sum()))

    # -------------------------------------------------------- encounters

    def _stay(self) -> tuple[Ints, list[str]]:
        """Encounter of each row as the data set names it, -1 where it names none."""
        column = next((c for c in STAYS if c in self.names), None)
        if column is None:
            self.account.note("There is no encounter column: a subject's whole record is one encounter.")
            return self.subject.copy(), self.subjects
        self.account.note(f"Encounters are those of column {column}.")
        return self._text(column)

    def _told(self, described: bool) -> Bools:
        """Rows that say what an encounter says; they make no event of their own."""
        if described:
            source, sources = self._text("source_id")
            ours = {f"WARDCAST//{name}" for name in TOLD}
            made = self._flag(lambda c, m: c in ours) & (source == _place(sources, "encounter"))
            self._leave(made, "told_by_the_encounter")
            return np.asarray(made, np.bool_)
        self.birth, self.sexed = self._flag(lambda c, m: c == "MEDS_BIRTH"), self._flag(lambda c, m: m.sex)
        self._leave(self.birth, "birth_told_by_the_encounter")
        self._leave(self.sexed, "sex_told_by_the_encounter")
        return self.birth | self.sexed

    def _placed(self, stay: Ints, n: int, facts: Bools) -> tuple[Ints, Ints]:
        """Encounter of each row, by time where the row names none; and the subject of each encounter."""
        owner = np.full(n, -1)
        owner[stay[stay >= 0]] = self.subject[stay >= 0]
        timed = facts & (self.time != _NAT)
        named = timed & (stay >= 0)
        first, last = np.full(n, _NEVER), np.full(n, _NAT)
        np.minimum.at(first, stay[named], self.time[named])
        np.maximum.at(last, stay[named], self.time[named])
        loose = np.flatnonzero(timed & (stay < 0))
        if loose.size and n:
            stay = stay.copy()
            stay[loose] = _spanning(self.subject[loose], self.time[loose], owner, first, last)
            found = int((stay[loose] >= 0).sum())
            if found:
                self.account.note(
                    "Rows that name no encounter were given to the one whose facts span their time."
                )
        self._leave(timed & (stay < 0), "no_encounter")
        return stay, owner

    def _starts(self, stay: Ints, n: int, facts: Bools) -> Ints:
        """When each encounter begins: its admission if a code says so, else its first fact."""
        usable = facts & (self.time != _NAT) & (stay >= 0)
        admitted = usable & self._flag(lambda c, m: c.startswith("HOSPITAL_ADMISSION"))
        start, first = _earliest(stay, self.time, admitted, n), _earliest(stay, self.time, usable, n)
        return np.where(start != _NAT, start, first)

    def _spread(self, stay: Ints, owner: Ints, start: Ints, facts: Bools) -> tuple[Ints, Ints, Ints]:
        """Rows that make events, each with its encounter and time; a row without a time at the start of every stay."""
        timed = np.flatnonzero(facts & (self.time != _NAT) & (stay >= 0))
        static = np.flatnonzero(facts & (self.time == _NAT))
        order = np.argsort(owner, kind="stable")
        low = np.searchsorted(owner[order], self.subject[static], side="left")
        high = np.searchsorted(owner[order], self.subject[static], side="right")
        row = np.repeat(static, high - low)
        within = np.arange(row.size) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
        at = order[np.repeat(low, high - low) + within] if row.size else np.empty(0, np.int64)
        begun = start[at] != _NAT
        lone = np.setdiff1d(static, row[begun])
        self.account.leave(TABLE, "no_time_and_no_encounter", lone.size)
        row, at = row[begun], at[begun]
        where, when = np.append(stay[timed], at), np.append(self.time[timed], start[at])
        return np.append(timed, row).astype(np.int64), where.astype(np.int64), when.astype(np.int64)

    def _encounters(self, stay: Ints, stays: Sequence[str], owner: Ints, start: Ints) -> pd.DataFrame:
        n = len(stays)
        timed = (self.time != _NAT) & (stay >= 0)
        icu = _earliest(stay, self.time, timed & self._flag(lambda c, m: c.startswith("ICU_ADMISSION")), n)
        ward = _earliest(
            stay, self.time, timed & self._flag(lambda c, m: c.startswith("HOSPITAL_ADMISSION")), n
        )
        emergency = _earliest(
            stay, self.time, timed & self._flag(lambda c, m: c.startswith("ED_REGISTRATION")), n
        )
        born = _earliest(self.subject, self.time, self.birth & (self.time != _NAT), len(self.subjects))[owner]
        only_ed = (emergency != _NAT) & (ward == _NAT)
        sexes = np.full(len(self.subjects), "", dtype=object)
        rows = np.flatnonzero(self.sexed)
        sexes[self.subject[rows]] = [self.meanings[c].sex for c in self.code[rows]]
        known = (born != _NAT) & (start != _NAT)
        table = {
            "encounter_id": list(stays),
            "subject_id": np.array(self.subjects, dtype=object)[owner],
            "encounter_class": np.where(icu != _NAT, "icu", np.where(only_ed, "ed", "ward")),
            "unit": "",
            "specialty": "",
            "age_years": np.where(known, (start.astype(np.float64) - born) / _YEAR_US, np.nan),
            "sex": sexes[owner],
            "icu_type": "",
            "hospital_admission_time": _instants(start),
            "icu_admission_time": _instants(icu),
        }
        encounters: pd.DataFrame = pd.DataFrame(table).loc[start != _NAT]
        return encounters.reset_index(drop=True)

    # -------------------------------------------------------- events

    def _events(self, rows: Ints, stay: Ints, stays: Sequence[str], when: Ints) -> pd.DataFrame:
        self.account.events[TABLE] += rows.size
        code = self.code[rows]
        said = {name: self._text(name) for name in WORDS}
        status = (
            said["status"] if "status" in self.names else (np.zeros(len(self.table), np.int64), ["final"])
        )
        value, text = self._spoken(rows)
        columns = {
            "subject_id": _labels(self.subject[rows], self.subjects),
            "encounter_id": _labels(stay, stays),
            "time": _instants(when),
            "available_time": _instants(self._known_at(rows, when)),
            "code": _labels(*_folded(code, [m.code for m in self.meanings])),
            "concept": self._concept(rows, said["concept"]),
            "numeric_value": value,
            "text_value": text,
            "unit": self._unit(rows),
            "status": _labels(status[0][rows], status[1]),
            "source_id": _labels(said["source_id"][0][rows], said["source_id"][1]),
        }
        return pd.DataFrame(columns)[list(EVENT_COLUMNS)]

    def _known_at(self, rows: Ints, when: Ints) -> Ints:
        """What the data set says, else nothing; but a bare date of an unknown code is known the day after."""
        available = self.available[rows]
        if "available_time" in self.names:
            return available
        unknown = ~self._flag(lambda c, m: m.known or m.concept)[rows]
        dated = unknown & (self.time[rows] != _NAT) & (when % _DAY_US == 0) & np.isnan(self.value[rows])
        return np.where(dated, when + _DAY_US, available)

    def _spoken(self, rows: Ints) -> tuple[npt.NDArray[np.float64], pd.Categorical[Any]]:
        """Values and texts; a code that is a statement by itself (a discharge, a move) gets the value it stands for."""
        text, texts = self._text("text_value")
        value = self.value[rows].copy()
        stated = self._flag(lambda c, m: m.concept)[rows] & np.isnan(value)
        spoken = stated & self._flag(lambda c, m: m.text)[rows]
        value[stated & ~spoken] = 1.0
        text = np.where(spoken, self.code[rows] + len(texts), text[rows])
        return value, _labels(*_folded(text, [*texts, *(m.text for m in self.meanings)]))

    def _concept(self, rows: Ints, said: tuple[Ints, list[str]]) -> pd.Categorical[Any]:
        concepts = [m.concept for m in self.meanings]
        own = self._flag(lambda c, m: m.concept)[rows]
        codes = np.where(own, self.code[rows] + len(said[1]), said[0][rows])
        return _labels(*_folded(codes, [*said[1], *concepts]))

    def _unit(self, rows: Ints) -> pd.Categorical[Any]:
        column = next((c for c in UNITS if c in self.names), "")
        unit, units = self._text(column)
        ends = [m.unit for m in self.meanings]
        ending = self._flag(lambda c, m: m.unit)[rows] & (unit[rows] < 0)
        return _labels(*_folded(np.where(ending, self.code[rows] + len(units), unit[rows]), [*units, *ends]))


# ------------------------------------------------------------ small things


def _coded(column: pa.ChunkedArray | pa.Array) -> tuple[Ints, list[str]]:
    """Codes, -1 = empty, and the strings they stand for."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    met = whole.dictionary_encode()
    codes = pc.fill_null(met.indices, -1).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), met.dictionary.to_pylist()


def _folded(codes: Ints, labels: Sequence[str]) -> tuple[Ints, list[str]]:
    """The same with every label once; an empty label is no label."""
    unique = {label: k for k, label in enumerate(dict.fromkeys(x for x in labels if x))}
    place = np.array([unique.get(label, -1) for label in labels] + [-1], dtype=np.int64)
    return place[codes], list(unique)


def _labels(codes: Ints, labels: Sequence[str]) -> pd.Categorical[Any]:
    return pd.Categorical.from_codes(codes, categories=pd.Index(list(labels), dtype="str"))


def _place(labels: Sequence[str], label: str) -> int:
    return list(labels).index(label) if label in labels else -2


def _earliest(key: Ints, time: Ints, rows: Bools, n: int) -> Ints:
    """Earliest time by key among some rows, NaT where there is none."""
    first = np.full(n, _NEVER)
    np.minimum.at(first, key[rows], time[rows])
    return np.where(first == _NEVER, _NAT, first)


def _spanning(subject: Ints, time: Ints, owner: Ints, first: Ints, last: Ints) -> Ints:
    """The encounter of the same subject that began last at or before the time and had not ended; -1 where none."""
    order = np.lexsort((first, owner))
    both = np.lexsort(
        (
            np.append(np.zeros(order.size), np.ones(time.size)),
            np.append(first[order], time),
            np.append(owner[order], subject),
        )
    )
    begun = np.cumsum(both < order.size) - 1
    place = np.empty(time.size, np.int64)
    loose = both >= order.size
    place[both[loose] - order.size] = begun[loose]
    stay = order[np.maximum(place, 0)]
    fits = (place >= 0) & (owner[stay] == subject) & (first[stay] <= time) & (time <= last[stay])
    return np.where(fits, stay, -1)


def _from_local(micros: Ints, timezone: str) -> Ints:
    """UTC of wall-clock times; the first of the two hours when clocks go back, the next when they skip one."""
    local = pd.DatetimeIndex(micros.view("datetime64[us]"))
    zoned = local.tz_localize(timezone, ambiguous=np.ones(len(local), bool), nonexistent="shift_forward")
    return np.asarray(zoned.as_unit("us").asi8, dtype=np.int64)


def _instants(micros: Ints) -> pd.Series:
    return pd.Series(pd.DatetimeIndex(np.asarray(micros, np.int64).view("datetime64[us]"), tz="UTC")).astype(
        UTC_US
    )
