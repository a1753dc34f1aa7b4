"""The card of forecasts of counted series: what was issued, how good it was, what moved it; no series is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from models.tables import markdown, number, with_interval

Table = Mapping[str, Any]

MADE: Final = {
    1: "A Poisson regression on the local calendar, the level of the last 1 to 364 days and whatever series were "
    "given, blended on the log scale with LightGBM that reads the same. Hours of a day share a factor of mean 1, so "
    "that sums of hours are wider than independent hours say.",
    24: "The usual guesses of a bed manager mixed as was best before, a ridge regression on top, and beside them "
    "LightGBM in two views where there are examples enough. All series of a quantity share one model. What all series "
    "were off by lately is carried on; the spread is that of forecasts come true, wider over holidays.",
}
CALIBRATED: Final = (
    "Levels are read so that past forecasts of the same kind, come true by then, held as often as they said "
    "(conformal, weekly). Coverage is of the 90 % interval, by randomised PIT; brackets are 95 % by resampled weeks."
)
LIMITS: Final = (
    "Counts only: no patient is read, and who is meant is not known. Every figure is of the file named and of the "
    "time after the first origin; another site, or a time unlike the past, may be foreseen worse. Reasons say what the "
    "model used, not what causes people to come or to leave."
)
UNITS: Final = {1: "% of the mean", 24: "counts"}


def card(evaluation: Table) -> str:
    """Markdown, from the evaluation that :func:`training.series_backtest.run` writes."""
    data, schedule = evaluation["data"], evaluation["schedule"]
    step = int(data["step_h"])
    figures = evaluation["figures"]
    parts = [
        f"# Model card: {', '.join(q for q in figures if q != 'cells')}, by {'hour' if step == 1 else 'day'}",
        MADE[step],
        f"**Data.** {data['file']} ({data['layout']}): {data['series']:,} series, {data['first']} to {data['last']}.",
        f"**Schedule.** {schedule['origins']:,} origins from {schedule['first_origin']} to {schedule['last_origin']}, "
        f"every {schedule['every']}, {schedule['horizon']} ahead; fitted anew every {schedule['refit']}.",
        f"**Calibration.** {CALIBRATED}",
        *(f"## {q}\n\n{_figures(cells, figures['cells'])}" for q, cells in figures.items() if q != "cells"),
        f"**Series.** {_by_series(evaluation['by_series'])}",
        f"## What moves them\n\n{_drivers(evaluation['drivers'], step)}",
        f"## Limits\n\n{LIMITS}",
    ]
    return "\n\n".join(parts) + "\n"


def _figures(cells: Table, cell: str) -> str:
    rows = []
    for key, c in cells.items():
        best = min((n for n in c if n.startswith("mae_of_") and n != "mae_of_median"), key=lambda n: c[n])
        humble = best.removeprefix("mae_of_")
        skill, (low, high) = c[f"mae_skill_vs_{humble}"], c[f"mae_skill_vs_{humble}_interval"]
        covered = [c["coverage_90_pit"], *c["coverage_90_pit_interval"]]
        saved = f"{skill:+.1%} ({low:+.1%} to {high:+.1%})"
        told = [
            number(c[name], digits)
            for name, digits in (("outcome_mean", 1), ("mae_of_median", 2), ("crps", 2))
        ]
        over = f"{c['exceeded_99']:.1%}"
        rows.append(
            (
                key,
                f"{c['forecasts']:,}",
                *told,
                with_interval(covered, 3),
                over,
                saved,
                humble.replace("_", " "),
            )
        )
    first = "window, h" if cell == "window_h" else "days ahead"
    head = (
        first,
        "forecasts",
        "mean",
        "MAE",
        "CRPS",
        "coverage",
        "99 % exceeded",
        "MAE saved",
        "best humble",
    )
    return markdown(head, rows)


def _by_series(rows: list[dict[str, Any]]) -> str:
    """How unalike the series are served: the tenth of them least and best covered."""
    covered = np.array([r["coverage_90_pit"] for r in rows])
    if len(covered) < 2:
        return "One only."
    low, high = np.quantile(covered, [0.1, 0.9])
    return (
        f"Coverage of nine in ten series is at least {low:.2f}, of one in ten {high:.2f} or more, all days and windows "
        f"together; the least is {covered.min():.2f}."
    )


def _drivers(drivers: list[dict[str, Any]], step: int) -> str:
    """Of the last fit; exactly additive, on the log scale for hours."""
    unit = UNITS[step]
    rows = [
        (
            str(d["about"]),
            f"{100 * np.expm1(d['moves']):.1f}" if step == 1 else f"{d['moves']:.2f}",
            f"{d['share']:.0%}",
        )
        for d in drivers
    ]
    head = ("about", f"moves a forecast by, {unit}", "share")
    told = (
        "Mean absolute contribution to the forecasts of the last fit: coefficients of the regression, SHAP of the "
        "trees, weighted as they are blended, so that they add up to the forecast."
    )
    return f"{told}\n\n{markdown(head, rows)}"
