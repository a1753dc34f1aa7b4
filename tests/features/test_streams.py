"""Feature tables on disk, shard by shard: the same numbers as in memory, at the times a rule says."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import archive, streams
from features.clock import UTC_US
from features.errors import DataError, SpecError
from features.featureset import FeatureSet
from features.files import arrow_columns
from features.sources.batch import Batch, ReadAccount, no_encounters
from features.streams import AtEvents, Grid, Listed, prediction_times
from features.windows import Columns, Window

NINE = pd.Timestamp("2026-05-01T09:00Z")
FEATURES = FeatureSet(
    tuple(Window.parse(c, s) for c in ("heart_rate", "lactate") for s in ("last", "count_6h", "mean_24h")),
    scores=("qsofa_partial",),
)
Tell = Callable[..., pd.DataFrame]


def at(hours: float) -> pd.Timestamp:
    return NINE + pd.Timedelta(hours=hours)


def stays(**admitted: tuple[float | None, float | None]) -> pd.DataFrame:
    """Encounters with hospital and ICU admission in hours after 09:00."""
    table = no_encounters().reindex(range(len(admitted)))
    when = [[None if h is None else at(h) for h in both] for both in admitted.values()]
    return table.assign(
        encounter_id=list(admitted),
        subject_id=[f"person of {e}" for e in admitted],
        encounter_class="ward",
        hospital_admission_time=pd.Series(pd.to_datetime([w[0] for w in when], utc=True)).astype(UTC_US),
        icu_admission_time=pd.Series(pd.to_datetime([w[1] for w in when], utc=True)).astype(UTC_US),
    )


def marks(encounter: str, **times: float) -> list[dict[str, Any]]:
    return [{"encounter_id": encounter, "concept": c, "time": t, "value": 1} for c, t in times.items()]


@pytest.fixture
def cohort(tell: Tell, tmp_path: Path) -> Path:
    rows = [
        {
            "encounter_id": f"e{k % 9}",
            "time": k % 31,
            "available": k % 31 + k % 3,
            "concept": "lactate" if k % 4 == 0 else "heart_rate",
            "value": 2 + k % 7,
        }
        for k in range(300)
    ]
    about = stays(**{f"e{k}": (float(k), None) for k in range(9)})
    folder = tmp_path / "meds"
    archive.write([Batch(about, tell(rows))], folder, ReadAccount(), shard_rows=120, group_rows=60)
    return folder


def hours(rows: pd.DataFrame, encounter: str) -> list[float]:
    mine = rows[rows["encounter_id"] == encounter]["prediction_time"]
    return [(t - NINE) / pd.Timedelta("1h") for t in mine]


def times(tell: Tell, folder: Path, about: pd.DataFrame, rows: list[dict[str, Any]], rule: Any) -> Any:
    """What a rule says of one small archive."""
    archive.write([Batch(about, tell(rows))], folder / "meds", ReadAccount())
    (shard,) = archive.read(folder / "meds")
    return rule.rows(shard.encounters, arrow_columns(shard.table, lambda: shard.table["source_id"]))


# ------------------------------------------------------------ when


def test_a_grid_runs_from_admission_to_discharge_both_included(tell: Tell, tmp_path: Path) -> None:
    about = stays(a=(0.0, None), b=(0.5, None), c=(None, 2.0), d=(None, None))
    told = [*marks("a", heart_rate=1, hospital_discharge=3), {"encounter_id": "a", "time": 9, "value": 60}]
    told += marks("b", heart_rate=4, death=1.25) + marks("c", heart_rate=4.5) + marks("d", heart_rate=4)
    rows, left = times(tell, tmp_path, about, told, Grid())
    assert hours(rows, "a") == [0, 1, 2, 3]
    assert hours(rows, "b") == [0.5]
    assert hours(rows, "c") == [2, 3, 4]
    assert left == {"no_start": 1}


def test_a_grid_of_the_icu_leaves_out_who_never_was_there(tell: Tell, tmp_path: Path) -> None:
    about = stays(a=(0.0, 2.0), b=(0.0, None))
    told = marks("a", heart_rate=1, icu_discharge=6, hospital_discharge=9) + marks("b", heart_rate=5)
    rows, left = times(tell, tmp_path, about, told, Grid(timedelta(hours=2), "icu"))
    assert hours(rows, "a") == [2, 4, 6]
    assert left == {"no_start": 1}


def test_a_discharge_years_away_is_cut_and_counted(tell: Tell, tmp_path: Path) -> None:
    told = marks("a", heart_rate=1, hospital_discharge=24 * 4000)
    rows, left = times(tell, tmp_path, stays(a=(0.0, None)), told, Grid(timedelta(days=1)))
    assert len(rows) == 367
    assert left == {"cut_at_a_year": 1}


def test_a_discharge_before_admission_does_not_end_the_stay(tell: Tell, tmp_path: Path) -> None:
    told = marks("a", hospital_discharge=-5, heart_rate=2)
    rows, _ = times(tell, tmp_path, stays(a=(0.0, None)), told, Grid())
    assert hours(rows, "a") == [0, 1, 2]


def test_events_trigger_when_they_become_available(tell: Tell, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = [
        {"encounter_id": "a", "concept": "lactate", "time": 1, "available": 2, "value": 2},
        {"encounter_id": "a", "concept": "lactate", "time": 1.5, "available": 2, "value": 3},
        {"encounter_id": "a", "concept": "heart_rate", "time": 3, "value": 80},
        {"encounter_id": "a", "concept": "lactate", "time": 4, "value": 3, "status": "deleted"},
        {"encounter_id": "a", "concept": "ph", "time": 0, "value": 7.3},
    ]
    rule = AtEvents(("lactate", "ph"))
    rows, left = times(tell, tmp_path, stays(a=(0.0, None), b=(0.0, None)), told, rule)
    assert hours(rows, "a") == [0, 2]
    assert left == {"no_such_fact": 1}


def test_any_list_of_times_can_be_asked(tell: Tell, tmp_path: Path) -> None:
    asked = pa.table(
        {"encounter_id": ["b", "a", "nobody", "b"], "prediction_time": [at(h) for h in (7, 1, 1, 2)]}
    )
    pq.write_table(asked, tmp_path / "asked.parquet")
    rule = Listed(tmp_path / "asked.parquet")
    rows, left = times(tell, tmp_path, stays(a=(0.0, None), b=(0.0, None), c=(0.0, None)), [], rule)
    assert (hours(rows, "a"), hours(rows, "b"), len(rows), len(rule)) == ([1], [2, 7], 3, 4)
    assert left == {"not_listed": 1}


def test_rules_are_written_in_words(tmp_path: Path) -> None:
    assert prediction_times("hourly") == Grid()
    assert prediction_times("hourly:icu") == Grid(start="icu")
    assert prediction_times("4h") == Grid(timedelta(hours=4))
    assert prediction_times("30min:icu") == Grid(timedelta(minutes=30), "icu")
    assert prediction_times("events:lactate, ph") == AtEvents(("lactate", "ph"))
    with pytest.raises(DataError, match="no rule and no file"):
        prediction_times(str(tmp_path / "absent.parquet"))
    with pytest.raises(SpecError, match="lactat"):
        prediction_times("events:lactat")
    with pytest.raises(SpecError, match="start of icu or hospital"):
        prediction_times("hourly:ward")


def test_a_list_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "asked.parquet"
    pq.write_table(pa.table({"encounter_id": ["a"], "prediction_time": ["noon"]}), path)
    with pytest.raises(DataError, match=r"is string\. Write timestamps"):
        Listed(path)
    pq.write_table(pa.table({"encounter_id": ["a", None], "prediction_time": [at(1), at(2)]}), path)
    with pytest.raises(DataError, match="1 empty cells"):
        Listed(path)
    pq.write_table(pa.table({"encounter_id": ["a"]}), path)
    with pytest.raises(DataError, match="no Parquet file with encounter_id and prediction_time"):
        Listed(path)


# ------------------------------------------------------------ what


def test_a_stream_gives_the_numbers_of_one_call_in_memory(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "GROUP_ROWS", 7)
    said: list[int] = []
    account = streams.build_stream(FEATURES, cohort, Grid(), tmp_path / "features", say=said.append)
    shards = list(archive.read(cohort))
    assert len(shards) == account.shards == len(said) > 3
    table = streams.read_features(tmp_path / "features").to_pandas()
    assert len(table) == account.predictions == sum(said) == streams.rows_of(tmp_path / "features")
    events = pd.concat([s.events.astype({"encounter_id": "str", "concept": "str"}) for s in shards])
    rows = table[["encounter_id", "prediction_time"]].astype({"encounter_id": "str"})
    whole = FEATURES.build(events.sample(frac=1, random_state=1), rows)
    np.testing.assert_array_equal(table[list(FEATURES.names)].to_numpy(np.float32), whole)
    assert set(table["encounter_id"]) == {f"e{k}" for k in range(9)}
    assert account.encounters == 9


def test_threads_and_sources_change_no_byte(cohort: Path, tmp_path: Path) -> None:
    streams.build_stream(FEATURES, cohort, Grid(), tmp_path / "one")
    streams.build_stream(FEATURES, cohort, Grid(), tmp_path / "three", threads=3)
    streams.build_stream(FEATURES, archive.read(cohort), Grid(), tmp_path / "iterated")
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    for other in ("three", "iterated"):
        assert sorted(p.name for p in (tmp_path / other).iterdir()) == names
        for name in names:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / other / name).read_bytes()


def test_a_file_says_how_its_features_were_made(cohort: Path, tmp_path: Path) -> None:
    streams.build_stream(FEATURES, cohort, Grid(), tmp_path / "features")
    first = min((tmp_path / "features").iterdir())
    schema = pq.read_schema(first)
    assert json.loads(schema.metadata[b"wardcast.features"])["names"] == list(FEATURES.names)
    assert schema.names == ["encounter_id", "prediction_time", *FEATURES.names]
    assert {str(t) for t in schema.types[2:]} == {"float"}


def test_missing_is_nan_and_counts_are_zero(tell: Tell, tmp_path: Path) -> None:
    archive.write(
        [Batch(stays(a=(0.0, None)), tell(marks("a", hospital_discharge=1)))], tmp_path / "m", ReadAccount()
    )
    streams.build_stream(FEATURES, tmp_path / "m", Grid(), tmp_path / "features")
    table = streams.read_features(tmp_path / "features")
    assert table["heart_rate__count_6h"].to_pylist() == [0, 0]
    assert np.isnan(table["heart_rate__last"].to_numpy()).all()
    assert table["heart_rate__last"].null_count == 0


def test_a_stream_that_fails_leaves_nothing_behind(cohort: Path, tmp_path: Path) -> None:
    class Broken:
        def rows(self, stays: pd.DataFrame, facts: Columns) -> Any:
            raise DataError("the rule breaks")

    with pytest.raises(DataError, match="the rule breaks"):
        streams.build_stream(FEATURES, cohort, Broken(), tmp_path / "features", threads=2)
    assert [p.name for p in tmp_path.iterdir()] == ["meds"]


def test_features_are_not_written_over(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Name a new one for the features"):
        streams.build_stream(FEATURES, cohort, Grid(), tmp_path)
    with pytest.raises(DataError, match="No features in"):
        streams.read_features(cohort)
