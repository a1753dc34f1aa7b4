"""The same promises, kept on PhysioNet 2019 patients: dirty, gappy, hourly."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from features.clean import clean
from features.concepts import loader
from features.featureset import FeatureSet
from features.sources import physionet2019
from features.windows import STATISTICS, build

pytestmark = pytest.mark.data
PATIENTS = 60


@pytest.fixture(scope="module", params=["setA", "setB"])
def cohort(request: pytest.FixtureRequest, data_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cleaned events and prediction times of the first patients of a hospital."""
    chunk = next(iter(physionet2019.read(data_dir / "physionet2019" / f"{request.param}.parquet", PATIENTS)))
    events, account = clean(chunk.events)
    assert account.reasons.keys() <= {"impossible_value", "misfiled"}
    assert account.read == len(events) + len(account.set_aside)
    return events, chunk.rows[["encounter_id", "prediction_time"]]


@pytest.fixture(scope="module")
def features() -> FeatureSet:
    quantities = [c.name for c in loader.concepts().values() if c.kind in ("vital", "lab")]
    statistics = [f"{s}{suffix}" for s in STATISTICS for suffix in ("", "_6h", "_24h")]
    return FeatureSet.from_spec(
        {
            "resample": "1h",
            "scores": ["news2_partial", "qsofa_partial", "sirs_partial", "sofa_partial"],
            "ratios": [{"name": "shock_index", "numerator": "heart_rate", "denominator": "sbp"}],
            "group": [{"concepts": quantities, "statistics": statistics}],
        }
    )


def test_one_patient_at_a_time_equals_the_cohort(
    cohort: tuple[pd.DataFrame, pd.DataFrame], features: FeatureSet
) -> None:
    events, rows = cohort
    whole = features.build(events, rows)
    assert np.isfinite(whole).mean() > 0.05
    assert not np.isinf(whole).any()
    for who in rows["encounter_id"].unique():
        asked = (rows["encounter_id"] == who).to_numpy()
        mine = events[events["encounter_id"] == who]
        np.testing.assert_array_equal(features.build(mine, rows[asked]), whole[asked])


def test_cutting_the_record_at_the_prediction_changes_nothing(
    cohort: tuple[pd.DataFrame, pd.DataFrame], features: FeatureSet
) -> None:
    events, rows = cohort
    whole = features.build(events, rows)
    for hour in (1, 7, 30):
        now = pd.Timestamp("2000-01-01T00:00Z") + pd.Timedelta(hours=hour)
        asked = (rows["prediction_time"] == now).to_numpy()
        told = events[events["time"] <= now]
        np.testing.assert_array_equal(features.build(told, rows[asked]), whole[asked])


def test_hourly_data_are_the_same_resampled_or_not(
    cohort: tuple[pd.DataFrame, pd.DataFrame], features: FeatureSet
) -> None:
    events, rows = cohort
    hourly = build(events, rows, features.windows, features.resample)
    np.testing.assert_array_equal(build(events, rows, features.windows), hourly)


def test_the_oracle_agrees_on_one_real_stay(
    cohort: tuple[pd.DataFrame, pd.DataFrame], features: FeatureSet, oracle: ModuleType
) -> None:
    events, rows = cohort
    who = rows["encounter_id"].iloc[0]
    mine = events[events["encounter_id"] == who]
    stamps = mine["time"].array.asi8
    values = zip(mine["concept"].astype(str), stamps, mine["numeric_value"], strict=True)
    plain = [oracle.Event(who, concept, int(t), int(t), value) for concept, t, value in values]
    asked = rows[rows["encounter_id"] == who].iloc[[0, 10, -1]]
    fast = build(mine, asked, features.windows)
    for r, t in enumerate(asked["prediction_time"].array.asi8):
        for k, w in enumerate(features.windows):
            slow = oracle.statistic(
                w.statistic, oracle.members(plain, who, w.concept, int(t), w.lookback_us, 0)
            )
            np.testing.assert_allclose(fast[r, k], slow, rtol=2e-7, atol=1e-9, err_msg=w.name)
