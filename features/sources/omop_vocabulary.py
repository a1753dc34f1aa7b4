"""What OMOP concept identifiers mean: by ``omop_concepts.csv``, and by the concept table of an extract.

A standard vocabulary holds millions of concepts. Kept are those that a reader can need: LOINC codes, units, specimens,
answers, and those drugs given that are antimicrobial or vasoactive.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Final

import numpy as np
import pandas as pd

from features.concepts import loader
from features.concepts.drugs import antimicrobial
from features.sources.batch import ReadAccount, Say, quiet
from features.sources.stays import Ints, categories
from features.sources.tables import Kind, Tables
from features.sources.vocabulary import NO_MAP, SiteMap, vasoactive

SYSTEM: Final = "OMOP"
SOURCE: Final = "OMOP_SOURCE"
NAMES: Final = ("concept", "2b_concept")
"""Concept table, and the one of local concepts that the MIMIC-IV export adds."""
RELATIONS: Final = ("concept_relationship", "2b_concept_relationship")
CONCEPTS: Final[dict[str, Kind]] = {
    "concept_id": "id", "concept_name": "key", "domain_id": "text", "vocabulary_id": "text", "concept_code": "key",
}  # fmt: skip
NAMED_DOMAINS: Final = ("Specimen", "Meas Value")


@cache
def known(kind: str) -> dict[str, str]:
    """Meaning by concept identifier, of one kind of ``omop_concepts.csv``."""
    text = resources.files("features.sources").joinpath("omop_concepts.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), strict=True)
    return {row["concept_id"]: row["meaning"] for row in rows if row["kind"] == kind}


@dataclass
class Vocabulary:
    """Concepts of an extract, by identifier as text.

    Attributes
    ----------
    names : of specimens, answers and the drugs that matter
    loinc : LOINC code
    units : code of the unit, UCUM where the extract uses it
    drugs : identifiers of the drugs given that have a name, whether they matter or not
    site : what the site says of its own codes and units
    """

    names: dict[str, str] = field(default_factory=dict)
    loinc: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    drugs: set[str] = field(default_factory=set)
    site: SiteMap = NO_MAP

    def code(self, concept: str, source: str, value: str) -> str:
        """The code to keep of a fact: of its standard concept, source concept and LOINC code the first that is known.

        What the site maps goes first. Nothing known: the LOINC code of the standard concept, or its identifier; a fact
        without a standard concept (``0`` or empty) goes under the source's own value, and is empty without one.
        """
        standard = "" if concept == "0" else concept
        own = [f"{SYSTEM}//{c}" for c in (standard, source) if c and c != "0"]
        loinc = [f"LOINC//{self.loinc[standard]}"] if standard in self.loinc else []
        theirs = [f"{SOURCE}//{value}"] if value else []
        for code in (*own, *loinc, *theirs):
            if code in self.site.codes:
                return self.site.code([code])[0]
        for code in (*own, *loinc):
            if code in loader.codes():
                return code
        return next(iter((*loinc, *own) if standard else theirs), "")

    def concept(self, code: str) -> str:
        """Our concept where the site alone can say it, otherwise empty."""
        return self.site.codes.get(code, ("", ""))[0]

    def unit(self, concept: str, value: str, code: str = "") -> str:
        """UCUM of the unit concept, else the source's own word, else what the site says of the code; may be empty."""
        written = (
            known("unit").get(concept) or self.units.get(concept) or (self.site.unit(value) if value else "")
        )
        return written or self.site.codes.get(code, ("", ""))[1]

    def drug(self, concept: str, source: str, value: str, route: str) -> tuple[str, str]:
        """``(concept, name as written)`` of an antimicrobial or vasoactive drug; ``("", "")`` of any other."""
        for name in (self.names.get(concept, ""), self.names.get(source, ""), value):
            if antimicrobial(name, route or None):
                return "antibiotic", name
            if vasoactive(name):
                return vasoactive(name), name
        return "", ""

    def names_drug(self, concept: str, source: str, value: str) -> bool:
        """Whether anything says which drug it is: a concept with a name, or words rather than a number."""
        words = bool(value) and not value.replace("-", "").isdigit()
        return concept in self.drugs or source in self.drugs or words


def vocabulary(tables: Tables, account: ReadAccount, say: Say = quiet, site: SiteMap = NO_MAP) -> Vocabulary:
    """Read the concept tables of a folder, as far as there are any; of drugs, only those that were given."""
    found = Vocabulary(site=site)
    present = [name for name in NAMES if tables.has(name)]
    if not present:
        account.note("No concept table: concepts are known by the identifiers in concepts/codes only.")
        return found
    given = _mentioned(tables, "drug_exposure", ("drug_concept_id", "drug_source_concept_id"))
    taken = _mentioned(tables, "specimen", ("specimen_concept_id",))
    for name in present:
        for frame in tables.stream(name, CONCEPTS, account=account, say=say):
            _take(found, frame, given)
        account.leave(name, "is_vocabulary", account.rows[name])
    nameless = (given - found.drugs) | (taken - set(found.names))
    for name in RELATIONS:
        if nameless and tables.has(name):
            local = _mapped_to(nameless, tables, name, account, say)
            account.leave(name, "is_vocabulary", account.rows[name])
            _name_by_local(found, local, taken, tables, present)
    return found


def _mentioned(tables: Tables, name: str, columns: tuple[str, ...]) -> set[str]:
    """Concepts in some columns of a table: a standard vocabulary knows millions, a hospital some thousands."""
    found: set[str] = set()
    if tables.has(name):
        asked: dict[str, Kind] = dict.fromkeys(columns, "id")
        for frame in tables.stream(name, asked, optional=columns):
            for column in columns:
                found.update(frame[column].cat.categories)
    return found - {"0"}


def _take(found: Vocabulary, frame: pd.DataFrame, given: set[str]) -> None:
    domain, system = frame["domain_id"].astype("str"), frame["vocabulary_id"].astype("str")
    found.loinc.update(_pairs(frame, system == "LOINC", "concept_code"))
    found.units.update(_pairs(frame, domain == "Unit", "concept_code"))
    found.names.update(_pairs(frame, domain.isin(NAMED_DOMAINS), "concept_name"))
    drugs = _pairs(frame, frame["concept_id"].isin(given), "concept_name")
    found.drugs.update(drugs)
    found.names.update({k: v for k, v in drugs.items() if antimicrobial(v) or vasoactive(v)})


def _pairs(frame: pd.DataFrame, mask: pd.Series, column: str) -> dict[str, str]:
    some = frame.loc[mask, ["concept_id", column]].dropna()
    return dict(zip(some["concept_id"].astype("str"), some[column], strict=True))


def _mapped_to(wanted: set[str], tables: Tables, name: str, account: ReadAccount, say: Say) -> dict[str, str]:
    """Concepts that map to one of the wanted, by identifier; the first of several to the same."""
    columns: dict[str, Kind] = {"concept_id_1": "id", "concept_id_2": "id", "relationship_id": "text"}
    local: dict[str, str] = {}
    for frame in tables.stream(name, columns, account=account, say=say):
        maps = frame[(frame["relationship_id"] == "Maps to") & frame["concept_id_2"].isin(wanted)]
        for one, standard in maps[["concept_id_1", "concept_id_2"]].astype("str").itertuples(index=False):
            if one != standard:
                local.setdefault(one, standard)
    return local


def _name_by_local(
    found: Vocabulary, local: dict[str, str], specimens: set[str], tables: Tables, names: list[str]
) -> None:
    """Name standard drugs and specimens that have no row by the local ones that map to them; the shortest name."""
    for name in names:
        for frame in tables.stream(name, CONCEPTS):
            for one, word in _pairs(frame, frame["concept_id"].isin(local), "concept_name").items():
                found.drugs.add(local[one])
                if local[one] in specimens or antimicrobial(word) or vasoactive(word):
                    found.names[local[one]] = min(found.names.get(local[one], word), word, key=len)


def asked_once(frame: pd.DataFrame, columns: list[str], call: Callable[..., Any]) -> tuple[Ints, list[Any]]:
    """``call`` of the words of each row, made once for each combination of words there is.

    ``columns`` are categorical; missing is passed as the empty text.

    Returns
    -------
    place : int64, shape (n_rows,); answers : list
        The answer of a row is ``answers[place]``.
    """
    labels = [[*frame[c].cat.categories, ""] for c in columns]
    key = np.zeros(len(frame), dtype=np.int64)
    for column, words in zip(columns, labels, strict=True):
        codes = frame[column].cat.codes.to_numpy(np.int64)
        key = key * len(words) + np.where(codes < 0, len(words) - 1, codes)
    found, place = np.unique(key, return_inverse=True)
    spots = np.unravel_index(found, [len(words) for words in labels])
    picked = [[words[i] for i in spot] for words, spot in zip(labels, spots, strict=True)]
    return np.asarray(place, dtype=np.int64), [call(*one) for one in zip(*picked, strict=True)]


def words_of(frame: pd.DataFrame, columns: list[str], call: Callable[..., str]) -> pd.Series:
    """The text answers of :func:`asked_once` as a categorical; an empty one is missing."""
    place, answers = asked_once(frame, columns, call)
    spot, labels = pd.factorize(np.array([*answers, ""], dtype=object))
    spot = np.where(labels[spot] == "", -1, spot)
    made = categories(spot[place].astype(np.int64), pd.Index(labels, dtype="str"))
    return pd.Series(made, index=frame.index)
