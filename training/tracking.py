"""The one door to MLflow: runs, registered models, aliases. Everything stays on this machine unless told otherwise.

Runs go to SQLite under ``var/``, or to ``MLFLOW_TRACKING_URI``. A bundle is registered as a pickle-free pyfunc model
(see ``training/registered.py``), so that ``models:/sepsis@champion`` and a folder mean the same. What is logged
holds no patient: figures, hashes, spec, card, and the bundle itself.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from features.errors import ConfigError
from models.bundle import MANIFEST, Bundle
from training.plots import figures

REPO: Final = Path(__file__).resolve().parent.parent
RELEASED: Final = "released:"
URI: Final = "MLFLOW_TRACKING_URI"
MOST_METRICS: Final = 6000
AT_ONCE: Final = 500
"""Metrics sent in one go; MLflow takes a thousand."""


@dataclass(frozen=True)
class Trial:
    """A model that was tried: what it was, and what it reached on development patients."""

    name: str
    settings: Mapping[str, str]
    figures: Mapping[str, float]


P = ParamSpec("P")
R = TypeVar("R")


def quietly(function: Callable[P, R]) -> Callable[P, R]:
    """Keep MLflow's own deprecations and set-up chatter from our users; its errors stay errors."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)

    return wrapped


def var() -> Path:
    """Where everything made at run time goes: ``WARDCAST_VAR``, else ``./var``."""
    return Path(os.environ.get("WARDCAST_VAR") or "var").absolute()


def tracking_uri() -> str:
    """Where runs are kept: ``MLFLOW_TRACKING_URI``, else SQLite under ``var/``."""
    return os.environ.get(URI) or f"sqlite:///{var() / 'mlflow.db'}"


def _mlflow() -> Any:
    """MLflow, silent towards the outside, pointed at our store."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # its import sets the level anew
    try:
        import mlflow
    except ImportError:
        raise ConfigError(
            "MLflow is not installed. Install wardcast[training], or train with --no-register."
        ) from None
    var().mkdir(parents=True, exist_ok=True)
    chosen = os.environ.get(URI)
    mlflow.set_tracking_uri(tracking_uri())
    if chosen is None:
        # MLflow sets it for child processes, and we would take it for a user's choice.
        os.environ.pop(URI, None)
    return mlflow


@contextmanager
def _run(experiment: str, run_name: str, tags: Mapping[str, str]) -> Iterator[Any]:
    """A run in an experiment whose artifacts lie under ``var/`` whatever the working directory is."""
    mlflow = _mlflow()
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        home = None if os.environ.get(URI) else (var() / "mlartifacts").as_uri()
        identity = client.create_experiment(experiment, artifact_location=home)
    else:
        identity = found.experiment_id
    with mlflow.start_run(experiment_id=identity, run_name=run_name, tags=dict(tags)):
        yield mlflow


@quietly
def log_bundle(
    folder: Path,
    *,
    run_name: str,
    alias: str,
    tags: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
    trials: Sequence[Trial] = (),
) -> str:
    """Log a bundle as a run, register it as a model of its product's name, and give it an alias.

    Parameters
    ----------
    folder : Path
        The bundle.
    alias : str
        ``champion`` (what should serve) or ``challenger``.
    metrics : mapping, optional
        Figures of the making, such as seconds; those of the evaluation are taken from the bundle.
    trials : sequence of Trial
        What else was tried on the way; each becomes a run nested in this one.

    Returns
    -------
    ``models:/<name>@<alias>``.
    """
    bundle = Bundle.load(folder)
    about = {"model_id": bundle.model_id, "origin": "trained", **(tags or {})}
    with _run(bundle.name, run_name, about) as mlflow:
        mlflow.log_params(_params(bundle))
        _log_numbers(mlflow, dict(metrics or {}) | _numbers(bundle.evaluation))
        mlflow.log_input(_dataset(mlflow, bundle), context="training")
        for name in ("data", "evaluation", "reference", "recalibration"):
            if name in bundle.parts:
                mlflow.log_dict(bundle.parts[name], f"{name}.json")
        mlflow.log_text(bundle.card, "card.md")
        mlflow.log_text(bundle.spec.text, "spec.toml")
        for name, figure in figures(bundle.evaluation).items():
            mlflow.log_figure(figure, f"plots/{name}")
        for trial in trials:
            _log_trial(mlflow, trial)
        registered = _log_model(mlflow, bundle)
        client = mlflow.MlflowClient()
        client.set_registered_model_alias(bundle.name, alias, registered.registered_model_version)
        client.set_model_version_tag(
            bundle.name, registered.registered_model_version, "model_id", bundle.model_id
        )
    return f"models:/{bundle.name}@{alias}"


def _log_trial(mlflow: Any, trial: Trial) -> None:
    with mlflow.start_run(run_name=trial.name, nested=True, tags={"origin": "trial"}):
        mlflow.log_params(dict(trial.settings))
        _log_numbers(mlflow, {_name(k): v for k, v in trial.figures.items()})


def _log_model(mlflow: Any, bundle: Bundle) -> Any:
    from importlib.metadata import version

    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = Schema([ColSpec("double", name) for name in bundle.feature_names])
    outputs = Schema([ColSpec("double", "probability")])
    return mlflow.pyfunc.log_model(
        name="model",
        python_model=str(REPO / "training" / "registered.py"),
        artifacts={"bundle": str(bundle.folder)},
        signature=ModelSignature(inputs=inputs, outputs=outputs),
        pip_requirements=[f"{p}=={version(p)}" for p in ("lightgbm", "numpy", "pandas", "scikit-learn")],
        registered_model_name=bundle.name,
        metadata={"model_id": bundle.model_id},
    )


def serve_as_model(model: type) -> None:
    """Declare the class that ``training/registered.py`` defines to MLflow, which loads models from that code."""
    import mlflow

    mlflow.models.set_model(_as_python_model(mlflow, model)())


def _as_python_model(mlflow: Any, model: type) -> type:
    return type(model.__name__, (model, mlflow.pyfunc.PythonModel), {})


def _dataset(mlflow: Any, bundle: Bundle) -> Any:
    """The data's fingerprint as an MLflow dataset: a name and a digest, no rows."""
    import hashlib
    import json

    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    data = bundle.parts["data"]
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
    name = str(data.get("source") or data.get("origin") or bundle.name)
    return MetaDataset(source=CodeDatasetSource(tags={"source": name}), name=name[:200], digest=digest)  # type: ignore[abstract]


def _params(bundle: Bundle) -> dict[str, str]:
    sections = {
        name: bundle.spec.section(name) for name in ("model", "target", "scope", "training", "alerts")
    }
    params = {f"{s}.{k}": str(v)[:500] for s, table in sections.items() for k, v in table.items()}
    return params | {"features": str(len(bundle.feature_names)), "version": bundle.version}


def _log_numbers(mlflow: Any, numbers: Mapping[str, float]) -> None:
    """Log the metrics in portions; a tag says how many were left out, if ever so many are too many."""
    kept = list(numbers.items())[:MOST_METRICS]
    for first in range(0, len(kept), AT_ONCE):
        mlflow.log_metrics(dict(kept[first : first + AT_ONCE]))
    if len(numbers) > MOST_METRICS:
        mlflow.set_tag("metrics_left_out", str(len(numbers) - MOST_METRICS))


def _numbers(value: Any, prefix: str = "") -> dict[str, float]:
    """Every number of a nested evaluation under a readable name; curves are left to the plots."""
    found: dict[str, float] = {}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "curves":
                found |= _numbers(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            found |= _numbers(inner, f"{prefix}.{_label(inner, place, len(value))}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found[_name(prefix)] = float(value)
    return found


def _label(entry: Any, place: int, size: int) -> str:
    """Rows of a table are named by what they are about; value and interval by what they mean."""
    if isinstance(entry, Mapping) and "hours" in entry:
        return f"{_about(entry)}.{str(entry['hours']).replace('<= ', 'first')}"
    if isinstance(entry, Mapping | list) or size not in (2, 3):
        return str(place)
    return ("low", "high")[place] if size == 2 else ("value", "low", "high")[place]


def _about(row: Mapping[str, Any]) -> str:
    """Whom or what a row of a table is about, other than its hours: no two rows of one table are called alike."""
    if "trained_on" in row:
        return f"{row['trained_on']}_to_{row['tested_on']}"
    if "group" in row:
        return f"{row['group']}.{row['value']}"
    return str(
        next((row[key] for key in ("hospital", "policy", "model", "measure") if row.get(key)), "unknown")
    )


def _name(prefix: str) -> str:
    """MLflow takes letters, digits, underscore, dash, dot, space and slash."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in prefix)[:250]


@quietly
def resolve(uri: str) -> Path:
    """The local bundle folder that a name means.

    Parameters
    ----------
    uri : str
        A bundle folder; ``released:sepsis`` for what ships with the code; or an MLflow model, such as
        ``models:/sepsis@champion`` or ``models:/sepsis/3``.

    Raises
    ------
    ConfigError
        There is no such folder, model or alias.
    """
    if uri.startswith(RELEASED):
        return _bundle_folder(REPO / "models" / uri.removeprefix(RELEASED) / "released", uri)
    if not uri.startswith("models:/"):
        return _bundle_folder(Path(uri).absolute(), uri)
    mlflow = _mlflow()
    try:
        downloaded = Path(mlflow.artifacts.download_artifacts(uri))
    except mlflow.exceptions.MlflowException:
        raise ConfigError(
            f"There is no registered model {uri}. Train one, or name a bundle folder; `mlflow ui` shows what there is."
        ) from None
    found = sorted((downloaded / "artifacts").glob(f"*/{MANIFEST}"))
    return _bundle_folder(found[0].parent if found else downloaded, uri)


def _bundle_folder(folder: Path, uri: str) -> Path:
    if not (folder / MANIFEST).is_file():
        raise ConfigError(
            f"{uri} is no model bundle: {MANIFEST} is not there. Name a bundle folder, or an MLflow model such as "
            "models:/sepsis@champion."
        )
    return folder


@quietly
def set_alias(name: str, version: str, alias: str, tags: Mapping[str, str]) -> None:
    """Point an alias at a version, and write down with it why."""
    _mlflow().MlflowClient().set_registered_model_alias(name, alias, version)
    tag(name, version, tags)


@quietly
def tag(name: str, version: str, tags: Mapping[str, str]) -> None:
    """Write something down with a version of a registered model."""
    client = _mlflow().MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)


@quietly
def tags_of(name: str, version: str) -> dict[str, str]:
    """What is written down with a version of a registered model."""
    return dict(_mlflow().MlflowClient().get_model_version(name, version).tags)


@quietly
def log_decision(name: str, run_name: str, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
    """Record a decision about a model that was made by people: a run of its product's experiment, with its papers."""
    with _run(name, run_name, tags) as mlflow:
        for file, text in texts.items():
            mlflow.log_text(text, file)


@quietly
def version_of(name: str, alias: str) -> str | None:
    """The version an alias points at; None where there is none."""
    mlflow = _mlflow()
    try:
        return str(mlflow.MlflowClient().get_model_version_by_alias(name, alias).version)
    except mlflow.exceptions.MlflowException:
        return None


@quietly
def log_monitor(metrics: Mapping[str, float], artifacts: Any) -> None:
    """Record a monitoring run: its figures, and its report files."""
    with _run("monitoring", "monitor", {"origin": "monitor"}) as mlflow:
        mlflow.log_metrics({_name(k): float(v) for k, v in metrics.items() if v is not None and v == v})
        for path in artifacts or ():
            mlflow.log_artifact(str(path))


@quietly
def log_backtest(
    evaluation: Mapping[str, Any], drawn: Mapping[str, Any], card: str, *, run_name: str
) -> None:
    """Record a backtest: its schedule, figures, reasons, card and plots; series are counted, never named."""
    with _run("backtest", run_name, {"origin": "backtest"}) as mlflow:
        about = {f"schedule.{k}": v for k, v in evaluation["schedule"].items()}
        about |= {f"data.{k}": v for k, v in evaluation["data"].items() if k != "account"}
        mlflow.log_params({k: str(v)[:500] for k, v in about.items()})
        _log_numbers(mlflow, _numbers(evaluation["figures"]))
        mlflow.log_dict(evaluation["figures"], "figures.json")
        mlflow.log_dict(evaluation["drivers"], "drivers.json")
        if card:
            mlflow.log_text(card, "card.md")
        for name, figure in drawn.items():
            mlflow.log_figure(figure, f"plots/{name}")
