"""From the store to the ledger, and from a feed that is down to the score that says so."""

from __future__ import annotations

import json
from datetime import timedelta

import numpy as np
import pytest

from features.clock import HOUR_US
from serving.clock import to_us
from serving.monitoring.intake import LEDGER, read_on, watch
from serving.monitoring.ledger import Ledger
from serving.monitoring.run import examine, safely
from serving.notices import TOO_OLD_US, Notices
from serving.store import arrivals


@pytest.fixture
def told(make_service, profiled, patient):
    """A service that has heard of two patients for twelve hours."""
    service = make_service(SEPSIS_MODEL=str(profiled.folder))
    for k in (1, 2):
        news = patient(encounter_id=f"enc-{k}").rounds(range(12), heart_rate=80.0 + 15 * k)
        for hour in range(12):
            service.send(news.news(hour, since=hour - 1))
    return service


def test_the_ledger_reads_on_where_it_ended(told):
    store = told.client.app.state.wardcast.store
    with store.read() as connection:
        now = arrivals.newest(connection) + 1
        first = arrivals.received(connection, 1)
    whole = read_on(store, None, now)
    half = read_on(store, None, (first + now) // 2)
    rest = read_on(store, half, now)
    hours = (whole.since // HOUR_US, now // HOUR_US + 1)
    assert whole.counts(*hours).sum() > half.counts(*hours).sum() > 0
    assert rest.feeds == whole.feeds
    assert np.array_equal(rest.counts(*hours), whole.counts(*hours))
    assert rest.seq == whole.seq
    assert {source for source, _, _ in whole.feeds} == {"WARDCAST"}


def test_a_ledger_of_another_store_is_begun_anew(told):
    store = told.client.app.state.wardcast.store
    with store.read() as connection:
        now = arrivals.newest(connection) + 1
    stranger = Ledger.empty(now - HOUR_US).reach(now, 10**9)
    assert read_on(store, stranger, now).feeds


def test_the_scheduled_look_leaves_ledger_and_notices(told):
    said = watch(told.settings, told.client.app.state.wardcast.now())
    home = told.settings.var / "monitor"
    assert said == "0 feeds down, 0 clocks off, 1 findings"  # too young to know what is usual
    assert Ledger.load(home / LEDGER).feeds
    assert json.loads((home / "feeds.json").read_text())["down"] == []
    assert "enc-" not in (home / LEDGER).read_bytes().decode("latin-1")


def test_a_score_says_which_of_its_feeds_is_down(tmp_path):
    notices, now = Notices(tmp_path), 10**15
    assert notices.of("ICU", {"lactate"}, now) == []
    down = [{"concept": "lactate", "site": "ICU", "since": now - HOUR_US}]
    late = [{"site": "ICU", "since": now - HOUR_US}]
    (tmp_path / "feeds.json").write_text(json.dumps({"now": now, "down": down, "late": late}))
    assert [(n["code"], n["concept"]) for n in notices.of("ICU", {"lactate"}, now)] == [
        ("feed_down", "lactate"),
        ("clock_skew", None),
    ]
    assert [n["code"] for n in notices.of("ICU", {"map"}, now)] == ["clock_skew"]
    assert notices.of("Ward 3", {"lactate"}, now) == []
    assert notices.of("ICU", {"lactate"}, now + TOO_OLD_US + 1) == []  # nobody has looked since
    (tmp_path / "feeds.json").write_text("{")
    assert notices.of("ICU", {"lactate"}, now) == []


def test_the_risk_answer_has_its_notices(told):
    state = told.client.app.state.wardcast
    with state.store.read() as connection:
        ward = arrivals.read(connection, 0, arrivals.newest(connection) + 1)
        site = next(ward)["ward"].iloc[0]
    now = to_us(state.now())
    down = [{"concept": "heart_rate", "site": site, "since": now - HOUR_US}]
    home = told.settings.var / "monitor"
    home.mkdir(parents=True, exist_ok=True)
    (home / "feeds.json").write_text(json.dumps({"now": now, "down": down, "late": []}))
    answer = told.get("/v1/risk", encounter="enc-1").json()
    assert [n["code"] for n in answer["notices"]] == ["feed_down"]


def test_a_check_that_breaks_is_a_finding_and_says_no_value():
    def broken():
        raise ValueError("patient 4711")

    (finding,) = safely("everything", broken)
    assert (finding.kind, finding.severity) == ("check_failed", "watch")
    assert "4711" not in finding.what


def test_arrivals_explain_what_the_inputs_show(ward, watched, tmp_path):
    broken = ward()
    broken.frame[broken.level("lactate")] = np.nan
    logged = broken.logged()
    until = logged.attempts["prediction_time"].max().to_pydatetime()
    more = {"since": until - timedelta(days=7), "until": until, "folder": tmp_path, "ran_at": until}
    before = examine(logged, watched, evidently=False, **more)
    assert any("lactate__last" in f.features for f in before.findings)
    (came,) = safely("x", lambda: [before.findings[0].__class__(
        kind="feed_down", severity="alarm", what="", where="", certainty="", action="", features=("lactate",)
    )])  # fmt: skip
    after = examine(logged, watched, evidently=False, came=[came], **more)
    assert [f.kind for f in after.findings if "lactate" in str(f.features)] == ["feed_down"]


def test_what_makes_scores_doubtful_is_said_by_unit_and_not_for_ever(tmp_path):
    notices, now = Notices(tmp_path), 10**15
    assert notices.degraded(None, now) == []
    down = [{"concept": c, "site": "ICU", "since": now - 9} for c in ("lactate", "map")]
    (tmp_path / "feeds.json").write_text(json.dumps({"now": now, "down": down, "late": []}))
    about = {"kind": "k", "where": "w", "since": None}
    alarms = [about | {"what": "one", "units": ["ICU"]}, about | {"what": "all", "units": []}]
    (tmp_path / "alarms.json").write_text(json.dumps({"now": now, "alarms": alarms}))
    silent = "Nothing comes any more of: lactate, map."
    assert [d["what"] for d in notices.degraded("ICU", now)] == [silent, "one", "all"]
    assert [d["what"] for d in notices.degraded(None, now)] == [silent, "one", "all"]
    assert [d["what"] for d in notices.degraded("Ward 3", now)] == ["all"]
    assert [d["what"] for d in notices.degraded("ICU", now + 2 * TOO_OLD_US)] == ["one", "all"]
    assert notices.degraded("ICU", now + 27 * TOO_OLD_US) == []
    (tmp_path / "alarms.json").write_text("{")
    assert [d["what"] for d in notices.degraded("Ward 3", now)] == []
