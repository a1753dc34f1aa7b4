"""The fitted parts of the bed forecast: arrivals an hour, time to bed, length of stay, moves; all of them as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ELAPSED_H: Final = (
    0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0, 10.0, 12.0, 16.0, 24.0,
)  # fmt: skip
"""Lower edges of time already spent, for the tables of time still to go."""
PARTS_OF_DAY: Final = 6
"""Four hours each, from 02:00 on: the evening (18) and the morning (6) begin parts of their own."""
STAY_DAYS: Final = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 15.0, 22.0, 31.0)
"""Lower edges of length of stay so far."""
LONG_STAY_H: Final = int(STAY_DAYS[-1] * 24)


def part_of_day(hour: Ints) -> Ints:
    """Which of the :data:`PARTS_OF_DAY` a local hour belongs to."""
    return np.asarray((hour - 2) % 24 // (24 // PARTS_OF_DAY))


@dataclass(frozen=True)
class Covariate:
    """A daily series from outside, such as a respiratory-virus index, as arrivals depend on it.

    Arrivals are multiplied by ``exp(weight * (x - usual))``, x being the logarithm of 1 + the mean of the last week
    known at the time. ``usual`` is the median of training: what the forecast reads where the series is not given, and
    when it is asked what would be without a surge.
    """

    name: str
    usual: float
    weight: float


@dataclass(frozen=True)
class ArrivalRate:
    """Expected arrivals an hour: log-linear in local hour, weekday, hour at weekends, holiday, season, covariates."""

    intercept: float
    hour: tuple[float, ...]
    weekday: tuple[float, ...]
    weekend_hour: tuple[float, ...]
    holiday: float = 0.0
    season: tuple[float, float] = (0.0, 0.0)
    dispersion: float = 0.0
    """Variance of the factor that all hours of one local day share."""
    covariates: tuple[Covariate, ...] = ()

    def rate(self, calendar: pd.DataFrame) -> Floats:
        """Arrivals an hour for each row of :func:`features.census.calendar`.

        A column named as a covariate is read as its x; where it is absent or NaN the covariate is as usual.
        """
        hour, weekday = calendar["hour_of_day"].to_numpy(), calendar["weekday"].to_numpy()
        turn = 2 * np.pi * calendar["day_of_year"].to_numpy("float64") / 365.25
        log = (
            self.intercept
            + np.array(self.hour)[hour]
            + np.array(self.weekday)[weekday]
            + np.where(weekday >= 5, np.array(self.weekend_hour)[hour], 0.0)
            + self.holiday * calendar["holiday"].to_numpy()
            + self.season[0] * np.sin(turn)
            + self.season[1] * np.cos(turn)
        )
        for c in self.covariates:
            if c.name in calendar.columns:
                log = log + np.nan_to_num(c.weight * (calendar[c.name].to_numpy("float64") - c.usual))
        return np.asarray(np.exp(log), dtype=np.float64)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> ArrivalRate:
        """The inverse of :func:`plain` of its fields."""
        fields = {k: frozen(v) for k, v in table.items() if k != "covariates"}
        return cls(**fields, covariates=tuple(Covariate(**c) for c in table["covariates"]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        fields = {k: plain(v) for k, v in vars(self).items() if k != "covariates"}
        return fields | {"covariates": [vars(c) for c in self.covariates]}


@dataclass(frozen=True)
class TimeTo:
    """How long until a bed: quantiles of hours by part of the day now and by the time spent already.

    ``knots`` has shape (parts, n_bins, n_quantiles). Between the middles of two bins the answer is a mixture.
    """

    knots: tuple[tuple[tuple[float, ...], ...], ...]

    def reached(self, elapsed_h: Floats, hour: Ints, within_h: Floats) -> Floats:
        """P(bed within), shape (n_patients, n_edges), for hours ``within_h`` of shape (n_edges,)."""
        table = np.array(self.knots)
        bins, share = table.shape[1], (np.arange(table.shape[2]) + 0.5) / table.shape[2]
        parts = part_of_day(np.asarray(hour))
        middle = (np.array(ELAPSED_H) + np.array([*ELAPSED_H[1:], 30.0]))[:bins] / 2
        low = np.clip(np.searchsorted(middle, elapsed_h, side="right") - 1, 0, max(bins - 2, 0))
        high = np.minimum(low + 1, bins - 1)
        gap = np.maximum(middle[high] - middle[low], 1e-9)
        weight = np.clip((elapsed_h - middle[low]) / gap, 0.0, 1.0)[:, None]
        out = np.zeros((len(elapsed_h), len(within_h)))
        for part in np.unique(parts):
            rows = parts == part
            cdf = np.stack([_cdf(row, share, within_h) for row in table[part]])
            out[rows] = (1 - weight[rows]) * cdf[low[rows]] + weight[rows] * cdf[high[rows]]
        return out


def _cdf(knots: Floats, share: Floats, within_h: Floats) -> Floats:
    x = np.concatenate([[0.0], knots, [knots[-1] * 1.5 + 1.0]])
    y = np.concatenate([[0.0], share, [1.0]])
    return np.asarray(np.interp(within_h, np.maximum.accumulate(x), y, left=0.0, right=1.0))


@dataclass(frozen=True)
class Stream:
    """People still to come through one door: rate, share admitted and specialty mix by local hour, time to bed."""

    rate: ArrivalRate
    admitted: tuple[float, ...]
    mix: tuple[tuple[float, ...], ...]
    time_to_bed: TimeTo

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "rate": self.rate.to_dict(),
            "admitted": list(self.admitted),
            "mix": plain(self.mix),
            "time_to_bed": plain(self.time_to_bed.knots),
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Stream:
        """The inverse of :meth:`to_dict`."""
        return cls(
            rate=ArrivalRate.from_dict(table["rate"]),
            admitted=frozen(table["admitted"]),
            mix=frozen(table["mix"]),
            time_to_bed=TimeTo(frozen(table["time_to_bed"])),
        )


@dataclass(frozen=True)
class StayHazard:
    """Discharges an hour of a patient in a bed: log-linear in specialty x stay so far, local hour and weekday.

    Stay is counted since the patient came into the specialty: a move begins it anew.
    """

    base: tuple[tuple[float, ...], ...]
    hour: tuple[float, ...]
    weekday: tuple[float, ...]

    def leaving(
        self,
        specialty: Ints,
        stay_h: Floats,
        hour: Ints,
        weekday: Ints,
        edges_h: Floats,
        start_h: Floats | None = None,
    ) -> Floats:
        """P(discharge before each edge), shape (n_patients, n_edges).

        ``hour`` and ``weekday`` are local, one entry for each hour from now on; ``edges_h`` are hours from now, rising.
        ``start_h`` are hours from now at which each stay begins (with ``stay_h`` behind it); default now.
        """
        ahead = np.arange(len(hour))
        begin = np.zeros(len(specialty)) if start_h is None else start_h
        stay = np.clip(stay_h[:, None] + ahead[None, :] + 0.5 - begin[:, None], -1, LONG_STAY_H)
        bins = _BIN_OF_HOUR[np.maximum(stay, 0).astype("int64")]
        clock = np.exp(np.array(self.hour)[hour] + np.array(self.weekday)[weekday])
        hazard = np.exp(np.array(self.base))[specialty[:, None], bins] * clock[None, :]
        if start_h is not None:
            hazard *= np.clip(ahead[None, :] + 1 - begin[:, None], 0, 1)
        total = np.zeros((len(specialty), len(hour) + 1))
        np.cumsum(hazard, axis=1, out=total[:, 1:])
        place = np.clip(edges_h, 0, len(hour))
        low = np.minimum(place.astype("int64"), len(hour) - 1)
        reached = total[:, low] + (place - low) * (total[:, low + 1] - total[:, low])
        return np.asarray(1.0 - np.exp(-reached))

    def with_pooled(self, mix: Floats) -> StayHazard:
        """The same, with one more row for patients of no known specialty: all who are still there, pooled.

        ``mix`` is the share of each specialty among the admitted, shape (n_specialties,). Those who stay long weigh
        more in the later bins of stay, as they do in the wards.
        """
        usual = np.exp(self.hour).mean() * np.exp(self.weekday).mean()
        hazard = np.exp(np.array(self.base)) * usual
        spent = np.cumsum(hazard[:, :-1] * np.diff(STAY_DAYS) * 24, axis=1)
        there = mix[:, None] * np.exp(-np.concatenate([np.zeros((len(mix), 1)), spent], axis=1))
        there = np.maximum(there, 1e-300)
        pooled = np.log((there * hazard).sum(axis=0) / there.sum(axis=0) / usual)
        return replace(self, base=(*self.base, tuple(float(h) for h in pooled)))


_BIN_OF_HOUR: Final = np.searchsorted(STAY_DAYS, (np.arange(LONG_STAY_H + 2) + 0.5) / 24, side="right") - 1


@dataclass(frozen=True)
class Moves:
    """Moves between specialties: how many a patient-hour leave each, and where they go."""

    rate: tuple[float, ...]
    destination: tuple[tuple[float, ...], ...]
    """Rows sum to 1; ``destination[k][k]`` is 0 but for a specialty that nobody leaves."""

    @classmethod
    def none(cls, n: int) -> Moves:
        """Nobody moves."""
        return cls((0.0,) * n, frozen(np.eye(n).tolist()))

    def padded(self, n: int) -> Moves:
        """With lines that nobody leaves filled up to ``n``."""
        k = len(self.rate)
        return self if n == k else Moves(
            (*self.rate, *(0.0,) * (n - k)),
            frozen([[*row, *[0.0] * (n - k)] for row in self.destination] + np.eye(n)[k:].tolist()),
        )  # fmt: skip


def plain(value: Any) -> Any:
    """Tuples as lists, all the way down, as JSON has them."""
    return [plain(v) for v in value] if isinstance(value, tuple) else value


def frozen(value: Any) -> Any:
    """The inverse of :func:`plain`."""
    return tuple(frozen(v) for v in value) if isinstance(value, list) else value
