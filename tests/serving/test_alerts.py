from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.clock import micros
from features.errors import ConfigError
from models.decision import AlertPolicy, pages
from serving.alert_replay import replay

pytestmark = pytest.mark.both_stores


def stream(service: Any, who: Any, hours: range) -> list[dict[str, Any]]:
    """Send a patient hour by hour; what was predicted each time."""
    told = []
    for hour in hours:
        told += service.send(who.news(hour, hour - 1))["predictions"]
    return told


def rising_and_falling(patient: Any, name: str = "enc-1") -> Any:
    """Lactate and heart rate go up, down, and up again."""
    who = patient(name).rounds(range(30))
    course = [1, 1, 1, 4, 6, 6, 6, 2, 1, 1, 1, 1, 5, 7, 7, 7, 7, 7, 1, 1, 1, 1, 1, 1, 6, 6, 6, 6, 1, 1]
    for hour, lactate in enumerate(course):
        who.measure(hour, "lactate", float(lactate))
    for event in who.events:
        if event["concept"] == "heart_rate":
            event["value"] = 75.0 + 9 * course[int(who._hour(event))]
    return who


def test_the_service_pages_exactly_as_the_batch_rule_does(service: Any, patient: Any):
    told = stream(service, rising_and_falling(patient), range(2, 30))
    log = service.state.store.predictions()
    batch = pages(
        np.zeros(len(log), dtype=np.int64), micros(log["prediction_time"]), log["probability"].to_numpy(),
        AlertPolicy.from_dict(service.state.bundles["sepsis"].alert_policy),
    )  # fmt: skip
    assert log["page"].tolist() == batch.tolist() == [t["page"] for t in told]
    assert 2 <= batch.sum() < log["alert"].sum()
    assert (log["alert"] == (log["probability"] >= 0.08)).all()


def test_an_alert_is_raised_once_ends_and_is_raised_again(service: Any, patient: Any):
    who = rising_and_falling(patient)
    stream(service, who, range(2, 30))
    alerts = service.state.store.alerts()
    assert len(alerts) == service.state.store.predictions()["page"].sum()
    assert alerts["ended_time"].notna().all()
    assert (alerts["ended_time"] > alerts["raised_time"]).all()
    assert set(alerts["reason"]) <= {"threshold", "risen"}
    answer = service.get("/v1/alerts", since=who.at(0).isoformat()).json()["alerts"]
    assert [a["alert_id"] for a in answer] == alerts["alert_id"].tolist()[::-1]
    assert answer[0]["raised_time"].endswith("Z")


def test_the_memory_of_alerts_survives_a_restart(make_service: Any, patient: Any, tmp_path: Any):
    who = rising_and_falling(patient)
    whole = stream(make_service(VAR=str(tmp_path / "whole")), who, range(2, 30))
    first = make_service()
    parts = stream(first, who, range(2, 6))
    first.state.store.close()
    parts += stream(make_service(), who, range(6, 30))
    assert [p["page"] for p in parts] == [p["page"] for p in whole]
    assert [p["probability"] for p in parts] == [p["probability"] for p in whole]


def test_patients_do_not_disturb_each_other(make_service: Any, patient: Any, tmp_path: Any):
    alone = stream(make_service(VAR=str(tmp_path / "alone")), rising_and_falling(patient, "a"), range(2, 20))
    service = make_service()
    b, c = rising_and_falling(patient, "b"), patient("c").rounds(range(30), lactate=1.0)
    together = []
    for hour in range(2, 20):
        one, two = b.news(hour, hour - 1), c.news(hour, hour - 1)
        news = one | {k: one[k] + two[k] for k in ("encounters", "events")}
        together += [p for p in service.send(news)["predictions"] if p["encounter_id"] == "b"]
    same = ("probability", "page", "alert", "status")
    assert [[p[k] for k in same] for p in together] == [[p[k] for k in same] for p in alone]


def test_leaving_ends_the_alert_and_the_scoring(service: Any, patient: Any):
    who = rising_and_falling(patient)
    stream(service, who, range(2, 6))
    assert service.state.store.alerts()["ended_time"].isna().sum() == 1
    gone = {"encounters": [{"encounter_id": "enc-1", "discharge_time": who.at(6).isoformat()}]}
    said = service.send(gone | {"as_of": who.at(6).isoformat()})
    assert said["predictions"] == []
    assert service.state.store.alerts()["ended_time"].tolist()[-1] == who.at(6)
    answer = service.get("/v1/risk", encounter="enc-1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "encounter_ended")


def test_acknowledging_names_the_owner_and_keeps_every_answer(service: Any, patient: Any):
    stream(service, rising_and_falling(patient), range(2, 6))
    alert = service.get("/v1/alerts").json()["alerts"][0]
    assert alert["acknowledged_by"] is None
    first = service.post("/v1/alerts/acknowledge", {"alert_id": alert["alert_id"], "outcome": "acted"}).json()
    assert first["acknowledged_by"] == "local"
    again = service.post(
        "/v1/alerts/acknowledge", {"alert_id": alert["alert_id"], "outcome": "dismissed", "comment": "known"}
    )
    assert again.json()["acknowledged_time"] == first["acknowledged_time"]
    with service.state.store.read() as connection:
        answers = connection.exec_driver_sql("select outcome, comment from feedback order by seq").all()
    assert [tuple(a) for a in answers] == [("acted", None), ("dismissed", "known")]
    table = service.state.store.alerts()
    assert table.set_index("alert_id")["acknowledged_by"].dropna().to_dict() == {alert["alert_id"]: "local"}


def test_news_about_others_than_adult_intensive_care_scores_nobody(service: Any, patient: Any):
    for name, facts in {"child": {"age_years": 9}, "ward": {"encounter_class": "ward"}}.items():
        said = service.send(patient(name, **facts).rounds(range(3)).news(2))
        assert (said["scored"], said["predictions"]) == (0, [])
    assert service.state.store.predictions().empty
    answer = service.get("/v1/risk", encounter="child").json()
    assert (answer["status"], answer["probability"]) == ("out_of_scope", None)
    log = service.state.store.predictions()
    assert log[["status", "reason"]].values.tolist() == [["out_of_scope", "out_of_scope"]]


def test_asking_twice_at_one_moment_is_one_prediction(service: Any, patient: Any):
    who = patient().rounds(range(8), heart_rate=118, lactate=4.5)
    sent = service.send(who.news(7))["predictions"][0]
    first, second = (service.get("/v1/risk", encounter="enc-1").json() for _ in range(2))
    assert first == second
    assert first["prediction_id"] == sent["prediction_id"]
    assert first["probability"] == sent["probability"]
    assert first["explanation"]["reasons"]
    assert len(service.state.store.predictions()) == 1
    service.send(
        {
            "events": [
                {"encounter_id": "enc-1", "concept": "lactate", "time": who.at(6).isoformat(), "value": 1.0}
            ]
        }
    )
    assert service.get("/v1/risk", encounter="enc-1").json()["prediction_id"] != sent["prediction_id"]


def test_sending_everything_again_changes_nothing(service: Any, patient: Any):
    who = patient().rounds(range(8), lactate=2.0)
    service.send(who.news(7))
    again = service.send(who.news(7))
    assert {e["verdict"] for e in again["events"] + again["encounters"]} == {"duplicate"}
    assert again["predictions"] == []
    assert len(service.state.store.predictions()) == 1
    assert len(service.state.store.events(["enc-1"], who.at(7))) == len(who.events)


@pytest.mark.parametrize("calls", [1, 3, 8])
def test_how_news_is_cut_into_calls_does_not_matter(make_service: Any, patient: Any, calls: int):
    service = make_service()
    who = patient().rounds(range(8), lactate=2.0)
    body = who.news(7)
    for k in range(calls):
        service.send(body | {"events": body["events"][k::calls]})
    answer = service.get("/v1/risk", encounter="enc-1").json()
    single = service.post("/v1/sepsis/score", who.score_request(7)).json()
    assert (answer["probability"], answer["raw"]) == (single["probability"], single["raw"])


def test_a_replay_of_stored_history_gives_the_same_alerts(service: Any, patient: Any, tmp_path: Path):
    """Through a rise, a discharge that is withdrawn, another that stands, and a move out of the model's scope."""
    who, moved = rising_and_falling(patient), rising_and_falling(patient, "enc-2")
    stream(service, who, range(2, 8))
    left = {"encounters": [who.encounter | {"discharge_time": who.at(8).isoformat()}]}
    service.send(left | {"as_of": who.at(8.5).isoformat()})
    service.send({"encounters": [who.encounter | {"discharge_time": None}], "as_of": who.at(8.6).isoformat()})
    stream(service, who, range(9, 30))
    service.send(left | {"as_of": who.at(30).isoformat()})
    moved.events = [e | {"time": (who.at(40 + moved._hour(e))).isoformat()} for e in moved.events]
    stream(service, moved, range(42, 55))
    service.send(
        {"encounters": [moved.encounter | {"encounter_class": "ward"}], "as_of": who.at(55).isoformat()}
    )
    stream(service, moved, range(56, 70))
    got = replay(service.settings)
    assert got.alike
    assert len(got.raised) >= 5
    assert {who for who, _, _ in got.raised} == {"enc-1", "enc-2"}
    rules = tmp_path / "rules.toml"
    rules.write_text("[rules]\nsnooze_h = 100\nreraise = 900\nrelease = 0.01\n", encoding="utf-8")
    quiet = replay(service.settings, rules)
    assert len(quiet.replayed) < len(quiet.raised) == len(got.raised)
    assert "100 quiet hours" in quiet.summary()
    assert "enc-" not in quiet.summary()


def test_a_replay_without_scores_says_so(service: Any):
    with pytest.raises(ConfigError, match="scored nobody"):
        replay(service.settings)
