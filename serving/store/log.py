"""Predictions, alerts and what people answered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from features.errors import DataError
from serving.store.facts import chunks, received_range
from serving.store.tables import alert_states, alerts, feedback, models, predictions

PREDICTION_COLUMNS = (
    "prediction_id", "encounter_id", "subject_id", "prediction_time", "created_time", "model_id", "status", "reason",
    "probability", "raw", "alert", "page", "encounter_class", "unit",
)  # fmt: skip
ALERT_COLUMNS = (
    "alert_id", "encounter_id", "raised_time", "probability", "ended_time", "acknowledged_time", "acknowledged_by",
    "reason", "prediction_id",
)  # fmt: skip


def add_predictions(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log predictions with everything needed to repeat them."""
    if rows:
        connection.execute(insert(predictions), [dict(row) for row in rows])


def prediction(connection: Connection, prediction_id: str) -> dict[str, Any]:
    """One logged prediction, whole.

    Raises
    ------
    DataError
        There is none with this identity.
    """
    row = (
        connection.execute(select(predictions).where(predictions.c.prediction_id == prediction_id))
        .mappings()
        .first()
    )
    if row is None:
        raise DataError("No prediction has this identity. It is the prediction_id that came with the score.")
    return dict(row)


def read_predictions(
    connection: Connection, since: int | None, until: int | None, model_id: str | None
) -> list[tuple[Any, ...]]:
    """Logged predictions in the order they were made; columns as :data:`PREDICTION_COLUMNS`."""
    query = select(*(predictions.c[name] for name in PREDICTION_COLUMNS))
    query = query.where(received_range(since, until, predictions.c.prediction_time))
    if model_id is not None:
        query = query.where(predictions.c.model_id == model_id)
    return [tuple(row) for row in connection.execute(query.order_by(predictions.c.seq))]


def read_features(
    connection: Connection, since: int | None, until: int | None, model_id: str | None
) -> list[tuple[str, int, str | None, bytes]]:
    """Prediction identity, time, unit and float32 features of scored predictions."""
    p = predictions.c
    query = select(p.prediction_id, p.prediction_time, p.unit, p.features)
    query = query.where(received_range(since, until, p.prediction_time), p.status == "scored")
    if model_id is not None:
        query = query.where(p.model_id == model_id)
    return [(a, b, c, bytes(d)) for a, b, c, d in connection.execute(query.order_by(p.seq))]


def newest_predictions(connection: Connection, ids: Sequence[str], road: str) -> dict[str, dict[str, Any]]:
    """The newest prediction of each of some encounters: the latest in time, at one moment the best informed.

    Not the last that was written: a slow call may log an older score after a newer one.
    """
    p = predictions.c
    found: dict[str, dict[str, Any]] = {}
    for some in chunks(ids):
        order = [c.desc().nulls_last() for c in (p.prediction_time, p.events_seq, p.encounter_seq, p.seq)]
        place = func.row_number().over(partition_by=p.encounter_id, order_by=order).label("place")
        ranked = select(p.seq, place).where(p.encounter_id.in_(some), p.road == road).subquery()
        query = select(predictions).where(p.seq.in_(select(ranked.c.seq).where(ranked.c.place == 1)))
        found |= {row["encounter_id"]: dict(row) for row in connection.execute(query).mappings()}
    return found


_NEWEST = (
    select(predictions)
    .where(predictions.c.encounter_id == bindparam("who"), predictions.c.road == bindparam("way"))
    .order_by(
        *(
            predictions.c[n].desc().nulls_last()
            for n in ("prediction_time", "events_seq", "encounter_seq", "seq")
        )
    )
    .limit(1)
)


def newest_prediction(connection: Connection, encounter_id: str, road: str) -> dict[str, Any] | None:
    """As :func:`newest_predictions`, of one encounter."""
    row = connection.execute(_NEWEST, {"who": encounter_id, "way": road}).mappings().first()
    return None if row is None else dict(row)


def found_predictions(
    connection: Connection,
    encounter_ids: Sequence[str] | None,
    prediction_id: str | None,
    road: str,
    status: str | None,
    count: int,
    offset: int,
) -> tuple[int, list[dict[str, Any]]]:
    """Predictions of an encounter under any of its names, or the one of an identity, newest first.

    Returns how many, and a page of them.
    """
    p = predictions.c
    wanted = [p.road == road]
    wanted += [] if encounter_ids is None else [p.encounter_id.in_(encounter_ids)]
    wanted += [] if prediction_id is None else [p.prediction_id == prediction_id]
    wanted += [] if status is None else [p.status == status]
    total = connection.execute(select(func.count()).select_from(predictions).where(*wanted)).scalar_one()
    query = select(predictions).where(*wanted).order_by(p.prediction_time.desc(), p.seq.desc())
    rows = connection.execute(query.limit(count).offset(offset)).mappings()
    return int(total), [dict(row) for row in rows]


def past_predictions(
    connection: Connection, names: Sequence[str], road: str, since: int | None, until: int | None, limit: int
) -> tuple[int, list[dict[str, Any]]]:
    """Predictions of an encounter, by any of its names, ``since <= prediction_time < until``: how many, the newest."""
    p = predictions.c
    wanted = (p.road == road, p.encounter_id.in_(names), received_range(since, until, p.prediction_time))
    total = connection.execute(select(func.count()).select_from(predictions).where(*wanted)).scalar_one()
    query = select(*(p[name] for name in (*PREDICTION_COLUMNS, "reasons"))).where(*wanted)
    rows = connection.execute(query.order_by(p.prediction_time.desc(), p.seq.desc()).limit(limit))
    return int(total), [dict(row) for row in rows.mappings()]


def reach(connection: Connection, ids: Iterable[str], road: str) -> dict[str, tuple[int, int]]:
    """How far the facts went that predictions of some encounters have read, as ``seq`` of events and encounter."""
    p = predictions.c
    found: dict[str, tuple[int, int]] = {}
    for some in chunks(ids):
        query = select(p.encounter_id, func.max(p.events_seq), func.max(p.encounter_seq))
        query = query.where(p.encounter_id.in_(some), p.road == road).group_by(p.encounter_id)
        found |= {
            who: (int(told or 0), int(picture or 0)) for who, told, picture in connection.execute(query)
        }
    return found


def history(
    connection: Connection, ids: Sequence[str], road: str, since: int, until: int
) -> dict[str, list[tuple[int, float | None, bool, str]]]:
    """Time, probability, page and prediction identity of each of some encounters, oldest first."""
    p = predictions.c
    found: dict[str, list[tuple[int, float | None, bool, str]]] = {}
    for some in chunks(ids):
        query = select(p.encounter_id, p.prediction_time, p.probability, p.page, p.prediction_id).where(
            p.encounter_id.in_(some), p.road == road, p.prediction_time >= since, p.prediction_time <= until
        )
        for who, when, probability, page, identity in connection.execute(
            query.order_by(p.prediction_time, p.seq)
        ):
            found.setdefault(who, []).append((when, probability, page, identity))
    return found


def remember_model(connection: Connection, model_id: str, folder: str, now: int) -> None:
    """Note where a model's bundle is, so that its predictions can be repeated after it was replaced."""
    connection.execute(delete(models).where(models.c.model_id == model_id))
    connection.execute(insert(models).values(model_id=model_id, folder=folder, loaded_time=now))


def model_folder(connection: Connection, model_id: str) -> str | None:
    """Where a model's bundle was when it last served."""
    return connection.execute(select(models.c.folder).where(models.c.model_id == model_id)).scalar()


def alert_memory(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[dict[str, Any], int]]:
    """What the alert policy remembers of some encounters, and up to when."""
    found: dict[str, tuple[dict[str, Any], int]] = {}
    for some in chunks(ids):
        query = select(alert_states).where(alert_states.c.encounter_id.in_(some))
        for row in connection.execute(query).mappings():
            found[row["encounter_id"]] = (json.loads(row["state"]), row["prediction_time"])
    return found


def keep_alert_memory(connection: Connection, memory: Mapping[str, tuple[dict[str, Any], int]]) -> None:
    """Write what the alert policy remembers."""
    for some in chunks(memory):
        connection.execute(delete(alert_states).where(alert_states.c.encounter_id.in_(some)))
    rows = [
        {"encounter_id": who, "state": json.dumps(state, sort_keys=True), "prediction_time": when}
        for who, (state, when) in memory.items()
    ]
    if rows:
        connection.execute(insert(alert_states), rows)


def forget_alert_memory(connection: Connection, ids: Iterable[str]) -> None:
    """Let the alert policy begin anew with some encounters."""
    for some in chunks(ids):
        connection.execute(delete(alert_states).where(alert_states.c.encounter_id.in_(some)))


def open_alerts(connection: Connection) -> list[str]:
    """The encounters that have an open alert."""
    return list(
        connection.execute(select(alerts.c.encounter_id).where(alerts.c.ended_time.is_(None))).scalars()
    )


def add_alerts(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Raise alerts; one that was still open for the same encounter ends, since this one takes its place.

    Returns those that ended, as they are now.
    """
    ended: list[dict[str, Any]] = []
    for row in rows:
        ended += end_alerts(connection, [row["encounter_id"]], row["raised_time"])
        connection.execute(insert(alerts), [dict(row)])
    return ended


def end_alerts(connection: Connection, ids: Sequence[str], when: int) -> list[dict[str, Any]]:
    """End the open alerts of some encounters; returns them as they are now."""
    ended: list[dict[str, Any]] = []
    for some in chunks(ids):
        still_open = (alerts.c.encounter_id.in_(some), alerts.c.ended_time.is_(None))
        rows = connection.execute(select(alerts).where(*still_open).order_by(alerts.c.raised_time)).mappings()
        ended += [dict(row) | {"ended_time": when} for row in rows]
        connection.execute(update(alerts).where(*still_open).values(ended_time=when))
    return ended


def alert(connection: Connection, alert_id: str) -> dict[str, Any] | None:
    """One alert, whole; None where there is none of this identity."""
    row = connection.execute(select(alerts).where(alerts.c.alert_id == alert_id)).mappings().first()
    return None if row is None else dict(row)


def read_alerts(
    connection: Connection, since: int | None, until: int | None, ids: Sequence[str] | None = None
) -> list[tuple[Any, ...]]:
    """Alerts by when they were raised; columns as :data:`ALERT_COLUMNS`."""
    query = select(*(alerts.c[name] for name in ALERT_COLUMNS))
    query = query.where(received_range(since, until, alerts.c.raised_time))
    if ids is not None:
        query = query.where(alerts.c.encounter_id.in_(ids))
    return [tuple(row) for row in connection.execute(query.order_by(alerts.c.raised_time, alerts.c.alert_id))]


def acknowledge(
    connection: Connection, alert_id: str, who: str, when: int, outcome: str, comment: str | None
) -> dict[str, Any]:
    """Note who has seen an alert. Every answer is kept; the first one is the acknowledgement.

    Raises
    ------
    DataError
        There is no such alert.
    """
    row = alert(connection, alert_id)
    if row is None:
        raise DataError("No alert has this identity. GET /v1/alerts lists them.")
    connection.execute(
        insert(feedback).values(
            alert_id=alert_id, given_time=when, given_by=who, outcome=outcome, comment=comment
        )
    )
    if row["acknowledged_time"] is None:
        connection.execute(
            update(alerts)
            .where(alerts.c.alert_id == alert_id)
            .values(acknowledged_time=when, acknowledged_by=who)
        )
    return dict(connection.execute(select(alerts).where(alerts.c.alert_id == alert_id)).mappings().one())
