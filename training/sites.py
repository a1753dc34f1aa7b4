"""A hospital's own data to train on: an archive, hour by hour, wards and emergency department included.

Onsets are found by the spec's reading of Sepsis-3, features built from what was available at each hour, and where a
patient was is taken from the moves known by then. Nobody is scored after onset: those hours are left out and counted.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features import archive
from features.clock import HOUR_US, Target, micros
from features.cohorts import bounds, current_class, prediction_times
from features.errors import ConfigError, DataError, SpecError
from features.labels.sepsis3 import PRESETS, Sepsis3, label_rows
from features.sources.registry import READERS
from features.streams import LONGEST
from models.metrics import LABEL_LEAD_H
from models.spec import Spec
from training.cohort import Cohort, Prepared, Say, assembled, sha256, statuses, subgroups
from training.datasets import convert
from training.labelling import SUSPECTED, label_shard, tellable

LABEL: Final = "sepsis3"
SOURCES: Final = tuple(s for s in READERS if s not in ("physionet2019", "physionet2012"))
SEPTIC_A_FOLD: Final = 2
"""Persons with sepsis that each fold needs: with one, a single patient would be all that a fold is judged by."""
CITATION: Final = "Data of a site's own, which this bundle does not hold."


@dataclass
class _Found:
    """What all shards add up to."""

    parts: list[Prepared] = field(default_factory=list)
    labels: list[npt.NDArray[np.int64]] = field(default_factory=list)
    people: list[pd.Series] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    rows: int = 0


def definition_of(spec: Spec) -> tuple[Sepsis3, Target]:
    """The reading of Sepsis-3 and the target window that a spec's ``[target]`` declares.

    Raises
    ------
    SpecError
        The target is another label, names no preset, or asks for another window than the six hours up to onset.
    """
    target = spec.section("target")
    if target.get("label") != LABEL or target.get("preset") not in PRESETS:
        raise SpecError(
            f"A site's data are labelled by a spec whose [target] has label = {LABEL!r} and preset = one of "
            f"{', '.join(PRESETS)}; this one has label = {target.get('label')!r}, preset = {target.get('preset')!r}. "
            "models/sepsis/site.toml is such a spec."
        )
    if target.get("horizon_h") != LABEL_LEAD_H or target.get("gap_h", 0):
        raise SpecError(
            f"A site's [target] needs horizon_h = {LABEL_LEAD_H} and no gap_h: utility, lead and pages count from "
            f"an onset {LABEL_LEAD_H} hours after the first positive one, so other windows would be judged wrongly."
        )
    found = PRESETS[target["preset"]]
    if "signs" in target:
        found = dataclasses.replace(
            found, suspicion=dataclasses.replace(found.suspicion, signs=target["signs"])
        )
    return found, Target(timedelta(0), timedelta(hours=LABEL_LEAD_H))


def read_site(
    source: str, path: Path | None, spec: Spec, threads: int, say: Say = lambda rows: None
) -> Cohort:
    """Read, label and build everything an extract or an archive of a hospital holds.

    Parameters
    ----------
    source : str
        One of :data:`SOURCES`.
    path : Path
        An archive of ``wardcast data convert``, which needs no reading again; or what the source's reader takes, times
        without an offset being those of ``WARDCAST_TIMEZONE``.
    say : callable
        Told how many rows are done.

    Raises
    ------
    ConfigError, DataError, SpecError
        There is nothing to read; suspicion of infection leaves no trace in it; or too few persons turned septic.
    """
    definition, target = definition_of(spec)
    if path is None:
        raise ConfigError(f"Say where the data are: --source {source} --input PATH.")
    found = _Found()
    with _archive(source, path, threads) as folder:
        _tell_suspicion(folder, definition)
        for key in archive.shards(folder):
            _take(found, key.read(), definition, target, spec, source, threads)
            say(len(found.parts[-1].rows) if found.parts else 0)
        files = [
            {"name": f"data/{f.name}", "sha256": sha256(f)}
            for f in sorted((folder / "data").glob("*.parquet"))
        ]
    return _cohort(found, spec, {"source": source, "files": files, "citation": CITATION})


def _tell_suspicion(folder: Path, definition: Sepsis3) -> None:
    """Refuse an archive without the signs that the definition reads, before anything is built."""
    asked = {k: c for k, c in SUSPECTED.items() if definition.suspicion.signs in ("both", "either", k)}
    met: Counter[str] = Counter(dict.fromkeys(asked, 0))
    for key in archive.shards(folder):
        counted = key.read(("encounter_id", "concept")).events["concept"].value_counts()
        met.update({k: sum(int(counted.get(c, 0)) for c in concepts) for k, concepts in asked.items()})
    tellable(met)


@contextmanager
def _archive(source: str, path: Path, threads: int) -> Iterator[Path]:
    """The archive that a path is, or is converted to for as long as it is read."""
    if (path / "metadata" / "wardcast.json").is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="wardcast-") as held:
        zone = os.environ.get("WARDCAST_TIMEZONE") or "UTC"
        yield convert(source, path, Path(held) / "archive", timezone=zone, threads=threads).folder


def _take(
    found: _Found,
    shard: archive.Shard,
    definition: Sepsis3,
    target: Target,
    spec: Spec,
    source: str,
    threads: int,
) -> None:
    """One shard: hours of stays up to onset, with outcome, features and scope."""
    units, _, _ = label_shard(shard, definition, float(spec.section("scope")["min_age"]))
    rows = prediction_times(bounds(shard.encounters, shard.events), maximum_look=LONGEST)
    rows = _kept(found, rows, rows["encounter_id"].isin(units["encounter_id"]), "hours_of_stays_not_labelled")
    place = current_class(rows, shard.encounters, shard.events)
    rows = _kept(found, rows.assign(encounter_class=place), place != "left", "hours_after_leaving")
    label = label_rows(rows, units, target)
    rows = _kept(found, rows.assign(label=label), label.notna(), "hours_at_or_after_onset")
    if rows.empty:
        return
    rows.index = pd.RangeIndex(found.rows, found.rows + len(rows))
    found.rows += len(rows)
    found.labels.append(rows["label"].to_numpy(dtype=np.int64))
    found.parts.append(_prepared(rows, shard, spec, source, threads))
    who = shard.encounters.set_index("encounter_id")["subject_id"]
    found.people.append(who.loc[rows["encounter_id"].astype(object)])
    found.classes.update(rows["encounter_class"].tolist())


def _kept(found: _Found, rows: pd.DataFrame, keep: pd.Series, reason: str) -> pd.DataFrame:
    found.left[reason] += int((~keep).sum())
    return rows[keep]


def _prepared(rows: pd.DataFrame, shard: archive.Shard, spec: Spec, source: str, threads: int) -> Prepared:
    """Features and scope; archives are cleaned already."""
    matrix = spec.features.build(shard.events, rows[["encounter_id", "prediction_time"]], threads=threads)
    about = shard.encounters.set_index("encounter_id").loc[rows["encounter_id"].astype(object)]
    about = about.assign(encounter_class=rows["encounter_class"].to_numpy())
    began = rows.groupby("encounter_id")["prediction_time"].transform("min")
    hours = (micros(rows["prediction_time"]) - micros(began)) / HOUR_US
    timed = rows[["encounter_id", "prediction_time"]].assign(iculos=hours, site=source)
    nothing = pd.DataFrame({"read": [], "aside": []}, dtype=np.int64)
    account = {"events": len(shard.events)}
    return Prepared(timed, matrix, statuses(about, matrix, spec), account, nothing, subgroups(about))


def _cohort(found: _Found, spec: Spec, origin: dict[str, Any]) -> Cohort:
    if not found.parts:
        raise DataError(
            "Nobody is left to train on: no stay of an adult has hours with a known place, before any onset."
        )
    account = Counter[str]()
    for part in found.parts:
        account.update(part.account)
    cohort = assembled(found.parts, np.concatenate(found.labels), origin | {"cleaning": dict(account)})
    person = pd.factorize(pd.concat(found.people).astype(object))[0].astype(np.int64)
    septic = len(np.unique(person[(cohort.label == 1) & cohort.scored]))
    _enough(septic, int(spec.section("training")["folds"]))
    target = spec.section("target")
    label: dict[str, Any] = {k: target[k] for k in ("preset", "signs", "gap_h", "horizon_h") if k in target}
    told: dict[str, Any] = {
        "label": {"name": LABEL, **label},
        "persons": int(person.max()) + 1,
        "septic_persons": septic,
        "classes": dict(found.classes),
        "left": {reason: n for reason, n in found.left.items() if n},
    }
    return dataclasses.replace(cohort, person=person, data=cohort.data | told)


def _enough(septic: int, folds: int) -> None:
    """Refuse to cross-validate what cannot be."""
    needed = SEPTIC_A_FOLD * folds
    if septic < needed:
        raise DataError(
            f"{septic} persons have hours before an onset that can be scored; {folds} folds need at least {needed} "
            "of them. Give more patients, or their vital signs, or declare fewer folds in [training]. Below some "
            "hundreds no figure of such a model means much."
        )
