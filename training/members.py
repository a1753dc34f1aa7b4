"""The boosters of an ensemble: a spec's ``[[training.member]]`` tables, and the kinds of feature they may read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from features.concepts import loader
from features.errors import SpecError
from models.spec import Spec

CLOCK: Final = "clock"
PROCESS: Final = "process"
BEFORE: Final = "time before intensive care"
MEASURING: Final = ("hours_since_last", "count")
LEVELS: Final = ("", "last", "mean", "min", "max")
"""Statistics that are values of what was measured; ratios and scores have none."""

KINDS: Final = {"vital": "vital signs", "lab": "laboratory", "therapy": "oxygen"}


@dataclass(frozen=True)
class Member:
    """One booster of an ensemble: what it is fitted to, and what it may not read.

    Attributes
    ----------
    name : str
        Its booster is called ``risk.<name>``; the only member of a spec that lists none is ``risk``.
    rounds : int
    utility_share : float
        See :func:`blended`.
    early_weight : float
        How much more an hour within the first 48 counts.
    stay_power : float
        How far stays without sepsis count equally rather than their hours: an hour's weight falls with this power of
        the number of hours in its stay. 0: every hour counts once; 1: every stay does.
    leave_out : tuple of str
        Kinds of feature (see :func:`kind_of`) that it does not read.
    boost : dict
        LightGBM's settings.
    """

    name: str
    rounds: int
    utility_share: float
    early_weight: float
    stay_power: float
    leave_out: tuple[str, ...]
    boost: dict[str, Any]

    @property
    def booster(self) -> str:
        """Name in the bundle."""
        return f"risk.{self.name}" if self.name else "risk"


def members(spec: Spec) -> tuple[Member, ...]:
    """The ensemble of a spec: its ``[[training.member]]`` tables, each over the settings of ``[training]``."""
    training = spec.section("training")
    listed = training.get("member", [{"name": ""}])
    return tuple(
        Member(
            str(table["name"]),
            int(table.get("rounds", training["rounds"])),
            float(table.get("utility_share", training["utility_share"])),
            float(table.get("early_weight", 1.0)),
            float(table.get("stay_power", training.get("stay_power", 0.0))),
            tuple(table.get("leave_out", ())),
            training["boost"] | table.get("boost", {}) | {"seed": (training["seed"] + k) % 2**31},
        )
        for k, table in enumerate(listed)
    )


def directions(spec: Spec) -> list[int]:
    """Which way each feature may move the score: 1 up, -1 down, 0 either, where medicine is sure of it.

    ``[training.monotone]`` names concepts, ratios and scores under ``rising`` and ``falling``; what it says holds of
    their values and of means and extremes of values, not of changes, spreads, counts and times.

    Raises
    ------
    SpecError
        No feature is about what it names.
    """
    sure = spec.section("training").get("monotone", {})
    way = {concept: sign for key, sign in (("rising", 1), ("falling", -1)) for concept in sure.get(key, ())}
    named = [name.partition("__") for name in spec.features.names]
    strange = sorted(set(way) - {about for about, _, _ in named})
    if strange:
        raise SpecError(f"training.monotone names {', '.join(strange)}, of which the spec has no feature.")
    return [way.get(about, 0) if how.partition("_")[0] in LEVELS else 0 for about, _, how in named]


def kind_of(name: str, spec: Spec) -> str:
    """What a feature reads: the clock, the process of measuring, or a quantity.

    A count over the whole stay only grows, and tells how long the stay has lasted: it is a clock too.
    """
    concepts = spec.features.concept_of(name)
    statistic = name.partition("__")[2]
    if concepts[0] == "icu_admission" or statistic == "count":
        return CLOCK
    if concepts[0] == "hours_before_icu":
        return BEFORE
    if statistic.startswith(MEASURING):
        return PROCESS
    if name in spec.features.scores:
        return "clinical scores"
    if len(concepts) > 1:
        return "ratios"
    return KINDS.get(loader.concepts()[concepts[0]].kind, "age, sex and unit")
