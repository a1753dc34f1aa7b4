"""The reference profile: summaries that hold no patient and can be drawn from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.profile import FEWEST, profile, sample


@pytest.fixture(scope="module")
def matrix() -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.normal([10, 100, 0], [1, 20, 1], (5000, 3)).astype(np.float32)
    x[rng.random(5000) < 0.3, 1] = np.nan
    x[:, 2] = np.nan
    x[: FEWEST - 1, 2] = 1
    return x


@pytest.fixture(scope="module")
def made(matrix) -> dict:
    probability = np.append(np.random.default_rng(2).beta(1, 40, 4990), [np.nan] * 10)
    return json.loads(json.dumps(profile(matrix, ["a", "b", "rare"], probability)))


def test_mean_missing_share_and_median_are_those_of_the_data(made, matrix):
    a, b = made["features"]["a"], made["features"]["b"]
    assert a["mean"] == pytest.approx(float(matrix[:, 0].mean()), rel=1e-4)
    assert b["missing"] == pytest.approx(float(np.isnan(matrix[:, 1]).mean()), rel=1e-4)
    assert b["quantiles"][made["shares"].index(0.5)] == pytest.approx(
        float(np.nanmedian(matrix[:, 1])), rel=1e-4
    )


def test_no_extreme_is_kept_and_rare_features_keep_no_value(made, matrix):
    assert made["features"]["a"]["quantiles"][-1] < matrix[:, 0].max()
    assert made["features"]["rare"]["quantiles"] == []


def test_every_scored_row_is_in_the_histogram(made):
    assert sum(made["probability"]["histogram"]) == 4990
    assert made["probability"]["missing"] == pytest.approx(0.002)


def test_a_sample_has_the_same_margins(made):
    drawn = sample(made, 20_000, np.random.default_rng(3))
    assert drawn.dtype == np.float32
    assert np.nanmean(drawn[:, 0]) == pytest.approx(10, abs=0.05)
    assert np.nanstd(drawn[:, 1]) == pytest.approx(20, rel=0.1)
    assert np.isnan(drawn[:, 1]).mean() == pytest.approx(0.3, abs=0.02)
    assert np.isnan(drawn[:, 2]).all()
