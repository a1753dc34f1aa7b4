"""Scores and alerts told to a FHIR server: over real sockets, to a server that checks who is speaking."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fhir.resources.R4B import get_fhir_model_class
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from features.errors import ConfigError
from features.sources.facts import Merge
from serving.ingest.exchange import Said, take
from serving.ingest.report import report
from serving.interop.push import PATIENCE, Pusher
from serving.interop.smart import ASSERTION, BackendClient, PushError, read_target
from serving.store import audit, pushes


@dataclass
class Hospital:
    """A FHIR server with its token server: takes batches from whoever proves to be our client."""

    public: Any
    algorithm: str
    port: int = 0
    have: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    seen_jti: set[str] = field(default_factory=set)
    asked_tokens: int = 0
    batches: int = 0
    answer: int = 200
    """To a whole batch."""
    entry: Callable[[dict[str, Any]], int] = lambda entry: 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def token(self, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        self.asked_tokens += 1
        assertion = form["client_assertion"][0]
        try:
            claims = jwt.decode(
                assertion, self.public, algorithms=[self.algorithm], audience=f"{self.url}/token",
                options={"require": ["iss", "sub", "aud", "exp", "jti"]},
            )  # fmt: skip
        except jwt.PyJWTError:
            return 400, {"error": "invalid_client"}
        right = (
            form["client_assertion_type"] == [ASSERTION]
            and form["grant_type"] == ["client_credentials"]
            and claims["iss"] == claims["sub"] == "wardcast"
            and claims["exp"] - claims["iat"] <= 300
            and claims["jti"] not in self.seen_jti
        )
        if not right:
            return 400, {"error": "invalid_client"}
        self.seen_jti.add(claims["jti"])
        self.tokens = {f"token-{self.asked_tokens}"}
        return 200, {"access_token": f"token-{self.asked_tokens}", "expires_in": 300, "token_type": "bearer"}

    def take(self, bundle: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.batches += 1
        if self.answer != 200:
            return self.answer, {}
        answered = []
        for entry in bundle["entry"]:
            status = self.entry(entry)
            if status < 400:
                assert entry["request"]["method"] == "PUT"
                get_fhir_model_class(entry["resource"]["resourceType"]).model_validate(entry["resource"])
                self.have[entry["request"]["url"]] = entry["resource"]
            answered.append({"response": {"status": f"{status} what it means"}})
        return 200, {"resourceType": "Bundle", "type": "batch-response", "entry": answered}


@pytest.fixture(params=["ES384", "RS384"])
def hospital(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hospital]:
    elliptic = request.param == "ES384"
    private = ec.generate_private_key(ec.SECP384R1()) if elliptic else rsa.generate_private_key(65537, 2048)
    made = Hospital(private.public_key(), request.param)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say(200, {"token_endpoint": f"{made.url}/token"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/token":
                self.say(*made.token(parse_qs(body.decode())))
            elif self.headers["Authorization"].removeprefix("Bearer ") not in made.tokens:
                self.say(401, {})
            else:
                self.say(*made.take(json.loads(body)))

        def say(self, status: int, body: dict[str, Any]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = json.loads((ECAlgorithm if elliptic else RSAAlgorithm).to_jwk(private)) | {"kid": "ward-1"}
    key = tmp_path / "ward.jwk.json"
    key.write_text(json.dumps(entry))
    key.chmod(0o600)
    (tmp_path / "push.toml").write_text(
        f'fhir = "{made.url}"\nclient_id = "wardcast"\nkey = "ward.jwk.json"\n', encoding="utf-8"
    )
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def told(hospital: Hospital, service: Any, tmp_path: Path) -> Iterator[Callable[[], Pusher]]:
    """Makes pushers for the service's store, each as a restarted process would be."""
    clients: list[BackendClient] = []

    def make() -> Pusher:
        clients.append(BackendClient(*read_target(tmp_path / "push.toml")))
        pusher = Pusher(service.state, clients[-1])
        pusher.start()
        return pusher

    yield make
    for client in clients:
        client.close()


def until_told(pusher: Pusher) -> int:
    sent = 0
    while more := pusher.step():
        sent += more
    return sent


def test_scores_alerts_and_their_origin_arrive_once(
    hospital: Hospital, told: Callable[[], Pusher], service: Any, patient: Any
):
    pusher = told()
    who = patient().rounds(range(8)).rounds(range(8, 11), heart_rate=150.0, lactate=9.0)
    service.send(who.news(10.5))
    assert until_told(pusher) > 0
    kinds = {key.partition("/")[0] for key in hospital.have}
    assert {"RiskAssessment", "Observation", "Provenance"} <= kinds
    pulled = service.get("/fhir/RiskAssessment", encounter=who.encounter_id).json()
    for found in pulled["entry"]:
        mine = found["resource"]
        assert hospital.have[f"RiskAssessment/{mine['id']}"] == mine, "pushed as pulled"
    before = dict(hospital.have)
    until_told(pusher)
    assert until_told(told()) == 0, "a restarted process knows what was told"
    with service.state.store.read() as connection:
        acts = connection.exec_driver_sql("select role, encounters from audit where actor = 'push'").all()
        assert audit.verify(connection) is None
    assert set(acts) == {("service", '["enc-1"]')}, "what left the house is in the audit"
    assert hospital.asked_tokens == 1 + (len(before) != len(hospital.have)), "the token is kept"


def test_a_corrected_fact_corrects_what_was_told(
    hospital: Hospital, told: Callable[[], Pusher], service: Any, patient: Any
):
    pusher = told()
    who = patient().rounds(range(6)).measure(5, "lactate", 4.0, source_id="lab-1")
    service.send(who.news(5.5))
    until_told(pusher)
    assert {r["status"] for k, r in hospital.have.items() if k.startswith("RiskAssessment/")} == {"final"}
    right = who.events[-1] | {"encounter_id": who.encounter_id, "value": 1.0, "status": "corrected"}
    service.send({"events": [right], "as_of": who.at(6).isoformat()})
    until_told(pusher)
    statuses = [r["status"] for k, r in hospital.have.items() if k.startswith("RiskAssessment/")]
    assert "corrected" in statuses


@pytest.mark.both_stores
def test_a_corrected_encounter_corrects_what_was_told(
    hospital: Hospital, told: Callable[[], Pusher], service: Any, patient: Any
):
    pusher = told()
    who = patient().rounds(range(6))
    service.send(who.news(5.5))
    until_told(pusher)
    moved = who.encounter | {"unit": "ICU-B", "encounter_class": "ward"}
    service.send({"encounters": [moved], "as_of": who.at(5.6).isoformat()})
    until_told(pusher)
    statuses = {k: r["status"] for k, r in hospital.have.items() if k.startswith("RiskAssessment/")}
    assert set(statuses.values()) == {"final"}, "a move is news and corrects nothing"
    service.send({"encounters": [moved | {"age_years": 17.5}], "as_of": who.at(5.7).isoformat()})
    until_told(pusher)
    assert {hospital.have[k]["status"] for k in statuses} == {"corrected"}
    assert until_told(told()) == 0, "told once"
    pulled = service.get("/fhir/RiskAssessment", encounter=who.encounter_id).json()
    same = {f"RiskAssessment/{e['resource']['id']}": e["resource"] for e in pulled["entry"]}
    assert all(hospital.have[k] == same[k] for k in statuses), "pushed as pulled"


@pytest.mark.both_stores
def test_what_was_told_of_a_merged_encounter_is_told_again_under_the_name_it_lives_on_as(
    hospital: Hospital, told: Callable[[], Pusher], service: Any, patient: Any
):
    pusher = told()
    who = patient().rounds(range(8), heart_rate=140.0, lactate=9.0)
    service.send(who.news(8))
    service.send({"encounters": [patient("enc-2").encounter], "as_of": who.at(8).isoformat()})
    until_told(pusher)
    assert {key.partition("/")[0] for key in hospital.have} >= {"RiskAssessment", "Observation", "Flag"}
    with service.state.store.write() as connection:
        now = int(who.at(9).timestamp() * 1e6)
        said = Said(merges=[Merge("encounter", "enc-1", "enc-2"), Merge("subject", "person of enc-2", "P")])
        take(connection, [said], now)
    assert until_told(pusher) > 0
    about = [r for key, r in hospital.have.items() if not key.startswith("Provenance/")]
    assert {r["encounter"]["identifier"]["value"] for r in about} == {"enc-2"}
    assert {r["subject"]["identifier"]["value"] for r in about} == {"P"}
    assert until_told(told()) == 0, "told once"


def test_a_server_that_is_away_is_told_later_and_nothing_is_lost(
    hospital: Hospital, told: Callable[[], Pusher], service: Any, patient: Any
):
    pusher = told()
    service.send(patient().rounds(range(6)).news(5.5))
    hospital.answer = 503
    with pytest.raises(PushError, match="503"):
        pusher.step()
    assert hospital.have == {}
    hospital.answer = 200
    hospital.tokens.clear()  # it has forgotten us meanwhile
    assert until_told(told()) > 0
    assert hospital.have


def test_one_refused_resource_is_noted_and_holds_up_nothing(
    hospital: Hospital, told: Callable[[], Pusher], service: Any, patient: Any
):
    pusher = told()
    hospital.entry = lambda entry: 422 if entry["resource"]["resourceType"] == "Provenance" else 201
    service.send(patient().rounds(range(6)).news(5.5))
    until_told(pusher)
    assert any(key.startswith("RiskAssessment/") for key in hospital.have)
    with service.state.store.read() as connection:
        found = pushes.problems(connection)
    assert set(found) == {(hospital.url, "Provenance 422")}
    assert f"Provenance 422            {hospital.url}" in report(service.settings).summary()
    hospital.entry = lambda entry: 429
    service.send(patient().rounds(range(7)).news(6.5))
    with pytest.raises(PushError, match="429"):
        until_told(pusher)


def test_an_entry_that_never_succeeds_does_not_hold_up_the_rest_for_ever(
    hospital: Hospital, told: Callable[[], Pusher], service: Any, patient: Any
):
    pusher = told()
    hospital.entry = lambda entry: 500 if entry["resource"]["resourceType"] == "Provenance" else 201
    service.send(patient().rounds(range(6)).news(5.5))
    for _ in range(PATIENCE - 1):
        with pytest.raises(PushError, match="500"):
            pusher.step()
    until_told(pusher)
    assert until_told(told()) == 0
    with service.state.store.read() as connection:
        assert set(pushes.problems(connection)) == {(hospital.url, "Provenance 500")}


def test_a_batch_that_one_resource_spoils_is_told_in_parts(
    hospital: Hospital, told: Callable[[], Pusher], service: Any, patient: Any
):
    pusher = told()
    take = hospital.take

    def spoilt(bundle: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        kinds = {entry["resource"]["resourceType"] for entry in bundle["entry"]}
        return (422, {}) if "Provenance" in kinds else take(bundle)

    hospital.take = spoilt  # type: ignore[method-assign]
    service.send(patient().rounds(range(6)).news(5.5))
    until_told(pusher)
    assert {key.partition("/")[0] for key in hospital.have} >= {"RiskAssessment", "Observation"}
    with service.state.store.read() as connection:
        assert set(pushes.problems(connection)) == {(hospital.url, "Provenance 422")}


def test_a_key_that_is_not_ours_gets_no_token(
    hospital: Hospital, told: Callable[[], Pusher], service: Any, patient: Any
):
    other = ec.generate_private_key(ec.SECP384R1()) if hospital.algorithm == "ES384" else None
    hospital.public = (other or rsa.generate_private_key(65537, 2048)).public_key()
    pusher = told()
    service.send(patient().rounds(range(6)).news(5.5))
    with pytest.raises(PushError, match="gave no token"):
        pusher.step()
    hospital.port = 1
    with pytest.raises(PushError, match="cannot be reached"):
        pusher.step()


def test_only_what_is_new_since_the_server_was_named_is_told(
    hospital: Hospital, told: Callable[[], Pusher], service: Any, patient: Any
):
    service.send(patient().rounds(range(6)).news(5.5))
    assert until_told(told()) == 0


def test_the_file_is_refused_by_the_name_of_its_entry(tmp_path: Path):
    def written(text: str) -> Path:
        (tmp_path / "push.toml").write_text(text, encoding="utf-8")
        return tmp_path / "push.toml"

    with pytest.raises(ConfigError, match="fhir"):
        read_target(written('fhir = "http://far.example.org"\nclient_id = "w"\nkey = "k"\n'))
    good = 'fhir = "https://ehr.example.org/fhir"\nclient_id = "w"\nkey = "k.json"\n'
    with pytest.raises(ConfigError, match="cannot be read"):
        read_target(written(good))
    (tmp_path / "k.json").write_text("{}")
    with pytest.raises(ConfigError, match="chmod 600"):
        read_target(written(good))
    (tmp_path / "k.json").chmod(0o600)
    with pytest.raises(ConfigError, match="private JWK"):
        read_target(written(good))
    with pytest.raises(ConfigError, match="send"):
        read_target(written(good + 'send = ["Patient"]\n'))
    with pytest.raises(ConfigError, match="not TOML"):
        read_target(written("fhir ="))
