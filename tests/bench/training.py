"""What training and scoring the sepsis model on all of PhysioNet 2019 cost, and how large the result is.

Needs ``WARDCAST_DATA``. Trains for real: some minutes.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def timed(*command: str, var: str) -> float:
    """Wall seconds of one ``wardcast`` command with its own ``var/``."""
    began = time.perf_counter()
    environment = {**os.environ, "WARDCAST_VAR": var, "WARDCAST_QUIET": "1"}
    subprocess.run(
        [sys.executable, "cli.py", *command], cwd=ROOT, check=True, env=environment, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - began


def explain_ms(folder: Path, rows: int = 200) -> float:
    """Median milliseconds of one exact explanation, one row, one thread."""
    import numpy as np

    from models.bundle import Bundle
    from models.profile import sample

    bundle = Bundle.load(folder)
    features = sample(bundle.reference, rows, np.random.default_rng(1))
    order = [list(bundle.reference["features"]).index(name) for name in bundle.feature_names]
    times = []
    for i in range(rows):
        began = time.perf_counter()
        bundle.contributions(features[i : i + 1, order])
        times.append(time.perf_counter() - began)
    return 1000 * sorted(times)[rows // 2]


def bench() -> Iterator[dict[str, Any]]:
    data = Path(os.environ["WARDCAST_DATA"]) / "physionet2019"
    with tempfile.TemporaryDirectory() as var:
        bundle = Path(var) / "bundle"
        train = (
            "train",
            "sepsis",
            "--source",
            "physionet2019",
            "--input",
            str(data),
            "--output",
            str(bundle),
        )
        yield {"name": "train_sepsis", "value": timed(*train, var=var), "unit": "s", "goal": "<= 600"}
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        yield {"name": "train_sepsis_peak", "value": peak, "unit": "GiB", "goal": "<= 6"}
        size = sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file()) / 1e6
        yield {"name": "bundle_size", "value": size, "unit": "MB", "goal": "<= 5"}
        yield {"name": "explain_one", "value": explain_ms(bundle), "unit": "ms", "goal": "<= 8"}
        score = (
            "score",
            "sepsis",
            "--input",
            str(data),
            "--output",
            f"{var}/scores.parquet",
            "--model",
            str(bundle),
        )
        yield {
            "name": "score_1_240_000_hours",
            "value": timed(*score, var=var),
            "unit": "s",
            "goal": "<= 120",
        }
