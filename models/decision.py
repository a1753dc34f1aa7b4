"""From probability to page: one rule, taken step by step in the service and row by row in a batch.

``alert`` is a fact of one row, probability at or above a threshold. A ``page`` interrupts someone, so it
follows a policy: an episode opens when the probability reaches the threshold and closes when it falls
below ``release`` times that; it pages once, unless the probability has since risen by ``reraise``; and
after a page there is quiet for ``snooze_h`` hours, which only such a rise breaks. The rule is one compiled
function: the service calls it for each score, a batch for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.clock import HOUR_US
from features.errors import SpecError
from features.kernels import compiled

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
NEVER: Final = np.iinfo(np.int64).min // 2
"""Time of a page that never was: so long ago that no quiet is left, and no difference overflows."""


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
        last = NEVER if state.last_page_us is None else state.last_page_us
        before = (state.active, state.paged, last, state.last_page_probability)
        active, paged, last, told, page = _step(*before, float(probability), int(time_us), *self._rule())
        kept = AlertState(active, paged, None if last == NEVER else last, told)
        return kept, Decision(probability >= self.threshold, page, active)

    def _rule(self) -> tuple[float, int, float, float]:
        """As the compiled step takes it."""
        return self.threshold, round(self.snooze_h * HOUR_US), self.reraise, self.release


@compiled
def _step(
    active: bool,
    paged: bool,
    last_us: int,
    told: float,
    probability: float,
    time_us: int,
    threshold: float,
    snooze_us: int,
    reraise: float,
    release: float,
) -> tuple[bool, bool, int, float, bool]:
    """The rule itself, for one score: the four parts of the state afterwards, and whether somebody is paged."""
    if probability < threshold:
        active = active and probability >= release * threshold
        return active, paged and active, last_us, told, False
    risen = last_us == NEVER or probability >= reraise * told
    quiet_over = time_us - last_us >= snooze_us
    if risen or (quiet_over and not (active and paged)):
        return True, True, time_us, probability, True
    return True, active and paged, last_us, told, False


@compiled
def _walk(
    encounter: Ints,
    time_us: Ints,
    probability: Floats,
    threshold: float,
    snooze_us: int,
    reraise: float,
    release: float,
) -> tuple[Bools, Bools]:
    """:func:`_step` over rows sorted by encounter and time: which page, and in which an episode stands."""
    n = len(probability)
    page, standing = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    active, paged, last_us, told = False, False, NEVER, 0.0
    for i in range(n):
        if i > 0 and encounter[i] != encounter[i - 1]:
            active, paged, last_us, told = False, False, NEVER, 0.0
        if not np.isnan(probability[i]):
            active, paged, last_us, told, page[i] = _step(
                active,
                paged,
                last_us,
                told,
                probability[i],
                time_us[i],
                threshold,
                snooze_us,
                reraise,
                release,
            )
        standing[i] = active
    return page, standing


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
    return walk(encounter, time_us, probability, policy)[0]


def walk(encounter: Ints, time_us: Ints, probability: Floats, policy: AlertPolicy) -> tuple[Bools, Bools]:
    """Which rows page as :func:`pages`, and in which an alert episode stands after the score."""
    order = np.lexsort((time_us, encounter))
    told = _walk(encounter[order], time_us[order], probability[order], *policy._rule())
    page, standing = np.zeros((2, len(order)), dtype=np.bool_)
    page[order], standing[order] = told
    return page, standing
