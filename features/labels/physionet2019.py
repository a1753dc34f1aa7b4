"""The outcome of PhysioNet 2019: ``SepsisLabel``, unmasked.

It is 1 from six hours before Sepsis-3 onset to the end of the record, so rows after onset stay positive
and nothing is masked. Only training and evaluation read it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from features.errors import DataError
from features.sources.physionet2019 import files, reading

COLUMN = "SepsisLabel"


def read_labels(path: Path) -> npt.NDArray[np.int64]:
    """Labels of all rows, in the order of the input: what ``sources.physionet2019.Chunk.rows`` indexes.

    Raises
    ------
    DataError
        A file is no Parquet, the column is absent, or holds anything but 0 and 1.
    """
    return np.concatenate([_labels(file) for file in files(path)])


def _labels(file: Path) -> npt.NDArray[np.int64]:
    with reading(file):
        names = pq.read_schema(file).names
    if COLUMN not in names:
        raise DataError(
            f"{file.name} has no {COLUMN}. Training and evaluation need outcomes; `wardcast score` does not."
        )
    with reading(file):
        values = pq.read_table(file, columns=[COLUMN])[COLUMN].to_pandas()
    strange = int((~values.isin([0, 1])).sum())
    if strange:
        raise DataError(f"{COLUMN} of {file.name} is neither 0 nor 1 in {strange:,} of {len(values):,} rows.")
    return np.asarray(values, dtype=np.int64)
