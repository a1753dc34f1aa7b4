"""A paging policy chosen among a few, by what its pages are worth on the patients it was given."""

from __future__ import annotations

import numpy as np
import pytest

from features.errors import SpecError
from models.alerting import Stays
from models.decision import AlertPolicy
from training import policies

ALERTS = {"pages_per_100_patient_days": 60, "snooze_h": [4, 12], "reraise": [1.5, 3.0], "release": 0.7}


@pytest.fixture(scope="module")
def ward() -> tuple[Stays, np.ndarray]:
    """Three hundred stays; a third turn septic, their risk rises over the last twelve hours."""
    rng = np.random.default_rng(3)
    patient, hour, label, p = [], [], [], []
    for i in range(300):
        n, septic = int(rng.integers(30, 60)), i % 3 == 0
        onset = n - 2 if septic else 10**6
        at = np.arange(n)
        odds = -3 + rng.normal(0, 0.6) + rng.normal(0, 0.4, n) + 2.5 * np.clip((at - onset + 12) / 12, 0, 1)
        patient.append(np.full(n, i))
        hour.append(at)
        label.append(at >= onset - 6)
        p.append(1 / (1 + np.exp(-odds)))
    whole = [np.concatenate(part) for part in (patient, hour, label, p)]
    return Stays(whole[0], whole[1].astype(float), whole[2].astype(np.int64)), whole[3]


def test_the_policy_keeps_to_its_budget_and_its_pages_are_the_truest(ward):
    stays, p = ward
    policy, tried = policies.choose(stays, p, ALERTS)
    assert len(tried) == 4
    rates = [stays.paged(policies.pages_of(stays, p, c.policy)).rate for c in tried]
    assert max(rates) <= 60
    worths = {c.policy: stays.paged(policies.pages_of(stays, p, c.policy)).table()["page_ppv"] for c in tried}
    assert worths[policy] == max(worths.values()) == max(c.worth for c in tried)


def test_net_benefit_counts_each_septic_stay_once():
    """Two stays of thirty hours; the first turns septic at hour 26. Pages at 0, 20, 22 there, and at 5 elsewhere."""
    patient, hour = np.repeat([0, 1], 30), np.tile(np.arange(30.0), 2)
    label = np.where((patient == 0) & (hour >= 20), 1, 0)
    page = ((patient == 0) & np.isin(hour, [0, 20, 22])) | ((patient == 1) & (hour == 5))
    stays = Stays(patient, hour, label)
    # caught 1, false 2 (hour 0 lies 26 h ahead of onset), 27 + 30 hours count
    assert policies.net_benefit(stays, page, 4) == pytest.approx(2400 * (1 - 2 / 4) / 57)


def test_a_ward_that_minds_false_pages_more_is_paged_less(ward):
    stays, p = ward
    rates = []
    for exchange in (2, 30):
        policy, _ = policies.choose(
            stays, p, ALERTS | {"threshold_from": "net_benefit", "false_pages_per_true": exchange}
        )
        rates.append(stays.paged(policies.pages_of(stays, p, policy)).rate)
    assert rates[0] < rates[1]


def test_a_trial_gathers_folds_into_what_one_walk_says(ward):
    stays, p = ward
    policy = AlertPolicy(0.2, 8, 2, 0.7)
    trial = policies.Trial(len(p))
    for k in (0, 1):
        fold = stays.patient % 2 == k
        mine = np.unique(stays.patient[fold], return_inverse=True)[1]
        part = Stays(mine, stays.hour[fold], stays.label[fold])
        trial.take(fold, part, p[fold], {"it": policy})
    (row,) = trial.table(stays)
    whole = stays.paged(policies.pages_of(stays, p, policy)).table()
    assert {k: row[k] for k in ("sensitivity", "page_ppv")} == {
        k: whole[k] for k in ("sensitivity", "page_ppv")
    }
    assert row["standing_12h"] >= row["sensitivity_12h"]


def test_rivals_page_as_often_or_reach_as_many(ward):
    stays, p = ward
    policy, _ = policies.choose(stays, p, ALERTS)
    said = {
        k: stays.paged(policies.pages_of(stays, p, v))
        for k, v in policies.rivals(stays, p, ALERTS, policy).items()
    }
    assert said["plain threshold"].rate <= 60
    assert said["policy, 80 % of septic stays"].table()["sensitivity"] == pytest.approx(0.8, abs=0.01)


def test_a_spec_must_say_where_its_threshold_comes_from(ward):
    with pytest.raises(SpecError, match="threshold_from is 'guess'"):
        policies.choose(*ward, ALERTS | {"threshold_from": "guess"})
    with pytest.raises(SpecError, match="false_pages_per_true"):
        policies.choose(*ward, ALERTS | {"threshold_from": "net_benefit"})
