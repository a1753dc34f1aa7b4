"""Counts over time against what is expected: since when are they higher, or lower, than chance lets them be?

A Poisson CUSUM each way (Lucas, Technometrics 1985;27:129) over hours, so that a slow change is seen before a period's
total shows it, and with the hour at which it began. Counts come in clusters, one patient's hours or one fault's rows,
and are divided by how many come at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from serving.monitoring.statistics import Floats

RATIOS: Final = (1.5, 3.0)
"""Rates, as multiples of the expected one, that each direction is tuned to: a slow change, and a sudden one."""


@dataclass(frozen=True)
class Change:
    """A count that left its expectation.

    Attributes
    ----------
    up : bool
    since : int
        Position of the first step of the change.
    score : float
        Log likelihood ratio of the change, clusters counted once.
    chance : float
        How seldom so high a score comes without a change.
    ratio : float
        Counted over expected since then.
    """

    up: bool
    since: int
    score: float
    chance: float
    ratio: float


def cusum(count: Floats, expected: Floats, ratio: float) -> tuple[float, int]:
    """The CUSUM's value at the end, and the step at which its present run began.

    Parameters
    ----------
    count, expected : shape (n_steps,)
        May be fractions: clusters.
    ratio : float
        The rate it is tuned to: above 1 upwards, below 1 downwards.
    """
    path = np.r_[0.0, np.cumsum(count * np.log(ratio) - expected * (ratio - 1))]
    low = int(np.argmin(path))
    return float(path[-1] - path[low]), low


def change(count: Floats, expected: Floats, effect: float, chance: float) -> Change | None:
    """The likelier change that is still going on, or None where none is.

    Parameters
    ----------
    effect : float
        Counts that come together and weigh as one, at least 1.
    chance : float
        Accepted chance of a false alarm at this look: read backwards from the end, the likelihood ratio is a
        martingale, so that its highest value exceeds ``1 / chance`` that seldom.
    """
    if not len(count) or expected.sum() <= 0:
        return None
    best: Change | None = None
    for ratio in (*RATIOS, *(1 / r for r in RATIOS)):
        score, since = cusum(count / effect, expected / effect, ratio)
        if score < np.log(2 * len(RATIOS) / chance) or (best and score <= best.score):
            continue
        seen = float(count[since:].sum() / max(expected[since:].sum(), 1e-9))
        best = Change(ratio > 1, since, score, min(1.0, 2 * len(RATIOS) * float(np.exp(-score))), seen)
    return best
