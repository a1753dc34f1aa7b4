"""MIMIC-IV tables (``hosp/``, ``icu/`` and, where there, ``ed/``) become encounters and events.

Johnson et al., Sci Data 2023;10:1; MIMIC-IV-ED: Johnson et al., PhysioNet 2023. Releases 2.2 and 3.1 have the same
columns. Charts and laboratory carry their store time, so a result is visible when it was stored, not when the sample
was taken. An attendance in the emergency department that led to no admission is an encounter of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import UTC_US
from features.events import NAT
from features.sources import mimic
from features.sources.batch import ROWS, Batch, ReadAccount, Say, quiet
from features.sources.stays import (
    Floats,
    Ints,
    Stays,
    coded,
    emit,
    facts,
    identity,
    looked_up,
    micros_of,
    next_midnight,
    only_where,
    settle,
    since,
    spread,
    stacked,
)
from features.sources.tables import Tables, leave

GIVEN: Final = {
    "event_txt": frozenset(
        {
            "administered", "administered bolus from iv drip", "administered in other location",
            "delayed administered", "partial administered", "started", "delayed started", "restarted",
            "started in other location", "applied", "delayed applied", "confirmed", "delayed confirmed",
        }
    )
}  # fmt: skip
"""Words of emar.event_txt that say that a dose was given."""

SAMPLE: Final = "52033"
"""The laboratory item that names the sample of a blood gas."""

SIGNS: Final = {
    "temperature": ("MIMIC_ED//temperature", "temperature", "[degF]"),
    "heartrate": ("MIMIC_ED//heartrate", "heart_rate", "/min"),
    "resprate": ("MIMIC_ED//resprate", "respiratory_rate", "/min"),
    "o2sat": ("MIMIC_ED//o2sat", "spo2", "%"),
    "sbp": ("MIMIC_ED//sbp", "sbp", "mm[Hg]"),
    "dbp": ("MIMIC_ED//dbp", "dbp", "mm[Hg]"),
}
"""Columns of triage and vitalsign: code, concept and unit, as MIMIC-IV-ED documents them."""
TRIAGE: Final = {**SIGNS, "acuity": ("MIMIC_ED//acuity", "triage_category", "{score}")}

OMR: Final = {
    "weight (lbs)": ("weight", "[lb_av]"),
    "height (inches)": ("height", "[in_i]"),
}
"""Results of the outpatient record that are one number: concept and unit, as the name says."""
PRESSURE: Final = "blood pressure"
ALONE: Final = "ed-"
"""Before the stay_id of an attendance that led to no admission: such encounters have no hadm_id."""
ED_STAYS: Final[mimic.Columns] = {
    "stay_id": "id", "subject_id": "id", "hadm_id": "id", "intime": "time", "outtime": "time", "gender": "text",
    "arrival_transport": "text",
}  # fmt: skip


def batches(
    path: Path,
    account: ReadAccount,
    *,
    timezone: str = "UTC",
    mapping: object = None,
    say: Say = quiet,
) -> Iterator[Batch]:
    """Encounters and events of a folder of MIMIC-IV tables.

    Parameters
    ----------
    path : Path
        Folder of Parquet, CSV or CSV.GZ files, in ``hosp/``, ``icu/`` and ``ed/`` or side by side. ``admissions`` and
        ``patients`` must be there; what else is missing is noted.
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
    reading, attendances = _reading(tables, account, say)
    yield from reading.stays.batches()
    yield from mimic.milestones(reading)
    yield from mimic.whereabouts(reading, "careunit", "transfer_id", nameless="other")
    if attendances is not None:
        yield from _emergency(reading, attendances)
    if reading.has("omr"):
        yield from _outpatient(reading)
    if reading.has("chartevents"):
        yield from mimic.measurements(reading, "chartevents", "MIMIC_CHART", key=None)
    if reading.has("labevents"):
        samples = mimic.specimens(reading, SAMPLE, {"specimen_id": "id"})
        yield from mimic.measurements(reading, "labevents", "MIMIC_LAB", key="labevent_id", samples=samples)
    if reading.has("outputevents"):
        yield from mimic.outputs(reading, key=None)
    # After the charts: rates per kilogram may need a charted weight.
    if reading.has("inputevents"):
        yield from mimic.inputs(reading, "inputevents", key=None)
    if reading.has("procedureevents"):
        yield from mimic.procedures(reading, "procedureevents", key=None)
    if reading.has("microbiologyevents"):
        yield from mimic.cultures(reading, key="microevent_id", specimen="micro_specimen_id")
    yield from _antibiotics(reading)


def _antibiotics(reading: mimic.Reading) -> Iterator[Batch]:
    """Orders from prescriptions (without them, from pharmacy), and administrations from emar."""
    if reading.has("prescriptions"):
        entered = ("pharmacy_id", _entry_times(reading)) if reading.has("pharmacy") else None
        yield from mimic.drugs(
            reading, "prescriptions", name="drug", route="route", time="starttime", key=None, entered=entered
        )
    elif reading.has("pharmacy"):
        yield from mimic.drugs(
            reading,
            "pharmacy",
            name="medication",
            route="route",
            time="starttime",
            available="entertime",
            key="pharmacy_id",
        )
    if reading.has("emar"):
        yield from mimic.drugs(
            reading,
            "emar",
            name="medication",
            route=None,
            time="charttime",
            available="storetime",
            key="emar_id",
            given=GIVEN,
        )


def _entry_times(reading: mimic.Reading) -> Callable[[pd.Series], pd.Series]:
    """When orders were entered that were entered after they began (one in twelve): a prescription's pharmacy_id to it.

    A prescription says when it begins, not when somebody wrote it; the pharmacy's row of the same order does.
    """
    table = "pharmacy"
    columns: mimic.Columns = {"pharmacy_id": "number", "starttime": "time", "entertime": "time"}
    ids, times = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    for frame in reading.rows(table, columns):
        reading.account.leave(table, "read_for_entry_times", len(frame))
        late = ((frame["entertime"] > frame["starttime"]) & frame["pharmacy_id"].notna()).to_numpy()
        ids.append(frame["pharmacy_id"].to_numpy()[late])
        times.append(micros_of(frame["entertime"])[late])
    key, when = np.concatenate(ids), np.concatenate(times)
    order = np.lexsort((when, key))
    key, when = np.append(key[order], np.inf), np.append(when[order], NAT)

    def entered(pharmacy_ids: pd.Series) -> pd.Series:
        asked = pharmacy_ids.to_numpy()
        place = np.minimum(np.searchsorted(key, asked), len(key) - 1)
        return since(np.where(key[place] == asked, when[place], NAT)).set_axis(pharmacy_ids.index)

    return entered


def _reading(tables: Tables, account: ReadAccount, say: Say) -> tuple[mimic.Reading, pd.DataFrame | None]:
    """All about encounters; and the emergency attendances with their ``place``, where there is such a table."""
    mimic.name_items(tables, account)
    admissions = mimic.admissions_of(tables, account, say)
    attendances = None
    if tables.has("edstays"):
        attendances = tables.whole(
            "edstays", ED_STAYS, optional=("arrival_transport",), account=account, say=say
        )
        nameless = attendances["stay_id"].isna() | attendances["subject_id"].isna()
        attendances = leave(attendances, nameless, account, "edstays", "no_encounter")
        attendances = leave(attendances, attendances["intime"].isna(), account, "edstays", "no_time")
        admissions, attendances = _joined(admissions, attendances)
    icu_stays = mimic.icu_stays_of(tables, admissions, account, say)
    columns: mimic.Columns = {
        "subject_id": "id", "gender": "text", "anchor_age": "number", "anchor_year": "number",
    }  # fmt: skip
    people = tables.whole("patients", columns, account=account, say=say).drop_duplicates("subject_id")
    of = admissions[["subject_id"]].merge(people, on="subject_id", how="left")
    account.note("Ages of MIMIC-IV are whole years; all who were over 89 at their anchor count as 91 there.")
    specialty = mimic.specialties_of(tables, admissions, account, say)
    age = ages(of["anchor_age"], of["anchor_year"], admissions["first"])
    encounters = mimic.encounters_of(admissions, icu_stays, age, of["gender"], specialty)
    waits = _only_emergency(tables, admissions) & (encounters["encounter_class"] != "icu")
    encounters["encounter_class"] = encounters["encounter_class"].mask(waits, "ed")
    stays = Stays(encounters, *mimic.spans(admissions))
    return mimic.Reading(tables, account, say, stays, admissions, icu_stays), attendances


def ages(anchor_age: pd.Series, anchor_year: pd.Series, arrived: pd.Series) -> Floats:
    """Whole years on arrival: the anchor's age, and the years since the anchor's year."""
    years = anchor_age + (arrived.dt.year - anchor_year)
    return np.asarray(years.where(years >= 0).to_numpy(), dtype=np.float64)


def _joined(admissions: pd.DataFrame, attendances: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Admissions that begin with their attendance, those without admission as encounters of their own; and places."""
    own = ~attendances["hadm_id"].isin(admissions["hadm_id"]).to_numpy(bool)
    alone = attendances[own]
    more = pd.DataFrame(
        {
            "hadm_id": ALONE + alone["stay_id"],
            "subject_id": alone["subject_id"],
            "dischtime": alone["outtime"],
            "edregtime": alone["intime"],
            "edouttime": alone["outtime"],
            "first": alone["intime"],
        }
    )
    both = pd.concat([admissions, more], ignore_index=True)
    for column in ("admittime", "deathtime"):
        both[column] = both[column].astype(UTC_US)
    encounter = attendances["hadm_id"].mask(own, ALONE + attendances["stay_id"])
    placed = attendances.assign(place=looked_up(encounter, pd.Index(both["hadm_id"])), alone=own)
    earliest = placed.groupby("place")["intime"].min()
    arrived = earliest.reindex(both.index)
    both["edregtime"] = both["edregtime"].where(both["edregtime"].notna(), arrived)
    both["first"] = both["first"].where(~(arrived < both["first"]), arrived)
    return both, placed.reset_index(drop=True)


def _only_emergency(tables: Tables, admissions: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Encounters that saw no other place than the emergency department and its observation beds."""
    alone = admissions["hadm_id"].str.startswith(ALONE).to_numpy(bool)
    if not tables.has("transfers"):
        return alone
    ed, elsewhere = np.zeros(len(admissions) + 1, dtype=bool), np.zeros(len(admissions) + 1, dtype=bool)
    names = pd.Index(admissions["hadm_id"])
    for frame in tables.stream("transfers", {"hadm_id": "id", "careunit": "text"}):
        place = looked_up(frame["hadm_id"], names)
        where = mimic.located(frame["careunit"], "")
        ed[place[where == "ed"]] = True
        elsewhere[place[~np.isin(where, ("ed", "", "other"))]] = True
    return alone | (ed & ~elsewhere)[:-1]


def _emergency(reading: mimic.Reading, attendances: pd.DataFrame) -> Iterator[Batch]:
    """Arrival, triage and vital signs in the emergency department, and leaving it for home."""
    account, place = reading.account, attendances["place"].to_numpy()
    ambulance = (
        attendances["arrival_transport"].str.upper().map({"AMBULANCE": 1.0, "WALK IN": 0.0}).astype(float)
    )
    parts = [
        _arrivals(reading, attendances, place, "location", text="ed"),
        _arrivals(reading, attendances.assign(value=ambulance), place, "ambulance_arrival"),
    ]
    left = attendances[attendances["alone"] & attendances["outtime"].notna()].assign(
        intime=lambda t: t["outtime"]
    )
    parts.append(_arrivals(reading, left, left["place"].to_numpy(), "location", text="left", suffix="#left"))
    yield from reading.emit(stacked(parts), "edstays")
    index = pd.Index(attendances["stay_id"])
    if reading.has("triage"):
        columns: mimic.Columns = {"stay_id": "id", **dict.fromkeys(TRIAGE, "number")}
        for frame in reading.rows("triage", columns, optional=tuple(TRIAGE), rows=ROWS // 4):
            which = looked_up(frame["stay_id"], index)
            frame = frame.assign(charttime=attendances["intime"].reindex(which).set_axis(frame.index))
            where = np.append(place, -1)[which]
            yield from emit(_signs(reading, frame, where, "triage", TRIAGE), account, "triage")
        account.note("Triage has no time of its own: it is timed at arrival in the emergency department.")
    if reading.has("vitalsign"):
        columns = {"stay_id": "id", "charttime": "time", **dict.fromkeys(SIGNS, "number")}
        for frame in reading.rows("vitalsign", columns, optional=tuple(SIGNS), rows=ROWS // 4):
            where = np.append(place, -1)[looked_up(frame["stay_id"], index)]
            yield from emit(_signs(reading, frame, where, "vitalsign", SIGNS), account, "vitalsign")


def _arrivals(
    reading: mimic.Reading,
    table: pd.DataFrame,
    place: Ints,
    concept: str,
    text: str | None = None,
    suffix: str = "",
) -> pd.DataFrame:
    """One event an attendance, at its ``intime``; of ``value`` where there is no text, and none where that is empty."""
    rows = np.ones(len(table), dtype=bool) if text else table["value"].notna().to_numpy()
    some = table[rows]
    return facts(
        reading.stays,
        place[rows],
        time=some["intime"],
        available=some["intime"],
        code=f"WARDCAST//{concept}",
        value=None if text else some["value"].to_numpy(),
        text=text,
        source_id=identity("edstays", some, "stay_id", suffix),
    )


def _signs(
    reading: mimic.Reading,
    frame: pd.DataFrame,
    place: Ints,
    table: str,
    meanings: Mapping[str, tuple[str, str, str]],
) -> pd.DataFrame:
    frame, place = settle(frame, place, reading.stays, reading.account, table)
    who = identity(table, frame, None)
    return spread(
        frame, reading.stays, place, reading.account, table, meanings, time=frame["charttime"], source_id=who
    )


def _outpatient(reading: mimic.Reading) -> Iterator[Batch]:
    """Weight, height and pressure of the outpatient record within a stay; by date, so known as the next day begins."""
    table = "omr"
    columns: mimic.Columns = {
        "subject_id": "id", "chartdate": "time", "result_name": "text", "result_value": "text",
    }  # fmt: skip
    for frame in reading.rows(table, columns):
        frame = leave(frame, frame["chartdate"].isna(), reading.account, table, "no_time")
        silent = (frame["result_name"].isna() | frame["result_value"].isna()).to_numpy()
        frame = leave(frame, silent, reading.account, table, "no_value")
        # The day belongs to a stay that spans its first or its last moment.
        next_day = next_midnight(frame["chartdate"], reading.tables.timezone)
        begins = reading.stays.place_in_time(frame["subject_id"], micros_of(frame["chartdate"]))
        ends = reading.stays.place_in_time(frame["subject_id"], micros_of(next_day) - 1)
        place = np.where(begins >= 0, begins, ends)
        frame, place = settle(frame, place, reading.stays, reading.account, table, time="chartdate")
        yield from reading.emit(_recorded(reading, frame, place), table)


def _recorded(reading: mimic.Reading, frame: pd.DataFrame, place: Ints) -> pd.DataFrame:
    """A result as one event, a pressure such as 120/80 as two."""
    words = frame["result_value"].astype("str")
    name = frame["result_name"].astype("str").str.lower()
    parts = words.str.extract(r"^\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*$")
    pair = (name.str.startswith(PRESSURE) & parts[0].notna()).to_numpy(bool)
    number = pd.to_numeric(words, errors="coerce").to_numpy(dtype=np.float64)
    above, below = (pd.to_numeric(parts[k]).to_numpy(dtype=np.float64) for k in (0, 1))
    rows: list[tuple[npt.NDArray[np.bool_], str | None, Floats, str | None, str]] = [
        (pair, "sbp", above, "mm[Hg]", "#systolic"),
        (pair, "dbp", below, "mm[Hg]", "#diastolic"),
    ]
    rows += [((name == one).to_numpy(bool), what, number, unit, "") for one, (what, unit) in OMR.items()]
    rest = ~np.logical_or.reduce([r[0] for r in rows])
    rows.append((rest, None, number, None, ""))
    known = next_midnight(frame["chartdate"], reading.tables.timezone)
    made = []
    for mask, concept, value, unit, suffix in rows:
        some = frame[mask]
        made.append(
            facts(
                reading.stays,
                place[mask],
                time=some["chartdate"],
                available=known[mask],
                code=coded("MIMIC_OMR", some["result_name"]),
                concept=concept,
                value=value[mask],
                text=only_where(some["result_value"], np.isnan(value[mask])),
                unit=unit,
                source_id=identity("omr", some, None, suffix),
            )
        )
    return stacked(made)
