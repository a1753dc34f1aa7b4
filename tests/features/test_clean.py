"""Cleaning: every event is used or set aside with a reason, and one is treated like ten million."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.clean import (
    CONTRADICTION,
    REASONS,
    REMEDIES,
    clean,
    clean_numbers,
    clean_one,
    contradictions,
    fill_available_time,
)
from features.clock import UTC_US
from features.concepts import loader
from features.errors import DataError

Tell = Callable[[list[dict[str, Any]]], pd.DataFrame]


def one(tell: Tell, **row: Any) -> tuple[str, float, str] | str:
    """(concept, value, unit) of one event, or the reason why it was set aside."""
    usable, account = clean(tell([{"time": 0, "concept": None, **row}]))
    if len(usable) == 0:
        return str(account.set_aside["reason"][0])
    return usable["concept"][0], usable["numeric_value"][0], usable["unit"][0]


def test_a_loinc_code_in_fahrenheit_becomes_celsius(tell: Tell) -> None:
    found = one(tell, code="LOINC//8310-5", value=98.6, unit="[degF]")
    assert found == ("temperature", pytest.approx(37.0), "Cel")


def test_an_empty_unit_means_the_unit_of_the_code(tell: Tell) -> None:
    assert one(tell, code="LOINC//14682-9", value=88.4) == (
        "creatinine",
        pytest.approx(1.0, rel=1e-4),
        "mg/dL",
    )
    assert one(tell, code="LOINC//14682-9", value=88.4, unit="") == (
        "creatinine",
        pytest.approx(1.0, rel=1e-4),
        "mg/dL",
    )


def test_lactate_of_physionet_is_in_mmol(tell: Tell) -> None:
    # Its documentation says mg/dL; a median near 2 and values to 25 can only be mmol/L.
    assert one(tell, code="PHYSIONET2019//Lactate", value=2.1) == ("lactate", 2.1, "mmol/L")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"code": "LOCAL//17", "value": 1}, "unknown_concept"),
        ({"code": None, "value": 1}, "unknown_concept"),
        ({"code": "LOINC//8867-4", "value": 80, "unit": "mm[Hg]"}, "unit_unknown"),
        ({"code": "LOINC//8867-4"}, "not_a_number"),
        ({"code": "LOINC//8867-4", "value": "inf"}, "not_a_number"),
        ({"code": "LOINC//8867-4", "value": 301}, "impossible_value"),
        ({"code": "LOINC//8867-4", "value": -2}, "impossible_value"),
        ({"code": "LOINC//8867-4", "value": -1}, "sentinel"),
        ({"code": "LOINC//8867-4", "value": 999}, "impossible_value"),
        ({"code": "CLIF//heart_rate", "value": 999}, "sentinel"),
        ({"code": "LOINC//2823-3", "value": 9999999}, "sentinel"),
        ({"code": "PHYSIONET2012//Weight", "value": -1}, "sentinel"),
        ({"code": "MIMIC_CHART//1535", "value": 4.1}, "left_out"),
        ({"code": "MIMIC_CHART//1535", "value": 4.1, "concept": "potassium"}, "left_out"),
        ({"code": "PHYSIONET2019//FiO2", "value": 4000}, "impossible_value"),
        ({"code": "PHYSIONET2019//FiO2", "value": -50}, "impossible_value"),
        ({"code": "PHYSIONET2019//Temp", "value": 50}, "impossible_value"),
        ({"code": "PHYSIONET2019//Calcium", "value": 1.1}, "misfiled"),
        ({"code": "LOINC//17861-6", "value": 1.1, "unit": "mg/dL"}, "misfiled"),
        ({"code": "PHYSIONET2019//Calcium", "value": 0.2}, "impossible_value"),
    ],
)
def test_what_cannot_be_used_is_set_aside_with_its_reason(
    tell: Tell, row: dict[str, Any], reason: str
) -> None:
    assert one(tell, **row) == reason
    assert reason in REMEDIES


@pytest.mark.parametrize(
    ("code", "value"),
    [("LOINC//1925-7", -1), ("LOINC//777-3", 999), ("LOINC//2276-4", 9999), ("PHYSIONET2019//Calcium", 3)],
)
def test_a_number_that_may_be_meant_stays(tell: Tell, code: str, value: float) -> None:
    assert one(tell, code=code, value=value)[1] == value


def test_a_ph_without_its_point_is_read_only_where_no_unit_is_stated(tell: Tell) -> None:
    assert one(tell, code="PHYSIONET2012//pH", value=735) == ("ph", pytest.approx(7.35), "[pH]")
    assert one(tell, code="PHYSIONET2012//pH", value=735, unit="[pH]") == "impossible_value"


@pytest.mark.parametrize("value", [0, 300])
def test_the_ends_of_a_range_are_plausible(tell: Tell, value: float) -> None:
    assert one(tell, code="LOINC//8867-4", value=value) == ("heart_rate", value, "/min")


def test_oxygen_of_forty_without_a_unit_is_a_percentage(tell: Tell) -> None:
    assert one(tell, code="WARDCAST//fio2", value=40) == ("fio2", pytest.approx(0.4), "1")
    assert one(tell, code="LOINC//3150-0", value=0.4) == ("fio2", 0.4, "1")
    assert one(tell, code="LOINC//3150-0", value=40) == ("fio2", pytest.approx(0.4), "1")
    assert one(tell, code="WARDCAST//fio2", value=40, unit="1") == "impossible_value"


def test_a_known_concept_stands_when_the_local_code_is_unknown(tell: Tell) -> None:
    assert one(tell, code="LOCAL//17", concept="lactate", value=18.0, unit="mg/dL")[0] == "lactate"
    assert one(tell, code="LOCAL//17", concept="gibberish", value=18.0) == "unknown_concept"
    assert one(tell, code="LOINC//8867-4", concept="lactate", value=80)[0] == "heart_rate"


def test_a_word_that_stands_for_a_number_is_read(tell: Tell) -> None:
    assert one(tell, code="WARDCAST//acvpu", text=" Voice")[1] == 2
    assert one(tell, code="WARDCAST//acvpu", text="asleep") == "not_a_number"
    assert one(tell, code="WARDCAST//heart_rate", text="a") == "not_a_number"


def test_a_deletion_needs_no_value(tell: Tell) -> None:
    usable, account = clean(
        tell([{"time": 0, "code": "LOINC//8867-4", "status": "deleted", "unit": "nonsense"}])
    )
    assert len(usable) == 1
    assert account.reasons == {}


def test_the_account_adds_up_and_gives_positions(tell: Tell) -> None:
    events = tell(
        [
            {"time": 0, "code": "LOINC//8867-4", "value": 80},
            {"time": 0, "code": "LOCAL//17", "value": 80},
            {"time": 0, "code": "LOINC//8310-5", "value": 98.6, "unit": "[degF]"},
            {"time": 0, "code": "LOINC//8867-4", "value": 9999},
            {"time": 0, "code": "WARDCAST//fio2", "value": 40},
        ]
    )
    events["concept"] = None
    usable, account = clean(events)
    assert (account.read, account.mapped, account.converted, account.repaired) == (5, 4, 1, 1)
    assert account.set_aside.to_dict("list") == {
        "position": [1, 3],
        "reason": ["unknown_concept", "sentinel"],
    }
    assert account.reasons == {"unknown_concept": 1, "sentinel": 1}
    assert len(usable) + len(account.set_aside) == account.read
    assert usable.index.tolist() == [0, 1, 2]
    assert list(usable.columns) == list(events.columns)


def test_the_account_says_the_same_of_each_code(tell: Tell) -> None:
    events = tell(
        [
            {"time": 0, "code": "LOINC//8867-4", "value": 80},
            {"time": 0, "code": "LOINC//8867-4", "value": 80, "unit": "bpm"},
            {"time": 0, "code": "LOINC//8867-4", "value": 301},
            {"time": 0, "code": "LOINC//8867-4", "value": 80, "unit": "mm[Hg]"},
            {"time": 0, "code": "LOINC//8310-5", "value": 98.6, "unit": "[degF]"},
            {"time": 0, "code": "LOINC//8310-5", "value": 98.6},
            {"time": 0, "code": "LOCAL//17", "value": 80},
            {"time": 0, "code": "MIMIC_CHART//1535", "value": 4.1},
        ]
    )
    events["concept"] = None
    _, account = clean(events)
    assert account.by_code == {
        ("LOINC//8867-4", "heart_rate"): {"read": 4, "impossible_value": 1, "unit_unknown": 1},
        ("LOINC//8310-5", "temperature"): {"read": 2, "converted": 1, "repaired": 1},
        ("LOCAL//17", ""): {"read": 1, "unknown_concept": 1},
        ("MIMIC_CHART//1535", ""): {"read": 1, "left_out": 1},
    }
    table = account.table()
    assert table["code"].tolist() == ["LOINC//8867-4", "LOINC//8310-5", "LOCAL//17", "MIMIC_CHART//1535"]
    assert table["read"].sum() == account.read
    assert {r: int(table[r].sum()) for r in REASONS if table[r].any()} == account.reasons
    assert (table["converted"].sum(), table["repaired"].sum()) == (account.converted, account.repaired)


def test_what_nobody_maps_can_be_kept_as_it_was_written(tell: Tell) -> None:
    events = tell(
        [
            {"time": 0, "code": "LOCAL//17", "concept": None, "value": 80, "unit": "furlong", "text": "x"},
            {"time": 1, "code": "LOINC//8310-5", "concept": None, "value": 98.6, "unit": "[degF]"},
            {"time": 2, "code": "MIMIC_CHART//1535", "concept": None, "value": 4.1, "unit": "mEq/L"},
            {"time": 3, "code": "LOCAL//18", "concept": "gibberish", "text": "only words"},
            {"time": 4, "code": "LOCAL//17", "concept": None, "value": "inf"},
            {"time": 5, "code": "LOINC//8867-4", "concept": None, "value": 9999},
        ]
    )
    kept, account = clean(events, keep_unmapped=True)
    assert kept["code"].tolist() == ["LOCAL//17", "LOINC//8310-5", "MIMIC_CHART//1535", "LOCAL//18"]
    assert kept["concept"].isna().tolist() == [True, False, True, True]
    assert kept["numeric_value"].tolist()[:3] == [80, pytest.approx(37.0), 4.1]
    assert kept["unit"].astype(object).where(kept["unit"].notna(), None).tolist() == [
        "furlong", "Cel", "mEq/L", None,
    ]  # fmt: skip
    assert account.reasons == {"unknown_concept": 3, "left_out": 1, "sentinel": 1}
    assert account.read == 6
    usable, same = clean(events)
    assert usable["code"].tolist() == ["LOINC//8310-5"]
    assert same.by_code == account.by_code
    again, _ = clean(kept, keep_unmapped=True)
    pd.testing.assert_frame_equal(again, kept)


def instant(tell: Tell, **values: float) -> pd.DataFrame:
    """One reading of the blood pressure."""
    return tell([{"time": 0, "concept": c, "value": v} for c, v in values.items()])


def test_a_mean_above_the_systolic_pressure_sets_both_aside(tell: Tell) -> None:
    kept, aside = contradictions(instant(tell, sbp=90, map=110, dbp=60, heart_rate=80))
    assert kept["concept"].tolist() == ["dbp", "heart_rate"]
    assert aside.to_dict("list") == {"position": [0, 1], "reason": [CONTRADICTION] * 2}
    assert CONTRADICTION in REMEDIES


def test_pressures_that_agree_or_are_equal_stay(tell: Tell) -> None:
    for values in ({"sbp": 90, "map": 90, "dbp": 90}, {"sbp": 120, "dbp": 80}, {"map": 110}):
        kept, aside = contradictions(instant(tell, **values))
        assert (len(kept), len(aside)) == (len(values), 0)


def test_two_instants_two_patients_and_two_news_do_not_contradict_each_other(tell: Tell) -> None:
    apart = tell(
        [
            {"time": 0, "concept": "sbp", "value": 90},
            {"time": 1, "concept": "map", "value": 110},
            {"time": 0, "concept": "map", "value": 110, "encounter_id": "other"},
            {"time": 0, "concept": "map", "value": 110, "available": 2},
            {"time": 0, "concept": "map", "value": 110, "status": "deleted"},
        ]
    )
    assert len(contradictions(apart)[1]) == 0


def test_cuff_and_catheter_are_no_contradiction_while_one_pairing_explains_them(tell: Tell) -> None:
    both = [
        {"concept": "sbp", "value": 90},
        {"concept": "sbp", "value": 120},
        {"concept": "map", "value": 100},
    ]
    assert len(contradictions(tell([{"time": 0, **r} for r in both]))[1]) == 0
    assert len(contradictions(tell([{"time": 0, **r} for r in [*both[:1], both[2]]]))[1]) == 2


pressure = st.fixed_dictionaries(
    {
        "time": st.integers(0, 2),
        "concept": st.sampled_from(["sbp", "map", "dbp", "bilirubin_total", "bilirubin_direct", "ph"]),
        "value": st.sampled_from([0.5, 1.0, 60.0, 90.0, 120.0]),
        "encounter_id": st.sampled_from(["a", "b"]),
        "available": st.integers(2, 3),
        "status": st.sampled_from(["final", "deleted"]),
    }
)


@given(st.lists(pressure, max_size=12))
def test_contradictions_are_those_of_a_slow_loop_whatever_the_batches(
    tell: Tell, rows: list[dict[str, Any]]
) -> None:
    events = tell(rows)
    key = events[["encounter_id", "time", "available_time"]].apply(tuple, axis=1).tolist()
    stands = (events["status"] != "deleted").tolist()
    said = list(zip(key, events["concept"], events["numeric_value"], stands, strict=True))
    wrong = set()
    for lower, upper in loader.orders():
        for k in set(key):
            low = [v for at, c, v, s in said if s and at == k and c == lower]
            high = [v for at, c, v, s in said if s and at == k and c == upper]
            if low and high and min(low) > max(high):
                wrong |= {n for n, (at, c, _, s) in enumerate(said) if s and at == k and c in (lower, upper)}
    kept, aside = contradictions(events)
    assert aside["position"].tolist() == sorted(wrong)
    assert len(kept) + len(aside) == len(events)
    alone = [contradictions(part)[0] for _, part in events.groupby("encounter_id", sort=False)]
    together = kept.sort_values(["encounter_id", "time"], kind="stable", ignore_index=True)
    if alone:
        apart = pd.concat(alone).sort_values(["encounter_id", "time"], kind="stable", ignore_index=True)
        pd.testing.assert_frame_equal(apart, together)


def test_who_does_not_say_when_it_was_available_gets_the_declared_delay(tell: Tell) -> None:
    events, _ = clean(
        tell([{"time": 0, "value": 2, "concept": c} for c in ("heart_rate", "lactate", "creatinine", "wbc")])
    )
    events.loc[:2, "available_time"] = pd.NaT
    filled, count = fill_available_time(events)
    delay = (filled["available_time"] - filled["time"]) / pd.Timedelta(minutes=1)
    assert delay.tolist() == [0, 15, 60, 0]
    assert count == 3
    assert filled["available_time"].dtype == UTC_US
    assert fill_available_time(filled)[1] == 0


def test_no_events_clean_to_no_events(tell: Tell) -> None:
    usable, account = clean(tell([]))
    assert len(usable) == 0
    assert account.reasons == {}


def test_words_in_the_number_column_are_refused_with_the_cure(tell: Tell) -> None:
    events = tell([{"time": 0, "value": 1}])
    with pytest.raises(DataError, match="words in text_value"):
        clean(events.assign(numeric_value=["eighty"]))
    with pytest.raises(DataError, match="lacks unit"):
        clean(events.drop(columns="unit"))


codes = st.sampled_from([*loader.codes(), *list(loader.left_out())[:20], "LOCAL//17", None])
units = st.sampled_from([None, "", "mmol/L", "mg/dL", "[degF]", "%", "kPa", "1", "nonsense"])
values = st.one_of(
    st.floats(-60, 4000),
    st.sampled_from([-1.0, 1.1, 735.0, 999.0, 9999.0]),
    st.just(math.nan),
    st.just(math.inf),
)
row = st.fixed_dictionaries(
    {"code": codes, "unit": units, "value": values, "concept": st.sampled_from([None, "lactate"])}
)


@given(st.lists(row, max_size=12))
def test_a_row_is_cleaned_alike_alone_in_a_crowd_and_as_categories(
    tell: Tell, rows: list[dict[str, Any]]
) -> None:
    events = tell([{"time": 0, **r} for r in rows])
    usable, account = clean(events)
    coded, same = clean(
        events.astype(dict.fromkeys(["code", "unit", "concept", "status", "text_value"], "category"))
    )
    wanted = ["concept", "numeric_value", "unit"]
    pd.testing.assert_frame_equal(usable[wanted], coded[wanted])
    assert account.reasons == same.reasons
    alone = [clean(events.iloc[[k]]) for k in range(len(events))]
    np.testing.assert_array_equal([v for u, _ in alone for v in u["numeric_value"]], usable["numeric_value"])
    assert [r for _, a in alone for r in a.set_aside["reason"]] == account.set_aside["reason"].tolist()
    assert set(account.reasons) <= set(REASONS)


@given(st.lists(row, max_size=12))
def test_cleaning_twice_changes_nothing(tell: Tell, rows: list[dict[str, Any]]) -> None:
    usable, _ = clean(tell([{"time": 0, **r} for r in rows]))
    again, account = clean(usable)
    pd.testing.assert_frame_equal(again, usable)
    assert account.reasons == {}


# ------------------------------------------------------------ what a value can only mean


@pytest.mark.parametrize("unit", ["%", "percent", "PERCENT", None])
def test_a_percentage_of_oxygen_below_one_is_a_fraction_whatever_is_stated(
    tell: Tell, unit: str | None
) -> None:
    row = {"code": "EICU_RESPIRATORY//FiO2", "unit": unit}
    assert one(tell, **row, value=0.4) == ("fio2", 0.4, "1")
    assert one(tell, **row, value=1) == ("fio2", 1, "1")
    assert one(tell, **row, value=40) == ("fio2", pytest.approx(0.4), "1")
    assert one(tell, **row, value=0.2) == "impossible_value"


def test_a_stated_fraction_is_believed(tell: Tell) -> None:
    # Only a percentage can be nothing but a fraction in spite of its unit; the other way round is refused.
    assert one(tell, code="LOINC//3150-0", value=40, unit="{fraction}") == "impossible_value"


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(0.04, 0.04), (1.0, 1.0), (1.2, 0.02), (2.4, 0.04), (6, 0.1), (0, 0)],
)
def test_vasopressin_above_one_unit_a_minute_is_by_the_hour(tell: Tell, rate: float, expected: float) -> None:
    # 0.03 U/min is the usual dose, 0.1 the most: 1.2 can only be 1.2 U/h = 0.02 U/min.
    found = one(tell, code="MIMIC_INPUT//30051", value=rate, unit="units/min")
    assert found == ("vasopressin", pytest.approx(expected), "U/min")
    by_the_hour = one(tell, code="MIMIC_INPUT//30051", value=rate, unit="units/hour")
    assert by_the_hour == ("vasopressin", pytest.approx(rate / 60), "U/min")


def test_a_rate_of_vasopressin_that_is_nothing_stays_impossible(tell: Tell) -> None:
    assert one(tell, code="MIMIC_INPUT//30051", value=20, unit="units/min") == "impossible_value"


def test_an_intubated_patient_s_verbal_response_is_one_as_in_mimic(tell: Tell) -> None:
    assert one(tell, code="CLIF//gcs_verbal", value=0) == ("gcs_verbal", 1, "{score}")
    assert one(tell, code="CLIF//gcs_verbal", value=5) == ("gcs_verbal", 5, "{score}")
    assert one(tell, code="CLIF//gcs_eye", value=0) == "impossible_value"


@pytest.mark.parametrize(
    ("code", "unit", "value", "expected"),
    [
        ("LOINC//6690-2", "giga.l-1", 7.1, 7.1),
        ("LOINC//789-8", "tera.l-1", 4.4, 4.4),
        ("LOINC//718-7", "g.l-1", 141, 14.1),
        ("LOINC//20509-6", "g/dL", 14.1, 14.1),
        ("LOINC//14682-9", "mmol/L", 0.0884, 1.0),
        ("MIMIC_INPUT//222315", "milliunits/min", 40, 0.04),
    ],
)
def test_units_as_interfaces_write_them(
    tell: Tell, code: str, unit: str, value: float, expected: float
) -> None:
    assert one(tell, code=code, unit=unit, value=value)[1] == pytest.approx(expected, rel=1e-3)


def test_a_treatment_that_never_ends_is_left_out(tell: Tell) -> None:
    ventilated = "EICU_TREATMENT//pulmonary|ventilation and oxygenation|mechanical ventilation"
    assert one(tell, code=ventilated, value=1) == "left_out"
    cultures = "EICU_TREATMENT//infectious diseases|cultures / immuno-assays|cultures|"
    assert one(tell, code=cultures + "blood", value=1) == ("blood_culture", 1, "1")
    assert one(tell, code=cultures + "urine", value=1) == ("culture", 1, "1")


@pytest.mark.parametrize(
    ("concept", "word", "number"),
    [
        ("oxygen_device", "T Piece", 7),
        ("oxygen_device", "Blow by", 2),
        ("oxygen_device", "Trach Collar", 7),
        ("location", "intermediate", 3),
        ("invasive_ventilation", "Assist Control", 1),
        ("invasive_ventilation", "Extubated", 0),
    ],
)
def test_words_of_devices_and_places_are_read(tell: Tell, concept: str, word: str, number: float) -> None:
    assert one(tell, code=f"WARDCAST//{concept}", text=word)[1] == number


@given(st.lists(row, max_size=12))
def test_one_event_on_its_own_road_is_cleaned_as_in_a_table(tell: Tell, rows: list[dict[str, Any]]) -> None:
    rows = [{"time": 0, **r, "concept": None, "status": "final"} for r in rows]
    for told in rows:
        events = tell([told])
        text, unit = events["text_value"][0], events["unit"][0]
        value = events["numeric_value"][0]
        found = clean_one(
            told["code"] or "",
            "" if pd.isna(unit) else unit,
            None if np.isnan(value) else value,
            None if pd.isna(text) else text,
        )
        usable, account = clean(events)
        if len(usable):
            names = list(loader.concepts())
            assert (names[found[0]], found[1], found[2]) == (
                usable["concept"][0],
                usable["numeric_value"][0],
                None,
            )
        else:
            assert found[2] == account.set_aside["reason"][0]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [("LOINC//8310-5", "[degF]"), ("LOINC//8310-5", ""), ("LOINC//2524-7", "mg/dL"),
                 ("LOINC//2524-7", "xyz"), (" WARDCAST//heart_rate ", ""), ("WARDCAST//nonsense", ""),
                 ("LOINC//19994-3", "%"), ("X//1", "")]
            ),
            st.one_of(st.floats(allow_nan=True), st.floats(-5, 400), st.sampled_from([0.0, -1.0, 999.0, 98.6, 21.0])),
        ),
        max_size=30,
    )
)  # fmt: skip
def test_many_numbers_are_cleaned_as_one(said: list[tuple[tuple[str, str], float]]) -> None:
    kinds = list(dict.fromkeys(kind for kind, _ in said))
    place = np.array([kinds.index(kind) for kind, _ in said], dtype=np.int64)
    raw = np.array([value for _, value in said], dtype=np.float64)
    concept, value, plain = clean_numbers(kinds, place, raw)
    for k, ((code, unit), number) in enumerate(said):
        alone = clean_one(code, unit, None if np.isnan(number) else number, None)
        assert concept[k] == alone[0]
        if plain[k]:
            assert (value[k], None) == alone[1:], "the same bits, and nothing wrong"
        else:
            assert alone[2] is not None, "what is not plain has something wrong"
