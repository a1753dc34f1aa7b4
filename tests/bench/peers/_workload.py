"""The reference work of the window benchmark, and a small set of everything that windows get wrong; as Parquet.

The cohort is synthetic: gamma stays of mean 72 h, eight vitals an hour, twenty laboratory values each eight hours, a
twentieth missing. 2,000 patients make about 1.4 million events and 143,000 patient-hours. Imported by the project's
own Python only; peers read what it writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.clean import clean
from features.clock import HOUR_US, UTC_US
from features.concepts import loader
from features.windows import Window

VITALS = ("heart_rate", "spo2", "temperature", "sbp", "map", "dbp", "respiratory_rate", "etco2")
LABS = tuple(c.name for c in loader.concepts().values() if c.kind == "lab")[:20]
CONCEPTS = (*VITALS, *LABS)
LOOKBACKS = (1, 6, 24)
STATISTICS = ("count", "min", "max", "mean")
EXTENDED = (*STATISTICS, "sum", "slope")
EPOCH_US = 1_767_225_600_000_000


def windows(concepts: Sequence[str] = CONCEPTS, statistics: Sequence[str] = STATISTICS) -> list[Window]:
    """Latest value, hours since it, and each statistic over 1, 6 and 24 hours, concept by concept."""
    texts = ("last", "hours_since_last", *(f"{s}_{h}h" for h in LOOKBACKS for s in statistics))
    return [Window.parse(concept, text) for concept in concepts for text in texts]


def instants(micros: np.ndarray) -> pd.Series:
    return pd.Series(pd.to_datetime(micros, unit="us", utc=True)).astype(UTC_US)


def raw_cohort(patients: int, seed: int = 1, late: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Raw events (codes, no concepts yet) and hourly prediction times; ``late``: laboratory is known after a while.

    The lag is 20 minutes and an exponential time of mean 40 on top. Vital signs are known at once.
    """
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
    lag = (code >= len(VITALS)) * (1 / 3 + rng.exponential(2 / 3, code.size)) if late else np.zeros(code.size)
    time, available = (EPOCH_US + (x * HOUR_US).astype(np.int64) for x in (at, at + lag))
    events = _table(patient, patients, code, time, available, value)
    hour = np.arange(hours.sum()) - np.repeat(np.cumsum(hours) - hours, hours) + 1
    return events, _rows(np.repeat(np.arange(patients), hours), patients, EPOCH_US + hour * HOUR_US)


def cohort(patients: int, seed: int = 1, late: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same after cleaning."""
    events, rows = raw_cohort(patients, seed, late)
    usable, account = clean(events)
    assert not account.reasons
    return usable, rows


def adversarial(seed: int = 7, late: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Ties, empty windows, single events, zeros, negatives, NaN, events on every edge, before the stay and after it.

    Hourly prediction times; values of quarters, so that sums are exact and only the rounding of a quotient is left.
    Each concept has a patient without any event, and one with a single event. Cleaning would set some of it aside, so
    the concepts are set here.
    """
    rng = np.random.default_rng(seed)
    patients, stay = 12, 60
    parts = []
    for code in range(len(CONCEPTS)):
        for patient in range(patients):
            n = (0, 1, 2, 3, 40, 200)[(patient + code) % 6]
            minute = rng.integers(-40 * 60, (stay + 30) * 60, n).astype(np.int64)
            on_edge = rng.random(n) < 0.5
            minute[on_edge] = minute[on_edge] // 60 * 60
            beside = rng.integers(-1, 2, n) * (rng.random(n) < 0.3)
            value = rng.integers(-40, 41, n) / 4.0
            value[rng.random(n) < 0.2] = 0.0
            value[rng.random(n) < 0.1] = np.nan
            again = rng.random(n) < 0.3
            times = np.concatenate([minute * 60_000_000 + beside, (minute * 60_000_000 + beside)[again]])
            values = np.concatenate([value, rng.permutation(value)[: again.sum()]])
            parts.append((np.full(times.size, patient), np.full(times.size, code), times, values))
    patient, code, at, value = (np.concatenate(p) for p in zip(*parts, strict=True))
    lag = rng.integers(0, 180, at.size) * 60_000_000 * (rng.random(at.size) < 0.7) if late else 0
    time = EPOCH_US + at
    events = _table(patient, patients, code, time, time + lag, value)
    events["concept"] = pd.Categorical.from_codes(code, categories=list(CONCEPTS))
    hour = np.tile(np.arange(1, stay + 1), patients)
    return events, _rows(np.repeat(np.arange(patients), stay), patients, EPOCH_US + hour * HOUR_US)


def write(
    folder: Path, events: pd.DataFrame, rows: pd.DataFrame, statistics: Sequence[str] = STATISTICS
) -> Path:
    """Write a workload: events by subject, time and value, as MEDS wants them and a little more."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("events", events), ("rows", rows)):
        table = table.assign(subject_id=table["encounter_id"].cat.codes.astype("int64"))
        if name == "events":
            table = table.sort_values(["subject_id", "time", "numeric_value"], kind="stable")
        table.to_parquet(folder / f"{name}.parquet", index=False)
    said = {"concepts": CONCEPTS, "lookbacks": LOOKBACKS, "statistics": list(statistics)}
    (folder / "workload.json").write_text(
        json.dumps(said | {"patient_hours": len(rows), "events": len(events)})
    )
    return folder


def _names(patients: int) -> pd.Index:
    return pd.Index([f"stay-{p:06d}" for p in range(patients)])


def _table(patient: Any, patients: int, code: Any, time: Any, available: Any, value: Any) -> pd.DataFrame:
    people = pd.Categorical.from_codes(patient, categories=_names(patients))
    nothing = pd.Categorical.from_codes(np.full(len(patient), -1), categories=["none"])
    final = pd.Categorical.from_codes(np.zeros(len(patient), int), categories=["final"])
    return pd.DataFrame(
        {
            "subject_id": people,
            "encounter_id": people,
            "time": instants(time),
            "available_time": instants(available),
            "code": pd.Categorical.from_codes(code, categories=[f"WARDCAST//{c}" for c in CONCEPTS]),
            "concept": nothing,
            "numeric_value": value,
            "text_value": nothing,
            "unit": nothing,
            "status": final,
            "source_id": nothing,
        }
    )


def _rows(patient: Any, patients: int, time: Any) -> pd.DataFrame:
    people = pd.Categorical.from_codes(patient, categories=_names(patients))
    return pd.DataFrame({"encounter_id": people, "prediction_time": instants(time)})
