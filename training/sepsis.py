"""Train the sepsis model: cross-validate on whole patients, then fit, calibrate and release on all of them.

Every figure in the card comes from patients the model had not seen: each fold is scored by a booster fitted on the
other folds, calibrated and thresholded on those folds' own out-of-fold scores. The released booster is then fitted
on everyone; its calibrator and thresholds come from all the out-of-fold scores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits

from features.errors import ConfigError, DataError, SpecError
from models import metrics, parity
from models.abstention import Abstention, known_of, laboratory
from models.alerting import Stays
from models.bundle import Bundle, mean_of_members, write_bundle
from models.calibration import Calibrator, choose
from models.cards import evaluation_text, sepsis_card
from models.decision import AlertPolicy
from models.profile import profile
from models.scope import scope_of
from models.spec import Spec
from models.tables import with_interval
from training import policies, rivals
from training.ablation import SEARCH, ablation, blinded, time_told, trials
from training.cohort import Cohort, read_cohort
from training.evaluation import (
    EARLY_H,
    Judged,
    bands,
    calibration_table,
    clean_json,
    evaluate,
    operating_of,
    rival_scores,
    rivals_of,
    withheld,
)
from training.explaining import explanation
from training.members import Member, directions, kind_of, members
from training.policies import page_rows
from training.recalibration import rehearsed
from training.refits import FOLD, refitted
from training.sites import LABEL, SOURCES, read_site

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SPEC: Final = Path(__file__).resolve().parent.parent / "models" / "sepsis" / "spec.toml"
SITE_SPEC: Final = SPEC.with_name("site.toml")
TRANSFER_REPLICATES: Final = 100
PROFILE_ROWS: Final = 100_000
INFLUENCE_ROWS: Final = 1_000
BINNED: Final = {"max_bin": 127, "feature_pre_filter": False, "verbose": -1}
"""How values are binned, once for all members of an ensemble."""
NEEDED: Final = {
    "target": ("meaning",),
    "training": ("folds", "seed", "replicates", "rounds", "keep", "utility_share", "boost"),
    "alerts": ("pages_per_100_patient_days", "snooze_h", "reraise", "release"),
}


@dataclass(frozen=True)
class TrainResult:
    """A bundle, what was measured, and what it took."""

    folder: Path
    bundle: Bundle
    evaluation: dict[str, Any]
    seconds: float
    peak_gib: float
    tracked: str = ""

    @property
    def headline(self) -> str:
        """One line for the console."""
        measures = self.evaluation["table"][0]["measures"]
        utility, auroc = with_interval(measures["utility"], 3), with_interval(measures["auroc"], 3)
        patients = self.evaluation["table"][0]["patients"]
        return f"Sepsis: utility {utility}, AUROC {auroc} on {patients:,} patients, cross-validated."

    def summary(self) -> str:
        """What a person wants to know after the run."""
        lines = [self.headline, "", evaluation_text(self.evaluation), ""]
        lines.append(f"Bundle {self.bundle.model_id}: {self.folder}")
        if self.tracked:
            lines.append(f"MLflow: {self.tracked}")
        return "\n".join([*lines, f"{self.seconds:.0f} s, peak memory {self.peak_gib:.1f} GiB"])


def train(
    source: str,
    input: Path | None,
    *,
    label: str | None = None,
    spec: Path | None = None,
    output: Path | None = None,
    register: bool = True,
    threads: int = 1,
) -> TrainResult:
    """Train, calibrate, judge and write the sepsis model.

    Parameters
    ----------
    source : "physionet2019", "synthetic", or a hospital's format of :data:`training.sites.SOURCES`
    input : Path
        See :func:`training.cohort.read_cohort` and :func:`training.sites.read_site`.
    label : str, optional
        ``sepsis3``, which a hospital's data need; the other two have a label of their own.
    spec : Path, optional
        Another spec than ``models/sepsis/spec.toml``, or than ``models/sepsis/site.toml`` for a hospital's data.
    output : Path, optional
        An empty or new folder for the bundle; default under ``var/models``.
    register : bool
        Log the run and register the model in MLflow.
    threads : int
    """
    began = time.monotonic()
    read = _reader(source, label)
    made = _complete(Spec.load(spec or (SPEC if read is read_cohort else SITE_SPEC)))
    # Two threads of linear algebra wait for each other at several times the CPU; boosters have threads of their own.
    with _progress() as bars, threadpool_limits(1, "blas"):
        with _stage(bars, "reading patients and building features") as task:
            cohort = read(source, input, made, threads, lambda rows: bars.advance(task, rows))
        bundle, evaluation = _fit_and_write(cohort, made, output, threads, bars, began)
    seconds, peak = time.monotonic() - began, _peak_gib()
    tracked = _track(bundle, source, seconds, peak) if register else ""
    return TrainResult(bundle.folder, bundle, evaluation, time.monotonic() - began, peak, tracked)


def _reader(source: str, label: str | None) -> Callable[..., Cohort]:
    """Who reads a source, if the label that is asked for goes with it."""
    own = source not in SOURCES
    if own and label is not None:
        raise ConfigError(f"{source} has a label of its own. Leave out --label {label}.")
    if not own and label != LABEL:
        raise ConfigError(f"Say what is to be learned from {source}: --label {LABEL}.")
    return read_cohort if own else read_site


def _complete(spec: Spec) -> Spec:
    """The spec, if it says all that training needs; before an hour is spent on reading patients."""
    missing = [f"{s}.{key}" for s, keys in NEEDED.items() for key in keys if key not in spec.section(s)]
    if missing:
        raise SpecError(
            f"The spec of {spec.name} lacks {', '.join(missing)}. models/sepsis/spec.toml says what they mean."
        )
    scope_of(spec)
    return spec


def _fit_and_write(
    cohort: Cohort, spec: Spec, output: Path | None, threads: int, bars: Progress, began: float
) -> tuple[Bundle, dict[str, Any]]:
    training = spec.section("training")
    fold = cohort.folds(training["folds"], training["seed"])
    ensemble, views = members(spec), blinded(spec)
    with _stage(bars, "cross-validating", training["folds"]) as task:
        each = each_out_of_fold(
            cohort, fold, spec, threads, [*ensemble, *views], done=lambda: bars.advance(task)
        )
    raw = together({m.booster: each[m.booster] for m in ensemble})
    with _stage(bars, "judging, with patient bootstraps"):
        chosen: list[AlertPolicy] = []
        learned = rivals.out_of_fold(cohort, fold, spec, threads)
        judged = judge(cohort, raw, fold, spec, chosen, learned)
        evaluation = evaluate(judged, training["replicates"]) | {"method": _method(training)}
        weight = calibrating(cohort.hour, spec)
        evaluation["calibration"] = clean_json(
            calibration_table(raw, cohort.label, fold, cohort.hour, cohort.site, weight)
        )
        evaluation["paging"] = paging(cohort, judged, fold, chosen, spec)
        evaluation["ablation"] = ablation(cohort, each, fold, spec)
        evaluation["time_told"] = clean_json(time_told(cohort, fold, spec, threads))
    with _stage(bars, "refitting with other seeds"):
        evaluation["refits"] = refits(cohort, fold, raw, spec, threads)
    with _stage(bars, "from one hospital to the other"):
        evaluation["transfer"] = transfer(cohort, fold, spec, threads)
    with _stage(bars, "fitting on everyone"):
        boosters = fit(cohort, cohort.scored, spec, threads)
    with _stage(bars, "explaining"):
        told = explanation(_contributions_of(boosters), _raw_of(boosters), cohort, spec, training["seed"])
        evaluation["explanation"] = clean_json(told)
    evaluation["cost"] = cost(time.monotonic() - began, threads)
    with _stage(bars, "writing the bundle"):
        return _write(cohort, raw, fold, boosters, evaluation, spec, output), evaluation


# ------------------------------------------------------------ fitting


def fit(
    cohort: Cohort, rows: Bools, spec: Spec, threads: int, ensemble: Sequence[Member] = ()
) -> dict[str, lgb.Booster]:
    """Fit the members of an ensemble, by default the spec's, on some scored rows; boosters by name.

    Hours of stays without sepsis are thinned to the spec's ``keep`` and weighted back, hours of septic stays all kept.
    """
    training = spec.section("training")
    septic = cohort.per_patient()[1]
    rng = np.random.default_rng(training["seed"])
    thinned = ~septic[cohort.patient]
    used = np.flatnonzero(rows & cohort.scored & (~thinned | (rng.random(len(rows)) < training["keep"])))
    counts_for = np.where(thinned[used], 1 / training["keep"], 1.0)
    data = lgb.Dataset(
        cohort.matrix[used],
        cohort.label[used],
        feature_name=list(spec.features.names),
        categorical_feature=list(spec.features.categorical),
        params=BINNED | {"num_threads": threads},
    ).construct()
    return {
        m.booster: _fit_member(m, cohort, used, counts_for, data, spec, threads)
        for m in ensemble or members(spec)
    }


def _fit_member(
    member: Member,
    cohort: Cohort,
    used: Ints,
    counts_for: Floats,
    data: lgb.Dataset,
    spec: Spec,
    threads: int,
) -> lgb.Booster:
    target, weight = blended(cohort, used, member.utility_share)
    weight = weight * counts_for * counting(member, cohort)[used]
    data.set_label(target)
    data.set_weight(weight)
    blind = [kind_of(name, spec) in member.leave_out for name in spec.features.names]
    # A feature whose gain counts for nothing is never split on.
    seeing = {"feature_contri": [0.0 if b else 1.0 for b in blind]} if any(blind) else {}
    ways = directions(spec)
    sure = {"monotone_constraints": ways, "monotone_constraints_method": "intermediate"} if any(ways) else {}
    steady = {"deterministic": True, "force_col_wise": True, "num_threads": threads}
    fixed = BINNED | {"objective": "cross_entropy", "seed": spec.section("training")["seed"] % 2**31}
    return lgb.train({**fixed, **steady, **seeing, **sure, **member.boost}, data, member.rounds)


def counting(member: Member, cohort: Cohort) -> Floats:
    """How much each hour counts for a member, by its place in the stay and the length of a stay without sepsis."""
    _, septic, hours = cohort.per_patient()
    stays = np.where(septic, 1.0, (hours / hours.mean()) ** -member.stay_power)
    return stays[cohort.patient] * np.where(cohort.hour <= EARLY_H, member.early_weight, 1.0)


def blended(cohort: Cohort, rows: Ints, share: float) -> tuple[Floats, Floats]:
    """Targets in [0, 1] and weights that make one cross-entropy of two: the label's, and the alarm's.

    The second asks whether an alarm in this hour would gain utility, and weighs the hour by how much is at stake (the
    challenge's utility as a weighted 0-1 loss). ``share`` of the total weight goes to it. Calibration afterwards is
    to the label alone.
    """
    label = cohort.label[rows].astype(np.float64)
    gain = metrics.utility_gain(cohort.patient, cohort.hour, cohort.label)[rows]
    stake = np.abs(gain) / np.abs(gain).mean()
    weight = (1 - share) + share * stake
    target = (1 - share) * label + share * stake * (gain > 0)
    # Where nothing is at stake, the alarm alone has no opinion, and no weight.
    return np.divide(target, weight, out=np.zeros_like(target), where=weight > 0), weight


def out_of_fold(cohort: Cohort, fold: Ints, spec: Spec, threads: int, among: Bools | None = None) -> Floats:
    """Raw log-odds of scored rows from boosters that never saw their patients, shape (n,); NaN elsewhere.

    ``among`` are the rows that are fitted on and scored, by default all.
    """
    return together(each_out_of_fold(cohort, fold, spec, threads, members(spec), among))


def each_out_of_fold(
    cohort: Cohort,
    fold: Ints,
    spec: Spec,
    threads: int,
    ensemble: Sequence[Member],
    among: Bools | None = None,
    done: Any = lambda: None,
) -> dict[str, Floats]:
    """The same for every booster of an ensemble by itself."""
    raw = {member.booster: np.full(len(fold), np.nan) for member in ensemble}
    among = np.ones(len(fold), dtype=np.bool_) if among is None else among
    for k in range(int(fold.max()) + 1):
        rows = cohort.scored & among & (fold == k)
        for name, booster in fit(cohort, among & (fold != k), spec, threads, ensemble).items():
            raw[name][rows] = booster.predict(cohort.matrix[rows], raw_score=True, num_threads=threads)
        done()
    return raw


def together(raw: Mapping[str, Floats]) -> Floats:
    """The mean log-odds of boosters, shape (n,)."""
    return np.asarray(np.mean(list(raw.values()), axis=0), dtype=np.float64)


def predicted(boosters: Mapping[str, lgb.Booster], cohort: Cohort, rows: Bools, threads: int) -> Floats:
    """Raw log-odds of some rows, the mean over boosters, shape (n,); NaN elsewhere and where nothing can be scored."""
    raw = np.full(len(rows), np.nan)
    scored = rows & cohort.scored
    raw[scored] = mean_of_members(list(boosters.values()), cohort.matrix[scored], threads, raw_score=True)
    return raw


# ------------------------------------------------------------ calibrating and deciding, on out-of-fold scores


@dataclass(frozen=True)
class Decided:
    """What turns raw scores into probabilities, alerts and pages, found on the rows it is given."""

    calibrator: Calibrator
    losses: dict[str, float]
    utility: float
    policy: AlertPolicy
    rivals: dict[str, float]
    abstention: Abstention


def decide(
    cohort: Cohort,
    raw: Floats,
    fold: Ints,
    rows: Bools,
    spec: Spec,
    learned: Mapping[str, Floats] | None = None,
) -> Decided:
    """Choose calibration, thresholds and paging on some rows with out-of-fold scores; ``learned``, of rivals too."""
    gain = metrics.utility_gain(cohort.patient, cohort.hour, cohort.label)
    known = rows & ~np.isnan(raw)
    weight = calibrating(cohort.hour, spec)[known]
    calibrator, losses = choose(raw[known], cohort.label[known], fold[known], weight=weight)
    probability = calibrator.apply(raw)
    humble = {name: score[rows] for name, score in _rivals(cohort, spec, learned).items()}
    judged_on = rows & (cohort.hour <= spec.section("alerts").get("utility_until_h", np.inf))
    return Decided(
        calibrator,
        losses,
        metrics.steady_threshold(probability[judged_on], gain[judged_on]),
        page_policy(cohort, probability, rows, spec),
        {name: metrics.best_threshold(score, gain[rows], _beyond(score)) for name, score in humble.items()},
        Abstention.fit(
            laboratory(spec.features.names), _known(cohort, spec)[known], raw[known], cohort.label[known]
        ),
    )


def calibrating(hour: Floats, spec: Spec) -> Floats:
    """How much each hour counts in the calibration, shape (n,): late ones as the spec's ``training.calibrate`` says.

    In PhysioNet 2019 nearly every stay that lasts is septic. A model without a clock cannot know that an hour is late,
    so what late hours add to its map is taken out on the early ones, as too high a risk.
    """
    late = spec.section("training").get("calibrate", {})
    return np.where(hour >= late.get("late_h", np.inf), float(late.get("late_weight", 1.0)), 1.0)


def _known(cohort: Cohort, spec: Spec) -> Ints:
    """How many laboratory quantities each row knows, which abstention asks."""
    return known_of(cohort.matrix, spec.features.names, laboratory(spec.features.names))


def _rivals(cohort: Cohort, spec: Spec, learned: Mapping[str, Floats] | None) -> dict[str, Floats]:
    return rival_scores(cohort.hour, cohort.matrix, spec.features.names) | dict(learned or {})


def _beyond(score: Floats) -> float:
    """A threshold that no score reaches."""
    return float(np.max(score, initial=0.0, where=~np.isnan(score))) + 1


def page_policy(cohort: Cohort, probability: Floats, rows: Bools, spec: Spec) -> AlertPolicy:
    """The policy of the spec, chosen on some whole patients; see :mod:`training.policies`."""
    return policies.choose(_stays(cohort, rows), probability[rows], spec.section("alerts"))[0]


def _stays(cohort: Cohort, rows: Bools, until_h: float = np.inf) -> Stays:
    """Some whole patients as a ward meets them, up to some hour of the stay."""
    patient = np.unique(cohort.patient[rows], return_inverse=True)[1].astype(np.int64)
    hour = cohort.hour[rows]
    return Stays(patient, hour, cohort.label[rows], hour <= until_h, until_h=until_h)


def paging(
    cohort: Cohort, judged: Judged, fold: Ints, chosen: Sequence[AlertPolicy], spec: Spec
) -> list[dict[str, Any]]:
    """The policy beside a plain threshold, each fold paged as chosen on the others; over all hours and the first 48."""
    every = np.ones(len(fold), dtype=np.bool_)
    table: list[dict[str, Any]] = []
    for hours, until_h in (("all", np.inf), (f"<= {EARLY_H}", float(EARLY_H))):
        trial = policies.Trial(len(fold))
        for k, policy in enumerate(chosen):
            mine, others = fold == k, fold != k
            learned = _stays(cohort, others, until_h)
            found = policies.rivals(learned, judged.probability[others], spec.section("alerts"), policy)
            trial.take(mine, _stays(cohort, mine), judged.probability[mine], found)
        table += [{"hours": hours} | row for row in trial.table(_stays(cohort, every, until_h))]
    return list(clean_json(table))


def judge(
    cohort: Cohort,
    raw: Floats,
    fold: Ints,
    spec: Spec,
    chosen: list[AlertPolicy] | None = None,
    learned: Mapping[str, Floats] | None = None,
) -> Judged:
    """Probabilities, alarms and pages of every fold, each decided on the scores of the other folds.

    ``chosen``, where it is given, receives the paging policy of each fold; ``learned`` are the out-of-fold scores of
    rivals that were fitted.
    """
    probability = np.full(len(raw), np.nan)
    alarm, page, silent = (np.zeros(len(raw), dtype=np.bool_) for _ in range(3))
    known, columns = _known(cohort, spec), _rivals(cohort, spec, learned)
    rival_alarms = {name: np.zeros(len(raw), dtype=np.bool_) for name in columns}
    for k in range(int(fold.max()) + 1):
        mine = fold == k
        decided = decide(cohort, raw, fold, ~mine, spec, learned)
        if chosen is not None:
            chosen.append(decided.policy)
        probability[mine] = decided.calibrator.apply(raw[mine])
        alarm[mine] = probability[mine] >= decided.utility
        silent[mine] = decided.abstention.withheld(known[mine], raw[mine])
        page[mine] = page_rows(cohort.patient[mine], cohort.hour[mine], probability[mine], decided.policy)
        for name, score in columns.items():
            rival_alarms[name][mine] = score[mine] >= decided.rivals[name]
    beside = {name: (columns[name], rival_alarms[name]) for name in columns}
    seen = (cohort.patient, cohort.hour, cohort.label, cohort.site)
    return Judged(*seen, probability, alarm, page, beside, cohort.groups, decided.policy, silent)


def refits(cohort: Cohort, fold: Ints, raw: Floats, spec: Spec, threads: int) -> dict[str, Any]:
    """What other seeds change in the first fold; see :func:`training.refits.refitted`."""
    decided = decide(cohort, raw, fold, fold != FOLD, spec)
    kept = (raw, decided.calibrator, decided.utility)
    found = refitted(
        cohort, fold, *kept, spec, lambda other: fit(cohort, fold != FOLD, other, threads), threads
    )
    return dict(clean_json(found))


def transfer(cohort: Cohort, fold: Ints, spec: Spec, threads: int) -> list[dict[str, Any]]:
    """What the same recipe reaches at a hospital it has seen nothing of; empty with one hospital only.

    Fitted on all patients of the other hospitals, calibrated and thresholded on the scores that they get out of fold
    from fits on their own others; then the whole hospital is tested. Left out where those have too few outcomes to
    calibrate on.
    """
    sites = np.unique(cohort.site.astype(str))
    rows: list[dict[str, Any]] = []
    for site in sites if len(sites) > 1 else []:
        here = np.asarray(cohort.site == site)
        try:
            raw, decided, learned = _from_elsewhere(cohort, here, fold, spec, threads)
        except DataError:
            continue
        about = {"trained_on": ", ".join(s for s in sites if s != site), "tested_on": site}
        rows += [about | found for found in _transferred(cohort, here, raw, decided, spec, learned)]
    return list(clean_json(rows))


def _transferred(
    cohort: Cohort, here: Bools, raw: Floats, decided: Decided, spec: Spec, learned: Mapping[str, Floats]
) -> Iterator[dict[str, Any]]:
    """Measures, rivals, pages at fixed sensitivities, what abstention does, and what a thousand local stays repair."""
    probability = decided.calibrator.apply(raw)
    alarm = probability >= decided.utility
    gain = metrics.utility_gain(cohort.patient, cohort.hour, cohort.label)
    scored = metrics.Scored(cohort.patient, cohort.label, probability, alarm, gain)
    silent = decided.abstention.withheld(_known(cohort, spec), raw)
    seen = (cohort.patient, cohort.hour, cohort.label, cohort.site)
    humble = _rivals(cohort, spec, learned)
    beside = {name: (score, score >= decided.rivals[name]) for name, score in humble.items()}
    judged = Judged(*seen, probability, alarm, alarm, beside, {}, decided.policy, silent)
    local = here & ~np.isnan(raw)
    seed = spec.section("training")["seed"]
    for hours, band in bands(cohort.hour):
        part, rng = scored.where(here & band), np.random.default_rng(seed)
        found: dict[str, Any] = {"hours": hours, "measures": part.measure()}
        found["intervals"] = part.intervals(TRANSFER_REPLICATES, rng)
        found["rivals"] = rivals_of(judged, gain, here & band, hours)
        found["points"] = operating_of(judged, here & band, hours, False, TRANSFER_REPLICATES, rng)
        found["abstention"] = withheld(judged, here & band, hours)
        if hours == "all":
            stays = (raw[local], cohort.label[local], cohort.patient[local])
            found["recalibrated"] = rehearsed(decided.calibrator, *stays, seed)
        yield found


def _from_elsewhere(
    cohort: Cohort, here: Bools, fold: Ints, spec: Spec, threads: int
) -> tuple[Floats, Decided, dict[str, Floats]]:
    """Raw scores of the patients of one hospital from a model of the others, what those decided, and their rivals.

    The other hospitals' own scores stand beside, out of fold.
    """
    away = ~here
    raw = out_of_fold(cohort, fold, spec, threads, away)
    raw[here] = predicted(fit(cohort, away, spec, threads), cohort, here, threads)[here]
    learned = rivals.out_of_fold(cohort, fold, spec, threads, away)
    there = rivals.scores(rivals.fitted(cohort, away, spec, threads), cohort, here, spec, threads)
    learned = {name: np.where(here, there[name], score) for name, score in learned.items()}
    return raw, decide(cohort, raw, fold, away, spec, learned), learned


def _method(training: dict[str, Any]) -> str:
    return (
        f"Patient-level {training['folds']}-fold cross-validation, folds alike in hospital, outcome and length of "
        "stay. Each fold is scored by a booster fitted on the other folds' patients with rounds fixed beforehand; "
        "calibration, alert threshold, paging threshold and the rivals' thresholds of a fold were chosen on the other "
        "folds' out-of-fold scores, which come from boosters that saw this fold. The feature set, the members, their "
        "rounds and losses were chosen in trial runs that looked at a fold of these same patients and at the transfer "
        "from one hospital to the other (kept in models/sepsis/search.csv, and as runs nested in the training's). "
        "Both make the figures mildly optimistic; the released boosters are fitted on all patients, more than any "
        "judged here. Intervals are percentiles over resampled patients, of the ICI the re-centred percentiles."
    )


# ------------------------------------------------------------ writing


def _write(
    cohort: Cohort,
    raw: Floats,
    fold: Ints,
    boosters: Mapping[str, lgb.Booster],
    evaluation: dict[str, Any],
    spec: Spec,
    output: Path | None,
) -> Bundle:
    decided = decide(cohort, raw, fold, np.ones(len(raw), dtype=np.bool_), spec)
    rng = np.random.default_rng(spec.section("training")["seed"])
    scored = np.flatnonzero(cohort.scored)
    fitted = (raw[scored], cohort.label[scored], np.unique(cohort.patient[scored], return_inverse=True)[1])
    calibrator = decided.calibrator.with_band(
        *fitted,
        np.random.default_rng(spec.section("training")["seed"]),
        weight=calibrating(cohort.hour[scored], spec),
    )
    some = np.sort(rng.choice(scored, min(PROFILE_ROWS, len(scored)), replace=False))
    decision = clean_decision(decided, spec)
    influence = influences(
        boosters, cohort.matrix[rng.choice(some, min(INFLUENCE_ROWS, len(some)), replace=False)], spec
    )
    reference = profile(cohort.matrix[some], spec.features.names, decided.calibrator.apply(raw[some]))
    version = str(spec.section("model").get("version", "1"))
    data = clean_json(cohort.data)
    return write_bundle(
        output or _default_folder(),
        name=spec.name,
        version=version,
        spec_text=spec.text,
        boosters=boosters,
        parts={
            "features": spec.features.manifest(),
            "reference": reference,
            "evaluation": evaluation | {"influence": clean_json(influence)},
            "data": data,
            "calibrator": calibrator.to_dict(),
            "abstention": decided.abstention.to_dict(),
            "decision": decision,
            "parity": parity.sheet(reference, spec.features.names, _raw_of(boosters)),
        },
        card=sepsis_card(
            spec=spec,
            version=version,
            data=data,
            evaluation=evaluation,
            decision=decision,
            influence=influence,
        ),
    )


def _contributions_of(
    boosters: Mapping[str, lgb.Booster],
) -> Callable[[npt.NDArray[np.float32]], Floats]:
    return lambda matrix: mean_of_members(list(boosters.values()), matrix, 1, pred_contrib=True)


def _raw_of(boosters: Mapping[str, lgb.Booster]) -> Callable[[npt.NDArray[np.float32]], Floats]:
    return lambda matrix: mean_of_members(list(boosters.values()), matrix, 1, raw_score=True)


def clean_decision(decided: Decided, spec: Spec) -> dict[str, Any]:
    """The ``decision`` part of the bundle; thresholds keep all their digits, since they decide."""
    calibrate = spec.section("training").get("calibrate")
    return {
        "thresholds": {"utility": decided.utility, "alert": decided.policy.threshold},
        "policy": decided.policy.to_dict(),
        "alerts": dict(spec.section("alerts")),
        "rivals": decided.rivals,
        "calibration": decided.calibrator.method,
        "calibration_log_loss": clean_json(decided.losses),
    } | ({"calibrate": dict(calibrate)} if calibrate else {})


def influences(
    boosters: Mapping[str, lgb.Booster], matrix: npt.NDArray[np.float32], spec: Spec
) -> dict[str, float]:
    """Share of the absolute TreeSHAP contributions by kind of feature: clock, process, vital signs, laboratory, …"""
    values = _contributions_of(boosters)(matrix)[:, :-1]
    weight = np.abs(values).sum(axis=0)
    shares: dict[str, float] = {}
    for name, w in zip(spec.features.names, weight, strict=True):
        kind = kind_of(name, spec)
        shares[kind] = shares.get(kind, 0.0) + float(w / weight.sum())
    return shares


def _default_folder() -> Path:
    from training.tracking import var

    return var() / "models" / f"sepsis-{datetime.now(UTC):%Y%m%dT%H%M%S}"


def _track(bundle: Bundle, source: str, seconds: float, peak: float) -> str:
    from training import tracking

    took = {"seconds": seconds, "peak_gib": peak}
    return tracking.log_bundle(
        bundle.folder,
        run_name="train",
        alias="challenger",
        tags={"source": source},
        metrics=took,
        trials=trials(bundle.evaluation["ablation"], SEARCH if source == "physionet2019" else None),
    )


def cost(seconds: float, threads: int) -> dict[str, float]:
    """What a training took: minutes on the wall, GiB at most in memory, and how many threads it was given."""
    return {"minutes": round(seconds / 60, 1), "peak_gib": round(_peak_gib(), 1), "threads": threads}


def _peak_gib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# ------------------------------------------------------------ telling how far it is


def _progress() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    quiet = os.environ.get("WARDCAST_QUIET") == "1"
    return Progress(*columns, console=Console(stderr=True), disable=quiet)


@contextmanager
def _stage(bars: Progress, what: str, total: float | None = None) -> Iterator[Any]:
    task = bars.add_task(what, total=total)
    yield task
    bars.update(task, total=1, completed=1)
    bars.stop_task(task)
