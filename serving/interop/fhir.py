"""FHIR R4 out: risk, alerts and their origin, for whoever pulls them.

Search only. A read (``GET /fhir/RiskAssessment/ID``) is not offered, since paths stand in logs of every proxy on the
way and identities do not belong there: ``?_id=`` does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from models.scope import SCORED
from serving.answers import Refusal
from serving.interop.judging import judged
from serving.interop.resources import (
    Resource,
    Standing,
    bundle,
    flag,
    observation,
    provenance,
    risk_assessment,
)
from serving.rounds import STORED
from serving.rounds import standing as stands_now
from serving.state import Wardcast, of
from serving.store import facts, log, people

MEDIA: Final = "application/fhir+json"
FHIR_VERSION: Final = "4.0.1"
WRITTEN: Final = "2026-01-12"
"""When the CapabilityStatement last changed in kind."""
SEARCHES: Final = {
    "RiskAssessment": ("encounter", "_id"),
    "Observation": ("encounter", "_id"),
    "Flag": ("encounter",),
    "Provenance": ("target",),
}
NOTHING_ASKED: Final = Refusal(
    422, "no_search_parameter", "Nothing says what is wanted.", "Search by encounter= or by _id=."
)


class FhirJson(JSONResponse):
    """FHIR's own media type."""

    media_type = MEDIA


REFUSED: Final[dict[int | str, dict[str, Any]]] = {
    422: {"description": "Not a search that is offered; an OperationOutcome.", "content": {MEDIA: {}}}
}
router = APIRouter(prefix="/fhir", tags=["FHIR"], default_response_class=FhirJson, responses=REFUSED)

Encounter = Annotated[
    str | None,
    Query(
        max_length=140,
        description="The encounter's identity as fed in, alone or after `Encounter/`.",
        examples=["E1"],
    ),
]
Identity = Annotated[str | None, Query(alias="_id", max_length=64)]
Count = Annotated[int, Query(alias="_count", ge=1, le=500, description="Resources a page.")]
Offset = Annotated[int, Query(alias="_offset", ge=0, le=1_000_000)]
Include = Annotated[
    Literal["Provenance:target"] | None,
    Query(alias="_revinclude", description="Also return the Provenance of each."),
]


@router.get("/RiskAssessment", summary="FHIR: risk of an encounter, newest first")
def risk_assessments(
    request: Request,
    encounter: Encounter = None,
    identity: Identity = None,
    count: Count = 50,
    offset: Offset = 0,
    include: Include = None,
) -> JSONResponse:
    """Every score of an encounter, the current one first. What could not be scored is under Observation.

    `status` is `final`; `corrected` or `entered-in-error` where a value that was read was corrected or withdrawn later.
    """
    state = of(request)
    scorer = None if "sepsis" in state.problems else state.scorer

    def write(row: Mapping[str, Any], became: Standing) -> Resource:
        own = scorer is not None and scorer.bundle.model_id == row["model_id"]
        return risk_assessment(row, became, scorer if own else None)

    return _predictions(request, encounter, identity, count, offset, include, write, scored_only=True)


@router.get("/Observation", summary="FHIR: risk as numbers, and why there was none, newest first")
def observations(
    request: Request,
    encounter: Encounter = None,
    identity: Identity = None,
    count: Count = 50,
    offset: Offset = 0,
    include: Include = None,
) -> JSONResponse:
    """Every prediction of an encounter as an Observation; `dataAbsentReason` where there is no score."""
    return _predictions(request, encounter, identity, count, offset, include, observation, scored_only=False)


@router.get("/Flag", summary="FHIR: alerts of an encounter, newest first")
def flags(request: Request, encounter: Encounter = None) -> JSONResponse:
    """Every alert of an encounter; `active` until it has ended."""
    state, who = of(request), _encounter_id(encounter)
    if who is None:
        raise NOTHING_ASKED
    with state.store.read() as connection:
        who, named = people.names_of(connection, who)
        known = facts.latest(connection, [who]).get(who)
        rows = log.read_alerts(connection, None, None, named)
        alerts = [dict(zip(log.ALERT_COLUMNS, row, strict=True)) for row in reversed(rows)]
        alerts = people.as_now(connection, alerts)
    found = [flag(alert, str(alert["subject_id"])) for alert in alerts] if known else []
    state.audit(request, "read Flag", [who], outcome="done" if known else "not_found")
    return _page(request, found, len(found), {}, known is not None)


@router.get("/Provenance", summary="FHIR: which model made a prediction, from what")
def provenances(request: Request, target: Annotated[str, Query(max_length=64)]) -> JSONResponse:
    """The Provenance of a RiskAssessment or Observation, named with or without its type."""
    identity = target.rpartition("/")[2]
    return _predictions(request, None, identity, 1, 0, None, provenance, scored_only=False)


def _predictions(
    request: Request,
    encounter: str | None,
    identity: str | None,
    count: int,
    offset: int,
    include: str | None,
    write: Callable[[Mapping[str, Any], Standing], Resource],
    *,
    scored_only: bool,
) -> JSONResponse:
    """Find predictions, judge each by what is known now, and write them as resources."""
    state, who = of(request), _encounter_id(encounter)
    if who is None and identity is None:
        raise NOTHING_ASKED
    named = None
    if who is not None:
        with state.store.read() as connection:
            who, named = people.names_of(connection, who)
        _bring_up_to_date(state, who)
    status = SCORED if scored_only else None
    with state.store.read() as connection:
        total, rows = log.found_predictions(connection, named, identity, STORED, status, count, offset)
        became = judged(connection, rows, state)
        known = who is None or bool(facts.latest(connection, [who]))
        named_now = people.as_now(connection, rows)
    resources = [write(row, became[row["prediction_id"]]) for row in named_now]
    if include:
        resources += [provenance(row, became[row["prediction_id"]]) for row in named_now]
    about = sorted({row["encounter_id"] for row in rows} | ({who} if who else set()))
    outcome = "done" if known and (rows or who) else "not_found"
    state.audit(request, f"read {request.url.path.removeprefix('/fhir/')}", about, outcome=outcome)
    more = {"_count": str(count), "_offset": str(offset + count)} if offset + count < total else {}
    return _page(request, resources, total, more, known)


def _encounter_id(encounter: str | None) -> str | None:
    return encounter.removeprefix("Encounter/") or None if encounter else None


def _bring_up_to_date(state: Wardcast, encounter_id: str) -> None:
    """Let the newest prediction be one of now, where the patient is here and there is a model."""
    if "sepsis" in state.problems:
        return
    now = state.now_us()
    with state.store.read() as connection:
        known = facts.latest(connection, [encounter_id]).get(encounter_id)
    if known is not None and not facts.has_ended(known, now):
        stands_now(state, encounter_id, now)


def _page(
    request: Request, resources: Sequence[Resource], total: int, more: Mapping[str, str], known: bool
) -> JSONResponse:
    base = of(request).settings.known_as
    asked = dict(request.query_params)
    links = {"self": f"{base}{request.url.path}?{urlencode(asked)}"}
    if more:
        links["next"] = f"{base}{request.url.path}?{urlencode(asked | dict(more))}"
    found = bundle(resources, total, base, links)
    if not known:
        # An empty page must not read as "no risk".
        about = outcome("not-found", "Nothing has been received about this encounter.", "warning")
        found["entry"] = [{"resource": about, "search": {"mode": "outcome"}}]
    return FhirJson(found)


def outcome(code: str, text: str, severity: str = "error") -> Resource:
    """An OperationOutcome."""
    return {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": severity, "code": code, "diagnostics": text}],
    }


ISSUES: Final = {
    401: "login",
    403: "forbidden",
    404: "not-found",
    412: "required",
    413: "too-long",
    503: "transient",
}


def refused(refusal: Refusal) -> FhirJson:
    """A refusal as FHIR clients read it: one issue, or one for each field."""
    code = ISSUES.get(refusal.status, "invalid" if refusal.status < 500 else "exception")
    said = outcome(code, f"{refusal.message} {refusal.remedy}")
    if refusal.fields:
        said["issue"] = [
            {
                "severity": "error",
                "code": code,
                "diagnostics": f"{f.field} {f.problem}. {f.remedy}",
                "expression": [f.field],
            }
            for f in refusal.fields
        ]
    return FhirJson(said, status_code=refusal.status)


@router.get("/metadata", summary="FHIR: CapabilityStatement")
def metadata(request: Request) -> JSONResponse:
    """What can be asked here. Answered to everyone, since nothing about a patient is in it."""
    resources = [
        {
            "type": kind,
            "interaction": [{"code": "search-type"}],
            "searchParam": [
                {"name": name, "type": "token" if name == "_id" else "reference"} for name in parameters
            ],
        }
        for kind, parameters in SEARCHES.items()
    ]
    for resource in resources[:2]:
        resource["searchRevInclude"] = ["Provenance:target"]
    rest: dict[str, Any] = {
        "mode": "server",
        "documentation": "Risk, alerts and their origin. Probabilities are fractions from 0 to 1.",
        "security": {"description": "Authorization: Bearer, with a token of this service."},
        "resource": resources,
    }
    if _takes_bundles(request):
        rest["interaction"] = [{"code": "transaction"}, {"code": "batch"}]
    return FhirJson(
        {
            "resourceType": "CapabilityStatement",
            "status": "active",
            "date": WRITTEN,
            "kind": "instance",
            "software": {"name": "Wardcast", "version": request.app.version},
            "implementation": {
                "description": "Wardcast: calibrated sepsis risk",
                "url": f"{of(request).settings.known_as}/fhir",
            },
            "fhirVersion": FHIR_VERSION,
            "format": [MEDIA, "json"],
            "rest": [rest],
        }
    )


def _takes_bundles(request: Request) -> bool:
    return any(
        getattr(route, "path", "") == "/fhir" and "POST" in (getattr(route, "methods", None) or ())
        for route in request.app.routes
    )
