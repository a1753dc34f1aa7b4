"""From the message log into the store: each message once, in the order it came, then the scores of whom it was about.

The listener keeps messages and answers; this reads them, in a process of its own so that no sender waits for a score.
What was applied is noted with the facts themselves, so a process that dies at any point leaves nothing half done.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from features.clock import HOUR_US
from features.sources import hl7v2
from features.sources.facts import Problem
from features.sources.hl7v2_message import Parsed
from features.sources.vocabulary import site_map
from serving.alerts import settle
from serving.clock import from_us
from serving.ingest.exchange import Outcome, Said, Taken, take
from serving.rounds import behind, catch_up, score_stored
from serving.state import Wardcast, wall_us
from serving.store import audit, facts, messages, people
from serving.store.engine import is_passing
from serving.store.messages import Logged, MessageLog

logger = logging.getLogger("wardcast")

BATCH: Final = 500
"""Messages written in one transaction: enough to share the costs of one, few enough that others write in between."""
SCORED_AT_ONCE: Final = 64
"""Encounters scored before the log is looked at again."""
REST_S: Final = 0.05
RETRY_S: Final = 2.0
PRUNE_S: Final = 600.0
"""How often old messages are looked for."""
DAY_US: Final = 24 * HOUR_US
ACTOR: Final = "mllp"


class Applier:
    """Reads the log of messages into the store.

    Encounters that wait for a score are kept newest news first: after an interruption, the patients about whom
    something came last are scored before the others.
    """

    def __init__(self, state: Wardcast, log: MessageLog) -> None:
        self._state = state
        self._log = log
        self._site = site_map(state.settings.site_map)
        self._due: dict[str, None] = {}
        self._pruned = -PRUNE_S

    def step(self) -> bool:
        """Apply the next messages, or score some of those who wait; False where there is nothing to do.

        As long as messages wait they come first, so that each patient is scored once with all the news there is.
        """
        with self._state.store.read() as connection:
            place = messages.applied_up_to(connection)
        pending = self._log.pending(place, BATCH)
        if pending:
            self._apply(pending, place)
        if self._due and len(pending) < BATCH:
            self._score()
        return bool(pending or self._due)

    def drain(self) -> None:
        """Apply and score all there is."""
        while self.step():
            pass

    def run(self, wanted: Callable[[], bool]) -> None:
        """Go on for as long as that is wanted. A failure is logged and tried again; messages wait in the log."""
        while wanted():
            try:
                rest = 0.0 if self.step() else REST_S
            except Exception as error:
                logger.error("mllp problem=not_applied kind=%s", type(error).__name__)
                rest = RETRY_S
            if rest:
                self._tidy()
                time.sleep(rest)

    def _tidy(self) -> None:
        """Prune, now and then and while there is nothing to do."""
        if time.monotonic() - self._pruned < PRUNE_S:
            return
        self._pruned = time.monotonic()
        try:
            self.prune(wall_us())
        except Exception as error:
            logger.error("mllp problem=not_pruned kind=%s", type(error).__name__)

    def prune(self, now: int) -> int:
        """Empty the messages that are older than the site keeps them, and were read; returns how many.

        Those that wait for their patient's visit to become known are kept.
        """
        days = self._state.settings.mllp_keep_days
        if not days:
            return 0
        with self._state.store.read() as connection:
            place, waiting = messages.applied_up_to(connection), messages.orphans_of(connection)
        total = 0
        while emptied := self._log.prune(now - days * DAY_US, place, waiting):
            total += emptied
        return total

    def _apply(self, pending: Sequence[Logged], place: int) -> None:
        try:
            self._write(pending, place)
        except Exception as error:
            if len(pending) == 1:
                self._give_up(pending[0], error)
                return
            # One of them cannot be applied; the others must not wait for it.
            for one in pending:
                self._apply([one], place)

    def _write(self, pending: Sequence[Logged], place: int) -> None:
        parsed = [self._parse(m) for m in pending]
        with self._state.store.write() as connection:
            if messages.applied_up_to(connection) > pending[0].seq - 1:
                return  # another process was here
            now = self._now(connection, parsed)
            taken = take(connection, [said_of(one) for one in parsed], now)
            self._note(connection, pending, parsed, taken.outcomes)
            taken = self._adopt(connection, taken, now)
            about = sorted(set().union(*(outcome.encounters for outcome in taken.outcomes)))
            audit.record(connection, audit.Act(ACTOR, "integrator", "receive hl7", "done", about), wall_us())
            scorer = self._state.scorer if "sepsis" in self._state.bundles else None
            settle(connection, scorer, taken.affected, now, self._state.alerting)
        for outcome in taken.outcomes:
            self._state.metrics.count_verdicts(outcome.verdicts)
        for who in taken.affected:
            self._due.pop(who, None)
            self._due[who] = None

    def _parse(self, message: Logged) -> Parsed:
        return hl7v2.parse(message.body, timezone=self._state.settings.timezone, site=self._site)

    def _now(self, connection: Connection, parsed: Sequence[Parsed]) -> int:
        """The clock; in replay, the messages move it on."""
        times = [one.header.time for one in parsed if one.header.time > 0]
        replayed = self._state.settings.clock == "replay" and times
        return self._state.advance(connection, from_us(max(times)) if replayed else None)

    def _note(
        self,
        connection: Connection,
        pending: Sequence[Logged],
        parsed: Sequence[Parsed],
        outcomes: Sequence[Outcome],
    ) -> None:
        rows = []
        for message, one, outcome in zip(pending, parsed, outcomes, strict=True):
            problems = dict(outcome.problems) | ({"conflicting_identity": 1} if message.conflict else {})
            rows.append(_outcome(message.seq, one.header.kind, outcome.status, problems))
        messages.add_outcomes(connection, rows)
        left = ((m.seq, who) for m, one in zip(pending, outcomes, strict=True) for who in one.homeless)
        messages.add_orphans(connection, left)

    def _adopt(self, connection: Connection, taken: Taken, now: int) -> Taken:
        """Read messages again that told of a patient before the visit was known, now that it may be."""
        if not messages.has_orphans(connection):
            return taken
        visits = set().union(*(outcome.encounters for outcome in taken.outcomes))
        subjects = {str(about["subject_id"]) for about in facts.latest(connection, visits).values()}
        waiting = messages.orphans_of(connection, people.merged_into(connection, "subject", subjects))
        outcomes, affected = list(taken.outcomes), set(taken.affected)
        for some in facts.chunks(waiting):
            logged = self._log.these(some)
            # Of patients and visits they may say what has changed since; of what was measured they say the truth.
            again = take(connection, [_facts_of(self._parse(m)) for m in logged], now)
            for message, outcome in zip(logged, again.outcomes, strict=True):
                told = json.dumps(dict(outcome.problems), sort_keys=True)
                messages.settle_orphan(connection, message.seq, outcome.homeless, outcome.status, told)
            outcomes += again.outcomes
            affected |= set(again.affected)
        return Taken(outcomes, sorted(affected))

    def _give_up(self, message: Logged, error: Exception) -> None:
        """A message that cannot be applied stays in the log and is said to be so."""
        if is_passing(error):
            raise error
        logger.error("mllp problem=message_failed kind=%s seq=%d", type(error).__name__, message.seq)
        kind = hl7v2.parse(message.body).header.kind
        with self._state.store.write() as connection:
            if messages.applied_up_to(connection) < message.seq:
                row = _outcome(message.seq, kind, "failed", {"failed": 1})
                messages.add_outcomes(connection, [row])

    def _score(self) -> None:
        some = list(self._due)[-SCORED_AT_ONCE:]
        if "sepsis" in self._state.bundles:
            now = self._state.now_us()
            with self._state.store.read() as connection:
                late = behind(connection, some)
            score_stored(self._state, late, now)
        for who in some:
            del self._due[who]


def _outcome(seq: int, kind: str, status: str, problems: dict[str, int]) -> dict[str, Any]:
    return {
        "message_seq": seq,
        "applied_time": wall_us(),
        "kind": kind[:64],
        "status": status,
        "problems": json.dumps(problems, sort_keys=True),
    }


def said_of(parsed: Parsed) -> Said:
    """What a message says, for the way in."""
    problems = [*parsed.problems]
    if parsed.header.type == "ADT" and not (parsed.stays or parsed.persons or parsed.merges):
        problems.append(Problem("PID", "3", "no_subject", "Send PID-3."))
    return Said(parsed.events, parsed.stays, parsed.persons, parsed.merges, problems)


def _facts_of(parsed: Parsed) -> Said:
    return Said(events=parsed.events, problems=[*parsed.problems])


def run(state: Wardcast, log: MessageLog) -> None:
    """Apply messages until the process that started this one is gone."""
    parent = os.getppid()
    if "sepsis" in state.bundles:
        state.scorer.warm()
    catch_up(state)
    Applier(state, log).run(lambda: os.getppid() == parent)
