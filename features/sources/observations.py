"""Observations of a site's own, CSV or Parquet, become encounters and canonical events.

A mapping, a TOML file, says what the columns mean. **Long** tables hold one observation a row::

    shape = "long"
    system = "LOCAL"                # of codes that name none; LOCAL when left out

    [columns]                       # ours = theirs
    subject_id = "patient_no"
    encounter_id = "stay_no"        # may be left out when [encounters] is there: the time then decides
    time = "taken"
    available_time = "validated"    # may be left out: the policy of each concept then fills it
    code = "test"
    value = "result"                # numbers, limits such as <0.3, or words
    unit = "unit"                   # may be left out
    status = "state"                # may be left out: all are final
    source_id = "row_no"            # may be left out: file and row then identify a fact

    [codes]                         # theirs -> a concept, or SYSTEM//code of concepts/codes
    HF = "heart_rate"
    "K+" = "LOINC//2823-3"
    PCV = { concept = "hematocrit", unit = "L/L" }   # a unit for values that come without

    [units]                         # theirs -> UCUM
    "x10e9/l" = "10*3/uL"

**Wide** tables hold one moment a row and one concept a column; ``code``, ``value`` and ``unit`` then fall away::

    shape = "wide"

    [columns]
    subject_id = "patient_no"
    encounter_id = "stay_no"
    time = "taken"

    [values.pulse]                  # a column of theirs
    concept = "heart_rate"          # or code = "LOINC//8867-4"
    unit = "/min"                   # may be left out: that of the concept or code

A table of stays may stand beside the observations; without it, an encounter begins with its first observation::

    [encounters]
    path = "stays.csv"              # from the folder of the mapping, or of the data

    [encounters.columns]            # ours = theirs; only encounter_id and subject_id must be there
    encounter_id = "stay_no"
    subject_id = "patient_no"
    hospital_admission_time = "admitted"
    hospital_discharge_time = "left"
    icu_admission_time = "icu_in"
    encounter_class = "class"       # ed, ward or icu
    age_years = "age"               # also: unit, specialty, sex, icu_type

An admission with a bare date is known the next day, or when the stay ends before; a discharge with one ends that day.
An ``available_time`` before its ``time`` cannot be true and is left to the policy.
Both are streamed; the stays are held.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.clock import UTC_US
from features.errors import DataError
from features.events import ENCOUNTER_COLUMNS, NAT
from features.sources.batch import ROWS, Batch, ReadAccount, Say, event_table, no_encounters, quiet
from features.sources.facts import number, zone
from features.sources.observations_layout import Layout, layout

SUFFIXES: Final = (".parquet", ".csv", ".csv.gz")
STATUSES: Final = {
    "": "final", "final": "final", "f": "final", "preliminary": "preliminary", "p": "preliminary",
    "corrected": "corrected", "amended": "corrected", "c": "corrected",
    "deleted": "deleted", "entered-in-error": "deleted", "cancelled": "deleted", "d": "deleted", "x": "deleted",
}  # fmt: skip
SEXES: Final = {"m": "male", "f": "female", "male": "male", "female": "female"}
TABLE: Final = "observations"
Micros = npt.NDArray[np.int64]


def batches(
    path: Path,
    account: ReadAccount,
    *,
    timezone: str = "UTC",
    mapping: Path | Mapping[str, Any] | None = None,
    say: Say = quiet,
) -> Iterator[Batch]:
    """Read a file of observations, or a folder of files of one layout.

    Parameters
    ----------
    path : Path
        ``.parquet``, ``.csv`` or ``.csv.gz``, or a folder of such; the table of stays is left out of it.
    account : ReadAccount
        Rows are those of ``observations`` and ``encounters``.
    timezone : str
        Of times without an offset.
    mapping : Path or dict
        See the head of this module.
    say : callable
        Told how many more rows have been read.

    Raises
    ------
    DataError
        The mapping or a file is wrong, a column is missing, or there is no row. Names the columns and the remedy.
    """
    path = Path(path)
    zone(timezone)
    plan = layout(mapping, path if path.is_dir() else path.parent)
    book = _Book(plan, _read_stays(plan, account, timezone))
    for file in _files(path, plan):
        first = 0
        for piece in _stream(file, _wanted(plan), _required(plan)):
            account.rows[TABLE] += len(piece)
            yield from _batched(piece, plan, book, account, timezone, f"{file.name}:", first)
            first += len(piece)
            say(len(piece))
    if not account.rows[TABLE]:
        raise DataError(f"{path.name} has no row of observations. Is it a whole file?")
    yield Batch(book.encounters(account), event_table())


def _files(path: Path, plan: Layout) -> list[Path]:
    if not path.exists():
        raise DataError(f"No observations at {path}. Give a .csv or .parquet file, or a folder of them.")
    found = (
        [path] if path.is_file() else sorted(f for f in path.iterdir() if f.name.lower().endswith(SUFFIXES))
    )
    found = [f for f in found if plan.stays is None or f.resolve() != plan.stays.resolve()]
    if not found or not found[0].name.lower().endswith(SUFFIXES):
        raise DataError(
            f"{path.name} holds no .csv, .csv.gz or .parquet. Export the observations as one of these."
        )
    return found


def _wanted(plan: Layout) -> list[str]:
    return [*plan.columns.values(), *(plan.codes if plan.wide else ())]


def _required(plan: Layout) -> dict[str, str]:
    """Their columns, and where the mapping names each."""
    named = {theirs: f"[columns] {ours}" for ours, theirs in plan.columns.items()}
    return named | (dict.fromkeys(plan.codes, "[values]") if plan.wide else {})


def _stream(file: Path, columns: list[str], required: Mapping[str, str]) -> Iterator[pd.DataFrame]:
    """A file piece by piece, the wanted columns alone; CSV as text, Parquet as it is."""
    try:
        parquet = file.name.lower().endswith(".parquet")
        header = pq.read_schema(file).names if parquet else _csv_header(file)
        missing = [f"{c} ({required[c]})" for c in dict.fromkeys(columns) if c not in header]
        if missing:
            shown = ", ".join(map(str, header[:20])) + (" …" if len(header) > 20 else "")
            raise DataError(f"{file.name} lacks {', '.join(missing)}. It has {shown}. Mend the mapping.")
        names = list(dict.fromkeys(columns))
        if parquet:
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(ROWS, columns=names):
                    yield batch.to_pandas()
        else:
            yield from pd.read_csv(
                file, dtype="str", usecols=names, chunksize=ROWS, keep_default_na=False, encoding="utf-8-sig"
            )
    except (OSError, EOFError, UnicodeDecodeError, ValueError, pa.ArrowException, csv.Error) as error:
        raise DataError(
            f"{file.name} could not be read ({type(error).__name__}). Is it a whole file, a CSV in UTF-8 or a Parquet?"
        ) from None


def _csv_header(file: Path) -> list[str]:
    try:
        return list(pd.read_csv(file, dtype="str", nrows=0, encoding="utf-8-sig").columns)
    except pd.errors.EmptyDataError:
        raise DataError(f"{file.name} is empty. Export it with its header.") from None


class _Book:
    """The stays: given by a table, or known from their observations; who is where at a time."""

    def __init__(self, plan: Layout, stays: pd.DataFrame | None) -> None:
        self.given = stays
        self.first: dict[str, tuple[str, int]] = {}
        self.begins: dict[str, list[tuple[int, int, str]]] = {}
        self.subject: dict[str, str] = {}
        if stays is not None:
            self.subject = dict(zip(stays["encounter_id"], stays["subject_id"], strict=True))
            begin, end = (_micros(stays[c]) for c in ("begin", "hospital_discharge_time"))
            for row in zip(stays["subject_id"], begin, end, stays["encounter_id"], strict=True):
                self.begins.setdefault(row[0], []).append((int(row[1]), int(row[2]), row[3]))

    def at(self, subject: str, time: int) -> str:
        """The stay of a patient that contains a time, the latest begun among several; empty for none."""
        inside = [
            (begin, name)
            for begin, end, name in self.begins.get(subject, ())
            if begin != NAT and begin <= time and (end == NAT or time <= end)
        ]
        return max(inside)[1] if inside else ""

    def meet(self, events: pd.DataFrame) -> None:
        """Remember when each encounter was first observed."""
        if self.given is not None or events.empty:
            return
        firsts = events.groupby("encounter_id", sort=False).agg({"subject_id": "first", "time": "min"})
        for name, subject, time in zip(
            firsts.index, firsts["subject_id"], _micros(firsts["time"]), strict=True
        ):
            known = self.first.get(name)
            self.first[name] = (known[0], min(known[1], int(time))) if known else (subject, int(time))

    def encounters(self, account: ReadAccount) -> pd.DataFrame:
        if self.given is not None:
            return self.given[list(ENCOUNTER_COLUMNS)]
        account.note("No table of stays: an encounter is taken to begin with its first observation.")
        blank = no_encounters()
        if not self.first:
            return blank
        subjects, times = zip(*self.first.values(), strict=True)
        known = {
            "encounter_id": pd.Series(list(self.first), dtype="str"),
            "subject_id": pd.Series(subjects, dtype="str"),
            "hospital_admission_time": _instants(np.array(times, dtype=np.int64)),
        }
        return _completed(pd.DataFrame(known), blank)


def _micros(instants: pd.Series) -> Micros:
    return np.asarray(instants.astype(UTC_US).array.asi8, dtype=np.int64)


def _instants(micros: Micros) -> pd.Series:
    return pd.Series(pd.DatetimeIndex(micros.view("datetime64[us]"), tz="UTC")).astype(UTC_US)


def _completed(table: pd.DataFrame, blank: pd.DataFrame) -> pd.DataFrame:
    """Every encounter column, those that nobody named empty."""
    for name in blank.columns:
        if name not in table:
            empty = "" if isinstance(blank[name].dtype, pd.StringDtype) else None
            table[name] = pd.Series(empty, index=table.index, dtype=blank[name].dtype)
    return table


def _read_stays(plan: Layout, account: ReadAccount, timezone: str) -> pd.DataFrame | None:
    """The table of stays; rows without identity, and repeated ones, are counted."""
    if plan.stays is None:
        return None
    named = {theirs: f"[encounters.columns] {ours}" for ours, theirs in plan.stay_columns.items()}
    pieces = list(_stream(plan.stays, list(plan.stay_columns.values()), named))
    raw = (
        pd.concat(pieces, ignore_index=True)
        if pieces
        else pd.DataFrame(columns=list(plan.stay_columns.values()))
    )
    account.rows["encounters"] += len(raw)
    table = pd.DataFrame({o: _stay_column(o, raw[t], timezone) for o, t in plan.stay_columns.items()})
    blank = no_encounters()
    blank["hospital_discharge_time"] = pd.Series(dtype=UTC_US)
    table = _known_later(_completed(table, blank), raw, plan, timezone)
    unnamed = (table["encounter_id"] == "") | (table["subject_id"] == "")
    repeated = table["encounter_id"].duplicated() & ~unnamed
    account.leave("encounters", "no_identity", int(unnamed.sum()))
    account.leave("encounters", "repeated", int(repeated.sum()))
    return table[~unnamed & ~repeated].reset_index(drop=True)


def _known_later(table: pd.DataFrame, raw: pd.DataFrame, plan: Layout, timezone: str) -> pd.DataFrame:
    """Admissions at the instant they were known; ``begin`` is from when on facts belong to the stay.

    Of a bare date nobody knew before that day was over, or the stay, or, of the hospital, before intensive care began.
    """
    begin, left, known = table["hospital_admission_time"], table["hospital_discharge_time"], {}
    for name in ("hospital_admission_time", "icu_admission_time"):
        time, seen = table[name], table[name]
        if name in plan.stay_columns:
            seen = _latest(raw[plan.stay_columns[name]], timezone)
        known[name] = seen.where(~((left < seen) & (left >= time)), left)
    admitted, icu = known["hospital_admission_time"], known["icu_admission_time"]
    moved = (icu >= begin) & (icu < admitted)
    return table.assign(begin=begin, **known).assign(hospital_admission_time=admitted.where(~moved, icu))


def _stay_column(ours: str, column: pd.Series, timezone: str) -> pd.Series:
    if ours == "hospital_discharge_time":
        return _latest(column, timezone)
    if ours.endswith("_time"):
        return _times(column, timezone)[0]
    if ours == "age_years":
        return pd.to_numeric(column, errors="coerce").astype("float64")
    words = _texts(column)
    if ours == "sex":
        return words.str.lower().map(SEXES).fillna("").astype("str")
    return words.str.lower() if ours in ("encounter_class", "icu_type") else words


def _batched(
    piece: pd.DataFrame, plan: Layout, book: _Book, account: ReadAccount, timezone: str, file: str, first: int
) -> Iterator[Batch]:
    """One batch of a long piece; of a wide one, one batch a column, so that memory does not grow with its width."""
    rows = _placed(_rows(piece, plan, timezone, file, first), book, account)
    piece = piece.loc[rows.index]
    if not plan.wide:
        yield from _yielded(_long(rows, piece, plan, account), book, account)
        return
    made = pd.Series(False, index=rows.index)
    for column, about in plan.codes.items():
        events = _wide(rows, piece[column], column, about)
        made.loc[events.index] = True
        yield from _yielded(events, book, account)
    account.leave(TABLE, "no_value", int((~made).sum()))


def _yielded(events: pd.DataFrame, book: _Book, account: ReadAccount) -> Iterator[Batch]:
    if len(events):
        account.events[TABLE] += len(events)
        book.meet(events)
        yield Batch(no_encounters(), events.reset_index(drop=True))


def _rows(piece: pd.DataFrame, plan: Layout, timezone: str, file: str, first: int) -> pd.DataFrame:
    """Whose, when and how sure, of each row; ``reason`` says why a row cannot be used."""
    piece.reset_index(drop=True, inplace=True)

    def words(name: str) -> pd.Series:
        theirs = plan.columns.get(name)
        return _texts(piece[theirs]) if theirs else pd.Series("", index=piece.index, dtype="str")

    time, bare = _times(piece[plan.columns["time"]], timezone)
    said = plan.columns.get("available_time")
    nothing = pd.Series(pd.NaT, index=piece.index, dtype=UTC_US)
    told = _latest(piece[said], timezone) if said else nothing
    # One who knew before it happened did not: when it was visible is as good as unsaid.
    told = told.where(told >= time)
    # What happened on some day, at no known hour, can have been known the next day only.
    tomorrow = _next_day(time, timezone)
    told = told.where(~(bare & told.isna()), tomorrow)
    status = words("status").str.lower().map(STATUSES)
    identity = words("source_id")
    row = pd.Series(np.arange(first + 1, first + 1 + len(piece)), index=piece.index).astype("str")
    frame = pd.DataFrame(
        {
            "subject_id": words("subject_id"),
            "encounter_id": words("encounter_id"),
            "time": time,
            "available_time": told.astype(UTC_US),
            "status": status.astype("str"),
            "source_id": identity.where(identity != "", file + row),
        }
    )
    reason = pd.Series("", index=piece.index, dtype="str")
    reason = reason.mask(status.isna(), "unknown_status").mask(time.isna(), "no_time")
    return frame.assign(reason=reason.mask(frame["subject_id"] == "", "no_subject"))


def _placed(rows: pd.DataFrame, book: _Book, account: ReadAccount) -> pd.DataFrame:
    """The rows that can be used, each with its encounter; the others are counted."""
    encounter, reason = rows["encounter_id"].copy(), rows["reason"]
    searched = (encounter == "") & (reason == "")
    if searched.any() and book.begins:
        who = rows.loc[searched]
        found = [book.at(s, int(t)) for s, t in zip(who["subject_id"], _micros(who["time"]), strict=True)]
        encounter.loc[searched] = found
    if book.given is not None:
        owner = encounter.map(book.subject)
        reason = reason.mask((reason == "") & (encounter != "") & owner.isna(), "no_encounter")
        stranger = owner.notna() & (owner != rows["subject_id"])
        reason = reason.mask((reason == "") & stranger, "encounter_of_another_subject")
    reason = reason.mask((reason == "") & (encounter == ""), "no_encounter")
    _count(reason, account)
    return rows.assign(encounter_id=encounter)[reason == ""]


def _count(reason: pd.Series, account: ReadAccount) -> None:
    for why, lost in reason[reason != ""].value_counts().to_dict().items():
        account.leave(TABLE, str(why), int(lost))


def _long(rows: pd.DataFrame, piece: pd.DataFrame, plan: Layout, account: ReadAccount) -> pd.DataFrame:
    """One event a row; rows without a code or a value are counted."""
    theirs, place = np.unique(_texts(piece[plan.columns["code"]]).to_numpy(dtype=object), return_inverse=True)
    about = [_meaning(str(code), plan) for code in theirs]
    named = np.array(about, dtype=object).reshape(-1, 3)[place]
    unit = _texts(piece[plan.columns["unit"]]) if "unit" in plan.columns else pd.Series("", index=piece.index)
    unit = unit.map(lambda u: plan.units.get(u, u))
    unit = unit.where(unit != "", pd.Series(named[:, 2], index=unit.index))
    value, words = _values(piece[plan.columns["value"]])
    events = _events(rows, named[:, 0], named[:, 1], unit, value, words)
    valueless = events["numeric_value"].isna() & events["text_value"].isna() & (events["status"] != "deleted")
    reason = pd.Series("", index=events.index, dtype="str").mask(valueless, "no_value")
    reason = reason.mask(events["code"] == "", "no_code")
    _count(reason, account)
    return events[reason == ""]


def _meaning(theirs: str, plan: Layout) -> tuple[str, str, str]:
    if not theirs:
        return "", "", ""
    return plan.codes.get(theirs) or (theirs if "//" in theirs else f"{plan.system}//{theirs}", "", "")


def _wide(rows: pd.DataFrame, column: pd.Series, name: str, about: tuple[str, str, str]) -> pd.DataFrame:
    """The events of one column, those of empty cells left out."""
    value, words = _values(column)
    filled = value.notna() | (words != "")
    here = rows[filled]
    events = _events(here, *about, value[filled], words[filled])
    return events.assign(source_id=here["source_id"] + f"#{name}")


def _events(
    rows: pd.DataFrame, code: Any, concept: Any, unit: Any, value: pd.Series, words: pd.Series
) -> pd.DataFrame:
    code, concept, unit = (pd.Series(x, index=rows.index, dtype="str") for x in (code, concept, unit))
    known = ("subject_id", "encounter_id", "time", "available_time", "status", "source_id")
    return event_table(
        **{name: rows[name] for name in known},
        code=code,
        concept=concept,
        unit=unit.where(unit != "", None),
        numeric_value=value,
        text_value=words.where(words != "", None),
    )


def _texts(column: pd.Series) -> pd.Series:
    """Cells as text without the blanks around it; whole numbers without a decimal point, nothing as empty."""
    if pd.api.types.is_float_dtype(column.dtype):
        whole = column.dropna()
        if (whole == whole.round()).all():
            column = column.astype("Int64")
    return column.astype("str").where(column.notna(), "").str.strip()


def _values(column: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Numbers, and the words beside or instead of them: ``<0.3`` is both."""
    if pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
        value = column.astype("float64")
        return value.where(np.isfinite(value)), pd.Series("", index=column.index, dtype="str")
    words = _texts(column)
    value = pd.to_numeric(words, errors="coerce").astype("float64")
    value = value.where(np.isfinite(value))
    odd = words[value.isna() & (words != "")]
    limits = odd.map(lambda w: number(w)[0]).astype("float64")
    value.loc[limits.index] = limits
    return value, words.where(words.index.isin(odd.index), "")


def _times(column: pd.Series, timezone: str) -> tuple[pd.Series, pd.Series]:
    """Instants in UTC, NaT for what is no time; and which of them are bare dates."""
    never = pd.Series(False, index=column.index)
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return column.astype(UTC_US), never
    if column.dtype.kind == "M":
        return _localised(column, timezone), never
    words = _texts(column)
    bare = words.str.fullmatch(r"\d{4}-\d{2}-\d{2}")
    offset = words.str.contains(r"[T ]\d{2}:?\d{2}.*(?:[Zz]|[+-]\d{2}:?\d{2})$", regex=True)
    instants = pd.Series(pd.NaT, index=column.index, dtype=UTC_US)
    if offset.any():
        aware = pd.to_datetime(words[offset], errors="coerce", utc=True, format="ISO8601")
        instants.loc[aware.index] = aware.astype(UTC_US)
    local = (words != "") & ~offset
    if local.any():
        wall = pd.to_datetime(words[local], errors="coerce", format="ISO8601")
        instants.loc[wall.index] = _localised(wall, timezone)
    return instants, bare


def _latest(column: pd.Series, timezone: str) -> pd.Series:
    """Instants in UTC; of a bare date the midnight that ends it, since nobody can have been sure before."""
    instants, bare = _times(column, timezone)
    return instants.where(~bare, _next_day(instants, timezone))


def _localised(wall: pd.Series, timezone: str) -> pd.Series:
    """Wall-clock times to UTC: the first of two equal hours; the hour that is skipped moves forward."""
    first = np.ones(len(wall), dtype=bool)
    local: pd.Series = wall.dt.tz_localize(zone(timezone), ambiguous=first, nonexistent="shift_forward")
    return local.astype(UTC_US)


def _next_day(time: pd.Series, timezone: str) -> pd.Series:
    """The midnight that ends the local day of each instant."""
    days = time.dt.tz_convert(zone(timezone)).dt.tz_localize(None).dt.normalize()
    return _localised(days + pd.Timedelta(days=1), timezone)
