"""What a site knows beside its visits: moves between specialties, the elective list, daily series from outside.

``moves.csv`` is described in :mod:`features.sources.moves`. ``elective.csv`` has one row a planned patient:
``planned_time, specialty``. ``covariates.csv`` has one row a day: ``date`` and a column of numbers for each series,
such as ``respiratory_virus`` or ``ambulances``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pandas as pd

from features.errors import DataError
from features.sources import moves as move_source
from features.sources.visits import instants, load_table

ELECTIVE_COLUMNS: Final[dict[str, str]] = {
    "planned_time": "when the patient is due to come",
    "specialty": "service of the planned stay",
}
COVARIATE_COLUMNS: Final[dict[str, str]] = {
    "date": "local day, 2026-01-12",
    "…": "any further column: numbers, one daily series each",
}


@dataclass(frozen=True)
class Outlook:
    """The tables a forecast may read beside visits and observations; what is not there is not read."""

    moves: pd.DataFrame = field(default_factory=move_source.no_moves)
    elective: pd.DataFrame | None = None
    covariates: pd.DataFrame | None = None

    @classmethod
    def read(cls, folder: Path, timezone: str = "UTC") -> Outlook:
        """Whatever there is of ``moves``, ``elective`` and ``covariates`` in a folder, as ``.parquet`` or ``.csv``.

        Raises
        ------
        DataError
            One of them cannot be used.
        """
        moves, elective, series = (beside(folder, n) for n in ("moves", "elective", "covariates"))
        return cls(
            moves=move_source.read(moves, timezone) if moves else move_source.no_moves(),
            elective=read_elective(elective, timezone) if elective else None,
            covariates=read_covariates(series) if series else None,
        )


def beside(folder: Path, name: str) -> Path | None:
    """``name.parquet`` or ``name.csv`` of a folder, if one is there."""
    files = [folder / f"{name}.parquet", folder / f"{name}.csv"]
    return next((f for f in files if f.is_file()), None)


def read_elective(path: Path, timezone: str = "UTC") -> pd.DataFrame:
    """The elective list, sorted by planned time.

    Raises
    ------
    DataError
        A column is missing, or a time cannot be read.
    """
    raw = load_table(path)
    absent = [c for c in ELECTIVE_COLUMNS if c not in raw.columns]
    if absent:
        raise DataError(
            f"{path.name} lacks {', '.join(absent)}. An elective list has planned_time,specialty."
        )
    times, bad, _ = instants(raw["planned_time"], len(raw), timezone)
    if bad.any() or times.isna().any():
        raise DataError(
            f"{int((bad | times.isna()).sum()):,} rows of {path.name} have no planned_time that can be read. "
            "Write ISO 8601, for example 2026-01-12T07:30."
        )
    listed = pd.DataFrame(
        {"planned_time": times, "specialty": raw["specialty"].fillna("").astype("str").str.strip()}
    )
    return listed.sort_values("planned_time", kind="stable").reset_index(drop=True)


def read_covariates(path: Path) -> pd.DataFrame:
    """Daily series: ``date`` (datetime64, no zone) and float64 columns; missing values stay missing.

    Raises
    ------
    DataError
        There is no ``date``, no series, or something that is neither a date nor a number.
    """
    raw = load_table(path)
    names = [c for c in raw.columns if c != "date"]
    if "date" not in raw.columns or not names:
        raise DataError(f"{path.name} needs the column date and at least one series of numbers.")
    date = pd.to_datetime(raw["date"], errors="coerce", format="ISO8601")
    table = raw[names].apply(pd.to_numeric, errors="coerce").astype("float64")
    wrong = [c for c in names if bool((table[c].isna() & raw[c].notna()).any())]
    if date.isna().any() or wrong:
        what = ", ".join([*(["date"] if date.isna().any() else []), *wrong])
        raise DataError(
            f"{path.name} holds values that cannot be read in {what}. Dates are 2026-01-12, series numbers."
        )
    dated = table.assign(date=date.dt.tz_localize(None).dt.normalize())
    chosen: pd.DataFrame = dated[["date", *names]].sort_values("date", kind="stable").reset_index(drop=True)
    return chosen
