"""What a bundle's files give away, and what they may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest

from models.bundle import Bundle, without_extremes, write_bundle
from models.spec import Spec


@pytest.fixture(scope="module")
def released(repo: Path) -> Bundle:
    return Bundle.load(repo / "models" / "sepsis" / "released")


@pytest.fixture(scope="module")
def booster(released: Bundle) -> lgb.Booster:
    """Fitted on values among which two patients stand out."""
    rng = np.random.default_rng(1)
    names = list(released.feature_names)
    values = rng.normal(80, 10, (400, len(names)))
    values[:, 1] = rng.integers(0, 3, 400)
    values[7, 0], values[8, 0], values[9, 2] = 311.25, -17.125, np.nan
    label = (values[:, 0] + values[:, 2] > 160).astype(float)
    data = lgb.Dataset(values, np.nan_to_num(label), feature_name=names, categorical_feature=[1])
    settings = {"objective": "binary", "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5}
    return lgb.train(settings, data, 20)


def test_a_bundle_keeps_no_extreme_of_a_single_patient(booster, released, tmp_path):
    parts = {
        name: released.parts[name] for name in ("features", "reference", "evaluation", "data", "calibrator")
    }
    bundle = write_bundle(
        tmp_path / "b",
        name="sepsis",
        version="t",
        spec_text=released.spec.text,
        boosters={"risk": booster},
        parts=parts,
        card="",
    )
    text = (tmp_path / "b" / "boosters" / "risk.txt").read_text()
    infos = next(line for line in text.splitlines() if line.startswith("feature_infos="))
    assert "311.25" in booster.model_to_string()
    assert "311.25" not in text
    assert "-17.125" not in text
    assert "[" not in infos
    assert len(infos.split()) == len(released.feature_names)
    rng = np.random.default_rng(2)
    matrix = rng.normal(80, 30, (200, len(released.feature_names))).astype(np.float32)
    matrix[:, 1] = rng.integers(-1, 5, 200)
    matrix[rng.random(matrix.shape) < 0.2] = np.nan
    assert bundle.raw(matrix).tobytes() == booster.predict(matrix, raw_score=True, num_threads=1).tobytes()
    assert (
        bundle.contributions(matrix).tobytes()
        == booster.predict(matrix, pred_contrib=True, num_threads=1).tobytes()
    )


def test_the_released_model_scores_the_same_without_them(released):
    booster = released.members()[0]
    bare = lgb.Booster(model_str=without_extremes(booster.model_to_string()))
    matrix = np.random.default_rng(3).normal(60, 40, (50, len(released.feature_names))).astype(np.float32)
    matrix[::3, ::2] = np.nan
    assert bare.predict(matrix, raw_score=True).tobytes() == booster.predict(matrix, raw_score=True).tobytes()
    assert (
        bare.predict(matrix, pred_contrib=True).tobytes()
        == booster.predict(matrix, pred_contrib=True).tobytes()
    )


def test_a_spec_decides_whether_indeterminate_scores_are_withheld(released):
    """As the README writes it; a released model only marks them."""
    own = Spec.parse(f"{released.spec.text}\n[abstention]\nwithhold = true\n")
    assert not released.withholds
    assert replace(released, spec=own).withholds
