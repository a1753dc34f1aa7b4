"""P(admission) from a table of triage: on simulated tables whose true probabilities are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from cli import app
from features.errors import DataError, SpecError
from models.bundle import Bundle
from training import triage

MAPPING = 'outcome = "went"\nadmitted = "in"\ncategories = ["mode"]\nvisit = "visit"\nignore = ["line"]\n'


def table(n: int, seed: int, balanced: bool = False) -> tuple[pd.DataFrame, np.ndarray]:
    """Visits and their true P(admission): age counts, of the arrival modes number 2 does; temperature never."""
    rng = np.random.default_rng(seed)
    age, mode, temperature = rng.uniform(0, 90, n), rng.integers(0, 4, n), rng.normal(37, 1, n)
    p = 1 / (1 + np.exp(4.2 - 0.045 * age - 1.5 * (mode == 2)))
    went = rng.random(n) < p
    kept = np.ones(n, bool) if not balanced else went | (rng.random(n) < went.mean() / (1 - went.mean()))
    raw = pd.DataFrame(
        {
            "visit": [f"v{k}" for k in range(n)], "line": "x", "age": age, "mode": mode,
            "cough/cold": rng.integers(0, 2, n),
            "temperature": np.where(rng.random(n) < 0.3, np.nan, temperature), "went": np.where(went, "in", "home"),
        }
    )  # fmt: skip
    return raw[kept].reset_index(drop=True), p[kept]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A balanced file, trained on from the command line for a prevalence of 30 %."""
    home = tmp_path_factory.mktemp("triage")
    raw, _ = table(40_000, 1, balanced=True)
    raw.to_parquet(home / "train.parquet")
    (home / "mapping.toml").write_text(MAPPING + f"prevalence = {share(table(60_000, 9)[0]):.4f}\n")
    arguments = ["--source", "triage", "--input", home / "train.parquet", "--mapping", home / "mapping.toml"]
    told = run("train", "admissions", *arguments, "--output", home / "model", "--no-register", "--threads", 1)
    assert "| auroc |" in told
    return home


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def share(raw: pd.DataFrame) -> float:
    return float((raw["went"] == "in").mean())


def test_a_balanced_file_gives_probabilities_of_the_whole(folder: Path):
    """Scored without an outcome, by the truth: nobody's probability is far from it, and its mean is right."""
    raw, truth = table(6_000, 2)
    raw.drop(columns=["went", "line"]).to_csv(folder / "new.csv", index=False)
    run("score", "admissions", "--source", "triage", "--model", folder / "model", "--input", folder / "new.csv",
        "--output", folder / "scores.parquet")  # fmt: skip
    scores = pd.read_parquet(folder / "scores.parquet")
    assert scores["visit"].tolist() == raw["visit"].tolist()
    assert scores["p_admission"].mean() == pytest.approx(truth.mean(), abs=0.015)
    assert np.abs(scores["p_admission"] - truth).mean() < 0.06


def test_figures_are_those_of_others(folder: Path):
    raw, _ = table(6_000, 3)
    raw.to_parquet(folder / "judged.parquet")
    run("evaluate", "admissions", "--source", "triage", "--model", folder / "model", "--input",
        folder / "judged.parquet", "--output", folder / "figures.json")  # fmt: skip
    found = pd.read_json(folder / "figures.json", typ="series")
    bundle = Bundle.load(folder / "model")
    columns = tuple(bundle.parts["features"]["columns"])
    assert columns == ("age", "mode", "cough/cold", "temperature")
    label = (raw["went"] == "in").to_numpy("int64")
    score = bundle.score(triage.numbers(raw, columns))
    assert found["auroc"] == pytest.approx(roc_auc_score(label, score))
    assert 0.85 < found["slope"] < 1.15
    assert found["ece"] < 0.04
    assert found["auroc_interval"][0] < found["auroc"] < found["auroc_interval"][1]


def test_a_balanced_file_is_judged_at_the_prevalence_that_training_corrected_to(folder: Path):
    raw, _ = table(12_000, 7, balanced=True)
    raw.to_parquet(folder / "balanced.parquet")
    asked = folder / "balanced.parquet", str(folder / "model"), None
    mine = triage.evaluate_file(*asked)
    found = mine.evaluation["p_admission"]
    assert found["prevalence"] == pytest.approx(share(table(60_000, 9)[0]), abs=1e-4)
    assert found["admitted_in_file"] == pytest.approx(0.5, abs=0.02)
    assert found["ece"] < 0.03
    assert "as weighted, " in mine.summary()
    (folder / "as_it_is.toml").write_text(MAPPING)
    as_it_is = triage.evaluate_file(*asked, folder / "as_it_is.toml").evaluation["p_admission"]
    assert as_it_is["prevalence"] == as_it_is["admitted_in_file"]
    assert as_it_is["auroc"] == pytest.approx(found["auroc"])  # ranks do not ask how many there are
    assert as_it_is["ece"] > 0.1


def test_weights_stand_for_rows():
    """A row of weight 2 is the row twice."""
    rng = np.random.default_rng(4)
    label, p = rng.integers(0, 2, 300), rng.random(300).round(2)
    twice = np.concatenate([np.arange(300), np.arange(0, 300, 3)])
    weight = 1.0 + (np.arange(300) % 3 == 0)
    one, other = (
        triage._figures(label, p, weight),
        triage._figures(label[twice], p[twice], np.ones(len(twice))),
    )
    for name in ("auroc", "slope", "intercept", "brier"):
        assert one[name] == pytest.approx(other[name]), name


def test_rows_of_one_visit_stay_in_one_part():
    raw, _ = table(900, 5)
    rows = triage.rows_of(
        raw.drop(columns="line").assign(visit=np.arange(900) // 3),
        triage.Mapping("went", "in", visit="visit"),
    )
    assert (pd.Series(rows.part).groupby(rows.visit).nunique() == 1).all()
    assert np.bincount(rows.part).tolist() == pytest.approx([540, 180, 180], rel=0.15)


def test_mistakes_are_named(tmp_path: Path):
    raw, _ = table(200, 6)
    with pytest.raises(DataError, match="'out' for all rows or for none; it has the values home, in"):
        triage.rows_of(raw, triage.Mapping("went", "out", ignore=("line", "visit")))
    with pytest.raises(DataError, match=r"Not numbers: .*line.*ignore"):
        triage.rows_of(raw, triage.Mapping("went", "in", visit="visit"))
    with pytest.raises(DataError, match="lacks disposition, which the mapping names"):
        triage.rows_of(raw, triage.Mapping("disposition", "0"))
    with pytest.raises(SpecError, match="--mapping FILE"):
        triage.Mapping.read(None)
    (tmp_path / "m.toml").write_text('outcome = "x"\nprevalance = 0.3\n')
    with pytest.raises(SpecError, match="lacks admitted and has prevalance"):
        triage.Mapping.read(tmp_path / "m.toml")


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("train sepsis --source triage --mapping m.toml", "--source"),
        ("train admissions --source triage --label sepsis3", "--label"),
        ("train admissions --source triage --spec s.toml", "--spec"),
        ("train sepsis --source mimic4 --mapping m.toml", "--mapping"),
        ("score sepsis --source triage --output s.parquet", "--source"),
        ("evaluate sepsis --source physionet2019 --mapping m.toml", "--mapping"),
    ],
)
def test_what_would_not_be_read_is_refused(words: str, refused: str):
    done = CliRunner().invoke(app, [*words.split(), "--input", "rows.csv"])
    assert (done.exit_code, f"Invalid value for {refused}:" in done.output) == (2, True), done.output
