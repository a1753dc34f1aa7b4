"""Pages as a ward meets them, on stays of a few rows."""

from __future__ import annotations

import numpy as np
import pytest

from models.alerting import Stays, operating_points


def stays(*each: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patient, hour and label of stays that begin at hour 0."""
    patient = np.repeat(np.arange(len(each)), [len(labels) for labels in each])
    hour = np.concatenate([np.arange(len(labels), dtype=float) for labels in each])
    return patient, hour, np.concatenate([np.array(labels) for labels in each])


def table_of(patient, hour, label, page, rows=None, until_h=np.inf):
    return Stays(patient, hour, label, rows, until_h=until_h).paged(page).table()


def test_pages_are_counted_before_onset_only():
    # Patient 0: onset at hour 10 + 6 = 16; pages at 8, 12, 18. Patient 1: no sepsis, one page at 3.
    patient, hour, label = stays((0,) * 10 + (1,) * 10, (0,) * 5)
    page = np.isin(hour, [8, 12, 18]) & (patient == 0) | (hour == 3) & (patient == 1)
    table = table_of(patient, hour, label, page)
    assert table["sensitivity"] == 1
    assert table["stay_ppv"] == 0.5
    assert table["page_ppv"] == pytest.approx(2 / 3)
    assert table["lead_h_median"] == 8
    assert table["pages_per_100_patient_days"] == pytest.approx(3 / 22 * 2400)  # 17 + 5 hours
    assert table["prevalence_per_stay"] == 0.5


def test_first_hours_alone_still_know_the_onset():
    patient, hour, label = stays((0,) * 10 + (1,) * 10)
    table = table_of(patient, hour, label, hour == 5, rows=hour <= 8)
    assert table["lead_h_median"] == 11
    assert table["sensitivity_12h"] == 1


def test_stays_positive_from_their_first_row_are_counted_and_left_out():
    """Two septic stays, paged at once; only the second could be paged before its label."""
    patient, hour, label = stays((1,) * 10, (0,) * 10 + (1,) * 10, (0,) * 5)
    table = table_of(patient, hour, label, hour == 0)
    assert table["positive_from_start"] == 1
    assert (table["sensitivity"], table["sensitivity_12h"]) == (1, 0)
    assert table["lead_h_q1"] == table["lead_h_q3"] == 16
    assert table["prevalence_per_stay"] == pytest.approx(2 / 3)
    assert table["stay_ppv"] == pytest.approx(2 / 3)


def test_a_band_of_hours_judges_the_onsets_it_can_hold():
    """Onset at hour 16 and at hour 46; a page in the first 20 hours can be early for the first only."""
    patient, hour, label = stays((0,) * 10 + (1,) * 10, (0,) * 40 + (1,) * 10)
    page = (patient == 0) & (hour == 5)
    every = table_of(patient, hour, label, page, rows=hour <= 20)
    early = table_of(patient, hour, label, page, rows=hour <= 20, until_h=20)
    assert (every["sensitivity"], early["sensitivity"]) == (0.5, 1)
    assert (every["sensitivity_12h"], early["sensitivity_12h"]) == (0.5, 1)
    assert early["prevalence_per_stay"] == 1


def test_without_pages_shares_are_unknown_not_zero():
    patient, hour, label = stays((0,) * 5)
    table = table_of(patient, hour, label, np.zeros(5, bool))
    assert np.isnan(table["stay_ppv"])
    assert np.isnan(table["sensitivity"])


def test_a_lead_is_told_by_its_hours_and_evaluations_by_the_stay():
    """Onsets at hours 16 and 26, paged at 10 and at 0; one more stay is paged in vain."""
    patient, hour, label = stays((0,) * 10 + (1,) * 10, (0,) * 20 + (1,) * 9, (0,) * 4)
    page = (patient == 0) & (hour == 10) | (patient == 1) & (hour == 0) | (patient == 2) & (hour == 1)
    table = table_of(patient, hour, label, page)
    assert (table["lead_share_0_6h"], table["lead_share_24_48h"]) == (0.5, 0.5)
    assert table["nne"] == 1.5


def test_a_sensitivity_asked_for_is_the_one_got():
    rng = np.random.default_rng(1)
    septic = [(0,) * int(n) + (1,) * 10 for n in rng.integers(5, 30, 50)]
    patient, hour, label = stays(*septic, *[(0,) * 20] * 100)
    probability = rng.random(len(hour))
    whole = Stays(patient, hour, label)
    points = operating_points(whole, probability, lambda t: probability >= t, [0.6, 0.8], [40.0])
    told = [paged.table() for _, paged in points]
    assert [t["sensitivity"] for t in told[:2]] == [0.6, 0.8]
    assert points[0][0]["threshold"] > points[1][0]["threshold"]
    assert 30 < told[2]["pages_per_100_patient_days"] <= 40


def test_shares_have_intervals_over_patients():
    patient, hour, label = stays(*[(0,) * 10 + (1,) * 10] * 30, *[(0,) * 10] * 70)
    page = (hour == 5) & (patient % 2 == 0)
    paged = Stays(patient, hour, label).paged(page)
    low, high = paged.intervals(200, np.random.default_rng(2))["stay_ppv"]
    # 50 paged stays, 30 % septic: a binomial interval is about 0.3 +- 1.96 * sqrt(0.21 / 50).
    assert low == pytest.approx(0.3 - 0.127, abs=0.04)
    assert high == pytest.approx(0.3 + 0.127, abs=0.04)


def test_a_page_in_a_band_is_true_when_onset_is_in_it_too():
    """Onsets at hours 16 and 56, and a stay without; all paged at hour 5, an alert standing to hour 12."""
    patient, hour, label = stays((0,) * 10 + (1,) * 10, (0,) * 50 + (1,) * 10, (0,) * 30)
    told = (
        Stays(patient, hour, label, hour <= 48, until_h=48)
        .paged(hour == 5, (hour >= 5) & (hour <= 12))
        .table()
    )
    assert told["stay_ppv"] == pytest.approx(2 / 3)
    assert told["stay_ppv_in_time"] == pytest.approx(1 / 3)
    assert told["prevalence_in_time"] == pytest.approx(1 / 3)
    assert told["sensitivity_12h"] == told["standing_12h"] == 1
    late = Stays(patient, hour, label).paged(hour == 5, hour >= 5).table()
    assert (late["sensitivity_12h"], late["standing_12h"]) == (0.5, 1)
    assert "standing_12h" not in Stays(patient, hour, label).paged(hour == 5).table()
