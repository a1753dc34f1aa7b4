"""What a ward would see of alerts: how many, how often right, how early; for one set of pages, or at a rate asked for.

As in :mod:`models.metrics`, everything takes plain arrays, one entry a row (a patient-hour), ``patient`` is a dense
integer code, and intervals come from resampling patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from models.metrics import LABEL_LEAD_H, first_positive, percentiles

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Page = Callable[[float], Bools]
"""From a threshold to the rows that page."""

LEADS: Final = (6.0, 12.0, 24.0, 48.0)
STEPS: Final = 9
"""Halvings in the search for a threshold that keeps to a budget."""


@dataclass(frozen=True)
class Stays:
    """Whole stays and the part of them that counts; all arrays of shape (n,).

    Hours are on one clock per patient, rows an hour apart. Onset is the first positive hour plus six. Hours after onset
    are not patient time, and pages then neither true nor false: the ward knows.

    Attributes
    ----------
    rows : bool
        Count only pages and hours of these rows; what a stay comes to is still read from all of it.
    matured_h : float
        A page is true when onset follows within so many hours.
    until_h : float
        Sensitivities and lead are those of septic stays with onset up to this hour: nobody could have paged in these
        rows for a later one within hours of it.
    """

    patient: Ints
    hour: Floats
    label: Ints
    rows: Bools | None = None
    matured_h: float = 24.0
    until_h: float = np.inf

    @cached_property
    def onset(self) -> Floats:
        """Hour of onset of each patient; infinite where there is none."""
        return first_positive(self.patient, self.hour, self.label) + LABEL_LEAD_H

    @cached_property
    def ahead(self) -> Floats:
        """Hours from each row to onset."""
        return np.asarray(self.onset[self.patient] - self.hour)

    @cached_property
    def counted(self) -> Bools:
        """Rows up to onset among those asked for."""
        every = self.ahead >= 0
        return np.asarray(every if self.rows is None else every & self.rows)

    @cached_property
    def septic(self) -> Bools:
        """Patients with sepsis."""
        return np.isfinite(self.onset)

    @cached_property
    def present(self) -> Bools:
        """Patients with at least one row that counts."""
        return self._per_patient(self.counted) > 0

    @cached_property
    def at_once(self) -> Bools:
        """Septic patients positive in their first row: when their sepsis began is not in the record."""
        started = np.full(len(self.onset), np.inf)
        np.minimum.at(started, self.patient, self.hour)
        return np.asarray(self.septic & (self.onset - LABEL_LEAD_H <= started))

    @cached_property
    def in_time(self) -> Bools:
        """Septic patients with onset up to ``until_h``."""
        return np.asarray(self.septic & (self.onset <= self.until_h))

    @cached_property
    def judged(self) -> Bools:
        """Septic patients that sensitivity and lead are about."""
        return self.in_time & self.present & ~self.at_once

    def _per_patient(self, flags: Bools) -> Floats:
        return np.bincount(self.patient[flags], minlength=len(self.onset)).astype(np.float64)

    def paged(self, page: Bools, standing: Bools | None = None) -> Paged:
        """These stays under these pages, and where it is known in which rows an alert stands, both of shape (n,)."""
        return Paged(self, page & self.counted, None if standing is None else standing & self.counted)

    def threshold_for(self, probability: Floats, sensitivity: float) -> float:
        """The highest threshold at which this share of the judged septic stays reaches it before onset; 1 without any.

        A stay is paged when its probability first reaches the threshold, whatever the policy does afterwards.
        """
        highest = np.full(len(self.onset), -np.inf)
        known = self.counted & ~np.isnan(probability)
        np.maximum.at(highest, self.patient[known], probability[known])
        reached = np.sort(highest[self.judged])[::-1]
        if not len(reached):
            return 1.0
        found = float(reached[max(int(np.ceil(sensitivity * len(reached))) - 1, 0)])
        return found if np.isfinite(found) else 0.0

    def threshold_within(self, probability: Floats, page: Page, per_100_patient_days: float) -> float:
        """About the lowest threshold that keeps to so many pages per 100 patient-days of these rows."""
        known = np.sort(probability[self.counted & ~np.isnan(probability)])
        if not len(known):
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            share = (low + high) / 2
            rate = self.paged(page(float(np.quantile(known, share)))).rate
            low, high = (share, high) if rate > per_100_patient_days else (low, share)
        return float(np.quantile(known, high))


@dataclass(frozen=True)
class Paged:
    """Stays under a set of pages, all of them rows that count."""

    stays: Stays
    page: Bools
    standing: Bools | None = None

    @cached_property
    def rate(self) -> float:
        """Pages per 100 patient-days."""
        return 2400 * float(self.page.sum()) / max(float(self.stays.counted.sum()), 1.0)

    @cached_property
    def _alerted(self) -> Bools:
        return self.stays._per_patient(self.page) > 0

    @cached_property
    def _lead(self) -> Floats:
        """Hours from first page to onset of each patient; NaN where not judged or not paged."""
        first = np.full(len(self.stays.onset), np.inf)
        np.minimum.at(first, self.stays.patient[self.page], self.stays.hour[self.page])
        told = self.stays.judged & self._alerted
        return np.where(told, self.stays.onset - np.where(told, first, 0.0), np.nan)

    @cached_property
    def _shares(self) -> dict[str, tuple[Floats, Floats]]:
        """Each share as what a patient adds above and below the line."""
        stays, page = self.stays, self.page
        soon = stays._per_patient(page & (stays.ahead <= 12)) > 0
        judged, alerted = stays.judged.astype(np.float64), self._alerted.astype(np.float64)
        pages = stays._per_patient(page)
        true = stays._per_patient(page & (stays.ahead <= stays.matured_h))
        early = (self._alerted & stays.at_once).astype(np.float64)
        told = self.standing if self.standing is not None else np.zeros(len(page), dtype=np.bool_)
        stood = stays._per_patient(told & (stays.ahead <= 12)) > 0
        return {
            "sensitivity": (judged * alerted, judged),
            "sensitivity_12h": (judged * soon, judged),
            **({} if self.standing is None else {"standing_12h": (judged * stood, judged)}),
            "stay_ppv": (alerted * stays.septic, alerted),
            "stay_ppv_in_time": (alerted * stays.in_time, alerted),
            "page_ppv": (true, pages),
            "pages_per_100_patient_days": (2400 * pages, stays._per_patient(stays.counted)),
            "prevalence_per_stay": (
                (stays.septic & stays.present).astype(np.float64),
                stays.present.astype(np.float64),
            ),
            "prevalence_in_time": (
                (stays.in_time & stays.present).astype(np.float64),
                stays.present.astype(np.float64),
            ),
            "sensitivity_from_start": (early, (stays.at_once & stays.present).astype(np.float64)),
        }

    def table(self) -> dict[str, float]:
        """What a ward would see.

        Returns
        -------
        ``sensitivity``: septic stays paged before onset; ``sensitivity_12h``: paged within the last 12 h before it;
        ``standing_12h``, where it is known: with an alert standing then, paged then or earlier.
        These, and the lead, leave out stays that are positive in their first row (``positive_from_start``, a count;
        ``sensitivity_from_start``: those of them that are paged).
        ``stay_ppv``: paged stays that turn septic at any time, and ``nne``, stays evaluated for each of them;
        ``stay_ppv_in_time``: paged stays with onset up to ``until_h``, which is the stricter and, for a band of hours,
        the honest one; ``page_ppv``: pages followed by onset within ``matured_h``.
        ``pages_per_100_patient_days``; ``lead_h`` quartiles, first page to onset, and ``lead_share``s: of stays paged
        in time, by hours of lead; ``prevalence_per_stay`` and ``prevalence_in_time``. NaN where there is nothing to
        divide by.
        """
        shares = {name: _ratio(over.sum(), under.sum()) for name, (over, under) in self._shares.items()}
        lead = self._lead[~np.isnan(self._lead)]
        quartiles = np.percentile(lead, [25, 50, 75]) if len(lead) else np.full(3, np.nan)
        return shares | {
            "nne": _ratio(1.0, shares["stay_ppv"]),
            "lead_h_q1": float(quartiles[0]),
            "lead_h_median": float(quartiles[1]),
            "lead_h_q3": float(quartiles[2]),
            **_lead_shares(lead),
            "positive_from_start": int((self.stays.at_once & self.stays.present).sum()),
        }

    def intervals(self, replicates: int, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
        """95 % percentile intervals of the shares, and of the median lead, over resampled patients."""
        names = list(self._shares)
        sums = np.column_stack([part for name in names for part in self._shares[name]])
        patients = len(sums)
        found = np.empty((replicates, len(names) + 1))
        for k in range(replicates):
            who = rng.integers(0, patients, patients)
            drawn = np.bincount(who, minlength=patients) @ sums
            found[k, :-1] = [_ratio(*drawn[2 * i : 2 * i + 2]) for i in range(len(names))]
            lead = self._lead[who]
            found[k, -1] = np.median(lead[~np.isnan(lead)]) if (~np.isnan(lead)).any() else np.nan
        return {name: percentiles(found[:, i]) for i, name in enumerate([*names, "lead_h_median"])}


def operating_points(
    stays: Stays,
    probability: Floats,
    page: Page,
    sensitivities: Sequence[float],
    budgets: Sequence[float],
) -> list[tuple[dict[str, float | str], Paged]]:
    """Pages at the threshold that finds a share of septic stays, or keeps to a number per 100 patient-days.

    The threshold is read off these very rows: a point describes what the score allows, it is no promise.

    Returns
    -------
    For each point what it was set to (``point``) and its ``threshold``, and the pages; an alert counts as standing in
    the rows at or above the threshold.
    """
    found = [(f"sensitivity {s:g}", stays.threshold_for(probability, s)) for s in sensitivities]
    found += [(f"{b:g} per 100 patient-days", stays.threshold_within(probability, page, b)) for b in budgets]
    return [({"point": name, "threshold": t}, stays.paged(page(t), probability >= t)) for name, t in found]


def _lead_shares(lead: Floats) -> dict[str, float]:
    names = [f"lead_share_{a:g}_{b:g}h" for a, b in pairwise((0.0, *LEADS))]
    names.append(f"lead_share_over_{LEADS[-1]:g}h")
    place = np.searchsorted(np.array(LEADS), lead, side="left")
    return {name: _ratio(float((place == i).sum()), float(len(lead))) for i, name in enumerate(names)}


def _ratio(over: float, under: float) -> float:
    return float(over) / float(under) if under > 0 else float("nan")
