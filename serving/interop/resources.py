"""FHIR R4 resources: what the prediction log and the alerts say, as an EHR can store it.

A score is a RiskAssessment, what was not scored an Observation with a reason, an alert a Flag; a Provenance says which
model made a score from what. Probabilities are fractions from 0 to 1, although R4 admits percentages too. Patients and
encounters are named by the identifiers they were fed in with, since those need not be the ids of any FHIR server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from features.concepts import loader
from features.errors import DataError
from models.scope import OUT_OF_SCOPE, SCORED
from serving.clock import iso
from serving.reasons import number_text, plain_label, unit_text
from serving.scoring import Scorer
from serving.store.facts import LASTING

Resource = dict[str, Any]
Row = Mapping[str, Any]

HOUR_US: Final = 3_600_000_000
TERMINOLOGY: Final = "http://terminology.hl7.org/CodeSystem"
PREDICTION_IDS: Final = "urn:wardcast:prediction"
MODEL_IDS: Final = "urn:wardcast:model"
SOURCE_IDS: Final = "urn:wardcast:source"
CODES: Final = "urn:wardcast:codes"
SEPSIS: Final = {"coding": [{"system": "http://snomed.info/sct", "code": "91302008", "display": "Sepsis"}]}
"""SNOMED CT 91302008 |Sepsis (disorder)|."""
ABSENT: Final = {OUT_OF_SCOPE: ("not-applicable", "Not Applicable")}
NOT_YET: Final = ("temp-unknown", "Temporarily Unknown")
"""Of data-absent-reason: vital signs may come, and then there is a score."""
NOTES: Final = {
    "corrected": "A value that this assessment read was corrected later ({when}). What is said here is what was said "
    "then; newer assessments of the encounter read the corrected value.",
    "entered-in-error": "A value that this assessment read was withdrawn later ({when}). Do not use it; newer "
    "assessments of the encounter no longer read that value.",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """What became of a prediction after it was made.

    Attributes
    ----------
    status : ``final``; ``corrected`` or ``entered-in-error`` where a fact it read was corrected or withdrawn later
    when : microseconds at which that became known
    basis : rows of the facts it read, the latest of each concept
    """

    status: str = "final"
    when: int | None = None
    basis: Sequence[Row] = field(default_factory=tuple)


def standing(prediction: Row, events: Iterable[Row], pictures: Sequence[Row] = ()) -> Standing:
    """Judge a prediction by what is known of its encounter's facts now.

    Parameters
    ----------
    prediction : row of the log
    events : usable rows of its encounter, of the concepts that its model reads, in the order received
    pictures : all that was known of its encounter, in the order received; what lasts, such as the age, is corrected
        where the newest says otherwise than the one that was read
    """
    reach, when = prediction["events_seq"] or 0, prediction["prediction_time"]
    read: dict[tuple[str, str], Row] = {}
    status, changed = "final", None
    for event in events:
        fact = event["source_id"], event["concept"]
        if event["seq"] <= reach:
            if event["available_time"] <= when:
                _read(read, fact, event)
        elif fact in read and event["status"] in ("corrected", "deleted"):
            gone = event["status"] == "deleted" or status == "entered-in-error"
            status, changed = ("entered-in-error" if gone else "corrected"), event["received_time"]
    if status == "final":
        changed = _corrected(prediction["encounter_seq"] or 0, pictures)
        status = "final" if changed is None else "corrected"
    newest: dict[str, Row] = {}
    for event in sorted(read.values(), key=lambda e: (e["time"], e["seq"])):
        newest[event["concept"]] = event
    return Standing(status, changed, tuple(newest.values()))


def _corrected(seq: int, pictures: Sequence[Row]) -> int | None:
    """When it became known that an encounter's picture had said something else than holds now."""
    then = next((p for p in pictures if p["seq"] == seq), None)
    if then is None:
        return None
    wrong = [n for n in LASTING if then[n] is not None and pictures[-1][n] != then[n]]
    later = (p for p in pictures if p["seq"] > seq and any(p[n] != then[n] for n in wrong))
    return next((int(p["received_time"]) for p in later), None)


def _read(read: dict[tuple[str, str], Row], fact: tuple[str, str], event: Row) -> None:
    if event["status"] == "deleted":
        read.pop(fact, None)
    else:
        read[fact] = event


def risk_assessment(prediction: Row, judged: Standing, scorer: Scorer | None) -> Resource:
    """A score.

    Parameters
    ----------
    prediction : row of the log, scored
    scorer : the one that made it; None where its model serves no longer, and its threshold and horizon are left out

    Raises
    ------
    DataError
        The probability is none. No FHIR library looks at this.
    """
    made = {
        "resourceType": "RiskAssessment",
        **_head(prediction["prediction_id"], judged.when or prediction["created_time"]),
        "contained": [_device(prediction["model_id"])],
        "identifier": [{"system": PREDICTION_IDS, "value": prediction["prediction_id"]}],
        "status": judged.status,
        "method": {"text": f"Wardcast {prediction['model_id']}"},
        "code": {"text": "Sepsis risk"},
        **_about(prediction),
        "occurrenceDateTime": iso(prediction["prediction_time"]),
        "performer": {"reference": "#model"},
        "prediction": [_prediction(prediction, scorer)],
    }
    if judged.basis:
        made["basis"] = [_basis(event) for event in judged.basis]
    if judged.status in NOTES:
        made["note"] = [{"text": NOTES[judged.status].format(when=iso(judged.when))}]
    return made


def probability_of(value: object) -> float:
    """A probability as FHIR gets it.

    Raises
    ------
    DataError
        It is not a number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(
            "A probability is not a number from 0 to 1, so it is not sent. Report this with the model."
        )
    return float(value)


def _prediction(prediction: Row, scorer: Scorer | None) -> Resource:
    probability = probability_of(prediction["probability"])
    target = scorer.bundle.spec.section("target") if scorer else {}
    when = prediction["prediction_time"]
    meaning = str(target.get("meaning", "sepsis")).rstrip(".")
    side = "at or above" if prediction["alert"] else "below"
    limit = f"the threshold of {number_text(scorer.threshold)}" if scorer else "the threshold of its model"
    said: Resource = {
        "outcome": SEPSIS | {"text": meaning},
        "probabilityDecimal": probability,
        "qualitativeRisk": {"text": f"{side} {limit}"},
    }
    if "horizon_h" in target:
        said["whenPeriod"] = {"start": iso(when), "end": iso(when + int(target["horizon_h"] * HOUR_US))}
    reasons = json.loads(prediction["reasons"]) if prediction["reasons"] else []
    if reasons:
        said["rationale"] = "; ".join(reasons)
    return said


def observation(prediction: Row, judged: Standing) -> Resource:
    """A score as a number to chart, or the reason why there is none; never 0 for what is not known."""
    status = "final" if judged.status == "final" else judged.status
    made = {
        "resourceType": "Observation",
        **_head(prediction["prediction_id"], judged.when or prediction["created_time"]),
        "contained": [_device(prediction["model_id"])],
        "identifier": [{"system": PREDICTION_IDS, "value": prediction["prediction_id"]}],
        "status": status,
        "category": [_code(f"{TERMINOLOGY}/observation-category", "survey", "Survey")],
        "code": {"coding": [{"system": CODES, "code": "sepsis-risk"}], "text": "Sepsis risk (0 to 1)"},
        **_about(prediction),
        "effectiveDateTime": iso(prediction["prediction_time"]),
        "issued": iso(prediction["created_time"]),
        "device": {"reference": "#model"},
    }
    if prediction["status"] == SCORED:
        value = probability_of(prediction["probability"])
        made["valueQuantity"] = {"value": value, "system": "http://unitsofmeasure.org", "code": "1"}
    else:
        code, display = ABSENT.get(prediction["status"], NOT_YET)
        reason = _code(f"{TERMINOLOGY}/data-absent-reason", code, display)
        made["dataAbsentReason"] = reason | {"text": f"Not scored: {prediction['status']}"}
    return made


def flag(alert: Row, subject_id: str) -> Resource:
    """An alert, active until it has ended."""
    period = {"start": iso(alert["raised_time"])}
    if alert["ended_time"] is not None:
        period["end"] = iso(alert["ended_time"])
    risk = number_text(100 * probability_of(alert["probability"]))
    return {
        "resourceType": "Flag",
        **_head(alert["alert_id"], alert["ended_time"] or alert["raised_time"]),
        "contained": [{"resourceType": "Device", "id": "model", "deviceName": [_NAMED]}],
        "identifier": [{"system": "urn:wardcast:alert", "value": alert["alert_id"]}],
        "status": "active" if alert["ended_time"] is None else "inactive",
        "category": [_code(f"{TERMINOLOGY}/flag-category", "clinical", "Clinical")],
        "code": {
            "coding": [{"system": CODES, "code": "sepsis-alert"}],
            "text": f"Sepsis alert: risk {risk} % when raised",
        },
        **_about({"encounter_id": alert["encounter_id"], "subject_id": subject_id}),
        "period": period,
        "author": {"reference": "#model"},
    }


def provenance(prediction: Row, judged: Standing) -> Resource:
    """Which model made a prediction, when, and from which facts."""
    kind = "RiskAssessment" if prediction["status"] == SCORED else "Observation"
    made = {
        "resourceType": "Provenance",
        **_head(f"p-{prediction['prediction_id']}", judged.when or prediction["created_time"]),
        "contained": [_device(prediction["model_id"])],
        "target": [{"reference": f"{kind}/{prediction['prediction_id']}"}],
        "occurredDateTime": iso(prediction["prediction_time"]),
        "recorded": iso(prediction["created_time"]),
        "activity": {"text": "Scored from the facts available at the time"},
        "agent": [
            {
                "type": _code(f"{TERMINOLOGY}/provenance-participant-type", "assembler", "Assembler"),
                "who": {"reference": "#model"},
            }
        ],
        "entity": [{"role": "derivation", "what": _model(prediction["model_id"])}],
    }
    made["entity"] += [{"role": "source", "what": _basis(event)} for event in judged.basis]
    return made


def bundle(resources: Sequence[Resource], total: int, base: str, links: Mapping[str, str]) -> Resource:
    """A page of found resources; what was asked to come along is marked as such."""
    kind = resources[0]["resourceType"] if resources else ""
    made: Resource = {
        "resourceType": "Bundle",
        "type": "searchset",
        "total": total,
        "link": [{"relation": relation, "url": url} for relation, url in links.items()],
    }
    if resources:
        made["entry"] = [
            {
                "fullUrl": f"{base}/fhir/{r['resourceType']}/{r['id']}",
                "resource": r,
                "search": {"mode": "match" if r["resourceType"] == kind else "include"},
            }
            for r in resources
        ]
    return made


_NAMED: Final = {"name": "Wardcast", "type": "manufacturer-name"}


def _head(identity: str, changed: int) -> Resource:
    return {"id": identity, "meta": {"lastUpdated": iso(changed)}}


def _about(row: Row) -> Resource:
    return {
        "subject": {"type": "Patient", "identifier": {"value": row["subject_id"]}},
        "encounter": {"type": "Encounter", "identifier": {"value": row["encounter_id"]}},
    }


def _device(model_id: str) -> Resource:
    version = model_id.partition("@")[2]
    return {
        "resourceType": "Device",
        "id": "model",
        "identifier": [{"system": MODEL_IDS, "value": model_id}],
        "deviceName": [_NAMED],
        "version": [{"value": version or model_id}],
    }


def _model(model_id: str) -> Resource:
    return {"type": "Device", "identifier": {"system": MODEL_IDS, "value": model_id}, "display": model_id}


def _code(system: str, code: str, display: str) -> Resource:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def _basis(event: Row) -> Resource:
    """A fact that was read: by its identity at the source, and in words."""
    about = loader.concepts()[event["concept"]]
    value = "" if event["numeric_value"] is None else f" {number_text(event['numeric_value'])}"
    words = f"{plain_label(about.label)[0]}{value} {unit_text(about.unit)}".strip()
    return {
        "type": "Observation",
        "identifier": {"system": SOURCE_IDS, "value": event["source_id"]},
        "display": f"{words}, {iso(event['time'])}",
    }
