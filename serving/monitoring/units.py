"""Are a concept's values, or a part of them, in another unit? A likelihood ratio for each classic mistake, by site.

For each mistake the tables know (a conversion left out or done twice, a decimal point) the values of a period are
read as a mixture: most as usual at this site, a share ``w`` as usual but in the wrong unit. The likelihood ratio of
the best ``w`` against ``w = 0`` finds a whole site as well as one sender in twenty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import numpy as np

from features.clock import HOUR_US
from serving.monitoring.feeds import label
from serving.monitoring.findings import ALARM, Finding
from serving.monitoring.inputs import DECIMAL, MixUp
from serving.monitoring.ledger import N_BINS, PER_DECADE, POSITIVE, Ledger, bin_of, middle_of
from serving.monitoring.statistics import Floats, Ints

LEAST_BEFORE: Final = 300.0
"""Values a site needs behind it before its present ones are judged."""
FLOOR: Final = 1e-3
"""Share of values that may lie anywhere: a patient nobody has seen the like of."""
SMOOTH: Final = np.array([0.1, 0.2, 0.4, 0.2, 0.1])
RARER: Final = 6.0
"""Slips of the decimal point are so much less likely (log odds) than a unit that is in use somewhere."""
SUB: Final = (np.arange(8) + 0.5) / 8
"""A bin is moved in eighths, so that its image does not fall between bins."""


@dataclass(frozen=True, slots=True)
class UnitLimits:
    """When a mixture speaks: log likelihood ratio, values in it, and their share of the concept's at the site."""

    evidence: float = 18.0
    least: float = 3.0
    share: float = 0.02


@dataclass(frozen=True, slots=True)
class Mixed:
    """The mistake that explains a site's values best: its share, its evidence, and what each bin owes to it."""

    mix_up: MixUp
    share: float
    evidence: float
    owed: Floats


def check_units(
    ledger: Ledger,
    now: int,
    mix_ups: Mapping[str, Sequence[MixUp]],
    *,
    window_h: int = 24,
    limits: UnitLimits | None = None,
) -> list[Finding]:
    """Judge the values of the last hours of every feed against those of the weeks before.

    Parameters
    ----------
    now : microseconds
        Up to here the ledger was read.
    mix_ups : mapping of concept to its unit mistakes
        See :func:`serving.monitoring.inputs.mix_ups_from_table`; slips of the decimal point are added.
    """
    limits = limits or UnitLimits()
    stop = -(-now // HOUR_US)
    start = now // HOUR_US - window_h
    then = ledger.histogram(ledger.since // HOUR_US, start, excused=True)
    today = ledger.histogram(start, stop)
    findings = []
    for f, (_, concept, _) in enumerate(ledger.feeds):
        if concept not in mix_ups or then[f].sum() < LEAST_BEFORE or today[f].sum() < limits.least:
            continue
        mixed = mixture(then[f], today[f], (*mix_ups[concept], *DECIMAL), limits)
        if mixed:
            findings.append(_finding(ledger, f, mixed, start, stop))
    return findings


def mixture(then: Floats, today: Floats, mix_ups: Sequence[MixUp], limits: UnitLimits) -> Mixed | None:
    """The mistake for which the values of today, as counts by bin, speak most; None where none does loudly enough."""
    usual = density(then)
    found = None
    for mix_up in mix_ups:
        wrong = density(image(then, mix_up))
        share, evidence = _best_share(today, usual, wrong)
        evidence -= RARER if mix_up in DECIMAL else 0.0
        if evidence > (found.evidence if found else limits.evidence):
            owed = share * wrong / ((1 - share) * usual + share * wrong)
            found = Mixed(mix_up, share, evidence, owed)
    if found is None or found.share < limits.share or found.share * today.sum() < limits.least:
        return None
    return found


def density(count: Floats) -> Floats:
    """Shares by bin, smoothed a little to both sides, with :data:`FLOOR` spread over all bins."""
    smooth = count.copy()
    for part in (slice(1, POSITIVE + 1), slice(POSITIVE + 1, N_BINS)):
        smooth[part] = np.convolve(count[part], SMOOTH, mode="same")
    return np.asarray((1 - FLOOR) * smooth / max(smooth.sum(), 1e-9) + FLOOR / N_BINS, np.float64)


def image(count: Floats, mix_up: MixUp) -> Floats:
    """The same values as they look after a mistake: counts by bin."""
    moved = np.zeros(N_BINS)
    for bins in _moves(mix_up):
        moved += np.bincount(bins, count / len(SUB), N_BINS)
    return moved


@lru_cache(maxsize=1024)
def _moves(mix_up: MixUp) -> tuple[Ints, ...]:
    """Where each eighth of each bin comes to lie."""
    bins = np.arange(N_BINS)
    middle, width = middle_of(bins), 10 ** (1 / PER_DECADE)
    return tuple(bin_of(middle * width ** (part - 0.5) * mix_up.factor + mix_up.offset) for part in SUB)


def _best_share(today: Floats, usual: Floats, wrong: Floats) -> tuple[float, float]:
    """Maximum likelihood share of the wrong unit, by EM, and the log likelihood ratio to none."""
    used = today > 0
    n, ratio = today[used], wrong[used] / usual[used]
    share = 0.5
    for _ in range(60):
        share = float((n * share * ratio / (1 - share + share * ratio)).sum() / n.sum())
        share = min(share, 1 - 1e-9)
    return share, float((n * np.log(1 - share + share * ratio)).sum())


def _finding(ledger: Ledger, f: int, mixed: Mixed, start: int, stop: int) -> Finding:
    source, concept, site = ledger.feeds[f]
    n, owed = _by_hour(ledger, f, mixed, start, stop)
    whole = mixed.share >= 0.9
    return Finding(
        kind="unit_wrong" if whole else "unit_mixed",
        severity=ALARM,
        what=f"{label(concept)}: {'the values' if whole else f'{mixed.share:.0%} of the values'} look like "
        f"{mixed.mix_up.label}.",
        where=f"{f'unit {site}' if site else 'no unit stated'}, source {source}",
        certainty=f"log likelihood ratio {mixed.evidence:,.0f} over {n.sum():,.0f} values",
        action="Compare one result in the source system with the store, value and unit. Correct the code's unit in the "
        "sending system or the code table, then send the results again as corrections.",
        since=_begin(n, owed, mixed.share, start),
        features=(concept,),
        usual=0.0,
        trend=tuple(float(o / k) if k else None for o, k in zip(owed, n, strict=True)),
    )


def _by_hour(ledger: Ledger, f: int, mixed: Mixed, start: int, stop: int) -> tuple[Floats, Floats]:
    """Values by hour, and how many of them are owed to the mistake."""
    rows = ledger.values[(ledger.values["feed"] == f) & ledger.values["hour"].between(start, stop - 1)]
    hour, count = rows["hour"].to_numpy(np.int64) - start, rows["n"].to_numpy(np.float64)
    wrong = count * mixed.owed[rows["bin"].to_numpy(np.int64)]
    n, owed = (np.bincount(hour, weights, stop - start).astype(np.float64) for weights in (count, wrong))
    return n, owed


def _begin(n: Floats, owed: Floats, share: float, start: int) -> datetime:
    """The hour in which it most likely began: from there on, more than half the share found is owed to the mistake."""
    path = np.r_[0.0, np.cumsum(owed - share / 2 * n)]
    return datetime.fromtimestamp((start + int(np.argmin(path))) * 3600, UTC)
