"""What a window means, spelled out: one list a window, exact fractions, no library. For a few patients only.

Both clocks: an event counts when ``t - lookback < time <= t`` and ``available_time <= t``. Of events at one time the
one known last is the latest, then the one of the higher value. NaN is no value.
"""

from __future__ import annotations

import math
from fractions import Fraction

from _measure import Work, Workload, main

HOUR_US = 3_600_000_000


def statistic(name: str, found: list[tuple[int, float]]) -> float:
    """One statistic of (time, value) pairs."""
    if name == "count":
        return float(len(found))
    if not found:
        return math.nan
    values = [Fraction(v) for _, v in found]
    total = sum(values)
    if name in ("min", "max"):
        return float(min(values) if name == "min" else max(values))
    if name in ("mean", "sum"):
        return float(total / len(found) if name == "mean" else total)
    hours = [Fraction(t, HOUR_US) for t, _ in found]
    centre = sum(hours) / len(hours)
    spread = sum((h - centre) ** 2 for h in hours)
    rise = sum((h - centre) * v for h, v in zip(hours, values, strict=True))
    return float(rise / spread) if spread else math.nan


def prepare(workload: Workload) -> Work:
    import numpy as np
    import pyarrow.parquet as pq

    def table(path: object, *columns: str) -> list[tuple]:
        read = pq.read_table(path, columns=list(columns))
        read = [c.cast("int64") if str(c.type).startswith("timestamp") else c for c in read.columns]
        return list(zip(*(c.to_pylist() for c in read), strict=True))

    def line(told: list[tuple[int, int, float]], t: int) -> list[float]:
        seen = sorted((time, available, v) for time, available, v in told if max(time, available) <= t)
        cells = [seen[-1][2], (t - seen[-1][0]) / HOUR_US] if seen else [math.nan, math.nan]
        for h in workload.lookbacks:
            found = [(time, v) for time, _, v in seen if t - time < h * HOUR_US]
            cells += [statistic(s, found) for s in workload.statistics]
        return cells

    def work() -> object:
        told: dict[tuple[int, str], list[tuple[int, int, float]]] = {}
        for subject, concept, *fact in table(
            workload.events, "subject_id", "concept", "time", "available_time", "numeric_value"
        ):
            if fact[2] is not None and not math.isnan(fact[2]):
                told.setdefault((subject, concept), []).append(tuple(fact))
        matrix = [
            [cell for c in workload.concepts for cell in line(told.get((subject, c), []), t)]
            for subject, t in table(workload.rows, "subject_id", "prediction_time")
        ]
        return np.array(matrix, np.float32)

    return work


if __name__ == "__main__":
    main(prepare)
