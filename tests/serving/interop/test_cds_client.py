"""From the EHR's own FHIR server to the card in its chart, and back: one patient, told and asked about in FHIR alone.

The client is headless: it discovers, resolves the prefetch, signs a token for each call, renders the card as the
official sandbox does (Markdown with raw HTML let through), and reports what its user did.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_it import MarkdownIt

pytestmark = pytest.mark.both_stores

FEEDBACK = "/cds-services/wardcast-sepsis/feedback"
VITALS = {"8867-4": (132, "/min"), "8480-6": (92, "mm[Hg]"), "8478-0": (58, "mm[Hg]"), "8310-5": (38.9, "Cel"),
          "9279-1": (28, "/min"), "59408-5": (91, "%")}  # fmt: skip


class Elements(HTMLParser):
    """The elements of a rendered card, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(card: dict[str, Any]) -> Elements:
    page = Elements()
    page.feed(MarkdownIt("commonmark", {"html": True}).render(card["detail"]))
    return page


def observation(code: str, value: float, unit: str, when: datetime, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation", "id": f"o-{code}", "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
        "subject": {"reference": "Patient/fhir-p"}, "encounter": {"reference": "Encounter/fhir-e"},
        "effectiveDateTime": when.isoformat(), "issued": when.isoformat(),
        "valueQuantity": {"value": value, "system": "http://unitsofmeasure.org", "code": unit},
    } | more  # fmt: skip


@pytest.fixture(params=["ES384", "RS384"])
def hospital(make_ehr: Any, request: pytest.FixtureRequest) -> Any:
    """An EHR whose FHIR server has one very ill patient, and which sends all of it to the service."""
    ehr = make_ehr(CLOCK="wall")
    ehr.algorithm = request.param
    now = datetime.now(UTC)
    begun = (now - timedelta(hours=3)).isoformat()
    place = {"location": {"display": "ICU"}, "period": {"start": begun}}
    resources = [
        {"resourceType": "Patient", "id": "fhir-p", "gender": "female", "birthDate": "1955-02-14",
         "name": [{"family": "<img src=x onerror=alert(1)>"}]},
        {"resourceType": "Encounter", "id": "fhir-e", "status": "in-progress", "class": {"code": "IMP"},
         "subject": {"reference": "Patient/fhir-p"}, "period": {"start": begun}, "location": [place]},
        *(observation(code, value, unit, now - timedelta(hours=1)) for code, (value, unit) in VITALS.items()),
        observation("2524-7", 6.2, "mmol/L", now - timedelta(minutes=50)),
    ]  # fmt: skip
    for resource in resources:
        ehr.fhir.resources[f"{resource['resourceType']}/{resource['id']}"] = resource
    entries = [{"resource": r, "request": {"method": "POST", "url": r["resourceType"]}} for r in resources]
    tell(ehr, {"resourceType": "Bundle", "type": "transaction", "entry": entries})
    return ehr


def tell(ehr: Any, resource: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/fhir+json"} | ehr.service.headers
    answer = ehr.service.client.post("/fhir", json=resource, headers=headers)
    assert answer.status_code in (200, 201), answer.text


def test_a_patient_told_in_fhir_is_shown_in_the_chart_and_the_user_is_heard(hospital: Any):
    (card,) = hospital.open_chart("fhir-e", "fhir-p").json()["cards"]
    assert card["indicator"] == "critical"
    page = rendered(card)
    assert page.tags <= {"p", "strong", "ul", "li"}
    assert re.search(r"\d+ % chance that sepsis", page.text)
    assert "Lactate 6.2 mmol/L" in page.text
    link = card["links"][0]["url"].removeprefix("http://127.0.0.1:3000")
    assert hospital.service.client.get(link, headers=hospital.service.headers).status_code == 200
    reason = {k: card["overrideReasons"][0][k] for k in ("code", "system")}
    said = {
        "card": card["uuid"],
        "outcome": "overridden",
        "overrideReason": {"reason": reason, "userComment": "treated"},
        "outcomeTimestamp": datetime.now(UTC).isoformat(),
    }
    assert hospital.post({"feedback": [said]}, FEEDBACK).json()["feedback"][0]["verdict"] == "accepted"
    counted = hospital.service.get("/v1/cds/feedback").json()["feedback"]
    assert [(row["reason_code"], row["count"]) for row in counted] == [(reason["code"], 1)]


def test_without_prefetch_the_client_is_asked_with_its_token(hospital: Any):
    access = {"access_token": "fhir-access-token", "token_type": "Bearer", "expires_in": 300,
              "scope": "user/Patient.rs user/Encounter.rs", "subject": "wardcast"}  # fmt: skip
    body = hospital.request(
        "fhir-e", "fhir-p", prefetch=None, fhirServer=hospital.fhir.address, fhirAuthorization=access
    )
    (card,) = hospital.post(body).json()["cards"]
    assert card["indicator"] == "critical"


def test_a_value_corrected_in_fhir_changes_card_and_assessments(hospital: Any):
    def assessments() -> list[dict[str, Any]]:
        entries = hospital.service.get("/fhir/RiskAssessment", encounter="Encounter/fhir-e").json()["entry"]
        return [entry["resource"] for entry in entries]

    before = assessments()[0]
    assert before["status"] == "final"
    when = datetime.fromisoformat(hospital.fhir.resources["Observation/o-2524-7"]["effectiveDateTime"])
    tell(
        hospital,
        observation("2524-7", 1.0, "mmol/L", when, status="corrected", issued=datetime.now(UTC).isoformat()),
    )
    newest, *earlier = assessments()
    assert newest["status"] == "final"
    assert {a["id"]: a["status"] for a in earlier}[before["id"]] == "corrected"
    assert newest["prediction"][0]["probabilityDecimal"] < before["prediction"][0]["probabilityDecimal"]
    answer = hospital.open_chart("fhir-e", "fhir-p").json()
    assert all("6.2" not in card["detail"] for card in answer["cards"])
