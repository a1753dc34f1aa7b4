"""Who may be scored: one function for batch and service, so that both refuse alike.

Reasons are ``out_of_scope`` (not the population the model was trained on) and ``insufficient_data`` (the
population, but nothing to go by). A score is never made up for either.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import HOUR_US
from features.errors import SpecError
from models.spec import Spec

SCORED: Final = "scored"
OUT_OF_SCOPE: Final = "out_of_scope"
INSUFFICIENT_DATA: Final = "insufficient_data"
ADMISSION: Final = ("icu_admission__hours_since_last", "age_years__last")
"""What is missing where nobody knows when intensive care began: its clock, and all that is dated by it. The first of
these that a model reads is asked."""
KEYS: Final = ("encounter_classes", "min_age", "vitals", "recent_h", "min_vitals")

Matrix = npt.NDArray[np.float32]


def scope_of(spec: Spec) -> dict[str, Any]:
    """The ``[scope]`` table of a spec, complete.

    Raises
    ------
    SpecError
        A key is missing, or a vital has no ``hours_since_last`` among the features.
    """
    scope = spec.section("scope")
    missing = [k for k in KEYS if k not in scope]
    if missing:
        raise SpecError(f"Spec section [scope] of {spec.name} lacks {', '.join(missing)}.")
    seen = seen_columns(spec)
    absent = [v for v in scope["vitals"] if v not in seen]
    if absent:
        raise SpecError(
            f"[scope] counts {', '.join(absent)}, but the features have no hours_since_last of them that looks back "
            f"{scope['recent_h']} h or more."
        )
    return scope


def seen_columns(spec: Spec) -> dict[str, int]:
    """Where the features say how long ago each vital sign of the scope was last seen, if it was in its recent hours."""
    return dict(_seen(spec.text))


@lru_cache(maxsize=64)
def _seen(text: str) -> dict[str, int]:
    """Of the text of a spec, since it is asked with every score and the features are many to look through."""
    spec = Spec.parse(text)
    scope, features = spec.section("scope"), spec.features
    recent_us = scope["recent_h"] * HOUR_US
    found = {
        w.concept: k
        for k, w in enumerate(features.windows)
        if w.statistic == "hours_since_last" and w.lookback_us >= recent_us
    }
    return {v: found[v] for v in scope["vitals"] if v in found}


def recent_vitals(matrix: Matrix, spec: Spec) -> npt.NDArray[np.int64]:
    """How many of the scope's vital signs were seen within its recent hours, shape (n,), read off the features."""
    scope = scope_of(spec)
    columns = list(seen_columns(spec).values())
    return np.asarray((matrix[:, columns] <= scope["recent_h"]).sum(axis=1), dtype=np.int64)


def admission_known(matrix: Matrix, spec: Spec) -> npt.NDArray[np.bool_]:
    """Whether the admission to intensive care is known, shape (n,); where no feature depends on it, nobody misses it.

    What is said of the patient is dated by it: a score without it would do without age and sex, unnoticed.
    """
    return np.asarray(~np.isnan(matrix[:, _dated_by(spec.text)]).any(axis=1))


@lru_cache(maxsize=64)
def _dated_by(text: str) -> list[int]:
    names = Spec.parse(text).features.names
    return [names.index(name) for name in ADMISSION if name in names][:1]


def assess(
    encounter_class: Sequence[str] | pd.Series,
    age_years: npt.ArrayLike,
    n_recent_vitals: npt.ArrayLike,
    spec: Spec,
    admitted: npt.ArrayLike = True,
) -> npt.NDArray[np.object_]:
    """Say of each row whether it can be scored, and if not, why.

    Parameters
    ----------
    encounter_class : "ed", "ward" or "icu", shape (n,)
        Empty or None where nobody said: then nobody can say that the model is for the patient, which is
        ``insufficient_data``.
    age_years : float, shape (n,)
        NaN where unknown: then nobody can say that the patient is an adult, which is ``insufficient_data``.
    n_recent_vitals : int, shape (n,)
        From :func:`recent_vitals`.
    admitted : bool, shape (n,)
        From :func:`admission_known`; only asked of those in intensive care.

    Returns
    -------
    ``scored``, ``out_of_scope`` or ``insufficient_data``, shape (n,).
    """
    scope = scope_of(spec)
    age = np.asarray(age_years, dtype=np.float64)
    place = np.asarray(encounter_class, dtype=object)
    unsaid = pd.isna(place) | (place == "")
    outside = ~(unsaid | np.isin(place, scope["encounter_classes"])) | (age < scope["min_age"])
    undated = (place == "icu") & ~np.asarray(admitted, dtype=np.bool_)
    unknown = unsaid | np.isnan(age) | undated | (np.asarray(n_recent_vitals) < scope["min_vitals"])
    statuses = np.select([outside, unknown], [OUT_OF_SCOPE, INSUFFICIENT_DATA], SCORED)
    return statuses.astype(object)
