"""The tokens of CDS clients: what is taken, and that everything else gets one and the same answer."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from sqlalchemy import func, select

from features.errors import ConfigError
from serving.security.keys import COOLDOWN_S, KEEP_S, KeySet, read_keys
from serving.store import cds
from serving.store.tables import audit, cds_cards, cds_tokens

SERVICE = "/cds-services/wardcast-sepsis"
FEEDBACK = f"{SERVICE}/feedback"
URL = "http://127.0.0.1:3000"


@pytest.mark.parametrize("algorithm", ["ES384", "RS384"])
def test_both_recommended_algorithms_are_taken(septic: Any, algorithm: str):
    septic.algorithm = algorithm
    assert septic.open_chart().status_code == 200


@pytest.mark.parametrize(
    "claims",
    [
        lambda now: {"aud": [URL + "/other", URL + SERVICE]},
        lambda now: {"exp": int(now) + 900, "sub": "ehr", "nbf": int(now) - 5},  # as Epic sends them
        lambda now: {"tenant": "a-tenant", "more": {"x": 1}},
        lambda now: {"iat": now + 30.5, "exp": now + 60.25},  # a clock that is half a minute ahead
    ],
)
def test_what_real_clients_send_is_taken(septic: Any, claims: Callable[[float], dict[str, Any]]):
    assert septic.post(septic.request(), token=septic.token(**claims(time.time()))).status_code == 200


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def hostile(ehr: Any, unsigned: Callable[..., str]) -> dict[str, str]:
    """Tokens that must not be taken, by what is wrong with them."""
    now = int(time.time())
    good = {"iss": "https://ehr.example.org/", "aud": URL + SERVICE, "exp": now + 300, "iat": now}
    own, stranger = ehr.keys["ES384"], ehr.keys["stranger"]
    public = own.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def signed(header: dict[str, Any] | None = None, key: Any = own, **claims: Any) -> str:
        said = {k: v for k, v in (good | {"jti": str(uuid.uuid4())} | claims).items() if v is not None}
        heads = {"kid": key.kid, "typ": "JWT"} | (header or {})
        return jwt.PyJWS().encode(json.dumps(said).encode(), key.private, key.algorithm, headers=heads)

    def shared(algorithm: str, secret: bytes) -> str:
        parts = f"{b64(json.dumps({'alg': algorithm, 'typ': 'JWT', 'kid': own.kid}).encode())}." + b64(
            json.dumps(good | {"jti": str(uuid.uuid4())}).encode()
        )
        return f"{parts}.{b64(hmac.new(secret, parts.encode(), hashlib.sha384).digest())}"

    whole = signed()
    head, body, signature = whole.split(".")
    twice = b64(
        json.dumps(good | {"jti": "j"}).encode()[:-1] + b', "aud": "' + (URL + SERVICE).encode() + b'"}'
    )
    claims = {
        "no jti": {"jti": None}, "no iss": {"iss": None}, "no aud": {"aud": None}, "no exp": {"exp": None},
        "no iat": {"iat": None}, "unknown iss": {"iss": "https://other.example/"}, "iss without its slash":
        {"iss": "https://ehr.example.org"}, "iss of another kind": {"iss": ["https://ehr.example.org/"]},
        "aud of discovery": {"aud": URL + "/cds-services"}, "aud of feedback": {"aud": URL + FEEDBACK},
        "aud of a host": {"aud": URL}, "aud with a slash": {"aud": URL + SERVICE + "/"}, "aud empty": {"aud": []},
        "aud elsewhere": {"aud": "https://cds.example.org" + SERVICE}, "expired": {"exp": now - 61, "iat": now - 300},
        "long expired": {"exp": 1, "iat": 0}, "exp as text": {"exp": str(now + 300)}, "exp true": {"exp": True},
        "exp huge": {"exp": 10**12}, "exp negative": {"exp": -1}, "lives too long": {"exp": now + 901},
        "lives a year": {"exp": now + 31_536_000}, "ends before it begins": {"exp": now + 10, "iat": now + 20},
        "from the future": {"iat": now + 120, "exp": now + 300}, "not yet": {"nbf": now + 120},
        "nbf as text": {"nbf": "now"}, "jti empty": {"jti": ""}, "jti long": {"jti": "j" * 257}, "iat as text":
        {"iat": "now"},
    }  # fmt: skip
    cases = {name: signed(**change) for name, change in claims.items()}
    headers: dict[str, dict[str, Any]] = {
        "unknown kid": {"kid": "other"}, "kid of another kind": {"kid": "key-2"}, "kid a path": {"kid": "../../key"},
        "kid a query": {"kid": "' or 1=1 --"}, "typ": {"typ": "at+jwt"}, "crit": {"crit": ["exp"]},
        "jku elsewhere": {"jku": "http://169.254.169.254/jwks"}, "jku of a file": {"jku": "file:///etc/passwd"},
        "jku that nobody registered": {"jku": "https://ehr.example.org/jwks"},
    }  # fmt: skip
    cases |= {name: signed(change) for name, change in headers.items()}
    cases |= {
        "another's key under our kid": signed(key=stranger),
        "a key of its own in the header": signed({"jwk": stranger.jwk}, stranger),
        "unsigned": unsigned({"alg": "none", "typ": "JWT", "kid": own.kid}, good | {"jti": "a"}),
        "unsigned, other spelling": unsigned({"alg": "nOnE", "typ": "JWT", "kid": own.kid}, good | {"jti": "a"}),
        "no signature": f"{head}.{body}.", "two parts": f"{head}.{body}", "five parts": f"{whole}.a.b",
        "shared secret from our public key": shared("HS384", public),
        "shared secret, other size": shared("HS256", public), "ES384 by HMAC": shared("ES384", public),
        "algorithm of the other key": unsigned({"alg": "RS384", "typ": "JWT", "kid": own.kid}, good | {"jti": "a"}),
        "ES256": unsigned({"alg": "ES256", "typ": "JWT", "kid": own.kid}, good | {"jti": "a"}),
        "ES512": unsigned({"alg": "ES512", "typ": "JWT", "kid": own.kid}, good | {"jti": "a"}),
        "RS256": unsigned({"alg": "RS256", "typ": "JWT", "kid": "key-2"}, good | {"jti": "a"}),
        "PS384": unsigned({"alg": "PS384", "typ": "JWT", "kid": "key-2"}, good | {"jti": "a"}),
        "algorithm a list": unsigned({"alg": ["ES384"], "typ": "JWT", "kid": own.kid}, good | {"jti": "a"}),
        "no algorithm": unsigned({"typ": "JWT", "kid": own.kid}, good | {"jti": "a"}),
        "body changed": f"{head}.{b64(json.dumps(good | {'jti': 'b'}).encode())}.{signature}",
        "header changed": f"{b64(json.dumps({'alg': 'ES384', 'kid': own.kid, 'x': 1}).encode())}.{body}.{signature}",
        "signature of zeros": f"{head}.{body}.{b64(bytes(96))}", "signature cut": whole[:-8],
        "a claim twice": f"{head}.{twice}.{signature}", "body a list": f"{head}.{b64(b'[]')}.{signature}",
        "body not JSON": f"{head}.{b64(b'{')}.{signature}", "body deep": f"{head}.{b64(b'[' * 4000)}.{signature}",
        "not base64": f"{head}.{body}.===", "a word": "token", "dots": "..", "very long": "a" * 20_000,
        "five parts of JWE": "a.b.c.d.e", "words": f"{whole} {whole}",
    }  # fmt: skip
    return cases


def test_every_hostile_token_gets_the_same_bare_401(septic: Any, unsigned: Any):
    cases = hostile(septic, unsigned)
    assert len(cases) >= 60
    used = septic.token()
    assert septic.post(septic.request(), token=used).status_code == 200
    bodies = set()
    for name, token in {**cases, "used before": used}.items():
        answer = septic.post(septic.request(), token=token)
        assert answer.status_code == 401, name
        bodies.add(json.dumps(answer.json()["error"], sort_keys=True))
    assert len(bodies) == 1, "nothing tells a caller how near it came"
    with septic.service.state.store.read() as connection:
        query = select(func.count()).where(audit.c.outcome == "not_signed_in")
        assert connection.execute(query).scalar() == len(cases) + 1


def test_a_token_opens_its_endpoint_only(septic: Any):
    said = {
        "feedback": [
            {"card": str(uuid.uuid4()), "outcome": "overridden", "outcomeTimestamp": "2026-03-01T12:00:00Z"}
        ]
    }
    assert septic.post(said, FEEDBACK).status_code == 200
    assert septic.post(said, FEEDBACK, septic.token(SERVICE)).status_code == 401
    for path in (
        "/v1/risk?encounter=enc-1",
        "/v1/cds/feedback",
        "/worklist",
        "/fhir/Flag?encounter=enc-1",
        "/metrics",
    ):
        headers = {"Authorization": f"Bearer {septic.token(path)}"}
        assert septic.service.client.get(path, headers=headers).status_code == 401, path


@pytest.mark.parametrize(("name", "status"), [("engine", 200), ("ada", 200), ("vera", 403)])
def test_tokens_of_ours_open_the_service_too(
    make_service: Any, tmp_path: Path, patient: Any, name: str, status: int
):
    from serving.security.identity import hashed

    roles = {"vera": "viewer", "engine": "integrator", "ada": "admin"}
    (tmp_path / "tokens").write_text("\n".join(f"{n},{r},{hashed(n)}" for n, r in roles.items()))
    service = make_service(TOKENS_FILE=str(tmp_path / "tokens"))
    body = {
        "hook": "patient-view", "hookInstance": str(uuid.uuid4()), "prefetch": {"patient": None},
        "context": {"userId": "Practitioner/1", "patientId": "p"},
    }  # fmt: skip
    answer = service.client.post(SERVICE, json=body, headers={"Authorization": f"Bearer {name}"})
    assert answer.status_code == status


@pytest.mark.both_stores
def test_used_tokens_are_forgotten_once_they_have_expired(service: Any):
    store, minute = service.state.store, 60_000_000
    with store.write() as connection:
        assert cds.spend(connection, "11", 5 * minute, 0)
        assert cds.spend(connection, "22", 9 * minute, 0)
    with store.write() as connection:
        assert cds.spend(connection, "00", 20 * minute, 7 * minute)
    with store.read() as connection:
        assert set(connection.execute(select(cds_tokens.c.token_hash)).scalars()) == {"22", "00"}


@pytest.mark.both_stores
def test_a_token_is_taken_once_and_nothing_is_shown_the_second_time(septic: Any):
    token = septic.token()
    answers = [septic.post(septic.request(), token=token).status_code for _ in range(3)]
    assert answers == [200, 401, 401]
    with septic.service.state.store.read() as connection:
        assert connection.execute(select(func.count()).select_from(cds_cards)).scalar() == 1
        rows = connection.execute(select(audit.c.actor, audit.c.outcome).order_by(audit.c.seq)).all()
    assert [tuple(r) for r in rows[1:]] == [("ehr", "done"), *[("unknown", "not_signed_in")] * 2]


@pytest.mark.both_stores
def test_a_refused_request_was_the_one_request_of_its_token(septic: Any):
    token = septic.token()
    assert septic.post({"hook": "patient-view"}, token=token).status_code == 422
    assert septic.post(septic.request(), token=token).status_code == 401


def test_a_tenant_and_a_fixed_audience_are_checked_where_registered(make_ehr: Any):
    ehr = make_ehr('tenant = "north"\naudience = "wardcast"')
    verify = ehr.service.state.cds.caller
    assert verify(ehr.token(aud="wardcast", tenant="north"), SERVICE) is not None
    for wrong in ({"tenant": "north"}, {"aud": "wardcast"}, {"aud": "wardcast", "tenant": "south"}):
        assert verify(ehr.token(**wrong), SERVICE) is None


# ---- keys --------------------------------------------------------------------------------------------------------


def test_keys_come_from_the_registered_address_and_no_other(
    make_ehr: Any, keys: Any, fhir_server: Any, patient: Any
):
    jku = f"{fhir_server.address}/jwks"
    fhir_server.answer = (
        200,
        {"Cache-Control": "max-age=60"},
        json.dumps({"keys": [keys["ES384"].jwk]}).encode(),
    )
    ehr = make_ehr(f'jku = "{jku}"')
    own = keys["ES384"]

    def token(**header: str) -> str:
        said = jwt.decode(ehr.token(), options={"verify_signature": False})
        return jwt.encode(said, own.private, "ES384", headers={"kid": own.kid} | header)

    assert fhir_server.asked == [], "a provider that is down keeps no service from starting"
    for header in ({"jku": jku}, {}):
        assert ehr.service.state.cds.caller(token(**header), SERVICE) is not None
    for other in (jku + "/", jku.upper(), "http://169.254.169.254/jwks", ""):
        assert ehr.service.state.cds.caller(token(jku=other), SERVICE) is None
    assert [path for path, _ in fhir_server.asked] == ["/fhir/jwks"]


def test_a_redirect_to_keys_is_not_followed(make_ehr: Any, fhir_server: Any):
    fhir_server.answer = (302, {"Location": "http://169.254.169.254/"}, b"")
    ehr = make_ehr(f'jku = "{fhir_server.address}/jwks"')
    assert ehr.service.state.cds.caller(ehr.token(), SERVICE) is None
    assert len(fhir_server.asked) == 1


class Provider:
    def __init__(self) -> None:
        self.keys: dict[tuple[str, str], Any] = {("a", "ES384"): "key a"}
        self.asked, self.down = 0, False

    def __call__(self) -> tuple[dict[tuple[str, str], Any], float]:
        self.asked += 1
        if self.down:
            raise OSError("down")
        return self.keys, KEEP_S


def test_known_clients_are_served_while_the_provider_is_down():
    provider = Provider()
    keys = KeySet(provider)
    assert keys.find("a", "ES384", 0) == "key a"
    provider.down = True
    assert all(keys.find("a", "ES384", hour * 3600) == "key a" for hour in range(1, 25))


def test_one_caller_waits_for_a_slow_provider_and_the_others_do_not():
    asked, answer = threading.Event(), threading.Event()
    provider = Provider()
    keys = KeySet(provider)
    assert keys.find("a", "ES384", 0) == "key a"

    def slow() -> tuple[dict[tuple[str, str], Any], float]:
        asked.set()
        answer.wait(10)
        raise OSError("down")

    keys._source = slow
    later = 2 * KEEP_S
    waiting = threading.Thread(target=keys.find, args=("a", "ES384", later))
    waiting.start()
    assert asked.wait(10)
    assert keys.find("a", "ES384", later) == "key a"
    answer.set()
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_flood_of_unknown_keys_asks_once_in_a_while():
    provider = Provider()
    keys = KeySet(provider)
    for k in range(300):
        assert keys.find(f"unknown {k}", "ES384", k / 10) is None
    assert provider.asked == 1
    provider.keys = {("b", "ES384"): "key b"}
    assert keys.find("b", "ES384", COOLDOWN_S) == "key b", "a new key is found without a restart"
    assert keys.find("a", "ES384", COOLDOWN_S + 1) is None, "and one that was withdrawn is gone"


def jwk(private: Any, **more: Any) -> dict[str, Any]:
    kind = RSAAlgorithm if isinstance(private, rsa.RSAPrivateKey) else ECAlgorithm
    return {**json.loads(kind.to_jwk(private.public_key())), "kid": "k"} | more


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[]", "JWK Set"),
        ("{", "JWK Set"),
        ('{"keys": []}', "no key for ES384"),
        (json.dumps({"keys": [{"kty": "oct", "k": "AAAA", "kid": "k"}]}), "private or a shared"),
        (
            json.dumps({"keys": [jwk(ec.generate_private_key(ec.SECP384R1()), d="AAAA")]}),
            "private or a shared",
        ),
        (json.dumps({"keys": [jwk(ec.generate_private_key(ec.SECP384R1()), kid=None)]}), "kid"),
        (json.dumps({"keys": [jwk(ec.generate_private_key(ec.SECP256R1()))]}), "no key for ES384"),
        (json.dumps({"keys": [jwk(ec.generate_private_key(ec.SECP384R1()), use="enc")]}), "no key for ES384"),
        (json.dumps({"keys": [jwk(rsa.generate_private_key(65537, 1024))]}), "shorter than 2048"),
        (json.dumps({"keys": [jwk(ec.generate_private_key(ec.SECP384R1()), x="AAAA")]}), "not well formed"),
    ],
)
def test_keys_that_are_not_safe_are_refused(content: str, why: str):
    with pytest.raises(ValueError, match=why):
        read_keys(content)


# ---- the file ----------------------------------------------------------------------------------------------------


CLIENT = '[[client]]\nname = "ehr"\niss = "i"\n'


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("=", "not TOML"),
        (CLIENT, "exactly one of jwks"),
        (CLIENT + 'jwks = "a"\njku = "https://a/b"', "exactly one of jwks"),
        (CLIENT + 'jku = "http://ehr.example.org/jwks"', "client.0.jku.*https"),
        (CLIENT + 'jwks = "absent.json"', "keys of a CDS client"),
        (CLIENT + 'jku = "https://a/b"\nfhir_servers = ["http://ehr/fhir"]', "fhir_servers"),
        (CLIENT + 'jku = "https://a/b"\nmore = 1', "client.0.more"),
        ((CLIENT + 'jku = "https://a/b"\n') * 2, "same name"),
        ('[cards]\nbelow_threshold = "some"', "cards.below_threshold"),
    ],
)
def test_a_file_that_cannot_be_used_says_where(make_service: Any, tmp_path: Path, content: str, why: str):
    (tmp_path / "cds.toml").write_text(content)
    with pytest.raises(ConfigError, match=why):
        make_service(CDS_FILE=str(tmp_path / "cds.toml"))


def test_a_file_that_others_can_change_is_not_read(make_service: Any, tmp_path: Path):
    with pytest.raises(ConfigError, match="not there"):
        make_service(CDS_FILE=str(tmp_path / "cds.toml"))
    (tmp_path / "cds.toml").write_text("")
    os.chmod(tmp_path / "cds.toml", 0o666)
    with pytest.raises(ConfigError, match="chmod go-w"):
        make_service(CDS_FILE=str(tmp_path / "cds.toml"))


def test_the_address_callers_use_is_the_one_tokens_name(make_ehr: Any):
    ehr = make_ehr(PUBLIC_URL="https://risk.example.org/wardcast/")
    token = ehr.token(aud="https://risk.example.org/wardcast" + SERVICE)
    assert ehr.service.state.cds.caller(token, SERVICE) is not None
    assert ehr.service.state.cds.caller(ehr.token(), SERVICE) is None
    with pytest.raises(ConfigError, match="WARDCAST_PUBLIC_URL"):
        make_ehr(PUBLIC_URL="risk.example.org")
