"""From probability to page: one rule, taken step by step in the service and row by row in a batch.

``alert`` is a fact of one row, probability at or above a threshold. A ``page`` interrupts someone, so it
follows a policy: an episode opens when the probability reaches the threshold and closes when it falls
below ``release`` times that; it pages once, unless the probability has since risen by ``reraise``; and
after a page there is quiet for ``snooze_h`` hours, which only such a rise breaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.clock import HOUR_US
from features.errors import SpecError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AlertState:
    """What a policy remembers of an encounter; the default is an encounter never scored.

    Attributes
    ----------
    active : bool
        An episode is open.
    paged : bool
        The open episode has paged; one that opened in the quiet after a page has not, and pages when
        quiet ends.
    last_page_us : int or None
        Time of the last page, microseconds.
    last_page_probability : float
        The probability then.
    """

    active: bool = False
    paged: bool = False
    last_page_us: int | None = None
    last_page_probability: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What one score leads to: ``alert`` now, ``page`` someone, and whether an alert episode stands ``active``."""

    alert: bool
    page: bool
    active: bool


@dataclass(frozen=True, slots=True)
class AlertPolicy:
    """When a ward is paged.

    Attributes
    ----------
    threshold : float
        Probability at or above which an episode opens.
    snooze_h : float
        Quiet hours after a page.
    reraise : float
        A rise by this factor since the last page pages again, quiet or not; above 1.
    release : float
        The episode closes below this share of the threshold; in (0, 1].
    """

    threshold: float
    snooze_h: float
    reraise: float
    release: float

    def __post_init__(self) -> None:
        if not (
            0 < self.threshold <= 1 and self.snooze_h >= 0 and self.reraise > 1 and 0 < self.release <= 1
        ):
            raise SpecError(
                "An alert policy needs 0 < threshold <= 1, snooze_h >= 0, reraise > 1 and 0 < release <= 1, got "
                f"threshold={self.threshold}, snooze_h={self.snooze_h}, reraise={self.reraise}, release={self.release}."
            )

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> AlertPolicy:
        """Read a policy from a spec or a bundle.

        Raises
        ------
        SpecError
            A key is missing or out of range.
        """
        try:
            return cls(*(float(table[k]) for k in ("threshold", "snooze_h", "reraise", "release")))
        except KeyError as error:
            raise SpecError(
                f"The alert policy lacks {error.args[0]}. It needs threshold, snooze_h, reraise, release."
            ) from None

    def to_dict(self) -> dict[str, float]:
        """The inverse of :meth:`from_dict`."""
        return {
            "threshold": self.threshold,
            "snooze_h": self.snooze_h,
            "reraise": self.reraise,
            "release": self.release,
        }

    def step(self, state: AlertState, probability: float | None, time_us: int) -> tuple[AlertState, Decision]:
        """Take one score of an encounter; scores come in order of time.

        Parameters
        ----------
        state : AlertState
            As the previous step returned it.
        probability : float or None
            None or NaN where the encounter could not be scored: nothing changes and nothing is raised.
        time_us : int
            Prediction time, microseconds.
        """
        if probability is None or np.isnan(probability):
            return state, Decision(False, False, state.active)
        if probability < self.threshold:
            active = state.active and probability >= self.release * self.threshold
            paged = state.paged and active
            return AlertState(active, paged, state.last_page_us, state.last_page_probability), Decision(
                False, False, active
            )
        if self._pages(state, probability, time_us):
            return AlertState(True, True, time_us, probability), Decision(True, True, True)
        paged = state.active and state.paged
        return AlertState(True, paged, state.last_page_us, state.last_page_probability), Decision(
            True, False, True
        )

    def _pages(self, state: AlertState, probability: float, time_us: int) -> bool:
        if state.last_page_us is None or probability >= self.reraise * state.last_page_probability:
            return True
        quiet_over = time_us - state.last_page_us >= self.snooze_h * HOUR_US
        return quiet_over and not (state.active and state.paged)


def pages(encounter: Ints, time_us: Ints, probability: Floats, policy: AlertPolicy) -> Bools:
    """Which rows page, for whole encounters: :meth:`AlertPolicy.step` over each, in order of time.

    Parameters
    ----------
    encounter : int codes, shape (n,)
    time_us : microseconds, shape (n,)
    probability : shape (n,), NaN where unscorable

    Returns
    -------
    bool, shape (n,), in the order given.
    """
    paged = np.zeros(len(probability), dtype=np.bool_)
    state, current = AlertState(), -1
    for row in _telling(encounter, time_us, probability, policy):
        if encounter[row] != current:
            state, current = AlertState(), int(encounter[row])
        state, decision = policy.step(state, float(probability[row]), int(time_us[row]))
        paged[row] = decision.page
    return paged


def _telling(encounter: Ints, time_us: Ints, probability: Floats, policy: AlertPolicy) -> Ints:
    """Rows that can change a state, by encounter and time: those at the threshold, and the first of each
    fall.

    A fall below release is told once; more rows below it, or between release and threshold, change
    nothing more.
    """
    order = np.lexsort((time_us, encounter))
    order = order[~np.isnan(probability[order])]
    high = probability[order] >= policy.threshold
    low = probability[order] < policy.release * policy.threshold
    same = np.append(False, np.diff(encounter[order]) == 0)
    repeated = np.append(False, low[:-1]) & same
    telling: Ints = order[high | (low & ~repeated & same)]
    return telling
