"""The result as a page: self-contained in the report file, and in the service's frame."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from jinja2 import BaseLoader, ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from serving.monitoring import charts
from serving.monitoring.findings import ALARM, NOTE, WATCH, Finding
from serving.monitoring.result import MonitorResult

TEMPLATES: Final = Path(__file__).parent / "templates"
ICONS: Final = {ALARM: "▲", WATCH: "◆", NOTE: "●", "ok": "✓"}
TREND_WORDS: Final = {
    "feed_silent": "share without a value",
    "missing_more": "share without a value",
    "missing_less": "share with a value",
    "unit_mixed": "share far above the usual",
    "alerts_flood": "share at or above the threshold",
    "alerts_few": "share at or above the threshold",
}


def render_report(result: MonitorResult, timezone: str = "UTC") -> str:
    """One HTML file that opens without a network and loads nothing; it links to Evidently's report beside it."""
    link = str(result.evidently.get("html") or "")
    return _environment(None, timezone).get_template("report.html").render(**_context(result, link, timezone))


def render_page(
    result: MonitorResult | None,
    notices: Sequence[str],
    *,
    frame: BaseLoader | None,
    timezone: str,
    nonce: str,
    evidently_link: str,
) -> str:
    """The page of the service, inside its ``base.html``; ``notices`` stand on top."""
    context: dict[str, Any] = {"r": None, "css": _css()}
    if result is not None:
        context = _context(result, evidently_link, timezone)
    template = _environment(frame, timezone).get_template("page.html")
    return template.render(**context, notices=notices, nonce=nonce)


def _context(result: MonitorResult, link: str, timezone: str) -> dict[str, Any]:
    scores = result.scores
    return {
        "r": result,
        "css": _css(),
        "icon": ICONS,
        "timezone": timezone,
        "state": ALARM if result.count(ALARM) else WATCH if result.count(WATCH) else "ok",
        "first": _first(result),
        "pictures": [_pictures(f, result) for f in result.findings],
        "volume": Markup(charts.volume(result.alerts["volume"], result.alerts["usual_share"])),  # noqa: S704
        "histogram": Markup(  # noqa: S704  # built by us from numbers; words are escaped there
            charts.histogram(scores["edges"], scores["now"], scores["reference"], scores["threshold"])
            if result.scored
            else ""
        ),
        "rows": sorted(result.features, key=_most_changed),
        "evidently_link": link,
    }


def _first(result: MonitorResult) -> datetime:
    """Up to when a change counts as having been there from the start: the end of the first step of the charts."""
    volume = result.alerts["volume"]
    return datetime.fromisoformat(volume[min(1, len(volume) - 1)]["start"]) if volume else result.since


def _most_changed(feature: dict[str, Any]) -> tuple[bool, float]:
    return (
        not feature["finding"],
        -(feature["psi"] if isinstance(feature["psi"], float) and _known(feature["psi"]) else 0.0),
    )


def _known(value: Any) -> bool:
    return value is not None and value == value


def _pictures(finding: Finding, result: MonitorResult) -> list[tuple[str, Markup]]:
    found: list[tuple[str, Markup]] = []
    if finding.trend:
        words = TREND_WORDS.get(finding.kind, "share on the side it moved to")
        found.append((words, Markup(charts.trend(finding.trend, finding.usual, f"{words} over time"))))  # noqa: S704
    feature = next(
        (f for f in result.features if finding.features and f["feature"] == finding.features[0]), None
    )
    if feature and feature["bins_now"] and finding.kind in ("drift", "scale", "unit_wrong", "unit_mixed"):
        words = "values now, in tenths of the reference"
        told = f"{words}: {finding.features[0]}"
        bars = charts.bars_against(feature["bins_now"], feature["bins_reference"], told)
        found.append((words, Markup(bars)))  # noqa: S704
    return found


@cache
def _css() -> Markup:
    return Markup((TEMPLATES / "monitor.css").read_text(encoding="utf-8"))  # noqa: S704  # our own file


def _environment(frame: BaseLoader | None, timezone: str) -> Environment:
    own = FileSystemLoader(TEMPLATES)
    zone = ZoneInfo(timezone)
    environment = Environment(
        loader=ChoiceLoader([own, frame]) if frame else own,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["local"] = lambda t: f"{t.astimezone(zone):%a %d %b %Y %H:%M}"
    environment.filters["share"] = lambda v: f"{v:.0%}" if _known(v) else "–"
    environment.filters["number"] = _number
    return environment


def _number(value: Any, decimals: int | None = None) -> str:
    if not _known(value):
        return "–"
    return f"{value:.{decimals}f}" if decimals is not None else f"{value:.4g}"
