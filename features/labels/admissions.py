"""Who in the emergency department was admitted in the end: snapshots with their outcome. May look forward.

A snapshot is one undecided patient at one prediction time. Times come on a grid that runs through every hour at a
random minute, so that patients appear in proportion to how long they are there, as they will when the report is run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from features.clock import from_micros, micros
from features.sources.visits import through_ed


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Undecided emergency patients at prediction times, with what became of them.

    Attributes
    ----------
    rows : DataFrame
        ``encounter_id, subject_id, prediction_time, arrival_time``; the outcome: ``admitted`` (bool), ``specialty``
        (empty when not admitted), ``hours_to_bed`` (NaN when not admitted or the bed is not reached yet).
    attrition : dict of str to int
        Visits left out, by reason, and the visits and snapshots kept.
    """

    rows: pd.DataFrame
    attrition: dict[str, int]


def random_grid(first: pd.Timestamp, last: pd.Timestamp, rng: np.random.Generator) -> pd.Series:
    """Prediction times: one in every UTC hour from ``first`` to ``last``, at a random minute."""
    hours = pd.Series(pd.date_range(first.ceil("h"), last.floor("h"), freq="1h", inclusive="left"))
    minutes = rng.integers(0, 60, len(hours))
    return from_micros(hours.astype("datetime64[us, UTC]").astype("int64").to_numpy() + minutes * 60_000_000)


def snapshots(visits: pd.DataFrame, prediction_times: pd.Series) -> Snapshots:
    """Every undecided emergency patient at every prediction time, labelled with the outcome.

    Parameters
    ----------
    visits : DataFrame with ``features.sources.visits.VISIT_COLUMNS``
    prediction_times : Series of datetime64[us, UTC], sorted

    Returns
    -------
    Snapshots
        Visits that never came through the emergency department, and visits without any outcome yet (neither a
        decision to admit nor a departure), are left out and counted.
    """
    ed = through_ed(visits)
    gone = visits[["decision_time", "admission_time", "discharge_time"]].min(axis=1)
    matured = gone.notna()
    kept = visits[ed & matured].reset_index(drop=True)
    until = micros(gone[ed & matured])
    times = micros(prediction_times)
    first = np.searchsorted(times, micros(kept["arrival_time"]), side="left")
    after = np.searchsorted(times, until, side="left")
    n = np.maximum(after - first, 0)
    who = np.repeat(np.arange(len(kept)), n)
    step = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    rows = kept.iloc[who][["encounter_id", "subject_id", "arrival_time"]].reset_index(drop=True)
    rows["prediction_time"] = from_micros(times[first[who] + step])
    admitted = (kept["decision_time"].notna() | kept["admission_time"].notna()).to_numpy()
    rows["admitted"] = admitted[who]
    rows["specialty"] = kept["specialty"].where(admitted, "").to_numpy()[who]
    bed = kept["admission_time"].iloc[who].reset_index(drop=True)
    rows["hours_to_bed"] = (bed - rows["prediction_time"]).dt.total_seconds() / 3600
    attrition = {
        "visits": len(visits),
        "not_through_ed": int((~ed).sum()),
        "no_outcome_yet": int((ed & ~matured).sum()),
        "never_at_a_prediction_time": int((n == 0).sum()),
        "visits_kept": int((n > 0).sum()),
        "snapshots": len(rows),
    }
    return Snapshots(rows.sort_values(["prediction_time", "encounter_id"]).reset_index(drop=True), attrition)
