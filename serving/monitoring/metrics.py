"""The last monitor result as Prometheus gauges. Labels are feature names, severities and reason codes: bounded lists.

The text is left as ``monitor.prom`` in ``var/monitor``, where the service's ``/metrics`` picks it up: the same
gauges whichever process asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from serving.monitoring.findings import SEVERITIES

if TYPE_CHECKING:
    from serving.monitoring.result import MonitorResult

Sample = tuple[dict[str, str], float | int | None]


def gauges(result: MonitorResult) -> str:
    """The result in Prometheus' text format. Numbers that could not be had are left out, never written as 0."""
    features = result.features
    families: list[tuple[str, str, Iterable[Sample]]] = [
        ("last_run_timestamp_seconds", "When the monitor last ran.", [({}, result.ran_at.timestamp())]),
        ("period_end_timestamp_seconds", "End of the period it looked at.", [({}, result.until.timestamp())]),
        ("duration_seconds", "How long it took.", [({}, result.duration_s)]),
        ("findings", "Findings by severity.", [({"severity": s}, result.count(s)) for s in SEVERITIES]),
        ("predictions", "Predictions tried in the period.", [({}, result.attempts)]),
        ("predictions_scored", "Predictions scored in the period.", [({}, result.scored)]),
        (
            "predictions_not_scored",
            "Predictions not scored in the period, by reason.",
            [({"reason": r}, n) for r, n in result.not_scored.items()],
        ),
        ("alerts", "Scores at or above the alert threshold.", [({}, result.alerts.get("count"))]),
        ("alerts_expected", "The same, as the reference lets expect.", [({}, result.alerts.get("expected"))]),
        ("pages", "Alerts that paged someone.", [({}, result.alerts.get("pages"))]),
        ("score_mean", "Mean probability.", [({}, result.scores.get("mean_now"))]),
        ("score_psi", "Population stability index of the scores.", [({}, result.scores.get("psi"))]),
        ("feature_psi", "Population stability index of a feature.", _each(features, "psi")),
        ("feature_missing_share", "Share of predictions without a feature.", _each(features, "missing_now")),
        (
            "feature_missing_share_reference",
            "The same when the model was made.",
            _each(features, "missing_reference"),
        ),
        ("performance", "Scores against matured outcomes.", _measures(result.performance)),
        ("matured_stays", "Stays judged by outcomes.", [({}, result.performance.get("stays"))]),
        (
            "calibration_evidence",
            "Evidence against the probabilities; 20 by chance once in 20.",
            _evidence(result),
        ),
        (
            "alerts_acknowledged_share",
            "Share of alerts acknowledged.",
            [({}, result.people.get("acknowledged_share"))],
        ),
        (
            "cards_overridden_share",
            "Share of answered cards overridden.",
            [({}, result.people.get("override_share"))],
        ),
        ("beds_coverage", "Share of bed forecasts whose 90 % interval held.", _beds(result, "coverage")),
        ("beds_bias", "Mean of bed forecasts less what came.", _beds(result, "bias")),
    ]
    return "".join(_family(f"wardcast_monitor_{name}", text, samples) for name, text, samples in families)


def _measures(performance: Mapping[str, Any]) -> list[Sample]:
    return [({"measure": name}, value) for name, (value, *_) in performance.get("figures", {}).items()]


def _evidence(result: MonitorResult) -> list[Sample]:
    return [({}, result.performance.get("recalibration", {}).get("evidence"))]


def _beds(result: MonitorResult, key: str) -> list[Sample]:
    rows = [row for row in result.admissions.get("horizons", ()) if row["level"] == "hospital"]
    return [({"horizon": r["horizon"]}, r[key]["90"] if key == "coverage" else r[key]) for r in rows]


def _each(features: Iterable[dict[str, object]], key: str) -> list[Sample]:
    return [({"feature": str(f["feature"])}, f[key]) for f in features]  # type: ignore[misc]


def _family(name: str, text: str, samples: Iterable[Sample]) -> str:
    lines = [
        f"{name}{_labels(labels)} {value:.10g}"
        for labels, value in samples
        if value is not None and value == value
    ]
    return "\n".join([f"# HELP {name} {text}", f"# TYPE {name} gauge", *lines]) + "\n" if lines else ""


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    inside = ",".join(f'{k}="{v.translate(ESCAPED)}"' for k, v in labels.items())
    return f"{{{inside}}}"


ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
