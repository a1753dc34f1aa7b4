"""Jinja set up once: autoescaping on, unknown names an error, times in the site's zone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined

from serving.context import current_caller, nonce
from serving.reasons import number_text

SERVING = Path(__file__).resolve().parent
HOUR_US = 3_600_000_000


def environment(timezone: str) -> Environment:
    """The templates of every page. ``pages/templates`` has ``base.html``; other rooms keep theirs beside their code."""
    folders = [SERVING / room / "templates" for room in ("pages", "reports", "monitoring")]
    templates = Environment(
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    zone = ZoneInfo(timezone)
    templates.globals |= {"csp_nonce": nonce.get, "caller": current_caller.get, "timezone": timezone}
    templates.filters |= {
        "clock": lambda us: f"{_at(us, zone):%H:%M}",
        "moment": lambda us: f"{_at(us, zone).day} {_at(us, zone):%b %Y, %H:%M}",
        "machine": lambda us: _at(us, zone).isoformat(),
        "percent": percent,
        "ago": ago,
        "number": number_text,
        "signed": lambda x: "0.00" if abs(x) < 0.005 else f"{x:+.2f}".replace("-", "−"),
    }
    return templates


def percent(probability: float) -> str:
    """``8.3 %``; two figures are all that a calibrated risk can bear."""
    value = probability * 100
    if value < 0.1:
        return "< 0.1 %"
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %"


def ago(micros: int) -> str:
    """A duration in words: ``12 min``, ``3 h``, ``2 d``."""
    minutes = micros // 60_000_000
    if minutes < 1:
        return "now"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes / 60:.0f} h" if minutes < 48 * 60 else f"{minutes / 1440:.0f} d"


def _at(micros: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(micros / 1e6, zone)
