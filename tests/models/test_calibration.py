"""Calibration keeps the ranking, recovers the truth and survives JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from features.errors import DataError, SpecError
from models.calibration import FEWEST_EVENTS, METHODS, Calibrator, choose
from models.metrics import auroc, calibration_line, expit


def scores(n: int = 20_000, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Raw log-odds twice as bold as the truth, and outcomes."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-2, 1, n)
    return 2 * truth + 1, (rng.random(n) < expit(truth)).astype(np.int64)


@pytest.mark.parametrize("method", METHODS)
def test_bold_scores_are_brought_back_to_the_truth(method):
    raw, label = scores()
    probability = Calibrator.fit(raw, label, method=method).apply(raw)
    slope, intercept = calibration_line(label.astype(float), probability, np.ones(len(raw)))
    assert slope == pytest.approx(1, abs=0.06)
    assert intercept == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_no_two_scores_become_one(method):
    raw, label = scores()
    probability = Calibrator.fit(raw, label, method=method).apply(raw)
    assert len(np.unique(probability)) == len(np.unique(raw))
    assert auroc(label, probability) == auroc(label, raw)
    assert 0 < probability.min() < probability.max() < 1


@pytest.mark.parametrize("method", METHODS)
def test_a_calibrator_is_the_same_after_json(method):
    raw, label = scores(5_000)
    fitted = Calibrator.fit(raw, label, method=method)
    read = Calibrator.from_dict(json.loads(json.dumps(fitted.to_dict())))
    probe = np.append(np.linspace(-40, 40, 1001), raw)
    assert np.array_equal(read.apply(probe), fitted.apply(probe))


@pytest.mark.parametrize("method", METHODS)
def test_missing_stays_missing_and_one_row_equals_many(method):
    raw, label = scores(5_000)
    fitted = Calibrator.fit(raw, label, method=method)
    together = fitted.apply(np.append(raw[:50], np.nan))
    assert np.isnan(together[-1])
    assert np.array_equal(np.array([fitted.apply(raw[i : i + 1])[0] for i in range(50)]), together[:50])


def test_knots_lie_on_the_steps_of_isotonic_regression():
    """Two clear steps: every knot's probability is the share of positives among the rows it stands for."""
    raw = np.repeat([0.0, 1.0, 2.0], 1000)
    label = np.concatenate([np.arange(1000) < k for k in (50, 200, 600)]).astype(np.int64)
    fitted = Calibrator.fit(raw, label)
    assert fitted.x == (0.0, 1.0, 2.0)
    assert expit(np.array(fitted.y)) == pytest.approx([0.05, 0.2, 0.6])
    plain = IsotonicRegression().fit(raw, label)
    assert fitted.apply(np.array([0.0, 1.0, 2.0])) == pytest.approx(plain.predict([0.0, 1.0, 2.0]))


def test_isotonic_agrees_with_scikit_learn_away_from_the_ends():
    raw, label = scores()
    inside = np.quantile(raw, np.linspace(0.05, 0.95, 50))
    ours, plain = (
        Calibrator.fit(raw, label).apply(inside),
        IsotonicRegression().fit(raw, label).predict(inside),
    )
    assert np.abs(ours - plain).max() < 0.03


def test_a_knot_stands_on_enough_of_both_outcomes():
    raw, label = scores(2_000)
    fitted = Calibrator.fit(raw, label)
    assert len(fitted.x) <= label.sum() / FEWEST_EVENTS + 1


def test_the_better_map_is_chosen_by_held_out_loss():
    rng = np.random.default_rng(3)
    raw = rng.normal(0, 2, 60_000)
    truth = expit(-4 + 4 * expit(3 * raw))  # levels off on both sides, which no line can follow
    label = (rng.random(len(raw)) < truth).astype(np.int64)
    chosen, losses = choose(raw, label, rng.integers(0, 5, len(raw)))
    assert chosen.method == "isotonic"
    assert losses["isotonic"] < losses["beta"]


def test_too_few_events_are_refused():
    raw = np.linspace(-1, 1, 100)
    with pytest.raises(DataError, match="30 positive"):
        Calibrator.fit(raw, (raw > 0.9).astype(np.int64))


def test_a_map_that_falls_is_refused():
    table = {"method": "isotonic", "coefficients": [1.0], "x": [0.0, 1.0], "y": [0.5, 0.2]}
    with pytest.raises(SpecError, match="does not rise"):
        Calibrator.from_dict(table)
    with pytest.raises(SpecError, match="needs method"):
        Calibrator.from_dict({"method": "isotonic"})


def test_an_unknown_method_is_named():
    raw, label = scores(1_000)
    with pytest.raises(SpecError, match="'magic' is unknown"):
        Calibrator.fit(raw, label, method="magic")
