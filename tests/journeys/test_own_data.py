"""From a hospital's own tables to features and labels, by the real command, as somebody at a site would type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
HOSPITAL = ROOT / "tests" / "golden" / "own_data"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def wardcast(tmp_path: Path) -> Run:
    """The command, in an empty folder."""

    def run(*words: object, ends: int = 0) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).parent / "wardcast", *map(str, words)]
        env = os.environ | {"WARDCAST_VAR": str(tmp_path / "var")}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == ends, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.mark.slow
def test_a_site_goes_from_its_tables_to_features_and_labels(wardcast: Run, tmp_path: Path) -> None:
    assert "chartevents: bedside charting" in wardcast("data", "schema", "mimic3").stdout

    said = wardcast(
        "data", "convert", "--source", "mimic3", "--input", HOSPITAL, "--output", "mine", "--account", "account.json"
    ).stdout  # fmt: skip
    assert "4 encounters of 4 persons, 61 events" in said
    assert "no_encounter 1" in said
    account = json.loads((tmp_path / "account.json").read_text())
    assert account["rows"]["chartevents"] == 27

    # Most of what the released model reads is not there: the check says so and a script can tell.
    assert "Verdict: incomplete." in wardcast("data", "check", "--input", "mine", ends=1).stdout
    said = wardcast(
        "data", "label", "--input", "mine", "--output", "onsets.parquet", "--diagnoses", HOSPITAL
    ).stdout
    assert "Septic: 1 of 2 ICU stays, 50.0% (9.5%–90.5%)." in said
    onsets = pd.read_parquet(tmp_path / "onsets.parquet").set_index("encounter_id")
    assert onsets.loc["100", "onset_time"] == pd.Timestamp("2150-03-01T16:00Z")
    assert onsets["sepsis"].tolist() == [True, False]

    said = wardcast(
        "features", "build", "--input", "mine", "--at", "hourly", "--start", "icu", "--output", "built"
    ).stdout
    assert "55 predictions of 2 encounters × 259 features" in said
    assert "Manifest: built/features.json" in said
    assert json.loads((tmp_path / "built" / "features.json").read_text())["made"]["predictions"] == 55


@pytest.mark.slow
def test_a_cluster_of_two_builds_the_same_files(wardcast: Run, tmp_path: Path) -> None:
    wardcast("data", "convert", "--source", "mimic3", "--input", HOSPITAL, "--output", "mine")
    for engine, folder in (("local", "one"), ("dask", "two")):
        more = ["--engine", engine, "--workers", 2] if engine == "dask" else []
        wardcast("features", "build", "--input", "mine", "--output", folder, *more)
    parts = sorted(p.name for p in (tmp_path / "one").glob("part-*.parquet"))
    assert parts
    assert all((tmp_path / "one" / p).read_bytes() == (tmp_path / "two" / p).read_bytes() for p in parts)


def test_help_names_every_source_and_what_exit_codes_mean(wardcast: Run) -> None:
    from features.sources.registry import READERS

    said = wardcast("data", "convert", "--help").stdout
    words = " ".join(said.replace("│", " ").split())
    assert [s for s in READERS if s not in words] == []
    assert "Ends with 0" in wardcast("data", "check", "--help").stdout
