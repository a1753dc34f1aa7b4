"""Wardcast itself, under the same clock as its peers."""

from __future__ import annotations

import sys
from pathlib import Path

from _measure import Work, Workload, main

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))


def ours_from_parquet(workload: Workload, rows: object, windows: list[object]) -> object:
    """Parquet on disk to the matrix in memory, by the quickest road there is."""
    from features.files import build_file

    return build_file(workload.events, rows, windows, threads=workload.cores)  # type: ignore[arg-type]


def prepare(workload: Workload) -> Work:
    import pandas as pd

    from features.windows import Window

    rows = pd.read_parquet(workload.rows, columns=["encounter_id", "prediction_time"])
    asked = ["last", "hours_since_last"]
    asked += [f"{s}_{h}h" for h in workload.lookbacks for s in workload.statistics]
    windows = [Window.parse(concept, text) for concept in workload.concepts for text in asked]
    return lambda: ours_from_parquet(workload, rows, windows)


if __name__ == "__main__":
    main(prepare)
