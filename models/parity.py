"""Does a bundle still score as on the day it was made: reference rows that no patient stands behind, and their scores.

The rows are drawn from the quantiles that the bundle keeps of each feature, one feature at a time, so that they look
like patients in each column and like nobody as a whole. Their scores travel with the bundle; another machine, another
version of a library or a stray edit shows as a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]

ROWS: Final = 64
SEED: Final = 20260105


def reference_rows(reference: Mapping[str, Any], names: Sequence[str], rows: int = ROWS) -> Matrix:
    """Made-up rows by the profile of the training features.

    Parameters
    ----------
    reference : as :func:`models.profile.profile` makes it
    names : n_features names

    Returns
    -------
    float32, shape (rows, n_features); a feature without quantiles is missing throughout.
    """
    rng = np.random.default_rng(SEED)
    matrix = np.full((rows, len(names)), np.nan, dtype=np.float32)
    for k, name in enumerate(names):
        place, gone = rng.random(rows), rng.random(rows)
        about = reference.get("features", {}).get(name, {})
        if about.get("quantiles"):
            values = np.interp(place, reference["shares"], about["quantiles"])
            matrix[:, k] = np.where(gone < about["missing"], np.nan, values)
    return matrix


def sheet(
    reference: Mapping[str, Any], names: Sequence[str], raw: Callable[[Matrix], Floats]
) -> dict[str, Any]:
    """The ``parity`` part of a bundle: raw scores of the reference rows by the model as it was trained."""
    return {"rows": ROWS, "raw": [float(v) for v in raw(reference_rows(reference, names))]}


def largest_difference(
    parity: Mapping[str, Any],
    reference: Mapping[str, Any],
    names: Sequence[str],
    raw: Callable[[Matrix], Floats],
) -> float:
    """How far scores of the reference rows are from those kept, in log-odds."""
    again = raw(reference_rows(reference, names, int(parity["rows"])))
    return float(np.abs(again - np.array(parity["raw"])).max())
