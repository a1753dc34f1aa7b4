"""Who is calling, and what they may do.

Callers carry a token; we keep its SHA-256 only. People exchange theirs for a session cookie. Roles: a *viewer* reads
and acknowledges, an *integrator* feeds and asks through the API, an *admin* may do both. A *cds_client*
is an EHR that asks for cards with tokens it signs itself (:mod:`serving.security.clients`); no token of ours is one.
"""

from __future__ import annotations

import csv
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from sqlalchemy import delete, insert, select, update

from features.errors import ConfigError
from serving.settings import Settings
from serving.store.store import Store
from serving.store.tables import sessions

Role = Literal["viewer", "integrator", "admin", "cds_client"]
ROLES: Final = ("viewer", "integrator", "admin")
FEEDS: Final = frozenset({"/v1/events", "/v1/sepsis/score", "/v1/sepsis/score/bulk", "/fhir"})
"""Only an integrator or admin may call these."""
CDS: Final = "/cds-services"
MINUTE_US: Final = 60_000_000
IDLE_US: Final = 30 * MINUTE_US
LONGEST_US: Final = 12 * 60 * MINUTE_US


@dataclass(slots=True)
class Token:
    """A token that is good for one request: its hash, when it ends (microseconds), whether it was used, or before."""

    token_hash: str
    expires: int
    spent: bool = False
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """Someone we know, by token or by session. ``token`` is one that the deed, or its refusal, still has to spend."""

    name: str
    role: Role
    session: bool = False
    token: Token | None = None

    def may(self, path: str) -> bool:
        """Whether this role may use a path at all."""
        if self.role == "admin":
            return True
        if self.role == "integrator":
            return path.startswith(("/v1/", "/fhir", CDS)) or path in ("/metrics", "/openapi.json")
        if self.role == "cds_client":
            return path.startswith(CDS)
        return path not in FEEDS and not path.startswith(CDS)


def hashed(secret: str) -> str:
    """What we keep of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Credentials:
    """The tokens that open the service, by their hash."""

    def __init__(self, known: Mapping[str, Caller]) -> None:
        self._known = dict(known)

    @classmethod
    def of(cls, settings: Settings) -> Credentials:
        """From the tokens file, or the generated token of a loopback service.

        Raises
        ------
        ConfigError
            The file is missing, open to others' writing, empty, or has a line that is none. Names the line.
        """
        if settings.tokens_file is not None:
            return cls(_read(settings.tokens_file))
        if settings.token is None:
            raise ConfigError(
                "No credentials: set WARDCAST_TOKENS_FILE, or read the settings with Settings.from_env."
            )
        return cls({hashed(settings.token): Caller("local", "admin")})

    def caller(self, token: str) -> Caller | None:
        """Who carries this token; None where nobody does."""
        return self._known.get(hashed(token))

    def still_knows(self, caller: Caller) -> bool:
        """Whether someone of this name still has this role: a session ends with the token that opened it."""
        return any((known.name, known.role) == (caller.name, caller.role) for known in self._known.values())


def _read(path: Path) -> dict[str, Caller]:
    if not path.is_file():
        raise ConfigError(
            f"WARDCAST_TOKENS_FILE {path} is not there. One caller a line: name,role,sha256 of the token."
        )
    if path.stat().st_mode & 0o022:
        raise ConfigError(f"{path} can be changed by others. Run: chmod go-w {path}")
    known: dict[str, Caller] = {}
    rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    for number, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or cells[0].startswith("#") or cells == ["name", "role", "sha256"]:
            continue
        good = len(cells) == 3 and re.fullmatch(r"[\w.@ -]{1,64}", cells[0]) and cells[1] in ROLES
        if not good or not re.fullmatch(r"[0-9a-f]{64}", cells[2]):
            raise ConfigError(
                f"{path}, line {number}: write name,role,sha256 with role one of {', '.join(ROLES)} and the SHA-256 of "
                "the token as 64 hex digits."
            )
        known[cells[2]] = Caller(cells[0], cells[1])  # type: ignore[arg-type]  # checked against ROLES
    if not known:
        raise ConfigError(f"{path} names no caller. One a line: name,role,sha256 of the token.")
    return known


def start_session(store: Store, caller: Caller, now: int) -> str:
    """Open a session; returns the secret for the cookie, of which only the hash is kept."""
    secret = secrets.token_urlsafe(32)
    with store.write() as connection:
        connection.execute(delete(sessions).where(sessions.c.started_time < now - LONGEST_US))
        connection.execute(
            insert(sessions).values(
                session_hash=hashed(secret),
                actor=caller.name,
                role=caller.role,
                started_time=now,
                seen_time=now,
            )
        )
    return secret


def session_caller(store: Store, secret: str, now: int) -> Caller | None:
    """Who a session belongs to; None once it has been idle for half an hour, is half a day old, or was ended."""
    mine = sessions.c.session_hash == hashed(secret)
    with store.read() as connection:
        row = connection.execute(select(sessions).where(mine)).mappings().first()
    if row is None or now - row["seen_time"] > IDLE_US or now - row["started_time"] > LONGEST_US:
        return None
    if now - row["seen_time"] > MINUTE_US:
        with store.write() as connection:
            connection.execute(update(sessions).where(mine).values(seen_time=now))
    return Caller(row["actor"], row["role"], session=True)


def end_session(store: Store, secret: str) -> None:
    """Sign out, on the server too."""
    with store.write() as connection:
        connection.execute(delete(sessions).where(sessions.c.session_hash == hashed(secret)))
