"""Foresee counts hour by hour: a Poisson regression on calendar, level and covariates, blended with boosted trees.

Both read the same facts of an origin and a target hour: the local calendar, how high the counts of the last 1 to 364
days were against what the calendar alone would have, the same hour of past weeks, and whatever covariates were in hand
at the origin. Nothing stamped at or after the origin is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import PoissonRegressor

from features.census import public_holidays
from features.sources.covariates import Covariates
from training.drivers import AHEAD, CLOCK, FLAGS, HOLIDAYS, LEVEL, SEASON, SERIES, summed

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEVEL_DAYS: Final = (1, 3, 7, 14, 28, 91, 364)
LEVEL_PRIOR: Final = 30.0
"""Arrivals as expected that every comparison of levels starts from."""
SAME_HOURS: Final = (4, 8)
HALF_LIFE_DAYS: Final = 500.0
A_YEAR: Final = 400
"""Days of history from which a season can be told from a trend."""
LEAST_DAYS: Final = 28
TREES: Final = 300
FESTIVE: Final = {(12, 24): 1, (12, 25): 2, (12, 26): 3, (12, 27): 4, (12, 31): 5, (1, 1): 6, (1, 2): 7}
"""Days around Christmas that have a shape of their own where Christmas is a holiday."""


@dataclass(frozen=True)
class Hours:
    """One series on its hourly grid, with everything known ahead about each hour.

    Attributes
    ----------
    counts : float64, shape (n,)
        NaN where nothing was reported, and over the horizon after the last report.
    stamps : DatetimeIndex, shape (n,)
    design, facts : float64, shape (n, …)
        The calendar for the regression, and for the trees.
    design_about, facts_about : tuple of str
        What each of these columns is about.
    covariates : Covariates
    """

    counts: Floats
    stamps: pd.DatetimeIndex
    design: Floats
    facts: Floats
    design_about: tuple[str, ...]
    facts_about: tuple[str, ...]
    covariates: Covariates

    @classmethod
    def of(
        cls, counts: Floats, stamps: pd.DatetimeIndex, holidays: str, covariates: Covariates, seasons: bool
    ) -> Hours:
        """Lay out the calendar; ``seasons`` says whether the history is long enough to learn them."""
        calendar = _Calendar.of(stamps, holidays, covariates.flags(stamps), seasons)
        design, design_about = _told(calendar.design())
        facts, facts_about = _told(calendar.facts())
        return cls(counts, stamps, design, facts, design_about, facts_about, covariates)


Blocks = list[tuple[str, npt.NDArray[Any]]]


def _told(blocks: Blocks) -> tuple[Floats, tuple[str, ...]]:
    """Blocks of columns side by side, and what each column is about."""
    table = np.column_stack([block for _, block in blocks])
    return table, tuple(name for name, block in blocks for _ in range(block[0].size))


@dataclass(frozen=True)
class _Calendar:
    hour: Ints
    weekday: Ints
    turn: Floats
    free: Floats
    festive: Ints
    flags: Floats
    seasons: bool

    @classmethod
    def of(cls, stamps: pd.DatetimeIndex, holidays: str, flags: Floats, seasons: bool) -> _Calendar:
        day = stamps.normalize()
        free = pd.to_datetime(public_holidays(holidays, range(day[0].year - 1, day[-1].year + 2)))
        near = [day.isin(free + pd.Timedelta(days=k)) for k in (0, -1, 1)]  # itself, its eve, its morrow
        christian = any(d.month == 12 and d.day == 25 for d in free)
        festive = [FESTIVE.get((d.month, d.day), 0) if christian else 0 for d in day]
        return cls(
            stamps.hour.to_numpy("int64"), stamps.weekday.to_numpy("int64"),
            2 * np.pi * stamps.dayofyear.to_numpy("float64") / 365.25,
            np.stack(near, axis=1).astype("float64"), np.array(festive, "int64"), flags, seasons,
        )  # fmt: skip

    def design(self) -> Blocks:
        """Columns of the regression: hour of week, season by time of day, holidays and flags by part of day."""
        n = len(self.hour)
        week = np.zeros((n, 168))
        week[np.arange(n), self.weekday * 24 + self.hour] = 1.0
        part = np.eye(6)[self.hour // 4]
        turn = 2 * np.pi * self.hour / 24
        clock = np.stack([np.sin(turn), np.cos(turn), np.sin(2 * turn), np.cos(2 * turn)], axis=1)
        season = np.stack([f(k * self.turn) for k in (1, 2, 3) for f in (np.sin, np.cos)], axis=1)
        season = season * float(self.seasons)
        return [
            (CLOCK, week), (CLOCK, np.eye(24)[self.hour]), (CLOCK, np.eye(7)[self.weekday]), (SEASON, season),
            (SEASON, _by(season[:, :4], clock)), (HOLIDAYS, self.free), (HOLIDAYS, _by(self.free[:, :1], part)),
            (HOLIDAYS, np.eye(8)[self.festive][:, 1:]), (FLAGS, self.flags), (FLAGS, _by(self.flags, part)),
        ]  # fmt: skip

    def facts(self) -> Blocks:
        """The same for trees, which need no columns by value."""
        season = np.sin(self.turn), np.cos(self.turn)
        turned = np.stack(season, axis=1) * float(self.seasons)
        return [
            (CLOCK, self.hour), (CLOCK, self.weekday), (SEASON, turned), (HOLIDAYS, self.free),
            (HOLIDAYS, self.festive), (FLAGS, self.flags),
        ]  # fmt: skip


def _by(a: Floats, b: Floats) -> Floats:
    """Every column of one times every column of the other."""
    return np.asarray((a[:, :, None] * b[:, None, :]).reshape(len(a), -1))


# ------------------------------------------------------------ what an origin knows of a target


@dataclass(frozen=True)
class Pairs:
    """Origins and target hours, as positions on the grid; the origin is the first hour not known."""

    origin: Ints
    target: Ints

    @classmethod
    def of(cls, origins: Ints, horizon: int) -> Pairs:
        """Every hour of the horizon from every origin."""
        lead = np.arange(horizon)
        return cls(np.repeat(origins, horizon), (origins[:, None] + lead).ravel())


@dataclass(frozen=True)
class _Known:
    """What of a series is in hand at origins, against a calendar expectation."""

    level: Floats
    same: Floats
    numbers: Floats
    lead: Floats

    @classmethod
    def of(cls, hours: Hours, expected: Floats, pairs: Pairs) -> _Known:
        reported = np.isfinite(hours.counts)
        seen = np.concatenate([[0.0], np.cumsum(np.where(reported, hours.counts, 0.0))])
        due = np.concatenate([[0.0], np.cumsum(np.where(reported, expected, 0.0))])
        level = []
        for days in LEVEL_DAYS:
            start = np.maximum(pairs.origin - 24 * days, 0)
            came, should = seen[pairs.origin] - seen[start], due[pairs.origin] - due[start]
            level.append(np.log((came + LEVEL_PRIOR) / (should + LEVEL_PRIOR)))
        return cls(
            np.stack(level, axis=1),
            _same_hours(hours.counts, expected, pairs),
            hours.covariates.numbers(hours.stamps[pairs.origin], hours.stamps[pairs.target]),
            (pairs.target - pairs.origin).astype("float64"),
        )


def _same_hours(counts: Floats, expected: Floats, pairs: Pairs) -> Floats:
    """Mean of the same hour of the last 4 and 8 weeks that are in hand; the expectation where none is."""
    weeks = []
    for k in range(1, max(SAME_HOURS) + 2):
        place = pairs.target - 168 * k
        known = (place < pairs.origin) & (place >= 0)
        weeks.append(np.where(known, counts[np.maximum(place, 0)], np.nan))
    past = np.stack(weeks, axis=1)
    out = []
    for least in SAME_HOURS:
        some = past[:, : least + 1]
        n = np.isfinite(some).sum(axis=1)
        mean = np.nansum(some, axis=1) / np.maximum(n, 1)
        out.append(np.where(n > 0, mean, expected[pairs.target]))
    return np.stack(out, axis=1)


@dataclass(frozen=True)
class HourlyModel:
    """A fitted forecast of hourly means."""

    hours: Hours
    calendar: PoissonRegressor
    regression: PoissonRegressor
    trees: Any
    centre: Floats
    scale: Floats
    weight_of_trees: float

    def means(self, origins: Ints, horizon: int) -> Floats:
        """Expected counts of the ``horizon`` hours from each origin on, shape (n_origins, horizon)."""
        pairs = Pairs.of(origins, horizon)
        expected = _predicted(self.calendar, self.hours.design)
        known = _Known.of(self.hours, expected, pairs)
        linear = _predicted(self.regression, self._columns(known, pairs))
        mean = linear
        if self.trees is not None:
            grown = np.asarray(self.trees.predict(_facts(self.hours, known, expected, pairs)))
            mean = linear ** (1 - self.weight_of_trees) * np.maximum(grown, 1e-9) ** self.weight_of_trees
        return np.asarray(mean).reshape(len(origins), horizon)

    def reasons(self, origins: Ints, horizon: int) -> dict[str, Floats]:
        """What moves the logarithm of the mean away from its average over these forecasts, exactly additive.

        The regression is additive on that scale, and so are trees by SHAP; their blend is a mean on it.

        Returns
        -------
        By what it is about, float64, shape (n_origins * horizon,): they sum to log(mean) less its average.
        """
        pairs = Pairs.of(origins, horizon)
        expected = _predicted(self.calendar, self.hours.design)
        known = _Known.of(self.hours, expected, pairs)
        columns = self._columns(known, pairs)
        levels, numbers = known.level.shape[1], known.numbers.shape[1]
        about = (*self.hours.design_about, *[LEVEL] * (2 * levels), *[SERIES] * (2 * numbers))
        parts = [
            (about, columns * self.regression.coef_, 1 - self.weight_of_trees * (self.trees is not None))
        ]
        if self.trees is not None:
            facts = _facts(self.hours, known, expected, pairs)
            added = np.asarray(self.trees.predict(facts, pred_contrib=True))[:, :-1]
            same = [CLOCK] * known.same.shape[1]
            about = (
                *self.hours.facts_about,
                AHEAD,
                *[LEVEL] * levels,
                *same,
                *[SERIES] * numbers,
                CLOCK,
            )
            parts.append((about, added, self.weight_of_trees))
        return summed(parts)

    def _columns(self, known: _Known, pairs: Pairs) -> Floats:
        return _columns(self.hours, known, pairs, self.centre, self.scale)


def fit(hours: Hours, upto: int, every: int, phase: int, horizon: int, threads: int = 1) -> HourlyModel:
    """Learn from everything stamped before ``upto``.

    Parameters
    ----------
    upto : int
        Position of the first hour not known.
    every, phase : int
        Hours between origins, and the position of any: training imitates the origins that will be asked.
    horizon : int
        Hours ahead.
    """
    seen = np.flatnonzero(np.isfinite(hours.counts[:upto]))
    weight = np.exp2(-(upto - seen) / 24 / HALF_LIFE_DAYS)
    # Season, weekday and hour alone first: what levels are compared with.
    calendar = _regression(3e-4).fit(hours.design[seen], hours.counts[seen], sample_weight=weight)
    expected = _predicted(calendar, hours.design)
    pairs = _training_pairs(hours, upto, min(every, 24), phase, horizon)
    known = _Known.of(hours, expected, pairs)
    centre, scale = _centred(known.numbers)
    counts = hours.counts[pairs.target]
    weight = np.exp2(-(upto - pairs.target) / 24 / HALF_LIFE_DAYS)
    regression = _regression(5e-3).fit(
        _columns(hours, known, pairs, centre, scale), counts, sample_weight=weight
    )
    days = len(seen) / 24
    trees = _grow(_facts(hours, known, expected, pairs), counts, threads) if days >= 2 * LEAST_DAYS else None
    return HourlyModel(hours, calendar, regression, trees, centre, scale, 0.5 * min(1.0, days / 365))


def _regression(penalty: float) -> PoissonRegressor:
    return PoissonRegressor(alpha=penalty, solver="newton-cholesky", max_iter=30, tol=1e-4)


def _predicted(model: PoissonRegressor, columns: Floats) -> Floats:
    """Means; what a regression never met is kept within a factor of e^6 of one."""
    return np.asarray(np.exp(np.clip(columns @ model.coef_ + model.intercept_, -12.0, 12.0)))


def _training_pairs(hours: Hours, upto: int, every: int, phase: int, horizon: int) -> Pairs:
    """Origins as they will be asked, and targets that have come true; half of them, evenly spread."""
    first = 24 * min(60, max(upto // 24 // 4, 14))
    origins = np.arange(first + (phase - first) % every, upto, every)
    pairs = Pairs.of(origins, horizon)
    # A hash of origin and target rather than a draw: more history leaves the choice of older pairs as it was.
    half = (pairs.origin // every + pairs.target) % 2 == 0
    kept = half & (pairs.target < upto)
    kept &= np.isfinite(hours.counts[np.minimum(pairs.target, len(hours.counts) - 1)])
    return Pairs(pairs.origin[kept], pairs.target[kept])


def _centred(numbers: Floats) -> tuple[Floats, Floats]:
    if numbers.shape[1] == 0 or not len(numbers):
        return np.zeros(numbers.shape[1]), np.ones(numbers.shape[1])
    reported = np.isfinite(numbers)
    n = np.maximum(reported.sum(axis=0), 1)
    centre = np.nansum(numbers, axis=0) / n
    spread = np.sqrt(np.nansum((numbers - centre) ** 2, axis=0) / n)
    return centre, np.where(spread > 0, spread, 1.0)


def _columns(hours: Hours, known: _Known, pairs: Pairs, centre: Floats, scale: Floats) -> Floats:
    """Columns of the regression for pairs: calendar, levels near and far, covariates in and out of their usual."""
    near = np.exp(-known.lead / 24)[:, None]
    z = np.clip(np.nan_to_num((known.numbers - centre) / scale), -3, 3)
    blocks = [hours.design[pairs.target], known.level, known.level * near, z, z**2]
    return np.concatenate(blocks, axis=1)


def _facts(hours: Hours, known: _Known, expected: Floats, pairs: Pairs) -> Floats:
    return np.column_stack(
        [
            hours.facts[pairs.target],
            known.lead,
            known.level,
            known.same,
            known.numbers,
            expected[pairs.target],
        ]
    )


def _grow(facts: Floats, counts: Floats, threads: int) -> Any:
    import lightgbm

    least = int(np.clip(len(counts) // 350, 20, 200))
    settings = {
        "objective": "poisson", "learning_rate": 0.03, "num_leaves": 15, "min_data_in_leaf": least, "max_bin": 127,
        "feature_fraction": 0.5, "bagging_fraction": 0.6, "bagging_freq": 1, "lambda_l2": 5.0, "seed": 1,
        "num_threads": threads, "deterministic": True, "force_row_wise": True, "verbose": -1,
    }  # fmt: skip
    return lightgbm.train(settings, lightgbm.Dataset(facts, counts), TREES)
