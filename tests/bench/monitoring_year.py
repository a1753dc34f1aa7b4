"""A year of a thousand beds in the prediction log, monitored: time and memory of ``wardcast monitor`` over all of it.

The log is made up: stays of 36 hours, a prediction an hour, features drawn from the released bundle's profile. Without
``--all`` it is a twentieth of the year's nine million predictions over as many days in a hospital of a twentieth of the
beds; the unit of each line says so. The run is a process of its own, whose peak memory the system reports.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
YEAR = 9_000_000
LENGTH_H = 36
END = datetime(2026, 11, 1, tzinfo=UTC)
AT_ONCE = 18_000


def bench() -> Iterator[dict[str, Any]]:
    """Seconds, processor seconds and peak memory of one run."""
    rows = YEAR if os.environ.get("WARDCAST_BENCH") == "all" else YEAR // 20
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"WARDCAST_VAR": folder, "WARDCAST_STORE_URL": "", "OMP_NUM_THREADS": "2"}
        begun = time.monotonic()
        _run("fill", str(rows), env)
        filled = time.monotonic() - begun
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.monotonic()
        told = _run("monitor", str(rows), env)
        took = time.monotonic() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    about = f"{rows:,} predictions"
    used = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    yield {"name": "fill", "value": round(filled, 1), "unit": f"s to write {about}"}
    yield {"name": "monitor", "value": round(took, 1), "unit": f"s, {about}", "goal": "<= 600"}
    yield {"name": "monitor_cpu", "value": round(used, 1), "unit": f"CPU s, {about}"}
    yield {
        "name": "peak_memory",
        "value": round(int(told) / 1024**2, 3),
        "unit": f"GiB, {about}",
        "goal": "<= 2",
    }


def _run(what: str, rows: str, env: dict[str, str]) -> str:
    command = [sys.executable, str(HERE), what, rows]
    ended = subprocess.run(
        command, env=env, cwd=HERE.parents[2], check=True, stdout=subprocess.PIPE, text=True
    )
    return ended.stdout.strip().splitlines()[-1] if ended.stdout.strip() else ""


def fill(rows: int) -> None:
    """Write the log."""
    from sqlalchemy import insert

    from models.bundle import Bundle
    from models.profile import sample
    from serving.clock import to_us
    from serving.settings import Settings
    from serving.store.store import Store
    from serving.store.tables import predictions

    settings = Settings.from_env()
    bundle = Bundle.load(settings.sepsis_model)
    rng = np.random.default_rng(0)
    pool = [r.tobytes() for r in sample(dict(bundle.reference), 2000, rng).astype("<f4")]
    usual = bundle.reference["probability"]["quantiles"]
    start = to_us(END - timedelta(days=365))
    store = Store.open(settings.store_url, settings.store_key or None, settings.site)
    stays = rows // LENGTH_H
    begins = np.sort(rng.integers(0, 364 * 24 - LENGTH_H, stays))
    for first in range(0, rows, AT_ONCE):
        k = np.arange(first, min(first + AT_ONCE, rows))
        stay = k // LENGTH_H % stays
        hour = begins[stay] + k % LENGTH_H
        own = rng.integers(0, len(usual), AT_ONCE)
        with store.write() as connection:
            connection.execute(
                insert(predictions),
                [
                    {
                        "prediction_id": f"p{i}", "road": "store", "encounter_id": f"e{s}", "subject_id": f"e{s}",
                        "encounter_class": "icu", "unit": f"W{s % 40:02d}", "model_id": bundle.model_id,
                        "prediction_time": start + int(h) * 3_600_000_000, "created_time": start,
                        "status": "scored", "reason": None, "raw": 0.0,
                        "probability": float(usual[own[s % AT_ONCE]]), "alert": False, "page": False,
                        "features": pool[i % len(pool)], "reasons": None, "inputs": None, "events_seq": 0,
                        "encounter_seq": 0,
                    }
                    for i, s, h in zip(k.tolist(), stay.tolist(), hour.tolist(), strict=True)
                ],
            )  # fmt: skip
    store.close()


def watch() -> int:
    """Monitor the year; peak memory, KiB."""
    from serving.monitoring.run import monitor
    from serving.settings import Settings

    monitor(Settings.from_env(), since=END - timedelta(days=366), until=END)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[2]))
    if sys.argv[1] == "fill":
        fill(int(sys.argv[2]))
    else:
        print(watch())
