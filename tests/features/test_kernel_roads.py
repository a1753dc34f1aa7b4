"""Every road through the kernel: each equals the slow oracle, and all give the same bits.

An encounter's rows are slid over or walked, cut into pages, shared out among threads, read from a table, from a file or
from bare arrays. None of it may show in a single cell.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import files, kernels, windows
from features.clock import HOUR_US, STAY_US
from features.errors import DataError
from features.files import build_file, read_flat
from features.windows import STATISTICS, FlatEvents, Window, build, flatten, flatten_one

Matrix = Any
MINUTE_US = 60_000_000
START_US = 1_777_626_000_000_000
ENCOUNTERS, CONCEPTS = ("b", "a", "c"), ("heart_rate", "lactate")
LOOKBACKS = (HOUR_US, 3 * HOUR_US // 2, 6 * HOUR_US, STAY_US)
WINDOWS = [Window(c, s, back) for c in CONCEPTS for back in LOOKBACKS for s in STATISTICS]
AS_STORED = ("last", "hours_since_last", "count", "min", "max", "first")
"""What is read and not calculated: equal to the oracle to the last bit."""


class Fact(NamedTuple):
    """As the oracle's ``Event``: times in microseconds."""

    encounter: str
    concept: str
    time: int
    available: int
    value: float
    status: str = "final"
    source_id: str | None = None


class World(NamedTuple):
    """Facts, the (encounter, time) pairs asked about, and a resampling step."""

    facts: list[Fact]
    asked: list[tuple[str, int]]
    step: timedelta | None


# Worlds. Most facts lie on ten-minute marks and most rows do too, so that edges are met exactly.

whose = st.sampled_from((*ENCOUNTERS, "b", "b"))
minutes = st.integers(0, 36).map(lambda k: 10 * k)
jitter = st.sampled_from([0] * 8 + [-1, 1])
usual = st.one_of(st.integers(-500, 30_000).map(lambda k: k / 100), st.sampled_from([0.0, -0.0, 36.6, 0.1]))
odd = st.sampled_from(
    [-0.0, math.nan, 1e300, -1e300, 1e-300, -1e-300, 2.0**20, 2.0**20 - 2.0**-10, 2.0**-20, 2.0**-21, -1234567.25, 1e9]
)  # fmt: skip


def fact(late: bool, strange: bool, revised: bool) -> st.SearchStrategy[Fact]:
    """One fact, with or without what keeps its group from being slid over: late arrivals, odd values, revisions."""
    return st.builds(
        lambda encounter, concept, minute, off, delay, value, status, source: Fact(
            encounter,
            concept,
            START_US + minute * MINUTE_US + off,
            START_US + (minute + delay) * MINUTE_US + off,
            value,
            status,
            source,
        ),
        whose,
        st.sampled_from(CONCEPTS),
        minutes,
        jitter,
        st.sampled_from([0, 0, 0, 10, 60, 200, -30]) if late else st.just(0),
        st.one_of(usual, odd) if strange else usual,
        st.sampled_from(["final"] * 3 + ["preliminary", "corrected", "deleted"])
        if revised
        else st.just("final"),
        st.sampled_from(["x", "x", "y", None] if revised else [None, None, "x", "y", "z"]),
    )


def instant(minute: int, off: int) -> int:
    return START_US + minute * MINUTE_US + off


hourly = st.builds(
    lambda who, first, n: [(who, instant(first + 60 * k, 0)) for k in range(n)],
    whose,
    st.integers(-6, 12).map(lambda k: 10 * k),
    st.integers(3, 12),
)
moment = st.builds(instant, st.integers(-1, 45).map(lambda k: 10 * k), jitter)
irregular = st.lists(st.tuples(st.sampled_from((*ENCOUNTERS, "unknown")), moment), min_size=1, max_size=8)
kinds = st.sampled_from(
    [(late, False, False) for late in (False, True)] + list(itertools.product([False, True], repeat=3))
)
worlds = st.builds(
    lambda facts, rows, more, step, grid: World([on_grid(f, grid) for f in facts], rows + more, step),
    kinds.flatmap(lambda kind: st.lists(fact(*kind), min_size=1, max_size=24)),
    hourly,
    irregular,
    st.sampled_from([None, None, timedelta(hours=1), timedelta(minutes=10), timedelta(minutes=25)]),
    st.sampled_from([1, 1, HOUR_US]),
)


def on_grid(f: Fact, grid: int) -> Fact:
    """The fact moved back to a whole multiple of the grid, as of tables that are hourly already."""
    off = (f.time - START_US) % grid
    return f._replace(time=f.time - off, available=f.available - off)


def stamps(micros: Any) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(np.array(micros, "datetime64[us]"), tz="UTC")


def table(facts: Sequence[Fact]) -> pd.DataFrame:
    columns = list(zip(*facts, strict=True)) if facts else [()] * len(Fact._fields)
    encounter, concept, time, available, value, status, source = columns
    return pd.DataFrame(
        {
            "encounter_id": np.array(encounter, object),
            "concept": np.array(concept, object),
            "time": stamps(time),
            "available_time": stamps(available),
            "numeric_value": np.array(value, np.float64),
            "status": np.array(status, object),
            "source_id": np.array(source, object),
        }
    )


def rows_of(asked: Sequence[tuple[str, int]]) -> pd.DataFrame:
    who = np.array([e for e, _ in asked], object)
    return pd.DataFrame({"encounter_id": who, "prediction_time": stamps([t for _, t in asked])})


def made(world: World, events: pd.DataFrame | FlatEvents | None = None, threads: int = 1) -> Matrix:
    events = table(world.facts) if events is None else events
    return build(events, rows_of(world.asked), WINDOWS, world.step, threads)


def same(one: Matrix, other: Matrix, said: str = "") -> None:
    """Equal bit for bit; what stands for missing need not be the same NaN."""
    np.testing.assert_array_equal(one, other, err_msg=said)
    here = ~np.isnan(one)
    np.testing.assert_array_equal(np.signbit(one[here]), np.signbit(other[here]), err_msg=said)


# Equal to a slow loop that anyone can check


def agrees(fast: float, slow: float, size: float, name: str) -> bool:
    """Equal to the last bit where nothing is calculated, else to the rounding of float32."""
    with np.errstate(over="ignore"):
        slow = float(np.float32(slow))
    if fast == slow or (math.isnan(fast) and math.isnan(slow)):
        return True
    if name in AS_STORED or math.isnan(fast) or math.isnan(slow):
        return False
    return abs(fast - slow) <= 2.0**-23 * abs(slow) + 2.0**-30 * size


@given(worlds)
def test_every_window_equals_the_slow_oracle(oracle: ModuleType, world: World) -> None:
    fast = made(world)
    width = 0 if world.step is None else world.step // timedelta(microseconds=1)
    squared = ("std", "slope", "twmean")  # squares and products of 1e300 are infinite, which no patient is
    for r, (encounter, t) in enumerate(world.asked):
        slow = oracle.row(world.facts, encounter, t, WINDOWS, width)
        for k, w in enumerate(WINDOWS):
            exact, size = slow[k]
            if not (w.statistic in squared and size > 1e100):
                assert agrees(float(fast[r, k]), exact, size, w.statistic), (w.name, fast[r, k], exact)


def test_the_worlds_are_slid_over_and_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    # Three rows in a row, one clock: what is slid over. The same with a late arrival: what is walked.
    calm = [Fact("a", "lactate", instant(10 * k, 0), instant(10 * k, 0), k / 3) for k in range(9)]
    late = [*calm, Fact("a", "lactate", instant(5, 0), instant(200, 0), 7.0)]
    asked = [("a", instant(60 * k, 0)) for k in range(3)]
    assert [_slides(flatten(table(f), CONCEPTS), asked) for f in (calm, late)] == [True, False]


def _slides(flat: FlatEvents, asked: list[tuple[str, int]]) -> bool:
    """Whether lactate can be slid over, by the kernel's own judgement, run as plain Python."""
    encounter, time = windows.rows(rows_of(asked), flat.encounter_ids)
    facts = kernels.Facts(
        flat.start, len(flat.concepts), flat.time, flat.available, flat.superseded, flat.value
    )
    desk: Any = _in_python(kernels._desk)(encounter, facts, windows.plan(WINDOWS, flat.concepts))
    lactate = encounter[0] * 2 + 1
    first, end = flat.start[lactate], flat.start[lactate + 1]
    return bool(_in_python(kernels._prepare)(facts, first, end, time[0], 0, desk))


def _in_python(function: Any) -> Callable[..., Any]:
    """The function that was compiled."""
    plain: Callable[..., Any] = function.py_func
    return plain


# The same bits on every road


def alone(world: World) -> Matrix:
    """Each row by itself, as a service asks: always walked."""
    flat = flatten(table(world.facts), CONCEPTS)
    return np.vstack([made(world._replace(asked=[row]), flat) for row in world.asked])


def told_so_far(world: World) -> Matrix:
    """Each row from nothing but what was known, and had happened.

    A report that is known and dated ahead may still say that an earlier report of its fact no longer stands.
    """

    def known(f: Fact, t: int) -> bool:
        return f.available <= t and (f.time <= t or identities[identity(f)] > 1)

    identities = Counter(map(identity, world.facts))
    parts = [
        made(world._replace(asked=[(e, t)], facts=[f for f in world.facts if known(f, t)]))
        for e, t in world.asked
    ]
    return np.vstack(parts)


def identity(f: Fact) -> tuple[str, str, str | None]:
    return f.encounter, f.concept, f.source_id


def in_chunks(world: World) -> Matrix:
    pieces = [world.asked[k : k + 4] for k in range(0, len(world.asked), 4)]
    return np.vstack([made(world._replace(asked=piece)) for piece in pieces])


def by_encounter(world: World) -> Matrix:
    """Partitions of encounters, each with its own events and rows."""
    out = np.full((len(world.asked), len(WINDOWS)), -1, np.float32)
    for who in {e for e, _ in world.asked}:
        mine = [k for k, (e, _) in enumerate(world.asked) if e == who]
        own = [f for f in world.facts if f.encounter == who]
        out[mine] = made(world._replace(facts=own, asked=[world.asked[k] for k in mine]))
    return out


def beside_a_stranger(world: World) -> Matrix:
    strange = [f._replace(encounter=who, value=f.value * 2) for f in world.facts for who in ("0", "zz")]
    return made(world._replace(facts=strange[::2] + world.facts + strange[1::2]))


def as_categories(world: World) -> Matrix:
    """Columns of categories, in an order of their own."""
    events = table(world.facts)
    for name in ("encounter_id", "concept", "status", "source_id"):
        found = sorted(set(events[name].dropna()), reverse=True)
        events[name] = pd.Categorical(events[name], ["nobody's", *found])
    rows = rows_of(world.asked)
    return build(events, rows.astype({"encounter_id": "category"}), WINDOWS, world.step)


ROADS: dict[str, Callable[[World], Matrix]] = {
    "alone": alone, "told so far": told_so_far, "in chunks": in_chunks, "by encounter": by_encounter,
    "beside a stranger": beside_a_stranger, "as categories": as_categories,
}  # fmt: skip


@given(worlds)
@settings(max_examples=60)
def test_every_road_gives_the_same_bits(world: World) -> None:
    whole = made(world)
    for name, road in ROADS.items():
        same(road(world), whole, name)


def as_reported(shuffled: list[Fact], facts: list[Fact]) -> list[Fact]:
    """Shuffled facts, but reports of one fact in the order in which they arrived, as they must be when they tie."""

    def fact_of(f: Fact) -> tuple[Any, ...]:
        return f.encounter, f.concept, f.source_id

    arrived: dict[tuple[Any, ...], Iterator[Fact]] = {}
    for f in facts:
        arrived.setdefault(fact_of(f), iter([g for g in facts if fact_of(g) == fact_of(f)]))
    return [f if f.source_id is None else next(arrived[fact_of(f)]) for f in shuffled]


@given(worlds, st.randoms(use_true_random=False))
def test_the_order_of_rows_of_events_and_of_columns_changes_nothing(world: World, chance: Any) -> None:
    whole = made(world)
    turned = chance.sample(range(len(world.asked)), len(world.asked))
    same(made(world._replace(asked=[world.asked[k] for k in turned])), whole[turned], "rows")
    shuffled = as_reported(chance.sample(world.facts, len(world.facts)), world.facts)
    same(made(world._replace(facts=shuffled)), whole, "events")
    some = chance.sample(range(len(WINDOWS)), chance.randint(1, len(WINDOWS)))
    fewer = build(table(world.facts), rows_of(world.asked), [WINDOWS[k] for k in some], world.step)
    same(fewer, whole[:, some], "columns")


@given(worlds)
@settings(max_examples=30)
def test_a_window_that_looks_no_further_than_it_must_gives_the_same_alone(world: World) -> None:
    whole, flat = made(world), flatten(table(world.facts), CONCEPTS)
    for k, w in enumerate(WINDOWS):
        if w.statistic in ("last", "hours_since_last", "delta"):
            rows = [build(flat, rows_of([row]), [w], world.step) for row in world.asked[:4]]
            same(np.vstack(rows)[:, 0], whole[:4, k], w.name)


@given(worlds)
@settings(max_examples=30)
def test_the_number_of_threads_changes_nothing(world: World) -> None:
    world = world._replace(asked=world.asked * 3)
    whole = made(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_WORTH_A_THREAD", 1)
        for threads in (0, 1, 2, 3, 7):
            same(made(world, threads=threads), whole, f"{threads} threads")


def test_threads_share_out_a_cohort(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    n = 120_000
    t = START_US + np.sort(rng.integers(0, 3000, n)) * MINUTE_US
    events = (
        table([Fact("a", "lactate", START_US, START_US, 1.0)]).iloc[np.zeros(n, int)].reset_index(drop=True)
    )
    events["encounter_id"] = rng.integers(0, 400, n).astype(str)
    events["concept"] = np.array(CONCEPTS, object)[rng.integers(0, 2, n)]
    events["time"], events["available_time"] = stamps(t), stamps(t)
    events["numeric_value"], events["source_id"] = rng.normal(80, 9, n), None
    rows = pd.DataFrame({"encounter_id": np.tile(np.arange(420), 30).astype(str)})
    rows["prediction_time"] = stamps(START_US + rng.integers(0, 3000, len(rows)) * MINUTE_US)
    events.to_parquet(tmp_path / "e.parquet", row_group_size=17_000)
    one = build(events, rows, WINDOWS)
    assert len(rows) > 10_000
    for threads in (0, 1, 2, 3):
        same(build(events, rows, WINDOWS, threads=threads), one)
        flat = read_flat(tmp_path / "e.parquet", CONCEPTS, threads)
        assert len(flat) == n
        same(build(flat, rows, WINDOWS), one)


# From a file and from bare arrays


@given(worlds, st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_parquet_file_gives_the_same_bits(tmp_path: Path, world: World, data: st.DataObject) -> None:
    facts = world.facts
    if data.draw(st.booleans(), "one clock"):
        facts = [f._replace(available=f.time) for f in facts]
    events = table(facts)
    for column, share in (("encounter_id", 7), ("concept", 5), ("status", 9), ("numeric_value", 4)):
        if data.draw(st.booleans(), f"some {column} empty"):
            events.loc[events.index[::share], column] = None
    arrow = written_as(events, data)
    codec = data.draw(
        st.sampled_from(["none", "snappy", {"time": "zstd", "numeric_value": "snappy"}]), "codec"
    )
    dictionary = data.draw(st.sampled_from([True, False, ["concept", "source_id"]]), "dictionary")
    size = data.draw(st.sampled_from([3, 1000]), "row group")
    pq.write_table(arrow, tmp_path / "e.parquet", size, compression=codec, use_dictionary=dictionary)
    whole = made(world, events)
    flat = read_flat(tmp_path / "e.parquet", CONCEPTS)
    same(made(world, flat), whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_WORTH_A_THREAD", 1)
        same(made(world, read_flat(tmp_path / "e.parquet", CONCEPTS, threads=2)), whole)


@given(worlds, st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_read_encounter_by_encounter_gives_the_same_bits(
    tmp_path: Path, world: World, data: st.DataObject
) -> None:
    """In chunks of any size, on any number of threads, whether encounters lie together or apart."""
    events = table(world.facts)
    if data.draw(st.booleans(), "some encounters empty"):
        events.loc[events.index[::7], "encounter_id"] = None
    together = data.draw(st.booleans(), "together")
    if together:
        events = events.sort_values("encounter_id", kind="stable", ignore_index=True)
    stored = written_as(events, data)
    pq.write_table(stored, tmp_path / "e.parquet", data.draw(st.sampled_from([2, 5, 1000]), "row group"))
    whole = made(world, events)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_ROWS", data.draw(st.sampled_from([1, 3, 1000]), "chunk"))
        patch.setattr(files, "FEWEST_ROWS", 1)
        if together:  # then nothing but chunks is ever read
            patch.setattr(files, "read_flat", None)
        for threads in (1, 3):
            asked = rows_of(world.asked)
            same(build_file(tmp_path / "e.parquet", asked, WINDOWS, world.step, threads), whole)


def test_a_large_file_is_shared_out_among_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in any order, encounters without events or rows, one encounter longer than a chunk, late labs, ties."""
    rng = np.random.default_rng(5)
    stays = np.repeat(rng.permutation(300), rng.integers(1, 400, 300))
    stays = np.concatenate([stays, np.full(9_000, 300)])
    n = stays.size
    micros = START_US + rng.integers(0, 3000, n) * MINUTE_US
    columns = {
        "encounter_id": pd.Categorical([f"s{k}" for k in stays]),
        "concept": np.array(CONCEPTS, object)[rng.integers(0, 2, n)],
        "time": stamps(micros),
        "available_time": stamps(micros + rng.integers(0, 90, n) * MINUTE_US),
        "numeric_value": rng.normal(80, 9, n),
        "status": "final",
        "source_id": rng.integers(0, 99, n).astype(str),
    }
    events = pd.DataFrame(columns)
    events.to_parquet(tmp_path / "e.parquet", row_group_size=7_000)
    who = np.array([f"s{k}" for k in rng.integers(20, 320, 12_000)], object)
    rows = pd.DataFrame({"encounter_id": who})
    rows["prediction_time"] = stamps(START_US + rng.integers(0, 3000, len(rows)) * MINUTE_US)
    whole = build(events, rows, WINDOWS)
    monkeypatch.setattr(files, "read_flat", None)
    monkeypatch.setattr(files, "FEWEST_ROWS", 1_000)
    for threads in (0, 1, 2, 5):
        same(build_file(tmp_path / "e.parquet", rows, WINDOWS, threads=threads), whole)


def written_as(events: pd.DataFrame, data: st.DataObject) -> pa.Table:
    """An Arrow table whose texts are plain, large or dictionaries, and whose times are naive or in UTC."""
    text = data.draw(
        st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]), "text"
    )
    zone = data.draw(st.sampled_from(["UTC", None]), "zone")
    columns = {}
    for name in events.columns:
        if str(events[name].dtype).startswith("datetime"):
            micros = pa.array(events[name].array.asi8)
            columns[name] = micros.cast(pa.timestamp("us", zone))
        elif name == "numeric_value":
            columns[name] = pa.array(events[name].to_numpy(), from_pandas=data.draw(st.booleans(), "null"))
        else:
            columns[name] = pa.array(events[name], pa.string(), from_pandas=True).cast(text)
    return pa.table(columns)


@given(worlds)
@settings(max_examples=60)
def test_bare_arrays_of_one_encounter_give_the_same_bits(world: World) -> None:
    facts = [f._replace(status="final", source_id=None) for f in world.facts]
    whole = made(world._replace(facts=facts))
    for who in ENCOUNTERS:
        mine = [f for f in facts if f.encounter == who]
        rows = [k for k, (e, _) in enumerate(world.asked) if e == who]
        flat = flatten_one(
            np.array([CONCEPTS.index(f.concept) for f in mine], np.int32),
            np.array([f.time for f in mine], np.int64),
            np.array([f.available for f in mine], np.int64),
            np.array([f.value for f in mine], np.float64),
            CONCEPTS,
        )
        out = np.empty((len(rows), len(WINDOWS)), np.float32)
        times = np.array([world.asked[k][1] for k in rows], np.int64)
        plan = windows.plan(WINDOWS, CONCEPTS)
        windows.fill(flat, np.zeros(len(rows), np.int64), times, plan, world.step, 1, out)
        same(out, whole[rows])


def test_a_window_asked_for_twice_is_given_twice() -> None:
    facts = [Fact("a", "lactate", instant(60 * k, 0), instant(60 * k, 0), k / 3) for k in range(9)]
    world = World(facts, [("a", instant(60 * k, 0)) for k in range(9)], None)
    out = np.full((9, 3 * len(WINDOWS)), -7, np.float32)
    build(table(facts), rows_of(world.asked), WINDOWS * 3, out=out)
    same(out, np.tile(made(world), 3))


@pytest.mark.parametrize("minutes_apart", [10, 0])
def test_a_negative_zero_is_zero(minutes_apart: int) -> None:
    # Which of two zeros is the smaller would depend on the road. Apart they are laid out, at one instant sorted.
    facts = [
        Fact("a", "lactate", instant(minutes_apart * k, 0), instant(minutes_apart * k, 0), v)
        for k, v in enumerate([-0.0, 0.0, -0.0])
    ]
    flat = flatten(table(facts), CONCEPTS)
    assert not np.signbit(flat.value).any()
    found = build(flat, rows_of([("a", instant(m, 0)) for m in (0, 10, 20, 30)]), WINDOWS)
    assert not np.signbit(found[found == 0]).any()


# Large: pages, long groups


def test_an_encounter_of_more_rows_than_a_page_holds_equals_row_by_row() -> None:
    rng = np.random.default_rng(5)
    wide = [
        Window(c, s, back)
        for c in CONCEPTS
        for back in range(HOUR_US, 41 * HOUR_US, HOUR_US)
        for s in STATISTICS
    ]
    n = 2500
    assert n > 2 * (kernels.PAGE // (len(wide) + 1))
    times = [instant(int(m), 0) for m in rng.integers(0, 6000, n)]
    lag = rng.integers(0, 90, 400)
    facts = [
        Fact(
            "a",
            CONCEPTS[k % 2],
            instant(15 * k, 0),
            instant(15 * k + (int(lag[k]) if k % 2 else 0), 0),
            float(v),
        )
        for k, v in enumerate(rng.normal(80, 9, 400))
    ]
    flat = flatten(table(facts), CONCEPTS)
    together = build(flat, rows_of([("a", t) for t in times]), wide)
    some = rng.choice(n, 700, replace=False)
    for k in some:
        same(build(flat, rows_of([("a", times[k])]), wide), together[[k]])


def test_the_longest_group_that_is_slid_over_equals_one_event_more_that_is_walked() -> None:
    rng = np.random.default_rng(6)
    n = kernels.LONGEST + 1
    t = START_US + np.arange(n) * 1_000_000
    value = np.round(rng.normal(80, 9, n), 2)
    short = [Window("lactate", s, back) for s in STATISTICS for back in (HOUR_US // 60, HOUR_US, STAY_US)]
    plan, times = (
        windows.plan(short, ("lactate",)),
        START_US + np.array([50, 5000, 60_000, 65_535, 70_000]) * 10**6,
    )
    found = []
    for skipped in (0, 1):
        some = slice(skipped, None)
        flat = flatten_one(np.zeros(n - skipped, np.int32), t[some], t[some], value[some], ("lactate",))
        found.append(np.empty((5, len(short)), np.float32))
        windows.fill(flat, np.zeros(5, np.int64), times, plan, None, 1, found[-1])
    walked, slid = found
    inside = [k for k, w in enumerate(short) if w.lookback_us != STAY_US]
    same(slid[1:, inside], walked[1:, inside])
    stay = {w.statistic: k for k, w in enumerate(short) if w.lookback_us == STAY_US}
    for matrix, skipped in ((walked, 0), (slid, 1)):
        for row, last in zip(matrix, (50, 5000, 60_000, 65_535, n - 1), strict=True):
            seen = value[skipped : last + 1]
            expected = {
                "count": seen.size, "min": seen.min(), "max": seen.max(), "sum": math.fsum(seen), "first": seen[0],
                "mean": math.fsum(seen) / seen.size, "std": seen.std(ddof=1), "last": seen[-1],
                "delta": seen[-1] - seen[-2], "delta_from_first": seen[-1] - seen[0],
                "slope": np.polyfit(np.arange(seen.size) / 3600, seen - 80, 1)[0],
            }  # fmt: skip
            for name, worked in expected.items():
                assert row[stay[name]] == pytest.approx(worked, rel=2e-7, abs=1e-9), name


# Sums

ordinary = st.one_of(
    st.floats(2.0**-20, 2.0**20, exclude_max=True), st.floats(-(2.0**20), -(2.0**-20), exclude_min=True), st.just(0.0)
)  # fmt: skip


@given(st.lists(ordinary, min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_a_sum_does_not_depend_on_the_order_of_adding(values: list[float], chance: Any) -> None:
    assert all(kernels._ordinary(v) for v in values)

    def total(some: list[float]) -> tuple[float, float]:
        parts = [kernels._split(v) for v in some]
        return sum(p[0] for p in parts), sum(p[1] for p in parts)

    whole = total(values)
    assert total(chance.sample(values, len(values))) == whole
    assert sum(whole) == pytest.approx(
        math.fsum(values), rel=0, abs=2.0**-52 * len(values) + 2.0**-53 * abs(sum(whole))
    )
    before = total(values[: len(values) // 2])
    after = total(values[len(values) // 2 :])
    assert (whole[0] - before[0], whole[1] - before[1]) == after


def test_only_values_whose_sums_are_exact_are_taken_apart() -> None:
    taken = [0.0, 2.0**-20, -(2.0**-20), math.nextafter(2.0**20, 0), math.nextafter(-(2.0**20), 0)]
    left = [2.0**20, -(2.0**20), math.nextafter(2.0**-20, 0), 1e300, 1e-300]
    assert [kernels._ordinary(v) for v in (*taken, *left)] == [True] * 5 + [False] * 5


@given(ordinary)
def test_a_value_and_its_negative_cancel(value: float) -> None:
    plus, minus = kernels._split(value), kernels._split(-value)
    assert (plus[0] + minus[0], plus[1] + minus[1]) == (0, 0)


@pytest.mark.parametrize(
    "value", [2.0**20 - 2.0**-32, -(2.0**20) + 2.0**-32, 36.6, 0.1, 2.0**-20, 1e-6 + 2.0**-20]
)
def test_the_parts_of_a_hundred_thousand_values_add_up_exactly(value: float) -> None:
    n = 100_000
    coarse, fine = (np.full(n, part) for part in kernels._split(value))
    for part in (coarse, fine):
        exact = int(part[0] * 2.0**52) * n
        assert int(np.cumsum(part)[-1] * 2.0**52) == exact
    assert (n * coarse[0] + n * fine[0]) * (1.0 / n) == pytest.approx(value, rel=2.0**-31)


steady = st.one_of(
    st.floats(2.0**-20, 2.0**20, exclude_max=True, width=32), st.integers(1, 99_999).map(lambda k: k / 100)
)


@given(steady, st.integers(1, 60))
def test_the_mean_of_a_steady_value_is_that_value(value: float, n: int) -> None:
    for v in (value, -value):
        facts = [Fact("a", "lactate", instant(10 * k, 0), instant(10 * k, 0), v) for k in range(n)]
        rows = rows_of([("a", instant(10 * k, 0)) for k in range(max(n, 3))])
        found = build(
            table(facts), rows, [Window("lactate", "mean", STAY_US), Window("lactate", "mean", HOUR_US)]
        )
        assert (found[:n] == np.float32(v)).all()


# Two clocks stored alike


def clocks(**change: Any) -> pa.Table:
    """Twelve events whose two clocks agree."""
    micros = pa.array([instant(10 * k, 0) for k in range(12)], pa.timestamp("us", "UTC"))
    columns = {
        "encounter_id": pa.array(["a"] * 12),
        "concept": pa.array(["lactate"] * 12),
        "time": micros,
        "available_time": micros,
        "numeric_value": pa.array([k / 4 for k in range(12)]),
        "status": pa.array(["final"] * 12),
        "source_id": pa.array([None] * 12, pa.string()),
    }
    return pa.table(columns | change)


LATER = pa.array([instant(10 * k + (30 if k == 7 else 0), 0) for k in range(12)], pa.timestamp("us", "UTC"))
NAIVE = pa.array([instant(10 * k, 0) for k in range(12)], pa.timestamp("us"))


@pytest.mark.parametrize(
    ("change", "how", "alike"),
    [
        ({}, {}, True),
        ({}, {"row_group_size": 5}, True),
        ({}, {"use_dictionary": False}, True),
        ({}, {"compression": "zstd", "data_page_size": 16}, True),
        ({"available_time": LATER}, {}, False),
        ({"available_time": LATER}, {"row_group_size": 1, "use_dictionary": False}, False),
        ({"available_time": LATER}, {"row_group_size": 6, "write_statistics": False}, False),
        ({"available_time": NAIVE}, {}, False),
        ({}, {"compression": {"time": "zstd", "available_time": "snappy"}}, False),
        ({}, {"use_dictionary": ["time"]}, False),
    ],
)
def test_the_second_clock_is_left_unread_only_where_it_is_the_first_over_again(
    tmp_path: Path, change: dict[str, Any], how: dict[str, Any], alike: bool
) -> None:
    path, stored = tmp_path / "e.parquet", clocks(**change)
    pq.write_table(stored, path, **how)
    with pq.ParquetFile(path) as file:
        assert files._stored_alike(path, file, "time", "available_time") is alike
    flat, plain = read_flat(path, CONCEPTS), stored.to_pandas()
    assert flat.time.tolist() == np.asarray(plain["time"], "datetime64[us]").astype(int).tolist()
    assert (
        flat.available.tolist() == np.asarray(plain["available_time"], "datetime64[us]").astype(int).tolist()
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_second_clock_that_only_its_bytes_tell_apart_is_read_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """One of twelve events was known 30 minutes late; sizes, encodings and statistics are those of one clock."""
    path, stored = tmp_path / "e.parquet", clocks(available_time=LATER)
    pq.write_table(stored, path, use_dictionary=False, compression=None)
    with pq.ParquetFile(path) as file:
        assert files._may_be_alike(file, "time", "available_time")
    monkeypatch.setattr(files, "FEWEST_ROWS", 1)
    rows = pd.DataFrame({"encounter_id": "a", "prediction_time": LATER.to_pandas()})
    found = build_file(path, rows, WINDOWS, threads=threads)
    same(found, build(stored.to_pandas(), rows, WINDOWS))
    assert not np.array_equal(found, build_file(one_clock(tmp_path), rows, WINDOWS), equal_nan=True)


def one_clock(folder: Path) -> Path:
    pq.write_table(clocks(), folder / "one.parquet")
    return folder / "one.parquet"


def test_an_empty_second_clock_is_counted(tmp_path: Path) -> None:
    missing = pa.array([*clocks()["time"].to_pylist()[:-1], None], pa.timestamp("us", "UTC"))
    pq.write_table(clocks(available_time=missing), tmp_path / "one.parquet")
    with pytest.raises(DataError, match="1 of 12 rows have no available_time"):
        read_flat(tmp_path / "one.parquet", CONCEPTS)
    pq.write_table(clocks(time=missing, available_time=missing), tmp_path / "both.parquet")
    with pytest.raises(DataError, match="1 of 12 rows have no time"):
        read_flat(tmp_path / "both.parquet", CONCEPTS)


@pytest.mark.parametrize("groups", [1, 0])
def test_a_file_without_rows_has_no_events(tmp_path: Path, groups: int) -> None:
    with pq.ParquetWriter(tmp_path / "e.parquet", clocks().schema) as writer:
        for _ in range(groups):
            writer.write_table(clocks().slice(0, 0))
    flat = read_flat(tmp_path / "e.parquet", CONCEPTS, threads=2)
    asked = [Window("lactate", "count", STAY_US)]
    assert build_file(tmp_path / "e.parquet", rows_of([("a", START_US)]), asked, threads=2).tolist() == [[0]]
    assert len(flat) == 0
    assert build(flat, rows_of([("a", START_US)]), [Window("lactate", "count", STAY_US)]).tolist() == [[0]]


def test_what_is_no_event_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    asked = rows_of([(str(stay), START_US) for stay in clocks()["encounter_id"].unique().to_pylist()])
    roads = (lambda: read_flat(path, CONCEPTS), lambda: build_file(path, asked, WINDOWS, threads=2))
    for broken, said in [
        (clocks().drop_columns(["status"]), "lacks status"),
        (clocks(numeric_value=pa.array(["high"] * 12)), "numeric_value"),
        (clocks(time=pa.array(range(12))), "'time' is int64"),
        (clocks(time=NAIVE.cast(pa.timestamp("ns"))), "'time' is timestamp"),
        (clocks(numeric_value=pa.array([math.inf] * 12)), "12 of 12 events have an infinite"),
    ]:
        pq.write_table(broken, path)
        for read in roads:
            with pytest.raises(DataError, match=said):
                read()
    path.write_bytes(path.read_bytes()[:-40])
    for read in roads:
        with pytest.raises(DataError, match=r"e\.parquet cannot be read as Parquet"):
            read()


def test_ties_in_a_file_break_by_source(tmp_path: Path) -> None:
    ties = list(itertools.permutations(["é", "b", None, "Z"]))
    facts = [
        Fact(str(k), "lactate", START_US, START_US, float(i), "final", source)
        for k, order in enumerate(ties)
        for i, source in enumerate(order)
    ]
    events = table(facts)
    rows = rows_of([(str(k), START_US) for k in range(len(ties))])
    asked = [Window("lactate", s, STAY_US) for s in ("first", "delta", "last")]
    whole = build(events, rows, asked)
    assert whole[:, 2].tolist() == [order.index("é") for order in ties]
    for text in (pa.string(), pa.dictionary(pa.int32(), pa.string())):
        stored = pa.Table.from_pandas(events, preserve_index=False)
        at = stored.schema.get_field_index("source_id")
        stored = stored.set_column(at, "source_id", stored["source_id"].cast(text))
        pq.write_table(stored, tmp_path / "e.parquet")
        same(build(read_flat(tmp_path / "e.parquet", CONCEPTS), rows, asked), whole)
        same(build_file(tmp_path / "e.parquet", rows, asked, threads=2), whole)
        same(build(pd.read_parquet(tmp_path / "e.parquet"), rows, asked), whole)
