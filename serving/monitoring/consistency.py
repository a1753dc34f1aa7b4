"""Do a patient's inputs make sense together, do they still move, and are they as fresh as they were?

Each input by itself may look as usual while two of them stand under each other's code, or while a copy of them is no
longer refreshed. What is asked here needs no reference beyond what physiology fixes: by site, since when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np

from features.clock import HOUR_US
from serving.monitoring.feeds import label
from serving.monitoring.findings import ALARM, WATCH, Batch, Finding, Limits, Reference, Sign
from serving.monitoring.schema import Matrix, conform
from serving.monitoring.statistics import Bools, Floats, design_effect, onset, proportion_probability

SURE: Final = 1e-6
MORE: Final = 0.15
"""Share of rows, above the usual one, whose values disagree."""
STILL: Final = 0.2
STALE: Final = 0.3
STALE_LEVEL: Final = 0.95
"""An input is stale when it is older than so many of the reference's."""
FRESH: Final = "__hours_since_last"


@dataclass(frozen=True)
class Relation:
    """What ties some concepts together.

    Attributes
    ----------
    words : what is usual, in words
    concepts : in the order in which ``apart`` takes their values
    apart : how far a row is from it
    most : farther is a disagreement
    usual : share of hours that disagree on most days in either hospital of PhysioNet 2019
    """

    words: str
    concepts: tuple[str, ...]
    apart: Callable[..., Floats]
    most: float
    usual: float


RELATIONS: Final = (
    Relation(
        "mean pressure lies a third of the way from the diastolic to the systolic one",
        ("map", "sbp", "dbp"),
        lambda mean, high, low: np.abs(mean - (high + 2 * low) / 3),
        12.0,
        0.12,
    ),
    Relation(
        "the haematocrit (%) is three times the haemoglobin (g/dL)",
        ("hemoglobin", "hematocrit"),
        lambda hb, hct: np.abs(np.log(hct / hb / 3)),
        0.25,
        0.03,
    ),
    Relation(
        "pH, PaCO2 and bicarbonate follow Henderson and Hasselbalch",
        ("ph", "paco2", "bicarbonate"),
        lambda ph, paco2, hco3: np.abs(ph - 6.1 - np.log10(hco3 / (0.0307 * paco2))),
        0.15,
        0.05,
    ),
)


def check_consistency(batch: Batch, reference: Reference, limits: Limits) -> list[Finding]:
    """Look at each unit's rows: values that disagree, rows that stand still, inputs older than usual."""
    if len(batch) == 0:
        return []
    matrix = conform(batch.features, reference.names).matrix
    found: list[Finding] = []
    for unit in sorted(set(batch.unit)):
        rows = (batch.unit == unit).to_numpy()
        here = _Unit(
            batch.take(rows), matrix[rows], reference, limits, f"unit {unit}" if unit else "everywhere"
        )
        still = list(_still(here))
        found += [*still, *_disagreeing(here), *(() if still else _stale(here))]
    return found


@dataclass(frozen=True)
class _Unit:
    """The rows of one unit, in order of time."""

    batch: Batch
    matrix: Matrix
    reference: Reference
    limits: Limits
    where: str

    def values(self, name: str) -> Floats | None:
        """A feature's column; None where the model has none of that name."""
        names = self.reference.names
        return self.matrix[:, names.index(name)].astype(np.float64) if name in names else None

    def since(self, hit: Bools, usual: float, known: Bools) -> tuple[int, datetime] | None:
        """Position among the known rows, and instant, from which a sign runs at its new rate."""
        start = onset(hit[known], usual)
        if start is None:
            return None
        instant: datetime = self.batch.time[known].iloc[start].to_pydatetime()
        return start, instant

    def weight(self, hit: Bools, known: Bools) -> float:
        """Independent rows among the known ones."""
        values = np.where(known, hit.astype(np.float64), np.nan)[:, None]
        return float(known.sum() / design_effect(values, self.batch.stay)[0])


def _disagreeing(here: _Unit) -> Iterator[Finding]:
    for relation in RELATIONS:
        columns = [here.values(f"{concept}__last") for concept in relation.concepts]
        told = [c for c in columns if c is not None]
        if len(told) < len(columns):
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            apart = relation.apart(*told)
        known = np.isfinite(apart)
        began = here.since(apart > relation.most, relation.usual, known)
        if began is None:
            continue
        late = known & (np.cumsum(known) > began[0])
        hit = apart > relation.most
        n, share = here.weight(hit, late), float(hit[late].mean())
        p = float(proportion_probability(share, n, relation.usual, n * 1e6))
        if n < here.limits.min_effective or share < relation.usual + MORE or p >= SURE:
            continue
        names = [label(c) for c in relation.concepts]
        yield Finding(
            kind="values_disagree",
            severity=ALARM if share >= 0.5 else WATCH,
            what=f"{', '.join(names)}: {share:.0%} of their values do not go together; {relation.usual:.0%} at most is "
            f"usual. As a rule {relation.words}.",
            where=here.where,
            certainty=f"p {p:.1g}; {late.sum():,} predictions, as telling as {n:,.0f} independent ones",
            action="One of these values is another quantity, is in another unit, or is another patient's. Compare "
            "codes and one patient's values with the bedside; a changed mapping swaps two codes.",
            since=began[1],
            features=tuple(f"{c}__last" for c in relation.concepts),
            trend=Sign(hit, relation.usual, 1.0, known).trend(here.batch),
            usual=relation.usual,
        )


def _still(here: _Unit) -> Iterator[Finding]:
    """Rows of a stay that are alike to the last digit, though hours since the last value must have grown."""
    if not any(FRESH in name for name in here.reference.names):
        return
    order = np.lexsort((np.arange(len(here.batch)), here.batch.stay))
    stay, matrix = here.batch.stay[order], here.matrix[order]
    when = here.batch.time.to_numpy("datetime64[us]").astype(np.int64)[order]
    apart = (stay[1:] == stay[:-1]) & (np.diff(when) >= HOUR_US // 2)
    alike = np.all((matrix[1:] == matrix[:-1]) | (np.isnan(matrix[1:]) & np.isnan(matrix[:-1])), axis=1)
    some = ~np.isnan(matrix[1:]).all(axis=1)
    hit, known = np.zeros(len(stay), bool), np.zeros(len(stay), bool)
    known[order[1:]], hit[order[1:]] = apart & some, apart & some & alike
    began = here.since(hit, 0.01, known)
    if began is None:
        return
    late = known & (np.cumsum(known) > began[0])
    stays = len(np.unique(here.batch.stay[hit]))
    if float(hit[late].mean()) < STILL or stays < 5:
        return
    yield Finding(
        kind="inputs_still",
        severity=ALARM,
        what=f"{hit[late].mean():.0%} of predictions read exactly what the one before read, for {stays:,} patients: "
        "even the hours since the last values did not grow.",
        where=here.where,
        certainty="certain: no two hours of a patient are alike to the last digit",
        action="Scores here are old news. Find out why the inputs are no longer refreshed: a stale copy, a stopped "
        "clock, a queue; then score again.",
        since=began[1],
        trend=Sign(hit, 0.0, 1.0, known).trend(here.batch),
        usual=0.0,
    )


def _stale(here: _Unit) -> Iterator[Finding]:
    """Inputs that have become older than they were before in this unit; several are one finding."""
    found: list[tuple[float, str, datetime, float, float]] = []
    for j, name in enumerate(here.reference.names):
        if FRESH not in name or np.isnan(here.reference.quantiles[j]).any():
            continue
        age = here.matrix[:, j].astype(np.float64)
        known = np.isfinite(age)
        hit = age > max(here.reference.at(STALE_LEVEL, j), 1.0)
        began = here.since(hit, 1 - STALE_LEVEL, known)
        if began is None or began[0] < known.sum() / 10:
            continue
        late = known & (np.cumsum(known) > began[0])
        share, before = float(hit[late].mean()), float(hit[known & ~late].mean())
        n, m = here.weight(hit, late), here.weight(hit, known & ~late)
        p = float(proportion_probability(share, n, before, m))
        if min(n, m) >= here.limits.min_effective / 3 and share - before >= STALE and p < SURE:
            found.append((p, name, began[1], share, before))
    if not found:
        return
    p, _, _, share, before = min(found)
    names = ", ".join(label(name.split("__")[0]) for _, name, *_ in found[:8])
    yield Finding(
        kind="inputs_stale",
        severity=WATCH,
        what=f"{names}{f' and {len(found) - 8} more' if len(found) > 8 else ''}: older than usual when scored. Up to "
        f"{share:.0%} of predictions read values older than 19 in 20 were in training; {before:.0%} did before.",
        where=here.where,
        certainty=f"p {p:.1g}, patients counted rather than hours",
        action="Results arrive later or are made less often here: look at the delays of this feed, then at what the "
        "ward has changed.",
        since=min(began for _, _, began, *_ in found),
        features=tuple(name for _, name, *_ in found),
    )
