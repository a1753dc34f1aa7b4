"""Answers to alerts and cards: counted without anybody's name, and judged against the period before."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from serving.monitoring import people


def answers(share: float | None, n: int, overridden: float | None = None, cards: int = 0) -> dict[str, Any]:
    return {
        "acknowledged_share": share, "alerts": n, "override_share": overridden, "card_feedback": cards,
        "override_reasons": {"not relevant": 9}, "units": {"East": {"alerts": 30, "acknowledged_share": 0.0}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("now", "before", "kinds"),
    [
        (answers(0.6, 100), answers(0.65, 100), []),
        (answers(0.3, 100), answers(0.65, 100), ["alerts_unanswered"]),
        (answers(0.3, 10), answers(0.65, 100), []),
        (answers(0.15, 100), answers(None, 0), ["alerts_unanswered"]),
        (answers(0.6, 100, 0.7, 100), answers(0.6, 100, 0.4, 100), ["cards_overridden"]),
        (answers(None, 0), answers(None, 0), []),
    ],
)
def test_a_fall_and_a_floor_are_told(now: dict[str, Any], before: dict[str, Any], kinds: list[str]):
    found = people.check(now, before)
    assert [f.kind for f in found] == kinds
    if kinds == ["alerts_unanswered"]:
        assert found[0].where == "unit East"


def test_alerts_and_answers_are_counted_from_the_store(service, patient):
    who = patient("enc-77").rounds(range(6), heart_rate=125.0, lactate=6.0)
    service.send(who.news(5))
    (alert,) = service.get("/v1/alerts", since=who.at(0).isoformat()).json()["alerts"]
    body = {"alert_id": alert["alert_id"], "outcome": "dismissed", "comment": "enc-77 is well"}
    assert service.post("/v1/alerts/acknowledge", body).status_code == 200
    with service.client.app.state.wardcast.store.read() as connection:
        told = people.answers(connection, who.at(0), who.at(0) + timedelta(days=3650))
        early = people.answers(connection, who.at(0) - timedelta(days=2), who.at(0) - timedelta(days=1))
    assert (told["alerts"], told["acknowledged"], told["answers"]) == (1, 1, {"dismissed": 1})
    assert told["minutes_to_answer"] is not None
    assert "enc-77" not in str(told)
    assert (early["alerts"], early["acknowledged_share"]) == (0, None)
