"""How data must look to be read: the tables and columns of every source, and of what Wardcast makes of them.

Databases of many tables are described by ``features/sources/layouts.csv``, a row a table; a test compares it with what
the readers ask for. Everything else is told by the constants and the heads of the modules that read it.
"""

from __future__ import annotations

import csv
import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module, resources
from typing import Final

from features import archive, events
from features.errors import DataError
from features.sources import (
    counts,
    covariates,
    fhir_resources,
    hl7v2,
    hl7v2_message,
    meds,
    moves,
    outlook,
    physionet2012,
    physionet2019,
    visits,
)
from features.sources.registry import READERS

OURS: Final[dict[str, str]] = {
    "visits": "one row an attendance, CSV or Parquet: what bed forecasts learn from",
    "triage": "one row a visit with any columns of numbers: what P(admission) alone learns from",
    "counts": "counts by hour or day, CSV or Parquet: what `wardcast forecast|backtest beds --shape` read",
    "covariates": "weather, virus or ambulance series and calendars, to go with counts",
    "forecasts": "what `wardcast backtest beds`, and `forecast beds --shape` as .csv, write: a forecast a row",
    "events": "the event table that everything becomes",
    "encounters": "the stays that events belong to",
    "archive": "what `wardcast data convert` writes: a MEDS 0.4 data set, with encounters beside it",
}
"""Layouts that no reader of a foreign format has, in words."""
MAPPED: Final = ("fhir", "hl7v2", "omop")
"""Sources that take a mapping file of a site's own codes, units and places."""
WIDTH: Final = 110


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a source: what it holds, which columns must be there, and which may."""

    name: str
    must_exist: bool
    required: tuple[str, ...]
    optional: tuple[str, ...]
    holds: str


@cache
def tables() -> dict[str, tuple[Table, ...]]:
    """The tables of each source that is a database of tables, as layouts.csv says."""
    text = resources.files("features.sources").joinpath("layouts.csv").read_text(encoding="utf-8")
    found: dict[str, list[Table]] = {}
    for row in csv.DictReader(text.splitlines(), strict=True):
        required, optional = tuple(row["required"].split()), tuple(row["optional"].split())
        table = Table(row["table"], row["must_exist"] == "yes", required, optional, row["holds"])
        found.setdefault(row["source"], []).append(table)
    return {source: tuple(rows) for source, rows in found.items()}


def schema(name: str | None = None) -> str:
    """What a source must look like, in words and tables; without a name, which sources there are.

    Raises
    ------
    DataError
        There is no such source.
    """
    if name is None:
        return _overview()
    known = READERS | OURS
    if name not in known:
        raise DataError(f"There is no layout {name!r}. Choose one of {', '.join(known)}.")
    return f"{name}: {known[name]}\n\n{_body(name)}"


def _overview() -> str:
    said = ["Sources that `wardcast data convert` reads:", "", aligned(READERS.items()), ""]
    said += ["And:", "", aligned(OURS.items()), "", "More of each: wardcast data schema NAME"]
    return "\n".join(said)


def _body(name: str) -> str:
    if name in tables():
        return _tables(name)
    return {
        "triage": _triage, "counts": _counts, "covariates": _covariates, "forecasts": _forecasts,
        "visits": _visits, "events": _events, "encounters": _encounters, "archive": _archive, "meds": _meds,
        "physionet2019": _physionet2019, "physionet2012": _physionet2012, "fhir": _fhir, "hl7v2": _hl7v2,
    }.get(name, lambda: _head(name))()  # fmt: skip


def _tables(source: str) -> str:
    said = [
        "A folder with these tables as .parquet, .csv or .csv.gz, there or up to two folders below. Case of names",
        "does not matter. A table without a star may be absent: what it holds is then missing, and a note says so.",
        "",
    ]
    for table in tables()[source]:
        said.append(f"{table.name}{'*' if table.must_exist else ''}: {table.holds}")
        said += [_wrapped("columns ", table.required)]
        said += [_wrapped("may have", table.optional)] if table.optional else []
    return "\n".join(said) + _mapping(source)


def _wrapped(lead: str, words: Iterable[str]) -> str:
    return textwrap.fill(
        ", ".join(words),
        WIDTH,
        initial_indent=f"    {lead}  ",
        subsequent_indent=" " * (6 + len(lead)),
        break_on_hyphens=False,
    )


def _head(source: str) -> str:
    """The head of the module that reads a format: its second paragraph on, without what only programmers need."""
    return _head_of(f"features.sources.{source}")


def _head_of(module: str) -> str:
    head = inspect.getdoc(import_module(module)) or ""
    said = head.replace("::\n", ":\n").replace("``", "`").split("\n\n")[1:]
    return "\n\n".join(p for p in said if not re.search(r":(func|mod|class|data):`", p))


def _mapping(source: str) -> str:
    if source not in MAPPED:
        return ""
    head = inspect.getdoc(import_module("features.sources.vocabulary")) or ""
    example = head.partition("::\n")[2].strip("\n")
    return f"\n\nCodes of a site's own, given with --mapping FILE, a TOML file:\n\n{example}"


def _fhir() -> str:
    why = aligned(fhir_resources.REMEDIES.items(), ("left out", "because, and what to do"))
    return f"{_head('fhir')}\n\n{why}{_mapping('fhir')}"


def _hl7v2() -> str:
    said = [
        "A file or a folder of messages of HL7 v2.1 to 2.8, framed as MLLP or not: admissions, transfers and",
        "discharges (ADT), results (ORU, OUL and whatever else carries OBX), drug orders (RDE, ORM, OMP, RDS) and",
        f"administrations (RAS). Files end in {', '.join(hl7v2.SUFFIXES)}, or begin with a message.",
        "",
        _head("hl7v2"),
        "",
        aligned(hl7v2_message.REMEDIES.items(), ("left out", "because, and what to do")),
    ]
    return "\n".join(said) + _mapping("hl7v2")


def _triage() -> str:
    return (
        _head_of("training.triage")
        + "\n\nCSV or Parquet. Every column the mapping does not name is a number the model reads; empty is missing."
        "\nTo score, the file needs the same columns and no outcome: wardcast score admissions --source triage"
        "\n--model FOLDER --input FILE --output FILE.parquet writes row and p_admission, and the visit's column where"
        "\nthe mapping names one."
    )


def _visits() -> str:
    rows = [
        (f"{c}{'*' if c in visits.REQUIRED else ''}", meaning, ", ".join(visits.SPELLINGS[c]))
        for c, meaning in visits.VISIT_COLUMNS.items()
    ]
    return (
        f"{aligned(rows, ('column', 'meaning', 'also known as'))}\n\n"
        "A star marks what must be there as a column; single cells may be empty. Times are ISO 8601; without an\n"
        "offset they are read in WARDCAST_TIMEZONE. Check a file: wardcast data check --source visits --input FILE\n\n"
        "Beside them may lie, as .csv or .parquet:\n\n"
        f"moves\n{aligned(moves.MOVE_COLUMNS.items())}\n\n"
        f"elective\n{aligned(outlook.ELECTIVE_COLUMNS.items())}\n\n"
        f"covariates\n{aligned(outlook.COVARIATE_COLUMNS.items())}"
    )


def _counts() -> str:
    spelled = [
        ("time", counts.TIME_NAMES), ("series", counts.SERIES_NAMES), ("values", counts.VALUE_NAMES),
    ]  # fmt: skip
    found = [
        (
            name,
            said["shape"],
            ", ".join(said["recognise"]),
            ", ".join(said.get("values", ())) or "visits, counted",
        )
        for name, said in counts.layouts().items()
    ]
    return "\n".join(
        [
            aligned(counts.SHAPES.items(), ("--shape", "a row is")),
            "",
            "Columns of counts are known by these names, in any case; others are named in a mapping file:",
            "",
            aligned((key, ", ".join(names)) for key, names in spelled),
            "",
            aligned(counts.KEYS.items(), ("mapping", "meaning")),
            "",
            "Layouts recognised by their columns, which need no mapping:",
            "",
            aligned(found, ("layout", "--shape", "columns", "forecast")),
            "",
            _head_of("features.sources.counts"),
            "",
            "A stamp with an offset is read on the wall clock of WARDCAST_TIMEZONE, one without as it is printed, or "
            "on that of the mapping's zone. An hour that clocks show twice holds the counts of both its turns.",
            "Check a file: wardcast data check --source hourly|daily --input FILE",
            "What comes next: wardcast forecast beds --shape hourly|daily --input FILE",
        ]
    )


def _covariates() -> str:
    names = aligned(covariates.KEYS.items(), ("[covariates.NAME]", "meaning"))
    return f"{_head_of('features.sources.covariates')}\n\n{names}"


def _forecasts() -> str:
    rows = [
        ("series", "as the counts name it; with several values, series/value"),
        ("origin", "of hours the first stamp not known, of days the last one known"),
        ("target", "stamp of the last hour or day of the window, as the counts write it"),
        (
            "window_h",
            "1 an hour, 24 a day; 4, 8, 12, 24 sums of hours: counts.rolling(window_h).sum() at the target",
        ),
        ("mean", "expected count"),
        (
            "q05 … q95",
            "nineteen quantiles, 5 % apart: whole numbers of single hours, else as if counts were continuous",
        ),
        ("cover99", "the number to be exceeded once in a hundred times"),
    ]
    return aligned(rows, ("column", "meaning"))


def _events() -> str:
    return (
        f"{aligned(events.EVENT_COLUMNS.items(), ('column', 'meaning'))}\n\n"
        "Times are UTC. Codes and concepts that are understood: features/concepts/."
    )


def _encounters() -> str:
    return aligned(events.ENCOUNTER_COLUMNS.items(), ("column", "meaning"))


def _archive() -> str:
    fields = [(f.name, str(f.type), "" if f.nullable else "never empty") for f in archive.DATA]
    layout = (inspect.getdoc(archive) or "").partition("::\n")[2].split("\n\nMEDS wants")[0].strip("\n")
    return f"{layout}\n\nColumns of data/:\n\n{aligned(fields, ('column', 'type', ''))}"


def _meds() -> str:
    asked = [
        ("the encounter", ", ".join(meds.STAYS)),
        ("the unit", ", ".join(meds.UNITS)),
        ("kept where they are there", ", ".join(("available_time", *meds.WORDS))),
        ("first parts of codes", ", ".join((*meds.LEADS, *meds.MEASURED))),
    ]
    return f"A folder with data/**/*.parquet.\n\n{_head('meds')}\n\n{aligned(asked)}"


def _physionet2019() -> str:
    said = ["A Parquet file, or a folder of them: one row an hour.", ""]
    said += [_wrapped("columns ", ("patient_id", "ICULOS or hour"))]
    said += [_wrapped("may have", (*physionet2019.PERSONAL, *physionet2019.MEASURED))]
    return "\n".join([*said, "", _head("physionet2019")])


def _physionet2012() -> str:
    said = ["A folder with Parquet or CSV tables of these columns, or the challenge's own text files.", ""]
    return "\n".join([*said, _wrapped("columns ", physionet2012.COLUMNS), "", _head("physionet2012")])


def aligned(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Rows as columns of text, numbers to the right; nothing is cut off."""
    cells = [[_cell(c) for c in row] for row in rows]
    numbers = [all(c == "" or c[0] in "-+.0123456789" for c in column) for column in zip(*cells, strict=True)]
    lines = [list(header), *cells] if header else cells
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    made = [
        "  ".join(
            c.rjust(w) if number else c.ljust(w) for c, w, number in zip(line, widths, numbers, strict=True)
        )
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in made)


def _cell(value: object) -> str:
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None or value != value else str(value)
