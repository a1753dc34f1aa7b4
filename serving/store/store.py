"""The store as other rooms see it: tables of what was known, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from sqlalchemy import Connection

from features.errors import DataError
from serving.clock import to_us
from serving.store import audit, facts, log
from serving.store.engine import CACHE_KIB, Database, open_database

VISIT_COLUMNS = (
    "encounter_id", "subject_id", "arrival_time", "decision_time", "admission_time", "discharge_time", "specialty",
    "unit", "age_years", "sex", "arrival_mode",
)  # fmt: skip
T = TypeVar("T")
Moment = datetime | pd.Timestamp


def micros_of(moment: Moment) -> int:
    """Microseconds since the epoch of an aware instant."""
    if moment.tzinfo is None:
        raise DataError("An instant without a time zone was given to the store. Give it in UTC.")
    return to_us(moment.to_pydatetime(warn=False) if isinstance(moment, pd.Timestamp) else moment)


class Store:
    """Durable state of the service.

    What was acknowledged survives; what was corrected can still be read as it was known before.
    """

    def __init__(self, database: Database, site: str = "site") -> None:
        self._database = database
        self._site = site

    @classmethod
    def open(cls, url: str, key: str | None, site: str = "site", cache_kib: int = CACHE_KIB) -> Store:
        """Open a store, making it where there is none; ``cache_kib`` as :func:`open_database` has it.

        Raises
        ------
        ConfigError
            The URL is of another kind, or the key does not open the file.
        DataError
            The store was written by another version.
        """
        return cls(open_database(url, key, cache_kib=cache_kib), site)

    def close(self) -> None:
        """Give the connections back."""
        self._database.close()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view."""
        with self._database.read() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """All or nothing; durable once the block has ended."""
        with self._database.write() as connection:
            yield connection

    def together(self, deed: Callable[[Connection], T]) -> T:
        """As :meth:`write`, for small deeds in numbers: several share one transaction, none the others' fate."""
        return self._database.together(deed)

    def events(self, encounter_ids: Sequence[str], as_of: Moment) -> pd.DataFrame:
        """Usable canonical events of some encounters, as known at a moment."""
        with self.read() as connection:
            return facts.read_events(connection, encounter_ids, micros_of(as_of))

    def encounters(self, as_of: Moment) -> pd.DataFrame:
        """Every encounter as known at a moment; a time that lay ahead then is empty."""
        with self.read() as connection:
            return facts.read_encounters(connection, micros_of(as_of))

    def visits(self, as_of: Moment) -> pd.DataFrame:
        """Attendances that had arrived by a moment, one row each, with what was known of them then."""
        table = self.encounters(as_of)
        return table.loc[table["arrival_time"].notna(), list(VISIT_COLUMNS)].reset_index(drop=True)

    def predictions(
        self, since: Moment | None = None, until: Moment | None = None, model_id: str | None = None
    ) -> pd.DataFrame:
        """Logged predictions with ``since <= prediction_time < until``, in the order they were made."""
        with self.read() as connection:
            rows = log.read_predictions(connection, _or_none(since), _or_none(until), model_id)
        return _table(
            rows, log.PREDICTION_COLUMNS, ("prediction_time", "created_time"), ("probability", "raw")
        )

    def prediction_features(
        self, since: Moment | None = None, until: Moment | None = None, model_id: str | None = None
    ) -> tuple[pd.DataFrame, npt.NDArray[np.float32]]:
        """What the scored predictions of one model read: who and where, and the float32 matrix of features.

        Raises
        ------
        DataError
            The predictions come from models with different features; name one.
        """
        with self.read() as connection:
            rows = log.read_features(connection, _or_none(since), _or_none(until), model_id)
        if len({len(row[3]) for row in rows}) > 1:
            raise DataError("Logged predictions come from models with different features. Name one model_id.")
        width = len(rows[0][3]) // 4 if rows else 0
        matrix = np.frombuffer(b"".join(row[3] for row in rows), dtype="<f4").reshape(len(rows), width)
        columns = ("prediction_id", "prediction_time", "unit")
        table = _table([row[:3] for row in rows], columns, ("prediction_time",), ())
        return table.assign(site=self._site), matrix.astype(np.float32)

    def alerts(self, since: Moment | None = None, until: Moment | None = None) -> pd.DataFrame:
        """Alerts with ``since <= raised_time < until``."""
        with self.read() as connection:
            rows = log.read_alerts(connection, _or_none(since), _or_none(until))
        times = ("raised_time", "ended_time", "acknowledged_time")
        return _table(rows, log.ALERT_COLUMNS, times, ("probability",))

    def verify_audit(self) -> int | None:
        """The first row at which the audit chain is broken; None where it is whole."""
        with self.read() as connection:
            return audit.verify(connection)


def _or_none(moment: Moment | None) -> int | None:
    return None if moment is None else micros_of(moment)


def _table(
    rows: Sequence[tuple[Any, ...]], columns: Sequence[str], times: Sequence[str], numbers: Sequence[str]
) -> pd.DataFrame:
    by_column = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    table: dict[str, Any] = {}
    for name, values in zip(columns, by_column, strict=True):
        if name in times:
            table[name] = facts.instants(list(values))
        elif name in numbers:
            table[name] = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
        elif name in ("alert", "page"):
            table[name] = np.array(values, dtype=bool)
        else:
            table[name] = pd.Series(values, dtype=object)
    return pd.DataFrame(table)
