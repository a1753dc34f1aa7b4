"""Issue bed forecasts as they would have been issued, and judge them by what came.

At each forecast time the visits are cut to what was known then. Every forecast and its outcome become one row, so that
coverage, CRPS, pinball loss and skill against the same-weekday mean are all read from one table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd
from joblib import Parallel, delayed

from features.clock import micros
from features.sources.moves import located_at, no_moves, spells
from features.sources.visits import known_at
from features.windows import FlatEvents
from models.beds import (
    HOSPITAL,
    OTHER,
    SPECIALTY,
    UNKNOWN,
    AdmissionModel,
    BedModel,
    Cell,
    Window,
    assemble,
    checked_windows,
    windows_at,
)
from models.forecast import (
    LEVELS,
    TAIL,
    Counts,
    Recalibration,
    cramer_von_mises,
    pit_coverage,
    randomised_pit,
)
from training import baselines
from training.flows import grouped

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

HISTORY: Final = timedelta(days=64)
"""How much of the past a forecast is shown: what the present level, mix and surges are read from."""
SEED: Final = 11
DRAWS: Final = 1000
SAID: Final = ("needed", "discharges", "net", "occupied")
INTERVALS: Final = (0.5, 0.8, 0.9)
RESAMPLES: Final = 400
MISCALIBRATED: Final = 0.461
"""W² of Cramer and von Mises above which PIT values are not uniform, at the 5 % level."""
CAUTION: Final = 4.0
"""As many times the evidence is asked for before a statement becomes narrower: twelve weeks may have been quiet by
chance, and the beds of a louder one would be missing."""
LEVEL_WEIGHT_DAYS: Final = 200.0
"""Days' worth of belief that a specialty needs the correction that all of them need together."""


def forecast_times(
    first: pd.Timestamp, last: pd.Timestamp, huddles: Sequence[str], timezone: str
) -> list[pd.Timestamp]:
    """Every local huddle time from ``first`` on; the furthest window, a week ahead, closes before ``last``."""
    zone = ZoneInfo(timezone)
    days = pd.date_range(
        first.tz_convert(zone).tz_localize(None).normalize(), last.tz_convert(zone).tz_localize(None)
    )
    walls = [day + pd.Timedelta(f"{clock}:00") for day in days for clock in huddles]
    stamps = [
        w.tz_localize(zone, ambiguous=True, nonexistent="shift_forward").tz_convert("UTC") for w in walls
    ]
    return [t for t in stamps if t >= first and max(w.end for w in windows_at(t, timezone)) <= last]


def run(
    visits: pd.DataFrame,
    events: FlatEvents,
    model: BedModel,
    scorer: AdmissionModel,
    times: Sequence[pd.Timestamp],
    timezone: str,
    moves: pd.DataFrame | None = None,
    covariates: pd.DataFrame | None = None,
    threads: int = 1,
) -> pd.DataFrame:
    """One row for each forecast time, level, window and statement.

    The days after tomorrow are forecast at the first time of each local day only.

    Parameters
    ----------
    visits : DataFrame
        All visits, outcomes included; each forecast sees only what was known at its time.
    events : FlatEvents
        Cleaned events with visit events.
    moves, covariates : DataFrame, optional
        :mod:`features.sources.moves`, :mod:`features.sources.outlook`.
    threads : int
        Processes that share the forecast times; each time has draws of its own, so that their number changes nothing.

    Returns
    -------
    DataFrame with ``at, day, level, window, what, mean, outcome, baseline`` (same-weekday mean, ``needed`` only),
    ``forecast`` (a :class:`models.forecast.Counts`), its randomised ``pit`` and the scores that :func:`judge` averages.
    """
    moves = no_moves() if moves is None else moves
    issuing = _Issuing(visits, events, model, scorer, timezone, moves, covariates)
    plan = _planned(times, timezone)
    if threads == 1 or len(plan) < WORTH_SHARING:
        return issuing.scored(plan)
    edges = [len(plan) * k // threads for k in range(threads + 1)]
    done = Parallel(n_jobs=threads)(delayed(issuing.scored)(plan[a:b]) for a, b in pairwise(edges))
    scored: pd.DataFrame = pd.concat(done, ignore_index=True)
    return scored


WORTH_SHARING: Final = 60
"""Fewer forecast times are issued before another process has woken."""


def _planned(times: Sequence[pd.Timestamp], timezone: str) -> list[tuple[pd.Timestamp, tuple[Window, ...]]]:
    """Each forecast time with its windows; days after tomorrow only at the first time of a local day."""
    plan, before = [], None
    for at in times:
        windows = checked_windows(at, timezone)
        today = at.tz_convert(timezone).date()
        if today == before:
            windows = tuple(w for w in windows if not w.key.startswith("day_"))
        before = today
        plan.append((at, windows))
    return plan


@dataclass(frozen=True)
class _Issuing:
    """All visits of a hospital and its model: what a process needs to issue forecasts and to judge them."""

    visits: pd.DataFrame
    events: FlatEvents
    model: BedModel
    scorer: AdmissionModel
    timezone: str
    moves: pd.DataFrame
    covariates: pd.DataFrame | None

    def scored(self, plan: Sequence[tuple[pd.Timestamp, tuple[Window, ...]]]) -> pd.DataFrame:
        """Every statement of some forecast times, and how it did."""
        outcomes = Outcomes.of(self.visits, self.model.specialties, self.moves)
        rows: list[dict[str, Any]] = []
        for at, windows in plan:
            # Draws of its own for each time: how many processes share them, and in which order, changes nothing.
            rng = np.random.default_rng([SEED, at.value // 10**9])
            cells = [c for c in self._cells(at, windows, rng) if c.level != UNKNOWN]
            some = _judged(cells, {w.key: w for w in windows}, outcomes, at, self.timezone)
            rows += [row | {"u": u} for row, u in zip(some, rng.random(len(some)), strict=True)]
        return _scored(pd.DataFrame(rows))

    def _cells(self, at: pd.Timestamp, windows: Sequence[Window], rng: np.random.Generator) -> list[Cell]:
        """The forecast from what was known at its time."""
        visits, model = self.visits, self.model
        there = visits["discharge_time"].isna() | (visits["discharge_time"] > at)
        seen = known_at(visits[there | (visits["arrival_time"] > at - HISTORY)], at)
        seen = located_at(seen, self.moves, at)
        situation = model.situation(
            seen, self.events, self.scorer, at, self.timezone, covariates=self.covariates
        )
        return assemble(model, situation, model.futures(situation, windows, rng, DRAWS), windows, None)


@dataclass(frozen=True)
class Outcomes:
    """When beds were reached, left and changed for another specialty, by level: sorted int64 µs.

    Any window is then two searches.
    """

    reached: dict[str, Ints]
    left: dict[str, Ints]
    moved_in: dict[str, Ints]
    moved_out: dict[str, Ints]

    @classmethod
    def of(cls, visits: pd.DataFrame, specialties: Sequence[str], moves: pd.DataFrame) -> Outcomes:
        """From all visits, the hospital as a level of its own."""
        stays = spells(visits, moves)
        for column in ("specialty", "next"):
            stays[column] = grouped(stays[column], specialties)
        if OTHER in specialties:  # as the model counts them
            stays["specialty"] = stays["specialty"].replace("", OTHER)
        home = stays[stays["next"] == ""]
        moved = stays[stays["next"] != ""]
        began = _first_spells(visits, specialties)
        return cls(
            _by_level(began, "specialty", "admission_time", specialties),
            _by_level(home, "specialty", "end", specialties),
            _by_level(moved, "next", "end", specialties),
            _by_level(moved, "specialty", "end", specialties),
        )

    def between(self, times: Ints, start: pd.Timestamp, end: pd.Timestamp) -> int:
        """How many in ``(start, end]``."""
        low, high = np.searchsorted(times, [start.value // 1000, end.value // 1000], side="right")
        return int(high - low)

    def net(self, level: str, start: pd.Timestamp, end: pd.Timestamp) -> int:
        """Change of beds taken in ``(start, end]``."""
        gained = self.between(self.reached[level], start, end) + self.between(
            self.moved_in[level], start, end
        )
        lost = self.between(self.left[level], start, end) + self.between(self.moved_out[level], start, end)
        return gained - lost

    def taken(self, level: str, at: pd.Timestamp) -> int:
        """Beds taken at an instant."""
        return self.net(level, pd.Timestamp(0, tz="UTC"), at)


def _first_spells(visits: pd.DataFrame, specialties: Sequence[str]) -> pd.DataFrame:
    bedded = visits.loc[visits["admission_time"].notna(), ["specialty", "admission_time"]]
    named = grouped(bedded["specialty"], specialties)
    return bedded.assign(specialty=named.replace("", OTHER) if OTHER in specialties else named)


def _by_level(rows: pd.DataFrame, level: str, time: str, specialties: Sequence[str]) -> dict[str, Ints]:
    some = {name: rows[rows[level] == name] for name in specialties} | {HOSPITAL: rows}
    return {k: np.sort(micros(v[time].dropna())) for k, v in some.items()}


def _judged(
    cells: Sequence[Cell], windows: dict[str, Window], outcomes: Outcomes, at: pd.Timestamp, timezone: str
) -> list[dict[str, Any]]:
    rows = []
    before = {key: baselines.same_window_before(w.start, w.end, timezone) for key, w in windows.items()}
    for cell in cells:
        window = windows[cell.window]
        reached = outcomes.reached[cell.level]
        into = outcomes.between(reached, window.start, window.end)
        out = outcomes.between(outcomes.left[cell.level], window.start, window.end)
        net = outcomes.net(cell.level, window.start, window.end)
        taken = outcomes.taken(cell.level, window.end)
        usual = float(np.mean([outcomes.between(reached, a, b) for a, b in before[cell.window]]))
        day = window.end.tz_convert(timezone).date()
        base = {"at": at, "day": day, "level": cell.level, "window": cell.window, "baseline": usual}
        said = zip(
            SAID,
            (cell.needed, cell.discharges, cell.net, cell.occupied_after),
            (cell.needed_mean, cell.parts["discharges"], cell.net_mean, cell.occupied_after.mean),
            (into, out, net, taken),
            strict=True,
        )
        rows += [base | {"what": w, "forecast": f, "mean": m, "outcome": y} for w, f, m, y in said]
    return rows


def corrections(table: pd.DataFrame) -> dict[str, Recalibration]:
    """Conformal corrections from forecasts of calibration days: of each statement, window and level.

    A specialty's correction is pulled towards that of all specialties together, and both towards none.
    """
    fitted = {}
    for (what, window), some in table.groupby(["what", "window"]):
        whole = some["level"] == HOSPITAL
        fitted[f"{what}/{window}/{HOSPITAL}"] = _correction(some[whole])
        pooled = _correction(some[~whole])
        fitted[f"{what}/{window}/{SPECIALTY}"] = pooled
        for level, own in some[~whole].groupby("level"):
            fitted[f"{what}/{window}/{level}"] = _correction(own, LEVEL_WEIGHT_DAYS, pooled)
    return fitted


def _correction(
    some: pd.DataFrame, weight: float = 100.0, prior: Recalibration | None = None
) -> Recalibration:
    return Recalibration.fit(some["pit"].to_numpy("float64"), some["day"].nunique(), weight, prior, CAUTION)


def judge(table: pd.DataFrame) -> dict[str, Any]:
    """How good the forecasts were, by statement, window and kind of level, with intervals by resampled days."""
    out: dict[str, Any] = {}
    for (what, window, kind), some in table.groupby(["what", "window", "kind"], sort=False):
        out.setdefault(str(what), {}).setdefault(str(window), {})[str(kind)] = _figures(some)
    needed = table[table["what"] == "needed"]
    out["by_level"] = {
        str(window): {str(level): _figures(rows) for level, rows in some.groupby("level", sort=False)}
        for window, some in needed.groupby("window", sort=False)
    }
    clock = needed["at"].dt.strftime(
        "%H:%M"
    )  # one forecast a day in each cell: those of one day are not independent
    cells = needed.groupby(["level", "window", clock])["pit"].apply(
        lambda p: cramer_von_mises(p.to_numpy("float64"))
    )
    high = cells > MISCALIBRATED
    out["rpit"] = {
        "cells": len(cells),
        "miscalibrated": int(high.sum()),
        "by_window": {str(w): [int(h.sum()), len(h)] for w, h in high.groupby(level="window", sort=False)},
    }
    return out


def _scored(table: pd.DataFrame) -> pd.DataFrame:
    outcomes, needed = table["outcome"].to_numpy("int64"), (table["what"] == "needed").to_numpy()
    scores = [_score(f, int(y)) for f, y in zip(table["forecast"], outcomes, strict=True)]
    mine = pd.DataFrame(scores, columns=["crps", "pinball", "floor_kept", "covered"], index=table.index)
    rivals = [
        _score(_poisson(float(m)), int(y))[:2] if n else (np.nan, np.nan)
        for n, m, y in zip(needed, table["baseline"], outcomes, strict=True)
    ]
    usual = pd.DataFrame(rivals, columns=["usual_crps", "usual_pinball"], index=table.index)
    drawn = zip(table["forecast"], outcomes, table["u"], strict=True)
    return pd.concat([table.drop(columns="u"), mine, usual], axis=1).assign(
        kind=np.where(table["level"] == HOSPITAL, HOSPITAL, SPECIALTY),
        pit=[randomised_pit(f, int(y), float(u)) for f, y, u in drawn],
        error=np.abs(table["mean"] - outcomes),
        usual_error=np.where(needed, np.abs(table["baseline"] - outcomes), np.nan),
    )


@lru_cache(maxsize=4096)
def _poisson(mean: float) -> Counts:
    """The baseline's distribution; its means are sixths of whole numbers and come again and again."""
    return baselines.same_weekday_poisson(mean)


def _score(forecast: Counts, outcome: int) -> tuple[float, float, bool, bool]:
    """CRPS, mean pinball loss over the reported quantiles, and whether floor (90 %) and cover (95 %) held.

    The same as :func:`models.forecast.crps` and its fellows, with the distribution summed up once.
    """
    cdf = np.cumsum(forecast.pmf)
    place = outcome - forecast.lowest
    beyond = float(max(-place, place - len(cdf) + 1, 0))
    above = np.arange(len(cdf)) >= place
    crps = float(((cdf - above) ** 2)[:-1].sum()) + beyond
    at = np.searchsorted(cdf, (*(level - TAIL for level in LEVELS), 1 - 0.9 + TAIL), side="left")
    quantile = forecast.lowest + np.minimum(at, len(cdf) - 1)
    error = outcome - quantile[:-1]
    loss = np.maximum(np.array(LEVELS) * error, (np.array(LEVELS) - 1) * error)
    return crps, float(loss.mean()), bool(outcome >= quantile[-1]), bool(outcome <= quantile[-2])


def _figures(some: pd.DataFrame) -> dict[str, Any]:
    """Figures of one cell; intervals resample days, since the forecasts of one day share its fate."""
    pit = some["pit"].to_numpy("float64")
    out: dict[str, Any] = {
        "forecasts": len(some),
        "days": int(some["day"].nunique()),
        "outcome_mean": float(some["outcome"].mean()),
        "mae": float(some["error"].mean()),
        "crps": float(some["crps"].mean()),
        "pinball": float(some["pinball"].mean()),
        "floor_90_kept": float(some["floor_kept"].mean()),
        "cover_95_kept": float(some["covered"].mean()),
    }
    for level in INTERVALS:
        hit = np.abs(pit - 0.5) <= level / 2
        out[f"coverage_{round(level * 100)}"] = pit_coverage(pit, level)
        out[f"coverage_{round(level * 100)}_interval"] = _interval(some["day"], hit.astype("float64"), None)
    if some["usual_crps"].notna().all():
        mine, usual = some["crps"].to_numpy("float64"), some["usual_crps"].to_numpy("float64")
        out |= {
            "same_weekday_mae": float(some["usual_error"].mean()),
            "same_weekday_crps": float(usual.mean()),
            "same_weekday_pinball": float(some["usual_pinball"].mean()),
            "crps_skill": 1 - float(mine.mean() / usual.mean()) if usual.mean() > 0 else 0.0,
            "crps_skill_interval": _interval(some["day"], mine, usual),
        }
    return out


def _interval(day: pd.Series, value: Floats, against: Floats | None) -> list[float]:
    """95 % bootstrap interval by days of the mean of ``value``, or of 1 - mean(value) / mean(against)."""
    code, days = pd.factorize(day)
    total, n = np.bincount(code, weights=value), np.bincount(code)
    other = np.bincount(code, weights=against) if against is not None else n
    rng = np.random.default_rng(SEED)
    picked = rng.integers(0, len(days), (RESAMPLES, len(days)))
    below = np.maximum(other[picked].sum(axis=1), 1e-12)
    ratio = total[picked].sum(axis=1) / below
    low, high = np.quantile(ratio if against is None else 1 - ratio, [0.025, 0.975])
    return [float(low), float(high)]
