"""The service's road tried out before a model may serve: the same patients scored as the service would, one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import micros
from models.bundle import Bundle
from serving.reasons import reasons
from serving.scoring import Score, Scorer
from serving.store.tables import ENCOUNTER_TIMES

Floats = npt.NDArray[np.float64]


def rehearse(
    bundle: Bundle, encounters: pd.DataFrame, events: pd.DataFrame, rows: pd.DataFrame
) -> tuple[Floats, float]:
    """Score each row as the service does: one patient at a time, with reasons.

    Parameters
    ----------
    encounters : DataFrame with ``events.ENCOUNTER_COLUMNS``
    events : cleaned canonical events of them, without what the encounters themselves say
    rows : DataFrame with ``encounter_id`` and ``prediction_time``

    Returns
    -------
    Raw scores, shape (n_rows,), NaN where there is none; and the median CPU that the model takes for one of them, from
    its features to probability and reasons in words, milliseconds.
    """
    scorer = Scorer(bundle)
    scorer.warm()
    raw, spent = np.full(len(rows), np.nan), []
    for place, facts, known, now in _moments(encounters, events, rows):
        score = scorer.score([facts], known, now, explain=True)[0]
        raw[place] = np.nan if score.raw is None else score.raw
        spent.append(_cpu_ms(bundle, score))
    return raw, median(spent) if spent else float("nan")


def _cpu_ms(bundle: Bundle, score: Score) -> float:
    """CPU of this thread for what the model does of a score."""
    began, row = time.thread_time(), score.features[None]
    bundle.score(row)
    told = bundle.contributions(row)[0]
    reasons(bundle.spec.features, score.features, told, score.measured or {}, score.prediction_time, "UTC")
    return 1000 * (time.thread_time() - began)


def _moments(
    encounters: pd.DataFrame, events: pd.DataFrame, rows: pd.DataFrame
) -> Iterator[tuple[int, dict[str, Any], pd.DataFrame, int]]:
    """Every row with what is known of its patient, as the store would hand it over."""
    told = {e["encounter_id"]: e for e in _facts(encounters)}
    theirs = dict(tuple(events.groupby(events["encounter_id"].astype("str"), sort=False)))
    none = events.iloc[:0]
    for place, (who, now) in enumerate(
        zip(rows["encounter_id"], micros(rows["prediction_time"]), strict=True)
    ):
        yield place, told[who], theirs.get(who, none), int(now)


def _facts(encounters: pd.DataFrame) -> list[dict[str, Any]]:
    """Encounters as the store keeps them: times as microseconds, nothing where nothing is known."""
    times = {name: micros(encounters[name]) for name in ENCOUNTER_TIMES if name in encounters}
    kept: list[dict[str, Any]] = [
        {str(k): v for k, v in row.items()}
        for row in encounters.astype(object).where(encounters.notna(), None).to_dict("records")
    ]
    return [
        row | {k: None if row[k] is None else int(at[i]) for k, at in times.items()}
        for i, row in enumerate(kept)
    ]
