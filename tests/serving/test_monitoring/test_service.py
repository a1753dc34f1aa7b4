"""From the service's log to its page: one store, one bundle, nothing mocked."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from features.errors import DataError, SpecError
from serving.monitoring.findings import Finding
from serving.monitoring.jobs import run_monitor
from serving.monitoring.result import heartbeat, last_result, write_atomically
from serving.monitoring.routes import standing
from serving.monitoring.run import monitor
from serving.monitoring.telling import tell
from serving.schedule import jobs_of
from serving.store.store import Store
from serving.store.tables import webhooks


@pytest.fixture
def watched_service(make_service, profiled, patient):
    """A service that has scored two patients for twelve hours."""
    service = make_service(SEPSIS_MODEL=str(profiled.folder))
    stays = [patient(encounter_id=f"enc-{k}").rounds(range(12), heart_rate=80.0 + 15 * k) for k in (1, 2)]
    for hour in range(12):
        for told in stays:
            service.send(told.news(hour, since=hour - 1))
    return service


def test_the_log_becomes_a_report_a_page_and_gauges(watched_service):
    result = monitor(watched_service.settings)
    home = watched_service.settings.var / "monitor"
    assert result.scored >= 20
    assert result.stays == 2
    assert result.until - result.since == timedelta(days=7)
    assert result.folder.parent == home / "runs"
    assert heartbeat(home)["status"] == "ok"
    assert last_result(home).findings == result.findings
    assert last_result(home).site == watched_service.settings.site

    page = watched_service.get("/monitor")
    assert page.status_code == 200
    assert result.headline in page.text
    assert f"Store of {result.site}." in page.text
    assert "enc-1" not in page.text
    assert "has not run" not in page.text
    said = watched_service.get("/v1/monitor").json()
    assert said["last"]["headline"] == result.headline
    assert said["notices"] == []
    assert "folder" not in said["last"]
    assert "wardcast_monitor_predictions_scored" in watched_service.get("/metrics").text

    report = watched_service.get("/monitor/evidently")
    assert report.status_code == 200
    assert report.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")


def test_outcomes_from_a_file_reach_page_gauges_and_json(watched_service, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("encounter_id,onset_time\nenc-1,\nenc-2,2026-03-01T09:00Z\n")
    result = monitor(watched_service.settings, labels=labels)
    assert (result.performance["stays"], result.performance["septic"]) == (2, 1)
    assert result.performance["outcomes"] == "the file labels.csv"
    assert result.people["alerts"] >= 0
    assert last_result(watched_service.settings.var / "monitor").performance["stays"] == 2
    page = watched_service.get("/monitor").text
    assert "Did the scores come true?" in page
    assert "blind to a change" in page
    assert "wardcast_monitor_matured_stays 2" in watched_service.get("/metrics").text
    labels.write_text("who,what\n1,2\n")
    with pytest.raises(DataError, match="onset_time"):
        monitor(watched_service.settings, labels=labels)


def test_without_signs_of_infection_outcomes_are_unknown_and_said_to_be(watched_service):
    result = monitor(watched_service.settings)
    unknown = next(f for f in result.findings if f.kind == "outcomes_unknown")
    assert "--labels" in unknown.action
    assert "figures" not in result.performance


def test_the_heartbeat_is_in_the_probes(watched_service):
    assert watched_service.get("/readyz").json()["jobs"]["monitor"] == {"ran": None, "outcome": "never"}
    assert 'wardcast_job_ok{job="monitor"} 0' in watched_service.get("/metrics").text
    monitor(watched_service.settings)
    assert watched_service.get("/readyz").json()["jobs"]["monitor"]["outcome"] == "done"
    text = watched_service.get("/metrics").text
    assert 'wardcast_job_ok{job="monitor"} 1' in text
    assert 'wardcast_job_age_seconds{job="monitor"}' in text


def test_receivers_are_told_of_an_alarm_once(watched_service, tmp_path):
    (tmp_path / "it.secret").write_text("5" * 40)
    (tmp_path / "it.secret").chmod(0o600)
    (tmp_path / "alerts.toml").write_text(
        '[[webhook]]\nname = "it"\nurl = "http://127.0.0.1:9/x"\nsecret = "it.secret"\nkinds = ["monitor.alarm"]\n'
    )
    settings = replace(watched_service.settings, alerts_file=tmp_path / "alerts.toml")
    store = Store.open(settings.store_url, settings.store_key, settings.site)
    alarm = Finding(
        "feed_silent", "alarm", "Lactate is silent.", "unit A", "certain", "Call.", features=("lactate",)
    )
    watch = replace(alarm, severity="watch", where="unit B")
    try:
        told = [tell(store, settings, found, source) for found, source in (
            ([alarm, watch], "run"), ([alarm], "feeds"), ([alarm], "run"), ([], "run"), ([], "feeds"), ([alarm], "run"),
        )]  # fmt: skip
        with store.read() as connection:
            bodies = [
                json.loads(b) for (b,) in connection.execute(select(webhooks.c.body).order_by(webhooks.c.seq))
            ]
    finally:
        store.close()
    assert told == [1, 0, 0, 0, 0, 1]
    assert [(b["kind"], b["site"]) for b in bodies] == [("monitor.alarm", settings.site)] * 2
    assert (bodies[0]["finding"], bodies[0]["where"], bodies[0]["features"]) == (
        "feed_silent",
        "unit A",
        ["lactate"],
    )


def test_the_schedule_runs_the_monitor_in_a_process_of_its_own(make_service, profiled):
    service = make_service(SEPSIS_MODEL=str(profiled.folder), MONITOR="05:00")
    assert [job.name for job in jobs_of(service.settings)] == ["monitor"]
    said = run_monitor(service.settings)
    assert said == last_result(service.settings.var / "monitor").headline
    broken = replace(service.settings, sepsis_model=service.settings.var)
    with pytest.raises(DataError, match="failed"):
        run_monitor(broken)


def test_before_the_first_run_the_page_says_so(make_service, profiled):
    service = make_service(SEPSIS_MODEL=str(profiled.folder))
    assert "has not run yet" in service.get("/monitor").text
    assert service.get("/v1/monitor").json()["last"] is None
    assert service.get("/monitor/evidently").status_code == 404


def test_the_page_needs_a_token(make_service, profiled):
    service = make_service(SEPSIS_MODEL=str(profiled.folder))
    assert service.client.get("/v1/monitor").status_code == 401


def test_an_empty_store_is_a_finding(make_service, profiled, tmp_path):
    service = make_service(SEPSIS_MODEL=str(profiled.folder))
    result = monitor(service.settings, output=tmp_path / "out")
    assert [f.kind for f in result.findings] == ["no_predictions", "feeds_unknown"]
    assert (tmp_path / "out" / "monitor.html").is_file()


def test_a_period_can_be_chosen_and_its_end_is_open(watched_service, tmp_path):
    result = monitor(
        watched_service.settings,
        output=tmp_path / "out",
        since="2026-03-01T08:00Z",
        until="2026-03-01T10:00Z",
    )
    assert result.since == datetime(2026, 3, 1, 8, tzinfo=UTC)
    assert result.attempts == 4
    with pytest.raises(DataError, match="is empty"):
        monitor(watched_service.settings, since="2026-03-01T10:00Z", until="2026-03-01T10:00Z")
    assert heartbeat(watched_service.settings.var / "monitor")["status"] == "failed"


def test_a_bundle_without_a_profile_says_what_to_do(make_service):
    service = make_service()
    with pytest.raises(SpecError, match="reference profile"):
        monitor(service.settings)
    assert "failed: Bundle" in service.get("/v1/monitor").json()["notices"][0]


def test_the_monitor_of_the_monitor(tmp_path):
    now = datetime(2026, 1, 12, 7, tzinfo=UTC)

    def beat(age: timedelta, status: str, **more: str) -> list[str]:
        started = (now - age).isoformat()
        write_atomically(
            tmp_path / "heartbeat.json", json.dumps({"started": started, "status": status, **more})
        )
        return standing(tmp_path, now)

    assert "has not run yet" in standing(tmp_path, now)[0]
    assert beat(timedelta(hours=25), "ok") == []
    assert "30 hours ago" in beat(timedelta(hours=30), "ok")[0]
    assert beat(timedelta(minutes=10), "running") == []
    assert "has not ended" in beat(timedelta(hours=3), "running")[0]
    assert "OSError" in beat(timedelta(hours=1), "failed", error="OSError")[0]
