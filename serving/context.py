"""What belongs to the request being served: its identity, its caller, the nonce of its page."""

from __future__ import annotations

from contextvars import ContextVar

from serving.security.identity import Caller

request_id: ContextVar[str] = ContextVar("request_id", default="")
nonce: ContextVar[str] = ContextVar("nonce", default="")
current_caller: ContextVar[Caller | None] = ContextVar("current_caller", default=None)
