"""Patients, visits and moves in HL7 v2 messages: PID, PV1, MRG, and what ADT messages tell.

HL7 v2.8 chapter 3. Field numbers have not changed since 2.1; later fields are empty in earlier messages.
"""

from __future__ import annotations

from typing import Final

from features.events import NAT
from features.sources.facts import LOCATION, NEVER, Fact, Merge, Moment, Person, Stay, latest
from features.sources.hl7v2_grammar import Segment, moment
from features.sources.hl7v2_message import Reading

CLASSES: Final = {"E": "ed", "I": "ward", "B": "ward", "O": "ambulatory", "R": "ambulatory"}
"""HL7 table 0004."""
ADMITTED: Final = ("A01", "A04")
MOVED: Final = ("A02", "A06", "A07", "A10", "A17")
SUBJECT_MERGES: Final = ("A18", "A30", "A34", "A36", "A39", "A40", "A46", "A47")
ACCOUNT_MERGES: Final = ("A35", "A41", "A49")
VISIT_MERGES: Final = ("A42", "A50")
MOVES_OF_VISITS: Final = ("A43", "A44", "A45")
EXPIRED: Final = ("20", "40", "41", "42")
"""Discharge dispositions that mean death, National Uniform Billing Committee."""


def about(reading: Reading, segment: Segment) -> None:
    """What a segment says of the patient, the visit and merges."""
    if segment.name == "PID":
        _person(reading, segment)
    elif segment.name == "PV1":
        _visit(reading, segment)
    elif segment.name == "EVN":
        reading.event = segment
    elif segment.name == "MRG":
        _merge(reading, segment)


def _identity(segment: Segment, repetition: str) -> str:
    """``id@authority`` of a CX, or the id alone."""
    name, authority = segment.part(repetition), segment.part(repetition, 4)
    return f"{name}@{authority}" if name and authority else name


def _of_patient(segment: Segment, n: int) -> str:
    """The identifier of a patient among several: the medical record number, else the first."""
    given = segment.repetitions(n)
    records = [r for r in given if segment.part(r, 5).upper() in ("MR", "MRN", "PI", "PT")]
    return next((found for r in [*records, *given] if (found := _identity(segment, r))), "")


def _person(reading: Reading, pid: Segment) -> None:
    subject = _of_patient(pid, 3) or _of_patient(pid, 2) or _of_patient(pid, 4)
    reading.subject, reading.encounter = subject, ""
    reading.account = _of_patient(pid, 18)
    reading.death, reading.dead = reading.moment(pid, 29), pid.get(30).upper() == "Y"
    if not subject:
        reading.out.miss("PID", "3", "no_subject", lost=False)
        return
    sex = {"M": "male", "F": "female"}.get(pid.get(8).upper(), "")
    written = pid.get(7)
    middle = {4: "0701", 6: "15"}.get(len(written), "")
    reading.out.persons.append(Person(subject, moment(written + middle, reading.where).time, sex))


def _visit(reading: Reading, pv1: Segment) -> None:
    admitted, discharged = reading.moment(pv1, 44), reading.moment(pv1, 45)
    number_ = _of_patient(pv1, 19) or _of_patient(pv1, 50) or reading.account
    if not number_ and admitted is not NEVER and reading.subject:
        number_ = f"{reading.subject}@{admitted.time}"
        reading.out.miss("PV1", "19", "visit_by_admission", lost=False)
    reading.encounter = number_
    trigger = reading.out.header.trigger if reading.out.header.type == "ADT" else ""
    when = _when(reading, pv1, 44, 45)
    stay = Stay(
        number_,
        reading.subject,
        _class(reading, pv1),
        unit=_place_name(pv1),
        specialty=pv1.get(10),
        admitted=admitted.time if admitted is not NEVER or trigger not in ADMITTED else when.time,
        discharged=discharged.time if discharged is not NEVER or trigger != "A03" else when.time,
        reopened=trigger == "A13",
    )
    if stay.reopened:
        stay.discharged = NAT
    if number_:
        reading.out.stays.append(stay)


def _class(reading: Reading, pv1: Segment) -> str:
    kind = CLASSES.get(pv1.get(2).upper(), "")
    in_ed = reading.site.place(_place_name(pv1)) == "ed"
    return "ed" if in_ed and kind != "ward" else kind


def _place_name(pv1: Segment) -> str:
    return pv1.get(3) or pv1.get(3, 4)


def _place(reading: Reading, pv1: Segment) -> str:
    place = reading.site.place(_place_name(pv1))
    # An outpatient clinic of unheard-of name is no ward.
    return "other" if place == "ward" and _class(reading, pv1) == "ambulatory" else place


def _merge(reading: Reading, mrg: Segment) -> None:
    trigger = reading.out.header.trigger
    prior = _of_patient(mrg, 1)
    merges = reading.out.merges
    if trigger in SUBJECT_MERGES:
        merges.append(Merge("subject", prior, reading.subject))
    elif trigger in VISIT_MERGES:
        merges.append(Merge("encounter", _of_patient(mrg, 5), reading.encounter))
    elif trigger in ACCOUNT_MERGES:
        merges.append(Merge("encounter", _of_patient(mrg, 3), reading.account))
    elif trigger in MOVES_OF_VISITS:
        merges.append(Merge("visit_moved", prior, reading.subject))


def _when(reading: Reading, pv1: Segment, *fields: int) -> Moment:
    """When a movement happened: as the visit says, else as the event does, else when it was recorded or sent."""
    trigger = reading.out.header.trigger
    own = {"A01": 44, "A04": 44, "A03": 45}.get(trigger)
    spoken = [reading.moment(pv1, own)] if own in fields else []
    spoken += [reading.moment(reading.event, 6), reading.moment(reading.event, 2), reading.sent]
    return next((m for m in spoken if m is not NEVER), NEVER)


def movement(reading: Reading, pv1: Segment) -> None:
    """The events of an admission, a transfer, a discharge, or of taking one of them back."""
    trigger, when = reading.out.header.trigger, _when(reading, pv1, 44, 45)
    if when is NEVER:
        return
    here = _frame(reading, when)
    place = _place(reading, pv1)
    move = here._replace(code=LOCATION, concept="location", text_value=place or None)
    visit = reading.encounter
    admission = here._replace(source_id=f"{visit}#admit", numeric_value=1.0)
    events = reading.out.events
    if trigger in ("A01", "A04", "A11"):
        gone = "deleted" if trigger == "A11" else "final"
        arrivals = _arrivals(reading, pv1, admission, trigger)
        moved = [move._replace(source_id=f"{visit}#admit")] if place or gone == "deleted" else []
        events += [fact._replace(status=gone) for fact in [*arrivals, *moved]]
    elif trigger in MOVED and place:
        events.append(move._replace(source_id=f"{visit}#move@{when.time}"))
    elif trigger == "A12":
        _cancelled_move(reading, move)
    elif trigger in ("A03", "A13"):
        events += _departures(reading, pv1, here, gone=trigger == "A13")


def _frame(reading: Reading, when: Moment) -> Fact:
    recorded = reading.moment(reading.event, 2)
    known = latest(when.known, (recorded if recorded is not NEVER else reading.sent).time)
    return Fact(reading.subject, reading.encounter, when.time, known, "")


def _arrivals(reading: Reading, pv1: Segment, admission: Fact, trigger: str) -> list[Fact]:
    """Arrival in the emergency department, admission to a bed; both are taken back when it is cancelled."""
    kind = _class(reading, pv1)
    named = []
    if trigger == "A11" or kind == "ed":
        named.append("ed_arrival")
    if trigger == "A11" or (trigger == "A01" and kind != "ed"):
        named.append("hospital_admission")
    return [admission._replace(code=f"WARDCAST//{n}", concept=n) for n in named]


def _cancelled_move(reading: Reading, move: Fact) -> None:
    cancelled = reading.moment(reading.event, 6)
    if cancelled is NEVER:
        reading.out.miss("EVN", "6", "cancel_without_time", lost=False)
    at = str(cancelled.time) if cancelled is not NEVER else "?"
    reading.out.events.append(move._replace(status="deleted", source_id=f"{reading.encounter}#move@{at}"))


def _departures(reading: Reading, pv1: Segment, here: Fact, *, gone: bool) -> list[Fact]:
    source = here._replace(source_id=f"{reading.encounter}#discharge", status="deleted" if gone else "final")
    left = source._replace(code=LOCATION, concept="location", text_value="left")
    facts = [
        source._replace(code="WARDCAST//hospital_discharge", concept="hospital_discharge", numeric_value=1.0),
        left,
    ]
    if gone or reading.dead or reading.death is not NEVER or pv1.get(36) in EXPIRED:
        died = (
            reading.death
            if reading.death is not NEVER and not gone
            else Moment(here.time, here.available_time)
        )
        death = source._replace(code="WARDCAST//death", concept="death", numeric_value=1.0)
        facts.append(death._replace(time=died.time, available_time=latest(died.known, died.time)))
    return facts
