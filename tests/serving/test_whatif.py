"""What a score would be with another last value: as if that value had been sent, and only for what can be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete

from features.errors import DataError
from serving.explain import explain_prediction
from serving.store.tables import models
from serving.whatif import changes_of


@pytest.fixture
def logged(service: Any, patient: Any) -> tuple[Any, dict[str, Any]]:
    """A patient with lactate 3.0 at hours 0 and 3.4 at hour 4, and the logged answer at hour 5."""
    who = patient().rounds(range(6), heart_rate=110.0, lactate=3.0)
    answer = service.post("/v1/sepsis/score", who.score_request(5)).json()
    return who, dict(answer)


def what_if(service: Any, prediction_id: str, **changes: float) -> Any:
    return service.post("/v1/what-if", {"prediction_id": prediction_id, "changes": changes})


def test_a_changed_last_value_scores_as_if_it_had_been_sent(service: Any, logged: Any):
    who, answer = logged
    told = what_if(service, answer["prediction_id"], lactate=1.0).json()
    for event in who.events:
        if event["concept"] == "lactate" and event["time"] == who.at(4).isoformat():
            event["value"] = 1.0
    sent = service.post("/v1/sepsis/score", who.score_request(5)).json()
    assert (told["raw"], told["probability"]) == (sent["raw"], sent["probability"])
    assert told["given"] == answer["probability"]
    assert told["change"] == told["probability"] - told["given"] < 0
    assert "not what a treatment would do" in told["caution"]


def test_what_was_never_measured_is_measured_now(service: Any, logged: Any):
    who, answer = logged
    told = what_if(service, answer["prediction_id"], wbc=25.0, creatinine=4.0).json()
    who.measure(5, "wbc", 25.0).measure(5, "creatinine", 4.0)
    sent = service.post("/v1/sepsis/score", who.score_request(5)).json()
    assert told["raw"] == sent["raw"]
    assert {r["concept"]: r["value"] for r in told["reasons"]}["wbc"] == 25.0


def test_a_stored_prediction_can_be_asked_too_and_the_log_does_not_grow(service: Any, patient: Any):
    who = patient().rounds(range(6), heart_rate=125.0, lactate=6.0)
    said = service.send(who.news(5))["predictions"][0]
    before = len(service.state.store.prediction_features()[0])
    told = what_if(service, said["prediction_id"], lactate=1.0).json()
    assert told["probability"] < told["given"] == said["probability"]
    assert len(service.state.store.prediction_features()[0]) == before
    by_command = explain_prediction(service.settings, said["prediction_id"], changes_of(["lactate=1.0"]))
    assert by_command["what_if"]["raw"] == told["raw"]
    assert by_command["probability"] == said["probability"]


def test_a_model_that_is_gone_is_said_to_be_without_naming_folders(
    service: Any, logged: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    monkeypatch.setattr(
        service.state, "settings", replace(service.settings, sepsis_model=tmp_path, var=tmp_path)
    )
    with service.state.store.write() as connection:
        connection.execute(delete(models))
    answer = what_if(service, logged[1]["prediction_id"], lactate=1.0)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_gone")
    assert str(tmp_path) not in answer.text


@pytest.mark.parametrize(
    ("changes", "match"), [({"sodium": 140.0}, "does not read sodium"), ({"lactate": 900.0}, "between 0 and")]
)
def test_what_cannot_be_is_refused_with_a_remedy(
    service: Any, logged: Any, changes: dict[str, float], match: str
):
    answer = what_if(service, logged[1]["prediction_id"], **changes)
    assert answer.status_code in (400, 409, 422)
    assert match in answer.text


def test_unknown_predictions_and_broken_changes_are_refused(service: Any):
    assert what_if(service, "0" * 32, lactate=1.0).status_code == 404
    assert what_if(service, "0" * 32).status_code == 422
    with pytest.raises(DataError, match="CONCEPT=VALUE"):
        changes_of(["lactate"])
