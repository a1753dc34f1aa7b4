"""Is a surge under way, since when, whom and which unit does it hit?

Every complete day's count is compared with what the calendar and the last weeks' usual level make likely, by a
one-sided CUSUM: for all arrivals, by age group, and for admissions by specialty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

AGE_EDGES: Final = (0, 16, 65, 75)
AGE_GROUPS: Final = ("under 16", "16 to 64", "65 to 74", "75 and over")
ALL: Final = "all arrivals"
DRIFT: Final = 0.75
"""Standard deviations a day that are forgiven: less is no surge."""
ALARM: Final = 8.0
"""CUSUM above which a surge is under way: by chance about once in many years for one series."""
RECENT_DAYS: Final = 7
WEEKS: Final = 8
FEWEST_WEEKS: Final = 3


@dataclass(frozen=True)
class Usual:
    """Shares of emergency arrivals as they were in training: by age group, and admitted by specialty."""

    ages: tuple[float, ...]
    admitted: tuple[float, ...]
    dispersion: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"ages": list(self.ages), "admitted": list(self.admitted), "dispersion": self.dispersion}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Usual:
        """The inverse of :meth:`to_dict`."""
        return cls(tuple(table["ages"]), tuple(table["admitted"]), float(table["dispersion"]))


@dataclass(frozen=True)
class Surge:
    """More patients than usual for longer than chance allows.

    Attributes
    ----------
    since : first day of the excess (local)
    times : arrivals as a multiple of usual, over the last seven complete days
    age_group, age_times : the age group in which the excess is most certain; empty where none stands out
    unit, unit_times : the specialty in which the excess of admissions is most certain
    usual_level, level : level of all emergency arrivals before the surge, and of the last seven days
    """

    since: pd.Timestamp
    times: float
    age_group: str
    age_times: float
    unit: str
    unit_times: float
    usual_level: float
    level: float

    def words(self) -> str:
        """One sentence for the report."""
        text = (
            f"A surge is under way since {self.since:%A} {self.since.day} {self.since:%B}: arrivals of the last seven "
            f"days are {self.times:.2f} times the usual."
        )
        if self.age_group:
            text += f" It hits patients {_aged(self.age_group)} most ({self.age_times:.1f} times the usual)."
        if self.unit:
            text += f" Admissions to {self.unit} are {self.unit_times:.1f} times the usual."
        return text


def _aged(group: str) -> str:
    return f"aged {group}" if group[0].isdigit() else group


def age_group(age_years: pd.Series) -> Ints:
    """Position in :data:`AGE_GROUPS`; -1 where the age is unknown."""
    place = np.searchsorted(AGE_EDGES, age_years.to_numpy("float64"), side="right") - 1
    return np.where(age_years.isna(), -1, place).astype("int64")


def detect(
    days: pd.Series,
    arrivals: Ints,
    admitted: Ints,
    expected: Floats,
    usual: Usual,
    specialties: tuple[str, ...],
) -> Surge | None:
    """Look for a surge in complete local days, oldest first.

    Parameters
    ----------
    days : Series of datetime64, shape (n,)
    arrivals : (n, age groups + 1)
        Emergency arrivals by age group; the last column are all of them, of unknown age too.
    admitted : (n, specialties)
        Decisions to admit emergency patients.
    expected : (n,)
        Arrivals the calendar makes likely at the level of training.

    Returns
    -------
    Surge, or None where there is none or fewer than three weeks are known.
    """
    if len(days) < 7 * FEWEST_WEEKS:
        return None
    ages, units = np.array(usual.ages), np.array(usual.admitted)
    means = expected[:, None] * np.concatenate([ages, [1.0], units])[None, :]
    counts = np.concatenate([arrivals, admitted], axis=1)
    level = _usual_level(counts, means)
    score = _standardised(counts, means * level, usual.dispersion)
    climb = _cusum(score)
    if not (climb[-1] > ALARM).any():
        return None
    n_ages, recent = len(ages), slice(-RECENT_DAYS, None)
    now = counts[recent].sum(axis=0) / np.maximum((means * level)[recent].sum(axis=0), 1e-9)
    worst = int(np.argmax(climb[-1]))
    since = days.iloc[_began(climb[:, worst])]
    age, unit = int(np.argmax(climb[-1, :n_ages])), int(np.argmax(climb[-1, n_ages + 1 :]))
    hit_age, hit_unit = climb[-1, age] > ALARM, climb[-1, n_ages + 1 + unit] > ALARM
    return Surge(
        since=since,
        times=float(now[n_ages]),
        age_group=AGE_GROUPS[age] if hit_age else "",
        age_times=float(now[age]) if hit_age else 1.0,
        unit=specialties[unit] if hit_unit else "",
        unit_times=float(now[n_ages + 1 + unit]) if hit_unit else 1.0,
        usual_level=float(level[n_ages]),
        level=float(level[n_ages] * now[n_ages]),
    )


def _usual_level(counts: Ints, means: Floats) -> Floats:
    """Median over weeks of counts against expectation, by column: a surge of less than half the weeks moves it little.

    Weeks end where the last seven days begin, so that those are compared and never counted in.
    """
    weeks = min((len(counts) - RECENT_DAYS) // 7, WEEKS)
    stop = len(counts) - RECENT_DAYS
    some = slice(stop - 7 * weeks, stop)
    seen = counts[some].reshape(weeks, 7, -1).sum(axis=1)
    due = np.maximum(means[some].reshape(weeks, 7, -1).sum(axis=1), 1e-9)
    few = 4.0  # a week in which next to nobody was due says next to nothing
    return np.asarray(np.median((seen + few) / (due + few), axis=0))


def _standardised(counts: Ints, means: Floats, dispersion: float) -> Floats:
    spread = np.sqrt(np.maximum(means + dispersion * means**2, 0.25))
    return np.asarray(np.minimum((counts - means) / spread, 4.0))


def _cusum(score: Floats) -> Floats:
    """Page's one-sided CUSUM of each column, from 0 and never below."""
    out = np.zeros_like(score)
    so_far = np.zeros(score.shape[1])
    for k, row in enumerate(score):
        so_far = np.maximum(so_far + row - DRIFT, 0.0)
        out[k] = so_far
    return out


def _began(climb: Floats) -> int:
    """First day of the present climb."""
    flat = np.flatnonzero(climb == 0)
    return int(flat[-1] + 1) if len(flat) else 0
