"""The bed report: pure, honest about its data, the same through page, file and API, and without a patient in it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import cli
from features.clean import clean
from features.errors import ConfigError, DataError
from features.sources.synthetic import Hospital, encounters_at, simulate
from features.sources.visits import VISIT_COLUMNS, known_at
from models.bundle import Bundle
from models.forecast import Counts
from serving.reports import charts
from serving.reports.beds import ReportResult, forecast_report, open_beds, parse_time
from serving.reports.forecast import BedForecast, forecast_beds
from serving.reports.render import render_report, short_word
from serving.settings import Settings

START = datetime(2026, 2, 2, tzinfo=UTC)
NOW = pd.Timestamp("2026-03-10T08:00Z")
WINDOWS = ("next_4h", "next_8h", "to_08", "tomorrow")


@pytest.fixture(scope="module")
def hospital() -> Hospital:
    return simulate(40, 31, START, ed_per_day=80, observe=("ed",))


@pytest.fixture(scope="module")
def events(hospital: Hospital) -> pd.DataFrame:
    return clean(hospital.events)[0]


@pytest.fixture(scope="module")
def beds_bundle(repo: Path) -> Bundle:
    return Bundle.load(repo / "models" / "admissions" / "released")


@pytest.fixture(scope="module")
def forecast(hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle) -> BedForecast:
    return forecast_beds(hospital.visits, events, beds_bundle, NOW, "UTC", hospital.open_beds, record_days=4)


class Text(HTMLParser):
    """What a reader sees, and every address a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.loads: list[str] = []
        self._silent = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent = tag == "style"
        self.loads += [v or "" for k, v in attrs if k in ("src", "action") or (k == "href" and tag == "link")]

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text.append(data)


def read(html: str) -> tuple[str, list[str]]:
    page = Text()
    page.feed(html)
    return re.sub(r"\s+", " ", " ".join(page.text)), page.loads


# ------------------------------------------------------------ the forecast


def test_every_level_and_window_says_both_ways(forecast: BedForecast):
    for level in forecast.levels:
        for window in WINDOWS:
            cell = forecast.cell(level, window)
            assert cell.needed.floor(0.9) <= cell.needed.quantile(0.5) <= cell.needed.cover(0.95)
            assert "times in 100" in forecast.words(level, window)
            assert cell.short is not None
            assert 0 <= cell.short <= 1


def test_the_json_is_complete_and_finite(forecast: BedForecast):
    told = json.loads(json.dumps(forecast.to_dict(), allow_nan=False))
    assert [level["level"] for level in told["levels"]] == list(forecast.levels)
    statement = told["levels"][-1]["windows"]["tomorrow"]
    assert set(statement["needed"]["quantiles"]) == {"q05", "q10", "q25", "q50", "q75", "q90", "q95"}
    assert set(statement["expected"]) == {"known", "in_ed", "to_come", "planned", "discharges"}
    assert statement["net"]["mean"] == pytest.approx(
        statement["needed"]["mean"] - statement["discharges"]["mean"]
    )
    total = sum(level["windows"]["tomorrow"]["needed"]["mean"] for level in told["levels"][:-1])
    assert total == pytest.approx(statement["needed"]["mean"])
    assert told["at"] == "2026-03-10T08:00:00Z"
    assert told["degraded"] == []


def test_the_record_is_of_days_that_have_passed_and_knew_only_their_past(
    forecast: BedForecast, hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle
):
    assert [p.day for p in forecast.record] == ["2026-03-06", "2026-03-07", "2026-03-08", "2026-03-09"]
    came = hospital.visits["admission_time"]
    for past in forecast.record:
        assert past.outcome == (came.dt.date == pd.Timestamp(past.day).date()).sum()
        assert past.low <= past.lower <= past.middle <= past.upper <= past.high
    shorter = known_at(hospital.visits, NOW)
    again = forecast_beds(
        shorter, events[events["available_time"] <= NOW], beds_bundle, NOW, "UTC", record_days=4
    )
    assert again.record == forecast.record


def test_without_history_there_is_no_record_and_a_note(
    hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle
):
    early = pd.Timestamp("2026-02-04T08:00Z")
    seen = hospital.visits[hospital.visits["arrival_time"] >= pd.Timestamp(START)]
    young = forecast_beds(seen, events, beds_bundle, early, "UTC", record_days=14)
    assert young.record == ()
    assert "Only 2 days of visits" in young.freshness.notes[0]


def test_no_visit_at_all_is_degraded_not_an_error(
    beds_bundle: Bundle, hospital: Hospital, events: pd.DataFrame
):
    nothing = forecast_beds(
        hospital.visits.iloc[:0], events.iloc[:0], beds_bundle, NOW, "UTC", record_days=14
    )
    assert "No visit is known" in nothing.freshness.silent[0]
    assert nothing.cell("hospital", "tomorrow").occupied_now == 0
    assert "Degraded" in read(render_report(nothing))[0]


def test_a_silent_feed_degrades_the_forecast(hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle):
    """Nothing heard of any visit since 03:00; by 08:00 at some 80 a day a dozen should have come."""
    stopped = known_at(hospital.visits, NOW - pd.Timedelta(hours=7))
    late = forecast_beds(stopped, events, beds_bundle, NOW, "UTC")
    assert "No news of any visit" in late.freshness.silent[0]
    assert "Europe" not in late.freshness.silent[0]


def test_a_quiet_hour_at_night_is_no_alarm(hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle):
    night = pd.Timestamp("2026-03-10T04:30Z")
    calm = forecast_beds(
        known_at(hospital.visits, night - pd.Timedelta(minutes=60)), events, beds_bundle, night, "UTC"
    )
    assert calm.freshness.silent == ()


def test_observations_that_stopped_are_named(hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle):
    noon = pd.Timestamp("2026-03-10T14:00Z")
    blind = forecast_beds(hospital.visits, events.iloc[:0], beds_bundle, noon, "UTC")
    assert any("No observation of the" in line for line in blind.freshness.silent)


def test_the_same_moment_gives_the_same_forecast(
    hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle, forecast: BedForecast
):
    again = forecast_beds(hospital.visits, events, beds_bundle, NOW, "UTC", hospital.open_beds, record_days=4)
    assert again.to_dict() == forecast.to_dict()


def test_columns_that_are_missing_are_named(hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle):
    with pytest.raises(DataError, match="lack decision_time"):
        forecast_beds(hospital.visits.drop(columns="decision_time"), events, beds_bundle, NOW, "UTC")


# ------------------------------------------------------------ specialties the model does not know


def renamed(visits: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    return visits.assign(specialty=visits["specialty"].replace(names))


def sums(forecast: BedForecast) -> None:
    """Lines sum to the hospital, in every figure that adds up, and nobody is left out."""
    *lines, whole = forecast.levels
    assert whole == "hospital"
    for window in WINDOWS:
        cells, all_ = [forecast.cell(line, window) for line in lines], forecast.cell(whole, window)
        assert sum(c.occupied_now for c in cells) == all_.occupied_now > 100
        assert sum(c.waiting_now for c in cells) == all_.waiting_now > 0
        for figure in ("needed_mean", "net_mean"):
            total = sum(getattr(c, figure) for c in cells)
            assert total == pytest.approx(getattr(all_, figure)), (figure, window)
        for part in all_.parts:
            assert sum(c.parts[part] for c in cells) == pytest.approx(all_.parts[part]), (part, window)


def test_a_specialty_the_model_does_not_know_has_its_own_line_and_is_named(
    hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle, forecast: BedForecast
):
    sums(forecast)
    assert "other or unknown" not in forecast.levels
    assert not any(
        "does not know" in line for line in (*forecast.freshness.notes, *forecast.freshness.silent)
    )
    strange = forecast_beds(
        renamed(hospital.visits, {"surgery": "neuro"}), events, beds_bundle, NOW, "UTC", hospital.open_beds
    )
    sums(strange)
    line, was = strange.cell("other or unknown", "to_08"), forecast.cell("surgery", "to_08")
    assert (line.occupied_now, line.waiting_now) == (was.occupied_now, was.waiting_now)
    assert strange.cell("surgery", "to_08").occupied_now == 0
    assert line.parts["known"] == pytest.approx(was.parts["known"])
    assert 0.5 < line.parts["discharges"] / was.parts["discharges"] < 2, "stays as everybody's"
    (said,) = (text for text in strange.freshness.silent if "does not know" in text)
    assert f"neuro ({line.occupied_now + line.waiting_now})" in said
    assert "wardcast train admissions --source visits" in said
    assert "other or unknown" in read(render_report(strange))[0]


def test_without_specialties_the_hospital_is_whole_and_the_forecast_degraded(
    hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle, forecast: BedForecast
):
    bare = forecast_beds(hospital.visits.assign(specialty=""), events, beds_bundle, NOW, "UTC", record_days=2)
    sums(bare)
    whole, was = bare.cell("hospital", "tomorrow"), forecast.cell("hospital", "tomorrow")
    assert bare.cell("other or unknown", "tomorrow").occupied_now == was.occupied_now
    assert whole.needed_mean == pytest.approx(was.needed_mean)
    assert whole.parts["discharges"] == pytest.approx(was.parts["discharges"], rel=0.15)
    assert any("none given (" in text for text in bare.freshness.silent)
    assert len(bare.record) == 2


def test_a_few_of_another_specialty_are_a_note_not_an_alarm(
    hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle
):
    visits = hospital.visits.copy()
    here = visits["admission_time"].le(NOW) & ~visits["discharge_time"].le(NOW)
    visits.loc[visits.index[here][:2], "specialty"] = "neuro"
    few = forecast_beds(visits, events, beds_bundle, NOW, "UTC", {"surgery": 30, "neuro": 4, "eyes": 1})
    assert few.freshness.silent == ()
    assert any("neuro (2)" in text for text in few.freshness.notes)
    line = few.cell("other or unknown", "tomorrow")
    assert (line.occupied_now, line.open_beds) == (2, 5), "beds of specialties without a line are theirs"
    assert few.cell("hospital", "tomorrow").open_beds == 35


def test_a_model_with_a_line_for_the_rest_uses_it(
    hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle
):
    flow = beds_bundle.parts["flow"]
    names = ["other" if name == "surgery" else name for name in flow["specialties"]]
    bundle = replace(beds_bundle, parts=beds_bundle.parts | {"flow": flow | {"specialties": names}})
    strange = forecast_beds(renamed(hospital.visits, {"surgery": "neuro"}), events, bundle, NOW, "UTC")
    sums(strange)
    assert strange.levels == (*names, "hospital")
    assert any("neuro (" in text for text in strange.freshness.silent), "too many to be rare"


# ------------------------------------------------------------ the page


def test_the_file_loads_nothing_and_names_nobody(forecast: BedForecast):
    html = render_report(forecast, "St Elsewhere")
    text, loads = read(html)
    assert loads == []
    assert "<script" not in html
    assert not re.search(r"\b[VPC]\d{6}\b", html), "no identity of anyone"
    for words in ("St Elsewhere", "Tomorrow by specialty", "Did it come true?", "Net", "90 % sure"):
        assert words in text
    assert "knows nothing of your hospital" in text


def test_the_site_name_is_escaped(forecast: BedForecast):
    assert "<b>x" not in render_report(forecast, "<b>x</b>")


def test_the_clock_of_the_page_is_the_sites(hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle):
    tokyo = forecast_beds(hospital.visits, events, beds_bundle, NOW, "Asia/Tokyo")
    text, _ = read(render_report(tokyo))
    assert "Tuesday 10 March 2026, 17:00" in text
    assert "until 21:00" in text


def test_a_probability_is_never_shown_as_certain():
    assert [short_word(p) for p in (None, 0.0, 0.004, 0.5, 1.0)] == ["–", "< 1 %", "< 1 %", "50 %", "> 99 %"]


def test_bars_stay_inside_their_frame():
    wide = Counts.of_samples(pd.Series([0, 5, 900]).to_numpy("int64"))
    for svg in (charts.range_bar(wide, 10), charts.net_bar(wide, 5), charts.parts_bar([0, 0, 0, 0], 0)):
        numbers = [float(n) for n in re.findall(r'x1?="([-\d.]+)"', svg)]
        assert all(-0.1 <= n <= 120 for n in numbers)


# ------------------------------------------------------------ the file and the service


def settings(tmp_path: Path, **env: str) -> Settings:
    return Settings.from_env(
        {"WARDCAST_VAR": str(tmp_path / "var"), **{f"WARDCAST_{k}": v for k, v in env.items()}}
    )


def test_the_command_writes_a_page_from_a_file_of_visits(tmp_path: Path, hospital: Hospital):
    hospital.visits.to_csv(tmp_path / "visits.csv", index=False)
    written = forecast_report(settings(tmp_path), at="2026-03-10T08:00", visits=tmp_path / "visits.csv")
    assert written.path == tmp_path / "var" / "reports" / "beds-2026-03-10-0800.html"
    assert "beds needed" in written.path.read_text(encoding="utf-8")
    assert written.summary().startswith("Beds tomorrow: ")
    assert "No observation" in written.summary()
    assert "set aside" not in written.summary()
    now = forecast_report(settings(tmp_path), visits=tmp_path / "visits.csv", output=tmp_path / "now.html")
    assert now.forecast.at <= pd.Timestamp("2026-03-14T00:00Z")


def test_the_summary_names_the_model_and_what_it_was_made_from(tmp_path: Path, forecast: BedForecast):
    said = ReportResult(tmp_path / "beds.html", forecast).summary()
    assert f"Model {forecast.model_id}, made from: simulated hospital" in said
    assert "train on your own visits before planning with it" in said
    own = ReportResult(tmp_path / "beds.html", replace(forecast, origin="visits of a site")).summary()
    assert "made from: visits of a site." in own
    assert "simulated" not in own


def test_the_command_takes_a_model(
    tmp_path: Path, hospital: Hospital, repo: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WARDCAST_VAR", str(tmp_path / "var"))
    hospital.visits.to_csv(tmp_path / "visits.csv", index=False)
    own = shutil.copytree(repo / "models" / "admissions" / "released", tmp_path / "own")
    seen: list[Path] = []
    load = Bundle.load
    monkeypatch.setattr(Bundle, "load", lambda folder: (seen.append(folder), load(folder))[1])
    words = ["forecast", "beds", "--visits", str(tmp_path / "visits.csv"), "--at", "2026-03-10T08:00"]
    done = CliRunner().invoke(cli.app, [*words, "--model", str(own), "--output", str(tmp_path / "b.html")])
    assert done.exit_code == 0, done.output
    assert seen == [own]
    assert "made from: simulated hospital" in done.output
    with pytest.raises(ConfigError, match="nowhere"):
        CliRunner().invoke(cli.app, [*words, "--model", str(tmp_path / "nowhere")], catch_exceptions=False)


def test_rows_that_were_set_aside_are_told(tmp_path: Path, hospital: Hospital):
    visits = hospital.visits.copy()
    backwards = visits.index[visits["discharge_time"].notna()][:3]
    visits.loc[backwards, "discharge_time"] = visits["arrival_time"] - pd.Timedelta(days=1)
    visits.to_csv(tmp_path / "visits.csv", index=False)
    path = tmp_path / "visits.csv"
    written = forecast_report(settings(tmp_path), at="2026-03-10T08:00", visits=path)
    (note,) = (line for line in written.forecast.freshness.notes if "set aside" in line)
    assert f"{len(visits):,} visits read, {len(visits) - 3:,} used. 3 set aside: " in note
    assert note in written.summary()
    assert note in read(written.path.read_text(encoding="utf-8"))[0]


def test_times_are_local_unless_they_say_otherwise():
    assert parse_time("2026-07-01T08:00", "Europe/London") == pd.Timestamp("2026-07-01T07:00Z")
    assert parse_time("2026-07-01T08:00Z", "Europe/London") == pd.Timestamp("2026-07-01T08:00Z")
    with pytest.raises(DataError, match="not a time"):
        parse_time("tomorrow", "UTC")


def test_open_beds_come_from_a_table(tmp_path: Path):
    given = settings(tmp_path)
    assert open_beds(given) is None
    (given.var / "open_beds.csv").write_text("specialty,open_beds\nsurgery,30\n", encoding="utf-8")
    assert open_beds(given) == {"surgery": 30}
    (given.var / "open_beds.csv").write_text("specialty,beds\nsurgery,30\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="specialty,open_beds"):
        open_beds(given)


def told(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows = json.loads(frame.to_json(orient="records", date_format="iso", date_unit="us"))
    return [{k: v for k, v in row.items() if v not in (None, "")} for row in rows]


@pytest.fixture
def fed(make_service: Callable[..., Any], hospital: Hospital) -> Any:
    """A service that has been told everything known at :data:`NOW`."""
    service = make_service(SITE="St Elsewhere")
    people = encounters_at(hospital, NOW.to_pydatetime())
    people = people[people["encounter_id"].str.startswith("V")]
    here = people.loc[people["discharge_time"].isna(), "encounter_id"]
    rows = hospital.events[
        (hospital.events["available_time"] <= NOW) & hospital.events["encounter_id"].isin(here)
    ]
    sent = rows[["encounter_id", "code", "time", "available_time", "unit", "source_id"]].assign(
        value=rows["numeric_value"]
    )
    service.send({"encounters": told(people), "as_of": NOW.isoformat()})
    service.send({"events": told(sent), "as_of": NOW.isoformat()})
    return service


def test_the_service_gives_the_forecast_of_its_store(fed: Any, hospital: Hospital, events: pd.DataFrame):
    answer = fed.get("/v1/forecast/beds")
    assert answer.status_code == 200, answer.text
    got = answer.json()
    bundle = Bundle.load(fed.settings.admissions_model)
    mine = forecast_beds(known_at(hospital.visits, NOW), events, bundle, NOW, "UTC").to_dict()
    assert got["levels"] == json.loads(json.dumps(mine))["levels"]
    assert got["degraded"] == []


def test_the_page_stands_in_the_frame_of_the_service(fed: Any):
    answer = fed.get("/beds")
    assert answer.status_code == 200
    text, loads = read(answer.text)
    assert "Worklist" in text
    assert "St Elsewhere" in text
    assert loads == [] or all(load.startswith(("/", "data:")) for load in loads)
    assert 'aria-current="page"' in answer.text
    policy = answer.headers["content-security-policy"]
    nonces = set(re.findall(r'<style nonce="([^"]+)"', answer.text))
    assert len(nonces) == 1
    assert nonces.pop() in policy


def test_the_file_can_be_had_from_the_service(fed: Any):
    answer = fed.get("/v1/forecast/beds", format="html")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "<!doctype html>" in answer.text


def test_the_past_is_forecast_from_what_was_known_and_the_future_is_refused(fed: Any):
    assert fed.get("/v1/forecast/beds", at="2026-03-10T08:00:00+00:00").json()["at"] == "2026-03-10T08:00:00Z"
    before = fed.get("/v1/forecast/beds", at="2026-03-01T08:00:00Z").json()
    assert "No visit is known" in before["degraded"][0], "the store had been told of nobody then"
    for at, code in (("2027-01-01T00:00:00Z", "future_time"), ("noon", "not_a_time")):
        refused = fed.get("/v1/forecast/beds", at=at)
        assert refused.status_code == 422
        assert refused.json()["error"]["code"] == code


def test_a_missing_model_is_said_not_thrown(make_service: Callable[..., Any], tmp_path: Path):
    service = make_service(ADMISSIONS_MODEL=str(tmp_path / "nowhere"))
    answer = service.get("/v1/forecast/beds")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_unusable"


def test_nobody_without_a_token_sees_the_beds(fed: Any):
    assert fed.client.get("/v1/forecast/beds").status_code == 401


def test_visits_of_the_store_are_visits(fed: Any):
    assert list(fed.state.store.visits(NOW).columns) == list(VISIT_COLUMNS)


def test_a_report_from_the_store_equals_the_page(fed: Any, tmp_path: Path):
    written = forecast_report(fed.settings, at=NOW.isoformat(), output=tmp_path / "beds.html")
    live = fed.get("/v1/forecast/beds").json()
    assert replace(written.forecast, record=()).to_dict()["levels"] == live["levels"]
