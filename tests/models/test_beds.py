"""The bed model: sums that add up, means that are exact, a present that knows nothing of the future."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.clean import clean
from features.errors import DataError, SpecError
from features.sources.moves import located_at
from features.sources.synthetic import Hospital, simulate
from features.sources.visits import known_at
from models.beds import FLOWS, HOSPITAL, BedModel, Cell, assemble, checked_windows, in_ed_beds, windows_at
from models.bundle import Bundle
from models.draws import HOPS, Chances, draw, means
from models.flows import ArrivalRate, Covariate, Moves, StayHazard, TimeTo
from models.surge import Usual, detect

NOW = pd.Timestamp("2026-03-10T16:00Z")
LONDON = "Europe/London"


@pytest.fixture(scope="module")
def released(repo: Path) -> Bundle:
    return Bundle.load(repo / "models" / "admissions" / "released")


@pytest.fixture(scope="module")
def hospital() -> Hospital:
    return simulate(40, 21, datetime(2026, 2, 5, tzinfo=UTC), observe=("ed",))


@pytest.fixture(scope="module")
def events(hospital: Hospital) -> pd.DataFrame:
    return clean(hospital.events)[0]


def forecast(
    bundle: Bundle, visits: pd.DataFrame, events: pd.DataFrame, at: pd.Timestamp = NOW, timezone: str = "UTC"
) -> list[Cell]:
    model = BedModel.of(bundle)
    windows = windows_at(at, timezone)
    situation = model.situation(known_at(visits, at), events, bundle, at, timezone)
    futures = model.futures(situation, windows, np.random.default_rng(1), 1500)
    return assemble(model, situation, futures, windows, None)


def test_windows_end_where_they_say_also_when_clocks_change():
    """Saturday 24 October 2026, 20:00 in London: tomorrow has 25 hours, and 08:00 tomorrow is 13 hours away."""
    four, eight, to_08, tomorrow, *later = windows_at(pd.Timestamp("2026-10-24T19:00Z"), LONDON)
    hours = [(w.end - w.start) / pd.Timedelta(hours=1) for w in (four, eight, to_08, tomorrow)]
    assert hours == [4, 8, 13, 25]
    assert tomorrow.start == pd.Timestamp("2026-10-24T23:00Z")
    assert [w.key for w in later] == [f"day_{k}" for k in range(2, 8)]
    assert later[-1].end == pd.Timestamp("2026-11-01T00:00Z")
    spring = windows_at(pd.Timestamp("2026-03-28T20:00Z"), LONDON)[3]
    assert (spring.end - spring.start) / pd.Timedelta(hours=1) == 23


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(DataError, match="time zone"):
        windows_at(datetime(2026, 3, 10), "UTC")  # noqa: DTZ001


def test_specialties_add_up_to_the_hospital(released: Bundle, hospital: Hospital, events: pd.DataFrame):
    cells = forecast(released, hospital.visits, events)
    for window in ("next_4h", "next_8h", "to_08", "tomorrow"):
        *parts, whole = [c for c in cells if c.window == window]
        assert whole.level == HOSPITAL
        for flow in FLOWS:
            assert sum(c.parts[flow] for c in parts) == pytest.approx(whole.parts[flow], rel=1e-9)
        assert sum(c.occupied_now for c in parts) == whole.occupied_now
        assert sum(c.waiting_now for c in parts) == whole.waiting_now


def test_draws_have_the_exact_means(released: Bundle, hospital: Hospital, events: pd.DataFrame):
    model = BedModel.of(released)
    situation = model.situation(known_at(hospital.visits, NOW), events, released, NOW, "UTC")
    futures = model.futures(situation, windows_at(NOW, "UTC"), np.random.default_rng(2), 4000)
    for flow in FLOWS:
        draws = futures.draws[flow].sum(axis=(1, 2))
        error = draws.std() / np.sqrt(len(draws)) + 1e-9
        assert abs(draws.mean() - futures.means[flow].sum()) < 4.5 * error, flow


def test_a_longer_window_needs_no_fewer_beds(released: Bundle, hospital: Hospital, events: pd.DataFrame):
    cells = {(c.level, c.window): c for c in forecast(released, hospital.visits, events)}
    for level in {c for c, _ in cells}:
        need = [cells[level, w].needed_mean for w in ("next_4h", "next_8h", "to_08")]
        assert need == sorted(need)


def test_what_comes_later_changes_nothing(released: Bundle, hospital: Hospital, events: pd.DataFrame):
    """The forecast from all data equals the forecast from what was there at the time, number for number."""
    until = events[events["available_time"] <= NOW]
    past = known_at(hospital.visits, NOW)
    for one, other in zip(
        forecast(released, hospital.visits, events), forecast(released, past, until), strict=True
    ):
        assert one.parts == other.parts
        np.testing.assert_array_equal(one.net.pmf, other.net.pmf)


def test_row_order_changes_nothing(released: Bundle, hospital: Hospital, events: pd.DataFrame):
    shuffled = events.sample(frac=1, random_state=3)
    for one, other in zip(
        forecast(released, hospital.visits, events),
        forecast(released, hospital.visits, shuffled),
        strict=True,
    ):
        assert one.parts == other.parts


def test_an_empty_hospital_still_expects_arrivals(released: Bundle, hospital: Hospital, events: pd.DataFrame):
    nobody = hospital.visits.iloc[:0]
    whole = next(
        c for c in forecast(released, nobody, events.iloc[:0]) if c.level == HOSPITAL and c.window == "to_08"
    )
    assert (whole.parts["known"], whole.parts["in_ed"], whole.occupied_now) == (0, 0, 0)
    assert whole.parts["to_come"] > 5
    assert whole.needed.floor(0.9) > 0


def test_one_waiting_patient_is_known_demand(released: Bundle, hospital: Hospital, events: pd.DataFrame):
    waiting = known_at(hospital.visits, NOW)
    waiting = waiting[waiting["decision_time"].notna() & waiting["admission_time"].isna()].iloc[:1]
    assert len(waiting) == 1
    cells = forecast(released, waiting, events.iloc[:0])
    whole = next(c for c in cells if c.level == HOSPITAL and c.window == "tomorrow")
    soon = next(c for c in cells if c.level == HOSPITAL and c.window == "to_08")
    assert soon.parts["known"] == pytest.approx(1, abs=0.1)
    assert soon.parts["known"] + whole.parts["known"] <= 1.0 + 1e-9
    mine = next(c for c in cells if c.level == waiting["specialty"].iloc[0] and c.window == "to_08")
    assert mine.parts["known"] == pytest.approx(soon.parts["known"])


def test_the_undecided_are_summed_exactly(released: Bundle, hospital: Hospital, events: pd.DataFrame):
    situation = BedModel.of(released).situation(known_at(hospital.visits, NOW), events, released, NOW, "UTC")
    counts = in_ed_beds(situation)
    p = situation.in_ed["p_admission"].to_numpy()
    assert counts.mean == pytest.approx(p.sum())
    assert counts.variance == pytest.approx((p * (1 - p)).sum())


def test_a_busy_month_raises_what_is_to_come(released: Bundle, hospital: Hospital, events: pd.DataFrame):
    copies = hospital.visits.assign(encounter_id="x" + hospital.visits["encounter_id"])
    passed = copies[copies["admission_time"].isna() & copies["discharge_time"].notna()]
    busy = pd.concat([hospital.visits, passed], ignore_index=True)
    usual, more = (
        next(c for c in forecast(released, v, events) if c.level == HOSPITAL and c.window == "tomorrow")
        for v in (hospital.visits, busy)
    )
    assert more.parts["to_come"] > 1.3 * usual.parts["to_come"]


def test_patients_of_the_first_load_do_not_look_like_a_quiet_month(released: Bundle, hospital: Hospital):
    """A new feed brings inpatients of weeks ago but not the hundreds who came and went: no level is read from them."""
    model = BedModel.of(released)
    first = pd.Timestamp("2026-03-08T00:00Z")
    seen = hospital.visits[
        (hospital.visits["arrival_time"] >= first) | ~(hospital.visits["discharge_time"] < first)
    ]
    situation = model.situation(known_at(seen, NOW), hospital.events.iloc[:0], released, NOW, "UTC")
    assert situation.level["emergency"] == pytest.approx(1, abs=0.25)


def test_arrival_rates_are_multiplicative():
    rate = ArrivalRate(
        np.log(2.0), (0.0,) * 12 + (np.log(3.0),) * 12, (0.0,) * 5 + (np.log(0.5),) * 2, (0.0,) * 24
    )
    calendar = pd.DataFrame(
        {"hour_of_day": [3, 15, 15], "weekday": [0, 0, 6], "holiday": 0, "day_of_year": 1}
    )
    np.testing.assert_allclose(rate.rate(calendar), [2, 6, 3])


def test_time_to_bed_is_read_from_the_right_row():
    """Four equally likely waits of 1, 2, 3, 4 h by day, ten hours later in the evening."""
    day, evening = ((1.0, 2.0, 3.0, 4.0),) * 9, ((11.0, 12.0, 13.0, 14.0),) * 9
    table = TimeTo((day, day, day, day, evening, day))
    reached = table.reached(np.array([0.2, 0.2]), np.array([10, 20]), np.array([0.0, 2.0, 4.0, 30.0]))
    np.testing.assert_allclose(reached[0], [0, 3 / 8, 7 / 8, 1])
    np.testing.assert_allclose(reached[1, [0, 3]], [0, 1])
    assert reached[1, 2] < 0.1
    assert table.reached(np.zeros(0), np.zeros(0, "int64"), np.array([1.0])).shape == (0, 1)


def test_between_two_bins_of_elapsed_time_lies_their_mixture():
    """Bins [0, 0.5) and [0.5, 1): 2 h to go in one, 4 h in the other; at 0.5 h elapsed, half of each."""
    table = TimeTo((((2.0, 2.0), (4.0, 4.0)),) * 6)
    reached = table.reached(np.array([0.1, 0.5, 0.9]), np.full(3, 10), np.array([3.0]))[:, 0]
    low, high = np.interp(3.0, [0, 2, 2, 4], [0, 0.25, 0.75, 1]), np.interp(3.0, [0, 4], [0, 0.25])
    np.testing.assert_allclose(reached, [low, (low + high) / 2, high])


def test_a_constant_hazard_is_exponential():
    """One discharge in ten hours: 1 - exp(-h / 10) have left after h hours, at any length of stay."""
    hazard = StayHazard((tuple([float(np.log(0.1))] * 13),), (0.0,) * 24, (0.0,) * 7)
    hour = np.arange(48) % 24
    gone = hazard.leaving(
        np.zeros(2, "int64"), np.array([0.0, 500.0]), hour, hour % 7, np.array([0.0, 2.5, 10.0, 48.0])
    )
    expected = 1 - np.exp(-np.array([0, 2.5, 10, 48]) / 10)
    np.testing.assert_allclose(gone, [expected, expected])


def test_a_stay_that_begins_later_is_the_same_stay_later():
    rng = np.random.default_rng(4)
    hazard = StayHazard((tuple(rng.normal(-4, 0.5, 13)),), (0.0,) * 24, (0.0,) * 7)
    hour, one = np.arange(60) % 24, np.zeros(1, "int64")
    now = hazard.leaving(one, np.zeros(1), hour, hour % 7, np.array([0.0, 10.0, 30.0]))
    later = hazard.leaving(one, np.zeros(1), hour, hour % 7, np.array([20.0, 30.0, 50.0]), np.array([20.0]))
    np.testing.assert_allclose(now, later)


def small_chances(rng: np.random.Generator) -> Chances:
    """Three lines and four segments, everybody somewhere."""
    lines, segments = 3, 4

    def some(n: int, m: int) -> np.ndarray:
        return rng.dirichlet(np.ones(m + 1), n)[:, :m]

    return Chances(
        known_line=np.array([0, 2, 2]), known=some(3, segments), in_ed=some(6, segments),
        in_ed_line=rng.dirichlet(np.ones(lines), 6), planned_line=np.array([1]), planned=some(1, segments),
        in_bed_line=np.array([0, 0, 1, 2, 2]), in_bed=some(5, 2 * segments),
        after=some(lines * segments, 2 * segments).reshape(lines, segments, -1),
        destination=rng.dirichlet(np.ones(lines), lines), rate=rng.random((2, 2, lines, segments)),
        flow_of_door=np.array([2, 3]),
    )  # fmt: skip


def test_draws_have_the_means_that_are_said_to_be_exact():
    rng = np.random.default_rng(8)
    chances, n = small_chances(rng), 20_000
    factor = rng.gamma(20, 1 / 20, (n, 2, 2))
    drawn, exact = draw(chances, factor, rng), means(chances, np.ones((2, 2)))
    error = drawn.std(axis=0) / np.sqrt(n) + 1e-9
    assert (np.abs(drawn.mean(axis=0) - exact) < 4.8 * error).all()
    moved_in, moved_out = drawn[:, FLOWS.index("moved_in")], drawn[:, FLOWS.index("moved_out")]
    np.testing.assert_array_equal(moved_in.sum(axis=1), moved_out.sum(axis=1))
    assert abs(exact[4].sum() - exact[5].sum()) < 1e-12


def test_patients_present_are_drawn_as_a_poisson_binomial():
    """Against exact convolution: no normal approximation anywhere."""
    rng = np.random.default_rng(9)
    chances, n = small_chances(rng), 40_000
    drawn = draw(replace(chances, rate=np.zeros((2, 2, 3, 4))), np.ones((n, 2, 2)), rng)
    p = chances.in_ed[:, :2].sum(axis=1)
    pmf = np.ones(1)
    for one in p:
        pmf = np.convolve(pmf, (1 - one, one))
    seen = np.bincount(drawn[:, 1, :, :2].sum(axis=(1, 2)), minlength=len(pmf)) / n
    assert np.abs(seen - pmf).max() < 0.012


def test_nobody_moves_more_often_than_is_followed():
    """One patient who moves at once whenever possible: as many moves as hops, and never a discharge."""
    rng, moving = np.random.default_rng(0), np.array([[0.0, 1.0]])
    none = small_chances(rng)
    always = Chances(
        known_line=np.zeros(0, "int64"), known=np.zeros((0, 1)), in_ed=np.zeros((0, 1)),
        in_ed_line=np.zeros((0, 2)), planned_line=np.zeros(0, "int64"), planned=np.zeros((0, 1)),
        in_bed_line=np.array([0]), in_bed=moving, after=np.stack([moving, moving]),
        destination=np.array([[0.0, 1.0], [1.0, 0.0]]), rate=np.zeros((1, 1, 2, 1)),
        flow_of_door=none.flow_of_door[:1],
    )  # fmt: skip
    drawn, exact = draw(always, np.ones((5, 1, 1)), rng), means(always, np.ones((1, 1)))
    assert drawn[:, 5].sum(axis=(1, 2)).tolist() == [HOPS] * 5
    assert exact[5].sum() == pytest.approx(HOPS)
    assert drawn[:, 6].sum() == 0


def test_outside_series_multiply_arrivals_and_are_usual_where_absent():
    plain = ArrivalRate(0.0, (0.0,) * 24, (0.0,) * 7, (0.0,) * 24)
    rate = replace(plain, covariates=(Covariate("respiratory_virus", 2.0, 0.5),))
    calendar = pd.DataFrame({"hour_of_day": [3, 3], "weekday": 0, "holiday": 0, "day_of_year": 1})
    np.testing.assert_allclose(rate.rate(calendar), 1)
    given = calendar.assign(respiratory_virus=[3.0, np.nan])
    np.testing.assert_allclose(rate.rate(given), [np.exp(0.5), 1])


def test_draws_add_up_over_levels_and_windows(released: Bundle, hospital: Hospital, events: pd.DataFrame):
    """In every draw: specialties to the hospital, days to the week; on means to 1e-9."""
    model, windows = BedModel.of(released), checked_windows(NOW, "UTC")
    model = replace(model, corrections={}, moves=Moves((0.002,) * 6, ((1 / 6,) * 6,) * 6))
    situation = model.situation(known_at(hospital.visits, NOW), events, released, NOW, "UTC")
    futures = model.futures(situation, windows, np.random.default_rng(1), 300)
    cells = {(c.level, c.window): c for c in assemble(model, situation, futures, windows, None)}
    for window in ("next_1h", "next_24h", "to_08", "tomorrow", "day_7"):
        parts = [cells[name, window] for name in model.specialties]
        whole = cells[HOSPITAL, window]
        for mean in ("needed_mean", "net_mean"):
            assert abs(sum(getattr(c, mean) for c in parts) - getattr(whole, mean)) < 1e-9
        assert abs(whole.parts["moved_in"] - whole.parts["moved_out"]) < 1e-9
        assert sum(c.net.mean for c in parts) == pytest.approx(whole.net.mean, abs=1e-9)
    whole = cells[HOSPITAL, "day_7"].occupied_after.mean
    change = [futures.draws[f].sum() / 300 for f in FLOWS]
    assert whole == pytest.approx(len(situation.inpatients) + sum(change[:4]) - change[6], abs=1e-9)


def test_the_elective_list_takes_the_place_of_the_usual_rate(
    released: Bundle, hospital: Hospital, events: pd.DataFrame
):
    """Nobody listed but one knee tomorrow at seven: one orthopaedic patient expected, then the usual rate again."""
    model, windows = BedModel.of(released), windows_at(NOW, "UTC")
    listed = pd.DataFrame(
        {
            "planned_time": pd.Series([pd.Timestamp("2026-03-11T07:00Z")]).dt.as_unit("us"),
            "specialty": ["orthopaedics"],
        }
    )
    seen = known_at(hospital.visits, NOW)
    usual, with_list = (
        {
            (c.level, c.window): c.parts["planned"]
            for c in assemble(
                model, s, model.futures(s, windows, np.random.default_rng(1), 50), windows, None
            )
        }
        for s in (
            model.situation(seen, events, released, NOW, "UTC"),
            model.situation(seen, events, released, NOW, "UTC", elective=listed),
        )
    )
    assert with_list["orthopaedics", "tomorrow"] == pytest.approx(1, abs=0.1)
    assert 0 <= with_list["surgery", "tomorrow"] < 0.5 * usual["surgery", "tomorrow"]
    assert with_list[HOSPITAL, "day_2"] == pytest.approx(usual[HOSPITAL, "day_2"], rel=0.1)


def test_a_moved_patient_counts_where_they_are(hospital: Hospital):
    one = known_at(hospital.visits, NOW)
    one = one[one["admission_time"].notna() & one["discharge_time"].isna()].iloc[:1]
    then = one["admission_time"].iloc[0] + pd.Timedelta(hours=1)
    moves = pd.DataFrame(
        {
            "encounter_id": one["encounter_id"].to_list(),
            "time": [then],
            "specialty": ["surgery"],
            "unit": ["S1"],
        }
    )
    after, before = (located_at(one, moves, t) for t in (NOW, then - pd.Timedelta(minutes=1)))
    assert after[["specialty", "unit", "since"]].iloc[0].tolist() == ["surgery", "S1", then]
    assert before["specialty"].iloc[0] == one["specialty"].iloc[0]
    assert before["since"].iloc[0] == one["admission_time"].iloc[0]


def surge_counts(extra: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """70 days of 100 arrivals, a quarter in each age group; ``extra`` more children a day in the last six."""
    ages = rng.poisson(25, (70, 4))
    ages[-6:, 0] += rng.poisson(extra, 6)
    return np.column_stack([ages, ages.sum(axis=1)]), rng.poisson([12, 12], (70, 2))


def test_a_surge_is_seen_with_its_age_group_and_first_day():
    usual = Usual((0.25,) * 4, (0.12, 0.12), 0.006)
    days = pd.Series(pd.date_range("2026-01-01", periods=70))
    arrivals, admitted = surge_counts(25, np.random.default_rng(2))
    found = detect(days, arrivals, admitted, np.full(70, 100.0), usual, ("medicine", "paediatrics"))
    assert found is not None
    assert (found.age_group, found.unit) == ("under 16", "")
    assert abs((found.since - days.iloc[-6]).days) <= 5, "the days before may have been busy by chance"
    assert found.age_times == pytest.approx(1 + 6 / 7, abs=0.25)
    assert "under 16" in found.words()


def test_chance_is_seldom_taken_for_a_surge():
    """400 hospitals of seventy usual days: at most one in a hundred cries on the last of them."""
    usual, rng = Usual((0.25,) * 4, (0.12, 0.12), 0.006), np.random.default_rng(3)
    days = pd.Series(pd.date_range("2026-01-01", periods=70))
    cried = 0
    for _ in range(400):
        factor = rng.gamma(1 / 0.006, 0.006, (70, 1))
        ages = rng.poisson(25 * factor, (70, 4))
        arrivals = np.column_stack([ages, ages.sum(axis=1)])
        admitted = rng.poisson(12 * factor, (70, 2))
        cried += detect(days, arrivals, admitted, np.full(70, 100.0), usual, ("a", "b")) is not None
    assert cried <= 4


def test_the_model_survives_its_json(released: Bundle):
    model = BedModel.of(released)
    assert BedModel.from_dict(model.to_dict()) == model


def test_a_bundle_of_another_product_is_refused(repo: Path, released: Bundle):
    with pytest.raises(SpecError, match=r"no flow\.json"):
        BedModel.of(Bundle.load(repo / "models" / "sepsis" / "released"))
    table = BedModel.of(released).to_dict()
    del table["stays"]
    with pytest.raises(SpecError, match="lacks 'stays'"):
        BedModel.from_dict(table)


def test_unknown_specialties_follow_the_usual_mix(released: Bundle, hospital: Hospital, events: pd.DataFrame):
    model = BedModel.of(released)
    seen = known_at(hospital.visits, NOW)
    odd = seen.assign(specialty=seen["specialty"].where(seen["specialty"] != "surgery", "podiatry"))
    situation = model.situation(odd, events, released, NOW, "UTC")
    futures = model.futures(situation, windows_at(NOW, "UTC"), np.random.default_rng(1), 200)
    assert futures.means["discharges"].sum() > 0
    cells = assemble(model, situation, futures, windows_at(NOW, "UTC"), {"surgery": 3})
    whole = next(c for c in cells if c.level == HOSPITAL)
    assert whole.occupied_now == len(situation.inpatients)
    assert whole.open_beds == 3


def test_the_change_of_clocks_does_not_disturb(released: Bundle):
    """Forecast from the evening before the 25-hour Sunday: expected arrivals of that day are an hour's worth more."""
    hospital = simulate(30, 4, datetime(2026, 10, 1, tzinfo=UTC), timezone=LONDON, observe=())
    none = hospital.events
    long_day, next_day = (
        next(
            c
            for c in forecast(released, hospital.visits, none, at, LONDON)
            if c.level == HOSPITAL and c.window == "tomorrow"
        )
        for at in (pd.Timestamp("2026-10-24T19:00Z"), pd.Timestamp("2026-10-17T19:00Z"))
    )
    assert long_day.parts["to_come"] == pytest.approx(next_day.parts["to_come"], rel=0.15)
    assert long_day.parts["to_come"] > 0


def test_a_model_without_correction_says_the_draws_themselves(released: Bundle):
    model = replace(BedModel.of(released), corrections={})
    assert model.correction("needed", "tomorrow", HOSPITAL).level(0.9) == pytest.approx(0.9)


def test_yesterdays_forecast_is_the_same_today(released: Bundle, hospital: Hospital, events: pd.DataFrame):
    then = NOW - timedelta(days=1)
    one, other = (forecast(released, hospital.visits, events, then) for _ in range(2))
    assert [c.needed.quantile(0.9) for c in one] == [c.needed.quantile(0.9) for c in other]
