"""The canonical tables: encounters, and events, one row a fact.

Events are MEDS 0.4 (``subject_id, time, code, numeric_value, text_value``) with documented extension columns. A code is
``SYSTEM//code`` as its source wrote it; ``concept`` is ours and is filled by :mod:`features.clean`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import HOUR_US, UTC_US
from features.errors import DataError

EVENT_COLUMNS: Final[dict[str, str]] = {
    "subject_id": "the person; splits and bootstraps keep it whole",
    "encounter_id": "the stay; windows and alerts keep it whole",
    "time": "when it happened at the bedside (collected, charted)",
    "available_time": "when the hospital's systems could have shown it; features gate on this one",
    "code": "the source's own code, SYSTEM//code",
    "concept": "our clinical concept; empty when unmapped",
    "numeric_value": "in the concept's canonical unit after cleaning",
    "text_value": "as the source wrote it",
    "unit": "UCUM; the concept's canonical unit after cleaning",
    "status": "final, corrected, preliminary or deleted",
    "source_id": "identity at the source, for idempotent ingestion and for ties",
}

ENCOUNTER_COLUMNS: Final[dict[str, str]] = {
    "encounter_id": "the stay",
    "subject_id": "the person",
    "encounter_class": "ed, ward or icu: where the patient is now",
    "unit": "the ward, as the hospital calls it",
    "specialty": "the service that looks after the patient",
    "age_years": "age at hospital admission, years",
    "sex": "male, female or empty",
    "icu_type": "medical, surgical or empty",
    "hospital_admission_time": "first hour in the hospital",
    "icu_admission_time": "first hour in intensive care; empty when never there",
}

ENCOUNTER_CONCEPTS: Final = ("age_years", "male", "medical_icu", "icu_admission", "hours_before_icu")
"""What an encounter says of its patient, as concepts."""

TIMES: Final = ("time", "available_time")
NAT: Final = np.iinfo(np.int64).min
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
STATUSES: Final = ("final", "corrected", "preliminary", "deleted")

# What an encounter says about its patient becomes events as well, so that windows read one kind of thing.
# PhysioNet and the live service both come through here.


def empty_events() -> pd.DataFrame:
    """An event table without rows, every column of its right type."""
    kinds: dict[str, Any] = {"time": UTC_US, "available_time": UTC_US, "numeric_value": np.dtype("float64")}
    return pd.DataFrame({c: pd.Series(dtype=kinds.get(c, "str")) for c in EVENT_COLUMNS})


def validate(events: pd.DataFrame) -> pd.DataFrame:
    """Return the events in canonical column order, or say what is wrong with them.

    Raises
    ------
    DataError
        A column is missing or of the wrong type, a time is empty, or a value is infinite. Names the column, the count
        and the remedy; never a value.
    """
    missing = [c for c in EVENT_COLUMNS if c not in events.columns]
    if missing:
        raise DataError(
            f"Event table lacks {', '.join(missing)}. See features/events.py for what each column means."
        )
    for column in TIMES:
        if events[column].dtype != UTC_US:
            raise DataError(
                f"Event column {column!r} is {events[column].dtype}, expected {UTC_US}. "
                "Read it with features.clock.to_utc."
            )
        empty = int(events[column].isna().sum())
        if empty:
            raise DataError(f"{empty:,} of {len(events):,} events have no {column}. Every fact needs one.")
    infinite = int(np.isinf(events["numeric_value"].to_numpy(dtype="float64")).sum())
    if infinite:
        raise DataError(
            f"{infinite:,} of {len(events):,} events have an infinite numeric_value. Send null instead."
        )
    return events[list(EVENT_COLUMNS)]


def encounter_events(encounters: pd.DataFrame) -> pd.DataFrame:
    """Turn what an encounter says of its patient into events: known from arrival, and of the ICU from admission there.

    Parameters
    ----------
    encounters : DataFrame with :data:`ENCOUNTER_COLUMNS`
        ``hospital_admission_time`` and ``icu_admission_time`` as ``datetime64[us, UTC]``.

    Returns
    -------
    DataFrame of events, concepts already set: ``age_years``, ``male`` (1 or 0), ``medical_icu`` (1 or 0),
    ``icu_admission`` (1, at the admission) and ``hours_before_icu`` (hospital to ICU admission). A fact that is
    empty in the encounter makes no event.
    """
    icu = _instants(encounters, "icu_admission_time")
    hospital = _instants(encounters, "hospital_admission_time")
    age = encounters["age_years"].to_numpy(dtype="float64")
    male = _one_hot(encounters["sex"], "male", "female")
    medical = _one_hot(encounters["icu_type"], "medical", "surgical")
    which, place, known, values = encounter_facts(icu, hospital, age, male, medical)
    concept = np.array(ENCOUNTER_CONCEPTS, dtype=object)[place]
    when = pd.Series(pd.DatetimeIndex(known.view("datetime64[us]"), tz="UTC"))
    return pd.DataFrame(
        {
            "subject_id": encounters["subject_id"].take(which).reset_index(drop=True),
            "encounter_id": encounters["encounter_id"].take(which).reset_index(drop=True),
            "time": when,
            "available_time": when,
            "code": "WARDCAST//" + pd.Series(concept),
            "concept": pd.Series(concept),
            "numeric_value": values,
            "text_value": None,
            "unit": None,
            "status": "final",
            "source_id": "encounter",
        }
    )


def encounter_facts(
    icu: Ints, hospital: Ints, age: Floats, male: Floats, medical: Floats
) -> tuple[Ints, Ints, Ints, Floats]:
    """The same on bare arrays, one item an encounter: ``NAT`` or NaN where nobody said, times in microseconds.

    Returns
    -------
    position of the encounter, position in :data:`ENCOUNTER_CONCEPTS`, time and value of each fact.
    """
    in_icu, admitted = icu != NAT, hospital != NAT
    arrived = np.where(admitted & (~in_icu | (hospital < icu)), hospital, icu)
    both = in_icu & admitted
    before = np.where(both, np.where(both, icu - hospital, 0) / HOUR_US, np.nan)
    values = np.array([age, male, medical, np.where(in_icu, 1.0, np.nan), before])
    ward = np.where(in_icu, icu, hospital)
    since = np.array([arrived, arrived, ward, ward, ward])
    concept, which = np.nonzero(~np.isnan(values) & (since != NAT))
    return which, concept, since[concept, which], values[concept, which]


def _instants(table: pd.DataFrame, column: str) -> np.ndarray:
    if table[column].dtype != UTC_US:
        raise DataError(
            f"Encounter column {column!r} is {table[column].dtype}, expected {UTC_US}. "
            "Read it with features.clock.to_utc."
        )
    micros: np.ndarray = table[column].array.asi8
    return micros


def _one_hot(values: pd.Series, one: str, zero: str) -> np.ndarray:
    return np.select([(values == one).to_numpy(bool), (values == zero).to_numpy(bool)], [1.0, 0.0], np.nan)
