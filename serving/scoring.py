"""From what is known of patients to their scores: the road that the service, its log and its explanations share.

The features are built by the very call that training and batch scoring make, and so are equal bit for bit. Between a
request and that call there are arrays, not tables: laying a table out takes longer than all the rest.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clean import clean_one, contradictions
from features.events import ENCOUNTER_CONCEPTS, NAT, encounter_facts
from features.windows import FlatEvents, flatten_arrays
from models.abstention import INDETERMINATE
from models.bundle import Bundle
from models.decision import AlertPolicy, AlertState
from models.scope import (
    ADMISSION,
    OUT_OF_SCOPE,
    SCORED,
    admission_known,
    assess,
    recent_vitals,
    scope_of,
    seen_columns,
)
from serving.ingest.events import times_ahead
from serving.reasons import Latest, Reason, latest, reasons
from serving.store.facts import KNOWN_COLUMNS, event_table
from serving.store.tables import ENCOUNTER_FACTS

Explain = Literal["auto"] | bool
Facts = Mapping[str, Any]
"""What is known of an encounter: its identities and ``ENCOUNTER_FACTS``, times as microseconds."""

Codes = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
MANY: Final = 1_000_000
SEXES: Final = {"male": 1.0, "female": 0.0}
ICU_TYPES: Final = {"medical": 1.0, "surgical": 0.0}


@dataclass(frozen=True)
class Score:
    """One patient at one moment.

    Attributes
    ----------
    status : str
        ``scored``, or the reason code why not.
    raw, probability : float or None
        Log-odds before calibration and the calibrated probability; None unless scored, never 0.
    alert : bool
        The probability is at or above the hour-by-hour threshold.
    features : float32 array of shape (n_features,)
    base : float or None
        TreeSHAP base value; it and the contributions of ``reasons`` add up to ``raw``.
    reasons : tuple of Reason
        Every clinical concept, strongest first; empty where not asked for.
    missing : tuple of str
        The vital signs that were looked for and not found recently.
    unknown : tuple of str
        The fields of the encounter without which nobody can be scored, and that were not there.
    interval : tuple of two floats, or None
        Between which the risk of everyone with this score lies, 95 % over resampled patients.
    indeterminate : bool
        The score is high and the record too thin to carry it; see :mod:`models.abstention`.
    """

    encounter_id: str
    subject_id: str
    encounter_class: str | None
    unit: str | None
    prediction_time: int
    status: str
    raw: float | None
    probability: float | None
    alert: bool
    features: npt.NDArray[np.float32]
    base: float | None = None
    reasons: tuple[Reason, ...] = ()
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    measured: Mapping[str, Latest] | None = None
    interval: tuple[float, float] | None = None
    indeterminate: bool = False


@dataclass(frozen=True, slots=True)
class Readings:
    """Usable events of some encounters as arrays, all that features read of them.

    Attributes
    ----------
    encounter, concept : positions among the encounters, and among the concepts that features read (-1: not read)
    time, available, value : microseconds, canonical units
    sources : identities at the source of some rows, by which ties break; None where there are none
    status : None where all are final
    """

    encounter: Codes
    concept: Codes
    time: Ints
    available: Ints
    value: Floats
    sources: Callable[[Ints], pd.Series] | None = None
    status: pd.Series | None = None

    @classmethod
    def of(cls, events: pd.DataFrame, encounter_ids: pd.Index, concepts: tuple[str, ...]) -> Readings:
        """From a table of cleaned canonical events."""
        concept, names = pd.factorize(events["concept"])
        place = {c: k for k, c in enumerate(concepts)}
        found = np.array([place.get(str(name), -1) for name in names] + [-1], dtype=np.int32)
        return cls(
            encounter_ids.get_indexer(pd.Index(events["encounter_id"])).astype(np.int32),
            found[concept],
            events["time"].array.asi8,
            events["available_time"].array.asi8,
            events["numeric_value"].to_numpy(dtype=np.float64),
            lambda rows: events["source_id"].take(rows),
            None if bool((events["status"] == "final").all()) else events["status"],
        )


class Scorer:
    """Scores patients with one bundle. Holds nothing that changes, so any number of threads may share it."""

    def __init__(self, bundle: Bundle, timezone: str = "UTC") -> None:
        self.bundle = bundle
        self.timezone = timezone
        self.threshold = float(bundle.thresholds["utility"])
        self._scope = scope_of(bundle.spec)

    @classmethod
    def load(cls, folder: Path, timezone: str = "UTC") -> Scorer:
        """Load a bundle that may be served, its hashes checked."""
        return cls(Bundle.load_served(folder), timezone)

    def in_scope(self, encounters: Sequence[Facts]) -> list[bool]:
        """Which encounters belong to the population of the model, whatever is known of their vital signs."""
        if not encounters:
            return []
        classes, ages = _population(encounters)
        statuses = assess(classes, ages, np.full(len(encounters), MANY), self.bundle.spec)
        return [status != OUT_OF_SCOPE for status in statuses]

    def score(
        self, encounters: Sequence[Facts], events: pd.DataFrame, now: int, explain: Explain = "auto"
    ) -> list[Score]:
        """Score encounters at one moment.

        Parameters
        ----------
        encounters : what is known of each
        events : cleaned canonical events of these encounters; what became available after ``now`` is not read
        now : prediction time, microseconds
        explain : with "auto", reasons are given at or above the threshold
        """
        if not encounters:
            return []
        flat = self.flatten(encounters, events, now)
        return self.judge(encounters, flat, [now] * len(encounters), [explain] * len(encounters))

    def judge(
        self, encounters: Sequence[Facts], flat: FlatEvents, when: Sequence[int], explain: Sequence[Explain]
    ) -> list[Score]:
        """Score encounters, each at its own moment, from events that are laid out already.

        Parameters
        ----------
        flat : from :meth:`lay_out`; its encounters are these, in this order
        when : prediction times, microseconds
        """
        n, spec = len(encounters), self.bundle.spec
        places = np.arange(n, dtype=np.int64)
        matrix = spec.features.at(flat, places, np.array(when, dtype=np.int64))
        classes, ages = _population(encounters)
        statuses = assess(classes, ages, recent_vitals(matrix, spec), spec, admission_known(matrix, spec))
        raw = self.bundle.raw(matrix)
        probability = self.bundle.calibrator.apply(raw)
        band = self.bundle.calibrator.interval(raw)
        doubtful = self.bundle.indeterminate(matrix, raw)
        if self.bundle.withholds:
            statuses = np.where((statuses == SCORED) & doubtful, INDETERMINATE, statuses)
        told = [
            statuses[k] == SCORED
            and (wish is True or (wish == "auto" and bool(probability[k] >= self.threshold)))
            for k, wish in enumerate(explain)
        ]
        contributions = self._contributions(matrix, told)
        return [
            self._score(
                facts,
                when[k],
                statuses[k],
                float(raw[k]),
                float(probability[k]),
                matrix[k],
                contributions.get(k),
                latest(flat, k, when[k]) if told[k] or explain[k] is True else None,
                None if band is None else (float(band[0][k]), float(band[1][k])),
                bool(doubtful[k]),
            )
            for k, facts in enumerate(encounters)
        ]

    def warm(self) -> None:
        """Score nobody once, so that the first patient does not wait for the compiled loops to load."""
        nobody: dict[str, Any] = dict.fromkeys(KNOWN_COLUMNS) | {"encounter_id": "", "subject_id": ""}
        self.score([nobody], event_table([]), 0)
        AlertPolicy.from_dict(self.bundle.alert_policy).step(AlertState(), 0.0, 0)
        self.bundle.contributions(np.full((1, len(self.bundle.feature_names)), np.nan, dtype=np.float32))

    def flatten(self, encounters: Sequence[Facts], events: pd.DataFrame, now: int) -> FlatEvents:
        """The events that features read, and what encounters say of their patients, as flat arrays."""
        features = self.bundle.spec.features
        usable = contradictions(events)[0] if features.judge else events
        ids = pd.Index([e["encounter_id"] for e in encounters], dtype=object)
        return self.lay_out(encounters, Readings.of(usable, ids, features.concepts), [now] * len(encounters))

    def lay_out(self, encounters: Sequence[Facts], readings: Readings, when: Sequence[int]) -> FlatEvents:
        """The same of events that are arrays; encounters count in the order given.

        What an encounter says is dated at the admission, and gated by that date like every other event. An admission
        that lies after the prediction is as if nobody had said it.
        """
        concepts, n = self.bundle.spec.features.concepts, readings.encounter.size
        which, concept, time, value = self._said(encounters, when)

        def sources(rows: npt.NDArray[np.int64]) -> pd.Series:
            own = rows[rows < n]
            said = readings.sources(own).tolist() if readings.sources and own.size else [""] * own.size
            name = np.full(rows.size, "encounter", dtype=object)
            name[rows < n] = said
            return pd.Series(name, dtype="str")

        status = readings.status
        if status is not None:
            status = pd.Series([*status.tolist(), *["final"] * which.size], dtype=object)
        return flatten_arrays(
            np.concatenate([readings.encounter, which]),
            pd.RangeIndex(len(encounters)),
            np.concatenate([readings.concept, concept]),
            np.concatenate([readings.time, time]),
            np.concatenate([readings.available, time]),
            np.concatenate([readings.value, value]),
            concepts,
            sources,
            status,
        )

    def _said(self, encounters: Sequence[Facts], when: Sequence[int]) -> tuple[Codes, Codes, Ints, Floats]:
        """Encounter, concept, time and value of what encounters say of their patients, cleaned like every event."""
        n = len(encounters)
        icu, hospital = np.full(n, NAT), np.full(n, NAT)
        male, medical = np.full(n, np.nan), np.full(n, np.nan)
        for k, facts in enumerate(encounters):
            late = times_ahead(facts, when[k])
            for times, name in ((icu, "icu_admission_time"), (hospital, "hospital_admission_time")):
                stated = facts.get(name)
                times[k] = NAT if stated is None or name in late else stated
            male[k] = SEXES.get(str(facts.get("sex")), np.nan)
            medical[k] = ICU_TYPES.get(str(facts.get("icu_type")), np.nan)
        which, said, time, value = encounter_facts(icu, hospital, _population(encounters)[1], male, medical)
        concepts = self.bundle.spec.features.concepts
        place = [concepts.index(c) if c in concepts else -1 for c in ENCOUNTER_CONCEPTS]
        cleaned = [
            clean_one(f"WARDCAST//{ENCOUNTER_CONCEPTS[c]}", "", v, None)
            for c, v in zip(said.tolist(), value.tolist(), strict=True)
        ]
        good = np.array([fault is None for _, _, fault in cleaned], dtype=np.bool_)
        value = np.array([v for _, v, _ in cleaned], dtype=np.float64)
        codes = np.array(place, dtype=np.int32)[said]
        return which[good].astype(np.int32), codes[good], time[good], value[good]

    def _contributions(
        self, matrix: npt.NDArray[np.float32], told: Sequence[bool]
    ) -> dict[int, npt.NDArray[np.float64]]:
        wanted = np.flatnonzero(told)
        if not wanted.size:
            return {}
        return dict(zip(wanted.tolist(), self.bundle.contributions(matrix[wanted]), strict=True))

    def _score(
        self,
        facts: Facts,
        now: int,
        status: str,
        raw: float,
        probability: float,
        row: npt.NDArray[np.float32],
        contributions: npt.NDArray[np.float64] | None,
        measured: Mapping[str, Latest] | None,
        interval: tuple[float, float] | None,
        doubtful: bool,
    ) -> Score:
        scored = status == SCORED
        why: tuple[Reason, ...] = ()
        if contributions is not None:
            why = tuple(
                reasons(self.bundle.spec.features, row, contributions, measured or {}, now, self.timezone)
            )
        return Score(
            encounter_id=facts["encounter_id"],
            subject_id=facts["subject_id"],
            encounter_class=facts.get("encounter_class"),
            unit=facts.get("unit"),
            prediction_time=now,
            status=str(status),
            raw=raw if scored else None,
            probability=probability if scored else None,
            alert=scored and probability >= self.threshold,
            features=row,
            base=None if contributions is None else float(contributions[-1]),
            reasons=why,
            missing=() if scored else self.missing(row),
            unknown=() if scored else self.unknown(facts, now),
            measured=measured,
            interval=interval if scored else None,
            indeterminate=doubtful and status in (SCORED, INDETERMINATE),
        )

    def missing(self, row: npt.NDArray[np.float32]) -> tuple[str, ...]:
        """The vital signs of the scope that a row of features has not seen recently."""
        since = {v: row[column] for v, column in seen_columns(self.bundle.spec).items()}
        return tuple(v for v, hours in since.items() if not hours <= self._scope["recent_h"])

    def unknown(self, facts: Facts, now: int) -> tuple[str, ...]:
        """The fields of an encounter without which nobody can be scored, and that nobody has said by ``now``."""
        names = [name for name in ("encounter_class", "age_years") if facts.get(name) in (None, "")]
        admitted = facts.get("icu_admission_time")
        undated = admitted is None or admitted > now
        asked = not set(ADMISSION).isdisjoint(self.bundle.feature_names)
        if facts.get("encounter_class") == "icu" and undated and asked:
            names.append("icu_admission_time")
        return tuple(names)


def pack(encounter: Facts, flat: FlatEvents, place: int) -> bytes:
    """The inputs of a score that nothing else keeps: what is known of the encounter at a place, and its flat events.

    One line of JSON, then the arrays, packed; unpacking gives the same bits.
    """
    width = len(flat.concepts)
    start = flat.start[place * width : (place + 1) * width + 1]
    rows = slice(int(start[0]), int(start[-1]))
    counts = {flat.concepts[k]: int(c) for k, c in enumerate(np.diff(start)) if c}
    facts = {name: encounter.get(name) for name in KNOWN_COLUMNS}
    head = {"encounter": facts, "counts": counts, "revised": bool(flat.superseded.size)}
    arrays = [flat.time[rows], flat.available[rows], flat.value[rows]]
    arrays += [flat.superseded[rows]] if flat.superseded.size else []
    return zlib.compress(json.dumps(head).encode() + b"\n" + b"".join(a.tobytes() for a in arrays), level=1)


def unpack(packed: bytes, concepts: tuple[str, ...]) -> tuple[dict[str, Any], FlatEvents]:
    """The inverse of :func:`pack`, for the concepts that a model reads."""
    line, _, content = zlib.decompress(packed).partition(b"\n")
    head = json.loads(line)
    counts = [head["counts"].get(c, 0) for c in concepts]
    n = sum(counts)
    whole = np.frombuffer(content, dtype=np.int64).reshape(-1, n) if n else np.empty((4, 0), np.int64)
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    superseded = whole[3] if head["revised"] else np.empty(0, np.int64)
    flat = FlatEvents(
        pd.RangeIndex(1), concepts, start, whole[0], whole[1], whole[2].view(np.float64), superseded
    )
    return head["encounter"], flat


def record(
    score: Score,
    prediction_id: str,
    *,
    road: str,
    model_id: str,
    created: int,
    page: bool = False,
    inputs: bytes | None = None,
    events_seq: int | None = None,
    encounter_seq: int | None = None,
) -> dict[str, Any]:
    """A score as a row of the prediction log, with what is needed to repeat it."""
    return {
        "prediction_id": prediction_id,
        "road": road,
        "encounter_id": score.encounter_id,
        "subject_id": score.subject_id,
        "encounter_class": score.encounter_class,
        "unit": score.unit,
        "model_id": model_id,
        "prediction_time": score.prediction_time,
        "created_time": created,
        "status": score.status,
        "reason": None if score.status == SCORED else score.status,
        "raw": score.raw,
        "probability": score.probability,
        "alert": score.alert,
        "page": page,
        "features": score.features.astype("<f4").tobytes(),
        "reasons": json.dumps([r.text for r in score.reasons[:5]]) if score.reasons else None,
        "inputs": inputs,
        "events_seq": events_seq,
        "encounter_seq": encounter_seq,
    }


def _population(encounters: Sequence[Facts]) -> tuple[list[str], npt.NDArray[np.float64]]:
    classes = [str(e.get("encounter_class") or "") for e in encounters]
    ages = [np.nan if e.get("age_years") is None else e["age_years"] for e in encounters]
    return classes, np.array(ages, dtype=np.float64)


assert {"encounter_class", "age_years"} <= set(ENCOUNTER_FACTS)  # noqa: S101  # what decides the scope is a known fact
