"""What the scores were worth, once it is known what became of the patients; and what can be said before.

Only matured hours are judged: those whose horizon has passed, and with it the days that Sepsis-3 needs to be told. The
hours of a stay are alike, so figures, intervals and the test of calibration count stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import pandas as pd

from features.clock import HOUR_US
from models import metrics
from models.alerting import Stays
from serving.clock import to_us
from serving.monitoring.findings import ALARM, NOTE, WATCH, Finding
from serving.monitoring.outcomes import Outcomes, Rule
from serving.monitoring.sequential import Evidence, evidence
from serving.monitoring.statistics import Bools, Floats, Ints, false_discovery, poisson_probability

QUARTER: Final = timedelta(days=90)
LIKELY: Final = 20.0
SURE: Final = 100.0
"""Evidence that is worth a look, and that is worth acting on: 1 in 20 and 1 in 100 by chance, each way and quarter."""
FEWEST_SEPTIC: Final = 20
"""Fewer septic stays than this tell nothing of a refit, and no figure by group is shown."""
FEWEST_STAYS: Final = 50
MOST_SAID: Final = 1e6
"""Nobody is surer than this of data, labels and code."""
LEAST: Final = 5
"""With fewer septic stays no interval can be had."""
MOST_STAYS: Final = 20_000
REPLICATES: Final = 200
GROUP_RATE: Final = 0.001
SLOPE: Final = (0.7, 1.4)
SHOWN: Final = ("observed_expected", "intercept", "slope", "ici", "auroc", "brier_skill")
WARD: Final = (
    "page_ppv", "stay_ppv", "sensitivity", "pages_per_100_patient_days", "prevalence_per_stay", "lead_h_median",
)  # fmt: skip
BLIND: Final = (
    "From the scores alone, taking the probabilities as true: it follows a change in who the patients are, and is "
    "blind to a change in what becomes of them."
)
CENSORED: Final = (
    "A stay that ended within the horizon counts as without sepsis, and treatment begun on an alert may have kept "
    "sepsis away: both make true alerts look false."
)


@dataclass(frozen=True)
class Hours:
    """One scored prediction an hour and stay, in order of stay and time.

    Attributes
    ----------
    stay : int codes into ``names``
    hour : hours since the epoch, of the prediction
    probability, page
        Of the last prediction of the hour; whether any of its predictions paged.
    unit : int codes into ``units``
    """

    names: list[str]
    units: list[str]
    stay: Ints
    hour: Floats
    probability: Floats
    page: Bools
    unit: Ints

    @classmethod
    def of(cls, parts: Iterable[pd.DataFrame]) -> Hours:
        """Thin chunks of the log (:func:`serving.store.scores.read`) to hours; what is kept is 29 bytes an hour."""
        names: dict[str, int] = {}
        units: dict[str, int] = {}
        kept = []
        for part in parts:
            stay = _codes(part["encounter_id"], names)
            hour = part["prediction_time"].to_numpy(np.float64) / HOUR_US
            place, unit = np.floor(hour).astype(np.int64), _codes(part["unit"], units)
            probability, page = part["probability"].to_numpy(np.float64), part["page"].to_numpy(bool)
            columns = (stay, place, hour, unit, probability, page)
            kept.append(_thinned(pd.DataFrame(dict(zip(_KEPT, columns, strict=True))).astype(_KEPT)))
        rows = _thinned(pd.concat(kept)) if kept else pd.DataFrame(columns=list(_KEPT)).astype(_KEPT)
        rows = rows.sort_values(["stay", "place"], kind="stable")
        return cls(
            list(names), list(units), rows["stay"].to_numpy(np.int64), rows["hour"].to_numpy(np.float64),
            rows["probability"].to_numpy(np.float64), rows["page"].to_numpy(bool), rows["unit"].to_numpy(np.int64),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.stay)


_KEPT: Final = {
    "stay": "int32", "place": "int32", "hour": "float64", "unit": "int16", "probability": "float64", "page": "bool",
}  # fmt: skip


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    key = [rows["stay"], rows["place"]]
    page = rows["page"].groupby(key).transform("any")
    return rows.assign(page=page)[~rows.duplicated(["stay", "place"], keep="last")]


def _codes(values: pd.Series, known: dict[str, int]) -> Ints:
    codes, found = pd.factorize(values)
    mine = np.array([known.setdefault(str(v), len(known)) for v in found], np.int64)
    return mine[codes] if len(mine) else np.zeros(0, np.int64)


@dataclass(frozen=True)
class Judged:
    """Matured hours with their outcome; arrays of shape (n_hours,), ``stay`` dense from 0.

    ``closed`` says of each stay whether all its hours have matured: the test of calibration counts it only then, and
    once. ``most`` is as many hours as one stay can have positive, ``censored`` the share of hours whose stay ended
    within the horizon.
    """

    stay: Ints
    hour: Floats
    probability: Floats
    page: Bools
    label: Ints
    unit: Ints
    names: list[str]
    closed: Bools
    most: float
    censored: float

    @property
    def stays(self) -> int:
        """How many stays there are."""
        return len(self.names)

    def sums(self, values: Floats | Ints) -> Floats:
        """Of each stay."""
        return np.bincount(self.stay, weights=values, minlength=self.stays).astype(np.float64)

    def told(self) -> Ints:
        """Closed stays in the order in which they ended."""
        last = np.full(self.stays, -np.inf)
        np.maximum.at(last, self.stay, self.hour)
        order = np.argsort(last, kind="stable").astype(np.int64)
        return order[self.closed[order]]


def window(until: datetime, first: datetime) -> datetime:
    """Where judging begins: the first prediction, or the quarter (90 days, counted from 1970) before the present one.

    Quarters are fixed, so that looking every day is looking again at one growing series; with each, the test begins
    anew.
    """
    start = datetime.fromtimestamp((to_us(until) // _QUARTER_US - 1) * _QUARTER_US / 1e6, UTC)
    return max(start, first)


_QUARTER_US: Final = QUARTER // timedelta(microseconds=1)


def judge(hours: Hours, outcomes: Outcomes, rule: Rule, until: datetime) -> Judged:
    """Hours whose outcome is known by ``until``, with it."""
    onset_us = outcomes.onset.reindex(hours.names)
    # Hashed: a year has 100,000 of either, and numpy would compare each with each.
    known = pd.Index(hours.names, dtype=object).isin(outcomes.onset.index)
    onset = np.where(onset_us.isna(), np.inf, onset_us.astype("int64").to_numpy(np.float64) / HOUR_US)
    ahead = onset[hours.stay] - hours.hour
    label, counts = rule.label(ahead)
    wait = (rule.target.gap + rule.target.horizon + outcomes.wait) / timedelta(hours=1)
    limit = to_us(until) / HOUR_US - wait
    ripe = hours.hour <= limit
    rows = ripe & counts & known[hours.stay]
    codes, stay = np.unique(hours.stay[rows], return_inverse=True)
    last = np.full(len(hours.names), -np.inf)
    np.maximum.at(last, hours.stay, hours.hour)
    span = rule.target.horizon / timedelta(hours=1)
    cut = (last[hours.stay] - hours.hour < span) & np.isinf(ahead)
    return Judged(
        stay.astype(np.int64), hours.hour[rows], hours.probability[rows], hours.page[rows], label[rows],
        hours.unit[rows], [hours.names[c] for c in codes], last[codes] <= limit, rule.most,
        float(cut[rows].mean()) if rows.any() else 0.0,
    )  # fmt: skip


def measure(judged: Judged, groups: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, Any]:
    """Every figure of the report with its 95 % interval over stays; NaN where it cannot be had.

    Parameters
    ----------
    groups : by name such as ``unit`` or ``sex``, each hour's group as text, shape (n_hours,)

    Returns
    -------
    dict with ``stays``, ``septic``, ``hours``, ``figures`` (name: value, low, high) of all, and ``groups``, a list of
    the same by group; groups of fewer than 50 stays or 20 septic ones are counted in ``suppressed``.
    """
    rng = np.random.default_rng(seed)
    table, suppressed = [], 0
    for name, values in groups.items():
        for value in sorted(set(values.tolist()) - {""}):
            part = _part(judged, values == value)
            septic = int((part.sums(part.label) > 0).sum())
            if part.stays < FEWEST_STAYS or septic < FEWEST_SEPTIC:
                suppressed += 1
                continue
            table.append(
                {"group": name, "value": value, **_figures(part, rng, ("observed_expected", "auroc", "ici"))}
            )
    recent = _newest(judged)
    return {
        **_figures(recent, rng, SHOWN),
        "groups": table,
        "suppressed": suppressed,
        "censored": judged.censored,
    }


def _figures(judged: Judged, rng: np.random.Generator, shown: tuple[str, ...]) -> dict[str, Any]:
    n, septic = len(judged.label), int((judged.sums(judged.label) > 0).sum())
    about = {"stays": judged.stays, "septic": septic, "hours": n}
    if septic < LEAST or septic == judged.stays:
        unknown = {name: [float("nan")] * 3 for name in (*shown, *WARD)}
        expected = float(judged.probability.sum())
        unknown["observed_expected"][0] = (
            float(judged.label.sum()) / expected if expected > 0 else float("nan")
        )
        return about | {"figures": unknown}
    scored = metrics.Scored(judged.stay, judged.label, judged.probability, judged.page, np.zeros(n))
    replicates = REPLICATES if shown is SHOWN else REPLICATES // 2
    paged = Stays(judged.stay, judged.hour, judged.label).paged(judged.page)
    exact = scored.measure() | paged.table()
    low_high = scored.intervals(replicates, rng) | paged.intervals(replicates, rng)
    nothing = (float("nan"), float("nan"))
    figures = {name: [float(exact[name]), *low_high.get(name, nothing)] for name in (*shown, *WARD)}
    return about | {"figures": figures}


def _part(judged: Judged, rows: Bools) -> Judged:
    codes, stay = np.unique(judged.stay[rows], return_inverse=True)
    return Judged(
        stay.astype(np.int64), judged.hour[rows], judged.probability[rows], judged.page[rows], judged.label[rows],
        judged.unit[rows], [judged.names[c] for c in codes], judged.closed[codes], judged.most, judged.censored,
    )  # fmt: skip


def _newest(judged: Judged) -> Judged:
    if judged.stays <= MOST_STAYS:
        return judged
    return _part(judged, np.isin(judged.stay, judged.told()[-MOST_STAYS:]))


def check(judged: Judged, told: Mapping[str, Any], closes: datetime) -> tuple[list[Finding], dict[str, Any]]:
    """Findings on calibration, as a whole and by group, and the advice on refitting.

    Returns
    -------
    findings, advice
        ``advice`` has ``advised``, ``since``, ``until``, ``stays``, ``septic``, ``enough``, ``command``, ``words``, and
        of the test ``evidence`` (a capital that is 20 by chance once in 20) and ``after``, labels it took.
    """
    order = judged.told()
    observed, expected = judged.sums(judged.label)[order], judged.sums(judged.probability)[order]
    bet = evidence(observed, expected, judged.most)
    advice = _advice(judged, bet, order, told, closes)
    found = list(_calibration(judged, bet, told, advice))
    return [*found, *_groups(told)], advice


def _calibration(
    judged: Judged, bet: Evidence, told: Mapping[str, Any], advice: Mapping[str, Any]
) -> Iterator[Finding]:
    slope, low, high = told["figures"]["slope"]
    odd = low > 1 / SLOPE[0] or high < SLOPE[0]
    if bet.value < LIKELY and not odd:
        return
    ratio = told["figures"]["observed_expected"]
    fewer = bet.fewer.max(initial=0) > bet.more.max(initial=0)
    after = bet.found(LIKELY)
    what = (
        f"Sepsis followed {'less' if fewer else 'more'} often than predicted: {ratio[0]:.2f} times as often "
        f"({ratio[1]:.2f} to {ratio[2]:.2f}) in {told['stays']:,} matured stays."
        if bet.value >= LIKELY
        else f"Probabilities are {'too extreme' if high < 1 else 'too timid'}: calibration slope {slope:.2f} "
        f"({low:.2f} to {high:.2f}) in {told['stays']:,} matured stays."
    )
    yield Finding(
        kind="miscalibrated",
        severity=ALARM if bet.value >= SURE else WATCH,
        what=what,
        where="all stays",
        certainty=f"by chance at most 1 in {min(bet.value, MOST_SAID):,.0f}, however often it is looked at; "
        f"told after {after:,} labels"
        if after
        else f"interval of the slope over {told['stays']:,} stays",
        action=advice["words"],
        since=advice["since"],
    )


def _groups(told: Mapping[str, Any]) -> list[Finding]:
    rows = told["groups"]
    ratios = np.array([row["figures"]["observed_expected"][0] for row in rows])
    septic = np.array([row["septic"] for row in rows], np.float64)
    whole = told["figures"]["observed_expected"][0]
    if not len(rows) or not np.isfinite(whole) or whole <= 0:
        return []
    # A stay is one witness, so its hours are brought back to one: septic stays against as many as the whole would have.
    p = np.array([poisson_probability(s, s / (r / whole)) for s, r in zip(septic, ratios, strict=True)])
    return [
        Finding(
            kind="miscalibrated_group",
            severity=WATCH,
            what=f"In {row['group']} {row['value']}, sepsis followed {ratio:.2f} times as often as predicted; "
            f"{whole:.2f} times in all.",
            where=f"{row['group']} {row['value']}",
            certainty=f"q {q:.1g} among {len(rows)} groups; {row['stays']:,} stays, {row['septic']:,} septic",
            action="Look first for measurements that are made, or sent, otherwise there; then have the model judged "
            "for this group. A refit on everybody does not mend one group.",
        )
        for row, ratio, q in zip(rows, ratios, false_discovery(p), strict=True)
        if q < GROUP_RATE and not 0.8 < ratio / whole < 1.25
    ]


def _advice(
    judged: Judged, bet: Evidence, order: Ints, told: Mapping[str, Any], closes: datetime
) -> dict[str, Any]:
    """Whether to refit, and on the stays from when to when: those since the change, not those before it."""
    _, low, high = told["figures"]["slope"]
    advised = bet.value >= LIKELY or low > 1 / SLOPE[0] or high < SLOPE[0]
    mine = order[bet.since :] if bet.value >= LIKELY else order
    septic = int((judged.sums(judged.label)[mine] > 0).sum())
    rows = np.isin(judged.stay, mine)
    began = _instant(judged.hour[rows].min()) if rows.any() else closes
    ended = _instant(judged.hour[rows].max()) if rows.any() else closes
    command = "wardcast recalibrate sepsis --input STAYS"
    span = f"{began:%Y-%m-%d} to {ended:%Y-%m-%d} ({len(mine):,} stays, {septic:,} septic)"
    enough = septic >= FEWEST_SEPTIC
    first = "Make sure first that outcomes still arrive and are told as before."
    words = (
        f"{first} Then refit on the stays of {span}: `{command}` makes a challenger in MLflow and leaves the serving "
        "model alone."
        if enough
        else f"{first} A refit has to wait: {span} are too few, {FEWEST_SEPTIC} septic are needed. Then: `{command}`."
    )
    return {
        "advised": bool(advised), "since": began, "until": ended, "stays": len(mine), "septic": septic,
        "enough": enough, "command": command, "words": words, "evidence": min(bet.value, MOST_SAID),
        "after": bet.found(LIKELY),
    }  # fmt: skip


def _instant(hour: float) -> datetime:
    return datetime.fromtimestamp(float(hour) * 3600, UTC)


def unknown(why: str) -> Finding:
    """That nothing can be said of performance, and what would change it."""
    return Finding(
        kind="outcomes_unknown",
        severity=NOTE,
        what=f"Whether the scores came true is not known: {why}",
        where="outcomes",
        certainty="certain",
        action="Send antibiotics and cultures with the other events, or give outcomes: wardcast monitor --labels FILE.",
    )


def estimate(probability: Floats, threshold: float) -> dict[str, Any]:
    """What the scores themselves let expect at the threshold (confidence-based, as CBPE), without any outcome.

    Per hour: ``ppv`` is the mean probability at or above the threshold, ``sensitivity`` the share of all expected
    outcomes there, ``auroc`` that of outcomes drawn by the probabilities, ``prevalence`` the mean.
    """
    p = probability[~np.isnan(probability)]
    if not len(p) or p.sum() <= 0:
        return {"blind": BLIND}
    flagged, q = p >= threshold, np.sort(p)
    below = np.cumsum(1 - q) - (1 - q)  # expected negatives with a lower score
    pairs = q.sum() * (1 - q).sum()
    # A row is never compared with itself, so its own chance of being a negative is no rival.
    agreed = float((q * below).sum())
    return {
        "ppv": float(p[flagged].mean()) if flagged.any() else float("nan"),
        "sensitivity": float(p[flagged].sum() / p.sum()),
        "auroc": agreed / float(pairs - (q * (1 - q)).sum()) if pairs > 0 else float("nan"),
        "prevalence": float(p.mean()),
        "blind": BLIND,
    }
