"""A forecast of counted series on paper and as a spreadsheet, drawn with what draws those of the bed report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from models.counted import FULL, RARE, STATED, SURELY, CountForecast, Known, Said, quantities
from serving.reports import paper, spreadsheet
from serving.reports.render import short_word

if TYPE_CHECKING:
    import xlsxwriter
    from fpdf import FPDF
    from xlsxwriter.worksheet import Worksheet

TALLEST, LOWEST, OF_MANY = 4.2, 3.3, 3.6
"""Millimetres of a printed line: at most, at least for all to stand on one page, and where they take several."""
NARROWEST, WIDEST = 45.0, 110.0
"""Millimetres that the name of a series has at least and at most."""
RISKS: Final = {"p_over_92": "> 92 %", "p_over_95": "> 95 %", "p_short": "Short"}

COLUMNS: Final = {
    "series": "as the file names it",
    "quantity": "what it counts",
    "window": "which span of time",
    "target": "stamp of its last hour or day, on the site's clock",
    "window_h": "its length in hours",
    "newest": "newest count",
    "newest_at": "its stamp",
    "mean": "expected count",
    "at_least": "at least so many, 90 % sure",
    "median": "as likely more as fewer",
    "covers": "so many cover it 95 times in 100",
    **dict.fromkeys(STATED, "quantile, as if counts were continuous"),
    "cover99": "the number to be exceeded once in a hundred times",
    "open_beds": "beds open when last reported, where the file says so",
    "p_over_92": "probability that more than 92 % of them are taken, told from 0.01 to 0.95",
    "p_over_95": "more than 95 %",
    "p_short": "more than are open",
}
"""Every column of the sheet of all figures, in order, and what it means."""
READ_IT_SO: Final = (
    "The middle: as likely more as fewer. At least: so many or more in 9 of 10 such situations. Covers: enough 95 "
    "times in 100. Held: of the last fortnight's forecasts of the first day, how many came true inside the range meant "
    "for 9 in 10. Each series has a range of its own; ranges do not add up over series."
)
OF_OPEN: Final = (
    "> 92 %, > 95 %, Short: how likely more than so many of the beds open now, or all, are taken on the first day. A "
    "hospital that opens beds when it is full runs short less often than is said."
)
NO_USE: Final = "Counts only: no patient is read, and no reason to admit, discharge or delay anyone."

Foretold = Mapping[tuple[str, str], Said]


def how(f: CountForecast) -> str:
    """How to read it."""
    return " ".join((READ_IT_SO, *((OF_OPEN,) if any(k.open_beds for k in f.known) else ()), NO_USE))


def likely(probability: float | None) -> str:
    """A probability in whole percent, never more certain than the quantiles allow."""
    if probability is None or RARE < probability < SURELY:
        return short_word(probability)
    return "< 1 %" if probability <= RARE else "> 95 %"


def first_risks(f: CountForecast, k: Known, said: Foretold) -> dict[str, float | None]:
    """Of the first span: how likely more than 92 %, 95 % and all of the open beds are taken."""
    first = said.get((k.name, f.spans[0].label))
    return dict.fromkeys(FULL) if first is None else first.risks(k.open_beds)


# ------------------------------------------------------------ paper


def render_pdf(f: CountForecast, site: str, begins: str, newest: str, record: str) -> bytes:
    """A4 landscape; one page as long as rows can be read, then as many as it takes."""
    pdf = paper.new_page(f"What comes next {site}".strip(), f.at.to_pydatetime())
    made = f"From {begins} on, of counts in {f.source}; newest count: {newest}."
    alarm = f"Counts are missing. {' '.join(f.stale)}" if f.stale else ""
    paper.head(pdf, "What comes next", site, made, alarm, (record, *f.notes))
    said = f.said()
    tables = [(q, [k for k in f.known if k.quantity == q]) for q in quantities(f.known)]
    height = _height(pdf, tables)
    for quantity, known in tables:
        _table(pdf, f, quantity, known, said, height)
    _foot(pdf, f)
    return bytes(pdf.output())


def _foot(pdf: FPDF, f: CountForecast, goes_on: bool = False) -> None:
    page = f" Page {pdf.page_no()}{', goes on' if goes_on else ''}." if goes_on or pdf.page_no() > 1 else ""
    paper.foot(pdf, how(f) + page)


def _height(pdf: FPDF, tables: Sequence[tuple[str, Sequence[Known]]]) -> float:
    """Of a line; a series has two."""
    heads = 11.6 * len(tables)
    all_on_one = (paper.FOOT_Y - 2 - pdf.get_y() - heads) / (2 * sum(len(known) for _, known in tables))
    return min(TALLEST, all_on_one) if all_on_one >= LOWEST else OF_MANY


def _table(
    pdf: FPDF, f: CountForecast, quantity: str, known: Sequence[Known], said: Foretold, height: float
) -> None:
    told = [_lines(f, k, said, any(k.open_beds for k in known)) for k in known]
    columns, height = _columns(pdf, told, height)
    bottom, begun = paper.FOOT_Y - 1, False
    for lines in told:
        full = pdf.get_y() + (0 if begun else 9.6) + 2 * height > bottom
        if full:
            _foot(pdf, f, goes_on=True)
            pdf.add_page()
        if full or not begun:
            paper.subtitle(pdf, f"{quantity}, continued" if begun else quantity)
            paper.heads(pdf, columns, 4.6)
            begun = True
        paper.pen(pdf, min(7.5, height * 1.7), bold=True)
        first, second = _over_two(pdf, columns[0][1], lines)
        paper.row(pdf, columns, first, height, strong=True, ends=False)
        paper.row(pdf, columns, second, height)
    pdf.ln(2)


def _lines(f: CountForecast, k: Known, said: Foretold, opened: bool) -> dict[str, tuple[str, str]]:
    """Two lines of text by heading: the risks stand beside the day that they are of."""
    texts = {"Series": (k.name, "")}
    if f.step_h == 24:
        late = f"{k.stamp.day} {k.stamp:%b}" if k.stamp < f.newest else ""
        texts["Newest"] = (f"{k.newest:,.0f}", late)
    for span in f.spans:
        one = said.get((k.name, span.label))
        texts[span.label] = (
            ("–", "") if one is None else (f"{one.middle:,}", f"{one.at_least:,}–{one.covers:,}")
        )
        if opened and span is f.spans[0]:
            texts["Open"] = ("–" if k.open_beds is None else f"{k.open_beds:,.0f}", "")
            texts |= {RISKS[name]: (likely(p), "") for name, p in first_risks(f, k, said).items()}
    return texts | {"Held": (f"{k.inside} of {k.of}" if k.of else "–", "")}


def _columns(
    pdf: FPDF, told: Sequence[Mapping[str, tuple[str, str]]], height: float
) -> tuple[list[paper.Column], float]:
    """As wide as the widest text, the rest for the name; lines shrink before a number would be cut."""
    names = list(told[0])[1:]
    while True:
        paper.pen(pdf, min(7.5, height * 1.7), bold=True)
        widths = [
            max(pdf.get_string_width(t) for t in (n, *(t for row in told for t in row[n]))) + 4 for n in names
        ]
        left = paper.WIDTH - sum(widths)
        if left >= NARROWEST or height < 2:
            break
        height -= 0.1
    longest = max(pdf.get_string_width(row["Series"][0]) for row in told) + 4
    spread = max(left - min(max(longest, NARROWEST), WIDEST), 0) / len(names)
    columns = [(n, w + spread, "R") for n, w in zip(names, widths, strict=True)]
    return [("Series", left - spread * len(names), "L"), *columns], height


def _over_two(pdf: FPDF, width: float, lines: Mapping[str, tuple[str, str]]) -> tuple[list[str], list[str]]:
    """The two lines of a series; a name too long for the first goes on in the second, from a space where it has one."""
    (name, _), *others = lines.values()
    first = paper.fitting(pdf, name, width)
    rest = ""
    if first != name:
        kept = first[:-1]
        kept = kept[: kept.rfind(" ")] if " " in kept else kept
        first, rest = kept, name[len(kept) :].strip()
    return [first, *(a for a, _ in others)], [rest, *(b for _, b in others)]


# ------------------------------------------------------------ spreadsheet


def rows(f: CountForecast) -> Iterator[dict[str, Any]]:
    """One row a series and span, as :data:`COLUMNS` says; None where a figure cannot be had."""
    said = f.said()
    for k in f.known:
        for s in f.spans:
            one = said.get((k.name, s.label))
            if one is None:
                continue
            yield {
                "series": k.name, "quantity": k.quantity, "window": s.label, "target": f"{s.target:%Y-%m-%d %H:%M}",
                "window_h": s.window_h, "newest": k.newest, "newest_at": f"{k.stamp:%Y-%m-%d %H:%M}",
                "mean": one.mean, "at_least": one.at_least, "median": one.middle, "covers": one.covers,
                "open_beds": k.open_beds,
            } | dict(one.quantiles) | one.risks(k.open_beds)  # fmt: skip


def render_xlsx(f: CountForecast, site: str, begins: str, newest: str, record: str) -> bytes:
    """An XLSX workbook: a sheet to read, all figures, what they mean."""

    def fill(book: xlsxwriter.Workbook) -> None:
        widths = (24, *[10] * (4 + 3 * len(f.spans) + len(RISKS)))
        made = f"From {begins} on, of counts in {f.source}; newest count: {newest}"
        sheet, line = spreadsheet.summary(
            book, "Counts", f"What comes next {site}".strip(), made, widths, f.stale, (record, *f.notes)
        )
        said = f.said()
        for quantity in quantities(f.known):
            known = [k for k in f.known if k.quantity == quantity]
            line = _sheet_table(book, sheet, f, quantity, known, said, line + 1)
        spreadsheet.figures(book, list(COLUMNS), rows(f))
        spreadsheet.about(book, {"Made from": f.source, "Read it so": how(f)}, COLUMNS)

    return spreadsheet.workbook(fill)


def _sheet_table(
    book: xlsxwriter.Workbook, sheet: Worksheet, f: CountForecast, quantity: str, known: Sequence[Known],
    said: Foretold, line: int,
) -> int:  # fmt: skip
    """One quantity's table from ``line`` on; the line after it."""
    whole, percent = (book.add_format({"num_format": shape}) for shape in ("#,##0", "0 %"))
    told = [_values(f, k, said, any(k.open_beds for k in known)) for k in known]
    spreadsheet.heads(book, sheet, line, quantity, list(told[0]))
    for below, values in enumerate(told, start=line + 2):
        for column, (name, value) in enumerate(values.items()):
            shape = percent if name in RISKS.values() else None if isinstance(value, str) else whole
            spreadsheet.write(sheet, below, column, value, shape)
    return line + 2 + len(known)


def _values(f: CountForecast, k: Known, said: Foretold, opened: bool) -> dict[str, Any]:
    """A row, by heading, as numbers."""
    values: dict[str, Any] = {"Series": k.name}
    if f.step_h == 24:
        values |= {"Newest": k.newest, "of": f"{k.stamp.day} {k.stamp:%b}"}
    for span in f.spans:
        one = said.get((k.name, span.label))
        values |= {
            span.label: one and one.middle,
            f"{span.label}, at least": one and one.at_least,
            f"{span.label}, covers": one and one.covers,
        }
        if opened and span is f.spans[0]:
            values["Open beds"] = k.open_beds
            values |= {RISKS[name]: p for name, p in first_risks(f, k, said).items()}
    return values | {"Held": f"{k.inside} of {k.of}" if k.of else None}
