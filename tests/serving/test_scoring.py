from __future__ import annotations

import json
import shutil
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.errors import ConfigError, DataError
from serving.explain import explain_prediction
from serving.store.tables import predictions


def score(service: Any, body: dict[str, Any]) -> dict[str, Any]:
    answer = service.post("/v1/sepsis/score", body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_septic_looking_patient_scores_above_a_well_one(service: Any, patient: Any):
    well = score(service, patient().rounds(range(12), lactate=1.0).score_request(12))
    ill = score(service, patient().rounds(range(12), heart_rate=118, lactate=4.5).score_request(12))
    assert well["status"] == ill["status"] == "scored"
    assert not well["alert"]
    assert well["probability"] < well["threshold"] <= ill["probability"]
    assert ill["alert"]
    assert well["explanation"] is None
    assert ill["explanation"]["reasons"]


def test_reasons_say_value_unit_time_change_and_direction(service: Any, patient: Any):
    who = (
        patient()
        .rounds(range(12), heart_rate=118)
        .measure(3, "lactate", 1.4)
        .measure(9.5, "lactate", 27.93, unit="mg/dL")
    )
    answer = score(service, who.score_request(12))
    told = {r["concept"]: r for r in answer["explanation"]["reasons"]}
    lactate = told["lactate"]
    assert lactate["text"].startswith("Lactate 3.1 mmol/L, up from 1.4, 15:30, ")
    assert lactate["text"].endswith("raises risk")
    assert (lactate["unit"], lactate["time"], lactate["direction"]) == (
        "mmol/L",
        "2026-03-01T15:30:00Z",
        "raises",
    )
    assert lactate["value"] == pytest.approx(3.1, abs=0.01)
    assert lactate["change"] == pytest.approx(1.7, abs=0.01)
    assert lactate["contribution"] > 0


def test_times_in_reasons_are_the_sites(make_service: Any, patient: Any):
    berlin = make_service(TIMEZONE="Europe/Berlin")
    who = patient().rounds(range(12), heart_rate=118).measure(9.5, "lactate", 4.0)
    reasons = score(berlin, who.score_request(12))["explanation"]["reasons"]
    assert any("Lactate 4 mmol/L, 16:30" in r["text"] for r in reasons)


def test_reasons_and_base_add_up_to_the_raw_score(service: Any, patient: Any):
    answer = score(service, patient().rounds(range(12), lactate=4.5).score_request(12, explain=True))
    why = answer["explanation"]
    total = why["base"] + sum(r["contribution"] for r in why["reasons"]) + why["others"]["contribution"]
    assert total == pytest.approx(answer["raw"], abs=1e-9)
    assert why["others"] == {"count": 0, "contribution": 0}
    brief = score(service, patient().rounds(range(12), heart_rate=118, lactate=4.5).score_request(12))
    why = brief["explanation"]
    assert len(why["reasons"]) == 6
    total = why["base"] + sum(r["contribution"] for r in why["reasons"]) + why["others"]["contribution"]
    assert total == pytest.approx(brief["raw"], abs=1e-9)


@pytest.mark.filterwarnings("ignore")  # the oracle's own imports warn
def test_reasons_are_those_of_shap(service: Any, patient: Any):
    """shap.TreeExplainer is the number from elsewhere; our groups are its values summed by concept."""
    import shap

    answer = score(
        service, patient().rounds(range(12), lactate=4.5).score_request(12, explain=True, features=True)
    )
    bundle = service.state.bundles["sepsis"]
    row = np.array([[np.nan if v is None else v for v in answer["features"].values()]], dtype=np.float32)
    explainer = shap.TreeExplainer(bundle.boosters["risk"])
    values = np.asarray(explainer.shap_values(row))[0]
    assert answer["explanation"]["base"] == pytest.approx(
        float(np.ravel(explainer.expected_value)[-1]), abs=1e-12
    )
    for reason in answer["explanation"]["reasons"]:
        mine = [k for k, n in enumerate(bundle.feature_names) if n.partition("__")[0] == reason["concept"]]
        assert reason["contribution"] == pytest.approx(values[mine].sum(), abs=1e-12)


def test_explain_can_be_asked_for_and_declined(service: Any, patient: Any):
    well = patient().rounds(range(12), lactate=1.0)
    ill = patient().rounds(range(12), heart_rate=118, lactate=4.5)
    assert score(service, well.score_request(12, explain=True))["explanation"]["reasons"]
    assert score(service, ill.score_request(12, explain=False))["explanation"] is None


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ({"age_years": 17.9}, "out_of_scope"),
        ({"age_years": 18.0}, "scored"),
        ({"encounter_class": "ed"}, "out_of_scope"),
        ({"encounter_class": "ward"}, "out_of_scope"),
        ({"age_years": None}, "insufficient_data"),
    ],
)
def test_who_cannot_be_scored_is_told_why(service: Any, patient: Any, facts: dict[str, Any], status: str):
    answer = score(service, patient(**facts).rounds(range(8)).score_request(8))
    assert answer["status"] == status
    if status != "scored":
        assert (answer["probability"], answer["raw"], answer["alert"]) == (None, None, False)
        assert answer["reason"]["code"] == status
        assert answer["reason"]["message"]


def test_vitals_that_are_too_old_do_not_count(service: Any, patient: Any):
    who = patient().rounds(range(4))
    assert score(service, who.score_request(3 + 8))["status"] == "scored"
    late = score(service, who.score_request(3 + 8 + 1))
    assert late["status"] == "insufficient_data"
    assert len(late["reason"]["missing"]) == 5


def test_repeating_a_vital_every_minute_leaves_the_score_unchanged(service: Any, patient: Any):
    """The spec resamples to the hour: a monitor sending each minute counts no more than a nurse writing hourly."""
    who = patient().rounds(range(12), heart_rate=118, lactate=4.5)
    plain = score(service, who.score_request(12, features=True))
    hourly = [e for e in who.events if e["concept"] == "heart_rate"]
    for event in hourly:
        hour = who._hour(event)
        for minute in range(1, 60):
            who.measure(hour - minute / 60, "heart_rate", event["value"])
    assert len(who.events) > 700
    again = score(service, who.score_request(12, features=True))
    assert again["features"] == plain["features"]
    assert again["probability"] == plain["probability"]


def test_the_same_fact_twice_counts_once(service: Any, patient: Any):
    who = patient().rounds(range(6))
    plain = score(service, who.score_request(6))
    who.events.extend(who.events[:3])
    again = score(service, who.score_request(6))
    assert [i["reason"] for i in again["ignored"]] == ["duplicate"] * 3
    assert again["probability"] == plain["probability"]


def test_the_order_of_events_does_not_matter(service: Any, patient: Any):
    who = patient().rounds(range(12), lactate=3.0)
    plain = score(service, who.score_request(12, features=True))
    np.random.default_rng(1).shuffle(who.events)
    assert score(service, who.score_request(12, features=True))["features"] == plain["features"]


CONCEPTS = ("heart_rate", "sbp", "map", "temperature", "lactate", "wbc")
MEASUREMENT = st.tuples(
    st.sampled_from(CONCEPTS),
    st.floats(0, 20),
    st.floats(0, 6),
    st.floats(21, 45),
    st.sampled_from(("final", "corrected")),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(MEASUREMENT, max_size=25), hour=st.floats(1, 20))
def test_what_becomes_available_later_changes_nothing(
    make_service: Any, patient: Any, rows: list[Any], hour: float
):
    service = _once(make_service)
    everything, told_so_far = patient().rounds(range(3)), patient().rounds(range(3))
    for k, (concept, time, delay, value, status) in enumerate(rows):
        shown = {
            "available_time": everything.at(time + delay).isoformat(),
            "source_id": f"s{k % 5}",
            "status": status,
        }
        everything.measure(time, concept, value, **shown)
        if max(everything.at(time), everything.at(time + delay)) <= everything.at(hour):
            told_so_far.measure(time, concept, value, **shown)
    full = score(service, everything.score_request(hour, features=True))
    known = score(service, told_so_far.score_request(hour, features=True))
    for name in ("features", "status", "probability", "raw"):
        assert full[name] == known[name]


_service: list[Any] = []


def _once(make_service: Any) -> Any:
    """One service for all examples of a property."""
    if not _service or _service[-1][0] is not make_service:
        _service.append((make_service, make_service()))
    return _service[-1][1]


def test_a_deleted_value_counts_until_it_was_deleted(service: Any, patient: Any):
    """Lactate of the wrong patient, seen at hour 4, taken back at hour 6."""
    who = patient().rounds(range(12), heart_rate=110)
    without = {h: score(service, who.score_request(h))["probability"] for h in (5, 6)}
    who.measure(4, "lactate", 5.0, source_id="lab-1")
    with_it = score(service, who.score_request(5))["probability"]
    who.measure(4, "lactate", None, source_id="lab-1", status="deleted", available_time=who.at(6).isoformat())
    assert score(service, who.score_request(5))["probability"] == with_it != without[5]
    assert score(service, who.score_request(6))["probability"] == without[6]
    for hour in (5, 6):
        known = [e for e in who.events if e.get("available_time", e["time"]) <= who.at(hour).isoformat()]
        stored = patient(events=known).news(hour)
        expected = {5: with_it, 6: without[6]}[hour]
        assert service.send(stored)["predictions"][0]["probability"] == expected


def test_a_logged_prediction_is_repeated_exactly(service: Any, patient: Any):
    who = patient().rounds(range(12), heart_rate=118, lactate=4.5)
    answer = score(service, who.score_request(12, explain=True, features=True))
    again = explain_prediction(service.settings, answer["prediction_id"])
    assert again["identical"]
    assert (again["probability"], again["raw"]) == (answer["probability"], answer["raw"])
    assert again["features"] == answer["features"]
    assert again["reasons"] == answer["explanation"]["reasons"]
    assert again["model"] == answer["model"] == service.state.bundles["sepsis"].model_id
    json.dumps(again, allow_nan=False)


def test_a_stored_prediction_is_repeated_as_it_was_known_then(service: Any, patient: Any):
    """Corrections, late results and changed facts that came after do not change what is explained."""
    who = patient().rounds(range(12), heart_rate=110)
    who.measure(4, "lactate", 4.8, source_id="lab-1")
    first = service.send(who.news(12))["predictions"][0]
    who.events.clear()
    who.measure(
        4, "lactate", 0.8, source_id="lab-1", status="corrected", available_time=who.at(12).isoformat()
    )
    who.measure(11.9, "heart_rate", 40.0)
    later = who.news(12) | {"encounters": [who.encounter | {"age_years": 35.0}]}
    second = service.send(later)["predictions"][0]
    assert second["probability"] != first["probability"]
    again = explain_prediction(service.settings, first["prediction_id"])
    assert again["probability"] == first["probability"]
    assert [r["value"] for r in again["reasons"] if r["concept"] == "lactate"] == [4.8]
    assert (
        explain_prediction(service.settings, second["prediction_id"])["probability"] == second["probability"]
    )


def test_a_prediction_that_does_not_come_out_the_same_is_an_error(service: Any, patient: Any):
    who = patient().rounds(range(12), lactate=4.5)
    identity = score(service, who.score_request(12))["prediction_id"]
    with service.state.store.write() as connection:
        connection.execute(predictions.update().values(raw=0.5))
    with pytest.raises(DataError, match="raw differ"):
        explain_prediction(service.settings, identity)
    with pytest.raises(DataError, match="No prediction has this identity"):
        explain_prediction(service.settings, "0" * 32)


def test_an_old_prediction_is_explained_by_its_own_model(service: Any, patient: Any, tmp_path: Any):
    identity = score(service, patient().rounds(range(12)).score_request(12))["prediction_id"]
    elsewhere = service.settings.with_sepsis_model(tmp_path / "no-model-here")
    assert explain_prediction(elsewhere, identity)["identical"]
    kept = service.settings.var / "models" / service.state.bundles["sepsis"].model_id
    assert (kept / "bundle.json").read_bytes() == (service.settings.sepsis_model / "bundle.json").read_bytes()
    with service.state.store.write() as connection:
        connection.exec_driver_sql("delete from models")
    assert explain_prediction(elsewhere, identity)["identical"]
    shutil.rmtree(kept)
    with pytest.raises(ConfigError, match="Set WARDCAST_SEPSIS_MODEL"):
        explain_prediction(elsewhere, identity)


def test_without_prediction_time_the_score_is_of_now(make_service: Any, patient: Any):
    service = make_service(CLOCK="wall")
    who = patient().rounds(range(4))
    before = service.state.now()
    answer = score(service, who.score_request(None))
    from datetime import datetime

    made = datetime.fromisoformat(answer["prediction_time"])
    assert before <= made <= service.state.now() + timedelta(seconds=1)
    assert answer["status"] == "insufficient_data"


def test_a_service_without_a_model_says_so_and_keeps_the_news(make_service: Any, patient: Any, tmp_path: Any):
    service = make_service(SEPSIS_MODEL=str(tmp_path / "nothing"))
    ready = service.get("/readyz")
    assert (ready.status_code, ready.json()["problems"]) == (503, ["model_missing"])
    answer = service.post("/v1/sepsis/score", patient().rounds(range(3)).score_request(3))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_missing")
    assert service.send(patient().rounds(range(3)).news(3))["counts"]["accepted"] == 18


def test_a_model_that_was_tampered_with_is_not_served(make_service: Any, bundle: Any, tmp_path: Any):
    copy = shutil.copytree(bundle.folder, tmp_path / "copy")
    (copy / "decision.json").write_text((copy / "decision.json").read_text().replace("0.08", "0.80"))
    service = make_service(SEPSIS_MODEL=str(copy))
    assert service.get("/readyz").json()["problems"] == ["model_hash_mismatch"]


@pytest.mark.parametrize(
    ("reports", "stands"),
    [
        ([(2, 9.0, {}), (2, None, {"status": "deleted"})], None),
        ([(2, 3.0, {}), (2, 9.0, {"status": "corrected"}), (2, 2.0, {"status": "corrected"})], 2.0),
        ([(2, 9.0, {}), (0, 1.0, {"status": "corrected"})], 1.0),
        ([(2, 9.0, {}), (2, None, {"status": "deleted"}), (2, 4.0, {"status": "corrected"})], 4.0),
        ([(2, 9.0, {}), (2, 2.0, {"status": "corrected", "unit": "furlong"})], None),
        ([(2, 9.0, {}), (2, 2.0, {})], 2.0),
    ],
)
def test_in_one_request_the_last_report_of_a_result_stands(
    service: Any,
    patient: Any,
    reports: list[tuple[float, float | None, dict[str, Any]]],
    stands: float | None,
):
    """Without a word about when each became available, and whether asked now or about an hour long past."""
    who = patient().rounds(range(6))
    for hour, value, more in reports:
        who.measure(hour, "lactate", value, source_id="L1", **more)
    answer = score(service, who.score_request(6, features=True, explain=True))
    assert answer["features"]["lactate__last"] == stands
    assert answer["features"]["lactate__delta"] is None
    told = explain_prediction(service.settings, answer["prediction_id"])
    assert told["probability"] == answer["probability"]
