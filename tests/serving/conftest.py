"""A small hospital to test the service with: one tiny model, one service a test, patients built by the hour.

Tests marked ``both_stores`` run twice, on an SQLite file and on PostgreSQL.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from starlette.testclient import TestClient

from models.bundle import Bundle, write_bundle
from models.calibration import Calibrator
from models.spec import Spec
from serving.app import create_app
from serving.settings import Settings
from serving.state import Wardcast

STORES = ("sqlite", "postgresql")
SPEC = """
[model]
name = "sepsis"

[features]
resample = "1h"
ratios = [ {name = "shock_index", numerator = "heart_rate", denominator = "sbp"} ]
scores = ["sirs_partial"]
[[features.group]]
concepts = ["heart_rate", "sbp", "map", "temperature", "respiratory_rate", "spo2"]
statistics = ["last", "hours_since_last", "mean_6h", "max_24h", "delta_from_first", "count_24h"]
[[features.group]]
concepts = ["lactate", "wbc", "creatinine"]
statistics = ["last", "hours_since_last", "delta"]
[[features.group]]
concepts = ["age_years", "male", "medical_icu", "hours_before_icu"]
statistics = ["last"]
[[features.group]]
concepts = ["icu_admission"]
statistics = ["hours_since_last"]

[target]
meaning = "sepsis begins within the next 6 hours, or has already begun."

[scope]
encounter_classes = ["icu"]
min_age = 18
vitals = ["heart_rate", "respiratory_rate", "spo2", "map", "temperature"]
recent_h = 8
min_vitals = 2
"""
USUAL = {
    "heart_rate": (85, 20), "sbp": (120, 20), "map": (80, 12), "temperature": (37, 1), "respiratory_rate": (18, 5),
    "spo2": (96, 3), "lactate": (2, 1.5), "wbc": (10, 4), "creatinine": (1.2, 0.8), "age_years": (60, 15),
}  # fmt: skip
ADMITTED = datetime(2026, 3, 1, 6, 0, tzinfo=UTC)


def _rows(names: tuple[str, ...], rng: np.random.Generator, n: int) -> np.ndarray:
    rows = rng.normal(size=(n, len(names))).astype(np.float32)
    for k, name in enumerate(names):
        concept, _, statistic = name.partition("__")
        if concept in USUAL and statistic.split("_")[0] in ("last", "mean", "max"):
            rows[:, k] = rows[:, k] * USUAL[concept][1] + USUAL[concept][0]
        elif "hours" in statistic or "count" in statistic:
            rows[:, k] = np.abs(rows[:, k]) * 6
    rows[rng.random(rows.shape) < 0.2] = np.nan
    return rows


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny model: risk rises with lactate and heart rate, as anyone can check."""
    spec, rng = Spec.parse(SPEC), np.random.default_rng(4)
    names = spec.features.names
    rows = _rows(names, rng, 3000)
    odds = -3 + np.nan_to_num((rows[:, names.index("heart_rate__last")] - 85) / 20)
    odds += 1.5 * np.nan_to_num((rows[:, names.index("lactate__last")] - 2) / 1.5)
    label = (rng.random(len(rows)) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    settings = {
        "objective": "binary",
        "num_leaves": 7,
        "verbose": -1,
        "num_threads": 1,
        "deterministic": True,
        "seed": 1,
    }
    booster = lgb.train(settings, lgb.Dataset(rows, label, feature_name=list(names)), 30)
    raw = np.asarray(booster.predict(rows, raw_score=True), dtype=np.float64)
    decision = {
        "thresholds": {"utility": 0.08, "alert": 0.25},
        "policy": {"threshold": 0.25, "snooze_h": 6, "reraise": 1.5, "release": 0.8},
    }
    parts = {
        "features": spec.features.manifest(), "reference": {}, "evaluation": {}, "data": {}, "decision": decision,
        "calibrator": Calibrator.fit(raw, label, method="logistic").to_dict(),
    }  # fmt: skip
    return write_bundle(
        tmp_path_factory.mktemp("models") / "sepsis", name="sepsis", version="test", spec_text=SPEC,
        boosters={"risk": booster}, parts=parts, card="# Sepsis, for tests\n\nMade from random numbers.\n",
    )  # fmt: skip


@dataclass
class Patient:
    """One patient as a sender tells of them. Times are hours after admission."""

    encounter_id: str = "enc-1"
    encounter_class: str = "icu"
    age_years: float | None = 71.0
    events: list[dict[str, Any]] = field(default_factory=list)

    def at(self, hour: float) -> datetime:
        """An instant."""
        return ADMITTED + timedelta(hours=hour)

    def measure(self, hour: float, concept: str, value: float | None, **more: Any) -> Patient:
        """One measurement."""
        event = {"concept": concept, "time": self.at(hour).isoformat(), "value": value} | more
        self.events.append({k: v for k, v in event.items() if v is not None})
        return self

    def rounds(self, hours: range, heart_rate: float = 82.0, lactate: float | None = None) -> Patient:
        """Hourly vital signs, and lactate every four hours where one is given."""
        for hour in hours:
            drift = 0.25 * (hour % 4)
            for concept, value in (
                ("heart_rate", heart_rate + hour), ("sbp", 118 - drift), ("map", 78 - drift),
                ("temperature", 37 + drift), ("respiratory_rate", 17 + drift), ("spo2", 97 - drift),
            ):  # fmt: skip
                self.measure(hour, concept, value)
            if lactate is not None and hour % 4 == 0:
                self.measure(hour, "lactate", lactate + hour / 10)
        return self

    @property
    def encounter(self) -> dict[str, Any]:
        """The encounter as sent."""
        told = {
            "encounter_id": self.encounter_id,
            "subject_id": f"person of {self.encounter_id}",
            "encounter_class": self.encounter_class,
            "unit": "ICU-A",
            "age_years": self.age_years,
            "sex": "female",
            "icu_type": "medical",
            "hospital_admission_time": self.at(-5.5).isoformat(),
            "icu_admission_time": self.at(0).isoformat(),
        }
        return {k: v for k, v in told.items() if v is not None}

    def score_request(self, hour: float | None, **more: Any) -> dict[str, Any]:
        """Body of POST /v1/sepsis/score."""
        when = {} if hour is None else {"prediction_time": self.at(hour).isoformat()}
        return {"encounter": self.encounter, "events": self.events} | when | more

    def news(self, hour: float, since: float = -1e9) -> dict[str, Any]:
        """Body of POST /v1/events, sent at an hour, with what was measured after ``since``."""
        said = [e for e in self.events if since < self._hour(e) <= hour]
        return {
            "encounters": [self.encounter],
            "events": [e | {"encounter_id": self.encounter_id} for e in said],
            "as_of": self.at(hour).isoformat(),
        }

    def _hour(self, event: dict[str, Any]) -> float:
        return (datetime.fromisoformat(event["time"]) - ADMITTED) / timedelta(hours=1)


@pytest.fixture
def patient() -> type[Patient]:
    """Builds patients: ``patient().rounds(range(8), lactate=3.1)``."""
    return Patient


@dataclass
class Service:
    """A service and someone who may do everything there."""

    settings: Settings
    client: TestClient
    state: Wardcast

    @property
    def headers(self) -> dict[str, str]:
        """The token."""
        return {"Authorization": f"Bearer {self.settings.token}"}

    def post(self, path: str, body: Any) -> Any:
        """POST JSON."""
        return self.client.post(path, json=body, headers=self.headers)

    def get(self, path: str, **params: str) -> Any:
        """GET with a query."""
        return self.client.get(path, params=params, headers=self.headers)

    def send(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/events, which must succeed."""
        answer = self.post("/v1/events", body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("both_stores") and "store_kind" in metafunc.fixturenames:
        metafunc.parametrize("store_kind", STORES, indirect=True)


@pytest.fixture
def store_kind(request: pytest.FixtureRequest) -> str:
    """Which store a test runs on."""
    return getattr(request, "param", STORES[0])


@pytest.fixture(scope="session")
def postgres_server(repo: Path) -> Iterator[Any]:
    """A PostgreSQL server of this session; skips, with the reason, where none can be started."""
    spec = importlib.util.spec_from_file_location("postgresql_server", repo / "tests" / "postgresql.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    if module.missing():
        pytest.skip(module.missing())
    with module.running(durable=False) as server:
        yield server


_number = itertools.count(1)


@pytest.fixture
def new_database(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Makes PostgreSQL databases, and drops them at the end; gives the name of each."""
    made: list[str] = []
    server = request.getfixturevalue("postgres_server")

    def make(more: str = "") -> str:
        name = f"wardcast_{next(_number)}"
        server.create(name, more)
        made.append(name)
        return name

    yield make
    for name in made:
        server.run(f"drop database {name} with (force)")


@pytest.fixture
def store_of(request: pytest.FixtureRequest, store_kind: str) -> Callable[[Path], str]:
    """Address of the store that belongs to a ``WARDCAST_VAR`` folder; the same folder, the same store."""
    known: dict[str, str] = {}

    def url(var: Path) -> str:
        if store_kind == "sqlite":
            return f"sqlite:///{var / 'wardcast.db'}"
        if str(var) not in known:
            name = request.getfixturevalue("new_database")()
            known[str(var)] = request.getfixturevalue("postgres_server").url(name)
        return known[str(var)]

    return url


@pytest.fixture
def make_service(
    bundle: Bundle, tmp_path: Path, store_of: Callable[[Path], str]
) -> Iterator[Callable[..., Service]]:
    """Starts services with settings of the test's own; they share a store when they share ``VAR``."""
    started: list[Service] = []

    def make(**env: str) -> Service:
        given = {"VAR": str(tmp_path / "var"), "SEPSIS_MODEL": str(bundle.folder), "CLOCK": "replay"} | env
        given.setdefault("STORE_URL", store_of(Path(given["VAR"])))
        settings = Settings.from_env({f"WARDCAST_{k}": v for k, v in given.items()})
        app = create_app(settings)
        # A failure inside must become an answer, as it does in the running service.
        client = TestClient(app, raise_server_exceptions=False, follow_redirects=False)
        started.append(Service(settings, client, app.state.wardcast))
        return started[-1]

    yield make
    for service in started:
        service.client.close()
        service.state.store.close()
    logging.getLogger("wardcast").handlers.clear()
    logging.getLogger("wardcast").propagate = True


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    """One service on its sender's clock."""
    return make_service()
