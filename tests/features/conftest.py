"""Fixtures of the feature tests: a small event table from a story, and the slow oracle."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from features.clock import HOUR_US, UTC_US
from features.events import EVENT_COLUMNS

NINE_AM = pd.Timestamp("2026-05-01T09:00Z")


def at(hours: float) -> pd.Timestamp:
    """An instant some hours after 09:00."""
    return NINE_AM + pd.Timedelta(microseconds=round(hours * HOUR_US))


def story(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Events from rows with ``time`` in hours after 09:00; everything else has a plain default."""
    table = pd.DataFrame(
        [
            {
                "subject_id": f"person of {row.get('encounter_id', 'stay')}",
                "encounter_id": row.get("encounter_id", "stay"),
                "time": at(row["time"]),
                "available_time": at(row.get("available", row["time"])),
                "code": row.get("code", f"WARDCAST//{row.get('concept', 'heart_rate')}"),
                "concept": row.get("concept", "heart_rate"),
                "numeric_value": float(row.get("value", "nan")),
                "text_value": row.get("text"),
                "unit": row.get("unit"),
                "status": row.get("status", "final"),
                "source_id": row.get("source_id"),
            }
            for row in rows
        ],
        columns=list(EVENT_COLUMNS),
    )
    return table.astype({"time": UTC_US, "available_time": UTC_US, "numeric_value": "float64"})


def rows_at(*hours: float, encounter: str = "stay") -> pd.DataFrame:
    """Prediction times of one encounter, in hours after 09:00."""
    table = pd.DataFrame(
        {"encounter_id": [encounter] * len(hours), "prediction_time": [at(h) for h in hours]}
    )
    return table.astype({"prediction_time": UTC_US})


@pytest.fixture(scope="session")
def tell() -> Callable[[Sequence[dict[str, Any]]], pd.DataFrame]:
    return story


@pytest.fixture(scope="session")
def when() -> Callable[..., pd.DataFrame]:
    return rows_at


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """``oracle.py`` of this folder."""
    path = Path(__file__).with_name("oracle.py")
    spec = importlib.util.spec_from_file_location("wardcast_window_oracle", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
