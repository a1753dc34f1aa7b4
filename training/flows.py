"""Fit the flows of the bed forecast: arrivals an hour, time to bed, stays, and the mix of specialties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import PoissonRegressor

from features import census
from features.clock import HOUR_US, UTC_US, from_micros, micros
from features.labels.admissions import random_grid
from features.sources.moves import spells
from features.sources.visits import through_ed
from models.beds import DOORS, OTHER, BedModel, door_of
from models.flows import (
    ELAPSED_H,
    PARTS_OF_DAY,
    STAY_DAYS,
    ArrivalRate,
    Covariate,
    Moves,
    StayHazard,
    Stream,
    TimeTo,
    part_of_day,
)
from models.forecast import dispersion_of
from models.surge import AGE_GROUPS, Usual, age_group

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

QUANTILES: Final = 30
FEWEST: Final = 60
"""Fewer times than this make no row of their own in a table of times."""


def name_specialties(table: pd.DataFrame, least: int) -> tuple[str, ...]:
    """Specialties with enough admitted visits, commonest first; the rest together as ``other``."""
    first = table.loc[table["admitted"] & (table["specialty"] != "")].drop_duplicates("encounter_id")
    counts = first["specialty"].value_counts()
    large = [str(name) for name in counts.index[counts >= least] if name != OTHER]
    return (*large, OTHER) if len(large) < len(counts) or not large else tuple(large)


def specialty_codes(specialty: pd.Series, names: tuple[str, ...]) -> Ints:
    """Position of each specialty, ``other`` for rare ones if there is such a line, -1 where empty."""
    place = {name: k for k, name in enumerate(names)}
    other = place.get(OTHER, -1)
    return np.array([-1 if not s else place.get(s, other) for s in specialty], dtype="int64")


def grouped(specialty: pd.Series, names: Sequence[str]) -> pd.Series:
    """Specialties with rare ones renamed to ``other``; empty ones stay empty."""
    if OTHER not in names:
        return specialty
    return specialty.mask(~specialty.isin([*names, ""]), OTHER)


def grouped_visits(visits: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Visits with rare specialties renamed to ``other``."""
    return visits.assign(specialty=grouped(visits["specialty"], names))


def fit_rate(
    times: pd.Series,
    first: pd.Timestamp,
    last: pd.Timestamp,
    timezone: str,
    holidays: str,
    covariates: pd.DataFrame | None = None,
) -> ArrivalRate:
    """Hourly arrivals by Poisson regression, and the variance of the factor that the hours of a day share.

    ``covariates`` are daily series (:func:`features.sources.outlook.read_covariates`), read as they were known a day
    later; hours at which one was not known count as usual.
    """
    hours = census.hours_between(first, last)
    calendar = census.calendar(hours, timezone, holidays)
    counts = census.hourly_counts(times, hours)
    if counts.sum() == 0:
        return ArrivalRate(-20.0, (0.0,) * 24, (0.0,) * 7, (0.0,) * 24)
    outside, usual = _outside(covariates, calendar)
    design = np.concatenate([_calendar_design(calendar), outside.fillna(0.0).to_numpy("float64")], axis=1)
    fitted = PoissonRegressor(alpha=2e-4, solver="newton-cholesky", max_iter=100).fit(design, counts)
    day = pd.factorize(calendar["local_date"])[0]
    expected = np.bincount(day, weights=fitted.predict(design)).astype("float64")
    c = [float(v) for v in fitted.coef_]
    return ArrivalRate(
        intercept=float(fitted.intercept_),
        hour=tuple(c[:24]),
        weekday=tuple(c[24:31]),
        weekend_hour=tuple(c[31:55]),
        holiday=c[55],
        season=(c[56], c[57]),
        dispersion=dispersion_of(np.bincount(day, weights=counts).astype("int64"), expected),
        covariates=tuple(
            Covariate(str(name), float(usual[name]), weight)
            for name, weight in zip(outside.columns, c[58:], strict=True)
        ),
    )


def _calendar_design(calendar: pd.DataFrame) -> Floats:
    hour, weekday = calendar["hour_of_day"].to_numpy(), calendar["weekday"].to_numpy()
    turn = 2 * np.pi * calendar["day_of_year"].to_numpy("float64") / 365.25
    season = np.stack([np.sin(turn), np.cos(turn)], axis=1) * float(len(calendar) > 300 * 24)
    weekend = np.eye(24)[hour] * (weekday >= 5)[:, None]
    free = calendar[["holiday"]].to_numpy("float64")
    return np.concatenate([np.eye(24)[hour], np.eye(7)[weekday], weekend, free, season], axis=1)


def _outside(covariates: pd.DataFrame | None, calendar: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Outside series by hour, less their usual values, and those: medians."""
    if covariates is None:
        return pd.DataFrame(index=calendar.index), pd.Series(dtype="float64")
    known = census.lagged_covariates(covariates, calendar["local_date"])
    known = known[[c for c in known.columns if known[c].notna().any()]]
    usual = known.median()
    return known - usual, usual


def fit_stream(
    visits: pd.DataFrame,
    names: tuple[str, ...],
    first: pd.Timestamp,
    last: pd.Timestamp,
    timezone: str,
    holidays: str,
    covariates: pd.DataFrame | None = None,
) -> Stream:
    """Everything about those still to come through one door, from the visits that did."""
    came = visits[(visits["arrival_time"] >= first) & (visits["arrival_time"] < last)]
    hour = came["arrival_time"].dt.tz_convert(timezone).dt.hour.to_numpy("int64")
    admitted = (came["decision_time"].notna() | came["admission_time"].notna()).to_numpy()
    code = specialty_codes(came["specialty"], names)
    usual = admitted.mean() if len(came) else 0.0
    n, yes = np.bincount(hour, minlength=24), np.bincount(hour, weights=admitted, minlength=24)
    mix = np.zeros((24, len(names)))
    np.add.at(mix, (hour[code >= 0], code[code >= 0]), 1.0)
    mean = (mix.sum(axis=0) + 1) / (mix.sum() + len(names))
    mix = (mix + 100 * mean) / (mix.sum(axis=1, keepdims=True) + 100)
    bedded = came["admission_time"].notna().to_numpy()
    to_bed = (came["admission_time"] - came["arrival_time"])[bedded].dt.total_seconds().to_numpy() / 3600
    part = part_of_day(hour[bedded])
    return Stream(
        rate=fit_rate(came["arrival_time"], first, last, timezone, holidays, covariates),
        admitted=tuple(float(v) for v in (yes + 50 * usual) / (n + 50)),
        mix=tuple(tuple(float(v) for v in row) for row in mix),
        time_to_bed=TimeTo(tuple((_knots(to_bed[part == k], to_bed),) for k in range(PARTS_OF_DAY))),
    )


def _knots(hours: Floats, otherwise: Floats) -> tuple[float, ...]:
    """Quantiles of hours at the middles of equal shares; of ``otherwise`` where there are too few."""
    some = hours if len(hours) >= FEWEST else otherwise
    if len(some) == 0:
        some = np.array([4.0])
    middles = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return tuple(round(float(v), 2) for v in np.quantile(some, middles))


def fit_time_to(elapsed: Floats, to_go: Floats, hour: Ints) -> TimeTo:
    """Time still to go by part of the day now and by time already spent."""
    kept = ~np.isnan(to_go) & (to_go >= 0)
    elapsed, to_go, part = elapsed[kept], to_go[kept], part_of_day(hour[kept])
    bin_ = np.clip(np.searchsorted(ELAPSED_H, elapsed, side="right") - 1, 0, None)
    pooled, before = [], to_go
    for k in range(len(ELAPSED_H)):
        every = to_go[bin_ == k]
        before = every if len(every) >= FEWEST else before
        pooled.append(before)
    return TimeTo(
        tuple(
            tuple(_knots(to_go[(bin_ == k) & (part == p)], pooled[k]) for k in range(len(ELAPSED_H)))
            for p in range(PARTS_OF_DAY)
        )
    )


def fit_waits(visits: pd.DataFrame, grid: pd.Series, timezone: str, door: bool) -> TimeTo:
    """Time to bed of those decided and waiting, seen at the times of a grid; ``door`` True = through the ED."""
    some = visits[
        (through_ed(visits) == door) & visits["admission_time"].notna() & visits["decision_time"].notna()
    ]
    times = micros(grid)
    first = np.searchsorted(times, micros(some["decision_time"]), side="left")
    n = np.maximum(np.searchsorted(times, micros(some["admission_time"]), side="left") - first, 0)
    who = np.repeat(np.arange(len(some)), n)
    seen = times[first[who] + np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)]
    elapsed = (seen - micros(some["decision_time"])[who]) / HOUR_US
    to_go = (micros(some["admission_time"])[who] - seen) / HOUR_US
    hour = from_micros(seen).dt.tz_convert(timezone).dt.hour.to_numpy("int64")
    return fit_time_to(elapsed, to_go, hour)


def fit_stays(
    stays: pd.DataFrame, names: tuple[str, ...], first: pd.Timestamp, last: pd.Timestamp, timezone: str
) -> StayHazard:
    """Discharges an hour by specialty x stay so far, local hour and weekday: Poisson regression on patient-hours.

    ``stays`` are rows of :func:`features.sources.moves.spells`; a spell that ends with a move is censored there.
    """
    first = max(first, last - pd.Timedelta(days=400))
    some = stays[(stays["start"] < last) & ~(stays["end"] <= first)]
    code = specialty_codes(some["specialty"], names)
    some, code = some[code >= 0], code[code >= 0]
    came, end = micros(some["start"]), last.value // 1000
    left = some["end"].fillna(last + pd.Timedelta(days=1)).astype(UTC_US).astype("int64").to_numpy()
    start_h = np.maximum(came, first.value // 1000) // HOUR_US
    stop_h = np.minimum(left, end - 1) // HOUR_US
    n = np.maximum(stop_h - start_h + 1, 0)
    who = np.repeat(np.arange(len(came)), n)
    hour_us = (start_h[who] + np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)) * HOUR_US
    home = (some["next"] == "").to_numpy()[who]
    gone = home & (left[who] // HOUR_US * HOUR_US == hour_us) & (left[who] < end)
    local = from_micros(hour_us).dt.tz_convert(timezone)
    stay_days = np.maximum(hour_us - came[who], 0) / HOUR_US / 24
    bin_ = np.clip(np.searchsorted(STAY_DAYS, stay_days, side="right") - 1, 0, None)
    shape = (len(names), len(STAY_DAYS), 24, 7)
    cell = np.ravel_multi_index(
        (code[who], bin_, local.dt.hour.to_numpy(), local.dt.weekday.to_numpy()), shape
    )
    at_risk = np.bincount(cell, minlength=int(np.prod(shape))).astype("float64")
    events = np.bincount(cell, weights=gone, minlength=int(np.prod(shape))).astype("float64")
    return _hazard(at_risk, events, shape)


def _hazard(at_risk: Floats, events: Floats, shape: tuple[int, int, int, int]) -> StayHazard:
    used = at_risk > 0
    spec, bin_, hour, weekday = (a[used] for a in np.unravel_index(np.arange(len(at_risk)), shape))
    pair = spec * shape[1] + bin_
    design = np.concatenate([np.eye(shape[0] * shape[1])[pair], np.eye(24)[hour], np.eye(7)[weekday]], axis=1)
    fitted = PoissonRegressor(alpha=1e-6, solver="newton-cholesky", max_iter=100)
    fitted.fit(design, events[used] / at_risk[used], sample_weight=at_risk[used])
    c, k = fitted.coef_, shape[0] * shape[1]
    base = (c[:k] + fitted.intercept_).reshape(shape[:2])
    return StayHazard(
        base=tuple(tuple(float(v) for v in row) for row in base),
        hour=tuple(float(v) for v in c[k : k + 24]),
        weekday=tuple(float(v) for v in c[k + 24 :]),
    )


def fit_moves(stays: pd.DataFrame, names: tuple[str, ...], first: pd.Timestamp, last: pd.Timestamp) -> Moves:
    """Moves a patient-hour by specialty, and where they go, from spells; rates are pulled to the mean of all."""
    some = stays[(stays["start"] < last) & ~(stays["end"] <= first)]
    code, target = specialty_codes(some["specialty"], names), specialty_codes(some["next"], names)
    until = np.minimum(micros(some["end"].fillna(last)), last.value // 1000)
    hours = (until - np.maximum(micros(some["start"]), first.value // 1000)) / HOUR_US
    moved = (code >= 0) & (target >= 0) & (target != code) & (some["end"] < last).to_numpy()
    k = len(names)
    if not moved.any():
        return Moves.none(k)
    count = np.bincount(code[moved] * k + target[moved], minlength=k * k).reshape(k, k).astype("float64")
    spent = np.bincount(code[code >= 0], weights=hours[code >= 0], minlength=k)
    prior = count.sum() / spent.sum()
    rate = (count.sum(axis=1) + 2) / (spent + 2 / prior)
    towards = count + (count.sum(axis=0) + 1) / (count.sum() + k) * (1 - np.eye(k))
    destination = towards / towards.sum(axis=1, keepdims=True) if k > 1 else np.ones((1, 1))
    return Moves(tuple(float(v) for v in rate), tuple(tuple(float(v) for v in row) for row in destination))


def fit_usual(
    visits: pd.DataFrame, names: tuple[str, ...], first: pd.Timestamp, last: pd.Timestamp, dispersion: float
) -> Usual:
    """Who comes through the emergency department: shares of age groups, and of those admitted by specialty."""
    came = visits[through_ed(visits) & (visits["arrival_time"] >= first) & (visits["arrival_time"] < last)]
    group, code = age_group(came["age_years"]), specialty_codes(came["specialty"], names)
    n = max(len(came), 1)
    ages = np.bincount(group[group >= 0], minlength=len(AGE_GROUPS)) / n
    admitted = np.bincount(code[code >= 0], minlength=len(names)) / n
    return Usual(tuple(float(v) for v in ages), tuple(float(v) for v in admitted), dispersion)


def fit_flows(
    visits: pd.DataFrame,
    snapshots: pd.DataFrame,
    names: tuple[str, ...],
    first: pd.Timestamp,
    until: pd.Timestamp,
    timezone: str,
    holidays: str,
    moves: pd.DataFrame,
    covariates: pd.DataFrame | None = None,
) -> BedModel:
    """All parts of the bed model but the classifier, from ``[first, until)``; no correction yet.

    ``snapshots`` are rows of :class:`features.labels.admissions.Snapshots` from that time; ``moves`` and
    ``covariates`` are as :mod:`features.sources.moves` and :mod:`features.sources.outlook` read them.
    """
    visits = grouped_visits(visits, names)
    grid = random_grid(first, until, np.random.default_rng(5))
    past = visits[visits["arrival_time"] < until]
    some = snapshots[snapshots["admitted"].to_numpy(bool)]
    elapsed = (some["prediction_time"] - some["arrival_time"]).dt.total_seconds().to_numpy() / 3600
    hour = some["prediction_time"].dt.tz_convert(timezone).dt.hour.to_numpy("int64")
    stays, door = spells(visits, moves), door_of(past)
    streams = {
        name: fit_stream(
            past[door == name], names, first, until, timezone, holidays,
            covariates if name == "emergency" else None,
        )
        for name in DOORS
    }  # fmt: skip
    return BedModel(
        specialties=names,
        streams=streams,
        decided=fit_waits(past, grid, timezone, True),
        undecided=fit_time_to(elapsed, some["hours_to_bed"].to_numpy("float64"), hour),
        theatre=fit_waits(past, grid, timezone, False),
        stays=fit_stays(stays, names, first, until, timezone),
        moves=fit_moves(stays, names, first, until),
        usual=fit_usual(past, names, first, until, streams["emergency"].rate.dispersion),
        corrections={},
        holidays=holidays,
    )
