"""From who is in the hospital now to the beds it will need: the flows, and their joint distribution.

Everybody the forecast counts reaches a bed (or leaves one) inside a window. These flows make it up:

=========== ==========================================================================================
known       decided to admit, waiting for a bed: time to bed by how long they have waited
in the ED   not decided: probability of admission (LightGBM, any clock time) x specialty x time to bed
to come     still to arrive at the emergency department: hourly rate x level x shared day effect
planned     on the elective list; where there is none, electives and transfers from elsewhere by rate
moved       inpatients who come from, and go to, another specialty
discharges  inpatients by specialty, length of stay so far, hour and weekday
=========== ==========================================================================================

Patients are drawn jointly (one draw = one possible future of the whole hospital, :mod:`models.draws`), so that
specialties sum to the hospital and windows to longer windows in every draw. Means are exact and add up; quantiles are
read from the draws after the conformal correction of :class:`models.forecast.Recalibration`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import pandas as pd

from features import census
from features.clock import HOUR_US, UTC_US, from_micros, micros
from features.errors import DataError, SpecError
from features.featureset import FeatureSet
from features.sources.visits import through_ed, visit_events
from features.windows import FlatEvents
from models.bundle import Bundle
from models.draws import FLOWS, PLANNED, TO_COME, Chances, draw
from models.draws import means as expected_flows
from models.flows import Moves, StayHazard, Stream, TimeTo, frozen, part_of_day, plain
from models.forecast import Counts, Recalibration, day_effect, poisson_binomial
from models.spec import Spec
from models.surge import RECENT_DAYS, WEEKS, Surge, Usual, age_group, detect

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CALENDAR: Final = ("hour_of_day", "weekday")
"""Inputs of the admission model beside its feature set, local time; ``[model] calendar`` in the spec."""
HOSPITAL: Final = "hospital"
SPECIALTY: Final = "specialty"
"""Any level but the hospital, where corrections are pooled."""
OTHER: Final = "other"
"""Specialties too small for a line of their own."""
UNKNOWN: Final = "other or unknown"
"""The level of patients whose specialty has no line; there only while there are such patients."""
ENTERING: Final = FLOWS[: PLANNED + 1]
"""The flows of people who need a bed of the hospital."""
DOORS: Final = {"emergency": TO_COME, "elective": PLANNED, "transfer": PLANNED}
"""Ways into the hospital, and the flow each counts in."""
DRAWS: Final = 1000
DAYS: Final = 7
"""How many whole days ahead a report looks."""
LEVEL_DAYS: Final = 28
LEVEL_WEIGHT: Final = 300.0
"""Arrivals' worth of belief that the present level is that of training."""
MIX_DAYS: Final = 56
MIX_WEIGHT: Final = 1000.0
"""Admissions' worth of belief that the present mix of specialties is that of training."""
SURGE_WEIGHT: Final = 150.0
"""The same while a surge is under way and the mix of its seven days is read."""
LIST_WEIGHT: Final = 20.0
"""Listed patients' worth of belief that everybody on the elective list comes."""


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
    """With ``since``, when their specialty began."""
    level: dict[str, float]
    today: dict[str, tuple[float, float]]
    """By door: arrivals seen today so far, and how many were expected at the present level."""
    mix: tuple[float, ...]
    """Recent share of each specialty among emergency admissions, as a multiple of training's."""
    covariates: dict[str, float] = field(default_factory=dict)
    """Daily series as last known, by name: see :class:`models.flows.Covariate`."""
    listed: pd.DataFrame | None = None
    """The elective list from now on; None where there is none."""
    list_kept: float = 1.0
    """P(a listed patient comes)."""
    surge: Surge | None = None

    def without_surge(self) -> Situation:
        """The same hospital at the usual level and mix, with outside series as usual."""
        if self.surge is None:
            return self
        seen, expected = self.today["emergency"]
        usual = self.surge.usual_level
        expected *= usual / max(self.level["emergency"], 1e-9)
        return replace(
            self,
            level=self.level | {"emergency": usual},
            today=self.today | {"emergency": (min(seen, expected), expected)},
            mix=(1.0,) * len(self.mix),
            covariates={},
            surge=None,
        )


@dataclass(frozen=True)
class Futures:
    """Draws of each flow, shape (draws, n_lines, n_segments), and their exact means, (n_lines, n_segments)."""

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
    moves: Moves
    usual: Usual
    corrections: dict[str, Recalibration]
    holidays: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "specialties": list(self.specialties),
            "streams": {name: s.to_dict() for name, s in self.streams.items()},
            "time_to_bed": {
                "decided": plain(self.decided.knots),
                "undecided": plain(self.undecided.knots),
                "theatre": plain(self.theatre.knots),
            },
            "stays": {k: plain(v) for k, v in vars(self.stays).items()},
            "moves": {k: plain(v) for k, v in vars(self.moves).items()},
            "usual": self.usual.to_dict(),
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
            times = {k: TimeTo(frozen(v)) for k, v in table["time_to_bed"].items()}
            return cls(
                specialties=tuple(table["specialties"]),
                streams={name: Stream.from_dict(s) for name, s in table["streams"].items()},
                decided=times["decided"],
                undecided=times["undecided"],
                theatre=times["theatre"],
                stays=StayHazard(**{k: frozen(v) for k, v in table["stays"].items()}),
                moves=Moves(**{k: frozen(v) for k, v in table["moves"].items()}),
                usual=Usual.from_dict(table["usual"]),
                corrections={k: Recalibration.from_dict(v) for k, v in table["corrections"].items()},
                holidays=table["holidays"],
            )
        except (KeyError, TypeError) as error:
            raise SpecError(
                f"The bundle's flow.json lacks {error}. Train the admissions model again."
            ) from None

    @classmethod
    def of(cls, bundle: Bundle) -> BedModel:
        """The bed model of an admissions bundle, read once.

        Raises
        ------
        SpecError
            The bundle is of another product, or knows P(admission) alone.
        """
        if "flow" not in bundle.parts:
            raise SpecError(
                f"Bundle {bundle.model_id} has no flow.json: it is not an admissions bundle trained on visits."
            )
        if "beds" not in bundle.made:
            bundle.made["beds"] = cls.from_dict(bundle.parts["flow"])
        model: BedModel = bundle.made["beds"]
        return model

    def correction(self, what: str, window: str, level: str) -> Recalibration:
        """The conformal correction of one statement: the level's own, else of any specialty, else the identity."""
        own = self.corrections.get(f"{what}/{window}/{level}")
        return own or self.corrections.get(f"{what}/{window}/{SPECIALTY}", Recalibration())

    def code(self, specialty: pd.Series) -> Ints:
        """Line of each patient; a specialty without one is ``other`` if the model has that, else one past the last."""
        names = list(self.specialties)
        place = pd.Index(names, dtype="str").get_indexer(pd.Index(specialty, dtype="str"))
        rest = names.index(OTHER) if OTHER in names else len(names)
        return np.where(place < 0, rest, place).astype("int64")

    def lines(self, situation: Situation) -> tuple[str, ...]:
        """The levels that sum to the hospital: the specialties, and :data:`UNKNOWN` while somebody belongs there."""
        listed = [] if situation.listed is None else [situation.listed["specialty"]]
        codes = self.code(pd.concat([_decided(situation), *listed], ignore_index=True))
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
        elective: pd.DataFrame | None = None,
        covariates: pd.DataFrame | None = None,
    ) -> Situation:
        """Who is where, and P(admission) of the undecided.

        Parameters
        ----------
        visits : DataFrame with ``VISIT_COLUMNS``, as known at ``at``
            With the column ``since`` (:func:`features.sources.moves.located_at`) where moves are known.
        events : DataFrame of cleaned events, or FlatEvents that already hold :func:`visit_events`
        elective : DataFrame, optional
            :func:`features.sources.outlook.read_elective`.
        covariates : DataFrame, optional
            :func:`features.sources.outlook.read_covariates`; days that were not known at ``at`` are not read.
        """
        now = pd.Timestamp(at).tz_convert("UTC")
        ed = census.undecided(visits, now)
        if not isinstance(events, FlatEvents):
            events = pd.concat([events[events["encounter_id"].isin(ed["encounter_id"])], visit_events(ed)])
        rows = ed[["encounter_id"]].assign(prediction_time=pd.Series(now, index=ed.index, dtype=UTC_US))
        chances = admission_probabilities(bundle, events, rows, timezone, len(self.specialties))
        inpatients = census.inpatients(visits, now)
        if "since" not in inpatients.columns:
            inpatients = inpatients.assign(since=inpatients["admission_time"])
        known = {} if covariates is None else _last_known(covariates, now, timezone)
        surge = self._surge(visits, now, timezone)
        level, today = self._level(visits, now, timezone, known, surge)
        listed, kept = _listed(elective, visits, now)
        return Situation(
            at=now,
            timezone=timezone,
            waiting=census.waiting(visits, now),
            in_ed=pd.concat([ed, chances], axis=1),
            inpatients=inpatients,
            level=level,
            today=today,
            mix=self._mix(visits, now, surge is not None),
            covariates=known,
            listed=listed,
            list_kept=kept,
            surge=surge,
        )

    def _calendar(self, spans: pd.DataFrame, timezone: str, covariates: Mapping[str, float]) -> pd.DataFrame:
        return census.calendar(spans["start"], timezone, self.holidays).assign(**covariates)

    def _level(
        self,
        visits: pd.DataFrame,
        now: pd.Timestamp,
        timezone: str,
        covariates: Mapping[str, float],
        surge: Surge | None,
    ) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
        """How busy the last four weeks were against expectation (in a surge, the last week), and today so far."""
        door = door_of(visits)
        midnight = census.local_midnight(now.tz_convert(ZoneInfo(timezone)).date(), timezone)
        first = max(_complete_since(visits, now), now - timedelta(days=LEVEL_DAYS))
        spent = _spans(first, now)
        calendar = self._calendar(spent, timezone, covariates)
        so_far = (spent["start"] >= midnight).to_numpy()
        level, today = {}, {}
        for name, stream in self.streams.items():
            came = visits.loc[door == name, "arrival_time"]
            expected = stream.rate.rate(calendar) * spent["hours"].to_numpy()
            seen = census.count_between(came, first, now)
            level[name] = float((seen + LEVEL_WEIGHT) / (expected.sum() + LEVEL_WEIGHT))
            if name == "emergency" and surge is not None:
                level[name] = surge.level
            seen_today = float(census.count_between(came, max(midnight, first), now))
            today[name] = (seen_today, float(expected[so_far].sum() * level[name]))
        return level, today

    def _mix(self, visits: pd.DataFrame, now: pd.Timestamp, surging: bool) -> tuple[float, ...]:
        """Specialties of recent emergency admissions against training, pulled towards it."""
        since, weight = (
            (timedelta(days=RECENT_DAYS), SURGE_WEIGHT) if surging else (timedelta(days=MIX_DAYS), MIX_WEIGHT)
        )
        decided = through_ed(visits) & (visits["decision_time"] > now - since)
        code = self.code(visits.loc[decided, "specialty"])
        count = np.bincount(code, minlength=len(self.specialties))[: len(self.specialties)]
        usual = np.array(self.usual.admitted)
        usual = usual / max(usual.sum(), 1e-12)
        ratio = (count + weight * usual) / ((count.sum() + weight) * np.maximum(usual, 1e-12))
        return tuple(float(r) for r in np.where(usual > 0, ratio, 1.0))

    def _surge(self, visits: pd.DataFrame, now: pd.Timestamp, timezone: str) -> Surge | None:
        """Look at the complete days that are known."""
        zone = ZoneInfo(timezone)
        today = now.tz_convert(zone).tz_localize(None).normalize()
        first = _complete_since(visits, now).tz_convert(zone).tz_localize(None).normalize()
        first = max(first + pd.Timedelta(days=1), today - pd.Timedelta(days=7 * WEEKS + RECENT_DAYS))
        days = pd.Series(pd.date_range(first, today, freq="1D", inclusive="left", unit="us"))
        if len(days) < 2 * RECENT_DAYS:
            return None
        ed = visits[through_ed(visits)]
        group, line = age_group(ed["age_years"]), self.code(ed["specialty"])
        names = len(self.specialties)
        arrivals = _daily(ed["arrival_time"], group, len(self.usual.ages), days, zone)
        everybody = _daily(ed["arrival_time"], np.zeros(len(ed), "int64"), 1, days, zone)
        admitted = _daily(ed["decision_time"], line, names, days, zone)
        edges = [census.local_midnight(d.date(), timezone) for d in (days.iloc[0], today)]
        spans = _spans(*edges)
        hours = self._calendar(spans, timezone, {})
        expected = self.streams["emergency"].rate.rate(hours) * spans["hours"].to_numpy()
        day = (hours["local_date"] - days.iloc[0]).dt.days.to_numpy()
        due = np.bincount(day, weights=expected, minlength=len(days)).astype("float64")
        return detect(
            days, np.concatenate([arrivals, everybody], axis=1), admitted, due, self.usual, self.specialties
        )

    # -------------------------------------------------------- futures

    def futures(
        self, situation: Situation, windows: Sequence[Window], rng: np.random.Generator, draws: int = DRAWS
    ) -> Futures:
        """Draw what may come: every flow, by :meth:`lines` and segment between the windows' edges."""
        edges = sorted({situation.at, *(w.start for w in windows), *(w.end for w in windows)})
        edges_h = np.array([(e - situation.at) / pd.Timedelta(hours=1) for e in edges])
        rate, days = self._to_come(situation, edges)
        chances = self._chances(situation, edges_h, rate)
        factor, mean_factor = self._day_factors(situation, days, rng, draws)
        drawn, means = draw(chances, factor, rng), expected_flows(chances, mean_factor)
        return Futures(
            tuple(edges),
            {name: drawn[:, k] for k, name in enumerate(FLOWS)},
            {name: means[k] for k, name in enumerate(FLOWS)},
        )

    def _chances(self, s: Situation, edges_h: Floats, rate: Floats) -> Chances:
        """Everybody's chances by segment: see :class:`models.draws.Chances`."""
        n_lines, listed = len(self.lines(s)), _none_listed() if s.listed is None else s.listed
        stays = self._stays_of(s)
        moving = self.moves.padded(n_lines)
        codes = self.code(s.inpatients["specialty"])
        return Chances(
            known_line=self.code(s.waiting["specialty"]),
            known=self._known(s, edges_h),
            in_ed=self._in_ed(s, edges_h),
            in_ed_line=_padded(self._line_of_undecided(s), n_lines),
            planned_line=self.code(listed["specialty"]),
            planned=self._planned(s, listed, edges_h),
            in_bed_line=codes,
            in_bed=_fates(stays, moving, codes, _hours_since(s.inpatients["since"], s.at), None, s, edges_h),
            after=_after(stays, moving, n_lines, s, edges_h),
            destination=np.array(moving.destination),
            rate=np.pad(rate, [(0, 0), (0, 0), (0, n_lines - rate.shape[2]), (0, 0)]),
            flow_of_door=np.array([DOORS[name] for name in self.streams]),
        )

    def _stays_of(self, s: Situation) -> StayHazard:
        """Stays by line: those of no known specialty stay as all do."""
        if len(self.lines(s)) == len(self.specialties):
            return self.stays
        return self.stays.with_pooled(np.array(self.streams["emergency"].mix).mean(axis=0))

    def _known(self, s: Situation, edges_h: Floats) -> Floats:
        """P(bed in each segment) of each waiting patient."""
        who = s.waiting
        elapsed = _hours_since(who["decision_time"], s.at)
        hours = np.full(len(who), _hour(s.at, s.timezone))
        ed = through_ed(who).to_numpy()[:, None] if len(who) else np.zeros((0, 1), bool)
        reached = np.where(
            ed, self.decided.reached(elapsed, hours, edges_h), self.theatre.reached(elapsed, hours, edges_h)
        )
        return np.diff(reached, axis=1)

    def _in_ed(self, s: Situation, edges_h: Floats) -> Floats:
        """P(admitted, and in a bed in each segment) of each undecided patient."""
        who = s.in_ed
        hours = np.full(len(who), _hour(s.at, s.timezone))
        reached = self.undecided.reached(_hours_since(who["arrival_time"], s.at), hours, edges_h)
        return who["p_admission"].to_numpy("float64")[:, None] * np.diff(reached)

    def _line_of_undecided(self, s: Situation) -> Floats:
        """P(specialty given admission) of each undecided patient, moved by the recent mix."""
        columns = [f"p_{k}" for k in range(len(self.specialties))]
        share = s.in_ed[columns].to_numpy("float64") * np.array(s.mix)[None, :]
        return np.asarray(share / np.maximum(share.sum(axis=1, keepdims=True), 1e-12))

    def _planned(self, s: Situation, listed: pd.DataFrame, edges_h: Floats) -> Floats:
        """P(comes, and in a bed in each segment) of each listed patient."""
        due = -_hours_since(listed["planned_time"], s.at)
        hour = listed["planned_time"].dt.tz_convert(ZoneInfo(s.timezone)).dt.hour.to_numpy("int64")
        within = np.maximum(edges_h[None, :] - due[:, None], 0)
        table = self.streams["elective"].time_to_bed
        rows = [table.reached(np.zeros(1), hour[[i]], w)[0] for i, w in enumerate(within)]
        reached = np.stack(rows) if rows else np.zeros((0, len(edges_h)))
        return s.list_kept * np.diff(reached, axis=1)

    def _to_come(self, s: Situation, edges: Sequence[pd.Timestamp]) -> tuple[Floats, pd.Series]:
        """Expected arrivals who reach a bed, (doors, days, specialties, segments), and the local days."""
        spans = _spans(s.at, edges[-1])
        calendar = self._calendar(spans, s.timezone, s.covariates)
        hour = calendar["hour_of_day"].to_numpy("int64")
        day, dates = pd.factorize(calendar["local_date"])
        onto_day = np.eye(len(dates))[day]
        out = []
        for name, stream in self.streams.items():
            rate = stream.rate.rate(calendar) * spans["hours"].to_numpy() * s.level[name]
            if name == "elective" and s.listed is not None:
                rate = np.where(calendar["local_date"] <= _listed_until(s), 0.0, rate)
            mix = np.array(stream.mix) * (np.array(s.mix) if name == "emergency" else 1.0)
            mix = mix / mix.sum(axis=1, keepdims=True)
            reached = np.diff(_reached_after(stream.time_to_bed, spans, hour, edges), axis=1)
            by_hour = (rate * np.array(stream.admitted)[hour])[:, None] * mix[hour]
            out.append(np.einsum("hd,hk,hs->dks", onto_day, by_hour, reached, optimize=True))
        return np.stack(out), pd.Series(dates)

    def _day_factors(
        self, s: Situation, days: pd.Series, rng: np.random.Generator, draws: int
    ) -> tuple[Floats, Floats]:
        """Draws of what all arrivals of a door and day share, (draws, doors, days), and its mean, (doors, days)."""
        here = s.at.tz_convert(ZoneInfo(s.timezone)).tz_localize(None).normalize()
        factor = np.ones((draws, len(self.streams), len(days)))
        mean = np.ones(factor.shape[1:])
        for door, (name, stream) in enumerate(self.streams.items()):
            spread = stream.rate.dispersion
            if spread <= 0:
                continue
            for k, date_ in enumerate(days):
                seen, expected = s.today[name] if date_ == here else (0.0, 0.0)
                factor[:, door, k] = day_effect(spread, seen, expected, rng, draws)
                mean[door, k] = (1 / spread + seen) / (1 / spread + expected)
        return factor, mean


def door_of(visits: pd.DataFrame) -> npt.NDArray[np.object_]:
    """Which of :data:`DOORS` each visit came through."""
    mode = visits["arrival_mode"].to_numpy("str")
    return np.where(np.isin(mode, ("elective", "transfer")), mode, "emergency").astype(object)


def _fates(
    stays: StayHazard,
    moves: Moves,
    line: Ints,
    stay_h: Floats,
    start_h: Floats | None,
    s: Situation,
    edges_h: Floats,
) -> Floats:
    """P(leaves in each segment), then P(moves in each segment), of people in beds; (n, 2 segments).

    Both end a spell: while somebody is there, moves come at their line's constant rate beside the discharges.
    """
    gone = stays.leaving(line, stay_h, *_clock_ahead(s, edges_h), edges_h, start_h)
    begin = np.zeros(len(line)) if start_h is None else start_h
    spent = np.maximum(edges_h[None, :] - begin[:, None], 0.0)
    rate = np.array(moves.rate)[line][:, None]
    still = (1.0 - gone) * np.exp(-rate * spent)
    ended = np.diff(1.0 - still, axis=1)
    leaving = np.diff(-np.log(np.maximum(1.0 - gone, 1e-12)), axis=1)
    moving = rate * np.diff(spent, axis=1)
    share = moving / np.maximum(leaving + moving, 1e-300)
    return np.concatenate([ended * (1 - share), ended * share], axis=1)


def _after(stays: StayHazard, moves: Moves, n_lines: int, s: Situation, edges_h: Floats) -> Floats:
    """Fates of somebody who reaches a bed of a line in a segment, averaged over four moments of it."""
    n_segments = len(edges_h) - 1
    parts = np.array([0.125, 0.375, 0.625, 0.875])
    start = edges_h[:-1, None] + parts[None, :] * np.diff(edges_h)[:, None]
    line = np.repeat(np.arange(n_lines), start.size)
    begin = np.tile(start.ravel(), n_lines)
    fates = _fates(stays, moves, line, np.zeros(len(line)), begin, s, edges_h)
    return np.asarray(fates.reshape(n_lines, n_segments, len(parts), -1).mean(axis=2))


def _reached_after(
    time_to_bed: TimeTo, spans: pd.DataFrame, hour: Ints, edges: Sequence[pd.Timestamp]
) -> Floats:
    """P(bed by each edge) of somebody who arrives inside each span, averaged over two moments of the span."""
    start = micros(spans["start"])
    ends = np.array([e.value // 1000 for e in edges], dtype="int64")
    out = np.zeros((len(spans), len(edges)))
    part_now = part_of_day(hour)
    for share in (0.25, 0.75):
        arrival = start + (spans["hours"].to_numpy() * share * HOUR_US).astype("int64")
        for part in np.unique(part_now):
            rows = np.flatnonzero(part_now == part)
            within = np.maximum((ends[None, :] - arrival[rows, None]) / HOUR_US, 0)
            flat = time_to_bed.reached(np.zeros(1), hour[rows[:1]], within.ravel())[0]
            out[rows] += flat.reshape(within.shape) / 2
    return out


def _daily(times: pd.Series, group: Ints, n: int, days: pd.Series, zone: ZoneInfo) -> Ints:
    """Counts by local day and group, (n_days, n); of no group (-1, or n and above) and of no day are left out."""
    local = times.dt.tz_convert(zone).dt.tz_localize(None).dt.normalize()
    day = (local - days.iloc[0]).dt.days.fillna(-1).to_numpy("int64")
    kept = (day >= 0) & (day < len(days)) & (group >= 0) & (group < n)
    return np.bincount(day[kept] * n + group[kept], minlength=len(days) * n).reshape(len(days), n)


def _last_known(covariates: pd.DataFrame, now: pd.Timestamp, timezone: str) -> dict[str, float]:
    """Each outside series as known now; what is not known is left out."""
    today = pd.Series([now.tz_convert(ZoneInfo(timezone)).tz_localize(None).normalize()])
    row = census.lagged_covariates(covariates, today).iloc[0]
    return {str(name): float(value) for name, value in row.items() if not np.isnan(value)}


def _none_listed() -> pd.DataFrame:
    return pd.DataFrame({"planned_time": pd.Series(dtype=UTC_US), "specialty": pd.Series(dtype="str")})


def _listed(
    elective: pd.DataFrame | None, visits: pd.DataFrame, now: pd.Timestamp
) -> tuple[pd.DataFrame | None, float]:
    """Who on the list is still to come, and the share of those listed before who came."""
    if elective is None or elective.empty:
        return None, 1.0
    due = elective["planned_time"]
    first = max(due.min(), now - timedelta(days=LEVEL_DAYS))
    before = int(((due >= first) & (due <= now)).sum())
    came = census.count_between(visits.loc[door_of(visits) == "elective", "arrival_time"], first, now)
    kept = (min(came, before) + LIST_WEIGHT) / (before + LIST_WEIGHT) if first < now else 1.0
    ahead = elective[due > now].reset_index(drop=True)
    return (ahead if len(ahead) else None), float(kept)


def _listed_until(s: Situation) -> pd.Timestamp:
    """The last local day the elective list covers."""
    assert s.listed is not None  # noqa: S101 - asked only where there is a list
    last = pd.Timestamp(s.listed["planned_time"].max()).tz_convert(ZoneInfo(s.timezone))
    return last.tz_localize(None).normalize()


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


def _padded(share: Floats, n_lines: int) -> Floats:
    """Columns filled up with zeros to ``n_lines``."""
    short = n_lines - share.shape[1]
    return np.pad(share, [(0, 0), (0, short)]) if short else share


# ------------------------------------------------------------ the forecast


@dataclass(frozen=True)
class Cell:
    """One statement: a level (specialty or hospital) in one window.

    ``needed`` is how many reach a bed, ``discharges`` how many leave the hospital, ``net`` the first minus the second,
    moves between specialties counted in, ``occupied_after`` the beds taken at the window's end. Distributions are
    corrected, ``parts`` are exact means that add up over levels and over flows.
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
        return sum(self.parts[f] for f in ENTERING)

    @property
    def net_mean(self) -> float:
        """Expected change of occupied beds."""
        return self.needed_mean + self.parts["moved_in"] - self.parts["moved_out"] - self.parts["discharges"]

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
    into = np.sum([futures.draws[f] for f in ENTERING], axis=0)
    left = futures.draws["discharges"]
    net = into + futures.draws["moved_in"] - futures.draws["moved_out"] - left
    cells = []
    for window in windows:
        inside = futures.inside(window)
        until = np.array([e <= window.end for e in futures.edges[1:]])
        means = {f: _levels(futures.means[f][None][:, :, inside])[0] for f in FLOWS}
        drawn = {
            "needed": _levels(into[:, :, inside]),
            "discharges": _levels(left[:, :, inside]),
            "net": _levels(net[:, :, inside]),
            "occupied": np.maximum(now["beds"] + _levels(net[:, :, until]), 0),
        }
        for k, level in enumerate(names):
            said = {
                what: model.correction(what, window.key, level).apply(Counts.of_samples(some[:, k]))
                for what, some in drawn.items()
            }
            cells.append(
                Cell(
                    level=level,
                    window=window.key,
                    parts={f: float(means[f][k]) for f in FLOWS},
                    needed=said["needed"],
                    discharges=said["discharges"],
                    net=said["net"],
                    occupied_after=said["occupied"],
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
