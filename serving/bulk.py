"""Scores of many patients in one call, as JSON or as an Arrow stream: one model call, one transaction."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from serving import arrow
from serving.answers import Refusal, media_type, parse, require_json
from serving.api import log_scores, stateless_answer, within_limit
from serving.clock import iso
from serving.described import BulkAnswer, gives, takes
from serving.schemas import BulkRequest, ScoreRequest
from serving.scoring import pack
from serving.state import Wardcast, of, wall_us
from serving.stateless import Asked, join, understand

ARROW_IN = (
    "One row a patient: " + ", ".join(f"`{name}` {kind}" for name, kind in (arrow.ABOUT | arrow.ASKED).items())
    + ", and `events`, a list of structs of " + ", ".join(f"`{name}` {kind}" for name, kind in arrow.EVENT.items())
    + ". Only `encounter_id` and `events` must be there; uncompressed."
)  # fmt: skip
ARROW_OUT = (
    "One row a patient, in the order sent: " + ", ".join(f"`{f.name}` {f.type}" for f in arrow.ANSWER) + "."
)
BINARY = {"type": "string", "format": "binary"}
ANSWERS = gives(BulkAnswer, 400, 401, 403, 413, 415, 422, 503)
ANSWERS[200]["content"] = {arrow.STREAM: {"schema": BINARY | {"description": ARROW_OUT}}}

router = APIRouter(prefix="/v1")


async def _body(request: Request) -> bytes:
    if media_type(request) != arrow.STREAM:
        require_json(request)
    return await request.body()


@router.post(
    "/sepsis/score/bulk",
    summary="Score many patients from what is sent",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "JSON, or an Arrow IPC stream. WARDCAST_MAX_BODY_BYTES bounds both, and "
            "WARDCAST_MAX_EVENTS how many patients there are.",
            "content": takes("BulkRequest")["requestBody"]["content"]
            | {arrow.STREAM: {"schema": BINARY | {"description": ARROW_IN}}},
        }
    },
    responses=ANSWERS,
)
def bulk(request: Request, body: Annotated[bytes, Depends(_body)]) -> Response:
    """Each patient is scored as if asked about alone, and one that cannot be read keeps no other from its score.

    Where a patient could not be read, its `status` is `invalid_input` or the code of the refusal, and `error` says what
    to mend.
    """
    return _columns(request, body) if media_type(request) == arrow.STREAM else _objects(request, body)


def _objects(request: Request, body: bytes) -> JSONResponse:
    state = of(request)
    asked = _patients(state, body)
    scorer, created = state.scorer, state.now_us()
    told = [_told(state, one, created) for one in asked]
    good = [
        (a, t)
        for a, t in zip(asked, told, strict=True)
        if isinstance(a, ScoreRequest) and isinstance(t, Asked)
    ]
    encounters, when = [t.encounter for _, t in good], [t.when for _, t in good]
    answers: Iterator[dict[str, Any]] = iter(())
    if good:
        flat = scorer.lay_out(encounters, join([t for _, t in good]), when)
        scores = scorer.judge(encounters, flat, when, [a.explain for a, _ in good])
        inputs = [pack(encounter, flat, k) for k, encounter in enumerate(encounters)]
        identities = log_scores(request, scores, inputs, created)
        answers = iter(
            [
                stateless_answer(a, t, score, identity, scorer, created)
                for (a, t), score, identity in zip(good, scores, identities, strict=True)
            ]
        )
    said = [_refused(t) if isinstance(t, Refusal) else next(answers) for t in told]
    return JSONResponse({"model": scorer.bundle.model_id, "created_time": iso(created), "scores": said})


def _patients(state: Wardcast, body: bytes) -> list[ScoreRequest | Refusal]:
    """Every patient of the body, or why it cannot be read."""
    try:
        patients = parse(BulkRequest, body).patients
        within_limit(state, "patients", patients)
        return list(patients)
    except Refusal as refusal:
        whole = json.loads(body) if refusal.status == 422 else None
        items = whole.get("patients") if isinstance(whole, dict) and set(whole) == {"patients"} else None
        if not isinstance(items, list):
            raise
    within_limit(state, "patients", items)
    return [_patient(item) for item in items]


def _patient(item: object) -> ScoreRequest | Refusal:
    try:
        return parse(ScoreRequest, json.dumps(item).encode())
    except Refusal as refusal:
        return refusal


def _told(state: Wardcast, one: ScoreRequest | Refusal, now: int) -> Asked | Refusal:
    if isinstance(one, Refusal):
        return one
    try:
        within_limit(state, "events", one.events)
        return understand(one, state.scorer.bundle.spec.features, now, wall_us())
    except Refusal as refusal:
        return refusal


def _refused(refusal: Refusal) -> dict[str, Any]:
    return {"status": refusal.code, "probability": None, "error": refusal.problem()}


def _columns(request: Request, body: bytes) -> Response:
    state = of(request)
    table = arrow.read_stream(body, state.settings.max_events)
    scorer, created = state.scorer, state.now_us()
    batch = arrow.understand_table(table, scorer.bundle.spec.features, created, wall_us())
    scores, identities = [], []
    if batch.places:
        flat = scorer.lay_out(batch.encounters, batch.readings, batch.when)
        scores = scorer.judge(batch.encounters, flat, batch.when, batch.explain)
        inputs = [pack(encounter, flat, k) for k, encounter in enumerate(batch.encounters)]
        identities = log_scores(request, scores, inputs, created)
    about = {"model": scorer.bundle.model_id, "created_time": str(iso(created))}
    answer = arrow.write_stream(table, batch, scores, identities, about, scorer.threshold)
    return Response(answer, media_type=arrow.STREAM)
