"""What the sender of an HL7 v2 message is told: taken, or refused and why.

HL7 v2.8 chapter 2, sections 2.9 (processing rules) and 2.15 (MSA, ERR, MSH). A message that is taken is answered AA, or
CA in enhanced mode, once it lies in the log; what cannot be a message, or is not for us, AR or CR; one that names no
patient, AE or CE. No answer repeats anything of the message but its header's names and its control identifier.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

from features.sources.hl7v2_grammar import STANDARD, Segment
from features.sources.hl7v2_message import Header, Reading, opened
from features.sources.hl7v2_visits import about
from features.sources.vocabulary import NO_MAP
from serving.store.messages import Arrival

HEAD: Final = 16_384
"""Bytes in which the header and the patient are looked for."""
CONTROL: Final = 4096
"""Signs of MSH-10 that are repeated; the standard allows 199."""
KEPT: Final = 65_536
"""Bytes kept of a message that is too large."""
NEEDS_PATIENT: Final = frozenset({"ADT", "ORU", "OUL", "RDE", "RAS", "RDS", "ORM", "OMP"})
UTC_ZONE: Final = ZoneInfo("UTC")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a message is refused: HL7 table 0357, the place, and what to do."""

    code: str
    answer: str
    number: str
    name: str
    place: str
    remedy: str


FAULTS: Final = {
    fault.code: fault
    for fault in (
        Fault("empty_frame", "AR", "100", "Segment sequence error", "", "The frame is empty. Send a message in it."),
        Fault(
            "no_msh", "AR", "100", "Segment sequence error", "MSH",
            "No MSH segment at the start. Send whole messages.",
        ),
        Fault(
            "frame_cut", "AR", "100", "Segment sequence error", "",
            "The frame did not end: no FS CR before the next VT, the time limit or the end of the connection. "
            "Send the message again.",
        ),
        Fault("too_large", "AR", "207", "Application internal error", "", "The message is larger than the limit, "
              "WARDCAST_MLLP_MAX_BYTES. Send it in parts, or without embedded documents."),
        Fault("no_control_id", "AR", "101", "Required field missing", "MSH^1^10", "MSH-10 is empty. Send it."),
        Fault("no_type", "AR", "101", "Required field missing", "MSH^1^9", "MSH-9 names no message type. Send it."),
        Fault(
            "version", "AR", "203", "Unsupported version id", "MSH^1^12", "MSH-12 is no version 2. Send 2.1 to 2.8.",
        ),
        Fault(
            "sender", "AR", "207", "Application internal error", "MSH^1^3",
            "This sender is not among WARDCAST_MLLP_SENDERS. Have it added, or send from one that is.",
        ),
        Fault("busy", "AR", "207", "Application internal error", "",
              "Too many connections. Close some, and send the message again."),
        Fault("no_patient", "AE", "101", "Required field missing", "PID^1^3", "No patient identifier. Send PID-3."),
        Fault(
            "not_stored", "AE", "207", "Application internal error", "",
            "The message could not be stored, and is not. Send it again later.",
        ),
    )
}  # fmt: skip
CONFLICT: Final = "another message came under this identity before; both are kept. Give each its own MSH-10."
REPEATED: Final = "this very message was taken before; it takes effect once."


@dataclass(frozen=True, slots=True)
class Wish:
    """Which answers the sender wants: MSH-15 and MSH-16, empty in the original mode."""

    accept: str = ""
    application: str = ""

    @property
    def enhanced(self) -> bool:
        """Whether the sender speaks of acknowledgement at all."""
        return bool(self.accept or self.application)

    def code(self, answer: str) -> str:
        """AA, AE or AR as it is to be sent; empty where the sender wants none.

        Where an accept acknowledgement is asked for, the one answer on this connection is that one: a second would
        reach a sender that reads one answer a message as the answer to the next.
        """
        if not self.enhanced:
            return answer
        if self.accept and self.accept != "NE":
            return f"C{answer[1]}" if _wanted(self.accept, answer) else ""
        return answer if _wanted(self.application, answer) else ""


def _wanted(condition: str, answer: str) -> bool:
    return {"AL": True, "ER": answer != "AA", "SU": answer == "AA", "": False, "NE": False}.get(
        condition, True
    )


@dataclass(frozen=True, slots=True)
class Letter:
    """A message as far as answering it goes: what is to be kept of it, and how it is to be answered."""

    arrival: Arrival
    header: Header
    wish: Wish
    fault: Fault | None = None
    control: str = ""
    """MSH-10 as it is to be repeated in MSA-2, written with the usual encoding characters."""


def read(
    frame: bytes, senders: Collection[str] = (), fault: str = "", size: int = 0, digest: bytes = b""
) -> Letter:
    """Look at a message as it came, and decide.

    Parameters
    ----------
    frame : bytes, without the frame of MLLP
    senders : allowed MSH-3, or MSH-3@MSH-4; everyone where empty
    fault : what is known to be wrong already, a key of :data:`FAULTS`
    size, digest : of the whole message where ``frame`` is its beginning
    """
    head = _head(frame)
    reading, segments = opened(head, UTC_ZONE, NO_MAP)
    header = reading.out.header
    wish = Wish(segments[0].get(15).upper(), segments[0].get(16).upper()) if segments else Wish()
    found = fault or _fault(frame, reading, segments, senders)
    wrong = FAULTS[found] if found else None
    answer = wrong.answer if wrong else "AA"
    control = _control(segments)
    identity = (header.sending_application[:256], header.sending_facility[:256], control[:256])
    arrival = Arrival(
        identity, frame if wrong is None else frame[:KEPT], header.kind[:64], header.version[:16], answer,
        found or None, size or len(frame), digest,
    )  # fmt: skip
    return Letter(arrival, header, wish, wrong, control)


def _control(segments: Sequence[Segment]) -> str:
    """MSH-10, whole: a sender compares it with MSA-2 sign by sign."""
    if not segments:
        return ""
    header = segments[0]
    written = header.raw(10)
    if header.marks == STANDARD:
        return "".join(c for c in written[:CONTROL] if c.isprintable())
    return _safe(header.decode(written)[:CONTROL])


def _head(frame: bytes) -> bytes:
    """The first segments, whole."""
    if len(frame) <= HEAD:
        return frame
    cut = max(frame.rfind(b"\r", 0, HEAD), frame.rfind(b"\n", 0, HEAD))
    # UTF-16 has two bytes a character, and the line end may be either.
    return frame[
        : cut if cut > 0 and frame[:2] not in (b"\xff\xfe", b"\xfe\xff", b"M\x00", b"\x00M") else HEAD
    ]


def _fault(frame: bytes, reading: Reading, segments: Sequence[Segment], senders: Collection[str]) -> str:
    header = reading.out.header
    if not frame.strip(b"\r\n\t \x00"):
        return "empty_frame"
    if not segments:
        return "no_msh"
    who = f"{header.sending_application}@{header.sending_facility}"
    if senders and header.sending_application not in senders and who not in senders:
        return "sender"
    if not header.type:
        return "no_type"
    if not segments[0].raw(10):
        return "no_control_id"
    if header.version and not re.fullmatch(r"2(\.\d.*)?", header.version):
        return "version"
    if header.type not in NEEDS_PATIENT:
        return ""
    for segment in segments:
        if segment.name == "PID":
            about(reading, segment)
    return "" if reading.out.persons else "no_patient"


def answer(letter: Letter, now: datetime, *, repeated: bool = False, conflict: bool = False) -> bytes:
    """The acknowledgement, without the frame of MLLP; empty where the sender wants none."""
    code = letter.wish.code(letter.fault.answer if letter.fault else "AA")
    if not code:
        return b""
    header, fault = letter.header, letter.fault
    stamp = now.astimezone(UTC).strftime("%Y%m%d%H%M%S.%f")
    to = f"{_safe(header.sending_application)}|{_safe(header.sending_facility)}"
    kind = f"ACK^{_safe(header.trigger)}^ACK" if header.trigger else "ACK"
    own = f"W{stamp.replace('.', '')}"
    version = _safe(header.version) if re.fullmatch(r"2(\.\d.*)?", header.version) else "2.5"
    msh = f"MSH|^~\\&|WARDCAST||{to}|{stamp[:-2]}+0000||{kind}|{own}|{_safe(header.processing) or 'P'}|{version}"
    told = fault.remedy if fault else CONFLICT if conflict else REPEATED if repeated else ""
    lines = [msh, f"MSA|{code}|{letter.control}|{_safe(told)}"]
    if fault:
        lines.append(_err(fault.place, fault.number, fault.name, "E", fault.remedy))
    elif conflict:
        lines.append(_err("MSH^1^10", "205", "Duplicate key identifier", "W", CONFLICT))
    # A sender that writes UTF-16 reads ASCII all the same; what is beyond it comes as UTF-8.
    codec = "utf-8" if header.charset.startswith(("utf-16", "utf-32")) else header.charset or "ascii"
    return ("\r".join(lines) + "\r").encode(codec, "replace")


def _err(place: str, number: str, name: str, severity: str, told: str) -> str:
    return f"ERR||{place}|{number}^{name}^HL70357|{severity}||||{_safe(told)}"


def _safe(text: str) -> str:
    """Text as a field, escaped."""
    escapes = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "~": "\\R\\", "&": "\\T\\"}
    return "".join(escapes.get(c, c if c.isprintable() else " ") for c in text)
