"""The description of the API is true: its examples are answered, and answers are as described."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator


@pytest.fixture
def described(service: Any) -> dict[str, Any]:
    """The description as callers get it."""
    return dict(service.get("/openapi.json").json())


def check(described: dict[str, Any], schema: dict[str, Any], answer: Any) -> None:
    """An answer must be as its schema says."""
    whole = schema | {"components": described["components"]}
    found = [f"{list(e.absolute_path)}: {e.message}" for e in Draft202012Validator(whole).iter_errors(answer)]
    assert not found, found[:5]


def answer_schema(operation: dict[str, Any], status: int) -> dict[str, Any]:
    """The schema of an answer, which must be described."""
    return dict(operation["responses"][str(status)]["content"]["application/json"]["schema"])


def test_every_example_is_answered_as_described(service: Any, described: dict[str, Any]):
    sent = 0
    for path, operations in described["paths"].items():
        body = (
            operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        )
        if not path.startswith("/v1/"):
            continue
        for name, example in body.get("examples", {}).items():
            check(described, body["schema"], example["value"] if "bulk" not in path else {"patients": []})
            answer = service.post(path, example["value"])
            # An acknowledgement is of an alert that has to be there.
            assert answer.status_code == (404 if "acknowledge" in path else 200), (path, name, answer.text)
            check(described, answer_schema(operations["post"], answer.status_code), answer.json())
            sent += 1
    assert sent >= 6


def test_answers_from_the_store_are_as_described(service: Any, patient: Any, described: dict[str, Any]):
    who = patient().rounds(range(6), heart_rate=125.0, lactate=6.0)
    service.send(who.news(5))
    for path, query in (
        ("/v1/risk", {"encounter": "enc-1", "explain": "true"}),
        ("/v1/risk/history", {"encounter": "enc-1"}),
        ("/v1/alerts", {"since": who.at(0).isoformat()}),
    ):
        answer = service.get(path, **query)
        check(described, answer_schema(described["paths"][path]["get"], 200), answer.json())
    alert = service.get("/v1/alerts", since=who.at(0).isoformat()).json()["alerts"][0]
    done = service.post("/v1/alerts/acknowledge", {"alert_id": alert["alert_id"]}).json()
    check(described, answer_schema(described["paths"]["/v1/alerts/acknowledge"]["post"], 200), done)


@pytest.mark.parametrize(
    ("event", "good"),
    [
        ({"concept": "spo2", "value": 95.0}, True),
        ({"concept": "spo2", "code": None, "value": 95.0}, True),
        ({"concept": "spo2", "code": "LOINC//8867-4", "value": 95.0}, False),
        ({"value": 95.0}, False),
        ({"concept": "spo2"}, False),
        ({"concept": "spo2", "value": None, "text": "low"}, True),
        ({"concept": "spo2", "value": 95.0, "status": "corrected"}, False),
        ({"concept": "spo2", "status": "deleted", "source_id": "a"}, True),
        ({"concept": "spo2", "value": 95.0, "time": "2025-02-29T08:00:00Z"}, False),
        ({"concept": "spo2", "value": 95.0, "time": "2024-02-29T08:00:00.5+01:00"}, True),
        ({"concept": "spo2", "value": 95.0, "time": "0190-02-28T08:00:00Z"}, False),
    ],
)
def test_the_description_asks_what_the_contract_asks(
    service: Any, described: dict[str, Any], event: dict[str, Any], good: bool
):
    body = {
        "encounter": {"encounter_id": "E"},
        "events": [{"time": "2026-03-01T08:00:00Z"} | event],
        "prediction_time": "2026-03-01T09:00:00Z",
    }
    schema = {"$ref": "#/components/schemas/ScoreRequest", "components": described["components"]}
    assert Draft202012Validator(schema).is_valid(body) is good
    assert (service.post("/v1/sepsis/score", body).status_code == 200) is good


def test_a_method_that_is_not_there_says_which_are(service: Any):
    answer = service.client.request("TRACE", "/v1/sepsis/score", headers=service.headers)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_number_is_no_instant_in_a_query(service: Any):
    answer = service.get("/v1/alerts", until="0.5")
    assert answer.status_code == 422
    assert "ISO 8601" in answer.json()["error"]["fields"][0]["remedy"]
