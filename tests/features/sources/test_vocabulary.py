"""The tables of words and coding systems, row by row, and what they make of written names."""

from __future__ import annotations

import csv
from importlib import resources

import pytest

from features.concepts import loader
from features.sources import vocabulary
from features.sources.vocabulary import SiteMap


def rows(name: str) -> list[dict[str, str]]:
    text = resources.files("features.sources").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), strict=True))


def test_every_coding_system_stands_once_with_a_source():
    systems = [row["system"] for row in rows("code_systems.csv")]
    assert len(systems) == len(set(systems))
    assert all(row["prefix"] and row["source"] for row in rows("code_systems.csv"))


def test_every_word_stands_once_with_a_source_and_a_meaning_that_is_known():
    units = {loader.concepts()[c].unit for c in loader.concepts()}
    known = {
        "place": set(vocabulary.PLACES),
        "vasoactive": set(loader.concepts()),
        "culture": {"culture"},
        "no_growth": {"no", "no at the start", "name"},
        "unit": units | {u for c in loader.concepts() for u in loader.conversions(c)},
    }
    table = rows("words.csv")
    assert len({(row["kind"], row["word"]) for row in table}) == len(table)
    # A pump's millilitres per hour need the concentration, which only a drug's own message knows.
    strange = {row["meaning"] for row in table if row["meaning"] not in known[row["kind"]]} - {"mL/h"}
    assert strange == set()
    assert all(row["source"] for row in table)


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("Medical ICU", "icu"),
        ("MICU 3 West", "icu"),
        ("Critical Care Unit", "icu"),
        ("Emergency Department", "ed"),
        ("A&E", "ed"),
        ("HDU", "stepdown"),
        ("5 West Intermediate", "stepdown"),
        ("Theatre 4", "procedural"),
        ("Ward 7 Medicine", "ward"),
        ("Edwards Building", "ward"),
        ("", ""),
    ],
)
def test_places_are_known_by_whole_words(written: str, place: str):
    assert SiteMap().place(written) == place


def test_a_site_knows_its_own_places_and_codes_better():
    site = vocabulary.site_map({"places": {"Ward 7": "icu"}, "codes": {"LOINC//8867-4": "respiratory_rate"}})
    assert site.place(" ward 7 ") == "icu"
    assert site.code(["X//1", "LOINC//8867-4"]) == ("WARDCAST//respiratory_rate", "respiratory_rate", "")
    assert site.code([]) == ("", "", "")


@pytest.mark.parametrize(
    ("written", "concept"),
    [
        ("NORepinephrine 4 mg/250 mL", "norepinephrine"),
        ("Noradrenaline (Levophed)", "norepinephrine"),
        ("EPINEPHrine", "epinephrine"),
        ("Vasopressin 20 units", "vasopressin"),
        ("Desmopressin", ""),
        ("Metoprolol", ""),
    ],
)
def test_vasoactive_drugs_are_known_by_whole_words(written: str, concept: str):
    assert vocabulary.vasoactive(written) == concept


@pytest.mark.parametrize(
    ("result", "grown"),
    [
        ("Escherichia coli", True),
        ("Staphylococcus, coagulase negative", True),
        ("Gram-negative rods", True),
        ("No growth after 48 hours", False),
        ("NEGATIVE", False),
        ("No Salmonella or Shigella isolated", False),
        ("Gram negative rods not isolated", False),
        ("Staphylococcus aureus, none resistant", True),
        ("Normal flora", False),
        ("", False),
    ],
)
def test_what_grew_is_told_from_what_did_not(result: str, grown: bool):
    assert vocabulary.grew(result) is grown


@pytest.mark.parametrize(
    ("system", "prefix"),
    [
        ("http://loinc.org", "LOINC"),
        ("LN", "LOINC"),
        ("ln", "LOINC"),
        ("", "LOCAL"),
        ("99ABC", "LOCAL"),
        ("WinPath", "WinPath"),
    ],
)
def test_coding_systems_have_short_names(system: str, prefix: str):
    assert vocabulary.prefix(system) == prefix
