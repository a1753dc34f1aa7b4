"""Facts one by one, as messages and resources bring them, and the stays they belong to.

A reader of messages cannot work in columns: it meets one fact at a time, and learns who is in hospital as it goes.
:class:`Fact` is a row of the event table, :class:`Stays` what has been learnt of encounters. Times are int64
microseconds since the epoch, ``events.NAT`` for none.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, cast
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from features.errors import DataError
from features.events import EVENT_COLUMNS, NAT
from features.sources.batch import ReadAccount, event_table, no_encounters

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
YEAR_US: Final = 365.25 * 86_400e6
LOCATION: Final = "WARDCAST//location"


class Fact(NamedTuple):
    """One row of the event table, in the order of ``events.EVENT_COLUMNS``, times in microseconds."""

    subject_id: str
    encounter_id: str
    time: int
    available_time: int
    code: str
    concept: str = ""
    numeric_value: float = math.nan
    text_value: str | None = None
    unit: str | None = None
    status: str = "final"
    source_id: str = ""


class Problem(NamedTuple):
    """What could not be read of a message or resource: where, why and what to do, never a value.

    ``lost`` says that it made no event; otherwise it is something that had to be assumed.
    """

    where: str
    field: str
    reason: str
    remedy: str
    lost: bool = True


class Moment(NamedTuple):
    """When something happened, and the first moment it can have been known: the next day for a bare date."""

    time: int
    known: int


NEVER: Final = Moment(NAT, NAT)


class Merge(NamedTuple):
    """Two identities that are one: ``kind`` is subject or encounter; ``prior`` lives on as ``surviving``."""

    kind: str
    prior: str
    surviving: str


@dataclass(slots=True)
class Stay:
    """What one message or resource says of an encounter; empty and NAT where it says nothing."""

    encounter_id: str
    subject_id: str = ""
    kind: str = ""
    unit: str = ""
    specialty: str = ""
    admitted: int = NAT
    discharged: int = NAT
    part_of: str = ""
    reopened: bool = False
    """Its discharge was cancelled."""


@dataclass(slots=True)
class Person:
    """What is known of a patient: date of birth (midday UTC) and sex (male, female or empty)."""

    subject_id: str
    born: int = NAT
    sex: str = ""


@contextmanager
def unpacked(file: Path) -> Iterator[IO[bytes]]:
    """A file to read bytes from, unpacked when it ends in ``.gz``.

    Raises
    ------
    DataError
        It cannot be opened, or is cut short or no gzip.
    """
    try:
        with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as stream:
            yield cast(IO[bytes], stream)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{file.name} could not be read ({type(error).__name__}). Is it a whole file?"
        ) from None


def zone(timezone: str) -> ZoneInfo:
    """A time zone by its name.

    Raises
    ------
    DataError
        There is no such zone.
    """
    try:
        return ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise DataError(f"There is no time zone {timezone!r}. Write for example Europe/London.") from None


def micros(instant: datetime, where: ZoneInfo) -> int:
    """Microseconds since the epoch; an instant without an offset is local time, in the first of two equal hours."""
    aware = instant if instant.tzinfo is not None else instant.replace(tzinfo=where)
    return (aware - EPOCH) // MICROSECOND


def bare_date(instant: datetime, where: ZoneInfo) -> Moment:
    """A date without a time of day: it begins at midnight and is known the next day."""
    return Moment(micros(instant, where), micros(instant + timedelta(days=1), where))


def latest(*times: int) -> int:
    """The latest of some times, NAT where there is none."""
    return max(times, default=NAT)


def number(text: str) -> tuple[float, bool]:
    """The number a text stands for, and whether it is only a limit (``<0.3``); NaN for words."""
    bare = text.strip()
    limit = bare.lstrip("<>=≤≥ ")
    try:
        value = float(limit)
    except ValueError:
        return math.nan, False
    # Python also reads "nan", "infinity" and "1_000", which nobody means.
    if not math.isfinite(value) or "_" in limit:
        return math.nan, False
    return value, bare != limit


def table(facts: Sequence[Fact]) -> pd.DataFrame:
    """Facts as an event table; empty texts are missing."""
    if not facts:
        return event_table()
    # Made in one go: a table that is put together column by column costs a message seven times as much.
    columns: dict[str, Any] = {}
    for name, values in zip(EVENT_COLUMNS, zip(*facts, strict=True), strict=True):
        if name in ("time", "available_time"):
            columns[name] = instants(values)
        elif name == "numeric_value":
            columns[name] = np.array(values, dtype=np.float64)
        else:
            columns[name] = pd.array(values, dtype="str")
    return pd.DataFrame(columns)


def instants(values: Sequence[int]) -> pd.DatetimeIndex:
    """Microseconds since the epoch as ``datetime64[us, UTC]``."""
    return pd.DatetimeIndex(np.array(values, dtype=np.int64).view("datetime64[us]")).tz_localize("UTC")


@dataclass
class Stays:
    """Encounters and patients as they become known while a source is read.

    ``learn`` takes what a message says, ``home`` finds the encounter of a fact, ``encounters`` and ``closing`` give
    the tables once everything is read. Memory grows with encounters, not with events.
    """

    stays: dict[str, Stay] = field(default_factory=dict)
    persons: dict[str, Person] = field(default_factory=dict)
    same: dict[tuple[str, str], str] = field(default_factory=dict)
    implied: set[str] = field(default_factory=set)
    """Encounters that no message describes, only facts refer to."""
    _first: dict[str, int] = field(default_factory=dict)
    _moves: dict[str, dict[str, Fact]] = field(default_factory=dict)
    _of: dict[str, list[str]] = field(default_factory=dict)
    _children: dict[str, list[str]] = field(default_factory=dict)

    def merge(self, merge: Merge) -> None:
        """Two identities are one from now on, and have been all along."""
        if not (merge.prior and merge.surviving) or merge.prior == self.id(merge.kind, merge.surviving):
            return
        self.same[merge.kind, merge.prior] = merge.surviving
        if merge.kind == "subject":
            surviving = self.id("subject", merge.surviving)
            for name in self._of.pop(merge.prior, ()):
                self.stays[name].subject_id = surviving
                self._of.setdefault(surviving, []).append(name)

    def id(self, kind: str, name: str) -> str:
        """The identity that a subject or encounter lives on as."""
        while (kind, name) in self.same:
            name = self.same[kind, name]
        return name

    def learn(self, stay: Stay | None, person: Person | None = None) -> None:
        """Take in what a message says; what it leaves empty stays as it was."""
        if person is not None:
            self._learn_person(person)
        if stay is None or not stay.encounter_id:
            return
        name = self.id("encounter", stay.encounter_id)
        known = self.stays.setdefault(name, Stay(name))
        self.implied.discard(name)
        for said in ("kind", "unit", "specialty", "part_of"):
            if getattr(stay, said):
                setattr(known, said, getattr(stay, said))
        if stay.subject_id and not known.subject_id:
            known.subject_id = self.id("subject", stay.subject_id)
            self._of.setdefault(known.subject_id, []).append(name)
        if stay.admitted != NAT:
            known.admitted = stay.admitted if known.admitted == NAT else min(stay.admitted, known.admitted)
        if stay.discharged != NAT or stay.reopened:
            known.discharged = stay.discharged

    def _learn_person(self, person: Person) -> None:
        name = self.id("subject", person.subject_id)
        known = self.persons.setdefault(name, Person(name))
        known.born = person.born if person.born != NAT else known.born
        known.sex = person.sex or known.sex

    def whole(self, encounter: str) -> str:
        """The encounter that this one is a part of, itself when of none."""
        seen = set()
        name = self.id("encounter", encounter)
        while name in self.stays and self.stays[name].part_of and name not in seen:
            seen.add(name)
            name = self.id("encounter", self.stays[name].part_of)
        return name

    def at(self, subject: str, time: int) -> str:
        """The encounter of a patient that contains a time, the latest begun among several; empty for none."""
        found, begun = "", NAT
        for name in self._of.get(subject, ()):
            stay = self.stays[name]
            inside = stay.admitted != NAT and stay.admitted <= time
            open_ended = stay.discharged == NAT
            if inside and (open_ended or time <= stay.discharged) and (not found or stay.admitted > begun):
                found, begun = name, stay.admitted
        return self.whole(found) if found else ""

    def home(self, fact: Fact) -> Fact | str:
        """The fact with its patient and encounter filled in, or the reason why it has none."""
        subject = self.id("subject", fact.subject_id)
        if fact.time == NAT:
            return "no_time"
        encounter = self.whole(fact.encounter_id) if fact.encounter_id else self.at(subject, fact.time)
        if not encounter:
            return "no_encounter" if subject else "no_subject"
        stay = self.stays.get(encounter)
        if stay is None or not stay.subject_id:
            if not subject:
                return "no_subject"
            if stay is None:
                self.implied.add(encounter)
                stay = self.stays.setdefault(encounter, Stay(encounter))
            stay.subject_id = subject
            self._of.setdefault(subject, []).append(encounter)
        if subject and stay.subject_id != subject:
            return "encounter_of_another_subject"
        placed = fact._replace(subject_id=stay.subject_id, encounter_id=encounter)
        self._see(placed)
        return placed

    def _see(self, fact: Fact) -> None:
        if fact.status != "deleted":
            first = self._first.get(fact.encounter_id)
            self._first[fact.encounter_id] = fact.time if first is None else min(first, fact.time)
        if fact.code == LOCATION:
            moves = self._moves.setdefault(fact.encounter_id, {})
            if fact.status == "deleted":
                moves.pop(fact.source_id, None)
            else:
                moves[fact.source_id] = fact

    def _path(self, encounter: str) -> list[Fact]:
        return sorted(
            self._moves.get(encounter, {}).values(), key=lambda move: (move.time, move.available_time)
        )

    def last_move(self, encounter: str) -> str:
        """Identity of the latest transfer of an encounter so far, admission and discharge apart; empty for none."""
        moves = [m for m in self._path(self.whole(encounter)) if "#move" in m.source_id]
        return moves[-1].source_id if moves else ""

    def closing(self) -> list[Fact]:
        """Discharges from intensive care: the moves from there to anywhere else."""
        ends = []
        for encounter in self._moves:
            path = self._path(encounter)
            for here, there in pairwise(path):
                if here.text_value == "icu" and there.text_value != "icu":
                    ends.append(
                        there._replace(
                            code="WARDCAST//icu_discharge",
                            concept="icu_discharge",
                            numeric_value=1.0,
                            text_value=None,
                        )
                    )
        return ends

    def encounters(self, account: ReadAccount) -> pd.DataFrame:
        """The table of whole encounters, those without any time left out and counted."""
        rows = []
        for name, stay in self.stays.items():
            if self.whole(name) != name:
                continue
            first = min((t for t in (stay.admitted, self._first.get(name, NAT)) if t != NAT), default=NAT)
            admitted = stay.admitted if stay.admitted != NAT else first
            if admitted == NAT or not stay.subject_id:
                account.leave("encounters", "no_time" if admitted == NAT else "no_subject", 1)
                continue
            rows.append(self._row(stay, admitted))
        if self.implied:
            account.note(
                f"{len(self.implied):,} encounters are known only because facts refer to them; "
                "their admission is taken to be their first fact."
            )
        return _encounter_table(rows)

    def _row(self, stay: Stay, admitted: int) -> tuple[object, ...]:
        person = self.persons.get(stay.subject_id, Person(stay.subject_id))
        age = (admitted - person.born) / YEAR_US if person.born != NAT else math.nan
        icu = [move.time for move in self._path(stay.encounter_id) if move.text_value == "icu"]
        return (
            stay.encounter_id,
            stay.subject_id,
            "icu" if icu else stay.kind,
            stay.unit,
            stay.specialty,
            age if age >= 0 else math.nan,
            person.sex,
            "",
            admitted,
            icu[0] if icu else NAT,
        )


def _encounter_table(rows: list[tuple[object, ...]]) -> pd.DataFrame:
    blank = no_encounters()
    if not rows:
        return blank
    columns: dict[str, Any] = {}
    for name, values in zip(blank.columns, zip(*rows, strict=True), strict=True):
        if name.endswith("_time"):
            columns[name] = instants(cast(Sequence[int], values))
        elif name == "age_years":
            columns[name] = np.array(values, dtype=np.float64)
        else:
            columns[name] = pd.array(values, dtype="str")
    return pd.DataFrame(columns)


@dataclass
class Shelf:
    """Facts that wait to become a batch, each with its encounter found or counted as left."""

    stays: Stays
    account: ReadAccount
    facts: list[Fact] = field(default_factory=list)

    def put(self, table: str, facts: Iterable[Fact]) -> int:
        """Shelve the facts of a row of ``table``; how many found a place."""
        placed = 0
        for fact in facts:
            home = self.stays.home(fact)
            if isinstance(home, str):
                self.account.leave(table, home, 1)
            else:
                self.facts.append(home)
                placed += 1
        if placed:
            self.account.events[table] += placed
        return placed

    def take(self) -> pd.DataFrame:
        """The facts so far, as an event table; the shelf is empty again."""
        facts, self.facts = self.facts, []
        return table(facts)
