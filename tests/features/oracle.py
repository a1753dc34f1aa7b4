"""The slow, readable definition of a window feature. No numpy tricks, one list comprehension a rule, exact fractions.

The compiled kernel must give the same answer; this file is what a reviewer checks instead of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

HOUR = 3_600_000_000
RANK = {"preliminary": 0, "final": 1, "corrected": 2, "deleted": 3}


@dataclass(frozen=True)
class Event:
    """Times in microseconds; an empty ``source_id`` is None, a missing value NaN."""

    encounter: str
    concept: str
    time: int
    available: int
    value: float
    status: str = "final"
    source_id: str | None = None


def _story(e: Event) -> tuple[int, int]:
    """The order in which the reports of one fact are believed: none comes before what it revises."""
    return min(RANK[e.status], 2), e.available


def _replaced(e: Event, visible: list[Event]) -> bool:
    """A later report of the same fact is visible, and it decides. Of two that tie the one listed last stands."""
    if e.source_id is None:
        return False
    identity = (e.encounter, e.concept, e.source_id)
    reports = [o for o in visible if (o.encounter, o.concept, o.source_id) == identity]
    told = sorted(reports, key=_story)  # stable: reports that tie keep their order
    later = told[next(k for k, o in enumerate(told) if o is e) + 1 :]
    return bool(later) and (e.status == "preliminary" or any(RANK[o.status] >= 2 for o in later))


def members(
    events: Iterable[Event], encounter: str, concept: str, t: int, lookback: int, step: int
) -> list[tuple[int, float]]:
    """(age, value) of the events a window reads at ``t``, newest first."""
    visible = [e for e in events if e.encounter == encounter and e.concept == concept and e.available <= t]
    usable = [
        e for e in visible if not _replaced(e, visible) and e.status != "deleted" and not math.isnan(e.value)
    ]
    past = [e for e in usable if e.time <= t]
    order = sorted(past, key=lambda e: (e.time, e.available, e.source_id or "", e.value), reverse=True)
    aged = [(t - e.time, e.value) for e in order]
    if step:
        latest: dict[int, float] = {}
        for age, value in aged:
            latest.setdefault(age // step * step, value)
        aged = list(latest.items())
    return [(age, value) for age, value in aged if age < lookback]


def statistic(name: str, found: list[tuple[int, float]]) -> float:
    """One statistic of the members, exactly, then rounded once."""
    n = len(found)
    if name == "count":
        return float(n)
    if n == 0:
        return math.nan
    ages = [Fraction(age, HOUR) for age, _ in found]
    values = [Fraction(value) for _, value in found]
    mean = sum(values) / n
    simple = {
        "last": lambda: values[0],
        "hours_since_last": lambda: ages[0],
        "min": lambda: min(values),
        "max": lambda: max(values),
        "mean": lambda: mean,
        "first": lambda: values[-1],
        "delta_from_first": lambda: values[0] - values[-1],
        "sum": lambda: sum(values),
    }
    if name in simple:
        return float(simple[name]())
    if name == "twmean":
        ends = [Fraction(0), *ages[:-1]]
        if ages[-1] == 0:
            return float(values[0])
        held = sum(v * (age - end) for v, age, end in zip(values, ages, ends, strict=True))
        return float(held / ages[-1])
    if n == 1:
        return math.nan
    if name == "delta":
        return float(values[0] - values[1])
    if name == "std":
        return math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    centre = sum(ages) / n
    spread = sum((a - centre) ** 2 for a in ages)
    if spread == 0:
        return math.nan
    return float(sum((centre - a) * (v - mean) for a, v in zip(ages, values, strict=True)) / spread)
