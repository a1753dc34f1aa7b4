"""What a simulated intensive-care patient's body does, and what the ward writes down of it.

The course of an infection that becomes sepsis, with time zero at **onset** (organ dysfunction sets in, the known
truth of the simulator):

====================  ==========================================================================================
incubation            from the admission on, nothing to see
-18 h to -3 h         *early* response: temperature up about 1.3 degrees (in one of eight it falls), heart rate up
                      8 to 10 per degree and more, breathing faster, white cells up (in one of eight down). The
                      SIRS signs of Bone et al., Chest 1992;101:1644.
about 0 h             *perfusion* fails: systolic pressure and MAP fall, lactate rises, base excess and
                      bicarbonate fall. Sepsis and septic shock as in Singer et al., JAMA 2016;315:801.
+3 h and on           *organ* response: creatinine (Bagshaw et al., Crit Care 2008;12:R47), bilirubin and
                      clotting times rise, platelets fall over days (Akca et al., Crit Care Med 2002;30:753).
therapy               suspicion brings blood tests and, half an hour to five hours after onset, antimicrobials and
                      fluids (Evans et al., Crit Care Med 2021;49:e1063). Most answer: perfusion within half a
                      day, early signs within a day, organs over days. Delay lowers the chance of an answer, in
                      the direction of Kumar et al., Crit Care Med 2006;34:1589.
====================  ==========================================================================================

Not everything abnormal is sepsis: early post-operative fever, mostly not infectious (Garibaldi et al., Infect Control
1985;6:273), bleeding, atrial fibrillation, and chronic kidney, liver and lung disease all move the same numbers.

Levels, spreads and the habits of measuring follow summary statistics of PhysioNet/CinC 2019 (Reyna et al., Crit Care
Med 2020;48:210, doi 10.13026/v64v-d857): heart rate charted in nine hours of ten, temperature in one of three,
chemistry twice a day, blood gases with the ventilated. Sizes of effects are judgement, larger than the mean shift in
those data, where the onset is known only to several hours. The lead of the early signs and of the work-up is set so
that a model of real patients finds simulated sepsis about as hard to foresee as theirs (AUROC 0.85 for 0.85). Every
number of a quantity is a row of ``physiology.csv``; nothing in it describes a real patient.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
Masks = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.intp]

EFFECTS: Final = (
    "early", "perfusion", "organ", "fever", "bleeding", "fibrillation", "kidney", "liver", "lung",
)  # fmt: skip
NUMBERS: Final = (
    "other_factor", "other_offset", "median", "between_sd", "within_sd", "persistence", "low", "high",
)  # fmt: skip
CHUNK: Final = 128
"""Stays simulated together; bounds memory at any number of stays."""

# Share of hours in which a vital sign is charted, from the hourly presence in PhysioNet 2019.
CHARTED: Final = {"monitor": 0.91, "cuff": 0.86, "chart": 0.34, "capnograph": 0.10, "ventilator": 0.30}
# Minutes from collection to result: point-of-care analysers are quick, the laboratory is not.
QUICK_MIN: Final = (3.0, 12.0)
LAB_MIN: Final = (30.0, 90.0)
SAME_NEEDLE: Final = {
    "minerals": "chemistry", "count": "chemistry", "lactate": "gas", "fibrinogen": "clotting", "conjugated": "liver",
}  # fmt: skip
ONE_UNIT_ONLY: Final = ("bicarbonate", "chloride")
"""Hardly ever asked for in the second hospital of PhysioNet 2019, nor in our second unit."""
POINT_OF_CARE: Final = ("gas", "lactate", "glucose")


@dataclass(frozen=True, slots=True)
class Quantity:
    """One row of ``physiology.csv``: how a quantity is written down, its level and spread, and what moves it."""

    concept: str
    code: str
    unit: str
    other_unit: str
    other_factor: float
    other_offset: float
    panel: str
    median: float
    between_sd: float
    within_sd: float
    persistence: float
    scale: str
    digits: int
    low: float
    high: float
    effects: dict[str, float]


@lru_cache(maxsize=1)
def quantities() -> dict[str, Quantity]:
    """The quantities by concept, in the order of the table."""
    path = Path(__file__).with_name("physiology.csv")
    with path.open(encoding="utf-8", newline="") as lines:
        return {row["concept"]: _quantity(row) for row in csv.DictReader(lines)}


def _quantity(row: dict[str, str]) -> Quantity:
    fields: dict[str, Any] = {
        name: row[name] for name in ("concept", "code", "unit", "other_unit", "panel", "scale")
    }
    fields |= {name: float(row[name]) for name in NUMBERS}
    return Quantity(**fields, digits=int(row["digits"]), effects={name: float(row[name]) for name in EFFECTS})


@dataclass(frozen=True, slots=True)
class Course:
    """How strongly each process acts on each stay in each hour; arrays of shape (n_stays, n_hours), 0 = not at all."""

    strength: dict[str, Floats]
    alive: Masks
    """Hours that lie inside the stay."""

    @classmethod
    def of(cls, stays: pd.DataFrame, rng: np.random.Generator) -> Course:
        """The course of stays with ``hours, onset_h, fever, bleeding, fibrillation, kidney, liver, lung``.

        ``onset_h`` is in hours after admission, NaN without sepsis. The others are 0/1 flags.
        """
        n, hours = len(stays), int(np.ceil(stays["hours"].max())) if len(stays) else 0
        t = np.arange(hours, dtype="float64")[None, :]
        strength = {**_infection(stays["onset_h"].to_numpy("float64"), t, rng), **_others(stays, t, rng)}
        for name in ("kidney", "liver", "lung"):
            size = stays[name].to_numpy("float64") * rng.uniform(0.7, 1.3, n)
            strength[name] = np.broadcast_to(size[:, None], (n, hours))
        return cls(strength, t < stays["hours"].to_numpy("float64")[:, None])


def _ramp(x: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -30, 30)))


def _fade(t: Floats, start: Floats, tau: Floats | float) -> Floats:
    """1 until ``start``, then exponential decay with time constant ``tau`` hours."""
    return np.exp(-np.maximum(t - start, 0.0) / tau)


def _infection(onset: Floats, t: Floats, rng: np.random.Generator) -> dict[str, Floats]:
    n = len(onset)
    septic = ~np.isnan(onset)
    on = np.where(septic, onset, 0.0)[:, None]
    size = (rng.uniform(0.6, 1.4, n) * septic)[:, None]
    shock = rng.uniform(0.4, 1.3, n)[:, None]
    lead = np.clip(rng.normal(9.0, 3.0, n), 3.0, 18.0)[:, None]
    delay = rng.uniform(0.5, 5.0, n)[:, None]
    answers = rng.random(n)[:, None] < 0.92 - 0.05 * delay
    treated = np.where(answers, on + delay, np.inf)
    early = size * _ramp((t - (on - lead)) / 2.0) * _fade(t, treated + 5, 22.0)
    perfusion = size * shock * _ramp((t - (on - 0.5)) / 1.2) * _fade(t, treated + 3, 12.0)
    organ = size * _ramp((t - (on + 3.0)) / 2.5) * _fade(t, treated + 14, 60.0)
    return {"early": early, "perfusion": perfusion, "organ": organ}


def _others(stays: pd.DataFrame, t: Floats, rng: np.random.Generator) -> dict[str, Floats]:
    """Confounders as bouts: (share of the stay's flag, first start, last start, length) in hours."""
    bouts = {"fever": (4, 20, 26), "bleeding": (2, 36, 16), "fibrillation": (2, 40, 9)}
    out = {}
    for name, (first, last, length) in bouts.items():
        n = len(stays)
        start = rng.uniform(first, last, n)[:, None]
        end = start + length * rng.uniform(0.5, 1.5, n)[:, None]
        size = (stays[name].to_numpy("float64") * rng.uniform(0.6, 1.3, n))[:, None]
        out[name] = size * _ramp((t - start) / 0.8) * _ramp((end - t) / 1.5)
    return out


def true_values(course: Course, stays: pd.DataFrame, rng: np.random.Generator) -> dict[str, Floats]:
    """What each quantity is in each hour of each stay, in its canonical unit, before it is measured.

    Each patient has an own level, wanders around it (first-order autoregression by hour) and answers to the course.
    """
    table = quantities()
    n, hours = course.alive.shape
    own = rng.standard_normal((len(table), n))
    wander = _wander(rng, np.array([q.persistence for q in table.values()]), n, hours)
    turn = np.where(rng.random((2, n)) < 0.125, -1.0, 1.0)  # white cells, temperature: the other way
    values: dict[str, Floats] = {}
    for k, (concept, q) in enumerate(table.items()):
        move = q.between_sd * own[k][:, None] + q.within_sd * wander[k]
        for effect, size in q.effects.items():
            flip = {"wbc": turn[0], "temperature": turn[1]}.get(concept) if effect == "early" else None
            move = move + size * course.strength[effect] * (1.0 if flip is None else flip[:, None])
        level = q.median * np.exp(move) if q.scale == "log" else q.median + move
        values[concept] = np.clip(level, q.low, q.high)
    return _coupled(values, stays, rng)


def _wander(rng: np.random.Generator, persistence: Floats, n: int, hours: int) -> Floats:
    noise = rng.standard_normal((hours, len(persistence), n))
    rho = persistence[:, None]
    fresh = np.sqrt(1.0 - rho**2)
    for h in range(1, hours):
        noise[h] = rho * noise[h - 1] + fresh * noise[h]
    return np.moveaxis(noise, 0, -1)


def _coupled(values: dict[str, Floats], stays: pd.DataFrame, rng: np.random.Generator) -> dict[str, Floats]:
    """Quantities that follow others: mean from systolic and diastolic pressure, haemoglobin from haematocrit."""
    values["sbp"] = values["sbp"] + 0.25 * (stays["age_years"].to_numpy("float64")[:, None] - 62)
    values["dbp"] = np.minimum(values["dbp"], values["sbp"] - 12)
    noise = rng.standard_normal((2, *values["sbp"].shape))
    values["map"] = values["dbp"] + 0.3 * (values["sbp"] - values["dbp"]) + 3.5 * noise[0]
    values["hemoglobin"] = values["hematocrit"] / 2.95 + 0.25 * noise[1]
    values["sao2"] = np.clip(values["spo2"] - 0.5 + 0.3 * noise[1], 50, 100)
    return values


def draws(course: Course, stays: pd.DataFrame, rng: np.random.Generator) -> dict[str, Masks]:
    """In which hours each panel is measured: routine, plus more as somebody becomes worried.

    ``stays`` needs ``start_hour`` (local clock hour of the admission), ``ventilated`` and ``onset_h``.
    """
    shape = course.alive.shape
    t = np.arange(shape[1])[None, :]
    clock = (stays["start_hour"].to_numpy("float64")[:, None].astype(int) + t) % 24
    first, morning, evening = t == 0, clock == 5, clock == 17
    vent = stays["ventilated"].to_numpy(bool)[:, None] & (
        t < stays["ventilated_h"].to_numpy("float64")[:, None]
    )
    worry = np.clip(0.8 * course.strength["early"] + course.strength["perfusion"], 0, 1.2)
    alarm = np.clip(course.strength["bleeding"] + 0.4 * course.strength["fever"], 0, 1.2)
    workup = _workup(stays["onset_h"].to_numpy("float64"), shape, rng)
    chance = {
        "chemistry": 0.9 * first + 0.92 * morning + 0.22 * evening + 0.02 + 0.05 * worry + 0.03 * alarm + 0.9 * workup,
        "gas": 0.5 * first * vent + 0.2 * vent * (t < 12) + 0.11 * vent * (t >= 12) + 0.006
        + 0.12 * worry + 0.6 * workup,
        "glucose": 0.10 + 0.12 * vent + 0.05 * worry,
        "liver": 0.28 * first + 0.2 * morning + 0.03 * worry + 0.4 * workup,
        "clotting": 0.45 * first + 0.25 * morning + 0.01 + 0.03 * worry + 0.12 * alarm + 0.4 * workup,
        "troponin": 0.1 * first + 0.006,
        "monitor": CHARTED["monitor"], "cuff": CHARTED["cuff"], "chart": CHARTED["chart"],
        "capnograph": CHARTED["capnograph"] * vent, "ventilator": CHARTED["ventilator"] * vent,
    }  # fmt: skip
    made = {p: (rng.random(shape) < c) & course.alive for p, c in chance.items()}
    return {**made, **_riders(made, worry, workup, rng)}


def _workup(onset: Floats, shape: tuple[int, int], rng: np.random.Generator) -> Masks:
    """The hour in which somebody suspects sepsis and sends everything: mostly some hours before organs fail."""
    when = np.floor(onset + rng.normal(-3.0, 2.5, shape[0]))
    return np.asarray(
        np.arange(shape[1])[None, :] == np.where(np.isnan(when), -1, np.maximum(when, 0))[:, None]
    )


def _riders(
    made: dict[str, Masks], worry: Floats, workup: Masks, rng: np.random.Generator
) -> dict[str, Masks]:
    """Panels that ride on the same needle as another one."""

    def some(share: float | Floats) -> Masks:
        return np.asarray(rng.random(worry.shape) < share)

    chemistry = made["chemistry"]
    return {
        "minerals": chemistry & some(0.75),
        "count": (chemistry & some(0.85)) | (made["clotting"] & some(0.5)),
        "lactate": (made["gas"] & some(np.clip(0.3 + 0.5 * worry, 0, 1))) | (workup & some(0.8)),
        "fibrinogen": made["clotting"] & some(0.12),
        "conjugated": made["liver"] & some(0.1),
        "glucose": made["glucose"] | (chemistry & some(0.9)),
    }


def observe(stays: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Measure every stay: one row a result, in the units its ward uses.

    Parameters
    ----------
    stays : DataFrame
        ``hours`` (length), ``start_hour`` (local), ``onset_h`` (NaN without sepsis), ``age_years``, ``ventilated``,
        ``ventilated_h``, ``fine`` (monitor values each 15 minutes), ``other_units`` (the ward reports other units)
        and the flags of :meth:`Course.of`.
    rng : Generator

    Returns
    -------
    DataFrame with ``stay`` (position in ``stays``), ``minute`` (after admission), ``delay_min`` (until it shows in
    the hospital's systems), ``code``, ``value``, ``unit``; sorted by stay, minute and code.
    """
    parts = []
    order = np.argsort(stays["hours"].to_numpy(), kind="stable")
    for first in range(0, len(stays), CHUNK):
        chosen = order[first : first + CHUNK]
        measured = _observe_some(stays.iloc[chosen].reset_index(drop=True), rng)
        parts.append(measured.assign(stay=chosen[measured["stay"].to_numpy()]))
    if not parts:
        return pd.DataFrame({c: [] for c in ("stay", "minute", "delay_min", "code", "value", "unit")})
    return pd.concat(parts).sort_values(["stay", "minute", "code"], kind="stable").reset_index(drop=True)


def _observe_some(stays: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    course = Course.of(stays, rng)
    values = true_values(course, stays, rng)
    drawn = draws(course, stays, rng)
    minute_of_panel = {p: rng.uniform(0, 50, course.alive.shape) for p in sorted(drawn)}
    minute_of_panel |= {rider: minute_of_panel[needle] for rider, needle in SAME_NEEDLE.items()}
    parts = []
    for q in _written():
        now = drawn[q.panel]
        if q.concept in ONE_UNIT_ONLY:
            now = now & ~stays["other_units"].to_numpy(bool)[:, None]
        if q.concept == "dbp":  # charted less often than systolic and mean pressure
            now = now & (rng.random(now.shape) < 0.8)
        stay, hour = np.nonzero(now)
        minute = hour * 60.0 + minute_of_panel[q.panel][stay, hour]
        value = values[q.concept][stay, hour]
        stay, minute, value = _often(stays, q, stay, minute, value, rng)
        parts.append(_reported(stays, q, stay, minute, value, rng))
    return _inside(pd.concat(parts, ignore_index=True), stays)


def _written() -> list[Quantity]:
    """The quantities and the two that follow others."""
    table = quantities()
    mean = replace(table["sbp"], concept="map", code="LOINC//8478-0", low=25.0, high=200.0)
    haemoglobin = replace(
        table["hematocrit"],
        concept="hemoglobin",
        code="LOINC//718-7",
        unit="g/dL",
        other_unit="g/L",
        other_factor=10.0,
        low=3.0,
        high=22.0,
    )
    return [*table.values(), mean, haemoglobin]


def _often(
    stays: pd.DataFrame, q: Quantity, stay: Positions, minute: Floats, value: Floats, rng: np.random.Generator
) -> tuple[Positions, Floats, Floats]:
    """Repeat monitor values each quarter of an hour where the ward's monitors are connected."""
    fine = stays["fine"].to_numpy(bool)[stay] & (q.panel == "monitor")
    times = np.where(fine, 4, 1)
    step = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
    again = np.repeat(np.arange(len(stay)), times)
    minute = np.where(fine[again], np.floor(minute[again] / 60) * 60 + 15.0 * step, minute[again])
    jitter = 0.25 * q.within_sd * rng.standard_normal(len(again)) * (times[again] > 1)
    return stay[again], minute, value[again] + jitter


def _reported(
    stays: pd.DataFrame, q: Quantity, stay: Positions, minute: Floats, value: Floats, rng: np.random.Generator
) -> pd.DataFrame:
    """Round as the ward does, in its unit; a vital sign is at times an artefact (probe off, wet lead, open line)."""
    n = len(stay)
    vital = q.panel in CHARTED
    value = np.clip(value, q.low, q.high)
    if vital:
        odd = rng.random(n) < 0.0015
        value = np.where(odd, value * rng.choice([0.0, 0.4, 1.9], n), value)
    other = stays["other_units"].to_numpy(bool)[stay] & bool(q.other_unit)
    finer = max(0, q.digits + (1 if q.other_factor < 1 else -1 if q.other_factor >= 10 else 0))
    shown = np.where(
        other, np.round(value * q.other_factor + q.other_offset, finer), np.round(value, q.digits)
    )
    low, high = (0.0, 0.0) if vital else QUICK_MIN if q.panel in POINT_OF_CARE else LAB_MIN
    return pd.DataFrame(
        {
            "stay": stay,
            "minute": np.round(minute),
            "delay_min": np.round(rng.uniform(low, high, n)),
            "code": q.code,
            "value": shown,
            "unit": np.where(other, q.other_unit, q.unit),
        }
    )


def _inside(rows: pd.DataFrame, stays: pd.DataFrame) -> pd.DataFrame:
    """Only what happened before the stay ended."""
    inside: npt.NDArray[np.bool_] = (
        rows["minute"].to_numpy() < stays["hours"].to_numpy("float64")[rows["stay"].to_numpy()] * 60
    )
    return rows.loc[inside]
