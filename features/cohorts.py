"""Who is studied: inclusion, exclusion and washout as named rules, with the attrition table that a paper would print.

A rule looks at encounters and their events and says of each encounter whether it stays in. Rules apply in order, each
to what the ones before it left. Nothing here knows an outcome; :func:`free_of` is handed onsets found elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import UTC_US, from_micros, micros
from features.errors import DataError, SpecError

Flags = npt.NDArray[np.bool_]
ICU_LOCATION: Final = 4
"""``location`` of an intensive care unit in texts.csv."""
WARD_LOCATION: Final = 2
LEFT: Final = 0
CLASSES: Final = {LEFT: "left", 1: "ed", ICU_LOCATION: "icu"}
"""``location`` as a class of encounter; any other place in the hospital is a ward."""
ENDS: Final = ("hospital_discharge", "death")
Start = Literal["hospital", "icu"]


@dataclass(frozen=True, slots=True)
class Rule:
    """``keeps(encounters, events)`` is a boolean array over the encounters; ``name`` is how a reader calls it."""

    name: str
    keeps: Callable[[pd.DataFrame, pd.DataFrame], Flags]


@dataclass(frozen=True)
class Cohort:
    """The encounters that all rules keep.

    Attributes
    ----------
    encounters : DataFrame
        Rows of the input, in its order, with index 0..n-1.
    attrition : DataFrame with ``rule, left_out, encounters, subjects``
        Row 0 (``rule`` = "all") counts the input; every further row one rule: how many encounters it left out, and
        how many encounters and persons were left after it.
    """

    encounters: pd.DataFrame
    attrition: pd.DataFrame


def select(encounters: pd.DataFrame, events: pd.DataFrame, rules: Sequence[Rule]) -> Cohort:
    """Apply rules in order.

    Parameters
    ----------
    encounters : DataFrame with ``events.ENCOUNTER_COLUMNS``
    events : DataFrame of cleaned canonical events; those of other encounters are ignored
    rules : sequence of Rule

    Raises
    ------
    DataError
        A table lacks a column, or an encounter stands twice.
    """
    _check(encounters, events)
    left = encounters.reset_index(drop=True)
    table = [("all", 0, len(left), left["subject_id"].nunique())]
    for rule in rules:
        keep = rule.keeps(left, events)
        out = int((~keep).sum())
        left = left[keep].reset_index(drop=True)
        table.append((rule.name, out, len(left), left["subject_id"].nunique()))
    return Cohort(left, pd.DataFrame(table, columns=["rule", "left_out", "encounters", "subjects"]))


def adults(years: float = 18) -> Rule:
    """At least so old at hospital admission. An unknown age is left out."""
    return Rule(
        f"age {years:g} years or more", lambda enc, _: (enc["age_years"] >= years).to_numpy(dtype=bool)
    )


def ever_in_icu() -> Rule:
    """In intensive care at some time."""
    return Rule("ever in intensive care", lambda enc, _: enc["icu_admission_time"].notna().to_numpy())


def first_of_person() -> Rule:
    """A person's first encounter among those left, by hospital admission (ICU admission where that is unknown)."""

    def keeps(encounters: pd.DataFrame, _: pd.DataFrame) -> Flags:
        began = encounters["hospital_admission_time"].fillna(encounters["icu_admission_time"])
        order = pd.DataFrame({"s": encounters["subject_id"], "t": began, "e": encounters["encounter_id"]})
        first = order.sort_values(["t", "e"], kind="stable").drop_duplicates("s").index
        return np.isin(np.arange(len(encounters)), first)

    return Rule("first encounter of the person", keeps)


def minimum_stay(length: timedelta, since: Start = "icu") -> Rule:
    """At least so long from admission (to the ICU or the hospital) to the end of the encounter, see :func:`bounds`."""

    def keeps(encounters: pd.DataFrame, events: pd.DataFrame) -> Flags:
        spans = bounds(encounters, events)
        stayed = spans["end_time"] - _start(spans, since)
        return (stayed >= pd.Timedelta(length)).to_numpy(dtype=bool)

    return Rule(f"stayed {_hours(length)} h or more", keeps)


def measured(concepts: Sequence[str], at_least: int = 1) -> Rule:
    """Every one of these concepts measured so many times or more."""

    def keeps(encounters: pd.DataFrame, events: pd.DataFrame) -> Flags:
        seen = events[events["concept"].isin(list(concepts)) & (events["status"] != "deleted")]
        counts = seen.groupby(["encounter_id", "concept"], observed=True).size().unstack(fill_value=0)
        wide = counts.reindex(index=encounters["encounter_id"], columns=list(concepts), fill_value=0)
        return np.asarray((wide.to_numpy() >= at_least).all(axis=1), dtype=bool)

    return Rule(f"{', '.join(concepts)} measured at least {at_least} times", keeps)


def free_of(onsets: pd.DataFrame, washout: timedelta, since: Start = "icu") -> Rule:
    """No onset up to ``washout`` after admission (that instant included): later cases are incident, not prevalent.

    ``onsets`` has ``encounter_id`` and ``onset_time``; encounters without a row never had the outcome.
    """
    first = onsets.groupby("encounter_id")["onset_time"].min()

    def keeps(encounters: pd.DataFrame, events: pd.DataFrame) -> Flags:
        runs_in = _start(bounds(encounters, events), since) + pd.Timedelta(washout)
        onset = _of(pd.Index(encounters["encounter_id"].astype("str")), first)
        return np.asarray(onset.isna() | (onset > runs_in), dtype=bool)

    return Rule(f"free of the outcome for {_hours(washout)} h", keeps)


def bounds(encounters: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    """When each encounter began and ended.

    Returns
    -------
    DataFrame, one row an encounter, in order: ``encounter_id``; ``start_time`` (hospital admission, else ICU
    admission); ``icu_time``; ``end_time``: the first discharge from hospital or death, else the last event; NaT when
    there is neither.
    """
    _check(encounters, events)
    ended = events[events["concept"].isin(ENDS) & (events["status"] != "deleted")]
    first_end = ended.groupby("encounter_id", observed=True)["time"].min()
    last_event = events.groupby("encounter_id", observed=True)["time"].max()
    who = pd.Index(encounters["encounter_id"].astype("str"))
    end = _of(who, first_end).fillna(_of(who, last_event))
    return pd.DataFrame(
        {
            "encounter_id": who,
            "start_time": encounters["hospital_admission_time"]
            .fillna(encounters["icu_admission_time"])
            .array,
            "icu_time": encounters["icu_admission_time"].array,
            "end_time": end.array,
        }
    )


def icu_stays(
    encounters: pd.DataFrame, events: pd.DataFrame, joined: timedelta = timedelta(0)
) -> pd.DataFrame:
    """Every stretch in intensive care, by the moves between units.

    A stretch begins at the ICU admission of the encounter or at a ``location`` event of a unit, and ends at a location
    that is none, at ``icu_discharge``, or with the encounter. A move from unit to unit continues it.

    Parameters
    ----------
    joined : timedelta
        Stretches of one encounter that lie no further apart than this are one.

    Returns
    -------
    DataFrame with ``encounter_id``, ``icu_stay`` (0, 1, … within the encounter), ``start_time``, ``end_time``; sorted.
    """
    _check(encounters, events)
    moves = _moves(encounters, events)
    same = moves["encounter_id"].eq(moves["encounter_id"].shift())
    turned = ~same | moves["inside"].ne(moves["inside"].shift())
    turns = moves[turned]
    after = turns["time"].shift(-1).where(turns["encounter_id"].eq(turns["encounter_id"].shift(-1)))
    ends = bounds(encounters, events).set_index("encounter_id")["end_time"]
    stays = turns.assign(end_time=after.fillna(turns["encounter_id"].map(ends).astype(UTC_US)))
    stays = stays[stays["inside"] & (stays["end_time"] > stays["time"])]
    stays = stays.rename(columns={"time": "start_time"})[["encounter_id", "start_time", "end_time"]]
    follows = stays["encounter_id"].eq(stays["encounter_id"].shift())
    far = stays["start_time"] - stays["end_time"].shift() > pd.Timedelta(joined)
    group = (~follows | far).cumsum()
    whole = stays.groupby(group, sort=True).agg(
        encounter_id=("encounter_id", "first"),
        start_time=("start_time", "first"),
        end_time=("end_time", "last"),
    )
    whole.insert(1, "icu_stay", whole.groupby("encounter_id", sort=False).cumcount())
    return whole.reset_index(drop=True)


def prediction_times(
    starts: pd.DataFrame, every: timedelta = timedelta(hours=1), maximum_look: timedelta | None = None
) -> pd.DataFrame:
    """Prediction times on a grid from each start to its end.

    Parameters
    ----------
    starts : DataFrame with ``encounter_id``, ``start_time`` and ``end_time``
        For example of :func:`icu_stays`; rows without both times make none.
    every : timedelta
        The first prediction is made this long after the start.
    maximum_look : timedelta, optional
        No prediction later than this after the start.

    Returns
    -------
    DataFrame with ``encounter_id`` and ``prediction_time`` (at most ``end_time``), in the order of ``starts``.
    """
    if every <= timedelta(0):
        raise SpecError(
            f"Prediction times need a step above 0, got {every}. Write for example timedelta(hours=1)."
        )
    whole = starts.dropna(subset=["start_time", "end_time"])
    step = every // timedelta(microseconds=1)
    began, ended = micros(whole["start_time"]), micros(whole["end_time"])
    if maximum_look is not None:
        ended = np.minimum(ended, began + maximum_look // timedelta(microseconds=1))
    n = np.maximum((ended - began) // step, 0)
    which = np.repeat(np.arange(len(whole)), n)
    turn = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + 1
    return pd.DataFrame(
        {
            "encounter_id": whole["encounter_id"].to_numpy()[which],
            "prediction_time": from_micros(began[which] + turn * step),
        }
    )


def current_class(rows: pd.DataFrame, encounters: pd.DataFrame, events: pd.DataFrame) -> pd.Series:
    """Where each patient was at some times, as far as it was known then.

    ``encounter_class`` of an archive says where a patient ever was; whether a model is for somebody depends on where
    that is now. The last move that was known counts: a ``location``, an admission to or discharge from intensive care,
    or the end of the stay.

    Parameters
    ----------
    rows : DataFrame with ``encounter_id`` and ``prediction_time``

    Returns
    -------
    Series of ``ed``, ``ward``, ``icu`` or ``left``, with the index of ``rows``; of those whom no move is known of, the
    class that their encounter has.
    """
    moved = _places(encounters, events)
    asked = pd.DataFrame(
        {"encounter_id": rows["encounter_id"].astype("str").array, "time": rows["prediction_time"].array}
    )
    asked["row"] = np.arange(len(asked))
    met = pd.merge_asof(asked.sort_values("time", kind="stable"), moved, on="time", by="encounter_id")
    place = met.sort_values("row")["place"].to_numpy(dtype=np.float64)
    said = encounters.set_index(encounters["encounter_id"].astype("str"))["encounter_class"].fillna("")
    named = [
        CLASSES.get(int(p), "ward") if p == p else c
        for p, c in zip(place, said.loc[asked["encounter_id"]], strict=True)
    ]
    return pd.Series(named, index=rows.index, dtype=object)


def _places(encounters: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    """Moves by the time they were known; of several at one instant the arrival comes last, and so counts."""
    told = events[(events["status"] != "deleted") & events["encounter_id"].isin(encounters["encounter_id"])]
    located = told[(told["concept"] == "location") & told["numeric_value"].notna()]
    arrived = encounters[encounters["icu_admission_time"].notna()]
    parts = [
        (told[told["concept"].isin(ENDS)], LEFT, 0),
        (told[told["concept"] == "icu_discharge"], WARD_LOCATION, 1),
        (located, located["numeric_value"], 2),
    ]
    moves = [
        pd.DataFrame(
            {
                "encounter_id": part["encounter_id"].astype("str").array,
                "time": part[["time", "available_time"]].max(axis=1).array,
                "place": np.broadcast_to(np.asarray(place, dtype=np.float64), len(part)),
                "turn": np.where(np.broadcast_to(place == LEFT, len(part)), 0, turn),
            }
        )
        for part, place, turn in parts
    ]
    icu = {
        "encounter_id": arrived["encounter_id"].astype("str").array,
        "time": arrived["icu_admission_time"].array,
    }
    moves.append(pd.DataFrame(icu | {"place": float(ICU_LOCATION), "turn": 3}))
    table = pd.concat([m for m in moves if len(m)] or moves, ignore_index=True).dropna(subset=["time"])
    return table.astype({"time": UTC_US}).sort_values(["time", "turn"], kind="stable")[
        ["encounter_id", "time", "place"]
    ]


def _moves(encounters: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    """Moves with ``inside`` an ICU or not, in order; at one instant a discharge comes before an arrival."""
    told = events[events["status"] != "deleted"]
    located = told[(told["concept"] == "location") & told["numeric_value"].notna()]
    arrived = encounters[encounters["icu_admission_time"].notna()]
    out = told[told["concept"].isin(["icu_discharge", *ENDS])]
    out = out[out["encounter_id"].isin(encounters["encounter_id"])]
    located = located[located["encounter_id"].isin(encounters["encounter_id"])]
    table = pd.concat(
        [
            _move(out["encounter_id"], out["time"], False),
            _move(located["encounter_id"], located["time"], located["numeric_value"] == ICU_LOCATION),
            _move(arrived["encounter_id"], arrived["icu_admission_time"], True),
        ],
        ignore_index=True,
    )
    return table.sort_values(["encounter_id", "time", "inside"], kind="stable", ignore_index=True)


def _move(who: pd.Series, time: pd.Series, inside: pd.Series | bool) -> pd.DataFrame:
    flags = np.broadcast_to(np.asarray(inside, dtype=bool), len(who))
    return pd.DataFrame({"encounter_id": who.astype("str").array, "time": time.array, "inside": flags})


def _of(who: pd.Index, times: pd.Series) -> pd.Series:
    """The time of each encounter, NaT where there is none, with index 0..n-1."""
    plain = pd.Series(times.array, index=times.index.astype("str"), dtype=UTC_US)
    return plain.reindex(who).reset_index(drop=True)


def _start(spans: pd.DataFrame, since: Start) -> pd.Series:
    if since not in ("hospital", "icu"):
        raise SpecError(f"A stay is measured since 'hospital' or 'icu', got {since!r}.")
    return spans["start_time"] if since == "hospital" else spans["icu_time"]


def _hours(length: timedelta) -> str:
    return f"{length / timedelta(hours=1):g}"


def _check(encounters: pd.DataFrame, events: pd.DataFrame) -> None:
    times = ("hospital_admission_time", "icu_admission_time")
    needed = (
        (encounters, "Encounter", ("encounter_id", "subject_id", "age_years", *times)),
        (events, "Event", ("encounter_id", "concept", "time", "status", "numeric_value")),
    )
    for table, name, columns in needed:
        missing = [c for c in columns if c not in table.columns]
        if missing:
            raise DataError(
                f"{name} table lacks {', '.join(missing)}. See features/events.py for its columns."
            )
    for table, column in (*((encounters, c) for c in times), (events, "time")):
        if table[column].dtype != UTC_US:
            raise DataError(
                f"Column {column!r} is {table[column].dtype}, expected {UTC_US}. Read it with features.clock.to_utc."
            )
    twice = int(encounters["encounter_id"].duplicated().sum())
    if twice:
        raise DataError(f"{twice:,} encounters stand twice. Give one row an encounter.")
