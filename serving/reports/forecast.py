"""The bed forecast as a bed manager reads it: figures, words, freshness, and whether earlier forecasts came true.

:func:`forecast_beds` is a pure function of tables; the page, the JSON and the file are made from what it returns. No
patient appears in any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from features import census
from features.errors import DataError
from features.sources.moves import located_at
from features.sources.outlook import Outlook
from features.sources.visits import VISIT_COLUMNS, known_at, visit_events
from features.windows import FlatEvents
from models.beds import (
    HOSPITAL,
    OTHER,
    UNKNOWN,
    BedModel,
    Cell,
    Situation,
    Window,
    assemble,
    in_ed_beds,
    windows_at,
)
from models.bundle import Bundle
from models.draws import FLOWS
from models.forecast import LEVELS, Counts, in_words
from models.surge import Surge

RECORD_DAYS: Final = 14
RECORD_DRAWS: Final = 1000
SILENT_ARRIVALS: Final = 12.0
"""So many arrivals due and none heard of: by chance once in 160,000 times."""
STALE_OBSERVATION: Final = timedelta(hours=3)
LOST: Final = timedelta(hours=24)
"""Undecided for longer: most likely the departure was never sent."""
STRANGE: Final = 0.05
"""Share of patients with a specialty the model does not know from which on its lines mean little."""
NAMED: Final = 5
SURE: Final = 0.9
COVERED: Final = 0.95
SPREAD: Final = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class Freshness:
    """How far the forecast can be trusted to know the present."""

    newest_visit: pd.Timestamp | None
    newest_observation: pd.Timestamp | None
    silent: tuple[str, ...] = ()
    """What makes the forecast unfit to plan on."""
    notes: tuple[str, ...] = ()
    """What a reader should know."""


@dataclass(frozen=True, slots=True)
class Past:
    """One earlier forecast of a whole day's beds, and what came."""

    day: str
    low: int
    lower: int
    middle: int
    upper: int
    high: int
    outcome: int

    @property
    def inside(self) -> bool:
        """Whether the outcome lay between the 5 % and the 95 % quantile."""
        return self.low <= self.outcome <= self.high


@dataclass(frozen=True)
class SurgeReport:
    """A surge, and the forecast without it: ``without`` has the keys of :attr:`BedForecast.cells`."""

    surge: Surge
    without: Mapping[tuple[str, str], Cell]

    def words(self, cells: Sequence[Cell]) -> tuple[str, ...]:
        """What is under way, and what tomorrow would need without it."""
        now = next(c for c in cells if (c.level, c.window) == (HOSPITAL, "tomorrow"))
        usual = self.without[HOSPITAL, "tomorrow"]
        return (
            self.surge.words(),
            f"Without it tomorrow would need {usual.needed_mean:.0f} beds instead of {now.needed_mean:.0f}.",
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the surge, and expected beds by level and window without it."""
        s = self.surge
        return {
            "since": str(s.since.date()),
            "times_usual": s.times,
            "age_group": s.age_group or None,
            "age_group_times_usual": s.age_times,
            "unit": s.unit or None,
            "unit_times_usual": s.unit_times,
            "words": s.words(),
            "without": [
                {"level": level, "window": window, "needed": _counts(c.needed, c.needed_mean)}
                for (level, window), c in self.without.items()
            ],
        }


@dataclass(frozen=True)
class BedForecast:
    """Everything the report says.

    Attributes
    ----------
    cells : mapping of (level, window key) to Cell
        Levels are the specialties in the model's order, ``other or unknown`` while somebody in a bed or waiting for
        one has a specialty the model does not know, then ``hospital``, their sum.
    in_ed : Counts
        How many of the undecided will be admitted at all: exact.
    record : tuple of Past
        Tomorrow's forecasts of earlier days, made again with what was known then; oldest first.
    """

    at: pd.Timestamp
    timezone: str
    model_id: str
    origin: str
    windows: tuple[Window, ...]
    levels: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    in_ed: Counts
    in_ed_now: int
    freshness: Freshness
    record: tuple[Past, ...] = ()
    surge: SurgeReport | None = None

    def cell(self, level: str, window: str) -> Cell:
        """One statement."""
        return self.cells[level, window]

    def window(self, key: str) -> Window:
        """One span of time, by its key."""
        return next(w for w in self.windows if w.key == key)

    @property
    def simulated(self) -> bool:
        """Whether the model learned from simulated patients, and so knows nothing of any hospital."""
        return any(word in self.origin.lower() for word in ("simulat", "synthetic"))

    def words(self, level: str, window: str) -> str:
        """Both ways: "at least 12 (90 % sure); 22 beds cover it 95 times in 100"."""
        needed = self.cell(level, window).needed
        return in_words(needed.floor(SURE), needed.cover(COVERED), SURE, COVERED)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of ``GET /v1/forecast/beds``; instants in UTC."""
        fresh = self.freshness
        return {
            "at": iso(self.at),
            "timezone": self.timezone,
            "model": self.model_id,
            "trained_on": self.origin,
            "degraded": list(fresh.silent),
            "notes": list(fresh.notes),
            "surge": None if self.surge is None else self.surge.to_dict(),
            "newest_visit": iso(fresh.newest_visit),
            "newest_observation": iso(fresh.newest_observation),
            "in_ed": {"patients": self.in_ed_now, "will_be_admitted": _counts(self.in_ed)},
            "windows": [
                {"key": w.key, "label": w.label, "start": iso(w.start), "end": iso(w.end)} for w in self.windows
            ],
            "levels": [self._level(level) for level in self.levels],
            "record": [
                {"day": p.day, "q05": p.low, "q25": p.lower, "q50": p.middle, "q75": p.upper, "q95": p.high,
                 "outcome": p.outcome} for p in self.record
            ],
        }  # fmt: skip

    def _level(self, level: str) -> dict[str, Any]:
        first = self.cell(level, self.windows[0].key)
        return {
            "level": level,
            "waiting_now": first.waiting_now,
            "occupied_now": first.occupied_now,
            "open_beds": first.open_beds,
            "windows": {w.key: self._statement(level, w.key) for w in self.windows},
        }

    def _statement(self, level: str, window: str) -> dict[str, Any]:
        cell = self.cell(level, window)
        return {
            "expected": {name: cell.parts[name] for name in FLOWS},
            "needed": _counts(cell.needed, cell.needed_mean) | {"words": self.words(level, window)},
            "discharges": _counts(cell.discharges, cell.parts["discharges"]),
            "net": _counts(cell.net, cell.net_mean),
            "occupied_after": _counts(cell.occupied_after),
            "probability_over_92": cell.over(0.92),
            "probability_over_95": cell.over(0.95),
            "probability_short": cell.short,
        }


def _counts(counts: Counts, mean: float | None = None) -> dict[str, Any]:
    return {
        "mean": counts.mean if mean is None else mean,
        "quantiles": {f"q{round(level * 100):02d}": counts.quantile(level) for level in LEVELS},
        "at_least_90": counts.floor(SURE),
        "covers_95": counts.cover(COVERED),
    }


def iso(at: pd.Timestamp | None) -> str | None:
    """An instant as ISO 8601 in UTC, with Z."""
    return None if at is None else at.tz_convert("UTC").isoformat().replace("+00:00", "Z")


# ------------------------------------------------------------ the forecast


def forecast_beds(
    visits: pd.DataFrame,
    events: pd.DataFrame,
    bundle: Bundle,
    at: datetime,
    timezone: str,
    capacity: Mapping[str, int] | None = None,
    record_days: int = 0,
    outlook: Outlook | None = None,
) -> BedForecast:
    """Forecast the beds needed, by specialty and for the hospital.

    Parameters
    ----------
    visits : DataFrame with ``VISIT_COLUMNS``
        Whatever is known; what lies after ``at`` is not looked at.
    events : DataFrame of cleaned canonical events
        Observations of the patients in the emergency department; may be empty.
    bundle : Bundle
        An admissions bundle.
    at : aware datetime
    timezone : str
        The site's.
    capacity : mapping of specialty to open beds, optional
        Levels it does not name get no statement about running short.
    record_days : int
        For how many earlier days to make yesterday's forecast again, with what was known then, beside the outcome.
    outlook : Outlook, optional
        Moves between specialties, the elective list and daily series from outside.

    Raises
    ------
    DataError
        ``at`` has no time zone, or the visits lack a column.
    SpecError
        The bundle is of another product.
    """
    model = BedModel.of(bundle)
    windows = windows_at(at, timezone)
    now = windows[0].start
    visits = normal_visits(visits)
    beside = Outlook() if outlook is None else outlook
    seen = located_at(known_at(visits, now), beside.moves, now)
    present = census.undecided(seen, now)["encounter_id"]
    theirs = events[events["encounter_id"].isin(present)]
    situation = model.situation(seen, theirs, bundle, now, timezone, beside.elective, beside.covariates)
    futures = model.futures(situation, windows, _rng(now))
    cells = assemble(model, situation, futures, windows, capacity)
    surge = _surge(model, situation, windows)
    fresh = _freshness(seen, theirs, situation, model)
    past = (
        _record(visits, events, bundle, model, now, timezone, record_days, beside.covariates)
        if record_days
        else ()
    )
    return BedForecast(
        at=now,
        timezone=timezone,
        model_id=bundle.model_id,
        origin=str(bundle.parts["data"].get("origin", "unknown")),
        windows=windows,
        levels=(*model.lines(situation), HOSPITAL),
        cells={(c.level, c.window): c for c in cells},
        in_ed=in_ed_beds(situation),
        in_ed_now=len(situation.in_ed),
        freshness=fresh if surge is None else replace(fresh, notes=(*surge.words(cells), *fresh.notes)),
        record=past,
        surge=surge,
    )


def _surge(model: BedModel, situation: Situation, windows: tuple[Window, ...]) -> SurgeReport | None:
    """The surge that is under way, if one is, and the forecast as it would be without it."""
    if situation.surge is None:
        return None
    calm = situation.without_surge()
    usual = assemble(model, calm, model.futures(calm, windows, _rng(situation.at)), windows, None)
    return SurgeReport(situation.surge, {(c.level, c.window): c for c in usual})


def normal_visits(visits: pd.DataFrame) -> pd.DataFrame:
    """Visits with every column there and empty text instead of missing text."""
    absent = [c for c in VISIT_COLUMNS if c not in visits.columns]
    if absent:
        raise DataError(f"The visits lack {', '.join(absent)}. Read them with features.sources.visits.read.")
    texts = ("encounter_id", "subject_id", "specialty", "unit", "sex", "arrival_mode")
    return visits[list(VISIT_COLUMNS)].assign(**{c: _filled(visits[c]) for c in texts})


def _filled(texts: pd.Series) -> pd.Series:
    if texts.dtype == "str":
        return texts.fillna("")
    return texts.astype("object").where(texts.notna(), "").astype("str")


def _rng(at: pd.Timestamp) -> np.random.Generator:
    """The same moment draws the same futures."""
    return np.random.default_rng(at.value // 1_000_000_000)


def _record(
    visits: pd.DataFrame, events: pd.DataFrame, bundle: Bundle, model: BedModel, now: pd.Timestamp, timezone: str,
    days: int, covariates: pd.DataFrame | None,
) -> tuple[Past, ...]:  # fmt: skip
    """Forecasts of whole days, made again at this clock time of the day before each, for the days that have passed.

    Covariates are read as known then. The elective list is not: what it said on earlier days is not kept, so that the
    usual rate of electives stands in for it. Moves change no day's beds needed of the whole hospital.
    """
    flat = bundle.spec.features.flatten(pd.concat([events, visit_events(visits)], ignore_index=True))
    wall = now.tz_convert(ZoneInfo(timezone)).tz_localize(None)
    first = visits.loc[visits["admission_time"].isna(), "arrival_time"].min()
    out = []
    for back in range(days + 1, 1, -1):
        then = (wall - pd.Timedelta(days=back)).tz_localize(
            ZoneInfo(timezone), ambiguous=True, nonexistent="shift_forward"
        )
        then = then.tz_convert("UTC")
        if pd.isna(first) or then < first + pd.Timedelta(days=7):
            continue
        out.append(_past(visits, flat, bundle, model, then, timezone, covariates))
    return tuple(out)


def _past(
    visits: pd.DataFrame,
    events: FlatEvents,
    bundle: Bundle,
    model: BedModel,
    then: pd.Timestamp,
    timezone: str,
    covariates: pd.DataFrame | None,
) -> Past:
    window = next(w for w in windows_at(then, timezone) if w.key == "tomorrow")
    situation = model.situation(known_at(visits, then), events, bundle, then, timezone, covariates=covariates)
    futures = model.futures(situation, [window], _rng(then), RECORD_DRAWS)
    needed = assemble(model, situation, futures, [window], None)[-1].needed
    low, lower, middle, upper, high = (needed.quantile(level) for level in SPREAD)
    outcome = census.count_between(visits["admission_time"], window.start, window.end)
    return Past(str(window.start.tz_convert(timezone).date()), low, lower, middle, upper, high, outcome)


# ------------------------------------------------------------ freshness


def _freshness(seen: pd.DataFrame, theirs: pd.DataFrame, situation: Situation, model: BedModel) -> Freshness:
    """``theirs`` are the events of the undecided."""
    now = situation.at
    times = ["arrival_time", "decision_time", "admission_time", "discharge_time"]
    newest = seen[times].max().max() if len(seen) else pd.NaT
    heard = theirs.loc[theirs["available_time"] <= now, "available_time"]
    newest_event = heard.max() if len(heard) else pd.NaT
    silent: list[str] = []
    notes: list[str] = []
    if pd.isna(newest):
        silent.append("No visit is known. Send encounters to POST /v1/events, or name a file of visits.")
    else:
        due = _due(model, situation, pd.Timestamp(newest))
        if due >= SILENT_ARRIVALS:
            silent.append(
                f"No news of any visit for {_span(now - newest)}, although about {due:.0f} arrivals were due. "
                "The feed of arrivals and discharges is silent; do not plan on these figures."
            )
    if len(situation.in_ed) >= 5 and (pd.isna(newest_event) or now - newest_event > STALE_OBSERVATION):
        when = "at all" if pd.isna(newest_event) else f"for {_span(now - newest_event)}"
        silent.append(
            f"No observation of the {len(situation.in_ed)} undecided patients in the emergency department {when}. "
            "Their probabilities rest on age, sex and arrival alone."
        )
    strange = model.strangers(situation, STRANGE)
    if strange:
        here = len(situation.waiting) + len(situation.inpatients)
        worst = silent if sum(strange.values()) > STRANGE * here else notes
        worst.append(_unknown(strange, here, OTHER if OTHER in model.specialties else UNKNOWN))
    notes += [*_notes(seen, situation), *_series_notes(model, situation)]
    return Freshness(_or_none(newest), _or_none(newest_event), tuple(silent), tuple(notes))


def _unknown(strange: Mapping[str, int], here: int, line: str) -> str:
    """Which specialties the model does not know, and what to do."""
    named = [f"{name} ({n})" if name else f"none given ({n})" for name, n in strange.items()]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return (
        f"{sum(strange.values())} of {here} patients in a bed or waiting for one have a specialty the model does not "
        f"know: {', '.join(named[:NAMED])}{more}. They are counted as {line}; who is still to come is spread over the "
        "model's own specialties. Train on your own visits: wardcast train admissions --source visits --input FILE."
    )


def _notes(seen: pd.DataFrame, situation: Situation) -> list[str]:
    notes = []
    passed = seen.loc[seen["admission_time"].isna() & seen["discharge_time"].notna(), "arrival_time"]
    known = situation.at - passed.min() if len(passed) else pd.Timedelta(0)
    if known < pd.Timedelta(days=7):
        notes.append(
            f"Only {known / pd.Timedelta(days=1):.0f} days of visits are known: "
            "how busy these weeks are is not judged yet."
        )
    lost = int((situation.at - situation.in_ed["arrival_time"] > LOST).sum())
    if lost:
        notes.append(
            f"{lost} undecided patients arrived more than 24 h ago; their departures may not have been sent."
        )
    return notes


def _series_notes(model: BedModel, situation: Situation) -> list[str]:
    """Outside series that the model reads and that are not known now, and those given that it does not read."""
    read = {c.name for c in model.streams["emergency"].rate.covariates}
    absent, strange = sorted(read - set(situation.covariates)), sorted(set(situation.covariates) - read)
    notes = []
    if absent:
        notes.append(f"Nothing is known of {', '.join(absent)} in the last week: taken to be as usual.")
    if strange:
        notes.append(
            f"The model was trained without {', '.join(strange)}: not read. Train with the same covariates."
        )
    return notes


def _due(model: BedModel, situation: Situation, since: pd.Timestamp) -> float:
    """Emergency arrivals expected since the newest news."""
    hours = census.hours_between(since, situation.at)
    if hours.empty:
        return 0.0
    rate = model.streams["emergency"].rate.rate(census.calendar(hours, situation.timezone, model.holidays))
    span = (situation.at - since) / pd.Timedelta(hours=1)
    return float(rate.mean() * span * situation.level["emergency"])


def _or_none(at: Any) -> pd.Timestamp | None:
    return None if pd.isna(at) else pd.Timestamp(at)


def _span(delta: pd.Timedelta) -> str:
    minutes = int(delta / pd.Timedelta(minutes=1))
    return (
        f"{minutes} min"
        if minutes < 90
        else f"{minutes / 60:.0f} h"
        if minutes < 2880
        else f"{minutes // 1440} days"
    )


def signed(n: float) -> str:
    """``+3``, ``−4``, ``0``."""
    whole = round(n)
    return f"+{whole}" if whole > 0 else f"−{-whole}" if whole < 0 else "0"
