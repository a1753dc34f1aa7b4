"""Run one benchmark of this folder and print one JSON line a figure: ``python tests/bench/run.py NAME [--all]``.

A benchmark is a module here with ``bench()``, which yields mappings with ``name``, ``value`` and ``unit``,
and, where it can, ``reference`` (the same work done the plain way, same unit) and ``goal`` (``"<= 600"``, or
``"ratio >= 12"``). Every line has the keys ``name, value, unit, reference, ratio, goal, met``; ``ratio`` is
reference over value, so above one means faster, or smaller, than the plain way. A missed goal is a figure, not a
failure. What could not be measured has the value null and a ``reason``. ``--all`` (or ``WARDCAST_BENCH=all``) adds
what takes many minutes.
"""

from __future__ import annotations

import importlib.util
import json
import operator
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


def names() -> list[str]:
    """The benchmarks there are."""
    return sorted(p.stem for p in HERE.glob("*.py") if p.stem != "run" and not p.stem.startswith("_"))


def meets(value: float, goal: str) -> bool:
    """Whether a figure keeps its goal, such as ``"<= 600"``.

    Raises
    ------
    ValueError
        The goal is not a sign and a number.
    """
    sign, _, bound = goal.strip().partition(" ")
    if sign not in SIGNS or not bound:
        raise ValueError(f"goal {goal!r} is not a sign and a number. Write for example '<= 600'.")
    return bool(SIGNS[sign](value, float(bound)))


def complete(figure: Mapping[str, Any]) -> dict[str, Any]:
    """A figure with all seven keys; what is not known is null."""
    value, reference, goal = figure["value"], figure.get("reference"), figure.get("goal")
    ratio = None if reference is None or not value else round(float(reference) / float(value), 4)
    judged, bound = (ratio, goal[6:]) if goal and goal.startswith("ratio ") else (value, goal)
    line = {
        "name": figure["name"],
        "value": None if value is None else float(value),
        "unit": figure["unit"],
        "reference": None if reference is None else float(reference),
        "ratio": ratio,
        "goal": goal,
        "met": None if bound is None or judged is None else meets(float(judged), bound),
    }
    return line | ({"reason": figure["reason"]} if "reason" in figure else {})


def load(name: str) -> Iterable[Mapping[str, Any]]:
    """The figures of the benchmark of that name, made as they are asked for."""
    found = importlib.util.spec_from_file_location(f"bench_{name}", HERE / f"{name}.py")
    if found is None or found.loader is None:
        raise ImportError(f"tests/bench/{name}.py is not a module.")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    figures: Iterable[Mapping[str, Any]] = module.bench()
    return figures


def main(argv: list[str]) -> int:
    if argv[1:] == ["--all"]:
        os.environ["WARDCAST_BENCH"] = "all"
    if argv[1:] not in ([], ["--all"]) or argv[:1] == [] or argv[0] not in names():
        print(
            f"Say which benchmark, make bench NAME=…: {', '.join(names()) or 'there is none yet'}.",
            file=sys.stderr,
        )
        return 2
    for figure in load(argv[0]):
        print(json.dumps(complete(figure)), flush=True)
    return 0


if __name__ == "__main__":
    # As a script this folder leads sys.path, and a benchmark may be called what a room is called.
    sys.path[0] = str(HERE.parents[1])
    for switch in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "BENTOML_DO_NOT_TRACK"):
        os.environ.setdefault(switch, "true")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is told to stop takes its folders with it
    sys.exit(main(sys.argv[1:]))
