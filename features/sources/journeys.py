"""Where patients were, from tables of moves: locations, arrivals by emergency, ends of intensive care."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.events import NAT
from features.sources.batch import ROWS
from features.sources.stays import LATEST_US, Ints, Masks, Stays, facts, micros_of, since, stacked

PLACES: Final = ("ed", "ward", "icu", "stepdown", "procedural", "l&d", "other")
"""Words of ``WARDCAST//location`` but for ``left``; texts.csv numbers them."""


@dataclass(frozen=True)
class Journey:
    """What the moves of all stays say.

    Attributes
    ----------
    first, icu : int64 microseconds, shape (n_stays,)
        First time anywhere and first time in intensive care; ``events.NAT`` where never.
    kind : object array, shape (n_stays,)
        ``icu`` (ever there), ``ed`` (nowhere else) or ``ward``.
    opening : int64, shape (n_stays,)
        Which row of the given moves was the first in intensive care, -1 where none.
    """

    first: Ints
    icu: Ints
    kind: npt.NDArray[Any]
    opening: Ints
    _stays: Stays
    _moves: pd.DataFrame
    """By stay and time, with ``ends`` of intensive care (``NAT`` where it goes on) and ``arrives`` by emergency."""

    def pieces(self) -> Iterator[pd.DataFrame]:
        """The events ``WARDCAST//location``, ``icu_discharge`` and ``ed_arrival``, some hundred thousand at a time."""
        for first in range(0, len(self._moves), ROWS // 2):
            moves = self._moves.iloc[first : first + ROWS // 2]
            stay, ends, at = _ints(moves["stay"]), _ints(moves["ends"]), moves["came"]
            where, source, came = moves["where"], moves["source_id"], micros_of(at)
            located = facts(
                self._stays,
                stay,
                time=at,
                available=at,
                code="WARDCAST//location",
                text=where,
                source_id=source,
            )
            left = marks(self._stays, stay, ends, "icu_discharge", source, ends != NAT)
            arrived = marks(self._stays, stay, came, "ed_arrival", source, moves["arrives"].to_numpy(bool))
            yield stacked([located, left, arrived])


def follow(stays: Stays, moves: pd.DataFrame) -> Journey:
    """Follow patients from place to place.

    Parameters
    ----------
    moves : DataFrame, rows in any order
        ``stay`` (its place in ``stays``), ``came``, ``went`` (``datetime64[us, UTC]``; ``went`` may be missing),
        ``where`` (words of :data:`PLACES`, best as :func:`placed`) and ``source_id``. Of moves of one instant, the
        later row is the later move.

    Notes
    -----
    Intensive care ends when the next place is another one: from unit to unit is no discharge. Where nothing says when
    the last row there ended, it ended as the next place began, or with the stay.
    """
    order = np.lexsort((micros_of(moves["came"]), moves["stay"]))
    moves = moves.iloc[order].reset_index(drop=True)
    stay, where = _ints(moves["stay"]), placed(moves["where"])
    in_icu, in_ed = np.asarray(where == "icu"), np.asarray(where == "ed")
    came, went = micros_of(moves["came"]), micros_of(moves["went"])
    none = np.zeros(min(len(stay), 1), bool)
    goes_on = np.append(stay[1:] == stay[:-1], none)
    remains = np.append(in_icu[1:] & goes_on[:-1], none)
    moved_on = np.where(goes_on, np.append(came[1:], came[:1]), stays.end[stay])
    over = np.where(went == NAT, moved_on, went)
    leaves = in_icu & ~remains & (over < LATEST_US)
    opens = ~np.append(none, goes_on[:-1])
    count = len(stays.encounters)
    opening = np.full(count, -1, np.int64)
    last_first = np.flatnonzero(in_icu)[::-1]
    opening[stay[last_first]] = order[last_first]
    return Journey(
        first=_earliest(stay, came, np.ones(len(stay), bool), count),
        icu=_earliest(stay, came, in_icu, count),
        kind=_kinds(stay, in_icu, in_ed, count),
        opening=opening,
        _stays=stays,
        _moves=moves.assign(where=where, ends=np.where(leaves, over, NAT), arrives=opens & in_ed),
    )


def placed(words: Any) -> pd.Categorical[str]:
    """Places as a categorical of :data:`PLACES`: a byte a row, and the same type in every piece of a table."""
    return pd.Categorical(words, categories=pd.Index(PLACES, dtype="str"))


def marks(
    stays: Stays, stay: Ints, at: Ints, concept: str, source_id: pd.Series, where: Masks
) -> pd.DataFrame:
    """``WARDCAST//concept`` with value 1 at the rows of a mask, known as it happens."""
    time = since(at[where])
    return facts(
        stays, stay[where], time=time, available=time, code=f"WARDCAST//{concept}", value=1.0,
        source_id=source_id[where],
    )  # fmt: skip


def admissions(
    stays: Stays, admitted: Ints, ended: Ints, dead: Masks, source_id: pd.Series
) -> Iterator[pd.DataFrame]:
    """``hospital_admission``, ``hospital_discharge`` with the location ``left``, and ``death`` at it, piece by piece.

    ``admitted`` and ``ended`` are int64 microseconds by stay, ``events.NAT`` where unknown; ``dead`` says who died.
    """
    for first in range(0, len(admitted), ROWS // 4):
        some = slice(first, first + ROWS // 4)
        stay = np.arange(len(admitted))[some]
        begun, gone, source = admitted[some], ended[some], source_id.iloc[some]
        over = gone != NAT
        left_at = since(gone[over])
        left = facts(
            stays, stay[over], time=left_at, available=left_at, code="WARDCAST//location", text="left",
            source_id=source[over],
        )  # fmt: skip
        yield stacked(
            [
                marks(stays, stay, begun, "hospital_admission", source, begun != NAT),
                marks(stays, stay, gone, "hospital_discharge", source, over),
                marks(stays, stay, gone, "death", source, over & dead[some]),
                left,
            ]
        )


def _ints(column: pd.Series) -> Ints:
    return column.to_numpy(np.int64)


def _earliest(stay: Ints, at: Ints, mask: Masks, count: int) -> Ints:
    first = np.full(count, LATEST_US)
    np.minimum.at(first, stay[mask], at[mask])
    return np.where(first == LATEST_US, NAT, first)


def _kinds(stay: Ints, in_icu: Masks, in_ed: Masks, count: int) -> npt.NDArray[Any]:
    icu, elsewhere, anywhere = (np.zeros(count, bool) for _ in range(3))
    icu[stay[in_icu]] = True
    elsewhere[stay[~in_ed]] = True
    anywhere[stay] = True
    return np.select([icu, anywhere & ~elsewhere], ["icu", "ed"], "ward").astype(object)
