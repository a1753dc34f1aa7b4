"""Which written drug names mean that an infection is being treated."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from features.concepts import drugs
from features.errors import SpecError


@pytest.mark.parametrize(
    ("name", "route", "drug"),
    [
        ("Vancomycin 1g/200mL D5W", "IV", "vancomycin"),
        ("VANCOMYCIN HCL IN DEXTROSE 1 GM/200ML IV SOLN", "Intravenous", "vancomycin"),
        ("PIPERACILLIN-TAZOBACTAM", None, "piperacillin_tazobactam"),
        ("Piperacillin/Tazobactam (Zosyn)", "", "piperacillin_tazobactam"),
        ("piperacillin_tazobactam", "IVPB", "piperacillin_tazobactam"),
        ("PIPERACILLIN SOD-TAZOBACTAM SO 2.25 (2-0.25) G IV SOLR", "IV", "piperacillin_tazobactam"),
        ("ZOSYN (ml/hr)", None, "piperacillin_tazobactam"),
        ("Flagyl", "PO/NG", "metronidazole"),
        ("Levaquin 750 mg", "Oral", "levofloxacin"),
        ("Ampicillin-Sulbactam", "IV", "ampicillin_sulbactam"),
        ("Ampicillin Sodium", "IV", "ampicillin"),
        ("Sulfameth/Trimethoprim DS", "PO", "sulfamethoxazole_trimethoprim"),
        ("Vancomycin Oral Liquid", "PO/NG", "vancomycin"),
        ("tobramycin", "08-Antibiotics (IV); Main order parameter; Drug Push", "tobramycin"),
        ("Micafungin", "IV", "micafungin"),
        ("Acyclovir", "IV", "acyclovir"),
        ("ceFAZolin 1 g powder for Inj", "IV", "cefazolin"),
    ],
)
def test_a_systemic_antimicrobial_is_known_by_whatever_name(name: str, route: str | None, drug: str) -> None:
    assert drugs.antimicrobial(name, route) == drug


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("Erythromycin 0.5% Ophth Oint", None),
        ("Ciprofloxacin HCl", "LEFT EAR"),
        ("moxifloxacin", "BOTH EYES"),
        ("Gentamicin", "OU"),
        ("Tobramycin Inhalation Soln", None),
        ("Pentamidine", "IH"),
        ("Metronidazole Gel 0.75%", "TP"),
        ("Vancomycin Enema", "PR"),
        ("Vancomycin Antibiotic Lock", None),
        ("Silver Sulfadiazine 1% Cream", None),
        ("Bacitracin/Polymyxin B", None),
        ("Penicillin G desensitization", "IV"),
        ("SulfaSALAzine", "PO"),
        ("Penicillamine", "PO"),
        ("Magnesium sulfate", "IV"),
        ("Heparin", "IV"),
        ("", None),
        (None, None),
        (float("nan"), float("nan")),
    ],
)
def test_local_routes_and_other_drugs_are_no_treatment_of_infection(name: object, route: object) -> None:
    assert drugs.antimicrobial(name, route) is None


def test_every_row_means_its_own_drug() -> None:
    for words, drug in drugs._names().items():
        assert drugs.antimicrobial(" ".join(words), "IV") == drug


def test_a_generic_name_and_its_class_are_whole_and_single() -> None:
    rows = drugs._rows("antimicrobials.csv")
    assert len(drugs.classes()) >= 100
    assert all(drugs.classes()[row["drug"]] == row["class"] for row in rows)
    assert all(row["reason"] and row["source"] for row in drugs._rows("antimicrobial_exclusions.csv"))


@pytest.mark.parametrize(
    ("table", "row", "said"),
    [
        ("antimicrobials.csv", {"words": "zosyn", "drug": "x", "class": "x", "source": "x"}, "stands twice"),
        ("antimicrobials.csv", {"words": "new", "drug": "x", "class": "", "source": "x"}, "lacks a field"),
        ("antimicrobial_exclusions.csv", {"where": "colour", "words": "red"}, "not one of name, route"),
    ],
)
def test_a_careless_row_is_refused(
    monkeypatch: pytest.MonkeyPatch, table: str, row: dict[str, str], said: str
) -> None:
    real: Callable[[str], list[dict[str, str]]] = drugs._rows
    monkeypatch.setattr(drugs, "_rows", lambda name: [*real(name), row] if name == table else real(name))
    with pytest.raises(SpecError, match=said):
        (drugs._names if table == "antimicrobials.csv" else drugs._exclusions).__wrapped__()
