"""Utility, discrimination, calibration and alerts against worked cases and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from models import metrics


def stay(*labels: int, patient: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.full(len(labels), patient), np.arange(len(labels), dtype=float), np.array(labels)


def stays(*each: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = [stay(*labels, patient=i) for i, labels in enumerate(each)]
    patient, hour, label = (np.concatenate(p) for p in zip(*parts, strict=True))
    return patient, hour, label


def official_utility(labels: np.ndarray, predictions: np.ndarray) -> float:
    """The challenge's own recipe, patient by patient and hour by hour (evaluate_sepsis_score.py), for one stay."""
    septic = labels.any()
    onset = np.argmax(labels) + 6 if septic else np.inf
    total = 0.0
    for t in range(len(labels)):
        if t > onset + 3:
            continue
        if septic and predictions[t]:
            total += max((t - onset) / 6 + 2, -0.05) if t <= onset - 6 else -(t - onset) / 9 + 1 / 3
        elif predictions[t]:
            total += -0.05
        elif septic and t > onset - 6:
            total += -2 / 9 * (t - onset) - 4 / 3
    return total


def test_the_example_of_the_challenge_comes_out_as_published():
    # evaluate_sepsis_score.py, example of compute_prediction_utility: 3.388888888888889.
    labels, predictions = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1, 1])
    assert official_utility(labels, predictions) == pytest.approx(3.388888888888889)
    gain = metrics.utility_gain(*stay(*labels))
    silence = official_utility(labels, np.zeros(6))
    assert gain[predictions == 1].sum() + silence == pytest.approx(3.388888888888889)


def test_an_alarm_is_worth_most_when_silence_costs_most():
    labels = [0] * 20 + [1] * 10  # onset at hour 26
    gain = metrics.utility_gain(*stay(*labels))
    assert gain[[13, 14, 17, 20, 26, 29]] == pytest.approx([-0.05, 0.0, 0.5, 1.0, 1 / 3 + 4 / 3, 2.0])


def test_after_onset_plus_three_hours_nothing_counts():
    labels = [1] * 14  # positive from the first row: onset at hour 6
    assert metrics.utility_gain(*stay(*labels))[10:] == pytest.approx([0, 0, 0, 0])


def test_silence_is_worth_nothing_and_the_best_alarms_one():
    patient, hour, label = stays((0,) * 30, (0,) * 15 + (1,) * 9)
    gain = metrics.utility_gain(patient, hour, label)
    assert metrics.normalized_utility(gain, np.zeros(len(gain), bool)) == 0
    assert metrics.normalized_utility(gain, gain > 0) == pytest.approx(1)

    assert np.isnan(metrics.normalized_utility(gain[:30], np.ones(30, bool)))


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(-1, 45), st.integers(0, 2**20)), min_size=1, max_size=6
    )
)
def test_fast_utility_equals_the_slow_recipe(patients):
    labels = [
        (np.arange(n) >= first).astype(int) if first >= 0 else np.zeros(n, int) for n, first, _ in patients
    ]
    alarms = [np.random.default_rng(seed).integers(0, 2, n) for n, _, seed in patients]
    observed = sum(official_utility(y, a) for y, a in zip(labels, alarms, strict=True))
    silence = sum(official_utility(y, 0 * y) for y in labels)
    gain = metrics.utility_gain(*stays(*labels))
    assert gain[np.concatenate(alarms) == 1].sum() == pytest.approx(observed - silence, abs=1e-9)


def test_the_threshold_lies_between_two_scores_and_pays_most():
    probability = np.array([0.9, 0.5, 0.5, 0.1, np.nan])
    gain = np.array([1.0, -0.2, 0.5, -1.0, 9.0])
    assert metrics.best_threshold(probability, gain) == pytest.approx(0.3)


def test_where_no_alarm_pays_none_is_raised():
    assert metrics.best_threshold(np.array([0.9, 0.2]), np.array([-0.05, -0.05])) == 1.0


def test_a_steady_threshold_passes_over_a_narrow_peak_for_a_broad_one():
    """One lucky score pays 1.2, and the next takes it; ten scores further on pay 1 together, and none is near below."""
    odds = np.array([2.0, 1.95, *np.linspace(0.5, -0.5, 10), *np.linspace(-1.5, -2.5, 10), np.nan])
    gain = np.array([1.2, -1.2, *np.full(10, 0.1), *np.full(10, -0.2), 9.0])
    probability = metrics.expit(odds)
    assert metrics.best_threshold(probability, gain) > metrics.expit(np.array(1.9))
    assert metrics.logit(np.array(metrics.steady_threshold(probability, gain))) == pytest.approx(
        -1.0, abs=0.1
    )
    assert metrics.steady_threshold(np.array([0.9, 0.2]), np.array([-0.05, -0.05])) == 1.0
    assert metrics.steady_threshold(np.array([np.nan]), np.array([1.0])) == 1.0


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_a_steady_threshold_pays_most_when_it_is_read_with_a_normal_error(seed, n):
    from scipy.stats import norm

    rng = np.random.default_rng(seed)
    probability, gain = rng.random(n), rng.normal(size=n)
    odds = metrics.logit(probability)

    def expected(threshold):
        return float(gain @ norm.cdf((odds - threshold) / metrics.SPREAD))

    found = metrics.steady_threshold(probability, gain)
    best = max(expected(t) for t in np.linspace(odds.min() - 1, odds.max() + 1, 2_000))
    worth = 0.0 if found == 1.0 else expected(metrics.logit(np.array(found)))
    assert worth == pytest.approx(max(best, 0.0), abs=0.1 * np.abs(gain).sum() / np.sqrt(n))


@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_discrimination_equals_scikit_learn(seed, n):
    rng = np.random.default_rng(seed)
    label = np.append(rng.integers(0, 2, n), [0, 1])
    score = np.round(rng.random(n + 2), 1)  # ties
    assert metrics.auroc(label, score) == pytest.approx(roc_auc_score(label, score))
    assert metrics.auprc(label, score) == pytest.approx(average_precision_score(label, score))


def test_one_class_has_no_auroc():
    assert np.isnan(metrics.auroc(np.zeros(3, int), np.arange(3.0)))
    assert np.isnan(metrics.auprc(np.zeros(3, int), np.arange(3.0)))


def test_true_probabilities_have_slope_one_and_intercept_zero():
    rng = np.random.default_rng(1)
    p = metrics.expit(rng.normal(-2, 1.5, 200_000))
    label = (rng.random(len(p)) < p).astype(float)
    slope, intercept = metrics.calibration_line(label, p, np.ones(len(p)))
    assert slope == pytest.approx(1, abs=0.02)
    assert intercept == pytest.approx(0, abs=0.02)
    assert metrics.ici(*metrics.calibration_groups(label.astype(int), p)) < 0.003


def test_overconfident_probabilities_have_half_the_slope():
    rng = np.random.default_rng(2)
    odds = rng.normal(-1, 1, 100_000)
    label = (rng.random(len(odds)) < metrics.expit(odds)).astype(float)
    slope, _ = metrics.calibration_line(label, metrics.expit(2 * odds), np.ones(len(odds)))
    assert slope == pytest.approx(0.5, abs=0.02)


def test_ici_of_a_constant_offset_is_the_offset():
    predicted = np.linspace(0.1, 0.5, 50)
    assert metrics.ici(predicted, predicted + 0.03, np.full(50, 10.0)) == pytest.approx(0.03, abs=1e-6)


def test_fast_loess_equals_a_slow_loop():
    rng = np.random.default_rng(3)
    x = np.sort(rng.random(40))
    y, weight = rng.random(40) ** 2, rng.integers(1, 9, 40).astype(float)
    slow = []
    for at in x:
        distance = np.abs(x - at)
        near = np.argsort(distance, kind="stable")
        reach = distance[near[np.argmax(np.cumsum(weight[near]) >= 0.75 * weight.sum())]] * (1 + 1e-9)
        kernel = np.sqrt(weight * np.clip(1 - (distance / reach) ** 3, 0, None) ** 3)
        design = np.column_stack([np.ones(40), x - at, (x - at) ** 2]) * kernel[:, None]
        slow.append(np.linalg.lstsq(design, y * kernel, rcond=None)[0][0])
    assert metrics.smooth_observed(x, y, weight) == pytest.approx(np.clip(slow, 0, 1), abs=1e-5)


def scored(seed: int, patients: int = 400) -> metrics.Scored:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 40, patients)
    patient = np.repeat(np.arange(patients), lengths)
    hour = np.concatenate([np.arange(n, dtype=float) for n in lengths])
    onset = np.where(rng.random(patients) < 0.3, rng.integers(0, 40, patients), 99)
    label = (hour >= onset[patient]).astype(np.int64)
    p = metrics.expit(rng.normal(-2, 1, len(hour)) + 1.5 * label)
    p[rng.random(len(p)) < 0.02] = np.nan
    return metrics.Scored(patient, label, p, p >= 0.2, metrics.utility_gain(patient, hour, label))


def test_intervals_hold_the_figure_and_repeat():
    rows = scored(4)
    values = rows.measure()
    intervals = rows.intervals(100, np.random.default_rng(5))
    for name, (low, high) in intervals.items():
        assert low <= values[name] <= high, name
    assert intervals == rows.intervals(100, np.random.default_rng(5))


def test_a_patient_is_drawn_whole():
    """Each patient's rows copied ten times leave intervals as they were; rows drawn singly would shrink them."""
    rows = scored(6, patients=120)
    many = metrics.Scored(
        np.tile(rows.patient, 10), np.tile(rows.label, 10), np.tile(rows.probability, 10), np.tile(rows.alarm, 10),
        np.tile(rows.gain, 10),
    )  # fmt: skip
    one, ten = (r.intervals(100, np.random.default_rng(7))["brier"] for r in (rows, many))
    assert ten == pytest.approx(one, rel=0.02)


def test_unscored_rows_count_as_silence():
    patient, hour, label = stays((0,) * 10 + (1,) * 9)
    gain = metrics.utility_gain(patient, hour, label)
    p = np.full(19, 0.9)
    all_seen = metrics.Scored(patient, label, p, p >= 0.5, gain).measure()["utility"]
    p = np.where(np.arange(19) < 15, np.nan, 0.9)
    assert metrics.Scored(patient, label, p, p >= 0.5, gain).measure()["utility"] < all_seen
