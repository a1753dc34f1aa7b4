"""The demo judges alerts fairly, and a short one runs from the simulator to the reports through a real service."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from serving import demo

ADMITTED = pd.Timestamp("2026-02-16T00:00Z")


def at(hour: float) -> pd.Timestamp:
    return ADMITTED + pd.Timedelta(hours=hour)


def judged(alerts: list[tuple[str, float]], onsets: dict[str, float | None], since: float = 0) -> demo.Tally:
    raised = pd.DataFrame(alerts, columns=["encounter_id", "hour"])
    raised["raised_time"] = pd.to_datetime([at(h) for h in raised.pop("hour")], utc=True)
    truth = pd.DataFrame(
        {
            "encounter_id": list(onsets),
            "onset_time": pd.to_datetime([pd.NaT if h is None else at(h) for h in onsets.values()], utc=True),
            "icu_admission_time": pd.to_datetime([ADMITTED] * len(onsets), utc=True),
        }
    )
    return demo.tally(raised, truth, at(since), patient_days=10)


def test_an_alert_is_true_only_when_sepsis_follows_within_a_day():
    found = judged([("a", 10), ("b", 10), ("c", 10)], {"a": 34, "b": 34.1, "c": None})
    assert (found.true, found.false, found.late) == (1, 2, 0)
    assert found.leads_h == (24.0,)


def test_an_alert_at_or_after_onset_is_late_and_catches_nobody():
    found = judged([("a", 20), ("a", 26)], {"a": 20})
    assert (found.true, found.late, found.caught, found.septic) == (0, 2, 0, 1)


def test_the_first_true_alert_gives_the_lead_and_a_patient_counts_once():
    found = judged([("a", 12), ("a", 18)], {"a": 20})
    assert (found.true, found.caught, found.leads_h) == (2, 1, (8.0,))


def test_false_alerts_of_long_stays_are_told_apart():
    found = judged([("a", 47), ("a", 49)], {"a": None})
    assert (found.false, found.false_by_clock) == (2, 1)


def test_who_was_septic_before_the_watch_began_is_not_missed():
    assert judged([], {"a": 5, "b": 30}, since=6).septic == 1


@pytest.mark.slow
def test_a_short_demo_runs_through_the_real_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    var = tmp_path / "demo"
    monkeypatch.setenv("WARDCAST_VAR", str(var))
    monkeypatch.setenv("WARDCAST_PORT", "3170")
    monkeypatch.setattr(demo, "HISTORY_DAYS", 10)
    demo.run_demo([sys.executable, "-c", "print('trained')"], var=var, days=1, seed=3, keep_running=False)
    said = capsys.readouterr().out
    for words in ("out_of_scope", "alerts over", "Beds tomorrow", "trained", "/sign-in#token="):
        assert words in said
    assert list((var / "reports").glob("beds-*.html"))
    assert (var / "monitor" / "last.json").exists()


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path):
    (tmp_path / "precious").touch()
    with pytest.raises(demo.ConfigError, match="WARDCAST_VAR"):
        demo.run_demo([], var=tmp_path, days=1, seed=3, keep_running=False)
    assert (tmp_path / "precious").exists()
