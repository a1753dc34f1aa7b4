"""Train the bed forecast: P(admission), specialty, time to bed, arrivals, stays; corrected, judged, released.

Time is cut in three, in order: fit, calibrate, test. Probabilities and intervals are calibrated on the second part,
every figure in the card comes from the third. What is known only after a forecast's time never enters it: visits are
read through :func:`features.sources.visits.known_at`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import pandas as pd
from threadpoolctl import threadpool_limits

from features import census
from features.clean import clean
from features.clock import micros
from features.errors import DataError
from features.featureset import FeatureSet
from features.labels.admissions import random_grid, snapshots
from features.sources import moves as move_source
from features.sources import outlook
from features.sources import visits as visit_source
from features.sources.synthetic import simulate
from features.sources.visits import through_ed, visit_events
from models import metrics, parity
from models.beds import BedModel, admission_matrix
from models.bundle import Bundle, mean_of_members, write_bundle
from models.calibration import Calibrator, choose
from models.profile import profile
from models.spec import Spec
from training import backtest, ingredients
from training.flows import fit_flows, grouped_visits, name_specialties, specialty_codes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SPEC: Final = Path(__file__).resolve().parent.parent / "models" / "admissions" / "spec.toml"
START: Final = datetime(2025, 1, 6, tzinfo=UTC)
MANY: Final = 200_000
"""Fewer rows are boosted faster by one thread than by several that wait for one another."""
LEAST_DAYS: Final = 60
"""Fewer days of visits cannot be cut in three."""


# ------------------------------------------------------------ data


@dataclass(frozen=True)
class Hospital:
    """What a bed model learns from: visits, their events (cleaned, with visit events), where and since when."""

    visits: pd.DataFrame
    events: pd.DataFrame
    timezone: str
    first: pd.Timestamp
    last: pd.Timestamp
    origin: str
    account: dict[str, Any] = field(default_factory=dict)
    moves: pd.DataFrame = field(default_factory=move_source.no_moves)
    covariates: pd.DataFrame | None = None

    def cut(self, fit: float, calibrate: float) -> tuple[pd.Timestamp, pd.Timestamp]:
        """Where fitting ends and where calibration ends, at local midnights."""
        days = (self.last - self.first) / pd.Timedelta(days=1)

        def midnight(share: float) -> pd.Timestamp:
            day = (self.first + pd.Timedelta(days=days * share)).tz_convert(self.timezone).date()
            return census.local_midnight(day, self.timezone)

        return midnight(fit), midnight(fit + calibrate)


def load(source: str, path: Path | None, spec: Spec) -> Hospital:
    """Read visits (and events, where the site gives them) or simulate them.

    Parameters
    ----------
    source : "synthetic" or "visits"
    path : Path
        A file of visits; or a folder with ``visits.csv`` or ``visits.parquet``, and beside it what there is of
        ``events.parquet`` (observations), ``moves`` (changes of specialty) and ``covariates`` (daily series), the last
        two as ``.csv`` or ``.parquet``.
    """
    timezone = os.environ.get("WARDCAST_TIMEZONE", "").strip() or "UTC"
    if source == "synthetic":
        return _simulated(spec.section("training"), timezone)
    if source != "visits":
        raise DataError(f"Admissions are trained on 'visits' or 'synthetic', not on {source!r}.")
    if path is None:
        raise DataError("Say where the visits are: --source visits --input FILE.")
    return _site(path, timezone)


def _simulated(training: dict[str, Any], timezone: str) -> Hospital:
    days, seed = training["simulated_days"], training["simulated_seed"]
    made = simulate(
        days, seed, START, timezone=timezone, observe=("ed",), moving=training.get("simulated_moving", 0.0)
    )
    first = pd.Timestamp(START)
    last = first + pd.Timedelta(days=days)
    origin = f"simulated hospital, seed {seed}, {days} days"
    hospital = _hospital(made.visits, made.events, timezone, first, last, origin, {})
    return replace(hospital, moves=made.moves)


def _site(path: Path, timezone: str) -> Hospital:
    folder, file = (path, outlook.beside(path, "visits")) if path.is_dir() else (None, path)
    if file is None:
        raise DataError("The folder has neither visits.parquet nor visits.csv.")
    visits, account = visit_source.read(file, timezone=timezone)
    counted = {"read": account.read, "used": account.used, **account.reasons, **account.repaired}
    observed = folder is not None and (folder / "events.parquet").is_file()
    events = pd.read_parquet(path / "events.parquet") if observed else pd.DataFrame()
    first = visits.loc[visits["admission_time"].isna(), "arrival_time"].min()
    first = visits["arrival_time"].min() if pd.isna(first) else first
    last = visits["arrival_time"].max()
    hospital = _hospital(visits, events, timezone, first, last, "visits of a site", counted)
    known = outlook.Outlook.read(folder, timezone) if folder else outlook.Outlook()
    return replace(hospital, moves=known.moves, covariates=known.covariates)


def _hospital(
    visits: pd.DataFrame, events: pd.DataFrame, timezone: str, first: pd.Timestamp, last: pd.Timestamp, origin: str,
    account: dict[str, Any],
) -> Hospital:  # fmt: skip
    days = (last - first) / pd.Timedelta(days=1)
    if not days >= LEAST_DAYS:
        raise DataError(
            f"The visits span {days:.0f} days; a bed forecast needs at least {LEAST_DAYS}, better 365."
        )
    own = visit_events(visits)
    cleaned = pd.concat([clean(events)[0], own], ignore_index=True) if len(events) else own
    return Hospital(visits, cleaned, timezone, first, last, origin, account)


def fingerprint(hospital: Hospital, cuts: Sequence[pd.Timestamp]) -> dict[str, Any]:
    """What the model was made from: counts, span, and a hash of the visits; nothing of any patient."""
    digest = hashlib.sha256(
        pd.util.hash_pandas_object(hospital.visits, index=False).to_numpy().tobytes()
    ).hexdigest()
    return {
        "origin": hospital.origin,
        "visits": len(hospital.visits),
        "events": len(hospital.events),
        "sha256_of_visit_hashes": digest,
        "timezone": hospital.timezone,
        "first": hospital.first.isoformat(),
        "fit_until": cuts[0].isoformat(),
        "calibrate_until": cuts[1].isoformat(),
        "last": hospital.last.isoformat(),
        "account": hospital.account,
    }


# ------------------------------------------------------------ P(admission) and specialty


@dataclass(frozen=True)
class Rows:
    """Snapshots with their matrix; ``part`` is 0 fit, 1 calibrate, 2 test."""

    table: pd.DataFrame
    matrix: npt.NDArray[np.float32]
    part: Ints
    attrition: dict[str, int]


def snapshot_rows(hospital: Hospital, features: FeatureSet, cuts: Sequence[pd.Timestamp], seed: int) -> Rows:
    """Snapshots over the whole span with their features; a visit belongs to one part, by its arrival."""
    grid = random_grid(hospital.first, hospital.last, np.random.default_rng(seed))
    taken = snapshots(hospital.visits, grid)
    table = taken.rows[taken.rows["arrival_time"] >= hospital.first].reset_index(drop=True)
    part = np.searchsorted([c.value // 1000 for c in cuts], micros(table["arrival_time"]), side="right")
    matrix = admission_matrix(features, hospital.events, table, hospital.timezone)
    return Rows(table, matrix, part.astype("int64"), taken.attrition)


def blinded(
    rows: Rows, features: FeatureSet, share: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """The matrix with everything observed taken away from a share of the visits, as when a feed is silent."""
    code, names = pd.factorize(rows.table["encounter_id"])
    blind = (rng.random(len(names)) < share)[code]
    kept = {"ambulance_arrival", "age_years", "male", "ed_arrival"}
    seen = [i for i, name in enumerate(features.names) if not set(features.concept_of(name)) <= kept]
    counts = {i for i in seen if "__count" in features.names[i]}
    matrix = rows.matrix.copy()
    for i in seen:
        matrix[blind, i] = 0.0 if i in counts else np.nan
    return matrix


def _boost(
    matrix: npt.NDArray[np.float32],
    label: Ints,
    names: list[str],
    table: dict[str, Any],
    threads: int,
    **objective: Any,
) -> lgb.Booster:
    data = lgb.Dataset(matrix, label, feature_name=names, free_raw_data=True)
    parameters = {
        "learning_rate": table["learning_rate"],
        "num_leaves": table["leaves"],
        "min_data_in_leaf": table["min_rows"],
        "feature_fraction": 0.8,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": 1.0,
        "num_threads": threads if len(label) > MANY else 1,
        "seed": 1,
        "deterministic": True,
        "force_col_wise": True,
        "verbosity": -1,
        **objective,
    }
    return lgb.train(parameters, data, num_boost_round=table["rounds"])


@dataclass(frozen=True)
class Admission:
    """The fitted classifier parts."""

    risk: lgb.Booster
    specialty: lgb.Booster
    calibrator: Calibrator
    specialties: tuple[str, ...]


def fit_admission(rows: Rows, spec: Spec, threads: int) -> Admission:
    """P(admission) on the first part, its calibration on the second, and the specialty of those admitted."""
    training = spec.section("training")
    names = [*spec.features.names, *spec.table["model"]["calendar"]]
    rng = np.random.default_rng(3)
    matrix = blinded(rows, spec.features, training["blind_share"], rng)
    label = rows.table["admitted"].to_numpy("int64")
    fit, held = rows.part == 0, rows.part == 1
    risk = _boost(matrix[fit], label[fit], names, training["boost"], threads, objective="binary")
    raw = np.asarray(risk.predict(rows.matrix[held], raw_score=True), "float64")
    fold = pd.factorize(rows.table.loc[held, "encounter_id"])[0] % 5
    calibrator, _ = choose(raw, label[held], fold.astype("int64"), ("logistic", "beta"))
    specialties = name_specialties(rows.table[fit], training["min_specialty"])
    code = specialty_codes(rows.table["specialty"], specialties)
    there = fit & (code >= 0)
    kind = _boost(
        matrix[there], code[there], names, training["boost_specialty"], threads,
        objective="multiclass", num_class=len(specialties),
    ) if len(specialties) > 1 else _constant(matrix[there], names)  # fmt: skip
    return Admission(risk, kind, calibrator, specialties)


def _constant(matrix: npt.NDArray[np.float32], names: list[str]) -> lgb.Booster:
    """With one specialty there is nothing to tell apart: a model that says 1."""
    data = lgb.Dataset(matrix, np.ones(len(matrix)), feature_name=names)
    return lgb.train({"objective": "regression", "verbosity": -1, "num_leaves": 2, "seed": 1}, data, 1)


# ------------------------------------------------------------ the run


@dataclass(frozen=True)
class TrainResult:
    """What a training run made.

    Attributes
    ----------
    folder : Path
        The bundle.
    evaluation : dict
        Every figure of the card.
    seconds : float
    tracked : str
        Where MLflow keeps the run; empty when it was not logged.
    """

    folder: Path
    bundle: Bundle
    evaluation: dict[str, Any]
    seconds: float
    tracked: str = ""

    @property
    def headline(self) -> str:
        """One line for the console."""
        p, beds = self.evaluation["p_admission"], self.evaluation["beds"]["needed"]["tomorrow"]["hospital"]
        return (
            f"Admissions: AUROC {p['auroc']:.3f}, calibration slope {p['slope']:.2f}; tomorrow's beds: 90 % interval "
            f"covers {beds['coverage_90']:.0%}, CRPS {beds['crps_skill']:.0%} better than the same weekday's mean."
        )

    def summary(self) -> str:
        """What a person wants to know after the run."""
        lines = [
            self.headline,
            "",
            evaluation_table(self.evaluation),
            "",
            f"Bundle {self.bundle.model_id}: {self.folder}",
        ]
        if self.tracked:
            lines.append(f"MLflow: {self.tracked}")
        return "\n".join([*lines, f"{self.seconds:.0f} s"])


def train(
    source: str,
    input: Path | None,
    *,
    spec: Path | None = None,
    output: Path | None = None,
    register: bool = True,
    threads: int = 1,
) -> TrainResult:
    """Train, calibrate, judge and write the bed forecast.

    Parameters
    ----------
    source : "visits" or "synthetic"
    input : Path
        See :func:`load`.
    spec : Path, optional
        Another spec than ``models/admissions/spec.toml``.
    output : Path, optional
        An empty or new folder for the bundle; default under ``var/models``.
    register : bool
        Log the run and register the model in MLflow.
    threads : int
    """
    began = time.monotonic()
    made = Spec.load(spec or SPEC)
    hospital = load(source, input, made)
    # Tall and narrow matrices: more threads of linear algebra wait for one another, at six times the CPU.
    with threadpool_limits(1, "blas"):
        parts = fit(hospital, made, threads)
    folder = output or _default_folder()
    bundle = _write(folder, made, hospital, parts)
    tracked = _track(bundle, time.monotonic() - began) if register else ""
    return TrainResult(folder, bundle, parts.evaluation, time.monotonic() - began, tracked)


@dataclass(frozen=True)
class Parts:
    """Everything fitted and measured, ready to be written."""

    admission: Admission
    model: BedModel
    reference: dict[str, Any]
    evaluation: dict[str, Any]
    cuts: tuple[pd.Timestamp, pd.Timestamp]


def fit(hospital: Hospital, spec: Spec, threads: int) -> Parts:
    """Fit on the first part of the time, calibrate on the second, judge on the third."""
    training = spec.section("training")
    cuts = hospital.cut(training["fit"], training["calibrate"])
    rows = snapshot_rows(hospital, spec.features, cuts, seed=1)
    admission = fit_admission(rows, spec, threads)
    model = fit_flows(
        hospital.visits, rows.table[rows.part == 0], admission.specialties, hospital.first, cuts[0], hospital.timezone,
        training["holidays"], hospital.moves, hospital.covariates,
    )  # fmt: skip
    scorer = _Scorer(spec, admission)
    visits = grouped_visits(hospital.visits, admission.specialties)
    events = spec.features.flatten(hospital.events)

    def issued(first: pd.Timestamp, last: pd.Timestamp) -> pd.DataFrame:
        times = backtest.forecast_times(first, last, training["huddles"], hospital.timezone)
        return backtest.run(
            visits,
            events,
            model,
            scorer,
            times,
            hospital.timezone,
            hospital.moves,
            hospital.covariates,
            threads,
        )

    model = replace(model, corrections=backtest.corrections(issued(cuts[0], cuts[1])))
    test = issued(cuts[1], hospital.last)
    evaluation = {
        "p_admission": judge_admission(rows, scorer),
        "beds": backtest.judge(test),
        "ingredients": _ingredients(hospital, visits, rows, scorer, model, cuts[1]),
        "attrition": rows.attrition,
        "test": {
            "first": cuts[1].isoformat(),
            "last": hospital.last.isoformat(),
            "huddles": training["huddles"],
        },
    }
    held = rows.part == 1
    names = [*spec.features.names, *spec.table["model"]["calendar"]]
    reference = profile(rows.matrix[held], names, scorer.score(rows.matrix[held]))
    return Parts(admission, model, reference, evaluation, cuts)


def _ingredients(
    hospital: Hospital,
    visits: pd.DataFrame,
    rows: Rows,
    scorer: _Scorer,
    model: BedModel,
    since: pd.Timestamp,
) -> dict[str, Any]:
    """Each ingredient of the forecast by itself in the test period, and what moves it."""
    test = rows.part == 2
    matrix, spec = rows.matrix[test], scorer.spec
    mix = np.asarray(scorer.admission.specialty.predict(matrix, num_threads=1), "float64").reshape(
        len(matrix), -1
    )
    arrivals = visits.loc[through_ed(visits), "arrival_time"]
    stays = move_source.spells(visits, hospital.moves)
    held = ingredients.Held(rows.table[test], mix, arrivals, stays, since, hospital.last, hospital.timezone)
    names = [*spec.features.names, *spec.table["model"]["calendar"]]
    return {
        "judged": ingredients.judge(held, model),
        "reasons": ingredients.reasons(scorer.boosters, matrix, names, model),
    }


@dataclass(frozen=True)
class _Scorer:
    """What :func:`models.beds.admission_probabilities` reads of a bundle, before there is one."""

    spec: Spec
    admission: Admission

    @property
    def boosters(self) -> dict[str, lgb.Booster]:
        """By name, as in a bundle."""
        return {"risk": self.admission.risk, "specialty": self.admission.specialty}

    def score(self, matrix: npt.NDArray[np.float32]) -> Floats:
        """Calibrated P(admission)."""
        raw = np.asarray(self.admission.risk.predict(matrix, raw_score=True, num_threads=1), "float64")
        return self.admission.calibrator.apply(raw)


def judge_admission(rows: Rows, scorer: _Scorer, resamples: int = 100) -> dict[str, Any]:
    """P(admission) on the test part, per snapshot, with intervals by resampled days; also by hours since arrival."""
    test = rows.part == 2
    table, probability = rows.table[test], scorer.score(rows.matrix[test])
    label = table["admitted"].to_numpy("int64")
    elapsed = (table["prediction_time"] - table["arrival_time"]).dt.total_seconds().to_numpy() / 3600
    day = pd.factorize(table["arrival_time"].dt.tz_convert("UTC").dt.normalize())[0]
    figures = _admission_figures(label, probability)
    rng = np.random.default_rng(2)
    by_day = [np.flatnonzero(day == k) for k in range(day.max() + 1)]
    drawn = []
    for _ in range(resamples):
        picked = np.concatenate([by_day[k] for k in rng.integers(0, len(by_day), len(by_day))])
        drawn.append(_admission_figures(label[picked], probability[picked]))
    for name in ("auroc", "slope", "brier", "ece"):
        low, high = np.quantile([d[name] for d in drawn], [0.025, 0.975])
        figures[f"{name}_interval"] = [float(low), float(high)]
    bands = {"0-1 h": (0, 1), "1-2 h": (1, 2), "2-4 h": (2, 4), "4 h and more": (4, np.inf)}
    inside = {name: (elapsed >= low) & (elapsed < high) for name, (low, high) in bands.items()}
    figures["by_elapsed"] = {
        name: _admission_figures(label[m], probability[m]) for name, m in inside.items() if m.any()
    }
    figures["visits"] = int(table["encounter_id"].nunique())
    return figures


def _admission_figures(label: Ints, probability: Floats) -> dict[str, Any]:
    slope, intercept = metrics.calibration_line(label.astype("float64"), probability, np.ones(len(label)))
    return {
        "snapshots": len(label),
        "prevalence": float(label.mean()),
        "auroc": metrics.auroc(label, probability),
        "brier": metrics.brier(label, probability),
        "slope": slope,
        "intercept": intercept,
        "ece": _ece(label, probability),
    }


def _ece(label: Ints, probability: Floats, groups: int = 10) -> float:
    """Mean distance between predicted and observed share over ten groups of equal size."""
    order = np.argsort(probability, kind="stable")
    parts = np.array_split(order, groups)
    return float(
        sum(abs(label[p].mean() - probability[p].mean()) * len(p) for p in parts if len(p)) / len(label)
    )


def evaluation_table(evaluation: dict[str, Any]) -> str:
    """The figures as Markdown, for card and console."""
    p = evaluation["p_admission"]
    lines = [
        f"P(admission), per snapshot of an undecided patient ({p['snapshots']:,} snapshots of {p['visits']:,} visits, "
        f"{p['prevalence']:.1%} admitted):",
        "",
        "| | value | 95 % interval by day |",
        "|---|---|---|",
    ]
    lines += [f"| {n} | {p[n]:.3f} | {p[n + '_interval'][0]:.3f} to {p[n + '_interval'][1]:.3f} |" for n in
              ("auroc", "slope", "brier", "ece")]  # fmt: skip
    lines += ["", "| hours since arrival | snapshots | AUROC | slope | ECE |", "|---|---|---|---|---|"]
    lines += [
        f"| {band} | {f['snapshots']:,} | {f['auroc']:.3f} | {f['slope']:.2f} | {f['ece']:.3f} |"
        for band, f in p["by_elapsed"].items()
    ]
    lines += [
        "",
        "Beds (coverage by randomised PIT; skill: CRPS against Poisson around the mean of six same weekdays):",
        "",
        "| statement | window | level | mean | MAE | 50 % | 80 % | 90 % | 90 % interval by day | CRPS | skill |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for what in backtest.SAID:
        for window, kinds in evaluation["beds"][what].items():
            lines += [_bed_line(what, window, kind, f) for kind, f in kinds.items()]
    lines += [
        "",
        "Tomorrow's beds needed, by specialty:",
        "",
        "| level | mean | MAE | same weekday MAE | 90 % | CRPS | pinball | same weekday pinball | skill |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {level} | {f['outcome_mean']:.1f} | {f['mae']:.2f} | {f['same_weekday_mae']:.2f} | "
        f"{f['coverage_90']:.0%} | {f['crps']:.2f} | {f['pinball']:.2f} | "
        f"{f['same_weekday_pinball']:.2f} | {f['crps_skill']:.0%} |"
        for level, f in evaluation["beds"]["by_level"]["tomorrow"].items()
    ]
    cells = evaluation["beds"]["rpit"]
    lines += [
        "",
        f"Cells (level x window x huddle) with rPIT W² > 0.461: {cells['miscalibrated']} of {cells['cells']}.",
        "",
        ingredients.told(evaluation["ingredients"]),
    ]
    return "\n".join(lines)


def _bed_line(what: str, window: str, kind: str, f: dict[str, Any]) -> str:
    low, high = f["coverage_90_interval"]
    skill = f"{f['crps_skill']:.0%}" if "crps_skill" in f else ""
    return (
        f"| {what} | {window} | {kind} | {f['outcome_mean']:.1f} | {f['mae']:.2f} | {f['coverage_50']:.0%} | "
        f"{f['coverage_80']:.0%} | {f['coverage_90']:.0%} | {low:.0%} to {high:.0%} | {f['crps']:.2f} | {skill} |"
    )


def _default_folder() -> Path:
    home = Path(os.environ.get("WARDCAST_VAR") or "var").absolute()
    return home / "models" / f"admissions-{datetime.now(UTC):%Y%m%dT%H%M%S}"


def _write(folder: Path, spec: Spec, hospital: Hospital, parts: Parts) -> Bundle:
    card = (SPEC.parent / "card.md").read_text(encoding="utf-8")
    data = fingerprint(hospital, parts.cuts)
    span = f"{data['first'][:10]} to {data['last'][:10]}"
    figures = f"\n## Figures of this bundle\n\nTrained on: {data['origin']}, {span}.\n"
    return write_bundle(
        folder,
        name=spec.name,
        version=str(spec.section("model").get("version", "1")),
        spec_text=spec.text,
        boosters={"risk": parts.admission.risk, "specialty": parts.admission.specialty},
        parts={
            "features": spec.features.manifest() | {"calendar": spec.table["model"]["calendar"]},
            "reference": parts.reference,
            "evaluation": parts.evaluation,
            "data": data,
            "calibrator": parts.admission.calibrator.to_dict(),
            "flow": rounded(parts.model.to_dict()),
            "parity": parity.sheet(
                parts.reference,
                (*spec.features.names, *spec.table["model"]["calendar"]),
                lambda matrix: mean_of_members([parts.admission.risk], matrix, 1, raw_score=True),
            ),
        },
        card=card + figures + "\n" + evaluation_table(parts.evaluation) + "\n",
    )


def rounded(value: Any, digits: int = 8) -> Any:
    """Numbers to eight significant digits, all the way down: half the size, and nothing that anyone could measure."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, list):
        return [rounded(v, digits) for v in value]
    return {k: rounded(v, digits) for k, v in value.items()} if isinstance(value, dict) else value


def _track(bundle: Bundle, seconds: float) -> str:
    from training import tracking

    p, beds = bundle.evaluation["p_admission"], bundle.evaluation["beds"]["needed"]["tomorrow"]["hospital"]
    figures = {f"p_admission.{k}": float(p[k]) for k in ("auroc", "slope", "brier", "ece")}
    figures |= {f"tomorrow.{k}": float(v) for k, v in beds.items() if isinstance(v, int | float)}
    return tracking.log_bundle(
        bundle.folder,
        run_name="train",
        alias="challenger",
        tags={"source": str(bundle.parts["data"]["origin"])},
        metrics={"seconds": seconds, **figures},
    )
