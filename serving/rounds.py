"""Scoring patients from the store: after news came in, when somebody asks, and again to explain."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from serving.alerts import decide, policy_of
from serving.scoring import Explain, Score, Scorer, record
from serving.state import Wardcast
from serving.store import facts, log

STORED = "stored"


@dataclass(frozen=True, slots=True)
class Logged:
    """A score with its place in the log."""

    prediction_id: str
    score: Score
    page: bool


def score_stored(
    state: Wardcast,
    encounter_ids: Sequence[str],
    now: int,
    *,
    explain: Explain = "auto",
    everyone: bool = False,
) -> list[Logged]:
    """Score encounters from the store at ``now``, take them through the alert policy, and log them.

    Parameters
    ----------
    encounter_ids : any; those that have ended are left out
    now : microseconds
    everyone : bool
        Also answer for those the model was not made for; they are else left out, and not logged.
    """
    scorer = state.scorer
    with state.store.read() as connection:
        known = _present(facts.latest(connection, encounter_ids), now)
        if not everyone:
            known = [e for e, inside in zip(known, scorer.in_scope(known), strict=True) if inside]
        if not known:
            return []
        up_to = facts.last_seq(connection)
        scores = _score(connection, scorer, known, now, up_to, explain)
    with state.store.write() as connection:
        return _log(connection, state, scores, known, now, up_to)


def current(state: Wardcast, encounter_id: str, now: int, explain: Explain) -> Logged:
    """The score of a present encounter at ``now``; the one in the log where nothing has changed since."""
    with state.store.read() as connection:
        row = log.newest_predictions(connection, [encounter_id], STORED).get(encounter_id)
        moment = (
            now,
            facts.last_seq(connection),
            facts.latest(connection, [encounter_id])[encounter_id]["seq"],
            state.scorer.bundle.model_id,
        )
        made = row and (row["prediction_time"], row["events_seq"], row["encounter_seq"], row["model_id"])
        if row is not None and made == moment:
            return Logged(row["prediction_id"], rescore(connection, state.scorer, row, explain), row["page"])
    return score_stored(state, [encounter_id], now, explain=explain, everyone=True)[0]


def _present(known: dict[str, dict[str, Any]], now: int) -> list[dict[str, Any]]:
    return [e for e in known.values() if e["discharge_time"] is None or e["discharge_time"] > now]


def _score(
    connection: Connection,
    scorer: Scorer,
    known: Sequence[dict[str, Any]],
    now: int,
    up_to: int,
    explain: Explain,
) -> list[Score]:
    ids = [e["encounter_id"] for e in known]
    events = facts.read_events(
        connection, ids, now, up_to=up_to, concepts=scorer.bundle.spec.features.concepts
    )
    return scorer.score(known, events, now, explain)


def _log(
    connection: Connection,
    state: Wardcast,
    scores: Sequence[Score],
    known: Sequence[dict[str, Any]],
    now: int,
    up_to: int,
) -> list[Logged]:
    model_id = state.scorer.bundle.model_id
    ids = {s.encounter_id: secrets.token_hex(16) for s in scores}
    paged = decide(connection, scores, ids, policy_of(state.scorer.bundle))
    rows = [
        record(
            score,
            ids[score.encounter_id],
            road=STORED,
            model_id=model_id,
            created=now,
            page=score.encounter_id in paged,
            events_seq=up_to,
            encounter_seq=encounter["seq"],
        )
        for score, encounter in zip(scores, known, strict=True)
    ]
    log.add_predictions(connection, rows)
    state.metrics.count_scores(model_id, scores)
    state.metrics.pages.labels(model_id).inc(len(paged))
    return [Logged(ids[s.encounter_id], s, s.encounter_id in paged) for s in scores]


def rescore(connection: Connection, scorer: Scorer, row: dict[str, Any], explain: Explain = True) -> Score:
    """Make a logged score of the stored road again, from what was known when it was made."""
    encounter = facts.version(connection, row["encounter_seq"])
    return _score(connection, scorer, [encounter], row["prediction_time"], row["events_seq"], explain)[0]
