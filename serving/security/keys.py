"""The public keys of a CDS client: from a file handed over out of band, or from the one address it registered."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Final

from features.errors import ConfigError

logger = logging.getLogger("wardcast")

ALGORITHMS: Final = {"ES384": ("EC", "P-384"), "RS384": ("RSA", None)}
"""What we accept, and the kind of key each needs. Never ``none``, never a shared secret."""
KEEP_S: Final = 300.0
"""How long keys are used before they are asked for again, where the answer does not say less."""
COOLDOWN_S: Final = 30.0
"""At most one request for keys in this time, however many unknown keys are named."""
PATIENCE_S: Final = 3.0
MAX_BYTES: Final = 256 * 1024
SMALLEST_RSA_BITS: Final = 2048

Keys = Mapping[tuple[str, str], Any]
"""By key id and algorithm."""
Source = Callable[[], tuple[Keys, float]]
"""Reads the keys; says how many seconds they may be kept."""


def read_keys(content: str | bytes) -> Keys:
    """The public keys of a JWK Set that can verify ES384 or RS384.

    Raises
    ------
    ValueError
        It is no JWK Set, holds a secret, or has no such key. Says which; never repeats a key.
    """
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    try:
        listed = json.loads(content)["keys"]
    except (ValueError, KeyError, TypeError):
        raise ValueError('not a JWK Set: expected an object with a list "keys"') from None
    found: dict[tuple[str, str], Any] = {}
    for entry in listed if isinstance(listed, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
            raise ValueError('a key without "kid": every key needs one')
        if entry.get("kty") == "oct" or {"d", "p", "q", "k"} & entry.keys():
            raise ValueError("it holds a private or a shared key: send public keys only")
        for algorithm, (kind, curve) in ALGORITHMS.items():
            suits = entry.get("kty") == kind and entry.get("crv") == curve
            if suits and entry.get("alg", algorithm) == algorithm and entry.get("use", "sig") == "sig":
                try:
                    found[entry["kid"], algorithm] = _strong(PyJWK(entry, algorithm))
                except PyJWTError:
                    raise ValueError("a key in it is not well formed") from None
    if not found:
        raise ValueError("no key for ES384 (EC, P-384) or RS384 (RSA) is in it")
    return found


def _strong(key: Any) -> Any:
    if getattr(key.key, "key_size", SMALLEST_RSA_BITS) < SMALLEST_RSA_BITS and key.key_type == "RSA":
        raise ValueError(f"an RSA key is shorter than {SMALLEST_RSA_BITS} bits")
    return key


def from_file(path: Path) -> Source:
    """Keys in a file; a new file is noticed without a restart."""

    def read() -> tuple[Keys, float]:
        return read_keys(path.read_bytes()), KEEP_S

    return read


def from_url(url: str) -> Source:
    """Keys at the registered address. Redirects are not followed, proxies of the environment not asked."""

    def read() -> tuple[Keys, float]:
        import httpx

        with (
            httpx.Client(timeout=PATIENCE_S, follow_redirects=False, trust_env=False) as client,
            client.stream("GET", url, headers={"Accept": "application/json"}) as answer,
        ):
            if answer.status_code != 200:
                raise ValueError(f"the keys' address answered {answer.status_code}")
            content = b""
            for part in answer.iter_bytes():
                content += part
                if len(content) > MAX_BYTES:
                    raise ValueError("the keys' address answered with too much")
            age = re.search(r"max-age=(\d{1,9})", answer.headers.get("cache-control", ""))
        return read_keys(content), min(float(age[1]), KEEP_S) if age else KEEP_S

    return read


class KeySet:
    """Keys that are read when they are needed, kept for a while, and kept on where they cannot be read again.

    A provider that is down for an hour locks nobody out; a caller who names unknown keys causes one request in
    30 seconds and no more.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._keys: Keys = {}
        self._until = self._tried = -1e18
        self._lock = Lock()

    def load(self, now: float) -> None:
        """Read the keys now.

        Raises
        ------
        ConfigError
            They cannot be read; says why.
        """
        try:
            self._keys, kept = self._source()
        except (OSError, ValueError) as error:
            raise ConfigError(f"The keys of a CDS client cannot be used: {error}.") from None
        self._until = now + kept

    def find(self, kid: str, algorithm: str, now: float) -> Any | None:
        """The key of this name for this algorithm; None where the client has none. ``now`` in seconds."""
        found = self._keys.get((kid, algorithm))
        due = found is None or now >= self._until
        # Whoever has a key goes on with it while one caller asks anew; who has none waits for the answer.
        if due and self._may_ask(now) and self._lock.acquire(blocking=found is None):
            try:
                if self._may_ask(now):
                    self._again(now)
            finally:
                self._lock.release()
            found = self._keys.get((kid, algorithm))
        return found

    def _may_ask(self, now: float) -> bool:
        return now - self._tried >= COOLDOWN_S

    def _again(self, now: float) -> None:
        try:
            self._keys, kept = self._source()
            self._until = now + kept
        except Exception as error:  # whatever is wrong over there, the keys we have stay good
            logger.warning("cds problem=keys_unavailable kind=%s", type(error).__name__)
        self._tried = now
