from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Connection, delete, event, select, text, update

from features.clock import UTC_US
from features.concepts import loader
from features.errors import DataError
from features.windows import Window, build
from serving.store import audit, people
from serving.store.store import Store
from serving.store.tables import SCHEMA_VERSION, events, predictions, schema_version
from serving.store.tables import audit as audit_table

pytestmark = pytest.mark.both_stores
KEY = "0f" * 32


def test_a_store_of_another_schema_says_so(store_of: Callable[[Path], str], tmp_path: Path):
    url = store_of(tmp_path)
    store = Store.open(url, KEY)
    with store.write() as connection:
        connection.execute(update(schema_version).values(version=99))
    store.close()
    with pytest.raises(DataError, match=f"schema 99, this version reads schema {SCHEMA_VERSION}"):
        Store.open(url, KEY)


def test_what_was_written_is_there_for_the_next_process(tmp_path: Path, service: Any, patient: Any):
    service.send(patient().rounds(range(4)).news(3))
    second = Store.open(service.settings.store_url, service.settings.store_key)
    assert len(second.events(["enc-1"], patient().at(3))) == 24
    second.close()


def test_a_transaction_that_fails_leaves_nothing(service: Any):
    def half_done() -> None:
        with service.state.store.write() as connection:
            audit.record(connection, audit.Act("a", "admin", "x", "done"), 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_done()
    with service.state.store.read() as connection:
        assert connection.execute(select(audit_table)).all() == []


def test_the_course_of_a_stay_is_read_without_its_results(service: Any, patient: Any):
    """A year in hospital has a handful of moves among its results: reading them must not cost the year."""
    service.send(patient().rounds(range(4)).news(3))
    asked = list[tuple[str, Any]]()

    def note(_: Connection, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        asked.append((statement, parameters))

    with service.state.store.read() as connection:
        event.listen(connection, "before_cursor_execute", note)
        people.courses(connection, ["enc-1"])
        event.remove(connection, "before_cursor_execute", note)
        sqlite = connection.dialect.name == "sqlite"
        if not sqlite:  # so small a table would be read whole
            connection.execute(text("set local enable_seqscan = off"))
        [(statement, parameters)] = asked
        how = "explain query plan " if sqlite else "explain "
        plan = connection.exec_driver_sql(how + statement, parameters).all()
    assert "events_of_course" in str(plan)


def test_the_store_tells_what_was_known_then(service: Any, patient: Any):
    """Lactate 4.1, drawn at hour 2, shown at hour 3, corrected at hour 6 to 1.4: each hour has its own truth."""
    who = patient().rounds(range(8))
    who.measure(2, "lactate", 4.1, available_time=who.at(3).isoformat(), source_id="lab-9")
    service.send(who.news(3))
    who.events.clear()
    who.measure(
        2, "lactate", 1.4, available_time=who.at(6).isoformat(), source_id="lab-9", status="corrected"
    )
    service.send(who.news(6))
    store = service.state.store

    def lactates(hour: float) -> list[float]:
        known = store.events(["enc-1"], who.at(hour))
        return known.loc[known["concept"] == "lactate", "numeric_value"].tolist()

    assert lactates(2.9) == []
    assert lactates(3) == [4.1]
    assert lactates(5.9) == [4.1]
    assert lactates(6) == [4.1, 1.4]
    with store.read() as connection:
        rows = connection.execute(select(events.c.raw_value).where(events.c.source_id == "lab-9")).all()
    assert [r[0] for r in rows] == [4.1, 1.4]


def test_a_result_without_its_own_time_shows_after_the_declared_delay_but_no_later_than_it_came(
    service: Any, patient: Any
):
    """concepts.csv: lactate shows some minutes after it is drawn, a heart rate at once."""
    delay = loader.concepts()["lactate"].available_after_min / 60
    assert 0 < delay < 2
    early = patient().measure(1, "lactate", 3.0).measure(1, "heart_rate", 90.0)
    assert [v["verdict"] for v in service.send(early.news(1 + delay / 4))["events"]] == ["accepted"] * 2
    late = patient().measure(2, "lactate", 4.0)
    assert service.send(late.news(5))["events"][0]["verdict"] == "accepted"
    assert service.send(late.news(6))["events"][0]["verdict"] == "duplicate"
    known = service.state.store.events(["enc-1"], patient().at(5)).set_index(["concept", "time"])
    shown = known["available_time"].xs("lactate")
    assert shown[pd.Timestamp(patient().at(1))] == patient().at(1 + delay / 4)
    assert shown[pd.Timestamp(patient().at(2))] == patient().at(2 + delay)
    assert known["available_time"].xs("heart_rate").tolist() == [patient().at(1)]


def test_visits_hold_only_what_was_known_at_the_moment(service: Any, patient: Any):
    def visit(hour: float, **facts: Any) -> None:
        times = {k: patient().at(v).isoformat() if k.endswith("_time") else v for k, v in facts.items()}
        body = {"encounters": [{"encounter_id": "ed-1", **times}], "as_of": patient().at(hour).isoformat()}
        assert service.send(body)["encounters"][0]["verdict"] == "accepted"

    visit(
        0,
        encounter_class="ed",
        arrival_time=0.0,
        arrival_mode="ambulance",
        age_years=80.0,
        sex="male",
        unit="ED",
    )
    visit(2, decision_time=2.0, specialty="cardiology")
    visit(4, admission_time=4.0, encounter_class="ward", unit="W1")
    at = {h: service.state.store.visits(patient().at(h)) for h in (-1, 0, 3, 4)}
    assert len(at[-1]) == 0
    first = at[0].iloc[0]
    assert (first["arrival_mode"], first["unit"], first["specialty"]) == ("ambulance", "ED", None)
    assert pd.isna(first["decision_time"])
    assert at[3].iloc[0]["decision_time"] == patient().at(2)
    assert pd.isna(at[3].iloc[0]["admission_time"])
    last = at[4].iloc[0]
    assert (last["unit"], last["specialty"], last["age_years"]) == ("W1", "cardiology", 80.0)
    assert last["arrival_time"] == patient().at(0)


def test_null_takes_a_fact_back_and_silence_keeps_it(service: Any, patient: Any):
    who = patient()
    service.send(
        {
            "encounters": [who.encounter | {"discharge_time": who.at(5).isoformat()}],
            "as_of": who.at(5).isoformat(),
        }
    )
    service.send(
        {"encounters": [{"encounter_id": "enc-1", "discharge_time": None}], "as_of": who.at(6).isoformat()}
    )
    row = service.state.store.encounters(who.at(6)).iloc[0]
    assert pd.isna(row["discharge_time"])
    assert (row["age_years"], row["subject_id"], row["unit"]) == (71.0, "person of enc-1", "ICU-A")
    before = service.state.store.encounters(who.at(5.5)).iloc[0]
    assert before["discharge_time"] == who.at(5)


def test_the_log_comes_back_as_tables(service: Any, patient: Any):
    who = patient().rounds(range(10), lactate=2.0)
    for hour in range(2, 10):
        service.send(who.news(hour, hour - 1))
    store, bundle = service.state.store, service.state.bundles["sepsis"]
    table = store.predictions()
    assert table["status"].tolist() == ["scored"] * 8
    assert table["prediction_time"].tolist() == [who.at(h) for h in range(2, 10)]
    assert str(table["probability"].dtype) == "float64"
    about, matrix = store.prediction_features(who.at(4), who.at(7), bundle.model_id)
    assert about["prediction_time"].tolist() == [who.at(h) for h in (4, 5, 6)]
    assert about.columns.tolist() == ["prediction_id", "prediction_time", "unit", "site"]
    assert (matrix.shape, matrix.dtype.name) == ((3, len(bundle.feature_names)), "float32")
    assert matrix[:, bundle.feature_names.index("heart_rate__last")].tolist() == [86, 87, 88]
    assert store.predictions(model_id="another").empty
    empty, nothing = store.prediction_features(who.at(20), who.at(21))
    assert (len(empty), nothing.shape) == (0, (0, 0))


def test_features_of_two_models_do_not_mix(service: Any, patient: Any):
    service.send(patient().rounds(range(4)).news(3))
    with service.state.store.write() as connection:
        row = dict(connection.execute(select(predictions)).mappings().first() or {})
        row |= {"seq": None, "prediction_id": "f" * 32, "features": b"\x00" * 8, "model_id": "sepsis@other"}
        connection.execute(predictions.insert().values(**{k: v for k, v in row.items() if k != "seq"}))
    with pytest.raises(DataError, match="Name one model_id"):
        service.state.store.prediction_features()


def test_a_naive_instant_is_refused(service: Any, patient: Any):
    with pytest.raises(DataError, match="time zone"):
        service.state.store.encounters(patient().at(0).replace(tzinfo=None))


def test_a_character_that_a_store_cannot_keep_is_refused_before_it_gets_there(service: Any, patient: Any):
    """PostgreSQL knows no NUL in texts, and the tools of SQLite show them cut off."""
    who = patient().rounds(range(2))
    service.send(who.news(1))
    for field in ("text", "unit", "source_id", "code"):
        event = {
            "encounter_id": "enc-1",
            "code": "LOINC//8867-4",
            "time": who.at(1).isoformat(),
            "value": 80.0,
        }
        answer = service.post("/v1/events", {"events": [event | {field: "a\x00b"}]})
        assert (answer.status_code, answer.json()["error"]["fields"][0]["field"]) == (
            422,
            f"events[0].{field}",
        )
    comment = {"alert_id": "0" * 32, "comment": "a\x00b"}
    assert service.post("/v1/alerts/acknowledge", comment).status_code == 422
    for path in ("/v1/risk", "/v1/alerts", "/patient"):
        assert service.get(path, encounter="a\x00b").status_code == 422
    assert service.get("/v1/risk", encounter="Łukasz 日本 😀").status_code == 404


def test_texts_come_back_as_they_were(service: Any):
    """Also what no contract lets in, but a message of another format may have."""
    told = "a\x00b 'quoted' \\ %s {0} Łukasz 日本 😀 \x7f\t\n"
    with service.state.store.write() as connection:
        for k in range(8):  # often enough for a statement to be prepared
            audit.record(connection, audit.Act(told, "admin", f"{told}{k}", "done", [told]), k)
    with service.state.store.read() as connection:
        found = connection.execute(select(audit_table.c.action).where(audit_table.c.actor == told)).scalars()
        assert list(found) == [f"{told}{k}" for k in range(8)]
    assert service.state.store.verify_audit() is None


def edit(connection: Any) -> None:
    connection.execute(update(audit_table).where(audit_table.c.seq == 2).values(actor="nobody"))


def drop_last(connection: Any) -> None:
    connection.execute(delete(audit_table).where(audit_table.c.seq == 4))


def drop_middle(connection: Any) -> None:
    connection.execute(delete(audit_table).where(audit_table.c.seq == 2))


def swap(connection: Any) -> None:
    for old, new in ((2, 99), (3, 2), (99, 3)):
        connection.execute(update(audit_table).where(audit_table.c.seq == old).values(seq=new))


@pytest.mark.parametrize(("tamper", "found"), [(edit, 2), (drop_last, 4), (drop_middle, 2), (swap, 2)])
def test_tampering_with_the_audit_is_found(service: Any, tamper: Callable[[Any], None], found: int):
    store = service.state.store
    for k in range(4):
        with store.write() as connection:
            audit.record(connection, audit.Act("dr", "viewer", "read", "done", [f"e{k}"]), k)
    assert store.verify_audit() is None
    with store.write() as connection:
        tamper(connection)
    assert store.verify_audit() == found


def test_two_writers_at_once_both_succeed(service: Any):
    from concurrent.futures import ThreadPoolExecutor

    def write(k: int) -> None:
        with service.state.store.write() as connection:
            audit.record(connection, audit.Act(f"w{k}", "admin", "x", "done"), k)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert service.state.store.verify_audit() is None
    assert service.state.now() - service.state.now() <= timedelta(0)


def lactates_read(service: Any, hour: float) -> tuple[float, float]:
    """Count and sum of the lactates that features see at an hour of the first patient."""
    known = service.state.store.events(["enc-1"], ADMITTED + timedelta(hours=hour))
    rows = pd.DataFrame({"encounter_id": ["enc-1"], "prediction_time": [ADMITTED + timedelta(hours=hour)]})
    rows = rows.astype({"prediction_time": UTC_US})
    count, total = build(known, rows, [Window.parse("lactate", s) for s in ("count", "sum")])[0].tolist()
    return count, 0.0 if count == 0 else round(total, 4)


ADMITTED = datetime(2026, 3, 1, 6, tzinfo=UTC)
Report = tuple[float, float | None, dict[str, Any]]
CORRECTED, DELETED = {"status": "corrected"}, {"status": "deleted"}
EARLY = (ADMITTED + timedelta(hours=2)).isoformat()
RETRACTIONS: dict[str, tuple[list[Report], list[float]]] = {
    "deleted": ([(2, 9.0, {}), (2, None, DELETED)], []),
    "corrected": ([(2, 9.0, {}), (2, 2.0, CORRECTED)], [2.0]),
    "corrected twice, to the smaller value": (
        [(2, 3.0, {}), (2, 9.0, CORRECTED), (2, 2.0, CORRECTED)],
        [2.0],
    ),
    "deleted and reinstated": ([(2, 9.0, {}), (2, None, DELETED), (2, 4.0, CORRECTED)], [4.0]),
    "deleted and sent again": ([(2, 9.0, {}), (2, None, DELETED), (2, 4.0, {})], [4.0]),
    "moved two hours earlier": ([(2, 9.0, {}), (0, 1.0, CORRECTED)], [1.0]),
    "deletion dated a minute before": ([(2, 9.0, {}), (2 - 1 / 60, None, DELETED)], []),
    "a correction that claims to be older": (
        [(2, 9.0, {}), (2, 2.0, CORRECTED | {"available_time": EARLY})],
        [2.0],
    ),
    "unknown unit": ([(2, 9.0, {}), (2, 2.0, CORRECTED | {"unit": "furlong"})], []),
    "impossible value": ([(2, 9.0, {}), (2, 9999.0, CORRECTED)], []),
    "unknown code": ([(2, 9.0, {}), (2, 2.0, CORRECTED | {"concept": None, "code": "LAB//none"})], []),
    "another concept": ([(2, 9.0, {}), (2, 100.0, CORRECTED | {"concept": "glucose"})], []),
    "another concept and back": (
        [(2, 9.0, {}), (2, 100.0, CORRECTED | {"concept": "glucose"}), (2, 3.0, CORRECTED)],
        [3.0],
    ),
    "unusable, then usable": (
        [(2, 9.0, {}), (2, 2.0, CORRECTED | {"unit": "furlong"}), (2, 2.0, CORRECTED)],
        [2.0],
    ),
    "final again with another value": ([(2, 9.0, {}), (2, 2.0, {})], [2.0]),
    "final again with an impossible value": ([(2, 9.0, {}), (2, 9999.0, {})], []),
    "preliminary, then final": ([(2, 9.0, {"status": "preliminary"}), (2, 2.0, {})], [2.0]),
    "preliminary after final": ([(2, 9.0, {}), (2, 2.0, {"status": "preliminary"})], [2.0]),
}


@pytest.mark.parametrize("name", list(RETRACTIONS))
@pytest.mark.parametrize("together", [False, True])
def test_what_the_source_takes_back_is_not_scored(service: Any, patient: Any, name: str, together: bool):
    """In calls of their own or in one, and without a word about when each report became available."""
    told, stand = RETRACTIONS[name]
    service.send(patient().rounds(range(4)).news(3))
    who = patient()
    for k, (hour, value, more) in enumerate(told):
        who.measure(hour, "lactate", value, source_id="L1")
        who.events[-1] = {k: v for k, v in (who.events[-1] | more).items() if v is not None}
        if not together:
            answer = service.send(who.news(4 + k / 10))["events"]
            assert [v["verdict"] for v in answer] == ["accepted"]
            who.events.clear()
    if together:
        service.send(who.news(4.5))
    assert lactates_read(service, 5) == (len(stand), sum(stand))
    logged = service.state.store.predictions()
    assert logged["prediction_time"].iloc[-1] > pd.Timestamp(patient().at(3.9))


def test_a_result_sent_again_with_another_value_says_what_it_did(service: Any, patient: Any):
    service.send(patient().rounds(range(4)).measure(2, "lactate", 9.0, source_id="L1").news(3))
    again = service.send(patient().measure(2, "lactate", 2.0, source_id="L1").news(4))
    verdict = again["events"][0]
    assert (verdict["verdict"], verdict["used"], verdict["reason"]) == ("accepted", True, "revised")
    assert "another" in verdict["remedy"]
    assert again["counts"] == {"accepted": 1, "duplicate": 0, "rejected": 0, "set_aside": 0}
    wrong = patient().measure(2, "lactate", 2.0, source_id="L1", status="corrected", unit="furlong")
    verdict = service.send(wrong.news(5))["events"][0]
    assert (verdict["used"], verdict["reason"]) == (False, "unit_unknown")
    assert "no longer used" in verdict["remedy"]
    assert lactates_read(service, 4.5) == (1, 2.0)
    assert lactates_read(service, 5) == (0, 0)
    repeated = service.send(wrong.news(6))["events"][0]
    assert repeated["verdict"] == "duplicate"


def test_results_of_one_panel_stand_side_by_side(service: Any, patient: Any):
    panel = patient().measure(2, "lactate", 3.0, source_id="P1").measure(2, "glucose", 100.0, source_id="P1")
    service.send(panel.news(3))
    service.send(patient().measure(2, "glucose", None, source_id="P1", status="deleted").news(4))
    assert lactates_read(service, 5) == (1, 3.0)
    service.send(
        {"encounters": [patient("enc-2").encounter], "events": [], "as_of": patient().at(5).isoformat()}
    )
    other = patient("enc-2").measure(2, "lactate", None, source_id="P1", status="deleted")
    service.send(other.news(5))
    assert lactates_read(service, 5) == (1, 3.0)
