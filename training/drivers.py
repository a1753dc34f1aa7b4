"""What forecasts of counted series are moved by: contributions of columns as sums by what they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Reasons = Mapping[str, Floats]

CLOCK: Final = "hour and weekday"
WEEKDAY: Final = "weekday"
SEASON: Final = "season"
HOLIDAYS: Final = "holidays"
FLAGS: Final = "calendars given"
LAST_WEEK: Final = "the last seven days, one by one"
LEVEL: Final = "recent level"
OTHERS: Final = "all series together"
BESIDE: Final = "columns beside the count"
SERIES: Final = "weather and other series given"
AHEAD: Final = "how far ahead"
TOLD: Final = 400
"""Origins, at most, whose forecasts are taken apart."""


def summed(parts: Sequence[tuple[Sequence[str], Floats, Floats | float]]) -> dict[str, Floats]:
    """Contributions by column as sums by what they are about, each centred on its mean.

    Parameters
    ----------
    parts : of what each column is about; float64, shape (n, n_columns); weight, one or shape (n,)
    """
    total: dict[str, Floats] = {}
    for about, added, weight in parts:
        weighted = added * np.reshape(weight, (-1, 1))
        for name in dict.fromkeys(about):
            some = weighted[:, [k for k, a in enumerate(about) if a == name]].sum(axis=1)
            total[name] = total.get(name, np.zeros(len(some))) + some
    return {name: v - v.mean() for name, v in total.items()}


def strengths(reasons: Sequence[Reasons]) -> list[dict[str, float | str]]:
    """Mean absolute contribution by what it is about, over all series alike, strongest first, with its share."""
    names = dict.fromkeys(name for r in reasons for name in r)
    found = {n: float(np.mean([np.abs(r[n]).mean() if n in r else 0.0 for r in reasons])) for n in names}
    whole = max(sum(found.values()), 1e-12)
    order = sorted(found, key=lambda n: -found[n])
    return [{"about": n, "moves": found[n], "share": found[n] / whole} for n in order if found[n] > 0]
