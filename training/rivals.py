"""Humble models on the same rows: a learned clock, and a logistic regression on the model's own features.

Both are fitted where the model is fitted, on the same patients, and score the patients that it scores, so that they
differ from it in nothing but what they are. Neither was tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from models.spec import Spec
from training.cohort import Cohort

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LEARNED_CLOCK: Final = "learned_clock"
LOGISTIC: Final = "logistic"
BEFORE_ICU: Final = "hours_before_icu__last"

ROWS: Final = 80_000
"""Hours that a logistic regression is fitted on: half of septic stays, half of others, weighted back."""
STEPS: Final = 100
"""Of its solver; more move no AUROC by 0.001."""
FARTHEST: Final = 4.0
"""Standard deviations; what lies farther counts as this far, since a line has no other answer to an outlier."""
STRENGTH: Final = 0.01
"""Inverse of the ridge penalty, on features of standard deviation 1."""
CLOCK_ROUNDS: Final = 100
CLOCK_BOOST: Final = {
    "objective": "binary", "learning_rate": 0.1, "num_leaves": 15, "min_data_in_leaf": 300, "verbose": -1,
}  # fmt: skip
CHUNK: Final = 50_000


def fitted(cohort: Cohort, rows: Bools, spec: Spec, threads: int) -> dict[str, Any]:
    """Both rivals on some scored rows, by name; what each needs to score others.

    Parameters
    ----------
    rows : bool, shape (n,)
        Those the model is fitted on.
    """
    rng = np.random.default_rng(spec.section("training")["seed"])
    used, weight = _sample(cohort, rows & cohort.scored, rng)
    return {
        LEARNED_CLOCK: _clock(cohort, used, weight, spec, threads),
        LOGISTIC: _logistic(cohort, used, weight),
    }


def scores(
    models: Mapping[str, Any], cohort: Cohort, rows: Bools, spec: Spec, threads: int
) -> dict[str, Floats]:
    """Probability of some scored rows by each rival, shape (n,); NaN elsewhere. Not calibrated afterwards."""
    at = np.flatnonzero(rows & cohort.scored)
    told = {name: np.full(len(rows), np.nan) for name in models}
    clock = models[LEARNED_CLOCK]
    told[LEARNED_CLOCK][at] = clock.predict(_times(cohort, at, spec), num_threads=threads)
    for first in range(0, len(at), CHUNK):
        some = at[first : first + CHUNK]
        told[LOGISTIC][some] = models[LOGISTIC].predict_proba(cohort.matrix[some])[:, 1]
    return told


def out_of_fold(
    cohort: Cohort, fold: Ints, spec: Spec, threads: int, among: Bools | None = None
) -> dict[str, Floats]:
    """Probability of scored rows by each rival, from one that never saw their patients, shape (n,); NaN elsewhere.

    ``among`` are the rows that are fitted on and scored, by default all.
    """
    among = np.ones(len(fold), dtype=np.bool_) if among is None else among
    told = {name: np.full(len(fold), np.nan) for name in (LEARNED_CLOCK, LOGISTIC)}
    for k in range(int(fold.max()) + 1):
        mine = among & (fold == k)
        model = fitted(cohort, among & (fold != k), spec, threads)
        for name, p in scores(model, cohort, mine, spec, threads).items():
            told[name][mine] = p[mine]
    return told


def _sample(cohort: Cohort, rows: Bools, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Some hours of septic stays and as many of others, and how many hours each stands for."""
    septic = cohort.per_patient()[1][cohort.patient]
    found, weights = [], []
    for part in (np.flatnonzero(rows & septic), np.flatnonzero(rows & ~septic)):
        some = np.sort(rng.choice(part, min(ROWS // 2, len(part)), replace=False))
        found.append(some)
        weights.append(np.full(len(some), len(part) / max(len(some), 1)))
    weight = np.concatenate(weights)
    return np.concatenate(found), weight / weight.mean()


def _times(cohort: Cohort, rows: Ints, spec: Spec) -> Floats:
    """Hours in intensive care, and those in hospital before it where the model reads them."""
    columns = [cohort.hour[rows]]
    if BEFORE_ICU in spec.features.names:
        columns.append(cohort.matrix[rows, spec.features.names.index(BEFORE_ICU)].astype(np.float64))
    return np.column_stack(columns)


def _clock(cohort: Cohort, used: Ints, weight: Floats, spec: Spec, threads: int) -> lgb.Booster:
    data = lgb.Dataset(_times(cohort, used, spec), cohort.label[used], weight=weight)
    steady = {"deterministic": True, "force_col_wise": True, "seed": 1, "num_threads": threads}
    return lgb.train({**CLOCK_BOOST, **steady}, data, CLOCK_ROUNDS)


def _logistic(cohort: Cohort, used: Ints, weight: Floats) -> Any:
    """Ridge-penalised; a missing value is the mean, and that it is missing is a feature of its own."""
    from sklearn.impute import SimpleImputer  # slow to import, and only training needs it
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    model = make_pipeline(
        StandardScaler(),
        FunctionTransformer(np.clip, kw_args={"a_min": -FARTHEST, "a_max": FARTHEST}),
        SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=True, keep_empty_features=True),
        LogisticRegression(C=STRENGTH, max_iter=STEPS),
    )
    # A feature that nobody has has no mean; it is missing throughout, and says nothing.
    with np.errstate(invalid="ignore"):
        return model.fit(cohort.matrix[used], cohort.label[used], logisticregression__sample_weight=weight)
