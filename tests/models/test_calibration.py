"""Calibration keeps the ranking, recovers the truth and survives JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from features.errors import DataError, SpecError
from models.calibration import FEWEST_EVENTS, METHODS, Calibrator, choose, cross_fitted, venn_abers
from models.metrics import auroc, calibration_line, expit, logit


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
    assert chosen.method in ("isotonic", "venn_abers")
    assert losses["isotonic"] < losses["beta"]


@pytest.mark.parametrize("method", ["isotonic", "beta", "logistic"])
def test_a_row_that_counts_thrice_is_three_rows(method):
    """Against rows repeated, for the map, the choice among maps and the band over patients."""
    raw, label = scores(6_000)
    weight = np.where(raw > 0, 3.0, 1.0)
    fold, patient = np.arange(6_000) % 5, np.arange(6_000) // 6
    again = np.repeat(np.arange(6_000), weight.astype(np.int64))
    probe = np.linspace(-3, 3, 50)
    one, lost = choose(raw, label, fold, (method,), weight)
    other, _ = choose(raw[again], label[again], fold[again], (method,))
    assert one.apply(probe) == pytest.approx(other.apply(probe), rel=1e-6)
    held = cross_fitted(raw, label, fold, method, weight)
    loss = -np.log(np.where(label == 1, held, 1 - held))
    assert lost[method] == pytest.approx(np.average(loss, weights=weight), rel=0.01)
    if method == "logistic":
        rng = [np.random.default_rng(2) for _ in range(2)]
        bands = [
            one.with_band(raw, label, patient, rng[0], 40, weight),
            other.with_band(raw[again], label[again], patient[again], rng[1], 40),
        ]
        low, high = zip(*(b.interval(probe) for b in bands), strict=True)
        assert low[0] == pytest.approx(low[1], rel=0.02)
        assert high[0] == pytest.approx(high[1], rel=0.02)


def test_venn_abers_is_isotonic_regression_with_the_row_added_once_as_either_outcome():
    """Against the definition (Vovk & Petej 2014), fitted anew for every place."""
    rng = np.random.default_rng(7)
    raw = rng.normal(size=60)
    label = (rng.random(60) < expit(raw)).astype(np.int64)
    places, p0, p1 = venn_abers(raw, label, np.ones(60))
    for outcome, p in ((0, p0), (1, p1)):
        again = [
            IsotonicRegression().fit(np.append(raw, at), np.append(label, outcome)).predict([at])[0]
            for at in places
        ]
        assert p == pytest.approx(again, abs=1e-12)
    assert (p0 < p1).all()


def test_an_interval_holds_the_probability_and_as_a_rule_the_truth():
    """Over forty draws of patients with ten alike rows each, the true risk is in the band about 19 of 20 times."""
    held = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = np.repeat(rng.normal(-1, 1.5, 600), 10)
        label = np.repeat((rng.random(600) < expit(truth[::10])).astype(np.int64), 10)
        patient = np.repeat(np.arange(600), 10)
        fitted = Calibrator.fit(truth, label, method="logistic").with_band(truth, label, patient, rng, 60)
        probe = np.array([-2.5, -1.0, 1.0])
        low, high = fitted.interval(probe)
        assert ((low <= fitted.apply(probe)) & (fitted.apply(probe) <= high)).all()
        held.append((low <= expit(probe)) & (expit(probe) <= high))
    assert 0.85 < np.mean(held) < 0.99, "a band that took rows for patients would hold far less"


def test_an_interval_survives_json_and_missing_stays_missing():
    raw, label = scores(4_000)
    fitted = Calibrator.fit(raw, label).with_band(
        raw, label, np.arange(4_000) // 8, np.random.default_rng(1), 20
    )
    read = Calibrator.from_dict(json.loads(json.dumps(fitted.to_dict())))
    probe = np.array([-50.0, 0.3, 50.0, np.nan])
    assert np.array_equal(read.interval(probe), fitted.interval(probe), equal_nan=True)
    assert np.isnan(read.interval(probe)[0][-1])
    assert Calibrator.fit(raw, label).interval(probe) is None
    broken = fitted.to_dict()
    broken["band"]["above"][0] = -1.0
    with pytest.raises(SpecError, match="calibrator"):
        Calibrator.from_dict(broken)


@pytest.mark.parametrize("method", METHODS)
def test_a_line_in_log_odds_after_any_map_is_again_a_map_of_its_kind(method):
    raw, label = scores(5_000)
    fitted = Calibrator.fit(raw, label, method=method)
    probe = np.linspace(-8, 8, 101)
    expected = expit(0.7 * logit(fitted.apply(probe)) - 0.4)
    assert fitted.adjusted(0.7, -0.4).apply(probe) == pytest.approx(expected, abs=1e-12)
    assert fitted.adjusted(0.7, -0.4).method == method
    with pytest.raises(SpecError, match="positive"):
        fitted.adjusted(-0.1, 0.0)


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
