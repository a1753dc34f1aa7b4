"""A headless EHR: keys, signed tokens, a FHIR server on loopback, charts that are opened, feedback that is sent."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

URL = "http://127.0.0.1:3000"
ISS = "https://ehr.example.org/"
SERVICE = "/cds-services/wardcast-sepsis"


@dataclass
class Key:
    """A key pair of an EHR."""

    kid: str
    algorithm: str
    private: Any

    @property
    def jwk(self) -> dict[str, Any]:
        """The public half."""
        kind = ECAlgorithm if self.algorithm.startswith("ES") else RSAAlgorithm
        made = json.loads(kind.to_jwk(self.private.public_key()))
        return {**made, "kid": self.kid, "alg": self.algorithm, "use": "sig"}


@pytest.fixture(scope="session")
def keys() -> dict[str, Key]:
    """One key for each algorithm we take, named as Epic names its keys, and one nobody registered."""
    return {
        "ES384": Key("key/1+=", "ES384", ec.generate_private_key(ec.SECP384R1())),
        "RS384": Key("key-2", "RS384", rsa.generate_private_key(65537, 2048)),
        "stranger": Key("key/1+=", "ES384", ec.generate_private_key(ec.SECP384R1())),
    }


@dataclass
class FhirServer:
    """The EHR's FHIR server: resources by path, and what was asked of it."""

    address: str
    resources: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    token: str = "fhir-access-token"
    answer: tuple[int, dict[str, str], bytes] | None = None


@pytest.fixture
def fhir_server() -> Iterator[FhirServer]:
    """A small FHIR server on loopback; it takes one access token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append((self.path, self.headers.get("Authorization", "")))
            found = server.resources.get(self.path.removeprefix("/fhir/"))
            status, extra, content = 200, {}, json.dumps(found).encode()
            if server.answer is not None:
                status, extra, content = server.answer
            elif self.headers.get("Authorization") != f"Bearer {server.token}":
                status, content = 401, b"{}"
            elif found is None:
                status, content = 404, b'{"resourceType": "OperationOutcome"}'
            self.send_response(status)
            for name, value in {"Content-Type": "application/fhir+json", **extra}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = FhirServer(f"http://127.0.0.1:{http.server_address[1]}/fhir")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    http.shutdown()
    http.server_close()
    thread.join(5)


@dataclass
class Ehr:
    """An EHR that speaks CDS Hooks 2.0, and the service it asks."""

    service: Any
    keys: dict[str, Key]
    fhir: FhirServer
    algorithm: str = "ES384"

    def token(self, path: str = SERVICE, key: str | None = None, **claims: Any) -> str:
        """A signed token for an endpoint; claims of None are left out."""
        own = self.keys[key or self.algorithm]
        now = int(time.time())
        said = {
            "iss": ISS,
            "aud": URL + path,
            "exp": now + 300,
            "iat": now,
            "jti": str(uuid.uuid4()),
        } | claims
        return jwt.encode(
            {k: v for k, v in said.items() if v is not None},
            own.private,
            algorithm=own.algorithm,
            headers={"kid": own.kid, "typ": "JWT"},
        )

    def post(self, body: Any, path: str = SERVICE, token: str | None = None) -> Any:
        """POST with a token of its own."""
        headers = {"Authorization": f"Bearer {token or self.token(path)}"}
        return self.service.client.post(path, json=body, headers=headers)

    def open_chart(self, encounter: str | None = "enc-1", patient: str = "pat-1", **more: Any) -> Any:
        """The answer when a chart is opened."""
        return self.post(self.request(encounter, patient, **more))

    def request(self, encounter: str | None = "enc-1", patient: str = "pat-1", **more: Any) -> dict[str, Any]:
        """A patient-view request whose prefetch was resolved from the EHR's FHIR server, as discovery asks."""
        context = {"userId": "Practitioner/p1", "patientId": patient}
        context |= {"encounterId": encounter} if encounter else {}
        body = {
            "hook": "patient-view",
            "hookInstance": str(uuid.uuid4()),
            "context": context,
            "prefetch": self.prefetch(context),
        } | more
        return {k: v for k, v in body.items() if v is not None}

    def prefetch(self, context: dict[str, str]) -> dict[str, Any]:
        """Resolve every prefetch template whose tokens the context can fill."""
        templates = self.service.client.get("/cds-services").json()["services"][0]["prefetch"]
        found = {}
        for key, template in templates.items():
            path = template
            for name, value in context.items():
                path = path.replace("{{context." + name + "}}", value)
            if "{{" not in path:
                found[key] = self.fhir.resources.get(path)
        return found

    def knows(self, who: Any, patient: str = "pat-1", encounter: str | None = None) -> None:
        """Put a patient of ours on the EHR's FHIR server, under the identifiers that were fed in."""
        encounter = encounter or who.encounter_id
        self.fhir.resources[f"Patient/{patient}"] = {
            "resourceType": "Patient",
            "id": patient,
            "identifier": [{"system": "urn:mrn", "value": who.encounter["subject_id"]}],
        }
        self.fhir.resources[f"Encounter/{encounter}"] = {
            "resourceType": "Encounter",
            "id": encounter,
            "status": "in-progress",
            "class": {"code": "IMP"},
            "identifier": [{"system": "urn:visit", "value": who.encounter_id}],
        }


@pytest.fixture
def make_ehr(
    make_service: Callable[..., Any], keys: dict[str, Key], fhir_server: FhirServer, tmp_path: Path
) -> Callable[..., Ehr]:
    """An EHR and a service that knows it; more lines of TOML may follow those of the client."""

    def make(more: str = "", cards: str = "", **env: str) -> Ehr:
        jwks = {"keys": [keys["ES384"].jwk, keys["RS384"].jwk]}
        (tmp_path / "ehr.jwks.json").write_text(json.dumps(jwks))
        lines = ["[cards]", cards, "[[client]]", 'name = "ehr"', f'iss = "{ISS}"']
        if "jku" not in more:
            lines.append('jwks = "ehr.jwks.json"')
        lines += [f'fhir_servers = ["{fhir_server.address}"]', 'origins = ["https://ehr.example.org"]', more]
        (tmp_path / "cds.toml").write_text("\n".join(lines))
        return Ehr(make_service(CDS_FILE=str(tmp_path / "cds.toml"), **env), keys, fhir_server)

    return make


@pytest.fixture
def ehr(make_ehr: Callable[..., Ehr]) -> Ehr:
    """One EHR, its keys known from a file."""
    return make_ehr()


@pytest.fixture
def septic(ehr: Ehr, patient: Any) -> Ehr:
    """An EHR in which one patient is at high risk, fed to the service and known to the EHR."""
    who = patient().rounds(range(6), heart_rate=128, lactate=5.5)
    ehr.service.send(who.news(5))
    ehr.knows(who)
    return ehr


@pytest.fixture
def unsigned() -> Callable[[dict[str, Any], dict[str, Any]], str]:
    """A token of given header and claims with no signature worth the name."""

    def make(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"none") -> str:
        parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
        return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)

    return make
