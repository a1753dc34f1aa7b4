"""Reads the concept tables once, and refuses them when they contradict themselves.

Tables and their keys: ``concepts.csv`` (concept), ``codes/*.csv`` (one file a vocabulary: system, code), ``units.csv``
(concept or any, from_unit), ``repairs.csv`` (what a number without a unit, or in spite of one, can only mean),
``sentinels.csv`` (numbers that mean "no value"), ``misfiled.csv`` (values that can only belong to another concept),
``orders.csv`` (which of two facts of one instant cannot be the larger), ``left_out.csv`` (codes known and deliberately
not used), ``texts.csv`` (words that stand for a number) and ``scores/*.csv`` (bands of the clinical scores). Every row
names its source.

``available_after_min`` is the declared policy for sources that do not say when a fact became visible: vitals, therapy
and demographics at charting (0), gas analysis and point-of-care meters after 15 minutes, the central laboratory after
60. A source that knows better keeps its own ``available_time``; PhysioNet 2019 declares it equal to the row's hour.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from itertools import pairwise
from typing import Final, cast

from features.errors import SpecError

KINDS: Final = ("vital", "lab", "demographic", "process", "therapy")
CHOICES: Final = ("first", "worst")
_CONDITION: Final = re.compile(
    r"(?P<concept>\w+) (?P<statistic>\w+) (?P<relation>>=|<=|>|<|=) (?P<value>\S+)"
)


@dataclass(frozen=True, slots=True)
class Concept:
    """A clinical quantity: its words, canonical UCUM unit, plausible range (ends included) and kind."""

    name: str
    label: str
    unit: str
    low: float
    high: float
    kind: str
    available_after_min: float
    source: str


@dataclass(frozen=True, slots=True)
class CodeRow:
    """A code of some vocabulary, the concept it stands for, and the unit meant when none is written."""

    system: str
    code: str
    display: str
    concept: str
    unit: str
    source: str


@dataclass(frozen=True, slots=True)
class Repair:
    """What a number can only mean: ``low..high`` in ``assumed_unit`` is ``value * factor + offset``.

    ``stated`` says whether it holds where the source states that unit too (in any spelling), or only where none is.
    """

    concept: str
    assumed_unit: str
    stated: bool
    low: float
    high: float
    factor: float
    offset: float
    source: str


@dataclass(frozen=True, slots=True)
class Condition:
    """What a window must say for a component to count, such as ``invasive_ventilation last = 1``. Missing says no."""

    concept: str
    statistic: str
    relation: str
    value: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A code that is known and not used: a copy of another fact, an alarm limit, another quantity."""

    system: str
    code: str
    display: str
    concept: str
    reason: str
    source: str


@dataclass(frozen=True, slots=True)
class Misfiled:
    """Values of a concept from ``low`` up to, not including, ``high`` that can only be the concept ``means``."""

    concept: str
    low: float
    high: float
    means: str
    source: str


@dataclass(frozen=True, slots=True)
class Component:
    """One quantity of a score's part: points by band, each band reaching from its ``start`` up to the next.

    ``concept`` is one concept, a ratio ``a/b`` or a sum ``a+b``. With ``when``, it counts only where all conditions of
    one of the alternatives hold, and is missing elsewhere.
    """

    concept: str
    statistic: str
    starts: tuple[float, ...]
    points: tuple[float, ...]
    when: tuple[tuple[Condition, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """One line of a score. ``first``: the first component that is present counts; ``worst``: the most points do."""

    name: str
    choice: str
    components: tuple[Component, ...]


@cache
def concepts() -> dict[str, Concept]:
    """All concepts by name, in table order.

    Raises
    ------
    SpecError
        A concept stands twice, its range is not ordered, or its kind is unknown.
    """
    table: dict[str, Concept] = {}
    for row in _rows("concepts.csv"):
        where = f"concepts.csv: {row['concept']}"
        low, high = _number(row, "low", where), _number(row, "high", where)
        if row["concept"] in table:
            raise SpecError(f"{where} stands twice. Keep one row.")
        if not low < high:
            raise SpecError(f"{where} has a range from {low:g} to {high:g}. Put the smaller number first.")
        if row["kind"] not in KINDS:
            raise SpecError(f"{where} is of kind {row['kind']!r}. Choose one of {', '.join(KINDS)}.")
        delay = _number(row, "available_after_min", where)
        table[row["concept"]] = Concept(
            row["concept"], row["label"], row["unit"], low, high, row["kind"], delay, row["source"]
        )
    return table


@cache
def codes() -> dict[str, CodeRow]:
    """All codes by ``SYSTEM//code``; every concept is also its own code, ``WARDCAST//concept``.

    Raises
    ------
    SpecError
        A code stands twice, names an unknown concept, or comes in a unit that cannot be converted.
    """
    table = {
        f"WARDCAST//{c.name}": CodeRow("WARDCAST", c.name, c.label, c.name, c.unit, "Wardcast")
        for c in concepts().values()
    }
    for file in _tables("codes"):
        for row in _rows(file):
            key = f"{row['system']}//{row['code']}"
            if key in table:
                raise SpecError(f"{file}: {key} stands twice. Keep one row.")
            if row["concept"] not in concepts():
                raise SpecError(
                    f"{file}: {key} names concept {row['concept']!r}, which concepts.csv lacks. Add it there."
                )
            if conversion(row["concept"], row["unit"]) is None:
                raise SpecError(
                    f"{file}: {key} comes in {row['unit']!r}, which units.csv cannot turn into "
                    f"{concepts()[row['concept']].unit!r}. Add a conversion row."
                )
            table[key] = CodeRow(**row)
    return table


@lru_cache(maxsize=65_536)
def conversion(concept: str, unit: str) -> tuple[float, float] | None:
    """``(factor, offset)``: canonical = value * factor + offset. None when the unit is not known for the concept.

    A row of the concept itself goes before a row for any concept; the canonical unit needs no row.
    """
    canonical = concepts()[concept].unit
    if unit == canonical:
        return 1.0, 0.0
    table = _units()
    return table.get((concept, unit, canonical)) or table.get(("", unit, canonical))


def conversions(concept: str) -> dict[str, tuple[float, float]]:
    """Every unit that a concept's values can be converted from, with its ``(factor, offset)``."""
    canonical = concepts()[concept].unit
    units = [unit for name, unit, to in _units() if name in ("", concept) and to == canonical]
    return {unit: known for unit in units if (known := conversion(concept, unit)) is not None}


@cache
def repairs() -> dict[tuple[str, str], Repair]:
    """Repair rules by (concept, assumed unit)."""
    table: dict[tuple[str, str], Repair] = {}
    for row in _rows("repairs.csv"):
        where = f"repairs.csv: {row['concept']} in {row['assumed_unit']}"
        if row["concept"] not in concepts() or conversion(row["concept"], row["assumed_unit"]) is None:
            raise SpecError(
                f"{where} has no such concept or no conversion. Mend the row, or add one to units.csv."
            )
        if (row["concept"], row["assumed_unit"]) in table:
            raise SpecError(f"{where} stands twice. Keep one row.")
        low, high, factor, offset = (
            _number(row, column, where) for column in ("low", "high", "factor", "offset")
        )
        stated = row["stated"] == "yes"
        rule = Repair(row["concept"], row["assumed_unit"], stated, low, high, factor, offset, row["source"])
        _check_repair(rule, row["stated"], where)
        table[rule.concept, rule.assumed_unit] = rule
    return table


def _check_repair(rule: Repair, stated: str, where: str) -> None:
    """Refuse a rule that would overrule a stated unit where the value is possible as it stands."""
    if stated not in ("yes", "no"):
        raise SpecError(f"{where} has {stated!r} as stated. Say yes or no.")
    about = concepts()[rule.concept]
    known = conversion(rule.concept, rule.assumed_unit) or (1.0, 0.0)
    low, high = sorted(v * known[0] + known[1] for v in (rule.low, rule.high))
    if rule.stated and high >= about.low and low <= about.high:
        raise SpecError(
            f"{where} overrules a stated unit for values that are possible in it. Narrow low and high."
        )


@lru_cache(maxsize=65_536)
def repair(concept: str, assumed_unit: str, unit: str) -> Repair | None:
    """The rule for values of a concept in a unit as written, empty where none is; None where there is no rule."""
    if not unit:
        return repairs().get((concept, assumed_unit))
    known = conversion(concept, unit)
    alike = (r for (c, u), r in repairs().items() if c == concept and conversion(c, u) == known)
    return next((r for r in alike if r.stated), None)


@cache
def left_out() -> dict[str, LeftOut]:
    """Codes by ``SYSTEM//code`` that are known and deliberately not used, each near the concept it may be taken for."""
    table: dict[str, LeftOut] = {}
    for row in _rows("left_out.csv"):
        key = f"{row['system']}//{row['code']}"
        if key in table or key in codes():
            raise SpecError(f"left_out.csv: {key} stands twice, or in codes as well. Keep one row.")
        if row["concept"] not in concepts() or not row["reason"]:
            raise SpecError(
                f"left_out.csv: {key} needs a known concept and a reason, has {row['concept']!r}."
            )
        table[key] = LeftOut(**row)
    return table


@cache
def sentinels() -> dict[tuple[str, str], frozenset[float]]:
    """Numbers that mean "no value" by (system, code): of one code, wherever they lie; of all codes of a system
    (code empty) and of all systems (both empty), where they lie outside the plausible range.
    """
    table: dict[tuple[str, str], set[float]] = {}
    systems = {row.system for row in codes().values()}
    for row in _rows("sentinels.csv"):
        key = row["system"], row["code"]
        value = _number(row, "value", f"sentinels.csv: {'//'.join(key)}")
        known = "//".join(key) in codes() if row["code"] else row["system"] in systems | {""}
        if not known:
            raise SpecError(f"sentinels.csv: {'//'.join(key)} is in no table of codes. Add it there.")
        if value in table.setdefault(key, set()):
            raise SpecError(f"sentinels.csv: {value:g} of {key} stands twice. Keep one row.")
        table[key].add(value)
    return {key: frozenset(values) for key, values in table.items()}


@cache
def misfiled() -> dict[str, Misfiled]:
    """By concept, the values below or above its plausible range that can only belong to another concept."""
    table: dict[str, Misfiled] = {}
    for row in _rows("misfiled.csv"):
        where = f"misfiled.csv: {row['concept']}"
        low, high = _number(row, "low", where), _number(row, "high", where)
        if row["concept"] in table or not {row["concept"], row["means"]} <= set(concepts()):
            raise SpecError(f"{where} and {row['means']!r} must be concepts, with one row each.")
        about = concepts()[row["concept"]]
        if not low < high or (high > about.low and low <= about.high):
            raise SpecError(
                f"{where} from {low:g} to {high:g} must rise and lie outside the plausible range."
            )
        table[row["concept"]] = Misfiled(row["concept"], low, high, row["means"], row["source"])
    return table


@cache
def orders() -> tuple[tuple[str, str], ...]:
    """Pairs of concepts whose facts of one instant contradict each other when the first is larger than the second."""
    pairs = tuple((row["lower"], row["upper"]) for row in _rows("orders.csv"))
    for pair in pairs:
        if pairs.count(pair) > 1 or len({concepts()[c].unit for c in pair if c in concepts()} | {*pair}) != 3:
            raise SpecError(
                f"orders.csv: {pair[0]} and {pair[1]} must be two concepts of one unit, in one row."
            )
    return pairs


@cache
def texts() -> dict[tuple[str, str], float]:
    """Numbers by (concept, word in lower case)."""
    table: dict[tuple[str, str], float] = {}
    for row in _rows("texts.csv"):
        key = row["concept"], row["text"]
        if row["concept"] not in concepts() or row["text"] != row["text"].strip().lower() or key in table:
            raise SpecError(f"texts.csv: {key} needs a known concept and one row, its text in lower case.")
        table[key] = _number(row, "value", f"texts.csv: {key}")
    return table


@cache
def scores() -> dict[str, tuple[Part, ...]]:
    """The parts of each score by its name, from ``scores/<name>.csv``.

    Raises
    ------
    SpecError
        A band names an unknown concept, the bands do not rise from -inf, or one part mixes its choices.
    """
    return {file.removeprefix("scores/").removesuffix(".csv"): _parts(file) for file in _tables("scores")}


def _tables(folder: str) -> list[str]:
    """The tables of a folder beside this module, as ``folder/name.csv``."""
    found = (resources.files("features.concepts") / folder).iterdir()
    return sorted(f"{folder}/{f.name}" for f in found if f.name.endswith(".csv"))


def _parts(file: str) -> tuple[Part, ...]:
    bands: dict[str, dict[tuple[str, str, str], list[tuple[float, float]]]] = {}
    choice: dict[str, str] = {}
    for row in _rows(file):
        where = f"{file}: {row['part']}"
        unknown = [c for c in re.split(r"[/+]", row["concept"]) if c not in concepts()]
        if unknown or row["score"] != file.removeprefix("scores/").removesuffix(".csv"):
            raise SpecError(
                f"{where} names score {row['score']!r} and concept {row['concept']!r}. Both must exist."
            )
        if row["choice"] not in CHOICES or choice.setdefault(row["part"], row["choice"]) != row["choice"]:
            raise SpecError(
                f"{where} has choice {row['choice']!r}. Use one of {', '.join(CHOICES)} all through a part."
            )
        band = _number(row, "from", where), _number(row, "points", where)
        key = row["concept"], row["statistic"], row.get("when", "")
        bands.setdefault(row["part"], {}).setdefault(key, []).append(band)
    return tuple(
        Part(part, choice[part], tuple(_component(file, *key, b) for key, b in found.items()))
        for part, found in bands.items()
    )


def _component(
    file: str, concept: str, statistic: str, when: str, bands: list[tuple[float, float]]
) -> Component:
    starts, points = zip(*bands, strict=True)
    rising = all(a < b for a, b in pairwise(starts))
    if starts[0] != -math.inf or not rising:
        raise SpecError(f"{file}: the bands of {concept} must rise, beginning at -inf.")
    return Component(concept, statistic, starts, points, _when(file, when))


def _when(file: str, text: str) -> tuple[tuple[Condition, ...], ...]:
    """``a last = 1 & b last > 0 | c last = 1``: alternatives, each of conditions that must all hold."""
    if not text:
        return ()
    return tuple(tuple(_condition(file, c.strip()) for c in either.split("&")) for either in text.split("|"))


def _condition(file: str, text: str) -> Condition:
    found = _CONDITION.fullmatch(text)
    if found is None or found["concept"] not in concepts():
        raise SpecError(
            f"{file}: {text!r} is no condition on a known concept. Write for example 'invasive_ventilation last = 1'."
        )
    return Condition(
        found["concept"],
        found["statistic"],
        found["relation"],
        _number({"when": found["value"]}, "when", file),
    )


@cache
def _units() -> dict[tuple[str, str, str], tuple[float, float]]:
    table: dict[tuple[str, str, str], tuple[float, float]] = {}
    for row in _rows("units.csv"):
        key = row["concept"], row["from_unit"], row["to_unit"]
        where = f"units.csv: {' '.join(filter(None, key))}"
        if row["concept"] and row["concept"] not in concepts():
            raise SpecError(f"{where}: concepts.csv has no {row['concept']!r}. Add it there.")
        if row["concept"] and concepts()[row["concept"]].unit != row["to_unit"]:
            raise SpecError(
                f"{where} must lead to {concepts()[row['concept']].unit!r}, the concept's canonical unit."
            )
        if key in table:
            raise SpecError(f"{where} stands twice. Keep one row.")
        factor = _number(row, "factor", where)
        if factor <= 0:
            raise SpecError(f"{where} has factor {factor:g}. It must be positive.")
        table[key] = factor, _number(row, "offset", where)
    return table


def _rows(name: str) -> list[dict[str, str]]:
    """The rows of a table, none of them without a source or with a cell too many or too few."""
    text = resources.files("features.concepts").joinpath(name).read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines(), strict=True))
    for line, row in enumerate(rows, start=2):
        cells = cast(dict[str | None, str | None], row)
        if None in cells or None in cells.values() or not row["source"]:
            raise SpecError(
                f"{name}, line {line}: every column needs a cell, and the source may not be empty."
            )
    return rows


def _number(row: dict[str, str], column: str, where: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        raise SpecError(f"{where}: {column} is {row[column]!r}, not a number.") from None
    if math.isnan(value):
        raise SpecError(f"{where}: {column} is not a number.")
    return value
