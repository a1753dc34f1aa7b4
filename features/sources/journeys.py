"""Where patients were, from tables of moves: locations, arrivals by emergency, ends of intensive care."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.events import NAT
from features.sources.stays import LATEST_US, Ints, Masks, Stays, facts, micros_of, since, stacked


@dataclass(frozen=True)
class Journey:
    """What the moves of all stays say.

    Attributes
    ----------
    events : DataFrame of ``WARDCAST//location``, ``icu_discharge`` and ``ed_arrival``
    first, icu : int64 microseconds, shape (n_stays,)
        First time anywhere and first time in intensive care; ``events.NAT`` where never.
    kind : object array, shape (n_stays,)
        ``icu`` (ever there), ``ed`` (nowhere else) or ``ward``.
    opening : int64, shape (n_stays,)
        Which row of ``moves`` was the first in intensive care, -1 where none.
    """

    events: pd.DataFrame
    first: Ints
    icu: Ints
    kind: npt.NDArray[Any]
    opening: Ints


def follow(stays: Stays, moves: pd.DataFrame) -> Journey:
    """Follow patients from place to place.

    Parameters
    ----------
    moves : DataFrame, rows in any order
        ``stay`` (its place in ``stays``), ``came``, ``went`` (``datetime64[us, UTC]``; ``went`` may be missing),
        ``where`` (ed, ward, icu, stepdown, procedural, l&d or other) and ``source_id``.

    Notes
    -----
    Intensive care ends when the next place is another one: from unit to unit is no discharge. Where nothing says when
    the last row there ended, it ended with the stay.
    """
    order = np.lexsort((moves["source_id"].to_numpy(object), micros_of(moves["came"]), moves["stay"]))
    moves = moves.iloc[order].reset_index(drop=True)
    stay, where = moves["stay"].to_numpy(np.int64), moves["where"].to_numpy(object)
    came, went = micros_of(moves["came"]), micros_of(moves["went"])
    goes_on = np.append(stay[1:] == stay[:-1], np.zeros(min(len(stay), 1), bool))
    opens = np.ones(len(stay), bool)
    opens[1:] = ~goes_on[:-1]
    stays_in_icu = np.append((where[1:] == "icu") & goes_on[:-1], np.zeros(min(len(stay), 1), bool))
    ends = np.where(went == NAT, stays.end[stay], went)
    leaves = (where == "icu") & ~stays_in_icu & (ends < LATEST_US)
    located = facts(
        stays, stay, time=moves["came"], available=moves["came"], code="WARDCAST//location", text=where,
        source_id=moves["source_id"],
    )  # fmt: skip
    parts = [
        located,
        marks(stays, stay, ends, "icu_discharge", moves["source_id"], leaves),
        marks(stays, stay, came, "ed_arrival", moves["source_id"], opens & (where == "ed")),
    ]
    count = len(stays.encounters)
    opening = np.full(count, -1, np.int64)
    in_icu = np.flatnonzero(where == "icu")[::-1]
    opening[stay[in_icu]] = order[in_icu]
    return Journey(
        stacked(parts),
        first=_earliest(stay, came, np.ones(len(stay), bool), count),
        icu=_earliest(stay, came, where == "icu", count),
        kind=_kinds(stay, where, count),
        opening=opening,
    )


def marks(
    stays: Stays, stay: Ints, at: Ints, concept: str, source_id: pd.Series, where: Masks
) -> pd.DataFrame:
    """``WARDCAST//concept`` with value 1 at the rows of a mask, known as it happens."""
    time = since(at[where])
    return facts(
        stays, stay[where], time=time, available=time, code=f"WARDCAST//{concept}", value=1.0,
        source_id=source_id[where],
    )  # fmt: skip


def admissions(stays: Stays, admitted: Ints, ended: Ints, source_id: pd.Series) -> pd.DataFrame:
    """``hospital_admission``, ``hospital_discharge`` and the location ``left``, each where its time is known.

    ``admitted`` and ``ended`` are int64 microseconds by stay, ``events.NAT`` where unknown.
    """
    every, over = np.arange(len(admitted)), ended != NAT
    gone = since(ended[over])
    left = facts(
        stays, every[over], time=gone, available=gone, code="WARDCAST//location", text="left",
        source_id=source_id[over],
    )  # fmt: skip
    return stacked(
        [
            marks(stays, every, admitted, "hospital_admission", source_id, admitted != NAT),
            marks(stays, every, ended, "hospital_discharge", source_id, over),
            left,
        ]
    )


def _earliest(stay: Ints, at: Ints, mask: Masks, count: int) -> Ints:
    first = np.full(count, LATEST_US)
    np.minimum.at(first, stay[mask], at[mask])
    return np.where(first == LATEST_US, NAT, first)


def _kinds(stay: Ints, where: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    icu, elsewhere, anywhere = (np.zeros(count, bool) for _ in range(3))
    icu[stay[where == "icu"]] = True
    elsewhere[stay[where != "ed"]] = True
    anywhere[stay] = True
    return np.select([icu, anywhere & ~elsewhere], ["icu", "ed"], "ward").astype(object)
