"""What a score would have been, had the last value of something been another: the same road with one event changed.

The changed value takes the place of the last one that was known, at its own time; where there was none, it is measured
at the prediction. Features are built anew by the code that builds all others, so that whatever follows from the value
follows: means, slopes, ratios, clinical scores. It says how the model works, not what treating the patient would do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from features.concepts import loader
from features.errors import DataError
from features.windows import FlatEvents
from serving.reasons import plain_label, unit_text
from serving.scoring import Facts, Score, Scorer

CAUTION: Final = "How the model answers to another value; not what a treatment would do."
MOST: Final = 10


def changes_of(texts: Iterable[str]) -> dict[str, float]:
    """``lactate=1.0`` and the like, as the command line has them.

    Raises
    ------
    DataError
        One is not of that form.
    """
    changes: dict[str, float] = {}
    for text in texts:
        concept, _, value = text.partition("=")
        try:
            changes[concept.strip()] = float(value)
        except ValueError:
            raise DataError(f"A change is CONCEPT=VALUE, such as lactate=1.0, not {text!r}.") from None
    return changes


def what_if(
    scorer: Scorer, encounter: Facts, flat: FlatEvents, now: int, changes: Mapping[str, float], given: Score
) -> dict[str, Any]:
    """The score with other last values, beside the one that was given.

    Parameters
    ----------
    flat : the events of this encounter alone
    now : prediction time, microseconds
    changes : value by concept, in its canonical unit

    Raises
    ------
    DataError
        The model does not read a concept, or a value is none that a patient can have.
    """
    _check(scorer, changes)
    other = scorer.judge([encounter], changed(flat, now, changes), [now], [True])[0]
    known = given.probability is not None and other.probability is not None
    return {
        "changes": dict(changes),
        "status": other.status,
        "raw": other.raw,
        "probability": other.probability,
        "alert": other.alert,
        "change": (other.probability or 0.0) - (given.probability or 0.0) if known else None,
        "reasons": [reason.answer() for reason in other.reasons],
        "caution": CAUTION,
    }


def _check(scorer: Scorer, changes: Mapping[str, float]) -> None:
    if not 0 < len(changes) <= MOST:
        raise DataError(f"Change one to {MOST} values, got {len(changes):,}.")
    read = scorer.bundle.spec.features.concepts
    unread = [c for c in changes if c not in read]
    if unread:
        raise DataError(
            f"{scorer.bundle.model_id} does not read {', '.join(sorted(unread))[:200]}. It reads {', '.join(read)}."
        )
    for concept, value in changes.items():
        about = loader.concepts()[concept]
        if not about.low <= value <= about.high:
            raise DataError(
                f"{plain_label(about.label)[0]} can lie between {about.low:g} and {about.high:g} "
                f"{unit_text(about.unit)}. Give such a value."
            )


def changed(flat: FlatEvents, now: int, changes: Mapping[str, float]) -> FlatEvents:
    """The events of one encounter with other last values, as known at ``now`` (microseconds)."""
    for concept, value in changes.items():
        flat = _changed(flat, now, flat.concepts.index(concept), value)
    return flat


def _changed(flat: FlatEvents, now: int, concept: int, value: float) -> FlatEvents:
    first, stop = int(flat.start[concept]), int(flat.start[concept + 1])
    rows = np.arange(first, stop)
    known = (flat.time[rows] <= now) & (flat.available[rows] <= now)
    if flat.superseded.size:
        known &= flat.superseded[rows] > now
    rows = rows[known]
    if rows.size:
        values = flat.value.copy()
        values[rows[-1]] = value
        return replace(flat, value=values)
    place = first + int(np.searchsorted(flat.time[first:stop], now, side="right"))
    later = np.iinfo(np.int64).max
    return replace(
        flat,
        start=flat.start + (np.arange(flat.start.size) > concept),
        time=np.insert(flat.time, place, now),
        available=np.insert(flat.available, place, now),
        value=np.insert(flat.value, place, value),
        superseded=np.insert(flat.superseded, place, later) if flat.superseded.size else flat.superseded,
    )
