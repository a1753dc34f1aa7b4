"""When a score becomes a page: the policy, its memory kept per encounter in the store, and who is told.

The rule itself is :class:`models.decision.AlertPolicy`, which batch scoring walks too.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection

from models.bundle import Bundle
from models.decision import AlertState
from models.scope import SCORED
from serving.alerting import ENDED, RAISED, Alerting
from serving.scoring import Score, Scorer
from serving.store import facts, log


def decide(
    connection: Connection,
    scores: Sequence[Score],
    prediction_ids: Mapping[str, str],
    bundle: Bundle,
    alerting: Alerting,
) -> set[str]:
    """Take each score through the policy; raise, keep or end alerts, and remember.

    Parameters
    ----------
    prediction_ids : by encounter

    Returns
    -------
    set of str
        The encounters that page now. A score that is older than what the policy has seen changes nothing.
    """
    policy = alerting.policy(bundle)
    memory = log.alert_memory(connection, [s.encounter_id for s in scores])
    kept: dict[str, tuple[dict[str, Any], int]] = {}
    raised: list[dict[str, Any]] = []
    over: list[str] = []
    why: dict[str, dict[str, Any]] = {}
    for score in scores:
        stored, seen = memory.get(score.encounter_id, ({}, -1))
        if score.status != SCORED or score.prediction_time < seen:
            continue
        before = AlertState(**stored)
        state, decision = policy.step(before, score.probability, score.prediction_time)
        kept[score.encounter_id] = (asdict(state), score.prediction_time)
        if decision.page:
            raised.append(_alert(score, prediction_ids[score.encounter_id], before))
            why[raised[-1]["alert_id"]] = {"unit": score.unit, "reasons": [r.text for r in score.reasons[:5]]}
        elif before.active and not decision.active:
            over.append(score.encounter_id)
    replaced = log.add_alerts(connection, raised)
    when = scores[0].prediction_time if scores else 0
    alerting.tell(connection, ENDED, replaced, when)
    alerting.tell(connection, RAISED, raised, when, why)
    _end(connection, over, when, alerting)
    log.keep_alert_memory(connection, kept)
    return {row["encounter_id"] for row in raised}


def settle(
    connection: Connection, scorer: Scorer | None, ids: Iterable[str], now: int, alerting: Alerting
) -> None:
    """End the alerts of those who have left, or whom the model was not made for any more, and forget their past.

    Looks at ``ids`` and at everyone with an open alert, since a discharge may have been announced for a moment that
    has come by ``now``. Who comes back pages anew.
    """
    known = list(facts.latest(connection, {*ids, *log.open_alerts(connection)}).values())
    inside = [True] * len(known) if scorer is None else scorer.in_scope(known)
    over = [
        about["encounter_id"]
        for about, yes in zip(known, inside, strict=True)
        if not yes or facts.has_ended(about, now)
    ]
    _end(connection, over, now, alerting)
    log.forget_alert_memory(connection, over)


def _end(connection: Connection, ids: Sequence[str], when: int, alerting: Alerting) -> None:
    """End the open alerts of some encounters, and have those told who want to know."""
    if not ids:
        return
    ended = log.end_alerts(connection, ids, when)
    alerting.tell(connection, ENDED, ended, when)


def _alert(score: Score, prediction_id: str, before: AlertState) -> dict[str, Any]:
    return {
        "alert_id": secrets.token_hex(16),
        "encounter_id": score.encounter_id,
        "prediction_id": prediction_id,
        "raised_time": score.prediction_time,
        "probability": score.probability,
        "reason": "risen" if before.active and before.paged else "threshold",
    }
