"""The arithmetic of watching: how far, how sure, since when. Knows no medicine and no files.

Hourly predictions of one stay resemble each other, so a thousand rows of twenty patients are not a thousand
witnesses. Every test here takes an *effective* sample size; :func:`design_effect` says how to get from rows to it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def design_effect(values: npt.NDArray[np.floating], stays: Ints, at_least: float = 0.2) -> Floats:
    """How many rows weigh as much as one independent row (Kish 1965), per column.

    Parameters
    ----------
    values : shape (n_rows, n_columns), NaN = missing; missing rows do not count.
    stays : shape (n_rows,), any integers; rows with equal integers belong together.
    at_least : float
        Likeness of one stay's rows (ICC) that is assumed even where these few stays show less: what is measured,
        and most of what is found, is decided patient by patient, and a rare thing nobody here has looks alike in all.

    Returns
    -------
    shape (n_columns,), at least 1
        ``1 + (m - 1) * ICC`` with ``m`` the size-weighted mean stay and ICC from one-way analysis of variance. Where
        ICC cannot be had (a constant column, a single stay) it is taken as 1: the cautious end.
    """
    n_rows, n_columns = values.shape
    if n_rows == 0:
        return np.ones(n_columns)
    order = np.argsort(stays, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(stays[order]) != 0])
    known = ~np.isnan(values[order])
    filled = np.where(known, values[order], 0.0).astype(np.float64)
    size = np.add.reduceat(known, starts, axis=0, dtype=np.float64)
    total = np.add.reduceat(filled, starts, axis=0)
    squares = (filled**2).sum(axis=0)
    return _kish(size, total, squares, at_least)


def _kish(size: Floats, total: Floats, squares: Floats, at_least: float) -> Floats:
    n = size.sum(axis=0)
    k = (size > 0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        explained = np.where(size > 0, total**2 / size, 0.0).sum(axis=0)
        between = (explained - total.sum(axis=0) ** 2 / n) / (k - 1)
        within = (squares - explained) / (n - k)
        m_weighted = (size**2).sum(axis=0) / n
        typical = (n - m_weighted) / (k - 1)
        icc = (between - within) / (between + (typical - 1) * within)
        icc = np.where(np.isfinite(icc), np.clip(icc, at_least, 1.0), 1.0)
        effect = 1 + (m_weighted - 1) * icc
    return np.where(n > 0, np.maximum(effect, 1.0), 1.0)


def ks_probability(distance: float, n: float, m: float) -> float:
    """Asymptotic two-sample Kolmogorov-Smirnov p-value, with Stephens' correction for small samples."""
    if n <= 0 or m <= 0:
        return 1.0
    root = float(np.sqrt(n * m / (n + m)))
    return float(special.kolmogorov((root + 0.12 + 0.11 / root) * distance))


def proportion_probability(
    share: npt.ArrayLike, n: npt.ArrayLike, expected: npt.ArrayLike, m: npt.ArrayLike
) -> Floats:
    """Two-sided p-value that two shares are equal: likelihood ratio test, so that 0 and 1 are allowed.

    ``share`` of ``n`` now against ``expected`` of ``m`` in the reference; all broadcast.
    """
    p, q, n, m = (np.asarray(a, np.float64) for a in (share, expected, n, m))
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (p * n + q * m) / (n + m)
    g = 2 * (n * _divergence(p, pooled) + m * _divergence(q, pooled))
    return np.asarray(special.chdtrc(1, np.maximum(np.nan_to_num(g), 0.0)))


def _divergence(p: Floats, q: Floats) -> Floats:
    return np.asarray(special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q))


def poisson_probability(count: float, expected: float) -> float:
    """Two-sided exact Poisson p-value: twice the smaller tail, at most 1. Counts may be effective, hence fractions."""
    if expected <= 0:
        return 1.0 if count <= 0 else 0.0
    low = float(special.gammaincc(np.floor(count) + 1, expected))
    high = float(special.gammainc(np.floor(count), expected)) if count >= 1 else 1.0
    return min(1.0, 2 * min(low, high))


def population_stability(share: Floats, expected: Floats, n: float, m: float) -> float:
    """PSI of two histograms, less what chance alone adds: about (bins - 1)(1/n + 1/m). Never negative."""
    if n <= 0 or m <= 0:
        return float("nan")
    floor = 0.5 / n
    now, then = np.maximum(share, floor), np.maximum(expected, min(floor, 1e-4))
    psi = float(((now - then) * np.log(now / then)).sum())
    return max(0.0, psi - (len(expected) - 1) * (1 / n + 1 / m))


def false_discovery(p: Floats) -> Floats:
    """Benjamini-Hochberg q-values; NaN (not tested) stays NaN and does not count as a test."""
    q = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    if len(tested) == 0:
        return q
    order = tested[np.argsort(p[tested])]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def onset(hit: Bools, usual: float) -> int | None:
    """Position from which hits run at the new rate rather than the ``usual`` one; rows in order of time.

    Maximum likelihood change point of a Bernoulli sequence (Page 1954): the last place where the cumulated log
    likelihood ratio of new to usual is lowest. 0 means *for as long as we can see*; None, that nothing changed.
    """
    if len(hit) == 0:
        return None
    usual = float(np.clip(usual, 1e-4, 1 - 1e-4))
    start: int | None = None
    new = float(hit.mean())
    for _ in range(3):  # the new rate is known only after the change is placed: two or three rounds settle it
        new = float(np.clip(new, 1e-4, 1 - 1e-4))
        gain = np.where(hit, np.log(new / usual), np.log((1 - new) / (1 - usual)))
        path = np.r_[0.0, np.cumsum(gain)]
        start = int(np.argmin(path))
        if start >= len(hit):
            return None
        new = float(hit[start:].mean())
    return start
