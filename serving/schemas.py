"""The contract of every request, and errors that help without repeating what was sent.

Numbers are numbers, instants carry an offset, unknown fields are refused. What a caller sent may be a patient's name in
the wrong field, so no message ever holds it: errors name the field, the kind of value found, and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails

from features.events import STATUSES

MAX_ERRORS_TOLD: Final = 20

Identity = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
ShortText = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
NO_NUL: Final = r"^[^\x00]*$"
"""PostgreSQL cannot keep a NUL in a text, and nobody means one."""
Number = Annotated[float, Field(allow_inf_nan=False)]
_DAY: Final = (
    r"(?:(?:19|20|21)\d\d-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|"
    r"02-(?:0[1-9]|1\d|2[0-8]))|(?:(?:19|20|21)(?:0[48]|[2468][048]|[13579][26])|2000)-02-29)"
)
_INSTANT: Final = (
    rf"^{_DAY}T(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{{1,6}})?)?(?:Z|[+-](?:0\d|1[0-3]):[0-5]\d)$"
)
"""What an instant is written like, for those who read the description of the API."""
# The format alone would promise the years 1 to 9999, and Python's own range is not ours either.
Instant = Annotated[
    AwareDatetime,
    Field(ge=datetime(1900, 1, 1, tzinfo=UTC), lt=datetime(2200, 1, 1, tzinfo=UTC)),
    WithJsonSchema({"type": "string", "pattern": _INSTANT, "examples": ["2026-01-12T08:00:00Z"]}),
]


def _written(value: object) -> object:
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\d", value):
        raise ValueError("is no instant|Write ISO 8601 with an offset, for example 2026-01-12T08:00:00Z.")
    return value


QueryInstant = Annotated[Instant, BeforeValidator(_written)]
"""The same in a query, where a number would pass for seconds since 1970."""


Blank = BeforeValidator(lambda value: None if value == "" else value)
"""Feeds say nothing in two ways: null and empty text."""


SometimesText = Annotated[
    ShortText | None,
    Blank,
    WithJsonSchema(
        {"anyOf": [{"type": "string", "maxLength": 128, "pattern": r"^[^\x00-\x1f\x7f]*$"}, {"type": "null"}]}
    ),
]
"""A text that feeds may leave empty."""


class Contract(BaseModel):
    """What every request has in common."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class EncounterIn(Contract):
    """One stay or attendance. A field left out keeps what was known; null says that it is not known."""

    encounter_id: Identity
    subject_id: Identity | None = Field(
        None, description="The person; the encounter's own id where nobody said."
    )
    encounter_class: Annotated[Literal["ed", "ward", "icu"] | None, Blank] = Field(
        None, description="Where the patient is now."
    )
    unit: SometimesText = None
    specialty: SometimesText = None
    age_years: Annotated[float, Field(ge=0, le=130)] | None = None
    sex: Annotated[Literal["male", "female"] | None, Blank] = None
    icu_type: Annotated[Literal["medical", "surgical"] | None, Blank] = None
    hospital_admission_time: Instant | None = None
    icu_admission_time: Instant | None = None
    arrival_time: Instant | None = None
    arrival_mode: SometimesText = None
    decision_time: Instant | None = Field(None, description="Decision to admit.")
    admission_time: Instant | None = Field(None, description="Reached a bed.")
    discharge_time: Instant | None = Field(None, description="Left the hospital.")


def _one_name_and_a_value(schema: dict[str, Any]) -> None:
    """What :class:`EventBody` asks of several fields together, for those who read the description of the API."""

    def there(name: str) -> dict[str, Any]:
        return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}

    schema["allOf"] = [
        {"oneOf": [there("code"), there("concept")]},
        {
            "anyOf": [
                there("value"),
                there("text"),
                {"properties": {"status": {"const": "deleted"}}, "required": ["status"]},
            ]
        },
        {"anyOf": [there("source_id"), {"properties": {"status": {"enum": ["final", "preliminary"]}}}]},
    ]


class EventBody(Contract):
    """One dated fact."""

    model_config = ConfigDict(json_schema_extra=_one_name_and_a_value)

    code: Annotated[str, Field(min_length=3, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")] | None = Field(
        None, description="SYSTEM//code, for example LOINC//8867-4."
    )
    concept: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")] | None = Field(
        None, description="Our own name instead of a code, for example heart_rate."
    )
    time: Instant = Field(description="When it happened at the bedside.")
    available_time: Instant | None = Field(
        None,
        description="When the hospital's systems could first show it. Where left out: `time` and the delay that "
        "concepts.csv declares for the concept (laboratory results), but never later than the call; of a correction "
        "or deletion: when it was received.",
    )
    value: Number | None = None
    text: Annotated[str, Field(max_length=2000, pattern=NO_NUL)] | None = None
    unit: Annotated[str, Field(max_length=64, pattern=NO_NUL)] | None = Field(
        None, description="UCUM; the code's own where left out."
    )
    status: Literal["final", "corrected", "preliminary", "deleted"] = "final"
    source_id: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")] | None = (
        Field(
            None,
            description="Identity at the source, one a fact. A correction or deletion must carry the identity of what "
            "it takes back; of several reports with one identity the one received last stands.",
        )
    )

    @model_validator(mode="after")
    def _says_what(self) -> EventBody:
        if (self.code is None) == (self.concept is None):
            raise ValueError(
                "exactly one of code and concept is needed|Send the source's code, or our concept."
            )
        if self.value is None and self.text is None and self.status != "deleted":
            raise ValueError("neither value nor text is there|Send a value; leave out what was not measured.")
        if self.status in ("corrected", "deleted") and self.source_id is None:
            raise ValueError(
                "source_id is missing: nothing says what is corrected or deleted"
                "|Send the source_id of what it corrects."
            )
        return self


class EventIn(EventBody):
    """One dated fact about an encounter."""

    encounter_id: Identity


class ScoreRequest(Contract):
    """One patient, as far as the caller knows; nothing but the log of the prediction is stored."""

    encounter: EncounterIn
    events: list[EventBody]
    prediction_time: Instant | None = Field(None, description="Now where left out. Nothing later is read.")
    explain: StrictBool | Literal["auto"] = Field(
        "auto", description="auto: reasons at or above the threshold. true or false: always or never."
    )
    features: bool = Field(False, description="Also return the features the score was made from.")


class BulkRequest(Contract):
    """Many patients, each as if asked about alone."""

    patients: list[ScoreRequest] = Field(
        description="Each is judged for itself: one that cannot be read has its own refusal among the answers.",
        json_schema_extra=lambda schema: schema.update(items={"anyOf": [schema["items"], {}]}),
    )


class EventsRequest(Contract):
    """News about any number of encounters."""

    encounters: list[EncounterIn] = []
    events: list[EventIn] = []
    as_of: Instant | None = Field(
        None, description="The sender's clock; only where WARDCAST_CLOCK is replay."
    )


class AcknowledgeRequest(Contract):
    """Somebody has seen an alert."""

    alert_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    outcome: Literal["seen", "acted", "dismissed"] = "seen"
    comment: Annotated[str, Field(max_length=500, pattern=NO_NUL)] | None = None


class WhatIfRequest(Contract):
    """A logged prediction, and last values that are to be others."""

    prediction_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    changes: dict[Annotated[str, Field(min_length=1, max_length=64)], float] = Field(
        min_length=1, max_length=10, description="Value by concept, in the unit of concepts.csv."
    )


REQUESTS: Final = (ScoreRequest, BulkRequest, EventsRequest, AcknowledgeRequest, WhatIfRequest)
assert STATUSES == ("final", "corrected", "preliminary", "deleted")  # noqa: S101  # the contract above spells them out


class FieldProblem(BaseModel):
    """One field that cannot be used."""

    field: str
    problem: str
    remedy: str


class Problem(BaseModel):
    """What went wrong, in the one shape that every error has."""

    code: str
    message: str
    remedy: str
    fields: list[FieldProblem] = []


class ErrorAnswer(BaseModel):
    """The body of every answer that is not 2xx."""

    error: Problem
    request_id: str


INSTANT_REMEDY = "Write ISO 8601 with an offset, for example 2026-01-12T08:00:00Z, between 1900 and 2199."
KINDS: Final[Mapping[type, str]] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def field_name(loc: Sequence[int | str]) -> str:
    """``("events", 3, "value")`` as ``events[3].value``."""
    name = ""
    for part in loc:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    return name or "body"


def explain_errors(
    details: Sequence[ErrorDetails], request: type[BaseModel] | None = None
) -> list[FieldProblem]:
    """Say of each field what was expected, what kind of value was there, and what to do; never the value.

    Parameters
    ----------
    details : what pydantic found
    request : the contract that was broken; where given, an unknown field is answered with the known ones
    """
    told: dict[str, FieldProblem] = {}
    for detail in details:
        problem = _explain(detail, request)
        told.setdefault(problem.field, problem)
    problems = list(told.values())[:MAX_ERRORS_TOLD]
    more = len(told) - len(problems)
    if more > 0:
        problems.append(
            FieldProblem(
                field="body", problem=f"{more:,} more fields have problems", remedy="Mend these first."
            )
        )
    return problems


def _explain(detail: ErrorDetails, request: type[BaseModel] | None) -> FieldProblem:
    kind, loc, context = detail["type"], detail["loc"], detail.get("ctx", {})
    found = KINDS.get(type(detail.get("input")), "another kind of value")
    if kind == "extra_forbidden":
        # The unknown name is the caller's text: it may be anything, so it is not repeated.
        return FieldProblem(
            field=field_name(loc[:-1]),
            problem="holds a field that is not known here",
            remedy=f"Known fields: {', '.join(_known_fields(loc, request))}.",
        )
    if kind == "value_error":
        problem, _, remedy = str(context.get("error", "")).partition("|")
        about = problem.partition(" ")[0]
        whose = (*loc, about) if about in _fields(request) else loc
        return FieldProblem(field=field_name(whose), problem=problem, remedy=remedy)
    # Where a field may be of several kinds, pydantic names the branch last.
    named = [p for p in loc if request is None or isinstance(p, int) or p in _fields(request)]
    problem, remedy = _wording(kind, context, found)
    return FieldProblem(field=field_name(named), problem=problem, remedy=remedy)


def _wording(kind: str, context: Mapping[str, Any], found: str) -> tuple[str, str]:
    if kind == "missing":
        return "is missing", "Send it; see /openapi.json for the contract."
    if kind == "finite_number":
        return "is NaN or infinite", "Leave the event out, or send a finite number."
    if "date" in kind or kind in ("timezone_aware", "time_type"):
        return f"expected an instant with an offset, found {found}", INSTANT_REMEDY
    if kind in ("greater_than_equal", "less_than", "less_than_equal", "greater_than"):
        bound = next((context[k] for k in ("ge", "gt", "le", "lt") if k in context), "")
        if not isinstance(bound, int | float):
            return "is outside the years 1900 to 2199", INSTANT_REMEDY
        return f"is out of range: must be {_BOUNDS[kind]} {bound:g}", "Check its unit and its scale."
    if kind == "literal_error":
        return f"expected one of {context.get('expected', '')}", "Send one of these, or leave the field out."
    expected = _EXPECTED.get(kind)
    if expected:
        return f"expected {expected}, found {found}", f"Send {expected}."
    if kind in ("string_too_long", "string_too_short", "string_pattern_mismatch"):
        limits = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in context.items() if k != "pattern")
        return (
            f"is not written as it should be{f' ({limits})' if limits else ''}",
            "See the field in /openapi.json.",
        )
    return "cannot be used", "See the field in /openapi.json."


_EXPECTED: Final[Mapping[str, str]] = {
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
}

_BOUNDS: Final[Mapping[str, str]] = {
    "greater_than_equal": "at least",
    "greater_than": "above",
    "less_than_equal": "at most",
    "less_than": "below",
}


@cache
def _fields(request: type[BaseModel] | None) -> frozenset[str]:
    """The names of all fields in a contract, at any depth; of all contracts here where none is given."""
    names: set[str] = set()
    for model in REQUESTS if request is None else (request,):
        schema = model.model_json_schema()
        for part in (schema, *schema.get("$defs", {}).values()):
            names |= set(part.get("properties", {}))
    return frozenset(names)


def _known_fields(loc: Sequence[int | str], request: type[BaseModel] | None) -> list[str]:
    if request is None:
        return ["see /openapi.json"]
    events = EventIn if request is EventsRequest else EventBody
    inner = {"encounter": EncounterIn, "encounters": EncounterIn, "events": events}
    owner = next((inner[p] for p in reversed(loc[:-1]) if isinstance(p, str) and p in inner), request)
    return sorted(owner.model_fields)
