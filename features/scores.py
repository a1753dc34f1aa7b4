"""Evaluates band tables (NEWS2, qSOFA, SIRS, SOFA). It knows no medicine: rows of ``concepts/scores/*.csv`` do.

A score is the sum of its parts. A part whose quantities are all missing is missing, never zero. ``news2`` is the score
when every part is present and missing otherwise; ``news2_partial`` is the sum of the parts that are present, and
missing when none is. ``news2_pulse`` is one part alone.

``sofa`` is SOFA as a bedside without vasopressor, ventilator and urine charts can tell it, the oximeter standing in for
the blood gas; ``sofa_full`` is the whole published table and nothing else.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features import kernels
from features.concepts import loader
from features.errors import SpecError
from features.windows import Window

Column = npt.NDArray[np.float32]
PARTIAL = "_partial"
_SIGN: Final = re.compile("[/+]")
_RELATIONS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq,
}  # fmt: skip
_CODES: Final = {
    ">=": kernels.AT_LEAST, "<=": kernels.AT_MOST, ">": kernels.ABOVE, "<": kernels.BELOW, "=": kernels.EQUAL,
}  # fmt: skip


def windows(score: str) -> tuple[Window, ...]:
    """The window features a score reads.

    Raises
    ------
    SpecError
        There is no such score.
    """
    each = [component for part in definition(score) for component in part.components]
    found = [Window.parse(concept, c.statistic) for c in each for concept in _SIGN.split(c.concept)]
    asked = [Window.parse(w.concept, w.statistic) for c in each for either in c.when for w in either]
    return tuple(dict.fromkeys(found + asked))


def evaluate(score: str, columns: Mapping[str, Column]) -> Column:
    """Score every row.

    Parameters
    ----------
    score : str
        For example ``news2_partial``, ``sofa`` or ``sofa_renal``.
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


def marks(
    ratios: Sequence[tuple[str, str]], scores: Sequence[str], place: Mapping[str, int]
) -> kernels.Marks:
    """Ratios (numerator and denominator, window names) and scores as the compiled :func:`evaluate` wants them.

    ``place`` says in which column each window stands. The compiled loop gives what :func:`evaluate` and :func:`ratio`
    give; it is there because one patient is scored in less time than it takes to call numpy a hundred times.
    """
    at = {name: [0] for name in ("part", "component", "operand", "band", "either", "condition")}
    rows: dict[str, list[Any]] = {
        name: []
        for name in (
            "partial",
            "worst",
            "quotient",
            "operand",
            "band",
            "points",
            "column",
            "relation",
            "value",
        )
    }
    for score in scores:
        rows["partial"].append(int(score.endswith(PARTIAL)))
        for part in definition(score):
            rows["worst"].append(int(part.choice == "worst"))
            for component in part.components:
                _mark(component, place, at, rows)
            at["component"].append(len(rows["quotient"]))
        at["part"].append(len(rows["worst"]))
    pairs = np.array([[place[n], place[d]] for n, d in ratios], dtype=np.int64).reshape(-1, 2)
    whole = {name: np.array(rows[name], np.int64) for name in ("partial", "worst", "quotient", "operand")}
    starts = {name: np.array(found, np.int64) for name, found in at.items()}
    return kernels.Marks(
        pairs, whole["partial"], starts["part"], whole["worst"], starts["component"], whole["quotient"],
        starts["operand"], whole["operand"], starts["band"], np.array(rows["band"], np.float32),
        np.array(rows["points"], np.float32), starts["either"], starts["condition"],
        np.array(rows["column"], np.int64), np.array(rows["relation"], np.int64), np.array(rows["value"], np.float32),
    )  # fmt: skip


def _mark(
    component: loader.Component,
    place: Mapping[str, int],
    at: dict[str, list[int]],
    rows: dict[str, list[Any]],
) -> None:
    rows["quotient"].append(int("/" in component.concept))
    names = [Window.parse(c, component.statistic).name for c in _SIGN.split(component.concept)]
    rows["operand"] += [place[name] for name in names]
    at["operand"].append(len(rows["operand"]))
    rows["band"] += component.starts
    rows["points"] += component.points
    at["band"].append(len(rows["band"]))
    for either in component.when:
        rows["column"] += [place[Window.parse(c.concept, c.statistic).name] for c in either]
        rows["relation"] += [_CODES[c.relation] for c in either]
        rows["value"] += [c.value for c in either]
        at["condition"].append(len(rows["column"]))
    at["either"].append(len(at["condition"]) - 1)


def parts(score: str, columns: Mapping[str, Column]) -> dict[str, Column]:
    """Points of each part of a score, NaN where the part is missing."""
    return {part.name: _part(part, columns) for part in definition(score)}


def points(values: Column, starts: tuple[float, ...], worth: tuple[float, ...]) -> Column:
    """Score each value by its band, which reaches from its start (included) up to the next.

    A missing value scores missing, never zero. Starts are compared as float32, as the values are.
    """
    band = np.asarray(starts, dtype=np.float32).searchsorted(values, side="right") - 1
    scored = np.asarray(worth, dtype=np.float32)[np.clip(band, 0, len(worth) - 1)]
    scored[np.isnan(values)] = np.nan
    return scored


def definition(score: str) -> tuple[loader.Part, ...]:
    """The parts that a score, whole or partial, sums; the one part that ``sofa_renal`` names.

    Raises
    ------
    SpecError
        There is no such score.
    """
    table = loader.scores()
    name = score.removesuffix(PARTIAL)
    if name in table:
        return table[name]
    alone = [p for whole, each in table.items() for p in each if score == f"{whole}_{p.name}"]
    if not alone:
        known = ", ".join(f"{n}, {n}{PARTIAL}" for n in table)
        raise SpecError(
            f"There is no score {score!r}. Choose one of {known}, a part such as sofa_renal, or add a table to "
            "concepts/scores."
        )
    return (alone[0],)


def _part(part: loader.Part, columns: Mapping[str, Column]) -> Column:
    each = [_component(c, columns) for c in part.components]
    result = each[0]
    for other in each[1:]:
        result = (
            np.fmax(result, other) if part.choice == "worst" else np.where(np.isnan(result), other, result)
        )
    return result


def _component(component: loader.Component, columns: Mapping[str, Column]) -> Column:
    scored = points(_read(component, columns), component.starts, component.points)
    if component.when:
        holds = [np.logical_and.reduce([_holds(c, columns) for c in either]) for either in component.when]
        scored[~np.logical_or.reduce(holds)] = np.nan
    return scored


def _holds(condition: loader.Condition, columns: Mapping[str, Column]) -> npt.NDArray[np.bool_]:
    """Where a condition is met. A missing value meets none."""
    values = columns[Window.parse(condition.concept, condition.statistic).name]
    met: npt.NDArray[np.bool_] = _RELATIONS[condition.relation](values, np.float32(condition.value))
    return met


def _read(component: loader.Component, columns: Mapping[str, Column]) -> Column:
    concepts = _SIGN.split(component.concept)
    each = [columns[Window.parse(concept, component.statistic).name] for concept in concepts]
    if "/" in component.concept:
        return ratio(each[0], each[1])
    return each[0] if len(each) == 1 else np.sum(each, axis=0, dtype=np.float32)


def ratio(numerator: Column, denominator: Column) -> Column:
    """Quotient as float32, missing where either side is missing or the denominator is 0."""
    sound = denominator != 0
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=sound)
