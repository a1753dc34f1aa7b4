"""Whole hospitals on this machine: a year of 1,000 beds, cohorts of any size, two cores, two Dask workers.

The hospital is synthetic and streamed: 81,000 admissions a year, mean stay 108 h, eight vitals each two hours on wards
and each hour in intensive care (a tenth of bed hours), twenty laboratory values each eight or four hours, known 45
minutes after they were taken; a fiftieth of the codes no table knows, a quarter of patients have Fahrenheit. Its tables
come one after another, so a patient's facts are far apart. ``make bench NAME=scale`` runs a 25th of the year and
smaller cohorts; ``WARDCAST_SCALE=full`` the whole. The work is the 392 columns of ``tests/bench/features.py``, at each
hour of every stay. Each figure is of a process of its own: seconds of wall and CPU, and its peak memory; what two cores
gain is told without the time that threads spent ready to run while other programs had the cores.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from features.clock import HOUR_US  # noqa: E402
from features.concepts import loader  # noqa: E402
from features.events import empty_events  # noqa: E402
from features.featureset import FeatureSet  # noqa: E402
from features.sources.batch import Batch, ReadAccount, no_encounters  # noqa: E402
from features.windows import Window  # noqa: E402

VITALS = ("heart_rate", "spo2", "temperature", "sbp", "map", "dbp", "respiratory_rate", "etco2")
LABS = tuple(c.name for c in loader.concepts().values() if c.kind == "lab")[:20]
FEATURES = FeatureSet(
    tuple(
        Window.parse(concept, text)
        for concept in (*VITALS, *LABS)
        for text in (
            *("last", "hours_since_last"),
            *(f"{s}_{h}h" for h in (1, 6, 24) for s in ("count", "min", "max", "mean")),
        )
    )
)
YEAR_US = 1_735_689_600_000_000
BLOCK = 250
FULL = os.environ.get("WARDCAST_SCALE") == "full"


@dataclass(frozen=True, slots=True)
class Plan:
    """A cohort: so many encounters, gamma stays in hours, the share that starts in intensive care, and for ward and
    intensive care the hours between vitals and between laboratory values."""

    encounters: int
    stay: tuple[float, float]
    icu_share: float
    ward: tuple[int, int]
    icu: tuple[int, int]
    seed: int = 1


def hospital(share: float = 1.0) -> Plan:
    """A share of a year of 1,000 beds that are always full."""
    return Plan(int(1_000 * 8_760 / 108 * share), (2.0, 54.0), 0.15, (2, 8), (1, 4))


def cohort(patients: int) -> Plan:
    """The reference work: stays of mean 72 h, vitals hourly, laboratory values each 8 h."""
    return Plan(patients, (2.0, 36.0), 1.0, (1, 8), (1, 8))


def batches(plan: Plan) -> Iterator[Batch]:
    """The vitals of everybody, then the laboratory of everybody, a block of patients at a time."""
    for table in ("vitals", "labs"):
        for first in range(0, plan.encounters, BLOCK):
            yield _block(plan, first, min(BLOCK, plan.encounters - first), table)


def _block(plan: Plan, first: int, n: int, table: str) -> Batch:
    rng = np.random.default_rng([plan.seed, first])
    hours = np.clip(rng.gamma(*plan.stay, n), 2, 2_000).astype(np.int64)
    icu = np.where(rng.random(n) < plan.icu_share, np.minimum(hours, rng.gamma(2.0, 36.0, n).astype(int)), 0)
    if plan.icu_share == 1.0:
        icu = hours
    admitted = YEAR_US + rng.integers(0, 8_760, n) * HOUR_US
    stay = np.repeat(np.arange(n), hours)
    hour = np.arange(stay.size) - np.repeat(np.cumsum(hours) - hours, hours)
    labs = table == "labs"
    often, seldom = plan.icu[labs], plan.ward[labs]
    due = np.where(hour < icu[stay], hour % often == 0, hour % seldom == 0)
    stay, hour = stay[due], hour[due]
    names = [f"{p:07d}" for p in range(first, first + n)]
    rng = np.random.default_rng([plan.seed, first, labs])
    facts = [_facts(rng, c, stay, admitted[stay] + hour * HOUR_US) for c in (LABS if labs else VITALS)]
    events = _events(facts, names, LABS if labs else VITALS, 1_000_000 * (first // BLOCK) if labs else None)
    if labs:
        return Batch(no_encounters(), events)
    leaving = _events(
        [(np.arange(n), admitted + hours * HOUR_US, np.ones(n))], names, ("hospital_discharge",), None
    )
    return Batch(_encounters(names, admitted, icu, rng), pd.concat([events, leaving], ignore_index=True))


def _facts(
    rng: np.random.Generator, concept: str, stay: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, ...]:
    keep = rng.random(stay.size) > 0.05
    stay, at = stay[keep], at[keep] + rng.integers(0, HOUR_US, int(keep.sum()))
    about = loader.concepts()[concept]
    value = np.round(about.low + (0.2 + 0.3 * rng.random(stay.size)) * (about.high - about.low), 2)
    return stay, at, value


def _events(
    facts: list[tuple[np.ndarray, ...]], names: list[str], concepts: tuple[str, ...], identity: int | None
) -> pd.DataFrame:
    stay, at, value = (np.concatenate(p) for p in zip(*facts, strict=True))
    concept = np.repeat(np.arange(len(facts)), [len(f[0]) for f in facts])
    codes = [f"WARDCAST//{c}" for c in concepts]
    strange = (stay * 7 + at // HOUR_US) % 50 == 0 if len(concepts) > 1 else np.zeros(stay.size, bool)
    code = np.where(strange, concept + len(codes), concept)
    unit = np.full(stay.size, -1)
    if "temperature" in concepts:
        fahrenheit = (concept == concepts.index("temperature")) & (stay % 4 == 0)
        value, unit = np.where(fahrenheit, np.round(value * 1.8 + 32, 1), value), np.where(fahrenheit, 0, -1)
    when = pd.Series(pd.DatetimeIndex(at.view("datetime64[us]"), tz="UTC"))
    later = when + pd.Timedelta(minutes=45) if identity is not None else when
    return pd.DataFrame(
        {
            "subject_id": _labels(stay, [f"S{n}" for n in names]),
            "encounter_id": _labels(stay, [f"E{n}" for n in names]),
            "time": when,
            "available_time": later,
            "code": _labels(code, codes + [f"LOCAL//{c}" for c in concepts]),
            "concept": _labels(np.full(stay.size, -1), ["none"]),
            "numeric_value": value,
            "text_value": _labels(np.full(stay.size, -1), ["none"]),
            "unit": _labels(unit, ["[degF]"]),
            "status": _labels(np.zeros(stay.size, np.int64), ["final"]),
            "source_id": _labels(np.full(stay.size, -1), ["none"])
            if identity is None
            else pc.cast(pa.array(np.arange(stay.size) + identity), pa.string()).to_pandas(),
        }
    )


def _labels(codes: np.ndarray, labels: list[str]) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, categories=labels)


def _encounters(
    names: list[str], admitted: np.ndarray, icu: np.ndarray, rng: np.random.Generator
) -> pd.DataFrame:
    when = pd.Series(pd.DatetimeIndex(admitted.view("datetime64[us]"), tz="UTC"))
    return pd.DataFrame(
        {
            "encounter_id": [f"E{n}" for n in names],
            "subject_id": [f"S{n}" for n in names],
            "encounter_class": np.where(icu > 0, "icu", "ward"),
            "unit": "",
            "specialty": "",
            "age_years": rng.integers(18, 95, len(names)).astype(float),
            "sex": np.where(rng.random(len(names)) < 0.5, "male", "female"),
            "icu_type": "",
            "hospital_admission_time": when,
            "icu_admission_time": when.where(icu > 0),
        }
    )


# ------------------------------------------------------------ stages, each in a process of its own


def convert(plan: dict[str, Any], folder: str, threads: int) -> dict[str, Any]:
    """Generate and write an archive."""
    from features import archive

    made = archive.write(batches(Plan(**plan)), Path(folder), ReadAccount(), threads=threads)
    return {"events": made.written, "encounters": made.encounters}


def generate(plan: dict[str, Any]) -> dict[str, Any]:
    """Generate only, to know its share."""
    return {"events": sum(len(b.events) for b in batches(Plan(**plan)))}


def build(folder: str, output: str, threads: int, hours: int = 1) -> dict[str, Any]:
    """Features of an archive, local."""
    from features import streams

    FEATURES.build(empty_events(), _nobody())
    queued: dict[int, float] = {}
    begun, used = time.perf_counter(), time.process_time()
    made = streams.build_stream(
        *(FEATURES, Path(folder), streams.Grid(timedelta(hours=hours)), Path(output)),
        threads=threads,
        say=lambda predictions: queued.update(in_queue()),
    )
    wall, cpu = time.perf_counter() - begun, time.process_time() - used
    queued.pop(os.getpid(), None)
    return {"predictions": made.predictions, "seconds": wall - sum(queued.values()) / threads, "cpu": cpu}


def in_queue() -> dict[int, float]:
    """Seconds that each thread of this process has been ready to run while others had the cores (Linux only)."""
    waited = {}
    for task in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread that has just ended
            waited[int(task.parent.name)] = int(task.read_text().split()[1]) / 1e9
    return waited


def _nobody() -> pd.DataFrame:
    now = pd.Series(pd.DatetimeIndex(["2026-01-01"], tz="UTC").as_unit("us"))
    return pd.DataFrame({"encounter_id": ["nobody"], "prediction_time": now})


def distribute(folder: str, output: str, workers: int) -> dict[str, Any]:
    """The same on Dask workers, one thread each; the clock starts when the cluster stands."""
    from features import streams
    from training import distributed

    with distributed.cluster(workers=workers) as client:
        distributed.warm(client, FEATURES)
        before = client.run(in_queue)
        begun = time.perf_counter()
        made = distributed.build_features(FEATURES, Path(folder), streams.Grid(), Path(output), client=client)
        wall = time.perf_counter() - begun
        lost = [
            max(waited - before[worker].get(thread, 0) for thread, waited in after.items())
            for worker, after in client.run(in_queue).items()
        ]
        return {"predictions": made.predictions, "seconds": wall - sum(lost) / workers}


STAGES = {f.__name__: f for f in (convert, generate, build, distribute)}


@dataclass(frozen=True, slots=True)
class Ran:
    """What a stage said, and what it took."""

    said: dict[str, Any]
    wall: float
    cpu: float
    peak_mib: float


def run(stage: str, **arguments: Any) -> Ran:
    """A stage in a process of its own."""
    command = [sys.executable, __file__, stage, json.dumps(arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    begun = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - begun
    if child.returncode:
        raise RuntimeError(f"Stage {stage} ended with {child.returncode}.")
    return Ran(json.loads(said), wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def size_of(folder: Path) -> float:
    """GB on disk."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e9


# ------------------------------------------------------------ figures


def bench() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="wardcast-scale-") as temporary:
        place = Path(temporary)
        run("convert", plan=asdict(cohort(2)), folder=str(place / "warm"), threads=1)
        run("build", folder=str(place / "warm"), output=str(place / "warmed"), threads=1)
        yield from a_year(place, 1.0 if FULL else 0.04)
        yield from two_cores(place)
        yield from any_size(place, (2_000, 20_000, 200_000) if FULL else (500, 2_000, 8_000))


def a_year(place: Path, share: float) -> Iterator[dict[str, Any]]:
    """A year of 1,000 beds, or a share of it: generated, archived, made into features, end to end on two threads."""
    source, output = str(place / "year"), str(place / "year features")
    plan = asdict(hospital(share))
    making = run("generate", plan=plan)
    kept = run("convert", plan=plan, folder=source, threads=2)
    made = run("build", folder=source, output=output, threads=2)
    events, rows = kept.said["events"], made.said["predictions"]
    whole = {
        "unit": "s of wall for a whole year"
        if share == 1
        else f"s of wall for a year, {share:.0%} of it measured"
    }
    yield {
        "name": "year_events",
        "value": events / share / 1e6,
        "unit": "million events in a year of 1,000 beds",
    }
    yield {"name": "year_predictions", "value": rows / share / 1e6, "unit": "million patient-hours in it"}
    yield {"name": "year_generate", "value": making.wall / share, **whole}
    yield {"name": "year_archive", "value": kept.wall / share, **whole}
    yield {"name": "year_features", "value": made.wall / share, **whole}
    yield {"name": "year_end_to_end", "value": (kept.wall + made.wall) / share, **whole, "goal": "<= 1500"}
    yield {"name": "year_cpu", "value": (kept.cpu + made.cpu) / share, "unit": "CPU s for a year"}
    peak = max(kept.peak_mib, made.peak_mib)
    yield {"name": "year_peak_memory", "value": peak / 1024, "unit": "GiB", "goal": "<= 8"}
    yield {"name": "year_archive_size", "value": size_of(place / "year") / share, "unit": "GB for a year"}
    yield {
        "name": "year_features_size",
        "value": size_of(place / "year features") / share,
        "unit": "GB for a year",
    }
    shutil.rmtree(output)
    yield from network(events / share, (kept.cpu + made.cpu) / share, place, share)
    shutil.rmtree(source)


def two_cores(place: Path) -> Iterator[dict[str, Any]]:
    """Two weeks of the hospital on one and two threads, on one and two Dask workers; the best of two runs of each."""
    run("convert", plan=asdict(hospital(0.04)), folder=str(place / "fortnight"), threads=2)
    walls: dict[str, float] = {}
    rows = set()
    for name, stage, how in (
        ("one thread", "build", {"threads": 1}),
        ("two threads", "build", {"threads": 2}),
        ("one worker", "distribute", {"workers": 1}),
        ("two workers", "distribute", {"workers": 2}),
    ):
        for attempt in range(2):
            output = place / f"{name} {attempt}"
            took = run(stage, folder=str(place / "fortnight"), output=str(output), **how)
            rows.add(took.said["predictions"])
            seconds = took.said["seconds"]
            walls[name] = min(walls.get(name, seconds), seconds)
            shutil.rmtree(output)
    assert len(rows) == 1
    for pair, goal in (("thread", ">= 1.8"), ("worker", ">= 1.6")):
        yield {
            "name": f"features_two_{pair}s_against_one",
            "value": walls[f"one {pair}"] / walls[f"two {pair}s"],
            "unit": "times as fast; without starting, compiling and queueing for a core behind other programs",
            "goal": goal,
        }


def any_size(place: Path, sizes: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Time and memory of cohorts a decade apart: features streamed from an archive, one thread."""
    each: list[float] = []
    for patients in sizes:
        source, output = place / f"cohort {patients}", place / f"features {patients}"
        run("convert", plan=asdict(cohort(patients)), folder=str(source), threads=2)
        made = run("build", folder=str(source), output=str(output), threads=1)
        each.append(made.said["cpu"] / made.said["predictions"] * 1e6)
        shutil.rmtree(source)
        shutil.rmtree(output)
        about = f"of {patients:,} patients"
        yield {
            "name": f"stream_cpu_{patients}",
            "value": each[-1],
            "unit": f"CPU s a million patient-hours, {about}",
        }
        yield {
            "name": f"stream_memory_{patients}",
            "value": made.peak_mib,
            "unit": f"MiB of resident memory, {about}",
            "goal": "<= 512",
        }
    yield {
        "name": "stream_linear",
        "value": each[-1] / each[0],
        "unit": f"CPU s a patient-hour, {sizes[-1]:,} patients against {sizes[0]:,}",
        "goal": "<= 1.1",
    }


def network(
    events: float, cpu: float, place: Path, share: float, hospitals: int = 20
) -> Iterator[dict[str, Any]]:
    """What twenty such hospitals would need, from what one was measured to take."""
    every = hospitals * cpu
    yield {
        "name": "network_events",
        "value": hospitals * events / 1e9,
        "unit": f"billion events a year, {hospitals} hospitals",
    }
    yield {
        "name": "network_rebuild",
        "value": every / 3600,
        "unit": "core hours to archive and rebuild a year of it all",
    }
    yield {
        "name": "network_cores",
        "value": every / 3600 / 0.8,
        "unit": "cores to do so within an hour, 80 % busy",
        "goal": "<= 64",
    }
    yield {
        "name": "network_archive",
        "value": hospitals * size_of(place / "year") / share,
        "unit": "GB of archive a year",
    }
    yield {
        "name": "network_day",
        "value": every / 365 / 60,
        "unit": "core minutes for the events of one more day",
    }


def main(argv: list[str]) -> None:
    print(json.dumps(STAGES[argv[0]](**json.loads(argv[1]))))


if __name__ == "__main__":
    main(sys.argv[1:])
