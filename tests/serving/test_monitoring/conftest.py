"""Fixtures of the monitoring tests: a ward of made-up patients, each of whom resembles himself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.bundle import Bundle, write_bundle
from models.profile import profile
from serving.monitoring.checks import Checked, check_inputs
from serving.monitoring.findings import Batch, Finding, Reference
from serving.monitoring.result import MonitorResult
from serving.monitoring.run import Logged, Watched, examine, unit_mix_ups

CONCEPTS = {  # median, spread between patients (log), share of patients in whom it is ever measured
    "heart_rate": (85.0, 0.15, 1.0),
    "temperature": (37.0, 0.015, 1.0),
    "map": (78.0, 0.15, 0.95),
    "lactate": (1.8, 0.5, 0.6),
    "creatinine": (1.0, 0.5, 0.8),
    "calcium": (8.6, 0.08, 0.8),
}
STATISTICS = ("last", "mean_6h", "hours_since_last", "count_24h", "delta_from_first")
NAMES = tuple(f"{c}__{s}" for c in CONCEPTS for s in STATISTICS)
MONDAY = pd.Timestamp("2026-01-05T00:00Z")
ALERT = 0.10


@dataclass
class Ward:
    """Rows of features with whose, when, where, and the score."""

    frame: pd.DataFrame
    stay: np.ndarray
    time: pd.Series
    unit: pd.Series
    probability: np.ndarray

    def level(self, concept: str) -> list[str]:
        """The features in the concept's own unit."""
        return [f"{concept}__last", f"{concept}__mean_6h"]

    def take(self, rows: np.ndarray) -> Ward:
        """Some rows, by position, in the order given."""
        return Ward(
            self.frame.iloc[rows].reset_index(drop=True),
            self.stay[rows],
            self.time.iloc[rows].reset_index(drop=True),
            self.unit.iloc[rows].reset_index(drop=True),
            self.probability[rows],
        )

    def logged(self, **unscored: int) -> Logged:
        """The prediction log of these rows, with so many attempts more that ended with each reason."""
        ids = [f"p{k}" for k in range(len(self.frame))]
        scored = pd.DataFrame(
            {
                "prediction_id": ids,
                "encounter_id": [f"stay-{s}" for s in self.stay],
                "prediction_time": self.time,
                "status": "scored",
                "reason": None,
                "probability": self.probability,
                "page": self.probability >= 2 * ALERT,
                "unit": self.unit,
            }
        )
        parts = [scored]
        for reason, n in unscored.items():
            rows = scored.sample(n, replace=True, random_state=0)
            parts.append(
                rows.assign(
                    status=reason, reason=reason, probability=np.nan, page=False, prediction_id="none"
                )
            )
        attempts = pd.concat(parts).sort_values("prediction_time", kind="stable").reset_index(drop=True)
        return Logged(attempts, self.frame.set_axis(ids, axis=0))


def make_ward(stays: int, hours: int, seed: int) -> Ward:
    """Patients with a level of their own and small changes by the hour, in three units over a week."""
    rng = np.random.default_rng(seed)
    stay = np.repeat(np.arange(stays), hours)
    n = len(stay)
    columns: dict[str, np.ndarray] = {}
    for concept, (median, spread, measured) in CONCEPTS.items():
        own = median * np.exp(rng.normal(0, spread, stays))
        value = own[stay] * np.exp(rng.normal(0, 0.03, n))
        value[(rng.random(stays) >= measured)[stay] | (rng.random(n) < 0.03)] = np.nan
        known = ~np.isnan(value)
        columns[f"{concept}__last"] = value
        columns[f"{concept}__mean_6h"] = value * np.exp(rng.normal(0, 0.01, n))
        columns[f"{concept}__hours_since_last"] = np.where(known, rng.geometric(0.4, n) - 1.0, np.nan)
        columns[f"{concept}__count_24h"] = np.where(known, rng.poisson(4, n), 0.0)
        columns[f"{concept}__delta_from_first"] = value - own[stay]
    frame = pd.DataFrame(columns)[list(NAMES)].astype(np.float32)
    start = rng.integers(0, 7 * 24 - hours + 1, stays)[stay]
    time = pd.Series(MONDAY + pd.to_timedelta(start + np.tile(np.arange(hours), stays), unit="h"))
    unit = pd.Series(np.array(["North", "East", "South"])[rng.integers(0, 3, stays)][stay])
    risk = -3.5 + 0.8 * np.log(frame["lactate__last"].fillna(1.8) / 1.8) + rng.normal(0, 0.7, stays)[stay]
    return Ward(
        frame, stay, time.astype("datetime64[us, UTC]"), unit, (1 / (1 + np.exp(-risk))).to_numpy(np.float64)
    )


@pytest.fixture(scope="session")
def made_profile() -> dict[str, Any]:
    ward = make_ward(2000, 12, seed=0)
    return profile(ward.frame.to_numpy(), NAMES, ward.probability)


@pytest.fixture(scope="session")
def reference(made_profile: dict[str, Any]) -> Reference:
    return Reference.from_profile(made_profile)


@pytest.fixture(scope="session")
def watched(made_profile: dict[str, Any]) -> Watched:
    return Watched("sepsis@1-0a1b2c3d4e5f", made_profile, ALERT, {n: float(k) for k, n in enumerate(NAMES)})


@pytest.fixture
def ward() -> Callable[..., Ward]:
    def build(stays: int = 120, hours: int = 20, seed: int = 5) -> Ward:
        return make_ward(stays, hours, seed)

    return build


@pytest.fixture(scope="session")
def check(reference: Reference) -> Callable[[Ward], Checked]:
    """Our own checks on a ward, units table and all."""
    mix_ups = unit_mix_ups(reference)

    def run(ward: Ward) -> Checked:
        batch = Batch.of(ward.frame, stay=ward.stay, time=ward.time, unit=ward.unit)
        return check_inputs(batch, reference, mix_ups=mix_ups)

    return run


@pytest.fixture(scope="session")
def loud() -> Callable[[Checked], list[Finding]]:
    """What is more than a note."""

    def pick(checked: Checked) -> list[Finding]:
        return [f for f in checked.findings if f.severity != "note"]

    return pick


@pytest.fixture
def run(watched: Watched, tmp_path: Path) -> Callable[..., MonitorResult]:
    """A run of the monitor over a log, up to just after its last prediction; without Evidently unless asked for."""

    def examined(logged: Logged, **more: Any) -> MonitorResult:
        last = (
            logged.attempts["prediction_time"].max()
            if len(logged.attempts)
            else MONDAY + pd.Timedelta(days=7)
        )
        until = last.to_pydatetime() + timedelta(minutes=1)
        settings: dict[str, Any] = {
            "until": until,
            "since": until - timedelta(days=7),
            "evidently": False,
        } | more
        ran_at = datetime(2026, 1, 12, 7, tzinfo=UTC)
        return examine(logged, watched, folder=tmp_path / "report", ran_at=ran_at, **settings)

    return examined


@pytest.fixture(scope="session")
def profiled(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny model with a reference profile, made of random numbers about what the tests' patients have."""
    rng, names = np.random.default_rng(1), bundle.feature_names
    middle = {"heart_rate": 85, "sbp": 118, "map": 78, "temperature": 37, "respiratory_rate": 17, "spo2": 97}
    rows = rng.normal(size=(2000, len(names)))
    rows += [middle.get(n.partition("__")[0], 1) if "last" in n or "mean" in n else 3 for n in names]
    rows[rng.random(rows.shape) < 0.2] = np.nan
    reference = profile(rows.astype(np.float32), names, rng.beta(1, 12, 2000))
    return write_bundle(
        tmp_path_factory.mktemp("profiled") / "sepsis",
        name=bundle.name,
        version="profiled",
        spec_text=bundle.spec.text,
        boosters=bundle.boosters,
        parts={**bundle.parts, "reference": reference},
        card=bundle.card,
    )
