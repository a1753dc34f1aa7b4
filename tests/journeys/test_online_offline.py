"""Two roads, one answer: the released model on the same events, from a file and over HTTP, bit for bit."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from starlette.testclient import TestClient

from features.events import encounter_events
from features.sources import physionet2019
from features.sources.synthetic import Hospital, simulate
from models.bundle import Bundle
from serving.app import create_app
from serving.settings import Settings
from training.cohort import Patients, prepare
from training.scoring import score_patients

SENT = ("encounter_id", "code", "time", "available_time", "unit", "status", "source_id")
FACTS = (
    "encounter_id", "subject_id", "encounter_class", "unit", "specialty", "age_years", "sex", "icu_type",
    "hospital_admission_time", "icu_admission_time",
)  # fmt: skip


class Online:
    """The service, reached over HTTP only; its log is read to compare features."""

    def __init__(self, settings: Settings) -> None:
        self.app = create_app(settings)
        self._client = TestClient(self.app)
        self._headers = {"Authorization": f"Bearer {settings.token}"}

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._client.post(path, json=body, headers=self._headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def logged(self, prediction_ids: list[str]) -> npt.NDArray[np.float32]:
        """Features of some predictions, as the log keeps them."""
        table, matrix = self.app.state.wardcast.store.prediction_features()
        place = {identity: k for k, identity in enumerate(table["prediction_id"])}
        return matrix[[place[p] for p in prediction_ids]]

    def close(self) -> None:
        self._client.close()
        self.app.state.wardcast.store.close()


@pytest.fixture(scope="module")
def released(repo: Path) -> Bundle:
    return Bundle.load(repo / "models" / "sepsis" / "released")


@pytest.fixture
def online(released: Bundle, tmp_path: Path) -> Iterator[Online]:
    given = {
        "VAR": tmp_path / "var",
        "SEPSIS_MODEL": released.folder,
        "CLOCK": "replay",
        "LOG_LEVEL": "error",
    }
    service = Online(Settings.from_env({f"WARDCAST_{k}": str(v) for k, v in given.items()}))
    yield service
    service.close()
    logging.getLogger("wardcast").handlers.clear()


def as_json(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as a sender writes them: full precision, nothing for what is not known."""
    rows = []
    for row in table.astype(object).to_dict("records"):
        told = {
            k: v.isoformat() if isinstance(v, pd.Timestamp) else v for k, v in row.items() if not _nothing(v)
        }
        rows.append(json.loads(json.dumps(told)))
    return rows


def _nothing(value: Any) -> bool:
    return value is None or value is pd.NaT or value == "" or value != value


def sent_events(events: pd.DataFrame) -> pd.DataFrame:
    """The columns of an event that go over the wire."""
    table = events[list(SENT)].assign(value=events["numeric_value"])
    return table[
        ~table["code"].astype(str).str.startswith("WARDCAST//")
    ]  # those are said by the encounter itself


def assert_equal(
    online: list[dict[str, Any]], features: npt.NDArray[np.float32], offline: pd.DataFrame, matrix: Any
) -> None:
    assert [p["status"] for p in online] == offline["status"].tolist()
    probability = [np.nan if p["probability"] is None else p["probability"] for p in online]
    assert np.array(probability).tobytes() == offline["probability"].to_numpy().tobytes()
    assert [p["alert"] for p in online] == offline["alert"].tolist()
    scored = (offline["status"] == "scored").to_numpy()
    assert scored.sum() > 0
    assert features.tobytes() == matrix[scored].tobytes()


def both_roads(online: Online, bundle: Bundle, patients: Patients) -> None:
    """Score every row offline, then hour by hour through the store, then each by a stateless request."""
    offline = score_patients(bundle, patients).reset_index(drop=True)
    matrix = prepare(patients, bundle.spec).matrix
    for who in patients.encounters["encounter_id"]:
        mine = (offline["encounter_id"] == who).to_numpy()
        encounter = patients.encounters[patients.encounters["encounter_id"] == who]
        events = sent_events(patients.events[patients.events["encounter_id"] == who])
        _stateless(online, encounter, events, offline[mine], matrix[mine])
    _stored(online, patients, offline, matrix)


def _stateless(
    online: Online, encounter: pd.DataFrame, events: pd.DataFrame, offline: pd.DataFrame, matrix: Any
) -> None:
    """The whole stay is sent each time: what lies after the prediction must be ignored."""
    about = as_json(encounter[list(FACTS)])[0]
    everything = as_json(events.drop(columns="encounter_id"))
    every_sixth = np.arange(0, len(offline), 6)
    told = [
        online.post(
            "/v1/sepsis/score",
            {"encounter": about, "events": everything, "prediction_time": when.isoformat(), "explain": False},
        )
        for when in offline["prediction_time"].iloc[every_sixth]
    ]
    features = online.logged([p["prediction_id"] for p in told if p["status"] == "scored"])
    assert_equal(told, features, offline.iloc[every_sixth], matrix[every_sixth])


def _stored(online: Online, patients: Patients, offline: pd.DataFrame, matrix: Any) -> None:
    """News comes when it becomes available, hour by hour, all patients together."""
    told: dict[tuple[str, pd.Timestamp], dict[str, Any]] = {}
    before = pd.Timestamp("1900-01-01", tz="UTC")
    for now in sorted(offline["prediction_time"].unique()):
        here = offline.loc[offline["prediction_time"] == now, "encounter_id"]
        known = patients.encounters[patients.encounters["icu_admission_time"] <= now]
        fresh = patients.events[
            (patients.events["available_time"] > before) & (patients.events["available_time"] <= now)
        ]
        fresh = fresh[fresh["encounter_id"].isin(known["encounter_id"])]
        late = patients.events[patients.events["available_time"] <= now]
        fresh = pd.concat(
            [
                fresh,
                late[
                    late["encounter_id"].isin(known.loc[known["icu_admission_time"] > before, "encounter_id"])
                ],
            ]
        )
        body = {
            "encounters": as_json(known[list(FACTS)]),
            "events": as_json(sent_events(fresh)),
            "as_of": now.isoformat(),
        }
        for said in online.post("/v1/events", body)["predictions"]:
            told[said["encounter_id"], now] = said
        for who in set(here) - {w for w, when in told if when == now}:
            answer = online._client.get("/v1/risk", params={"encounter": who}, headers=online._headers).json()
            told[who, now] = answer
        before = now
    inorder = [told[w, t] for w, t in zip(offline["encounter_id"], offline["prediction_time"], strict=True)]
    features = online.logged([p["prediction_id"] for p in inorder if p["status"] == "scored"])
    assert_equal(inorder, features, offline, matrix)
    assert [p["page"] for p in inorder] == offline["page"].tolist()


@pytest.mark.data
@pytest.mark.parametrize("hospital", ["A", "B"])
def test_real_patients_score_the_same_from_a_file_and_over_http(
    data_dir: Path, hospital: str, online: Online, released: Bundle, tmp_path: Path
):
    """A septic stay, a plain one, and (hospital A) one whose clerk wrote the hospital admission after the ICU's."""
    table = pd.read_parquet(data_dir / "physionet2019" / f"set{hospital}.parquet")
    stays = table.groupby("patient_id").agg(
        septic=("SepsisLabel", "max"), hours=("ICULOS", "max"), odd=("HospAdmTime", "first")
    )
    stays = stays[stays["hours"].between(20, 45)]
    chosen = [stays.index[stays["septic"] == 1][3], stays.index[stays["septic"] == 0][11]]
    chosen += stays.index[stays["odd"] > 3][:1].tolist()
    file = tmp_path / "stays.parquet"
    table[table["patient_id"].isin(chosen)].to_parquet(file)
    chunk = next(iter(physionet2019.read(file)))
    assert len(chunk.encounters) == (3 if hospital == "A" else 2)
    both_roads(online, released, Patients(chunk.encounters, chunk.events, chunk.rows))


def hours_in_icu(hospital: Hospital, encounters: pd.DataFrame, last: datetime) -> pd.DataFrame:
    rows = []
    for stay in encounters.itertuples():
        first = stay.icu_admission_time.ceil("h")
        end = hospital.truth.set_index("encounter_id").loc[stay.encounter_id, "end_time"]
        stop = min(pd.Timestamp(last), end if pd.notna(end) else pd.Timestamp(last))
        rows += [(stay.encounter_id, t) for t in pd.date_range(first, stop, freq="h") if t <= stop]
    table = pd.DataFrame(rows, columns=["encounter_id", "prediction_time"])
    return table.assign(prediction_time=table["prediction_time"].astype("datetime64[us, UTC]"))


def test_simulated_patients_score_the_same_from_a_table_and_over_http(online: Online, released: Bundle):
    """Delays, corrections and unusable values included."""
    start = datetime(2026, 1, 5, tzinfo=UTC)
    hospital = simulate(3, 11, start)
    icu = hospital.encounters[hospital.encounters["encounter_class"] == "icu"]
    chosen = icu.sort_values("icu_admission_time").iloc[4:7].reset_index(drop=True)
    events = hospital.events[hospital.events["encounter_id"].isin(chosen["encounter_id"])]
    assert (events["status"] != "final").any()
    assert (events["available_time"] > events["time"]).any()
    rows = hours_in_icu(hospital, chosen, start + timedelta(days=3))
    events = pd.concat([events, encounter_events(chosen)], ignore_index=True)
    both_roads(online, released, Patients(chosen, events, rows))
