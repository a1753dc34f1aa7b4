"""A4 landscape as PDF, drawn directly (no browser, no system library): what every printed report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from models.forecast import Counts
from serving.reports.forecast import SPREAD

if TYPE_CHECKING:
    from fpdf import FPDF

FONTS: Final = Path(__file__).parent / "fonts"
WIDTH: Final = 277.0
"""Millimetres between the margins."""
LEFT: Final = 10.0
FOOT_Y: Final = 210 - 8 - 9
"""Where the foot begins."""
INK, MUTED, LINE = (18, 32, 44), (96, 108, 118), (205, 212, 218)
WIDE, HALF, ALARM = (188, 217, 236), (47, 127, 181), (156, 0, 6)
STRONG: Final = ("At least", "Covers")
"""Columns that people plan on."""

Column = tuple[str, float, str]
"""Heading, width in millimetres, alignment."""


def new_page(title: str, made: datetime) -> FPDF:
    """A document with its first page begun."""
    from fpdf import FPDF  # 0.4 s, and only who asks for a PDF needs it

    pdf = FPDF(orientation="landscape", unit="mm", format="A4")
    pdf.set_auto_page_break(False)
    pdf.set_margins(LEFT, 8)
    for style, file in (("", "DejaVuSans.ttf"), ("B", "DejaVuSans-Bold.ttf")):
        pdf.add_font("DejaVu", style, FONTS / file)
    pdf.set_title(title)
    pdf.set_lang("en")
    pdf.set_creation_date(made)
    pdf.add_page()
    pdf.set_line_width(0.2)
    return pdf


def pen(pdf: FPDF, size: float, bold: bool = False, colour: Sequence[int] = INK) -> None:
    """Write on in this size, weight and colour."""
    pdf.set_font("DejaVu", "B" if bold else "", size)
    pdf.set_text_color(*colour)


def head(pdf: FPDF, title: str, site: str, made: str, alarm: str = "", notes: Sequence[str] = ()) -> None:
    """Title, when it was made from what, why not to plan on it, and what else a reader should know."""
    pen(pdf, 15, bold=True)
    pdf.cell(0, 7, f"{title}{' · ' + site if site and site != 'site' else ''}", new_x="LMARGIN", new_y="NEXT")
    pen(pdf, 7.5, colour=MUTED)
    pdf.cell(0, 4.5, made, new_x="LMARGIN", new_y="NEXT")
    block: dict[str, Any] = {"align": "L", "new_x": "LMARGIN", "new_y": "NEXT"}
    if alarm:
        pen(pdf, 8, bold=True, colour=ALARM)
        pdf.multi_cell(WIDTH, 3.8, f"▲ {alarm}", **block)
    if notes:
        pen(pdf, 6.8, colour=MUTED)
        pdf.multi_cell(WIDTH, 3.3, " ".join(notes), **block)
    pdf.ln(1.5)


def subtitle(pdf: FPDF, said: str) -> None:
    """What the table below is about."""
    pen(pdf, 9, bold=True)
    pdf.cell(0, 5, said, new_x="LMARGIN", new_y="NEXT")


def heads(pdf: FPDF, columns: Sequence[Column], height: float) -> None:
    """The head of a table."""
    pen(pdf, 6.5, bold=True, colour=MUTED)
    pdf.set_draw_color(*LINE)
    for name, width, align in columns:
        pdf.cell(width, height, name, align=align, border="B")
    pdf.ln(height)


def row(
    pdf: FPDF, columns: Sequence[Column], texts: Sequence[str], height: float,
    drawn: tuple[Counts, float] | None = None, strong: bool = False, ends: bool = True,
) -> None:  # fmt: skip
    """A table row; the unnamed column holds the picture of a range, on a scale up to the number beside it.

    ``strong`` rows are bold between two lines; a row that does not end has another that belongs to it below.
    """
    border: Literal[0] | str = "TB" if strong and ends else "B" if ends else 0
    for (name, width, align), text in zip(columns, texts, strict=True):
        if name:
            pen(pdf, min(7.5, height * 1.7), bold=strong or name in STRONG)
            pdf.cell(width, height, fitting(pdf, text, width), align=align, border=border)
        elif drawn:
            _range(pdf, *drawn, pdf.get_x() + 2, pdf.get_y(), width - 4, height)
            pdf.cell(width, height, "", border=border)
    pdf.ln(height)


def fitting(pdf: FPDF, text: str, width: float) -> str:
    """The text, cut with an ellipsis where its cell is too narrow."""
    if pdf.get_string_width(text) <= width - 2:
        return text
    while text and pdf.get_string_width(text + "…") > width - 2:
        text = text[:-1]
    return text + "…"


def _range(pdf: FPDF, counts: Counts, top: float, x: float, y: float, width: float, height: float) -> None:
    """90 % range light, middle half dark, median a line; as in the page."""
    at = [x + width * min(max(counts.quantile(q) / top, 0.0), 1.0) for q in SPREAD]
    middle = y + height / 2
    pdf.set_draw_color(*LINE)
    pdf.line(x, middle, x + width, middle)
    for low, high, colour in ((at[0], at[4], WIDE), (at[1], at[3], HALF)):
        pdf.set_fill_color(*colour)
        pdf.rect(low, middle - 0.9, max(high - low, 0.4), 1.8, style="F")
    pdf.set_draw_color(*INK)
    pdf.line(at[2], middle - 1.4, at[2], middle + 1.4)
    pdf.set_draw_color(*LINE)


def foot(pdf: FPDF, said: str) -> None:
    """How to read it, at the bottom of the page."""
    pdf.set_xy(LEFT, FOOT_Y)
    pen(pdf, 6, colour=MUTED)
    pdf.multi_cell(WIDTH, 2.9, said, max_line_height=2.9)
