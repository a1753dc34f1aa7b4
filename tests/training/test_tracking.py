"""Bundles in MLflow: registered without a pickle, found again by alias."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from features.errors import ConfigError
from models.bundle import Bundle
from training import tracking


@pytest.fixture(scope="module")
def registered(small_bundle, tmp_path_factory):
    """One registry for this module: making its database takes longest."""
    folder = tmp_path_factory.mktemp("registry") / "var"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDCAST_VAR", str(folder))
        uri = tracking.log_bundle(
            small_bundle.folder,
            run_name="train",
            alias="challenger",
            tags={"source": "test"},
            metrics={"seconds": 1.5},
        )
        yield uri, folder


def run_of(client):
    (experiment,) = [e for e in client.search_experiments() if e.name == "sepsis"]
    return client.search_runs([experiment.experiment_id])[0]


@tracking.quietly
def client():
    return tracking._mlflow().MlflowClient()


def test_an_alias_and_a_folder_mean_the_same(registered, small_bundle):
    uri, _ = registered
    assert uri == "models:/sepsis@challenger"
    assert Bundle.load(tracking.resolve(uri)).digest == small_bundle.digest
    assert tracking.resolve(str(small_bundle.folder)) == small_bundle.folder


def test_the_released_bundle_has_a_name_of_its_own(repo):
    assert tracking.resolve("released:sepsis") == repo / "models" / "sepsis" / "released"


def test_everything_about_the_run_is_kept(registered, small_bundle):
    run = run_of(client())
    assert run.data.metrics["table.all.all.measures.utility.value"] == pytest.approx(
        small_bundle.evaluation["table"][0]["measures"]["utility"][0]
    )
    assert run.data.metrics["seconds"] == 1.5
    assert run.data.params["training.rounds"] == "15"
    assert run.data.tags["model_id"] == small_bundle.model_id
    assert run.inputs.dataset_inputs[0].dataset.digest
    kept = {a.path for a in client().list_artifacts(run.info.run_id)}
    assert {"card.md", "data.json", "evaluation.json", "plots", "spec.toml"} <= kept
    plots = {a.path for a in client().list_artifacts(run.info.run_id, "plots")}
    assert {"plots/calibration.png", "plots/roc.png", "plots/utility_by_hour.png"} <= plots


def test_everything_lies_under_var_and_nothing_is_pickled(registered):
    _, folder = registered
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert folder / "mlflow.db" in files
    assert any(p.name == "bundle.json" for p in files)
    assert not [p for p in files if p.suffix in (".pkl", ".pickle", ".joblib", ".cloudpickle")]
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_mlflow_loads_the_model_and_gives_the_same_probabilities(registered, small_bundle):
    import warnings

    import mlflow

    uri, _ = registered
    matrix = np.random.default_rng(1).normal(90, 20, (5, len(small_bundle.feature_names))).astype(np.float32)
    matrix[0, :] = np.nan
    table = pd.DataFrame(matrix.astype(np.float64), columns=list(small_bundle.feature_names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.set_tracking_uri(tracking.tracking_uri())
        predicted = mlflow.pyfunc.load_model(uri).predict(table)
    assert predicted["probability"].tolist() == small_bundle.score(matrix).tolist()
    assert os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION") == "false"


def test_a_model_that_is_not_there_is_said(registered, tmp_path):
    with pytest.raises(ConfigError, match="no registered model models:/sepsis@nobody"):
        tracking.resolve("models:/sepsis@nobody")
    with pytest.raises(ConfigError, match="is no model bundle"):
        tracking.resolve(str(tmp_path))


def test_a_monitoring_run_is_recorded(registered, tmp_path):
    (tmp_path / "report.html").write_text("<p>nothing drifted</p>")
    tracking.log_monitor({"psi max": 0.1, "rows": 12, "unknown": float("nan")}, [tmp_path / "report.html"])
    (experiment,) = [e for e in client().search_experiments() if e.name == "monitoring"]
    (run,) = client().search_runs([experiment.experiment_id])
    assert run.data.metrics == {"psi max": 0.1, "rows": 12.0}


def test_metrics_of_any_evaluation_have_readable_names():
    numbers = tracking._numbers(
        {
            "table": [{"hospital": "A", "hours": "<= 48", "measures": {"auroc": [0.8, 0.7, None]}}],
            "n": 3,
            "ok": True,
        }
    )
    assert numbers == {
        "table.A.first48.measures.auroc.value": 0.8,
        "table.A.first48.measures.auroc.low": 0.7,
        "n": 3.0,
    }


def test_rows_of_the_transfer_are_named_by_both_hospitals_and_pairs_are_intervals():
    rows = [
        {"trained_on": a, "tested_on": b, "hours": h, "measures": {"auroc": 0.7}}
        for a, b in ("AB", "BA")
        for h in ("all", "<= 48")
    ]
    numbers = tracking._numbers({"transfer": rows, "range": [0.1, 0.2], "many": [1, 2, 3, 4]})
    assert set(numbers) == {
        *(f"transfer.{way}.{h}.measures.auroc" for way in ("A_to_B", "B_to_A") for h in ("all", "first48")),
        *("range.low", "range.high", "many.0", "many.1", "many.2", "many.3"),
    }


def values_of(part) -> int:
    """Numbers of an evaluation outside its curves."""
    if isinstance(part, dict):
        return sum(values_of(inner) for key, inner in part.items() if key != "curves")
    if isinstance(part, list):
        return sum(map(values_of, part))
    return isinstance(part, int | float) and not isinstance(part, bool)


@pytest.mark.parametrize("product", ["sepsis", "sepsis/challenge", "admissions"])
def test_every_figure_of_a_released_model_has_a_name_of_its_own(repo, product):
    evaluation = Bundle.load(repo / "models" / product / "released").evaluation
    numbers = tracking._numbers(evaluation)
    assert 0 < len(numbers) == values_of(evaluation) <= tracking.MOST_METRICS
    assert not [name for name in numbers if "None" in name]


def test_many_metrics_go_in_portions_and_what_is_too_much_is_said():
    class Recorder:
        def __init__(self):
            self.sizes, self.tags = [], {}

        def log_metrics(self, metrics):
            self.sizes.append(len(metrics))

        def set_tag(self, name, value):
            self.tags[name] = value

    for extra, tags in ((0, {}), (7, {"metrics_left_out": "7"})):
        recorder = Recorder()
        tracking._log_numbers(recorder, {str(i): 0.0 for i in range(tracking.MOST_METRICS + extra)})
        assert (max(recorder.sizes), sum(recorder.sizes)) == (tracking.AT_ONCE, tracking.MOST_METRICS)
        assert recorder.tags == tags


def test_a_new_registry_is_made_without_chatter(tmp_path, repo):
    """In a process of its own, since MLflow reads its settings once."""
    code = "from training import tracking; tracking.log_monitor({'rows': 1.0}, [])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repo,
        env=os.environ | {"WARDCAST_VAR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "INFO" not in done.stderr
    assert "Downloading" not in done.stderr
