"""What is done by the clock: when it is due, once, late but not too late, and whatever becomes of the others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from features.errors import ConfigError, DataError
from serving.schedule import Job, Schedule, daily, every, jobs_of, standing
from serving.settings import Settings

START = datetime(2026, 1, 12, 7, 50, tzinfo=UTC)


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def test_huddles_are_local_and_happen_once_on_the_days_clocks_change():
    due = daily(("08:00", "02:30"), "Europe/London")
    assert due(datetime(2026, 1, 12, 7, 59, tzinfo=UTC)) == datetime(2026, 1, 12, 8, tzinfo=UTC)
    assert due(datetime(2026, 7, 1, 2, tzinfo=UTC)) == datetime(2026, 7, 1, 7, tzinfo=UTC)
    for eve, times in (
        (datetime(2026, 3, 28, 12, tzinfo=UTC), 4),
        (datetime(2026, 10, 24, 12, tzinfo=UTC), 4),
    ):
        found, at = 0, due(eve)
        while at < eve + timedelta(days=2):
            found, at = found + 1, due(at)
        assert found == times


def test_a_rhythm_survives_a_restart():
    due = every(timedelta(minutes=15))
    assert due(START) == datetime(2026, 1, 12, 8, tzinfo=UTC)
    assert due(datetime(2026, 1, 12, 8, tzinfo=UTC)) == datetime(2026, 1, 12, 8, 15, tzinfo=UTC)


def made(var: Path, clock: Clock, work: Callable[[datetime], str], name: str = "beds") -> Schedule:
    return Schedule([Job(name, daily(("08:00",), "UTC"), work)], var, clock)


def test_a_job_is_done_once_when_due_and_told(tmp_path: Path):
    clock, done = Clock(), []
    schedule = made(tmp_path, clock, lambda due: (done.append(due), "written")[1])
    assert schedule.step() == []
    clock.now = datetime(2026, 1, 12, 8, 0, 3, tzinfo=UTC)
    assert schedule.step() == ["beds"]
    assert schedule.step() == []
    assert made(tmp_path, clock, done.append).step() == [], "a restart does not repeat it"
    assert done == [datetime(2026, 1, 12, 8, tzinfo=UTC)]
    told = standing(tmp_path)["beds"]
    assert (told["outcome"], told["said"]) == ("done", "written")
    assert datetime.fromisoformat(told["ran"]) == clock.now


def test_what_was_missed_by_minutes_is_made_up_for_and_what_was_missed_by_hours_is_not(tmp_path: Path):
    clock, done = Clock(), []
    first = made(tmp_path, clock, lambda due: str(done.append(due)))
    clock.now = datetime(2026, 1, 12, 8, 0, 1, tzinfo=UTC)
    first.step()
    clock.now = datetime(2026, 1, 13, 8, 40, tzinfo=UTC)
    made(tmp_path, clock, lambda due: str(done.append(due))).step()
    assert done == [datetime(2026, 1, day, 8, tzinfo=UTC) for day in (12, 13)]
    clock.now = datetime(2026, 1, 14, 9, 30, tzinfo=UTC)
    assert made(tmp_path, clock, lambda due: str(done.append(due))).step() == []


def test_after_days_without_power_only_the_newest_is_done(tmp_path: Path):
    clock, done = Clock(), []
    schedule = Schedule(
        [Job("feeds", every(timedelta(minutes=1)), lambda due: str(done.append(due)))], tmp_path, clock
    )
    clock.now = START + timedelta(days=3)
    schedule.step()
    assert done == [clock.now]


@pytest.mark.parametrize(
    ("error", "said"), [(DataError("No visit."), "No visit."), (ValueError("Jane Doe, 1950"), "ValueError")]
)
def test_a_job_that_fails_is_told_without_detail_of_anyone_and_stops_no_other(
    tmp_path: Path, error: Exception, said: str
):
    def fails(due: datetime) -> str:
        raise error

    clock = Clock()
    jobs = [
        Job("one", every(timedelta(hours=1)), fails),
        Job("two", every(timedelta(hours=1)), lambda due: "done"),
    ]
    schedule = Schedule(jobs, tmp_path, clock)
    clock.now += timedelta(hours=1)
    assert schedule.step() == ["one", "two"]
    assert standing(tmp_path)["one"] | {"outcome": "failed", "said": said} == standing(tmp_path)["one"]
    assert standing(tmp_path)["two"]["outcome"] == "done"


def test_a_file_of_another_kind_is_as_none(tmp_path: Path):
    (tmp_path / "schedule.json").write_text("[1]")
    assert standing(tmp_path) == {}
    (tmp_path / "schedule.json").write_text("{")
    assert standing(tmp_path) == {}


def test_the_settings_say_what_is_done(tmp_path: Path):
    def of(**env: str) -> Settings:
        return Settings.from_env(
            {"WARDCAST_VAR": str(tmp_path)} | {f"WARDCAST_{k}": v for k, v in env.items()}
        )

    with_huddles = of(
        HUDDLES="16:00, 08:00,08:00", SMTP="smtps://mail.example.org", MAIL_FROM="a@b.org", MAIL_TO="c@d.org"
    )
    assert with_huddles.huddles == ("08:00", "16:00")
    assert "beds" in [job.name for job in jobs_of(with_huddles)]
    assert Settings.from_env(with_huddles.environment()) == with_huddles, "the kept process reads the same"
    for wrong in ("8", "25:00", "08:00;09:00"):
        with pytest.raises(ConfigError, match="WARDCAST_HUDDLES"):
            of(HUDDLES=wrong)
