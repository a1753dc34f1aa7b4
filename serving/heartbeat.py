"""When the things that are done by the clock were last done: for probes and for Prometheus. Holds no patient's data."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from serving import schedule
from serving.monitoring.result import heartbeat

MONITOR: Final = "monitor"


def beats(var: Path) -> dict[str, dict[str, Any]]:
    """By name, when a job last ran (ISO 8601, UTC) and what came of it: ``done``, ``failed`` or ``running``.

    ``monitor`` is the monitor's own word, whoever ran it; it is there before its first run, with ``never``.
    """
    told = {
        name: {"ran": job.get("ran"), "outcome": job.get("outcome")}
        for name, job in schedule.standing(var).items()
        if isinstance(job, dict)
    }
    beat = heartbeat(var / "monitor")
    if beat is None:
        return told | {MONITOR: {"ran": None, "outcome": "never"}}
    outcome = {"ok": "done"}.get(str(beat.get("status")), str(beat.get("status")))
    return told | {MONITOR: {"ran": beat.get("started"), "outcome": outcome}}


def exposition(var: Path, now: datetime | None = None) -> bytes:
    """The same as Prometheus gauges; a job that never ran has its outcome and no age."""
    now = now or datetime.now(UTC)
    ages, outcomes = [], []
    for name, beat in sorted(beats(var).items()):
        outcomes.append(f'wardcast_job_ok{{job="{name}"}} {int(beat["outcome"] in ("done", "running"))}')
        age = _age(beat["ran"], now)
        if age is not None:
            ages.append(f'wardcast_job_age_seconds{{job="{name}"}} {age:.0f}')
    lines = [
        "# HELP wardcast_job_ok 1 where the last run of a job did not fail, 0 where it failed or never was.",
        "# TYPE wardcast_job_ok gauge",
        *outcomes,
        "# HELP wardcast_job_age_seconds Seconds since a job last began.",
        "# TYPE wardcast_job_age_seconds gauge",
        *ages,
    ]
    return ("\n".join(lines) + "\n").encode()


def _age(ran: Any, now: datetime) -> float | None:
    try:
        return max(0.0, (now - datetime.fromisoformat(str(ran))).total_seconds())
    except (ValueError, TypeError):
        return None
