"""A site's own data: convert them to an archive, and check what a model would miss in them.

Each streams over an archive (:mod:`features.archive`), so memory does not grow with the cohort, and returns what a
person wants to be told: counts, shares, reasons and codes. Nothing here prints an identifier.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from features import archive, coverage
from features.archive import ArchiveAccount
from features.clean import UNMAPPED
from features.errors import ConfigError, DataError
from features.featureset import FeatureSet
from features.scores import PARTIAL
from features.sources import counts as count_files
from features.sources import visits
from features.sources.batch import ReadAccount
from features.sources.facts import zone
from features.sources.registry import READERS, reader
from models.spec import Spec
from training.layouts import MAPPED, aligned
from training.tracking import resolve

if TYPE_CHECKING:  # LightGBM takes a second to import, which only a model is worth
    from models.bundle import Bundle

from training.telling import counter, counting, counts, every, share, write_json

TOP: Final = 10
"""Codes without a concept that are named."""
A_YEAR: Final = 365
"""Days of visits that a bed forecast should learn from."""
TAKE_MAPPING: Final = (*MAPPED, "observations")


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
            *_unknown(a.by_code, a.source.labels, self.source),
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
    with _replacing(output, overwrite) as place, counting("reading", "rows") as (read, bars):
        written = counter(bars, "writing", "events")
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
        (t, source.rows[t], source.events[t], sum(left.get(t, Counter()).values()), counts(left.get(t, {})))
        for t in names
    ]
    return aligned(rows, ("table", "rows", "events", "left", "because"))


def _cleaned(account: ArchiveAccount) -> list[str]:
    total: Counter[str] = Counter()
    mapped = 0
    for (_, concept), of_code in account.by_code.items():
        total.update(of_code)
        mapped += of_code["read"] if concept else 0
    reasons = {k: n for k, n in total.items() if n and k not in ("read", "converted", "repaired", *UNMAPPED)}
    lost = {r: total[r] for r in UNMAPPED}
    said = [
        f"{mapped:,} of {account.read:,} events have a concept ({share(mapped, account.read)}), encounters' own facts "
        f"included; {total['converted']:,} were converted to its unit, {total['repaired']:,} read by a repair rule.",
        f"Set aside as unusable: {sum(reasons.values()):,}{': ' + counts(reasons) if reasons else ''}.",
        f"Kept without a concept: {sum(lost.values()):,}{': ' + counts(lost) if any(lost.values()) else ''}.",
        f"Available time: {share(account.filled, account.written)} of events by each concept's policy, "
        "the rest by the source.",
    ]
    if account.orphans:
        said.append(f"{account.orphans:,} events belong to an encounter that nothing describes.")
    return said


def _unknown(
    by_code: Mapping[tuple[str, str], Mapping[str, int]], labels: Mapping[str, str], source: str = ""
) -> list[str]:
    """The most frequent codes that nobody has mapped or left out on purpose, and how to map them."""
    lost = coverage.unmapped(by_code)
    lost = lost[lost["reason"] == "unknown_concept"]
    if lost.empty:
        return []
    most = lost.head(TOP)
    columns = [most["code"], most["code"].map(labels.get).fillna(""), most["events"]]
    rows = list(zip(*(c for c in columns if c.ne("").any()), strict=True))
    head = f"Codes that no table knows: {len(lost):,}. The most frequent:"
    mapping = f"a mapping file (wardcast data schema {source}) or in " if source in TAKE_MAPPING else ""
    return ["", head, aligned(rows), f"A code that matters is mapped in {mapping}features/concepts/codes/."]


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
    labels: Mapping[str, str]
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
                every(row["hours_between"]), f"{row['by_policy']:.0%}" if row["events"] else "", row["candidates"],
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
                *_unknown(self.by_code, self.labels),
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
    if source in ("hourly", "daily"):
        return check_counts(path, source, mapping, timezone)
    if not path.exists():
        raise DataError(f"There is nothing at {path}. Check the path.")
    if source is None:
        if not (path / "metadata" / "wardcast.json").is_file():
            raise DataError(f"{path} is no archive. Say what it is with --source, or convert it first.")
        return _check_archive(path, model, spec)
    if source not in READERS:
        known = ", ".join((*READERS, "visits", "hourly", "daily"))
        raise DataError(f"There is no source {source!r}. Choose one of {known}.")
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
    with counting("counting", "shards", len(keys)) as (told, _):
        for key in keys:
            shard = key.read(columns)
            kinds = shard.encounters["encounter_class"].fillna("")
            classes.update(kinds.tolist())
            stays = shard.encounters.loc[kinds.isin(scope) if scope else kinds.index, "encounter_id"]
            found += coverage.tally(shard.events[shard.events["encounter_id"].isin(stays)], len(stays))
            told(1)
    account = archive.about(path)["account"]
    by_code = _by_code(account)
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
        labels={row["code"]: row["label"] for row in account["by_code"] if "label" in row},
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
    """Share of the split gain that some features carry."""
    gain = bundle.gain()
    return sum(gain.get(n, 0.0) for n in features)


def _by_code(account: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, int]]:
    return {
        (row["code"], row["concept"]): {k: n for k, n in row.items() if k not in ("code", "concept", "label")}
        for row in account["by_code"]
    }


@dataclass(frozen=True)
class VisitsChecked:
    """Whether a file of visits can teach a bed forecast, and what it lacks."""

    lines: tuple[str, ...]
    problem: str = ""
    usable: str = "usable. Train: wardcast train admissions --source visits --input FILE"

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
                f"Verdict: {self.problem or self.usable}",
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
        f"{days:,.0f} days of arrivals, {first:%Y-%m-%d} to {last:%Y-%m-%d}; {share(int(admitted.sum()), len(table))} "
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


A_START: Final = 56
"""Days of history before a first forecast."""
A_SEASON: Final = 274
"""Days from which intervals have been seen to hold: nine months."""


def check_counts(path: Path, shape: str, mapping: Path | None = None, timezone: str = "UTC") -> VisitsChecked:
    """Say what a file of counts holds, what is missing, and whether forecasts of them can be issued and judged."""
    try:
        panel = count_files.read(path, shape, mapping, timezone)
    except DataError as error:
        return VisitsChecked((), f"not usable. {error}")
    days = len(panel.stamps) * panel.step_h / 24
    reported = np.isfinite(panel.values)
    rows = []
    for k in np.argsort(reported.sum(axis=1), kind="stable")[:TOP]:
        some = panel.values[k, reported[k]]
        first, last = panel.stamps[np.flatnonzero(reported[k])[[0, -1]]]
        rows.append((panel.names[k], f"{first:%Y-%m-%d}", f"{last:%Y-%m-%d}", share(len(some), len(panel.stamps)),
                     f"{np.median(some):.0f}", share(int((some == 0).sum()), len(some))))  # fmt: skip
    lines = [
        *panel.account.lines(),
        *(f"{key} read from {column}." for key, column in panel.account.columns.items() if column),
        "",
        f"{len(panel.names):,} series over {days:,.0f} days, {panel.stamps[0]:%Y-%m-%d} to "
        f"{panel.stamps[-1]:%Y-%m-%d}. Those with the fewest reports:",
        "",
        aligned(rows, ("series", "first", "last", "reported", "median", "zero")),
    ]
    if days < A_START:
        return VisitsChecked(
            tuple(lines), f"too short. Forecasts need {A_START} days before the first, better {A_SEASON}."
        )
    if days < A_SEASON:
        lines.append(f"Nine months ({A_SEASON} days) would make intervals hold better.")
    how = f"wardcast backtest beds --shape {shape} --input FILE --from DATE --output OUT.parquet"
    return VisitsChecked(tuple(lines), usable=f"usable. Judge forecasts of them: {how}")


def write_account(converted: Converted, path: Path) -> None:
    """The whole account as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, converted.to_json())
