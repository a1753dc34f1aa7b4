"""The monitor by the clock, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Final

from features.errors import DataError
from serving.monitoring.result import heartbeat
from serving.settings import Settings

COMMAND: Final = (sys.executable, "-m", "cli", "monitor")
ROOT: Final = Path(__file__).resolve().parents[2]
LONGEST: Final = timedelta(hours=2)


def run_monitor(settings: Settings) -> str:
    """Run ``wardcast monitor`` and say its headline; its memory goes with its process, and so does a crash.

    Raises
    ------
    DataError
        It failed, or took more than two hours. Its own error has gone to the log.
    """
    environment = os.environ | settings.environment()
    try:
        ended = subprocess.run(  # noqa: S603  # our own command
            COMMAND,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            timeout=LONGEST.total_seconds(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            "The monitor took more than two hours and was ended. Choose a shorter period."
        ) from None
    beat = heartbeat(settings.var / "monitor") or {}
    if ended.returncode != 0:
        why = beat.get("error") or f"exit code {ended.returncode}"
        raise DataError(f"The monitor failed: {why}")
    return str(beat.get("headline", "done"))
