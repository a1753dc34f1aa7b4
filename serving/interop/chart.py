"""Whose chart is open: from a hook's context to the encounter we know, by the identifiers as they were fed in.

The Patient and the Encounter come prefetched, or from the client's own FHIR server where that one is registered for it.
No other address is ever called, whatever a request names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from serving.answers import Refusal
from serving.interop.contract import HookRequest
from serving.schemas import FieldProblem
from serving.scoring import Scorer
from serving.security.clients import ClientEntry
from serving.store import facts, people

logger = logging.getLogger("wardcast")

Resource = dict[str, Any]
PREFETCH: Final = {
    "patient": "Patient/{{context.patientId}}",
    "encounter": "Encounter/{{context.encounterId}}",
}
"""Both say who it is: an encounter is shown only to whoever has the right patient open."""
KINDS: Final = {"patient": "Patient", "encounter": "Encounter"}
PATIENCE_S: Final = 2.0
MAX_BYTES: Final = 1024 * 1024

UNKNOWN, MISMATCH, AMBIGUOUS = "unknown_encounter", "patient_mismatch", "ambiguous_encounter"


@dataclass(frozen=True, slots=True)
class Found:
    """The encounter of a chart, or the reason code why there is none."""

    encounter: dict[str, Any] | None
    problem: str | None = None


def resources(asked: HookRequest, client: ClientEntry | None) -> dict[str, Resource | None]:
    """The Patient and the Encounter that a request is about; None where the client says that there is none.

    Raises
    ------
    Refusal
        412 where one is neither prefetched nor to be had; 422 where one is not the one of the context.
    """
    wanted = {"patient": asked.context.patientId, "encounter": asked.context.encounterId}
    found: dict[str, Resource | None] = {}
    for key, identity in wanted.items():
        if identity is None:
            continue
        sent = asked.prefetch.get(key)
        if key in asked.prefetch and sent is None:
            found[key] = None
        elif isinstance(sent, dict) and sent.get("resourceType") == KINDS[key]:
            found[key] = _the_one(sent, identity, f"prefetch.{key}")
        else:  # not there, or what the client got instead: an OperationOutcome
            found[key] = _the_one(_fetch(asked, client, key, identity), identity, f"fhirServer, {KINDS[key]}")
    return found


def _the_one(resource: Resource, identity: str, place: str) -> Resource:
    if resource.get("id", identity) != identity:
        field = FieldProblem(
            field=place, problem="is not the one of the context", remedy="Send the one it names."
        )
        raise Refusal(
            422, "wrong_resource", "A resource is about someone else.", "Mend the field named.", [field]
        )
    return resource


def _fetch(asked: HookRequest, client: ClientEntry | None, key: str, identity: str) -> Resource:
    """Read a resource from the client's FHIR server."""
    server = (asked.fhirServer or "").rstrip("/")
    why = None
    if not server:
        why = "no fhirServer was named"
    elif client is None or server not in client.fhir_servers:
        why = "the fhirServer is not among those registered for this client"
    elif asked.fhirAuthorization is None or asked.fhirAuthorization.expires_in <= 0:
        why = "there is no fhirAuthorization that lasts"
    elif identity.strip(".") == "":
        why = "the id cannot be asked for"
    if why is None and asked.fhirAuthorization is not None:
        try:
            return _read(
                f"{server}/{KINDS[key]}/{identity}", asked.fhirAuthorization.access_token, KINDS[key]
            )
        except Exception as error:
            logger.warning("cds problem=fhir_server kind=%s", type(error).__name__)
            why = "the FHIR server did not give it"
    field = FieldProblem(
        field=f"prefetch.{key}", problem=f"is missing, and {why}", remedy=f"Prefetch {PREFETCH[key]}."
    )
    raise Refusal(
        412,
        "prefetch_missing",
        f"A card needs the {KINDS[key]}, and it cannot be had.",
        "Prefetch what the discovery lists, or send fhirServer and fhirAuthorization of a registered server.",
        [field],
    )


def _read(url: str, token: str, kind: str) -> Resource:
    import httpx

    headers = {"Accept": "application/fhir+json", "Authorization": f"Bearer {token}"}
    with (
        httpx.Client(timeout=PATIENCE_S, follow_redirects=False, trust_env=False, headers=headers) as http,
        http.stream("GET", url) as answer,
    ):
        content = b""
        for part in answer.iter_bytes():
            content += part
            if len(content) > MAX_BYTES:
                raise ValueError("too much")
    resource = json.loads(content)
    if answer.status_code != 200 or resource.get("resourceType") != kind:
        raise ValueError("not what was asked for")
    return dict(resource)


def names(resource: Resource | None, system: str | None, authority: str | None = None) -> list[str]:
    """The values of a resource's identifiers; of one system only where the site says which.

    Each also as ``value@authority``, as HL7 v2 messages name it, where the authority that assigned it is known.
    """
    listed = (resource or {}).get("identifier")
    found: list[str] = []
    for given in listed if isinstance(listed, list) else []:
        if not isinstance(given, dict) or not isinstance(given.get("value"), str):
            continue
        if system is None or given.get("system") == system:
            assigner = given.get("assigner")
            own = assigner.get("display") if isinstance(assigner, dict) else None
            found += [given["value"], *(f"{given['value']}@{one}" for one in (authority, own) if one)]
    return found


def find(
    connection: Connection,
    asked: HookRequest,
    seen: Mapping[str, Resource | None],
    client: ClientEntry | None,
    scorer: Scorer | None,
    now: int,
) -> Found:
    """The encounter of ours that a chart is about.

    An encounter is known by an identifier of the Encounter or by its FHIR id, whichever was fed in; so is its person.
    Identities that were merged lead to the one that lives on. Where the hook names no encounter, it is the one present
    encounter of the patient.
    """
    context = asked.context
    system, authority = (client.patient_system, client.patient_authority) if client else (None, None)
    said = {*names(seen.get("patient"), system, authority), context.patientId}
    patients = {*said, *people.surviving(connection, "subject", said).values()}
    if context.encounterId is None:
        return _of_patient(facts.of_subjects(connection, patients), scorer, now)
    system, authority = (client.encounter_system, client.encounter_authority) if client else (None, None)
    visits = {*names(seen.get("encounter"), system, authority), context.encounterId}
    same = people.surviving(connection, "encounter", visits)
    known = facts.latest(connection, {same.get(visit, visit) for visit in visits})
    right = [e for e in known.values() if e["subject_id"] in {*patients, e["encounter_id"]}]
    if not known:
        return Found(None, UNKNOWN)
    if len(right) != 1:
        return Found(None, AMBIGUOUS if right else MISMATCH)
    return Found(right[0])


def _of_patient(known: list[dict[str, Any]], scorer: Scorer | None, now: int) -> Found:
    present = [e for e in known if not facts.has_ended(e, now)]
    if scorer is not None and len(present) > 1:
        # Under one person an emergency attendance may stand open beside the stay it led to.
        inside = [e for e, yes in zip(present, scorer.in_scope(present), strict=True) if yes]
        present = inside or present[:1]
    if len(present) != 1:
        return Found(None, AMBIGUOUS if present else UNKNOWN)
    return Found(present[0])
