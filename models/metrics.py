"""What a score is worth: utility, discrimination, calibration and alerts, with patient-level intervals.

Everything takes plain arrays, one entry a row (a patient-hour). ``patient`` is a dense integer code per
row, from 0; a patient's rows need not be adjacent. Intervals come from resampling patients, never rows:
the hours of one patient are not independent.
"""

from __future__ import annotations

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


def best_threshold(probability: Floats, gain: Floats) -> float:
    """The probability at or above which alarms bring most utility; 1.0 where no alarm ever pays.

    Tries every distinct probability and returns the midpoint to the next lower one, so that no rounding
    carries a row across. NaN never alarms.
    """
    known = ~np.isnan(probability)
    order = np.argsort(-probability[known], kind="stable")
    p = probability[known][order]
    ends = np.flatnonzero(np.append(p[1:] < p[:-1], True)) if len(p) else np.array([], dtype=np.int64)
    total = np.cumsum(gain[known][order])[ends]
    if not len(ends) or total.max() <= 0:
        return 1.0
    end = int(ends[int(np.argmax(total))])
    below = p[end + 1] if end + 1 < len(p) else 0.0
    return float((p[end] + below) / 2)


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


def smooth_observed(predicted: Floats, observed: Floats, weight: Floats, span: float = 0.75) -> Floats:
    """Loess (local quadratic, tricube) of observed on predicted, at each group's prediction, shape
    (n_groups,).

    ``predicted``, ``observed`` and ``weight`` are mean probability, share of positives and number of rows
    of each group; each local fit reads the nearest groups that hold ``span`` of all rows.
    """
    distance = np.abs(predicted[:, None] - predicted[None, :])
    order = np.argsort(distance, axis=1, kind="stable")
    reached = np.cumsum(weight[order], axis=1) >= span * weight.sum()
    farthest = np.take_along_axis(order, reached.argmax(axis=1)[:, None], axis=1)
    width = np.maximum(np.take_along_axis(distance, farthest, axis=1), 1e-12) * (1 + 1e-9)
    kernel = np.clip(1 - (distance / width) ** 3, 0, None) ** 3 * weight[None, :]
    centred = (predicted[None, :] - predicted[:, None]) / width
    powers = np.stack([np.ones_like(centred), centred, centred**2], axis=2)
    gram = np.einsum("ij,ijk,ijl->ikl", kernel, powers, powers)
    gram += np.eye(3) * 1e-9 * kernel.sum(axis=1)[:, None, None]
    target = np.einsum("ij,ijk,j->ik", kernel, powers, observed)
    return np.clip(np.linalg.solve(gram, target[:, :, None])[:, 0, 0], 0.0, 1.0)


def calibration_groups(label: Ints, probability: Floats) -> tuple[Floats, Floats, Floats]:
    """Rows grouped by rising probability: mean probability, share of positives, size, each shape (n_groups,).

    One hundred groups of equal size divide the lower nine tenths, another hundred the top tenth, where
    alerts are.
    """
    shares = np.concatenate([np.linspace(0, 0.9, GROUPS // 2 + 1), np.linspace(0.9, 1, GROUPS // 2 + 1)[1:]])
    edges = np.unique(np.quantile(probability, shares[1:-1]))
    group = edges.searchsorted(probability, side="right").astype(np.int64)
    return _grouped(group, np.ones(len(group)), label.astype(np.float64), probability)


def _grouped(group: Ints, size: Floats, positive: Floats, expected: Floats) -> tuple[Floats, Floats, Floats]:
    total = np.bincount(group, weights=size).astype(np.float64)
    kept = total > 0
    predicted = np.bincount(group, weights=expected)[kept] / total[kept]
    return predicted, np.bincount(group, weights=positive)[kept] / total[kept], total[kept]


def ici(predicted: Floats, observed: Floats, size: Floats) -> float:
    """Integrated calibration index: mean distance between probability and its smoothed observed frequency.

    Austin & Steyerberg, Stat Med 2019;38:4051 (loess, span 0.75, degree 2), on the groups of
    :func:`calibration_groups` instead of single rows, which makes a million rows affordable.
    """
    smooth = smooth_observed(predicted, observed, size) if len(predicted) >= 4 else observed
    return float(np.average(np.abs(smooth - predicted), weights=size))


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
            self.gain[self.alarm].sum(),
            np.maximum(self.gain, 0).sum(),
            ((probability - label) ** 2).sum(),
        )
        line = calibration_line(label.astype(np.float64), probability, np.ones(len(label)))
        groups = calibration_groups(label, probability)
        return _measures(positive, negative, (*sums, probability.sum()), line, ici(*groups))

    def intervals(self, replicates: int, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
        """95 % percentile intervals of every measure over resampled patients.

        Scores are read in 2,048 bins of equal size here, which moves an AUROC by less than 0.0005. The ICI is a
        distance, which resampling only lengthens, so its interval is moved to have its median at the figure itself.
        """
        draws = [self._resampled(rng) for _ in range(replicates)]
        table = {name: np.array([d[name] for d in draws]) for name in draws[0]}
        seen = ~np.isnan(self.probability)
        index = ici(*calibration_groups(self.label[seen], self.probability[seen]))
        table["ici"] = np.maximum(table["ici"] - np.median(table["ici"]) + index, 0.0)
        return {name: _percentiles(values) for name, values in table.items()}

    def _resampled(self, rng: np.random.Generator) -> dict[str, float]:
        drawn = np.bincount(rng.integers(0, self.patients, self.patients), minlength=self.patients)
        cell, patient, expected, group = self._binned
        counts = np.bincount(cell, weights=drawn[patient], minlength=2 * len(expected))
        cells = counts.reshape(-1, 2).astype(np.float64)
        size = cells.sum(axis=1)
        predicted, observed, weight = _grouped(group, size, cells[:, 1], size * expected)
        line = calibration_line(observed, predicted, weight)
        sums = tuple(float(s) for s in drawn @ self._per_patient)
        return _measures(cells[:, 1], cells[:, 0], sums, line, ici(predicted, observed, weight))

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
        edges = np.unique(np.quantile(p, np.linspace(0, 1, BINS + 1)[1:-1]))
        place = edges.searchsorted(p, side="right").astype(np.int64)
        size = np.bincount(place, minlength=len(edges) + 1)
        mean = np.bincount(place, weights=p, minlength=len(edges) + 1) / np.maximum(size, 1)
        share = (np.cumsum(size) - size / 2) / size.sum()
        half = GROUPS // 2
        group = np.where(share < 0.9, share / 0.9 * half, half + (share - 0.9) * 10 * half).astype(np.int64)
        return place * 2 + self.label[seen], self.patient[seen], mean, group


def _measures(
    positive: Floats, negative: Floats, sums: tuple[float, ...], line: tuple[float, float], index: float
) -> dict[str, float]:
    gained, best, error, expected = sums
    rows = positive.sum() + negative.sum()
    rate = positive.sum() / rows if rows else float("nan")
    variance = rate * (1 - rate)
    return {
        "utility": gained / best if best > 0 else float("nan"),
        "auroc": _auroc(positive, negative),
        "auprc": _auprc(positive, negative),
        "brier": error / rows if rows else float("nan"),
        "brier_skill": 1 - error / rows / variance if variance > 0 else float("nan"),
        "ici": index,
        "slope": line[0],
        "intercept": line[1],
        "observed_expected": positive.sum() / expected if expected > 0 else float("nan"),
    }


def _percentiles(values: Floats) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


# ------------------------------------------------------------ alerts, as a ward meets them


def alert_table(
    patient: Ints,
    hour: Floats,
    label: Ints,
    page: Bools,
    rows: Bools | None = None,
    matured_h: float = 24.0,
    until_h: float = np.inf,
) -> dict[str, float]:
    """What a ward would see of pages: how many, how often right, how early.

    Parameters
    ----------
    patient, hour, label, page : shape (n,)
        Whole stays, hours on one clock per patient, rows an hour apart. Onset is the first positive hour plus six.
        Pages after onset count as neither true nor false (the ward knows), hours after onset not as patient time.
    rows : bool, shape (n,), optional
        Count only pages and hours of these rows; what a stay comes to is still read from all of it.
    matured_h : float
        A page is true when onset follows within so many hours.
    until_h : float
        Sensitivities and lead are those of septic stays with onset up to this hour: nobody could have paged in these
        rows for a later one within hours of it.

    Returns
    -------
    ``sensitivity``: septic stays paged before onset; ``sensitivity_12h``: paged within the last 12 h before it. Both,
    and the lead, leave out stays that are positive in their first row (``positive_from_start``, a count): when their
    sepsis began is not in the record.
    ``stay_ppv``: paged stays that turn septic; ``page_ppv``: pages followed by onset within ``matured_h``.
    ``pages_per_100_patient_days``; ``lead_h`` quartiles, first page to onset; ``prevalence_per_stay``. NaN where
    there is nothing to divide by.
    """
    onset = first_positive(patient, hour, label) + LABEL_LEAD_H
    septic = np.isfinite(onset)
    ahead = onset[patient] - hour
    counted = (ahead >= 0) if rows is None else (ahead >= 0) & rows
    paged = page & counted
    present = np.bincount(patient[counted], minlength=len(onset)) > 0
    first_page = np.full(len(onset), np.inf)
    np.minimum.at(first_page, patient[paged], hour[paged])
    stay_paged = np.isfinite(first_page)
    started = np.full(len(onset), np.inf)
    np.minimum.at(started, patient, hour)
    at_once = septic & (onset - LABEL_LEAD_H <= started)
    judged = septic & present & ~at_once & (onset <= until_h)
    soon = np.bincount(patient[paged & (ahead <= 12)], minlength=len(onset)) > 0
    lead = onset[judged & stay_paged] - first_page[judged & stay_paged]
    quartiles = np.percentile(lead, [25, 50, 75]) if len(lead) else np.full(3, np.nan)
    return {
        "sensitivity": _share(stay_paged[judged]),
        "sensitivity_12h": _share(soon[judged]),
        "stay_ppv": _share(septic[stay_paged]),
        "page_ppv": _share((ahead <= matured_h)[paged]),
        "pages_per_100_patient_days": 2400 * float(paged.sum()) / max(float(counted.sum()), 1.0),
        "lead_h_q1": float(quartiles[0]),
        "lead_h_median": float(quartiles[1]),
        "lead_h_q3": float(quartiles[2]),
        "prevalence_per_stay": _share(septic[present]),
        "positive_from_start": int((at_once & present).sum()),
    }


def _share(flags: Bools) -> float:
    return float(np.mean(flags)) if len(flags) else float("nan")
