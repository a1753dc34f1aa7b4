"""The stays of a source: which row belongs to which, and how rows become events of them.

Databases of visits share their chores: a row names its encounter, or only its person and a time; a row without a time,
of nobody known or far outside its stay makes no event and is counted. Everything here works on whole columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.clock import UTC_US
from features.concepts.drugs import antimicrobial
from features.errors import DataError
from features.events import EVENT_COLUMNS, NAT
from features.sources.batch import ROWS, Batch, ReadAccount, no_encounters
from features.sources.tables import leave

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Masks = npt.NDArray[np.bool_]

DAY_US: Final = 86_400_000_000
SECOND_US: Final = 1_000_000
SLACK_US: Final = DAY_US
"""How far outside its stay a row may lie: dates without an hour are read as midnight, and clerks are not exact."""
LATEST_US: Final = np.iinfo(np.int64).max // 2
SUBJECT_SHIFT: Final = 35
"""Seconds from 1600 to 2600 fit 35 bits; the subject stands above them."""
EPOCH_S: Final = 11_676_096_000
"""Seconds from 1600-01-01 to 1970-01-01."""


class Stays:
    """All encounters of a source, and the span of each.

    Parameters
    ----------
    encounters : DataFrame with ``events.ENCOUNTER_COLUMNS``, one row an encounter
        Its row number is an encounter's *place*.
    start, end : int64 microseconds, shape (n_encounters,)
        From the first to the last hour in the hospital, both included; ``LATEST_US`` for an end that nobody knows.

    Raises
    ------
    DataError
        An encounter stands twice.
    """

    def __init__(self, encounters: pd.DataFrame, start: Ints, end: Ints) -> None:
        self.encounters = encounters.reset_index(drop=True)
        self.start, self.end = start, end
        self._names = pd.Index(self.encounters["encounter_id"], dtype="str")
        twice = int(self._names.duplicated().sum())
        if twice:
            raise DataError(f"{twice:,} encounters stand in more than one row. Keep one row an encounter.")
        subject, subjects = pd.factorize(self.encounters["subject_id"])
        self._subject, self._subjects = np.asarray(subject, dtype=np.int64), pd.Index(subjects, dtype="str")
        self._order = np.lexsort((start, self._subject))
        self._keys = self._key(self._subject[self._order], start[self._order])
        ends = pd.Series(end[self._order])
        self._furthest: Ints = ends.groupby(self._subject[self._order]).cummax().to_numpy(dtype=np.int64)

    @staticmethod
    def _key(subject: Ints, micros: Ints) -> Ints:
        return np.asarray((subject << SUBJECT_SHIFT) + micros // SECOND_US + EPOCH_S, dtype=np.int64)

    def place(self, encounter_ids: pd.Series) -> Ints:
        """The place of each encounter named by a categorical (or text) column; -1 for one that is not known."""
        return looked_up(encounter_ids, self._names)

    def place_in_time(self, subject_ids: pd.Series, micros: Ints) -> Ints:
        """The place of the encounter of this person that spans this instant, -1 where none does.

        Of two that overlap, the one that began last.
        """
        subject = looked_up(subject_ids, self._subjects)
        found = np.full(len(micros), -1, dtype=np.int64)
        last = np.searchsorted(self._keys, self._key(subject, micros), side="right") - 1
        rows = np.flatnonzero((subject >= 0) & (last >= 0))
        while len(rows):
            spot = last[rows]
            place = self._order[spot]
            # Going back in time, until nothing of this person that began earlier lasts so long.
            rows_left = (self._subject[place] == subject[rows]) & (self._furthest[spot] >= micros[rows])
            inside = rows_left & (micros[rows] >= self.start[place]) & (micros[rows] <= self.end[place])
            found[rows[inside]] = place[inside]
            last[rows] -= 1
            rows = rows[rows_left & ~inside & (last[rows] >= 0)]
        return found

    def place_of_rows(self, frame: pd.DataFrame, encounter: str, subject: str, time: str) -> Ints:
        """The place of each row: of the encounter that it names, else of the person's stay that spans its time.

        A row that names an encounter is never given to another one.
        """
        place = self.place(frame[encounter])
        nameless = np.flatnonzero((frame[encounter].isna() & frame[time].notna()).to_numpy())
        if len(nameless):
            some = frame.iloc[nameless]
            place[nameless] = self.place_in_time(some[subject], micros_of(some[time]))
        return place

    def near(self, place: Ints, micros: Ints) -> Masks:
        """Whether each instant lies in its stay, give or take a day."""
        return (micros >= self.start[place] - SLACK_US) & (micros <= self.end[place] + SLACK_US)

    def named(self, place: Ints) -> tuple[pd.Categorical[Any], pd.Categorical[Any]]:
        """Subject and encounter of each place, as categoricals."""
        return categories(self._subject[place], self._subjects), categories(place, self._names)

    def batches(self) -> Iterator[Batch]:
        """The encounters themselves, without events."""
        for first in range(0, len(self.encounters), ROWS):
            part = self.encounters.iloc[first : first + ROWS].reset_index(drop=True)
            yield Batch(part, _no_events())


def settle(
    frame: pd.DataFrame,
    place: Ints,
    stays: Stays,
    account: ReadAccount,
    table: str,
    *,
    time: str = "charttime",
) -> tuple[pd.DataFrame, Ints]:
    """The rows that have a time in a known stay, and their places; the others are counted.

    Left are rows without ``time`` (``no_time``), of no known encounter (``no_encounter``, place -1), and more than a
    day outside their stay (``outside_stay``).
    """
    timed = frame[time].notna().to_numpy()
    frame, place = leave(frame, ~timed, account, table, "no_time"), place[timed]
    known = place >= 0
    frame, place = leave(frame, ~known, account, table, "no_encounter"), place[known]
    near = stays.near(place, micros_of(frame[time]))
    return leave(frame, ~near, account, table, "outside_stay"), place[near]


def facts(
    stays: Stays,
    place: Ints,
    *,
    time: pd.Series,
    code: Any,
    source_id: Any,
    available: pd.Series | None = None,
    concept: Any = None,
    value: Any = None,
    text: Any = None,
    unit: Any = None,
) -> pd.DataFrame:
    """An event table of rows settled in stays; a scalar stands for all rows, what is not given is empty.

    ``time`` and ``available`` are ``datetime64[us, UTC]``; code, concept, text and unit are text, categorical or one
    word. An ``available`` before ``time`` is left empty: nothing is known before it happens, so the policy decides.
    """
    rows = len(place)
    subject, encounter = stays.named(place)
    when = time.reset_index(drop=True)
    told = pd.Series(pd.NaT, index=range(rows), dtype=UTC_US)
    if available is not None:
        told = available.reset_index(drop=True)
        told = told.where(told >= when)
    made: dict[str, Any] = {
        "subject_id": subject,
        "encounter_id": encounter,
        "time": when,
        "available_time": told,
        "code": worded(code, rows),
        "concept": worded(concept, rows),
        "numeric_value": np.full(rows, np.nan)
        if value is None
        else np.broadcast_to(value, rows).astype(float),
        "text_value": worded(text, rows),
        "unit": worded(unit, rows),
        "status": worded("final", rows),
        "source_id": source_id.reset_index(drop=True) if isinstance(source_id, pd.Series) else source_id,
    }
    return pd.DataFrame(made, index=pd.RangeIndex(rows))[list(EVENT_COLUMNS)]


def spread(
    frame: pd.DataFrame,
    stays: Stays,
    place: Ints,
    account: ReadAccount,
    table: str,
    meanings: Mapping[str, tuple[str, str, str]],
    **common: pd.Series,
) -> pd.DataFrame:
    """Events of a table with one column a quantity: one for each cell that is filled; empty rows are counted.

    Parameters
    ----------
    meanings : mapping of column to (code, concept, unit); an empty concept is left to the code tables
    common : ``time``, ``source_id`` and, where known, ``available``: one value a row, as in :func:`facts`
    """
    filled = frame[list(meanings)].notna().to_numpy()
    leave(frame, ~filled.any(axis=1), account, table, "no_value")
    column, row = np.nonzero(filled.T)
    labels = [pd.Index([m[k] for m in meanings.values()], dtype="str") for k in range(3)]
    merged = [(pd.factorize(names)[0], names.unique()) for names in labels]
    code, concept, unit = (
        pd.Categorical.from_codes(spots[column], categories=names) for spots, names in merged
    )
    return facts(
        stays,
        place[row],
        code=code,
        concept=only_where(pd.Series(concept), concept != ""),
        unit=only_where(pd.Series(unit), unit != ""),
        value=frame[list(meanings)].to_numpy().T[column, row],
        **{name: series.iloc[row] for name, series in common.items()},
    )


def emit(events: pd.DataFrame, account: ReadAccount, table: str) -> Iterator[Batch]:
    """A batch of these events, if there are any, counted under their table."""
    if len(events):
        account.events[table] += len(events)
        yield Batch(no_encounters(), events)


def micros_of(times: pd.Series) -> Ints:
    """Int64 microseconds of ``datetime64[us, UTC]``; ``events.NAT`` where empty."""
    values: Ints = times.astype(UTC_US).array.asi8
    return values


def since(micros: Ints) -> pd.Series:
    """The inverse of :func:`micros_of`."""
    return pd.Series(pd.DatetimeIndex(micros.view("datetime64[us]"), tz="UTC"))


def later(one: pd.Series, other: pd.Series) -> pd.Series:
    """The later of two instants, row by row; an empty one does not count."""
    a, b = micros_of(one), micros_of(other)
    return since(np.where(a == NAT, b, np.where(b == NAT, a, np.maximum(a, b)))).set_axis(one.index)


def next_midnight(times: pd.Series, timezone: str) -> pd.Series:
    """When a date without an hour may be known: as the next day begins, by the clock of the tables."""
    if timezone == "UTC":
        return since(np.where(times.isna(), NAT, (micros_of(times) // DAY_US + 1) * DAY_US)).set_axis(
            times.index
        )
    local = times.dt.tz_convert(timezone).dt.tz_localize(None).dt.normalize() + pd.Timedelta(days=1)
    first = np.ones(len(local), dtype=bool)
    known: pd.Series = local.dt.tz_localize(timezone, ambiguous=first, nonexistent="shift_forward")
    return known.astype(UTC_US)


def identity(table: str, frame: pd.DataFrame, key: str | None, suffix: str = "") -> pd.Series:
    """``table:key`` of each row, or ``table:row number`` where the table has no key of its own (or a row lacks it)."""
    number = _large(pa.array(np.asarray(frame.index, dtype=np.int64)))
    own = number
    if key is not None:
        own = _large(pa.array(frame[key], from_pandas=True))
        own = pc.if_else(pc.is_null(own), _joined("row ", number, ""), own)
    return pd.Series(_joined(f"{table}:", own, suffix).to_pandas(), dtype="str")


def _large(values: pa.Array) -> pa.Array:
    return pc.cast(values, pa.large_string())


def _joined(before: str, middle: pa.Array, after: str) -> pa.Array:
    ends = [pa.scalar(word, pa.large_string()) for word in (before, after, "")]
    return pc.binary_join_element_wise(ends[0], middle, ends[1], ends[2])


def coded(system: str, items: pd.Series) -> pd.Categorical[Any]:
    """``SYSTEM//item`` of a categorical column."""
    found = items.array if isinstance(items.dtype, pd.CategoricalDtype) else items.astype("category").array
    return pd.Categorical.from_codes(
        found.codes, categories=pd.Index([f"{system}//{item}" for item in found.categories], dtype="str")
    )


def worded(words: Any, rows: int) -> pd.Categorical[Any]:
    """Text as a categorical: of a column, or one word (or nothing) for all rows. Only used words are categories."""
    if isinstance(words, pd.Series):
        words = words.array
    if isinstance(words, pd.Categorical):
        return categories(words.codes.astype(np.int64), words.categories)
    if words is None or isinstance(words, str):
        code = np.full(rows, -1 if words is None else 0, dtype=np.int8)
        return pd.Categorical.from_codes(code, categories=pd.Index([words or ""][: rows and 1], dtype="str"))
    return pd.Categorical(pd.array(words, dtype="str"))


def categories(codes: Ints, labels: pd.Index) -> pd.Categorical[Any]:
    """A categorical with those labels only that some row uses; -1 is missing."""
    used = np.zeros(len(labels) + 1, dtype=bool)
    used[codes] = True
    used[-1] = False
    place = np.where(used, np.cumsum(used) - 1, -1)
    return pd.Categorical.from_codes(place[codes], categories=labels[used[:-1]])


def only_where(words: pd.Series, mask: npt.ArrayLike) -> pd.Categorical[Any]:
    """A categorical column with the rows outside the mask emptied."""
    found = words.array
    return categories(np.where(np.asarray(mask), found.codes.astype(np.int64), -1), found.categories)


def stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Event tables of :func:`facts` one under the other, texts still categorical."""
    filled = [t for t in tables if len(t)]
    if len(filled) < 2:
        return filled[0] if filled else _no_events()
    joined: dict[str, Any] = {}
    for name in EVENT_COLUMNS:
        columns = [t[name] for t in filled]
        if isinstance(columns[0].dtype, pd.CategoricalDtype):
            joined[name] = _united([c.array for c in columns])
        else:
            joined[name] = pd.concat(columns, ignore_index=True)
    return pd.DataFrame(joined)


def _united(columns: list[Any]) -> pd.Categorical[Any]:
    labels = columns[0].categories
    for column in columns[1:]:
        labels = labels.append(column.categories).unique()
    return pd.Categorical.from_codes(
        np.concatenate([np.append(labels.get_indexer(c.categories), -1)[c.codes] for c in columns]),
        categories=labels,
    )


def looked_up(ids: pd.Series, names: pd.Index) -> Ints:
    """Position of each identifier in an index without repeats; -1 where it is missing or unknown."""
    if not isinstance(ids.dtype, pd.CategoricalDtype):
        return np.where(ids.isna(), -1, names.get_indexer(pd.Index(ids))).astype(np.int64)
    known = np.append(names.get_indexer(ids.cat.categories), -1)
    return np.asarray(known[ids.cat.codes], dtype=np.int64)


def _no_events() -> pd.DataFrame:
    blank: dict[str, Any] = {"time": UTC_US, "available_time": UTC_US, "numeric_value": "float64"}
    return pd.DataFrame({c: pd.Series(dtype=blank.get(c, "str")) for c in EVENT_COLUMNS})


def systemic(names: pd.Series, routes: pd.Series | None) -> Masks:
    """Which rows name a systemic antimicrobial, by antimicrobials.csv; a pair of name and route is looked up once."""
    drugs: list[str] = [*names.cat.categories, ""]
    ways: list[str | None] = [*(routes.cat.categories if routes is not None else []), None]
    way = routes.cat.codes.to_numpy(np.int64) if routes is not None else np.full(len(names), -1)
    pair = names.cat.codes.to_numpy(np.int64) * len(ways) + np.where(way < 0, len(ways) - 1, way)
    unique, place = np.unique(pair, return_inverse=True)
    known = [antimicrobial(drugs[p // len(ways)], ways[p % len(ways)]) is not None for p in unique.tolist()]
    return np.array(known, dtype=bool)[place]


def marked(*columns: Any) -> npt.NDArray[np.uint64]:
    """A 64-bit mark of each row by all its columns: the same row, the same mark, in any piece of any table."""
    values = [pd.Series(c).reset_index(drop=True) for c in columns]
    plain = [v.astype("str").fillna("") if not pd.api.types.is_numeric_dtype(v.dtype) else v for v in values]
    marks = pd.util.hash_pandas_object(pd.DataFrame(dict(enumerate(plain))), index=False)
    return np.asarray(marks.to_numpy(), dtype=np.uint64)


class Seen:
    """Which of many 64-bit marks have been met, over all pieces of a table."""

    def __init__(self) -> None:
        self._marks = np.zeros(0, dtype=np.uint64)

    def new(self, marks: npt.NDArray[np.uint64], among: Masks | None = None) -> Masks:
        """Which rows bring a mark for the first time, looking only at those ``among``."""
        rows = np.arange(len(marks)) if among is None else np.flatnonzero(among)
        fresh, first = np.unique(marks[rows], return_index=True)
        unseen = ~np.isin(fresh, self._marks, assume_unique=True)
        self._marks = np.union1d(self._marks, fresh[unseen])
        found = np.zeros(len(marks), dtype=bool)
        found[rows[first[unseen]]] = True
        return found
