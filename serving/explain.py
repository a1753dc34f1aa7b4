"""Repeating a logged prediction: same inputs, same model, and therefore the same numbers, or an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import ConfigError, DataError, SpecError
from serving.clock import iso
from serving.rounds import laid_out
from serving.scoring import Score, Scorer, unpack
from serving.settings import Settings
from serving.store import log
from serving.store.store import Store
from serving.whatif import what_if


def explain_prediction(
    settings: Settings, prediction_id: str, changes: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Make a logged prediction again from its stored inputs with the model it names, and give its reasons.

    ``changes`` are last values that are to be others; what the score would be then stands under ``what_if``.

    Raises
    ------
    DataError
        There is no such prediction, or it does not come out identical.
    ConfigError
        Its model is no longer where it was.
    """
    store = Store.open(settings.store_url, settings.store_key or None, settings.site)
    try:
        return repeat(store, settings, prediction_id, changes)
    finally:
        store.close()


def repeat(
    store: Store, settings: Settings, prediction_id: str, changes: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """As :func:`explain_prediction`, with a store that is open already."""
    with store.read() as connection:
        row = log.prediction(connection, prediction_id)
        scorer = _scorer(settings, row["model_id"], log.model_folder(connection, row["model_id"]))
        if row["inputs"] is not None:
            encounter, flat = unpack(row["inputs"], scorer.bundle.spec.features.concepts)
        else:
            encounter, flat = laid_out(connection, scorer, row)
    again = scorer.judge([encounter], flat, [row["prediction_time"]], [True])[0]
    _check(row, again)
    told = answer(row, again, scorer)
    if changes:
        told["what_if"] = what_if(scorer, encounter, flat, row["prediction_time"], changes, again)
    return told


def answer(row: dict[str, Any], again: Score, scorer: Scorer) -> dict[str, Any]:
    """The prediction and its reasons, as printed."""
    names = scorer.bundle.feature_names
    return {
        "prediction_id": row["prediction_id"],
        "model": row["model_id"],
        "prediction_time": iso(row["prediction_time"]),
        "created_time": iso(row["created_time"]),
        "status": again.status,
        "probability": again.probability,
        "raw": again.raw,
        "alert": again.alert,
        "identical": True,
        "base": again.base,
        "reasons": [reason.answer() for reason in again.reasons],
        "missing": list(again.missing),
        "features": {
            n: None if np.isnan(v) else float(v) for n, v in zip(names, again.features, strict=True)
        },
    }


def _check(row: dict[str, Any], again: Score) -> None:
    same = {
        "features": bytes(row["features"]) == again.features.astype("<f4").tobytes(),
        "status": row["status"] == again.status,
        "raw": row["raw"] == again.raw,
        "probability": row["probability"] == again.probability,
    }
    different = [name for name, equal in same.items() if not equal]
    if different:
        raise DataError(
            f"The prediction does not come out the same: {', '.join(different)} differ. The concept tables, the model "
            "or the code are not those it was made with; run the version that made it."
        )


def _scorer(settings: Settings, model_id: str, folder: str | None) -> Scorer:
    kept = settings.var / "models" / model_id  # where the store is shared, `folder` may be another machine's
    tried = dict.fromkeys([settings.sepsis_model, *([Path(folder)] if folder else []), kept])
    for place in tried:
        try:
            scorer = Scorer.load(place, settings.timezone)
        except SpecError:
            continue
        if scorer.bundle.model_id == model_id:
            return scorer
    raise ConfigError(
        f"The prediction was made by {model_id}, which is not at {' or '.join(map(str, tried))}. "
        "Set WARDCAST_SEPSIS_MODEL to that bundle's folder."
    )
