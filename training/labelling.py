"""Who of an archive had sepsis, when, and how that compares with what was coded: ``wardcast data label``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from features import archive, cohorts
from features.clock import UTC_US
from features.errors import DataError
from features.labels import coded
from features.labels.infection import one_of, suspected_infection
from features.labels.sepsis3 import PRESETS, Sepsis3, sepsis_onset
from features.labels.sofa import sofa_series
from features.sources.tables import Kind, Tables
from training.layouts import aligned

if TYPE_CHECKING:  # LightGBM takes a second to import, which only a model is worth
    pass

from training.telling import counting, interval, kappa

DIAGNOSES: Final = ("diagnoses_icd", "clif_hospital_diagnosis")
"""Tables of discharge diagnoses, of MIMIC and of CLIF."""
DIAGNOSIS_COLUMNS: Final[dict[str, Kind]] = {
    "hadm_id": "id", "hospitalization_id": "id", "icd9_code": "text", "icd_code": "text", "icd_version": "text",
    "diagnosis_code": "text", "diagnosis_code_format": "text",
}  # fmt: skip
ADULT: Final = 18.0
SUSPECTED: Final = {"antibiotic": ("antibiotic",), "culture": ("culture", "blood_culture")}
"""What suspicion of infection is read from, with its concepts."""
SCORED: Final = "scored for an hour or more"
"""The last row of attrition."""


@dataclass(frozen=True)
class Labelled:
    """Onsets of a cohort.

    Attributes
    ----------
    attrition : DataFrame as :attr:`features.cohorts.Cohort.attrition`, over all shards
        Its last row counts the encounters of the cohort without a scored hour, of which nothing can be said.
    units : DataFrame, one row an encounter or ICU stay of the cohort that was scored, with ``sepsis``
    report : DataFrame as :func:`features.labels.coded.prevalence_report`, by encounter; None without diagnoses
    rules : how many onsets rest on which rule of suspicion
    """

    preset: str
    output: Path
    attrition: pd.DataFrame
    units: pd.DataFrame
    unit: str
    report: pd.DataFrame | None
    seconds: float
    rules: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        """Attrition, prevalence with intervals, and agreement with coded sepsis where diagnoses were given."""
        what = {"icu_stay": "ICU stays", "encounter": "encounters"}[self.unit]
        septic, n = int(self.units["sepsis"].sum()), len(self.units)
        said = [
            f"Sepsis-3 by {self.preset} to {self.output}, in {self.seconds:.1f} s. One row for each of {n:,} {what}.",
            "",
            aligned(
                self.attrition.itertuples(index=False, name=None),
                ("cohort", "left out", "encounters", "persons"),
            ),
            "",
            f"Septic: {septic:,} of {n:,} {what}, {interval(septic, n)}.",
        ]
        whole = self.units.groupby("encounter_id")["sepsis"].any()
        if self.unit == "icu_stay":
            said.append(
                f"        {int(whole.sum()):,} of {len(whole):,} encounters, {interval(int(whole.sum()), len(whole))}."
            )
        said += self._onset()
        if self.report is not None:
            rows = [
                (
                    r["definition"],
                    r["positive"],
                    r["of"],
                    interval(r["positive"], r["of"]),
                    r["shared"],
                    kappa(r["kappa"]),
                )
                for r in self.report.to_dict("records")
            ]
            header = ("by encounter", "positive", "of", "share (95 %)", "both", "kappa")
            said += [
                "",
                aligned(rows, header),
                f"both, kappa: agreement with {self.preset}. Coding has its own habits.",
            ]
        return "\n".join(said)

    def _onset(self) -> list[str]:
        septic = self.units[self.units["sepsis"]]
        since = (septic["onset_time"] - septic["start_time"]).dt.total_seconds() / 3600
        if septic.empty:
            return []
        low, middle, high = since.quantile([0.25, 0.5, 0.75])
        by = "; ".join(f"{n:,} {rule.replace('_', ' ')}" for rule, n in self.rules.most_common())
        return [
            f"Onset: median {middle:.0f} h after the first scored hour (quartiles {low:.0f} to {high:.0f}); {by}."
        ]


def label(
    path: Path,
    output: Path,
    *,
    preset: str = "mimic_code",
    diagnoses: Path | None = None,
    min_age: float = ADULT,
) -> Labelled:
    """Sepsis-3 onsets of every stay of an archive, written as Parquet.

    Parameters
    ----------
    path : Path
        An archive.
    output : Path
        Parquet: ``encounter_id, subject_id, icu_stay, start_time`` (first scored hour), ``sepsis``, and the columns of
        :func:`features.labels.sepsis3.sepsis_onset`, empty where there is none.
    preset : str
        A key of :data:`features.labels.sepsis3.PRESETS`.
    diagnoses : Path, optional
        A folder with ``diagnoses_icd`` or ``clif_hospital_diagnosis``, to compare with coded sepsis.
    min_age : float
        Years at hospital admission, at least.

    Raises
    ------
    SpecError, DataError
        No such preset, no archive, no table of diagnoses, or no antibiotic or culture in the archive.
    """
    one_of("preset", preset, tuple(PRESETS))
    if output.exists():
        raise DataError(f"{output} exists. Name a new file.")
    begun, definition = time.monotonic(), PRESETS[preset]
    keys, codes = archive.shards(path), None if diagnoses is None else _diagnoses(diagnoses)
    parts: list[pd.DataFrame] = []
    attrition: pd.DataFrame | None = None
    facts: Counter[str] = Counter()
    with counting("labelling", "shards", len(keys)) as (told, _):
        for key in keys:
            units, lost, met = label_shard(key.read(), definition, min_age)
            parts.append(units)
            attrition = lost if attrition is None else _added(attrition, lost)
            facts.update(met)
            told(1)
    tellable(facts)
    units = pd.concat(parts, ignore_index=True)
    if units.empty or attrition is None:
        raise DataError(
            "Nobody is left to label: no encounter of the archive is of the cohort and has a known stay."
        )
    report = None if codes is None else _beside(units, codes, preset)
    output.parent.mkdir(parents=True, exist_ok=True)
    units.to_parquet(output, index=False)
    return Labelled(
        preset, output, attrition, units, definition.unit, report, time.monotonic() - begun,
        Counter(units.loc[units["sepsis"], "rule"].tolist()),
    )  # fmt: skip


def tellable(facts: Mapping[str, int]) -> None:
    """Refuse to call everybody healthy where suspicion of infection leaves no trace."""
    none = [name for name, n in facts.items() if not n]
    if none:
        raise DataError(
            f"The archive has no {' and no '.join(none)}: who was suspected of infection cannot be told, so nothing "
            "was written. Convert the tables that hold them too."
        )


def label_shard(
    shard: archive.Shard, definition: Sepsis3, min_age: float
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Units with their onset, attrition, and how often the facts of suspicion occur."""
    rules = [cohorts.adults(min_age)] + ([cohorts.ever_in_icu()] if definition.sofa.where == "icu" else [])
    cohort = cohorts.select(shard.encounters, shard.events, rules)
    counted = shard.events["concept"].value_counts()
    met = {name: sum(int(counted.get(c, 0)) for c in concepts) for name, concepts in SUSPECTED.items()}
    hours = sofa_series(shard.events, cohort.encounters, definition.sofa)
    found = suspected_infection(shard.events, definition.suspicion, shard.encounters)
    onsets = sepsis_onset(shard.events, cohort.encounters, definition, suspicions=found, scored=hours)
    keys = ["encounter_id", "icu_stay"] if definition.unit == "icu_stay" else ["encounter_id"]
    units = hours.groupby(keys, sort=True, observed=True).agg(start_time=("time", "first")).reset_index()
    if definition.unit != "icu_stay":
        units["icu_stay"] = 0
        onsets = onsets.drop(columns="icu_stay")
    people = cohort.encounters.set_index("encounter_id")["subject_id"]
    units = units.assign(subject_id=units["encounter_id"].map(people).astype("str"))
    made = units.merge(onsets, on=keys, how="left", validate="one_to_one")
    # Without an onset a column of nothing has no type of its own.
    kinds: dict[str, Any] = {
        "rule": "str",
        "sofa_baseline": "float64",
        "sofa_at_onset": "float64",
        "start_time": UTC_US,
    }
    made = made.assign(sepsis=made["onset_time"].notna()).astype(kinds)
    first = ["encounter_id", "subject_id", "icu_stay", "start_time", "sepsis"]
    attrition = _with_unscored(cohort, made)
    return made[[*first, *(c for c in made.columns if c not in first)]], attrition, met


def _with_unscored(cohort: cohorts.Cohort, units: pd.DataFrame) -> pd.DataFrame:
    """Attrition of a cohort, with a last row for its encounters that have no scored hour."""
    scored, people = units["encounter_id"].nunique(), units["subject_id"].nunique()
    row = (SCORED, len(cohort.encounters) - scored, scored, people)
    return pd.concat(
        [cohort.attrition, pd.DataFrame([row], columns=cohort.attrition.columns)], ignore_index=True
    )


def _added(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Attrition of both; a person is in one shard only, so persons add up."""
    counts = ["left_out", "encounters", "subjects"]
    return one.assign(**{c: one[c] + other[c] for c in counts})


def _diagnoses(folder: Path) -> pd.DataFrame:
    tables = Tables(folder)
    name = next((n for n in DIAGNOSES if tables.has(n)), None)
    if name is None:
        raise DataError(f"{folder} has no table {' or '.join(DIAGNOSES)}. Give the folder that holds one.")
    columns = {c: kind for c, kind in DIAGNOSIS_COLUMNS.items() if c in tables.columns(name)}
    return coded.diagnoses(tables.whole(name, columns))


def _beside(units: pd.DataFrame, codes: pd.DataFrame, preset: str) -> pd.DataFrame:
    """Prevalence by encounter beside every definition of coded sepsis."""
    everyone = set(units["encounter_id"])
    if not everyone & set(codes["encounter_id"]):
        raise DataError(
            "No diagnosis belongs to an encounter of the archive. Give the diagnoses of the same source and stays."
        )
    found = {preset: set(units.loc[units["sepsis"], "encounter_id"])}
    found |= {f"coded {name}": coded.coded_sepsis(codes, name) for name in coded.DEFINITIONS}
    return coded.prevalence_report(everyone, found, preset)
