"""CDS Hooks 2.0: what an EHR shows when a chart is opened, and what its users made of it.

Discovery, one service for two hooks, and feedback. What each requirement of the standard comes to stands in
``cds_hooks_requirements.csv``.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from models.scope import OUT_OF_SCOPE, SCORED
from serving.answers import Refusal, parse, require_json
from serving.clock import to_us
from serving.interop import chart
from serving.interop.cards import OVER_BUDGET, REASON_SYSTEM, Situation, card, indicator, override_reasons
from serving.interop.contract import CardFeedback, FeedbackRequest, HookRequest
from serving.interop.examples import DISCOVERY, FEEDBACK, HOOK
from serving.rounds import STORED, held, standing
from serving.schemas import ErrorAnswer, QueryInstant
from serving.security.clients import ClientEntry
from serving.state import Wardcast, of
from serving.store import cds, facts, log

SERVICE: Final = "wardcast-sepsis"
VERSION: Final = "2.0"
HOOKS: Final = {
    "patient-view": (
        "Sepsis risk",
        "Shows the current, calibrated risk of sepsis of the patient whose chart is opened, with its reasons.",
    ),
    "encounter-discharge": (
        "Sepsis risk at discharge",
        "Warns where a patient who is about to be discharged is at or above the threshold of the sepsis risk.",
    ),
}
ENDED: Final = "encounter_ended"
BUDGET_S: Final = 0.3
"""A hook that has waited so long when its turn comes gets the last score there is: the standard asks for an answer
within half a second, and a new score takes some of it."""
PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    code: {"model": ErrorAnswer, "description": text}
    for code, text in {
        400: "The body cannot be read.",
        401: "No token, or one that is not taken.",
        403: "The caller's role may not do this.",
        413: "More than one call may carry.",
        415: "The body is of another media type, or packed.",
        422: "Fields that cannot be used, each with its remedy.",
    }.items()
}

router = APIRouter(tags=["CDS Hooks"])


async def _body(request: Request) -> bytes:
    require_json(request)
    return await request.body()


Body = Annotated[bytes, Depends(_body)]


def _takes(model: str, example: dict[str, Any]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model}"}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": example}},
        }
    }


def _gives(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": example}}}}


@router.get("/cds-services", summary="CDS Hooks: discovery", responses=_gives(DISCOVERY))
def discovery() -> JSONResponse:
    """The CDS services here. Answered to everyone, since nothing about a patient is in it."""
    services = [
        {
            "id": SERVICE,
            "hook": hook,
            "title": title,
            "description": description,
            "prefetch": dict(chart.PREFETCH),
            "usageRequirements": "The encounter reaches Wardcast through a feed, under an identifier or the id that "
            "the FHIR Encounter has too. Prefetch may be left out where the FHIR server is registered here.",
        }
        for hook, (title, description) in HOOKS.items()
    ]
    return JSONResponse({"services": services})


@router.post(
    f"/cds-services/{SERVICE}",
    summary="CDS Hooks: cards for an open chart",
    openapi_extra=_takes("HookRequest", HOOK),
    responses=PROBLEMS
    | {412: {"model": ErrorAnswer, "description": "Neither prefetched nor to be had from the FHIR server."}},
)
def cards(request: Request, body: Body) -> JSONResponse:
    """At most one card: the risk that stands, its reasons, or why there is none."""
    state, asked = of(request), parse(HookRequest, body)
    client = state.cds.named(request.state.caller)
    seen = chart.resources(asked, client)
    now = state.now_us()
    late = time.perf_counter() - request.state.arrived > BUDGET_S
    situation = _situation(state, asked, seen, client, now, late)
    shown = None
    if _is_worth_a_card(state, asked, situation):
        scorer = None if "sepsis" in state.problems else state.scorer
        shown = card(situation, scorer, state.settings.known_as, now, state.settings.timezone)
    _keep(request, asked, situation, shown, now)
    return JSONResponse({"cards": [shown] if shown else []})


def _situation(
    state: Wardcast,
    asked: HookRequest,
    seen: dict[str, chart.Resource | None],
    client: ClientEntry | None,
    now: int,
    late: bool,
) -> Situation:
    """What stands about the patient of an open chart; where it is late, the last score rather than a new one."""
    scorer = None if "sepsis" in state.problems else state.scorer
    with state.store.read() as connection:
        found = chart.find(connection, asked, seen, client, scorer, now)
        if found.encounter is None:
            return Situation(str(found.problem))
        who = str(found.encounter["encounter_id"])
        if facts.has_ended(found.encounter, now):
            return Situation(ENDED, who)
        if scorer is None:
            return Situation(state.problems["sepsis"], who)
        row = held(connection, state, who, now)
        last = log.newest_prediction(connection, who, STORED) if row is None and late else None
        newest, waits = facts.newest_event_times(connection, [who]).get(who), _waits(connection, who)
    if last is not None and last["model_id"] == scorer.bundle.model_id:
        row = last
    if row is None:  # a score is made, and may raise an alert
        row = standing(state, who, now)
        with state.store.read() as connection:
            waits = _waits(connection, who)
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    if row["status"] != SCORED:
        missing = scorer.missing(np.frombuffer(row["features"], dtype="<f4"))
        unknown = scorer.unknown(found.encounter, now)
    degraded = state.notices.degraded(found.encounter["unit"] or "", now)
    return Situation(row["status"], who, row, waits, newest, missing, unknown, degraded, row is last)


def _waits(connection: Connection, encounter_id: str) -> bool:
    """Whether an alert is open that nobody has acknowledged."""
    rows = log.read_alerts(connection, None, None, [encounter_id])
    alerts = [dict(zip(log.ALERT_COLUMNS, row, strict=True)) for row in rows]
    return any(a["ended_time"] is None and a["acknowledged_time"] is None for a in alerts)


def _is_worth_a_card(state: Wardcast, asked: HookRequest, situation: Situation) -> bool:
    if situation.status == ENDED:
        return False
    if situation.status == OUT_OF_SCOPE:
        return state.cds.cards.out_of_scope == "info" and asked.hook == "patient-view"
    if situation.status == SCORED and situation.prediction and not situation.prediction["alert"]:
        return state.cds.cards.below_threshold == "info" and asked.hook == "patient-view"
    return True


def _keep(
    request: Request, asked: HookRequest, situation: Situation, shown: dict[str, Any] | None, now: int
) -> None:
    """Write down who was shown what; no record, no card."""
    state, row = of(request), situation.prediction or {}
    about = [situation.encounter_id or asked.context.encounterId or ""]
    with state.store.write() as connection:
        if shown:
            cds.add_card(
                connection,
                {
                    "card_id": shown["uuid"],
                    "client": request.state.caller.name,
                    "hook": asked.hook,
                    "encounter_id": situation.encounter_id,
                    "prediction_id": row.get("prediction_id"),
                    "status": OVER_BUDGET if situation.over_budget else situation.status,
                    "indicator": indicator(situation),
                    "issued_time": now,
                },
            )
        outcome = "done" if situation.encounter_id else "not_found"
        state.audit(request, f"card {asked.hook}", [who for who in about if who], connection, outcome)
    state.metrics.cards.labels(asked.hook, indicator(situation) if shown else "none").inc()


@router.post(
    f"/cds-services/{SERVICE}/feedback",
    summary="CDS Hooks: what users did with cards",
    openapi_extra=_takes("FeedbackRequest", FEEDBACK),
    responses=PROBLEMS,
)
def feedback(request: Request, body: Body) -> JSONResponse:
    """Keep what users did with cards. Each item gets a verdict: `accepted`, `duplicate` or `unknown_card`."""
    state, told = of(request), parse(FeedbackRequest, body).feedback
    now = state.now_us()
    with state.store.write() as connection:
        ours = cds.cards(connection, [str(one.card) for one in told], request.state.caller.name)
        known = [one for one in told if str(one.card) in ours]
        fresh = cds.add_feedback(connection, [_row(one, now) for one in known])
        about = cds.encounters(connection, sorted(ours))
        state.audit(request, "card feedback", about, connection, "done" if ours else "not_found")
    new = {id(one) for one, is_new in zip(known, fresh, strict=True) if is_new}
    for one in known:
        if id(one) in new:
            state.metrics.feedback.labels(one.outcome, _reason_label(one)).inc()
    verdicts = [
        "accepted" if id(one) in new else "duplicate" if str(one.card) in ours else "unknown_card"
        for one in told
    ]
    return JSONResponse(
        {"feedback": [{"card": str(o.card), "verdict": v} for o, v in zip(told, verdicts, strict=True)]}
    )


def _row(told: CardFeedback, now: int) -> dict[str, Any]:
    why = told.overrideReason
    row = {
        "card_id": str(told.card),
        "outcome": told.outcome,
        "reason_system": why.reason.system if why and why.reason else None,
        "reason_code": why.reason.code if why and why.reason else None,
        "comment": why.userComment if why else None,
        "outcome_time": to_us(told.outcomeTimestamp),
    }
    return row | {"content_hash": facts.content_hash(list(row.values())), "received_time": now}


def _reason_label(told: CardFeedback) -> str:
    """The reason where it is one of ours: anything else is the caller's text, and stays out of labels."""
    reason = told.overrideReason.reason if told.overrideReason else None
    if reason is None:
        return ""
    ours = {r["code"] for r in override_reasons()}
    return reason.code if reason.system == REASON_SYSTEM and reason.code in ours else "other"


@router.get("/v1/cds/feedback", summary="Cards given and feedback received, counted", responses=PROBLEMS)
def counted(
    request: Request, since: QueryInstant | None = None, until: QueryInstant | None = None
) -> JSONResponse:
    """Counts of a period (of all time where no start is given), `since` included, `until` not."""
    state = of(request)
    bounds = [None if end is None else to_us(end) for end in (since, until)]
    if None not in bounds and bounds[0] >= bounds[1]:  # type: ignore[operator]  # None is not in it
        raise Refusal(422, "empty_period", "until is not after since.", "Send a later until, or none.")
    with state.store.read() as connection:
        found = cds.counts(connection, bounds[0], bounds[1])
    state.audit(request, "read card feedback", [])
    return JSONResponse(found)
