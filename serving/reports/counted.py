"""A forecast of counted series as a page, a table or JSON, and in words: what a site reads that has counts only."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from features.errors import ConfigError
from models.counted import CountForecast, Known, Said, quantities
from serving.render import environment
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
        if len(f.known) > TOLD:
            lines.append(f"… and {len(f.known) - TOLD:,} more series in the file.")
        return "\n".join([*lines, "", record(f), *f.notes, f"Report: {self.path}"])


def _newest(f: CountForecast, k: Known) -> str:
    """A count as people say it; a single hour tells nobody anything."""
    return f"{k.newest:,.0f} on {k.stamp:%a} {k.stamp.day} {k.stamp:%b}" if f.step_h == 24 else "by hour"


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
        f=f, site=site if site != "site" else "", made=_stamp(f, f.at), newest=_stamp(f, f.newest), tables=tables,
        record=record(f), moved=moved, number=_number, by_hour=f.step_h == 1,
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


FORMS: Final[Mapping[str, Callable[[CountForecast, str], str]]] = {
    "html": render_html,
    "csv": lambda f, site: render_csv(f),
    "json": lambda f, site: json.dumps({"site": site} | f.to_dict(), allow_nan=False, indent=1) + "\n",
}


def form_of(form: str, output: Path | None) -> str:
    """The form asked for, else the suffix of the file, else ``html``.

    Raises
    ------
    ConfigError
        A forecast of counts is not written as that.
    """
    name = (form or (output.suffix if output else "") or "html").lower().lstrip(".")
    if name not in FORMS:
        raise ConfigError(
            f"A forecast of counts cannot be written as {name!r}. Write one of {', '.join(FORMS)}."
        )
    return name


def write(f: CountForecast, form: str, output: Path | None, folder: Path, site: str) -> CountReport:
    """Write it as one file, by default under ``folder`` and named by the moment it was made for."""
    stem = f"beds-counts-{f.at:%Y-%m-%d}" + (f"-{f.at:%H%M}" if f.step_h == 1 else "")
    path = output or folder / f"{stem}.{form}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FORMS[form](f, site), encoding="utf-8", newline="")
    return CountReport(path, f)
