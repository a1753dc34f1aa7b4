"""The one way in: whatever its format, news about patients ends in :func:`receive`.

Nothing is dropped in silence. A fact that cannot be used (a code nobody mapped, a unit without a conversion, a value
that cannot be) is kept with its reason; a fact that must be wrong about who or when is refused, and the sender is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import numpy as np
import pandas as pd
from sqlalchemy import Connection

from features.clean import REMEDIES, clean
from features.concepts import loader
from serving.clock import to_us
from serving.schemas import EncounterIn, EventBody, EventsRequest
from serving.store import facts
from serving.store.tables import ENCOUNTER_FACTS, ENCOUNTER_TIMES

TOLERANCE: Final = timedelta(minutes=5)
"""How far the sender's clock may run ahead of ours."""
TOLERANCE_US: Final = TOLERANCE // timedelta(microseconds=1)
LATE_CLERK_US: Final = 24 * 3_600_000_000
"""How long after the ICU admission a hospital admission may be written down; PhysioNet 2019 has up to 23.99 h."""

Fault = tuple[str, str, str]
"""Reason code, field and remedy."""

AFTER: Final = ("after_prediction_time", "time", "Send what was known by then, or a later prediction_time.")
FUTURE: Final = (
    "future_time",
    "time",
    "Check the sender's clock and offset; nothing may lie more than 5 minutes ahead.",
)
DUPLICATE: Final = ("duplicate", "source_id", "Nothing to do; a different fact needs another source_id.")
UNKNOWN_ENCOUNTER: Final = (
    "unknown_encounter",
    "encounter_id",
    "Send the encounter first, or in the same call under `encounters`.",
)
OUT_OF_ORDER: Final = (
    "times_out_of_order",
    "discharge_time",
    "A patient leaves after arriving; check the dates, and send null for a time that is not known.",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one item.

    ``accepted`` with a reason: kept, but set aside from every score until the tables know better.
    """

    verdict: str
    reason: str | None = None
    field: str | None = None
    remedy: str | None = None

    def answer(self) -> dict[str, object]:
        """As the sender reads it."""
        used = self.verdict == "accepted" and self.reason is None
        said = {"reason": self.reason, "field": self.field, "remedy": self.remedy}
        return {"verdict": self.verdict, "used": used} | {k: v for k, v in said.items() if v is not None}


@dataclass(frozen=True, slots=True)
class Receipt:
    """One verdict an item, in the order sent, and the encounters about which something usable is new."""

    encounters: list[Verdict]
    events: list[Verdict]
    affected: list[str]


@dataclass(frozen=True, slots=True)
class Item:
    """One event as sent, its times in microseconds, with an identity of its own.

    ``content`` is what makes it the same fact when it is sent again; it serves as ``source_id`` where none was sent.
    ``named_by`` is the field that says what it is, ``code`` or ``concept``.
    """

    encounter_id: str
    code: str
    time: int
    available: int
    value: float | None
    text: str | None
    unit: str | None
    status: str
    source_id: str
    content: bytes
    named_by: str

    @classmethod
    def of(cls, event: EventBody, encounter_id: str, received: int) -> Item:
        """Read an event of the API; a concept is its own code.

        Where the sender does not say when it became available, its concept's declared policy does; but what was
        ``received`` (microseconds) was available.
        """
        named_by = "code" if event.code is not None else "concept"
        code = event.code if event.code is not None else f"WARDCAST//{event.concept}"
        time = to_us(event.time)
        stated = None if event.available_time is None else to_us(event.available_time)
        available = max(time, min(time + _policy_us(code), received)) if stated is None else stated
        content = facts.content_hash(
            (
                encounter_id,
                event.source_id,
                code,
                time,
                stated,
                event.value,
                event.text,
                event.unit,
                event.status,
            )
        )
        source_id = event.source_id or f"content:{content.hex()[:32]}"
        return cls(
            encounter_id,
            code,
            time,
            available,
            event.value,
            event.text,
            event.unit,
            event.status,
            source_id,
            content,
            named_by,
        )


@dataclass(frozen=True, slots=True)
class Sorted:
    """Items after cleaning: the usable ones and their positions, and for each item its fault, if any."""

    usable: pd.DataFrame
    position: list[int]
    faults: list[Fault | None]


def sort_out(items: Sequence[Item], subjects: Mapping[str, str]) -> Sorted:
    """Clean items, and say of each what is wrong with it. ``subjects``: the person of each encounter."""
    usable, account = clean(_table(items, subjects))
    faults: list[Fault | None] = [None] * len(items)
    aside = account.set_aside
    for position, reason in zip(aside["position"].tolist(), aside["reason"].tolist(), strict=True):
        faults[position] = _fault(reason, items[position])
    return Sorted(usable, [k for k, wrong in enumerate(faults) if wrong is None], faults)


def _table(items: Sequence[Item], subjects: Mapping[str, str]) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "subject_id": [subjects[i.encounter_id] for i in items],
        "encounter_id": [i.encounter_id for i in items],
        "time": facts.instants([i.time for i in items]),
        "available_time": facts.instants([i.available for i in items]),
        "code": [i.code for i in items],
        "concept": [None] * len(items),
        "numeric_value": np.array([np.nan if i.value is None else i.value for i in items], dtype=np.float64),
        "text_value": [i.text for i in items],
        "unit": [i.unit for i in items],
        "status": [i.status for i in items],
        "source_id": [i.source_id for i in items],
    }
    return pd.DataFrame(
        {k: pd.Series(v, dtype=object) if isinstance(v, list) else v for k, v in columns.items()}
    )


def _policy_us(code: str) -> int:
    """How long after its collection a fact of this code shows, microseconds; none for a code nobody mapped."""
    known = loader.codes().get(code)
    return int(loader.concepts()[known.concept].available_after_min * 60e6) if known else 0


def _fault(reason: str, item: Item) -> Fault:
    """Reason, field and remedy of an item that cleaning set aside."""
    field, _, remedy = REMEDIES[reason].partition(": ")
    if reason == "unknown_concept" and item.named_by == "concept":
        return (
            reason,
            "concept",
            "not a concept of ours. See concepts.csv, or send the source's code instead.",
        )
    if reason == "impossible_value":
        about = loader.concepts()[loader.codes()[item.code].concept]
        remedy += f" For {about.name} it is {about.low:g} to {about.high:g} {about.unit}."
    return reason, field, remedy


def receive(connection: Connection, news: EventsRequest, now: int) -> Receipt:
    """Write what is new about encounters and their events, in one transaction.

    Parameters
    ----------
    now : microseconds
        The service's clock; becomes the received time.
    """
    verdicts, changed, known = _receive_encounters(connection, news.encounters, now)
    event_verdicts, touched = _receive_events(connection, news, known, now)
    return Receipt(verdicts, event_verdicts, sorted(changed | touched))


def _receive_encounters(
    connection: Connection, sent: Sequence[EncounterIn], now: int
) -> tuple[list[Verdict], set[str], dict[str, dict[str, Any]]]:
    faults = _encounter_faults(connection, sent, now)
    good = [e for e, wrong in zip(sent, faults, strict=True) if wrong is None]
    fresh, known = facts.add_encounters(
        connection, [(e.encounter_id, e.subject_id, told(e)) for e in good], now
    )
    said = iter(fresh)
    verdicts: list[Verdict] = []
    for wrong in faults:
        if wrong is not None:
            verdicts.append(Verdict("rejected", *wrong))
        else:
            verdicts.append(Verdict("accepted") if next(said) else Verdict("duplicate"))
    changed = {e.encounter_id for e, new in zip(good, fresh, strict=True) if new}
    return verdicts, changed, known


def told(encounter: EncounterIn) -> dict[str, Any]:
    """The facts an encounter states, times as microseconds; what it leaves out is not in here."""
    stated = {
        name: getattr(encounter, name) for name in ENCOUNTER_FACTS if name in encounter.model_fields_set
    }
    return {k: to_us(v) if k in ENCOUNTER_TIMES and v is not None else v for k, v in stated.items()}


def times_ahead(facts_told: Mapping[str, Any], when: int) -> list[str]:
    """The times of an encounter that lie after a moment.

    A hospital admission written down within a day after that to intensive care (clerks do; hospital A of PhysioNet
    2019 has 212) is no view of the future: it is a fact of the ICU admission. One that is later still is none.
    """
    late = [
        name for name in ENCOUNTER_TIMES if (stated := facts_told.get(name)) is not None and stated > when
    ]
    icu, hospital = (facts_told.get(name) for name in ("icu_admission_time", "hospital_admission_time"))
    if icu is not None and hospital is not None and icu <= when and hospital <= icu + LATE_CLERK_US:
        late = [name for name in late if name != "hospital_admission_time"]
    return late


def left_before_arriving(facts_told: Mapping[str, Any]) -> bool:
    """Whether the discharge lies before another time of the encounter."""
    left = facts_told.get("discharge_time")
    return left is not None and any((facts_told.get(name) or left) > left for name in ENCOUNTER_TIMES)


def _encounter_faults(connection: Connection, sent: Sequence[EncounterIn], now: int) -> list[Fault | None]:
    """What is wrong with each encounter, seen together with what was known and what came before it in the call."""
    known = facts.latest(connection, {e.encounter_id for e in sent})
    faults: list[Fault | None] = []
    for encounter in sent:
        said = told(encounter)
        merged = known.get(encounter.encounter_id, {}) | said
        faults.append(_encounter_fault(merged, set(said), now))
        if faults[-1] is None:
            known[encounter.encounter_id] = merged
    return faults


def _encounter_fault(merged: Mapping[str, Any], said: set[str], now: int) -> Fault | None:
    ahead = [name for name in times_ahead(merged, now + TOLERANCE_US) if name in said]
    if ahead:
        return FUTURE[0], ahead[0], FUTURE[2]
    if said & set(ENCOUNTER_TIMES) and left_before_arriving(merged):
        return OUT_OF_ORDER
    return None


def _receive_events(
    connection: Connection, news: EventsRequest, known: dict[str, dict[str, Any]], now: int
) -> tuple[list[Verdict], set[str]]:
    known = known | facts.latest(connection, {e.encounter_id for e in news.events} - set(known))
    items = [Item.of(event, event.encounter_id, now) for event in news.events]
    refused = [_refusal(item, item.encounter_id in known, now) for item in items]
    taken = [item for item, wrong in zip(items, refused, strict=True) if wrong is None]
    subjects = {who: about["subject_id"] for who, about in known.items()}
    judged = sort_out(taken, subjects)
    fresh = facts.add_events(connection, _rows(taken, judged, subjects, now))
    outcome = list(zip(taken, fresh, judged.faults, strict=True))
    touched = {item.encounter_id for item, is_new, wrong in outcome if is_new and wrong is None}
    verdicts = iter(outcome)
    return [
        Verdict("rejected", *wrong) if wrong else _kept(*next(verdicts)[1:]) for wrong in refused
    ], touched


def _refusal(item: Item, encounter_known: bool, now: int) -> Fault | None:
    if not encounter_known:
        return UNKNOWN_ENCOUNTER
    for field, when in (("time", item.time), ("available_time", item.available)):
        if when > now + TOLERANCE_US:
            return FUTURE[0], field, FUTURE[2]
    return None


def _kept(is_new: bool, wrong: Fault | None) -> Verdict:
    if not is_new:
        return Verdict("duplicate")
    return Verdict("accepted", *wrong) if wrong else Verdict("accepted")


def _rows(
    items: Sequence[Item], judged: Sorted, subjects: Mapping[str, str], now: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "encounter_id": item.encounter_id,
            "subject_id": subjects[item.encounter_id],
            "time": item.time,
            "available_time": item.available,
            "received_time": now,
            "code": item.code,
            "raw_value": item.value,
            "raw_text": item.text,
            "raw_unit": item.unit,
            "status": item.status,
            "source_id": item.source_id,
            "content_hash": item.content,
            "concept": None,
            "numeric_value": None,
            "unit": None,
            "reason": wrong[0] if wrong else None,
        }
        for item, wrong in zip(items, judged.faults, strict=True)
    ]
    usable = judged.usable
    cleaned = zip(usable["concept"], usable["numeric_value"].tolist(), usable["unit"], strict=True)
    for position, (concept, value, unit) in zip(judged.position, cleaned, strict=True):
        value = None if math.isnan(value) else value
        rows[position] |= {"concept": concept, "numeric_value": value, "unit": unit}
    return rows
