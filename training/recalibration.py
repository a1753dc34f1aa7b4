"""A released model at a new hospital: its ranking kept, its probabilities fitted to a few hundred local patients."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.errors import ConfigError, DataError
from features.labels import physionet2019 as physionet_labels
from models import metrics
from models.bundle import Bundle, write_bundle
from models.calibration import Calibrator, Clustered
from models.metrics import expit, logit
from models.scope import SCORED
from training.cohort import prepare, sha256, sources_of
from training.evaluation import clean_json
from training.scoring import alike, trained_on

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FEWEST_SEPTIC: Final = 20
"""Septic patients without which two numbers cannot be told from chance."""
SPREAD: Final = (0.3, 0.5)
"""How far a released map's slope, and its level at a patient's usual log-odds, are believed to move: standard
deviations."""
FAMILIAR: Final = (
    "By their identifiers these look like the challenge's own patients, most of whom trained this model: then its "
    "scores flatter it here, and this calibration holds nowhere else. A bundle keeps no patients, so nothing more can "
    "be said."
)
STAYS: Final = 1000
DRAWS: Final = 20
REPLICATES: Final = 200


def uncertainty(calibrator: Calibrator, raw: Floats, label: Ints, patient: Ints) -> Floats:
    """How far slope and level of these stays may be off by chance: their covariance, shape (2, 2).

    The level is the line's height at the mean calibrated log-odds of the rows. Cluster-robust (sandwich over patients),
    of an unpenalised line, since the hours of a stay are alike. Infinite where the stays do not determine a line.
    """
    design, _ = _design(calibrator, raw)
    line = metrics.logistic(design, np.zeros(len(raw)), label.astype(np.float64), np.ones(len(raw)))
    p = expit(design @ line)
    score = design * (label - p)[:, None]
    each = np.column_stack([np.bincount(patient, weights=score[:, j]) for j in range(2)])
    try:
        bread = np.linalg.inv((design * (p * (1 - p))[:, None]).T @ design)
    except np.linalg.LinAlgError:
        return np.full((2, 2), np.inf)
    found = bread @ (each.T @ each) @ bread
    return found if np.isfinite(found).all() else np.full((2, 2), np.inf)


def local_line(
    calibrator: Calibrator, raw: Floats, label: Ints, covariance: Floats, weight: Floats | None = None
) -> tuple[float, float]:
    """Slope and intercept, in calibrated log-odds, of local patients; drawn towards 1 and 0 while they are few.

    The line of highest likelihood, believed as its ``covariance`` (:func:`uncertainty`) allows beside a normal prior
    of :data:`SPREAD` around an unmoved slope and level; 1 and 0 where there is no such line. The level is drawn, not
    the intercept: log-odds of 0 lie far from any patient, and a slope could not move without moving what it is there.
    """
    share = np.ones(len(raw)) if weight is None else weight
    design, middle = _design(calibrator, raw, share)
    line = metrics.logistic(design, np.zeros(len(raw)), label.astype(np.float64), share)
    if not (np.isfinite(line).all() and np.isfinite(covariance).all()):
        return 1.0, 0.0
    unmoved, prior = np.array([1.0, middle]), np.diag(np.square(SPREAD))
    drawn = unmoved + prior @ np.linalg.solve(prior + covariance, line - unmoved)
    slope = max(float(drawn[0]), 0.05)
    return slope, float(drawn[1]) - slope * middle


def _design(calibrator: Calibrator, raw: Floats, weight: Floats | None = None) -> tuple[Floats, float]:
    """Calibrated log-odds less their mean beside a column of ones, shape (n, 2), and that mean."""
    odds = logit(calibrator.apply(raw))
    middle = float(np.average(odds, weights=weight))
    return np.column_stack([odds - middle, np.ones_like(odds)]), middle


def adapted(
    calibrator: Calibrator, raw: Floats, label: Ints, patient: Ints, rng: np.random.Generator
) -> Calibrator:
    """The map after its local line, with the band that local patients allow.

    Raises
    ------
    DataError
        Fewer than 20 septic patients.
    """
    septic = len(np.unique(patient[label == 1]))
    if septic < FEWEST_SEPTIC:
        raise DataError(
            f"Recalibration needs {FEWEST_SEPTIC} septic patients with scored hours, got {septic} among "
            f"{len(np.unique(patient)):,}. Collect more local stays: at 7 % septic about 300 are enough, 500 to 1,000 "
            "are better."
        )
    unsure = uncertainty(calibrator, raw, label, patient)
    made = calibrator.adjusted(*local_line(calibrator, raw, label, unsure))
    rows = Clustered.of(raw, label, patient)
    drawn = []
    for _ in range(REPLICATES):
        x, y, weight = rows.weighted(rows.draw(rng))
        again = calibrator.adjusted(*local_line(calibrator, x, y, unsure, weight))
        drawn.append(logit(again.apply(rows.knots)))
    return made.banded(rows.knots, np.array(drawn))


# ------------------------------------------------------------ what it is worth, measured at another hospital


def rehearsed(
    calibrator: Calibrator, raw: Floats, label: Ints, patient: Ints, seed: int, draws: int = DRAWS
) -> dict[str, Any]:
    """What some local stays repair: fitted on random draws of at most 1,000 of a hospital's stays, judged on the rest.

    Parameters
    ----------
    calibrator : of the other hospital
    raw, label, patient : every scored row of this hospital

    Returns
    -------
    ``stays``, ``draws``, and ``before`` and ``after``, each with the mean over draws of ICI, slope, O/E and Brier skill
    (``after`` with their standard deviations too). Empty where there are too few stays to draw from.
    """
    codes = np.unique(patient, return_inverse=True)[1].astype(np.int64)
    count = int(codes.max(initial=-1)) + 1
    stays = min(STAYS, count // 2)
    rng = np.random.default_rng(seed)
    found: dict[str, list[Floats]] = {"before": [], "after": []}
    for _ in range(draws):
        mine = (
            np.isin(codes, rng.choice(count, stays, replace=False))
            if stays
            else np.zeros(len(raw), dtype=np.bool_)
        )
        if len(np.unique(codes[mine & (label == 1)])) < FEWEST_SEPTIC:
            return {}
        part = raw[mine], label[mine]
        unsure = uncertainty(calibrator, *part, codes[mine])
        after = calibrator.adjusted(*local_line(calibrator, *part, unsure))
        for name, made in (("before", calibrator), ("after", after)):
            found[name].append(_calibration(label[~mine], made.apply(raw[~mine])))
    table: dict[str, Any] = {"stays": stays, "draws": draws}
    for name, figures in found.items():
        mean, spread = np.mean(figures, axis=0), np.std(figures, axis=0)
        table[name] = dict(zip(FIGURES, mean.tolist(), strict=True))
        table[f"{name}_sd"] = dict(zip(FIGURES, spread.tolist(), strict=True))
    return table


FIGURES: Final = ("ici", "slope", "observed_expected", "brier_skill")


def _calibration(label: Ints, probability: Floats) -> Floats:
    groups = metrics.calibration_groups(label, probability)
    slope, _ = metrics.calibration_line(groups[1], groups[0], groups[2])
    rate = float(label.mean())
    skill = 1 - metrics.brier(label, probability) / (rate * (1 - rate))
    return np.array([metrics.ici(*groups), slope, label.sum() / probability.sum(), skill])


# ------------------------------------------------------------ the command


@dataclass(frozen=True)
class RecalibrationResult:
    """A bundle made for a site, and what was found there."""

    bundle: Bundle
    about: dict[str, Any]
    tracked: str

    def summary(self) -> str:
        """For the console."""
        told, before, after = self.about, self.about["before"], self.about["after"]
        lines = [
            f"{told['parent']} recalibrated on {told['patients']:,} patients, {told['septic_patients']:,} septic: "
            f"slope {told['slope']:.2f}, intercept {told['intercept']:+.2f} in log-odds.",
            f"On these patients, before: O/E {before['observed_expected']:.2f}, slope {before['slope']:.2f}, "
            f"ICI {before['ici']:.4f}; after, cross-fitted: O/E {after['observed_expected']:.2f}, "
            f"slope {after['slope']:.2f}, ICI {after['ici']:.4f}.",
            f"Bundle {self.bundle.model_id}: {self.bundle.folder}",
            "Thresholds are probabilities and stay as they were; count the pages before anyone is paged.",
        ]
        lines += [FAMILIAR] if told["perhaps_trained_on"] else []
        return "\n".join([*lines, f"MLflow: {self.tracked}"] if self.tracked else lines)


def recalibrate(
    product: str,
    source: str,
    input: Path,
    output: Path | None = None,
    *,
    model: str | None = None,
    register: bool = True,
    threads: int = 1,
) -> RecalibrationResult:
    """Fit slope and intercept of a released model to local patients, and write the bundle that has them.

    Parameters
    ----------
    input : Path
        A file or folder of local patients with outcomes, whole stays.
    output : Path, optional
        An empty or new folder; default under ``var/models``.
    register : bool
        Log the run and register the bundle in MLflow, as challenger.

    Raises
    ------
    ConfigError
        The product or source is not one this command knows.
    DataError
        Fewer than 20 septic patients, the model was made from these very files, or the input cannot be used.
    """
    from training.tracking import log_bundle, resolve, var

    if product != "sepsis" or source != "physionet2019":
        raise ConfigError("Recalibration knows sepsis and --source physionet2019.")
    parent = Bundle.load(resolve(model or "released:sepsis"))
    _refuse_its_own(parent, input)
    raw, label, patient, rows, familiar = _scored(parent, input, threads)
    calibrator = adapted(parent.calibrator, raw, label, patient, np.random.default_rng(0))
    unsure = uncertainty(parent.calibrator, raw, label, patient)
    slope, intercept = local_line(parent.calibrator, raw, label, unsure)
    about = clean_json(
        {
            "parent": parent.model_id,
            "slope": slope,
            "intercept": intercept,
            "standard_errors": np.sqrt(np.diag(unsure)).tolist(),
            "rows": rows,
            "perhaps_trained_on": familiar,
            "patients": int(patient.max()) + 1,
            "septic_patients": len(np.unique(patient[label == 1])),
            "files": [{"name": f.name, "sha256": sha256(f)} for f in _files(input)],
            **_cross_judged(parent.calibrator, raw, label, patient),
        }
    )
    folder = output or var() / "models" / f"sepsis-recalibrated-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    bundle = _written(parent, calibrator, about, folder)
    tags = {"source": source, "origin": "recalibrated", "parent": parent.model_id}
    tracked = (
        log_bundle(bundle.folder, run_name="recalibrate", alias="challenger", tags=tags, metrics=_told(about))
        if register
        else ""
    )
    return RecalibrationResult(bundle, about, tracked)


def _told(about: dict[str, Any]) -> dict[str, float]:
    """What was found at the site, as metrics of the run; those named without ``local`` are its parent's."""
    found = {f"local.{k}": about[k] for k in ("slope", "intercept", "rows", "patients", "septic_patients")}
    found |= {f"local.{when}.{k}": v for when in ("before", "after") for k, v in about[when].items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _files(input: Path) -> list[Path]:
    from features.sources import physionet2019

    return physionet2019.files(input)


def _refuse_its_own(parent: Bundle, input: Path) -> None:
    """A model is surer of patients it was made from than of any it will meet: they tell nothing of a new hospital."""
    before = {f["sha256"] for f in parent.parts.get("recalibration", {}).get("files", [])}
    if trained_on(parent, input) or any(sha256(f) in before for f in _files(input)):
        raise DataError(
            f"{parent.model_id} was made from these very files, and would be fitted to its own memory. Give whole "
            "stays that it has not seen."
        )


def _scored(bundle: Bundle, input: Path, threads: int) -> tuple[Floats, Ints, Ints, int, bool]:
    """Raw score, outcome and patient of every row that can be scored, how many rows there are in all, and whether
    identifiers look like those of the patients that the model was made from."""
    labels = physionet_labels.read_labels(input)
    raw, label, names, rows, familiar = [], [], [], 0, False
    for patients in sources_of(input):
        ready = prepare(patients, bundle.spec, threads)
        scored = np.asarray(ready.status == SCORED)
        raw.append(bundle.raw(ready.matrix[scored], threads=threads))
        label.append(labels[ready.rows.index.to_numpy()][scored])
        names.append(ready.rows["encounter_id"].astype(object).to_numpy()[scored])
        rows, familiar = rows + len(scored), familiar or alike(bundle, ready.rows)
    if not rows:
        raise DataError(f"{input} holds no rows. Give a file with local patients and their outcomes.")
    patient = pd.factorize(np.concatenate(names))[0].astype(np.int64)
    return np.concatenate(raw), np.concatenate(label).astype(np.int64), patient, rows, familiar


def _cross_judged(calibrator: Calibrator, raw: Floats, label: Ints, patient: Ints) -> dict[str, Any]:
    """Calibration before, and after with each fifth of the patients judged by the line of the others."""
    after = np.empty(len(raw))
    unsure = uncertainty(calibrator, raw, label, patient)
    fold = np.random.default_rng(1).permutation(int(patient.max()) + 1)[patient] % 5
    for k in range(5):
        mine = fold == k
        line = local_line(calibrator, raw[~mine], label[~mine], unsure)
        after[mine] = calibrator.adjusted(*line).apply(raw[mine])
    return {
        name: dict(zip(FIGURES, _calibration(label, p).tolist(), strict=True))
        for name, p in (("before", calibrator.apply(raw)), ("after", after))
    }


def _written(parent: Bundle, calibrator: Calibrator, about: dict[str, Any], folder: Path) -> Bundle:
    """The parent's boosters, features and decisions with the new map, and a card that says so first."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:6]
    reference = parent.reference | {
        "probability": moved(parent.reference["probability"], about["slope"], about["intercept"])
    }
    parts = dict(parent.parts) | {
        "calibrator": calibrator.to_dict(),
        "recalibration": about,
        "reference": reference,
    }
    return write_bundle(
        folder,
        name=parent.name,
        version=f"{parent.version}.r{digest}",
        spec_text=parent.spec.text,
        boosters=parent.boosters,
        parts=parts,
        card=_card(about) + parent.card,
    )


def moved(scores: dict[str, Any], slope: float, intercept: float) -> dict[str, Any]:
    """The profile of a model's scores after a line in their log-odds, so that monitoring does not take it for drift.

    Edges and quantiles are exact; mean and standard deviation are those of the histogram's bins.
    """

    def line(values: Sequence[float]) -> Floats:
        p = np.array(values, dtype=np.float64)
        return np.where((p > 0) & (p < 1), expit(slope * logit(p) + intercept), p)

    edges, size = line(scores["edges"]), np.array(scores["histogram"], dtype=np.float64)
    told = scores | {"edges": edges.tolist(), "quantiles": line(scores["quantiles"]).tolist()}
    if scores["mean"] is None or not size.sum():
        return told
    middle = (edges[1:] + edges[:-1]) / 2
    mean = float(np.average(middle, weights=size))
    return told | {"mean": mean, "std": float(np.sqrt(np.average((middle - mean) ** 2, weights=size)))}


def _card(about: dict[str, Any]) -> str:
    before, after = about["before"], about["after"]
    return (
        f"# Recalibrated for a site\n\nThe model below, {about['parent']}, with its probabilities fitted to "
        f"{about['patients']:,} local patients, {about['septic_patients']:,} septic (slope {about['slope']:.3f}, "
        f"intercept {about['intercept']:+.3f} in log-odds, shrunk towards 1 and 0). On those patients the observed to "
        f"expected ratio was {before['observed_expected']:.2f} before and {after['observed_expected']:.2f} after, "
        f"slope {before['slope']:.2f} and {after['slope']:.2f}, ICI {before['ici']:.4f} and {after['ici']:.4f}; "
        "*after* is cross-fitted over patients. Ranking, features, thresholds and everything said below of the "
        "hospitals that the model comes from are unchanged.\n\n"
        + (f"**{FAMILIAR}**\n\n" if about["perhaps_trained_on"] else "")
    )
