"""FHIR R4 out: shapes by an independent library, states by small stories."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from features.errors import DataError
from serving.interop.resources import probability_of
from serving.store.tables import audit


def check(resource: dict[str, Any]) -> None:
    """Read a resource, and all that it contains, as FHIR R4B does."""
    import importlib

    kind = resource["resourceType"]
    model = getattr(importlib.import_module(f"fhir.resources.R4B.{kind.lower()}"), kind)
    model.model_validate(resource)
    for contained in resource.get("contained", []):
        check(contained)


def search(service: Any, kind: str, **params: str) -> list[dict[str, Any]]:
    answer = service.get(f"/fhir/{kind}", **params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/fhir+json"
    found = answer.json()
    check(found)
    for entry in found.get("entry", []):
        check(entry["resource"])
    assert found["type"] == "searchset"
    return [entry["resource"] for entry in found.get("entry", [])]


@pytest.fixture
def stay(service: Any, patient: Any) -> Any:
    """A patient whose lactate was measured under an identity of its own, scored at six hours."""
    who = patient().rounds(range(6), heart_rate=120)
    who.measure(5, "lactate", 5.5, source_id="lab-1")
    service.send(who.news(5))
    return who


def say(service: Any, who: Any, hour: float, **event: Any) -> None:
    told = {"encounter_id": who.encounter_id, "concept": "lactate", "time": who.at(5).isoformat()} | event
    service.send({"events": [told], "as_of": who.at(hour).isoformat()})


def test_a_score_is_a_risk_assessment(service: Any, stay: Any):
    (found,) = search(service, "RiskAssessment", encounter="enc-1")
    risk = service.get("/v1/risk", encounter="enc-1", explain="true").json()
    (prediction,) = found["prediction"]
    assert found["id"] == risk["prediction_id"]
    assert found["status"] == "final"
    assert prediction["probabilityDecimal"] == risk["probability"]
    assert prediction["outcome"]["coding"][0]["code"] == "91302008"
    assert prediction["qualitativeRisk"]["text"] == "at or above the threshold of 0.08"
    assert risk["explanation"]["reasons"][0]["text"] in prediction["rationale"]
    assert found["method"]["text"] == f"Wardcast {risk['model']}"
    assert found["occurrenceDateTime"] == risk["prediction_time"]
    assert found["subject"]["identifier"]["value"] == "person of enc-1"
    assert found["encounter"]["identifier"]["value"] == "enc-1"
    read = {b["identifier"]["value"]: b["display"] for b in found["basis"]}
    assert read["lab-1"].startswith("Lactate 5.5 mmol/L, 2026-03-01T11:00:00")
    assert len(read) == 7, "the latest value of each concept"


def test_the_newest_assessment_is_of_now(service: Any, stay: Any):
    service.send({"encounters": [], "as_of": stay.at(7).isoformat()})
    newest, before = search(service, "RiskAssessment", encounter="Encounter/enc-1")
    assert newest["occurrenceDateTime"] == "2026-03-01T13:00:00Z"
    assert search(service, "RiskAssessment", _id=before["id"]) == [before]


def test_what_was_not_scored_is_an_observation_with_a_reason(service: Any, patient: Any):
    service.send(patient("few").measure(1, "heart_rate", 96).news(1))
    service.send(patient("child", age_years=9.0).rounds(range(3)).news(2))
    assert search(service, "RiskAssessment", encounter="few") == []
    for who, code in (("few", "temp-unknown"), ("child", "not-applicable")):
        found, *_ = search(service, "Observation", encounter=who)
        assert found["dataAbsentReason"]["coding"][0]["code"] == code
        assert "valueQuantity" not in found, "what is not known is not 0"
    assert (
        "insufficient_data" in search(service, "Observation", encounter="few")[0]["dataAbsentReason"]["text"]
    )


def test_a_score_is_an_observation_too(service: Any, stay: Any):
    (found,) = search(service, "Observation", encounter="enc-1")
    assert "dataAbsentReason" not in found
    assert found["valueQuantity"]["code"] == "1"
    assert 0 < found["valueQuantity"]["value"] < 1


def test_an_assessment_says_when_a_value_it_read_was_corrected(service: Any, stay: Any):
    say(service, stay, 6, value=1.1, status="corrected", source_id="lab-1")
    newest, before = search(service, "RiskAssessment", encounter="enc-1")
    assert (newest["status"], before["status"]) == ("final", "corrected")
    assert "note" not in newest
    assert "corrected later (2026-03-01T12:00:00Z)" in before["note"][0]["text"]
    assert before["meta"]["lastUpdated"] == "2026-03-01T12:00:00Z"
    assert newest["prediction"][0]["probabilityDecimal"] < before["prediction"][0]["probabilityDecimal"]


@pytest.mark.both_stores
def test_an_assessment_that_read_a_withdrawn_value_is_in_error(service: Any, stay: Any):
    say(service, stay, 6, value=1.1, status="corrected", source_id="lab-1")
    say(service, stay, 7, status="deleted", source_id="lab-1")
    newest, *before = search(service, "RiskAssessment", encounter="enc-1")
    assert newest["status"] == "final"
    assert [b["status"] for b in before] == ["entered-in-error"] * 2
    (_, *observed) = search(service, "Observation", encounter="enc-1")
    assert [o["status"] for o in observed] == ["entered-in-error"] * 2
    assert all("lab-1" not in json.dumps(newest["basis"]) for _ in before)


def test_news_that_corrects_nothing_leaves_an_assessment_final(service: Any, stay: Any):
    say(service, stay, 6, time=stay.at(6).isoformat(), value=3.0, source_id="lab-2")
    say(service, stay, 7, time=stay.at(6).isoformat(), value=2.0, source_id="lab-2", status="corrected")
    found = search(service, "RiskAssessment", encounter="enc-1")
    assert [f["status"] for f in found] == ["final", "corrected", "final"]


@pytest.mark.both_stores
def test_an_alert_is_a_flag_until_it_ends(service: Any, stay: Any):
    (flag,) = search(service, "Flag", encounter="enc-1")
    assert (flag["status"], set(flag["period"])) == ("active", {"start"})
    told = {"encounter_id": "enc-1", "discharge_time": stay.at(6).isoformat()}
    service.send({"encounters": [told], "as_of": stay.at(6).isoformat()})
    (flag,) = search(service, "Flag", encounter="enc-1")
    assert (flag["status"], flag["period"]["end"]) == ("inactive", "2026-03-01T12:00:00Z")


def test_a_provenance_names_model_and_inputs(service: Any, stay: Any):
    assessment, provenance = search(
        service, "RiskAssessment", encounter="enc-1", _revinclude="Provenance:target"
    )
    assert provenance["target"] == [{"reference": f"RiskAssessment/{assessment['id']}"}]
    model = service.get("/v1/model").json()["model"]
    assert provenance["contained"][0]["identifier"][0]["value"] == model
    roles = [(e["role"], e["what"]["identifier"]["value"]) for e in provenance["entity"]]
    assert roles[0] == ("derivation", model)
    assert ("source", "lab-1") in roles
    assert search(service, "Provenance", target=f"RiskAssessment/{assessment['id']}") == [provenance]


@pytest.mark.both_stores
def test_pages_are_linked_and_complete(service: Any, patient: Any):
    who = patient().rounds(range(8), heart_rate=120)
    for hour in range(8):
        service.send(who.news(hour, hour - 1))
    address, seen = "/fhir/Observation?encounter=enc-1&_count=3", []
    while address:
        page = service.client.get(address, headers=service.headers).json()
        assert page["total"] == 8
        seen += [entry["resource"]["effectiveDateTime"] for entry in page["entry"]]
        following = [link["url"] for link in page["link"] if link["relation"] == "next"]
        address = following[0].removeprefix("http://127.0.0.1:3000") if following else ""
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 8


def test_an_unknown_encounter_does_not_read_as_no_risk(service: Any):
    for kind in ("RiskAssessment", "Observation", "Flag"):
        (found,) = search(service, kind, encounter="nobody")
        assert found["resourceType"] == "OperationOutcome"
    with service.state.store.read() as connection:
        rows = connection.execute(select(audit.c.action, audit.c.outcome, audit.c.encounters)).all()
    assert [tuple(r) for r in rows] == [
        (f"read {kind}", "not_found", '["nobody"]') for kind in ("RiskAssessment", "Observation", "Flag")
    ]


@pytest.mark.parametrize(
    "query",
    ["", "encounter=", "encounter=E&_count=0", "encounter=E&_count=x", "encounter=E&_revinclude=Patient:x"],
)
def test_what_cannot_be_searched_is_an_outcome(service: Any, query: str):
    answer = service.client.get(f"/fhir/RiskAssessment?{query}", headers=service.headers)
    assert answer.status_code == 422
    check(answer.json())


def test_without_a_model_what_was_said_can_still_be_read(make_service: Any, patient: Any, tmp_path: Path):
    make_service().send(patient().rounds(range(6), heart_rate=120).news(5))
    broken = make_service(SEPSIS_MODEL=str(tmp_path / "nothing"))
    (found,) = search(broken, "RiskAssessment", encounter="enc-1")
    assert found["prediction"][0]["qualitativeRisk"]["text"] == "at or above the threshold of its model"


@pytest.mark.parametrize(("name", "status"), [("vera", 200), ("engine", 200), ("ada", 200), ("nobody", 401)])
def test_whoever_may_read_may_search(make_service: Any, tmp_path: Path, name: str, status: int):
    from serving.security.identity import hashed

    roles = {"vera": "viewer", "engine": "integrator", "ada": "admin"}
    (tmp_path / "tokens").write_text("\n".join(f"{n},{r},{hashed(n)}" for n, r in roles.items()))
    client = make_service(TOKENS_FILE=str(tmp_path / "tokens")).client
    for kind in ("RiskAssessment", "Observation", "Flag"):
        answer = client.get(f"/fhir/{kind}?encounter=E", headers={"Authorization": f"Bearer {name}"})
        assert answer.status_code == status


def test_the_capability_statement_is_open_and_tells_what_is_there(service: Any):
    answer = service.client.get("/fhir/metadata")
    assert answer.status_code == 200
    check(answer.json())
    listed = {r["type"]: [p["name"] for p in r["searchParam"]] for r in answer.json()["rest"][0]["resource"]}
    paths = service.client.get("/openapi.json", headers=service.headers).json()["paths"]
    for kind, parameters in listed.items():
        known = {p["name"] for p in paths[f"/fhir/{kind}"]["get"]["parameters"]}
        assert set(parameters) <= known


@given(st.floats(0, 1))
def test_a_probability_passes_unchanged(value: float):
    assert probability_of(value) == value


@pytest.mark.parametrize("value", [170, 1.0001, -0.1, math.nan, math.inf, None, "0.5", True])
def test_what_is_no_probability_is_not_sent(value: Any):
    with pytest.raises(DataError, match="0 to 1"):
        probability_of(value)


def test_a_probability_out_of_range_in_the_log_reaches_nobody(service: Any, stay: Any):
    from sqlalchemy import update

    from serving.store.tables import predictions

    with service.state.store.write() as connection:
        connection.execute(update(predictions).values(probability=1.7))
    answer = service.get("/fhir/RiskAssessment", encounter="enc-1")
    assert answer.status_code == 422
    assert "1.7" not in answer.text


@pytest.mark.data
@pytest.mark.parametrize("kind", ["RiskAssessment", "Observation", "Flag"])
def test_ours_hold_what_official_examples_hold(service: Any, stay: Any, data_dir: Path, kind: str):
    folder = data_dir / "interop" / "fhir-r4" / "fhir-test-cases"
    official = json.loads((folder / f"{kind.lower()}-example.json").read_text("utf-8"))
    check(official)
    (ours,) = search(service, kind, encounter="enc-1")
    needed = {"RiskAssessment": ("status", "subject", "method", "basis", "prediction", "occurrenceDateTime")}
    for name in needed.get(kind, ("status", "subject", "category", "code")):
        assert type(ours[name]) is type(official[name]), name
