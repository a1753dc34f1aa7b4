"""What became of what was said earlier: outcomes, people's answers, beds. Each part survives its own bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from serving.monitoring import admissions, people
from serving.monitoring.findings import Finding
from serving.monitoring.followup import follow_up
from serving.monitoring.safely import safely

if TYPE_CHECKING:
    from models.bundle import Bundle
    from serving.settings import Settings
    from serving.store.store import Store

Part = Callable[[], tuple[list[Finding], dict[str, Any]]]


@dataclass
class LookBack:
    """Findings, and by part (``performance``, ``people``, ``admissions``) its figures; empty where a part failed."""

    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, words: str, part: Part) -> None:
        """Take what a part finds; where it breaks, that it did."""
        self.facts[name] = {}

        def run() -> list[Finding]:
            found, self.facts[name] = part()
            return found

        self.findings += safely(words, run)


def look_back(
    store: Store,
    bundle: Bundle,
    settings: Settings,
    since: datetime,
    until: datetime,
    labels: Path | None,
    attempts: pd.DataFrame,
) -> LookBack:
    """Look back from the end of a period, on earlier ones as far as each question needs.

    ``attempts`` is the period's log (:class:`serving.monitoring.logged.Logged`).

    Raises
    ------
    DataError
        ``labels`` cannot be used: whoever named the file has to know.
    """
    told = LookBack()
    known = (since, attempts)
    if labels is not None:
        told.findings, told.facts["performance"] = follow_up(
            store, bundle, until, labels, settings.timezone, known
        )
    else:
        told.add(
            "performance",
            "performance",
            lambda: follow_up(store, bundle, until, None, settings.timezone, known),
        )
    told.add("people", "answers to alerts", lambda: _people(store, since, until))
    told.add("admissions", "bed forecasts", lambda: admissions.look(settings, store, until))
    return told


def _people(store: Store, since: datetime, until: datetime) -> tuple[list[Finding], dict[str, Any]]:
    with store.read() as connection:
        now = people.answers(connection, since, until)
        before = people.answers(connection, since - (until - since), since)
    return people.check(now, before), now | {"before": before}
