"""Antibiotics ordered and given in HL7 v2, sent over MLLP, become an outcome that the monitor judges scores by."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from serving.feeds.applier import Applier
from serving.ingest.mllp import Listener
from serving.monitoring.followup import follow_up
from serving.monitoring.run import monitor
from serving.settings import Settings
from serving.store.messages import MessageLog

NINE = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
VITALS = {
    "8867-4": (96, "/min"), "8480-6": (112, "mm[Hg]"), "8478-0": (74, "mm[Hg]"), "8310-5": (38.1, "Cel"),
    "9279-1": (22, "/min"), "59408-5": (95, "%"),
}  # fmt: skip


def hl7(hour: float) -> str:
    return (NINE + timedelta(hours=hour)).strftime("%Y%m%d%H%M%S+0000")


def message(kind: str, visit: str, hour: float, *segments: str) -> bytes:
    """About a patient of the facility NORTH, sent a minute after what it tells."""
    place = "|".join(["PV1", "1", "I", "ICU^1^1", *[""] * 15, visit, *[""] * 24, hl7(0)])
    control = f"{kind[:3]}{visit}{hour}"
    msh = f"MSH|^~\\&|EHR|NORTH|||{hl7(hour + 1 / 60)}||{kind}|{control}|P|2.5"
    return "\r".join(
        [msh, f"PID|1||P{visit}^^^NORTH^MR||Doe^Jane||19550214|F", place, *segments, ""]
    ).encode()


def measured(visit: str, hour: float, creatinine: float) -> bytes:
    values = VITALS | {"2160-0": (creatinine, "mg/dL")}
    rows = [f"OBX|{n}|NM|{c}^^LN||{v}|{u}|||||F" for n, (c, (v, u)) in enumerate(values.items(), 1)]
    return message("ORU^R01", visit, hour, f"OBR|1||O{hour}|PANEL^Panel^L|||{hl7(hour)}", *rows)


def course(visit: str, infected: bool) -> list[bytes]:
    """Eight hours; an infected patient has a culture at 10:00, vancomycin ordered at 10:15 and given from 10:30 on for
    three days, and creatinine from 1.0 to 3.6 mg/dL by 15:00 (SOFA 0 to 3)."""
    sent = [message("ADT^A01", visit, 0, f"EVN|A01|{hl7(0)}")]
    sent += [measured(visit, h + 0.5, 3.6 if infected and h >= 6 else 1.0) for h in range(8)]
    if infected:
        culture = "OBX|1|ST|600-7^Bacteria identified^LN||Escherichia coli||||||F"
        drug = "VANC^Vancomycin 1 g^L"
        sent += [
            message("ORU^R01", visit, 8.9, f"OBR|1||C1|600-7^Culture^LN|||{hl7(1)}", culture),
            message("RDE^O11", visit, 1.25, f"ORC|NW|77||||||||{hl7(1.25)}", f"RXE||{drug}|1||g", "RXR|IV"),
        ]
        doses = [1.5 + 12 * k for k in range(7)]
        sent += [
            message("RAS^O17", visit, h, "ORC|RE|77", f"RXA|0|1|{hl7(h)}||{drug}|1|g", "RXR|IV")
            for h in doses
        ]
    return sent


async def over_mllp(settings: Settings, log: MessageLog, messages: Sequence[bytes]) -> list[bytes]:
    """What a listener of the service answers to each."""
    listener = Listener(replace(settings, mllp_port=0), log)
    port = await listener.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.writelines([b"\x0b" + body + b"\x1c\r" for body in messages])
    answers = [await reader.readuntil(b"\x1c\r") for _ in messages]
    writer.close()
    await listener.stop()
    return answers


def test_antibiotics_of_rde_and_ras_mature_into_an_outcome_the_monitor_judges_by(make_service, profiled):
    service = make_service(SEPSIS_MODEL=str(profiled.folder))
    log = MessageLog.open(service.settings.store_url, service.settings.store_key)
    applier = Applier(service.state, log)
    sent = [*course("V1", infected=True), *course("V2", infected=False)]
    for body in sorted(sent, key=lambda body: body.split(b"|")[6]):  # as they were sent, each with its score
        (answer,) = asyncio.run(over_mllp(service.settings, log, [body]))
        assert b"MSA|AA|" in answer
        applier.drain()
    log.close()

    _, early = follow_up(service.state.store, profiled, NINE + timedelta(hours=24), None, "UTC")
    assert "figures" not in early, "nothing has matured: the horizon and three days have to pass"
    late = monitor(service.settings, until=NINE + timedelta(days=6))
    assert late.scored >= 8
    assert (late.performance["stays"], late.performance["septic"]) == (2, 1)
    assert late.performance["outcomes"] == "the store's events, by Sepsis-3"
    assert "outcomes_unknown" not in {f.kind for f in late.findings}
