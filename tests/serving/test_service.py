"""The service as it really runs: BentoML's processes, one port, a clean end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from features.errors import ConfigError, SpecError, WardcastError

READY_WITHIN_S = 150


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    client: httpx.Client
    output: Path


@pytest.fixture(scope="module")
def running(bundle: Any, repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """``wardcast serve``, started once for this module."""
    var, port = tmp_path_factory.mktemp("serve"), free_port()
    given = {"VAR": var, "SEPSIS_MODEL": bundle.folder, "PORT": port, "CLOCK": "replay"}
    env = os.environ | {f"WARDCAST_{k}": str(v) for k, v in given.items()}
    with (var / "output").open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "serve"], cwd=repo, env=env, stdout=sink, stderr=subprocess.STDOUT
        )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
    until = time.monotonic() + READY_WITHIN_S
    try:
        while not _answers(client):
            assert process.poll() is None, (var / "output").read_text()
            assert time.monotonic() < until, (var / "output").read_text()
            time.sleep(0.2)
        client.headers["Authorization"] = f"Bearer {(var / 'token').read_text().strip()}"
        yield Running(process, client, var / "output")
    finally:
        client.close()
        process.terminate()
        process.wait(30)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_every_path_is_ours(running: Running):
    """BentoML's own index loads a remote script, and its schema asks for no token; neither may be reached."""
    for path in (
        "/",
        "/metrics",
        "/schema.json",
        "/docs.json",
        "/static_content/index.html",
        "/openapi.json",
        "/nothing",
    ):
        answer = httpx.get(f"{running.client.base_url}{path}")
        assert answer.status_code == 401
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert running.client.get("/schema.json").json()["error"]["code"] == "not_found"
    assert running.client.get("/docs.json").status_code == 404
    assert running.client.get("/", follow_redirects=True).text.count("Sepsis worklist") == 1
    for path in ("/healthz", "/livez", "/readyz"):
        assert running.client.get(path).json()["status"] in ("alive", "ready")


@pytest.mark.slow
def test_one_port_listens_and_nothing_else(running: Running):
    """A process manager's control socket on TCP would take orders from every account of the machine."""
    ours = psutil.Process(running.process.pid)
    listening = {
        connection.laddr.port
        for process in [ours, *ours.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {running.client.base_url.port}


@pytest.mark.slow
def test_a_patient_is_scored_stored_and_shown_through_bentoml(running: Running, patient: Any):
    who = patient("Marple-4711").rounds(range(10), heart_rate=110, lactate=4.0)
    single = running.client.post("/v1/sepsis/score", json=who.score_request(9)).json()
    stored = running.client.post("/v1/events", json=who.news(9)).json()
    asked = running.client.get("/v1/risk", params={"encounter": "Marple-4711"}).json()
    assert single["probability"] == stored["predictions"][0]["probability"] == asked["probability"]
    assert "Marple-4711" in running.client.get("/worklist").text


@pytest.mark.slow
def test_our_metrics_are_counted_in_the_worker(running: Running):
    running.client.get("/v1/model")
    text = running.client.get("/metrics").text
    assert re.search(r'wardcast_requests_total\{method="GET",route="/v1/model",status="200"\} [1-9]', text)
    assert "wardcast_ready 1.0" in text
    assert "bentoml" not in text


@pytest.mark.slow
def test_it_stops_cleanly_and_has_logged_no_identity(running: Running):
    """Last in this module: it ends the service."""
    running.client.get("/v1/risk", params={"encounter": "Marple-4711"})
    running.client.close()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0
    said = running.output.read_text()
    assert "route=/v1/risk status=200" in said
    assert "Marple" not in said
    assert "Traceback" not in said
    assert re.search(r"Sign in: http://127\.0\.0\.1:\d+/sign-in#token=", said)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's own imports
def test_the_preflight_finds_what_would_fail_later(make_service: Any, tmp_path: Path):
    from serving.service import preflight

    settings = make_service().settings
    with pytest.raises(SpecError, match="No model bundle"):
        preflight(settings.with_sepsis_model(tmp_path / "none"))
    with pytest.raises(SpecError, match="No model bundle"):
        preflight(settings.with_admissions_model(tmp_path / "none"))
    from dataclasses import replace

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: .*WARDCAST_PORT"):
            preflight(replace(settings, port=port))
    preflight(replace(settings, port=free_port()))
    (tmp_path / "cds.toml").write_text('[[client]]\nname = "ehr"\niss = "https://ehr/"\njwks = "keys.json"\n')
    with pytest.raises(ConfigError, match=r"client ehr: .*keys\.json.*JWKS"):
        preflight(replace(settings, port=free_port(), cds_file=tmp_path / "cds.toml"))
    for setting in ("cds_file", "site_map", "push_file"):
        with pytest.raises(WardcastError, match=f"WARDCAST_{setting.upper()}"):
            preflight(replace(settings, port=free_port(), **{setting: tmp_path / "none.toml"}))
    with pytest.raises(ConfigError, match="WARDCAST_MAIL_TO"):
        preflight(replace(settings, smtp="smtps://mail.example.org", mail_from="beds@example.org"))
    with pytest.raises(ConfigError, match="Restore the key"):
        preflight(replace(settings, port=free_port(), store_key="1e" * 32))
