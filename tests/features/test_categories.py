"""Categories: where a patient is and how oxygen is given are names, not amounts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.clean import clean
from features.concepts import loader
from features.errors import SpecError
from features.featureset import FeatureSet, is_category

Tell = Callable[[list[dict[str, Any]]], pd.DataFrame]
When = Callable[..., pd.DataFrame]


def spec(*statistics: str, concept: str = "location") -> dict[str, Any]:
    return {"group": [{"concepts": [concept], "statistics": list(statistics)}]}


def test_the_latest_category_is_the_number_of_its_word(tell: Tell, when: When) -> None:
    told = tell([{"time": 0, "concept": "location"}, {"time": 5, "concept": "location"}])
    told = told.assign(code="WARDCAST//location", text_value=["ED", "icu"], numeric_value=np.nan, unit=None)
    moves, account = clean(told)
    assert not account.reasons
    features = FeatureSet.from_spec(spec("last", "hours_since_last", "count"))
    found = features.build(moves, when(1, 6))
    words = loader.texts()
    assert found[:, 0].tolist() == [words["location", "ed"], words["location", "icu"]]
    assert found[:, 1].tolist() == [1, 1]
    assert features.categorical == ("location__last",)


def test_nobody_calculates_with_categories() -> None:
    with pytest.raises(SpecError, match="location__mean_24h would calculate with categories"):
        FeatureSet.from_spec(spec("last", "mean_24h"))
    ratio = {"name": "absurd", "numerator": "location", "denominator": "heart_rate"}
    with pytest.raises(SpecError, match="absurd would calculate"):
        FeatureSet.from_spec(spec("last") | {"ratios": [ratio]})


def test_the_manifest_says_what_each_number_names() -> None:
    manifest = FeatureSet.from_spec(spec("last", concept="oxygen_device")).manifest()
    named = manifest["categories"]["oxygen_device"]
    assert named["6"] == "imv"
    assert set(named.values()) <= {word for concept, word in loader.texts() if concept == "oxygen_device"}
    assert all(is_category(c) for c in manifest["categories"])


def test_every_category_has_words() -> None:
    for concept in loader.concepts():
        if is_category(concept):
            numbers = [n for (c, _), n in loader.texts().items() if c == concept]
            low, high = loader.concepts()[concept].low, loader.concepts()[concept].high
            assert numbers
            assert all(low <= n <= high for n in numbers)
