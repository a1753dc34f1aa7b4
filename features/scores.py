"""Evaluates band tables (NEWS2, qSOFA, SIRS, SOFA). It knows no medicine: rows of ``concepts/scores/*.csv`` do.

A score is the sum of its parts. A part whose quantities are all missing is missing, never zero. ``news2`` is the score
when every part is present and missing otherwise; ``news2_partial`` is the sum of the parts that are present, and
missing when none is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from features.concepts import loader
from features.errors import SpecError
from features.windows import Window

Column = npt.NDArray[np.float32]
PARTIAL = "_partial"


def windows(score: str) -> tuple[Window, ...]:
    """The window features a score reads.

    Raises
    ------
    SpecError
        There is no such score.
    """
    found = [
        Window.parse(concept, component.statistic)
        for part in _parts(score)
        for component in part.components
        for concept in component.concept.split("/")
    ]
    return tuple(dict.fromkeys(found))


def evaluate(score: str, columns: Mapping[str, Column]) -> Column:
    """Score every row.

    Parameters
    ----------
    score : str
        For example ``news2_partial`` or ``sofa``.
    columns : mapping from window name to float32 array of shape (n,)
        At least the windows that :func:`windows` names; NaN = missing.

    Returns
    -------
    float32 array of shape (n,), points; NaN where the score is missing.
    """
    each = parts(score, columns)
    table = np.stack(list(each.values()))
    absent = np.isnan(table)
    missing = absent.all(axis=0) if score.endswith(PARTIAL) else absent.any(axis=0)
    total: Column = np.where(absent, np.float32(0), table).sum(axis=0, dtype=np.float32)
    total[missing] = np.nan
    return total


def parts(score: str, columns: Mapping[str, Column]) -> dict[str, Column]:
    """Points of each part of a score, NaN where the part is missing."""
    return {part.name: _part(part, columns) for part in _parts(score)}


def points(values: Column, starts: tuple[float, ...], worth: tuple[float, ...]) -> Column:
    """Score each value by its band, which reaches from its start (included) up to the next.

    A missing value scores missing, never zero. Starts are compared as float32, as the values are.
    """
    band = np.asarray(starts, dtype=np.float32).searchsorted(values, side="right") - 1
    scored = np.asarray(worth, dtype=np.float32)[np.clip(band, 0, len(worth) - 1)]
    scored[np.isnan(values)] = np.nan
    return scored


def _parts(score: str) -> tuple[loader.Part, ...]:
    table = loader.scores()
    name = score.removesuffix(PARTIAL)
    if name not in table:
        known = ", ".join(f"{n}, {n}{PARTIAL}" for n in table)
        raise SpecError(
            f"There is no score {score!r}. Choose one of {known}, or add a table to concepts/scores."
        )
    return table[name]


def _part(part: loader.Part, columns: Mapping[str, Column]) -> Column:
    each = [points(_read(c, columns), c.starts, c.points) for c in part.components]
    result = each[0]
    for other in each[1:]:
        result = (
            np.fmax(result, other) if part.choice == "worst" else np.where(np.isnan(result), other, result)
        )
    return result


def _read(component: loader.Component, columns: Mapping[str, Column]) -> Column:
    names = [Window.parse(concept, component.statistic).name for concept in component.concept.split("/")]
    if len(names) == 1:
        return columns[names[0]]
    return ratio(columns[names[0]], columns[names[1]])


def ratio(numerator: Column, denominator: Column) -> Column:
    """Quotient as float32, missing where either side is missing or the denominator is 0."""
    sound = denominator != 0
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=sound)
