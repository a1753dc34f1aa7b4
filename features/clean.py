"""Code to concept, unit to canonical unit, plausibility; with an account of everything set aside.

What a row becomes depends on that row and the tables alone, so one event at the bedside and ten million from an archive
are cleaned alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import UTC_US
from features.concepts import loader
from features.errors import DataError

REASONS: Final = ("unknown_concept", "unit_unknown", "not_a_number", "impossible_value")

REMEDIES: Final[dict[str, str]] = {
    "unknown_concept": "code: in no table of concepts/codes. Add a row, or send the concept itself: WARDCAST//concept.",
    "unit_unknown": "unit: no conversion in units.csv for this concept. Send UCUM, or add a conversion row.",
    "not_a_number": "value: not a finite number. Send a number, or a word listed in texts.csv.",
    "impossible_value": "value: outside the range in concepts.csv. Check the value and its unit.",
}
"""The field at fault and the cure, by reason."""


@dataclass(frozen=True)
class Account:
    """What cleaning did.

    ``set_aside`` has one row for each event that cannot be used: ``position`` (row number in the input) and
    ``reason``. ``mapped`` counts events with a concept, ``converted`` those whose unit was changed, ``repaired`` those
    read by a rule of repairs.csv, ``reasons`` the events set aside by reason.
    """

    read: int
    mapped: int
    converted: int
    repaired: int
    set_aside: pd.DataFrame
    reasons: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Pair:
    """What the tables say of one (code, unit, unit stated?) combination."""

    concept: int
    known_unit: bool
    factor: float
    offset: float
    low: float
    high: float
    repair: tuple[float, float, float, float]


_NOTHING: Final = (np.inf, -np.inf, 1.0, 0.0)
Codes = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


def clean(events: pd.DataFrame) -> tuple[pd.DataFrame, Account]:
    """Map, convert and check events.

    Parameters
    ----------
    events : DataFrame of canonical events
        ``code`` decides the concept; where the code is unknown, a known ``concept`` that the source filled in is kept.
        An empty unit means the unit in codes/*.csv. String columns may be categoricals.

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
    names, units = _vocabulary()
    pair, pairs = _pairs(events)
    concept = np.array([p.concept for p in pairs], dtype=np.int64)[pair]
    value, repaired = _values(events, pair, pairs, concept)
    reason = _reasons(events, value, pair, pairs)
    changed = np.array([p.factor != 1.0 or p.offset != 0.0 for p in pairs], dtype=bool)[pair]
    keep = np.flatnonzero(reason < 0)
    aside = np.flatnonzero(reason >= 0)
    account = Account(
        read=len(events),
        mapped=int((concept >= 0).sum()),
        converted=int(changed[keep].sum()),
        repaired=int(repaired[keep].sum()),
        set_aside=pd.DataFrame({"position": aside, "reason": [REASONS[r] for r in reason[aside]]}),
        reasons={r: n for k, r in enumerate(REASONS) if (n := int((reason == k).sum()))},
    )
    kept = events if aside.size == 0 else events.take(keep)
    unit_of = np.array([units.get_loc(loader.concepts()[n].unit) for n in names], dtype=np.int64)
    columns: dict[str, Any] = {
        "concept": pd.Categorical.from_codes(concept[keep], categories=names),
        "numeric_value": value[keep],
        "unit": pd.Categorical.from_codes(unit_of[concept[keep]], categories=units),
    }
    return kept.reset_index(drop=True).assign(**columns), account


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
    if concept not in loader.concepts():
        return _Pair(-1, False, 1.0, 0.0, -np.inf, np.inf, _NOTHING)
    about = loader.concepts()[concept]
    assumed = row.unit if row else about.unit
    known = loader.conversion(concept, unit or assumed)
    factor, offset = known or (1.0, 0.0)
    rule = None if unit else loader.repairs().get((concept, assumed))
    repair = (rule.low, rule.high, rule.factor, rule.offset) if rule else _NOTHING
    return _Pair(names[concept], known is not None, factor, offset, about.low, about.high, repair)


def _values(
    events: pd.DataFrame, pair: Codes, pairs: list[_Pair], concept: Codes
) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Canonical values, and which of them a repair rule read."""
    raw = events["numeric_value"].to_numpy(dtype=np.float64, na_value=np.nan)
    raw = _spoken(events, raw, concept)
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
    names = _vocabulary()[0]
    speaking = np.array([names.get_loc(c) for c, _ in loader.texts()])
    rows = np.flatnonzero(np.isnan(raw) & np.isin(concept, speaking))
    if rows.size == 0:
        return raw
    words = events["text_value"].iloc[rows].astype(object).fillna("").astype(str).str.strip().str.lower()
    said = [loader.texts().get((names[c], w), np.nan) for c, w in zip(concept[rows], words, strict=True)]
    out = raw.copy()
    out[rows] = said
    return out


def _reasons(events: pd.DataFrame, value: Values, pair: Codes, pairs: list[_Pair]) -> npt.NDArray[np.int8]:
    """Position in ``REASONS`` of the first thing wrong with each row, -1 when nothing is."""
    low, high = np.array([p.low for p in pairs]), np.array([p.high for p in pairs])
    reason = np.full(value.size, -1, np.int8)
    status, statuses = _factorize(events["status"])
    stands = np.array([s != "deleted" for s in statuses])[status]
    reason[stands & ((value < low[pair]) | (value > high[pair]))] = REASONS.index("impossible_value")
    reason[stands & ~np.isfinite(value)] = REASONS.index("not_a_number")
    bad_unit = np.array([not p.known_unit for p in pairs], dtype=bool)
    reason[stands & bad_unit[pair]] = REASONS.index("unit_unknown")
    lost = np.array([p.concept < 0 for p in pairs], dtype=bool)
    reason[lost[pair]] = REASONS.index("unknown_concept")
    return reason
