"""CDS clients: the EHRs that may ask for cards, and the signed tokens by which they are known.

``WARDCAST_CDS_FILE`` is TOML. One ``[[client]]`` for each EHR, and ``[cards]`` for all::

    [cards]
    below_threshold = "none"     # or "info": a card for patients below the threshold too
    out_of_scope = "info"        # or "none": silence for patients the model was not made for

    [[client]]
    name = "ehr"                             # in the audit and in counts
    iss = "https://ehr.example.org/"         # as the client's tokens have it, to the letter
    jwks = "ehr.jwks.json"                   # its public keys, beside this file; or jku = "https://…"
    fhir_servers = ["https://ehr.example.org/fhir"]
    origins = ["https://ehr.example.org"]    # of browser-based clients

Tokens follow CDS Hooks 2.0: ES384 or RS384, ``iss``, ``aud`` (the address of the endpoint), ``exp``, ``iat``, ``jti``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection

from features.errors import ConfigError
from serving.security.identity import Caller, Token
from serving.security.keys import ALGORITHMS, KeySet, from_file, from_url
from serving.settings import Settings
from serving.store import cds

logger = logging.getLogger("wardcast")

LEEWAY_S: Final = 60
"""How far the client's clock may be off."""
LONGEST_TOKEN: Final = 8192
NEEDED: Final = ("iss", "aud", "exp", "iat", "jti")


def _url(url: str) -> str:
    """An absolute address; plain http on loopback only."""
    parts = urlsplit(url)
    here = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (parts.scheme == "http" and here):
        raise ValueError("must be an https:// address (http:// on loopback only)")
    if not parts.hostname or parts.username or parts.fragment:
        raise ValueError("must be an address without user or fragment")
    return url


Url = Annotated[str, AfterValidator(_url)]
Address = Annotated[str, AfterValidator(lambda url: _url(url).rstrip("/"))]
"""Without a slash at the end, since both ways are written and meant alike."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ClientEntry(_Entry):
    """What the file says of one CDS client."""

    name: Annotated[str, Field(pattern=r"^[\w.@-]{1,64}$")]
    iss: Annotated[str, Field(min_length=1, max_length=512)]
    jwks: str | None = None
    jku: Url | None = None
    fhir_servers: list[Address] = []
    origins: list[Address] = []
    audience: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="For clients that put one fixed value into aud, whatever the endpoint."
    )
    tenant: str | None = None
    max_lifetime_s: Annotated[int, Field(ge=30, le=86_400)] = 900
    encounter_system: str | None = None
    patient_system: str | None = None
    encounter_authority: str | None = Field(
        None,
        description="PV1-19.4 of HL7 v2 messages: a visit that came over MLLP is known as number@authority.",
    )
    patient_authority: str | None = Field(None, description="PID-3.4, likewise.")


class CardsEntry(_Entry):
    """What the file says of cards."""

    below_threshold: Literal["none", "info"] = "none"
    out_of_scope: Literal["none", "info"] = "info"


class _File(_Entry):
    cards: CardsEntry = CardsEntry()
    client: list[ClientEntry] = []


@dataclass(frozen=True, slots=True)
class Client:
    """A CDS client and its keys."""

    about: ClientEntry
    keys: KeySet


class Denied(Exception):
    """A token that is not taken. The reason is for our log; the caller never learns it."""


class CdsClients:
    """The CDS clients this service knows.

    Attributes
    ----------
    cards : CardsEntry
    """

    def __init__(self, known: Sequence[Client] = (), cards: CardsEntry | None = None, url: str = "") -> None:
        self.cards = cards or CardsEntry()
        self._by_iss = {c.about.iss: c for c in known}
        self._by_name = {c.about.name: c for c in known}
        self._url = url

    @classmethod
    def of(cls, settings: Settings) -> CdsClients:
        """The clients of ``WARDCAST_CDS_FILE``; none where it is not set.

        Raises
        ------
        ConfigError
            The file or a key file cannot be used. Names the field and the remedy.
        """
        path = settings.cds_file
        if path is None:
            return cls(url=settings.known_as)
        said = _read(path)
        for field in ("name", "iss"):
            if len({getattr(c, field) for c in said.client}) < len(said.client):
                raise ConfigError(f"{path}: two clients have the same {field}. Each needs its own.")
        return cls([_client(c, path) for c in said.client], said.cards, settings.known_as)

    @property
    def origins(self) -> list[str]:
        """The origins of browser-based clients."""
        return sorted({origin for client in self._by_iss.values() for origin in client.about.origins})

    def named(self, caller: Caller) -> ClientEntry | None:
        """What is registered about a caller; None where it is no CDS client."""
        client = self._by_name.get(caller.name) if caller.role == "cds_client" else None
        return client.about if client else None

    def caller(self, token: str, path: str, now: float | None = None) -> Caller | None:
        """Who signed this token for this endpoint; None where it is not taken.

        A token is taken once: :func:`spend` has still to see whether this is the first time.

        Parameters
        ----------
        path : of the endpoint, which ``aud`` must name
        now : seconds on the wall's clock
        """
        moment = time.time() if now is None else now
        try:
            client, claims = self.verify(token, path, moment)
        except Denied as denied:
            logger.warning("cds denied=%s", denied)
            return None
        name = hashlib.sha256(json.dumps([client.about.iss, claims["jti"]]).encode()).hexdigest()
        return Caller(
            client.about.name, "cds_client", token=Token(name, int((claims["exp"] + LEEWAY_S) * 1e6))
        )

    def verify(self, token: str, path: str, now: float) -> tuple[Client, Mapping[str, Any]]:
        """Whose token this is, and its claims.

        Raises
        ------
        Denied
            With a reason code for the log.
        """
        header, claims = _opened(token)
        client = self._by_iss.get(claims["iss"]) if isinstance(claims.get("iss"), str) else None
        if client is None:
            raise Denied("unknown_iss")
        self._check_claims(client.about, claims, path, now)
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS or not isinstance(kid, str):
            raise Denied("header")
        if "crit" in header or header.get("typ", "JWT") != "JWT":
            raise Denied("header")
        if "jku" in header and header["jku"] != client.about.jku:
            raise Denied("unregistered_jku")
        key = client.keys.find(kid, algorithm, now)
        if key is None:
            raise Denied("unknown_key")
        _check_signature(token, key, algorithm)
        return client, claims

    def _check_claims(self, about: ClientEntry, claims: Mapping[str, Any], path: str, now: float) -> None:
        """Audience, times, tenant and the token's own name."""
        audience = claims.get("aud")
        listed = audience if isinstance(audience, list) else [audience]
        if (about.audience or self._url + path) not in listed:
            raise Denied("wrong_audience")
        instants = [claims.get("exp"), claims.get("iat"), claims.get("nbf", 0)]
        if not all(map(_is_instant, instants)):
            raise Denied("times")
        expires, issued, begins = (float(instant) for instant in instants)
        if now >= expires + LEEWAY_S:
            raise Denied("expired")
        if max(issued, begins) > now + LEEWAY_S:
            raise Denied("not_yet_valid")
        if not 0 < expires - issued <= about.max_lifetime_s:
            raise Denied("lifetime")
        if about.tenant is not None and claims.get("tenant") != about.tenant:
            raise Denied("wrong_tenant")
        if not isinstance(claims.get("jti"), str) or not 1 <= len(claims["jti"]) <= 256:
            raise Denied("jti")


def spend(connection: Connection, caller: Caller, now: int) -> bool:
    """Take a caller's token, where it has one that is good for one request; False where it was taken before.

    In the deed's own transaction, which must not go on where it is False: what was done and its token stand together.
    """
    token = caller.token
    if token is None or token.spent:
        return True
    token.spent = True
    if cds.spend(connection, token.token_hash, token.expires, now):
        return True
    token.replayed = True
    logger.warning("cds denied=replayed")
    return False


def _is_instant(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e11


def _opened(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims as written, not yet believed."""
    from jwt.utils import base64url_decode

    if len(token) > LONGEST_TOKEN or not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token, re.ASCII):
        raise Denied("not_a_token")
    try:
        header, claims = (
            json.loads(base64url_decode(part), object_pairs_hook=_once) for part in token.split(".")[:2]
        )
    except (ValueError, RecursionError):
        raise Denied("not_a_token") from None
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise Denied("not_a_token")
    return header, claims


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names come once: of two, one reader takes the first and another the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _check_signature(token: str, key: Any, algorithm: str) -> None:
    import jwt

    # Claims and times were checked above, by a clock that is handed in; here it is the signature alone.
    unchecked = ("verify_aud", "verify_exp", "verify_iat", "verify_nbf", "verify_iss")
    options: Any = dict.fromkeys(unchecked, False) | {"require": list(NEEDED)}
    try:
        jwt.decode(token, key.key, [algorithm], options=options)
    except jwt.PyJWTError:
        raise Denied("signature") from None


def _read(path: Path) -> _File:
    if not path.is_file():
        raise ConfigError(f"WARDCAST_CDS_FILE {path} is not there. README says what it holds.")
    if path.stat().st_mode & 0o022:
        raise ConfigError(f"{path} can be changed by others. Run: chmod go-w {path}")
    try:
        return _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}, {place}: {first['msg']}. README says what the file holds.") from None


def _client(about: ClientEntry, path: Path) -> Client:
    if (about.jwks is None) == (about.jku is None):
        raise ConfigError(
            f"{path}, client {about.name}: exactly one of jwks (a file of public keys) and jku (their address)."
        )
    if about.jku is not None:
        return Client(about, KeySet(from_url(about.jku)))
    keys = KeySet(from_file(path.parent / str(about.jwks)))
    try:
        keys.load(time.time())
    except ConfigError as error:
        raise ConfigError(
            f"{path}, client {about.name}: {error} Put its public keys there as a JWKS, or name their address as jku."
        ) from None
    return Client(about, keys)
