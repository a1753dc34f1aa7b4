"""Fixtures of the readers of databases: small invented folders of CSV, and everything that a reader says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from features.events import EVENT_COLUMNS
from features.sources.batch import ReadAccount
from features.sources.registry import reader

Rows = Sequence[Mapping[str, Any]]


@dataclass
class Told:
    """All encounters and events of one reading, plain, with its account and the rows it said it had read."""

    encounters: pd.DataFrame
    events: pd.DataFrame
    account: ReadAccount
    said: int

    def of(self, code: str) -> pd.DataFrame:
        """Events of one code, by time."""
        found = self.events[self.events["code"] == code]
        return found.sort_values(["time", "source_id"]).reset_index(drop=True)

    def concept(self, name: str) -> pd.DataFrame:
        """Events whose concept the reader itself set."""
        return self.events[self.events["concept"] == name].reset_index(drop=True)

    def left(self, table: str) -> dict[str, int]:
        """Rows of a table that made no event, by reason."""
        return {reason: n for (name, reason), n in self.account.left.items() if name == table}

    @cached_property
    def rows_with_events(self) -> dict[str, int]:
        """By table, how many of its rows made an event."""
        rows = self.events["source_id"].str.replace(r"#.*$", "", regex=True).drop_duplicates()
        return rows.str.replace(r":.*$", "", regex=True).value_counts().to_dict()

    def unaccounted(self, table: str) -> int:
        """Rows of a table that neither made an event nor are counted as left; 0 is right."""
        return self.account.rows[table] - self.rows_with_events.get(table, 0) - sum(self.left(table).values())


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """Categoricals as text, so that tables of several batches can be joined."""
    words = [c for c in table.columns if isinstance(table[c].dtype, pd.CategoricalDtype)]
    return table.astype(dict.fromkeys(words, "str"))


@pytest.fixture(scope="session")
def tell_all() -> Callable[..., Told]:
    """Read a folder with the reader of a source, and hold all of it."""

    def tell(source: str, path: Path, **options: Any) -> Told:
        account, said = ReadAccount(), Counter[str]()
        batches = list(reader(source)(path, account, say=lambda n: said.update(rows=n), **options))
        events = [plain(b.events) for b in batches if len(b.events)]
        encounters = [b.encounters for b in batches if len(b.encounters)]
        return Told(
            pd.concat(encounters, ignore_index=True),
            pd.concat(events, ignore_index=True) if events else pd.DataFrame(columns=list(EVENT_COLUMNS)),
            account,
            said["rows"],
        )

    return tell


@pytest.fixture
def database(tmp_path: Path) -> Callable[..., Path]:
    """Write tables, given as rows, as CSV files of a folder; a name such as ``icu/chartevents`` makes a folder."""

    def write(tables: Mapping[str, Rows], folder: str = "database", suffix: str = ".csv") -> Path:
        path = tmp_path / folder
        for name, rows in tables.items():
            file = path / f"{name}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(list(rows)).to_csv(file, index=False)
        return path

    return write
