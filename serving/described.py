"""How the JSON routes are described: bodies with examples that the tests send, answers, refusals."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from serving.schemas import ErrorAnswer, Problem

MAX_BODY_TEXT: Final = "One JSON object; see WARDCAST_MAX_BODY_BYTES and WARDCAST_MAX_EVENTS for its limits."
REFUSALS: Final = {
    400: "The body cannot be read.",
    401: "No token, or one that is not known.",
    403: "The caller's role may not do this.",
    404: "There is none of this identity.",
    409: "The encounter has ended.",
    413: "More than one call may carry.",
    415: "The body is of another media type, or packed.",
    422: "Fields that cannot be used, each with its remedy.",
    503: "No model is loaded; the code says why.",
}
ID: Final = "0123456789abcdef0123456789abcdef"
ENCOUNTER: Final = {
    "encounter_id": "E-1", "encounter_class": "icu", "age_years": 67, "sex": "female",
    "icu_admission_time": "2026-03-01T06:00:00Z",
}  # fmt: skip
EVENTS: Final = [
    {"concept": "heart_rate", "time": "2026-03-01T08:00:00Z", "value": 112},
    {"code": "LOINC//32693-4", "time": "2026-03-01T08:10:00Z", "value": 3.1, "unit": "mmol/L"},
    {"concept": "respiratory_rate", "time": "2026-03-01T08:00:00Z", "value": 24},
    {"concept": "temperature", "time": "2026-03-01T08:00:00Z", "value": 101.3, "unit": "[degF]"},
]
PATIENT: Final = {"encounter": ENCOUNTER, "events": EVENTS, "prediction_time": "2026-03-01T09:00:00Z"}
EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "ScoreRequest": {
        "one patient": PATIENT | {"explain": True},
        "too little to go by": {
            "encounter": {"encounter_id": "E-2", "encounter_class": "icu"}, "events": [],
            "prediction_time": "2026-03-01T09:00:00Z",
        },
    },
    "BulkRequest": {
        "one of two cannot be read": {
            "patients": [PATIENT, {"encounter": {"encounter_id": "E-3", "age_years": -1}, "events": []}]
        }
    },
    "EventsRequest": {
        "an admission and its first results": {
            "encounters": [ENCOUNTER], "events": [event | {"encounter_id": "E-1"} for event in EVENTS],
        },
        "a correction": {
            "events": [
                {"encounter_id": "E-1", "concept": "lactate", "time": "2026-03-01T08:10:00Z", "value": 1.3,
                 "status": "corrected", "source_id": "lab-17"},
            ],
        },
    },
    # An identity of a prediction that is there cannot be known beforehand.
    "WhatIfRequest": {},
    "AcknowledgeRequest": {"seen": {"alert_id": ID, "outcome": "acted", "comment": "Cultures and antibiotics given."}},
}  # fmt: skip
"""By contract; an acknowledgement names an alert that has to be there."""


def takes(model: str) -> dict[str, Any]:
    """OpenAPI of a body that is read by :func:`serving.answers.parse`."""
    examples = {name: {"value": value} for name, value in EXAMPLES[model].items()}
    content = {"schema": {"$ref": f"#/components/schemas/{model}"}, "examples": examples}
    return {
        "requestBody": {
            "required": True, "description": MAX_BODY_TEXT, "content": {"application/json": content},
        }
    }  # fmt: skip


def gives(answer: type[BaseModel], *refusals: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI of an answer and the refusals a route may give instead."""
    return {200: {"model": answer}, **problems(*refusals)}


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI of refusals."""
    return {code: {"model": ErrorAnswer, "description": REFUSALS[code]} for code in codes}


class Reason(BaseModel):
    """What one clinical concept did to the score; `contribution` is exact TreeSHAP, summed."""

    concept: str
    label: str
    text: str = Field(description="Name, value, change, time, direction, as people read it.")
    value: float | None
    unit: str | None
    time: str | None
    previous: float | None
    change: float | None
    direction: Literal["raises", "lowers", "neutral"]
    contribution: float


class Rest(BaseModel):
    """The reasons not shown, summed up."""

    count: int
    contribution: float


class Explanation(BaseModel):
    """`base`, the reasons and the others add up to `raw`."""

    scale: str
    base: float | None
    reasons: list[Reason]
    others: Rest


class WhyNot(BaseModel):
    """Why there is no score, and what would mend it."""

    code: str
    message: str
    remedy: str
    unknown: list[str] = []
    missing: list[str]


class LeftOut(BaseModel):
    """Something sent that the score did not read."""

    field: str
    reason: str
    remedy: str


class Scored(BaseModel):
    """One patient at one moment. `probability` is null unless `status` is `scored`; never 0 for what is not known."""

    prediction_id: str
    encounter_id: str
    model: str = Field(description="Name, version and hash of the bundle.")
    prediction_time: str
    created_time: str
    status: str = Field(description="`scored`, `insufficient_data`, `out_of_scope` or `indeterminate`.")
    reason: WhyNot | None
    probability: float | None = Field(ge=0, le=1)
    interval: list[float] | None = Field(
        description="Lowest and highest risk that the calibration's patients allow for everyone with this score, 95 %."
    )
    indeterminate: bool = Field(description="A high score on a record with few laboratory results.")
    raw: float | None
    threshold: float
    alert: bool
    explanation: Explanation | None


class ScoreAnswer(Scored):
    """A score from what was sent."""

    used: int
    ignored: list[LeftOut]
    features: dict[str, float | None] | None = Field(None, description="Where asked for.")


class WhatIfAnswer(BaseModel):
    """A logged prediction made again with other last values. It says how the model works, not what treatment does."""

    prediction_id: str
    prediction_time: str
    model: str
    given: float | None = Field(description="The probability as it was given.")
    changes: dict[str, float]
    status: str
    raw: float | None
    probability: float | None = Field(ge=0, le=1)
    alert: bool
    change: float | None = Field(description="Probability now less the one given.")
    reasons: list[dict[str, Any]]
    caution: str


class RefusedAnswer(BaseModel):
    """One patient of many who could not be read."""

    status: str
    probability: None
    error: Problem


class BulkAnswer(BaseModel):
    """One answer a patient, in the order sent."""

    model: str
    created_time: str
    scores: list[ScoreAnswer | RefusedAnswer]


class FeedNotice(BaseModel):
    """Something wrong with the feeds behind a score. `concept` is null where it is a clock that is off."""

    code: str = Field(description="`feed_down` or `clock_skew`.")
    concept: str | None
    since: str
    message: str


class RiskAnswer(Scored):
    """A score from the store."""

    page: bool
    notices: list[FeedNotice] = Field(
        description="What the last look at the feeds says of this patient's ward."
    )


class PastScore(BaseModel):
    """A score of the past, as it was given then."""

    prediction_id: str
    prediction_time: str
    created_time: str
    model: str
    status: str
    probability: float | None = Field(ge=0, le=1)
    alert: bool
    page: bool
    reasons: list[str]


class HistoryAnswer(BaseModel):
    """Scores of one encounter, newest first; `total` counts all in the period."""

    encounter_id: str
    total: int
    scores: list[PastScore]


class ItemVerdict(BaseModel):
    """What became of one item."""

    verdict: Literal["accepted", "duplicate", "rejected"]
    used: bool
    reason: str | None = None
    field: str | None = None
    remedy: str | None = None


class Brief(BaseModel):
    """A score that news led to."""

    encounter_id: str
    prediction_id: str
    status: str
    probability: float | None
    alert: bool
    page: bool


class Skipped(BaseModel):
    """Someone about whom something is new, and why there is no score."""

    encounter_id: str
    status: str


class EventsAnswer(BaseModel):
    """What became of the news."""

    received_time: str
    encounters: list[ItemVerdict]
    events: list[ItemVerdict]
    counts: dict[str, int]
    scored: int
    predictions: list[Brief]
    skipped: list[Skipped]


class Alert(BaseModel):
    """One alert: an episode pages once, and again only on a further rise."""

    alert_id: str
    encounter_id: str
    prediction_id: str
    raised_time: str
    probability: float
    reason: Literal["threshold", "risen"]
    ended_time: str | None
    acknowledged_time: str | None
    acknowledged_by: str | None


class AlertsAnswer(BaseModel):
    """Alerts, newest first."""

    alerts: list[Alert]
