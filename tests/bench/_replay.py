"""PhysioNet 2019 as two hospitals that admit patients day by day: what the monitor's benchmark breaks and watches.

The data have no dates. Each stay is given a day, by its place in a fixed shuffle of one half of each hospital's
patients, and a minute of that day; all its times move by as much. Both hospitals admit as many a day.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.clean import clean
from features.clock import HOUR_US, from_micros
from features.sources import physionet2019
from models.bundle import Bundle
from serving.monitoring.ledger import facts_of, tell_apart

SITES = {"setA.parquet": "A", "setB.parquet": "B"}
DAY_US = 24 * HOUR_US
EPOCH_US = 1_767_571_200_000_000  # 2026-01-05T00:00Z, a Monday


def data() -> Path | None:
    """The folder of the data set; None where there is none."""
    folder = Path(os.environ.get("WARDCAST_DATA", "")) / "physionet2019"
    return folder if all((folder / name).is_file() for name in SITES) else None


@dataclass(frozen=True)
class Scored:
    """Hours of one day as the service would have logged them."""

    rows: pd.DataFrame
    features: pd.DataFrame
    probability: np.ndarray


@dataclass(frozen=True)
class Replay:
    """Stays laid out in time.

    Attributes
    ----------
    events : DataFrame, raw canonical events with ``site``, and ``when`` and ``received`` (microseconds)
    rows : DataFrame, one row an hour: ``encounter_id, when, site, label``
    """

    events: pd.DataFrame
    rows: pd.DataFrame

    @classmethod
    def of(cls, folder: Path, half: int, days: int, a_day: int) -> Replay:
        """Both hospitals' patients of one half (0 or 1), so many admissions a day each."""
        parts = [_site(folder / name, site, half, days * a_day, days) for name, site in SITES.items()]
        events, rows = (pd.concat([p[k] for p in parts], ignore_index=True) for k in (0, 1))
        return cls(events.assign(received=events["when"]), rows)

    def arrived(self, first: int, stop: int) -> pd.DataFrame:
        """Raw events of some days."""
        return self.events[self.events["when"].between(midnight(first), midnight(stop) - 1)]

    def day(self, day: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The hours of a day at which the service scores, and all raw events so far of the stays they belong to."""
        rows = self.rows[self.rows["when"].between(midnight(day), midnight(day + 1) - 1)]
        who = self.events["encounter_id"].isin(rows["encounter_id"].unique())
        return rows, self.events[who & (self.events["when"] < midnight(day + 1))]


def midnight(day: int) -> int:
    """The first microsecond of a day."""
    return EPOCH_US + day * DAY_US


def _site(file: Path, site: str, half: int, most: int, days: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    ids = pd.read_parquet(file, columns=["patient_id"])["patient_id"].unique()
    chosen = np.random.default_rng(2019).permutation(np.sort(ids))[half::2][:most]
    rng = np.random.default_rng(1)
    begins = pd.Series(
        EPOCH_US
        + np.arange(len(chosen)) % days * DAY_US
        + rng.integers(0, 24 * 60, len(chosen)) * (HOUR_US // 60),
        index=chosen,
    )
    events, rows = [], []
    for chunk in physionet2019.read(file):
        events.append(_moved(chunk.events, begins, "time"))
        rows.append(_moved(chunk.rows.reset_index(drop=True), begins, "prediction_time"))
    labels = pd.read_parquet(file, columns=["patient_id", "ICULOS", "SepsisLabel"])
    told = pd.concat(rows).merge(labels, left_on=["patient_id", "iculos"], right_on=["patient_id", "ICULOS"])
    told = told.assign(site=site, label=told["SepsisLabel"].astype(np.int8))
    return pd.concat(events).assign(site=site), told[["encounter_id", "when", "site", "label"]]


def _moved(table: pd.DataFrame, begins: pd.Series, column: str) -> pd.DataFrame:
    """The rows of chosen stays, as plain text and numbers, at their new times (``when``)."""
    kept = table[table["encounter_id"].isin(begins.index).to_numpy()]
    plain = {c: kept[c].astype(object) for c in kept.columns if kept[c].dtype == "category"}
    kept = kept.assign(**plain)
    shift = kept["encounter_id"].map(begins).astype(np.int64) - physionet2019.ADMISSION_US
    return kept.assign(when=kept[column].astype("datetime64[us, UTC]").array.asi8 + shift.to_numpy())


def canonical(events: pd.DataFrame) -> pd.DataFrame:
    """Raw events with their times as the canonical table wants them."""
    known, came = (
        from_micros(events[c].to_numpy(np.int64)).set_axis(events.index) for c in ("when", "received")
    )
    columns = [c for c in events.columns if c not in ("when", "site", "received")]
    return events[columns].assign(time=known, available_time=came)


def score(bundle: Bundle, events: pd.DataFrame, rows: pd.DataFrame) -> Scored:
    """Features and probabilities of some hours from raw events, by the calls the service makes."""
    usable, _ = clean(canonical(events))
    rows = rows.reset_index(drop=True)
    times = rows[["encounter_id"]].assign(prediction_time=from_micros(rows["when"].to_numpy(np.int64)))
    matrix = bundle.spec.features.build(usable, times)
    probability = bundle.calibrator.apply(bundle.raw(matrix))
    return Scored(rows, pd.DataFrame(matrix, columns=list(bundle.feature_names)), probability)


def facts(events: pd.DataFrame) -> pd.DataFrame:
    """Raw events of the wards' feeds as the ledger counts them; what encounters say of themselves is no feed."""
    told = events[(events["source_id"] != "encounter").to_numpy()].reset_index(drop=True)
    usable, account = clean(canonical(told), keep_unmapped=True)
    aside = account.set_aside.set_index("position")["reason"]
    reason = pd.Series(told.index.map(aside), index=told.index, dtype=object)
    value = told["numeric_value"].astype(np.float64).where(reason.isna())
    kept = np.setdiff1d(np.arange(len(told)), aside.index[~aside.isin(["unknown_concept", "left_out"])])
    value.iloc[kept] = usable["numeric_value"].to_numpy(np.float64)
    concept = pd.Series(None, index=told.index, dtype=object)
    concept.iloc[kept] = usable["concept"].astype(object).to_numpy()
    stored: dict[str, Any] = {
        "received_time": told["received"],
        "available_time": told["received"],
        "time": told["when"],
        "encounter_id": told["encounter_id"],
        "code": told["code"],
        "raw_unit": None,
        "concept": concept.where(reason.isna()),
        "numeric_value": value.where(reason.isna()),
        "raw_value": told["numeric_value"],
        "reason": reason,
        "ward": told["site"],
    }
    return tell_apart(facts_of(pd.DataFrame(stored)))
