"""The bed forecast as a spreadsheet: a sheet to read, all figures, whether it came true, what it was made from."""

from __future__ import annotations

import io
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
    """An XLSX workbook. Texts are written as texts, so that no name of a specialty can become a formula."""
    import xlsxwriter  # 0.1 s, and only who asks for a spreadsheet needs it

    out = io.BytesIO()
    book = xlsxwriter.Workbook(
        out, {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False}
    )
    _summary(book, forecast, site)
    _figures(book, forecast)
    _record(book, forecast)
    _about(book, forecast)
    book.close()
    return out.getvalue()


def _summary(book: xlsxwriter.Workbook, f: BedForecast, site: str) -> None:
    sheet = book.add_worksheet("Beds")
    title, head, alarm = (
        book.add_format(how)
        for how in (
            {"bold": True, "font_size": 14},
            {"bold": True, "text_wrap": True, "valign": "top", "bottom": 1},
            {"bold": True, "font_color": "#9C0006", "bg_color": "#FFC7CE"},
        )
    )
    sheet.write_string(0, 0, f"Beds {site}".strip(), title)
    sheet.write_string(1, 0, f"Forecast made {moment(f.at, f.timezone)} ({f.timezone})")
    line = 2
    for said in (*(f"Degraded: {s}" for s in f.freshness.silent), *f.freshness.notes):
        sheet.write_string(line, 0, said, alarm if said.startswith("Degraded") else None)
        line += 1
    for column, width in enumerate(SUMMARY.values()):
        sheet.set_column(column, column, width)
    for window in f.windows:
        line = _window(book, sheet, f, window.key, window.label, line + 1, head)
    sheet.set_landscape()
    sheet.set_paper(9)  # A4
    sheet.fit_to_pages(1, 0)
    sheet.freeze_panes(2, 1)


def _window(
    book: xlsxwriter.Workbook, sheet: Worksheet, f: BedForecast, key: str, label: str, line: int, head: Any
) -> int:
    """One window's table from ``line`` on; the line after it."""
    bold = book.add_format({"bold": True})
    sheet.write_string(line, 0, label.capitalize(), bold)
    for column, name in enumerate(SUMMARY):
        sheet.write_string(line + 1, column, name if column else "", head)
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
            _write(sheet, below, column, value, shape)
    return line + 2 + len(f.levels)


def _figures(book: xlsxwriter.Workbook, f: BedForecast) -> None:
    sheet = book.add_worksheet("All figures")
    head = book.add_format({"bold": True, "bottom": 1})
    for column, name in enumerate(COLUMNS):
        sheet.write_string(0, column, name, head)
    for line, row in enumerate(rows(f), start=1):
        for column, name in enumerate(COLUMNS):
            _write(sheet, line, column, row[name])
    sheet.autofilter(0, 0, len(f.windows) * len(f.levels), len(COLUMNS) - 1)
    sheet.freeze_panes(1, 0)


def _record(book: xlsxwriter.Workbook, f: BedForecast) -> None:
    sheet = book.add_worksheet("Did it come true")
    head = book.add_format({"bold": True, "bottom": 1})
    names = ("Day", "5 %", "25 %", "Median", "75 %", "95 %", "Outcome", "Inside the 9-in-10 range")
    for column, name in enumerate(names):
        sheet.write_string(0, column, name, head)
    for line, p in enumerate(f.record, start=1):
        told = (p.day, p.low, p.lower, p.middle, p.upper, p.high, p.outcome, "yes" if p.inside else "no")
        for column, value in enumerate(told):
            _write(sheet, line, column, value)


def _about(book: xlsxwriter.Workbook, f: BedForecast) -> None:
    sheet = book.add_worksheet("About")
    sheet.set_column(0, 0, 18)
    sheet.set_column(1, 1, 110)
    told = {
        "Model": f.model_id,
        "Made from": f.origin,
        "Read it so": "At least: so many or more are needed in 9 of 10 such situations. Covers: enough 95 times in "
        "100. Net: beds needed minus discharges, moves between specialties counted in. Specialties add up to the "
        "hospital; their ranges do not.",
        "No use for": "deciding whom to admit, discharge or delay. No patient is named here.",
    }
    for line, (name, text) in enumerate(told.items()):
        sheet.write_string(line, 0, name)
        sheet.write_string(line, 1, text)
    for line, (name, meaning) in enumerate(COLUMNS.items(), start=len(told) + 1):
        sheet.write_string(line, 0, name)
        sheet.write_string(line, 1, meaning)


def _write(sheet: Worksheet, line: int, column: int, value: Any, shape: Any = None) -> None:
    """A number as a number, a text as a text, what is unknown as an empty cell."""
    if value is None:
        sheet.write_blank(line, column, None, shape)
    elif isinstance(value, str):
        sheet.write_string(line, column, value, shape)
    else:
        sheet.write_number(line, column, value, shape)
