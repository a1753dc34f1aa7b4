"""HL7 v2 over MLLP: every frame is answered, what is answered AA is on disk, and it takes effect once."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from features.errors import ConfigError
from features.sources import hl7v2_grammar as grammar
from serving.feeds import station
from serving.feeds.applier import Applier
from serving.ingest import acks, mllp, report
from serving.ingest.mllp import Framer, Listener
from serving.settings import Settings
from serving.store import facts, messages, people
from serving.store.log import add_alerts
from serving.store.messages import Arrival, MessageLog, outcomes_of

NINE = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
VT, END = b"\x0b", b"\x1c\r"


def hl7(at: datetime) -> str:
    return at.strftime("%Y%m%d%H%M%S+0000")


def message(kind: str, control: str, *segments: str, at: datetime = NINE, more: str = "") -> bytes:
    """One message of the sender LAB at the facility NORTH."""
    msh = f"MSH|^~\\&|LAB|NORTH|||{hl7(at)}||{kind}|{control}|P|2.5{more}"
    return "\r".join([msh, *segments, ""]).encode()


def pid(who: str = "P1") -> str:
    return f"PID|1||{who}^^^NORTH^MR||Doe^Jane||19550214|F"


def pv1(visit: str = "V1", place: str = "ICU", admitted: datetime | None = None) -> str:
    fields = ["PV1", "1", "I", f"{place}^1^1", *[""] * 15, visit]
    return "|".join([*fields, *[""] * 24, hl7(admitted) if admitted else ""])


def obx(n: int, code: str, value: object, unit: str, status: str = "F") -> str:
    return f"OBX|{n}|NM|{code}^^LN||{value}|{unit}|||||{status}"


VITALS = {
    "8867-4": (96, "/min"), "8480-6": (112, "mm[Hg]"), "8478-0": (74, "mm[Hg]"), "8310-5": (38.1, "Cel"),
    "9279-1": (22, "/min"), "59408-5": (95, "%"), "2524-7": (2.6, "mmol/L"), "2160-0": (1.4, "mg/dL"),
}  # fmt: skip


def results(
    control: str, hour: float, *, status: str = "F", order: str | None = None, rate: float = 96, **more: Any
) -> bytes:
    """Vital signs and two laboratory values, ``hour`` hours after nine."""
    taken = NINE + timedelta(hours=hour)
    values = VITALS | {"8867-4": (rate, "/min")}
    rows = [obx(n, code, value, unit, status) for n, (code, (value, unit)) in enumerate(values.items(), 1)]
    obr = f"OBR|1||{order or f'O{hour}'}|PANEL^Panel^L|||{hl7(taken)}"
    at = more.pop("at", taken + timedelta(minutes=1))
    head = (more.pop("person", pid()), more.pop("visit", pv1()))
    return message("ORU^R01^ORU_R01", control, *head, obr, *rows, at=at, **more)


def admit(
    control: str = "A1", *, place: str = "ICU", at: datetime = NINE, visit: str = "V1", who: str = "P1"
) -> bytes:
    return message("ADT^A01^ADT_A01", control, f"EVN|A01|{hl7(at)}", pid(who), pv1(visit, place, NINE), at=at)


def moved(trigger: str, control: str, hour: float, place: str, was: float | None = None) -> bytes:
    at = NINE + timedelta(hours=hour)
    evn = f"EVN|{trigger}|{hl7(at)}||||{hl7(NINE + timedelta(hours=was)) if was is not None else ''}"
    return message(f"ADT^{trigger}", control, evn, pid(), pv1(place=place), at=at)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[MessageLog]:
    opened = MessageLog.open(f"sqlite:///{tmp_path / 'log.db'}", "ab" * 32)
    yield opened
    opened.close()


@contextmanager
def listening(log: MessageLog, **settings: Any) -> Iterator[int]:
    """A listener in a thread of its own; gives its port."""
    given = replace(Settings(var=Path("unused")), mllp_port=0, **settings)
    loop, started = asyncio.new_event_loop(), threading.Event()
    listener = Listener(given, log)
    port: list[int] = []

    def run() -> None:
        asyncio.set_event_loop(loop)
        port.append(loop.run_until_complete(listener.start()))
        started.set()
        loop.run_forever()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait(10)
    try:
        yield port[0]
    finally:
        asyncio.run_coroutine_threadsafe(listener.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextmanager
def calling(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        yield sock


def replies(sock: socket.socket, n: int) -> list[list[str]]:
    """The next answers, as segments."""
    held = b""
    while held.count(END) < n:
        data = sock.recv(65_536)
        assert data, "the listener closed without an answer"
        held += data
    assert held.startswith(VT)
    return [part.strip(VT).decode(errors="replace").strip("\r").split("\r") for part in held.split(END)[:n]]


def codes(answers: list[list[str]]) -> list[tuple[str, str]]:
    """MSA-1 and MSA-2 of each."""
    return [tuple(a[1].split("|")[1:3]) for a in answers]


def asked(port: int, *frames: bytes) -> list[tuple[str, str]]:
    with calling(port) as sock:
        sock.sendall(b"".join(frames))
        return codes(replies(sock, len(frames)))


def frame(body: bytes) -> bytes:
    return VT + body + END


# ---- frames ----------------------------------------------------------------------------------------------------


def test_a_message_is_answered_with_its_own_control_identifier(log: MessageLog):
    with listening(log) as port, calling(port) as sock:
        sock.sendall(frame(results("77", 1)))
        (answer,) = replies(sock, 1)
    assert answer[0].startswith("MSH|^~\\&|WARDCAST||LAB|NORTH|")
    assert "|ACK^R01^ACK|" in answer[0]
    assert answer[0].endswith("|P|2.5")
    assert answer[1].startswith("MSA|AA|77")
    (kept,) = log.find("LAB", "NORTH", "77")
    assert (kept["body"], kept["answer"], kept["kind"]) == (results("77", 1), "AA", "ORU^R01")


EDGES: dict[str, tuple[bytes, list[str]]] = {
    "junk before VT": (b"GET / HTTP\r\n" + frame(results("1", 1)), ["AA"]),
    "no CR after FS": (VT + results("1", 1) + b"\x1c", ["AA"]),
    "LF after FS": (VT + results("1", 1) + b"\x1c\n", ["AA"]),
    "no VT at all": (results("1", 1) + END, ["AA"]),
    "empty frame": (VT + END, ["AR"]),
    "blank frame": (VT + b"\r\n" + END, ["AR"]),
    "no MSH": (frame(b"PID|1||P1\r"), ["AR"]),
    "not HL7 at all": (frame(bytes(range(32, 127))), ["AR"]),
    "two in one packet": (frame(results("1", 1)) + frame(results("2", 2)), ["AA", "AA"]),
    "a frame that breaks off": (VT + results("1", 1)[:200] + frame(results("2", 2)), ["AR", "AA"]),
    "Latin-1 bytes": (frame(results("1", 1).replace(b"Jane", b"Zo\xeb")), ["AA"]),
    "UTF-16": (frame(b"\xff\xfe" + results("1", 1).decode().encode("utf-16-le")), ["AA"]),
    "UTF-16, frame and all": (("\x0b" + results("1", 1).decode() + "\x1c\r").encode("utf-16-le"), ["AA"]),
    "a megabyte": (frame(results("1", 1) + b"NTE|1||" + b"x" * 1_000_000 + b"\r"), ["AA"]),
    "sixteen megabytes": (frame(results("1", 1) + b"NTE|1||" + b"x" * (16 << 20) + b"\r"), ["AA"]),
    "too large, then a good one": (
        frame(results("1", 1) + b"NTE|1||" + b"x" * (21 << 20) + b"\r") + frame(results("2", 1)), ["AR", "AA"],
    ),
    "LF between segments": (frame(results("1", 1).replace(b"\r", b"\n")), ["AA"]),
    "a segment of the site's own": (frame(results("1", 1) + b"ZZZ|anything\r"), ["AA"]),
    "other encoding characters": (
        frame(b"MSH$%~\\&$LAB$NORTH$$$20260301090000$$ORU%R01$1$P$2.5\rPID$1$$P1\r"), ["AA"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("edge", EDGES)
def test_every_frame_is_answered_and_findable(log: MessageLog, edge: str):
    sent, expected = EDGES[edge]
    with listening(log) as port, calling(port) as sock:
        sock.sendall(sent)
        answers = replies(sock, len(expected))
        # The connection still serves.
        sock.sendall(frame(results("after", 3)))
        assert codes(replies(sock, 1)) == [("AA", "after")]
    assert [code for code, _ in codes(answers)] == expected
    assert all(a[2].startswith("ERR|") for a in answers if a[1].startswith("MSA|AR"))
    assert sum(n for *_, n, _, _ in log.counts()) == len(expected) + 1


def test_a_message_that_drips_in_is_taken_and_others_do_not_wait(log: MessageLog):
    sent = frame(results("slow", 1))
    with listening(log) as port, calling(port) as slow:
        for k in range(0, len(sent), 97):
            slow.sendall(sent[k : k + 97])
            time.sleep(0.01)
            if k == 97:
                assert asked(port, frame(results("quick", 1))) == [("AA", "quick")]
        assert codes(replies(slow, 1)) == [("AA", "slow")]


def test_a_frame_that_never_ends_is_answered(log: MessageLog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mllp, "IDLE_S", 0.3)
    with listening(log) as port:
        for sent in (VT + results("1", 1)[:100], b"no frame at all", VT):
            with calling(port) as sock:
                sock.sendall(sent)
                (answer,) = replies(sock, 1)
                assert answer[1].startswith("MSA|AR|")
        with calling(port) as sock:  # and one whose sender goes away
            sock.sendall(VT + results("9", 1)[:100])
            sock.shutdown(socket.SHUT_WR)
            assert codes(replies(sock, 1)) == [("AR", "9")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_how_the_bytes_are_cut_changes_nothing(size: int):
    """Each edge byte by byte, and in one piece."""
    sent = b"".join(sent for name, (sent, _) in EDGES.items() if len(sent) < 100_000 and "no CR" not in name)
    whole, parts = Framer(1 << 20), Framer(1 << 20)
    expected = whole.feed(sent) + whole.finish()
    found = [f for k in range(0, len(sent), size) for f in parts.feed(sent[k : k + size])] + parts.finish()
    assert [(f.content, f.fault) for f in found] == [(f.content, f.fault) for f in expected]


def test_answers_keep_the_order_of_a_connection_and_many_connections_are_served(log: MessageLog):
    with listening(log) as port:
        answers: dict[int, list[tuple[str, str]]] = {}

        def send(k: int) -> None:
            answers[k] = asked(port, *(frame(results(f"{k}-{n}", n)) for n in range(30)))

        threads = [threading.Thread(target=send, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {k: [("AA", f"{k}-{n}") for n in range(30)] for k in range(8)}
    order = [m.body for m in log.pending(0, 1000)]
    for k in range(8):
        places = [order.index(results(f"{k}-{n}", n)) for n in range(30)]
        assert places == sorted(places)


# ---- answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "good", "bad"),
    [
        ("", "AA", "AE"), ("|||AL|NE", "CA", "CE"), ("|||AL|AL", "CA", "CE"), ("|||AL", "CA", "CE"),
        ("|||NE|AL", "AA", "AE"), ("||||AL", "AA", "AE"), ("|||ER|NE", "", "CE"), ("|||SU|NE", "CA", ""),
        ("|||NE|NE", "", ""), ("|||NE|ER", "", "AE"), ("|||NE|SU", "AA", ""),
    ],
)  # fmt: skip
def test_the_sender_says_which_answers_it_wants(more: str, good: str, bad: str):
    for body, expected in (
        (results("1", 1, more=more), good),
        (results("1", 1, person="PID|1", more=more), bad),
    ):
        said = acks.answer(acks.read(body), NINE).decode()
        assert (said.split("\rMSA|")[1][:2] if said else "") == expected


@pytest.mark.parametrize(
    ("body", "answer", "place"),
    [
        (message("", "1", pid()), "AR", "MSH^1^9"),
        (message("ORU^R01", "", pid()), "AR", "MSH^1^10"),
        (message("ORU^R01", "1", pid()).replace(b"|2.5", b"|3.0"), "AR", "MSH^1^12"),
        (message("ORU^R01", "1", "PID|1||"), "AE", "PID^1^3"),
        (message("ADT^A01", "1"), "AE", "PID^1^3"),
    ],
)
def test_a_refusal_names_the_place_and_the_remedy_and_no_value(body: bytes, answer: str, place: str):
    said = acks.answer(acks.read(body), NINE).decode()
    assert f"\rMSA|{answer}|" in said
    assert f"\rERR||{place}|" in said
    assert "Send" in said
    assert not any(value in said for value in ("Doe", "P1", "NORTH^MR"))


@pytest.mark.parametrize("control", ["7", "A^B~C&D", "x" * 199, "\\F\\", "Größe"])
def test_the_control_identifier_comes_back_sign_by_sign(control: str):
    for codec, declared in (("latin-1", "8859/1"), ("utf-8", "UNICODE UTF-8")):
        body = message("ORU^R01", control, pid(), more="||||||" + declared).decode().encode(codec)
        said = acks.answer(acks.read(body), NINE).decode(codec)
        assert said.split("\r")[1].split("|")[2] == control


def test_only_named_senders_are_taken(log: MessageLog):
    for allowed, answer in ((("LAB",), "AA"), (("LAB@NORTH",), "AA"), (("LAB@SOUTH",), "AR"), (("10.0.0.0/8",), "AR"),
                            (("127.0.0.0/8", "LAB"), "AA")):  # fmt: skip
        with listening(log, mllp_senders=allowed) as port:
            assert asked(port, frame(results("1", 1))) == [(answer, "1")]
    assert [(row["answer"], row["repeats"]) for row in log.find("LAB", "NORTH", "1")] == [("AA", 4)]


def test_what_was_refused_and_is_sent_again_once_allowed_is_taken(log: MessageLog):
    with listening(log, mllp_senders=("OTHER",)) as port:
        assert asked(port, frame(results("1", 1))) == [("AR", "1")]
    assert log.pending(0, 10) == []
    with listening(log) as port:
        assert asked(port, frame(results("1", 1))) == [("AA", "1")]
    assert [m.body for m in log.pending(0, 10)] == [results("1", 1)]


def test_a_log_that_cannot_be_written_answers_ae_and_recovers(
    log: MessageLog, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    with listening(log) as port, calling(port) as sock:
        with monkeypatch.context() as patch:
            patch.setattr(log, "add", full)
            sock.sendall(frame(results("1", 1)))
            assert codes(replies(sock, 1)) == [("AE", "1")]
        sock.sendall(frame(results("1", 1)))
        assert codes(replies(sock, 1)) == [("AA", "1")]


def test_the_same_message_again_is_one_and_another_of_its_name_is_kept_and_said_so(log: MessageLog):
    with listening(log) as port, calling(port) as sock:
        for body in (results("1", 1), results("1", 1), results("1", 2)):
            sock.sendall(frame(body))
        first, again, other = replies(sock, 3)
    assert codes([first, again, other]) == [("AA", "1")] * 3
    assert [word in a[1] for word, a in (("|1|", first), ("once", again), ("both are kept", other))] == [
        True
    ] * 3
    assert other[2].startswith("ERR||MSH^1^10|205^Duplicate key identifier^HL70357|W|")
    rows = log.find("LAB", "NORTH", "1")
    assert [(row["repeats"], row["conflict"]) for row in rows] == [(1, False), (0, True)]


def test_anywhere_but_on_loopback_it_needs_tls(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"WARDCAST_MLLP_HOST 0\.0\.0\.0 .* needs TLS"):
        Settings.from_env({"WARDCAST_VAR": str(tmp_path), "WARDCAST_MLLP_HOST": "0.0.0.0"})
    with pytest.raises(ConfigError, match="Set WARDCAST_MLLP_PORT"):
        station.listen(Settings.from_env({"WARDCAST_VAR": str(tmp_path)}))


def test_tls_with_the_certificate_of_the_site_and_nothing_in_the_clear(log: MessageLog, tmp_path: Path):
    cert, key = certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(cert))
    with listening(log, tls_cert=cert, tls_key=key) as port:
        with calling(port) as plain, trusting.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
            sock.sendall(frame(results("1", 1)))
            assert codes(replies(sock, 1)) == [("AA", "1")]
        with calling(port) as plain, suppress(ConnectionError):
            plain.sendall(frame(results("2", 1)))
            assert VT not in plain.recv(4096)
        with calling(port) as plain, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")
    assert [m.body for m in log.pending(0, 10)] == [results("1", 1)]


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for loopback that signs itself, and its key, as PEM files."""
    private, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "wardcast")])
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1)).add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )  # fmt: skip
    cert, key = folder / "mllp.crt", folder / "mllp.key"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption(),
    ))  # fmt: skip
    return cert, key


# ---- durability ------------------------------------------------------------------------------------------------

ALONE = """
import asyncio, sys
from pathlib import Path
from serving.ingest.mllp import Listener
from serving.settings import Settings
from serving.store.messages import MessageLog

async def main():
    log = MessageLog.open(f"sqlite:///{sys.argv[1]}", "ab" * 32)
    print(await Listener(Settings(var=Path("unused"), mllp_port=0), log).start(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def _until_killed(port: int, process: subprocess.Popen[bytes], first: int, after: float) -> list[int]:
    """Send messages one after the other until the listener is killed; those that were acknowledged."""
    timer = threading.Timer(after, process.kill)
    timer.start()
    taken: list[int] = []
    try:
        with calling(port) as sock:
            for n in range(first, first + 100_000):
                sock.sendall(frame(results(str(n), 1)))
                held = b""
                while not held.endswith(END):
                    data = sock.recv(4096)
                    if not data:
                        return taken
                    held += data
                assert b"|AA|" in held
                taken.append(n)
    except OSError:
        pass
    finally:
        timer.cancel()
        process.wait()
    return taken


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, repo: Path):
    rng, taken = random.Random(5), []
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(ALONE), str(tmp_path / "log.db")],
            cwd=repo,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        port = int(process.stdout.readline())
        taken += _until_killed(port, process, (taken or [0])[-1] + 1000, rng.uniform(0.05, 0.4))
        process.stdout.close()
    log = MessageLog.open(f"sqlite:///{tmp_path / 'log.db'}", "ab" * 32)
    kept = [m.body for m in log.pending(0, 1_000_000)]
    log.close()
    assert len(taken) > 50
    assert len(kept) == len(set(kept))
    assert {results(str(n), 1) for n in taken} <= set(kept)


# ---- what messages do ------------------------------------------------------------------------------------------


class Ward:
    """A service, the message log of its store, and whoever reads the one into the other."""

    def __init__(self, service: Any) -> None:
        self.service, self.state = service, service.state
        self.log = MessageLog.open(service.settings.store_url, service.settings.store_key)
        self.applier = Applier(self.state, self.log)

    def take(self, *bodies: bytes) -> None:
        """Put messages into the log, as the listener does, and read them into the store."""
        now = int(NINE.timestamp() * 1e6)
        self.log.add([acks.read(body).arrival for body in bodies], now)
        self.applier.drain()

    def encounter(self, who: str = "V1") -> dict[str, Any]:
        with self.state.store.read() as connection:
            return facts.latest(connection, [who])[who]

    def values(self, concept: str, who: str = "V1", at: datetime = NINE + timedelta(days=2)) -> list[float]:
        events = self.state.store.events([who], at)
        told = events[events["concept"] == concept].sort_values("available_time", kind="stable")
        newest = told.groupby("source_id").tail(1)
        return [float(v) for v in newest.loc[newest["status"] != "deleted", "numeric_value"]]

    def problems(self) -> list[tuple[str, dict[str, int]]]:
        seqs = [m.seq for m in self.log.pending(0, 10_000)]
        with self.state.store.read() as connection:
            found = outcomes_of(connection, seqs)
        return [(found[s][0], json.loads(found[s][1])) for s in seqs]

    def risk(self, who: str = "V1") -> dict[str, Any]:
        return dict(self.service.get("/v1/risk", encounter=who).json())


@pytest.fixture
def ward(service: Any) -> Iterator[Ward]:
    made = Ward(service)
    yield made
    made.log.close()


def hours(hour: float) -> int:
    return int((NINE + timedelta(hours=hour)).timestamp() * 1e6)


@pytest.mark.both_stores
def test_admission_and_results_give_a_scored_patient(ward: Ward):
    ward.take(admit(), *(results(f"R{h}", h) for h in range(1, 5)))
    about = ward.encounter()
    assert (about["subject_id"], about["encounter_class"], about["unit"]) == ("P1@NORTH", "icu", "ICU")
    assert (about["age_years"], about["sex"], about["icu_admission_time"]) == (71, "female", hours(0))
    assert about["hospital_admission_time"] == hours(0)
    risk = ward.risk()
    assert risk["status"] == "scored"
    page = ward.service.client.get("/worklist", headers=ward.service.headers).text
    assert "V1" in page
    assert [status for status, _ in ward.problems()] == ["used"] * 5


def test_the_same_facts_by_json_have_the_same_score(
    ward: Ward, make_service: Callable[..., Any], tmp_path: Path
):
    ward.take(admit(), results("R1", 1), results("R2", 2))
    other = make_service(VAR=str(tmp_path / "other"))
    events = [
        {"encounter_id": "V1", "code": f"LOINC//{code}", "value": value, "unit": unit,
         "time": (NINE + timedelta(hours=h)).isoformat(),
         "available_time": (NINE + timedelta(hours=h, minutes=1)).isoformat()}
        for h in (1, 2) for code, (value, unit) in VITALS.items()
    ]  # fmt: skip
    about = {
        "encounter_id": "V1", "subject_id": "P1@NORTH", "encounter_class": "icu", "age_years": 71.0, "sex": "female",
        "icu_admission_time": NINE.isoformat(), "hospital_admission_time": NINE.isoformat(),
    }  # fmt: skip
    as_of = (NINE + timedelta(hours=2, minutes=1)).isoformat()
    other.send({"encounters": [about], "events": events, "as_of": as_of})
    told = other.get("/v1/risk", encounter="V1").json()
    assert told["status"] == "scored"
    assert ward.risk()["raw"] == told["raw"]


@pytest.mark.parametrize("status", ["D", "W", "X"])
def test_a_result_taken_back_is_no_longer_used(ward: Ward, status: str):
    ward.take(admit(), results("R1", 1, order="O1", rate=140), results("R2", 2, order="O2"))
    before = ward.risk()["raw"]
    ward.take(results("R3", 1, order="O1", rate=140, status=status, at=NINE + timedelta(hours=3)))
    assert ward.values("heart_rate") == [96]
    assert ward.values("heart_rate", at=NINE + timedelta(hours=2.5)) == [140, 96]
    assert ward.risk()["raw"] != before


def test_a_correction_replaces_and_a_final_result_follows_a_preliminary_one(ward: Ward):
    ward.take(admit(), results("R1", 1, order="O1", rate=99, status="P"))
    ward.take(results("R2", 1, order="O1", rate=98, at=NINE + timedelta(hours=2)))
    ward.take(results("R3", 1, order="O1", rate=88, status="C", at=NINE + timedelta(hours=3)))
    assert ward.values("heart_rate") == [88]
    assert ward.values("heart_rate", at=NINE + timedelta(hours=2.5)) == [98]


def test_moves_and_cancels_leave_the_picture_that_stands(ward: Ward):
    ward.take(admit(place="WARD7"))
    assert ward.encounter()["encounter_class"] == "ward"
    ward.take(moved("A02", "M1", 2, "ICU"))
    assert (ward.encounter()["encounter_class"], ward.encounter()["icu_admission_time"]) == ("icu", hours(2))
    ward.take(moved("A12", "M2", 3, "WARD7", was=2))
    assert (ward.encounter()["encounter_class"], ward.encounter()["icu_admission_time"]) == ("ward", None)
    ward.take(moved("A02", "M3", 4, "ICU"), moved("A12", "M4", 5, "WARD7"))
    assert ward.encounter()["encounter_class"] == "ward"
    ward.take(moved("A02", "M5", 6, "ICU"), moved("A03", "M6", 8, "ICU"))
    assert (ward.encounter()["discharge_time"], ward.risk()["error"]["code"]) == (hours(8), "encounter_ended")
    ward.take(moved("A13", "M7", 9, "ICU"))
    assert (ward.encounter()["discharge_time"], ward.encounter()["encounter_class"]) == (None, "icu")


def test_a_cancelled_admission_ends_the_encounter_and_a_new_one_opens_it(ward: Ward):
    ward.take(admit(), moved("A11", "C1", 1, "ICU"))
    assert ward.encounter()["discharge_time"] == hours(1)
    ward.take(admit("A2", at=NINE + timedelta(hours=2)))
    assert (ward.encounter()["discharge_time"], ward.encounter()["encounter_class"]) == (None, "icu")


def test_moves_in_another_order_lead_to_the_same_picture(ward: Ward):
    sent = [
        admit(place="WARD7"),
        moved("A02", "M1", 2, "ICU"),
        moved("A02", "M2", 5, "WARD8"),
        results("R", 3),
    ]
    sent.reverse()
    ward.take(*sent)
    about = ward.encounter()
    assert (about["encounter_class"], about["icu_admission_time"]) == ("ward", hours(2))


def test_merged_patients_are_one_from_then_on(ward: Ward):
    ward.take(admit(who="P9"), results("R1", 1, person=pid("P9")))
    before = ward.risk()["raw"]
    mrg = message(
        "ADT^A40^ADT_A39", "G1", "EVN|A40", pid("P1"), "MRG|P9^^^NORTH^MR", at=NINE + timedelta(hours=1.5)
    )
    ward.take(mrg)
    assert ward.encounter()["subject_id"] == "P1@NORTH"
    assert ward.risk()["raw"] == before
    # Both names lead there now, though neither message names the visit.
    no_visit = "PV1|1|I|ICU"
    ward.take(
        results("R2", 2, person=pid("P9"), visit=no_visit), results("R3", 3, person=pid("P1"), visit=no_visit)
    )
    assert len(ward.values("heart_rate")) == 3
    with ward.state.store.read() as connection:
        assert people.surviving(connection, "subject", ["P9@NORTH"]) == {"P9@NORTH": "P1@NORTH"}


@pytest.mark.both_stores
def test_merged_visits_bring_their_facts_along(ward: Ward):
    ward.take(admit(), admit("A2", visit="V2"), results("R1", 1, visit=pv1("V2")))
    mrg = message("ADT^A42", "G1", "EVN|A42", pid(), "PV1|1|I|ICU" + "|" * 16 + "V1", "MRG|P1^^^NORTH^MR||||V2",
                  at=NINE + timedelta(hours=2))  # fmt: skip
    ward.take(mrg, results("R2", 3, visit=pv1("V2")))
    assert ward.encounter("V2")["discharge_time"] is not None
    assert len(ward.values("heart_rate", "V1")) == 2


def test_every_name_of_merged_visits_finds_all_that_was_said_of_them_in_fhir(ward: Ward):
    ward.take(admit("A2", visit="V2"), results("R1", 1, visit=pv1("V2")))
    mrg = message("ADT^A42", "G1", "EVN|A42", pid(), "PV1|1|I|ICU" + "|" * 16 + "V1", "MRG|P1^^^NORTH^MR||||V2",
                  at=NINE + timedelta(hours=2))  # fmt: skip
    ward.take(mrg, results("R2", 3))

    def found(who: str) -> list[str]:
        said = ward.service.get("/fhir/RiskAssessment", encounter=f"Encounter/{who}").json()
        return [entry["resource"]["id"] for entry in said["entry"]]

    assert found("V1") == found("V2")
    assert ward.service.get("/v1/risk", encounter="V2").json()["encounter_id"] == "V1", (
        "the API follows as well"
    )
    past = [ward.service.get("/v1/risk/history", encounter=who).json() for who in ("V1", "V2")]
    assert past[0] == past[1]
    assert past[0]["encounter_id"] == "V1"
    assert {s["prediction_id"] for s in past[0]["scores"]} == set(found("V1"))
    with ward.state.store.write() as connection:
        at = {"raised_time": ward.service.state.now_us(), "probability": 0.5, "reason": "threshold"}
        made = [
            {"alert_id": a, "encounter_id": v, "prediction_id": a} | at
            for a, v in (("a1", "V1"), ("a2", "V2"))
        ]
        add_alerts(connection, made)
    told = [
        ward.service.get("/v1/alerts", encounter=who, since=NINE.isoformat()).json() for who in ("V1", "V2")
    ]
    assert told[0] == told[1]
    assert {alert["alert_id"] for alert in told[0]["alerts"]} == {"a1", "a2"}
    with ward.state.store.read() as connection:
        under = {row[0] for row in connection.exec_driver_sql("select encounter_id from predictions")}
    assert under == {"V1", "V2"}


@pytest.mark.both_stores
def test_results_that_came_before_the_admission_are_used_once_it_comes(ward: Ward):
    no_visit = "PV1|1|I|ICU"
    early = [results(f"R{h}", h, visit=no_visit) for h in (1, 2)]
    ward.take(*early, results("R3", 1, order="O7", person=pid("P7"), visit=no_visit))
    assert [status for status, _ in ward.problems()] == ["unused"] * 3
    ward.take(admit(at=NINE + timedelta(hours=3)))
    assert ward.values("heart_rate") == [96, 96]
    # Received after the admission, so it was not known to us before.
    assert ward.values("heart_rate", at=NINE + timedelta(hours=1.5)) == []
    assert ward.risk()["status"] == "scored"
    assert [status for status, _ in ward.problems()] == ["used", "used", "unused", "used"]
    # The other patient's result still waits; a merge tells us who it was.
    mrg = message(
        "ADT^A40^ADT_A39", "G1", "EVN|A40", pid("P1"), "MRG|P7^^^NORTH^MR", at=NINE + timedelta(hours=4)
    )
    ward.take(mrg, results("R4", 4))
    assert len(ward.values("heart_rate")) == 4
    with ward.state.store.read() as connection:
        assert not messages.has_orphans(connection)


@pytest.mark.both_stores
def test_old_messages_that_were_read_are_emptied_and_still_known(make_service: Callable[..., Any]):
    ward = Ward(make_service(MLLP_KEEP_DAYS="30"))
    late = results("R2", 2, person=pid("P7"), visit="PV1|1|I|ICU")
    ward.take(admit(), results("R1", 1), late)
    ward.log.add([acks.read(results("R9", 3)).arrival], hours(0))  # not read yet
    assert ward.applier.prune(hours(24 * 29)) == 0
    assert ward.applier.prune(hours(24 * 31)) == 2
    kept = [m.body for m in ward.log.pending(0, 10)]
    assert kept == [b"", b"", late, results("R9", 3)]
    assert ward.log.add([acks.read(results("R1", 1)).arrival], hours(1))[0].repeated
    ward.applier.drain()
    assert len(ward.values("heart_rate")) == 2
    ward.log.close()


@pytest.mark.both_stores
def test_readiness_and_metrics_say_how_messages_come_in(ward: Ward, make_service: Callable[..., Any]):
    with listening(ward.log) as port:
        watching = make_service(MLLP_PORT=str(port))
        ward.take(admit())
        ward.log.add([acks.read(results("R1", 1)).arrival], int(time.time() * 1e6) - 90_000_000)
        said = watching.client.get("/readyz").json()
        assert (said["status"], said["degraded"]) == ("ready", ["mllp_behind"])
        assert {k: said["mllp"][k] for k in ("listening", "messages", "waiting")} == {
            "listening": True, "messages": 2, "waiting": 1,
        }  # fmt: skip
        assert said["mllp"]["oldest_waiting_s"] == pytest.approx(90, abs=20)
        ward.applier.drain()
        text = watching.get("/metrics").text
        assert "wardcast_mllp_up 1.0" in text
        assert "wardcast_mllp_waiting 0.0" in text
    answer = watching.client.get("/readyz")
    assert (answer.status_code, answer.json()["degraded"]) == (200, ["mllp_down"])
    assert sum(n for *_, n, _, _ in ward.log.counts()) == 2  # looking leaves no message behind
    watching.state.messages.close()


def test_a_visit_of_another_patient_is_not_written_into(ward: Ward):
    ward.take(admit(), results("R1", 1, person=pid("P2")))
    assert ward.values("heart_rate") == []
    (_, second) = ward.problems()
    assert second[0] == "unused"
    assert second[1]["encounter_of_another_subject"] == len(VITALS) + 1


@pytest.mark.parametrize("seed", range(3))
def test_any_order_and_five_of_each_end_as_the_order_in_which_they_were_sent(
    make_service: Callable[..., Any], tmp_path: Path, seed: int
):
    sent = [
        admit(place="WARD7"), moved("A02", "M1", 1, "ICU"), *(results(f"R{h}", h) for h in (2, 3, 4)),
        results("C3", 3, rate=130, status="C", at=NINE + timedelta(hours=5)),
        results("D4", 4, status="D", at=NINE + timedelta(hours=6)),
        moved("A02", "M2", 6, "WARD8"), moved("A12", "M3", 7, "ICU", was=6),
    ]  # fmt: skip
    shuffled = sent * 5
    random.Random(seed).shuffle(shuffled)
    ends = []
    for name, order in (("straight", sent), ("shuffled", shuffled)):
        ward = Ward(make_service(VAR=str(tmp_path / name)))
        for body in order:
            ward.take(body)
        about = {k: v for k, v in ward.encounter().items() if k not in ("seq", "received_time")}
        values = {c: sorted(ward.values(c)) for c in ("heart_rate", "lactate", "sbp")}
        ends.append((about, values, ward.risk()["raw"]))
        ward.log.close()
    assert ends[0] == ends[1]
    assert ends[0][1]["heart_rate"] == [96, 130]


def test_drugs_come_in(ward: Ward):
    at = NINE + timedelta(hours=1)
    rde = message(
        "RDE^O11", "D1", pid(), pv1(), f"ORC|NW|77||||||||{hl7(at)}", "RXE||VANC^Vancomycin 1 g^L|1||g",
        "RXR|IV^Intravenous^HL70162", at=at,
    )  # fmt: skip
    ras = message(
        "RAS^O17", "D2", pid(), pv1(), "ORC|RE|78", f"RXA|0|1|{hl7(at)}||NOREPI^Norepinephrine^L|0.1|ug/kg/min",
        "RXR|IV^Intravenous^HL70162", at=at,
    )  # fmt: skip
    ward.take(admit(), rde, ras)
    events = ward.state.store.events(["V1"], NINE + timedelta(days=1))
    assert {"antibiotic", "norepinephrine"} <= set(events["concept"])


@pytest.mark.both_stores
def test_what_cannot_be_used_is_kept_counted_and_listed(ward: Ward):
    strange = message(
        "ORU^R01", "S1", pid(), pv1(), f"OBR|1||O9|X|||{hl7(NINE)}", "OBX|1|NM|XY^Thing^L||5|furlong|||||F",
        obx(2, "8867-4", 9000, "/min"), obx(3, "2524-7", 2, "furlong"), obx(4, "8867-4", 90, "/min", "?"),
    )  # fmt: skip
    orphan = results("S2", 1, person=pid("P7"), visit="PV1|1|I|ICU")
    ward.take(admit(), strange, orphan, b"")
    text = report.report(ward.service.settings).summary()
    for said in ("LOCAL//XY", "unknown_concept", "LOINC//8867-4", "impossible_value", "unit_unknown", "unknown_status",
                 "no_encounter", "empty_frame"):  # fmt: skip
        assert said in text
    for identity in ("P1@", "V1 ", "P7", "Doe", "Jane"):
        assert identity not in text


@pytest.mark.both_stores
def test_a_message_takes_effect_once_whoever_reads_the_log(ward: Ward):
    ward.take(admit(), results("R1", 1))
    second = Applier(ward.state, ward.log)
    second.drain()
    pending = ward.log.pending(0, 10)
    second._write(pending, 0)  # as one would that looked before the other wrote
    assert len(ward.values("heart_rate")) == 1
    with ward.state.store.read() as connection:
        assert facts.last_seq(connection) == len(VITALS) + 2


def test_a_failure_in_between_loses_and_doubles_nothing(ward: Ward, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serving.feeds.applier.messages.add_outcomes", _fail)
    with pytest.raises(RuntimeError):
        ward.take(admit(), results("R1", 1))
    monkeypatch.undo()
    ward.applier.drain()
    assert len(ward.values("heart_rate")) == 1
    assert ward.risk()["status"] == "scored"


def _fail(*_: Any) -> None:
    raise RuntimeError("the power is gone")


def test_a_message_that_breaks_the_reader_holds_up_no_other(ward: Ward, monkeypatch: pytest.MonkeyPatch):
    from serving.feeds import applier

    def said_of(parsed: Any) -> Any:
        if parsed.header.control_id == "BAD":
            raise ValueError("nobody thought of this")
        return applier_said(parsed)

    applier_said = applier.said_of
    monkeypatch.setattr(applier, "said_of", said_of)
    ward.take(admit(), results("BAD", 1), results("R2", 2))
    assert [status for status, _ in ward.problems()] == ["used", "failed", "used"]


@pytest.mark.slow
def test_mutated_messages_are_all_answered_and_findable(ward: Ward):
    rng = random.Random(11)
    seeds = [admit(), results("R1", 1), moved("A02", "M1", 2, "ICU"), moved("A12", "M2", 3, "W", was=2)]
    sent = [_mutated(rng, rng.choice(seeds)) for _ in range(300)]
    with listening(ward.log) as port, calling(port) as sock:
        for body in sent:
            clean = body.replace(b"\x0b", b" ").replace(b"\x1c", b" ")
            sock.sendall(frame(clean))
            ((code, _),) = codes(replies(sock, 1))
            assert code in ("AA", "AE", "AR", "CA", "CE", "CR")
    assert sum(n + again for *_, n, again, _ in ward.log.counts()) == len(sent)
    ward.applier.drain()
    assert len(ward.problems()) == len(ward.log.pending(0, 1000))
    assert "failed" not in {status for status, _ in ward.problems()}


def _mutated(rng: random.Random, body: bytes) -> bytes:
    """Cut, double, swap or replace bytes, fields and segments."""
    data = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        kind, place = rng.randrange(6), rng.randrange(4, max(5, len(data)))
        if kind == 0:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del data[place : place + rng.randrange(30)]
        elif kind == 2:
            data[place:place] = data[place : place + 40]
        elif kind == 3:
            data[place:place] = rng.choice(
                [b"|", b"^", b"\r", b"~", b"&", b"\\X00\\", b"\xff\xfe", b"99999999999"]
            )
        elif kind == 4:
            parts = bytes(data).split(b"\r")
            rng.shuffle(parts)
            data = bytearray(b"MSH" + b"\r".join(parts) if rng.random() < 0.1 else b"\r".join(parts))
        else:
            parts = bytes(data).split(b"|")
            parts[rng.randrange(len(parts))] = rng.choice(
                [b"", b'""', b"-1e400", b"NaN", b"\xe4" * 300, b"20269999"]
            )
            data = bytearray(b"|".join(parts))
    return bytes(data)


@pytest.mark.slow
def test_the_command_takes_messages_and_scores_them_and_ends_when_told(
    bundle: Any, tmp_path: Path, repo: Path, make_service: Callable[..., Any]
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {"WARDCAST_VAR": str(tmp_path / "var"), "WARDCAST_SEPSIS_MODEL": str(bundle.folder),
           "WARDCAST_CLOCK": "replay", "WARDCAST_MLLP_PORT": str(port)}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "mllp"], cwd=repo, env=os.environ | env, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert b"MLLP" in process.stdout.readline()
        assert asked(port, frame(admit()), frame(results("R1", 1))) == [("AA", "A1"), ("AA", "R1")]
        service = make_service()
        deadline = time.monotonic() + 60
        while service.get("/v1/risk", encounter="V1").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert service.get("/v1/risk", encounter="V1").json()["status"] == "scored"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.data
def test_a_hospital_stream_goes_in_and_comes_out(
    data_dir: Path, make_service: Callable[..., Any], tmp_path: Path
):
    mapping = tmp_path / "site.toml"
    mapping.write_text('[codes]\n"WinPath//tt-0003-01" = "creatinine"\n[units]\nUMOLL = "umol/L"\n', "utf-8")
    ward = Ward(make_service(SITE_MAP=str(mapping)))
    stream = list(grammar.pieces(data_dir / "interop" / "hl7v2" / "simhospital" / "messages.out"))
    with listening(ward.log) as port, calling(port) as sock:
        for body in stream:
            sock.sendall(frame(body))
            ((code, _),) = codes(replies(sock, 1))
            assert code == "CA"
    ward.applier.drain()
    assert len(ward.problems()) == len(stream)
    assert "failed" not in {status for status, _ in ward.problems()}
    now = ward.state.now()
    known = ward.state.store.encounters(now)
    assert len(known) > 200
    events = ward.state.store.events(list(known["encounter_id"]), now)
    assert (events["concept"] == "creatinine").sum() > 100
    # The same stream again changes nothing.
    before = ward.state.store.events(list(known["encounter_id"]), now)
    ward.take(*stream)
    assert len(ward.state.store.events(list(known["encounter_id"]), now)) == len(before)
    page = ward.service.client.get("/worklist", headers=ward.service.headers)
    assert page.status_code == 200
    risk = ward.service.get("/v1/risk", encounter=str(known["encounter_id"].iloc[0]))
    assert risk.json()["status"] in ("out_of_scope", "insufficient_data")
    ward.log.close()


def test_arrivals_hash_what_they_hold():
    assert Arrival(("a", "b", "c"), b"x").body_hash == Arrival(("", "", ""), b"x").body_hash
