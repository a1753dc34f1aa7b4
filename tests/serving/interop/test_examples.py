"""The examples that OpenAPI shows for EHRs are sent here, and get what they promise."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def fed(service: Any, patient: Any) -> Any:
    """A service that has received the patient of the examples."""
    who = patient("E1").rounds(range(6), heart_rate=128, lactate=5.5)
    news = who.news(5)
    news["encounters"][0]["subject_id"] = "P1"
    service.send(news)
    return service


def operations(service: Any) -> list[tuple[str, str, dict[str, Any]]]:
    paths = service.get("/openapi.json").json()["paths"]
    return [
        (path, method, operation)
        for path, methods in paths.items()
        for method, operation in methods.items()
        if {"CDS Hooks", "FHIR"} & set(operation.get("tags", []))
    ]


def test_every_example_works(fed: Any):
    done = []
    for path, method, operation in operations(fed):
        if method == "post" and path.startswith("/cds-services"):
            body = operation["requestBody"]["content"]["application/json"]["example"]
            assert fed.post(path, body).status_code == 200
            done.append(path)
        elif (
            method == "get" and path.startswith("/fhir/") and "encounter" in str(operation.get("parameters"))
        ):
            examples = {
                p["name"]: p["schema"]["examples"][0]
                for p in operation["parameters"]
                if "examples" in p["schema"]
            }
            found = fed.get(path, **examples).json()
            assert found["total"] == 1
            done.append(path)
    assert len(done) == 5
    answer = fed.post("/cds-services/wardcast-sepsis", example(fed, "/cds-services/wardcast-sepsis")).json()
    assert answer["cards"][0]["indicator"] == "critical"


def example(service: Any, path: str) -> dict[str, Any]:
    found = service.get("/openapi.json").json()["paths"][path]["post"]["requestBody"]
    return dict(found["content"]["application/json"]["example"])


def test_the_example_of_discovery_is_what_discovery_says(service: Any):
    described = service.get("/openapi.json").json()["paths"]["/cds-services"]["get"]["responses"]["200"]
    (shown,) = described["content"]["application/json"]["example"]["services"]
    (found, *_) = service.client.get("/cds-services").json()["services"]
    assert {k: found[k] for k in shown if k != "description"} == {
        k: v for k, v in shown.items() if k != "description"
    }
    assert found["description"].startswith(shown["description"].split(",")[0])


def test_every_operation_is_described(service: Any):
    described = operations(service)
    assert len(described) >= 9
    for path, method, operation in described:
        assert operation["summary"], path
        if path not in ("/cds-services", "/fhir/metadata"):
            assert "401" in operation["responses"] or path.startswith("/fhir"), (path, method)
    references = service.get("/openapi.json").text.count("#/components/schemas/HookRequest")
    assert references == 1
    assert "HookRequest" in service.get("/openapi.json").json()["components"]["schemas"]
