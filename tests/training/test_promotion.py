"""The alias that serves moves through gates only, with a name and a reason, and back again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import cli
from features.errors import ConfigError
from models import parity
from models.bundle import Bundle, write_bundle
from serving.rehearsal import rehearse
from training import promotion, tracking
from training.gates import GATES, Gates, Rehearsed, figure_gate, rehearsal
from training.promotion import Approval

APPROVED = Approval("A. Nurse, clinical safety", "earlier warnings in the first 48 hours")
EASY = """
[sepsis]
size_mb = 10
latency_ms = 1000
reference_difference = 1e-9
[[sepsis.figure]]
name = "AUROC"
at = ["table"]
where = { hospital = "all", hours = "all" }
figure = ["measures", "auroc"]
at_least = LEAST
"""


def gates_file(folder: Path, least: float) -> Path:
    path = folder / f"gates-{least}.toml"
    path.write_text(EASY.replace("LEAST", str(least)))
    return path


def with_sheet(bundle: Bundle, folder: Path, version: str, shift: float = 0.0) -> Bundle:
    """The bundle again, with reference scores ``shift`` log-odds off."""
    sheet = parity.sheet(bundle.reference, bundle.feature_names, lambda m: bundle.raw(m) + shift)
    return write_bundle(
        folder, name="sepsis", version=version, spec_text=bundle.spec.text, boosters=bundle.boosters,
        parts={**bundle.parts, "parity": sheet}, card=bundle.card,
    )  # fmt: skip


@pytest.fixture(scope="module")
def registry(small_bundle, tmp_path_factory):
    """Three versions: two alike, and one whose scores are not those it was made with."""
    folder = tmp_path_factory.mktemp("promotion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDCAST_VAR", str(folder / "var"))
        for version, shift in (("one", 0.0), ("two", 0.0), ("three", 0.0), ("odd", 1e-6)):
            made = with_sheet(small_bundle, folder / version, version, shift)
            tracking.log_bundle(made.folder, run_name="train", alias="challenger")
        yield folder


@tracking.quietly
def runs() -> list[dict[str, str]]:
    client = tracking._mlflow().MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == "sepsis"]
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    return [dict(run.data.tags) | {"run_id": run.info.run_id} for run in found]


@tracking.quietly
def text_of(run_id: str, file: str) -> str:
    return str(tracking._mlflow().artifacts.load_text(f"runs:/{run_id}/{file}"))


def champion() -> str | None:
    return tracking.version_of("sepsis", "champion")


def command(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, list(words))
    return done.exit_code, done.output


def test_from_training_to_champion_and_back(registry):
    """The journey by the command line: refused, promoted, promoted again, refused again, rolled back."""
    said = ("--approved-by", "A. Nurse", "--reason", "earlier warnings")
    hard, easy = str(gates_file(registry, 1.01)), str(gates_file(registry, 0.5))

    code, text = command("promote", "sepsis", *said, "--version", "1", "--gates", hard)
    assert (code, champion()) == (1, None)
    assert "FAIL" in text
    assert "at least 1.01" in text
    assert runs()[0]["outcome"] == "refused"

    code, text = command("promote", "sepsis", *said, "--version", "1", "--gates", easy)
    assert (code, champion()) == (0, "1"), text
    assert "pass  service scores as the batch does" in text
    assert command("promote", "sepsis", *said, "--version", "2", "--gates", easy)[0] == 0
    assert champion() == "2"

    code, text = command(
        "promote", "sepsis", *said, "--gates", easy
    )  # the challenger, which scores otherwise
    assert (code, champion()) == (1, "2")
    assert "reference rows" in text
    assert "version 2 serves on" in text

    code, text = command("rollback", "sepsis", "--approved-by", "B. Doctor", "--reason", "alarms at night")
    assert (code, champion()) == (0, "1"), text
    assert Bundle.load(tracking.resolve("models:/sepsis@champion")).version == "one"
    tags = tracking.tags_of("sepsis", "2")
    assert (tags["champion_withdrawn_by"], tags["champion_withdrawn_reason"]) == (
        "B. Doctor",
        "alarms at night",
    )
    assert tracking.tags_of("sepsis", "1")["champion_approved_by"] == "B. Doctor"
    assert [r["outcome"] for r in runs()[:5]] == ["rolled back", "refused", "promoted", "promoted", "refused"]
    with pytest.raises(ConfigError, match="Nothing served before sepsis version 1"):
        promotion.rollback("sepsis", APPROVED)


def test_rolling_back_twice_goes_back_twice_and_never_to_what_was_withdrawn(registry):
    easy = gates_file(registry, 0.5)

    def history(*versions: str) -> list[str]:
        for version in versions:
            assert promotion.promote("sepsis", APPROVED, version=version, gates=easy).promoted
        restored = []
        while tracking.tags_of("sepsis", champion()).get(promotion.PREVIOUS):
            restored.append(promotion.rollback("sepsis", APPROVED).restored)
        with pytest.raises(ConfigError, match="Nothing served before"):
            promotion.rollback("sepsis", APPROVED)
        return restored

    assert history("1", "2", "1") == ["2"], "1 was withdrawn, though it had served before 2"
    assert history("1", "3", "3") == ["1", "2"]


def test_the_decision_is_kept_with_its_gates(registry):
    easy = gates_file(registry, 0.5)
    done = promotion.promote("sepsis", APPROVED, version="1", gates=easy)
    assert done.promoted
    run = runs()[0]
    assert run["champion_approved_by"] == "A. Nurse, clinical safety"
    assert run["gates_digest"] == Gates.load("sepsis", easy).digest
    kept = json.loads(text_of(run["run_id"], "gates.json"))
    assert [g["name"] for g in kept["gates"]] == [g.name for g in done.gates]
    assert text_of(run["run_id"], "gates.txt").startswith("      gate")


def test_nobody_promotes_without_a_name_and_a_reason(registry):
    with pytest.raises(ConfigError, match="--approved-by"):
        Approval(" ", "because")
    with pytest.raises(ConfigError, match="needs a reason"):
        Approval("A. Nurse", "")
    with pytest.raises(ConfigError, match="No challenger of admissions"):
        promotion.promote("admissions", APPROVED)
    with pytest.raises(ConfigError, match="nothing to roll back"):
        promotion.rollback("admissions", APPROVED)


def measured(table: list[dict[str, Any]], **entry: Any) -> tuple[str, bool]:
    """What one gate says of a table of an evaluation."""
    gate = figure_gate({"name": "it", "at": ["table"], "figure": ["auroc"], **entry}, {"table": table})
    return gate.found, gate.passed


def test_figures_are_found_bounded_and_never_taken_for_granted():
    rows = [
        {"hospital": "A", "septic_patients": 90, "auroc": [0.80, 0.70, 0.90]},
        {"hospital": "B", "septic_patients": 60, "auroc": [0.75, 0.65, 0.85]},
        {"hospital": "C", "septic_patients": 9, "auroc": [0.40, 0.10, 0.70]},
    ]
    each = {"every": True, "of": "septic_patients", "fewest": 50}
    assert measured(rows, where={"hospital": "A"}, at_least=0.8) == ("0.8", True)
    assert measured(rows, where={"hospital": "A"}, bound="low", at_least=0.71) == ("0.7", False)
    assert measured(rows, at_least=0.75, **each) == ("0.75 (B, worst of 2)", True)
    assert measured(rows, at_least=0.76, **each) == ("0.75 (B, worst of 2)", False)
    assert measured(rows, at_least=0.1, at_most=0.79, **each) == ("0.8 (A, worst of 2)", False)
    assert measured(rows, where={"hospital": "D"}, at_least=0) == ("not measured", False)
    assert measured([{"auroc": None}], at_least=0) == ("not measured everywhere", False)
    assert measured([{"auroc": float("nan")}], at_least=0) == ("nan", False)
    assert measured(rows[2:], at_least=0, **each) == ("not measured", False)
    assert measured([{"auroc": [0.1, 0.9]}], bound="low", at_least=0.5) == ("0.1", False)
    assert measured([{"auroc": [0.1, 0.9]}], at_least=0.5) == ("not measured everywhere", False)


@pytest.mark.parametrize("product", ["sepsis", "admissions"])
def test_every_figure_that_the_gates_ask_for_is_in_the_released_bundle(repo, product):
    bundle = Bundle.load(repo / "models" / product / "released")
    judged = Gates.load(product).judge(bundle)
    asked = {entry["name"] for entry in Gates.load(product).table["figure"]}
    failed = [g for g in judged if g.name in asked and not g.passed]
    assert failed == []


def test_a_recalibrated_model_answers_for_its_new_probabilities(small_bundle):
    """Its evaluation is its parent's, and says nothing of them."""
    gates = Gates.load("sepsis")
    names = {entry["name"] for entry in gates.table["figure"] if entry.get("part") == "recalibration"}
    assert not names & {gate.name for gate in gates.judge(small_bundle)}
    for found, passed in ((1.0, True), (1.5, False), (None, False)):
        about = {"after": {"slope": found, "observed_expected": found}}
        made = replace(small_bundle, parts={**small_bundle.parts, "recalibration": about})
        judged = {gate.name: gate.passed for gate in gates.judge(made)}
        assert {judged[name] for name in names} == {passed}


def test_a_model_that_is_not_to_be_served_and_one_that_is_slow_are_stopped(small_bundle):
    slow = Gates.load("sepsis").judge(small_bundle, lambda _: Rehearsed(60, 1, 10.5))
    failed = {g.name for g in slow if not g.passed}
    assert {"service scores as the batch does", "CPU of a score with reasons"} <= failed


def test_both_roads_agree_on_simulated_stays(small_bundle):
    tried = rehearsal(rehearse)(small_bundle)
    assert tried.scores > 30
    assert tried.different == 0


def test_reference_rows_look_like_the_features_one_by_one(small_bundle):
    rows = parity.reference_rows(small_bundle.reference, small_bundle.feature_names)
    again = parity.reference_rows(small_bundle.reference, small_bundle.feature_names)
    assert np.array_equal(rows, again, equal_nan=True)
    rate = rows[:, small_bundle.feature_names.index("heart_rate__last")]
    assert 60 < np.nanmin(rate) < np.nanmax(rate) < 140
    assert parity.largest_difference(
        parity.sheet(small_bundle.reference, small_bundle.feature_names, small_bundle.raw),
        small_bundle.reference, small_bundle.feature_names, small_bundle.raw,
    ) == 0  # fmt: skip


def test_gates_that_lack_something_are_refused(tmp_path):
    broken = tmp_path / "gates.toml"
    broken.write_text('[sepsis]\nsize_mb = 1\n[[sepsis.figure]]\nname = "x"\nat = ["table"]\n')
    with pytest.raises(
        ConfigError, match=r"latency_ms, reference_difference, figure.figure of x, at_least or"
    ):
        Gates.load("sepsis", broken)
    with pytest.raises(ConfigError, match="no gates for admissions"):
        Gates.load("admissions", broken)
    with pytest.raises(ConfigError, match="No gates at"):
        Gates.load("sepsis", tmp_path / "none.toml")
    assert Gates.load("sepsis", GATES).table["size_mb"] == 10
