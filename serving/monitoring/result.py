"""What a run of the monitor found, as one JSON-able value: the page, the gauges and the command line all read this."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from serving.monitoring.findings import ALARM, SEVERITIES, WATCH, Finding

LAST: Final = "last.json"
MOST_LINES: Final = 8
HEARTBEAT: Final = "heartbeat.json"
GAUGES: Final = "monitor.prom"
ADDED: Final = ("performance", "people", "admissions", "site")
"""What results of earlier versions do not have."""


@dataclass(frozen=True)
class MonitorResult:
    """A run of the monitor. Holds counts, shares and feature names; no patient, no encounter, no value of one.

    Attributes
    ----------
    ran_at : datetime
        When the monitor ran, by the wall's clock.
    since, until : datetime
        Prediction times looked at: from ``since``, up to but without ``until``.
    model_id : str
    attempts, scored, stays : int
        Predictions tried, predictions scored, encounters these came from.
    findings : tuple of Finding, worst first
    features : tuple of dict
        One a feature: ``feature, concept, n, effective, missing_reference, missing_now, psi, ks, shift_q,
        median_reference, median_now, finding``, ``bins_now`` and ``bins_reference``.
    scores : dict
        ``edges, reference, now`` (shares), ``mean_reference, mean_now, psi, threshold``.
    alerts : dict
        ``count, expected, pages`` and ``volume``, a list of ``start, hours, scores, alerts``.
    not_scored : dict of reason code to count
    performance : dict
        Scores against matured outcomes (:func:`serving.monitoring.followup.follow_up`).
    people : dict
        What was done with alerts and cards (:func:`serving.monitoring.people.answers`), and ``before``, the same of
        the period before.
    admissions : dict
        Earlier bed forecasts against what came (:func:`serving.monitoring.admissions.judge`); empty without any.
    site : str
        Whose store it is (``WARDCAST_SITE``). A store is one site's, and findings name the unit within it.
    evidently : dict
        ``columns, rows, drift, drifted, left_out, html`` (file name or None), ``error`` (None when it ran).
    duration_s : float
    folder : Path
        Where the files are.
    artifacts : list of Path
        Files to keep with the run: summary page, JSON, Evidently's HTML and JSON.
    """

    ran_at: datetime
    since: datetime
    until: datetime
    model_id: str
    attempts: int
    scored: int
    stays: int
    findings: tuple[Finding, ...]
    features: tuple[dict[str, Any], ...]
    scores: dict[str, Any]
    alerts: dict[str, Any]
    not_scored: dict[str, int]
    evidently: dict[str, Any]
    duration_s: float
    folder: Path
    artifacts: list[Path]
    performance: dict[str, Any] = field(default_factory=dict)
    people: dict[str, Any] = field(default_factory=dict)
    admissions: dict[str, Any] = field(default_factory=dict)
    site: str = ""

    def count(self, severity: str) -> int:
        """Findings of one severity."""
        return sum(f.severity == severity for f in self.findings)

    @property
    def headline(self) -> str:
        """The result in a few words."""
        alarms, watches = self.count(ALARM), self.count(WATCH)
        if alarms:
            also = f", {watches} to watch" if watches else ""
            return f"{alarms} alarm{'s' if alarms > 1 else ''}{also}"
        return f"No alarm, {watches} to watch" if watches else "Nothing to report"

    @property
    def metrics(self) -> dict[str, float]:
        """Finite numbers for a tracker, by name."""
        plain: dict[str, float] = {f"findings_{s}": float(self.count(s)) for s in SEVERITIES}
        plain |= {
            "attempts": float(self.attempts),
            "scored": float(self.scored),
            "stays": float(self.stays),
            "score_mean": _number(self.scores.get("mean_now")),
            "score_psi": _number(self.scores.get("psi")),
            "alerts": _number(self.alerts.get("count")),
            "alerts_expected": _number(self.alerts.get("expected")),
            "pages": _number(self.alerts.get("pages")),
            "duration_s": self.duration_s,
        }
        drift = self.evidently.get("drift") or {}
        if drift:
            plain["evidently_drifted_share"] = len(self.evidently["drifted"]) / len(drift)
        for name, (value, *_) in (self.performance.get("figures") or {}).items():
            plain[f"performance.{name}"] = _number(value)
        for f in self.features:
            plain[f"psi.{f['feature']}"] = _number(f["psi"])
            plain[f"missing.{f['feature']}"] = _number(f["missing_now"])
        return {name: value for name, value in plain.items() if np.isfinite(value)}

    def summary(self) -> str:
        """A few lines for the command line; square brackets are escaped for rich."""
        lines = [
            f"{self.headline}: {self.model_id}, {self.scored:,} of {self.attempts:,} predictions scored for "
            f"{self.stays:,} patients' stays, {self.since:%Y-%m-%d %H:%M} to {self.until:%Y-%m-%d %H:%M} UTC."
        ]
        loud = [f for f in self.findings if f.severity in (ALARM, WATCH)]
        for f in loud[:MOST_LINES]:
            since = f" (since {f.since:%Y-%m-%d %H:%M})" if f.since else ""
            lines.append(f"  {f.severity}: {f.what}{since}")
        if len(loud) > MOST_LINES:
            lines.append(f"  and {len(loud) - MOST_LINES} more in the report.")
        lines.append(f"Report: {self.folder / 'monitor.html'}")
        return "\n".join(lines).replace("[", "\\[")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; NaN becomes None."""
        plain = asdict(self) | {"findings": [f.to_dict() for f in self.findings]}
        plain |= {name: getattr(self, name).isoformat() for name in ("ran_at", "since", "until")}
        plain |= {"folder": str(self.folder), "artifacts": [str(p) for p in self.artifacts]}
        plain |= {"headline": self.headline}
        cleaned: dict[str, Any] = _finite(plain)
        return cleaned

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> MonitorResult:
        """The inverse of :meth:`to_dict`."""
        known = {f.name: plain[f.name] for f in fields(cls) if f.name in plain or f.name not in ADDED}
        known |= {name: datetime.fromisoformat(plain[name]) for name in ("ran_at", "since", "until")}
        known |= {"findings": tuple(Finding.from_dict(f) for f in plain["findings"])}
        known |= {"features": tuple(plain["features"]), "folder": Path(plain["folder"])}
        known |= {"artifacts": [Path(p) for p in plain["artifacts"]]}
        return cls(**known)


def last_result(home: Path) -> MonitorResult | None:
    """The last run recorded in ``var/monitor``, or None before the first, or when its file cannot be read."""
    try:
        return MonitorResult.from_dict(json.loads((home / LAST).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def heartbeat(home: Path) -> dict[str, Any] | None:
    """What the last run said of itself: ``started, finished, status`` and, when it failed, ``error``."""
    try:
        beat: dict[str, Any] = json.loads((home / HEARTBEAT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return beat


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step, so that nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
