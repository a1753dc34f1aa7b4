"""Inputs that contradict each other, stand still or grow old, at one of two units, from the middle of a day on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from serving.monitoring.consistency import check_consistency
from serving.monitoring.findings import Batch, Finding, Limits, Reference

STAYS, HOURS = 120, 24
MONDAY = pd.Timestamp("2026-01-05T00:00Z")
NAMES = ("heart_rate__last", "map__last", "sbp__last", "dbp__last", "map__hours_since_last_48h")
LEVELS = np.array([0.05, 0.5, 0.95])
REFERENCE = Reference(
    NAMES, np.zeros(5), LEVELS, np.array([[60, 85, 120], [60, 80, 110], [90, 120, 160], [40, 60, 85], [0, 0.5, 2.0]]),
    1e5, np.array([0.0, 1.0]), np.array([1.0]), 0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def ward() -> Batch:
    """Patients whose mean pressure is what the other two make it, up to a few mmHg."""
    rng = np.random.default_rng(3)
    stay, hour = np.repeat(np.arange(STAYS), HOURS), np.tile(np.arange(HOURS), STAYS)
    low, pulse = (rng.normal(m, s, STAYS)[stay] + rng.normal(0, 4, len(stay)) for m, s in ((60, 9), (60, 12)))
    frame = pd.DataFrame(
        {
            "heart_rate__last": rng.normal(85, 15, STAYS)[stay] + rng.normal(0, 4, len(stay)),
            "map__last": low + pulse / 3 + rng.normal(0, 4, len(stay)),
            "sbp__last": low + pulse,
            "dbp__last": low,
            "map__hours_since_last_48h": rng.choice([0.0, 0.5, 1.0], len(stay)),
        }
    ).astype(np.float32)
    time = pd.Series(MONDAY + pd.to_timedelta(hour, unit="h")).astype("datetime64[us, UTC]")
    return Batch.of(frame, stay=stay, time=time, unit=pd.Series(np.where(stay % 2, "A", "B")))


def look(ward: Batch, change: pd.DataFrame | None = None) -> list[Finding]:
    """Findings where the rows of unit A from noon on are others."""
    frame = ward.features.copy()
    wrong = ((ward.unit == "A") & (ward.time >= MONDAY + pd.Timedelta(hours=12))).to_numpy()
    if change is not None:
        frame.loc[wrong] = change.loc[wrong]
    return check_consistency(Batch(frame, ward.stay, ward.time, ward.unit), REFERENCE, Limits())


def test_nothing_is_said_of_values_that_agree(ward):
    assert look(ward) == []
    assert check_consistency(ward.take(np.zeros(len(ward), bool)), REFERENCE, Limits()) == []


def test_two_inputs_under_each_others_name_are_told(ward):
    exchanged = ward.features.rename(
        columns={"heart_rate__last": "map__last", "map__last": "heart_rate__last"}
    )
    (found,) = look(ward, exchanged[list(NAMES)])
    assert (found.kind, found.where, found.features[0]) == ("values_disagree", "unit A", "map__last")
    assert abs(found.since - MONDAY.to_pydatetime()).total_seconds() / 3600 == pytest.approx(12, abs=1)


def test_a_copy_that_nobody_refreshes_is_told(ward):
    first = ward.features[ward.time == MONDAY + pd.Timedelta(hours=12)]
    by_stay = first.set_axis(ward.stay[first.index], axis=0)
    (found,) = look(ward, by_stay.loc[ward.stay].set_axis(ward.features.index, axis=0))
    assert (found.kind, found.where, found.severity) == ("inputs_still", "unit A", "alarm")


def test_inputs_that_grow_old_at_one_unit_are_told(ward):
    older = ward.features.assign(map__hours_since_last_48h=ward.features["map__hours_since_last_48h"] + 5)
    (found,) = look(ward, older)
    assert (found.kind, found.where) == ("inputs_stale", "unit A")
    assert found.features == ("map__hours_since_last_48h",)
