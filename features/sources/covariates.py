"""What else may be known when counts are forecast: weather, virus and ambulance series, calendars of a site's own.

A table has a stamp and other columns, and is one of three kinds, told by its columns or by a mapping (``kind``):

``issued``    forecasts with the time they were issued: at each origin only what had been issued by then is read
``calendar``  known years ahead: names of holidays or terms (any text), or 0 and 1; one row a day or hour
``observed``  numbers known once their stamp has passed; ``delay_h`` says how much later they are published

Stamps are on the same wall clock as the counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.errors import DataError
from features.sources.counts import TIME_NAMES, has, load, wall_clock
from features.sources.vocabulary import toml

Floats = npt.NDArray[np.float64]

KINDS: Final = ("issued", "calendar", "observed")
KEYS: Final[dict[str, str]] = {
    "kind": "issued, calendar or observed; told by the columns if not said",
    "time": "the column with the day or hour that a row is about",
    "issued": "the column with the time a forecast was issued",
    "values": "the columns to read; all others that can be read if not said",
    "delay_h": "hours from a stamp, or an issue, until the hospital has it",
}
ISSUED_NAMES: Final = ("issuetime", "issue_time", "issued", "issued_at", "reference_time")
TARGET_NAMES: Final = ("targettime", "target_time", "valid_time", *TIME_NAMES)
BACK: Final = 4
"""So many earlier issues are asked where the latest does not reach a target."""


@dataclass(frozen=True)
class Calendar:
    """Flags known ahead, by stamp."""

    names: tuple[str, ...]
    stamps: pd.DatetimeIndex
    values: Floats
    daily: bool

    def at(self, stamps: pd.DatetimeIndex) -> Floats:
        """Flags at each stamp, shape (n, n_flags); 0 where the table says nothing."""
        place = self.stamps.get_indexer(stamps.normalize() if self.daily else stamps)
        return np.where(place[:, None] >= 0, self.values[place], 0.0)


@dataclass(frozen=True)
class Issued:
    """Forecasts of something else, with when each was in hand; shape (n_issues, n_leads) by column."""

    names: tuple[str, ...]
    known: npt.NDArray[np.int64]
    """When each issue was in hand, ns, rising."""
    rows: pd.DataFrame
    """Values by (issue, target)."""

    def at(self, origins: pd.DatetimeIndex, targets: pd.DatetimeIndex) -> Floats:
        """The newest value in hand at each origin for its target, shape (n, n_columns); NaN where there is none."""
        last = np.searchsorted(self.known, _ns(origins), side="right") - 1
        found = np.full((len(origins), len(self.names)), np.nan)
        for back in range(BACK):
            index = pd.MultiIndex.from_arrays([last - back, targets])
            new = self.rows.reindex(index).to_numpy("float64")
            found = np.where(np.isnan(found), new, found)
        return found


@dataclass(frozen=True)
class Observed:
    """Numbers known some time after their stamp."""

    names: tuple[str, ...]
    known: npt.NDArray[np.int64]
    values: Floats

    def at(self, origins: pd.DatetimeIndex) -> Floats:
        """The newest number in hand at each origin, and its change over 7 rows; shape (n, 2 n_columns)."""
        last = np.searchsorted(self.known, _ns(origins), side="right") - 1
        now = np.where(last[:, None] >= 0, self.values[np.maximum(last, 0)], np.nan)
        week = np.where(last[:, None] >= 7, self.values[np.maximum(last - 7, 0)], np.nan)
        return np.concatenate([now, now - week], axis=1)


@dataclass(frozen=True)
class Covariates:
    """All that was given."""

    calendars: tuple[Calendar, ...] = ()
    issued: tuple[Issued, ...] = ()
    observed: tuple[Observed, ...] = ()

    def lines(self) -> list[str]:
        """What is read, in words."""
        return [
            f"{kind}: {', '.join(c.names)}."
            for kind, some in (
                ("calendar", self.calendars), ("issued forecast", self.issued), ("observed", self.observed),
            )
            for c in some
        ]  # fmt: skip

    def flags(self, stamps: pd.DatetimeIndex) -> Floats:
        """Every calendar's flags, shape (n, n_flags)."""
        return _side_by_side([c.at(stamps) for c in self.calendars], len(stamps))

    def numbers(self, origins: pd.DatetimeIndex, targets: pd.DatetimeIndex) -> Floats:
        """Every issued and observed number in hand at the origins, shape (n, n_numbers)."""
        forecast = [c.at(origins, targets) for c in self.issued]
        return _side_by_side([*forecast, *(c.at(origins) for c in self.observed)], len(origins))


def _side_by_side(parts: Sequence[Floats], n: int) -> Floats:
    return np.concatenate(parts, axis=1) if parts else np.zeros((n, 0))


def _ns(stamps: pd.DatetimeIndex) -> npt.NDArray[np.int64]:
    return np.asarray(stamps.as_unit("ns").asi8)


def read(paths: Sequence[Path], mapping: Path | None = None, timezone: str = "UTC") -> Covariates:
    """Read tables of covariates.

    Parameters
    ----------
    paths : sequence of Path
        Parquet, CSV or XLSX.
    mapping : Path, optional
        The mapping of the counts; its ``[covariates.NAME]`` tables, where NAME is a file's name without its ending,
        hold :data:`KEYS`.

    Raises
    ------
    DataError
        A table has no stamp, or nothing to read beside it.
    """
    told: Mapping[str, Any] = toml(mapping).get("covariates", {}) if mapping is not None else {}
    calendars: list[Calendar] = []
    issued: list[Issued] = []
    observed: list[Observed] = []
    for path in paths:
        raw, said = load(path), told.get(path.stem, {})
        kind, columns = _kind(raw, said, path.name)
        if kind == "calendar":
            calendars.append(_calendar(raw, columns, timezone))
        elif kind == "issued":
            issued.append(_issued(raw, columns, said, timezone))
        else:
            observed.append(_observed(raw, columns, said, timezone))
    return Covariates(tuple(calendars), tuple(issued), tuple(observed))


def _kind(raw: pd.DataFrame, said: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    strange = sorted(set(said) - set(KEYS))
    if strange:
        raise DataError(f"[covariates] says {', '.join(strange)}; known are {', '.join(KEYS)}.")
    lower = {str(c).strip().lower(): str(c) for c in raw.columns}
    issued = said.get("issued") or next((lower[n] for n in ISSUED_NAMES if n in lower), None)
    dates = [str(c) for c in raw.columns if raw[c].dtype.kind == "M" and str(c) != issued]
    time = (
        said.get("time")
        or next((lower[n] for n in TARGET_NAMES if n in lower), None)
        or next(iter(dates), None)
    )
    if time is None or time not in raw.columns:
        raise DataError(
            f"{name} has no stamp: no column is called {', '.join(TARGET_NAMES[3:6])}. {has(raw)} Name it in the "
            f'mapping file: [covariates.{Path(name).stem}] time = "COLUMN"'
        )
    rest = [str(c) for c in said.get("values", raw.columns) if str(c) not in (time, issued)]
    if not rest:
        raise DataError(f"{name} has a stamp and nothing else. {has(raw)} Add a column to read.")
    flags = all(raw[c].dtype.kind not in "iuf" or set(raw[c].dropna().unique()) <= {0, 1} for c in rest)
    kind = said.get("kind") or ("issued" if issued else "calendar" if flags else "observed")
    if kind not in KINDS:
        raise DataError(f"kind of {name} must be {', '.join(KINDS)}, got {kind!r}.")
    return str(kind), {"time": time, "issued": issued, "values": rest}


def _calendar(raw: pd.DataFrame, columns: Mapping[str, Any], timezone: str) -> Calendar:
    """One flag a column; a column of few words gives one a word as well, since Christmas is not Halloween."""
    stamps = wall_clock(raw[columns["time"]], timezone, columns["time"])[0]
    flags: dict[str, pd.Series] = {}
    for c in columns["values"]:
        if raw[c].dtype.kind in "iufb":
            flags[c] = (raw[c].fillna(0) != 0).astype("float64")
            continue
        words = raw[c].astype("str").str.strip().where(raw[c].notna(), "")
        flags[c] = (words != "").astype("float64")
    table = pd.DataFrame(flags).assign(stamp=stamps).dropna(subset=["stamp"]).groupby("stamp").max()
    index = pd.DatetimeIndex(table.index)
    daily = bool((index == index.normalize()).all())
    return Calendar(tuple(flags), index, table.to_numpy("float64"), daily)


def _issued(raw: pd.DataFrame, columns: Mapping[str, Any], said: Mapping[str, Any], timezone: str) -> Issued:
    issue = wall_clock(raw[columns["issued"]], timezone, columns["issued"])[0]
    target = wall_clock(raw[columns["time"]], timezone, columns["time"])[0]
    numbers = _numbers(raw, columns["values"])
    known = issue + pd.Timedelta(hours=float(said.get("delay_h", 0)))
    number, times = pd.factorize(known, sort=True)
    table = numbers.assign(_issue=number, _target=target).dropna(subset=["_target"])
    table = table[table["_issue"] >= 0].drop_duplicates(["_issue", "_target"], keep="last")
    return Issued(
        tuple(numbers.columns),
        _ns(pd.DatetimeIndex(times)),
        table.set_index(["_issue", "_target"]).sort_index(),
    )


def _observed(
    raw: pd.DataFrame, columns: Mapping[str, Any], said: Mapping[str, Any], timezone: str
) -> Observed:
    stamps = wall_clock(raw[columns["time"]], timezone, columns["time"])[0]
    numbers = _numbers(raw, columns["values"])
    table = numbers.assign(stamp=stamps).dropna(subset=["stamp"]).groupby("stamp").mean()
    index = pd.DatetimeIndex(table.index)
    dated = bool((index == index.normalize()).all())
    # A day's number is complete when the day is over, an hour's when the hour is.
    delay = pd.Timedelta(hours=float(said.get("delay_h", 0)) + (24 if dated else 1))
    return Observed(tuple(numbers.columns), _ns(index + delay), table.to_numpy("float64"))


def _numbers(raw: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    numbers = pd.DataFrame({c: pd.to_numeric(raw[c], errors="coerce").astype("float64") for c in columns})
    kept = numbers.loc[:, numbers.notna().any()]
    if kept.empty:
        raise DataError(f'None of {", ".join(columns)} holds numbers. Name others: values = ["COLUMN"].')
    return kept
