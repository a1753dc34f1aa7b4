"""An environment for each group of peers whose pins agree, made when absent, under ``WARDCAST_VAR`` (or ``var/``).

Peers are called, never copied or shipped: they are no dependency of the project.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = {
    "engines": ("polars==2.1.0", "duckdb==2.0.0", "pandas==3.1.1", "pyarrow==26.0.1"),
    "meds_tab": ("meds-tab==0.2.0", "MEDS-transforms==0.7.0"),
    "timeseriesflattener": ("timeseriesflattener==2.5.2", "attrs"),
    "tsfresh": ("tsfresh==0.21.2", "pyarrow==26.0.1"),
    "clifpy": ("clifpy==2.1.0",),
    "beds": ("statsforecast==2.1.1", "patientflow==1.8.7", "pyarrow"),
}


class NoPeer(Exception):
    """A peer cannot be had here, and why."""


def home() -> Path:
    """Where the environments lie."""
    return Path(os.environ.get("WARDCAST_VAR") or ROOT / "var").absolute() / "bench" / "peers"


def python(name: str) -> Path:
    """The Python of an environment that is there already.

    Raises
    ------
    NoPeer
        It is not there, or was made from other versions.
    """
    folder = home() / name
    found = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp = folder / "made-from"
    if not found.exists() or not stamp.exists() or stamp.read_text() != _stamp(name):
        raise NoPeer(f"{', '.join(PACKAGES[name])} not installed in {folder}")
    return found


def ensure(name: str) -> Path:
    """The same, made first when it is not there.

    Raises
    ------
    NoPeer
        No registry answers, or nothing there suits this Python; says the last words of the installer.
    """
    try:
        return python(name)
    except NoPeer:
        folder = home() / name
    print(f"bench: installing {', '.join(PACKAGES[name])} into {folder}", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)], name)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *PACKAGES[name]], name)
    (folder / "made-from").write_text(_stamp(name))
    return python(name)


def _stamp(name: str) -> str:
    return f"{sys.version}\n" + "\n".join(PACKAGES[name])


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise NoPeer(
            f"{', '.join(PACKAGES[name])} could not be installed with Python {sys.version.split()[0]}: "
            f"{words[0].strip()[:200]}. Is a package registry in reach?"
        )
