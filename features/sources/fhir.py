"""FHIR R4: Bundles, single resources and bulk exports become encounters and canonical events.

HL7 FHIR R4 (v4.0.1). A folder or file holds JSON (Bundles of any type, single resources, CDS Hooks prefetches) or
NDJSON (bulk export, one resource a line); ``.gz`` of either. Files are read twice: first who is in hospital (Patient,
Encounter, Location, Medication, Specimen), then what happened, so that a fact without an encounter can be given to the
one that contains its time. NDJSON is streamed by line; a JSON file is one unit.

=========================  ==========================================================================================
Observation                an event, and one for each component; time is ``effective[x]`` (the end of a period), known
                           at ``issued``, never before it happened; a bare date is known the next day
MedicationAdministration   systemic antimicrobials; rates of vasoactive infusions and their end; other drugs as such
MedicationRequest          systemic antimicrobials as ordered; other orders as such
Observation,               cultures, when the specimen was taken; growth, when it was reported
DiagnosticReport
Encounter                  the stay, where it was spent, its discharge; parts of an encounter belong to the whole
Patient                    age, sex, death
=========================  ==========================================================================================

Every other resource is counted. The mapping of a site is described in :mod:`features.sources.vocabulary`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from features.errors import DataError
from features.sources import fhir_elements as element
from features.sources.batch import ROWS, Batch, ReadAccount, Say, no_encounters, quiet
from features.sources.facts import NEVER, Moment, Shelf, Stays, unpacked, zone
from features.sources.fhir_elements import Json, Known, codings, items, moment, obj, period, text
from features.sources.fhir_resources import READ, Facts, Reading
from features.sources.vocabulary import NO_MAP, SiteMap, site_map

SUFFIXES: Final = (".json", ".ndjson", ".jsonl")
REFERRED_TO: Final = ("Patient", "Encounter", "Location", "Medication", "Specimen")
_MARKS: Final = tuple(f'"{kind}"'.encode() for kind in (*REFERRED_TO, "Bundle", "Parameters"))


def facts(
    resource: Json,
    known: Known | None = None,
    *,
    timezone: str = "UTC",
    site: SiteMap = NO_MAP,
) -> Facts:
    """What one resource says: the events it makes, the stay or patient it describes, what could not be read.

    Parameters
    ----------
    resource : dict, a resource or an entry of a Bundle, as read from JSON
    known : Known, optional
        What the references lead to, from :func:`learn`. Without it, ids are taken from the references themselves.
    timezone : str
        Of times without an offset.
    site : SiteMap

    Returns
    -------
    Facts
        Never an exception: whatever is wrong stands among the problems.
    """
    inner = obj(resource.get("resource")) if "resourceType" not in resource else resource
    out = Facts(text(inner.get("resourceType")))
    reading = Reading(inner, known or Known(), zone(timezone), site, out)
    read = READ.get(out.resource_type)
    if read is not None:
        read(reading)
    elif out.resource_type not in REFERRED_TO:
        out.miss("resourceType", "not_read" if out.resource_type else "no_resource")
    return out


def learn(resource: Json, known: Known, *, timezone: str = "UTC", url: str = "") -> None:
    """Remember what other resources refer to in this one: identifiers, names of drugs and places, specimens."""
    kind, name = text(resource.get("resourceType")), text(resource.get("id"))
    if not name and url:
        name = resource["id"] = url.rsplit(":", 1)[-1].rsplit("/", 1)[-1]
    if url and name:
        known.urls[url] = name
    if kind in ("Patient", "Encounter"):
        for given in items(resource.get("identifier")):
            known.identifiers[kind, text(given.get("system")), text(given.get("value"))] = name
    elif kind == "Medication":
        known.drugs[name] = codings(resource.get("code"))[1]
    elif kind == "Location":
        named = [text(resource.get("name")), *(codings(t)[1] for t in items(resource.get("type")))]
        known.places[name] = " ".join(filter(None, named))
    elif kind == "Specimen":
        known.specimens[name] = _specimen(resource, zone(timezone))


def _specimen(resource: Json, where: ZoneInfo) -> tuple[Moment, str]:
    collected = obj(resource.get("collection"))
    start, _ = period(collected.get("collectedPeriod"), where)
    taken = moment(text(collected.get("collectedDateTime")), where)
    received = moment(text(resource.get("receivedTime")), where)
    when = next((m for m in (taken, start, received) if m is not NEVER), NEVER)
    return when, codings(resource.get("type"))[1]


def batches(
    path: Path,
    account: ReadAccount,
    *,
    timezone: str = "UTC",
    mapping: Path | Mapping[str, Any] | None = None,
    say: Say = quiet,
) -> Iterator[Batch]:
    """Read a file or folder of FHIR resources.

    Parameters
    ----------
    path : Path
        A ``.json``, ``.ndjson`` or ``.jsonl`` file (also ``.gz``), or a folder of such, at any depth.
    account : ReadAccount
        Rows are resources, by type.
    timezone : str
        Of times without an offset.
    mapping : Path or dict, optional
        The site's own codes, units and places; see :mod:`features.sources.vocabulary`.
    say : callable
        Told how many more resources have been read.

    Raises
    ------
    DataError
        There is nothing to read, no file holds FHIR, or the mapping is wrong.
    """
    site, files = site_map(mapping), _files(Path(path))
    zone(timezone)
    stays, known = Stays(), Known()
    _first_pass(files, known, stays, timezone, site)
    shelf = Shelf(stays, account)
    for file in files:
        for url, resource, kind in _units(file, account, known):
            _second_pass(url, resource, kind, shelf, known, timezone, site)
            say(1)
            if len(shelf.facts) >= ROWS:
                yield Batch(no_encounters(), shelf.take())
    if not account.rows:
        raise DataError(
            f"Nothing in {Path(path).name} is FHIR: {len(files):,} JSON files without a resourceType. "
            "Expected Bundles, resources, or a bulk export as NDJSON."
        )
    shelf.facts += stays.closing()
    yield Batch(stays.encounters(account), shelf.take())


def _files(path: Path) -> list[Path]:
    def named(file: Path) -> bool:
        return file.name.lower().removesuffix(".gz").endswith(SUFFIXES)

    if path.is_file():
        return [path]
    found = sorted(f for f in path.rglob("*") if f.is_file() and named(f)) if path.is_dir() else []
    if not found:
        raise DataError(f"No FHIR at {path}. Give a .json or .ndjson file, or a folder of them.")
    return found


def _documents(file: Path) -> Iterator[tuple[bytes, bool]]:
    """The JSON texts of a file, and whether each is a line of many."""
    with unpacked(file) as lines:
        if file.name.lower().removesuffix(".gz").endswith(".json"):
            yield lines.read(), False
            return
        for line in lines:
            if line.strip():
                yield line, True


def _parse(document: bytes) -> Any:
    """JSON, or None for what is none."""
    try:
        return json.loads(document.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _first_pass(files: list[Path], known: Known, stays: Stays, timezone: str, site: SiteMap) -> None:
    """Learn who is in hospital and what references lead to."""
    for file in files:
        for document, _ in _documents(file):
            if not any(mark in document for mark in _MARKS):
                continue
            known.urls.clear()
            met = list(element.resources(_parse(document)))
            for url, resource, _ in met:
                learn(resource, known, timezone=timezone, url=url)
            for _, resource, _ in met:
                if resource.get("resourceType") in ("Patient", "Encounter"):
                    said = facts(resource, known, timezone=timezone, site=site)
                    for merge in said.merges:
                        stays.merge(merge)
                    stays.learn(said.stay, said.person)


def _units(file: Path, account: ReadAccount, known: Known) -> Iterator[tuple[str, Json, str]]:
    """The resources of a file, its Bundle's URLs known; what is no JSON or no FHIR is counted."""
    for document, line in _documents(file):
        parsed = _parse(document)
        if parsed is None:
            account.leave("file" if not line else "line", "not_json", 1)
            continue
        met = list(element.resources(parsed))
        known.urls.clear()
        for url, resource, _ in met:
            learn(resource, known, url=url)
        if not met and obj(parsed).get("resourceType") is None:
            account.leave("file" if not line else "line", "not_fhir", 1)
        yield from met


def _second_pass(
    url: str, resource: Json, method: str, shelf: Shelf, known: Known, timezone: str, site: SiteMap
) -> None:
    """Shelve the events of a resource and count what it could not say."""
    said = facts(resource, known, timezone=timezone, site=site)
    kind = said.resource_type or "entry"
    account = shelf.account
    account.rows[kind] += 1
    shelf.put(kind, said.events)
    if kind in REFERRED_TO and not said.events and not said.problems:
        account.leave(kind, "about_the_stay" if kind in ("Patient", "Encounter") else "referred_to", 1)
    for problem in said.problems:
        if problem.lost:
            account.leave(problem.where or "entry", problem.reason, 1)
        else:
            account.note(f"{problem.where}: {problem.remedy}")
