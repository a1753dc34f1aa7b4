"""SMART Backend Services: how we become known to a hospital's FHIR server, with a key pair and no shared secret.

``WARDCAST_PUSH_FILE`` is TOML::

    fhir = "https://ehr.example.org/fhir"
    token = "https://ehr.example.org/oauth2/token"   # left out: read from fhir's .well-known/smart-configuration
    client_id = "wardcast"
    key = "wardcast.jwk.json"       # our private key, beside this file: a JWK for ES384 (P-384) or RS384, with a "kid"
    scope = "system/RiskAssessment.cu system/Observation.cu system/Flag.cu system/Provenance.cu"
    send = ["RiskAssessment", "Observation", "Flag", "Provenance"]

The assertion follows the SMART App Launch 2.2 profile: ES384 or RS384, ``iss`` and ``sub`` the client, ``aud`` the
token address, ``jti`` new each time, five minutes at most.
"""

from __future__ import annotations

import json
import secrets
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from features.errors import ConfigError, WardcastError
from serving.security.clients import Address, Url
from serving.security.keys import ALGORITHMS

ASSERTION: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ASSERTED_S: Final = 240
"""How long an assertion is good; the profile allows five minutes."""
EARLY_S: Final = 30
"""A token is renewed so long before it ends."""
PATIENCE_S: Final = 20.0
Kind = Literal["RiskAssessment", "Observation", "Flag", "Provenance"]


class PushError(WardcastError):
    """The FHIR server or its token server did not do what we asked; it may later."""


class BatchRefused(PushError):
    """The server answered, and took nothing of a batch.

    Attributes
    ----------
    status : int
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"The FHIR server answered {status} to a batch.")
        self.status = status


class Target(BaseModel):
    """What the file says of the server that is told."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    fhir: Address
    token: Url | None = None
    client_id: Annotated[str, Field(min_length=1, max_length=256)]
    key: str
    scope: str = "system/RiskAssessment.cu system/Observation.cu system/Flag.cu system/Provenance.cu"
    send: Annotated[list[Kind], Field(min_length=1)] = ["RiskAssessment", "Observation", "Flag", "Provenance"]


@dataclass(frozen=True)
class Signer:
    """Our private key, as assertions need it."""

    key: Any
    kid: str
    algorithm: str

    @classmethod
    def of(cls, path: Path) -> Signer:
        """From a JWK file.

        Raises
        ------
        ConfigError
            It cannot be read, others can read it too, or it is no private key for ES384 or RS384.
        """
        from jwt import PyJWK
        from jwt.exceptions import PyJWTError

        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(
                    f"{path} holds a private key and is readable by others. Run: chmod 600 {path}"
                )
            entry = json.loads(path.read_text(encoding="utf-8"))
            kid, kind = entry["kid"], (entry["kty"], entry.get("crv"))
            algorithm = next(a for a, wanted in ALGORITHMS.items() if wanted == kind and "d" in entry)
            return cls(PyJWK(entry, algorithm).key, str(kid), algorithm)
        except OSError as error:
            raise ConfigError(f"The key {path} cannot be read: {error.strerror}.") from None
        except (ValueError, KeyError, TypeError, StopIteration, PyJWTError):
            raise ConfigError(
                f'{path} must be one private JWK with "kid", for ES384 (EC, P-384) or RS384 (RSA).'
            ) from None

    def assertion(self, client_id: str, audience: str, now: float) -> str:
        """A signed statement that we are this client, good once."""
        import jwt

        claims = {
            "iss": client_id, "sub": client_id, "aud": audience, "iat": int(now), "exp": int(now) + ASSERTED_S,
            "jti": secrets.token_urlsafe(24),
        }  # fmt: skip
        return jwt.encode(claims, self.key, algorithm=self.algorithm, headers={"kid": self.kid, "typ": "JWT"})


def read_target(path: Path) -> tuple[Target, Signer]:
    """The server to be told, and the key that opens it.

    Raises
    ------
    ConfigError
        The file or the key cannot be used; names the entry.
    """
    try:
        target = Target.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"WARDCAST_PUSH_FILE {path} cannot be read: {error.strerror}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"WARDCAST_PUSH_FILE {path} is not TOML: {error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"WARDCAST_PUSH_FILE {path}: {where}: {first['msg']}.") from None
    return target, Signer.of(path.parent / target.key)


class BackendClient:
    """Speaks to one FHIR server as a backend service; the token is asked for when needed and kept while it is good."""

    def __init__(self, target: Target, signer: Signer, now: Callable[[], float] = time.time) -> None:
        self.target = target
        self._signer = signer
        self._now = now
        self._token, self._until = "", 0.0
        # Redirects are not followed and proxies of the environment not asked: what we send names patients.
        self._http = httpx.Client(timeout=PATIENCE_S, follow_redirects=False, trust_env=False)

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def post_bundle(self, bundle: dict[str, Any]) -> list[int]:
        """Send a batch; the HTTP status of each entry's answer.

        Raises
        ------
        PushError
            The server could not be reached, or refused the whole. Says the kind, nothing of what was sent.
        """
        answer = self._send(bundle)
        if answer.status_code == 401:  # ended early, or revoked: once with a new one
            self._token = ""
            answer = self._send(bundle)
        if answer.status_code != 200:
            raise BatchRefused(answer.status_code)
        try:
            entries = answer.json()["entry"]
            statuses = [int(str(entry["response"]["status"])[:3]) for entry in entries]
        except (ValueError, KeyError, TypeError):
            raise PushError(
                "The FHIR server answered a batch with something else than its outcome."
            ) from None
        if len(statuses) != len(bundle["entry"]):
            raise PushError("The FHIR server answered with another number of entries than it was sent.")
        return statuses

    def _send(self, bundle: dict[str, Any]) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._access()}", "Content-Type": "application/fhir+json"}
        return self._ask("POST", self.target.fhir, json=bundle, headers=headers)

    def _access(self) -> str:
        if self._token and self._now() < self._until:
            return self._token
        address = self.target.token or self._discovered()
        form = {
            "grant_type": "client_credentials",
            "scope": self.target.scope,
            "client_assertion_type": ASSERTION,
            "client_assertion": self._signer.assertion(self.target.client_id, address, self._now()),
        }
        answer = self._ask("POST", address, data=form)
        try:
            given = answer.json() if answer.status_code == 200 else {}
            token, lasts = str(given["access_token"]), float(given.get("expires_in", 300))
        except (ValueError, KeyError, TypeError):
            raise PushError(
                f"The token server answered {answer.status_code} and gave no token. Is the client registered with the "
                "public half of our key, and may it have the scope?"
            ) from None
        self._token, self._until = token, self._now() + lasts - EARLY_S
        return token

    def _discovered(self) -> str:
        answer = self._ask("GET", f"{self.target.fhir}/.well-known/smart-configuration")
        try:
            found = Target.model_validate(
                self.target.model_dump() | {"token": answer.json()["token_endpoint"]}
            ).token
        except (ValueError, KeyError, TypeError):
            found = None
        if not found:
            raise PushError("The FHIR server names no token address. Write token = … in WARDCAST_PUSH_FILE.")
        return found

    def _ask(self, method: str, url: str, **more: Any) -> httpx.Response:
        try:
            return self._http.request(method, url, **more)
        except httpx.HTTPError as error:
            raise PushError(f"The FHIR or token server cannot be reached: {type(error).__name__}.") from None
