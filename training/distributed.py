"""Past one machine: features of an archive on a Dask cluster, and LightGBM trained where they are.

A task is one shard of the archive: whole subjects, the very call a single machine makes (``streams.build_part``), so
the numbers are the same bit for bit and a task that is done twice writes the same file. A worker that is lost loses its
running tasks only; the scheduler gives them to another. Archive and output lie in a folder that all workers see.

What travels between client, scheduler and workers is pickled by Dask: paths, a feature set, a rule of prediction times,
counts. Nothing of it is kept. But whoever reaches a scheduler can run code on its workers, so a cluster started here
listens on this machine only and without a dashboard; a cluster of a hospital's belongs behind TLS
(``distributed.comm.require-encryption``) in a network of its own. LightGBM moves histograms between workers over plain
sockets of its own: same rule.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from features import archive, streams
from features.archive import ShardKey
from features.clock import UTC_US
from features.errors import DataError, WardcastError
from features.featureset import FeatureSet
from features.streams import PredictionTimes, StreamAccount

ATTEMPTS: Final = 3
"""How often a shard may be lost with its worker, and training begun again, before we give up."""
PATIENCE: Final = "10s"
"""How long a scheduler may take to answer."""
KEYS: Final = ["encounter_id", "prediction_time"]

Matrix = npt.NDArray[np.float32]


@contextmanager
def cluster(address: str = "", workers: int = 2) -> Iterator[Any]:
    """A Dask client: of the scheduler at ``address``, or of ``workers`` processes on this machine.

    Raises
    ------
    WardcastError
        Dask is not installed, or nobody answers at the address.
    """
    dask, distributed = _dask()
    quiet = {
        "dataframe.convert-string": False,
        "distributed.scheduler.allowed-failures": ATTEMPTS,
        "distributed.worker.daemon": False,
    }
    with dask.config.set(quiet):
        if address:
            with _client(distributed, address) as client:
                yield client
            return
        local = distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=logging.ERROR,
        )
        with local, distributed.Client(local) as client:
            yield client


def _dask() -> tuple[Any, Any]:
    try:
        return import_module("dask"), import_module("distributed")
    except ImportError:
        raise WardcastError("Dask is not installed. Run: pip install 'wardcast[scale]'") from None


def _client(distributed: Any, address: str) -> Any:
    try:
        return distributed.Client(address, timeout=PATIENCE)
    except (OSError, TimeoutError, ValueError):
        raise WardcastError(
            f"No Dask scheduler answers at {address}. Write for example tcp://10.0.0.5:8786."
        ) from None


# ------------------------------------------------------------ features


def build_features(
    features: FeatureSet,
    source: Path,
    times: PredictionTimes,
    output: Path,
    *,
    client: Any,
    say: Callable[[int], None] = lambda predictions: None,
) -> StreamAccount:
    """``streams.build_stream`` on the workers of a cluster: the same files, bit for bit.

    Parameters
    ----------
    source, output : Path
        As for ``build_stream``; every worker must see both under this name.
    client : distributed.Client

    Raises
    ------
    DataError
        The output holds something, the source is no archive, or a shard took too many workers with it.
    """
    total = StreamAccount()
    source = source.resolve()
    with archive.building(output.resolve(), "features") as place:
        keys = archive.shards(source)
        tasks = client.map(_part, keys, features=features, times=times, folder=place, pure=False)
        for done in _as_they_come(client, tasks):
            total.add(done)
            say(done.predictions)
        for abandoned in place.glob("*.partial"):  # what a lost worker was writing
            abandoned.unlink()
    return total


def _part(key: ShardKey, features: FeatureSet, times: PredictionTimes, folder: Path) -> StreamAccount:
    return streams.build_part(features, key, times, folder)


def _as_they_come(client: Any, tasks: list[Any]) -> Iterator[StreamAccount]:
    _, distributed = _dask()
    try:
        for _, result in distributed.as_completed(tasks, with_results=True):
            yield result
    except distributed.scheduler.KilledWorker:
        raise DataError(
            f"A shard lost its worker {ATTEMPTS + 1} times. Workers may be short of memory: a shard takes about "
            "0.4 GB."
        ) from None
    finally:
        client.cancel(tasks)


def warm(client: Any, features: FeatureSet) -> None:
    """Have every worker import and compile what it needs, before work is timed."""
    client.run(_warm, features)


def _warm(features: FeatureSet) -> None:
    from features.events import empty_events

    now = pd.Series(pd.DatetimeIndex(["2026-01-01"], tz="UTC").as_unit("us"))
    features.build(empty_events(), pd.DataFrame({"encounter_id": ["nobody"], "prediction_time": now}))


# ------------------------------------------------------------ training


@dataclass(frozen=True, slots=True)
class Trained:
    """A booster trained on a cluster, and on how much."""

    booster: lgb.Booster
    rows: int
    positives: int
    workers: int


def train(
    features: Path,
    labels: Path,
    params: dict[str, Any],
    rounds: int,
    *,
    client: Any,
    attempts: int = ATTEMPTS,
) -> Trained:
    """Fit a binary booster on a feature folder, its rows spread over the workers of a cluster.

    Parameters
    ----------
    features : Path
        What ``build_stream`` or :func:`build_features` made.
    labels : Path
        Parquet file with ``encounter_id``, ``prediction_time`` and ``label`` (0 or 1; empty: the row is left out).
        Predictions without a row are left out. Or a folder of such files named as the feature files, so that no
        worker reads the labels of all.
    params : dict
        LightGBM's; ``tree_learner`` is ``data`` unless said otherwise.
    rounds : int
    attempts : int
        LightGBM cannot go on without a worker it began with: when one is lost, training begins again on those left.

    Raises
    ------
    DataError
        There are no features or labels, or training failed every time.
    """
    files = sorted(features.resolve().glob("part-*.parquet"))
    if not files:
        raise DataError(f"No features in {features.name}. Build them: wardcast features build.")
    for attempt in range(1, attempts + 1):
        try:
            return _fit(files, labels.resolve(), params, rounds, client)
        except WardcastError:
            raise
        except Exception as error:  # LightGBM, sockets and Dask each have their own for a lost worker
            if attempt == attempts:
                raise DataError(
                    f"Training failed {attempts} times on the cluster ({type(error).__name__}). The log of its workers "
                    "says why."
                ) from error
            client.wait_for_workers(1, timeout=60)
    raise AssertionError("unreachable")


def _fit(files: list[Path], labels: Path, params: dict[str, Any], rounds: int, client: Any) -> Trained:
    dask, _ = _dask()
    da: Any = import_module("dask.array")
    parts = [dask.delayed(_labelled, pure=False)(file, labels) for file in files]
    sizes = client.compute([part[2] for part in parts], sync=True)
    rows, positives = (sum(s[k] for s in sizes) for k in (0, 1))
    if not 0 < positives < rows:
        raise DataError(
            f"Of {rows:,} labelled predictions {positives:,} are positive. Training needs both kinds."
        )
    width = len(pq.read_schema(files[0]).names) - len(KEYS)
    used = [(part, size[0]) for part, size in zip(parts, sizes, strict=True) if size[0]]
    blocks = [da.from_delayed(part[0], (n, width), np.float32) for part, n in used]
    answers = [da.from_delayed(part[1], (n,), np.int8) for part, n in used]
    model = lgb.DaskLGBMClassifier(
        client=client, n_estimators=rounds, **{"tree_learner": "data", "verbose": -1, **params}
    )
    with warnings.catch_warnings():
        # LightGBM's Dask estimator warns of its own default.
        warnings.filterwarnings("ignore", "Parameter n_jobs will be ignored", UserWarning)
        model.fit(da.concatenate(blocks), da.concatenate(answers))
    booster = lgb.Booster(model_str=model.booster_.model_to_string())
    return Trained(booster, rows, positives, len(client.scheduler_info()["workers"]))


def labelled(file: Path, labels: Path) -> tuple[Matrix, npt.NDArray[np.int8]]:
    """Features and labels of one file of a feature folder, rows without a label left out.

    Returns
    -------
    float32 array of shape (n_labelled, n_features), int8 array of shape (n_labelled,)
    """
    table = pq.read_table(file, use_threads=False)
    known = _labels(labels, file.name)
    # The message of pandas about a repeated key would show whose it is.
    twice = int(known.duplicated(KEYS).sum())
    if twice:
        raise DataError(
            f"{twice:,} labels of {labels.name} repeat {' and '.join(KEYS)}. Keep one a prediction."
        )
    keys = table.select(KEYS).to_pandas().astype({"encounter_id": "str"})
    answer = keys.merge(known, on=KEYS, how="left", validate="one_to_one")["label"].to_numpy(dtype=np.float64)
    rows = np.flatnonzero(~np.isnan(answer))
    matrix = np.empty((rows.size, len(table.column_names) - len(KEYS)), np.float32)
    for k, name in enumerate(table.column_names[len(KEYS) :]):
        matrix[:, k] = table[name].to_numpy()[rows]
    return matrix, answer[rows].astype(np.int8)


def _labelled(file: Path, labels: Path) -> tuple[Matrix, npt.NDArray[np.int8], tuple[int, int]]:
    matrix, answer = labelled(file, labels)
    return matrix, answer, (answer.size, int(answer.sum()))


def _labels(path: Path, part: str) -> pd.DataFrame:
    path = path / part if path.is_dir() else path
    if not path.is_file():
        raise DataError(
            f"No labels at {path.name}. Give a Parquet file, or a folder with one a feature file."
        )
    missing = [c for c in [*KEYS, "label"] if c not in pq.read_schema(path).names]
    if missing:
        raise DataError(f"{path.name} lacks {', '.join(missing)}. Labels need {', '.join(KEYS)} and label.")
    table: pd.DataFrame = pq.read_table(path, columns=[*KEYS, "label"], use_threads=False).to_pandas()
    return table.astype({"encounter_id": "str", "prediction_time": UTC_US})
