"""Which formats can be read, and by which module. Modules are imported when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Final, cast

from features.errors import DataError
from features.sources.batch import Batch

READERS: Final[dict[str, str]] = {
    "physionet2019": "PhysioNet/CinC Challenge 2019, Parquet",
    "physionet2012": "PhysioNet/CinC Challenge 2012, event tables as Parquet, or the challenge's text files",
    "mimic3": "MIMIC-III tables, Parquet or CSV",
    "mimic4": "MIMIC-IV tables (hosp/ and icu/), Parquet or CSV",
    "eicu": "eICU-CRD tables, Parquet or CSV",
    "omop": "OMOP CDM 5.4 tables, Parquet or CSV",
    "meds": "MEDS 0.4 data set",
    "clif": "CLIF 2.1 or 3.0 tables, Parquet or CSV",
    "fhir": "FHIR R4 bundles as JSON, or bulk export as NDJSON",
    "hl7v2": "HL7 v2 messages",
    "observations": "observations of a site's own, CSV or Parquet, with a mapping file",
}
"""Formats by name, in words."""


def reader(source: str) -> Callable[..., Iterator[Batch]]:
    """The reader of a format.

    Raises
    ------
    DataError
        There is no such format.
    """
    if source not in READERS:
        raise DataError(f"There is no source {source!r}. Choose one of {', '.join(READERS)}.")
    module = import_module(f"features.sources.{source}")
    return cast(Callable[..., Iterator[Batch]], module.batches)
