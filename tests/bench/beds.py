"""How quick and how good the bed forecast is: exact counts, one report, a backtest on a hospital never seen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features import census
from features.clean import clean
from features.sources.synthetic import simulate
from features.sources.visits import known_at, through_ed, visit_events
from models.beds import BedModel
from models.bundle import Bundle
from models.forecast import poisson_binomial
from serving.reports.forecast import forecast_beds
from serving.reports.render import render_report
from training import backtest, triage

RELEASED = Path(__file__).resolve().parents[2] / "models" / "admissions" / "released"
START = datetime(2026, 2, 2, tzinfo=UTC)
NEVER_SEEN = (4711, 5, 6, 7)
"""Seeds of hospitals that no part of the released model came from."""
LINES = (0, 1, 2, 3, 4, 5, 0, 1, 2, 3)
"""The six specialties of the simulator as ten: the first four are cut in two."""
TRIAGE = {
    73: ("nan_73cols_train_244179.parquet", 0.845, ("arrivalmode", "arrivalhour_bin"), None),
    284: (
        "raw_284cols_dev_balanced_71346.parquet",
        0.865,
        ("arrivalmode", "arrivalhour_bin", "previousdispo"),
        0.2092,
    ),
}
"""File, least AUROC, categories, and the share admitted in the whole file for the one that was balanced."""


def cpu_ms(count: int, work: Callable[[], object]) -> float:
    """Median CPU milliseconds of one call."""
    took = []
    for _ in range(count):
        began = time.process_time()
        work()
        took.append((time.process_time() - began) * 1000)
    return float(np.median(took))


def by_table(p: np.ndarray) -> np.ndarray:
    """The same numbers by the usual dynamic programme, one patient and one count at a time."""
    pmf = [1.0]
    for one in p:
        pmf = [
            (pmf[k] * (1 - one) if k < len(pmf) else 0.0) + (pmf[k - 1] * one if k else 0.0)
            for k in range(len(pmf) + 1)
        ]
    return np.array(pmf)


def bench() -> Iterator[dict[str, Any]]:
    p = np.random.default_rng(0).random(400)
    exact, plain = cpu_ms(20, lambda: poisson_binomial(p)), cpu_ms(3, lambda: by_table(p))
    yield {"name": "poisson_binomial_400", "value": exact, "unit": "ms", "reference": plain, "goal": "<= 5"}
    began = time.process_time()
    simulate(14, 1, START)
    yield {"name": "simulate_14_days", "value": time.process_time() - began, "unit": "s", "goal": "<= 5"}
    yield from _report()
    yield from _triage()
    yield from _backtest()


def _report() -> Iterator[dict[str, Any]]:
    """500 undecided patients, 800 inpatients, ten specialties at an odd moment, a week ahead; six weeks are known."""
    made = simulate(45, 3, START, ed_per_day=700, observe=("ed",))
    now = pd.Timestamp(START) + pd.Timedelta(days=43, hours=17, minutes=23)
    visits = made.visits.copy()
    late = visits["arrival_time"].between(now - pd.Timedelta(hours=22), now) & through_ed(visits)
    for column in ("decision_time", "admission_time", "discharge_time"):
        visits[column] = visits[column].mask(late)
    present = visits.loc[late, "encounter_id"].iloc[-500:]
    visits = visits[~late | visits["encounter_id"].isin(present)]
    too_many = census.inpatients(known_at(visits, now), now)["encounter_id"].iloc[800:]
    visits = visits[~visits["encounter_id"].isin(too_many)]
    events = clean(made.events)[0]
    bundle, visits = _ten_specialties(Bundle.load(RELEASED), visits)
    forecast = forecast_beds(visits, events, bundle, now, "UTC")
    render_report(forecast)
    took = cpu_ms(7, lambda: render_report(forecast_beds(visits, events, bundle, now, "UTC")))
    whole = forecast.cell("hospital", "tomorrow")
    yield {"name": "report_patients_in_ed", "value": forecast.in_ed_now, "unit": "patients"}
    yield {"name": "report_inpatients", "value": whole.occupied_now, "unit": "patients"}
    yield {"name": "report_specialties", "value": len(forecast.levels) - 1, "unit": "specialties"}
    yield {"name": "report_html_cpu", "value": took, "unit": "ms", "goal": "<= 300"}


@dataclass(frozen=True)
class _Split:
    """A booster of specialties whose answer is cut in as many lines as :data:`LINES`."""

    booster: Any

    def predict(self, matrix: np.ndarray, **options: Any) -> np.ndarray:
        return np.asarray(self.booster.predict(matrix, **options))[:, LINES] * _shares()


def _shares() -> np.ndarray:
    return 1 / np.bincount(LINES)[list(LINES)]


def _ten_specialties(bundle: Bundle, visits: pd.DataFrame) -> tuple[Bundle, pd.DataFrame]:
    """The released model and the visits with four specialties cut in two at random."""
    lines, share = list(LINES), _shares()
    flow = dict(bundle.parts["flow"])
    names = flow["specialties"]
    flow["specialties"] = [f"{names[k]} {j}" if j >= len(names) else names[k] for j, k in enumerate(lines)]
    flow["streams"] = {
        door: s | {"mix": (np.array(s["mix"])[:, lines] * share).tolist()}
        for door, s in flow["streams"].items()
    }
    flow["stays"] = flow["stays"] | {"base": [flow["stays"]["base"][k] for k in lines]}
    moves, towards = flow["moves"], np.array(flow["moves"]["destination"])
    flow["moves"] = {
        "rate": [moves["rate"][k] for k in lines],
        "destination": (towards[np.ix_(lines, lines)] * share).tolist(),
    }
    usual = np.array(flow["usual"]["admitted"])[lines] * share
    flow["usual"] = flow["usual"] | {"admitted": usual.tolist()}
    boosters = dict(bundle.boosters) | {"specialty": _Split(bundle.boosters["specialty"])}
    other = np.random.default_rng(1).random(len(visits)) < 0.5
    twin = {names[k]: flow["specialties"][j] for j, k in enumerate(lines) if j >= len(names)}
    renamed = visits["specialty"].where(~other, visits["specialty"].replace(twin))
    parts = dict(bundle.parts) | {"flow": flow}
    return replace(bundle, parts=parts, boosters=boosters), visits.assign(specialty=renamed)


def _backtest() -> Iterator[dict[str, Any]]:
    """Sixty days of four simulated hospitals of other seeds, released model, huddles at 08:00 and 16:00.

    One seed is sixty days of chance: beds needed of a whole day vary by 1.5 times Poisson in the first of them, by 0.8
    to 1.3 times in others, and by 1.15 times in truth.
    """
    tables = [_issued(seed) for seed in NEVER_SEEN]
    judged = backtest.judge(pd.concat(tables, ignore_index=True))
    for what in ("needed", "discharges", "net", "occupied"):
        for window, kinds in judged[what].items():
            for kind, f in kinds.items():
                line = {
                    "name": f"{what}_{window}_{kind}_coverage_90",
                    "value": f["coverage_90"],
                    "unit": "share",
                }
                yield line | {"goal": ">= 0.87"}
                if what == "needed":
                    usual = {"reference": f["same_weekday_crps"]}
                    yield {"name": f"{window}_{kind}_crps", "value": f["crps"], "unit": "beds", **usual}
    cells = [backtest.judge(table)["rpit"] for table in tables]
    share = sum(c["miscalibrated"] for c in cells) / sum(c["cells"] for c in cells)
    yield {"name": "rpit_cells_miscalibrated", "value": share, "unit": "share", "goal": "<= 0.15"}


def _issued(seed: int) -> pd.DataFrame:
    days = 109
    made = simulate(days, seed, START, observe=("ed",), moving=0.08)
    bundle = Bundle.load(RELEASED)
    events = pd.concat([clean(made.events)[0], visit_events(made.visits)], ignore_index=True)
    first, last = pd.Timestamp(START) + pd.Timedelta(days=42), pd.Timestamp(START) + pd.Timedelta(days=days)
    times = backtest.forecast_times(first, last, ["08:00", "16:00"], "UTC")
    flat = bundle.spec.features.flatten(events)
    return backtest.run(made.visits, flat, BedModel.of(bundle), bundle, times, "UTC", made.moves, threads=2)


def _triage() -> Iterator[dict[str, Any]]:
    """P(admission) on both files derived from Hong et al. 2018: fitted and judged on parts of the same file."""
    root = os.environ.get("WARDCAST_DATA")
    folder = Path(root) / "beds" / "yale_ed_triage_derived" if root else None
    if folder is None or not folder.is_dir():
        why = "WARDCAST_DATA does not name the open data"
        yield {"name": "triage_auroc", "value": None, "unit": "share", "reason": why}
        return
    for columns, (file, least, categories, prevalence) in TRIAGE.items():
        mapping = triage.Mapping("disposition", "0", categories, prevalence=prevalence)
        rows = triage.rows_of(pd.read_parquet(folder / file), mapping)
        began = time.process_time()
        fitted = triage.fit(rows, mapping.prevalence)
        took = time.process_time() - began
        test = rows.part == 2
        label, score = rows.label[test], fitted.score(rows.matrix[test])
        found = triage.judge(label, score, fitted.weights(label), rows.visit[test])
        goals = (("auroc", "", f">= {least}"), ("slope", "", ">= 0.95"), ("slope", "_not_above", "<= 1.05"))
        for name, end, goal in (*goals, ("ece", "", "<= 0.01")):
            yield {
                "name": f"triage_{columns}_{name}{end}", "value": found[name], "unit": "share", "goal": goal,
            }  # fmt: skip
        yield {"name": f"triage_{columns}_fit_cpu", "value": took, "unit": "s"}
