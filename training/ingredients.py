"""The ingredients of the bed forecast by themselves: are their chances right, and what moves each of them.

The sums that a bed manager reads are judged as distributions in :mod:`training.backtest`. Errors of two ingredients may
cancel there, so that each is also held against what came in the test period.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import pandas as pd

from features import census
from features.clock import UTC_US, micros
from models.beds import BedModel
from models.flows import ArrivalRate
from models.tables import markdown, with_interval
from training.flows import specialty_codes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WITHIN_H: Final = 4.0
"""Hours within which a bed is reached or is not."""
STAY_H: Final = 24.0
"""Hours after noon within which a bed is left or is not."""
LEVEL_DAYS: Final = 28
"""Days whose arrivals say how busy the site is, as the forecast itself takes them."""
SAMPLE: Final = 2_000
"""Snapshots, about, whose SHAP contributions are averaged."""
SHOWN: Final = 6
"""Columns that a card names for each ingredient."""


@dataclass(frozen=True)
class Held:
    """The test period.

    Attributes
    ----------
    snapshots : DataFrame, rows of :class:`features.labels.admissions.Snapshots`
    mix : float64, shape (n_snapshots, n_specialties)
        Chances of each specialty given admission.
    arrivals : Series of datetime64[us, UTC]
        Of the emergency department, before the test period too.
    stays : DataFrame of :func:`features.sources.moves.spells`
    first, last : Timestamp
    """

    snapshots: pd.DataFrame
    mix: Floats
    arrivals: pd.Series
    stays: pd.DataFrame
    first: pd.Timestamp
    last: pd.Timestamp
    timezone: str


def judge(held: Held, model: BedModel) -> dict[str, dict[str, Any]]:
    """Each ingredient beside what came: how many cases, expected and observed, loss and the loss of one chance for all.

    Loss is the Brier score of chances, the mean absolute error of days; ``usual`` that of the observed share, or of
    the mean of the last four same weekdays. ``oe_interval`` (95 %) takes all snapshots of a visit, and all noons of a
    stay, for one witness.
    """
    told = [
        *_specialties(held, model),
        _time_to_bed(held, model),
        _arrivals(held, model),
        _leaving(held, model),
    ]
    return {line.pop("about"): line for line in told if line["cases"]}


def _line(
    about: str, expected: Floats, came: Floats, witness: npt.NDArray[Any], usual: Floats | None = None
) -> dict[str, Any]:
    """Chances against 0 and 1, or with ``usual`` counts against counts; ``witness`` says whom each is about."""
    if not len(came):
        return {"about": about, "cases": 0}
    if usual is None:
        loss, plain = float(((expected - came) ** 2).mean()), float(came.mean() * (1 - came.mean()))
    else:
        loss, plain = float(np.abs(expected - came).mean()), float(np.abs(usual - came).mean())
    return {
        "about": about, "cases": len(came), "expected": float(expected.sum()), "observed": float(came.sum()),
        "oe_interval": _ratio_interval(came, expected, witness), "loss": loss, "usual": plain,
    }  # fmt: skip


def _ratio_interval(came: Floats, expected: Floats, witness: npt.NDArray[Any]) -> list[float]:
    """95 % interval of sum(came) / sum(expected), linearised, with what one witness says in one piece."""
    code = np.unique(witness, return_inverse=True)[1]
    observed, due = np.bincount(code, came), np.bincount(code, expected)
    total = max(float(due.sum()), 1e-12)
    ratio = float(observed.sum()) / total
    n = len(due)
    spread = np.sqrt(((observed - ratio * due) ** 2).sum() * n / max(n - 1, 1)) / total
    return [max(float(ratio - 1.96 * spread), 0.0), float(ratio + 1.96 * spread)]


def _specialties(held: Held, model: BedModel) -> list[dict[str, Any]]:
    code = specialty_codes(held.snapshots["specialty"], model.specialties)
    known = held.snapshots["admitted"].to_numpy(bool) & (code >= 0)
    visit = held.snapshots.loc[known, "encounter_id"].to_numpy("str")
    return [
        _line(
            f"specialty given admission: {name}",
            held.mix[known, k],
            (code[known] == k).astype("float64"),
            visit,
        )
        for k, name in enumerate(model.specialties)
    ]


def _time_to_bed(held: Held, model: BedModel) -> dict[str, Any]:
    some = held.snapshots[held.snapshots["admitted"].to_numpy(bool) & held.snapshots["hours_to_bed"].notna()]
    spent = (some["prediction_time"] - some["arrival_time"]).dt.total_seconds().to_numpy("float64") / 3600
    hour = some["prediction_time"].dt.tz_convert(held.timezone).dt.hour.to_numpy("int64")
    expected = model.undecided.reached(spent, hour, np.array([WITHIN_H]))[:, 0]
    came = (some["hours_to_bed"].to_numpy("float64") <= WITHIN_H).astype("float64")
    visit = some["encounter_id"].to_numpy("str")
    return _line(f"bed within {WITHIN_H:.0f} h, undecided who will be admitted", expected, came, visit)


def _arrivals(held: Held, model: BedModel) -> dict[str, Any]:
    """Each day at the level of the 28 before: what the rate of the emergency door makes of it."""
    hours = pd.Series(
        pd.date_range(held.arrivals.min().floor("h"), held.last, freq="h", inclusive="left", unit="us")
    )
    known = census.calendar(hours, held.timezone, model.holidays)
    day = known["local_date"].to_numpy()
    came = hours.map(held.arrivals.dt.floor("h").value_counts()).fillna(0).to_numpy("float64")
    table = (
        pd.DataFrame({"due": model.streams["emergency"].rate.rate(known), "came": came}).groupby(day).sum()
    )
    before = table.shift(1).rolling(LEVEL_DAYS, min_periods=LEVEL_DAYS).sum()
    expected = table["due"] * before["came"] / before["due"].clip(lower=1e-9)
    usual = pd.concat([table["came"].shift(7 * k) for k in range(1, 5)], axis=1).mean(axis=1, skipna=False)
    start = held.first.tz_convert(held.timezone).tz_localize(None)
    some = (table.index > start) & expected.notna() & usual.notna()
    return _line(
        "arrivals at the emergency department, days", expected[some].to_numpy("float64"),
        table.loc[some, "came"].to_numpy("float64"), np.arange(int(some.sum())), usual[some].to_numpy("float64"),
    )  # fmt: skip


def _leaving(held: Held, model: BedModel) -> dict[str, Any]:
    """Everybody in a bed at every local noon: the chance to be gone a day later, moves aside."""
    code = specialty_codes(held.stays["specialty"], model.specialties)
    kept = (code >= 0) & (held.stays["next"] == "").to_numpy()
    start = micros(held.stays["start"][kept])
    end = micros(held.stays["end"][kept].fillna(held.last + pd.Timedelta(days=9)).astype(UTC_US))
    days = pd.date_range(held.first.tz_convert(held.timezone).normalize(), held.last, freq="D")
    expected, came, who = [], [], []
    for noon in days + pd.Timedelta(hours=12):
        now = noon.tz_convert("UTC").value // 1000
        if noon + pd.Timedelta(hours=STAY_H) > held.last:
            break
        there = (start <= now) & (end > now)
        local = pd.date_range(noon, periods=int(STAY_H), freq="h")
        hour, weekday = local.hour.to_numpy("int64"), local.weekday.to_numpy("int64")
        stay = (now - start[there]) / 3.6e9
        expected.append(model.stays.leaving(code[kept][there], stay, hour, weekday, np.array([STAY_H]))[:, 0])
        came.append((end[there] <= now + STAY_H * 3.6e9).astype("float64"))
        who.append(np.flatnonzero(there).astype("float64"))
    none = np.zeros(0)
    parts = (np.concatenate([none, *some]) for some in (expected, came, who))
    return _line("in a bed at noon, gone a day later", *parts)


# ------------------------------------------------------------ reasons


def reasons(
    boosters: dict[str, lgb.Booster], matrix: npt.NDArray[np.float32], names: list[str], model: BedModel
) -> dict[str, Any]:
    """What moves each ingredient: SHAP of the trees by what columns are about, factors of the regressions."""
    step = max(len(matrix) // SAMPLE, 1)
    rate = model.streams["emergency"].rate
    return {
        "p_admission": _shap(boosters["risk"], matrix[::step], names),
        "specialty": _shap(boosters["specialty"], matrix[::step], names),
        "arrivals": _of_rate(rate),
        "discharges": {"hour": _span(model.stays.hour), "weekday": _span(model.stays.weekday)},
    }


def _shap(booster: lgb.Booster, matrix: npt.NDArray[np.float32], names: list[str]) -> dict[str, float]:
    """Share of the mean absolute contributions, strongest first; of several classes all are added up."""
    added = np.abs(np.asarray(booster.predict(matrix, pred_contrib=True))).mean(axis=0)
    by_column = added.reshape(-1, len(names) + 1)[:, :-1].sum(axis=0)
    about = pd.Series(by_column, [n.partition("__")[0] for n in names]).groupby(level=0).sum()
    shares = (about / max(float(about.sum()), 1e-12)).sort_values(ascending=False)
    return {str(k): float(v) for k, v in shares.head(SHOWN).items() if v > 0}


def _of_rate(rate: ArrivalRate) -> dict[str, float]:
    found = {
        "hour": _span(rate.hour), "weekday": _span(rate.weekday), "public holiday": float(np.exp(rate.holiday)),
        "season": float(np.exp(2 * np.hypot(*rate.season))), "day effect, sd": float(np.sqrt(rate.dispersion)),
    }  # fmt: skip
    return found | {c.name: float(np.exp(c.weight)) for c in rate.covariates}


def _span(log: tuple[float, ...]) -> float:
    """Highest over lowest."""
    return float(np.exp(max(log) - min(log)))


# ------------------------------------------------------------ words


def told(found: dict[str, Any]) -> str:
    """Both as Markdown, for the card."""
    rows = [
        (
            about, f"{i['cases']:,}", f"{i['expected']:,.0f}", f"{i['observed']:,.0f}",
            with_interval((i["observed"] / max(i["expected"], 1e-9), *i["oe_interval"]), 2), f"{i['loss']:.3f}",
            f"{i['usual']:.3f}",
        )
        for about, i in found["judged"].items()
    ]  # fmt: skip
    return "\n\n".join(
        [
            "Ingredients in the test period (O/E with 95 % interval, by visit, stay or day; loss: Brier score, beside "
            "that of one chance for all; of arrivals the mean absolute error of a day, beside the mean of four same "
            "weekdays):",
            markdown(("ingredient", "cases", "expected", "observed", "O/E", "loss", "usual loss"), rows),
            "What moves them: of P(admission) and specialty the share of SHAP contributions, of arrivals and "
            "discharges the highest over the lowest rate, of a holiday and a series its factor.",
            markdown(
                ("ingredient", "moved by"),
                [(k.replace("_", " "), _listed(k, v)) for k, v in found["reasons"].items()],
            ),
        ]
    )


def _listed(ingredient: str, found: dict[str, float]) -> str:
    share = ingredient in ("p_admission", "specialty")
    return ", ".join(f"{k.replace('_', ' ')} {v:.0%}" if share else f"{k} {v:.2f}" for k, v in found.items())
