"""HL7 v2 messages: bytes become encounters and canonical events.

HL7 v2.1 to 2.8: admissions, transfers and discharges (ADT), results (ORU, OUL and whatever else carries OBX), drug
orders (RDE, ORM, OMP, RDS) and administrations (RAS). :func:`parse` reads one message and never fails, as the listener
needs it; :func:`batches` reads files of them: twice, first who is in hospital and who turned out to be the same
person, then what happened. :mod:`features.sources.hl7v2_grammar` knows the grammar,
:mod:`features.sources.hl7v2_visits` and :mod:`features.sources.hl7v2_orders` what the segments mean.

Identity: a result is its order (filler number, else placer number), its code and its sub-id, so that a correction,
which may come with other set ids, replaces what it corrects; a transfer is its visit and its time. Patients and visits
carry their assigning authority (``id@authority``), since two hospitals may give one number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from features.errors import DataError
from features.sources import hl7v2_grammar as grammar
from features.sources.batch import ROWS, Batch, ReadAccount, Say, no_encounters, quiet
from features.sources.facts import LOCATION, Fact, Shelf, Stays, unpacked, zone
from features.sources.hl7v2_grammar import Segment
from features.sources.hl7v2_message import Parsed, Reading, opened
from features.sources.hl7v2_orders import DRUG_SEGMENTS, Order, order_events
from features.sources.hl7v2_visits import about, movement
from features.sources.vocabulary import NO_MAP, SiteMap, site_map

SUFFIXES: Final = (".hl7", ".msg", ".er7", ".out", ".dat", ".txt", ".hl7v2")
ENVELOPES: Final = (b"FHS", b"BHS", b"BTS", b"FTS")
SNIFF: Final = 65_536
MESSAGE: Final = re.compile(
    rb"(?:\A|[\r\n\x0b\x1c]|\xef\xbb\xbf)MSH[^A-Za-z0-9\s]|M\x00S\x00H|\x00M\x00S\x00H"
)


def parse(message: bytes, *, timezone: str = "UTC", site: SiteMap = NO_MAP) -> Parsed:
    """Read one message.

    Parameters
    ----------
    message : bytes
        As received, with or without the frame of MLLP; the character set is MSH-18's.
    timezone : str
        Of times without an offset.
    site : SiteMap, optional
        The site's own codes, units and places; see :mod:`features.sources.vocabulary`.

    Returns
    -------
    Parsed
        Header, events, stays, patients, merges, the segments as they came, and problems. Never an exception:
        whatever is wrong with a message stands among its problems.
    """
    return read(message, zone(timezone), site)


def read(message: bytes, where: ZoneInfo, site: SiteMap) -> Parsed:
    """Everything a message says."""
    reading, segments = opened(message, where, site)
    for order in _walk(reading, segments):
        order_events(reading, order)
    return reading.out


def outline(message: bytes, where: ZoneInfo, site: SiteMap) -> Parsed:
    """What a message says of patients, visits and merges alone."""
    reading, segments = opened(message, where, site)
    for segment in segments:
        about(reading, segment)
    return reading.out


def _walk(reading: Reading, segments: list[Segment]) -> list[Order]:
    """Go through a message in order: patients, visits, moves; its orders are gathered and returned."""
    orders = [Order("", "")]
    for position, segment in enumerate(segments):
        name = segment.name
        about(reading, segment)
        order = orders[-1]
        late = name == "ORC" and reading.out.header.type == "OUL" and order.obr is not None and not order.orc
        if late:  # OUL names the order after its request
            order.orc = segment
        elif name in ("PID", "PV1", "ORC") or (name == "OBR" and order.obr is not None):
            order = Order(reading.subject, reading.encounter, segment if name == "ORC" else None)
            orders.append(order)
        if name == "PV1" and reading.out.header.type == "ADT":
            movement(reading, segment)
        elif name == "OBR":
            order.obr = segment
        elif name == "OBX":
            order.results.append((position, segment))
        elif name in DRUG_SEGMENTS:
            order.drugs.append(segment)
        elif name == "RXR":
            order.route = segment
        elif name == "SPM":
            order.specimen = segment
    return orders


def batches(
    path: Path,
    account: ReadAccount,
    *,
    timezone: str = "UTC",
    mapping: Path | Mapping[str, Any] | None = None,
    say: Say = quiet,
) -> Iterator[Batch]:
    """Read a file or folder of messages, whatever separates them.

    Parameters
    ----------
    path : Path
        A file (also ``.gz``), or a folder of files that end in one of :data:`SUFFIXES`, at any depth, by name.
    account : ReadAccount
        Rows are messages by type (``ADT^A01``), and OBX segments.
    timezone : str
        Of times without an offset.
    mapping : Path or dict, optional
        The site's own codes, units and places; see :mod:`features.sources.vocabulary`.
    say : callable
        Told how many more messages have been read.

    Raises
    ------
    DataError
        There is nothing to read, no file holds a message, or the mapping is wrong.
    """
    site, where = site_map(mapping), zone(timezone)
    files = _files(Path(path), account)
    stays = Stays()
    for file in files:
        for piece in grammar.pieces(file):
            _learn(outline(piece, where, site), stays)
    shelf = Shelf(stays, account)
    for file in files:
        for piece in grammar.pieces(file):
            if piece[:3] in ENVELOPES:
                account.rows["envelope"] += 1
                account.leave("envelope", "no_event", 1)
                continue
            _shelve(read(piece, where, site), shelf)
            say(1)
            if len(shelf.facts) >= ROWS:
                yield Batch(no_encounters(), shelf.take())
    shelf.facts += stays.closing()
    yield Batch(stays.encounters(account), shelf.take())


def _files(path: Path, account: ReadAccount) -> list[Path]:
    def named(file: Path) -> bool:
        return file.name.lower().removesuffix(".gz").endswith(SUFFIXES)

    if not path.exists():
        raise DataError(f"No HL7 v2 at {path}. Give a file of messages, or a folder of them.")
    candidates = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file() and named(f))
    found = [file for file in candidates if _is_hl7(file)]
    account.leave("file", "not_hl7", len(candidates) - len(found))
    if not found:
        raise DataError(
            f"No HL7 v2 message in {path.name}: {len(candidates):,} files looked at, none with a line that begins "
            "with MSH. Files of a folder must end in one of " + ", ".join(SUFFIXES) + "."
        )
    return found


def _is_hl7(file: Path) -> bool:
    with unpacked(file) as stream:
        return MESSAGE.search(stream.read(SNIFF)) is not None


def _learn(parsed: Parsed, stays: Stays) -> None:
    for merge in parsed.merges:
        if merge.kind in ("subject", "encounter"):
            stays.merge(merge)
    for person in parsed.persons:
        stays.learn(None, person)
    for stay in parsed.stays:
        stays.learn(stay)


def _shelve(parsed: Parsed, shelf: Shelf) -> None:
    """Shelve the events of a message, and count its parts and what they could not say."""
    account, kind = shelf.account, parsed.header.kind or "unknown"
    account.rows[kind] += 1
    results = sum(segment.startswith("OBX") for segment in parsed.segments)
    if results:
        account.rows["OBX"] += results
    placed = shelf.put(kind, (_aimed(event, shelf.stays) for event in parsed.events))
    if not placed and not parsed.events:
        account.leave(kind, "about_the_stay" if parsed.stays or parsed.persons else "no_event", 1)
    for problem in parsed.problems:
        table = re.sub(r"\[.*", "", problem.where)
        if problem.lost:
            account.leave(table, problem.reason, 1)
        else:
            account.note(f"{table}-{problem.field}: {problem.remedy}")
    for merge in parsed.merges:
        if merge.kind not in ("subject", "encounter"):
            account.leave("MRG", "move_not_applied", 1)


def _aimed(event: Fact, stays: Stays) -> Fact:
    """A cancelled transfer that does not say which: it is the latest of its visit."""
    if event.code == LOCATION and event.status == "deleted" and event.source_id.endswith("#move@?"):
        last = stays.last_move(event.encounter_id)
        return event._replace(source_id=last) if last else event
    return event
