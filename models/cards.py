"""Model cards: what a bundle is, said from its own figures, so that a card cannot say what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from models.judgement import RIVAL_FIGURES, RIVALS, elsewhere, more
from models.spec import Spec
from models.tables import markdown, number, with_interval
from models.targets import targets_text

Table = Mapping[str, Any]

MEASURES: Final = {
    "utility": ("Utility", 3),
    "auroc": ("AUROC", 3),
    "auprc": ("AUPRC", 3),
    "brier": ("Brier", 4),
    "ici": ("ICI", 4),
    "slope": ("Slope", 2),
    "intercept": ("Intercept", 2),
    "observed_expected": ("O/E", 2),
}
RANKING: Final = ("utility", "auroc", "auprc")
CALIBRATION: Final = ("brier", "ici", "slope", "intercept", "observed_expected")
RIVALS_TOLD: Final = (
    "On the same rows. The learned clock is a LightGBM of the hours in intensive care, and in hospital before it where "
    "the model reads them, and nothing else; the logistic regression reads every feature of the model, standardised, "
    "with whether it is missing as a feature of its own, ridge-penalised. Both are fitted to the patients that the "
    "model is fitted to, not calibrated afterwards and not tuned. Stay PPV: of the stays picked at the threshold that "
    "finds 80 % of the septic ones with onset in these hours, the share with onset in these hours."
)

PAGES: Final = (
    "Pages up to onset. Sensitivity: septic stays paged at all, and paged within the last 12 h before onset; stays "
    "that are positive in their first hour are left out of it and of the lead, and the rows of the first 48 h count "
    "stays with onset by then. Stay PPV: paged stays with onset in these hours, so of the first 48 h those with onset "
    "by then; *at any time*: paged stays that turn septic whenever, which flatters a band of hours. Page PPV: pages "
    "followed by onset within 24 h. Lead: first page to onset; it says little without the rate beside it."
)


NOT_SERVED: Final = (
    "**For comparison only; the service refuses it.** It reads how long a stay has lasted, which these data reward and "
    "no ward should: it is here for the challenge's official utility, beside which the served model is to be read."
)

CHALLENGE: Final = frozenset(
    {
        "9e7a6e32bf9dad6beaa081fe9c10f60ac42854f6072c19a5b81bcd151fdd6dc6",
        "565b8de3ad5abdfb499f3ee1311c25e1c71ad6078a8f3cfd0f548bd67ed9a4a6",
    }
)
"""SHA-256 of setA.parquet and setB.parquet, the development part of the challenge's training sets."""

CUT: Final = "Stays in PhysioNet 2019 were cut so that length gives sepsis away. "
CHECKLISTS: Final = "TRIPOD+AI and PROBAST+AI, filled in: `models/sepsis/checklists.md`."
BARS: Final = 12
"""Concepts in the plot of what moves scores."""
FEW_SEPTIC: Final = 200
"""Below so many septic persons a card says that its figures mean little."""

CHALLENGE_NAME: Final = (
    "PhysioNet/Computing in Cardiology Challenge 2019, training sets of two US hospital systems"
)
CHALLENGE_HELD: Final = " Part of each hospital's patients is held back from development and was not seen."
UNKNOWN_NAME: Final = "Data in the format of the PhysioNet/Computing in Cardiology Challenge 2019"


def evaluation_text(evaluation: Table) -> str:
    """The evaluation of a sepsis model as Markdown tables: the model, its rivals, its pages."""
    parts = [_measures(evaluation), _rivals(evaluation), _alerts(evaluation)]
    intervals = evaluation["intervals"]
    note = (
        f"95 % intervals from {intervals['replicates']} bootstrap replicates of patients. Utility: PhysioNet/CinC "
        "2019, 0 silence, 1 best; within the first 48 h it is normalised by the best attainable in those hours. ICI, "
        "slope and O/E judge calibration (0, 1, 1 are perfect); the ICI has a re-centred percentile interval."
    )
    return "\n\n".join([*(p for p in parts if p), note, *more(evaluation)])


def _measures(evaluation: Table) -> str:
    """Two tables, each narrow enough for a terminal: who, and how well told apart; how well calibrated."""
    return "\n\n".join(_measured(evaluation, names) for names in (RANKING, CALIBRATION))


def _measured(evaluation: Table, names: Sequence[str]) -> str:
    told = names is RANKING
    head = [
        "Hospital",
        "Hours",
        *(["Patients (septic)", "Prevalence"] if told else []),
        *(MEASURES[m][0] for m in names),
    ]
    rows = []
    for row in evaluation["table"]:
        who = [f"{row['patients']:,} ({row['septic_patients']:,})", _prevalence(row["prevalence_per_hour"])]
        figures = [with_interval(row["measures"][m], MEASURES[m][1]) for m in names]
        rows.append([row["hospital"], row["hours"], *(who if told else []), *figures])
    return markdown(head, rows)


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _prevalence(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%} per hour"


def _rivals(evaluation: Table) -> str:
    rows = [
        [
            RIVALS[name],
            row["hospital"],
            row["hours"],
            *(number(row[name].get(k), 3) for k in RIVAL_FIGURES),
        ]
        for row in evaluation["rivals"]
        for name in RIVALS
        if name in row
    ]
    head = ["Beside the model", "Hospital", "Hours", "Utility", "AUROC", "AUPRC", "Stay PPV"]
    told = RIVALS_TOLD if any("logistic" in row for row in evaluation["rivals"]) else ""
    return "\n\n".join(p for p in (markdown(head, rows), told) if p) if rows else ""


def _alerts(evaluation: Table) -> str:
    head = [
        "Pages at",
        "Hours",
        "/100 patient-days",
        "Sensitivity",
        "last 12 h",
        "Stay PPV",
        "at any time",
        "Page PPV",
        "Lead, h [quartiles]",
        "Septic stays",
        "with onset then",
    ]
    rows = []
    for row in evaluation["alerts"]:
        lead = f"{number(row['lead_h_median'], 0)} [{number(row['lead_h_q1'], 0)}, {number(row['lead_h_q3'], 0)}]"
        shown = ("sensitivity", "sensitivity_12h", "stay_ppv_in_time", "stay_ppv", "page_ppv")
        figures = [number(row.get(k), 2) for k in shown]
        shares = [_share(row.get(k)) for k in ("prevalence_per_stay", "prevalence_in_time")]
        rate = number(row["pages_per_100_patient_days"], 1)
        rows.append([row["hospital"], row["hours"], rate, *figures, lead, *shares])
    return markdown(head, rows) + "\n\n" + PAGES


def sepsis_card(
    *, spec: Spec, version: str, data: Table, evaluation: Table, decision: Table, influence: Table
) -> str:
    """The card of a sepsis bundle, Markdown, from the parts that go into the bundle.

    Parameters
    ----------
    influence : mapping of kind to share
        Share of the absolute TreeSHAP contributions by kind of feature (vital signs, laboratory, clock, …).
    """
    sections = [
        f"# Sepsis risk in {_places(spec)}, version {version}",
        _summary(spec, data),
        "## What it is for\n\n" + _use(spec),
        "## What it was made from\n\n" + (_made_at(data) if "label" in data else _made_from(data)),
        *(
            ["## Against the targets\n\n" + targets_text(evaluation, influence)]
            if data["source"] == "physionet2019"
            else []
        ),
        "## How it was judged\n\n" + evaluation["method"] + "\n\n" + evaluation_text(evaluation),
        "## The clock in these data\n\n"
        + _clock(spec, evaluation, CUT if data["source"] == "physionet2019" else ""),
        "## What moves the score\n\n" + _influence(spec, influence, evaluation),
        "## What it took\n\n" + _cost(evaluation),
        "## Probability, alert and page\n\n" + _decision(decision, evaluation),
        "## How far to trust it\n\n" + _limits(data, evaluation),
        *(["## Checklists\n\n" + CHECKLISTS] if data["source"] == "physionet2019" else []),
        "## Citation\n\n" + data["citation"],
    ]
    return "\n\n".join(sections) + "\n"


def _summary(spec: Spec, data: Table) -> str:
    count = len(spec.section("training").get("member", [None]))
    what = "One LightGBM model" if count == 1 else f"The mean log-odds of {count} LightGBM models"
    text = (
        f"Every hour, for {_whom(spec)}: the calibrated probability that "
        f"{spec.section('target')['meaning']} {what} over {len(spec.features.names)} features, trained on "
        f"{data['patients']:,} patients, {data['septic_patients']:,} of them septic."
    )
    return text if spec.served else f"{text}\n\n{NOT_SERVED}"


def _use(spec: Spec) -> str:
    scope = spec.section("scope")
    lines = [
        "To draw a clinician's attention to a patient whose sepsis may be starting. It informs; it decides nothing, "
        "orders nothing, and its silence excludes nothing.",
        f"Scored: {', '.join(scope['encounter_classes'])} encounters, age {scope['min_age']} or over, with at least "
        f"{scope['min_vitals']} of {len(scope['vitals'])} vital signs in the last {scope['recent_h']} h. Everyone "
        "else gets a reason instead of a number (`out_of_scope`, `insufficient_data`).",
        _not_for(scope["encounter_classes"]),
    ]
    return "\n\n".join(lines)


def _not_for(classes: Sequence[str]) -> str:
    absent = [
        name
        for place, name in (("ward", "wards"), ("ed", "emergency departments"), ("icu", "intensive care"))
        if place not in classes
    ]
    return f"Not for {', '.join(['children', *absent])} or homes: no such patient was in the training data."


def _places(spec: Spec) -> str:
    """``adult intensive care``; ``adults (ed, ward, icu)`` where the scope is wider."""
    classes = spec.section("scope")["encounter_classes"]
    return "adult intensive care" if classes == ["icu"] else f"adults ({', '.join(classes)})"


def _whom(spec: Spec) -> str:
    classes = spec.section("scope")["encounter_classes"]
    return "an adult in intensive care" if classes == ["icu"] else f"an adult ({', '.join(classes)})"


def _made_at(data: Table) -> str:
    """The data of a hospital's own, which has no name here: how large they are, and how small."""
    septic, label = data["septic_persons"], data["label"]
    few = (
        f" **With {septic:,} septic persons no figure here says anything of skill**; the bundle shows that the road is "
        "whole."
        if septic < FEW_SEPTIC
        else ""
    )
    where = ", ".join(f"{n:,} {place}" for place, n in sorted(data["classes"].items()))
    left = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in data["left"].items())
    unscored = ", ".join(f"{n:,} {status}" for status, n in data["statuses"].items() if status != "scored")
    files = "; ".join(f"`{f['name']}` (SHA-256 {f['sha256'][:12]}…)" for f in data["files"])
    signs = ", suspicion by antibiotic alone" if label.get("signs") == "antibiotic" else ""
    counted = (
        f"{data['persons']:,} persons, {data['patients']:,} stays, {data['rows']:,} patient-hours ({where})"
    )
    return "\n\n".join(
        [
            f"A hospital's own data, read as {data['source']}: {counted}. {septic:,} persons turn septic by Sepsis-3 "
            f"as {label['preset']} reads it{signs}, while they are scored.{few}",
            f"Archive: {files}.",
            f"Left out: {left or 'nothing'}. Hours that could not be scored: {unscored or 'none'}; they were not "
            "trained on, and in the utility they count as silence.",
            f"Positive are the {label['horizon_h']:g} hours up to onset; later hours are left out. All stays of a "
            "person are in one fold. Where a patient was is read from the moves known at that hour.",
        ]
    )


def _made_from(data: Table) -> str:
    if data["source"] == "synthetic":
        return (
            f"{data['patients']:,} simulated intensive-care stays ({data['rows']:,} hours). **Nothing here says "
            "anything about real patients**; the bundle shows that the machinery works."
        )
    files = "; ".join(f"`{f['name']}` (SHA-256 {f['sha256'][:12]}…)" for f in data["files"])
    aside = ", ".join(
        f"{n:,} {reason.replace('_', ' ')}" for reason, n in data["cleaning"].items() if reason != "events"
    )
    unscored = ", ".join(f"{n:,} {status}" for status, n in data["statuses"].items() if status != "scored")
    genuine = all(f["sha256"] in CHALLENGE for f in data["files"])
    name, held = (CHALLENGE_NAME, CHALLENGE_HELD) if genuine else (UNKNOWN_NAME, "")
    return (
        f"{name}: {data['patients']:,} intensive-care stays, {data['rows']:,} patient-hours, "
        f"{data['septic_patients']:,} stays with sepsis by Sepsis-3. Files: {files}.{held}\n\nOf "
        f"{data['cleaning']['events']:,} measured values, cleaning set aside: "
        f"{aside or 'none'}. Hours that could not be scored: {unscored or 'none'}; they were not trained on, and in "
        "the utility they count as silence.\n\nThe label is the challenge's SepsisLabel, unmasked: 1 from six hours "
        "before onset to the end of the record."
    )


def _clock(spec: Spec, evaluation: Table, cut: str) -> str:
    found = {(r["hospital"], r["hours"]): r for r in evaluation["rivals"]}
    every, early = found.get(("all", "all")), found.get(("all", "<= 48"))
    if not every or not early or "clock" not in every:
        return "The clock alone was not measured."
    model = {(r["hospital"], r["hours"]): r["measures"]["utility"][0] for r in evaluation["table"]}
    text = (
        f"{cut}An alarm for everyone after a fixed hour, without looking at the patient, reaches a utility of "
        f"{number(every['clock']['utility'], 3)} (this model: {number(model[('all', 'all')], 3)}). Within the first "
        f"48 h that rule is worth {number(early['clock']['utility'], 3)} (AUROC of the hour: "
        f"{number(early['clock']['auroc'], 3)}), so the figures for those hours are the ones to believe (this model: "
        f"{number(model[('all', '<= 48')], 3)}). {_clocks(spec)}"
    )
    return "\n\n".join(p for p in (text, _time_told(evaluation), _ablation(evaluation)) if p)


def _clocks(spec: Spec) -> str:
    """The features that tell the time, by name."""
    names = spec.features.names
    clocks = [f"`{n}`" for n in names if n.startswith("icu_admission__")]
    counts = sum(n.endswith("__count") for n in names)
    clocks += [f"{counts} counts of measurements over the whole stay"] if counts else []
    text = f"The model reads {' and '.join(clocks) or 'no clock, and no count since admission'}."
    before = "`hours_before_icu__last`"
    if before.strip("`") in names:
        text += f" {before}, the hours in hospital before intensive care, is fixed at admission and tells no time."
    return text


def _cost(evaluation: Table) -> str:
    if "cost" not in evaluation:
        return "Not measured."
    took = evaluation["cost"]
    return (
        f"Reading, cross-validating, judging, trying it at the other hospital and fitting: {took['minutes']:g} minutes "
        f"with {took['threads']:g} threads, at most {took['peak_gib']:g} GiB of memory."
    )


def _time_told(evaluation: Table) -> str:
    told = evaluation.get("time_told")
    if not told:
        return ""
    return (
        "What the features together still betray of the hour, to a model made for nothing else: "
        f"R² {number(told['r2'], 2)} of its logarithm, AUROC {number(told['auroc'], 2)} for being "
        "past the 60th among hours past the 48th, which is where length gives sepsis away."
    )


def _ablation(evaluation: Table) -> str:
    """Members, and the first of them kept from the clock and the process of measuring."""
    rows: dict[str, list[str]] = {}
    for row in evaluation.get("ablation", ()):
        figures = rows.setdefault(row["model"], [row["model"], ", ".join(row["leaves_out"]) or "–"])
        figures += [number(row["utility"], 3), number(row["auroc"], 3)]
    if not rows:
        return ""
    head = ["Model", "Does not read", "Utility", "AUROC", "Utility, 48 h", "AUROC, 48 h"]
    return (
        "Cross-validated, each with the threshold of highest utility in the same hours of the other folds; models "
        "that do not read something are the first member, fitted again without it:\n\n"
        + markdown(head, list(rows.values()))
    )


def _influence(spec: Spec, influence: Table, evaluation: Table) -> str:
    explanation = evaluation.get("explanation", {})
    rows = [[kind, f"{share:.1%}"] for kind, share in sorted(influence.items(), key=lambda item: -item[1])]
    return (
        "Share of the absolute contributions (exact TreeSHAP, log-odds before calibration) on a sample of "
        "development hours. *Process* is when and how often something was measured, which reflects habits of these "
        "hospitals as much as illness.\n\n"
        + markdown(["Kind of feature", "Share"], rows)
        + (_reasons(explanation) if explanation else "")
        + _refits(evaluation.get("refits", {}))
    )


def _sums(explanation: Table) -> str:
    far = explanation.get("additivity")
    return "" if far is None else f"\n\nReasons sum to the raw score: largest difference {far:.1e} log-odds."


def _reasons(explanation: Table) -> str:
    """What moves scores by concept, as a small plot in text, and how steady reasons are."""
    most = max((g["share"] for g in explanation["groups"]), default=1.0)
    bars = [
        [g["group"].replace("_", " "), f"{g['share']:.1%}", "█" * max(round(20 * g["share"] / most), 1)]
        for g in explanation["groups"][:BARS]
        if g["share"] > 0
    ]
    rows = [
        [
            name.replace("_", " "),
            f"{s['pairs']:,}",
            *(number(s[k], 2) for k in ("overlap", "same_first", "turned")),
        ]
        for name, s in explanation["steadiness"].items()
    ]
    return (
        f"{_sums(explanation)}\n\nThe same by what the features are about, the strongest of all:\n\n"
        + markdown(["Concept", "Share", ""], bars)
        + "\n\nReasons from one hour to the next, of the same patient. *Overlap*: Jaccard index of the three strongest "
        "concepts; *turned*: of the three strongest, felt (0.05 log-odds) in both hours, the share that changed sides. "
        "*Nothing new*: no measurement in between.\n\n"
        + markdown(["Between hours", "Pairs", "Overlap", "Same first", "Turned"], rows)
    )


def _refits(told: Table) -> str:
    """What other seeds change."""
    if not told.get("refits"):
        return ""
    rows = [
        [
            f"{MEASURES[row['measure']][0]}",
            row["hours"],
            ", ".join(number(v, 3) for v in row["each"]),
            number(row["mean"], 3),
            number(row["sd"], 4),
        ]
        for row in told["figures"]
    ]
    alike = told["reasons"]
    same = (
        f" Reasons of the same hour by two refits: overlap {number(alike['overlap'], 2)}, same first "
        f"{number(alike['same_first'], 2)}, turned {number(alike['turned'], 2)}."
        if alike
        else ""
    )
    return (
        f"\n\nThe first fold refitted with {told['refits']} other seeds (other hours thinned, other draws of rows and "
        "features), with the calibration and the threshold of the other folds; the first figure is the model as "
        f"judged:\n\n{markdown(['Measure', 'Hours', 'Each', 'Mean', 'SD'], rows)}\n\nOf one hour, the standard "
        f"deviation of the score between refits is {number(told['rows_sd'], 3)} log-odds on average.{same}"
    )


def _decision(decision: Table, evaluation: Table) -> str:
    policy, thresholds = decision["policy"], decision["thresholds"]
    said = (
        f"Calibration: {decision['calibration']}, fitted to cross-validated scores{_late(decision)}. `alert` means a "
        f"probability of at least {thresholds['utility']:.4f}, the threshold with the highest utility on "
        "cross-validated scores, averaged over neighbouring thresholds. `page` follows the ward's policy: an "
        f"episode opens at {policy['threshold']:.4f} and closes below {policy['release']:.0%} of that; it pages once, "
        f"again when the probability has risen {policy['reraise']:g}-fold, and after a page there is quiet for "
        f"{policy['snooze_h']:g} h. "
        f"{_aim(decision['alerts'])}"
    )
    return "\n\n".join([said, *([_paging(evaluation["paging"])] if evaluation.get("paging") else [])])


def _late(decision: Table) -> str:
    """How late hours count in the calibration, where they count for less."""
    late = decision.get("calibrate")
    if not late:
        return ""
    return (
        f", in which hours from the {late['late_h']:g}th on count {late['late_weight']:g}: nearly all stays that last "
        "so long in these data are septic, a model without a clock cannot know that an hour is late, and what the late "
        "hours add to its risk would be too much in the early ones"
    )


def _aim(alerts: Table) -> str:
    """What the paging policy was chosen for."""
    if alerts.get("threshold_from") == "net_benefit":
        return (
            f"The policy has the highest net benefit on cross-validated scores, at {alerts['false_pages_per_true']:g} "
            "false pages for one septic stay paged within the day before onset."
        )
    return (
        f"The threshold keeps to {alerts['pages_per_100_patient_days']:g} pages per 100 patient-days on "
        "cross-validated scores; of the settings tried, these have the truest pages."
    )


def _paging(table: Sequence[Table]) -> str:
    """The policy beside a plain threshold."""
    figures = ("sensitivity", "sensitivity_12h", "standing_12h", "stay_ppv", "page_ppv")
    rows = [
        [
            row["policy"],
            row["hours"],
            number(row["pages_per_100_patient_days"], 1),
            *(number(row[name], 2) for name in figures),
            number(row["lead_h_median"], 0),
        ]
        for row in table
    ]
    head = [
        "Paged by", "Hours", "/100 patient-days", "Sensitivity", "last 12 h", "standing then", "Stay PPV", "Page PPV",
        "Lead, h",
    ]  # fmt: skip
    return (
        "Each fold paged by what was chosen on the others. *Plain threshold*: a page whenever the probability comes to "
        "it from below, no quiet, at the same budget. *Standing then*: septic stays with an alert standing in the last "
        "12 h before onset, paged then or earlier.\n\n" + markdown(head, rows)
    )


def _limits(data: Table, evaluation: Table) -> str:
    if data["source"] == "synthetic":
        return "Not at all, beyond showing that training, scoring and monitoring run."
    if "label" in data:
        return _elsewhere(evaluation.get("transfer", [])) + (
            " Onset is read from antibiotics, cultures and organ dysfunction as recorded afterwards, so the label "
            "follows clinicians' behaviour."
        )
    return "\n\n".join(
        [
            _elsewhere(evaluation.get("transfer", [])),
            "Onset is the earlier of organ dysfunction and suspicion as recorded afterwards (antibiotics and "
            "cultures), so the label follows clinicians' behaviour. " + _from_start(evaluation),
            "The data are hourly and begin with intensive care. Measurements from before it, or other habits of "
            "measuring, change what counts and times since the last measurement mean; units are converted, habits "
            "cannot be.",
            "No race, language or social data were available; fairness was measured by hospital, age, sex and kind of "
            "unit only. There are no dates, so nothing is known of how it ages.",
        ]
    )


def _from_start(evaluation: Table) -> str:
    counts = [row.get("positive_from_start") for row in evaluation["alerts"][:1]]
    some = f"{counts[0]:,}" if counts and counts[0] is not None else "Some"
    return (
        f"{some} septic stays are positive in their first hour, where no earlier warning was possible: the utility "
        "pays an alarm there in full, as the challenge does; sensitivity and lead of the pages leave these stays out."
    )


def _elsewhere(transfer: Sequence[Table]) -> str:
    text = (
        "**Another hospital is another matter.** Run it silently, judge it with `wardcast evaluate` on local "
        "patients, and recalibrate before anyone is paged."
    )
    if not transfer:
        return text + " How the recipe travels from one hospital to another was not measured."
    shown = ("utility", "auroc", "auprc", "ici", "slope", "observed_expected")
    rows = [
        [
            row["trained_on"],
            row["tested_on"],
            row["hours"],
            *(
                with_interval(
                    [row["measures"][m], *row.get("intervals", {}).get(m, (None, None))], MEASURES[m][1]
                )
                for m in shown
            ),
        ]
        for row in transfer
    ]
    head = ["Trained at", "Tested at", "Hours", *(MEASURES[m][0] for m in shown)]
    return (
        f"{text} The same recipe, fitted on all patients of one hospital, calibrated and thresholded on their "
        f"out-of-fold scores, and tested on all patients of the other:\n\n{markdown(head, rows)}\n\n"
        f"{elsewhere(transfer)}"
    ).rstrip()
