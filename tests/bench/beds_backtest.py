"""How good count forecasts are on open data: Welsh hours, English beds and discharges, one hospital by itself.

Only where the data are.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.series_backtest import Asked, run

HOURS = "wales_ed_hourly"
BEDS = "england_winter_sitreps/sitreps.parquet"
ALONE = "hdhi_admissions/admissions.parquet"
HUMBLE = ("naive", "seasonal_naive", "mean4", "mean6")
DISCHARGES = "england_discharges_daily/discharges_ctr.parquet"


def bench() -> Iterator[dict[str, Any]]:
    named = os.environ.get("WARDCAST_DATA", "").strip()
    folder = Path(named) / "beds"
    if not named or not folder.is_dir():
        reason = "WARDCAST_DATA names no folder with beds/"
        yield {"name": "beds_backtest", "value": None, "unit": "share", "reason": reason}
        return
    with tempfile.TemporaryDirectory() as held:
        out = Path(held) / "out.parquet"
        yield from _hours(folder / HOURS, out)
        yield from _alone(folder / ALONE, out)
        yield from _days("occupied", folder / BEDS, "ga_occ", "2021-11-29", "naive", (0.20, 0.29), out)
        yield from _days(
            "discharges", folder / DISCHARGES, "discharged_total", "2024-07-01", "mean4", (0.07, 0.025), out
        )


def _hours(folder: Path, out: Path) -> Iterator[dict[str, Any]]:
    """The last twelve months, after learning from the years before."""
    extra = [folder / "weather_forecasts.parquet", folder / "holiday_rugby.xlsx"]
    asked = Asked("2017-03-01", "12h", "48h", threads=2)
    done = run("hourly", folder / "arrivals.parquet", out, asked, covariate_files=extra, track=False)
    cells = done.evaluation["figures"]["n_attendance"]
    yield {"name": "hours_cpu", "value": done.evaluation["cpu_seconds"], "unit": "s", "goal": "<= 300"}
    yield _share("hours_pinball_skill", cells["1"]["pinball_skill_vs_first_climatology"], ">= 0.05")
    yield {  # brought up to date every 28 days, climatology is harder to beat
        "name": "hours_pinball_skill_vs_updated_climatology",
        "value": cells["1"]["pinball_skill_vs_climatology"], "unit": "share",
    }  # fmt: skip
    yield _share("hours_8h_crps_skill_vs_mean6_poisson", cells["8"]["crps_skill_vs_mean6"], ">= 0.09")
    for window in ("1", "8", "12", "24"):
        cell = cells[window]
        yield from _covered(f"hours_{window}h", cell["coverage_90_pit"])
        yield _share(f"hours_{window}h_99_exceeded", cell["exceeded_99"], "<= 0.015")


def _alone(path: Path, out: Path) -> Iterator[dict[str, Any]]:
    """Seven months of one hospital after eleven to learn from, beside the best of all humble forecasts afterwards."""
    done = run("visits", path, out, Asked("2018-03-01", threads=2), track=False)
    for quantity in ("admissions", "discharges", "occupied"):
        for day in ("1", "3", "7"):
            cell = done.evaluation["figures"][quantity][day]
            best = min(cell[f"mae_of_{usual}"] for usual in HUMBLE)
            line = {
                "name": f"alone_{quantity}_{day}d_mae",
                "value": cell["mae_of_median"],
                "unit": "patients",
            }
            yield line | {"reference": best, "goal": "ratio >= 0.95"}
            yield from _covered(f"alone_{quantity}_{day}d", cell["coverage_90_pit"])


def _days(
    name: str, path: Path, quantity: str, start: str, usual: str, goals: tuple[float, float], out: Path
) -> Iterator[dict[str, Any]]:
    done = run("daily", path, out, Asked(start, threads=2), track=False)
    cells = done.evaluation["figures"][quantity]
    yield {"name": f"{name}_cpu", "value": done.evaluation["cpu_seconds"], "unit": "s", "goal": "<= 720"}
    for day, goal in zip(("1", "7"), goals, strict=True):
        cell = cells[day]
        yield {
            "name": f"{name}_{day}d_mae", "value": cell["mae_of_median"], "unit": "beds",
            "reference": cell[f"mae_of_{usual}"],
        }  # fmt: skip
        yield _share(f"{name}_{day}d_mae_skill_vs_{usual}", cell[f"mae_skill_vs_{usual}"], f">= {goal}")
        yield from _covered(f"{name}_{day}d", cell["coverage_90_pit"])


def _share(name: str, value: float, goal: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": "share", "goal": goal}


def _covered(name: str, value: float) -> Iterator[dict[str, Any]]:
    """Coverage must be neither too small nor too large."""
    yield _share(f"{name}_coverage_90", value, ">= 0.87")
    yield _share(f"{name}_coverage_90_not_above", value, "<= 0.93")
