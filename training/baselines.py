"""The humble forecasts that every model must beat, and by how much is said in its evaluation."""

from __future__ import annotations

from datetime import timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from features import census
from models.forecast import Counts, negative_binomial


def same_window_before(
    start: pd.Timestamp, end: pd.Timestamp, timezone: str, weeks: int = 6
) -> list[tuple[pd.Timestamp, pd.Timestamp]]:
    """The same window, at the same wall-clock time, of each of the last ``weeks`` weeks."""
    zone = ZoneInfo(timezone)
    return [(_weeks_before(start, k, zone), _weeks_before(end, k, zone)) for k in range(1, weeks + 1)]


def same_weekday_mean(
    times: pd.Series, start: pd.Timestamp, end: pd.Timestamp, timezone: str, weeks: int = 6
) -> float:
    """Mean count of ``times`` in the same window on the same weekday of the last ``weeks`` weeks.

    The window is ``(start, end]``; ``times`` must be complete over the weeks before.
    """
    before = same_window_before(start, end, timezone, weeks)
    return float(np.mean([census.count_between(times, a, b) for a, b in before]))


def same_weekday_poisson(mean: float) -> Counts:
    """The baseline as a distribution: Poisson around the same-weekday mean (what patientflow makes of arrivals)."""
    return negative_binomial(mean)


def _weeks_before(at: pd.Timestamp, weeks: int, zone: ZoneInfo) -> pd.Timestamp:
    wall = at.tz_convert(zone).tz_localize(None) - timedelta(weeks=weeks)
    return wall.tz_localize(zone, ambiguous=True, nonexistent="shift_forward").tz_convert("UTC")
