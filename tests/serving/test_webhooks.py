"""Receivers are told of every alert, signed, until they have taken it, and nothing of the patient unless they may."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from features.errors import ConfigError
from serving import webhooks
from serving.alerting import Alerting
from serving.webhooks import Sender, sign, standing, verify

SECRET = "5" * 40


class Pager:
    """A receiver that answers as it is told to, and remembers what came."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.came: list[tuple[dict[str, str], bytes]] = []
        pager = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                pager.came.append((dict(self.headers), body))
                self.send_response(pager.answers.pop(0) if pager.answers else 204)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def pager() -> Iterator[Pager]:
    one = Pager()
    yield one
    one.server.shutdown()
    one.server.server_close()


def alerts_file(folder: Path, url: str, more: str = "", rules: str = "") -> str:
    """A file with one receiver, and its secret beside it."""
    (folder / "pager.secret").write_text(SECRET + "\n")
    (folder / "pager.secret").chmod(0o600)
    path = folder / "alerts.toml"
    path.write_text(f'{rules}\n[[webhook]]\nname = "pager"\nurl = "{url}"\nsecret = "pager.secret"\n{more}\n')
    return str(path)


def sick_then_gone(service: Any, patient: Any) -> dict[str, Any]:
    """One alert, acknowledged, and ended by the discharge."""
    who = patient("enc-77").rounds(range(6), heart_rate=125.0, lactate=6.0)
    service.send(who.news(5))
    alert = service.get("/v1/alerts", since=who.at(0).isoformat()).json()["alerts"][0]
    assert service.post("/v1/alerts/acknowledge", {"alert_id": alert["alert_id"]}).status_code == 200
    gone = who.news(8, 7)
    gone["encounters"][0] |= {"discharge_time": who.at(8).isoformat()}
    service.send(gone)
    return dict(alert)


def deliver(service: Any, now: list[int]) -> Sender:
    """A sender whose clock is ours."""
    receiver = service.state.alerting.receivers[0]
    return Sender(service.state.store, receiver, lambda: now[0])


def test_the_signature_is_the_documented_one():
    header = sign([b"key"], 1_700_000_000, b"{}")
    by_hand = hmac.new(b"key", b"1700000000.{}", hashlib.sha256).hexdigest()
    assert header == f"t=1700000000,v1={by_hand}"
    assert verify(b"key", header, b"{}", 1_700_000_299)
    assert verify(b"new", sign([b"key", b"new"], 5, b"{}"), b"{}", 5)
    for secret, body, seconds in ((b"other", b"{}", 5), (b"key", b"{ }", 5), (b"key", b"{}", 400)):
        assert not verify(secret, sign([b"key"], 5, b"{}"), body, seconds)
    for junk in ("", "t=,v1=", "t=x,v1=y", "v1=" + by_hand, "t=-5,v1=z"):
        assert not verify(b"key", junk, b"{}", 5)


@pytest.mark.both_stores
def test_each_step_of_an_alert_is_told_signed_and_without_the_patient(
    make_service: Any, patient: Any, pager: Pager, tmp_path: Path
):
    service = make_service(ALERTS_FILE=alerts_file(tmp_path, pager.url))
    alert = sick_then_gone(service, patient)
    now = [service.state.now_us()]
    sender = deliver(service, now)
    while sender.step():
        pass
    bodies = [json.loads(body) for _, body in pager.came]
    assert [b["kind"] for b in bodies] == ["alert.raised", "alert.acknowledged", "alert.ended"]
    assert {b["alert_id"] for b in bodies} == {alert["alert_id"]}
    for headers, body in pager.came:
        assert verify(SECRET.encode(), headers["Wardcast-Signature"], body, now[0] // 1_000_000)
        assert b"enc-77" not in body
        assert b"person" not in body
        assert set(json.loads(body)) == {
            "delivery_id", "kind", "alert_id", "reason", "link", "raised_time", "ended_time", "acknowledged_time",
        }  # fmt: skip
    path = bodies[0]["link"].removeprefix(service.settings.known_as)
    page = service.client.get(path, headers=service.headers)
    assert (page.status_code, page.headers["location"]) == (303, "/patient?encounter=enc-77")
    assert service.get("/alert", id="0" * 32).status_code == 404


def test_an_alert_that_another_replaces_is_told_to_have_ended(
    make_service: Any, patient: Any, pager: Pager, tmp_path: Path
):
    service = make_service(ALERTS_FILE=alerts_file(tmp_path, pager.url, rules="[rules]\nreraise = 1.01"))
    who = patient("enc-78").rounds(range(6), heart_rate=112.0, lactate=5.0)
    service.send(who.news(5))
    for hour in (6, 7, 8):
        who.measure(hour, "heart_rate", 100.0 + 8 * hour).measure(hour, "lactate", 2.0 * hour)
        who.measure(hour, "map", 95.0 - 6 * hour).measure(hour, "wbc", 3.0 * hour)
        service.send(who.news(hour, hour - 1))
    sender = deliver(service, [service.state.now_us()])
    while sender.step():
        pass
    told = [(json.loads(body)["kind"], json.loads(body)["alert_id"]) for _, body in pager.came]
    raised = [alert for kind, alert in told if kind == "alert.raised"]
    assert len(raised) > 1
    assert [alert for kind, alert in told if kind == "alert.ended"] == raised[:-1]


def test_who_may_know_is_told_whom_it_is_about(make_service: Any, patient: Any, pager: Pager, tmp_path: Path):
    more = 'identify = true\nkinds = ["alert.raised"]'
    service = make_service(ALERTS_FILE=alerts_file(tmp_path, pager.url, more))
    sick_then_gone(service, patient)
    sender = deliver(service, [service.state.now_us()])
    assert [sender.step(), sender.step()] == [True, False]
    told = json.loads(pager.came[0][1])
    assert (told["encounter_id"], told["unit"]) == ("enc-77", "ICU-A")
    assert told["reasons"]


@pytest.mark.both_stores
def test_what_is_not_taken_is_sent_again_over_a_restart_and_given_up_after_a_day(
    make_service: Any, patient: Any, pager: Pager, tmp_path: Path
):
    given = {"ALERTS_FILE": alerts_file(tmp_path, pager.url, 'kinds = ["alert.raised"]')}
    first = make_service(**given)
    sick_then_gone(first, patient)
    now = [first.state.now_us()]
    pager.answers = [503, 302]
    assert deliver(first, now).step()
    first.state.store.close()
    service = make_service(**given)  # what was not taken waits in the store
    sender = deliver(service, now)
    assert not sender.step()  # not yet
    now[0] += 5_000_000
    assert sender.step()  # a redirection is not followed
    now[0] += 9_999_999
    assert not sender.step()
    now[0] += 1
    assert sender.step()
    assert len({json.loads(body)["delivery_id"] for _, body in pager.came}) == 1
    with service.state.store.read() as connection:
        assert [(r["state"], r["messages"]) for r in standing(connection)] == [("delivered", 1)]
    pager.server.shutdown()
    pager.server.server_close()  # nobody answers any more
    with service.state.store.write() as connection:
        webhooks.put(connection, service.state.alerting.receivers, "alert.raised", {}, now[0])
    tries = 0
    while sender.step() or tries < 100:
        now[0] += 3_600_000_000
        tries += 1
    with service.state.store.write() as connection:
        told = {r["state"]: r for r in standing(connection)}
        assert told["dead"]["problem"] == "ConnectError"
        said = webhooks.summary(list(told.values()))
        assert re.search(
            r"1  dead +pager, since .*, last problem ConnectError\n +1  delivered  pager, since [^,]+Z$", said
        )
        assert webhooks.revive(connection, now[0]) == 1


@pytest.mark.both_stores
def test_what_was_said_is_emptied_after_the_days_that_the_receiver_sets(
    make_service: Any, pager: Pager, tmp_path: Path
):
    service = make_service(ALERTS_FILE=alerts_file(tmp_path, pager.url, "keep_days = 2"))
    (receiver,), now = service.state.alerting.receivers, [service.state.now_us()]
    with service.state.store.write() as connection:
        webhooks.put(connection, [receiver], "alert.raised", {"alert_id": "a"}, now[0])
    assert deliver(service, now).step()
    with service.state.store.write() as connection:
        webhooks.put(connection, [receiver], "alert.raised", {"alert_id": "b"}, now[0])
        two_days = 2 * 24 * 3600 * 1_000_000
        assert webhooks.prune(connection, receiver, now[0] + two_days) == 0, "kept for two whole days"
        assert webhooks.prune(connection, receiver, now[0] + two_days + 1) == 1, (
            "what waits is still to be said"
        )
        assert webhooks.prune(connection, receiver, now[0] + two_days + 1) == 0
        rows = connection.exec_driver_sql("select state, body from webhooks order by seq").all()
        assert [state for state, _ in rows] == ["delivered", "waiting"]
        assert rows[0][1] == ""
        assert "alert_id" in rows[1][1]
        connection.exec_driver_sql("update webhooks set state = 'dead'")
        assert webhooks.revive(connection, now[0]) == 1, "what is empty is not said again"


def test_a_message_being_sent_is_left_to_its_sender(make_service: Any, pager: Pager, tmp_path: Path):
    service = make_service(ALERTS_FILE=alerts_file(tmp_path, pager.url))
    now = [service.state.now_us()]
    with service.state.store.write() as connection:
        webhooks.put(connection, service.state.alerting.receivers, "alert.raised", {}, now[0])
        assert deliver(service, now)._claim(connection, now[0]) is not None
    assert not deliver(service, now).step()
    now[0] += 60_000_000  # it died
    assert deliver(service, now).step()


def test_the_site_may_change_the_rules_but_not_the_threshold(
    make_service: Any, bundle: Any, pager: Pager, tmp_path: Path
):
    service = make_service(ALERTS_FILE=alerts_file(tmp_path, pager.url, rules="[rules]\nsnooze_h = 2.0"))
    policy = service.state.alerting.policy(bundle)
    assert policy.to_dict() == bundle.alert_policy | {"snooze_h": 2.0}
    for rules, what in (("[rules]\nthreshold = 0.1", "threshold"), ("[rules]\nreraise = 1.0", "reraise")):
        with pytest.raises(ConfigError, match=what):
            make_service(ALERTS_FILE=alerts_file(tmp_path, pager.url, rules=rules))


@pytest.mark.parametrize(
    ("url", "more", "what"),
    [
        ("http://pager.example.org/", "", "https"),
        ("https://pager.example.org/", 'kinds = ["alert.lost"]', "alert.raised"),
        ("https://pager.example.org/", "retries = 3", "retries"),
    ],
)
def test_a_receiver_that_cannot_be_told_safely_is_refused(tmp_path: Path, url: str, more: str, what: str):
    from serving.settings import Settings

    given = {"WARDCAST_VAR": str(tmp_path / "v"), "WARDCAST_ALERTS_FILE": alerts_file(tmp_path, url, more)}
    with pytest.raises(ConfigError, match=what):
        Alerting.of(Settings.from_env(given))


def test_a_weak_or_open_secret_is_refused(tmp_path: Path):
    from serving.settings import Settings

    given = {
        "WARDCAST_VAR": str(tmp_path / "v"),
        "WARDCAST_ALERTS_FILE": alerts_file(tmp_path, "https://a.example/"),
    }
    settings = Settings.from_env(given)
    (tmp_path / "pager.secret").write_text("short")
    with pytest.raises(ConfigError, match="at least 32"):
        Alerting.of(settings)
    (tmp_path / "pager.secret").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Alerting.of(settings)
