"""Who is on a ventilator, told from what CareVue charts: modes, settings, oxygen devices, extubations.

MIMIC-III's older bedside system has no start and end of ventilation. As in mimic-code (ventilation_classification and
ventilation_durations) a mode or setting says that it runs; an oxygen device, an extubation, or eight hours without any
of these that it does not. Which items and words say so stands in ``codes/mimic.csv`` (``MIMIC_CHART//<item>/VENT``) and
``texts.csv``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.concepts import loader
from features.events import NAT
from features.sources.stays import Floats, Ints, Masks, categories, micros_of

CONCEPT: Final = "invasive_ventilation"
VARIANT: Final = "/VENT"
SILENCE_US: Final = 8 * 3_600_000_000
"""After so long without a word of it, a ventilator is taken to be off: mimic-code, ventilation_durations."""


@dataclass(frozen=True)
class States:
    """Changes between on and off: place, instant, when it was known, value 1 or 0, and the code that said so."""

    place: Ints
    time: Ints
    known: Ints
    value: Floats
    code: pd.Categorical[Any]


@dataclass
class Ventilator:
    """What was charted about ventilators so far; some twenty bytes a row, of the few items that say anything."""

    _codes: dict[str, int] = field(default_factory=dict)
    _parts: list[tuple[Ints, Ints, Ints, Masks, npt.NDArray[np.int16]]] = field(default_factory=list)

    def watch(self, events: pd.DataFrame, place: Ints) -> None:
        """Remember the rows of some uncleaned chart events that tell of a ventilator, with their places."""
        codes = events["code"].array
        telling = [f"{code}{VARIANT}" in loader.codes() for code in codes.categories]
        rows = np.flatnonzero(np.append(telling, False)[codes.codes])
        if not rows.size:
            return
        some = events.iloc[rows]
        on = _said(some)
        which = [
            self._codes.setdefault(f"{code}{VARIANT}", len(self._codes)) for code in codes.categories[telling]
        ]
        number = np.full(len(codes.categories), -1)
        number[telling] = which
        told = ~np.isnan(on)
        time, known = micros_of(some["time"]), micros_of(some["available_time"])
        known = np.where(known == NAT, time, known)
        code = number[codes.codes[rows]].astype(np.int16)
        self._parts.append((place[rows][told], time[told], known[told], on[told] == 1, code[told]))

    def states(self, ends: Ints) -> States:
        """The changes of each stay, the first state included.

        Parameters
        ----------
        ends : int64 microseconds by place
            Silence after the end of a stay says nothing.
        """
        place, time, known, on, code = _instants(self._parts)
        follows = np.zeros(len(place), np.bool_)
        follows[1:] = place[1:] == place[:-1]
        until = np.full(len(place), np.iinfo(np.int64).max)
        until[:-1][follows[1:]] = time[1:][follows[1:]]
        lapses = on & (until - SILENCE_US > time)
        # What a row finds: the state of the one before it, off where that has lapsed.
        found = np.zeros(len(place), np.bool_)
        found[1:] = (on & ~lapses)[:-1] & follows[1:]
        changes = (on != found) | ~follows
        lapsed = lapses & (time + SILENCE_US <= ends[place])
        off = time[lapsed] + SILENCE_US
        labels = pd.Index(list(self._codes), dtype="str")
        both = np.concatenate([code[changes], code[lapsed]]).astype(np.int64)
        return States(
            np.concatenate([place[changes], place[lapsed]]),
            np.concatenate([time[changes], off]),
            np.concatenate([known[changes], np.maximum(off, known[lapsed])]),
            np.concatenate([on[changes], np.zeros(off.size)]),
            categories(both, labels),
        )


def _said(events: pd.DataFrame) -> Floats:
    """1 for a number (a setting), what texts.csv says of a word, NaN for a word that says nothing."""
    words = events["text_value"].array
    meant = [loader.texts().get((CONCEPT, str(w).strip().lower()), np.nan) for w in words.categories]
    spoken = np.append(meant, np.nan)[words.codes]
    return np.where(events["numeric_value"].notna().to_numpy(), 1.0, spoken)


def _instants(
    parts: list[tuple[Ints, Ints, Ints, Masks, npt.NDArray[np.int16]]],
) -> tuple[Ints, Ints, Ints, Masks, npt.NDArray[np.int16]]:
    """One row an instant of a stay, in order; of several, one that says on counts, and of those the first known."""
    if not parts:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty, np.zeros(0, np.bool_), np.zeros(0, np.int16)
    place, time, known, on, code = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((code, known, ~on, time, place))
    place, time, known, on, code = (column[order] for column in (place, time, known, on, code))
    first = np.ones(len(place), np.bool_)
    first[1:] = (place[1:] != place[:-1]) | (time[1:] != time[:-1])
    return place[first], time[first], known[first], on[first], code[first]
