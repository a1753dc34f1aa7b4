"""Two workers give what one process gives, bit for bit, also when one of them is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import archive, streams
from features.clock import UTC_US
from features.errors import DataError, WardcastError
from features.events import EVENT_COLUMNS
from features.featureset import FeatureSet
from features.sources.batch import Batch, ReadAccount, no_encounters
from features.windows import Window
from training import distributed

pytestmark = pytest.mark.slow
FEATURES = FeatureSet(
    tuple(
        Window.parse(c, s)
        for c in ("heart_rate", "lactate", "sbp")
        for s in ("last", "count_6h", "mean_24h", "slope_12h")
    ),
    scores=("qsofa_partial",),
)
START = pd.Timestamp("2026-05-01T09:00Z")
PEOPLE = 120


@pytest.fixture(scope="module")
def meds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small archive of some shards."""
    rng = np.random.default_rng(3)
    n = 6_000
    who = rng.integers(0, PEOPLE, n)
    concept = rng.choice(["heart_rate", "lactate", "sbp"], n)
    when = pd.Series(START + pd.to_timedelta(rng.integers(0, 48 * 60, n), unit="min")).astype(UTC_US)
    facts = pd.DataFrame({c: pd.Series([None] * n, dtype="str") for c in EVENT_COLUMNS}).assign(
        subject_id=[f"p{w}" for w in who],
        encounter_id=[f"e{w}" for w in who],
        time=when,
        available_time=when,
        code=[f"WARDCAST//{c}" for c in concept],
        numeric_value=np.where(
            concept == "lactate", rng.gamma(2, 1.0, n), rng.normal(100, 20, n).clip(40, 200)
        ),
        status="final",
    )
    admitted = pd.Series([START] * PEOPLE).astype(UTC_US)
    stays = (
        no_encounters()
        .reindex(range(PEOPLE))
        .assign(
            encounter_id=[f"e{k}" for k in range(PEOPLE)],
            subject_id=[f"p{k}" for k in range(PEOPLE)],
            encounter_class="ward",
            age_years=60.0,
            hospital_admission_time=admitted,
        )
    )
    folder = tmp_path_factory.mktemp("archive") / "meds"
    archive.write([Batch(stays, facts)], folder, ReadAccount(), shard_rows=2_000, group_rows=300)
    return folder


@pytest.fixture(scope="module")
def local(meds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the archive, built in this process."""
    folder = tmp_path_factory.mktemp("local") / "features"
    streams.build_stream(FEATURES, meds, streams.Grid(), folder)
    return folder


@pytest.fixture(scope="module")
def labels(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outcome that follows the heart rate; a tenth of the rows have none."""
    table = (
        streams.read_features(local)
        .select(["encounter_id", "prediction_time", "heart_rate__last"])
        .to_pandas()
    )
    rng = np.random.default_rng(4)
    risk = 1 / (1 + np.exp(-(table.pop("heart_rate__last").fillna(100) - 110) / 10))
    label = np.where(rng.random(len(table)) < 0.1, np.nan, rng.random(len(table)) < risk)
    path = tmp_path_factory.mktemp("labels") / "labels.parquet"
    table.astype({"encounter_id": "str"}).assign(label=label).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with distributed.cluster(workers=2) as found:
        distributed.warm(found, FEATURES)
        yield found


def same_bytes(one: Path, other: Path) -> None:
    names = sorted(p.name for p in one.iterdir())
    assert len(names) > 10
    assert sorted(p.name for p in other.iterdir()) == names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_features_of_two_workers_are_those_of_one_process(
    client: Any, meds: Path, local: Path, tmp_path: Path
) -> None:
    made = distributed.build_features(FEATURES, meds, streams.Grid(), tmp_path / "features", client=client)
    same_bytes(local, tmp_path / "features")
    assert made.predictions == streams.rows_of(local)
    assert made.encounters == PEOPLE


def test_the_booster_of_a_cluster_predicts_like_one_of_a_process(
    client: Any, local: Path, labels: Path
) -> None:
    params = {"num_leaves": 7, "min_child_samples": 20, "deterministic": True, "seed": 1}
    trained = distributed.train(local, labels, params, 15, client=client)
    parts = [distributed.labelled(f, labels) for f in sorted(local.iterdir())]
    matrix, label = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    assert (trained.rows, trained.positives) == (label.size, label.sum())
    alone = lgb.train(
        {**params, "objective": "binary", "verbose": -1, "num_threads": 1}, lgb.Dataset(matrix, label), 15
    )
    # Bins are cut from each worker's rows, so trees differ a little; ranks and calibration may not.
    there, here = trained.booster.predict(matrix), alone.predict(matrix)
    assert np.corrcoef(there, here)[0, 1] > 0.97
    assert abs(there.mean() - label.mean()) < 0.01
    again = lgb.Booster(model_str=trained.booster.model_to_string())
    np.testing.assert_array_equal(again.predict(matrix), there)


def test_features_survive_the_loss_of_a_worker(client: Any, meds: Path, local: Path, tmp_path: Path) -> None:
    """The last test with this cluster: one worker is killed after the first shard."""
    workers = client.run(os.getpid)
    killed: list[int] = []

    def kill_one(predictions: int) -> None:
        if not killed:
            killed.append(next(iter(workers.values())))
            os.kill(killed[0], signal.SIGKILL)

    made = distributed.build_features(
        FEATURES, meds, streams.Grid(), tmp_path / "features", client=client, say=kill_one
    )
    assert killed
    same_bytes(local, tmp_path / "features")
    assert made.predictions == streams.rows_of(local)
    client.wait_for_workers(2, timeout=60)
    assert killed[0] not in client.run(os.getpid).values()


def test_training_begins_again_when_it_breaks(
    monkeypatch: pytest.MonkeyPatch, client: Any, local: Path, labels: Path
) -> None:
    real: Callable[..., Any] = distributed._fit
    tried: list[int] = []

    def once_broken(*arguments: Any) -> Any:
        tried.append(1)
        if len(tried) == 1:
            raise OSError("a socket was closed")
        return real(*arguments)

    monkeypatch.setattr(distributed, "_fit", once_broken)
    assert distributed.train(local, labels, {"num_leaves": 4}, 2, client=client).rows > 0
    assert len(tried) == 2
    monkeypatch.setattr(distributed, "_fit", lambda *a: (_ for _ in ()).throw(OSError("a row of somebody")))
    with pytest.raises(DataError, match=r"failed 2 times on the cluster \(OSError\)") as error:
        distributed.train(local, labels, {}, 2, client=client, attempts=2)
    assert "somebody" not in str(error.value), "who knows what such a message quotes"


def test_outcomes_of_one_kind_train_nothing(client: Any, local: Path, labels: Path, tmp_path: Path) -> None:
    table = pq.read_table(labels)
    place = table.column_names.index("label")
    pq.write_table(
        table.set_column(place, "label", pa.array(np.zeros(len(table)))), tmp_path / "labels.parquet"
    )
    with pytest.raises(DataError, match="0 are positive"):
        distributed.train(local, tmp_path / "labels.parquet", {}, 2, client=client)


def test_labels_and_features_that_are_not_there_are_told(local: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No features in"):
        distributed.train(tmp_path, tmp_path / "labels.parquet", {}, 2, client=None)
    first = min(local.iterdir())
    with pytest.raises(DataError, match=r"No labels at labels\.parquet"):
        distributed.labelled(first, tmp_path / "labels.parquet")
    pq.write_table(pa.table({"encounter_id": ["a"]}), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="lacks prediction_time, label"):
        distributed.labelled(first, tmp_path / "labels.parquet")


def test_repeated_labels_are_refused_without_saying_whose(local: Path, labels: Path, tmp_path: Path) -> None:
    table = pq.read_table(labels)
    pq.write_table(pa.concat_tables([table, table.slice(0, 3)]), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match=r"^3 labels of labels\.parquet repeat") as error:
        distributed.labelled(min(local.iterdir()), tmp_path / "labels.parquet")
    assert table["encounter_id"][0].as_py() not in str(error.value)


def test_a_scheduler_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(WardcastError, match="No Dask scheduler answers"),
        distributed.cluster("tcp://127.0.0.1:1"),
    ):
        pass
