"""What the worklist and the patient page show, worked out from the store; no HTML in here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from sqlalchemy import Connection

from features.concepts import loader
from models.scope import OUT_OF_SCOPE
from serving.pages import charts
from serving.reasons import STATIC_KINDS, clock_text, number_text, plain_label, unit_text
from serving.rounds import STORED, rescore
from serving.scoring import Score, Scorer
from serving.store import facts, log
from serving.store.tables import ENCOUNTER_TIMES

HOUR_US: Final = 3_600_000_000
STALE_US: Final = 4 * HOUR_US
CHANGE_US: Final = 4 * HOUR_US
LONGEST_H: Final = 96
FIELDS: Final[Mapping[str, str]] = {
    "encounter_class": "Where the patient is",
    "age_years": "Age",
    "icu_admission_time": "Admission time to intensive care",
}
WORDS: Final[Mapping[str, str]] = {
    "insufficient_data": "Too few recent vital signs, or facts of the patient missing",
    "out_of_scope": "Outside the model's scope",
    "not_yet": "Not scored yet",
}


def worklist(connection: Connection, scorer: Scorer, now: int, unit: str | None) -> dict[str, Any]:
    """Everyone who is here: the scored by risk, the unscored with reasons, the others as a number."""
    here = _rows(facts.open_encounters(connection, now))
    units = sorted({e["unit"] for e in here if e["unit"]})
    here = [e for e in here if not unit or e["unit"] == unit]
    inside = [e for e, yes in zip(here, scorer.in_scope(here), strict=True) if yes]
    ids = [e["encounter_id"] for e in inside]
    newest = log.newest_predictions(connection, ids, STORED)
    past = log.history(connection, ids, STORED, now - 24 * HOUR_US, now)
    fresh = facts.newest_event_times(connection, ids)
    alerts, ended = _alerts(connection, ids, now)
    scored, unscored = [], []
    for encounter in inside:
        who = encounter["encounter_id"]
        last = newest.get(who)
        age = now - fresh[who] if who in fresh else None
        if last is None or last["probability"] is None:
            status = last["status"] if last else "not_yet"
            row = _unscored(status, last, scorer, age, encounter, now)
            paged = {
                "kind": "page" if who in alerts else "none",
                "alert": _alert_text(alerts.get(who), ended.get(who), scorer.timezone, now),
            }
            unscored.append(encounter | row | paged)
            continue
        points = [(t, p) for t, p, _, _ in past.get(who, [])]
        row = _scored(last, points, alerts.get(who), ended.get(who), scorer, now)
        scored.append(encounter | row | {"data_age": age or 0, "stale": (age or 0) > STALE_US})
    scored.sort(key=lambda r: (-r["probability"], -r["risen"], r["encounter_id"]))
    return {
        "patients": scored,
        "unscored": sorted(unscored, key=lambda r: (r["kind"] != "page", r["encounter_id"])),
        "outside": len(here) - len(inside),
        "units": units,
        "paging": sum(r["kind"] == "page" for r in scored + unscored),
        "raised": sum(r["kind"] == "high" for r in scored),
        "seen": [e["encounter_id"] for e in inside],
    }


def _scored(
    last: dict[str, Any],
    points: Sequence[charts.Point],
    alert: dict[str, Any] | None,
    ended: int | None,
    scorer: Scorer,
    now: int,
) -> dict[str, Any]:
    probability = last["probability"]
    before = [p for t, p in points if p is not None and t <= last["prediction_time"] - CHANGE_US]
    risen = 0.0 if not before else probability - before[-1]
    return {
        "probability": probability,
        "risen": risen,
        "change": _change_text(risen) if before else "",
        "kind": "page" if alert else "high" if last["alert"] else "low",
        "alert": _alert_text(alert, ended, scorer.timezone, now),
        "sparkline": charts.sparkline(points, scorer.threshold, now),
        "why": json.loads(last["reasons"])[:3] if last["reasons"] else [],
        "scored": last["prediction_time"],
    }


def _change_text(risen: float) -> str:
    points = abs(risen) * 100
    if points < 0.5:
        return "steady over 4 h"
    size = max(round(points), 1)
    return f"{'up' if risen > 0 else 'down'} {size} point{'' if size == 1 else 's'} in 4 h"


def _alert_text(alert: dict[str, Any] | None, ended: int | None, timezone: str, now: int) -> str:
    if alert is None:
        return "" if ended is None else f"paged until {clock_text(ended, now, timezone)}"
    seen = f"seen by {alert['acknowledged_by']}" if alert["acknowledged_by"] else "not seen yet"
    return f"since {clock_text(alert['raised_time'], now, timezone)}, {seen}"


def _unscored(
    status: str,
    last: dict[str, Any] | None,
    scorer: Scorer,
    age: int | None,
    about: Mapping[str, Any],
    now: int,
) -> dict[str, Any]:
    missing = [FIELDS[name] for name in scorer.unknown(about, now)]
    if last is not None:
        row = np.frombuffer(bytes(last["features"]), dtype="<f4")
        missing += [plain_label(loader.concepts()[c].label)[0] for c in scorer.missing(row)]
    return {"status": status, "words": WORDS[status], "missing": ", ".join(missing), "data_age": age}


def patient(
    connection: Connection, scorer: Scorer | None, encounter_id: str, now: int
) -> dict[str, Any] | None:
    """One patient: facts, history, alerts, and the newest score made again with its reasons; None where unknown."""
    known = facts.latest(connection, [encounter_id]).get(encounter_id)
    if known is None:
        return None
    newest = log.newest_predictions(connection, [encounter_id], STORED).get(encounter_id)
    rows = log.read_alerts(connection, None, None, [encounter_id])
    alerts = [dict(zip(log.ALERT_COLUMNS, row, strict=True)) for row in reversed(rows)]
    context: dict[str, Any] = {
        "patient": known,
        "ended": facts.has_ended(known, now),
        "newest": newest,
        "alerts": alerts,
        "aside": facts.set_aside(connection, encounter_id),
        "kind": _kind(newest, alerts, facts.has_ended(known, now)),
        "why_not": _why_not(scorer, known, newest),
        "reasons": [],
    }
    if newest is not None and scorer is not None:
        context |= _drawn(connection, scorer, newest, alerts)
        if newest["model_id"] == scorer.bundle.model_id:
            context |= _explained(scorer, rescore(connection, scorer, newest))
    return context


def _kind(newest: dict[str, Any] | None, alerts: Sequence[dict[str, Any]], ended: bool) -> str:
    """An open alert stays visible where the patient cannot be scored any more, until the patient has left."""
    if not ended and any(a["ended_time"] is None for a in alerts):
        return "page"
    if newest is None or newest["probability"] is None:
        return "none"
    return "high" if newest["alert"] else "low"


def _why_not(scorer: Scorer | None, known: dict[str, Any], newest: dict[str, Any] | None) -> str:
    if newest is not None:
        return WORDS.get(newest["status"], "") + "."
    if scorer is None:
        return "No model is serving."
    return f"{WORDS['not_yet' if scorer.in_scope([known])[0] else OUT_OF_SCOPE]}."


def _drawn(
    connection: Connection, scorer: Scorer, newest: dict[str, Any], alerts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    end, who = newest["prediction_time"], newest["encounter_id"]
    past = log.history(connection, [who], STORED, end - LONGEST_H * HOUR_US, end).get(who, [])
    hours = max(12, min(LONGEST_H, -(-(end - past[0][0]) // HOUR_US)))
    raised = [a["raised_time"] for a in alerts if a["raised_time"] >= end - hours * HOUR_US]
    points = [(t, p) for t, p, _, _ in past]
    limits = scorer.bundle.thresholds
    chart = charts.history(points, raised, limits["utility"], limits["alert"], end, hours, scorer.timezone)
    return {"chart": chart, "hours": hours, "thresholds": limits}


def _explained(scorer: Scorer, again: Score) -> dict[str, Any]:
    shown, rest = again.reasons[:10], again.reasons[10:]
    strongest = max((abs(r.contribution) for r in shown), default=1.0) or 1.0
    return {
        "reasons": [
            {
                "text": r.text,
                "contribution": r.contribution,
                "share": round(100 * abs(r.contribution) / strongest),
            }
            for r in shown
        ],
        "others": {"count": len(rest), "contribution": sum(r.contribution for r in rest)},
        "base": again.base,
        "inputs": _inputs(scorer, again),
    }


def _inputs(scorer: Scorer, again: Score) -> list[dict[str, Any]]:
    """The latest value of everything the model reads, in the order of the concept table."""
    told = []
    for name, about in loader.concepts().items():
        known = (again.measured or {}).get(name)
        if known is None or (about.kind == "process" and (about.low, about.high, about.unit) == (0, 1, "1")):
            continue
        label, choices = plain_label(about.label)
        fixed = about.kind in STATIC_KINDS
        told.append(
            {
                "label": label,
                "value": choices.get(known.value) or number_text(known.value),
                "unit": "" if choices else unit_text(about.unit),
                "previous": "" if fixed or known.previous is None else number_text(known.previous),
                "when": "" if fixed else clock_text(known.time, again.prediction_time, scorer.timezone),
                "stale": not fixed
                and about.kind == "vital"
                and again.prediction_time - known.time > STALE_US,
            }
        )
    return told


def _alerts(
    connection: Connection, ids: Sequence[str], now: int
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Open alerts by encounter, and when one that ended in the last hours did."""
    found = [
        dict(zip(log.ALERT_COLUMNS, row, strict=True)) for row in log.read_alerts(connection, None, None, ids)
    ]
    over = {row["encounter_id"]: row["ended_time"] for row in found if row["ended_time"] is not None}
    recent = {who: when for who, when in over.items() if now - when <= CHANGE_US}
    return {row["encounter_id"]: row for row in found if row["ended_time"] is None}, recent


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Encounters as dictionaries, times in microseconds and None for nothing, as the store gives them one by one."""
    nat = np.iinfo(np.int64).min
    columns: dict[str, list[Any]] = {}
    for name in table.columns:
        if name in ENCOUNTER_TIMES or name == "received_time":
            micros = table[name].array.asi8.tolist()
            columns[name] = [None if v == nat else v for v in micros]
        else:
            columns[name] = [None if v is None or v != v else v for v in table[name].tolist()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
