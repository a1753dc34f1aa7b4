"""Cards: what stands about a patient, in the words and the shape of CDS Hooks 2.0.

A failure is never an empty answer: where there is no score, the card says why. An empty answer means that there is
nothing to say: below the threshold (unless the site wants to know), or the patient has left.
"""

from __future__ import annotations

import csv
import html
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from models.scope import OUT_OF_SCOPE, SCORED
from serving.interop import chart
from serving.reasons import clock_text
from serving.render import percent
from serving.scoring import Scorer

LONGEST_SUMMARY: Final = 139
MOST_DOUBTS: Final = 3
REASON_SYSTEM: Final = "urn:wardcast:override-reasons"
REASONS: Final = Path(__file__).with_name("override_reasons.csv")
LABEL: Final = "Wardcast sepsis risk"
CAVEAT: Final = "Research software, not a medical device. It does not replace clinical judgement."
LATE: Final = (
    "**Over budget.** The service is busy: this is the last score, and what came after it is not in it."
)
OVER_BUDGET: Final = "over_budget"
"""Reason code: a score was due and not made, since whoever asked could not wait for it."""

WHY_NOT: Final[Mapping[str, tuple[str, str]]] = {
    chart.UNKNOWN: (
        "nothing has been received about this encounter",
        "None of the identifiers of this encounter or patient is known here. Its feed may be down, or not connected.",
    ),
    chart.MISMATCH: (
        "the encounter belongs to another patient here",
        "What was received assigns this encounter to someone else, so nothing of it is shown. Report this.",
    ),
    chart.AMBIGUOUS: (
        "it is not certain which encounter this is",
        "Several encounters that are known here fit, so none is shown.",
    ),
    "model_missing": ("no model is loaded", "The keeper of the service finds the reason in its log."),
    "model_hash_mismatch": (
        "the model's files were changed",
        "The keeper of the service finds the reason in its log.",
    ),
    "schema_mismatch": (
        "the model and its features do not fit",
        "The keeper of the service finds the reason in its log.",
    ),
    "model_unusable": ("the model cannot be used", "The keeper of the service finds the reason in its log."),
}


@dataclass(frozen=True, slots=True)
class Situation:
    """What a card is made from.

    Attributes
    ----------
    status : ``scored``, or the reason code why not
    prediction : the row of the log that stands; None where there is no encounter
    open_alert : an alert of the encounter has not ended and nobody has acknowledged it
    newest : when the newest usable event happened, microseconds
    missing, unknown : vital signs and fields without which there is no score
    over_budget : no new score was made since the hook had waited too long; the prediction is the last one
    degraded : what makes this unit's scores doubtful (:meth:`serving.notices.Notices.degraded`)
    """

    status: str
    encounter_id: str | None = None
    prediction: Mapping[str, Any] | None = None
    open_alert: bool = False
    newest: int | None = None
    missing: Sequence[str] = ()
    unknown: Sequence[str] = ()
    degraded: Sequence[Mapping[str, Any]] = ()
    over_budget: bool = False


@cache
def override_reasons() -> tuple[dict[str, str], ...]:
    """Why a card may not be followed, as codings."""
    with REASONS.open(encoding="utf-8", newline="") as file:
        return tuple(
            {"code": row["code"], "system": REASON_SYSTEM, "display": row["display"]}
            for row in csv.DictReader(file)
        )


def card(situation: Situation, scorer: Scorer | None, url: str, now: int, timezone: str) -> dict[str, Any]:
    """The card of a situation, with an identity of its own.

    Parameters
    ----------
    url : where users find the service
    now : microseconds
    timezone : the site's, for the times in the words
    """
    row = situation.prediction
    if situation.status == SCORED and row is not None and scorer is not None:
        summary, lines = _scored(row, scorer)
        lines.append(_made(situation, now, timezone))
    else:
        summary, lines = _not_scored(situation, scorer)
    lines += [LATE] if situation.over_budget else []
    lines += [_doubt(d, now, timezone) for d in situation.degraded[:MOST_DOUBTS]]
    made = {
        "uuid": str(uuid.uuid4()),
        "summary": summary[:LONGEST_SUMMARY],
        "detail": "\n\n".join([*lines, markdown(CAVEAT)]),
        "indicator": indicator(situation),
        "source": {"label": LABEL, "url": f"{url}/model"},
        "overrideReasons": [dict(reason) for reason in override_reasons()],
    }
    if situation.encounter_id is not None:
        address = f"{url}/patient?encounter={quote(situation.encounter_id, safe='')}"
        made["links"] = [{"label": "Open in Wardcast", "url": address, "type": "absolute"}]
    return made


def indicator(situation: Situation) -> str:
    """``critical`` while an alert waits for someone, ``warning`` at or above the threshold or while what stands behind
    the score is degraded, else ``info``."""
    row = situation.prediction
    if situation.status != SCORED or row is None or not row["alert"]:
        return "warning" if situation.degraded or situation.over_budget else "info"
    return "critical" if situation.open_alert else "warning"


def _doubt(degraded: Mapping[str, Any], now: int, timezone: str) -> str:
    """What is wrong behind the score, in the monitor's words."""
    since = "" if degraded["since"] is None else f", since {clock_text(degraded['since'], now, timezone)}"
    return f"**Degraded.** {markdown(degraded['what'])} ({markdown(degraded['where'] + since)})"


def markdown(text: str) -> str:
    """Text that stays text in GitHub-flavoured Markdown, which would else take HTML and formatting from it."""
    return re.sub(r"([\\`*_{}\[\]|~#])", r"\\\1", html.escape(text, quote=False))


def _scored(row: Mapping[str, Any], scorer: Scorer) -> tuple[str, list[str]]:
    risk, threshold = percent(row["probability"]), percent(scorer.threshold)
    side = "at or above" if row["alert"] else "below"
    meaning = str(scorer.bundle.spec.section("target").get("meaning", "sepsis is near")).rstrip(".")
    lines = [f"**{markdown(risk)}** chance that {markdown(meaning)}."]
    reasons = json.loads(row["reasons"]) if row["reasons"] else []
    if reasons:
        lines.append("Why:")
        lines.append("\n".join(f"- {markdown(reason)}" for reason in reasons))
    return f"Sepsis risk {risk}: {side} the threshold of {threshold}", lines


def _made(situation: Situation, now: int, timezone: str) -> str:
    row = situation.prediction or {}
    text = f"Scored {clock_text(row['prediction_time'], now, timezone)} by {row['model_id']}"
    if situation.newest is not None:
        text += f"; newest data {clock_text(situation.newest, now, timezone)}"
    return markdown(f"{text} ({timezone}).")


def _not_scored(situation: Situation, scorer: Scorer | None) -> tuple[str, list[str]]:
    scope = scorer.bundle.spec.section("scope") if scorer is not None else {}
    if situation.status in WHY_NOT:
        short, long = WHY_NOT[situation.status]
    elif situation.status == OUT_OF_SCOPE:
        short = "outside what the model was made for"
        long = f"It was made for patients from {scope['min_age']} years on in: {', '.join(scope['encounter_classes'])}."
    else:
        short = "too little is known" if situation.unknown else "too few recent vital signs"
        lacking = [*situation.unknown, *situation.missing]
        long = f"Not known, or not measured within {scope['recent_h']} h: {', '.join(lacking)}."
    lines = [f"**Not scored** ({markdown(situation.status)}). {markdown(long)}", "This is not a low risk."]
    return f"Sepsis risk not scored: {short}", lines
