"""From log-odds to probability: a monotone map that JSON can hold and that keeps the ranking.

Three maps are known. ``logistic`` (Platt) is a line in log-odds. ``beta`` (Kull, Silva Filho & Flach,
AISTATS 2017) is a line in ``log p`` and ``-log(1 - p)``. ``isotonic`` is centred isotonic regression
(Oron & Flournoy, Stat Biopharm Res 2017;9:258): each flat step of the isotonic fit becomes one knot at
its centre, and log-odds are read between knots in straight lines. Plain isotonic steps would tie a
twentieth of all scores and give probabilities of exactly 0; here every map rises strictly, so that AUROC
and alert order are those of the raw score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.errors import DataError, SpecError
from models.metrics import expit, logistic, logit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

METHODS: Final = ("isotonic", "beta", "logistic")
TIE: Final = 1e-4
FEWEST_EVENTS: Final = 30
"""A knot stands on at least so many positives and as many negatives: fewer, and its log-odds are noise."""


@dataclass(frozen=True)
class Calibrator:
    """A strictly rising map from raw log-odds to probability.

    Attributes
    ----------
    method : str
        One of :data:`METHODS`.
    x, y : tuple of float
        ``isotonic``: knots, raw log-odds and calibrated log-odds; beyond the ends the map goes on at
        ``slope``. ``logistic``: empty.
    coefficients : tuple of float
        ``logistic``: slope, intercept. ``beta``: weights of ``log p`` and ``-log(1 - p)``, intercept.
        ``isotonic``: slope beyond the ends.
    """

    method: str
    coefficients: tuple[float, ...]
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    @classmethod
    def fit(
        cls, raw: Floats, label: Ints, weight: Floats | None = None, method: str = "isotonic"
    ) -> Calibrator:
        """Fit one map.

        Parameters
        ----------
        raw : log-odds, shape (n,), of rows the model was not fitted on
        label : 0 or 1, shape (n,)
        weight : shape (n,), optional

        Raises
        ------
        DataError
            Fewer than 30 positives or 30 negatives: too few to calibrate on.
        SpecError
            The method is unknown.
        """
        weight = np.ones(len(raw)) if weight is None else weight
        fewest = min(int(label.sum()), int(len(label) - label.sum()))
        if fewest < FEWEST_EVENTS:
            raise DataError(
                f"Calibration needs {FEWEST_EVENTS} positive and {FEWEST_EVENTS} negative rows, got {fewest} of one. "
                "Give more patients."
            )
        if method == "logistic":
            return cls(method, _line(raw[:, None], label, weight))
        if method == "beta":
            return _fit_beta(raw, label, weight)
        if method == "isotonic":
            return _fit_isotonic(raw, label, weight)
        raise SpecError(f"Calibration method {method!r} is unknown. Choose one of {', '.join(METHODS)}.")

    def apply(self, raw: Floats) -> Floats:
        """Calibrated probabilities in (0, 1), shape of ``raw``; NaN stays NaN."""
        raw = np.asarray(raw, dtype=np.float64)
        if self.method == "logistic":
            return expit(self.coefficients[0] * raw + self.coefficients[1])
        if self.method == "beta":
            a, b, c = self.coefficients
            with np.errstate(invalid="ignore"):
                return expit(a * -np.logaddexp(0.0, -raw) + b * np.logaddexp(0.0, raw) + c)
        x, y = np.array(self.x), np.array(self.y)
        beyond = np.minimum(raw - x[0], 0.0) + np.maximum(raw - x[-1], 0.0)
        return expit(np.interp(raw, x, y) + self.coefficients[0] * beyond)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; floats survive unchanged."""
        return {
            "method": self.method,
            "coefficients": list(self.coefficients),
            "x": list(self.x),
            "y": list(self.y),
        }

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Calibrator:
        """The inverse of :meth:`to_dict`.

        Raises
        ------
        SpecError
            A key is missing, the method unknown, or the map does not rise.
        """
        try:
            parts = (tuple(float(v) for v in table[k]) for k in ("coefficients", "x", "y"))
            calibrator = cls(str(table["method"]), *parts)
        except (KeyError, TypeError, ValueError):
            raise SpecError("A calibrator needs method, coefficients, x and y (lists of numbers).") from None
        rising = all(np.all(np.diff(knots) > 0) for knots in (calibrator.x, calibrator.y))
        if calibrator.method not in METHODS or not rising or len(calibrator.x) != len(calibrator.y):
            raise SpecError(
                "The calibrator is of an unknown method or does not rise. Train the bundle again."
            )
        return calibrator


def choose(
    raw: Floats, label: Ints, fold: Ints, methods: tuple[str, ...] = METHODS
) -> tuple[Calibrator, dict[str, float]]:
    """Fit the first map whose cross-fitted log loss is within a ten-thousandth of the lowest.

    Parameters
    ----------
    raw, label, fold : shape (n,)
        ``fold`` keeps a patient's rows together: each fold is judged by maps fitted on the other folds.
    methods : tuple of str
        In order of preference: maps that tie in log loss can still differ in calibration.

    Returns
    -------
    The chosen calibrator, fitted on all rows, and each method's log loss.
    """
    losses = {method: _cross_fitted_loss(raw, label, fold, method) for method in methods}
    chosen = next(m for m in methods if losses[m] <= (1 + TIE) * min(losses.values()))
    return Calibrator.fit(raw, label, method=chosen), losses


def _cross_fitted_loss(raw: Floats, label: Ints, fold: Ints, method: str) -> float:
    total = 0.0
    for k in np.unique(fold):
        inside = fold == k
        odds = logit(Calibrator.fit(raw[~inside], label[~inside], method=method).apply(raw[inside]))
        total += float(np.logaddexp(0.0, np.where(label[inside] == 1, -odds, odds)).sum())
    return total / len(raw)


def _line(columns: Floats, label: Ints, weight: Floats) -> tuple[float, ...]:
    design = np.column_stack([columns, np.ones(len(columns))])
    return _floats(logistic(design, np.zeros(len(columns)), label.astype(np.float64), weight))


def _fit_beta(raw: Floats, label: Ints, weight: Floats) -> Calibrator:
    columns = np.column_stack([-np.logaddexp(0.0, -raw), np.logaddexp(0.0, raw)])
    a, b, c = _line(columns, label, weight)
    if a < 0:
        b, c = _line(columns[:, 1:], label, weight)
        a = 0.0
    elif b < 0:
        a, c = _line(columns[:, :1], label, weight)
        b = 0.0
    return Calibrator("beta", (a, b, c))


def _fit_isotonic(raw: Floats, label: Ints, weight: Floats) -> Calibrator:
    from sklearn.isotonic import IsotonicRegression  # slow to import, and only fitting needs it

    fitted = IsotonicRegression(out_of_bounds="clip").fit(raw, label, sample_weight=weight).predict(raw)
    step = np.unique(fitted, return_inverse=True)[1]
    knot = _merge(np.bincount(step), np.bincount(step, weights=label))[step]
    size = np.bincount(knot, weights=weight)
    centre = np.bincount(knot, weights=raw * weight) / size
    share = np.bincount(knot, weights=label * weight) / size
    slope = max(_line(raw[:, None], label, weight)[0], 0.1)
    return Calibrator("isotonic", (slope,), _floats(centre), _floats(logit(share)))


def _merge(rows: npt.NDArray[Any], positive: npt.NDArray[Any]) -> Ints:
    """Knot of each step: neighbouring steps join until a knot holds enough of both outcomes."""
    knot, knots = 0, np.zeros(len(rows), dtype=np.int64)
    yes = no = 0.0
    for i in range(len(rows)):
        knots[i] = knot
        yes, no = yes + positive[i], no + rows[i] - positive[i]
        if yes >= FEWEST_EVENTS and no >= FEWEST_EVENTS:
            knot, yes, no = knot + 1, 0.0, 0.0
    return np.minimum(knots, max(knot - 1, 0))


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
