"""What MIMIC-III and MIMIC-IV tables have in common; :mod:`mimic3` and :mod:`mimic4` say what differs.

Johnson et al., Sci Data 2016;3:160035 (III) and Sci Data 2023;10:1 (IV). An encounter is a hospital admission
(``hadm_id``). Dates are shifted by patient, so calendars mean nothing but hours and order do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import UTC_US
from features.concepts import loader
from features.errors import DataError
from features.events import NAT
from features.sources.batch import ROWS, Batch, ReadAccount, Say
from features.sources.infusions import Running, Weights, concepts_of, weighed
from features.sources.stays import (
    LATEST_US,
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
    later,
    looked_up,
    marked,
    micros_of,
    next_midnight,
    only_where,
    settle,
    since,
    stacked,
    systemic,
)
from features.sources.tables import Kind, Tables, leave

Columns = Mapping[str, Kind]

ADMISSIONS: Final[Columns] = {
    "hadm_id": "id", "subject_id": "id", "admittime": "time", "dischtime": "time", "deathtime": "time",
    "edregtime": "time", "edouttime": "time",
}  # fmt: skip
ICU_STAYS: Final[Columns] = {"hadm_id": "id", "first_careunit": "text", "intime": "time", "outtime": "time"}
OF_A_ROW: Final[Columns] = {"subject_id": "id", "hadm_id": "id", "itemid": "id"}
AGED: Final = 91.4
"""Years given to MIMIC-III patients over 89, whose age is hidden: their median, MIMIC-III documentation."""
YEAR_US: Final = 365.2425 * 86_400e6

DICTIONARIES: Final = {
    "d_items": ("MIMIC_CHART", "MIMIC_OUTPUT", "MIMIC_INPUT", "MIMIC_PROCEDURE"),
    "d_labitems": ("MIMIC_LAB",),
}
"""Tables that name items, and the code systems of those items."""

# Where a care unit's name says that a patient is; the first pattern that is found counts, "ward" otherwise.
UNITS: Final = (
    (r"stepdown|intermediate", "stepdown"),
    (r"intensive care|\b[a-z]*icu\b|\bccu\b|\bcsru\b|coronary care", "icu"),
    (r"emergency department", "ed"),
    (r"\bpacu\b|operating room|procedur", "procedural"),
    (r"labor (?:&|and) delivery", "l&d"),
    (r"discharge lounge|unknown", "other"),
)
# The released intensive care type knows medical and surgical units only; mixed and special ones are neither.
MEDICAL: Final = r"^micu$|^medical intensive care"
SURGICAL: Final = r"^t?sicu$|^surgical intensive care|^trauma sicu"


@dataclass
class Reading:
    """One pass over a folder of MIMIC tables: what was found, and where everything is counted.

    Attributes
    ----------
    admissions : DataFrame aligned with the places of ``stays``: the times of :data:`ADMISSIONS`
    icu_stays : DataFrame of ``place, intime, outtime, first_careunit`` of known encounters
    weights : body weights met so far
    """

    tables: Tables
    account: ReadAccount
    say: Say
    stays: Stays
    admissions: pd.DataFrame
    icu_stays: pd.DataFrame
    weights: Weights = field(default_factory=Weights)

    def has(self, table: str) -> bool:
        """Is the table there? If not, the account says so."""
        if not self.tables.has(table):
            self.account.note(f"Table {table} is not there: nothing of it was read.")
        return self.tables.has(table)

    def rows(
        self, table: str, columns: Columns, *, optional: tuple[str, ...] = (), rows: int = ROWS
    ) -> Iterator[pd.DataFrame]:
        """The table piece by piece, counted."""
        return self.tables.stream(
            table, columns, optional=optional, rows=rows, account=self.account, say=self.say
        )

    def settled(self, frame: pd.DataFrame, table: str, time: str) -> tuple[pd.DataFrame, Ints]:
        """The rows that have a time in a known admission, and their places."""
        place = self.stays.place_of_rows(frame, "hadm_id", "subject_id", time)
        return settle(frame, place, self.stays, self.account, table, time=time)

    def emit(self, events: pd.DataFrame, table: str) -> Iterator[Batch]:
        """A batch of these events, counted."""
        return emit(events, self.account, table)


def opened(path: Path, mapping: object, timezone: str) -> Tables:
    """The tables of a folder.

    Raises
    ------
    DataError
        Admissions or patients are missing, or a mapping file was given.
    """
    if mapping is not None:
        raise DataError("MIMIC tables need no mapping file. Leave it out.")
    tables = Tables(path, timezone=timezone)
    tables.require("admissions", "patients")
    return tables


def name_items(tables: Tables, account: ReadAccount) -> None:
    """Tell the account what MIMIC's dictionaries call the numbers in its codes."""
    for table, systems in DICTIONARIES.items():
        if tables.has(table):
            items = tables.whole(table, {"itemid": "id", "label": "text"}).dropna()
            for item, label in zip(items["itemid"], items["label"], strict=True):
                account.labels.update({f"{system}//{item}": str(label).strip() for system in systems})


def admissions_of(tables: Tables, account: ReadAccount, say: Say) -> pd.DataFrame:
    """Admissions that have a time, index 0..n-1; ``first`` is the earlier of admission and emergency registration.

    Raises
    ------
    DataError
        There is none, or an admission stands twice.
    """
    found = tables.whole(
        "admissions", ADMISSIONS, optional=("edregtime", "edouttime", "deathtime"), account=account, say=say
    )
    nameless = found["hadm_id"].isna() | found["subject_id"].isna()
    found = leave(found, nameless, account, "admissions", "no_encounter")
    found = leave(found, found["admittime"].isna(), account, "admissions", "no_time").reset_index(drop=True)
    if not len(found):
        raise DataError("Table admissions holds no admission with hadm_id, subject_id and admittime.")
    twice = int(found["hadm_id"].duplicated().sum())
    if twice:
        raise DataError(f"Table admissions repeats hadm_id in {twice:,} rows. Keep one row an admission.")
    admit, ed = micros_of(found["admittime"]), micros_of(found["edregtime"])
    account.note(
        "A stay begins with registration in the emergency department where that is earlier than the admission."
    )
    return found.assign(first=since(np.where((ed != NAT) & (ed < admit), ed, admit)))


def icu_stays_of(tables: Tables, admissions: pd.DataFrame, account: ReadAccount, say: Say) -> pd.DataFrame:
    """Intensive care stays of known admissions in order of time, with their ``place``."""
    if not tables.has("icustays"):
        account.note("Table icustays is not there: no stay is known to be in intensive care.")
        columns = {
            c: "text" if c == "first_careunit" else "time" for c in ("first_careunit", "intime", "outtime")
        }
        empty = {c: pd.Series(dtype=UTC_US if kind == "time" else "str") for c, kind in columns.items()}
        return pd.DataFrame({**empty, "place": np.zeros(0, dtype=np.int64)})
    found = tables.whole("icustays", ICU_STAYS, account=account, say=say)
    place = looked_up(found["hadm_id"], pd.Index(admissions["hadm_id"]))
    found = found.assign(place=place)
    found = leave(found, place < 0, account, "icustays", "no_encounter")
    found = leave(found, found["intime"].isna(), account, "icustays", "no_time")
    return found.sort_values(["intime", "outtime"], kind="stable").reset_index(drop=True)


def specialties_of(tables: Tables, admissions: pd.DataFrame, account: ReadAccount, say: Say) -> pd.Series:
    """The service that first looked after each admission; empty where unknown. Later services would be hindsight."""
    blank = pd.Series("", index=admissions.index, dtype="str")
    if not tables.has("services"):
        return blank
    columns: Columns = {"hadm_id": "id", "transfertime": "time", "curr_service": "text"}
    found = tables.whole("services", columns, account=account, say=say).sort_values(
        "transfertime", kind="stable"
    )
    first = found.drop_duplicates("hadm_id").set_index("hadm_id")["curr_service"]
    return admissions["hadm_id"].map(first).fillna("").astype("str")


def encounters_of(
    admissions: pd.DataFrame, icu_stays: pd.DataFrame, age: Floats, sex: pd.Series, specialty: pd.Series
) -> pd.DataFrame:
    """The encounter table, row by row as the admissions; class ward or icu."""
    first = icu_stays.drop_duplicates("place").set_index("place").reindex(admissions.index)
    unit = first["first_careunit"].astype("str").fillna("")
    kind = [unit.str.contains(pattern, case=False) for pattern in (MEDICAL, SURGICAL)]
    return pd.DataFrame(
        {
            "encounter_id": admissions["hadm_id"],
            "subject_id": admissions["subject_id"],
            "encounter_class": np.where(first["intime"].notna(), "icu", "ward"),
            "unit": unit,
            "specialty": specialty,
            "age_years": age,
            "sex": sex.map({"M": "male", "F": "female"}).fillna("").astype("str"),
            "icu_type": np.select([k.to_numpy(bool) for k in kind], ["medical", "surgical"], ""),
            "hospital_admission_time": admissions["first"],
            "icu_admission_time": first["intime"].astype(UTC_US),
        }
    )


def spans(admissions: pd.DataFrame) -> tuple[Ints, Ints]:
    """First and last instant of each admission."""
    ends = later(later(admissions["dischtime"], admissions["deathtime"]), admissions["edouttime"])
    start, end = micros_of(admissions["first"]), micros_of(ends)
    return start, np.where(admissions["dischtime"].isna() | (end < start), LATEST_US, end)


AT_ONCE: Final = ROWS // 8
"""Admissions whose milestones are told together; each has several."""


def milestones(reading: Reading) -> Iterator[Batch]:
    """Arrival in the emergency department, admission, discharge and death, from the admissions; ICU discharges."""
    moments = {
        "hospital_admission": "admittime",
        "ed_arrival": "edregtime",
        "hospital_discharge": "dischtime",
        "death": "deathtime",
    }
    for first in range(0, len(reading.admissions), AT_ONCE):
        about = reading.admissions.iloc[first : first + AT_ONCE]
        place = about.index.to_numpy()
        parts = [_moments(reading, place, about[c], name, "admissions") for name, c in moments.items()]
        yield from reading.emit(stacked(parts), "admissions")
    for first in range(0, len(reading.icu_stays), ROWS):
        stays = reading.icu_stays.iloc[first : first + ROWS]
        ends = _moments(reading, stays["place"].to_numpy(), stays["outtime"], "icu_discharge", "icustays")
        yield from reading.emit(ends, "icustays")


def _moments(reading: Reading, place: Ints, when: pd.Series, concept: str, table: str) -> pd.DataFrame:
    """One event of value 1 at each instant that is known."""
    known = when.notna().to_numpy()
    some = when[known]
    return facts(
        reading.stays,
        place[known],
        time=some,
        available=some,
        code=f"WARDCAST//{concept}",
        value=1.0,
        source_id=identity(table, some.to_frame(), None),
    )


def whereabouts(reading: Reading, unit_column: str, key: str, *, nameless: str) -> Iterator[Batch]:
    """Location events from the transfers: where a patient went, and when.

    ``nameless`` is where a patient is whose care unit has no name. Without the table, the location is known to be the
    emergency department at registration, intensive care by icustays, and ``left`` at discharge.
    """
    if not reading.has("transfers"):
        yield from _rough_whereabouts(reading)
        return
    columns: Columns = {
        "subject_id": "id", "hadm_id": "id", "eventtype": "text", unit_column: "text", "intime": "time", key: "key",
    }  # fmt: skip
    for frame in reading.rows("transfers", columns):
        frame, place = reading.settled(frame, "transfers", "intime")
        left = (frame["eventtype"].astype("str").str.lower() == "discharge").to_numpy()
        where = np.where(left, "left", located(frame[unit_column], nameless))
        yield from reading.emit(
            _moves(reading, place, frame["intime"], where, "transfers", frame, key), "transfers"
        )


def _rough_whereabouts(reading: Reading) -> Iterator[Batch]:
    about, stays = reading.admissions, reading.icu_stays
    everywhere = np.arange(len(about))
    moves = [
        ("ed", "admissions", everywhere, about["edregtime"]),
        ("left", "admissions", everywhere, about["dischtime"]),
        ("icu", "icustays", stays["place"].to_numpy(), stays["intime"]),
    ]
    for where, table, place, when in moves:
        known = np.flatnonzero(when.notna())
        for first in range(0, len(known), ROWS):
            rows = known[first : first + ROWS]
            some, words = when.iloc[rows], np.full(len(rows), where, dtype=object)
            events = _moves(reading, place[rows], some, words, table, some.to_frame(), None, f"#{where}")
            yield from reading.emit(events, table)


def _moves(
    reading: Reading,
    place: Ints,
    when: pd.Series,
    where: npt.NDArray[Any],
    table: str,
    frame: pd.DataFrame,
    key: str | None,
    suffix: str = "",
) -> pd.DataFrame:
    return facts(
        reading.stays,
        place,
        time=when,
        available=when,
        code="WARDCAST//location",
        text=pd.Categorical(where.astype(str)),
        source_id=identity(table, frame, key, suffix),
    )


def located(units: pd.Series, nameless: str) -> npt.NDArray[Any]:
    """The location category of each care unit's name, by :data:`UNITS`."""
    labels = [*(_location(str(label)) for label in units.cat.categories), nameless]
    return np.array(labels, dtype=object)[units.cat.codes]


def _location(unit: str) -> str:
    return next((where for pattern, where in UNITS if re.search(pattern, unit, re.IGNORECASE)), "ward")


ARTERIAL: Final = "art"
MIXED: Final = ("mix", "central")
"""How the words begin by which a specimen item names an arterial sample, and a mixed or central venous one."""


@dataclass(frozen=True)
class Specimens:
    """Blood gas samples that are not arterial, by the marks of :meth:`marks`; which code their results get.

    ``by`` are the columns that a sample's rows share: its own identity in MIMIC-IV, person and time in MIMIC-III.
    """

    by: Columns
    kinds: Mapping[str, npt.NDArray[np.uint64]]

    @staticmethod
    def marks(frame: pd.DataFrame, by: Columns) -> npt.NDArray[np.uint64]:
        """A mark of the sample of each row."""
        return marked(*(micros_of(frame[c]) if kind == "time" else frame[c] for c, kind in by.items()))

    def coded(self, system: str, frame: pd.DataFrame) -> pd.Categorical[Any]:
        """The code of each row, ``SYSTEM//item/VEN`` or ``/MIX`` where the tables know one for such a sample."""
        plain = coded(system, frame["itemid"])
        known = {**loader.codes(), **loader.left_out()}
        told = [any(f"{c}/{kind}" in known for kind in self.kinds) for c in plain.categories]
        rows = np.flatnonzero(np.append(told, False)[plain.codes])
        if not rows.size:
            return plain
        labels, which, n = plain.categories, plain.codes.astype(np.int64), len(plain.categories)
        mark = self.marks(frame.iloc[rows], self.by)
        for turn, (kind, marks) in enumerate(self.kinds.items(), 1):
            labels = labels.append(pd.Index([f"{c}/{kind}" for c in plain.categories], dtype="str"))
            found = rows[np.isin(mark, marks)]
            which[found] = plain.codes[found] + turn * n
        return categories(which, labels)


def specimens(reading: Reading, item: str, by: Columns) -> Specimens:
    """Learn from a first look at labevents which samples are not arterial; ``item`` is what names the sample.

    The rows that name a sample may stand after its results, so they are looked up before: eight bytes a sample that is
    not arterial. A sample that nothing names counts as arterial: in MIMIC-III's demo their oxygen pressures have the
    mean of arterial ones (127 and 125 mm[Hg]; venous 72, mixed 39).
    """
    columns: Columns = {"itemid": "id", "value": "text", **by}
    kinds: dict[str, list[npt.NDArray[np.uint64]]] = {"VEN": [], "MIX": []}
    for frame in reading.tables.stream("labevents", columns, optional=("value", *by)):
        naming = frame[(frame["itemid"] == item).to_numpy(bool) & frame["value"].notna().to_numpy()]
        naming = naming[naming[list(by)].notna().all(axis=1)]
        said = naming["value"].astype("str").str.strip().str.lower()
        mixed = said.str.startswith(MIXED).to_numpy(bool)
        mark = Specimens.marks(naming, by)
        kinds["MIX"].append(mark[mixed])
        kinds["VEN"].append(mark[~mixed & ~said.str.startswith(ARTERIAL).to_numpy(bool)])
    none = np.zeros(0, dtype=np.uint64)
    reading.account.note("labevents: a blood gas counts as arterial unless its sample is said to be another.")
    return Specimens(by, {kind: np.unique(np.concatenate([none, *marks])) for kind, marks in kinds.items()})


def measurements(
    reading: Reading,
    table: str,
    system: str,
    *,
    key: str | None,
    refused: str | None = None,
    samples: Specimens | None = None,
    watch: Callable[[pd.DataFrame, Ints], None] | None = None,
) -> Iterator[Batch]:
    """Events of chartevents or labevents: a number, or words where there is no number.

    ``storetime`` is when the fact became visible, where the table has it and it is not before ``charttime``. Rows that
    the source itself marks as wrong (``refused``) are left, and counted. ``samples`` tells blood gases that are not
    arterial, ``watch`` is shown all events with their places.
    """
    columns: Columns = {
        **OF_A_ROW, **(samples.by if samples else {}), "charttime": "time", "storetime": "time", "value": "text",
        "valuenum": "number", "valueuom": "text", **({key: "key"} if key else {}),
        **({refused: "number"} if refused else {}),
    }  # fmt: skip
    named = tuple(c for c in samples.by if c not in OF_A_ROW and c != "charttime") if samples else ()
    optional = ("storetime", "value", *((refused,) if refused else ()), *named)
    for frame in reading.rows(table, columns, optional=optional):
        if refused:
            frame = leave(frame, (frame[refused] == 1).to_numpy(), reading.account, table, "error")
        silent = (frame["valuenum"].isna() & frame["value"].isna()).to_numpy()
        frame = leave(frame, silent, reading.account, table, "no_value")
        frame, place = reading.settled(
            leave(frame, frame["itemid"].isna(), reading.account, table, "no_code"), table, "charttime"
        )
        events = facts(
            reading.stays,
            place,
            time=frame["charttime"],
            available=frame["storetime"],
            code=samples.coded(system, frame) if samples else coded(system, frame["itemid"]),
            value=frame["valuenum"].to_numpy(),
            text=only_where(frame["value"], frame["valuenum"].isna()),
            unit=frame["valueuom"],
            source_id=identity(table, frame, key),
        )
        reading.weights.add_events(events, place)
        if watch:
            watch(events, place)
        yield from reading.emit(events, table)


def outputs(reading: Reading, *, key: str | None, refused: str | None = None) -> Iterator[Batch]:
    """Events of outputevents: urine and other volumes."""
    columns: Columns = {
        **OF_A_ROW, "charttime": "time", "storetime": "time", "value": "number", "valueuom": "text",
        **({key: "key"} if key else {}), **({refused: "number"} if refused else {}),
    }  # fmt: skip
    for frame in reading.rows(
        "outputevents", columns, optional=("storetime", *((refused,) if refused else ()))
    ):
        if refused:
            frame = leave(frame, (frame[refused] == 1).to_numpy(), reading.account, "outputevents", "error")
        frame = leave(frame, frame["value"].isna(), reading.account, "outputevents", "no_value")
        frame, place = reading.settled(frame, "outputevents", "charttime")
        events = facts(
            reading.stays,
            place,
            time=frame["charttime"],
            available=frame["storetime"],
            code=coded("MIMIC_OUTPUT", frame["itemid"]),
            value=frame["value"].to_numpy(),
            unit=frame["valueuom"],
            source_id=identity("outputevents", frame, key),
        )
        yield from reading.emit(events, "outputevents")


INPUTS: Final[Columns] = {
    **OF_A_ROW, "starttime": "time", "endtime": "time", "storetime": "time", "amount": "number", "amountuom": "text",
    "rate": "number", "rateuom": "text", "patientweight": "number", "statusdescription": "text",
    "cancelreason": "number",
}  # fmt: skip


def inputs(reading: Reading, table: str, *, key: str | None) -> Iterator[Batch]:
    """Events of MetaVision input: a rate at its start and 0 at its end, or an amount once it has been given.

    What a code means decides: where the concept is a volume it is the amount, otherwise the rate where there is one.
    A dose of an antibiotic is an event of that concept, as in the tables of orders.
    The end of a row is no event where another row of the same drug goes on. Cancelled and rewritten rows are left.
    """
    columns: Columns = {**INPUTS, **({key: "key"} if key else {})}
    optional = ("patientweight", "statusdescription", "cancelreason", "storetime")
    running = _running(reading, table, "MIMIC_INPUT", rates=True)
    doses = _antibiotic_items(reading)
    for frame in reading.rows(table, columns, optional=optional):
        frame = _standing(frame, reading.account, table)
        silent = (frame["rate"].isna() & frame["amount"].isna()).to_numpy()
        frame = leave(frame, silent, reading.account, table, "no_value")
        frame, place = reading.settled(frame, table, "starttime")
        dose = frame["itemid"].isin(doses).to_numpy(bool)
        given = _given(reading, frame[~dose], place[~dose], running, table, key)
        antibiotics = _doses(reading, frame[dose], place[dose], doses, table, key)
        yield from reading.emit(stacked([given, antibiotics]), table)


def _antibiotic_items(reading: Reading) -> dict[str, str]:
    """Items of the input tables that are systemic antimicrobials, with their labels, as d_items prints them."""
    if not reading.tables.has("d_items"):
        reading.account.note(
            "Table d_items is not there: antibiotics among the input are not told from other drugs."
        )
        return {}
    columns: Columns = {"itemid": "id", "label": "text", "linksto": "text"}
    items = reading.tables.whole("d_items", columns)
    items = items[items["linksto"].str.startswith("inputevents").fillna(False) & items["label"].notna()]
    known = items[systemic(items["label"].astype("category"), None)]
    return dict(zip(known["itemid"], known["label"], strict=True))


def _doses(
    reading: Reading, frame: pd.DataFrame, place: Ints, doses: Mapping[str, str], table: str, key: str | None
) -> pd.DataFrame:
    """Antibiotics given at the bedside, at the start of each dose."""
    items = frame["itemid"].array
    labels = pd.Index([doses.get(item, item) for item in items.categories], dtype="str")
    spot, names = pd.factorize(labels)
    label = pd.Series(categories(np.append(spot, -1)[items.codes], pd.Index(names)), index=frame.index)
    return facts(
        reading.stays,
        place,
        time=frame["starttime"],
        available=frame["storetime"],
        code=coded("MIMIC_DRUG", label),
        concept="antibiotic",
        value=1.0,
        text=label,
        source_id=identity(table, frame, key),
    )


def _running(reading: Reading, table: str, system: str, *, rates: bool) -> Running:
    """When each known therapy runs, from a first look at its few columns; ``rates``: rows with a rate only."""
    columns: Columns = {
        **OF_A_ROW, "starttime": "time", "endtime": "time", "statusdescription": "text", "cancelreason": "number",
        **({"rate": "number"} if rates else {}),
    }  # fmt: skip
    running = Running()
    optional = ("statusdescription", "cancelreason", "endtime")
    for frame in reading.tables.stream(table, columns, optional=optional):
        frame = _standing(frame[frame["starttime"].notna()], ReadAccount(), table)
        frame = frame[frame["rate"].notna()] if rates else frame
        place = reading.stays.place_of_rows(frame, "hadm_id", "subject_id", "starttime")
        concept, _ = concepts_of(coded(system, frame["itemid"]))
        start, end = micros_of(frame["starttime"]), micros_of(frame["endtime"])
        running.add(place, np.where(place >= 0, concept, ""), start, end)
    return running


def _standing(frame: pd.DataFrame, account: ReadAccount, table: str) -> pd.DataFrame:
    """Rows that were neither cancelled nor rewritten (MIMIC-III keeps both beside what replaced them)."""
    rewritten = frame["statusdescription"].astype("str").str.lower().eq("rewritten").to_numpy()
    frame = leave(frame, rewritten, account, table, "rewritten")
    return leave(frame, frame["cancelreason"].fillna(0).ne(0).to_numpy(), account, table, "cancelled")


def _given(
    reading: Reading, frame: pd.DataFrame, place: Ints, running: Running, table: str, key: str | None
) -> pd.DataFrame:
    code = pd.Series(coded("MIMIC_INPUT", frame["itemid"]), index=frame.index)
    concept, wanted = concepts_of(code.array)
    kg = frame["patientweight"].to_numpy()
    kg = np.where(kg > 0, kg, reading.weights.at(place, micros_of(frame["starttime"])))
    rate, unit, weightless = weighed(frame["rate"].to_numpy(), frame["rateuom"], wanted, kg)
    is_rate = frame["rate"].notna().to_numpy() & ((wanted != "mL") | frame["amount"].isna().to_numpy())
    reading.account.leave(table, "no_weight", int((is_rate & weightless).sum()))
    starts = is_rate & ~weightless
    end = later(frame["starttime"], frame["endtime"])
    ended = starts & (frame["endtime"] > frame["starttime"]).to_numpy()
    ended &= ~running.goes_on(place, concept, micros_of(end))
    amounts = ~is_rate

    def part(
        rows: Masks, time: pd.Series, value: Floats, units: pd.Series | None, suffix: str
    ) -> pd.DataFrame:
        return facts(
            reading.stays,
            place[rows],
            time=time[rows],
            available=later(time, frame["storetime"])[rows],
            code=code[rows],
            value=value[rows],
            unit=None if units is None else units[rows],
            source_id=identity(table, frame[rows], key, suffix),
        )

    return stacked(
        [
            part(starts, frame["starttime"], rate, unit, ""),
            part(ended, end, np.zeros(len(frame)), unit, "#end"),
            part(amounts, end, frame["amount"].to_numpy(), frame["amountuom"], "#amount"),
        ]
    )


PROCEDURES: Final[Columns] = {
    **OF_A_ROW, "starttime": "time", "endtime": "time", "storetime": "time", "statusdescription": "text",
    "cancelreason": "number",
}  # fmt: skip


def procedures(reading: Reading, table: str, *, key: str | None) -> Iterator[Batch]:
    """Events of MetaVision procedures, ventilation and dialysis among them: 1 at the start, 0 at the end.

    The store time is that of the last change, often after the end: a start is then visible late rather than early.
    """
    columns: Columns = {**PROCEDURES, **({key: "key"} if key else {})}
    optional = ("statusdescription", "cancelreason", "storetime", "endtime")
    running = _running(reading, table, "MIMIC_PROCEDURE", rates=False)
    for frame in reading.rows(table, columns, optional=optional):
        frame, place = reading.settled(_standing(frame, reading.account, table), table, "starttime")
        yield from reading.emit(_performed(reading, frame, place, running, table, key), table)
    reading.account.note(f"{table}: the store time is that of the last change, so a start is known late.")


def _performed(
    reading: Reading, frame: pd.DataFrame, place: Ints, running: Running, table: str, key: str | None
) -> pd.DataFrame:
    code = pd.Series(coded("MIMIC_PROCEDURE", frame["itemid"]), index=frame.index)
    concept, _ = concepts_of(code.array)
    ended = (frame["endtime"] > frame["starttime"]).to_numpy(copy=True)
    ended &= ~running.goes_on(place, concept, micros_of(later(frame["starttime"], frame["endtime"])))
    parts = []
    for rows, column, value, suffix in (
        (np.ones(len(frame), dtype=bool), "starttime", 1.0, ""),
        (ended, "endtime", 0.0, "#end"),
    ):
        parts.append(
            facts(
                reading.stays,
                place[rows],
                time=frame[column][rows],
                available=later(frame[column], frame["storetime"])[rows],
                code=code[rows],
                value=value,
                source_id=identity(table, frame[rows], key, suffix),
            )
        )
    return stacked(parts)


def drugs(
    reading: Reading,
    table: str,
    *,
    name: str,
    route: str | None,
    time: str,
    key: str | None,
    available: str | None = None,
    entered: tuple[str, Callable[[pd.Series], pd.Series]] | None = None,
    by_date: bool = False,
    given: Mapping[str, frozenset[str]] | None = None,
) -> Iterator[Batch]:
    """Antibiotic events from a table of orders or administrations; every other drug is left, and counted.

    Parameters
    ----------
    name, route, time, available : columns of the drug, its route, its start, and when it was entered
    entered : (column, function), optional
        A number column and what gives the time of entry for its values, where that was after the start.
    by_date : bool
        The start is a date: it is known as the next day begins. When a drug ends is not read into the past.
    given : mapping of one column to the lower-case words that mean a dose was given; other rows are ``not_given``
    """
    columns: Columns = {
        "subject_id": "id", "hadm_id": "id", name: "text", time: "time", **({route: "text"} if route else {}),
        **({available: "time"} if available else {}), **({key: "key"} if key else {}),
        **dict.fromkeys(given or {}, "text"), **({entered[0]: "number"} if entered else {}),
    }  # fmt: skip
    for frame in reading.rows(table, columns, optional=tuple(c for c in (route, available) if c)):
        frame = leave(frame, frame[name].isna(), reading.account, table, "no_code")
        frame = leave(
            frame,
            ~systemic(frame[name], frame[route] if route else None),
            reading.account,
            table,
            "not_antimicrobial",
        )
        for column, words in (given or {}).items():
            said = frame[column].astype("str").str.lower().isin(words)
            frame = leave(frame, ~said.to_numpy(bool), reading.account, table, "not_given")
        frame, place = reading.settled(frame, table, time)
        visible = frame[available] if available else entered[1](frame[entered[0]]) if entered else None
        events = facts(
            reading.stays,
            place,
            time=frame[time],
            available=next_midnight(frame[time], reading.tables.timezone) if by_date else visible,
            code=coded("MIMIC_DRUG", frame[name]),
            concept="antibiotic",
            value=1.0,
            text=frame[name],
            source_id=identity(table, frame, key),
        )
        yield from reading.emit(events, table)


NO_ORGANISM: Final = frozenset({"cancelled", "negative"})
"""What MIMIC-IV writes as an organism where nothing grew."""
BLOOD: Final = "blood culture"


def cultures(reading: Reading, *, key: str, specimen: str | None = None) -> Iterator[Batch]:
    """Events of microbiology: a culture (and blood culture) once a specimen, a positive one once an organism of it.

    Parameters
    ----------
    key : the row's own identity
    specimen : column of the specimen's identity; without one, a specimen is an admission's of one kind at one time

    Notes
    -----
    Every specimen sent to microbiology counts as a culture, screening swabs and serology too, as in the published
    definitions of suspected infection on these data (mimic-code, suspicion_of_infection). A specimen with a date only
    (91 of 2,003 rows of MIMIC-III's demo) stands at midnight and is known as the next day begins; mimic-code pairs it
    with antibiotics of that day and the three after it by their dates. A growth is known at ``storetime``; without one
    the policy of the concept decides.
    """
    table = "microbiologyevents"
    columns: Columns = {
        "subject_id": "id", "hadm_id": "id", "chartdate": "time", "charttime": "time", "storetime": "time",
        "spec_type_desc": "text", "org_name": "text", key: "key", **({specimen: "key"} if specimen else {}),
    }  # fmt: skip
    seen = Seen(), Seen()
    for frame in reading.rows(table, columns, optional=("storetime", "charttime")):
        by_date = frame["charttime"].isna()
        frame = frame.assign(taken=frame["charttime"].where(~by_date, frame["chartdate"]), by_date=by_date)
        frame = leave(frame, frame["spec_type_desc"].isna(), reading.account, table, "no_code")
        frame, place = reading.settled(frame, table, "taken")
        sample = _sample(frame, place, specimen)
        grown = frame["org_name"].astype("str").str.lower()
        grew = (grown.notna() & ~grown.isin(NO_ORGANISM)).to_numpy(bool)
        first = seen[0].new(sample)
        organism = seen[1].new(marked(sample, frame["org_name"]), among=grew)
        reading.account.leave(table, "same_specimen", int((~first & ~organism).sum()))
        yield from reading.emit(_cultured(reading, frame, place, first, organism, key), table)


def _cultured(
    reading: Reading, frame: pd.DataFrame, place: Ints, first: Masks, organism: Masks, key: str
) -> pd.DataFrame:
    blood = frame["spec_type_desc"].astype("str").str.lower().str.startswith(BLOOD).to_numpy(bool)
    known = next_midnight(frame["taken"], reading.tables.timezone).where(frame["by_date"])
    # Where only the day is known, the policy counts from its end: the specimen may have been its last.
    growth = pd.Timedelta(minutes=loader.concepts()["positive_culture"].available_after_min)
    grown = frame["storetime"].fillna((known + growth).astype(UTC_US))
    parts = []
    for rows, concept in (
        (first, "culture"),
        (first & blood, "blood_culture"),
        (organism, "positive_culture"),
    ):
        some = frame[rows]
        positive = concept == "positive_culture"
        parts.append(
            facts(
                reading.stays,
                place[rows],
                time=some["taken"],
                available=grown[rows] if positive else known[rows],
                code=coded("MIMIC_SPEC", some["spec_type_desc"]),
                concept=concept,
                value=1.0,
                text=some["org_name"] if positive else some["spec_type_desc"],
                source_id=identity("microbiologyevents", some, key),
            )
        )
    return stacked(parts)


def _sample(frame: pd.DataFrame, place: Ints, specimen: str | None) -> npt.NDArray[np.uint64]:
    """A mark of the specimen that each row is about."""
    kind = frame["spec_type_desc"].astype("str")
    if specimen is None:
        return marked(place, micros_of(frame["taken"]), kind)
    own = frame[specimen]
    when = pd.Series(micros_of(frame["taken"]).astype(str), index=frame.index, dtype="str")
    return marked(place, own.where(own.notna(), kind + " " + when))
