"""What an extract holds of what a model needs, counted in batches that add up."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.clean import clean
from features.clock import HOUR_US
from features.coverage import Tally, coverage, needed, nothing, tally, unmapped
from features.featureset import FeatureSet, Ratio
from features.windows import Window

Tell = Callable[[list[dict[str, Any]]], pd.DataFrame]


def row_of(table: pd.DataFrame, concept: str) -> dict[str, Any]:
    """The row of a concept."""
    return dict(table[table["concept"] == concept].iloc[0])


@pytest.fixture
def ward(tell: Tell) -> pd.DataFrame:
    """Three stays: hourly heart rates in two, one lactate in one of them."""
    beats = [
        {"time": h, "concept": "heart_rate", "value": 80, "encounter_id": e}
        for e in ("a", "b")
        for h in range(5)
    ]
    gas = {"time": 1, "available": 1.25, "concept": "lactate", "value": 2, "encounter_id": "a"}
    return tell([*beats, gas, {**gas, "time": 3, "status": "deleted"}])


def test_a_concept_is_ok_sparse_or_absent_with_its_reason(ward: pd.DataFrame) -> None:
    table = coverage(tally(ward, 6), {"heart_rate": 7, "lactate": 3, "creatinine": 2})
    assert table["concept"].tolist() == ["creatinine", "lactate", "heart_rate"]
    assert table["verdict"].tolist() == ["absent", "sparse", "ok"]
    beats = row_of(table, "heart_rate")
    assert (beats["features"], beats["events"], beats["encounters"]) == (7, 10, 2)
    assert beats["share"] == pytest.approx(1 / 3)
    assert beats["hours_between"] == pytest.approx(1, rel=0.08)
    assert (beats["first"], beats["last"]) == (ward["time"].min(), ward["time"].max())
    gas = row_of(table, "lactate")
    assert (gas["events"], math.isnan(gas["hours_between"])) == (1, True)
    assert "17% of encounters have it, fewer than 20%" in gas["reason"]
    assert "every feature of it is missing" in row_of(table, "creatinine")["reason"]


def test_what_is_usual_where_the_model_was_trained_decides(ward: pd.DataFrame) -> None:
    found = tally(ward, 6)
    usual = {"heart_rate": 0.99, "lactate": 0.2}
    table = coverage(found, {"heart_rate": 1, "lactate": 1}, usual=usual)
    assert row_of(table, "heart_rate")["verdict"] == "sparse"
    assert "against 99% where the model was trained" in row_of(table, "heart_rate")["reason"]
    assert row_of(table, "lactate")["verdict"] == "ok"


def test_the_share_that_follows_the_policy_shows_who_does_not_know_when(tell: Tell) -> None:
    results = [
        {"time": h, "available": h + d, "concept": "wbc", "value": 9} for h, d in enumerate((1, 1, 1, 2))
    ]
    assert row_of(coverage(tally(tell(results), 1), {"wbc": 1}), "wbc")["by_policy"] == 0.75


def test_unmapped_codes_are_candidates_where_a_word_agrees(tell: Tell) -> None:
    told = [
        {"time": 0, "code": c, "value": 1} for c in ["LAB//Lactate (ven)"] * 3 + ["LAB//Bun"] + ["X//9"] * 5
    ]
    events = tell([*told, {"time": 0, "code": "MIMIC_CHART//818", "value": 2}])
    _, account = clean(events.assign(concept=None))
    assert unmapped(account.by_code).to_dict("list") == {
        "code": ["X//9", "LAB//Lactate (ven)", "LAB//Bun", "MIMIC_CHART//818"],
        "events": [5, 3, 1, 1],
        "reason": ["unknown_concept", "unknown_concept", "unknown_concept", "copy"],
    }
    table = coverage(nothing(), {"lactate": 1, "sodium": 1}, account.by_code)
    assert row_of(table, "lactate")["candidates"] == "LAB//Lactate (ven) (3)"
    assert row_of(table, "sodium")["candidates"] == ""


def test_a_feature_set_says_how_often_it_reads_each_concept() -> None:
    day = 24 * HOUR_US
    windows = (
        Window("heart_rate", "last", day),
        Window("heart_rate", "max", day),
        Window("lactate", "last", day),
    )
    features = FeatureSet(windows, (Ratio("shock_index", "heart_rate", "sbp"),), ("qsofa",))
    wanted = needed(features)
    assert (wanted["heart_rate"], wanted["lactate"], wanted["sbp"]) == (3, 1, 2)
    assert set(wanted) == set(features.concepts)


def test_no_events_at_all_make_everything_absent(tell: Tell) -> None:
    for found in (nothing(), tally(tell([]), 0), tally(tell([]), 4)):
        table = coverage(found, {"heart_rate": 1})
        assert table["verdict"].tolist() == ["absent"]
    assert tally(tell([]), 4).encounters == 4


fact = st.fixed_dictionaries(
    {
        "time": st.floats(0, 200),
        "concept": st.sampled_from(["heart_rate", "lactate", "wbc"]),
        "value": st.just(2.0),
        "encounter_id": st.sampled_from(["a", "b", "c"]),
    }
)


@given(st.lists(fact, max_size=20))
def test_tallies_of_parts_add_up_to_the_tally_of_all(tell: Tell, facts: list[dict[str, Any]]) -> None:
    events = tell(facts)
    parts = [tally(events[events["encounter_id"] == e], 1) for e in "cab"]
    wanted = {"heart_rate": 1, "lactate": 1, "wbc": 1}
    together: Tally = reduce(add, parts, nothing())
    pd.testing.assert_frame_equal(coverage(together, wanted), coverage(tally(events, 3), wanted))
    assert together.encounters == 3
