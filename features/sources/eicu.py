"""eICU Collaborative Research Database 2.0 tables become encounters and events. Pollard et al., Sci Data 2018;5:180178.

An encounter is a unit stay (``patientunitstayid``), a subject a ``uniquepid``. The data carry no dates: times are
minutes from unit admission, which is set to 2000-01-01T00:00Z for every stay. Stays of one person therefore lie over
each other; their order is not known here. Rows name their stay, so nothing is assigned by time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from features.clock import HOUR_US, MINUTE_US
from features.concepts.drugs import antimicrobial
from features.errors import DataError
from features.events import NAT
from features.sources.batch import ROWS, Batch, ReadAccount, Say, quiet
from features.sources.infusions import Weights, concepts_of, weighed
from features.sources.stays import (
    Floats,
    Ints,
    Masks,
    Seen,
    Stays,
    categories,
    coded,
    emit,
    facts,
    identity,
    marked,
    micros_of,
    only_where,
    settle,
    since,
    spread,
    stacked,
    systemic,
)
from features.sources.tables import Kind, Tables, leave

ADMISSION_US: Final = 946_684_800_000_000
"""2000-01-01T00:00Z, the unit admission of every stay."""
OPEN_US: Final = 366 * 24 * HOUR_US
"""How far before and after its admission rows belong to a stay of which nobody tells when it began and ended."""
OLDEST: Final = 90.0
"""Years given to patients written as ``> 89``."""
STAY: Final = "patientunitstayid"
STEPDOWN: Final = "stepdown/other"

PATIENT: Final[dict[str, Kind]] = {
    STAY: "id", "uniquepid": "id", "gender": "text", "age": "text", "hospitalid": "id", "unittype": "text",
    "unitstaytype": "text", "hospitaladmitoffset": "number", "hospitaldischargeoffset": "number",
    "hospitaldischargestatus": "text", "unitdischargeoffset": "number", "unitdischargelocation": "text",
    "unitdischargestatus": "text", "admissionweight": "number", "admissionheight": "number",
    "dischargeweight": "number",
}  # fmt: skip
OPTIONAL: Final = ("unitstaytype", "admissionweight", "admissionheight", "dischargeweight")
READ: Final = (
    "vitalperiodic", "vitalaperiodic", "lab", "respiratorycharting", "nursecharting", "intakeoutput", "infusiondrug",
    "medication", "treatment", "microlab",
)  # fmt: skip
"""The tables of events, each row of which names its stay."""

DESTINATIONS: Final = {
    "floor": "ward", "acute care/floor": "ward", "telemetry": "ward", "step-down unit (sdu)": "stepdown",
    "icu": "icu", "other icu": "icu", "operating room": "procedural", "other internal": "other", "other": "other",
}  # fmt: skip
"""Where a patient goes from the unit, by unitdischargelocation; any other destination is out of the hospital."""
UNIT_TYPES: Final = {"MICU": "medical", "SICU": "surgical"}
APERIODIC: Final = (
    "noninvasivesystolic", "noninvasivediastolic", "noninvasivemean", "paop", "cardiacoutput", "cardiacinput", "svr",
    "svri", "pvr", "pvri",
)  # fmt: skip
PERIODIC: Final = (
    "temperature", "sao2", "heartrate", "respiration", "cvp", "etco2", "systemicsystolic", "systemicdiastolic",
    "systemicmean", "pasystolic", "padiastolic", "pamean", "st1", "st2", "st3", "icp",
)  # fmt: skip
NO_ORGANISM: Final = frozenset({"no growth"})
AT_ONCE: Final = ROWS // 8
"""Rows read at once of tables whose row makes an event for each of many cells."""


@dataclass
class _Reading:
    tables: Tables
    account: ReadAccount
    say: Say
    stays: Stays
    patients: pd.DataFrame
    weights: Weights = field(default_factory=Weights)

    def has(self, table: str) -> bool:
        if not self.tables.has(table):
            self.account.note(f"Table {table} is not there: nothing of it was read.")
        return self.tables.has(table)

    def rows(
        self, table: str, columns: dict[str, Kind], offset: str, entered: str | None = None, rows: int = ROWS
    ) -> Iterator[pd.DataFrame]:
        """The table piece by piece, with ``time`` and, from ``entered``, ``available``."""
        asked: dict[str, Kind] = {STAY: "id", **columns, offset: "number"}
        asked |= {entered: "number"} if entered else {}
        optional = tuple(c for c, kind in columns.items() if kind == "number") + (
            (entered,) if entered else ()
        )
        for frame in self.tables.stream(
            table, asked, optional=optional, rows=rows, account=self.account, say=self.say
        ):
            yield frame.assign(time=instants(frame[offset]), available=instants(frame[entered or offset]))

    def settled(self, frame: pd.DataFrame, table: str) -> tuple[pd.DataFrame, Ints]:
        place = self.stays.place(frame[STAY])
        return settle(frame, place, self.stays, self.account, table, time="time")


def batches(
    path: Path,
    account: ReadAccount,
    *,
    timezone: str = "UTC",
    mapping: object = None,
    say: Say = quiet,
) -> Iterator[Batch]:
    """Encounters and events of a folder of eICU tables.

    Parameters
    ----------
    path : Path
        Folder of Parquet, CSV or CSV.GZ files. What is missing is noted. Without ``patient``, as in the subsets that
        courses and packages pass on, stays are those that the other tables name, each a person of its own of whom
        neither age nor sex nor the end is known.
    account : ReadAccount
        Filled as reading goes on.
    timezone : str
        Not used: eICU has no dates.
    mapping : None
        eICU needs none.
    say : callable
        Told the rows read.

    Raises
    ------
    DataError
        A table cannot be read or lacks a column; says which.
    """
    if mapping is not None:
        raise DataError("eICU tables need no mapping file. Leave it out.")
    tables = Tables(Path(path))
    if not tables.has("patient") and not any(tables.has(name) for name in READ):
        tables.require("patient")
    reading = _reading(tables, account, say)
    yield from reading.stays.batches()
    yield from _milestones(reading)
    for table, columns in (("vitalperiodic", PERIODIC), ("vitalaperiodic", APERIODIC)):
        if reading.has(table):
            yield from _vitals(reading, table, columns)
    yield from _laboratory(reading)
    yield from _charted(
        reading, "respiratorycharting", "EICU_RESPIRATORY", "respchart", "respchartvaluelabel"
    )
    yield from _nursing(reading)
    # After whatever may hold a weight: rates per kilogram need one.
    yield from _balance(reading)
    yield from _infusions(reading)
    yield from _medication(reading)
    yield from _treatment(reading)
    yield from _cultures(reading)


def instants(minutes: pd.Series) -> pd.Series:
    """``datetime64[us, UTC]`` of minutes from unit admission; NaT where there is no number, or an impossible one."""
    offset = minutes.to_numpy(dtype=np.float64)
    known = np.abs(offset) < 1e8
    micros = np.where(known, np.where(known, offset, 0) * MINUTE_US + ADMISSION_US, NAT)
    return since(micros.astype(np.int64)).set_axis(minutes.index)


def ages(words: pd.Series) -> Floats:
    """Years by the age column, where patients over 89 are written as ``> 89``."""
    years = pd.to_numeric(words, errors="coerce").to_numpy(dtype=np.float64)
    return np.where(words.str.strip().str.startswith(">").fillna(False).to_numpy(bool), OLDEST, years)


def _reading(tables: Tables, account: ReadAccount, say: Say) -> _Reading:
    described = tables.has("patient")
    found = _described(tables, account, say) if described else _only_named(tables, account)
    unit_end, hospital_start, hospital_end = (
        instants(found[c]) for c in ("unitdischargeoffset", "hospitaladmitoffset", "hospitaldischargeoffset")
    )
    stepdown = found["unitstaytype"].str.lower().eq(STEPDOWN).to_numpy(bool)
    admitted = since(np.full(len(found), ADMISSION_US))
    site = "hospital " + found["hospitalid"].fillna("?") + ", " + found["unittype"].fillna("unit unknown")
    encounters = pd.DataFrame(
        {
            "encounter_id": found[STAY],
            "subject_id": found["uniquepid"],
            "encounter_class": np.where(stepdown, "ward", "icu"),
            "unit": site,
            "specialty": "",
            "age_years": ages(found["age"]),
            "sex": found["gender"].str.lower().where(lambda g: g.isin(["male", "female"]), ""),
            "icu_type": found["unittype"].map(UNIT_TYPES).fillna(""),
            "hospital_admission_time": hospital_start,
            "icu_admission_time": admitted.where(~stepdown),
        }
    )
    account.note("eICU has no dates: unit admission is 2000-01-01T00:00Z for every stay.")
    if described:
        account.note(f"Patients over 89 have a hidden age in eICU: {OLDEST:.0f} years stand for it.")
        account.note("Stays of the type stepdown/other are not intensive care: their class is ward.")
    start = np.minimum(np.where(hospital_start.isna(), ADMISSION_US, micros_of(hospital_start)), ADMISSION_US)
    end = np.maximum(micros_of(unit_end), micros_of(hospital_end))
    open_us = 0 if described else OPEN_US
    stays = Stays(encounters, start - open_us, np.maximum(end, ADMISSION_US + open_us))
    times = {
        "admitted": admitted,
        "unit_end": unit_end,
        "hospital_start": hospital_start,
        "hospital_end": hospital_end,
    }
    return _Reading(tables, account, say, stays, found.assign(**times, stepdown=stepdown))


def _described(tables: Tables, account: ReadAccount, say: Say) -> pd.DataFrame:
    """The stays of the table ``patient``."""
    found = tables.whole("patient", PATIENT, optional=OPTIONAL, account=account, say=say)
    nameless = found[STAY].isna() | found["uniquepid"].isna()
    found = leave(found, nameless, account, "patient", "no_encounter").reset_index(drop=True)
    if not len(found):
        raise DataError("Table patient holds no stay with patientunitstayid and uniquepid.")
    return found


def _only_named(tables: Tables, account: ReadAccount) -> pd.DataFrame:
    """The stays that the tables of events name, with nothing known of them."""
    names = set[str]()
    for table in filter(tables.has, READ):
        for frame in tables.stream(table, {STAY: "id"}):
            names |= set(frame[STAY].dropna().unique())
    if not names:
        raise DataError("No table names a stay in patientunitstayid.")
    account.note(
        "Table patient is not there: stays are those that other tables name, each of a person of its own, "
        "without age, sex or end."
    )
    nothing = {
        c: pd.Series(np.nan, range(len(names)), object if k != "number" else float)
        for c, k in PATIENT.items()
    }
    found = pd.DataFrame(nothing).assign(**{STAY: sorted(names), "uniquepid": sorted(names)})
    return found.astype({c: "str" for c, kind in PATIENT.items() if kind != "number"})


def _milestones(reading: _Reading) -> Iterator[Batch]:
    """Admissions, where patients went from the unit, discharges and deaths; weights and heights."""
    for first in range(0, len(reading.patients), AT_ONCE):
        about = reading.patients.iloc[first : first + AT_ONCE]
        events = stacked([*_moves(reading, about), *_body(reading, about)])
        yield from emit(events, reading.account, "patient")


def _moves(reading: _Reading, about: pd.DataFrame) -> list[pd.DataFrame]:
    died = {
        stay: about[f"{stay}dischargestatus"].str.lower().eq("expired").to_numpy(bool)
        for stay in ("unit", "hospital")
    }
    death = about["unit_end"].where(died["unit"], about["hospital_end"].where(died["hospital"]))
    goes = about["unitdischargelocation"].str.lower().map(DESTINATIONS).fillna("left")
    goes = goes.where(about["unitdischargelocation"].notna(), "other").mask(died["unit"], "left")
    here = pd.Series(np.where(about["stepdown"], "stepdown", "icu"), index=about.index)
    gone = pd.Series("left", index=about.index)
    return [
        _moment(reading, about["hospital_start"], "hospital_admission"),
        _moment(reading, about["admitted"], "location", here, "#unit"),
        _moment(reading, about["unit_end"], "location", goes, "#next"),
        _moment(reading, about["unit_end"].where(~about["stepdown"]), "icu_discharge"),
        _moment(reading, about["hospital_end"], "location", gone, "#left"),
        _moment(reading, about["hospital_end"], "hospital_discharge"),
        _moment(reading, death, "death"),
    ]


def _moment(
    reading: _Reading, when: pd.Series, concept: str, where: pd.Series | None = None, suffix: str = ""
) -> pd.DataFrame:
    """One event at each instant that is known: of value 1, or of the word for where a patient is."""
    known = when.notna().to_numpy()
    some = when[known]
    return facts(
        reading.stays,
        some.index.to_numpy(),
        time=some,
        available=some,
        code=f"WARDCAST//{concept}",
        value=None if where is not None else 1.0,
        text=None if where is None else where[known],
        source_id=identity("patient", some.to_frame(), None, suffix),
    )


BODY: Final = (
    ("admissionweight", "weight", "kg", "admitted"),
    ("dischargeweight", "weight", "kg", "unit_end"),
    ("admissionheight", "height", "cm", "admitted"),
)
"""Column of patient, concept, unit as documented, and when it holds."""


def _body(reading: _Reading, about: pd.DataFrame) -> list[pd.DataFrame]:
    parts = []
    for column, concept, unit, time in BODY:
        some = about[(about[column].notna() & about[time].notna()).to_numpy()]
        place, value = some.index.to_numpy(), some[column].to_numpy()
        if concept == "weight":
            reading.weights.add(place, micros_of(some[time]), value)
        parts.append(
            facts(
                reading.stays,
                place,
                time=some[time],
                available=some[time],
                code=f"EICU_PATIENT//{column}",
                concept=concept,
                value=value,
                unit=unit,
                source_id=identity("patient", some, None, f"#{column}"),
            )
        )
    return parts


def _vitals(reading: _Reading, table: str, columns: tuple[str, ...]) -> Iterator[Batch]:
    """One event a filled cell of vitalPeriodic (every five minutes) or vitalAperiodic."""
    key = f"{table}id"
    present = [c for c in columns if c in reading.tables.columns(table)]
    meanings = {column: (f"EICU_VITAL//{column}", "", "") for column in present}
    asked: dict[str, Kind] = {key: "key", **dict.fromkeys(present, "number")}
    for frame in reading.rows(table, asked, "observationoffset", rows=AT_ONCE):
        frame, place = reading.settled(frame, table)
        who = identity(table, frame, key)
        events = spread(
            frame, reading.stays, place, reading.account, table, meanings, time=frame["time"], source_id=who
        )
        yield from emit(events, reading.account, table)


def _laboratory(reading: _Reading) -> Iterator[Batch]:
    """Events of lab; a result is visible when it was last revised, which for most is when it was first reported.

    One in five has the same time for sample and revision: nobody said when the result came, so the policy decides.
    """
    table = "lab"
    if not reading.has(table):
        return
    columns: dict[str, Kind] = {
        "labid": "key", "labname": "text", "labresult": "number", "labresulttext": "text",
        "labmeasurenamesystem": "text",
    }  # fmt: skip
    for frame in reading.rows(table, columns, "labresultoffset", "labresultrevisedoffset"):
        silent = (frame["labresult"].isna() & frame["labresulttext"].isna()).to_numpy()
        frame = leave(frame, silent, reading.account, table, "no_value")
        frame = leave(frame, frame["labname"].isna(), reading.account, table, "no_code")
        frame, place = reading.settled(frame, table)
        events = facts(
            reading.stays,
            place,
            time=frame["time"],
            available=frame["available"].where(frame["available"] > frame["time"]),
            code=coded("EICU_LAB", frame["labname"]),
            value=frame["labresult"].to_numpy(),
            text=only_where(frame["labresulttext"], frame["labresult"].isna()),
            unit=frame["labmeasurenamesystem"],
            source_id=identity(table, frame, "labid"),
        )
        yield from emit(events, reading.account, table)


def read_numbers(words: pd.Series) -> tuple[Floats, pd.Categorical[Any]]:
    """Numbers written as words, and the unit of those written with a percent sign; each word is read once."""
    labels = pd.Series(words.cat.categories, dtype="str")
    percent = labels.str.strip().str.endswith("%").to_numpy(bool)
    numbers = pd.to_numeric(labels.str.strip().str.rstrip("%").str.strip(), errors="coerce").to_numpy(
        np.float64
    )
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    code = words.cat.codes.to_numpy(np.int64)
    unit = np.append(np.where(percent & ~np.isnan(numbers), 0, -1), -1)
    return np.append(numbers, np.nan)[code], categories(unit[code], pd.Index(["%"], dtype="str"))


def _charted(reading: _Reading, table: str, system: str, prefix: str, label: str) -> Iterator[Batch]:
    """Events of a table of labels and written values: a number where it is one, else the words."""
    if not reading.has(table):
        return
    columns: dict[str, Kind] = {f"{prefix}id": "key", label: "text", f"{prefix}value": "text"}
    for frame in reading.rows(table, columns, f"{prefix}offset", f"{prefix}entryoffset"):
        yield from _written(reading, frame, table, system, label, prefix)


def _nursing(reading: _Reading) -> Iterator[Batch]:
    """Events of nurseCharting, named by what was charted: ``valname``, or the label where that only says Value."""
    table, label, name = "nursecharting", "nursingchartcelltypevallabel", "nursingchartcelltypevalname"
    if not reading.has(table):
        return
    columns: dict[str, Kind] = {
        "nursingchartid": "key",
        label: "text",
        name: "text",
        "nursingchartvalue": "text",
    }
    for frame in reading.rows(table, columns, "nursingchartoffset", "nursingchartentryoffset"):
        general = frame[name].astype("str").str.lower().isin(["value", "nan"]) | frame[name].isna()
        named = frame[name].astype("str").mask(general, frame[label].astype("str"))
        frame = frame.assign(**{label: named.astype("category")})
        yield from _written(reading, frame, table, "EICU_NURSE", label, "nursingchart")


def _written(
    reading: _Reading, frame: pd.DataFrame, table: str, system: str, label: str, prefix: str
) -> Iterator[Batch]:
    frame = leave(frame, frame[label].isna(), reading.account, table, "no_code")
    frame = leave(frame, frame[f"{prefix}value"].isna(), reading.account, table, "no_value")
    frame, place = reading.settled(frame, table)
    value, unit = read_numbers(frame[f"{prefix}value"])
    events = facts(
        reading.stays,
        place,
        time=frame["time"],
        available=frame["available"],
        code=coded(system, frame[label]),
        value=value,
        text=only_where(frame[f"{prefix}value"], np.isnan(value)),
        unit=unit,
        source_id=identity(table, frame, f"{prefix}id"),
    )
    reading.weights.add_events(events, place)
    yield from emit(events, reading.account, table)


def _balance(reading: _Reading) -> Iterator[Batch]:
    """Events of intakeOutput: volumes in and out, and body weights, each cell by its label."""
    table = "intakeoutput"
    if not reading.has(table):
        return
    columns: dict[str, Kind] = {"intakeoutputid": "key", "celllabel": "text", "cellvaluenumeric": "number"}
    for frame in reading.rows(table, columns, "intakeoutputoffset", "intakeoutputentryoffset"):
        frame = leave(frame, frame["celllabel"].isna(), reading.account, table, "no_code")
        frame = leave(frame, frame["cellvaluenumeric"].isna(), reading.account, table, "no_value")
        frame, place = reading.settled(frame, table)
        events = facts(
            reading.stays,
            place,
            time=frame["time"],
            available=frame["available"],
            code=coded("EICU_IO", frame["celllabel"]),
            value=frame["cellvaluenumeric"].to_numpy(),
            source_id=identity(table, frame, "intakeoutputid"),
        )
        reading.weights.add_events(events, place)
        yield from emit(events, reading.account, table)


def units_of(names: pd.Series) -> pd.Categorical[Any]:
    """The unit in brackets that ends each drug name: ``Norepinephrine (mcg/kg/min)``; empty brackets say nothing."""
    labels = pd.Series(names.cat.categories, dtype="str")
    said = labels.str.extract(r"\(([^()]*)\)\s*$")[0].fillna("").str.strip()
    place, units = pd.factorize(said)
    units = pd.Index(units, dtype="str")
    place = np.where(np.append(said == "", True), -1, np.append(place, -1))
    return categories(place[names.cat.codes], units)


def _infusions(reading: _Reading) -> Iterator[Batch]:
    """Events of infusionDrug: the rate at each charting, in the unit that the drug's name ends with."""
    table = "infusiondrug"
    if not reading.has(table):
        return
    columns: dict[str, Kind] = {
        "infusiondrugid": "key", "drugname": "text", "drugrate": "text", "patientweight": "number",
    }  # fmt: skip
    for frame in reading.rows(table, columns, "infusionoffset"):
        frame = leave(frame, frame["drugname"].isna(), reading.account, table, "no_code")
        frame = leave(frame, frame["drugrate"].isna(), reading.account, table, "no_value")
        frame, place = reading.settled(frame, table)
        code = pd.Series(coded("EICU_INFUSION", frame["drugname"]), index=frame.index)
        written, _ = read_numbers(frame["drugrate"])
        kg = frame["patientweight"].to_numpy()
        kg = np.where(kg > 0, kg, reading.weights.at(place, micros_of(frame["time"])))
        stated = pd.Series(units_of(frame["drugname"]), index=frame.index)
        rate, unit, weightless = weighed(written, stated, concepts_of(code.array)[1], kg)
        frame = leave(frame, weightless, reading.account, table, "no_weight")
        stay = ~weightless
        events = facts(
            reading.stays,
            place[stay],
            time=frame["time"],
            code=code[stay],
            value=rate[stay],
            text=only_where(frame["drugrate"], np.isnan(rate[stay])),
            unit=unit[stay],
            source_id=identity(table, frame, "infusiondrugid"),
        )
        yield from emit(events, reading.account, table)


def _medication(reading: _Reading) -> Iterator[Batch]:
    """Antibiotic orders; one written after it began is visible from its writing."""
    table = "medication"
    if not reading.has(table):
        return
    columns: dict[str, Kind] = {
        "medicationid": "key", "drugname": "text", "routeadmin": "text", "drugordercancelled": "text",
    }  # fmt: skip
    for frame in reading.rows(table, columns, "drugstartoffset", "drugorderoffset"):
        cancelled = frame["drugordercancelled"].astype("str").str.lower().eq("yes").to_numpy(bool)
        frame = leave(frame, cancelled, reading.account, table, "cancelled")
        frame = leave(frame, frame["drugname"].isna(), reading.account, table, "no_code")
        drug = systemic(frame["drugname"], frame["routeadmin"])
        frame, place = reading.settled(
            leave(frame, ~drug, reading.account, table, "not_antimicrobial"), table
        )
        events = facts(
            reading.stays,
            place,
            time=frame["time"],
            available=frame["available"],
            code=coded("EICU_DRUG", frame["drugname"]),
            concept="antibiotic",
            value=1.0,
            text=frame["drugname"],
            source_id=identity(table, frame, "medicationid"),
        )
        yield from emit(events, reading.account, table)


def _treatment(reading: _Reading) -> Iterator[Batch]:
    """Events of treatment: active at this time, by its path. It has no end, so none is made up."""
    table = "treatment"
    if not reading.has(table):
        return
    columns: dict[str, Kind] = {"treatmentid": "key", "treatmentstring": "text"}
    for frame in reading.rows(table, columns, "treatmentoffset"):
        frame = leave(frame, frame["treatmentstring"].isna(), reading.account, table, "no_code")
        frame, place = reading.settled(frame, table)
        antibiotic = _antibacterial(frame["treatmentstring"])
        events = facts(
            reading.stays,
            place,
            time=frame["time"],
            code=coded("EICU_TREATMENT", frame["treatmentstring"]),
            concept=categories(np.where(antibiotic, 0, -1), pd.Index(["antibiotic"], dtype="str")),
            value=1.0,
            text=only_where(frame["treatmentstring"], antibiotic),
            source_id=identity(table, frame, "treatmentid"),
        )
        yield from emit(events, reading.account, table)


def _antibacterial(paths: pd.Series) -> Masks:
    """Rows that name an antimicrobial under therapeutic medication, not prophylaxis."""
    known = [
        "therapeutic" in path.lower() or "pulmonary|medications|antibacterials" in path.lower()
        for path in paths.cat.categories
    ]
    named = [
        is_therapy and antimicrobial(path.rsplit("|", 1)[-1], None) is not None
        for path, is_therapy in zip(paths.cat.categories, known, strict=True)
    ]
    return np.array([*named, False], dtype=bool)[paths.cat.codes]


def _cultures(reading: _Reading) -> Iterator[Batch]:
    """A culture (and blood culture) once a specimen, a positive one once an organism of it."""
    table = "microlab"
    if not reading.has(table):
        return
    columns: dict[str, Kind] = {"microlabid": "key", "culturesite": "text", "organism": "text"}
    seen = Seen(), Seen()
    for frame in reading.rows(table, columns, "culturetakenoffset"):
        frame = leave(frame, frame["culturesite"].isna(), reading.account, table, "no_code")
        frame, place = reading.settled(frame, table)
        sample = marked(place, micros_of(frame["time"]), frame["culturesite"])
        grown = frame["organism"].astype("str").str.lower()
        grew = (grown.notna() & ~grown.isin(NO_ORGANISM)).to_numpy(bool)
        first = seen[0].new(sample)
        organism = seen[1].new(marked(sample, frame["organism"]), among=grew)
        reading.account.leave(table, "same_specimen", int((~first & ~organism).sum()))
        yield from emit(_cultured(reading, frame, place, first, organism), reading.account, table)


def _cultured(
    reading: _Reading, frame: pd.DataFrame, place: Ints, first: Masks, organism: Masks
) -> pd.DataFrame:
    blood = frame["culturesite"].astype("str").str.lower().str.startswith("blood").to_numpy(bool)
    parts = []
    for rows, concept in (
        (first, "culture"),
        (first & blood, "blood_culture"),
        (organism, "positive_culture"),
    ):
        some = frame[rows]
        parts.append(
            facts(
                reading.stays,
                place[rows],
                time=some["time"],
                code=coded("EICU_SPEC", some["culturesite"]),
                concept=concept,
                value=1.0,
                text=some["organism"] if concept == "positive_culture" else some["culturesite"],
                source_id=identity("microlab", some, "microlabid"),
            )
        )
    return stacked(parts)
