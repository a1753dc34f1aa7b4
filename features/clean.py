"""Code to concept, unit to canonical unit, plausibility; with an account of everything set aside.

What a row becomes depends on that row and the tables alone, so one event at the bedside and ten million from an archive
are cleaned alike. Facts that contradict each other need one another to be judged, so :func:`contradictions` is a step
of its own, for whoever holds whole instants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import UTC_US
from features.concepts import loader
from features.errors import DataError

REASONS: Final = (
    "unknown_concept", "left_out", "unit_unknown", "not_a_number", "sentinel", "misfiled", "impossible_value",
)  # fmt: skip
_SAID: Final = pd.Index(REASONS, dtype="str")
UNMAPPED: Final = ("unknown_concept", "left_out")
CONTRADICTION: Final = "contradiction"

REMEDIES: Final[dict[str, str]] = {
    "unknown_concept": "code: in no table of concepts/codes. Add a row, or send the concept itself: WARDCAST//concept.",
    "left_out": "code: known and not used, left_out.csv says why. Send the fact, not its copy or an alarm limit.",
    "unit_unknown": "unit: no conversion in units.csv for this concept. Send UCUM, or add a conversion row.",
    "not_a_number": "value: not a finite number. Send a number, or a word listed in texts.csv.",
    "sentinel": "value: a number that stands for no value (sentinels.csv). Send no value.",
    "misfiled": "value: can only belong to another concept (misfiled.csv). Send it under that one's code.",
    "impossible_value": "value: outside the range in concepts.csv. Check the value and its unit.",
    CONTRADICTION: "value: contradicts another fact of the same instant (orders.csv). Check both.",
}
"""The field at fault and the cure, by reason."""


@dataclass(frozen=True)
class Account:
    """What cleaning did.

    ``set_aside`` has one row for each event that cannot be used: ``position`` (row number in the input) and
    ``reason``. ``mapped`` counts events with a concept, ``converted`` those whose unit was changed, ``repaired`` those
    read by a rule of repairs.csv, ``reasons`` the events set aside by reason. ``by_code`` says the same of each
    (code, concept): ``read``, ``converted``, ``repaired``, and events set aside by reason, each where it is not zero;
    the concept is empty for a code that is not mapped. Rows kept without a concept stand among the set aside too.
    """

    read: int
    mapped: int
    converted: int
    repaired: int
    set_aside: pd.DataFrame
    reasons: dict[str, int]
    by_code: dict[tuple[str, str], dict[str, int]]

    def table(self) -> pd.DataFrame:
        """``by_code`` as a table, most read first: code, concept, read, converted, repaired and every reason."""
        counts = ["read", "converted", "repaired", *REASONS]
        rows = [[*key, *(n.get(c, 0) for c in counts)] for key, n in self.by_code.items()]
        made = pd.DataFrame(rows, columns=["code", "concept", *counts])
        return made.sort_values(["read", "code"], ascending=[False, True], ignore_index=True)


@dataclass(frozen=True, slots=True)
class _Pair:
    """What the tables say of one (code, unit, the source's concept) combination.

    ``fault`` is the position in ``REASONS`` of what is wrong with any such row, -1 for nothing. ``misfiled`` is a
    range of canonical values. ``never`` are raw values that mean none, ``marks`` such that do where impossible.
    """

    code: str
    concept: int
    fault: int
    factor: float
    offset: float
    low: float
    high: float
    repair: tuple[float, float, float, float]
    misfiled: tuple[float, float]
    never: frozenset[float]
    marks: frozenset[float]


_NOTHING: Final = (np.inf, -np.inf, 1.0, 0.0)
_NOWHERE: Final = (np.inf, -np.inf)
_NONE: Final[frozenset[float]] = frozenset()
Codes = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


def clean(events: pd.DataFrame, keep_unmapped: bool = False) -> tuple[pd.DataFrame, Account]:
    """Map, convert and check events.

    Parameters
    ----------
    events : DataFrame of canonical events
        ``code`` decides the concept; where the code is unknown, a known ``concept`` that the source filled in is kept.
        An empty unit means the unit in codes/*.csv. String columns may be categoricals.
    keep_unmapped : bool
        Keep rows that no table maps, with an empty concept, their value and unit as the source wrote them. They are
        counted among the set aside all the same, since nothing can use them yet.

    Returns
    -------
    events : DataFrame
        The usable rows in their order, with index 0..n-1; ``concept`` and ``unit`` (canonical) as categoricals over all
        concepts and units, ``numeric_value`` canonical. Rows with status ``deleted`` need no value.
    account : Account
        Counts, and the rows set aside with their reasons. Nothing is dropped in silence.

    Raises
    ------
    DataError
        A column is missing, or ``numeric_value`` holds something other than numbers.
    """
    _check(events)
    pair, pairs = _pairs(events)
    concept = np.array([p.concept for p in pairs], dtype=np.int64)[pair]
    raw = _spoken(events, events["numeric_value"].to_numpy(dtype=np.float64, na_value=np.nan), concept)
    value, repaired = _values(raw, pair, pairs)
    reason = _reasons(events, raw, value, pair, pairs)
    account = _account(reason, repaired, pair, pairs)
    usable = reason < 0
    if keep_unmapped:
        usable |= np.isin(reason, [REASONS.index(r) for r in UNMAPPED]) & ~np.isinf(raw)
    keep = np.flatnonzero(usable)
    kept = events if keep.size == reason.size else events.take(keep)
    names = _vocabulary()[0]
    columns: dict[str, Any] = {
        "concept": pd.Categorical.from_codes(concept[keep], categories=names),
        "numeric_value": value[keep],
        "unit": _units(kept["unit"], concept[keep]),
    }
    return kept.reset_index(drop=True).assign(**columns), account


def clean_one(code: str, unit: str, value: float | None, text: str | None) -> tuple[int, float, str | None]:
    """What :func:`clean` makes of one event that is not deleted and whose source names no concept of its own.

    Returns
    -------
    position of the concept in concepts.csv (-1: unmapped), canonical value, and why it is set aside, if it is.
    """
    known = _pair(code.strip(), unit.strip(), "")
    raw = np.nan if value is None else value
    if raw != raw and known.concept >= 0 and text is not None:
        raw = loader.texts().get((_vocabulary()[0][known.concept], text.strip().lower()), np.nan)
    low, high, factor, offset = known.repair
    if not low <= raw <= high:
        factor, offset = known.factor, known.offset
    canonical = raw * factor + offset
    return known.concept, canonical, _fault_of(known, raw, canonical)


def clean_numbers(
    kinds: Sequence[tuple[str, str]], kind: Codes, raw: Values
) -> tuple[Codes, Values, npt.NDArray[np.bool_]]:
    """What :func:`clean_one` makes of many events that say a number each, as arrays.

    Parameters
    ----------
    kinds : code and unit of each kind of event there is
    kind : position in ``kinds``, shape (n,)
    raw : values as sent, NaN where none was, shape (n,)

    Returns
    -------
    position of the concept (-1: unmapped) and canonical value, as of :func:`clean_one`, and whether that is all there
    is to say; where it is False something may be wrong, and :func:`clean_one` knows what. Each of shape (n,).
    """
    pairs = [_pair(code.strip(), unit.strip(), "") for code, unit in kinds]
    value = _values(raw, kind, pairs)[0]
    plain = np.array([p.fault < 0 and not p.never for p in pairs], dtype=np.bool_)
    low, high = np.array([p.low for p in pairs]), np.array([p.high for p in pairs])
    inside = (value >= low[kind]) & (value <= high[kind]) & np.isfinite(value)
    return np.array([p.concept for p in pairs], dtype=np.int64)[kind], value, inside & plain[kind]


def _fault_of(known: _Pair, raw: float, value: float) -> str | None:
    if known.fault >= 0:
        return REASONS[known.fault]
    if not math.isfinite(value):
        return "not_a_number"
    inside = known.low <= value <= known.high
    if raw in known.never or (not inside and raw in known.marks):
        return "sentinel"
    if inside:
        return None
    return "misfiled" if known.misfiled[0] <= value < known.misfiled[1] else "impossible_value"


def contradictions(events: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Set aside cleaned facts of one instant that cannot all be true: a mean pressure above the systolic one.

    Parameters
    ----------
    events : DataFrame of cleaned events
        Whole instants: all facts of an encounter with one ``time`` and one ``available_time``. Facts that became
        visible together are judged together, so a batch of any size and the bedside agree, whoever calls this.

    Returns
    -------
    events : DataFrame
        Without the facts that a row of orders.csv contradicts, index 0..n-1. Where several facts of a concept share an
        instant (cuff and catheter), only what no pairing of them could explain is contradictory: the lowest ``lower``
        above the highest ``upper``. Rows with status ``deleted``, and rows without a concept, say nothing.
    set_aside : DataFrame
        ``position`` in the input and ``reason``, always ``contradiction``.

    Notes
    -----
    :func:`features.archive.write` applies this to whole subjects. A service that takes one message at a time cannot
    judge the message alone: a feature set with ``judge`` applies this to all events of the encounter so far. Since
    facts are judged with those of the same ``available_time`` only, what comes later changes nothing that was seen
    before; only a message that claims an ``available_time`` already scored can. Rows of PhysioNet 2019 as the released
    model was trained on them are not judged.
    """
    wrong = np.zeros(len(events), np.bool_)
    code, labels = _factorize(events["concept"])
    status, statuses = _factorize(events["status"])
    stands = np.array([s != "deleted" for s in statuses])[status]
    paired = {c for pair in loader.orders() for c in pair}
    rows = np.flatnonzero(np.array([c in paired for c in labels])[code] & stands)
    if rows.size:
        facts = events[["encounter_id", "time", "available_time", "numeric_value"]].take(rows)
        wrong[rows] = _contradictory(facts, np.array(labels, dtype=object)[code[rows]])
    aside = np.flatnonzero(wrong)
    kept = events.take(np.flatnonzero(~wrong)) if aside.size else events
    return kept.reset_index(drop=True), pd.DataFrame({"position": aside, "reason": CONTRADICTION})


def _contradictory(events: pd.DataFrame, concept: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which of these facts some order contradicts at their instant."""
    place = _factorize(events["encounter_id"])[0]
    for column in ("time", "available_time"):
        instant, instants = pd.factorize(events[column].array.asi8)
        place = pd.factorize(place * len(instants) + instant)[0]
    value = events["numeric_value"].to_numpy(dtype=np.float64)
    wrong = np.zeros(len(events), np.bool_)
    for lower, upper in loader.orders():
        least, most = np.full(place.max() + 1, np.inf), np.full(place.max() + 1, -np.inf)
        np.minimum.at(least, place[concept == lower], value[concept == lower])
        np.maximum.at(most, place[concept == upper], value[concept == upper])
        broken = (least > most) & np.isfinite(least) & np.isfinite(most)
        wrong |= broken[place] & ((concept == lower) | (concept == upper))
    return wrong


def fill_available_time(events: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Apply the declared policy to cleaned events whose source does not say when they became visible.

    Returns
    -------
    events : DataFrame
        Where ``available_time`` was empty, it is ``time`` plus ``available_after_min`` of the concept. What the source
        said stays.
    filled : int
        How many were filled; the policy itself stands in the manifest of every feature set.
    """
    empty = events["available_time"].isna().to_numpy()
    if not empty.any():
        return events, 0
    code, labels = _factorize(events["concept"])
    known = loader.concepts()
    delay = np.array([known[c].available_after_min if c in known else 0.0 for c in labels])[code]
    policy = events["time"] + pd.Series(pd.to_timedelta(delay * 60e6, unit="us"), index=events.index)
    filled = events["available_time"].where(~empty, policy).astype(UTC_US)
    return events.assign(available_time=filled), int(empty.sum())


def _check(events: pd.DataFrame) -> None:
    missing = [
        c for c in ("code", "concept", "numeric_value", "text_value", "unit", "status") if c not in events
    ]
    if missing:
        raise DataError(
            f"Event table lacks {', '.join(missing)}. See features/events.py for what each column means."
        )
    if not pd.api.types.is_numeric_dtype(events["numeric_value"].dtype):
        raise DataError(
            f"Event column 'numeric_value' is {events['numeric_value'].dtype}, expected float64. "
            "Put numbers there and words in text_value."
        )


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[pd.Index, pd.Index]:
    """All concepts and all canonical units, the categories of every cleaned table."""
    table = loader.concepts()
    return pd.Index(list(table)), pd.Index(list(dict.fromkeys(c.unit for c in table.values())))


@lru_cache(maxsize=1)
def _unit_of() -> Codes:
    """Position of the canonical unit of each concept."""
    names, units = _vocabulary()
    return np.array([units.get_loc(loader.concepts()[n].unit) for n in names], dtype=np.int64)


def _factorize(series: pd.Series) -> tuple[Codes, list[str]]:
    """Codes (the last one = empty) and the strings they stand for, ended by the empty string."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        codes, labels = series.cat.codes.to_numpy().astype(np.int64), list(series.cat.categories)
    else:
        found, uniques = pd.factorize(series)
        codes, labels = np.asarray(found, dtype=np.int64), list(uniques)
    if codes.size and codes.min() < 0:
        codes = np.where(codes < 0, len(labels), codes)
    return codes, [str(label).strip() for label in labels] + [""]


def _pairs(events: pd.DataFrame) -> tuple[Codes, list[_Pair]]:
    """Which combination of code, unit and the source's concept each row has, and what the tables say of each."""
    code, codes = _factorize(events["code"])
    unit, units = _factorize(events["unit"])
    key = code * len(units) + unit
    unknown = np.array([c not in loader.codes() for c in codes])
    labels = [""]
    if unknown[code].any():
        concept, labels = _factorize(events["concept"])
        key = key * len(labels) + np.where(unknown[code], concept, len(labels) - 1)
    size = len(codes) * len(units) * len(labels)
    if size <= 4 * len(events) + 1024:
        present = np.flatnonzero(np.bincount(key, minlength=size))
        place = np.zeros(size, np.int64)
        place[present] = np.arange(present.size)
        pair = place[key]
    else:
        present, pair = np.unique(key, return_inverse=True)
    rest, given = np.divmod(present, len(labels))
    which, stated = np.divmod(rest, len(units))
    cells = zip(which.tolist(), stated.tolist(), given.tolist(), strict=True)
    return pair, [_pair(codes[c], units[u], labels[g]) for c, u, g in cells]


@lru_cache(maxsize=65_536)
def _pair(code: str, unit: str, given: str) -> _Pair:
    names = {c: k for k, c in enumerate(loader.concepts())}
    row = loader.codes().get(code)
    concept = row.concept if row else given
    if concept not in loader.concepts() or (code in loader.left_out() and not row):
        fault = REASONS.index("left_out" if code in loader.left_out() else "unknown_concept")
        return _Pair(code, -1, fault, 1.0, 0.0, -np.inf, np.inf, _NOTHING, _NOWHERE, _NONE, _NONE)
    about = loader.concepts()[concept]
    assumed = row.unit if row else about.unit
    known = loader.conversion(concept, unit or assumed)
    factor, offset = known or (1.0, 0.0)
    rule = loader.repair(concept, assumed, unit)
    repair = (rule.low, rule.high, rule.factor, rule.offset) if rule else _NOTHING
    other = loader.misfiled().get(concept)
    misfiled = (other.low, other.high) if other else _NOWHERE
    fault = -1 if known else REASONS.index("unit_unknown")
    system, _, local = code.partition("//")
    never, mark = (loader.sentinels().get(key, _NONE) for key in ((system, local), (system, "")))
    mark |= loader.sentinels().get(("", ""), _NONE)
    low, high = about.low, about.high
    return _Pair(code, names[concept], fault, factor, offset, low, high, repair, misfiled, never, mark)


def _values(raw: Values, pair: Codes, pairs: list[_Pair]) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Canonical values, and which of them a repair rule read."""
    rule = np.array([p.repair for p in pairs], dtype=np.float64).reshape(-1, 4)
    repaired = np.zeros(raw.size, np.bool_)
    if (rule[:, 0] <= rule[:, 1]).any():
        repaired = (raw >= rule[pair, 0]) & (raw <= rule[pair, 1])
    factor, offset = np.array([p.factor for p in pairs]), np.array([p.offset for p in pairs])
    value = raw * factor[pair] + offset[pair] if ((factor != 1) | (offset != 0)).any() else raw.copy()
    if repaired.any():
        value[repaired] = raw[repaired] * rule[pair[repaired], 2] + rule[pair[repaired], 3]
    return value, repaired


def _spoken(events: pd.DataFrame, raw: Values, concept: Codes) -> Values:
    """Put numbers in place of words that texts.csv knows, where a row has a word and no number."""
    silent = np.isnan(raw)
    if not silent.any():
        return raw
    names = tuple(loader.concepts())
    speaking = np.array([names.index(c) for c in {c for c, _ in loader.texts()}])
    rows = np.flatnonzero(silent & np.isin(concept, speaking))
    if rows.size == 0:
        return raw
    words = events["text_value"].iloc[rows].astype(object).fillna("").astype(str).str.strip().str.lower()
    said = [loader.texts().get((names[c], w), np.nan) for c, w in zip(concept[rows], words, strict=True)]
    out = raw.copy()
    out[rows] = said
    return out


def _units(written: pd.Series, concept: Codes) -> pd.Categorical[Any]:
    """The canonical unit of each row with a concept; as written where there is none."""
    units = _vocabulary()[1]
    code = _unit_of()[concept]
    unmapped = concept < 0
    if unmapped.any():
        said, labels = _factorize(written[unmapped])
        units = units.append(
            pd.Index([u for u in dict.fromkeys(labels) if u and u not in units], dtype=units.dtype)
        )
        code[unmapped] = units.get_indexer(pd.Index(labels))[said]
    return pd.Categorical.from_codes(code, categories=units)


def _reasons(
    events: pd.DataFrame, raw: Values, value: Values, pair: Codes, pairs: list[_Pair]
) -> npt.NDArray[np.int8]:
    """Position in ``REASONS`` of the first thing wrong with each row, -1 when nothing is."""
    low, high = np.array([p.low for p in pairs]), np.array([p.high for p in pairs])
    reason = np.full(value.size, -1, np.int8)
    status, statuses = _factorize(events["status"])
    stands = np.array([s != "deleted" for s in statuses], dtype=bool)[status]
    outside = np.flatnonzero(stands & ((value < low[pair]) | (value > high[pair])))
    reason[outside] = _impossible(raw[outside], value[outside], pair[outside], pairs)
    for k, known in enumerate(pairs):
        if known.never:
            reason[stands & (pair == k) & np.isin(raw, list(known.never))] = REASONS.index("sentinel")
    reason[stands & ~np.isfinite(value)] = REASONS.index("not_a_number")
    fault = np.array([p.fault for p in pairs], dtype=np.int8)
    if (fault >= 0).any():
        lost = np.array([p.concept < 0 for p in pairs], dtype=bool)
        rows = np.flatnonzero((fault >= 0)[pair])
        rows = rows[stands[rows] | lost[pair[rows]]]
        reason[rows] = fault[pair[rows]]
    return reason


def _impossible(raw: Values, value: Values, pair: Codes, pairs: list[_Pair]) -> npt.NDArray[np.int8]:
    """Why values outside their range lie there."""
    low, high = np.array([p.misfiled for p in pairs], dtype=np.float64).reshape(-1, 2)[pair].T
    reason = np.full(value.size, REASONS.index("impossible_value"), np.int8)
    reason[(value >= low) & (value < high)] = REASONS.index("misfiled")
    for marks in {p.marks for p in pairs}:
        alike = np.array([p.marks == marks for p in pairs])[pair]
        reason[alike & np.isin(raw, list(marks))] = REASONS.index("sentinel")
    return reason


def _account(
    reason: npt.NDArray[np.int8], repaired: npt.NDArray[np.bool_], pair: Codes, pairs: list[_Pair]
) -> Account:
    """What was done, in all and by code."""
    n, kinds = len(pairs), len(REASONS)
    aside = np.flatnonzero(reason >= 0)
    met = np.bincount(pair, minlength=n)
    lost = np.bincount(reason[aside] * np.int64(n) + pair[aside], minlength=n * kinds).reshape(kinds, n)
    mended = np.bincount(pair[repaired & (reason < 0)] if repaired.any() else pair[:0], minlength=n)
    changed = np.where([p.factor != 1.0 or p.offset != 0.0 for p in pairs], met - lost.sum(axis=0), 0)
    by_code: dict[tuple[str, str], dict[str, int]] = {}
    names = (*loader.concepts(), "")
    for k, known in enumerate(pairs):
        counts = by_code.setdefault((known.code, names[known.concept]), {})
        found = {"read": met[k], "converted": changed[k], "repaired": mended[k]}
        found |= dict(zip(REASONS, lost[:, k], strict=True))
        counts.update({name: counts.get(name, 0) + int(seen) for name, seen in found.items() if seen})
    return Account(
        read=int(reason.size),
        mapped=int(sum(seen for seen, p in zip(met, pairs, strict=True) if p.concept >= 0)),
        converted=int(changed.sum()),
        repaired=int(mended.sum()),
        set_aside=pd.DataFrame({"position": aside, "reason": _SAID.take(reason[aside])}),
        reasons={r: int(seen) for r, seen in zip(REASONS, lost.sum(axis=1), strict=True) if seen},
        by_code=by_code,
    )
