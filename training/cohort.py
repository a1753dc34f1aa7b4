"""From a source to a table that can be trained or judged on: features, outcome and scope of every patient-hour.

Scoring a file and training on it come through :func:`prepare`, and the service builds and assesses the same way: one
definition of a feature and of who may be scored.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clean import clean
from features.clock import HOUR_US, micros
from features.errors import DataError
from features.events import encounter_events
from features.labels import physionet2019 as physionet_labels
from features.labels.synthetic import sepsis_hours
from features.sources import physionet2019
from features.sources.synthetic import simulate
from models import scope
from models.metrics import first_positive
from models.spec import Spec
from training.splits import patient_folds

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]
Matrix = npt.NDArray[np.float32]
Say = Callable[[int], None]

START: Final = datetime(2026, 1, 5, tzinfo=UTC)
OLDEST: Final = 130
"""Years; an age beyond it is a typing error."""

GROUPS: Final = ("age", "sex", "unit")
AGES: Final = (0, 50, 65, 80)
AGE_BANDS: Final = ("under 50", "50 to 64", "65 to 79", "80 and over")

CITATION: Final = (
    "Reyna MA, Josef CS, Jeter R, et al. Early Prediction of Sepsis From Clinical Data: The PhysioNet/Computing in "
    "Cardiology Challenge 2019. Crit Care Med 2020;48(2):210-217. Data: doi 10.13026/v64v-d857, CC BY 4.0."
)


@dataclass(frozen=True)
class Patients:
    """Whole encounters from a source, not yet cleaned.

    ``rows`` has one row a prediction: ``encounter_id``, ``prediction_time``, ``iculos`` (hours since ICU admission),
    ``site``, and what else the source wants to hand through. Its index is the row's place in the whole input.
    """

    encounters: pd.DataFrame
    events: pd.DataFrame
    rows: pd.DataFrame
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """Features and scope of some rows, in the order of ``rows``.

    ``account`` counts the events read and those that cleaning set aside, by reason. ``columns`` has one row a source's
    code with ``read`` and ``aside``, both counts of events. ``groups`` says of each row which age band, sex and unit it
    is judged with.
    """

    rows: pd.DataFrame
    matrix: Matrix
    status: Objects
    account: dict[str, int]
    columns: pd.DataFrame
    groups: dict[str, Objects]


def prepare(patients: Patients, spec: Spec, threads: int = 1) -> Prepared:
    """Clean, build the features, and say of each row whether it can be scored."""
    events, account = clean(patients.events)
    matrix = spec.features.build(events, patients.rows, threads=threads)
    about = patients.encounters.set_index("encounter_id").loc[patients.rows["encounter_id"].astype(object)]
    status = statuses(about, matrix, spec)
    columns = _by_column(patients.events["code"], account.set_aside["position"].to_numpy(dtype=np.int64))
    told = {"events": account.read, **account.reasons}
    return Prepared(patients.rows, matrix, status, told, columns, subgroups(about))


def statuses(about: pd.DataFrame, matrix: Matrix, spec: Spec) -> Objects:
    """Whether each row can be scored; ``about`` has its ``encounter_class`` and ``age_years``."""
    return scope.assess(
        about["encounter_class"],
        _age(about["age_years"].to_numpy(dtype=np.float64)),
        scope.recent_vitals(matrix, spec),
        spec,
        scope.admission_known(matrix, spec),
    )


def subgroups(about: pd.DataFrame) -> dict[str, Objects]:
    """Age band, sex and kind of unit of each row of encounters, as fairness is judged; empty where unknown."""
    age = _age(about["age_years"].to_numpy(dtype=np.float64))
    band = pd.cut(pd.Series(age), [*AGES, np.inf], right=False, labels=list(AGE_BANDS)).astype(object)
    named = {"sex": about["sex"], "unit": about["icu_type"]}
    plain = {name: column.astype(object).fillna("").to_numpy(dtype=object) for name, column in named.items()}
    return {"age": band.fillna("").to_numpy(dtype=object), **plain}


def _age(years: Floats) -> Floats:
    """Ages no human has are unknown ages: they neither admit to the scope nor shut out of it."""
    return np.where((years >= 0) & (years <= OLDEST), years, np.nan)


def _by_column(code: pd.Series, aside: Ints) -> pd.DataFrame:
    names = code.astype("category").cat
    codes, size = names.codes.to_numpy().astype(np.int64), len(names.categories)
    lost = np.bincount(codes[aside][codes[aside] >= 0], minlength=size)
    read = np.bincount(codes[codes >= 0], minlength=size)
    return pd.DataFrame({"read": read, "aside": lost}, index=names.categories.astype(str))


@dataclass(frozen=True)
class Cohort:
    """Every patient-hour of an input.

    Attributes
    ----------
    matrix : float32, shape (n, n_features), columns as in the spec
    patient : int codes from 0, shape (n,)
    hour : hours since ICU admission, shape (n,); rows of a patient are an hour apart
    label : 0 or 1, shape (n,)
    site, status : object, shape (n,)
    groups : mapping of name to object, shape (n,)
        ``age``, ``sex`` and ``unit`` of each row, for judging by subgroup.
    person : int codes, shape (n,), optional
        Whom folds keep whole where one person has several stays; without it, each patient.
    data : dict
        What the rows are made of: source, files with hashes, counts. Nothing of any patient.
    """

    matrix: Matrix
    patient: Ints
    hour: Floats
    label: Ints
    site: Objects
    status: Objects
    data: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Objects] = field(default_factory=dict)
    person: Ints | None = None

    @property
    def scored(self) -> npt.NDArray[np.bool_]:
        """Rows that may be scored, shape (n,)."""
        return np.asarray(self.status == scope.SCORED)

    def per_patient(self) -> tuple[Objects, npt.NDArray[np.bool_], Ints]:
        """Site, outcome and number of rows of each patient."""
        septic = np.isfinite(first_positive(self.patient, self.hour, self.label))
        first = np.unique(self.patient, return_index=True)[1]
        return self.site[first], septic, np.bincount(self.patient)

    def folds(self, count: int, seed: int) -> Ints:
        """Fold of each row, shape (n,): all stays of a person in one, folds alike (:func:`splits.patient_folds`)."""
        person = self.patient if self.person is None else self.person
        first = np.unique(person, return_index=True)[1]
        septic = np.bincount(person, weights=self.label) > 0
        rng = np.random.default_rng(seed)
        return patient_folds(self.site[first], septic, np.bincount(person), count, rng)[person]


def read_cohort(
    source: str, path: Path | None, spec: Spec, threads: int, say: Say = lambda rows: None
) -> Cohort:
    """Read, clean, build and label everything an input holds.

    Parameters
    ----------
    source : "physionet2019" or "synthetic"
    path : Path
        As :func:`features.sources.physionet2019.read` takes it; the simulator needs none.
    say : callable
        Told how many rows are done, for a progress bar.

    Raises
    ------
    DataError
        The source is unknown, or its data cannot be used.
    """
    if source == "synthetic":
        patients, labels, origin = _simulated(spec)
    elif source == "physionet2019":
        patients, labels, origin = _physionet(path)
    else:
        raise DataError(
            f"Sepsis is trained on 'physionet2019', 'synthetic' or a hospital's format of `wardcast data convert`, not "
            f"on {source!r}."
        )
    parts, account = [], Counter[str]()
    for part in patients:
        parts.append(prepare(part, spec, threads))
        account.update(parts[-1].account)
        say(len(part.rows))
    return assembled(parts, labels, origin | {"cleaning": dict(account)})


def sources_of(path: Path) -> Iterator[Patients]:
    """The patients of a PhysioNet 2019 file or folder."""
    for chunk in physionet2019.read(path):
        yield Patients(chunk.encounters, chunk.events, chunk.rows, chunk.notes)


def _physionet(path: Path | None) -> tuple[Iterator[Patients], Ints, dict[str, Any]]:
    if path is None:
        raise DataError("Say where the data are: --source physionet2019 --input DIR.")
    files = [{"name": f.name, "sha256": sha256(f)} for f in physionet2019.files(path)]
    origin = {"source": "physionet2019", "files": files, "citation": CITATION}
    return sources_of(path), physionet_labels.read_labels(path), origin


def sha256(file: Path) -> str:
    """Fingerprint of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _simulated(spec: Spec) -> tuple[Iterator[Patients], Ints, dict[str, Any]]:
    settings = {key: spec.section("training")[f"simulated_{key}"] for key in ("days", "seed", "icu_beds")}
    hospital = simulate(settings["days"], settings["seed"], START, icu_beds=settings["icu_beds"])
    rows = sepsis_hours(hospital)
    encounters = hospital.encounters[hospital.encounters["encounter_id"].isin(rows["encounter_id"].unique())]
    events = hospital.events[hospital.events["encounter_id"].isin(encounters["encounter_id"])]
    events = pd.concat([events, encounter_events(encounters)], ignore_index=True)
    admitted = encounters.set_index("encounter_id")["icu_admission_time"].loc[rows["encounter_id"]]
    hours = (micros(rows["prediction_time"]) - micros(admitted)) / HOUR_US
    patients = Patients(encounters, events, rows.assign(iculos=hours, site="simulated"))
    origin = {"source": "synthetic", "simulation": settings, "citation": "Simulated patients; no real data."}
    return iter([patients]), rows["label"].to_numpy(dtype=np.int64), origin


def assembled(parts: list[Prepared], labels: Ints, origin: dict[str, Any]) -> Cohort:
    """One table of all parts; each part's matrix is let go as soon as it is copied."""
    rows = pd.concat([p.rows for p in parts])
    status = np.concatenate([p.status for p in parts])
    groups = {name: np.concatenate([p.groups[name] for p in parts]) for name in parts[0].groups}
    account = origin.pop("cleaning")
    matrix = np.empty((len(rows), parts[0].matrix.shape[1]), dtype=np.float32)
    end = len(rows)
    while parts:
        last = parts.pop().matrix
        matrix[end - len(last) : end] = last
        end -= len(last)
    patient = pd.factorize(rows["encounter_id"].astype(object))[0].astype(np.int64)
    label = labels[rows.index.to_numpy()]
    data = origin | {
        "rows": len(rows),
        "patients": int(patient.max(initial=-1)) + 1,
        "septic_patients": len(np.unique(patient[label == 1])),
        "positive_rows": int(label.sum()),
        "statuses": {str(k): int(n) for k, n in pd.Series(status).value_counts().items()},
        "cleaning": account,
    }
    hour = rows["iculos"].to_numpy(dtype=np.float64)
    return Cohort(matrix, patient, hour, label, rows["site"].to_numpy(dtype=object), status, data, groups)
