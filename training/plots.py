"""Figures of an evaluation, from its ``curves``: what MLflow keeps beside the numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np


def figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Matplotlib figures by file name; none where the evaluation kept no curves."""
    curves = evaluation.get("curves")
    if not curves:
        return {}
    return {
        "calibration.png": _calibration(curves["calibration"]),
        "roc.png": _line(
            curves["false_positive_rate"], curves["recall"], "1 - specificity", "Sensitivity", "ROC, per hour"
        ),
        "precision_recall.png": _line(
            curves["recall"], curves["precision"], "Sensitivity", "PPV", "Precision and recall, per hour"
        ),
        "utility_by_hour.png": _utility(curves["utility_by_hour"]),
        **{
            f"decision_curve_{c['hours'].replace('<= ', 'first_')}.png": _decision(c)
            for c in evaluation.get("decision_curves", [])
        },
        **(
            {"contributions.png": _contributions(evaluation["explanation"])}
            if "explanation" in evaluation
            else {}
        ),
    }


def new_axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    """A figure with one pair of axes, named."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _line(x: list[float], y: list[float], x_label: str, y_label: str, title: str) -> Any:
    figure, axes = new_axes(title, x_label, y_label)
    axes.plot(x, y)
    axes.set(xlim=(0, 1), ylim=(0, None))
    return figure


def _calibration(curve: Mapping[str, list[float]]) -> Any:
    figure, axes = new_axes("Calibration, groups of patient-hours", "Predicted probability", "Observed share")
    predicted = np.array(curve["predicted"])
    size = np.array(curve["rows"])
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axes.scatter(predicted, curve["observed"], s=4 + 40 * size / size.max(), alpha=0.6)
    if "smooth" in curve:
        axes.plot(predicted, curve["smooth"], color="tab:orange", label="loess")
        axes.legend()
    top = float(max(predicted.max(), max(curve["observed"]))) * 1.1
    axes.set(xlim=(0, top), ylim=(0, top))
    return figure


def _utility(curve: Mapping[str, list[float]]) -> Any:
    figure, axes = new_axes("Utility by ICU hour (the last bar is 72 h and later)", "Hour", "Utility")
    axes.bar(curve["hour"], curve["attainable"], color="lightgrey", label="attainable")
    axes.bar(curve["hour"], curve["attained"], label="attained")
    axes.legend()
    return figure


def _contributions(explanation: Mapping[str, Any]) -> Any:
    """SHAP's own summary of what moves scores, by clinical concept; means only, so that nobody is in it."""
    from matplotlib.figure import Figure

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # shap's, of Matplotlib, on its import
        from shap import Explanation
        from shap.plots import bar

    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot()
    groups = explanation["groups"]
    means = Explanation(
        values=np.array([g["mean"] for g in groups]),
        feature_names=[g["group"].replace("_", " ") for g in groups],
    )
    bar(means, max_display=len(groups), show=False, ax=axes)
    axes.set(title="What moves the score", xlabel="Mean absolute contribution, log-odds before calibration")
    return figure


def _decision(curve: Mapping[str, Any]) -> Any:
    """Net benefit with its interval, beside alarming for everyone, the clock rule, and silence."""
    figure, axes = new_axes(
        f"Decision curve, hours {curve['hours']}", "Threshold probability", "Net benefit per hour"
    )
    x = curve["thresholds"]
    value, low, high = (np.array([m[i] for m in curve["model"]], dtype=np.float64) for i in range(3))
    axes.fill_between(x, low, high, alpha=0.2)
    axes.plot(x, value, label="model")
    for name, label in (("treat_all", "everyone"), ("clock", "clock rule")):
        axes.plot(x, np.array(curve[name], dtype=np.float64), label=label)
    axes.axhline(0, color="grey", linewidth=1)
    top = float(np.nanmax(high)) if np.isfinite(high).any() else 0.0
    axes.set(ylim=(-max(top, 1e-3) * 0.5, max(top, 1e-3) * 1.1))
    axes.legend()
    return figure
