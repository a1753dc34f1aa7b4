"""A model at a new hospital: the ranking stays, the probabilities become true, and too few patients are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from features.errors import DataError
from models.bundle import Bundle
from models.calibration import Calibrator
from models.metrics import auroc, expit, logit
from models.profile import profile
from training import recalibration
from training.recalibration import adapted, local_line, recalibrate, rehearsed, uncertainty


def hospital(stays: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw scores, outcomes and patients where the truth is 0.6 of the score less 0.8; ten hours a stay."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(-1.5, 1.5, stays * 10)
    label = (rng.random(len(raw)) < expit(0.6 * raw - 0.8)).astype(np.int64)
    return raw, label, np.repeat(np.arange(stays), 10)


IDENTITY = Calibrator("logistic", (1.0, 0.0))


def test_the_line_is_scikit_learns_where_patients_are_many():
    raw, label, patient = hospital(20_000, 1)
    fitted = LogisticRegression(C=np.inf).fit(raw[:, None], label)
    slope, intercept = local_line(IDENTITY, raw, label, uncertainty(IDENTITY, raw, label, patient))
    assert slope == pytest.approx(fitted.coef_[0, 0], abs=0.01)
    assert intercept == pytest.approx(fitted.intercept_[0], abs=0.01)


def test_few_patients_move_a_released_map_little():
    """The lines of 10 patients at a time scatter; drawn towards 1, they scatter less."""
    raw, label, patient = hospital(400, 1)
    drawn, bare = [], []
    for k in range(40):
        some = (patient // 10) == k
        part = raw[some], label[some]
        drawn.append(local_line(IDENTITY, *part, uncertainty(IDENTITY, *part, patient[some] - 10 * k))[0])
        bare.append(local_line(IDENTITY, *part, np.zeros((2, 2)))[0])
    assert np.std(drawn) < 0.7 * np.std(bare)
    assert 0.6 < np.mean(bare) < np.mean(drawn) < 1


def test_copies_of_a_row_say_no_more_than_the_row():
    """Each stay the same row ten times over: ten rows are worth one. Independent rows are worth themselves."""
    raw, label, patient = hospital(3_000, 7)
    single = raw[:3_000], label[:3_000], np.arange(3_000)
    copied = np.repeat(single[0], 10), np.repeat(single[1], 10), patient
    once = uncertainty(IDENTITY, *single)
    assert uncertainty(IDENTITY, *copied) == pytest.approx(once, rel=1e-6)
    design = np.column_stack([raw - raw.mean(), np.ones_like(raw)])
    p = expit(0.6 * raw - 0.8)
    information = np.linalg.inv((design * (p * (1 - p))[:, None]).T @ design)
    assert uncertainty(IDENTITY, raw, label, patient) == pytest.approx(information, rel=0.15, abs=1e-5)


def test_a_line_is_believed_by_the_share_of_its_variance():
    """As sure of itself as the prior is, slope and level at the mean go half the way; nowhere without a line."""
    raw, label, _ = hospital(20_000, 1)
    sure, half = (
        local_line(IDENTITY, raw, label, k * np.diag(np.square(recalibration.SPREAD))) for k in (0.0, 1.0)
    )
    at = raw.mean()
    assert half[0] == pytest.approx((1 + sure[0]) / 2)
    assert half[0] * at + half[1] == pytest.approx((at + sure[0] * at + sure[1]) / 2)
    nothing = np.zeros(50), np.zeros(50, np.int64), np.arange(50)
    assert local_line(IDENTITY, *nothing[:2], uncertainty(IDENTITY, *nothing)) == (1.0, 0.0)


def test_an_adapted_map_is_nearer_the_truth_and_says_how_sure_it_is():
    raw, label, patient = hospital(800, 2)
    made = adapted(IDENTITY, raw, label, patient, np.random.default_rng(3))
    probe = np.array([-3.0, -1.0, 1.0])
    truth = expit(0.6 * probe - 0.8)
    assert (np.abs(made.apply(probe) - truth) < np.abs(IDENTITY.apply(probe) - truth)).all()
    low, high = made.interval(probe)
    assert ((low < made.apply(probe)) & (made.apply(probe) < high)).all()


def test_a_rehearsal_judges_stays_that_it_did_not_fit():
    raw, label, patient = hospital(3_000, 4)
    told = rehearsed(IDENTITY, raw, label, patient, seed=5, draws=3)
    assert told["stays"] == 1000
    assert told["after"]["ici"] < 0.3 * told["before"]["ici"]
    assert told["after"]["slope"] == pytest.approx(1, abs=0.1)
    assert rehearsed(IDENTITY, raw[:50], label[:50], patient[:50], seed=5) == {}


def test_a_bundle_is_recalibrated_by_a_file_and_says_so(small_bundle, icu_hours, tmp_path, monkeypatch):
    monkeypatch.setattr(recalibration, "REPLICATES", 20)
    local, words = tmp_path / "local.parquet", ("sepsis", "physionet2019")
    icu_hours[icu_hours["patient_id"] != icu_hours["patient_id"].iloc[0]].to_parquet(local, index=False)
    made = recalibrate(*words, local, tmp_path / "b", model=str(small_bundle.folder), register=False)
    bundle = Bundle.load(tmp_path / "b")
    # All but one of these patients trained the model; nothing but the form of their identifiers can tell.
    assert "look like the challenge's own patients" in made.summary()
    assert "look like the challenge's own patients" in bundle.card
    with pytest.raises(DataError, match="made from these very files"):
        recalibrate(*words, local, tmp_path / "c", model=str(tmp_path / "b"), register=False)
    rows = np.random.default_rng(6).normal(size=(200, len(bundle.feature_names))).astype(np.float32)
    assert np.array_equal(bundle.raw(rows), small_bundle.raw(rows)), "the ranking is the parent's"
    assert auroc(np.arange(200) % 2, bundle.score(rows)) == auroc(
        np.arange(200) % 2, small_bundle.score(rows)
    )
    assert bundle.reference["probability"]["edges"] != small_bundle.reference["probability"]["edges"]
    assert bundle.reference["features"] == small_bundle.reference["features"]
    about = bundle.parts["recalibration"]
    assert about["parent"] == small_bundle.model_id
    assert bundle.model_id != small_bundle.model_id
    assert about["files"][0]["name"] == "local.parquet"
    assert f"{about['patients']:,} local patients" in bundle.card
    assert "slope" in made.summary()
    low, high = bundle.calibrator.interval(np.array([-2.0]))
    assert low < bundle.calibrator.apply(np.array([-2.0])) < high


def test_the_files_that_a_model_was_made_from_tell_nothing_of_another_hospital(
    small_bundle, icu_file, tmp_path
):
    with pytest.raises(DataError, match="made from these very files"):
        recalibrate(
            "sepsis",
            "physionet2019",
            icu_file,
            tmp_path / "b",
            model=str(small_bundle.folder),
            register=False,
        )


def test_scores_are_not_taken_for_drift_after_the_line_that_moved_them():
    """The profile moved is the profile of the moved scores, in the bins moved with it."""
    p = expit(np.random.default_rng(8).normal(-4, 1.2, 20_000))
    names, nothing = ("x",), np.zeros((len(p), 1), dtype=np.float32)
    before = profile(nothing, names, p, digits=15)["probability"]
    after = expit(0.7 * logit(p) + 0.4)
    told, exact = (
        recalibration.moved(before, 0.7, 0.4),
        profile(nothing, names, after, digits=15)["probability"],
    )
    assert np.histogram(after, told["edges"])[0].tolist() == before["histogram"] == told["histogram"]
    assert (told["edges"][0], told["edges"][-1]) == (0.0, 1.0)
    assert told["quantiles"] == pytest.approx(exact["quantiles"], rel=0.01)
    assert told["mean"] == pytest.approx(exact["mean"], rel=0.03)
    assert told["std"] == pytest.approx(exact["std"], rel=0.05)


def test_too_few_septic_patients_are_refused(small_bundle, icu_hours, tmp_path):
    some = icu_hours[icu_hours["patient_id"].isin(pd.unique(icu_hours["patient_id"])[:10])]
    some.to_parquet(tmp_path / "few.parquet", index=False)
    with pytest.raises(DataError, match="needs 20 septic patients"):
        recalibrate(
            "sepsis", "physionet2019", tmp_path / "few.parquet", tmp_path / "b", model=str(small_bundle.folder),
            register=False,
        )  # fmt: skip
