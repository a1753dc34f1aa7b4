"""Drugs and cultures as facts, the same from every standard that carries them.

A systemic antimicrobial is one event that says it was ordered or given. A vasoactive infusion is its rate at the start
and 0 at the end. Every other drug is kept under its own code, without a concept. A culture is known from the moment the
specimen is taken, that something grew only from the result on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from features.concepts.drugs import antimicrobial
from features.events import NAT
from features.sources.facts import NEVER, Fact, Moment, latest
from features.sources.vocabulary import grew, is_blood, vasoactive


@dataclass(slots=True)
class Dose:
    """A drug ordered or given; ``standard`` is FHIR or HL7, ``known`` when it was recorded (NAT: by policy)."""

    standard: str
    subject_id: str
    encounter_id: str
    source_id: str
    name: str
    code: str = ""
    route: str = ""
    start: Moment = NEVER
    end: Moment = NEVER
    known: int = NAT
    amount: float = math.nan
    amount_unit: str = ""
    rate: float = math.nan
    rate_unit: str = ""
    ordered: bool = False
    status: str = "final"


def dose_facts(dose: Dose) -> list[Fact]:
    """The events of a drug ordered or given; see the head of this module."""
    fact = Fact(
        dose.subject_id,
        dose.encounter_id,
        dose.start.time,
        _known(dose.start, dose.known),
        dose.code or f"{dose.standard}_DRUG//{dose.name}",
        text_value=dose.name,
        status=dose.status,
        source_id=dose.source_id,
    )
    if antimicrobial(dose.name, dose.route or None) is not None:
        code = f"{dose.standard}_DRUG//{dose.name}"
        return [fact._replace(code=code, concept="antibiotic", numeric_value=1.0)]
    if dose.ordered:
        # An order is no infusion: what runs is charted when it is given.
        return [fact._replace(code=f"{dose.standard}_ORDER//{dose.name}")]
    running = vasoactive(dose.name)
    if running and math.isfinite(dose.rate):
        return _infusion(dose, fact._replace(code=f"{dose.standard}_DRUG//{dose.name}", concept=running))
    return [fact._replace(numeric_value=dose.amount, unit=dose.amount_unit or None)]


def _infusion(dose: Dose, fact: Fact) -> list[Fact]:
    begun = fact._replace(numeric_value=dose.rate, unit=dose.rate_unit or None)
    if dose.end.time == NAT or dose.end.time <= dose.start.time:
        return [begun]
    ended = begun._replace(
        time=dose.end.time,
        available_time=_known(dose.end, dose.known),
        numeric_value=0.0,
        source_id=f"{dose.source_id}#end",
    )
    return [begun, ended]


def _known(moment: Moment, recorded: int) -> int:
    """When a dose could be seen: not before it was written down; a bare date from the next day on."""
    bare = moment.known if moment.known != moment.time else NAT
    return latest(moment.time, recorded, bare) if recorded != NAT or bare != NAT else NAT


@dataclass(slots=True)
class Culture:
    """A specimen sent for culture, with what is known of it."""

    standard: str
    subject_id: str
    encounter_id: str
    source_id: str
    code: str
    name: str
    specimen: str
    taken: Moment
    reported: int
    results: tuple[str, ...] = ()
    status: str = "final"


def culture_facts(culture: Culture) -> list[Fact]:
    """``culture`` (and ``blood_culture``) when it was taken; ``positive_culture`` from the report that names growth."""
    taken = Fact(
        culture.subject_id,
        culture.encounter_id,
        culture.taken.time,
        culture.taken.known,
        f"{culture.standard}_SPEC//{culture.specimen or culture.name}",
        concept="culture",
        numeric_value=1.0,
        text_value=culture.specimen or culture.name or None,
        status="deleted" if culture.status == "deleted" else "final",
        source_id=culture.source_id,
    )
    facts = [taken]
    if is_blood(culture.code, culture.name, culture.specimen):
        facts.append(taken._replace(concept="blood_culture"))
    grown = [r for r in culture.results if grew(r)]
    if grown or culture.status in ("deleted", "corrected"):
        facts.append(_positive(culture, taken, grown))
    return facts


def _positive(culture: Culture, taken: Fact, grown: list[str]) -> Fact:
    """That something grew, or, in a report that takes it back, that nothing did."""
    reported = latest(culture.reported, culture.taken.known) if culture.reported != NAT else NAT
    return taken._replace(
        concept="positive_culture",
        available_time=reported,
        text_value="; ".join(grown) or None,
        status=culture.status if grown else "deleted",
    )
