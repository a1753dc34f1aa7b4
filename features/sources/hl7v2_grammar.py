"""The grammar of HL7 v2: messages out of a stream of bytes, segments, fields, components, times, escapes.

HL7 v2.8 chapter 2, which describes the earlier versions as well. Nothing here knows what a segment means. A reader of
messages meets everything: frames of MLLP or none, CR, LF or both, any encoding characters, any character set, text in
the wrong place; whatever it is, it is read as far as it goes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path
from typing import IO, Final
from zoneinfo import ZoneInfo

from features.errors import DataError
from features.sources.facts import NEVER, Moment, bare_date, micros, unpacked

CHUNK: Final = 1 << 20
LONGEST: Final = 64 << 20
"""Bytes of a message; an embedded document may be large, but a file without any message is not one message."""
FRAME: Final = b"\x0b\x1c\r\n\t \x00"
BOUNDARY: Final = re.compile(rb"(?:\A|(?<=[\r\n\x0b\x1c]))(?=(?:MSH|FHS|BHS|BTS|FTS)[^A-Za-z0-9\s])")
TIME: Final = re.compile(
    r"(\d{4})(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:(\d\d)(\.\d{1,6}\d*)?)?)?)?)?)?([+-]\d{4})?"
)
SEGMENT: Final = re.compile(r"[A-Z][A-Z0-9]{2}")
CHARSETS: Final = {
    "ASCII": "ascii", "8859/1": "latin-1", "8859/2": "iso8859-2", "8859/3": "iso8859-3", "8859/4": "iso8859-4",
    "8859/5": "iso8859-5", "8859/6": "iso8859-6", "8859/7": "iso8859-7", "8859/8": "iso8859-8", "8859/9": "iso8859-9",
    "8859/15": "iso8859-15", "UNICODE": "utf-8", "UNICODE UTF-8": "utf-8", "UTF-8": "utf-8", "UTF8": "utf-8",
    "UNICODE UTF-16": "utf-16", "UNICODE UTF-32": "utf-32", "ISO IR14": "iso2022_jp", "ISO IR87": "iso2022_jp",
    "ISO IR159": "iso2022_jp_1", "GB 18030-2000": "gb18030", "KS X 1001": "euc_kr", "BIG-5": "big5",
}  # fmt: skip
"""HL7 table 0211, and what senders write instead."""
WIDE: Final = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"M\x00": "utf-16-le", b"\x00M": "utf-16-be"}


@dataclass(frozen=True, slots=True)
class Marks:
    """The encoding characters of MSH-1 and MSH-2."""

    field: str = "|"
    component: str = "^"
    repetition: str = "~"
    escape: str = "\\"
    subcomponent: str = "&"


STANDARD: Final = Marks()


class Segment:
    """One segment; field ``n`` is what the standard numbers ``n``, MSH included. What is not there is empty."""

    __slots__ = ("codec", "fields", "line", "marks", "name")

    def __init__(self, line: str, marks: Marks, codec: str) -> None:
        self.line = line
        self.fields = line.split(marks.field)
        self.name = self.fields[0]
        self.marks = marks
        self.codec = codec
        if self.name == "MSH":
            self.fields.insert(1, marks.field)

    def raw(self, n: int) -> str:
        """A whole field, still encoded; the explicit null ``\"\"`` is empty."""
        found = self.fields[n].strip() if n < len(self.fields) else ""
        return "" if found == '""' else found

    def repetitions(self, n: int) -> list[str]:
        """The repetitions of a field, still encoded."""
        field = self.raw(n)
        return field.split(self.marks.repetition) if field else []

    def get(self, n: int, component: int = 1) -> str:
        """First subcomponent of a component of the first repetition of a field, decoded."""
        field = self.raw(n)
        return self.part(field, component) if field else ""

    def part(self, repetition: str, component: int = 1) -> str:
        """First subcomponent of a component of one repetition, decoded."""
        marks = self.marks
        if marks.repetition in repetition:
            repetition = repetition.split(marks.repetition, 1)[0]
        if marks.component in repetition:
            parts = repetition.split(marks.component, component)
            repetition = parts[component - 1] if component <= len(parts) else ""
        elif component > 1:
            return ""
        if marks.subcomponent in repetition:
            repetition = repetition.split(marks.subcomponent, 1)[0]
        found = self.decode(repetition).strip()
        return "" if found == '""' else found

    def decode(self, encoded: str) -> str:
        """Text with its escape sequences resolved; those that nobody knows stay as they are."""
        escape = self.marks.escape
        if escape not in encoded:
            return encoded
        pattern = _escapes(escape)
        return pattern.sub(lambda m: _meant(m, self.marks, self.codec), encoded)


@lru_cache(maxsize=256)
def _escapes(escape: str) -> re.Pattern[str]:
    mark = re.escape(escape)
    return re.compile(f"{mark}([^{mark}\r\n]{{1,64}}){mark}")


def _meant(match: re.Match[str], marks: Marks, codec: str) -> str:
    said = match[1]
    plain = {
        "F": marks.field, "S": marks.component, "T": marks.subcomponent, "R": marks.repetition, "E": marks.escape,
        "H": "", "N": "", ".br": "\n", ".sp": "\n", ".fi": "", ".nf": "", ".ce": "\n",
    }.get(said)  # fmt: skip
    if plain is not None:
        return plain
    if re.fullmatch(r"X(?:[0-9A-Fa-f]{2})+", said):
        return bytes.fromhex(said[1:]).decode(codec, errors="replace")
    return match[0]


def pieces(file: Path) -> Iterator[bytes]:
    """The messages of a file, one by one and without their frames; batch envelopes come as pieces too.

    Raises
    ------
    DataError
        A piece is longer than any message can be.
    """
    with unpacked(file) as stream:
        yield from split(_chunks(stream), file.name)


def split(chunks: Iterator[bytes], name: str = "the stream") -> Iterator[bytes]:
    """Messages of a stream that comes in chunks; see :func:`pieces`."""
    buffer, searched = b"", 0
    for chunk in chunks:
        buffer += chunk
        starts = [m.start() for m in BOUNDARY.finditer(buffer, searched)]
        # The last one may go on in the next chunk.
        starts = [s for s in starts if s > 0]
        begin = 0
        for start in starts:
            yield from _whole(buffer[begin:start])
            begin = start
        buffer = buffer[begin:]
        searched = max(1, len(buffer) - 4)
        if len(buffer) > LONGEST:
            raise DataError(
                f"{name} has more than {LONGEST >> 20} MB without a new message. Is it HL7 v2, and whole?"
            )
    yield from _whole(buffer)


def _whole(piece: bytes) -> Iterator[bytes]:
    bare = piece.strip(FRAME)
    if bare:
        yield bare


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """The bytes of a stream; UTF-16, whose line ends are not bytes, comes as UTF-8."""
    first = stream.read(CHUNK)
    wide = WIDE.get(first[:2])
    decoder = codecs.getincrementaldecoder(wide)("replace") if wide else None
    while first:
        yield decoder.decode(first).encode("utf-8", "replace") if decoder else first
        first = stream.read(CHUNK)


def text_of(message: bytes) -> tuple[str, str, str]:
    """``(text, codec, problem)`` of a message, by MSH-18; the problem is empty when it said what it is.

    Without MSH-18, UTF-8 is tried before Latin-1, in which everything can be read.
    """
    bare = message.strip(FRAME[:-1])
    wide = WIDE.get(bare[:2])
    if wide:
        return bare.decode(wide, errors="replace").lstrip("\ufeff").strip("\x1c\r\n\t \x0b"), wide, ""
    bare = bare.removeprefix(codecs.BOM_UTF8).strip(FRAME)
    said = _declared(bare)
    codec = CHARSETS.get(said.upper(), "") if said else ""
    for attempt in ([codec] if codec else []) + ["utf-8", "latin-1"]:
        if attempt.startswith(("utf-16", "utf-32")):
            continue
        try:
            decoded = bare.decode(attempt)
        except (UnicodeDecodeError, LookupError):
            continue
        honest = (
            attempt == codec or codec.startswith(("utf-16", "utf-32")) or (not said and attempt == "utf-8")
        )
        return decoded, attempt, "" if honest else ("charset_unknown" if not codec else "charset_wrong")
    raise AssertionError("Latin-1 reads every byte")


def _declared(message: bytes) -> str:
    """MSH-18, its first repetition."""
    header = re.split(rb"[\r\n]", message, maxsplit=1)[0]
    fields = header.split(header[3:4]) if len(header) > 3 else []
    return re.split(r"[~^\\]", fields[17].decode("latin-1"))[0].strip() if len(fields) > 17 else ""


def segments(text: str, codec: str) -> tuple[list[Segment], list[str]]:
    """The segments of a message, and the problems met: ``encoding_characters``, ``stray_line``."""
    marks, odd = _marks(text)
    problems = ["encoding_characters"] if odd else []
    lines: list[str] = []
    for line in text.replace("\r\n", "\r").replace("\n", "\r").split("\r"):
        if SEGMENT.match(line) and line[3:4] in ("", marks.field):
            lines.append(line)
        elif line.strip(" \x0b\x1c\t") and lines:
            # A sender broke a line inside a text: it belongs to the segment before.
            lines[-1] += "\n" + line
            problems = problems if "stray_line" in problems else [*problems, "stray_line"]
    return [Segment(line, marks, codec) for line in lines], problems


def _marks(text: str) -> tuple[Marks, bool]:
    """The encoding characters, and whether they contradict themselves and the usual ones are taken."""
    if len(text) < 4:
        return STANDARD, True
    field = text[3]
    given = re.split(r"[\r\n]", text[4:16].split(field)[0])[0]
    usual = "^~\\&"
    chosen = given[:4] + usual[len(given) :] if len(given) < 4 else given[:4]
    if len(set(field + chosen)) == 5 and not any(c.isalnum() or c.isspace() for c in field + chosen):
        return Marks(field, *chosen), len(given) < 2
    return (Marks(field, *usual) if field not in usual else STANDARD), True


@lru_cache(maxsize=16_384)
def moment(written: str, where: ZoneInfo) -> Moment:
    """When a DTM or TS was; without an offset it is local, a bare date is known the next day.

    ``NEVER`` for what is no time, and for a month or a year, which say too little.
    """
    match = TIME.fullmatch(written)
    if match is None or match[3] is None:
        return NEVER
    year, month, day, hour, minute, second = (int(g) if g else 0 for g in match.groups()[:6])
    fraction = int((match[7] or ".0")[1:7].ljust(6, "0"))
    try:
        local = datetime(year, month, day, hour, minute, second, fraction)  # noqa: DTZ001
        aware = local.replace(tzinfo=_offset(match[8]) if match[8] else where)
        if match[4] is None:
            return bare_date(local if match[8] is None else aware, where)
        when = micros(aware, where)
        return Moment(when, when if match[5] else micros(aware + timedelta(hours=1), where))
    except (ValueError, OverflowError):
        return NEVER


def _offset(written: str) -> timezone:
    minutes = int(written[1:3]) * 60 + int(written[3:5])
    return timezone(timedelta(minutes=-minutes if written[0] == "-" else minutes))
