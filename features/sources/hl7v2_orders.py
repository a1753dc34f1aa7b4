"""Orders in HL7 v2 messages, and what came of them: results, cultures, drugs.

HL7 v2.8 chapters 4 and 4A (orders, pharmacy), 7 (observations). Field numbers have not changed since 2.1; later fields
are empty in earlier messages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from features.events import NAT
from features.sources.facts import NEVER, Fact, Moment, latest, number
from features.sources.hl7v2_grammar import Segment
from features.sources.hl7v2_message import Reading
from features.sources.therapies import Culture, Dose, culture_facts, dose_facts
from features.sources.vocabulary import is_culture

RESULT: Final = {
    "": "final", "F": "final", "B": "final", "V": "final", "C": "corrected", "A": "corrected",
    "P": "preliminary", "R": "preliminary", "S": "preliminary", "D": "deleted", "W": "deleted", "X": "deleted",
}  # fmt: skip
"""HL7 table 0085. W was posted to the wrong patient, X cannot be obtained: both take back what was said."""
WITHOUT_RESULT: Final = {"I": "pending", "U": "status_alone", "O": "no_result", "N": "no_result"}
TAKEN_BACK: Final = ("CA", "OC", "CR")
NOT_PLACED: Final = ("DC", "OD", "DR", "HD", "OH", "HR", "DE", "UA", "UC", "UD", "UH", "UM", "UN", "UR", "UX")
"""HL7 table 0119: orders taken back, and messages about orders that place none."""
DRUG_SEGMENTS: Final = {"RXA": 5, "RXG": 4, "RXD": 2, "RXE": 2, "RXO": 1}
"""Where each names the drug; an administration says more than an order, an encoded order more than a request."""
UNREAD_TYPES: Final = ("ED", "RP", "HD", "EI", "CX", "XAD", "XPN", "XTN")
UNKNOWN_AMOUNT: Final = 999.0
"""RXA-6 of an amount that was not recorded."""
PER: Final = {"hour": "h", "hr": "h", "hours": "h", "minute": "min", "minutes": "min", "day": "d"}


@dataclass(slots=True)
class Order:
    """The segments of one order, or of a message before its first."""

    subject: str
    encounter: str
    orc: Segment | None = None
    obr: Segment | None = None
    drugs: list[Segment] = field(default_factory=list)
    route: Segment | None = None
    specimen: Segment | None = None
    results: list[tuple[int, Segment]] = field(default_factory=list)


def order_events(reading: Reading, order: Order) -> None:
    """Append the events of one order: drugs, cultures, and every other result."""
    if order.drugs:
        _drug_events(reading, order)
    if order.obr is not None:
        code, _, _, name = reading.coded(order.obr, 4)
        if is_culture(code, name):
            _culture_events(reading, order, code, name, order.results)
            return
    for position, obx in order.results:
        code, _, _, name = reading.coded(obx, 3)
        if is_culture(code, name):
            _culture_events(reading, order, code, name, [(position, obx)])
        else:
            _result(reading, order, position, obx)


def _order_number(order: Order) -> str:
    """The filler's number of an order, else the placer's, with their namespaces."""
    for segment in (order.obr, order.orc):
        for n in (3, 2):
            if segment is not None and segment.raw(n):
                return segment.decode(segment.raw(n))
    return ""


def _taken(reading: Reading, order: Order, obx: Segment | None) -> Moment:
    """When it was observed or drawn."""
    return reading.first_moment((obx, 14), (order.obr, 7), (order.specimen, 17))


def _reported(reading: Reading, order: Order, obx: Segment | None, taken: Moment, status: str) -> int:
    """When the result could be seen, never before it happened; a correction not before its message was sent."""
    issued = reading.first_moment((order.obr, 22), (obx, 19))
    issued = reading.sent if issued is NEVER else issued
    known = issued.known if issued is not NEVER else taken.known
    if status in ("corrected", "deleted"):
        # OBR-22 often keeps the time of the first report.
        known = latest(known, reading.sent.known)
    bare = taken.known if taken.known != taken.time and issued is NEVER else NAT
    return latest(known, taken.time, bare)


def _result(reading: Reading, order: Order, position: int, obx: Segment) -> None:
    where = f"OBX[{position}]"
    status = RESULT.get(obx.get(11).upper())
    code, concept, assumed, _ = reading.coded(obx, 3)
    if status is None:
        reading.out.miss(where, "11", WITHOUT_RESULT.get(obx.get(11).upper(), "unknown_status"))
    elif reading.out.header.type == "MDM":
        reading.out.miss(where, "5", "document")
    elif not code:
        reading.out.miss(where, "3", "no_code")
    elif (taken := _dated(reading, order, obx, where)) is not NEVER:
        fact = Fact(
            order.subject,
            order.encounter,
            taken.time,
            _reported(reading, order, obx, taken, status),
            code,
            concept,
            unit=reading.site.unit(obx.get(6) or obx.get(6, 2)) or assumed or None,
            status=status,
            source_id=_result_id(reading, order, obx, code, taken),
        )
        _valued(reading, where, obx, fact)


def _dated(reading: Reading, order: Order, obx: Segment, where: str) -> Moment:
    """When a result was observed; the time of its message, which is then said, where it says nothing."""
    taken = _taken(reading, order, obx)
    if taken is NEVER:
        unsent = reading.sent is NEVER
        reading.out.miss(where, "14", "no_time" if unsent else "time_of_message", lost=unsent)
        return reading.sent
    return taken


def _result_id(reading: Reading, order: Order, obx: Segment, code: str, taken: Moment) -> str:
    instance = obx.get(21)
    if instance:
        return f"OBX/{instance}"
    number_ = _order_number(order)
    if not number_:
        panel = order.obr.get(4) if order.obr is not None else reading.out.header.kind
        number_ = f"{panel}@{taken.time}"
    name = "/".join(filter(None, (number_, code, obx.get(4))))
    reading.occurrences[name] += 1
    again = reading.occurrences[name]
    return name if again == 1 else f"{name}#{again}"


def _valued(reading: Reading, where: str, obx: Segment, fact: Fact) -> None:
    """One event for each repetition of OBX-5."""
    given = obx.repetitions(5)
    kind = obx.get(2).upper()
    values = [_value(obx, kind, repetition) for repetition in given]
    said = [v for v in values if not isinstance(v, str)]
    if not said and fact.status == "deleted":
        said = [(math.nan, "", False)]
    if not said:
        reading.out.miss(where, "5", next((v for v in values if isinstance(v, str)), "no_value"))
        return
    for k, (value, words, limit) in enumerate(said):
        if limit:
            reading.out.miss(where, "5", "limit_used", lost=False)
        elif kind == "NM" and math.isnan(value) and fact.status != "deleted":
            reading.out.miss(where, "5", "not_a_number", lost=False)
        source = fact.source_id if k == 0 else f"{fact.source_id}~{k + 1}"
        reading.out.events.append(
            fact._replace(numeric_value=value, text_value=words or None, source_id=source)
        )


def _value(obx: Segment, kind: str, repetition: str) -> tuple[float, str, bool] | str:
    """``(number, words, is a limit)`` of one repetition, or the reason why there is none."""
    if kind in UNREAD_TYPES:
        return "value_type_unsupported"
    if kind == "SN":
        return _structured(obx, repetition)
    if kind in ("CE", "CWE", "CNE", "CF"):
        words = obx.part(repetition, 2) or obx.part(repetition, 1)
    elif kind in ("TX", "FT", "ST"):
        words = obx.decode(repetition).strip()
    else:
        words = obx.part(repetition, 1)
    if words in ("", '""'):
        return "no_value"
    if kind in ("TX", "FT", "DT", "TM", "TS", "DTM"):
        return math.nan, words, False
    value, limit = number(words)
    return value, words if limit or math.isnan(value) else "", limit


def _structured(obx: Segment, repetition: str) -> tuple[float, str, bool] | str:
    """SN: comparator, number, separator, number. A ratio or range is kept as words."""
    comparator, first, separator, second = (obx.part(repetition, k) for k in (1, 2, 3, 4))
    words = f"{comparator}{first}{separator}{second}"
    value, _ = number(first)
    if not words:
        return "no_value"
    if math.isnan(value) or separator in ("-", ":", "/") or second:
        return math.nan, words, False
    exact = comparator in ("", "=")
    return value, "" if exact else words, not exact


def _culture_events(
    reading: Reading, order: Order, code: str, name: str, results: list[tuple[int, Segment]]
) -> None:
    first = results[0][1] if results else None
    taken = _collected(reading, order, first)
    if taken is NEVER:
        reading.out.miss("OBR", "7", "no_time")
        return
    status = _culture_status([RESULT.get(obx.get(11).upper(), "final") for _, obx in results])
    culture = Culture(
        "HL7",
        order.subject,
        order.encounter,
        "/".join(filter(None, (_order_number(order) or f"@{taken.time}", code))),
        code,
        name,
        _specimen(order),
        taken,
        _reported(reading, order, first, taken, status),
        tuple(words for _, obx in results for words in _grown(obx)),
        status,
    )
    reading.out.events += culture_facts(culture)


def _collected(reading: Reading, order: Order, obx: Segment | None) -> Moment:
    """When the specimen was taken. An order without results and without that time has taken none yet."""
    spoken = [reading.moment(order.specimen, 17), reading.moment(order.obr, 7), reading.moment(obx, 14)]
    spoken += [reading.sent] if obx is not None else []
    return next((m for m in spoken if m is not NEVER), NEVER)


def _culture_status(statuses: list[str]) -> str:
    """One status for a report of several lines: withdrawn only when all of it is."""
    if "deleted" in statuses and set(statuses) != {"deleted"}:
        return "corrected"
    return next((s for s in ("deleted", "corrected", "preliminary") if s in statuses), "final")


def _specimen(order: Order) -> str:
    said = (order.specimen.get(4, 2) or order.specimen.get(4)) if order.specimen is not None else ""
    return said or (order.obr.get(15) if order.obr is not None else "")


def _grown(obx: Segment) -> list[str]:
    """What a line of a culture's report says grew: words that are neither a number nor taken back."""
    if RESULT.get(obx.get(11).upper()) in (None, "deleted"):
        return []
    read_ = [_value(obx, obx.get(2).upper(), r) for r in obx.repetitions(5)]
    return [v[1] for v in read_ if not isinstance(v, str) and v[1] and math.isnan(v[0])]


def _drug_events(reading: Reading, order: Order) -> None:
    """Administrations one by one; of an order, what the pharmacy encoded, else what was asked for."""
    given = [s for s in order.drugs if s.name == "RXA"]
    for segment in given:
        _administration(reading, order, segment)
    if given:
        return
    best = min(order.drugs, key=lambda s: list(DRUG_SEGMENTS).index(s.name))
    control = order.orc.get(1).upper() if order.orc is not None else ""
    if control in NOT_PLACED:
        reading.out.miss(best.name, "ORC-1", "not_placed")
        return
    dose = _dose(reading, order, best)
    if dose is None:
        return
    spoken = (reading.moment(order.orc, 9), reading.moment(order.orc, 15), reading.sent)
    dose.start = next((m for m in spoken if m is not NEVER), NEVER)
    dose.ordered = True
    dose.status = "deleted" if control in TAKEN_BACK else "final"
    if dose.status == "deleted":
        dose.known = latest(dose.start.known, reading.sent.known)
    _dosed(reading, best, dose)


def _dose(reading: Reading, order: Order, segment: Segment) -> Dose | None:
    code, _, _, name = reading.coded(segment, DRUG_SEGMENTS[segment.name])
    if not name:
        reading.out.miss(segment.name, str(DRUG_SEGMENTS[segment.name]), "no_drug")
        return None
    route = order.route.get(1, 2) or order.route.get(1) if order.route is not None else ""
    source = "/".join(filter(None, (_order_number(order), code)))
    return Dose("HL7", order.subject, order.encounter, source, name, code, route)


def _administration(reading: Reading, order: Order, rxa: Segment) -> None:
    if rxa.get(20).upper() in ("RE", "NA"):
        reading.out.miss("RXA", "20", "not_given")
        return
    dose = _dose(reading, order, rxa)
    if dose is None:
        return
    dose.start, dose.end = reading.moment(rxa, 3), reading.moment(rxa, 4)
    if dose.start is NEVER:
        dose.start = reading.sent
    amount, unit = number(rxa.get(6))[0], rxa.get(7) or rxa.get(7, 2)
    dose.amount = math.nan if amount == UNKNOWN_AMOUNT else amount
    dose.amount_unit = reading.site.unit(unit)
    per = rxa.get(12).lower()
    if "/" in unit or per:
        dose.rate = dose.amount
        dose.rate_unit = reading.site.unit(f"{unit}/{PER.get(per, per)}" if per else unit)
    dose.status = {"D": "deleted", "U": "corrected"}.get(rxa.get(21).upper(), "final")
    entered = reading.moment(rxa, 22)
    dose.known = (entered if entered is not NEVER else reading.sent).known
    dose.source_id = f"{dose.source_id}@{dose.start.time}"
    _dosed(reading, rxa, dose)


def _dosed(reading: Reading, segment: Segment, dose: Dose) -> None:
    if dose.start is NEVER:
        reading.out.miss(segment.name, "3", "no_time")
        return
    reading.out.events += dose_facts(dose)
