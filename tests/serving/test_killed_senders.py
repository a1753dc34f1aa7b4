"""Processes that tell others are killed at the worst moments: nothing is lost, and what is sent twice says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from serving import messenger, webhooks
from serving.interop import push

PATIENCE_S = 100.0
NURSERY = """
import importlib, json, os, signal, sys
import serving.interop.push, serving.messenger
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    module, env = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ.update(env)
        importlib.import_module(module).main()
        os._exit(0)
    print(child, flush=True)
"""
"""Starts the processes as ``python -m MODULE`` would, in copies of a process that has imported what takes seconds."""


class Nursery:
    """Where processes come from, and where they are killed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def start(self, module: str, env: dict[str, str]) -> int:
        """Start one; its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([module, env]).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    @staticmethod
    def kill(pid: int) -> None:
        """``kill -9``, and wait until it is gone."""
        try:
            while True:
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """No more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    one = Nursery()
    yield one
    one.close()


class Other:
    """A server that kills whoever speaks to it, before it has kept what was said or after, and then answers no more."""

    def __init__(self, nursery: Nursery, answer: Callable[[str, Any], Any]) -> None:
        self._nursery = nursery
        self.kept: list[tuple[dict[str, str], Any]] = []
        self.plan: list[str] = []
        self.speaker: int | None = None
        other = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/token":
                    self.say({"access_token": "t", "expires_in": 300, "token_type": "bearer"})
                    return
                what = other.plan.pop(0) if other.plan else "take"
                body = json.loads(raw)
                if what != "kill first":
                    other.kept.append((dict(self.headers), body))
                if what != "take":
                    assert other.speaker is not None
                    nursery.kill(other.speaker)
                    other.speaker = None
                self.say(answer(self.path, body))

            def do_GET(self) -> None:
                self.say({"token_endpoint": f"{other.url}/token"})

            def say(self, body: Any) -> None:
                content = json.dumps(body).encode()
                try:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    pass  # nobody is there any more

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def hear(self, module: str, env: dict[str, str], over: Callable[[], bool]) -> int:
        """Let a process speak, started again where it was killed, until all is over; how often it was started."""
        started, until = 0, time.monotonic() + PATIENCE_S
        while not over():
            assert time.monotonic() < until, "not told in time"
            if self.speaker is None:
                self.speaker = self._nursery.start(module, env)
                started += 1
            time.sleep(0.05)
        return started


@pytest.fixture
def other(nursery: Nursery) -> Iterator[Callable[..., Other]]:
    made: list[Other] = []

    def make(answer: Callable[[str, Any], Any] = lambda path, body: {}) -> Other:
        made.append(Other(nursery, answer))
        return made[-1]

    yield make
    for one in made:
        if one.speaker is not None:
            nursery.kill(one.speaker)
        one.server.shutdown()
        one.server.server_close()


def taken(path: str, body: Any) -> Any:
    """The answer to a batch."""
    entries = [{"response": {"status": "200 OK"}} for _ in body["entry"]]
    return {"resourceType": "Bundle", "type": "batch-response", "entry": entries}


@pytest.mark.both_stores
def test_a_push_killed_before_and_after_the_server_kept_a_batch_loses_nothing_and_doubles_nothing(
    make_service: Any, other: Any, patient: Any, tmp_path: Path
):
    hospital = other(taken)
    private = ec.generate_private_key(ec.SECP384R1())
    key = tmp_path / "ward.jwk.json"
    key.write_text(json.dumps(json.loads(ECAlgorithm.to_jwk(private)) | {"kid": "ward-1"}))
    key.chmod(0o600)
    (tmp_path / "push.toml").write_text(
        f'fhir = "{hospital.url}"\nclient_id = "wardcast"\nkey = "ward.jwk.json"\n', encoding="utf-8"
    )
    service = make_service(PUSH_FILE=str(tmp_path / "push.toml"))
    client = push.BackendClient(*push.read_target(tmp_path / "push.toml"))
    push.Pusher(service.state, client).start()
    client.close()
    who = patient().rounds(range(8), heart_rate=140.0, lactate=9.0)
    for hour in range(8):
        service.send(who.news(hour, hour - 1))
    hospital.plan = ["kill first", "kill after", "kill after"]

    def over() -> bool:
        with service.state.store.read() as connection:
            told = connection.exec_driver_sql("select max(predictions_seq) from pushes").scalar()
            made = connection.exec_driver_sql("select max(seq) from predictions").scalar()
            flags = connection.exec_driver_sql("select count(*) from push_flags").scalar()
        return bool(told == made and flags)

    assert hospital.hear(push.__name__, service.settings.environment(), over) >= 3
    sent = [entry["request"]["url"] for _, bundle in hospital.kept for entry in bundle["entry"]]
    assert len(sent) > len(set(sent)), "after a kill it is sent again, under its own id"
    have = {e["request"]["url"]: e["resource"] for _, bundle in hospital.kept for e in bundle["entry"]}
    pulled = service.get("/fhir/RiskAssessment", encounter=who.encounter_id).json()["entry"]
    ours = {f"RiskAssessment/{entry['resource']['id']}" for entry in pulled}
    assert {url for url in have if url.startswith("RiskAssessment/")} == ours, (
        "none is lost, none is there twice"
    )


@pytest.mark.both_stores
def test_a_messenger_killed_before_and_after_its_receiver_took_a_message_loses_none(
    make_service: Any, other: Any, tmp_path: Path
):
    pager = other()
    (tmp_path / "pager.secret").write_text("5" * 40)
    (tmp_path / "pager.secret").chmod(0o600)
    (tmp_path / "alerts.toml").write_text(
        f'[[webhook]]\nname = "pager"\nurl = "{pager.url}/hook"\nsecret = "pager.secret"\n'
    )
    service = make_service(ALERTS_FILE=str(tmp_path / "alerts.toml"), CLOCK="wall")
    with service.state.store.write() as connection:
        for n in range(4):
            receivers = service.state.alerting.receivers
            webhooks.put(connection, receivers, "alert.raised", {"alert_id": str(n)}, service.state.now_us())
    pager.plan = ["kill first", "take", "kill after"]

    def over() -> bool:
        with service.state.store.write() as connection:
            if pager.speaker is None:
                # The lease of who died, a minute, is over at once.
                connection.exec_driver_sql("update webhooks set due_time = 0 where state = 'waiting'")
            waiting = "select count(*) from webhooks where state = 'waiting'"
            return connection.exec_driver_sql(waiting).scalar() == 0

    assert pager.hear(messenger.__name__, service.settings.environment(), over) == 3
    told = [(headers["Wardcast-Delivery"], body["alert_id"]) for headers, body in pager.kept]
    assert {alert for _, alert in told} == {"0", "1", "2", "3"}, "none is lost"
    assert len(told) == 5, "the one that was taken and not noted came again"
    assert len(set(told)) == 4, "and says by its delivery that it is the same"
