"""Who did what to whose data, in a chain of hashes: an edited, deleted or reordered row is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from serving.store.engine import GENESIS
from serving.store.tables import audit, audit_head

LINKED = ("seq", "time", "actor", "role", "action", "outcome", "encounters", "request_id", "previous")


# Written with every answer, so built once.
_STEP = (
    update(audit_head)
    .where(audit_head.c.id == 1)
    .values(seq=audit_head.c.seq + 1)
    .returning(audit_head.c.seq, audit_head.c.hash)
)
_ADD = insert(audit)
_LINK = update(audit_head).where(audit_head.c.id == 1).values(hash=bindparam("newest"))


@dataclass(frozen=True, slots=True)
class Act:
    """One thing somebody did, or tried to."""

    actor: str
    role: str
    action: str
    outcome: str
    encounters: Sequence[str] = ()
    request_id: str = ""


def record(connection: Connection, act: Act, now: int) -> None:
    """Append to the chain. In the same transaction as the deed: no record, no answer."""
    seq, previous = connection.execute(_STEP).one()
    row: dict[str, Any] = {
        "seq": seq,
        "time": now,
        "actor": act.actor,
        "role": act.role,
        "action": act.action,
        "outcome": act.outcome,
        "encounters": json.dumps(sorted(set(act.encounters))),
        "request_id": act.request_id,
        "previous": previous,
    }
    row["hash"] = link(row)
    connection.execute(_ADD, row)
    connection.execute(_LINK, {"newest": row["hash"]})


def link(row: dict[str, Any]) -> str:
    """Hash of a row together with the hash of the one before."""
    content = json.dumps([row[name] for name in LINKED], separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


def verify(connection: Connection) -> int | None:
    """The first row at which the chain is broken; None where it is whole."""
    expected, previous = 0, GENESIS
    for found in connection.execute(select(audit).order_by(audit.c.seq)).mappings():
        row = dict(found)
        expected += 1
        if row["seq"] != expected or row["previous"] != previous or row["hash"] != link(row):
            return expected
        previous = row["hash"]
    head = connection.execute(select(audit_head.c.seq, audit_head.c.hash)).one()
    return None if (head.seq, head.hash) == (expected, previous) else expected + 1
