"""How long one score takes, end to end: HTTP through BentoML, features, model, reasons, log and audit on disk.

A patient with 48 hours of hourly vital signs and six-hourly laboratory (392 events), the released model, loopback.
First one client that waits; then requests on the clock, and as many as there is room for, from a light client in a
process of its own (``_load.py``) whose CPU is told, since it shares the cores. Scores a second are of the service as it
comes, with one worker, and with one a core. Last, where the CPU of one request goes.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))  # last: a benchmark here may be called what a room is called
import _load  # noqa: E402  # beside this file, which is no package

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2026, 3, 1, tzinfo=UTC)
VITALS = {
    "heart_rate": 96,
    "spo2": 95,
    "temperature": 38,
    "sbp": 112,
    "map": 74,
    "dbp": 58,
    "respiratory_rate": 21,
}
LABS = {
    "lactate": 2.6,
    "wbc": 14,
    "creatinine": 1.4,
    "platelets": 160,
    "bun": 31,
    "bilirubin_total": 1.1,
    "glucose": 150,
}
CALLS = 300
WARM_UP = 3
SCORE, BULK = "/v1/sepsis/score", "/v1/sepsis/score/bulk"
RATE = 40
LOAD_S = float(os.environ.get("WARDCAST_BENCH_LOAD_S", "10"))
PATIENTS = {"json": 100, "arrow": 500}
"""In one bulk call."""


def bench() -> Iterator[dict[str, Any]]:
    """Latencies in milliseconds (wall, and the service's own CPU), start-up in seconds, ingest in events a second."""
    with tempfile.TemporaryDirectory() as var, _service(Path(var)) as (client, startup, process):
        yield {"name": "service_startup", "value": startup, "unit": "s", "goal": "<= 30"}
        body = _patient("bench")
        for name, explain, goals in (
            ("score", "auto", ("<= 60", "<= 300")),
            ("score_explained", True, (None, None)),
        ):
            content = json.dumps(body | {"explain": explain}).encode()
            spent = _cpu_seconds(process)
            times = _times(CALLS, lambda sent=content: client.post("/v1/sepsis/score", content=sent))
            for quantile, goal in zip((50, 99), goals, strict=True):
                value = round(float(np.percentile(times, quantile)), 2)
                yield {"name": f"{name}_48h_p{quantile}", "value": value, "unit": "ms", "goal": goal}
            spent = (_cpu_seconds(process) - spent) / (CALLS + WARM_UP) * 1e3
            yield {"name": f"{name}_48h_cpu", "value": round(spent, 2), "unit": "ms"}
        yield from _stored(client)
        yield from _on_the_clock(client, Path(var))
        yield from _full(client, process, Path(var), "")
    with tempfile.TemporaryDirectory() as var, _service(Path(var), workers=2) as (client, _, process):
        yield from _full(client, process, Path(var), "_two_workers")
    yield from _shares()


def _plan(client: httpx.Client, folder: Path, path: str, body: bytes, **how: Any) -> dict[str, Any]:
    """What a light client saw of a request made over and over, after a short round to warm up."""
    (folder / "body").write_bytes(body)
    plan = {"port": client.base_url.port, "token": client.headers["Authorization"], "path": path}
    whole = plan | {"body": str(folder / "body"), "seconds": LOAD_S} | how
    _load.ask(_load.Plan(**whole | {"seconds": min(2.0, LOAD_S)}), folder)
    return _load.ask(_load.Plan(**whole), folder)


def _on_the_clock(client: httpx.Client, folder: Path) -> Iterator[dict[str, Any]]:
    """Explained scores at a rate, whether or not those before were answered."""
    body = json.dumps(_patient("bench") | {"explain": True}).encode()
    said = _plan(client, folder, SCORE, body, rate=RATE, connections=16, seconds=2 * LOAD_S)
    for quantile, goal in ((50, "<= 20"), (99, "<= 60")):
        value = round(float(np.percentile(said["times"], quantile)) * 1e3, 2)
        yield {"name": f"explained_at_{RATE}_per_s_p{quantile}", "value": value, "unit": "ms", "goal": goal}


def _full(
    client: httpx.Client, process: subprocess.Popen[bytes], folder: Path, suffix: str
) -> Iterator[dict[str, Any]]:
    """As many scores a second as there is room for: one by one without reasons, and in bulk."""
    patients = [_patient(f"bench-{k}") | {"explain": False} for k in range(max(PATIENTS.values()))]
    rounds = (
        ("score", SCORE, json.dumps(patients[0]).encode(), "application/json", 1, 8, 200),
        ("bulk_json", BULK, json.dumps({"patients": patients[: PATIENTS["json"]]}).encode(), "application/json",
         PATIENTS["json"], 2, 200),
        ("bulk_arrow", BULK, _stream(patients), "application/vnd.apache.arrow.stream", PATIENTS["arrow"], 2, 2000),
    )  # fmt: skip
    for name, path, body, kind, each, connections, goal in rounds:
        spent = _cpu_seconds(process)
        said = _plan(client, folder, path, body, kind=kind, connections=connections)
        spent = (_cpu_seconds(process) - spent) / (len(said["times"]) * each)
        rate = said["rate"] * each
        yield {"name": f"{name}_rate{suffix}", "value": round(rate, 1), "unit": "1/s", "goal": f">= {goal}"}
        yield {"name": f"{name}_cpu{suffix}", "value": round(spent * 1e3, 3), "unit": "ms"}
        asking = said["cpu_ms"] / each
        yield {"name": f"{name}_cpu_of_the_client{suffix}", "value": round(asking, 3), "unit": "ms"}


def _stream(patients: Sequence[dict[str, Any]]) -> bytes:
    """The same patients as an Arrow stream."""
    instant = pa.timestamp("us", "UTC")
    event = pa.struct([("concept", pa.string()), ("time", instant), ("value", pa.float64())])
    times = [name for name in patients[0]["encounter"] if name.endswith("_time")]
    kinds = dict.fromkeys(times, instant) | {"age_years": pa.float64()}
    columns: dict[str, Any] = {
        name: pa.array(
            [_cell(p["encounter"][name], name in times) for p in patients], kinds.get(name, pa.string())
        )
        for name in patients[0]["encounter"]
    }
    columns["prediction_time"] = pa.array([_cell(p["prediction_time"], True) for p in patients], instant)
    columns["explain"] = pa.array([p["explain"] for p in patients])
    columns["events"] = pa.array(
        [[e | {"time": _cell(e["time"], True)} for e in p["events"]] for p in patients], pa.list_(event)
    )
    table, sink = pa.table(columns), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _cell(value: Any, is_time: bool) -> Any:
    return datetime.fromisoformat(value) if is_time else value


def _shares() -> Iterator[dict[str, Any]]:
    """CPU of each part of one request, in this process; what HTTP and BentoML add is the service's CPU less these."""
    from serving.answers import parse
    from serving.api import stateless_answer
    from serving.schemas import ScoreRequest
    from serving.scoring import pack, record
    from serving.settings import Settings
    from serving.state import Wardcast, wall_us
    from serving.stateless import understand
    from serving.store import audit, log

    with tempfile.TemporaryDirectory() as var:
        state = Wardcast(Settings.from_env({"WARDCAST_VAR": var}))
        scorer, now = state.scorer, wall_us()
        bundle = scorer.bundle
        body = json.dumps(_patient("bench") | {"explain": True}).encode()
        asked = parse(ScoreRequest, body)
        told = understand(asked, bundle.spec.features, now, now)
        who, when = [told.encounter], [told.when]
        flat = scorer.lay_out(who, told.readings, when)
        matrix = bundle.spec.features.at(flat, np.zeros(1, np.int64), np.array(when))
        score = scorer.judge(who, flat, when, [True])[0]
        made = iter(range(1_000_000))

        def keep() -> None:
            row = record(score, f"{next(made)}", road="stateless", model_id=bundle.model_id, created=now,
                         inputs=pack(told.encounter, flat, 0))  # fmt: skip
            act = audit.Act("bench", "integrator", "score", "done", ["bench"], "")
            state.store.together(lambda c: (log.add_predictions(c, [row]), audit.record(c, act, now)))

        parts: dict[str, Callable[[], object]] = {
            "reading": lambda: understand(parse(ScoreRequest, body), bundle.spec.features, now, now),
            "features": lambda: bundle.spec.features.at(
                scorer.lay_out(who, told.readings, when), np.zeros(1, np.int64), np.array(when)
            ),
            "lightgbm": lambda: bundle.raw(matrix),
            "shap": lambda: bundle.contributions(matrix),
            "judging": lambda: scorer.judge(who, flat, when, [False]),
            "judging_with_reasons": lambda: scorer.judge(who, flat, when, [True]),
            "answer": lambda: json.dumps(stateless_answer(asked, told, score, "id", scorer, now)),
            "store": keep,
        }
        for name, part in parts.items():
            yield {"name": f"part_{name}_cpu", "value": round(_cpu_ms(part), 3), "unit": "ms"}
        state.store.close()


def _cpu_ms(part: Callable[[], object], times: int = 200) -> float:
    for _ in range(WARM_UP):
        part()
    began = time.process_time()
    for _ in range(times):
        part()
    return (time.process_time() - began) / times * 1e3


def _cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """What the service's processes have computed so far; says the truth on a busy machine too."""
    import psutil

    main = psutil.Process(process.pid)
    times = [p.cpu_times() for p in (main, *main.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


def _stored(client: httpx.Client) -> Iterator[dict[str, Any]]:
    """Sixteen patients' 48 hours arrive hour by hour; then each is asked about."""
    bodies = [_patient(f"stay-{k}") for k in range(16)]
    began, sent = time.perf_counter(), 0
    for hour in range(48):
        now = (START + timedelta(hours=hour)).isoformat()
        events = [
            e | {"encounter_id": b["encounter"]["encounter_id"]}
            for b in bodies
            for e in b["events"]
            if e["time"] == now
        ]
        news = {"encounters": [b["encounter"] for b in bodies], "events": events, "as_of": now}
        assert client.post("/v1/events", content=json.dumps(news)).json()["scored"] == len(bodies)
        sent += len(events)
    rate = sent / (time.perf_counter() - began)
    yield {"name": "events_stored_and_scored", "value": round(rate), "unit": "events/s"}
    times = _times(100, lambda: client.get("/v1/risk", params={"encounter": "stay-3"}))
    yield {"name": "risk_p50", "value": round(float(np.percentile(times, 50)), 2), "unit": "ms"}
    times = _times(20, lambda: client.get("/worklist"))
    yield {
        "name": "worklist_16_patients_p50",
        "value": round(float(np.percentile(times, 50)), 2),
        "unit": "ms",
    }


def _times(n: int, call: Callable[[], httpx.Response]) -> list[float]:
    """Milliseconds of each call, after a few to warm up."""
    times = []
    for k in range(n + WARM_UP):
        began = time.perf_counter()
        call().raise_for_status()
        if k >= WARM_UP:
            times.append((time.perf_counter() - began) * 1e3)
    return times


def _patient(name: str) -> dict[str, Any]:
    rng = np.random.default_rng(len(name))
    events = []
    for hour in range(48):
        usual = VITALS | (LABS if hour % 6 == 0 else {})
        time_ = (START + timedelta(hours=hour)).isoformat()
        events += [
            {"concept": c, "time": time_, "value": round(float(v * rng.normal(1, 0.03)), 2)}
            for c, v in usual.items()
        ]
    encounter = {
        "encounter_id": name, "encounter_class": "icu", "age_years": 67, "sex": "male", "icu_type": "medical",
        "icu_admission_time": START.isoformat(), "hospital_admission_time": (START - timedelta(hours=7)).isoformat(),
    }  # fmt: skip
    return {
        "encounter": encounter,
        "events": events,
        "prediction_time": (START + timedelta(hours=47)).isoformat(),
    }


@contextmanager
def _service(var: Path, workers: int = 1) -> Iterator[tuple[httpx.Client, float, subprocess.Popen[bytes]]]:
    """``wardcast serve`` with the released model, and how long it took to answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {
        "WARDCAST_VAR": str(var),
        "WARDCAST_PORT": str(port),
        "WARDCAST_CLOCK": "replay",
        "WARDCAST_LOG_LEVEL": "error",
        "WARDCAST_WORKERS": str(workers),
    }
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "serve"], cwd=ROOT, env=os.environ | given, stdout=subprocess.DEVNULL
    )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
    try:
        while not _ready(client):
            if process.poll() is not None:
                raise RuntimeError("The service did not start; run `wardcast serve` to see why.")
            time.sleep(0.05)
        startup = round(time.perf_counter() - began, 2)
        token = (var / "token").read_text().strip()
        client.headers.update({"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
        yield client, startup, process
    finally:
        client.close()
        process.terminate()
        process.wait(30)


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
