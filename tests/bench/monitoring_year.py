"""A year of a thousand beds in the prediction log, monitored: time and memory of ``wardcast monitor`` over all of it.

The log is made up: stays of 36 hours, a prediction an hour, features drawn from the released bundle's profile, and
outcomes as often as they were predicted, so that performance is judged too. It is written as a service would write it,
in order of time and into an encrypted file. Without
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
import pandas as pd

HERE = Path(__file__).resolve()
YEAR = 9_000_000
LENGTH_H = 36
END = datetime(2026, 11, 1, tzinfo=UTC)
AT_ONCE = 20_000
POSITIVE_H = 10
"""Hours of a septic stay that the label counts as positive."""
LABELS = "outcomes.csv"
COLUMNS = (
    "(prediction_id, road, encounter_id, subject_id, encounter_class, unit, model_id, prediction_time, created_time,"
    " status, raw, probability, alert, page, features)"
)


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
    """Write the log in the order in which a service would, and what became of the stays."""
    from models.bundle import Bundle
    from models.profile import sample
    from serving.settings import Settings
    from serving.store.store import Store

    settings = Settings.from_env()
    bundle = Bundle.load(settings.sepsis_model)
    rng = np.random.default_rng(0)
    drawn = pd.DataFrame(
        sample(dict(bundle.reference), 2000, rng), columns=list(bundle.reference["features"])
    )
    pool = [r.tobytes() for r in drawn[list(bundle.feature_names)].to_numpy("<f4")]
    risk = rng.choice(np.asarray(bundle.reference["probability"]["quantiles"]), rows // LENGTH_H)
    begins = np.sort(rng.integers(0, 364 * 24 - LENGTH_H, len(risk)))
    _write_outcomes(settings.var / LABELS, begins, risk, rng)
    store = Store.open(settings.store_url, settings.store_key or None, settings.site)
    with store.write() as connection:
        store_file: Any = connection.connection.dbapi_connection
    for setting in ("journal_mode=off", "synchronous=off"):  # nobody misses this file after a power cut
        store_file.execute(f"pragma {setting}")
    stay, hour = _hours(begins)
    for first in range(0, len(stay), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        made = _rows(first, stay[part], hour[part], risk[stay[part]], bundle.model_id, pool)
        store_file.execute("begin")
        store_file.executemany(
            f"insert into predictions {COLUMNS} values ({','.join('?' * 15)})", made
        )  # our own names
        store_file.execute("commit")
        if first // AT_ONCE % 20 == 0:
            print(f"{first + len(made):,} of {len(stay):,} predictions written", file=sys.stderr, flush=True)
    store.close()


def _hours(begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stay and hour of every prediction, in order of time."""
    hour = (begins[:, None] + np.arange(LENGTH_H)).ravel().astype(np.int32)
    order = np.argsort(hour, kind="stable")
    return order // LENGTH_H, hour[order]


def _rows(
    first: int, stay: np.ndarray, hour: np.ndarray, risk: np.ndarray, model_id: str, pool: list[bytes]
) -> list[tuple[Any, ...]]:
    start = int((END - timedelta(days=365)).timestamp()) * 1_000_000
    when = start + hour.astype(np.int64) * 3_600_000_000
    each = zip(stay.tolist(), when.tolist(), risk.tolist(), strict=True)
    return [
        (f"p{first + i:08d}", "store", f"e{s:07d}", f"e{s:07d}", "icu", f"W{s % 40:02d}", model_id, t, t, "scored",
         0.0, p, False, False, pool[(first + i) % len(pool)])
        for i, (s, t, p) in enumerate(each)
    ]  # fmt: skip


def _write_outcomes(path: Path, begins: np.ndarray, risk: np.ndarray, rng: np.random.Generator) -> None:
    """Onsets, of as many stays as make the scores calibrated by the hour, for ``--labels``."""
    positive = rng.random(len(risk)) < np.minimum(1, risk * LENGTH_H / POSITIVE_H)
    start = END - timedelta(days=365)
    onset = [
        start + timedelta(hours=int(b) + LENGTH_H // 2) if p else None
        for b, p in zip(begins, positive, strict=True)
    ]
    table = pd.DataFrame({"encounter_id": [f"e{s:07d}" for s in range(len(risk))], "onset_time": onset})
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)


def watch() -> int:
    """Monitor the year; peak memory, KiB."""
    from serving.monitoring.run import monitor
    from serving.settings import Settings

    settings = Settings.from_env()
    monitor(settings, since=END - timedelta(days=366), until=END, labels=settings.var / LABELS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[2]))
    if sys.argv[1] == "fill":
        fill(int(sys.argv[2]))
    else:
        print(watch())
