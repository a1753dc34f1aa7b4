"""What moves a model's scores over many patients, and how steady its reasons are from one hour to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.explanation import concept_groups, grouped, newly_measured, steadiness
from models.spec import Spec
from training.cohort import Cohort

Ints = npt.NDArray[np.int64]
Contributions = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]

PAIRS: Final = 400
CANDIDATES: Final = 40_000
SHOWN: Final = 20


def explanation(
    contributions: Contributions, raw: Contributions, cohort: Cohort, spec: Spec, seed: int
) -> dict[str, Any]:
    """Measure reasons on a sample of consecutive hours.

    Parameters
    ----------
    contributions : callable
        From feature rows to exact contributions, the base value last.
    raw : callable
        From feature rows to the raw score that those are to sum to.

    Returns
    -------
    JSON-able: ``groups``, the strongest by mean absolute contribution, with the share they have; ``steadiness`` from
    hour to hour over ``any`` pair of hours, and where ``nothing_new`` was measured in between; ``additivity``, the
    largest distance, in log-odds, between a raw score and the sum of its reasons.
    """
    rng = np.random.default_rng(seed)
    pairs = _consecutive(cohort, rng)
    new = newly_measured(spec.features, cohort.matrix[pairs], cohort.matrix[pairs + 1])
    farthest, steady, strength = 0.0, {}, np.zeros(len(concept_groups(spec.features)))
    for name, some in (("any", pairs), ("nothing_new", pairs[~new])):
        some = np.sort(some[:PAIRS])
        told = contributions(cohort.matrix[some])
        farthest = max(farthest, float(np.abs(told.sum(axis=1) - raw(cohort.matrix[some])).max(initial=0.0)))
        before, after = (
            grouped(spec.features, part) for part in (told, contributions(cohort.matrix[some + 1]))
        )
        steady[name] = steadiness(before, after)
        strength = np.abs(before).mean(axis=0) if name == "any" and len(some) else strength
    order = np.argsort(-strength, kind="stable")[:SHOWN]
    names, whole = [about for about, _ in concept_groups(spec.features)], max(float(strength.sum()), 1e-12)
    groups = [
        {"group": names[k], "mean": float(strength[k]), "share": float(strength[k]) / whole} for k in order
    ]
    return {"groups": groups, "steadiness": steady, "additivity": farthest}


def _consecutive(cohort: Cohort, rng: np.random.Generator) -> Ints:
    """Rows that can be scored and whose next row is the same patient an hour later and can be too, in random order."""
    scored = cohort.scored
    follows = (np.diff(cohort.patient) == 0) & np.isclose(np.diff(cohort.hour), 1) & scored[:-1] & scored[1:]
    found = np.flatnonzero(follows)
    return np.asarray(rng.permutation(found)[:CANDIDATES], dtype=np.int64)
