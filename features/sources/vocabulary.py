"""What words and coding systems of the exchange standards mean, and how a site adds its own.

``code_systems.csv`` shortens the names of coding systems (FHIR addresses, HL7 table 0396) to the ``SYSTEM`` of a code;
``words.csv`` knows the words for places, infusions, cultures and units. Both are read by the readers of FHIR and
HL7 v2. A site that uses codes of its own says so in a mapping, a TOML file::

    [codes]            # the source's code -> a concept, or a code that concepts/codes knows
    "WinPath//tt-0003-01" = "creatinine"
    "LOCAL//HR" = "LOINC//8867-4"
    "WinPath//tt-0002-03" = { concept = "hematocrit", unit = "L/L" }   # a unit for values that come without

    [units]            # as the source writes it -> UCUM
    UMOLL = "umol/L"

    [places]           # as the source writes it -> ed, ward, stepdown, icu, procedural, l&d, other
    "RenalWard" = "ward"
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from features.concepts import loader
from features.errors import DataError

PLACES: Final = ("ed", "ward", "stepdown", "icu", "procedural", "l&d", "other")
CULTURES: Final = ("culture", "blood_culture", "positive_culture")
Words = tuple[str, ...]


@dataclass(frozen=True)
class SiteMap:
    """A site's own codes, units and places; empty for a site that speaks the standards.

    Attributes
    ----------
    codes : mapping of ``SYSTEM//code`` to (concept, UCUM unit meant when none is written)
    units : mapping of unit to UCUM
    places : mapping of place, in lower case, to one of :data:`PLACES`
    """

    codes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)

    def code(self, candidates: Sequence[str]) -> tuple[str, str, str]:
        """The code to keep of several that say the same: ``(code, concept or "", unit when none is written or "")``.

        The first that the site maps wins, then the first that concepts/codes knows, then the first. The concept is
        filled only where the site decides it.
        """
        for code in candidates:
            known = self.codes.get(code)
            if known:
                # clean lets a known code decide; what the site says goes before the tables.
                return (code if code not in loader.codes() else f"WARDCAST//{known[0]}"), *known
        for code in candidates:
            if code in loader.codes():
                return code, "", ""
        return (candidates[0] if candidates else ""), "", ""

    def unit(self, written: str) -> str:
        """UCUM of a unit, or the unit as written."""
        return self.units.get(written) or _meanings("unit").get((written,), written)

    def place(self, written: str) -> str:
        """One of :data:`PLACES`, ``ward`` for a place of unheard-of name, empty for no place."""
        if not written.strip():
            return ""
        return self.places.get(written.strip().lower()) or _found(written, "place") or "ward"


NO_MAP: Final = SiteMap()


def site_map(mapping: Path | Mapping[str, Any] | None) -> SiteMap:
    """Read a site's mapping, described at the head of this module.

    Raises
    ------
    DataError
        The file cannot be read, holds another table, or maps to an unknown concept, code or place.
    """
    if mapping is None:
        return NO_MAP
    said = toml(mapping)
    extra = sorted(set(said) - {"codes", "units", "places"})
    if extra:
        raise DataError(f"The mapping has {', '.join(extra)}; known tables are codes, units, places.")
    places = {k.strip().lower(): v for k, v in _texts(said, "places").items()}
    strange = sorted({v for v in places.values() if v not in PLACES})
    if strange:
        raise DataError(f"[places] leads to {', '.join(strange)}; choose among {', '.join(PLACES)}.")
    codes = targets(said)
    return SiteMap(codes, _texts(said, "units"), places)


def toml(mapping: Path | Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as a dictionary, from a TOML file or as given.

    Raises
    ------
    DataError
        There is no such file, or it is not TOML.
    """
    if isinstance(mapping, Mapping):
        return dict(mapping)
    try:
        return tomllib.loads(Path(mapping).read_text(encoding="utf-8"))
    except OSError:
        raise DataError(f"No mapping file at {mapping}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{Path(mapping).name} is not TOML: {error}.") from None


def targets(said: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The ``[codes]`` of a mapping: their code to ``(concept, unit meant when none is written)``.

    Raises
    ------
    DataError
        A line is no such thing, or leads to an unknown concept or code.
    """
    codes = said.get("codes", {})
    if not isinstance(codes, Mapping):
        raise DataError('[codes] of the mapping must hold lines such as "theirs" = "ours".')
    return {str(theirs): target(meant, f"[codes] {theirs}") for theirs, meant in codes.items()}


def target(meant: object, where: str) -> tuple[str, str]:
    """``(concept, unit)`` of what a site's code is mapped to.

    ``meant`` is a concept, ``SYSTEM//code`` of concepts/codes, or a table that holds one of them as ``concept`` or
    ``code``, and ``unit``; ``where`` says where that is written.

    Raises
    ------
    DataError
        It is none of these, or the tables do not know it.
    """
    about: Mapping[str, Any] = meant if isinstance(meant, Mapping) else {"concept": meant}
    extra = sorted(set(about) - {"concept", "code", "unit"})
    if extra:
        raise DataError(f"{where} of the mapping holds {', '.join(extra)}; known are concept, code, unit.")
    ours, unit = about.get("concept") or about.get("code"), about.get("unit", "")
    if not isinstance(ours, str) or not isinstance(unit, str):
        raise DataError(f'{where} of the mapping lacks concept. Write for example concept = "heart_rate".')
    if ours in loader.concepts():
        return ours, unit
    row = loader.codes().get(ours)
    if row is None:
        raise DataError(
            f"{where} of the mapping leads to {ours!r}, which is neither a concept of concepts.csv nor a code of "
            "concepts/codes. Write for example heart_rate, or LOINC//8867-4."
        )
    return row.concept, unit or row.unit


def _texts(said: Mapping[str, Any], table: str) -> dict[str, str]:
    found = said.get(table, {})
    if not isinstance(found, Mapping) or not all(isinstance(v, str) for v in found.values()):
        raise DataError(f'[{table}] of the mapping must hold lines such as "theirs" = "ours".')
    return {str(k): v for k, v in found.items()}


@lru_cache(maxsize=4_096)
def prefix(system: str) -> str:
    """The ``SYSTEM`` of a coding system: by the table, ``LOCAL`` for none and HL7's 99xxx, otherwise as written."""
    known = _systems().get(system) or _systems().get(system.upper())
    if known:
        return known
    return "LOCAL" if not system or re.fullmatch(r"99\w*", system) else system


def vasoactive(name: str) -> str:
    """The concept of a vasoactive drug whose rate matters, by its written name; empty for any other drug."""
    return _found(name, "vasoactive")


def is_culture(code: str, name: str) -> bool:
    """Whether a test is a culture, by its code in concepts/codes or by its name."""
    row = loader.codes().get(code)
    return row.concept in CULTURES if row else bool(_found(name, "culture"))


def is_blood(code: str, *texts: str) -> bool:
    """Whether a culture is one of blood, by the code of the test or the name of test or specimen."""
    row = loader.codes().get(code)
    return (row is not None and row.concept == "blood_culture") or any("blood" in _words(t) for t in texts)


@lru_cache(maxsize=65_536)
def grew(result: str) -> bool:
    """Whether the result of a culture names something that grew; one word of denial is enough to say no."""
    spoken = " ".join(_words(result))
    meanings = _meanings("no_growth")
    for phrase in (" ".join(words) for words, meaning in meanings.items() if meaning == "name"):
        spoken = re.sub(rf"\b{phrase}\b", "named", spoken)
    words = _words(spoken)
    denied = meanings.get(words[:1]) == "no at the start" or _found(spoken, "no_growth") == "no"
    return bool(words) and not denied


@cache
def _systems() -> dict[str, str]:
    return {row["system"]: row["prefix"] for row in _rows("code_systems.csv")}


@cache
def _meanings(kind: str) -> dict[Words, str]:
    """What words mean, by the words; units stand as they are written."""
    rows = [row for row in _rows("words.csv") if row["kind"] == kind]
    return {((row["word"],) if kind == "unit" else _words(row["word"])): row["meaning"] for row in rows}


@lru_cache(maxsize=65_536)
def _found(text: str, kind: str) -> str:
    """The meaning of the longest known phrase in a text, of the first among equals; empty for none."""
    words, table = _words(text), _meanings(kind)
    for length in range(min(max(map(len, table)), len(words)), 0, -1):
        for start in range(len(words) - length + 1):
            meaning = table.get(words[start : start + length])
            if meaning:
                return meaning
    return ""


def _words(text: str) -> Words:
    return tuple(re.findall(r"[a-z0-9]+", text.lower()))


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files("features.sources").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), strict=True))
