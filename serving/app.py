"""The whole service as one FastAPI application, with or without BentoML around it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from features.errors import WardcastError
from serving import api, bulk, heartbeat
from serving.answers import Refusal, unusable
from serving.feeds import fhir as fhir_in
from serving.feeds.watch import Watch, look
from serving.guard import Guard
from serving.interop import cds_hooks, fhir
from serving.interop.contract import CDS_REQUESTS
from serving.interop.cors import CdsCors
from serving.monitoring.routes import router as monitoring
from serving.pages import routes as pages
from serving.reports.routes import router as reports
from serving.rounds import catch_up
from serving.schemas import REQUESTS, explain_errors
from serving.settings import Settings
from serving.state import Wardcast, of, wall_us

VERSION = "0.1.0"
logger = logging.getLogger("wardcast")

probes = APIRouter()


@probes.get("/healthz", summary="Is the process alive")
@probes.get("/livez", include_in_schema=False)
def alive() -> dict[str, str]:
    """Answers as long as the process does."""
    return {"status": "alive", "version": VERSION}


@probes.get("/readyz", summary="Can it score")
def ready(request: Request) -> JSONResponse:
    """200 where the store answers and a model is loaded; else 503 and the reason codes."""
    problems = readiness(of(request))
    status: dict[str, Any] = {"status": "not_ready" if problems else "ready", "problems": problems}
    # For information: a monitor that has stopped keeps nobody from scoring.
    status["jobs"] = heartbeat.beats(of(request).settings.var)
    watched = _watch(of(request))
    if watched is not None:
        # Scores are given all the same, so no balancer should turn callers away: told, and not refused.
        status |= {"degraded": watched.problems, "mllp": watched.answer()}
    return JSONResponse(status, status_code=503 if problems else 200)


def _watch(state: Wardcast) -> Watch | None:
    """How HL7 v2 comes in; None where it does not, or the store cannot be asked."""
    if state.messages is None:
        return None
    try:
        return look(state.settings, state.store, state.messages, wall_us())
    except Exception as error:
        logger.error("mllp problem=not_watched kind=%s", type(error).__name__)
        return None


def readiness(state: Wardcast) -> list[str]:
    """Reason codes of what keeps the service from scoring; empty when nothing does."""
    problems = list(state.problems.values())
    try:
        state.now_us()
        with state.store.read() as connection:
            connection.exec_driver_sql("select 1")
    except Exception as error:
        logger.error("store problem=unavailable kind=%s", type(error).__name__)
        problems.append("store_unavailable")
    return problems


@probes.get("/metrics", summary="Prometheus metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Counts and times. No label holds an identity."""
    state = of(request)
    text = state.metrics.exposition(state.settings.var / "monitor") + heartbeat.exposition(state.settings.var)
    watched = _watch(state)
    text += watched.exposition() if watched is not None else b""
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def create_app(settings: Settings) -> FastAPI:
    """Build the application: open the store, load the models, add every route.

    Raises
    ------
    ConfigError, DataError
        The store or the credentials cannot be used. A model that cannot be loaded leaves the service running and not
        ready, with the reason code.
    """
    _log_at(settings.log_level)
    state = Wardcast(settings)
    # We log and count ourselves, without identities.
    silent: Any = {"tracing": False, "metrics": False, "logs": False}
    app = FastAPI(title="Wardcast", version=VERSION, docs_url=None, redoc_url=None, telemetry=silent)
    app.state.wardcast = state
    catch_up(state)
    interop = (cds_hooks.router, fhir.router)
    routers = (
        probes,
        api.router,
        bulk.router,
        fhir_in.router,
        pages.router,
        reports(state),
        monitoring(),
        *interop,
    )
    for router in routers:
        app.include_router(router)
    handlers: dict[type[Exception], Callable[..., Awaitable[Response]]] = {
        Refusal: _refused,
        RequestValidationError: _invalid,
        HTTPException: _http,
        WardcastError: _mendable,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    paths = frozenset({"/openapi.json"} | {getattr(route, "path", "") for r in routers for route in r.routes})
    app.add_middleware(Guard, state=state, routes=paths)
    app.add_middleware(CdsCors, origins=state.cds.origins)
    return app


async def _refused(request: Request, refusal: Refusal) -> Response:
    if request.url.path.startswith("/fhir"):
        return fhir.refused(refusal)
    wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1/")
    return pages.page_error(of(request), refusal) if wants_page else refusal.answer()


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    details: list[Any] = [detail | {"loc": detail["loc"][1:]} for detail in error.errors()]
    fields = explain_errors(details)
    return await _refused(
        request,
        Refusal(422, "invalid_input", unusable(len(fields)), "Mend the fields named.", fields),
    )


async def _http(request: Request, error: HTTPException) -> Response:
    codes = {
        404: ("not_found", "There is nothing here."),
        405: ("method_not_allowed", "Not with this method."),
    }
    code, message = codes.get(error.status_code, ("refused", "This was refused."))
    refusal = Refusal(error.status_code, code, message, "See /openapi.json for the routes.")
    answer = await _refused(request, refusal)
    answer.headers.update(error.headers or {})  # a refused method says which are allowed
    return answer


async def _mendable(request: Request, error: WardcastError) -> Response:
    """Errors of the house say what was expected and what to do, and hold no patient's data."""
    return await _refused(request, Refusal(422, "cannot_be_done", str(error), "See the message."))


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's own description, and the contracts of the bodies we read ourselves."""
    if app.openapi_schema is None:
        described = FastAPI.openapi(app)
        _, definitions = models_json_schema(
            [(model, "validation") for model in (*REQUESTS, *CDS_REQUESTS)],
            ref_template="#/components/schemas/{model}",
        )
        described.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        app.openapi_schema = described
    return app.openapi_schema


def _log_at(level: str) -> None:
    """Our own lines on stderr, whatever the shell around us did to the loggers it found."""
    logging.getLogger("wardcast.access").disabled = logger.disabled = False
    logger.setLevel(level.upper())
    logger.propagate = False
    # These write down every address they ask, and a FHIR address names a patient.
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger.addHandler(handler)
