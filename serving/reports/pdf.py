"""The bed forecast as one A4 page of PDF, drawn directly: no browser and no system library on the server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from models.beds import HOSPITAL, Cell, Window
from models.forecast import Counts
from serving.reports.charts import month, scale_top
from serving.reports.forecast import COVERED, SPREAD, SURE, BedForecast, signed
from serving.reports.render import ago, day_name, is_later_day, moment, short_word

if TYPE_CHECKING:
    from fpdf import FPDF

FONTS: Final = Path(__file__).parent / "fonts"
WIDTH: Final = 277.0
"""Millimetres between the margins of A4 landscape."""
LEFT: Final = 10.0
INK, MUTED, LINE = (18, 32, 44), (96, 108, 118), (205, 212, 218)
WIDE, HALF, ALARM = (188, 217, 236), (47, 127, 181), (156, 0, 6)
FOOT: Final = (
    "At least: so many or more are needed in 9 of 10 such situations. Covers: enough 95 times in 100. Net: beds needed "
    "minus discharges, moves between specialties counted in. > 92 %, > 95 %, Short: how likely more than so many of "
    "the open beds, or all, are taken at the window's end. Specialties add up to the hospital; their ranges do not. "
    "For planning capacity; no reason to admit, discharge or delay anyone. No patient is named here."
)


def render_pdf(forecast: BedForecast, site: str = "") -> bytes:
    """One A4 landscape page, whatever the number of specialties: the rows shrink before they spill."""
    from fpdf import FPDF  # 0.4 s, and only who asks for a PDF needs it

    pdf = FPDF(orientation="landscape", unit="mm", format="A4")
    pdf.set_auto_page_break(False)
    pdf.set_margins(LEFT, 8)
    for style, file in (("", "DejaVuSans.ttf"), ("B", "DejaVuSans-Bold.ttf")):
        pdf.add_font("DejaVu", style, FONTS / file)
    pdf.set_title(f"Beds {site}".strip())
    pdf.set_lang("en")
    pdf.set_creation_date(forecast.at.to_pydatetime())
    pdf.add_page()
    pdf.set_line_width(0.2)
    _head(pdf, forecast, site)
    _windows(pdf, forecast)
    _specialties(pdf, forecast)
    _record(pdf, forecast)
    _foot(pdf, forecast)
    return bytes(pdf.output())


def _text(pdf: FPDF, size: float, bold: bool = False, colour: Sequence[int] = INK) -> None:
    pdf.set_font("DejaVu", "B" if bold else "", size)
    pdf.set_text_color(*colour)


def _head(pdf: FPDF, f: BedForecast, site: str) -> None:
    _text(pdf, 15, bold=True)
    pdf.cell(0, 7, f"Beds{' · ' + site if site and site != 'site' else ''}", new_x="LMARGIN", new_y="NEXT")
    _text(pdf, 7.5, colour=MUTED)
    fresh = f"newest news of a visit: {ago(f.at, f.freshness.newest_visit)}; newest observation in the ED: "
    fresh += ago(f.at, f.freshness.newest_observation)
    made = f"Forecast made {moment(f.at, f.timezone)} ({f.timezone}); {fresh}."
    pdf.cell(0, 4.5, made, new_x="LMARGIN", new_y="NEXT")
    block: dict[str, Any] = {"align": "L", "new_x": "LMARGIN", "new_y": "NEXT"}
    if f.freshness.silent:
        _text(pdf, 8, bold=True, colour=ALARM)
        pdf.multi_cell(
            WIDTH, 3.8, f"▲ Degraded: do not plan on these figures. {' '.join(f.freshness.silent)}", **block
        )
    if f.freshness.notes:
        _text(pdf, 6.8, colour=MUTED)
        pdf.multi_cell(WIDTH, 3.3, " ".join(f.freshness.notes), **block)
    pdf.ln(1.5)


# ------------------------------------------------------------ tables


Column = tuple[str, float, str]
"""Heading, width in millimetres, alignment."""

WINDOW_COLUMNS: Final[tuple[Column, ...]] = (
    ("Hospital", 38, "L"), ("Known", 13, "R"), ("In ED", 13, "R"), ("To come", 15, "R"), ("Planned", 15, "R"),
    ("Needed", 14, "R"), ("", 38, "C"), ("At least", 15, "R"), ("Covers", 15, "R"), ("Discharges", 26, "R"),
    ("Net", 30, "R"), ("> 92 %", 15, "R"), ("> 95 %", 15, "R"), ("Short", 15, "R"),
)  # fmt: skip
LEVEL_COLUMNS: Final[tuple[Column, ...]] = (
    ("Specialty", 38, "L"), ("Wait now", 15, "R"), ("In beds now", 19, "R"), ("Needed", 13, "R"), ("", 35, "C"),
    ("At least", 14, "R"), ("Covers", 14, "R"), ("Discharges", 24, "R"), ("Net", 30, "R"), ("Then in beds", 30, "R"),
    ("> 92 %", 15, "R"), ("> 95 %", 15, "R"), ("Short", 15, "R"),
)  # fmt: skip


def _heads(pdf: FPDF, columns: Sequence[Column], height: float) -> None:
    _text(pdf, 6.5, bold=True, colour=MUTED)
    pdf.set_draw_color(*LINE)
    for name, width, align in columns:
        pdf.cell(width, height, name, align=align, border="B")
    pdf.ln(height)


def _row(pdf: FPDF, columns: Sequence[Column], texts: Sequence[str], bar: Counts, top: float, height: float,
         strong: bool) -> None:  # fmt: skip
    """A table row; the unnamed column holds the picture of the range."""
    for (name, width, align), text in zip(columns, texts, strict=True):
        if name:
            _text(pdf, min(7.5, height * 1.7), bold=strong or name in ("At least", "Covers"))
            pdf.cell(
                width, height, _fitting(pdf, text, width), align=align, border="B" if not strong else "TB"
            )
        else:
            _range(pdf, bar, top, pdf.get_x() + 2, pdf.get_y(), width - 4, height)
            pdf.cell(width, height, "", border="B" if not strong else "TB")
    pdf.ln(height)


def _fitting(pdf: FPDF, text: str, width: float) -> str:
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


def _windows(pdf: FPDF, f: BedForecast) -> None:
    cells = [(_label(f, w), f.cell(HOSPITAL, w.key)) for w in f.windows]
    top = scale_top([c.needed.quantile(0.95) for _, c in cells])
    _heads(pdf, WINDOW_COLUMNS, 4.6)
    for label, c in cells:
        p = c.parts
        texts = (
            label, f"{p['known']:.0f}", f"{p['in_ed']:.0f}", f"{p['to_come']:.0f}", f"{p['planned']:.0f}",
            f"{c.needed_mean:.0f}", "", f"{c.needed.floor(SURE)}", f"{c.needed.cover(COVERED)}",
            _span(p["discharges"], c.discharges), _net(c.net_mean, c.net), *_risks(c),
        )  # fmt: skip
        _row(pdf, WINDOW_COLUMNS, texts, c.needed, top, 4.6, strong=False)
    pdf.ln(2)


def _label(f: BedForecast, window: Window) -> str:
    return day_name(window, f.timezone) if is_later_day(window) else window.label.capitalize()


def _specialties(pdf: FPDF, f: BedForecast) -> None:
    window = f.window("tomorrow")
    cells = [f.cell(level, window.key) for level in f.levels]
    top = scale_top([c.needed.quantile(0.95) for c in cells if c.level != HOSPITAL])
    _text(pdf, 9, bold=True)
    pdf.cell(
        0,
        5,
        f"Tomorrow, {moment(window.start, f.timezone).split(',')[0]}, by specialty",
        new_x="LMARGIN",
        new_y="NEXT",
    )
    left = 210 - 8 - 46 - 9 - pdf.get_y() - 4.6  # above the record and the foot
    height = min(4.8, left / max(len(cells), 1))
    _heads(pdf, LEVEL_COLUMNS, 4.6)
    for c in cells:
        beds = f"{c.occupied_now} / {c.open_beds}" if c.open_beds is not None else f"{c.occupied_now}"
        texts = (
            c.level[:1].upper() + c.level[1:], f"{c.waiting_now}", beds, f"{c.needed_mean:.1f}", "",
            f"{c.needed.floor(SURE)}", f"{c.needed.cover(COVERED)}", _span(c.parts["discharges"], c.discharges),
            _net(c.net_mean, c.net), _span(c.occupied_after.quantile(0.5), c.occupied_after), *_risks(c),
        )  # fmt: skip
        strong = c.level == HOSPITAL
        own = scale_top([c.needed.quantile(0.95)]) if strong else top
        _row(pdf, LEVEL_COLUMNS, texts, c.needed, own, height, strong)


def _risks(cell: Cell) -> tuple[str, ...]:
    """How likely more than 92 %, 95 % and all of the open beds are taken at the window's end."""
    return tuple(short_word(p) for p in (cell.over(0.92), cell.over(0.95), cell.short))


def _span(mean: float, counts: Counts) -> str:
    return f"{mean:.0f} ({counts.quantile(0.05)}–{counts.quantile(0.95)})"


def _net(mean: float, counts: Counts) -> str:
    return f"{signed(mean)} ({signed(counts.quantile(0.05))} to {signed(counts.quantile(0.95))})"


# ------------------------------------------------------------ did it come true


def _record(pdf: FPDF, f: BedForecast) -> None:
    top_y = 210 - 8 - 9 - 42.0
    pdf.set_xy(LEFT, top_y)
    _text(pdf, 9, bold=True)
    pdf.cell(0, 5, "Did it come true?", new_x="LMARGIN", new_y="NEXT")
    _text(pdf, 7, colour=MUTED)
    if not f.record:
        pdf.cell(
            0, 4, "Not enough history yet: earlier forecasts are shown once ten days of visits are known."
        )
        return
    inside = sum(p.inside for p in f.record)
    clock = moment(f.at, f.timezone).rsplit(" ", 1)[-1]
    said = f"Beds needed a day, forecast at {clock} the day before, with what was known then. The outcome lay in the "
    said += f"9-in-10 range on {inside} of {len(f.record)} days (hollow squares: outside)."
    pdf.cell(0, 4, said)
    _chart(pdf, f, top_y + 10.5, 27.0)


def _chart(pdf: FPDF, f: BedForecast, y: float, height: float) -> None:
    top = scale_top([p.high for p in f.record] + [p.outcome for p in f.record])
    place = partial(_place, y, height, top)
    _text(pdf, 6, colour=MUTED)
    for value in (0.0, top / 2, top):
        pdf.set_draw_color(*LINE)
        pdf.line(LEFT + 8, place(value), LEFT + WIDTH, place(value))
        pdf.text(LEFT, place(value) + 0.8, f"{value:.0f}")
    step = (WIDTH - 8) / len(f.record)
    for k, p in enumerate(f.record):
        x = LEFT + 8 + step * (k + 0.5)
        for low, high, colour in ((p.low, p.high, WIDE), (p.lower, p.upper, HALF)):
            pdf.set_fill_color(*colour)
            pdf.rect(x - 2.2, place(high), 4.4, max(place(low) - place(high), 0.4), style="F")
        pdf.set_draw_color(*(INK if p.inside else ALARM))
        pdf.set_fill_color(*INK)
        if p.inside:
            pdf.ellipse(x - 0.9, place(p.outcome) - 0.9, 1.8, 1.8, style="F")
        else:
            pdf.rect(x - 1, place(p.outcome) - 1, 2, 2)
        day = f"{int(p.day[8:])} {month(p.day)}"
        pdf.text(x - pdf.get_string_width(day) / 2, y + height + 3, day)


def _place(y: float, height: float, top: float, value: float) -> float:
    return y + height * (1 - value / top)


def _foot(pdf: FPDF, f: BedForecast) -> None:
    pdf.set_xy(LEFT, 210 - 8 - 9)
    _text(pdf, 6, colour=MUTED)
    pdf.multi_cell(WIDTH, 2.9, f"{FOOT} Model {f.model_id}, made from: {f.origin}.", max_line_height=2.9)
