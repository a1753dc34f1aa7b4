"""Disk full, read-only, locked, a clock that is off, a process that is killed: refused clearly, and nobody mends it.

The disks are real ones, small file systems in memory; where none can be mounted the tests of them skip.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from features.errors import ConfigError
from serving.feeds.applier import Applier
from serving.ingest import acks
from serving.ingest.mllp import Listener
from serving.store import engine, facts
from serving.store.messages import MessageLog, applied_up_to

END = b"\x1c\r"
NINE = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)


def result(control: str, minute: int = 0, size: int = 0, at: datetime = NINE) -> bytes:
    """A heart rate in the stay of one patient."""
    when = (at + timedelta(minutes=minute)).strftime("%Y%m%d%H%M%S+0000")
    begun = (at - timedelta(hours=1)).strftime("%Y%m%d%H%M%S+0000")
    lines = [
        f"MSH|^~\\&|LAB|NORTH|||{when}||ORU^R01|{control}|P|2.5", "PID|1||P1^^^NORTH^MR||||19550214|F",
        "PV1|1|I|ICU" + "|" * 16 + "V1" + "|" * 25 + begun, f"OBR|1||O{control}|VS^^L|||{when}",
        "OBX|1|NM|8867-4^^LN||96|/min|||||F", "NTE|1||" + "x" * size,
    ]  # fmt: skip
    return "\r".join(lines).encode() + b"\r"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def full(disk: Path, desk: Desk) -> Iterator[None]:
    """Fill a file system to the last byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


@contextmanager
def read_only(disk: Path, desk: Desk) -> Iterator[None]:
    """Let nobody write to a file system, as the kernel does when a disk begins to fail."""
    for database in (desk.log._database, desk.state.store._database):
        database.close()  # none can be made read-only while a file of it is open for writing
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


class Desk:
    """A service, a listener and a reader of its log, all on one disk."""

    def __init__(self, service: Any) -> None:
        self.service, self.state = service, service.state
        self.log = MessageLog.open(service.settings.store_url, service.settings.store_key)
        self.applier = Applier(self.state, self.log)

    def __enter__(self) -> Desk:
        self._loop = asyncio.new_event_loop()
        self._listener = Listener(replace(self.service.settings, mllp_port=0), self.log)
        port = self._loop.run_until_complete(self._listener.start())
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        asyncio.run_coroutine_threadsafe(self._listener.stop(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self.log.close()

    def send(self, body: bytes) -> str:
        """The answer to a message, on one connection throughout: MSA-1."""
        self._socket.sendall(b"\x0b" + body + END)
        held = b""
        while not held.endswith(END):
            held += self._socket.recv(65_536)
        return held.split(b"\rMSA|")[1][:2].decode()

    def events(self) -> int:
        with self.state.store.read() as connection:
            return facts.last_seq(connection)


def news(k: int) -> dict[str, Any]:
    at = (NINE + timedelta(minutes=k)).isoformat()
    event = {"encounter_id": "E1", "concept": "heart_rate", "time": at, "value": 90}
    return {"encounters": [{"encounter_id": "E1"}], "events": [event], "as_of": at}


@pytest.mark.parametrize("mishap", [full, read_only])
def test_a_disk_that_takes_nothing_is_said_to_and_all_goes_on_once_it_does(
    mishap: Callable[[Path, Desk], Any], disk: Path, make_service: Callable[..., Any], caplog: Any
):
    url = f"sqlite:///{disk / 'wardcast.db'}"
    with Desk(make_service(STORE_URL=url)) as desk:
        assert desk.send(result("1")) == "AA"
        assert desk.service.post("/v1/events", news(0)).status_code == 200
        with mishap(disk, desk):
            assert [desk.send(result(str(n), n, 3_000_000)) for n in (2, 3)] == ["AE", "AE"]
            with pytest.raises(OperationalError):
                desk.applier.drain()
            answers = [desk.service.post("/v1/events", news(k)) for k in range(1, 4)]
            refused = {(a.status_code, a.json()["error"]["code"]) for a in answers}
            assert refused == {(503, "store_unavailable")}
            assert desk.service.client.get("/healthz").status_code == 200
        # Nobody restarts anything.
        assert [desk.send(result(str(n), n, 3_000_000)) for n in (2, 3)] == ["AA", "AA"]
        assert desk.service.post("/v1/events", news(1)).status_code == 200
        assert desk.service.client.get("/readyz").json()["status"] == "ready"
        desk.applier.drain()
        told = desk.state.store.events(["V1"], NINE + timedelta(days=1))
        assert (told["concept"] == "heart_rate").sum() == 3
    assert "96" not in "".join(r.getMessage() for r in caplog.records if r.name == "wardcast")


def test_a_store_that_cannot_be_written_keeps_the_service_from_starting_and_says_so(
    disk: Path, make_service: Callable[..., Any]
):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(ConfigError, match=r"cannot be written .*full or read-only"):
        make_service(STORE_URL=f"sqlite:///{disk / 'wardcast.db'}")


def test_a_locked_store_keeps_no_sender_waiting_and_is_read_once_it_is_free(
    make_service: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine, "BUSY_MS", 200)
    service, other = make_service(), make_service()
    with Desk(service) as desk:
        with other.state.store.write():  # another program writes, and does not end
            begun = time.monotonic()
            assert desk.send(result("1")) == "AA"
            assert time.monotonic() - begun < 5
            with pytest.raises(OperationalError):
                desk.applier.drain()
            answer = service.post("/v1/events", news(0))
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        desk.applier.drain()
        assert desk.events() > 0
        assert service.post("/v1/events", news(0)).status_code == 200


@pytest.mark.parametrize("hours_off", [1, -1])
def test_a_sender_whose_clock_is_an_hour_off(make_service: Callable[..., Any], hours_off: int):
    """What claims to lie ahead is refused by name and taken once it can be; what lies behind is old news, no more."""
    now = datetime.now(UTC).replace(microsecond=0)
    at = now + timedelta(hours=hours_off)
    with Desk(make_service(CLOCK="wall")) as desk:
        assert desk.send(result("1", at=at)) == "AA"
        desk.applier.drain()
        with desk.state.store.read() as connection:
            rows = connection.exec_driver_sql("select problems from message_outcomes").all()
        told = desk.state.store.events(["V1"], now + timedelta(days=1))
        assert ("future_time" in rows[0][0]) == (hours_off > 0)
        assert (told["concept"] == "heart_rate").sum() == (0 if hours_off > 0 else 1)
        event = {"encounter_id": "E1", "concept": "heart_rate", "time": at.isoformat(), "value": 90}
        said = desk.service.post("/v1/events", {"encounters": [{"encounter_id": "E1"}], "events": [event]})
        verdict = said.json()["events"][0]
        assert verdict["verdict"] == ("rejected" if hours_off > 0 else "accepted")
        assert verdict.get("reason") == ("future_time" if hours_off > 0 else None)


@pytest.mark.slow
def test_kill_9_of_the_reader_loses_and_doubles_nothing(make_service: Callable[..., Any], repo: Path):
    service, n = make_service(), 2000
    log = MessageLog.open(service.settings.store_url, service.settings.store_key)
    bodies = [result(str(k), k % 600) for k in range(n)]
    log.add([acks.read(body).arrival for body in bodies], int(NINE.timestamp() * 1e6))
    command, given = (
        [sys.executable, "-m", "serving.feeds.station"],
        os.environ | service.settings.environment(),
    )
    process = subprocess.Popen(command, cwd=repo, env=given, stderr=subprocess.DEVNULL)

    def place() -> int:
        with service.state.store.read() as connection:
            return applied_up_to(connection)

    deadline = time.monotonic() + 60
    while place() == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < place() < n  # it was at it
    Applier(service.state, log).drain()
    with service.state.store.read() as connection:
        count = connection.exec_driver_sql
        rows = count("select count(*), count(distinct message_seq) from message_outcomes").one()
        rates = count("select count(*) from events where concept = 'heart_rate'").scalar()
    assert (tuple(rows), rates) == ((n, n), n)
    assert service.state.store.verify_audit() is None
    log.close()
