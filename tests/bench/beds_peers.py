"""Bed forecasts beside statsforecast and patientflow, each in an environment of its own; only where the data are.

statsforecast foresees daily beds and discharges of some English trusts; patientflow the patients yet to arrive at a
Welsh emergency department, and the beds that those present will need. Losses are means over the same forecasts: of the
absolute error of the median, and of the pinball loss of 19 quantiles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.sources import counts
from features.sources.counts import Panel
from models.forecast import poisson_binomial
from models.series import QUANTILES
from training.series_backtest import Asked, run

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

from _environments import NoPeer, ensure

PEERS = Path(__file__).resolve().parent / "peers"
Figure = dict[str, Any]
NAMES = tuple(f"q{round(q * 100):02d}" for q in QUANTILES)
TRUSTS = 40
PRESENT = 400


def bench() -> Iterator[Figure]:
    named = os.environ.get("WARDCAST_DATA", "").strip()
    folder = Path(named) / "beds"
    if not named or not folder.is_dir():
        reason = "WARDCAST_DATA names no folder with beds/"
        yield {"name": "beds_peers", "value": None, "unit": "share", "reason": reason}
        return
    beds, left = (
        folder / "england_winter_sitreps/sitreps.parquet",
        folder / "england_discharges_daily/discharges_ctr.parquet",
    )
    yield from _daily("occupied", beds, "ga_occ", ("2022-01-03", "2022-02-21"))
    yield from _daily("discharges", left, "discharged_total", ("2024-07-01", "2024-08-26"))
    yield from _hourly(folder / "wales_ed_hourly/arrivals.parquet", ("2017-10-01", "2018-01-01"))


def _daily(name: str, path: Path, quantity: str, span: tuple[str, str]) -> Iterator[Figure]:
    """Every week of a span, a week ahead, the largest trusts."""
    panel = counts.read(path, "daily")
    whole = _laid_out(panel, quantity)
    start, until = (pd.Timestamp(t) for t in span)
    seen = whole[whole["stamp"] < start].groupby("series")["value"].agg(["mean", "size"])
    largest = seen[seen["size"] > 100].nlargest(TRUSTS, "mean").index
    history = whole[whole["series"].isin(largest)]
    asked = {"origins": _origins(start, until, "7D"), "horizon": 7}
    try:
        theirs, cpu_s = _peer("beds", "beds_by_statsforecast.py", history, asked)
    except NoPeer as why:
        yield {"name": f"{name}_vs_statsforecast", "value": None, "unit": "", "reason": str(why)}
        return
    ours, own_s = _ours("daily", path, Asked(span[0], every="7d", until=span[1], threads=1))
    told = ours[ours["series"].isin(largest)].merge(
        theirs.drop(columns="window_h"), on=["series", "origin", "target"], suffixes=("", "_peer")
    )
    told = told.merge(history.rename(columns={"stamp": "target"}), on=["series", "target"])
    days = (told["target"] - told["origin"]).dt.days
    for day in (1, 7):
        yield from _against(told[days == day], f"{name}_{day}d", "statsforecast")
    yield {
        "name": f"{name}_cpu",
        "value": own_s,
        "unit": "s, all trusts, their past forecasts too",
        "reference": cpu_s,
    }


def _hourly(path: Path, span: tuple[str, str]) -> Iterator[Figure]:
    """Windows of 8 and 24 hours from 00:00 and 12:00 on."""
    panel = counts.read(path, "hourly")
    history = _laid_out(panel, panel.quantities[0])
    start, until = (pd.Timestamp(t) for t in span)
    present = np.random.default_rng(0).random(PRESENT).round(6)
    asked = {
        "origins": _origins(start, until, "12h"), "windows_h": [8, 24], "refit_days": 28, "memory_days": 365,
        "present": present.tolist(),
    }  # fmt: skip
    try:
        theirs, cpu_s, exact_ms, normal_ms = _peer("beds", "beds_by_patientflow.py", history, asked)
    except NoPeer as why:
        yield {"name": "arrivals_vs_patientflow", "value": None, "unit": "", "reason": str(why)}
        return
    ours, own_s = _ours("hourly", path, Asked(span[0], every="12h", until=span[1], threads=1))
    told = ours.assign(target=_naive(ours["target"]), origin=_naive(ours["origin"])).merge(
        theirs, on=["origin", "target", "window_h"], suffixes=("", "_peer")
    )
    outcome = history.set_index("stamp")["value"]
    for hours in (8, 24):
        summed = outcome.rolling(hours).sum().rename("value").rename_axis("target").reset_index()
        some = told[told["window_h"] == hours].merge(summed, on="target")
        yield from _against(some, f"arrivals_{hours}h", "patientflow")
    yield {
        "name": "arrivals_cpu",
        "value": own_s,
        "unit": "s, every hour and sum, their past forecasts too",
        "reference": cpu_s,
    }
    began = time.process_time()
    for _ in range(20):
        poisson_binomial(present)
    took = (time.process_time() - began) / 20 * 1000
    yield {"name": "present_400_vs_patientflow_exact", "value": took, "unit": "ms", "reference": exact_ms}
    yield {"name": "present_400_vs_patientflow_normal", "value": took, "unit": "ms", "reference": normal_ms}


def _naive(stamps: pd.Series) -> pd.Series:
    return stamps.dt.tz_localize(None) if stamps.dt.tz is not None else stamps


def _origins(start: pd.Timestamp, until: pd.Timestamp, step: str) -> list[str]:
    return [f"{t:%Y-%m-%dT%H:%M}" for t in pd.date_range(start, until, freq=step, inclusive="left")]


def _laid_out(panel: Panel, quantity: str) -> pd.DataFrame:
    """A panel's counts of one quantity, one row each."""
    kept = [k for k, q in enumerate(panel.quantities) if q == quantity]
    table = pd.DataFrame(panel.values[kept].T, panel.stamps, [panel.names[k] for k in kept])
    table = table.rename_axis("stamp").reset_index().melt("stamp", var_name="series").dropna()
    return table[["series", "stamp", "value"]]


def _ours(shape: str, path: Path, asked: Asked) -> tuple[pd.DataFrame, float]:
    with tempfile.TemporaryDirectory() as held:
        out = Path(held) / "out.parquet"
        done = run(shape, path, out, asked, track=False)
        return pd.read_parquet(out), done.evaluation["cpu_seconds"]


def _peer(environment: str, script: str, history: pd.DataFrame, asked: dict[str, Any]) -> tuple[Any, ...]:
    """What a peer foretold, its CPU seconds, and what else it timed."""
    python = ensure(environment)
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        history.to_parquet(folder / "history.parquet")
        (folder / "asked.json").write_text(json.dumps(asked | {"quantiles": list(QUANTILES)}))
        done = subprocess.run(
            [python, PEERS / script, folder], capture_output=True, text=True, check=False, cwd=folder
        )
        if done.returncode:
            raise NoPeer(f"{script} failed: {done.stderr.strip().splitlines()[-1][:200]}")
        said = json.loads(done.stdout.strip().splitlines()[-1])
        return pd.read_parquet(folder / "told.parquet"), said["cpu_s"], *said.get("present_ms", ())


def _against(told: pd.DataFrame, name: str, peer: str) -> Iterator[Figure]:
    """Losses and coverage of ours and theirs on the same forecasts."""
    y = told["value"].to_numpy()
    what = f"{len(told):,} forecasts"
    ours, theirs = ([f"{q}{end}" for q in NAMES] for end in ("", "_peer"))
    middle = len(NAMES) // 2
    error = [float(np.abs(told[some[middle]] - y).mean()) for some in (ours, theirs)]
    yield {
        "name": f"{name}_mae_vs_{peer}",
        "value": error[0],
        "unit": what,
        "reference": error[1],
        "goal": "ratio >= 1",
    }
    loss = [_pinball(told[some].to_numpy(), y) for some in (ours, theirs)]
    yield {
        "name": f"{name}_pinball_vs_{peer}",
        "value": loss[0],
        "unit": what,
        "reference": loss[1],
        "goal": "ratio >= 1",
    }
    covered = [float(((told[some[0]] <= y) & (y <= told[some[-1]])).mean()) for some in (ours, theirs)]
    yield {
        "name": f"{name}_coverage_90_vs_{peer}",
        "value": covered[0],
        "unit": "share",
        "reference": covered[1],
    }


def _pinball(told: np.ndarray, y: np.ndarray) -> float:
    q = np.array(QUANTILES)
    away = y[:, None] - told
    return float(np.maximum(q * away, (q - 1) * away).mean())
