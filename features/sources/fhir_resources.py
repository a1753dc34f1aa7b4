"""What each type of FHIR R4 resource says: patients, stays, observations, cultures, drugs.

HL7 FHIR R4 (v4.0.1). The table of what becomes what stands in :mod:`features.sources.fhir`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from zoneinfo import ZoneInfo

from features.events import NAT
from features.sources import fhir_elements as element
from features.sources.facts import (
    LOCATION,
    NEVER,
    Fact,
    Merge,
    Moment,
    Person,
    Problem,
    Stay,
    latest,
    number,
)
from features.sources.fhir_elements import Json, Known, codings, items, moment, obj, period, refer, text, unit
from features.sources.therapies import Culture, Dose, culture_facts, dose_facts
from features.sources.vocabulary import SiteMap, is_culture

OBSERVED: Final = {
    "final": "final", "preliminary": "preliminary", "registered": "preliminary", "partial": "preliminary",
    "amended": "corrected", "corrected": "corrected", "appended": "corrected",
    "cancelled": "deleted", "entered-in-error": "deleted",
}  # fmt: skip
GIVEN: Final = {
    "in-progress": "final", "completed": "final", "stopped": "final", "on-hold": "final", "entered-in-error": "deleted",
}  # fmt: skip
ORDERED: Final = {
    "active": "final", "completed": "final", "stopped": "final", "on-hold": "final",
    "cancelled": "deleted", "entered-in-error": "deleted",
}  # fmt: skip
CLASSES: Final = {
    "EMER": "ed", "IMP": "ward", "ACUTE": "ward", "NONAC": "ward", "OBSENC": "ward", "SS": "ward",
    "AMB": "ambulatory", "HH": "ambulatory", "VR": "ambulatory", "FLD": "ambulatory",
}  # fmt: skip
"""HL7 v3 ActEncounterCode. An outpatient contact is neither ed nor ward; it keeps a word of its own."""
NO_STAY: Final = ("planned", "cancelled", "entered-in-error")
VALUES_OR_ABSENT: Final = (*element.VALUES, "dataAbsentReason")

REMEDIES: Final[dict[str, str]] = {
    "not_read": "this type of resource carries none of our facts. Nothing to do.",
    "no_resource": "the entry has no resource, such as a deletion. Send the resource with status entered-in-error.",
    "no_time": "no time of day or date that can be read. Send effectiveDateTime with an offset.",
    "no_subject": "no reference to a Patient. Send subject.",
    "not_a_patient": "the subject is a group, device or place. Nothing to do.",
    "no_code": "neither a coding nor a text. Send code.coding.",
    "no_value": "neither a value nor components. Send value[x].",
    "data_absent": "the source says why there is no value. Nothing to do.",
    "value_type_unsupported": "ratios, ranges, waveforms and attachments are not read. Send valueQuantity.",
    "not_a_number": "a Quantity without a finite number. Send valueQuantity.value.",
    "unknown_status": "the status is absent or says nothing. Send a status of the R4 value set.",
    "not_given": "the dose was not given. Nothing to do.",
    "not_an_order": "a plan or proposal. Nothing to do.",
    "no_drug": "the medication has no name or its resource is not there. Send Medication, or a text.",
    "no_stay": "planned, cancelled or entered in error. Nothing to do.",
    "not_a_culture": "its results are read as Observations. Nothing to do.",
    "limit_used": "a comparator such as < was given; the limit itself is used as the value.",
}
"""The cure of each reason for which something makes no event."""


@dataclass(slots=True)
class Facts:
    """What one resource says.

    Attributes
    ----------
    resource_type : str, empty when it is no resource
    events : list of Fact, encounter empty where the resource does not name it
    stay, person : what an Encounter or a Patient says, else None
    merges : patients that are one, of Patient.link
    problems : what made no event, and what had to be assumed; never a value
    """

    resource_type: str
    events: list[Fact] = field(default_factory=list)
    stay: Stay | None = None
    person: Person | None = None
    merges: list[Merge] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def miss(self, field_name: str, reason: str, *, part: str = "", lost: bool = True) -> None:
        """Say what made no event."""
        self.problems.append(Problem(self.resource_type + part, field_name, reason, REMEDIES[reason], lost))


@dataclass(frozen=True, slots=True)
class Reading:
    """One resource while it is read."""

    resource: Json
    known: Known
    where: ZoneInfo
    site: SiteMap
    out: Facts

    def get(self, name: str) -> Any:
        return self.resource.get(name)

    def moment(self, name: str) -> Moment:
        return moment(text(self.resource.get(name)), self.where)

    def code(self, value: object) -> tuple[str, str, str, str]:
        """``(code, concept, unit when none is written, name)`` of a CodeableConcept."""
        candidates, name = codings(value)
        return *self.site.code(candidates), name

    @property
    def identity(self) -> str:
        """Type and id, or the business identifier; empty when it has neither."""
        kind, name = self.out.resource_type, text(self.get("id"))
        if name:
            return f"{kind}/{name}"
        given = [text(i.get("value")) for i in items(self.get("identifier"))]
        return next((f"{kind}?{value}" for value in given if value), "")


def _subject(reading: Reading, name: str = "subject") -> str | None:
    """The patient; None when the resource is about no patient, which is then said."""
    if name not in reading.resource:
        return ""
    kind, subject = refer(reading.get(name), reading.known)
    if kind not in ("", "Patient"):
        reading.out.miss(name, "not_a_patient")
        return None
    return subject


def _encounter(reading: Reading, name: str = "encounter") -> str:
    kind, encounter = refer(reading.get(name), reading.known)
    return encounter if kind in ("", "Encounter") else ""


def _patient(reading: Reading) -> None:
    subject = text(reading.get("id"))
    sex = text(reading.get("gender"))
    born = element.birth(text(reading.get("birthDate")), reading.where)
    reading.out.person = Person(subject, born, sex if sex in ("male", "female") else "")
    died = reading.moment("deceasedDateTime")
    if died.time != NAT:
        reading.out.events.append(_mark(subject, "", "death", died, f"Patient/{subject}#death"))
    for link in items(reading.get("link")):
        other = refer(link.get("other"), reading.known)[1]
        if link.get("type") == "replaced-by":
            reading.out.merges.append(Merge("subject", subject, other))
        elif link.get("type") == "replaces":
            reading.out.merges.append(Merge("subject", other, subject))


def _mark(subject: str, encounter: str, concept: str, when: Moment, source_id: str) -> Fact:
    """Something that happened to a stay, as an event of our own vocabulary."""
    code = f"WARDCAST//{concept}"
    return Fact(subject, encounter, when.time, when.known, code, concept, 1.0, source_id=source_id)


def _stay(reading: Reading) -> None:
    subject = _subject(reading)
    if subject is None:
        return
    if reading.get("status") in NO_STAY:
        reading.out.miss("status", "no_stay")
        return
    begun, ended = period(reading.get("period"), reading.where)
    kinds = [obj(k) for k in items(reading.get("class"))]
    code = next(
        (text(k.get("code")) or text((items(k.get("coding")) or [{}])[0].get("code")) for k in kinds), ""
    )
    whole = refer(reading.get("partOf"), reading.known)[1]
    stay = Stay(
        text(reading.get("id")),
        subject,
        CLASSES.get(code, ""),
        specialty=codings((items(reading.get("serviceType")) or [{}])[0])[1],
        admitted=begun.time,
        discharged=ended.time,
        part_of=whole,
    )
    reading.out.stay = stay
    _moves(reading, stay, begun)
    if not whole:
        _ends(reading, stay, begun, ended)


def _moves(reading: Reading, stay: Stay, begun: Moment) -> None:
    """Where the stay was spent; from its class alone where no location is given."""
    places: list[tuple[Moment, str]] = []
    for row in items(reading.get("location")):
        if row.get("status") in ("planned", "reserved"):
            continue
        named = obj(row.get("location"))
        name = reading.known.places.get(refer(named, reading.known)[1]) or text(named.get("display"))
        start, _ = period(row.get("period"), reading.where)
        places.append((start if start is not NEVER else begun, name))
        stay.unit = name or stay.unit
    if not any(name for _, name in places) and not stay.part_of:
        places = [(begun, stay.kind)] if stay.kind in ("ed", "ward") else []
    for k, (when, name) in enumerate(places):
        place = reading.site.place(name)
        if place == "ward" and stay.kind == "ambulatory":
            place = "other"  # an outpatient clinic of unheard-of name is no ward
        if place and when.time != NAT:
            fact = _mark(
                stay.subject_id, stay.encounter_id, "location", when, f"Encounter/{stay.encounter_id}#{k}"
            )
            reading.out.events.append(fact._replace(numeric_value=math.nan, text_value=place))


def _ends(reading: Reading, stay: Stay, begun: Moment, ended: Moment) -> None:
    name = f"Encounter/{stay.encounter_id}"
    here = stay.subject_id, stay.encounter_id
    if stay.kind == "ed" and begun.time != NAT:
        reading.out.events.append(_mark(*here, "ed_arrival", begun, f"{name}#arrival"))
    if ended.time == NAT or stay.kind == "ambulatory":
        return
    reading.out.events.append(_mark(*here, "hospital_discharge", ended, f"{name}#discharge"))
    left = Fact(
        *here, ended.time, ended.known, LOCATION, "location", text_value="left", source_id=f"{name}#left"
    )
    reading.out.events.append(left)
    went = codings(obj(reading.get("hospitalization")).get("dischargeDisposition"))[0]
    if any(code.rsplit("//", 1)[-1] == "exp" for code in went):
        reading.out.events.append(_mark(*here, "death", ended, f"Patient/{stay.subject_id}#death"))


def _observation(reading: Reading) -> None:
    subject = _subject(reading)
    if subject is None:
        return
    status = OBSERVED.get(text(reading.get("status")))
    if status is None:
        reading.out.miss("status", "unknown_status")
        return
    code, _, _, name = reading.code(reading.get("code"))
    taken = _effective(reading)
    if is_culture(code, name):
        _culture(reading, subject, status, code, name, taken)
    elif taken.time == NAT:
        reading.out.miss("effective[x]", "no_time")
    else:
        known = _issued(reading, taken, status)
        name = reading.identity or f"Observation/{code}@{taken.time}"
        frame = Fact(subject, _encounter(reading), taken.time, known, code, status=status, source_id=name)
        _values(reading, frame)


def _values(reading: Reading, frame: Fact) -> None:
    """The value of an observation and those of its components."""
    components = items(reading.get("component"))
    if not components or any(v in reading.resource for v in VALUES_OR_ABSENT):
        _value(reading, reading.resource, frame, "")
    seen: dict[str, int] = {}
    for component in components:
        _component(reading, component, frame, seen)


def _component(reading: Reading, component: Json, frame: Fact, seen: dict[str, int]) -> None:
    code = reading.code(component.get("code"))[0]
    seen[code] = seen.get(code, 0) + 1
    again = f"#{seen[code]}" if seen[code] > 1 else ""
    _value(reading, component, frame._replace(source_id=f"{frame.source_id}#{code}{again}"), ".component")


def _effective(reading: Reading) -> Moment:
    """When the observation was made; over a period, its end, since nothing is known before."""
    for name in ("effectiveDateTime", "effectiveInstant"):
        if (when := reading.moment(name)) is not NEVER:
            return when
    start, end = period(reading.get("effectivePeriod"), reading.where)
    events = obj(reading.get("effectiveTiming")).get("event")
    timed = [moment(text(e), reading.where) for e in events] if isinstance(events, list) else []
    spans = [m for m in (end, start, max(timed, default=NEVER)) if m is not NEVER]
    return spans[0] if spans else reading.moment("issued")


def _issued(reading: Reading, taken: Moment, status: str) -> int:
    """When this version was made available, never before it happened; NAT leaves it to the concept's policy."""
    issued = reading.moment("issued")
    bare = taken.known if taken.known != taken.time else NAT
    if status in ("corrected", "deleted"):
        # Servers keep the first issue when they amend; only the version's own time tells when it changed.
        changed = moment(text(obj(reading.get("meta")).get("lastUpdated")), reading.where)
        if issued.time == NAT or status == "deleted":
            issued = max(issued, changed)
    if issued.time == NAT:
        return bare
    return latest(issued.known, taken.time)


def _value(reading: Reading, holder: Json, frame: Fact, part: str) -> None:
    """The event of an observation or of one of its components."""
    code, concept, assumed, _ = reading.code(holder.get("code"))
    if not code:
        reading.out.miss("code", "no_code", part=part)
        return
    read = _read_value(holder)
    if isinstance(read, str) and frame.status == "deleted":
        read = math.nan, "", "", False
    if isinstance(read, str):
        reading.out.miss("value[x]", read, part=part)
        return
    value, words, written, limit = read
    if limit:
        reading.out.miss("value[x]", "limit_used", part=part, lost=False)
    reading.out.events.append(
        frame._replace(
            code=code,
            concept=concept,
            numeric_value=value,
            text_value=words or None,
            unit=reading.site.unit(written) or assumed or None,
        )
    )


def _read_value(holder: Json) -> tuple[float, str, str, bool] | str:
    """``(number, words, unit, is a limit)``, or the reason why there is none."""
    if "valueQuantity" in holder:
        return _quantity(obj(holder["valueQuantity"]))
    for name in ("valueInteger", "valueDecimal"):
        if name in holder:
            value = element.quantity(holder[name])
            return (value, "", "", False) if math.isfinite(value) else "not_a_number"
    if isinstance(holder.get("valueBoolean"), bool):
        return float(holder["valueBoolean"]), "", "", False
    words = text(holder.get("valueString")) or text(holder.get("valueCode"))
    if words:
        value, limit = number(words)
        return value, words if limit or math.isnan(value) else "", "", limit
    if "valueCodeableConcept" in holder:
        words = codings(holder["valueCodeableConcept"])[1]
        return (math.nan, words, "", False) if words else "no_value"
    if "dataAbsentReason" in holder:
        return "data_absent"
    return "value_type_unsupported" if any(v in holder for v in element.VALUES) else "no_value"


def _quantity(said: Json) -> tuple[float, str, str, bool] | str:
    value = element.quantity(said.get("value"))
    if not math.isfinite(value):
        return "not_a_number"
    comparator = text(said.get("comparator"))
    return value, f"{comparator}{value:g}" if comparator else "", unit(said), bool(comparator)


def _culture(reading: Reading, subject: str, status: str, code: str, name: str, taken: Moment) -> None:
    specimen = obj((items(reading.get("specimen")) or [{}])[0])
    collected, kind = reading.known.specimens.get(refer(specimen, reading.known)[1], (NEVER, ""))
    when = collected if collected is not NEVER else taken
    if when.time == NAT:
        reading.out.miss("effective[x]", "no_time")
        return
    said = codings(reading.get("valueCodeableConcept"))[1] or text(reading.get("valueString"))
    found = [said, text(reading.get("conclusion"))]
    found += [codings(c)[1] for c in items(reading.get("conclusionCode"))]
    culture = Culture(
        "FHIR",
        subject,
        _encounter(reading),
        reading.identity or f"{code}@{when.time}",
        code,
        name,
        kind or text(specimen.get("display")),
        when,
        _issued(reading, taken, status),
        tuple(filter(None, found)),
        status,
    )
    reading.out.events += culture_facts(culture)


def _report(reading: Reading) -> None:
    """A report of a culture that carries its own conclusion; any other report only gathers Observations."""
    code, _, _, name = reading.code(reading.get("code"))
    if not is_culture(code, name) or items(reading.get("result")):
        reading.out.miss("code", "not_a_culture")
        return
    _observation(reading)


def _drug(reading: Reading) -> tuple[str, str]:
    """``(code, name)`` of the medication of a resource, wherever it stands."""
    if "medicationReference" in reading.resource:
        name = refer(reading.get("medicationReference"), reading.known)[1]
        inside = [c for c in items(reading.get("contained")) if f"#{text(c.get('id'))}" == name]
        if inside:
            code, _, _, shown = reading.code(inside[0].get("code"))
            return code, shown
        return "", reading.known.drugs.get(name) or text(
            obj(reading.get("medicationReference")).get("display")
        )
    code, _, _, shown = reading.code(reading.get("medicationCodeableConcept"))
    return code, shown


def _dose(reading: Reading, statuses: Mapping[str, str], dosage: Json) -> Dose | None:
    """What an order and an administration have in common; None when it makes no event, which is then said."""
    subject = _subject(reading)
    status = statuses.get(text(reading.get("status")))
    code, name = _drug(reading)
    if subject is None:
        return None
    if status is None:
        refused = reading.get("status") == "not-done"
        reading.out.miss("status", "not_given" if refused else "unknown_status")
        return None
    if not name:
        reading.out.miss("medication[x]", "no_drug")
        return None
    given = (items(dosage.get("doseAndRate")) or [dosage])[0]
    amount = given.get("dose", given.get("doseQuantity"))
    rate, rate_unit = element.rate(given)
    return Dose(
        "FHIR",
        subject,
        "",
        reading.identity,
        name,
        code,
        route=codings(dosage.get("route"))[1],
        amount=element.quantity(obj(amount).get("value")),
        amount_unit=reading.site.unit(unit(amount)),
        rate=rate,
        rate_unit=reading.site.unit(rate_unit),
        status=status,
    )


def _administration(reading: Reading) -> None:
    dose = _dose(reading, GIVEN, obj(reading.get("dosage")))
    if dose is None:
        return
    dose.encounter_id = _encounter(reading, "context") or _encounter(reading)
    dose.start, dose.end = period(reading.get("effectivePeriod"), reading.where)
    if dose.start.time == NAT:
        dose.start = reading.moment("effectiveDateTime")
    _append(reading, dose, "effective[x]")


def _order(reading: Reading) -> None:
    if text(reading.get("intent")) in ("proposal", "plan", "option"):
        reading.out.miss("intent", "not_an_order")
        return
    dose = _dose(reading, ORDERED, (items(reading.get("dosageInstruction")) or [{}])[0])
    if dose is None:
        return
    dose.encounter_id = _encounter(reading)
    dose.start, dose.ordered = reading.moment("authoredOn"), True
    _append(reading, dose, "authoredOn")


def _append(reading: Reading, dose: Dose, time_field: str) -> None:
    if dose.start.time == NAT:
        reading.out.miss(time_field, "no_time")
        return
    dose.source_id = dose.source_id or f"{reading.out.resource_type}/{dose.name}@{dose.start.time}"
    reading.out.events += dose_facts(dose)


READ: Final[dict[str, Callable[[Reading], None]]] = {
    "Patient": _patient,
    "Encounter": _stay,
    "Observation": _observation,
    "DiagnosticReport": _report,
    "MedicationAdministration": _administration,
    "MedicationRequest": _order,
}
"""The reader of each type of resource."""
