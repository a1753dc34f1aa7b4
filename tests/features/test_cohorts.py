"""Cohorts: every rule at its edge, the attrition table, stretches in intensive care, and prediction times."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pandas as pd
import pytest

from features import cohorts
from features.clock import UTC_US
from features.errors import DataError, SpecError

START = pd.Timestamp("2026-05-01T09:00Z")
Tell = Callable[[list[dict[str, Any]]], pd.DataFrame]
DAY = timedelta(hours=24)


def at(hours: float) -> pd.Timestamp:
    return START + pd.Timedelta(hours=hours)


def stays(**people: dict[str, Any]) -> pd.DataFrame:
    """Encounters by name; ``since`` and ``icu`` are hours, ``who`` the person."""
    rows = [
        {
            "encounter_id": name, "subject_id": said.get("who", name), "age_years": said.get("age", 60.0),
            "hospital_admission_time": at(said.get("since", 0)),
            "icu_admission_time": at(said["icu"]) if said.get("icu") is not None else pd.NaT,
        }
        for name, said in people.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    for column in ("hospital_admission_time", "icu_admission_time"):
        table[column] = pd.to_datetime(table[column], utc=True).astype(UTC_US)
    return table


def event(encounter: str, concept: str, hour: float, value: float = 1) -> dict[str, Any]:
    return {"encounter_id": encounter, "concept": concept, "time": hour, "value": value}


def kept(encounters: pd.DataFrame, events: pd.DataFrame, rule: cohorts.Rule) -> list[str]:
    return cohorts.select(encounters, events, [rule]).encounters["encounter_id"].tolist()


def test_the_attrition_table_counts_every_rule_in_order(tell: Tell) -> None:
    people = stays(
        a={"icu": 1}, b={"icu": 1, "age": 17}, c={"age": 15}, d={"icu": 2, "who": "a", "since": 90}
    )
    rules = [cohorts.adults(), cohorts.ever_in_icu(), cohorts.first_of_person()]
    cohort = cohorts.select(people, tell([]), rules)
    assert cohort.encounters["encounter_id"].tolist() == ["a"]
    assert cohort.attrition.to_dict("list") == {
        "rule": ["all", "age 18 years or more", "ever in intensive care", "first encounter of the person"],
        "left_out": [0, 2, 0, 1],
        "encounters": [4, 2, 2, 1],
        "subjects": [3, 1, 1, 1],
    }


def test_an_adult_is_eighteen_and_an_unknown_age_is_none(tell: Tell) -> None:
    people = stays(a={"age": 18.0}, b={"age": 17.99}, c={"age": float("nan")})
    assert kept(people, tell([]), cohorts.adults()) == ["a"]


def test_the_first_encounter_of_a_person_is_the_earliest_whatever_the_order(tell: Tell) -> None:
    people = stays(
        late={"who": "p", "since": 50}, early={"who": "p", "since": 2}, other={"who": "q", "since": 9}
    )
    assert kept(people, tell([]), cohorts.first_of_person()) == ["early", "other"]


def test_a_stay_lasts_to_its_discharge_or_else_to_its_last_event(tell: Tell) -> None:
    people = stays(a={"icu": 1}, b={"icu": 1}, c={"icu": 1}, d={})
    events = tell(
        [
            event("a", "hospital_discharge", 25),
            event("a", "lactate", 40),
            event("b", "heart_rate", 24.9),
            event("c", "death", 30),
            event("d", "heart_rate", 90),
        ]
    )
    assert kept(people, events, cohorts.minimum_stay(DAY)) == ["a", "c"]
    assert kept(people, events, cohorts.minimum_stay(DAY, since="hospital")) == ["a", "b", "c", "d"]
    with pytest.raises(SpecError, match="'hospital' or 'icu'"):
        kept(people, events, cohorts.minimum_stay(DAY, since="ward"))  # type: ignore[arg-type]


def test_every_concept_must_be_measured_often_enough(tell: Tell) -> None:
    rows = [
        event("a", "heart_rate", 1),
        event("a", "heart_rate", 2),
        event("a", "sbp", 1),
        event("b", "sbp", 1),
    ]
    people = stays(a={}, b={}, c={})
    assert kept(people, tell(rows), cohorts.measured(["heart_rate", "sbp"])) == ["a"]
    assert kept(people, tell(rows), cohorts.measured(["heart_rate"], at_least=2)) == ["a"]
    assert kept(people, tell(rows), cohorts.measured(["lactate"])) == []
    as_categories = tell(rows).astype({"encounter_id": "category", "concept": "category"})
    assert kept(people, as_categories, cohorts.measured(["sbp"])) == ["a", "b"]


def test_an_outcome_at_the_end_of_the_washout_is_prevalent(tell: Tell) -> None:
    people = stays(a={"icu": 10}, b={"icu": 10}, c={"icu": 10})
    onsets = pd.DataFrame({"encounter_id": ["a", "b", "b"], "onset_time": [at(14), at(50), at(14.01)]})
    rule = cohorts.free_of(onsets.astype({"onset_time": UTC_US}), timedelta(hours=4))
    assert kept(people, tell([]), rule) == ["b", "c"]
    assert rule.name == "free of the outcome for 4 h"
    nobody = cohorts.free_of(onsets.head(0).astype({"onset_time": UTC_US}), timedelta(hours=4))
    assert kept(people, tell([]), nobody) == ["a", "b", "c"]


def spans(
    encounters: pd.DataFrame, events: pd.DataFrame, joined: float = 0
) -> list[tuple[str, int, float, float]]:
    found = cohorts.icu_stays(encounters, events, timedelta(hours=joined))
    return [
        (
            r.encounter_id,
            r.icu_stay,
            *((t - START) / pd.Timedelta(hours=1) for t in (r.start_time, r.end_time)),
        )
        for r in found.itertuples()
    ]


def test_stretches_in_intensive_care_follow_the_moves(tell: Tell) -> None:
    people = stays(a={"icu": 5}, b={})
    rows = [
        event("a", "location", 0, 1), event("a", "location", 5, 4), event("a", "location", 9, 4),  # unit to unit
        event("a", "icu_discharge", 9), event("a", "icu_discharge", 20), event("a", "location", 20, 2),
        event("a", "location", 30, 4), event("a", "hospital_discharge", 33), event("b", "location", 3, 2),
        event("b", "hospital_discharge", 9),
    ]  # fmt: skip
    assert spans(people, tell(rows)) == [("a", 0, 5, 20), ("a", 1, 30, 33)]
    assert spans(people, tell(rows), joined=10) == [("a", 0, 5, 33)]
    assert spans(people, tell(rows), joined=9.9) == [("a", 0, 5, 20), ("a", 1, 30, 33)]
    assert spans(people, tell(rows[::-1])) == spans(people, tell(rows))


def test_without_moves_the_icu_lasts_from_its_admission_to_the_end(tell: Tell) -> None:
    people = stays(a={"icu": 5}, b={"icu": 6}, c={"icu": 7})
    rows = [event("a", "heart_rate", 44), event("b", "icu_discharge", 10), event("b", "heart_rate", 50)]
    assert spans(people, tell(rows)) == [("a", 0, 5, 44), ("b", 0, 6, 10)]  # of c no end is known
    assert spans(people, tell([])) == []


def test_prediction_times_end_with_the_stay_or_the_longest_look(tell: Tell) -> None:
    starts = pd.DataFrame(
        {"encounter_id": ["a", "b", "c"], "start_time": [at(0)] * 3, "end_time": [at(3), at(2.5), pd.NaT]}
    ).astype({"start_time": UTC_US, "end_time": UTC_US})
    grid = cohorts.prediction_times(starts)
    assert grid["encounter_id"].tolist() == ["a", "a", "a", "b", "b"]
    assert grid["prediction_time"].tolist() == [at(1), at(2), at(3), at(1), at(2)]
    assert len(cohorts.prediction_times(starts, maximum_look=timedelta(hours=1))) == 2
    assert len(cohorts.prediction_times(starts, every=timedelta(minutes=30))) == 11
    assert grid["prediction_time"].dtype == UTC_US
    with pytest.raises(SpecError, match="above 0"):
        cohorts.prediction_times(starts, every=timedelta(0))


def test_a_missing_column_and_a_double_encounter_are_refused(tell: Tell) -> None:
    people = stays(a={}, b={})
    with pytest.raises(DataError, match="Encounter table lacks age_years"):
        cohorts.select(people.drop(columns="age_years"), tell([]), [])
    with pytest.raises(DataError, match="Event table lacks status"):
        cohorts.select(people, tell([]).drop(columns="status"), [])
    with pytest.raises(DataError, match="'icu_admission_time' is object"):
        cohorts.select(
            people.assign(icu_admission_time=pd.Series(["soon", "later"], dtype="object")), tell([]), []
        )
    with pytest.raises(DataError, match="1 encounters stand twice"):
        cohorts.select(pd.concat([people, people.head(1)]), tell([]), [])


def test_where_a_patient_is_follows_the_moves_known_by_then(tell: Tell) -> None:
    """ED at 0, a ward at 3, intensive care from 5 to 9, a ward again, home at 12; the move to the ward is told late."""
    people = stays(a={"icu": 5}, b={"icu": None}).assign(encounter_class=["icu", "ward"])
    moves = tell(
        [
            event("a", "location", 0, 1),
            event("a", "location", 3, 2),
            event("a", "location", 9, 2),
            event("a", "icu_discharge", 9),
            event("a", "location", 12, cohorts.LEFT),
            event("a", "hospital_discharge", 12),
        ]
    )
    moves.loc[1, "available_time"] = at(4)
    hours = [-1, 0, 3, 4, 5, 8, 9, 11, 12, 13]
    asked = pd.DataFrame(
        {"encounter_id": ["a"] * len(hours) + ["b"], "prediction_time": [at(h) for h in hours] + [at(2)]},
        index=range(7, 18),
    ).astype({"prediction_time": UTC_US})
    where = cohorts.current_class(asked.sample(frac=1, random_state=1), people, moves)
    assert where.loc[list(range(7, 18))].tolist() == [
        "icu", "ed", "ed", "ward", "icu", "icu", "ward", "ward", "left", "left", "ward",
    ]  # fmt: skip
