"""What moves a score, by clinical concept: exact contributions summed, and how steady such reasons are.

A group is what one measurement, ratio or clinical score is about; its contribution is the sum over its features. Groups
and base value add up to the raw score.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from features.featureset import FeatureSet

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Matrix = npt.NDArray[np.float32]

TOP: Final = 3
"""So many reasons a person takes in at a glance; steadiness is about these."""
FELT: Final = 0.05
"""Log-odds; a smaller contribution has no direction worth the name."""


@lru_cache(maxsize=8)
def concept_groups(features: FeatureSet) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Columns by what they are about: a concept, or a ratio or score in its own right."""
    groups: dict[str, list[int]] = {}
    for k, name in enumerate(features.names):
        about = features.windows[k].concept if k < len(features.windows) else name
        groups.setdefault(about, []).append(k)
    return tuple((about, tuple(columns)) for about, columns in groups.items())


def grouped(features: FeatureSet, contributions: Floats) -> Floats:
    """Contributions summed by group.

    Parameters
    ----------
    contributions : shape (n, n_features + 1), the last column the base value

    Returns
    -------
    shape (n, n_groups), in the order of :func:`concept_groups`
    """
    return np.column_stack(
        [contributions[:, list(columns)].sum(axis=1) for _, columns in concept_groups(features)]
    )


def newly_measured(features: FeatureSet, before: Matrix, after: Matrix) -> Bools:
    """Whether anything was measured between two moments of one patient, shape (n,): the age of some last value fell."""
    since = [
        k for k, name in enumerate(features.names) if name.partition("__")[2].startswith("hours_since_last")
    ]
    old, new = before[:, since], after[:, since]
    return np.asarray(((new <= old) | (np.isnan(old) & ~np.isnan(new))).any(axis=1))


def steadiness(before: Floats, after: Floats) -> dict[str, float]:
    """How alike the reasons of two moments are, averaged over patients.

    Parameters
    ----------
    before, after : shape (n, n_groups)
        Contributions by group at one moment and at the next, row by row the same patient.

    Returns
    -------
    ``pairs``; ``overlap``: Jaccard index of the three strongest groups; ``same_first``: share in which the strongest
    stays the strongest; ``turned``: of strongest groups that are felt at both moments, the share that raised risk and
    now lowers it, or the reverse. NaN where there is nothing to average.
    """
    if not len(before):
        return {"pairs": 0, "overlap": np.nan, "same_first": np.nan, "turned": np.nan}
    old, new = (np.argsort(-np.abs(part), axis=1, kind="stable")[:, :TOP] for part in (before, after))
    shared = (old[:, :, None] == new[:, None, :]).sum(axis=(1, 2))
    felt_before, felt_now = (np.take_along_axis(part, new, axis=1) for part in (before, after))
    felt = (np.abs(felt_before) >= FELT) & (np.abs(felt_now) >= FELT)
    turned = felt & (np.sign(felt_before) != np.sign(felt_now))
    return {
        "pairs": len(before),
        "overlap": float((shared / (2 * old.shape[1] - shared)).mean()),
        "same_first": float((old[:, 0] == new[:, 0]).mean()),
        "turned": float(turned.sum() / felt.sum()) if felt.any() else np.nan,
    }
