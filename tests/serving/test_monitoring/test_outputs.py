"""Scores and alerts: too few is a fault as much as too many, and reasons for not scoring are counted."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from serving.monitoring.volume import change, cusum


def kinds(result):
    return [f.kind for f in result.findings if f.severity != "note"]


def test_usual_alerts_raise_nothing(ward, run):
    assert [kinds(run(ward(100, 20, seed).logged())) for seed in range(1, 9)] == [[]] * 8


def test_alerts_that_fell_silent_are_an_alarm_with_a_date(ward, run, watched):
    w = ward(600)
    broken = (w.time >= pd.Timestamp("2026-01-09T06:00Z")).to_numpy()
    w.probability = np.where(broken, np.minimum(w.probability, 0.9 * watched.threshold), w.probability)
    finding = next(f for f in run(w.logged()).findings if f.kind == "alerts_silent")
    assert finding.severity == "alarm"
    assert abs(finding.since - pd.Timestamp("2026-01-09T06:00Z")) <= timedelta(hours=4)
    assert "Treat it as a fault" in finding.action


def test_alerts_that_never_fired_are_an_alarm(ward, run, watched):
    w = ward(300)
    w.probability = np.minimum(w.probability, 0.9 * watched.threshold)
    assert "alerts_silent" in kinds(run(w.logged()))


def test_a_quiet_night_of_few_patients_is_no_alarm(ward, run, watched):
    w = ward(10, 8)
    w.probability = np.minimum(w.probability, 0.9 * watched.threshold)
    assert kinds(run(w.logged())) == []


def test_fewer_alerts_than_usual_are_an_alarm(ward, run, watched):
    w = ward(600)
    lowered = np.random.default_rng(0).random(600)[w.stay] < 0.7
    w.probability = np.where(lowered, np.minimum(w.probability, 0.9 * watched.threshold), w.probability)
    finding = next(f for f in run(w.logged()).findings if f.kind.startswith("alerts"))
    assert (finding.kind, finding.severity) == ("alerts_few", "alarm")


def test_a_flood_of_alerts_is_found(ward, run):
    w = ward(300)
    w.probability = np.minimum(1.0, 4 * w.probability)
    result = run(w.logged())
    assert {"alerts_flood", "score_shift"} <= set(kinds(result))
    assert result.alerts["count"] > 3 * result.alerts["expected"]


def test_out_of_scope_is_no_fault(ward, run):
    result = run(ward().logged(out_of_scope=5000))
    assert kinds(result) == []
    assert result.not_scored == {"out_of_scope": 5000}


def test_new_patients_without_data_are_no_fault_until_they_are_many(ward, run):
    assert kinds(run(ward().logged(insufficient_data=200))) == []
    assert kinds(run(ward().logged(insufficient_data=2400))) == ["not_scored"]


def test_a_technical_reason_is_a_fault_early(ward, run):
    result = run(ward().logged(out_of_scope=9000, model_hash_mismatch=80))
    finding = next(f for f in result.findings if f.kind == "not_scored")
    assert (finding.severity, finding.what) == (
        "watch",
        "80 of 2,480 predictions in scope (3%) were not made: model_hash_mismatch.",
    )


def test_a_reason_is_counted_by_its_code_alone(ward, run):
    logged = ward().logged(feature_stale=40)
    stale = logged.attempts["status"] == "feature_stale"
    logged.attempts.loc[stale, "reason"] = [f"feature_stale(lactate, {k} h)" for k in range(40)]
    assert run(logged).not_scored == {"feature_stale": 40}


@pytest.mark.parametrize(("hours", "severity"), [(1, None), (3, "watch"), (30, "alarm")])
def test_a_service_that_went_quiet_is_noticed(ward, run, hours, severity):
    logged = ward().logged()
    until = logged.attempts["prediction_time"].max().to_pydatetime() + timedelta(hours=hours)
    found = [f.severity for f in run(logged, until=until).findings if f.kind == "predictions_stopped"]
    assert found == ([severity] if severity else [])


def test_a_unit_that_never_alerts_any_more_is_named(ward, run, watched):
    w = ward(3000)
    broken = (w.time >= pd.Timestamp("2026-01-08T00:00Z")).to_numpy() & (w.unit == "East").to_numpy()
    w.probability = np.where(broken, np.minimum(w.probability, 0.9 * watched.threshold), w.probability)
    finding = next(f for f in run(w.logged()).findings if f.kind.startswith("alerts"))
    assert (finding.kind, finding.where) == ("alerts_silent", "unit East")
    assert abs(finding.since - pd.Timestamp("2026-01-08T00:00Z")) <= timedelta(hours=8)


def test_a_reason_that_becomes_common_is_dated(ward, run):
    logged = ward(400).logged(insufficient_data=400)
    late = (logged.attempts["prediction_time"] >= pd.Timestamp("2026-01-10T00:00Z")) & (
        logged.attempts["status"] == "scored"
    )
    gone = late & (np.random.default_rng(1).random(len(late)) < 0.3)
    columns = ["status", "reason", "probability"]
    logged.attempts.loc[gone, columns] = ["insufficient_data", "insufficient_data", np.nan]
    finding = next(f for f in run(logged).findings if f.kind == "not_scored")
    assert finding.severity == "watch"
    assert abs(finding.since - pd.Timestamp("2026-01-10T00:00Z")) <= timedelta(hours=8)


def test_a_cusum_is_worked_by_hand_and_holds_its_false_alarms():
    value, since = cusum(np.array([2.0, 0, 4, 4]), np.full(4, 2.0), 2.0)
    assert (since, value) == (2, pytest.approx(8 * np.log(2) - 4))
    rng = np.random.default_rng(4)
    false = sum(change(rng.poisson(1.0, 168) * 1.0, np.ones(168), 1.0, 0.01) is not None for _ in range(1000))
    assert false <= 10
    down = np.r_[rng.poisson(3.0, 100), rng.poisson(0.8, 30)] * 1.0
    found = change(down, np.full(130, 3.0), 1.0, 1e-4)
    assert found is not None
    assert not found.up
    assert abs(found.since - 100) <= 3
