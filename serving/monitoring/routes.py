"""The monitor in the service: what its last run found, as page and JSON. The run itself is ``wardcast monitor``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response

from serving.monitoring.page import render_page
from serving.monitoring.result import heartbeat, last_result

STALE: Final = timedelta(hours=26)
"""A daily run, and two hours of grace."""

REPORT_POLICY: Final = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; worker-src blob:"
)
"""Evidently's report brings its own scripts: they run in a sandbox of no origin, and may load and send nothing."""


def router() -> APIRouter:
    """``GET /monitor`` (page), ``GET /monitor/evidently`` (Evidently's report), ``GET /v1/monitor`` (JSON)."""
    routes = APIRouter()
    routes.add_api_route("/monitor", page, response_class=HTMLResponse, include_in_schema=False)
    routes.add_api_route(
        "/monitor/evidently", evidently, response_class=HTMLResponse, include_in_schema=False
    )
    routes.add_api_route("/v1/monitor", last, summary="What the last run of the monitor found")
    return routes


def page(request: Request) -> HTMLResponse:
    """The last result, with a notice when it is old, failed or was never made."""
    settings = request.app.state.wardcast.settings
    home = settings.var / "monitor"
    notices = standing(home, datetime.now(UTC))
    html = render_page(last_result(home), notices, timezone=settings.timezone, link="/monitor/evidently")
    return HTMLResponse(html)


def evidently(request: Request) -> Response:
    """Evidently's report of the last run, shut off from the rest of the service."""
    result = last_result(request.app.state.wardcast.settings.var / "monitor")
    name = result.evidently.get("html") if result else None
    if result is None or not name or not (result.folder / name).is_file():
        return PlainTextResponse(
            "The last run left no report of Evidently's. Run: wardcast monitor\n", status_code=404
        )
    return FileResponse(
        result.folder / name, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY}
    )


def last(request: Request) -> JSONResponse:
    """The last result and the heartbeat: `last` is null before the first run; `notices` says what is wrong with it."""
    home: Path = request.app.state.wardcast.settings.var / "monitor"
    result = last_result(home)
    answer: dict[str, Any] = {
        "notices": standing(home, datetime.now(UTC)),
        "heartbeat": heartbeat(home),
        "last": None,
    }
    if result is not None:
        plain = result.to_dict()
        answer["last"] = {k: v for k, v in plain.items() if k not in ("folder", "artifacts")}
    return JSONResponse(answer)


def standing(home: Path, now: datetime) -> list[str]:
    """What a reader must know before believing the last result: the monitor of the monitor."""
    beat = heartbeat(home)
    if beat is None:
        return ["The monitor has not run yet. Run: wardcast monitor"]
    started = datetime.fromisoformat(beat["started"])
    if beat["status"] == "failed":
        return [
            f"The last run, at {started:%Y-%m-%d %H:%M} UTC, failed: {beat.get('error', 'reason unknown')}"
        ]
    if beat["status"] == "running" and now - started > timedelta(hours=1):
        return [
            f"A run began at {started:%Y-%m-%d %H:%M} UTC and has not ended. Look at its log and run it again."
        ]
    if now - started > STALE:
        hours = (now - started) / timedelta(hours=1)
        return [
            f"The monitor last ran {hours:,.0f} hours ago. Set WARDCAST_MONITOR to a time of day, for example 05:00."
        ]
    return []
