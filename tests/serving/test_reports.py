"""The bed report: pure, honest about its data, the same through page, file and API, and without a patient in it."""

from __future__ import annotations

import csv
import email
import email.policy
import io
import json
import re
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from aiosmtpd.controller import Controller
from typer.testing import CliRunner
from xlsxwriter.utility import xl_col_to_name

import cli
from features.clean import clean
from features.errors import ConfigError, DataError
from features.sources.outlook import Outlook
from features.sources.synthetic import Hospital, encounters_at, simulate
from features.sources.visits import VISIT_COLUMNS, known_at
from models.bundle import Bundle
from models.forecast import Counts
from serving.reports import charts
from serving.reports.beds import ReportResult, forecast_report, open_beds, parse_time, post_report
from serving.reports.forecast import BedForecast, forecast_beds
from serving.reports.formats import FORMATS
from serving.reports.mail import Mailbox, MailError, post
from serving.reports.pdf import render_pdf
from serving.reports.render import render_report, short_word
from serving.reports.spreadsheet import render_xlsx
from serving.reports.tables import COLUMNS, render_csv
from serving.settings import Settings

START = datetime(2026, 2, 2, tzinfo=UTC)
NOW = pd.Timestamp("2026-03-10T08:00Z")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
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


def test_an_outside_series_that_the_model_does_not_read_is_named(
    hospital: Hospital, events: pd.DataFrame, beds_bundle: Bundle
):
    days = pd.date_range("2026-03-01", periods=9, unit="us")
    beside = Outlook(covariates=pd.DataFrame({"date": days, "virus": 5.0}))
    made = forecast_beds(hospital.visits, events, beds_bundle, NOW, "UTC", outlook=beside)
    assert any("trained without virus" in note for note in made.freshness.notes)


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
    assert set(statement["expected"]) == {
        "known",
        "in_ed",
        "to_come",
        "planned",
        "moved_in",
        "moved_out",
        "discharges",
    }
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
    assert answer.json()["error"]["code"] == "model_missing"


def test_nobody_without_a_token_sees_the_beds(fed: Any):
    assert fed.client.get("/v1/forecast/beds").status_code == 401


def test_visits_of_the_store_are_visits(fed: Any):
    assert list(fed.state.store.visits(NOW).columns) == list(VISIT_COLUMNS)


def test_a_report_from_the_store_equals_the_page(fed: Any, tmp_path: Path):
    written = forecast_report(fed.settings, at=NOW.isoformat(), output=tmp_path / "beds.html")
    live = fed.get("/v1/forecast/beds").json()
    assert replace(written.forecast, record=()).to_dict()["levels"] == live["levels"]


# ------------------------------------------------------------ other forms of the same forecast


def many(forecast: BedForecast, names: list[str]) -> BedForecast:
    """The forecast with other and more specialties, degraded, with a note: as full as a sheet gets."""
    old = forecast.levels[:-1]
    cells = {(name, w.key): replace(forecast.cell(old[k % len(old)], w.key), level=name)
             for k, name in enumerate(names) for w in forecast.windows}  # fmt: skip
    cells |= {("hospital", w.key): forecast.cell("hospital", w.key) for w in forecast.windows}
    fresh = replace(forecast.freshness, silent=("No news of any visit for 7 h.",), notes=("A note.",) * 3)
    return replace(forecast, levels=(*names, "hospital"), cells=cells, freshness=fresh)


def sheets(pdf: bytes) -> int:
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def test_the_table_has_every_level_and_window_and_adds_up(forecast: BedForecast):
    rows = list(csv.DictReader(io.StringIO(render_csv(forecast))))
    assert list(rows[0]) == list(COLUMNS)
    assert len(rows) == len(forecast.levels) * len(forecast.windows)
    for window in forecast.windows:
        mine = [r for r in rows if r["window"] == window.label]
        for figure in ("known", "in_ed", "to_come", "planned", "needed", "discharges", "net", "occupied_now"):
            total = sum(float(r[figure]) for r in mine[:-1])
            assert total == pytest.approx(float(mine[-1][figure]), abs=5e-4 * len(mine)), (window, figure)
        for r in mine:
            gained, lost = (
                float(r[a]) + float(r[b]) for a, b in (("needed", "moved_in"), ("discharges", "moved_out"))
            )
            assert gained - lost == pytest.approx(float(r["net"]), abs=5e-4), r["level"]
    whole = next(r for r in rows if (r["level"], r["window"]) == ("hospital", "tomorrow"))
    assert float(whole["p_short"]) <= float(whole["p_over_95"]) <= float(whole["p_over_92"])


def test_no_name_of_a_specialty_becomes_a_formula(forecast: BedForecast):
    evil = many(forecast, ["=HYPERLINK(0)", "+1", "@sum"])
    assert all(
        row["level"].startswith("'") or row["level"] == "hospital"
        for row in csv.DictReader(io.StringIO(render_csv(evil)))
    )
    with zipfile.ZipFile(io.BytesIO(render_xlsx(evil, "=1+1"))) as book:
        parts = {name: book.read(name).decode() for name in book.namelist() if name.endswith(".xml")}
    assert not any("<f>" in text for text in parts.values())
    assert "=HYPERLINK(0)" in parts["xl/sharedStrings.xml"]
    assert "hyperlink " not in "".join(parts.values())


def test_the_spreadsheet_says_what_the_forecast_says(forecast: BedForecast):
    with zipfile.ZipFile(io.BytesIO(render_xlsx(forecast, "St Elsewhere"))) as book:
        text = book.read("xl/sharedStrings.xml").decode()
        figures = book.read("xl/worksheets/sheet2.xml").decode()
    assert all(name in text for name in ("Beds St Elsewhere", *forecast.levels, *COLUMNS, forecast.model_id))
    column = xl_col_to_name(list(COLUMNS).index("covers"))
    found = [int(v) for v in re.findall(rf'<c r="{column}[0-9]+"><v>([0-9]+)</v>', figures)]
    wanted = [forecast.cell(n, w.key).needed.cover(0.95) for w in forecast.windows for n in forecast.levels]
    assert found == wanted


@pytest.mark.parametrize("specialties", [3, 12, 25])
def test_the_pdf_is_one_sheet_whatever_the_number_of_specialties(forecast: BedForecast, specialties: int):
    names = [f"spécialité {k} — хирургия with a long name" for k in range(specialties)]
    pdf = render_pdf(many(forecast, names), "St Elsewhere")
    assert pdf.startswith(b"%PDF-")
    assert sheets(pdf) == 1


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: apt-get install chromium")
@pytest.mark.parametrize("specialties", [6, 12])
def test_the_page_prints_on_one_sheet(forecast: BedForecast, tmp_path: Path, specialties: int):
    from playwright.sync_api import sync_playwright

    page = tmp_path / "beds.html"
    page.write_text(
        render_report(many(forecast, [f"specialty number {k}" for k in range(specialties)])), "utf-8"
    )
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        sheet = browser.new_page()
        sheet.goto(page.as_uri())
        printed = sheet.pdf(prefer_css_page_size=True)
        browser.close()
    assert sheets(printed) == 1


def test_a_form_that_is_none_is_refused_by_name(tmp_path: Path, hospital: Hospital):
    with pytest.raises(ConfigError, match=r"'docx'\. Write one of html, pdf, xlsx, csv, json"):
        forecast_report(settings(tmp_path), output=tmp_path / "beds.docx")


def test_one_hospital_of_several_is_chosen(tmp_path: Path, hospital: Hospital):
    both = pd.concat(
        [hospital.visits.assign(hospital="North"), hospital.visits.iloc[:50].assign(hospital="South")]
    )
    both.to_csv(tmp_path / "visits.csv", index=False)
    words = {"at": "2026-03-10T08:00", "visits": tmp_path / "visits.csv", "output": tmp_path / "beds.json"}
    with pytest.raises(DataError, match=r"2 hospitals \(North, South\)"):
        forecast_report(settings(tmp_path), **words)
    forecast_report(settings(tmp_path), **words, hospital="North")
    hospital.visits.to_csv(tmp_path / "visits.csv", index=False)
    told = json.loads((tmp_path / "beds.json").read_text())
    forecast_report(settings(tmp_path), **words)
    assert told["levels"] == json.loads((tmp_path / "beds.json").read_text())["levels"]
    with pytest.raises(ConfigError, match="Name a file of visits"):
        forecast_report(settings(tmp_path), hospital="North")


def test_the_service_hands_out_every_form_and_the_report_of_a_day(fed: Any):
    for name, form in FORMATS.items():
        answer = fed.get("/v1/forecast/beds", format=name)
        assert (answer.status_code, answer.headers["content-type"]) == (200, form.media)
        answer = fed.get("/reports/beds/2026-03-10", format=name)
        assert answer.status_code == 200
    assert fed.get("/reports/beds/2026-03-10", format="json").json()["at"] == "2026-03-10T08:00:00Z"
    early = fed.get("/reports/beds/2026-03-10", format="json", time="06:00").json()
    assert early["at"] == "2026-03-10T06:00:00Z"
    assert 'filename="beds-2026-03-10-0800.pdf"' in fed.get("/reports/beds/2026-03-10", format="pdf").headers[
        "content-disposition"
    ]  # fmt: skip
    assert fed.get("/reports/beds/2026-03-11").status_code == 422, "that huddle has not come"
    for day in ("yesterday", "0", "0048-01-01", "9999-12-31"):
        assert fed.get(f"/reports/beds/{day}").status_code == 422
    assert fed.get("/v1/forecast/beds", at="0048-01-01T00:00").status_code == 422
    assert fed.get("/reports/beds/2026-03-10", time="8").status_code == 422


# ------------------------------------------------------------ e-mail


class Letters:
    """What a mail server of our own was given."""

    def __init__(self, refuse: str = "") -> None:
        self.taken: list[EmailMessage] = []
        self.refuse = refuse

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.refuse:
            return self.refuse
        self.taken.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"


@pytest.fixture
def post_office(request: pytest.FixtureRequest) -> Iterator[tuple[Letters, int]]:
    letters = Letters(getattr(request, "param", ""))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(letters, hostname="127.0.0.1", port=port, server_hostname="localhost")
    controller.start()
    yield letters, port
    controller.stop()


def test_the_huddles_report_is_written_and_posted(fed: Any, post_office: tuple[Letters, int]):
    letters, port = post_office
    mail = {
        "smtp": f"smtp://127.0.0.1:{port}",
        "mail_from": "beds@example.org",
        "mail_to": ("a@example.org", "b@example.org"),
    }
    said = post_report(replace(fed.settings, **mail), NOW.to_pydatetime())
    assert said == "beds-2026-03-10-0800 written and posted to 2"
    (letter,) = letters.taken
    assert letter["Subject"] == "Beds St Elsewhere, Tuesday 10 March 2026, 08:00"
    assert letter["To"] == "a@example.org, b@example.org"
    body = letter.get_body(("plain",)).get_content()
    assert "Tomorrow: " in body
    assert "times in 100" in body
    assert not re.search(r"\b[VPC]\d{6}\b", body), "no identity of anyone"
    attached = {part.get_filename(): part.get_content() for part in letter.iter_attachments()}
    assert set(attached) == {"beds-2026-03-10-0800.pdf", "beds-2026-03-10-0800.xlsx"}
    assert sheets(attached["beds-2026-03-10-0800.pdf"]) == 1
    written = {path.name for path in (fed.settings.var / "reports").iterdir()}
    assert written == {f"beds-2026-03-10-0800.{name}" for name in FORMATS}


@pytest.mark.parametrize("post_office", ["552 too big"], indirect=True)
def test_a_server_that_refuses_is_told_of(forecast: BedForecast, post_office: tuple[Letters, int]):
    box = Mailbox.of(f"smtp://127.0.0.1:{post_office[1]}", "a@b.org", ["c@d.org"], None)
    assert box is not None
    with pytest.raises(MailError, match="did not take the report: SMTPDataError 552"):
        post(box, forecast)


def test_a_server_that_is_not_there_is_told_of_and_one_elsewhere_is_encrypted(forecast: BedForecast):
    box = Mailbox.of("smtp://127.0.0.1:1", "a@b.org", ["c@d.org"], None)
    assert box is not None
    with pytest.raises(MailError, match="ConnectionRefusedError"):
        post(box, forecast)
    assert Mailbox.of("", "", [], None) is None
    far = Mailbox.of("smtp://ward@mail.example.org", "a@b.org", ["c@d.org"], None)
    assert far is not None
    assert (far.security, far.port, far.user) == ("starttls", 587, "ward")
    for url in ("http://mail", "smtp://u:secret@mail", "smtp://mail:x"):
        with pytest.raises(ConfigError, match="WARDCAST_SMTP must be"):
            Mailbox.of(url, "a@b.org", ["c@d.org"], None)
    with pytest.raises(ConfigError, match="WARDCAST_MAIL_FROM"):
        Mailbox.of("smtps://mail", "nobody", ["c@d.org"], None)
