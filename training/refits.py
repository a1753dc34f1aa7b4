"""Do other seeds make another model? One fold refitted a few times, and what changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from models import metrics
from models.bundle import mean_of_members
from models.calibration import Calibrator
from models.explanation import grouped, steadiness
from models.spec import Spec
from training.cohort import Cohort
from training.evaluation import bands

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Boosters = Mapping[str, lgb.Booster]

FOLD: Final = 0
REFITS: Final = 3
EXPLAINED: Final = 400
"""Hours whose reasons are compared."""


def reseeded(spec: Spec, by: int) -> Spec:
    """The same spec with another seed: other hours are thinned, and boosters draw other rows and features."""
    training = spec.section("training")
    return replace(spec, table=spec.table | {"training": training | {"seed": training["seed"] + by}})


def refitted(
    cohort: Cohort,
    fold: Ints,
    raw: Floats,
    calibrator: Calibrator,
    threshold: float,
    spec: Spec,
    fit: Callable[[Spec], Boosters],
    threads: int,
) -> dict[str, Any]:
    """Refit the first fold's model with other seeds; calibration and threshold stay those that other folds gave.

    Parameters
    ----------
    raw : log-odds out of fold, shape (n,)
        Of the model as it was judged, which is one of those compared.
    fit : callable
        From a spec to boosters that have not seen the fold.

    Returns
    -------
    ``refits``; ``figures``, one entry a measure and band of hours with ``each``, ``mean`` and ``sd``; ``rows_sd``, the
    mean over hours of the standard deviation of the log-odds; ``reasons``, how alike those of the same hour are for
    two refits, the mean over all pairs (see :func:`models.explanation.steadiness`).
    """
    mine = (fold == FOLD) & cohort.scored
    at = np.flatnonzero(mine)
    rng = np.random.default_rng(spec.section("training")["seed"])
    some = np.sort(rng.choice(at, min(EXPLAINED, len(at)), replace=False))
    scores, reasons = [raw[at]], []
    for k in range(1, int(spec.section("training").get("refits", REFITS)) + 1):
        boosters = list(fit(reseeded(spec, 1_000 * k)).values())
        scores.append(mean_of_members(boosters, cohort.matrix[at], threads, raw_score=True))
        told = mean_of_members(boosters, cohort.matrix[some], threads, pred_contrib=True)
        reasons.append(grouped(spec.features, told))
    return {
        "refits": len(reasons),
        "figures": _figures(cohort, fold, at, scores, calibrator, threshold),
        "rows_sd": float(np.std(scores, axis=0, ddof=1).mean()) if reasons else float("nan"),
        "reasons": _alike(reasons),
    }


def _figures(
    cohort: Cohort, fold: Ints, at: Ints, scores: list[Floats], calibrator: Calibrator, threshold: float
) -> list[dict[str, Any]]:
    whole = fold == FOLD
    gain = metrics.utility_gain(cohort.patient, cohort.hour, cohort.label)
    rows = []
    for hours, band in bands(cohort.hour):
        each: dict[str, list[float]] = {"utility": [], "auroc": []}
        for score in scores:
            alarm = np.zeros(len(fold), dtype=np.bool_)
            alarm[at] = calibrator.apply(score) >= threshold
            each["utility"].append(metrics.normalized_utility(gain[whole & band], alarm[whole & band]))
            each["auroc"].append(metrics.auroc(cohort.label[at][band[at]], score[band[at]]))
        for name, values in each.items():
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
            rows.append(
                {
                    "measure": name,
                    "hours": hours,
                    "each": values,
                    "mean": float(np.mean(values)),
                    "sd": spread,
                }
            )
    return rows


def _alike(reasons: list[Floats]) -> dict[str, float]:
    pairs = [steadiness(one, other) for one, other in combinations(reasons, 2)]
    return {
        name: float(np.mean([p[name] for p in pairs]))
        for name in ("overlap", "same_first", "turned")
        if pairs
    }
