"""What a score is worth: utility, discrimination and calibration, with patient-level intervals.

Everything takes plain arrays, one entry a row (a patient-hour). ``patient`` is a dense integer code per
row, from 0; a patient's rows need not be adjacent. Intervals come from resampling patients, never rows:
the hours of one patient are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# PhysioNet/CinC Challenge 2019, evaluate_sepsis_score.py; Reyna et al., Crit Care Med 2020;48(2):210.
EARLIEST_H: Final = -12
OPTIMAL_H: Final = -6
LATEST_H: Final = 3
FALSE_ALARM: Final = -0.05
MISSED: Final = -2.0
LABEL_LEAD_H: Final = 6
"""SepsisLabel turns 1 this many rows before onset."""

BINS: Final = 2048
GROUPS: Final = 200
TINY: Final = 1e-9
BATCH: Final = 50
"""Replicates whose patients are drawn in one go."""

SPREAD: Final = 0.2
"""Log-odds. Of 0.1 to 0.5, the one whose thresholds did best on halves of a hospital's patients that they were not
chosen on; on the whole all did alike."""
STEPS: Final = 10
NEAR: Final = 4
"""Places that a spread is cut into, and spreads that the weights of neighbouring thresholds reach."""

DISTANCES: Final = ("ici", "e50", "e90", "reliability")
"""Measures that noise can only make larger."""


def expit(x: Floats) -> Floats:
    """Probability of a log-odds, without overflow; NaN stays NaN."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.exp(-np.logaddexp(0.0, -x)), dtype=np.float64)


def logit(p: Floats) -> Floats:
    """Log-odds of a probability, kept within 1e-9 of certainty."""
    p = np.clip(p, TINY, 1 - TINY)
    return np.asarray(np.log(p) - np.log1p(-p), dtype=np.float64)


# ------------------------------------------------------------ the challenge's utility


def first_positive(patient: Ints, place: Floats, label: Ints) -> Floats:
    """Smallest ``place`` with a positive label per patient, shape (n_patients,); infinite where none is."""
    first = np.full(int(patient.max(initial=-1)) + 1, np.inf)
    positive = label == 1
    np.minimum.at(first, patient[positive], place[positive])
    return first


def utility_gain(patient: Ints, place: Floats, label: Ints) -> Floats:
    """What an alarm in each row adds over silence: all that the challenge's utility depends on.

    Parameters
    ----------
    patient : int codes, shape (n,)
    place : float, shape (n,)
        Hours on any clock of the patient; rows are an hour apart. Onset is the first positive row plus
        six hours, so stays must be complete.
    label : 0 or 1, shape (n,)

    Returns
    -------
    Utility of alarm minus utility of silence, shape (n,). Long before onset it is the price of a false alarm
    (-0.05). From onset - 12 h it rises to 1 at onset - 6 h and on to 2 at onset + 3 h (an alarm's own
    worth falls to 0 there, silence to -2); afterwards it is 0. In a stay without sepsis it is -0.05
    throughout.
    """
    onset = (first_positive(patient, place, label) + LABEL_LEAD_H)[patient]
    septic = np.isfinite(onset)
    relative = place - np.where(septic, onset, 0.0)
    rise = np.maximum((relative - EARLIEST_H) / (OPTIMAL_H - EARLIEST_H), FALSE_ALARM)
    alarm = (LATEST_H - relative) / (LATEST_H - OPTIMAL_H)
    silence = MISSED * (relative - OPTIMAL_H) / (LATEST_H - OPTIMAL_H)
    late = np.where(relative <= LATEST_H, alarm - silence, 0.0)
    return np.where(septic, np.where(relative <= OPTIMAL_H, rise, late), FALSE_ALARM)


def normalized_utility(gain: Floats, alarm: Bools) -> float:
    """Utility of the alarms: 0 for silence, 1 for the best possible on these rows; NaN if none can gain."""
    best = float(np.maximum(gain, 0.0).sum())
    return float(gain[alarm].sum()) / best if best > 0 else float("nan")


def best_threshold(probability: Floats, gain: Floats, never: float = 1.0) -> float:
    """The probability at or above which alarms bring most utility; ``never`` where no alarm ever pays.

    Tries every distinct probability and returns the midpoint to the next lower one, so that no rounding
    carries a row across. NaN never alarms.
    """
    known = ~np.isnan(probability)
    order = np.argsort(-probability[known], kind="stable")
    p = probability[known][order]
    ends = np.flatnonzero(np.append(p[1:] < p[:-1], True)) if len(p) else np.array([], dtype=np.int64)
    total = np.cumsum(gain[known][order])[ends]
    if not len(ends) or total.max() <= 0:
        return never
    end = int(ends[int(np.argmax(total))])
    below = p[end + 1] if end + 1 < len(p) else 0.0
    return float((p[end] + below) / 2)


def steady_threshold(probability: Floats, gain: Floats, never: float = 1.0, spread: float = SPREAD) -> float:
    """The probability at or above which alarms bring most utility if it were read a little wrong.

    The utility of each threshold is averaged over neighbouring ones, with normal weights of ``spread`` in log-odds:
    where the curve is flat, its middle is found rather than the one place that chance favours, and a threshold beside
    a cliff is passed over. Meant for probabilities of many values; ``never`` where no alarm pays. NaN never alarms.
    """
    known = ~np.isnan(probability)
    odds, worth = logit(probability[known]), gain[known]
    if not len(odds):
        return never
    low = float(odds.min()) - NEAR * spread
    place = np.rint((odds - low) / (spread / STEPS)).astype(np.int64)
    # Below everyone and above everyone there is room for the whole kernel: all alarm there, or nobody does.
    size = int(place.max()) + 1 + NEAR * STEPS
    above = np.bincount(place, weights=worth, minlength=size)[::-1].cumsum()[::-1]
    steps = np.arange(-NEAR * STEPS, NEAR * STEPS + 1)
    kernel = np.exp(-((steps / STEPS) ** 2) / 2)
    smooth = np.convolve(np.pad(above, NEAR * STEPS, mode="edge"), kernel / kernel.sum(), mode="valid")
    best = int(np.argmax(smooth))
    # Half a step lower, so that a score on the threshold's own place alarms.
    return float(expit(np.asarray(low + (best - 0.5) * spread / STEPS))) if smooth[best] > 0 else never


# ------------------------------------------------------------ discrimination


def auroc(label: Ints, score: Floats) -> float:
    """Chance that a positive row scores above a negative one, ties counting half; NaN with one class only."""
    positive, negative = _counts_by_score(label, score)
    return _auroc(positive, negative)


def auprc(label: Ints, score: Floats) -> float:
    """Average precision: over thresholds, precision times the recall gained; NaN without positives."""
    positive, negative = _counts_by_score(label, score)
    return _auprc(positive, negative)


def _counts_by_score(label: Ints, score: Floats) -> tuple[Floats, Floats]:
    place = np.unique(score, return_inverse=True)[1]
    positive = np.bincount(place, weights=label).astype(np.float64)
    return positive, np.bincount(place).astype(np.float64) - positive


def _auroc(positive: Floats, negative: Floats) -> float:
    below = np.cumsum(negative) - negative / 2
    pairs = positive.sum() * negative.sum()
    return float((positive * below).sum() / pairs) if pairs > 0 else float("nan")


def _auprc(positive: Floats, negative: Floats) -> float:
    true = np.cumsum(positive[::-1])
    if not len(true) or true[-1] <= 0:
        return float("nan")
    flagged = true + np.cumsum(negative[::-1])
    precision = np.divide(true, flagged, out=np.zeros_like(true), where=flagged > 0)
    return float((positive[::-1] * precision).sum() / true[-1])


# ------------------------------------------------------------ calibration


def brier(label: Ints, probability: Floats) -> float:
    """Mean squared distance between probability and outcome."""
    return float(np.mean((probability - label) ** 2))


def calibration_line(label: Floats, probability: Floats, weight: Floats) -> tuple[float, float]:
    """Slope and intercept of ``logit P(y) = a + b logit p``; (1, 0) is perfect.

    The intercept is calibration-in-the-large: fitted with the slope held at 1 (Van Calster et al., BMC Med
    2019;17:230). ``label`` may be the share of positives in a group of ``weight`` rows.
    """
    x = logit(probability)
    slope = logistic(np.column_stack([x, np.ones_like(x)]), np.zeros_like(x), label, weight)[0]
    intercept = logistic(np.ones((len(x), 1)), x, label, weight)[0]
    return float(slope), float(intercept)


def logistic(design: Floats, offset: Floats, label: Floats, weight: Floats) -> Floats:
    """Maximum-likelihood coefficients of ``logit P(y) = design @ beta + offset``, by Newton's method.

    NaN throughout where the data do not determine them.
    """
    beta = np.zeros(design.shape[1])
    for _ in range(50):
        p = expit(design @ beta + offset)
        hessian = (design * (weight * p * (1 - p))[:, None]).T @ design
        try:
            step = np.linalg.solve(hessian, design.T @ (weight * (label - p)))
        except np.linalg.LinAlgError:
            return np.full(design.shape[1], np.nan)
        beta = beta + np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-10:
            break
    return beta


@dataclass(frozen=True)
class Loess:
    """Local quadratic smoothing (tricube) of groups' outcomes at the groups' own predictions.

    The geometry is kept, so that resampled patients, who only change the weights, are smoothed at little cost.
    """

    distance: Floats
    order: Ints
    span: float = 0.75

    @classmethod
    def at(cls, predicted: Floats, span: float = 0.75) -> Loess:
        """A smoother for groups with these mean probabilities, shape (n_groups,)."""
        distance = predicted[None, :] - predicted[:, None]
        return cls(distance, np.argsort(np.abs(distance), axis=1, kind="stable"), span)

    def smooth(self, observed: Floats, weight: Floats) -> Floats:
        """Smoothed share of positives at each group, shape (n_groups,).

        ``observed`` and ``weight`` are share of positives and number of rows of each group; each local fit reads the
        nearest groups that hold ``span`` of all rows.
        """
        reached = np.cumsum(weight[self.order], axis=1) >= self.span * weight.sum()
        farthest = np.take_along_axis(self.order, reached.argmax(axis=1)[:, None], axis=1)
        width = np.maximum(np.abs(np.take_along_axis(self.distance, farthest, axis=1)), 1e-12) * (1 + 1e-9)
        centred = self.distance / width
        near = np.clip(1 - np.abs(centred) ** 3, 0, None)
        kernel = near * near * near * weight[None, :]
        powers = [kernel]
        for _ in range(4):
            powers.append(powers[-1] * centred)
        sums = [power.sum(axis=1) for power in powers]
        gram = np.stack([np.stack(sums[i : i + 3], axis=1) for i in range(3)], axis=1)
        gram += np.eye(3) * 1e-9 * sums[0][:, None, None]
        target = np.stack([power @ observed for power in powers[:3]], axis=1)
        return np.clip(np.linalg.solve(gram, target[:, :, None])[:, 0, 0], 0.0, 1.0)


def smooth_observed(predicted: Floats, observed: Floats, weight: Floats, span: float = 0.75) -> Floats:
    """Loess of observed on predicted, at each group's prediction, shape (n_groups,); see :class:`Loess`."""
    return Loess.at(predicted, span).smooth(observed, weight)


def calibration_groups(label: Ints, probability: Floats) -> tuple[Floats, Floats, Floats]:
    """Rows grouped by rising probability: mean probability, share of positives, size, each shape (n_groups,).

    One hundred groups of equal size divide the lower nine tenths, another hundred the top tenth, where
    alerts are.
    """
    shares = np.concatenate([np.linspace(0, 0.9, GROUPS // 2 + 1), np.linspace(0.9, 1, GROUPS // 2 + 1)[1:]])
    edges = np.unique(np.quantile(probability, shares[1:-1]))
    group = edges.searchsorted(probability, side="right").astype(np.int64)
    return _grouped(group, np.ones(len(group)), label.astype(np.float64), probability)


def _grouped(
    group: Ints, size: Floats, positive: Floats, expected: Floats, empty: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """Means of groups; groups without rows are left out, or stand with weight 0 at ``empty``'s predictions."""
    total = np.bincount(group, weights=size).astype(np.float64)
    kept = total > 0 if empty is None else np.ones(len(total), dtype=np.bool_)
    rows = np.maximum(total[kept], TINY)
    predicted = np.bincount(group, weights=expected)[kept] / rows
    if empty is not None:
        predicted = np.where(total > 0, predicted, empty)
    return predicted, np.bincount(group, weights=positive)[kept] / rows, total[kept]


def ici(predicted: Floats, observed: Floats, size: Floats) -> float:
    """Integrated calibration index: mean distance between probability and its smoothed observed frequency.

    Austin & Steyerberg, Stat Med 2019;38:4051 (loess, span 0.75, degree 2), on the groups of
    :func:`calibration_groups` instead of single rows, which makes a million rows affordable.
    """
    return calibration_distances(predicted, observed, size)["ici"]


def calibration_distances(
    predicted: Floats, observed: Floats, size: Floats, loess: Loess | None = None
) -> dict[str, float]:
    """``ici``, and ``e50`` and ``e90``: mean, median and 90th percentile over rows of the distance between a
    probability and its smoothed observed frequency (Austin & Steyerberg 2019)."""
    enough = len(predicted) >= 4
    smooth = (loess or Loess.at(predicted)).smooth(observed, size) if enough else observed
    distance = np.abs(smooth - predicted)
    order = np.argsort(distance, kind="stable")
    share = np.cumsum(size[order]) / max(size.sum(), TINY)
    at = [min(int(share.searchsorted(q)), len(order) - 1) for q in (0.5, 0.9)] if len(order) else []
    e50, e90 = (float(distance[order[i]]) for i in at) if at else (float("nan"), float("nan"))
    index = float(np.average(distance, weights=size)) if size.sum() > 0 else float("nan")
    return {"ici": index, "e50": e50, "e90": e90}


def brier_parts(predicted: Floats, observed: Floats, size: Floats, error: float) -> dict[str, float]:
    """The Brier score taken apart: ``reliability`` - ``resolution`` + ``uncertainty`` = ``error``.

    Murphy, J Appl Meteorol 1973;12:595, over the groups of :func:`calibration_groups`. What probabilities tell apart
    within a group counts as resolution (Stephenson et al., Weather Forecast 2008;23:752), so that the three parts
    add up exactly.
    """
    rows = size.sum()
    rate = float((size * observed).sum() / rows) if rows > 0 else float("nan")
    reliability = float((size * (predicted - observed) ** 2).sum() / rows) if rows > 0 else float("nan")
    uncertainty = rate * (1 - rate)
    return {
        "reliability": reliability,
        "resolution": reliability + uncertainty - error,
        "uncertainty": uncertainty,
    }


def net_benefit(label: Ints, flagged: Bools, threshold: float) -> float:
    """True positives less false ones at the exchange rate of the threshold, per row: ``TP/n - FP/n * t/(1 - t)``.

    Vickers & Elkin, Med Decis Making 2006;26:565. Treating nobody is worth 0.
    """
    if not len(label):
        return float("nan")
    true = float((flagged & (label == 1)).sum())
    false = float(flagged.sum()) - true
    return (true - false * threshold / (1 - threshold)) / len(label)


# ------------------------------------------------------------ the whole table


@dataclass(frozen=True)
class Scored:
    """Rows with outcome and score, ready to be measured, also on resampled patients.

    Attributes
    ----------
    patient : int codes, shape (n,)
    label : 0 or 1, shape (n,)
    probability : calibrated, NaN where unscorable, shape (n,)
        Unscorable rows raise no alarm and so count in the utility; all other measures leave them out.
    alarm : bool, shape (n,)
    gain : shape (n,)
        From :func:`utility_gain` on complete stays.
    """

    patient: Ints
    label: Ints
    probability: Floats
    alarm: Bools
    gain: Floats

    def where(self, rows: Bools) -> Scored:
        """The same for some of the rows."""
        patient = np.unique(self.patient[rows], return_inverse=True)[1].astype(np.int64)
        return Scored(patient, self.label[rows], self.probability[rows], self.alarm[rows], self.gain[rows])

    @cached_property
    def patients(self) -> int:
        """Number of patients."""
        return int(self.patient.max(initial=-1)) + 1

    def measure(self) -> dict[str, float]:
        """Every measure on all rows, exactly."""
        seen = ~np.isnan(self.probability)
        label, probability = self.label[seen], self.probability[seen]
        positive, negative = _counts_by_score(label, probability)
        sums = (
            float(self.gain[self.alarm].sum()),
            float(np.maximum(self.gain, 0).sum()),
            float(((probability - label) ** 2).sum()),
            float(probability.sum()),
        )
        cell, _, mean, _ = self._binned
        cells = np.bincount(cell, minlength=2 * len(mean)).reshape(-1, 2)
        # Two thousand places of the score instead of a million rows move a slope by less than 0.001.
        line = calibration_line(cells[:, 1] / np.maximum(cells.sum(axis=1), 1), mean, cells.sum(axis=1) * 1.0)
        groups = calibration_groups(label, probability)
        return _measures(positive, negative, sums, line, groups, calibration_distances(*groups))

    def intervals(self, replicates: int, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
        """95 % percentile intervals of every measure over resampled patients.

        Scores are read in 2,048 bins of equal size here, which moves an AUROC by less than 0.0005. ``DISTANCES`` are
        distances, which resampling only lengthens, so their intervals are moved to have their median at the figure
        itself.
        """
        draws = [self._measured(cells, sums) for cells, sums in self._resampled(replicates, rng)]
        table = {name: np.array([d[name] for d in draws]) for name in draws[0]}
        seen = ~np.isnan(self.probability)
        groups = calibration_groups(self.label[seen], self.probability[seen])
        exact = calibration_distances(*groups) | brier_parts(*groups, 0.0)
        for name in DISTANCES:
            table[name] = np.maximum(table[name] - np.median(table[name]) + exact[name], 0.0)
        return {name: percentiles(values) for name, values in table.items()}

    def net_benefits(
        self, thresholds: Sequence[float], replicates: int, rng: np.random.Generator
    ) -> list[tuple[float, float, float]]:
        """Net benefit of alarming at each threshold, with its 95 % interval over resampled patients.

        Per scored row; the interval reads scores in 2,048 bins.
        """
        seen = ~np.isnan(self.probability)
        label, p = self.label[seen], self.probability[seen]
        mean = self._binned[2]
        drawn = []
        for cells, _ in self._resampled(replicates, rng):
            rows = max(float(cells.sum()), 1.0)
            above = [(cells[mean >= t].sum(axis=0), t) for t in thresholds]
            drawn.append([(yes - no * t / (1 - t)) / rows for (no, yes), t in above])
        table = np.array(drawn)
        return [(net_benefit(label, p >= t, t), *percentiles(table[:, i])) for i, t in enumerate(thresholds)]

    def _resampled(self, replicates: int, rng: np.random.Generator) -> Iterator[tuple[Floats, Floats]]:
        """Counts by bin and label, shape (n_bins, 2), and the sums of :func:`_measures`, of each replicate.

        Patients enter through a sparse table of what each adds, so that a replicate never walks the rows.
        """
        from scipy.sparse import csr_array  # only intervals need it

        cell, patient, expected, _ = self._binned
        shape = (self.patients, 2 * len(expected))
        share = csr_array((np.ones(len(cell)), (patient, cell)), shape=shape).T.tocsr()
        for first in range(0, replicates, BATCH):
            size = min(BATCH, replicates - first)
            drawn = np.stack([self._drawn(rng) for _ in range(size)], axis=1)
            counts, sums = share @ drawn, drawn.T @ self._per_patient
            for k in range(size):
                yield counts[:, k].reshape(-1, 2), sums[k]

    def _drawn(self, rng: np.random.Generator) -> Floats:
        who = rng.integers(0, self.patients, self.patients)
        return np.bincount(who, minlength=self.patients).astype(np.float64)

    def _measured(self, cells: Floats, sums: Floats) -> dict[str, float]:
        group, loess, grid = self._smoother
        size = cells.sum(axis=1)
        predicted, observed, weight = _grouped(group, size, cells[:, 1], size * self._binned[2], grid)
        line = calibration_line(observed, predicted, weight)
        distances = calibration_distances(predicted, observed, weight, loess)
        parts = tuple(float(s) for s in sums)
        return _measures(cells[:, 1], cells[:, 0], parts, line, (predicted, observed, weight), distances)

    @cached_property
    def _smoother(self) -> tuple[Ints, Loess | None, Floats]:
        """Group of each bin, a smoother at the groups' predictions, and those predictions."""
        cell, _, expected, place = self._binned
        group = np.unique(place, return_inverse=True)[1].astype(np.int64)
        size = np.bincount(cell // 2, minlength=len(expected)).astype(np.float64)
        grid = np.bincount(group, weights=size * expected) / np.maximum(
            np.bincount(group, weights=size), TINY
        )
        return group, Loess.at(grid) if len(grid) >= 4 else None, grid

    @cached_property
    def _per_patient(self) -> Floats:
        seen = ~np.isnan(self.probability)
        p, y = self.probability[seen], self.label[seen]
        rows = (self.patient, self.patient, self.patient[seen], self.patient[seen])
        values = (self.gain * self.alarm, np.maximum(self.gain, 0), (p - y) ** 2, p)
        sums = [np.bincount(r, weights=v, minlength=self.patients) for r, v in zip(rows, values, strict=True)]
        return np.column_stack(sums)

    @cached_property
    def _binned(self) -> tuple[Ints, Ints, Floats, Ints]:
        """Cell (bin and label) and patient of each scored row; mean probability and group of each bin."""
        seen = ~np.isnan(self.probability)
        p = self.probability[seen]
        edges = np.unique(np.quantile(p, np.linspace(0, 1, BINS + 1)[1:-1])) if len(p) else np.array([])
        place = edges.searchsorted(p, side="right").astype(np.int64)
        size = np.bincount(place, minlength=len(edges) + 1)
        mean = np.bincount(place, weights=p, minlength=len(edges) + 1) / np.maximum(size, 1)
        share = (np.cumsum(size) - size / 2) / max(size.sum(), 1)
        half = GROUPS // 2
        group = np.where(share < 0.9, share / 0.9 * half, half + (share - 0.9) * 10 * half).astype(np.int64)
        return place * 2 + self.label[seen], self.patient[seen], mean, group


def _measures(
    positive: Floats,
    negative: Floats,
    sums: tuple[float, ...],
    line: tuple[float, float],
    groups: tuple[Floats, Floats, Floats],
    distances: dict[str, float],
) -> dict[str, float]:
    gained, best, squares, expected = sums
    rows = positive.sum() + negative.sum()
    rate = positive.sum() / rows if rows else float("nan")
    variance = rate * (1 - rate)
    error = squares / rows if rows else float("nan")
    return {
        "utility": gained / best if best > 0 else float("nan"),
        "auroc": _auroc(positive, negative),
        "auprc": _auprc(positive, negative),
        "brier": error,
        "brier_skill": 1 - error / variance if variance > 0 else float("nan"),
        **brier_parts(*groups, error),
        **distances,
        "slope": line[0],
        "intercept": line[1],
        "observed_expected": positive.sum() / expected if expected > 0 else float("nan"),
    }


def percentiles(values: Floats) -> tuple[float, float]:
    """The middle 95 % of replicates; NaN where none is finite."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)
