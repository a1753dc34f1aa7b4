"""How many: arrivals, admissions, discharges and occupancy by hour, day and specialty, and the calendar beside them.

Hours are UTC and all sixty minutes long; days are local. A local day has 23 or 25 hours when the clocks change, and
every count here knows it, since an hour is only ever assigned to a day, never multiplied by 24.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import HOUR_US, UTC_US, micros
from features.errors import DataError

Ints = npt.NDArray[np.int64]


def hours_between(start: datetime, end: datetime) -> pd.Series:
    """The starts of the whole UTC hours in ``[start, end)``; ``start`` is rounded down to its hour."""
    return pd.Series(
        pd.date_range(pd.Timestamp(start).floor("h"), pd.Timestamp(end), freq="1h", inclusive="left"),
        dtype=UTC_US,
    )


def local_midnight(day: date, timezone: str) -> pd.Timestamp:
    """The instant, in UTC, at which a local day begins; the day after begins 23, 24 or 25 hours later."""
    wall = pd.Timestamp(day.year, day.month, day.day)
    return wall.tz_localize(ZoneInfo(timezone), ambiguous=True, nonexistent="shift_forward").tz_convert("UTC")


def calendar(instants: pd.Series, timezone: str, holidays: str = "") -> pd.DataFrame:
    """What the local calendar says of each instant.

    Parameters
    ----------
    instants : Series of datetime64[us, UTC], shape (n,)
    timezone : str
    holidays : str
        Country, with subdivision after a hyphen if wanted (``GB-ENG``), for public holidays; empty for none.

    Returns
    -------
    DataFrame, shape (n, 5)
        ``local_date`` (datetime64, midnight, no zone), ``hour_of_day`` (0 to 23), ``weekday`` (Monday 0),
        ``holiday`` (0 or 1), ``day_of_year`` (1 to 366).
    """
    local = instants.dt.tz_convert(ZoneInfo(timezone))
    day = local.dt.tz_localize(None).dt.normalize()
    free = public_holidays(holidays, sorted({int(y) for y in day.dt.year.unique()}))
    return pd.DataFrame(
        {
            "local_date": day,
            "hour_of_day": local.dt.hour.astype("int64"),
            "weekday": local.dt.weekday.astype("int64"),
            "holiday": day.isin(pd.to_datetime(free)).astype("int64"),
            "day_of_year": local.dt.dayofyear.astype("int64"),
        }
    )


def lagged_covariates(series: pd.DataFrame, days: pd.Series, delay_days: int = 1) -> pd.DataFrame:
    """What was known of each daily series on each local day: the logarithm of 1 + the mean of its last seven values.

    Parameters
    ----------
    series : DataFrame
        ``date`` (datetime64, midnight, no zone) and one column of numbers a series; gaps are allowed.
    days : Series of datetime64, shape (n,)
    delay_days : int
        A day's value is known so many days after it, from midnight on; at least 1.

    Returns
    -------
    DataFrame, shape (n, n_series); NaN where nothing of the last seven days was known.
    """
    names = [c for c in series.columns if c != "date"]
    daily = series.groupby("date")[names].mean().sort_index()
    if daily.empty:
        return pd.DataFrame(np.nan, index=days.index, columns=names)
    whole = daily.reindex(pd.date_range(daily.index[0], days.max(), freq="1D"))
    week: pd.DataFrame = whole.clip(lower=0).rolling(7, min_periods=1).mean().apply(np.log1p)
    known: pd.DataFrame = week.reindex(days - pd.Timedelta(days=delay_days)).set_index(days.index)
    return known


def public_holidays(place: str, years: Sequence[int]) -> list[date]:
    """Public holidays of some years in a country, with subdivision after a hyphen if wanted (``GB-ENG``).

    Raises
    ------
    DataError
        There is no such place.
    """
    if not place or not years:
        return []
    import holidays as table

    country, _, part = place.partition("-")
    try:
        return sorted(table.country_holidays(country, subdiv=part or None, years=list(years)))
    except NotImplementedError:
        raise DataError(
            f"There are no holidays of {place!r}. Write a country, such as IE, or a part of one, such as GB-ENG."
        ) from None


def hourly_counts(times: pd.Series, hours: pd.Series) -> Ints:
    """How many of ``times`` fall into each of the consecutive ``hours`` (closed, then open); empty times are none."""
    if hours.empty:
        return np.zeros(0, "int64")
    edges = np.append(micros(hours), micros(hours.iloc[-1:]) + HOUR_US)
    return np.asarray(np.diff(np.searchsorted(np.sort(micros(times.dropna())), edges, side="left")), "int64")


def hourly_counts_by(
    visits: pd.DataFrame, column: str, hours: pd.Series, by: str, names: Sequence[str]
) -> Ints:
    """Counts of one of a visit's times by hour and category, shape (n_hours, n_names)."""
    parts = [hourly_counts(visits.loc[visits[by] == name, column], hours) for name in names]
    return np.stack(parts, axis=1) if parts else np.zeros((len(hours), 0), "int64")


def daily_counts(times: pd.Series, timezone: str, first: date, last: date) -> pd.Series:
    """How many of ``times`` fall on each local day from ``first`` to ``last``, both included; index = local date."""
    day = times.dropna().dt.tz_convert(ZoneInfo(timezone)).dt.tz_localize(None).dt.normalize()
    days = pd.date_range(first, last, freq="1D", unit="us")
    counts: pd.Series = day.value_counts().reindex(days, fill_value=0).astype("int64").rename("count")
    return counts


def count_between(times: pd.Series, start: datetime, end: datetime) -> int:
    """How many of ``times`` fall into ``(start, end]``, the way windows count."""
    return int(((times > pd.Timestamp(start)) & (times <= pd.Timestamp(end))).sum())


def occupancy(visits: pd.DataFrame, instants: pd.Series, names: Sequence[str], by: str = "specialty") -> Ints:
    """Patients in beds at each instant, by category, shape (n_instants, n_names).

    In a bed from ``admission_time`` (included) to ``discharge_time`` (excluded); an empty discharge is still there.
    """
    at = micros(instants)
    out = np.zeros((len(at), len(names)), dtype="int64")
    bedded = visits[visits["admission_time"].notna()]
    for k, name in enumerate(names):
        some = bedded[bedded[by] == name]
        came = np.sort(micros(some["admission_time"]))
        left = np.sort(micros(some["discharge_time"].dropna()))
        out[:, k] = np.searchsorted(came, at, side="right") - np.searchsorted(left, at, side="right")
    return out


def inpatients(visits: pd.DataFrame, at: datetime) -> pd.DataFrame:
    """Who is in a bed at an instant."""
    now = pd.Timestamp(at)
    there = (visits["admission_time"] <= now) & ~(visits["discharge_time"] <= now)
    return visits.loc[there].reset_index(drop=True)


def waiting(visits: pd.DataFrame, at: datetime) -> pd.DataFrame:
    """Who is decided to need a bed and has none at an instant: known demand."""
    now = pd.Timestamp(at)
    there = (
        (visits["decision_time"] <= now)
        & ~(visits["admission_time"] <= now)
        & ~(visits["discharge_time"] <= now)
    )
    return visits.loc[there].reset_index(drop=True)


def undecided(visits: pd.DataFrame, at: datetime) -> pd.DataFrame:
    """Who is in the emergency department at an instant with nothing decided yet."""
    from features.sources.visits import through_ed

    now = pd.Timestamp(at)
    there = (
        through_ed(visits)
        & (visits["arrival_time"] <= now)
        & ~(visits["decision_time"] <= now)
        & ~(visits["admission_time"] <= now)
        & ~(visits["discharge_time"] <= now)
    )
    return visits.loc[there].reset_index(drop=True)
