"""Folds hold whole patients and are alike."""

from __future__ import annotations

import numpy as np
import pytest

from features.errors import DataError
from training.splits import patient_folds


def cohort(n: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    site = rng.choice(np.array(["A", "B"], dtype=object), n)
    return site, rng.random(n) < 0.07, rng.integers(8, 336, n)


def test_each_hospital_and_outcome_is_shared_out_evenly():
    site, septic, hours = cohort()
    fold = patient_folds(site, septic, hours, 5, np.random.default_rng(2))
    for s in ("A", "B"):
        for outcome in (True, False):
            counts = np.bincount(fold[(site == s) & (septic == outcome)], minlength=5)
            assert counts.max() - counts.min() <= 2
    lengths = [hours[fold == k].mean() for k in range(5)]
    assert max(lengths) - min(lengths) < 5


def test_the_same_seed_deals_the_same_folds():
    one, two = (patient_folds(*cohort(), 5, np.random.default_rng(3)) for _ in range(2))
    assert one.tolist() == two.tolist()
    assert one.tolist() != patient_folds(*cohort(), 5, np.random.default_rng(4)).tolist()


def test_too_few_septic_patients_for_the_folds_are_said():
    site, _, hours = cohort(20)
    with pytest.raises(DataError, match="5 folds need 5 patients with"):
        patient_folds(site, np.arange(20) < 4, hours, 5, np.random.default_rng(1))
