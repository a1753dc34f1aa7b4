"""Targets beside what was measured: the worst of many, an end of an interval, and what was not measured."""

from __future__ import annotations

from models.targets import TARGETS, targets_text


def rows(evaluation: dict, influence: dict | None = None) -> dict[str, list[str]]:
    lines = targets_text(evaluation, influence or {}).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in cells[2:]}


def test_each_target_is_met_by_figure_and_interval_or_says_so():
    told = rows(
        {
            "table": [
                {
                    "hospital": "all",
                    "hours": "all",
                    "measures": {"utility": [0.45, 0.44, 0.46], "slope": [1.0, 0.98, 1.02]},
                },
                {"hospital": "A", "hours": "all", "measures": {"slope": [0.93, 0.9, 0.97]}},
                {
                    "hospital": "all",
                    "hours": "<= 48",
                    "measures": {"utility": [0.2, 0.1, 0.3], "auroc": [0.84, 0.835, 0.85]},
                },
            ],
            "subgroups": [{"group": "sex", "value": "male", "hours": "all", "suppressed": True}],
            "transfer": [
                {
                    "trained_on": "A",
                    "hours": "all",
                    "measures": {"utility": 0.34},
                    "intervals": {"utility": [0.31, 0.37]},
                    "recalibrated": {
                        "after": {"ici": 0.002, "slope": 1.0, "brier_skill": 0.031},
                        "after_sd": {"ici": 0.0001, "slope": 0.02, "brier_skill": 0.001},
                    },
                    "abstention": {
                        "points": [{"point": "sensitivity 0.8", "stay_ppv": 0.1, "stay_ppv_withheld": 0.13}]
                    },
                }
            ],
            "explanation": {"additivity": 3e-15},
        },
        {"process": 0.2, "clock": 0.05},
    )
    assert len(told) == len(TARGETS)
    assert told["official utility"] == ["≥ 0.445", "0.450 (0.440–0.460)", "yes, interval reaches beyond"]
    assert told["official utility, A→B"][1] == "0.340 (0.310–0.370)"
    assert told["official utility, B→A"][1:] == ["–", "not measured"]
    assert told["utility within 48 h"][2] == "no"
    assert told["AUROC within 48 h"][2] == "yes"
    assert told["slope of each hospital, age, sex and unit"][1:] == [
        "0.93 (0.90–0.97), hospital A, worst of 2",
        "no",
    ]
    assert told["ICI after 1,000 local stays, A→B"][1:] == ["0.0020 (0.0018–0.0022)", "yes"]
    assert told["gain in stay PPV by withholding, A→B"][1:] == ["0.30", "yes"]
    assert told["reasons sum to the score, log-odds"][1:] == ["3.0e-15", "yes"]
    assert told["clock and process, share of attributions"][1:] == ["0.250", "no"]
