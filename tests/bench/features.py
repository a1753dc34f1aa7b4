"""Window features beside every engine that could make them: a cohort, one patient, cleaning, start-up.

The work is described in ``peers/_workload.py``: 28 concepts x (latest value, hours since it, and count, minimum,
maximum and mean over 1, 6 and 24 hours) = 392 columns at every hour of every stay, from Parquet on disk to a dense
float32 matrix in memory. Every engine runs in a process of its own, one after another, bound to one core or two; the
figure is CPU seconds (user and system, all threads) of the quickest run, imports, compilation and a first small run
outside. Engines that do the same work must give the same cells, and are checked first; the others say in their line
what they do instead, and are scaled by patient-hour.

Peers come from a package registry into environments of their own (``peers/_environments.py``), never into ours. One
that cannot be had makes a line without a value, and the reason. ``--all`` adds 20,000 patients and meds-tab.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).resolve().parent / "peers"
sys.path[:0] = [str(ROOT), str(PEERS)]

import _workload as workload  # noqa: E402
from _agreement import differing, statistics  # noqa: E402
from _environments import NoPeer, ensure  # noqa: E402

from features.clean import clean  # noqa: E402
from features.clock import HOUR_US, from_micros  # noqa: E402
from features.concepts import loader  # noqa: E402
from features.windows import build, flatten, flatten_one  # noqa: E402

Figure = dict[str, Any]
PER_MILLION = "CPU s a million patient-hours, one core"
SAME = ("polars", "polars_line", "polars_guide", "duckdb", "pandas")
CLOSEST = {
    "timeseriesflattener": (
        200,
        "no time since the latest value; clock stretched 24 times, as it names whole days",
    ),
    "clifpy": (200, "wide table given; windows of 6 and 24 h tumble, not hourly; no count, no time since"),
    "tsfresh": (20, "hourly table given; 24 h only, count, min, max and mean, no latest value"),
    "meds_tab": (
        20,
        "count, sum, min, max, of which 0.2.0 fills only the count; its start and its files included",
    ),
}
SLOW = ("meds_tab",)
TURNS = 3
"""So often one core and two are timed in turn: a host that shares its memory with others slows down two more."""
TIMEOUT_S = 1800


def everything() -> bool:
    """Whether the slow parts were asked for."""
    return os.environ.get("WARDCAST_BENCH") == "all"


@dataclass(frozen=True)
class Bench:
    """The folder of one run: workloads in it are written when they are first asked for."""

    home: Path

    def cohort(self, patients: int, extended: bool = False) -> Path:
        """The folder of a cohort of so many patients."""
        folder = self.home / f"{patients}{'-extended' * extended}"
        if not folder.exists():
            chosen = workload.EXTENDED if extended else workload.STATISTICS
            workload.write(folder, *workload.cohort(patients, seed=1 if patients > 20 else 2), chosen)
        return folder

    @cached_property
    def edges(self) -> Path:
        """The adversarial set with one clock."""
        return workload.write(self.home / "edges", *workload.adversarial())

    @cached_property
    def late_edges(self) -> Path:
        """The adversarial set with two clocks and all statistics; only brute force can follow."""
        return workload.write(self.home / "late-edges", *workload.adversarial(late=True), workload.EXTENDED)

    def run(
        self,
        engine: str,
        folder: Path,
        cores: int = 1,
        repeat: int = 1,
        save: bool = False,
        warm: bool = True,
    ) -> dict[str, Any]:
        """What an engine costs on a workload: ``cpu_s``, ``wall_s``, ``added_mb``, and ``matrix`` when saved.

        Raises
        ------
        NoPeer
            It cannot be installed, or fails; with its last words.
        """
        small = self.cohort(20, folder.name.endswith("extended"))
        kept = self.home / f"{engine}-{folder.name}.npy"
        command = [str(_python(engine)), str(PEERS / f"by_{engine}.py"), str(folder)]
        command += ["--cores", str(cores), "--repeat", str(repeat)]
        command += ["--warm", str(small)] if warm else []
        command += ["--save", str(kept)] if save else []
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise NoPeer(f"{engine} took more than {TIMEOUT_S} s") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NoPeer(f"{engine} failed: {last[:300]}")
        cost: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return cost | ({"matrix": np.load(kept)} if save else {})


def _python(engine: str) -> Path:
    if engine in ("wardcast", "brute_force"):
        return Path(sys.executable)
    return ensure("engines" if engine in SAME else engine)


def told(folder: Path) -> dict[str, Any]:
    """What ``workload.json`` says: concepts, patient_hours, …"""
    said: dict[str, Any] = json.loads((folder / "workload.json").read_text())
    return said


def absent(name: str, unit: str, why: NoPeer) -> Figure:
    """The line of what could not be measured."""
    return {"name": name, "value": None, "unit": unit, "reason": str(why)}


def bench() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="wardcast-bench-") as home:
        b = Bench(Path(home))
        yield from agreement(b)
        yield from against_peers(b, 2_000)
        yield from extended(b)
        yield from two_cores(b, 2_000, ("wardcast", "polars", "polars_line"))
        yield from ten_times_more(b)
        yield from closest_peers(b)
        if everything():
            yield from against_peers(b, 20_000)
    yield from kernel()
    yield from cleaning()
    yield from one_patient()
    yield from cold_start()
    yield from physionet()


# ---- the same cells --------------------------------------------------------------------------------------------------


def agreement(b: Bench) -> Iterator[Figure]:
    """Cells that another engine sees otherwise: ties, edges, zeros, negatives, NaN, before and after the stay."""
    for engine in (*SAME, "brute_force"):
        yield _agreement(
            b, engine, b.edges, "ties, edges, empty windows, single events, zeros, negatives, NaN"
        )
    yield _agreement(b, "brute_force", b.late_edges, "the same with two clocks, sum and slope", "_two_clocks")
    for engine in ("polars", "polars_line", "duckdb"):
        yield _agreement(b, engine, b.cohort(20), "20 patients of the cohort", "_cohort")


def _agreement(b: Bench, engine: str, folder: Path, what: str, suffix: str = "") -> Figure:
    name = f"cells_unlike_{engine}{suffix}"
    try:
        theirs = b.run(engine, folder, save=True, warm=False)["matrix"]
    except NoPeer as why:
        return absent(name, what, why)
    ours = b.run("wardcast", folder, save=True, warm=False)["matrix"]
    unlike = differing(ours, theirs, statistics(told(folder)))
    return {
        "name": name,
        "value": sum(unlike.values()),
        "unit": f"of {ours.size:,} cells; {what}" + (f"; in {', '.join(unlike)}" if unlike else ""),
        "goal": "<= 0",
    }


# ---- the same work ---------------------------------------------------------------------------------------------------


def against_peers(b: Bench, patients: int) -> Iterator[Figure]:
    """CPU and memory from Parquet to matrix, one core, beside the engines that do the same work."""
    folder, few = b.cohort(patients), patients <= 2_000
    hours = told(folder)["patient_hours"]
    ours = b.run("wardcast", folder, repeat=5 if few else 2)
    engines = {"polars": 3, "polars_line": 3, "polars_guide": 1, "duckdb": 1} if few else {"polars": 1}
    theirs: dict[str, dict[str, Any]] = {}
    for engine, repeat in engines.items():
        try:
            theirs[engine] = b.run(engine, folder, repeat=repeat)
        except NoPeer as why:
            yield absent(f"cohort_{patients}_vs_{engine}", PER_MILLION, why)
    scale = 1e6 / hours
    for engine, cost in theirs.items():
        goal = {"goal": "ratio >= 12"} if engine in ("polars", "polars_guide") else {}
        yield {
            "name": f"cohort_{patients}_vs_{engine}",
            "value": ours["cpu_s"] * scale,
            "unit": f"{PER_MILLION}; {cost['cpu_s']:.2f} s and {cost['added_mb']:.0f} MB by {engine}",
            "reference": cost["cpu_s"] * scale,
            **goal,
        }
    if few:
        yield _pandas(b, ours["cpu_s"] * scale)
    yield {
        "name": f"cohort_{patients}_cpu",
        "value": ours["cpu_s"],
        "unit": "CPU s, Parquet to 392 columns, one core",
    }
    rate = {"unit": "patient-hours / CPU s, Parquet to 392 columns, one core", "goal": ">= 150000"}
    yield {"name": f"cohort_{patients}_patient_hours_per_cpu_s", "value": hours / ours["cpu_s"], **rate}
    yield _memory(patients, hours, ours["added_mb"], theirs)


def _pandas(b: Bench, ours: float) -> Figure:
    few = b.cohort(200)
    name, unit = "cohort_2000_vs_pandas", f"{PER_MILLION}; pandas on 200 patients, scaled"
    try:
        theirs = b.run("pandas", few)["cpu_s"] / told(few)["patient_hours"] * 1e6
    except NoPeer as why:
        return absent(name, unit, why)
    return {"name": name, "value": ours, "unit": unit, "reference": theirs}


def _memory(patients: int, hours: int, added: float, theirs: dict[str, dict[str, Any]]) -> Figure:
    """Resident memory beyond the matrix itself. The reference is the leanest peer."""
    output = hours * len(workload.windows()) * 4 / 1e6
    least = min((cost["added_mb"] for cost in theirs.values()), default=None)
    return {
        "name": f"cohort_{patients}_memory_beyond_output",
        "value": added - output,
        "unit": f"MB of resident memory at the peak, beyond the matrix of {output:,.0f} MB",
        "reference": None if least is None else least - output,
        "goal": "<= 100",
    }


def extended(b: Bench) -> Iterator[Figure]:
    """Sum and slope as well: 560 columns."""
    folder = b.cohort(2_000, extended=True)
    unit = "CPU s, 560 columns (with sum and slope), one core"
    ours = b.run("wardcast", folder, repeat=3)["cpu_s"]
    try:
        yield {
            "name": "extended_2000_vs_polars",
            "value": ours,
            "unit": unit,
            "reference": b.run("polars", folder, repeat=2)["cpu_s"],
        }
    except NoPeer as why:
        yield {"name": "extended_2000", "value": ours, "unit": unit}
        yield absent("extended_2000_vs_polars", unit, why)


def two_cores(b: Bench, patients: int, engines: Sequence[str]) -> Iterator[Figure]:
    """Wall seconds on two cores beside one, in turns; only a quiet machine says the truth here."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if usable < 2:
        yield absent("two_cores", "wall seconds of one core over two", NoPeer("this machine has one core"))
        return
    folder = b.cohort(patients)
    for engine in engines:
        name, unit = (
            f"two_cores_{engine}" + (f"_{patients}" if patients != 2_000 else ""),
            f"wall s of one core / wall s of two, load {os.getloadavg()[0]:.1f}",
        )
        try:
            walls = [[b.run(engine, folder, n, repeat=5)["wall_s"] for n in (1, 2)] for _ in range(TURNS)]
        except NoPeer as why:
            yield absent(name, unit, why)
            continue
        one, two = (float(wall) for wall in np.min(walls, axis=0))
        unit = f"{unit}; {one:.3f} s and {two:.3f} s, quickest of {5 * TURNS} in {TURNS} turns"
        goal = {"goal": ">= 1.8"} if engine == "wardcast" else {}
        yield {"name": name, "value": one / two, "unit": unit, **goal}


def ten_times_more(b: Bench) -> Iterator[Figure]:
    """20,000 patients beside 2,000: two cores, memory and time. Fresh pages of 2.3 GB are part of both roads' time."""
    yield from two_cores(b, 20_000, ("wardcast",))
    few, many = b.cohort(2_000), b.cohort(20_000)
    ours = {folder: b.run("wardcast", folder, repeat=3) for folder in (few, many)}
    yield _memory(20_000, told(many)["patient_hours"], ours[many]["added_mb"], {})
    each = {folder: cost["cpu_s"] / told(folder)["patient_hours"] for folder, cost in ours.items()}
    yield {
        "name": "cohort_linear",
        "value": each[many] / each[few],
        "unit": "CPU s a patient-hour, 20,000 patients against 2,000, one core, fresh pages of the matrix included",
        "goal": "<= 1.1",
    }


def closest_peers(b: Bench) -> Iterator[Figure]:
    """Engines that do not do the same work; on fewer patients, scaled by patient-hour."""
    for engine, (patients, instead) in CLOSEST.items():
        name = f"cohort_vs_{engine}"
        unit = f"{PER_MILLION}, {patients} patients; {engine}: {instead}"
        if engine in SLOW and not everything():
            yield absent(name, unit, NoPeer("slow; run with --all"))
            continue
        folder = b.cohort(patients)
        scale = 1e6 / told(folder)["patient_hours"]
        try:
            theirs = b.run(engine, folder, warm=engine not in SLOW)["cpu_s"] * scale
        except NoPeer as why:
            yield absent(name, unit, why)
            continue
        ours = b.run("wardcast", folder, repeat=3)["cpu_s"] * scale
        yield {"name": name, "value": ours, "unit": unit, "reference": theirs}


# ---- the kernel, cleaning, one patient, start-up, real data ----------------------------------------------------------


def cpu(work: Callable[[], Any], repeat: int = 3) -> float:
    """CPU seconds of the quickest of some runs."""
    times = []
    for _ in range(repeat):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times)


def kernel() -> Iterator[Figure]:
    """Flat arrays to a matrix that is warm already, beside one copy of the same bytes."""
    asked = workload.windows()
    for name, late in (("one_clock", False), ("two_clocks", True)):
        events, rows = workload.cohort(2_000, late=late)
        flat = flatten(events, workload.CONCEPTS)
        matrix = np.zeros((len(rows), len(asked)), np.float32)
        build(flat, rows, asked, out=matrix)
        took = cpu(lambda f=flat, r=rows, m=matrix: build(f, r, asked, out=m), 7)
        if not late:
            yield _share_of_memcpy(matrix.nbytes + 24 * len(flat), took)
        yield {
            "name": f"kernel_patient_hours_per_s_{name}",
            "value": len(rows) / took,
            "unit": "patient-hours / CPU s" + ("; laboratory known 20 min or more late" if late else ""),
            "goal": ">= 300000" if late else ">= 500000",
        }


def _share_of_memcpy(size: int, took: float) -> Figure:
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    copied = cpu(lambda: np.copyto(target, source), 7)
    return {
        "name": "kernel_share_of_memcpy",
        "value": copied / took,
        "unit": f"of the speed of copying input and output, {size / copied / 1e9:.1f} GB/s; kernel {took:.3f} CPU s",
        "goal": ">= 0.25",
    }


def cleaning() -> Iterator[Figure]:
    raw, _ = workload.raw_cohort(2_000)
    took = cpu(lambda: clean(raw)) / len(raw) * 1e7
    yield {"name": "clean_ten_million_events", "value": took, "unit": "CPU s", "goal": "<= 10"}


def one_patient() -> Iterator[Figure]:
    """All features of the released sepsis model "now", after 48 hours, computed from the history at every call."""
    from models.bundle import Bundle

    features = Bundle.load(ROOT / "models" / "sepsis" / "released").spec.features
    events = _history(features.concepts)
    now = pd.DataFrame(
        {"encounter_id": ["stay"], "prediction_time": workload.instants([workload.EPOCH_US + 48 * HOUR_US])}
    )
    flat, order = features.flatten(events), np.argsort(events["time"].array.asi8, kind="stable")
    known = (events["time"].array.asi8[order], events["available_time"].array.asi8[order])
    value = events["numeric_value"].to_numpy()[order]
    code = pd.Index(features.concepts).get_indexer(events["concept"]).astype(np.int32)[order]
    stay, time = np.zeros(1, np.int64), now["prediction_time"].array.asi8
    roads: dict[str, tuple[Callable[[], Any], tuple[str | None, str | None]]] = {
        "in_memory": (
            lambda: features.at(flatten_one(code, *known, value, features.concepts), stay, time),
            ("<= 100", "<= 1000"),
        ),
        "flat": (lambda: features.at(flat, stay, time), (None, None)),
        "from_table": (lambda: features.build(events, now), (None, None)),
    }
    answers = [road() for road, _ in roads.values()]
    assert all(np.array_equal(a, answers[0], equal_nan=True) for a in answers)
    unit = f"us wall, {len(features.names)} features from {len(events)} events"
    for name, (road, goals) in roads.items():
        times, used = _microseconds(road, 2_000)
        yield {"name": f"one_patient_{name}_cpu", "value": used, "unit": unit.replace("wall", "CPU, mean")}
        for part, goal in zip((50, 99), goals, strict=True):
            yield {
                "name": f"one_patient_{name}_p{part}",
                "value": float(np.percentile(times, part)),
                "unit": unit,
                "goal": goal,
            }


def _history(concepts: Sequence[str]) -> pd.DataFrame:
    """48 hours: vital signs hourly, everything else once in eight hours; strings as a service has them."""
    rng = np.random.default_rng(3)
    known = loader.concepts()
    times = {c: np.arange(48) if known[c].kind == "vital" else np.arange(0, 48, 8) for c in concepts}
    concept = np.repeat(list(times), [len(t) for t in times.values()])
    span = np.array([(known[c].low, known[c].high) for c in concept])
    micros = ((np.concatenate(list(times.values())) + rng.random(concept.size)) * HOUR_US).astype(np.int64)
    when = from_micros(workload.EPOCH_US + micros)
    value = span[:, 0] + (0.2 + 0.3 * rng.random(concept.size)) * (span[:, 1] - span[:, 0])
    table = {
        "encounter_id": "stay",
        "concept": concept,
        "time": when,
        "available_time": when,
        "numeric_value": value,
    }
    return pd.DataFrame(table | {"status": "final", "source_id": None}, index=range(concept.size))


def _microseconds(call: Callable[[], Any], count: int) -> tuple[np.ndarray, float]:
    """Wall microseconds of each call, and CPU microseconds of the mean one, after a few to warm up."""
    times = []
    for k in range(count + 20):
        if k == 20:
            used = time.process_time()
        begun = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - begun) / 1e3)
    return np.array(times[20:]), (time.process_time() - used) / count * 1e6


def cold_start() -> Iterator[Figure]:
    """A new process up to its first features, the compiled code cached; the plain way only imports pandas."""
    first = (
        "import time, sys; sys.path.insert(0, '.')\n"
        "import numpy as np\n"
        "from features.windows import Window, fill, flatten_one, plan\n"
        "zero, names = np.zeros(1, np.int64), ('map',)\n"
        "flat = flatten_one(zero.astype(np.int32), zero, zero, np.ones(1), names)\n"
        "out = np.empty((1, 1), np.float32)\n"
        "fill(flat, zero, zero + 1, plan([Window.parse('map', 'last')], names), None, 1, out)\n"
        "assert out[0, 0] == 1\n"
        "print(time.process_time())"
    )
    only = "import pandas, time; print(time.process_time())"
    used, plain = (min(float(_child(code)) for _ in range(3)) for code in (first, only))
    unit = "CPU s, import and cached compile up to the first features; the plain way is importing pandas"
    yield {"name": "cold_start", "value": used, "unit": unit, "reference": plain, "goal": "<= 1"}


def physionet() -> Iterator[Figure]:
    """PhysioNet 2019, file to the matrix of the released sepsis model, on two cores."""
    unit = "s wall, file to matrix, 2 cores"
    data = Path(os.environ.get("WARDCAST_DATA", "")) / "physionet2019"
    if not os.environ.get("WARDCAST_DATA") or not data.is_dir():
        yield absent(
            "physionet2019_file_to_matrix", unit, NoPeer("WARDCAST_DATA is not set, or has no physionet2019")
        )
        return
    code = (
        "import json, os, sys, time; from pathlib import Path; sys.path.insert(0, '.')\n"
        "hasattr(os, 'sched_setaffinity') and os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])\n"
        "from features.clean import clean\n"
        "from features.sources.physionet2019 import read\n"
        "from models.bundle import Bundle\n"
        "features = Bundle.load(Path('models/sepsis/released')).spec.features\n"
        "cpu, wall = time.process_time(), time.perf_counter()\n"
        "made = [features.build(clean(c.events)[0], c.rows, threads=2) for c in read(Path(sys.argv[1]))]\n"
        "print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, sum(map(len, made))]))"
    )
    wall, used, rows = json.loads(_child(code, str(data)))
    unit += f", {rows:,} rows; {used:.1f} CPU s, load {os.getloadavg()[0]:.1f}"
    yield {"name": "physionet2019_file_to_matrix", "value": wall, "unit": unit, "goal": "<= 20"}


def _child(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]
