"""Scores against outcomes: only what has matured, counted by stay, and a test that may be looked at every day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.clock import HOUR_US, UTC_US, Target
from features.errors import DataError
from features.labels.sepsis3 import PHYSIONET_2019
from serving.monitoring import performance
from serving.monitoring.outcomes import Outcomes, Rule, from_file
from serving.monitoring.performance import Hours, estimate, judge
from serving.monitoring.sequential import evidence

START = pd.Timestamp("2026-01-05T00:00Z")
RULE = Rule(Target(timedelta(0), timedelta(hours=6)), 3.0, PHYSIONET_2019)
LATER = datetime(2026, 6, 1, tzinfo=UTC)


def changed(p: np.ndarray, odds: float) -> np.ndarray:
    return odds * p / (1 - p + odds * p)


def found_within(odds: float, labels: int, mean: float, runs: int = 300) -> float:
    rng = np.random.default_rng(7)
    risk = [rng.beta(10 * mean, 10 * (1 - mean), labels) for _ in range(runs)]
    bets = [evidence((rng.random(labels) < changed(p, odds)).astype(float), p) for p in risk]
    return float(np.mean([bet.found(performance.LIKELY) is not None for bet in bets]))


@pytest.mark.parametrize(("mean", "least"), [(0.073, 0.75), (0.15, 0.95)])
def test_halved_odds_are_found_within_500_labels_and_doubled_ones_too(mean: float, least: float):
    assert found_within(0.5, 500, mean) >= least
    assert found_within(2.0, 500, mean) >= 0.95


def test_right_probabilities_are_seldom_doubted_however_often_one_looks():
    assert found_within(1.0, 2000, 0.073) <= 0.10  # Ville: 1 in 20 each way


def test_capital_is_what_a_slow_bettor_would_have():
    rng = np.random.default_rng(2)
    p = rng.beta(1, 9, 250)
    y = (rng.random(250) < p).astype(float)
    for stake, path in ((-1, evidence(y, p).fewer), (1, evidence(y, p).more)):
        total = 0.0
        for k, start in enumerate(range(0, 250, 100)):
            weight = 0.9 if k == 0 else 0.1 / (k * (k + 1))
            for odds, share in ((1.5**stake, 0.25), (2.0**stake, 0.75)):
                each = np.where(y == 1, odds, 1) / (1 - p + p * odds)
                total += weight * share * float(np.prod(each[start:]))
        assert path[-1] == pytest.approx(total)


def test_a_change_is_dated_and_hours_of_a_stay_are_one_witness():
    rng = np.random.default_rng(3)
    p = np.full(1500, 0.2)
    truth = np.where(np.arange(1500) < 800, p, changed(p, 0.4))
    septic = (rng.random(1500) < truth).astype(float)
    bet = evidence(septic, p)
    assert bet.found(performance.SURE) is not None
    assert abs(bet.since - 800) <= 100
    np.testing.assert_allclose(evidence(10 * septic, 10 * p, 10).fewer, bet.fewer)


def hours(stays: int, length: int, risk: np.ndarray, page: bool = False) -> Hours:
    part = pd.DataFrame(
        {
            "encounter_id": np.repeat([f"stay-{k}" for k in range(stays)], length).astype(object),
            "unit": np.repeat(np.where(np.arange(stays) % 2, "East", "West"), length).astype(object),
            "prediction_time": START.value // 1000
            + HOUR_US * (np.repeat(np.arange(stays) * 2, length) + np.tile(np.arange(length), stays)),
            "probability": np.repeat(risk, length),
            "page": page,
        }
    )
    return Hours.of([part.iloc[: len(part) // 3], part.iloc[len(part) // 3 :]])


def test_an_hour_is_judged_when_its_horizon_and_the_wait_have_passed():
    told = hours(1, 10, np.array([0.1]))
    onset = pd.Series([START + pd.Timedelta(hours=8)], index=["stay-0"], dtype=UTC_US)
    judged = judge(
        told,
        Outcomes(onset, timedelta(hours=72), "x"),
        RULE,
        (START + pd.Timedelta(hours=78)).to_pydatetime(),
    )
    assert judged.hour.tolist() == [START.value / 3.6e12], "t + 6 h + 72 h has come for the first hour only"
    judged = judge(told, Outcomes(onset, timedelta(0), "x"), RULE, LATER)
    assert judged.label.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert judge(told, Outcomes(onset.iloc[:0], timedelta(0), "x"), RULE, LATER).stays == 0, (
        "not told, not judged"
    )
    strict = Rule(RULE.target, None, PHYSIONET_2019)
    assert judge(told, Outcomes(onset, timedelta(0), "x"), strict, LATER).label.tolist() == [
        0,
        0,
        1,
        1,
        1,
        1,
        1,
        1,
    ]


def test_two_predictions_of_an_hour_are_one_and_its_page_is_kept():
    part = pd.DataFrame(
        {
            "encounter_id": ["a", "a", "b"], "unit": ["x", "y", "x"], "prediction_time": [0, HOUR_US // 2, 0],
            "probability": [0.1, 0.2, 0.3], "page": [True, False, False],
        }
    )  # fmt: skip
    for parts in ([part], [part.iloc[:1], part.iloc[1:]]):
        kept = Hours.of(parts)
        assert kept.probability.tolist() == [0.2, 0.3]
        assert kept.page.tolist() == [True, False]
    assert len(Hours.of([])) == 0


def onsets(told: Hours, odds: float, rng: np.random.Generator) -> Outcomes:
    """Stays of 20 hours with onset in hour 10 to 14, so often that an hour's mean label is its probability."""
    stays = len(told.names)
    risk = told.probability[np.flatnonzero(np.r_[True, np.diff(told.stay) != 0])]
    septic = rng.random(stays) < np.minimum(changed(risk, odds) * 20 / 10, 1)
    began = pd.Series(START + pd.to_timedelta(np.arange(stays) * 2 + rng.integers(10, 15, stays), unit="h"))
    onset = began.where(pd.Series(septic))
    return Outcomes(pd.Series(onset.array, index=told.names).astype(UTC_US), timedelta(0), "x")


@pytest.mark.parametrize(("odds", "kinds"), [(1.0, []), (0.5, ["miscalibrated"])])
def test_figures_and_findings_of_1000_stays(odds: float, kinds: list[str]):
    rng = np.random.default_rng(11)
    told = hours(1000, 20, rng.beta(2, 18, 1000), page=True)
    judged = judge(told, onsets(told, odds, rng), RULE, LATER)
    units = np.array(told.units)[judged.unit]
    table = performance.measure(judged, {"unit": units})
    found, advice = performance.check(judged, table, LATER)
    assert [f.kind for f in found] == kinds
    ratio, low, high = table["figures"]["observed_expected"]
    assert ratio == pytest.approx(judged.label.sum() / judged.probability.sum(), rel=1e-6)
    assert low < ratio < high
    assert {row["value"] for row in table["groups"]} == {"East", "West"}
    assert table["figures"]["sensitivity"][0] == 1.0, "everybody is paged at once"
    assert advice["advised"] == bool(kinds)
    if kinds:
        assert "wardcast recalibrate sepsis" in found[0].action
        assert advice["enough"]
        assert ratio < 0.75


def test_without_a_septic_stay_the_figures_are_unknown_and_the_silence_is_found():
    told = hours(400, 20, np.full(400, 0.1))
    never = Outcomes(pd.Series(pd.NaT, index=told.names, dtype=UTC_US), timedelta(0), "x")
    judged = judge(told, never, RULE, LATER)
    table = performance.measure(judged, {"unit": np.array(told.units)[judged.unit]})
    assert np.isnan(table["figures"]["auroc"][0])
    assert table["suppressed"] == 2
    found, advice = performance.check(judged, table, LATER)
    assert [(f.kind, f.severity) for f in found] == [("miscalibrated", "alarm")]
    assert "has to wait" in advice["words"]


def test_the_estimate_without_labels_is_the_mean_of_drawn_outcomes():
    rng = np.random.default_rng(5)
    p = rng.beta(1, 6, 400)
    drawn = rng.random((300, 400)) < p
    from sklearn.metrics import roc_auc_score

    told = estimate(p, 0.3)
    assert told["auroc"] == pytest.approx(np.mean([roc_auc_score(y, p) for y in drawn]), abs=0.01)
    assert told["ppv"] == pytest.approx(drawn[:, p >= 0.3].mean(), abs=0.01)
    assert "blind" in told["blind"]
    assert set(estimate(np.array([]), 0.3)) == {"blind"}


def test_quarters_are_fixed_and_begin_with_the_first_prediction():
    now = datetime(2026, 5, 20, tzinfo=UTC)
    ago = performance.window(now, datetime(2020, 1, 1, tzinfo=UTC))
    assert timedelta(days=90) <= now - ago < timedelta(days=180)
    assert performance.window(now + timedelta(days=1), datetime(2020, 1, 1, tzinfo=UTC)) == ago
    assert performance.window(now, datetime(2026, 5, 1, tzinfo=UTC)) == datetime(2026, 5, 1, tzinfo=UTC)


def test_labels_are_read_by_stay_or_by_hour(tmp_path: Path):
    by_stay, by_hour, neither = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv"
    by_stay.write_text("encounter_id,onset_time\n1,2026-01-05T08:00Z\n2,\n")
    by_hour.write_text(
        "encounter_id,prediction_time,label\n1,2026-01-05T01:00Z,0\n1,2026-01-05T02:00Z,1\n2,2026-01-05T02:00Z,0\n"
    )
    neither.write_text("patient,sepsis\n1,1\n")
    for path in (by_stay, by_hour):
        onset = from_file(path, "UTC").onset
        assert onset.index.tolist() == ["1", "2"]
        assert onset.iloc[0] == pd.Timestamp("2026-01-05T08:00Z")
        assert pd.isna(onset.iloc[1])
    with pytest.raises(DataError, match="onset_time"):
        from_file(neither, "UTC")
