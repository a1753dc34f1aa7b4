"""Issuing forecasts of counted series again: honest about time, calibrated on a known truth, written as promised."""

from __future__ import annotations

import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

import cli
from features.errors import DataError
from features.sources import counts
from features.sources.covariates import Covariates
from models.counted import CountForecast, Known, Said, Span, column
from models.series import QUANTILES, SharedEffect, Spread, count_cdf, count_quantiles
from serving.reports.counted import WRITERS
from serving.reports.counted_print import COLUMNS
from serving.reports.formats import FORMATS
from training import daily, hourly, series_forecast, series_scores
from training.series_backtest import Asked, Backtested, run
from training.series_issue import Schedule, _drift, _spread, _wider, issue

DAY_VARIANCE = 0.01
BY_HOUR = 12 + 9 * np.sin(2 * np.pi * (np.arange(24) - 8) / 24)


def hourly_truth(days: int, seed: int, variance: float = DAY_VARIANCE) -> tuple[np.ndarray, np.ndarray]:
    """Counts by hour and their means before the factor that a day's hours share."""
    rng = np.random.default_rng(seed)
    week = np.repeat(np.tile([1.1, 1.0, 0.95, 0.95, 1.0, 1.1, 1.0], days // 7 + 1)[:days], 24)
    mean = np.tile(BY_HOUR, days) * week
    shared = np.repeat(rng.gamma(1 / variance, variance, days), 24) if variance else 1.0
    return rng.poisson(mean * shared), mean


def hourly_file(folder: Path, days: int, seed: int = 1) -> Path:
    stamps = pd.date_range("2025-01-06", periods=24 * days, freq="h")
    path = folder / "arrivals.parquet"
    pd.DataFrame({"time": stamps, "arrivals": hourly_truth(days, seed)[0]}).to_parquet(path)
    return path


def daily_file(folder: Path, days: int, sites: int, seed: int = 2) -> Path:
    """Beds taken: a slow walk, a weekday shape and noise, for hospitals of several sizes."""
    rng = np.random.default_rng(seed)
    stamps = pd.date_range("2025-01-06", periods=days, freq="D")
    shape = np.tile([0.0, 1, 1.5, 1, 0, -2, -2], days // 7 + 1)[:days]
    parts = []
    for k in range(sites):
        size = 80 * (k + 1)
        walk = np.cumsum(rng.normal(0, 0.15, days)) * np.sqrt(size)
        value = np.round(size + np.clip(walk, -size / 2, size) + shape * size / 60 + rng.normal(0, 2, days))
        parts.append(pd.DataFrame({"date": stamps, "hospital": f"H{k}", "beds": value}))
    path = folder / "beds.csv"
    pd.concat(parts).to_csv(path, index=False)
    return path


# ------------------------------------------------------------ distributions


@pytest.mark.parametrize("dispersion", [0.0, 0.01, 0.2])
def test_quantiles_of_counts_are_those_of_scipy(dispersion: float):
    mean = np.random.default_rng(0).gamma(2, 8, 400)
    if dispersion:
        theirs = stats.nbinom(1 / dispersion, (1 / (1 + dispersion * mean))[:, None])
    else:
        theirs = stats.poisson(mean[:, None])
    mine = count_quantiles(mean, dispersion, QUANTILES, whole=True)
    assert (
        mine != theirs.ppf(np.array(QUANTILES))
    ).mean() < 0.002  # a mean between two knots may sit on an edge
    k = np.arange(0.0, 30.0)
    np.testing.assert_allclose(count_cdf(k, mean[:, None], dispersion), theirs.cdf(k), atol=1e-10)


def test_the_effect_that_a_day_shares_is_recovered():
    y, mean = hourly_truth(900, 3)
    effect = SharedEffect.fit((y - mean).reshape(-1, 24), mean.reshape(-1, 24))
    assert effect.day == pytest.approx(DAY_VARIANCE, rel=0.2)
    assert effect.near < 0.002
    total = mean.reshape(-1, 24)[:7]
    widened = effect.dispersion(total)
    # Var of a day's sum is m + d m²: the 24 hours share nearly all of what they vary by.
    assert widened == pytest.approx(effect.day, rel=0.2)
    plain, means = hourly_truth(900, 4, variance=0.0)
    assert SharedEffect.fit((plain - means).reshape(-1, 24), means.reshape(-1, 24)).day < 0.001


def test_few_days_of_errors_widen_a_statement_as_split_conformal_prediction_does():
    errors = np.linspace(-1, 1, 201)
    narrow = Spread(errors, 1000.0).quantiles([0.05, 0.95])
    wide = Spread(errors, 9.0).quantiles([0.05, 0.95])
    assert narrow == pytest.approx([-0.9, 0.9], abs=0.01)
    assert wide == pytest.approx([-1.0, 1.0], abs=0.01)  # 0.5 + 0.45 * (1 + 1/9) = 1


# ------------------------------------------------------------ nothing of the future


def issued(panel: counts.Panel, start: str, until: str, every: int, horizon: int, refit: int) -> pd.DataFrame:
    schedule = Schedule.of(panel, pd.Timestamp(start), pd.Timestamp(until), every, horizon, refit)
    made = issue(panel, Covariates(), schedule, 1, lambda _: None)
    return pd.concat([series_scores.judge(batch, panel, schedule).rows for batch in made], ignore_index=True)


def with_another_future(path: Path, stamp: str, cut: pd.Timestamp, shape: str) -> Path:
    """The same file with every count from ``cut`` on replaced, a series added and half of the rows left out."""
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, parse_dates=[stamp])
    value = table.columns[-1]
    rng = np.random.default_rng(9)
    later = (table[stamp] >= cut).to_numpy()
    table[value] = np.where(later, rng.poisson(7, len(table)) * 31.0, table[value])
    table = table[~later | (rng.random(len(table)) < 0.5)]
    other = path.with_name(f"other_{path.name}")
    if shape == "daily":
        table = pd.concat([table, table[later[table.index]].assign(hospital="AA")])
        table.to_csv(other, index=False)
    else:
        table.to_parquet(other)
    return other


@pytest.mark.parametrize(
    ("shape", "start", "cut", "steps"),
    [
        ("hourly", "2025-04-01", "2025-04-17", (12, 48, 14 * 24)),
        ("daily", "2025-06-01", "2025-06-25", (1, 7, 14)),
    ],
)
def test_another_future_changes_no_forecast(
    tmp_path: Path, shape: str, start: str, cut: str, steps: tuple[int, int, int]
):
    if shape == "hourly":
        path, stamp = hourly_file(tmp_path, 110), "time"
    else:
        path, stamp = daily_file(tmp_path, 190, 7), "date"
    mapping = tmp_path / "site.toml"
    mapping.write_text('holidays = "GB-ENG"\nbeside = []\n', encoding="utf-8")
    other = with_another_future(path, stamp, pd.Timestamp(cut), shape)
    # An hour is not known at its start; a day is known at its origin, so that the last honest one is the day before.
    until = pd.Timestamp(cut) - pd.Timedelta(days=0 if shape == "hourly" else 1)
    now, then = (
        issued(counts.read(p, shape, mapping), start, str(until), *steps).sort_values(
            ["series", "origin", "target", "window_h"]
        )
        for p in (path, other)
    )
    assert len(now) > 500
    assert now["origin"].max() == until
    pd.testing.assert_frame_equal(
        now.reset_index(drop=True), then[then["series"] != "AA"].reset_index(drop=True), rtol=1e-9
    )


# ------------------------------------------------------------ a known truth


def test_hours_and_their_sums_are_calibrated_where_days_share_an_effect(tmp_path: Path):
    asked = Asked("2025-07-07", refit="91d", threads=1)
    done = run("hourly", hourly_file(tmp_path, 300), tmp_path / "out.parquet", asked, track=False)
    cells = done.evaluation["figures"]["arrivals"]
    for window in ("1", "4", "8", "12", "24"):
        assert 0.86 <= cells[window]["coverage_90_pit"] <= 0.94, window
        assert cells[window]["exceeded_99"] <= 0.025
    # Poisson around the weekday's mean knows nothing of the day's factor; its 24 h sums are worst.
    assert cells["24"]["crps_skill_vs_mean4"] > 0.1
    assert cells["1"]["pinball_skill_vs_climatology"] > -0.01


@pytest.mark.parametrize("sites", [1, 12])
def test_nine_months_of_days_are_enough_for_intervals_that_hold(tmp_path: Path, sites: int):
    asked = Asked("2025-10-06", refit="56d", threads=1)
    done = run("daily", daily_file(tmp_path, 400, sites), tmp_path / "out.parquet", asked, track=False)
    cells = done.evaluation["figures"]["beds"]
    covered = [cells[str(h)]["coverage_90_pit"] for h in (1, 3, 7)]
    assert min(covered) >= (0.86 if sites == 1 else 0.87)
    assert cells["1"]["mae_skill_vs_mean4"] > 0.3
    assert cells["7"]["mae_skill_vs_naive"] > -0.05


def test_one_hospital_is_served_no_worse_than_by_the_best_usual_guess(tmp_path: Path):
    """Beds that walk and admissions that come back to their mean, in one file of one small hospital."""
    rng = np.random.default_rng(5)
    days = 330
    week = np.tile([1.2, 1.1, 1.0, 1.0, 1.0, 0.8, 0.7], days // 7 + 1)[:days]
    beds = np.round(np.maximum(150 + np.cumsum(rng.normal(0, 5, days)), 20))
    stamps = pd.date_range("2025-01-06", periods=days, freq="D")
    path = tmp_path / "one.csv"
    pd.DataFrame({"date": stamps, "beds": beds, "admissions": rng.poisson(20 * week)}).to_csv(
        path, index=False
    )
    done = run("daily", path, tmp_path / "out.parquet", Asked("2025-08-01", threads=1), track=False)
    for quantity, humble in (("beds", "naive"), ("admissions", "mean6")):
        cells = done.evaluation["figures"][quantity]
        for day, chance in (
            ("1", 0.05),
            ("3", 0.07),
            ("7", 0.1),
        ):  # what overlaps says less: 17 weeks were issued
            assert cells[day][f"mae_skill_vs_{humble}"] > -chance, (quantity, day)
            assert cells[day]["coverage_90_pit"] > 0.84, (quantity, day)


def test_the_mixture_of_usual_guesses_finds_a_walk_and_a_mean():
    rng = np.random.default_rng(1)
    stamps = pd.date_range("2025-01-06", periods=400, freq="D", unit="us")
    walk, flow = 150 + np.cumsum(rng.normal(0, 5, 400)), rng.poisson(40, 400).astype("float64")
    days = daily.Days.of(np.stack([walk, flow]), stamps, {}, "", Covariates(), False, ("beds", "admissions"))
    lines = daily.fit(days, 393, [1]).lines
    admissions, beds = (dict(zip(daily.USUAL, lines[kind, 1].mixture, strict=True)) for kind in (0, 1))
    assert beds["last"] + beds["level1"] > 0.8
    assert admissions["last"] + admissions["level1"] < 0.2
    assert sum(beds.values()) == pytest.approx(1)
    assert min(*beds.values(), *admissions.values()) >= 0


def test_what_all_series_are_off_by_together_is_carried_on_once_it_is_known():
    error = np.tile([0.0, 0, 0, 1, 1, 1, 1, 1, 1, 1], (6, 1))
    origins = np.arange(10)
    off = _drift(error, origins, 2, np.arange(8))
    # Two days ahead: the error of origin 3 is known at origin 5, and three of them are averaged.
    known = np.array([0, 0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1])
    # Carried on in the eight: (1/3 + 2/3 + 1) / (1/9 + 4/9 + 1), at most 1 after 8 of 28 days of belief.
    assert off == pytest.approx(known * (2 / (14 / 9)) * 8 / 28)
    assert not _drift(error[:5], origins, 2, np.arange(8)).any(), "five series do not speak of all"


# ------------------------------------------------------------ what is written


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Backtested]:
    folder = tmp_path_factory.mktemp("backtest")
    asked = Asked("2025-03-10", until="2025-03-14", threads=1)
    path = hourly_file(folder, 75)
    return path, run("hourly", path, folder / "out.parquet", asked, track=False)


def test_every_forecast_is_a_row_and_its_target_can_be_looked_up(small: tuple[Path, Backtested]):
    path, done = small
    rows = pd.read_parquet(done.output)
    stated = [f"q{5 * k:02d}" for k in range(1, 20)]
    assert list(rows.columns) == ["series", "origin", "target", "window_h", "mean", *stated, "cover99"]
    assert rows.groupby("window_h").size().to_dict() == {
        1: 432,
        4: 405,
        8: 369,
        12: 333,
        24: 225,
    }  # 9 origins
    assert (np.diff(rows[[*stated, "cover99"]].to_numpy(), axis=1) >= 0).all()
    single = rows[rows["window_h"] == 1]
    assert (single["target"] >= single["origin"]).all()
    assert (single[stated] == single[stated].round()).all(axis=None)
    # Means of sums are sums of means, so that every window adds up.
    one = single[single["origin"] == single["origin"].min()].set_index("target")["mean"]
    eight = rows[(rows["window_h"] == 8) & (rows["origin"] == rows["origin"].min())].set_index("target")[
        "mean"
    ]
    pd.testing.assert_series_equal(one.rolling(8).sum().dropna(), eight, check_names=False)
    # And the outcome the figures judge by is what the table's own words say.
    y = pd.read_parquet(path).set_index("time")["arrivals"]
    near = (
        rows[rows["window_h"] == 8]
        .assign(y=lambda t: y.rolling(8).sum().reindex(t["target"]).to_numpy())
        .dropna()
    )
    mae = (near["q50"] - near["y"]).abs().mean()
    assert done.evaluation["figures"]["arrivals"]["8"]["mae_of_median"] == pytest.approx(mae)


def test_figures_and_plots_lie_beside_the_forecasts(small: tuple[Path, Backtested]):
    _, done = small
    kept = json.loads(done.output.with_suffix(".json").read_text(encoding="utf-8"))
    assert kept["schedule"]["refit"] == "28d"
    assert kept["schedule"]["origins"] == 9
    names = {p.name for p in done.output.parent.glob("out_*.png")}
    assert names == {f"out_{kind}_arrivals.png" for kind in ("rpit", "coverage", "skill")}
    assert "coverage 90 %" in done.summary()


def test_the_card_says_the_figures_and_what_moves_an_hour(small: tuple[Path, Backtested]):
    _, done = small
    told = done.output.with_suffix(".md").read_text(encoding="utf-8")
    assert "## arrivals" in told
    cell = done.evaluation["figures"]["arrivals"]["8"]
    assert f"| {cell['mae_of_median']:.2f}" in told
    first = done.evaluation["drivers"][0]
    # Hours of this truth go from 3 to 21 and weekdays hardly differ: the clock moves them most.
    assert (first["about"], first["share"] > 0.5) == ("hour and weekday", True)
    assert "| hour and weekday" in told


def test_the_reasons_of_hours_add_up_to_the_forecast(tmp_path: Path):
    panel = counts.read(hourly_file(tmp_path, 90), "hourly")
    hours = hourly.Hours.of(panel.values[0], panel.stamps, "GB-ENG", Covariates(), seasons=False)
    model = hourly.fit(hours, 80 * 24, 12, 0, 48)
    origins = np.arange(80 * 24, 84 * 24, 12)
    mean = np.log(model.means(origins, 48).ravel())
    reasons = model.reasons(origins, 48)
    np.testing.assert_allclose(sum(reasons.values()), mean - mean.mean(), atol=1e-8)


def test_the_reasons_of_days_add_up_to_the_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(daily, "ENOUGH", 100)  # trees too
    panel = counts.read(daily_file(tmp_path, 120, 3), "daily")
    days = daily.Days.of(panel.values, panel.stamps, {}, "GB-ENG", Covariates(), seasons=False)
    model = daily.fit(days, 110, (1, 4))
    given = daily.Examples.joined([daily.examples(days, np.arange(105, 112), h) for h in (1, 4)])
    away = model.centre(given) - given.level
    reasons = model.reasons(given)
    np.testing.assert_allclose(sum(reasons.values()), away - away.mean(), atol=1e-8)
    assert model.trees is not None


def test_of_what_all_were_off_by_half_is_expected_again():
    error = np.random.default_rng(3).normal(0.4, 1.0, (8, 400))
    many, one = _spread(error, 7)[0], _spread(error[:1], 7)[0]
    assert np.median(many.knots) == pytest.approx(0.2, abs=0.05)
    assert np.median(one.knots) == pytest.approx(0.4, abs=0.1), (
        "one series has no season in common with others"
    )


def test_errors_over_christmas_widen_next_christmas_and_nothing_else():
    stamps = pd.date_range("2022-12-01", "2023-12-31", freq="D")
    origins = np.arange(10, 385)
    unrest = daily.unrest(stamps, "GB-ENG", origins, 2)
    of = dict(zip((stamps[origins + 2]).strftime("%Y-%m-%d"), unrest, strict=True))
    # A target's own day, and whatever lies between: Easter Monday 2023 was 10 April.
    assert [of[d] for d in ("2022-12-25", "2023-01-05", "2023-04-12", "2023-04-14")] == [3, 2, 1, 0]
    error = np.tile(np.where(unrest[:40] == 3, 3.0, 1.0), (4, 1))
    n = int((unrest[:40] == 3).sum())
    assert _wider(error, unrest[:40]) == pytest.approx([1, 1, 1, (3 * n + 5) / (n + 5)])
    assert _wider(np.full((4, 3), np.nan), unrest[:3]) == pytest.approx(np.ones(4))


def test_the_command_records_a_run_without_rows_or_names(tmp_path: Path, var: Path):
    args: list[Any] = ["backtest", "beds", "--shape", "daily", "--input", daily_file(tmp_path, 100, 2)]
    args += [
        "--from",
        "2025-04-01",
        "--until",
        "2025-04-05",
        "--output",
        tmp_path / "o.parquet",
        "--threads",
        "1",
    ]
    shown = CliRunner().invoke(cli.app, [str(a) for a in args])
    assert shown.exit_code == 0, shown.output
    assert "beds:" in shown.output
    import sqlite3

    with sqlite3.connect(var / "mlflow.db") as store:
        names = [k for (k,) in store.execute("select distinct key from metrics")]
        said = "\n".join(str(row) for row in store.execute("select * from params"))
    assert "beds.1.coverage_90" in names
    assert not any("H0" in text for text in (*names, said))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked("2025-01-20"), "leaves 14 days of history, and 42 are needed"),
        (Asked("2026-01-20"), "end on 2025-03-21, before --from 2026-01-20"),
        (Asked("2025-03-10", every="90m"), "--every '90m' is no duration. Write for example 12h"),
        (Asked("soon"), "--from 'soon' is no date"),
        (Asked("nat"), "--from 'nat' is no date"),
        (
            Asked("2025-03-10", until="2025-03-01"),
            "--until 2025-03-01 00:00 lies before --from 2025-03-10 00:00",
        ),
    ],
)
def test_what_cannot_be_issued_is_said_with_what_to_do(tmp_path: Path, asked: Asked, said: str):
    with pytest.raises(DataError, match=said):
        run("hourly", hourly_file(tmp_path, 75), tmp_path / "out.parquet", asked, track=False)


# ------------------------------------------------------------ what comes next


def told(*args: object) -> str:
    done = CliRunner().invoke(cli.app, ["forecast", "beds", *map(str, args)])
    assert done.exit_code == 0, done.output
    return done.output


def test_next_hours_are_those_of_the_backtest_and_nothing_newer_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WARDCAST_VAR", str(tmp_path / "var"))
    path, at = hourly_file(tmp_path, 110), pd.Timestamp("2025-04-15 08:00")
    made = tmp_path / "next.csv"
    said = told(
        "--shape", "hourly", "--input", path, "--at", "2025-04-15T08:00", "--output", made, "--threads", 1
    )
    assert "Newest count Tuesday 15 April 2025, 07:00" in said
    mine = pd.read_csv(made, parse_dates=["origin", "target"])
    assert (mine["origin"] == at).all()
    # From 08:00: 4 and 8 h, 24 h to 08:00 tomorrow, and tomorrow to its last hour; beside them 48 hours.
    sums = mine[mine["window_h"] > 1]
    assert dict(zip(sums["target"], sums["window_h"], strict=True)) == {
        at + pd.Timedelta(hours=3): 4, at + pd.Timedelta(hours=7): 8, at + pd.Timedelta(hours=23): 24,
        pd.Timestamp("2025-04-16 23:00"): 24,
    }  # fmt: skip
    assert len(mine) == 48 + 4
    asked = Asked("2025-04-01T08:00", "12h", "48h", "14d", until="2025-04-15T08:00")
    run("hourly", path, tmp_path / "past.parquet", asked, track=False)
    past = pd.read_parquet(tmp_path / "past.parquet")
    both = mine.merge(past, on=["series", "origin", "target", "window_h"], suffixes=("", "_past"))
    assert len(both) == len(mine)
    for name in ("mean", "q05", "q50", "q95"):
        np.testing.assert_allclose(both[name], both[f"{name}_past"], atol=1e-4)


def test_next_days_of_one_hospital_from_counts_two_days_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WARDCAST_VAR", str(tmp_path / "var"))
    path = daily_file(tmp_path, 150, 7)  # the newest day is 4 June 2025
    day = ("--shape", "daily", "--input", path, "--hospital", "H1", "--threads", 1)
    said = told(*day, "--at", "2025-06-07", "--output", tmp_path / "next.json")
    assert "2 days before 2025-06-07 had none" in said
    told_of = json.loads((tmp_path / "next.json").read_text())
    assert (told_of["newest_count"], told_of["at"]) == ("2025-06-04T00:00:00", "2025-06-07T00:00:00")
    (series,) = told_of["series"]
    assert (series["name"], series["last_forecasts"]["of"]) == ("H1", 12)  # the last two have not come
    counted = pd.read_csv(path)
    assert series["newest"] == counted[counted["hospital"] == "H1"]["beds"].iloc[-1]
    assert [f["target"][:10] for f in series["forecasts"]] == [f"2025-06-{d:02d}" for d in range(7, 14)]
    for f in series["forecasts"]:
        assert f["at_least"] <= f["median"] <= f["covers"]
        # A whole number takes the unit around it: at least k is as likely as more than k - 0.5.
        assert f["at_least"] - 0.5 <= f["quantiles"]["q10"] <= f["at_least"] + 0.5
        assert f["covers"] - 0.5 <= f["quantiles"]["q95"] <= f["covers"] + 0.5
    said = told(*day)
    page = (tmp_path / "var" / "reports" / "beds-counts-2025-06-05.html").read_text()
    assert all("Thu 5 Jun" in text and "H1" in text for text in (said, page))
    assert not any(word in page for word in ("H2", "Counts are missing"))


def test_every_file_says_the_same_and_how_likely_the_open_beds_run_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WARDCAST_SITE", "St Elsewhere")
    monkeypatch.setattr(series_forecast, "foresee", cache(series_forecast.foresee))  # fitted once
    table = pd.read_csv(daily_file(tmp_path, 150, 3))
    table["open_beds"] = (table["beds"] * 1.04).round().where(table["hospital"] != "H2")
    path = tmp_path / "open.csv"
    table.to_csv(path, index=False)
    for form in ("json", "html", "pdf", "xlsx"):
        words = told(
            "--shape", "daily", "--input", path, "--output", tmp_path / f"next.{form}", "--threads", 1
        )
    series = json.loads((tmp_path / "next.json").read_text())["series"]
    opened = table.groupby("hospital")["open_beds"].last()
    assert [s["open_beds"] for s in series] == [opened["H0"], opened["H1"], None]
    first = [s["forecasts"][0] for s in series]
    for f in first[:2]:
        assert 0.01 <= f["p_short"] < f["p_over_95"] < f["p_over_92"] <= 0.95
    assert first[2]["p_short"] is None
    sheets = pd.read_excel(tmp_path / "next.xlsx", sheet_name=None)
    every = [f | {"series": s["name"]} for s in series for f in s["forecasts"]]
    assert list(sheets["All figures"].columns) == list(COLUMNS)
    figures = pd.DataFrame(every)
    for name in ("series", "mean", "median", "at_least", "covers", "p_over_92", "p_over_95", "p_short"):
        pd.testing.assert_series_equal(
            sheets["All figures"][name], figures[name], check_dtype=False, rtol=1e-12
        )
    read = sheets["Counts"].to_numpy().tolist()
    assert sheets["Counts"].columns[0] == "What comes next St Elsewhere"
    rows = {row[0]: row for row in read}
    assert [rows[s["name"]][3] for s in series] == [f["median"] for f in first]
    page = (tmp_path / "next.html").read_text()
    told_of = {"over 92 %": "p_over_92", "over 95 %": "p_over_95", "running short": "p_short"}
    risks = [f"{name} {100 * first[0][key]:.0f} %" for name, key in told_of.items()]
    assert f"Thu 5 Jun, of {opened['H0']:,.0f} open beds: {', '.join(risks)}" in words
    assert all(text in page for text in ("St Elsewhere", "&gt; 95 %", "Short", f"{opened['H1']:,.0f}</td>"))
    pdf = (tmp_path / "next.pdf").read_bytes()
    assert (pdf[:5], len(re.findall(rb"/Type\s*/Page\b", pdf))) == (b"%PDF-", 1)


def test_what_is_more_than_the_open_beds_is_told_as_far_as_quantiles_reach():
    row = {"mean": 50.0} | {column(level): 100 * level for level in (*QUANTILES, 0.99)}
    said = Said.of(row)
    # Evenly spread over 0 to 100, 93 or more are as likely as more than 92.5; 101 or more lie past the last quantile.
    assert said.risks(100) == {"p_over_92": 0.075, "p_over_95": 0.045, "p_short": 0.01}
    assert said.risks(50) == {"p_over_92": 0.535, "p_over_95": 0.525, "p_short": 0.495}
    assert (said.over(0), said.risks(None)["p_short"]) == (0.95, None)


@pytest.mark.parametrize(("series", "pages"), [(12, 1), (140, 6)])
def test_a_dozen_series_are_one_printed_page_and_any_number_are_told(series: int, pages: int):
    names = [
        f"=Hospital number {k} — больница whose name is longer than its column is wide" for k in range(series)
    ]
    days = pd.date_range("2026-01-12", periods=7, freq="D")
    levels = {column(level): 12_000 + 1_000 * level for level in (*QUANTILES, 0.99)}
    rows = pd.DataFrame(
        [{"series": n, "target": d, "window_h": 24, "mean": 12_500.0} | levels for n in names for d in days]
    )
    spans = tuple(Span(f"{d:%a} {d.day} {d:%b}", d, 24) for d in days)
    known = tuple(Known(n, "beds", 12_400, days[0] - days.freq, 13, 14, 12_800) for n in names)
    made = CountForecast(
        days[0], days[0] - days.freq, 24, "x.csv", spans, known, rows, rows, {"weekday": 1.0}
    )
    assert len(re.findall(rb"/Type\s*/Page\b", WRITERS["pdf"](made, "St Elsewhere"))) == pages
    book = pd.read_excel(io.BytesIO(WRITERS["xlsx"](made, "=1+1")), sheet_name="All figures")
    assert list(book["series"]) == [n for n in names for _ in days]  # a text, no formula
    assert WRITERS.keys() == FORMATS.keys()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--at", "2025-06-20"), "The newest count is of 2025-06-04, 15 days before --at 2025-06-20"),
        (("--at", "2025-02-10"), "Days of counts before 2025-02-10: 35, and more than 56 are needed"),
        (("--at", "2024-12-24"), "No count lies before --at 2024-12-24"),
        (("--at", "tomorrow"), "'tomorrow' is no date"),
        (("--hospital", "H9"), "No series is called 'H9'. There are H0, H1, H2"),
        (
            ("--format", "docx"),
            "A forecast of counts cannot be written as 'docx'. Write one of html, pdf, xlsx, csv",
        ),
    ],
)
def test_what_cannot_be_foreseen_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], why: str
):
    monkeypatch.setenv("WARDCAST_VAR", str(tmp_path / "var"))
    path = daily_file(tmp_path, 150, 3)
    done = CliRunner().invoke(
        cli.app, ["forecast", "beds", "--shape", "daily", "--input", str(path), *more, "--threads", "1"]
    )
    assert why in str(done.exception)


def test_counts_and_visits_are_not_mixed_up(tmp_path: Path):
    for more in (("--input", "x.csv"), ("--shape", "daily"), ("--mapping", "x.toml")):
        done = CliRunner().invoke(cli.app, ["forecast", "beds", *more])
        assert (done.exit_code, "--shape" in done.output) == (2, True)
