"""The truth of the simulated hospital as labels. May look forward; for training and for judging the demo."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd

from features.clock import HOUR_US, from_micros, micros
from features.sources.synthetic import Hospital


def sepsis_hours(
    hospital: Hospital, lead: timedelta = timedelta(hours=6), after: timedelta = timedelta(hours=3)
) -> pd.DataFrame:
    """Hourly labels of intensive-care stays, in the manner of PhysioNet 2019.

    Prediction times are whole hours after the admission to intensive care, from the first on. ``label`` is 1 from
    ``lead`` before onset; a septic stay ends ``after`` its onset, as its record does there.

    Returns
    -------
    DataFrame with ``encounter_id``, ``prediction_time`` and ``label`` (0 or 1), sorted by encounter and time.
    """
    stays = hospital.encounters.loc[
        hospital.encounters["encounter_class"] == "icu", ["encounter_id", "icu_admission_time"]
    ]
    stays = stays.merge(hospital.truth[["encounter_id", "end_time", "onset_time"]], on="encounter_id")
    stays = stays.sort_values("encounter_id", kind="stable").reset_index(drop=True)
    began, ends, onset = stays["icu_admission_time"], stays["end_time"], stays["onset_time"]
    last_seen = hospital.events["available_time"].max() if len(hospital.events) else ends.max()
    until = ends.where(onset.isna(), pd.concat([ends, onset + after], axis=1).min(axis=1)).clip(
        upper=last_seen
    )
    hours = np.maximum(((until - began).dt.total_seconds() / 3600).to_numpy("float64").astype("int64"), 0)
    who = np.repeat(np.arange(len(stays)), hours)
    step = np.arange(hours.sum()) - np.repeat(np.cumsum(hours) - hours, hours) + 1
    time = (
        from_micros(micros(began)[who] + step * HOUR_US) if len(stays) else from_micros(np.zeros(0, "int64"))
    )
    warned = onset.iloc[who].reset_index(drop=True) - lead
    return pd.DataFrame(
        {
            "encounter_id": stays["encounter_id"].to_numpy()[who],
            "prediction_time": time,
            "label": (time >= warned).fillna(False).astype("int64").to_numpy(),
        }
    )
