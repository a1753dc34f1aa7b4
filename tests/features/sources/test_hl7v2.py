"""HL7 v2: one invented patient, told in every spelling that senders use."""

from __future__ import annotations

import gzip
import math
import random
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import clean, windows
from features.clock import STAY_US
from features.errors import DataError
from features.events import NAT, validate
from features.sources import hl7v2, hl7v2_grammar
from features.sources.batch import ReadAccount
from features.sources.facts import Fact, Merge
from features.sources.hl7v2_message import Parsed

MSH = r"MSH|^~\&|LAB|NORTH|EHR|NORTH|{sent}||{kind}|C1|P|2.5.1|||AL|NE||{charset}"
PID = "PID|1||77^^^NORTH^MR~999^^^TAX^SS||DOE^JANE||19500601|F"


def header(kind: str, sent: str = "20260112101500", charset: str = "UNICODE UTF-8") -> str:
    return MSH.format(kind=kind, sent=sent, charset=charset)


def visit(
    kind: str = "I", place: str = "Ward 4^12^3", *, admitted: str = "20260110090000", left: str = ""
) -> str:
    fields = [""] * 46
    fields[2], fields[3], fields[10], fields[19] = kind, place, "MED", "V5^^^NORTH"
    fields[44], fields[45] = admitted, left
    return "|".join(["PV1", "1", *fields[2:]])


def obr(
    number: str = "F9", code: str = "24323-8^Panel^LN", taken: str = "20260112080000", known: str = ""
) -> str:
    fields = [""] * 23
    fields[3], fields[4], fields[7], fields[22] = number, code, taken, known
    return "|".join(["OBR", "1", "", *fields[3:]])


def obx(value: str, *, kind: str = "NM", code: str = "2524-7^Lactate^LN", unit: str = "mmol/L", status: str = "F",
        taken: str = "", sub: str = "") -> str:  # fmt: skip
    return f"OBX|1|{kind}|{code}|{sub}|{value}|{unit}||||{''}|{status}|||{taken}"


def message(*segments: str) -> bytes:
    return "\r".join(segments).encode() + b"\r"


def oru(*results: str, sent: str = "20260112101500", order: str | None = None) -> Parsed:
    return hl7v2.parse(message(header("ORU^R01", sent), PID, visit(), order or obr(), *results))


def only(parsed: Parsed) -> Fact:
    assert len(parsed.events) == 1, parsed
    return parsed.events[0]


def at(text: str, zone: str = "UTC") -> int:
    local = datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=ZoneInfo(zone))
    return int(local.timestamp()) * 1_000_000


def reasons(parsed: Parsed) -> list[str]:
    return [problem.reason for problem in parsed.problems]


def read(path: Path, **options: object) -> tuple[pd.DataFrame, pd.DataFrame, ReadAccount]:
    account = ReadAccount()
    batches = list(hl7v2.batches(path, account, **options))  # type: ignore[arg-type]
    events = pd.concat([b.events for b in batches], ignore_index=True)
    return pd.concat([b.encounters for b in batches], ignore_index=True), events, account


def test_a_result_has_both_clocks_its_code_unit_and_identity():
    fact = only(oru(obx("2.1"), order=obr(known="20260112083000")))
    assert (fact.subject_id, fact.encounter_id) == ("77@NORTH", "V5@NORTH")
    assert (fact.code, fact.numeric_value, fact.unit, fact.status) == (
        "LOINC//2524-7",
        2.1,
        "mmol/L",
        "final",
    )
    assert (fact.time, fact.available_time) == (at("20260112080000"), at("20260112083000"))
    assert fact.source_id == "F9/LOINC//2524-7"


def test_the_time_of_the_result_itself_goes_before_that_of_the_order():
    assert only(oru(obx("2.1", taken="20260112081000"))).time == at("20260112081000")


def test_without_a_report_time_the_result_is_known_when_its_message_is_sent():
    assert only(oru(obx("2.1"))).available_time == at("20260112101500")


def test_nothing_is_known_before_it_happened():
    fact = only(oru(obx("2.1", taken="20260112110000")))
    assert fact.available_time == fact.time == at("20260112110000")


def test_a_bare_date_is_not_known_before_it_is_over_unless_a_message_says_so():
    parsed = hl7v2.parse(message(header("ORU^R01", ""), PID, visit(), obr(taken="20260112"), obx("2.1")))
    fact = only(parsed)
    assert (fact.time, fact.available_time) == (at("20260112000000"), at("20260113000000"))


def test_offsets_are_kept_and_naive_times_are_local():
    raw = message(
        header("ORU^R01", "20260112101500-0500"), PID, visit(), obr(taken="20260112080000"), obx("2.1")
    )
    fact = only(hl7v2.parse(raw, timezone="Asia/Kathmandu"))
    assert fact.time == at("20260112080000", "Asia/Kathmandu")
    assert fact.available_time == at("20260112151500")


@pytest.mark.parametrize(
    ("status", "ours"),
    [("F", "final"), ("", "final"), ("C", "corrected"), ("P", "preliminary"), ("D", "deleted"), ("W", "deleted"),
     ("X", "deleted")],
)  # fmt: skip
def test_the_result_status_is_ours(status: str, ours: str):
    assert only(oru(obx("2.1", status=status))).status == ours


@pytest.mark.parametrize(
    ("status", "reason"), [("I", "pending"), ("O", "no_result"), ("Q", "unknown_status")]
)
def test_a_status_without_a_result_is_counted(status: str, reason: str):
    parsed = oru(obx("2.1", status=status))
    assert parsed.events == []
    assert reasons(parsed) == [reason]


def test_a_correction_bears_the_identity_of_what_it_corrects_and_is_known_later():
    first = only(oru(obx("2.1"), order=obr(known="20260112083000")))
    second = only(oru(obx("3.2", status="C"), order=obr(known="20260112083000"), sent="20260112120000"))
    assert first.source_id == second.source_id
    assert second.available_time == at("20260112120000")


def test_a_withdrawn_result_needs_no_value():
    fact = only(oru(obx("", status="D")))
    assert fact.status == "deleted"
    assert math.isnan(fact.numeric_value)


@pytest.mark.parametrize(
    ("kind", "value", "number", "words"),
    [
        ("NM", "7.40", 7.4, None),
        ("NM", "haemolysed", math.nan, "haemolysed"),
        ("SN", "<^15", 15.0, "<15"),
        ("SN", "^2^-^3", math.nan, "2-3"),
        ("SN", "^1^:^128", math.nan, "1:128"),
        ("SN", "^5", 5.0, None),
        ("ST", "98", 98.0, None),
        ("ST", "<0.3", 0.3, "<0.3"),
        ("ST", "Venturi", math.nan, "Venturi"),
        ("CWE", "V^Voice^L", math.nan, "Voice"),
        ("TX", r"5 \T\ 6\.br\lines", math.nan, "5 & 6\nlines"),
        ("", "28", 28.0, None),
    ],
)
def test_values_are_read_by_their_type(kind: str, value: str, number: float, words: str | None):
    fact = only(oru(obx(value, kind=kind)))
    assert fact.numeric_value == pytest.approx(number, nan_ok=True)
    assert fact.text_value == words


def test_repeated_values_are_facts_of_their_own():
    parsed = oru(obx("60~120"))
    assert [f.numeric_value for f in parsed.events] == [60, 120]
    assert len({f.source_id for f in parsed.events}) == 2


def test_documents_and_empty_values_are_counted():
    parsed = oru(obx("x", kind="ED"), obx(""), obx('""'), obx("1", code="", kind="NM"))
    assert sorted(reasons(parsed)) == ["no_code", "no_value", "no_value", "value_type_unsupported"]


@pytest.mark.parametrize(
    ("coded", "code"),
    [
        ("2524-7^Lactate^LN", "LOINC//2524-7"),
        ("LAC^Lactate^L", "LOCAL//LAC"),
        ("LAC^Lactate^99NORTH", "LOCAL//LAC"),
        ("LAC^Lactate", "LOCAL//LAC"),
        ("LAC^Lactate^WinPath", "WinPath//LAC"),
        ("LAC^Lactate^L^2524-7^Lactate^LN", "LOINC//2524-7"),
        ("x-1^MDC_ECG_HEART_RATE^MDC", "MDC//MDC_ECG_HEART_RATE"),
        ("^Lactate", "LOCAL//Lactate"),
    ],
)
def test_the_code_that_the_tables_know_is_kept(coded: str, code: str):
    assert only(oru(obx("1", code=coded))).code == code


def test_a_site_says_what_its_own_codes_units_and_places_mean(tmp_path: Path):
    file, mapping = tmp_path / "feed.hl7", tmp_path / "site.toml"
    mapping.write_text(
        '[codes]\n"LOCAL//LAC" = "lactate"\n[units]\nMMOLL = "mmol/L"\n[places]\n"ward 4" = "icu"\n'
    )
    a01 = message(header("ADT^A01", "20260110090500"), "EVN||20260110090500", PID, visit())
    file.write_bytes(
        a01 + message(header("ORU^R01"), PID, visit(), obr(), obx("2", code="LAC^^L", unit="MMOLL"))
    )
    encounters, events, _ = read(file, mapping=mapping)
    lactate = events[events["code"] == "LOCAL//LAC"].iloc[0]
    assert (lactate["concept"], lactate["unit"]) == ("lactate", "mmol/L")
    assert encounters["encounter_class"].tolist() == ["icu"]


def test_a_mapping_to_nothing_is_refused(tmp_path: Path):
    (tmp_path / "feed.hl7").write_bytes(message(header("ORU^R01"), PID))
    with pytest.raises(DataError, match=r"neither a concept of concepts\.csv"):
        read(tmp_path, mapping={"codes": {"LOCAL//LAC": "lactat"}})
    with pytest.raises(DataError, match="choose among ed, ward"):
        read(tmp_path, mapping={"places": {"Ward 4": "sauna"}})
    with pytest.raises(DataError, match="known tables are codes"):
        read(tmp_path, mapping={"code": {}})


def test_the_header_says_what_a_receiver_needs():
    said = hl7v2.parse(message(header("ADT^A08^ADT_A01"), "EVN|A08", PID)).header
    assert (said.kind, said.version, said.control_id) == ("ADT^A08", "2.5.1", "C1")
    assert (said.sending_application, said.sending_facility, said.time) == (
        "LAB",
        "NORTH",
        at("20260112101500"),
    )


def test_in_the_oldest_version_the_event_segment_names_the_trigger():
    old = message(r"MSH|^~\&|A|B|||20260110090000||ADT|1|P|2.1", "EVN|A01|20260110090000", PID, visit())
    assert hl7v2.parse(old).header.kind == "ADT^A01"


def test_any_encoding_characters_will_do():
    usual = message(header("ORU^R01", charset=""), PID, visit(), obr(), obx(r"a\T\b", kind="ST")).decode()
    other = usual.translate(str.maketrans("|^~\\&", "#*!?%"))
    assert only(hl7v2.parse(other.encode())).text_value == "a%b"
    assert only(hl7v2.parse(other.encode())).code == "LOINC//2524-7"


def test_contradictory_encoding_characters_are_replaced_and_said():
    raw = message(r"MSH|^~\\&|A|B|||20260110||ORU^R01|1|P|2.6", PID, visit(), obr(), obx("1"))
    parsed = hl7v2.parse(raw)
    assert "encoding_characters" in reasons(parsed)
    assert only(parsed).numeric_value == 1


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [
        (r"\F\\S\\T\\R\\E\ ", "|^&~\\"),
        (r"\X41C3A9\ ", "Aé"),
        (r"\H\bold\N\ ", "bold"),
        (r"\Zfoo\ ", r"\Zfoo\ ".strip()),
    ],
)
def test_escape_sequences_are_resolved(escaped: str, plain: str):
    assert only(oru(obx(escaped.strip(), kind="ST"))).text_value == plain


@pytest.mark.parametrize(
    ("charset", "codec", "problem"),
    [
        ("UNICODE UTF-8", "utf-8", None),
        ("8859/1", "latin-1", None),
        ("8859/2", "iso8859-2", None),
        ("UNICODE UTF-16", "utf-16", None),
        ("", "utf-8", None),
        ("ASCII", "utf-8", "charset_wrong"),
        ("UNICODE UTF-8", "latin-1", "charset_wrong"),
        ("", "latin-1", "charset_unknown"),
    ],
)
def test_character_sets(charset: str, codec: str, problem: str | None):
    text = message(header("ORU^R01", charset=charset), PID, visit(), obr(), obx("é", kind="ST")).decode()
    parsed = hl7v2.parse(text.encode(codec))
    assert only(parsed).text_value == "é"
    assert [r for r in reasons(parsed) if r.startswith("charset")] == ([problem] if problem else [])


def test_segments_of_a_sites_own_are_kept():
    parsed = hl7v2.parse(message(header("ORU^R01"), PID, "ZZZ|1|own"))
    assert parsed.segments[-1] == "ZZZ|1|own"


def test_a_text_broken_over_lines_belongs_to_its_segment():
    parsed = oru(obx("two", kind="TX").replace("two", "two\rlines"))
    assert only(parsed).text_value == "two\nlines"
    assert "stray_line" in reasons(parsed)


@pytest.mark.parametrize(
    "raw", [b"", b"\x0b\x1c\r", b"hello", b"MSH", b"MSH|", b"PID|1", b"\xff\xfe", b"\x00" * 9]
)
def test_what_is_no_message_is_said(raw: bytes):
    parsed = hl7v2.parse(raw)
    assert parsed.events == []
    assert parsed.problems


def test_problems_never_repeat_a_value():
    parsed = oru(obx("SECRETVALUE"), obx("SECRETVALUE", status="SECRETVALUE"))
    assert "SECRETVALUE" not in str(parsed.problems)


# Admissions, transfers, discharges ------------------------------------------------------------------------------------


def adt(trigger: str, when: str, *rest: str, event: str = "", **about: str) -> bytes:
    evn = f"EVN|{trigger}|{when}||||{event}"
    return message(header(f"ADT^{trigger}", when), evn, PID, visit(**about), *rest)


STORY = (
    adt("A01", "20260110090500", kind="I", place="Ward 4"),
    adt("A02", "20260111120000", place="ICU"),
    adt("A02", "20260112120000", place="Ward 4"),
    adt("A03", "20260113120000", place="Ward 4", left="20260113113000"),
)


def test_a_stay_is_told_by_its_moves(tmp_path: Path):
    (tmp_path / "adt.hl7").write_bytes(b"".join(STORY))
    encounters, events, account = read(tmp_path)
    stay = encounters.iloc[0]
    assert (stay["encounter_id"], stay["subject_id"], stay["encounter_class"]) == (
        "V5@NORTH",
        "77@NORTH",
        "icu",
    )
    assert (stay["sex"], stay["specialty"], stay["unit"]) == ("female", "MED", "Ward 4")
    assert stay["age_years"] == pytest.approx(75.61, abs=0.01)
    assert stay["hospital_admission_time"] == pd.Timestamp("2026-01-10T09:00Z")
    assert stay["icu_admission_time"] == pd.Timestamp("2026-01-11T12:00Z")
    moves = events[events["concept"] == "location"].sort_values("time")
    assert moves["text_value"].tolist() == ["ward", "icu", "ward", "left"]
    assert set(events["concept"]) == {"hospital_admission", "location", "icu_discharge", "hospital_discharge"}
    out = events.set_index("concept").loc["icu_discharge"]
    assert (out["time"], out["numeric_value"]) == (pd.Timestamp("2026-01-12T12:00Z"), 1.0)
    assert account.rows["ADT^A02"] == 2
    validate(events)


def test_an_admission_is_known_when_it_was_recorded(tmp_path: Path):
    admission = hl7v2.parse(STORY[0]).events[0]
    assert (admission.time, admission.available_time) == (at("20260110090000"), at("20260110090500"))


def test_cancelled_admission_discharge_and_transfer_take_back_what_they_cancel(tmp_path: Path):
    told = {(f.code, f.source_id) for raw in STORY[:2] for f in hl7v2.parse(raw).events}
    told |= {(f.code, f.source_id) for f in hl7v2.parse(STORY[3]).events}
    taken_back = [
        *hl7v2.parse(adt("A11", "20260110100000")).events,
        *hl7v2.parse(adt("A12", "20260111130000", event="20260111120000")).events,
        *hl7v2.parse(adt("A13", "20260113130000")).events,
    ]
    assert {f.status for f in taken_back} == {"deleted"}
    assert told <= {(f.code, f.source_id) for f in taken_back}


def test_a_cancelled_transfer_that_names_no_time_is_the_latest(tmp_path: Path):
    (tmp_path / "adt.hl7").write_bytes(STORY[0] + STORY[1] + adt("A12", "20260111130000", place="Ward 4"))
    encounters, events, account = read(tmp_path)
    assert encounters["encounter_class"].tolist() == ["ward"]
    moves = events[events["text_value"].isin(["icu", "ward"]) & events["source_id"].str.contains("#move")]
    assert moves["source_id"].nunique() == 1
    assert any("EVN-6" in note for note in account.notes)


def test_a_cancelled_discharge_reopens_the_stay(tmp_path: Path):
    late = message(header("ORU^R01"), PID, "PV1|1|I", obr(taken="20260114080000"), obx("2"))
    (tmp_path / "adt.hl7").write_bytes(b"".join(STORY) + late)
    assert read(tmp_path)[2].left["ORU^R01", "no_encounter"] == 1
    (tmp_path / "adt.hl7").write_bytes(b"".join(STORY) + adt("A13", "20260113130000") + late)
    assert read(tmp_path)[2].left["ORU^R01", "no_encounter"] == 0


def test_death_is_told_at_discharge():
    raw = adt("A03", "20260113120000", left="20260113113000").replace(
        b"19500601|F", b"19500601|F" + b"|" * 21 + b"20260113112000|Y"
    )
    death = next(f for f in hl7v2.parse(raw).events if f.concept == "death")
    assert (death.time, death.numeric_value) == (at("20260113112000"), 1.0)


def test_an_arrival_in_the_emergency_department(tmp_path: Path):
    events = hl7v2.parse(adt("A04", "20260110090500", kind="E", place="ED")).events
    assert [(f.concept, f.text_value) for f in events] == [("ed_arrival", None), ("location", "ed")]


@pytest.mark.parametrize(
    ("trigger", "kind"), [("A40", "subject"), ("A34", "subject"), ("A45", "visit_moved")]
)
def test_merges_name_the_prior_and_the_surviving_identity(trigger: str, kind: str):
    parsed = hl7v2.parse(message(header(f"ADT^{trigger}"), f"EVN|{trigger}", PID, "MRG|55^^^NORTH^MR"))
    assert parsed.merges == [Merge(kind, "55@NORTH", "77@NORTH")]


def test_merged_patients_are_one_from_the_beginning(tmp_path: Path):
    early = message(
        header("ORU^R01"), PID.replace("|77^", "|55^"), visit().replace("V5^", "V4^"), obr(), obx("2")
    )
    merge = message(header("ADT^A40"), "EVN|A40", PID, "MRG|55^^^NORTH^MR")
    (tmp_path / "feed.hl7").write_bytes(early + STORY[0] + merge)
    encounters, events, _ = read(tmp_path)
    assert set(events["subject_id"]) == set(encounters["subject_id"]) == {"77@NORTH"}
    assert sorted(encounters["encounter_id"]) == ["V4@NORTH", "V5@NORTH"]


def test_a_result_without_a_visit_goes_to_the_stay_that_contains_it(tmp_path: Path):
    plain = message(header("ORU^R01"), PID, obr(), obx("2"))
    (tmp_path / "feed.hl7").write_bytes(plain + b"".join(STORY))
    _, events, account = read(tmp_path)
    assert events.loc[events["code"] == "LOINC//2524-7", "encounter_id"].tolist() == ["V5@NORTH"]
    assert not account.left


def test_a_visit_of_another_patient_is_no_home(tmp_path: Path):
    stranger = message(header("ORU^R01"), PID.replace("|77^", "|88^"), visit(), obr(), obx("2"))
    (tmp_path / "feed.hl7").write_bytes(STORY[0] + stranger)
    assert read(tmp_path)[2].left["ORU^R01", "encounter_of_another_subject"] == 1


# Drugs and cultures ---------------------------------------------------------------------------------------------------


def test_an_infusion_is_its_rate_and_its_end():
    rxa = "RXA|0|1|20260112080000|20260112100000|N1^Norepinephrine 4 mg^L|0.1|ug/kg/min"
    parsed = hl7v2.parse(message(header("RAS^O17"), PID, visit(), "ORC|RE|P1|F1", rxa))
    assert [(f.concept, f.numeric_value, f.unit, f.time) for f in parsed.events] == [
        ("norepinephrine", 0.1, "ug/kg/min", at("20260112080000")),
        ("norepinephrine", 0.0, "ug/kg/min", at("20260112100000")),
    ]


def test_antimicrobials_ordered_and_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "features.sources.therapies.antimicrobial", lambda name, route: "x" if "cillin" in name else None
    )
    order = (
        "ORC|NW|P1|||||||20260112080000",
        "RXO|1^Ampicillin^L",
        "RXE||1^Ampicillin 2 g^L|2||g",
        "RXR|IV",
    )
    ordered = only(hl7v2.parse(message(header("RDE^O11"), PID, visit(), *order)))
    assert (ordered.code, ordered.concept, ordered.numeric_value) == (
        "HL7_DRUG//Ampicillin 2 g",
        "antibiotic",
        1.0,
    )
    assert (ordered.time, ordered.text_value) == (at("20260112080000"), "Ampicillin 2 g")
    given_ = ("ORC|RE|P1", "RXA|0|1|20260112083000||1^Ampicillin 2 g^L|2|g")
    assert only(hl7v2.parse(message(header("RAS^O17"), PID, visit(), *given_))).time == at("20260112083000")
    refused = ("ORC|RE|P1", "RXA|0|1|20260112083000||1^Ampicillin^L|2|g" + "|" * 13 + "RE")
    assert reasons(hl7v2.parse(message(header("RAS^O17"), PID, visit(), *refused))) == ["not_given"]
    cancelled = ("ORC|CA|P1|||||||20260112080000", *order[1:])
    assert only(hl7v2.parse(message(header("RDE^O11"), PID, visit(), *cancelled))).status == "deleted"
    stopped = ("ORC|DC|P1|||||||20260112080000", *order[1:])
    assert reasons(hl7v2.parse(message(header("RDE^O11"), PID, visit(), *stopped))) == ["not_placed"]


def test_a_culture_is_known_when_taken_and_its_growth_when_reported():
    order = obr(code="600-7^Bacteria identified in Blood by Culture^LN", known="20260114090000")
    grown = oru(obx("E. coli", kind="ST", code="600-7^Organism^LN"), order=order)
    by = {f.concept: f for f in grown.events}
    assert set(by) == {"culture", "blood_culture", "positive_culture"}
    assert by["culture"].available_time == by["culture"].time == at("20260112080000")
    assert by["positive_culture"].available_time == at("20260114090000")
    nothing = oru(obx("No growth after 5 days", kind="ST", code="600-7^Organism^LN"), order=order)
    assert {f.concept for f in nothing.events} == {"culture", "blood_culture"}


def test_a_culture_is_known_by_its_result_too_and_an_order_alone_has_taken_nothing():
    alone = oru(obx("E. coli", kind="ST", code="600-7^Bacteria identified^LN"), obx("2.1"))
    assert [f.concept for f in alone.events] == ["culture", "blood_culture", "positive_culture", ""]
    asked = obr(code="600-7^Blood culture^LN", taken="")
    parsed = hl7v2.parse(message(header("ORM^O01"), PID, visit(), "ORC|NW|P1", asked))
    assert parsed.events == []
    assert reasons(parsed) == ["no_time"]


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spell",
    [
        lambda parts: b"".join(b"\x0b" + p + b"\x1c\r" for p in parts),
        lambda parts: b"\n\n".join(parts),
        lambda parts: b"".join(parts).replace(b"\r", b"\n"),
        lambda parts: b"".join(parts).replace(b"\r", b"\r\n"),
        lambda parts: b"\xef\xbb\xbf" + b"".join(parts),
        lambda parts: b"FHS|^~\\&|A\rBHS|^~\\&|A\r" + b"".join(parts) + b"BTS|4\rFTS|1\r",
        lambda parts: b"".join(parts).decode().encode("utf-16"),
    ],
    ids=["mllp", "blank lines", "LF", "CRLF", "BOM", "batch", "UTF-16"],
)
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_messages_are_found_however_they_are_separated(tmp_path: Path, spell, chunk: int, monkeypatch):
    monkeypatch.setattr(hl7v2_grammar, "CHUNK", chunk if spell([b"MSH"])[:2] != b"\xff\xfe" else 64)
    (tmp_path / "feed.hl7").write_bytes(spell(STORY))
    _, events, account = read(tmp_path)
    assert sum(n for kind, n in account.rows.items() if kind.startswith("ADT")) == 4
    assert len(events) == 7


def test_gzip_and_folders_are_read_and_other_files_left(tmp_path: Path):
    (tmp_path / "a.hl7.gz").write_bytes(gzip.compress(STORY[0]))
    (tmp_path / "b.txt").write_text("a letter, not a message")
    _, events, account = read(tmp_path)
    assert len(events) == 2
    assert account.left["file", "not_hl7"] == 1


def test_a_packed_file_that_is_cut_short_is_refused(tmp_path: Path):
    (tmp_path / "a.hl7.gz").write_bytes(gzip.compress(b"".join(STORY) * 50)[:-20])
    with pytest.raises(DataError, match=r"a\.hl7\.gz could not be read"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n"])
def test_files_without_a_message_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "feed.hl7").write_bytes(content)
    with pytest.raises(DataError, match="begins with MSH"):
        read(tmp_path)
    with pytest.raises(DataError, match="No HL7 v2 at"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no time zone"):
        read(tmp_path, timezone="Mars/Olympus")


def test_a_file_that_never_ends_a_message_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hl7v2_grammar, "LONGEST", 1000)
    with pytest.raises(DataError, match="without a new message"):
        list(hl7v2_grammar.split(iter([b"MSH|^~\\&|" + b"x" * 500] * 4)))


def test_every_row_makes_an_event_or_is_counted(tmp_path: Path):
    results = message(header("ORU^R01"), PID, visit(), obr(), obx("2"), obx(""), obx("3", status="I"))
    (tmp_path / "feed.hl7").write_bytes(b"".join(STORY) + results + adt("A08", "20260112090000"))
    _, _, account = read(tmp_path)
    assert account.rows["OBX"] == 3
    assert account.events["ORU^R01"] == 1
    assert sum(n for (table, _), n in account.left.items() if table == "OBX") == 2
    assert account.left["ADT^A08", "about_the_stay"] == 1


def test_what_was_known_then_can_be_told_again_after_a_correction(tmp_path: Path):
    """Result at 10:15, corrected at 12:00, withdrawn at 15:00: three answers to three times of asking."""
    told = [("2.1", "F", "20260112101500"), ("3.2", "C", "20260112120000"), ("", "D", "20260112150000")]
    raw = [message(header("ORU^R01", sent), PID, visit(), obr(), obx(v, status=s)) for v, s, sent in told]
    (tmp_path / "feed.hl7").write_bytes(b"".join(raw))
    _, events, _ = read(tmp_path)
    times = pd.to_datetime(
        ["2026-01-12T10:00Z", "2026-01-12T11:00Z", "2026-01-12T13:00Z", "2026-01-12T16:00Z"]
    )
    asked = pd.DataFrame({"encounter_id": "V5@NORTH", "prediction_time": times.as_unit("us")})
    last = windows.build(clean.clean(events)[0], asked, [windows.Window("lactate", "last", STAY_US)])[:, 0]
    assert last == pytest.approx([math.nan, 2.1, 3.2, math.nan], nan_ok=True)


# Whatever comes -------------------------------------------------------------------------------------------------------

WHOLE = STORY[3] + message(header("ORU^R01"), PID, visit(), obr(), obx("2.1"), obx("<^5", kind="SN"))
ODD = [
    b"|",
    b"^",
    b"~",
    b"\\",
    b"&",
    b"\r",
    b"\n",
    b"\x0b",
    b"\x1c\r",
    b"\x00",
    b"\xff\xfe",
    b'""',
    b"MSH|",
    b"9999",
]


@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_any_bytes_give_an_answer(raw: bytes):
    assert hl7v2.parse(raw).problems or raw.lstrip(b"\x0b\x1c\r\n\t ").startswith(
        (b"MSH", b"M\x00", b"\xef\xbb\xbf")
    )


@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_no_mutation_of_a_message_is_an_error(seed: int):
    rng, raw = random.Random(seed), bytearray(WHOLE)
    for _ in range(rng.randint(1, 12)):
        start = rng.randrange(len(raw) + 1)
        stop = min(len(raw), start + rng.randrange(30))
        raw[start:stop] = rng.choice(
            [rng.choice(ODD), bytes(raw[start:stop][::-1]), bytes(rng.randrange(256) for _ in range(3))]
        )
    for event in hl7v2.parse(bytes(raw)).events:
        assert event.time != NAT
        assert event.available_time == NAT or event.available_time >= event.time
        assert not math.isinf(event.numeric_value)


@given(st.lists(st.integers(1, len(WHOLE) - 1), max_size=6))
def test_where_a_stream_is_cut_changes_nothing(cuts: list[int]):
    edges = [0, *sorted(set(cuts)), len(WHOLE)]
    chunks = [WHOLE[a:b] for a, b in pairwise(edges)]
    assert list(hl7v2_grammar.split(iter(chunks))) == list(hl7v2_grammar.split(iter([WHOLE])))


@pytest.mark.data
def test_every_message_of_the_open_collections_is_read(data_dir: Path):
    encounters, events, account = read(data_dir / "interop" / "hl7v2")
    assert account.rows["ADT^A01"] >= 400
    assert account.rows["ORU^R01"] >= 610
    assert len(events) > 4_000
    assert set(events["encounter_id"]) <= set(encounters["encounter_id"])
    assert encounters["encounter_id"].is_unique
    assert not (events["available_time"] < events["time"]).any()
    validate(events[events["available_time"].notna()])
