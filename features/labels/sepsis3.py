"""Sepsis-3: suspected infection with a SOFA score that rises by two points (Singer et al., JAMA 2016;315:801).

The paper fixes the idea and leaves much open: which baseline, which window, which instant is the onset. Every such
choice is a field of :class:`Sepsis3`; the definitions that many papers rest on are written down as values of it, so
that how they differ is a comparison of fields, not of programs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import UTC_US, Target, micros
from features.errors import DataError, SpecError
from features.labels.infection import Suspicion, one_of, suspected_infection
from features.labels.sofa import Sofa, sofa_series

Baseline = Literal["zero", "minimum_in_window", "window_start", "minimum_24h", "before_window", "first_24h"]
Onset = Literal["later", "earlier", "sofa", "suspicion"]
Choice = Literal["any", "first", "last"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_US: Final = timedelta(microseconds=1)
_DAY: Final = timedelta(hours=24) // _US
_TIMES: Final = ("onset_time", "suspicion_time", "antibiotic_time", "culture_time", "sofa_time")
ONSET_COLUMNS: Final = ("encounter_id", "icu_stay", *_TIMES, "rule", "sofa_baseline", "sofa_at_onset")
_MIMIC_SUSPICION: Final = Suspicion(same_instant=False, within="subject")
_MIMIC_SOFA: Final = Sofa(intubated_gcs="normal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sepsis3:
    """Every choice in "Sepsis-3 onset". The defaults are those of :data:`MIMIC_CODE`.

    Attributes
    ----------
    suspicion, sofa
        What suspected infection and the score are: :class:`infection.Suspicion` and :class:`sofa.Sofa`.
    window_before, window_after
        The score must rise between so long before a suspicion and so long after it, both ends included: 48 h and 24 h
        (Seymour 2016). PhysioNet 2019: 24 h and 12 h.
    rise
        Points above the baseline, at least.
    baseline
        What the rise is measured from. ``zero``: no organ failed before, as Singer 2016 lets one assume where nothing
        is known (mimic-code). ``minimum_in_window``: the lowest score of the window so far (ricu ``delta_cummin``).
        ``window_start``: the first of the window (ricu ``delta_start``). ``minimum_24h``: the lowest of the last 24
        hours (ricu ``delta_min``, PhysioNet 2019). ``before_window``: the last score before the window opens.
        ``first_24h``: the lowest so far of the first 24 scored hours. A rise that happened before the first scored
        hour is seen by ``zero``, by ``before_window`` where it is unknown, and by no other.
    unknown_baseline
        Points of a baseline that nothing tells, under ``before_window``.
    suspicions
        ``any``: the earliest suspicion with a rise (mimic-code). ``first`` or ``last``: only that one is looked at
        (ricu's default is ``first``).
    onset
        ``sofa``: the first hour of the rise (ricu). ``suspicion``: its time (much used with mimic-code). ``earlier`` of
        the two (PhysioNet 2019). ``later``: when both were there, as mimic-code's own comment has it.
    unit
        One onset an ``encounter``, or one an ``icu_stay`` (mimic-code).
    antibiotic_in_icu
        Only antibiotics begun in the ICU stay count (mimic-code). Needs the scored hours to be those of the ICU, and
        suspicions that rest on an antibiotic: not ``signs`` of ``culture`` or ``either``.
    """

    suspicion: Suspicion = _MIMIC_SUSPICION
    sofa: Sofa = _MIMIC_SOFA
    window_before: timedelta = timedelta(hours=48)
    window_after: timedelta = timedelta(hours=24)
    rise: float = 2
    baseline: Baseline = "zero"
    unknown_baseline: float = 0
    suspicions: Choice = "any"
    onset: Onset = "later"
    unit: Literal["encounter", "icu_stay"] = "icu_stay"
    antibiotic_in_icu: bool = True

    def __post_init__(self) -> None:
        one_of("baseline", self.baseline, get_args(Baseline))
        one_of("suspicions", self.suspicions, get_args(Choice))
        one_of("onset", self.onset, get_args(Onset))
        one_of("unit", self.unit, ("encounter", "icu_stay"))
        if self.window_before < timedelta(0) or self.window_after < timedelta(0) or self.rise <= 0:
            raise SpecError("window_before and window_after must not be negative, and rise must be above 0.")
        if self.sofa.where == "stay" and (self.antibiotic_in_icu or self.unit == "icu_stay"):
            raise SpecError(
                "unit='icu_stay' and antibiotic_in_icu need sofa.where='icu'. Set them apart or together."
            )
        if self.antibiotic_in_icu and self.suspicion.signs in ("culture", "either"):
            raise SpecError(
                f"antibiotic_in_icu would leave out every suspicion by a culture alone, which suspicion.signs="
                f"{self.suspicion.signs!r} asks for. Set antibiotic_in_icu=False, or signs='both' or 'antibiotic'."
            )


MIMIC_CODE: Final = Sepsis3()
"""``sepsis3.sql`` of mimic-code for MIMIC-IV: baseline zero, hours and antibiotics of the ICU, a person's cultures."""

SEYMOUR_2016: Final = Sepsis3(
    suspicion=Suspicion(),
    sofa=Sofa(where="stay", shortest_infusion=timedelta(hours=1)),
    onset="suspicion", unit="encounter", antibiotic_in_icu=False,
)  # fmt: skip
"""The paper: whole encounters, wards too, baseline zero, 48 h before to 24 h after, dated by the suspicion."""

RICU: Final = Sepsis3(
    suspicion=Suspicion(pairing="every_pair"),
    sofa=Sofa(shortest_infusion=timedelta(hours=1)),
    baseline="minimum_in_window", suspicions="first", onset="sofa", unit="icu_stay", antibiotic_in_icu=False,
)  # fmt: skip
"""``sep3`` of the R package ricu with its defaults."""

PHYSIONET_2019: Final = Sepsis3(
    suspicion=Suspicion(antibiotic_course=timedelta(hours=72)),
    sofa=Sofa(),
    window_before=timedelta(hours=24), window_after=timedelta(hours=12),
    baseline="minimum_24h", onset="earlier", unit="encounter", antibiotic_in_icu=False,
)  # fmt: skip
"""Reyna et al., Crit Care Med 2020;48:210: 72 hours of antibiotics, 24 h before to 12 h after, the earlier time."""

PRESETS: Final = {
    "mimic_code": MIMIC_CODE, "seymour_2016": SEYMOUR_2016, "ricu": RICU, "physionet_2019": PHYSIONET_2019,
}  # fmt: skip


def sepsis_onset(
    events: pd.DataFrame,
    encounters: pd.DataFrame,
    definition: Sepsis3 = MIMIC_CODE,
    *,
    suspicions: pd.DataFrame | None = None,
    scored: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Sepsis-3 onset of each encounter or ICU stay that has one.

    Parameters
    ----------
    events : DataFrame of cleaned canonical events
    encounters : DataFrame with ``events.ENCOUNTER_COLUMNS``
    definition : Sepsis3
    suspicions, scored : DataFrame, optional
        Results of :func:`infection.suspected_infection` and :func:`sofa.sofa_series` made elsewhere, to compare
        definitions without scoring again; the definition's own ``suspicion`` and ``sofa`` are then not read.

    Returns
    -------
    DataFrame, one row a septic encounter (or ICU stay), with ``encounter_id``; ``icu_stay``; ``onset_time``;
    ``suspicion_time``, ``antibiotic_time``, ``culture_time`` and ``rule`` of the suspicion; ``sofa_time``, the first
    scored instant of the rise; ``sofa_baseline`` and ``sofa_at_onset``, the scores it lies between. Sorted by encounter
    and stay. Not septic is to have no row; so is never to be scored, which only ``scored`` tells apart.
    """
    found = suspicions
    if found is None:
        found = suspected_infection(events, definition.suspicion, encounters)
    hours = sofa_series(events, encounters, definition.sofa) if scored is None else scored
    by_encounter = {str(who): each for who, each in found.groupby("encounter_id", sort=False)}
    keys = ["encounter_id", "icu_stay"] if definition.unit == "icu_stay" else ["encounter_id"]
    rows = []
    for (who, *_), stay in hours.groupby(keys, sort=True):
        if who in by_encounter:
            hit = _first_hit(by_encounter[who], stay, definition)
            rows += [] if hit is None else [hit]
    table = pd.DataFrame(rows, columns=list(ONSET_COLUMNS))
    # A column of nothing but NaT has lost its zone by now.
    return table.assign(**{c: pd.to_datetime(table[c], utc=True).astype(UTC_US) for c in _TIMES})


def label_onset(prediction_time: pd.Series, onset: pd.Series, target: Target) -> pd.Series:
    """Say which predictions are followed by onset inside the target window ``(t + gap, t + gap + horizon]``.

    Parameters
    ----------
    prediction_time : Series of datetime64[us, UTC], shape (n_predictions,)
    onset : Series of datetime64[us, UTC], shape (n_predictions,)
        Onset in the same encounter; NaT where sepsis never came.
    target : Target

    Returns
    -------
    Series of boolean, shape (n_predictions,)
        ``<NA>`` where onset is at or before the window opens: prevalent, or too late to act on. A cohort drops and
        counts such rows.
    """
    opens = prediction_time + target.gap
    label = (onset > opens) & (onset <= opens + target.horizon)
    return label.astype("boolean").mask(onset <= opens)


def label_rows(prediction_times: pd.DataFrame, onsets: pd.DataFrame, target: Target) -> pd.Series:
    """Labels of prediction times, from the onsets of :func:`sepsis_onset`.

    Parameters
    ----------
    prediction_times : DataFrame with ``encounter_id`` and ``prediction_time``
    onsets : DataFrame with ``encounter_id`` and ``onset_time``
        Of several in one encounter (ICU stays), the earliest counts.
    target : Target

    Returns
    -------
    Series of boolean, in the order and with the index of ``prediction_times``; see :func:`label_onset`.

    Raises
    ------
    DataError
        A table lacks a column.
    """
    for name, table, columns in (
        ("Prediction times", prediction_times, ("encounter_id", "prediction_time")),
        ("Onsets", onsets, ("encounter_id", "onset_time")),
    ):
        missing = [c for c in columns if c not in table.columns]
        if missing:
            raise DataError(f"{name} lack {', '.join(missing)}.")
    first = onsets.groupby("encounter_id")["onset_time"].min()
    onset = first.reindex(prediction_times["encounter_id"].astype("str"))
    aligned = pd.Series(onset.array, index=prediction_times.index, dtype=UTC_US)
    return label_onset(prediction_times["prediction_time"], aligned, target)


class _Scored(NamedTuple):
    """The scored instants of one unit: int64 microseconds and points, in order."""

    time: Ints
    sofa: Floats


def _first_hit(suspicions: pd.DataFrame, stay: pd.DataFrame, definition: Sepsis3) -> dict[str, Any] | None:
    """The earliest suspicion of a unit with a rise in its window, and where it rises."""
    scored = _Scored(micros(stay["time"]), stay["sofa"].to_numpy("float64"))
    if definition.antibiotic_in_icu:
        # The first score comes one step after the stay began, sooner only in stays shorter than a step.
        began = stay["time"].iloc[0] - definition.sofa.every
        within = (suspicions["antibiotic_time"] >= began) & (
            suspicions["antibiotic_time"] < stay["time"].iloc[-1]
        )
        suspicions = suspicions[within]
    if definition.suspicions != "any":
        suspicions = suspicions.head(1) if definition.suspicions == "first" else suspicions.tail(1)
    for k, at in enumerate(micros(suspicions["suspicion_time"])):
        hit = _rise(scored, int(at), definition)
        if hit is not None:
            return _row(suspicions.iloc[k], stay.iloc[hit[0]], scored.sofa[hit[0]], hit[1], definition)
    return None


def _rise(scored: _Scored, at: int, definition: Sepsis3) -> tuple[int, float] | None:
    """Position of the first score of the window that lies high enough above its baseline, and that baseline."""
    opens = int(np.searchsorted(scored.time, at - definition.window_before // _US, side="left"))
    shuts = int(np.searchsorted(scored.time, at + definition.window_after // _US, side="right"))
    base = _baseline(scored, opens, shuts, definition)
    risen = np.flatnonzero(scored.sofa[opens:shuts] - base >= definition.rise)
    return (opens + int(risen[0]), float(base[risen[0]])) if risen.size else None


def _baseline(scored: _Scored, opens: int, shuts: int, definition: Sepsis3) -> Floats:
    """The score that each one of the window is measured from."""
    time, window = scored.time[opens:shuts], scored.sofa[opens:shuts]
    known = window[~np.isnan(window)]
    if definition.baseline == "minimum_in_window":
        return np.asarray(np.fmin.accumulate(window), dtype=np.float64)
    if definition.baseline == "window_start" and known.size:
        return np.full(window.size, known[0])
    if definition.baseline == "minimum_24h":
        since = np.searchsorted(scored.time, time - _DAY, side="right")
        return np.array(
            [np.fmin.reduce(scored.sofa[a : opens + k + 1]) for k, a in enumerate(since)], dtype=np.float64
        )
    if definition.baseline == "first_24h":
        early = np.where(scored.time < scored.time[0] + _DAY, scored.sofa, np.nan)
        return np.asarray(np.fmin.accumulate(early)[opens:shuts], dtype=np.float64)
    before = scored.sofa[:opens][~np.isnan(scored.sofa[:opens])]
    if definition.baseline == "before_window" and before.size:
        return np.full(window.size, before[-1])
    unknown = definition.unknown_baseline if definition.baseline == "before_window" else 0.0
    return np.full(window.size, unknown)


def _row(
    suspicion: pd.Series, hour: pd.Series, score: float, baseline: float, definition: Sepsis3
) -> dict[str, Any]:
    suspected, risen = suspicion["suspicion_time"], hour["time"]
    onset = {
        "later": max(suspected, risen), "earlier": min(suspected, risen), "sofa": risen, "suspicion": suspected,
    }  # fmt: skip
    return {str(column): value for column, value in suspicion.items()} | {
        "icu_stay": hour["icu_stay"],
        "onset_time": onset[definition.onset],
        "sofa_time": risen,
        "sofa_baseline": baseline,
        "sofa_at_onset": score,
    }
