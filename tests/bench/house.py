"""How long a newcomer waits: the command's help, and the packages a scoring process loads."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def best_of(count: int, *command: str) -> float:
    """Seconds of the quickest of ``count`` runs: other work on the machine only ever adds."""
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begun)
    return min(times)


def bench() -> Iterator[dict[str, Any]]:
    nothing = best_of(5, sys.executable, "-c", "")
    yield {"name": "python_start", "value": nothing, "unit": "s"}
    helped = best_of(5, sys.executable, "cli.py", "--help")
    yield {"name": "wardcast_help", "value": helped, "unit": "s", "goal": "<= 1.5"}
