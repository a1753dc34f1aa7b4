"""Scoring and evaluation of files of patients with a bundle."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import micros
from features.errors import ConfigError, DataError
from features.labels import physionet2019 as physionet_labels
from features.sources import physionet2019
from models.abstention import INDETERMINATE
from models.bundle import Bundle, dump_json
from models.cards import evaluation_text
from models.decision import AlertPolicy, pages
from models.scope import SCORED
from training.cohort import GROUPS, Patients, Prepared, prepare, sha256, sources_of
from training.evaluation import REPLICATES, RIVALS, Judged, evaluate, rival_scores

Ints = npt.NDArray[np.int64]

TRAINED_ON: Final = (
    "These patients trained the model, which flatters it. The card has the cross-validated figures."
)
ALIKE: Final = (
    "By their identifiers these look like the challenge's own patients, most of whom trained this model. The honest "
    "figures for them are the cross-validated ones of the model's card."
)

MOST_ASIDE: Final = 0.05
"""A column of which cleaning sets aside a greater share is worth a line of its own."""


def score_patients(bundle: Bundle, patients: Patients, threads: int = 1) -> pd.DataFrame:
    """Score the rows of whole encounters.

    Returns
    -------
    ``patients.rows`` with ``probability`` (NaN where unscorable), ``alert``, ``page``, ``status``, and a column for
    each rival that the bundle's features hold. Each row reads only what was available at its own prediction time.
    """
    return _scored(bundle, patients, threads)[0]


def _scored(bundle: Bundle, patients: Patients, threads: int) -> tuple[pd.DataFrame, Prepared]:
    ready = prepare(patients, bundle.spec, threads)
    scored = np.asarray(ready.status == SCORED)
    probability, status = np.full(len(scored), np.nan), ready.status
    doubtful = np.zeros(len(scored), dtype=np.bool_)
    if scored.any():
        raw = bundle.raw(ready.matrix[scored], threads=threads)
        probability[scored] = bundle.calibrator.apply(raw)
        doubtful[scored] = bundle.indeterminate(ready.matrix[scored], raw)
    if bundle.withholds:
        probability = np.where(doubtful, np.nan, probability)
        status = np.where(doubtful, INDETERMINATE, status)
    encounter = pd.factorize(ready.rows["encounter_id"].astype(object))[0].astype(np.int64)
    policy = AlertPolicy.from_dict(bundle.alert_policy)
    unknown = pd.Series(np.nan, index=ready.rows.index)  # scores alone need no clock
    hours: npt.NDArray[np.float64] = (
        ready.rows.get("iculos", unknown).to_numpy(dtype=np.float64).astype(np.float64)
    )
    rivals = rival_scores(hours, ready.matrix, bundle.feature_names)
    rows = ready.rows.assign(
        probability=probability,
        alert=probability >= bundle.thresholds["utility"],
        page=pages(encounter, micros(ready.rows["prediction_time"]), probability, policy),
        status=status,
        indeterminate=doubtful,
        **rivals,
        **ready.groups,
    )
    return rows, replace(ready, matrix=ready.matrix[:0])


@dataclass
class _Cleaning:
    """What cleaning set aside over all parts of an input."""

    account: Counter[str] = field(default_factory=Counter)
    columns: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame({"read": [], "aside": []}, dtype=np.int64)
    )

    def add(self, part: Prepared) -> None:
        self.account.update(part.account)
        self.columns = self.columns.add(part.columns, fill_value=0).astype(np.int64)

    def notes(self) -> list[str]:
        """Lines for the console: how many values by reason, then each column that loses more than its share."""
        reasons = [(n, r.replace("_", " ")) for r, n in self.account.items() if r != "events" and n]
        if not reasons:
            return []
        said = ", ".join(f"{n:,} {reason}" for n, reason in reasons)
        lines = [
            f"Of {self.account['events']:,} values, cleaning set aside {said}; they count as never measured."
        ]
        heavy = self.columns[self.columns["aside"] > MOST_ASIDE * self.columns["read"]]
        lines += [
            f"{str(code).rpartition('//')[2]}: {row.aside:,} of {row.read:,} values set aside. Check the column's unit."
            for code, row in zip(heavy.index, heavy.itertuples(index=False), strict=True)
        ]
        return lines


@dataclass(frozen=True)
class ScoreResult:
    """What a scoring run wrote."""

    output: Path
    model_id: str
    rows: int
    patients: int
    statuses: dict[str, int]
    alerts: int
    pages: int
    notes: tuple[str, ...]

    def summary(self) -> str:
        """For the console."""
        unscored = ", ".join(f"{n:,} {s}" for s, n in sorted(self.statuses.items()) if s != SCORED) or "none"
        lines = [
            f"{self.rows:,} rows of {self.patients:,} patients scored with {self.model_id}: {self.output}",
            f"alerts {self.alerts:,} rows, pages {self.pages:,}; not scored: {unscored}",
            *self.notes,
        ]
        return "\n".join(lines)


def score_file(product: str, source: str, input: Path, output: Path, model: str | None = None) -> ScoreResult:
    """Score every row of a file or folder and write ``patient_id, hour, probability, alert, page, status``.

    Rows stand in the order of the input, with its ``patient_id`` and ``hour``. Outcomes in the input are not read.

    Raises
    ------
    ConfigError
        The product or source is not one this command knows, or the output is no Parquet file.
    DataError
        The input cannot be used, or the output would overwrite it or be read as part of it.
    """
    bundle = _bundle(product, source, model)
    if output.suffix != ".parquet":
        raise ConfigError(f"Scores are written as Parquet; name the output {output.stem}.parquet.")
    _refuse_onto_input(input, output)
    parts, notes, cleaning = [], dict[str, None](), _Cleaning()
    for patients in sources_of(input):
        rows, ready = _scored(bundle, patients, _threads())
        cleaning.add(ready)
        parts.append(rows[["patient_id", "hour", "probability", "alert", "page", "status"]])
        notes |= dict.fromkeys(patients.notes)
    if not parts:
        raise DataError(f"{input} holds no rows. Give a file with at least one patient-hour.")
    table = pd.concat(parts).sort_index(kind="stable")
    with _whole(output) as unfinished:
        table.to_parquet(unfinished, index=False)
    return ScoreResult(
        output,
        bundle.model_id,
        len(table),
        int(table["patient_id"].nunique()),
        {str(k): int(v) for k, v in Counter(table["status"]).items()},
        int(table["alert"].sum()),
        int(table["page"].sum()),
        (*notes, *cleaning.notes()),
    )


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation run measured."""

    model_id: str
    evaluation: dict[str, Any]
    output: Path
    notes: tuple[str, ...]

    def summary(self) -> str:
        """The table, for the console."""
        head = f"{self.model_id} on {self.evaluation['data']['name']}"
        return "\n".join(
            [head, "", evaluation_text(self.evaluation), "", *self.notes, f"Saved: {self.output}"]
        )


def evaluate_file(
    product: str, source: str, input: Path, model: str | None = None, output: Path | None = None
) -> EvaluationResult:
    """Judge a model on a file or folder with outcomes; print the table, save it as JSON.

    Thresholds and calibration are the model's own: nothing is fitted to the file.

    Parameters
    ----------
    output : Path, optional
        Default ``var/reports/evaluation-<model>-<input>.json``.

    Raises
    ------
    ConfigError, DataError
        As :func:`score_file` does.
    """
    bundle = _bundle(product, source, model)
    output = output or _reports() / f"evaluation-{bundle.model_id.replace('@', '-')}-{input.stem}.json"
    _refuse_onto_input(input, output)
    labels = physionet_labels.read_labels(input)
    parts, notes, cleaning = [], dict[str, None](), _Cleaning()
    for patients in sources_of(input):
        scored, ready = _scored(bundle, patients, _threads())
        parts.append(scored)
        cleaning.add(ready)
        notes |= dict.fromkeys(patients.notes)
    if not parts:
        raise DataError(f"{input} holds no rows. Give a file with at least one patient-hour.")
    rows = pd.concat(parts)
    judged = judged_rows(rows, labels[rows.index.to_numpy()], bundle)
    evaluation = evaluate(judged, bundle.spec.section("training").get("replicates", REPLICATES))
    evaluation["data"] = {"name": input.name, "rows": len(rows), "model_id": bundle.model_id}
    known = {"trained_on_these_files": trained_on(bundle, input), "challenge_patients": alike(bundle, rows)}
    evaluation["data"] |= known | {"cleaning": dict(cleaning.account)}
    notes |= dict.fromkeys(cleaning.notes())
    if known["trained_on_these_files"]:
        notes[TRAINED_ON] = None
    if known["challenge_patients"]:
        notes[ALIKE] = None
    with _whole(output) as unfinished:
        unfinished.write_text(dump_json(evaluation), encoding="utf-8")
    return EvaluationResult(bundle.model_id, evaluation, output, tuple(notes))


def trained_on(bundle: Bundle, input: Path) -> bool:
    """Whether any of the files is one that the bundle was trained on, byte for byte."""
    known = {f["sha256"] for f in bundle.parts["data"].get("files", [])}
    return any(sha256(f) in known for f in physionet2019.files(input))


def alike(bundle: Bundle, rows: pd.DataFrame) -> bool:
    """Whether a model of the challenge's patients meets identifiers of the challenge's form, in whatever file."""
    return bundle.parts["data"].get("source") == "physionet2019" and bool((rows["site"] != "").any())


def judged_rows(rows: pd.DataFrame, label: Ints, bundle: Bundle) -> Judged:
    """Rows of :func:`score_patients` beside their outcomes; rivals alarm at the thresholds found in training."""
    limits = bundle.parts["decision"].get("rivals", {})
    rivals = {}
    for name in ("clock", *RIVALS):
        if name in rows and name in limits:
            score = rows[name].to_numpy(dtype=np.float64)
            rivals[name] = (score, score >= limits[name])
    return Judged(
        patient=pd.factorize(rows["encounter_id"].astype(object))[0].astype(np.int64),
        hour=rows["iculos"].to_numpy(dtype=np.float64),
        label=label,
        site=rows["site"].to_numpy(dtype=object),
        probability=rows["probability"].to_numpy(dtype=np.float64),
        alarm=rows["alert"].to_numpy(dtype=np.bool_),
        page=rows["page"].to_numpy(dtype=np.bool_),
        rivals=rivals,
        groups={name: rows[name].to_numpy(dtype=object) for name in GROUPS if name in rows},
        policy=AlertPolicy.from_dict(bundle.alert_policy),
        indeterminate=rows["indeterminate"].to_numpy(dtype=np.bool_) if bundle.abstention else None,
    )


def _bundle(product: str, source: str, model: str | None) -> Bundle:
    from training.tracking import resolve

    if product != "sepsis":
        raise ConfigError(
            f"Files are scored and evaluated for sepsis; {product} has `wardcast forecast beds`."
        )
    if source != "physionet2019":
        raise ConfigError(f"Files of source {source!r} cannot be scored yet; 'physionet2019' can.")
    return Bundle.load(resolve(model or "released:sepsis"))


def _refuse_onto_input(input: Path, output: Path) -> None:
    """An output must neither replace a file of the input nor join the folder that is read as input."""
    if any(output.resolve() == f.resolve() for f in physionet2019.files(input)):
        raise DataError(
            f"The output {output.name} is a file of the input. Name another, so that none is lost."
        )
    if input.is_dir() and output.resolve().is_relative_to(input.resolve()):
        raise DataError(
            f"The output {output.name} lies in the input's folder, where it would be read as patients. Name a place "
            "outside."
        )


@contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """A file beside the output to write to, which takes the output's name once it is complete."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        yield unfinished
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


def _threads() -> int:
    return os.cpu_count() or 1


def _reports() -> Path:
    from training.tracking import var

    return var() / "reports"
