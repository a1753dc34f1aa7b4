"""The bed forecast as one A4 page of PDF, drawn directly: no browser and no system library on the server."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from models.beds import HOSPITAL, Cell, Window
from models.forecast import Counts
from serving.reports.charts import month, scale_top
from serving.reports.forecast import COVERED, SURE, BedForecast, signed
from serving.reports.paper import (
    ALARM,
    FOOT_Y,
    HALF,
    INK,
    LEFT,
    LINE,
    MUTED,
    WIDE,
    WIDTH,
    Column,
    foot,
    head,
    heads,
    new_page,
    pen,
    row,
    subtitle,
)
from serving.reports.render import ago, day_name, is_later_day, moment, short_word

if TYPE_CHECKING:
    from fpdf import FPDF

FOOT: Final = (
    "At least: so many or more are needed in 9 of 10 such situations. Covers: enough 95 times in 100. Net: beds needed "
    "minus discharges, moves between specialties counted in. > 92 %, > 95 %, Short: how likely more than so many of "
    "the open beds, or all, are taken at the window's end. Specialties add up to the hospital; their ranges do not. "
    "For planning capacity; no reason to admit, discharge or delay anyone. No patient is named here."
)


def render_pdf(forecast: BedForecast, site: str = "") -> bytes:
    """One A4 landscape page, whatever the number of specialties: the rows shrink before they spill."""
    pdf = new_page(f"Beds {site}".strip(), forecast.at.to_pydatetime())
    _head(pdf, forecast, site)
    _windows(pdf, forecast)
    _specialties(pdf, forecast)
    _record(pdf, forecast)
    foot(pdf, f"{FOOT} Model {forecast.model_id}, made from: {forecast.origin}.")
    return bytes(pdf.output())


def _head(pdf: FPDF, f: BedForecast, site: str) -> None:
    fresh = f"newest news of a visit: {ago(f.at, f.freshness.newest_visit)}; newest observation in the ED: "
    fresh += ago(f.at, f.freshness.newest_observation)
    made = f"Forecast made {moment(f.at, f.timezone)} ({f.timezone}); {fresh}."
    alarm = f"Degraded: do not plan on these figures. {' '.join(f.freshness.silent)}"
    head(pdf, "Beds", site, made, alarm if f.freshness.silent else "", f.freshness.notes)


# ------------------------------------------------------------ tables


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


def _windows(pdf: FPDF, f: BedForecast) -> None:
    cells = [(_label(f, w), f.cell(HOSPITAL, w.key)) for w in f.windows]
    top = scale_top([c.needed.quantile(0.95) for _, c in cells])
    heads(pdf, WINDOW_COLUMNS, 4.6)
    for label, c in cells:
        p = c.parts
        texts = (
            label, f"{p['known']:.0f}", f"{p['in_ed']:.0f}", f"{p['to_come']:.0f}", f"{p['planned']:.0f}",
            f"{c.needed_mean:.0f}", "", f"{c.needed.floor(SURE)}", f"{c.needed.cover(COVERED)}",
            _span(p["discharges"], c.discharges), _net(c.net_mean, c.net), *_risks(c),
        )  # fmt: skip
        row(pdf, WINDOW_COLUMNS, texts, 4.6, (c.needed, top))
    pdf.ln(2)


def _label(f: BedForecast, window: Window) -> str:
    return day_name(window, f.timezone) if is_later_day(window) else window.label.capitalize()


def _specialties(pdf: FPDF, f: BedForecast) -> None:
    window = f.window("tomorrow")
    cells = [f.cell(level, window.key) for level in f.levels]
    top = scale_top([c.needed.quantile(0.95) for c in cells if c.level != HOSPITAL])
    subtitle(pdf, f"Tomorrow, {moment(window.start, f.timezone).split(',')[0]}, by specialty")
    left = FOOT_Y - 46 - pdf.get_y() - 4.6  # above the record and the foot
    height = min(4.8, left / max(len(cells), 1))
    heads(pdf, LEVEL_COLUMNS, 4.6)
    for c in cells:
        beds = f"{c.occupied_now} / {c.open_beds}" if c.open_beds is not None else f"{c.occupied_now}"
        texts = (
            c.level[:1].upper() + c.level[1:], f"{c.waiting_now}", beds, f"{c.needed_mean:.1f}", "",
            f"{c.needed.floor(SURE)}", f"{c.needed.cover(COVERED)}", _span(c.parts["discharges"], c.discharges),
            _net(c.net_mean, c.net), _span(c.occupied_after.quantile(0.5), c.occupied_after), *_risks(c),
        )  # fmt: skip
        strong = c.level == HOSPITAL
        own = scale_top([c.needed.quantile(0.95)]) if strong else top
        row(pdf, LEVEL_COLUMNS, texts, height, (c.needed, own), strong)


def _risks(cell: Cell) -> tuple[str, ...]:
    """How likely more than 92 %, 95 % and all of the open beds are taken at the window's end."""
    return tuple(short_word(p) for p in (cell.over(0.92), cell.over(0.95), cell.short))


def _span(mean: float, counts: Counts) -> str:
    return f"{mean:.0f} ({counts.quantile(0.05)}–{counts.quantile(0.95)})"


def _net(mean: float, counts: Counts) -> str:
    return f"{signed(mean)} ({signed(counts.quantile(0.05))} to {signed(counts.quantile(0.95))})"


# ------------------------------------------------------------ did it come true


def _record(pdf: FPDF, f: BedForecast) -> None:
    top_y = FOOT_Y - 42.0
    pdf.set_xy(LEFT, top_y)
    subtitle(pdf, "Did it come true?")
    pen(pdf, 7, colour=MUTED)
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
    pen(pdf, 6, colour=MUTED)
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
