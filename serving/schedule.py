"""What the service does by the clock: a process that ``wardcast serve`` keeps beside the one that answers.

Each job says when it is next due after a moment, and does its work. What came of it is written to ``schedule.json``
under ``var``, so that a restart neither repeats nor forgets a job, and everybody can see when one last ran.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from features.errors import WardcastError
from serving.companion import told_to_stop
from serving.settings import Settings

FILE: Final = "schedule.json"
GRACE: Final = timedelta(hours=1)
"""A job missed by no more than this is still done; an older one has lost its use."""
LOOK_S: Final = 5.0
"""How often the clock is looked at, which may be set or jump while we wait."""
PROCESS: Final = (sys.executable, "-m", "serving.schedule")
logger = logging.getLogger("wardcast")

Next = Callable[[datetime], datetime]


@dataclass(frozen=True)
class Job:
    """Something done again and again.

    Attributes
    ----------
    name : str
    due : callable
        The first moment at which it is due after another; both aware.
    work : callable
        Does it, for the moment it was due at; returns one line on what came of it. Holds no patient's data.
    """

    name: str
    due: Next
    work: Callable[[datetime], str]


def every(period: timedelta) -> Next:
    """Due at whole multiples of a period since 1970, so that restarts keep the rhythm."""
    step = period.total_seconds()

    def due(after: datetime) -> datetime:
        return datetime.fromtimestamp((after.timestamp() // step + 1) * step, UTC)

    return due


def daily(clock_times: Sequence[str], timezone: str) -> Next:
    """Due at local clock times such as ``08:00``, every day; on the days clocks change, once each."""
    zone = ZoneInfo(timezone)

    def due(after: datetime) -> datetime:
        today = after.astimezone(zone).date()
        moments = (
            datetime.fromisoformat(f"{today + timedelta(days=d)}T{t}").replace(tzinfo=zone).astimezone(UTC)
            for d in (0, 1, 2)
            for t in clock_times
        )
        return min(m for m in moments if m > after)

    return due


class Schedule:
    """Runs jobs when they are due, one after another.

    A job that fails is told in the log and in the file, and is tried again at its next time; it never stops the others.
    """

    def __init__(self, jobs: Sequence[Job], var: Path, now: Callable[[], datetime] | None = None) -> None:
        self._jobs = jobs
        self._path = var / FILE
        self._now = now or (lambda: datetime.now(UTC))
        self._since = self._now()

    def step(self) -> list[str]:
        """Do what is due now; the names of the jobs that were done, whatever came of them."""
        told, done = standing(self._path.parent), []
        for job in self._jobs:
            now = self._now()
            due = self._due(job, told.get(job.name, {}), now)
            if due is None:
                continue
            told[job.name] = {"due": due.isoformat(), "ran": now.isoformat()} | self._outcome(job, due)
            self._write(told)
            done.append(job.name)
        return done

    def run(self, stop: threading.Event) -> None:
        """Until told to stop, or until the parent process is gone."""
        parent = os.getppid()
        while not stop.is_set() and os.getppid() == parent:
            self.step()
            stop.wait(LOOK_S)

    def _due(self, job: Job, last: dict[str, Any], now: datetime) -> datetime | None:
        """The newest moment that has come and is not done yet; None where there is none."""
        since = datetime.fromisoformat(last["due"]) if last else self._since
        due, found = job.due(max(since, now - GRACE)), None
        while due <= now:
            found, due = due, job.due(due)
        return found

    def _outcome(self, job: Job, due: datetime) -> dict[str, str]:
        try:
            said = job.work(due)
            logger.info("schedule job=%s outcome=done", job.name)
            return {"outcome": "done", "said": said}
        except WardcastError as error:  # the house's own errors hold no patient's data
            logger.error("schedule job=%s outcome=failed detail=%s", job.name, error)
            return {"outcome": "failed", "said": str(error)}
        except Exception as error:
            logger.error("schedule job=%s outcome=failed kind=%s", job.name, type(error).__name__)
            return {"outcome": "failed", "said": type(error).__name__}

    def _write(self, told: dict[str, dict[str, str]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(told, indent=1), encoding="utf-8")
        fresh.replace(self._path)


def standing(var: Path) -> dict[str, dict[str, Any]]:
    """What each job did last: ``due``, ``ran`` (ISO 8601), ``outcome`` and ``said``; empty where nothing ran yet."""
    try:
        told = json.loads((var / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def jobs_of(settings: Settings) -> list[Job]:
    """What these settings ask for; empty where they ask for nothing."""
    jobs = []
    if settings.huddles:
        from serving.reports.beds import post_report

        jobs.append(
            Job("beds", daily(settings.huddles, settings.timezone), lambda due: post_report(settings, due))
        )
    if settings.feeds_minutes:
        from serving.monitoring.intake import watch

        rhythm = every(timedelta(minutes=settings.feeds_minutes))
        jobs.append(Job("feeds", rhythm, lambda due: watch(settings, due)))
    if settings.monitor:
        from serving.monitoring.jobs import run_monitor

        times = daily(settings.monitor, settings.timezone)
        jobs.append(Job("monitor", times, lambda due: run_monitor(settings)))
    return jobs


def main() -> None:
    """The process that ``wardcast serve`` keeps."""
    settings = Settings.from_env()
    stop = told_to_stop()
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    Schedule(jobs_of(settings), settings.var).run(stop)


if __name__ == "__main__":
    main()
