"""The only door to Evidently: a drift report on the columns it can read, as HTML and JSON that open without a network.

Evidently refuses empty columns, columns that are all missing, and tables without rows, and takes the whole report down
with them; text and narrow integers it trips over. So it is given what is left after our own checks, as float64, and
says nothing about what it was not given: the report names both.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

METHOD: Final = "psi"
THRESHOLD: Final = 0.2
MOST_ROWS: Final = 10_000
TELEMETRY_OFF: Final = {"DO_NOT_TRACK": "true", "ITERATIVE_DO_NOT_TRACK": "1"}


@dataclass(frozen=True, slots=True)
class EvidentlyReport:
    """Where the report is and what it says.

    Attributes
    ----------
    html, json : Path or None
        None where there was nothing to compare.
    drift : mapping of column to Evidently's drift score
    drifted : tuple of str
        Columns at or above the threshold. Sample size plays no part in it: with few rows, read the findings instead.
    left_out : mapping of column to the reason
    rows : int
        Current rows compared.
    """

    html: Path | None
    json: Path | None
    drift: Mapping[str, float]
    drifted: tuple[str, ...]
    left_out: Mapping[str, str]
    rows: int


def choose(gain: Mapping[str, float], names: Sequence[str], most: int) -> tuple[str, ...]:
    """The features that carry most of the model's gain, best first; without a gain, the first ones."""
    ranked = sorted(names, key=lambda name: -gain.get(name, 0.0))
    return tuple(ranked[:most])


def drift_report(
    current: pd.DataFrame,
    reference: pd.DataFrame,
    columns: Sequence[str],
    folder: Path,
    *,
    title: str,
    rng: np.random.Generator,
) -> EvidentlyReport:
    """Compare columns through Evidently and save ``evidently.html`` and ``evidently.json`` in a folder.

    Parameters
    ----------
    current, reference : DataFrame
        May lack columns, hold text, be empty. Values of ``current`` beyond the reference's range are drawn in to its
        ends: a profile keeps no extremes, and our own checks look at those. Its columns are shuffled apart.
    columns : names wanted, most important first
    title : str
        Such as the model's identity; appears in the report's metadata.
    rng : Generator
        Chooses rows when there are more than :data:`MOST_ROWS`.
    """
    now, then, left_out = usable(current, reference, columns)
    if now.empty:
        return EvidentlyReport(None, None, {}, (), left_out, 0)
    if len(now) > MOST_ROWS:
        now = now.iloc[np.sort(rng.choice(len(now), MOST_ROWS, replace=False))]
        now = now.loc[:, now.notna().any()]
        left_out |= {c: "no value among the rows drawn" for c in then.columns if c not in now.columns}
        then = then[list(now.columns)]
    folder.mkdir(parents=True, exist_ok=True)
    html, plain = folder / "evidently.html", folder / "evidently.json"
    metrics = _run(unlinked(now.clip(then.min(), then.max(), axis=1), rng), then, title, html)
    plain.write_text(json.dumps({"title": title, "metrics": metrics, "left_out": left_out}, indent=1) + "\n")
    drift = {m["column"]: m["value"] for m in metrics if m["column"]}
    drifted = tuple(c for c, value in drift.items() if value >= THRESHOLD)
    return EvidentlyReport(html, plain, drift, drifted, left_out, len(now))


def unlinked(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Shuffle each column by itself: margins stay, patients and their course cannot be read off the report's plots.

    Reports are kept in plain files and in MLflow, and a plot over few rows shows single values.
    """
    return pd.DataFrame({c: rng.permutation(table[c].to_numpy()) for c in table.columns})


def usable(
    current: pd.DataFrame, reference: pd.DataFrame, columns: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """The columns that both tables have values in, as float64; and why each other one was left out."""
    now: dict[str, pd.Series] = {}
    then: dict[str, pd.Series] = {}
    left_out: dict[str, str] = {}
    for column in columns:
        if column not in current.columns or column not in reference.columns:
            side = "predictions" if column not in current.columns else "reference"
            left_out[column] = f"absent from the {side}"
            continue
        a, b = _numbers(current[column]), _numbers(reference[column])
        if not a.notna().any() or not b.notna().any():
            side = "predictions" if not a.notna().any() else "reference"
            left_out[column] = f"no value in the {side}"
            continue
        now[column], then[column] = a, b
    return pd.DataFrame(now), pd.DataFrame(then), left_out


def _numbers(column: pd.Series) -> pd.Series:
    values = pd.to_numeric(column.astype("object"), errors="coerce").astype("float64")
    return values.where(np.isfinite(values)).reset_index(drop=True)


def _run(now: pd.DataFrame, then: pd.DataFrame, title: str, html: Path) -> list[dict[str, Any]]:
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():  # its dependencies' deprecations are theirs, not a finding of ours
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import DriftedColumnsCount, ValueDrift

        columns = [str(c) for c in now.columns]
        definition = DataDefinition(numerical_columns=columns)
        summary = DriftedColumnsCount(columns=columns, method=METHOD, num_threshold=THRESHOLD)
        each = [ValueDrift(column=c, method=METHOD, threshold=THRESHOLD) for c in columns]
        snapshot = Report([summary, *each], include_tests=True, metadata={"model": title}).run(
            Dataset.from_pandas(now, data_definition=definition),
            Dataset.from_pandas(then, data_definition=definition),
            name=title,
        )
        snapshot.save_html(str(html))
        return [_plain(metric) for metric in snapshot.dict()["metrics"]]


def _plain(metric: Mapping[str, Any]) -> dict[str, Any]:
    """A metric of the snapshot as JSON, with NumPy's numbers made plain."""
    value = metric["value"]
    number = {k: float(v) for k, v in value.items()} if isinstance(value, Mapping) else float(value)
    return {
        "metric": str(metric["metric_name"]).split("(", 1)[0],
        "column": metric["config"].get("column"),
        "value": number,
    }
