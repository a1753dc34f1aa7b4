"""The compiled loops behind :mod:`features.windows`. Nothing clinical in here.

Every loop is nogil, single-threaded and free of fast-math, so a row's bits depend on nothing but the row's own events.
The compiled code is cached beside the module: the second process starts in half a second.

Two roads lead to a window. :func:`_walk` rescans it, newest event first, and can do everything: two clocks in any
order, revisions, resampling. :func:`_slide` serves the usual case, in which the events that may be read at a time are
always the first so many of their concept: two positions then mark the window, and smallest, largest and sum come from
tables made once for all rows. Both roads give the same bits, because every statistic is defined by what is in the
window and not by how it was reached: the order of counting does not matter to smallest, largest and count, and sums are
exact (:func:`_split`); spread, slope and the mean weighted by time are added up newest first on either road.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba.np import linalg

F = TypeVar("F", bound=Callable[..., Any])
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Counts = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Whole = Any  # an int64 or an uint64; the compiler knows which, the type checker would want casts

PER_HOUR = 1 / 3_600_000_000.0
FAR = np.iinfo(np.int64).max
"""Later than any time; as a lookback, the whole encounter."""

LAST, SINCE, COUNT, MIN, MAX, MEAN, STD, SLOPE, FIRST, DELTA, DELTA_FIRST, SUM, TWMEAN = range(13)
"""Statistic numbers, in the order of ``windows.STATISTICS``."""

ALL = np.iinfo(np.int64).max
"""Depth of a window that must see every one of its events."""

EXTREMES, MOMENTS, TREND, WEIGHTED = 1, 2, 4, 8
"""Bits that say what a concept's windows ask for beside counts and sums."""
AMOUNT, LATEST, TALLY = 1, 2, 4
"""Bits that say what one level asks for: count, mean, min, max; last and its age; anything else."""

ZERO, ONE, TWO = (
    np.uint64(0),
    np.uint64(1),
    np.uint64(2),
)  # typed: numba turns an unsigned and a signed integer into a float
LONGEST = 65_536
"""More events than this of one concept in one encounter are walked: the tables would grow too large."""
FEWEST = 3
"""Fewer rows than this are walked: the tables would cost more than they save."""
PAGE = 1 << 20
"""Output cells finished in the cache before they go out to memory."""


def _without_linear_algebra() -> None:
    """Load what numba knows of arrays, and leave SciPy's linear algebra for whoever compiles a matrix product.

    Numba asks for it here only to know that it is there, before any function can run: a quarter of a second of a start.
    """
    asked, linalg.ensure_blas = linalg.ensure_blas, lambda: None
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = asked


_without_linear_algebra()
_jit: Any = numba.njit
"""Not as numba types it: without the option that spares counting."""


def compiled(function: F) -> F:
    """Compile on first use and keep the result on disk; typed, which numba's own decorator is not."""
    return _compiled(function)


def lent(function: F) -> F:
    """The same for a function that makes no array: its caller holds them all, so that none need be counted.

    Numba otherwise counts each array up and down, atomically, wherever a variable takes it: a twelfth of all the time.
    """
    return _compiled(function, _nrt=False)


def inlined(function: F) -> F:
    """Compile into each caller, as one that is :func:`lent` its arrays."""
    return cast(F, _jit(nogil=True, error_model="numpy", inline="always", _nrt=False)(function))


def _compiled(function: F, **options: bool) -> F:
    try:
        return cast(F, _jit(cache=True, nogil=True, error_model="numpy", **options)(function))
    except RuntimeError:  # nowhere to write: a read-only image compiles in memory, once a process
        return cast(F, _jit(nogil=True, error_model="numpy", **options)(function))


@compiled
def spread(keys: Codes, n_keys: int, order: Ints) -> Ints:
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
def looked_up(codes: Codes, place: Codes) -> Codes:
    """What each code stands for; code -1 for the last place."""
    found = np.empty(codes.size, np.int32)
    for i in range(codes.size):
        found[i] = place[codes[i]]
    return found


@compiled
def count(
    encounter: Codes, concept: Codes, known: Codes, n_concepts: int, value: Floats, counts: Ints
) -> int:
    """Add up how many events each encounter and concept has, and return how many values are infinite.

    ``known`` says of each code which concept it is, its last item of code -1. Events without an encounter, a concept
    (-1) or a value (NaN) are none.
    """
    infinite, width = 0, np.uint64(n_concepts)
    for i in range(encounter.size):
        who, what, v = encounter[i], known[concept[i]], value[i]
        if who >= 0 and what >= 0 and not np.isnan(v):
            infinite += np.isinf(v)
            counts[np.uint64(who) * width + np.uint64(what)] += 1
    return infinite


@compiled
def lay_out(
    encounter: Codes,
    concept: Codes,
    known: Codes,
    n_concepts: int,
    time: Ints,
    available: Ints,
    value: Floats,
    place: Ints,
    times: Ints,
    visible: Ints,
    values: Floats,
) -> None:
    """Put the events that :func:`count` counted side by side, each group from its ``place`` on, as they came."""
    width = np.uint64(n_concepts)
    for i in range(encounter.size):
        who, what, v = encounter[i], known[concept[i]], value[i]
        if who >= 0 and what >= 0 and not np.isnan(v):
            group = np.uint64(who) * width + np.uint64(what)
            at = np.uint64(place[group])
            place[group] = at + ONE
            times[at], visible[at] = time[i], available[i]
            values[at] = v + 0.0  # no negative zero: which of two is smaller would depend on the road


@compiled
def rises(start: Ints, time: Ints, available: Ints) -> bool:
    """Whether every group rises strictly in (time, available), which settles its order."""
    for g in range(start.size - 1):
        for i in range(start[g] + 1, start[g + 1]):
            if time[i - 1] > time[i] or (time[i - 1] == time[i] and available[i - 1] >= available[i]):
                return False
    return True


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


class Facts(NamedTuple):
    """Events of a cohort, sorted by encounter, concept and time.

    Encounter ``e`` and flat concept ``c`` own the events ``start[e * width + c] : start[e * width + c + 1]``.
    ``superseded`` is empty, or says when each event stopped being believed.
    """

    start: Ints
    width: int
    time: Ints
    available: Ints
    superseded: Ints
    value: Floats


class Plan(NamedTuple):
    """Windows as numbers.

    Window concept ``c`` is the flat concept ``concept[c]`` and owns the levels (rising lookbacks)
    ``level_start[c] : level_start[c + 1]``; ``needs`` says what it asks for. Level ``l`` owns the slots
    ``slot_start[l] : slot_start[l + 1]``, each a ``statistic`` and the ``column`` it goes to, and has seen enough after
    ``depth`` events. ``asked[l]`` says what kinds of statistics it wants, and ``place[l]`` where those of
    ``windows.PLACED`` go: to a column, or to column ``n_columns``, which nobody reads.
    """

    concept: Ints
    needs: Ints
    level_start: Ints
    lookback: Ints
    depth: Ints
    slot_start: Ints
    statistic: Ints
    column: Ints
    asked: Ints
    place: Ints
    n_columns: int


class Desk(NamedTuple):
    """Room to work in, for one concept of one encounter.

    ``seen``: when each event is past and visible, closed by ``FAR``. ``sums``: the two parts of the sum of the first so
    many values. ``extreme``: smallest value and smallest negated value of every run of 1, 2, 4 … events; ``depth``,
    ``run`` and ``row`` say for a number of events how many such powers there are, how long the longest is and where its
    table begins (twice each, since cells come in pairs). ``share``: one divided by a number of events. ``first`` and
    ``stop``: the events in each row's window. ``page``: the finished rows, with one column more for what nobody wants.
    """

    seen: Ints
    sums: Floats
    extreme: Singles
    depth: Counts
    run: Counts
    row: Counts
    share: Floats
    first: Counts
    stop: Counts
    page: Singles


@compiled
def fill(
    row_encounter: Ints,
    row_time: Ints,
    row_out: Ints,
    facts: Facts,
    plan: Plan,
    resample: int,
    out: Singles,
    extra: Singles,
) -> None:
    """Fill ``out``, and ``extra`` with the plan's last columns: every window of the plan at every row.

    Rows come sorted by encounter, then time; encounter -1 has no events. ``row_out`` says where each goes. ``resample``
    is a step in microseconds, or 0.
    """
    desk = _desk(row_encounter, facts, plan)
    _fill(row_encounter, row_time, row_out, facts, plan, resample, out, extra, desk)


@lent
def _fill(
    row_encounter: Ints,
    row_time: Ints,
    row_out: Ints,
    facts: Facts,
    plan: Plan,
    resample: int,
    out: Singles,
    extra: Singles,
    desk: Desk,
) -> None:
    """The same, with room to work in."""
    longest = desk.page.shape[0]
    r = 0
    while r < row_encounter.size:
        encounter = row_encounter[r]
        stop = r + 1
        while stop < row_encounter.size and stop - r < longest and row_encounter[stop] == encounter:
            stop += 1
        times = row_time[r:stop]
        steady = _steady(times, resample)
        for c in range(plan.concept.size):
            first, end = np.int64(0), np.int64(0)
            if encounter >= 0:
                group = encounter * facts.width + plan.concept[c]
                first, end = facts.start[group], facts.start[group + 1]
            slides = end == first or (steady and stop - r >= FEWEST and end - first <= LONGEST)
            if slides and _prepare(facts, first, end, times[0], resample, desk):
                _slide(times, facts.time[first:end], facts.value[first:end], c, plan, desk)
            else:
                for q in range(stop - r):
                    _walk(times[q], first, end, facts, c, plan, resample, desk.page[q])
        _lay_down(row_out[r:stop], desk.page, plan.n_columns - extra.shape[1], out, extra)
        r = stop


@lent
def _lay_down(row_out: Ints, page: Singles, n_columns: int, out: Singles, extra: Singles) -> None:
    """Copy finished rows to where they belong."""
    for q in range(row_out.size):
        o = row_out[q]
        for k in range(n_columns):
            out[o, k] = page[q, k]
        for k in range(extra.shape[1]):
            extra[o, k] = page[q, n_columns + k]


@compiled
def _desk(row_encounter: Ints, facts: Facts, plan: Plan) -> Desk:
    """Room for the longest run of rows and the largest group among the encounters asked about."""
    rows, longest, most = 0, 1, 0
    for r in range(row_encounter.size):
        encounter = row_encounter[r]
        rows = rows + 1 if r and row_encounter[r - 1] == encounter else 1
        longest = max(longest, rows)
        if rows == 1 and encounter >= 0:
            for c in range(plan.concept.size):
                group = encounter * facts.width + plan.concept[c]
                size = facts.start[group + 1] - facts.start[group]
                if size <= LONGEST:
                    most = max(most, size)
    longest = min(longest, max(PAGE // (plan.n_columns + 1), 64))
    if longest < FEWEST:
        most = 0  # everything will be walked, or is empty
    depth, run, row = (
        np.zeros(most + 2, np.uint64),
        np.zeros(most + 2, np.uint64),
        np.zeros(most + 2, np.uint64),
    )
    share = np.full(most + 2, np.nan)
    for n in range(1, most + 2):
        half = n // 2
        depth[n] = depth[half] + ONE
        run[n] = TWO * run[half] if half else TWO
        row[n] = (depth[n] - ONE) * TWO * np.uint64(most + 1)
        share[n] = 1.0 / n
    extreme = np.empty(np.int64(depth[most + 1]) * 2 * (most + 1) + 2, np.float32)
    return Desk(
        np.empty(most + 1, np.int64), np.zeros(2 * (most + 1), np.float64), extreme, depth, run, row, share,
        np.empty(longest, np.uint64), np.empty(longest, np.uint64),
        np.empty((longest, plan.n_columns + 1), np.float32),
    )  # fmt: skip


@lent
def _steady(times: Ints, resample: int) -> bool:
    """Whether rows lie whole resampling steps apart, so that an event falls into buckets that do not move."""
    if resample > 0:
        for q in range(times.size):
            if (times[q] - times[0]) % resample != 0:
                return False
    return True


@lent
def _split(v: float) -> tuple[float, float]:
    """A value as two parts whose sums are exact, so that they depend on what is added and not on the order.

    The coarse part is the nearest multiple of 2**-16, the fine one what is left, to the nearest multiple of 2**-52. Up
    to 2**17 values below 2**20 add up within the 53 bits of a float64; of values above 2**-20 at least 32 bits are
    kept, and a value and its negative have parts that cancel.
    """
    coarse = np.rint(v * 65536.0) * 2.0**-16
    return coarse, np.rint((v - coarse) * 2.0**52) * 2.0**-52


@lent
def _ordinary(v: float) -> bool:
    """Whether :func:`_split` can take the value; clinical quantities in canonical units are such."""
    return v == 0.0 or (abs(v) < 2.0**20 and abs(v) >= 2.0**-20)


@inlined
def _prepare(facts: Facts, first: Whole, end: Whole, now: Whole, resample: Whole, desk: Desk) -> bool:
    """Lay out one group for :func:`_slide`; False when it must be walked.

    It must when an event becomes readable before an earlier one, was revised, cannot be split, or when resampling would
    move an event or drop one. None of this can change a bit, only the road.
    """
    time, available, superseded, value = facts.time, facts.available, facts.superseded, facts.value
    readable, sums, extreme = desk.seen, desk.sums, desk.extreme
    coarse, fine, before = 0.0, 0.0, np.int64(-FAR)
    for k in range(first, end):
        i = np.uint64(k - first)
        v = value[k]
        seen = max(time[k], available[k])
        revised = superseded.size > 0 and superseded[k] != FAR
        if seen < before or revised or not _ordinary(v):
            return False
        if resample > 0:
            again = k > first and time[k] == time[k - 1]
            if again or (now - time[k]) % resample != 0:
                return False
        before = seen
        readable[i] = seen
        parts = _split(v)
        coarse += parts[0]
        fine += parts[1]
        sums[TWO * i + TWO] = coarse
        sums[TWO * i + TWO + ONE] = fine
        extreme[TWO * i] = np.float32(v)
        extreme[TWO * i + ONE] = -np.float32(v)
    readable[np.uint64(end - first)] = FAR
    return True


@inlined
def _slide(times: Ints, time: Ints, value: Floats, c: Whole, plan: Plan, desk: Desk) -> None:
    """Every window of one concept at all the rows of an encounter, from two positions that only move forward."""
    readable, stops = desk.seen, desk.stop
    size = np.uint64(time.size)
    stop, appears = ZERO, readable[ZERO]
    for q in range(times.size):
        while appears <= times[q]:
            stop += ONE
            appears = readable[stop]
        stops[q] = stop
    if plan.needs[c] & EXTREMES:
        _extremes(size, desk)
    for level in range(plan.level_start[c], plan.level_start[c + 1]):
        asked, place = plan.asked[level], plan.place[level]
        if asked & AMOUNT:
            _amounts(times, time, plan.lookback[level], place, desk)
        if asked & LATEST:
            _latest(times, time, value, plan.lookback[level], place, desk)
        if asked & TALLY:
            _firsts(times, time, plan.lookback[level], desk)
            for slot in range(plan.slot_start[level], plan.slot_start[level + 1]):
                if plan.statistic[slot] in (FIRST, DELTA, DELTA_FIRST, SUM, STD, SLOPE, TWMEAN):
                    _tallies(plan.statistic[slot], times, time, value, plan.column[slot], desk)


@inlined
def _extremes(size: Whole, desk: Desk) -> None:
    """Smallest value, and smallest negated value, of every run of 2, 4, 8 … events, each from two runs of half that."""
    extreme, seen = desk.extreme, desk.seen
    half = TWO
    for d in range(ONE, desk.depth[size]):
        shorter = (np.uint64(d) - ONE) * TWO * np.uint64(seen.size)
        longer = shorter + TWO * np.uint64(seen.size)
        for k in range(TWO * size - half * TWO + TWO):
            one, other = extreme[shorter + np.uint64(k)], extreme[shorter + np.uint64(k) + half]
            extreme[longer + np.uint64(k)] = one if one < other else other
        half = half * TWO


@inlined
def _amounts(times: Ints, time: Ints, edge: Whole, place: Ints, desk: Desk) -> None:
    """Count, mean, min and max of each row's window, worked out anew only where the window changed."""
    stops, run, row, share = desk.stop, desk.run, desk.row, desk.share
    sums, extreme, page = desk.sums, desk.extreme, desk.page
    at_count, at_mean, at_low, at_high = place[0], place[1], place[2], place[3]
    rows, size, first, q = np.uint64(times.size), np.uint64(time.size), ZERO, ZERO
    leaves = FAR if size == ZERO or edge == FAR else time[first] + edge
    nothing = np.float32(np.nan)
    while q < rows:
        while leaves <= times[q]:
            first += ONE
            leaves = FAR if first == size else time[first] + edge
        stop = stops[q]
        start = first if first < stop else stop
        n = stop - start
        count = np.float32(np.int64(n))
        coarse = sums[TWO * stop] - sums[TWO * start]
        fine = sums[TWO * stop + ONE] - sums[TWO * start + ONE]
        mean = np.float32((coarse + fine) * share[n])
        low = high = nothing
        if n > ZERO:
            head = row[n] + TWO * start
            tail = row[n] + TWO * stop - run[n]
            low = extreme[head] if extreme[head] < extreme[tail] else extreme[tail]
            head, tail = head + ONE, tail + ONE
            high = -(extreme[head] if extreme[head] < extreme[tail] else extreme[tail])
        while True:
            page[q, at_count] = count
            page[q, at_mean] = mean
            page[q, at_low] = low
            page[q, at_high] = high
            q += ONE
            if q == rows or stops[q] != stop or leaves <= times[q]:
                break


@inlined
def _latest(times: Ints, time: Ints, value: Floats, edge: Whole, place: Ints, desk: Desk) -> None:
    """Latest value of each row's window, and its age."""
    stops, page = desk.stop, desk.page
    at_value, at_age = place[4], place[5]
    nothing = np.float32(np.nan)
    for q in range(times.size):
        stop = stops[q]
        last = age = nothing
        if stop > ZERO:
            since = times[q] - time[stop - ONE]
            if since < edge:
                last = np.float32(value[stop - ONE])
                age = np.float32(since * PER_HOUR)
        page[q, at_value] = last
        page[q, at_age] = age


@inlined
def _firsts(times: Ints, time: Ints, edge: Whole, desk: Desk) -> None:
    """The first event inside each row's window; behind the last one that may be read when there is none."""
    firsts, stops = desk.first, desk.stop
    first, size = ZERO, np.uint64(time.size)
    leaves = FAR if size == ZERO or edge == FAR else time[first] + edge
    for q in range(times.size):
        while leaves <= times[q]:
            first += ONE
            leaves = FAR if first == size else time[first] + edge
        firsts[q] = first if first < stops[q] else stops[q]


@inlined
def _tallies(statistic: Whole, times: Ints, time: Ints, value: Floats, column: Whole, desk: Desk) -> None:
    """One column of the statistics that need the window's two ends, or all of its values."""
    firsts, stops, page = desk.first, desk.stop, desk.page
    start_before, stop_before, found = ZERO, ZERO, np.float32(np.nan)
    for q in range(times.size):
        start, stop = firsts[q], stops[q]
        if start != start_before or stop != stop_before or statistic == TWMEAN:
            start_before, stop_before = start, stop
            found = np.float32(_tally(statistic, times[q], time, value, start, stop, desk.sums))
        page[q, column] = found


@lent
def _tally(
    statistic: Whole, t: Whole, time: Ints, value: Floats, start: Whole, stop: Whole, sums: Floats
) -> Any:
    """One statistic of ``value[start:stop]``; spread, slope and time-weighted mean newest first, as :func:`_walk`."""
    n = np.int64(stop - start)
    if n == 0:
        return np.nan
    if statistic == FIRST:
        return value[start]
    if statistic == DELTA_FIRST:
        return value[stop - ONE] - value[start]
    if statistic == DELTA:
        return value[stop - ONE] - value[stop - TWO] if n > 1 else np.nan
    if statistic == SUM:
        head, tail = TWO * start, TWO * stop
        return (sums[tail] - sums[head]) + (sums[tail + ONE] - sums[head + ONE])
    last, age = value[stop - ONE], t - time[stop - ONE]
    d1 = d2 = x1 = x2 = xd = held = 0.0
    span, reach = np.int64(0), np.int64(0)
    k = stop
    for _ in range(n):
        k -= ONE
        back = t - time[k]
        d = value[k] - last
        span = back - age
        d1 += d
        if statistic == STD:
            d2 += d * d
        elif statistic == SLOPE:
            x = -span * PER_HOUR
            x1 += x
            x2 += x * x
            xd += x * d
        else:
            held += d * ((back - reach) * PER_HOUR)
            reach = back
    return _fold(statistic, n, span, last, d1, d2, x1, x2, xd, held, reach)


@lent
def _fold(
    statistic: Whole, n: Whole, span: Whole, last: float, d1: float, d2: float, x1: float, x2: float, xd: float,
    held: float, reach: Whole,
) -> Any:  # fmt: skip
    """Spread, slope or time-weighted mean from sums. ``d`` are values less the last one, ``x`` hours before it."""
    if statistic == TWMEAN:
        return last + held / (reach * PER_HOUR) if reach > 0 else last
    if n == 1:
        return np.nan
    if statistic == STD:
        return np.sqrt(max((d2 - d1 * d1 / n) / (n - 1), 0.0))
    if span == 0:
        return np.nan
    return (xd - x1 * d1 / n) / (x2 - x1 * x1 / n)


@lent
def _emit(
    statistic: Whole, n: Whole, age: Whole, span: Whole, last: float, previous: float, oldest: float, low: float,
    high: float, total: float, d1: float, d2: float, x1: float, x2: float, xd: float, held: float, reach: Whole,
) -> Any:  # fmt: skip
    """One statistic from what the walk has gathered."""
    if statistic == COUNT:
        return float(n)
    if n == 0:
        return np.nan
    if statistic == LAST:
        return last
    if statistic == SINCE:
        return age * PER_HOUR
    if statistic == MIN:
        return low
    if statistic == MAX:
        return high
    if statistic == MEAN:
        return total * (1.0 / n)
    if statistic == SUM:
        return total
    if statistic == FIRST:
        return oldest
    if statistic == DELTA_FIRST:
        return last - oldest
    if statistic == DELTA:
        return last - previous if n > 1 else np.nan
    return _fold(statistic, n, span, last, d1, d2, x1, x2, xd, held, reach)


@lent
def _walk(
    t: Whole, first: Whole, end: Whole, facts: Facts, c: Whole, plan: Plan, resample: Whole, page: Singles
) -> None:
    """Every window of one concept at one row, walking backward from the prediction time through nested lookbacks."""
    time, available, superseded, value = facts.time, facts.available, facts.superseded, facts.value
    needs = plan.needs[c]
    moments, trend, weighted = needs & MOMENTS, needs & TREND, needs & WEIGHTED
    revised = superseded.size > 0
    i = _seek(time, first, end, t) - 1
    n, age, span, reach, odd = np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    bucket = np.int64(-1)
    last = previous = oldest = low = high = np.nan
    plain = coarse = fine = d1 = d2 = x1 = x2 = xd = held = 0.0
    for level in range(plan.level_start[c], plan.level_start[c + 1]):
        edge, enough = plan.lookback[level], plan.depth[level]
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
            elif n == 1:
                previous = v
            n += 1
            oldest = v
            low = min(low, v)
            high = max(high, v)
            if _ordinary(v):
                parts = _split(v)
                coarse += parts[0]
                fine += parts[1]
            else:
                odd += 1
            plain += v
            d = v - last
            d1 += d
            span = back - age
            if moments:
                d2 += d * d
            if trend:
                x = -span * PER_HOUR
                x1 += x
                x2 += x * x
                xd += x * d
            if weighted:
                held += d * ((back - reach) * PER_HOUR)
                reach = back
            i -= 1
        total = plain if odd else coarse + fine
        for slot in range(plan.slot_start[level], plan.slot_start[level + 1]):
            page[plan.column[slot]] = np.float32(
                _emit(
                    plan.statistic[slot], n, age, span, last, previous, oldest, low, high, total,
                    d1, d2, x1, x2, xd, held, reach,
                )
            )  # fmt: skip


@lent
def _seek(time: Ints, low: int, high: int, t: int) -> int:
    """First position in ``[low, high]`` whose time is after ``t``."""
    while low < high:
        middle = (low + high) // 2
        if time[middle] <= t:
            low = middle + 1
        else:
            high = middle
    return low


class Marks(NamedTuple):
    """Ratios and clinical scores as numbers, to be worked out from finished windows.

    A column ``c`` below the width of the output is read there, else in ``extra``. ``ratio`` has numerator and
    denominator columns. Score ``s`` owns the parts ``part_start[s] : part_start[s + 1]`` and is ``partial`` or whole; a
    part owns components, of which the worst or the first present one counts (``worst``); a component reads
    ``operand[operand_start[k] : operand_start[k + 1]]``, as a quotient (``quotient``) or a sum, has the bands
    ``band_start[k] : band_start[k + 1]`` and holds where any of its ``either`` groups of conditions does.
    """

    ratio: Ints
    partial: Ints
    part_start: Ints
    worst: Ints
    component_start: Ints
    quotient: Ints
    operand_start: Ints
    operand: Ints
    band_start: Ints
    band: Singles
    points: Singles
    either_start: Ints
    condition_start: Ints
    condition_column: Ints
    condition_relation: Ints
    condition_value: Singles


AT_LEAST, AT_MOST, ABOVE, BELOW, EQUAL = range(5)
"""Relations of a condition."""


@compiled
def appraise(rows: Ints, marks: Marks, first: int, out: Singles, extra: Singles) -> None:
    """Write ratios, then scores, into the columns of ``out`` from ``first`` on, for some rows; column by column."""
    n_ratios = marks.ratio.shape[0]
    value, other = np.empty(rows.size, np.float32), np.empty(rows.size, np.float32)
    found, total = np.empty(rows.size, np.float32), np.empty(rows.size, np.float32)
    holds, met, present = (
        np.empty(rows.size, np.bool_),
        np.empty(rows.size, np.bool_),
        np.empty(rows.size, np.int64),
    )
    for k in range(n_ratios):
        _fetch(rows, marks.ratio[k, 0], first, out, extra, value)
        _fetch(rows, marks.ratio[k, 1], first, out, extra, other)
        _divide(value, other)
        for i in range(rows.size):
            out[rows[i], first + k] = value[i]
    for s in range(marks.partial.size):
        total[:], present[:] = 0, 0
        for p in range(marks.part_start[s], marks.part_start[s + 1]):
            found[:] = np.nan
            for k in range(marks.component_start[p], marks.component_start[p + 1]):
                _combine(rows, k, marks, first, out, extra, value, other)
                _holds(rows, k, marks, first, out, extra, other, met, holds)
                band, stop = marks.band_start[k], marks.band_start[k + 1]
                _grade(value, holds, marks.band[band:stop], marks.points[band:stop], marks.worst[p], found)
            for i in range(rows.size):
                if not np.isnan(found[i]):
                    total[i] += found[i]
                    present[i] += 1
        wanted = np.int64(1) if marks.partial[s] else marks.part_start[s + 1] - marks.part_start[s]
        for i in range(rows.size):
            out[rows[i], first + n_ratios + s] = total[i] if present[i] >= wanted else np.float32(np.nan)


@inlined
def _fetch(rows: Ints, column: Whole, first: Whole, out: Singles, extra: Singles, into: Singles) -> None:
    """A finished window at some rows."""
    if column < first:
        for i in range(rows.size):
            into[i] = out[rows[i], column]
    else:
        for i in range(rows.size):
            into[i] = extra[rows[i], column - first]


@inlined
def _divide(value: Singles, other: Singles) -> None:
    """Quotients in place of ``value``, missing where the denominator is 0."""
    for i in range(value.size):
        value[i] = value[i] / other[i] if other[i] != 0 else np.float32(np.nan)


@inlined
def _combine(
    rows: Ints,
    k: Whole,
    marks: Marks,
    first: Whole,
    out: Singles,
    extra: Singles,
    value: Singles,
    other: Singles,
) -> None:
    """What a component reads: one window, a quotient or a sum."""
    start = marks.operand_start[k]
    _fetch(rows, marks.operand[start], first, out, extra, value)
    for o in range(start + 1, marks.operand_start[k + 1]):
        _fetch(rows, marks.operand[o], first, out, extra, other)
        if marks.quotient[k]:
            _divide(value, other)
        else:
            value += other


@inlined
def _holds(
    rows: Ints,
    k: Whole,
    marks: Marks,
    first: Whole,
    out: Singles,
    extra: Singles,
    value: Singles,
    met: npt.NDArray[np.bool_],
    holds: npt.NDArray[np.bool_],
) -> None:
    """Where all conditions of one of a component's groups are met, or it has none. A missing value meets none."""
    holds[:] = marks.either_start[k] == marks.either_start[k + 1]
    for either in range(marks.either_start[k], marks.either_start[k + 1]):
        met[:] = True
        for c in range(marks.condition_start[either], marks.condition_start[either + 1]):
            _fetch(rows, marks.condition_column[c], first, out, extra, value)
            relation, limit = marks.condition_relation[c], marks.condition_value[c]
            for i in range(rows.size):
                met[i] = met[i] and (
                    (relation == AT_LEAST and value[i] >= limit)
                    or (relation == AT_MOST and value[i] <= limit)
                    or (relation == ABOVE and value[i] > limit)
                    or (relation == BELOW and value[i] < limit)
                    or (relation == EQUAL and value[i] == limit)
                )
        for i in range(rows.size):
            holds[i] = holds[i] or met[i]


@inlined
def _grade(
    value: Singles, holds: npt.NDArray[np.bool_], band: Singles, points: Singles, worst: Whole, found: Singles
) -> None:
    """Points by band, where the value is present and its conditions hold, kept if first or worse than what is known."""
    for i in range(value.size):
        if holds[i] and not np.isnan(value[i]):
            b = 0
            while b + 1 < band.size and band[b + 1] <= value[i]:
                b += 1
            if np.isnan(found[i]) or (worst and points[b] > found[i]):
                found[i] = points[b]
