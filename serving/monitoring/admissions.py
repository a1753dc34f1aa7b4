"""Bed forecasts against what came: how often each interval held, pinball loss and bias by horizon, beside a naive one.

The forecasts are the reports that were written at each huddle (``var/reports/*.json``), as they were read then. The
naive forecast of a window is what came in the same hours of the four weeks before the forecast.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy.stats import binom

from features import census
from models.forecast import pinball
from serving.monitoring.findings import WATCH, Finding
from serving.monitoring.statistics import Floats

if TYPE_CHECKING:
    from serving.settings import Settings
    from serving.store.store import Store

INTERVALS: Final = {"50": ("q25", "q75"), "80": ("q10", "q90"), "90": ("q05", "q95")}
WEEKS: Final = 4
SPAN: Final = timedelta(days=92)
HOSPITAL: Final = "hospital"
FEWEST: Final = 14
SURE: Final = 1e-3
COLUMNS: Final = ("horizon", "level", "at", "start", "end", "outcome")


def look(settings: Settings, store: Store, until: datetime) -> tuple[list[Finding], dict[str, Any]]:
    """Judge the forecasts of the last three months whose windows have passed; nothing where none was written."""
    statements = list(read(settings.var / "reports", until - SPAN, until))
    if not statements:
        return [], {}
    table = compare(statements, store.visits(until), until)
    rows = judge(table)
    return check(rows), {"since": (until - SPAN).isoformat(), "until": until.isoformat(), "horizons": rows}


def read(folder: Path, since: datetime, until: datetime) -> Iterator[dict[str, Any]]:
    """Statements of the reports in a folder whose windows have ended: level, horizon, window, quantiles, mean.

    A file that is no report is passed over.
    """
    for path in sorted(folder.glob("*.json")):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            at = pd.Timestamp(told["at"])
            if not since <= at < until:
                continue
            windows = {w["key"]: (pd.Timestamp(w["start"]), pd.Timestamp(w["end"])) for w in told["windows"]}
            found = [
                {
                    "horizon": key, "level": level["level"], "at": at, "start": windows[key][0], "end": windows[key][1],
                    "mean": float(said["needed"]["mean"]), **_quantiles(said["needed"]["quantiles"]),
                }
                for level in told["levels"]
                for key, said in level["windows"].items()
                if windows[key][1] <= until
            ]  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        yield from found


def _quantiles(told: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in told.items()}


def compare(statements: Sequence[Mapping[str, Any]], visits: pd.DataFrame, until: datetime) -> pd.DataFrame:
    """Each statement with the admissions that came (``outcome``) and those of the weeks before (``naive``, a list)."""
    table = pd.DataFrame(statements)
    admitted = visits[visits["admission_time"].notna() & (visits["admission_time"] <= pd.Timestamp(until))]
    first = visits["arrival_time"].min()
    of_level = {
        level: admitted if level == HOSPITAL else admitted[admitted["specialty"] == level]
        for level in table["level"].unique()
    }
    outcome, naive = [], []
    for told in statements:
        times = of_level[str(told["level"])]["admission_time"]
        outcome.append(census.count_between(times, told["start"], told["end"]))
        naive.append(_usual(times, told["start"], told["end"], told["at"], first))
    return table.assign(outcome=outcome, naive=pd.Series(naive, index=table.index, dtype=object))


def _usual(
    times: pd.Series, start: pd.Timestamp, end: pd.Timestamp, at: pd.Timestamp, first: pd.Timestamp
) -> list[int]:
    """What came in the same hours of the last four weeks that were over when the forecast was made."""
    weeks = [pd.Timedelta(days=7 * k) for k in range(1, WEEKS + 3)]
    past = [(start - w, end - w) for w in weeks if end - w <= at and start - w >= first]
    return [census.count_between(times, *span) for span in past[:WEEKS]]


def judge(table: pd.DataFrame) -> list[dict[str, Any]]:
    """By horizon and level: ``n``, ``coverage`` of each interval, ``pinball``, ``naive_pinball``, ``bias``, ``mean``.

    Pinball loss is the mean over the reported quantiles. The naive forecast's quantiles are those of its weeks; where
    there are none the statement is left out of both losses (``compared`` says of how many they are).
    """
    rows = []
    quantiles = sorted(c for c in table.columns if c.startswith("q") and c[1:].isdigit())
    levels = [int(c[1:]) / 100 for c in quantiles]
    for (horizon, level), mine in table.groupby(["horizon", "level"], sort=False):
        outcome = mine["outcome"].to_numpy(np.float64)
        both = np.array([len(weeks) >= 2 for weeks in mine["naive"]], bool)
        loss = _loss(mine[quantiles].to_numpy(np.float64), outcome, levels)
        rival = [
            np.quantile(w, levels) if len(w) >= 2 else np.full(len(levels), np.nan) for w in mine["naive"]
        ]
        rows.append(
            {
                "horizon": str(horizon),
                "level": str(level),
                "n": len(mine),
                "days": int(mine["end"].dt.date.nunique()),
                "coverage": {
                    name: float(((mine[a] <= outcome) & (outcome <= mine[b])).mean())
                    for name, (a, b) in INTERVALS.items()
                    if {a, b} <= set(quantiles)
                },
                "pinball": _mean(loss[both]),
                "naive_pinball": _mean(_loss(np.array(rival), outcome, levels)[both]),
                "compared": int(both.sum()),
                "bias": float((mine["mean"].to_numpy(np.float64) - outcome).mean()),
                "mean": float(outcome.mean()),
            }
        )
    return rows


def _loss(quantiles: Floats, outcome: Floats, levels: Sequence[float]) -> Floats:
    each = [pinball(quantiles[:, k], outcome, level) for k, level in enumerate(levels)]
    return np.asarray(np.mean(each, axis=0))


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def check(rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Intervals of the whole hospital that hold too seldom, and forecasts that lose to the naive one.

    Windows of one day overlap, so certainty counts days, not statements.
    """
    found = []
    for row in rows:
        if row["level"] != HOSPITAL or row["days"] < FEWEST:
            continue
        held, days = row["coverage"].get("90"), row["days"]
        chance = 1.0 if held is None else float(binom.cdf(round(held * days), days, 0.9))
        if held is not None and chance < SURE:
            found.append(_finding("beds_interval", row, held, chance))
        naive, mine = row["naive_pinball"], row["pinball"]
        if naive and mine is not None and row["compared"] >= FEWEST and mine > 1.1 * naive:
            found.append(_finding("beds_skill", row, mine / naive, None))
    return found


def _finding(kind: str, row: Mapping[str, Any], value: float, chance: float | None) -> Finding:
    side = "too low" if row["bias"] < 0 else "too high"
    lean = f"on average {abs(row['bias']):.1f} beds {side}, of {row['mean']:.1f}"
    what = (
        f"The 90 % interval of beds needed ({row['horizon']}) held what came {value:.0%} of the time; {lean}."
        if kind == "beds_interval"
        else f"Beds needed ({row['horizon']}) are forecast worse than by the same hours of the last weeks: "
        f"{value:.2f} times its loss; {lean}."
    )
    return Finding(
        kind=kind,
        severity=WATCH,
        what=what,
        where="bed forecasts, whole hospital",
        certainty=f"{row['n']:,} forecasts of {row['days']:,} days"
        + (f", chance {chance:.1g}" if chance is not None else ""),
        action="Look for silent feeds of arrivals and discharges and for a change of how the hospital works; then "
        "train the admissions model on recent visits: wardcast train admissions.",
    )
