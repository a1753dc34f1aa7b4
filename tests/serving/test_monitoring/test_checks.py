"""Faults of inputs: each found, named and placed; clean data, however little, never accused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from serving.monitoring.checks import check_inputs, summarise
from serving.monitoring.findings import Batch, Finding
from serving.monitoring.inputs import MixUp, mix_ups_from_table, unit_mix_up


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, [f.what for f in findings]
    return findings[0]


def test_a_clean_week_raises_no_alarm(ward, check, loud):
    alarms = [f.what for seed in range(1, 9) for f in loud(check(ward(100, 20, seed)))]
    assert alarms == []


def test_two_thousand_clean_rows_raise_no_alarm(ward, check, loud):
    alarms = [f.what for seed in range(1, 9) for f in loud(check(ward(2000, 1, seed)))]
    assert alarms == []


def test_fifty_clean_rows_raise_no_alarm(ward, check, loud):
    alarms = [f.what for seed in range(1, 17) for f in loud(check(ward(50, 1, seed)))]
    assert alarms == []


def test_fifty_rows_of_three_patients_are_too_few_to_judge(ward, check):
    checked = check(ward(3, 17))
    assert checked.findings == []
    assert checked.table["psi"].isna().all()


def test_one_row_is_survived(ward, check):
    assert check(ward(1, 1)).findings == []


def test_no_rows_is_itself_a_finding(ward, check):
    nobody = ward(1, 1)
    finding = only(check(nobody.take(np.arange(0))).findings)
    assert (finding.kind, finding.severity) == ("no_predictions", "alarm")


def test_a_silent_feed_is_named_and_dated(ward, check, loud):
    w = ward()
    silent = (w.time >= pd.Timestamp("2026-01-09T12:00Z")).to_numpy()
    w.frame.loc[silent, w.level("lactate")] = np.nan
    finding = only(loud(check(w)))
    assert (finding.kind, finding.severity, finding.where) == ("feed_silent", "alarm", "all units")
    assert finding.what.startswith("Lactate: no value any more.")
    assert abs(finding.since - pd.Timestamp("2026-01-09T12:00Z")) <= pd.Timedelta(hours=2)
    assert "interface" in finding.action


def test_a_feed_that_never_spoke_is_silent_from_the_start(ward, check, loud):
    w = ward()
    w.frame[w.level("lactate")] = np.nan
    finding = only(loud(check(w)))
    assert finding.kind == "feed_silent"
    assert finding.since == w.time.min()


def test_what_is_rarely_measured_may_be_absent_in_a_few(ward, check, loud):
    w = ward(4, 12)
    w.frame[w.level("lactate")] = np.nan
    assert loud(check(w)) == []


def test_a_feed_silent_in_one_unit_is_found_there(ward, check, loud):
    w = ward(240)
    silent = ((w.unit == "East") & (w.time >= pd.Timestamp("2026-01-09T12:00Z"))).to_numpy()
    w.frame.loc[silent, [c for c in w.frame if c.startswith("heart_rate__")]] = np.nan
    finding = loud(check(w))[0]
    assert finding.features[0].startswith("heart_rate__")
    assert finding.where == "unit East"
    assert abs(finding.since - pd.Timestamp("2026-01-09T12:00Z")) <= pd.Timedelta(hours=2)


def test_a_ratio_does_not_repeat_what_its_concept_said(ward, reference):
    w = ward()
    w.frame[w.level("lactate")] = np.nan
    silent = Batch.of(w.frame, stay=w.stay, time=w.time, unit=w.unit)
    alone = check_inputs(silent, reference)
    with_ratio = check_inputs(silent, reference, derived={"lactate__mean_6h": ("lactate", "map")})
    assert [f.features for f in alone.findings] == [("lactate__last", "lactate__mean_6h")]
    assert [f.features for f in with_ratio.findings] == [("lactate__last",)]


def test_sixty_per_cent_missing_is_an_alarm_though_what_is_left_has_not_drifted(ward, check, loud):
    w = ward()
    w.frame.loc[np.random.default_rng(0).random(len(w.frame)) < 0.6, ["heart_rate__last"]] = np.nan
    finding = only(loud(check(w)))
    assert (finding.kind, finding.severity) == ("missing_more", "alarm")
    assert finding.features == ("heart_rate__last",)


def test_a_column_that_is_gone_is_named(ward, check, loud):
    w = ward()
    w.frame = w.frame.drop(columns="map__last").assign(shoe_size=42.0)
    checked = check(w)
    assert only(loud(checked)).features == ("map__last",)
    assert [f.features for f in checked.findings if f.kind == "columns_unknown"] == [("shoe_size",)]


def test_numbers_as_text_are_read_and_reported(ward, check, loud):
    w = ward()
    text = w.frame["map__last"].map(lambda v: None if np.isnan(v) else f"{v:.2f}").astype(object)
    text.iloc[3] = "<5"
    w.frame["map__last"] = text
    finding = only(loud(check(w)))
    assert finding.kind == "column_text"
    assert "1 of 2,400 values could not be read" in finding.what
    assert "<5" not in finding.what


def test_a_column_without_any_value_need_not_be_a_number(ward, check, loud):
    w = ward()
    w.frame["lactate__last"] = pd.Series([None] * len(w.frame), dtype=object)
    assert only(loud(check(w))).kind == "feed_silent"


def test_infinities_and_numbers_too_large_are_counted_as_missing(ward, check, loud):
    w = ward()
    w.frame["map__last"] = w.frame["map__last"].astype(np.float64)
    w.frame.loc[:2, "map__last"] = [np.inf, -np.inf, 1e300]
    finding = only(loud(check(w)))
    assert finding.what.startswith("3 infinite values in map__last")


def test_a_column_named_twice_does_not_crash(ward, check):
    w = ward()
    w.frame = pd.concat([w.frame, w.frame[["map__last"]]], axis=1)
    assert [f.kind for f in check(w).findings] == ["columns_twice"]


@pytest.mark.parametrize(
    ("concept", "factor", "offset", "label"),
    [
        ("lactate", 9.008, 0, "mg/dL taken for mmol/L"),
        ("creatinine", 88.4, 0, "umol/L taken for mg/dL"),
        ("calcium", 1 / 4.0078, 0, "mmol/L taken for mg/dL"),
        ("map", 1 / 7.5006, 0, "kPa taken for mm[Hg]"),
        ("temperature", 1.8, 32, "degF"),
        ("heart_rate", 10, 0, "×10"),
    ],
)
def test_a_wrong_unit_is_recognised(ward, check, loud, concept, factor, offset, label):
    w = ward()
    w.frame[w.level(concept)] = w.frame[w.level(concept)] * factor + offset
    finding = only(loud(check(w)))
    assert (finding.kind, finding.severity) == ("unit_wrong", "alarm")
    assert label in finding.what


def test_a_wrong_unit_in_one_ward_is_found_in_that_ward(ward, check, loud):
    w = ward(240)
    w.frame.loc[(w.unit == "South").to_numpy(), w.level("lactate")] *= 9.008
    finding = only(loud(check(w)))
    assert finding.kind == "unit_mixed"
    assert "mg/dL taken for mmol/L" in finding.what
    assert finding.where == "unit South"


def test_one_row_in_twenty_in_another_unit_is_found(ward, check, loud):
    w = ward(240)
    w.frame.loc[np.random.default_rng(0).random(len(w.frame)) < 0.05, w.level("creatinine")] *= 88.4
    assert only(loud(check(w))).kind == "unit_mixed"


def test_an_unknown_factor_is_still_a_change_of_scale(ward, check, loud):
    w = ward()
    w.frame[w.level("map")] *= 3
    assert only(loud(check(w))).kind == "scale"


def test_sicker_patients_are_drift_and_not_a_wrong_unit(ward, check, loud):
    w = ward()
    w.frame[w.level("heart_rate")] += 20
    finding = only(loud(check(w)))
    assert (finding.kind, finding.severity) == ("drift", "watch")
    assert "runs higher" in finding.what
    assert finding.where == "all units"


def test_a_fault_of_the_last_day_does_not_drown_in_the_week(ward, check, loud):
    w = ward(300)
    today = (w.time > w.time.max() - pd.Timedelta(hours=24)).to_numpy()
    w.frame.loc[today, w.level("heart_rate")] += 25
    finding = only(loud(check(w)))
    assert finding.what.startswith("In the last 24 hours: Heart rate")


def test_row_order_changes_nothing(ward, check):
    w = ward()
    w.frame[w.level("lactate")] *= 9.008
    shuffled = w.take(np.random.default_rng(0).permutation(len(w.frame)))
    assert [f.what for f in check(shuffled).findings] == [f.what for f in check(w).findings]


def test_findings_survive_json(ward, check):
    w = ward()
    w.frame[w.level("lactate")] *= 9.008
    finding = check(w).findings[0]
    assert Finding.from_dict(finding.to_dict()) == finding


def test_many_drifts_are_said_once():
    drifts = [
        Finding("drift", "watch", f"{k}", "all units", "sure", "look", features=(f"c{k}__last",))
        for k in range(20)
    ]
    said = summarise(drifts, 25)
    assert [f.kind for f in said].count("drift") == 8
    assert said[0].what.startswith("20 of 25 concepts differ from the training data: c0, c1")
    assert summarise(drifts[:8], 25) == drifts[:8]


def test_a_unit_is_not_guessed_when_the_reference_explains_the_values():
    expected = np.array([1.0, 1.4, 1.8, 2.4, 3.2])
    values = np.random.default_rng(0).lognormal(np.log(1.8), 0.45, 500).astype(np.float32)
    lactate = mix_ups_from_table({"lactate": [("mg/dL", "mmol/L", 0.111, 0.0), ("mM", "mmol/L", 1.0, 0.0)]})[
        "lactate"
    ]
    assert [m.factor for m in lactate] == pytest.approx([9.009, 0.111], rel=1e-3)
    assert unit_mix_up(values, expected, lactate) is None
    assert unit_mix_up(values * 9, expected, lactate) == lactate[0]
    assert unit_mix_up(-values, expected, lactate) is None
    assert unit_mix_up(values, expected, [MixUp("below nought", 1.0, -10.0)]) is None


def test_a_batch_is_put_in_order_of_time():
    times = pd.Series(pd.to_datetime(["2026-01-05T02:00Z", "2026-01-05T01:00Z"]))
    batch = Batch.of(pd.DataFrame({"a": [2.0, 1.0]}), stay=["x", "y"], time=times)
    assert batch.features["a"].tolist() == [1.0, 2.0]
    assert batch.stay.tolist() == [1, 0]
