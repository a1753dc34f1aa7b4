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
from features.sources.synthetic import Hospital, simulate
from features.sources.visits import known_at
from models.beds import (
    FLOWS,
    HOSPITAL,
    ArrivalRate,
    BedModel,
    Cell,
    StayHazard,
    TimeTo,
    assemble,
    in_ed_beds,
    windows_at,
)
from models.bundle import Bundle

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
    """Four equally likely waits of 1, 2, 3, 4 h by day, ten hours later by night."""
    day, night = ((1.0, 2.0, 3.0, 4.0),) * 9, ((11.0, 12.0, 13.0, 14.0),) * 9
    table = TimeTo((day, night))
    reached = table.reached(np.array([0.2, 0.2]), np.array([10, 22]), np.array([0.0, 2.0, 4.0, 30.0]))
    np.testing.assert_allclose(reached[0], [0, 3 / 8, 7 / 8, 1])
    np.testing.assert_allclose(reached[1, [0, 3]], [0, 1])
    assert reached[1, 2] < 0.1
    assert table.reached(np.zeros(0), np.zeros(0, "int64"), np.array([1.0])).shape == (0, 1)


def test_a_constant_hazard_is_exponential():
    """One discharge in ten hours: 1 - exp(-h / 10) have left after h hours, at any length of stay."""
    hazard = StayHazard((tuple([float(np.log(0.1))] * 13),), (0.0,) * 24, (0.0,) * 7)
    hour = np.arange(48) % 24
    gone = hazard.leaving(
        np.zeros(2, "int64"), np.array([0.0, 500.0]), hour, hour % 7, np.array([0.0, 2.5, 10.0, 48.0])
    )
    expected = 1 - np.exp(-np.array([0, 2.5, 10, 48]) / 10)
    np.testing.assert_allclose(gone, [expected, expected])


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
