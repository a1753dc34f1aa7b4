"""The one way in: whatever its format, news about patients ends in :func:`receive`.

Nothing is dropped in silence. A fact that cannot be used (a code nobody mapped, a unit without a conversion, a value
that cannot be) is kept with its reason; a fact that must be wrong about who or when is refused, and the sender is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import lru_cache
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
"""How long after the ICU admission a hospital admission may be written down; PhysioNet 2019 has up to 22.04 h."""

NEVER: Final = -(2**63)
REVISIONS: Final = ("corrected", "deleted")

Fault = tuple[str, str, str]
"""Reason code, field and remedy."""

AFTER: Final = ("after_prediction_time", "time", "Send what was known by then, or a later prediction_time.")
FUTURE: Final = (
    "future_time",
    "time",
    "Check the sender's clock and offset; nothing may lie more than 5 minutes ahead.",
)
DUPLICATE: Final = ("duplicate", "source_id", "Nothing to do; a different fact needs another source_id.")
REVISED: Final = (
    "It takes the place of what was sent before with this source_id; a different fact needs another."
)
WITHDRAWN: Final = " What was sent before with this source_id is no longer used."
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

    ``accepted`` with a reason: kept, but set aside from every score until the tables know better. ``revised``: used, in
    place of an earlier fact of the same identity, though it did not say that it corrects one.
    """

    verdict: str
    reason: str | None = None
    field: str | None = None
    remedy: str | None = None
    revised: bool = False

    def answer(self) -> dict[str, object]:
        """As the sender reads it."""
        used = self.verdict == "accepted" and self.reason is None
        said = {"reason": self.reason, "field": self.field, "remedy": self.remedy}
        if self.revised:
            said = {"reason": "revised", "remedy": REVISED}
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
    ``named_by`` is the field that says what it is, ``code`` or ``concept``; ``identified``, whether the sender gave a
    ``source_id``; ``dated``, whether the sender said when it became available.
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
    identified: bool
    dated: bool
    concept: str | None = None
    """What the reader of the source takes it for, where the code itself is in no table."""

    @classmethod
    def of(cls, event: EventBody, encounter_id: str, received: int) -> Item:
        """Read an event of the API; a concept is its own code."""
        named_by = "code" if event.code is not None else "concept"
        code = event.code.strip() if event.code is not None else f"WARDCAST//{event.concept}"
        stated = None if event.available_time is None else to_us(event.available_time)
        said = (event.value, event.text, event.unit, event.status)
        about = (encounter_id, code, to_us(event.time), stated)
        return cls.told(about, said, event.source_id, received, named_by=named_by)

    @classmethod
    def told(
        cls,
        about: tuple[str, str, int, int | None],
        said: tuple[float | None, str | None, str | None, str],
        source_id: str | None,
        received: int,
        *,
        named_by: str = "code",
        concept: str | None = None,
    ) -> Item:
        """An event that says of an (encounter, code, time, available time) a (value, text, unit, status).

        Where the sender does not say when it became available, its concept's declared policy does; but what was
        ``received`` (microseconds) was available. A correction or deletion has no delay: :func:`revise` dates it.
        """
        encounter_id, code, time, stated = about
        value, text, unit, status = said
        delay = 0 if status in REVISIONS else policy_us(code, concept)
        available = max(time, min(time + delay, received)) if stated is None else stated
        parts = (encounter_id, source_id, code, time, stated, value, text, unit, status)
        content = facts.content_hash(parts, time)
        own = source_id or f"content:{content.hex()[:32]}"
        identified, dated = source_id is not None, stated is not None
        return cls(
            encounter_id, code, time, available, value, text, unit, status, own, content,
            named_by, identified, dated, concept,
        )  # fmt: skip


@dataclass(slots=True)
class Story:
    """What was told so far of one fact (a ``source_id`` of an encounter): what stands, and what comes after it.

    Attributes
    ----------
    said : hashes of the reports, so that a repetition is no news
    last : status of the newest usable report, by concept
    after : a revision without a date of its own is not available before this (microseconds)
    """

    said: set[bytes] = field(default_factory=set)
    last: dict[str, str] = field(default_factory=dict)
    after: int = NEVER
    after_undated: int = NEVER

    @property
    def standing(self) -> list[str]:
        """The concepts under which the fact stands."""
        return [concept for concept, status in self.last.items() if status != "deleted"]

    def tell(self, concept: str, status: str, available: int, dated: bool) -> None:
        """Add a usable report."""
        self.last[concept] = status
        if status in REVISIONS:
            self.after = max(self.after, available)
            self.after_undated = self.after_undated if dated else max(self.after_undated, available)


Stories = dict[tuple[str, str], Story]
"""By encounter and source_id."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """The earlier report of a fact is disproved by an item, at ``position``, that cannot stand in its place."""

    position: int
    concept: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be kept: an item, dated and marked as the revision it is, or the deletion that its fault calls for."""

    position: int
    item: Item
    fault: Fault | None
    withdrawal: bool = False


@dataclass(frozen=True, slots=True)
class Sorted:
    """Items after cleaning: what can be used, and for each item its fault, if any.

    ``entries`` come in the order of the items, a withdrawal right after the item that disproves; those without a fault
    are the rows of ``usable``. ``revised``: the positions of corrections that did not say so themselves.
    """

    usable: pd.DataFrame
    faults: list[Fault | None]
    entries: list[Entry]
    revised: set[int]


def sort_out(
    items: Sequence[Item],
    subjects: Mapping[str, str],
    stories: Stories | None = None,
    received: int | None = None,
) -> Sorted:
    """Clean items, say of each what is wrong with it, and what it does to earlier reports of the same fact.

    Parameters
    ----------
    subjects : the person of each encounter
    stories : what was told before; nothing where the items are all there is
    received : microseconds, optional
        A revision that does not say when it became available did so then; without it, when what it revises did.
    """
    usable, account = clean(_table(items, subjects))
    faults: list[Fault | None] = [None] * len(items)
    aside = account.set_aside
    for position, reason in zip(aside["position"].tolist(), aside["reason"].tolist(), strict=True):
        faults[position] = fault_of(reason, items[position])
    position = [k for k, wrong in enumerate(faults) if wrong is None]
    concepts = [_concept(item) or item.concept for item in items]
    for k, concept in zip(position, usable["concept"].tolist(), strict=True):
        concepts[k] = concept
    told, revised, gone = revise(items, concepts, faults, stories or {}, received)
    at = {k: told[k] for k in position}
    if any(at[k] is not items[k] for k in position):
        available = facts.instants([item.available for item in at.values()])
        usable = usable.assign(available_time=available, status=[item.status for item in at.values()])
    entries = [Entry(k, item, faults[k]) for k, item in enumerate(told)]
    if gone:
        withdrawn = [_end(told[w.position], w.concept) for w in gone]
        ends, _ = clean(_table(withdrawn, subjects))
        entries += [Entry(w.position, end, None, True) for w, end in zip(gone, withdrawn, strict=True)]
        place = np.argsort(position + [w.position for w in gone], kind="stable")
        parts = [part.astype({"concept": object, "unit": object}) for part in (usable, ends)]
        usable = pd.concat([p for p in parts if len(p)], ignore_index=True).take(place).reset_index(drop=True)
        entries.sort(key=lambda entry: entry.position)
    return Sorted(usable, faults, entries, revised)


def revise(
    items: Sequence[Item],
    concepts: Sequence[str | None],
    faults: Sequence[Fault | None],
    stories: Stories,
    received: int | None,
) -> tuple[list[Item], set[int], list[Withdrawal]]:
    """Read the items one after the other: of the reports of one fact, the one received last stands.

    A correction or deletion revises what stands under its own concept, or, where nothing does, all that stands under
    its ``source_id``. What stands is withdrawn when its correction names another concept or cannot be used. A further
    final report is a correction too; only the first one after a preliminary report needs no mark.

    Returns
    -------
    items, dated and marked; the positions of unmarked corrections; the withdrawals.
    """
    told, revised, gone = list(items), set[int](), list[Withdrawal]()
    for k, item in enumerate(items):
        if not item.identified:
            continue
        story = stories.setdefault((item.encounter_id, item.source_id), Story())
        if item.content in story.said:
            continue
        story.said.add(item.content)
        concept, usable = concepts[k], faults[k] is None
        before = story.last.get(concept or "")
        if item.status not in REVISIONS and before is None:
            revises = False
        else:
            revises = item.status in REVISIONS or before != "preliminary"
            item = _dated(item, story, received)
        if usable and revises and item.status not in REVISIONS:
            item = replace(item, status="corrected")
            revised.add(k)
        told[k] = item
        disproved = (
            [concept] if concept in story.standing else story.standing if item.status in REVISIONS else []
        )
        for other in disproved if not usable or concept not in disproved else []:
            gone.append(Withdrawal(k, str(other)))
            story.tell(str(other), "deleted", item.available, item.dated)
        if usable:
            story.tell(str(concept), item.status, item.available, item.dated)
    return told, revised, gone


def _dated(item: Item, story: Story, received: int | None) -> Item:
    """A revision is available when it was received, or as it says; never before an undated one that it follows."""
    if item.dated:
        return replace(item, available=max(item.available, story.after_undated))
    return replace(item, available=max(item.available, story.after, NEVER if received is None else received))


def _end(item: Item, concept: str) -> Item:
    """The deletion that withdraws what an item disproves."""
    content = facts.content_hash((item.content, concept, "withdrawn"), item.time)
    code = f"WARDCAST//{concept}"
    return replace(item, code=code, value=None, text=None, unit=None, status="deleted", content=content)


def _concept(item: Item) -> str | None:
    known = loader.codes().get(item.code)
    return known.concept if known else None


def _table(items: Sequence[Item], subjects: Mapping[str, str]) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "subject_id": [subjects[i.encounter_id] for i in items],
        "encounter_id": [i.encounter_id for i in items],
        "time": facts.instants([i.time for i in items]),
        "available_time": facts.instants([i.available for i in items]),
        "code": [i.code for i in items],
        "concept": [i.concept for i in items],
        "numeric_value": np.array([np.nan if i.value is None else i.value for i in items], dtype=np.float64),
        "text_value": [i.text for i in items],
        "unit": [i.unit for i in items],
        "status": [i.status for i in items],
        "source_id": [i.source_id for i in items],
    }
    return pd.DataFrame(
        {k: pd.Series(v, dtype=object) if isinstance(v, list) else v for k, v in columns.items()}
    )


@lru_cache(maxsize=4096)
def policy_us(code: str, concept: str | None = None) -> int:
    """How long after its collection a fact of this code shows, microseconds; none for a code nobody mapped."""
    known = loader.codes().get(code)
    about = loader.concepts().get(known.concept if known else concept or "")
    return int(about.available_after_min * 60e6) if about else 0


def fault_of(reason: str, item: Item) -> Fault:
    """Reason, field and remedy of an item that cleaning set aside."""
    field, _, remedy = REMEDIES[reason].partition(": ")
    if reason == "unknown_concept" and item.named_by == "concept":
        return (
            reason,
            "concept",
            "not a concept of ours. See concepts.csv, or send the source's code instead.",
        )
    if reason == "impossible_value":
        about = loader.concepts()[_concept(item) or item.concept or ""]
        remedy += f" For {about.name} it is {about.low:g} to {about.high:g} {about.unit}."
    return reason, field, remedy


def receive(connection: Connection, news: EventsRequest, now: int) -> Receipt:
    """Write what is new about encounters and their events, in one transaction.

    Parameters
    ----------
    now : microseconds
        The service's clock; becomes the received time.
    """
    items = [Item.of(event, event.encounter_id, now) for event in news.events]
    return take_in(connection, news.encounters, items, now)


def take_in(
    connection: Connection, encounters: Sequence[EncounterIn], items: Sequence[Item], now: int
) -> Receipt:
    """:func:`receive`, of events that were read from another format."""
    verdicts, changed, known = _receive_encounters(connection, encounters, now)
    event_verdicts, touched = _receive_events(connection, items, known, now)
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
    connection: Connection, items: Sequence[Item], known: dict[str, dict[str, Any]], now: int
) -> tuple[list[Verdict], set[str]]:
    known = known | facts.latest(connection, {item.encounter_id for item in items} - set(known))
    refused = [_refusal(item, item.encounter_id in known, now) for item in items]
    taken = [item for item, wrong in zip(items, refused, strict=True) if wrong is None]
    subjects = {who: about["subject_id"] for who, about in known.items()}
    judged = sort_out(taken, subjects, _stories(connection, taken), now)
    added = facts.add_events(connection, _rows(judged, subjects, now))
    fresh = [new for new, entry in zip(added, judged.entries, strict=True) if not entry.withdrawal]
    gone = {entry.position for entry in judged.entries if entry.withdrawal}
    outcome = list(enumerate(zip(fresh, judged.faults, strict=True)))
    touched = {taken[k].encounter_id for k, (new, wrong) in outcome if new and (wrong is None or k in gone)}
    kept = iter([_kept(new, wrong, k in judged.revised, k in gone) for k, (new, wrong) in outcome])
    return [Verdict("rejected", *wrong) if wrong else next(kept) for wrong in refused], touched


def _stories(connection: Connection, items: Sequence[Item]) -> Stories:
    """What the store knows of the facts that the items are about."""
    named = dict.fromkeys((item.encounter_id, item.source_id) for item in items if item.identified)
    stories: Stories = {}
    for r in facts.reports(connection, named):
        story = stories.setdefault((r.encounter_id, r.source_id), Story())
        story.said.add(bytes(r.content_hash))
        if r.reason is None:
            story.tell(r.concept, r.status, r.available_time, r.dated)
    return stories


def _refusal(item: Item, encounter_known: bool, now: int) -> Fault | None:
    if not encounter_known:
        return UNKNOWN_ENCOUNTER
    for name, when in (("time", item.time), ("available_time", item.available)):
        if when > now + TOLERANCE_US:
            return FUTURE[0], name, FUTURE[2]
    return None


def _kept(is_new: bool, wrong: Fault | None, revised: bool, withdrew: bool) -> Verdict:
    if not is_new:
        return Verdict("duplicate")
    if wrong:
        reason, about, remedy = wrong
        return Verdict("accepted", reason, about, remedy + WITHDRAWN if withdrew else remedy)
    return Verdict("accepted", revised=revised)


def _rows(judged: Sorted, subjects: Mapping[str, str], now: int) -> list[dict[str, Any]]:
    """Rows of the event table, one an entry."""
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
            "dated": item.dated,
            "content_hash": item.content,
            "concept": None,
            "numeric_value": None,
            "unit": None,
            "reason": wrong[0] if wrong else None,
        }
        for item, wrong in ((entry.item, entry.fault) for entry in judged.entries)
    ]
    usable = judged.usable
    cleaned = zip(usable["concept"], usable["numeric_value"].tolist(), usable["unit"], strict=True)
    places = [k for k, entry in enumerate(judged.entries) if entry.fault is None]
    for position, (concept, value, unit) in zip(places, cleaned, strict=True):
        value = None if math.isnan(value) else value
        rows[position] |= {"concept": concept, "numeric_value": value, "unit": unit}
    return rows
