"""Distributions of counts: how many beds, how sure, and how good such statements turned out to be.

Patients who are present give an exact Poisson-binomial; arrivals still to come give a negative binomial, which is a
Poisson whose mean a whole day shares a gamma factor of. Sums are convolutions, or joint samples where parts depend on
one another. A floor ("at least 12, 90 % sure") and a cover ("22 beds cover it 95 times in 100") are different numbers;
both are given, in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import special

from features.errors import DataError, SpecError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEVELS: Final = (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95)
"""Quantiles every forecast reports."""
TAIL: Final = 1e-12


@dataclass(frozen=True)
class Counts:
    """A distribution over whole numbers.

    Attributes
    ----------
    lowest : int
        The number that ``pmf[0]`` belongs to; negative for a net position.
    pmf : float64, shape (n,), sums to 1
    """

    lowest: int
    pmf: Floats

    def __post_init__(self) -> None:
        if len(self.pmf) == 0 or np.min(self.pmf) < 0 or abs(float(self.pmf.sum()) - 1) > 1e-9:
            raise DataError("A distribution of counts needs probabilities >= 0 that sum to 1.")

    @classmethod
    def of_samples(cls, samples: Ints) -> Counts:
        """The empirical distribution of whole numbers.

        Raises
        ------
        DataError
            There is no sample.
        """
        if len(samples) == 0:
            raise DataError("No sample to make a distribution of.")
        lowest = int(samples.min())
        return cls(lowest, np.bincount(samples - lowest) / len(samples))

    @property
    def mean(self) -> float:
        """Expected count."""
        return float(self.lowest + self.pmf @ np.arange(len(self.pmf)))

    @property
    def variance(self) -> float:
        """Variance of the count."""
        away = self.lowest + np.arange(len(self.pmf)) - self.mean
        return float(self.pmf @ away**2)

    def cdf(self, k: float) -> float:
        """P(X <= k)."""
        place = int(np.floor(k)) - self.lowest
        return 0.0 if place < 0 else float(min(self.pmf[: place + 1].sum(), 1.0))

    def quantile(self, level: float) -> int:
        """Smallest k with P(X <= k) >= ``level``, 0 < level <= 1."""
        _check_level(level)
        reached = np.cumsum(self.pmf) >= level - TAIL
        return self.lowest + (int(np.argmax(reached)) if reached.any() else len(self.pmf) - 1)

    def floor(self, confidence: float) -> int:
        """Largest k with P(X >= k) >= ``confidence``: "at least k, 90 % sure"."""
        _check_level(confidence)
        at_least = np.cumsum(self.pmf[::-1])[::-1]
        return self.lowest + int(np.flatnonzero(at_least >= confidence - TAIL)[-1])

    def cover(self, confidence: float) -> int:
        """Smallest k with P(X <= k) >= ``confidence``: "k beds cover it 95 times in 100"."""
        return self.quantile(confidence)

    def plus(self, other: Counts) -> Counts:
        """Sum of two independent counts."""
        return Counts(self.lowest + other.lowest, _whole(np.convolve(self.pmf, other.pmf)))

    def minus(self, other: Counts) -> Counts:
        """Difference of two independent counts; goes below zero where it must."""
        lowest = self.lowest - (other.lowest + len(other.pmf) - 1)
        return Counts(lowest, _whole(np.convolve(self.pmf, other.pmf[::-1])))


def _whole(pmf: Floats) -> Floats:
    """Rounding left out: probabilities that sum to one."""
    return np.asarray(pmf / pmf.sum(), dtype=np.float64)


def _check_level(level: float) -> None:
    if not 0 < level <= 1:
        raise DataError(f"A probability level must be in (0, 1], got {level}.")


# ------------------------------------------------------------ making distributions


def poisson_binomial(probabilities: Iterable[float]) -> Counts:
    """How many of independent patients with their own probabilities: exact, by convolution.

    Raises
    ------
    DataError
        A probability is outside [0, 1] or missing.
    """
    p = np.asarray(list(probabilities), dtype=np.float64)
    if len(p) and not (np.min(p) >= 0 and np.max(p) <= 1):
        raise DataError("Probabilities of patients must be in [0, 1]; some are not, or are missing.")
    pmf = np.ones(1)
    for one in p:
        pmf = np.convolve(pmf, (1 - one, one))
    return Counts(0, _whole(pmf))


def negative_binomial(mean: float, dispersion: float = 0.0) -> Counts:
    """A Poisson count whose mean carries a gamma factor with mean 1 and variance ``dispersion``.

    Variance is ``mean + dispersion * mean**2``; a dispersion of 0 is Poisson. The pmf stops where less than 1e-12 of
    the probability is left.

    Raises
    ------
    DataError
        Mean or dispersion is negative or missing.
    """
    if not (mean >= 0 and dispersion >= 0):
        raise DataError(f"A count needs mean >= 0 and dispersion >= 0, got {mean} and {dispersion}.")
    if mean == 0:
        return Counts(0, np.ones(1))
    top = _far_enough(mean, dispersion)
    k = np.arange(top + 1)
    if dispersion == 0:
        log = k * np.log(mean) - mean - special.gammaln(k + 1)
    else:
        shape = 1 / dispersion
        log = special.gammaln(k + shape) - special.gammaln(shape) - special.gammaln(k + 1)
        log += shape * np.log(shape / (shape + mean)) + k * np.log(mean / (shape + mean))
    return Counts(0, _whole(np.exp(log)))


def _far_enough(mean: float, dispersion: float) -> int:
    """A count beyond which less than 1e-12 of a negative binomial is left (Chernoff bound on the upper tail)."""
    top = mean + 10
    while _tail_exponent(top, mean, dispersion) < -np.log(TAIL):
        top *= 1.3
    return int(top) + 1


def _tail_exponent(x: float, mean: float, dispersion: float) -> float:
    """-log of the Chernoff bound of P(X >= x), for x above the mean."""
    if dispersion == 0:
        return float(x * np.log(x / mean) - x + mean)
    shape = 1 / dispersion
    return float(x * np.log(x / mean) - (shape + x) * np.log((shape + x) / (shape + mean)))


def dispersion_of(observed: Ints, expected: Floats) -> float:
    """Variance of the factor that all hours of a period share, from totals per period; 0 where Poisson suffices.

    Method of moments on ``Var(N) = m + d * m**2`` with known means: ``sum((n - m)**2 - m) / sum(m**2)``.
    """
    square = float((expected**2).sum())
    return max(float((((observed - expected) ** 2) - expected).sum()) / square, 0.0) if square > 0 else 0.0


def day_effect(
    dispersion: float, seen: float, expected: float, rng: np.random.Generator, size: int
) -> Floats:
    """Draws of today's shared factor, given what has been seen of the day so far.

    The factor is gamma with mean 1 and variance ``dispersion``; ``seen`` arrivals where ``expected`` were due make it
    gamma with shape ``1/d + seen`` and rate ``1/d + expected`` (conjugate).
    """
    if dispersion <= 0:
        return np.ones(size)
    shape = 1 / dispersion
    return np.asarray(rng.gamma(shape + seen, 1 / (shape + expected), size))


# ------------------------------------------------------------ words


def beds(n: int) -> str:
    """``1 bed``, ``12 beds``."""
    return f"{n} bed{'' if n == 1 else 's'}"


def in_words(floor: int, cover: int, sure: float = 0.9, covered: float = 0.95) -> str:
    """Both statements a bed manager plans with: what is certain to be needed, and what would be enough."""
    enough = f"{beds(cover)} cover{'s' if cover == 1 else ''} it {round(covered * 100)} times in 100"
    if cover <= 0:
        return f"probably none; {enough}" if cover == 0 else enough
    if floor <= 0:
        return f"perhaps none; {enough}"
    return f"at least {floor} ({round(sure * 100)} % sure); {enough}"


# ------------------------------------------------------------ judging


def crps(forecast: Counts, outcome: int) -> float:
    """Continuous ranked probability score, in counts; 0 is perfect, for a point forecast it is the absolute error."""
    k = np.arange(min(forecast.lowest, outcome), max(forecast.lowest + len(forecast.pmf), outcome + 1))
    cdf = np.zeros(len(k))
    at = forecast.lowest - k[0]
    cdf[at : at + len(forecast.pmf)] = np.cumsum(forecast.pmf)
    cdf[at + len(forecast.pmf) :] = 1.0
    return float(((cdf - (k >= outcome)) ** 2).sum())


def pinball(quantiles: npt.ArrayLike, outcomes: npt.ArrayLike, level: float) -> Floats:
    """Pinball loss of one quantile level, elementwise: ``level`` per unit too low, ``1 - level`` per unit too high."""
    _check_level(level)
    error = np.asarray(outcomes, dtype=np.float64) - np.asarray(quantiles, dtype=np.float64)
    return np.maximum(level * error, (level - 1) * error)


def randomised_pit(forecast: Counts, outcome: int, u: float) -> float:
    """Where the outcome falls in its forecast: ``F(y - 1) + u * P(y)``; uniform on [0, 1] if forecasts are calibrated.

    ``u`` is uniform on [0, 1]: without it, whole numbers would look over-covered.
    """
    below = forecast.cdf(outcome - 1)
    return below + u * (forecast.cdf(outcome) - below)


def pit_coverage(pit: Floats, level: float) -> float:
    """Share of outcomes inside the central interval of ``level``, by randomised PIT."""
    return float(np.mean(np.abs(pit - 0.5) <= level / 2))


def cramer_von_mises(pit: Floats) -> float:
    """W² of the PIT against uniform; above 0.461 the forecast is miscalibrated at the 5 % level."""
    n = len(pit)
    even = (2 * np.arange(1, n + 1) - 1) / (2 * n)
    return float(1 / (12 * n) + ((np.sort(pit) - even) ** 2).sum())


# ------------------------------------------------------------ conformal correction


@dataclass(frozen=True)
class Recalibration:
    """Which level to read so that the statement comes true as often as it says.

    If on calibration days the 90 % quantile covered 84 outcomes in 100, then a higher level must be read to cover
    90: the level at which randomised PIT values of those days have 90 % of themselves below. With few days the map
    stays near the identity.

    Attributes
    ----------
    nominal, adjusted : tuple of float
        Rising knots from 0 to 1; straight lines between.
    """

    nominal: tuple[float, ...] = (0.0, 1.0)
    adjusted: tuple[float, ...] = (0.0, 1.0)

    @classmethod
    def fit(
        cls,
        pit: Floats,
        days: int,
        weight_of_prior: float = 100.0,
        prior: Recalibration | None = None,
        caution: float = 1.0,
    ) -> Recalibration:
        """From randomised PIT values of ``days`` independent days (several forecasts a day count once).

        The map is read at fixed knots and pulled towards ``prior`` (default: the identity) with the weight of 100 days:
        a season is short, and a correction learnt from chance would be worse than none. Where it would make a statement
        narrower, the weight is ``caution`` times as large: to promise too much is worse than to promise too little.
        """
        prior = cls() if prior is None else prior
        if len(pit) == 0:
            return prior
        knots = np.array([0.0, 0.025, *LEVELS, 0.975, 1.0])
        seen = np.quantile(pit, knots[1:-1], method="linear")
        before = np.interp(knots[1:-1], prior.nominal, prior.adjusted)
        narrower = (seen - before) * (0.5 - knots[1:-1]) > 0
        trust = days / (days + weight_of_prior * np.where(narrower, caution, 1.0))
        inner = trust * seen + (1 - trust) * before
        inner = np.maximum.accumulate(np.clip(inner, 1e-4, 1 - 1e-4))
        return cls(tuple(float(k) for k in knots), (0.0, *(float(v) for v in inner), 1.0))

    def level(self, nominal: float) -> float:
        """The level to read for a nominal one."""
        _check_level(nominal)
        return float(np.clip(np.interp(nominal, self.nominal, self.adjusted), 1e-9, 1.0))

    def apply(self, forecast: Counts) -> Counts:
        """The forecast with its probabilities moved so that its quantiles are the corrected ones."""
        if self.nominal == self.adjusted:
            return forecast
        moved = np.interp(np.minimum(np.cumsum(forecast.pmf), 1.0), self.adjusted, self.nominal)
        moved[-1] = 1.0
        pmf = moved.copy()
        pmf[1:] -= moved[:-1]
        return Counts(forecast.lowest, _whole(np.maximum(pmf, 0.0)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"nominal": list(self.nominal), "adjusted": list(self.adjusted)}

    @classmethod
    def from_dict(cls, table: dict[str, Sequence[float]]) -> Recalibration:
        """The inverse of :meth:`to_dict`.

        Raises
        ------
        SpecError
            The knots are missing or do not rise.
        """
        nominal, adjusted = tuple(table.get("nominal", ())), tuple(table.get("adjusted", ()))
        if len(nominal) != len(adjusted) or len(nominal) < 2 or bool(np.any(np.diff(nominal) <= 0)):
            raise SpecError(
                "A recalibration needs rising nominal levels and as many adjusted ones. Train again."
            )
        return cls(nominal, adjusted)
