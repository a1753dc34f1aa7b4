"""CDS Hooks 2.0 as an EHR meets it. ``cds_hooks_requirements.csv`` names these tests by requirement."""

from __future__ import annotations

import json
import re
import time
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from serving.interop.cards import REASON_SYSTEM, Situation, card, markdown, override_reasons
from serving.store.tables import audit, cds_cards, cds_feedback

SERVICE = "/cds-services/wardcast-sepsis"
FEEDBACK = f"{SERVICE}/feedback"
ORIGIN = "https://ehr.example.org"


def services(ehr: Any) -> list[dict[str, Any]]:
    return ehr.service.client.get("/cds-services").json()["services"]


def the_card(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    (card,) = answer.json()["cards"]
    return card


def check_card(card: dict[str, Any]) -> None:
    """What the standard and HL7's invariants ask of a card."""
    assert set(card) <= {"uuid", "summary", "detail", "indicator", "source", "overrideReasons", "links"}
    assert str(uuid.UUID(card["uuid"])) == card["uuid"]
    assert isinstance(card["summary"], str)
    assert 0 < len(card["summary"]) < 140
    assert card["indicator"] in ("info", "warning", "critical")
    assert set(card["source"]) == {"label", "url"}
    assert isinstance(card["source"]["label"], str)
    assert re.fullmatch(r"https?://[^\s?#]+", card["source"]["url"]), "the source leads to no patient"
    assert isinstance(card["detail"], str)
    for reason in card["overrideReasons"]:
        assert set(reason) == {"code", "system", "display"}
        assert all(isinstance(text, str) and text for text in reason.values())
    for link in card.get("links", []):
        assert set(link) == {"label", "url", "type"}, "appContext is for SMART links only"
        assert link["type"] in ("absolute", "smart")
        assert re.match(r"https?://[^\s]+$", link["url"])
        assert link["label"]


def nothing_is_null_or_empty(value: Any, name: str = "") -> None:
    assert value is not None, name
    if isinstance(value, dict | list | str) and name != "cards":
        assert len(value), name
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        nothing_is_null_or_empty(part, str(key))


# ---- discovery ---------------------------------------------------------------------------------------------------


def test_discovery_is_open_json_and_always_there(ehr: Any, make_service: Any):
    for client in (ehr.service.client, make_service().client):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = client.get("/cds-services", headers=headers)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "application/json"
            assert isinstance(answer.json()["services"], list)
    nothing_is_null_or_empty(answer.json())


def test_each_service_says_its_hook_id_title_and_description(ehr: Any):
    for service in services(ehr):
        assert all(isinstance(service[name], str) for name in ("hook", "id", "title", "description"))


def test_two_hooks_share_an_id_so_that_old_guidance_is_replaced(ehr: Any):
    assert {s["hook"] for s in services(ehr)} == {"patient-view", "encounter-discharge"}
    assert {s["id"] for s in services(ehr)} == {"wardcast-sepsis"}


def test_prefetch_reads_what_root_fields_of_the_context_name(ehr: Any):
    for service in services(ehr):
        assert set(service["prefetch"]) == {"patient", "encounter"}
        for template in service["prefetch"].values():
            assert re.fullmatch(r"(Patient|Encounter)/\{\{context\.(patientId|encounterId)\}\}", template)


def test_a_service_answers_at_its_address(septic: Any):
    for service in services(septic):
        assert septic.post(septic.request(), f"/cds-services/{service['id']}").status_code == 200
    assert septic.post({}, "/cds-services/another").status_code in (401, 404)


# ---- cards -------------------------------------------------------------------------------------------------------


def test_an_open_chart_gets_the_standing_risk_with_its_reasons(septic: Any):
    answer = septic.open_chart()
    card = the_card(answer)
    check_card(card)
    nothing_is_null_or_empty(answer.json())
    assert answer.headers["content-type"] == "application/json"
    risk = septic.service.get("/v1/risk", encounter="enc-1").json()
    assert (
        card["summary"]
        == f"Sepsis risk {risk['probability'] * 100:.0f} %: at or above the threshold of 8.0 %"
    )
    assert card["indicator"] == "critical"
    assert "Lactate" in card["detail"]
    assert "raises risk" in card["detail"]
    assert risk["model"].replace("_", "\\_") in card["detail"]
    assert card["links"][0]["url"] == "http://127.0.0.1:3000/patient?encounter=enc-1"


def test_a_card_is_another_card_each_time_but_the_score_behind_it_stands(septic: Any):
    first, second = (the_card(septic.open_chart()) for _ in range(2))
    assert first["uuid"] != second["uuid"]
    with septic.service.state.store.read() as connection:
        rows = connection.execute(select(cds_cards)).mappings().all()
    assert {r["card_id"] for r in rows} == {first["uuid"], second["uuid"]}
    assert len({r["prediction_id"] for r in rows}) == 1
    assert {(r["client"], r["status"], r["indicator"]) for r in rows} == {("ehr", "scored", "critical")}


def test_an_alert_that_somebody_has_acknowledged_is_a_warning(septic: Any):
    alert = septic.service.get("/v1/alerts").json()["alerts"][0]["alert_id"]
    septic.service.post("/v1/alerts/acknowledge", {"alert_id": alert})
    assert the_card(septic.open_chart())["indicator"] == "warning"


def test_a_card_says_what_makes_its_score_doubtful(septic: Any):
    home = septic.service.settings.var / "monitor"
    home.mkdir(parents=True, exist_ok=True)
    alarm = {
        "kind": "unit_wrong",
        "what": "Lactate: <b>mg/dL</b>.",
        "where": "unit ICU-A",
        "units": ["ICU-A"],
    }
    told = {
        "now": septic.service.state.now_us(),
        "alarms": [alarm | {"since": septic.service.state.now_us()}],
    }
    (home / "alarms.json").write_text(json.dumps(told))
    card = the_card(septic.open_chart())
    check_card(card)
    assert "**Degraded.** Lactate: &lt;b&gt;mg/dL&lt;/b&gt;. (unit ICU-A, since " in card["detail"]


def test_below_the_threshold_there_is_nothing_to_say(make_ehr: Any, patient: Any):
    quiet = make_ehr()
    who = patient("well").rounds(range(6), heart_rate=62, lactate=0.8)
    quiet.service.send(who.news(5))
    quiet.knows(who)
    assert quiet.open_chart("well").json() == {"cards": []}
    talkative = make_ehr(cards='below_threshold = "info"', VAR=str(quiet.service.settings.var))
    card = the_card(talkative.open_chart("well"))
    check_card(card)
    assert "below the threshold" in card["summary"]
    assert card["indicator"] == "info"
    discharge = talkative.request("well", hook="encounter-discharge")
    assert talkative.post(discharge).json() == {"cards": []}


def test_who_left_has_no_risk_now(septic: Any, patient: Any):
    who = patient()
    told = {"encounter_id": "enc-1", "discharge_time": who.at(6).isoformat()}
    septic.service.send({"encounters": [told], "as_of": who.at(6).isoformat()})
    assert septic.open_chart().json() == {"cards": []}


def test_a_discharge_at_high_risk_is_warned_of(septic: Any):
    body = septic.request(hook="encounter-discharge")
    card = the_card(septic.post(body))
    check_card(card)
    assert card["indicator"] == "critical"


@pytest.mark.parametrize(
    ("told", "status", "words"),
    [
        ({}, "insufficient_data", "too few recent vital signs"),
        ({"encounter_class": "ward"}, "out_of_scope", "outside what the model was made for"),
        ({"age_years": 12.0}, "out_of_scope", "outside what the model was made for"),
        ({"age_years": None}, "insufficient_data", "too little is known"),
    ],
)
def test_what_is_not_scored_says_why(ehr: Any, patient: Any, told: dict[str, Any], status: str, words: str):
    who = patient().measure(1, "heart_rate", 96)
    for name, value in told.items():
        setattr(who, name, value)
    ehr.service.send(who.news(1))
    ehr.knows(who)
    answer = ehr.open_chart()
    card = the_card(answer)
    check_card(card)
    nothing_is_null_or_empty(answer.json())
    assert card["indicator"] == "info"
    assert card["summary"] == f"Sepsis risk not scored: {words}"
    assert markdown(status) in card["detail"]
    assert "not a low risk" in card["detail"]


def test_silence_about_those_out_of_scope_is_a_setting(make_ehr: Any, patient: Any):
    ehr = make_ehr(cards='out_of_scope = "none"')
    who = patient(encounter_class="ward").measure(1, "heart_rate", 96)
    ehr.service.send(who.news(1))
    ehr.knows(who)
    assert ehr.open_chart().json() == {"cards": []}


def test_a_service_without_a_model_says_so(make_ehr: Any, patient: Any, tmp_path: Any):
    ehr = make_ehr(SEPSIS_MODEL=str(tmp_path / "nothing"))
    who = patient().measure(1, "heart_rate", 96)
    ehr.service.send(who.news(1))
    ehr.knows(who)
    card = the_card(ehr.open_chart())
    check_card(card)
    assert card["summary"] == "Sepsis risk not scored: no model is loaded"


def test_the_answer_comes_within_half_a_second(septic: Any):
    septic.open_chart()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        septic.post(septic.request())
        times.append(time.perf_counter() - began)
    assert sorted(times)[2] < 0.5


TEXT = st.text(max_size=300)


@given(
    status=st.sampled_from(
        ["scored", "insufficient_data", "out_of_scope", "unknown_encounter", "feed_down", "<b>"]
    ),
    who=st.one_of(st.none(), st.text(min_size=1, max_size=128)),
    probability=st.floats(0, 1),
    alert=st.booleans(),
    reasons=st.lists(TEXT, max_size=5),
    waits=st.booleans(),
    lacking=st.lists(TEXT, max_size=7),
)
def test_whatever_the_situation_a_card_is_as_the_standard_wants(
    scorer: Any,
    status: str,
    who: Any,
    probability: float,
    alert: bool,
    reasons: Any,
    waits: bool,
    lacking: Any,
):
    import json

    row = {
        "probability": probability, "alert": alert, "prediction_time": 1_772_000_000_000_000, "model_id": "sepsis@1",
        "reasons": json.dumps(reasons) if reasons else None,
    }  # fmt: skip
    made = card(
        Situation(status, who, row, waits, None, lacking, ()),
        scorer,
        "https://risk.example.org",
        1_772_000_000_000_000,
        "UTC",
    )
    check_card(made)
    nothing_is_null_or_empty(made)
    assert "<" not in made["detail"]
    assert json.loads(json.dumps(made)) == made


@pytest.fixture(scope="module")
def scorer(bundle: Any) -> Any:
    from serving.scoring import Scorer

    return Scorer(bundle)


@given(TEXT)
def test_text_stays_text_in_markdown(text: str):
    from html import unescape

    from markdown_it import MarkdownIt

    shown = (
        MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .render("x" + markdown(text) + "x")
    )
    assert not re.search(r"<(?!/?p>|br ?/?>|hr ?/?>|/?(ul|ol|li|h[12]|pre|code|blockquote)\b)", shown)
    assert "<script" not in unescape(shown) or "<script" in text


# ---- prefetch and the FHIR server --------------------------------------------------------------------------------


AUTHORIZATION = {
    "access_token": "fhir-access-token", "token_type": "Bearer", "expires_in": 300,
    "scope": "user/Patient.read user/Encounter.read", "subject": "wardcast",
}  # fmt: skip


def by_server(ehr: Any, **more: Any) -> dict[str, Any]:
    asked = {"fhirServer": ehr.fhir.address, "fhirAuthorization": AUTHORIZATION}
    return ehr.request(prefetch=None, **asked | more)


def test_the_fhir_server_serves_where_nothing_was_prefetched(septic: Any):
    assert the_card(septic.post(by_server(septic)))["summary"] == the_card(septic.open_chart())["summary"]
    assert the_card(septic.post(by_server(septic, fhirServer=septic.fhir.address + "/")))
    asked = [path for path, _ in septic.fhir.asked]
    assert asked == ["/fhir/Patient/pat-1", "/fhir/Encounter/enc-1"] * 2
    assert {token for _, token in septic.fhir.asked} == {"Bearer fhir-access-token"}


def test_an_operation_outcome_is_no_data_and_null_is(septic: Any):
    failed = {"patient": {"resourceType": "OperationOutcome", "issue": []}, "encounter": None}
    body = septic.request(prefetch=failed)
    assert septic.post(body).status_code == 412
    body = by_server(septic) | {"prefetch": failed}
    assert the_card(septic.post(body))["indicator"] == "critical", "known by its id alone"
    assert [path for path, _ in septic.fhir.asked] == ["/fhir/Patient/pat-1"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"fhirServer": None, "fhirAuthorization": None}, "no fhirServer was named"),
        ({"fhirServer": "http://127.0.0.1:9/fhir"}, "not among those registered"),
        ({"fhirServer": "http://169.254.169.254/latest"}, "not among those registered"),
        ({"fhirAuthorization": None}, "no fhirAuthorization"),
        ({"fhirAuthorization": AUTHORIZATION | {"expires_in": 0}}, "no fhirAuthorization"),
        ({"fhirAuthorization": AUTHORIZATION | {"access_token": "old"}}, "did not give it"),
    ],
)
def test_what_cannot_be_had_is_412_and_says_why(septic: Any, more: dict[str, Any], why: str):
    answer = septic.post(by_server(septic, **more))
    assert answer.status_code == 412
    error = answer.json()["error"]
    assert error["code"] == "prefetch_missing"
    assert error["fields"][0]["field"] == "prefetch.patient"
    assert why in error["fields"][0]["problem"]
    assert "pat-1" not in answer.text


@pytest.mark.parametrize(
    "given_back",
    [
        (302, {"Location": "http://169.254.169.254/"}, b""),
        (500, {}, b"{}"),
        (200, {}, b"not json"),
        (200, {}, b'{"resourceType": "OperationOutcome"}'),
        (200, {}, b'{"resourceType": "Patient", "x": "' + b"y" * 2_000_000 + b'"}'),
    ],
)
def test_a_fhir_server_that_misbehaves_is_412(septic: Any, given_back: Any):
    septic.fhir.answer = given_back
    assert septic.post(by_server(septic)).status_code == 412
    assert len(septic.fhir.asked) == 1


def test_no_server_is_called_for_a_token_of_ours(septic: Any):
    answer = septic.service.post(SERVICE, by_server(septic))
    assert answer.status_code == 412
    assert septic.fhir.asked == []


# ---- whose chart -------------------------------------------------------------------------------------------------


def test_an_encounter_is_known_by_any_identifier_it_was_fed_with(septic: Any, patient: Any):
    septic.knows(patient(), patient="fhir-7", encounter="fhir-9")
    assert the_card(septic.open_chart("fhir-9", "fhir-7"))["indicator"] == "critical"
    septic.fhir.resources["Encounter/fhir-9"]["identifier"] = [{"value": "someone"}]
    assert "nothing has been received" in the_card(septic.open_chart("fhir-9", "fhir-7"))["summary"]


def test_identifiers_of_one_system_only_where_the_site_says_so(make_ehr: Any, patient: Any):
    ehr = make_ehr('encounter_system = "urn:visit"\npatient_system = "urn:mrn"')
    who = patient().rounds(range(6), heart_rate=128, lactate=5.5)
    ehr.service.send(who.news(5))
    ehr.knows(who, encounter="fhir-9")
    assert the_card(ehr.open_chart("fhir-9"))["indicator"] == "critical"
    ehr.fhir.resources["Encounter/fhir-9"]["identifier"][0]["system"] = "urn:other"
    assert "nothing has been received" in the_card(ehr.open_chart("fhir-9"))["summary"]


@pytest.mark.both_stores
def test_merged_identities_lead_to_the_one_that_lives_on(septic: Any):
    from serving.store import people

    septic.fhir.resources["Patient/old"] = {"resourceType": "Patient", "id": "old"}
    septic.fhir.resources["Encounter/gone"] = {"resourceType": "Encounter", "id": "gone"}
    assert "nothing has been received" in the_card(septic.open_chart("gone", "old"))["summary"]
    with septic.service.state.store.write() as connection:
        people.add_merge(connection, "subject", "old", "person of enc-1", 0)
        people.add_merge(connection, "encounter", "gone", "enc-1", 0)
    assert the_card(septic.open_chart("gone", "old"))["indicator"] == "critical"
    assert the_card(septic.open_chart(None, "old"))["indicator"] == "critical"


def test_a_hook_that_waited_too_long_gets_the_last_score_and_is_told_so(
    septic: Any, patient: Any, monkeypatch: pytest.MonkeyPatch
):
    from serving.interop import cds_hooks

    septic.service.send({"encounters": [patient("enc-2").encounter], "as_of": patient().at(6).isoformat()})

    def made() -> int:
        with septic.service.state.store.read() as connection:
            query = "select count(*) from predictions where encounter_id = 'enc-1'"
            return int(connection.exec_driver_sql(query).scalar())

    before = made()
    with monkeypatch.context() as patched:
        patched.setattr(cds_hooks, "BUDGET_S", -1.0)
        late = the_card(septic.open_chart())
    assert "**Over budget.**" in late["detail"]
    assert made() == before, "nothing is computed for who cannot wait"
    with septic.service.state.store.read() as connection:
        statuses = connection.exec_driver_sql("select status from cds_cards").scalars().all()
    assert statuses == ["over_budget"], "and that can be counted"
    assert "Over budget" not in the_card(septic.open_chart())["detail"]
    assert made() == before + 1


def test_another_patients_encounter_is_not_shown(septic: Any, patient: Any):
    septic.knows(patient("enc-2"), patient="pat-2", encounter="enc-2")
    card = the_card(septic.open_chart("enc-1", "pat-2"))
    assert card["summary"] == "Sepsis risk not scored: the encounter belongs to another patient here"
    assert "links" not in card
    body = septic.request("enc-1", "pat-1")
    body["prefetch"]["patient"]["id"] = "pat-2"
    assert septic.post(body).status_code == 422


def test_where_no_encounter_is_named_it_is_the_present_one(septic: Any, patient: Any):
    assert the_card(septic.open_chart(None))["indicator"] == "critical"
    earlier = patient("enc-0").encounter | {"subject_id": "person of enc-1", "encounter_class": "ed"}
    septic.service.send({"encounters": [earlier]})
    assert the_card(septic.open_chart(None))["indicator"] == "critical", "the attendance is out of scope"
    septic.service.send({"encounters": [earlier | {"encounter_class": "icu"}]})
    assert "not certain which encounter" in the_card(septic.open_chart(None))["summary"]
    septic.fhir.resources["Patient/pat-9"] = {"resourceType": "Patient", "id": "pat-9"}
    assert "nothing has been received" in the_card(septic.open_chart(None, "pat-9"))["summary"]


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hook": "order-select"}, "hook"),
        ({"hookInstance": "1"}, "hookInstance"),
        ({"hookInstance": None}, "hookInstance"),
        ({"context": {"userId": "Practitioner/1"}}, "context.patientId"),
        ({"context": {"userId": "Practitioner/1", "patientId": "../Patient"}}, "context.patientId"),
        (
            {"context": {"userId": "Practitioner/1", "patientId": "p"}, "hook": "encounter-discharge"},
            "encounterId",
        ),
        ({"fhirAuthorization": AUTHORIZATION}, "fhirServer"),
        (
            {"fhirServer": "x", "fhirAuthorization": AUTHORIZATION | {"token_type": "MAC"}},
            "fhirAuthorization.token_type",
        ),
        ({"extension": ["a"]}, "extension"),
        ({"prefetch": []}, "prefetch"),
    ],
)
def test_a_request_that_is_wrong_is_told_where(ehr: Any, change: dict[str, Any], field: str):
    answer = ehr.post({k: v for k, v in (ehr.request() | change).items() if v is not None})
    assert answer.status_code == 422
    assert field in [f["field"] for f in answer.json()["error"]["fields"]]


def test_extensions_and_fields_of_the_vendor_are_left_alone(septic: Any):
    body = septic.request(extension={"org.example.ehr": {"x": [None]}}, vendorField=1)
    body["context"]["unit"] = "ICU"
    body["prefetch"]["more"] = {"resourceType": "Bundle"}
    assert the_card(septic.post(body))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 9999])
def test_what_is_no_request_is_refused(ehr: Any, content: bytes):
    headers = {"Authorization": f"Bearer {ehr.token()}", "Content-Type": "application/json"}
    assert ehr.service.client.post(SERVICE, content=content, headers=headers).status_code in (400, 422)


# ---- feedback ----------------------------------------------------------------------------------------------------


def overridden(
    card: str, when: str = "2026-03-01T12:00:00Z", code: str = "already-treated", **more: Any
) -> Any:
    reason = {"reason": {"code": code, "system": REASON_SYSTEM}} | more
    return {"card": card, "outcome": "overridden", "overrideReason": reason, "outcomeTimestamp": when}


@pytest.mark.both_stores
def test_feedback_is_kept_once_and_counted(septic: Any):
    card = the_card(septic.open_chart())["uuid"]
    said = [
        overridden(card, userComment="seen by the ward"),
        overridden(card, "2026-03-01T12:05:00Z", "own-code"),
    ]
    said.append({"card": card, "outcome": "overridden", "outcomeTimestamp": "2026-03-01T12:06:00+02:00"})
    said.append(overridden(str(uuid.uuid4())))
    verdicts = [
        [one["verdict"] for one in septic.post({"feedback": said}, FEEDBACK).json()["feedback"]]
        for _ in range(2)
    ]
    assert verdicts == [["accepted"] * 3 + ["unknown_card"], ["duplicate"] * 3 + ["unknown_card"]]
    with septic.service.state.store.read() as connection:
        rows = connection.execute(select(cds_feedback)).mappings().all()
    assert [r["comment"] for r in rows] == ["seen by the ward", None, None]
    counts = septic.service.get("/v1/cds/feedback").json()
    assert counts["cards"] == [
        {"hook": "patient-view", "status": "scored", "indicator": "critical", "count": 1}
    ]
    assert sorted((f["reason_code"] or "", f["count"]) for f in counts["feedback"]) == [
        ("", 1), ("already-treated", 1), ("own-code", 1),
    ]  # fmt: skip
    text = septic.service.get("/metrics").text
    assert 'wardcast_cds_feedback_total{outcome="overridden",reason="already-treated"} 1.0' in text
    assert 'wardcast_cds_feedback_total{outcome="overridden",reason="other"} 1.0' in text
    assert "own-code" not in text
    assert 'wardcast_cds_cards_total{hook="patient-view",indicator="critical"} 1.0' in text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"outcome": "ignored"}, "outcome"),
        ({"outcome": "accepted", "overrideReason": None}, "acceptedSuggestions"),
        ({"outcomeTimestamp": "2026-03-01T12:00:00"}, "outcomeTimestamp"),
        ({"card": "card"}, "card"),
        ({"overrideReason": {}}, "reason"),
    ],
)
def test_feedback_that_is_wrong_is_told_where(ehr: Any, change: dict[str, Any], field: str):
    said = overridden(str(uuid.uuid4())) | change
    answer = ehr.post({"feedback": [{k: v for k, v in said.items() if v is not None}]}, FEEDBACK)
    assert answer.status_code == 422
    assert any(f["field"].endswith(field) for f in answer.json()["error"]["fields"])


@pytest.mark.both_stores
def test_every_card_and_every_feedback_leaves_an_audit_row(septic: Any):
    card = the_card(septic.open_chart())["uuid"]
    septic.open_chart("nobody")
    septic.post({"feedback": [overridden(card)]}, FEEDBACK)
    with septic.service.state.store.read() as connection:
        columns = audit.c.actor, audit.c.role, audit.c.action, audit.c.outcome, audit.c.encounters
        rows = [tuple(r) for r in connection.execute(select(*columns).order_by(audit.c.seq))]
    assert rows[1:] == [
        ("ehr", "cds_client", "card patient-view", "done", '["enc-1"]'),
        ("ehr", "cds_client", "card patient-view", "not_found", '["nobody"]'),
        ("ehr", "cds_client", "card feedback", "done", '["enc-1"]'),
    ]
    assert septic.service.state.store.verify_audit() is None


def test_nothing_of_a_patient_or_a_token_is_logged(septic: Any, caplog: pytest.LogCaptureFixture, capfd: Any):
    caplog.set_level("DEBUG")
    token = septic.token()
    septic.post(by_server(septic), token=token)
    septic.fhir.answer = (500, {}, b"")
    septic.post(by_server(septic))
    septic.post(septic.request(), token=token)
    septic.post(septic.request("nobody"))
    said = caplog.text + "".join(capfd.readouterr()) + septic.service.get("/metrics").text
    for secret in (token, token.split(".")[2], "fhir-access-token", "enc-1", "pat-1", "nobody", "person of"):
        assert secret not in said


# ---- across origins ----------------------------------------------------------------------------------------------


def test_a_registered_origin_may_call_from_a_browser(septic: Any):
    client = septic.service.client
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    for path in (SERVICE, FEEDBACK):
        answer = client.options(path, headers={"Origin": ORIGIN} | asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    answer = client.get("/cds-services", headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in answer.headers
    refused = client.post(SERVICE, json={}, headers={"Origin": ORIGIN})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)


def test_no_other_origin_and_no_other_route(septic: Any):
    client = septic.service.client
    asked = {"Access-Control-Request-Method": "POST"}
    for origin, path in (("https://evil.example", SERVICE), (ORIGIN, "/v1/events"), ("null", SERVICE)):
        answer = client.options(path, headers={"Origin": origin} | asked)
        assert answer.status_code >= 400
        assert "access-control-allow-origin" not in answer.headers
    assert "access-control-allow-origin" not in client.get("/v1/risk", headers={"Origin": ORIGIN}).headers


def test_every_override_reason_has_a_code_and_words():
    codes = [reason["code"] for reason in override_reasons()]
    assert len(codes) == len(set(codes)) >= 5
