"""The bed forecast in the service: page and JSON, from the store, as known at any moment."""

from __future__ import annotations

import re
from collections import OrderedDict
from datetime import UTC, date, datetime
from datetime import time as clock
from threading import Lock
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

import pandas as pd
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BeforeValidator

from features.errors import SpecError, WardcastError
from features.sources.outlook import Outlook
from models.bundle import Bundle
from serving.answers import Refusal
from serving.reports.beds import ed_events, open_beds, parse_time
from serving.reports.forecast import RECORD_DAYS, BedForecast, forecast_beds, normal_visits
from serving.reports.formats import FORMATS, format_of
from serving.reports.mail import stem
from serving.reports.render import render_page

GRACE = pd.Timedelta(minutes=5)
KEPT = 16
REPORTS: Final = "/reports/beds/"
FIRST_HUDDLE: Final = "08:00"
"""When a day's report is made where the site has named no huddles."""

At = Annotated[
    str | None,
    Query(
        max_length=40,
        description="ISO 8601; without an offset in the site's time zone. Default: the service's now.",
    ),
]
Form = Literal["html", "pdf", "xlsx", "csv", "json"]


def _written(day: object) -> object:
    if isinstance(day, str) and not re.fullmatch(r"\d{4}-\d\d-\d\d", day):
        raise ValueError("is no day|Write it as 2026-01-12.")
    return day


Day = Annotated[date, BeforeValidator(_written), Path(ge=date(1900, 1, 1), le=date(2199, 12, 31))]
"""Else a bare number would pass for seconds since 1970."""
ClockTime = Annotated[
    str | None,
    Query(
        pattern=r"^([01]\d|2[0-3]):[0-5]\d$",
        description="Which huddle, a local clock time such as 08:00. Default: the day's newest that has come.",
    ),
]


def router(service_state: Any) -> APIRouter:
    """``GET /beds`` (page), ``GET /reports/beds/{day}`` (a huddle's report) and ``GET /v1/forecast/beds``.

    ``service_state`` has ``settings``, ``store``, ``bundles``, ``templates`` and ``now()``.
    """
    desk = Desk(service_state)
    routes = APIRouter()

    def page(request: Request, at: At = None) -> HTMLResponse:
        """The forecast as a page."""
        return HTMLResponse(render_page(service_state.templates, desk.forecast(at, RECORD_DAYS), desk.site))

    def answer(request: Request, at: At = None, format: Form = "json") -> Response:
        """Beds needed, discharges and net position by specialty, from the next 4 hours to the days ahead.

        `at` may be in the past: the forecast is then made from what the store knew at that moment. `format` gives the
        same forecast as a page, a PDF, a spreadsheet or a table.
        """
        if format == "json":
            return JSONResponse(desk.forecast(at, 0).to_dict())
        return _file(desk.forecast(at, RECORD_DAYS), format, desk.site)

    def huddle(request: Request, day: Day, time: ClockTime = None, format: Form = "html") -> Response:
        """The report of one day's huddle, made from what was known then."""
        return _file(desk.forecast(desk.huddle(day, time), RECORD_DAYS), format, desk.site)

    files: dict[int | str, dict[str, Any]] = {
        200: {"content": {form.media.split(";")[0]: {} for form in FORMATS.values()}}
    }
    routes.add_api_route("/beds", page, response_class=HTMLResponse, include_in_schema=False)
    routes.add_api_route("/v1/forecast/beds", answer, summary="How many beds will be needed", responses=files)
    routes.add_api_route(
        f"{REPORTS}{{day}}", huddle, summary="The bed report of one day's huddle", responses=files
    )
    return routes


def _file(forecast: BedForecast, name: str, site: str) -> Response:
    form = format_of(name)
    shown = "inline" if name in ("html", "pdf", "json") else "attachment"
    headers = {"Content-Disposition": f'{shown}; filename="{stem(forecast)}.{name}"'}
    if name == "html":
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return Response(form.write(forecast, site), media_type=form.media, headers=headers)


class Desk:
    """Makes forecasts from the store; the latest are kept, since one moment has one forecast."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self._kept: OrderedDict[tuple[Any, ...], BedForecast] = OrderedDict()
        self._lock = Lock()

    @property
    def site(self) -> str:
        """The site's name."""
        return str(self._state.settings.site)

    def bundle(self) -> Bundle:
        """The admissions bundle, loaded at the first use.

        Raises
        ------
        Refusal
            503 with the reason where it cannot be loaded.
        """
        bundles = self._state.bundles
        with self._lock:
            if "admissions" not in bundles:
                try:
                    bundles["admissions"] = Bundle.load(self._state.settings.admissions_model)
                except SpecError as error:
                    raise Refusal(
                        503,
                        error.code,
                        f"The admissions model cannot be loaded: {error}",
                        "Set WARDCAST_ADMISSIONS_MODEL to a bundle folder, or run: wardcast train admissions.",
                    ) from None
        found: Bundle = bundles["admissions"]
        return found

    def forecast(self, at: str | None, record_days: int) -> BedForecast:
        """The forecast at a moment, from what the store knew then.

        Raises
        ------
        Refusal
            422 where the moment is no time or lies ahead.
        """
        bundle, settings, store = self.bundle(), self._state.settings, self._state.store
        now = pd.Timestamp(self._state.now()).tz_convert("UTC")
        moment = now if at is None else self._moment(at, now)
        visits = normal_visits(store.visits(moment))
        fingerprint = int(pd.util.hash_pandas_object(visits, index=False).sum()) if len(visits) else 0
        key = (bundle.model_id, moment.floor("1min"), record_days, fingerprint)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        events = ed_events(store, visits, moment, settings.timezone, record_days)
        made = forecast_beds(
            visits, events, bundle, moment, settings.timezone, open_beds(settings), record_days,
            Outlook.read(settings.var, settings.timezone),
        )  # fmt: skip
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made

    def huddle(self, day: date, time: str | None) -> str:
        """The moment of a day's huddle: the one named, else the day's newest that has come, else its first."""
        zone = ZoneInfo(self._state.settings.timezone)
        times = (time,) if time else self._state.settings.huddles or (FIRST_HUDDLE,)
        moments = [datetime.combine(day, clock.fromisoformat(t), tzinfo=zone).astimezone(UTC) for t in times]
        now = pd.Timestamp(self._state.now()).tz_convert("UTC")
        return max([m for m in moments if m <= now] or moments[:1]).isoformat()

    def _moment(self, at: str, now: pd.Timestamp) -> pd.Timestamp:
        try:
            moment = parse_time(at.replace(" ", "+"), self._state.settings.timezone)
        except WardcastError as error:
            raise Refusal(
                422, "not_a_time", str(error), "Write for example at=2026-01-12T08:00:00Z."
            ) from None
        if moment > now + GRACE:
            raise Refusal(
                422, "future_time", "at lies in the future.", "Leave it out, or name a past moment."
            )
        return min(moment, now)
