"""Reads the elements that FHIR R4 resources are made of, whatever stands in their place.

A message may be wrong anywhere, so nothing here trusts the type of anything: what is not what it should be is read as
absent, and the resource says what it lacked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo

from features.events import NAT
from features.sources.facts import NEVER, Moment, bare_date, micros, number
from features.sources.vocabulary import prefix

Json = dict[str, Any]
DEEPEST: Final = 16
"""How deep Bundles may lie in Bundles."""
DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
NUMBERED: Final = "valueQuantity", "valueInteger", "valueDecimal", "valueBoolean"
WORDED: Final = "valueString", "valueCodeableConcept", "valueCode"
VALUES: Final = (
    *NUMBERED, *WORDED, "valueRange", "valueRatio", "valueSampledData", "valueTime", "valueDateTime", "valuePeriod",
    "valueAttachment", "valueReference",
)  # fmt: skip


@dataclass
class Known:
    """What other resources say, that a resource only refers to.

    Attributes
    ----------
    urls : full URL of a Bundle's entry to the id of its resource
    identifiers : (resource type, system, value) to the id, for references by identifier
    drugs, places : name of each Medication and Location, by id
    specimens : (when it was taken, what it is) of each Specimen, by id
    """

    urls: dict[str, str] = field(default_factory=dict)
    identifiers: dict[tuple[str, str, str], str] = field(default_factory=dict)
    drugs: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    specimens: dict[str, tuple[Moment, str]] = field(default_factory=dict)


def obj(value: object) -> Json:
    """A JSON object, empty when it is anything else."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Json]:
    """The objects of a JSON array; a lone object counts as an array of one."""
    if isinstance(value, dict):
        return [value]
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def text(value: object) -> str:
    """A JSON string without the blanks around it, empty when it is anything else."""
    return value.strip() if isinstance(value, str) else ""


def quantity(value: object) -> float:
    """A JSON number, or a string that is one; NaN for anything else and for what is not finite."""
    if isinstance(value, bool):
        return math.nan
    if isinstance(value, int | float):
        try:
            return float(value) if math.isfinite(value) else math.nan
        except OverflowError:
            return math.nan
    return number(value)[0] if isinstance(value, str) else math.nan


@lru_cache(maxsize=16_384)
def moment(written: str, where: ZoneInfo) -> Moment:
    """When a ``dateTime`` or ``instant`` was; a time without an offset is local, a date is known the next day.

    ``NEVER`` for what is no time, and for a month or a year, which say too little.
    """
    try:
        instant = datetime.fromisoformat(written)
        if DAY.fullmatch(written):
            return bare_date(instant, where)
        if written[10:11] not in ("T", " "):
            return NEVER
        when = micros(instant, where)
    except (ValueError, OverflowError):
        return NEVER
    return Moment(when, when)


def period(value: object, where: ZoneInfo) -> tuple[Moment, Moment]:
    """Start and end of a Period."""
    span = obj(value)
    return moment(text(span.get("start")), where), moment(text(span.get("end")), where)


def birth(written: str, where: ZoneInfo) -> int:
    """A date of birth; the middle of the year or month where only that is given."""
    middle = {4: "-07-01", 7: "-15"}.get(len(written), "")
    return moment(written + middle, where).time if re.fullmatch(r"\d{4}(-\d{2}){0,2}", written) else NAT


def codings(value: object) -> tuple[list[str], str]:
    """The codes of a CodeableConcept as ``SYSTEM//code``, and its name: the text, or the first display."""
    concept = obj(value)
    found = [c for c in items(concept.get("coding")) if text(c.get("code"))]
    codes = [f"{prefix(text(c.get('system')))}//{text(c.get('code'))}" for c in found]
    names = [text(concept.get("text"))] + [text(c.get("display")) for c in items(concept.get("coding"))]
    name = next(filter(None, names), "")
    if not codes and name:
        codes = [f"LOCAL//{name}"]
    return codes, name or (text(found[0].get("code")) if found else "")


def unit(value: object) -> str:
    """The unit of a Quantity: its code, or how it is shown."""
    said = obj(value)
    return text(said.get("code")) or text(said.get("unit"))


def rate(dosage: Json) -> tuple[float, str]:
    """The rate of a dosage with its unit: ``rateQuantity``, or ``rateRatio`` divided out."""
    if "rateQuantity" in dosage:
        return quantity(obj(dosage["rateQuantity"]).get("value")), unit(dosage["rateQuantity"])
    ratio = obj(dosage.get("rateRatio"))
    above, below = obj(ratio.get("numerator")), obj(ratio.get("denominator"))
    over = quantity(below.get("value", 1))
    if not over:
        return math.nan, ""
    return quantity(above.get("value")) / over, f"{unit(above)}/{unit(below)}" if unit(below) else unit(above)


def refer(value: object, known: Known) -> tuple[str, str]:
    """``(resource type or "", id)`` that a Reference leads to; the id is empty when it leads nowhere."""
    reference = obj(value)
    said = text(reference.get("reference"))
    kind = text(reference.get("type"))
    if not said:
        return _by_identifier(kind, obj(reference.get("identifier")), known)
    if said.startswith("#"):
        return kind, said
    if said in known.urls:
        return kind, known.urls[said]
    if "?" in said:
        return _by_search(said, known)
    if said.startswith("urn:"):
        return kind, said.rsplit(":", 1)[-1]
    parts = said.split("/_history/")[0].rstrip("/").split("/")
    return (parts[-2] if len(parts) > 1 else kind), parts[-1]


def _by_identifier(kind: str, identifier: Json, known: Known) -> tuple[str, str]:
    key = text(identifier.get("system")), text(identifier.get("value"))
    kinds = [kind] if kind else ["Patient", "Encounter"]
    found = next((known.identifiers[k, *key] for k in kinds if (k, *key) in known.identifiers), "")
    return kind, found


def _by_search(said: str, known: Known) -> tuple[str, str]:
    """A conditional reference, as transactions use: ``Patient?identifier=system|value``."""
    kind, _, query = said.partition("?")
    asked = dict(part.partition("=")[::2] for part in query.split("&"))
    system, _, value = asked.get("identifier", "").rpartition("|")
    return kind, known.identifiers.get((kind, system, value), "")


def resources(document: object, depth: int = DEEPEST) -> Iterator[tuple[str, Json, str]]:
    """``(full URL, resource, method)`` of everything in a document: a Bundle, Parameters, a prefetch, or a resource.

    Bundles may lie in Bundles, down to ``depth``. A prefetch of CDS Hooks is an object whose members are resources.
    """
    whole = obj(document) if depth else {}
    kind = whole.get("resourceType")
    if kind == "Bundle":
        for entry in items(whole.get("entry")):
            method = text(obj(entry.get("request")).get("method")).upper()
            yield from _entry(entry.get("resource"), text(entry.get("fullUrl")), method, depth)
    elif kind == "Parameters":
        for parameter in items(whole.get("parameter")):
            yield from _entry(parameter.get("resource"), "", "", depth)
    elif isinstance(kind, str):
        yield "", whole, ""
    else:
        for member in whole.values():
            if isinstance(obj(member).get("resourceType"), str):
                yield from resources(member, depth - 1)


def _entry(resource: object, url: str, method: str, depth: int) -> Iterator[tuple[str, Json, str]]:
    inside = obj(resource)
    if inside.get("resourceType") in ("Bundle", "Parameters"):
        yield from resources(inside, depth - 1)
    elif inside or method:
        yield url, inside, method
