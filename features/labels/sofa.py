"""SOFA hour by hour over a stay, for labels: it reads facts at the time they happened and may pair them in hindsight.

The points come from the same band table as the feature (``scores/sofa_full.csv``) and the same windows. Three things
that a window at one instant cannot know are added first: the rate that ran until an infusion changed, the coma scale
summed from parts charted together, and the PaO2/FiO2 of every blood gas with the oxygen and ventilator of its own time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from features import cohorts, scores
from features.clock import HOUR_US, STAY_US, UTC_US, from_micros, micros
from features.errors import SpecError
from features.events import EVENT_COLUMNS
from features.labels.infection import one_of
from features.windows import Window, build

RATES: Final = ("norepinephrine", "epinephrine", "dopamine", "dobutamine")
COMA: Final = ("gcs_eye", "gcs_verbal", "gcs_motor")
SUPPORT: Final = "invasive_ventilation"
SETTING: Final = "peep"
DAY: Final = 24 * HOUR_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Sofa:
    """Every choice in "the SOFA score at an hour".

    Attributes
    ----------
    score
        The band table: ``sofa_full`` (Vincent 1996 and Singer 2016, blood gas only), or ``sofa``, where the oximeter
        stands in for the blood gas and vasopressors are not read. Each part is its worst of the last 24 hours.
    where
        ``icu``: hours in intensive care only (mimic-code, ricu); ``stay``: the whole encounter, wards included. Facts
        from before the first hour are read either way, as far as 24 hours back.
    icu_joined
        Stretches in intensive care of one encounter that lie no further apart are one ICU stay, the ward between them
        included. MIMIC-III numbers its stays with 24 h, MIMIC-IV with none.
    clock
        ``time``: when a fact happened, as published labels do. ``available_time``: when it could be seen, for a label
        that a live system could have given.
    missing
        A part never or not lately measured counts ``zero`` (mimic-code, ricu), its ``carried`` last points (then zero
        before the first), or makes the score ``missing``.
    intubated_gcs
        ``charted``: as charted, where the tube makes the verbal response 1. ``normal``: 15 while a ventilated patient's
        verbal response is 1, since sedation is not illness (mimic-code).
    shortest_infusion
        Vasopressors that ran for less do not count. Vincent 1996 and ricu: one hour; mimic-code: any.
    every
        Step of the grid, from the start of the stay.
    """

    score: str = "sofa_full"
    where: Literal["icu", "stay"] = "icu"
    icu_joined: timedelta = timedelta(0)
    clock: Literal["time", "available_time"] = "time"
    missing: Literal["zero", "carried", "missing"] = "zero"
    intubated_gcs: Literal["charted", "normal"] = "charted"
    shortest_infusion: timedelta = timedelta(0)
    every: timedelta = timedelta(hours=1)

    def __post_init__(self) -> None:
        one_of("where", self.where, ("icu", "stay"))
        one_of("clock", self.clock, ("time", "available_time"))
        one_of("missing", self.missing, ("zero", "carried", "missing"))
        one_of("intubated_gcs", self.intubated_gcs, ("charted", "normal"))
        if self.score.endswith(scores.PARTIAL):
            raise SpecError(
                f"score is {self.score!r}. Name the whole score; what missing parts count says 'missing'."
            )
        scores.definition(self.score)
        if self.every <= timedelta(0) or min(self.shortest_infusion, self.icu_joined) < timedelta(0):
            raise SpecError("every must be above 0, shortest_infusion and icu_joined 0 or more.")


def sofa_series(events: pd.DataFrame, encounters: pd.DataFrame, how: Sofa | None = None) -> pd.DataFrame:
    """SOFA and its parts at every hour.

    Parameters
    ----------
    events : DataFrame of cleaned canonical events
    encounters : DataFrame with ``events.ENCOUNTER_COLUMNS``
        Encounters without a known beginning and end, or never in intensive care where that is asked, have no rows.
    how : Sofa

    Returns
    -------
    DataFrame with ``encounter_id``; ``icu_stay`` (0, 1, … within the encounter; 0 for whole stays); ``time``, one step
    after the beginning, then every step, and the very end; one column of points a part, as ``missing`` says; and
    ``sofa``. Sorted by encounter and time.
    """
    how = how or Sofa()
    grid = _grid(events, encounters, how)
    known = _prepared(events, how)
    columns = _columns(known, grid, scores.windows(how.score))
    parts = scores.parts(how.score, columns)
    for part in scores.definition(how.score):
        if "/" in part.components[0].concept:
            gases = _worst_gas(known, grid, how.score, part.name, part.components[0].concept.split("/")[0])
            parts[part.name] = np.where(np.isnan(gases), parts[part.name], gases)
    table = pd.DataFrame(parts)
    if how.missing == "carried":
        table = table.groupby(grid["encounter_id"], sort=False).ffill()
    if how.missing != "missing":
        table = table.fillna(0)
    total = table.sum(axis=1, skipna=False)
    named = grid.rename(columns={"prediction_time": "time"})
    return pd.concat([named, table, total.rename("sofa")], axis=1)


def _grid(events: pd.DataFrame, encounters: pd.DataFrame, how: Sofa) -> pd.DataFrame:
    """Every step of a stay, and its end."""
    if how.where == "icu":
        stays = cohorts.icu_stays(encounters, events, how.icu_joined)
    else:
        stays = cohorts.bounds(encounters, events).assign(icu_stay=0)
    stays = stays.dropna(subset=["start_time", "end_time"]).reset_index(drop=True)
    began, ended, step = (
        micros(stays["start_time"]),
        micros(stays["end_time"]),
        how.every // timedelta(microseconds=1),
    )
    n = np.maximum(-((began - ended) // step), 0)
    which = np.repeat(np.arange(len(stays)), n)
    turn = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + 1
    grid = pd.DataFrame(
        {
            "encounter_id": stays["encounter_id"].to_numpy()[which],
            "icu_stay": stays["icu_stay"].to_numpy()[which],
            "prediction_time": from_micros(np.minimum(began[which] + turn * step, ended[which])),
        }
    )
    return grid.sort_values(["encounter_id", "prediction_time"], kind="stable", ignore_index=True)


def _prepared(events: pd.DataFrame, how: Sofa) -> pd.DataFrame:
    """The events that the score reads, on one clock, with rates and coma scales made explicit."""
    wanted = {w.concept for w in scores.windows(how.score)} | {SUPPORT, SETTING, *COMA}
    known = events[events["concept"].isin(wanted)].astype({"concept": "str", "encounter_id": "str"})
    other = "available_time" if how.clock == "time" else "time"
    known = known.assign(**{other: known[how.clock]})
    return _with_rates(_with_coma(known, how), how)


def _columns(
    events: pd.DataFrame, rows: pd.DataFrame, windows: tuple[Window, ...]
) -> dict[str, npt.NDArray[np.float32]]:
    matrix = build(events, rows, windows)
    return {w.name: matrix[:, k] for k, w in enumerate(windows)}


def _worst_gas(
    events: pd.DataFrame, grid: pd.DataFrame, score: str, part: str, concept: str
) -> npt.NDArray[np.float32]:
    """The worst of a part's points over the last 24 hours, each read at the instant of its blood gas."""
    gases = events[events["concept"] == concept]
    rows = pd.DataFrame(
        {"encounter_id": gases["encounter_id"], "prediction_time": gases["time"]}
    ).drop_duplicates()
    rows = rows.reset_index(drop=True)
    name = f"{score}_{part}"
    scored = scores.evaluate(name, _columns(events, rows, scores.windows(name)))
    told = _facts(rows["encounter_id"], rows["prediction_time"], name, scored.astype("float64"))
    return build(told, grid, [Window(name, "max", DAY)])[:, 0]


def _with_coma(events: pd.DataFrame, how: Sofa) -> pd.DataFrame:
    """Add totals of coma scales whose three parts were charted together; a tube's silence as ``intubated_gcs`` says."""
    told = events[events["concept"].isin([*COMA, "gcs_total"]) & (events["status"] != "deleted")]
    if told["numeric_value"].isna().all():
        return events
    wide = told.pivot_table(
        index=["encounter_id", "time"], columns="concept", values="numeric_value", aggfunc="last"
    )
    wide = wide.reindex(columns=[*COMA, "gcs_total"])
    total = wide["gcs_total"].fillna(wide[list(COMA)].sum(axis=1, min_count=len(COMA)))
    wide = wide.assign(total=total).reset_index()
    wide["time"] = pd.Series(wide["time"]).astype(UTC_US)
    if how.intubated_gcs == "normal":
        rows = wide[["encounter_id", "time"]].rename(columns={"time": "prediction_time"})
        wide.loc[_ventilated(events, rows) & (wide["gcs_verbal"] == 1), "total"] = 15.0
    wide = wide[wide["total"].notna()]
    totals = _facts(wide["encounter_id"], wide["time"], "gcs_total", wide["total"].to_numpy("float64"))
    return pd.concat([events[events["concept"] != "gcs_total"], totals], ignore_index=True)


def _ventilated(events: pd.DataFrame, rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """On a ventilator at these instants: told so, or by its settings where nobody ever tells, as in ``sofa_full``."""
    last, told, since = build(
        events,
        rows,
        [
            Window(SUPPORT, "last", STAY_US),
            Window(SUPPORT, "count", STAY_US),
            Window(SETTING, "hours_since_last", STAY_US),
        ],
    ).T
    ventilated: npt.NDArray[np.bool_] = (last == 1) | ((told == 0) & (since <= 8))
    return ventilated


def _with_rates(events: pd.DataFrame, how: Sofa) -> pd.DataFrame:
    """Let every rate be seen as long as it ran: an event just before each change, and none of infusions too short.

    Without the former, the highest rate of the last day misses what began before that day and ended within it.
    """
    drugs = events["concept"].isin(RATES) & events["numeric_value"].notna() & (events["status"] != "deleted")
    rates = events[drugs].sort_values(["encounter_id", "concept", "time", "numeric_value"], kind="stable")
    # Of several at one instant the highest counts: a bag that ends as the next one starts is no pause.
    rates = rates.drop_duplicates(["encounter_id", "concept", "time"], keep="last")
    group = rates["encounter_id"] + "//" + rates["concept"]
    until = rates["time"].shift(-1).where(group.eq(group.shift(-1)))
    short = _lasts(rates, group, until) < how.shortest_infusion
    rates = rates.assign(numeric_value=rates["numeric_value"].where(~short, 0.0))
    held = rates[until.notna() & (rates["numeric_value"] > 0)]
    just = until[held.index] - pd.Timedelta(microseconds=1)
    ran = held.assign(time=just.astype(UTC_US), available_time=just.astype(UTC_US))
    return pd.concat([events[~events["concept"].isin(RATES)], rates, ran], ignore_index=True)


def _lasts(rates: pd.DataFrame, group: pd.Series, until: pd.Series) -> pd.Series:
    """How long the infusion lasts that each rate belongs to, from above 0 to 0; NaT while it has not ended."""
    running = rates["numeric_value"] > 0
    begins = ~group.eq(group.shift()) | ~running | ~running.shift(fill_value=False)
    infusion = begins.cumsum()
    lasts = until.groupby(infusion).transform("max") - rates["time"].groupby(infusion).transform("min")
    return lasts.mask(until.isna().groupby(infusion).transform("any"))


def _facts(who: pd.Series, time: pd.Series, concept: str, values: npt.NDArray[np.float64]) -> pd.DataFrame:
    """Derived events, final and seen at once."""
    when = pd.Series(time.array, dtype=UTC_US)
    return pd.DataFrame(
        {
            "subject_id": "", "encounter_id": who.to_numpy(), "time": when, "available_time": when,
            "code": f"WARDCAST//{concept}", "concept": concept, "numeric_value": values, "text_value": None,
            "unit": None, "status": "final", "source_id": "derived",
        },
        columns=list(EVENT_COLUMNS),
    )  # fmt: skip
