"""The house: its walls, its locks, its front door, and that nothing said inside leaves it."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("features", "models", "training", "serving")
HEAVY = ("mlflow", "shap", "evidently", "bentoml", "matplotlib", "lightgbm", "sklearn", "numba", "pandas")
LOCKS = sorted((ROOT / "requirements").glob("py3.*.lock"))
SCRIPTS = Path(sys.executable).parent


def tracked() -> list[Path]:
    """What git keeps; skips in a copy without git's own data."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: what is committed cannot be told from what is not")
    return [p for name in listed.stdout.decode().split("\0") if name and (p := ROOT / name).is_file()]


def texts(paths: list[Path]) -> list[tuple[Path, str]]:
    return [(p, p.read_text("utf-8")) for p in paths if b"\0" not in p.read_bytes()[:8000]]


# ---- layout and walls ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        *("Makefile", "README.md", "LICENSE", "cli.py", ".ci/run"),
        *(f"features/{name}.py" for name in ("clock", "events", "errors", "clean", "windows", "kernels")),
        *("features/scores.py", "features/featureset.py", "features/census.py", "features/labels"),
        *(f"features/concepts/{name}" for name in ("concepts.csv", "codes", "units.csv")),
        *(f"features/{name}.py" for name in ("archive", "streams", "cohorts", "coverage")),
        *(f"features/sources/{name}.py" for name in ("physionet2019", "visits", "synthetic")),
        *(f"models/{name}.py" for name in ("spec", "bundle", "calibration", "metrics", "decision")),
        *("models/sepsis/spec.toml", "models/admissions/spec.toml"),
        *(f"training/{name}.py" for name in ("sepsis", "admissions", "evaluation", "tracking")),
        *(f"serving/{name}.py" for name in ("settings", "app", "service", "scoring", "explain")),
        *(
            f"serving/{name}"
            for name in ("store", "ingest", "feeds", "security", "reports", "pages", "monitoring")
        ),
    ],
)
def test_everything_is_where_the_design_says(place: str) -> None:
    assert (ROOT / place).exists()


def test_a_package_says_what_it_owns_and_runs_nothing() -> None:
    found = [p for room in ROOMS for p in (ROOT / room).rglob("__init__.py")]
    assert len(found) >= len(ROOMS)
    for path in found:
        body = ast.parse(path.read_text("utf-8")).body
        only_words = (
            len(body) == 1 and isinstance(body[0], ast.Expr) and ast.get_docstring(ast.Module(body, []))
        )
        assert only_words, f"{path.relative_to(ROOT)} must hold a docstring and nothing else"


def test_no_test_folder_is_a_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_walls_stand() -> None:
    done = subprocess.run(
        [SCRIPTS / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_the_command_line_uses_the_doors_and_not_the_windows() -> None:
    tree = ast.walk(ast.parse((ROOT / "cli.py").read_text("utf-8")))
    imported = {
        name.split(".")[0]
        for node in tree
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert imported.isdisjoint({"mlflow", "bentoml", "evidently"})
    assert imported <= {*sys.stdlib_module_names, *ROOMS, "typer", "rich"}


# ---- what is committed -----------------------------------------------------------------------------------------


def test_nothing_committed_names_a_registry_or_a_place_on_somebodys_machine() -> None:
    # Put together from halves, so that this file does not find itself.
    registries = [
        a + b for a, b in (("pypi.", "org"), ("python", "hosted"), ("/sim", "ple/"), ("npm", "js."))
    ]
    machine = re.compile(r"(?<![\w.$}~*])/(?:ho" + r"me|ro" + r"ot|wo" + r"rk|Us" + r"ers)/[\w.]")
    for path, text in texts(tracked()):
        named = [r for r in registries if r in text]
        assert not named, f"{path.relative_to(ROOT)} names a package registry: {named}"
        place = machine.search(text)
        assert place is None, f"{path.relative_to(ROOT)} names a path of one machine: {place}"


def test_no_committed_file_is_large() -> None:
    large = [
        f"{p.relative_to(ROOT)}: {p.stat().st_size:,} bytes"
        for p in tracked()
        if p.stat().st_size > 5_000_000
    ]
    assert large == []


def test_nothing_made_at_run_time_is_committed() -> None:
    kinds = (".pkl", ".pickle", ".joblib", ".db", ".parquet", ".key", ".pem")
    assert [str(p.relative_to(ROOT)) for p in tracked() if p.suffix in kinds] == []


@pytest.mark.parametrize("product", ["sepsis", "sepsis/challenge", "admissions"])
def test_a_released_model_is_small_and_is_text(product: str) -> None:
    files = [p for p in (ROOT / "models" / product / "released").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".md", ".toml", ".txt"}
    assert sum(p.stat().st_size for p in files) <= 5_000_000


def test_a_wheel_holds_everything_that_runs_and_nothing_else(tmp_path: Path) -> None:
    build = [SCRIPTS / "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    kinds = (".py", ".csv", ".toml", ".html", ".css", ".json", ".md", ".txt", ".js")
    ours = {
        str(p.relative_to(ROOT))
        for room in ROOMS
        for p in (ROOT / room).rglob("*")
        if p.suffix in kinds and "__pycache__" not in p.parts
    }
    assert ours | {"cli.py"} <= held
    assert {name.split("/")[0] for name in held} <= {*ROOMS, "cli.py", "wardcast-0.1.0.dist-info"}


# ---- locks -----------------------------------------------------------------------------------------------------


def pins(lock: Path) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of every package in a lock."""
    found: dict[str, tuple[str, int]] = {}
    for block in re.split(r"\n(?=\S)", lock.read_text("utf-8").strip()):
        head = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", block)
        assert head, f"{lock.name}: not a pinned requirement: {block.splitlines()[0]}"
        found[canonicalize_name(head[1])] = (head[2], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block)))
    return found


def wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def test_there_is_a_lock_for_every_python_we_promise() -> None:
    assert [lock.name for lock in LOCKS] == ["py3.11.lock", "py3.12.lock", "py3.13.lock"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_gives_a_hash_for_everything_and_names_no_host(lock: Path) -> None:
    assert [name for name, (_, hashes) in pins(lock).items() if not hashes] == []
    text = lock.read_text("utf-8")
    assert "://" not in text
    assert not re.search(r"^--|\s@\s|^[./]", text, re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_keeps_what_the_project_asks_for(lock: Path) -> None:
    locked = pins(lock)
    for requirement in wanted():
        version, _ = locked.get(canonicalize_name(requirement.name), ("", 0))
        assert version, f"{requirement.name} is not in {lock.name}. Run: make lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} against {version}"


def test_every_dependency_has_a_lower_bound() -> None:
    # Without one a resolver went back to BentoML 0.9 in silence.
    bare = [str(r) for r in wanted() if not any(s.operator in (">=", ">", "==", "~=") for s in r.specifier)]
    assert bare == []


def test_what_is_installed_is_what_is_locked() -> None:
    lock = ROOT / "requirements" / f"py{sys.version_info[0]}.{sys.version_info[1]}.lock"
    installed = {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions()}
    differ = [name for name, (version, _) in pins(lock).items() if installed.get(name) != version]
    assert differ == [], "Run: make setup"


# ---- the front door --------------------------------------------------------------------------------------------


def test_every_make_command_of_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    said = set(re.findall(r"`make ([a-z]+)", readme)) | set(
        re.findall(r"^make ([a-z]+)", readme, re.MULTILINE)
    )
    assert {"demo", "test", "check", "bench"} <= said
    assert said <= targets
    first_screen = "\n".join(readme.splitlines()[:30])
    assert "make demo" in first_screen
    assert "make test" in first_screen


HELP_OF_EVERYTHING = """
import sys
import time
import cli
import typer.main
from typer.testing import CliRunner

def walk(command, path):
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, [*path, name])

paths = list(walk(typer.main.get_command(cli.app), []))
for path in paths:
    done = CliRunner().invoke(cli.app, [*path, "--help"])
    assert done.exit_code == 0, (path, done.output)
    assert "Usage:" in done.output, path
import json
print(json.dumps({"commands": [" ".join(p) for p in paths], "modules": sorted(sys.modules)}))
"""


def test_help_answers_for_every_command_without_loading_anything_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_EVERYTHING], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    promised = {"train", "score", "evaluate", "serve", "explain", "forecast beds", "monitor", "demo"}
    promised |= {"mllp", "ingest report", "features build"}
    promised |= {f"data {name}" for name in ("convert", "check", "label", "schema")}
    assert promised <= set(said["commands"])
    assert set(said["modules"]).isdisjoint(HEAVY)


def test_a_mistake_is_explained_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            SCRIPTS / "wardcast",
            "score",
            "sepsis",
            "--input",
            tmp_path / "absent.parquet",
            "--output",
            tmp_path / "o",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("wardcast: ")


def test_a_benchmark_is_chosen_by_name() -> None:
    run = [sys.executable, ROOT / "tests" / "bench" / "run.py"]
    done = subprocess.run([*run, "nothing-of-that-name"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "house" in done.stderr


# ---- nothing leaves --------------------------------------------------------------------------------------------


def test_a_test_cannot_reach_another_machine() -> None:
    with pytest.raises(AssertionError, match="loopback"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(AssertionError, match="loopback"):
        socket.getaddrinfo("wardcast.example", 443)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(AssertionError, match="loopback"),
    ):
        sock.sendto(b"", ("192.0.2.1", 53))


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    """An environment under which every process writes down, and is refused, each attempt to leave the machine."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux to watch native code")
    folder = tmp_path_factory.mktemp("egress")
    library, log = folder / "egress.so", folder / "attempts.log"
    source = ROOT / "tests" / "golden" / "egress.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    log.touch()
    # Libraries keep quiet where they see a build machine; here they must keep quiet because we told them to, so
    # neither CI nor the switches of conftest.py are handed down.
    ours = (
        "CI",
        "DO_NOT_TRACK",
        "MLFLOW_",
        "BENTOML_",
        "ITERATIVE_",
        "PYTEST_",
        "GITHUB_",
        "WARDCAST_",
        "BUILD_",
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return env | {
        "LD_PRELOAD": str(library),
        "EGRESS_LOG": str(log),
        "WARDCAST_VAR": str(folder / "var"),
    }, log


def test_the_watch_sees_native_code_and_children(
    watched: tuple[dict[str, str], Path], tmp_path: Path
) -> None:
    env, _ = watched
    log = tmp_path / "seen.log"
    attempt = "import socket; socket.socket().connect_ex(('192.0.2.7', 9))"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {attempt!r}], check=True)"
    subprocess.run([sys.executable, "-c", child], env=env | {"EGRESS_LOG": str(log)}, check=True)
    assert log.read_text() == "connect 192.0.2.7\n"


IMPORT_EVERYTHING = """
import importlib, pkgutil, time
import cli  # switches telemetry off, as every entry point does
for name in ("features", "models", "training", "serving"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
import bentoml, evidently, mlflow, shap
mlflow.MlflowClient(tracking_uri="sqlite:///" + __import__("os").environ["WARDCAST_VAR"] + "-probe.db")
time.sleep(1)  # what starts in a thread of its own shows itself
"""


@pytest.mark.slow
def test_importing_everything_reaches_no_other_machine(watched: tuple[dict[str, str], Path]) -> None:
    env, log = watched
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert log.read_text() == ""


@pytest.mark.slow
def test_training_serving_and_monitoring_reach_no_other_machine(
    watched: tuple[dict[str, str], Path], tmp_path: Path
) -> None:
    env, log = watched
    port = free_port()
    env = env | {"WARDCAST_VAR": str(tmp_path / "var"), "WARDCAST_PORT": str(port)}
    wardcast = [sys.executable, str(ROOT / "cli.py")]

    def run(*words: object) -> str:
        done = subprocess.run(
            [*wardcast, *map(str, words)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    small = ROOT / "tests" / "golden" / "small_sepsis.toml"
    run("train", "sepsis", "--source", "synthetic", "--spec", small, "--threads", 1)
    server = subprocess.Popen(
        [*wardcast, "serve", "--model", "models:/sepsis@challenger"],
        cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        client = patient_client(port, server, tmp_path / "var")
        with client:
            assert client.post("/v1/events", json=one_patient()).json()["scored"] == 1
            for page in ("/worklist", "/patient?encounter=E", "/beds", "/monitor", "/model", "/metrics"):
                assert client.get(page).status_code in (200, 503), page
    finally:
        server.terminate()
        server.wait(60)
    run("monitor")
    assert log.read_text() == ""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def patient_client(port: int, server: subprocess.Popen[bytes], var: Path) -> httpx.Client:
    """A client of the service, once it is ready."""
    for _ in range(600):
        assert server.poll() is None, "the service ended before it was ready"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                break
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    headers = {"Authorization": f"Bearer {(var / 'token').read_text().strip()}"}
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60)


def one_patient() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    encounter = {"encounter_id": "E", "encounter_class": "icu", "age_years": 70, "icu_admission_time": now}
    event = {"encounter_id": "E", "concept": "heart_rate", "time": now, "value": 110}
    return {"encounters": [encounter], "events": [event]}
