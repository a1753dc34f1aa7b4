"""Windows give the cells that polars, DuckDB, pandas and a loop by hand give, on everything windows get wrong.

Each engine runs in a process of its own, as in the benchmark: with this Python if it has the library, else with the
environment that ``make bench NAME=features`` made. Without either the test skips.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PEERS = Path(__file__).resolve().parents[1] / "bench" / "peers"
NEEDS = {"polars": "polars", "polars_line": "polars", "duckdb": "duckdb", "pandas": "pandas"}


def module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_peers{name}", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


agreement = module("_agreement", PEERS / "_agreement.py")
environments = module("_environments", PEERS / "_environments.py")
workload = module("_workload", PEERS / "_workload.py")


def python_with(library: str) -> Path:
    """A Python that can import a library; skips when there is none."""
    if importlib.util.find_spec(library):
        return Path(sys.executable)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WARDCAST_VAR", raising=False)
        try:
            return environments.python("engines")
        except environments.NoPeer as why:
            pytest.skip(f"{library} is not importable: {why}; make bench NAME=features installs it")


def matrix(engine: str, python: Path, folder: Path) -> np.ndarray:
    saved = folder / f"{engine}.npy"
    command = [python, PEERS / f"by_{engine}.py", folder, "--save", saved]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(saved)


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ties, events on every edge, empty windows, single events, zeros, negatives, NaN, before and after the stay."""
    folder: Path = workload.write(tmp_path_factory.mktemp("edges"), *workload.adversarial())
    matrix("wardcast", Path(sys.executable), folder)
    return folder


@pytest.fixture
def unlike(edges: Path) -> Callable[[np.ndarray], dict[str, int]]:
    """How many cells of ours another matrix has otherwise, by statistic."""
    kinds = agreement.statistics(json.loads((edges / "workload.json").read_text()))
    ours = np.load(edges / "wardcast.npy")
    return lambda theirs: agreement.differing(ours, theirs, kinds)


@pytest.mark.parametrize("engine", NEEDS)
def test_every_cell_is_that_of_another_engine(
    engine: str, edges: Path, unlike: Callable[[np.ndarray], dict[str, int]]
) -> None:
    assert unlike(matrix(engine, python_with(NEEDS[engine]), edges)) == {}


def test_every_cell_is_that_of_a_loop_by_hand(
    edges: Path, unlike: Callable[[np.ndarray], dict[str, int]]
) -> None:
    assert unlike(matrix("brute_force", Path(sys.executable), edges)) == {}


def test_one_wrong_cell_is_noticed(edges: Path, unlike: Callable[[np.ndarray], dict[str, int]]) -> None:
    theirs = np.load(edges / "wardcast.npy")
    theirs[3, 0] = np.nan if not np.isnan(theirs[3, 0]) else 1.0
    theirs[5, 2] += 1
    assert unlike(theirs) == {"last": 1, "count": 1}


def test_every_kind_of_trouble_is_in_the_set() -> None:
    events, rows = workload.adversarial()
    value, time = events["numeric_value"], events["time"]
    seen = events.groupby(["encounter_id", "concept"], observed=True).size()
    assert value.isna().any()
    assert (value == 0).any()
    assert (value < 0).any()
    assert events.duplicated(["encounter_id", "concept", "time"]).any()
    assert time.isin(rows["prediction_time"]).any()
    assert (seen == 1).any()
    assert len(seen) < rows["encounter_id"].nunique() * events["concept"].nunique()
    assert time.min() < rows["prediction_time"].min()
    assert time.max() > rows["prediction_time"].max()


def test_a_figure_says_its_ratio_or_why_it_is_not_there() -> None:
    run = module("run", PEERS.parent / "run.py")
    twelve = {"name": "a", "unit": "s", "reference": 24.0, "goal": "ratio >= 12"}
    assert run.complete({**twelve, "value": 2.0})["met"] is True
    assert run.complete({**twelve, "value": 3.0})["met"] is False
    gone = run.complete({"name": "a", "value": None, "unit": "s", "goal": "<= 1", "reason": "no registry"})
    assert (gone["value"], gone["met"], gone["reason"]) == (None, None, "no registry")
