"""Time: UTC instants, lookbacks, targets and grids of prediction times.

Inside the house an instant is UTC. Tables hold it as ``datetime64[us, UTC]``, kernels as int64 microseconds since
1970-01-01T00:00Z.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.errors import DataError

UTC_US = pd.DatetimeTZDtype("us", "UTC")
MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
STAY_US = np.iinfo(np.int64).max
"""A lookback that reaches back to the first event of the encounter."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an outcome must fall to count for a prediction made at ``t``.

    The window is ``(t + gap, t + gap + horizon]``: open, then closed, so that neighbouring windows neither overlap
    nor leave a hole.
    """

    gap: timedelta
    horizon: timedelta

    def __post_init__(self) -> None:
        if self.gap < timedelta(0) or self.horizon <= timedelta(0):
            raise ValueError(
                f"Target needs gap >= 0 and horizon > 0, got gap={self.gap}, horizon={self.horizon}."
            )


def parse_lookback(text: str) -> int:
    """Microseconds of a lookback such as ``"6h"``, ``"7d"``, ``"30min"``; ``"stay"`` means the whole encounter.

    Raises
    ------
    DataError
        The text is none of these, or is not positive.
    """
    if text == "stay":
        return int(STAY_US)
    try:
        delta = pd.Timedelta(re.sub(r"d$", "D", text))
    except ValueError:
        delta = pd.Timedelta(0)
    if delta < pd.Timedelta(microseconds=1):
        raise DataError(
            f"Lookback {text!r} is not a positive duration. Write for example '6h', '7d' or 'stay'."
        )
    return int(delta / pd.Timedelta(microseconds=1))


def to_utc(values: object, column: str = "time", timezone: str = "UTC") -> pd.Series:
    """Read instants as ``datetime64[us, UTC]``; naive ones are taken to be in ``timezone``.

    Raises
    ------
    DataError
        Some value is not an instant; says in which column and how many.
    """
    series = pd.Series(values)
    if isinstance(series.dtype, pd.DatetimeTZDtype):
        return series.astype(UTC_US)
    if series.dtype.kind == "M":
        local: pd.Series = series.dt.tz_localize(ZoneInfo(timezone))
        return local.astype(UTC_US)
    try:
        parsed: Any = [None if pd.isna(v) else _instant(v, timezone) for v in series]
    except (ValueError, TypeError):
        raise DataError(
            f"Column {column!r} holds values that are not instants. "
            "Write ISO 8601 with an offset, for example 2026-01-12T08:00:00Z."
        ) from None
    return pd.Series(pd.to_datetime(parsed, utc=True), index=series.index).astype(UTC_US)


def _instant(value: object, timezone: str) -> pd.Timestamp:
    stamp = pd.Timestamp(value)  # type: ignore[arg-type]
    return stamp.tz_localize(ZoneInfo(timezone)) if stamp.tzinfo is None else stamp


def micros(instants: pd.Series) -> npt.NDArray[np.int64]:
    """Int64 microseconds since the epoch of a ``datetime64[us, UTC]`` series without NaT."""
    if instants.isna().any():
        raise DataError(f"Column {instants.name!r} has {int(instants.isna().sum()):,} empty times.")
    return np.asarray(instants.astype(UTC_US).astype("int64"), dtype=np.int64)


def from_micros(values: npt.NDArray[np.int64]) -> pd.Series:
    """The inverse of :func:`micros`."""
    return pd.Series(pd.to_datetime(values, unit="us", utc=True)).astype(UTC_US)


def hourly_grid(first: datetime, last: datetime) -> pd.Series:
    """Prediction times every hour from ``first`` to ``last``, both included."""
    return pd.Series(pd.date_range(first, last, freq="1h")).astype(UTC_US)
