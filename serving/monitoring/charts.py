"""Small charts as inline SVG: no script, no library, no network. Colours come from classes, so that a page can be dark.

Every chart carries its message in words as well (``aria-label``), and none says anything by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import Any

Share = float | None


def trend(
    shares: Sequence[Share], usual: float | None, words: str, width: int = 220, height: int = 56
) -> str:
    """A share over time, with the usual share as a dashed line and gaps drawn as gaps."""
    known = [s for s in shares if s is not None]
    if not known:
        return ""
    top = max(0.02, min(1.0, 1.15 * max([*known, usual or 0.0])))
    left, right, base = 34, width - 4, height - 12
    step = (right - left) / max(len(shares) - 1, 1)
    points = [
        None if s is None else (left + k * step, base - s / top * (base - 4)) for k, s in enumerate(shares)
    ]
    inside = [_text(left - 4, 9, f"{top:.0%}", "end"), _text(left - 4, base + 3, "0", "end")]
    inside.append(f'<line class="axis" x1="{left}" y1="{base}" x2="{right}" y2="{base}"/>')
    if usual is not None:
        y = base - min(usual, top) / top * (base - 4)
        inside.append(f'<line class="usual" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
    for run in _runs(points):
        if len(run) == 1:
            inside.append(f'<circle class="dot" cx="{run[0][0]:.1f}" cy="{run[0][1]:.1f}" r="2"/>')
        else:
            inside.append(
                f'<polyline class="now-line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in run)}"/>'
            )
    return _svg(width, height, inside, words)


def bars_against(
    now: Sequence[float], reference: Sequence[float], words: str, width: int = 220, height: int = 64
) -> str:
    """Shares of today's values in the reference's bins, low to high, each with the reference's share as a tick."""
    if not now:
        return ""
    top = max([*now, *reference]) * 1.1
    left, right, base = 34, width - 4, height - 14
    step = (right - left) / len(now)
    inside = [f'<line class="axis" x1="{left}" y1="{base}" x2="{right}" y2="{base}"/>']
    inside += [_text(left - 4, 10, f"{top:.0%}", "end"), _text(left - 4, base + 2, "0", "end")]
    for k, (a, b) in enumerate(zip(now, reference, strict=True)):
        x, h = left + k * step, a / top * (base - 4)
        y = base - b / top * (base - 4)
        inside.append(_bar("now", x, base - h, step, h))
        inside.append(f'<line class="then" x1="{x:.1f}" y1="{y:.1f}" x2="{x + step:.1f}" y2="{y:.1f}"/>')
    inside += [_text(left, height - 2, "low"), _text(right, height - 2, "high", "end")]
    return _svg(width, height, inside, words)


def histogram(
    edges: Sequence[float],
    now: Sequence[float],
    reference: Sequence[float],
    threshold: float,
    width: int = 520,
) -> str:
    """Scores today (bars) against the reference (line), bins of equal width whatever their edges; threshold marked."""
    height, left, top = 210, 44, 14
    right, base = width - 10, height - 34
    step = (right - left) / len(now)
    peak = max([*now, *reference, 0.01]) * 1.08

    def y(share: float) -> float:
        return base - share / peak * (base - top)

    inside = [_bar("now", left + k * step, y(s), step, base - y(s)) for k, s in enumerate(now)]
    inside.append(_stairs(left, step, [y(s) for s in reference]))
    inside += _grid([0.0, peak / 2, peak], lambda v: f"{v:.0%}", left, right, y)
    marks = [k for k in range(len(edges)) if k == len(edges) - 1 or _is_round(edges[k])]
    for k in marks or range(0, len(edges), 5):
        inside.append(_text(left + k * step, base + 15, f"{edges[k]:.3g}", "middle"))
    x = left + _position(edges, threshold) * step
    inside.append(f'<line class="threshold" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{base}"/>')
    side = "end" if x > (left + right) / 2 else "start"
    inside.append(_text(x + (-5 if side == "end" else 5), top + 8, f"alert at {threshold:.3g}", side))
    inside.append(_text((left + right) / 2, height - 4, "probability", "middle"))
    return _svg(
        width, height, inside, "Distribution of scores now, as bars, and in the reference, as a line."
    )


def volume(periods: Sequence[dict[str, Any]], usual_share: float, width: int = 520) -> str:
    """Alerts over time as bars, what the reference lets expect as a stepped line, predictions as a thin strip above."""
    if not periods:
        return ""
    height, left, top = 210, 44, 14
    right, base, strip = width - 10, height - 34, 46
    step = (right - left) / len(periods)
    expected = [usual_share * p["scores"] for p in periods]
    peak = max([*(p["alerts"] for p in periods), *expected, 1]) * 1.1
    most = max(p["scores"] for p in periods) or 1

    def y(count: float) -> float:
        return float(base - count / peak * (base - strip - 10))

    inside = []
    for k, p in enumerate(periods):
        x = left + k * step
        h = p["scores"] / most * (strip - top)
        inside.append(_bar("quiet", x, strip - h, step, h))
        h = base - y(p["alerts"])
        inside.append(_bar("now", x, base - h, step, h))
    inside.append(_stairs(left, step, [y(e) for e in expected]))
    inside += _grid([0.0, peak / 2, peak], lambda v: f"{v:.0f}", left, right, y)
    inside.append(_text(left - 6, strip, "0", "end"))
    inside.append(_text(left - 6, top + 6, f"{most:,}", "end"))
    inside.append(_text(left, 9, f"predictions scored in {_hours(periods[0]['hours'])}"))
    for k in sorted({0, len(periods) // 2, len(periods) - 1} if len(periods) > 2 else {0}):
        start = datetime.fromisoformat(periods[k]["start"])
        anchor = "start" if k == 0 else "end" if k == len(periods) - 1 else "middle"
        x = left + (k + (0 if k == 0 else 1 if anchor == "end" else 0.5)) * step
        inside.append(_text(x, base + 15, f"{start:%d %b %H:%M}", anchor))
    inside.append(
        _text((left + right) / 2, height - 4, f"alerts in {_hours(periods[0]['hours'])}, UTC", "middle")
    )
    return _svg(
        width, height, inside, "Predictions and alerts over time, with the number of alerts that is usual."
    )


def _bar(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x + 1:.1f}" y="{y:.1f}" width="{width - 2:.1f}" height="{height:.1f}"/>'


def _stairs(left: float, step: float, heights: Sequence[float]) -> str:
    corners = [
        f"{left + k * step:.1f},{y:.1f} {left + (k + 1) * step:.1f},{y:.1f}" for k, y in enumerate(heights)
    ]
    return f'<polyline class="then-line" points="{" ".join(corners)}"/>'


def _hours(hours: int) -> str:
    return "each hour" if hours == 1 else f"each {hours} hours"


def _grid(values: Sequence[float], label: Any, left: float, right: float, y: Any) -> list[str]:
    lines = []
    for value in values:
        lines.append(f'<line class="grid" x1="{left}" y1="{y(value):.1f}" x2="{right}" y2="{y(value):.1f}"/>')
        lines.append(_text(left - 6, y(value) + 3.5, label(value), "end"))
    return lines


def _is_round(edge: float) -> bool:
    return f"{edge:.6g}" in ("0.001", "0.01", "0.1", "1", "0.2", "0.4", "0.6", "0.8")


def _position(edges: Sequence[float], value: float) -> float:
    for k in range(len(edges) - 1):
        if value < edges[k + 1]:
            return k + max(0.0, (value - edges[k]) / (edges[k + 1] - edges[k]))
    return float(len(edges) - 1)


def _runs(points: Sequence[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, inside: Sequence[str], words: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(words)}">{"".join(inside)}</svg>'
    )
