"""Issue forecasts of counted series as they would have been issued, origin after origin.

Models are fitted anew on a schedule, from what was stamped before the first origin of each stretch. Corrections are
learnt every week from the forecasts issued before it whose outcome had come by then: a stretch before the first origin
asked for is issued too, only to learn from.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.errors import DataError
from features.sources.counts import Panel
from features.sources.covariates import Covariates
from models.forecast import Recalibration
from models.series import (
    COVER,
    FINE,
    QUANTILES,
    WINDOWS_H,
    SharedEffect,
    Spread,
    corrected,
    count_cdf,
    count_quantiles,
)
from training import daily, hourly
from training.drivers import TOLD, Reasons

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Say = Callable[[int], None]
Explain = Callable[[Reasons], None]

WARM_DAYS: Final = 182
"""Days before the first origin asked for whose forecasts are issued to learn corrections from."""
LAST_CHRISTMAS_DAYS: Final = 385
"""Daily forecasts are issued so far back, that those of the last Christmas are among what is learnt from."""
WARM_REFIT_DAYS: Final = 91
CHECK_DAYS: Final = 14
"""Days of forecasts come true, at least, from which a first one takes its spread."""
MEMORY_DAYS: Final = 400
DAILY_MEMORY: Final = 180
STATED: Final = (*QUANTILES, COVER)
THINNED: Final = 3
"""Of past forecasts of overlapping windows every third lead is looked at: neighbours say nearly the same."""
LEAST_TOLD: Final = 28
"""Origins, at least, on which a fit is explained: what moves one alone says nothing of levels."""
OWN_WORTH: Final = 15.0
"""Past errors of a series from which its own spread counts as much as that of all."""
DRIFT_DAYS: Final = 3
"""Days of outcomes from which it is read how far all series are off together."""
DRIFT_SERIES: Final = 6
"""So many series must have an outcome on a day to speak of all of them."""
SHIFT_KEPT: Final = 0.5
"""Of what many series were off by together in the past, so much is expected again: it is one season's luck as much."""
DRIFT_WORTH: Final = 20.0
"""Days of belief that yesterday's shared error says nothing of tomorrow's."""
UNREST_WORTH: Final = 5.0
"""Days of belief that holidays are foreseen as well as other days; chosen on discharges of December 2023 and on the
sitreps of the winters 2017-18 and 2018-19."""
SHARED_DAYS: Final = 5.0
"""Forecasts so many days ahead are half as many independent ones as there are origins."""
MOST_KNOTS: Final = 2000
SEED: Final = 11


def least_days(panel: Panel) -> int:
    """Days of history to learn from, at least, before any forecast is issued."""
    return hourly.LEAST_DAYS if panel.step_h == 1 else daily.LEAST_DAYS


@dataclass(frozen=True)
class Schedule:
    """When forecasts are issued and models fitted, in steps of the grid (hours or days).

    Attributes
    ----------
    origins : int64
        Positions of every origin, those issued only to learn from first. Of hours the first one not known, of days
        the last one known.
    asked : int
        How many of them at the front were not asked for.
    every, horizon, refit, week : int
        Steps between origins, ahead, between fits, and between corrections.
    windows : tuple of int
        Of hours: lengths of the sums that are issued.
    """

    origins: Ints
    asked: int
    every: int
    horizon: int
    refit: int
    week: int
    windows: tuple[int, ...] = WINDOWS_H

    @classmethod
    def of(
        cls,
        panel: Panel,
        start: pd.Timestamp,
        until: pd.Timestamp | None,
        every: int,
        horizon: int,
        refit: int,
    ) -> Schedule:
        """Lay origins out from ``start`` on.

        Raises
        ------
        DataError
            There is too little history before ``start``, or no step after it.
        """
        day = 24 // panel.step_h
        least = least_days(panel) * day
        stop = len(panel.stamps) + (1 if panel.step_h == 1 else 0)
        if until is not None:
            stop = min(stop, int(panel.stamps.searchsorted(until, side="right")))
        first = int(panel.stamps.searchsorted(start))
        if first < least + CHECK_DAYS * day:
            raise DataError(
                f"{start:%Y-%m-%d} leaves {first // day:,} days of history, and {least // day + CHECK_DAYS} are "
                f"needed: {least // day} to learn from, {CHECK_DAYS} to check. Choose a later "
                "--from, or give more history."
            )
        if start > panel.stamps[-1] + (panel.step if panel.step_h == 1 else pd.Timedelta(0)):
            raise DataError(f"The counts end on {panel.stamps[-1]:%Y-%m-%d}, before --from {start:%Y-%m-%d}.")
        if stop <= first:
            raise DataError(f"--until {until:%Y-%m-%d %H:%M} lies before --from {start:%Y-%m-%d %H:%M}.")
        # Winter reports pause in summer: what is issued to learn from falls on days that have reports.
        reported = np.asarray(np.isfinite(panel.values[:, :first]).any(axis=0))
        before = np.arange(first - (first - least) // every * every, first, every)
        warm = before[reported[before]]
        n = WARM_DAYS * day // every
        if panel.step_h == 24:
            n = max(n, int((warm >= first - LAST_CHRISTMAS_DAYS).sum()))
        warm = warm[-n:]
        origins = np.concatenate([warm, np.arange(first, stop, every)])
        return cls(origins, int((origins < first).sum()), every, horizon, refit, 7 * day)

    def stretches(self) -> Iterator[Ints]:
        """Consecutive origins that one fit serves."""
        warm = WARM_REFIT_DAYS * self.week // 7
        for some, length in ((self.origins[: self.asked], warm), (self.origins[self.asked :], self.refit)):
            if len(some):
                group = (some - some[0]) // length
                yield from (some[group == g] for g in np.unique(group))

    def explained(self, served: int) -> Ints:
        """Origins whose forecasts the last fit is explained on: those it served, and a few before where it is new."""
        return self.origins[-max(served, LEAST_TOLD) :][-TOLD:]

    def weeks(self) -> Iterator[Ints]:
        """Places, among all origins, of those asked for that one set of corrections serves."""
        places = np.arange(self.asked, len(self.origins))
        group = (self.origins[places] - self.origins[self.asked]) // self.week
        yield from (places[group == g] for g in np.unique(group))


def extended(panel: Panel, steps: int) -> tuple[pd.DatetimeIndex, Floats, dict[str, Floats]]:
    """The grid with empty steps after its end, so that what lies ahead has a place."""
    stamps = pd.date_range(panel.stamps[0], periods=len(panel.stamps) + steps, freq=panel.step, unit="us")

    def wider(table: Floats) -> Floats:
        return np.concatenate([table, np.full((len(table), steps), np.nan)], axis=1)

    return stamps, wider(panel.values), {c: wider(v) for c, v in panel.beside.items()}


@dataclass(frozen=True)
class Batch:
    """Forecasts of one series and window, or of one horizon, with what came.

    All of shape (n,), quantiles (n, n_levels); ``origin`` and ``target`` are positions on the grid, ``series`` of the
    panel.
    """

    series: Ints
    origin: Ints
    target: Ints
    window_h: int
    mean: Floats
    quantiles: Floats
    fine: Floats
    pit: Floats
    outcome: Floats


# ------------------------------------------------------------ hours


def issue_hours(
    panel: Panel,
    covariates: Covariates,
    schedule: Schedule,
    threads: int,
    said: Say,
    explain: Explain | None = None,
) -> Iterator[Batch]:
    """Every hour and every sum of hours of the horizon, series by series."""
    stamps, counts, _ = extended(panel, schedule.horizon + 1)
    for k in range(len(counts)):
        means = _hourly_means(counts[k], stamps, panel.holidays, covariates, schedule, threads, explain)
        said(1)
        for window in (w for w in schedule.windows if w <= schedule.horizon):
            yield _window(panel.names[k], k, counts[k], means, schedule, window)


def _hourly_means(
    counts: Floats,
    stamps: pd.DatetimeIndex,
    holidays: str,
    covariates: Covariates,
    schedule: Schedule,
    threads: int,
    explain: Explain | None,
) -> Floats:
    """Foreseen means from every origin, shape (n_origins, horizon); NaN where there was nothing to learn from yet."""
    parts = []
    begun = int(np.flatnonzero(np.isfinite(counts))[0])
    laid: dict[bool, hourly.Hours] = {}
    for stretch in schedule.stretches():
        known = np.isfinite(counts[begun : stretch[0]]).sum()
        if known < hourly.LEAST_DAYS * 24 or not np.nansum(counts[: stretch[0]]):
            parts.append(np.full((len(stretch), schedule.horizon), np.nan))
            continue
        seasons = stretch[0] - begun >= hourly.A_YEAR * 24
        if seasons not in laid:
            laid[seasons] = hourly.Hours.of(counts, stamps, holidays, covariates, seasons)
        model = hourly.fit(
            laid[seasons], int(stretch[0]), schedule.every, int(stretch[0]), schedule.horizon, threads
        )
        parts.append(model.means(stretch, schedule.horizon))
        if explain is not None and stretch[-1] == schedule.origins[-1]:
            explain(model.reasons(schedule.explained(len(stretch)), schedule.horizon))
    return np.concatenate(parts)


def _rolled(table: Floats, window: int) -> Floats:
    """Sums of consecutive columns."""
    return np.asarray(np.lib.stride_tricks.sliding_window_view(table, window, axis=1).sum(axis=-1))


def _window(name: str, series: int, counts: Floats, means: Floats, schedule: Schedule, window: int) -> Batch:
    """Sums over one window, as distributions corrected week by week."""
    origins = schedule.origins
    outcome = counts[origins[:, None] + np.arange(schedule.horizon)]
    came, due = _rolled(outcome, window), _rolled(means, window)
    draws = np.random.default_rng([SEED, zlib.crc32(name.encode()), window]).random(came.shape)
    quantiles = np.full((*due.shape, len(STATED)), np.nan)
    fine = np.full((*due.shape, len(FINE)), np.nan, dtype=np.float32)
    pit = np.full(due.shape, np.nan)
    for week in schedule.weeks():
        past = _matured(origins, int(origins[week[0]]), schedule.horizon, MEMORY_DAYS * 24 // schedule.every)
        dispersion, correction = _learnt(
            outcome[past], means[past], came[past], due[past], draws[past], window, schedule
        )
        mean = due[week].ravel()
        there = np.isfinite(mean)
        if not there.any():
            continue
        levels = corrected([*STATED, *FINE], correction)
        read = np.full((len(mean), len(levels)), np.nan)
        read[there] = count_quantiles(mean[there], dispersion, levels, whole=window == 1)
        quantiles[week] = read[:, : len(STATED)].reshape(*due[week].shape, -1)
        fine[week] = read[:, len(STATED) :].reshape(*due[week].shape, -1)
        pit[week] = _moved(_pits(came[week], due[week], dispersion, draws[week]), correction)
    asked = slice(schedule.asked, None)
    target = origins[asked, None] + np.arange(window - 1, schedule.horizon)
    n = target.size
    return Batch(
        np.full(n, series), np.repeat(origins[asked], target.shape[1]), target.ravel(), window,
        due[asked].ravel(), quantiles[asked].reshape(n, -1), fine[asked].reshape(n, -1), pit[asked].ravel(),
        came[asked].ravel(),
    )  # fmt: skip


def _matured(origins: Ints, now: int, ahead: int, most: int) -> Ints:
    """Places of the newest origins, at most so many, of which everything ``ahead`` had come true by ``now``."""
    return np.flatnonzero(origins + ahead <= now)[-most:]


def _learnt(
    outcome: Floats, means: Floats, came: Floats, due: Floats, draws: Floats, window: int, schedule: Schedule
) -> tuple[float, Recalibration]:
    """How much a window varies beyond Poisson, and how its levels are to be read, from forecasts come true."""
    known = np.isfinite(means).all(axis=1)
    if not known.any():
        return SharedEffect().fit(np.zeros((0, 48)), np.zeros((0, 48))).day, Recalibration()
    effect = SharedEffect.fit((outcome - means)[known], means[known])
    windows = np.lib.stride_tricks.sliding_window_view(means[known], window, axis=1)[:, ::THINNED]
    dispersion = float(effect.dispersion(windows.reshape(-1, window)).mean())
    some = (slice(None), slice(None, None, THINNED))
    pit = _pits(came[some], due[some], dispersion, draws[some])
    days = int(known.sum() * schedule.every / 24)
    return dispersion, Recalibration.fit(pit[np.isfinite(pit)], days)


def _pits(came: Floats, due: Floats, dispersion: float, draws: Floats) -> Floats:
    """Randomised PIT; NaN without outcome or forecast."""
    y, m = np.nan_to_num(came, nan=0.0), np.nan_to_num(due, nan=1.0)
    below, at = count_cdf(y - 1, m, dispersion), count_cdf(y, m, dispersion)
    return np.where(np.isfinite(came) & np.isfinite(due), below + draws * (at - below), np.nan)


def _moved(pit: Floats, correction: Recalibration) -> Floats:
    """PIT of the corrected forecast."""
    return np.asarray(np.interp(pit, correction.adjusted, correction.nominal))


# ------------------------------------------------------------ days


def issue_days(
    panel: Panel,
    covariates: Covariates,
    schedule: Schedule,
    threads: int,
    said: Say,
    explain: Explain | None = None,
) -> Iterator[Batch]:
    """Every day of the horizon, all series together, horizon by horizon."""
    stamps, counts, beside = extended(panel, schedule.horizon + 1)
    horizons = range(1, schedule.horizon + 1)
    centre = np.full((schedule.horizon, len(counts), len(schedule.origins)), np.nan)
    scale = np.full_like(centre, np.nan)
    done, laid = 0, {}
    for stretch in schedule.stretches():
        seasons = int(stretch[0]) >= daily.A_YEAR
        if seasons not in laid:
            laid[seasons] = daily.Days.of(
                counts, stamps, beside, panel.holidays, covariates, seasons, panel.quantities
            )
        model = daily.fit(laid[seasons], int(stretch[0]) + 1, horizons, threads)
        for h in horizons:
            given = daily.examples(laid[seasons], stretch, h)
            shape = (len(counts), len(stretch))
            there = np.where(given.usable, 1.0, np.nan)
            centre[h - 1, :, done : done + len(stretch)] = (model.centre(given) * there).reshape(shape)
            scale[h - 1, :, done : done + len(stretch)] = (given.width * there).reshape(shape)
        if explain is not None and stretch[-1] == schedule.origins[-1]:
            explain(_reasons(model, laid[seasons], schedule.explained(len(stretch)), horizons))
        done += len(stretch)
        said(1)
    for h in horizons:
        unrest = daily.unrest(stamps, panel.holidays, schedule.origins, h)
        yield _horizon(panel, counts, centre[h - 1], scale[h - 1], unrest, schedule, h)


def _reasons(model: daily.DailyModel, days: daily.Days, origins: Ints, horizons: Sequence[int]) -> Reasons:
    """What moved the forecasts of some origins, of all series and horizons."""
    every = max(len(origins) * len(days.counts) // TOLD, 1)
    given = daily.Examples.joined([daily.examples(days, origins[::every], h) for h in horizons])
    return model.reasons(given.rows(given.usable))


def _horizon(
    panel: Panel, counts: Floats, centre: Floats, scale: Floats, unrest: Ints, schedule: Schedule, h: int
) -> Batch:
    """One horizon of all series, with the spread that forecasts come true had."""
    origins = schedule.origins
    came = counts[:, origins + h]
    draws = np.random.default_rng([SEED, h]).random((len(origins), len(counts))).T
    quantiles = np.full((*centre.shape, len(STATED)), np.nan)
    fine = np.full((*centre.shape, len(FINE)), np.nan, dtype=np.float32)
    pit, mean = np.full(centre.shape, np.nan), centre.copy()
    error = (came - centre) / scale
    kinds = np.array(panel.quantities)
    for week in schedule.weeks():
        now = int(origins[week[0]])
        past = _matured(origins, now, h, DAILY_MEMORY // schedule.every)
        for kind in np.unique(kinds):
            rows = np.flatnonzero(kinds == kind)
            block = np.ix_(rows, week)
            off = _drift(error[rows], origins, h, past)
            left = error[rows] - off
            wider = _wider(left[:, origins + h <= now], unrest[origins + h <= now])[unrest]
            spread, own = _spread(left[:, past] / wider[past], h)
            width, middle = (
                scale[block] * own[:, None] * wider[week],
                centre[block] + scale[block] * off[week],
            )
            read = middle[..., None] + width[..., None] * spread.quantiles([*STATED, *FINE])
            read = np.maximum(read, 0.0)
            quantiles[block], fine[block] = read[..., : len(STATED)], read[..., len(STATED) :]
            mean[block] = fine[block].mean(axis=-1)
            low, high = (spread.cdf((came[block] + d - middle) / width) for d in (-0.5, 0.5))
            low = np.where(came[block] <= 0, 0.0, low)
            pit[block] = low + draws[block] * (high - low)
    asked = slice(schedule.asked, None)
    n_series, n = len(counts), len(origins[asked])
    series = np.repeat(np.arange(n_series), n)
    origin = np.tile(origins[asked], n_series)
    flat = [a[:, asked].reshape(n_series * n, *a.shape[2:]) for a in (mean, quantiles, fine, pit, came)]
    return Batch(series, origin, origin + h, 24, *flat)


def _drift(error: Floats, origins: Ints, h: int, past: Ints) -> Floats:
    """How far all series together are expected to be off at each origin, shape (n_origins,); scaled as ``error`` is.

    A winter fuller than any before is so in most hospitals at once, and for weeks: what they had in common in the last
    days that came true is carried on, as far as that would have helped in the ``past``.
    """
    n = np.isfinite(error).sum(axis=0)
    common = np.full(len(origins), np.nan)
    known = n >= DRIFT_SERIES
    common[known] = np.nanmedian(error[:, known], axis=0)
    low, high = (np.searchsorted(origins + h, origins - days, side="right") for days in (DRIFT_DAYS, 0))
    total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(common))])
    count = np.concatenate([[0], np.cumsum(np.isfinite(common))])
    recent = (total[high] - total[low]) / np.maximum(count[high] - count[low], 1)
    came = past[np.isfinite(common[past])]
    together, square = (float((recent[came] * v[came]).sum()) for v in (common, recent))
    kept = together / square * len(came) / (len(came) + DRIFT_WORTH) if square > 0 else 0.0
    return np.asarray(recent * float(np.clip(kept, 0.0, 1.0)))


def _wider(error: Floats, unrest: Ints) -> Floats:
    """How much further off forecasts over holidays were than over usual days, by kind of ``unrest``; never less.

    All that ever came true is looked at, since Christmas comes once a year.
    """
    n = np.isfinite(error).sum(axis=0)
    size = np.nansum(np.abs(error), axis=0) / np.maximum(n, 1)
    wider = np.ones(len(daily.UNREST))
    plain = size[(n > 0) & (unrest == 0)]
    if not plain.sum():
        return wider
    for kind in range(1, len(wider)):
        days = size[(n > 0) & (unrest == kind)] / plain.mean()
        wider[kind] = max((days.sum() + UNREST_WORTH) / (len(days) + UNREST_WORTH), 1.0)
    return wider


def _spread(error: Floats, h: int) -> tuple[Spread, Floats]:
    """The spread of all series together, and how much wider or narrower each one's own is."""
    n = np.isfinite(error).sum(axis=1)
    if not n.sum():
        return Spread(np.zeros(0), 0.0), np.ones(len(error))
    size = np.nansum(np.abs(error), axis=1)
    usual = float(size.sum() / n.sum()) or 1.0
    own = np.maximum((size / usual + OWN_WORTH) / (n + OWN_WORTH), 0.2)
    scaled = error / own[:, None]
    knots = np.sort(scaled[np.isfinite(scaled)])
    if len(knots) > MOST_KNOTS:
        knots = np.quantile(knots, (np.arange(MOST_KNOTS) + 0.5) / MOST_KNOTS)
    if len(error) >= DRIFT_SERIES:
        knots = knots - (1 - SHIFT_KEPT) * np.median(knots)
    days = int(np.isfinite(error).any(axis=0).sum())
    # Series of one country share its days, and errors of several days ahead share most of those days.
    alike = float(np.sqrt(min(int((n > 0).sum()), 25))) / 2
    return Spread(knots, days * alike / (1 + h / SHARED_DAYS)), own


def issue(
    panel: Panel,
    covariates: Covariates,
    schedule: Schedule,
    threads: int,
    said: Say,
    explain: Explain | None = None,
) -> Iterator[Batch]:
    """Issue every forecast of a panel; batches come series by series, or horizon by horizon.

    ``explain`` hears what moved the forecasts of the last fit: of each series of hours, and once of days.
    """
    how: Any = issue_hours if panel.step_h == 1 else issue_days
    yield from how(panel, covariates, schedule, threads, said, explain)
