"""Count distributions: exact, in words both ways, honestly judged."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from features.errors import DataError, SpecError
from models.forecast import (
    Counts,
    Recalibration,
    cramer_von_mises,
    crps,
    day_effect,
    dispersion_of,
    in_words,
    negative_binomial,
    pinball,
    pit_coverage,
    poisson_binomial,
    randomised_pit,
)

chance = st.floats(0, 1)


@given(st.lists(chance, max_size=8))
def test_poisson_binomial_equals_enumeration(probabilities: list[float]):
    """Every way that patients can be admitted or not, added up one by one."""
    expected = np.zeros(len(probabilities) + 1)
    for outcome in itertools.product((0, 1), repeat=len(probabilities)):
        terms = (p if y else 1 - p for p, y in zip(probabilities, outcome, strict=True))
        expected[sum(outcome)] += np.prod(list(terms))
    np.testing.assert_allclose(poisson_binomial(probabilities).pmf, expected, atol=1e-12)


def test_poisson_binomial_worked_by_hand():
    """p = 1/2, 1/3: none 1/3, one 1/2, both 1/6."""
    np.testing.assert_allclose(poisson_binomial([1 / 2, 1 / 3]).pmf, [1 / 3, 1 / 2, 1 / 6])


def test_an_empty_department_needs_no_bed():
    nobody = poisson_binomial([])
    assert (nobody.mean, nobody.floor(0.9), nobody.cover(0.95)) == (0, 0, 0)


def test_a_certain_patient_needs_one():
    assert poisson_binomial([1.0]).pmf.tolist() == [0, 1]


def test_many_equal_patients_are_binomial():
    np.testing.assert_allclose(
        poisson_binomial([0.3] * 400).pmf, stats.binom(400, 0.3).pmf(np.arange(401)), atol=1e-12
    )


@pytest.mark.parametrize("bad", [[0.5, 1.2], [-0.1], [float("nan")]])
def test_probabilities_outside_their_range_are_refused(bad: list[float]):
    with pytest.raises(DataError, match=r"in \[0, 1\]"):
        poisson_binomial(bad)


@pytest.mark.parametrize(
    ("mean", "dispersion"), [(0.01, 0.0), (3.0, 0.0), (40.0, 0.0035), (40.0, 0.5), (900.0, 0.01)]
)
def test_negative_binomial_equals_scipy(mean: float, dispersion: float):
    mine = negative_binomial(mean, dispersion)
    law = (
        stats.poisson(mean) if dispersion == 0 else stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean))
    )
    np.testing.assert_allclose(mine.pmf, law.pmf(np.arange(len(mine.pmf))), rtol=1e-7, atol=1e-13)
    assert law.sf(len(mine.pmf) - 1) < 1e-11
    assert mine.mean == pytest.approx(mean)
    assert mine.variance == pytest.approx(mean + dispersion * mean**2, rel=1e-6)


def test_no_arrivals_expected_none_come():
    assert negative_binomial(0.0, 0.3).pmf.tolist() == [1.0]
    with pytest.raises(DataError, match="mean >= 0"):
        negative_binomial(-1.0)


@given(st.lists(st.integers(-30, 60), min_size=1, max_size=80), st.floats(0.01, 1))
def test_floor_and_cover_are_the_numbers_they_say(samples: list[int], level: float):
    x = np.array(samples)
    counts = Counts.of_samples(x)
    floor, cover = counts.floor(level), counts.cover(level)
    assert np.mean(x >= floor) >= level - 1e-9 > np.mean(x >= floor + 1) - 2e-9
    assert np.mean(x <= cover) >= level - 1e-9 > np.mean(x <= cover - 1) - 2e-9


def test_a_floor_is_not_a_cover():
    """Ninety per cent sure of at least 12; but 12 beds are enough only one time in six."""
    counts = negative_binomial(16)
    assert (counts.floor(0.9), counts.cover(0.9)) == (11, 21)


def test_sums_and_differences_of_independent_counts():
    a, b = poisson_binomial([0.5, 0.5]), poisson_binomial([0.5])
    np.testing.assert_allclose(a.plus(b).pmf, stats.binom(3, 0.5).pmf(np.arange(4)))
    net = a.minus(b)
    assert net.lowest == -1
    np.testing.assert_allclose(net.pmf, [1 / 8, 3 / 8, 3 / 8, 1 / 8])
    assert net.mean == pytest.approx(0.5)


def test_words_both_ways():
    assert in_words(12, 22) == "at least 12 (90 % sure); 22 beds cover it 95 times in 100"
    assert in_words(0, 1) == "perhaps none; 1 bed covers it 95 times in 100"
    assert in_words(0, 0) == "probably none; 0 beds cover it 95 times in 100"


def test_crps_of_a_certain_forecast_is_its_error():
    five = Counts(5, np.ones(1))
    assert (crps(five, 5), crps(five, 8), crps(five, 1)) == (0, 3, 4)


def test_crps_worked_by_hand():
    """Forecast 0 or 1 with equal chance, outcome 1: (1/2)^2 at 0, nothing at 1."""
    assert crps(Counts(0, np.array([0.5, 0.5])), 1) == pytest.approx(0.25)


def test_crps_equals_its_definition_by_samples():
    """E|X - y| - E|X - X'| / 2 (Gneiting & Raftery, JASA 2007;102:359)."""
    forecast, y = negative_binomial(12, 0.05), 17
    k = np.arange(len(forecast.pmf))
    away = forecast.pmf @ np.abs(k - y)
    apart = forecast.pmf @ np.abs(k[:, None] - k[None, :]) @ forecast.pmf
    assert crps(forecast, y) == pytest.approx(away - apart / 2)


def test_pinball_charges_the_side_that_was_wrong():
    np.testing.assert_allclose(pinball([10, 10], [14, 6], 0.9), [3.6, 0.4])


def test_randomised_pit_is_uniform_when_the_forecast_is_right():
    rng = np.random.default_rng(0)
    forecast = negative_binomial(3, 0.1)
    outcomes = rng.choice(len(forecast.pmf), 4000, p=forecast.pmf)
    pit = np.array(
        [randomised_pit(forecast, int(y), u) for y, u in zip(outcomes, rng.random(4000), strict=True)]
    )
    assert cramer_von_mises(pit) < 0.461
    assert pit_coverage(pit, 0.9) == pytest.approx(0.9, abs=0.015)


def test_poisson_intervals_fail_when_days_share_an_effect_and_the_mixture_does_not():
    """BEDS.md: pooled Poisson covers 0.7 to 0.8 of daily sums; a shared day effect restores it."""
    rng = np.random.default_rng(1)
    daily = rng.poisson(120 * rng.gamma(1 / 0.02, 0.02, 1500))
    assert dispersion_of(daily, np.full(1500, 120.0)) == pytest.approx(0.02, rel=0.15)
    for forecast, low, high in (
        (negative_binomial(120), 0.5, 0.75),
        (negative_binomial(120, 0.02), 0.88, 0.92),
    ):
        pit = np.array(
            [randomised_pit(forecast, int(y), u) for y, u in zip(daily, rng.random(1500), strict=True)]
        )
        assert low < pit_coverage(pit, 0.9) < high


def test_dispersion_is_zero_where_poisson_suffices():
    assert dispersion_of(np.array([10, 10, 10]), np.array([10.0, 10.0, 10.0])) == 0
    assert dispersion_of(np.zeros(0, "int64"), np.zeros(0)) == 0


def test_what_the_day_has_brought_moves_its_factor():
    """Gamma(100, 100) and 60 seen where 40 were due: mean (100 + 60) / (100 + 40) = 1.143."""
    draws = day_effect(0.01, 60, 40, np.random.default_rng(2), 20000)
    assert draws.mean() == pytest.approx(160 / 140, abs=0.005)
    assert (day_effect(0.0, 60, 40, np.random.default_rng(2), 5) == 1).all()


def test_recalibration_widens_what_was_too_narrow():
    rng = np.random.default_rng(3)
    truth, narrow = negative_binomial(60, 0.03), negative_binomial(60)
    outcomes = rng.choice(len(truth.pmf), 3000, p=truth.pmf)
    pit = np.array(
        [randomised_pit(narrow, int(y), u) for y, u in zip(outcomes, rng.random(3000), strict=True)]
    )
    correction = Recalibration.fit(pit, days=1500)
    mended = Recalibration.from_dict(correction.to_dict()).apply(narrow)
    again = rng.choice(len(truth.pmf), 3000, p=truth.pmf)
    after = np.array(
        [randomised_pit(mended, int(y), u) for y, u in zip(again, rng.random(3000), strict=True)]
    )
    assert pit_coverage(pit, 0.9) < 0.75
    assert 0.85 < pit_coverage(after, 0.9) < 0.93
    assert mended.quantile(0.95) > narrow.quantile(0.95)


def test_a_few_days_hardly_move_a_level():
    few = Recalibration.fit(np.array([0.99, 0.98, 0.97]), days=3)
    assert few.level(0.9) < 0.92
    assert Recalibration().level(0.9) == pytest.approx(0.9)
    assert Recalibration.fit(np.zeros(0), 0) == Recalibration()


def test_a_cautious_correction_widens_sooner_than_it_narrows():
    inner, outer = (
        np.linspace(0.1, 0.9, 801),
        np.concatenate([np.linspace(0, 0.1, 400), np.linspace(0.9, 1, 400)]),
    )
    careful = {"days": 100, "weight_of_prior": 100.0, "caution": 3.0}
    # By hand: 5 % of the inner ones lie below 0.14, and 100 days of 400 say so: 0.75 * 0.05 + 0.25 * 0.14.
    assert Recalibration.fit(inner, **careful).level(0.05) == pytest.approx(0.0725, abs=1e-4)
    assert Recalibration.fit(inner, **careful).level(0.95) == pytest.approx(0.9275, abs=1e-4)
    assert Recalibration.fit(inner, days=100).level(0.05) == pytest.approx(0.095, abs=1e-4)
    # Wider at once: 5 % of the outer ones lie below 0.01, and 100 days of 200 say so.
    assert Recalibration.fit(outer, **careful).level(0.05) == pytest.approx(0.03, abs=1e-3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(1, 300))
def test_corrected_forecasts_stay_distributions(pit: list[float], days: int):
    correction = Recalibration.fit(np.array(pit), days)
    mended = correction.apply(negative_binomial(7, 0.1))
    assert mended.pmf.sum() == pytest.approx(1)
    quantiles = [mended.quantile(level) for level in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert quantiles == sorted(quantiles)


def test_a_spoilt_correction_is_refused():
    with pytest.raises(SpecError, match="rising"):
        Recalibration.from_dict({"nominal": [0, 0], "adjusted": [0, 1]})


def test_a_distribution_must_sum_to_one():
    with pytest.raises(DataError, match="sum to 1"):
        Counts(0, np.array([0.5, 0.4]))
    with pytest.raises(DataError, match="No sample"):
        Counts.of_samples(np.zeros(0, "int64"))
    with pytest.raises(DataError, match=r"\(0, 1\]"):
        poisson_binomial([0.5]).quantile(0.0)
