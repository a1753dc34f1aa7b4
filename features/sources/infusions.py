"""Rates per kilogram, and therapies that run from a start to an end, for the readers of intensive care databases.

A rate counts from its start until the next rate or a zero. What a code stands for, and so whether its rate is per
kilogram, is looked up in the concept tables; here are only the arithmetic and the bookkeeping.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.concepts import loader
from features.sources.stays import EPOCH_S, SECOND_US, Floats, Ints, Masks, categories

PLACE_SHIFT: Final = 35
"""Seconds since 1600 stand below; with a place above them, an instant of a stay is one whole number."""
MASSES: Final = ("mcg", "ug", "mg", "ng", "g", "grams")


def meaning(codes: Iterable[str]) -> list[tuple[str, str]]:
    """Concept and its canonical unit of each ``SYSTEM//code``, empty where the tables do not know the code."""
    rows = [loader.codes().get(code) for code in codes]
    return [(row.concept, loader.concepts()[row.concept].unit) if row else ("", "") for row in rows]


def concepts_of(code: pd.Categorical[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Concept and canonical unit of each row of a categorical of codes."""
    known = [*meaning(code.categories), ("", "")]
    concept, unit = (
        np.array([k[0] for k in known], dtype=object),
        np.array([k[1] for k in known], dtype=object),
    )
    return concept[code.codes], unit[code.codes]


@dataclass
class Weights:
    """Body weights met so far, by stay and the time they were known."""

    _place: list[Ints] = field(default_factory=list)
    _known: list[Ints] = field(default_factory=list)
    _kg: list[Floats] = field(default_factory=list)
    _sorted: tuple[Ints, Floats] | None = None

    def add(self, place: Ints, known: Ints, kg: Floats) -> None:
        """Remember plausible weights (by the range in concepts.csv); others are not used."""
        about = loader.concepts()["weight"]
        good = (kg >= about.low) & (kg <= about.high)
        self._place.append(place[good])
        self._known.append(known[good])
        self._kg.append(kg[good])
        self._sorted = None

    def add_events(self, events: pd.DataFrame, place: Ints) -> None:
        """Remember the weights among uncleaned events, in whatever unit they come."""
        concept, _ = concepts_of(events["code"].array)
        rows = np.flatnonzero((concept == "weight") & events["numeric_value"].notna().to_numpy())
        if not len(rows):
            return
        some = events.iloc[rows]
        kg = some["numeric_value"].to_numpy() * _kilograms(some["code"], some["unit"])
        known = some["available_time"].fillna(some["time"]).array.asi8
        self.add(place[rows], known, kg)

    def at(self, place: Ints, micros: Ints) -> Floats:
        """The latest weight of each stay known at each instant, NaN where there is none."""
        keys, kg = self._lookup()
        if not len(keys):
            return np.full(len(place), np.nan)
        last = np.searchsorted(keys, _key(place, micros), side="right") - 1
        found = (last >= 0) & (keys[last] >> PLACE_SHIFT == place)
        return np.where(found, kg[last], np.nan)

    def _lookup(self) -> tuple[Ints, Floats]:
        if self._sorted is None:
            place = np.concatenate([*self._place, np.zeros(0, np.int64)])
            keys = _key(place, np.concatenate([*self._known, np.zeros(0, np.int64)]))
            order = np.argsort(keys, kind="stable")
            self._sorted = keys[order], np.concatenate([*self._kg, np.zeros(0)])[order]
        return self._sorted


def _kilograms(code: pd.Series, unit: pd.Series) -> Floats:
    """Factor to kilograms by code and unit; NaN for a unit that is no weight."""
    pairs = pd.MultiIndex.from_arrays([code.astype(str), unit.astype(object).fillna("")])
    place, uniques = pd.factorize(pairs)
    factors = []
    for one, stated in uniques:
        conversion = loader.conversion("weight", stated or loader.codes()[one].unit)
        factors.append(conversion[0] if conversion else np.nan)
    return np.asarray(factors, dtype=np.float64)[place]


def per_kilogram(unit: str) -> str | None:
    """The unit of a mass per time when it is divided by the body weight; None for any other unit.

    >>> per_kilogram("mcg/min")
    'mcg/kg/min'
    """
    mass, _, time = unit.partition("/")
    return f"{mass}/kg/{time}" if mass in MASSES and time and "/" not in time else None


def weighed(
    rate: Floats, unit: pd.Series, wanted: npt.NDArray[Any], kg: Floats
) -> tuple[Floats, pd.Series, Masks]:
    """Divide by the body weight where the concept is per kilogram and the row is not.

    Parameters
    ----------
    rate, kg : float64, shape (n_rows,)
        ``kg`` is NaN where no weight is known.
    unit : categorical Series, as the source wrote it
    wanted : object array
        Canonical unit of each row's concept, empty when unmapped.

    Returns
    -------
    rate, unit, weightless
        ``weightless`` marks rows that should have been divided and have no weight.
    """
    labels = list(unit.cat.categories)
    renamed = [per_kilogram(label) for label in labels]
    able = np.array([name is not None for name in renamed] + [False])[unit.cat.codes]
    asked = np.char.find(wanted.astype(str), "/kg") >= 0 if len(wanted) else np.zeros(0, dtype=bool)
    divide = able & asked & (rate != 0)
    out = np.where(divide, rate / np.where(divide, kg, 1.0), rate)
    # Two labels a unit: as written, and by weight.
    words = pd.Index([*labels, *(name or label for name, label in zip(renamed, labels, strict=True))])
    code, words = pd.factorize(words)[0], words.unique()
    which = np.append(code, [-1])[np.where(unit.isna(), -1, unit.cat.codes + len(labels) * (able & asked))]
    return out, pd.Series(categories(which, words), index=unit.index), divide & np.isnan(kg)


@dataclass
class Running:
    """The intervals in which each therapy of each stay runs, to tell an end from a change of rate."""

    _group: dict[tuple[str, ...], int] = field(default_factory=dict)
    _start: list[Ints] = field(default_factory=list)
    _end: list[Ints] = field(default_factory=list)
    _what: list[npt.NDArray[Any]] = field(default_factory=list)
    _place: list[Ints] = field(default_factory=list)
    _sorted: tuple[pd.Index, Ints, Ints] | None = None

    def add(self, place: Ints, what: npt.NDArray[Any], start: Ints, end: Ints) -> None:
        """Remember that ``what`` (a concept) ran in these stays from start to end; empty ``what`` is not kept."""
        named = (what != "") & (end > start)
        self._place.append(place[named])
        self._what.append(what[named])
        self._start.append(start[named])
        self._end.append(end[named])
        self._sorted = None

    def goes_on(self, place: Ints, what: npt.NDArray[Any], end: Ints) -> Masks:
        """Whether the same therapy still runs, by another row, when this row ends."""
        names, keys, furthest = self._lookup()
        if not len(keys):
            return np.zeros(len(place), dtype=bool)
        group = place * (len(names) + 1) + names.get_indexer(pd.Index(what, dtype=object)) + 1
        last = np.searchsorted(keys, _key(group, end), side="right") - 1
        same = (last >= 0) & (keys[last] >> PLACE_SHIFT == group) & (what != "")
        going: Masks = same & (furthest[last] > end)
        return going

    def _lookup(self) -> tuple[pd.Index, Ints, Ints]:
        """Therapies, sorted keys of (stay, therapy, start), and the furthest end of the same group so far."""
        if self._sorted is None:
            code, names = pd.factorize(np.concatenate([*self._what, np.zeros(0, object)]))
            place = np.concatenate([*self._place, np.zeros(0, np.int64)])
            start = np.concatenate([*self._start, np.zeros(0, np.int64)])
            end = np.concatenate([*self._end, np.zeros(0, np.int64)])
            group = place * (len(names) + 1) + code + 1
            keys = _key(group, start)
            order = np.argsort(keys, kind="stable")
            furthest = pd.Series(end[order]).groupby(group[order]).cummax().to_numpy()
            self._sorted = pd.Index(names, dtype=object), keys[order], furthest
        return self._sorted


def _key(place: Ints, micros: Ints) -> Ints:
    return np.asarray((place << PLACE_SHIFT) + micros // SECOND_US + EPOCH_S, dtype=np.int64)
