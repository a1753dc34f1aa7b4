"""A forecast of counted series as it is handed to people: what was known, what is foreseen, whether the last held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from models.series import COVER, QUANTILES

SURE: Final = 0.9
"""How sure "at least" is."""
COVERED: Final = 0.95
"""In how many of all cases "covers" is enough."""


def column(level: float) -> str:
    """Name of a quantile's column: ``q05`` … ``q95``; ``cover99`` for the number exceeded once in a hundred times."""
    return f"q{round(level * 100):02d}" if level != COVER else "cover99"


FULL: Final = {"p_over_92": 0.92, "p_over_95": 0.95, "p_short": 1.0}
"""Shares of the open beds; how likely more are taken is said of each."""
RARE, SURELY = 0.01, 0.95
"""No quantile is stated above 99 % or below 5 %: what is rarer than the one or likelier than the other is not told."""

STATED: Final = tuple(column(level) for level in (*QUANTILES, COVER))


@dataclass(frozen=True)
class Span:
    """One window that is told.

    Attributes
    ----------
    label : str
        In words: ``next 4 h``, ``Tue 13 Jan``.
    target : Timestamp
        Stamp of its last hour or day, on the wall clock.
    window_h : int
    """

    label: str
    target: pd.Timestamp
    window_h: int


@dataclass(frozen=True)
class Known:
    """A series as it stood: what it counts, its newest count and stamp, and how often the last forecasts held.

    ``open_beds`` is the newest number of open beds, where the series counts beds taken and the file has it.
    """

    name: str
    quantity: str
    newest: float
    stamp: pd.Timestamp
    inside: int = 0
    of: int = 0
    open_beds: float | None = None


@dataclass(frozen=True)
class CountForecast:
    """What is foreseen of every series.

    Attributes
    ----------
    at : Timestamp
        First hour or day to come, on the wall clock; everything stamped earlier was read, nothing else.
    newest : Timestamp
        Stamp of the newest count in hand.
    step_h : 1 or 24
    source : str
        Name of the file.
    spans : tuple of Span
        What is told to people, in order.
    known : tuple of Known
        The series that have a forecast.
    rows : DataFrame
        As ``wardcast data schema forecasts`` says, stamps on the wall clock: every hour or day, and the spans.
    as_came : DataFrame
        The same with stamps as the file writes them.
    moved_by : mapping of str to float
        Share of what moves the forecasts, by what it is about, strongest first.
    stale, notes : tuple of str
        Why not to plan on it, and what else a reader should know.
    """

    at: pd.Timestamp
    newest: pd.Timestamp
    step_h: int
    source: str
    spans: tuple[Span, ...]
    known: tuple[Known, ...]
    rows: pd.DataFrame
    as_came: pd.DataFrame
    moved_by: Mapping[str, float]
    stale: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def said(self) -> dict[tuple[str, str], Said]:
        """Every span of every series that has one, by name of the series and label."""
        by_span = self.rows.set_index(["target", "window_h"]).sort_index()
        found = {}
        for span in self.spans:
            for row in by_span.loc[[(span.target, span.window_h)]].to_dict("records"):
                found[str(row["series"]), span.label] = Said.of(
                    {str(name): value for name, value in row.items()}
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON says it; stamps are those of the wall clock, without an offset."""
        said = self.said()
        return {
            "source": self.source, "at": self.at.isoformat(), "newest_count": self.newest.isoformat(),
            "step_h": self.step_h, "stale": list(self.stale), "notes": list(self.notes),
            "moved_by": dict(self.moved_by),
            "series": [
                {
                    "name": k.name, "quantity": k.quantity, "newest": k.newest, "newest_at": k.stamp.isoformat(),
                    "open_beds": k.open_beds, "last_forecasts": {"inside_90": k.inside, "of": k.of},
                    "forecasts": [
                        {"window": s.label, "target": s.target.isoformat(), "window_h": s.window_h}
                        | said[k.name, s.label].to_dict()
                        | said[k.name, s.label].risks(k.open_beds)
                        for s in self.spans
                        if (k.name, s.label) in said
                    ],
                }
                for k in self.known
            ],
        }  # fmt: skip


@dataclass(frozen=True)
class Said:
    """One forecast in whole numbers: the middle, at least so many (90 % sure), so many cover it 95 times in 100."""

    mean: float
    middle: int
    at_least: int
    covers: int
    quantiles: Mapping[str, float]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Said:
        """From a row of :attr:`CountForecast.rows`.

        A whole number takes the unit around it, as in the statements: k or more are as likely as more than k - 0.5.
        """
        quantiles = {name: float(row[name]) for name in STATED}
        low, high = quantiles[column(1 - SURE)], quantiles[column(COVERED)]
        return cls(
            float(row["mean"]), int(np.floor(quantiles["q50"] + 0.5)), max(int(np.floor(low + 0.5)), 0),
            max(int(np.ceil(high - 0.5)), 0), quantiles,
        )  # fmt: skip

    def over(self, limit: float) -> float:
        """Probability of more than ``limit``, between :data:`RARE` and :data:`SURELY`.

        Between the quantiles it is a line; a whole number takes the unit around it.
        """
        levels = (*QUANTILES, COVER)
        at = [self.quantiles[column(level)] for level in levels]
        return round(1 - float(np.interp(np.floor(limit + 1e-9) + 0.5, at, levels)), 4)

    def risks(self, open_beds: float | None) -> dict[str, float | None]:
        """How likely more than 92 %, 95 % and all of the open beds are taken; None where they are not known."""
        return {
            name: None if open_beds is None else self.over(share * open_beds) for name, share in FULL.items()
        }

    def words(self) -> str:
        """``612, at least 598 (90 % sure), 631 cover it 95 times in 100``."""
        return f"{self.middle:,}, at least {self.at_least:,} (90 % sure), {self.covers:,} cover it 95 times in 100"

    def to_dict(self) -> dict[str, Any]:
        """As JSON says it."""
        return {
            "mean": self.mean, "median": self.middle, "at_least": self.at_least, "covers": self.covers,
            "quantiles": dict(self.quantiles),
        }  # fmt: skip


def quantities(known: Sequence[Known]) -> list[str]:
    """What the series count, in their order."""
    return list(dict.fromkeys(k.quantity for k in known))
