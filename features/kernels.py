"""The compiled loops behind :mod:`features.windows`. Nothing clinical in here.

Every loop is nogil, single-threaded and free of fast-math, so a row's bits depend on nothing but the row's own events.
The compiled code is cached beside the module: the second process starts in half a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

F = TypeVar("F", bound=Callable[..., Any])
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

HOUR = 3_600_000_000.0

LAST, SINCE, COUNT, MIN, MAX, MEAN, STD, SLOPE, FIRST, DELTA, DELTA_FIRST, SUM, TWMEAN = range(13)
"""Statistic numbers, in the order of ``windows.STATISTICS``."""

ALL = np.iinfo(np.int64).max
"""Depth of a window that must see every one of its events."""

MOMENTS, TREND, WEIGHTED = 1, 2, 4
"""Bits that say which sums a concept's windows ask for."""


def compiled(function: F) -> F:
    """Compile on first use and keep the result on disk; typed, which numba's own decorator is not."""
    try:
        return cast(F, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # nowhere to write: a read-only image compiles in memory, once a process
        return cast(F, numba.njit(nogil=True)(function))


@compiled
def spread(keys: Ints, n_keys: int, order: Ints) -> Ints:
    """Reorder ``order`` by ``keys[order]``, stably, in linear time (one counting-sort pass)."""
    first = np.zeros(n_keys + 1, np.int64)
    for i in range(order.size):
        first[keys[order[i]] + 1] += 1
    for k in range(n_keys):
        first[k + 1] += first[k]
    out = np.empty_like(order)
    for i in range(order.size):
        k = keys[order[i]]
        out[first[k]] = order[i]
        first[k] += 1
    return out


@compiled
def unsettled(group: Ints, time: Ints, available: Ints) -> npt.NDArray[np.bool_]:
    """Mark every member of those (contiguous) groups that do not rise strictly in (time, available)."""
    flags = np.zeros(group.size, np.bool_)
    first = 0
    for i in range(1, group.size):
        if group[i] != group[i - 1]:
            first = i
        elif flags[i - 1]:
            flags[i] = True
        elif time[i - 1] > time[i] or (time[i - 1] == time[i] and available[i - 1] >= available[i]):
            flags[first : i + 1] = True
    return flags


@compiled
def _seek(time: Ints, low: int, high: int, t: int) -> int:
    """First position in ``[low, high]`` whose time is after ``t``."""
    while low < high:
        middle = (low + high) // 2
        if time[middle] <= t:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _emit(
    statistic: np.int64,
    n: np.int64,
    age: np.int64,
    span: np.int64,
    last: float,
    previous: float,
    oldest: float,
    low: float,
    high: float,
    total: float,
    d1: float,
    d2: float,
    x1: float,
    x2: float,
    xd: float,
    held: float,
    reach: np.int64,
) -> float:
    """One statistic from what the walk has gathered. ``d`` are values less the last one, ``x`` hours before it."""
    if statistic == COUNT:
        return float(n)
    if n == 0:
        return np.nan
    if statistic == LAST:
        return last
    if statistic == SINCE:
        return age / HOUR
    if statistic == MIN:
        return low
    if statistic == MAX:
        return high
    if statistic == MEAN:
        return last + d1 / n
    if statistic == FIRST:
        return oldest
    if statistic == DELTA_FIRST:
        return last - oldest
    if statistic == SUM:
        return total
    if statistic == TWMEAN:
        return last + held / (reach / HOUR) if reach > 0 else last
    if n == 1:
        return np.nan
    if statistic == DELTA:
        return last - previous
    if statistic == STD:
        return float(np.sqrt(max((d2 - d1 * d1 / n) / (n - 1), 0.0)))
    if span == 0:
        return np.nan
    return (xd - x1 * d1 / n) / (x2 - x1 * x1 / n)


@compiled
def rescan(
    row_encounter: Ints,
    row_time: Ints,
    row_out: Ints,
    start: Ints,
    n_flat: int,
    time: Ints,
    available: Ints,
    superseded: Ints,
    value: Floats,
    resample: int,
    concept: Ints,
    needs: Ints,
    level_start: Ints,
    lookback: Ints,
    depth: Ints,
    slot_start: Ints,
    slot_statistic: Ints,
    slot_column: Ints,
    out: npt.NDArray[np.float32],
) -> None:
    """Fill ``out``: for each row and concept, walk backward from the prediction time through nested lookbacks.

    Rows come sorted by encounter, then time. Encounter ``e`` and flat concept ``c`` own the events
    ``start[e * n_flat + c] : start[e * n_flat + c + 1]``, sorted by time; encounter -1 has none. Level ``l`` of a
    concept (rising lookbacks) writes its slots once the walk has passed its edge or has seen the ``depth`` events it
    needs. ``superseded`` is empty, or says when each event stopped being believed.
    """
    n_concepts = concept.size
    revised = superseded.size > 0
    position = np.zeros(n_concepts, np.int64)
    here = np.int64(-2)
    for r in range(row_encounter.size):
        encounter, t, row = row_encounter[r], row_time[r], row_out[r]
        for c in range(n_concepts):
            if encounter < 0:
                first, end = np.int64(0), np.int64(0)
                position[c] = 0
            else:
                group = encounter * n_flat + concept[c]
                first, end = start[group], start[group + 1]
                if encounter != here:
                    position[c] = _seek(time, first, end, t)
                else:
                    while position[c] < end and time[position[c]] <= t:
                        position[c] += 1
            i = position[c] - 1
            moments, trend, weighted = needs[c] & MOMENTS, needs[c] & TREND, needs[c] & WEIGHTED
            n, age, span, reach = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
            bucket = np.int64(-1)
            last = previous = oldest = low = high = total = np.nan
            d1 = d2 = x1 = x2 = xd = held = 0.0
            for level in range(level_start[c], level_start[c + 1]):
                edge, enough = lookback[level], depth[level]
                while i >= first and n < enough:
                    back = t - time[i]
                    if resample > 0:
                        back = back // resample * resample
                    if back >= edge:
                        break
                    if back == bucket or available[i] > t or (revised and superseded[i] <= t):
                        i -= 1
                        continue
                    v = value[i]
                    if resample > 0:
                        bucket = back
                    if n == 0:
                        age = back
                        last = low = high = v
                        total = 0.0
                    elif n == 1:
                        previous = v
                    n += 1
                    oldest = v
                    low = min(low, v)
                    high = max(high, v)
                    total += v
                    d = v - last
                    d1 += d
                    span = back - age
                    if moments:
                        d2 += d * d
                    if trend:
                        x = -span / HOUR
                        x1 += x
                        x2 += x * x
                        xd += x * d
                    if weighted:
                        held += d * ((back - reach) / HOUR)
                        reach = back
                    i -= 1
                for slot in range(slot_start[level], slot_start[level + 1]):
                    out[row, slot_column[slot]] = _emit(
                        slot_statistic[slot], n, age, span, last, previous, oldest, low, high, total,
                        d1, d2, x1, x2, xd, held, reach,
                    )  # fmt: skip
        here = encounter
