"""CLIF tables (Common Longitudinal ICU Data Format), versions 2.1 and 3.0, as Parquet or CSV.

An encounter is a hospitalization. Version 3.0 spells the categories of 2.1 in lower case with underscores and renames a
few; :func:`unified` reads both spellings as the later one, so that the same patients give the same events. Laboratory
tests have three times: they happen when collected and become available when resulted. Infusions are rates at the time
of each entry of the administration record, and 0 where one ends. Schemas: CLIF consortium, mCIDE 2.1 and 3.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from features.clock import UTC_US
from features.concepts import loader
from features.concepts.drugs import antimicrobial
from features.errors import DataError
from features.events import ENCOUNTER_COLUMNS, NAT
from features.sources.batch import ROWS, Batch, ReadAccount, Say, quiet
from features.sources.facts import zone
from features.sources.infusions import Weights, weighed
from features.sources.journeys import Journey, admissions, follow, placed
from features.sources.stays import (
    DAY_US,
    LATEST_US,
    Ints,
    Masks,
    Seen,
    Stays,
    coded,
    emit,
    facts,
    identity,
    marked,
    micros_of,
    settle,
    since,
    stacked,
)
from features.sources.tables import Kind, Tables, leave

SYSTEM: Final = "CLIF"
DRUGS: Final = "CLIF_DRUG"
SPECIMENS: Final = "CLIF_SPEC"

RENAMED: Final = {
    "high_flow_nc": "hfnc", "assist_control_volume_control": "acvc", "pressure_support_or_cpap": "ps_or_cpap",
    "pressure_regulated_volume_control": "prvc",
}  # fmt: skip
"""Categories of 2.1 that 3.0 names anew, beyond the spelling; only of columns that this reader looks at."""
DEVICES: Final = {"hfnc": "high flow nc"}
"""Devices whose words in texts.csv are not their category with spaces."""
INVASIVE: Final = ("imv", "vent")
NONINVASIVE: Final = ("nippv", "cpap")
PLACES: Final = {
    "ed": "ed", "ward": "ward", "icu": "icu", "stepdown": "stepdown",
    "intermediate": "stepdown", "procedural": "procedural", "l_and_d": "l&d",
}  # fmt: skip
"""``location_category`` as our places; any other is ``other``."""
ICU_TYPES: Final = {
    "medical_icu": "medical", "cardiac_icu": "medical", "surgical_icu": "surgical", "cvicu_icu": "surgical",
    "cardiothoracic_surgical_icu": "surgical", "neurosurgical_icu": "surgical", "burn_icu": "surgical",
}  # fmt: skip
KINDS: Final = ("medical", "surgical")
VASOPRESSORS: Final = (
    "norepinephrine", "epinephrine", "dopamine", "dobutamine", "phenylephrine", "milrinone", "vasopressin",
)  # fmt: skip
RATES: Final = ("start", "dose_change", "going", "")
"""Entries of the administration record that state a rate; an empty one is taken by its dose."""
GIVEN: Final = ("given", "bolus", "")
SETTINGS: Final = (
    "fio2_set", "lpm_set", "tidal_volume_set", "resp_rate_set", "pressure_control_set", "pressure_support_set",
    "flow_rate_set", "peak_inspiratory_pressure_set", "inspiratory_time_set", "peep_set", "tidal_volume_obs",
    "resp_rate_obs", "plateau_pressure_obs", "peak_inspiratory_pressure_obs", "peep_obs", "minute_vent_obs",
    "mean_airway_pressure_obs",
)  # fmt: skip
READ: Final = (
    "patient", "hospitalization", "adt", "vitals", "labs", "patient_assessments", "respiratory_support",
    "medication_admin_continuous", "medication_admin_intermittent", "crrt_therapy", "renal_replacement_therapy",
    "microbiology_culture", "output",
)  # fmt: skip
NO_MOVES: Final = pd.DataFrame(
    {
        "stay": pd.Series(dtype="int64"),
        "came": pd.Series(dtype=UTC_US),
        "went": pd.Series(dtype=UTC_US),
        "where": pd.Series(placed([])),
        "kind": pd.Series(pd.Categorical([], categories=list(KINDS))),
        "source_id": pd.Series(dtype="str"),
    }
)
LATER: Final = ("output", "renal_replacement_therapy", "microbiology_culture")
"""Tables that not every version has: nothing is said when they are absent."""
UNREAD: Final = (
    "code_status", "position", "patient_procedures", "hospital_diagnosis", "microbiology_nonculture",
    "microbiology_susceptibility", "ecmo_mcs", "key_icu_orders", "invasive_hemodynamics", "patient_diagnosis",
    "provider", "transfusion", "intermittent_dialysis", "input", "therapy_details",
)  # fmt: skip
WAIT_US: Final = 7 * DAY_US
"""How long before the admission a patient may already have been there, in the emergency department say."""
WIDE_ROWS: Final = ROWS // 8
"""Rows of a table whose rows make many events."""


def batches(
    path: Path,
    account: ReadAccount,
    *,
    timezone: str = "UTC",
    mapping: object = None,
    say: Say = quiet,
) -> Iterator[Batch]:
    """Read a folder of CLIF tables (``clif_vitals.parquet`` and such).

    Parameters
    ----------
    path : Path
        Needs ``clif_patient`` and ``clif_hospitalization``; any other table may be absent.
    timezone : str
        Of times without an offset; the format itself asks for UTC.
    mapping : not used

    Raises
    ------
    DataError
        A table or a column is missing or holds what it should not, or there is no such time zone.
    """
    zone(timezone)
    tables = Tables(path, timezone=timezone)
    tables.require("clif_patient", "clif_hospitalization")
    _note_tables(tables, account)
    reader = _opened(tables, account, say)
    yield from reader.encounters()
    for read in (
        reader.vitals, reader.labs, reader.assessments, reader.breathing, reader.infusions, reader.doses,
        reader.dialysis, reader.cultures, reader.outputs,
    ):  # fmt: skip
        yield from read()


def unified(word: str) -> str:
    """A category of CLIF 2.1 or 3.0 as 3.0 spells it: ``"High Flow NC"`` and ``"hfnc"`` are both ``"hfnc"``."""
    spelt = word.strip().lower().replace("&", "_and_").replace("/", "_or_")
    spelt = re.sub(r"[^a-z0-9.]+", "_", spelt).strip("_")
    return RENAMED.get(spelt, spelt)


def unify(words: pd.Series) -> pd.Series:
    """:func:`unified` for each category of a categorical; missing stays missing."""
    return _relabelled(words, unified)


def _relabelled(words: pd.Series, call: Callable[[str], str]) -> pd.Series:
    """Another word for each category; categories that become the same one are joined."""
    codes, labels = pd.factorize(np.array([call(w) for w in words.cat.categories], dtype=object))
    code = np.append(codes, -1)[words.cat.codes.to_numpy(np.int64)]
    return pd.Series(
        pd.Categorical.from_codes(code, categories=pd.Index(labels, dtype="str")), index=words.index
    )


def _by_word(words: pd.Series, call: Callable[[str], str] = str) -> Any:
    """``call`` of each row's word as an object array, called once a category; missing is the empty text."""
    answers = np.array([*(call(w) for w in words.cat.categories), ""], dtype=object)
    return answers[words.cat.codes.to_numpy(np.int64)]


def _note_tables(tables: Tables, account: ReadAccount) -> None:
    """Say which tables are missing, and which are there and not read."""
    absent = [n for n in READ if n not in LATER and not tables.has(f"clif_{n}")]
    if absent:
        account.note(f"Not there, so nothing is known of what they would hold: {', '.join(absent)}.")
    extra = [n for n in UNREAD if tables.has(f"clif_{n}")]
    if extra:
        account.note(f"Not read, as no concept needs them: {', '.join(extra)}.")


def _opened(tables: Tables, account: ReadAccount, say: Say) -> _Reader:
    """Read who was here and when: the tables of one row a stay."""
    people = tables.whole(
        "clif_patient", {"patient_id": "id", "sex_category": "text", "death_dttm": "time"},
        optional=("sex_category", "death_dttm"), account=account, say=say,
    )  # fmt: skip
    account.leave("clif_patient", "describes_the_person", len(people))
    table = _hospitalizations(tables, account, say)
    twice = int(table["hospitalization_id"].duplicated().sum()) + int(people["patient_id"].duplicated().sum())
    if twice:
        raise DataError(
            f"clif_patient or clif_hospitalization repeats an identifier in {twice:,} rows. Keep one row each."
        )
    person = people.set_index("patient_id").reindex(table["patient_id"])
    table = table.assign(sex=person["sex_category"].array, died=person["death_dttm"].array)
    ends = micros_of(table["discharge_dttm"])
    ends = np.where(ends == NAT, LATEST_US, ends)
    admitted = micros_of(table["admission_dttm"])
    rough = Stays(_skeleton(table), admitted - WAIT_US, ends)
    moves = _moves(tables, account, say, rough)
    path = follow(rough, moves)
    first = np.where(path.first == NAT, admitted, np.minimum(path.first, admitted))
    stays = Stays(_encounter_table(table, moves, path, first), first, ends)
    return _Reader(tables, account, say, stays, table, path)


def _hospitalizations(tables: Tables, account: ReadAccount, say: Say) -> pd.DataFrame:
    """One row a stay; its index is the row in the table."""
    name = "clif_hospitalization"
    columns: dict[str, Kind] = {
        "patient_id": "id", "hospitalization_id": "id", "admission_dttm": "time", "discharge_dttm": "time",
        "age_at_admission": "number", "discharge_category": "text",
    }  # fmt: skip
    table = tables.whole(
        name, columns, optional=("age_at_admission", "discharge_category"), account=account, say=say
    )
    nobody = table["patient_id"].isna() | table["hospitalization_id"].isna()
    table = leave(table, nobody, account, name, "no_identifier")
    table = leave(table, table["admission_dttm"].isna(), account, name, "no_time")
    backwards = (table["discharge_dttm"] < table["admission_dttm"]).to_numpy(bool)
    if backwards.any():
        account.note(
            f"{int(backwards.sum()):,} hospitalizations end before they begin: end taken as unknown."
        )
    return table.assign(discharge_dttm=table["discharge_dttm"].where(~backwards))


def _skeleton(table: pd.DataFrame) -> pd.DataFrame:
    """The encounters as far as they are known before anything is read of where the patients were."""
    names = {"encounter_id": table["hospitalization_id"].array, "subject_id": table["patient_id"].array}
    return pd.DataFrame(names).reindex(columns=list(ENCOUNTER_COLUMNS))


def _encounter_table(table: pd.DataFrame, moves: pd.DataFrame, path: Journey, first: Ints) -> pd.DataFrame:
    sex = _lower(table["sex"])
    kinds = np.append(moves["kind"].cat.codes.to_numpy(), -1)[path.opening]
    return _skeleton(table).assign(
        encounter_class=path.kind,
        unit="",
        specialty="",
        age_years=table["age_at_admission"].to_numpy(np.float64),
        sex=np.where(sex.isin(["male", "female"]), sex, ""),
        icu_type=np.where(kinds < 0, "", np.array(KINDS, dtype=object)[kinds]),
        hospital_admission_time=since(first),
        icu_admission_time=since(path.icu),
    )


def _moves(tables: Tables, account: ReadAccount, say: Say, stays: Stays) -> pd.DataFrame:
    """Where patients were, as :func:`features.sources.journeys.follow` wants it, with the ``kind`` of unit."""
    name = "clif_adt"
    columns: dict[str, Kind] = {
        "hospitalization_id": "id", "in_dttm": "time", "out_dttm": "time", "location_category": "text",
        "location_type": "text",
    }  # fmt: skip
    parts = [NO_MOVES]
    if not tables.has(name):
        return NO_MOVES
    for frame in tables.stream(name, columns, optional=("location_type",), account=account, say=say):
        frame = leave(frame, frame["location_category"].isna(), account, name, "no_place")
        frame, place = settle(
            frame, stays.place(frame["hospitalization_id"]), stays, account, name, time="in_dttm"
        )
        where = _relabelled(unify(frame["location_category"]), lambda w: PLACES.get(w, "other"))
        kind = _relabelled(unify(frame["location_type"]), lambda w: ICU_TYPES.get(w, ""))
        part = {
            "stay": place,
            "came": frame["in_dttm"].array,
            "went": frame["out_dttm"].array,
            "where": placed(where.array),
            "kind": kind.cat.set_categories(list(KINDS)).array,
            "source_id": identity(name, frame, None).array,
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True) if len(parts) > 1 else NO_MOVES


@dataclass(frozen=True)
class _Reader:
    tables: Tables
    account: ReadAccount
    say: Say
    stays: Stays
    table: pd.DataFrame
    """Hospitalizations in the order of ``stays``, with ``sex`` and time of death; its index is the row."""
    journey: Journey

    def pieces(
        self,
        name: str,
        time: str,
        columns: Mapping[str, Kind],
        *,
        optional: tuple[str, ...] = (),
        rows: int = ROWS,
    ) -> Iterator[pd.DataFrame]:
        """Rows of a table that belong to a stay and have a time, with ``stay``: its place."""
        table = f"clif_{name}"
        if not self.tables.has(table):
            return
        wanted: dict[str, Kind] = {"hospitalization_id": "id", time: "time", **columns}
        for frame in self.tables.stream(
            table, wanted, optional=optional, rows=rows, account=self.account, say=self.say
        ):
            place = self.stays.place(frame["hospitalization_id"])
            frame, place = settle(frame, place, self.stays, self.account, table, time=time)
            yield frame.assign(stay=place)

    def facts(self, name: str, frame: pd.DataFrame, time: str, code: Any, **columns: Any) -> pd.DataFrame:
        """Events of rows that :meth:`pieces` gave, each named by its table and row."""
        columns.setdefault("source_id", identity(f"clif_{name}", frame, None))
        return facts(self.stays, _stay(frame), time=frame[time], code=code, **columns)

    def emit(self, name: str, *events: pd.DataFrame) -> Iterator[Batch]:
        return emit(stacked(events), self.account, f"clif_{name}")

    def coded(self, frame: pd.DataFrame, name: str, column: str) -> pd.DataFrame:
        """With ``code``; rows without a category stay out, counted."""
        frame = leave(frame, frame[column].isna(), self.account, f"clif_{name}", "no_code")
        return frame.assign(code=coded(SYSTEM, unify(frame[column])))

    def encounters(self) -> Iterator[Batch]:
        """The stays, how they began and ended, and where the patients were."""
        source = identity("clif_hospitalization", self.table, None)
        admitted, ended = micros_of(self.table["admission_dttm"]), micros_of(self.table["discharge_dttm"])
        yield from self.stays.batches()
        for events in admissions(self.stays, admitted, ended, self._dead(admitted, ended), source):
            yield from self.emit("hospitalization", events)
        for events in self.journey.pieces():
            yield from self.emit("adt", events)

    def _dead(self, admitted: Ints, ended: Ints) -> Masks:
        """Who died in hospital. The death is put at the end: many sites know only the date of ``death_dttm``."""
        died = micros_of(self.table["died"])
        expired = _lower(self.table["discharge_category"]).eq("expired").to_numpy(bool)
        dead: Masks = expired | ((died != NAT) & (died >= admitted) & (died <= ended))
        if dead.any():
            self.account.note(
                "Deaths in hospital are put at the end of the stay: often only their date is known."
            )
        return dead

    def vitals(self) -> Iterator[Batch]:
        columns: dict[str, Kind] = {"vital_category": "text", "vital_value": "number"}
        for frame in self.pieces("vitals", "recorded_dttm", columns):
            frame = self.coded(frame, "vitals", "vital_category")
            frame = leave(frame, frame["vital_value"].isna(), self.account, "clif_vitals", "no_value")
            events = self.facts("vitals", frame, "recorded_dttm", frame["code"], value=frame["vital_value"])
            yield from self.emit("vitals", events)

    def labs(self) -> Iterator[Batch]:
        columns: dict[str, Kind] = {
            "lab_result_dttm": "time", "lab_category": "text", "lab_value": "text", "lab_value_numeric": "number",
            "reference_unit": "text",
        }  # fmt: skip
        for frame in self.pieces(
            "labs", "lab_collect_dttm", columns, optional=("lab_value", "reference_unit")
        ):
            frame = self.coded(frame, "labs", "lab_category")
            silent = frame["lab_value_numeric"].isna() & frame["lab_value"].isna()
            frame = leave(frame, silent, self.account, "clif_labs", "no_value")
            events = self.facts(
                "labs", frame, "lab_collect_dttm", frame["code"],
                available=_known_later(frame["lab_result_dttm"], frame["lab_collect_dttm"]),
                value=frame["lab_value_numeric"],
                text=frame["lab_value"].where(frame["lab_value_numeric"].isna()),
                unit=frame["reference_unit"],
            )  # fmt: skip
            yield from self.emit("labs", events)

    def assessments(self) -> Iterator[Batch]:
        name = "patient_assessments"
        columns: dict[str, Kind] = {
            "assessment_category": "text", "numerical_value": "number", "categorical_value": "text",
            "text_value": "text",
        }  # fmt: skip
        optional = ("numerical_value", "categorical_value", "text_value")
        for frame in self.pieces(name, "recorded_dttm", columns, optional=optional):
            frame = self.coded(frame, name, "assessment_category")
            words = frame["categorical_value"].astype("str").fillna(frame["text_value"].astype("str"))
            frame = frame.assign(words=words.where(frame["numerical_value"].isna()))
            silent = frame["numerical_value"].isna() & frame["words"].isna()
            frame = leave(frame, silent, self.account, f"clif_{name}", "no_value")
            value, text = frame["numerical_value"], frame["words"]
            events = self.facts(name, frame, "recorded_dttm", frame["code"], value=value, text=text)
            yield from self.emit(name, events)

    def breathing(self) -> Iterator[Batch]:
        """Settings and observations of the ventilator, the oxygen device, and what that says of ventilation."""
        name = "respiratory_support"
        columns: dict[str, Kind] = {"device_category": "text", "mode_category": "text"}
        columns |= dict.fromkeys(SETTINGS, "number")
        optional = ("mode_category", *SETTINGS)
        for frame in self.pieces(name, "recorded_dttm", columns, optional=optional, rows=WIDE_ROWS):
            silent = frame[["device_category", "mode_category", *SETTINGS]].isna().all(axis=1)
            frame = leave(frame, silent, self.account, f"clif_{name}", "no_value")
            parts = [self._setting(frame[frame[c].notna()], c) for c in SETTINGS]
            mode = frame[frame["mode_category"].notna()]
            said = _by_word(unify(mode["mode_category"]))
            parts += [self._respiratory(mode, f"{SYSTEM}//mode_category", "mode_category", text=said)]
            yield from self.emit(name, *parts, *self._device(frame[frame["device_category"].notna()]))

    def _setting(self, frame: pd.DataFrame, column: str) -> pd.DataFrame:
        return self._respiratory(frame, f"{SYSTEM}//{column}", column, value=frame[column])

    def _respiratory(self, frame: pd.DataFrame, code: str, column: str, **columns: Any) -> pd.DataFrame:
        # Set and observed values may mean the same concept: the column is part of a fact's name.
        source = identity(f"clif_respiratory_support.{column}", frame, None)
        return self.facts("respiratory_support", frame, "recorded_dttm", code, source_id=source, **columns)

    def _device(self, frame: pd.DataFrame) -> list[pd.DataFrame]:
        device = unify(frame["device_category"])
        word, said = _by_word(device), _by_word(device, lambda w: DEVICES.get(w, w.replace("_", " ")))
        known = word != "other"
        on = {
            "invasive_ventilation": np.isin(word, INVASIVE),
            "noninvasive_ventilation": np.isin(word, NONINVASIVE),
            "supplemental_oxygen": word != "room_air",
        }
        shown = self._respiratory(
            frame, f"{SYSTEM}//device_category", "device_category", concept="oxygen_device", text=said
        )
        return [
            shown,
            *(
                self._respiratory(frame[known], f"WARDCAST//{concept}", "device_category", value=flag[known])
                for concept, flag in on.items()
            ),
        ]

    def infusions(self) -> Iterator[Batch]:
        """Rates of vasopressors, and antibiotics that run as an infusion."""
        name = "medication_admin_continuous"
        columns: dict[str, Kind] = {
            "med_category": "text", "med_name": "text", "mar_action_category": "text", "med_dose": "number",
            "med_dose_unit": "text", "med_route_category": "text",
        }  # fmt: skip
        optional = ("med_name", "mar_action_category", "med_route_category")
        for frame in self.pieces(name, "admin_dttm", columns, optional=optional):
            frame = _with_drug(frame)
            pressor = frame["drug"].isin(VASOPRESSORS)
            rest = leave(
                frame[~pressor],
                frame["antibiotic"][~pressor] == "",
                self.account,
                f"clif_{name}",
                "other_drug",
            )
            ongoing = ~rest["action"].isin(["start", ""])
            rest = leave(rest, ongoing, self.account, f"clif_{name}", "antibiotic_goes_on")
            yield from self.emit(name, self._rates(frame[pressor], name), self._antibiotics(rest, name))

    def doses(self) -> Iterator[Batch]:
        """Antibiotics given."""
        name = "medication_admin_intermittent"
        columns: dict[str, Kind] = {
            "med_category": "text", "med_name": "text", "mar_action_category": "text", "med_route_category": "text",
        }  # fmt: skip
        optional = ("med_name", "mar_action_category", "med_route_category")
        for frame in self.pieces(name, "admin_dttm", columns, optional=optional):
            frame = _with_drug(frame)
            frame = leave(frame, ~frame["action"].isin(GIVEN), self.account, f"clif_{name}", "not_given")
            frame = leave(frame, frame["antibiotic"] == "", self.account, f"clif_{name}", "other_drug")
            yield from self.emit(name, self._antibiotics(frame, name))

    def _antibiotics(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        code = coded(DRUGS, frame["drug"])
        return self.facts(
            name, frame, "admin_dttm", code, concept="antibiotic", value=1.0, text=frame["name"]
        )

    def _rates(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Rates in the unit written, or per kilogram by the last weight known at that time."""
        table = f"clif_{name}"
        frame = leave(frame, ~frame["action"].isin([*RATES, "stop"]), self.account, table, "states_no_rate")
        stop = frame["action"] == "stop"
        frame = leave(frame, frame["med_dose"].isna() & ~stop, self.account, table, "no_value")
        dose = frame["med_dose"].where(frame["action"] != "stop", 0.0).to_numpy(np.float64)
        wanted = np.array([loader.concepts()[drug].unit for drug in frame["drug"]], dtype=object)
        rate, unit, weightless = weighed(dose, frame["med_dose_unit"], wanted, self._weight(frame))
        frame = leave(frame.assign(rate=rate, per=unit), weightless, self.account, table, "no_weight")
        # An end and a new start at the same instant are a change of bag: text order puts the end first.
        turn = np.where(frame["action"] == "stop", f"{table}:0", f"{table}:1").astype(object)
        source = pd.Series(turn + ":" + frame.index.astype(str).to_numpy(object), dtype="str")
        drug = frame["drug"]
        return self.facts(
            name, frame, "admin_dttm", coded(DRUGS, drug), concept=drug, value=frame["rate"], unit=frame["per"],
            source_id=source,
        )  # fmt: skip

    def _weight(self, frame: pd.DataFrame) -> Any:
        if not len(frame):
            return np.zeros(0)
        return self._weights.at(_stay(frame), micros_of(frame["admin_dttm"]))

    @cached_property
    def _weights(self) -> Weights:
        """All plausible weights, read when the first infusion is met."""
        columns: dict[str, Kind] = {"vital_category": "text", "vital_value": "number"}
        # Counted and told when the vital signs themselves were read.
        silent = _Reader(self.tables, ReadAccount(), quiet, self.stays, self.table, self.journey)
        weights = Weights()
        for frame in silent.pieces("vitals", "recorded_dttm", columns):
            frame = frame[_by_word(unify(frame["vital_category"])) == "weight_kg"]
            weights.add(
                _stay(frame), micros_of(frame["recorded_dttm"]), frame["vital_value"].to_numpy(np.float64)
            )
        return weights

    def dialysis(self) -> Iterator[Batch]:
        """Each entry says that renal replacement runs; its end is not recorded."""
        for name, mode in (
            ("crrt_therapy", "crrt_mode_category"),
            ("renal_replacement_therapy", "mode_category"),
        ):
            for frame in self.pieces(name, "recorded_dttm", {mode: "text"}, optional=(mode,)):
                events = self.facts(
                    name, frame, "recorded_dttm", f"{SYSTEM}//{name}", concept="renal_replacement", value=1.0,
                    text=unify(frame[mode]),
                )  # fmt: skip
                self.account.note(
                    "When renal replacement ended is not recorded: there are only events that say it runs."
                )
                yield from self.emit(name, events)

    def cultures(self) -> Iterator[Batch]:
        """Specimens taken for culture when collected; what grew, known when resulted."""
        name = "microbiology_culture"
        columns: dict[str, Kind] = {
            "result_dttm": "time", "fluid_category": "text", "method_category": "text", "organism_category": "text",
        }  # fmt: skip
        optional = ("method_category", "organism_category")
        seen = Seen()
        for frame in self.pieces(name, "collect_dttm", columns, optional=optional):
            frame = frame.assign(
                fluid=unify(frame["fluid_category"]), organism=unify(frame["organism_category"])
            )
            method = _by_word(unify(frame["method_category"]))
            frame = leave(
                frame, ~np.isin(method, ["culture", ""]), self.account, f"clif_{name}", "no_culture"
            )
            frame = leave(frame, frame["fluid"].isna(), self.account, f"clif_{name}", "no_code")
            grew = frame["organism"].notna() & (frame["organism"] != "no_growth")
            again = ~seen.new(marked(frame["stay"], micros_of(frame["collect_dttm"]), frame["fluid"]))
            frame = frame.assign(grew=grew, again=again)
            frame = leave(frame, again & ~grew, self.account, f"clif_{name}", "same_specimen")
            yield from self.emit(name, *self._specimens(frame))

    def _specimens(self, frame: pd.DataFrame) -> list[pd.DataFrame]:
        new, grown = frame[~frame["again"]], frame[frame["grew"]]
        blood = new[new["fluid"].astype("str").str.startswith("blood")]
        known = _known_later(grown["result_dttm"], grown["collect_dttm"])
        return [
            self._specimen(new, "culture", text=new["fluid"]),
            self._specimen(blood, "blood_culture", text=blood["fluid"]),
            self._specimen(grown, "positive_culture", text=grown["organism"], available=known),
        ]

    def _specimen(self, frame: pd.DataFrame, concept: str, **columns: Any) -> pd.DataFrame:
        code = coded(SPECIMENS, frame["fluid"])
        return self.facts(
            "microbiology_culture", frame, "collect_dttm", code, concept=concept, value=1.0, **columns
        )

    def outputs(self) -> Iterator[Batch]:
        """What left the body; urine in millilitres is urine output."""
        columns: dict[str, Kind] = {
            "output_category": "text", "output_group": "text", "output_value": "number", "output_unit": "text",
        }  # fmt: skip
        for frame in self.pieces(
            "output", "recorded_dttm", columns, optional=("output_group", "output_unit")
        ):
            frame = self.coded(frame, "output", "output_category")
            frame = leave(frame, frame["output_value"].isna(), self.account, "clif_output", "no_value")
            urine = (_by_word(unify(frame["output_group"])) == "urine") & (
                _by_word(frame["output_unit"]) == "mL"
            )
            events = self.facts(
                "output", frame, "recorded_dttm", frame["code"], value=frame["output_value"],
                unit=frame["output_unit"], concept=pd.Series("urine_output", index=frame.index).where(urine),
            )  # fmt: skip
            yield from self.emit("output", events)


def _with_drug(frame: pd.DataFrame) -> pd.DataFrame:
    """With ``drug`` (category), ``name`` as written, ``antibiotic`` (empty for others) and ``action``."""
    drug = unify(frame["med_category"]).astype("str").fillna(_lower(frame["med_name"]))
    name = frame["med_name"].astype("str").fillna(drug)
    told = pd.DataFrame({"drug": drug, "name": name, "route": _by_word(frame["med_route_category"])})
    number = told.groupby(["drug", "name", "route"], sort=False, dropna=False).ngroup().to_numpy()
    known = [_antibiotic(d, n, r) for d, n, r in told.drop_duplicates().itertuples(index=False)]
    return frame.assign(
        drug=drug.astype("category"),
        name=name.astype("category"),
        antibiotic=np.array([*known, ""], dtype=object)[number],
        action=_by_word(unify(frame["mar_action_category"])),
    )


def _antibiotic(drug: object, name: object, route: object) -> str:
    way = route if isinstance(route, str) and route else None
    return antimicrobial(drug, way) or antimicrobial(name, way) or ""


def _stay(frame: pd.DataFrame) -> Ints:
    return frame["stay"].to_numpy(np.int64)


def _lower(words: pd.Series) -> pd.Series:
    return words.astype("str").str.strip().str.lower()


def _known_later(available: pd.Series, time: pd.Series) -> pd.Series:
    """When something became known; left to the policy where that is not after it happened: nothing is known at once."""
    return available.where(available > time)
