"""``POST /fhir``: Bundles and single resources, on the one way in, with an OperationOutcome for each.

HL7 FHIR R4, http.html#transaction. A transaction takes all or nothing; in a batch, a collection or a message each entry
stands for itself. What we have no use for is said to be so and is no error, since an EHR sends whole records.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from features.sources import fhir as reader
from features.sources.facts import Fact
from features.sources.fhir_elements import Json, Known, resources
from features.sources.fhir_resources import Facts
from features.sources.vocabulary import SiteMap, site_map
from serving.alerts import settle
from serving.context import request_id
from serving.ingest.events import Verdict
from serving.ingest.exchange import Outcome, Said, take
from serving.rounds import behind, score_stored
from serving.state import Wardcast, of

BUNDLES: Final = ("transaction", "batch", "message", "collection", "searchset", "document", "history")
TYPES: Final = ("application/fhir+json", "application/json")
MEDIA: Final = "application/fhir+json; charset=utf-8"
KINDS: Final = {
    "future_time": "business-rule",
    "unknown_concept": "code-invalid",
    "unit_unknown": "code-invalid",
}
"""IssueType of reasons that are not simply an invalid value."""
REMEDIES: Final = {
    "no_encounter": "no encounter of the patient contains the time. Send encounter, or the Encounter first.",
    "no_subject": "no reference to a Patient. Send subject.",
    "encounter_of_another_subject": "the encounter belongs to another patient. Mend subject or encounter.",
    "future_time": "it lies ahead of the service's clock. Check the sender's clock and offset.",
    "times_out_of_order": "the patient leaves before arriving. Check period.",
    "nothing_new": "this was told before; nothing to do.",
    "merge_incomplete": "link.other leads nowhere. Send the reference.",
}
DIED_AWAY: Final = "the patient died outside any encounter that is known. Nothing to do."
BODY: Final = {
    "type": "object",
    "required": ["resourceType"],
    "properties": {"resourceType": {"type": "string"}},
}
FIRST: Final = {"Patient": 0, "Encounter": 1}
EXAMPLE: Final = {
    "resourceType": "Observation", "status": "final", "subject": {"reference": "Patient/p1"},
    "encounter": {"reference": "Encounter/e1"}, "effectiveDateTime": "2026-01-12T07:40:00Z",
    "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
    "valueQuantity": {"value": 96, "system": "http://unitsofmeasure.org", "code": "/min"},
}  # fmt: skip

router = APIRouter()


class Refused(Exception):
    """The whole call is refused."""

    def __init__(self, status: int, issues: list[Json]) -> None:
        super().__init__(status)
        self.status = status
        self.issues = issues


async def _body(request: Request) -> bytes:
    return await request.body()


@router.post(
    "/fhir",
    summary="Send FHIR R4: a Bundle or one resource",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/fhir+json": {"schema": BODY, "example": EXAMPLE}},
        }
    },
    responses={
        **{code: {"description": text, "content": {"application/fhir+json": {}}} for code, text in {
            200: "What became of each entry, or of a resource that was known; a Bundle or an OperationOutcome.",
            201: "A single resource was taken; an OperationOutcome.",
            400: "Not FHIR; an OperationOutcome.", 413: "Too large.", 415: "Not JSON.",
            422: "Refused, all of it where it is a transaction; an OperationOutcome.",
        }.items()},
    },
)  # fmt: skip
def post(request: Request, body: Annotated[bytes, Depends(_body)]) -> JSONResponse:
    """Store what the resources say, and score the patients they are about.

    Patients, encounters, observations and administrations become the same facts as events sent to `POST /v1/events`;
    answered once they are durable. A Bundle is answered by a Bundle with one entry each, a resource by its outcome.
    """
    try:
        document = _document(request, body)
        return _receive(request, document)
    except Refused as refused:
        return _answer(refused.status, operation_outcome(refused.issues))


def _document(request: Request, body: bytes) -> Json:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in TYPES or request.headers.get("content-encoding", "identity") != "identity":
        told = "The body must be JSON, not packed. Send Content-Type: application/fhir+json."
        raise Refused(415, [issue("error", "not-supported", told)])
    try:
        document = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise Refused(400, [issue("error", "structure", "The body is not JSON that can be read.")]) from None
    if not isinstance(document, dict) or not isinstance(document.get("resourceType"), str):
        told = "No resourceType. Send a FHIR R4 resource or Bundle."
        raise Refused(400, [issue("error", "structure", told)])
    if document["resourceType"] == "Bundle" and document.get("type") not in BUNDLES:
        told = f"Bundle.type must be one of {', '.join(BUNDLES)}."
        raise Refused(400, [issue("error", "value", told, "Bundle.type")])
    return document


@dataclass(frozen=True, slots=True)
class Entry:
    """One resource on its way: its type, what it says, where it stood."""

    kind: str
    said: Said
    place: str


def read(document: Json, timezone: str, site: SiteMap) -> list[Entry]:
    """What each resource of a document says, references within it resolved."""
    bundled = document["resourceType"] == "Bundle"
    met = list(resources(document))
    known = Known()
    for url, resource, _ in met:
        reader.learn(resource, known, timezone=timezone, url=url)
    entries = []
    for k, (_, resource, _) in enumerate(met):
        told = reader.facts(resource, known, timezone=timezone, site=site)
        stays = [told.stay] if told.stay is not None and not told.stay.part_of else []
        persons = [told.person] if told.person is not None else []
        said = Said(_whole(told), stays, persons, told.merges, told.problems)
        place = f"Bundle.entry[{k}].resource" if bundled else told.resource_type
        entries.append(Entry(told.resource_type, said, place))
    return entries


def _whole(told: Facts) -> list[Fact]:
    """The facts, those of a part of an encounter given to the whole."""
    if told.stay is None or not told.stay.part_of:
        return told.events
    return [fact._replace(encounter_id=told.stay.part_of) for fact in told.events]


def _receive(request: Request, document: Json) -> JSONResponse:
    state = of(request)
    entries = read(document, state.settings.timezone, _site(state))
    if sum(len(entry.said.events) for entry in entries) > state.settings.max_events:
        told = (
            f"More than {state.settings.max_events:,} facts. Send several Bundles; see WARDCAST_MAX_EVENTS."
        )
        raise Refused(413, [issue("error", "too-costly", told)])
    # Who and where is learned before what happened: the order within a Bundle does not matter.
    order = sorted(range(len(entries)), key=lambda k: FIRST.get(entries[k].kind, len(FIRST)))
    with state.store.write() as connection:
        now = state.advance(connection, None)
        taken = take(connection, [entries[k].said for k in order], now)
        outcomes = dict(zip(order, taken.outcomes, strict=True))
        if document.get("type") == "transaction":
            _all_or_nothing(entries, outcomes)
        about = sorted(set().union(*(one.encounters for one in taken.outcomes)))
        state.audit(request, "receive fhir", about, connection)
        scorer = state.scorer if "sepsis" in state.bundles else None
        settle(connection, scorer, taken.affected, now, state.alerting)
        due = sorted({*taken.affected, *behind(connection, about)})
    for outcome in taken.outcomes:
        state.metrics.count_verdicts(outcome.verdicts)
    if due and scorer is not None:
        score_stored(state, due, now)
    if document["resourceType"] == "Bundle":
        return _answer(
            200, _bundle(document, [_judged(entries[k], outcomes[k]) for k in range(len(entries))])
        )
    status, issues = _judged(entries[0], outcomes[0]) if entries else (422, [_nothing()])
    return _answer(status, operation_outcome(issues))


def _site(state: Wardcast) -> SiteMap:
    return site_map(state.settings.site_map)


def _all_or_nothing(entries: Sequence[Entry], outcomes: dict[int, Outcome]) -> None:
    """Undo a transaction of which any entry is refused."""
    judged = [_judged(entry, outcomes[k]) for k, entry in enumerate(entries)]
    wrong = [
        one for status, issues in judged if status >= 400 for one in issues if one["severity"] == "error"
    ]
    if wrong:
        raise Refused(422, wrong)


def _judged(entry: Entry, outcome: Outcome) -> tuple[int, list[Json]]:
    """Status and issues of one entry: refused, taken, taken but unused in part, or of no use to us."""
    issues = [
        issue("warning", "informational", p.remedy, _at(entry, p.field))
        for p in entry.said.problems
        if not p.lost
    ]
    harmless = (
        "not_read",
        "no_stay",
        "not_given",
        "not_an_order",
        "not_a_patient",
        "not_a_culture",
        "data_absent",
    )
    for problem in (p for p in entry.said.problems if p.lost):
        severity = "information" if problem.reason in harmless else "error"
        kind = "not-supported" if problem.reason == "not_read" else "invalid"
        issues.append(issue(severity, kind, problem.remedy, _at(entry, problem.field)))
    read_problems = {p.reason for p in entry.said.problems}
    for reason in outcome.lost.keys() - read_problems:
        if (
            reason == "no_encounter" and entry.kind == "Patient"
        ):  # who died years after the last visit is no mistake
            issues.append(issue("information", "informational", DIED_AWAY, _at(entry, "deceased")))
            continue
        issues.append(issue("error", KINDS.get(reason, "invalid"), REMEDIES.get(reason, reason), entry.place))
    issues += [one for verdict in outcome.verdicts for one in _verdict(entry, verdict)]
    taken = any(v.verdict in ("accepted", "duplicate") for v in outcome.verdicts)
    refused = any(one["severity"] == "error" for one in issues)
    if refused and not taken:
        return 422, issues
    new = any(v.verdict == "accepted" for v in outcome.verdicts) or bool(
        entry.said.stays or entry.said.persons
    )
    if not issues:
        told = "Taken." if new else REMEDIES["nothing_new"]
        issues = [issue("information", "informational" if new else "duplicate", told)]
    return (201 if new else 200), issues


def _verdict(entry: Entry, verdict: Verdict) -> list[Json]:
    if verdict.reason is None or verdict.verdict == "duplicate":
        return []
    severity = "error" if verdict.verdict == "rejected" else "warning"
    return [
        issue(
            severity, KINDS.get(verdict.reason, "invalid"), f"{verdict.field}: {verdict.remedy}", entry.place
        )
    ]


def _at(entry: Entry, field: str) -> str:
    return f"{entry.place}.{field}" if entry.place and field else entry.place


def _nothing() -> Json:
    return issue("error", "required", "Nothing to read. Send a resource.")


def issue(severity: str, kind: str, told: str, expression: str = "") -> Json:
    """One issue of an OperationOutcome; never holds a value that was sent."""
    said: Json = {"severity": severity, "code": kind, "diagnostics": told}
    return said | ({"expression": [expression]} if expression else {})


def operation_outcome(issues: Sequence[Json]) -> Json:
    """An OperationOutcome of these issues."""
    return {"resourceType": "OperationOutcome", "issue": list(issues) or [_nothing()]}


def _bundle(document: Json, judged: Sequence[tuple[int, list[Json]]]) -> Json:
    phrases = {200: "200 OK", 201: "201 Created", 422: "422 Unprocessable Entity"}
    kind = "transaction-response" if document["type"] == "transaction" else "batch-response"
    entries = [
        {"response": {"status": phrases[status], "outcome": operation_outcome(issues)}}
        for status, issues in judged
    ]
    return {"resourceType": "Bundle", "type": kind} | ({"entry": entries} if entries else {})


def _answer(status: int, content: Json) -> JSONResponse:
    return JSONResponse(content, status, headers={"X-Request-Id": request_id.get()}, media_type=MEDIA)
