"""What commands tell people while they work and afterwards: counters, shares, intervals. Never an identifier."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from features.labels import coded

if TYPE_CHECKING:  # LightGBM takes a second to import, which only a model is worth
    pass

Report = Callable[[int], None]


@contextmanager
def counting(what: str, unit: str, total: int | None = None) -> Iterator[tuple[Report, Progress]]:
    """A line on the terminal that counts; nothing where standard error is no terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    quiet = os.environ.get("WARDCAST_QUIET") == "1" or not console.is_terminal
    with Progress(*columns, console=console, disable=quiet, transient=True) as bars:
        yield counter(bars, what, unit, total), bars


def counter(bars: Progress, what: str, unit: str, total: int | None = None) -> Report:
    """Counts up in a line of its own."""
    done = 0
    task = bars.add_task(what, total=total)

    def more(n: int) -> None:
        nonlocal done
        done += n
        of = "" if total is None else f" of {total:,}"
        bars.update(task, advance=n, description=f"{what}: {done:,}{of} {unit}")

    return more


def counts(counted: Mapping[str, int]) -> str:
    """``no_value 1,234, no_time 5``, most frequent first."""
    return ", ".join(f"{reason} {n:,}" for reason, n in sorted(counted.items(), key=lambda i: -i[1]) if n)


def share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "none"


def interval(positive: int, n: int) -> str:
    low, high = coded.wilson(positive, n)
    return f"{positive / n:.1%} ({low:.1%}–{high:.1%})" if n else "nobody"


def kappa(value: float) -> str:
    return "" if value != value else f"{value + 0.0:.2f}".replace("-0.00", "0.00")


def every(hours: float) -> str:
    """A median gap in words a person reads at a glance."""
    if hours != hours:
        return ""
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f} h"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
