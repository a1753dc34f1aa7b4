"""Cards print figures as they were measured, and say so where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.cards import CHALLENGE, evaluation_text, sepsis_card
from models.spec import Spec
from models.tables import markdown, number, with_interval


def measured(utility: float | None) -> dict:
    values = {
        "auroc": 0.81,
        "auprc": 0.1,
        "brier": 0.016,
        "ici": 0.001,
        "slope": 1.0,
        "intercept": 0.02,
        "observed_expected": 0.98,
    }
    return {"utility": [utility, 0.2, 0.4], **{k: [v, v, v] for k, v in values.items()}}


@pytest.fixture
def evaluation() -> dict:
    where = [{"hospital": "all", "hours": hours} for hours in ("all", "<= 48")]
    about = {"patients": 1200, "septic_patients": 80, "prevalence_per_hour": 0.018}
    alerts = {
        "pages_per_100_patient_days": 25.04, "sensitivity": 0.7, "sensitivity_12h": 0.4, "stay_ppv": 0.2,
        "page_ppv": None, "lead_h_median": 12.0, "lead_h_q1": 4.0, "lead_h_q3": 30.0, "prevalence_per_stay": 0.066,
        "positive_from_start": 1234,
    }  # fmt: skip
    return {
        "method": "Guessed.",
        "table": [w | about | {"measures": measured(u)} for w, u in zip(where, (0.31, None), strict=True)],
        "rivals": [
            w | {"clock": {"utility": u, "auroc": 0.5}} for w, u in zip(where, (0.28, 0.0), strict=True)
        ],
        "alerts": [w | alerts for w in where],
        "intervals": {"replicates": 300},
    }


def test_a_figure_has_its_interval_and_a_missing_one_a_dash():
    assert with_interval([0.4196, 0.405, 0.437], 3) == "0.420 (0.405–0.437)"
    assert with_interval([0.42, None, None], 2) == "0.42"
    assert number(None, 3) == "–"


def test_tables_are_markdown_and_line_up():
    lines = markdown(["a", "b"], [["long cell", "x"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].strip("|-") == ""


def test_the_table_names_unit_of_analysis_and_prevalence(evaluation):
    text = evaluation_text(evaluation)
    assert "1.80% per hour" in text
    assert "6.6%" in text
    assert "0.310 (0.200–0.400)" in text
    assert "hours in intensive care alone" in text
    assert "300 bootstrap replicates of patients" in text


def test_a_card_sets_the_clock_beside_the_model(repo: Path, evaluation):
    spec = Spec.load(repo / "models" / "sepsis" / "spec.toml")
    data = {
        "source": "physionet2019", "patients": 1200, "septic_patients": 80, "rows": 50000, "citation": "Reyna 2020",
        "files": [{"name": "a.parquet", "sha256": "ab" * 32}], "cleaning": {"events": 9, "impossible_value": 2},
        "statuses": {"scored": 49000, "insufficient_data": 1000},
    }  # fmt: skip
    decision = {
        "thresholds": {"utility": 0.02, "alert": 0.05}, "calibration": "isotonic",
        "alerts": {"pages_per_100_patient_days": 25},
        "policy": {"threshold": 0.05, "snooze_h": 8.0, "reraise": 2.0, "release": 0.7},
    }  # fmt: skip
    card = sepsis_card(
        spec=spec, version="1", data=data, evaluation=evaluation, decision=decision, influence={"clock": 1.0}
    )
    assert "reaches a utility of 0.280 (this model: 0.310)" in card
    assert "2 impossible value" in card
    assert "1,000 insufficient_data" in card
    assert "was not measured" in card  # transfer
    assert "1,234 septic stays are positive in their first hour" in card
    assert "count as missed" not in card
    assert "in the format of the PhysioNet" in card
    assert "held back" not in card
    genuine = [{"name": "setA.parquet", "sha256": min(CHALLENGE)}]
    known = sepsis_card(
        spec=spec,
        version="1",
        data=data | {"files": genuine},
        evaluation=evaluation,
        decision=decision,
        influence={},
    )
    assert "training sets of two US hospital systems" in known
    elsewhere = [
        {
            "trained_on": "A",
            "tested_on": "B",
            "hours": "all",
            "measures": {k: v[0] for k, v in measured(0.3).items()},
        }
    ]
    card = sepsis_card(
        spec=spec,
        version="1",
        data=data,
        evaluation=evaluation | {"transfer": elsewhere},
        decision=decision,
        influence={},
    )
    assert "| A          | B         | all   | 0.300" in card
