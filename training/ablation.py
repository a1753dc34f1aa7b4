"""What a sepsis model owes to the clock and to the process of measuring, from the folds that judge it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import pandas as pd

from models import metrics
from models.spec import Spec
from training.cohort import Cohort
from training.evaluation import EARLY_H, bands, clean_json
from training.members import CLOCK, PROCESS, Member, kind_of, members
from training.tracking import Trial

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

VIEWS: Final = {"no clock": (CLOCK,), "no process": (PROCESS,), "neither": (CLOCK, PROCESS)}
SEARCH: Final = Path(__file__).resolve().parent.parent / "models" / "sepsis" / "search.csv"
"""What was tried before the released specs were written, each on one fold of the development patients."""
LATE_H: Final = 60
SAMPLE: Final = 25_000
"""Rows on which the telling of time is learned, and as many on which it is tested."""


def blinded(spec: Spec) -> list[Member]:
    """The first member of a spec, kept from reading the clock, the process of measuring, and both."""
    first, kinds = members(spec)[0], {kind_of(name, spec) for name in spec.features.names}
    views = {name: tuple(k for k in left_out if k in kinds) for name, left_out in VIEWS.items()}
    distinct = {left_out: name for name, left_out in reversed(views.items()) if left_out}
    return [
        replace(first, name=f"{name}", leave_out=(*first.leave_out, *left_out))
        for left_out, name in reversed(distinct.items())
        if len(kinds) > len(left_out)
    ]


def ablation(cohort: Cohort, each: Mapping[str, Floats], fold: Ints, spec: Spec) -> list[dict[str, Any]]:
    """What the ensemble, each of its boosters and each blinded one reaches in cross-validation; JSON-able.

    Parameters
    ----------
    each : raw log-odds by booster, out of fold, shape (n,)
        Of the spec's members and of :func:`blinded`.

    Returns
    -------
    One entry a model and band of hours: ``model``, ``leaves_out``, ``hours``, ``utility``, ``auroc``. Thresholds are
    those with the highest utility in these hours of the other folds.
    """
    own = members(spec)
    whole = np.mean([each[m.booster] for m in own], axis=0)
    models: list[tuple[str, tuple[str, ...], Floats]] = [("all members", (), whole)] if len(own) > 1 else []
    models += [(m.name or "the model", m.leave_out, each[m.booster]) for m in (*own, *blinded(spec))]
    gain = metrics.utility_gain(cohort.patient, cohort.hour, cohort.label)
    rows = []
    for name, left_out, raw in models:
        for hours, band in bands(cohort.hour):
            figures = _figures(metrics.expit(raw), cohort.label, gain, fold, band)
            rows.append({"model": name, "leaves_out": list(left_out), "hours": hours} | figures)
    return list(clean_json(rows))


def _figures(score: Floats, label: Ints, gain: Floats, fold: Ints, band: Bools) -> dict[str, float]:
    alarm = np.zeros(len(score), dtype=np.bool_)
    for k in np.unique(fold):
        others = band & (fold != k)
        alarm[fold == k] = score[fold == k] >= metrics.best_threshold(score[others], gain[others])
    seen = band & ~np.isnan(score)
    return {
        "utility": metrics.normalized_utility(gain[band], alarm[band]),
        "auroc": metrics.auroc(label[seen], score[seen]),
    }


def time_told(cohort: Cohort, fold: Ints, spec: Spec, threads: int) -> dict[str, float]:
    """How well the features betray the hour in intensive care to a model made for nothing else.

    Learned on a sample outside fold 0, tested on one inside it.

    Returns
    -------
    ``r2`` of the logarithm of the hour, and ``auroc`` for being past the 60th among hours past the 48th, where stays
    with sepsis are the longer ones: 0 and 0.5 where nothing is betrayed.
    """
    rng = np.random.default_rng(spec.section("training")["seed"])
    taught, tested = (_sample(np.flatnonzero(cohort.scored & part), rng) for part in (fold != 0, fold == 0))
    told = np.log1p(cohort.hour)
    settings = {
        "objective": "l2",
        "learning_rate": 0.1,
        "feature_fraction": 0.3,
        "verbose": -1,
        "deterministic": True,
    }
    steady = {"force_col_wise": True, "num_threads": threads, "seed": 1}
    booster = lgb.train({**settings, **steady}, lgb.Dataset(cohort.matrix[taught], told[taught]), 100)
    guess = np.asarray(booster.predict(cohort.matrix[tested], num_threads=threads), dtype=np.float64)
    past = cohort.hour[tested] > EARLY_H
    late = (cohort.hour[tested][past] > LATE_H).astype(np.int64)
    error = float(np.mean((guess - told[tested]) ** 2))
    return {"r2": 1 - error / float(told[tested].var()), "auroc": metrics.auroc(late, guess[past])}


def trials(ablation: Sequence[Mapping[str, Any]], search: Path | None) -> list[Trial]:
    """The models of :func:`ablation`, and those of a table of earlier trials, as MLflow is to keep them."""
    found = []
    for model in dict.fromkeys(row["model"] for row in ablation):
        rows = [row for row in ablation if row["model"] == model]
        figures = {
            f"{m}.{row['hours'].replace('<= ', 'first')}": row[m]
            for row in rows
            for m in ("utility", "auroc")
        }
        settings = {"leaves_out": ", ".join(rows[0]["leaves_out"]) or "nothing", "judged_on": "all folds"}
        found.append(Trial(model, settings, {k: v for k, v in figures.items() if v is not None}))
    if search is not None and search.is_file():
        for row in pd.read_csv(search).to_dict("records"):
            about = {str(k): v for k, v in row.items() if isinstance(v, str) and k != "trial"}
            reached = {str(k): float(v) for k, v in row.items() if isinstance(v, float) and v == v}
            found.append(Trial(str(row["trial"]), about, reached))
    return found


def _sample(rows: Ints, rng: np.random.Generator) -> Ints:
    return np.sort(rng.choice(rows, min(SAMPLE, len(rows)), replace=False))
