"""What every reader of a format hands over: batches of uncleaned facts, and an account of what it read.

A reader is one module with one function of this shape, named in :data:`features.sources.registry.READERS`::

    def batches(path, account, *, timezone="UTC", mapping=None, say=quiet) -> Iterator[Batch]

It yields facts as it meets them, in any order and never more than some hundred thousand at once, so that memory stays
bounded; :mod:`features.archive` brings the facts of a subject together. It knows its format and nothing clinical:
codes go out as the source wrote them, ``SYSTEM//code``, and :mod:`features.clean` says what they mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd

from features.clock import UTC_US
from features.events import ENCOUNTER_COLUMNS, EVENT_COLUMNS, empty_events

Say = Callable[[int], None]
"""Told how many more rows of the source have been read, for a progress bar."""

ROWS: Final = 200_000
"""Rows a reader holds at once."""


def quiet(rows: int) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Batch:
    """Some facts of a source, uncleaned.

    Attributes
    ----------
    encounters : DataFrame with ``events.ENCOUNTER_COLUMNS``; each encounter stands in exactly one batch of a source.
        May be empty.
    events : DataFrame with ``events.EVENT_COLUMNS``, rows in any order, string columns plain or categorical.
        ``code`` is the source's own, ``concept`` empty or what the source alone can know (a drug name that
        antimicrobials.csv lists). ``available_time`` is NaT where the source does not say; the declared policy of the
        concept then fills it. What the encounters say of their patients is not repeated here:
        ``events.encounter_events`` makes those.
    """

    encounters: pd.DataFrame
    events: pd.DataFrame


@dataclass
class ReadAccount:
    """What a reader met, filled while it reads.

    Attributes
    ----------
    rows : Counter of table (or message type) to rows read
    events : Counter of table to events made of them
    left : Counter of (table, reason) to rows that made no event, such as ``no_encounter``, ``no_time``,
        ``cancelled``, ``outside_stay``. A row may make several events or none; one that makes none is counted here.
    notes : list of str
        What had to be assumed, a sentence each, without any identifier.
    labels : dict of code to what the source's own dictionaries call it, where it has such
    """

    rows: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)

    def note(self, sentence: str) -> None:
        """Remember an assumption, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def leave(self, table: str, reason: str, rows: int) -> None:
        """Count rows that made no event."""
        if rows:
            self.left[table, reason] += int(rows)


def no_encounters() -> pd.DataFrame:
    """An encounter table without rows, every column of its right type."""
    kinds: dict[str, Any] = {
        "age_years": "float64",
        "hospital_admission_time": UTC_US,
        "icu_admission_time": UTC_US,
    }
    return pd.DataFrame({c: pd.Series(dtype=kinds.get(c, "str")) for c in ENCOUNTER_COLUMNS})


def event_table(**columns: Any) -> pd.DataFrame:
    """An event table of the columns a reader knows; those it does not name are empty, ``status`` is final.

    ``time`` and ``available_time`` must be ``datetime64[us, UTC]``; an absent ``available_time`` is left to the
    declared policy.
    """
    table = pd.DataFrame(columns)
    blank = empty_events()
    for name in EVENT_COLUMNS:
        if name not in table:
            table[name] = (
                "final" if name == "status" else pd.Series(dtype=blank[name].dtype, index=table.index)
            )
    return table[list(EVENT_COLUMNS)]
