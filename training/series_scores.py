"""Judge issued forecasts of counted series by what came, beside the humble forecasts that they must beat.

Beside every forecast stand: the same weekday (and hours) of last week, its mean over 4 and 6 weeks, the last day (of
daily series), and for hours the climatology of hour and weekday. Means over weeks are made distributions of as Poisson
counts, the way bed forecasts usually are; climatology has quantiles of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.sources.counts import Panel
from models.counted import column
from models.forecast import cramer_von_mises
from models.series import COVER, FINE, QUANTILES, count_quantiles
from training.plots import new_axes
from training.series_issue import STATED, Batch, Schedule

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RESAMPLES: Final = 300
SEED: Final = 11
WEEKS: Final = (4, 6)
INTERVALS: Final = {"coverage_50": (0.25, 0.75), "coverage_80": (0.1, 0.9), "coverage_90": (0.05, 0.95)}


def pinball(quantiles: Floats, levels: Sequence[float], outcome: Floats) -> Floats:
    """Mean pinball loss over levels, by row."""
    asked = np.asarray(levels, dtype=np.float64)
    error = outcome[:, None] - quantiles
    return np.asarray(np.maximum(asked * error, (asked - 1) * error).mean(axis=1))


@dataclass(frozen=True)
class Judged:
    """One batch: a row for every forecast, and how it did.

    ``rows`` has what is written; ``scores`` what is averaged, by the same index, forecasts with an outcome only.
    """

    rows: pd.DataFrame
    scores: pd.DataFrame


def table(batch: Batch, panel: Panel, schedule: Schedule) -> pd.DataFrame:
    """A row for every forecast of a batch, as it is written, but stamps on the wall clock; by place in the batch."""
    kept = np.flatnonzero(np.isfinite(batch.quantiles).all(axis=1))
    names = np.array(panel.names, dtype=object)
    stamps = pd.date_range(
        panel.stamps[0], periods=len(panel.stamps) + schedule.horizon + 1, freq=panel.step, unit="us"
    )
    return pd.DataFrame(
        {
            "series": names[batch.series[kept]],
            "origin": stamps[batch.origin[kept]],
            "target": stamps[batch.target[kept]],
            "window_h": batch.window_h,
            "mean": batch.mean[kept],
        }
        | {column(level): batch.quantiles[kept, k] for k, level in enumerate(STATED)},
        index=kept,
    )


def as_came(rows: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    """The same rows with stamps as the file of counts writes them."""
    return rows.assign(
        **{name: panel.as_came(pd.DatetimeIndex(rows[name])) for name in ("origin", "target")}
    ).reset_index(drop=True)


def judge(batch: Batch, panel: Panel, schedule: Schedule) -> Judged:
    """Score the forecasts of one batch, and the humble ones for the same targets."""
    kept = np.isfinite(batch.quantiles).all(axis=1)
    rows = as_came(table(batch, panel, schedule), panel)
    scored = kept & np.isfinite(batch.outcome)
    return Judged(rows, _scores(batch, panel, schedule, scored))


def _scores(batch: Batch, panel: Panel, schedule: Schedule, kept: npt.NDArray[np.bool_]) -> pd.DataFrame:
    y, q, origin = batch.outcome[kept], batch.quantiles[kept], batch.origin[kept]
    target, series = batch.target[kept], batch.series[kept]
    lead = target - origin + (1 if panel.step_h == 1 else 0)
    median = q[:, QUANTILES.index(0.5)]
    scores = {
        "series": series, "origin": origin, "week": (origin - origin.min(initial=0)) // schedule.week, "lead": lead,
        "quantity": np.array(panel.quantities, dtype=object)[series], "window_h": batch.window_h, "outcome": y,
        "error": np.abs(batch.mean[kept] - y), "median_error": np.abs(median - y), "pit": batch.pit[kept],
        "pinball": pinball(q[:, : len(QUANTILES)], QUANTILES, y), "crps": 2 * pinball(batch.fine[kept], FINE, y),
        "exceeded_99": (y > q[:, STATED.index(COVER)]).astype("float64"),
    }  # fmt: skip
    for name, (low, high) in INTERVALS.items():
        inside = (y >= q[:, STATED.index(low)]) & (y <= q[:, STATED.index(high)])
        scores[name] = inside.astype("float64")
        scores[f"{name}_pit"] = (np.abs(scores["pit"] - 0.5) <= (high - low) / 2).astype("float64")
    step = _Usual(panel, schedule, batch.window_h)
    scores |= step.scores(series, origin, target, y)
    return pd.DataFrame(scores)


@dataclass(frozen=True)
class _Usual:
    """The humble forecasts of one window."""

    panel: Panel
    schedule: Schedule
    window_h: int

    def scores(self, series: Ints, origin: Ints, target: Ints, y: Floats) -> dict[str, Floats]:
        """Absolute errors of each, and where it is a distribution, pinball loss and CRPS."""
        sums = self._sums()
        week = 168 if self.panel.step_h == 1 else 7
        newest = target - week * -(-(target - origin + (1 if self.panel.step_h == 1 else 0)) // week)
        past = np.stack([_at(sums, series, newest - week * k) for k in range(max(WEEKS))])
        out: dict[str, Floats] = {"seasonal_naive.error": np.abs(past[0] - y)}
        for weeks in WEEKS:
            n = np.isfinite(past[:weeks]).sum(axis=0)
            mean = np.where(n > 0, np.nansum(past[:weeks], axis=0) / np.maximum(n, 1), np.nan)
            out[f"mean{weeks}.error"] = np.abs(mean - y)
            if self.panel.step_h == 1:
                out |= _as_poisson(f"mean{weeks}", mean, y)
        if self.panel.step_h == 24:
            out["naive.error"] = np.abs(_at(_last(sums), series, origin) - y)
        else:
            out |= self._climatology(sums, series, origin, target, y)
        return out

    def _sums(self) -> Floats:
        steps = self.window_h // self.panel.step_h
        total = pd.DataFrame(self.panel.values.T).rolling(steps, min_periods=steps).sum().to_numpy().T
        return np.asarray(total)

    def _climatology(
        self, sums: Floats, series: Ints, origin: Ints, target: Ints, y: Floats
    ) -> dict[str, Floats]:
        """Quantiles of all that was seen at the same hour of the same weekday: up to the last fit, and up to the first.

        The second is what publications compare with: learnt once, on the years before.
        """
        fits = [int(stretch[0]) for stretch in self.schedule.stretches()]
        first = int(self.schedule.origins[self.schedule.asked])
        fit = np.array(fits)[np.searchsorted(fits, origin, side="right") - 1]
        out: dict[str, Floats] = {}
        for name, upto in (("climatology", fit), ("first_climatology", np.full(len(origin), first))):
            quantiles = self._by_hour_of_week(sums, series, target, upto)
            out[f"{name}.error"] = np.abs(quantiles[:, QUANTILES.index(0.5)] - y)
            out[f"{name}.pinball"] = pinball(quantiles, QUANTILES, y)
        return out

    def _by_hour_of_week(self, sums: Floats, series: Ints, target: Ints, upto: Ints) -> Floats:
        stamps = self.panel.stamps
        place = (stamps.weekday * 24 + stamps.hour).to_numpy()
        ahead = (place[0] + target) % 168
        quantiles = np.full((len(target), len(QUANTILES)), np.nan)
        for k, end in sorted({(int(a), int(b)) for a, b in zip(series, upto, strict=True)}):
            rows = (series == k) & (upto == end)
            quantiles[rows] = _by_hour_of_week(sums[k, :end], place[:end])[ahead[rows]]
        return quantiles


def _by_hour_of_week(known: Floats, place: Ints) -> Floats:
    whole = np.full((-(-len(known) // 168) + 1, 168), np.nan)
    order = np.arange(len(known)) // 168
    whole[order, place] = known
    seen = np.isfinite(whole).any(axis=0)
    out = np.full((168, len(QUANTILES)), np.nan)
    out[seen] = np.nanquantile(whole[:, seen], QUANTILES, axis=0).T
    return out


def _at(table: Floats, series: Ints, place: Ints) -> Floats:
    inside = (place >= 0) & (place < table.shape[1])
    return np.where(inside, table[series, np.clip(place, 0, table.shape[1] - 1)], np.nan)


def _last(table: Floats) -> Floats:
    return np.asarray(pd.DataFrame(table.T).ffill(limit=7).to_numpy().T)


def _as_poisson(name: str, mean: Floats, y: Floats) -> dict[str, Floats]:
    levels = (*QUANTILES, *FINE)
    out = np.full((len(mean), len(levels)), np.nan)
    there = np.isfinite(mean)
    if there.any():
        out[there] = count_quantiles(mean[there], 0.0, levels, whole=True)
    q, fine = out[:, : len(QUANTILES)], out[:, len(QUANTILES) :]
    return {f"{name}.pinball": pinball(q, QUANTILES, y), f"{name}.crps": 2 * pinball(fine, FINE, y)}


# ------------------------------------------------------------ figures


def figures(scores: pd.DataFrame) -> dict[str, Any]:
    """How good the forecasts were: all together, by series, and by lead; intervals resample whole weeks.

    Forecasts of one week share its weather and its viruses, so that rows are not independent, and weeks nearly are.
    """
    cell = "window_h" if scores["window_h"].nunique() > 1 else "lead"
    out: dict[str, Any] = {"cells": cell}
    for quantity, some in scores.groupby("quantity", sort=True):
        out[str(quantity)] = {str(k): _cell(rows) for k, rows in some.groupby(cell, sort=True)}
    return out


def by_series(scores: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of each series that say whether it is served as well as the others."""
    made = []
    for k, some in scores.groupby("series", sort=True):
        line = {
            "series": names[int(str(k))],
            "forecasts": len(some),
            "outcome_mean": float(some["outcome"].mean()),
        }
        line |= {n: float(some[n].mean()) for n in ("error", "pinball", "coverage_90", "coverage_90_pit")}
        made.append(line | _skills(some, intervals=False))
    return made


def _cell(some: pd.DataFrame) -> dict[str, Any]:
    pit = some["pit"].to_numpy("float64")
    mean = float(some["outcome"].mean())
    out: dict[str, Any] = {
        "forecasts": len(some), "weeks": int(some["week"].nunique()), "outcome_mean": mean,
        "mae": float(some["error"].mean()), "mae_of_median": float(some["median_error"].mean()),
        "wape": float(some["error"].mean()) / mean if mean else None,
    }  # fmt: skip
    for name in ("pinball", "crps", *INTERVALS, *(f"{n}_pit" for n in INTERVALS), "exceeded_99"):
        out[name] = float(some[name].mean())
        if name not in ("coverage_50", "coverage_80", "coverage_50_pit", "coverage_80_pit"):
            out[f"{name}_interval"] = _interval(some["week"], some[name].to_numpy("float64"), None)
    days = max(int(some["origin"].nunique()), 1)
    out["rpit_cvm_per_origin"] = cramer_von_mises(pit) * days / len(pit)
    return out | _skills(some, intervals=True)


def _skills(some: pd.DataFrame, *, intervals: bool) -> dict[str, Any]:
    """1 - loss / loss of a humble forecast, on the rows where it had one too."""
    out: dict[str, Any] = {}
    for name in (n for n in some.columns if "." in n):
        usual, _, loss = name.partition(".")
        both = some[name].notna()
        mine = some.loc[both, "median_error" if loss == "error" else loss].to_numpy("float64")
        theirs = some.loc[both, name].to_numpy("float64")
        if not len(theirs) or theirs.sum() <= 0:
            continue
        told = "mae" if loss == "error" else loss
        out[f"{told}_skill_vs_{usual}"] = 1 - float(mine.mean() / theirs.mean())
        if intervals:
            out[f"{told}_of_{usual}"] = float(theirs.mean())
            out[f"{told}_skill_vs_{usual}_interval"] = _interval(some.loc[both, "week"], mine, theirs)
    return out


def _interval(week: pd.Series, value: Floats, against: Floats | None) -> list[float]:
    """95 % bootstrap interval, by weeks, of the mean of ``value``, or of 1 - mean(value) / mean(against)."""
    code, weeks = pd.factorize(week)
    total = np.bincount(code, weights=value)
    other = np.bincount(code, weights=against) if against is not None else np.bincount(code).astype("float64")
    picked = np.random.default_rng(SEED).integers(0, len(weeks), (RESAMPLES, len(weeks)))
    ratio = total[picked].sum(axis=1) / np.maximum(other[picked].sum(axis=1), 1e-12)
    low, high = np.quantile(ratio if against is None else 1 - ratio, [0.025, 0.975])
    return [float(low), float(high)]


def plots(found: dict[str, Any], scores: pd.DataFrame) -> dict[str, Any]:
    """Matplotlib figures by file name: rPIT, coverage by window or lead, skill against each humble forecast."""
    made: dict[str, Any] = {}
    for quantity, some in scores.groupby("quantity", sort=True):
        cells = found[str(quantity)]
        part = "".join(c if c.isalnum() else "_" for c in str(quantity))
        made[f"rpit_{part}.png"] = _rpit(some, str(quantity))
        made[f"coverage_{part}.png"] = _coverage(cells, found["cells"], str(quantity))
        made[f"skill_{part}.png"] = _skill(cells, found["cells"], str(quantity))
    return made


def _rpit(some: pd.DataFrame, quantity: str) -> Any:
    figure, axes = new_axes(
        f"Where outcomes fell in their forecasts: {quantity}", "Randomised PIT", "Density"
    )
    for window, rows in some.groupby("window_h"):
        axes.hist(rows["pit"], bins=20, range=(0, 1), density=True, histtype="step", label=f"{window} h")
    axes.axhline(1, color="grey", linewidth=1)
    axes.set(ylim=(0, 2))
    axes.legend()
    return figure


CELL_NAMES: Final = {"window_h": "Window, hours", "lead": "Days ahead"}


def _coverage(cells: dict[str, Any], cell: str, quantity: str) -> Any:
    figure, axes = new_axes(
        f"Coverage of the 90 % interval: {quantity}", CELL_NAMES[cell], "Share of outcomes inside"
    )
    x = np.arange(len(cells))
    for name, label in (("coverage_90_pit", "by randomised PIT"), ("coverage_90", "as stated")):
        value = np.array([c[name] for c in cells.values()])
        band = np.array([c[f"{name}_interval"] for c in cells.values()]).T
        axes.errorbar(x, value, np.abs(band - value), marker="o", capsize=3, label=label)
    axes.axhline(0.9, color="grey", linewidth=1)
    axes.set_xticks(x, list(cells))
    axes.set(ylim=(0.7, 1.0))
    axes.legend()
    return figure


def _skill(cells: dict[str, Any], cell: str, quantity: str) -> Any:
    figure, axes = new_axes(
        f"Better than humble forecasts: {quantity}", CELL_NAMES[cell], "Loss saved, share"
    )
    names = [n for n in next(iter(cells.values())) if "_skill_vs_" in n and not n.endswith("_interval")]
    for name in names:
        axes.plot(
            list(cells),
            [c.get(name, np.nan) for c in cells.values()],
            marker="o",
            label=name.replace("_", " "),
        )
    axes.axhline(0, color="grey", linewidth=1)
    if names:
        axes.legend(fontsize=7)
    return figure
