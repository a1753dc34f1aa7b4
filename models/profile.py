"""What training data looked like, in summaries that hold no patient: the reference against which drift is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]

SHARES: Final = tuple(round(i / 50, 2) for i in range(1, 50))
"""Quantiles kept of each feature; the extremes are left out, since a single patient can be recognised by them."""

FEWEST: Final = 100
"""Below so many values a feature keeps only its missing share."""


def profile(matrix: Matrix, names: Sequence[str], probability: Floats, digits: int = 5) -> dict[str, Any]:
    """Summarise features and scores.

    Parameters
    ----------
    matrix : float32, shape (n, n_features), NaN = missing
    names : n_features names
    probability : shape (n,), NaN where unscorable

    Returns
    -------
    JSON-able: ``n``; ``features`` by name, each with ``missing`` (share), ``mean``, ``std`` and
    ``quantiles`` at ``shares``; ``probability`` likewise, with a histogram over ``edges``. Numbers are
    rounded to ``digits`` significant digits.
    """
    features = {name: _summary(matrix[:, i].astype(np.float64), digits) for i, name in enumerate(names)}
    scores = _summary(probability, digits)
    edges = [0.0, *(round(float(e), 6) for e in np.geomspace(0.001, 1.0, 25))]
    counts = np.histogram(probability[~np.isnan(probability)], bins=edges)[0]
    scores |= {"edges": edges, "histogram": [int(c) for c in counts]}
    return {"n": len(matrix), "shares": list(SHARES), "features": features, "probability": scores}


def _summary(values: Floats, digits: int) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    missing = 1 - len(known) / len(values) if len(values) else 1.0
    if len(known) < FEWEST:
        return {"missing": _round(missing, digits), "mean": None, "std": None, "quantiles": []}
    return {
        "missing": _round(missing, digits),
        "mean": _round(float(known.mean()), digits),
        "std": _round(float(known.std(ddof=1)), digits),
        "quantiles": [_round(float(q), digits) for q in np.quantile(known, SHARES)],
    }


def _round(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def sample(reference: dict[str, Any], n: int, rng: np.random.Generator) -> Matrix:
    """Draw a made-up reference matrix with the profile's distributions and missing shares.

    Features are drawn apart from each other: margins are right, relations between features are not. Good
    for drift measures that look at one feature at a time, for nothing else.

    Returns
    -------
    float32, shape (n, n_features), columns in the order of the profile's ``features`` (by name, once it has been JSON).
    """
    shares = np.array(reference["shares"])
    columns = [_draw(summary, shares, n, rng) for summary in reference["features"].values()]
    return np.column_stack(columns).astype(np.float32) if columns else np.empty((n, 0), dtype=np.float32)


def _draw(summary: dict[str, Any], shares: Floats, n: int, rng: np.random.Generator) -> Floats:
    if not summary["quantiles"]:
        return np.full(n, np.nan)
    values = np.interp(rng.random(n), shares, np.array(summary["quantiles"], dtype=np.float64))
    return np.where(rng.random(n) < summary["missing"], np.nan, values)
