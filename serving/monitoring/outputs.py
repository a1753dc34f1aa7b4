"""What the model says: is the distribution of scores as before, do alerts still fire, and who was not scored, and why?

An alert that no longer fires is the malfunction hardest to see, so volume is judged downwards as well as upwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import pandas as pd

from serving.monitoring.findings import ALARM, NOTE, WATCH, Batch, Finding, Limits, Reference, Sign
from serving.monitoring.statistics import (
    Bools,
    Floats,
    Ints,
    design_effect,
    ks_probability,
    poisson_probability,
    population_stability,
)
from serving.monitoring.volume import change

EXPECTED_REASONS: Final = ("out_of_scope",)
"""Not a fault: the model was never meant for these patients."""

CLINICAL_REASONS: Final = ("insufficient_data",)
"""A fault only when there is a lot of it."""

RECENT: Final = timedelta(hours=24)
SURE: Final = 1e-4
CHANGED: Final = 1e-3
"""A look a day that is wrong once in three years."""


def score_histogram(probability: Floats, reference: Reference) -> Floats:
    """Share of scores in each bin of the reference's histogram; scores beyond its ends go to the end bins."""
    if len(probability) == 0:
        return np.zeros(len(reference.share))
    clipped = np.clip(probability, reference.edges[0], reference.edges[-1])
    return np.asarray(np.histogram(clipped, reference.edges)[0] / len(clipped))


def check_scores(scored: pd.DataFrame, reference: Reference, limits: Limits) -> list[Finding]:
    """Has the distribution of calibrated probabilities moved?

    Parameters
    ----------
    scored : DataFrame with ``encounter_id, prediction_time, probability``
    """
    probability = scored["probability"].to_numpy(np.float64)
    n = _effective(probability, scored["encounter_id"])
    if n < limits.min_effective:
        return []
    share = score_histogram(probability, reference)
    psi = score_stability(scored, reference)
    ks = float(np.abs(np.cumsum(share - reference.share)).max())
    p = ks_probability(ks, n, reference.n)
    if p >= limits.discovery_rate or (psi < limits.psi and ks < limits.ks):
        return []
    now, usual = float(probability.mean()), reference.mean
    return [
        Finding(
            kind="score_shift",
            severity=WATCH,
            what=f"Scores are distributed differently from the model's validation: mean {now:.1%} against {usual:.1%} "
            f"(PSI {psi:.2f}).",
            where="all scores",
            certainty=f"p {p:.1g}; {len(scored):,} scores, as telling as {n:,.0f} independent ones",
            action="Look at the inputs that moved, and compare predicted with observed risk as soon as outcomes have "
            "matured. Until then the threshold may page too often or too rarely.",
            since=_time(scored, 0),
        )
    ]


def score_stability(scored: pd.DataFrame, reference: Reference) -> float:
    """PSI of the scores against the reference, on about ten bins of equal reference share; NaN without scores."""
    probability = scored["probability"].to_numpy(np.float64)
    share = score_histogram(probability, reference)
    bins = np.minimum((np.cumsum(reference.share) - reference.share / 2) * 10, 9.999).astype(np.int64)
    now = np.asarray(np.bincount(bins, share, 10), np.float64)
    then = np.asarray(np.bincount(bins, reference.share, 10), np.float64)
    some = then > 0
    return population_stability(
        now[some], then[some], _effective(probability, scored["encounter_id"]), reference.n
    )


def check_alerts(
    scored: pd.DataFrame, reference: Reference, threshold: float, limits: Limits
) -> list[Finding]:
    """Are there as many scores at or above the alert threshold as the reference lets expect? Up and down.

    Five looks: silence since the last one, silence of one unit, the whole period, the last 24 hours, a change that a
    CUSUM over hours sees earlier; the first that speaks is reported.

    Parameters
    ----------
    scored : DataFrame with ``encounter_id, prediction_time, probability``, in order of time
    threshold : probability of the alert
    """
    usual = reference.share_at_or_above(threshold)
    if len(scored) == 0 or usual <= 0:
        return []
    hit = scored["probability"].to_numpy(np.float64) >= threshold
    silence = _alert_silence(scored, hit, usual)
    quiet = [silence] if silence else _unit_silence(scored, hit)
    if quiet:
        return quiet
    recent = (scored["prediction_time"] > scored["prediction_time"].iloc[-1] - RECENT).to_numpy()
    looks = [("in this period", np.ones(len(scored), bool)), ("in its last 24 hours", recent)]
    for words, rows in looks if not recent.all() else looks[:1]:
        finding = _alert_volume(scored[rows], hit[rows], usual, words, limits)
        if finding:
            return [finding]
    changed = _alert_change(scored, hit, usual, limits)
    return [changed] if changed else []


def _alert_silence(scored: pd.DataFrame, hit: Bools, usual: float) -> Finding | None:
    start = int(np.flatnonzero(hit)[-1]) + 1 if hit.any() else 0
    tail = scored.iloc[start:]
    if len(tail) == 0:
        return None
    expected = usual * len(tail) / _hours_together(scored, hit, tail)
    chance = float(np.exp(-expected))
    if chance >= SURE:
        return None
    return Finding(
        kind="alerts_silent",
        severity=ALARM,
        what=f"No score has reached the alert threshold in the last {len(tail):,} predictions; about "
        f"{usual * len(tail):,.0f} would be usual.",
        where="alerts",
        certainty=f"chance {chance:.1g} counting patients, not hours",
        action="Treat it as a fault until shown otherwise: compare threshold and bundle with the release, look for "
        "silent feeds below, and score one known septic patient by hand.",
        since=_time(tail, 0),
    )


def _hours_together(scored: pd.DataFrame, hit: Bools, tail: pd.DataFrame) -> float:
    """How many alerts come from one patient: as seen before the silence, or, with too few of those to go by, as alike
    as the scores of one stay are in it."""
    stays = scored.loc[hit, "encounter_id"].nunique()
    if stays >= 5:
        return float(hit.sum() / stays)
    return len(tail) / _effective(tail["probability"].to_numpy(np.float64), tail["encounter_id"])


def _alert_volume(rows: pd.DataFrame, hit: Bools, usual: float, words: str, limits: Limits) -> Finding | None:
    effect = _alike(rows, hit)
    count, expected = float(hit.sum()), usual * len(hit)
    p = poisson_probability(count / effect, expected / effect)
    ratio = count / expected
    if p >= SURE or 1 / limits.rate_ratio < ratio < limits.rate_ratio or expected / effect < 3:
        return None
    flood = ratio > 1
    batch = Batch.of(rows[[]], time=rows["prediction_time"])
    sign = Sign(hit, usual)
    return Finding(
        kind="alerts_flood" if flood else "alerts_few",
        severity=ALARM if not flood or ratio >= 3 else WATCH,
        what=f"{count:,.0f} scores {words} are at or above the alert threshold, {expected:,.0f} would be usual "
        f"({ratio:.1f} times).",
        where="alerts",
        certainty=f"p {p:.1g}, patients counted rather than hours",
        action="Staff stop reading alerts that come too often: look for inputs that moved, then for sicker patients."
        if flood
        else "Patients may go unseen: look for silent feeds and changed units, then for healthier patients.",
        since=sign.since(batch),
        trend=sign.trend(batch),
        usual=usual,
    )


def _alike(rows: pd.DataFrame, hit: Bools) -> float:
    """How many rows weigh as one. Few alerts show little of how alike a stay's rows are; the scores beneath them do."""
    alike = [hit.astype(np.float64), rows["probability"].to_numpy(np.float64)]
    return max(len(hit) / _effective(values, rows["encounter_id"]) for values in alike)


def _alert_change(scored: pd.DataFrame, hit: Bools, usual: float, limits: Limits) -> Finding | None:
    """A change of volume that is still going on and that the totals do not show yet."""
    hour, start = _hours(scored["prediction_time"])
    count = np.bincount(hour, weights=hit).astype(np.float64)
    expected = usual * np.bincount(hour).astype(np.float64)
    effect = _alike(scored, hit)
    found = change(count, expected, effect, CHANGED)
    if found is None or found.since == 0:
        return None
    rows = hour >= found.since
    if expected[found.since :].sum() / effect < 3 or 1 / limits.rate_ratio < found.ratio < limits.rate_ratio:
        return None
    before = float(count[: found.since].sum() / max(expected[: found.since].sum(), 1e-9))
    if 1 / limits.rate_ratio < found.ratio / max(before, 1e-9) < limits.rate_ratio:
        return None  # a site whose usual volume is another than the reference's: the totals speak of that
    batch = Batch.of(scored[[]], time=scored["prediction_time"])
    sign = Sign(hit, usual)
    return Finding(
        kind="alerts_flood" if found.up else "alerts_few",
        severity=WATCH if found.up else ALARM,
        what=f"{int(hit[rows].sum()):,} scores since a change are at or above the alert threshold, "
        f"{usual * rows.sum():,.0f} would be usual ({found.ratio:.1f} times).",
        where="alerts",
        certainty=f"CUSUM {found.score:.0f}, chance {found.chance:.1g}, patients counted rather than hours",
        action="Look for inputs, codes or settings that changed at that time.",
        since=(start + pd.Timedelta(hours=found.since)).to_pydatetime(),
        trend=sign.trend(batch),
        usual=usual,
    )


def _unit_silence(scored: pd.DataFrame, hit: Bools) -> list[Finding]:
    """Units whose alerts have stopped while others' go on, each against its own earlier rate.

    With ``k`` patients alerted before, in ``n`` rows, none in the next ``m`` has a chance of ``(n / (n + m)) ** k``.
    """
    if "unit" not in scored:
        return []
    codes, every = pd.factorize(scored["unit"])
    names = [str(u) for u in every if u]
    found = []
    for code, name in enumerate(map(str, every)) if len(names) > 1 else ():
        if not name:
            continue
        here = np.flatnonzero(codes == code)
        hits = np.flatnonzero(hit[here])
        n = int(hits[-1]) + 1 if len(hits) else 0
        k = scored["encounter_id"].iloc[here[hits]].nunique()
        tail = here[n:]
        if k < 5 or not len(tail):
            continue
        chance = float((n / len(here)) ** k)
        if chance >= SURE / len(names):
            continue
        found.append(
            Finding(
                kind="alerts_silent",
                severity=ALARM,
                what=f"No score of unit {name} has reached the alert threshold in its last {len(tail):,} predictions; "
                f"{k:,} patients' did in the {n:,} before.",
                where=f"unit {name}",
                certainty=f"chance {chance:.1g} counting patients, not hours",
                action="Treat it as a fault until shown otherwise: compare this unit's feeds and its settings with "
                "those of the others.",
                since=_time(scored, int(tail[0])),
            )
        )
    return found


def _hours(time: pd.Series) -> tuple[Ints, pd.Timestamp]:
    """Number of the hour each instant falls into, from the first one on, and when that begins."""
    start = time.min().floor("1h")
    return ((time - start) // pd.Timedelta(hours=1)).to_numpy(np.int64), start


def check_not_scored(predictions: pd.DataFrame) -> list[Finding]:
    """How many predictions in scope could not be made, by reason code.

    Parameters
    ----------
    predictions : DataFrame with ``status, reason, prediction_time``
        All attempts, scored or not.
    """
    reasons = not_scored(predictions)
    in_scope = len(predictions) - sum(reasons.get(r, 0) for r in EXPECTED_REASONS)
    return [f for reason, n in reasons.items() for f in _reason(predictions, reason, n, in_scope)]


def not_scored(predictions: pd.DataFrame) -> dict[str, int]:
    """Attempts without a score, by reason code, commonest first."""
    codes = _codes(predictions[predictions["status"] != "scored"])
    return {str(k): int(v) for k, v in codes.value_counts().items()}


def _codes(rows: pd.DataFrame) -> pd.Series:
    """The bounded part of each reason: ``feature_stale(lactate, 9 h)`` is ``feature_stale``."""
    given, status = (rows[name].astype("object") for name in ("reason", "status"))
    codes, found = pd.factorize(given.where(given.notna() & (given != ""), status).astype("object"))
    bounded = pd.Series(found, dtype="str").str.extract(r"^([a-z_]+)", expand=False).fillna("other")
    return pd.Series(bounded.to_numpy()[codes], index=rows.index, dtype="str")


def _reason(predictions: pd.DataFrame, reason: str, n: int, in_scope: int) -> Iterator[Finding]:
    if reason in EXPECTED_REASONS or in_scope == 0:
        return
    share = n / in_scope
    watch, alarm = (0.30, 0.60) if reason in CLINICAL_REASONS else (0.02, 0.20)
    severity = ALARM if share >= alarm else WATCH if share >= watch else NOTE
    began = _reason_began(predictions, reason)
    if began is not None and severity == NOTE:
        severity = WATCH
    unscored = predictions[predictions["status"] != "scored"]
    rows = unscored[(_codes(unscored) == reason).to_numpy()]
    yield Finding(
        kind="not_scored",
        severity=severity if n >= 10 else NOTE,
        what=f"{n:,} of {in_scope:,} predictions in scope ({share:.0%}) were not made: {reason}.",
        where="scoring",
        certainty="certain",
        action="Nothing to do while it stays rare: new patients have few observations."
        if reason in CLINICAL_REASONS
        else f"Each code has its own cure: see the reason {reason!r} in the service's documentation.",
        since=began or (_time(rows, 0) if len(rows) else None),
    )


def _reason_began(predictions: pd.DataFrame, reason: str) -> datetime | None:
    """Since when a reason is commoner than it was in the first third of the period; None where it is not."""
    if len(predictions) < 30 or reason in EXPECTED_REASONS:
        return None
    bad = np.array(predictions["status"] != "scored")
    bad[bad] = (_codes(predictions[bad]) == reason).to_numpy()
    hour, start = _hours(predictions["prediction_time"])
    count, tried = (np.bincount(hour, weights=w).astype(np.float64) for w in (bad, np.ones(len(bad))))
    third = int(np.searchsorted(np.cumsum(tried), tried.sum() / 3)) + 1
    early, of = float(count[:third].sum()), float(tried[:third].sum())
    stays = predictions.loc[bad, "encounter_id"].nunique()
    effect = max(1.0, float(bad.sum()) / max(stays, 1))
    usual = (early + effect) / (of + effect)  # as if one cluster more had been seen: never nothing
    found = change(count[third:], usual * tried[third:], effect, SURE)
    if found is None or not found.up or found.ratio < 2 or stays < 5:
        return None
    instant: datetime = (start + pd.Timedelta(hours=third + found.since)).to_pydatetime()
    return instant


def check_fresh(predictions: pd.DataFrame, until: datetime) -> list[Finding]:
    """Has the service stopped predicting before the period ended?"""
    if len(predictions) == 0:
        return []
    last: datetime = predictions["prediction_time"].max().to_pydatetime()
    age = until - last
    if age < timedelta(hours=2):
        return []
    return [
        Finding(
            kind="predictions_stopped",
            severity=ALARM if age >= timedelta(hours=6) else WATCH,
            what=f"No prediction, scored or not, for the last {age / timedelta(hours=1):.0f} hours.",
            where="the whole service",
            certainty="certain",
            action="If patients were in scope, check that the service is up and that events arrive.",
            since=last,
        )
    ]


def volume_by_period(scored: pd.DataFrame, threshold: float, periods: int = 28) -> list[dict[str, Any]]:
    """Scores and alerts over time, in at most ``periods`` equal steps of whole hours, for a chart."""
    if len(scored) == 0:
        return []
    time = scored["prediction_time"]
    first = time.min().floor("1h")
    hours = max(1, int(np.ceil(((time.max() - first) / pd.Timedelta(hours=1) + 1) / periods)))
    step = ((time - first) // pd.Timedelta(hours=hours)).to_numpy(np.int64)
    hit = scored["probability"].to_numpy(np.float64) >= threshold
    n, alerts = np.bincount(step), np.bincount(step, weights=hit)
    starts = [first + pd.Timedelta(hours=hours * int(k)) for k in range(len(n))]
    return [
        {"start": s.isoformat(), "hours": hours, "scores": int(a), "alerts": int(b)}
        for s, a, b in zip(starts, n, alerts, strict=True)
    ]


def _effective(values: Floats, stays: pd.Series) -> float:
    codes = pd.factorize(stays)[0].astype(np.int64)
    return float(len(values) / design_effect(values[:, None], codes)[0]) if len(values) else 0.0


def _time(rows: pd.DataFrame, position: int) -> datetime:
    instant: datetime = rows["prediction_time"].iloc[position].to_pydatetime()
    return instant
