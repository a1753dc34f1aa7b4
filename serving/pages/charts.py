"""Risk over time as inline SVG: no script, no image request, and a gap in the data is a gap in the line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from markupsafe import Markup

from serving.render import percent

HOUR_US = 3_600_000_000
GAP_US = 3 * HOUR_US
"""A longer silence than this is drawn as one."""
MARK = 11.0
"""Height of a line of small text in the drawing."""

Point = tuple[int, float | None]


def runs(points: Sequence[Point]) -> list[list[tuple[int, float]]]:
    """Points in stretches without a gap: broken by silence, and by moments that could not be scored."""
    stretches: list[list[tuple[int, float]]] = [[]]
    for when, value in points:
        if value is None or (stretches[-1] and when - stretches[-1][-1][0] > GAP_US):
            stretches.append([])
        if value is not None:
            stretches[-1].append((when, value))
    return [s for s in stretches if s]


def ceiling(points: Sequence[Point], threshold: float) -> float:
    """Top of the scale: small risks stay readable, large ones stay inside."""
    highest = max([threshold * 2, 0.02, *(p for _, p in points if p is not None)])
    return next(c for c in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if highest <= c)


def _curve(
    points: Sequence[Point], x: Sequence[float], y: Sequence[float], now: int, span: int, top: float
) -> str:
    """SVG elements of the line; x and y are (start, end) of the plot."""

    def place(when: int, value: float) -> str:
        across = x[1] - (now - when) / span * (x[1] - x[0])
        return f"{across:.1f},{y[1] - min(value, top) / top * (y[1] - y[0]):.1f}"

    drawn = []
    for run in runs(points):
        where = [place(*p) for p in run]
        if len(where) == 1:
            cx, cy = where[0].split(",")
            drawn.append(f'<circle class="dot" cx="{cx}" cy="{cy}" r="1.8"/>')
        else:
            drawn.append(f'<polyline class="curve" points="{" ".join(where)}"/>')
    return "".join(drawn)


def sparkline(points: Sequence[Point], threshold: float, now: int, hours: int = 24) -> Markup:
    """The last hours in the width of a table cell."""
    top = ceiling(points, threshold)
    level = 30 - threshold / top * 28
    known = [p for _, p in points if p is not None]
    label = f"Risk over {hours} h: " + (
        f"from {percent(known[0])} to {percent(known[-1])}, highest {percent(max(known))}"
        if known
        else "not scored"
    )
    curve = _curve(points, (2, 118), (2, 30), now, hours * HOUR_US, top)
    # Every part below is a number or a fixed word, so nothing of a patient can become markup.
    return Markup(  # noqa: S704
        f'<svg class="spark" viewBox="0 0 120 32" role="img" aria-label="{label}">'
        f'<line class="level" x1="2" x2="118" y1="{level:.1f}" y2="{level:.1f}"/>{curve}</svg>'
    )


def history(
    points: Sequence[Point],
    pages: Sequence[int],
    threshold: float,
    level: float,
    now: int,
    hours: int,
    timezone: str,
) -> Markup:
    """Risk over the stay, with both thresholds, the pages, and the hours of the site's clock."""
    left, right, high, low = 44.0, 736.0, 14.0, 206.0
    top, span = ceiling(points, max(threshold, level)), hours * HOUR_US
    parts = [_grid(left, right, high, low, top)]
    levels = {"raised": threshold, "page": level}
    parts.append(_levels(left, right, {name: low - at / top * (low - high) for name, at in levels.items()}))
    parts.append(_hours(left, right, low, now, span, ZoneInfo(timezone)))
    parts.append(_curve(points, (left, right), (high, low), now, span, top))
    for when in pages:
        x = right - (now - when) / span * (right - left)
        parts.append(f'<path class="flag" d="M{x:.1f} {low} V{high} l9 4 l-9 4"><title>page</title></path>')
    scored = [p for _, p in points if p is not None]
    label = f"Risk over {hours} hours: " + (
        f"{len(scored)} scores, from {percent(scored[0])} to {percent(scored[-1])}, {len(pages)} pages"
        if scored
        else "no scores"
    )
    return Markup(  # noqa: S704  # numbers and fixed words only, as above
        f'<svg class="history" viewBox="0 0 780 236" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _levels(left: float, right: float, levels: Mapping[str, float]) -> str:
    """The thresholds by name and height, each with its name beside it; names of near ones move apart."""
    parts = []
    names = dict(levels)
    upper, lower = sorted(names, key=names.__getitem__)
    apart = max(0.0, MARK - (names[lower] - names[upper])) / 2
    names[upper] -= apart
    names[lower] += apart
    for name, y in levels.items():
        parts.append(f'<line class="level {name}" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="mark" x="{right + 4}" y="{names[name] + 3:.1f}">{name}</text>')
    return "".join(parts)


def _grid(left: float, right: float, high: float, low: float, top: float) -> str:
    lines = []
    for share in (0, 0.5, 1):
        y, text = low - share * (low - high), f"{top * share * 100:.3g} %"
        lines.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="tick" x="{left - 6}" y="{y + 3:.1f}" text-anchor="end">{text}</text>')
    return "".join(lines)


def _hours(left: float, right: float, low: float, now: int, span: int, zone: ZoneInfo) -> str:
    step = next(s for s in (1, 2, 4, 6, 12, 24, 48, 10**6) if span / HOUR_US / s <= 9)
    ticks = []
    first = (now - span) // HOUR_US * HOUR_US + HOUR_US
    for when in range(first, now + 1, HOUR_US):
        local = datetime.fromtimestamp(when / 1e6, zone)
        if (local.toordinal() * 24 + local.hour) % step:
            continue
        x = right - (now - when) / span * (right - left)
        text = f"{local.day} {local:%b}" if local.hour == 0 else f"{local:%H:%M}"
        ticks.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{low}" y2="{low + 4}"/>')
        ticks.append(f'<text class="tick" x="{x:.1f}" y="{low + 17}" text-anchor="middle">{text}</text>')
    return "".join(ticks)
