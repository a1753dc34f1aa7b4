"""One HL7 v2 message while it is read, and what it says.

HL7 v2.8 chapter 2 (header) and 2A (coded elements).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from features.events import NAT
from features.sources import hl7v2_grammar as grammar
from features.sources.facts import NEVER, Fact, Merge, Moment, Person, Problem, Stay
from features.sources.hl7v2_grammar import Marks, Segment, moment
from features.sources.vocabulary import SiteMap, prefix

REMEDIES: Final[dict[str, str]] = {
    "no_msh": "no MSH segment at the start. Send whole messages.",
    "encoding_characters": "MSH-1 and MSH-2 do not name five different signs; the usual |^~\\& were used.",
    "stray_line": "a line that begins with no segment name was added to the segment before it. Escape line ends.",
    "charset_wrong": "the bytes are not in the character set that MSH-18 names; another was used. Mend MSH-18.",
    "charset_unknown": "no known character set in MSH-18 and not UTF-8; Latin-1 was used. Fill MSH-18.",
    "no_type": "MSH-9 names no message type. Send it.",
    "no_subject": "no patient identifier. Send PID-3.",
    "no_code": "no observation identifier. Send OBX-3.",
    "no_time": "no time that can be read. Send OBX-14 or OBR-7, of cultures SPM-17, of drugs RXA-3 or ORC-9.",
    "time_of_message": "no time of the observation itself: that of the message was used. Send OBR-7 or OBX-14.",
    "no_value": "the value is empty. Nothing to do.",
    "value_type_unsupported": "documents, references and identifiers are not read. Nothing to do.",
    "not_a_number": "OBX-2 says NM and OBX-5 is words; they were kept as text.",
    "limit_used": "a comparator such as < was given; the limit itself is used as the value.",
    "pending": "the result is pending. Nothing to do.",
    "status_alone": "a status without its result. Send the result again.",
    "no_result": "a question of the order, not a result. Nothing to do.",
    "unknown_status": "OBX-11 is not in HL7 table 0085. Send F, C, P or another of it.",
    "no_drug": "the drug has no name. Send it with its text.",
    "not_given": "refused or not administered. Nothing to do.",
    "not_placed": "the order control places no order. Nothing to do.",
    "cancel_without_time": "a cancelled transfer names no time; the latest of the visit is meant. Send EVN-6.",
    "visit_by_admission": "the visit has no number; it is known by its patient and admission time. Send PV1-19.",
    "document": "the text of a document is not read. Nothing to do.",
}  # fmt: skip
"""The cure of each problem."""


@dataclass(frozen=True, slots=True)
class Header:
    """MSH: what a receiver needs to answer and to tell messages apart; times in microseconds, NAT for none."""

    type: str = ""
    trigger: str = ""
    version: str = ""
    control_id: str = ""
    sending_application: str = ""
    sending_facility: str = ""
    processing: str = ""
    charset: str = ""
    time: int = NAT

    @property
    def kind(self) -> str:
        """``ADT^A01``, or the type alone."""
        return "^".join(filter(None, (self.type, self.trigger)))


@dataclass(slots=True)
class Parsed:
    """What one message says.

    Attributes
    ----------
    header : Header
    events : list of Fact; the encounter is empty where the message names none
    stays, persons : what it says of visits and patients (usually of one)
    merges : identities that are one, or (``visit_moved``) a visit that belongs to another patient
    segments : its segments as they came, those of a site's own included
    problems : what made no event, and what had to be assumed; never a value
    """

    header: Header = field(default_factory=Header)
    events: list[Fact] = field(default_factory=list)
    stays: list[Stay] = field(default_factory=list)
    persons: list[Person] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    segments: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def miss(self, where: str, field_name: str, reason: str, *, lost: bool = True) -> None:
        """Say what made no event, or what had to be assumed."""
        self.problems.append(Problem(where, field_name, reason, REMEDIES[reason], lost))


@dataclass(slots=True)
class Reading:
    """One message while it is read."""

    out: Parsed
    where: ZoneInfo
    site: SiteMap
    sent: Moment
    subject: str = ""
    encounter: str = ""
    account: str = ""
    death: Moment = NEVER
    dead: bool = False
    event: Segment | None = None
    occurrences: Counter[str] = field(default_factory=Counter)

    def moment(self, segment: Segment | None, n: int) -> Moment:
        return moment(segment.get(n), self.where) if segment is not None else NEVER

    def first_moment(self, *places: tuple[Segment | None, int]) -> Moment:
        """The first time that stands in one of some fields."""
        return next((m for segment, n in places if (m := self.moment(segment, n)) is not NEVER), NEVER)

    def coded(self, segment: Segment, n: int) -> tuple[str, str, str, str]:
        """``(code, concept, unit when none is written, name)`` of a CE or CWE."""
        candidates, name = _candidates(segment.raw(n), segment.marks, segment.codec)
        return *self.site.code(candidates), name


def opened(message: bytes, where: ZoneInfo, site: SiteMap) -> tuple[Reading, list[Segment]]:
    """A message taken apart: what is known from its header, and its segments; none when it is no message."""
    out = Parsed()
    text, codec, charset_problem = grammar.text_of(message)
    if charset_problem:
        out.miss("MSH", "18", charset_problem, lost=False)
    if not text.startswith("MSH"):
        out.miss("MSH", "1", "no_msh")
        return Reading(out, where, site, NEVER), []
    segments, problems = grammar.segments(text, codec)
    for problem in problems:
        out.miss("MSH", "2", problem, lost=False)
    out.segments = [segment.line for segment in segments]
    if not segments:
        out.miss("MSH", "1", "no_msh")
        return Reading(out, where, site, NEVER), []
    out.header = _header(segments, codec, where)
    if not out.header.type:
        out.miss("MSH", "9", "no_type", lost=False)
    return Reading(out, where, site, moment(segments[0].get(7), where)), segments


def _header(segments: list[Segment], codec: str, where: ZoneInfo) -> Header:
    msh = segments[0]
    kind, trigger = msh.get(9), msh.get(9, 2)
    if not trigger and "_" in kind:
        kind, _, trigger = kind.partition("_")
    if not trigger:  # v2.1 names the event in EVN alone
        trigger = next((s.get(1) for s in segments if s.name == "EVN"), "")
    return Header(
        type=kind,
        trigger=trigger,
        version=msh.get(12),
        control_id=msh.get(10),
        sending_application=msh.get(3),
        sending_facility=msh.get(4),
        processing=msh.get(11),
        charset=codec,
        time=moment(msh.get(7), where).time,
    )


@lru_cache(maxsize=8_192)
def _candidates(field_: str, marks: Marks, codec: str) -> tuple[tuple[str, ...], str]:
    """The codes of a CE or CWE as ``SYSTEM//code``, those of its alternate included, and its name.

    Kept, since a sender names the same few hundred things all day and this is half of reading a result.

    Devices send the code of ISO/IEEE 11073 as a number and its name as text; either may stand in concepts/codes.
    """
    part = Segment("", marks, codec).part
    codes: list[str] = []
    for first in (1, 4):
        code, name, system = (part(field_, first + k) for k in range(3))
        if code or (system and name):
            known = prefix(system)
            codes += [f"{known}//{c}" for c in ((code, name) if known == "MDC" else (code,)) if c]
    name = part(field_, 2) or part(field_, 5) or part(field_, 9) or part(field_, 1)
    if not codes and name:
        codes = [f"LOCAL//{name}"]
    return tuple(codes), name
