"""The bed forecast as a spreadsheet: a sheet to read, all figures, whether it came true, what it was made from."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from models.beds import HOSPITAL
from serving.reports.forecast import COVERED, SURE, BedForecast
from serving.reports.render import moment
from serving.reports.tables import COLUMNS, rows

if TYPE_CHECKING:
    import xlsxwriter
    from xlsxwriter.worksheet import Worksheet

SUMMARY: Final = {
    "Level": 22, "Waiting now": 9, "In beds now": 9, "Open beds": 9, "Expected need": 10,
    "At least (90 % sure)": 11, "Covers (95 in 100)": 11, "Discharges": 10, "Net": 8, "In beds then": 10,
    "Risk over 92 %": 10, "Risk over 95 %": 10, "Risk of running short": 10,
}  # fmt: skip
"""Columns of the sheet to read, and their widths in characters."""


def render_xlsx(forecast: BedForecast, site: str = "") -> bytes:
    """An XLSX workbook: beds by window and level, all figures, whether they came true, what they mean."""

    def fill(book: xlsxwriter.Workbook) -> None:
        _summary(book, forecast, site)
        figures(book, list(COLUMNS), rows(forecast))
        _record(book, forecast)
        about(book, _told(forecast), COLUMNS)

    return workbook(fill)


# ------------------------------------------------------------ what every workbook is made of


def workbook(fill: Callable[[xlsxwriter.Workbook], None]) -> bytes:
    """An XLSX file. Texts are written as texts, so that no name of a specialty or series can become a formula."""
    import xlsxwriter  # 0.1 s, and only who asks for a spreadsheet needs it

    out = io.BytesIO()
    book = xlsxwriter.Workbook(
        out, {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False}
    )
    fill(book)
    book.close()
    return out.getvalue()


def summary(
    book: xlsxwriter.Workbook, name: str, title: str, made: str, widths: Iterable[float],
    alarms: Iterable[str] = (), notes: Iterable[str] = (),
) -> tuple[Worksheet, int]:  # fmt: skip
    """The sheet to read, with its head; and the first line below it."""
    sheet = book.add_worksheet(name)
    alarm = book.add_format({"bold": True, "font_color": "#9C0006", "bg_color": "#FFC7CE"})
    sheet.write_string(0, 0, title, book.add_format({"bold": True, "font_size": 14}))
    sheet.write_string(1, 0, made)
    line = 2
    for said, how in (*((s, alarm) for s in alarms), *((s, None) for s in notes)):
        sheet.write_string(line, 0, said, how)
        line += 1
    for column, width in enumerate(widths):
        sheet.set_column(column, column, width)
    sheet.set_landscape()
    sheet.set_paper(9)  # A4
    sheet.fit_to_pages(1, 0)
    sheet.freeze_panes(2, 1)
    return sheet, line


def heads(book: xlsxwriter.Workbook, sheet: Worksheet, line: int, label: str, names: Sequence[str]) -> None:
    """What a table of the sheet to read is about, and the heads of its columns in the line below."""
    sheet.write_string(line, 0, label, book.add_format({"bold": True}))
    head = book.add_format({"bold": True, "text_wrap": True, "valign": "top", "bottom": 1})
    for column, name in enumerate(names):
        sheet.write_string(line + 1, column, name, head)


def figures(book: xlsxwriter.Workbook, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A sheet of all figures, one row each, to be filtered."""
    sheet = book.add_worksheet("All figures")
    head = book.add_format({"bold": True, "bottom": 1})
    for column, name in enumerate(columns):
        sheet.write_string(0, column, name, head)
    line = 0
    for line, row in enumerate(rows, start=1):
        for column, name in enumerate(columns):
            write(sheet, line, column, row[name])
    sheet.autofilter(0, 0, line, len(columns) - 1)
    sheet.freeze_panes(1, 0)


def about(book: xlsxwriter.Workbook, told: Mapping[str, str], columns: Mapping[str, str]) -> None:
    """A sheet that says what it was made from, how to read it, and what every column means."""
    sheet = book.add_worksheet("About")
    sheet.set_column(0, 0, 18)
    sheet.set_column(1, 1, 110)
    lines = [*told.items(), ("", ""), *columns.items()]
    for line, (name, meaning) in enumerate(lines):
        if name:
            sheet.write_string(line, 0, name)
            sheet.write_string(line, 1, meaning)


def write(sheet: Worksheet, line: int, column: int, value: Any, shape: Any = None) -> None:
    """A number as a number, a text as a text, what is unknown as an empty cell."""
    if value is None:
        sheet.write_blank(line, column, None, shape)
    elif isinstance(value, str):
        sheet.write_string(line, column, value, shape)
    else:
        sheet.write_number(line, column, value, shape)


# ------------------------------------------------------------ the bed forecast


def _summary(book: xlsxwriter.Workbook, f: BedForecast, site: str) -> None:
    made = f"Forecast made {moment(f.at, f.timezone)} ({f.timezone})"
    alarms = [f"Degraded: {s}" for s in f.freshness.silent]
    sheet, line = summary(
        book, "Beds", f"Beds {site}".strip(), made, SUMMARY.values(), alarms, f.freshness.notes
    )
    for window in f.windows:
        line = _window(book, sheet, f, window.key, window.label, line + 1)


def _window(
    book: xlsxwriter.Workbook, sheet: Worksheet, f: BedForecast, key: str, label: str, line: int
) -> int:
    """One window's table from ``line`` on; the line after it."""
    heads(book, sheet, line, label.capitalize(), ["", *list(SUMMARY)[1:]])
    for below, level in enumerate(f.levels, start=line + 2):
        c = f.cell(level, key)
        strong = {"bold": True, "top": 1} if level == HOSPITAL else {}
        whole, one, percent = (
            book.add_format({"num_format": shape} | strong) for shape in ("0", "0.0", "0 %")
        )
        text = book.add_format(strong)
        sheet.write_string(below, 0, level, text)
        values = (
            (c.waiting_now, whole), (c.occupied_now, whole), (c.open_beds, whole), (c.needed_mean, one),
            (c.needed.floor(SURE), whole), (c.needed.cover(COVERED), whole), (c.parts["discharges"], one),
            (c.net_mean, one), (c.occupied_after.quantile(0.5), whole), (c.over(0.92), percent),
            (c.over(0.95), percent), (c.short, percent),
        )  # fmt: skip
        for column, (value, shape) in enumerate(values, start=1):
            write(sheet, below, column, value, shape)
    return line + 2 + len(f.levels)


def _record(book: xlsxwriter.Workbook, f: BedForecast) -> None:
    sheet = book.add_worksheet("Did it come true")
    head = book.add_format({"bold": True, "bottom": 1})
    names = ("Day", "5 %", "25 %", "Median", "75 %", "95 %", "Outcome", "Inside the 9-in-10 range")
    for column, name in enumerate(names):
        sheet.write_string(0, column, name, head)
    for line, p in enumerate(f.record, start=1):
        told = (p.day, p.low, p.lower, p.middle, p.upper, p.high, p.outcome, "yes" if p.inside else "no")
        for column, value in enumerate(told):
            write(sheet, line, column, value)


def _told(f: BedForecast) -> dict[str, str]:
    return {
        "Model": f.model_id,
        "Made from": f.origin,
        "Read it so": "At least: so many or more are needed in 9 of 10 such situations. Covers: enough 95 times in "
        "100. Net: beds needed minus discharges, moves between specialties counted in. Specialties add up to the "
        "hospital; their ranges do not.",
        "No use for": "deciding whom to admit, discharge or delay. No patient is named here.",
    }
