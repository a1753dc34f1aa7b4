"""Telling other systems, such as a pager: messages that wait in the store until their receiver has taken them.

A message is written in the transaction of what it tells of, so neither is there without the other, and a restart loses
nothing. It is sent until it is taken: again after 5 s, 10 s, 20 s, up to an hour, and given up after a day. A receiver
may therefore get a message twice, and knows it by its ``Wardcast-Delivery``. What was said is emptied once it is over
and older than the receiver's ``keep_days``; that it was said stays.

Every request carries ``Wardcast-Signature: t=<seconds>,v1=<hex>``: HMAC-SHA256 of ``<seconds>.<body>`` with the
receiver's secret (one ``v1`` a secret, while secrets are changed). :func:`verify` is what a receiver does with it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from sqlalchemy import Connection, func, insert, select, update

from serving.clock import iso
from serving.store.store import Store
from serving.store.tables import webhooks

SIGNATURE: Final = "Wardcast-Signature"
DELIVERY: Final = "Wardcast-Delivery"
KIND: Final = "Wardcast-Kind"
WAITING, DELIVERED, DEAD = "waiting", "delivered", "dead"
SECOND_US: Final = 1_000_000
FIRST_US: Final = 5 * SECOND_US
LONGEST_US: Final = 3600 * SECOND_US
GIVEN_UP_US: Final = 24 * 3600 * SECOND_US
LEASE_US: Final = 60 * SECOND_US
"""How long a message that is being sent is left to its sender; longer than the sender waits."""
TIMEOUT_S: Final = 10.0
LOOK_S: Final = 0.5
PRUNE_S: Final = 600.0
"""How often old messages are looked for."""
KEEP_DAYS: Final = 30
DAY_US: Final = 24 * 3600 * SECOND_US
TOLERANCE_S: Final = 300
logger = logging.getLogger("wardcast")


@dataclass(frozen=True, slots=True)
class Receiver:
    """Who is told: where, with which secrets, of which kinds of news, and whether with the encounter's identity.

    ``keep_days`` says how long the text of what was taken or given up stays in the store; 0, for ever.
    """

    name: str
    url: str
    kinds: frozenset[str]
    secrets: tuple[bytes, ...] = field(repr=False)
    identify: bool = False
    keep_days: int = KEEP_DAYS


def sign(secrets_: Sequence[bytes], seconds: int, body: bytes) -> str:
    """The signature header of a body sent at a moment."""
    marks = (hmac.new(key, b"%d." % seconds + body, hashlib.sha256).hexdigest() for key in secrets_)
    return ",".join([f"t={seconds}", *(f"v1={mark}" for mark in marks)])


def verify(secret: bytes, header: str, body: bytes, seconds: int) -> bool:
    """Whether a body is what we sent, within five minutes of ``seconds``: what a receiver has to check."""
    parts = [part.partition("=") for part in header.split(",")]
    sent = next((value for name, _, value in parts if name == "t"), "")
    if not (sent.isascii() and sent.isdigit()) or abs(int(sent) - seconds) > TOLERANCE_S:
        return False
    wanted = hmac.new(secret, sent.encode() + b"." + body, hashlib.sha256).hexdigest()
    return any(hmac.compare_digest(wanted, value) for name, _, value in parts if name == "v1")


def put(
    connection: Connection,
    receivers: Sequence[Receiver],
    kind: str,
    told: Mapping[str, Any],
    now: int,
    identity: Mapping[str, Any] | None = None,
) -> None:
    """Have every receiver of this kind of news told, once the transaction is durable.

    Parameters
    ----------
    told : the news, without anything of a patient
    identity : what is added for receivers that may know whom it is about
    """
    rows = []
    for receiver in receivers:
        if kind not in receiver.kinds:
            continue
        more = identity if receiver.identify and identity else {}
        delivery = secrets.token_hex(16)
        body = json.dumps({"delivery_id": delivery, "kind": kind, **told, **more}, sort_keys=True)
        rows.append(
            {
                "delivery_id": delivery, "receiver": receiver.name, "kind": kind, "body": body, "created_time": now,
                "due_time": now, "tries": 0, "state": WAITING, "problem": None,
            }
        )  # fmt: skip
    if rows:
        connection.execute(insert(webhooks), rows)


def waited(tries: int) -> int:
    """How long to wait after so many tries, microseconds."""
    return int(min(LONGEST_US, FIRST_US * 2 ** min(tries - 1, 20)))


def standing(connection: Connection) -> list[dict[str, Any]]:
    """Messages by receiver and state: how many, since when, and the newest problem."""
    w = webhooks.c
    query = select(
        w.receiver, w.state, func.count().label("messages"), func.min(w.created_time).label("since")
    )
    rows = connection.execute(query.group_by(w.receiver, w.state).order_by(w.receiver, w.state)).mappings()
    told = [dict(row) for row in rows]
    for row in told:
        last = select(w.problem).where(w.receiver == row["receiver"], w.state == row["state"])
        row["problem"] = connection.execute(last.order_by(w.seq.desc()).limit(1)).scalar()
    return told


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """What :func:`standing` found, for the console."""
    lines = [
        f"{row['messages']:8,}  {row['state']:9}  {row['receiver']}, since {iso(row['since'])}"
        + (f", last problem {row['problem']}" if row["problem"] else "")
        for row in rows
    ]
    return "\n".join(lines) or "No webhook was to be told anything yet."


def revive(connection: Connection, now: int) -> int:
    """Let what was given up wait again, where it was not emptied meanwhile; returns how many."""
    again = update(webhooks).where(webhooks.c.state == DEAD, webhooks.c.body != "")
    return connection.execute(again.values(state=WAITING, due_time=now, created_time=now, tries=0)).rowcount


def prune(connection: Connection, receiver: Receiver, now: int) -> int:
    """Empty what a receiver took, or what was given up, and is older than it is kept; returns how many."""
    if not receiver.keep_days:
        return 0
    w = webhooks.c
    old = update(webhooks).where(
        w.receiver == receiver.name, w.state.in_((DELIVERED, DEAD)), w.body != "",
        w.created_time < now - receiver.keep_days * DAY_US,
    )  # fmt: skip
    return connection.execute(old.values(body="")).rowcount


class Sender:
    """Sends what waits for one receiver, the oldest first."""

    def __init__(
        self, store: Store, receiver: Receiver, clock: Callable[[], int], client: httpx.Client | None = None
    ) -> None:
        self._store = store
        self._receiver = receiver
        self._clock = clock
        self._client = client or httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False)
        self._pruned = -PRUNE_S

    def step(self) -> bool:
        """Try one message that is due; whether there was one."""
        now = self._clock()
        with self._store.write() as connection:
            row = self._claim(connection, now)
        if row is None:
            return False
        problem = self._send(row)
        with self._store.write() as connection:
            self._note(connection, row, problem, self._clock())
        return True

    def run(self, stop: threading.Event) -> None:
        """Until told to stop. What goes wrong with the store is logged, and tried again."""
        while not stop.is_set():
            try:
                busy = self.step()
                if not busy:
                    self._tidy()
            except Exception as error:
                logger.error("webhook receiver=%s failed kind=%s", self._receiver.name, type(error).__name__)
                busy = False
            if not busy:
                stop.wait(LOOK_S)

    def _tidy(self) -> None:
        """Prune, now and then and while there is nothing to send."""
        if time.monotonic() - self._pruned < PRUNE_S:
            return
        self._pruned = time.monotonic()
        with self._store.write() as connection:
            prune(connection, self._receiver, self._clock())

    def _claim(self, connection: Connection, now: int) -> dict[str, Any] | None:
        """The oldest message that is due, kept from other senders while it is being sent."""
        w = webhooks.c
        due = select(webhooks).where(w.state == WAITING, w.due_time <= now, w.receiver == self._receiver.name)
        row = connection.execute(due.order_by(w.seq).limit(1)).mappings().first()
        if row is None:
            return None
        connection.execute(update(webhooks).where(w.seq == row["seq"]).values(due_time=now + LEASE_US))
        return dict(row)

    def _send(self, row: Mapping[str, Any]) -> str | None:
        """What kept the receiver from taking it; nothing of the message is in there."""
        body = str(row["body"]).encode()
        headers = {
            "Content-Type": "application/json",
            SIGNATURE: sign(self._receiver.secrets, self._clock() // SECOND_US, body),
            DELIVERY: row["delivery_id"],
            KIND: row["kind"],
        }
        try:
            status = self._client.post(self._receiver.url, content=body, headers=headers).status_code
        except httpx.HTTPError as error:
            return type(error).__name__
        return None if 200 <= status < 300 else f"status {status}"

    def _note(self, connection: Connection, row: Mapping[str, Any], problem: str | None, now: int) -> None:
        tries = row["tries"] + 1
        state = DELIVERED if problem is None else WAITING
        if state == WAITING and now + waited(tries) - row["created_time"] > GIVEN_UP_US:
            state = DEAD
            logger.error("webhook receiver=%s given_up problem=%s", self._receiver.name, problem)
        connection.execute(
            update(webhooks)
            .where(webhooks.c.seq == row["seq"], webhooks.c.state == WAITING)
            .values(state=state, tries=tries, problem=problem, due_time=now + waited(tries))
        )


def run(store: Store, receivers: Sequence[Receiver], stop: threading.Event, clock: Callable[[], int]) -> None:
    """Send to all receivers, each at its own pace, until told to stop or the parent process is gone."""
    threads = [
        threading.Thread(target=Sender(store, receiver, clock).run, args=(stop,), name=receiver.name)
        for receiver in receivers
    ]
    for thread in threads:
        thread.start()
    parent = os.getppid()
    while not stop.wait(1.0) and os.getppid() == parent:
        pass
    stop.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
