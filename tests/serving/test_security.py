from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from serving.security.identity import Caller, Credentials, hashed
from serving.store.tables import audit, sessions

PATHS = [
    ("POST", "/cds-services/wardcast-sepsis"), ("POST", "/cds-services/wardcast-sepsis/feedback"),
    ("GET", "/v1/cds/feedback"), ("GET", "/fhir/RiskAssessment"), ("GET", "/fhir/Flag"), ("GET", "/cds-services/x"),
    ("GET", "/worklist"), ("GET", "/patient"), ("GET", "/model"), ("GET", "/"), ("GET", "/metrics"),
    ("GET", "/monitor"), ("GET", "/beds"), ("GET", "/openapi.json"), ("GET", "/v1/risk"), ("GET", "/v1/alerts"),
    ("GET", "/v1/model"), ("POST", "/v1/events"), ("POST", "/v1/sepsis/score"), ("POST", "/v1/alerts/acknowledge"),
    ("POST", "/patient/acknowledge"), ("POST", "/sign-out"), ("GET", "/no-such-path"), ("DELETE", "/v1/events"),
]  # fmt: skip
ROLES = {"vera": "viewer", "engine": "integrator", "ada": "admin"}


@pytest.fixture
def hospital(make_service: Any, tmp_path: Path) -> Any:
    """A service with three named callers; each one's token is their name."""
    path = tmp_path / "tokens.csv"
    path.write_text("\n".join(f"{n},{r},{hashed(n)}" for n, r in ROLES.items()))
    return make_service(TOKENS_FILE=str(path))


def as_(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def trail(service: Any) -> list[tuple[str, str, str, list[str]]]:
    with service.state.store.read() as connection:
        rows = connection.execute(
            select(audit.c.actor, audit.c.action, audit.c.outcome, audit.c.encounters).order_by(audit.c.seq)
        )
        return [(a, b, c, json.loads(d)) for a, b, c, d in rows]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_nothing_but_the_probes_answers_without_a_token(service: Any, method: str, path: str):
    for token in (None, "Bearer wrong", "Basic bG9jYWw6", "Bearer", "Bearer  "):
        headers = {} if token is None else {"Authorization": token}
        answer = service.client.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["error"]["code"] == "not_signed_in"


@pytest.mark.parametrize(
    "path", ["/healthz", "/livez", "/readyz", "/sign-in", "/cds-services", "/fhir/metadata"]
)
def test_probes_and_sign_in_answer_everyone(service: Any, path: str):
    assert service.client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("name", "method", "path", "status"),
    [
        ("vera", "POST", "/v1/events", 403), ("vera", "POST", "/v1/sepsis/score", 403),
        ("vera", "GET", "/worklist", 200),
        ("vera", "GET", "/v1/alerts", 200), ("engine", "GET", "/worklist", 403), ("engine", "GET", "/patient", 403),
        ("engine", "GET", "/v1/alerts", 200), ("engine", "GET", "/metrics", 200), ("engine", "GET", "/monitor", 403),
        ("ada", "GET", "/worklist", 200), ("ada", "GET", "/v1/alerts", 200),
    ],
)  # fmt: skip
def test_roles_may_do_their_own_things(hospital: Any, name: str, method: str, path: str, status: int):
    answer = hospital.client.request(method, path, headers=as_(name))
    assert answer.status_code == status


def test_every_denied_attempt_leaves_an_audit_row(hospital: Any):
    hospital.client.get("/v1/risk", params={"encounter": "Marple"})
    hospital.client.get("/Marple-in-the-path", headers={"Authorization": "Bearer Marple"})
    hospital.client.post("/v1/events", headers=as_("vera"), json={})
    hospital.client.post("/sign-in", data={"token": "Marple"})
    assert trail(hospital) == [
        ("unknown", "GET /v1/risk", "not_signed_in", []),
        ("unknown", "GET unknown", "not_signed_in", []),
        ("vera", "POST /v1/events", "role_not_allowed", []),
        ("unknown", "POST /sign-in", "denied", []),
    ]


def test_every_look_at_a_patient_leaves_an_audit_row(service: Any, patient: Any):
    who = patient().rounds(range(6), heart_rate=118, lactate=4.5)
    service.send(who.news(5))
    service.post("/v1/sepsis/score", patient("enc-2").rounds(range(3)).score_request(3))
    service.get("/v1/risk", encounter="enc-1")
    service.get("/v1/risk", encounter="nobody")
    service.get("/v1/alerts")
    service.get("/worklist")
    service.get("/patient", encounter="enc-1")
    alert = service.get("/v1/alerts").json()["alerts"][0]["alert_id"]
    service.post("/v1/alerts/acknowledge", {"alert_id": alert})
    assert trail(service) == [
        ("local", "receive", "done", ["enc-1"]),
        ("local", "score", "done", ["enc-2"]),
        ("local", "read risk", "done", ["enc-1"]),
        ("local", "read risk", "not_found", ["nobody"]),
        ("local", "read alerts", "done", ["enc-1"]),
        ("local", "read worklist", "done", ["enc-1"]),
        ("local", "read patient", "done", ["enc-1"]),
        ("local", "read alerts", "done", ["enc-1"]),
        ("local", "acknowledge seen", "done", ["enc-1"]),
    ]
    assert service.state.store.verify_audit() is None


def test_no_audit_no_answer(service: Any, patient: Any, monkeypatch: pytest.MonkeyPatch):
    from serving.store import audit as chain

    service.send(patient().rounds(range(3)).news(2))

    def broken(*_: Any) -> None:
        raise OSError("disk full of enc-1")

    monkeypatch.setattr(chain, "record", broken)
    for answer in (service.get("/v1/risk", encounter="enc-1"), service.get("/worklist")):
        assert answer.status_code == 503
        assert "enc-1" not in answer.text
        assert answer.json()["error"]["code"] == "store_unavailable"
    before = len(service.state.store.events(["enc-1"], patient().at(9)))
    assert service.post("/v1/events", patient().rounds(range(6)).news(5)).status_code == 503
    assert len(service.state.store.events(["enc-1"], patient().at(9))) == before


def sign_in(service: Any, token: str) -> Any:
    return service.client.post("/sign-in", data={"token": token})


def test_a_token_is_exchanged_for_a_strict_cookie(service: Any):
    answer = sign_in(service, service.settings.token)
    assert (answer.status_code, answer.headers["location"]) == (303, "/worklist")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert service.settings.token not in cookie
    assert service.client.get("/worklist").status_code == 200
    with service.state.store.read() as connection:
        row = connection.execute(select(sessions)).mappings().one()
    assert row["session_hash"] not in cookie


def test_a_wrong_token_does_not_sign_in_and_is_not_repeated(service: Any):
    answer = sign_in(service, "Marple<script>")
    assert answer.status_code == 401
    assert "Marple" not in answer.text
    assert "set-cookie" not in answer.headers


def test_an_integrator_gets_no_session(hospital: Any):
    assert sign_in(hospital, "engine").status_code == 401
    assert sign_in(hospital, "vera").status_code == 303


def test_signing_out_ends_the_session_on_the_server(service: Any):
    cookie = {"Cookie": sign_in(service, service.settings.token).headers["set-cookie"].split(";")[0]}
    service.client.cookies.clear()
    own = {"Sec-Fetch-Site": "same-origin"}
    assert service.client.get("/worklist", headers=cookie).status_code == 200
    assert service.client.post("/sign-out", headers=cookie | own).status_code == 303
    assert service.client.get("/worklist", headers=cookie).status_code == 401


def test_a_session_ends_with_the_token_that_opened_it(hospital: Any):
    cookie = {"Cookie": sign_in(hospital, "vera").headers["set-cookie"].split(";")[0]}
    hospital.client.cookies.clear()
    assert hospital.client.get("/worklist", headers=cookie).status_code == 200
    left = {n: r for n, r in ROLES.items() if n != "vera"}
    hospital.state.credentials = Credentials({hashed(n): Caller(n, r) for n, r in left.items()})
    assert hospital.client.get("/worklist", headers=cookie).status_code == 401


@pytest.mark.parametrize("column", ["seen_time", "started_time"])
def test_a_session_that_is_idle_or_old_ends(service: Any, column: str):
    sign_in(service, service.settings.token)
    age = {"seen_time": 31 * 60_000_000, "started_time": 12 * 3_600_000_000 + 1}[column]
    with service.state.store.write() as connection:
        connection.execute(update(sessions).values({column: sessions.c[column] - age}))
    assert service.client.get("/worklist").status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 404),
        ({"Origin": "http://testserver"}, 404),
    ],
)
def test_a_session_acts_only_from_our_own_pages(service: Any, headers: dict[str, str], status: int):
    sign_in(service, service.settings.token)
    answer = service.client.post("/v1/alerts/acknowledge", json={"alert_id": "0" * 32}, headers=headers)
    assert answer.status_code == status


def test_people_without_a_session_are_led_to_sign_in(service: Any):
    answer = service.client.get("/patient", params={"encounter": "Marple"}, headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")


def test_every_answer_is_hardened(service: Any):
    sign_in(service, service.settings.token)
    for path in ("/worklist", "/sign-in", "/healthz", "/v1/alerts", "/nothing"):
        headers = service.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-eval" not in policy
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
        assert not any(h.startswith("access-control") for h in headers)


def test_scripts_and_styles_need_the_nonce_of_their_answer(service: Any):
    first, second = service.get("/sign-in"), service.get("/sign-in")
    nonces = [
        re.search(r"script-src 'nonce-([^']+)'", a.headers["content-security-policy"]).group(1)
        for a in (first, second)
    ]
    assert nonces[0] != nonces[1]
    for answer, nonce in zip((first, second), nonces, strict=True):
        tags = re.findall(r"<(?:script|style)\b[^>]*>", answer.text)
        assert len(tags) == 2
        assert all(f'nonce="{nonce}"' in tag for tag in tags)


def test_no_page_names_another_host(service: Any, patient: Any):
    service.send(patient().rounds(range(6), heart_rate=118, lactate=4.5).news(5))
    for path in ("/sign-in", "/worklist", "/patient?encounter=enc-1", "/model"):
        text = service.client.get(path, headers=service.headers).text
        assert set(re.findall(r"(?:https?:)?//[\w.]+", text)) <= {"http://www.w3.org"}


def test_what_a_sender_writes_is_never_markup(service: Any, patient: Any):
    nasty = "<img src=x onerror=alert(1)>"
    who = patient(nasty).rounds(range(6), heart_rate=118, lactate=4.5)
    service.send({**who.news(5), "encounters": [who.encounter | {"unit": nasty, "specialty": "'\"><b>"}]})
    for path in ("/worklist", "/patient"):
        answer = service.get(path, encounter=nasty) if path == "/patient" else service.get(path)
        assert answer.status_code == 200
        assert "<img" not in answer.text
        assert "<b>" not in answer.text
        assert "&lt;img src=x" in answer.text


@pytest.mark.both_stores
def test_nothing_of_a_patient_reaches_log_or_metrics(
    service: Any, patient: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    """Planted identities and values in every route, also the failing ones; then all outputs are searched."""
    logging.getLogger("wardcast").propagate = True
    with caplog.at_level(logging.DEBUG):
        who = patient("Marple-Q4711").rounds(range(6), heart_rate=118).measure(5, "lactate", 4.7731)
        service.send(who.news(5))
        service.post("/v1/sepsis/score", who.score_request(5))
        service.post(
            "/v1/sepsis/score",
            {"encounter": {"encounter_id": "Marple-Q4711", "Marple-Q4711": 4.7731}, "events": "4.7731"},
        )
        for path in ("/v1/risk", "/patient", "/Marple-Q4711", "/worklist", "/v1/alerts"):
            service.get(path, encounter="Marple-Q4711", Marple="Q4711")
            service.client.get(
                f"{path}?encounter=Marple-Q4711", headers={"Authorization": "Bearer Marple-Q4711"}
            )
        service.client.request("MARPLE", "/Marple-Q4711")
        metrics = service.get("/metrics").text
    said = capfd.readouterr()
    ours = [
        r.getMessage() for r in caplog.records if not r.name.startswith("httpx")
    ]  # the test's own client logs URLs
    outputs = "\n".join(ours) + metrics + said.out + said.err
    assert "route=/v1/risk" in outputs
    # None that a time or a duration among the metrics could spell by chance.
    for secret in (
        "Marple",
        "Q4711",
        "MARPLE",
        "4.7731",
        str(service.settings.token),
        service.settings.store_key or "there is no key",
        "p@ss",  # of the PostgreSQL server
    ):
        assert secret not in outputs


def test_metrics_count_by_route_never_by_what_was_asked(service: Any):
    for k in range(30):
        service.get(f"/patient-{k}")
    text = service.get("/metrics").text
    assert 'route="unknown"' in text
    assert "patient-1" not in text
