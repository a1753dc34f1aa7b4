"""A declared set of features: windows, ratios of last values, and clinical scores, built by one call on either road."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features import kernels
from features import scores as bands
from features.clean import contradictions
from features.clock import STAY_US, parse_lookback
from features.concepts import loader
from features.errors import DataError, SpecError
from features.windows import MEANING, FlatEvents, Window, fill, flatten, plan, rows

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Last value of one concept over the last value of another, such as the shock index."""

    name: str
    numerator: str
    denominator: str

    @property
    def windows(self) -> tuple[Window, Window]:
        """The two last values it reads, over the whole stay."""
        return Window(self.numerator, "last", STAY_US), Window(self.denominator, "last", STAY_US)


OF_CATEGORIES: Final = ("last", "first", "hours_since_last", "count")
"""The statistics that make sense of a category, such as where a patient is."""


def is_category(concept: str) -> bool:
    """Whether a concept's numbers only name things, by texts.csv."""
    return loader.concepts()[concept].unit == "{category}"


@dataclass(frozen=True)
class FeatureSet:
    """What a model reads: ``windows``, then ``ratios``, then ``scores``, all read at one ``resample`` step.

    With ``judge``, facts of one instant that cannot all be true (orders.csv: a mean pressure above the systolic one)
    are not read, as archives leave them unread; a model trained on an archive wants it, so that its service sees the
    same.

    Raises
    ------
    SpecError
        A concept or score is unknown, a name stands twice, or there is nothing in the set.
    """

    windows: tuple[Window, ...]
    ratios: tuple[Ratio, ...] = ()
    scores: tuple[str, ...] = ()
    resample: timedelta | None = None
    judge: bool = False

    def __post_init__(self) -> None:
        known = loader.concepts()
        asked = [w.concept for w in self.windows]
        asked += [c for r in self.ratios for c in (r.numerator, r.denominator)]
        unknown = sorted({c for c in asked if c not in known})
        if unknown:
            raise SpecError(
                f"Unknown concepts in the feature set: {', '.join(unknown)}. See concepts.csv for the names."
            )
        senseless = sorted(
            {w.name for w in self.windows if is_category(w.concept) and w.statistic not in OF_CATEGORIES}
            | {r.name for r in self.ratios if is_category(r.numerator) or is_category(r.denominator)}
        )
        if senseless:
            raise SpecError(
                f"{', '.join(senseless)} would calculate with categories. Of a category ask for "
                f"{', '.join(OF_CATEGORIES)}."
            )
        twice = sorted({n for n in self.names if self.names.count(n) > 1})
        if twice:
            raise SpecError(f"Features named twice: {', '.join(twice)}. Keep one of each.")
        if not self.names:
            raise SpecError(
                "The feature set is empty. Declare at least one [[features.group]], ratio or score."
            )
        if self.resample is not None and self.resample <= timedelta(0):
            raise SpecError(f"resample must be positive, got {self.resample}. Write for example '1h'.")
        for score in self.scores:
            bands.windows(score)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Column names in order: windows, ratios, scores."""
        return (*(w.name for w in self.windows), *(r.name for r in self.ratios), *self.scores)

    @cached_property
    def categorical(self) -> tuple[str, ...]:
        """The columns whose numbers name categories; a model must not put them in order."""
        named = ("last", "first")
        return tuple(w.name for w in self.windows if is_category(w.concept) and w.statistic in named)

    @cached_property
    def concepts(self) -> tuple[str, ...]:
        """Every concept read, each once."""
        return tuple(dict.fromkeys(w.concept for w in self._read))

    @cached_property
    def _read(self) -> tuple[Window, ...]:
        """The declared windows, followed by those that only ratios and scores read."""
        hidden = [w for r in self.ratios for w in r.windows] + [
            w for s in self.scores for w in bands.windows(s)
        ]
        return tuple(dict.fromkeys((*self.windows, *hidden)))

    def flatten(self, events: pd.DataFrame) -> FlatEvents:
        """Sort the events this set reads, to build from them more than once; whole instants, where it judges them."""
        return flatten(contradictions(events)[0] if self.judge else events, self.concepts)

    def build(
        self,
        events: pd.DataFrame | FlatEvents,
        prediction_times: pd.DataFrame,
        threads: int = 1,
        out: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Features at prediction times.

        Parameters
        ----------
        events : DataFrame of cleaned canonical events, or FlatEvents of at least ``concepts``
        prediction_times : DataFrame with ``encounter_id`` and ``prediction_time``
        threads : int
            Same bits for any number.
        out : float32 array of the shape below, optional
            Where to write; who builds often spares the system the search for new pages.

        Returns
        -------
        float32 array of shape (n_predictions, len(names)), C order, NaN = missing.
        """
        if not isinstance(events, FlatEvents):
            events = self.flatten(events)
        return self.at(events, *rows(prediction_times, events.encounter_ids), threads, out)

    def at(
        self,
        flat: FlatEvents,
        encounter: Ints,
        time: Ints,
        threads: int = 1,
        out: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """The same on bare arrays: positions in ``flat.encounter_ids`` and prediction times in microseconds."""
        n = len(self.windows)
        out = np.empty((time.size, len(self.names)), np.float32) if out is None else out
        extra = np.empty((time.size, len(self._read) - n), np.float32)

        def finish(part: Ints) -> None:
            kernels.appraise(part, self._marks, n, out, extra)

        done = finish if self.ratios or self.scores else None
        fill(flat, encounter, time, self._plan(flat.concepts), self.resample, threads, out, extra, done)
        return out

    def _plan(self, concepts: tuple[str, ...]) -> kernels.Plan:
        """Made once for each choice of flattened concepts, found without looking at the windows again."""
        if concepts not in self._plans:
            self._plans[concepts] = plan(self._read, concepts)
        return self._plans[concepts]

    @cached_property
    def _plans(self) -> dict[tuple[str, ...], kernels.Plan]:
        return {}

    @cached_property
    def _marks(self) -> kernels.Marks:
        place = {w.name: k for k, w in enumerate(self._read)}
        pairs = [(over.name, under.name) for over, under in (r.windows for r in self.ratios)]
        return bands.marks(pairs, self.scores, place)

    def concept_of(self, name: str) -> tuple[str, ...]:
        """The concepts behind a feature: one for a window, two for a ratio, all that a score reads.

        Raises
        ------
        DataError
            The set has no such feature.
        """
        if name not in self._concepts:
            raise DataError(f"There is no feature {name!r} in this set of {len(self.names)}.")
        return self._concepts[name]

    @cached_property
    def _concepts(self) -> dict[str, tuple[str, ...]]:
        table: dict[str, tuple[str, ...]] = {w.name: (w.concept,) for w in self.windows}
        table |= {r.name: (r.numerator, r.denominator) for r in self.ratios}
        for score in self.scores:
            table[score] = tuple(dict.fromkeys(w.concept for w in bands.windows(score)))
        return table

    def manifest(self) -> dict[str, Any]:
        """What a bundle keeps of its features: enough, with the events, to build them again elsewhere. JSON-able."""
        known = loader.concepts()
        step = None if self.resample is None else self.resample / timedelta(seconds=1)
        return {
            "names": list(self.names),
            "dtypes": dict.fromkeys(self.names, "float32"),
            "definitions": self._definitions(),
            "resample_s": step,
            "judge": self.judge,
            "concepts": {
                c: {
                    f.name: getattr(known[c], f.name)
                    for f in fields(known[c])
                    if f.name not in ("name", "source")
                }
                for c in self.concepts
            },
            "categories": {w.concept: _words(w.concept) for w in self.windows if is_category(w.concept)},
            "membership": "time in (t - lookback, t], available_time <= t; ties by available_time, source_id, value",
            "availability": {
                "policy": "a source's own available_time where it has one, else time plus available_after_min",
                "available_after_min": {c: known[c].available_after_min for c in self.concepts},
            },
        }

    def _definitions(self) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for w in self.windows:
            hours = None if w.lookback_us == STAY_US else w.lookback_us / 3_600_000_000
            table[w.name] = {
                "concept": w.concept,
                "statistic": w.statistic,
                "lookback_h": hours,
                "meaning": MEANING[w.statistic],
            }
        for r in self.ratios:
            table[r.name] = {"numerator": r.numerator, "denominator": r.denominator, "statistic": "last"}
        for score in self.scores:
            parts = bands.definition(score)
            table[score] = {
                "partial": score.endswith(bands.PARTIAL),
                "parts": [_finite(asdict(p)) for p in parts],
            }
        return table

    @classmethod
    def from_spec(cls, table: Mapping[str, Any]) -> FeatureSet:
        """Read the ``[features]`` table of a spec.

        Keys: ``resample`` (such as ``"1h"``), ``judge``, ``ratios``, ``scores`` and ``group``, each group a list of
        concepts and a list of statistics with a lookback as suffix (``max_24h``) or none (the whole stay).

        Raises
        ------
        SpecError
            Names the key and what it should hold.
        """
        _only(table, ("resample", "judge", "ratios", "scores", "group"), "[features]")
        windows: list[Window] = []
        for k, group in enumerate(_list(table, "group", "[features]")):
            where = f"[[features.group]] number {k + 1}"
            _only(group, ("concepts", "statistics"), where)
            pairs = [
                (c, s)
                for c in _strings(group, "concepts", where)
                for s in _strings(group, "statistics", where)
            ]
            windows += [Window.parse(c, s) for c, s in pairs]
        ratios = []
        for entry in _list(table, "ratios", "[features]"):
            _only(entry, ("name", "numerator", "denominator"), "A ratio in [features]", every=True)
            ratios.append(Ratio(**entry))
        scores = _strings(table, "scores", "[features]") if "scores" in table else ()
        judge = table.get("judge", False)
        if not isinstance(judge, bool):
            raise SpecError(f"[features] judge is {judge!r}. Write true or false.")
        return cls(tuple(windows), tuple(ratios), tuple(scores), _step(table.get("resample")), judge)


def _words(concept: str) -> dict[str, str]:
    """The first word of texts.csv for each number of a category."""
    named: dict[str, str] = {}
    for (c, word), value in loader.texts().items():
        if c == concept:
            named.setdefault(f"{value:g}", word)
    return named


def _step(text: object) -> timedelta | None:
    if text is None:
        return None
    try:
        lookback = parse_lookback(str(text))
    except DataError:
        lookback = STAY_US
    if lookback == STAY_US:
        raise SpecError(f"[features] resample is {text!r}. Write a positive duration, for example '1h'.")
    return timedelta(microseconds=lookback)


def _only(table: object, keys: Sequence[str], where: str, every: bool = False) -> None:
    if not isinstance(table, Mapping):
        raise SpecError(f"{where} must be a table with {', '.join(keys)}.")
    odd = [k for k in table if k not in keys]
    absent = [k for k in keys if k not in table] if every else []
    if odd or absent:
        wrong = f"does not know {', '.join(map(str, odd))}" if odd else f"lacks {', '.join(absent)}"
        raise SpecError(f"{where} {wrong}. Its keys are {', '.join(keys)}.")


def _list(table: Mapping[str, Any], key: str, where: str) -> Iterable[Any]:
    value = table.get(key, [])
    if not isinstance(value, list | tuple):
        raise SpecError(f"{where} {key} must be a list, got {type(value).__name__}.")
    return value


def _strings(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = table.get(key)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(v, str) for v in value):
        raise SpecError(f"{where} needs {key}: a list of names, not empty.")
    return tuple(value)


def _finite(value: Any) -> Any:
    """The same structure with lists for tuples and null for -inf, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and np.isinf(value) else value
