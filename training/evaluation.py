"""The evaluation of a sepsis model, on cross-validated or on never seen patients.

Alarms are judged hour by hour as the challenge does, pages as a ward meets them. Figures are given over all hours and
within the first 48, where the length of a stay gives nothing away, by hospital, age, sex and unit, and beside humble
rivals on the same rows: the clock, SIRS, qSOFA, NEWS2 and SOFA, and in training a learned clock and a logistic
regression (:mod:`training.rivals`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models import metrics
from models.alerting import Paged, Stays, operating_points
from models.calibration import METHODS, cross_fitted
from models.decision import AlertPolicy
from models.metrics import Scored
from training.policies import page_rows

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Objects = npt.NDArray[np.object_]

EARLY_H: Final = 48
"""Up to this ICU hour the length of stay tells nothing of sepsis in PhysioNet 2019; later it does."""

RIVALS: Final = {
    "sirs": "sirs_partial", "qsofa": "qsofa_partial", "news2": "news2_partial", "sofa": "sofa_partial",
}  # fmt: skip
"""What needs no model, beside the hours in intensive care: the partial scores, by the feature that holds them."""

REPLICATES: Final = 300
SEED: Final = 20190101
SENSITIVITIES: Final = (0.6, 0.8)
BUDGETS: Final = (10.0, 25.0, 50.0)
"""Pages per 100 patient-days."""

THRESHOLDS: Final = tuple(round(0.01 * k, 2) for k in range(1, 11))
"""Of the decision curves: an alarm is worth a tenth to a hundredth of a missed case."""

CURVE_AT: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Probabilities at which flexible calibration curves are read for people."""

FEWEST_PATIENTS: Final = 100
FEWEST_SEPTIC: Final = 20
"""A subgroup with fewer is counted and not measured."""


@dataclass(frozen=True)
class Judged:
    """Rows with outcome and what a model, and its rivals, said of them; all arrays of shape (n,).

    Attributes
    ----------
    patient : int codes from 0
    hour : hours since ICU admission
    label : 0 or 1
    site : hospital
    probability : NaN where unscorable
    alarm, page : bool
    rivals : mapping of name to (score, alarm)
        Scores may be NaN.
    groups : mapping of name to the group of each row
        ``age``, ``sex``, ``unit``; empty where unknown.
    policy : AlertPolicy, optional
        How a threshold becomes pages; without it there are no operating points.
    indeterminate : bool, optional
        Rows whose score the service withholds.
    """

    patient: Ints
    hour: Floats
    label: Ints
    site: Objects
    probability: Floats
    alarm: Bools
    page: Bools
    rivals: Mapping[str, tuple[Floats, Bools]]
    groups: Mapping[str, Objects] = field(default_factory=dict)
    policy: AlertPolicy | None = None
    indeterminate: Bools | None = None

    def paging(self, rows: Bools, probability: Floats) -> Any:
        """From a threshold to the pages of some whole patients, as :class:`models.alerting.Stays` wants it."""
        policy = self.policy
        assert policy is not None  # noqa: S101  # asked before
        patient, hour = self.patient[rows], self.hour[rows]
        return lambda threshold: page_rows(
            patient, hour, probability[rows], replace(policy, threshold=min(max(threshold, 1e-9), 1.0))
        )


def evaluate(judged: Judged, replicates: int = REPLICATES, seed: int = SEED) -> dict[str, Any]:
    """Measure everything, by hospital, by hours and by subgroup.

    Returns
    -------
    JSON-able: ``table`` (one entry a hospital and band of hours, each measure as value, low, high), ``subgroups``
    (the same by age, sex and unit), ``rivals``, ``alerts`` (the pages as decided), ``operating`` (pages at fixed
    sensitivities and budgets), ``decision_curves``, ``abstention`` (where rows are indeterminate) and ``curves``.
    """
    gain = metrics.utility_gain(judged.patient, judged.hour, judged.label)
    whole = Scored(judged.patient, judged.label, judged.probability, judged.alarm, gain)
    rng = np.random.default_rng(seed)
    table, rivals, alerts, operating = [], [], [], []
    for hospital, hours, rows in _strata(judged):
        where = {"hospital": hospital, "hours": hours}
        table.append(where | _described(judged, rows) | _measured(whole.where(rows), replicates, rng))
        rivals.append(where | rivals_of(judged, gain, rows, hours))
        alerts.append(where | _alerts(judged, rows, hours, replicates, rng))
        if judged.policy is not None:
            operating.append(
                where | {"points": operating_of(judged, rows, hours, hospital == "all", replicates, rng)}
            )
    method = "95 %, bootstrap percentiles; of ICI, E50, E90 and reliability, re-centred on the figure"
    parts: dict[str, Any] = {
        "table": table,
        "subgroups": _subgroups(judged, whole, replicates, rng),
        "rivals": rivals,
        "alerts": alerts,
        "operating": operating,
        "calibration_curves": calibration_curves(judged),
        "decision_curves": [
            _decision_curve(judged, whole, hours, band, replicates, rng) for hours, band in bands(judged.hour)
        ],
        "intervals": {"replicates": replicates, "unit": "patient", "method": method},
        "curves": curves(judged, gain),
    }
    if judged.indeterminate is not None:
        parts["abstention"] = abstention_table(judged)
    cleaned: dict[str, Any] = clean_json(parts)
    return cleaned


def _strata(judged: Judged) -> Iterator[tuple[str, str, Bools]]:
    sites = sorted({str(s) for s in judged.site})
    every = np.ones(len(judged.label), dtype=np.bool_)
    groups = [("all", every)] + ([(s, np.asarray(judged.site == s)) for s in sites] if len(sites) > 1 else [])
    for name, rows in groups:
        for hours, band in bands(judged.hour):
            yield name, hours, rows & band


def bands(hour: Floats) -> list[tuple[str, Bools]]:
    """All hours, and the first 48 in intensive care, by name."""
    return [("all", np.ones(len(hour), dtype=np.bool_)), (f"<= {EARLY_H}", np.asarray(hour <= EARLY_H))]


def _subgroups(
    judged: Judged, whole: Scored, replicates: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Every measure by group; groups below the minimum are counted and say that they are suppressed."""
    found = []
    for group, of in judged.groups.items():
        for value in sorted({str(v) for v in of}):
            for hours, band in bands(judged.hour):
                rows = np.asarray(of == value) & band
                entry = {"group": group, "value": value or "unknown", "hours": hours} | _described(
                    judged, rows
                )
                few = entry["patients"] < FEWEST_PATIENTS or entry["septic_patients"] < FEWEST_SEPTIC
                measured = {} if few else _measured(whole.where(rows), replicates, rng)
                found.append(entry | ({"suppressed": True} if few else measured))
    return found


def _described(judged: Judged, rows: Bools) -> dict[str, Any]:
    label, patient = judged.label[rows], judged.patient[rows]
    return {
        "patients": len(np.unique(patient)),
        "septic_patients": len(np.unique(patient[label == 1])),
        "rows": int(rows.sum()),
        "prevalence_per_hour": float(label.mean()) if len(label) else None,
        "unscored_share": float(np.isnan(judged.probability[rows]).mean()) if len(label) else None,
    }


def _measured(scored: Scored, replicates: int, rng: np.random.Generator) -> dict[str, Any]:
    values, intervals = scored.measure(), scored.intervals(replicates, rng)
    return {"measures": {name: [value, *intervals[name]] for name, value in values.items()}}


def rivals_of(judged: Judged, gain: Floats, rows: Bools, hours: str) -> dict[str, dict[str, float]]:
    """Each rival on the rows that the model is judged on; ``stay_ppv_80`` is that of the stays, with onset in these
    hours, whom its score picks at the threshold that finds 80 % of them."""
    whole, stays = _stays(judged, rows, hours)
    found = {}
    for name, (score, alarm) in judged.rivals.items():
        seen = rows & ~np.isnan(score)
        reached = score[whole] >= stays.threshold_for(score[whole], 0.8)
        found[name] = {
            "utility": metrics.normalized_utility(gain[rows], alarm[rows]),
            "auroc": metrics.auroc(judged.label[seen], score[seen]),
            "auprc": metrics.auprc(judged.label[seen], score[seen]),
            "stay_ppv_80": stays.paged(reached).table()["stay_ppv_in_time"],
        }
    return found


# ------------------------------------------------------------ pages


def _stays(judged: Judged, rows: Bools, hours: str) -> tuple[Bools, Stays]:
    """The patients that have some of the rows, whole, and what of them counts."""
    whole = np.isin(judged.patient, np.unique(judged.patient[rows]))
    patient = np.unique(judged.patient[whole], return_inverse=True)[1].astype(np.int64)
    until_h = np.inf if hours == "all" else float(EARLY_H)
    return whole, Stays(patient, judged.hour[whole], judged.label[whole], rows[whole], until_h=until_h)


def _told(paged: Paged, replicates: int, rng: np.random.Generator) -> dict[str, Any]:
    """A table of pages, with the intervals of its shares under ``intervals``."""
    return paged.table() | {"intervals": {k: list(v) for k, v in paged.intervals(replicates, rng).items()}}


def _alerts(
    judged: Judged, rows: Bools, hours: str, replicates: int, rng: np.random.Generator
) -> dict[str, Any]:
    whole, stays = _stays(judged, rows, hours)
    return _told(stays.paged(judged.page[whole]), replicates, rng)


def operating_of(
    judged: Judged, rows: Bools, hours: str, budgets: bool, replicates: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Pages at fixed sensitivities, and with ``budgets`` at fixed numbers per 100 patient-days, with intervals."""
    whole, stays = _stays(judged, rows, hours)
    page = judged.paging(whole, judged.probability)
    points = operating_points(
        stays, judged.probability[whole], page, SENSITIVITIES, BUDGETS if budgets else ()
    )
    return [at | _told(paged, replicates, rng) for at, paged in points]


def abstention_table(judged: Judged) -> list[dict[str, Any]]:
    """:func:`withheld` by hospital and hours."""
    return [
        {"hospital": hospital, "hours": hours} | withheld(judged, rows, hours)
        for hospital, hours, rows in _strata(judged)
    ]


def withheld(judged: Judged, rows: Bools, hours: str) -> dict[str, Any]:
    """What withholding the indeterminate scores costs and gains.

    ``rows`` and ``septic_rows`` are shares withheld, of scored rows and of the positive ones among them. Each point
    compares the pages at one sensitivity with nothing withheld and with the indeterminate rows silent, so that a
    septic stay that only they would have paged counts as missed.
    """
    silent = judged.indeterminate
    assert silent is not None  # noqa: S101  # asked before
    left = np.where(silent, np.nan, judged.probability)
    gain = metrics.utility_gain(judged.patient, judged.hour, judged.label)
    seen = rows & ~np.isnan(judged.probability)
    found: dict[str, Any] = {
        "rows": _mean(silent[seen]),
        "septic_rows": _mean(silent[seen & (judged.label == 1)]),
        "utility": metrics.normalized_utility(gain[rows], judged.alarm[rows]),
        "utility_withheld": metrics.normalized_utility(gain[rows], (judged.alarm & ~silent)[rows]),
    }
    if judged.policy is not None:
        found["points"] = _withheld_points(judged, left, rows, hours)
    return found


def _withheld_points(judged: Judged, left: Floats, rows: Bools, hours: str) -> list[dict[str, Any]]:
    whole, stays = _stays(judged, rows, hours)
    told = []
    for p in (judged.probability, left):
        points = operating_points(stays, p[whole], judged.paging(whole, p), SENSITIVITIES, ())
        told.append([(at["point"], paged.table()) for at, paged in points])
    shown = ("stay_ppv", "stay_ppv_in_time", "page_ppv", "pages_per_100_patient_days")
    return [
        {"point": name} | {k: before[k] for k in shown} | {f"{k}_withheld": after[k] for k in shown}
        for (name, before), (_, after) in zip(*told, strict=True)
    ]


def _mean(flags: Bools) -> float:
    return float(flags.mean()) if len(flags) else float("nan")


# ------------------------------------------------------------ decision curves and calibration


def _decision_curve(
    judged: Judged, whole: Scored, hours: str, band: Bools, replicates: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Net benefit per scored row at each threshold: of the model, of alarming for everyone, and of the clock rule."""
    seen = band & ~np.isnan(judged.probability)
    label = judged.label[seen]
    clock = (
        judged.rivals["clock"][1][seen] if "clock" in judged.rivals else np.zeros(len(label), dtype=np.bool_)
    )
    every = np.ones(len(label), dtype=np.bool_)
    return {
        "hospital": "all",
        "hours": hours,
        "thresholds": list(THRESHOLDS),
        "model": [list(v) for v in whole.where(seen).net_benefits(THRESHOLDS, replicates, rng)],
        "treat_all": [metrics.net_benefit(label, every, t) for t in THRESHOLDS],
        "clock": [metrics.net_benefit(label, clock, t) for t in THRESHOLDS],
    }


def calibration_curves(judged: Judged) -> list[dict[str, Any]]:
    """The flexible calibration curve read at :data:`CURVE_AT`, by hospital, age, sex and unit, and by hours.

    Returns
    -------
    One entry a group: ``group``, ``value``, ``hours``, ``observed``, the smoothed share of positives at each
    probability; NaN beyond the highest and below the lowest, and throughout where the group is too small.
    """
    every = np.full(len(judged.label), "all", dtype=object)
    several = len({str(s) for s in judged.site}) > 1
    groups = {"": every, **({"hospital": judged.site} if several else {}), **judged.groups}
    found = []
    for group, of in groups.items():
        for value in sorted({str(v) for v in of}):
            for hours, band in bands(judged.hour):
                rows = np.asarray(of == value) & band & ~np.isnan(judged.probability)
                where = {"group": group, "value": value or "unknown", "hours": hours}
                found.append(where | {"observed": _curve(judged, rows)})
    return found


def _curve(judged: Judged, rows: Bools) -> list[float]:
    label, patient = judged.label[rows], judged.patient[rows]
    few = len(np.unique(patient)) < FEWEST_PATIENTS or len(np.unique(patient[label == 1])) < FEWEST_SEPTIC
    if few:
        return [float("nan")] * len(CURVE_AT)
    predicted, observed, size = metrics.calibration_groups(label, judged.probability[rows])
    smooth = metrics.smooth_observed(predicted, observed, size) if len(size) >= 4 else observed
    return [float(v) for v in np.interp(CURVE_AT, predicted, smooth, left=np.nan, right=np.nan)]


def calibration_table(
    raw: Floats, label: Ints, fold: Ints, hour: Floats, site: Objects, weight: Floats
) -> list[dict[str, Any]]:
    """Every calibration method on rows that it was not fitted on, by hospital and by band of hours.

    Proper scores first (log loss, Brier), then ICI, slope and O/E. ``fold`` keeps a patient's rows together; ``weight``
    is what each row counts for in the fit, and in no figure.
    """
    known = ~np.isnan(raw)
    raw, label, fold, hour, site = raw[known], label[known], fold[known], hour[known], site[known]
    fitted = {method: cross_fitted(raw, label, fold, method, weight[known]) for method in METHODS}
    parts = [*bands(hour), (f"> {EARLY_H}", np.asarray(hour > EARLY_H))]
    sites = [("all", np.ones(len(raw), dtype=np.bool_))]
    sites += [(str(s), np.asarray(site == s)) for s in sorted(set(site.tolist()))]
    return [
        {
            "hospital": name,
            "hours": hours,
            "methods": {m: _calibrated(label[rows & band], p[rows & band]) for m, p in fitted.items()},
        }
        for name, rows in (sites if len(sites) > 2 else sites[:1])
        for hours, band in parts
        if 0 < label[rows & band].sum() < (rows & band).sum()
    ]


def _calibrated(label: Ints, probability: Floats) -> dict[str, float]:
    odds = metrics.logit(probability)
    groups = metrics.calibration_groups(label, probability)
    slope, _ = metrics.calibration_line(groups[1], groups[0], groups[2])
    return {
        "log_loss": float(np.logaddexp(0.0, np.where(label == 1, -odds, odds)).mean()),
        "brier": metrics.brier(label, probability),
        "ici": metrics.ici(*groups),
        "slope": slope,
        "observed_expected": float(label.sum() / probability.sum()),
    }


def curves(judged: Judged, gain: Floats) -> dict[str, Any]:
    """What the plots show: calibration, ROC, precision-recall, and utility by ICU hour. JSON-able, no patient in it."""
    seen = ~np.isnan(judged.probability)
    label, probability = judged.label[seen], judged.probability[seen]
    predicted, observed, size = metrics.calibration_groups(label, probability)
    order = np.argsort(-probability, kind="stable")
    true, flagged = np.cumsum(label[order]), np.arange(1, len(order) + 1)
    at = (
        np.unique(np.geomspace(1, max(len(order), 1), 120).astype(np.int64)) - 1
        if len(order)
        else np.array([], int)
    )
    positives, negatives = max(int(label.sum()), 1), max(int((1 - label).sum()), 1)
    hour = np.minimum(judged.hour, 72).astype(np.int64)
    best = np.bincount(hour, weights=np.maximum(gain, 0), minlength=73)
    got = np.bincount(hour, weights=gain * judged.alarm, minlength=73)
    return {
        "calibration": {
            "predicted": _short(predicted),
            "observed": _short(observed),
            "smooth": _short(
                metrics.smooth_observed(predicted, observed, size) if len(size) >= 4 else observed
            ),
            "rows": _short(size),
        },
        "recall": _short(true[at] / positives),
        "false_positive_rate": _short((flagged[at] - true[at]) / negatives),
        "precision": _short(true[at] / flagged[at]),
        "utility_by_hour": {"hour": list(range(73)), "attained": _short(got), "attainable": _short(best)},
    }


def _short(values: npt.NDArray[Any]) -> list[float]:
    return [float(f"{v:.5g}") for v in values]


def clean_json(value: Any) -> Any:
    """Numbers to six significant digits, NaN as null: what a JSON part of a bundle may hold."""
    if isinstance(value, Mapping):
        return {k: clean_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean_json(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def rival_scores(hour: Floats, matrix: npt.NDArray[np.float32], names: Sequence[str]) -> dict[str, Floats]:
    """What each rival says of each row: the clock its hour, a partial score its points where ``names`` has it."""
    columns = {rival: list(names).index(f) for rival, f in RIVALS.items() if f in names}
    return {"clock": hour} | {rival: matrix[:, k].astype(np.float64) for rival, k in columns.items()}
