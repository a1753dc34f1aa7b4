"""Why a score is what it is, in the ward's words.

Exact TreeSHAP contributions are summed by clinical concept; sums and base value add up to the raw score (log-odds
before calibration). Beside each sum stand the values it came from: what was last measured, when, and what it was
before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from features.clock import HOUR_US, STAY_US
from features.concepts import loader
from features.featureset import FeatureSet
from features.windows import FlatEvents, Window
from models.explanation import concept_groups
from serving.clock import iso

PLAIN_UNITS: Final = {
    "mm[Hg]": "mmHg", "Cel": "°C", "10*3/uL": "10³/µL", "[pH]": "", "{score}": "", "1": "", "a": "years", "%": "%",
}  # fmt: skip
HOUR: Final = timedelta(hours=1)
STATIC_KINDS: Final = ("demographic", "process")
DAY_US: Final = 24 * HOUR_US


@dataclass(frozen=True, slots=True)
class Reason:
    """What one clinical concept did to a score.

    Attributes
    ----------
    concept : the concept, ratio or clinical score whose features are summed here
    text : the reason as a sentence
    value, unit, time, previous : latest measurement, when it was taken (microseconds), and the one before
    direction : ``raises``, ``lowers`` or ``neutral``
    contribution : the sum, in log-odds before calibration
    """

    concept: str
    label: str
    text: str
    value: float | None
    unit: str
    time: int | None
    previous: float | None
    direction: str
    contribution: float

    def answer(self) -> dict[str, Any]:
        """As JSON, its time as ISO 8601."""
        change = None if self.value is None or self.previous is None else self.value - self.previous
        return {
            "concept": self.concept,
            "label": self.label,
            "text": self.text,
            "value": self.value,
            "unit": self.unit or None,
            "time": iso(self.time),
            "previous": self.previous,
            "change": change,
            "direction": self.direction,
            "contribution": self.contribution,
        }


@dataclass(frozen=True, slots=True)
class Latest:
    """The two latest measurements of a concept that were known at the prediction."""

    value: float
    time: int
    previous: float | None


def clock_text(micros: int, now: int, timezone: str) -> str:
    """``18:40``, with the day where it is not within the last 24 hours."""
    stamp = datetime.fromtimestamp(micros / 1e6, ZoneInfo(timezone))
    return f"{stamp:%H:%M}" if 0 <= now - micros < DAY_US else f"{stamp.day} {stamp:%b %H:%M}"


def number_text(value: float) -> str:
    """Three figures or so, without trailing zeros: 104, 38.2, 0.45."""
    size = abs(value)
    text = f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def unit_text(unit: str) -> str:
    """UCUM as people write it."""
    return PLAIN_UNITS.get(unit, unit.replace("u", "µ") if unit.startswith("u") else unit)


def quantity_text(concept: str, value: float) -> str:
    """Label and value: ``Lactate 3.1 mmol/L``, ``Sex: male``."""
    about = loader.concepts()[concept]
    label, choices = plain_label(about.label)
    if choices and value in choices:
        return f"{label}: {choices[value]}"
    unit = unit_text(about.unit)
    space = "" if unit in ("", "%") or unit.startswith("/") else " "
    return f"{label} {number_text(value)}{space}{unit}"


@lru_cache(maxsize=1024)
def plain_label(label: str) -> tuple[str, dict[float, str]]:
    """A label of concepts.csv without its explanation, and what its numbers stand for: ``Sex (1 male, 0 female)``."""
    name, _, inside = label.partition(" (")
    choices = {float(n): word for n, word in re.findall(r"(\d+) ([a-z]+)(?=[,)])", inside)}
    if len(choices) >= 2:
        return name, choices
    return label if inside and not re.search(r"\d", inside) else name, {}


def latest(flat: FlatEvents, encounter: int, now: int) -> dict[str, Latest]:
    """The last two measurements known at ``now`` (microseconds) of each concept of one encounter."""
    found: dict[str, Latest] = {}
    for k, concept in enumerate(flat.concepts):
        group = encounter * len(flat.concepts) + k
        rows = np.arange(flat.start[group], flat.start[group + 1])
        known = (flat.time[rows] <= now) & (flat.available[rows] <= now)
        if flat.superseded.size:
            known &= flat.superseded[rows] > now
        rows = rows[known]
        if rows.size:
            before = float(flat.value[rows[-2]]) if rows.size > 1 else None
            found[concept] = Latest(float(flat.value[rows[-1]]), int(flat.time[rows[-1]]), before)
    return found


def reasons(
    features: FeatureSet,
    row: npt.NDArray[np.float32],
    contributions: npt.NDArray[np.float64],
    measured: Mapping[str, Latest],
    now: int,
    timezone: str,
) -> list[Reason]:
    """Sum contributions by clinical concept and put each sum into words.

    Parameters
    ----------
    row : float32 array of shape (n_features,)
    contributions : float64 array of shape (n_features + 1,), the last one the base value
    measured : latest measurements by concept
    now : the prediction time, microseconds
    timezone : the site's, for the times in the words

    Returns
    -------
    list of Reason, strongest first. Their contributions and the base value add up to the raw score.
    """
    told = []
    for about, columns in concept_groups(features):
        total = float(sum(contributions[k] for k in columns))
        strongest = max(columns, key=lambda k: abs(contributions[k]))
        told.append(_reason(features, about, strongest, row, total, measured.get(about), now, timezone))
    return sorted(told, key=lambda r: (-abs(r.contribution), r.concept))


def _reason(
    features: FeatureSet,
    about: str,
    strongest: int,
    row: npt.NDArray[np.float32],
    total: float,
    measured: Latest | None,
    now: int,
    timezone: str,
) -> Reason:
    direction = "raises" if total > 0 else "lowers" if total < 0 else "neutral"
    effect = {"raises": "raises risk", "lowers": "lowers risk", "neutral": "no effect"}[direction]
    if strongest >= len(features.windows):
        label = _own_label(features, about)
        value = float(row[strongest])
        points = (" point" if value == 1 else " points") if about in features.scores else ""
        said = f"{label} cannot be told" if np.isnan(value) else f"{label} {number_text(value)}{points}"
        known = None if np.isnan(value) else value
        return Reason(about, label, f"{said}, {effect}", known, "", None, None, direction, total)
    concept = loader.concepts()[about]
    label, unit, fixed = plain_label(concept.label)[0], unit_text(concept.unit), concept.kind in STATIC_KINDS
    if measured is None:
        text = f"{label} not measured, {effect}"
        return Reason(about, label, text, None, unit, None, None, direction, total)
    words = [_standing(about, measured, now)]
    if not fixed:
        words = [
            quantity_text(about, measured.value) + _trend(measured),
            clock_text(measured.time, now, timezone),
        ]
        words += _detail(features.windows[strongest], float(row[strongest]), features.resample == HOUR)
    previous = None if fixed else measured.previous
    text = ", ".join([*words, effect])
    return Reason(about, label, text, measured.value, unit, measured.time, previous, direction, total)


def _standing(concept: str, measured: Latest, now: int) -> str:
    """A fact that does not change, or an event whose time is what matters."""
    about = loader.concepts()[concept]
    if (about.low, about.high, about.unit) == (0, 1, "1") and not plain_label(about.label)[1]:
        return f"{about.label} {number_text((now - measured.time) / HOUR_US)} h ago"
    return quantity_text(concept, measured.value)


def _trend(measured: Latest) -> str:
    if measured.previous is None or measured.previous == measured.value:
        return "" if measured.previous is None else ", unchanged"
    way = "up" if measured.value > measured.previous else "down"
    return f", {way} from {number_text(measured.previous)}"


def _detail(window: Window, value: float, hourly: bool) -> list[str]:
    """What the strongest feature of the concept adds to the latest value and its time."""
    if np.isnan(value):
        return []
    hours = number_text(window.lookback_us / HOUR_US)
    over, said = "the stay" if window.lookback_us == STAY_US else f"{hours} h", number_text(value)
    times = f"measured {said} times in {over}"
    if hourly:  # resampled: a count is of hours, not of measurements
        times = (
            f"measured in {said} h of the stay"
            if window.lookback_us == STAY_US
            else f"measured in {said} of {over}"
        )
    words = {
        "min": f"lowest {said} in {over}",
        "max": f"highest {said} in {over}",
        "mean": f"mean {said} over {over}",
        "twmean": f"mean {said} over {over}",
        "first": f"first {said}",
        "std": f"variation {said} in {over}",
        "slope": f"{value:+.2g} an hour over {over}".replace("-", "−"),
        "delta_from_first": f"{value:+.3g} since the first".replace("-", "−"),
        "count": times,
        "sum": f"sum {said} in {over}",
    }
    return [words[window.statistic]] if window.statistic in words else []


def _own_label(features: FeatureSet, about: str) -> str:
    """What a ratio or a clinical score is called: by its name, or by its parts where it has none of its own."""
    if about in features.scores:
        name = about.removesuffix("_partial").replace("_", " ").upper().replace("QSOFA", "qSOFA")
        return f"{name} (partial)" if about.endswith("_partial") else name
    ratio = next(r for r in features.ratios if r.name == about)
    if ratio.name == f"{ratio.numerator}_{ratio.denominator}":
        parts = (plain_label(loader.concepts()[c].label)[0] for c in (ratio.numerator, ratio.denominator))
        return " over ".join(parts)
    return about.replace("_", " ").capitalize()
