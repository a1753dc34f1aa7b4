"""A hospital's HL7 v2 goes in over MLLP, by the command as it is run, and comes out in the EHR and on the worklist.

Two streams: a small one of invented people that always runs (``tests/golden/hospital_stream.hl7``), and the public one
of a simulated hospital, which has no intensive care: the site's map declares one of its wards to be that.
"""

from __future__ import annotations

import html
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from features.sources import hl7v2_grammar as grammar

pytestmark = pytest.mark.slow

END = b"\x1c\r"
SITE = """
[codes]
"WinPath//tt-0003-01" = "creatinine"
"WinPath//tt-0002-07" = "wbc"
[units]
UMOLL = "umol/L"
"x10*9/L" = "10*3/uL"
[places]
OtherWard = "icu"
RenalWard = "ward"
"""


@pytest.fixture
def hospital(make_ehr: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """An EHR, the service it asks and, in a process of its own, the listener of the same store."""
    made: list[Any] = []

    @contextmanager
    def running(**env: str) -> Iterator[Any]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        more = 'patient_authority = "NORTH"\nencounter_authority = "NORTH"\n'
        cards = 'below_threshold = "info"'
        ehr = make_ehr(more, cards, MLLP_PORT=str(port), **env)
        made.append(ehr)
        command = [sys.executable, "-m", "cli", "mllp"]
        root = Path(grammar.__file__).parents[2]
        given = os.environ | ehr.service.settings.environment()
        process = subprocess.Popen(command, cwd=root, env=given, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert b"MLLP" in process.stdout.readline()
            yield ehr
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert process.stdout is not None
            process.stdout.close()

    yield running
    for ehr in made:
        ehr.service.state.messages.close()


def send(ehr: Any, stream: list[bytes]) -> list[str]:
    """Send messages over one connection, and wait until they have been read; the answer to each."""
    with socket.create_connection(("127.0.0.1", ehr.service.settings.mllp_port), timeout=60) as sock:
        held = b""
        for k in range(0, len(stream), 50):
            some = stream[k : k + 50]
            sock.sendall(b"".join(b"\x0b" + body + END for body in some))
            while held.count(END) < k + len(some):
                held += sock.recv(1 << 16)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        said = ehr.service.client.get("/readyz").json()
        if said["mllp"]["waiting"] == 0:
            break
        time.sleep(0.2)
    assert said["mllp"]["listening"]
    assert said["mllp"]["waiting"] == 0
    return re.findall(r"\rMSA\|(\w\w)\|", held.decode())


def knows(ehr: Any, patient: str, visit: str | None = None) -> None:
    """Put a patient on the EHR's FHIR server under the bare numbers that stand in PID-3.1 and PV1-19.1."""
    for kind, number in (("Patient", patient), ("Encounter", visit)):
        if number:
            ehr.fhir.resources[f"{kind}/fhir-{number}"] = {
                "resourceType": kind,
                "id": f"fhir-{number}",
                "identifier": [{"system": "urn:hospital", "value": number}],
            }


def card_of(ehr: Any, patient: str, visit: str | None = None) -> dict[str, Any]:
    """The card when the chart is opened."""
    knows(ehr, patient, visit)
    answer = ehr.open_chart(f"fhir-{visit}" if visit else None, f"fhir-{patient}")
    (card,) = answer.json()["cards"]
    return dict(card)


def assessments(ehr: Any, encounter: str) -> list[float]:
    """The probabilities of an encounter, the current one first."""
    found = ehr.service.get("/fhir/RiskAssessment", encounter=encounter).json()
    resources = [entry["resource"] for entry in found.get("entry", [])]
    return [
        r["prediction"][0]["probabilityDecimal"] for r in resources if r["resourceType"] == "RiskAssessment"
    ]


def worklist(ehr: Any) -> str:
    page = ehr.service.client.get("/worklist", headers=ehr.service.headers)
    assert page.status_code == 200
    return html.unescape(page.text)


def test_the_small_stream(hospital: Callable[..., Any], repo: Path):
    stream = list(grammar.pieces(repo / "tests" / "golden" / "hospital_stream.hl7"))
    with hospital() as ehr:
        assert send(ehr, stream) == ["CA"] * 17
        # Una came nameless and was merged; her lactate and her heart rate rise.
        card = card_of(ehr, "P1", "V1")
        assert card["indicator"] in ("warning", "critical")
        assert "Lactate 5.7 mmol/L" in card["detail"]
        # Bo's first result came before his admission, and his chart is opened without an encounter.
        assert "below the threshold" in card_of(ehr, "P2")["summary"]
        # Çelia is on a ward, for which the model was not made.
        assert card_of(ehr, "P3", "V3")["summary"] == (
            "Sepsis risk not scored: outside what the model was made for"
        )
        high, low, none = (assessments(ehr, f"{visit}@NORTH") for visit in ("V1", "V2", "V3"))
        assert 1 >= high[0] > 0.25 > low[0] > 0
        assert none == []
        page = worklist(ehr)
        assert [visit in page for visit in ("V1@NORTH", "V2@NORTH")] == [True, True]
        before = high[0]
        # All of it again is acknowledged, and changes nothing.
        assert send(ehr, stream) == ["CA"] * 17
        assert assessments(ehr, "V1@NORTH")[0] == before
        told = ehr.service.state.store.events(["V2@NORTH"], ehr.service.state.now())
        assert sorted(told.loc[told["concept"] == "heart_rate", "numeric_value"]) == [77, 78, 79, 80, 82]


def measured(stream: list[bytes]) -> dict[str, tuple[str, int]]:
    """Patients with vital signs as the text of the messages has them: number, ward and year of birth."""
    found = {}
    for body in stream:
        fields = {line[:3]: line.split("|") for line in body.decode().replace("\n", "\r").split("\r")}
        if b"MDC_PULS_RATE_NON_INV" in body:
            pid, pv1 = fields["PID"], fields["PV1"]
            found[pid[3].split("^")[0]] = (pv1[3].split("^")[0], int(pid[7][:4]))
    return found


@pytest.mark.data
def test_the_stream_of_a_simulated_hospital(hospital: Callable[..., Any], data_dir: Path, tmp_path: Path):
    (tmp_path / "site.toml").write_text(SITE, "utf-8")
    stream = list(grammar.pieces(data_dir / "interop" / "hl7v2" / "simhospital" / "messages.out"))
    asked = measured(stream)
    assert len(asked) == 61
    with hospital(SITE_MAP=str(tmp_path / "site.toml")) as ehr:
        assert send(ehr, stream) == ["CA"] * 1013
        now = ehr.service.state.now()
        known = ehr.service.state.store.encounters(now)
        assert len(known) > 200
        page, scored = worklist(ehr), 0
        for number, (ward, born) in asked.items():
            (visit,) = known.loc[known["subject_id"] == f"{number}@SIMULATOR MRN", "encounter_id"]
            risks = assessments(ehr, visit)
            in_scope = ward == "OtherWard" and now.year - born > 18
            assert bool(risks) == in_scope
            assert all(0 <= risk <= 1 for risk in risks)
            assert not in_scope or visit in page
            scored += in_scope
        assert scored > 30
        # Its visits have no number: the chart is opened without one, and the patient is found by PID-3.4.
        for number in list(asked)[:5]:
            ehr.fhir.resources[f"Patient/fhir-{number}"] = {
                "resourceType": "Patient", "id": f"fhir-{number}",
                "identifier": [{"value": number, "assigner": {"display": "SIMULATOR MRN"}}],
            }  # fmt: skip
            (card,) = ehr.open_chart(None, f"fhir-{number}").json()["cards"]
            assert card["summary"].startswith("Sepsis risk ")
