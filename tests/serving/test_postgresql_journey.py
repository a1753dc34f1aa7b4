"""The service as a hospital runs it on PostgreSQL: two workers, and one patient from the first event to the audit."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from serving.store.store import Store
from serving.store.tables import audit

READY_WITHIN_S = 150


@dataclass
class Hospital:
    """A running service, its client, and what its processes read."""

    client: httpx.Client
    env: dict[str, str]
    output: Path

    @property
    def store(self) -> Store:
        """The service's store, opened beside it."""
        return Store.open(self.env["WARDCAST_STORE_URL"], None)


@pytest.fixture
def hospital(
    postgres_server: Any, new_database: Callable[..., str], bundle: Any, repo: Path, tmp_path: Path
) -> Iterator[Hospital]:
    """``wardcast serve`` with two workers on a PostgreSQL database of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {
        "VAR": tmp_path, "PORT": port, "WORKERS": 2, "SEPSIS_MODEL": bundle.folder, "CLOCK": "replay",
        "STORE_URL": postgres_server.url(new_database()),
    }  # fmt: skip
    env = os.environ | {f"WARDCAST_{name}": str(value) for name, value in given.items()}
    output = tmp_path / "output"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "serve"], cwd=repo, env=env, stdout=sink, stderr=subprocess.STDOUT
        )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
    until = time.monotonic() + READY_WITHIN_S
    try:
        while not answers(client):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < until, output.read_text()
            time.sleep(0.2)
        client.headers["Authorization"] = f"Bearer {(tmp_path / 'token').read_text().strip()}"
        yield Hospital(client, env, output)
    finally:
        client.close()
        process.terminate()
        process.wait(30)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_a_patient_from_the_first_event_to_the_audit(hospital: Hospital, patient: Any, repo: Path):
    client, who = hospital.client, patient("Marple-4711").rounds(range(8), heart_rate=125, lactate=6.0)
    for hour in range(8):
        told = client.post("/v1/events", json=who.news(hour, hour - 1)).raise_for_status().json()
    score = told["predictions"][0]
    assert score["status"] == "scored"

    risk = client.get("/v1/risk", params={"encounter": "Marple-4711", "explain": "true"}).json()
    assert (risk["prediction_id"], risk["probability"]) == (score["prediction_id"], score["probability"])
    assert "Marple-4711" in client.get("/worklist").text

    (alert,) = client.get("/v1/alerts", params={"encounter": "Marple-4711"}).json()["alerts"]
    seen = client.post("/v1/alerts/acknowledge", json={"alert_id": alert["alert_id"], "outcome": "acted"})
    assert seen.json()["acknowledged_by"] == "local"

    store = hospital.store
    with store.read() as connection:
        deeds = list(connection.execute(select(audit.c.action).order_by(audit.c.seq)).scalars())
    assert deeds == ["receive"] * 8 + ["read risk", "read worklist", "read alerts", "acknowledge acted"]
    assert store.verify_audit() is None
    made = store.predictions().set_index("prediction_id")
    store.close()

    command = [sys.executable, "-m", "cli", "explain", score["prediction_id"]]
    again = subprocess.run(command, cwd=repo, env=hospital.env, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert told["identical"]
    assert told["probability"] == made.loc[score["prediction_id"], "probability"] == risk["probability"]
    assert told["reasons"][: len(risk["explanation"]["reasons"])] == risk["explanation"]["reasons"]
    assert not (Path(hospital.env["WARDCAST_VAR"]) / "key").exists()

    crowd(hospital, patient)
    said = hospital.output.read_text()
    assert "Marple" not in said
    assert "p@ss" not in said
    assert "Traceback" not in said


def crowd(hospital: Hospital, patient: Any) -> None:
    """Many senders at once, some of them saying the same: whichever worker answers, each fact is there once."""
    people = [patient(f"stay-{k}").rounds(range(6), lactate=2.0) for k in range(6)]
    with ThreadPoolExecutor(8) as pool:
        posted = pool.map(lambda who: hospital.client.post("/v1/events", json=who.news(7)), people * 2)
        counts = [answer.raise_for_status().json()["counts"] for answer in posted]
    sent = sum(len(who.events) for who in people)
    assert (sum(c["accepted"] for c in counts), sum(c["duplicate"] for c in counts)) == (sent, sent)
    store = hospital.store
    assert len(store.events([who.encounter_id for who in people], people[0].at(7))) == sent
    assert store.verify_audit() is None
    store.close()
