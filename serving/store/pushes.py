"""How far a FHIR server has been told: places in the prediction log, the facts and the pictures of encounters, its
flags, what it refused.

What is to be told is never copied: predictions, facts and alerts are in the store anyhow, so that a crash loses nothing
and a server that was away for a week is caught up with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, select, update

from serving.store import facts, people
from serving.store.facts import LASTING, chunks
from serving.store.tables import alerts, encounters, events, predictions, push_flags, push_problems, pushes

PICTURES: Final = "#encounters"
"""Ends the name under which a server's place in the pictures stands, which is told apart from its other places."""


@dataclass(frozen=True, slots=True)
class Place:
    """``seq`` of the last prediction that was told, and of the last fact whose consequences were."""

    predictions_seq: int
    events_seq: int


def place(connection: Connection, target: str) -> Place | None:
    """How far a server has been told; None where it never was."""
    row = connection.execute(select(pushes).where(pushes.c.target == target)).mappings().first()
    return None if row is None else Place(row["predictions_seq"], row["events_seq"])


def newest(connection: Connection) -> Place:
    """Where the log and the facts end now: a server is told what comes after it was named."""
    p = connection.execute(select(func.max(predictions.c.seq))).scalar()
    e = connection.execute(select(func.max(events.c.seq))).scalar()
    return Place(int(p or 0), int(e or 0))


def keep_place(connection: Connection, target: str, at: Place, now: int) -> None:
    """Write how far a server has been told."""
    values = {"predictions_seq": at.predictions_seq, "events_seq": at.events_seq, "told_time": now}
    done = connection.execute(update(pushes).where(pushes.c.target == target).values(values))
    if done.rowcount == 0:
        connection.execute(insert(pushes).values(target=target, **values))


def untold(connection: Connection, after: int, road: str, limit: int) -> list[dict[str, Any]]:
    """Predictions after a place in the log, oldest first."""
    p = predictions.c
    query = select(predictions).where(p.seq > after, p.road == road).order_by(p.seq).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def changed(connection: Connection, after: int, limit: int) -> tuple[int, list[str]]:
    """How far the facts go (at most ``limit`` on), and the encounters of which one was corrected or withdrawn."""
    e = events.c
    seqs = select(e.seq).where(e.seq > after).order_by(e.seq).limit(limit).subquery()
    end = connection.execute(select(func.max(seqs.c.seq))).scalar()
    if end is None:
        return after, []
    query = select(e.encounter_id).where(
        e.seq > after, e.seq <= end, e.status.in_(("corrected", "deleted")), e.reason.is_(None)
    )
    return int(end), sorted(set(connection.execute(query).scalars()))


def pictures_place(connection: Connection, target: str) -> int | None:
    """``seq`` of the last picture of an encounter whose consequences were told; None where a server never was."""
    at = place(connection, target + PICTURES)
    return None if at is None else at.events_seq


def newest_picture(connection: Connection) -> int:
    """Where the pictures of encounters end now."""
    return int(connection.execute(select(func.max(encounters.c.seq))).scalar() or 0)


def keep_pictures_place(connection: Connection, target: str, at: int, now: int) -> None:
    """Write how far a server has been told of encounters."""
    keep_place(connection, target + PICTURES, Place(0, at), now)


def changed_pictures(connection: Connection, after: int, limit: int) -> tuple[int, list[str]]:
    """How far the pictures go (at most ``limit`` on), and the encounters that now are another's, or were mistaken."""
    e = encounters.c
    seqs = select(e.seq).where(e.seq > after).order_by(e.seq).limit(limit).subquery()
    end = connection.execute(select(func.max(seqs.c.seq))).scalar()
    if end is None:
        return after, []
    ids = set(connection.execute(select(e.encounter_id).where(e.seq > after, e.seq <= end)).scalars())
    gone, now = people.surviving(connection, "encounter", ids), facts.latest(connection, ids)
    before: dict[str, Any] = {}
    for some in chunks(ids):
        newest = (
            select(func.max(e.seq)).where(e.seq <= after, e.encounter_id.in_(some)).group_by(e.encounter_id)
        )
        rows = connection.execute(select(encounters).where(e.seq.in_(newest))).mappings()
        before |= {row["encounter_id"]: row for row in rows}
    other = {
        who for who, then in before.items() if any(then[n] != now[who][n] for n in ("subject_id", *LASTING))
    }
    return int(end), sorted(other | set(gone))


def told_flags(connection: Connection, target: str, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The alerts of some encounters that a server has been told of."""
    a, f, found = alerts.c, push_flags.c, list[dict[str, Any]]()
    for some in chunks(ids):
        query = select(alerts).join(push_flags, f.alert_id == a.alert_id)
        query = query.where(f.target == target, a.encounter_id.in_(some)).order_by(a.raised_time, a.alert_id)
        found += [dict(row) for row in connection.execute(query).mappings()]
    return found


def told_of(connection: Connection, encounter_id: str, road: str, up_to: int) -> list[dict[str, Any]]:
    """The predictions of an encounter that a server has been told of."""
    p = predictions.c
    query = select(predictions).where(p.encounter_id == encounter_id, p.road == road, p.seq <= up_to)
    return [dict(row) for row in connection.execute(query.order_by(p.seq)).mappings()]


def flags_to_tell(connection: Connection, target: str, limit: int) -> list[dict[str, Any]]:
    """Alerts that were raised or have ended since the server was told of them."""
    a, f = alerts.c, push_flags.c
    known = select(push_flags).where(f.target == target).subquery()
    query = (
        select(alerts)
        .outerjoin(known, known.c.alert_id == a.alert_id)
        .where(
            known.c.alert_id.is_(None) | (known.c.ended.is_(False) & a.ended_time.is_not(None)),
        )
        .order_by(a.raised_time, a.alert_id)
        .limit(limit)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def keep_flags(connection: Connection, target: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write which alerts a server has, and whether it knows of their end."""
    for some in chunks([row["alert_id"] for row in rows]):
        connection.execute(
            delete(push_flags).where(push_flags.c.target == target, push_flags.c.alert_id.in_(some))
        )
    told = [{"target": target, "alert_id": r["alert_id"], "ended": r["ended_time"] is not None} for r in rows]
    if told:
        connection.execute(insert(push_flags), told)


def skip_flags(connection: Connection, target: str) -> None:
    """Take the alerts there are as told."""
    keep_flags(connection, target, flags_to_tell(connection, target, 10_000_000))


def add_problems(connection: Connection, target: str, rows: Sequence[tuple[str, str]], now: int) -> None:
    """Keep what a server refused for good: resource and problem."""
    if rows:
        connection.execute(
            insert(push_problems),
            [{"target": target, "resource": r, "problem": p, "noted_time": now} for r, p in rows],
        )


def problems(connection: Connection) -> dict[tuple[str, str], int]:
    """How often each server refused for each reason."""
    p = push_problems.c
    query = select(p.target, p.problem, func.count()).group_by(p.target, p.problem)
    return {(target, problem): int(n) for target, problem, n in connection.execute(query)}
