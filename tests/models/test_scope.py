"""Who may be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.errors import SpecError
from models.scope import assess, recent_vitals, scope_of, seen_columns
from models.spec import Spec


@pytest.fixture(scope="module")
def spec(repo: Path) -> Spec:
    return Spec.load(repo / "models" / "sepsis" / "spec.toml")


def test_an_adult_in_intensive_care_with_a_vital_sign_is_scored(spec):
    assert assess(["icu"], [18.0], [1], spec).tolist() == ["scored"]


def test_the_day_before_the_birthday_is_out_of_scope(spec):
    assert assess(["icu"], [17.99], [7], spec).tolist() == ["out_of_scope"]


def test_wards_are_out_of_scope(spec):
    assert assess(["ward", "ed"], [50.0] * 2, [7] * 2, spec).tolist() == ["out_of_scope"] * 2


def test_a_place_that_nobody_said_is_missing_not_elsewhere(spec):
    assert assess([None, ""], [50.0] * 2, [7] * 2, spec).tolist() == ["insufficient_data"] * 2
    assert assess([None], [9.0], [7], spec).tolist() == ["out_of_scope"]


def test_intensive_care_without_an_admission_time_is_not_scored(spec):
    known = [True, False]
    assert assess(["icu"] * 2, [50.0] * 2, [7] * 2, spec, known).tolist() == ["scored", "insufficient_data"]


def test_nothing_to_go_by_is_said(spec):
    assert assess(["icu", "icu"], [50.0, np.nan], [0, 7], spec).tolist() == ["insufficient_data"] * 2


def test_being_out_of_scope_comes_first(spec):
    assert assess(["ward"], [np.nan], [0], spec).tolist() == ["out_of_scope"]


def test_a_vital_sign_at_the_closing_hour_counts(spec):
    names = list(spec.features.names)
    seen = seen_columns(spec)
    matrix = np.full((3, len(names)), np.nan, dtype=np.float32)
    matrix[:, seen["heart_rate"]] = [24, 24.01, np.nan]
    lactate = next(k for k, name in enumerate(names) if name.startswith("lactate__hours_since_last"))
    matrix[2, lactate] = 0  # not a vital sign
    assert recent_vitals(matrix, spec).tolist() == [1, 0, 0]


def test_a_spec_that_cannot_count_its_vital_signs_is_refused(spec):
    text = spec.text.replace('vitals = ["heart_rate"', 'vitals = ["lactate_dehydrogenase"')
    with pytest.raises(SpecError, match="no hours_since_last"):
        scope_of(Spec.parse(text))
    with pytest.raises(SpecError, match="lacks recent_h"):
        scope_of(Spec.parse(spec.text.replace("recent_h = 24", "")))
