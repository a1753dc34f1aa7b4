"""The bed forecast in the service: page and JSON, from the store, as known at any moment."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Annotated, Any, Literal

import pandas as pd
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from features.errors import SpecError, WardcastError
from models.bundle import Bundle
from serving.answers import Refusal
from serving.reports.beds import ed_events, open_beds, parse_time
from serving.reports.forecast import RECORD_DAYS, BedForecast, forecast_beds, normal_visits
from serving.reports.render import render_page, render_report

GRACE = pd.Timedelta(minutes=5)
KEPT = 16

At = Annotated[
    str | None,
    Query(
        max_length=40,
        description="ISO 8601; without an offset in the site's time zone. Default: the service's now.",
    ),
]


def router(service_state: Any) -> APIRouter:
    """``GET /beds`` (page) and ``GET /v1/forecast/beds`` (JSON, or the report as one HTML file).

    ``service_state`` has ``settings``, ``store``, ``bundles``, ``templates`` and ``now()``.
    """
    desk = Desk(service_state)
    routes = APIRouter()

    def page(request: Request, at: At = None) -> HTMLResponse:
        """The forecast as a page."""
        return HTMLResponse(render_page(service_state.templates, desk.forecast(at, RECORD_DAYS), desk.site))

    def answer(request: Request, at: At = None, format: Literal["json", "html"] = "json") -> Response:
        """Beds needed, discharges and net position by specialty, for 4 h, 8 h, to 08:00 tomorrow and tomorrow.

        `at` may be in the past: the forecast is then made from what the store knew at that moment.
        """
        if format == "html":
            name = "beds.html"
            text = render_report(desk.forecast(at, RECORD_DAYS), desk.site)
            headers = {
                "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
                "Content-Disposition": f'inline; filename="{name}"',
            }
            return HTMLResponse(text, headers=headers)
        return JSONResponse(desk.forecast(at, 0).to_dict())

    routes.add_api_route("/beds", page, response_class=HTMLResponse, include_in_schema=False)
    routes.add_api_route("/v1/forecast/beds", answer, summary="How many beds will be needed")
    return routes


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
                        "model_unusable",
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
            visits, events, bundle, moment, settings.timezone, open_beds(settings), record_days=record_days
        )
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made

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
