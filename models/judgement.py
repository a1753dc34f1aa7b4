"""What an evaluation found beyond the main tables, for card and console: each part only where it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from models.tables import markdown, number, with_interval

Table = Mapping[str, Any]

METHODS: Final = {
    "isotonic": "isotonic, centred", "beta": "beta", "logistic": "logistic", "venn_abers": "Venn-Abers",
}  # fmt: skip

RIVALS: Final = {
    "clock": "hours in intensive care alone",
    "sirs": "SIRS, partial",
    "qsofa": "qSOFA, partial",
    "news2": "NEWS2, partial",
    "sofa": "SOFA, partial",
    "learned_clock": "learned clock",
    "logistic": "logistic regression",
}
RIVAL_FIGURES: Final = ("utility", "auroc", "auprc", "stay_ppv_80")


def more(evaluation: Table) -> list[str]:
    """Markdown of every further part, in order."""
    parts = (_brier, _flexible, _subgroups, _operating, _decision_curves, _calibration, _abstention)
    return [text for part in parts if (text := part(evaluation))]


def _brier(evaluation: Table) -> str:
    rows = []
    for row in evaluation["table"]:
        m = row["measures"]
        if "reliability" not in m:
            return ""
        parts = [number(m[k][0], 5) for k in ("brier", "reliability", "resolution", "uncertainty")]
        far = [with_interval(m[k], 4) for k in ("e50", "e90")]
        rows.append([row["hospital"], row["hours"], *parts, with_interval(m["brier_skill"], 3), *far])
    head = ["Hospital", "Hours", "Brier", "Reliability", "Resolution", "Uncertainty", "Skill", "E50", "E90"]
    return (
        "The Brier score taken apart (reliability - resolution + uncertainty), its skill over the prevalence, and the "
        "median and 90th percentile of the distance to the smoothed curve:\n\n" + markdown(head, rows)
    )


def _flexible(evaluation: Table) -> str:
    rows = [
        [
            f"{row['group']}: {row['value']}" if row["group"] else "all",
            row["hours"],
            *map(_percent, row["observed"]),
        ]
        for row in evaluation.get("calibration_curves", [])
        if any(v is not None for v in row["observed"])
    ]
    told = (
        "Flexible calibration curves (loess) read at some probabilities: the share of hours that was positive where "
        "the model said so much.\n\n"
    )
    head = ["Group", "Hours", "0.5 %", "1 %", "2 %", "5 %", "10 %", "20 %"]
    return told + markdown(head, rows) if rows else ""


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _subgroups(evaluation: Table) -> str:
    rows = []
    for row in evaluation.get("subgroups", []):
        who = [
            f"{row['group']}: {row['value']}",
            row["hours"],
            f"{row['patients']:,} ({row['septic_patients']:,})",
        ]
        if row.get("suppressed"):
            rows.append([*who, "too few", "", "", "", ""])
            continue
        m = row["measures"]
        figures = [with_interval(m[k], d) for k, d in (("auroc", 3), ("utility", 3), ("ici", 4))]
        rows.append([*who, *figures, *(with_interval(m[k], 2) for k in ("slope", "observed_expected"))])
    head = ["Group", "Hours", "Patients (septic)", "AUROC", "Utility", "ICI", "Slope", "O/E"]
    told = "By age, sex and kind of unit; groups of fewer than 100 patients or 20 septic ones are not measured:\n\n"
    return told + markdown(head, rows) if rows else ""


def _operating(evaluation: Table) -> str:
    rows = [
        [row["hospital"], row["hours"], *point_cells(point)]
        for row in evaluation.get("operating", [])
        for point in row["points"]
    ]
    head = ["Hospital", "Hours", *POINT_HEAD]
    told = (
        "Pages at fixed sensitivities and budgets. The threshold is read off these rows: a description of the score, "
        "not a promise. *Standing then*: septic stays at or above the threshold within the last 12 h before "
        "onset, whether paged then or earlier. Stay PPV: paged stays with onset in these hours; *at any time*: that "
        "turn septic whenever, and NNE, the stays evaluated for each of those. *Early lead*: paged more than 48 h "
        "ahead, which is not foresight.\n\n"
    )
    return told + markdown(head, rows) if rows else ""


POINT_HEAD: Final = (
    "Point", "Sensitivity", "last 12 h", "standing then", "Stay PPV", "at any time", "NNE", "Page PPV",
    "/100 patient-days", "Lead, h", "Early lead",
)  # fmt: skip


def point_cells(point: Table) -> list[str]:
    """One operating point; intervals where it has them."""
    between = point.get("intervals", {})

    def share(name: str, digits: int) -> str:
        return with_interval([point.get(name), *between.get(name, (None, None))], digits)

    lead = f"{number(point['lead_h_median'], 0)} [{number(point['lead_h_q1'], 0)}, {number(point['lead_h_q3'], 0)}]"
    return [
        point["point"],
        number(point["sensitivity"], 2),
        number(point["sensitivity_12h"], 2),
        share("standing_12h", 2),
        share("stay_ppv_in_time", 3),
        number(point["stay_ppv"], 3),
        number(point["nne"], 1),
        share("page_ppv", 3),
        share("pages_per_100_patient_days", 1),
        lead,
        number(point["lead_share_over_48h"], 2),
    ]


def _decision_curves(evaluation: Table) -> str:
    rows = []
    for curve in evaluation.get("decision_curves", []):
        for k, threshold in enumerate(curve["thresholds"]):
            model = [None if v is None else 1000 * v for v in curve["model"][k]]
            others = [curve[name][k] for name in ("treat_all", "clock")]
            shown = [number(None if v is None else 1000 * v, 1) for v in others]
            rows.append([curve["hours"], f"{threshold:.0%}", with_interval(model, 1), *shown])
    told = (
        "Decision curves: net benefit per 1,000 patient-hours of alarming at a probability threshold, beside alarming "
        "for everyone and the clock rule; silence is worth 0.\n\n"
    )
    head = ["Hours", "Threshold", "This model", "Everyone", "Clock rule"]
    return told + markdown(head, rows) if rows else ""


def _calibration(evaluation: Table) -> str:
    rows = [
        [
            row["hospital"],
            row["hours"],
            METHODS[name],
            number(m["log_loss"], 5),
            number(m["brier"], 5),
            number(m["ici"], 4),
            number(m["slope"], 2),
            number(m["observed_expected"], 2),
        ]
        for row in evaluation.get("calibration", [])
        for name in METHODS
        if (m := row["methods"].get(name))
    ]
    told = "Ways to calibrate, each on patients that it was not fitted on; the first two columns are proper scores:\n\n"
    head = ["Hospital", "Hours", "Method", "Log loss", "Brier", "ICI", "Slope", "O/E"]
    return told + markdown(head, rows) if rows else ""


def _abstention(evaluation: Table) -> str:
    rows = [
        [row["hospital"], row["hours"], *cells]
        for row in evaluation.get("abstention", [])
        for cells in withheld_cells(row)
    ]
    head = ["Hospital", "Hours", *WITHHELD_HEAD]
    told = (
        "Indeterminate scores: high ones on a record with few laboratory results, which look neither like rows without "
        "sepsis nor like rows with it. Withheld: share of scored rows, and of the positive ones. PPV at one "
        "sensitivity with every score and abstaining on these; what only they would have found counts as missed.\n\n"
    )
    return told + markdown(head, rows) if rows else ""


WITHHELD_HEAD: Final = (
    "Withheld", "of positive", "Point", "Stay PPV", "abstaining", "Gain", "Page PPV", "abstaining",
    "Utility", "abstaining",
)  # fmt: skip


def withheld_cells(row: Table) -> list[list[str]]:
    """What abstention does at each point."""
    found = []
    for point in row.get("points", []):
        before, after = (point.get(f"stay_ppv_in_time{w}", point[f"stay_ppv{w}"]) for w in ("", "_withheld"))
        gain = "–" if not before or after is None else f"{after / before - 1:+.0%}"
        shares = [f"{row[k]:.1%}" if row[k] is not None else "–" for k in ("rows", "septic_rows")]
        pages = [number(point[k], 3) for k in ("page_ppv", "page_ppv_withheld")]
        utility = [number(row[k], 3) for k in ("utility", "utility_withheld")]
        found.append([*shares, point["point"], number(before, 3), number(after, 3), gain, *pages, *utility])
    return found


def elsewhere(transfer: Sequence[Table]) -> str:
    """Pages, abstention and recalibration at the other hospital."""
    pages = [
        [row["trained_on"], row["tested_on"], row["hours"], *point_cells(point)]
        for row in transfer
        for point in row.get("points", [])
    ]
    silent = [
        [row["trained_on"], row["tested_on"], row["hours"], *cells]
        for row in transfer
        if "abstention" in row
        for cells in withheld_cells(row["abstention"])
    ]
    local = [row for row in transfer if row.get("recalibrated")]
    where = ["Trained at", "Tested at", "Hours"]
    rivals = [
        [
            row["trained_on"],
            row["tested_on"],
            row["hours"],
            RIVALS[name],
            *(number(found.get(k), 3) for k in RIVAL_FIGURES),
        ]
        for row in transfer
        for name, found in row.get("rivals", {}).items()
    ]
    parts = []
    if rivals:
        head = [*where, "Beside the model", "Utility", "AUROC", "AUPRC", "Stay PPV"]
        parts.append("Rivals there, fitted and thresholded where the model was:\n\n" + markdown(head, rivals))
    if pages:
        parts.append("Pages there, at fixed sensitivities:\n\n" + markdown([*where, *POINT_HEAD], pages))
    if silent:
        parts.append("Indeterminate scores there:\n\n" + markdown([*where, *WITHHELD_HEAD], silent))
    if local:
        parts.append(_recalibrated(local))
    return "\n\n".join(parts)


def _recalibrated(local: Sequence[Table]) -> str:
    rows = []
    for row in local:
        told = row["recalibrated"]
        for name, spread in (("before", None), ("after", "after_sd")):
            figures = [
                number(told[name][k], d) + (f" ± {number(told[spread][k], d)}" if spread else "")
                for k, d in (("ici", 4), ("slope", 2), ("observed_expected", 2), ("brier_skill", 3))
            ]
            rows.append([row["trained_on"], row["tested_on"], name, *figures])
    first = local[0]["recalibrated"]
    return (
        f"`wardcast recalibrate` rehearsed: slope and intercept from {first['stays']:,} random local stays, judged on "
        f"all others; mean ± standard deviation of {first['draws']} draws:\n\n"
        + markdown(["Trained at", "Tested at", "", "ICI", "Slope", "O/E", "Brier skill"], rows)
    )
