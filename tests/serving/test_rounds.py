from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest


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
