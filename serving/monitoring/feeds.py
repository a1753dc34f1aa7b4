"""Do the feeds bring what they usually bring at this hour of the week? Silence, thinning, flood, lateness, rejection.

Counts per hour, never times between events: each feed has a usual count for every hour of the week, scaled by how full
its site is now, and spread more than Poisson's by what its own past shows. Silence is judged by the count that was to
be expected since the newest fact; thinning and flood by a CUSUM of log likelihood ratios (Page 1954).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from scipy import special

from features.clock import HOUR_US
from features.concepts import loader
from serving.monitoring.findings import ALARM, NOTE, WATCH, Finding
from serving.monitoring.ledger import STUCK, UNMAPPED, Ledger
from serving.monitoring.statistics import Floats, Ints, proportion_probability

WEEK_H: Final = 7 * 24
LEAST_H: Final = WEEK_H
"""A week at least is needed before anything is usual."""
UNPROVEN: Final = 0.5
"""So much of a difference between days or hours of the week is believed before they have come again often enough."""
MINUTES_15: Final = HOUR_US // 4
SCALES: Final = (6, 12, 24)
"""Hours over which counts are summed to see how much they wander: the same few patients make a feed for a day."""
LEAST_DRIFT: Final = 0.01
"""No feed is taken to wander less than 10 % from day to day, however steady it looked so far."""
OF_ONE_PATIENT: Final = 2.0
"""One patient more brings three results of a rare test in a day, not one: so many beyond the first."""
FEW_PATIENTS: Final = 20.0
"""With fewer patients a day, one more brings as much as the feed has shown a patient to bring, an hourly value perhaps:
how much it wanders does not show in a few weeks."""
LEAST_APART: Final = 8.0
"""Fewer facts too many or too few are not looked into."""
RARE: Final = 1e-3
"""A silence that a wandering rate explains more often than this is noted, and nobody is called for it."""
FROZEN: Final = 1e-6
SELDOM_SAME: Final = 0.12
"""Values that repeat themselves more often than this may well do so for half a day."""
EMPTY: Final = 0.33
CROWDED: Final = 3.0
"""Beyond these nobody knows how full a site is: while it opens or closes, its hours are no example of what is usual."""
ACTIVE: Final = 20.0
"""Feeds that bring so much a day tell how full a site is."""


@dataclass(frozen=True, slots=True)
class FeedLimits:
    """When the feeds speak.

    Attributes
    ----------
    silence : float
        Probability of nothing since the newest fact, by Poisson, at which a silent feed is one to watch. An alarm asks
        for this probability divided by the number of feeds, for a rate that wanders: looked at all day, sixty feeds
        would else cry every third day.
    least_us : int
        No silence is shorter.
    cusum : float
        Height of the log likelihood ratio at which thinning or flood is told: in ``exp(cusum)`` hours of a feed that
        is as usual, one false alarm at most is to be expected.
    thin, flood : float
        The rates, relative to the usual one, that the CUSUM is most sensitive to.
    thin_ratio, flood_ratio, chance : float
        A change is told when its rate is so low or so high, and a feed that wanders as this one does would come
        there with less than this probability.
    rejected : float
        Share of facts set aside or repaired, above the usual one.
    late_min : float
        Minutes by which facts come later, or earlier, than usual.
    frozen : float
        Share of facts that repeat the patient's last value, above the usual one.
    """

    silence: float = 1e-4
    least_us: int = MINUTES_15
    cusum: float = 16.0
    thin: float = 0.5
    flood: float = 2.0
    thin_ratio: float = 0.65
    flood_ratio: float = 1.6
    chance: float = 1e-5
    rejected: float = 0.02
    late_min: float = 10.0
    frozen: float = 0.35


@dataclass(frozen=True)
class Expected:
    """What is usual, per feed and hour.

    Attributes
    ----------
    first : int
        The hour (since 1970) of the first column.
    mean : shape (n_feeds, n_hours)
        Expected count: hour of the week, times how full the site is.
    lump, drift : shape (n_feeds,)
        How a feed wanders: facts that come together (variance over mean, at least 1), and the extra variance of sums
        over hours as a share of the squared mean.
    each : shape (n_feeds,)
        Facts that one patient brings in a day.
    """

    first: int
    mean: Floats
    lump: Floats
    drift: Floats
    each: Floats

    def between(self, f: int, begin: int, now: int) -> Floats:
        """Expected counts of a feed by hour, of that part which lies between two instants (microseconds)."""
        n = self.mean.shape[1]
        edges = (np.arange(n + 1) + self.first) * HOUR_US
        part = np.clip(np.minimum(edges[1:], now) - np.maximum(edges[:-1], begin), 0, HOUR_US) / HOUR_US
        return np.asarray(self.mean[f] * part, np.float64)

    def plain_chance_of_nothing(self, f: int, begin: int, now: int) -> float:
        """Probability that a feed brings nothing between two instants, if its rate never wandered: Poisson."""
        return float(np.exp(-self.between(f, begin, now).sum() / self.lump[f]))

    def chance_of_nothing(self, f: int, begin: int, now: int) -> float:
        """The same for a rate that wanders: gamma-mixed Poisson, which asks for more evidence."""
        evidence = float(self.between(f, begin, now).sum() / self.lump[f])
        return float((1 + self.drift[f] * evidence) ** (-1 / self.drift[f]))


@dataclass(frozen=True)
class Looked:
    """What a look at the feeds found, and the ledger with the hours found wrong marked as no example.

    ``down`` has, for each concept and site whose feed is silent, since when (microseconds); ``late``, for each site
    whose facts are dated by a clock that is off, the same.
    """

    findings: list[Finding]
    ledger: Ledger
    down: dict[tuple[str, str], int]
    late: dict[str, int]


def look(
    ledger: Ledger,
    now: int,
    *,
    window_h: int = 24,
    timezone: str = "UTC",
    limits: FeedLimits | None = None,
) -> Looked:
    """Judge the last hours of every feed against the weeks before them.

    Parameters
    ----------
    now : microseconds
        Up to here the ledger was read.
    window_h : int
        Hours that are judged; what is usual comes from the hours before.
    timezone : str
        Hours of the week are the site's.
    """
    limits = limits or FeedLimits()
    stop = -(-now // HOUR_US)
    start = max(now // HOUR_US - window_h, -(-ledger.since // HOUR_US))
    first = -(-ledger.since // HOUR_US)
    if start - first < LEAST_H or not ledger.feeds:
        return Looked([_too_young(start - first)], ledger, {}, {})
    usual = expected(ledger, first, start, stop, timezone)
    silences = _silences(ledger, usual, now, limits)
    findings, silent = _silent_panels(ledger, usual, start, now, limits)
    findings += [_silent(ledger, usual, s, now, limits) for s in silences if s[0] not in silent]
    down = silent | {f: begin for f, begin, _ in silences}
    wrong = [(f, h) for f, begin in down.items() for h in range(begin // HOUR_US, stop)]
    told = set(down)
    for group in (*((f,) for f in range(len(ledger.feeds))), *_everywhere(ledger)):
        if told.isdisjoint(group):
            changed = _change(ledger, usual, group, start, now, limits)
            findings += [finding for finding, _ in changed]
            told |= set(group) if changed else set()
            wrong += [(f, h) for _, begin in changed for f in group for h in range(begin, stop)]
    findings = _fold([*findings, *_frozen(ledger, usual, start, stop, told, limits)])
    findings += _stuck(ledger, usual, start, stop, told)
    findings += _rejected(ledger, first, start, stop, limits)
    late = _late(ledger, first, start, stop, limits)
    findings += [finding for _, _, finding in late]
    if wrong:
        feeds, hours = np.array(wrong, np.int64).T
        ledger = ledger.excuse(feeds, hours)
    silent_at = {ledger.feeds[f][1:]: begin for f, begin in down.items()}
    return Looked(findings, ledger, silent_at, {site: begin for site, begin, _ in late})


Group = tuple[int, ...]
"""Feeds that are judged together as if they were one."""


def _panels(ledger: Ledger) -> list[Group]:
    """All feeds of one source, kind of concept (laboratory, vital sign) and site: one interface, as a rule."""
    known = loader.concepts()
    groups: dict[tuple[str, str, str], list[int]] = {}
    for f, (source, concept, site) in enumerate(ledger.feeds):
        if concept in known:
            groups.setdefault((source, known[concept].kind, site), []).append(f)
    return [tuple(fs) for fs in groups.values() if len(fs) >= 3]


def _everywhere(ledger: Ledger) -> list[Group]:
    """The feeds of one source and concept at all sites, where there are several."""
    groups: dict[tuple[str, str], list[int]] = {}
    for f, (source, concept, _) in enumerate(ledger.feeds):
        groups.setdefault((source, concept), []).append(f)
    return [tuple(fs) for fs in groups.values() if len(fs) >= 2]


def _together_expected(ledger: Ledger, usual: Expected, group: Group, start: int) -> Expected:
    """What is usual of some feeds summed; facts that come together are seen to do so in the sum."""
    if len(group) == 1:
        one = slice(group[0], group[0] + 1)
        return Expected(usual.first, usual.mean[one], usual.lump[one], usual.drift[one], usual.each[one])
    members, known = list(group), start - usual.first
    count, good = ledger.counts(usual.first, start)[members], ledger.usable(usual.first, start)[members]
    mean, each = usual.mean[members].sum(axis=0)[None, :], usual.each[members].sum(keepdims=True)
    left = np.where(good, count - usual.mean[members][:, :known], np.nan).sum(axis=0)[None, :]
    return Expected(usual.first, mean, *_wandering(left, mean[:, :known], each), each)


def _silent_panels(
    ledger: Ledger, usual: Expected, start: int, now: int, limits: FeedLimits
) -> tuple[list[Finding], dict[int, int]]:
    """Whole interfaces that are silent, which shows long before each of their feeds by itself does."""
    findings: list[Finding] = []
    silent: dict[int, int] = {}
    for group in _panels(ledger):
        begin = max(int(ledger.last[list(group)].max()), usual.first * HOUR_US)
        if now - begin < limits.least_us:
            continue
        together = _together_expected(ledger, usual, group, start)
        chance = together.chance_of_nothing(0, begin, now)
        if chance < limits.silence / len(ledger.feeds):
            findings.append(_silent_panel(ledger, together, group, begin, now, chance))
            silent |= dict.fromkeys(group, begin)
    return findings, silent


def expected(ledger: Ledger, first: int, start: int, stop: int, timezone: str) -> Expected:
    """What is usual of every hour from ``first`` to ``stop``, learnt from those before ``start``."""
    count, good = ledger.counts(first, stop), ledger.usable(first, stop)
    known = start - first
    hour_of_week = _hour_of_week(np.arange(first, stop), timezone)
    base = np.where(good[:, :known], count[:, :known], np.nan)
    whole = min(stop, ledger.until // HOUR_US) - first
    week = _weekly(base, np.ones_like(base), hour_of_week[:known])[:, hour_of_week]
    full = _activity(ledger, count, week, whole)[:, :known]
    base = np.where((full <= EMPTY) | (full >= CROWDED), np.nan, base)
    # Fullness is taken out by whole weeks, or a Sunday would seem to be a day on which the site is half empty.
    middle = np.minimum(np.arange(known) + WEEK_H // 2, known - 1)
    slow = _activity(ledger, count, week, known, WEEK_H)[:, middle]
    week = _weekly(base, slow, hour_of_week[:known])[:, hour_of_week]
    mean = week * _activity(ledger, count, week, whole)
    left = base - mean[:, :known]
    patients = ledger.histogram(first, start).sum(axis=1)
    each = np.maximum(count[:, :known].sum(axis=1) / np.maximum(patients, 1.0), OF_ONE_PATIENT)
    return Expected(first, mean, *_wandering(left, mean[:, :known], each), each)


def _wandering(left: Floats, mean: Floats, each: Floats) -> tuple[Floats, Floats]:
    """``lump`` and ``drift`` of :class:`Expected` from what was left over the mean in hours gone by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        lump = np.nansum(left**2, axis=1) / np.where(np.isnan(left), 0.0, mean).sum(axis=1)
    lump = np.maximum(np.nan_to_num(lump, nan=1.0), 1.0)
    drift = np.max([_beyond_lumps(left, mean, lump, hours) for hours in SCALES], axis=0)
    a_day = 24 * mean.mean(axis=1)
    brings = np.where(a_day < FEW_PATIENTS * each, each, OF_ONE_PATIENT)
    return lump, np.maximum(drift, LEAST_DRIFT + brings / np.maximum(a_day, 1.0))


def _hour_of_week(hours: Ints, timezone: str) -> Ints:
    local = pd.to_datetime(hours * 3600, unit="s", utc=True).tz_convert(ZoneInfo(timezone))
    return (local.weekday * 24 + local.hour).to_numpy(np.int64)


def _weekly(base: Floats, full: Floats, hour_of_week: Ints) -> Floats:
    """Mean count by hour of the week, shape (n_feeds, 168), of a site as full as usual, drawn to what the hour and the
    day of it let expect; ``full`` says how full it was at each hour."""
    came, seen = np.nan_to_num(base), np.where(np.isnan(base), 0.0, full)
    hour, weekday = hour_of_week % 24, hour_of_week // 24
    with np.errstate(invalid="ignore", divide="ignore"):
        of_hour = np.nan_to_num(_by(came, hour, 24) / _by(seen, hour, 24))
    due = seen * of_hour[:, hour]
    date = np.cumsum(np.r_[0, np.diff(weekday) != 0])
    n_dates = int(date[-1]) + 1
    of_date = weekday[np.unique(date, return_index=True)[1]]
    of_day = _drawn(_by(came, date, n_dates), _by(due, date, n_dates), of_date, 7)
    of_both = _drawn(came, due * of_day[:, weekday], hour_of_week, WEEK_H)
    return np.asarray(np.tile(of_hour, 7) * np.repeat(of_day, 24, axis=1) * of_both, np.float64)


def _drawn(count: Floats, expected: Floats, group: Ints, n: int) -> Floats:
    """By how much each of ``n`` groups (days of the week, say) has more than expected, shape (n_feeds, n).

    Drawn to 1 as far as groups differ no more from each other than their members do among themselves (empirical Bayes):
    a few weeks of chance are no day of the week, and a Sunday with half the laboratory is one soon.
    """
    of_group, weight = _by(count, group, n), _by(expected, group, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(weight > 0, of_group / weight, 1.0)
        # Squared differences over what was expected, as Pearson's: of members within their group, and of groups.
        within = np.nan_to_num((count - expected * ratio[:, group]) ** 2 / expected).sum(axis=1)
        between = ((ratio - 1) ** 2 * weight).sum(axis=1) / (n - 1)
        kept = np.nan_to_num(1 - within / max(len(group) - n, 1) / between)
    if 2 * len(group) < 3 * n:
        kept = np.full(len(kept), UNPROVEN)
    return np.asarray(1 + np.clip(kept, 0.0, 1.0)[:, None] * (ratio - 1))


def _by(values: Floats, group: Ints, n: int) -> Floats:
    summed = np.zeros((len(values), n))
    np.add.at(summed.T, group, np.asarray(values, np.float64).T)
    return summed


def _activity(ledger: Ledger, count: Floats, mean: Floats, whole: int, hours: int = 24) -> Floats:
    """How full each feed's site is: what its feeds brought in so many hours over the usual.

    The median of the vital signs, or of the other kinds of feeds, whichever is nearer to 1: a feed that fails does not
    lower what is expected of itself or of others, nor does an interface that says everything twice raise it.
    """
    day_count, day_mean = _trailing(count, hours), _trailing(mean, hours)
    known = loader.concepts()
    sites = np.array([site for _, _, site in ledger.feeds])
    vital = np.array([c in known and known[c].kind == "vital" for _, c, _ in ledger.feeds])
    busy = np.median(day_mean, axis=1) >= ACTIVE * hours / 24
    activity = np.ones_like(mean)
    for site in np.unique(sites):
        told = [np.flatnonzero((sites == site) & busy & kind) for kind in (vital, ~vital)]
        ratios = [
            np.clip(np.median(day_count[some] / day_mean[some], axis=0), EMPTY, CROWDED)
            for some in told
            if len(some) >= 3
        ]
        if ratios:
            nearest = np.abs(np.log(ratios)).argmin(axis=0)
            activity[sites == site] = np.take_along_axis(np.array(ratios), nearest[None, :], axis=0)
    activity[:, whole:] = activity[:, max(whole - 1, 0), None]  # an hour that has just begun looks empty
    return activity


def _trailing(values: Floats, hours: int) -> Floats:
    """Sum over the hours up to and with each, fewer at the beginning (scaled up to as many)."""
    total = np.cumsum(values, axis=1)
    before = np.concatenate([np.zeros((len(values), hours)), total], axis=1)[:, : values.shape[1]]
    n = np.minimum(np.arange(values.shape[1]) + 1, hours)
    return np.asarray((total - before) * hours / n, np.float64)


def _beyond_lumps(left: Floats, mean: Floats, lump: Floats, block: int) -> Floats:
    """Moment estimate of the extra variance of sums over so many hours, as a share of the squared mean; 0.5 at most."""
    n = left.shape[1] // block * block
    blocks = (len(left), n // block, block)
    apart = left[:, :n].reshape(blocks).sum(axis=2)
    total = mean[:, :n].reshape(blocks).sum(axis=2)
    whole = ~np.isnan(apart)
    apart, total = np.where(whole, apart, 0.0), np.where(whole, total, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        extra = ((apart**2).sum(axis=1) - lump * total.sum(axis=1)) / (total**2).sum(axis=1)
    return np.asarray(np.clip(np.nan_to_num(extra), 0.0, 0.5), np.float64)


def _silences(ledger: Ledger, usual: Expected, now: int, limits: FeedLimits) -> list[tuple[int, int, float]]:
    """Feeds that have been silent for longer than chance allows: feed, since when (microseconds), and the chance."""
    found = []
    for f, last in enumerate(ledger.last.tolist()):
        begin = max(int(last), usual.first * HOUR_US)
        if now - begin >= limits.least_us and usual.plain_chance_of_nothing(f, begin, now) < limits.silence:
            found.append((f, begin, usual.chance_of_nothing(f, begin, now)))
    return found


def _change(
    ledger: Ledger, usual: Expected, group: Group, start: int, now: int, limits: FeedLimits
) -> list[tuple[Finding, int]]:
    """Whether the CUSUM of some feeds has crossed, either way: the finding, and the first hour of the change."""
    stop = now // HOUR_US  # whole hours only
    count = ledger.counts(start, stop)[list(group)].sum(axis=0)
    mean = usual.mean[list(group), start - usual.first : stop - usual.first].sum(axis=0)
    if abs(count.sum() - mean.sum()) < LEAST_APART:
        return []
    together = _together_expected(ledger, usual, group, start)
    for kind, ratio in (("feed_thin", limits.thin), ("feed_flood", limits.flood)):
        begin = _crossed((count * np.log(ratio) - (ratio - 1) * mean) / together.lump[0], limits.cusum)
        if begin is None:
            continue
        came, least = float(count[begin:].sum()), float(mean[begin:].sum())
        size = came / max(least, 0.5)
        far = size <= limits.thin_ratio if ratio < 1 else size >= limits.flood_ratio
        if far and wandering_probability(came, least, together.drift[0], together.lump[0]) < limits.chance:
            return [(_changed(ledger, group, start + begin, kind, (came, least)), start + begin)]
    return []


def wandering_probability(count: float, mean: float, drift: float, lump: float = 1.0) -> float:
    """Smaller tail of a count of lumps whose rate wanders by ``drift``: negative binomial."""
    count, mean = count / lump, mean / lump
    if mean <= 0:
        return 1.0 if count <= 0 else 0.0
    size = 1 / max(drift, 1e-6)
    below = float(special.betainc(size, np.floor(count) + 1, size / (size + mean)))
    above = 1 - float(special.betainc(size, np.floor(count), size / (size + mean))) if count >= 1 else 1.0
    return min(below, above)


def _crossed(steps: Floats, height: float) -> int | None:
    """Where the climb of a CUSUM past the height began; None where it never came so high."""
    path = np.r_[0.0, np.cumsum(steps)]
    climb = path - np.minimum.accumulate(path)
    peak = int(np.argmax(climb))
    return int(np.argmin(path[: peak + 1])) if climb[peak] > height else None


def _silent(
    ledger: Ledger, usual: Expected, silence: tuple[int, int, float], now: int, limits: FeedLimits
) -> Finding:
    f, begin, chance = silence
    _, concept, _ = ledger.feeds[f]
    sure = chance < limits.silence / len(ledger.feeds)
    return Finding(
        kind="feed_down",
        severity=ALARM if sure else WATCH if chance < RARE else NOTE,
        what=f"{label(concept)}: nothing has come for {_long(now - begin)}; {usual.between(f, begin, now).sum():,.0f} "
        "were to be expected.",
        where=_where(ledger, f),
        certainty=f"chance {_p(chance)} at this hour of the week, {len(ledger.feeds)} feeds watched",
        action=_ACTION["feed_down"],
        since=_instant(begin),
        features=(concept,),
    )


def _silent_panel(
    ledger: Ledger, together: Expected, group: Group, begin: int, now: int, chance: float
) -> Finding:
    concepts = tuple(ledger.feeds[f][1] for f in group)
    kind = loader.concepts()[concepts[0]].kind
    return Finding(
        kind="feed_down",
        severity=ALARM,
        what=f"All {len(concepts)} {_KINDS.get(kind, kind)} feeds: nothing has come for "
        f"{_long(now - begin)}; {together.between(0, begin, now).sum():,.0f} facts were to be expected.",
        where=_where(ledger, group[0]),
        certainty=f"chance {_p(chance)} at this hour of the week; facts that come together counted as one",
        action=_ACTION["feed_down"],
        since=_instant(begin),
        features=concepts,
    )


def _changed(ledger: Ledger, group: Group, begin: int, kind: str, sizes: tuple[float, float]) -> Finding:
    source, concept, _ = ledger.feeds[group[0]]
    came, least = sizes
    ratio = came / max(least, 0.5)
    return Finding(
        kind=kind,
        severity=ALARM if ratio >= 3 or ratio <= 0.6 else WATCH,
        what=f"{label(concept)}: {came:,.0f} came where {least:,.0f} are usual ({ratio:.2g} times).",
        where=_where(ledger, group[0]) if len(group) == 1 else f"all units, source {source}",
        certainty="cumulated log likelihood ratio past its limit: once in many years by chance",
        action=_ACTION[kind],
        since=_instant(begin * HOUR_US),
        features=(concept,),
    )


_KINDS: Final = {"lab": "laboratory", "vital": "vital sign"}
_ACTION: Final = {
    "feed_down": "Call the interface team: this feed has stopped, its code has changed, or its facts are refused. "
    "Scores made meanwhile lack it; send what was held back when it is up again.",
    "feed_thin": "Part of this feed is missing: look for a device, analyser or ward that no longer sends, and at facts "
    "that were set aside.",
    "feed_flood": "Look for a sender that repeats itself under new identities, or a second one that sends the same.",
    "feed_frozen": "Call the interface team: this feed sends its last values again under new times. Scores read them "
    "as news; trust none that depends on it until it moves again.",
    "rejected_more": "Look at what is set aside and why (GET /v1/events, or the sender's answers): new units, text in "
    "place of numbers, new codes.",
    "clock_shifted": "Compare the sender's clock and time zone with ours: an hour is usually daylight saving, more a "
    "queue that was held up. Features of time since are wrong by as much.",
}


def _fold(findings: list[Finding]) -> list[Finding]:
    """Many feeds of one place with one trouble are one finding; up to three stand alone."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.kind, finding.where), []).append(finding)
    told = []
    for alike in groups.values():
        told += alike if len(alike) <= 3 else [_together(alike)]
    return told


def _together(alike: Sequence[Finding]) -> Finding:
    first = min(alike, key=lambda f: f.since or datetime.max.replace(tzinfo=UTC))
    names = ", ".join(label(f.features[0]) for f in alike[:8])
    more = f" and {len(alike) - 8} more" if len(alike) > 8 else ""
    words = {
        "feed_down": "stopped",
        "feed_thin": "thinned out",
        "feed_flood": "swollen",
        "feed_frozen": "frozen",
    }[first.kind]
    return Finding(
        kind=first.kind,
        severity=first.severity,
        what=f"{len(alike)} feeds have {words}: {names}{more}.",
        where=first.where,
        certainty=first.certainty + "; each by itself",
        action=first.action,
        since=first.since,
        features=tuple(f.features[0] for f in alike),
    )


def _frozen(
    ledger: Ledger, usual: Expected, start: int, stop: int, told: set[int], limits: FeedLimits
) -> Iterator[Finding]:
    """Feeds whose facts go on coming while patients' values stand still."""
    n, same = ledger.counts(start, stop), ledger.counts(start, stop, "same")
    then, same_then = (ledger.counts(usual.first, start, c).sum(axis=1) for c in ("n", "same"))
    share = (same_then + 1) / (then + 2)
    for f in sorted(set(range(len(n))) - told):
        if share[f] + limits.frozen >= 1:
            continue  # a value that seldom changes: nobody can see it stand still
        new = share[f] + limits.frozen
        gain = special.xlogy(same[f], new / share[f]) + special.xlogy(
            n[f] - same[f], (1 - new) / (1 - share[f])
        )
        begin = int(np.argmin(np.r_[0.0, np.cumsum(gain)]))
        came, stood = float(n[f, begin:].sum()), float(same[f, begin:].sum())
        least = usual.mean[f, start - usual.first + begin : stop - usual.first].sum()
        if came < 1 or stood / came < new or came > limits.flood_ratio * least:
            continue  # what comes twice repeats itself too: that is a flood
        witnesses = came / usual.each[f]
        p = float(proportion_probability(stood / came, witnesses, share[f], then[f]))
        if p < FROZEN:
            yield _standing(ledger, f, (stood, came, float(share[f]), p), start + begin)


def _standing(ledger: Ledger, f: int, seen: tuple[float, float, float, float], begin: int) -> Finding:
    stood, came, share, p = seen
    concept = ledger.feeds[f][1]
    return Finding(
        kind="feed_frozen",
        severity=ALARM,
        what=f"{label(concept)}: {stood / came:.0%} of {came:,.0f} facts repeat the patient's last value exactly, "
        f"{share:.0%} is usual. New times, old values.",
        where=_where(ledger, f),
        certainty=f"p {_p(p)}, patients counted rather than facts",
        action=_ACTION["feed_frozen"],
        since=_instant(begin * HOUR_US),
        features=(concept,),
    )


def _stuck(ledger: Ledger, usual: Expected, start: int, stop: int, told: set[int]) -> list[Finding]:
    """Feeds in which single patients' values repeat themselves for longer than in any of the days before."""
    n_days = (start - usual.first) // 24
    before = ledger.counts(start - 24 * n_days, start, "stuck").reshape(len(ledger.feeds), n_days, 24)
    now = ledger.counts(start, stop, "stuck")
    most = before.sum(axis=2).max(axis=1, initial=0.0) * (stop - start) / 24
    then, same = (ledger.counts(usual.first, start, c).sum(axis=1) for c in ("n", "same"))
    odd = np.flatnonzero((now.sum(axis=1) >= 3 + 3 * most) & (same < SELDOM_SAME * then))
    return [_repeating(ledger, f, now[f], float(most[f]), start) for f in odd.tolist() if f not in told]


def _repeating(ledger: Ledger, f: int, now: Floats, most: float, start: int) -> Finding:
    concept = ledger.feeds[f][1]
    return Finding(
        kind="values_stuck",
        severity=WATCH,
        what=f"{label(concept)}: {now.sum():,.0f} facts of single patients repeat one value for the {STUCK}th time or "
        f"more; {most:,.0f} at most in as long before.",
        where=_where(ledger, f),
        certainty="more than three times the most that was ever seen here",
        action="Look on this ward for a monitor or a sender that repeats its last value: what it measures is unknown.",
        since=_instant((start + int(np.flatnonzero(now)[0])) * HOUR_US),
        features=(concept,),
    )


def _rejected(ledger: Ledger, first: int, start: int, stop: int, limits: FeedLimits) -> list[Finding]:
    """Feeds of which more is set aside than usual."""
    n, aside = ledger.counts(start, stop), ledger.counts(start, stop, "aside")
    then = ledger.counts(first, start).sum(axis=1)
    usual = (ledger.counts(first, start, "aside").sum(axis=1) + 0.5) / (then + 1)
    share = aside.sum(axis=1) / np.maximum(n.sum(axis=1), 1)
    p = proportion_probability(share, n.sum(axis=1), usual, then + 1)
    odd = (share > usual + limits.rejected) & (p < 1e-6) & (aside.sum(axis=1) >= 5)
    return [
        _rejecting(ledger, f, n[f], aside[f], float(usual[f]), float(p[f]), start)
        for f in np.flatnonzero(odd).tolist()
    ]


def _rejecting(
    ledger: Ledger, f: int, n: Floats, aside: Floats, usual: float, p: float, start: int
) -> Finding:
    share = aside.sum() / n.sum()
    gain = special.xlogy(aside, share / usual) + special.xlogy(n - aside, (1 - share) / (1 - usual))
    begin = int(np.argmin(np.r_[0.0, np.cumsum(gain)]))
    source, concept, _ = ledger.feeds[f]
    name = label(concept) if concept != UNMAPPED else f"Codes of {source} that no table maps"
    return Finding(
        kind="rejected_more",
        severity=ALARM if share >= 0.1 else WATCH,
        what=f"{name}: {share:.0%} of what came could not be used as it came, {usual:.1%} is usual.",
        where=_where(ledger, f),
        certainty=f"p {_p(p)}; {aside.sum():,.0f} of {n.sum():,.0f}",
        action=_ACTION["rejected_more"],
        since=_instant((start + begin) * HOUR_US),
        features=(concept,) if concept != UNMAPPED else (),
    )


def _late(
    ledger: Ledger, first: int, start: int, stop: int, limits: FeedLimits
) -> list[tuple[str, int, Finding]]:
    """Senders whose facts come later or earlier after their own date than usual: site, since when, finding."""
    pairs = sorted({(s, t) for s, _, t in ledger.feeds})
    n, delay = ledger.counts(first, stop), ledger.counts(first, stop, "delay")
    told = []
    for source, site in pairs:
        rows = [f for f, feed in enumerate(ledger.feeds) if (feed[0], feed[2]) == (source, site)]
        of_hour = n[rows].sum(axis=0)
        with np.errstate(invalid="ignore"):
            mean = np.where(of_hour >= 10, delay[rows].sum(axis=0) / of_hour, np.nan)
        found = _shift(mean, start - first, limits.late_min)
        if found:
            told.append((site, (first + found[0]) * HOUR_US, _skewed(source, site, *found, first)))
    return told


def _shift(mean: Floats, known: int, least: float) -> tuple[int, float] | None:
    """First hour and size of a lasting shift of hourly mean delays, in minutes; None without one."""
    base = mean[:known][~np.isnan(mean[:known])]
    if len(base) < 24:
        return None
    middle = float(np.median(base))
    spread = 1.4826 * float(np.median(np.abs(base - middle)))
    away = np.abs(mean[known:] - middle) > max(least, 8 * spread)
    hours = np.flatnonzero(~np.isnan(mean[known:]))
    run = away[hours]
    if len(run) < 2 or not run[-2:].all():
        return None
    begin = int(hours[np.flatnonzero(~run)[-1] + 1]) if not run.all() else int(hours[0])
    return known + begin, float(np.nanmedian(mean[known + begin :]) - middle)


def _skewed(source: str, site: str, begin: int, minutes: float, first: int) -> Finding:
    way = "later" if minutes > 0 else "earlier"
    return Finding(
        kind="clock_shifted",
        severity=ALARM,
        what=f"Facts come {abs(minutes):,.0f} minutes {way} after the time they are dated than usual.",
        where=_place(source, site),
        certainty="every hour since; the usual spread is far smaller",
        action=_ACTION["clock_shifted"],
        since=_instant((first + begin) * HOUR_US),
    )


def _too_young(hours: int) -> Finding:
    return Finding(
        kind="feeds_unknown",
        severity=NOTE,
        what=f"The feeds have been watched for {max(hours, 0)} hours; a week is needed before anything is usual.",
        where="all feeds",
        certainty="certain",
        action="Nothing to do: keep the monitor running. Silence of the whole service is told all the same.",
    )


def label(concept: str) -> str:
    """A concept's name for people."""
    known = loader.concepts().get(concept)
    return known.label.split(" (")[0] if known else concept.replace("_", " ") or "unmapped codes"


def _where(ledger: Ledger, f: int) -> str:
    source, _, site = ledger.feeds[f]
    return _place(source, site)


def _place(source: str, site: str) -> str:
    return f"{f'unit {site}' if site else 'no unit stated'}, source {source}"


def _instant(micros: int) -> datetime:
    return datetime.fromtimestamp(micros / 1e6, UTC)


def _long(micros: int) -> str:
    minutes = micros / (HOUR_US / 60)
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"


def _p(p: float) -> str:
    return "< 1e-9" if p < 1e-9 else f"{p:.1g}"
