"""Each feature against its reference: measured, in range, in the right unit, distributed as before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from serving.monitoring.findings import Batch, Limits, Reference, Sign
from serving.monitoring.statistics import (
    Bools,
    Floats,
    Ints,
    design_effect,
    false_discovery,
    ks_probability,
    population_stability,
    proportion_probability,
)

ALMOST_ALWAYS: Final = 0.95
"""Nothing is measured in everyone: one patient without a heart rate is not yet a broken interface."""

LEVEL_STATISTICS: Final = ("last", "first", "min", "max", "mean", "twmean")
"""Statistics that carry their concept's unit, so that a wrong unit shows in them undistorted."""


@dataclass(frozen=True, slots=True)
class MixUp:
    """A unit that a concept's values may arrive in by mistake: ``seen = value * factor + offset``."""

    label: str
    factor: float
    offset: float = 0.0


@dataclass(frozen=True)
class Measured:
    """What was measured of every feature, and the rows of the batch as places in the reference.

    Attributes
    ----------
    table : DataFrame, one row a feature, in the reference's order
        ``feature, concept, n, effective, missing_reference, missing_now, missing_q, psi, ks, shift_q, median_reference,
        median_now``, and ``above`` and ``below``, the shares beyond the reference's outer quantiles.
    effect : shape (n_features,)
        Rows that weigh as one.
    rank : float32, shape (n, n_features)
        Each value's place in the reference, 0 to 1, NaN = missing; exactly 0 below the lowest quantile kept.
    split : shape (n_features,), bool and level
        Where the cumulative shares part most: level in the reference, and whether today lies below it.
    bins : list of (now, reference)
        Per feature the shares of values in about ten bins; empty where the feature was not compared.
    """

    table: pd.DataFrame
    effect: Floats
    rank: npt.NDArray[np.float32]
    split: Floats
    below: Bools
    bins: list[tuple[list[float], list[float]]]


@dataclass(frozen=True, slots=True)
class _Feature:
    """One feature compared."""

    psi: float
    ks: float
    p: float
    split: float
    below: bool
    now: tuple[float, ...] = ()
    then: tuple[float, ...] = ()


def concept_of(name: str) -> str:
    """The concept part of a feature name; ratios and scores stand for themselves."""
    return name.split("__", 1)[0]


def is_level(name: str) -> bool:
    """Whether a feature is in its concept's own unit."""
    statistic = name.split("__", 1)[1] if "__" in name else ""
    return statistic.split("_", 1)[0] in LEVEL_STATISTICS


def measure(matrix: npt.NDArray[np.float32], batch: Batch, reference: Reference, limits: Limits) -> Measured:
    """Compare every feature with its reference; never raises on bad values, and says nothing where it cannot know.

    Parameters
    ----------
    matrix : shape (n, n_features)
        Columns in the order of ``reference.names``; NaN = missing.
    """
    n, n_features = matrix.shape
    steps = [_steps(reference.quantiles[j], reference.levels) for j in range(n_features)]
    places = [_place(matrix[:, j], steps[j][0]) for j in range(n_features)]
    rank = np.full((n, n_features), np.nan, np.float32)
    for j in range(n_features):
        if len(steps[j][0]):
            rank[:, j] = _rank(matrix[:, j], places[j], steps[j])
    known = ~np.isnan(matrix)
    effect = design_effect(rank, batch.stay)
    n_known = known.sum(axis=0).astype(np.float64)
    judged = (n_known / effect >= limits.min_effective) & (_stays(known, batch.stay) >= limits.min_stays)
    known_then = reference.n * (1 - reference.missing)
    compared = [
        _compare(
            matrix[:, j], places[j], steps[j], (n_known[j] / effect[j], known_then[j]), reference.resolution
        )
        if judged[j] and len(steps[j][0])
        else _Feature(np.nan, np.nan, np.nan, np.nan, False)
        for j in range(n_features)
    ]
    table = pd.DataFrame(
        {
            "feature": list(reference.names),
            "concept": [concept_of(f) for f in reference.names],
            "n": n_known.astype(np.int64),
            "effective": n_known / effect,
            "missing_reference": reference.missing,
            "missing_now": 1 - n_known / max(n, 1),
            "missing_q": _missing_q(known, batch, reference, limits),
            "psi": [f.psi for f in compared],
            "ks": [f.ks for f in compared],
            "shift_q": false_discovery(np.array([f.p for f in compared], np.float64)),
            "median_reference": _medians_then(reference),
            "median_now": medians(matrix),
            "above": _share(rank > reference.levels[-1], n_known),
            "below": _share(rank == 0, n_known),
        }
    )
    return Measured(
        table=table,
        effect=effect,
        rank=rank,
        split=np.array([f.split for f in compared], np.float64),
        below=np.array([f.below for f in compared], bool),
        bins=[([round(s, 4) for s in f.now], [round(s, 4) for s in f.then]) for f in compared],
    )


def _stays(known: Bools, stay: Ints) -> Ints:
    """How many encounters have a value, per column."""
    order = np.argsort(stay, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(stay[order]) != 0])
    return np.asarray(np.logical_or.reduceat(known[order], starts, axis=0).sum(axis=0), dtype=np.int64)


def _steps(quantiles: Floats, levels: Floats) -> tuple[Floats, Floats]:
    """The reference's distinct quantile values (ascending), and the share of the reference at or below each."""
    if np.isnan(quantiles).any():
        return np.empty(0), np.empty(0)
    tolerance = _tolerance(quantiles)
    last = np.flatnonzero(np.r_[np.diff(quantiles) > tolerance[1:], True])
    return quantiles[last] + tolerance[last], levels[last]


def _tolerance(values: Floats) -> Floats:
    """Profiles keep five digits and features are float32: equal values may differ in the fifth."""
    return np.asarray(2e-5 * np.abs(values) + 1e-9)


def _place(values: npt.NDArray[np.float32], steps: Floats) -> Ints:
    """Index of the first step at or above each value; ``len(steps)`` above the last; -1 where missing."""
    place = np.searchsorted(steps, values.astype(np.float64), side="left").astype(np.int64)
    return np.where(np.isnan(values), -1, place)


def _rank(
    values: npt.NDArray[np.float32], place: Ints, steps: tuple[Floats, Floats]
) -> npt.NDArray[np.float32]:
    """Mid-level of each step, the last one reaching up to 1; 0 below the first."""
    edges = np.r_[0.0, steps[1], 1.0]
    middle = np.where(place < 0, np.nan, ((edges[1:] + edges[:-1]) / 2)[place])
    return np.where(_under(values, place, steps[0]), 0.0, middle).astype(np.float32)


def _under(values: npt.NDArray[np.float32], place: Ints, edges: Floats) -> Bools:
    """Which values lie below the lowest quantile kept, and not on it."""
    return np.asarray((place == 0) & (values < edges[0] - 2 * _tolerance(edges)[0]))


def _compare(
    values: npt.NDArray[np.float32],
    place: Ints,
    steps: tuple[Floats, Floats],
    sizes: tuple[float, float],
    resolution: float,
) -> _Feature:
    edges, levels = steps
    n, m = sizes
    count = np.bincount(place[place >= 0], minlength=len(edges) + 1)
    now = np.cumsum(count)[:-1] / count.sum()
    under = float(_under(values, place, edges).sum() / count.sum())
    gaps = now - levels
    widest = int(np.argmax(np.abs(gaps)))
    ks = max(float(np.abs(gaps[widest])), under)
    cuts = np.unique(np.searchsorted(levels, np.arange(1, 10) / 10 - 1e-9))
    cuts = cuts[cuts < len(levels) - 1]  # above the last kept quantile nothing is known of the reference
    expected = np.diff(np.r_[0.0, levels[cuts], 1.0])
    share = np.diff(np.r_[0.0, now[cuts], 1.0])
    p_ks = float(ks_probability(max(0.0, ks - resolution), n, m))
    p_bins = _pearson(share, expected, sizes, resolution)
    psi = population_stability(share, expected, n, m)
    return _Feature(
        psi,
        ks,
        min(1.0, 2 * min(p_ks, p_bins)),
        float(levels[widest]),
        bool(gaps[widest] > 0),
        tuple(share),
        tuple(expected),
    )


def _pearson(share: Floats, expected: Floats, sizes: tuple[float, float], resolution: float) -> float:
    n, m = sizes
    if len(expected) < 2 or n * expected.min() < 5:
        return 1.0
    away = np.maximum(np.abs(share - expected) - resolution, 0.0)
    return float(special.chdtrc(len(expected) - 1, float((away**2 / expected).sum() / (1 / n + 1 / m))))


def _missing_q(known: Bools, batch: Batch, reference: Reference, limits: Limits) -> Floats:
    n = len(known) / design_effect(known.astype(np.float32), batch.stay)
    p = proportion_probability(1 - known.mean(axis=0), n, reference.missing, reference.n)
    judged = (n >= limits.min_effective) & (batch.n_stays >= limits.min_stays)
    return false_discovery(np.where(judged, p, np.nan))


def _medians_then(reference: Reference) -> Floats:
    return np.array([reference.at(0.5, j) for j in range(len(reference.names))], np.float64)


def medians(matrix: npt.NDArray[np.float32]) -> Floats:
    """Median of each column over what is known, NaN where nothing is."""
    columns = [column[~np.isnan(column)] for column in matrix.T]
    return np.array([float(np.median(c)) if len(c) else np.nan for c in columns], np.float64)


def _share(hit: Bools, n: Floats) -> Floats:
    return np.asarray(hit.sum(axis=0) / np.maximum(n, 1), dtype=np.float64)


# Signs: which rows show it, so that since-when and where can be told.


def shift_sign(measured: Measured, j: int) -> Sign:
    """Rows on the side of the widest gap to which the distribution has moved."""
    level = float(measured.split[j])
    rank = measured.rank[:, j]
    below = bool(measured.below[j])
    hit = rank <= level if below else rank > level
    return Sign(hit, level if below else 1 - level, float(measured.effect[j]), ~np.isnan(rank))


def missing_sign(measured: Measured, j: int) -> Sign:
    """Rows without a value (or with one, where the reference had fewer)."""
    row = measured.table.iloc[j]
    gone = np.isnan(measured.rank[:, j])
    usual = float(row["missing_reference"])
    if row["missing_now"] < usual:
        return Sign(~gone, 1 - usual, float(measured.effect[j]))
    return Sign(gone, usual, float(measured.effect[j]))


def tail_sign(measured: Measured, batch: Batch, reference: Reference, j: int, high: bool) -> Sign:
    """Rows beyond the reference's highest or lowest quantile."""
    rank = measured.rank[:, j]
    known = ~np.isnan(rank)
    hit = rank > reference.levels[-1] if high else rank == 0
    effect = design_effect(np.where(known, hit, np.nan)[:, None], batch.stay)
    return Sign(hit, reference.beyond if high else float(reference.levels[0]), float(effect[0]), known)


def silent_since(measured: Measured, batch: Batch, reference: Reference, j: int) -> tuple[int, float] | None:
    """Position after which the feature has no value any more, and how likely that run is by chance.

    The run is counted in stays, not rows: one patient without a lactate makes many empty hours. The usual share with
    a value is the smaller of the reference's and of what was seen before the run.
    """
    known = np.flatnonzero(~np.isnan(measured.rank[:, j]))
    start = int(known[-1]) + 1 if len(known) else 0
    stays = len(np.unique(batch.stay[start:]))
    usual = min(1 - float(reference.missing[j]), ALMOST_ALWAYS)
    if start > 0:
        usual = min(usual, len(known) / start)
    if stays == 0 or usual <= 0:
        return None
    return start, float((1 - usual) ** stays)


def unit_mix_up(
    values: npt.NDArray[np.float32], expected: Floats, candidates: Sequence[MixUp]
) -> MixUp | None:
    """The wrong unit that would explain all values at once, if one does.

    Parameters
    ----------
    values : shape (n,), n > 0
        Without NaN.
    expected : shape (5,)
        The reference's quantiles at :data:`QUARTER_LEVELS`.
    """
    now = np.quantile(values.astype(np.float64), QUARTER_LEVELS)
    if (now <= 0).any() or (expected <= 0).any():
        return None
    apart = float(np.abs(np.log(now / expected)).max())
    away: dict[MixUp, float] = {}
    for candidate in candidates:
        seen = expected * candidate.factor + candidate.offset
        if (seen > 0).all():
            away[candidate] = float(np.abs(np.log(now / seen)).max())
    best = min(away, key=lambda c: away[c], default=None)
    return best if best is not None and away[best] < min(CLOSE, apart / 2) else None


QUARTER_LEVELS: Final = (0.1, 0.25, 0.5, 0.75, 0.9)
CLOSE: Final = float(np.log(1.35))
DECIMAL: Final = tuple(
    MixUp(f"×{f:g} (decimal point or prefix)", f) for f in (0.001, 0.01, 0.1, 10.0, 100.0, 1000.0)
)


def tail_mix_up(values: npt.NDArray[np.float32], median: float, candidates: Sequence[MixUp]) -> MixUp | None:
    """The wrong unit that would explain values beyond the reference's outer quantiles, if one fits their middle."""
    middle = float(np.median(values))
    if middle <= 0 or median <= 0:
        return None
    away = {c: abs(np.log(middle / s)) for c in candidates if (s := median * c.factor + c.offset) > 0}
    best = min(away, key=lambda c: away[c], default=None)
    return best if best is not None and away[best] < CLOSE else None


def mix_ups_from_table(
    rows: Mapping[str, Sequence[tuple[str, str, float, float]]],
) -> dict[str, tuple[MixUp, ...]]:
    """Mix-ups from the unit table's rows ``(from_unit, to_unit, factor, offset)`` of each concept.

    Two ways to go wrong with a conversion: it is left out, or it is done twice.
    """
    made: dict[str, tuple[MixUp, ...]] = {}
    for concept, conversions in rows.items():
        found: list[MixUp] = []
        for source, target, factor, offset in conversions:
            if factor <= 0 or (factor == 1 and offset == 0):
                continue
            found.append(MixUp(f"{source} taken for {target}", 1 / factor, -offset / factor))
            found.append(MixUp(f"converted twice from {source} to {target}", factor, offset))
        made[concept] = tuple(found)
    return made
