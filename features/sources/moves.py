"""Moves between specialties within a stay: who was where when.

A file of visits has one specialty a stay, the first. A file of moves beside it has one row for each later change:
``encounter_id, time, specialty`` and, if known, ``unit``. Without such a file every stay is one spell.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from features.clock import UTC_US
from features.errors import DataError
from features.sources.visits import instants, load_table

MOVE_COLUMNS: Final[dict[str, str]] = {
    "encounter_id": "the attendance, as in the visits",
    "time": "when the patient came under the other specialty",
    "specialty": "the specialty moved to",
    "unit": "the unit moved to; may be left out",
}


def no_moves() -> pd.DataFrame:
    """A table without a row."""
    texts = {c: pd.Series(dtype="str") for c in ("encounter_id", "specialty", "unit")}
    return pd.DataFrame({**texts, "time": pd.Series(dtype=UTC_US)})[list(MOVE_COLUMNS)]


def read(path: Path, timezone: str = "UTC") -> pd.DataFrame:
    """Read moves from CSV or Parquet; sorted by encounter and time.

    Raises
    ------
    DataError
        A column is missing, or a time cannot be read.
    """
    raw = load_table(path)
    absent = [c for c in ("encounter_id", "time", "specialty") if c not in raw.columns]
    if absent:
        raise DataError(
            f"{path.name} lacks {', '.join(absent)}. Moves have encounter_id, time, specialty, unit."
        )
    times, bad, _ = instants(raw["time"], len(raw), timezone)
    if bad.any() or times.isna().any():
        raise DataError(
            f"{int((bad | times.isna()).sum()):,} moves in {path.name} have no time that can be read. "
            "Write ISO 8601, for example 2026-01-12T08:00:00Z."
        )
    unit = raw["unit"] if "unit" in raw.columns else pd.Series("", index=raw.index)
    moves = pd.DataFrame(
        {
            "encounter_id": raw["encounter_id"].astype("str"),
            "time": times,
            "specialty": raw["specialty"].fillna("").astype("str"),
            "unit": unit.fillna("").astype("str"),
        }
    )
    return moves.sort_values(["encounter_id", "time"], kind="stable").reset_index(drop=True)


def located_at(visits: pd.DataFrame, moves: pd.DataFrame, at: datetime) -> pd.DataFrame:
    """Visits (as known at ``at``) under the specialty and in the unit of their latest move.

    Adds ``since``: when that specialty began, the admission where there was no move; NaT for who is in no bed.
    """
    known = moves[moves["time"] <= pd.Timestamp(at)].drop_duplicates("encounter_id", keep="last")
    if known.empty:  # usual where a site sends no moves
        return visits.assign(since=visits["admission_time"].astype(UTC_US))
    latest = known.set_index("encounter_id").reindex(visits["encounter_id"]).reset_index(drop=True)
    latest.index = visits.index
    bedded = visits["admission_time"].notna()
    moved = bedded & latest["time"].notna()
    to_unit = moved & (latest["unit"].fillna("") != "")
    return visits.assign(
        specialty=visits["specialty"].mask(moved, latest["specialty"]),
        unit=visits["unit"].mask(to_unit, latest["unit"]),
        since=visits["admission_time"].mask(moved, latest["time"]).astype(UTC_US),
    )


def spells(visits: pd.DataFrame, moves: pd.DataFrame) -> pd.DataFrame:
    """Each stay cut at its moves.

    Returns
    -------
    DataFrame
        ``specialty, start, end`` (NaT while it lasts) and ``next``: the specialty moved to, empty where the spell ended
        with the discharge or has not ended. Moves outside a stay, or to the same specialty, are left out.
    """
    bedded = visits.loc[
        visits["admission_time"].notna(), ["encounter_id", "specialty", "admission_time", "discharge_time"]
    ]
    inside = moves.merge(bedded.drop(columns="specialty"), on="encounter_id")
    inside = inside[
        (inside["time"] > inside["admission_time"]) & ~(inside["time"] >= inside["discharge_time"])
    ]
    first = bedded[["encounter_id", "specialty"]].assign(time=bedded["admission_time"])
    every = pd.concat([first, inside[["encounter_id", "specialty", "time"]]], ignore_index=True)
    every = every.sort_values(["encounter_id", "time"], kind="stable").reset_index(drop=True)
    same_stay = every["encounter_id"] == every["encounter_id"].shift()
    every = every[~(same_stay & (every["specialty"] == every["specialty"].shift()))].reset_index(drop=True)
    later = every.shift(-1)
    moved = np.asarray(every["encounter_id"] == later["encounter_id"])
    left = every["encounter_id"].map(bedded.set_index("encounter_id")["discharge_time"])
    return pd.DataFrame(
        {
            "specialty": every["specialty"],
            "start": every["time"].astype(UTC_US),
            "end": left.mask(moved, later["time"]).astype(UTC_US),
            "next": later["specialty"].where(moved, "").astype("str"),
        }
    )
