"""What HL7 v2 messages and FHIR resources say, on its way to :func:`serving.ingest.events.take_in`.

Such messages name patients, visits and moves where the API names encounters. Here each fact finds its encounter, merged
identities become one, and the present picture of an encounter (where the patient is, since when, whether they have
left) is made anew from the moves that stand: a cancelled transfer, or one that comes late, leaves the picture that the
right order would have left.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection

from features.events import NAT
from features.sources.facts import YEAR_US, Fact, Merge, Person, Problem, Stay
from serving.clock import from_us
from serving.ingest.events import Item, Verdict, take_in
from serving.schemas import EncounterIn
from serving.store import facts, people
from serving.store.people import Mark
from serving.store.tables import MARKS

CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]+")
LONGEST_NAME: Final = 128
LONGEST_SOURCE: Final = 256
LONGEST_TEXT: Final = 2000
EARLIEST, LATEST = -2_208_988_800_000_000, 7_258_118_400_000_000
"""1900 to 2199, as the API has it."""
CLASS_OF: Final = {"icu": "icu", "ed": "ed", "ward": "ward", "stepdown": "ward", "l&d": "ward"}
LAST_MOVE: Final = "#move@?"


@dataclass(slots=True)
class Said:
    """What one message or resource says; the lists are those of the readers in :mod:`features.sources`."""

    events: list[Fact] = field(default_factory=list)
    stays: list[Stay] = field(default_factory=list)
    persons: list[Person] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """What became of one :class:`Said`.

    Attributes
    ----------
    verdicts : one an event that found its encounter
    lost : reasons of what found none, or could not be read, with their count
    notes : what had to be assumed
    encounters : those it was about
    homeless : patients of whom it told something at a time when no visit of theirs is known
    """

    verdicts: list[Verdict] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    encounters: set[str] = field(default_factory=set)
    homeless: set[str] = field(default_factory=set)

    @property
    def problems(self) -> Counter[str]:
        """Reason codes with their count: lost, refused, set aside, assumed."""
        said = self.lost + self.notes
        return said + Counter(v.reason for v in self.verdicts if v.reason and v.verdict != "duplicate")

    @property
    def status(self) -> str:
        """``used``, ``duplicate`` where it told nothing new, ``partly`` where something could not be used."""
        if self.lost or any(v.verdict == "rejected" or v.reason for v in self.verdicts):
            used = any(v.verdict == "accepted" and not v.reason for v in self.verdicts)
            return "partly" if used else "unused"
        if self.verdicts and all(v.verdict == "duplicate" for v in self.verdicts):
            return "duplicate"
        return "used" if self.encounters or self.verdicts else "nothing"


@dataclass(frozen=True, slots=True)
class Taken:
    """One outcome a :class:`Said`, in order, and the encounters about which something usable is new."""

    outcomes: list[Outcome]
    affected: list[str]


def take(connection: Connection, said: Sequence[Said], now: int) -> Taken:
    """Write what messages or resources say, in their order and in one transaction.

    Parameters
    ----------
    now : microseconds
        Becomes the received time.
    """
    outcomes: list[Outcome] = []
    affected: set[str] = set()
    for run in _runs(said):
        some, about = _Run(connection, run, now).take()
        outcomes += some
        affected |= about
    return Taken(outcomes, sorted(affected))


def _runs(said: Sequence[Said]) -> Iterable[list[Said]]:
    """Cut before whatever depends on all that came before it being in the store: merges, and "the last move"."""
    run: list[Said] = []
    for one in said:
        if run and (one.merges or any(f.source_id.endswith(LAST_MOVE) for f in one.events)):
            yield run
            run = []
        run.append(one)
    if run:
        yield run


class _Run:
    """Messages that can be written together."""

    def __init__(self, connection: Connection, said: Sequence[Said], now: int) -> None:
        self.connection, self.now = connection, now
        self.said = [_named(one) for one in said]
        self.outcomes = [_outcome(one) for one in said]
        self.same: dict[str, dict[str, str]] = {"subject": {}, "encounter": {}}
        self.affected: set[str] = set()
        self.pictures: dict[str, dict[str, Any]] = {}
        self.visits: dict[str, dict[str, None]] = {}
        self.told: dict[str, dict[str, Any]] = {}
        self.kinds: dict[str, str] = {}
        self.people: dict[str, tuple[int | None, str | None]] = {}
        self.about: dict[str, list[int]] = {}
        self.moved: set[str] = set()
        self.ends: dict[str, int | None] = {}

    def take(self) -> tuple[list[Outcome], set[str]]:
        self._merge()
        self._load()
        items: list[Item] = []
        owners: list[int] = []
        for k, one in enumerate(self.said):
            self._learn(k, one)
            for fact in one.events:
                item = self._item(k, fact)
                if item is not None:
                    items.append(item)
                    owners.append(k)
        self._write(self.told, items, owners)
        self._draw()
        return self.outcomes, self.affected

    def _merge(self) -> None:
        """Join identities before anything else is read of the message that says so."""
        for k, one in enumerate(self.said):
            for merge in one.merges:
                prior, then = merge.prior, merge.surviving
                if merge.kind == "visit_moved":
                    visits = [s.encounter_id for s in one.stays]
                    self._join(dict.fromkeys(visits, then), k)
                elif not prior or not then or prior == then:
                    self.outcomes[k].lost["merge_incomplete"] += 1
                elif merge.kind == "subject":
                    people.add_merge(self.connection, "subject", prior, then, self.now)
                    theirs = people.encounters_of(self.connection, [prior])
                    self._join(dict.fromkeys(theirs, then), k)
                else:
                    people.add_merge(self.connection, "encounter", prior, then, self.now)
                    self._carry(prior, then, k)

    def _join(self, subjects: Mapping[str, str], k: int) -> None:
        """Give encounters to another patient; what they had been scored from stays theirs."""
        known = _latest(self.connection, subjects)
        news = [_encounter(who, {"subject_id": subjects[who]}) for who in known]
        receipt = take_in(self.connection, news, [], self.now)
        self.affected |= set(receipt.affected)
        self.outcomes[k].encounters |= set(known)

    def _carry(self, prior: str, then: str, k: int) -> None:
        """Carry the facts that stand of one encounter over to the one it lives on as, and end it."""
        known = _latest(self.connection, [prior, then])
        self.outcomes[k].encounters |= set(known)
        if prior not in known:
            return
        if then not in known:
            subject = known[prior]["subject_id"]
            take_in(self.connection, [_encounter(then, {"subject_id": subject})], [], self.now)
        rows = people.standing_events(self.connection, prior)
        items = [_again(row, then, self.now) for row in rows]
        gone = _encounter(prior, {"discharge_time": self.now})
        receipt = take_in(self.connection, [gone], items, self.now)
        self.affected |= set(receipt.affected)
        self.moved.add(then)

    def _load(self) -> None:
        """What the store knows of everyone the messages are about."""
        named = [pair for one in self.said for pair in _pairs(one)]
        subjects = {subject for subject, _ in named} - {""}
        visits = {visit for _, visit in named} - {""}
        self.same["subject"] = people.surviving(self.connection, "subject", subjects)
        self.same["encounter"] = people.surviving(self.connection, "encounter", visits)
        subjects = {self._id("subject", s) for s in subjects}
        visits = {self._id("encounter", v) for v in visits}
        self.pictures = people.encounters_of(self.connection, subjects) | _latest(self.connection, visits)
        subjects |= {about["subject_id"] for about in self.pictures.values()}
        for who, about in self.pictures.items():
            self.visits.setdefault(about["subject_id"], {})[who] = None
        self.people = people.read_persons(self.connection, subjects)

    def _id(self, kind: str, name: str) -> str:
        return self.same[kind].get(name, name)

    def _learn(self, k: int, one: Said) -> None:
        """Take in what a message says of patients and visits."""
        fresh: dict[str, tuple[int | None, str | None]] = {}
        for person in one.persons:
            who = self._id("subject", person.subject_id)
            born, sex = self.people.get(who, (None, None))
            known = (_time(person.born) or born, person.sex or sex)
            if known != self.people.get(who):
                fresh[who] = self.people[who] = known
        people.add_persons(self.connection, fresh, self.now)
        for stay in one.stays:
            self._stay(k, stay)
        for subject in fresh:
            for who in self._visits(subject):
                self._personal(who)

    def _stay(self, k: int, stay: Stay) -> None:
        who = self._id("encounter", stay.encounter_id)
        subject = self._id("subject", stay.subject_id)
        if not who:
            return
        known = self.pictures.get(who, {}).get("subject_id")
        if known and subject and known not in (subject, who):
            # A visit number that belongs to somebody else is the gravest of mistakes: nothing of it is used.
            self.outcomes[k].lost["encounter_of_another_subject"] += 1
            return
        self._open(who, subject or known or who)
        said = {"unit": stay.unit, "specialty": stay.specialty}
        news: dict[str, Any] = {name: _name(text) for name, text in said.items() if text}
        if _time(stay.admitted) is not None:
            news["hospital_admission_time"] = stay.admitted
        if stay.reopened or stay.discharged != NAT:
            self.ends[who] = None if stay.reopened else _time(stay.discharged)
        if stay.kind:
            self.kinds[who] = stay.kind
        self._tell(k, who, news)
        self._personal(who)

    def _open(self, who: str, subject: str) -> None:
        """Begin to know an encounter, or whose it is."""
        if self.pictures.get(who, {}).get("subject_id") != subject:
            self.pictures.setdefault(who, {})["subject_id"] = subject
            self.visits.setdefault(subject, {})[who] = None
            self.told.setdefault(who, {})["subject_id"] = subject

    def _tell(self, k: int, who: str, news: Mapping[str, Any]) -> None:
        self.told.setdefault(who, {}).update(news)
        self.pictures[who].update(news)
        self.about.setdefault(who, []).append(k)
        self.outcomes[k].encounters.add(who)
        self.moved.add(who)

    def _personal(self, who: str) -> None:
        """Age and sex of a patient, on the encounter; the age is that at admission."""
        about = self.pictures[who]
        born, sex = self.people.get(about["subject_id"], (None, None))
        when = next((t for t in map(about.get, ("hospital_admission_time", "arrival_time")) if t), self.now)
        if sex:
            self.told.setdefault(who, {})["sex"] = sex
        if born is not None and 0 <= (age := math.floor((when - born) / YEAR_US)) <= 130:
            self.told.setdefault(who, {})["age_years"] = float(age)

    def _item(self, k: int, fact: Fact) -> Item | None:
        """The event of a fact, or None; the outcome then says why."""
        if not EARLIEST <= fact.time < LATEST:
            self.outcomes[k].lost["no_time"] += 1
            return None
        who = self._home(fact)
        if not who:
            self.outcomes[k].lost["no_encounter" if fact.subject_id else "no_subject"] += 1
            self.outcomes[k].homeless |= {self._id("subject", fact.subject_id)} - {""}
            return None
        subject, known = self._id("subject", fact.subject_id), self.pictures.get(who, {}).get("subject_id")
        if known and subject and known not in (subject, who):
            self.outcomes[k].lost["encounter_of_another_subject"] += 1
            return None
        self._open(who, subject or known or who)
        self.about.setdefault(who, []).append(k)
        self.outcomes[k].encounters.add(who)
        if fact.concept in MARKS:
            self.moved.add(who)
        return _told(self._aimed(who, fact), who, self.now)

    def _home(self, fact: Fact) -> str:
        """The encounter of a fact: the one it names, else the patient's own that contains its time."""
        if fact.encounter_id:
            return self._id("encounter", fact.encounter_id)
        subject = self._id("subject", fact.subject_id)
        inside = [
            (_begun(self.pictures[who]), who)
            for who in self._visits(subject)
            if _contains(self.pictures[who], fact.time)
        ]
        return max(inside)[1] if inside and subject else ""

    def _visits(self, subject: str) -> list[str]:
        """The encounters that are a patient's now."""
        every = self.visits.get(subject, ())
        return [who for who in every if self.pictures[who]["subject_id"] == subject]

    def _aimed(self, who: str, fact: Fact) -> Fact:
        """A cancelled transfer that does not say which: it is the latest of its visit."""
        if not fact.source_id.endswith(LAST_MOVE):
            return fact
        course = people.courses(self.connection, [who]).get(who, [])
        moves = [m for m in course if "#move" in m.source_id and m.status != "deleted"]
        return fact._replace(source_id=moves[-1].source_id) if moves else fact

    def _write(
        self, told: Mapping[str, Mapping[str, Any]], items: Sequence[Item], owners: Sequence[int]
    ) -> None:
        news = [_encounter(who, said) for who, said in told.items()]
        receipt = take_in(self.connection, news, items, self.now)
        self.affected |= set(receipt.affected)
        for k, verdict in zip(owners, receipt.events, strict=True):
            self.outcomes[k].verdicts.append(verdict)
        for who, verdict in zip(told, receipt.encounters, strict=True):
            if verdict.verdict == "rejected":
                for k in set(self.about.get(who, ())):
                    self.outcomes[k].lost[verdict.reason or "rejected"] += 1

    def _draw(self) -> None:
        """Make the pictures of encounters anew from their course, where that may have changed."""
        courses = people.courses(self.connection, self.moved)
        known = _latest(self.connection, self.moved)
        drawn: dict[str, dict[str, Any]] = {}
        for who in sorted(self.moved & known.keys()):
            picture = _picture(courses.get(who, []), self.kinds.get(who, ""), known[who])
            if not any(m.concept in ("hospital_discharge", "death") for m in courses.get(who, ())):
                picture = self._told_end(who) | picture
            drawn[who] = {name: value for name, value in picture.items() if known[who].get(name) != value}
        self._write({who: news for who, news in drawn.items() if news}, [], [])

    def _told_end(self, who: str) -> dict[str, Any]:
        return {"discharge_time": self.ends[who]} if who in self.ends else {}


def _latest(connection: Connection, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    return facts.latest(connection, ids)


def _picture(course: Sequence[Mark], kind: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """What the marks of an encounter say of it now; only what they can say.

    ``kind`` is what the sender calls the visit, which counts where no move says more.
    """
    stands = [m for m in course if m.status != "deleted"]
    path = [m for m in stands if m.concept == "location" and m.place != "left"]
    picture: dict[str, Any] = {}
    classes = [CLASS_OF[m.place] for m in path if m.place in CLASS_OF]
    if classes:
        picture["encounter_class"] = classes[-1]
        picture["icu_admission_time"] = next((m.time for m in path if m.place == "icu"), None)
    elif any(m.concept == "location" for m in course):
        picture |= {"encounter_class": None, "icu_admission_time": None}
    elif kind in ("ed", "ward") and not known.get("encounter_class"):
        picture["encounter_class"] = kind
    for concept, name in (("hospital_admission", "hospital_admission_time"), ("ed_arrival", "arrival_time")):
        times = [m.time for m in stands if m.concept == concept]
        if times:
            picture[name] = times[0]
        elif any(m.concept == concept for m in course):
            picture[name] = None
    return picture | _end(course, stands)


def _end(course: Sequence[Mark], stands: Sequence[Mark]) -> dict[str, Any]:
    """When the patient left: discharged, died, or never was admitted."""
    ends = [m.time for m in stands if m.concept in ("hospital_discharge", "death")]
    if ends:
        return {"discharge_time": ends[-1]}
    begun = ("hospital_admission", "ed_arrival")
    if any(m.concept in begun for m in course) and not any(m.concept in begun for m in stands):
        return {"discharge_time": max(m.available_time for m in course if m.concept in begun)}
    left = any(m.concept in ("hospital_discharge", "death", *begun) for m in course)
    return {"discharge_time": None} if left else {}


def _encounter(who: str, said: Mapping[str, Any]) -> EncounterIn:
    """An encounter for the one way in; times as the API has them."""
    told = {
        name: from_us(value) if name.endswith("_time") and value is not None else value
        for name, value in said.items()
    }
    return EncounterIn.model_validate({"encounter_id": who} | told)


def _told(fact: Fact, who: str, now: int) -> Item:
    value = None if math.isnan(fact.numeric_value) else fact.numeric_value
    text = None if fact.text_value is None else CONTROL.sub(" ", fact.text_value)[:LONGEST_TEXT]
    unit = CONTROL.sub(" ", fact.unit)[:64] if fact.unit else None
    stated = fact.available_time if EARLIEST <= fact.available_time < LATEST else None
    source = _name(_source(fact), LONGEST_SOURCE) or None
    return Item.told(
        (who, _name(fact.code, LONGEST_SOURCE), fact.time, stated),
        (value, text, unit, fact.status),
        source,
        now,
        concept=fact.concept or None,
    )


def _source(fact: Fact) -> str:
    """The identity of a fact. One of an admission or discharge names several facts, each of which stands by itself."""
    several = fact.source_id and fact.concept in MARKS and not fact.source_id.endswith(f"/{fact.concept}")
    return f"{fact.source_id}/{fact.concept}" if several else fact.source_id


def _again(row: Any, encounter_id: str, now: int) -> Item:
    """A stored event, told of another encounter."""
    return Item.told(
        (encounter_id, row.code, row.time, row.available_time),
        (row.raw_value, row.raw_text, row.raw_unit, row.status),
        row.source_id,
        now,
        concept=row.concept,
    )


def _named(one: Said) -> Said:
    """The same with identities that the store can keep."""
    if all(len(i) <= LONGEST_NAME and not CONTROL.search(i) for i in _identities(one)):
        return one
    for stay in one.stays:
        stay.encounter_id, stay.subject_id = _name(stay.encounter_id), _name(stay.subject_id)
    for person in one.persons:
        person.subject_id = _name(person.subject_id)
    events = [
        f._replace(subject_id=_name(f.subject_id), encounter_id=_name(f.encounter_id)) for f in one.events
    ]
    merges = [Merge(m.kind, _name(m.prior), _name(m.surviving)) for m in one.merges]
    return Said(events, one.stays, one.persons, merges, one.problems)


def _pairs(one: Said) -> Iterable[tuple[str, str]]:
    """The subject and the encounter of everything that is said; empty where not named."""
    yield from ((fact.subject_id, fact.encounter_id) for fact in one.events)
    yield from ((stay.subject_id, stay.encounter_id) for stay in one.stays)
    yield from ((person.subject_id, "") for person in one.persons)


def _identities(one: Said) -> Iterable[str]:
    for pair in _pairs(one):
        yield from pair
    for merge in one.merges:
        yield merge.prior
        yield merge.surviving


def _name(text: str, longest: int = LONGEST_NAME) -> str:
    """A name without control characters, and one that is too long by its beginning and its hash."""
    bare = CONTROL.sub(" ", text).strip()
    if len(bare) <= longest:
        return bare
    return f"{bare[: longest - 33]}#{hashlib.sha256(bare.encode()).hexdigest()[:32]}"


def _outcome(one: Said) -> Outcome:
    outcome = Outcome()
    for problem in one.problems:
        (outcome.lost if problem.lost else outcome.notes)[problem.reason] += 1
    return outcome


def _time(when: int) -> int | None:
    return when if EARLIEST <= when < LATEST else None


def _begun(about: Mapping[str, Any]) -> int:
    times = (about.get(n) for n in ("hospital_admission_time", "arrival_time", "icu_admission_time"))
    return min((t for t in times if t is not None), default=EARLIEST)


def _contains(about: Mapping[str, Any], time: int) -> bool:
    left = about.get("discharge_time")
    return _begun(about) <= time and (left is None or time <= left)
