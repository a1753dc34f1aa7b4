"""Do outcomes come as often as was predicted? A test that may be looked at every day, for as long as one likes.

Evidence is a bet (Shafer, JRSS A 2021;184:407): a capital of 1 that grows, on average, only where the probabilities are
wrong. By Ville's inequality it ever reaches ``1 / alpha`` with a probability of at most ``alpha`` where they are right,
however often it is looked at. Nobody knows how wrong they will be, or since when, so the stakes are spread: over odds
ratios, as in the risk-adjusted CUSUM (Steiner et al., Biostatistics 2000;1:441), and over when the change began.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from serving.monitoring.statistics import Floats

ODDS: Final = {1.5: 0.25, 2.0: 0.75}
"""Odds ratios that are bet on, each way, and the share of the stakes on each: a large change hurts soonest."""
BLOCK: Final = 100
"""A change is looked for from the first stay on, and from every hundredth."""
FROM_START: Final = 0.9
"""Share of the stakes on a change that was there from the start."""


@dataclass(frozen=True)
class Evidence:
    """What was won by a series of stays.

    Attributes
    ----------
    fewer, more : shape (n_stays,)
        Capital after each stay of the bet that outcomes are rarer, and commoner, than predicted.
    since : int
        The stay at which the likelier of the two most likely began.
    """

    fewer: Floats
    more: Floats
    since: int

    @property
    def value(self) -> float:
        """The highest either bet has ever stood at: beyond 20 is a chance of at most 1 in 20 for each."""
        return float(max(self.fewer.max(initial=0.0), self.more.max(initial=0.0)))

    @property
    def now(self) -> float:
        """What the better of the two holds now; 1 before the first stay."""
        return float(max(self.fewer[-1], self.more[-1])) if len(self.fewer) else 1.0

    def found(self, capital: float) -> int | None:
        """After how many stays a bet first reached a capital; None where neither did."""
        reached = np.flatnonzero(np.maximum(self.fewer, self.more) >= capital)
        return int(reached[0]) + 1 if len(reached) else None


def evidence(observed: Floats, expected: Floats, most: float = 1.0) -> Evidence:
    """Bet on stays in the order in which their outcomes became known.

    Parameters
    ----------
    observed, expected : shape (n_stays,)
        Positive hours of each stay, and the sum of their probabilities; or outcome and probability of each stay.
    most : float
        As many positive hours as one stay can have. Hours of a stay come together: it is one witness.
    """
    share, chance = observed / most, expected / most
    fewer = [_log_capital(share, chance, -np.log(ratio)) for ratio in ODDS]
    more = [_log_capital(share, chance, np.log(ratio)) for ratio in ODDS]
    paths = [np.exp(np.minimum(_mixed(way), 700)) for way in (fewer, more)]
    if not len(observed):
        return Evidence(paths[0], paths[1], 0)
    way = fewer if paths[0][-1] >= paths[1][-1] else more
    total = np.r_[0.0, max(way, key=lambda path: path[-1] - path.min())]
    return Evidence(paths[0], paths[1], int(np.argmin(total[:-1])))


def _log_capital(share: Floats, chance: Floats, stake: float) -> Floats:
    """Logarithm of what a bet on odds ``exp(stake)`` times the predicted ones holds after each stay.

    For a share between 0 and 1 whose mean is ``chance``, ``E exp(stake * share) <= 1 + chance * (exp(stake) - 1)`` by
    convexity, so that no stay adds to the capital on average. Long stays may expect more than one: ``1 + x <= exp(x)``.
    """
    gain = np.expm1(stake)
    fair = np.where(chance <= 1, np.log1p(np.minimum(chance, 1) * gain), chance * gain)
    return np.asarray(np.cumsum(stake * share - fair))


def _mixed(paths: list[Floats]) -> Floats:
    """Logarithm of the capital with stakes spread over odds and over beginnings."""
    n = len(paths[0])
    if not n:
        return np.zeros(0)
    k = np.arange(len(range(0, n, BLOCK)))
    weight = np.where(k == 0, FROM_START, (1 - FROM_START) / np.maximum(k * (k + 1), 1))
    mixed = []
    for path in paths:
        before = np.r_[0.0, path[BLOCK - 1 : n - 1 : BLOCK]] if n > 1 else np.zeros(1)
        begun = np.logaddexp.accumulate(np.log(weight) - before[: len(weight)])
        mixed.append(path + begun[np.arange(n) // BLOCK])
    shares = np.log(list(ODDS.values()))[:, np.newaxis]
    return np.asarray(np.logaddexp.reduce(mixed + shares, axis=0))
