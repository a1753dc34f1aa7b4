"""The one way in: whatever its format, news about patients ends in :func:`receive`.

Nothing is dropped in silence. A fact that cannot be used (a code nobody mapped, a unit without a conversion, a value
that cannot be) is kept with its reason; a fact that must be wrong about who or when is refused, and the sender is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
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
class Sorted:
    """Events after cleaning: the usable ones, and for each item as sent its fault, if any."""

    usable: pd.DataFrame
    position: npt.NDArray[np.int64]
    faults: list[tuple[str, str, str] | None]


def source_code(event: EventBody) -> str:
    """The code an event goes by; a concept is its own code."""
    return event.code if event.code is not None else f"WARDCAST//{event.concept}"


def fingerprint(encounter_id: str, event: EventBody) -> bytes:
    """The same content from the same source is the same fact."""
    available = event.available_time or event.time
    return facts.content_hash(
        (
            encounter_id,
            event.source_id,
            source_code(event),
            to_us(event.time),
            to_us(available),
            event.value,
            event.text,
            event.unit,
            event.status,
        )
    )


def tabulate(
    events: Sequence[EventBody], who: Sequence[tuple[str, str]], hashes: Sequence[bytes]
) -> pd.DataFrame:
    """Events as sent, as a canonical table. ``who``: (subject_id, encounter_id) of each."""
    return pd.DataFrame(
        {
            "subject_id": _texts([s for s, _ in who]),
            "encounter_id": _texts([e for _, e in who]),
            "time": facts.instants([to_us(e.time) for e in events]),
            "available_time": facts.instants([to_us(e.available_time or e.time) for e in events]),
            "code": _texts([source_code(e) for e in events]),
            "concept": _texts([None] * len(events)),
            "numeric_value": np.array(
                [np.nan if e.value is None else e.value for e in events], dtype=np.float64
            ),
            "text_value": _texts([e.text for e in events]),
            "unit": _texts([e.unit for e in events]),
            "status": _texts([e.status for e in events]),
            "source_id": _texts(
                [e.source_id or f"content:{h.hex()[:32]}" for e, h in zip(events, hashes, strict=True)]
            ),
        }
    )


def sort_out(table: pd.DataFrame, events: Sequence[EventBody]) -> Sorted:
    """Clean a table of events, and say of each what is wrong with it."""
    usable, account = clean(table)
    faults: list[tuple[str, str, str] | None] = [None] * len(events)
    aside = account.set_aside
    for position, reason in zip(aside["position"].tolist(), aside["reason"].tolist(), strict=True):
        faults[position] = fault(reason, events[position])
    kept = np.ones(len(events), dtype=bool)
    kept[aside["position"].to_numpy(dtype=np.int64)] = False
    return Sorted(usable, np.flatnonzero(kept), faults)


def fault(reason: str, event: EventBody) -> tuple[str, str, str]:
    """Reason, field and remedy of an event that cleaning set aside."""
    field, _, remedy = REMEDIES[reason].partition(": ")
    if reason == "unknown_concept" and event.concept is not None:
        return (
            reason,
            "concept",
            "not a concept of ours. See concepts.csv, or send the source's code instead.",
        )
    if reason == "impossible_value":
        row = loader.codes()[source_code(event)]
        about = loader.concepts()[row.concept]
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
    faults = [_encounter_fault(encounter, now) for encounter in sent]
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

    A hospital admission written down after that to intensive care (clerks do; hospital A of PhysioNet 2019 has 212) is
    no view of the future: it is a fact of the ICU admission.
    """
    late = [name for name in ENCOUNTER_TIMES if (facts_told.get(name) or when) > when]
    if (facts_told.get("icu_admission_time") or when + 1) <= when:
        late = [name for name in late if name != "hospital_admission_time"]
    return late


def _encounter_fault(encounter: EncounterIn, now: int) -> tuple[str, str, str] | None:
    times = {k: v for k, v in told(encounter).items() if k in ENCOUNTER_TIMES and v is not None}
    ahead = times_ahead(times, now + TOLERANCE_US)
    if ahead:
        return FUTURE[0], ahead[0], FUTURE[2]
    left = times.pop("discharge_time", None)
    if left is not None and any(when > left for when in times.values()):
        return OUT_OF_ORDER
    return None


def _receive_events(
    connection: Connection, news: EventsRequest, known: dict[str, dict[str, Any]], now: int
) -> tuple[list[Verdict], set[str]]:
    known = known | facts.latest(connection, {e.encounter_id for e in news.events} - set(known))
    refused = [_refusal(e, e.encounter_id in known, now) for e in news.events]
    taken = [e for e, wrong in zip(news.events, refused, strict=True) if wrong is None]
    hashes = [fingerprint(e.encounter_id, e) for e in taken]
    who = [(known[e.encounter_id]["subject_id"], e.encounter_id) for e in taken]
    table = tabulate(taken, who, hashes)
    judged = sort_out(table, taken)
    fresh = facts.add_events(connection, _rows(table, taken, hashes, judged, now))
    touched = {
        e.encounter_id
        for e, is_new, wrong in zip(taken, fresh, judged.faults, strict=True)
        if is_new and wrong is None
    }
    outcome = iter(zip(fresh, judged.faults, strict=True))
    return [Verdict("rejected", *wrong) if wrong else _kept(*next(outcome)) for wrong in refused], touched


def _refusal(event: EventBody, encounter_known: bool, now: int) -> tuple[str, str, str] | None:
    if not encounter_known:
        return UNKNOWN_ENCOUNTER
    for field in ("time", "available_time"):
        when = getattr(event, field)
        if when is not None and to_us(when) > now + TOLERANCE_US:
            return FUTURE[0], field, FUTURE[2]
    return None


def _kept(is_new: bool, wrong: tuple[str, str, str] | None) -> Verdict:
    if not is_new:
        return Verdict("duplicate")
    return Verdict("accepted", *wrong) if wrong else Verdict("accepted")


def _rows(
    table: pd.DataFrame, events: Sequence[EventBody], hashes: Sequence[bytes], judged: Sorted, now: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "encounter_id": encounter_id,
            "subject_id": subject_id,
            "time": to_us(event.time),
            "available_time": to_us(event.available_time or event.time),
            "received_time": now,
            "code": source_code(event),
            "raw_value": event.value,
            "raw_text": event.text,
            "raw_unit": event.unit,
            "status": event.status,
            "source_id": source_id,
            "content_hash": content,
            "concept": None,
            "numeric_value": None,
            "unit": None,
            "reason": wrong[0] if wrong else None,
        }
        for event, subject_id, encounter_id, source_id, content, wrong in zip(
            events,
            table["subject_id"],
            table["encounter_id"],
            table["source_id"],
            hashes,
            judged.faults,
            strict=True,
        )
    ]
    usable = judged.usable
    cleaned = zip(usable["concept"], usable["numeric_value"], usable["unit"], strict=True)
    for position, (concept, value, unit) in zip(judged.position.tolist(), cleaned, strict=True):
        rows[position] |= {
            "concept": concept,
            "numeric_value": None if np.isnan(value) else float(value),
            "unit": unit,
        }
    return rows


def _texts(values: Sequence[str | None]) -> pd.Series:
    return pd.Series(values, dtype=object)
