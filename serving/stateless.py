"""From a request that tells of a patient to arrays that can be scored: all that is known comes with the request.

Most events are final reports, each of a fact of its own: they are read one by one, without a table. Reports that revise
one another, and models that judge whole instants, take the road of the store (:func:`serving.ingest.events.sort_out`);
both give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clean import clean_numbers, clean_one, contradictions
from features.concepts import loader
from features.featureset import FeatureSet
from serving.answers import Refusal
from serving.clock import to_us
from serving.ingest.events import (
    AFTER,
    DUPLICATE,
    FUTURE,
    OUT_OF_ORDER,
    TOLERANCE_US,
    Fault,
    Item,
    fault_of,
    left_before_arriving,
    policy_us,
    sort_out,
    times_ahead,
    told,
)
from serving.schemas import EncounterIn, EventBody, ScoreRequest
from serving.scoring import Codes, Ints, Readings


@dataclass(frozen=True, slots=True)
class Asked:
    """One patient to score: who, when (microseconds), from what, and what had to be left out by position."""

    encounter: dict[str, Any]
    when: int
    readings: Readings
    ignored: Mapping[int, Fault]


def understand(asked: ScoreRequest, features: FeatureSet, now: int, wall: int) -> Asked:
    """Read a request as it came at ``now``, the service's clock, and ``wall``, the machine's.

    Raises
    ------
    Refusal
        The prediction time lies in the future, or the patient left before arriving.
    """
    when = moment(None if asked.prediction_time is None else to_us(asked.prediction_time), now, wall)
    encounter = encounter_of(asked.encounter, now)
    ignored, readings = _sifted(encounter, asked.events, when, now, features)
    return Asked(encounter, when, readings, ignored)


def moment(asked: int | None, now: int, wall: int) -> int:
    """The prediction time that was asked for, in microseconds.

    Raises
    ------
    Refusal
        It lies in the future.
    """
    when = now if asked is None else asked
    if when > max(wall, now) + TOLERANCE_US:
        raise Refusal(
            422,
            "future_time",
            "prediction_time lies in the future.",
            "Leave it out to score now, or send a past instant.",
        )
    return when


def encounter_of(about: EncounterIn, now: int) -> dict[str, Any]:
    """What the request says of the encounter, as the store would keep it.

    Raises
    ------
    Refusal
        The discharge lies before another time.
    """
    who = {"encounter_id": about.encounter_id, "subject_id": about.subject_id or about.encounter_id}
    encounter = who | {"received_time": now} | told(about)
    if left_before_arriving(encounter):
        reason, field, remedy = OUT_OF_ORDER
        raise Refusal(422, reason, f"encounter.{field} lies before another time of the encounter.", remedy)
    return encounter


def left_out(asked: Asked) -> list[dict[str, Any]]:
    """What was not read of a request, as its sender is told."""
    late = times_ahead(asked.encounter, asked.when)
    about = [{"field": f"encounter.{name}", "reason": AFTER[0], "remedy": AFTER[2]} for name in late]
    return about + [
        {"field": f"events[{k}].{field}", "reason": reason, "remedy": remedy}
        for k, (reason, field, remedy) in sorted(asked.ignored.items())
    ]


def join(asked: Sequence[Asked]) -> Readings:
    """The readings of several patients as one, each patient's place among them as its encounter."""
    if len(asked) == 1:
        return asked[0].readings
    parts = [a.readings for a in asked]
    starts = np.cumsum([0, *(p.concept.size for p in parts)])

    def sources(rows: Ints) -> pd.Series:
        owner = np.searchsorted(starts, rows, side="right") - 1
        named = np.full(rows.size, "", dtype=object)
        for k in np.unique(owner).tolist():
            mine, known = owner == k, parts[k].sources
            named[mine] = known(rows[mine] - starts[k]).tolist() if known else ""
        return pd.Series(named, dtype="str")

    states = [p.status if p.status is not None else pd.Series("final", range(p.concept.size)) for p in parts]
    final = all(p.status is None for p in parts)
    return Readings(
        np.repeat(np.arange(len(parts), dtype=np.int32), np.diff(starts)),
        np.concatenate([p.concept for p in parts]),
        np.concatenate([p.time for p in parts]),
        np.concatenate([p.available for p in parts]),
        np.concatenate([p.value for p in parts]),
        sources,
        None if final else pd.concat(states, ignore_index=True),
    )


def _sifted(
    encounter: dict[str, Any], events: Sequence[EventBody], when: int, now: int, features: FeatureSet
) -> tuple[dict[int, Fault], Readings]:
    """The faults by position, and the events that can be used."""
    who = encounter["encounter_id"]
    if not features.judge and _stand_alone(events):
        return _one_by_one(who, events, when, now, features.concepts)
    ignored, taken = _usable(who, events, when, now)
    judged = sort_out(list(taken.values()), {who: encounter["subject_id"]})
    faults = {k: wrong for k, wrong in zip(taken, judged.faults, strict=True) if wrong}
    usable = contradictions(judged.usable)[0] if features.judge else judged.usable
    return ignored | faults, Readings.of(usable, pd.Index([who], dtype=object), features.concepts)


def _stand_alone(events: Sequence[EventBody]) -> bool:
    """Whether all are final reports, and no two of one fact."""
    named = [e.source_id for e in events if e.source_id is not None]
    return len(named) == len(set(named)) and all(e.status == "final" for e in events)


def _late(time: int, available: int, when: int, now: int) -> Fault | None:
    """What keeps an event from a prediction made at ``when``."""
    if time <= when and available <= when:
        return None
    field, stated = ("time", time) if time > when else ("available_time", available)
    reason = FUTURE if stated > now + TOLERANCE_US else AFTER
    return reason[0], field, reason[2]


def _one_by_one(
    encounter_id: str, events: Sequence[EventBody], when: int, now: int, concepts: tuple[str, ...]
) -> tuple[dict[int, Fault], Readings]:
    """As :func:`_usable` and :func:`sort_out` of events that stand alone, as columns; what is odd, one at a time."""
    kinds, kind, time, available = _dated(events, now)
    late = (time > when) | (available > when)
    ignored = {
        k: fault
        for k in np.flatnonzero(late).tolist()
        if (fault := _late(int(time[k]), int(available[k]), when, now)) is not None
    }
    ignored |= dict.fromkeys(_again(events, kinds, kind, time, late), DUPLICATE)
    raw = np.array([e.value for e in events], dtype=np.float64)
    concept, value, plain = clean_numbers(kinds, kind, raw)
    for k in np.flatnonzero(~plain).tolist():
        code, unit = kinds[int(kind[k])]
        concept[k], value[k], reason = clean_one(code, unit, events[k].value, events[k].text)
        if reason is not None and k not in ignored:
            ignored[k] = fault_of(reason, Item.of(events[k], encounter_id, now))
    read = columns_of(concepts)[concept]
    wanted = read >= 0
    wanted[list(ignored)] = False
    at = np.flatnonzero(wanted)

    def sources(some: Ints) -> pd.Series:
        named = [Item.of(events[k], encounter_id, now).source_id for k in at[some].tolist()]
        return pd.Series(named, dtype="str")

    nobody = np.zeros(at.size, dtype=np.int32)
    return ignored, Readings(nobody, read[at], time[at], available[at], value[at], sources)


def _dated(events: Sequence[EventBody], now: int) -> tuple[list[tuple[str, str]], Ints, Ints, Ints]:
    """The kinds of event there are (code and unit), which each is, when it happened and when it could be seen."""
    found: dict[tuple[str | None, str | None, str | None], int] = {}
    kind = [found.setdefault((e.code, e.concept, e.unit), len(found)) for e in events]
    kinds = [(f"WARDCAST//{c}" if code is None else code.strip(), unit or "") for code, c, unit in found]
    place = np.array(kind, dtype=np.int64)
    time = np.array([to_us(e.time) for e in events], dtype=np.int64)
    delay = np.array([policy_us(code) for code, _ in kinds], dtype=np.int64)[place]
    available = np.maximum(time, np.minimum(time + delay, now))
    for k, event in enumerate(events):
        if event.available_time is not None:
            available[k] = to_us(event.available_time)
    return kinds, place, time, available


def _again(
    events: Sequence[EventBody],
    kinds: Sequence[tuple[str, str]],
    kind: Ints,
    time: Ints,
    late: npt.NDArray[np.bool_],
) -> list[int]:
    """Which events say over again what one before said, of those that are not late."""
    codes = [kinds[k][0] for k in kind.tolist()]
    about = list(zip(codes, time.tolist(), strict=True))
    if len(set(about)) == len(about):
        return []
    seen: set[tuple[object, ...]] = set()
    again = []
    for k, event in enumerate(events):
        # The number as text: a zero and a negative zero are told apart, as the store tells them.
        said = (event.source_id, event.available_time, repr(event.value), event.text, event.unit)
        if late[k]:
            continue
        if (*about[k], *said) in seen:
            again.append(k)
        seen.add((*about[k], *said))
    return again


@lru_cache(maxsize=64)
def columns_of(concepts: tuple[str, ...]) -> Codes:
    """For each concept of the tables, its place among those that features read; -1 where they do not, and at the end
    for what is no concept."""
    known = {c: k for k, c in enumerate(concepts)}
    return np.array([*(known.get(c, -1) for c in loader.concepts()), -1], dtype=np.int32)


def _usable(
    encounter_id: str, events: Sequence[EventBody], when: int, now: int
) -> tuple[dict[int, Fault], dict[int, Item]]:
    """Leave out what lies after the prediction, and repetitions; by position, the faults and the rest."""
    ignored: dict[int, Fault] = {}
    taken: dict[int, Item] = {}
    seen: set[bytes] = set()
    for k, event in enumerate(events):
        item = Item.of(event, encounter_id, now)
        late = _late(item.time, item.available, when, now)
        if late is not None:
            ignored[k] = late
        elif item.content in seen:
            ignored[k] = DUPLICATE
        else:
            taken[k] = item
            seen.add(item.content)
    return ignored, taken
