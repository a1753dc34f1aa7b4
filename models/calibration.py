"""From log-odds to probability: a monotone map that JSON can hold and that keeps the ranking.

Four maps are known. ``logistic`` (Platt) is a line in log-odds. ``beta`` (Kull, Silva Filho & Flach,
AISTATS 2017) is a line in ``log p`` and ``-log(1 - p)``. ``isotonic`` is centred isotonic regression
(Oron & Flournoy, Stat Biopharm Res 2017;9:258): each flat step of the isotonic fit becomes one knot at
its centre, and log-odds are read between knots in straight lines. ``venn_abers`` (Vovk & Petej, UAI 2014) is
the same over the inductive Venn-Abers probability ``p1 / (1 - p0 + p1)``. Plain steps would tie a
twentieth of all scores and give probabilities of exactly 0; here every map rises strictly, so that AUROC
and alert order are those of the raw score.

A map can carry a :class:`Band`: how far off it may be for the chance of who its patients were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.errors import DataError, SpecError
from models.metrics import TINY, expit, logistic, logit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

METHODS: Final = ("isotonic", "beta", "logistic", "venn_abers")
KNOTTED: Final = ("isotonic", "venn_abers")
TIE: Final = 1e-4
PLACES: Final = 2048
"""Scores are read in so many places of equal size where a map is fitted again and again."""

VENN_PLACES: Final = 1024
BAND_KNOTS: Final = 65
FEWEST_EVENTS: Final = 30
"""A knot stands on at least so many positives and as many negatives: fewer, and its log-odds are noise."""


@dataclass(frozen=True)
class Band:
    """How far a probability's log-odds may lie below and above it: 95 % over resampled patients.

    Attributes
    ----------
    x : tuple of float
        Raw log-odds, rising; between them the widths are read in straight lines, beyond them they stay.
    below, above : tuple of float
        Log-odds, at least 0.
    """

    x: tuple[float, ...]
    below: tuple[float, ...]
    above: tuple[float, ...]


@dataclass(frozen=True)
class Calibrator:
    """A strictly rising map from raw log-odds to probability.

    Attributes
    ----------
    method : str
        One of :data:`METHODS`.
    x, y : tuple of float
        ``isotonic`` and ``venn_abers``: knots, raw log-odds and calibrated log-odds; beyond the ends the map goes on
        at ``slope``. ``logistic`` and ``beta``: empty.
    coefficients : tuple of float
        ``logistic``: slope, intercept. ``beta``: weights of ``log p`` and ``-log(1 - p)``, intercept.
        ``isotonic`` and ``venn_abers``: slope beyond the ends.
    band : Band or None
        The uncertainty of the map, where it was measured.
    """

    method: str
    coefficients: tuple[float, ...]
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    band: Band | None = None

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
        _enough(float((weight * label).sum()), float((weight * (1 - label)).sum()))
        if method == "logistic":
            return cls(method, _line(raw[:, None], label, weight))
        if method == "beta":
            return _fit_beta(raw, label, weight)
        if method == "isotonic":
            return _fit_isotonic(raw, label, weight)
        if method == "venn_abers":
            return _fit_venn_abers(raw, label, weight)
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

    def interval(self, raw: Floats) -> tuple[Floats, Floats] | None:
        """Lowest and highest probability that the map's patients allow, 95 %, each the shape of ``raw``; None where
        that was not measured.

        It says how well the risk of everyone with this score is known. It says nothing of one patient's luck.
        """
        if self.band is None:
            return None
        raw = np.asarray(raw, dtype=np.float64)
        odds = logit(self.apply(raw))
        low = odds - np.interp(raw, self.band.x, self.band.below)
        return expit(low), expit(odds + np.interp(raw, self.band.x, self.band.above))

    def with_band(
        self,
        raw: Floats,
        label: Ints,
        patient: Ints,
        rng: np.random.Generator,
        replicates: int = 200,
        weight: Floats | None = None,
    ) -> Calibrator:
        """The same map with the spread it would have had over other draws of its patients.

        Parameters
        ----------
        raw, label : shape (n,), the rows that the map was fitted on
        patient : int codes from 0, shape (n,); patients are resampled whole
        weight : shape (n,), optional
            Those the map was fitted with.
        """
        rows = Clustered.of(raw, label, patient, weight)
        draws = [self._again(rows, rows.draw(rng)) for _ in range(replicates)]
        return self.banded(rows.knots, np.array([logit(d.apply(rows.knots)) for d in draws if d is not None]))

    def banded(self, knots: Floats, drawn: Floats) -> Calibrator:
        """The same map with a band from other maps' calibrated log-odds at knots, shape (n_maps, n_knots)."""
        odds = logit(self.apply(knots))
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
        return replace(
            self,
            band=Band(
                _floats(knots), _floats(np.maximum(odds - low, 0)), _floats(np.maximum(high - odds, 0))
            ),
        )

    def _again(self, rows: Clustered, counts: Floats) -> Calibrator | None:
        """The map from resampled patients; None where too few events were drawn."""
        try:
            return Calibrator.fit(*rows.weighted(counts), self.method)
        except DataError:
            return None

    def adjusted(self, slope: float, intercept: float) -> Calibrator:
        """The map after a line in calibrated log-odds: what a new site needs when the ranking travels. No band.

        Raises
        ------
        SpecError
            The slope is not positive: the map would fall.
        """
        if not slope > 0:
            raise SpecError(f"A calibrator's slope must be positive, got {slope:g}.")
        if self.method in KNOTTED:
            y = _floats(slope * np.array(self.y) + intercept)
            return Calibrator(self.method, (slope * self.coefficients[0],), self.x, y)
        scaled = [slope * c for c in self.coefficients]
        return Calibrator(self.method, (*scaled[:-1], scaled[-1] + intercept))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; floats survive unchanged."""
        table: dict[str, Any] = {
            "method": self.method,
            "coefficients": list(self.coefficients),
            "x": list(self.x),
            "y": list(self.y),
        }
        if self.band is not None:
            table["band"] = {key: list(getattr(self.band, key)) for key in ("x", "below", "above")}
        return table

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Calibrator:
        """The inverse of :meth:`to_dict`.

        Raises
        ------
        SpecError
            A key is missing, the method unknown, or the map does not rise.
        """
        try:
            coefficients, x, y = (tuple(float(v) for v in table[k]) for k in ("coefficients", "x", "y"))
            calibrator = cls(str(table["method"]), coefficients, x, y, _band(table.get("band")))
        except (KeyError, TypeError, ValueError):
            raise SpecError("A calibrator needs method, coefficients, x and y (lists of numbers).") from None
        rising = all(np.all(np.diff(knots) > 0) for knots in (calibrator.x, calibrator.y))
        if calibrator.method not in METHODS or not rising or len(calibrator.x) != len(calibrator.y):
            raise SpecError(
                "The calibrator is of an unknown method or does not rise. Train the bundle again."
            )
        return calibrator


@dataclass(frozen=True)
class Clustered:
    """Scored rows as what each patient adds to each place of the score, so that patients are resampled cheaply."""

    x: Floats
    share: Any
    knots: Floats

    @classmethod
    def of(cls, raw: Floats, label: Ints, patient: Ints, weight: Floats | None = None) -> Clustered:
        """From rows; ``patient`` are int codes from 0, and each row counts once or as ``weight`` says."""
        from scipy.sparse import csr_array  # only fitting needs it

        place, x = _places(raw, PLACES)
        shape = (int(patient.max()) + 1, 2 * len(x))
        counts = np.ones(len(raw)) if weight is None else weight
        share = csr_array((counts, (patient, place * 2 + label)), shape=shape).T.tocsr()
        shares = np.concatenate(
            [[0.001], np.linspace(0.01, 0.9, BAND_KNOTS // 2), 1 - np.geomspace(0.09, 1e-4, 32)]
        )
        return cls(x, share, np.unique(np.quantile(raw, shares)))

    def draw(self, rng: np.random.Generator) -> Floats:
        """How often each patient is in a resample, shape (n_patients,)."""
        patients = self.share.shape[1]
        return np.bincount(rng.integers(0, patients, patients), minlength=patients).astype(np.float64)

    def weighted(self, counts: Floats) -> tuple[Floats, Ints, Floats]:
        """Places, labels and weights of rows that stand for the patients drawn so often."""
        cells = self.share @ counts
        seen = cells > 0
        label = np.tile(np.array([0, 1], dtype=np.int64), len(self.x))
        return np.repeat(self.x, 2)[seen], label[seen], cells[seen]


def venn_abers(raw: Floats, label: Ints, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Inductive Venn-Abers: at each of at most 1,024 places of the score, the probability if a new row there were
    negative (``p0``) and if it were positive (``p1``).

    Returns
    -------
    places, p0, p1 : each shape (n_places,)
    """
    place = _places(raw, VENN_PLACES)[0]
    size = np.bincount(place, weights=weight).astype(np.float64)
    positive = np.bincount(place, weights=label * weight).astype(np.float64)
    p0, p1 = (_isotonic_with_one_more(positive, size, outcome) for outcome in (0.0, 1.0))
    return np.bincount(place, weights=raw * weight) / size, p0, p1


def _isotonic_with_one_more(positive: Floats, size: Floats, outcome: float) -> Floats:
    """Isotonic fit at each place after one more row there with this outcome, by the max-min formula.

    The value at i is the largest, over starts a <= i, of the smallest, over ends b >= i, mean of places a to b.
    """
    above = np.append(0.0, np.cumsum(positive))
    rows = np.append(0.0, np.cumsum(size))
    start, end = np.arange(len(size))[:, None], np.arange(len(size))[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (above[end + 1] - above[start] + outcome) / (rows[end + 1] - rows[start] + 1)
    mean = np.where(end >= start, mean, np.inf)
    smallest = np.minimum.accumulate(mean[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(np.where(end >= start, smallest, -np.inf).max(axis=0))


def choose(
    raw: Floats,
    label: Ints,
    fold: Ints,
    methods: tuple[str, ...] = METHODS,
    weight: Floats | None = None,
) -> tuple[Calibrator, dict[str, float]]:
    """Fit the first map whose cross-fitted log loss is within a ten-thousandth of the lowest.

    Parameters
    ----------
    raw, label, fold : shape (n,)
        ``fold`` keeps a patient's rows together: each fold is judged by maps fitted on the other folds.
    methods : tuple of str
        In order of preference: maps that tie in log loss can still differ in calibration.
    weight : shape (n,), optional
        How much each row counts, in the fit and in the log loss.

    Returns
    -------
    The chosen calibrator, fitted on all rows, and each method's log loss.
    """
    rows = _Folded.of(raw, label, fold, weight)
    losses = {method: rows.loss(method) for method in methods}
    chosen = next(m for m in methods if losses[m] <= (1 + TIE) * min(losses.values()))
    return Calibrator.fit(raw, label, weight, chosen), losses


def cross_fitted(raw: Floats, label: Ints, fold: Ints, method: str, weight: Floats | None = None) -> Floats:
    """Probabilities of each fold from a map fitted on the other folds, shape (n,)."""
    probability = np.full(len(raw), np.nan)
    rows = _Folded.of(raw, label, fold, weight)
    for k in range(rows.cells.shape[0]):
        mine = fold == k
        probability[mine] = rows.without(k, method).apply(raw[mine])
    return probability


@dataclass(frozen=True)
class _Folded:
    """Counts of rows by fold, place of the score and label, shape (n_folds, n_places, 2): what cross-fitting needs."""

    x: Floats
    cells: Floats

    @classmethod
    def of(cls, raw: Floats, label: Ints, fold: Ints, weight: Floats | None) -> _Folded:
        place, x = _places(raw, PLACES)
        folds = int(fold.max()) + 1
        cells = np.bincount((fold * len(x) + place) * 2 + label, weight, minlength=folds * len(x) * 2)
        return cls(x, cells.reshape(folds, len(x), 2).astype(np.float64))

    def without(self, k: int, method: str) -> Calibrator:
        """The map of the other folds."""
        counts = (self.cells.sum(axis=0) - self.cells[k]).ravel()
        label = np.tile(np.array([0, 1], dtype=np.int64), len(self.x))
        seen = counts > 0
        return Calibrator.fit(np.repeat(self.x, 2)[seen], label[seen], counts[seen], method)

    def loss(self, method: str) -> float:
        """Log loss, each fold judged by the map of the others."""
        total = 0.0
        for k, mine in enumerate(self.cells):
            if mine.sum():
                odds = logit(self.without(k, method).apply(self.x))
                total += float(
                    (mine[:, 1] * np.logaddexp(0, -odds) + mine[:, 0] * np.logaddexp(0, odds)).sum()
                )
        return total / float(self.cells.sum())


def _places(raw: Floats, places: int) -> tuple[Ints, Floats]:
    """The place of each score among at most so many of equal size, and the mean score of each place."""
    edges = np.unique(np.quantile(raw, np.linspace(0, 1, places + 1)[1:-1]))
    place = np.unique(edges.searchsorted(raw, side="right"), return_inverse=True)[1].astype(np.int64)
    return place, np.bincount(place, weights=raw) / np.bincount(place)


def _enough(positive: float, negative: float) -> None:
    if min(positive, negative) < FEWEST_EVENTS:
        raise DataError(
            f"Calibration needs {FEWEST_EVENTS} positive and {FEWEST_EVENTS} negative rows, got "
            f"{int(min(positive, negative))} of one. Give more patients."
        )


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
    rows, positive = np.bincount(step, weights=weight), np.bincount(step, weights=label * weight)
    knot = _merge(rows, positive)[step]
    size = np.bincount(knot, weights=weight)
    centre = np.bincount(knot, weights=raw * weight) / size
    share = np.bincount(knot, weights=label * weight) / size
    slope = max(_line(raw[:, None], label, weight)[0], 0.1)
    return Calibrator("isotonic", (slope,), _floats(centre), _floats(logit(share)))


def _fit_venn_abers(raw: Floats, label: Ints, weight: Floats) -> Calibrator:
    """Centred as isotonic regression is: one knot for each level of the probability."""
    x, p0, p1 = venn_abers(raw, label, weight)
    odds = np.maximum.accumulate(logit(p1 / (1 - p0 + p1)))
    level = np.append(0, np.cumsum(np.diff(odds) > TINY))
    size = np.bincount(level)
    centre, y = np.bincount(level, weights=x) / size, np.bincount(level, weights=odds) / size
    slope = max(_line(raw[:, None], label, weight)[0], 0.1)
    return Calibrator("venn_abers", (slope,), _floats(centre), _floats(y))


def _band(table: dict[str, Any] | None) -> Band | None:
    if table is None:
        return None
    band = Band(*(tuple(float(v) for v in table[key]) for key in ("x", "below", "above")))
    widths = np.array([band.below, band.above])
    if np.any(np.diff(band.x) <= 0) or widths.shape[1] != len(band.x) or not np.all(widths >= 0):
        raise ValueError("band")
    return band


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
