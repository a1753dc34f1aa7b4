"""Window features: a cohort, one patient, and cleaning, against pandas and against copying the same bytes.

The cohort is synthetic: gamma stays of mean 72 h, eight vitals an hour, twenty laboratory values each eight hours, a
twentieth missing; 2,000 patients make about 1.4 million events, 144,000 patient-hours and 392 columns. Times are CPU
seconds, one thread, imports and compilation outside. pandas does the same columns for a tenth of the patients, with
grouped rolling windows, and its answers are compared.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from features.clean import clean  # noqa: E402
from features.clock import HOUR_US, UTC_US  # noqa: E402
from features.concepts import loader  # noqa: E402
from features.windows import Window, build, flatten  # noqa: E402

VITALS = ("heart_rate", "spo2", "temperature", "sbp", "map", "dbp", "respiratory_rate", "etco2")
LABS = tuple(c.name for c in loader.concepts().values() if c.kind == "lab")[:20]
CONCEPTS = (*VITALS, *LABS)
STATISTICS = ("count", "min", "max", "mean")
LOOKBACKS = (1, 6, 24)
WINDOWS = [
    Window.parse(concept, text)
    for concept in CONCEPTS
    for text in ("last", "hours_since_last", *(f"{s}_{h}h" for h in LOOKBACKS for s in STATISTICS))
]
EPOCH_US = 1_767_225_600_000_000


def instants(micros: np.ndarray) -> pd.Series:
    return pd.Series(pd.to_datetime(micros, unit="us", utc=True)).astype(UTC_US)


def cohort(patients: int, seed: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Raw events (codes, no concepts yet) and hourly prediction times."""
    rng = np.random.default_rng(seed)
    hours = np.maximum(rng.gamma(2.0, 36.0, patients).astype(int), 2)
    parts = []
    for k, concept in enumerate(CONCEPTS):
        every = 1 if concept in VITALS else 8
        n = hours // every
        patient = np.repeat(np.arange(patients), n)
        at = (np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)) * every + rng.uniform(0, every, n.sum())
        keep = rng.random(n.sum()) > 0.05
        low, high = loader.concepts()[concept].low, loader.concepts()[concept].high
        value = np.round(low + (0.2 + 0.3 * rng.random(n.sum())) * (high - low), 2)
        parts.append((patient[keep], np.full(keep.sum(), k), at[keep], value[keep]))
    patient, code, at, value = (np.concatenate(p) for p in zip(*parts, strict=True))
    when = instants(EPOCH_US + (at * HOUR_US).astype(np.int64))
    names = pd.Index([f"patient {p}" for p in range(patients)])
    people = pd.Categorical.from_codes(patient, categories=names)
    nothing = pd.Categorical.from_codes(np.full(patient.size, -1), categories=["none"])
    events = pd.DataFrame(
        {
            "subject_id": people,
            "encounter_id": people,
            "time": when,
            "available_time": when,
            "code": pd.Categorical.from_codes(code, categories=[f"WARDCAST//{c}" for c in CONCEPTS]),
            "concept": nothing,
            "numeric_value": value,
            "text_value": nothing,
            "unit": nothing,
            "status": pd.Categorical.from_codes(np.zeros(patient.size, int), categories=["final"]),
            "source_id": nothing,
        }
    )
    hour = np.arange(hours.sum()) - np.repeat(np.cumsum(hours) - hours, hours) + 1
    rows = pd.DataFrame(
        {
            "encounter_id": pd.Categorical.from_codes(
                np.repeat(np.arange(patients), hours), categories=names
            ),
            "prediction_time": instants(EPOCH_US + hour * HOUR_US),
        }
    )
    return events, rows


def by_pandas(events: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """The same columns the plain way: lay the grid in among the events and roll over each patient."""
    grid = rows.assign(time=rows["prediction_time"], row=np.arange(len(rows)), value=np.nan)
    grid["seen"] = pd.Series(pd.NaT, index=grid.index, dtype=UTC_US)
    out = np.empty((len(rows), len(WINDOWS)), np.float32)
    column = 0
    for concept in CONCEPTS:
        mine = events[events["concept"] == concept]
        mine = mine[["encounter_id", "time"]].assign(value=mine["numeric_value"], seen=mine["time"], row=-1)
        both = pd.concat([mine, grid[["encounter_id", "time", "value", "seen", "row"]]])
        both = both.sort_values(["encounter_id", "time", "row"], kind="stable").set_index("time")
        asked = (both["row"] >= 0).to_numpy()
        place = both["row"].to_numpy()[asked]
        each = both.groupby("encounter_id", observed=True)
        latest = each[["value", "seen"]].ffill()[asked]
        out[place, column] = latest["value"]
        out[place, column + 1] = (latest.index - pd.DatetimeIndex(latest["seen"])) / pd.Timedelta("1h")
        column += 2
        for h in LOOKBACKS:
            rolled = (
                each["value"].rolling(f"{h}h", closed="right", min_periods=1).agg(list(STATISTICS))[asked]
            )
            out[place, column : column + 4] = rolled.to_numpy()
            out[place, column] = np.nan_to_num(out[place, column])
            column += 4
    return out


def cpu(work: Callable[[], Any], repeat: int = 3) -> float:
    """CPU seconds of the quickest of some runs."""
    times = []
    for _ in range(repeat):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times)


def bench() -> Iterator[dict[str, Any]]:
    events, rows = cohort(2_000)
    usable, account = clean(events)
    assert not account.reasons
    build(usable.iloc[:100], rows.iloc[:10], WINDOWS)
    some = rows["encounter_id"].cat.codes < 200
    few = usable[usable["encounter_id"].cat.codes < 200]
    np.testing.assert_allclose(
        by_pandas(few, rows[some]), build(few, rows[some], WINDOWS), rtol=1e-5, atol=1e-3
    )

    plain = cpu(lambda: by_pandas(few, rows[some]), 1) / int(some.sum()) * 1e6
    whole = cpu(lambda: build(usable, rows, WINDOWS)) / len(rows) * 1e6
    yield {
        "name": "cohort_per_million_patient_hours",
        "value": whole,
        "unit": "CPU s, 392 columns; the plain way is pandas rolling",
        "reference": plain,
        "goal": "<= 6.67",
    }

    flat = flatten(usable, CONCEPTS)
    matrix = np.empty((len(rows), len(WINDOWS)), np.float32)
    kernel = cpu(lambda: build(flat, rows, WINDOWS, out=matrix), 5)
    source = np.ones(matrix.nbytes + 24 * len(flat), np.uint8)
    target = np.empty_like(source)
    target[:] = source
    copied = cpu(lambda: np.copyto(target, source), 5)
    yield {
        "name": "kernel_share_of_memcpy",
        "value": copied / kernel,
        "unit": "of the speed of copying input and output once",
        "goal": ">= 0.25",
    }
    yield {
        "name": "kernel_patient_hours_per_s",
        "value": len(rows) / kernel,
        "unit": "patient-hours / CPU s, two clocks",
        "goal": ">= 300000",
    }

    cleaned = cpu(lambda: clean(events))
    yield {
        "name": "clean_ten_million_events",
        "value": cleaned / len(events) * 1e7,
        "unit": "CPU s",
        "goal": "<= 10",
    }
    yield from one_patient(usable, rows)
    yield from cold_start()


def one_patient(events: pd.DataFrame, rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Features of "now" after about 48 hours, from a plain table of strings, as a service has it."""
    sizes = events["encounter_id"].value_counts()
    who = sizes.index[(sizes - 477).abs().argmin()]
    text = ["encounter_id", "concept", "status", "source_id"]
    mine = events[events["encounter_id"] == who].reset_index(drop=True).astype(dict.fromkeys(text, "str"))
    now = rows[rows["encounter_id"] == who].iloc[-1:].reset_index(drop=True).astype({"encounter_id": "str"})
    flat = flatten(mine, CONCEPTS)
    for name, source, goal in (("one_patient", mine, "<= 1"), ("one_patient_flat", flat, "<= 0.5")):
        times = []
        for _ in range(500):
            begun = time.perf_counter()
            build(source, now, WINDOWS)
            times.append((time.perf_counter() - begun) * 1e3)
        yield {"name": f"{name}_p50", "value": float(np.median(times)), "unit": "ms", "goal": goal}
        yield {"name": f"{name}_p99", "value": float(np.quantile(times, 0.99)), "unit": "ms"}


def cold_start() -> Iterator[dict[str, Any]]:
    """A new process up to its first features, the compiled code cached; the plain way only imports pandas."""
    first = (
        "import time, sys; sys.path.insert(0, '.')\n"
        "from features.windows import Window, build\n"
        "from features.events import empty_events\n"
        "import pandas as pd\n"
        "rows = pd.DataFrame({'encounter_id': ['a'], 'prediction_time': pd.to_datetime(['2026-01-01T00:00Z'])})\n"
        "build(empty_events(), rows.astype({'prediction_time': 'datetime64[us, UTC]'}),"
        " [Window.parse('map', 'last')])\n"
        "print(time.process_time())"
    )
    only = "import pandas, time; print(time.process_time())"
    used = [float(_run(first)) for _ in range(3)], [float(_run(only)) for _ in range(3)]
    yield {
        "name": "cold_start",
        "value": min(used[0]),
        "unit": "CPU s; the plain way is importing pandas",
        "reference": min(used[1]),
        "goal": "<= 2",
    }


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()
