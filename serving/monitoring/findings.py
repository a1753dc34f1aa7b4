"""What a finding is, and what the monitor compares: the logged rows, and the model's reference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from serving.monitoring.statistics import Bools, Floats, Ints, onset, proportion_probability

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
    trend : tuple of float or None
        Share of rows that show it, in equal steps over the period looked at; None where a step has no rows.
    usual : float or None
        The same share in the reference.
    """

    kind: str
    severity: str
    what: str
    where: str
    certainty: str
    action: str
    since: datetime | None = None
    features: tuple[str, ...] = ()
    trend: tuple[float | None, ...] = ()
    usual: float | None = None

    @property
    def units(self) -> tuple[str, ...]:
        """The units that :attr:`where` names; none where it is about all."""
        named = re.fullmatch(r"units? (.+?)(?:, source .*)?", self.where)
        return tuple(named[1].split(", ")) if named else ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        plain = asdict(self)
        return plain | {"since": self.since.isoformat() if self.since else None}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Finding:
        """The inverse of :meth:`to_dict`."""
        since = datetime.fromisoformat(plain["since"]) if plain["since"] else None
        return cls(**{**plain, "since": since, **{k: tuple(plain[k]) for k in ("features", "trend")}})


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
    discovery_rate: float = 0.001
    psi: float = 0.2
    ks: float = 0.25
    missing: float = 0.15
    silence: float = 1e-4
    rate_ratio: float = 1.5


@dataclass(frozen=True)
class Reference:
    """What the model was made with, from its bundle: per feature a missing share and quantiles; no patient rows.

    Attributes
    ----------
    names : tuple of str
    missing : shape (n_features,)
    levels : shape (n_levels,)
        Levels of the quantiles, ascending, without 0 and 1: extremes are not kept, a patient could be known by them.
    quantiles : shape (n_features, n_levels)
        Rows of NaN where the feature was too rarely measured.
    n : float
        Rows.
    edges, share : shape (n_bins + 1,), (n_bins,)
        Histogram of the calibrated probability.
    mean : float
        Mean probability.
    """

    names: tuple[str, ...]
    missing: Floats
    levels: Floats
    quantiles: Floats
    n: float
    edges: Floats
    share: Floats
    mean: float

    @classmethod
    def from_profile(cls, profile: Mapping[str, Any]) -> Reference:
        """Read a bundle's ``reference.json`` (see :mod:`models.profile`)."""
        features: Mapping[str, Any] = profile["features"]
        empty = [np.nan] * len(profile["shares"])
        count = np.asarray(profile["probability"]["histogram"], np.float64)
        return cls(
            names=tuple(features),
            missing=np.array([f["missing"] for f in features.values()], np.float64),
            levels=np.asarray(profile["shares"], np.float64),
            quantiles=np.array([f["quantiles"] or empty for f in features.values()], np.float64).reshape(
                len(features), len(empty)
            ),
            n=float(profile["n"]),
            edges=np.asarray(profile["probability"]["edges"], np.float64),
            share=count / max(count.sum(), 1.0),
            mean=float("nan")
            if profile["probability"]["mean"] is None
            else float(profile["probability"]["mean"]),
        )

    @property
    def resolution(self) -> float:
        """How exactly the profile knows a cumulative share; smaller distances are not evidence."""
        return float(np.diff(np.r_[0.0, self.levels, 1.0]).max())

    @property
    def beyond(self) -> float:
        """Share of the reference above its highest quantile."""
        return 1 - float(self.levels[-1])

    def at(self, level: float, j: int) -> float:
        """One quantile of one feature, interpolated between those kept."""
        return float(np.interp(level, self.levels, self.quantiles[j]))

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

    def take(self, rows: Bools) -> Batch:
        """Some of the rows, in the same order."""
        return Batch(
            self.features[rows].reset_index(drop=True),
            self.stay[rows],
            self.time[rows].reset_index(drop=True),
            self.unit[rows].reset_index(drop=True),
        )

    def __len__(self) -> int:
        return len(self.features)

    def steps(self, most: int = 28) -> Ints:
        """Number of the time step each row falls into: at most ``most`` equal steps from first to last row."""
        if len(self) == 0:
            return np.empty(0, np.int64)
        age = (self.time - self.time.iloc[0]) / (
            self.time.iloc[-1] - self.time.iloc[0] + timedelta(microseconds=1)
        )
        return np.asarray((age.to_numpy(np.float64) * most).astype(np.int64))

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

    def trend(self, batch: Batch, most: int = 28) -> tuple[float | None, ...]:
        """Share of hits in equal steps of time; None where nothing is known."""
        known = np.ones(len(batch), bool) if self.known is None else self.known
        step = batch.steps(most)[known]
        n = np.bincount(step, minlength=most)
        hits = np.bincount(step, weights=self.hit[known], minlength=most)
        return tuple(round(float(h / k), 4) if k else None for h, k in zip(hits, n, strict=True))

    def where(self, batch: Batch, min_rows: float = 5.0) -> str:
        """The units that show it more than the rest do; "all units" when none stands out."""
        known = np.ones(len(batch), bool) if self.known is None else self.known
        units, hit = batch.unit[known].to_numpy(), self.hit[known]
        names = [str(u) for u in pd.unique(units) if u]
        if len(names) < 2:
            return f"unit {names[0]}" if names else "everywhere"
        outstanding = []
        for name in names:
            here = units == name
            n, others = here.sum() / self.effect, (~here).sum() / self.effect
            if min(n, others) < min_rows:
                continue
            share, rest = float(hit[here].mean()), float(hit[~here].mean())
            if share > rest and proportion_probability(share, n, rest, others) < 0.01 / len(names):
                outstanding.append((share, name))
        if not outstanding:
            return "all units"
        worst = [name for _, name in sorted(outstanding, reverse=True)[:4]]
        return f"unit{'s' if len(worst) > 1 else ''} {', '.join(worst)}"
