"""Training, from file to bundle: honest folds, a card that says what was measured, the same twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from features.errors import DataError, SpecError
from models import metrics
from models.bundle import Bundle
from models.spec import Spec
from training import sepsis
from training.cohort import read_cohort
from training.splits import patient_folds


@pytest.fixture(scope="module")
def cohort(icu_file, small_spec):
    return read_cohort("physionet2019", icu_file, Spec.load(small_spec), threads=1)


@pytest.fixture(scope="module")
def fold(cohort):
    return patient_folds(*cohort.per_patient(), 3, np.random.default_rng(5))[cohort.patient]


def test_a_bundle_is_whole_and_small(small_bundle, icu_hours):
    assert set(small_bundle.parts) >= {
        "calibrator",
        "data",
        "decision",
        "evaluation",
        "features",
        "reference",
    }
    assert small_bundle.parts["data"]["rows"] == len(icu_hours)
    assert sum(f.stat().st_size for f in small_bundle.folder.rglob("*") if f.is_file()) < 5_000_000
    assert not [f for f in small_bundle.folder.rglob("*") if f.suffix in (".pkl", ".pickle", ".joblib")]


def test_nothing_of_a_patient_is_in_the_bundle(small_bundle):
    text = "".join(f.read_text() for f in small_bundle.folder.rglob("*") if f.is_file())
    assert "p000000" not in text
    assert "p100001" not in text


def test_minors_are_neither_trained_on_nor_scored(cohort):
    assert set(cohort.status) >= {"scored", "out_of_scope"}
    assert (cohort.status == "out_of_scope").sum() == cohort.data["statuses"]["out_of_scope"]


def test_a_fold_is_scored_by_a_booster_that_never_saw_it(cohort, fold, small_spec):
    """Turning the labels of one fold around changes nothing of that fold's own scores."""
    from dataclasses import replace

    spec = Spec.load(small_spec)
    other = replace(cohort, label=np.where(fold == 1, 1 - cohort.label, cohort.label))
    mine = fold == 1
    # Outcomes decide which hours are thinned; keep every row here so that only the labels differ.
    spec.section("training")["keep"] = 1.0
    one, two = (sepsis.out_of_fold(c, fold, spec, threads=1) for c in (cohort, other))
    assert np.array_equal(one[mine], two[mine], equal_nan=True)
    assert not np.array_equal(one[~mine], two[~mine], equal_nan=True)


def test_two_targets_in_one_loss_are_the_sum_of_two_losses(cohort):
    """Weighted cross-entropy of the blend equals share-weighted cross-entropies of label and alarm, for any score."""
    rows = np.flatnonzero(cohort.scored)[:500]
    target, weight = sepsis.blended(cohort, rows, share=0.3)
    gain = metrics.utility_gain(cohort.patient, cohort.hour, cohort.label)[rows]
    stake = np.abs(gain) / np.abs(gain).mean()
    p = np.random.default_rng(1).uniform(0.01, 0.99, len(rows))

    def loss(y: np.ndarray, w: np.ndarray) -> float:
        return float(-(w * (y * np.log(p) + (1 - y) * np.log(1 - p))).sum())

    assert loss(target, weight) == pytest.approx(
        0.7 * loss(cohort.label[rows], 1 + 0 * p) + 0.3 * loss(gain > 0, stake)
    )
    label_alone, equal = sepsis.blended(cohort, rows, share=0.0)
    assert label_alone.tolist() == cohort.label[rows].tolist()
    assert (equal == 1).all()


def test_thresholds_of_a_fold_come_from_the_others(cohort, fold, small_spec):
    """A fold's own outcomes decide neither its probabilities nor its alarms."""
    from dataclasses import replace

    spec = Spec.load(small_spec)
    raw = sepsis.out_of_fold(cohort, fold, spec, threads=1)
    some = cohort.patient % 2 == 0
    other = replace(cohort, label=np.where((fold == 1) & some, 0, cohort.label))
    one, two = (sepsis.judge(c, raw, fold, spec) for c in (cohort, other))
    mine = fold == 1
    assert np.array_equal(one.probability[mine], two.probability[mine], equal_nan=True)
    assert one.alarm[mine].tolist() == two.alarm[mine].tolist()
    assert one.page[mine].tolist() == two.page[mine].tolist()


def test_the_bundle_scores_as_what_was_fitted(small_bundle, cohort, small_spec):
    boosters = sepsis.fit(cohort, cohort.scored, Spec.load(small_spec), threads=1)
    rows = cohort.matrix[cohort.scored][:200]
    assert list(boosters) == ["risk"]
    assert np.array_equal(small_bundle.raw(rows), boosters["risk"].predict(rows, raw_score=True, num_threads=1))
    assert np.array_equal(small_bundle.raw(rows), small_bundle.raw(rows, threads=2))


def test_training_twice_gives_the_same_bundle(small_bundle, icu_file, small_spec, quiet, tmp_path):
    again = sepsis.train(
        "physionet2019", icu_file, spec=small_spec, output=tmp_path / "b", register=False, threads=1
    )
    assert again.bundle.digest == small_bundle.digest


def test_pages_keep_to_the_budget(cohort, fold, small_spec):
    spec = Spec.load(small_spec)
    raw = sepsis.out_of_fold(cohort, fold, spec, threads=1)
    everyone = np.ones(len(raw), dtype=bool)
    decided = sepsis.decide(cohort, raw, fold, everyone, spec)
    paged = sepsis.page_rows(cohort.patient, cohort.hour, decided.calibrator.apply(raw), decided.policy)
    assert 2400 * paged.sum() / cohort.scored.sum() <= 40


def test_the_evaluation_is_that_of_the_folds(small_bundle, cohort, fold, small_spec):
    judged = sepsis.judge(
        cohort,
        sepsis.out_of_fold(cohort, fold, Spec.load(small_spec), threads=1),
        fold,
        Spec.load(small_spec),
    )
    gain = metrics.utility_gain(judged.patient, judged.hour, judged.label)
    table = {(r["hospital"], r["hours"]): r["measures"] for r in small_bundle.evaluation["table"]}
    assert table[("all", "all")]["utility"][0] == pytest.approx(
        metrics.normalized_utility(gain, judged.alarm), abs=1e-5
    )
    assert set(table) == {(h, t) for h in ("all", "A", "B") for t in ("all", "<= 48")}
    assert 0.7 < table[("all", "all")]["auroc"][0] < 1


def test_the_card_says_what_was_measured(small_bundle):
    utility = small_bundle.evaluation["table"][0]["measures"]["utility"]
    assert f"{utility[0]:.3f} ({utility[1]:.3f}–{utility[2]:.3f})" in small_bundle.card
    assert "Reyna" in small_bundle.card
    assert "CC BY 4.0" in small_bundle.card
    assert "icu_admission__hours_since_last" in small_bundle.card


def test_shares_of_influence_add_up(small_bundle):
    influence = small_bundle.evaluation["influence"]
    assert sum(influence.values()) == pytest.approx(1, abs=1e-4)
    assert set(influence) <= {
        "clock", "process", "vital signs", "laboratory", "clinical scores", "ratios", "oxygen", "age, sex and unit",
    }  # fmt: skip


def test_the_simulated_hospital_trains_without_any_data(small_spec, quiet, tmp_path):
    result = sepsis.train(
        "synthetic", None, spec=small_spec, output=tmp_path / "b", register=False, threads=1
    )
    assert "says anything about real patients" in result.bundle.card
    assert "AUROC" in result.headline
    assert "peak memory" in result.summary()


def test_sources_and_inputs_that_cannot_be_are_named(small_spec, quiet):
    with pytest.raises(DataError, match="not on 'fax'"):
        sepsis.train("fax", None, spec=small_spec)
    with pytest.raises(DataError, match="Say where the data are"):
        sepsis.train("physionet2019", None, spec=small_spec)


def test_a_spec_that_says_too_little_is_refused_before_anything_is_read(small_spec, quiet, tmp_path):
    (tmp_path / "spec.toml").write_text(small_spec.read_text().replace("keep = 0.5\n", ""))
    with pytest.raises(SpecError, match=r"lacks training\.keep"):
        sepsis.train("physionet2019", None, spec=tmp_path / "spec.toml")


def test_the_released_bundle_is_what_its_spec_and_card_say(repo: Path):
    released = Bundle.load(repo / "models" / "sepsis" / "released")
    assert sum(f.stat().st_size for f in released.folder.rglob("*") if f.is_file()) <= 5_000_000
    assert released.parts["data"]["source"] == "physionet2019"
    assert released.card == (repo / "models" / "sepsis" / "card.md").read_text()
    utility = released.evaluation["table"][0]["measures"]["utility"][0]
    assert 0.40 < utility < 0.46, "much less is a fault, much more a leak"
    assert json.loads((released.folder / "bundle.json").read_text())["version"] == released.version


def test_an_output_that_is_taken_is_refused(icu_file, small_spec, quiet, tmp_path):
    (tmp_path / "taken.txt").write_text("mine")
    with pytest.raises(SpecError, match="not empty"):
        sepsis.train("physionet2019", icu_file, spec=small_spec, output=tmp_path, register=False)
