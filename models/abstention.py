"""Knowing when not to answer: a high score on a record too thin to carry it is indeterminate.

A prediction set in the manner of Mondrian conformal prediction (Vovk et al. 2005; for sepsis COMPOSER, Shashikumar et
al., npj Digit Med 2021;4:134): each outcome is kept in it while the row looks enough like training rows of that
outcome. A row is unlike one *without* sepsis when its score is higher than nearly all of theirs had; it is unlike one
*with* sepsis when fewer laboratory quantities are known of it than of nearly all of theirs. Where the set is empty,
neither answer is supported, and the score is withheld. A low score on a thin record still conforms: it is answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.concepts import loader
from features.errors import SpecError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

INDETERMINATE: Final = "indeterminate"
THIN_RECORD: Final = "thin_record"
"""Reason code: the score is high and few laboratory results are known."""

UNLIKE: Final = 0.3
"""A score is unlike rows without sepsis when no more than this share of theirs is as high."""
MOST_SEPTIC: Final = 0.07
MOST_ROWS: Final = 0.15


@dataclass(frozen=True)
class Abstention:
    """Which scores are withheld.

    Attributes
    ----------
    quantities : tuple of str
        The laboratory concepts that are counted when a value of them is known.
    fewest : int
        A record with no more of them is thin; -1 where nothing is withheld.
    score : float
        Raw log-odds from which a score is unlike those of rows without sepsis.
    rows, septic_rows : float
        Shares of training rows, and of those positive, that were withheld.
    """

    quantities: tuple[str, ...]
    fewest: int
    score: float
    rows: float
    septic_rows: float

    @classmethod
    def fit(cls, quantities: Sequence[str], known: Ints, raw: Floats, label: Ints) -> Abstention:
        """The most that may be withheld without losing more than 7 % of positive rows or 15 % of all.

        Parameters
        ----------
        known : from :func:`known_of`, shape (n,)
        raw : log-odds of rows the model was not fitted on, shape (n,), no NaN
        label : 0 or 1, shape (n,)
        """
        score = float(np.quantile(raw[label == 0], 1 - UNLIKE))
        high = raw >= score
        size = len(quantities) + 1
        every = np.cumsum(np.bincount(known[high], minlength=size)) / max(len(raw), 1)
        positive = label == 1
        septic = np.cumsum(np.bincount(known[high & positive], minlength=size)) / max(positive.sum(), 1)
        allowed = np.flatnonzero((every <= MOST_ROWS) & (septic <= MOST_SEPTIC))
        if not len(allowed):
            return cls(tuple(quantities), -1, score, 0.0, 0.0)
        k = int(allowed[-1])
        return cls(tuple(quantities), k, score, float(every[k]), float(septic[k]))

    def withheld(self, known: Ints, raw: Floats) -> Bools:
        """Rows whose score is indeterminate, shape (n,); an unscorable row (NaN) is not."""
        with np.errstate(invalid="ignore"):
            return np.asarray((known <= self.fewest) & (raw >= self.score))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"quantities": list(self.quantities)}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Abstention:
        """The inverse of :meth:`to_dict`.

        Raises
        ------
        SpecError
            A key is missing or no number.
        """
        try:
            numbers = (float(table[k]) for k in ("score", "rows", "septic_rows"))
            return cls(tuple(str(q) for q in table["quantities"]), int(table["fewest"]), *numbers)
        except (KeyError, TypeError, ValueError):
            raise SpecError(
                "The abstention of a bundle needs quantities, fewest, score, rows and septic_rows. Train it again."
            ) from None


def laboratory(names: Sequence[str]) -> tuple[str, ...]:
    """The laboratory concepts of which a feature set reads the last value."""
    last = [name.partition("__")[0] for name in names if name.endswith("__last")]
    kinds = loader.concepts()
    return tuple(c for c in last if c in kinds and kinds[c].kind == "lab")


def known_of(matrix: npt.NDArray[np.float32], names: Sequence[str], quantities: Sequence[str]) -> Ints:
    """How many of the quantities each row of features knows, shape (n,)."""
    known = ~np.isnan(matrix[:, _last_of(tuple(names), tuple(quantities))])
    return np.asarray(known.sum(axis=1), dtype=np.int64)


@lru_cache(maxsize=64)
def _last_of(names: tuple[str, ...], quantities: tuple[str, ...]) -> list[int]:
    """The column of each quantity's last value; asked with every score, among hundreds of names."""
    place = {name: k for k, name in enumerate(names)}
    return [place[f"{quantity}__last"] for quantity in quantities]
