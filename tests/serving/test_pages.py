from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from serving.pages import charts
from serving.reasons import clock_text, number_text, plain_label, quantity_text
from serving.render import ago, percent

HOUR = 3_600_000_000


class Words(HTMLParser):
    """The text of a page, one space between words."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._skip = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._skip += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._skip -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.found.extend(data.split())


def text_of(html: str) -> str:
    words = Words()
    words.feed(html)
    return " ".join(words.found)


@pytest.fixture
def ward(service: Any, patient: Any) -> Any:
    """Three in intensive care (one ill, one well, one without data), a child there, and one on the ward."""
    people = [
        patient("ill").rounds(range(20), heart_rate=105, lactate=4.2),
        patient("well").rounds(range(20), heart_rate=64, lactate=0.9),
        patient("silent"),
        patient("child", age_years=9.0).rounds(range(20)),
        patient("ward", encounter_class="ward").rounds(range(20)),
    ]
    for hour in range(20):
        parts = [p.news(hour, hour - 1) for p in people]
        service.send(
            {
                "encounters": [e for p in parts for e in p["encounters"]],
                "events": [e for p in parts for e in p["events"]],
                "as_of": parts[0]["as_of"],
            }
        )
    return service


def test_the_worklist_sorts_by_risk_and_always_shows_who_is_not_scored(ward: Any):
    page = text_of(ward.get("/worklist").text)
    assert page.index("ill 71 y, female · ICU-A") < page.index("well 71 y")
    assert (
        "Risk that sepsis begins within the next 6 hours, or has already begun. As of 2 Mar 2026, 01:00 ."
        in page
    )
    assert re.search(r"Scored 2 Paging 1 Raised 0 Not scored 1 Others in the hospital 2", page)
    assert re.search(
        r"silent 71 y, female · ICU-A Too few recent vital signs, or facts of the patient missing insufficient_data",
        page,
    )
    assert "Heart rate, Respiratory rate, Oxygen saturation (pulse oximeter)" in page
    assert re.search(r"Lactate 5.8 mmol/L, up from 5.4, 22:00, .*?raises risk", page)
    assert "not for others" in page
    assert ward.state.bundles["sepsis"].model_id in page


def test_an_open_alert_stays_in_sight_when_the_data_stop(service: Any, patient: Any):
    who = patient("mute").rounds(range(7), heart_rate=125, lactate=6.0)
    service.send(who.news(6))
    who.measure(36, "wbc", 9.0)
    assert service.send(who.news(36, 6))["predictions"][0]["status"] == "insufficient_data"
    page = text_of(service.get("/worklist").text)
    assert re.search(r"Scored 0 Paging 1 Raised 0 Not scored 1", page)
    assert re.search(r"mute 71 y, female · ICU-A Page since .*?, not seen yet Too few", page)
    assert "Page" in text_of(service.get("/patient", encounter="mute").text).split("Sepsis risk")[0]


def test_the_worklist_names_what_nobody_said_of_a_patient(service: Any, patient: Any):
    news = patient("new").rounds(range(7)).news(6)
    del news["encounters"][0]["encounter_class"]
    service.send(news)
    assert "insufficient_data Where the patient is" in text_of(service.get("/worklist").text)


def test_the_worklist_can_be_one_unit(ward: Any):
    assert "No patient is being scored in this unit" in text_of(ward.get("/worklist", unit="ICU-Z").text)
    assert "ill 71 y" in text_of(ward.get("/worklist", unit="ICU-A").text)


def test_an_empty_hospital_has_a_page(service: Any):
    page = text_of(service.get("/worklist").text)
    assert "No patient is being scored." in page
    assert "Scored 0" in page


def test_data_that_stopped_coming_are_called_stale(ward: Any, patient: Any):
    ward.send({"encounters": [patient("new").encounter], "as_of": patient().at(24.5).isoformat()})
    assert "(stale)" in text_of(ward.get("/worklist").text)


def test_the_patient_page_shows_history_reasons_inputs_and_how_to_repeat_it(ward: Any):
    page = ward.get("/patient", encounter="ill").text
    words = text_of(page)
    assert "Person person of ill" in words
    assert '<svg class="history"' in page
    assert page.count('class="flag"') == len(ward.state.store.alerts())
    assert re.search(r"Heart rate 124 /min 123 01:00", words)
    newest = ward.state.store.predictions().query("encounter_id == 'ill'")["prediction_id"].iloc[-1]
    assert f"wardcast explain {newest}" in words


def test_log_odds_on_the_patient_page_add_up(ward: Any):
    page = ward.get("/patient", encounter="ill").text
    shown = [
        float(x.replace("−", "-")) for x in re.findall(r'number small">(?:<strong>)?([+−]?\d+\.\d\d)', page)
    ]
    parts, raw = shown[:-1], shown[-1]
    assert len(parts) == 12
    assert sum(parts) == pytest.approx(raw, abs=0.06)


def test_an_alert_is_acknowledged_with_a_button(ward: Any):
    ward.client.post("/sign-in", data={"token": ward.settings.token})
    page = ward.client.get("/patient", params={"encounter": "ill"}).text
    alert = re.findall(r'name="alert_id" value="([0-9a-f]{32})"', page)[0]
    form = {"alert_id": alert, "encounter": "ill", "outcome": "acted"}
    own = {"Sec-Fetch-Site": "same-origin"}
    answer = ward.client.post("/patient/acknowledge", data=form, headers=own)
    assert (answer.status_code, answer.headers["location"]) == (303, "/patient?encounter=ill")
    assert "local, 01:00" in text_of(ward.client.get("/patient", params={"encounter": "ill"}).text)
    assert "seen by local" in text_of(ward.client.get("/worklist").text)
    odd = ward.client.post("/patient/acknowledge", data=form | {"outcome": "burn"}, headers=own)
    assert odd.status_code == 422


@pytest.mark.parametrize(
    ("who", "said"),
    [
        ("ward", "Outside the model's scope"),
        ("child", "Outside the model's scope"),
        ("silent", "Too few recent vital signs"),
    ],
)
def test_the_page_of_a_patient_without_a_score_says_why(ward: Any, who: str, said: str):
    answer = ward.get("/patient", encounter=who)
    assert answer.status_code == 200
    assert said in text_of(answer.text)


def test_a_patient_nobody_knows_is_a_page_not_found(service: Any):
    answer = service.client.get(
        "/patient", params={"encounter": "x"}, headers=service.headers | {"Accept": "text/html"}
    )
    assert answer.status_code == 404
    assert "No such patient here." in text_of(answer.text)
    assert service.get("/patient", encounter="x").json()["error"]["code"] == "unknown_encounter"


def test_the_model_page_is_the_card(service: Any):
    page = service.get("/model").text
    assert "<h1>Sepsis, for tests</h1>" in page
    assert "shock_index" in page


def test_pages_without_a_model_say_so(make_service: Any, tmp_path: Any, patient: Any):
    service = make_service(SEPSIS_MODEL=str(tmp_path / "none"))
    service.send(patient().rounds(range(3)).news(2))
    html = service.headers | {"Accept": "text/html"}
    answer = service.client.get("/worklist", headers=html)
    assert answer.status_code == 503
    assert "No sepsis model is loaded" in text_of(answer.text)
    assert "No model is serving" in text_of(service.client.get("/patient?encounter=enc-1", headers=html).text)


def test_gaps_in_the_data_are_gaps_in_the_line():
    points = [
        (0, 0.1),
        (HOUR, 0.1),
        (4 * HOUR, 0.1),
        (8 * HOUR, 0.2),
        (9 * HOUR, None),
        (10 * HOUR, 0.3),
        (11 * HOUR, 0.3),
    ]
    assert [len(run) for run in charts.runs(points)] == [3, 1, 2]
    drawn = str(charts.sparkline(points, 0.05, 11 * HOUR))
    assert (drawn.count("<polyline"), drawn.count("<circle")) == (2, 1)
    assert 'aria-label="Risk over 24 h: from 10 % to 30 %, highest 30 %"' in drawn


def test_names_of_near_thresholds_can_both_be_read():
    drawn = str(charts.history([(0, 0.3)], [], 0.034, 0.047, HOUR, 12, "UTC"))  # 6 units apart on this scale
    at = {name: float(y) for y, name in re.findall(r'<text class="mark"[^>]* y="([\d.]+)">(\w+)<', drawn)}
    assert at["raised"] - at["page"] == pytest.approx(11, abs=0.1)


@pytest.mark.parametrize(("highest", "top"), [(0.001, 0.05), (0.05, 0.05), (0.051, 0.1), (0.99, 1.0)])
def test_the_scale_fits_what_is_drawn(highest: float, top: float):
    assert charts.ceiling([(0, highest), (1, None)], 0.02) == top


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.083, "8.3 %"),
        (0.5, "50 %"),
        (0.0, "< 0.1 %"),
        (0.0009, "< 0.1 %"),
        (0.001, "0.1 %"),
        (1.0, "100 %"),
    ],
)
def test_risk_in_words(value: float, text: str):
    assert percent(value) == text


@pytest.mark.parametrize(
    ("minutes", "text"),
    [(0, "now"), (1, "1 min"), (89, "89 min"), (90, "2 h"), (47 * 60, "47 h"), (72 * 60, "3 d")],
)
def test_durations_in_words(minutes: int, text: str):
    assert ago(minutes * 60_000_000) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.1, "3.1"),
        (104.0, "104"),
        (38.25, "38.2"),
        (0.45, "0.45"),
        (0.0, "0"),
        (-0.001, "0"),
        (1250, "1250"),
    ],
)
def test_numbers_in_words(value: float, text: str):
    assert number_text(value) == text


def test_facts_in_words_come_from_the_concept_table():
    assert quantity_text("male", 0.0) == "Sex: female"
    assert quantity_text("medical_icu", 1.0) == "Intensive care unit: medical"
    assert quantity_text("map", 64.0) == "Mean arterial pressure 64 mmHg"
    assert quantity_text("spo2", 93.0) == "Oxygen saturation (pulse oximeter) 93%"
    assert plain_label("Triage category (1 most urgent to 5)") == ("Triage category", {})


def test_clock_times_carry_the_day_when_it_is_not_today():
    noon = int(datetime(2026, 3, 29, 12, tzinfo=UTC).timestamp() * 1e6)
    assert clock_text(noon - 2 * HOUR, noon, "Europe/Berlin") == "12:00"
    assert clock_text(noon - 12 * HOUR, noon, "Europe/Berlin") == "01:00"
    assert clock_text(noon - 25 * HOUR, noon, "Europe/Berlin") == "28 Mar 12:00"


def test_openapi_describes_what_is_read_and_needs_no_other_host(service: Any):
    described = service.get("/openapi.json").json()
    assert {"/v1/sepsis/score", "/v1/events", "/v1/risk", "/v1/alerts", "/v1/model", "/healthz"} <= set(
        described["paths"]
    )
    ref = described["paths"]["/v1/sepsis/score"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]["$ref"]
    assert ref == "#/components/schemas/ScoreRequest"
    schemas = described["components"]["schemas"]
    refs = set(re.findall(r'"#/components/schemas/(\w+)"', service.get("/openapi.json").text))
    assert refs <= set(schemas)
    assert {"ErrorAnswer", "EventIn", "EncounterIn"} <= refs
    varying = [path for path in described["paths"] if "{" in path]
    assert varying == ["/reports/beds/{day}"], "a day names nobody; identities stay out of paths"
