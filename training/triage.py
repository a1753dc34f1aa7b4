"""P(admission) from a table of triage: one row a visit with whatever columns a site has, without any time series.

For files such as that of Hong et al. (PLoS ONE 2018;13(7):e0201016). A mapping says what the columns mean::

    outcome = "disposition"      # the column with what became of the visit
    admitted = 0                 # its value for those admitted
    categories = ["arrivalmode"] # columns whose numbers only name things
    visit = "visit_id"           # optional: rows of one visit stay in one part
    ignore = ["row_number"]      # optional: not to be learned from
    prevalence = 0.30            # optional: share admitted where the model is to be used, if the file was balanced

Rows are cut at random, by visit, into fit, calibrate and test (60, 20, 20 %): such files have no dates.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import tomllib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import pandas as pd

from features.errors import DataError, SpecError
from features.sources.visits import load_table
from models import metrics
from models.bundle import Bundle, dump_json, write_bundle
from models.calibration import Calibrator, choose
from models.metrics import logit
from models.profile import profile

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

KEYS: Final = {"outcome", "admitted", "categories", "visit", "ignore", "prevalence"}
PARTS: Final = (0.6, 0.8)
"""Where fit ends and where calibrate ends, as shares of visits."""
BOOST: Final[dict[str, Any]] = {
    "objective": "binary", "learning_rate": 0.03, "num_leaves": 31, "min_data_in_leaf": 100, "lambda_l2": 1.0,
    "feature_fraction": 0.5, "bagging_fraction": 0.8, "bagging_freq": 1, "seed": 1, "deterministic": True,
    "force_col_wise": True, "verbosity": -1,
}  # fmt: skip
ROUNDS: Final = 1000
PATIENCE: Final = 40
RESAMPLES: Final = 200
GROUPS: Final = 10


@dataclass(frozen=True)
class Mapping:
    """What the columns of a site's triage table mean; see the head of this module."""

    outcome: str
    admitted: str
    categories: tuple[str, ...] = ()
    visit: str = ""
    ignore: tuple[str, ...] = ()
    prevalence: float | None = None

    @classmethod
    def read(cls, path: Path | None) -> Mapping:
        """Read a TOML file.

        Raises
        ------
        SpecError
            There is none, it is not TOML, or a key is missing or unknown.
        """
        if path is None or not path.is_file():
            raise SpecError(
                "A triage table needs a mapping: --mapping FILE. See: wardcast data schema triage."
            )
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise SpecError(f"{path.name} is not TOML: {error}.") from None
        unknown, absent = sorted(set(table) - KEYS), sorted({"outcome", "admitted"} - set(table))
        if unknown or absent:
            wrong = [f"lacks {', '.join(absent)}"] * bool(absent) + [f"has {', '.join(unknown)}"] * bool(
                unknown
            )
            raise SpecError(
                f"The mapping {path.name} {' and '.join(wrong)}; known are {', '.join(sorted(KEYS))}."
            )
        share = table.get("prevalence")
        if share is not None and not 0 < float(share) < 1:
            raise SpecError(f"prevalence in {path.name} must be between 0 and 1, got {share}.")
        return cls(
            outcome=str(table["outcome"]),
            admitted=str(table["admitted"]),
            categories=tuple(table.get("categories", ())),
            visit=str(table.get("visit", "")),
            ignore=tuple(table.get("ignore", ())),
            prevalence=None if share is None else float(share),
        )


@dataclass(frozen=True)
class Rows:
    """Visits as numbers: ``matrix`` (n, columns), ``label`` 0 or 1, ``part`` 0 fit, 1 calibrate, 2 test."""

    columns: tuple[str, ...]
    categories: tuple[str, ...]
    matrix: npt.NDArray[np.float32]
    label: Ints
    part: Ints
    visit: Ints


def rows_of(
    raw: pd.DataFrame, mapping: Mapping, columns: tuple[str, ...] | None = None, seed: int = 1
) -> Rows:
    """Read a table with outcomes; ``columns`` are those a model reads, default all the mapping says nothing of.

    Raises
    ------
    DataError
        A column the mapping names is missing, one is not numeric, or everybody had the same outcome.
    """
    named = [mapping.outcome, *mapping.categories, *([mapping.visit] if mapping.visit else [])]
    absent = [c for c in named if c not in raw.columns]
    if absent:
        raise DataError(f"The file lacks {', '.join(absent)}, which the mapping names.")
    if columns is None:
        aside = {mapping.outcome, mapping.visit, *mapping.ignore}
        columns = tuple(c for c in raw.columns if c not in aside)
    visit = np.asarray(pd.factorize(raw[mapping.visit])[0] if mapping.visit else np.arange(len(raw)))
    share = np.random.default_rng(seed).random(int(visit.max()) + 1)[visit]
    part = np.searchsorted(PARTS, share, side="right").astype("int64")
    return Rows(columns, mapping.categories, numbers(raw, columns), _label(raw, mapping), part, visit)


def _label(raw: pd.DataFrame, mapping: Mapping) -> Ints:
    out = raw[mapping.outcome]
    if out.isna().any():
        raise DataError(f"{int(out.isna().sum()):,} rows have no {mapping.outcome}. Leave them out.")
    label: Ints = (out.astype("str") == mapping.admitted).to_numpy().astype(np.int64)
    if label.min() == label.max():
        values = ", ".join(sorted(out.astype("str").unique())[:5])
        raise DataError(
            f"{mapping.outcome} is {mapping.admitted!r} for all rows or for none; it has the values {values}."
        )
    return label


def numbers(raw: pd.DataFrame, columns: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """The columns as float32, empty as NaN.

    Raises
    ------
    DataError
        A column is missing or holds text that is no number; names them.
    """
    absent = [c for c in columns if c not in raw.columns]
    if absent:
        raise DataError(f"The file lacks {', '.join(absent[:10])}, which the model reads.")
    table = raw[list(columns)].apply(pd.to_numeric, errors="coerce")
    text = [c for c in columns if bool((table[c].isna() & raw[c].notna()).any())]
    if text:
        raise DataError(
            f"Not numbers: {', '.join(text[:10])}. Code categories as numbers, or name the columns in ignore."
        )
    matrix: npt.NDArray[np.float32] = table.to_numpy("float32")
    return matrix


# ------------------------------------------------------------ fit


@dataclass(frozen=True)
class Fitted:
    """A booster and its calibration, at the prevalence the model is for."""

    booster: lgb.Booster
    calibrator: Calibrator
    prevalence: float
    in_file: float

    def weights(self, label: Ints) -> Floats:
        """What each row counts so that the file has the prevalence the model is for."""
        return weights(label, self.prevalence, self.in_file)

    def score(self, matrix: npt.NDArray[np.float32]) -> Floats:
        """P(admission)."""
        return self.calibrator.apply(np.asarray(self.booster.predict(matrix, raw_score=True), "float64"))


def fit(rows: Rows, prevalence: float | None, threads: int = 1) -> Fitted:
    """Boost on the first part and calibrate on the second; then move the intercept to the prevalence asked for.

    A balanced file has the odds of admission multiplied by a constant: its logarithm is taken off the log-odds
    (prior correction, Saerens et al., Neural Comput 2002;14:21).
    """
    some, held = rows.part == 0, rows.part == 1
    booster = _boost(rows, some, threads)
    raw = np.asarray(booster.predict(rows.matrix[held], raw_score=True), "float64")
    calibrator, _ = choose(raw, rows.label[held], rows.visit[held] % 5, ("logistic", "beta"))
    in_file = float(rows.label[some | held].mean())
    wanted = in_file if prevalence is None else prevalence
    *slopes, intercept = calibrator.coefficients
    moved = intercept + float(logit(np.array([wanted]))[0] - logit(np.array([in_file]))[0])
    return Fitted(booster, replace(calibrator, coefficients=(*slopes, moved)), wanted, in_file)


def _boost(rows: Rows, some: Bools, threads: int) -> lgb.Booster:
    """As many rounds as a seventh of the visits, left out of fitting, gains by."""
    aside = rows.visit % 7 == 0
    naming: dict[str, Any] = {
        "feature_name": [safe(c) for c in rows.columns],
        "categorical_feature": [safe(c) for c in rows.categories],
    }
    data = lgb.Dataset(rows.matrix[some & ~aside], rows.label[some & ~aside], **naming)
    judge_by = lgb.Dataset(rows.matrix[some & aside], rows.label[some & aside], reference=data, **naming)
    stop = lgb.early_stopping(PATIENCE, verbose=False)
    settings = {**BOOST, "num_threads": threads}
    return lgb.train(settings, data, ROUNDS, valid_sets=[judge_by], callbacks=[stop])


def safe(name: str) -> str:
    """A column's name as LightGBM and JSON take it."""
    return re.sub(r"[^A-Za-z0-9_.()/+-]", "_", name)


# ------------------------------------------------------------ judge


def weights(label: Ints, prevalence: float, in_file: float) -> Floats:
    """What each row counts so that a file with the share ``in_file`` admitted has ``prevalence``."""
    return np.where(label == 1, prevalence / in_file, (1 - prevalence) / (1 - in_file))


def judge(label: Ints, probability: Floats, weight: Floats, visit: Ints) -> dict[str, Any]:
    """AUROC, calibration line, ECE over ten groups, Brier, with 95 % intervals by resampled visits.

    The interval of ECE is not one of its sampling alone: resampling adds noise to a mean of distances, which moves it
    up.
    """
    figures = _figures(label, probability, weight)
    rng, n = np.random.default_rng(2), int(visit.max()) + 1
    drawn = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, n, n), minlength=n)[visit]
        drawn.append(_figures(label, probability, weight * times))
    for name in ("auroc", "slope", "intercept", "ece", "brier"):
        low, high = np.quantile([d[name] for d in drawn], [0.025, 0.975])
        figures[f"{name}_interval"] = [float(low), float(high)]
    return figures | {"rows": len(label), "visits": len(np.unique(visit))}


def _figures(label: Ints, probability: Floats, weight: Floats) -> dict[str, Any]:
    y = label.astype("float64")
    slope, intercept = metrics.calibration_line(y, probability, weight)
    return {
        "auroc": _auroc(label, probability, weight),
        "slope": float(slope),
        "intercept": float(intercept),
        "ece": _ece(y, probability, weight),
        "brier": float(np.average((probability - y) ** 2, weights=weight)),
        "prevalence": float(np.average(y, weights=weight)),
    }


def _auroc(label: Ints, probability: Floats, weight: Floats) -> float:
    """Weighted probability that an admitted patient scores higher than one who goes home; ties count half."""
    _, place = np.unique(probability, return_inverse=True)
    yes = np.bincount(place, weights=weight * label)
    no = np.bincount(place, weights=weight * (1 - label))
    below = np.cumsum(no) - no
    return float((yes * (below + no / 2)).sum() / (yes.sum() * no.sum()))


def _ece(y: Floats, probability: Floats, weight: Floats) -> float:
    """Mean distance between predicted and observed share over ten groups of equal weight."""
    order = np.argsort(probability, kind="stable")
    w = weight[order]
    reached = np.cumsum(w) - w / 2
    group = np.minimum((reached / w.sum() * GROUPS).astype("int64"), GROUPS - 1)
    gap = np.bincount(group, weights=w * (probability[order] - y[order]), minlength=GROUPS)
    return float(np.abs(gap).sum() / w.sum())


# ------------------------------------------------------------ commands


@dataclass(frozen=True)
class TriageResult:
    """What a command did, for the console."""

    text: str
    evaluation: dict[str, Any]
    bundle: Bundle | None = None

    def summary(self) -> str:
        """Figures, and where things are."""
        return self.text


def train(
    input: Path | None,
    mapping: Path | None,
    output: Path | None = None,
    *,
    threads: int = 1,
    register: bool = True,
) -> TriageResult:
    """Fit, calibrate, judge on held-out visits, and write a bundle that knows P(admission) alone.

    Raises
    ------
    DataError, SpecError
        The file or the mapping cannot be used.
    """
    if input is None:
        raise DataError("Say where the triage table is: --source triage --input FILE --mapping FILE.")
    began = time.monotonic()
    meaning = Mapping.read(mapping)
    rows = rows_of(load_table(input), meaning)
    fitted = fit(rows, meaning.prevalence, threads)
    test = rows.part == 2
    label = rows.label[test]
    figures = judge(label, fitted.score(rows.matrix[test]), fitted.weights(label), rows.visit[test])
    figures["admitted_in_file"] = fitted.in_file
    bundle = _write(
        output or _default_folder(), rows, fitted, {"p_admission": figures}, meaning, _digest(input)
    )
    tracked = _track(bundle, figures, time.monotonic() - began) if register else ""
    lines = [evaluation_table(figures), "", f"Bundle {bundle.model_id}: {bundle.folder}"]
    lines += [f"MLflow: {tracked}"] if tracked else []
    return TriageResult(
        "\n".join([*lines, f"{time.monotonic() - began:.0f} s"]), {"p_admission": figures}, bundle
    )


def score_file(input: Path, output: Path, model: str | None) -> TriageResult:
    """Write ``p_admission`` of every row, in the file's order, as Parquet; no outcome is asked for or looked at."""
    bundle = _load(model)
    raw = load_table(input)
    probability = bundle.score(numbers(raw, _columns(bundle)))
    scores = pd.DataFrame({"row": np.arange(len(raw)), "p_admission": probability})
    visit = bundle.spec.section("model").get("visit", "")
    if visit and visit in raw.columns:
        scores.insert(1, visit, raw[visit].to_numpy())
    output.parent.mkdir(parents=True, exist_ok=True)
    scores.to_parquet(output, index=False)
    return TriageResult(f"{len(raw):,} rows scored by {bundle.model_id}: {output}", {})


def evaluate_file(
    input: Path, model: str | None, output: Path | None, mapping: Path | None = None
) -> TriageResult:
    """Judge a bundle on a file with outcomes; ``mapping`` where they are called otherwise than in training.

    Rows count as if as many were admitted as the mapping's ``prevalence`` says: without a mapping, as many as the
    model was corrected for in training, since files like that one are balanced. A mapping that names none takes the
    file as it is.
    """
    bundle = _load(model)
    made = bundle.spec.section("model")
    raw = load_table(input)
    meaning = (
        Mapping.read(mapping)
        if mapping
        else Mapping(
            made["outcome"], made["admitted"], visit=made["visit"], prevalence=_corrected_for(bundle)
        )
    )
    rows = rows_of(raw, meaning, _columns(bundle))
    in_file = float(rows.label.mean())
    counted = weights(rows.label, meaning.prevalence or in_file, in_file)
    figures = judge(rows.label, bundle.score(rows.matrix), counted, rows.visit) | {
        "admitted_in_file": in_file
    }
    if output is not None:
        output.write_text(dump_json(figures), encoding="utf-8")
    return TriageResult(evaluation_table(figures), {"p_admission": figures})


def _corrected_for(bundle: Bundle) -> float | None:
    """The share admitted that a model was corrected to in training; None if its file was taken as it was."""
    data = bundle.parts["data"]
    return None if data["prevalence"] == data["admitted_in_file"] else float(data["prevalence"])


def evaluation_table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"P(admission), once a visit ({figures['rows']:,} rows of {figures['visits']:,} visits, "
        f"{figures['prevalence']:.1%} admitted{_weighted(figures)}):",
        "",
        "| | value | 95 % interval by visit |",
        "|---|---|---|",
    ]
    lines += [
        f"| {n} | {figures[n]:.4f} | {figures[n + '_interval'][0]:.4f} to {figures[n + '_interval'][1]:.4f} |"
        for n in ("auroc", "slope", "intercept", "ece", "brier")
    ]
    return "\n".join(lines)


def _weighted(figures: dict[str, Any]) -> str:
    """Whether rows were weighted, in words."""
    in_file = figures.get("admitted_in_file", figures["prevalence"])
    return "" if abs(in_file - figures["prevalence"]) < 5e-4 else f" as weighted, {in_file:.1%} in the file"


def _columns(bundle: Bundle) -> tuple[str, ...]:
    columns: tuple[str, ...] = tuple(bundle.parts["features"]["columns"])
    return columns


def _load(model: str | None) -> Bundle:
    """A bundle made by :func:`train`."""
    if model is None:
        raise DataError(
            "Say which model: --model FOLDER, as `wardcast train admissions --source triage` wrote it."
        )
    from training.tracking import resolve

    bundle = Bundle.load(resolve(model))
    if "columns" not in bundle.parts["features"]:
        raise SpecError(f"Bundle {bundle.model_id} was not trained on a triage table.")
    return bundle


def _default_folder() -> Path:
    home = Path(os.environ.get("WARDCAST_VAR") or "var").absolute()
    return home / "models" / f"triage-{datetime.now(UTC):%Y%m%dT%H%M%S}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(
    folder: Path, rows: Rows, fitted: Fitted, evaluation: dict[str, Any], mapping: Mapping, digest: str
) -> Bundle:
    held = rows.part == 1
    names = [safe(c) for c in rows.columns]
    text = "\n".join(
        [
            "# P(admission) from a triage table; written by wardcast train admissions --source triage.",
            "[model]", 'name = "admissions"', 'version = "1"',
            f"outcome = {_quoted(mapping.outcome)}", f"admitted = {_quoted(mapping.admitted)}",
            f"visit = {_quoted(mapping.visit)}",
            f"columns = [{', '.join(_quoted(n) for n in names)}]", "",
        ]
    )  # fmt: skip
    card = (
        "# Model card: P(admission) from triage\n\nOne row a visit, scored once. LightGBM on a site's own columns, "
        "calibrated on other visits than it was fitted on, judged on a third part. Visits were cut at random, not in "
        "time: figures of a later period may be lower. It knows nothing of beds.\n\n"
    )
    return write_bundle(
        folder,
        name="admissions",
        version="1",
        spec_text=text,
        boosters={"risk": fitted.booster},
        parts={
            "features": {"columns": list(rows.columns), "categories": list(rows.categories)},
            "reference": profile(rows.matrix[held], names, fitted.score(rows.matrix[held])),
            "evaluation": evaluation,
            "data": {
                "origin": "a triage table of a site", "rows": len(rows.label), "sha256": digest,
                "admitted_in_file": fitted.in_file, "prevalence": fitted.prevalence,
            },
            "calibrator": fitted.calibrator.to_dict(),
        },
        card=card + evaluation_table(evaluation["p_admission"]) + "\n",
    )  # fmt: skip


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _track(bundle: Bundle, figures: dict[str, Any], seconds: float) -> str:
    from training import tracking

    shown = {f"p_admission.{k}": float(figures[k]) for k in ("auroc", "slope", "ece", "brier")}
    return tracking.log_bundle(
        bundle.folder, run_name="train", alias="triage", tags={"source": "triage"},
        metrics={"seconds": seconds, **shown},
    )  # fmt: skip
