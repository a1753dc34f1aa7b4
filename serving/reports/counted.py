"""A forecast of counted series in words and as a file: what a site reads that has counts only."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from models.counted import CountForecast, Known, Said, quantities
from serving.render import environment
from serving.reports.counted_print import (
    OF_OPEN,
    RISKS,
    Foretold,
    first_risks,
    likely,
    render_pdf,
    render_xlsx,
)
from serving.reports.formats import asked
from serving.reports.tables import csv_cell

TOLD: Final = 12
"""Series whose forecast is printed; a file holds them all."""


@dataclass(frozen=True)
class CountReport:
    """A forecast that was written."""

    path: Path
    forecast: CountForecast

    def summary(self) -> str:
        """What it says of every series, as far as they fit, how the last forecasts held, and where the file is."""
        f = self.forecast
        said = f.said()
        lines = [f"Newest count {_stamp(f, f.newest)}; forecast from {_stamp(f, f.at)} on.", *f.stale, ""]
        for k in f.known[:TOLD]:
            lines.append(f"{k.name}, {_newest(f, k)}{_held(k)}:")
            lines += [
                f"  {s.label}: {said[k.name, s.label].words()}" for s in f.spans if (k.name, s.label) in said
            ]
            lines += _full(f, k, said)
        if len(f.known) > TOLD:
            lines.append(f"… and {len(f.known) - TOLD:,} more series in the file.")
        return "\n".join([*lines, "", record(f), *f.notes, f"Report: {self.path}"])


def _newest(f: CountForecast, k: Known) -> str:
    """A count as people say it; a single hour tells nobody anything."""
    return f"{k.newest:,.0f} on {k.stamp:%a} {k.stamp.day} {k.stamp:%b}" if f.step_h == 24 else "by hour"


def _full(f: CountForecast, k: Known, said: Foretold) -> list[str]:
    """How likely the open beds run short on the first day, where they are known."""
    if k.open_beds is None:
        return []
    over_92, over_95, short = map(likely, first_risks(f, k, said).values())
    return [
        f"  {f.spans[0].label}, of {k.open_beds:,.0f} open beds: over 92 % {over_92}, over 95 % {over_95}, "
        f"running short {short}"
    ]


def _held(k: Known) -> str:
    return f", {k.inside} of the last {k.of} forecasts held" if k.of else ""


def record(f: CountForecast) -> str:
    """How often the last fortnight's forecasts held, in words."""
    inside, of = sum(k.inside for k in f.known), sum(k.of for k in f.known)
    what = "the first day told" if f.step_h == 24 else "24 hours"
    if not of:
        return "There is too little history to say how the last forecasts held."
    return (
        f"Of the last fortnight's forecasts of {what}, {inside:,} of {of:,} ({inside / of:.0%}) fell inside the "
        "range that is meant for 9 in 10."
    )


def _stamp(f: CountForecast, stamp: Any) -> str:
    return f"{stamp:%A} {stamp.day} {stamp:%B %Y}" + (f"{stamp:, %H:%M}" if f.step_h == 1 else "")


# ------------------------------------------------------------ files


def render_html(f: CountForecast, site: str) -> str:
    """One file that opens anywhere and loads nothing."""
    said = f.said()
    tables = [
        (q, [(k, [said.get((k.name, s.label)) for s in f.spans]) for k in f.known if k.quantity == q])
        for q in quantities(f.known)
    ]
    moved = ", ".join(f"{about} {share:.0%}" for about, share in f.moved_by.items() if share >= 0.005)
    template = environment("UTC").get_template("counts_report.html")
    return template.render(
        f=f, site=site, made=_stamp(f, f.at), newest=_stamp(f, f.newest), tables=tables,
        record=record(f), moved=moved, number=_number, by_hour=f.step_h == 1, risks=RISKS, likely=likely,
        first_risks=lambda k: first_risks(f, k, said), of_open=OF_OPEN,
    )  # fmt: skip


def _number(said: Said | None, name: str) -> str:
    return "–" if said is None else f"{getattr(said, name):,}"


def render_csv(f: CountForecast) -> str:
    """Every hour or day and sum with its nineteen quantiles, as ``wardcast data schema forecasts`` says."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(f.as_came.columns)
    for row in f.as_came.itertuples(index=False):
        writer.writerow([csv_cell(v) for v in row])
    return out.getvalue()


WRITERS: Final[Mapping[str, Callable[[CountForecast, str], bytes]]] = {
    "html": lambda f, site: render_html(f, site).encode(),
    "pdf": lambda f, site: render_pdf(f, site, _stamp(f, f.at), _stamp(f, f.newest), record(f)),
    "xlsx": lambda f, site: render_xlsx(f, site, _stamp(f, f.at), _stamp(f, f.newest), record(f)),
    "csv": lambda f, site: render_csv(f).encode(),
    "json": lambda f, site: (
        json.dumps({"site": site} | f.to_dict(), allow_nan=False, indent=1) + "\n"
    ).encode(),
}
"""Every form of the bed report."""


def form_of(form: str, output: Path | None) -> str:
    """The form asked for, else the suffix of the file, else ``html``.

    Raises
    ------
    ConfigError
        A forecast of counts is not written as that.
    """
    return asked(form, output, "A forecast of counts")


def write(f: CountForecast, form: str, output: Path | None, folder: Path, site: str) -> CountReport:
    """Write it as one file, by default under ``folder`` and named by the moment it was made for."""
    stem = f"beds-counts-{f.at:%Y-%m-%d}" + (f"-{f.at:%H%M}" if f.step_h == 1 else "")
    path = output or folder / f"{stem}.{form}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(WRITERS[form](f, site if site != "site" else ""))
    return CountReport(path, f)
