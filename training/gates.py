"""What a model must show before it may serve: gates read from a table, each with what it found.

Nothing here knows a figure of merit by heart. ``models/gates.toml`` says which figure of a bundle's evaluation must lie
where; size, parity and latency are measured on the machine that asks.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clean import clean
from features.errors import ConfigError
from features.events import encounter_events
from features.labels.synthetic import sepsis_hours
from features.sources.synthetic import simulate
from models import parity
from models.bundle import Bundle
from models.scope import SCORED
from training.cohort import START, Patients, prepare

GATES: Final = Path(__file__).resolve().parent.parent / "models" / "gates.toml"
STAYS: Final = 4
"""Simulated stays that are rehearsed, with the first ``HOURS`` hours of each."""
HOURS: Final = 18
LIMITS: Final = ("size_mb", "latency_ms", "reference_difference")
FIGURE: Final = ("name", "at", "figure")
SAID: Final = "WARDCAST//"
"""Codes of what encounters say themselves, which the service reads from the encounter."""
EVALUATION: Final = "evaluation"
PARTS: Final = (EVALUATION, "recalibration")
BOUNDS: Final = {"value": 0, "low": 1, "high": 2}


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """The service's road tried out: how many scores, how many unlike the batch, CPU of one with reasons."""

    scores: int
    different: int
    cpu_ms: float


Rehearsal = Callable[[Bundle], Rehearsed]
Served = Callable[[Bundle, pd.DataFrame, pd.DataFrame, pd.DataFrame], tuple[npt.NDArray[np.float64], float]]
"""``serving.rehearsal.rehearse``, which the command line lends, since training must not import the service."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate: what was asked, what was found, and whether that will do."""

    name: str
    asked: str
    found: str
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


@dataclass(frozen=True)
class Gates:
    """The gates of one product, and the digest of the file that they stand in."""

    table: dict[str, Any]
    digest: str

    @classmethod
    def load(cls, product: str, path: Path | None = None) -> Gates:
        """Read the gates of a product.

        Raises
        ------
        ConfigError
            The file is absent or no TOML, lacks the product, or a gate of it lacks what it needs.
        """
        path = path or GATES
        if not path.is_file():
            raise ConfigError(f"No gates at {path}. models/gates.toml shows what they look like.")
        content = path.read_bytes()
        try:
            table = tomllib.loads(content.decode()).get(product)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"The gates in {path.name} are not TOML: {error}.") from None
        if table is None:
            raise ConfigError(f"{path.name} has no gates for {product}. Write a section [{product}].")
        _complete(table, product, path.name)
        return cls(table, hashlib.sha256(content).hexdigest()[:12])

    def judge(self, bundle: Bundle, rehearsal: Rehearsal | None = None) -> list[Gate]:
        """Every gate with what it found in a bundle; a product that is not rehearsed has no gates for it."""
        gates = [_served(bundle), _size(bundle, self.table["size_mb"])]
        for entry in self.table["figure"]:
            part = entry.get("part", EVALUATION)
            # Only what was recalibrated has figures of that; every bundle has an evaluation.
            if part == EVALUATION or part in bundle.parts:
                gates.append(figure_gate(entry, bundle.parts.get(part, {})))
        gates.append(_reference(bundle, self.table["reference_difference"]))
        if rehearsal is not None:
            gates += _rehearsed(rehearsal(bundle), self.table["latency_ms"])
        return gates


def _complete(table: Mapping[str, Any], product: str, file: str) -> None:
    lacks = [key for key in (*LIMITS, "figure") if key not in table]
    for entry in table.get("figure", []):
        lacks += [f"figure.{key} of {entry.get('name', '?')}" for key in FIGURE if key not in entry]
        if not {"at_least", "at_most"} & set(entry):
            lacks.append(f"at_least or at_most of {entry.get('name', '?')}")
        if entry.get("part", EVALUATION) not in PARTS:
            lacks.append(f"a part of {', '.join(PARTS)} in {entry.get('name', '?')}")
        if entry.get("bound", "value") not in BOUNDS:
            lacks.append(f"a bound of {', '.join(BOUNDS)} in {entry.get('name', '?')}")
    if lacks:
        raise ConfigError(f"The gates for {product} in {file} lack {', '.join(lacks)}.")


def _served(bundle: Bundle) -> Gate:
    served = bool(bundle.spec.section("model").get("served", True))
    return Gate("made to be served", "yes", "yes" if served else "no, by its spec", served)


def _size(bundle: Bundle, most: float) -> Gate:
    size = sum(f.stat().st_size for f in bundle.folder.rglob("*") if f.is_file()) / 1e6
    return Gate("size", f"at most {most:g} MB", f"{size:.2f} MB", size <= most)


def figure_gate(entry: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Gate:
    """Judge one figure of an evaluation, or the worst of many."""
    asked = _asked(entry)
    found = list(_found(entry, evaluation))
    if not found:
        return Gate(entry["name"], asked, "not measured", False)
    if any(value is None for _, value in found):
        return Gate(entry["name"], asked, "not measured everywhere", False)
    values = [(who, float(v)) for who, v in found if v is not None]
    who, worst = min(values, key=lambda item: _margin(entry, item[1]))
    some = f" ({who}, worst of {len(values)})" if entry.get("every") else ""
    return Gate(entry["name"], asked, f"{worst:.4g}{some}", _margin(entry, worst) >= 0)


def _asked(entry: Mapping[str, Any]) -> str:
    words = {"at_least": "at least", "at_most": "at most"}
    return ", ".join(f"{word} {entry[key]:g}" for key, word in words.items() if key in entry)


def _margin(entry: Mapping[str, Any], value: float) -> float:
    """How far inside its limits a figure lies; below 0 outside, also where it is NaN."""
    inside = [value - entry["at_least"]] if "at_least" in entry else []
    inside += [entry["at_most"] - value] if "at_most" in entry else []
    return -np.inf if np.isnan(value) else float(min(inside))


def _found(entry: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Where the figure stands, and what it is; None where the row has none."""
    place: Any = _walk(evaluation, entry["at"])
    rows = place if isinstance(place, list) else [] if place is None else [place]
    where, every = entry.get("where", {}), entry.get("every", False)
    for row in rows:
        fits = all(row.get(k) == v for k, v in where.items())
        if not fits or (every and (row.get(entry.get("of", "")) or 0) < entry.get("fewest", 0)):
            continue
        figure = _walk(row, entry["figure"])
        if isinstance(figure, list):
            # Value, low and high; an interval that stands alone has no value.
            place = BOUNDS[entry.get("bound", "value")] - (3 - len(figure))
            figure = figure[place] if place >= 0 else None
        yield _who(row, where), figure


def _who(row: Mapping[str, Any], where: Mapping[str, Any]) -> str:
    return ", ".join(
        str(row[k]) for k in ("group", "value", "hospital", "hours") if k in row and k not in where
    )


def _walk(value: Any, names: list[str]) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _reference(bundle: Bundle, most: float) -> Gate:
    name, asked = "reference rows score as when it was made", f"within {most:g}"
    if "parity" not in bundle.parts:
        return Gate(name, asked, "the bundle keeps none", False)
    found = parity.largest_difference(
        bundle.parts["parity"], bundle.reference, bundle.feature_names, bundle.raw
    )
    return Gate(name, asked, f"{found:.3g}", found <= most)


def _rehearsed(tried: Rehearsed, latency_ms: float) -> list[Gate]:
    same, found = tried.scores > 0 and tried.different == 0, f"{tried.cpu_ms:.2f} ms"
    agree = f"{tried.scores - tried.different:,} of {tried.scores:,}"
    return [
        Gate("service scores as the batch does", "every score", agree, same),
        Gate("CPU of a score with reasons", f"at most {latency_ms:g} ms", found, tried.cpu_ms <= latency_ms),
    ]


def rehearsal(served: Served) -> Rehearsal:
    """Scores simulated intensive-care stays on both roads: as a batch is, and as the service does."""

    def tried(bundle: Bundle) -> Rehearsed:
        patients = _simulated()
        ready = prepare(patients, bundle.spec)
        batch = np.where(ready.status == SCORED, bundle.raw(ready.matrix), np.nan)
        said = ~patients.events["code"].astype(str).str.startswith(SAID)
        online, cpu_ms = served(bundle, patients.encounters, clean(patients.events[said])[0], patients.rows)
        different = ~((batch == online) | (np.isnan(batch) & np.isnan(online)))
        return Rehearsed(int((~np.isnan(batch)).sum()), int(different.sum()), cpu_ms)

    return tried


def _simulated() -> Patients:
    hospital = simulate(2, 11, START, observe=("icu",))
    rows = sepsis_hours(hospital)
    rows = rows[rows.groupby("encounter_id").cumcount() < HOURS]
    chosen = rows["encounter_id"].drop_duplicates().iloc[:STAYS]
    rows = rows[rows["encounter_id"].isin(chosen)].reset_index(drop=True)
    encounters = hospital.encounters[hospital.encounters["encounter_id"].isin(chosen)]
    events = hospital.events[hospital.events["encounter_id"].isin(chosen)]
    events = pd.concat([events, encounter_events(encounters)], ignore_index=True)
    return Patients(encounters.reset_index(drop=True), events, rows)
