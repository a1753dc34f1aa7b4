"""Feature sets: read from a spec, built in order, described for a bundle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import scores
from features.clean import clean
from features.clock import UTC_US
from features.errors import DataError, SpecError
from features.featureset import FeatureSet, Ratio
from features.windows import Window, rows

Tell = Callable[[list[dict[str, Any]]], pd.DataFrame]
When = Callable[..., pd.DataFrame]

SPEC: dict[str, Any] = {
    "resample": "1h",
    "ratios": [{"name": "shock_index", "numerator": "heart_rate", "denominator": "sbp"}],
    "scores": ["news2_partial", "qsofa"],
    "group": [
        {"concepts": ["heart_rate", "map"], "statistics": ["last", "max_24h"]},
        {"concepts": ["lactate"], "statistics": ["hours_since_last"]},
    ],
}
NAMES = (
    "heart_rate__last", "heart_rate__max_24h", "map__last", "map__max_24h", "lactate__hours_since_last",
    "shock_index", "news2_partial", "qsofa",
)  # fmt: skip


def test_columns_come_as_windows_then_ratios_then_scores(tell: Tell, when: When) -> None:
    features = FeatureSet.from_spec(SPEC)
    assert features.names == NAMES
    assert features.resample == timedelta(hours=1)
    events, _ = clean(
        tell(
            [
                {"time": 0, "value": 120},
                {"time": 1, "value": 100},
                {"time": 1, "value": 80, "concept": "sbp"},
                {"time": 0.5, "value": 2, "concept": "lactate"},
            ]
        )
    )
    found = features.build(events, when(1))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    expected = [100, 120, math.nan, math.nan, 0, 1.25, 4, math.nan]  # NEWS2: SBP 80 (3), pulse 100 (1)
    np.testing.assert_array_equal(found[0], np.array(expected, np.float32))


def test_flat_events_give_the_same_as_the_table(tell: Tell, when: When) -> None:
    features = FeatureSet.from_spec(SPEC)
    events = tell(
        [{"time": t, "value": 80 + t, "concept": c} for t in range(5) for c in ("heart_rate", "sbp", "map")]
    )
    np.testing.assert_array_equal(
        features.build(features.flatten(events), when(2, 5)), features.build(events, when(2, 5))
    )


def test_a_ratio_is_missing_over_zero_and_where_a_side_is_missing(tell: Tell, when: When) -> None:
    features = FeatureSet.from_spec({"ratios": SPEC["ratios"]})
    pulse = {"time": 0, "value": 90}
    for other in ([], [{"time": 0, "value": 0, "concept": "sbp"}]):
        assert np.isnan(features.build(tell([pulse, *other]), when(1))[0, 0])
    assert features.build(tell([pulse, {"time": 0, "value": 120, "concept": "sbp"}]), when(1))[0, 0] == 0.75


def test_every_feature_knows_its_concepts() -> None:
    features = FeatureSet.from_spec(SPEC)
    assert features.concept_of("heart_rate__max_24h") == ("heart_rate",)
    assert features.concept_of("shock_index") == ("heart_rate", "sbp")
    assert set(features.concept_of("qsofa")) == {"respiratory_rate", "sbp", "gcs_total", "acvpu"}
    assert {c for n in features.names for c in features.concept_of(n)} == set(features.concepts)
    with pytest.raises(DataError, match="no feature 'x'"):
        features.concept_of("x")


def test_the_manifest_is_json_and_names_the_availability_policy() -> None:
    manifest = json.loads(json.dumps(FeatureSet.from_spec(SPEC).manifest(), allow_nan=False))
    assert tuple(manifest["names"]) == NAMES
    assert manifest["resample_s"] == 3600
    assert manifest["dtypes"]["shock_index"] == "float32"
    assert manifest["definitions"]["heart_rate__max_24h"]["lookback_h"] == 24
    assert manifest["definitions"]["heart_rate__last"]["lookback_h"] is None
    assert manifest["availability"]["available_after_min"]["heart_rate"] == 0
    assert manifest["availability"]["available_after_min"]["lactate"] == 15
    assert manifest["concepts"]["sbp"]["unit"] == "mm[Hg]"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"group": [{"concepts": ["heartrate"], "statistics": ["last"]}]}, r"heartrate.*concepts\.csv"),
        ({"group": [{"concepts": ["map"], "statistics": ["median_6h"]}]}, "median_6h.*max_24h"),
        ({"group": [{"concepts": ["map"], "statistics": ["last", "last"]}]}, "twice: map__last"),
        ({"group": [{"concepts": ["map"], "statistic": ["last"]}]}, "does not know statistic"),
        ({"group": [{"concepts": "map", "statistics": ["last"]}]}, "concepts: a list"),
        ({"group": {"concepts": ["map"]}}, "group must be a list"),
        ({"scores": ["apache"]}, "no score 'apache'"),
        ({"scores": "sirs"}, "scores: a list"),
        ({"ratios": [{"name": "x", "numerator": "map"}]}, "lacks denominator"),
        ({"ratios": [{"name": "x", "numerator": "map", "denominator": "mop"}]}, "mop"),
        ({"resample": "hourly"}, "'hourly'.*'1h'"),
        ({"resample": "stay"}, "'1h'"),
        ({"resampling": "1h"}, "does not know resampling"),
        ({"group": [], "ratios": []}, "empty"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_cure(change: dict[str, Any], said: str) -> None:
    base = {"group": [{"concepts": ["map"], "statistics": ["last"]}]}
    with pytest.raises(SpecError, match=said):
        FeatureSet.from_spec(base | change)


# A set is no more than its parts

PARTS = (
    "heart_rate",
    "sbp",
    "respiratory_rate",
    "spo2",
    "temperature",
    "pao2",
    "fio2",
    "gcs_total",
    "urine_output",
)
DECLARED = tuple(Window.parse(c, s) for c in PARTS[:4] for s in ("last", "mean_6h", "slope_24h", "count_6h"))
RATIOS = (
    Ratio("shock_index", "heart_rate", "sbp"),
    Ratio("pf", "pao2", "fio2"),
    Ratio("odd", "sbp", "urine_output"),
)
SCORES = ("news2_partial", "sofa_full_partial", "sofa_respiration", "qsofa", "sirs_partial")
step = st.sampled_from([None, timedelta(hours=1)])
reading = st.tuples(
    st.sampled_from(PARTS),
    st.integers(0, 96),
    st.sampled_from([0, 0, 4]),
    st.sampled_from([0, 0.5, 20, 90, 101]),
)


def ward(tell: Tell, readings: list[tuple[str, int, int, float]]) -> pd.DataFrame:
    """Two encounters with the same readings, by the quarter of an hour."""
    return tell(
        [
            {"concept": c, "time": q / 4, "available": (q + late) / 4, "value": v, "encounter_id": who}
            for c, q, late, v in readings
            for who in ("stay", "twin")
        ]
    )


@given(st.lists(reading, max_size=40), st.lists(st.integers(-1, 110), min_size=1, max_size=9), step)
def test_ratios_and_scores_are_those_of_the_windows_they_read(
    tell: Tell,
    when: When,
    readings: list[tuple[str, int, int, float]],
    quarters: list[int],
    step: timedelta | None,
) -> None:
    events, asked = ward(tell, readings), when(*(q / 4 for q in quarters))
    whole = FeatureSet(DECLARED, RATIOS, SCORES, step)
    read = FeatureSet(tuple(dict.fromkeys(whole._read)), resample=step)
    columns = dict(zip(read.names, read.build(events, asked).T.copy(), strict=True))
    found = dict(zip(whole.names, whole.build(events, asked).T, strict=True))
    for ratio in RATIOS:
        over, under = (columns[w.name] for w in ratio.windows)
        np.testing.assert_array_equal(found[ratio.name], scores.ratio(over, under), err_msg=ratio.name)
    for name in SCORES:
        np.testing.assert_array_equal(found[name], scores.evaluate(name, columns), err_msg=name)
    for window in DECLARED:
        np.testing.assert_array_equal(found[window.name], columns[window.name], err_msg=window.name)


@given(
    st.lists(reading, max_size=40), st.lists(st.integers(-1, 110), min_size=1, max_size=9), step, st.data()
)
@settings(max_examples=40)
def test_a_feature_more_or_less_a_row_alone_and_bare_arrays_change_nothing(
    tell: Tell,
    when: When,
    readings: list[tuple[str, int, int, float]],
    quarters: list[int],
    step: timedelta | None,
    data: st.DataObject,
) -> None:
    events, asked = ward(tell, readings), when(*(q / 4 for q in quarters))
    whole = FeatureSet(DECLARED, RATIOS, SCORES, step)
    found = whole.build(events, asked)
    windows, ratios, named = (
        tuple(data.draw(st.lists(st.sampled_from(each), unique=True))) for each in (DECLARED, RATIOS, SCORES)
    )
    if windows or ratios or named:
        fewer = FeatureSet(windows, ratios, named, step)
        columns = [whole.names.index(name) for name in fewer.names]
        np.testing.assert_array_equal(fewer.build(events, asked), found[:, columns])
        # What the events were flattened for may be more than what is asked.
        np.testing.assert_array_equal(fewer.build(whole.flatten(events), asked), found[:, columns])
    flat = whole.flatten(events)
    encounter, time = rows(asked, flat.encounter_ids)
    np.testing.assert_array_equal(whole.at(flat, encounter, time), found)
    for r in range(len(asked)):
        np.testing.assert_array_equal(whole.at(flat, encounter[[r]], time[[r]]), found[[r]])
        known = events[
            (events["available_time"] <= asked["prediction_time"][r]) & (events["encounter_id"] == "stay")
        ]
        np.testing.assert_array_equal(whole.build(known, asked.iloc[[r]]), found[[r]])


def test_threads_finish_the_scores_of_their_own_rows(tell: Tell) -> None:
    rng = np.random.default_rng(2)
    readings = [
        (c, int(q), 0, float(v))
        for c in PARTS
        for q, v in zip(rng.integers(0, 96, 30), rng.uniform(1, 120, 30), strict=True)
    ]
    events = ward(tell, readings)
    who = np.array(["stay", "nobody", "twin"], object)[rng.integers(0, 3, 12_000)]
    at = pd.Timestamp("2026-05-01T09:00Z") + pd.to_timedelta(rng.integers(0, 100, who.size) * 15, unit="min")
    asked = pd.DataFrame({"encounter_id": who, "prediction_time": at.astype(UTC_US)})
    features = FeatureSet(DECLARED, RATIOS, SCORES)
    one = features.build(events, asked)
    assert np.isfinite(one[:, -len(SCORES) :]).any(axis=0).all()
    for threads in (2, 3):
        np.testing.assert_array_equal(features.build(events, asked, threads), one)


def test_facts_at_odds_are_left_unread_where_the_spec_says_so(tell: Tell, when: When) -> None:
    # A mean pressure above the systolic one cannot be: neither is read. An hour later they agree again.
    events = tell(
        [
            {"time": 0, "concept": "sbp", "value": 90}, {"time": 0, "concept": "map", "value": 120},
            {"time": 1, "concept": "sbp", "value": 110}, {"time": 1, "concept": "map", "value": 80},
        ]
    )  # fmt: skip
    asked = {"group": [{"concepts": ["sbp", "map"], "statistics": ["count", "last"]}]}
    trusting, judging = (FeatureSet.from_spec(asked | {"judge": judge}) for judge in (False, True))
    assert trusting.build(events, when(0.5, 2)).tolist() == [[1, 90, 1, 120], [2, 110, 2, 80]]
    np.testing.assert_array_equal(
        judging.build(events, when(0.5, 2)), [[0, np.nan, 0, np.nan], [1, 110, 1, 80]]
    )
    assert judging.manifest()["judge"] is True
    with pytest.raises(SpecError, match="judge is 'yes'"):
        FeatureSet.from_spec(asked | {"judge": "yes"})
