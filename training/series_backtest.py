"""``wardcast backtest beds``: issue a site's forecasts again as they would have been, and say how good they were."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
from threadpoolctl import threadpool_limits

from features.errors import ConfigError, DataError
from features.sources import counts, covariates
from features.sources.counts import Panel
from features.sources.covariates import Covariates
from training import series_scores
from training.drivers import Reasons, strengths
from training.layouts import aligned
from training.series_card import card
from training.series_issue import Schedule, issue
from training.telling import counting, write_json

TARGETS: Final = (
    "target is the stamp of the last hour or day of the window, as the input writes it: the outcome is "
    "counts.rolling(window_h).sum() there. Of hours the origin is the first stamp not known; of days it is the last "
    "one known."
)


@dataclass(frozen=True)
class Asked:
    """What is to be issued: first origin, steps between, how far ahead, how often fitted.

    Durations are written as ``12h`` or ``7d``; without any, hours have origins every 12 h and 48 h ahead, days every
    day and 7 days ahead.
    """

    start: str
    every: str | None = None
    horizon: str | None = None
    refit: str = "28d"
    until: str | None = None
    threads: int = 1

    def durations(self, panel: Panel) -> dict[str, str]:
        """``every``, ``horizon`` and ``refit`` as they hold for a panel."""
        every, horizon = ("12h", "48h") if panel.step_h == 1 else ("1d", "7d")
        return {"every": self.every or every, "horizon": self.horizon or horizon, "refit": self.refit}

    def schedule(self, panel: Panel) -> Schedule:
        """Lay it out on the grid of a panel.

        Raises
        ------
        DataError
            A duration is no multiple of the panel's step, a date cannot be read, or the history is too short.
        """
        until = None if self.until is None else read_stamp(self.until, "--until", panel)
        return Schedule.of(
            panel, read_stamp(self.start, "--from", panel), until, *(
                _steps(text, f"--{name}", panel) for name, text in self.durations(panel).items()
            ),
        )  # fmt: skip


def read_stamp(text: str, option: str, panel: Panel) -> pd.Timestamp:
    """A stamp of a panel's wall clock, from ISO 8601; one with an offset is turned to it.

    Raises
    ------
    DataError
        It is no date.
    """
    stamp = pd.to_datetime(text, errors="coerce")
    if pd.isna(stamp):
        raise DataError(f"{option} {text!r} is no date. Write for example 2026-01-12.")
    if stamp.tzinfo is not None:
        stamp = stamp.tz_convert(panel.zone or "UTC").tz_localize(None)
    return stamp.floor("h" if panel.step_h == 1 else "D")


def _steps(text: str, option: str, panel: Panel) -> int:
    if not re.fullmatch(r"\d+[hd]", text):
        raise DataError(f"{option} {text!r} is no duration. Write for example 12h or 7d.")
    hours = int(text[:-1]) * (1 if text[-1] == "h" else 24)
    if hours <= 0 or hours % panel.step_h:
        unit = "an hour" if panel.step_h == 1 else "a day"
        raise DataError(f"{option} {text} must be a multiple of {unit}: the series go by {panel.step_h} h.")
    return hours // panel.step_h


@dataclass(frozen=True)
class Backtested:
    """What was issued, and how good it was."""

    output: Path
    forecasts: int
    evaluation: dict[str, Any]
    said: tuple[str, ...]

    def summary(self) -> str:
        """The account, the figures as tables, and where everything lies."""
        return "\n".join([*self.said, "", *_tables(self.evaluation["figures"]), "", *_where(self)])


def _where(done: Backtested) -> list[str]:
    e = done.evaluation
    return [
        f"{done.forecasts:,} forecasts in {done.output}; figures, card and plots beside it. "
        f"{e['seconds']:.0f} s, {e['cpu_seconds']:.0f} s of CPU.",
        f"Coverage is of the 90 % interval, by randomised PIT, since whole numbers over-cover. {TARGETS}",
        "Intervals in brackets are 95 %, by resampled weeks. Skill: share of the humble forecast's loss saved.",
    ]


def _tables(figures: dict[str, Any]) -> list[str]:
    said: list[str] = []
    cell = series_scores.CELL_NAMES[figures["cells"]].lower()
    for quantity, cells in figures.items():
        if quantity == "cells":
            continue
        skills = _told(next(iter(cells.values())))
        rows = [
            (
                k, c["forecasts"], f"{c['outcome_mean']:.1f}", f"{c['mae_of_median']:.2f}", f"{c['pinball']:.3f}",
                f"{c['crps']:.2f}", _bracketed(c, "coverage_90_pit"), f"{c['coverage_90']:.3f}",
                f"{c['exceeded_99']:.2%}", *(_bracketed(c, n, "+.1%") for n in skills),
            )
            for k, c in cells.items()
        ]  # fmt: skip
        header = (
            cell,
            "forecasts",
            "mean",
            "MAE",
            "pinball",
            "CRPS",
            "coverage 90 %",
            "as stated",
            "99 % exceeded",
        )
        said += [
            f"{quantity}:",
            aligned(rows, (*header, *(n.replace("_skill_vs_", " vs ") for n in skills))),
            "",
        ]
    return said[:-1]


def _told(cell: dict[str, Any]) -> list[str]:
    """One skill against each humble forecast: of the whole distribution where it is one, else of the middle."""
    best: dict[str, str] = {}
    for loss in ("mae", "pinball", "crps"):
        for name in cell:
            if name.startswith(f"{loss}_skill_vs_") and not name.endswith("_interval"):
                best[name.partition("_skill_vs_")[2]] = name
    return list(best.values())


def _bracketed(cell: dict[str, Any], name: str, spec: str = ".3f") -> str:
    if name not in cell:
        return ""
    low, high = cell[f"{name}_interval"]
    return f"{cell[name]:{spec}} ({low:{spec}} to {high:{spec}})"


def run(
    shape: str,
    path: Path,
    output: Path,
    asked: Asked,
    *,
    covariate_files: Sequence[Path] = (),
    mapping: Path | None = None,
    timezone: str = "UTC",
    track: bool = True,
) -> Backtested:
    """Issue and judge every forecast, and write them, the figures and the plots.

    Parameters
    ----------
    shape : str
        One of ``features.sources.counts.SHAPES``.
    path, output : Path
        The counts, and the Parquet file to write; ``.json``, the model card ``.md`` and plots lie beside it under the
        same name.
    track : bool
        Record the run in MLflow: card, figures and plots, never rows.

    Raises
    ------
    DataError
        The counts or covariates cannot be used, or the dates asked for do not fit them.
    """
    if output.suffix != ".parquet":
        raise ConfigError(f"--output {output} must end in .parquet.")
    began, cpu = time.monotonic(), time.process_time()
    panel = counts.read(path, shape, mapping, timezone)
    beside = covariates.read(covariate_files, mapping, timezone)
    schedule = asked.schedule(panel)
    rows, scores, reasons = _issued(panel, beside, schedule, asked.threads)
    if rows.empty:
        raise DataError("No forecast could be issued: no series has enough history before its origins.")
    output.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(output, index=False)
    evaluation = _evaluation(panel, schedule, asked, scores, path) | {"drivers": strengths(reasons)}
    evaluation |= {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
    write_json(output.with_suffix(".json"), evaluation)
    about = card(evaluation) if len(scores) else ""
    if about:
        output.with_suffix(".md").write_text(about, encoding="utf-8")
    drawn = series_scores.plots(evaluation["figures"], scores) if len(scores) else {}
    for name, figure in drawn.items():
        figure.savefig(output.with_name(f"{output.stem}_{name}"), dpi=110)
    if track:
        from training.tracking import log_backtest

        log_backtest(evaluation, drawn, about, run_name=f"backtest {shape} {path.stem}")
    said = (*panel.account.lines(), *beside.lines(), _schedule_words(panel, schedule, asked))
    return Backtested(output, len(rows), evaluation, said)


def _issued(
    panel: Panel, beside: Covariates, schedule: Schedule, threads: int
) -> tuple[pd.DataFrame, pd.DataFrame, list[Reasons]]:
    total = len(panel.names) if panel.step_h == 1 else sum(1 for _ in schedule.stretches())
    rows, scores, reasons = [], [], list[Reasons]()
    # Tall and narrow matrices: more threads of linear algebra wait for one another, at many times the CPU.
    with (
        counting("issuing", "series" if panel.step_h == 1 else "fits", total) as (told, _),
        threadpool_limits(1, "blas"),
    ):
        for batch in issue(panel, beside, schedule, threads, told, reasons.append):
            judged = series_scores.judge(batch, panel, schedule)
            rows.append(judged.rows)
            scores.append(judged.scores)
    return pd.concat(rows, ignore_index=True), pd.concat(scores, ignore_index=True), reasons


def _evaluation(
    panel: Panel, schedule: Schedule, asked: Asked, scores: pd.DataFrame, path: Path
) -> dict[str, Any]:
    first, last = (
        panel.stamps[min(int(k), len(panel.stamps) - 1)] for k in schedule.origins[[schedule.asked, -1]]
    )
    return {
        "data": {
            "file": path.name, "layout": panel.account.layout, "series": len(panel.names), "step_h": panel.step_h,
            "first": str(panel.stamps[0]), "last": str(panel.stamps[-1]), "account": panel.account.reasons,
        },
        "schedule": {
            "first_origin": str(first), "last_origin": str(last), "origins": len(schedule.origins) - schedule.asked,
            **asked.durations(panel), "corrections": "7d",
            "origins_issued_before_to_learn_from": schedule.asked,
        },
        "meaning": TARGETS,
        "humble": _humble(panel),
        "figures": series_scores.figures(scores),
        "by_series": series_scores.by_series(scores, panel.names),
    }  # fmt: skip


def _humble(panel: Panel) -> dict[str, str]:
    said = {
        "seasonal_naive": "the same hours, or weekday, of the last week in hand",
        "mean4": "mean of the same hours, or weekday, of the last 4 weeks; as a distribution, Poisson",
        "mean6": "the same of the last 6 weeks",
    }
    if panel.step_h == 1:
        return said | {
            "climatology": "all counts seen of the same hour and weekday, brought up to date at every fit"
        }
    return said | {"naive": "the last count in hand"}


def _schedule_words(panel: Panel, schedule: Schedule, asked: Asked) -> str:
    n, told = len(schedule.origins) - schedule.asked, asked.durations(panel)
    return (
        f"{n:,} origins of {len(panel.names):,} series, every {told['every']}, {told['horizon']} ahead; models fitted "
        f"every {told['refit']}, corrections every 7 days, learnt from {schedule.asked:,} origins before "
        "and whatever came since."
    )
