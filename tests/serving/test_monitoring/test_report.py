"""The run, its files, and Evidently behind its one door."""

from __future__ import annotations

import json
import re
import socket

import numpy as np
import pandas as pd
import pytest

from serving.monitoring import run as run_module
from serving.monitoring.evidently_report import choose, drift_report, unlinked, usable
from serving.monitoring.metrics import gauges
from serving.monitoring.result import MonitorResult, last_result
from serving.monitoring.run import Logged, reference_sample


def broken_ward(ward):
    """A week in which lactate fell silent, creatinine changed its unit, a column emptied, and one came as text."""
    w = ward(150)
    w.frame[w.level("lactate")] = np.nan
    w.frame[w.level("creatinine")] *= 88.4
    w.frame["map__last"] = (
        w.frame["map__last"].map(lambda v: None if np.isnan(v) else f"{v:.1f}").astype(object)
    )
    w.frame["calcium__count_24h"] = np.int8(4)
    return w


@pytest.fixture
def connections(monkeypatch):
    """Every address that something tried to reach while the test ran."""
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def test_a_broken_week_still_gets_its_report_and_nothing_leaves(ward, run, connections):
    result = run(broken_ward(ward).logged(out_of_scope=50), evidently=True)
    assert connections == []
    assert {"feed_silent", "unit_wrong", "column_text"} <= {f.kind for f in result.findings}
    assert result.evidently["error"] is None
    assert result.evidently["left_out"]["lactate__last"] == "no value in the predictions"
    assert "creatinine__last" in result.evidently["drifted"]
    assert "heart_rate__last" not in result.evidently["drifted"]
    assert [p.name for p in result.artifacts] == [
        "monitor.html",
        "monitor.json",
        "evidently.html",
        "evidently.json",
    ]
    assert all(p.stat().st_size for p in result.artifacts)
    evidently = (result.folder / "evidently.html").read_text()
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?https?:", evidently)
    page = (result.folder / "monitor.html").read_text()
    assert 'href="evidently.html"' in page
    assert not re.findall(r"(?:src|href)=[\"']?https?:", page)


def test_the_page_and_the_json_say_the_same(ward, run):
    result = run(broken_ward(ward).logged())
    plain = json.loads((result.folder / "monitor.json").read_text())
    page = (result.folder / "monitor.html").read_text()
    again = MonitorResult.from_dict(plain)
    assert again.findings == result.findings
    assert (again.headline, again.since, again.folder) == (result.headline, result.since, result.folder)
    assert result.headline in page
    assert "mg/dL" in page


def test_no_predictions_yet_is_told_on_the_page(ward, run):
    nothing = ward().logged()
    result = run(Logged(nothing.attempts.iloc[:0], nothing.features.iloc[:0]), evidently=True)
    assert [f.kind for f in result.findings] == ["no_predictions"]
    assert result.evidently["html"] is None
    assert "No prediction was scored" in (result.folder / "monitor.html").read_text()


def test_everything_out_of_scope_is_told_too(ward, run):
    logged = ward(20).logged(out_of_scope=30)
    attempts = logged.attempts[logged.attempts["status"] != "scored"].reset_index(drop=True)
    result = run(Logged(attempts, logged.features.iloc[:0]))
    assert [f.kind for f in result.findings] == ["no_predictions"]
    assert result.not_scored == {"out_of_scope": 30}


def test_findings_survive_a_report_engine_that_fails(ward, run, monkeypatch):
    def fail(*args, **kwargs):
        raise AttributeError("heart rate of patient 7 is 3")

    monkeypatch.setattr(run_module, "drift_report", fail)
    result = run(broken_ward(ward).logged(), evidently=True)
    failed = next(f for f in result.findings if f.kind == "report_failed")
    assert "AttributeError" in failed.what
    assert "patient 7" not in json.dumps(result.to_dict())
    assert "feed_silent" in {f.kind for f in result.findings}


def test_no_patient_is_named_anywhere(ward, run):
    result = run(broken_ward(ward).logged(insufficient_data=30))
    written = "".join(p.read_text() for p in result.artifacts) + gauges(result) + result.summary()
    assert "stay-" not in written
    assert not re.search(r"\bp\d+\b", (result.folder / "monitor.json").read_text())


def test_predictions_of_another_bundle_are_mentioned_and_left_alone(ward, run):
    logged = ward().logged()
    result = run(Logged(logged.attempts, logged.features, others=12))
    assert [f.what[:14] for f in result.findings] == ["12 predictions"]


def test_metrics_are_finite_and_artifacts_exist(ward, run):
    result = run(broken_ward(ward).logged())
    assert all(np.isfinite(v) for v in result.metrics.values())
    assert result.metrics["findings_alarm"] >= 3
    assert result.metrics["missing.lactate__last"] == 1
    assert all(re.fullmatch(r"[\w.]+", name) for name in result.metrics)


def test_gauges_are_prometheus_text_with_bounded_labels(ward, run, reference):
    from prometheus_client.parser import text_string_to_metric_families

    families = {
        f.name: f
        for f in text_string_to_metric_families(gauges(run(broken_ward(ward).logged(out_of_scope=9))))
    }
    labels = {s.labels["feature"] for s in families["wardcast_monitor_feature_missing_share"].samples}
    assert labels == set(reference.names)
    silent = [
        s for s in families["wardcast_monitor_feature_psi"].samples if s.labels["feature"] == "lactate__last"
    ]
    assert silent == []  # not known is not nought
    assert families["wardcast_monitor_predictions_not_scored"].samples[0].labels == {"reason": "out_of_scope"}
    assert families["wardcast_monitor_last_run_timestamp_seconds"].samples[0].value == 1768201200


def test_the_summary_fits_a_terminal_and_its_brackets_are_text(ward, run):
    w = ward()
    w.frame[w.level("temperature")] = w.frame[w.level("temperature")] * 1.8 + 32
    assert "\\[degF]" in run(w.logged()).summary()


def test_a_last_result_that_cannot_be_read_counts_as_none(tmp_path):
    assert last_result(tmp_path) is None
    (tmp_path / "last.json").write_text('{"half": ')
    assert last_result(tmp_path) is None


def test_evidently_gets_only_what_it_can_take():
    now = pd.DataFrame(
        {"a": [1, None], "b": [None, None], "c": ["1.5", "x"], "d": [np.inf, -np.inf], "e": [1, 2]}
    )
    then = pd.DataFrame({"a": [1.0], "b": [1.0], "c": [1.0], "d": [1.0], "e": [np.nan], "f": [1.0]})
    current, reference, left_out = usable(now, then, list("abcdefg"))
    assert list(current) == list(reference) == ["a", "c"]
    assert current["c"].tolist()[0] == 1.5
    assert left_out == {
        "b": "no value in the predictions",
        "d": "no value in the predictions",
        "e": "no value in the reference",
        "f": "absent from the predictions",
        "g": "absent from the predictions",
    }


def test_no_patient_can_be_followed_through_the_report():
    table = pd.DataFrame({"a": np.arange(500.0), "b": np.arange(500.0)})
    shuffled = unlinked(table, np.random.default_rng(0))
    assert sorted(shuffled["a"]) == sorted(shuffled["b"]) == list(range(500))
    assert abs(shuffled["a"].corr(shuffled["b"])) < 0.15
    assert abs(shuffled["a"].corr(table["a"])) < 0.15


def test_nothing_usable_is_no_report_and_no_error(tmp_path):
    none = drift_report(
        pd.DataFrame({"a": [np.nan]}),
        pd.DataFrame({"a": [1.0]}),
        ["a"],
        tmp_path,
        title="x",
        rng=np.random.default_rng(0),
    )
    assert (none.html, none.rows, list(tmp_path.iterdir())) == (None, 0, [])


def test_features_are_chosen_by_gain():
    assert choose({"b": 3.0, "a": 1.0}, ["a", "b", "c"], 2) == ("b", "a")


def test_a_sample_of_the_reference_has_its_margins(watched):
    table = reference_sample(watched.profile, 4000, np.random.default_rng(0))
    summary = watched.profile["features"]["lactate__last"]
    assert table["lactate__last"].isna().mean() == pytest.approx(summary["missing"], abs=0.03)
    assert table["lactate__last"].median() == pytest.approx(summary["quantiles"][24], rel=0.05)
    counts = table["heart_rate__count_24h"].dropna()
    assert (counts == counts.round()).all()
    assert table["probability"].between(0, 1).all()
