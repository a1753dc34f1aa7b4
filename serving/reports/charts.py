"""Small pictures of the bed report as inline SVG: no script, no inline style, readable in black and white."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from models.forecast import Counts
from serving.reports.forecast import SPREAD, Past, signed


def scale_top(values: Sequence[float]) -> float:
    """A round end for an axis that starts at 0."""
    top = max([*values, 1.0])
    for step in (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000, 5000):
        if top / step <= 6:
            return float(-(-top // step) * step)
    return float(top)


def range_bar(counts: Counts, top: float, width: int = 118, known: int = 0, height: int = 20) -> Markup:
    """90 % range light, middle half dark, median a line; a tick below for what is known already."""
    x5, x25, x50, x75, x95 = (_place(counts.quantile(level), 0, top, width) for level in SPREAD)
    mid = height / 2
    low, middle, high = (counts.quantile(SPREAD[k]) for k in (0, 2, 4))
    said = f"between {low} and {high}, most likely about {middle}"
    tick = ""
    if known:
        x = _place(known, 0, top, width)
        tick = f'<path class="known" d="M{x - 3:.1f} {height}l3 -5 3 5z"/>'
    return Markup(  # noqa: S704 - numbers and our own words only
        f'<svg class="range" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(said)}"><line class="axis" x1="0" y1="{mid}" x2="{width}" y2="{mid}"/>'
        f'<rect class="wide" x="{x5:.1f}" y="{mid - 4}" width="{max(x95 - x5, 1.5):.1f}" height="8" rx="2"/>'
        f'<rect class="half" x="{x25:.1f}" y="{mid - 4}" width="{max(x75 - x25, 1.5):.1f}" height="8" rx="1"/>'
        f'<line class="median" x1="{x50:.1f}" y1="{mid - 7}" x2="{x50:.1f}" y2="{mid + 7}"/>{tick}</svg>'
    )


def net_bar(counts: Counts, reach: float, width: int = 84, height: int = 20) -> Markup:
    """The net position around zero: to the right more beds are taken, to the left beds come free."""
    x5, x25, x50, x75, x95 = (_place(counts.quantile(level), -reach, reach, width) for level in SPREAD)
    zero, mid = width / 2, height / 2
    said = f"between {signed(counts.quantile(SPREAD[0]))} and {signed(counts.quantile(SPREAD[-1]))}"
    return Markup(  # noqa: S704
        f'<svg class="range" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(said)}"><line class="axis" x1="0" y1="{mid}" x2="{width}" y2="{mid}"/>'
        f'<rect class="wide" x="{x5:.1f}" y="{mid - 4}" width="{max(x95 - x5, 1.5):.1f}" height="8" rx="2"/>'
        f'<rect class="half" x="{x25:.1f}" y="{mid - 4}" width="{max(x75 - x25, 1.5):.1f}" height="8" rx="1"/>'
        f'<line class="zero" x1="{zero}" y1="1" x2="{zero}" y2="{height - 1}"/>'
        f'<line class="median" x1="{x50:.1f}" y1="{mid - 7}" x2="{x50:.1f}" y2="{mid + 7}"/></svg>'
    )


def parts_bar(parts: Sequence[float], top: float, width: int = 92, height: int = 20) -> Markup:
    """What the expected need is made of, stacked: known, in the ED, to come, planned."""
    names = ("known", "in_ed", "to_come", "planned")
    x, drawn = 0.0, []
    for name, value in zip(names, parts, strict=True):
        w = value / top * width if top else 0.0
        drawn.append(
            f'<rect class="{name}" x="{x:.1f}" y="{height / 2 - 5}" width="{max(w - 0.8, 0):.1f}" height="10"/>'
        )
        x += w
    words = ("known", "in the emergency department", "to come", "planned")
    said = ", ".join(f"{v:.1f} {w}" for v, w in zip(parts, words, strict=True))
    return Markup(  # noqa: S704
        f'<svg class="parts" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(said)}">{"".join(drawn)}</svg>'
    )


def record_chart(record: Sequence[Past], width: int = 430, height: int = 168) -> Markup:
    """Each day's 90 % and 50 % range with the day's outcome: a filled dot inside, a hollow square outside."""
    left, top_y, base = 26, 6, height - 30
    top = scale_top([p.high for p in record] + [p.outcome for p in record])
    step = (width - left - 4) / max(len(record), 1)

    def y(n: float) -> float:
        return base - (base - top_y) * n / top

    out = [
        f'<line class="grid" x1="{left}" y1="{y(v):.1f}" x2="{width}" y2="{y(v):.1f}"/>'
        f'<text class="tick" x="{left - 5}" y="{y(v) + 3.5:.1f}" text-anchor="end">{v:.0f}</text>'
        for v in (0.0, top / 2, top)
    ]
    for k, p in enumerate(record):
        x = left + step * (k + 0.5)
        w = min(step * 0.55, 16)
        out.append(
            f'<rect class="wide" x="{x - w / 2:.1f}" y="{y(p.high):.1f}" width="{w:.1f}" '
            f'height="{max(y(p.low) - y(p.high), 1):.1f}" rx="2"/>'
            f'<rect class="half" x="{x - w / 2:.1f}" y="{y(p.upper):.1f}" width="{w:.1f}" '
            f'height="{max(y(p.lower) - y(p.upper), 1):.1f}"/>'
        )
        if p.inside:
            out.append(f'<circle class="came" cx="{x:.1f}" cy="{y(p.outcome):.1f}" r="3.4"/>')
        else:
            out.append(
                f'<rect class="missed" x="{x - 3.6:.1f}" y="{y(p.outcome) - 3.6:.1f}" width="7.2" height="7.2"/>'
            )
        out.append(
            f'<text class="tick" x="{x:.1f}" y="{height - 17}" text-anchor="middle">{int(p.day[8:])}</text>'
        )
        if k == 0 or p.day[8:] == "01":
            out.append(
                f'<text class="tick" x="{x:.1f}" y="{height - 4}" text-anchor="middle">{month(p.day)}</text>'
            )
    said = f"Beds needed a day, forecast the day before, against what came, for {len(record)} days"
    return Markup(  # noqa: S704
        f'<svg class="record" viewBox="0 0 {width} {height}" role="img" aria-label="{said}">{"".join(out)}</svg>'
    )


def month(day: str) -> str:
    """The month of an ISO date, in three letters."""
    names = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    return names[int(day[5:7]) - 1]


def _place(n: float, low: float, high: float, width: int) -> float:
    share = (n - low) / (high - low) if high > low else 0.0
    return min(max(share, 0.0), 1.0) * (width - 3) + 1.5
