"""From who is in the hospital now to the beds it will need: the flows, and their joint distribution.

Everybody the forecast counts reaches a bed (or leaves one) inside a window. Five flows make it up:

=========== ==========================================================================================
known       decided to admit, waiting for a bed: time to bed by how long they have waited
in the ED   not decided: probability of admission (LightGBM, any clock time) x specialty x time to bed
to come     still to arrive at the emergency department: hourly rate x level x shared day effect
planned     electives and transfers still to come, in the same way
discharges  inpatients by specialty, length of stay so far, hour and weekday
=========== ==========================================================================================

Patients are drawn jointly (one draw = one possible future of the whole hospital), so that specialties sum to the
hospital and windows to longer windows in every draw. Means are exact and add up; quantiles are read from the draws
after the conformal correction of :class:`models.forecast.Recalibration`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import pandas as pd

from features import census
from features.clock import UTC_US, from_micros, micros
from features.errors import DataError, SpecError
from features.featureset import FeatureSet
from features.sources.visits import through_ed, visit_events
from features.windows import FlatEvents
from models.bundle import Bundle
from models.forecast import Counts, Recalibration, day_effect, poisson_binomial
from models.spec import Spec

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CALENDAR: Final = ("hour_of_day", "weekday")
"""Inputs of the admission model beside its feature set, local time; ``[model] calendar`` in the spec."""
HOSPITAL: Final = "hospital"
OTHER: Final = "other"
"""Specialties too small for a line of their own."""
UNKNOWN: Final = "other or unknown"
"""The level of patients whose specialty has no line; there only while there are such patients."""
FLOWS: Final = ("known", "in_ed", "to_come", "planned", "discharges")
DRAWS: Final = 2000
LEVEL_DAYS: Final = 28
LEVEL_WEIGHT: Final = 300.0
"""Arrivals' worth of belief that the present level is that of training."""
DAYS: Final = 7
"""How many whole days ahead a report looks."""
NIGHT: Final = (18, 6)
ELAPSED_H: Final = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""Lower edges of time already spent, for the tables of time still to go."""
STAY_DAYS: Final = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 15.0, 22.0, 31.0)
"""Lower edges of length of stay so far."""


@dataclass(frozen=True, slots=True)
class Window:
    """A span of time to plan for, ``(start, end]``."""

    key: str
    label: str
    start: pd.Timestamp
    end: pd.Timestamp


def windows_at(at: datetime, timezone: str) -> tuple[Window, ...]:
    """The windows of a report: 4 h, 8 h, to 08:00 tomorrow, and the next seven whole local days (23 to 25 h each).

    The first of the days has the key ``tomorrow``, the others ``day_2`` to ``day_7``.

    Raises
    ------
    DataError
        ``at`` has no time zone.
    """
    now, today = _local_day(at, timezone)
    eight = pd.Timestamp(today + timedelta(days=1)) + pd.Timedelta(hours=8)
    eight = eight.tz_localize(ZoneInfo(timezone), ambiguous=True, nonexistent="shift_forward").tz_convert(
        "UTC"
    )
    midnights = [census.local_midnight(today + timedelta(days=k), timezone) for k in range(1, DAYS + 2)]
    days = [
        Window("tomorrow" if k == 0 else f"day_{k + 1}", "tomorrow" if k == 0 else f"in {k + 1} days", *span)
        for k, span in enumerate(pairwise(midnights))
    ]
    return (_next(now, 4), _next(now, 8), Window("to_08", "to 08:00 tomorrow", now, eight), *days)


def checked_windows(at: datetime, timezone: str) -> tuple[Window, ...]:
    """The windows of a report and the sums over 1, 12 and 24 hours beside them: all that is corrected and judged."""
    now, _ = _local_day(at, timezone)
    return (*(_next(now, h) for h in (1, 12, 24)), *windows_at(at, timezone))


def _local_day(at: datetime, timezone: str) -> tuple[pd.Timestamp, date]:
    if at.tzinfo is None:
        raise DataError("The time of a forecast needs a time zone, for example 2026-01-12T08:00:00Z.")
    now = pd.Timestamp(at).tz_convert("UTC")
    return now, now.tz_convert(ZoneInfo(timezone)).date()


def _next(now: pd.Timestamp, hours: int) -> Window:
    return Window(
        f"next_{hours}h", f"next {hours} hour{'s' * (hours > 1)}", now, now + pd.Timedelta(hours=hours)
    )


# ------------------------------------------------------------ fitted parts, as JSON


@dataclass(frozen=True)
class ArrivalRate:
    """Expected arrivals an hour: log-linear in local hour, weekday, hour at weekends, holiday and season."""

    intercept: float
    hour: tuple[float, ...]
    weekday: tuple[float, ...]
    weekend_hour: tuple[float, ...]
    holiday: float = 0.0
    season: tuple[float, float] = (0.0, 0.0)
    dispersion: float = 0.0
    """Variance of the factor that all hours of one local day share."""

    def rate(self, calendar: pd.DataFrame) -> Floats:
        """Arrivals an hour for each row of :func:`features.census.calendar`."""
        hour, weekday = calendar["hour_of_day"].to_numpy(), calendar["weekday"].to_numpy()
        turn = 2 * np.pi * calendar["day_of_year"].to_numpy("float64") / 365.25
        log = (
            self.intercept
            + np.array(self.hour)[hour]
            + np.array(self.weekday)[weekday]
            + np.where(weekday >= 5, np.array(self.weekend_hour)[hour], 0.0)
            + self.holiday * calendar["holiday"].to_numpy()
            + self.season[0] * np.sin(turn)
            + self.season[1] * np.cos(turn)
        )
        return np.asarray(np.exp(log), dtype=np.float64)


@dataclass(frozen=True)
class TimeTo:
    """How long until a bed: quantiles of hours, one row for each bin of the time spent already, by day and by night.

    ``knots`` has shape (2, n_bins, n_quantiles): [day, night].
    """

    knots: tuple[tuple[tuple[float, ...], ...], ...]

    def reached(self, elapsed_h: Floats, hour: Ints, within_h: Floats) -> Floats:
        """P(bed within), shape (n_patients, n_edges), for hours ``within_h`` of shape (n_edges,)."""
        table = np.array(self.knots)
        bin_ = np.clip(np.searchsorted(ELAPSED_H, elapsed_h, side="right") - 1, 0, table.shape[1] - 1)
        night = is_night(hour).astype("int64")
        share = (np.arange(table.shape[2]) + 0.5) / table.shape[2]
        out = np.zeros((len(elapsed_h), len(within_h)))
        for key in {(int(a), int(b)) for a, b in zip(night, bin_, strict=True)}:
            rows = (night == key[0]) & (bin_ == key[1])
            x = np.concatenate([[0.0], table[key], [table[key][-1] * 1.5 + 1.0]])
            y = np.concatenate([[0.0], share, [1.0]])
            out[rows] = np.interp(within_h, np.maximum.accumulate(x), y, left=0.0, right=1.0)
        return out


def is_night(hour: Ints) -> npt.NDArray[np.bool_]:
    """Local hours from 18 to 5, when beds are slower to come."""
    return np.asarray((hour >= NIGHT[0]) | (hour < NIGHT[1]))


@dataclass(frozen=True)
class Stream:
    """People still to come through one door: rate, share admitted and specialty mix by local hour, time to bed."""

    rate: ArrivalRate
    admitted: tuple[float, ...]
    mix: tuple[tuple[float, ...], ...]
    time_to_bed: TimeTo


@dataclass(frozen=True)
class StayHazard:
    """Discharges an hour of a patient in a bed: log-linear in specialty x stay so far, local hour and weekday."""

    base: tuple[tuple[float, ...], ...]
    hour: tuple[float, ...]
    weekday: tuple[float, ...]

    def leaving(self, specialty: Ints, stay_h: Floats, hour: Ints, weekday: Ints, edges_h: Floats) -> Floats:
        """P(discharge before each edge), shape (n_patients, n_edges).

        ``hour`` and ``weekday`` are local, one entry for each hour from now on; ``edges_h`` are hours from now, rising.
        """
        days = (stay_h[:, None] + np.arange(len(hour))[None, :] + 0.5) / 24
        bins = np.clip(np.searchsorted(STAY_DAYS, days, side="right") - 1, 0, len(STAY_DAYS) - 1)
        log = np.array(self.base)[specialty[:, None], bins]
        log += (np.array(self.hour)[hour] + np.array(self.weekday)[weekday])[None, :]
        total = np.zeros((len(specialty), len(hour) + 1))
        np.cumsum(np.exp(log), axis=1, out=total[:, 1:])
        place = np.clip(edges_h, 0, len(hour))
        low = np.minimum(place.astype("int64"), len(hour) - 1)
        reached = total[:, low] + (place - low) * (total[:, low + 1] - total[:, low])
        return np.asarray(1.0 - np.exp(-reached))

    def with_pooled(self, mix: Floats) -> StayHazard:
        """The same, with one more row for patients of no known specialty: all who are still there, pooled.

        ``mix`` is the share of each specialty among the admitted, shape (n_specialties,). Those who stay long weigh
        more in the later bins of stay, as they do in the wards.
        """
        usual = np.exp(self.hour).mean() * np.exp(self.weekday).mean()
        hazard = np.exp(np.array(self.base)) * usual
        spent = np.cumsum(hazard[:, :-1] * np.diff(STAY_DAYS) * 24, axis=1)
        there = mix[:, None] * np.exp(-np.concatenate([np.zeros((len(mix), 1)), spent], axis=1))
        there = np.maximum(there, 1e-300)
        pooled = np.log((there * hazard).sum(axis=0) / there.sum(axis=0) / usual)
        return replace(self, base=(*self.base, tuple(float(h) for h in pooled)))


# ------------------------------------------------------------ the model


class AdmissionModel(Protocol):
    """What the forecast reads of an admissions bundle."""

    @property
    def spec(self) -> Spec:
        """The features."""

    @property
    def boosters(self) -> Mapping[str, lgb.Booster]:
        """``specialty``: the mix given admission."""

    def score(self, matrix: npt.NDArray[np.float32]) -> Floats:
        """Calibrated P(admission)."""


@dataclass(frozen=True)
class Situation:
    """What is known at the moment of a forecast, and what P(admission) makes of it."""

    at: pd.Timestamp
    timezone: str
    waiting: pd.DataFrame
    in_ed: pd.DataFrame
    """Undecided patients with ``p_admission`` and one ``p_<k>`` a specialty."""
    inpatients: pd.DataFrame
    level: dict[str, float]
    today: dict[str, tuple[float, float]]
    """By door: arrivals seen today so far, and how many were expected at the present level."""


@dataclass(frozen=True)
class Futures:
    """Draws of each flow, shape (draws, n_lines, n_segments), and their exact means."""

    edges: tuple[pd.Timestamp, ...]
    draws: dict[str, Ints]
    means: dict[str, Floats]

    def inside(self, window: Window) -> npt.NDArray[np.bool_]:
        """Which segments a window is made of."""
        starts, ends = self.edges[:-1], self.edges[1:]
        return np.array([s >= window.start and e <= window.end for s, e in zip(starts, ends, strict=True)])


@dataclass(frozen=True)
class BedModel:
    """All fitted parts of the bed forecast, as they stand in a bundle's ``flow.json``."""

    specialties: tuple[str, ...]
    streams: dict[str, Stream]
    decided: TimeTo
    undecided: TimeTo
    theatre: TimeTo
    stays: StayHazard
    corrections: dict[str, Recalibration]
    holidays: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "specialties": list(self.specialties),
            "streams": {
                name: {
                    "rate": {k: _plain(v) for k, v in vars(s.rate).items()},
                    "admitted": list(s.admitted),
                    "mix": _plain(s.mix),
                    "time_to_bed": _plain(s.time_to_bed.knots),
                }
                for name, s in self.streams.items()
            },
            "time_to_bed": {
                "decided": _plain(self.decided.knots),
                "undecided": _plain(self.undecided.knots),
                "theatre": _plain(self.theatre.knots),
            },
            "stays": {k: _plain(v) for k, v in vars(self.stays).items()},
            "corrections": {k: c.to_dict() for k, c in self.corrections.items()},
            "holidays": self.holidays,
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> BedModel:
        """The inverse of :meth:`to_dict`.

        Raises
        ------
        SpecError
            A part is missing.
        """
        try:
            streams = {
                name: Stream(
                    rate=ArrivalRate(**{k: _frozen(v) for k, v in s["rate"].items()}),
                    admitted=_frozen(s["admitted"]),
                    mix=_frozen(s["mix"]),
                    time_to_bed=TimeTo(_frozen(s["time_to_bed"])),
                )
                for name, s in table["streams"].items()
            }
            times = {k: TimeTo(_frozen(v)) for k, v in table["time_to_bed"].items()}
            return cls(
                specialties=tuple(table["specialties"]),
                streams=streams,
                decided=times["decided"],
                undecided=times["undecided"],
                theatre=times["theatre"],
                stays=StayHazard(**{k: _frozen(v) for k, v in table["stays"].items()}),
                corrections={k: Recalibration.from_dict(v) for k, v in table["corrections"].items()},
                holidays=table["holidays"],
            )
        except (KeyError, TypeError) as error:
            raise SpecError(
                f"The bundle's flow.json lacks {error}. Train the admissions model again."
            ) from None

    @classmethod
    def of(cls, bundle: Bundle) -> BedModel:
        """The bed model of an admissions bundle.

        Raises
        ------
        SpecError
            The bundle is of another product.
        """
        if "flow" not in bundle.parts:
            raise SpecError(f"Bundle {bundle.model_id} has no flow.json: it is not an admissions bundle.")
        return cls.from_dict(bundle.parts["flow"])

    def correction(self, what: str, window: str, level: str) -> Recalibration:
        """The conformal correction of one statement; the identity where none was fitted."""
        kind = HOSPITAL if level == HOSPITAL else "specialty"
        return self.corrections.get(f"{what}/{window}/{kind}", Recalibration())

    def code(self, specialty: pd.Series) -> Ints:
        """Line of each patient; a specialty without one is ``other`` if the model has that, else one past the last."""
        place = {name: k for k, name in enumerate(self.specialties)}
        rest = place.get(OTHER, len(self.specialties))
        return np.array([place.get(s, rest) for s in specialty.astype("str")], dtype=np.int64)

    def lines(self, situation: Situation) -> tuple[str, ...]:
        """The levels that sum to the hospital: the specialties, and :data:`UNKNOWN` while somebody belongs there."""
        codes = self.code(_decided(situation))
        return (*self.specialties, UNKNOWN) if (codes == len(self.specialties)).any() else self.specialties

    def strangers(self, situation: Situation, least: float = 0.0) -> dict[str, int]:
        """Patients in a bed or waiting for one, by specialties the model was not made for; commonest first.

        Empty text stands for those without a specialty. Where the model has a line ``other``, only specialties of more
        than the share ``least`` of these patients count: smaller ones are what that line is for.
        """
        said = _decided(situation).astype("str")
        counts = said[~said.isin(self.specialties)].value_counts()
        if self.specialties == (OTHER,):
            return {}
        if OTHER in self.specialties:
            counts = counts[(counts > least * len(said)) | (counts.index == "")]
        return {str(name): int(n) for name, n in counts.items()}

    # -------------------------------------------------------- now

    def situation(
        self,
        visits: pd.DataFrame,
        events: pd.DataFrame | FlatEvents,
        bundle: AdmissionModel,
        at: datetime,
        timezone: str,
    ) -> Situation:
        """Who is where, and P(admission) of the undecided.

        Parameters
        ----------
        visits : DataFrame with ``VISIT_COLUMNS``, as known at ``at``
        events : DataFrame of cleaned events, or FlatEvents that already hold :func:`visit_events`
        """
        now = pd.Timestamp(at).tz_convert("UTC")
        ed = census.undecided(visits, now)
        if not isinstance(events, FlatEvents):
            events = pd.concat([events[events["encounter_id"].isin(ed["encounter_id"])], visit_events(ed)])
        rows = ed[["encounter_id"]].assign(prediction_time=pd.Series(now, index=ed.index, dtype=UTC_US))
        level, today = self._level(visits, now, timezone)
        return Situation(
            at=now,
            timezone=timezone,
            waiting=census.waiting(visits, now),
            in_ed=pd.concat(
                [ed, admission_probabilities(bundle, events, rows, timezone, len(self.specialties))], axis=1
            ),
            inpatients=census.inpatients(visits, now),
            level=level,
            today=today,
        )

    def _level(
        self, visits: pd.DataFrame, now: pd.Timestamp, timezone: str
    ) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
        """How busy the last four weeks were against expectation, and today so far against that."""
        ed = through_ed(visits)
        midnight = census.local_midnight(now.tz_convert(ZoneInfo(timezone)).date(), timezone)
        first = max(_complete_since(visits, now), now - timedelta(days=LEVEL_DAYS))
        spent = _spans(first, now)
        calendar = census.calendar(spent["start"], timezone, self.holidays)
        so_far = (spent["start"] >= midnight).to_numpy()
        level, today = {}, {}
        for name, stream in self.streams.items():
            came = visits.loc[ed == (name == "emergency"), "arrival_time"]
            expected = stream.rate.rate(calendar) * spent["hours"].to_numpy()
            seen = census.count_between(came, first, now)
            level[name] = float((seen + LEVEL_WEIGHT) / (expected.sum() + LEVEL_WEIGHT))
            seen_today = float(census.count_between(came, max(midnight, first), now))
            today[name] = (seen_today, float(expected[so_far].sum() * level[name]))
        return level, today

    # -------------------------------------------------------- futures

    def futures(
        self, situation: Situation, windows: Sequence[Window], rng: np.random.Generator, draws: int = DRAWS
    ) -> Futures:
        """Draw what may come: every flow, by :meth:`lines` and segment between the windows' edges."""
        edges = sorted({situation.at, *(w.start for w in windows), *(w.end for w in windows)})
        edges_h = np.array([(e - situation.at) / pd.Timedelta(hours=1) for e in edges])
        n_spec, n_seg = len(self.lines(situation)), len(edges) - 1
        shape = (draws, n_spec, n_seg)
        chances = {
            "known": self._known(situation, edges_h),
            "in_ed": self._in_ed(situation, edges_h),
            "discharges": self._discharges(situation, edges_h),
        }
        out = {name: _draw_patients(p, rng, draws).reshape(shape) for name, p in chances.items()}
        means = {name: p.sum(axis=0).reshape(n_spec, n_seg) for name, p in chances.items()}
        spans = _spans(situation.at, edges[-1])
        ahead = spans, census.calendar(spans["start"], situation.timezone, self.holidays)
        for flow, door in (("to_come", "emergency"), ("planned", "direct")):
            drawn, mean = self._to_come(situation, door, ahead, edges, rng, draws)
            out[flow], means[flow] = _padded(drawn, n_spec), _padded(mean, n_spec)
        arrivals = out["known"] + out["in_ed"] + out["to_come"] + out["planned"]
        share = self._same_window(situation, edges_h)
        out["discharges"] = out["discharges"] + _draw_leaving(arrivals, share, rng)
        into = means["known"] + means["in_ed"] + means["to_come"] + means["planned"]
        means["discharges"] = means["discharges"] + np.einsum("ka,kab->kb", into, share)
        return Futures(tuple(edges), out, means)

    def _by_line(self, s: Situation, codes: Ints, shares: Floats) -> Floats:
        """Put each patient's chance by segment on their line, flattened."""
        onto = np.eye(len(self.lines(s)))[codes]
        return (onto[:, :, None] * shares[:, None, :]).reshape(len(codes), onto.shape[1] * shares.shape[1])

    def _stays_of(self, s: Situation) -> StayHazard:
        """Stays by line: those of no known specialty stay as all do."""
        if len(self.lines(s)) == len(self.specialties):
            return self.stays
        return self.stays.with_pooled(np.array(self.streams["emergency"].mix).mean(axis=0))

    def _known(self, s: Situation, edges_h: Floats) -> Floats:
        """Chance of each waiting patient to reach a bed, by specialty and segment, flattened."""
        who = s.waiting
        elapsed = _hours_since(who["decision_time"], s.at)
        hour = _hour(s.at, s.timezone)
        hours = np.full(len(who), hour)
        ed = through_ed(who).to_numpy()[:, None] if len(who) else np.zeros((0, 1), bool)
        reached = np.where(
            ed, self.decided.reached(elapsed, hours, edges_h), self.theatre.reached(elapsed, hours, edges_h)
        )
        return self._by_line(s, self.code(who["specialty"]), np.diff(reached, axis=1))

    def _in_ed(self, s: Situation, edges_h: Floats) -> Floats:
        who = s.in_ed
        hours = np.full(len(who), _hour(s.at, s.timezone))
        reached = self.undecided.reached(_hours_since(who["arrival_time"], s.at), hours, edges_h)
        onto = who[[f"p_{k}" for k in range(len(self.specialties))]].to_numpy("float64")
        each = (
            who["p_admission"].to_numpy("float64")[:, None, None]
            * onto[:, :, None]
            * np.diff(reached)[:, None, :]
        )
        n_lines = len(self.lines(s))
        return _padded(each, n_lines).reshape(len(who), n_lines * (len(edges_h) - 1))

    def _discharges(self, s: Situation, edges_h: Floats) -> Floats:
        who = s.inpatients
        code = self.code(who["specialty"])
        stay = _hours_since(who["admission_time"], s.at)
        gone = self._stays_of(s).leaving(code, stay, *_clock_ahead(s, edges_h), edges_h)
        return self._by_line(s, code, np.diff(gone, axis=1))

    def _same_window(self, s: Situation, edges_h: Floats) -> Floats:
        """P(leaves in segment b | reached a bed in segment a), shape (n_lines, n_segments, n_segments)."""
        n_spec, n_seg, stays = len(self.lines(s)), len(edges_h) - 1, self._stays_of(s)
        hour, weekday = _clock_ahead(s, edges_h)
        out = np.zeros((n_spec, n_seg, n_seg))
        for a in range(n_seg):
            middle = (edges_h[a] + edges_h[a + 1]) / 2
            now = int(middle)
            edges = np.maximum(edges_h - now, middle - now)
            gone = stays.leaving(np.arange(n_spec), np.zeros(n_spec), hour[now:], weekday[now:], edges)
            out[:, a, :] = np.diff(gone, axis=1)
        return out

    def _to_come(
        self,
        s: Situation,
        door: str,
        ahead: tuple[pd.DataFrame, pd.DataFrame],
        edges: Sequence[pd.Timestamp],
        rng: np.random.Generator,
        draws: int,
    ) -> tuple[Ints, Floats]:
        """Arrivals still to come who reach a bed by specialty and segment: Poisson given each day's shared factor."""
        stream = self.streams[door]
        spans, calendar = ahead
        rate = stream.rate.rate(calendar) * spans["hours"].to_numpy() * s.level[door]
        hour = calendar["hour_of_day"].to_numpy("int64")
        reached = self._reached_after(stream.time_to_bed, spans, hour, edges)
        each = (rate * np.array(stream.admitted)[hour])[:, None, None] * np.array(stream.mix)[hour][
            :, :, None
        ]
        flow = each * np.diff(reached, axis=1)[:, None, :]
        day, dates = pd.factorize(calendar["local_date"])
        seen, expected = s.today[door]
        total = np.zeros((draws, len(stream.mix[0]), len(edges) - 1))
        mean = np.zeros(total.shape[1:])
        here = s.at.tz_convert(ZoneInfo(s.timezone)).tz_localize(None).normalize()
        for k, date in enumerate(dates):
            so_far = (seen, expected) if date == here else (0.0, 0.0)
            factor = day_effect(stream.rate.dispersion, *so_far, rng, draws)
            shape = 1 / stream.rate.dispersion if stream.rate.dispersion > 0 else np.inf
            expected_factor = (shape + so_far[0]) / (shape + so_far[1]) if np.isfinite(shape) else 1.0
            part = flow[day == k].sum(axis=0)
            total += factor[:, None, None] * part[None]
            mean += expected_factor * part
        return np.asarray(rng.poisson(total), dtype=np.int64), mean

    def _reached_after(
        self, time_to_bed: TimeTo, spans: pd.DataFrame, hour: Ints, edges: Sequence[pd.Timestamp]
    ) -> Floats:
        """P(bed by each edge) of somebody who arrives inside each span, averaged over four moments of the span."""
        start = micros(spans["start"])
        ends = np.array([e.value // 1000 for e in edges], dtype="int64")
        out = np.zeros((len(spans), len(edges)))
        for part in (0.125, 0.375, 0.625, 0.875):
            arrival = start + (spans["hours"].to_numpy() * part * 3.6e9).astype("int64")
            for night in (False, True):
                rows = np.flatnonzero(is_night(hour) == night)
                within = (ends[None, :] - arrival[rows, None]) / 3.6e9
                one = np.array([23 if night else 12])
                flat = time_to_bed.reached(np.zeros(1), one, np.maximum(within, 0).ravel())[0]
                out[rows] += flat.reshape(within.shape) / 4
        return out


def admission_probabilities(
    bundle: AdmissionModel,
    events: pd.DataFrame | FlatEvents,
    rows: pd.DataFrame,
    timezone: str,
    n_specialties: int,
) -> pd.DataFrame:
    """``p_admission`` and one ``p_<k>`` a specialty (given admission) for each row of encounter and prediction time."""
    names = [f"p_{k}" for k in range(n_specialties)]
    if rows.empty:
        return pd.DataFrame({c: pd.Series(dtype="float64") for c in ("p_admission", *names)})
    matrix = admission_matrix(bundle.spec.features, events, rows, timezone)
    table = pd.DataFrame(bundle.boosters["specialty"].predict(matrix, num_threads=1), columns=names)
    return pd.concat([pd.Series(bundle.score(matrix), name="p_admission"), table], axis=1)


def admission_matrix(
    features: FeatureSet, events: pd.DataFrame | FlatEvents, rows: pd.DataFrame, timezone: str
) -> npt.NDArray[np.float32]:
    """The admission model's inputs: its feature set, then :data:`CALENDAR`; shape (n, n_features + 2)."""
    local = rows["prediction_time"].dt.tz_convert(ZoneInfo(timezone))
    clock = np.stack([local.dt.hour + local.dt.minute / 60, local.dt.weekday], axis=1).astype("float32")
    return np.concatenate([features.build(events, rows[["encounter_id", "prediction_time"]]), clock], axis=1)


# ------------------------------------------------------------ small parts


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _hour(at: pd.Timestamp, timezone: str) -> int:
    return int(at.tz_convert(ZoneInfo(timezone)).hour)


def _clock_ahead(s: Situation, edges_h: Floats) -> tuple[Ints, Ints]:
    """Local hour and weekday of every hour from now to the last edge."""
    hours = from_micros(s.at.value // 1000 + np.arange(int(np.ceil(edges_h[-1])) + 1) * 3_600_000_000)
    local = hours.dt.tz_convert(ZoneInfo(s.timezone))
    return local.dt.hour.to_numpy("int64"), local.dt.weekday.to_numpy("int64")


def _hours_since(times: pd.Series, at: pd.Timestamp) -> Floats:
    return np.asarray((at - times).dt.total_seconds().to_numpy("float64") / 3600)


def _complete_since(visits: pd.DataFrame, now: pd.Timestamp) -> pd.Timestamp:
    """Since when every arrival is in the table. Before, only those who stayed are: inpatients of the first load.

    That is the first arrival of somebody who was never admitted and has left: such a visit is in no first load.
    """
    passed_through = visits["discharge_time"].notna() & visits["admission_time"].isna()
    first = visits.loc[passed_through, "arrival_time"].min()
    return now if pd.isna(first) else min(pd.Timestamp(first), now)


def _spans(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """``(start, end]`` cut at every whole UTC half hour: ``start`` and ``hours`` (length) of each piece.

    Half hours, so that a piece never crosses a local midnight, wherever that is.
    """
    marks = pd.date_range(start.ceil("30min"), end.floor("30min"), freq="30min")
    edges = np.unique(np.concatenate([[start.value // 1000], marks.as_unit("us").asi8, [end.value // 1000]]))
    return pd.DataFrame({"start": from_micros(edges[:-1]), "hours": np.diff(edges) / 3.6e9})


def _decided(s: Situation) -> pd.Series:
    """Specialties of those who wait for a bed or are in one."""
    return pd.concat([s.waiting["specialty"], s.inpatients["specialty"]], ignore_index=True)


def _padded(flow: npt.NDArray[Any], n_lines: int) -> npt.NDArray[Any]:
    """Lines, the last axis but one, filled up with zeros to ``n_lines``."""
    short = n_lines - flow.shape[-2]
    return np.pad(flow, [(0, 0)] * (flow.ndim - 2) + [(0, short), (0, 0)]) if short else flow


def _draw_patients(chances: Floats, rng: np.random.Generator, draws: int) -> Ints:
    """Draw each patient into one of the categories (or none); counts by draw, shape (draws, n_categories)."""
    n, k = chances.shape
    if n == 0:
        return np.zeros((draws, k), dtype=np.int64)
    upto = np.minimum(np.cumsum(chances, axis=1), 1.0) + np.arange(n)[:, None]
    u = rng.random((draws, n)) + np.arange(n)[None, :]
    place = np.searchsorted(upto.ravel(), u.ravel(), side="right") - np.tile(np.arange(n) * k, draws)
    draw = np.repeat(np.arange(draws), n)
    chosen = place < k
    return np.bincount(draw[chosen] * k + place[chosen], minlength=draws * k).reshape(draws, k)


def _draw_leaving(arrivals: Ints, share: Floats, rng: np.random.Generator) -> Ints:
    """Of those who reach a bed in one segment, how many leave in each later one."""
    out = np.zeros_like(arrivals)
    for a in range(arrivals.shape[2]):
        for b in range(a, arrivals.shape[2]):
            if share[:, a, b].max() > 0:
                out[:, :, b] += rng.binomial(arrivals[:, :, a], share[:, a, b][None, :])
    return out


# ------------------------------------------------------------ the forecast


@dataclass(frozen=True)
class Cell:
    """One statement: a level (specialty or hospital) in one window.

    ``needed`` is how many reach a bed, ``discharges`` how many leave one, ``net`` the first minus the second,
    ``occupied_after`` the beds taken at the window's end. Distributions are corrected, ``parts`` are exact means that
    add up over levels and over flows.
    """

    level: str
    window: str
    parts: dict[str, float]
    needed: Counts
    discharges: Counts
    net: Counts
    occupied_after: Counts
    waiting_now: int
    in_ed_now: int
    occupied_now: int
    open_beds: int | None

    @property
    def needed_mean(self) -> float:
        """Expected beds needed: known, in the ED, to come and planned."""
        return sum(self.parts[f] for f in FLOWS[:4])

    @property
    def net_mean(self) -> float:
        """Expected change of occupied beds."""
        return self.needed_mean - self.parts["discharges"]

    @property
    def short(self) -> float | None:
        """P(more patients than open beds at the window's end); None without a number of open beds."""
        return self.over(1.0)

    def over(self, share: float) -> float | None:
        """P(more than this share of the open beds is taken at the window's end); None without a number of them."""
        if self.open_beds is None:
            return None
        return 1.0 - self.occupied_after.cdf(math.floor(share * self.open_beds + 1e-9))


def assemble(
    model: BedModel,
    situation: Situation,
    futures: Futures,
    windows: Sequence[Window],
    open_beds: Mapping[str, int] | None,
) -> list[Cell]:
    """One cell for each level and window; the hospital is the sum of its lines in every draw."""
    lines = model.lines(situation)
    names = (*lines, HOSPITAL)
    now = {
        k: _by_level(model, v, len(lines))
        for k, v in (("waiting", situation.waiting), ("beds", situation.inpatients))
    }
    beds_of = _beds_of(lines, open_beds or {})
    into = np.sum([futures.draws[f] for f in FLOWS[:4]], axis=0)
    cells = []
    for window in windows:
        inside = futures.inside(window)
        until = np.array([e <= window.end for e in futures.edges[1:]])
        needed, left = _levels(into[:, :, inside]), _levels(futures.draws["discharges"][:, :, inside])
        change = _levels(into[:, :, until]) - _levels(futures.draws["discharges"][:, :, until])
        means = {f: _levels(futures.means[f][None][:, :, inside])[0] for f in FLOWS}
        for k, level in enumerate(names):

            def said(what: str, draws: Ints, level: str = level, key: str = window.key) -> Counts:
                return model.correction(what, key, level).apply(Counts.of_samples(draws))

            cells.append(
                Cell(
                    level=level,
                    window=window.key,
                    parts={f: float(means[f][k]) for f in FLOWS},
                    needed=said("needed", needed[:, k]),
                    discharges=said("discharges", left[:, k]),
                    net=said("net", needed[:, k] - left[:, k]),
                    occupied_after=said("occupied", np.maximum(now["beds"][k] + change[:, k], 0)),
                    waiting_now=int(now["waiting"][k]),
                    in_ed_now=len(situation.in_ed) if level == HOSPITAL else 0,
                    occupied_now=int(now["beds"][k]),
                    open_beds=beds_of.get(level),
                )
            )
    return cells


def _levels(flow: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sum over segments, then append the hospital as the sum of its specialties: (draws, specialties + 1)."""
    each = flow.sum(axis=2)
    return np.concatenate([each, each.sum(axis=1, keepdims=True)], axis=1)


def _by_level(model: BedModel, rows: pd.DataFrame, n_lines: int) -> Ints:
    """Patients by line, and all of them."""
    return np.append(np.bincount(model.code(rows["specialty"]), minlength=n_lines), len(rows))


def _beds_of(lines: Sequence[str], open_beds: Mapping[str, int]) -> dict[str, int]:
    """Open beds by level: the hospital's are all, those of no known specialty what no other line has."""
    beds = dict(open_beds)
    if beds:
        beds[HOSPITAL] = sum(open_beds.values())
    rest = [n for name, n in open_beds.items() if name not in lines]
    if rest and UNKNOWN in lines:
        beds[UNKNOWN] = sum(rest) + open_beds.get(UNKNOWN, 0)
    return beds


def in_ed_beds(situation: Situation) -> Counts:
    """How many of those undecided in the emergency department will be admitted at all: exact Poisson-binomial."""
    return poisson_binomial(situation.in_ed["p_admission"].to_numpy("float64"))
