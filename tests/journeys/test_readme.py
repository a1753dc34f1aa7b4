"""What the README says is done here, word for word, against a service of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for block in BLOCKS
    for line in block.splitlines()
    if line.removeprefix("WARDCAST_ADMISSIONS_MODEL=var/beds ").startswith(".venv/bin/wardcast")
]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """``wardcast serve`` in a folder of its own, as a newcomer would start it; the folder and the address."""
    folder, port = tmp_path_factory.mktemp("newcomer"), free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith("WARDCAST_")} | {
        "WARDCAST_PORT": str(port)
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, ROOT / "cli.py", "serve"], cwd=folder, env=env, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(server, address, folder / "log")
        yield folder, address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def wait_until_ready(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    pytest.fail("the service was not ready within a minute:\n" + log.read_text()[-3000:])


@pytest.mark.slow
def test_the_curl_examples_do_what_they_say(service: tuple[Path, str]) -> None:
    if not (shutil.which("curl") and shutil.which("bash")):
        pytest.skip("needs curl and bash")
    folder, address = service
    answers, token = [], ""
    for block in (b for b in BLOCKS if "curl" in b):
        # The first block sets what the others use, as in a terminal that stays open.
        token = token or next(line for line in block.splitlines() if line.startswith("TOKEN="))
        script = f"set -euo pipefail\n{token}\n{block}".replace("http://127.0.0.1:3000", address)
        done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    told, risk, score, *others = answers
    assert [a["entry"][0]["resource"]["resourceType"] for a in others if a.get("entry")][:1] == [
        "RiskAssessment"
    ]
    assert {v["verdict"] for v in [*told["encounters"], *told["events"]]} == {"accepted"}, told
    assert told["counts"]["set_aside"] == 0, told
    assert told["scored"] == 1, told
    assert risk["status"] == score["status"] == "scored"
    for answer in (risk, score):
        assert 0 < answer["probability"] < 1
        reasons = answer["explanation"]
        told_sum = sum(r["contribution"] for r in reasons["reasons"]) + reasons["others"]["contribution"]
        assert reasons["base"] + told_sum == pytest.approx(answer["raw"], abs=1e-9)
    env = os.environ | {"WARDCAST_VAR": str(folder / "var")}
    again = subprocess.run(
        [sys.executable, ROOT / "cli.py", "explain", risk["prediction_id"]],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["probability"] == risk["probability"]


@pytest.mark.slow
def test_every_route_of_the_readme_is_there(service: tuple[Path, str]) -> None:
    folder, address = service
    token = (folder / "var" / "token").read_text().strip()
    table = README.split("| Route | What |")[1].split("\n\n")[0]
    routes = re.findall(r"`(?:(GET|POST) )?(/[\w/.-]+)", table)
    assert len(routes) > 12
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
        for method, path in routes:
            # 415 and 422 are answers of the route too: what it needs was not sent.
            status = client.request(method or "GET", path).status_code
            assert status in (200, 303, 415, 422), (method, path, status)


def test_every_command_of_the_readme_is_understood() -> None:
    import typer.main

    import cli

    assert len(COMMANDS) >= 8
    for line in COMMANDS:
        command, words = typer.main.get_command(cli.app), shlex.split(line[line.index(".venv") :])[1:]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        # Parsing alone: options unknown or missing raise here.
        command.make_context("wardcast", words)


def test_the_readme_forecasts_with_the_model_it_trains() -> None:
    named = [
        re.search(pattern, line)[1]  # type: ignore[index]
        for line, pattern in zip(
            [line for line in COMMANDS if "var/beds" in line],
            (
                r"train admissions .*--output (\S+)",
                r"forecast beds .*--model (\S+)",
                r"ADMISSIONS_MODEL=(\S+) .*serve",
            ),
            strict=True,
        )
    ]
    assert named == ["var/beds"] * 3


def test_the_settings_of_the_readme_are_the_settings() -> None:
    from serving.settings import Settings

    named = set(re.findall(r"`WARDCAST_([A-Z_]+)`", README.split("## Settings")[1].split("## ")[0]))
    secret = {"TOKEN", "STORE_KEY"}  # made by the service, never set
    assert named == {f.name.upper() for f in fields(Settings)} - secret


def test_the_links_of_the_readme_lead_somewhere() -> None:
    inside = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert inside
    assert [link for link in inside if not (ROOT / link).exists()] == []


def test_the_figures_of_the_readme_are_those_of_the_released_model() -> None:
    table = json.loads((ROOT / "models" / "sepsis" / "released" / "evaluation.json").read_text("utf-8"))[
        "table"
    ]
    strata = {s["hours"]: s["measures"] for s in table if s["hospital"] == "all"}

    def figure(hours: str, name: str) -> str:
        return "{:.3f} ({:.3f}–{:.3f})".format(*strata[hours][name])

    words = " ".join(README.split())
    assert f"AUROC {figure('all', 'auroc')} and a normalised utility of {figure('all', 'utility')}" in words
    early = "within the first 48 hours, where the length of a stay gives nothing away, "
    assert f"{early}AUROC {figure('<= 48', 'auroc')} and {figure('<= 48', 'utility')}" in words
