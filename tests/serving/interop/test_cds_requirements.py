"""Each requirement of CDS Hooks 2.0 on a service is decided, and each decision names a test that exists."""

from __future__ import annotations

import ast
import csv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TABLE = ROOT / "serving" / "interop" / "cds_hooks_requirements.csv"
STRICT = ("SHALL", "SHALL NOT", "SHOULD", "SHOULD NOT")


def rows() -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tests() -> set[str]:
    """The names of all tests of the service."""
    return {
        node.name
        for path in (ROOT / "tests" / "serving").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"requirement-{row['id']}")
def test_a_requirement_is_decided_by_a_test_or_for_a_reason(row: dict[str, str], tests: set[str]):
    assert row["decision"] in ("met", "deploy", "not_applicable")
    assert row["test"] in tests
    assert row["decision"] == "met" or row["note"], "what is not met here needs a reason"


def test_no_requirement_is_decided_twice():
    ids = [int(row["id"]) for row in rows()]
    assert ids == sorted(set(ids))


@pytest.mark.data
def test_every_requirement_on_a_service_is_decided(data_dir: Path):
    listed = data_dir / "interop" / "cdshooks-2.0-service-requirements.csv"
    with listed.open(encoding="utf-8", newline="") as file:
        wanted = {row["id"] for row in csv.DictReader(file) if row["conformance"] in STRICT}
    assert wanted == {row["id"] for row in rows()}
