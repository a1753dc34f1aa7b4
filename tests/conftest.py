"""What every test stands on: nothing leaves the machine, nothing is written outside a temporary folder.

Fixtures here are shared by name; no test module imports another.
"""

from __future__ import annotations

import os
import sys

# Before anything else is imported: a library reads these once, on its own import. cli.py sets the same ones.
for _name, _value in {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "BENTOML_DO_NOT_TRACK": "True",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(_name, _value)

# Settings of whoever runs the tests would change what is tested. Only the data folder is taken from outside.
for _name in [n for n in os.environ if n.startswith("WARDCAST_") and n != "WARDCAST_DATA"]:
    del os.environ[_name]
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
    os.environ.pop(_name, None)
# A build environment may forbid .pyc files; every process a test starts would then compile everything again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import ipaddress
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("dev", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
# The same examples on every run, so that a red build is red for everyone.
settings.register_profile(
    "ci",
    parent=settings.get_profile("dev"),
    max_examples=100,
    derandomize=True,
    database=None,
    print_blob=True,
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def _data_folder() -> Path | None:
    named = os.environ.get("WARDCAST_DATA", "").strip()
    folder = Path(named).expanduser() if named else None
    return folder.resolve() if folder is not None and folder.is_dir() else None


def pytest_report_header() -> str:
    said = "found" if _data_folder() else "absent (set WARDCAST_DATA); tests that need it skip"
    return f"open data: {said}"


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The open data sets that ``WARDCAST_DATA`` names; skips, with the reason, where there are none."""
    if not os.environ.get("WARDCAST_DATA", "").strip():
        pytest.skip("WARDCAST_DATA is not set: this test reads the open data sets")
    folder = _data_folder()
    if folder is None:
        pytest.skip("WARDCAST_DATA names no folder: this test reads the open data sets")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _var_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Whatever a test makes at run time goes to a temporary folder, never to the checkout's ``var/``."""
    folder = tmp_path_factory.mktemp("var")
    os.environ["WARDCAST_VAR"] = str(folder)
    yield folder
    os.environ.pop("WARDCAST_VAR", None)


@pytest.fixture
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``WARDCAST_VAR`` of this test's own, empty."""
    folder = tmp_path / "var"
    folder.mkdir()
    monkeypatch.setenv("WARDCAST_VAR", str(folder))
    return folder


class LeavesTheMachine(AssertionError):
    """A test tried to reach another machine."""


def _is_here(host: object) -> bool:
    """Loopback, unspecified (a bind, or our own side) or a name for them."""
    if host is None or host in ("", "localhost", b"localhost", "testserver"):
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse_elsewhere(real: Callable[..., Any], pick: Callable[..., object]) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        address = pick(*args, **kwargs)
        # AF_UNIX addresses are text; internet ones are (host, port, ...).
        host = address[0] if isinstance(address, tuple) else None
        if not _is_here(host):
            raise LeavesTheMachine(f"A test called {real.__name__} for {host!r}. Only loopback is allowed.")
        return real(*args, **kwargs)

    return guarded


@pytest.fixture(scope="session", autouse=True)
def _nothing_leaves() -> Iterator[None]:
    """Fail whatever connects, sends or looks up a name beyond this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            real = getattr(socket.socket, name)
            patch.setattr(socket.socket, name, _refuse_elsewhere(real, lambda sock, address: address))
        sendto = _refuse_elsewhere(socket.socket.sendto, lambda sock, *arguments: arguments[-1])
        patch.setattr(socket.socket, "sendto", sendto)
        for name in ("getaddrinfo", "gethostbyname", "gethostbyaddr", "create_connection"):
            real = getattr(socket, name)
            patch.setattr(socket, name, _refuse_elsewhere(real, _host_of_lookup))
        yield


def _host_of_lookup(*args: Any, **kwargs: Any) -> object:
    address = args[0] if args else kwargs.get("host", kwargs.get("address"))
    return address if isinstance(address, tuple) else (address,)
