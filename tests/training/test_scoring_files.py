"""Scoring and judging files: every row answered, nothing looked ahead to, outcomes never read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.errors import ConfigError, DataError
from models.decision import AlertPolicy, AlertState
from training.scoring import evaluate_file, score_file

COLUMNS = ["patient_id", "hour", "probability", "alert", "page", "status"]


def score(rows: pd.DataFrame, model: Path, folder: Path, name: str = "x") -> pd.DataFrame:
    rows.to_parquet(folder / f"{name}.parquet", index=False)
    score_file(
        "sepsis", "physionet2019", folder / f"{name}.parquet", folder / f"{name}-scores.parquet", str(model)
    )
    return pd.read_parquet(folder / f"{name}-scores.parquet")


@pytest.fixture(scope="module")
def model(small_bundle) -> Path:
    return small_bundle.folder


@pytest.fixture(scope="module")
def scores(icu_hours, model, tmp_path_factory) -> pd.DataFrame:
    return score(icu_hours, model, tmp_path_factory.mktemp("scores"))


def test_every_row_is_answered_in_its_place(scores, icu_hours):
    assert list(scores.columns) == COLUMNS
    assert scores["patient_id"].tolist() == icu_hours["patient_id"].tolist()
    assert scores["hour"].tolist() == icu_hours["hour"].tolist()
    assert scores["hour"].dtype == icu_hours["hour"].dtype


def test_probability_is_missing_only_where_status_says_why(scores, icu_hours):
    scored = scores["status"] == "scored"
    assert scores["probability"].notna().eq(scored).all()
    assert scores.loc[icu_hours["Age"] < 18, "status"].eq("out_of_scope").all()
    assert not scores.loc[~scored, ["alert", "page"]].to_numpy().any()


def test_alert_is_the_threshold_and_page_is_the_policy(scores, small_bundle, icu_hours):
    assert scores["alert"].tolist() == (scores["probability"] >= small_bundle.thresholds["utility"]).tolist()
    policy = AlertPolicy.from_dict(small_bundle.alert_policy)
    for _, stay in scores.groupby("patient_id"):
        state = AlertState()
        for row in stay.itertuples():
            state, decision = policy.step(state, row.probability, int(row.hour) * 3_600_000_000)
            assert decision.page == row.page


def test_outcomes_are_not_read(scores, icu_hours, model, tmp_path):
    without = score(icu_hours.drop(columns="SepsisLabel"), model, tmp_path, "without")
    nonsense = score(icu_hours.assign(SepsisLabel="?"), model, tmp_path, "nonsense")
    pd.testing.assert_frame_equal(without, scores)
    pd.testing.assert_frame_equal(nonsense, scores)


def test_an_hour_reads_nothing_later(scores, icu_hours, model, tmp_path):
    """Cutting each stay at a random hour leaves the scores before it as they were, to the last bit."""
    rng = np.random.default_rng(1)
    cut = icu_hours["patient_id"].map({p: rng.integers(1, 30) for p in icu_hours["patient_id"].unique()})
    early = icu_hours["hour"] < cut
    told_so_far = score(icu_hours[early], model, tmp_path)
    pd.testing.assert_frame_equal(told_so_far, scores[early].reset_index(drop=True), check_exact=True)


def test_another_order_of_rows_gives_the_same_scores(scores, icu_hours, model, tmp_path):
    shuffled = icu_hours.sample(frac=1, random_state=2)
    again = score(shuffled, model, tmp_path)
    pd.testing.assert_frame_equal(again, scores.loc[shuffled.index].reset_index(drop=True), check_exact=True)


def test_a_patient_alone_scores_as_in_company(scores, icu_hours, model, tmp_path):
    one = icu_hours["patient_id"] == icu_hours["patient_id"].iloc[0]
    alone = score(icu_hours[one], model, tmp_path)
    pd.testing.assert_frame_equal(alone, scores[one].reset_index(drop=True), check_exact=True)


def test_a_stay_without_any_vital_sign_has_no_score(icu_hours, model, tmp_path):
    silent = icu_hours.head(10).assign(HR=np.nan, Temp=np.nan)
    table = score(silent, model, tmp_path)
    assert table["status"].eq("insufficient_data").all()
    assert table["probability"].isna().all()


def test_the_summary_counts_what_was_not_scored(icu_file, model, tmp_path):
    result = score_file("sepsis", "physionet2019", icu_file, tmp_path / "deep" / "out.parquet", str(model))
    assert "out_of_scope" in result.summary()
    assert "160 patients" in result.summary()
    assert (tmp_path / "deep" / "out.parquet").is_file()


def test_evaluation_uses_the_models_own_thresholds(icu_file, icu_hours, scores, model, tmp_path):
    result = evaluate_file("sepsis", "physionet2019", icu_file, str(model), tmp_path / "table.json")
    saved = json.loads((tmp_path / "table.json").read_text())
    assert saved == result.evaluation
    every = saved["table"][0]
    assert every["rows"] == len(icu_hours)
    assert every["unscored_share"] == pytest.approx(float((scores["status"] != "scored").mean()), rel=1e-4)
    assert every["measures"]["utility"][0] > 0.3
    assert {"clock", "sirs"} <= set(saved["rivals"][0])
    assert "Utility" in result.summary()


def test_patients_that_trained_the_model_flatter_it_and_that_is_said(icu_file, icu_hours, model, tmp_path):
    assert (
        "which flatters it"
        in evaluate_file("sepsis", "physionet2019", icu_file, str(model), tmp_path / "t.json").summary()
    )
    icu_hours.iloc[::-1].to_parquet(tmp_path / "other.parquet")
    other = evaluate_file(
        "sepsis", "physionet2019", tmp_path / "other.parquet", str(model), tmp_path / "t.json"
    )
    assert "which flatters it" not in other.summary()


def test_a_part_of_the_challenges_patients_is_recognised_by_their_identifiers(icu_hours, model, tmp_path):
    """Another order, or a subset, has other bytes but the same patients."""
    for name, ids in [("part", icu_hours["patient_id"]), ("own", "h" + icu_hours["patient_id"])]:
        icu_hours.assign(patient_id=ids).iloc[:4000].to_parquet(tmp_path / f"{name}.parquet")
        result = evaluate_file(
            "sepsis", "physionet2019", tmp_path / f"{name}.parquet", str(model), tmp_path / "t.json"
        )
        saved = json.loads((tmp_path / "t.json").read_text())["data"]
        assert saved["trained_on_these_files"] is False
        assert saved["challenge_patients"] is (name == "part")
        assert ("look like the challenge's own patients" in result.summary()) is (name == "part")


def test_evaluation_saves_under_var_unless_told(icu_file, model, var):
    result = evaluate_file("sepsis", "physionet2019", icu_file, str(model))
    assert result.output.parent == var / "reports"


def test_evaluation_needs_outcomes(icu_hours, model, tmp_path):
    icu_hours.drop(columns="SepsisLabel").to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has no SepsisLabel"):
        evaluate_file("sepsis", "physionet2019", tmp_path / "x.parquet", str(model))


@pytest.mark.parametrize(
    ("product", "source", "output", "message"),
    [
        ("admissions", "physionet2019", "x.parquet", "wardcast forecast beds"),
        ("sepsis", "fax", "x.parquet", "'fax' cannot be scored"),
        ("sepsis", "physionet2019", "x.csv", r"name the output x\.parquet"),
    ],
)
def test_what_cannot_be_scored_is_said(icu_file, model, tmp_path, product, source, output, message):
    with pytest.raises(ConfigError, match=message):
        score_file(product, source, icu_file, tmp_path / output, str(model))


def test_an_empty_file_is_said(icu_hours, model, tmp_path):
    icu_hours.head(0).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        score_file("sepsis", "physionet2019", tmp_path / "x.parquet", tmp_path / "y.parquet", str(model))


@pytest.fixture(scope="module")
def real_hours(data_dir) -> pd.DataFrame:
    """The first two hundred patients of hospital A."""
    import pyarrow.parquet as pq

    table = pq.read_table(
        data_dir / "physionet2019" / "setA.parquet", filters=[("patient_id", "<", "p000260")]
    )
    hours = table.to_pandas()
    return hours[hours["patient_id"].isin(hours["patient_id"].unique()[:200])].reset_index(drop=True)


@pytest.mark.data
def test_real_hours_read_nothing_later_and_no_outcome(real_hours, repo, tmp_path):
    released = repo / "models" / "sepsis" / "released"
    whole = score(real_hours, released, tmp_path)
    assert whole["probability"].notna().mean() > 0.9
    early = real_hours["hour"] < real_hours["patient_id"].map(lambda p: 3 + int(p[1:]) % 17)
    told_so_far = score(real_hours[early].drop(columns="SepsisLabel"), released, tmp_path)
    pd.testing.assert_frame_equal(told_so_far, whole[early].reset_index(drop=True), check_exact=True)


def test_scores_never_replace_or_join_what_was_scored(icu_hours, model, tmp_path):
    folder = tmp_path / "hours"
    folder.mkdir()
    file = folder / "x.parquet"
    icu_hours.head(30).to_parquet(file, index=False)
    before = file.read_bytes()
    (tmp_path / "link.parquet").symlink_to(file)
    for given, output, why in [
        (file, file, "is a file of the input"),
        (file, tmp_path / "link.parquet", "is a file of the input"),
        (folder, file, "is a file of the input"),
        (folder, folder / "scores.parquet", "lies in the input's folder"),
    ]:
        with pytest.raises(DataError, match=why):
            score_file("sepsis", "physionet2019", given, output, str(model))
        with pytest.raises(DataError, match=why):
            evaluate_file("sepsis", "physionet2019", given, str(model), output)
    assert file.read_bytes() == before
    assert [f.name for f in folder.iterdir()] == ["x.parquet"]


def test_a_run_that_fails_leaves_earlier_scores_as_they_were(icu_hours, model, tmp_path, monkeypatch):
    earlier = score(icu_hours.head(30), model, tmp_path)

    def full(table: pd.DataFrame, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="disk full"):
        score_file(
            "sepsis", "physionet2019", tmp_path / "x.parquet", tmp_path / "x-scores.parquet", str(model)
        )
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "x-scores.parquet"), earlier)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["x-scores.parquet", "x.parquet"]


def test_values_set_aside_are_counted_and_a_column_that_loses_many_is_named(icu_hours, model, tmp_path):
    """Heart rates a hundredfold by mistake; one temperature typed wrong."""
    wrong = icu_hours.iloc[:2000].copy()
    measured = int(wrong["HR"].notna().sum())
    wrong["HR"] *= 100
    wrong.loc[wrong["Temp"].first_valid_index(), "Temp"] = 370_000.0
    wrong.to_parquet(tmp_path / "x.parquet", index=False)
    given = ("sepsis", "physionet2019", tmp_path / "x.parquet")
    scored = score_file(*given, tmp_path / "y.parquet", str(model)).summary()
    judged = evaluate_file(*given, str(model), tmp_path / "t.json")
    for said in (scored, judged.summary()):
        assert f"cleaning set aside {measured + 1:,} impossible value" in said
        assert f"HR: {measured:,} of {measured:,} values set aside" in said
        assert "Temp:" not in said
    assert judged.evaluation["data"]["cleaning"]["impossible_value"] == measured + 1


def test_clean_values_need_no_line(icu_file, model, tmp_path):
    result = score_file("sepsis", "physionet2019", icu_file, tmp_path / "y.parquet", str(model))
    assert "set aside" not in result.summary()


@pytest.mark.parametrize(
    ("age", "status"), [(-1.0, "insufficient_data"), (131.0, "insufficient_data"), (130.0, "scored")]
)
def test_an_age_no_human_has_is_an_unknown_age(icu_hours, model, tmp_path, age, status):
    stay = icu_hours[icu_hours["patient_id"] == icu_hours["patient_id"].iloc[0]].assign(Age=age, HR=80.0)
    assert set(score(stay, model, tmp_path)["status"]) == {status}
