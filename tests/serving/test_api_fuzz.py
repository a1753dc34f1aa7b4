"""Requests that the API's own description allows, and some that it does not: none may crash it or go unexplained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig

UNDERSTOOD = {"expected-statuses": [200, 201, 400, 404, 409, 412, 415, 422, 503]}
"""A request of the right shape may still be refused: nothing is known of that patient, or the period is empty."""
CONFIG = SchemathesisConfig.from_dict({"checks": {"positive_data_acceptance": UNDERSTOOD}})
MEANT = settings(
    max_examples=6, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def test_what_the_description_allows_is_answered_as_described(make_service: Callable[..., Any]):
    service = make_service(CLOCK="wall")
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", service.client.app, config=CONFIG, headers=service.headers
    ).include(path_regex=r"^/(v1|fhir|cds|reports)")
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode is GenerationMode.NEGATIVE and not list(operation.body):
                continue

            @MEANT
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case: schemathesis.Case) -> None:
                case.call_and_validate(headers=service.headers)

            send()
        tried += 1
    assert tried >= 20
