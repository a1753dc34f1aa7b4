"""The bed forecast as a page: in the service's frame, or as one file that opens anywhere and prints on A4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup

from models.beds import HOSPITAL, Cell, Window
from serving.render import environment
from serving.reports import charts
from serving.reports.forecast import COVERED, SURE, BedForecast, Past, signed

SHORT_HIGH = 0.5
SHORT_SOME = 0.1


@dataclass(frozen=True)
class Line:
    """One row of a table."""

    level: str
    cell: Cell
    picture: Markup
    made_of: Markup
    net: Markup


def render_report(forecast: BedForecast, site: str = "") -> str:
    """One HTML file, nothing loaded from anywhere; prints on one sheet of A4 landscape."""
    return _templates(forecast.timezone).get_template("beds_report.html").render(**context(forecast, site))


def render_page(templates: Environment, forecast: BedForecast, site: str = "") -> str:
    """The page ``/beds`` in the frame that all pages of the service share."""
    return templates.get_template("beds_page.html").render(**context(forecast, site), here="/beds")


@lru_cache(maxsize=4)
def _templates(timezone: str) -> Environment:
    return environment(timezone)


def context(f: BedForecast, site: str) -> dict[str, Any]:
    """What the templates read."""
    zone = ZoneInfo(f.timezone)
    tomorrow = f.window("tomorrow")
    soon = [w for w in f.windows if not is_later_day(w)]
    return {
        "f": f,
        "site": site if site != "site" else "",
        "made": moment(f.at, f.timezone),
        "huddle": f"{f.at.tz_convert(zone):%H:%M}",
        "tomorrow_name": f"{tomorrow.start.tz_convert(zone):%A} {tomorrow.start.tz_convert(zone).day} "
        f"{tomorrow.start.tz_convert(zone):%B}",
        "cards": [_card(f, w.key, w.label, zone) for w in soon],
        "lines": _lines(f, tomorrow.key),
        "sooner": [w for w in soon if w.key != tomorrow.key],
        "week": _week(f),
        "hospital": HOSPITAL,
        "signed": signed,
        "known": f.cell(HOSPITAL, tomorrow.key),
        "short_word": short_word,
        "short_kind": short_kind,
        "record": _record(f.record),
        "fresh": {
            "visit": ago(f.at, f.freshness.newest_visit),
            "observation": ago(f.at, f.freshness.newest_observation),
        },
        "sure": SURE,
        "covered": COVERED,
        "simulated": f.simulated,
    }


def _card(f: BedForecast, key: str, label: str, zone: ZoneInfo) -> dict[str, Any]:
    window = next(w for w in f.windows if w.key == key)
    cell = f.cell(HOSPITAL, key)
    ends = window.end.tz_convert(zone)
    when = f"until {ends:%H:%M}" if key.startswith("next") else f"{window.start.tz_convert(zone):%a %d %b}"
    return {
        "label": label,
        "when": "" if key == "to_08" else when,
        "cell": cell,
        "picture": charts.range_bar(
            cell.needed, charts.scale_top([cell.needed.quantile(0.95)]), 200, height=18
        ),
        "words": f.words(HOSPITAL, key),
        "low": cell.needed.quantile(0.05),
        "high": cell.needed.quantile(0.95),
    }


def _lines(f: BedForecast, window: str) -> list[Line]:
    cells = [(level, f.cell(level, window)) for level in f.levels]
    parts_top = charts.scale_top([c.needed_mean for level, c in cells if level != HOSPITAL])
    need_top = charts.scale_top([c.needed.quantile(0.95) for level, c in cells if level != HOSPITAL])
    reach = max(
        [abs(c.net.quantile(q)) for level, c in cells if level != HOSPITAL for q in (0.05, 0.95)] + [1]
    )
    out = []
    for level, cell in cells:
        whole = level == HOSPITAL
        own_top = charts.scale_top([cell.needed.quantile(0.95)]) if whole else need_top
        own_reach = max(abs(cell.net.quantile(0.05)), abs(cell.net.quantile(0.95)), 1) if whole else reach
        parts = [cell.parts[k] for k in ("known", "in_ed", "to_come", "planned")]
        out.append(
            Line(
                level=level,
                cell=cell,
                picture=charts.range_bar(cell.needed, own_top),
                made_of=charts.parts_bar(parts, charts.scale_top([cell.needed_mean]) if whole else parts_top),
                net=charts.net_bar(cell.net, float(own_reach)),
            )
        )
    return out


def is_later_day(window: Window) -> bool:
    """Whether a window is a whole day after tomorrow."""
    return window.key.startswith("day_")


def day_name(window: Window, timezone: str) -> str:
    """A whole day's name: ``Tue 13 Jan``."""
    start = window.start.tz_convert(ZoneInfo(timezone))
    return f"{start:%a} {start.day} {start:%b}"


def _week(f: BedForecast) -> list[tuple[str, Cell, Markup]]:
    """The whole hospital on each of the days ahead: name, figures, picture of the beds needed."""
    days = [w for w in f.windows if w.key == "tomorrow" or is_later_day(w)]
    top = charts.scale_top([f.cell(HOSPITAL, w.key).needed.quantile(0.95) for w in days])
    cells = [(w, f.cell(HOSPITAL, w.key)) for w in days]
    return [(day_name(w, f.timezone), c, charts.range_bar(c.needed, top, 70, height=16)) for w, c in cells]


def short_kind(probability: float | None) -> str:
    """How pressing a probability of running short is: ``page``, ``high``, ``low`` or ``none``."""
    if probability is None:
        return "none"
    return "page" if probability >= SHORT_HIGH else "high" if probability >= SHORT_SOME else "low"


def short_word(probability: float | None) -> str:
    """The probability in whole percent, never more certain than the draws allow."""
    if probability is None:
        return "–"
    percent = round(probability * 100)
    return "< 1 %" if percent < 1 else "> 99 %" if percent > 99 else f"{percent} %"


def _record(record: Sequence[Past]) -> dict[str, Any] | None:
    if not record:
        return None
    errors = [abs(p.middle - p.outcome) for p in record]
    return {
        "picture": charts.record_chart(record),
        "days": len(record),
        "inside": sum(p.inside for p in record),
        "error": sum(errors) / len(errors),
        "over": sum(p.outcome > p.high for p in record),
        "under": sum(p.outcome < p.low for p in record),
        "rows": record,
    }


def moment(at: pd.Timestamp, timezone: str) -> str:
    """An instant as the site's people write it: ``Monday 12 January 2026, 08:00``."""
    local = at.tz_convert(ZoneInfo(timezone))
    return f"{local:%A} {local.day} {local:%B %Y}, {local:%H:%M}"


def ago(now: pd.Timestamp, then: pd.Timestamp | None) -> str:
    """How long since, in minutes or hours."""
    if then is None:
        return "none"
    minutes = int((now - then) / pd.Timedelta(minutes=1))
    return "now" if minutes < 1 else f"{minutes} min ago" if minutes < 90 else f"{minutes / 60:.0f} h ago"
