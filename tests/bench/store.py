"""What keeping things costs: the same hours of the same patients on an SQLite file and on PostgreSQL.

The application runs in this process, one client, the released model; both stores wait for the disk. ``…_share`` is the
part of the time that was spent in the database's driver, on statements and commits. The reference of a latency on
PostgreSQL is that on the SQLite file.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
from sqlalchemy import Engine, event
from starlette.testclient import TestClient

from serving.app import create_app
from serving.settings import Settings

HERE = Path(__file__).resolve().parent
PATIENTS, HOURS, CALLS = 16, 48, 200
INGEST = "events_stored_and_scored"


def bench() -> Iterator[dict[str, Any]]:
    """Ingest in events a second, latencies in milliseconds, and the store's share of each, SQLite first."""
    server = _load(HERE.parent / "postgresql.py")
    with tempfile.TemporaryDirectory() as folder:
        file = _measure(Path(folder), f"sqlite:///{folder}/wardcast.db")
        for name, value in file.items():
            yield {"name": f"{name}_sqlite", "value": value, "unit": _unit(name)}
    if server.missing():
        for name in file:
            unknown = {"value": None, "unit": _unit(name), "reason": server.missing()}
            yield {"name": f"{name}_postgresql"} | unknown
        return
    with tempfile.TemporaryDirectory() as folder, server.running(durable=True) as here:
        here.create("bench")
        for name, value in _measure(Path(folder), here.url("bench")).items():
            line = {"name": f"{name}_postgresql", "value": value, "unit": _unit(name)}
            yield line | ({"reference": file[name]} if line["unit"] == "ms" else {})


def _unit(name: str) -> str:
    if name.endswith("_share"):
        return "of wall time"
    return "events/s" if name == INGEST else "ms"


def _measure(var: Path, url: str) -> dict[str, float]:
    given = {"VAR": str(var), "STORE_URL": url, "CLOCK": "replay", "LOG_LEVEL": "error"}
    settings = Settings.from_env({f"WARDCAST_{name}": value for name, value in given.items()})
    with _watch() as spent:
        app = create_app(settings)
        app.state.wardcast.scorer.warm()
        client = TestClient(app, headers={"Authorization": f"Bearer {settings.token}"})
        figures = _ingest(client, spent)
        stay = _load(HERE / "score.py")._patient("bench")
        score = itertools.repeat(lambda: client.post("/v1/sepsis/score", json=stay))
        figures |= _latency("score_48h", score, spent)
        moves = (_move_on(client, k) for k in itertools.count())
        figures |= _latency("risk_new_score", moves, spent)
        client.close()
        app.state.wardcast.store.close()
    logging.getLogger("wardcast").handlers.clear()
    return figures


def _ingest(client: TestClient, spent: list[float]) -> dict[str, float]:
    """Sixteen patients' 48 hours arrive hour by hour; the first hours are left out of the figures."""
    source = _load(HERE / "score.py")
    bodies = [source._patient(f"stay-{k}") for k in range(PATIENTS)]
    sent, began, before = 0, 0.0, 0.0
    for hour in range(HOURS):
        if hour == 2:
            sent, began, before = 0, time.perf_counter(), sum(spent)
        now = (source.START + timedelta(hours=hour)).isoformat()
        told = [
            e | {"encounter_id": b["encounter"]["encounter_id"]}
            for b in bodies
            for e in b["events"]
            if e["time"] == now
        ]
        news = {"encounters": [b["encounter"] for b in bodies], "events": told, "as_of": now}
        assert client.post("/v1/events", json=news).json()["scored"] == PATIENTS
        sent += len(told)
    took = time.perf_counter() - began
    return {INGEST: round(sent / took), f"{INGEST}_store_share": round((sum(spent) - before) / took, 3)}


def _move_on(client: TestClient, step: int) -> Callable[[], httpx.Response]:
    """Six minutes later, when no score is given again: asking writes one."""
    source = _load(HERE / "score.py")
    now = source.START + timedelta(hours=HOURS, minutes=6 * step)
    client.post("/v1/events", json={"as_of": now.isoformat()}).raise_for_status()
    return lambda: client.get("/v1/risk", params={"encounter": "stay-3"})


def _latency(
    name: str, calls: Iterator[Callable[[], httpx.Response]], spent: list[float]
) -> dict[str, float]:
    times, stored = [], 0.0
    for call in itertools.islice(calls, CALLS):
        before, began = sum(spent), time.perf_counter()
        call().raise_for_status()
        times.append(time.perf_counter() - began)
        stored += sum(spent) - before
    p50, p99 = (round(float(q) * 1e3, 2) for q in np.percentile(times, (50, 99)))
    return {f"{name}_p50": p50, f"{name}_p99": p99, f"{name}_store_share": round(stored / sum(times), 3)}


@contextmanager
def _watch() -> Iterator[list[float]]:
    """Seconds spent in the driver, as they come."""
    spent: list[float] = []
    started: list[float] = []

    def begin(*_: object) -> None:
        started.append(time.perf_counter())

    def end(*_: object) -> None:
        spent.append(time.perf_counter() - started.pop())

    def commit(connection: Any) -> None:
        began, dialect = time.perf_counter(), connection.dialect
        dialect.do_commit(connection.connection)  # SQLAlchemy's own, right after, finds nothing left to do
        spent.append(time.perf_counter() - began)

    listeners = (("before_cursor_execute", begin), ("after_cursor_execute", end), ("commit", commit))
    for name, listener in listeners:
        event.listen(Engine, name, listener)
    try:
        yield spent
    finally:
        for name, listener in listeners:
            event.remove(Engine, name, listener)


def _load(path: Path) -> ModuleType:
    """A module beside this one, made once."""
    name = f"of_bench_store_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
