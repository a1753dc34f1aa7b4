"""Training the bed forecast: parts that recover the truth, time that is cut cleanly, figures that can be checked."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features import census
from features.errors import DataError
from features.sources.moves import no_moves, spells
from features.sources.synthetic import MOVES_TO, STAY_MEDIAN_H, STAY_SIGMA, Surge, arrival_rate, simulate
from features.sources.visits import known_at, visit_events
from models.beds import BedModel
from models.bundle import Bundle
from models.spec import Spec
from training import admissions, backtest, baselines
from training.flows import fit_moves, fit_rate, fit_stays, fit_time_to, name_specialties, specialty_codes
from training.gates import Gates
from training.ingredients import _ratio_interval

START = datetime(2025, 3, 3, tzinfo=UTC)
SMALL = {
    "simulated_days": 90,
    "huddles": ["08:00"],
    "min_specialty": 60,
    "boost": {"rounds": 30, "learning_rate": 0.1, "leaves": 6, "min_rows": 100},
    "boost_specialty": {"rounds": 10, "learning_rate": 0.1, "leaves": 4, "min_rows": 100},
}


def small_spec() -> str:
    """The released spec, with less of everything."""
    text = admissions.SPEC.read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        key = line.split("=")[0].strip()
        value = SMALL.get(key)
        if isinstance(value, dict):
            value = "{ " + ", ".join(f"{k} = {v}" for k, v in value.items()) + " }"
        elif isinstance(value, list):
            value = json.dumps(value)
        lines.append(line if value is None else f"{key} = {value}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> admissions.TrainResult:
    folder = tmp_path_factory.mktemp("admissions")
    (folder / "spec.toml").write_text(small_spec(), encoding="utf-8")
    return admissions.train(
        "synthetic", None, spec=folder / "spec.toml", output=folder / "bundle", register=False, threads=1
    )


def test_training_writes_a_bundle_that_forecasts(trained: admissions.TrainResult):
    bundle = Bundle.load(trained.folder)
    assert set(bundle.boosters) == {"risk", "specialty"}
    assert bundle.feature_names[-2:] == ("hour_of_day", "weekday")
    assert BedModel.of(bundle).specialties[0] == "general medicine"
    assert "AUROC" in trained.headline
    assert bundle.model_id in trained.summary()
    assert "simulated hospital" in bundle.card
    text = json.dumps([bundle.parts[k] for k in sorted(bundle.parts)])
    assert not any(mark in text for mark in ("V0000", "P0000")), "no identity of anyone in a bundle"


def test_every_ingredient_is_held_against_what_came_and_says_what_moves_it(trained: admissions.TrainResult):
    found = trained.evaluation["ingredients"]
    judged = found["judged"]
    for about in (
        "bed within 4 h, undecided who will be admitted",
        "arrivals at the emergency department, days",
        "in a bed at noon, gone a day later",
    ):
        assert judged[about]["observed"] / judged[about]["expected"] == pytest.approx(1, abs=0.15), about
    mixed = [i for about, i in judged.items() if about.startswith("specialty")]
    assert (
        sum(i["observed"] for i in mixed)
        == mixed[0]["cases"]
        == pytest.approx(sum(i["expected"] for i in mixed))
    )
    reasons = found["reasons"]
    assert set(reasons) == {"p_admission", "specialty", "arrivals", "discharges"}
    assert 0 < sum(reasons["p_admission"].values()) <= 1
    assert reasons["arrivals"]["hour"] > 2, "the simulator's nights are quiet"
    assert "in a bed at noon, gone a day later" in trained.bundle.card


def test_what_one_visit_says_again_and_again_is_one_witness():
    came, due, who = (
        np.array([1.0, 0, 1, 1, 1]),
        np.array([0.5, 1.5, 1.0, 0.5, 0.5]),
        np.array([7, 7, 8, 8, 8]),
    )
    # O/E of the two is 1/2 and 3/2, together 1: distances -1 and 1, so sqrt(2 * 2 / 1) / 4 = 0.5 by hand.
    assert _ratio_interval(came, due, who) == pytest.approx([1 - 0.98, 1 + 0.98])
    often = _ratio_interval(np.repeat(came, 9), np.repeat(due, 9), np.repeat(who, 9))
    assert often == pytest.approx([1 - 0.98, 1 + 0.98]), "nine snapshots of a visit know no more than one"


def test_a_trained_bundle_keeps_what_the_gates_ask_of_its_scores(trained: admissions.TrainResult):
    judged = {g.name: g for g in Gates.load("admissions").judge(Bundle.load(trained.folder))}
    assert judged["reference rows score as when it was made"].passed
    assert all(g.found != "not measured" for g in judged.values())


def test_the_three_parts_follow_one_another(trained: admissions.TrainResult):
    data = trained.bundle.parts["data"]
    moments = [pd.Timestamp(data[k]) for k in ("first", "fit_until", "calibrate_until", "last")]
    assert moments == sorted(moments)
    assert pd.Timestamp(trained.evaluation["test"]["first"]) == moments[2]
    attrition = trained.evaluation["attrition"]
    assert attrition["visits"] >= attrition["visits_kept"] > 0


def test_p_admission_is_worth_something_and_calibrated(trained: admissions.TrainResult):
    figures = trained.evaluation["p_admission"]
    assert 0.74 < figures["auroc"] < 0.87, "above 0.87 it would know more than there is to know"
    assert 0.8 < figures["slope"] < 1.25
    assert figures["auroc_interval"][0] < figures["auroc"] < figures["auroc_interval"][1]


def test_the_same_seed_gives_the_same_model(trained: admissions.TrainResult, tmp_path: Path):
    spec = Spec.parse(small_spec())
    hospital = admissions.load("synthetic", None, spec)
    cuts = hospital.cut(0.6, 0.2)
    rows = admissions.snapshot_rows(hospital, spec.features, cuts, seed=1)
    again = admissions.fit_admission(rows, spec, 1)
    first, second = (
        [line for line in risk.model_to_string().splitlines() if not line.startswith("feature_infos")]
        for risk in (trained.bundle.boosters["risk"], again.risk)
    )
    assert first == second, "but for the ranges of the training rows, which no bundle keeps"


def test_a_silent_feed_hides_observations_but_not_age_or_waiting_time():
    spec = Spec.parse(small_spec())
    hospital = admissions.load("synthetic", None, spec)
    rows = admissions.snapshot_rows(hospital, spec.features, hospital.cut(0.6, 0.2), seed=1)
    dark = admissions.blinded(rows, spec.features, 1.0, np.random.default_rng(1))
    names = spec.features.names
    assert np.isnan(dark[:, names.index("triage_category__last")]).all()
    assert (dark[:, names.index("heart_rate__count")] == 0).all()
    for kept in ("age_years__last", "ed_arrival__hours_since_last", "ambulance_arrival__last"):
        np.testing.assert_array_equal(dark[:, names.index(kept)], rows.matrix[:, names.index(kept)])


def test_arrival_rates_are_recovered():
    hospital = simulate(250, 12, START, observe=())
    came = hospital.visits.loc[hospital.visits["arrival_mode"].isin(["ambulance", "walk-in"]), "arrival_time"]
    first, last = pd.Timestamp(START), pd.Timestamp(START) + pd.Timedelta(days=250)
    rate = fit_rate(came, first, last, "UTC", "")
    week = pd.Series(pd.date_range(first, periods=24 * 7, freq="1h"))
    fitted = rate.rate(census.calendar(week, "UTC"))
    truth = arrival_rate(week, 120, "UTC")
    assert np.corrcoef(fitted, truth)[0, 1] > 0.98
    assert rate.dispersion == pytest.approx(0.08**2, rel=0.45)


def test_moves_between_specialties_are_recovered():
    """One stay in ten of the ward changes hands, at 36 h on average; general medicine sends to three, equally."""
    hospital = simulate(200, 12, START, observe=(), moving=0.1)
    first, last = pd.Timestamp(START), pd.Timestamp(START) + pd.Timedelta(days=200)
    names = tuple(MOVES_TO)
    stays = spells(hospital.visits, hospital.moves)
    moves = fit_moves(stays, names, first, last)
    medicine = stays[(stays["specialty"] == "general medicine") & (stays["start"] > first)]
    hours = (medicine["end"].fillna(last) - medicine["start"]).dt.total_seconds().sum() / 3600
    assert moves.rate[0] == pytest.approx((medicine["next"] != "").sum() / hours, rel=0.1)
    assert 0.05 < (medicine["next"] != "").mean() < 0.1, "fewer than drawn: some have left by then"
    to = dict(zip(names, moves.destination[0], strict=True))
    assert to["general medicine"] == 0
    assert [to[k] for k in ("elderly care", "cardiology", "surgery")] == pytest.approx([1 / 3] * 3, abs=0.1)
    assert sum(moves.destination[0]) == pytest.approx(1)


def test_spells_end_where_the_next_begins():
    visits = pd.DataFrame(
        {
            "encounter_id": ["a", "b"],
            "specialty": ["m", "s"],
            "admission_time": pd.to_datetime(["2026-01-01T00:00Z"] * 2).as_unit("us"),
            "discharge_time": pd.to_datetime(["2026-01-05T00:00Z", None]).as_unit("us"),
        }
    )
    moved = pd.DataFrame(
        {
            "encounter_id": ["a", "a", "a"],
            "time": pd.to_datetime(["2026-01-02T00:00Z", "2026-01-03T00:00Z", "2026-01-06T00:00Z"]).as_unit(
                "us"
            ),
            "specialty": ["s", "s", "m"],
            "unit": "",
        }
    )
    cut = spells(visits, moved)
    assert cut[["specialty", "next"]].to_numpy().tolist() == [["m", "s"], ["s", ""], ["s", ""]]
    assert cut["end"].iloc[0] == cut["start"].iloc[1] == pd.Timestamp("2026-01-02T00:00Z")
    assert cut["end"].isna().tolist() == [False, False, True]
    assert len(spells(visits, no_moves())) == 2


def test_a_virus_series_explains_the_surges_it_runs_ahead_of():
    """Two winters' worth of waves in training; the fitted effect of a third is near what it brought."""
    waves = tuple(Surge(day, 28, 30.0, (0.0, 16.0)) for day in (40, 110, 180))
    hospital = simulate(230, 12, START, observe=(), surges=waves)
    came = hospital.visits.loc[hospital.visits["arrival_mode"].isin(["ambulance", "walk-in"]), "arrival_time"]
    first = pd.Timestamp(START)
    until, last = first + pd.Timedelta(days=170), first + pd.Timedelta(days=230)
    blind, told = (
        fit_rate(came[came < until], first, until, "UTC", "", series)
        for series in (None, hospital.covariates)
    )
    assert told.covariates[0].name == "respiratory_virus"
    assert told.dispersion < 0.75 * blind.dispersion, "what the series explains is no day effect"
    hours = pd.Series(pd.date_range(first + pd.Timedelta(days=187), last - pd.Timedelta(days=29), freq="1h"))
    calendar = census.calendar(hours, "UTC")
    known = census.lagged_covariates(hospital.covariates, calendar["local_date"])
    expected = told.rate(calendar.assign(respiratory_virus=known["respiratory_virus"])).sum()
    truth = arrival_rate(hours, 120, "UTC").sum()
    truth += sum(w.rate(((hours - first) / pd.Timedelta(days=1)).to_numpy()) for w in waves).sum() / 24
    assert expected == pytest.approx(truth, rel=0.08)
    assert told.rate(calendar).sum() < 0.92 * expected, "without the series it would be as usual"


def test_a_surge_in_the_simulator_is_found_and_can_be_taken_away(repo: Path):
    """Twenty-five more children a day for twelve days: seen on the tenth, in children and paediatrics."""
    bundle = Bundle.load(repo / "models" / "admissions" / "released")
    model = BedModel.of(bundle)
    wave = Surge(60, 30, 30.0, (0.0, 15.0))
    hospital = simulate(80, 31, START, observe=(), surges=(wave,))
    at = pd.Timestamp(START) + pd.Timedelta(days=75, hours=8)
    seen = known_at(hospital.visits, at)
    situation = model.situation(seen, visit_events(seen), bundle, at, "UTC")
    assert situation.surge is not None
    assert (situation.surge.age_group, situation.surge.unit) == ("under 16", "paediatrics")
    first = (pd.Timestamp(START) + pd.Timedelta(days=60)).tz_localize(None)
    assert -2 <= (situation.surge.since - first).days <= 8
    without = situation.without_surge()
    assert without.level["emergency"] < 0.9 * situation.level["emergency"]
    assert without.level["emergency"] == pytest.approx(1, abs=0.08)
    calm = known_at(simulate(80, 31, START, observe=()).visits, at)
    assert model.situation(calm, visit_events(calm), bundle, at, "UTC").surge is None


def test_no_arrival_at_all_is_a_rate_of_nothing():
    first, last = pd.Timestamp(START), pd.Timestamp(START) + pd.Timedelta(days=10)
    rate = fit_rate(pd.Series(pd.DatetimeIndex([], tz="UTC").as_unit("us")), first, last, "UTC", "")
    assert np.exp(rate.intercept) < 1e-6


def test_length_of_stay_is_recovered_as_a_hazard():
    """Half of general medicine has left after about the simulator's median (moved to daytime, weekends delayed)."""
    hospital = simulate(150, 12, START, observe=())
    first, last = pd.Timestamp(START), pd.Timestamp(START) + pd.Timedelta(days=150)
    stays = spells(hospital.visits, hospital.moves)
    hazard = fit_stays(stays, ("general medicine",), first, last, "UTC")
    hours = np.arange(24 * 14)
    gone = hazard.leaving(
        np.zeros(1, "int64"), np.zeros(1), hours % 24, hours // 24 % 7, hours.astype("float64")
    )[0]
    median = float(np.searchsorted(gone, 0.5))
    assert median == pytest.approx(STAY_MEDIAN_H[0], rel=0.3)
    assert gone[-1] == pytest.approx(1 - 0.5 * (1 - np.tanh(np.log(336 / 62) / STAY_SIGMA)), abs=0.08)


def test_time_to_bed_keeps_to_its_bin():
    elapsed = np.repeat([0.2, 5.25], 200)
    to_go = np.concatenate([np.linspace(3, 5, 200), np.linspace(0.5, 1, 200)])
    table = fit_time_to(elapsed, to_go, np.full(400, 10))
    reached = table.reached(np.array([0.2, 5.25]), np.array([10, 10]), np.array([2.0]))
    assert reached[0, 0] < 0.05
    assert reached[1, 0] > 0.95


def test_small_specialties_are_counted_together():
    table = pd.DataFrame(
        {
            "encounter_id": [f"v{k}" for k in range(8)],
            "admitted": True,
            "specialty": ["surgery"] * 4 + ["medicine"] * 3 + ["podiatry"],
        }
    )
    names = name_specialties(table, 3)
    assert names == ("surgery", "medicine", "other")
    assert specialty_codes(pd.Series(["medicine", "podiatry", ""]), names).tolist() == [1, 2, -1]
    assert name_specialties(table, 1) == ("surgery", "medicine", "podiatry")


def test_the_same_window_a_week_ago_is_at_the_same_wall_clock():
    """Windows around 29 March 2026 in London: 08:00 is 07:00 UTC after the change and 08:00 UTC before."""
    start, end = pd.Timestamp("2026-03-30T07:00Z"), pd.Timestamp("2026-03-30T11:00Z")
    before = baselines.same_window_before(start, end, "Europe/London", 1)
    assert before == [(pd.Timestamp("2026-03-23T08:00Z"), pd.Timestamp("2026-03-23T12:00Z"))]
    came = pd.Series(
        pd.to_datetime(["2026-03-23T09:00Z", "2026-03-16T09:00Z", "2026-03-16T10:00Z"])
    ).dt.as_unit("us")
    assert baselines.same_weekday_mean(came, start, end, "Europe/London", 2) == 1.5


def test_every_forecast_closes_before_the_data_end():
    first, last = pd.Timestamp("2026-03-01T00:00Z"), pd.Timestamp("2026-03-11T00:00Z")
    times = backtest.forecast_times(first, last, ["08:00", "22:00"], "UTC")
    assert times[0] == pd.Timestamp("2026-03-01T08:00Z")
    assert times[-1] == pd.Timestamp("2026-03-03T22:00Z"), "a week from there ends with the 10th"


def test_intervals_keep_their_promise_on_a_hospital_never_seen(repo: Path):
    """The released model on another seed, one forecast a day for seventy days, every level and window."""
    bundle = Bundle.load(repo / "models" / "admissions" / "released")
    made = simulate(112, 99, START, observe=("ed",))
    spec = bundle.spec
    hospital = admissions._hospital(
        made.visits,
        made.events,
        "UTC",
        pd.Timestamp(START),
        pd.Timestamp(START) + pd.Timedelta(days=112),
        "test",
        {},
    )
    times = backtest.forecast_times(hospital.first + pd.Timedelta(days=42), hospital.last, ["12:00"], "UTC")
    table = backtest.run(
        hospital.visits, spec.features.flatten(hospital.events), BedModel.of(bundle), bundle, times, "UTC"
    )
    judged = backtest.judge(table)
    for what in ("needed", "discharges", "net"):
        pooled = np.mean([judged[what][w]["specialty"]["coverage_90"] for w in judged[what]])
        assert 0.86 < pooled < 0.94, what
        whole = np.mean([judged[what][w]["hospital"]["coverage_90"] for w in judged[what]])
        assert 0.80 < whole <= 0.98, what
    assert judged["needed"]["next_8h"]["hospital"]["crps_skill"] > 0.15
    assert judged["needed"]["tomorrow"]["hospital"]["crps_skill"] > 0


def test_processes_that_share_a_backtest_say_the_same_as_one(repo: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backtest, "WORTH_SHARING", 1)
    hospital = simulate(20, 3, START, ed_per_day=40, observe=())
    bundle = Bundle.load(repo / "models" / "admissions" / "released")
    events = bundle.spec.features.flatten(visit_events(hospital.visits))
    first = pd.Timestamp(START) + pd.Timedelta(days=9)
    times = backtest.forecast_times(first, first + pd.Timedelta(days=10), ["08:00", "20:00"], "UTC")
    asked = (hospital.visits, events, BedModel.of(bundle), bundle, times, "UTC")
    alone, shared = backtest.run(*asked), backtest.run(*asked, threads=2)
    pd.testing.assert_frame_equal(alone.drop(columns="forecast"), shared.drop(columns="forecast"))
    assert alone.groupby("at")["window"].nunique().tolist()[:2] == [13, 7]


def test_visits_without_a_specialty_neither_stop_nor_bend_the_backtest(repo: Path):
    """With a line ``other`` they are its outcomes; without one they count for the hospital alone."""
    hospital = simulate(20, 3, START, ed_per_day=40, observe=())
    visits = hospital.visits.assign(specialty=hospital.visits["specialty"].replace({"surgery": ""}))
    bundle = Bundle.load(repo / "models" / "admissions" / "released")
    plain = BedModel.of(bundle)
    events = bundle.spec.features.flatten(visit_events(visits))
    times = [pd.Timestamp(START) + pd.Timedelta(days=12, hours=8)]
    for name in ("surgery", "other"):
        names = tuple(name if s == "surgery" else s for s in plain.specialties)
        table = backtest.run(visits, events, replace(plain, specialties=names), bundle, times, "UTC")
        assert set(table["level"]) == {*names, "hospital"}
        day = table[(table["window"] == "tomorrow") & (table["what"] == "needed")].set_index("level")[
            "outcome"
        ]
        assert (day[name] > 0) == (name == "other")
        assert day.drop("hospital").sum() == day["hospital"] or name == "surgery"


def test_the_released_figures_are_what_the_card_says(repo: Path):
    bundle = Bundle.load(repo / "models" / "admissions" / "released")
    needed = bundle.evaluation["beds"]["needed"]
    for window, kinds in needed.items():
        assert 0.87 <= kinds["specialty"]["coverage_90"] <= 0.93, window
    assert f"| auroc | {bundle.evaluation['p_admission']['auroc']:.3f} |" in bundle.card


def test_a_site_trains_on_its_own_file(tmp_path: Path):
    """Visits alone, one specialty, local times: everything is fitted without a single observation."""
    made = simulate(80, 5, START, ed_per_day=50, observe=())
    visits = made.visits.assign(
        specialty=made.visits["specialty"].where(made.visits["specialty"] == "", "all")
    )
    visits.to_csv(tmp_path / "visits.csv", index=False)
    (tmp_path / "spec.toml").write_text(small_spec(), encoding="utf-8")
    result = admissions.train(
        "visits",
        tmp_path / "visits.csv",
        spec=tmp_path / "spec.toml",
        output=tmp_path / "bundle",
        register=False,
    )
    assert BedModel.of(result.bundle).specialties == ("all",)
    assert result.bundle.parts["data"]["origin"] == "visits of a site"
    assert 0.5 < result.evaluation["p_admission"]["auroc"] < 0.9


def test_too_little_history_is_refused(tmp_path: Path):
    simulate(20, 5, START, ed_per_day=20, observe=()).visits.to_csv(tmp_path / "v.csv", index=False)
    with pytest.raises(DataError, match=r"span \d+ days; .* at least 60"):
        admissions.train("visits", tmp_path / "v.csv", output=tmp_path / "b", register=False)


def test_other_sources_are_refused():
    spec = Spec.parse(small_spec())
    with pytest.raises(DataError, match="not on 'physionet2019'"):
        admissions.load("physionet2019", None, spec)
    with pytest.raises(DataError, match="--input FILE"):
        admissions.load("visits", None, spec)


def test_corrections_are_fitted_for_every_statement_and_read_by_the_model(trained: admissions.TrainResult):
    model = BedModel.of(trained.bundle)
    levels = len(model.specialties) + 2  # each, all specialties together, the hospital
    windows = 10 + 3  # the report's, and sums over 1, 12 and 24 hours
    assert len(model.corrections) == 4 * windows * levels
    assert replace(model, corrections={}) != model


@pytest.mark.slow
def test_a_run_is_kept_in_mlflow(trained: admissions.TrainResult, var: Path):
    from training import tracking

    uri = admissions._track(trained.bundle, 1.0)
    assert uri == "models:/admissions@challenger"
    assert tracking.resolve(uri).is_dir()
    assert Bundle.load(tracking.resolve(uri)).digest == trained.bundle.digest
