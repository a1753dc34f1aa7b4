"""Features of an archive, shard by shard or on a cluster: ``wardcast features build``."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from features import archive, streams
from features.errors import ConfigError
from features.featureset import FeatureSet
from features.streams import StreamAccount

if TYPE_CHECKING:  # LightGBM takes a second to import, which only a model is worth
    pass

from training.datasets import wanted
from training.telling import Report, counter, counting, counts, write_json

MANIFEST: Final = "features.json"
"""What a feature folder says of its columns, and how it was made."""


@dataclass(frozen=True)
class Built:
    """A feature folder, and what it took."""

    output: Path
    model: str
    account: StreamAccount
    features: int
    engine: str
    seconds: float
    peak_mib: float
    calendar: Sequence[str] = ()

    def summary(self) -> str:
        """Rows, features, time, memory and where the manifest is."""
        a = self.account
        said = [
            f"{a.predictions:,} predictions of {a.encounters:,} encounters × {self.features:,} features "
            f"({self.model}), from {a.events:,} events.",
            f"{self.engine}: {self.seconds:.1f} s, {a.predictions / max(self.seconds, 1e-9):,.0f} predictions a "
            f"second; peak memory {self.peak_mib:,.0f} MiB{' of the largest worker' if self.engine == 'dask' else ''}.",
        ]
        if a.left:
            said.append(f"Encounters left out or cut: {counts(a.left)}.")
        if self.calendar:
            said.append(f"Not here, since it is local time: {', '.join(self.calendar)}. Training adds it.")
        return "\n".join(
            [*said, f"Features: {self.output}/part-*.parquet", f"Manifest: {self.output / MANIFEST}"]
        )


def build(
    path: Path,
    output: Path,
    at: str,
    *,
    start: str | None = None,
    model: str | None = None,
    spec: Path | None = None,
    engine: str = "local",
    scheduler: str = "",
    workers: int = 2,
    threads: int = 1,
) -> Built:
    """Features of an archive at prediction times, on this machine or on a Dask cluster: the same bits either way.

    Parameters
    ----------
    at : str
        As :func:`features.streams.prediction_times` reads it.
    start : str, optional
        Where a grid begins, ``icu`` or ``hospital`` (which it is when left out).
    engine : str
        ``local``, or ``dask``: ``workers`` processes here, or the cluster of ``scheduler``.

    Raises
    ------
    DataError, SpecError, ConfigError
        Something is no archive, no rule of times, no model; or the output is in the way.
    """
    if engine not in ("local", "dask"):
        raise ConfigError(f"There is no engine {engine!r}. Choose local or dask.")
    if scheduler and engine != "dask":
        raise ConfigError("A scheduler needs --engine dask.")
    asked = wanted(model, spec)
    features, calendar = asked.spec.features, asked.spec.section("model").get("calendar", ())
    times = streams.prediction_times(_rule(at, start))
    keys = archive.shards(path)
    about: dict[str, Any] = {
        "archive": path.name,
        "at": at,
        "start": start,
        "engine": engine,
        "model": asked.name,
    }
    begun = time.monotonic()
    with counting("building", "shards", len(keys)) as (told, bars):
        rows = counter(bars, "writing", "predictions")

        def say(predictions: int) -> None:
            told(1)
            rows(predictions)

        if engine == "local":
            made = streams.build_stream(features, path, times, output, threads=threads, say=say)
            peak = _peak_mib()
        else:
            made, peak = _on_dask(features, path, times, output, scheduler, workers, say)
    about |= {"predictions": made.predictions, "encounters": made.encounters, "left": dict(made.left)}
    write_json(output / MANIFEST, features.manifest() | {"made": about})
    seconds = time.monotonic() - begun
    return Built(output, asked.name, made, len(features.names), engine, seconds, peak, tuple(calendar))


def _rule(at: str, start: str | None) -> str:
    if start is None:
        return at
    if at.startswith("events:") or ":" in at or Path(at).is_file():
        raise ConfigError("--start is where a grid begins; it goes with --at hourly or --at 4h only.")
    return f"{at}:{start}"


def _on_dask(
    features: FeatureSet, path: Path, times: Any, output: Path, scheduler: str, workers: int, say: Report
) -> tuple[StreamAccount, float]:
    from training import distributed

    with distributed.cluster(scheduler, workers) as client:
        made = distributed.build_features(features, path, times, output, client=client, say=say)
        return made, max(client.run(_peak_mib).values(), default=0.0)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
