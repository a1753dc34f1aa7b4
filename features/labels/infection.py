"""When infection was suspected: antibiotics and cultures close together, after Seymour et al., JAMA 2016;315:762.

A culture followed by an antibiotic within 72 hours, or an antibiotic followed by a culture within 24 hours, dated by
the earlier of the two. What the paper leaves open, and what other codes chose, are fields of :class:`Suspicion`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal, get_args

import numpy as np
import pandas as pd

from features.clock import UTC_US, micros
from features.cohorts import ENDS
from features.errors import DataError, SpecError

Signs = Literal["both", "either", "antibiotic", "culture"]
Cultures = Literal["any", "blood", "positive"]
Pairing = Literal["each_antibiotic", "every_pair"]
Dating = Literal["earlier", "antibiotic", "culture"]
COLUMNS: Final = ("encounter_id", "suspicion_time", "antibiotic_time", "culture_time", "rule")
_CULTURES: Final = {
    "any": ("culture", "blood_culture"), "blood": ("blood_culture",), "positive": ("positive_culture",),
}  # fmt: skip


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a choice that is none, with the choices.

    Raises
    ------
    SpecError
    """
    if value not in choices:
        raise SpecError(f"{name} is {value!r}. Choose one of {', '.join(choices)}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """Every choice in "suspected infection". The defaults are Seymour 2016 as its authors' own code reads it.

    Attributes
    ----------
    signs
        ``both``: antibiotic and culture (Seymour). ``antibiotic`` or ``culture``: that alone suffices, for sources
        without the other. ``either``: any of them, each at its own time. (ricu: ``si_mode``.)
    culture_to_antibiotic, antibiotic_to_culture
        How long after the first of the two the second may come, that instant included: 72 h and 24 h.
    same_instant
        Whether an antibiotic and a culture at one instant belong together. mimic-code compares strictly and says no.
    pairing
        ``each_antibiotic``: one suspicion an antibiotic, with its earliest culture of the 72 h before, else the
        earliest of the 24 h after (mimic-code). ``every_pair``: one for each culture with the antibiotic next after
        it, and one for each antibiotic with the culture next after it (ricu).
    dated
        ``earlier`` of the two (Seymour), or always the ``antibiotic`` or the ``culture``.
    cultures
        ``any`` body fluid (Seymour), ``blood`` only, or ``positive`` ones only, which the clinician did not know yet.
    antibiotic_count, count_within
        So many antibiotic events, the first included, within so long from it. 1 is Seymour; ricu suggests 2 or more
        where cultures are unknown.
    antibiotic_course, longest_gap
        The antibiotic must begin a course at least so long, no two events of it further apart than ``longest_gap``.
        0 is Seymour; PhysioNet 2019 asked for 72 hours. A course looks forward by construction, and needs doses as
        given: a source of orders (prescriptions of MIMIC) tells only where each begins, and hardly any course is found.
    within
        Whether pairs form inside an ``encounter`` or across all of a ``subject``'s (mimic-code); the encounter is then
        the antibiotic's, and the culture's where a culture stands alone. A subject with encounters that overlap in
        time, as in a source that dates every stay from its own start (eICU), has no common clock: pairs of such a
        subject form inside each encounter all the same.
    """

    signs: Signs = "both"
    culture_to_antibiotic: timedelta = timedelta(hours=72)
    antibiotic_to_culture: timedelta = timedelta(hours=24)
    same_instant: bool = True
    pairing: Pairing = "each_antibiotic"
    dated: Dating = "earlier"
    cultures: Cultures = "any"
    antibiotic_count: int = 1
    count_within: timedelta = timedelta(hours=24)
    antibiotic_course: timedelta = timedelta(0)
    longest_gap: timedelta = timedelta(hours=24)
    within: Literal["encounter", "subject"] = "encounter"

    def __post_init__(self) -> None:
        one_of("signs", self.signs, get_args(Signs))
        one_of("pairing", self.pairing, get_args(Pairing))
        one_of("dated", self.dated, get_args(Dating))
        one_of("cultures", self.cultures, tuple(_CULTURES))
        one_of("within", self.within, ("encounter", "subject"))
        if self.antibiotic_count < 1:
            raise SpecError(f"antibiotic_count must be 1 or more, got {self.antibiotic_count}.")
        for name in (
            "culture_to_antibiotic",
            "antibiotic_to_culture",
            "count_within",
            "antibiotic_course",
            "longest_gap",
        ):
            if getattr(self, name) < timedelta(0):
                raise SpecError(f"{name} must not be negative, got {getattr(self, name)}.")


SEYMOUR: Final = Suspicion()


def suspected_infection(
    events: pd.DataFrame, how: Suspicion = SEYMOUR, encounters: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Every suspicion of infection.

    Parameters
    ----------
    events : DataFrame of cleaned canonical events
        Read are ``antibiotic``, ``culture``, ``blood_culture`` and ``positive_culture``, at their ``time``. An event
        of which only the date is known counts at the start of that day, so a pair at the edge may be missed or won.
    how : Suspicion
    encounters : DataFrame with ``events.ENCOUNTER_COLUMNS``, optional
        Tells, for ``within="subject"``, when encounters began; one that is not there began with its first event. Each
        ends with its first discharge or death, else with its last event.

    Returns
    -------
    DataFrame with ``encounter_id``; ``suspicion_time``; ``antibiotic_time`` and ``culture_time`` (NaT where the rule
    needs none); ``rule``: ``culture_first``, ``antibiotic_first``, ``antibiotic`` or ``culture``. Sorted by encounter,
    suspicion, antibiotic and culture time, no row twice.

    Raises
    ------
    DataError
        A column is missing.
    """
    _check(events)
    if how.within == "subject":
        events = _set_apart(events, encounters)
    antibiotics = _antibiotics(events, how)
    cultures = _dated(events, _CULTURES[how.cultures], "culture_time", how)
    found = [_alone(antibiotics, "antibiotic")] if how.signs in ("antibiotic", "either") else []
    if how.signs in ("culture", "either"):
        found.append(_alone(cultures, "culture"))
    if how.signs == "both":
        found = (
            _each(antibiotics, cultures, how)
            if how.pairing == "each_antibiotic"
            else _pairs(antibiotics, cultures, how)
        )
    table = pd.concat(found, ignore_index=True)
    table["suspicion_time"] = _date(table, how)
    by = ["encounter_id", "suspicion_time", "antibiotic_time", "culture_time"]
    return table.sort_values(by, kind="stable")[list(COLUMNS)].drop_duplicates(ignore_index=True)


def _check(events: pd.DataFrame) -> None:
    missing = [
        c for c in ("subject_id", "encounter_id", "concept", "time", "status") if c not in events.columns
    ]
    if missing:
        raise DataError(
            f"Event table lacks {', '.join(missing)}. See features/events.py for what each column means."
        )


def _set_apart(events: pd.DataFrame, encounters: pd.DataFrame | None) -> pd.DataFrame:
    """The facts of suspicion, each encounter of subjects whose encounters overlap being a subject of its own."""
    spans = _spans(events, encounters).sort_values(["subject", "begin", "end"], kind="stable")
    ends = pd.Series(micros(spans["end"]), index=spans.index)
    before = ends.groupby(spans["subject"]).cummax().groupby(spans["subject"]).shift()
    overlapping = set(spans.loc[micros(spans["begin"]) < before, "subject"])
    facts = events[events["concept"].isin(["antibiotic", *sum(_CULTURES.values(), ())])]
    subject = facts["subject_id"].astype("str")
    own = np.where(subject.isin(overlapping), subject + "//" + facts["encounter_id"].astype("str"), subject)
    return facts.assign(subject_id=pd.array(own, dtype="str"))


def _spans(events: pd.DataFrame, encounters: pd.DataFrame | None) -> pd.DataFrame:
    """``subject``, ``begin`` and ``end`` of every encounter, indexed by it."""
    columns = ["encounter_id", "subject_id", "concept", "time"]
    present = events.loc[(events["status"] != "deleted") & events["time"].notna(), columns]
    spans = present.groupby("encounter_id", observed=True).agg(
        subject=("subject_id", "first"), begin=("time", "min"), end=("time", "max")
    )
    ended = present[present["concept"].isin(ENDS)].groupby("encounter_id", observed=True)["time"].min()
    spans["end"] = ended.reindex(spans.index).fillna(spans["end"]).astype(UTC_US)
    spans = spans.astype({"subject": "str"}).set_axis(spans.index.astype("str"))
    if encounters is not None:
        came = encounters["hospital_admission_time"].fillna(encounters["icu_admission_time"])
        came.index = pd.Index(encounters["encounter_id"].astype("str"))
        spans["begin"] = came.reindex(spans.index).fillna(spans["begin"]).astype(UTC_US)
    return spans


def _dated(events: pd.DataFrame, concepts: tuple[str, ...], name: str, how: Suspicion) -> pd.DataFrame:
    """``key`` (encounter or subject), ``encounter_id`` and the instants of some concepts, each once, sorted by time."""
    rows = events[events["concept"].isin(concepts) & (events["status"] != "deleted")]
    key = rows["encounter_id"] if how.within == "encounter" else rows["subject_id"]
    table = pd.DataFrame(
        {
            "key": key.astype("str").array,
            "encounter_id": rows["encounter_id"].astype("str").array,
            name: pd.Series(rows["time"].array, dtype=UTC_US).array,
        }
    )
    return table.drop_duplicates().sort_values([name, "encounter_id"], kind="stable", ignore_index=True)


def _antibiotics(events: pd.DataFrame, how: Suspicion) -> pd.DataFrame:
    """Antibiotic instants that begin enough doses and a course long enough."""
    table = _dated(events, ("antibiotic",), "antibiotic_time", how)
    if how.antibiotic_count == 1 and how.antibiotic_course == timedelta(0):
        return table
    doses = events[(events["concept"] == "antibiotic") & (events["status"] != "deleted")]
    key = doses["encounter_id"] if how.within == "encounter" else doses["subject_id"]
    given = {k: np.sort(micros(t)) for k, t in doses.groupby(key.astype("str"), observed=True)["time"]}
    enough = [
        _begins(given[k], t, how) for k, t in zip(table["key"], micros(table["antibiotic_time"]), strict=True)
    ]
    return table[np.array(enough, dtype=bool)].reset_index(drop=True)


def _begins(given: np.ndarray, start: int, how: Suspicion) -> bool:
    us = timedelta(microseconds=1)
    first = int(np.searchsorted(given, start))
    counted = int(np.searchsorted(given, start + how.count_within // us, side="right")) - first
    later = given[first:]
    breaks = np.flatnonzero(np.diff(later) > how.longest_gap // us)
    ended = later[breaks[0]] if breaks.size else later[-1]
    return bool(counted >= how.antibiotic_count and ended - start >= how.antibiotic_course // us)


def _alone(table: pd.DataFrame, rule: str) -> pd.DataFrame:
    alone = table.assign(rule=rule)
    alone["culture_time" if rule == "antibiotic" else "antibiotic_time"] = pd.Series(
        pd.NaT, index=table.index, dtype=UTC_US
    )
    return alone


def _each(antibiotics: pd.DataFrame, cultures: pd.DataFrame, how: Suspicion) -> list[pd.DataFrame]:
    """One suspicion an antibiotic: its earliest culture before, else its earliest after."""
    times = antibiotics["antibiotic_time"]
    before = _next_culture(antibiotics, cultures, times - how.culture_to_antibiotic, strict=False)
    preceded = (before <= times) if how.same_instant else (before < times)
    after = _next_culture(antibiotics, cultures, times, strict=True)
    followed = ~preceded & (after <= times + how.antibiotic_to_culture)
    return [
        antibiotics[preceded].assign(culture_time=before[preceded], rule="culture_first"),
        antibiotics[followed].assign(culture_time=after[followed], rule="antibiotic_first"),
    ]


def _next_culture(
    antibiotics: pd.DataFrame, cultures: pd.DataFrame, since: pd.Series, strict: bool
) -> pd.Series:
    """The earliest culture of the same key at or after ``since`` (after it, if strict); NaT where there is none."""
    left = pd.DataFrame({"key": antibiotics["key"], "since": since})
    right = cultures[["key", "culture_time"]].assign(since=cultures["culture_time"])
    return _following(left, right, strict)["culture_time"].astype(UTC_US)


def _following(left: pd.DataFrame, right: pd.DataFrame, strict: bool) -> pd.DataFrame:
    """Each row of ``left`` with the row of ``right`` of the same ``key`` that comes next from its ``since`` on."""
    return pd.merge_asof(
        left, right, on="since", by="key", direction="forward", allow_exact_matches=not strict
    )


def _pairs(antibiotics: pd.DataFrame, cultures: pd.DataFrame, how: Suspicion) -> list[pd.DataFrame]:
    """One suspicion for each culture with the next antibiotic, and for each antibiotic with the next culture."""
    doses = antibiotics.assign(since=antibiotics["antibiotic_time"])
    drawn = cultures[["key", "culture_time"]].assign(since=cultures["culture_time"])
    first = _following(drawn, doses, strict=not how.same_instant)
    first = first[first["antibiotic_time"] - first["culture_time"] <= how.culture_to_antibiotic]
    second = _following(doses, drawn, strict=not how.same_instant)
    second = second[second["culture_time"] - second["antibiotic_time"] <= how.antibiotic_to_culture]
    return [first.assign(rule="culture_first"), second.assign(rule="antibiotic_first")]


def _date(table: pd.DataFrame, how: Suspicion) -> pd.Series:
    antibiotic, culture = table["antibiotic_time"], table["culture_time"]
    if how.signs != "both" or how.dated == "earlier":
        return pd.concat([antibiotic, culture], axis=1).min(axis=1).astype(UTC_US)
    return antibiotic if how.dated == "antibiotic" else culture
