"""What is PostgreSQL's alone: who is let in and over what, many writers at once, and a server that goes away.

What both stores promise is in test_store.py, test_alerts.py and test_rounds.py, which run on both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError

from features.errors import ConfigError
from serving.demo import run_demo
from serving.explain import repeat
from serving.settings import Settings
from serving.store import facts, postgres
from serving.store.engine import Database
from serving.store.messages import Arrival, MessageLog
from serving.store.store import Store
from serving.store.tables import events

on_postgresql = pytest.mark.parametrize("store_kind", ["postgresql"], indirect=True)


# ---- who is let in, and over what ------------------------------------------------------------------------------


@pytest.fixture
def parameters(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No connection parameter but those of the URL, and those that a test sets."""
    pytest.importorskip("psycopg")
    for name in ("PGHOST", "PGHOSTADDR", "PGSSLMODE", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "place",
    [
        "db.hospital.example/wardcast",
        "192.0.2.7/wardcast",
        "[2001:db8::1]/wardcast",
        "db.hospital.example/wardcast?sslmode=require",
        "db.hospital.example/wardcast?sslmode=verify-ca",
        "/wardcast?host=127.0.0.1:5432&host=db.hospital.example:5432",
        "127.0.0.1/wardcast?hostaddr=192.0.2.7",
        "/wardcast?host=db.hospital.example",
    ],
)
def test_another_machine_is_not_reached_without_verified_tls(parameters: pytest.MonkeyPatch, place: str):
    with pytest.raises(ConfigError, match="sslmode=verify-full&sslrootcert=") as said:
        postgres.open_engine(f"postgresql://ward:s3cret@{place}")
    assert "s3cret" not in str(said.value)


@pytest.mark.parametrize(
    "place",
    [
        "127.0.0.1/wardcast",
        "localhost/wardcast",
        "[::1]/wardcast",
        "/wardcast",
        "/wardcast?host=/run/postgresql",
        "db.hospital.example/wardcast?sslmode=verify-full",
    ],
)
def test_this_machine_and_verified_tls_are_fine(parameters: pytest.MonkeyPatch, place: str):
    postgres.open_engine(f"postgresql+psycopg://ward@{place}").dispose()


def test_a_host_from_the_environment_counts(parameters: pytest.MonkeyPatch):
    parameters.setenv("PGHOST", "db.hospital.example")
    with pytest.raises(ConfigError, match="another machine"):
        postgres.open_engine("postgresql:///wardcast")
    parameters.setenv("PGSSLMODE", "verify-full")
    postgres.open_engine("postgresql:///wardcast").dispose()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+psycopg2://ward:s3cret@localhost/x", "another driver than psycopg"),
        ("postgresql://ward:s3cret@localhost:port/x", "cannot be read"),
        ("postgresql://ward:s3cret@localhost/x?service=other", "names a service"),
        ("postgres://ward:s3cret@localhost/x", "must be sqlite:///PATH or postgresql"),
        ("mysql://ward:s3cret@localhost/x", "must be sqlite:///PATH or postgresql"),
    ],
)
def test_a_url_that_cannot_be_used_is_explained_without_its_password(url: str, said: str):
    with pytest.raises(ConfigError, match=said) as told:
        Store.open(url, None)
    assert "s3cret" not in str(told.value)


def test_without_its_driver_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"wardcast\[postgres\]"):
        Store.open("postgresql://localhost/x", None)


def test_a_postgresql_store_has_no_key(tmp_path: Path):
    made = Settings.from_env(
        {"WARDCAST_VAR": str(tmp_path), "WARDCAST_STORE_URL": "postgresql://ward:s3cret@localhost/x"}
    )
    assert made.store_key == ""
    assert not (tmp_path / "key").exists()
    assert "s3cret" not in repr(made)
    assert Settings.from_env(made.environment()) == made


def test_the_demo_keeps_out_of_a_store_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("WARDCAST_STORE_URL", "postgresql://localhost/wardcast")
    with pytest.raises(ConfigError, match="Unset WARDCAST_STORE_URL"):
        run_demo([], var=tmp_path / "demo", days=1, seed=1, keep_running=False)
    assert not (tmp_path / "demo").exists()


def test_who_is_not_let_in_is_told_why(postgres_server: Any, new_database: Callable[..., str]):
    good = postgres_server.url(new_database())
    for wrong, said in (
        (postgres_server.url("nothing_of_that_name"), "does not exist"),
        (good.replace("p%40ss", "wrong"), "password authentication failed"),
        (good.replace(f":{postgres_server.port}/", ":1/"), "Connection refused"),
    ):
        with pytest.raises(ConfigError, match=f"does not let us in.*{said}") as told:
            Store.open(wrong, None)
        assert "p@ss" not in str(told.value)


def test_a_database_that_is_not_ours_to_write_to_is_left_alone(
    postgres_server: Any, new_database: Callable[..., str]
):
    taken = new_database()
    postgres_server.run("create table alerts (theirs text); grant all on alerts to public", taken)
    with pytest.raises(ConfigError, match="database of its own"):
        Store.open(postgres_server.url(taken), None)
    closed = new_database()
    postgres_server.run(f"alter database {closed} owner to postgres", closed)
    with pytest.raises(ConfigError, match="grant create, usage on schema public"):
        Store.open(postgres_server.url(closed), None)
    narrow = new_database("encoding latin1 locale 'C'")
    with pytest.raises(ConfigError, match=r"encoding LATIN1.*createdb --encoding UTF8"):
        Store.open(postgres_server.url(narrow), None)
    reading = new_database()
    postgres_server.run(f"alter database {reading} set default_transaction_read_only to on")
    with pytest.raises(ConfigError, match="Name the primary"):
        Store.open(postgres_server.url(reading), None)


def test_it_opens_over_a_socket_and_over_verified_tls(postgres_server: Any, new_database: Callable[..., str]):
    name = new_database()
    Store.open(postgres_server.socket_url(name), None).close()
    if not postgres_server.has_tls:
        pytest.skip("no openssl here to make a certificate with")
    certificate = str(postgres_server.folder / "server.crt")
    store = Store.open(postgres_server.url(name, sslmode="verify-full", sslrootcert=certificate), None)
    with store.read() as connection:
        assert connection.execute(text("select ssl from pg_stat_ssl where pid = pg_backend_pid()")).scalar()
    store.close()


# ---- reading and writing at once -------------------------------------------------------------------------------


@on_postgresql
def test_a_reader_sees_one_moment_and_cannot_write(service: Any, patient: Any):
    who, store = patient().rounds(range(4)), service.state.store
    with store.read() as connection:
        before = facts.last_seq(connection)
        service.send(who.news(3))
        assert facts.last_seq(connection) == before == 0
        with pytest.raises(DBAPIError, match="read-only transaction"):
            connection.execute(events.delete())
    with store.read() as connection:
        assert facts.last_seq(connection) == len(who.events)


@on_postgresql
def test_an_error_tells_no_patients_data(service: Any, patient: Any):
    service.send(patient("Marple-4711").rounds(range(2)).news(1))
    with service.state.store.read() as connection:
        row = dict(connection.execute(select(events)).mappings().first() or {})
    row["seq"] = None
    with service.state.store.write() as connection, pytest.raises(DBAPIError) as told:
        connection.execute(events.insert().values(row))
    assert "Marple" not in str(told.value).partition("DETAIL")[0]


@on_postgresql
def test_whoever_waits_too_long_to_write_gives_up(service: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(postgres, "SESSION", {**postgres.SESSION, "lock_timeout": "100ms"})
    other = Store.open(service.settings.store_url, None)
    with other.write():
        with pytest.raises(ConfigError, match="pg_stat_activity"):
            Store.open(service.settings.store_url, None)
        with service.state.store.read() as connection:  # readers never wait
            assert facts.last_seq(connection) == 0
        third = Store(postgres_database(service.settings.store_url))
        with pytest.raises(OperationalError), third.write():
            pass
        third.close()
    other.close()


@on_postgresql
def test_who_writes_facts_keeps_no_sender_of_messages_waiting(service: Any):
    messages = MessageLog.open(service.settings.store_url, None)
    with service.state.store.write() as connection:
        connection.execute(events.delete())
        messages.add([Arrival(("LAB", "NORTH", "M1"), b"MSH|^~\\&|LAB|NORTH")], 0)
    assert [found.body for found in messages.pending(0, 10)] == [b"MSH|^~\\&|LAB|NORTH"]
    messages.close()


@on_postgresql
def test_a_writer_that_has_vanished_is_cut_off(service: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(postgres, "BEGIN_WRITING", postgres.BEGIN_WRITING.replace("60s", "200ms"))
    vanished, other = (Store.open(service.settings.store_url, None) for _ in range(2))

    def vanish() -> None:
        with vanished.write() as connection:
            connection.execute(events.delete())
            with other.write() as second:  # waits its turn, and gets it
                assert facts.last_seq(second) == 0
            connection.execute(events.delete())

    with pytest.raises(DBAPIError, match="idle-in-transaction timeout"):
        vanish()
    with vanished.write() as connection:
        assert facts.last_seq(connection) == 0
    vanished.close()
    other.close()


def postgres_database(url: str) -> Any:
    """A database that was laid out by somebody else already."""
    return Database(postgres.open_engine(url), postgres.READING)


@on_postgresql
def test_stores_that_are_opened_at_once_are_laid_out_once(store_of: Callable[[Path], str], tmp_path: Path):
    url, opened, wrong = store_of(tmp_path), [], []

    def open_one() -> None:
        try:
            MessageLog.open(url, None).close()
            opened.append(Store.open(url, None))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for store in opened:
        assert store.verify_audit() is None
        store.close()


WRITER = """
import json, os, sys
from starlette.testclient import TestClient
from serving.app import create_app
from serving.settings import Settings

settings = Settings.from_env()
client = TestClient(create_app(settings))
client.headers["Authorization"] = f"Bearer {settings.token}"
print("ready", flush=True)
sys.stdin.readline()
for body in json.load(open(sys.argv[1])):
    answer = client.post("/v1/events", json=body)
    assert answer.status_code == 200, answer.text
    print(json.dumps(answer.json()["counts"]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.both_stores
def test_two_processes_that_write_at_once_lose_nothing_and_double_nothing(
    make_service: Any, patient: Any, tmp_path: Path, repo: Path
):
    """Both send the same hours of three shared patients, and each the hours of one of its own."""
    service = make_service()
    shared = [patient(f"both-{k}").rounds(range(8), heart_rate=120, lactate=5.0) for k in range(3)]
    processes = []
    for name in ("a", "b"):
        own = patient(f"only-{name}").rounds(range(8), lactate=2.0)
        bodies = [who.news(hour, hour - 1) for hour in range(8) for who in (*shared, own)]
        (tmp_path / name).write_text(json.dumps(bodies))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WRITER, tmp_path / name], cwd=repo, text=True,
                env=os.environ | service.settings.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
        )  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = [process.communicate("go\n", timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    counts = [json.loads(line) for text_ in said for line in text_.splitlines()]
    assert sum(c["accepted"] for c in counts) == sum(len(who.events) for who in (*shared, own)) + len(
        own.events
    )
    store = service.state.store
    with store.read() as connection:
        total = connection.execute(select(func.count(), func.count(events.c.content_hash.distinct()))).one()
    assert tuple(total) == (sum(c["accepted"] for c in counts),) * 2
    assert store.verify_audit() is None
    alerts = store.alerts()
    assert alerts["ended_time"].isna().groupby(alerts["encounter_id"]).sum().max() == 1
    for identity in store.predictions()["prediction_id"]:
        assert repeat(store, service.settings, identity)["identical"]


@on_postgresql
def test_a_server_that_went_away_is_found_again(service: Any, patient: Any, postgres_server: Any):
    who = patient().rounds(range(6))
    service.send(who.news(2))
    name = service.settings.store_url.rpartition("/")[2]
    postgres_server.run(f"alter database {name} allow_connections false")
    postgres_server.run(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")
    ready = service.get("/readyz")
    assert (ready.status_code, ready.json()["problems"]) == (503, ["store_unavailable"])
    answer = service.post("/v1/events", who.news(5, 2))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    postgres_server.run(f"alter database {name} allow_connections true")
    assert service.get("/readyz").status_code == 200
    assert service.send(who.news(5))["counts"] == {
        "accepted": 18, "duplicate": 18, "rejected": 0, "set_aside": 0,
    }  # fmt: skip
