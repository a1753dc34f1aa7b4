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

from features.clean import clean
from features.errors import DataError, SpecError
from features.featureset import FeatureSet

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
