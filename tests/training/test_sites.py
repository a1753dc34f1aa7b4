"""A hospital's own data: from an extract to a bundle, wards and emergency department included, or a refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features import archive
from features.errors import ConfigError, DataError, SpecError
from features.labels.sepsis3 import sepsis_onset
from models.bundle import Bundle
from models.spec import Spec
from training import datasets, sepsis, sites

SIGNS = 'preset = "seymour_2016"'


def spec_with(repo: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    """The site's spec, made small for a test and changed."""
    text = (repo / "models" / "sepsis" / "site.toml").read_text()
    small = [("rounds = 120", "rounds = 20"), ("replicates = 300", "replicates = 10")]
    for old, new in [*small, *changes]:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "site.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def mimic_archive(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MIMIC-III demo: a hundred patients."""
    place = tmp_path_factory.mktemp("mimic3") / "archive"
    return datasets.convert("mimic3", data_dir / "mimic-iii-demo", place).folder


@pytest.mark.data
def test_mimic_iii_becomes_a_bundle_that_says_how_small_it_is(
    mimic_archive: Path, repo: Path, quiet: None, tmp_path: Path
) -> None:
    spec, output = spec_with(repo, tmp_path), tmp_path / "bundle"
    trained = sepsis.train("mimic3", mimic_archive, label="sepsis3", spec=spec, output=output, register=False)
    data = Bundle.load(output).parts["data"]
    assert trained.bundle.digest == Bundle.load(output).digest
    assert data["label"] == {"name": "sepsis3", "preset": "seymour_2016", "gap_h": 0, "horizon_h": 6}
    assert 10 <= data["septic_persons"] < data["persons"] <= 100
    assert set(data["classes"]) == {"ed", "icu", "ward"}
    assert f"{data['septic_persons']} septic persons no figure here says anything" in trained.bundle.card
    assert "PhysioNet 2019 were cut" not in trained.bundle.card


@pytest.mark.parametrize("window", ["horizon_h = 12", "", "horizon_h = 6\ngap_h = 2"])
def test_a_window_that_would_be_judged_wrongly_is_refused(repo: Path, tmp_path: Path, window: str) -> None:
    text = (repo / "models" / "sepsis" / "site.toml").read_text()
    other = text.replace("gap_h = 0\nhorizon_h = 6", window)
    assert other != text
    (tmp_path / "spec.toml").write_text(other)
    with pytest.raises(SpecError, match="horizon_h = 6"):
        sites.definition_of(Spec.load(tmp_path / "spec.toml"))


@pytest.mark.data
def test_hours_end_at_onset_and_a_person_is_in_one_fold(
    mimic_archive: Path, repo: Path, tmp_path: Path
) -> None:
    """Against onsets found shard by shard, without the trainer."""
    spec = Spec.load(spec_with(repo, tmp_path))
    definition, _ = sites.definition_of(spec)
    cohort = sites.read_site("mimic3", mimic_archive, spec, 1)
    shards = [key.read() for key in archive.shards(mimic_archive)]
    septic = sum(len(sepsis_onset(s.events, s.encounters, definition)) for s in shards)
    fold = cohort.folds(5, 1)
    assert cohort.person is not None
    assert all(len(np.unique(fold[cohort.person == p])) == 1 for p in np.unique(cohort.person))
    last = np.append(np.diff(cohort.patient) != 0, True)
    positive = cohort.patient[cohort.label == 1]
    assert len(np.unique(positive)) <= septic
    assert cohort.label[last & np.isin(cohort.patient, positive)].all()  # an onset ends the hours of its stay
    assert np.bincount(positive).max() <= 6


@pytest.mark.data
def test_clif_without_cultures_is_refused_and_by_antibiotics_trains(
    data_dir: Path, repo: Path, quiet: None, tmp_path: Path
) -> None:
    clif = data_dir / "mimic-iv-demo-clif" / "clif-2.1"
    place = datasets.convert("clif", clif, tmp_path / "archive").folder
    with pytest.raises(DataError, match="no culture"):
        sepsis.train("clif", place, label="sepsis3", spec=spec_with(repo, tmp_path), register=False)
    spec = spec_with(repo, tmp_path, (SIGNS, f'{SIGNS}\nsigns = "antibiotic"'))
    output = tmp_path / "bundle"
    made = sepsis.train("meds", place, label="sepsis3", spec=spec, output=output, register=False).bundle
    assert made.parts["data"]["classes"]["ward"] > made.parts["data"]["classes"]["icu"] > 0
    assert "suspicion by antibiotic alone" in made.card


def as_another_house_writes_meds(archived: Path, folder: Path) -> Path:
    """An archive's events as MEDS of no house in particular: no table of encounters, admissions and births as rows."""
    events, stays = (
        pd.concat(pd.read_parquet(f) for f in sorted((archived / part).glob("*.parquet")))
        for part in ("data", "encounters")
    )
    mine = stays["encounter_id"]
    stays["subject_id"] = (
        events.drop_duplicates("encounter_id").set_index("encounter_id")["subject_id"].loc[mine].array
    )
    admitted = stays["hospital_admission_time"]
    born = admitted - pd.to_timedelta(stays["age_years"] * 365.25, unit="D")
    told = [
        (born, "MEDS_BIRTH"),
        (born, "GENDER//" + stays["sex"].str[0].str.upper()),
        (admitted, "HOSPITAL_ADMISSION//EMERGENCY"),
        (stays["icu_admission_time"], "ICU_ADMISSION//MICU"),
        (events.groupby("encounter_id")["time"].max().loc[mine].array, "HOSPITAL_DISCHARGE//HOME"),
    ]
    known = [
        "subject_id",
        "time",
        "available_time",
        "code",
        "encounter_id",
        "numeric_value",
        "text_value",
        "unit",
        "concept",
    ]
    rows = events.loc[~events["code"].str.startswith("WARDCAST//"), known]
    table = pd.concat(
        [rows, *(stays[["subject_id", "encounter_id"]].assign(time=t, code=c) for t, c in told)]
    )
    (folder / "data").mkdir(parents=True)
    table.sort_values(["subject_id", "time"], kind="stable").to_parquet(
        folder / "data" / "0.parquet", index=False
    )
    return folder


@pytest.mark.data
def test_meds_of_another_house_trains_on_the_same_persons(
    mimic_archive: Path, repo: Path, quiet: None, tmp_path: Path
) -> None:
    """The archive itself gives 67 persons, 14 of them septic; without moves, hours after leaving the ward count too."""
    house = as_another_house_writes_meds(mimic_archive, tmp_path / "meds")
    made = sepsis.train("meds", house, label="sepsis3", spec=spec_with(repo, tmp_path), register=False).bundle
    data = made.parts["data"]
    assert data["persons"] == 67
    assert 14 <= data["septic_persons"] <= 16
    assert data["source"] == "meds"
    assert set(data["classes"]) == {"icu"}, "it says nothing of wards"


@pytest.mark.data
def test_tinyehr_has_no_bedside_and_is_refused_with_numbers(
    data_dir: Path, repo: Path, quiet: None, tmp_path: Path
) -> None:
    place = datasets.convert(
        "mimic4", data_dir / "tinyehr" / "tinyehr_mimic_format", tmp_path / "archive"
    ).folder
    with pytest.raises(DataError, match="0 persons have hours before an onset that can be scored"):
        sepsis.train("meds", place, label="sepsis3", spec=spec_with(repo, tmp_path), register=False)


def test_too_few_septic_persons_are_refused_with_numbers(repo: Path, quiet: None, tmp_path: Path) -> None:
    hospital = repo / "tests" / "golden" / "own_data"
    with pytest.raises(DataError, match=r"0 persons have hours before an onset.*5 folds need at least 10"):
        sepsis.train("mimic3", hospital, label="sepsis3", spec=spec_with(repo, tmp_path), register=False)


def test_what_is_to_be_learned_must_be_said_and_fit(repo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--label sepsis3"):
        sepsis.train("mimic4", tmp_path)
    with pytest.raises(ConfigError, match="label of its own"):
        sepsis.train("physionet2019", tmp_path, label="sepsis3")
    with pytest.raises(ConfigError, match="Say where the data are"):
        sepsis.train("mimic4", None, label="sepsis3")
    with pytest.raises(SpecError, match="label = 'physionet2019'"):
        sepsis.train("mimic4", tmp_path, label="sepsis3", spec=repo / "models" / "sepsis" / "spec.toml")
