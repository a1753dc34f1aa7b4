"""CDS Hooks in the store: cards given, what became of them, and tokens that were used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from serving.store.facts import chunks, received_range
from serving.store.tables import cds_cards, cds_feedback, cds_tokens


def spend(connection: Connection, token_hash: str, expires: int, now: int) -> bool:
    """Note that a token was used; False where it had been used before, after which the transaction must not go on.

    Parameters
    ----------
    expires, now : microseconds
        Once in a while the tokens that have expired are forgotten, since they are refused for their age.
    """
    try:
        connection.execute(insert(cds_tokens).values(token_hash=token_hash, expires_time=expires))
    except IntegrityError:
        return False
    if token_hash.startswith("00"):  # one in 256
        connection.execute(delete(cds_tokens).where(cds_tokens.c.expires_time < now))
    return True


def add_card(connection: Connection, row: Mapping[str, Any]) -> None:
    """Keep what a card was about."""
    connection.execute(insert(cds_cards).values(**row))


def cards(connection: Connection, ids: Sequence[str], client: str) -> set[str]:
    """Which of some cards were given to this client."""
    c = cds_cards.c
    found: set[str] = set()
    for some in chunks(ids):
        found |= set(
            connection.execute(select(c.card_id).where(c.card_id.in_(some), c.client == client)).scalars()
        )
    return found


def encounters(connection: Connection, ids: Sequence[str]) -> list[str]:
    """The encounters that some cards were about."""
    c = cds_cards.c
    found: set[str] = set()
    for some in chunks(ids):
        query = select(c.encounter_id).where(c.card_id.in_(some), c.encounter_id.is_not(None))
        found |= set(connection.execute(query).scalars())
    return sorted(found)


def add_feedback(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Write what is new of some feedback; per row, whether it was new."""
    known: set[bytes] = set()
    for some in chunks(row["content_hash"] for row in rows):
        query = select(cds_feedback.c.content_hash).where(cds_feedback.c.content_hash.in_(some))
        known |= {bytes(h) for (h,) in connection.execute(query)}
    fresh: list[bool] = []
    for row in rows:
        fresh.append(row["content_hash"] not in known)
        known.add(row["content_hash"])
    new = [dict(row) for row, is_new in zip(rows, fresh, strict=True) if is_new]
    if new:
        connection.execute(insert(cds_feedback), new)
    return fresh


def counts(connection: Connection, since: int | None, until: int | None) -> dict[str, list[dict[str, Any]]]:
    """Cards given and feedback received in a period, ``since`` included, ``until`` not.

    Returns
    -------
    dict
        ``cards`` by hook, status and indicator; ``feedback`` by outcome and reason code.
    """
    c, f = cds_cards.c, cds_feedback.c
    given = select(c.hook, c.status, c.indicator, func.count().label("count"))
    given = given.where(received_range(since, until, c.issued_time)).group_by(c.hook, c.status, c.indicator)
    told = select(f.outcome, f.reason_system, f.reason_code, func.count().label("count"))
    told = told.where(received_range(since, until, f.received_time))
    told = told.group_by(f.outcome, f.reason_system, f.reason_code)
    return {
        "cards": [
            dict(row) for row in connection.execute(given.order_by(c.hook, c.status, c.indicator)).mappings()
        ],
        "feedback": [
            dict(row) for row in connection.execute(told.order_by(f.outcome, f.reason_code)).mappings()
        ],
    }
