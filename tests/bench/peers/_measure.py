"""Run one engine in a process of its own and print what it cost as one JSON line.

A script beside this file defines ``prepare(workload) -> work`` and ends in ``main(prepare)``. ``prepare`` imports the
library, reads the prediction times and may lay out the input in the library's own format; none of that is timed.
``work()`` is timed: from Parquet on disk to the dense matrix in memory, or the nearest that the library offers.

``python by_polars.py FOLDER --cores 1 --repeat 3 --save matrix.npy``; the folder holds ``events.parquet``,
``rows.parquet`` and ``workload.json`` (see ``_workload.py``). No third-party import in here: every peer has an
environment of its own, with its own pins.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THREADS = (
    "POLARS_MAX_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "ARROW_NUM_THREADS",
)


@dataclass(frozen=True)
class Workload:
    """Where the input lies, and which columns are asked for, in the order of the matrix."""

    folder: Path
    cores: int
    concepts: tuple[str, ...]
    lookbacks: tuple[int, ...]
    statistics: tuple[str, ...]

    @property
    def events(self) -> Path:
        """Events by subject, time and value: ``subject_id`` (integer), ``encounter_id``, ``concept``, two clocks, …"""
        return self.folder / "events.parquet"

    @property
    def rows(self) -> Path:
        """Hourly prediction times by subject and time: ``subject_id``, ``encounter_id``, ``prediction_time``."""
        return self.folder / "rows.parquet"

    @classmethod
    def read(cls, folder: Path, cores: int = 1) -> Workload:
        said = json.loads((folder / "workload.json").read_text())
        return cls(folder, cores, *(tuple(said[k]) for k in ("concepts", "lookbacks", "statistics")))


Work = Callable[[], Any]
Prepare = Callable[[Workload], Work]


def main(prepare: Prepare) -> None:
    """Prepare, warm up on the small workload beside the real one if there is one, then time the work."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--warm", type=Path, help="a small workload to run first: thread pools, compilers, caches"
    )
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args()
    bind(asked.cores)
    if asked.warm:
        prepare(Workload.read(asked.warm, asked.cores))()
    work = prepare(Workload.read(asked.folder, asked.cores))
    runs = [timed(work) for _ in range(asked.repeat)]
    if asked.save:
        import numpy as np

        np.save(asked.save, np.asarray(work(), dtype=np.float32))
    first = {"added_mb": runs[0]["added_mb"]}
    print(json.dumps({key: min(run[key] for run in runs) for key in ("cpu_s", "wall_s")} | first))


def bind(cores: int) -> None:
    """Stay on so many cores, and tell every library's thread pool before it is imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    for name in THREADS:
        os.environ[name] = str(cores)


def timed(work: Work) -> dict[str, float]:
    """CPU seconds of this process and its children, wall seconds, and the peak of resident memory over the start."""
    before = _memory("VmRSS")
    _forget_peak()
    cpu, wall = _cpu(), time.perf_counter()
    result = work()
    spent = {"cpu_s": _cpu() - cpu, "wall_s": time.perf_counter() - wall}
    del result
    return spent | {"added_mb": max(_memory("VmHWM") - before, 0.0)}


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _memory(field: str) -> float:
    """Megabytes by /proc; nan where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1e3 * 1.024


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print(
            "The peak of memory cannot be reset here; added_mb counts what came before too.", file=sys.stderr
        )
