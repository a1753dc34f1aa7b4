"""How much arrived, hour by hour: the monitor's own memory of the feeds, in counts that hold no patient.

A feed is a (source, concept, site): the code system that names the facts, our concept, and the ward they are about.
Kept are, per feed and hour of arrival, how many facts came, how many were set aside, how late they were, and a coarse
histogram of their values. That is all that the checks of :mod:`feeds` and :mod:`units` read, so memory is bounded by
feeds and hours and does not grow with patients.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.clock import HOUR_US
from features.concepts import loader
from serving.monitoring.statistics import Bools, Floats, Ints

Feed = tuple[str, str, str]
"""Source, concept, site."""

KEEP_H: Final = 9 * 7 * 24
"""Nine weeks: what is expected of an hour of the week needs several of each."""
BACKFILL_US: Final = 72 * HOUR_US
"""What became available so long before it came is history that somebody loads, not a live feed."""
LATEST_MIN: Final = 24 * 60.0
"""Delays are counted up to here, so that one late fact does not outweigh an hour of others."""
FACTS: Final = (
    "received", "time", "encounter", "source", "concept", "site", "value", "aside", "new", "same", "stuck",
)  # fmt: skip
TALLY: Final = ("n", "aside", "ahead", "delay", "same", "stuck")
UNMAPPED: Final = ""

STUCK: Final = 12
"""So often has a patient's value repeated itself, to the last digit, before it is counted as stuck."""
ALIKE: Final = 7
"""So many bins (a factor of 2.2) are one value where a patient's values of a day are told apart."""
PER_DECADE: Final = 20
LOWEST: Final = -3
POSITIVE: Final = 160
"""Values are kept in bins of a twentieth of a decade (12 %), from 0.001 to 100,000; negative ones are mirrored."""
ZERO: Final = 0
N_BINS: Final = 1 + 2 * POSITIVE


@dataclass(frozen=True)
class Ledger:
    """Counts by feed and hour; hours are whole hours since 1970.

    Attributes
    ----------
    feeds : tuple of Feed
        ``feed`` in the tables is the place in here.
    tally : DataFrame ``feed, hour, n, aside, ahead, delay, same, stuck``
        Facts that came, those set aside or repaired, those dated later than they came, the sum of their delays in
        minutes, those that repeat the patient's value before, and those that do so for the :data:`STUCK` th time.
    values : DataFrame ``feed, hour, bin, n``
        A patient's values of one day that are about alike count once (:func:`tell_apart`).
    last : shape (n_feeds,), microseconds
        When the newest fact came.
    since, until : microseconds
        What has been read: from ``since``, up to but without ``until``.
    seq : int
        How far the store was read.
    excused : DataFrame ``feed, hour``
        Hours that were found to be wrong, and say nothing of what is usual.
    """

    feeds: tuple[Feed, ...]
    tally: pd.DataFrame
    values: pd.DataFrame
    last: Ints
    since: int
    until: int
    seq: int = 0
    excused: pd.DataFrame | None = None

    @classmethod
    def empty(cls, since: int) -> Ledger:
        """Nothing yet, from a whole hour on."""
        begins = since - since % HOUR_US
        tally = pd.DataFrame({c: pd.Series(dtype=np.float64) for c in ("feed", "hour", *TALLY)})
        values = pd.DataFrame({c: pd.Series(dtype=np.int64) for c in ("feed", "hour", "bin", "n")})
        return cls((), tally, values, np.empty(0, np.int64), begins, begins)

    def add(self, facts: pd.DataFrame, until: int, seq: int = 0) -> Ledger:
        """Count facts that came before ``until``; ``facts`` has the columns :data:`FACTS`, any order of rows."""
        kept = facts[(facts["received"] >= self.since).to_numpy()]
        feeds, feed = self._name(kept)
        last = np.r_[self.last, np.full(len(feeds) - len(self.last), self.since)]
        received = kept["received"].to_numpy(np.int64)
        np.maximum.at(last, feed, received)
        hour = received // HOUR_US
        tally = _summed([self.tally, _tally(kept, feed, hour)], ["feed", "hour"])
        values = _summed([self.values, _histogram(kept, feed, hour)], ["feed", "hour", "bin"])
        made = replace(self, feeds=feeds, tally=tally, values=values, last=last)
        return made.reach(until, seq)

    def reach(self, until: int, seq: int = 0) -> Ledger:
        """The same, with nothing more up to an instant and a place in the store."""
        return replace(self, until=max(self.until, until), seq=max(self.seq, seq))._pruned()

    def _name(self, facts: pd.DataFrame) -> tuple[tuple[Feed, ...], Ints]:
        group = facts.groupby(["source", "concept", "site"], observed=True, sort=False)
        number = group.ngroup().to_numpy(np.int64)
        first = facts.take(np.unique(number, return_index=True)[1]) if len(facts) else facts
        named = [
            (str(s), str(c), str(t))
            for s, c, t in zip(first["source"], first["concept"], first["site"], strict=True)
        ]
        feeds = dict.fromkeys((*self.feeds, *named))
        place = {name: k for k, name in enumerate(feeds)}
        where = np.array([place[n] for n in named], np.int64)
        return tuple(feeds), np.asarray(where[number] if len(facts) else number, np.int64)

    def _pruned(self) -> Ledger:
        """Forget what is older than :data:`KEEP_H`."""
        oldest = self.until // HOUR_US - KEEP_H
        if oldest * HOUR_US <= self.since:
            return self
        return replace(
            self,
            since=oldest * HOUR_US,
            tally=_from(self.tally, oldest),
            values=_from(self.values, oldest),
            excused=None if self.excused is None else _from(self.excused, oldest),
        )

    def excuse(self, feeds: Ints, hours: Ints) -> Ledger:
        """Mark hours of feeds as no example of what is usual."""
        told = [] if self.excused is None else [self.excused]
        told.append(pd.DataFrame({"feed": feeds, "hour": hours}))
        return replace(self, excused=pd.concat(told).drop_duplicates(ignore_index=True))

    def counts(self, first: int, stop: int, column: str = "n") -> Floats:
        """A column of the tally as shape (n_feeds, stop - first), hours ``first`` to ``stop``; nothing came = 0."""
        dense = np.zeros((len(self.feeds), max(0, stop - first)))
        rows = self.tally[((self.tally["hour"] >= first) & (self.tally["hour"] < stop)).to_numpy()]
        dense[rows["feed"].to_numpy(np.int64), rows["hour"].to_numpy(np.int64) - first] = rows[column]
        return dense

    def usable(self, first: int, stop: int) -> Bools:
        """Which hours of which feed may stand for what is usual, shape (n_feeds, stop - first)."""
        good = np.ones((len(self.feeds), max(0, stop - first)), bool)
        if self.excused is not None:
            rows = self.excused[self.excused["hour"].between(first, stop - 1)]
            good[rows["feed"].to_numpy(np.int64), rows["hour"].to_numpy(np.int64) - first] = False
        return good

    def histogram(self, first: int, stop: int, excused: bool = False) -> Floats:
        """Values by bin over hours ``first`` to ``stop``, shape (n_feeds, N_BINS); ``excused`` hours are left out."""
        rows = self.values[self.values["hour"].between(first, stop - 1)]
        if excused and self.excused is not None and len(rows):
            wrong = pd.MultiIndex.from_frame(self.excused)
            rows = rows[~pd.MultiIndex.from_frame(rows[["feed", "hour"]]).isin(wrong)]
        dense = np.zeros((len(self.feeds), N_BINS))
        np.add.at(dense, (rows["feed"].to_numpy(np.int64), rows["bin"].to_numpy(np.int64)), rows["n"])
        return dense

    def save(self, path: Path) -> None:
        """Write it in one step, so that nobody reads half of it."""
        tables = {"tally": self.tally, "values": self.values, "excused": self.excused}
        parts = [t.assign(table=name) for name, t in tables.items() if t is not None]
        about = {"feeds": self.feeds, "last": self.last.tolist(), "since": self.since, "until": self.until}
        table = pa.Table.from_pandas(pd.concat(parts, ignore_index=True), preserve_index=False)
        table = table.replace_schema_metadata({"ledger": json.dumps(about | {"seq": self.seq})})
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        try:
            pq.write_table(table, temporary, compression="zstd")
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> Ledger | None:
        """The inverse of :meth:`save`; None where there is none, or it cannot be read."""
        try:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[b"ledger"])
            rows = table.to_pandas()
            part = {name: rows[(rows["table"] == name).to_numpy()] for name in ("tally", "values", "excused")}
            return cls(
                tuple((s, c, t) for s, c, t in about["feeds"]),
                part["tally"][["feed", "hour", *TALLY]].reset_index(drop=True),
                part["values"][["feed", "hour", "bin", "n"]].astype(np.int64).reset_index(drop=True),
                np.array(about["last"], np.int64),
                int(about["since"]),
                int(about["until"]),
                int(about["seq"]),
                part["excused"][["feed", "hour"]].astype(np.int64).reset_index(drop=True),
            )
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return None


def facts_of(events: pd.DataFrame) -> pd.DataFrame:
    """The store's events (:data:`serving.store.arrivals.COLUMNS` and ``ward``) as :data:`FACTS`, without those that
    :func:`tell_apart` adds.

    A value that was set aside as impossible is kept in the canonical unit: the very mistakes that are looked for make
    values impossible. ``aside`` is also said of a value that only a repair made usable. History loaded in bulk is left
    out.
    """
    live = (events["received_time"] - events["available_time"] < BACKFILL_US).to_numpy()
    events = events[live].reset_index(drop=True)
    pair = events[["code", "raw_unit"]].astype(object).fillna("")
    number = pair.groupby(["code", "raw_unit"], sort=False).ngroup().to_numpy(np.int64)
    about = _reading(pair.take(np.unique(number, return_index=True)[1])).take(number).reset_index(drop=True)
    converted = events["raw_value"] * about["factor"] + about["offset"]
    concept = events["concept"].astype(object)
    repaired = (converted - events["numeric_value"]).abs() > 1e-6 * converted.abs()
    return pd.DataFrame(
        {
            "received": events["received_time"].astype(np.int64),
            "time": events["time"].astype(np.int64),
            "encounter": events["encounter_id"],
            "source": about["source"],
            "concept": concept.where(concept.notna(), about["concept"]).astype("str"),
            "site": events["ward"].astype("str"),
            "value": events["numeric_value"].where(events["numeric_value"].notna(), converted),
            "aside": events["reason"].notna() | repaired,
        }
    )


def tell_apart(facts: pd.DataFrame, before: pd.DataFrame | None = None) -> pd.DataFrame:
    """Facts with ``new``: false where the same patient's concept had about this value already on that day; and
    ``same`` and ``stuck``: whether it repeats the patient's last value of that day, and has done so for long.

    Values are counted patient by patient, since one patient with a rare value, measured every hour, is one witness.
    ``before`` are facts of the same patients and days that were counted earlier.
    """
    together = facts if before is None else pd.concat([before, facts], ignore_index=True)
    value = together["value"].to_numpy(np.float64)
    key = (
        together[["encounter", "source", "concept"]]
        .astype("str")
        .assign(day=together["received"].to_numpy(np.int64) // (24 * HOUR_US))
    )
    series = key.groupby(list(key.columns), sort=False).ngroup().to_numpy().astype(np.int64)
    size = np.where(np.isfinite(value), (bin_of(np.nan_to_num(value)) - 1) // ALIKE, N_BINS)
    again = pd.DataFrame({"series": series, "size": size}).duplicated().to_numpy()
    repeats = _repeats(series, together["received"].to_numpy(np.int64), value)
    mine = slice(len(together) - len(facts), None)
    return facts.assign(new=~again[mine], same=repeats[mine] > 0, stuck=repeats[mine] >= STUCK)


def _repeats(series: Ints, received: Ints, value: Floats) -> Ints:
    """How many facts of its series right before each one have exactly its value."""
    order = np.lexsort((received, series))
    ordered, told = series[order], value[order]
    same = np.r_[False, (ordered[1:] == ordered[:-1]) & (told[1:] == told[:-1])][: len(order)]
    place = np.arange(len(order))
    run = place - np.maximum.accumulate(np.where(same, 0, place))
    counted = np.empty(len(order), np.int64)
    counted[order] = run
    return counted


def _reading(pairs: pd.DataFrame) -> pd.DataFrame:
    """How each (code, unit) is read: source, concept, and the factor and offset to its canonical unit; NaN, not."""
    rows = []
    for code, unit in pairs.itertuples(index=False, name=None):
        row = loader.codes().get(code)
        factors = loader.conversion(row.concept, unit or row.unit) if row else None
        rows.append((code.split("//")[0], row.concept if row else UNMAPPED, *(factors or (np.nan, np.nan))))
    kinds = {"source": "str", "concept": "str", "factor": "float64", "offset": "float64"}
    return pd.DataFrame(rows, columns=list(kinds)).astype(kinds)


def _tally(facts: pd.DataFrame, feed: Ints, hour: Ints) -> pd.DataFrame:
    late = (facts["received"] - facts["time"]).to_numpy(np.float64) / (HOUR_US / 60)
    return pd.DataFrame(
        {
            "feed": feed,
            "hour": hour,
            "n": 1.0,
            "aside": facts["aside"].to_numpy(np.float64),
            "ahead": (late < 0).astype(np.float64),
            "delay": np.clip(late, -LATEST_MIN, LATEST_MIN),
            "same": facts["same"].to_numpy(np.float64),
            "stuck": facts["stuck"].to_numpy(np.float64),
        }
    )


def _histogram(facts: pd.DataFrame, feed: Ints, hour: Ints) -> pd.DataFrame:
    value = facts["value"].to_numpy(np.float64)
    known = np.isfinite(value) & facts["new"].to_numpy(bool)
    return pd.DataFrame({"feed": feed[known], "hour": hour[known], "bin": bin_of(value[known]), "n": 1})


def _from(table: pd.DataFrame, hour: int) -> pd.DataFrame:
    return table[(table["hour"] >= hour).to_numpy()].reset_index(drop=True)


def _summed(tables: list[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    together = pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True)
    return together.groupby(keys, sort=True, as_index=False).sum()


def bin_of(value: Floats) -> Ints:
    """The bin of each finite value."""
    size = np.abs(value)
    with np.errstate(divide="ignore"):
        step = np.floor((np.log10(size) - LOWEST) * PER_DECADE)
    place = 1 + np.clip(np.where(size > 0, step, 0), 0, POSITIVE - 1).astype(np.int64)
    return np.where(size == 0, ZERO, np.where(value > 0, place, place + POSITIVE))


def middle_of(bins: npt.NDArray[np.integer[Any]]) -> Floats:
    """A value in the middle of each bin."""
    step = (bins - 1) % POSITIVE
    size = 10 ** ((step + 0.5) / PER_DECADE + LOWEST)
    return np.asarray(np.where(bins == ZERO, 0.0, np.where(bins <= POSITIVE, size, -size)), np.float64)
