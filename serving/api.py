"""The JSON routes: scores, news, risk, alerts, model."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from features.errors import ConfigError, DataError
from models.abstention import INDETERMINATE, THIN_RECORD
from models.scope import OUT_OF_SCOPE, SCORED
from serving.alerting import ACKNOWLEDGED
from serving.alerts import settle
from serving.answers import Refusal, parse, require_json, too_many_events
from serving.clock import iso, to_us
from serving.described import (
    Alert,
    AlertsAnswer,
    EventsAnswer,
    HistoryAnswer,
    RiskAnswer,
    ScoreAnswer,
    WhatIfAnswer,
    gives,
    problems,
    takes,
)
from serving.explain import repeat
from serving.ingest.events import UNKNOWN_ENCOUNTER, Verdict, receive
from serving.rounds import ENDED, Logged, behind, current, score_stored, skipped
from serving.schemas import (
    NO_NUL,
    AcknowledgeRequest,
    EventsRequest,
    QueryInstant,
    ScoreRequest,
    WhatIfRequest,
)
from serving.scoring import Explain, Score, Scorer, pack, record
from serving.state import Wardcast, of, wall_us
from serving.stateless import Asked, left_out, understand
from serving.store import facts, log, people

STATELESS = "stateless"
TOLD = 6
"""Reasons given unasked; the rest are summed up in one line."""
router = APIRouter(prefix="/v1", responses=problems(401, 403, 422))


async def _body(request: Request) -> bytes:
    require_json(request)
    return await request.body()


Body = Annotated[bytes, Depends(_body)]
Encounter = Annotated[
    str, Query(min_length=1, max_length=128, pattern=NO_NUL, description="The encounter's identity.")
]


@router.post(
    "/sepsis/score",
    summary="Score one patient from what is sent",
    openapi_extra=takes("ScoreRequest"),
    responses=gives(ScoreAnswer, 400, 413, 415, 503),
)
def score(request: Request, body: Body) -> JSONResponse:
    """Sepsis risk of one patient, from the events in the request alone.

    Events that cannot be used, or lie after the prediction time, are listed under `ignored` with a reason. Where the
    patient cannot be scored, `status` says why and `probability` is null.
    """
    state = of(request)
    asked = parse(ScoreRequest, body)
    within_limit(state, "events", asked.events)
    scorer, created = state.scorer, state.now_us()
    told = understand(asked, scorer.bundle.spec.features, created, wall_us())
    flat = scorer.lay_out([told.encounter], told.readings, [told.when])
    result = scorer.judge([told.encounter], flat, [told.when], [asked.explain])[0]
    identity = log_scores(request, [result], [pack(told.encounter, flat, 0)], created)[0]
    return JSONResponse(stateless_answer(asked, told, result, identity, scorer, created))


def stateless_answer(
    asked: ScoreRequest, told: Asked, score: Score, identity: str, scorer: Scorer, created: int
) -> dict[str, Any]:
    """A score as its caller reads it, with what was not used of the request."""
    answer = _answer(score, identity, scorer, created, asked.explain)
    answer["used"] = len(asked.events) - len(told.ignored)
    answer["ignored"] = left_out(told)
    if asked.features:
        values = [None if v != v else v for v in score.features.tolist()]
        answer["features"] = dict(zip(scorer.bundle.feature_names, values, strict=True))
    return answer


def within_limit(state: Wardcast, field: str, items: Sequence[object]) -> None:
    """Refuse more items than one call may carry."""
    if len(items) > state.settings.max_events:
        raise too_many_events(len(items), state.settings.max_events, field)


def log_scores(request: Request, scores: Sequence[Score], inputs: Sequence[bytes], created: int) -> list[str]:
    """Keep stateless scores with their inputs, and who asked for them; returns their identities."""
    state = of(request)
    model_id = state.scorer.bundle.model_id
    identities = [secrets.token_hex(16) for _ in scores]
    rows = [
        record(one, identity, road=STATELESS, model_id=model_id, created=created, inputs=packed)
        for one, identity, packed in zip(scores, identities, inputs, strict=True)
    ]

    def keep(connection: Connection) -> None:
        log.add_predictions(connection, rows)
        state.audit(request, "score", [one.encounter_id for one in scores], connection)

    state.store.together(keep)
    state.metrics.count_scores(model_id, scores)
    return identities


@router.post(
    "/events",
    summary="Send news about patients",
    openapi_extra=takes("EventsRequest"),
    responses=gives(EventsAnswer, 400, 413, 415),
)
def events(request: Request, body: Body) -> JSONResponse:
    """Store encounters and events, then score the patients they are about.

    Every item gets a verdict: `accepted`, `duplicate` or `rejected`. An accepted event with a reason is kept but used
    in no score. Answered once everything accepted is durable. `skipped` names those about whom something is new and who
    have no prediction, each with the reason code why not.
    """
    state = of(request)
    news = parse(EventsRequest, body)
    within_limit(state, "events", news.events)
    within_limit(state, "encounters", news.encounters)
    with state.store.write() as connection:
        now = state.advance(connection, news.as_of)
        receipt = receive(connection, news, now)
        about = {e.encounter_id for e in news.encounters} | {e.encounter_id for e in news.events}
        state.audit(request, "receive", sorted(about), connection)
        scorer = state.scorer if "sepsis" in state.bundles else None
        settle(connection, scorer, receipt.affected, now, state.alerting)
        # What was stored before and never scored, since the process died in between: a retry finds duplicates.
        due = sorted({*receipt.affected, *behind(connection, about)})
    state.metrics.count_verdicts(receipt.events)
    logged = score_stored(state, due, now) if due and scorer is not None else []
    passed_over = skipped(state, receipt.affected, logged, now)
    return JSONResponse(
        {
            "received_time": iso(now),
            "encounters": [_verdict(f"encounters[{k}]", v) for k, v in enumerate(receipt.encounters)],
            "events": [_verdict(f"events[{k}]", v) for k, v in enumerate(receipt.events)],
            "counts": _counts(receipt.events),
            "scored": sum(one.score.status == SCORED for one in logged),
            "predictions": [_brief(one) for one in logged],
            "skipped": [{"encounter_id": who, "status": why} for who, why in passed_over.items()],
        }
    )


def _verdict(place: str, verdict: Verdict) -> dict[str, Any]:
    said = verdict.answer()
    if verdict.field is not None:
        said["field"] = f"{place}.{verdict.field}"
    return said


def _counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    counts = dict.fromkeys(("accepted", "duplicate", "rejected", "set_aside"), 0)
    for verdict in verdicts:
        counts[verdict.verdict] += 1
        counts["set_aside"] += verdict.verdict == "accepted" and verdict.reason is not None
    return counts


def _brief(logged: Logged) -> dict[str, Any]:
    score = logged.score
    return {
        "encounter_id": score.encounter_id,
        "prediction_id": logged.prediction_id,
        "status": score.status,
        "probability": score.probability,
        "alert": score.alert,
        "page": logged.page,
    }


@router.get(
    "/risk",
    summary="Risk of one patient now",
    responses=gives(RiskAnswer, 404, 409, 503),
)
def risk(request: Request, encounter: Encounter, explain: bool | None = None) -> JSONResponse:
    """Sepsis risk of a stored patient at the service's now, logged like every other score.

    Asked again within 5 minutes, with nothing new about the patient, the answer is the score of before. An encounter
    that was merged into another is answered as the one it lives on as.
    """
    state = of(request)
    with state.store.read() as connection:
        encounter = people.names_of(connection, encounter)[0]
        known = facts.latest(connection, [encounter]).get(encounter)
    state.audit(request, "read risk", [encounter], outcome="done" if known else "not_found")
    now = state.now_us()
    if known is None:
        raise Refusal(404, UNKNOWN_ENCOUNTER[0], "No such encounter.", "Send it to POST /v1/events first.")
    if facts.has_ended(known, now):
        raise Refusal(
            409,
            ENDED,
            "The encounter has ended, so there is no risk now.",
            "Past scores are in the log.",
        )
    wanted: Explain = "auto" if explain is None else explain
    logged = current(state, encounter, now, wanted)
    answer = _answer(logged.score, logged.prediction_id, state.scorer, logged.created, wanted)
    notices = state.notices.of(known["unit"], state.scorer.bundle.spec.features.concepts, now)
    return JSONResponse(answer | {"page": logged.page, "notices": notices})


@router.post(
    "/what-if",
    summary="What a score would have been with other last values",
    openapi_extra=takes("WhatIfRequest"),
    responses=gives(WhatIfAnswer, 400, 404, 413, 415, 503),
)
def what_if(request: Request, body: Body) -> JSONResponse:
    """Make a logged prediction again with the last value of some concepts changed; nothing of it is kept."""
    state = of(request)
    asked = parse(WhatIfRequest, body)
    with state.store.read() as connection:
        try:
            row = log.prediction(connection, asked.prediction_id)
        except DataError as error:
            raise Refusal(404, "unknown_prediction", str(error), "Give one that was answered.") from None
    state.audit(request, "what if", [row["encounter_id"]])
    try:
        told = repeat(state.store, state.settings, asked.prediction_id, asked.changes)
    except ConfigError:  # it names folders of this machine, which are nobody's business who calls
        raise Refusal(
            503, "model_gone", f"The prediction was made by {row['model_id']}, which is no longer here.",
            "Ask about a newer prediction, or have its keeper bring the bundle back.",
        ) from None  # fmt: skip
    kept = {name: told[name] for name in ("prediction_id", "prediction_time", "model")}
    return JSONResponse(kept | {"given": told["probability"]} | told["what_if"])


@router.get("/risk/history", summary="Risk of one patient until now", responses=gives(HistoryAnswer))
def risk_history(
    request: Request,
    encounter: Encounter,
    since: Annotated[
        QueryInstant | None, Query(description="Included; the first score where left out.")
    ] = None,
    until: Annotated[QueryInstant | None, Query(description="Not included.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="The newest so many.")] = 200,
) -> JSONResponse:
    """The scores of a stored patient as they were given, with the reasons that were given then.

    After a merge of encounters those of both, each once, under any of their names.
    """
    state = of(request)
    start, end = (None if t is None else to_us(t) for t in (since, until))
    with state.store.read() as connection:
        encounter, named = people.names_of(connection, encounter)
        total, rows = log.past_predictions(connection, named, "stored", start, end, limit)
    state.audit(request, "read risk history", [encounter], outcome="done" if total else "not_found")
    scores = [_past(row) for row in rows]
    return JSONResponse({"encounter_id": encounter, "total": total, "scores": scores})


def _past(row: dict[str, Any]) -> dict[str, Any]:
    kept = ("prediction_id", "status", "probability", "alert", "page")
    times = {name: iso(row[name]) for name in ("prediction_time", "created_time")}
    told = {"model": row["model_id"], "reasons": json.loads(row["reasons"] or "[]")}
    return {name: row[name] for name in kept} | times | told


@router.get("/alerts", summary="Alerts, newest first", responses=gives(AlertsAnswer))
def alerts(
    request: Request,
    since: QueryInstant | None = None,
    until: QueryInstant | None = None,
    encounter: Annotated[str | None, Query(max_length=128, pattern=NO_NUL)] = None,
) -> JSONResponse:
    """Alerts raised in a period (the last 24 hours where no start is given), `since` included, `until` not."""
    state = of(request)
    start = state.now_us() - 24 * 3_600_000_000 if since is None else to_us(since)
    with state.store.read() as connection:
        rows = log.read_alerts(
            connection,
            start,
            None if until is None else to_us(until),
            None if encounter is None else people.names_of(connection, encounter)[1],
        )
    found = [_alert(dict(zip(log.ALERT_COLUMNS, row, strict=True))) for row in reversed(rows)]
    state.audit(request, "read alerts", [a["encounter_id"] for a in found])
    return JSONResponse({"alerts": found})


def _alert(row: dict[str, Any]) -> dict[str, Any]:
    times = {k: iso(v) for k, v in row.items() if k.endswith("_time")}
    return row | times


@router.post(
    "/alerts/acknowledge",
    summary="Say that somebody has seen an alert",
    openapi_extra=takes("AcknowledgeRequest"),
    responses=gives(Alert, 400, 404, 413, 415),
)
def acknowledge(request: Request, body: Body) -> JSONResponse:
    """Acknowledge an alert; the first to do so is its owner, every answer is kept."""
    state = of(request)
    asked = parse(AcknowledgeRequest, body)
    return JSONResponse(_alert(acknowledge_alert(request, asked, state.now_us())))


def acknowledge_alert(request: Request, asked: AcknowledgeRequest, now: int) -> dict[str, Any]:
    """Write an acknowledgement and its audit record, for the API and the page alike."""
    state = of(request)
    with state.store.write() as connection:
        try:
            row = log.acknowledge(
                connection, asked.alert_id, request.state.caller.name, now, asked.outcome, asked.comment
            )
        except DataError as error:
            raise Refusal(404, "unknown_alert", str(error), "GET /v1/alerts lists them.") from None
        state.alerting.tell(connection, ACKNOWLEDGED, [row], now)
        state.audit(request, f"acknowledge {asked.outcome}", [row["encounter_id"]], connection)
    return row


@router.get("/model", summary="The model that is serving")
def model(request: Request) -> JSONResponse:
    """Identity, features, thresholds, paging policy, evaluation and card of the sepsis model."""
    bundle = of(request).scorer.bundle
    return JSONResponse(
        {
            "model": bundle.model_id,
            "name": bundle.name,
            "version": bundle.version,
            "thresholds": bundle.thresholds,
            "policy": bundle.alert_policy,
            "scope": bundle.spec.section("scope"),
            "target": bundle.spec.section("target"),
            "features": list(bundle.feature_names),
            "evaluation": bundle.evaluation,
            "card": bundle.card,
        }
    )


def _answer(score: Score, identity: str, scorer: Scorer, created: int, explain: Explain) -> dict[str, Any]:
    """A score as the caller reads it. Reasons explain ``raw``, the log-odds before calibration."""
    shown = score.reasons if explain is True else score.reasons[:TOLD]
    rest = score.reasons[len(shown) :]
    why = None
    if score.reasons:
        why = {
            "scale": "log-odds before calibration",
            "base": score.base,
            "reasons": [reason.answer() for reason in shown],
            "others": {"count": len(rest), "contribution": sum(r.contribution for r in rest)},
        }
    return {
        "prediction_id": identity,
        "encounter_id": score.encounter_id,
        "model": scorer.bundle.model_id,
        "prediction_time": iso(score.prediction_time),
        "created_time": iso(created),
        "status": score.status,
        "reason": _why_not(score, scorer),
        "probability": score.probability,
        "interval": None if score.interval is None else list(score.interval),
        "indeterminate": score.indeterminate,
        "raw": score.raw,
        "threshold": scorer.threshold,
        "alert": score.alert,
        "explanation": why,
    }


def _why_not(score: Score, scorer: Scorer) -> dict[str, Any] | None:
    if score.status == SCORED:
        return None
    scope = scorer.bundle.spec.section("scope")
    if score.status == OUT_OF_SCOPE:
        text = (
            f"The model was made for patients from {scope['min_age']} years on in: "
            f"{', '.join(scope['encounter_classes'])}."
        )
        return {"code": score.status, "message": text, "remedy": "Do not use it for others.", "missing": []}
    if score.status == INDETERMINATE:
        return {
            "code": THIN_RECORD,
            "message": "The score is high, but fewer laboratory results are known than of nearly all patients who had "
            "sepsis in training; it looks like neither outcome, and is withheld.",
            "remedy": "Send laboratory results as they come; judge the patient at the bedside.",
            "missing": [],
        }
    remedy = "Send recent vital signs, the age, and the admission time from which they count."
    return {
        "code": score.status,
        "message": "A score needs where the patient is, the age, in intensive care the admission time and, within "
        f"{scope['recent_h']} h, at least {scope['min_vitals']} of the vital signs {', '.join(scope['vitals'])}.",
        "remedy": "; ".join(f"{name}: send it" for name in score.unknown) + "." if score.unknown else remedy,
        "unknown": list(score.unknown),
        "missing": list(score.missing),
    }
