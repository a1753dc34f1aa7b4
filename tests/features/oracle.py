"""The slow, readable definition of a window feature. No numpy tricks, one list comprehension a rule, exact fractions.

The compiled kernel must give the same answer; this file is what a reviewer checks instead of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

HOUR = 3_600_000_000
RANK = {"preliminary": 0, "final": 1, "corrected": 2, "deleted": 3}


class Asked(Protocol):
    """What a window is, as ``features.windows.Window`` says it."""

    concept: str
    statistic: str
    lookback_us: int


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
        return _float(simple[name]())
    if name == "twmean":
        ends = [Fraction(0), *ages[:-1]]
        if ages[-1] == 0:
            return _float(values[0])
        held = sum(v * (age - end) for v, age, end in zip(values, ages, ends, strict=True))
        return _float(held / ages[-1])
    if n == 1:
        return math.nan
    if name == "delta":
        return _float(values[0] - values[1])
    if name == "std":
        return _root(sum((v - mean) ** 2 for v in values) / (n - 1))
    centre = sum(ages) / n
    spread = sum((a - centre) ** 2 for a in ages)
    if spread == 0:
        return math.nan
    return _float(sum((centre - a) * (v - mean) for a, v in zip(ages, values, strict=True)) / spread)


def row(
    events: Iterable[Event], encounter: str, t: int, windows: Sequence[Asked], step: int
) -> list[tuple[float, float]]:
    """Every window at one prediction: what it holds, and :func:`size`."""
    known = list(events)
    found = {
        pair: members(known, encounter, pair[0], t, pair[1], step)
        for pair in {(w.concept, w.lookback_us) for w in windows}
    }
    each = [(w.statistic, found[w.concept, w.lookback_us]) for w in windows]
    return [(statistic(name, some), size(name, some)) for name, some in each]


def size(name: str, found: list[tuple[int, float]]) -> float:
    """How large the numbers are that a statistic adds up: where they cancel, what is left is as exact as they are."""
    values = [value for _, value in found]
    if name == "slope" and len(found) > 1:
        span = max(age for age, _ in found) - min(age for age, _ in found)
        return (max(values) - min(values)) * len(found) / (span / HOUR) if span else 0.0
    return max(map(abs, values), default=0.0)


def _float(exact: Fraction) -> float:
    """The nearest float, infinite beyond the largest."""
    try:
        return float(exact)
    except OverflowError:
        return math.copysign(math.inf, exact)


def _root(exact: Fraction) -> float:
    """Square root, also of what is too large for a float to be squared in."""
    whole = exact.numerator // exact.denominator
    return math.sqrt(exact) if whole < 10**300 else float(math.isqrt(whole))
