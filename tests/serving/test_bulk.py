"""Many patients in one call get what each would get alone, on the road of objects and on the road of columns."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import stateless
from serving.arrow import ANSWER, STREAM
from serving.clock import to_us
from serving.explain import explain_prediction
from serving.schemas import ScoreRequest
from serving.stateless import understand

SAME = ("status", "probability", "raw", "alert", "used", "encounter_id", "model", "features")


def alone(service: Any, request: dict[str, Any]) -> dict[str, Any]:
    """One score from the route for one patient."""
    answer = service.post("/v1/sepsis/score", request)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def in_columns(service: Any, patients: list[dict[str, Any]]) -> pa.Table:
    """Scores of the same requests, sent as an Arrow stream."""
    answer = service.client.post(
        "/v1/sepsis/score/bulk",
        content=stream(rows(patients)),
        headers=service.headers | {"Content-Type": STREAM},
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == STREAM
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table.schema.equals(ANSWER)
    return table


def rows(patients: list[dict[str, Any]]) -> pa.Table:
    """Requests as a table."""
    told = []
    for patient in patients:
        row = {k: instant(v) for k, v in patient["encounter"].items()}
        row |= {"prediction_time": instant(patient["prediction_time"])}
        if isinstance(patient.get("explain", "auto"), bool):
            row["explain"] = patient["explain"]
        told.append(row | {"events": [{k: instant(v) for k, v in e.items()} for e in patient["events"]]})
    return pa.Table.from_pylist(told, pa.unify_schemas([pa.Table.from_pylist([t]).schema for t in told]))


def instant(value: Any) -> Any:
    """An ISO 8601 text as an instant."""
    return datetime.fromisoformat(value) if isinstance(value, str) and value[4:5] == "-" else value


def stream(table: pa.Table, **options: Any) -> bytes:
    """As an IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


@pytest.fixture
def patients(patient: Any) -> list[dict[str, Any]]:
    """A well one, a sick one, one with odd facts and ties, one nobody knows enough of, one out of scope."""
    odd = patient("odd").rounds(range(9), heart_rate=95.0, lactate=2.5)
    for value in (3.0, 9.0, 9.0, 4.5):  # ties, and a repetition
        odd.measure(8, "lactate", value)
    odd.measure(7, "heart_rate", 9999.0).measure(6, "spo2", 95.0, unit="furlong").measure(11, "sbp", 90.0)
    odd.measure(5, "lactate", 18.0, unit="mg/dL").measure(5, "teeth", 32.0).measure(12, "map", 60.0)
    odd.measure(4, "creatinine", None, text="high")
    return [
        patient("well").rounds(range(12), heart_rate=70.0, lactate=1.0).score_request(12),
        patient("sick").rounds(range(12), heart_rate=120.0, lactate=5.0).score_request(12, explain=True),
        odd.score_request(10, explain=True),
        patient("unknown", age_years=None).score_request(3),
        patient("ward", encounter_class="ward").rounds(range(4)).score_request(4, explain=False),
        patient("sick").rounds(range(12), heart_rate=120.0, lactate=5.0).score_request(5),
    ]


def test_in_bulk_each_gets_what_it_would_get_alone(service: Any, patients: list[dict[str, Any]]):
    asked = [p | {"features": True} for p in patients]
    answer = service.post("/v1/sepsis/score/bulk", {"patients": asked}).json()
    for one, told in zip(asked, answer["scores"], strict=True):
        single = alone(service, one)
        for name in (*SAME, "ignored", "explanation", "reason", "prediction_time"):
            assert told[name] == single[name], name
    assert {s["status"] for s in answer["scores"]} == {"scored", "insufficient_data", "out_of_scope"}
    log = service.state.store.predictions()
    assert len(set(log["prediction_id"])) == len(log) == 2 * len(patients)
    for told in answer["scores"]:
        assert explain_prediction(service.settings, told["prediction_id"])["identical"]


def test_columns_get_what_objects_get(service: Any, patients: list[dict[str, Any]]):
    table = in_columns(service, patients).to_pylist()
    for one, row in zip(patients, table, strict=True):
        single = alone(service, one)
        same = ("status", "probability", "raw", "alert", "used", "encounter_id", "threshold", "indeterminate")
        for name in (*same, "interval"):
            assert row[name] == single[name], name
        fields = [f"events[{i['event']}].{i['field']}" for i in row["ignored"]]
        assert (fields, [i["reason"] for i in row["ignored"]]) == (
            [i["field"] for i in single["ignored"]],
            [i["reason"] for i in single["ignored"]],
        )
        shown = single["explanation"]["reasons"] if single["explanation"] else []
        assert row["reasons"][: len(shown)] == [r["text"] for r in shown]
        assert explain_prediction(service.settings, row["prediction_id"])["identical"]


def test_one_that_cannot_be_read_keeps_nobody_from_a_score(service: Any, patients: list[dict[str, Any]]):
    late = patients[0] | {"prediction_time": "2199-01-01T00:00:00Z"}
    wrong = patients[1] | {"encounter": patients[1]["encounter"] | {"age_years": "old"}}
    sent = [patients[0], wrong, 7, late, patients[1]]
    scores = service.post("/v1/sepsis/score/bulk", {"patients": sent}).json()["scores"]
    assert [s["status"] for s in scores] == [
        "scored",
        "invalid_input",
        "invalid_input",
        "future_time",
        "scored",
    ]
    assert scores[1]["error"]["fields"][0]["field"] == "encounter.age_years"
    assert scores[1]["probability"] is None
    assert "old" not in str(scores[1])


def test_a_body_that_holds_no_patients_is_refused_whole(service: Any):
    for body, status in (({"patients": 3}, 422), ({"patients": [], "more": 1}, 422), ([], 422)):
        assert service.post("/v1/sepsis/score/bulk", body).status_code == status
    assert service.post("/v1/sepsis/score/bulk", {"patients": []}).json()["scores"] == []


def test_rows_that_cannot_be_read_say_so(service: Any, patients: list[dict[str, Any]]):
    nothing = patients[0] | {
        "events": [patients[0]["events"][0], {"concept": "spo2", "time": "2026-03-01T08:00:00Z"}]
    }
    old = patients[0] | {"encounter": patients[0]["encounter"] | {"age_years": 400.0}}
    table = in_columns(service, [nothing, patients[0], old]).to_pylist()
    assert [row["status"] for row in table] == ["invalid_input", "scored", "invalid_input"]
    assert table[0]["problem"].startswith("events[1].value: neither value nor text")
    assert table[2]["problem"].startswith("age_years")
    assert table[0]["probability"] is None


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        (lambda t: t.drop_columns(["encounter_id"]), 422, "invalid_input"),
        (lambda t: t.append_column("name", pa.array(["Jane"] * len(t))), 422, "invalid_input"),
        (lambda t: t.set_column(0, "encounter_id", pa.array([7] * len(t))), 422, "invalid_input"),
        (lambda t: t.set_column(t.num_columns - 1, "events", pa.array([1] * len(t))), 422, "invalid_input"),
        (lambda t: t.slice(0, 0), 200, None),
    ],
)
def test_a_table_of_another_shape_is_refused(
    service: Any, patients: list[dict[str, Any]], change: Any, status: int, code: str | None
):
    body = stream(change(rows(patients[:2])))
    answer = service.client.post(
        "/v1/sepsis/score/bulk", content=body, headers=service.headers | {"Content-Type": STREAM}
    )
    assert answer.status_code == status, answer.text
    assert status == 200 or answer.json()["error"]["code"] == code


def test_streams_that_are_broken_or_packed_are_refused(service: Any, patients: list[dict[str, Any]]):
    whole = stream(rows(patients[:2]))
    packed = stream(rows(patients[:2]), compression="lz4")
    rng = np.random.default_rng(5)
    damaged = [bytearray(whole) for _ in range(60)]
    for body in damaged:
        for at in rng.integers(0, len(body), 8):
            body[at] = rng.integers(0, 256)
    for body in (packed, b"", b"junk", whole[:200], whole[:-40], *map(bytes, damaged)):
        answer = service.client.post(
            "/v1/sepsis/score/bulk", content=body, headers=service.headers | {"Content-Type": STREAM}
        )
        assert answer.status_code in (200, 400, 413, 415, 422), answer.text
        if body is packed:
            assert answer.json()["error"]["code"] == "packed_arrow"


def _of_nulls(n: int) -> pa.Table:
    """Any number of events in no bytes at all."""
    events = pa.StructArray.from_arrays([pa.nulls(n)], ["time"])
    return pa.table(
        {"encounter_id": ["E"], "events": pa.ListArray.from_arrays(pa.array([0, n], pa.int32()), events)}
    )


def _of_labels(n: int, label: str) -> pa.Table:
    """A long text that a stream holds once and every row would hold for itself."""
    who = pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int8()), pa.array([label]))
    none = pa.array([[]] * n, pa.list_(pa.struct({"time": pa.timestamp("us", "UTC")})))
    return pa.table({"encounter_id": who, "events": none})


@pytest.mark.parametrize(
    ("table", "status"),
    [
        (_of_nulls(100_000_000), 422),
        (_of_labels(2_000, "x" * 1_000_000), 422),
        (_of_labels(10_001, "E"), 413),
        (_of_labels(3, "E"), 200),
    ],
)
def test_a_small_body_does_not_grow_large(service: Any, table: pa.Table, status: int):
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    answer = service.client.post(
        "/v1/sepsis/score/bulk", content=stream(table), headers=service.headers | {"Content-Type": STREAM}
    )
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert answer.status_code == status, answer.text
    assert held < 64 << 20
    assert pa.total_allocated_bytes() - before < 64 << 20


def test_more_patients_than_one_call_may_carry_are_refused_unread(service: Any):
    for patients in ([7] * 10_001, [7] * 30_000):
        answer = service.post("/v1/sepsis/score/bulk", {"patients": patients})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_patients")


def test_a_body_of_nothing_but_errors_is_counted_and_not_read(service: Any):
    error = service.post("/v1/events", {"events": [7] * 20_001}).json()["error"]
    assert error["code"] == "invalid_input"
    assert [f["problem"] for f in error["fields"]] == ["20,001 fields have problems"]


def test_a_label_that_a_dictionary_holds_twice_is_one(service: Any, patients: list[dict[str, Any]]):
    table = rows(patients[:1])
    events = table["events"].combine_chunks()
    names = events.values.field("concept").to_pylist()
    known = [*dict.fromkeys(names), *dict.fromkeys(names), None]
    codes = pa.array([known.index(n) + (k % 2) * len(set(names)) for k, n in enumerate(names)], pa.int32())
    twice = {f.name: events.values.field(f.name) for f in events.values.type}
    twice["concept"] = pa.DictionaryArray.from_arrays(codes, pa.array(known, pa.string()))
    told = pa.StructArray.from_arrays(list(twice.values()), list(twice))
    other = table.set_column(
        table.schema.get_field_index("events"), "events", pa.ListArray.from_arrays(events.offsets, told)
    )
    first, second = (
        service.client.post(
            "/v1/sepsis/score/bulk", content=stream(t), headers=service.headers | {"Content-Type": STREAM}
        )
        for t in (table, other)
    )
    raw = [pa.ipc.open_stream(a.content).read_all()["raw"].to_pylist() for a in (first, second)]
    assert raw[0] == raw[1] != [None]


_names = st.sampled_from(["heart_rate", "lactate", "sbp", "teeth"])
_event = st.fixed_dictionaries(
    {
        "concept": _names,
        "time": st.integers(0, 6).map(
            lambda h: (datetime(2026, 3, 1, 6, tzinfo=UTC) + timedelta(hours=h)).isoformat()
        ),
        "value": st.sampled_from([0.0, -0.0, 2.0, 3.0, 90.0, 9999.0]),
    },
    optional={
        "unit": st.sampled_from(["mmol/L", "mg/dL", "furlong"]),
        "available_time": st.sampled_from(["2026-03-01T09:00:00Z", "2026-03-01T11:00:00Z"]),
        "source_id": st.sampled_from(["a", "b", "c"]),
        "text": st.just("note"),
    },
)


@given(st.lists(_event, max_size=14))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_quick_road_gives_the_bits_of_the_road_of_the_store(bundle: Any, events: list[dict[str, Any]]):
    seen: set[str] = set()
    for event in events:  # reports of one fact take the road of the store anyway
        if event.get("source_id") in seen:
            del event["source_id"]
        seen.add(event.get("source_id", ""))
    asked = ScoreRequest.model_validate({"encounter": {"encounter_id": "E"}, "events": []}).model_copy(
        update={"events": [_body(e) for e in events]}
    )
    from serving.scoring import Scorer

    scorer, now = Scorer(bundle), to_us(datetime.fromisoformat("2026-03-01T10:30:00Z"))
    features = bundle.spec.features
    roads = []
    for stands_alone in (stateless._stand_alone, lambda events: False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stateless, "_stand_alone", stands_alone)
            told = understand(asked, features, now, now)
            flat = scorer.lay_out([told.encounter], told.readings, [told.when])
        ignored = {k: fault[:2] for k, fault in told.ignored.items()}
        roads.append((ignored, [a.tobytes() for a in (flat.start, flat.time, flat.available, flat.value)]))
    assert roads[0] == roads[1]


def _body(event: dict[str, Any]) -> Any:
    from serving.schemas import EventBody

    told = {k: instant(v) if k.endswith("time") else v for k, v in event.items()}
    return EventBody.model_validate(told)


def test_the_history_gives_past_scores_as_they_were_given(service: Any, patient: Any):
    who = patient().rounds(range(8), heart_rate=118.0, lactate=4.5)
    for hour in (2, 4, 7):
        service.send(who.news(hour))
    answer = service.get("/v1/risk/history", encounter="enc-1").json()
    assert answer["total"] == 3
    times = [s["prediction_time"] for s in answer["scores"]]
    assert times == sorted(times, reverse=True)
    assert all(s["reasons"] for s in answer["scores"] if s["alert"])
    part = service.get(
        "/v1/risk/history",
        encounter="enc-1",
        since=who.at(4).isoformat(),
        until=who.at(7).isoformat(),
        limit="1",
    ).json()
    assert [s["prediction_time"] for s in part["scores"]] == [times[1]]
    assert service.get("/v1/risk/history", encounter="nobody").json() == {
        "encounter_id": "nobody",
        "total": 0,
        "scores": [],
    }


def test_deeds_that_share_a_transaction_do_not_share_a_failure(service: Any):
    import threading

    store, done, failed = service.state.store, [], []
    gate = threading.Barrier(8)

    def act(k: int) -> None:
        gate.wait()

        def deed(connection: Any) -> int:
            connection.exec_driver_sql(f"insert into models values ('m{k}', 'there', {k})")
            if k % 4 == 0:
                raise ValueError(k)
            return k

        try:
            done.append(store.together(deed))
        except ValueError as error:
            failed.append(error.args[0])

    threads = [threading.Thread(target=act, args=(k,)) for k in range(8)]
    with store._database._turn:  # all of them come while one is being served
        for thread in threads:
            thread.start()
        threading.Event().wait(0.2)
    for thread in threads:
        thread.join()
    with store.read() as connection:
        kept = {
            name
            for (name,) in connection.exec_driver_sql("select model_id from models where model_id like 'm%'")
        }
    assert sorted(done) == [1, 2, 3, 5, 6, 7]
    assert sorted(failed) == [0, 4]
    assert kept == {f"m{k}" for k in done}
