"""Reasons by concept: they add up, and how steady they are is worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models import parity
from models.bundle import Bundle
from models.explanation import concept_groups, grouped, newly_measured, steadiness
from models.spec import Spec

SPEC = """
[model]
name = "small"
[features]
ratios = [ {name = "shock_index", numerator = "heart_rate", denominator = "sbp"} ]
[[features.group]]
concepts = ["heart_rate", "sbp"]
statistics = ["last", "hours_since_last"]
"""


def test_columns_belong_to_what_they_are_about_and_to_one_thing_only():
    features = Spec.parse(SPEC).features
    groups = dict(concept_groups(features))
    assert set(groups) == {"heart_rate", "sbp", "shock_index"}
    assert sorted(k for columns in groups.values() for k in columns) == list(range(5))
    names = [features.names[k] for k in groups["heart_rate"]]
    assert names == ["heart_rate__last", "heart_rate__hours_since_last"]


@pytest.mark.parametrize("product", ["sepsis"])
def test_groups_and_base_add_up_to_the_raw_score(repo: Path, product: str):
    bundle = Bundle.load(repo / "models" / product / "released")
    rows = parity.reference_rows(bundle.reference, bundle.feature_names, 40)
    told = bundle.contributions(rows)
    whole = grouped(bundle.spec.features, told).sum(axis=1) + told[:, -1]
    assert np.abs(whole - bundle.raw(rows)).max() <= 1e-6


def test_steadiness_by_hand():
    """The first pair keeps its three; of the second one of four leaves the top, and its first turns round."""
    before = np.array([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.5]])
    after = np.array([[3.0, 2.0, 1.0, 0.0], [-3.0, 0.5, 2.0, 2.5]])
    found = steadiness(before, after)
    assert found["overlap"] == pytest.approx((1 + 2 / 4) / 2)
    assert found["same_first"] == 1
    assert found["turned"] == pytest.approx(1 / 6)


def test_contributions_too_small_to_feel_do_not_turn():
    assert steadiness(np.array([[0.04, 1.0]]), np.array([[-0.04, 1.0]]))["turned"] == 0
    assert np.isnan(steadiness(np.empty((0, 2)), np.empty((0, 2)))["overlap"])


def test_a_younger_last_value_is_a_new_measurement():
    features = Spec.parse(SPEC).features
    before = np.array(
        [[80, 1, 120, 2, 0.67], [80, 1, 120, 2, 0.67], [np.nan, np.nan, 120, 2, np.nan]], np.float32
    )
    after = np.array([[80, 2, 120, 3, 0.67], [80, 0, 120, 3, 0.67], [90, 0.5, 120, 3, 0.75]], np.float32)
    assert newly_measured(features, before, after).tolist() == [False, True, True]
