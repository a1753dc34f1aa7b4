"""Our own checks, run before Evidently and whether or not it can run: what is wrong, where, since when, what to do.

Built for the failures that hurt hospitals most and that drift statistics miss: a silent feed, a column that is gone,
numbers as text, a unit mixed up, an alert that no longer fires. Small samples raise no alarm, and the share of false
findings is held down (Benjamini-Hochberg).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import numpy as np
import pandas as pd

from features.concepts import loader
from serving.monitoring import inputs
from serving.monitoring.findings import (
    ALARM,
    NOTE,
    SEVERITIES,
    WATCH,
    Batch,
    Finding,
    Limits,
    Reference,
    Sign,
)
from serving.monitoring.inputs import Measured, MixUp
from serving.monitoring.schema import Matrix, conform
from serving.monitoring.statistics import Bools, proportion_probability

ACTIONS: Final[Mapping[str, str]] = {
    "feed_silent": "Call the interface team: the feed that brings {concept} has stopped, or its code has changed "
    "(look at the counts of unmapped codes). Scores made meanwhile lack it.",
    "missing_more": "Find out what changed in ordering, charting or the interface for {concept}; look at rejected "
    "events first.",
    "missing_less": "{concept} is measured more often than where the model was trained. Usually harmless; check "
    "calibration on these patients.",
    "unit_wrong": "Compare one result of {concept} in the source system with the store, value and unit. Correct the "
    "code's unit in the sending system or the code table, then send the results again as corrections.",
    "unit_mixed": "Part of the {concept} results are far out of range: compare them with the source system, sender "
    "by sender.",
    "scale": "{concept} has moved as a whole. Check unit, device and code mapping before blaming the patients.",
    "drift": "Ask whether patients, practice or devices changed. If so, check calibration on recent outcomes "
    "before the model is trusted or refitted.",
}
"""What to do, by kind of finding about a concept."""

FEW: Final = 4.0
"""Enough independent values to see that nearly all of them are beyond anything usual."""

RECENT: Final = timedelta(hours=24)
"""A fault of today drowns in a week of good data, so the last day is looked at once more by itself."""

CODING: Final = re.compile(r" \([^)]*\d[^)]*\)$")
"""What the numbers of a label mean, as in "Sex (1 male, 0 female)": not said in a sentence."""

MOST_UNITS: Final = 40
"""More units than this are not looked at one by one."""

RANK: Final = tuple(ACTIONS)
"""When several things are true of one concept, the first of these is said: it explains the others."""


@dataclass(frozen=True)
class Checked:
    """Findings about the inputs, and what was measured (None when there was nothing to measure).

    Attributes
    ----------
    findings : list of Finding, worst first
    table : DataFrame, one row a feature
        As :class:`serving.monitoring.inputs.Measured` has it, and ``finding``, the kind of what was said of it.
    bins : list of (now, reference)
        Per feature the shares of the values in about ten bins of the reference; empty where not compared.
    """

    findings: list[Finding]
    table: pd.DataFrame | None
    bins: list[tuple[list[float], list[float]]]


def check_inputs(
    batch: Batch,
    reference: Reference,
    *,
    limits: Limits | None = None,
    mix_ups: Mapping[str, Sequence[MixUp]] | None = None,
    derived: Mapping[str, Sequence[str]] | None = None,
) -> Checked:
    """Compare logged inputs with the reference: schema, emptiness, missingness, units, drift. Never raises on data.

    Parameters
    ----------
    batch : Batch
        Scored predictions. No rows at all is a finding.
    mix_ups : mapping of concept to its classic unit mistakes
        See :func:`serving.monitoring.inputs.mix_ups_from_table`.
    derived : mapping of feature to the concepts it is computed from
        Ratios and scores: what is wrong with one of their concepts is said once, of the concept.

    Returns
    -------
    Checked
        Findings worst first, one a concept; one row a feature.
    """
    limits = limits or Limits()
    conformed = conform(batch.features, reference.names)
    if len(batch) == 0:
        return Checked([*conformed.findings, nothing_to_check()], None, [])
    watch = _watch(batch, conformed.matrix, reference, limits, mix_ups or {})
    teller = _Teller(reference.names, set(conformed.absent), derived or {})
    teller.tell(watch)
    for rows, words in _looks(batch):
        part = _watch(batch.take(rows), conformed.matrix[rows], reference, limits, mix_ups or {})
        teller.tell(part, words, of_unit=words is None)
    findings = [*conformed.findings, *worst_first(teller.findings)]
    table = watch.measured.table
    return Checked(findings, table.assign(finding=_kinds(table, findings)), watch.measured.bins)


class _Teller:
    """Collects findings so that each cause is told once: whole before part, concept before what is computed from it."""

    def __init__(self, names: Sequence[str], absent: set[str], derived: Mapping[str, Sequence[str]]) -> None:
        present = [j for j, name in enumerate(names) if name not in absent]
        self.findings: list[Finding] = []
        self._told: set[str] = set()
        self._noted: set[str] = set()
        self._names = names
        self._causes = {name: {inputs.concept_of(name), *derived.get(name, ())} for name in names}
        self._turns = [
            [j for j in present if (names[j] in derived) == computed] for computed in (False, True)
        ]

    def tell(self, watch: _Watch, words: str | None = None, of_unit: bool = False) -> None:
        """Add what a look finds about causes not yet told; a note keeps only further notes from being told."""
        for turn in self._turns:
            untold = [j for j in turn if self._told.isdisjoint(self._causes[self._names[j]])]
            for finding in _by_concept(watch, untold, of_unit):
                first = finding.features[0]
                if finding.severity == NOTE and not self._noted.isdisjoint(self._causes[first]):
                    continue
                what = f"{words}: {finding.what}" if words else finding.what
                self.findings.append(replace(finding, what=what))
                (self._noted if finding.severity == NOTE else self._told).add(inputs.concept_of(first))


def worst_first(findings: list[Finding]) -> list[Finding]:
    """Alarms, then what to watch, then notes; otherwise the order is kept."""
    return sorted(findings, key=lambda f: SEVERITIES.index(f.severity))


def _looks(batch: Batch) -> Iterator[tuple[Bools, str | None]]:
    """Parts of the batch to look at by themselves: the last day, and each unit (named by the finding's ``where``)."""
    last = batch.time.iloc[-1]
    if last - batch.time.iloc[0] >= 1.5 * RECENT:
        yield (batch.time > last - RECENT).to_numpy(), "In the last 24 hours"
    units = batch.unit.to_numpy()
    names = [u for u in pd.unique(units) if u]
    if 2 <= len(names) <= MOST_UNITS:
        for name in names:
            yield units == name, None


def nothing_to_check() -> Finding:
    """No scored prediction in the period: the loudest silence of all."""
    return Finding(
        kind="no_predictions",
        severity=ALARM,
        what="No prediction was scored in this period, so nothing could be compared.",
        where="the whole service",
        certainty="certain",
        action="If patients were in scope, find out why: is the service up, do events arrive, do all answers say "
        "not scored? If it is new, run the monitor again once patients have been scored.",
    )


@dataclass(frozen=True)
class _Watch:
    """Everything the checks of one feature need."""

    batch: Batch
    reference: Reference
    limits: Limits
    measured: Measured
    matrix: Matrix
    mix_ups: Mapping[str, Sequence[MixUp]]

    def row(self, j: int) -> pd.Series:
        return self.measured.table.iloc[j]

    def sure(self, j: int, q: float) -> str:
        row = self.row(j)
        return f"q {_p(q)}; {row['n']:,} values, as telling as {row['effective']:,.0f} independent ones"


def _watch(
    batch: Batch,
    matrix: Matrix,
    reference: Reference,
    limits: Limits,
    mix_ups: Mapping[str, Sequence[MixUp]],
) -> _Watch:
    return _Watch(batch, reference, limits, inputs.measure(matrix, batch, reference, limits), matrix, mix_ups)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What one feature would say, before its concept speaks with one voice."""

    kind: str
    severity: str
    what: str
    certainty: str
    size: float
    j: int
    sign: Sign
    start: int | None = None
    """First row that shows it, where that is known outright."""


def _by_concept(watch: _Watch, present: Sequence[int], of_unit: bool = False) -> list[Finding]:
    concepts: dict[str, list[_Candidate]] = {}
    for j in present:
        for candidate in _candidates_of_unit(watch, j) if of_unit else _candidates(watch, j):
            concepts.setdefault(str(watch.row(j)["concept"]), []).append(candidate)
    said = [_speak(watch, concept, heard) for concept, heard in concepts.items()]
    return worst_first([f for _, f in sorted(said, key=lambda s: (RANK.index(s[1].kind), -s[0]))])


def _speak(watch: _Watch, concept: str, heard: list[_Candidate]) -> tuple[float, Finding]:
    names = watch.reference.names
    kind = min((c.kind for c in heard), key=RANK.index)
    loudest = sorted((c for c in heard if c.kind == kind), key=lambda c: -c.size)
    first = loudest[0]
    features = list(dict.fromkeys(names[c.j] for c in [*loudest, *heard]))
    more = f"; {len(features)} features are concerned." if len(features) > 1 else "."
    return first.size, Finding(
        kind=kind,
        severity=first.severity,
        what=first.what.format(concept=words(concept), feature=features[0]) + more,
        where=first.sign.where(watch.batch) if first.start is None else _units(watch.batch),
        certainty=first.certainty,
        action=_sentence(ACTIONS[kind].format(concept=_midway(words(concept)))),
        since=first.sign.since(watch.batch) if first.start is None else _instant(watch.batch, first.start),
        features=tuple(features),
        trend=first.sign.trend(watch.batch),
        usual=first.sign.usual,
    )


def words(concept: str) -> str:
    """A concept's label; ratios, scores and what concepts.csv lacks are called by their name."""
    known = loader.concepts().get(concept)
    return CODING.sub("", known.label) if known else concept.replace("_", " ")


def _units(batch: Batch) -> str:
    names = [str(u) for u in batch.unit.unique() if u]
    return f"unit {names[0]}" if len(names) == 1 else "all units" if names else "everywhere"


def _midway(label: str) -> str:
    """A label inside a sentence: "Mean arterial pressure" loses its capital, "PaCO2" keeps it."""
    return label[0].lower() + label[1:] if label[1:2].islower() and label.upper() != label else label


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _candidates(watch: _Watch, j: int) -> Iterator[_Candidate]:
    silent = list(_silent(watch, j))
    if silent:
        yield from silent
        return
    yield from _missing(watch, j)
    yield from _unit(watch, j)
    yield from _tail(watch, j)
    yield from _drift(watch, j)


def _candidates_of_unit(watch: _Watch, j: int) -> Iterator[_Candidate]:
    """Only what no case mix explains: units differ in their patients, and ought to."""
    for candidate in _silent(watch, j):
        if candidate.start:  # a unit that never measures it may well not need to
            yield candidate
    yield from _unit(watch, j)


def _silent(watch: _Watch, j: int) -> Iterator[_Candidate]:
    run = inputs.silent_since(watch.measured, watch.batch, watch.reference, j)
    if run is None or run[1] >= watch.limits.silence / len(watch.reference.names):
        return
    start, chance = run
    rows = len(watch.batch) - start
    yield _Candidate(
        "feed_silent",
        ALARM,
        f"{{concept}}: no value any more. {{feature}} is empty in all of the last {rows:,} predictions; "
        f"{1 - watch.reference.missing[j]:.0%} had it when the model was made",
        f"chance {_p(chance)} counting patients, not hours",
        rows,
        j,
        inputs.missing_sign(watch.measured, j),
        start,
    )


def _missing(watch: _Watch, j: int) -> Iterator[_Candidate]:
    row = watch.row(j)
    now, usual, q = row["missing_now"], row["missing_reference"], row["missing_q"]
    scarce = (1 - now) < (1 - usual) / 2.5 and (1 - usual) * row["effective"] >= 20
    if not q < watch.limits.discovery_rate or (abs(now - usual) < watch.limits.missing and not scarce):
        return
    more = now > usual
    yield _Candidate(
        "missing_more" if more else "missing_less",
        (ALARM if now - usual >= 3 * watch.limits.missing else WATCH) if more else NOTE,
        f"{{concept}}: missing {'more' if more else 'less'} often. {{feature}} is absent from {now:.0%} of "
        f"predictions, {usual:.0%} when the model was made",
        f"q {_p(q)}; {len(watch.batch):,} predictions of {watch.batch.n_stays:,} stays",
        abs(now - usual),
        j,
        inputs.missing_sign(watch.measured, j),
    )


def _unit(watch: _Watch, j: int) -> Iterator[_Candidate]:
    row = watch.row(j)
    if not inputs.is_level(str(row["feature"])) or not row["ks"] >= 0.5:
        return
    if not row["shift_q"] < watch.limits.discovery_rate:
        return
    values = watch.matrix[:, j]
    expected = np.array([watch.reference.at(level, j) for level in inputs.QUARTER_LEVELS])
    values = values[~np.isnan(values)]
    units = watch.mix_ups.get(str(row["concept"]), ())
    ratio = float(np.median(values) / expected[2]) if expected[2] else float("nan")
    mix_up = inputs.unit_mix_up(values, expected, units) or inputs.unit_mix_up(
        values, expected, inputs.DECIMAL
    )
    moved = np.isfinite(ratio) and ratio > 0 and abs(np.log(ratio)) >= np.log(2)
    if mix_up is None and not moved:
        return
    guess = f"; it looks like {mix_up.label}" if mix_up else ""
    yield _Candidate(
        "unit_wrong" if mix_up else "scale",
        ALARM,
        f"{{concept}}: changed scale. The median of {{feature}} is {ratio:.3g} times the reference's{guess}",
        watch.sure(j, row["shift_q"]),
        abs(float(np.log(ratio))) if moved else 0.5,
        j,
        inputs.shift_sign(watch.measured, j),
    )


def _tail(watch: _Watch, j: int) -> Iterator[_Candidate]:
    if not inputs.is_level(str(watch.row(j)["feature"])):
        return
    for high in (True, False):
        yield from _one_tail(watch, j, high)


def _one_tail(watch: _Watch, j: int, high: bool) -> Iterator[_Candidate]:
    row = watch.row(j)
    share = row["above" if high else "below"]
    usual = watch.reference.beyond if high else float(watch.reference.levels[0])
    if not share >= usual + 0.02:
        return
    sign = inputs.tail_sign(watch.measured, watch.batch, watch.reference, j, high)
    effective = row["n"] / sign.effect
    p = float(proportion_probability(share, effective, usual, watch.reference.n))
    if effective < FEW or p >= watch.limits.discovery_rate / len(watch.reference.names):
        return
    tail = np.sort(watch.matrix[sign.hit, j])
    usually = int(len(tail) * usual / share)  # so many would lie there anyway, nearest to the bulk
    excess = tail[usually:] if high else tail[: len(tail) - usually]
    middle, units = watch.reference.at(0.5, j), watch.mix_ups.get(str(row["concept"]), ())
    mix_up = inputs.tail_mix_up(excess, middle, units) or inputs.tail_mix_up(excess, middle, inputs.DECIMAL)
    if mix_up is None:
        return
    yield _Candidate(
        "unit_mixed",
        ALARM,
        f"{{concept}}: part of the values out of scale. {share:.0%} of {{feature}} lie "
        f"{'above' if high else 'below'} what {1 - usual:.0%} of the reference reach; they look like {mix_up.label}",
        f"p {_p(p)}; {row['n']:,} values, as telling as {effective:,.0f} independent ones",
        share,
        j,
        sign,
    )


def _drift(watch: _Watch, j: int) -> Iterator[_Candidate]:
    row = watch.row(j)
    far = row["psi"] >= watch.limits.psi or row["ks"] >= watch.limits.ks
    if not far or not row["shift_q"] < watch.limits.discovery_rate:
        return
    direction = "lower" if watch.measured.below[j] else "higher"
    yield _Candidate(
        "drift",
        WATCH,
        f"{{concept}}: distributed differently. {{feature}} runs {direction} than when the model was made "
        f"(PSI {row['psi']:.2f}, distance {row['ks']:.2f})",
        watch.sure(j, row["shift_q"]),
        float(np.nan_to_num(row["psi"])),
        j,
        inputs.shift_sign(watch.measured, j),
    )


def _kinds(table: pd.DataFrame, findings: list[Finding]) -> list[str]:
    said = {feature: f.kind for f in reversed(findings) for feature in f.features}
    return [said.get(feature, "") for feature in table["feature"]]


def _instant(batch: Batch, row: int) -> datetime:
    instant: datetime = batch.time.iloc[row].to_pydatetime()
    return instant


def _p(p: float) -> str:
    return "< 1e-6" if p < 1e-6 else f"{p:.2g}"


def summarise(findings: list[Finding], n_concepts: int) -> list[Finding]:
    """Say what is true of many concepts once, and keep only its largest cases. The table still holds every feature."""
    so_many = (
        "So many at once mean other patients, another site or another way of charting. Validate the model here "
        "before it is used for care."
    )
    findings = _fold(
        findings, "drift", (8, 8), f"of {n_concepts} concepts differ from the training data", so_many
    )
    more = f"of {n_concepts} concepts are measured more often than where the model was trained"
    return _fold(
        findings, "missing_less", (3, 0), more, "Usually harmless; check calibration on these patients."
    )


def _fold(
    findings: list[Finding], kind: str, limits: tuple[int, int], what: str, action: str
) -> list[Finding]:
    """More than the first limit of one kind become one finding; so many as the second says stay beside it."""
    most, keep = limits
    alike = [f for f in findings if f.kind == kind]
    if len(alike) <= most:
        return findings
    together = Finding(
        kind=f"{kind}_general",
        severity=alike[0].severity,
        what=f"{len(alike)} {what}: {', '.join(_midway(words(inputs.concept_of(f.features[0]))) for f in alike)}.",
        where="all inputs",
        certainty="each one tested, false discoveries held down",
        action=action,
        features=tuple(f.features[0] for f in alike),
    )
    kept = set(map(id, alike[:keep]))
    place = findings.index(alike[0])
    rest = [f for f in findings[place:] if f.kind != kind or id(f) in kept]
    return [*findings[:place], together, *rest]
