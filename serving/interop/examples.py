"""Examples of the interfaces to EHRs, as OpenAPI shows them and as tests send them."""

from __future__ import annotations

from typing import Any, Final

HOOK: Final[dict[str, Any]] = {
    "hook": "patient-view",
    "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
    "context": {"userId": "Practitioner/123", "patientId": "P1", "encounterId": "E1"},
    "prefetch": {
        "patient": {"resourceType": "Patient", "id": "P1", "identifier": [{"value": "P1"}]},
        "encounter": {
            "resourceType": "Encounter",
            "id": "E1",
            "status": "in-progress",
            "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
        },
    },
}
FEEDBACK: Final[dict[str, Any]] = {
    "feedback": [
        {
            "card": "4e0a3a1e-3283-4575-ab82-028d55fe2719",
            "outcome": "overridden",
            "overrideReason": {
                "reason": {"code": "already-treated", "system": "urn:wardcast:override-reasons"}
            },
            "outcomeTimestamp": "2026-01-12T08:05:00Z",
        }
    ]
}
DISCOVERY: Final[dict[str, Any]] = {
    "services": [
        {
            "id": "wardcast-sepsis",
            "hook": "patient-view",
            "title": "Sepsis risk",
            "description": "Shows the current, calibrated risk of sepsis of the patient whose chart is opened.",
            "prefetch": {
                "patient": "Patient/{{context.patientId}}",
                "encounter": "Encounter/{{context.encounterId}}",
            },
        }
    ]
}
