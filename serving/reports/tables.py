"""The bed forecast as rows, one a level and window: what the CSV file and the spreadsheet hold."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, Final

from models.beds import Cell, Window
from serving.reports.forecast import COVERED, SURE, BedForecast, iso

LOW: Final = 0.05
HIGH: Final = 0.95
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet take a text for a formula when it opens a CSV file."""

COLUMNS: Final = {
    "made_at": "when the forecast was made, UTC",
    "model": "the bundle that made it",
    "degraded": "1 where a feed is silent: do not plan on the figures",
    "level": "specialty, or hospital",
    "window": "which span of time",
    "from": "its start, UTC, excluded",
    "to": "its end, UTC, included",
    "waiting_now": "patients with a decision to admit and no bed yet",
    "occupied_now": "patients in a bed",
    "open_beds": "open beds, where known",
    "known": "expected beds needed by those waiting now",
    "in_ed": "expected beds needed by the undecided in the emergency department",
    "to_come": "expected beds needed by emergency patients still to arrive",
    "planned": "expected beds needed by electives (of the list, where there is one) and transfers from elsewhere",
    "needed": "expected beds needed, the sum of the four",
    "needed_q05": "5 % quantile of beds needed",
    "needed_q50": "median",
    "needed_q95": "95 % quantile",
    "at_least": "at least so many are needed, 90 % sure",
    "covers": "so many cover it 95 times in 100",
    "discharges": "expected discharges",
    "discharges_q05": "5 % quantile",
    "discharges_q95": "95 % quantile",
    "moved_in": "expected moves of inpatients from other specialties",
    "moved_out": "expected moves to other specialties",
    "net": "expected change of occupied beds: needed and moved in, less discharges and moved out",
    "net_q05": "5 % quantile",
    "net_q95": "95 % quantile",
    "occupied_q05": "beds taken at the window's end, 5 % quantile",
    "occupied_q50": "median",
    "occupied_q95": "95 % quantile",
    "p_over_92": "probability that more than 92 % of the open beds are taken then",
    "p_over_95": "more than 95 %",
    "p_short": "more patients than open beds",
}
"""Every column, in order, and what it means."""


def rows(forecast: BedForecast) -> Iterator[dict[str, Any]]:
    """One row a level and window, in the order of the report; None where a figure cannot be had."""
    made = {
        "made_at": iso(forecast.at),
        "model": forecast.model_id,
        "degraded": int(bool(forecast.freshness.silent)),
    }
    for window in forecast.windows:
        for level in forecast.levels:
            yield made | _row(forecast.cell(level, window.key), window)


def _row(cell: Cell, window: Window) -> dict[str, Any]:
    needed, left, net, then = cell.needed, cell.discharges, cell.net, cell.occupied_after
    return {
        "level": cell.level,
        "window": window.label,
        "from": iso(window.start),
        "to": iso(window.end),
        "waiting_now": cell.waiting_now,
        "occupied_now": cell.occupied_now,
        "open_beds": cell.open_beds,
        "known": cell.parts["known"],
        "in_ed": cell.parts["in_ed"],
        "to_come": cell.parts["to_come"],
        "planned": cell.parts["planned"],
        "needed": cell.needed_mean,
        "needed_q05": needed.quantile(LOW),
        "needed_q50": needed.quantile(0.5),
        "needed_q95": needed.quantile(HIGH),
        "at_least": needed.floor(SURE),
        "covers": needed.cover(COVERED),
        "discharges": cell.parts["discharges"],
        "discharges_q05": left.quantile(LOW),
        "discharges_q95": left.quantile(HIGH),
        "moved_in": cell.parts["moved_in"],
        "moved_out": cell.parts["moved_out"],
        "net": cell.net_mean,
        "net_q05": net.quantile(LOW),
        "net_q95": net.quantile(HIGH),
        "occupied_q05": then.quantile(LOW),
        "occupied_q50": then.quantile(0.5),
        "occupied_q95": then.quantile(HIGH),
        "p_over_92": cell.over(0.92),
        "p_over_95": cell.over(0.95),
        "p_short": cell.short,
    }


def render_csv(forecast: BedForecast) -> str:
    """The rows as CSV with a header; texts that a spreadsheet would run as a formula are marked as text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(COLUMNS), lineterminator="\r\n")
    writer.writeheader()
    for row in rows(forecast):
        writer.writerow({name: csv_cell(value) for name, value in row.items()})
    return out.getvalue()


def csv_cell(value: Any) -> Any:
    """A number to four places, a text that no spreadsheet runs, anything else as it is."""
    if isinstance(value, float):
        return round(value, 4)
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
