"""What a site does with data of its own, a function a command: convert, check, label, build features.

Each streams over an archive (:mod:`features.archive`), so memory does not grow with the cohort, and returns what a
person wants to be told: counts, shares, reasons and codes. Nothing here prints an identifier.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from features import archive, cohorts, coverage, streams
from features.archive import ArchiveAccount
from features.clean import UNMAPPED
from features.clock import UTC_US
from features.errors import ConfigError, DataError
from features.featureset import FeatureSet
from features.labels import coded
from features.labels.infection import one_of, suspected_infection
from features.labels.sepsis3 import PRESETS, Sepsis3, sepsis_onset
from features.labels.sofa import sofa_series
from features.scores import PARTIAL
from features.sources import visits
from features.sources.batch import ReadAccount
from features.sources.facts import zone
from features.sources.registry import reader
from features.sources.tables import Kind, Tables
from features.streams import StreamAccount
from models.spec import Spec
from training.layouts import MAPPED, aligned
from training.tracking import resolve

if TYPE_CHECKING:  # LightGBM takes a second to import, which only a model is worth
    from models.bundle import Bundle

TOP: Final = 10
"""Codes without a concept that are named."""
MANIFEST: Final = "features.json"
"""What a feature folder says of its columns, and how it was made."""
DIAGNOSES: Final = ("diagnoses_icd", "clif_hospital_diagnosis")
"""Tables of discharge diagnoses, of MIMIC and of CLIF."""
DIAGNOSIS_COLUMNS: Final[dict[str, Kind]] = {
    "hadm_id": "id", "hospitalization_id": "id", "icd9_code": "text", "icd_code": "text", "icd_version": "text",
    "diagnosis_code": "text", "diagnosis_code_format": "text",
}  # fmt: skip
SUSPECTED: Final = {"antibiotic": ("antibiotic",), "culture": ("culture", "blood_culture")}
"""What suspicion of infection is read from, with its concepts."""
A_YEAR: Final = 365
"""Days of visits that a bed forecast should learn from."""
ADULT: Final = 18.0
TAKE_MAPPING: Final = (*MAPPED, "observations")
Report = Callable[[int], None]


# ------------------------------------------------------------ convert


@dataclass(frozen=True)
class Converted:
    """A source became an archive: what was read, and what became of it."""

    source: str
    folder: Path
    account: ArchiveAccount
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The whole account, every code of it."""
        return {"source": self.source, "seconds": round(self.seconds, 1), **self.account.to_json()}

    def summary(self) -> str:
        """The account in words and tables; codes that no table maps are the most frequent only."""
        a = self.account
        said = [
            f"{self.source} to {self.folder}: {a.encounters:,} encounters of {a.subjects:,} persons, "
            f"{a.written:,} events, in {self.seconds:.1f} s.",
            "",
            _rows_read(a),
            "",
            *_cleaned(a),
            *_unknown(a.by_code, self.source),
        ]
        if a.source.notes:
            said += ["", "To know:", *(f"- {note}" for note in a.source.notes)]
        return "\n".join(said)


def convert(
    source: str,
    path: Path,
    output: Path,
    *,
    timezone: str = "UTC",
    mapping: Path | None = None,
    threads: int = 1,
    overwrite: bool = False,
) -> Converted:
    """Read a source and write it as an archive.

    Parameters
    ----------
    source : str
        One of ``registry.READERS``.
    path, output : Path
        What to read, and the folder to make.
    timezone : str
        Of times without an offset.
    mapping : Path, optional
        What a site's own columns or codes mean; ``wardcast data schema SOURCE`` shows one.
    overwrite : bool
        Replace an archive that is there. A folder that is none is never replaced.

    Raises
    ------
    DataError
        The source cannot be read, or the output is in the way.
    """
    batches = reader(source)
    zone(timezone)
    for asked in (path, *([mapping] if mapping else [])):
        if not asked.exists():
            raise DataError(f"There is nothing at {asked}. Check the path.")
    begun, account = time.monotonic(), ReadAccount()
    with _replacing(output, overwrite) as place, _counting("reading", "rows") as (read, bars):
        written = _counter(bars, "writing", "events")
        found = archive.write(
            batches(path, account, timezone=timezone, mapping=mapping, say=read),
            place, account, name=source, threads=threads, say=written,
        )  # fmt: skip
        if not found.written:
            raise DataError(
                f"{path} gave no event at all. Is it {source}? See: wardcast data schema {source}"
            )
    return Converted(source, output, found, time.monotonic() - begun)


@contextmanager
def _replacing(output: Path, overwrite: bool) -> Iterator[Path]:
    """Where to write: the output itself, or a place beside an archive that is replaced when all went well."""
    if not (output.is_dir() and any(output.iterdir())):
        if output.exists() and not output.is_dir():
            raise DataError(f"{output} is a file. Name a folder for the archive.")
        yield output
        return
    if not (output / "metadata" / "wardcast.json").is_file():
        raise DataError(f"{output} holds something that is no archive. Name a new folder.")
    if not overwrite:
        raise DataError(f"{output} holds an archive already. Name a new folder, or add --overwrite.")
    fresh = output.with_name(f".{output.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        yield fresh
        shutil.rmtree(output)
        fresh.rename(output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _rows_read(account: ArchiveAccount) -> str:
    """Table by table: rows, events made of them, rows that made none and why."""
    source = account.source
    left: dict[str, Counter[str]] = {}
    for (table, reason), n in source.left.items():
        left.setdefault(table, Counter())[reason] += n
    names = list(dict.fromkeys([*source.rows, *source.events, *left]))
    rows = [
        (t, source.rows[t], source.events[t], sum(left.get(t, Counter()).values()), _counts(left.get(t, {})))
        for t in names
    ]
    return aligned(rows, ("table", "rows", "events", "left", "because"))


def _cleaned(account: ArchiveAccount) -> list[str]:
    total: Counter[str] = Counter()
    mapped = 0
    for (_, concept), counts in account.by_code.items():
        total.update(counts)
        mapped += counts["read"] if concept else 0
    reasons = {k: n for k, n in total.items() if n and k not in ("read", "converted", "repaired", *UNMAPPED)}
    lost = {r: total[r] for r in UNMAPPED}
    said = [
        f"{mapped:,} of {account.read:,} events have a concept ({_share(mapped, account.read)}), encounters' own facts "
        f"included; {total['converted']:,} were converted to its unit, {total['repaired']:,} read by a repair rule.",
        f"Set aside as unusable: {sum(reasons.values()):,}{': ' + _counts(reasons) if reasons else ''}.",
        f"Kept without a concept: {sum(lost.values()):,}{': ' + _counts(lost) if any(lost.values()) else ''}.",
        f"Available time: {_share(account.filled, account.written)} of events by each concept's policy, "
        "the rest by the source.",
    ]
    if account.orphans:
        said.append(f"{account.orphans:,} events belong to an encounter that nothing describes.")
    return said


def _unknown(by_code: Mapping[tuple[str, str], Mapping[str, int]], source: str = "") -> list[str]:
    """The most frequent codes that nobody has mapped or left out on purpose, and how to map them."""
    lost = coverage.unmapped(by_code)
    lost = lost[lost["reason"] == "unknown_concept"]
    if lost.empty:
        return []
    rows = list(lost[["code", "events"]].head(TOP).itertuples(index=False, name=None))
    head = f"Codes that no table knows: {len(lost):,}. The most frequent:"
    mapping = f"a mapping file (wardcast data schema {source}) or in " if source in TAKE_MAPPING else ""
    return ["", head, aligned(rows), f"A code that matters is mapped in {mapping}features/concepts/codes/."]


# ------------------------------------------------------------ check


@dataclass(frozen=True)
class Checked:
    """Whether an extract holds what a model reads.

    Attributes
    ----------
    model : str
        Name of the model or spec that was asked for.
    scope : str
        The classes of encounter that it is for, empty for all: only those are counted, ``encounters`` of them.
    table : DataFrame as :func:`features.coverage.coverage` makes it
        With one verdict more: ``optional`` is absent, and read by partial scores only, which do without.
    classes : all encounters by class
    by_policy : share of all mapped events available exactly when their policy says
    features, lost : how many features there are, and would always be missing
    gain : share of what the model learned, by split gain, that the lost features carry; None of a spec
    """

    model: str
    scope: str
    table: pd.DataFrame
    encounters: int
    classes: Mapping[str, int]
    by_policy: float
    by_code: Mapping[tuple[str, str], Mapping[str, int]]
    features: int
    lost: int
    gain: float | None = None

    @property
    def ok(self) -> bool:
        """Nothing that the model reads is absent."""
        return not (self.table["verdict"] == "absent").any()

    def summary(self) -> str:
        """A row a concept, worst first, what might be mapped, and a verdict."""
        shown = [
            (
                row["verdict"], row["concept"], row["features"], row["events"], f"{row['share']:.0%}",
                _every(row["hours_between"]), f"{row['by_policy']:.0%}" if row["events"] else "", row["candidates"],
            )
            for row in self.table.to_dict("records")
        ]  # fmt: skip
        header = ("", "concept", "features", "events", "encounters", "every", "by policy", "unmapped, alike")
        there = ", ".join(f"{n:,} {name}" for name, n in self.classes.items())
        return "\n".join(
            [
                f"{sum(self.classes.values()):,} encounters ({there}) against {self.model}"
                f"{f', which is for {self.scope}: those are counted' if self.scope else ''}.",
                "",
                aligned(shown, header),
                "",
                "encounters: share with any. every: median time between two of one encounter. by policy: share",
                "available exactly when the concept's policy says, so the source may not know better; over all, "
                f"{self.by_policy:.0%}.",
                *_unknown(self.by_code),
                "",
                self.verdict(),
            ]
        )

    def verdict(self) -> str:
        """One line: fit or not, and why."""
        named = {
            v: self.table.loc[self.table["verdict"] == v, "concept"].tolist() for v in ("sparse", "absent")
        }
        sparse = f" {len(named['sparse'])} sparse: {', '.join(named['sparse'])}." if named["sparse"] else ""
        if self.ok:
            return f"Verdict: complete. Everything that the model needs is there.{sparse}"
        gain = "" if self.gain is None else f", which carry {self.gain:.1%} of what the model learned"
        return (
            f"Verdict: incomplete. Absent: {', '.join(named['absent'])}. {self.lost:,} of {self.features:,} features "
            f"would always be missing{gain}.{sparse} Map their codes, or retrain without them."
        )


def check(
    path: Path,
    *,
    source: str | None = None,
    model: str | None = None,
    spec: Path | None = None,
    timezone: str = "UTC",
    mapping: Path | None = None,
    threads: int = 1,
) -> Checked | VisitsChecked:
    """Compare an archive, or an extract read by ``source``, with what a model reads (the released sepsis model's).

    Raises
    ------
    DataError
        The path is neither, or cannot be read.
    """
    if source == "visits":
        return check_visits(path, timezone)
    if source is None:
        if not (path / "metadata" / "wardcast.json").is_file():
            raise DataError(f"{path} is no archive. Say what it is with --source, or convert it first.")
        return _check_archive(path, model, spec)
    with tempfile.TemporaryDirectory(prefix="wardcast-") as held:
        place = Path(held) / "archive"
        convert(source, path, place, timezone=timezone, mapping=mapping, threads=threads)
        return _check_archive(place, model, spec)


def _check_archive(path: Path, model: str | None, spec: Path | None) -> Checked:
    asked = wanted(model, spec)
    features, keys = asked.spec.features, archive.shards(path)
    usual = None if asked.bundle is None else _usual(asked.bundle)
    scope = list(asked.spec.section("scope").get("encounter_classes", ()))
    found, classes = coverage.nothing(), Counter[str]()
    columns = ("encounter_id", "time", "available_time", "concept", "status", "numeric_value")
    with _counting("counting", "shards", len(keys)) as (told, _):
        for key in keys:
            shard = key.read(columns)
            kinds = shard.encounters["encounter_class"].fillna("")
            classes.update(kinds.tolist())
            stays = shard.encounters.loc[kinds.isin(scope) if scope else kinds.index, "encounter_id"]
            found += coverage.tally(shard.events[shard.events["encounter_id"].isin(stays)], len(stays))
            told(1)
    by_code = _by_code(archive.about(path)["account"])
    table = coverage.coverage(found, coverage.needed(features), by_code, usual)
    table["verdict"] = table["verdict"].mask(
        (table["verdict"] == "absent") & ~table["concept"].isin(_essential(features)), "optional"
    )
    absent = set(table.loc[table["verdict"] == "absent", "concept"])
    lost = [n for n in features.names if absent & set(features.concept_of(n)) and not n.endswith(PARTIAL)]
    events = max(int(found.concepts["events"].sum()), 1)
    return Checked(
        model=asked.name,
        scope=", ".join(scope),
        table=table,
        encounters=found.encounters,
        classes={k or "of no class": n for k, n in classes.most_common()},
        by_policy=int(found.concepts["by_policy"].sum()) / events,
        by_code=by_code,
        features=len(features.names),
        lost=len(lost),
        gain=None if asked.bundle is None else _gain(asked.bundle, lost),
    )


def _essential(features: FeatureSet) -> set[str]:
    """Concepts without which some feature is always missing; a partial score does without any of its parts."""
    return {c for name in features.names if not name.endswith(PARTIAL) for c in features.concept_of(name)}


@dataclass(frozen=True)
class Wanted:
    """What is read: a spec by name, and the bundle it stands in, if any."""

    name: str
    spec: Spec
    bundle: Bundle | None = None


def wanted(model: str | None, spec: Path | None) -> Wanted:
    """The model or spec that was named; the released sepsis model when none was.

    Raises
    ------
    ConfigError
        Both a model and a spec are named, or the model is none.
    """
    if model is not None and spec is not None:
        raise ConfigError("Name a --model or a --spec, not both.")
    if spec is not None:
        read = Spec.load(spec)
        return Wanted(f"{spec.name} ({read.name})", read)
    from models.bundle import Bundle

    bundle = Bundle.load(resolve(model or "released:sepsis"))
    return Wanted(bundle.model_id, bundle.spec, bundle)


def _usual(bundle: Bundle) -> dict[str, float]:
    """Share of training predictions that knew a last value over the whole stay, by concept."""
    summaries = bundle.reference.get("features", {})
    known = ((c, summaries.get(f"{c}__last")) for c in bundle.spec.features.concepts)
    return {c: 1.0 - float(about["missing"]) for c, about in known if about is not None}


def _gain(bundle: Bundle, features: Sequence[str]) -> float:
    """Share of the split gain of the first booster that some features carry."""
    booster = bundle.boosters.get("risk") or next(iter(bundle.boosters.values()))
    gain = dict(zip(booster.feature_name(), booster.feature_importance("gain"), strict=True))
    return float(sum(gain.get(n, 0.0) for n in features) / max(sum(gain.values()), 1e-12))


def _by_code(account: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, int]]:
    return {
        (row["code"], row["concept"]): {k: n for k, n in row.items() if k not in ("code", "concept")}
        for row in account["by_code"]
    }


@dataclass(frozen=True)
class VisitsChecked:
    """Whether a file of visits can teach a bed forecast, and what it lacks."""

    lines: tuple[str, ...]
    problem: str = ""

    @property
    def ok(self) -> bool:
        """The file can be used."""
        return not self.problem

    def summary(self) -> str:
        """What was found, and a verdict."""
        said = [*self.lines, ""] if self.lines else []
        return "\n".join(
            [
                *said,
                f"Verdict: {self.problem or 'usable. Train: wardcast train admissions --source visits --input FILE'}",
            ]
        )


WITHOUT: Final[dict[str, str]] = {
    "encounter_id": "rows are numbered instead",
    "subject_id": "every attendance counts as another person",
    "decision_time": "the decision is taken to come with the bed, so waiting patients look undecided",
    "specialty": "one forecast for the whole hospital, none by specialty",
    "unit": "nothing is lost",
    "age_years": "P(admission) does without",
    "sex": "P(admission) does without",
    "arrival_mode": "everybody is taken to come through the emergency department; no ambulances",
}
"""What follows when a column of visits is not there."""


def check_visits(path: Path, timezone: str = "UTC") -> VisitsChecked:
    """Say what a file of visits holds, what it lacks, and whether a bed forecast can learn from it."""
    if not path.is_file():
        raise DataError(f"No file of visits at {path}. Give a .csv or .parquet file.")
    try:
        table, account = visits.read(path, timezone=timezone)
    except DataError as error:
        known = [(c, ", ".join(visits.SPELLINGS[c])) for c in visits.REQUIRED]
        return VisitsChecked(
            (), f"not usable. {error}\n\nColumns are known by these names:\n{aligned(known)}"
        )
    rows = []
    for column in visits.VISIT_COLUMNS:
        theirs = account.columns.get(column, "")
        filled = (table[column].notna() & (table[column].astype(str) != "")).mean() if theirs else 0.0
        without = "" if theirs else f"not there: {WITHOUT[column]}"
        rows.append((column, theirs or "-", f"{filled:.0%}" if theirs else "", without))
    first, last = table["arrival_time"].min(), table["arrival_time"].max()
    days = (last - first) / pd.Timedelta(days=1)
    admitted = table["admission_time"].notna()
    named = sorted(set(table.loc[admitted, "specialty"]) - {""})
    lines = [
        *account.lines(),
        "",
        aligned(rows, ("column", "read from", "filled", "")),
        "",
        f"{days:,.0f} days of arrivals, {first:%Y-%m-%d} to {last:%Y-%m-%d}; {_share(int(admitted.sum()), len(table))} "
        f"reached a bed; {len(named):,} specialties.",
    ]
    from training.admissions import LEAST_DAYS

    if days < LEAST_DAYS:
        return VisitsChecked(
            tuple(lines), f"too short. A bed forecast needs at least {LEAST_DAYS} days, better {A_YEAR}."
        )
    if days < A_YEAR:
        lines.append(f"A year ({A_YEAR} days) would teach the seasons too.")
    return VisitsChecked(tuple(lines))


# ------------------------------------------------------------ label


@dataclass(frozen=True)
class Labelled:
    """Onsets of a cohort.

    Attributes
    ----------
    attrition : DataFrame as :attr:`features.cohorts.Cohort.attrition`, over all shards
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
            f"Septic: {septic:,} of {n:,} {what}, {_interval(septic, n)}.",
        ]
        whole = self.units.groupby("encounter_id")["sepsis"].any()
        if self.unit == "icu_stay":
            said.append(
                f"        {int(whole.sum()):,} of {len(whole):,} encounters, {_interval(int(whole.sum()), len(whole))}."
            )
        said += self._onset()
        if self.report is not None:
            rows = [
                (
                    r["definition"],
                    r["positive"],
                    r["of"],
                    _interval(r["positive"], r["of"]),
                    r["shared"],
                    _kappa(r["kappa"]),
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
    with _counting("labelling", "shards", len(keys)) as (told, _):
        for key in keys:
            units, lost, met = _label_shard(key.read(), definition, min_age)
            parts.append(units)
            attrition = lost if attrition is None else _added(attrition, lost)
            facts.update(met)
            told(1)
    _tellable(facts)
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


def _tellable(facts: Mapping[str, int]) -> None:
    """Refuse to call everybody healthy where suspicion of infection leaves no trace."""
    none = [name for name, n in facts.items() if not n]
    if none:
        raise DataError(
            f"The archive has no {' and no '.join(none)}: who was suspected of infection cannot be told, so nothing "
            "was written. Convert the tables that hold them too."
        )


def _label_shard(
    shard: archive.Shard, definition: Sepsis3, min_age: float
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Units with their onset, attrition, and how often the facts of suspicion occur."""
    rules = [cohorts.adults(min_age)] + ([cohorts.ever_in_icu()] if definition.sofa.where == "icu" else [])
    cohort = cohorts.select(shard.encounters, shard.events, rules)
    counted = shard.events["concept"].value_counts()
    met = {name: sum(int(counted.get(c, 0)) for c in concepts) for name, concepts in SUSPECTED.items()}
    hours = sofa_series(shard.events, cohort.encounters, definition.sofa)
    found = suspected_infection(shard.events, definition.suspicion)
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
    return made[[*first, *(c for c in made.columns if c not in first)]], cohort.attrition, met


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


# ------------------------------------------------------------ features


@dataclass(frozen=True)
class Built:
    """A feature folder, and what it took."""

    output: Path
    model: str
    account: StreamAccount
    features: int
    engine: str
    seconds: float
    peak_mib: float
    calendar: Sequence[str] = ()

    def summary(self) -> str:
        """Rows, features, time, memory and where the manifest is."""
        a = self.account
        said = [
            f"{a.predictions:,} predictions of {a.encounters:,} encounters × {self.features:,} features "
            f"({self.model}), from {a.events:,} events.",
            f"{self.engine}: {self.seconds:.1f} s, {a.predictions / max(self.seconds, 1e-9):,.0f} predictions a "
            f"second; peak memory {self.peak_mib:,.0f} MiB{' of the largest worker' if self.engine == 'dask' else ''}.",
        ]
        if a.left:
            said.append(f"Encounters left out or cut: {_counts(a.left)}.")
        if self.calendar:
            said.append(f"Not here, since it is local time: {', '.join(self.calendar)}. Training adds it.")
        return "\n".join(
            [*said, f"Features: {self.output}/part-*.parquet", f"Manifest: {self.output / MANIFEST}"]
        )


def build(
    path: Path,
    output: Path,
    at: str,
    *,
    start: str | None = None,
    model: str | None = None,
    spec: Path | None = None,
    engine: str = "local",
    scheduler: str = "",
    workers: int = 2,
    threads: int = 1,
) -> Built:
    """Features of an archive at prediction times, on this machine or on a Dask cluster: the same bits either way.

    Parameters
    ----------
    at : str
        As :func:`features.streams.prediction_times` reads it.
    start : str, optional
        Where a grid begins, ``icu`` or ``hospital`` (which it is when left out).
    engine : str
        ``local``, or ``dask``: ``workers`` processes here, or the cluster of ``scheduler``.

    Raises
    ------
    DataError, SpecError, ConfigError
        Something is no archive, no rule of times, no model; or the output is in the way.
    """
    if engine not in ("local", "dask"):
        raise ConfigError(f"There is no engine {engine!r}. Choose local or dask.")
    if scheduler and engine != "dask":
        raise ConfigError("A scheduler needs --engine dask.")
    asked = wanted(model, spec)
    features, calendar = asked.spec.features, asked.spec.section("model").get("calendar", ())
    times = streams.prediction_times(_rule(at, start))
    keys = archive.shards(path)
    about: dict[str, Any] = {
        "archive": path.name,
        "at": at,
        "start": start,
        "engine": engine,
        "model": asked.name,
    }
    begun = time.monotonic()
    with _counting("building", "shards", len(keys)) as (told, bars):
        rows = _counter(bars, "writing", "predictions")

        def say(predictions: int) -> None:
            told(1)
            rows(predictions)

        if engine == "local":
            made = streams.build_stream(features, path, times, output, threads=threads, say=say)
            peak = _peak_mib()
        else:
            made, peak = _on_dask(features, path, times, output, scheduler, workers, say)
    about |= {"predictions": made.predictions, "encounters": made.encounters, "left": dict(made.left)}
    _write_json(output / MANIFEST, features.manifest() | {"made": about})
    seconds = time.monotonic() - begun
    return Built(output, asked.name, made, len(features.names), engine, seconds, peak, tuple(calendar))


def _rule(at: str, start: str | None) -> str:
    if start is None:
        return at
    if at.startswith("events:") or ":" in at or Path(at).is_file():
        raise ConfigError("--start is where a grid begins; it goes with --at hourly or --at 4h only.")
    return f"{at}:{start}"


def _on_dask(
    features: FeatureSet, path: Path, times: Any, output: Path, scheduler: str, workers: int, say: Report
) -> tuple[StreamAccount, float]:
    from training import distributed

    with distributed.cluster(scheduler, workers) as client:
        made = distributed.build_features(features, path, times, output, client=client, say=say)
        return made, max(client.run(_peak_mib).values(), default=0.0)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ------------------------------------------------------------ telling


@contextmanager
def _counting(what: str, unit: str, total: int | None = None) -> Iterator[tuple[Report, Progress]]:
    """A line on the terminal that counts; nothing where standard error is no terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    quiet = os.environ.get("WARDCAST_QUIET") == "1" or not console.is_terminal
    with Progress(*columns, console=console, disable=quiet, transient=True) as bars:
        yield _counter(bars, what, unit, total), bars


def _counter(bars: Progress, what: str, unit: str, total: int | None = None) -> Report:
    """Counts up in a line of its own."""
    done = 0
    task = bars.add_task(what, total=total)

    def more(n: int) -> None:
        nonlocal done
        done += n
        of = "" if total is None else f" of {total:,}"
        bars.update(task, advance=n, description=f"{what}: {done:,}{of} {unit}")

    return more


def _counts(counted: Mapping[str, int]) -> str:
    """``no_value 1,234, no_time 5``, most frequent first."""
    return ", ".join(f"{reason} {n:,}" for reason, n in sorted(counted.items(), key=lambda i: -i[1]) if n)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "none"


def _interval(positive: int, n: int) -> str:
    low, high = coded.wilson(positive, n)
    return f"{positive / n:.1%} ({low:.1%}–{high:.1%})" if n else "nobody"


def _kappa(value: float) -> str:
    return "" if value != value else f"{value + 0.0:.2f}".replace("-0.00", "0.00")


def _every(hours: float) -> str:
    """A median gap in words a person reads at a glance."""
    if hours != hours:
        return ""
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f} h"


def write_account(converted: Converted, path: Path) -> None:
    """The whole account as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_json(path, converted.to_json())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
