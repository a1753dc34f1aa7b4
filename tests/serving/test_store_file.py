"""What is the SQLite file's alone: its encryption and its key."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from features.errors import ConfigError
from serving.store.store import Store

KEY = "0f" * 32


def opened(path: Path, key: str = KEY) -> Store:
    return Store.open(f"sqlite:///{path}", key)


def test_nothing_of_a_patient_lies_open_on_disk(service: Any, patient: Any):
    who = patient("Marple-4711").rounds(range(6), lactate=3.0)
    service.send(who.news(5))
    database = Path(service.settings.store_url.removeprefix("sqlite:///"))
    files = [database, *database.parent.glob("wardcast.db-*")]
    content = b"".join(f.read_bytes() for f in files)
    assert len(content) > 50_000
    for secret in (b"Marple", b"heart_rate", b"encounter_id", b"SQLite format"):
        assert secret not in content
    with sqlite3.connect(database) as plain, pytest.raises(sqlite3.DatabaseError):
        plain.execute("select count(*) from events")
    plain.close()


def test_another_key_does_not_open_the_store(tmp_path: Path):
    opened(tmp_path / "w.db").close()
    with pytest.raises(ConfigError, match="Restore the key"):
        opened(tmp_path / "w.db", "1e" * 32)
    with pytest.raises(ConfigError, match="64 hex digits"):
        opened(tmp_path / "w.db", "short")
