"""Counts by hour or by day, as hospitals and health services export them: what aggregate forecasts learn from.

A row holds a stamp, what it counts for (hospital, trust, region) and one or more counts. Files of visits are counted
here by hour, or by day where they carry dates only. A mapping file names the columns, a TOML file such as::

    series = ["code"]            # columns that say which series a row belongs to; none: one series
    time = "date"                # the day, or the start of the hour
    values = ["ga_occ"]          # what to forecast; several make series such as RJC/ga_occ
    beside = ["los_gt7"]         # other columns known when the value is, to learn from
    open_beds = { ga_occ = "ga_open" }    # of beds taken, the column with the beds open
    drop = { code = ["-"] }      # rows that are totals of others
    zeros = "auto"               # auto, real or missing: what a zero means
    holidays = "GB-ENG"          # whose public holidays
    zone = "Europe/London"       # where stamps are UTC and do not say so: whose hours and days they mean

Layouts of open data sets lie in ``count_layouts/`` and are recognised by their columns, so that those files need no
mapping. Nothing is dropped in silence. Every repair looks backwards only: what a count means never depends on what was
reported after it, so a forecast cannot learn of its future through the cleaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.errors import DataError
from features.sources import visits
from features.sources.vocabulary import toml

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Shape = Literal["hourly", "daily", "visits"]

SHAPES: Final[dict[str, str]] = {
    "hourly": "one row an hour: a stamp (start of the hour), perhaps a series, one or more counts",
    "daily": "one row a day: a date, perhaps a series, one or more counts",
    "visits": "one row a visit: any of arrival, admission, discharge; counted by hour, or by day if only dated",
}
KEYS: Final[dict[str, str]] = {
    "series": "columns that together name the series a row belongs to; without any there is one series",
    "time": "the column with the day, or with the start of the hour",
    "values": "the counts to forecast; several make series such as RJC/ga_occ",
    "beside": "other numbers of the same rows, known when the counts are, that may help to foresee them",
    "open_beds": "the column with the open beds of a count of beds taken: { COUNT = COLUMN }; by day, the risk is told",
    "drop": "rows to leave out, such as totals: { column = [values] }",
    "zeros": "real, missing or auto (default): a zero is missing where 28 reports before it make it incredible",
    "absent": "missing (default) or zero: what an hour or day without a row means",
    "holidays": "country of the public holidays, such as GB-ENG or IE; empty for none",
    "zone": "stamps without an offset are UTC, and hours and days are of this zone, such as Europe/London",
    "names": "shape visits: our column = theirs, as for `wardcast data schema visits`",
    "snapshots": "shape visits, rows that are snapshots: { date, clock, elapsed_s, visit } name their columns",
}
TIME_NAMES: Final = ("time", "date", "hour", "datetime", "timestamp", "day", "ds", "stamp")
SERIES_NAMES: Final = (
    "series", "unique_id", "hospital", "site", "trust", "code", "region", "board", "unit", "specialty",
)  # fmt: skip
PLAIN_NAMES: Final = ("value", "count", "n", "y")
VALUE_NAMES: Final = (
    *PLAIN_NAMES, "arrivals", "attendance", "attendances", "admissions", "discharges", "occupied", "occupancy", "beds",
)  # fmt: skip
TAKEN_NAMES: Final = ("occupied", "occupancy", "beds")
OPEN_NAMES: Final = ("open_beds", "beds_open")
"""Where a count is one of beds taken, a column of this name has the beds open."""
ZERO_HOURS_EXPECTED: Final = 15.0
"""So many arrivals must have been due in a run of empty hours before the run counts as not reported."""
ZERO_DAYS_LOOK: Final = 28
INCREDIBLE: Final = 10.0
"""A zero after days whose median is at least this is no count: a Poisson day of 10 is empty once in 22,000 days."""
MOST_YEARS: Final = 60
"""A file that spans more has a mistyped year, whose grid would fill the memory."""
COMMON_FROM_DAYS: Final = 28
"""Days after which a specialty is forecast from the day on that it had one visit a day so far."""
FLOWS: Final = {
    "arrivals": "arrival_time",
    "admissions": "admission_time",
    "discharges": "discharge_time",
}


@dataclass(frozen=True)
class Panel:
    """Series of counts on one grid of hours or days.

    Attributes
    ----------
    names : tuple of str, shape (n_series,)
    quantities : tuple of str, shape (n_series,)
        What each series counts.
    stamps : DatetimeIndex without zone, shape (n_steps,)
        Every hour (its start) or day, in wall-clock time, none left out.
    values : float64, shape (n_series, n_steps)
        NaN where nothing was reported.
    beside : mapping of column to float64, shape (n_series, n_steps)
    step_h : 1 or 24
    zone : str
        What the file's own stamps carried, empty for none: stamps are given back as they came.
    holidays : str
    account : CountAccount
    unmarked : bool
        The file's stamps are UTC and do not say so.
    open_beds : float64, shape (n_series, n_steps), optional
        Beds open where a series counts beds taken, else NaN; None where no column says so.
    """

    names: tuple[str, ...]
    quantities: tuple[str, ...]
    stamps: pd.DatetimeIndex
    values: Floats
    beside: Mapping[str, Floats]
    step_h: int
    zone: str
    holidays: str
    account: CountAccount
    unmarked: bool = False
    open_beds: Floats | None = None

    @property
    def step(self) -> pd.Timedelta:
        """An hour or a day."""
        return pd.Timedelta(hours=self.step_h)

    def as_came(self, stamps: pd.DatetimeIndex) -> pd.DatetimeIndex:
        """Wall-clock stamps written as the file writes them."""
        if not self.zone:
            return stamps
        if self.zone == "UTC":
            return stamps.tz_localize("UTC")
        local = _localised(stamps, self.zone)
        return local.tz_convert(None) if self.unmarked else local.tz_convert("UTC")


@dataclass(frozen=True)
class CountAccount:
    """What became of the rows of a file of counts."""

    read: int
    used: int
    layout: str
    columns: dict[str, str]
    """What is read from where, in words."""
    reasons: dict[str, int] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    """Columns of numbers that nobody named and whose names say nothing."""

    def lines(self) -> list[str]:
        """The account in words."""
        said = [f"{self.read:,} rows read ({self.layout}), {self.used:,} counts used."]
        said += [f"{n:,} {why}." for why, n in sorted(self.reasons.items()) if n]
        if self.unread:
            said.append(
                f"Not read: {', '.join(self.unread)}. To have a column counted, name it in a mapping file: "
                'values = ["COLUMN"].'
            )
        return said


# ------------------------------------------------------------ layouts


@cache
def layouts() -> dict[str, dict[str, Any]]:
    """The layouts that are recognised by their columns, by name."""
    folder = resources.files("features.sources").joinpath("count_layouts")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): toml(Path(str(f))) for f in files}


def _layout(columns: Iterable[str], shape: str, mapping: Path | None) -> tuple[str, dict[str, Any]]:
    """The mapping given, else the layout that these columns betray, else none."""
    if mapping is not None:
        said = toml(mapping)
        strange = sorted(set(said) - set(KEYS) - {"shape", "recognise", "source"})
        if strange:
            raise DataError(f"{mapping.name} says {', '.join(strange)}; known are {', '.join(KEYS)}.")
        return mapping.name, said
    there = {str(c) for c in columns}
    for name, said in layouts().items():
        if said["shape"] == shape and set(said["recognise"]) <= there:
            return f"layout {name}", said
    return "columns by their usual names", {}


# ------------------------------------------------------------ reading


def read(path: Path, shape: str, mapping: Path | None = None, timezone: str = "UTC") -> Panel:
    """Read counts from a CSV or Parquet file.

    Parameters
    ----------
    path : Path
    shape : str
        One of :data:`SHAPES`.
    mapping : Path, optional
        A TOML file with :data:`KEYS`.
    timezone : str
        The wall clock that people live by: stamps with an offset are turned into it, others are taken as they are.

    Raises
    ------
    DataError
        The file cannot be read, a column is missing or nothing is usable. Names the column and the remedy.
    """
    if shape not in SHAPES:
        raise DataError(f"There is no shape {shape!r}. Choose one of {', '.join(SHAPES)}.")
    raw = load(path)
    layout, said = _layout(raw.columns, shape, mapping)
    if shape == "visits":
        return _visits_panel(raw, layout, said, timezone)
    return _counts_panel(raw, layout, said, 1 if shape == "hourly" else 24, timezone)


def load(path: Path) -> pd.DataFrame:
    """A table from a .parquet, .csv, .csv.gz or .xlsx file.

    Raises
    ------
    DataError
        There is no such file, or it is none of these.
    """
    if not path.is_file():
        raise DataError(f"No file at {path}. Check the path.")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.name.endswith((".csv", ".csv.gz")):
            return pd.read_csv(path)
        if path.suffix == ".xlsx":
            return pd.read_excel(path)
    except ImportError:
        raise DataError(
            f"{path.name} is a spreadsheet, and openpyxl is not installed. Save it as .csv."
        ) from None
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path.name} could not be read ({type(error).__name__}). Is it a whole file?"
        ) from None
    raise DataError(f"{path.name} is no .parquet, .csv or .xlsx file. Save it as one of these.")


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table are read, and as what; ``opened`` says where the open beds of a count stand."""

    time: str
    by: list[str]
    values: list[str]
    beside: list[str]
    opened: dict[str, str]

    @classmethod
    def of(cls, raw: pd.DataFrame, said: dict[str, Any]) -> _Columns:
        """Those that the mapping names, else those of the usual names."""
        time = _one(raw, said.get("time"), TIME_NAMES, "time")
        by = _listed(raw, said, "series") if "series" in said else _telling_apart(raw, time)
        values = _values(raw, said, {time, *by})
        beside = [c for c in _listed(raw, said, "beside") if c not in values]
        return cls(time, by, values, beside, _opened(raw, said, values))

    def words(self) -> dict[str, str]:
        """The same for an account."""
        return {
            "time": self.time,
            "series": ", ".join(self.by),
            "values": ", ".join(self.values),
            "beside": ", ".join(self.beside),
            "open beds": ", ".join(self.opened.values()),
        }

    def unread(self, raw: pd.DataFrame) -> tuple[str, ...]:
        """Columns of numbers that are none of these."""
        read = {self.time, *self.by, *self.values, *self.opened.values()}
        return tuple(str(c) for c in raw.columns if raw[c].dtype.kind in "iuf" and str(c) not in read)


def _counts_panel(raw: pd.DataFrame, layout: str, said: dict[str, Any], step_h: int, timezone: str) -> Panel:
    columns = _Columns.of(raw, said)
    time, by, values, beside, opened = (
        columns.time, columns.by, columns.values, columns.beside, columns.opened,
    )  # fmt: skip
    rows, reasons = _kept(raw, said.get("drop", {}))
    column, timezone, unmarked = _with_zone(rows[time], str(said.get("zone", "")), timezone, step_h)
    stamps, zone, bad = wall_clock(column, timezone, time)
    identity = _identities(rows, by)
    _needs_shape(stamps, identity, step_h)
    stamps = stamps.dt.floor("h" if step_h == 1 else "D")
    reasons["rows without a readable stamp"] = bad
    long = rows.assign(_series=identity, _stamp=stamps, _came=column)[stamps.notna() & identity.notna()]
    grid = _grid(long["_stamp"], step_h)
    long["_second"] = _turns(long, grid, timezone, bool(zone)) if step_h == 1 else False
    names = sorted(long["_series"].unique())
    tables = {
        c: _table(long, c, names, grid, reasons, c in values) for c in [*values, *beside, *opened.values()]
    }
    absent, zeros = str(said.get("absent", "missing")), str(said.get("zeros", "auto"))
    made, of, found = [], [], []
    for c in values:
        filled = _absent(tables[c], absent)
        made.append(_credible(filled, zeros, step_h, reasons))
        of += [c] * len(names)
        found += [_named(n, c, bool(by), len(values) > 1) for n in names]
    stacked = np.concatenate(made)
    _needs_counts(stacked, values)
    whole = {c: np.concatenate([tables[c]] * len(values)) for c in beside}
    used, unread = int(np.isfinite(stacked).sum()), () if said else columns.unread(raw)
    account = CountAccount(len(raw), used, layout, columns.words(), reasons, unread)
    return _with_reports(
        Panel(
            tuple(found),
            tuple(of),
            grid,
            stacked,
            whole,
            step_h,
            zone,
            str(said.get("holidays", "")),
            account,
            unmarked,
            _open_beds(tables, values, opened),
        )
    )


def _needs_shape(stamps: pd.Series, identity: pd.Series, step_h: int) -> None:
    """Rows are what they are said to be: of hours taken for days the first would be kept, of days 23 be missing.

    Raises
    ------
    DataError
        Hours are called days, or days hours.
    """
    there = pd.DataFrame({"series": identity, "stamp": stamps}).dropna().drop_duplicates()
    several = float(there.assign(stamp=there["stamp"].dt.floor("D")).duplicated().mean()) if len(there) else 0
    if step_h == 24 and several > 0.5:
        raise DataError("Most days have several times of day: these rows are hours. Choose the shape hourly.")
    if step_h == 1 and len(there) > 7 and several == 0 and there["stamp"].dt.hour.nunique() == 1:
        raise DataError("No day has more than one hour: these rows are days. Choose the shape daily.")


def _with_zone(column: pd.Series, zone: str, timezone: str, step_h: int) -> tuple[pd.Series, str, bool]:
    """The stamps as UTC where a mapping says that they are, whose clock they are to be read on, and whether they were.

    Days are so only in a file that betrays it, by summer days that begin at 23:00: others write days as they are.
    """
    if not zone or column.dtype.kind != "M" or isinstance(column.dtype, pd.DatetimeTZDtype):
        return column, timezone, False
    if step_h == 24 and bool((column.dropna() == column.dropna().dt.normalize()).all()):
        return column, timezone, False
    return column.dt.tz_localize("UTC"), zone, True


def _turns(long: pd.DataFrame, grid: pd.DatetimeIndex, timezone: str, marked: bool) -> Bools:
    """Which rows are of the second turn of an hour that autumn's clocks show twice, shape (n_rows,).

    Stamps with an offset say which turn is theirs; of others the second report of a series is the second's.
    """
    second = np.zeros(len(long), dtype=bool)
    twice = grid[_localised(grid, timezone, "NaT").isna()]
    some = long["_stamp"].isin(twice).to_numpy()
    if not some.any():
        return second
    rows = long[some]
    if marked:  # summer time comes first
        came = _parsed(rows["_came"], timezone)[0].dt.tz_convert("UTC").dt.floor("h")
        second[some] = came.to_numpy() != _localised(pd.DatetimeIndex(rows["_stamp"]), timezone).tz_convert(
            "UTC"
        )
    else:
        second[some] = rows.duplicated(["_series", "_stamp"])
    return second


def _localised(stamps: pd.DatetimeIndex, timezone: str, ambiguous: Any = True) -> pd.DatetimeIndex:
    """The wall clock's stamps as instants; hours that spring's clocks skip are moved on."""
    return stamps.tz_localize(ZoneInfo(timezone), ambiguous=ambiguous, nonexistent="shift_forward")


def _with_reports(panel: Panel) -> Panel:
    """Only series with a single report at least; the others are counted."""
    there = np.asarray(np.isfinite(panel.values).any(axis=1))
    panel.account.reasons["series without any count, left out"] = int((~there).sum())
    return replace(
        panel,
        names=tuple(n for n, t in zip(panel.names, there, strict=True) if t),
        quantities=tuple(q for q, t in zip(panel.quantities, there, strict=True) if t),
        values=panel.values[there],
        beside={c: v[there] for c, v in panel.beside.items()},
        open_beds=None if panel.open_beds is None else panel.open_beds[there],
    )


def _named(identity: str, value: str, by: bool, several: bool) -> str:
    if not by:
        return value
    return f"{identity}/{value}" if several else identity


def _one(raw: pd.DataFrame, named: Any, usual: Sequence[str], what: str) -> str:
    if named is not None:
        if named not in raw.columns:
            raise DataError(
                f"The mapping reads {what} from {named!r}, which the file does not have. {has(raw)}"
            )
        return str(named)
    found = _known(raw, usual) or [str(c) for c in raw.columns if raw[c].dtype.kind == "M"]
    if not found:
        raise DataError(
            f"No column says the {what}: none is called {', '.join(usual[:5])}, none holds dates. {has(raw)} "
            f'Name it in a mapping file: {what} = "COLUMN". See: wardcast data schema counts'
        )
    return found[0]


def _known(raw: pd.DataFrame, usual: Sequence[str]) -> list[str]:
    lower = {str(c).strip().lower(): str(c) for c in raw.columns}
    return [lower[name] for name in usual if name in lower][:1]


def _telling_apart(raw: pd.DataFrame, time: str) -> list[str]:
    """The usual columns of series: the first, and others only as far as they tell rows of one stamp apart."""
    lower = {str(c).strip().lower(): str(c) for c in raw.columns}
    by: list[str] = []
    repeated = int(raw.duplicated([time]).sum())
    for column in (lower[name] for name in SERIES_NAMES if name in lower):
        fewer = int(raw.duplicated([*by, column, time]).sum())
        if not by or fewer < repeated:
            by, repeated = [*by, column], fewer
    return by


def _listed(raw: pd.DataFrame, said: Mapping[str, Any], key: str) -> list[str]:
    named = [str(c) for c in said.get(key, ())]
    absent = [c for c in named if c not in raw.columns]
    if absent and key != "beside":
        raise DataError(
            f"The mapping's {key} names {', '.join(absent)}, which the file does not have. {has(raw)}"
        )
    return [c for c in named if c in raw.columns]


def _values(raw: pd.DataFrame, said: Mapping[str, Any], taken: set[str]) -> list[str]:
    if "values" in said:
        return _listed(raw, said, "values")
    lower = {str(c).strip().lower(): str(c) for c in raw.columns}
    usual = _known(raw, PLAIN_NAMES) or [lower[name] for name in VALUE_NAMES if name in lower]
    numeric = [str(c) for c in raw.columns if raw[c].dtype.kind in "iuf" and str(c) not in taken]
    found = usual or (numeric if len(numeric) == 1 else [])
    if not found:
        raise DataError(
            f"Which column holds the counts? None is called {', '.join(VALUE_NAMES[:5])}, and {len(numeric):,} hold "
            f'numbers. {has(raw)} Name them in a mapping file: values = ["COLUMN"]. See: wardcast data schema counts'
        )
    return found


def _opened(raw: pd.DataFrame, said: Mapping[str, Any], values: Sequence[str]) -> dict[str, str]:
    """Which column holds the open beds of which count of beds taken."""
    if "open_beds" not in said:
        usual = _known(raw, OPEN_NAMES)
        return {c: usual[0] for c in values if usual and c.strip().lower() in TAKEN_NAMES}
    named = {str(c): str(column) for c, column in dict(said["open_beds"]).items()}
    wrong = [*(c for c in named if c not in values), *(c for c in named.values() if c not in raw.columns)]
    if wrong:
        raise DataError(
            f"The mapping's open_beds names {', '.join(wrong)}. Write {{ COUNT = COLUMN }}, COUNT one of "
            f"{', '.join(values)}. {has(raw)}"
        )
    return named


def _open_beds(
    tables: Mapping[str, Floats], values: Sequence[str], opened: Mapping[str, str]
) -> Floats | None:
    """Open beds by series and step; nobody opens none, so that a zero was not reported."""
    if not opened:
        return None
    found = [tables[opened[c]] if c in opened else np.full_like(tables[c], np.nan) for c in values]
    beds = np.concatenate(found)
    return np.where(beds > 0, beds, np.nan)


def has(raw: pd.DataFrame) -> str:
    """What columns a table has, the first twenty of them."""
    shown = ", ".join(str(c) for c in raw.columns[:20])
    return f"It has {shown}{' …' if raw.shape[1] > 20 else ''}."


def _kept(raw: pd.DataFrame, drop: Mapping[str, Sequence[str]]) -> tuple[pd.DataFrame, dict[str, int]]:
    keep = pd.Series(True, index=raw.index)
    for column, out in drop.items():
        if column in raw.columns:
            keep &= ~raw[column].astype("str").str.strip().isin([str(v) for v in out])
    return raw[keep], {"rows left out as totals (drop)": int((~keep).sum())}


def wall_clock(column: pd.Series, timezone: str, name: str) -> tuple[pd.Series, str, int]:
    """Stamps on the wall clock without zone; the zone they came with; how many could not be read.

    Raises
    ------
    DataError
        Nothing in the column is a time.
    """
    stamps, zone = _parsed(column, timezone)
    if stamps.dtype.kind != "M" or not stamps.notna().any():
        raise DataError(
            f"Column {name!r} holds no dates that can be read. Write ISO 8601, such as 2026-01-12 or 2026-01-12T08:00."
        )
    if isinstance(stamps.dtype, pd.DatetimeTZDtype):
        stamps = stamps.dt.tz_convert(ZoneInfo(timezone)).dt.tz_localize(None)
    return stamps.astype("datetime64[us]"), zone, int(stamps.isna().sum())


def _parsed(column: pd.Series, timezone: str) -> tuple[pd.Series, str]:
    """A column as times, and the site's zone if they came with an offset; summer's and winter's may both be there."""
    if column.dtype.kind == "M":
        return column, timezone if isinstance(column.dtype, pd.DatetimeTZDtype) else ""
    text = column.astype("str").str.strip().where(column.notna(), "")
    if visits.with_offset(text).any():
        return visits.instants(column.reset_index(drop=True), len(column), timezone)[0].set_axis(
            column.index
        ), timezone
    return pd.to_datetime(text.where(text != ""), errors="coerce", format="ISO8601"), ""


def _identities(rows: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    if not by:
        return pd.Series("all", index=rows.index)
    parts = [rows[c].astype("str").str.strip().where(rows[c].notna()) for c in by]
    named = parts[0]
    for part in parts[1:]:
        named = named + "/" + part
    return named


def _grid(stamps: pd.Series, step_h: int) -> pd.DatetimeIndex:
    if stamps.empty:
        raise DataError("No row has a stamp that can be read and belongs to a series. Check time and series.")
    return _steps(stamps.min(), stamps.max(), "h" if step_h == 1 else "D", "both")


def _steps(
    first: pd.Timestamp, last: pd.Timestamp, step: str, inclusive: Literal["both", "left"]
) -> pd.DatetimeIndex:
    if last - first > pd.Timedelta(days=365 * MOST_YEARS):
        raise DataError(
            f"The stamps go from {first:%Y-%m-%d} to {last:%Y-%m-%d}, more than {MOST_YEARS} years: one of them is "
            "mistyped. Correct it or leave its row out."
        )
    return pd.date_range(first, last, freq=step, inclusive=inclusive, unit="us")


def _table(
    long: pd.DataFrame,
    column: str,
    names: Sequence[str],
    grid: pd.DatetimeIndex,
    reasons: dict[str, int],
    tell: bool,
) -> Floats:
    """One column as series by steps; of repeated stamps the first count is kept, and two turns of an hour add up."""
    number = pd.to_numeric(long[column], errors="coerce")
    bad = (number.isna() & long[column].notna()) | (number < 0)
    number = number.mask(number < 0)
    rows = long[["_series", "_stamp", "_second"]].assign(v=number).dropna(subset=["v"])
    again = rows.duplicated(["_series", "_stamp", "_second"])
    if tell:
        _count(reasons, f"values of {column} that are no count, taken as missing", int(bad.sum()))
        _count(reasons, f"repeated rows of {column}, the first kept", int(again.sum()))
    total = rows[~again].groupby(["_series", "_stamp"])["v"].sum()
    out = np.full((len(names), len(grid)), np.nan)
    place = pd.Index(names).get_indexer(total.index.get_level_values(0))
    out[place, grid.get_indexer(pd.DatetimeIndex(total.index.get_level_values(1)))] = total
    return out


def _count(reasons: dict[str, int], why: str, n: int) -> None:
    reasons[why] = reasons.get(why, 0) + n


def _absent(table: Floats, absent: str) -> Floats:
    """Steps without a row: zero, from the first report on, where the mapping says so."""
    if absent not in ("missing", "zero"):
        raise DataError(f"absent must be missing or zero, got {absent!r}.")
    if absent == "missing":
        return table
    begun = np.maximum.accumulate(np.isfinite(table), axis=1)
    return np.where(begun & np.isnan(table), 0.0, table)


def _credible(table: Floats, zeros: str, step_h: int, reasons: dict[str, int]) -> Floats:
    """Zeros that mean "not reported" become missing, by looking backwards only."""
    if zeros not in ("auto", "real", "missing"):
        raise DataError(f"zeros must be auto, real or missing, got {zeros!r}.")
    if zeros == "real":
        return table
    judge = _silent_hours if step_h == 1 else _silent_days
    gone = (table == 0) if zeros == "missing" else np.stack([judge(row) for row in table])
    _count(reasons, "zeros taken as not reported", int(gone.sum()))
    return np.where(gone, np.nan, table)


def _silent_days(row: Floats) -> Bools:
    """Zeros before the first count, and zeros where the median of the 28 counts before is too high for one."""
    gone = np.zeros(len(row), dtype=bool)
    seen: list[float] = []
    for k in np.flatnonzero(np.isfinite(row)):
        recent = seen[-ZERO_DAYS_LOOK:]
        if row[k] == 0 and (not recent or float(np.median(recent)) >= INCREDIBLE):
            gone[k] = True
        else:
            seen.append(float(row[k]))
    return gone


def _silent_hours(row: Floats) -> Bools:
    """Zeros of a run in which, by the same hours of the four weeks before, at least 15 should have come by then."""
    gone = np.zeros(len(row), dtype=bool)
    begun = np.maximum.accumulate(np.nan_to_num(row)) > 0
    due, before = 0.0, -2
    for k in np.flatnonzero(row == 0):
        usual = row[k - 24 : max(k - 24 * ZERO_DAYS_LOOK - 1, 0) : -24] if k >= 24 else row[:0]
        reported = usual[np.isfinite(usual)]
        due = (due if k == before + 1 else 0.0) + (float(reported.mean()) if len(reported) else 0.0)
        gone[k], before = due >= ZERO_HOURS_EXPECTED or not begun[k], int(k)
    return gone


def _needs_counts(values: Floats, columns: Sequence[str]) -> None:
    if not np.isfinite(values).any():
        raise DataError(f"No usable count in {', '.join(columns)}. See: wardcast data schema counts")


# ------------------------------------------------------------ visits, counted


def _visits_panel(raw: pd.DataFrame, layout: str, said: dict[str, Any], timezone: str) -> Panel:
    names = dict(said.get("names", {}))
    table = _from_snapshots(raw, said["snapshots"]) if "snapshots" in said else raw
    columns = visits.recognised(table, names)
    flows = {flow: columns[c] for flow, c in FLOWS.items() if c in columns}
    if not flows:
        raise DataError(
            f"No time of arrival, admission or discharge. {has(raw)} Name one in a mapping file: "
            'names = { arrival_time = "COLUMN" }. Without any time there is nothing to count; P(admission) is learnt '
            "from such tables by `wardcast train admissions`."
        )
    reasons: dict[str, int] = {}
    times, zone = {}, ""
    for flow, column in flows.items():
        times[flow], came, bad = wall_clock(table[column], timezone, column)
        zone = zone or came
        reasons[f"rows without a readable {column}"] = bad
    dated = all((t.dropna().dt.normalize() == t.dropna()).all() for t in times.values())
    step_h = 24 if dated else 1
    specialty = table[columns["specialty"]] if "specialty" in columns else None
    counted = _flows(times, specialty, step_h)
    grid = pd.DatetimeIndex(next(iter(counted.values())).index)
    values = np.stack([v.to_numpy("float64") for v in counted.values()])
    values = _credible(values, str(said.get("zeros", "auto")), step_h, reasons)
    if step_h == 1:  # an hour that spring's clocks skip was not an empty one
        values[:, _localised(grid, timezone).tz_localize(None) != grid] = np.nan
    _needs_counts(values, list(flows.values()))
    account = CountAccount(len(raw), int(np.isfinite(values).sum()), layout, flows, reasons)
    quantities = tuple(name.partition("/")[0] for name in counted)
    return Panel(
        tuple(counted), quantities, grid, values, {}, step_h, zone,
        str(said.get("holidays", "")), account,
    )  # fmt: skip


def _flows(times: Mapping[str, pd.Series], specialty: pd.Series | None, step_h: int) -> dict[str, pd.Series]:
    """Each flow by step; admissions (else arrivals) also by specialty; by day, the beds taken at midnight.

    The last step is left out, since a file usually ends in the middle of one. Discharges of those who came before the
    file begins are not in it, so days are counted from its first arrival on. A specialty is a series from the day on
    that it had one visit a day so far, on or after the 28th: which ones become common later is not known before.
    """
    unit = "h" if step_h == 1 else "D"
    lead = next(iter(times.values())).dropna()
    first, last = lead.min().floor(unit), lead.max().floor(unit)
    grid = _steps(first, last, unit, "left")

    def counted(t: pd.Series) -> pd.Series:
        n: pd.Series = t.dropna().dt.floor(unit).value_counts().reindex(grid, fill_value=0).astype("float64")
        return n

    made = {flow: counted(t) for flow, t in times.items()}
    split = "admissions" if "admissions" in times else next(iter(times))
    if specialty is not None:
        for name in sorted(specialty.dropna().unique()):
            own = counted(times[split][specialty == name])
            known = _since_common(own.to_numpy(), 24 // step_h)
            if np.isfinite(known).any():
                made[f"{split}/{name}"] = pd.Series(known, grid)
    if step_h == 24 and {"admissions", "discharges"} <= set(times):
        made["occupied"] = (made["admissions"] - made["discharges"]).cumsum()
    return made


def _since_common(row: Floats, day: int) -> Floats:
    """Counts of a specialty, missing before it had one a day so far; all NaN where it never had.

    No forecast is issued from fewer than 28 days, so that one that is common by then is known from its beginning.
    """
    steps = np.arange(1, len(row) + 1)
    common = np.flatnonzero((np.cumsum(row) >= steps / day) & (steps >= COMMON_FROM_DAYS * day))
    if not len(common):
        return np.full(len(row), np.nan)
    begins = int(common[0]) + 1
    return np.where(np.arange(len(row)) >= (begins if begins > COMMON_FROM_DAYS * day else 0), row, np.nan)


def _from_snapshots(raw: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Arrivals of a table of snapshots: when each was taken less the time spent, one row a visit."""
    clock = raw[columns["clock"]].astype("str").str.extract(r"(\d+)\D+(\d+)").astype("float64")
    taken = pd.to_datetime(raw[columns["date"]]) + pd.to_timedelta(clock[0] * 60 + clock[1], unit="min")
    arrived = taken - pd.to_timedelta(raw[columns["elapsed_s"]], unit="s")
    return raw.assign(arrival_time=arrived).drop_duplicates(columns["visit"])
