"""Scoring patients from the store: after news came in, when somebody asks, and again to explain."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from features.windows import FlatEvents
from models.scope import OUT_OF_SCOPE
from serving.alerts import decide, settle
from serving.scoring import Explain, Score, Scorer, record
from serving.state import Wardcast
from serving.store import facts, log
from serving.store.tables import ENCOUNTER_TIMES

STORED = "stored"
ENDED: Final = "encounter_ended"
REUSE_US: Final = 5 * 60 * 1_000_000
"""How long a score is given again while nothing is new: as long as a sender's clock may err. The features count whole
hours, so little moves in between; a page that asks every second would else write a score and step the policy each time.
"""
logger = logging.getLogger("wardcast")


@dataclass(frozen=True, slots=True)
class Logged:
    """A score with its place in the log."""

    prediction_id: str
    score: Score
    page: bool
    created: int


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
    """The score of a present encounter at ``now``; the newest in the log where nothing is new since."""
    with state.store.read() as connection:
        row = held(connection, state, encounter_id, now)
        if row is not None:
            again = rescore(connection, state.scorer, row, explain)
            return Logged(row["prediction_id"], again, row["page"], row["created_time"])
    return score_stored(state, [encounter_id], now, explain=explain, everyone=True)[0]


def standing(state: Wardcast, encounter_id: str, now: int) -> dict[str, Any]:
    """The logged prediction that stands for a present encounter at ``now``; one is made where none does.

    As :func:`current`, but read from the log: nothing is computed again.
    """
    with state.store.read() as connection:
        row = held(connection, state, encounter_id, now)
    if row is not None:
        return row
    made = score_stored(state, [encounter_id], now, everyone=True)[0]
    with state.store.read() as connection:
        return log.prediction(connection, made.prediction_id)


def held(connection: Connection, state: Wardcast, encounter_id: str, now: int) -> dict[str, Any] | None:
    """The newest logged prediction of an encounter, where it still stands at ``now``."""
    row = log.newest_prediction(connection, encounter_id, STORED)
    stands = row and row["model_id"] == state.scorer.bundle.model_id and holds(connection, row, now)
    return row if stands else None


def holds(connection: Connection, row: dict[str, Any], now: int) -> bool:
    """Whether a logged score is young, and nothing about its patient has come or become visible since."""
    who, made = row["encounter_id"], row["prediction_time"]
    if not made <= now <= made + REUSE_US:
        return False
    told, picture = facts.reach(connection, [who])[who]
    if told > row["events_seq"] or picture > row["encounter_seq"]:
        return False
    about = facts.version(connection, row["encounter_seq"])
    begun = any(made < (about[name] or made) <= now for name in ENCOUNTER_TIMES)
    return not begun and not facts.shown_between(connection, who, made, now)


def behind(connection: Connection, encounter_ids: Iterable[str]) -> list[str]:
    """The encounters about which something is stored that no score has read.

    Facts are durable before they are scored, so that a failure in between loses no fact; this finds what it leaves.
    """
    ids = list(encounter_ids)
    read = log.reach(connection, ids, STORED)
    late = []
    for who, (told, picture) in facts.reach(connection, ids).items():
        seen_told, seen_picture = read.get(who, (-1, -1))
        if told > seen_told or picture > seen_picture:
            late.append(who)
    return late


def catch_up(state: Wardcast) -> list[Logged]:
    """Score everyone present whose news was stored but not scored, as a failure of the last process leaves them.

    What keeps this from working is logged and does not keep the service from starting.
    """
    if "sepsis" not in state.bundles:
        return []
    try:
        return _catch_up(state, state.now_us())
    except Exception as error:
        logger.error("rounds problem=catch_up_failed kind=%s", type(error).__name__)
        return []


def _catch_up(state: Wardcast, now: int) -> list[Logged]:
    with state.store.write() as connection:
        settle(connection, state.scorer, (), now, state.alerting)
        late = behind(connection, facts.open_encounters(connection, now)["encounter_id"])
    logged = [one for some in facts.chunks(late) for one in score_stored(state, some, now)]
    if logged:
        logger.warning("rounds caught_up=%d", len(logged))
    return logged


def skipped(
    state: Wardcast, encounter_ids: Sequence[str], logged: Sequence[Logged], now: int
) -> dict[str, str]:
    """Why each of some encounters has no prediction among the ``logged``: a reason code by encounter."""
    left = set(encounter_ids) - {one.score.encounter_id for one in logged}
    with state.store.read() as connection:
        known = facts.latest(connection, sorted(left))
    problem = state.problems.get("sepsis", OUT_OF_SCOPE)
    return {who: ENDED if facts.has_ended(about, now) else problem for who, about in sorted(known.items())}


def _present(known: dict[str, dict[str, Any]], now: int) -> list[dict[str, Any]]:
    return [e for e in known.values() if not facts.has_ended(e, now)]


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
    paged = decide(connection, scores, ids, state.scorer.bundle, state.alerting)
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
    return [Logged(ids[s.encounter_id], s, s.encounter_id in paged, now) for s in scores]


def rescore(connection: Connection, scorer: Scorer, row: dict[str, Any], explain: Explain = True) -> Score:
    """Make a logged score of the stored road again, from what was known when it was made."""
    encounter, flat = laid_out(connection, scorer, row)
    return scorer.judge([encounter], flat, [row["prediction_time"]], [explain])[0]


def laid_out(
    connection: Connection, scorer: Scorer, row: dict[str, Any]
) -> tuple[dict[str, Any], FlatEvents]:
    """What a logged score of the stored road was made from: the encounter and its events, as known then."""
    encounter, now = facts.version(connection, row["encounter_seq"]), row["prediction_time"]
    concepts = scorer.bundle.spec.features.concepts
    ids = [encounter["encounter_id"]]
    events = facts.read_events(connection, ids, now, up_to=row["events_seq"], concepts=concepts)
    return encounter, scorer.flatten([encounter], events, now)
