"""Training, from file to bundle: honest folds, a card that says what was measured, the same twice."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from features.errors import DataError, SpecError
from models import metrics
from models.bundle import Bundle
from models.calibration import cross_fitted
from models.spec import Spec
from training import ablation, members, policies, rivals, sepsis
from training.cohort import read_cohort
from training.splits import patient_folds


@pytest.fixture(scope="module")
def cohort(icu_file, small_spec):
    return read_cohort("physionet2019", icu_file, Spec.load(small_spec), threads=1)


@pytest.fixture(scope="module")
def fold(cohort):
    return patient_folds(*cohort.per_patient(), 3, np.random.default_rng(5))[cohort.patient]


def test_a_bundle_is_whole_and_small(small_bundle, icu_hours):
    assert set(small_bundle.parts) >= {
        "calibrator",
        "data",
        "decision",
        "evaluation",
        "features",
        "reference",
    }
    assert small_bundle.parts["data"]["rows"] == len(icu_hours)
    assert sum(f.stat().st_size for f in small_bundle.folder.rglob("*") if f.is_file()) < 5_000_000
    assert not [f for f in small_bundle.folder.rglob("*") if f.suffix in (".pkl", ".pickle", ".joblib")]


def test_nothing_of_a_patient_is_in_the_bundle(small_bundle):
    text = "".join(f.read_text() for f in small_bundle.folder.rglob("*") if f.is_file())
    assert "p000000" not in text
    assert "p100001" not in text


def test_minors_are_neither_trained_on_nor_scored(cohort):
    assert set(cohort.status) >= {"scored", "out_of_scope"}
    assert (cohort.status == "out_of_scope").sum() == cohort.data["statuses"]["out_of_scope"]


def test_a_fold_is_scored_by_a_booster_that_never_saw_it(cohort, fold, small_spec):
    """Turning the labels of one fold around changes nothing of that fold's own scores."""
    from dataclasses import replace

    spec = Spec.load(small_spec)
    other = replace(cohort, label=np.where(fold == 1, 1 - cohort.label, cohort.label))
    mine = fold == 1
    # Outcomes decide which hours are thinned; keep every row here so that only the labels differ.
    spec.section("training")["keep"] = 1.0
    one, two = (sepsis.out_of_fold(c, fold, spec, threads=1) for c in (cohort, other))
    assert np.array_equal(one[mine], two[mine], equal_nan=True)
    assert not np.array_equal(one[~mine], two[~mine], equal_nan=True)


def test_two_targets_in_one_loss_are_the_sum_of_two_losses(cohort):
    """Weighted cross-entropy of the blend equals share-weighted cross-entropies of label and alarm, for any score."""
    rows = np.flatnonzero(cohort.scored)[:500]
    target, weight = sepsis.blended(cohort, rows, share=0.3)
    gain = metrics.utility_gain(cohort.patient, cohort.hour, cohort.label)[rows]
    stake = np.abs(gain) / np.abs(gain).mean()
    p = np.random.default_rng(1).uniform(0.01, 0.99, len(rows))

    def loss(y: np.ndarray, w: np.ndarray) -> float:
        return float(-(w * (y * np.log(p) + (1 - y) * np.log(1 - p))).sum())

    assert loss(target, weight) == pytest.approx(
        0.7 * loss(cohort.label[rows], 1 + 0 * p) + 0.3 * loss(gain > 0, stake)
    )
    label_alone, equal = sepsis.blended(cohort, rows, share=0.0)
    assert label_alone.tolist() == cohort.label[rows].tolist()
    assert (equal == 1).all()
    alarm_alone, stakes = sepsis.blended(cohort, rows, share=1.0)
    assert alarm_alone.tolist() == ((gain > 0) & (gain != 0)).astype(float).tolist()
    assert stakes == pytest.approx(stake)


def test_several_boosters_are_one_model(cohort, fold, small_spec, tmp_path):
    """Their mean is the raw score, the mean of their reasons sums to it, and the evaluation says what each reaches."""
    text = small_spec.read_text().replace(
        "[alerts]",
        '[[training.member]]\nname = "label"\nutility_share = 0.0\n'
        '[[training.member]]\nname = "blind"\nrounds = 5\nleave_out = ["process", "clock"]\n[alerts]\n'
        "utility_until_h = 48",
    )
    spec = Spec.parse(text)
    boosters = sepsis.fit(cohort, cohort.scored, spec, threads=1)
    assert {name: b.num_trees() for name, b in boosters.items()} == {"risk.label": 15, "risk.blind": 5}
    used = dict(zip(spec.features.names, boosters["risk.blind"].feature_importance(), strict=True))
    assert {n for n, times in used.items() if times} <= {
        n for n in spec.features.names if members.kind_of(n, spec) not in ("process", "clock")
    }
    each = sepsis.each_out_of_fold(cohort, fold, spec, 1, [*members.members(spec), *ablation.blinded(spec)])
    raw = sepsis.together({k: each[k] for k in boosters})
    seen = cohort.scored
    assert raw[seen] == pytest.approx((each["risk.label"][seen] + each["risk.blind"][seen]) / 2)
    table = ablation.ablation(cohort, each, fold, spec)
    assert [r["model"] for r in table[::2]] == [
        "all members",
        "label",
        "blind",
        "no clock",
        "no process",
        "neither",
    ]
    kept = ablation.trials(table, None)
    assert kept[-1].settings["leaves_out"] == "clock, process"
    assert set(kept[0].figures) == {"utility.all", "auroc.all", "utility.first48", "auroc.first48"}


def test_a_score_does_not_go_against_what_medicine_is_sure_of(cohort, small_spec):
    """A value that is said to raise it never lowers it, whatever else the hour shows; unconstrained, this one does."""
    sure = Spec.parse(
        small_spec.read_text().replace(
            "simulated_days", 'monotone = { rising = ["sbp"], falling = ["lactate"] }\nsimulated_days'
        )
    )
    names = sure.features.names
    assert {n: w for n, w in zip(names, members.directions(sure), strict=True) if w} == {
        "lactate__last": -1,
        "lactate__mean_6h": -1,
        "sbp__last": 1,
        "sbp__mean_6h": 1,
    }
    probe = np.repeat(cohort.matrix[cohort.scored][:200, None], 40, axis=1)
    probe[:, :, names.index("sbp__last")] = np.linspace(60, 200, 40)

    def steps(spec: Spec) -> np.ndarray:
        (booster,) = sepsis.fit(cohort, cohort.scored, spec, threads=1).values()
        raw = booster.predict(probe.reshape(-1, len(names)), raw_score=True)
        return np.diff(np.reshape(raw, (200, 40)), axis=1)

    assert (steps(sure) >= -1e-12).all()
    assert (steps(Spec.load(small_spec)) < -1e-6).any()
    odd = sure.text.replace('falling = ["lactate"]', 'falling = ["lactat"]')
    with pytest.raises(SpecError, match="monotone names lactat"):
        members.directions(Spec.parse(odd))


def test_long_stays_do_not_count_for_more(cohort, small_spec):
    """With a power of 1 every stay without sepsis weighs the same, with 0.5 as the root of its length, with 0 as it."""
    _, septic, hours = cohort.per_patient()
    for power in (0.0, 0.5, 1.0):
        text = small_spec.read_text().replace("simulated_days", f"stay_power = {power}\nsimulated_days")
        (member,) = members.members(Spec.parse(text))
        of_stay = np.bincount(cohort.patient, weights=sepsis.counting(member, cohort))
        expected = hours ** (1 - power) * hours.mean() ** power
        assert of_stay[~septic] == pytest.approx(expected[~septic])
        assert of_stay[septic] == pytest.approx(hours[septic])


def test_late_hours_count_for_less_in_the_calibration(cohort, fold, small_spec):
    """Where the outcome depends on a clock that the score does not read, early hours are no longer over-predicted."""
    rng = np.random.default_rng(3)
    raw = rng.normal(-2, 1, len(cohort.label))
    hour = rng.integers(1, 100, len(raw)).astype(np.float64)
    label = (rng.random(len(raw)) < metrics.expit(raw + np.where(hour >= 59, 2.0, 0.0))).astype(np.int64)
    rule = "calibrate = { late_h = 59, late_weight = 0.0 }"
    late = sepsis.calibrating(
        hour, Spec.parse(small_spec.read_text().replace("simulated_days", f"{rule}\nsimulated_days"))
    )
    every = sepsis.calibrating(hour, Spec.load(small_spec))
    early = hour < 59
    assert (every == 1).all()
    assert late.tolist() == early.astype(float).tolist()
    fitted = [cross_fitted(raw, label, fold, "logistic", w) for w in (every, late)]
    ratios = [label[early].sum() / p[early].sum() for p in fitted]
    assert ratios[0] < 0.8
    assert ratios[1] == pytest.approx(1, abs=0.05)


def test_time_is_told_by_a_clock_and_not_by_noise(cohort, fold, small_spec):
    from dataclasses import replace

    spec = Spec.load(small_spec)
    hours = np.where(cohort.patient % 3 == 0, cohort.hour + 45, cohort.hour)
    late = replace(cohort, hour=hours)
    noise = np.random.default_rng(1).normal(size=cohort.matrix.shape).astype(np.float32)
    told = ablation.time_told(
        replace(late, matrix=np.column_stack([noise, hours]).astype(np.float32)), fold, spec, 1
    )
    assert told["auroc"] > 0.95
    assert told["r2"] > 0.9
    guessed = ablation.time_told(replace(late, matrix=noise), fold, spec, 1)
    assert abs(guessed["auroc"] - 0.5) < 0.1


def test_thresholds_of_a_fold_come_from_the_others(cohort, fold, small_spec):
    """A fold's own outcomes decide neither its probabilities nor its alarms."""
    from dataclasses import replace

    spec = Spec.load(small_spec)
    raw = sepsis.out_of_fold(cohort, fold, spec, threads=1)
    some = cohort.patient % 2 == 0
    other = replace(cohort, label=np.where((fold == 1) & some, 0, cohort.label))
    one, two = (sepsis.judge(c, raw, fold, spec) for c in (cohort, other))
    mine = fold == 1
    assert np.array_equal(one.probability[mine], two.probability[mine], equal_nan=True)
    assert one.alarm[mine].tolist() == two.alarm[mine].tolist()
    assert one.page[mine].tolist() == two.page[mine].tolist()


def test_the_bundle_scores_as_what_was_fitted(small_bundle, cohort, small_spec):
    boosters = sepsis.fit(cohort, cohort.scored, Spec.load(small_spec), threads=1)
    rows = cohort.matrix[cohort.scored][:200]
    assert list(boosters) == ["risk"]
    assert np.array_equal(
        small_bundle.raw(rows), boosters["risk"].predict(rows, raw_score=True, num_threads=1)
    )
    assert np.array_equal(small_bundle.raw(rows), small_bundle.raw(rows, threads=2))


def test_training_twice_gives_the_same_bundle(small_bundle, icu_file, small_spec, quiet, tmp_path):
    again = sepsis.train(
        "physionet2019", icu_file, spec=small_spec, output=tmp_path / "b", register=False, threads=1
    )
    costs = [b.evaluation.pop("cost") for b in (again.bundle, small_bundle)]
    assert [set(c) for c in costs] == [{"minutes", "peak_gib", "threads"}] * 2
    assert again.bundle.parts == small_bundle.parts
    for name in ("boosters/risk.txt", "spec.toml"):
        assert (again.bundle.folder / name).read_bytes() == (small_bundle.folder / name).read_bytes()


def test_pages_keep_to_the_budget(cohort, fold, small_spec):
    spec = Spec.load(small_spec)
    raw = sepsis.out_of_fold(cohort, fold, spec, threads=1)
    everyone = np.ones(len(raw), dtype=bool)
    decided = sepsis.decide(cohort, raw, fold, everyone, spec)
    paged = policies.page_rows(cohort.patient, cohort.hour, decided.calibrator.apply(raw), decided.policy)
    assert 2400 * paged.sum() / cohort.scored.sum() <= 40


def test_the_evaluation_is_that_of_the_folds(small_bundle, cohort, fold, small_spec):
    judged = sepsis.judge(
        cohort,
        sepsis.out_of_fold(cohort, fold, Spec.load(small_spec), threads=1),
        fold,
        Spec.load(small_spec),
    )
    gain = metrics.utility_gain(judged.patient, judged.hour, judged.label)
    table = {(r["hospital"], r["hours"]): r["measures"] for r in small_bundle.evaluation["table"]}
    assert table[("all", "all")]["utility"][0] == pytest.approx(
        metrics.normalized_utility(gain, judged.alarm), abs=1e-5
    )
    assert set(table) == {(h, t) for h in ("all", "A", "B") for t in ("all", "<= 48")}
    assert 0.7 < table[("all", "all")]["auroc"][0] < 1


def test_the_card_says_what_was_measured(small_bundle):
    utility = small_bundle.evaluation["table"][0]["measures"]["utility"]
    assert f"{utility[0]:.3f} ({utility[1]:.3f}–{utility[2]:.3f})" in small_bundle.card
    assert "Reyna" in small_bundle.card
    assert "CC BY 4.0" in small_bundle.card
    assert "icu_admission__hours_since_last" in small_bundle.card


def test_shares_of_influence_add_up(small_bundle):
    influence = small_bundle.evaluation["influence"]
    assert sum(influence.values()) == pytest.approx(1, abs=1e-4)
    assert set(influence) <= {
        "clock", "process", "vital signs", "laboratory", "clinical scores", "ratios", "oxygen", "age, sex and unit",
    }  # fmt: skip


def test_the_simulated_hospital_trains_without_any_data(small_spec, quiet, tmp_path):
    result = sepsis.train(
        "synthetic", None, spec=small_spec, output=tmp_path / "b", register=False, threads=1
    )
    assert "says anything about real patients" in result.bundle.card
    assert "AUROC" in result.headline
    assert "peak memory" in result.summary()


def test_sources_and_inputs_that_cannot_be_are_named(small_spec, quiet):
    with pytest.raises(DataError, match="not on 'fax'"):
        sepsis.train("fax", None, spec=small_spec)
    with pytest.raises(DataError, match="Say where the data are"):
        sepsis.train("physionet2019", None, spec=small_spec)


def test_a_spec_that_says_too_little_is_refused_before_anything_is_read(small_spec, quiet, tmp_path):
    (tmp_path / "spec.toml").write_text(small_spec.read_text().replace("keep = 0.5\n", ""))
    with pytest.raises(SpecError, match=r"lacks training\.keep"):
        sepsis.train("physionet2019", None, spec=tmp_path / "spec.toml")


def test_the_released_bundle_is_what_its_spec_and_card_say(repo: Path):
    released = Bundle.load(repo / "models" / "sepsis" / "released")
    assert sum(f.stat().st_size for f in released.folder.rglob("*") if f.is_file()) <= 5_000_000
    assert released.parts["data"]["source"] == "physionet2019"
    assert released.card == (repo / "models" / "sepsis" / "card.md").read_text()
    utility = released.evaluation["table"][0]["measures"]["utility"][0]
    assert 0.36 < utility < 0.42, "much less is a fault, much more a clock or a leak"
    assert json.loads((released.folder / "bundle.json").read_text())["version"] == released.version


@pytest.mark.parametrize("folder", ["released", "challenge/released"])
def test_a_released_explanation_is_cheap_and_sums_to_the_score(repo: Path, folder: str):
    """Ten milliseconds of CPU for a score with its reasons; the price is trees x leaves."""
    bundle = Bundle.load(repo / "models" / "sepsis" / folder)
    row = np.full((1, len(bundle.feature_names)), np.nan, dtype=np.float32)
    row[0, ::2] = 50
    reasons = bundle.contributions(row)
    assert reasons.sum() == pytest.approx(bundle.raw(row)[0], abs=1e-6)
    leaves = bundle.spec.section("training")["boost"]["num_leaves"]
    assert sum(m.num_trees() for m in bundle.members()) * leaves <= 22_000
    took = []
    for _ in range(20):
        began = time.process_time()
        bundle.raw(row)
        bundle.contributions(row)
        took.append(time.process_time() - began)
    assert min(took) < 0.010


def test_what_is_for_comparison_only_is_not_served(repo: Path):
    released = repo / "models" / "sepsis"
    with pytest.raises(SpecError, match=r"served = false.*models/sepsis/released"):
        Bundle.load_served(released / "challenge" / "released")
    assert Bundle.load_served(released / "released").spec.served


def test_an_output_that_is_taken_is_refused(icu_file, small_spec, quiet, tmp_path):
    (tmp_path / "taken.txt").write_text("mine")
    with pytest.raises(SpecError, match="not empty"):
        sepsis.train("physionet2019", icu_file, spec=small_spec, output=tmp_path, register=False)


def test_another_hospital_is_met_knowing_nothing_of_its_outcomes(cohort, fold, small_spec):
    """Turning its labels around changes no score, map, threshold or rival; the source is scored out of fold."""
    from dataclasses import replace

    spec = Spec.load(small_spec)
    here = np.asarray(cohort.site == "B")
    other = replace(cohort, label=np.where(here, 1 - cohort.label, cohort.label))
    told, turned = (sepsis._from_elsewhere(c, here, fold, spec, 1) for c in (cohort, other))
    assert np.array_equal(told[0], turned[0], equal_nan=True)
    assert told[1].calibrator == turned[1].calibrator
    assert (told[1].utility, told[1].policy) == (turned[1].utility, turned[1].policy)
    for name, score in told[2].items():
        assert np.array_equal(score, turned[2][name], equal_nan=True), name
    assert np.array_equal(np.isnan(told[0]), ~cohort.scored)
    one = ~here & (fold == 1)
    again = sepsis.out_of_fold(
        replace(cohort, label=np.where(one, 0, cohort.label)), fold, spec, 1, among=~here
    )
    assert np.array_equal(told[0][one], again[one], equal_nan=True)


def test_rivals_never_see_the_patients_that_they_are_judged_on(cohort, fold, small_spec):
    """A learned clock knows the hour alone; a logistic regression is scikit-learn's, and another fold's labels are
    all that moves either."""
    from dataclasses import replace

    spec = Spec.load(small_spec)
    told = rivals.out_of_fold(cohort, fold, spec, threads=1)
    assert set(told) == {"learned_clock", "logistic"}
    other = replace(cohort, label=np.where(fold == 1, 0, cohort.label))
    # The outcome of a stay decides how its hours are drawn, not whether: everyone is drawn here.
    turned = rivals.out_of_fold(other, fold, spec, threads=1)
    mine = (fold == 1) & cohort.scored
    for name, score in told.items():
        assert np.array_equal(score[mine], turned[name][mine]), name
        assert not np.array_equal(score[~mine], turned[name][~mine], equal_nan=True), name
        assert np.isnan(score[~cohort.scored]).all()
        assert ((score[cohort.scored] > 0) & (score[cohort.scored] < 1)).all()
    by_hour = {h: set(told["learned_clock"][mine & (cohort.hour == h)].tolist()) for h in (2.0, 20.0)}
    assert [len(s) for s in by_hour.values()] == [1, 1]
    auroc = {k: metrics.auroc(cohort.label[mine], v[mine]) for k, v in told.items()}
    assert auroc["logistic"] > 0.8 > auroc["learned_clock"]


def test_a_rival_stands_on_the_rows_of_the_model(small_bundle):
    """At home and at the other hospital, with the stays that it would page to find 80 %."""
    for row in (
        *small_bundle.evaluation["rivals"],
        *(t["rivals"] for t in small_bundle.evaluation["transfer"]),
    ):
        assert {"clock", "sirs", "learned_clock", "logistic"} <= set(row)
        assert 0 < row["logistic"]["stay_ppv_80"] <= 1
    assert "logistic regression" in small_bundle.card
    assert set(small_bundle.parts["decision"]["rivals"]) == {"clock", "sirs"}, (
        "a bundle holds no rival's model"
    )


def test_other_seeds_are_compared_on_one_fold(small_bundle):
    told = small_bundle.evaluation["refits"]
    assert told["refits"] == 3
    utility = next(f for f in told["figures"] if (f["measure"], f["hours"]) == ("utility", "all"))
    assert len(utility["each"]) == 4
    assert utility["sd"] == pytest.approx(np.std(utility["each"], ddof=1), rel=1e-4)
    assert told["rows_sd"] > 0
    assert 0.2 < told["reasons"]["overlap"] < 1
    assert "refitted with 3 other seeds" in small_bundle.card
