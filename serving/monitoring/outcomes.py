"""What became of the patients: onsets from a file of the hospital's, or from the store's own events.

Only here does the service look forward, and only at hours whose horizon has passed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from features.clock import UTC_US, Target, to_utc
from features.errors import DataError
from features.labels.sepsis3 import PRESETS, Sepsis3, sepsis_onset
from serving.store import facts

if TYPE_CHECKING:
    from models.spec import Spec
    from serving.store.store import Store

WAIT: Final = timedelta(hours=72)
"""Sepsis-3 is told by antibiotics and cultures of days around onset: so long after its horizon is an hour judged."""
RECORD_H: Final = 3
"""Hours after onset at which the records that PhysioNet's label was trained on end."""
LABEL_LEAD: Final = timedelta(hours=6)
SUSPECTED: Final = ("antibiotic", "culture", "blood_culture", "positive_culture")
AT_ONCE: Final = 200


@dataclass(frozen=True)
class Outcomes:
    """Onsets of stays.

    Attributes
    ----------
    onset : Series of datetime64[us, UTC] by encounter
        NaT where the stay is known to have had none. A stay that is not here is not judged.
    wait : timedelta
        How long after its horizon an hour is taken to be told.
    source : str
        Where they come from, in words.
    """

    onset: pd.Series
    wait: timedelta
    source: str


@dataclass(frozen=True)
class Rule:
    """Which hours count, and as what.

    Attributes
    ----------
    target : Target
    after_h : float or None
        With a number, hours up to so long after onset count as positive, as in the records of PhysioNet 2019; with
        None, hours at which it is too late count as nothing.
    definition : Sepsis3
        What tells onset from events.
    """

    target: Target
    after_h: float | None
    definition: Sepsis3

    @classmethod
    def of(cls, spec: Spec) -> Rule:
        """The rule that a model was trained with."""
        about = spec.section("target")
        hours = (
            timedelta(hours=float(about.get(k, default))) for k, default in (("gap_h", 0), ("horizon_h", 6))
        )
        definition = PRESETS.get(about.get("preset", "physionet_2019"), PRESETS["physionet_2019"])
        if "signs" in about:
            suspicion = dataclasses.replace(definition.suspicion, signs=about["signs"])
            definition = dataclasses.replace(definition, suspicion=suspicion)
        return cls(Target(*hours), None if about.get("label") == "sepsis3" else RECORD_H, definition)

    @property
    def most(self) -> float:
        """As many hours of one stay as can be positive, one prediction an hour."""
        return self.target.horizon / timedelta(hours=1) + 1 + (self.after_h or 0)

    def label(self, ahead_h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From hours to onset (infinite where there is none): label 0 or 1, and whether the hour counts."""
        gap, horizon = (t / timedelta(hours=1) for t in (self.target.gap, self.target.horizon))
        counts = ahead_h > gap if self.after_h is None else ahead_h >= -self.after_h
        return (ahead_h <= gap + horizon).astype(np.int64), counts


def from_file(path: Path, timezone: str) -> Outcomes:
    """Read ``--labels``: CSV or Parquet, one row a stay with ``encounter_id, onset_time`` (empty: no sepsis), or one
    row an hour with ``encounter_id, prediction_time, label``.

    Raises
    ------
    DataError
        It cannot be read, or has neither set of columns.
    """
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype="str")
    except (OSError, ValueError) as error:
        raise DataError(f"The labels {path.name} cannot be read ({type(error).__name__}).") from None
    stays = {"encounter_id", "onset_time"} <= set(table.columns)
    if not stays and not {"encounter_id", "prediction_time", "label"} <= set(table.columns):
        raise DataError(
            f"The labels {path.name} have columns {', '.join(map(str, table.columns[:8]))}. Expected encounter_id and "
            "onset_time, one row a stay, empty without sepsis; or encounter_id, prediction_time and label."
        )
    who = table["encounter_id"].astype("str")
    when = to_utc(table["onset_time" if stays else "prediction_time"], "onset_time", timezone)
    if not stays:
        positive = pd.to_numeric(table["label"], errors="coerce")
        if not positive.isin([0, 1]).all():
            raise DataError(f"Labels of {path.name} must be 0 or 1.")
        when = (when + LABEL_LEAD).where(positive.to_numpy() == 1)
    first = pd.Series(when.array, index=who.to_numpy()).groupby(level=0).min()
    return Outcomes(first.astype(UTC_US), timedelta(0), f"the file {path.name}")


def from_store(store: Store, stays: Sequence[str], now: int, definition: Sepsis3) -> Outcomes | None:
    """Sepsis-3 of some stays from what the store received up to ``now`` (microseconds).

    None where it holds no antibiotic (or culture, where the definition needs one) of any of them: without these signs
    nobody would ever seem septic.
    """
    signs = definition.suspicion.signs
    found: list[pd.DataFrame] = []
    met: set[str] = set()
    with store.read() as connection:
        for start in range(0, len(stays), AT_ONCE):
            some = list(stays[start : start + AT_ONCE])
            told = facts.read_events(connection, some, now, concepts=SUSPECTED)
            met |= set(told["concept"])
            suspected = sorted(set(told["encounter_id"]))
            if suspected:
                events = facts.read_events(connection, suspected, now)
                people = facts.encounter_table(_pictures(connection, suspected), now)
                found.append(sepsis_onset(events, people, definition))
    if ("antibiotic" not in met and signs != "culture") or (
        met <= {"antibiotic"} and signs in ("both", "culture")
    ):
        return None
    first = pd.Series(pd.NaT, index=list(stays), dtype=UTC_US)
    if any(len(f) for f in found):
        first = pd.concat(found).groupby("encounter_id")["onset_time"].min().reindex(list(stays))
    return Outcomes(first.astype(UTC_US), WAIT, "the store's events, by Sepsis-3")


def _pictures(connection: Any, stays: Sequence[str]) -> list[tuple[Any, ...]]:
    latest = facts.latest(connection, stays)
    return [tuple(row[name] for name in facts.KNOWN_COLUMNS) for row in latest.values()]
