"""Foresee daily counts of one hospital or many: usual guesses mixed, and what regression and trees add to them.

Every value is told as its distance from the series' mean of four weeks, in units of its usual change from week to
week, so that a district hospital and a teaching hospital teach one model. First comes what a bed manager would guess:
yesterday, the same weekday of past weeks, the recent level adjusted for the weekday, mixed as would have been best for
each quantity, since beds taken walk on from today and admissions come back to their mean. A ridge regression adds to
that as far as it would have helped lately. Where there are examples enough, boosted trees stand beside it that see the
distances in two ways: in units of the usual change, and as shares of the level. Nothing stamped after the origin is
read; the origin is the last day whose count is in hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import nnls
from sklearn.linear_model import Ridge

from features.census import public_holidays
from features.sources.covariates import Covariates
from training.drivers import (
    AHEAD,
    BESIDE,
    FLAGS,
    HOLIDAYS,
    LAST_WEEK,
    LEVEL,
    OTHERS,
    SEASON,
    SERIES,
    WEEKDAY,
    summed,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_DAYS: Final = 42
LEVEL_DAYS: Final = 28
FURTHEST: Final = 8.0
"""Scaled distances are cut here: one absurd report must not steer a model."""
ROWS: Final = 250_000
"""As many examples as trees learn from in one fit."""
LINE_ROWS: Final = 60_000
"""As many as each regression does."""
DRAW: Final = 5
RIDGE: Final = 300.0
TREES: Final = 260
ENOUGH: Final = 20_000
"""Examples from which trees are grown, and worth as much as the regression; with fewer they learn chance."""
A_YEAR: Final = 400
MARGIN: Final = 14
"""Days laid out before the first and after the last, so that neighbours of every day are known."""
FESTIVE: Final = {
    (12, 23): 1, (12, 24): 2, (12, 25): 3, (12, 26): 4, (12, 27): 5, (12, 28): 6, (12, 29): 7, (12, 30): 8,
    (12, 31): 9, (1, 1): 10, (1, 2): 11, (1, 3): 12, (1, 4): 13,
}  # fmt: skip
CHRISTMAS: Final = 6
"""Of :data:`FESTIVE`, the days up to 28 December."""
UNREST: Final = ("usual days", "a public holiday", "Christmas to New Year", "Christmas itself")
"""Kinds of forecasts by the days from origin to target: each kind has errors of a size of its own."""
USUAL: Final = ("last", "week1", "mean4", "mean14", "level1", "level4", "level15")
"""What a bed manager would guess: their mixture stands where nothing better was learnt."""
CHECKED_FROM: Final = 0.7
"""Where, in the past, what is added to the usual guesses begins to be checked."""
USUAL_WORTH: Final = 10.0
"""Examples' worth of belief in the single best of them."""
LINEAR: Final = (
    "last", "back1", "back2", "back3", "back4", "back5", "back6", "week1", "week2", "mean4", "mean6", "level1",
    "level4", "level15", "mean7", "mean14", "weekday_shape", "others", "others_before", "others_week", "sine", "cosine",
)  # fmt: skip
IN_UNITS_OF_CHANGE: Final = (
    "last", "back1", "back2", "back3", "back4", "back5", "back6", "week1", "week2", "week3", "mean4", "mean6", "level1",
    "level4", "level15", "mean7", "mean14", "slope", "weekday_shape",
)  # fmt: skip
"""Columns that are distances; the others are the same however distance is told."""
ABOUT: Final = {
    LAST_WEEK: ("last", "back1", "back2", "back3", "back4", "back5", "back6"),
    LEVEL: ("level1", "level4", "level15", "mean7", "mean14", "slope", "size", "noise", "kind"),
    WEEKDAY: (
        "week1", "week2", "week3", "mean4", "mean6", "weekday_shape", "weekday", "origin_weekday", "off", "off_before",
        "off_after", "origin_off", "days_off_on",
    ),
    HOLIDAYS: (
        "holiday", "eve", "morrow", "second_morrow", "holidays_of_8_days", "festive", "origin_festive",
        "origin_holidays", "holidays_on",
    ),
    SEASON: ("sine", "cosine"),
    OTHERS: ("others", "others_before", "others_week"),
    AHEAD: ("horizon",),
}  # fmt: skip
"""What columns are about, for people; a column that is none of these stands beside the count, or was given."""
HOLIDAY: Final = (
    "holiday",
    "eve",
    "morrow",
    "second_morrow",
    "holidays_of_8_days",
    "origin_holidays",
    "holidays_on",
)
"""Calendar columns the regression reads as they are."""


# ------------------------------------------------------------ what is in hand


@dataclass(frozen=True)
class Days:
    """Series on a daily grid, with everything of them that only looks backwards.

    Attributes
    ----------
    counts : float64, shape (n_series, n_days)
        NaN where nothing was reported, and over the horizon after the last report.
    level, scale : float64, shape (n_series, n_days)
        Mean of four weeks, and usual change from one week to the next, as known on each day.
    past : mapping of name to float64, shape (n_series, n_days)
        What each day adds to what is known, as a value on the series' own scale of counts.
    shape : float64, shape (7, n_series, n_days)
        How each weekday differs from its week.
    plain : float64, shape (n_series, n_days)
        Counts less what their weekday adds.
    others : float64, shape (n_series, n_days)
        How far all series of the same quantity together are above their level.
    kind : int64, shape (n_series,)
        Which quantity each series counts: a stock that walks and a flow that comes back are learnt apart.
    """

    counts: Floats
    stamps: pd.DatetimeIndex
    level: Floats
    scale: Floats
    past: Mapping[str, Floats]
    shape: Floats
    plain: Floats
    others: Floats
    kind: Ints
    beside: Mapping[str, Floats]
    calendar: Mapping[str, Floats]
    covariates: Covariates
    seasons: bool

    @classmethod
    def of(
        cls,
        counts: Floats,
        stamps: pd.DatetimeIndex,
        beside: Mapping[str, Floats],
        holidays: str,
        covariates: Covariates,
        seasons: bool,
        quantities: Sequence[str] = (),
    ) -> Days:
        """Read everything that each day can know of its past."""
        weekday = stamps.weekday.to_numpy("int64")
        level = _rolled(counts, LEVEL_DAYS, 5)
        shape = _weekday_shape(counts, weekday)
        scale = _scale(counts, level, 7)
        plain = counts - np.take_along_axis(shape, np.broadcast_to(weekday, counts.shape)[None], 0)[0]
        filled = _filled(counts, 10)
        past = {"last": filled} | {f"back{k}": _shifted(filled, k) for k in range(1, 7)}
        past |= {f"level{days}": _faded(plain, days) for days in (1, 4, 15)}
        past |= {f"mean{days}": _rolled(counts, days, max(days // 4, 1)) for days in (7, 14)}
        above = np.clip((plain - level) / scale, -FURTHEST, FURTHEST)
        kind = np.unique(quantities or [""] * len(counts), return_inverse=True)[1].astype("int64")
        others = _together(above, kind)
        relative = {c: _relative(v) for c, v in beside.items()}
        # How far another column is from the count itself: open beds less taken ones say how much room is left.
        relative |= {
            f"room_{c}": np.clip((_filled(v, 7) - filled) / scale, -20, 20) for c, v in beside.items()
        }
        known = _calendar(stamps, holidays)
        return cls(
            counts, stamps, level, scale, past, shape, plain, others, kind, relative, known, covariates, seasons
        )  # fmt: skip


def _rolled(table: Floats, days: int, least: int) -> Floats:
    return np.asarray(pd.DataFrame(table.T).rolling(days, min_periods=least).mean().to_numpy().T)


def _faded(table: Floats, half_life: float) -> Floats:
    return np.asarray(pd.DataFrame(table.T).ewm(halflife=half_life, ignore_na=False).mean().to_numpy().T)


def _filled(table: Floats, most: int) -> Floats:
    return np.asarray(pd.DataFrame(table.T).ffill(limit=most).to_numpy().T)


def _shifted(table: Floats, days: int) -> Floats:
    out = np.full_like(table, np.nan)
    out[:, days:] = table[:, : table.shape[1] - days]
    return out


def _weekday_shape(counts: Floats, weekday: Ints) -> Floats:
    """Mean distance of each weekday of the last eight weeks from the week before it ended."""
    away = counts - _rolled(counts, 7, 4)
    made = [_rolled(np.where(weekday == k, away, np.nan), 56, 2) for k in range(7)]
    return np.nan_to_num(np.stack(made))


def _scale(counts: Floats, level: Floats, days: int) -> Floats:
    """Usual change over so many days, never below half a Poisson's spread."""
    change = np.sqrt(_rolled((counts - _shifted(counts, days)) ** 2, 42, 5))
    usual = np.where(np.isfinite(change), change, 0.1 * level)
    return np.asarray(np.fmax(np.nan_to_num(usual), 0.5 * np.sqrt(np.maximum(np.nan_to_num(level), 1.0))))


def _relative(table: Floats) -> Floats:
    """Another column against its own level of four weeks."""
    level = _rolled(table, LEVEL_DAYS, 5)
    return np.asarray((_filled(table, 7) - level) / np.maximum(np.abs(level), 1.0))


def _together(above: Floats, kind: Ints) -> Floats:
    """Mean over the series of the same quantity, where more than five have one; else 0."""
    out = np.zeros_like(above)
    for k in np.unique(kind):
        some = above[kind == k]
        n = np.isfinite(some).sum(axis=0)
        out[kind == k] = np.nansum(some, axis=0) / np.maximum(n, 1) * (n > 5)
    return out


def _calendar(stamps: pd.DatetimeIndex, holidays: str) -> dict[str, Floats]:
    """What is known of every day ahead, laid out with a margin on both sides."""
    margin = pd.Timedelta(days=MARGIN)
    days = pd.date_range(stamps[0] - margin, stamps[-1] + margin, freq="D", unit="us")
    free = pd.to_datetime(public_holidays(holidays, range(days[0].year, days[-1].year + 1)))
    is_free = days.isin(free)
    off = is_free | (days.weekday >= 5)
    christian = any(d.month == 12 and d.day == 25 for d in free)
    festive = [FESTIVE.get((d.month, d.day), 0) if christian else 0 for d in days]
    columns = {
        "holiday": is_free, "eve": np.roll(is_free, -1), "morrow": np.roll(is_free, 1),
        "second_morrow": np.roll(is_free, 2), "off": off, "off_before": np.roll(off, 1), "off_after": np.roll(off, -1),
        "festive": np.array(festive), "holidays_of_8_days": pd.Series(is_free).rolling(8, min_periods=1).sum(),
    }  # fmt: skip
    return {name: np.asarray(v, "float64") for name, v in columns.items()}


def unrest(stamps: pd.DatetimeIndex, holidays: str, origins: Ints, horizon: int) -> Ints:
    """How unlike others the days are that forecasts go over: :data:`UNREST`, shape (n_origins,)."""
    known = _calendar(stamps, holidays)
    here, there = origins + MARGIN, origins + horizon + MARGIN
    crossed = np.cumsum(known["holiday"])
    near = crossed[there] - crossed[here - 1]
    near = near + known["eve"][there] + known["morrow"][there]
    festive = known["festive"]
    kind = np.where(festive[here] + festive[there] > 0, 2, near > 0)
    return np.where((festive[there] > 0) & (festive[there] <= CHRISTMAS), 3, kind).astype("int64")


# ------------------------------------------------------------ examples


@dataclass(frozen=True)
class Examples:
    """Origins and targets of one horizon or several, a row each.

    Attributes
    ----------
    columns : mapping of name to float64, shape (n,)
    series, origin : int64, shape (n,)
    horizon : int64, shape (n,), days
    level, scale : float64, shape (n,)
    outcome : float64, shape (n,), NaN where it is not known
    kind : int64, shape (n,)
    width : float64, shape (n,)
        Usual change over as many days as lie ahead, weekdays left out: what a forecast may be off by.
    """

    columns: Mapping[str, Floats]
    series: Ints
    origin: Ints
    horizon: Ints
    level: Floats
    scale: Floats
    outcome: Floats
    kind: Ints
    width: Floats

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """A level is known, and a count of the last ten days."""
        return np.isfinite(self.level) & np.isfinite(self.columns["last"])

    @property
    def distance(self) -> Floats:
        """The outcome on the series' own scale."""
        return np.clip((self.outcome - self.level) / self.scale, -FURTHEST, FURTHEST)

    def rows(self, kept: npt.NDArray[Any]) -> Examples:
        """Some of the rows."""
        some = {name: v[kept] for name, v in self.columns.items()}
        return Examples(
            some, self.series[kept], self.origin[kept], self.horizon[kept], self.level[kept], self.scale[kept],
            self.outcome[kept], self.kind[kept], self.width[kept],
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """Rows of several, one after the other."""
        columns = {n: np.concatenate([p.columns[n] for p in parts]) for n in parts[0].columns}
        rest = [
            np.concatenate([getattr(p, field) for p in parts])
            for field in ("series", "origin", "horizon", "level", "scale", "outcome", "kind", "width")
        ]
        return cls(columns, *rest)


def examples(days: Days, origins: Ints, horizon: int) -> Examples:
    """What every series knows at some origins of the day ``horizon`` days on."""
    n_series = len(days.counts)
    n = (n_series, len(origins))
    target = origins + horizon
    level, scale = days.level[:, origins], days.scale[:, origins]
    weekday = days.stamps.weekday.to_numpy("int64")[target]
    shape = days.shape[weekday, :, origins].T
    value = {name: table[:, origins] for name, table in days.past.items()}
    weeks = _same_weekdays(days.counts, origins, target)
    value |= {"week1": weeks[0], "week2": weeks[1], "week3": weeks[2]}
    value |= {"mean4": _mean(weeks[:4]), "mean6": _mean(weeks[:6])}
    for name in ("level1", "level4", "level15"):
        value[name] = value[name] + shape
    columns = {name: (v - level) / scale for name, v in value.items()}
    columns["slope"] = columns["mean7"] - columns["mean14"]
    columns |= {
        "weekday_shape": shape / scale,
        "size": np.log1p(np.maximum(level, 0)),
        "noise": scale / np.maximum(level, 1),
    }
    columns |= {name: table[:, origins] for name, table in days.beside.items()}
    columns |= {
        "others": days.others[:, origins],
        "others_before": days.others[:, np.maximum(origins - 1, 0)],
        "others_week": days.others[:, np.maximum(origins - 7, 0)],
        "kind": np.broadcast_to(days.kind[:, None], n),
    }
    shared = _shared_columns(days, origins, target, horizon)
    columns |= {name: np.broadcast_to(v, n) for name, v in shared.items()}
    flat = {name: np.asarray(v, "float64").ravel() for name, v in columns.items()}
    series = np.repeat(np.arange(n_series), len(origins))
    return Examples(
        flat, series, np.tile(origins, n_series), np.full(len(series), horizon), level.ravel(), scale.ravel(),
        days.counts[:, target].ravel(), np.repeat(days.kind, len(origins)),
        _scale(days.plain, days.level, min(horizon, 7))[:, origins].ravel(),
    )  # fmt: skip


def _same_weekdays(counts: Floats, origins: Ints, target: Ints) -> Floats:
    """The last eight same weekdays that are in hand, newest first, shape (8, n_series, n_origins)."""
    newest = target - 7 * ((target - origins + 6) // 7)
    out = []
    for k in range(8):
        place = newest - 7 * k
        out.append(np.where(place >= 0, counts[:, np.maximum(place, 0)], np.nan))
    return np.stack(out)


def _mean(some: Floats) -> Floats:
    n = np.isfinite(some).sum(axis=0)
    return np.where(n > 0, np.nansum(some, axis=0) / np.maximum(n, 1), np.nan)


def _shared_columns(days: Days, origins: Ints, target: Ints, horizon: int) -> dict[str, Floats]:
    """Columns that all series have alike."""
    weekday = days.stamps.weekday.to_numpy("float64")
    turn = 2 * np.pi * days.stamps.dayofyear.to_numpy("float64")[target] / 365.25
    off, free = (np.cumsum(days.calendar[name]) for name in ("off", "holiday"))
    columns = {name: v[target + MARGIN] for name, v in days.calendar.items()}
    columns |= {
        "horizon": np.full(len(origins), float(horizon)), "weekday": weekday[target],
        "origin_weekday": weekday[origins],
        "origin_off": days.calendar["off"][origins + MARGIN],
        "origin_festive": days.calendar["festive"][origins + MARGIN],
        "origin_holidays": days.calendar["holidays_of_8_days"][origins + MARGIN],
        "days_off_on": off[target + MARGIN] - off[origins + MARGIN],
        "holidays_on": free[target + MARGIN] - free[origins + MARGIN],
        "sine": np.sin(turn) * days.seasons, "cosine": np.cos(turn) * days.seasons,
    }  # fmt: skip
    morning = days.stamps[origins] + pd.Timedelta(
        days=1
    )  # the origin's count is in hand when its day is over
    numbers = days.covariates.numbers(morning, days.stamps[target])
    flags = days.covariates.flags(days.stamps[target])
    columns |= {f"covariate{k}": numbers[:, k] for k in range(numbers.shape[1])}
    return columns | {f"flag{k}": flags[:, k] for k in range(flags.shape[1])}


# ------------------------------------------------------------ learning


@dataclass(frozen=True)
class Line:
    """One quantity and horizon: a mixture of usual guesses, and what a regression adds to it.

    Attributes
    ----------
    mixture : float64, shape (len(USUAL),)
        Shares, none negative, that sum to 1.
    ridge : Ridge
        What the mixture leaves.
    kept : float
        How much of that is believed, 0 to 1: as much as would have been best on the last part of the past, which the
        regression had not seen.
    """

    mixture: Floats
    ridge: Ridge
    kept: float

    @classmethod
    def fit(cls, given: Examples) -> Line:
        """Learn from examples of one quantity and horizon."""
        mixture = _mixture(given)
        left = given.distance - _usual(given) @ mixture
        columns = _linear_columns(given)
        late = given.origin > np.quantile(given.origin, CHECKED_FROM)
        kept = 0.0
        if late.any():
            added = _ridge(columns[~late], left[~late]).predict(columns[late])
            weight = given.scale[late] * added
            gained = weight * left[late]
            # Less its standard error: what may be chance is not believed.
            sure = gained.sum() - np.sqrt((gained**2).sum())
            kept = float(np.clip(sure / ((weight * added).sum() + 1e-9), 0.0, 1.0))
        return cls(mixture, _ridge(columns, left), kept)

    def predict(self, given: Examples) -> tuple[Floats, Floats]:
        """The mixture, and with what the regression adds; on the series' own scale."""
        usual = _usual(given) @ self.mixture
        return usual, usual + self.kept * self.ridge.predict(_linear_columns(given))


def _usual(given: Examples) -> Floats:
    """What a bed manager would guess, shape (n, len(USUAL)); where one is not known, the faded level."""
    stands = np.nan_to_num(given.columns["level15"])
    some = np.stack(
        [np.where(np.isfinite(given.columns[n]), given.columns[n], stands) for n in USUAL], axis=1
    )
    return np.asarray(np.clip(some, -FURTHEST, FURTHEST))


def _mixture(given: Examples) -> Floats:
    """Least squares with shares that are not negative and sum to 1."""
    n = len(USUAL)
    weight = np.sqrt(given.scale / given.scale.mean())[:, None]
    seen = np.column_stack([_usual(given), given.distance]) * weight
    # Only the triangle matters to least squares, whatever the number of rows.
    seen = np.asarray(np.linalg.qr(seen, mode="r"))
    best = np.argmin(((seen[:, :n] - seen[:, [n]]) ** 2).sum(axis=0))
    worth, sure = np.sqrt(USUAL_WORTH), 1e3 * np.sqrt(len(given.series))
    rows = np.concatenate([seen[:, :n], worth * np.eye(n), np.full((1, n), sure)])
    share = nnls(rows, np.concatenate([seen[:, n], worth * np.eye(n)[best], [sure]]))[0]
    return np.asarray(share / share.sum())


@dataclass(frozen=True)
class DailyModel:
    """Fitted forecasts on the scale of each series.

    Attributes
    ----------
    lines : by quantity and horizon, days
    trees : on what the mixture of usual guesses leaves, in units of the usual change; on the distance as a share of
        the level
    trust : how far there are examples enough for trees, 0 to 1
    """

    lines: Mapping[tuple[int, int], Line]
    trees: tuple[Any, ...]
    trust: float

    def weights(self, horizon: Ints) -> tuple[Floats, Floats]:
        """What of the forecast is either trees', the rest being the line's.

        Tomorrow hangs on today, which a line says best; next week on the season and the size of the hospital. Chosen
        on the sitreps of the winters 2017-18 and 2018-19.
        """
        far = np.clip((horizon - 1) / 6, 0.0, 1.0)
        return self.trust * (0.45 + 0.05 * far), self.trust * (0.3 + 0.2 * far)

    def centre(self, given: Examples) -> Floats:
        """The middle of what is to come, in counts, shape (n,)."""
        usual, linear = _lined(self.lines, given)
        z = linear
        if self.trees:
            by_change = usual + np.asarray(self.trees[0].predict(_matrix(given)))
            by_level = np.asarray(self.trees[1].predict(_shares(given))) * _level(given) / given.scale
            one, other = self.weights(given.horizon)
            z = (1 - one - other) * linear + one * by_change + other * by_level
        return np.asarray(np.maximum(given.level + given.scale * z, 0.0))

    def reasons(self, given: Examples) -> dict[str, Floats]:
        """What moves the middle away from its average distance to the level, in counts, exactly additive.

        Regression and mixture are sums, trees are so by SHAP. What is cut, distances beyond 8 usual changes and counts
        below zero, is not told.
        """
        one, other = self.weights(given.horizon) if self.trees else (np.zeros(1), np.zeros(1))
        parts: list[tuple[Sequence[str], Floats, Floats]] = []
        n = len(given.series)
        guesses, added = np.zeros((n, len(USUAL))), np.zeros((n, _linear_columns(given).shape[1] + 1))
        for (kind, h), line in self.lines.items():
            some = (given.horizon == h) & (given.kind == kind)
            rows = given.rows(some)
            guesses[some] = _usual(rows) * line.mixture
            columns = np.column_stack([_linear_columns(rows), np.ones(len(rows.series))])
            added[some] = line.kept * columns * [*line.ridge.coef_, line.ridge.intercept_]
        parts.append(([_about(n) for n in USUAL], guesses, (1 - other) * given.scale))
        parts.append(([*_about_linear(given), LEVEL], added, (1 - one - other) * given.scale))
        about = [
            *(_about(name) for name in given.columns),
            LEVEL,
        ]  # what all share weighs as much as a series is large
        views = ((_matrix, one * given.scale), (_shares, other * _level(given)))
        for tree, (facts, weight) in zip(self.trees, views, strict=False):
            parts.append((about, np.asarray(tree.predict(facts(given), pred_contrib=True)), weight))
        return summed(parts)


def _about(column: str) -> str:
    if column.startswith(("covariate", "flag")):
        return SERIES if column.startswith("covariate") else FLAGS
    return next((about for about, names in ABOUT.items() if column in names), BESIDE)


def _about_linear(given: Examples) -> list[str]:
    """What each column of :func:`_linear_columns` is about."""
    flags = [FLAGS for n in given.columns if n.startswith("flag")]
    days = [*[WEEKDAY] * 7, *[HOLIDAYS] * (len(FESTIVE) + len(HOLIDAY))]
    return [*(_about(n) for n in LINEAR), *days, *flags]


def fit(days: Days, upto: int, horizons: Sequence[int], threads: int = 1) -> DailyModel:
    """Learn from everything stamped before position ``upto``."""
    rng = np.random.default_rng(DRAW)
    lines, some, n = {}, [], 0
    for h in horizons:
        part = examples(days, np.arange(LEVEL_DAYS, upto - h), h)
        part = part.rows(part.usable & np.isfinite(part.outcome))
        for kind in np.unique(part.kind):
            lines[int(kind), h] = Line.fit(_drawn(part.rows(part.kind == kind), LINE_ROWS, rng))
        some.append(_drawn(part, ROWS // len(horizons), rng))
        n += len(part.series)
    given = Examples.joined(some)
    trees = _grow(given, _lined(lines, given)[0], threads) if n >= ENOUGH else ()
    return DailyModel(lines, trees, n / (n + ENOUGH))


def _drawn(given: Examples, most: int, rng: np.random.Generator) -> Examples:
    """About ``most`` of the examples. Drawn, not every k-th: a step of seven would see one weekday only."""
    n = len(given.series)
    return given if n <= most else given.rows(rng.random(n) < most / n)


def _ridge(columns: Floats, left: Floats) -> Ridge:
    penalty = RIDGE * min(1.0, max(len(left), 1) / 3000 + 0.1)
    return Ridge(alpha=penalty).fit(columns, left)


def _lined(lines: Mapping[tuple[int, int], Line], given: Examples) -> tuple[Floats, Floats]:
    """Mixtures of usual guesses, and with what regressions add; quantities never learnt from stay at their level."""
    usual, linear = np.zeros(len(given.series)), np.zeros(len(given.series))
    for (kind, h), line in lines.items():
        some = (given.horizon == h) & (given.kind == kind)
        if some.any():
            usual[some], linear[some] = line.predict(given.rows(some))
    return usual, np.clip(linear, -FURTHEST, FURTHEST)


def _linear_columns(given: Examples) -> Floats:
    """Scaled guesses, the weekday, and holidays; what is not known is taken to be as the level."""
    c = given.columns
    scaled = np.stack([c[name] for name in LINEAR], axis=1)
    blocks = [np.clip(np.nan_to_num(scaled), -FURTHEST, FURTHEST), np.eye(7)[c["weekday"].astype("int64")]]
    blocks += [np.eye(len(FESTIVE) + 1)[c["festive"].astype("int64")][:, 1:]]
    flags = [c[name] for name in (*HOLIDAY, *(n for n in c if n.startswith("flag")))]
    return np.concatenate([*blocks, np.stack(flags, axis=1)], axis=1)


def _matrix(given: Examples) -> npt.NDArray[np.float32]:
    return np.stack([given.columns[name] for name in given.columns], axis=1).astype("float32")


def _shares(given: Examples) -> npt.NDArray[np.float32]:
    """The same with distances told as shares of the level: a tree cannot multiply."""
    factor = given.scale / _level(given)
    some = [v * factor if name in IN_UNITS_OF_CHANGE else v for name, v in given.columns.items()]
    return np.stack(some, axis=1).astype("float32")


def _level(given: Examples) -> Floats:
    return np.maximum(given.level, 1.0)


def _grow(given: Examples, usual: Floats, threads: int) -> tuple[Any, Any]:
    """Trees on what the usual guesses leave, and trees on the distance as a share of the level."""
    import lightgbm

    settings = {
        "learning_rate": 0.05, "max_bin": 63, "min_data_in_leaf": int(np.clip(len(usual) // 300, 20, 200)),
        "feature_fraction": 0.5, "bagging_fraction": 0.6, "bagging_freq": 1, "lambda_l2": 1.0, "seed": 1,
        "num_threads": threads, "deterministic": True, "force_row_wise": True, "verbose": -1,
    }  # fmt: skip
    by_change = {"objective": "huber", "alpha": 1.0, "num_leaves": 15}
    by_level = {"objective": "quantile", "alpha": 0.5, "num_leaves": 31}
    share = (given.outcome - given.level) / _level(given)
    one = lightgbm.Dataset(_matrix(given), given.distance - usual, weight=given.scale / given.scale.mean())
    other = lightgbm.Dataset(_shares(given), share, weight=_level(given) / _level(given).mean())
    return (
        lightgbm.train(settings | by_change, one, TREES), lightgbm.train(settings | by_level, other, TREES),
    )  # fmt: skip
