"""Clinical scores against published bands and worked patients."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import kernels, scores
from features.concepts import loader
from features.errors import SpecError
from features.windows import Window

WELL = {
    "respiratory_rate": 16, "spo2": 98, "supplemental_oxygen": 0, "sbp": 120, "heart_rate": 70, "acvpu": 0,
    "temperature": 37.0,
}  # fmt: skip


def score(name: str, **values: float) -> float:
    columns: dict[str, Any] = {w.name: np.array([np.nan], np.float32) for w in scores.windows(name)}
    for concept, value in values.items():
        for column in columns:
            if column.startswith(f"{concept}__"):
                columns[column] = np.array([value], np.float32)
    return float(scores.evaluate(name, columns)[0])


# NEWS2, Royal College of Physicians 2017, chart 1


def test_a_well_patient_scores_zero() -> None:
    assert score("news2", **WELL) == 0


def test_the_sickest_patient_scores_twenty() -> None:
    # The maximum of chart 1: 3 + 3 + 2 + 3 + 3 + 3 + 3.
    lungs = score("news2_partial", respiratory_rate=26, spo2=88, supplemental_oxygen=1)
    rest = score("news2_partial", sbp=85, heart_rate=140, acvpu=4, temperature=34.0)
    assert (lungs, rest) == (8, 12)


def test_a_septic_patient_worked_from_the_chart() -> None:
    # RR 23 (2), SpO2 93 (2), oxygen (2), SBP 98 (2), pulse 112 (2), alert (0), 38.6 (1): 11.
    found = score(
        "news2",
        respiratory_rate=23,
        spo2=93,
        supplemental_oxygen=1,
        sbp=98,
        heart_rate=112,
        acvpu=0,
        temperature=38.6,
    )
    assert found == 11


@pytest.mark.parametrize(
    ("concept", "points"),
    [
        ("respiratory_rate", {8: 3, 9: 1, 11: 1, 12: 0, 20: 0, 21: 2, 24: 2, 25: 3}),
        ("spo2", {91: 3, 92: 2, 93: 2, 94: 1, 95: 1, 96: 0}),
        ("supplemental_oxygen", {0: 0, 1: 2}),
        ("sbp", {90: 3, 91: 2, 100: 2, 101: 1, 110: 1, 111: 0, 219: 0, 220: 3}),
        ("heart_rate", {40: 3, 41: 1, 50: 1, 51: 0, 90: 0, 91: 1, 110: 1, 111: 2, 130: 2, 131: 3}),
        ("acvpu", {0: 0, 1: 3, 2: 3, 3: 3, 4: 3}),
        ("temperature", {35.0: 3, 35.1: 1, 36.0: 1, 36.1: 0, 38.0: 0, 38.1: 1, 39.0: 1, 39.1: 2}),
    ],
)
def test_every_edge_of_the_news2_chart(concept: str, points: dict[float, int]) -> None:
    for value, expected in points.items():
        assert score("news2_partial", **{concept: value}) == expected, value


# qSOFA (Singer 2016), SIRS (Bone 1992), SOFA (Vincent 1996)


def test_qsofa_counts_three_signs() -> None:
    assert score("qsofa", respiratory_rate=22, sbp=100, gcs_total=14) == 3
    assert score("qsofa", respiratory_rate=21, sbp=101, gcs_total=15) == 0
    assert score("qsofa", respiratory_rate=22, sbp=101, acvpu=1) == 2


def test_sirs_counts_four_signs_and_takes_the_worse_of_breathing_and_gas() -> None:
    assert score("sirs", temperature=38.1, heart_rate=91, respiratory_rate=21, wbc=12.1) == 4
    assert score("sirs", temperature=38.0, heart_rate=90, respiratory_rate=20, wbc=12.0) == 0
    assert score("sirs", temperature=36.0, heart_rate=90, respiratory_rate=12, paco2=31, wbc=4.0) == 1
    assert score("sirs", temperature=35.9, heart_rate=90, respiratory_rate=12, paco2=32, wbc=3.9) == 2


@pytest.mark.parametrize(
    ("concept", "points"),
    [
        ("platelets", {19: 4, 20: 3, 49: 3, 50: 2, 99: 2, 100: 1, 149: 1, 150: 0}),
        ("bilirubin_total", {1.1: 0, 1.2: 1, 1.9: 1, 2.0: 2, 5.9: 2, 6.0: 3, 11.9: 3, 12.0: 4}),
        ("map", {69: 1, 70: 0}),
        ("gcs_total", {5: 4, 6: 3, 9: 3, 10: 2, 12: 2, 13: 1, 14: 1, 15: 0}),
        ("creatinine", {1.1: 0, 1.2: 1, 1.9: 1, 2.0: 2, 3.4: 2, 3.5: 3, 4.9: 3, 5.0: 4}),
    ],
)
def test_every_edge_of_the_sofa_table(concept: str, points: dict[float, int]) -> None:
    for value, expected in points.items():
        assert score("sofa_partial", **{concept: value}) == expected, value


def test_sofa_reads_arterial_oxygen_before_the_oximeter() -> None:
    assert score("sofa_partial", pao2=80, fio2=0.21) == 1  # 381
    assert score("sofa_partial", pao2=80, fio2=0.5, spo2=100) == 2  # 160, though SpO2/FiO2 says 200
    assert score("sofa_partial", spo2=97, fio2=0.21) == 1  # 462 stands for less than 400: Pandharipande 2009
    assert math.isnan(score("sofa_partial", spo2=97))


# SOFA as published


def read(name: str, **windows: float) -> float:
    columns: dict[str, Any] = {w.name: np.array([np.nan], np.float32) for w in scores.windows(name)}
    assert set(windows) <= set(columns)
    columns |= {name: np.array([value], np.float32) for name, value in windows.items()}
    return float(scores.evaluate(name, columns)[0])


def test_every_worked_part_of_the_published_sofa(repo: Path) -> None:
    text = (repo / "tests/golden/sofa_worked.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in text if not line.startswith("#")))
    assert len(rows) > 30
    for row in rows:
        windows = {k: float(v) for k, v in (pair.split("=") for pair in row["readings"].split())}
        expected = math.nan if row["points"] == "none" else float(row["points"])
        got = read(f"sofa_full_{row['part']}", **windows)
        assert np.array_equal(got, expected, equal_nan=True), row


def test_the_whole_published_sofa_is_missing_while_a_part_is_and_its_partial_sums_the_rest() -> None:
    five = {
        "pao2__last_24h": 45.0, "fio2__last_24h": 0.5, "invasive_ventilation__last": 1.0, "platelets__min_24h": 19.0,
        "bilirubin_total__max_24h": 12.0, "norepinephrine__last": 0.2, "gcs_total__min_24h": 3.0,
    }  # fmt: skip
    assert math.isnan(read("sofa_full", **five))
    assert read("sofa_full_partial", **five) == 20
    assert read("sofa_full", **five, creatinine__max_24h=5.0) == 24
    assert math.isnan(read("sofa_full_partial"))


def test_a_part_alone_is_a_score_of_its_own() -> None:
    assert score("sofa_renal", creatinine=3.5) == 3
    assert math.isnan(score("sofa_renal"))
    assert {w.concept for w in scores.windows("sofa_renal")} == {"creatinine"}
    assert score("news2_pulse", heart_rate=131) == 3


# Missing


def test_a_missing_value_scores_missing_never_zero() -> None:
    got = scores.points(np.array([np.nan, 1, 2], np.float32), (-math.inf, 2.0), (0.0, 3.0))
    assert np.isnan(got[0])
    assert got[1:].tolist() == [0, 3]


def test_a_full_score_needs_every_part_and_a_partial_one_needs_any() -> None:
    without_pulse = {k: v for k, v in WELL.items() if k != "heart_rate"}
    assert math.isnan(score("news2", **without_pulse))
    assert score("news2_partial", **without_pulse) == 0
    assert math.isnan(score("news2_partial"))


def test_an_unknown_score_is_refused_with_the_choices() -> None:
    with pytest.raises(SpecError, match="news2, news2_partial"):
        scores.windows("apache")


# The compiled loop, with evaluate and ratio as its oracle

EVERY = tuple(
    name
    for whole, parts in loader.scores().items()
    for name in (whole, f"{whole}{scores.PARTIAL}", *(f"{whole}_{part.name}" for part in parts))
)
PAIRS = (("heart_rate__last", "sbp__last"), ("pao2__last_24h", "fio2__last_24h"), ("sbp__last", "sbp__last"))


def limits(score: str) -> dict[str, list[float]]:
    """Where something changes in a score: for each of its windows the starts of bands and what conditions ask for."""
    found: dict[str, list[float]] = {
        w.name: [0.0, -0.0, math.nan, math.inf, -math.inf] for w in scores.windows(score)
    }
    for component in (c for part in scores.definition(score) for c in part.components):
        for concept in re.split("[/+]", component.concept):
            found[Window.parse(concept, component.statistic).name] += component.starts
        for condition in (c for either in component.when for c in either):
            found[Window.parse(condition.concept, condition.statistic).name].append(condition.value)
    return found


def drawn(score: str, rng: np.random.Generator, n: int) -> dict[str, Any]:
    """Random windows of a score: missing, infinite, exactly on an edge, one float32 to either side, and in between."""
    columns = {}
    for name, edges in limits(score).items():
        exact = np.float32(rng.choice(edges, n))
        beside = np.nextafter(exact, np.float32(rng.choice([-np.inf, np.inf], n)))
        between = np.float32(rng.choice(np.abs(edges[5:]) if edges[5:] else [1.0], n) * rng.uniform(0, 2, n))
        between[~np.isfinite(between)] = 1
        pick = rng.choice(4, n, p=[0.4, 0.15, 0.25, 0.2])
        columns[name] = np.choose(pick, [exact, beside, between, np.float32(np.nan)]).astype(np.float32)
    return columns


def appraised(
    names: tuple[str, ...], pairs: tuple[tuple[str, str], ...], columns: dict[str, Any], shown: int
) -> Any:
    """Ratios and scores by the compiled loop, with the first so many windows in the output and the others beside it."""
    place = {name: k for k, name in enumerate(columns)}
    table = np.stack(list(columns.values()), axis=1)
    out = np.full((len(table), shown + len(pairs) + len(names)), -7, np.float32)
    out[:, :shown] = table[:, :shown]
    rows = np.arange(len(table))[::-1].copy()
    kernels.appraise(rows, scores.marks(pairs, names, place), shown, out, table[:, shown:].copy())
    np.testing.assert_array_equal(out[:, :shown], table[:, :shown])
    return out[:, shown:]


@pytest.mark.parametrize("name", EVERY)
def test_the_compiled_score_equals_the_readable_one(name: str) -> None:
    rng = np.random.default_rng(len(name))
    columns = drawn(name, rng, 3000)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        expected = scores.evaluate(name, columns)
    assert np.isfinite(expected).any()
    for shown in (0, len(columns) // 2, len(columns)):
        np.testing.assert_array_equal(appraised((name,), (), columns, shown)[:, 0], expected)


def test_all_scores_and_ratios_together_equal_each_alone() -> None:
    rng = np.random.default_rng(4)
    columns: dict[str, Any] = {}
    for name in EVERY:
        columns |= drawn(name, rng, 2000)
    for name in {window for pair in PAIRS for window in pair}:
        columns[name] = np.float32(rng.choice([0, -0.0, 1, 80, 120.5, math.nan, math.inf, 1e-30, 3e38], 2000))
    found = appraised(EVERY, PAIRS, columns, 11)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        ratios = [scores.ratio(columns[over], columns[under]) for over, under in PAIRS]
        expected = np.stack([*ratios, *(scores.evaluate(name, columns) for name in EVERY)], axis=1)
    np.testing.assert_array_equal(found, expected)
    some = ("sofa_full_partial", "qsofa")
    at = [len(PAIRS) + EVERY.index(name) for name in some]
    np.testing.assert_array_equal(appraised(some, PAIRS[1:], columns, 3)[:, 2:], found[:, at])


@given(st.data())
def test_a_few_patients_are_scored_alike(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(EVERY))
    columns = {
        window: np.array(
            data.draw(
                st.lists(
                    st.one_of(st.sampled_from(edges), st.floats(0, 500, width=32)), min_size=2, max_size=2
                )
            ),
            np.float32,
        )
        for window, edges in limits(name).items()
    }
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        expected = scores.evaluate(name, columns)
    np.testing.assert_array_equal(appraised((name,), (), columns, 1)[:, 0], expected)
