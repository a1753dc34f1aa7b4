"""The simulated hospital: same seed same bytes, known truth, and bodies that behave as documented."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from features import events as canonical
from features.clean import clean
from features.labels.synthetic import sepsis_hours
from features.sources import physiology
from features.sources.synthetic import (
    DAY_EFFECT_SD,
    SPECIALTIES,
    Hospital,
    _specialty,
    arrival_rate,
    encounters_at,
    simulate,
)
from features.sources.visits import VISIT_COLUMNS

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def fortnight() -> Hospital:
    return simulate(14, 3, MONDAY)


@pytest.fixture(scope="module")
def intensive() -> tuple[Hospital, pd.DataFrame]:
    """Sixty days of intensive care, cleaned, with hours since admission and since onset."""
    hospital = simulate(60, 5, MONDAY, observe=("icu",))
    rows, account = clean(hospital.events)
    assert set(account.reasons) <= {"impossible_value"}
    truth = hospital.truth.set_index("encounter_id")
    admitted = hospital.encounters.set_index("encounter_id")["icu_admission_time"]
    hour = (rows["time"] - rows["encounter_id"].map(admitted)).dt.total_seconds() / 3600
    after = (rows["time"] - rows["encounter_id"].map(truth["onset_time"])).dt.total_seconds() / 3600
    return hospital, rows.assign(hour=hour, after_onset=after)


def test_same_seed_same_bytes_and_another_seed_another_hospital(fortnight: Hospital):
    again, other = simulate(14, 3, MONDAY), simulate(14, 4, MONDAY)
    for table in ("encounters", "events", "visits", "truth"):
        pd.testing.assert_frame_equal(getattr(fortnight, table), getattr(again, table))
    assert not fortnight.visits.equals(other.visits)


def test_leaving_observations_out_changes_no_visit(fortnight: Hospital):
    unobserved = simulate(14, 3, MONDAY, observe=())
    pd.testing.assert_frame_equal(unobserved.visits, fortnight.visits)
    assert len(unobserved.events) == 0


def test_two_weeks_are_simulated_in_seconds():
    began = time.process_time()
    simulate(14, 1, MONDAY)
    assert time.process_time() - began < 5


def test_tables_are_canonical_and_nothing_lies_after_the_end(fortnight: Hospital):
    end = pd.Timestamp(MONDAY) + pd.Timedelta(days=14)
    canonical.validate(fortnight.events)
    assert list(fortnight.encounters.columns) == list(canonical.ENCOUNTER_COLUMNS)
    assert list(fortnight.visits.columns) == list(VISIT_COLUMNS)
    assert fortnight.events["available_time"].max() < end
    assert fortnight.events["available_time"].is_monotonic_increasing
    assert (fortnight.events["available_time"] >= fortnight.events["time"]).all()
    for column in ("arrival_time", "decision_time", "admission_time", "discharge_time"):
        assert not (fortnight.visits[column] >= end).any()


def test_every_code_and_unit_is_understood_and_a_few_values_are_artefacts(fortnight: Hospital):
    rows, account = clean(fortnight.events)
    assert set(account.reasons) == {"impossible_value"}
    assert 0 < account.reasons["impossible_value"] < 0.005 * len(rows)
    assert account.converted > 1000


def test_one_unit_reports_fahrenheit_and_molar_units(fortnight: Hospital):
    unit_of = fortnight.encounters.set_index("encounter_id")["unit"]
    ward = fortnight.events["encounter_id"].map(unit_of)
    stay = fortnight.events["encounter_id"].str.startswith("C")
    told = (
        fortnight.events[stay].groupby([ward[stay], "code"])["unit"].agg(lambda u: "/".join(sorted(set(u))))
    )
    assert told["ICU-A", "LOINC//8310-5"] == "Cel"
    assert told["ICU-B", "LOINC//8310-5"] == "[degF]"
    assert told["ICU-B", "LOINC//2160-0"] == "umol/L"


def test_laboratory_results_come_later_than_vital_signs(fortnight: Hospital):
    delay = (fortnight.events["available_time"] - fortnight.events["time"]).dt.total_seconds() / 60
    by_code = delay.groupby(fortnight.events["code"]).agg(["min", "max"])
    assert by_code.loc["LOINC//8867-4"].tolist() == [0, 0]
    assert by_code.loc["LOINC//6690-2", "min"] >= 30
    corrected = fortnight.events[fortnight.events["status"] == "corrected"]
    assert len(corrected) > 0
    assert (
        corrected["source_id"]
        .isin(fortnight.events.loc[fortnight.events["status"] == "final", "source_id"])
        .all()
    )


def test_arrivals_follow_the_known_rate_and_days_share_an_effect():
    hospital = simulate(250, 8, MONDAY, observe=())
    days = pd.date_range(MONDAY, periods=250, freq="1D")
    came = hospital.visits[hospital.visits["arrival_mode"].isin(["ambulance", "walk-in"])]["arrival_time"]
    hours = pd.Series(pd.date_range(MONDAY, periods=250 * 24, freq="1h"))
    expected = arrival_rate(hours, 120, "UTC")
    seen = np.histogram(came.astype("int64"), hours.dt.as_unit("us").astype("int64").to_numpy()[::24])[0]
    daily = expected.reshape(250, 24).sum(axis=1)[:-1]
    assert seen.sum() == pytest.approx(daily.sum(), rel=0.02)
    by_hour = came[came >= days[0]].dt.hour.value_counts().sort_index().to_numpy()
    profile = expected.reshape(250, 24).sum(axis=0)
    assert np.abs((by_hour - profile) / np.sqrt(profile)).max() < 4
    spread = float(np.var(seen / daily) - (1 / daily).mean())
    assert np.sqrt(spread) == pytest.approx(DAY_EFFECT_SD, rel=0.25)


def test_true_probability_of_admission_is_calibrated():
    hospital = simulate(80, 8, MONDAY, observe=())
    came = hospital.visits.loc[hospital.visits["arrival_mode"].isin(["ambulance", "walk-in"]), "encounter_id"]
    truth = hospital.truth[hospital.truth["encounter_id"].isin(came)]
    group = pd.qcut(truth["p_admission"], 10, labels=False)
    said = truth.groupby(group)["p_admission"].mean()
    np.testing.assert_allclose(truth.groupby(group)["admitted"].mean(), said, atol=0.035)


def test_specialties_come_with_the_chances_that_are_written_down():
    n = 60_000
    for age, chances in (
        (80.0, (0.28, 0.36, 0.14, 0.10, 0.12, 0.0)),
        (8.0, (0.0, 0.0, 0.0, 0.08, 0.10, 0.82)),
    ):
        drawn = _specialty(np.full(n, age), np.zeros(n), np.random.default_rng(3))
        came = np.array([(drawn == name).sum() for name in SPECIALTIES])
        due = n * np.array(chances)
        assert (came[due == 0] == 0).all()
        z = (came - due)[due > 0] / np.sqrt(due * (1 - due / n))[due > 0]
        assert np.abs(z).max() < 3.5, f"at {age:.0f} years"


def test_intensive_care_never_holds_more_than_its_beds(fortnight: Hospital):
    stays = fortnight.encounters[fortnight.encounters["encounter_class"] == "icu"].merge(
        fortnight.truth[["encounter_id", "end_time"]], on="encounter_id"
    )
    moments = pd.concat(
        [pd.Series(1, index=stays["icu_admission_time"]), pd.Series(-1, index=stays["end_time"])]
    )
    census = moments.sort_index(kind="stable").groupby(level=0).sum().cumsum()
    assert census.max() <= 16
    assert (stays["age_years"] < 18).any(), "a few minors, out of the sepsis model's scope"


def test_sepsis_unfolds_as_documented(intensive: tuple[Hospital, pd.DataFrame]):
    _, rows = intensive

    def mean(concept: str, low: float, high: float) -> float:
        some = rows[
            (rows["concept"] == concept) & (rows["after_onset"] >= low) & (rows["after_onset"] < high)
        ]
        return float(some["numeric_value"].mean())

    before, at_onset, treated = (-48, -16), (-1, 4), (40, 100)
    assert mean("heart_rate", *at_onset) > mean("heart_rate", *before) + 10
    assert mean("temperature", *at_onset) > mean("temperature", *before) + 0.5
    assert mean("respiratory_rate", *at_onset) > mean("respiratory_rate", *before) + 3
    assert mean("map", *at_onset) < mean("map", *before) - 5
    assert mean("lactate", *at_onset) > 1.3 * mean("lactate", *before)
    assert mean("heart_rate", *treated) < mean("heart_rate", *at_onset) - 5
    # The early signs come first: six hours before onset the pulse is up while the pressure still holds.
    assert mean("heart_rate", -6, -3) > mean("heart_rate", *before) + 5
    assert mean("map", -6, -3) > mean("map", *before) - 4


def test_more_is_measured_as_suspicion_rises(intensive: tuple[Hospital, pd.DataFrame]):
    _, rows = intensive
    lactate = rows[rows["concept"] == "lactate"]
    near = lactate["after_onset"].between(-3, 3).sum() / 6
    far = lactate["after_onset"].between(-30, -12).sum() / 18
    assert near > 2 * far


def test_levels_resemble_the_public_summary_of_physionet_2019(intensive: tuple[Hospital, pd.DataFrame]):
    """Means (sd) over all rows of the public sets, from their own summary statistics; see physiology.csv."""
    _, rows = intensive
    published = {
        "heart_rate": (84.6, 17.3), "spo2": (97.2, 2.9), "temperature": (37.0, 0.77), "sbp": (123.7, 23.2),
        "map": (82.4, 16.3), "respiratory_rate": (18.7, 5.1), "wbc": (11.5, 7.9), "lactate": (2.65, 2.5),
        "hemoglobin": (10.4, 2.0), "potassium": (4.1, 0.63), "ph": (7.38, 0.07), "glucose": (136.9, 51.3),
    }  # fmt: skip
    for concept, (mean, sd) in published.items():
        values = rows.loc[rows["concept"] == concept, "numeric_value"]
        assert values.mean() == pytest.approx(mean, abs=0.3 * sd), concept
        assert 0.4 * sd < values.std() < 1.35 * sd, concept


def test_not_everything_abnormal_is_sepsis(intensive: tuple[Hospital, pd.DataFrame]):
    hospital, rows = intensive
    never = hospital.truth.loc[hospital.truth["onset_time"].isna(), "encounter_id"]
    fever = rows[(rows["concept"] == "temperature") & (rows["numeric_value"] > 38.3)]
    feverish = fever["encounter_id"].drop_duplicates()
    assert feverish.isin(never).mean() > 0.4


def test_labels_are_positive_from_six_hours_before_onset():
    hospital = simulate(20, 5, MONDAY)
    labels = sepsis_hours(hospital).merge(hospital.truth[["encounter_id", "onset_time"]], on="encounter_id")
    lead = labels["onset_time"] - labels["prediction_time"]
    assert ((labels["label"] == 1) == (lead <= pd.Timedelta(hours=6))).all()
    assert lead.min() >= pd.Timedelta(hours=-3)
    assert labels.loc[labels["label"] == 1, "encounter_id"].nunique() >= 5


def test_encounters_at_tell_only_what_was_known(fortnight: Hospital):
    now = MONDAY + timedelta(days=3, hours=7)
    known = encounters_at(fortnight, now)
    for column in ("arrival_time", "decision_time", "admission_time", "discharge_time", "icu_admission_time"):
        assert not (known[column] > now).any()
    waiting = known["decision_time"].isna() & known["arrival_mode"].isin(["ambulance", "walk-in"])
    assert (known.loc[waiting, "specialty"] == "").all()
    assert (known.loc[waiting, "encounter_class"] == "ed").all()


def test_an_hour_is_a_local_hour():
    """In New York the quiet hour of five in the morning is ten in UTC (nine in summer)."""
    hospital = simulate(60, 2, MONDAY, timezone="America/New_York", observe=())
    came = hospital.visits.loc[hospital.visits["arrival_mode"] == "walk-in", "arrival_time"]
    assert came.dt.hour.value_counts().idxmin() in (8, 9, 10)


def test_a_start_without_a_time_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        simulate(1, 1, datetime(2026, 1, 5))  # noqa: DTZ001


def test_the_table_of_quantities_is_whole():
    for quantity in physiology.quantities().values():
        assert quantity.low < quantity.median < quantity.high, quantity.concept
        assert quantity.scale in ("linear", "log")
        assert 0 <= quantity.persistence < 1
        assert quantity.code.startswith("LOINC//")
        assert (quantity.other_factor, quantity.other_offset) == (1, 0) or quantity.other_unit
