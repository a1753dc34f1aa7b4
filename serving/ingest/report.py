"""``wardcast ingest report``: what came in, and what of it could not be used, by code and reason; no identifiers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, func, select

from features.clean import REMEDIES as CLEANING
from features.sources.hl7v2_message import REMEDIES as READING
from serving.ingest.acks import FAULTS
from serving.settings import Settings
from serving.store import pushes
from serving.store.messages import MessageLog
from serving.store.store import Store
from serving.store.tables import events, outcomes

REMEDIES: Final[Mapping[str, str]] = {
    "no_encounter": "the patient has no known visit that contains the time. Send PV1-19, or the admission first.",
    "no_subject": "no patient identifier. Send PID-3.",
    "encounter_of_another_subject": "the visit number is another patient's. Merge the patients (A40), or mend PV1-19.",
    "merge_incomplete": "one of the two identities is missing. Send both PID-3 and MRG-1.",
    "conflicting_identity": "two messages share MSH-3, MSH-4 and MSH-10; both were used. Give each its own MSH-10.",
    "future_time": "it lies ahead of the clock. Check the sender's clock and WARDCAST_TIMEZONE.",
    "times_out_of_order": "the patient leaves before arriving. Check the dates of the visit.",
    "failed": "the message could not be read. It is in the log; report it to the service's keeper.",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Counts of messages and events.

    Attributes
    ----------
    messages : (kind, answer, refusal or "", messages, repetitions, conflicts)
    statuses : messages taken, by what became of them; ``waiting`` for those not read yet
    problems : (kind, reason, count), what messages lacked
    codes : (code, unit, reason, count), events kept and not used
    events : number of events, and of those used
    refused : (FHIR server, resource and status, count), what was pushed and refused for good
    """

    messages: list[tuple[str, str, str, int, int, int]]
    statuses: dict[str, int]
    problems: list[tuple[str, str, int]]
    codes: list[tuple[str, str, str, int]]
    events: tuple[int, int]
    refused: list[tuple[str, str, int]] = field(default_factory=list)

    def summary(self) -> str:
        """The report as text."""
        total, used = self.events
        lines = [f"Events: {total:,} kept, {used:,} used, {total - used:,} set aside."]
        if self.messages:
            states = ", ".join(f"{n:,} {status}" for status, n in sorted(self.statuses.items()))
            lines.append(
                f"Messages: {sum(m[3] for m in self.messages):,}; of those taken {states or 'none'}."
            )
            lines.append("\nmessages  again  conflict  answer  kind       refusal")
            for kind, answer, refusal, n, again, other in self.messages:
                lines.append(f"{n:8,}  {again:5,}  {other:8,}  {answer:6}  {kind or '-':9}  {refusal or '-'}")
        if self.problems:
            lines.append("\nWhat messages lacked")
            lines += [f"{n:8,}  {kind:9}  {why}: {_remedy(why)}" for kind, why, n in self.problems]
        if self.codes:
            lines.append("\nEvents kept and not used, by code")
            lines += [f"{n:8,}  {why:16}  {code}  {unit or '(no unit)'}" for code, unit, why, n in self.codes]
            lines.append("\nWhat to do")
            lines += [f"{why}: {_remedy(why)}" for why in sorted({row[2] for row in self.codes})]
            lines.append("A site's own codes and units go into the file that WARDCAST_SITE_MAP names.")
        if self.refused:
            lines.append("\nPushed to a FHIR server and refused for good, by resource and status")
            lines += [f"{n:8,}  {what:24}  {server}" for server, what, n in self.refused]
        return "\n".join(lines)


def _remedy(reason: str) -> str:
    known = {name: fault.remedy for name, fault in FAULTS.items()}
    return REMEDIES.get(reason) or CLEANING.get(reason) or READING.get(reason) or known.get(reason, "")


def report(settings: Settings) -> Report:
    """Count what the store and the message log hold.

    Raises
    ------
    ConfigError, DataError
        The store does not open.
    """
    store = Store.open(settings.store_url, settings.store_key or None)
    log = MessageLog.open(settings.store_url, settings.store_key or None)
    try:
        kinds = log.counts()
        with store.read() as connection:
            statuses, problems = _outcomes(connection)
            waiting = sum(n for _, answer, _, n, _, _ in kinds if answer in ("AA", "CA")) - sum(
                statuses.values()
            )
            statuses |= {"waiting": waiting} if waiting > 0 else {}
            told = [(k, a, r or "", n, again, other) for k, a, r, n, again, other in kinds]
            refused = [(server, what, n) for (server, what), n in sorted(pushes.problems(connection).items())]
            return Report(told, statuses, problems, _codes(connection), _events(connection), refused)
    finally:
        log.close()
        store.close()


def _outcomes(connection: Connection) -> tuple[dict[str, int], list[tuple[str, str, int]]]:
    o, many = outcomes.c, func.count()
    statuses: Counter[str] = Counter()
    problems: Counter[tuple[str, str]] = Counter()
    query = select(o.kind, o.status, o.problems, many).group_by(o.kind, o.status, o.problems)
    for kind, status, said, n in connection.execute(query):
        statuses[status] += n
        for reason, times in json.loads(said).items():
            if reason not in CLEANING:  # those are listed by code
                problems[kind, reason] += n * times
    return dict(statuses), [(kind, why, n) for (kind, why), n in problems.most_common()]


def _codes(connection: Connection) -> list[tuple[str, str, str, int]]:
    e, many = events.c, func.count()
    query = select(e.code, e.raw_unit, e.reason, many).where(e.reason.is_not(None))
    query = query.group_by(e.code, e.raw_unit, e.reason).order_by(many.desc(), e.code)
    return [(code, unit or "", reason, int(n)) for code, unit, reason, n in connection.execute(query)]


def _events(connection: Connection) -> tuple[int, int]:
    total = connection.execute(select(func.count()).select_from(events)).scalar_one()
    used = connection.execute(select(func.count()).select_from(events).where(events.c.reason.is_(None)))
    return int(total), int(used.scalar_one())
