"""The message log: every HL7 v2 message as it came, durable before its sender is told so.

Messages lie in the log, what became of them lies with the facts they made (:func:`add_outcomes`, in the very
transaction of the facts), so that each message takes effect exactly once, whenever a process may die in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, or_, select, update

from serving.store.engine import Database, open_database
from serving.store.facts import chunks
from serving.store.tables import messages, orphans, outcomes

BATCH_BYTES: Final = 32 << 20
"""Bytes of messages read from the log at one time, the first message apart."""
TAKEN: Final = ("AA", "CA")
PRUNED_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that has just come.

    ``identity`` is MSH-3, MSH-4 and MSH-10; ``answer`` what the sender will be told, once this is durable. ``size`` is
    what was sent, of which a refused message may keep less.
    """

    identity: tuple[str, str, str]
    body: bytes
    kind: str = ""
    version: str = ""
    answer: str = "AA"
    refusal: str | None = None
    size: int = 0
    body_hash: bytes = b""
    """SHA-256 of the whole message; of the body where it is not given."""

    def __post_init__(self) -> None:
        if not self.body_hash:
            object.__setattr__(self, "body_hash", hashlib.sha256(self.body).digest())


@dataclass(frozen=True, slots=True)
class Stored:
    """What the log made of a message.

    ``repeated``: it was there already, body and all. ``conflict``: another body was there under its identity.
    """

    repeated: bool = False
    conflict: bool = False


@dataclass(frozen=True, slots=True)
class Logged:
    """A message read from the log."""

    seq: int
    body: bytes
    conflict: bool


@dataclass(frozen=True, slots=True)
class Backlog:
    """How the log stands; times in microseconds.

    Attributes
    ----------
    kept : messages that ever came, refused ones included
    newest : when the last one came; None where none ever did
    waiting : messages not read into the store yet, at most; among them some that were refused
    oldest : when the first of those came
    """

    kept: int
    newest: int | None
    waiting: int
    oldest: int | None


Identity = tuple[str, str, str]
Bodies = dict[bytes, tuple[int, bool]]
"""By hash of the body: its place in the log (0 for one not written yet), and whether it was taken."""


class MessageLog:
    """The log, opened for writing and reading. One process writes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str, key: str | None) -> MessageLog:
        """Open the log that belongs to a store, making it where there is none.

        Raises
        ------
        ConfigError, DataError
            As :func:`serving.store.engine.open_database`.
        """
        return cls(open_database(log_url(url), key, writers="messages"))

    def close(self) -> None:
        """Give the connections back."""
        self._database.close()

    def add(self, arrivals: Sequence[Arrival], now: int) -> list[Stored]:
        """Write messages, all or none; durable on return. A repeated one is counted and not written again."""
        with self._database.write() as connection:
            known = _known(connection, arrivals)
            stored = [_placed(connection, arrival, known) for arrival in arrivals]
            rows: dict[tuple[Identity, bytes], dict[str, Any]] = {}
            for arrival, place in zip(arrivals, stored, strict=True):
                key = (arrival.identity, arrival.body_hash)
                if not place.repeated:
                    rows[key] = _row(arrival, place, now)
                elif key in rows:
                    rows[key]["repeats"] += 1
            if rows:
                connection.execute(insert(messages), list(rows.values()))
        return stored

    def pending(self, after: int, limit: int) -> list[Logged]:
        """The messages taken after a place in the log, in the order they came: at most ``limit``, and not too large."""
        m = messages.c
        with self._database.read() as connection:
            sizes = select(m.seq, func.length(m.body)).where(m.seq > after, m.answer.in_(TAKEN))
            wanted: list[int] = []
            total = 0
            for seq, size in connection.execute(sizes.order_by(m.seq).limit(limit)):
                total += size
                if wanted and total > BATCH_BYTES:
                    break
                wanted.append(seq)
            return _bodies(connection, wanted)

    def these(self, seqs: Iterable[int]) -> list[Logged]:
        """Some messages, in the order they came."""
        with self._database.read() as connection:
            return _bodies(connection, sorted(seqs))

    def backlog(self, after: int) -> Backlog:
        """How the log stands for one who has read up to a place; takes the same time however long it is."""
        m = messages.c
        with self._database.read() as connection:
            last = connection.execute(select(m.seq, m.received_time).order_by(m.seq.desc()).limit(1)).first()
            waits = select(m.seq, m.received_time).where(m.seq > after, m.answer.in_(TAKEN))
            first = connection.execute(waits.order_by(m.seq).limit(1)).first()
        kept, newest = (int(last[0]), int(last[1])) if last else (0, None)
        if first is None:
            return Backlog(kept, newest, 0, None)
        return Backlog(kept, newest, kept - int(first[0]) + 1, int(first[1]))

    def prune(self, before: int, up_to: int, wanted: Iterable[int] = ()) -> int:
        """Empty some messages that came ``before`` (microseconds) and were read; returns how many.

        What is left of one is its identity and its hash, so that it is known when it is sent again. Messages after
        the place ``up_to``, and those that are ``wanted`` still, stay whole.
        """
        m, kept = messages.c, set(wanted)
        done = or_(m.seq <= up_to, m.answer.not_in(TAKEN))
        query = select(m.seq).where(m.received_time < before, done, func.length(m.body) > 0).order_by(m.seq)
        with self._database.read() as connection:
            found = connection.execute(query.limit(PRUNED_AT_ONCE + len(kept))).scalars()
            old = [seq for seq in found if seq not in kept][:PRUNED_AT_ONCE]
        for some in chunks(old):
            with self._database.write() as connection:
                connection.execute(update(messages).where(m.seq.in_(some)).values(body=b""))
        return len(old)

    def find(self, application: str, facility: str, control_id: str) -> list[dict[str, Any]]:
        """Everything that came under one identity, oldest first."""
        m = messages.c
        query = select(messages).where(
            m.application == application, m.facility == facility, m.control_id == control_id
        )
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(query.order_by(m.seq)).mappings()]

    def counts(self) -> list[tuple[str, str, str | None, int, int, int]]:
        """Kind, answer, refusal, messages, repetitions and conflicts, the most frequent first."""
        m = messages.c
        many = func.count()
        conflicts = func.sum(func.cast(m.conflict, m.repeats.type))
        query = select(m.kind, m.answer, m.refusal, many, func.sum(m.repeats), conflicts)
        with self._database.read() as connection:
            rows = connection.execute(query.group_by(m.kind, m.answer, m.refusal).order_by(many.desc()))
            return [(k, a, r, int(n), int(again), int(other)) for k, a, r, n, again, other in rows]


def log_url(url: str) -> str:
    """Where the log of a store lies: beside an SQLite file, in a PostgreSQL database itself."""
    if not url.startswith("sqlite:///"):
        return url
    path = Path(url.removeprefix("sqlite:///"))
    return f"sqlite:///{path.with_name(f'{path.stem}-messages{path.suffix}')}"


def _bodies(connection: Connection, seqs: Iterable[int]) -> list[Logged]:
    m = messages.c
    found: list[Logged] = []
    for some in chunks(seqs):
        query = select(m.seq, m.body, m.conflict).where(m.seq.in_(some)).order_by(m.seq)
        found += [Logged(seq, bytes(body), conflict) for seq, body, conflict in connection.execute(query)]
    return found


def _known(connection: Connection, arrivals: Sequence[Arrival]) -> dict[Identity, Bodies]:
    """Which of these very messages are in the log.

    Asked by body: a sender may give all its messages one identity, and each would bring all the others along.
    """
    m = messages.c
    found: dict[Identity, Bodies] = {}
    for some in chunks({a.body_hash for a in arrivals}):
        query = select(m.seq, m.application, m.facility, m.control_id, m.body_hash, m.answer)
        for seq, *identity, body_hash, answer in connection.execute(query.where(m.body_hash.in_(some))):
            bodies = found.setdefault((identity[0], identity[1], identity[2]), {})
            bodies[bytes(body_hash)] = (seq, answer in TAKEN)
    return found


def _has_other(connection: Connection, arrival: Arrival) -> bool:
    """Whether another body is in the log under the identity of a message."""
    m = messages.c
    application, facility, control_id = arrival.identity
    same = (m.control_id == control_id, m.application == application, m.facility == facility)
    query = select(m.seq).where(*same, m.body_hash != arrival.body_hash).limit(1)
    return connection.execute(query).first() is not None


def _placed(connection: Connection, arrival: Arrival, known: dict[Identity, Bodies]) -> Stored:
    """Whether a message is new, and if not so, count it; one that was refused and is taken now is new."""
    bodies = known.setdefault(arrival.identity, {})
    # What has no control identifier has no identity to share.
    conflict = bool(arrival.identity[2]) and (
        bool(bodies.keys() - {arrival.body_hash}) or _has_other(connection, arrival)
    )
    seq, taken = bodies.get(arrival.body_hash, (-1, False))
    if seq < 0 or (not taken and arrival.answer in TAKEN):
        if seq > 0:
            connection.execute(delete(messages).where(messages.c.seq == seq))
        bodies[arrival.body_hash] = (0, arrival.answer in TAKEN)
        return Stored(conflict=conflict)
    if seq > 0:
        again = update(messages).where(messages.c.seq == seq).values(repeats=messages.c.repeats + 1)
        connection.execute(again)
    return Stored(repeated=True, conflict=conflict)


def _row(arrival: Arrival, place: Stored, now: int) -> dict[str, Any]:
    return {
        "received_time": now,
        "application": arrival.identity[0],
        "facility": arrival.identity[1],
        "control_id": arrival.identity[2],
        "kind": arrival.kind,
        "version": arrival.version,
        "body_hash": arrival.body_hash,
        "body": arrival.body,
        "size": arrival.size or len(arrival.body),
        "answer": arrival.answer,
        "refusal": arrival.refusal,
        "conflict": place.conflict,
        "repeats": 0,
    }


def applied_up_to(connection: Connection) -> int:
    """How far the log has been read into the store."""
    return int(connection.execute(select(func.max(outcomes.c.message_seq))).scalar() or 0)


def add_outcomes(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Say what became of messages, in the transaction of their facts."""
    if rows:
        connection.execute(insert(outcomes), [dict(row) for row in rows])


def outcomes_of(connection: Connection, seqs: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Status and problems (JSON) of some messages; what is not there has not been read yet."""
    found: dict[int, tuple[str, str]] = {}
    o = outcomes.c
    for some in chunks(seqs):
        query = select(o.message_seq, o.status, o.problems).where(o.message_seq.in_(some))
        found |= {int(seq): (status, problems) for seq, status, problems in connection.execute(query)}
    return found


def add_orphans(connection: Connection, rows: Iterable[tuple[int, str]]) -> None:
    """Note that messages told of patients whose visit nobody knew, in the transaction of their outcome."""
    told = [{"message_seq": seq, "subject_id": who} for seq, who in dict.fromkeys(rows)]
    if told:
        connection.execute(insert(orphans), told)


def has_orphans(connection: Connection) -> bool:
    """Whether any message waits for a visit."""
    return connection.execute(select(orphans.c.message_seq).limit(1)).first() is not None


def orphans_of(connection: Connection, subjects: Iterable[str] | None = None) -> list[int]:
    """The messages that wait for a visit of some patients, or of any, in the order they came."""
    if subjects is None:
        return sorted(set(connection.execute(select(orphans.c.message_seq)).scalars()))
    found: set[int] = set()
    for some in chunks(subjects):
        query = select(orphans.c.message_seq).where(orphans.c.subject_id.in_(some))
        found |= set(connection.execute(query).scalars())
    return sorted(found)


def settle_orphan(connection: Connection, seq: int, left: Iterable[str], status: str, problems: str) -> None:
    """Say what became of a message that was read again, and of whom it still waits."""
    connection.execute(delete(orphans).where(orphans.c.message_seq == seq))
    add_orphans(connection, [(seq, who) for who in left])
    became = update(outcomes).where(outcomes.c.message_seq == seq)
    connection.execute(became.values(status=status, problems=problems))
