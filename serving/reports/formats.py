"""The forms in which the bed report leaves the house, each made from one forecast."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from features.errors import ConfigError
from serving.reports.forecast import BedForecast
from serving.reports.pdf import render_pdf
from serving.reports.render import render_report
from serving.reports.spreadsheet import render_xlsx
from serving.reports.tables import render_csv


@dataclass(frozen=True)
class Format:
    """How a forecast is written, and what that is called over HTTP and in e-mail."""

    media: str
    write: Callable[[BedForecast, str], bytes]


FORMATS: Final[Mapping[str, Format]] = {
    "html": Format("text/html; charset=utf-8", lambda f, site: render_report(f, site).encode()),
    "pdf": Format("application/pdf", render_pdf),
    "xlsx": Format("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", render_xlsx),
    "csv": Format("text/csv; charset=utf-8", lambda f, site: render_csv(f).encode()),
    "json": Format("application/json", lambda f, site: json.dumps(f.to_dict(), allow_nan=False).encode()),
}


def format_of(name: str) -> Format:
    """A format by its name, which is also the suffix of its files.

    Raises
    ------
    ConfigError
        There is none of that name.
    """
    return FORMATS[asked(name, None)]


def asked(form: str, output: Path | None, what: str = "A bed report") -> str:
    """Name of the format asked for, else of that which the file's suffix means, else ``html``.

    Raises
    ------
    ConfigError
        There is none of that name.
    """
    name = (form or (output.suffix if output else "") or "html").lower().lstrip(".")
    if name not in FORMATS:
        raise ConfigError(f"{what} cannot be written as {name!r}. Write one of {', '.join(FORMATS)}.")
    return name
