"""Issue bed forecasts as they would have been issued, and judge them by what came.

At each forecast time the visits are cut to what was known then. Every forecast and its outcome become one row, so that
coverage, CRPS, pinball loss and skill against the same-weekday mean are all read from one table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import micros
from features.sources.visits import known_at
from features.windows import FlatEvents
from models.beds import HOSPITAL, OTHER, UNKNOWN, AdmissionModel, BedModel, Cell, Window, assemble, windows_at
from models.forecast import (
    LEVELS,
    Counts,
    Recalibration,
    cramer_von_mises,
    crps,
    pinball,
    pit_coverage,
    randomised_pit,
)
from training import baselines

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

HISTORY: Final = timedelta(days=36)
"""How much of the past a forecast is shown: what the present level is read from."""
SEED: Final = 11
DRAWS: Final = 1000
SAID: Final = ("needed", "discharges", "net", "occupied")
INTERVALS: Final = (0.5, 0.8, 0.9)
RESAMPLES: Final = 400


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
) -> pd.DataFrame:
    """One row for each forecast time, level, window and statement.

    Parameters
    ----------
    visits : DataFrame
        All visits, outcomes included; each forecast sees only what was known at its time.
    events : FlatEvents
        Cleaned events with visit events.

    Returns
    -------
    DataFrame with ``at, day, level, window, what, mean, outcome, baseline`` (same-weekday mean, ``needed`` only) and
    ``forecast`` (a :class:`models.forecast.Counts`).
    """
    rng = np.random.default_rng(SEED)
    outcomes = Outcomes.of(visits, model.specialties)
    rows: list[dict[str, Any]] = []
    for at in times:
        windows = windows_at(at, timezone)
        there = visits["discharge_time"].isna() | (visits["discharge_time"] > at)
        seen = known_at(visits[there | (visits["arrival_time"] > at - HISTORY)], at)
        situation = model.situation(seen, events, scorer, at, timezone)
        cells = assemble(model, situation, model.futures(situation, windows, rng, DRAWS), windows, None)
        cells = [c for c in cells if c.level != UNKNOWN]
        rows += _judged(cells, {w.key: w for w in windows}, outcomes, at, timezone)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Outcomes:
    """When beds were reached and left, by level: sorted int64 µs, so that any window is two searches."""

    reached: dict[str, Ints]
    left: dict[str, Ints]

    @classmethod
    def of(cls, visits: pd.DataFrame, specialties: Sequence[str]) -> Outcomes:
        """From all visits, the hospital as a level of its own."""
        bedded = visits[visits["admission_time"].notna()]
        if OTHER in specialties:  # as the model counts them
            known = bedded["specialty"].isin(specialties)
            bedded = bedded.assign(specialty=bedded["specialty"].where(known, OTHER))
        some = {name: bedded[bedded["specialty"] == name] for name in specialties} | {HOSPITAL: bedded}
        return cls(
            {k: np.sort(micros(v["admission_time"])) for k, v in some.items()},
            {k: np.sort(micros(v["discharge_time"].dropna())) for k, v in some.items()},
        )

    def between(self, times: Ints, start: pd.Timestamp, end: pd.Timestamp) -> int:
        """How many in ``(start, end]``."""
        low, high = np.searchsorted(times, [start.value // 1000, end.value // 1000], side="right")
        return int(high - low)

    def taken(self, level: str, at: pd.Timestamp) -> int:
        """Beds taken at an instant."""
        now = at.value // 1000
        came = np.searchsorted(self.reached[level], now, side="right")
        return int(came - np.searchsorted(self.left[level], now, side="right"))


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
        taken = outcomes.taken(cell.level, window.end)
        usual = float(np.mean([outcomes.between(reached, a, b) for a, b in before[cell.window]]))
        day = window.end.tz_convert(timezone).date()
        base = {"at": at, "day": day, "level": cell.level, "window": cell.window, "baseline": usual}
        said = zip(
            SAID,
            (cell.needed, cell.discharges, cell.net, cell.occupied_after),
            (cell.needed_mean, cell.parts["discharges"], cell.net_mean, cell.occupied_after.mean),
            (into, out, into - out, taken),
            strict=True,
        )
        rows += [base | {"what": w, "forecast": f, "mean": m, "outcome": y} for w, f, m, y in said]
    return rows


def corrections(table: pd.DataFrame, seed: int = SEED) -> dict[str, Recalibration]:
    """Conformal corrections of each statement, window and kind of level, from forecasts of calibration days."""
    table = table.assign(
        pit=pits(table, seed), kind=np.where(table["level"] == HOSPITAL, HOSPITAL, "specialty")
    )
    fitted = {}
    for (what, window, kind), some in table.groupby(["what", "window", "kind"]):
        fitted[f"{what}/{window}/{kind}"] = Recalibration.fit(
            some["pit"].to_numpy("float64"), some["day"].nunique()
        )
    return fitted


def pits(table: pd.DataFrame, seed: int = SEED) -> Floats:
    """Randomised PIT of each row."""
    u = np.random.default_rng(seed).random(len(table))
    said = zip(table["forecast"], table["outcome"], u, strict=True)
    return np.array([randomised_pit(f, int(y), float(v)) for f, y, v in said])


def judge(table: pd.DataFrame, seed: int = SEED) -> dict[str, Any]:
    """How good the forecasts were, by statement, window and kind of level, with intervals by resampled days."""
    table = _scored(table, seed)
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
    out["rpit"] = {"cells": len(cells), "miscalibrated": int((cells > 0.461).sum())}
    return out


def _scored(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    forecasts, outcomes = list(table["forecast"]), table["outcome"].to_numpy("int64")
    quantiles = np.array([[f.quantile(level) for level in LEVELS] for f in forecasts], "float64")
    losses = np.stack([pinball(quantiles[:, k], outcomes, level) for k, level in enumerate(LEVELS)], axis=1)
    needed = (table["what"] == "needed").to_numpy()
    means = zip(needed, table["baseline"], strict=True)
    usual = [baselines.same_weekday_poisson(float(m)) if n else None for n, m in means]
    return table.assign(
        kind=np.where(table["level"] == HOSPITAL, HOSPITAL, "specialty"),
        pit=pits(table, seed),
        crps=[crps(f, int(y)) for f, y in zip(forecasts, outcomes, strict=True)],
        pinball=losses.mean(axis=1),
        error=np.abs(table["mean"] - outcomes),
        floor_kept=[y >= f.floor(0.9) for f, y in zip(forecasts, outcomes, strict=True)],
        covered=[y <= f.cover(0.95) for f, y in zip(forecasts, outcomes, strict=True)],
        usual_crps=[np.nan if f is None else crps(f, int(y)) for f, y in zip(usual, outcomes, strict=True)],
        usual_pinball=[
            np.nan if f is None else _pinball(f, int(y)) for f, y in zip(usual, outcomes, strict=True)
        ],
        usual_error=np.where(needed, np.abs(table["baseline"] - outcomes), np.nan),
    )


def _pinball(forecast: Counts, outcome: int) -> float:
    return float(np.mean([pinball(forecast.quantile(level), outcome, level) for level in LEVELS]))


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
