"""OMOP CDM 5.4 (and 5.3) tables, as Parquet or CSV.

An encounter is a visit of a hospital; outpatient visits are none. A fact of a visit that it does not name belongs to
the visit of its person that spans it. OMOP knows one time of a fact: when it was visible is left to the declared policy
of its concept, but a fact of which only the date is known is visible the next day. A midnight counts as a bare date
where a table holds so many of them that clocks cannot have shown them all. Field meanings: OHDSI Common Data Model 5.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from features.clock import UTC_US
from features.concepts import loader
from features.errors import DataError
from features.events import ENCOUNTER_COLUMNS, NAT
from features.sources.batch import Batch, ReadAccount, Say, quiet
from features.sources.facts import zone
from features.sources.infusions import MASSES, Weights, weighed
from features.sources.journeys import Journey, admissions, follow, marks, placed
from features.sources.omop_vocabulary import Vocabulary, asked_once, known, vocabulary, words_of
from features.sources.stays import (
    DAY_US,
    LATEST_US,
    Ints,
    Stays,
    coded,
    emit,
    facts,
    identity,
    micros_of,
    next_midnight,
    settle,
    since,
    stacked,
)
from features.sources.tables import Kind, Tables, leave
from features.sources.vocabulary import SiteMap, is_blood, site_map

DRUGS: Final = "OMOP_DRUG"
SPECIMENS: Final = "OMOP_SPEC"
MIDNIGHTS: Final = 0.2
"""Share of midnights above which they are dates: an hourly chart has one in 24, a ward's morning list fewer."""
YEAR_US: Final = 365.25 * DAY_US
LONGEST_MIN: Final = 7 * 1440
"""An infusion of more than a week by one row is no rate that anybody set."""
RESULTS: Final = {
    "measurement": ("value_source_value", "operator_concept_id"),
    "observation": ("value_as_string", "value_source_value"),
}
"""Tables of results, with the columns of each that the other has not."""


def batches(
    path: Path,
    account: ReadAccount,
    *,
    timezone: str = "UTC",
    mapping: Path | Mapping[str, Any] | None = None,
    say: Say = quiet,
) -> Iterator[Batch]:
    """Read a folder of OMOP tables.

    Parameters
    ----------
    path : Path
        Needs ``person`` and ``visit_occurrence``; read besides, where they are: visit_detail, care_site, measurement,
        observation, drug_exposure, procedure_occurrence, specimen, death, concept, concept_relationship.
    timezone : str
        Of the times, which carry no offset in OMOP.
    mapping : TOML file or mapping, optional
        What the site says of its codes (``OMOP_SOURCE//theirs``), units and care sites: see
        features.sources.vocabulary.

    Raises
    ------
    DataError
        A table or a column is missing or holds what it should not, or there is no such time zone.
    """
    zone(timezone)
    tables = Tables(path, timezone=timezone)
    tables.require("person", "visit_occurrence")
    site = site_map(mapping)
    visits = _visits(tables, account, say)
    rough = Stays(_skeleton(visits), *_spans(visits))
    moves = _moves(tables, account, say, rough, visits, site)
    journey = follow(rough, moves)
    visits = visits.assign(seen=_seen(visits, journey))
    stays = Stays(_encounters(visits, journey), rough.start, rough.end)
    yield from stays.batches()
    reader = _Reader(tables, account, say, stays, vocabulary(tables, account, say, site))
    yield from reader.bounds(visits)
    for events in journey.pieces():
        yield from reader.emit("visit_detail" if tables.has("visit_detail") else "visit_occurrence", events)
    # Weights among the measurements are needed for the rates of infusions.
    for table in RESULTS:
        yield from reader.results(table)
    yield from reader.drugs()
    yield from reader.procedures()
    yield from reader.specimens()
    yield from reader.deaths(visits)


def _visits(tables: Tables, account: ReadAccount, say: Say) -> pd.DataFrame:
    """One row a hospital visit, with its person; its index is the row in the table."""
    name = "visit_occurrence"
    columns: dict[str, Kind] = {
        "visit_occurrence_id": "id", "person_id": "id", "visit_concept_id": "id", "visit_start_date": "time",
        "visit_start_datetime": "time", "visit_end_date": "time", "visit_end_datetime": "time",
        "discharged_to_concept_id": "id", "discharge_to_concept_id": "id",
    }  # fmt: skip
    optional = tuple(columns)[4:5] + tuple(columns)[6:]
    table = tables.whole(name, columns, optional=optional, account=account, say=say)
    nobody = table["visit_occurrence_id"].isna() | table["person_id"].isna()
    table = leave(table, nobody, account, name, "no_identifier")
    table = leave(
        table, table["visit_concept_id"].isin(list(known("outpatient"))), account, name, "outpatient_visit"
    )
    dates = _Dates(tables, account)
    began = dates.moment(table, name, "visit_start_date", "visit_start_datetime")
    ended = dates.moment(table, name, "visit_end_date", "visit_end_datetime")
    # A patient who left on a day was there until its end, as far as anybody knows.
    end = ended["known"].where(ended["known"].notna(), ended["time"])
    backwards = (end < began["time"]).to_numpy(bool)
    if backwards.any():
        account.note(f"{int(backwards.sum()):,} visits end before they begin: their end is taken as unknown.")
    died = (
        table["discharged_to_concept_id"].fillna(table["discharge_to_concept_id"]).isin(list(known("died")))
    )
    # Of a bare date nobody knew before the day was over, or the visit.
    seen = began["known"].fillna(began["time"])
    seen, end = seen.where(~(end < seen) | backwards, end), end.where(~backwards)
    table = table.assign(begin=began["time"], seen=seen, end=end, died=died)
    table = leave(table, table["begin"].isna(), account, name, "no_time")
    return _with_person(table, tables, account, say)


def _with_person(visits: pd.DataFrame, tables: Tables, account: ReadAccount, say: Say) -> pd.DataFrame:
    columns: dict[str, Kind] = {
        "person_id": "id", "gender_concept_id": "id", "year_of_birth": "number", "month_of_birth": "number",
        "day_of_birth": "number", "birth_datetime": "time",
    }  # fmt: skip
    optional = ("month_of_birth", "day_of_birth", "birth_datetime")
    people = tables.whole("person", columns, optional=optional, account=account, say=say)
    account.leave("person", "describes_the_person", len(people))
    twice = int(people["person_id"].duplicated().sum())
    if twice:
        raise DataError(f"Table person repeats person_id in {twice:,} rows. Keep one row a person.")
    person = people.set_index("person_id").reindex(visits["person_id"]).set_axis(visits.index)
    born = _born(person)
    if (born.notna() & person["birth_datetime"].isna() & person["month_of_birth"].isna()).any():
        account.note("Where only the year of birth is known, the first of July is taken for the age.")
    age = np.where(born.notna(), (micros_of(visits["begin"]) - micros_of(born)) / YEAR_US, np.nan)
    return visits.assign(age_years=age, sex=person["gender_concept_id"].map(known("sex")).fillna(""))


def _born(person: pd.DataFrame) -> pd.Series:
    parts = {
        "year": person["year_of_birth"].where(person["year_of_birth"].between(1800, 2300)),
        "month": person["month_of_birth"].fillna(7),
        "day": person["day_of_birth"].fillna(1),
    }
    day = pd.to_datetime(pd.DataFrame(parts), errors="coerce").dt.tz_localize("UTC").astype(UTC_US)
    return person["birth_datetime"].fillna(day)


def _skeleton(visits: pd.DataFrame) -> pd.DataFrame:
    names = {"encounter_id": visits["visit_occurrence_id"].array, "subject_id": visits["person_id"].array}
    return pd.DataFrame(names).reindex(columns=list(ENCOUNTER_COLUMNS))


def _spans(visits: pd.DataFrame) -> tuple[Ints, Ints]:
    end = micros_of(visits["end"])
    return micros_of(visits["begin"]), np.where(end == NAT, LATEST_US, end)


def _seen(visits: pd.DataFrame, journey: Journey) -> pd.Series:
    """When each visit was known to have begun; a move of a known hour tells it sooner than a bare date."""
    begin, seen = micros_of(visits["begin"]), micros_of(visits["seen"])
    moved = np.where(journey.first == NAT, seen, np.maximum(journey.first, begin))
    return since(np.minimum(seen, moved)).set_axis(visits.index)


def _encounters(visits: pd.DataFrame, journey: Journey) -> pd.DataFrame:
    # A visit that went through the emergency room to a bed is one of the ward, whether or not its moves are known.
    admitted = (journey.kind == "ed") & ~visits["visit_concept_id"].isin(list(known("emergency"))).to_numpy()
    return _skeleton(visits).assign(
        encounter_class=np.where(admitted, "ward", journey.kind).astype(object),
        unit="",
        specialty="",
        age_years=visits["age_years"].to_numpy(np.float64),
        sex=visits["sex"].array,
        icu_type="",
        hospital_admission_time=visits["seen"].array,
        icu_admission_time=since(journey.icu),
    )


def _moves(
    tables: Tables, account: ReadAccount, say: Say, stays: Stays, visits: pd.DataFrame, site: SiteMap
) -> pd.DataFrame:
    """Where patients were: by the visit details, and where a visit has none by the visit itself."""
    parts = [_rough_moves(visits)]
    if tables.has("visit_detail"):
        details = _Details(tables, account, say, stays, site, _care_sites(tables, account, say))
        moves = list(details.pieces())
        told = pd.concat([m["stay"] for m in moves]).unique() if moves else []
        parts = [parts[0][~parts[0]["stay"].isin(told)], *moves]
    return pd.concat(parts, ignore_index=True)


def _rough_moves(visits: pd.DataFrame) -> pd.DataFrame:
    where = visits["visit_concept_id"].map(known("place")).fillna("ward").to_numpy(object)
    return pd.DataFrame(
        {
            "stay": np.arange(len(visits)),
            "came": visits["seen"].array,
            "went": visits["end"].array,
            "where": placed(where),
            "source_id": identity("visit_occurrence", visits, "visit_occurrence_id").array,
        }
    )


def _care_sites(tables: Tables, account: ReadAccount, say: Say) -> dict[str, str]:
    if not tables.has("care_site"):
        return {}
    columns: dict[str, Kind] = {"care_site_id": "id", "care_site_name": "text"}
    table = tables.whole("care_site", columns, account=account, say=say)
    account.leave("care_site", "names_a_place", len(table))
    return dict(zip(table["care_site_id"].fillna(""), table["care_site_name"].fillna(""), strict=True))


@dataclass(frozen=True)
class _Details:
    """The visit details that say where a patient was."""

    tables: Tables
    account: ReadAccount
    say: Say
    stays: Stays
    site: SiteMap
    care_sites: dict[str, str]

    def pieces(self) -> Iterator[pd.DataFrame]:
        name = "visit_detail"
        columns: dict[str, Kind] = {
            "visit_detail_id": "key", "person_id": "id", "visit_occurrence_id": "id", "care_site_id": "id",
            "visit_detail_concept_id": "id", "visit_detail_start_date": "time", "visit_detail_start_datetime": "time",
            "visit_detail_end_date": "time", "visit_detail_end_datetime": "time",
        }  # fmt: skip
        optional = (
            "care_site_id",
            "visit_detail_start_datetime",
            "visit_detail_end_datetime",
            "visit_detail_end_date",
        )
        dates = _Dates(self.tables, self.account)
        for frame in self.tables.stream(name, columns, optional=optional, account=self.account, say=self.say):
            came = dates.moment(frame, name, "visit_detail_start_date", "visit_detail_start_datetime")
            went = dates.moment(frame, name, "visit_detail_end_date", "visit_detail_end_datetime")
            # A move of an unknown hour is one of the next day: nobody could have told before.
            frame = frame.assign(
                time=came["known"].fillna(came["time"]), went=went["known"].fillna(went["time"])
            )
            place = self.stays.place_of_rows(frame, "visit_occurrence_id", "person_id", "time")
            frame, place = settle(frame, place, self.stays, self.account, name, time="time")
            yield self._located(frame, place)

    def _located(self, frame: pd.DataFrame, place: Ints) -> pd.DataFrame:
        name = "visit_detail"
        where = words_of(frame, ["care_site_id", "visit_detail_concept_id"], self._where)
        begin, end = micros_of(frame["time"]), micros_of(frame["went"])
        whole = (begin <= self.stays.start[place]) & ((end >= self.stays.end[place]) | (end == begin))
        # A detail without a care site that is as long as its visit repeats the visit; it is no move.
        whole &= frame["care_site_id"].isna().to_numpy()
        part = {
            "stay": place, "came": frame["time"].array, "went": frame["went"].array,
            "where": placed(where.array), "source_id": identity(name, frame, "visit_detail_id").array,
        }  # fmt: skip
        moves = leave(pd.DataFrame(part), whole, self.account, name, "whole_visit")
        return leave(moves, moves["where"].isna(), self.account, name, "no_place")

    def _where(self, care_site: str, concept: str) -> str:
        """By the name of the care site; where that says nothing in particular, by the kind of visit."""
        named = self.site.place(self.care_sites.get(care_site, ""))
        told = known("place").get(concept, "")
        return named if named not in ("", "ward") else told or named


@dataclass
class _Dates:
    """When facts happened and, for bare dates, when they were known; and whether a table's midnights are dates."""

    tables: Tables
    account: ReadAccount
    _bare: dict[tuple[str, str], bool] = field(default_factory=dict)

    def moment(
        self, frame: pd.DataFrame, table: str, date: str, datetime: str, *, always: bool = False
    ) -> pd.DataFrame:
        """``time``, and ``known``: the next midnight for a bare date, otherwise missing.

        ``always`` takes every midnight for a date.
        """
        time = frame[datetime].fillna(frame[date])
        bare = frame[datetime].isna()
        if always or self._midnights_are_dates(table, datetime):
            bare |= self._midnight(frame[datetime])
        known_at = next_midnight(time, self.tables.timezone).where(bare)
        return pd.DataFrame({"time": time, "known": known_at}, index=frame.index)

    def _midnight(self, times: pd.Series) -> pd.Series:
        if self.tables.timezone == "UTC":
            return pd.Series(micros_of(times) % DAY_US == 0, index=times.index) & times.notna()
        local = times.dt.tz_convert(self.tables.timezone)
        midnight: pd.Series = (local == local.dt.normalize()) & times.notna()
        return midnight

    def _midnights_are_dates(self, table: str, column: str) -> bool:
        """By the first rows of the table: the answer must not change from piece to piece."""
        asked = table, column
        if asked not in self._bare:
            present = self.tables.has(table) and column in self.tables.columns(table)
            first = next(self.tables.stream(table, {column: "time"}), None) if present else None
            given = first[column].dropna() if first is not None else pd.Series(dtype=UTC_US)
            self._bare[asked] = bool(len(given)) and float(self._midnight(given).mean()) > MIDNIGHTS
            if self._bare[asked]:
                self.account.note(f"So many of {table}.{column} are midnights that they are taken for dates.")
        return self._bare[asked]


@dataclass(frozen=True)
class _Reader:
    tables: Tables
    account: ReadAccount
    say: Say
    stays: Stays
    words: Vocabulary
    weights: Weights = field(default_factory=Weights)

    def pieces(
        self, name: str, prefix: str, key: str, columns: Mapping[str, Kind], *, optional: tuple[str, ...] = ()
    ) -> Iterator[pd.DataFrame]:
        """Rows of a table that belong to a stay, with ``time``, ``known`` (for bare dates), ``stay`` and ``key``."""
        if not self.tables.has(name):
            return
        date, datetime = f"{prefix}date", f"{prefix}datetime"
        wanted: dict[str, Kind] = {
            key: "key", "person_id": "id", "visit_occurrence_id": "id", date: "time", datetime: "time", **columns,
        }  # fmt: skip
        spare = (key, "visit_occurrence_id", datetime, *optional)
        dates = _Dates(self.tables, self.account)
        for frame in self.tables.stream(name, wanted, optional=spare, account=self.account, say=self.say):
            frame = pd.concat([frame, dates.moment(frame, name, date, datetime)], axis=1)
            place = self.stays.place_of_rows(frame, "visit_occurrence_id", "person_id", "time")
            frame, place = settle(frame, place, self.stays, self.account, name, time="time")
            yield frame.assign(stay=place, source=identity(name, frame, key).array)

    def facts(self, frame: pd.DataFrame, code: Any, **columns: Any) -> pd.DataFrame:
        columns.setdefault("source_id", frame["source"])
        return facts(
            self.stays, _stay(frame), time=frame["time"], available=frame["known"], code=code, **columns
        )

    def emit(self, name: str, *events: pd.DataFrame) -> Iterator[Batch]:
        return emit(stacked(events), self.account, name)

    def bounds(self, visits: pd.DataFrame) -> Iterator[Batch]:
        """How the visits began and ended."""
        source = identity("visit_occurrence", visits, "visit_occurrence_id")
        begin, end, dead = micros_of(visits["seen"]), micros_of(visits["end"]), visits["died"].to_numpy(bool)
        for events in admissions(self.stays, begin, end, dead, source):
            yield from self.emit("visit_occurrence", events)

    def results(self, name: str) -> Iterator[Batch]:
        """Measurements or observations: a number, words, or a number with a limit such as ``<0.01``."""
        columns: dict[str, Kind] = {
            f"{name}_concept_id": "id", f"{name}_source_concept_id": "id", f"{name}_source_value": "text",
            "value_as_number": "number", "value_as_concept_id": "id", "unit_concept_id": "id",
            "unit_source_value": "text", **{c: "id" if c.endswith("_id") else "key" for c in RESULTS[name]},
        }  # fmt: skip
        optional = tuple(columns)[1:]
        for frame in self.pieces(name, f"{name}_", f"{name}_id", columns, optional=optional):
            asked = [f"{name}_concept_id", f"{name}_source_concept_id", f"{name}_source_value"]
            frame = frame.assign(code=words_of(frame, asked, self.words.code), text=self._text(frame, name))
            frame = leave(frame, frame["code"].isna(), self.account, name, "no_code")
            silent = frame["value_as_number"].isna() & frame["text"].isna()
            frame = leave(frame, silent, self.account, name, "no_value")
            events = self.facts(
                frame,
                frame["code"],
                concept=words_of(frame, ["code"], self.words.concept),
                value=frame["value_as_number"],
                text=frame["text"],
                unit=words_of(frame, ["unit_concept_id", "unit_source_value", "code"], self.words.unit),
            )
            self.weights.add_events(events, _stay(frame))
            yield from self.emit(name, events)

    def _text(self, frame: pd.DataFrame, name: str) -> pd.Series:
        """Words where there is no number; the number with its sign where it is only a limit."""
        number = frame["value_as_number"]
        text = words_of(frame, ["value_as_concept_id"], lambda c: self.words.names.get(c, "")).astype("str")
        for column in ("value_as_string", "value_source_value"):
            if column in frame:
                said = frame[column].astype("str").str.strip()
                text = text.fillna(said.where(said != ""))
        text = text.where(number.isna())
        if "operator_concept_id" in frame:
            sign = frame["operator_concept_id"].astype("str").map(known("operator"))
            rows = (sign.notna() & number.notna()).to_numpy()
            limits = [f"{s}{n:g}" for s, n in zip(sign[rows], number[rows], strict=True)]
            text = text.mask(rows, pd.Series(limits, index=frame.index[rows], dtype="str"))
        return text

    def drugs(self) -> Iterator[Batch]:
        """Antibiotics, and infusions of vasoactive drugs where a rate can be told; every other drug is counted."""
        name = "drug_exposure"
        columns: dict[str, Kind] = {
            "drug_concept_id": "id", "drug_source_concept_id": "id", "drug_source_value": "text",
            "route_source_value": "text", "drug_exposure_end_date": "time", "drug_exposure_end_datetime": "time",
            "drug_type_concept_id": "id",
            "quantity": "number", "dose_unit_source_value": "text",
        }  # fmt: skip
        optional, dates = tuple(columns)[1:], _Dates(self.tables, self.account)
        for frame in self.pieces(name, f"{name}_start_", f"{name}_id", columns, optional=optional):
            asked = ["drug_concept_id", "drug_source_concept_id", "drug_source_value"]
            place, answers = asked_once(frame, [*asked, "route_source_value"], self.words.drug)
            told = pd.DataFrame(answers, columns=["concept", "drug"], dtype="object").iloc[place]
            frame = frame.assign(concept=told["concept"].array, drug=told["drug"].array)
            spot, named = asked_once(frame, asked, self.words.names_drug)
            nothing = (frame["concept"] == "").to_numpy()
            nameless = nothing & ~np.array(named, dtype=bool)[spot]
            frame, other = leave(frame, nameless, self.account, name, "no_drug_name"), nothing[~nameless]
            frame = leave(frame, other, self.account, name, "other_drug")
            anti = (frame["concept"] == "antibiotic").to_numpy()
            yield from self.emit(name, self._antibiotics(frame[anti]), self._infusions(frame[~anti], dates))

    def _antibiotics(self, frame: pd.DataFrame) -> pd.DataFrame:
        drug = frame["drug"].astype("category")
        return self.facts(frame, coded(DRUGS, drug), concept="antibiotic", value=1.0, text=drug)

    def _infusions(self, frame: pd.DataFrame, dates: _Dates) -> pd.DataFrame:
        """The mean rate from start to end of each administration, 0 at its end.

        An order is no infusion. A quantity in a unit by time is a rate already. One of a mass is spread over the time,
        which is known when it is over; where the hour of its end is unknown, it has no rate.
        """
        name = "drug_exposure"
        given = frame["drug_type_concept_id"].isin(list(known("administered")))
        frame = leave(frame, ~given, self.account, name, "order_without_rate")
        ends = dates.moment(frame, name, "drug_exposure_end_date", "drug_exposure_end_datetime")
        over = ends["known"].fillna(ends["time"])
        end = micros_of(over)
        minutes = (end - micros_of(frame["time"])) / 60e6
        unit = frame["dose_unit_source_value"].astype("str").fillna("")
        rated, mass = unit.str.contains("/").to_numpy(bool), unit.isin([*MASSES, "U", "units"]).to_numpy()
        timed = (end != NAT) & (minutes > 0) & (minutes <= LONGEST_MIN) & frame["known"].isna().to_numpy()
        quantity = frame["quantity"].to_numpy(np.float64)
        rate = np.where(rated, quantity, quantity / np.where(timed, minutes, np.nan))
        usable = timed & (rated | (mass & ends["known"].isna().to_numpy())) & (rate > 0)
        if (usable & ~rated).any():
            self.account.note(
                "The mean rate of an infusion told by its mass is known when the infusion ends."
            )
        per = unit.where(rated, unit + "/min").astype("category")
        frame = frame.assign(rate=rate, per=per, end=over, known=over.where(~rated))
        return self._weighed(leave(frame, ~usable, self.account, name, "no_rate"))

    def _weighed(self, frame: pd.DataFrame) -> pd.DataFrame:
        wanted = np.array([loader.concepts()[c].unit for c in frame["concept"]], dtype=object)
        kg = self.weights.at(_stay(frame), micros_of(frame["time"]))
        rate, unit, weightless = weighed(frame["rate"].to_numpy(np.float64), frame["per"], wanted, kg)
        frame = frame.assign(rate=rate, per=unit)
        frame = leave(frame, weightless, self.account, "drug_exposure", "no_weight")
        code, concept = coded(DRUGS, frame["drug"].astype("category")), frame["concept"]
        # Where one infusion ends as the next begins, text order puts the end first.
        begun = self.facts(
            frame,
            code,
            concept=concept,
            value=frame["rate"],
            unit=frame["per"],
            source_id="1:" + frame["source"],
        )
        over = frame.assign(time=frame["end"], known=since(np.full(len(frame), NAT)).array)
        ended = self.facts(
            over, code, concept=concept, value=0.0, unit=frame["per"], source_id="0:" + frame["source"]
        )
        return stacked([begun, ended])

    def procedures(self) -> Iterator[Batch]:
        """Ventilation, renal replacement and whatever else concepts/codes knows: 1 at the start, 0 at the end."""
        name = "procedure_occurrence"
        columns: dict[str, Kind] = {
            "procedure_concept_id": "id", "procedure_source_concept_id": "id", "procedure_source_value": "text",
            "procedure_end_date": "time", "procedure_end_datetime": "time",
        }  # fmt: skip
        optional, dates = tuple(columns)[1:], _Dates(self.tables, self.account)
        for frame in self.pieces(name, "procedure_", f"{name}_id", columns, optional=optional):
            asked = ["procedure_concept_id", "procedure_source_concept_id", "procedure_source_value"]
            frame = frame.assign(code=words_of(frame, asked, self.words.code))
            mapped = frame["code"].isin([c for c in frame["code"].cat.categories if c in loader.codes()])
            frame = leave(frame, ~mapped, self.account, name, "other_procedure")
            lasting = frame["code"].isin([c for c in frame["code"].cat.categories if _lasts(c)])
            # What ended on some day ran until its end, as far as anybody knows.
            ends = dates.moment(frame, name, "procedure_end_date", "procedure_end_datetime")
            end = ends["known"].fillna(ends["time"])
            over = frame.assign(time=end, known=since(np.full(len(frame), NAT)).array)
            over = over[lasting & (end > frame["time"])]
            yield from self.emit(
                name,
                self.facts(frame, frame["code"], value=1.0, source_id="1:" + frame["source"]),
                self.facts(over, over["code"], value=0.0, source_id="0:" + over["source"]),
            )

    def specimens(self) -> Iterator[Batch]:
        """Specimens, taken as sent for culture."""
        name = "specimen"
        columns: dict[str, Kind] = {"specimen_concept_id": "id", "specimen_source_value": "text"}
        for frame in self.pieces(
            name, "specimen_", "specimen_id", columns, optional=("specimen_source_value",)
        ):
            self.account.note("Every row of specimen is taken as sent for culture.")
            asked = ["specimen_concept_id", "specimen_source_value"]
            frame = frame.assign(fluid=words_of(frame, asked, self._fluid))
            frame = leave(frame, frame["fluid"].isna(), self.account, name, "no_code")
            place, answers = asked_once(frame, [*asked, "fluid"], _of_blood)
            blood = frame[np.array(answers, dtype=bool)[place]]
            yield from self.emit(name, self._culture(frame, "culture"), self._culture(blood, "blood_culture"))

    def _fluid(self, concept: str, value: str) -> str:
        return self.words.names.get(concept, "") or (concept if concept != "0" else "") or value

    def _culture(self, frame: pd.DataFrame, concept: str) -> pd.DataFrame:
        code = coded(SPECIMENS, frame["fluid"])
        return self.facts(frame, code, concept=concept, value=1.0, text=frame["fluid"])

    def deaths(self, visits: pd.DataFrame) -> Iterator[Batch]:
        """Deaths within a visit that its discharge does not tell of; of an unknown hour, at the end of the visit."""
        name = "death"
        if not self.tables.has(name):
            return
        columns: dict[str, Kind] = {"person_id": "id", "death_date": "time", "death_datetime": "time"}
        dates = _Dates(self.tables, self.account)
        for frame in self.tables.stream(
            name, columns, optional=("death_datetime",), account=self.account, say=self.say
        ):
            frame = pd.concat(
                [frame, dates.moment(frame, name, "death_date", "death_datetime", always=True)], axis=1
            )
            frame = leave(frame, frame["time"].isna(), self.account, name, "no_time")
            place, at = self._deathbed(frame)
            away = place < 0
            frame, place, at = (
                leave(frame, away, self.account, name, "after_discharge"),
                place[~away],
                at[~away],
            )
            told = visits["died"].to_numpy(bool)[place]
            frame = leave(frame, told, self.account, name, "told_by_discharge")
            place, at = place[~told], at[~told]
            source = identity(name, frame, None)
            everyone = np.ones(len(frame), dtype=bool)
            yield from self.emit(name, marks(self.stays, place, at, "death", source, everyone))

    def _deathbed(self, frame: pd.DataFrame) -> tuple[Ints, Ints]:
        """The visit in which each person died, and when: of a bare date, the visit that holds any hour of that day."""
        time, known_at = micros_of(frame["time"]), micros_of(frame["known"])
        bare = known_at != NAT
        last = self._latest_before(frame["person_id"], np.where(bare, known_at - 1, time))
        place = np.where((last >= 0) & (self.stays.end[last] >= time), last, -1)
        end = self.stays.end[place]
        return place, np.where(bare, np.where(end < LATEST_US, end, known_at), time)

    def _latest_before(self, person: pd.Series, at: Ints) -> Ints:
        """The last stay of each person that began before an instant, whether or not it lasted until then."""
        unending = Stays(self.stays.encounters, self.stays.start, np.full(len(self.stays.start), LATEST_US))
        return unending.place_in_time(person, at)


def _stay(frame: pd.DataFrame) -> Ints:
    return frame["stay"].to_numpy(np.int64)


def _lasts(code: str) -> bool:
    row = loader.codes().get(code)
    return row is not None and loader.concepts()[row.concept].kind == "therapy"


def _of_blood(concept: str, value: str, fluid: str) -> bool:
    return concept in known("blood") or is_blood("", value, fluid)
