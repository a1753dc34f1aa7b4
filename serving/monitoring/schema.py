"""Is the table of features what the model expects? Columns, types and emptiness, before anything is compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from serving.monitoring.findings import ALARM, NOTE, Finding

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Conformed:
    """The batch as numbers in the reference's order, and what had to be mended or was missing.

    Attributes
    ----------
    matrix : float32, shape (n, n_features); NaN = missing, absent or not a number
    absent : tuple of str
        Expected columns that are not there at all.
    findings : list of Finding
    """

    matrix: Matrix
    absent: tuple[str, ...]
    findings: list[Finding]


def conform(frame: pd.DataFrame, expected: tuple[str, ...]) -> Conformed:
    """Bring any table into the expected columns as float32, and report each departure; never raises on bad data."""
    columns = [str(c) for c in frame.columns]
    first = {c: i for i, c in reversed(list(enumerate(columns)))}
    absent = tuple(c for c in expected if c not in first)
    extra = sorted(set(columns) - set(expected))
    twice = sorted({c for c in columns if columns.count(c) > 1})
    matrix = np.full((len(frame), len(expected)), np.nan, np.float32)
    text: dict[str, int] = {}
    infinite: dict[str, int] = {}
    for j, name in enumerate(expected):
        if name in first:
            matrix[:, j] = _numbers(frame.iloc[:, first[name]], name, text, infinite)
    findings = [
        *_absent(absent, len(expected)),
        *_as_text(text, len(frame)),
        *_infinite(infinite, len(frame)),
        *_columns("columns_unknown", "not a feature of this model and was ignored", extra),
        *_columns("columns_twice", "there more than once; the first was used", twice),
    ]
    return Conformed(matrix, absent, findings)


def _numbers(column: pd.Series, name: str, text: dict[str, int], infinite: dict[str, int]) -> Matrix:
    if not pd.api.types.is_numeric_dtype(column.dtype):
        read = pd.to_numeric(column.astype("object"), errors="coerce")
        if column.notna().any():
            text[name] = int((column.notna() & read.isna()).sum())
        column = read
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    bad = np.isinf(narrow)
    if bad.any():
        infinite[name] = int(bad.sum())
        narrow[bad] = np.nan
    return narrow


def _some(names: tuple[str, ...] | list[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _absent(absent: tuple[str, ...], n_expected: int) -> list[Finding]:
    if not absent:
        return []
    return [
        Finding(
            kind="column_absent",
            severity=ALARM,
            what=f"{len(absent)} of {n_expected} features are not in the data: {_some(absent)}.",
            where="feature table",
            certainty="certain",
            action="Scores were made without them. Compare the service's bundle with the feature code that filled "
            "this table; both must come from one release.",
            features=absent,
        )
    ]


def _as_text(text: dict[str, int], n_rows: int) -> list[Finding]:
    if not text:
        return []
    lost = sum(text.values())
    return [
        Finding(
            kind="column_text",
            severity=ALARM,
            what=f"Numbers arrive as text in {_some(list(text))}; {lost:,} of {n_rows * len(text):,} values could not "
            "be read as a number and count as missing.",
            where="feature table",
            certainty="certain",
            action="Ask the interface team what changed: decimal comma, '<' or a unit inside the value are usual.",
            features=tuple(text),
        )
    ]


def _infinite(infinite: dict[str, int], n_rows: int) -> list[Finding]:
    if not infinite:
        return []
    return [
        Finding(
            kind="value_infinite",
            severity=ALARM,
            what=f"{sum(infinite.values()):,} infinite values in {_some(list(infinite))}; counted as missing.",
            where="feature table",
            certainty=f"certain, {n_rows:,} rows read",
            action="Find the division by zero upstream; ingest refuses infinities, so these were computed.",
            features=tuple(infinite),
        )
    ]


def _columns(kind: str, what: str, names: list[str]) -> list[Finding]:
    if not names:
        return []
    return [
        Finding(
            kind=kind,
            severity=NOTE,
            what=f"{_some(names)}: {what}.",
            where="feature table",
            certainty="certain",
            action="None needed if this was intended.",
            features=tuple(names),
        )
    ]
