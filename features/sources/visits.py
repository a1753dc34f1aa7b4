"""Visits: one row an attendance, from any CSV or Parquet file a hospital can export.

The table is what bed forecasts learn from. A site names its own columns in a mapping; the usual spellings are known.
Nothing is dropped in silence: rows that contradict themselves are set aside and counted by reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from features.clock import UTC_US
from features.errors import DataError
from features.events import ENCOUNTER_COLUMNS, EVENT_COLUMNS, empty_events

VISIT_COLUMNS: Final[dict[str, str]] = {
    "encounter_id": "the attendance",
    "subject_id": "the person",
    "arrival_time": "came through the door (emergency department, or straight to a bed)",
    "decision_time": "decision to admit; empty while there is none",
    "admission_time": "reached a bed; empty while waiting or never admitted",
    "discharge_time": "left the hospital, or the emergency department if never admitted; empty while there",
    "specialty": "service of the admission; empty until decided or never admitted",
    "unit": "where the patient is, as the hospital calls it",
    "age_years": "age at arrival, years",
    "sex": "male, female or empty",
    "arrival_mode": "ambulance, walk-in, transfer, elective or empty",
}
TIMES: Final = ("arrival_time", "decision_time", "admission_time", "discharge_time")
REQUIRED: Final = ("arrival_time", "admission_time", "discharge_time")
OTHER_DOORS: Final = ("elective", "transfer")
"""Arrival modes that do not pass through the emergency department."""

SPELLINGS: Final[dict[str, tuple[str, ...]]] = {
    "encounter_id": ("visit_number", "visit_id", "csn", "encounter", "attendance_id", "hadm_id"),
    "subject_id": ("patient_id", "person_id", "mrn"),
    "arrival_time": ("arrival_datetime", "arrival", "arrived", "ed_arrival", "edregtime"),
    "decision_time": ("decision_to_admit", "decision_datetime", "decision", "dta"),
    "admission_time": ("admission_datetime", "admission", "admitted", "admittime", "bed_time"),
    "discharge_time": (
        "departure_datetime",
        "discharge_datetime",
        "discharge",
        "departure",
        "left",
        "dischtime",
    ),
    "specialty": ("service", "admission_specialty", "treatment_function"),
    "unit": ("ward", "location", "department"),
    "age_years": ("age", "age_on_arrival"),
    "sex": ("gender",),
    "arrival_mode": ("arrival_method", "mode_of_arrival"),
}
"""Other names under which a column is recognised, lower case, when no mapping names it."""


HOSPITAL_COLUMN: Final = "hospital"
"""The column, if there is one, that says whose visit it was; a forecast is of one hospital."""


@dataclass(frozen=True, slots=True)
class VisitAccount:
    """What became of the rows of a file of visits."""

    read: int
    used: int
    reasons: dict[str, int] = field(default_factory=dict)
    """Rows set aside, by reason."""
    repaired: dict[str, int] = field(default_factory=dict)
    """Rows used after a repair, by what was repaired."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column: the column of the file it was read from."""

    def lines(self) -> list[str]:
        """The account in words."""
        said = [f"{self.read:,} visits read, {self.used:,} used."]
        said += [
            f"{n:,} set aside: {reason.replace('_', ' ')}." for reason, n in sorted(self.reasons.items())
        ]
        said += [f"{n:,} repaired: {what.replace('_', ' ')}." for what, n in sorted(self.repaired.items())]
        return said


def read(
    path: Path, names: Mapping[str, str] | None = None, timezone: str = "UTC", hospital: str = ""
) -> tuple[pd.DataFrame, VisitAccount]:
    """Read visits from a CSV or Parquet file.

    Parameters
    ----------
    path : Path
        ``.csv`` (also ``.csv.gz``) or ``.parquet``.
    names : mapping of our column name to the file's, optional
        Only the columns whose spelling is not recognised need naming.
    timezone : str
        Where times without an offset were written down.
    hospital : str
        Which one, where the file has a column ``hospital`` with several.

    Returns
    -------
    visits : DataFrame with :data:`VISIT_COLUMNS`, times ``datetime64[us, UTC]``, sorted by arrival
    account : VisitAccount

    Raises
    ------
    DataError
        The file cannot be read, a required column is missing, or no row is usable. Names the column and the remedy.
    """
    return tidy(_of_hospital(load_table(path), hospital), names, timezone)


def _of_hospital(raw: pd.DataFrame, hospital: str) -> pd.DataFrame:
    """The rows of one hospital; all of them where the file has no such column and none was named."""
    column = next((c for c in raw.columns if str(c).strip().lower() == HOSPITAL_COLUMN), None)
    found = sorted(raw[column].dropna().astype("str").unique()) if column is not None else []
    if not hospital and len(found) < 2:
        return raw
    if hospital not in found:
        named = ", ".join(found[:10]) or "none: there is no column hospital"
        raise DataError(
            f"The file has visits of {len(found)} hospitals ({named}); name one of them with --hospital."
        )
    return raw[raw[column].astype("str") == hospital].reset_index(drop=True)


def tidy(
    raw: pd.DataFrame, names: Mapping[str, str] | None = None, timezone: str = "UTC"
) -> tuple[pd.DataFrame, VisitAccount]:
    """Make a table of visits canonical; parameters and errors as :func:`read`."""
    columns = _columns(raw, dict(names or {}))
    parsed: dict[str, pd.Series] = {}
    reasons: dict[str, pd.Series] = {}
    repaired: dict[str, int] = {}
    for name in VISIT_COLUMNS:
        source = raw[columns[name]].reset_index(drop=True) if name in columns else None
        if name in TIMES:
            parsed[name], bad, moved = instants(source, len(raw), timezone)
            reasons[f"unreadable_{name}"] = bad
            if moved:
                repaired[f"{name}_at_the_change_of_clocks"] = moved
        elif name == "age_years":
            parsed[name] = _numbers(source, len(raw))
        else:
            parsed[name] = _texts(source, len(raw))
    visits = _completed(pd.DataFrame(parsed))
    aside = _contradictions(visits, reasons)
    used = (
        visits[aside == ""]
        .sort_values(["arrival_time", "encounter_id"], kind="stable")
        .reset_index(drop=True)
    )
    counts = {str(k): int(n) for k, n in aside[aside != ""].value_counts().items()}
    if used.empty:
        found = ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.items())) or "the file has no rows"
        raise DataError(
            f"No usable visit among {len(raw):,} rows: {found}. Times are read as ISO 8601, for example "
            "2026-01-12T08:00:00Z."
        )
    return used, VisitAccount(len(raw), len(used), counts, repaired, columns)


def load_table(path: Path) -> pd.DataFrame:
    """A CSV or Parquet file as it stands; texts stay texts.

    Raises
    ------
    DataError
        The file is absent, broken or of another kind.
    """
    if not path.is_file():
        raise DataError(f"No file of visits at {path}. Check the path.")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.name.endswith((".csv", ".csv.gz")):
            return pd.read_csv(path, dtype="str", keep_default_na=True)
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path.name} could not be read ({type(error).__name__}). Is it a whole file?"
        ) from None
    raise DataError(f"{path.name} is neither .csv nor .parquet. Export the visits as one of these.")


def recognised(raw: pd.DataFrame, names: Mapping[str, str] | None = None) -> dict[str, str]:
    """Which of :data:`VISIT_COLUMNS` the table has, and under which name; those of a mapping go first.

    Raises
    ------
    DataError
        The mapping names a column that we do not know, or that the table does not have.
    """
    names = dict(names or {})
    unknown = sorted(set(names) - set(VISIT_COLUMNS))
    if unknown:
        raise DataError(f"The mapping names {', '.join(unknown)}; known are {', '.join(VISIT_COLUMNS)}.")
    absent = sorted(v for v in names.values() if v not in raw.columns)
    if absent:
        raise DataError(f"The mapping reads {', '.join(absent)}, which the file does not have. {_has(raw)}")
    by_lower = {str(c).strip().lower(): str(c) for c in raw.columns}
    found = dict(names)
    for ours in VISIT_COLUMNS:
        for spelling in (ours, *SPELLINGS[ours]):
            if ours not in found and spelling in by_lower:
                found[ours] = by_lower[spelling]
    return found


def _columns(raw: pd.DataFrame, names: dict[str, str]) -> dict[str, str]:
    found = recognised(raw, names)
    missing = [c for c in REQUIRED if c not in found]
    if missing:
        raise DataError(
            f"The visits lack {', '.join(missing)} ({'; '.join(VISIT_COLUMNS[c] for c in missing)}). {_has(raw)} "
            f"Give the columns these names in the export; known besides are {_spelled(missing)}."
        )
    return found


def _spelled(columns: Sequence[str]) -> str:
    return "; ".join(f"{', '.join(SPELLINGS[c])} for {c}" for c in columns)


def _has(raw: pd.DataFrame) -> str:
    shown = ", ".join(str(c) for c in raw.columns[:20])
    return f"It has {shown}{' …' if raw.shape[1] > 20 else ''}."


def instants(source: pd.Series | None, n: int, timezone: str) -> tuple[pd.Series, pd.Series, int]:
    """Instants in UTC; which rows hold something that is no time; how many fell into a change of clocks."""
    nothing = pd.Series(pd.NaT, index=range(n), dtype=UTC_US)
    if source is None:
        return nothing, pd.Series(False, index=range(n)), 0
    if isinstance(source.dtype, pd.DatetimeTZDtype):
        return source.astype(UTC_US), pd.Series(False, index=range(n)), 0
    if source.dtype.kind == "M":
        instants, moved = _localise(source, timezone)
        return instants, pd.Series(False, index=range(n)), moved
    text = source.astype("str").str.strip().where(source.notna(), "")
    filled = text != ""
    offset = with_offset(text)
    instants = nothing.copy()
    if (filled & offset).any():
        aware = pd.to_datetime(text[filled & offset], errors="coerce", utc=True, format="ISO8601")
        instants.loc[aware.index] = aware.astype(UTC_US)
    moved = 0
    if (filled & ~offset).any():
        wall = pd.to_datetime(text[filled & ~offset], errors="coerce", format="ISO8601")
        local, moved = _localise(wall, timezone)
        instants.loc[local.index] = local
    return instants, filled & instants.isna(), moved


def with_offset(text: pd.Series) -> pd.Series:
    """Which texts are times that say their distance from UTC."""
    return text.str.contains(r"(?:[Zz]|[+-]\d{2}:?\d{2})$", regex=True) & text.str.contains(":", regex=False)


def _localise(wall: pd.Series, timezone: str) -> tuple[pd.Series, int]:
    """Wall-clock times to UTC. The hour that comes twice is taken as the first, the one skipped moves forward."""
    zone = ZoneInfo(timezone)
    strict = wall.dt.tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
    moved = int((strict.isna() & wall.notna()).sum())
    first = np.ones(len(wall), dtype=bool)
    return wall.dt.tz_localize(zone, ambiguous=first, nonexistent="shift_forward").astype(UTC_US), moved


def _numbers(source: pd.Series | None, n: int) -> pd.Series:
    if source is None:
        return pd.Series(np.nan, index=range(n), dtype="float64")
    return pd.to_numeric(source, errors="coerce").astype("float64")


def _texts(source: pd.Series | None, n: int) -> pd.Series:
    if source is None:
        return pd.Series("", index=range(n), dtype="str")
    return source.astype("str").where(source.notna(), "").str.strip()


SEXES: Final = {"m": "male", "f": "female", "1": "male", "2": "female"}
MODES: Final = {
    "walk in": "walk-in",
    "walkin": "walk-in",
    "walk": "walk-in",
    "amb": "ambulance",
    "planned": "elective",
}


def _completed(visits: pd.DataFrame) -> pd.DataFrame:
    """Fill what follows from other columns: identities, the decision of who was admitted without one."""
    number = pd.Series(np.arange(len(visits)), index=visits.index).map(lambda k: f"row{k + 1}").astype("str")
    encounter = visits["encounter_id"].where(visits["encounter_id"] != "", number)
    sex = visits["sex"].str.lower()
    mode = visits["arrival_mode"].str.lower()
    return visits.assign(
        encounter_id=encounter,
        subject_id=visits["subject_id"].where(visits["subject_id"] != "", encounter),
        decision_time=visits["decision_time"].fillna(visits["admission_time"]),
        sex=sex.map(SEXES).fillna(sex),
        arrival_mode=mode.map(MODES).fillna(mode),
    )[list(VISIT_COLUMNS)]


def _contradictions(visits: pd.DataFrame, unreadable: dict[str, pd.Series]) -> pd.Series:
    """Why each row cannot be used, empty when it can; the first reason that holds."""
    came, decided = visits["arrival_time"], visits["decision_time"]
    bedded, left = visits["admission_time"], visits["discharge_time"]
    rules = {
        **unreadable,
        "no_arrival_time": came.isna(),
        "discharge_before_arrival": left < came,
        "decision_before_arrival": decided < came,
        "admission_before_arrival": bedded < came,
        "discharge_before_admission": left < bedded,
        "repeated_encounter_id": visits["encounter_id"].duplicated(),
    }
    reason = pd.Series("", index=visits.index, dtype="str")
    for name, holds in rules.items():
        reason = reason.mask(holds.fillna(False).astype(bool) & (reason == ""), name)
    return reason


def known_at(visits: pd.DataFrame, at: datetime) -> pd.DataFrame:
    """The visits as the hospital knew them at ``at``: nothing later than that can be seen in the result.

    Who has not arrived is left out; a time still to come is empty; the specialty is empty until the decision to
    admit, the unit is ``ED`` until a bed is reached (for those who came through the emergency department).
    """
    now = pd.Timestamp(at)
    seen = visits.loc[visits["arrival_time"] <= now].reset_index(drop=True)
    for column in TIMES[1:]:
        seen[column] = seen[column].mask(seen[column] > now)
    waiting = seen["admission_time"].isna()
    seen["specialty"] = seen["specialty"].mask(seen["decision_time"].isna() & waiting, "")
    seen["unit"] = seen["unit"].mask(waiting & through_ed(seen), "ED")
    return seen


def through_ed(visits: pd.DataFrame) -> pd.Series:
    """Who came through the emergency department: everybody but elective patients and transfers."""
    return ~visits["arrival_mode"].isin(OTHER_DOORS)


def visit_events(visits: pd.DataFrame) -> pd.DataFrame:
    """What a visit itself says of its patient, as events: arrival, by ambulance or not, age and sex.

    All are known from the arrival on. Windows read ``ed_arrival`` for the time since arrival.
    """
    mode = visits["arrival_mode"]
    facts: dict[str, Any] = {
        "ed_arrival": np.where(through_ed(visits), 1.0, np.nan),
        "ambulance_arrival": np.where(mode == "ambulance", 1.0, np.where(mode == "", np.nan, 0.0)),
        "age_years": visits["age_years"].to_numpy("float64"),
        "male": np.select([visits["sex"] == "male", visits["sex"] == "female"], [1.0, 0.0], np.nan),
    }
    return _visit_facts(visits, facts) if len(visits) else empty_events()


def _visit_facts(visits: pd.DataFrame, facts: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """One row for each visit and concept with a value, concept by concept."""
    values = np.stack([np.asarray(v, "float64") for v in facts.values()])
    which, row = np.nonzero(~np.isnan(values))
    came = visits["arrival_time"].array[row]
    columns = {
        "subject_id": visits["subject_id"].array[row],
        "encounter_id": visits["encounter_id"].array[row],
        "time": came,
        "available_time": came,
        "code": pd.array([f"WARDCAST//{c}" for c in facts], dtype="str")[which],
        "concept": pd.array(list(facts), dtype="str")[which],
        "numeric_value": values[which, row],
        "text_value": None,
        "unit": None,
        "status": "final",
        "source_id": "visit",
    }
    return pd.DataFrame({c: columns[c] for c in EVENT_COLUMNS}, index=range(len(row)))


def attendance_encounters(visits: pd.DataFrame) -> pd.DataFrame:
    """Visits as :data:`features.events.ENCOUNTER_COLUMNS`: class ``ed`` until a bed is reached, then ``ward``."""
    bedded = visits["admission_time"].notna()
    return visits.assign(
        encounter_class=np.where(bedded | ~through_ed(visits), "ward", "ed"),
        icu_type="",
        hospital_admission_time=visits["arrival_time"],
        icu_admission_time=pd.Series(pd.NaT, index=visits.index, dtype=UTC_US),
    )[list(ENCOUNTER_COLUMNS)]
