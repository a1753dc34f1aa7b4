"""Fixtures of the training tests: a small hospital in the PhysioNet layout, and a small bundle trained on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.bundle import Bundle
from training.sepsis import train

SMALL_SPEC = """
[model]
name = "sepsis"
version = "test"
[target]
meaning = "sepsis begins within the next 6 hours, or has already begun."
[scope]
encounter_classes = ["icu"]
min_age = 18
vitals = ["heart_rate", "temperature"]
min_vitals = 1
recent_h = 24
[features]
resample = "1h"
scores = ["sirs_partial"]
ratios = [{ name = "shock_index", numerator = "heart_rate", denominator = "sbp" }]
[[features.group]]
concepts = ["heart_rate", "temperature", "sbp", "lactate"]
statistics = ["last", "hours_since_last", "mean_6h", "count"]
[[features.group]]
concepts = ["icu_admission"]
statistics = ["hours_since_last"]
[training]
folds = 3
seed = 5
replicates = 20
rounds = 15
keep = 0.5
utility_share = 0.5
boost = { learning_rate = 0.2, num_leaves = 7, min_data_in_leaf = 20 }
simulated_days = 20
simulated_seed = 1
simulated_icu_beds = 30
[alerts]
pages_per_100_patient_days = 40
snooze_h = 8
reraise = 2.0
release = 0.7
"""


def hours_of(patients: int, seed: int) -> pd.DataFrame:
    """Made-up ICU hours: a fifth septic, heart rate and temperature rising for ten hours before onset."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(patients):
        septic, n = i % 5 == 0, int(rng.integers(12, 50))
        onset = n - 3 if septic else 10**6
        hour = np.arange(n)
        ill = np.clip((hour - onset + 10) / 10, 0, 1)
        seen = rng.random((3, n)) < 0.8
        rows.append(
            pd.DataFrame(
                {
                    "patient_id": f"p{int(i % 2)}{i:05d}",
                    "hour": hour.astype(np.int16),
                    "HR": np.where(seen[0], 80 + 30 * ill + rng.normal(0, 5, n), np.nan),
                    "Temp": np.where(seen[1], 37 + 1.5 * ill + rng.normal(0, 0.3, n), np.nan),
                    "SBP": np.where(seen[2], 120 - 20 * ill + rng.normal(0, 8, n), np.nan),
                    "Lactate": np.where(rng.random(n) < 0.1, 1 + 2 * ill + rng.random(n), np.nan),
                    "Age": 16.0 if i % 40 == 7 else 60.0,
                    "Gender": i % 2,
                    "Unit1": 1.0,
                    "Unit2": 0.0,
                    "HospAdmTime": -2.5,
                    "ICULOS": (hour + 1).astype(np.int16),
                    "SepsisLabel": (hour >= onset - 6).astype(np.int8),
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


@pytest.fixture(scope="session")
def icu_hours() -> pd.DataFrame:
    return hours_of(patients=160, seed=1)


@pytest.fixture(scope="session")
def icu_file(icu_hours, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("icu") / "icu.parquet"
    icu_hours.to_parquet(path, index=False)
    return path


@pytest.fixture(scope="session")
def small_spec(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "spec.toml"
    path.write_text(SMALL_SPEC)
    return path


@pytest.fixture(scope="session")
def quiet() -> Iterator[None]:
    """No progress bars."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDCAST_QUIET", "1")
        yield


@pytest.fixture(scope="session")
def small_bundle(icu_file, small_spec, quiet, tmp_path_factory) -> Bundle:
    """Trained in a second on the made-up hours; good for the road, not for skill."""
    output = tmp_path_factory.mktemp("bundle") / "sepsis"
    assert "WARDCAST_VAR" in os.environ
    return train("physionet2019", icu_file, spec=small_spec, output=output, register=False, threads=1).bundle
