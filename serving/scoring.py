"""From what is known of patients to their scores: the road that the service, its log and its explanations share.

The features are built by the very call that training and batch scoring make, and so are equal bit for bit.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clean import clean
from features.clock import from_micros
from features.events import EVENT_COLUMNS, encounter_events
from features.windows import FlatEvents
from models.bundle import Bundle
from models.scope import ADMISSION, OUT_OF_SCOPE, SCORED, admission_known, assess, recent_vitals, scope_of
from serving.ingest.events import times_ahead
from serving.reasons import Latest, Reason, latest, reasons
from serving.store.facts import KNOWN_COLUMNS, event_table, instants
from serving.store.tables import ENCOUNTER_FACTS

Explain = Literal["auto"] | bool
Facts = Mapping[str, Any]
"""What is known of an encounter: its identities and ``ENCOUNTER_FACTS``, times as microseconds."""

MANY: Final = 1_000_000


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


class Scorer:
    """Scores patients with one bundle. Holds nothing that changes, so any number of threads may share it."""

    def __init__(self, bundle: Bundle, timezone: str = "UTC") -> None:
        self.bundle = bundle
        self.timezone = timezone
        self.threshold = float(bundle.thresholds["utility"])
        self._scope = scope_of(bundle.spec)

    @classmethod
    def load(cls, folder: Path, timezone: str = "UTC") -> Scorer:
        """Load a bundle, its hashes checked."""
        return cls(Bundle.load(folder), timezone)

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
        matrix = self.features(flat, encounters, now)
        classes, ages = _population(encounters)
        spec = self.bundle.spec
        statuses = assess(classes, ages, recent_vitals(matrix, spec), spec, admission_known(matrix, spec))
        raw = self.bundle.raw(matrix)
        probability = self.bundle.calibrator.apply(raw)
        told = [
            status == SCORED and (explain is True or (explain == "auto" and bool(p >= self.threshold)))
            for status, p in zip(statuses, probability, strict=True)
        ]
        contributions = self._contributions(matrix, told)
        rows = flat.encounter_ids.get_indexer(pd.Index([e["encounter_id"] for e in encounters], dtype=object))
        return [
            self._score(
                facts,
                now,
                statuses[k],
                float(raw[k]),
                float(probability[k]),
                matrix[k],
                contributions.get(k),
                latest(flat, int(rows[k]), now) if rows[k] >= 0 else {},
            )
            for k, facts in enumerate(encounters)
        ]

    def warm(self) -> None:
        """Score nobody once, so that the first patient does not wait for the compiled loops to load."""
        nobody: dict[str, Any] = dict.fromkeys(KNOWN_COLUMNS) | {"encounter_id": "", "subject_id": ""}
        self.score([nobody], event_table([]), 0)
        self.bundle.contributions(np.full((1, len(self.bundle.feature_names)), np.nan, dtype=np.float32))

    def flatten(self, encounters: Sequence[Facts], events: pd.DataFrame, now: int) -> FlatEvents:
        """The events that features read, and what encounters say of their patients, as flat arrays.

        What an encounter says is dated at the admission, and gated by that date like every other event. An admission
        that lies after ``now`` is as if nobody had said it.
        """
        about, _ = clean(encounter_events(_said(encounters, now)))
        together = pd.concat([_plain(events), _plain(about)], ignore_index=True) if len(events) else about
        return self.bundle.spec.features.flatten(together)

    def features(self, flat: FlatEvents, encounters: Sequence[Facts], now: int) -> npt.NDArray[np.float32]:
        """The feature matrix, one row an encounter."""
        times = pd.DataFrame(
            {
                "encounter_id": pd.Series([e["encounter_id"] for e in encounters], dtype=object),
                "prediction_time": from_micros(np.full(len(encounters), now, dtype=np.int64)),
            }
        )
        return self.bundle.spec.features.build(flat, times)

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
        measured: Mapping[str, Latest],
    ) -> Score:
        scored = status == SCORED
        why: tuple[Reason, ...] = ()
        if contributions is not None:
            why = tuple(reasons(self.bundle.spec.features, row, contributions, measured, now, self.timezone))
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
        )

    def missing(self, row: npt.NDArray[np.float32]) -> tuple[str, ...]:
        """The vital signs of the scope that a row of features has not seen recently."""
        names = self.bundle.feature_names
        since = {v: row[names.index(f"{v}__hours_since_last")] for v in self._scope["vitals"]}
        return tuple(v for v, hours in since.items() if not hours <= self._scope["recent_h"])

    def unknown(self, facts: Facts, now: int) -> tuple[str, ...]:
        """The fields of an encounter without which nobody can be scored, and that nobody has said by ``now``."""
        names = [name for name in ("encounter_class", "age_years") if facts.get(name) in (None, "")]
        admitted = facts.get("icu_admission_time")
        undated = admitted is None or admitted > now
        if facts.get("encounter_class") == "icu" and undated and ADMISSION in self.bundle.feature_names:
            names.append("icu_admission_time")
        return tuple(names)


def _said(encounters: Sequence[Facts], now: int) -> pd.DataFrame:
    """What :func:`features.events.encounter_events` reads of encounters, without the times that lie after ``now``."""
    table: dict[str, Any] = {
        name: pd.Series([e.get(name) for e in encounters], dtype=object)
        for name in ("encounter_id", "subject_id", "sex", "icu_type")
    }
    table["age_years"] = _population(encounters)[1]
    ahead = [times_ahead(e, now) for e in encounters]
    for name in ("hospital_admission_time", "icu_admission_time"):
        known = [None if name in late else e.get(name) for e, late in zip(encounters, ahead, strict=True)]
        table[name] = instants(known)
    return pd.DataFrame(table)


def pack(encounter: Facts, events: pd.DataFrame) -> bytes:
    """The inputs of a score that nothing else keeps, as compressed JSON; floats survive unchanged."""
    columns = {
        name: events[name].array.asi8.tolist()
        if name in ("time", "available_time")
        else _listed(events[name])
        for name in EVENT_COLUMNS
    }
    facts = {name: encounter.get(name) for name in KNOWN_COLUMNS}
    return zlib.compress(json.dumps({"encounter": facts, "events": columns}).encode(), level=1)


def unpack(packed: bytes) -> tuple[dict[str, Any], pd.DataFrame]:
    """The inverse of :func:`pack`."""
    content = json.loads(zlib.decompress(packed))
    rows = list(zip(*(content["events"][name] for name in EVENT_COLUMNS), strict=True))
    return content["encounter"], event_table(rows)


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


def _plain(events: pd.DataFrame) -> pd.DataFrame:
    """Categoricals as plain text, so that tables can be joined."""
    texts = {c: events[c].astype(object) for c in ("concept", "unit") if events[c].dtype == "category"}
    return events.assign(**texts)


def _listed(series: pd.Series) -> list[Any]:
    """Values as JSON knows them: None where there is nothing."""
    return [None if v is None or v != v else v for v in series.tolist()]


assert {"encounter_class", "age_years"} <= set(ENCOUNTER_FACTS)  # noqa: S101  # what decides the scope is a known fact
