"""Bed forecasts against what came: coverage, loss and bias, read from the reports as they were written."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from serving.monitoring import admissions

UNTIL = datetime(2026, 3, 31, tzinfo=UTC)
DAYS = 41


def visits(rng: np.random.Generator) -> pd.DataFrame:
    """Ten admissions a day, Poisson, for two months and a half."""
    start = pd.Timestamp("2026-01-15T00:00Z")
    hours = np.sort(rng.uniform(0, 75 * 24, 10 * 75))
    time = pd.Series(start + pd.to_timedelta(hours, unit="h")).astype("datetime64[us, UTC]")
    return pd.DataFrame({"arrival_time": time, "admission_time": time, "specialty": "medicine"})


def report(folder: Path, day: int, middle: int) -> None:
    at = pd.Timestamp("2026-02-18T08:00Z") + pd.Timedelta(days=day)
    begin = at.floor("1D") + pd.Timedelta(days=1)
    spread = {"q05": -5, "q10": -4, "q25": -2, "q50": 0, "q75": 2, "q90": 4, "q95": 5}
    needed = {"mean": float(middle), "quantiles": {k: middle + v for k, v in spread.items()}}
    told = {
        "at": at.isoformat(),
        "windows": [
            {"key": "tomorrow", "start": begin.isoformat(), "end": (begin + pd.Timedelta(days=1)).isoformat()}
        ],
        "levels": [{"level": "hospital", "windows": {"tomorrow": {"needed": needed}}}],
    }
    (folder / f"beds-{day:03d}.json").write_text(json.dumps(told))


@pytest.mark.parametrize(("middle", "kinds"), [(10, []), (18, ["beds_interval", "beds_skill"])])
def test_forecasts_are_judged_and_bad_ones_told(tmp_path: Path, middle: int, kinds: list[str]):
    for day in range(DAYS):
        report(tmp_path, day, middle)
    (tmp_path / "odd.json").write_text('{"at": "2026-03-01T00:00Z"}')
    statements = list(admissions.read(tmp_path, UNTIL - timedelta(days=92), UNTIL))
    assert len(statements) == DAYS - 1, "the last one's day has not passed"
    came = visits(np.random.default_rng(1))
    table = admissions.compare(statements, came, UNTIL)
    (row,) = admissions.judge(table)
    by_hand = [
        ((came["admission_time"] > s["start"]) & (came["admission_time"] <= s["end"])).sum()
        for s in statements
    ]
    assert row["mean"] == pytest.approx(np.mean(by_hand))
    assert row["bias"] == pytest.approx(middle - np.mean(by_hand))
    assert row["coverage"]["90"] == pytest.approx(np.mean([abs(n - middle) <= 5 for n in by_hand]))
    assert (row["pinball"] < row["naive_pinball"]) == (middle == 10)
    assert [f.kind for f in admissions.check([row])] == kinds


def test_pinball_is_worked_by_hand():
    at = pd.Timestamp("2026-03-01T00:00Z")
    row = {
        "horizon": "4h",
        "level": "hospital",
        "at": at,
        "start": at,
        "end": at,
        "mean": 3.0,
        "q10": 2.0,
        "q90": 6.0,
    }
    table = pd.DataFrame([row]).assign(outcome=[7], naive=[[4, 8]])
    told = admissions.judge(table)[0]
    assert told["pinball"] == pytest.approx((0.1 * 5 + 0.9 * 1) / 2)
    assert told["naive_pinball"] == pytest.approx((0.1 * (7 - 4.4) + 0.1 * (7.6 - 7)) / 2)
    assert told["coverage"] == {"80": 0.0}
