"""MIMIC-III 1.4 tables become encounters and events. Johnson et al., Sci Data 2016;3:160035.

Both bedside systems are read: CareVue (to 2008: ``inputevents_cv``, rates charted hour by hour) and MetaVision (from
2008: ``inputevents_mv``, ``procedureevents_mv``, with start and end). ``labevents`` has no result time, so the policy
of each concept says when a result was visible; so it does for specimens. Prescriptions carry dates only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from features.sources import mimic
from features.sources.batch import ROWS, Batch, ReadAccount, Say, quiet
from features.sources.carevue import Ventilator
from features.sources.infusions import concepts_of, weighed
from features.sources.stays import (
    Floats,
    Ints,
    Masks,
    Stays,
    coded,
    facts,
    identity,
    micros_of,
    since,
    stacked,
)
from features.sources.tables import Tables, leave

HIDDEN_AGE: Final = 89.0
SHIFTED: Final = 150.0
"""Patients over 89 were given a date of birth 300 years before their first admission."""

CAREVUE_UNITS: Final = {
    "mcgkgmin": "mcg/kg/min", "mcgmin": "mcg/min", "mcghr": "mcg/hour", "mgmin": "mg/min", "mghr": "mg/hour",
    "mgkghr": "mg/kg/hour", "mcgkghr": "mcg/kg/hour", "Umin": "units/min", "Uhr": "units/hour", "mlhr": "mL/hour",
    "gmhr": "grams/hour", "mEqhr": "mEq/hour",
}  # fmt: skip
"""How CareVue spells units of rates, and how everybody else does."""
SAMPLE: Final = "50800"
"""The laboratory item that names the sample of a blood gas."""
STOPPED: Final = frozenset({"stopped", "d/c'd"})


def batches(
    path: Path,
    account: ReadAccount,
    *,
    timezone: str = "UTC",
    mapping: object = None,
    say: Say = quiet,
) -> Iterator[Batch]:
    """Encounters and events of a folder of MIMIC-III tables.

    Parameters
    ----------
    path : Path
        Folder of Parquet, CSV or CSV.GZ files. ``admissions`` and ``patients`` must be there; what else is missing is
        noted.
    account : ReadAccount
        Filled as reading goes on.
    timezone : str
        Of the hospital's clocks. Dates were shifted by the publishers, so UTC does no harm.
    mapping : None
        MIMIC needs none.
    say : callable
        Told the rows read.

    Raises
    ------
    DataError
        A table cannot be read or lacks a column; says which.
    """
    tables = mimic.opened(Path(path), mapping, timezone)
    reading = _reading(tables, account, say)
    yield from reading.stays.batches()
    yield from mimic.milestones(reading)
    yield from mimic.whereabouts(reading, "curr_careunit", "row_id", nameless="ward")
    yield from _emergency(reading)
    if reading.has("chartevents"):
        ventilator = Ventilator()
        yield from mimic.measurements(
            reading, "chartevents", "MIMIC_CHART", key="row_id", refused="error", watch=ventilator.watch
        )
        yield from _ventilation(reading, ventilator)
    if reading.has("labevents"):
        samples = mimic.specimens(reading, SAMPLE, {"subject_id": "id", "charttime": "time"})
        yield from mimic.measurements(reading, "labevents", "MIMIC_LAB", key="row_id", samples=samples)
    if reading.has("outputevents"):
        yield from mimic.outputs(reading, key="row_id", refused="iserror")
    # After the charts: rates per kilogram may need a charted weight.
    if reading.has("inputevents_mv"):
        yield from mimic.inputs(reading, "inputevents_mv", key="row_id")
    if reading.has("inputevents_cv"):
        yield from _carevue(reading)
    if reading.has("procedureevents_mv"):
        yield from mimic.procedures(reading, "procedureevents_mv", key="row_id")
    if reading.has("microbiologyevents"):
        yield from mimic.cultures(reading, key="row_id")
    if reading.has("prescriptions"):
        yield from mimic.drugs(
            reading, "prescriptions", name="drug", route="route", time="startdate", key="row_id", by_date=True
        )


def _reading(tables: Tables, account: ReadAccount, say: Say) -> mimic.Reading:
    mimic.name_items(tables, account)
    admissions = mimic.admissions_of(tables, account, say)
    icu_stays = mimic.icu_stays_of(tables, admissions, account, say)
    patients = tables.whole(
        "patients", {"subject_id": "id", "gender": "text", "dob": "time"}, account=account, say=say
    ).drop_duplicates("subject_id")
    of = admissions[["subject_id"]].merge(patients, on="subject_id", how="left")
    account.note(
        f"Patients over 89 have a hidden age in MIMIC-III: {mimic.AGED} years, their median, stands for it."
    )
    specialty = mimic.specialties_of(tables, admissions, account, say)
    age = ages(of["dob"], admissions["admittime"])
    encounters = mimic.encounters_of(admissions, icu_stays, age, of["gender"], specialty)
    return mimic.Reading(
        tables, account, say, Stays(encounters, *mimic.spans(admissions)), admissions, icu_stays
    )


def ages(birth: pd.Series, admitted: pd.Series) -> Floats:
    """Years at admission; whose date of birth was shifted by 300 years is given the median of those over 89."""
    years = (micros_of(admitted) - micros_of(birth)) / mimic.YEAR_US
    known = birth.notna().to_numpy() & (years > -0.01)
    years = np.where(known, np.maximum(years, 0.0), np.nan)
    return np.where(years > SHIFTED, mimic.AGED, years)


def _emergency(reading: mimic.Reading) -> Iterator[Batch]:
    """Registration in the emergency department is a move as well; MIMIC-III transfers begin with the admission."""
    if not reading.tables.has("transfers"):
        return
    when = reading.admissions["edregtime"]
    known = when.notna().to_numpy()
    some = when[known]
    events = facts(
        reading.stays,
        np.flatnonzero(known),
        time=some,
        available=some,
        code="WARDCAST//location",
        text="ed",
        source_id=identity("admissions", some.to_frame(), None, "#ed"),
    )
    yield from reading.emit(events, "admissions")


def _ventilation(reading: mimic.Reading, ventilator: Ventilator) -> Iterator[Batch]:
    """When CareVue's charts say that a ventilator began and ended; MetaVision has it in procedureevents_mv."""
    found = ventilator.states(reading.stays.end)
    reading.account.note(
        "CareVue: a ventilator runs from a mode or setting until oxygen, extubation or 8 h of silence."
    )
    time = since(found.time)
    for first in range(0, len(time), ROWS):
        part = slice(first, first + ROWS)
        when = time.iloc[part]
        events = facts(
            reading.stays,
            found.place[part],
            time=when,
            available=since(found.known[part]),
            code=found.code[part],
            value=found.value[part],
            source_id=identity("ventilation", when.to_frame(), None),
        )
        yield from reading.emit(events, "ventilation")


def _carevue(reading: mimic.Reading) -> Iterator[Batch]:
    """Events of CareVue input: the rate at each charting, 0 where it was stopped; or the amount since the last one."""
    table = "inputevents_cv"
    columns: mimic.Columns = {
        **mimic.OF_A_ROW, "charttime": "time", "storetime": "time", "amount": "number", "amountuom": "text",
        "rate": "number", "rateuom": "text", "stopped": "text", "row_id": "key",
    }  # fmt: skip
    for frame in reading.rows(table, columns, optional=("storetime", "stopped")):
        stopped = frame["stopped"].astype("str").str.lower().isin(STOPPED).to_numpy(bool)
        frame = frame.assign(stopped=stopped, rateuom=respelled(frame["rateuom"]))
        silent = (frame["rate"].isna() & frame["amount"].isna()).to_numpy() & ~stopped
        frame, place = reading.settled(
            leave(frame, silent, reading.account, table, "no_value"), table, "charttime"
        )
        yield from reading.emit(_charted(reading, frame, place), table)


def respelled(units: pd.Series) -> pd.Categorical[str]:
    """CareVue's units of rates as others write them."""
    found = units.array
    labels = pd.Index([CAREVUE_UNITS.get(label, label) for label in found.categories], dtype="str")
    place, words = pd.factorize(labels)
    return pd.Categorical.from_codes(np.append(place, [-1])[found.codes], categories=words)


def _charted(reading: mimic.Reading, frame: pd.DataFrame, place: Ints) -> pd.DataFrame:
    table = "inputevents_cv"
    code = pd.Series(coded("MIMIC_INPUT", frame["itemid"]), index=frame.index)
    _, wanted = concepts_of(code.array)
    kg = reading.weights.at(place, micros_of(frame["charttime"]))
    rate = np.where(frame["stopped"], 0.0, frame["rate"])
    is_rate = ~np.isnan(rate) & ((wanted != "mL") | frame["amount"].isna().to_numpy())
    rate, unit, weightless = weighed(rate, frame["rateuom"], wanted, kg)
    reading.account.leave(table, "no_weight", int((is_rate & weightless).sum()))

    def part(rows: Masks, value: Floats, units: pd.Series, suffix: str) -> pd.DataFrame:
        some = frame[rows]
        return facts(
            reading.stays,
            place[rows],
            time=some["charttime"],
            available=some["storetime"],
            code=code[rows],
            value=value[rows],
            unit=units[rows],
            source_id=identity(table, some, "row_id", suffix),
        )

    # What a pump gave since the last hour says again what its rates said, in a unit that is no rate.
    again = ~is_rate & np.char.endswith(wanted.astype(str), "/min")
    reading.account.leave(table, "amount_of_a_rate", int(again.sum()))
    rates = part(is_rate & ~weightless, rate, unit, "")
    amounts = part(~is_rate & ~again, frame["amount"].to_numpy(), frame["amountuom"], "#amount")
    return stacked([rates, amounts])
