"""Forecasts of counted series as distributions: hours that share their day, and days that keep their own spread.

Hours are Poisson around their means, and those means share an error: the whole day turns out busier than foreseen, and
neighbouring hours even more so. Sums of hours are therefore wider than independent hours say; :class:`SharedEffect`
holds by how much, so that 4, 8, 12 and 24 h are as well calibrated as a single hour. Daily levels, which are no
Poisson counts, take the spread that past forecasts turned out to have: :class:`Spread`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import special

from models.forecast import Recalibration

Floats = npt.NDArray[np.float64]

QUANTILES: Final = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""The nineteen levels every issued forecast states."""
COVER: Final = 0.99
"""The number that is to be exceeded once in a hundred times."""
FINE: Final = tuple((k + 0.5) / 50 for k in range(50))
"""Levels close enough for CRPS, which is twice the mean pinball loss over all of them."""
WINDOWS_H: Final = (1, 4, 8, 12, 24)
NEAR_H: Final = 3.0
"""Hours over which what neighbouring hours share beyond their day fades."""
DAY_LAGS: Final = range(7, 21)
USUAL_DAY: Final = 0.004
"""Variance of a day's factor assumed before anything was seen: the middle of published emergency departments."""
USUAL_WORTH: Final = 20.0
"""Days of evidence that the assumption is worth."""


@dataclass(frozen=True, slots=True)
class SharedEffect:
    """Variances of the factors, of mean 1, that multiply the foreseen mean of an hour.

    Attributes
    ----------
    day : float
        Shared by all hours of a day.
    near : float
        Shared by neighbouring hours, fading over :data:`NEAR_H` hours.
    own : float
        Of each hour alone.
    """

    day: float = 0.0
    near: float = 0.0
    own: float = 0.0

    @classmethod
    def fit(cls, errors: Floats, means: Floats) -> SharedEffect:
        """From forecasts issued and come true: products of errors at each lag, less what Poisson noise explains.

        Parameters
        ----------
        errors, means : float64, shape (n_origins, n_leads)
            Outcome less mean, and mean, of consecutive hours; NaN where there is no outcome.
        """
        r, m = np.nan_to_num(errors), np.where(np.isnan(errors), 0.0, means)
        days = np.isfinite(errors).sum() / 24
        worth = USUAL_WORTH / (USUAL_WORTH + days)
        far = _shared(r, m, DAY_LAGS)
        day = (1 - worth) * max(far, 0.0) + worth * USUAL_DAY
        fade = np.exp(-np.arange(1, 4) / NEAR_H)
        near = (_shared(r, m, range(1, 4)) - max(far, 0.0)) / float(fade.mean())
        near = (1 - worth) * max(near, 0.0)
        square = float((m**2).sum())
        alone = float((r**2 - m).sum()) / square if square > 0 else 0.0
        return cls(day, near, (1 - worth) * max(alone - day - near, 0.0))

    def dispersion(self, means: Floats) -> Floats:
        """Extra variance of the sum of consecutive hours, as a share of its squared mean.

        Parameters
        ----------
        means : float64, shape (n, n_hours)
        """
        n = means.shape[1]
        away = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        shared = self.day + self.near * np.exp(-away / NEAR_H) + self.own * np.eye(n)
        total = np.maximum(means.sum(axis=1), 1e-9)
        return np.asarray(np.einsum("ki,ij,kj->k", means, shared, means) / total**2)


def _shared(r: Floats, m: Floats, lags: Sequence[int]) -> float:
    """Covariance of the factors of hours so many apart."""
    some = [k for k in lags if k < r.shape[1]]
    above = sum(float((r[:, :-k] * r[:, k:]).sum()) for k in some)
    below = sum(float((m[:, :-k] * m[:, k:]).sum()) for k in some)
    return above / below if below > 0 else 0.0


# ------------------------------------------------------------ counts


def count_cdf(k: Floats, mean: Floats, dispersion: float) -> Floats:
    """P(X <= k) of a negative binomial with a Poisson core (dispersion 0 is Poisson), elementwise."""
    inside = np.floor(np.asarray(k, dtype=np.float64))
    safe = np.maximum(inside, 0.0)
    mean = np.maximum(mean, 1e-9)
    if dispersion <= 1e-9:
        p = special.pdtr(safe, mean)
    else:
        shape = 1 / dispersion
        p = special.betainc(shape, safe + 1, shape / (shape + mean))
    return np.where(inside < 0, 0.0, p)


GRID: Final = 64


def count_quantiles(mean: Floats, dispersion: float, levels: Sequence[float], *, whole: bool) -> Floats:
    """Quantiles of a negative binomial by mean and level, shape (n, n_levels).

    Parameters
    ----------
    whole : bool
        Whole numbers, the smallest with P(X <= k) >= level; else each whole number's probability is spread evenly over
        the unit around it, so that an interval holds what it says also after rounding is gone.
    """
    mean = np.maximum(np.asarray(mean, dtype=np.float64), 1e-9)
    edge = _continuous(mean, max(dispersion, 0.0), levels)
    if whole:
        return np.maximum(np.ceil(edge - 1e-6), 0.0)
    return np.maximum(edge + 0.5, 0.0)


def _continuous(mean: Floats, dispersion: float, levels: Sequence[float]) -> Floats:
    """The real k at which the distribution function, continued between whole numbers, reaches each level.

    It is a smooth function of the mean, so that it is solved on a grid of means, by halving, and read off between.
    """
    root = np.linspace(np.sqrt(mean.min()), np.sqrt(mean.max()), GRID) if len(mean) > GRID else np.sqrt(mean)
    knots = np.unique(root) ** 2
    out = np.empty((len(mean), len(levels)))
    for j, level in enumerate(levels):
        solved = _halved(knots, dispersion, float(level))
        out[:, j] = np.interp(mean, knots, solved)
    return out


def _halved(mean: Floats, dispersion: float, level: float) -> Floats:
    low = np.full(len(mean), -1.0)
    high = mean + 12 * np.sqrt(mean + dispersion * mean**2) + 12
    for _ in range(34):
        middle = (low + high) / 2
        if dispersion <= 1e-9:
            p = special.gammaincc(middle + 1, mean)
        else:
            shape = 1 / dispersion
            p = special.betainc(shape, middle + 1, shape / (shape + mean))
        below = p < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray(high)


def corrected(levels: Sequence[float], correction: Recalibration) -> tuple[float, ...]:
    """The levels to read, so that what is said comes true as often as it says."""
    return tuple(float(np.clip(correction.level(level), 1e-4, 1 - 1e-4)) for level in levels)


# ------------------------------------------------------------ levels


@dataclass(frozen=True)
class Spread:
    """How far outcomes fell from their forecasts, in units of each forecast's own scale: conformal quantiles.

    Attributes
    ----------
    knots : float64, rising, shape (n,)
        Past errors over their scale.
    worth : float
        Independent days behind them; few days widen the statements.
    """

    knots: Floats
    worth: float

    def quantiles(self, levels: Sequence[float]) -> Floats:
        """Quantiles of the scaled error.

        With ``n`` days a level is read ``1 / (n + 1)`` further out than asked, as split conformal prediction does: the
        next outcome is one of ``n + 1`` alike.
        """
        if len(self.knots) == 0:
            return np.asarray(special.ndtri(np.asarray(levels)))
        asked = np.asarray(levels, dtype=np.float64)
        out = 0.5 + (asked - 0.5) * self._wider
        read = np.quantile(self.knots, np.clip(out, 0.0, 1.0))
        beyond = np.clip(np.abs(out - 0.5) - 0.5, 0.0, None) * np.sign(out - 0.5)
        return np.asarray(read + beyond * 10 * float(np.std(self.knots)))

    def cdf(self, error: Floats) -> Floats:
        """The level that each scaled error is stated as, by the same widening."""
        if len(self.knots) == 0:
            return np.asarray(special.ndtr(error))
        places = (np.arange(len(self.knots)) + 0.5) / len(self.knots)
        seen = np.interp(error, self.knots, places, left=0.0, right=1.0)
        return np.asarray(0.5 + (seen - 0.5) / self._wider)

    @property
    def _wider(self) -> float:
        """How much further from the middle a level is read than it says."""
        return 1 + 1 / max(self.worth, 1.0)
