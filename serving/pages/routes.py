"""The pages: sign-in, worklist, patient, model."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from markupsafe import Markup

from serving.answers import Refusal
from serving.api import acknowledge_alert
from serving.guard import COOKIE
from serving.pages import views
from serving.schemas import NO_NUL, AcknowledgeRequest
from serving.scoring import Scorer
from serving.security.identity import LONGEST_US, end_session, start_session
from serving.state import Wardcast, of, wall_us
from serving.store import audit, log

router = APIRouter(include_in_schema=False)


@router.get("/")
def home() -> Response:
    """The worklist is where work begins."""
    return RedirectResponse("/worklist", status_code=303)


@router.get("/sign-in")
def sign_in_page(request: Request) -> HTMLResponse:
    """Ask for the token."""
    return HTMLResponse(of(request).render("sign_in.html", wrong=False))


@router.post("/sign-in")
def sign_in(request: Request, token: Annotated[str, Form(max_length=512)]) -> Response:
    """Exchange a token for a session cookie."""
    state = of(request)
    caller = state.credentials.caller(token.strip())
    if caller is None or not caller.may("/worklist"):
        with state.store.write() as connection:
            audit.record(connection, audit.Act("unknown", "none", "POST /sign-in", "denied"), wall_us())
        state.metrics.denied.labels("sign_in").inc()
        return HTMLResponse(state.render("sign_in.html", wrong=True), status_code=401)
    secret = start_session(state.store, caller, wall_us())
    response = RedirectResponse("/worklist", status_code=303)
    response.set_cookie(
        COOKIE, secret, max_age=LONGEST_US // 1_000_000, httponly=True, samesite="strict",
        secure=state.settings.tls_cert is not None, path="/",
    )  # fmt: skip
    return response


@router.post("/sign-out")
def sign_out(request: Request) -> Response:
    """End the session, here and in the browser."""
    secret = request.cookies.get(COOKIE)
    if secret:
        end_session(of(request).store, secret)
    response = RedirectResponse("/sign-in", status_code=303)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response


@router.get("/worklist")
def worklist(request: Request, unit: Annotated[str, Query(max_length=128)] = "") -> HTMLResponse:
    """Who is at risk, who could not be scored, and how many are outside the model's scope."""
    state = of(request)
    scorer, now = state.scorer, state.now_us()
    with state.store.read() as connection:
        view = views.worklist(connection, scorer, now, unit or None)
    view["degraded"] = state.notices.degraded(unit or None, now)
    state.audit(request, "read worklist", view.pop("seen"))
    return HTMLResponse(
        state.render(
            "worklist.html", here="/worklist", now=now, unit=unit, problem=None, **_about(scorer), **view
        )
    )


@router.get("/patient")
def patient(
    request: Request, encounter: Annotated[str, Query(min_length=1, max_length=128, pattern=NO_NUL)]
) -> HTMLResponse:
    """One patient's risk over time, its reasons and its inputs."""
    state = of(request)
    now = state.now_us()
    scorer = None if "sepsis" in state.problems else state.scorer
    with state.store.read() as connection:
        view = views.patient(connection, scorer, encounter, now)
    state.audit(request, "read patient", [encounter], outcome="done" if view else "not_found")
    if view is None:
        raise Refusal(404, "unknown_encounter", "No such patient here.", "Go back to the worklist.")
    return HTMLResponse(state.render("patient.html", now=now, here="/worklist", **view))


@router.get("/alert")
def alert(request: Request, id: Annotated[str, Query(pattern=r"^[0-9a-f]{32}$")]) -> Response:
    """From an alert, whose identity says nothing of the patient, to the patient's page."""
    state = of(request)
    with state.store.read() as connection:
        row = log.alert(connection, id)
    who = [] if row is None else [row["encounter_id"]]
    state.audit(request, "follow alert", who, outcome="done" if row else "not_found")
    if row is None:
        raise Refusal(404, "unknown_alert", "No such alert here.", "Go to the worklist.")
    return _back_to(row["encounter_id"])


@router.post("/patient/acknowledge")
def acknowledge(
    request: Request,
    alert_id: Annotated[str, Form()],
    encounter: Annotated[str, Form()],
    outcome: Annotated[str, Form()],
) -> Response:
    """A button on the patient page; the same deed as POST /v1/alerts/acknowledge."""
    try:
        asked = AcknowledgeRequest.model_validate({"alert_id": alert_id, "outcome": outcome})
    except ValueError:
        raise Refusal(
            422, "invalid_input", "This answer is not known.", "Use the buttons of the page."
        ) from None
    state = of(request)
    row = acknowledge_alert(request, asked, state.now_us())
    return _back_to(row["encounter_id"])


def _back_to(encounter_id: str) -> Response:
    from urllib.parse import quote

    return RedirectResponse(f"/patient?encounter={quote(encounter_id, safe='')}", status_code=303)


@router.get("/model")
def model(request: Request) -> HTMLResponse:
    """The card of the model that is serving."""
    state = of(request)
    bundle = state.scorer.bundle
    trees = sum(booster.num_trees() for booster in bundle.boosters.values())
    return HTMLResponse(
        state.render("model.html", here="/model", bundle=bundle, trees=trees, card=_markdown(bundle.card))
    )


def _about(scorer: Scorer) -> dict[str, Any]:
    """What the head and foot of the worklist say of the model, from its own spec."""
    scope, target = scorer.bundle.spec.section("scope"), scorer.bundle.spec.section("target")
    places = ", ".join(scope["encounter_classes"])
    return {
        "model": scorer.bundle.model_id,
        "scope": f"Made for patients from {scope['min_age']} years on in: {places}; not for others.",
        "meaning": str(target.get("meaning", "")).rstrip("."),
    }


@lru_cache(maxsize=4)
def _markdown(text: str) -> Markup:
    """A model card as HTML; HTML inside the card is shown as text."""
    from markdown_it import MarkdownIt

    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))  # noqa: S704


def page_error(state: Wardcast, refusal: Refusal) -> HTMLResponse:
    """A refusal as a page."""
    content = state.render(
        "message.html",
        title=HTTPStatus(refusal.status).phrase.capitalize(),
        message=refusal.message,
        remedy=refusal.remedy,
    )
    return HTMLResponse(content, status_code=refusal.status)
