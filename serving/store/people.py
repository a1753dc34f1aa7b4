"""Who the people are, which identities are one, and where patients have been."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, func, insert, select

from serving.store import facts
from serving.store.facts import chunks
from serving.store.tables import OF_COURSE, encounters, events, merges, persons


class Mark(NamedTuple):
    """A fact of an encounter's own course, as it stands now."""

    concept: str
    time: int
    available_time: int
    place: str
    source_id: str
    status: str


_MERGED = (
    select(merges.c.prior, merges.c.surviving)
    .where(merges.c.kind == bindparam("kind"), merges.c.prior.in_(bindparam("ids", expanding=True)))
    .order_by(merges.c.seq)
)


def surviving(connection: Connection, kind: str, names: Iterable[str]) -> dict[str, str]:
    """The identities that some have been merged into; only those that have."""
    found: dict[str, str] = {}
    asked = set(names)
    while asked:
        step: dict[str, str] = {}
        for some in chunks(asked):
            for prior, then in connection.execute(_MERGED, {"kind": kind, "ids": some}):
                step[prior] = then
        found |= step
        asked = set(step.values()) - set(found)
    return {name: _last(found, name) for name in found}


def merged_into(connection: Connection, kind: str, names: Iterable[str]) -> set[str]:
    """Every identity that lives on as one of some, these themselves included."""
    found, asked = set(names), set(names)
    while asked:
        step: set[str] = set()
        for some in chunks(asked):
            query = select(merges.c.prior).where(merges.c.kind == kind, merges.c.surviving.in_(some))
            step |= set(connection.execute(query).scalars())
        asked = step - found
        found |= step
    return found


def names_of(connection: Connection, encounter_id: str) -> tuple[str, list[str]]:
    """The name under which an encounter lives on after merges, and all the names that it has had."""
    lives = surviving(connection, "encounter", [encounter_id]).get(encounter_id, encounter_id)
    return lives, sorted(merged_into(connection, "encounter", [lives]))


def as_now(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows about encounters, such as predictions or alerts, with the encounter and the patient they belong to now."""
    ids = {str(row["encounter_id"]) for row in rows}
    lives = {who: who for who in ids} | surviving(connection, "encounter", ids)
    known = facts.latest(connection, lives.values())
    return [
        {
            **row,
            "encounter_id": who,
            "subject_id": known[who]["subject_id"] if who in known else row.get("subject_id"),
        }
        for row, who in ((row, lives[str(row["encounter_id"])]) for row in rows)
    ]


def _last(found: Mapping[str, str], name: str) -> str:
    seen = {name}
    while name in found and found[name] not in seen:
        name = found[name]
        seen.add(name)
    return name


def add_merge(connection: Connection, kind: str, prior: str, then: str, now: int) -> None:
    """Note that two identities are one."""
    row = {"kind": kind, "prior": prior, "surviving": then, "received_time": now}
    connection.execute(insert(merges), [row])


def read_persons(connection: Connection, ids: Iterable[str]) -> dict[str, tuple[int | None, str | None]]:
    """Date of birth (microseconds) and sex of some people."""
    found: dict[str, tuple[int | None, str | None]] = {}
    for some in chunks(ids):
        newest = select(func.max(persons.c.seq)).where(persons.c.subject_id.in_(some))
        query = select(persons.c.subject_id, persons.c.born, persons.c.sex)
        query = query.where(persons.c.seq.in_(newest.group_by(persons.c.subject_id)))
        found |= {who: (born, sex) for who, born, sex in connection.execute(query)}
    return found


def add_persons(connection: Connection, said: Mapping[str, tuple[int | None, str | None]], now: int) -> None:
    """Write what is new about people."""
    rows = [
        {"subject_id": who, "born": born, "sex": sex, "received_time": now}
        for who, (born, sex) in said.items()
    ]
    if rows:
        connection.execute(insert(persons), rows)


def encounters_of(connection: Connection, subjects: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The encounters that belong to some people now, each as :func:`serving.store.facts.latest` gives it."""
    wanted = set(subjects)
    ids: set[str] = set()
    for some in chunks(wanted):
        query = select(encounters.c.encounter_id).where(encounters.c.subject_id.in_(some)).distinct()
        ids |= set(connection.execute(query).scalars())
    found = facts.latest(connection, ids)
    return {who: about for who, about in found.items() if about["subject_id"] in wanted}


def courses(connection: Connection, ids: Iterable[str]) -> dict[str, list[Mark]]:
    """The marks of each of some encounters as they stand, in the order of time; withdrawn ones keep their status."""
    e = events.c
    newest: dict[tuple[str, str, str], tuple[tuple[int, int], Mark]] = {}
    for some in chunks(ids):
        query = select(
            e.seq, e.encounter_id, e.concept, e.time, e.available_time, e.raw_text, e.source_id, e.status
        ).where(e.encounter_id.in_(some), OF_COURSE)
        for seq, who, concept, time, available, place, source_id, status in connection.execute(query):
            mark = Mark(concept, time, available, place or "", source_id, status)
            key, rank = (who, concept, source_id), (available, seq)
            if key not in newest or newest[key][0] <= rank:
                newest[key] = (rank, mark)
    found: dict[str, list[Mark]] = {}
    for (who, _, _), (_, mark) in sorted(newest.items(), key=lambda kept: (kept[1][1].time, kept[1][0])):
        found.setdefault(who, []).append(mark)
    return found


def standing_events(connection: Connection, encounter_id: str) -> Sequence[Any]:
    """The newest report of every identified fact of an encounter, withdrawn ones left out."""
    e = events.c
    newest: dict[tuple[str, str], Any] = {}
    query = select(events).where(e.encounter_id == encounter_id).order_by(e.available_time, e.seq)
    for row in connection.execute(query):
        newest[row.source_id, row.concept or row.code] = row
    return [row for row in newest.values() if row.status != "deleted"]
