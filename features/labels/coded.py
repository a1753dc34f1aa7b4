"""Sepsis as the hospital billed it, to stand beside Sepsis-3: which codes, who has them, and how far the two agree.

Codes are rows of ``concepts/sepsis_icd.csv``; a row stands for the code and everything below it. Coding has its own
habits (a code earns money, a mild case goes uncoded), so agreement is described here and expected nowhere.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Final

import pandas as pd

from features.errors import DataError
from features.labels.infection import one_of

DEFINITIONS: Final = ("sepsis", "severe_sepsis", "septicemia", "angus")
"""``sepsis``: codes named sepsis, severe sepsis or septic shock. ``severe_sepsis``: the latter two alone.
``septicemia``: the older code of the bloodstream. ``angus``: an infection and an organ failure in one stay (Angus 2001,
ICD-9-CM only; ventilation by procedure code is not read), or ``severe_sepsis``."""

_NAMED: Final[dict[tuple[str, str], str]] = {
    ("hadm_id", "icd9_code"): "MIMIC-III diagnoses_icd",
    ("hadm_id", "icd_code"): "MIMIC-IV diagnoses_icd",
    ("hospitalization_id", "diagnosis_code"): "CLIF hospital_diagnosis",
}
_Z: Final = 1.959963984540054


def diagnoses(table: pd.DataFrame) -> pd.DataFrame:
    """A hospital's table of discharge diagnoses, in one shape.

    Parameters
    ----------
    table : DataFrame
        ``diagnoses_icd`` of MIMIC-III or MIMIC-IV, or ``hospital_diagnosis`` of CLIF.

    Returns
    -------
    DataFrame with ``encounter_id``, ``system`` (ICD9CM or ICD10CM) and ``code`` (capitals, without dots and blanks).
    Rows without a code are left out.

    Raises
    ------
    DataError
        The table is none of these.
    """
    found = next((names for names in _NAMED if set(names) <= set(table.columns)), None)
    if found is None:
        raise DataError(
            f"This is no table of diagnoses that is known. Give {', '.join(_NAMED.values())}, "
            "or columns encounter_id, system and code made by hand."
        )
    who, code = found
    rows = table[table[code].notna()]
    return pd.DataFrame(
        {
            "encounter_id": rows[who].astype("str").array,
            "system": _system(rows, code).array,
            "code": rows[code].astype("str").str.upper().str.replace(r"[.\s]", "", regex=True).array,
        }
    )


def coded_sepsis(table: pd.DataFrame, definition: str = "sepsis") -> set[str]:
    """The encounters that a definition of coded sepsis finds.

    Parameters
    ----------
    table : DataFrame with ``encounter_id``, ``system`` and ``code``, as :func:`diagnoses` makes it
    definition : str
        One of :data:`DEFINITIONS`.
    """
    one_of("definition", definition, DEFINITIONS)
    missing = [c for c in ("encounter_id", "system", "code") if c not in table.columns]
    if missing:
        raise DataError(
            f"The table of diagnoses lacks {', '.join(missing)}. Make it with labels.coded.diagnoses."
        )
    if definition != "angus":
        return _with(table, definition)
    return (_with(table, "angus_infection") & _with(table, "angus_organ")) | _with(table, "severe_sepsis")


def prevalence_report(
    everyone: Iterable[str], found: Mapping[str, Collection[str]], reference: str
) -> pd.DataFrame:
    """How many each definition finds, and how it agrees with a reference.

    Parameters
    ----------
    everyone : iterable of str
        The units counted: encounters or ICU stays.
    found : mapping from a definition's name to the units it finds; units outside ``everyone`` are ignored
    reference : str
        A key of ``found``.

    Returns
    -------
    DataFrame, one row a definition: ``definition``; ``positive``; ``of``; ``share`` with its 95 % interval ``low``,
    ``high`` (Wilson); ``shared`` (positive in both); ``kappa`` with the reference (Cohen; NaN where chance leaves
    nothing to agree on).
    """
    units = set(everyone)
    one_of("reference", reference, tuple(found))
    other = units & set(found[reference])
    rows = []
    for name, members in found.items():
        hits = units & set(members)
        low, high = wilson(len(hits), len(units))
        share = len(hits) / len(units) if units else math.nan
        agreed = kappa(len(hits & other), len(hits - other), len(other - hits), len(units - hits - other))
        rows.append((name, len(hits), len(units), share, low, high, len(hits & other), agreed))
    return pd.DataFrame(
        rows, columns=["definition", "positive", "of", "share", "low", "high", "shared", "kappa"]
    )


def wilson(positive: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, J Am Stat Assoc 1927;22:209); NaN when nobody was counted."""
    if n == 0:
        return math.nan, math.nan
    share, square = positive / n, _Z * _Z / n
    middle = share + square / 2
    half = _Z * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return (middle - half) / (1 + square), (middle + half) / (1 + square)


def kappa(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Agreement beyond chance of two yes-or-no judgements (Cohen, Educ Psychol Meas 1960;20:37)."""
    n = both + only_first + only_second + neither
    if n == 0:
        return math.nan
    first, second = (both + only_first) / n, (both + only_second) / n
    chance = first * second + (1 - first) * (1 - second)
    return math.nan if chance == 1 else ((both + neither) / n - chance) / (1 - chance)


def _system(rows: pd.DataFrame, code: str) -> pd.Series:
    """Which revision of the ICD each row is written in."""
    if code == "icd9_code":
        return pd.Series("ICD9CM", index=rows.index)
    named = rows["icd_version"] if code == "icd_code" else rows["diagnosis_code_format"]
    digits = named.astype("str").str.extract(r"(9|10)", expand=False)
    unknown = int(digits.isna().sum())
    if unknown:
        raise DataError(
            f"{unknown:,} of {len(rows):,} diagnoses say neither ICD 9 nor 10. Fill in the revision."
        )
    return "ICD" + digits + "CM"


def _with(table: pd.DataFrame, group: str) -> set[str]:
    """Encounters with any code at or below one of a group."""
    hit = pd.Series(False, index=table.index)
    for system, prefixes in _codes()[group].items():
        hit |= (table["system"] == system) & table["code"].str.startswith(prefixes)
    return set(table.loc[hit, "encounter_id"])


@cache
def _codes() -> dict[str, dict[str, tuple[str, ...]]]:
    """Code beginnings by group and system."""
    text = resources.files("features.concepts").joinpath("sepsis_icd.csv").read_text(encoding="utf-8")
    groups: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in csv.DictReader(text.splitlines(), strict=True):
        systems = groups.setdefault(row["group"], {})
        systems[row["system"]] = (*systems.get(row["system"], ()), row["code"])
    return groups
