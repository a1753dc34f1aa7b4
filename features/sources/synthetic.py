"""A simulated hospital with known truth: for the demo, for tests, and to train on before a site has data.

Emergency arrivals follow an hourly and weekly rhythm, a slow yearly wave and a **shared day effect** (a gamma factor
with mean 1 that all hours of one local day share), so that daily sums spread wider than Poisson while single hours
hardly do. Every patient has a severity nobody sees; triage category, vital signs and the true probability of admission
follow from it. Admitted patients wait for a bed, stay for a log-normal time by specialty and leave in the afternoon,
less often at weekends. Elective surgery and transfers arrive beside them. Intensive care has a fixed number of beds;
its patients' bodies are simulated by :mod:`features.sources.physiology`, infections and all.

A hospital attendance (``V…``) and an intensive-care stay (``C…``) are encounters of their own with one subject, as in
the databases that the sepsis model learns from; an intensive-care stay's ``hospital_admission_time`` is the
attendance's arrival. Ward patients have vital signs each four hours and no laboratory results.

Nothing in here comes from a real patient. Same seed, same bytes.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import HOUR_US, MINUTE_US, UTC_US, from_micros
from features.events import ENCOUNTER_COLUMNS, EVENT_COLUMNS, empty_events
from features.sources import physiology
from features.sources.visits import attendance_encounters, known_at

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WARM_UP: Final = timedelta(days=35)
"""Simulated before ``start`` so that the wards are not empty on the first day."""

HOURLY: Final = np.array(
    [28, 23, 20, 18, 17, 18, 22, 32, 47, 58, 64, 65, 63, 61, 60, 60, 60, 61, 61, 58, 52, 46, 40, 34],
    "float64",
)
"""Arrivals by local hour, relative (the shape common to emergency departments: low at five, high before noon)."""
WEEKLY: Final = np.array([1.08, 1.01, 0.99, 0.98, 0.99, 0.97, 0.98])
"""Arrivals by weekday, Monday first."""
YEARLY: Final = 0.04
"""Half the swing of the year; the peak is in the middle of January."""
DAY_EFFECT_SD: Final = 0.08
"""Spread of the factor that all arrivals of one local day share."""

SPECIALTIES: Final = (
    "general medicine",
    "elderly care",
    "cardiology",
    "surgery",
    "orthopaedics",
    "paediatrics",
)
STAY_MEDIAN_H: Final = np.array([62.0, 130.0, 52.0, 50.0, 96.0, 26.0])
STAY_SIGMA: Final = 0.85
LEAVING: Final = np.array(
    [2, 1, 1, 1, 1, 1, 2, 4, 8, 18, 34, 46, 50, 56, 62, 66, 60, 46, 30, 18, 11, 7, 5, 3], "float64"
)
"""Discharges by local hour, relative."""
WEEKEND_KEPT: Final = 0.4
"""Share of those ready on Saturday or Sunday who stay until Monday."""
SOURCES: Final = ("lung", "abdomen", "urine", "line")

ICU_FULL: Final = 0.82
ICU_STAY_H: Final = (36.0, 0.42)
"""Median hours and log spread of a stay without sepsis: the short stays of PhysioNet 2019."""
SEPTIC_SHARE: Final = 0.14

MOVES_TO: Final = {
    "general medicine": ("elderly care", "cardiology", "surgery"),
    "elderly care": ("general medicine",),
    "cardiology": ("general medicine",),
    "surgery": ("general medicine", "orthopaedics"),
    "orthopaedics": ("elderly care",),
}
"""Where those who come under another specialty go, each with the same chance."""
VIRUS_BACKGROUND: Final = 12.0
"""Positive tests a day when no surge is under way."""
VIRUS_LEAD: Final = timedelta(days=4)
"""How long positive tests run ahead of the patients a surge brings."""

WARD_VITALS: Final = ("heart_rate", "respiratory_rate", "spo2", "temperature", "sbp", "dbp")


@dataclass(frozen=True, slots=True)
class Surge:
    """More emergency patients of one age band for a while: rising and falling as half a sine wave.

    Attributes
    ----------
    first_day : days after the start of the simulation
    days : length
    extra_per_day : additional arrivals a day on average over the surge
    ages : youngest and oldest, years
    """

    first_day: int
    days: int
    extra_per_day: float
    ages: tuple[float, float]

    def rate(self, day: npt.NDArray[Any]) -> Floats:
        """Additional arrivals a day at a time in days after the start of the simulation."""
        through = (day - self.first_day) / self.days
        inside = (through >= 0) & (through < 1)
        wave = np.sin(np.pi * np.clip(through, 0, 1))
        return np.asarray(np.where(inside, self.extra_per_day * np.pi / 2 * wave, 0.0))


@dataclass(frozen=True, slots=True)
class Hospital:
    """What the simulated hospital recorded, and what nobody in it could know."""

    encounters: pd.DataFrame
    """:data:`features.events.ENCOUNTER_COLUMNS`, as things stood at the end."""
    events: pd.DataFrame
    """Raw canonical events, concept still empty, in the order they became available."""
    visits: pd.DataFrame
    """:data:`features.sources.visits.VISIT_COLUMNS`; all times that ever came."""
    truth: pd.DataFrame
    """An encounter a row: p_admission, admitted, specialty, severity, onset_time (NaT = never), source, other."""
    open_beds: dict[str, int]
    """Beds by specialty, about 92 % full on average."""
    timezone: str
    moves: pd.DataFrame
    """:data:`features.sources.moves.MOVE_COLUMNS`: who came under another specialty, and when."""
    covariates: pd.DataFrame
    """``date, respiratory_virus``: positive tests a day, ahead of what surges bring."""


def arrival_rate(instants: pd.Series, ed_per_day: float, timezone: str) -> Floats:
    """Expected emergency arrivals in the hour that starts at each instant, before the day effect: the known truth."""
    local = instants.dt.tz_convert(ZoneInfo(timezone))
    season = 1 + YEARLY * np.cos(2 * np.pi * (local.dt.dayofyear.to_numpy() - 15) / 365.25)
    hour, weekday = local.dt.hour.to_numpy(), local.dt.weekday.to_numpy()
    return np.asarray(ed_per_day * HOURLY[hour] / HOURLY.sum() * WEEKLY[weekday] / WEEKLY.mean() * season)


def simulate(
    days: int,
    seed: int,
    start: datetime,
    ed_per_day: float = 120,
    icu_beds: int = 16,
    timezone: str = "UTC",
    observe: tuple[str, ...] = ("ed", "ward", "icu"),
    septic_share: float = SEPTIC_SHARE,
    moving: float = 0.0,
    surges: tuple[Surge, ...] = (),
) -> Hospital:
    """Run the hospital from ``start`` for ``days`` days.

    Parameters
    ----------
    days : int
    seed : int
        Same seed, same bytes. Each part draws from its own stream: leaving one out of ``observe`` changes no other.
    start : datetime, aware
    ed_per_day : float
        Mean emergency arrivals a day.
    icu_beds : int
        Half of them in unit ``ICU-A`` (monitor values each 15 minutes), half in ``ICU-B`` (hourly, other units).
    timezone : str
        Where the rhythms of day and week live.
    observe : tuple of str
        Which observations to make: ``ed``, ``ward``, ``icu``.
    septic_share : float
        Share of intensive-care stays in which an infection becomes sepsis.
    moving : float
        Share of ward stays in which the patient comes under another specialty, one or two days after reaching the bed;
        the stay there is drawn anew.
    surges : tuple of Surge

    Returns
    -------
    Hospital
        Visits and stays that touch ``[start, start + days)``; those who were already there come with their past.
        Nothing that happens after the end is in it: a time still to come is empty.
    """
    if start.tzinfo is None:
        raise ValueError("start must carry a time zone, for example datetime(2026, 1, 5, tzinfo=UTC).")
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(11)]
    begin, end = (
        pd.Timestamp(start).tz_convert("UTC"),
        pd.Timestamp(start).tz_convert("UTC") + pd.Timedelta(days=days),
    )
    patients = _patients(begin - WARM_UP, end, ed_per_day, icu_beds, timezone, streams, (begin, surges))
    stays = _intensive_care(patients, icu_beds, septic_share, timezone, streams[3])
    patients = _departures(patients, stays, timezone, streams[4])
    patients = _moved(patients, stays, moving, timezone, streams[9])
    here = patients["left"].to_numpy() > begin.value // 1000
    patients, stays = (
        patients[here],
        stays[stays["patient"].isin(patients.index[here])].reset_index(drop=True),
    )
    horizon = end.value // 1000
    parts = {
        "ed": lambda: _ed_events(patients, streams[5]),
        "ward": lambda: _ward_events(patients, stays, streams[6]),
        "icu": lambda: _icu_events(stays, streams[7]),
    }
    events = [parts[name]() for name in parts if name in observe]
    visits = _visits(patients, horizon)
    return Hospital(
        encounters=_encounters(patients, stays, horizon),
        events=_event_table(events, patients, stays, horizon),
        visits=visits,
        truth=_truth(patients, stays, horizon),
        open_beds=_open_beds(patients, begin.value // 1000, horizon),
        timezone=timezone,
        moves=_moves(patients, horizon),
        covariates=_virus(begin, days, surges, timezone, streams[10]),
    )


# Arrivals ------------------------------------------------------------------------------------------------------------


def _patients(
    begin: pd.Timestamp, end: pd.Timestamp, ed_per_day: float, icu_beds: int, timezone: str,
    streams: list[np.random.Generator], surging: tuple[pd.Timestamp, tuple[Surge, ...]],
) -> pd.DataFrame:  # fmt: skip
    """Everybody who comes, in order of arrival; index = patient number; times int64 µs, -1 = never."""
    hours = pd.Series(pd.date_range(begin.floor("h"), end, freq="1h", inclusive="left"))
    ed = _emergency(_arrive(hours, arrival_rate(hours, ed_per_day, timezone), timezone, DAY_EFFECT_SD, streams[0]),
                    timezone, streams[1])  # fmt: skip
    local = hours.dt.tz_convert(ZoneInfo(timezone))
    turnover = ICU_FULL * icu_beds * 24 / 50
    theatre = ((local.dt.weekday < 5) & (local.dt.hour == 7)).to_numpy("float64")
    elective = (0.04 * ed_per_day + 0.38 * turnover) * theatre * 7 / 5
    transfer = np.full(len(hours), 0.16 * turnover / 24)
    planned = _direct(_arrive(hours, elective, timezone, 0.0, streams[2]), "elective", timezone, turnover, ed_per_day,
                      streams[2])  # fmt: skip
    moved = _direct(_arrive(hours, transfer, timezone, 0.0, streams[2]), "transfer", timezone, turnover, ed_per_day,
                    streams[2])  # fmt: skip
    more = _surging(hours, *surging, timezone, streams[8])
    everyone = pd.concat([ed, planned, moved, *more])
    everyone = everyone.sort_values("arrival", kind="stable").reset_index(drop=True)
    wanted = (
        0.46 * turnover / max(float((ed["admitted"] & (ed["age_years"] >= 16)).mean()) * ed_per_day, 1e-9)
    )
    return _needs_icu(everyone, wanted, streams[2])


def _arrive(hours: pd.Series, rate: Floats, timezone: str, sd: float, rng: np.random.Generator) -> Ints:
    """Arrival instants (µs) of a Poisson process with a shared gamma factor for each local day."""
    day = hours.dt.tz_convert(ZoneInfo(timezone)).dt.normalize()
    codes = pd.factorize(day)[0]
    effect = rng.gamma(1 / sd**2, sd**2, codes.max() + 1) if sd > 0 else np.ones(codes.max() + 1)
    counts = rng.poisson(rate * effect[codes])
    starts = np.repeat(hours.astype(UTC_US).astype("int64").to_numpy(), counts)
    return np.asarray(np.sort(starts + rng.integers(0, 3600, len(starts)) * (HOUR_US // 3600)))


def _surging(
    hours: pd.Series, begin: pd.Timestamp, surges: tuple[Surge, ...], timezone: str, rng: np.random.Generator
) -> list[pd.DataFrame]:
    """The additional patients of each surge."""
    day = ((hours - begin) / pd.Timedelta(days=1)).to_numpy("float64")
    usual = arrival_rate(hours, 1.0, timezone)
    out = []
    for surge in surges:
        arrival = _arrive(hours, surge.rate(day) * usual, timezone, DAY_EFFECT_SD, rng)
        out.append(_emergency(arrival, timezone, rng, surge.ages))
    return out


def _emergency(
    arrival: Ints, timezone: str, rng: np.random.Generator, ages: tuple[float, float] | None = None
) -> pd.DataFrame:
    """Emergency patients: age, sex, severity, triage category, true probability of admission, and what became."""
    n = len(arrival)
    age = _ages(n, rng) if ages is None else np.floor(rng.uniform(*ages, n))
    severity = rng.standard_normal(n)
    ambulance = rng.random(n) < _sigmoid(-1.15 + 0.9 * severity + 0.022 * (age - 45))
    triage = np.digitize(-(1.1 * severity + 0.6 * rng.standard_normal(n)), [-2.9, -1.2, 0.35, 2.3]) + 1.0
    p = _sigmoid(-1.72 + 1.5 * severity + 0.03 * (age - 45) + 0.5 * ambulance)
    admitted = rng.random(n) < p
    to_decision = np.exp(rng.normal(np.log(3.3) - 0.15 * np.clip(severity, -1, 2), 0.5, n))
    home = np.exp(rng.normal(np.log(2.6) + 0.1 * np.clip(severity, -1, 2), 0.55, n))
    decision = arrival + (to_decision * HOUR_US).astype("int64")
    admission = decision + (_bed_wait(decision, timezone, rng) * HOUR_US).astype("int64")
    return pd.DataFrame(
        {
            "arrival": arrival, "mode": np.where(ambulance, "ambulance", "walk-in"), "age_years": age,
            "sex": np.where(rng.random(n) < 0.49, "male", "female"), "severity": severity, "triage": triage,
            "p_admission": p, "admitted": admitted, "specialty": _specialty(age, severity, rng),
            "decision": np.where(admitted, decision, -1), "admission": np.where(admitted, admission, -1),
            "home": arrival + (home * HOUR_US).astype("int64"),
        }
    )  # fmt: skip


def _ages(n: int, rng: np.random.Generator) -> Floats:
    group = rng.choice(3, n, p=[0.2, 0.47, 0.33])
    ages = np.stack([rng.gamma(1.3, 4.5, n), rng.normal(38, 14, n), rng.normal(75, 11, n)])[
        group, np.arange(n)
    ]
    low, high = np.array([0, 16, 45])[group], np.array([15.9, 80, 102])[group]
    return np.asarray(np.floor(np.clip(ages, low, high)))


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def _bed_wait(decision: Ints, timezone: str, rng: np.random.Generator) -> Floats:
    """Hours from decision to bed: log-normal, longer when the decision falls in the evening or at night."""
    hour = _local_hour(decision, timezone)
    late = np.where((hour >= 18) | (hour < 6), 1.35, 1.0)
    return np.asarray(late * np.exp(rng.normal(np.log(1.9), 0.7, len(decision))))


def _local_hour(micros: Ints, timezone: str) -> Ints:
    return np.asarray(from_micros(micros).dt.tz_convert(ZoneInfo(timezone)).dt.hour.to_numpy("int64"))


def _specialty(age: Floats, severity: Floats, rng: np.random.Generator) -> npt.NDArray[np.object_]:
    """Specialty were the patient admitted; the mix depends on age and severity."""
    old, child = age >= 75, age < 16
    weight = np.stack([
        np.where(old, 0.28, 0.44) + 0.03 * np.clip(severity, -1, 2), np.where(old, 0.36, 0.0),
        np.where(age >= 40, 0.14, 0.06), np.where(old, 0.10, 0.26), np.where(old, 0.12, 0.16), np.zeros(len(age)),
    ])  # fmt: skip
    weight[:, child] = np.array([0, 0, 0, 0.08, 0.10, 0.82])[:, None]
    bound = np.cumsum(weight / weight.sum(axis=0), axis=0)
    pick = (rng.random(len(age)) > bound).sum(axis=0)
    return np.asarray(np.array(SPECIALTIES, object)[np.minimum(pick, 5)])


def _direct(
    arrival: Ints, mode: str, timezone: str, turnover: float, ed_per_day: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Patients who come to a bed without the emergency department: elective surgery, transfers to intensive care."""
    n = len(arrival)
    minor = rng.random(n) < (0.2 if mode == "transfer" else 0.08)
    age = np.floor(np.where(minor, rng.uniform(12, 18, n), np.clip(rng.normal(63, 14, n), 18, 95)))
    theatre = rng.uniform(3, 9, n) if mode == "elective" else rng.uniform(0.1, 0.5, n)
    pick = rng.random(n)
    surgery, other = {"elective": (0.62, "orthopaedics"), "transfer": (0.25, "general medicine")}[mode]
    specialty = np.where(pick < surgery, "surgery", other).astype(object)
    share = 0.38 * turnover / (0.04 * ed_per_day + 0.38 * turnover) if mode == "elective" else 1.0
    return pd.DataFrame(
        {
            "arrival": arrival, "mode": mode, "age_years": age,
            "sex": np.where(rng.random(n) < 0.55, "male", "female"), "severity": rng.normal(0.5, 0.8, n),
            "triage": np.nan, "p_admission": 1.0, "admitted": True, "specialty": specialty, "decision": arrival,
            "admission": arrival + (theatre * HOUR_US).astype("int64"), "home": -1,
            "icu": rng.random(n) < share,
        }
    )  # fmt: skip


def _needs_icu(patients: pd.DataFrame, wanted: float, rng: np.random.Generator) -> pd.DataFrame:
    """Choose emergency admissions for intensive care, the sicker the likelier; ``wanted`` is their share."""
    ed = patients["icu"].isna() & patients["admitted"] & (patients["age_years"] >= 16)
    pull = np.exp(1.2 * patients["severity"].to_numpy()) * ed.to_numpy()
    chance = np.clip(pull / max(pull[pull > 0].mean() if (pull > 0).any() else 1.0, 1e-9) * wanted, 0, 0.8)
    direct = patients["icu"].astype("boolean").fillna(False).to_numpy(bool)
    return patients.assign(icu=direct | ((rng.random(len(patients)) < chance) & ed.to_numpy()))


# Intensive care and departures ---------------------------------------------------------------------------------------


def _intensive_care(
    patients: pd.DataFrame, beds: int, septic_share: float, timezone: str, rng: np.random.Generator
) -> pd.DataFrame:
    """Stays in intensive care; who finds no free bed is looked after on a ward."""
    asks = patients[patients["icu"]]
    asks = asks.sort_values("admission", kind="stable")
    n = len(asks)
    stays = pd.DataFrame(
        {
            "patient": asks.index, "admission": asks["admission"].to_numpy("int64"),
            "age_years": asks["age_years"].to_numpy("float64"),
            "surgical": asks["specialty"].isin(["surgery", "orthopaedics"]).to_numpy(),
            "start_hour": _local_hour(asks["admission"].to_numpy("int64"), timezone),
            "ventilated": rng.random(n) < np.where(asks["mode"] == "elective", 0.5, 0.36),
            "ventilated_h": np.exp(rng.normal(np.log(28), 0.8, n)),
        }
    )  # fmt: skip
    stays = _illness(stays, septic_share, rng)
    source = rng.choice(SOURCES, n, p=[0.45, 0.25, 0.17, 0.13])
    stays["source"] = pd.Series(source).where(stays["onset_h"].notna(), "").astype("str")
    stays["died"] = rng.random(n) < np.where(stays["onset_h"].notna(), 0.18, 0.06)
    return _allocate(stays, beds).reset_index(drop=True)


def _illness(stays: pd.DataFrame, septic_share: float, rng: np.random.Generator) -> pd.DataFrame:
    """Who becomes septic and when, what else happens to whom, and how long they stay (hours)."""
    n = len(stays)
    onset = np.where(rng.random(n) < 0.15, rng.uniform(0.5, 6, n), 5 + rng.gamma(1.7, 16, n))
    hours = np.clip(np.exp(rng.normal(np.log(ICU_STAY_H[0]), ICU_STAY_H[1], n)), 8, 240)
    after = np.clip(np.exp(rng.normal(np.log(50), 0.6, n)), 12, 200)
    shares = {"bleeding": 0.06, "fibrillation": 0.08, "kidney": 0.13, "liver": 0.05, "lung": 0.12}
    flags = {name: (rng.random(n) < share).astype("float64") for name, share in shares.items()}
    septic = rng.random(n) < np.minimum(septic_share * _vulnerability(stays, flags), 0.9)
    fever = (rng.random(n) < np.where(stays["surgical"], 0.4, 0.15) * ~septic).astype("float64")
    ventilated_h = stays["ventilated_h"].to_numpy("float64")
    return stays.assign(
        onset_h=np.where(septic, onset, np.nan),
        hours=np.where(septic, onset + after, hours),
        ventilated_h=np.where(septic, np.maximum(ventilated_h, onset + 12), ventilated_h),
        fever=fever,
        **flags,
    )


def _vulnerability(stays: pd.DataFrame, flags: dict[str, Floats]) -> Floats:
    """How much likelier than the average stay each is to become infected and septic (mean 1).

    Ventilation, age and chronic disease, in the direction of Vincent et al., JAMA 2009;302:2323 (EPIC II).
    """
    pull = 1.0 * stays["ventilated"].to_numpy("float64") + 0.5 * flags["kidney"] + 0.5 * flags["liver"]
    pull += 0.4 * flags["lung"] + 0.015 * (stays["age_years"].to_numpy("float64") - 62)
    odds = np.exp(pull)
    return np.asarray(odds / odds.mean() if len(odds) else odds)


def _allocate(stays: pd.DataFrame, beds: int) -> pd.DataFrame:
    """Give each asker the bed that has been free longest; drop those who come when all are taken."""
    free = [(-1, bed) for bed in range(beds)]
    heapq.heapify(free)
    given = np.full(len(stays), -1)
    end = stays["admission"].to_numpy("int64") + (stays["hours"].to_numpy() * HOUR_US).astype("int64")
    for i, came in enumerate(stays["admission"].to_numpy("int64")):
        if free and free[0][0] <= came:
            _, given[i] = heapq.heappop(free)
            heapq.heappush(free, (int(end[i]), int(given[i])))
    unit = np.where(given % 2 == 0, "ICU-A", "ICU-B")
    return stays.assign(end=end, unit=unit, fine=unit == "ICU-A", other_units=unit == "ICU-B")[given >= 0]


def _departures(
    patients: pd.DataFrame, stays: pd.DataFrame, timezone: str, rng: np.random.Generator
) -> pd.DataFrame:
    """When each patient leaves the hospital (µs), and the unit of the first bed."""
    n = len(patients)
    which = pd.Series(range(len(SPECIALTIES)), index=list(SPECIALTIES))
    code = which.reindex(patients["specialty"]).to_numpy("int64")
    stay_h = (
        STAY_MEDIAN_H[code] * np.exp(rng.normal(0, STAY_SIGMA, n)) * (0.8 + 0.004 * patients["age_years"])
    )
    bedded = patients["admission"].to_numpy("int64").copy()
    at = stays["patient"].to_numpy()
    bedded[at] = stays["end"].to_numpy()
    ready = bedded + (stay_h.to_numpy() * HOUR_US).astype("int64")
    left = _leaving_time(ready, bedded, timezone, rng)
    left[at] = np.where(stays["died"], stays["end"], left[at])
    unit = np.char.add("Ward ", patients["specialty"].to_numpy(str)).astype(object)
    unit[at] = stays["unit"]
    admitted = patients["admitted"].to_numpy(bool)
    return patients.assign(
        left=np.where(admitted, left, patients["home"]), unit=np.where(admitted, unit, "ED"), bedded=bedded
    )


def _moved(
    patients: pd.DataFrame, stays: pd.DataFrame, share: float, timezone: str, rng: np.random.Generator
) -> pd.DataFrame:
    """Let some ward patients come under another specialty (``moved``, µs, -1 = never) and stay there anew."""
    n = len(patients)
    target = (
        [rng.choice(MOVES_TO[s]) if s in MOVES_TO else "" for s in patients["specialty"]]
        if share
        else [""] * n
    )
    at = patients["bedded"].to_numpy("int64") + (rng.uniform(24, 48, n) * HOUR_US).astype("int64")
    ward = patients["admitted"].to_numpy(bool) & ~patients.index.isin(stays["patient"])
    goes = (
        ward & (rng.random(n) < share) & (np.array(target) != "") & (at < patients["left"].to_numpy("int64"))
    )
    code = (
        pd.Series(range(len(SPECIALTIES)), index=list(SPECIALTIES))
        .reindex(target)
        .fillna(0)
        .to_numpy("int64")
    )
    stay_h = STAY_MEDIAN_H[code] * np.exp(rng.normal(0, STAY_SIGMA, n))
    left = _leaving_time(at + (stay_h * HOUR_US).astype("int64"), at, timezone, rng)
    return patients.assign(
        moved=np.where(goes, at, -1),
        moved_to=np.where(goes, target, ""),
        left=np.where(goes, left, patients["left"].to_numpy("int64")),
    )


def _moves(patients: pd.DataFrame, horizon: int) -> pd.DataFrame:
    """Moves that came before ``horizon``, as :data:`features.sources.moves.MOVE_COLUMNS`."""
    some = patients[(patients["moved"] >= 0) & (patients["moved"] < horizon)]
    moves = pd.DataFrame(
        {
            "encounter_id": _names("V", some.index.to_numpy("int64")),
            "time": from_micros(some["moved"].to_numpy("int64")),
            "specialty": some["moved_to"].to_numpy("str"),
            "unit": np.char.add("Ward ", some["moved_to"].to_numpy("str")),
        }
    ).astype({"encounter_id": "str", "specialty": "str", "unit": "str"})
    return moves.sort_values(["encounter_id", "time"], kind="stable").reset_index(drop=True)


def _virus(
    begin: pd.Timestamp, days: int, surges: tuple[Surge, ...], timezone: str, rng: np.random.Generator
) -> pd.DataFrame:
    """Positive tests a day: a background, and what a surge will bring a few days later."""
    first = begin.tz_convert(ZoneInfo(timezone)).tz_localize(None).normalize() - WARM_UP
    count = days + WARM_UP.days
    day = np.arange(count) - WARM_UP.days + 0.5 + VIRUS_LEAD / timedelta(days=1)
    mean = VIRUS_BACKGROUND + sum((surge.rate(day) for surge in surges), np.zeros(count))
    return pd.DataFrame(
        {
            "date": pd.date_range(first, periods=count, freq="1D", unit="us"),
            "respiratory_virus": rng.poisson(mean).astype("float64"),
        }
    )


def _leaving_time(ready: Ints, bedded: Ints, timezone: str, rng: np.random.Generator) -> Ints:
    """Move each discharge to an hour at which wards discharge, some from the weekend to Monday; never before 3 h."""
    day = from_micros(ready).dt.tz_convert(ZoneInfo(timezone)).dt.tz_localize(None).dt.normalize()
    weekday = day.dt.weekday.to_numpy()
    kept = (weekday >= 5) & (rng.random(len(ready)) < WEEKEND_KEPT)
    hour = rng.choice(24, len(ready), p=LEAVING / LEAVING.sum())
    minute = rng.integers(0, 60, len(ready))
    wall = day + pd.to_timedelta(np.where(kept, 7 - weekday, 0), unit="D")
    wall = wall + pd.to_timedelta(hour * 60 + minute, unit="min")
    local = wall.dt.tz_localize(ZoneInfo(timezone), ambiguous=False, nonexistent="shift_forward")
    left = local.dt.tz_convert("UTC").astype(UTC_US).astype("int64").to_numpy()
    return np.asarray(
        np.where(left < bedded + 3 * HOUR_US, bedded + rng.integers(3, 9, len(left)) * HOUR_US, left)
    )


# Observations --------------------------------------------------------------------------------------------------------


def _ed_events(patients: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Triage category, vital signs at triage and every two hours or so, blood tests of the sicker."""
    ed = patients[patients["mode"].isin(["ambulance", "walk-in"])]
    n = len(ed)
    arrival, gone = ed["arrival"].to_numpy("int64"), ed["left"].to_numpy("int64")
    gone = np.where(ed["admitted"], ed["admission"].to_numpy("int64"), gone)
    triaged = arrival + rng.integers(3, 25, n) * MINUTE_US
    parts = [
        _facts(ed.index.to_numpy(), triaged, "WARDCAST//triage_category", ed["triage"].to_numpy(), "{score}")
    ]
    parts += _vital_rounds(ed, triaged, np.ones(n, bool), rng)
    for k in (1, 2, 3):
        again = triaged + (k * 120 + rng.integers(-20, 20, n)) * MINUTE_US
        parts += _vital_rounds(ed, again, (again < gone) & (ed["triage"].to_numpy() <= 3), rng)
    return pd.concat([*parts, *_ed_bloods(ed, triaged, gone, rng)], ignore_index=True)


def _vital_rounds(
    ed: pd.DataFrame, time: Ints, who: npt.NDArray[np.bool_], rng: np.random.Generator
) -> list[pd.DataFrame]:
    z = ed["severity"].to_numpy()
    worse = np.clip(z, -1, 3)
    age = ed["age_years"].to_numpy()
    child = np.clip((12 - age) / 12, 0, 1)
    n = len(ed)
    level = {
        "heart_rate": 84 + 8 * worse + 45 * child + rng.normal(0, 12, n),
        "respiratory_rate": 17 + 2.2 * worse + 9 * child + rng.normal(0, 2.2, n),
        "spo2": np.minimum(98.2 - 1.1 * worse - 0.01 * age + rng.normal(0, 1.2, n), 100),
        "temperature": 36.8 + 0.18 * worse + 0.3 * child + rng.normal(0, 0.5, n),
        "sbp": 122 + 0.35 * (age - 45) - 5 * worse - 18 * child + rng.normal(0, 17, n),
        "dbp": 74 + 0.02 * (age - 45) - 2 * worse - 12 * child + rng.normal(0, 10, n),
    }
    missing = {"temperature": 0.12, "sbp": 0.05, "dbp": 0.05, "respiratory_rate": 0.08}
    return _take(ed, time, who, level, missing, 0.03, rng)


def _take(
    ed: pd.DataFrame, time: Ints, who: npt.NDArray[np.bool_], level: dict[str, Floats], missing: dict[str, float],
    usual: float, rng: np.random.Generator,
) -> list[pd.DataFrame]:  # fmt: skip
    parts = []
    for concept, values in level.items():
        q = physiology.quantities()[concept]
        keep = who & (rng.random(len(ed)) >= missing.get(concept, usual))
        shown = np.asarray(np.round(np.clip(values[keep], q.low, q.high), q.digits), "float64")
        parts.append(_facts(ed.index.to_numpy()[keep], time[keep], q.code, shown, q.unit))
    return parts


def _ed_bloods(ed: pd.DataFrame, triaged: Ints, gone: Ints, rng: np.random.Generator) -> list[pd.DataFrame]:
    """One set of blood tests for about half of the adults, more for the sicker; back in about an hour."""
    n, z, age = len(ed), ed["severity"].to_numpy(), ed["age_years"].to_numpy()
    drawn = triaged + rng.integers(10, 70, n) * MINUTE_US
    who = (rng.random(n) < _sigmoid(-0.6 + 0.9 * z + 0.015 * (age - 45))) & (age >= 16) & (drawn < gone)
    worse = np.clip(z, -1, 3)
    level = {
        "wbc": 8.5 * np.exp(0.16 * worse + 0.3 * rng.standard_normal(n)),
        "creatinine": 0.9 * np.exp(0.1 * worse + 0.004 * (age - 45) + 0.28 * rng.standard_normal(n)),
        "bun": 15 * np.exp(0.1 * worse + 0.006 * (age - 45) + 0.35 * rng.standard_normal(n)),
        "lactate": 1.4 * np.exp(0.22 * worse + 0.35 * rng.standard_normal(n)),
        "hematocrit": 40 - 1.2 * worse + 4.5 * rng.standard_normal(n),
        "platelets": 240 * np.exp(0.3 * rng.standard_normal(n)),
        "potassium": 4.1 + 0.4 * rng.standard_normal(n),
        "glucose": 112 * np.exp(0.08 * worse + 0.25 * rng.standard_normal(n)),
    }
    parts = _take(ed, drawn, who, level, {"lactate": 0.55}, 0.02, rng)
    return [p.assign(available=p["time"] + rng.integers(35, 90, len(p)) * MINUTE_US) for p in parts]


def _ward_events(patients: pd.DataFrame, stays: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Vital signs each four hours of everybody in a ward bed (not while in intensive care)."""
    ward = patients[patients["admitted"] & ~(patients.index.isin(stays.loc[stays["died"], "patient"]))]
    first, last = ward["bedded"].to_numpy("int64"), ward["left"].to_numpy("int64")
    rounds = np.maximum((last - first) // (4 * HOUR_US), 0)
    who = np.repeat(np.arange(len(ward)), rounds)
    step = np.arange(rounds.sum()) - np.repeat(np.cumsum(rounds) - rounds, rounds)
    time = first[who] + step * 4 * HOUR_US + rng.integers(0, 40, len(who)) * MINUTE_US
    own = rng.standard_normal((len(WARD_VITALS), len(ward)))
    parts = []
    for k, concept in enumerate(WARD_VITALS):
        q = physiology.quantities()[concept]
        value = q.median + q.between_sd * own[k][who] + q.within_sd * rng.standard_normal(len(who))
        keep = rng.random(len(who)) > 0.06
        shown = np.round(np.clip(value[keep], q.low, q.high), q.digits)
        parts.append(_facts(ward.index.to_numpy()[who[keep]], time[keep], q.code, shown, q.unit))
    return pd.concat(parts, ignore_index=True)


def _icu_events(stays: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    seen = physiology.observe(stays, rng)
    number = seen["stay"].to_numpy("int64")
    time = stays["admission"].to_numpy("int64")[number] + (seen["minute"].to_numpy() * MINUTE_US).astype(
        "int64"
    )
    delay = (seen["delay_min"].to_numpy() * MINUTE_US).astype("int64")
    return pd.DataFrame(
        {
            "who": number, "icu": True, "time": time, "available": time + delay, "code": seen["code"].to_numpy(),
            "value": seen["value"].to_numpy(), "unit": seen["unit"].to_numpy(),
        }
    )  # fmt: skip


def _facts(who: Ints, time: Ints, code: str, value: Floats, unit: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "who": who,
            "icu": False,
            "time": time,
            "available": time,
            "code": code,
            "value": value,
            "unit": unit,
        }
    )


# Tables --------------------------------------------------------------------------------------------------------------


def _event_table(
    parts: list[pd.DataFrame], patients: pd.DataFrame, stays: pd.DataFrame, horizon: int
) -> pd.DataFrame:
    """Canonical raw events in the order they became available, those after ``horizon`` left out."""
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if rows.empty:
        return empty_events()
    rows = rows[(rows["available"] < horizon) & rows["value"].notna()]
    rows = rows.sort_values(["available", "time", "icu", "who", "code"], kind="stable").reset_index(drop=True)
    number, icu = rows["who"].to_numpy("int64"), rows["icu"].to_numpy(bool)
    subject = number.copy()
    subject[icu] = stays["patient"].to_numpy("int64")[number[icu]]
    subjects, code = np.unique(subject, return_inverse=True)
    attendance, stay = _names("V", subjects)[code], _names("C", subjects)[code]
    table = pd.DataFrame(
        {
            "subject_id": _names("P", subjects)[code], "encounter_id": np.where(icu, stay, attendance),
            "time": from_micros(rows["time"].to_numpy("int64")),
            "available_time": from_micros(rows["available"].to_numpy("int64")),
            "code": rows["code"], "concept": "", "numeric_value": rows["value"].to_numpy("float64"),
            "text_value": None, "unit": rows["unit"], "status": "final",
            "source_id": _names("R", np.arange(len(rows), dtype="int64")),
        }
    )  # fmt: skip
    for column in (
        "subject_id",
        "encounter_id",
        "code",
        "concept",
        "text_value",
        "unit",
        "status",
        "source_id",
    ):
        table[column] = table[column].astype("str")
    return _corrected(table, horizon)[list(EVENT_COLUMNS)]


def _corrected(events: pd.DataFrame, horizon: int) -> pd.DataFrame:
    """The laboratory corrects one result in 400, two hours later: same identity, status ``corrected``."""
    laboratory = (events["available_time"] - events["time"]) >= pd.Timedelta(minutes=30)
    wrong = events[laboratory].iloc[::400]
    later = wrong.assign(
        available_time=wrong["available_time"] + pd.Timedelta(hours=2),
        numeric_value=(wrong["numeric_value"] * 1.1).round(2),
        status="corrected",
    )
    later = later[later["available_time"].astype("int64") < horizon]
    return pd.concat([events, later]).sort_values("available_time", kind="stable").reset_index(drop=True)


def _names(letter: str, number: Ints) -> npt.NDArray[np.object_]:
    return np.array([f"{letter}{k:06d}" for k in number], dtype=object)


def _instants(micros: npt.ArrayLike, horizon: int) -> pd.Series:
    """Instants of int64 µs; empty where -1 (never) or not yet come at ``horizon``."""
    values = np.asarray(micros, "int64")
    return from_micros(values).mask((values < 0) | (values >= horizon))


def _visits(patients: pd.DataFrame, horizon: int) -> pd.DataFrame:
    number = patients.index.to_numpy("int64")
    visits = pd.DataFrame(
        {
            "encounter_id": _names("V", number), "subject_id": _names("P", number),
            "arrival_time": _instants(patients["arrival"], horizon),
            "decision_time": _instants(patients["decision"], horizon),
            "admission_time": _instants(patients["admission"], horizon),
            "discharge_time": _instants(patients["left"], horizon),
            "specialty": patients["specialty"].to_numpy(), "unit": patients["unit"].to_numpy(),
            "age_years": patients["age_years"].to_numpy(), "sex": patients["sex"].to_numpy(),
            "arrival_mode": patients["mode"].to_numpy(),
        }
    )  # fmt: skip
    return known_at(visits, pd.Timestamp(horizon * 1000, tz="UTC"))


def _encounters(patients: pd.DataFrame, stays: pd.DataFrame, horizon: int) -> pd.DataFrame:
    """Attendances and intensive-care stays as they stood at the end."""
    visits = _visits(patients, horizon)
    attendances = attendance_encounters(visits)
    chosen = stays[stays["admission"] < horizon]
    who = patients.loc[chosen["patient"]]
    icu = pd.DataFrame(
        {
            "encounter_id": _names("C", chosen["patient"].to_numpy("int64")),
            "subject_id": _names("P", chosen["patient"].to_numpy("int64")), "encounter_class": "icu",
            "unit": chosen["unit"].to_numpy(), "specialty": who["specialty"].to_numpy(),
            "age_years": who["age_years"].to_numpy(), "sex": who["sex"].to_numpy(),
            "icu_type": np.where(chosen["surgical"], "surgical", "medical"),
            "hospital_admission_time": _instants(who["arrival"], horizon),
            "icu_admission_time": _instants(chosen["admission"], horizon),
        }
    )  # fmt: skip
    return pd.concat([attendances, icu], ignore_index=True)[list(ENCOUNTER_COLUMNS)]


def encounters_at(hospital: Hospital, at: datetime) -> pd.DataFrame:
    """Encounters as the hospital's systems knew them at ``at``: :data:`ENCOUNTER_COLUMNS` and the visit's times.

    Adds ``arrival_time, arrival_mode, decision_time, admission_time, discharge_time``; those still to come are empty.
    An intensive-care stay has only a ``discharge_time`` (from the unit).
    """
    now = pd.Timestamp(at)
    visits = known_at(hospital.visits, now)
    times = ["arrival_time", "arrival_mode", "decision_time", "admission_time", "discharge_time"]
    attendances = attendance_encounters(visits).merge(visits[["encounter_id", *times]], on="encounter_id")
    icu = hospital.encounters[
        (hospital.encounters["encounter_class"] == "icu") & (hospital.encounters["icu_admission_time"] <= now)
    ]
    icu = icu.merge(hospital.truth[["encounter_id", "end_time"]], on="encounter_id")
    icu = icu.assign(discharge_time=icu["end_time"].mask(icu["end_time"] > now)).drop(columns="end_time")
    return pd.concat([attendances, icu], ignore_index=True)[[*ENCOUNTER_COLUMNS, *times]]


def _truth(patients: pd.DataFrame, stays: pd.DataFrame, horizon: int) -> pd.DataFrame:
    came = patients[patients["arrival"] < horizon]
    attendances = pd.DataFrame(
        {
            "encounter_id": _names("V", came.index.to_numpy("int64")), "p_admission": came["p_admission"].to_numpy(),
            "admitted": came["admitted"].to_numpy(bool), "specialty": came["specialty"].to_numpy(),
            "severity": came["severity"].to_numpy(), "end_time": from_micros(came["left"].to_numpy("int64")),
        }
    )  # fmt: skip
    icu = stays[stays["admission"] < horizon]
    onset = icu["admission"].to_numpy("int64") + (icu["onset_h"].fillna(0).to_numpy() * HOUR_US).astype(
        "int64"
    )
    other = ["fever", "bleeding", "fibrillation", "kidney", "liver", "lung"]
    stayed = pd.DataFrame(
        {
            "encounter_id": _names("C", icu["patient"].to_numpy("int64")), "p_admission": np.nan, "admitted": True,
            "specialty": patients.loc[icu["patient"], "specialty"].to_numpy(), "severity": np.nan,
            "end_time": from_micros(icu["end"].to_numpy("int64")),
            "onset_time": from_micros(onset).mask(icu["onset_h"].isna().to_numpy()),
            "source": icu["source"].to_numpy(),
            "other": [" ".join(o for o, so in zip(other, row, strict=True) if so) for row in icu[other].to_numpy()],
        }
    )  # fmt: skip
    attendances["onset_time"] = pd.Series(pd.NaT, index=attendances.index, dtype=UTC_US)
    attendances = attendances.assign(source="", other="")
    return pd.concat([attendances, stayed], ignore_index=True)


def _open_beds(patients: pd.DataFrame, begin: int, horizon: int) -> dict[str, int]:
    """Beds by specialty that would be 92 % full on average."""
    bedded = patients[patients["admitted"]]
    inside = np.clip(bedded["left"], begin, horizon) - np.clip(bedded["admission"], begin, horizon)
    mean = inside.groupby(bedded["specialty"]).sum() / (horizon - begin)
    return {name: int(np.ceil(mean.get(name, 0.0) / 0.92)) for name in SPECIALTIES}
