"""Counts by hour and day: columns found, totals dropped, zeros that are no counts, nothing learnt from the future."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from features.sources import counts, covariates

OPEN_DATA = {
    "england_winter_sitreps/sitreps.parquet": ("daily", 159, 24),
    "england_discharges_daily/discharges_ctr.parquet": ("daily", 242, 24),
    "ireland_trolleys_daily/trolleys.parquet": ("daily", 36, 24),
    "swast_ambulance_daily/daily_responses.csv": ("daily", 9, 24),
    "wales_ed_hourly/arrivals.parquet": ("hourly", 1, 1),
    "hdhi_admissions/admissions.parquet": ("visits", 3, 24),
    "uclh_patientflow_synthetic/ed_visits.parquet": ("visits", 5, 1),
    "uclh_patientflow_synthetic/inpatient_arrivals.parquet": ("visits", 5, 1),
}


def written(tmp_path: Path, table: pd.DataFrame, name: str = "counts.csv") -> Path:
    path = tmp_path / name
    table.to_csv(path, index=False)
    return path


def days(n: int) -> pd.Series:
    return pd.Series(pd.date_range("2025-01-06", periods=n, freq="D")).dt.strftime("%Y-%m-%d")


@pytest.mark.data
@pytest.mark.parametrize("name", OPEN_DATA)
def test_open_data_are_read_unchanged_and_without_a_mapping(data_dir: Path, name: str):
    shape, series, step_h = OPEN_DATA[name]
    panel = counts.read(data_dir / "beds" / name, shape)
    assert (len(panel.names), panel.step_h) == (series, step_h)
    assert panel.account.layout.startswith("layout ")
    assert len(panel.stamps) == panel.values.shape[1]


@pytest.mark.data
def test_the_total_of_england_is_no_trust(data_dir: Path):
    panel = counts.read(data_dir / "beds" / "england_winter_sitreps" / "sitreps.parquet", "daily")
    assert "-" not in panel.names
    assert panel.account.reasons["rows left out as totals (drop)"] == 948
    assert np.nanmin(panel.values) > 0
    assert panel.open_beds is not None
    taken = (panel.values / panel.open_beds)[np.isfinite(panel.open_beds)]
    assert np.mean(taken > 1) < 0.001  # beds opened in need count as open


@pytest.mark.data
def test_a_table_without_times_says_where_it_belongs(data_dir: Path):
    path = data_dir / "beds" / "yale_ed_triage_derived" / "nan_73cols_train_244179.parquet"
    with pytest.raises(DataError, match="wardcast train admissions"):
        counts.read(path, "visits")


def test_one_series_of_a_small_hospital_needs_no_mapping(tmp_path: Path):
    panel = counts.read(
        written(tmp_path, pd.DataFrame({"date": days(4), "admissions": [3, 0, 5, 2]})), "daily"
    )
    assert panel.names == ("admissions",)
    assert panel.values.tolist() == [[3, 0, 5, 2]]


def test_a_column_of_numbers_that_nobody_named_is_said_to_be_left_unread(tmp_path: Path):
    table = pd.DataFrame({"date": days(4), "admissions": [3, 0, 5, 2], "beds_taken": [40, 41, 44, 43]})
    assert counts.read(written(tmp_path, table), "daily").account.lines()[-1] == (
        'Not read: beds_taken. To have a column counted, name it in a mapping file: values = ["COLUMN"].'
    )
    (tmp_path / "map.toml").write_text('time = "date"\nvalues = ["admissions"]\n')
    named = counts.read(written(tmp_path, table), "daily", tmp_path / "map.toml")
    assert not named.account.unread


def test_a_second_column_names_the_series_only_where_it_must(tmp_path: Path):
    table = pd.DataFrame(
        {"date": days(2).repeat(2), "hospital": "A", "unit": ["x", "y"] * 2, "count": [1, 2, 3, 4]}
    )
    assert counts.read(written(tmp_path, table), "daily").names == ("A/x", "A/y")
    alone = table[table["unit"] == "x"]
    assert counts.read(written(tmp_path, alone), "daily").names == ("A",)


def test_a_missing_day_stays_missing_and_a_repeated_one_keeps_the_first(tmp_path: Path):
    table = pd.DataFrame({"date": days(4).iloc[[0, 1, 1, 3]], "count": [20, 21, 99, 23]})
    panel = counts.read(written(tmp_path, table), "daily")
    assert np.isnan(panel.values[0, 2])
    assert panel.values[0, [0, 1, 3]].tolist() == [20, 21, 23]
    assert panel.account.reasons["repeated rows of count, the first kept"] == 1


def test_a_zero_after_a_month_of_full_wards_is_not_reported_and_after_quiet_days_is_one(tmp_path: Path):
    table = pd.DataFrame(
        {
            "date": [*days(30), *days(30)],
            "site": ["full"] * 30 + ["quiet"] * 30,
            "count": [*[200] * 28, 0, 210, *[2] * 28, 0, 3],
        }
    )
    panel = counts.read(written(tmp_path, table), "daily")
    assert np.isnan(panel.values[0, 28])
    assert panel.values[1, 28] == 0
    assert panel.account.reasons["zeros taken as not reported"] == 1


def test_a_quiet_night_is_real_and_a_silent_day_is_not(tmp_path: Path):
    stamps = pd.date_range("2025-01-06", periods=24 * 30, freq="h")
    by_hour = np.where(np.arange(24) < 6, 1, 10)
    n = np.tile(by_hour, 30)
    n[24 * 20 + 2 : 24 * 20 + 4] = 0  # two hours of a night
    n[24 * 25 : 24 * 26] = 0  # a whole day
    panel = counts.read(written(tmp_path, pd.DataFrame({"time": stamps, "count": n})), "hourly")
    gone = np.flatnonzero(np.isnan(panel.values[0]))
    # Six night hours owe 6, the seventh hour's ten bring it past fifteen with the eighth: from there on it is silence.
    assert gone.tolist() == list(range(24 * 25 + 6, 24 * 26))


@given(st.lists(st.sampled_from([0, 0, 3, 40, 60]), min_size=5, max_size=60), st.integers(1, 4))
def test_what_a_count_means_never_depends_on_later_ones(values: list[int], later: int):
    row = np.array(values, "float64")
    for judge in (counts._silent_days, counts._silent_hours):
        assert judge(row)[:-later].tolist() == judge(row[:-later]).tolist()


def test_summer_and_winter_offsets_in_one_file_are_hours_of_one_wall_clock(tmp_path: Path):
    hours = pd.date_range("2025-03-01", "2025-04-30T23:00", freq="h", tz="Europe/London")
    table = pd.DataFrame({"time": [h.isoformat() for h in hours], "arrivals": hours.hour})
    panel = counts.read(written(tmp_path, table), "hourly", timezone="Europe/London")
    at_noon = panel.values[0][panel.stamps.hour == 12]
    assert len(at_noon) == 61
    assert (at_noon == 12).all()
    assert list(panel.as_came(panel.stamps[[0, -1]])) == [hours[0], hours[-1]]


def test_a_mistyped_year_is_refused_before_its_grid_fills_the_memory(tmp_path: Path):
    table = pd.DataFrame({"date": ["1025-01-06", "2025-01-07"], "count": [3, 4]})
    with pytest.raises(DataError, match=r"1025-01-06 to 2025-01-07.*mistyped"):
        counts.read(written(tmp_path, table), "hourly")


def test_stamps_are_given_back_as_they_came(tmp_path: Path):
    stamps = pd.date_range("2025-07-01", periods=48, freq="h", tz="UTC")
    path = tmp_path / "counts.parquet"
    pd.DataFrame({"time": stamps, "n": range(1, 49)}).to_parquet(path)
    panel = counts.read(path, "hourly", timezone="Europe/London")
    assert panel.stamps[0] == pd.Timestamp("2025-07-01 01:00")  # the wall clock in summer
    assert panel.as_came(panel.stamps).equals(stamps.as_unit("us"))


def test_the_hour_that_autumn_shows_twice_keeps_both_its_counts(tmp_path: Path):
    hours = pd.date_range("2025-10-25 23:00", periods=5, freq="h", tz="UTC")
    table = pd.DataFrame({"time": [*hours, hours[2]], "n": [1, 2, 4, 8, 16, 99]})  # 01:00 UTC was told twice
    marked = counts.read(written(tmp_path, table.astype({"time": "str"})), "hourly", timezone="Europe/London")
    assert marked.values[0].tolist() == [1, 6, 8, 16]  # 00:00, both turns of 01:00, 02:00, 03:00
    assert marked.account.reasons["repeated rows of n, the first kept"] == 1
    local = table.assign(time=table["time"].dt.tz_convert("Europe/London").dt.tz_localize(None))
    bare = counts.read(written(tmp_path, local, "local.csv"), "hourly", timezone="Europe/London")
    assert bare.values[0].tolist() == [1, 2 + 4, 8, 16]
    elsewhere = counts.read(written(tmp_path, local, "local.csv"), "hourly")  # UTC has no such hour
    assert elsewhere.values[0].tolist() == [1, 2, 8, 16]


def test_the_hour_that_spring_skips_is_not_an_empty_one(tmp_path: Path):
    arrived = pd.date_range("2025-03-29 12:00", periods=80, freq="20min", tz="UTC")
    visits = pd.DataFrame({"arrival_time": arrived.astype("str")})
    panel = counts.read(written(tmp_path, visits), "visits", timezone="Europe/London")
    assert panel.stamps[np.isnan(panel.values[0])].tolist() == [pd.Timestamp("2025-03-30 01:00")]
    assert np.nansum(panel.values) == 78  # all but the last hour's, which the file may break off in


def test_days_of_summer_written_as_utc_are_the_days_they_mean(tmp_path: Path):
    days_of_summer = pd.date_range("2022-03-26", periods=4, tz="Europe/London").tz_convert(None)
    assert days_of_summer[2] == pd.Timestamp("2022-03-27 23:00")
    mapping = tmp_path / "site.toml"
    mapping.write_text('zone = "Europe/London"\n', encoding="utf-8")
    table = pd.DataFrame({"date": days_of_summer, "beds": [80, 81, 82, 83]})
    table.to_parquet(tmp_path / "beds.parquet")
    panel = counts.read(tmp_path / "beds.parquet", "daily", mapping)
    assert panel.stamps.equals(pd.date_range("2022-03-26", periods=4, freq="D", unit="us"))
    assert panel.values.tolist() == [[80, 81, 82, 83]]
    assert panel.as_came(panel.stamps).equals(days_of_summer.as_unit("us"))


def test_a_specialty_is_a_series_from_the_day_on_that_it_was_seen_to_be_common(tmp_path: Path):
    day = pd.date_range("2025-01-06", periods=90, freq="D")
    often = pd.DataFrame({"admission_time": day.repeat(2), "specialty": "medicine"})
    new = pd.DataFrame(
        {"admission_time": day[60:].repeat(4), "specialty": "frailty"}
    )  # 4 a day from the 61st on
    rare = pd.DataFrame({"admission_time": day[::3], "specialty": "eyes"})

    def series(table: pd.DataFrame) -> dict[str, np.ndarray]:
        path = written(tmp_path, table.sort_values("admission_time"))
        panel = counts.read(path, "visits")
        return dict(zip(panel.names, panel.values, strict=True))

    whole = series(pd.concat([often, new, rare]))
    assert set(whole) == {"admissions", "admissions/medicine", "admissions/frailty"}
    assert np.isfinite(whole["admissions/medicine"]).all()
    # 4 (n - 60) >= n at n = 80: of the frail, the 81st day is the first to count.
    assert np.flatnonzero(np.isfinite(whole["admissions/frailty"]))[0] == 80
    early = series(pd.concat([often, new, rare]).loc[lambda t: t["admission_time"] < day[75]])
    assert set(early) == {"admissions", "admissions/medicine"}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"date": ["2025-01-06"], "a": [1], "b": [2]}, r'values = \["COLUMN"\]'),
        ({"when": ["2025-01-06"], "count": [1]}, 'time = "COLUMN"'),
        ({"date": ["soon"], "count": [1]}, "Column 'date' holds no dates"),
        ({"date": ["2025-01-06"], "count": ["many"]}, "No usable count in count"),
    ],
)
def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path, table: dict[str, list[object]], said: str):
    with pytest.raises(DataError, match=said):
        counts.read(written(tmp_path, pd.DataFrame(table)), "daily")


def test_a_mapping_names_columns_and_its_own_mistakes(tmp_path: Path):
    path = written(tmp_path, pd.DataFrame({"WHEN": days(3), "WARD": "7B", "IN": [1, 2, 3], "OUT": [4, 5, 6]}))
    mapping = tmp_path / "site.toml"
    mapping.write_text('time = "WHEN"\nseries = ["WARD"]\nvalues = ["IN", "OUT"]\n', encoding="utf-8")
    assert counts.read(path, "daily", mapping).names == ("7B/IN", "7B/OUT")
    mapping.write_text('time = "WHEN"\nvalue = ["IN"]\n', encoding="utf-8")
    with pytest.raises(DataError, match="says value; known are series, time, values"):
        counts.read(path, "daily", mapping)


def test_open_beds_stand_beside_the_beds_taken_that_they_are_for(tmp_path: Path):
    table = pd.DataFrame(
        {"date": days(3), "site": "A", "beds": [7, 8, 9], "Open_Beds": [10, 0, 11], "IN": [1, 2, 3]}
    )
    path = written(tmp_path, table)
    found = counts.read(path, "daily").open_beds
    np.testing.assert_array_equal(found, [[10, np.nan, 11]])  # nobody opens none
    mapping = tmp_path / "site.toml"
    said = 'values = ["beds", "IN"]\nopen_beds = { beds = "Open_Beds" }\n'
    mapping.write_text(said, encoding="utf-8")
    found = counts.read(path, "daily", mapping).open_beds
    np.testing.assert_array_equal(found, [[10, np.nan, 11], [np.nan] * 3])
    for wrong in (said.replace("{ beds", "{ OUT"), said.replace('"Open_Beds"', '"CLOSED"')):
        mapping.write_text(wrong, encoding="utf-8")
        with pytest.raises(DataError, match=r"open_beds names (OUT|CLOSED)\. Write \{ COUNT = COLUMN \}"):
            counts.read(path, "daily", mapping)
    assert counts.read(written(tmp_path, table.drop(columns="Open_Beds")), "daily").open_beds is None


# ------------------------------------------------------------ covariates


def test_only_a_forecast_issued_by_the_origin_is_read(tmp_path: Path):
    issue = pd.to_datetime(["2025-01-01 00:00", "2025-01-01 12:00"])
    table = pd.DataFrame(
        {
            "issueTime": issue.repeat(2),
            "targetTime": pd.to_datetime(["2025-01-02", "2025-01-03"] * 2),
            "t": [1, 2, 3, 4],
        }
    )
    weather = covariates.read([written(tmp_path, table)])
    at = pd.DatetimeIndex(["2025-01-01 11:00", "2025-01-01 12:00", "2024-12-31"])
    target = pd.DatetimeIndex(["2025-01-02"] * 3)
    assert weather.numbers(at, target)[:2, 0].tolist() == [1, 3]
    assert np.isnan(weather.numbers(at, target)[2, 0])


def test_a_number_of_a_day_is_known_when_the_day_is_over(tmp_path: Path):
    flu = covariates.read([written(tmp_path, pd.DataFrame({"date": days(9), "flu": range(10, 19)}))])
    at = pd.DatetimeIndex(["2025-01-07 00:00", "2025-01-06 23:00", "2025-01-14 00:00"])
    now = flu.numbers(at, at)
    assert now[0, 0] == 10
    assert np.isnan(now[1, 0])
    assert now[2].tolist() == [17, 7]  # the newest, and its change over a week


def test_words_and_flags_by_day_are_a_calendar(tmp_path: Path):
    table = pd.DataFrame({"ds": days(3), "holiday": ["Half term", None, "Half term"], "match": [0, 1, 0]})
    known = covariates.read([written(tmp_path, table)])
    assert known.calendars[0].names == ("holiday", "match")
    noon = pd.DatetimeIndex(["2025-01-06 12:00", "2025-01-07 12:00", "2025-03-01"])
    assert known.flags(noon).tolist() == [[1, 0], [0, 1], [0, 0]]


def test_a_covariate_without_a_stamp_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"counts.csv has no stamp"):
        covariates.read([written(tmp_path, pd.DataFrame({"flu": [1.5]}))])


def test_hours_taken_for_days_and_days_for_hours_are_refused(tmp_path: Path):
    hours, days = tmp_path / "hours.csv", tmp_path / "days.csv"
    stamps = pd.date_range("2026-01-05", periods=240, freq="h")
    pd.DataFrame({"time": stamps, "arrivals": 3}).to_csv(hours, index=False)
    pd.DataFrame({"time": stamps[::24] + pd.Timedelta(hours=8), "beds": 90}).to_csv(days, index=False)
    assert counts.read(hours, "hourly").values.shape == (1, 240)
    assert counts.read(days, "daily").values.shape == (1, 10)
    with pytest.raises(DataError, match="Choose the shape hourly"):
        counts.read(hours, "daily")
    with pytest.raises(DataError, match="Choose the shape daily"):
        counts.read(days, "hourly")
