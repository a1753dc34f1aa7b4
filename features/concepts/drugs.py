"""Which drug names mean that an infection is being treated, by antimicrobials.csv and antimicrobial_exclusions.csv.

Suspicion of infection counts oral and parenteral antimicrobials (Seymour et al., JAMA 2016;315:762). What acts only
where it is put (skin, eye, ear, airways, a catheter) does not count, nor do drugs that no row names.
"""

from __future__ import annotations

import csv
import re
from functools import cache, lru_cache
from importlib import resources
from typing import Final

from features.errors import SpecError

PLACES: Final = ("name", "route", "whole route")
Words = tuple[str, ...]


@lru_cache(maxsize=65_536)
def antimicrobial(name: object, route: object = None) -> str | None:
    """The antimicrobial that a written drug name means, when it is given so that it reaches the whole body.

    Parameters
    ----------
    name : str
        As the source wrote it: generic, brand, with strength and diluent: ``"VANCOMYCIN 1 G/200 ML D5W"``. An empty
        cell (None, NaN) is no drug.
    route : str, optional
        As the source wrote it: ``"IV"``, ``"Both Eyes"``. Empty or unheard of means that the name decides.

    Returns
    -------
    str or None
        The generic name of antimicrobials.csv (``"piperacillin_tazobactam"``); None for any other drug, and for skin,
        eye, ear, airways, rectum and catheter locks. Where a name holds several rows, the one with most words wins,
        then the first written: ``"Ampicillin-Sulbactam"`` is no ampicillin.
    """
    words = _words(name)
    found = _longest(words)
    if found is None or _holds(words, "name"):
        return None
    way = _words(route)
    if way in _exclusions()["whole route"] or _holds(way, "route"):
        return None
    return found


@cache
def classes() -> dict[str, str]:
    """The class of every antimicrobial, by generic name."""
    return {row["drug"]: row["class"] for row in _rows("antimicrobials.csv")}


def _words(text: object) -> Words:
    return tuple(re.findall(r"[a-z]+[0-9]*|[0-9]+", text.lower())) if isinstance(text, str) else ()


def _longest(words: Words) -> str | None:
    """The row of most words that stands in the name; the earliest among equals."""
    table = _names()
    for length in range(min(max(map(len, table)), len(words)), 0, -1):
        for start in range(len(words) - length + 1):
            drug = table.get(words[start : start + length])
            if drug is not None:
                return drug
    return None


def _holds(words: Words, place: str) -> bool:
    """Whether any exclusion for this place stands in the words."""
    return any(
        words[start : start + len(phrase)] == phrase
        for phrase in _exclusions()[place]
        for start in range(len(words) - len(phrase) + 1)
    )


@cache
def _names() -> dict[Words, str]:
    names: dict[Words, str] = {}
    for row in _rows("antimicrobials.csv"):
        key = _words(row["words"])
        if key in names or not (key and row["drug"] and row["class"] and row["source"]):
            raise SpecError(
                f"antimicrobials.csv: {row['words']!r} stands twice or lacks a field. Keep one whole row each."
            )
        names[key] = row["drug"]
    return names


@cache
def _exclusions() -> dict[str, frozenset[Words]]:
    rows = _rows("antimicrobial_exclusions.csv")
    unheard = sorted({row["where"] for row in rows} - set(PLACES))
    if unheard:
        raise SpecError(
            f"antimicrobial_exclusions.csv: where is {unheard[0]!r}, not one of {', '.join(PLACES)}."
        )
    return {place: frozenset(_words(r["words"]) for r in rows if r["where"] == place) for place in PLACES}


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files("features.concepts").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), strict=True))
