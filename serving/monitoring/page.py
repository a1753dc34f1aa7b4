"""The result as a page: self-contained in the report file, and in the service's frame."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final
from zoneinfo import ZoneInfo

from jinja2 import Environment
from markupsafe import Markup

from serving.monitoring import charts
from serving.monitoring.findings import ALARM, NOTE, WATCH, Finding
from serving.monitoring.result import MonitorResult
from serving.render import environment

ICONS: Final = {ALARM: "▲", WATCH: "◆", NOTE: "●", "ok": "✓"}
MEASURES: Final = (
    ("observed_expected", "Observed / expected, by hour", 2),
    ("intercept", "Calibration in the large, log-odds", 2),
    ("slope", "Calibration slope", 2),
    ("ici", "ICI, by hour", 4),
    ("auroc", "AUROC, by hour", 3),
    ("page_ppv", "PPV of a page: onset within 24 h", 2),
    ("stay_ppv", "PPV of a paged stay", 2),
    ("sensitivity", "Sensitivity: septic stays paged before onset", 2),
    ("lead_h_median", "Median lead time of these, hours", 1),
    ("pages_per_100_patient_days", "Pages per 100 patient-days", 1),
    ("prevalence_per_stay", "Prevalence, by stay", 3),
)
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
    return _templates(timezone).get_template("monitor_report.html").render(**_context(result, link))


def render_page(result: MonitorResult | None, notices: Sequence[str], *, timezone: str, link: str) -> str:
    """The page of the service, in the frame that all its pages share; ``notices`` stand on top."""
    context: dict[str, Any] = {"r": None} if result is None else _context(result, link)
    return _templates(timezone).get_template("monitor_page.html").render(**context, notices=notices)


def _context(result: MonitorResult, link: str) -> dict[str, Any]:
    scores = result.scores
    shown = result.scored > 0
    bars = (
        charts.histogram(scores["edges"], scores["now"], scores["reference"], scores["threshold"])
        if shown
        else ""
    )
    return {
        "r": result,
        "icon": ICONS,
        "state": ALARM if result.count(ALARM) else WATCH if result.count(WATCH) else "ok",
        "first": _first(result),
        "pictures": [_pictures(f, result) for f in result.findings],
        "volume": _svg(charts.volume(result.alerts["volume"], result.alerts["usual_share"])),
        "histogram": _svg(bars),
        "rows": sorted(result.features, key=_most_changed),
        "evidently_link": link,
        "measures": MEASURES,
    }


def _svg(chart: str) -> Markup:
    return Markup(chart)  # noqa: S704  # drawn by charts.py from numbers; every word in it is escaped there


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
        found.append((words, _svg(charts.trend(finding.trend, finding.usual, f"{words} over time"))))
    feature = next(
        (f for f in result.features if finding.features and f["feature"] == finding.features[0]), None
    )
    if feature and feature["bins_now"] and finding.kind in ("drift", "scale", "unit_wrong", "unit_mixed"):
        words = "values now, in tenths of the reference"
        told = f"{words}: {finding.features[0]}"
        bars = charts.bars_against(feature["bins_now"], feature["bins_reference"], told)
        found.append((words, _svg(bars)))
    return found


@cache
def _templates(timezone: str) -> Environment:
    templates = environment(timezone)
    zone = ZoneInfo(timezone)
    templates.filters["when"] = datetime.fromisoformat
    templates.filters |= {
        "instant": lambda t: (
            f"{t.astimezone(zone):%a} {t.astimezone(zone).day} {t.astimezone(zone):%b %Y %H:%M}"
        ),
        "share": lambda v: f"{v:.0%}" if _known(v) else "–",
        "figure": _figure,
    }
    return templates


def _figure(value: Any, decimals: int | None = None) -> str:
    if not _known(value):
        return "–"
    return f"{value:.{decimals}f}" if decimals is not None else f"{value:.4g}"
