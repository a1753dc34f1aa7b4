"""``wardcast forecast beds --shape``: what comes next, for a site that has counts by hour or by day and no more.

The forecast is the one that ``wardcast backtest beds`` judges: models are fitted on the file's own history, and the
forecasts of the half year before (of days, the year before) are issued again to learn how far outcomes fall from them.
Those of the last fortnight are told too, so that a reader sees whether they held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from features.errors import ConfigError, DataError
from features.sources import counts, covariates
from features.sources.counts import Panel
from features.sources.covariates import Covariates
from models.counted import CountForecast, Known, Span
from training import series_scores
from training.drivers import Reasons, strengths
from training.series_backtest import read_stamp
from training.series_issue import CHECK_DAYS, Schedule, issue, least_days
from training.telling import counting

NOW: Final = "now"
AHEAD_DAYS: Final = {1: 2, 24: 7}
RECORD_DAYS: Final = 14
STALE_DAYS: Final = 7
"""Counts older than that say nothing of a bed manager's next days."""
HUDDLE: Final = 8
"""The hour at which tomorrow's beds are handed over."""
NAMED: Final = 5
"""Series that a message names before it only counts."""


@dataclass(frozen=True)
class _Moment:
    """Where in time a forecast stands, on a panel that ends with the newest count in hand.

    ``gap`` steps lie between the newest count and ``at``: hours or days without any count yet.
    """

    panel: Panel
    at: pd.Timestamp
    gap: int

    @property
    def day(self) -> int:
        """Steps of a day."""
        return 24 // self.panel.step_h

    @property
    def horizon(self) -> int:
        """Steps ahead of what is in hand."""
        return self.gap + AHEAD_DAYS[self.panel.step_h] * self.day

    @property
    def origin(self) -> int:
        """Position of the newest origin: of hours the first one not known, of days the last one known."""
        return len(self.panel.stamps) - (0 if self.panel.step_h == 1 else 1)


def foresee(
    shape: str,
    path: Path,
    at: str = NOW,
    *,
    hospital: str = "",
    covariate_files: Sequence[Path] = (),
    mapping: Path | None = None,
    timezone: str = "UTC",
    threads: int = 1,
) -> CountForecast:
    """Foresee the next hours or days of every series of a file.

    Parameters
    ----------
    shape : str
        One of ``features.sources.counts.SHAPES``.
    path : Path
    at : str
        First hour or day to come, ISO 8601 on the site's wall clock; ``now`` follows the file's newest count. Counts
        stamped at or after it are not read.
    hospital : str
        Tell only of the series of this name, or of this name before a slash; all of them teach the models.

    Raises
    ------
    ConfigError
        No series is called as asked.
    DataError
        The counts cannot be used, are too few, or end too long before ``at``.
    """
    panel = counts.read(path, shape, mapping, timezone)
    beside = covariates.read(covariate_files, mapping, timezone)
    wanted = _wanted(panel, hospital)
    moment = _moment(panel, at)
    schedule = _schedule(moment)
    issued, reasons = _issued(moment.panel, beside, schedule, threads)
    rows = issued[issued["series"].isin([panel.names[k] for k in wanted])]
    spans = _spans(moment)
    told = _told(rows, spans, moment)
    if told.empty:
        raise DataError(
            f"No series has a forecast: {least_days(panel) + CHECK_DAYS} days of counts are needed, and one of the "
            "last ten days. Give more history."
        )
    known = _known(moment, wanted, set(told["series"]), _record(rows, moment))
    return CountForecast(
        at=moment.at,
        newest=moment.panel.stamps[-1],
        step_h=panel.step_h,
        source=path.name,
        spans=spans,
        known=known,
        rows=told.reset_index(drop=True),
        as_came=series_scores.as_came(told, panel),
        moved_by={str(d["about"]): float(d["share"]) for d in strengths(reasons)},
        stale=_stale(moment),
        notes=(
            *panel.account.lines(),
            *_unread(panel, moment),
            *beside.lines(),
            *_missing(panel, wanted, known, moment),
        ),
    )


def _wanted(panel: Panel, hospital: str) -> list[int]:
    """Places of the series to be told."""
    if not hospital:
        return list(range(len(panel.names)))
    found = [k for k, n in enumerate(panel.names) if n == hospital or n.startswith(f"{hospital}/")]
    if not found:
        raise ConfigError(f"No series is called {hospital!r}. There are {_some(panel.names)}.")
    return found


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _moment(panel: Panel, at: str) -> _Moment:
    """Cut the counts at ``at``, and say how far the newest lies before it."""
    end = panel.stamps[-1] + panel.step
    begins = end if at == NOW else read_stamp(at, "--at", panel)
    kept = int(panel.stamps.searchsorted(begins))
    reported = np.flatnonzero(np.isfinite(panel.values[:, :kept]).any(axis=0))
    if not len(reported):
        raise DataError(
            f"No count lies before --at {begins:%Y-%m-%d}: the first is of {panel.stamps[0]:%Y-%m-%d}."
        )
    kept = int(reported[-1]) + 1
    cut = replace(
        panel, stamps=panel.stamps[:kept], values=panel.values[:, :kept],
        beside={c: v[:, :kept] for c, v in panel.beside.items()},
        open_beds=None if panel.open_beds is None else panel.open_beds[:, :kept],
    )  # fmt: skip
    newest = cut.stamps[-1]
    gap = round((begins - newest) / panel.step) - 1
    if gap * panel.step_h > STALE_DAYS * 24:
        raise DataError(
            f"The newest count is of {newest:{_form(panel)}}, {gap * panel.step_h // 24} days before --at "
            f"{begins:%Y-%m-%d}. Give newer counts, or an earlier --at."
        )
    return _Moment(cut, begins, gap)


def _form(panel: Panel) -> str:
    return "%Y-%m-%d %H:%M" if panel.step_h == 1 else "%Y-%m-%d"


def _schedule(moment: _Moment) -> Schedule:
    """Origins of the last fortnight and the newest, which has a fit and corrections of its own."""
    panel, day = moment.panel, moment.day
    least = (least_days(panel) + CHECK_DAYS) * day
    if moment.origin < least:
        raise DataError(
            f"Days of counts before {moment.at:%Y-%m-%d}: {len(panel.stamps) // day:,}, and more than "
            f"{least // day} are needed: {least_days(panel)} to learn from, {CHECK_DAYS} to check. Give more history."
        )
    back = RECORD_DAYS * day if moment.origin >= least + RECORD_DAYS * day else 0
    place = moment.origin - back
    start = panel.stamps[place] if place < len(panel.stamps) else panel.stamps[-1] + panel.step
    every = 12 if panel.step_h == 1 else 1
    made = Schedule.of(panel, start, None, every, moment.horizon, RECORD_DAYS * day)
    windows = tuple(sorted({s.window_h for s in _spans(moment)} | {1}))
    return replace(made, windows=windows) if panel.step_h == 1 else made


def _spans(moment: _Moment) -> tuple[Span, ...]:
    """What a bed manager asks for: of hours the next 4 and 8, to 08:00 tomorrow, and tomorrow; of days the week."""
    at = moment.at
    if moment.panel.step_h == 24:
        days = pd.date_range(at, periods=AHEAD_DAYS[24], freq="D", unit="us")
        return tuple(Span(f"{d:%a} {d.day} {d:%b}", d, 24) for d in days)
    midnight = at.normalize() + pd.Timedelta(days=1)
    ends = {
        "next 4 h": at + pd.Timedelta(hours=4),
        "next 8 h": at + pd.Timedelta(hours=8),
        f"to {HUDDLE:02d}:00 tomorrow": midnight + pd.Timedelta(hours=HUDDLE),
    }
    spans = [
        Span(label, end - pd.Timedelta(hours=1), round((end - at) / pd.Timedelta(hours=1)))
        for label, end in ends.items()
    ]
    return (*spans, Span("tomorrow", midnight + pd.Timedelta(hours=23), 24))


def _issued(
    panel: Panel, beside: Covariates, schedule: Schedule, threads: int
) -> tuple[pd.DataFrame, list[Reasons]]:
    """Every forecast from the asked origins on, with its outcome where there is one."""
    total = len(panel.names) if panel.step_h == 1 else sum(1 for _ in schedule.stretches())
    parts, reasons = [], list[Reasons]()
    # Tall and narrow matrices: more threads of linear algebra wait for one another, at many times the CPU.
    with (
        counting("fitting", "series" if panel.step_h == 1 else "fits", total) as (said, _),
        threadpool_limits(1, "blas"),
    ):
        for batch in issue(panel, beside, schedule, threads, said, reasons.append):
            some = series_scores.table(batch, panel, schedule)
            parts.append(some.assign(outcome=batch.outcome[some.index]))
    return pd.concat(parts, ignore_index=True), reasons


def _told(rows: pd.DataFrame, spans: Sequence[Span], moment: _Moment) -> pd.DataFrame:
    """Of the newest origin: every hour or day from ``at`` on, and the spans."""
    newest = rows[rows["origin"] == _stamp(moment, moment.origin)].drop(columns="outcome")
    told = {(s.target, s.window_h) for s in spans}
    whole = (newest["window_h"] == moment.panel.step_h) & (newest["target"] >= moment.at)
    asked = [pair in told for pair in zip(newest["target"], newest["window_h"], strict=True)]
    return newest[whole | np.array(asked, dtype=bool)]


def _stamp(moment: _Moment, position: int) -> pd.Timestamp:
    return moment.panel.stamps[0] + position * moment.panel.step


def _record(rows: pd.DataFrame, moment: _Moment) -> dict[str, tuple[int, int]]:
    """The last fortnight's forecasts of the first day, from the same hour, by series: how many held, of how many."""
    seconds = (_stamp(moment, moment.origin) - rows["origin"]).dt.total_seconds()
    back = seconds / moment.panel.step.total_seconds()
    ahead = moment.gap + (23 if moment.panel.step_h == 1 else 1)
    same = (rows["window_h"] == 24) & (rows["target"] - rows["origin"] == ahead * moment.panel.step)
    past = rows[same & (back > 0) & (back % moment.day == 0) & rows["outcome"].notna()]
    held = (past["q05"] <= past["outcome"]) & (past["outcome"] <= past["q95"])
    return {str(name): (int(some.sum()), len(some)) for name, some in held.groupby(past["series"])}


def _known(
    moment: _Moment, wanted: Sequence[int], foreseen: set[str], record: Mapping[str, tuple[int, int]]
) -> tuple[Known, ...]:
    panel, found = moment.panel, []
    for k in wanted:
        name = panel.names[k]
        if name not in foreseen:
            continue
        last = int(np.flatnonzero(np.isfinite(panel.values[k]))[-1])
        inside, of = record.get(name, (0, 0))
        found.append(
            Known(
                name, panel.quantities[k], float(panel.values[k, last]), panel.stamps[last], inside, of,
                _open_beds(panel, k),
            )
        )  # fmt: skip
    return tuple(found)


def _open_beds(panel: Panel, series: int) -> float | None:
    """The newest number of open beds, of days only: a sum of hours fills no beds."""
    if panel.open_beds is None or panel.step_h == 1:
        return None
    recent = panel.open_beds[series, -STALE_DAYS:]
    reported = recent[np.isfinite(recent)]
    return float(reported[-1]) if len(reported) else None


def _stale(moment: _Moment) -> tuple[str, ...]:
    """Whether counts are missing before the moment asked for."""
    if moment.gap <= 0:
        return ()
    hours = moment.panel.step_h == 1
    unit = "hour" if hours else "day"
    return (
        f"The newest count is of {moment.panel.stamps[-1]:{_form(moment.panel)}}: {moment.gap} {unit}"
        f"{'s' if moment.gap > 1 else ''} before {moment.at:{_form(moment.panel)}} had none, and ranges are wider.",
    )


def _unread(panel: Panel, moment: _Moment) -> tuple[str, ...]:
    """How much of the file lies after the moment."""
    later = int((panel.stamps >= moment.at).sum())
    unit = "hours" if panel.step_h == 1 else "days"
    return (f"{later:,} newer {unit} of the file were not read.",) if later else ()


def _missing(panel: Panel, wanted: Sequence[int], known: Sequence[Known], moment: _Moment) -> tuple[str, ...]:
    """Series without a forecast, and those whose newest count is older than that of others."""
    there = {k.name for k in known}
    absent = [panel.names[k] for k in wanted if panel.names[k] not in there]
    older = [k.name for k in known if k.stamp < moment.panel.stamps[-1]]
    notes = []
    if absent:
        notes.append(
            f"{len(absent):,} series without a forecast, for want of history or of a recent count: {_some(absent)}."
        )
    if older:
        notes.append(
            f"{len(older):,} series whose newest count is older than {moment.panel.stamps[-1]:{_form(panel)}}: "
            f"{_some(older)}."
        )
    return tuple(notes)
