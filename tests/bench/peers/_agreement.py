"""How far two matrices of the same features agree, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

ONE_PLACE = ("mean", "sum")
"""Statistics that engines may round to a neighbouring float32, since they add in another order."""

CANCELLED = 1e-9
"""What may be left of values that add up to nothing."""

SLOPE = {"rtol": 1e-5, "atol": 1e-5}
"""Slopes cancel: least squares over events a microsecond apart cannot be had to the last place in doubles."""


def statistics(workload: Mapping[str, Any]) -> list[str]:
    """The statistic of each column, from ``workload.json``."""
    each = ["last", "hours_since_last", *(s for _ in workload["lookbacks"] for s in workload["statistics"])]
    return each * len(workload["concepts"])


def differing(
    ours: Matrix, theirs: Matrix, kinds: Sequence[str], without: Sequence[str] = ()
) -> dict[str, int]:
    """Cells that differ, by statistic; empty when the matrices agree. One missing and the other not is a difference."""
    if ours.shape != theirs.shape or ours.shape[1] != len(kinds):
        return {"shape": max(ours.size, theirs.size)}
    found: dict[str, int] = {}
    for kind in dict.fromkeys(k for k in kinds if k not in without):
        columns = [k for k, other in enumerate(kinds) if other == kind]
        unlike = int((~same(ours[:, columns], theirs[:, columns], kind)).sum())
        if unlike:
            found[kind] = unlike
    return found


def same(a: Matrix, b: Matrix, kind: str) -> npt.NDArray[np.bool_]:
    """Which cells are the same, both missing included."""
    if kind == "slope":
        close: npt.NDArray[np.bool_] = np.isclose(a, b, **SLOPE, equal_nan=True)
        return close
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    if kind in ONE_PLACE:
        alike |= (np.nextafter(a, b) == b) | (np.abs(a - b) <= CANCELLED)
    return alike
