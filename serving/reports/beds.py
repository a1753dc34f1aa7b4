"""``wardcast forecast beds``: the bed forecast as a file, from the store or from a file of visits; and by e-mail."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd

from features import census
from features.errors import ConfigError, DataError
from features.events import empty_events
from features.sources import visits as visit_source
from features.sources.outlook import Outlook
from models.beds import HOSPITAL
from models.bundle import Bundle
from serving.reports.forecast import RECORD_DAYS, BedForecast, forecast_beds, normal_visits, signed
from serving.reports.formats import FORMATS, asked
from serving.reports.mail import Mailbox, post, stem
from serving.settings import Settings


@dataclass(frozen=True)
class ReportResult:
    """A report that was written."""

    path: Path
    forecast: BedForecast

    def summary(self) -> str:
        """What it says of tomorrow, which model said it and what that was made from, and where the page is."""
        f = self.forecast
        cell = f.cell(HOSPITAL, "tomorrow")
        low, high = cell.net.quantile(0.05), cell.net.quantile(0.95)
        text = (
            f"Beds tomorrow: {cell.needed_mean:.0f} expected, {f.words(HOSPITAL, 'tomorrow')}. "
            f"{cell.parts['discharges']:.0f} discharges expected; net {signed(cell.net_mean)} "
            f"({signed(low)} to {signed(high)})."
        )
        model = f"Model {f.model_id}, made from: {f.origin}."
        if f.simulated:
            model += (
                " It was trained on simulated patients: train on your own visits before planning with it "
                "(wardcast train admissions --source visits --input FILE)."
            )
        return "\n".join([text, *f.freshness.silent, *f.freshness.notes, model, f"Report: {self.path}"])


def forecast_report(
    settings: Settings,
    at: str = "now",
    visits: Path | None = None,
    output: Path | None = None,
    *,
    form: str = "",
    hospital: str = "",
) -> ReportResult:
    """Write the forecast as one file.

    Parameters
    ----------
    settings : Settings
    at : str
        ``now``, or ISO 8601; without an offset in the site's time zone.
    visits : Path, optional
        A file of visits instead of the service's store. ``now`` is then the file's last moment.
    output : Path, optional
        Default ``var/reports/beds-<local time>.<form>``.
    form : str
        ``html``, ``pdf``, ``xlsx``, ``csv`` or ``json``; default the suffix of ``output``, else ``html``.
    hospital : str
        Which hospital of a file that has several (its column ``hospital``).

    Raises
    ------
    ConfigError, DataError, SpecError
        The time, the visits, the form or the model cannot be used.
    """
    name = asked(form, output)
    forecast, site = _forecast(settings, at, visits, hospital)
    path = output or settings.var / "reports" / f"{stem(forecast)}.{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(FORMATS[name].write(forecast, site))
    return ReportResult(path, forecast)


def _forecast(settings: Settings, at: str, visits: Path | None, hospital: str) -> tuple[BedForecast, str]:
    """The forecast, and what the place is called."""
    bundle = Bundle.load(settings.admissions_model)
    if hospital and not visits and hospital != settings.site:
        raise ConfigError(
            f"This service's store is that of {settings.site!r}. Name a file of visits with --visits for {hospital!r}."
        )
    table, events, last, account = (
        _from_file(visits, settings, hospital) if visits else (*_from_store(settings, at, bundle), ())
    )
    now = last if at == "now" else parse_time(at, settings.timezone)
    outlook = Outlook.read(visits.parent if visits else settings.var, settings.timezone)
    forecast = forecast_beds(
        table, events, bundle, now, settings.timezone, open_beds(settings), RECORD_DAYS, outlook
    )
    fresh = replace(forecast.freshness, notes=(*account, *forecast.freshness.notes))
    return replace(forecast, freshness=fresh), hospital or settings.site


def post_report(settings: Settings, due: datetime) -> str:
    """Write the report of a huddle in every form under ``var/reports``, and post it where there is a mail server.

    Returns one line on what was done.

    Raises
    ------
    WardcastError
        The forecast cannot be made, or the mail server did not take it.
    """
    forecast, site = _forecast(settings, "now" if settings.clock == "replay" else due.isoformat(), None, "")
    folder = settings.var / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    for name, form in FORMATS.items():
        (folder / f"{stem(forecast)}.{name}").write_bytes(form.write(forecast, site))
    box = Mailbox.of(settings.smtp, settings.mail_from, settings.mail_to, settings.smtp_password_file)
    if box is None:
        return f"{stem(forecast)} written"
    post(box, forecast, site)
    return f"{stem(forecast)} written and posted to {len(box.recipients)}"


def parse_time(text: str, timezone: str) -> pd.Timestamp:
    """An instant from ISO 8601; without an offset it is local.

    Raises
    ------
    DataError
        It is not one.
    """
    try:
        at = pd.Timestamp(datetime.fromisoformat(text))
    except ValueError:
        raise DataError("`at` is not a time. Write for example 2026-01-12T08:00.") from None
    if not 1900 <= at.year < 2200:
        raise DataError("`at` lies outside the years 1900 to 2199. Write for example 2026-01-12T08:00.")
    if at.tzinfo is None:
        at = at.tz_localize(ZoneInfo(timezone), ambiguous=True, nonexistent="shift_forward")
    return at.tz_convert("UTC")


def _from_file(
    path: Path, settings: Settings, hospital: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Timestamp, tuple[str, ...]]:
    table, account = visit_source.read(path, timezone=settings.timezone, hospital=hospital)
    times = table[["arrival_time", "decision_time", "admission_time", "discharge_time"]]
    last = min(pd.Timestamp(times.max().max()), pd.Timestamp.now("UTC"))
    told = (" ".join(account.lines()),) if account.reasons or account.repaired else ()
    return table, empty_events(), last, told


def read_known(
    settings: Settings, at: str, bundle: Bundle, visits: Path | None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Timestamp]:
    """Visits and observations of a file or of the store, and the last moment they tell of."""
    return _from_file(visits, settings, "")[:3] if visits else _from_store(settings, at, bundle)


def _from_store(
    settings: Settings, at: str, bundle: Bundle
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Timestamp]:
    from serving.store.store import Store

    store = Store.open(settings.store_url, settings.store_key or None, settings.site)
    try:
        now = service_now(store, settings) if at == "now" else parse_time(at, settings.timezone)
        visits = normal_visits(store.visits(now))
        return visits, ed_events(store, visits, now, settings.timezone, RECORD_DAYS), now
    finally:
        store.close()


def service_now(store: Any, settings: Settings) -> pd.Timestamp:
    """The service's clock: the wall's, or the latest ``as_of`` of a replay."""
    from sqlalchemy import select

    from serving.store.tables import replay_clock

    if settings.clock == "replay":
        with store.read() as connection:
            found = connection.execute(select(replay_clock.c.now)).scalar()
        if found is not None:
            return pd.Timestamp(int(found) * 1000, tz="UTC")
    return pd.Timestamp(datetime.now(UTC))


def ed_events(
    store: Any, visits: pd.DataFrame, now: pd.Timestamp, timezone: str, record_days: int
) -> pd.DataFrame:
    """Stored observations of those who are undecided now, and of those who were at the record's times."""
    who: set[str] = set()
    wall = now.tz_convert(ZoneInfo(timezone)).tz_localize(None)
    for back in (0, *range(2, record_days + 2)) if record_days else (0,):
        then = (wall - pd.Timedelta(days=back)).tz_localize(
            ZoneInfo(timezone), ambiguous=True, nonexistent="shift_forward"
        )
        who |= set(census.undecided(visits, then.tz_convert("UTC"))["encounter_id"])
    found: pd.DataFrame = store.events(sorted(who), now) if who else empty_events()
    return found


def open_beds(settings: Settings) -> dict[str, int] | None:
    """Open beds by specialty from ``var/open_beds.csv`` (columns ``specialty,open_beds``); None where there is none.

    Raises
    ------
    ConfigError
        The file is there and cannot be used.
    """
    path = settings.var / "open_beds.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as lines:
        rows: Sequence[dict[str, str]] = list(csv.DictReader(lines))
    try:
        found = {row["specialty"].strip(): int(row["open_beds"]) for row in rows}
    except (KeyError, ValueError, AttributeError):
        found = {"": -1}
    if min(found.values(), default=0) < 0:
        raise ConfigError(f"{path} needs the columns specialty,open_beds and whole numbers from 0 on.")
    return found
