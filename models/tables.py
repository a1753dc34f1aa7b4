"""Figures and tables for people, in Markdown that also reads as plain text."""

from __future__ import annotations

from collections.abc import Sequence


def number(value: float | None, digits: int) -> str:
    """A figure for people; a dash where it could not be had."""
    return "–" if value is None else f"{value:.{digits}f}"


def with_interval(measure: Sequence[float | None], digits: int) -> str:
    """``0.42 (0.40–0.44)``; the figure alone where it has no interval."""
    value, low, high = measure
    if value is None or low is None or high is None:
        return number(value, digits)
    return f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it also reads as plain text."""
    width = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(c).ljust(w) for c, w in zip(cells, width, strict=True)) + " |"

    return "\n".join([line(head), "|" + "|".join("-" * (w + 2) for w in width) + "|", *map(line, rows)])
