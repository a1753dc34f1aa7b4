"""What an extract of a site holds of the concepts that a feature set reads: how much, how often, how soon.

Counted batch by batch and added up, so an extract of any size fits in memory: :func:`tally` one batch of whole
encounters (a shard of an archive), add the tallies, and ask :func:`coverage` once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clean import UNMAPPED
from features.clock import HOUR_US, UTC_US
from features.concepts import loader
from features.featureset import FeatureSet

VERDICTS: Final = ("ok", "sparse", "absent")
FEW: Final = 0.2
"""Share of encounters below which a concept is sparse, where nobody says what is usual."""
LEAST: Final = 0.5
"""Of the usual share of encounters, how much must be there."""
CANDIDATES: Final = 3
"""Unmapped codes named beside a concept."""

STEPS_PER_DECADE: Final = 32
_FIRST_H: Final = 1 / 60
_BINS: Final = STEPS_PER_DECADE * 5
"""Widths of time between a minute and 1,700 hours, each 7.5 % wider than the last; outer ones catch the rest."""


@dataclass(frozen=True)
class Tally:
    """Counts of some whole encounters, to be added to those of others.

    Attributes
    ----------
    encounters : int
        All encounters, whether or not anything is known of them.
    concepts : DataFrame, indexed by concept
        ``events``, ``encounters`` with any, ``first`` and ``last`` time, and ``by_policy``: events that became
        available exactly when the declared policy would say, so that the source may not know better.
    gaps : int64 array of shape (n_concepts, n_bins)
        Times between neighbouring events of an encounter, by width.
    """

    encounters: int
    concepts: pd.DataFrame
    gaps: npt.NDArray[np.int64]

    def __add__(self, other: Tally) -> Tally:
        """Both together; the encounters of one must not be in the other."""
        names = self.concepts.index.union(other.concepts.index, sort=True)
        gaps = np.zeros((len(names), _BINS), np.int64)
        for part in (self, other):
            gaps[names.get_indexer(part.concepts.index)] += part.gaps
        # Not `concat`: an empty side would decide the dtypes.
        mine, theirs = (part.concepts.reindex(names) for part in (self, other))
        sums = {c: mine[c].fillna(0) + theirs[c].fillna(0) for c in ("events", "encounters", "by_policy")}
        counts = pd.DataFrame(sums).astype("int64")
        first = (
            mine["first"].where(~(theirs["first"] < mine["first"]), theirs["first"]).fillna(theirs["first"])
        )
        last = mine["last"].where(~(theirs["last"] > mine["last"]), theirs["last"]).fillna(theirs["last"])
        both = counts.assign(first=first.astype(UTC_US), last=last.astype(UTC_US))
        return Tally(self.encounters + other.encounters, both[list(self.concepts.columns)], gaps)


def nothing() -> Tally:
    """The tally of no encounter, to begin a sum with."""
    kinds: dict[str, Any] = {
        "events": "int64",
        "encounters": "int64",
        "by_policy": "int64",
        "first": UTC_US,
        "last": UTC_US,
    }
    empty = pd.DataFrame({c: pd.Series(dtype=k) for c, k in kinds.items()}, index=pd.Index([], dtype="str"))
    return Tally(0, empty, np.zeros((0, _BINS), np.int64))


def tally(events: pd.DataFrame, encounters: int) -> Tally:
    """Count one batch.

    Parameters
    ----------
    events : DataFrame of cleaned canonical events, all those of some encounters, in any order
        Rows without a concept and rows with status ``deleted`` are not counted.
    encounters : int
        How many encounters the batch describes, those without any event among them.
    """
    used = events[events["concept"].notna() & (events["status"] != "deleted")]
    if not len(used):
        return nothing() + Tally(encounters, nothing().concepts, nothing().gaps)
    kinds = used["concept"].astype("category").cat.remove_unused_categories().cat
    concept, names = kinds.codes.to_numpy().astype(np.int64), [str(c) for c in kinds.categories]
    stay, _ = pd.factorize(used["encounter_id"])
    time = used["time"].array.asi8
    delay = np.array([loader.concepts()[n].available_after_min * 60e6 for n in names])[concept]
    policy = used["available_time"].array.asi8 - time == delay
    order = np.lexsort((time, stay, concept))
    c, s, t = concept[order], stay[order], time[order]
    same = (c[1:] == c[:-1]) & (s[1:] == s[:-1])
    begins = np.flatnonzero(np.append(True, ~same))
    gaps = np.zeros((len(names), _BINS), np.int64)
    np.add.at(gaps, (c[1:][same], _bin(np.diff(t)[same])), 1)
    least, most = np.full(len(names), np.iinfo(np.int64).max), np.full(len(names), np.iinfo(np.int64).min)
    np.minimum.at(least, concept, time)
    np.maximum.at(most, concept, time)
    columns: dict[str, Any] = {
        "events": np.bincount(concept, minlength=len(names)),
        "encounters": np.bincount(c[begins], minlength=len(names)),
        "by_policy": np.bincount(concept[policy], minlength=len(names)),
        "first": _instants(least),
        "last": _instants(most),
    }
    return Tally(encounters, pd.DataFrame(columns, index=pd.Index(names, dtype="str")), gaps)


def _bin(micros: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    hours = np.maximum(micros / HOUR_US, _FIRST_H)
    steps = np.log10(hours / _FIRST_H) * STEPS_PER_DECADE
    widths: npt.NDArray[np.int64] = np.minimum(steps, _BINS - 1).astype(np.int64)
    return widths


def _instants(micros: npt.NDArray[np.int64]) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(micros.view("datetime64[us]"), tz="UTC")


def _median_h(gaps: npt.NDArray[np.int64]) -> float:
    """Median width, the middle of its bin on the logarithmic scale; NaN without any."""
    total = int(gaps.sum())
    if not total:
        return float("nan")
    middle = int(np.searchsorted(gaps.cumsum(), (total + 1) // 2))
    return float(_FIRST_H * 10 ** ((middle + 0.5) / STEPS_PER_DECADE))


def needed(features: FeatureSet) -> dict[str, int]:
    """How many features of a set read each concept."""
    counts = Counter(c for name in features.names for c in dict.fromkeys(features.concept_of(name)))
    return {concept: counts[concept] for concept in features.concepts}


def unmapped(by_code: Mapping[tuple[str, str], Mapping[str, int]]) -> pd.DataFrame:
    """The codes of an extract that no table maps, most frequent first.

    Parameters
    ----------
    by_code : as ``clean.Account.by_code``, or those of many batches added up

    Returns
    -------
    DataFrame with ``code``, ``events`` and ``reason``: ``unknown_concept``, or why left_out.csv leaves it out.
    """
    rows = []
    for (code, concept), counts in by_code.items():
        events = sum(counts.get(reason, 0) for reason in UNMAPPED)
        if events and not concept:
            known = loader.left_out().get(code)
            rows.append((code, events, known.reason if known else "unknown_concept"))
    table = pd.DataFrame(rows, columns=["code", "events", "reason"])
    return table.sort_values(["events", "code"], ascending=[False, True], ignore_index=True)


def coverage(
    found: Tally,
    wanted: Mapping[str, int],
    by_code: Mapping[tuple[str, str], Mapping[str, int]] | None = None,
    usual: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Compare what an extract holds with what a feature set reads.

    Parameters
    ----------
    found : Tally of the whole extract
    wanted : how many features read each concept, as :func:`needed` says
    by_code : the extract's account by code; names candidates for what is absent or sparse
    usual : share of encounters, 0 to 1, that had the concept where the model was trained
        Where given, a concept is sparse below ``LEAST`` of it; else below ``FEW``.

    Returns
    -------
    DataFrame, one row a concept, worst first and then by the features that need it
        ``concept, features, events, encounters, share`` (of all encounters, 0 to 1), ``first, last``,
        ``hours_between`` (median, NaN when never twice), ``by_policy`` (share of events available exactly when the
        declared policy says), ``verdict`` (one of ``VERDICTS``), ``reason`` and ``candidates`` (unmapped codes whose
        name resembles the concept's, with counts).
    """
    table = found.concepts.reindex(pd.Index(list(wanted), dtype="str")).astype(
        {"first": UTC_US, "last": UTC_US}
    )
    place = found.concepts.index.get_indexer(table.index)
    events = table["events"].fillna(0).astype("int64").to_numpy()
    with_any = table["encounters"].fillna(0).astype("int64").to_numpy()
    share = with_any / max(found.encounters, 1)
    said = [_verdict(c, n, s, usual) for c, n, s in zip(wanted, events.tolist(), share.tolist(), strict=True)]
    lost = unmapped(by_code or {})
    made = pd.DataFrame(
        {
            "concept": list(wanted),
            "features": list(wanted.values()),
            "events": events,
            "encounters": with_any,
            "share": share,
            "first": table["first"].array,
            "last": table["last"].array,
            "hours_between": [_median_h(found.gaps[k]) if k >= 0 else float("nan") for k in place],
            "by_policy": table["by_policy"].fillna(0).to_numpy() / np.maximum(events, 1),
            "verdict": [v for v, _ in said],
            "reason": [r for _, r in said],
            "candidates": [
                _candidates(c, lost) if v != "ok" else "" for c, (v, _) in zip(wanted, said, strict=True)
            ],
        }
    )
    rank = -made["verdict"].map(VERDICTS.index)
    return made.assign(_rank=rank).sort_values(
        ["_rank", "features", "concept"], ascending=[True, False, True], ignore_index=True
    ).drop(columns="_rank")  # fmt: skip


def _verdict(concept: str, events: int, share: float, usual: Mapping[str, float] | None) -> tuple[str, str]:
    """Verdict and its reason in words."""
    if not events:
        return (
            "absent",
            "No event of this concept: every feature of it is missing. Map its codes, or retrain without.",
        )
    known = (usual or {}).get(concept)
    least = FEW if known is None else LEAST * known
    if share >= least:
        return "ok", ""
    there = f"{share:.0%} of encounters have it"
    if known is None:
        return "sparse", f"{there}, fewer than {FEW:.0%}."
    return "sparse", f"{there}, against {known:.0%} where the model was trained."


def _candidates(concept: str, lost: pd.DataFrame) -> str:
    """Unmapped codes that share a word with the concept, most frequent first, with their counts."""
    words = {w for w in _words(f"{concept} {loader.concepts()[concept].label}") if len(w) > 3}
    alike = lost[np.array([bool(words & set(_words(code))) for code in lost["code"]], dtype=bool)].head(
        CANDIDATES
    )
    return ", ".join(f"{code} ({n:,})" for code, n in zip(alike["code"], alike["events"], strict=True))


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()
