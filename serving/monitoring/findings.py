"""What a finding is, and what the monitor compares: the logged rows, and the model's reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from serving.monitoring.statistics import Bools, Floats, Ints, onset, proportion_probability

LEVELS: Final = np.linspace(0.0, 1.0, 101)
"""Levels of the quantiles that a reference profile keeps."""

ALARM: Final = "alarm"
WATCH: Final = "watch"
NOTE: Final = "note"
SEVERITIES: Final = (ALARM, WATCH, NOTE)
"""``alarm``: someone must act today. ``watch``: look at it this week. ``note``: for the record, nothing is wrong."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the monitor has to say. Names features, units and counts, never a patient.

    Attributes
    ----------
    kind : str
        Machine word, such as ``feed_silent``; one of :data:`serving.monitoring.checks.ACTIONS`.
    severity : str
        One of :data:`SEVERITIES`.
    what, where, certainty, action : str
        In words: what is wrong, where, how sure we are and on how many rows, what to do.
    since : datetime or None
        Estimated start. The first prediction looked at when it was so all along; None where time does not apply.
    features : tuple of str
        The model's features concerned, worst first.
    """

    kind: str
    severity: str
    what: str
    where: str
    certainty: str
    action: str
    since: datetime | None = None
    features: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        plain = {
            name: getattr(self, name) for name in ("kind", "severity", "what", "where", "certainty", "action")
        }
        return plain | {
            "since": self.since.isoformat() if self.since else None,
            "features": list(self.features),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Finding:
        """The inverse of :meth:`to_dict`."""
        since = datetime.fromisoformat(plain["since"]) if plain["since"] else None
        return cls(**{**plain, "since": since, "features": tuple(plain["features"])})


@dataclass(frozen=True)
class Limits:
    """When a difference is large enough, and sure enough, to speak of. Both are needed.

    Attributes
    ----------
    min_effective : float
        Fewer independent rows than this are not compared at all.
    min_stays : int
        Nor are they when they come from fewer encounters than this.
    discovery_rate : float
        Benjamini-Hochberg share of false findings among findings, per family of tests.
    psi, ks : float
        Population stability index (0.2 is the usual mark), or Kolmogorov distance where PSI has too few bins to see.
    missing : float
        Absolute change in the share of missing values.
    silence : float
        Probability at which a run of missing values stops being chance, before division by the number of features.
    rate_ratio : float
        Alert volume this many times up or down.
    """

    min_effective: float = 30.0
    min_stays: int = 20
    discovery_rate: float = 0.005
    psi: float = 0.2
    ks: float = 0.25
    missing: float = 0.10
    silence: float = 1e-4
    rate_ratio: float = 1.5


@dataclass(frozen=True)
class Reference:
    """What the model was made with, from its bundle: per feature a missing share and 101 quantiles; no patient rows.

    Attributes
    ----------
    names : tuple of str
    missing : shape (n_features,)
    quantiles : shape (n_features, 101)
        At :data:`LEVELS`; rows of NaN where the feature was never measured.
    n : float
        Rows, or encounters where the profile says how many.
    edges, share : shape (n_bins + 1,), (n_bins,)
        Histogram of the calibrated probability.
    """

    names: tuple[str, ...]
    missing: Floats
    quantiles: Floats
    n: float
    edges: Floats
    share: Floats

    @classmethod
    def from_profile(cls, profile: Mapping[str, Any]) -> Reference:
        """Read a bundle's ``reference.json`` (see :mod:`models.profile`)."""
        features: Mapping[str, Any] = profile["features"]
        empty = [np.nan] * len(LEVELS)
        probability = profile.get("probability") or {"edges": [0.0, 1.0], "share": [1.0]}
        return cls(
            names=tuple(features),
            missing=np.array([f["missing"] for f in features.values()], np.float64),
            quantiles=np.array([f["quantiles"] or empty for f in features.values()], np.float64).reshape(
                -1, 101
            ),
            n=float(profile.get("encounters") or profile["n"]),
            edges=np.asarray(probability["edges"], np.float64),
            share=np.asarray(probability["share"], np.float64),
        )

    def at(self, level: float) -> Floats:
        """One quantile of every feature."""
        return np.asarray(self.quantiles[:, round(level * 100)])

    def share_at_or_above(self, probability: float) -> float:
        """Share of reference predictions at or above a probability, interpolated within its bin."""
        above = np.r_[np.cumsum(self.share[::-1])[::-1], 0.0]
        return float(np.interp(probability, self.edges, above))


@dataclass(frozen=True)
class Batch:
    """Logged predictions that were scored, in order of prediction time.

    Attributes
    ----------
    features : DataFrame, shape (n, n_features)
        As logged. May lack columns, have others, hold text: that is what is checked.
    stay : shape (n,)
        Encounter, as integers: rows of one stay are not independent.
    time : Series of datetime64[us, UTC], shape (n,)
    unit : Series of str, shape (n,)
        Ward or site, for saying where.
    """

    features: pd.DataFrame
    stay: Ints
    time: pd.Series
    unit: pd.Series

    @classmethod
    def of(
        cls,
        features: pd.DataFrame,
        *,
        stay: npt.ArrayLike | None = None,
        time: pd.Series | None = None,
        unit: pd.Series | None = None,
    ) -> Batch:
        """Put rows in order of time. Without ``stay`` every row counts as its own; without ``time``, order is kept."""
        n = len(features)
        stays = pd.factorize(pd.Series(np.arange(n) if stay is None else np.asarray(stay)))[0].astype(
            np.int64
        )
        times = (
            pd.Series(pd.to_datetime(np.zeros(n), utc=True)) if time is None else time.reset_index(drop=True)
        )
        units = (
            pd.Series([""] * n, dtype="str") if unit is None else unit.astype("str").reset_index(drop=True)
        )
        order = np.argsort(times.to_numpy(), kind="stable")
        return cls(
            features.iloc[order].reset_index(drop=True),
            stays[order],
            times.iloc[order].reset_index(drop=True),
            units.iloc[order].reset_index(drop=True),
        )

    def tail(self, start: int) -> Batch:
        """The rows from a position on."""
        return Batch(
            self.features.iloc[start:].reset_index(drop=True),
            self.stay[start:],
            self.time.iloc[start:].reset_index(drop=True),
            self.unit.iloc[start:].reset_index(drop=True),
        )

    def __len__(self) -> int:
        return len(self.features)

    @property
    def n_stays(self) -> int:
        """How many encounters the rows come from."""
        return len(np.unique(self.stay))


@dataclass(frozen=True)
class Sign:
    """A row-wise sign of trouble: true where a row shows it, with the rate at which the reference does."""

    hit: Bools
    usual: float
    effect: float = 1.0
    """Rows that weigh as one (see :func:`serving.monitoring.statistics.design_effect`)."""
    known: Bools | None = field(default=None)
    """Rows that could show it at all; None means all."""

    def since(self, batch: Batch) -> datetime | None:
        """When the sign began to run at its new rate."""
        known = np.ones(len(batch), bool) if self.known is None else self.known
        start = onset(self.hit[known], self.usual)
        if start is None:
            return None
        instant: datetime = batch.time[known].iloc[start].to_pydatetime()
        return instant

    def where(self, batch: Batch, min_rows: float = 20.0) -> str:
        """The wards that show it, when only some do; otherwise that all of them do."""
        known = np.ones(len(batch), bool) if self.known is None else self.known
        units = batch.unit[known].to_numpy()
        names = [u for u in pd.unique(units) if u]
        if len(names) < 2:
            return names[0] if names else "everywhere"
        guilty, judged = [], 0
        for name in names:
            rows = units == name
            n = float(rows.sum())
            if n / self.effect < min_rows:
                continue
            judged += 1
            share = float(self.hit[known][rows].mean())
            p = float(proportion_probability(share, n / self.effect, self.usual, 1e9))
            if share > self.usual and p < 0.001 / len(names):
                guilty.append((share, str(name)))
        if not guilty or len(guilty) == judged:
            return "all units" if guilty else "spread over units"
        return ", ".join(name for _, name in sorted(guilty, reverse=True)[:4])
