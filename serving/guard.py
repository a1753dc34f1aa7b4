"""The gate every request passes, outside in: identity of the request, size, identity of the caller, headers, the log.

The log line has method, route, status and duration: never a query, a body or an identity.
"""

from __future__ import annotations

import logging
import secrets
import time
import traceback
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.answers import Refusal, not_signed_in, too_large
from serving.context import current_caller, nonce, request_id
from serving.reports.routes import REPORTS
from serving.security.clients import spend
from serving.security.identity import CDS, Caller, Token, session_caller
from serving.state import Wardcast, wall_us
from serving.store import audit
from serving.store.engine import is_passing

logger = logging.getLogger("wardcast.access")

OPEN: Final = frozenset({"/healthz", "/livez", "/readyz", "/sign-in", CDS, "/fhir/metadata"})
"""Answered to everyone: nothing about a patient is in there."""
QUIET: Final = frozenset({"/healthz", "/livez", "/readyz", "/metrics"})
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
COOKIE: Final = "wardcast_session"
FAILED: Final = Refusal(
    500, "internal_error", "The service failed at this.", "Report the request_id to its keeper."
)
STORE_AWAY: Final = Refusal(
    503, "store_unavailable", "The store cannot be read or written just now, and nothing of this was kept.",
    "Send it again later. Its keeper sees to the disk: full, read-only, or locked by another program.",
)  # fmt: skip


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, state: Wardcast, routes: frozenset[str]) -> None:
        self._app = app
        self._state = state
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id.set(secrets.token_hex(16))
        nonce.set(secrets.token_urlsafe(16))
        started, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _harden(MutableHeaders(scope=message), bool(self._state.settings.tls_cert))
            await send(message)

        try:
            await self._admit(scope, receive, answer)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered, arrived = False, time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal answered
            answered = answered or message["type"] == "http.response.start"
            await send(message)

        try:
            takes_time = _cookie(scope) or scope["path"].startswith(CDS)
            caller = await to_thread.run_sync(self._identify, scope) if takes_time else self._identify(scope)
            denied = self._denial(scope, caller)
            if denied is not None:
                await to_thread.run_sync(self._audit_denial, scope, caller, denied)
                await self._refuse(denied, scope, receive, watch)
                return
            scope.setdefault("state", {}).update(caller=caller, arrived=arrived)
            current_caller.set(caller)
            body = await _read(receive, scope, self._state.settings.max_body_bytes)
            await self._app(scope, body, watch)
            if caller is not None and caller.token is not None:
                await to_thread.run_sync(self._settle, scope, caller, caller.token)
        except Refusal as refusal:
            await refusal.answer()(scope, receive, watch)
        except Exception as error:  # the last stop: whatever it is, no detail of it may leave
            logger.error("failed kind=%s at=%s", type(error).__name__, _place(error))
            if answered:
                raise
            wrong = STORE_AWAY if is_passing(error) else FAILED
            await wrong.answer()(scope, receive, watch)

    def _identify(self, scope: Scope) -> Caller | None:
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token:
            return self._state.credentials.caller(token.strip()) or self._cds_client(scope, token.strip())
        cookie = _cookie(scope)
        caller = session_caller(self._state.store, cookie, wall_us()) if cookie else None
        return caller if caller and self._state.credentials.still_knows(caller) else None

    def _cds_client(self, scope: Scope, token: str) -> Caller | None:
        path = scope["path"]
        if not path.startswith(CDS) or path in OPEN:
            return None
        return self._state.cds.caller(token, path)

    def _settle(self, scope: Scope, caller: Caller, token: Token) -> None:
        """Take the token of a request that was refused, which was its one request; note a second one."""
        if token.replayed:
            self._audit_denial(scope, None, not_signed_in())
        if token.spent:
            return
        with suppress(Refusal), self._state.store.write() as connection:
            if not spend(connection, caller, wall_us()):
                raise not_signed_in()

    def _denial(self, scope: Scope, caller: Caller | None) -> Refusal | None:
        path = scope["path"]
        if path in OPEN:
            return None
        if caller is None:
            return not_signed_in()
        if not caller.may(path):
            return Refusal(
                403, "role_not_allowed", f"A {caller.role} may not do this.", "Use the token of another role."
            )
        if caller.session and scope["method"] not in SAFE_METHODS and not _same_origin(Headers(scope=scope)):
            return Refusal(403, "cross_site", "This came from another site.", "Use the service's own page.")
        return None

    def _audit_denial(self, scope: Scope, caller: Caller | None, denied: Refusal) -> None:
        name, role = (caller.name, caller.role) if caller else ("unknown", "none")
        act = audit.Act(
            name, role, f"{scope['method'][:8]} {self._route(scope)}", denied.code, (), request_id.get()
        )
        with self._state.store.write() as connection:
            audit.record(connection, act, wall_us())
        self._state.metrics.denied.labels(denied.code).inc()

    async def _refuse(self, denied: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        wants_page = "text/html" in Headers(scope=scope).get("accept", "")
        response: Response = denied.answer()
        if denied.status == 401 and wants_page and scope["method"] == "GET":
            response = RedirectResponse("/sign-in", status_code=303)
        await response(scope, receive, send)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route, method = self._route(scope), scope["method"] if scope["method"] in ("GET", "POST") else "other"
        self._state.metrics.requests.labels(method, route, str(status)).inc()
        self._state.metrics.seconds.labels(route).observe(seconds)
        if route not in QUIET:
            logger.info(
                "request method=%s route=%s status=%d duration_ms=%.1f request_id=%s",
                method, route, status, seconds * 1e3, request_id.get(),
            )  # fmt: skip

    def _route(self, scope: Scope) -> str:
        """The path where it is one of ours: anything else is the caller's text, and stays out of logs and labels."""
        if scope["path"].startswith(REPORTS):  # the one path with a part that varies: a day
            return REPORTS
        return scope["path"] if scope["path"] in self._routes else "unknown"


def _cookie(scope: Scope) -> str | None:
    return Request(scope).cookies.get(COOKIE)


async def _read(receive: Receive, scope: Scope, limit: int) -> Receive:
    """Read the body, up to the limit, and hand it on as one piece."""
    length = Headers(scope=scope).get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise too_large(limit)
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "disconnected", "The body ended early.", "Send it again.")
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > limit:
            raise too_large(limit)
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": b"".join(parts), "more_body": False}

    return replay


def _same_origin(headers: Headers) -> bool:
    """Whether a browser says that the request comes from our own page."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc == headers.get("host")


def _harden(headers: MutableHeaders, tls: bool) -> None:
    token = f"'nonce-{nonce.get()}'"
    headers.setdefault(
        "Content-Security-Policy",
        f"default-src 'none'; script-src {token}; style-src {token}; style-src-attr 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    )
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "same-origin"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["X-Request-Id"] = request_id.get()
    headers.setdefault("Cache-Control", "no-store")
    if tls:
        headers["Strict-Transport-Security"] = "max-age=31536000"


def _place(error: BaseException) -> str:
    """File and line of an error; its message may hold a value and is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else "unknown"
