from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from serving.rounds import STORED, score_stored
from serving.store import log

pytestmark = pytest.mark.both_stores


def about(patient: Any, **facts: Any) -> dict[str, Any]:
    """A request to score one patient at hour 6, its encounter changed; None leaves a field out."""
    body = patient.score_request(6, features=True)
    told = {k: v for k, v in (body["encounter"] | facts).items() if v is not None}
    return body | {"encounter": told}


def iso(who: Any, hour: float) -> str:
    return str(who.at(hour).isoformat())


def test_an_admission_after_the_prediction_is_as_if_nobody_had_said_it(service: Any, patient: Any):
    who = patient().rounds(range(7))
    ahead = service.post("/v1/sepsis/score", about(who, icu_admission_time=iso(who, 7))).json()
    silent = service.post("/v1/sepsis/score", about(who, icu_admission_time=None)).json()
    assert ahead["features"] == silent["features"]
    assert ahead["features"]["age_years__last"] == 71
    assert ahead["status"] == silent["status"] == "insufficient_data"
    assert ahead["reason"]["unknown"] == ["icu_admission_time"]
    assert ahead["ignored"][0]["field"] == "encounter.icu_admission_time"


@pytest.mark.parametrize("years", [1, 170])
def test_a_hospital_admission_far_after_the_icu_is_refused_and_reaches_no_score(
    service: Any, patient: Any, years: int
):
    who = patient().rounds(range(7))
    far = (who.at(0) + timedelta(days=365 * years)).isoformat()
    said = service.post("/v1/sepsis/score", about(who, hospital_admission_time=far)).json()
    silent = service.post("/v1/sepsis/score", about(who, hospital_admission_time=None)).json()
    assert said["features"] == silent["features"]
    assert said["probability"] == silent["probability"] is not None
    assert said["ignored"][0]["field"] == "encounter.hospital_admission_time"
    news = who.news(6)
    news["encounters"][0]["hospital_admission_time"] = far
    verdict = service.send(news)["encounters"][0]
    assert (verdict["verdict"], verdict["reason"]) == ("rejected", "future_time")
    assert verdict["field"] == "encounters[0].hospital_admission_time"


def test_a_hospital_admission_that_a_clerk_wrote_late_is_a_fact_of_the_icu_admission(
    service: Any, patient: Any
):
    who = patient().rounds(range(7))
    said = service.post("/v1/sepsis/score", about(who, hospital_admission_time=iso(who, 22))).json()
    assert said["features"]["hours_before_icu__last"] == -22
    assert said["ignored"] == []


def test_leaving_before_arriving_is_refused_however_it_is_sent(service: Any, patient: Any):
    who = patient().rounds(range(7))
    answer = service.post("/v1/sepsis/score", about(who, discharge_time=iso(who, -1)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "times_out_of_order")
    service.send(who.news(6))
    gone = {"encounter_id": who.encounter_id, "discharge_time": iso(who, -1)}
    verdict = service.send({"encounters": [gone]})["encounters"][0]
    assert (verdict["verdict"], verdict["reason"]) == ("rejected", "times_out_of_order")
    assert service.get("/v1/risk", encounter=who.encounter_id).status_code == 200


@pytest.mark.parametrize("field", ["encounter_class", "age_years", "icu_admission_time"])
def test_what_the_encounter_lacks_is_named(service: Any, patient: Any, field: str):
    who = patient().rounds(range(7), lactate=3.0)
    answer = service.post("/v1/sepsis/score", about(who, **{field: None})).json()
    assert (answer["status"], answer["probability"]) == ("insufficient_data", None)
    assert answer["reason"]["unknown"] == [field]
    assert answer["reason"]["remedy"] == f"{field}: send it."
    news = who.news(6)
    del news["encounters"][0][field]
    said = service.send(news)
    assert [p["status"] for p in said["predictions"]] == ["insufficient_data"]


def ill(patient: Any, name: str = "enc-1", hours: int = 7) -> Any:
    return patient(name).rounds(range(hours), heart_rate=125, lactate=6.0)


def fall_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the process dies between storing and scoring."""

    def die(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("serving.api.score_stored", die)


def test_what_was_stored_but_not_scored_is_scored_when_it_is_sent_again(
    service: Any, patient: Any, monkeypatch: pytest.MonkeyPatch
):
    who = ill(patient)
    with monkeypatch.context() as broken:
        fall_silent(broken)
        assert service.post("/v1/events", who.news(6)).status_code == 500
    assert service.state.store.predictions().empty
    again = service.send(who.news(6))
    assert again["counts"]["duplicate"] == len(who.events)
    assert [(p["status"], p["page"]) for p in again["predictions"]] == [("scored", True)]
    assert service.send(who.news(6))["predictions"] == []


def test_what_was_stored_but_not_scored_is_scored_by_the_next_process(
    make_service: Any, patient: Any, monkeypatch: pytest.MonkeyPatch
):
    first, who = make_service(), ill(patient)
    first.send(patient("ward", encounter_class="ward").rounds(range(7)).news(6))
    first.send(patient("done").rounds(range(7)).news(6))
    with monkeypatch.context() as broken:
        fall_silent(broken)
        first.post("/v1/events", who.news(6))
    first.state.store.close()
    table = make_service().state.store.predictions()
    assert table["encounter_id"].tolist() == ["done", "enc-1"]
    assert table["page"].tolist() == [False, True]


def test_whoever_leaves_intensive_care_is_not_paged_for_and_pages_anew_on_return(service: Any, patient: Any):
    who = ill(patient, hours=12)
    assert service.send(who.news(6))["predictions"][0]["page"]
    moved = {"encounter_id": who.encounter_id, "encounter_class": "ward"}
    said = service.send({"encounters": [moved], "as_of": iso(who, 7)})
    assert said["skipped"] == [{"encounter_id": who.encounter_id, "status": "out_of_scope"}]
    assert service.state.store.alerts()["ended_time"].tolist() == [who.at(7)]
    back = service.send(who.news(9, 6))
    assert back["predictions"][0]["page"]
    assert back["skipped"] == []
    assert service.state.store.alerts()["ended_time"].isna().tolist() == [False, True]


def test_an_announced_discharge_ends_the_alert_once_its_time_has_come(service: Any, patient: Any):
    who = ill(patient)
    service.send(who.news(6))
    left = who.at(6) + timedelta(minutes=3)
    service.send({"encounters": [{"encounter_id": who.encounter_id, "discharge_time": left.isoformat()}]})
    assert service.state.store.alerts()["ended_time"].isna().all()
    said = service.send({"as_of": iso(who, 7)})
    assert said["skipped"] == []
    assert service.state.store.alerts()["ended_time"].tolist() == [who.at(7)]


def test_who_left_is_said_to_have_ended(service: Any, patient: Any):
    who = patient().rounds(range(7))
    service.send(who.news(6))
    said = service.send({"encounters": [{"encounter_id": "enc-1", "discharge_time": iso(who, 6)}]})
    assert said["skipped"] == [{"encounter_id": "enc-1", "status": "encounter_ended"}]


def test_an_older_score_that_was_written_late_does_not_hide_a_newer_one(service: Any, patient: Any):
    who = ill(patient)
    newer = service.send(who.news(6))["predictions"][0]
    state, late = service.state, int(who.at(5).timestamp() * 1e6)
    score_stored(state, [who.encounter_id], late)
    with state.store.read() as connection:
        row = log.newest_predictions(connection, [who.encounter_id], STORED)[who.encounter_id]
    assert row["prediction_id"] == newer["prediction_id"]
    assert len(state.store.predictions()) == 2


def test_a_page_that_keeps_asking_writes_no_scores(service: Any, patient: Any):
    who = ill(patient)
    sent = service.send(who.news(6))["predictions"][0]

    def asked(minutes: float) -> dict[str, Any]:
        service.send({"as_of": iso(who, 6 + minutes / 60)})
        return dict(service.get("/v1/risk", encounter=who.encounter_id).json())

    assert [asked(m)["prediction_id"] for m in (0, 1, 5)] == [sent["prediction_id"]] * 3
    assert asked(5.5)["prediction_id"] != sent["prediction_id"]
    assert len(service.state.store.predictions()) == 2


def test_a_result_that_becomes_visible_makes_a_new_score_at_once(service: Any, patient: Any):
    who = ill(patient)
    soon = (who.at(6) + timedelta(minutes=2)).isoformat()
    who.measure(6, "lactate", 1.0, available_time=soon)
    service.send(who.news(6))
    before = service.get("/v1/risk", encounter=who.encounter_id).json()
    service.send({"as_of": soon})
    after = service.get("/v1/risk", encounter=who.encounter_id).json()
    assert after["prediction_time"] > before["prediction_time"]
    assert after["probability"] < before["probability"]


def test_a_fact_that_is_taken_back_is_in_no_score_that_is_given_again(service: Any, patient: Any):
    who = ill(patient).measure(6, "lactate", 9.0, source_id="L1")
    service.send(who.news(6))
    before = service.get("/v1/risk", encounter=who.encounter_id).json()
    worse = {"concept": "lactate", "time": iso(who, 6), "value": 9.0, "unit": "furlong", "source_id": "L1"}
    service.send({"events": [worse | {"encounter_id": who.encounter_id, "status": "corrected"}]})
    after = service.get("/v1/risk", encounter=who.encounter_id).json()
    assert after["prediction_id"] != before["prediction_id"]
