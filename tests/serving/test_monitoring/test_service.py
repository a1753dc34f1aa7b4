"""From the service's log to its page: one store, one bundle, nothing mocked."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from features.errors import DataError, SpecError
from serving.monitoring.result import heartbeat, last_result, write_atomically
from serving.monitoring.routes import standing
from serving.monitoring.run import monitor


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

    page = watched_service.get("/monitor")
    assert page.status_code == 200
    assert result.headline in page.text
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
