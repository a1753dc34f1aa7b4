"""An archive gives back what was cleaned, bit for bit, and any MEDS consumer may read it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meds import CodeMetadataSchema, DataSchema, DatasetMetadataSchema, SubjectSplitSchema

from features import archive
from features.clean import REASONS, UNMAPPED, clean, contradictions
from features.clock import UTC_US
from features.errors import DataError
from features.events import EVENT_COLUMNS, encounter_events
from features.featureset import FeatureSet
from features.sources.batch import Batch, ReadAccount, no_encounters
from features.sources.registry import reader
from features.windows import Window

Rows = Sequence[dict[str, Any]]
Tell = Callable[[Rows], pd.DataFrame]
FEATURES = FeatureSet(
    tuple(
        Window.parse(c, s)
        for c in ("heart_rate", "lactate", "age_years")
        for s in ("last", "count_6h", "mean_6h", "std", "delta", "first", "hours_since_last")
    )
)


def stays(*encounters: str, subject: str = "", age: float = 60.0) -> pd.DataFrame:
    """Encounters admitted at 09:00, each of a person of its own unless a subject is named."""
    nine = pd.Series([pd.Timestamp("2026-05-01T09:00Z")] * len(encounters)).astype(UTC_US)
    table = no_encounters().reindex(range(len(encounters)))
    return table.assign(
        encounter_id=list(encounters),
        subject_id=[subject or f"person of {e}" for e in encounters],
        encounter_class="ward",
        age_years=age,
        sex="female",
        hospital_admission_time=nine,
    )


def written(folder: Path, *batches: Batch, **how: Any) -> archive.ArchiveAccount:
    return archive.write(iter(batches), folder, ReadAccount(), **how)


def whole(folder: Path) -> pd.DataFrame:
    return pd.concat([s.events.astype({"encounter_id": "str"}) for s in archive.read(folder)])


def in_order(events: pd.DataFrame) -> pd.DataFrame:
    """Text columns as text, rows in an order of their own, for comparison."""
    text = [c for c in EVENT_COLUMNS if c not in ("time", "available_time", "numeric_value")]
    plain = events.astype(dict.fromkeys(text, "object"))
    plain = plain.where(plain.notna(), None).assign(numeric_value=plain["numeric_value"].astype(float))
    by = ["encounter_id", "time", "available_time", "code", "source_id", "numeric_value"]
    return plain.sort_values(by, key=lambda c: c.astype(str)).reset_index(drop=True)


def without_resends(events: pd.DataFrame) -> pd.DataFrame:
    """Final reports with an identity once each; compared by ``repr``, since -0.0 is not 0.0."""
    said = [tuple(map(repr, row)) for row in events.itertuples(index=False)]
    final = (events["status"] == "final") & events["source_id"].notna()
    met: set[tuple[str, ...]] = set()
    first = [not f or (s not in met and not met.add(s)) for s, f in zip(said, final, strict=True)]
    return events[first].reset_index(drop=True)


# ------------------------------------------------------------ round trip


awkward = st.sampled_from([0.0, -0.0, 0.1, 36.8, 2**24 + 1.0, 1e-45, 7.25, 100.1])
row = st.fixed_dictionaries(
    {
        "encounter_id": st.sampled_from(["a", "b", "c", "42", "42x", "ü"]),
        "time": st.integers(0, 12).map(float),
        "available": st.integers(0, 15).map(float),
        "concept": st.sampled_from(["heart_rate", "lactate"]),
        "value": awkward,
        "status": st.sampled_from(["final", "final", "preliminary", "corrected", "deleted"]),
        "source_id": st.sampled_from([None, "x", "y"]),
        "text": st.sampled_from([None, "", "as written"]),
    }
)


@settings(max_examples=25)
@given(
    rows=st.lists(row, min_size=1, max_size=30),
    cut=st.integers(0, 30),
    shard=st.integers(1, 40),
    group=st.integers(1, 20),
    threads=st.integers(1, 2),
)
def test_what_is_read_equals_what_was_cleaned(
    tell: Tell,
    tmp_path_factory: pytest.TempPathFactory,
    rows: Rows,
    cut: int,
    shard: int,
    group: int,
    threads: int,
) -> None:
    events, about = tell(rows), stays(*sorted({r["encounter_id"] for r in rows}))
    folder = tmp_path_factory.mktemp("archive") / "meds"
    parts = Batch(about, events.iloc[:cut]), Batch(no_encounters(), events.iloc[cut:])
    written(folder, *parts, shard_rows=shard, group_rows=group, threads=threads)
    expected, _ = clean(pd.concat([events, encounter_events(about)], ignore_index=True))
    expected = without_resends(expected)
    back = whole(folder)
    pd.testing.assert_frame_equal(in_order(back), in_order(expected), check_dtype=False, check_exact=True)
    np.testing.assert_array_equal(
        np.signbit(in_order(back)["numeric_value"]), np.signbit(in_order(expected)["numeric_value"])
    )
    when = pd.DataFrame({"encounter_id": ["a", "b", "42x"] * 3, "hour": np.repeat([5, 9, 20], 3)})
    when["prediction_time"] = (
        pd.Timestamp("2026-05-01T09:00Z") + pd.to_timedelta(when["hour"], unit="h")
    ).astype(UTC_US)
    np.testing.assert_array_equal(FEATURES.build(back, when), FEATURES.build(expected, when))


def test_reports_of_one_fact_keep_the_order_in_which_they_came(tell: Tell, tmp_path: Path) -> None:
    told = [
        {"time": 3, "available": 5, "value": 80, "status": "corrected", "source_id": "x"},
        {"time": 1, "available": 5, "value": 70, "status": "corrected", "source_id": "x"},
    ]
    written(tmp_path / "meds", Batch(stays("stay"), tell(told)))
    back = whole(tmp_path / "meds")
    assert back.loc[back["concept"] == "heart_rate", "numeric_value"].tolist() == [80, 70]


def test_encounters_come_back_with_their_shard_even_without_events(tell: Tell, tmp_path: Path) -> None:
    about = stays(*(f"stay {k}" for k in range(40)))
    quiet = stays("nobody measured", age=np.nan).assign(sex="")
    written(
        tmp_path / "meds",
        Batch(about, tell([{"encounter_id": "stay 3", "time": 1, "value": 70}])),
        Batch(quiet, tell([])),
        shard_rows=20,
        group_rows=4,
    )
    shards = list(archive.read(tmp_path / "meds"))
    assert len(shards) > 10
    back = pd.concat([s.encounters for s in shards])
    assert sorted(back["encounter_id"]) == sorted([*about["encounter_id"], "nobody measured"])
    for shard in shards:
        assert set(shard.events["encounter_id"].dropna()) <= set(shard.encounters["encounter_id"])
    assert back["hospital_admission_time"].dtype == UTC_US


def test_any_number_of_threads_writes_the_same_bytes(tell: Tell, tmp_path: Path) -> None:
    rows = [{"encounter_id": f"e{k % 37}", "time": k % 11, "value": 60 + k % 50} for k in range(400)]
    batch = Batch(stays(*(f"e{k}" for k in range(37))), tell(rows))
    for threads in (1, 3):
        written(tmp_path / str(threads), batch, shard_rows=50, group_rows=20, threads=threads)
    one = sorted(p.relative_to(tmp_path / "1") for p in (tmp_path / "1").rglob("*") if p.is_file())
    assert len(one) > 10
    for path in one:
        assert (tmp_path / "1" / path).read_bytes() == (tmp_path / "3" / path).read_bytes()


# ------------------------------------------------------------ MEDS


@pytest.fixture
def meds(tell: Tell, tmp_path: Path) -> Path:
    rows = [
        {
            "encounter_id": f"e{k % 5}",
            "time": 30 - k % 11,
            "value": 36.6,
            "concept": "temperature",
            "text": "warm",
        }
        for k in range(60)
    ]
    splits = pd.DataFrame(
        {"subject_id": [f"person of e{k}" for k in range(5)], "split": ["train"] * 4 + ["held_out"]}
    )
    when = pd.Timestamp("2026-05-01T09:00Z").to_pydatetime()
    written(
        tmp_path / "meds",
        Batch(stays(*(f"e{k}" for k in range(5))), tell(rows)),
        group_rows=10,
        splits=splits,
        created_at=when,
    )
    return tmp_path / "meds"


def test_our_archive_passes_the_schemas_of_meds(meds: Path) -> None:
    for file in (meds / "data").glob("*.parquet"):
        DataSchema.validate(pq.read_table(file))
    CodeMetadataSchema.validate(pq.read_table(meds / "metadata" / "codes.parquet"))
    SubjectSplitSchema.validate(pq.read_table(meds / "metadata" / "subject_splits.parquet"))
    about = json.loads((meds / "metadata" / "dataset.json").read_text())
    DatasetMetadataSchema.validate(about)
    columns = set(pq.read_schema(meds / "data" / "00000.parquet").names)
    assert {c for key, names in about.items() if key.endswith("_columns") for c in names} <= columns


def test_subjects_are_contiguous_in_one_file_and_sorted_by_time(meds: Path) -> None:
    table = pq.read_table(meds / "data").to_pandas()
    assert (table.groupby("subject_id")["time"].apply(lambda t: t.is_monotonic_increasing)).all()
    assert (table["subject_id"].diff() != 0).sum() == table["subject_id"].nunique() == 5


def test_every_code_is_described(meds: Path) -> None:
    codes = pq.read_table(meds / "metadata" / "codes.parquet").to_pandas()
    data = pq.read_table(meds / "data").to_pandas()
    assert set(data["code"]) == set(codes["code"])
    assert codes.set_index("code").loc["WARDCAST//temperature", "description"] == "Temperature"


def test_a_code_with_two_concepts_stands_once(tell: Tell, tmp_path: Path) -> None:
    rows = [{"time": k, "value": 80, "code": "LOCAL//x", "concept": c} for k, c in enumerate(("map", "sbp"))]
    written(tmp_path / "meds", Batch(stays("stay"), tell(rows)))
    codes = pq.read_table(tmp_path / "meds" / "metadata" / "codes.parquet").to_pandas().set_index("code")
    assert codes.index.is_unique
    assert list(codes.loc["LOCAL//x", "parent_codes"]) == ["WARDCAST//map", "WARDCAST//sbp"]


def test_split_subjects_are_those_of_the_data(meds: Path) -> None:
    split = pq.read_table(meds / "metadata" / "subject_splits.parquet").to_pandas()
    assert set(split["subject_id"]) == set(pq.read_table(meds / "data").to_pandas()["subject_id"])


def test_a_number_stays_that_number_and_other_names_are_hashed() -> None:
    assert archive.subject_number("10003700") == 10003700
    assert archive.subject_number("-7") == -7
    hashed = [archive.subject_number(s) for s in ("007", "p000001", "99999999999999999999", "")]
    assert len({*hashed}) == 4
    assert all(0 <= h < 2**63 for h in hashed)
    assert archive.subject_number("p000001") == 1853298600191290094, (
        "identifiers may not change between versions"
    )


# ------------------------------------------------------------ accounts


def test_unmapped_codes_are_kept_and_counted(tell: Tell, tmp_path: Path) -> None:
    rows = [{"time": 1, "value": 5, "code": "LOCAL//odd", "concept": ""}, {"time": 2, "value": 80}]
    account = written(tmp_path / "kept", Batch(stays("stay"), tell(rows)))
    back = whole(tmp_path / "kept")
    odd = back[back["code"] == "LOCAL//odd"]
    assert odd["concept"].isna().tolist() == [True]
    assert odd["numeric_value"].tolist() == [5]
    assert account.read == account.written == len(back)
    assert account.by_code["LOCAL//odd", ""]["read"] == 1
    without = written(tmp_path / "without", Batch(stays("stay"), tell(rows)), keep_unmapped=False)
    assert without.written == account.written - 1
    assert without.by_code["LOCAL//odd", ""]["unknown_concept"] == 1


def test_what_belongs_to_nobody_or_no_instant_is_counted(tell: Tell, tmp_path: Path) -> None:
    events = tell([{"time": k, "value": 80} for k in range(4)])
    events.loc[0, "time"] = pd.NaT
    events.loc[1, "subject_id"] = None
    events.loc[2, "encounter_id"] = None
    account = written(tmp_path / "meds", Batch(stays("stay"), events))
    assert {r: n for (t, r), n in account.source.left.items() if t == "archive"} == {
        "no_time": 1,
        "no_subject": 1,
        "no_encounter": 1,
    }
    assert account.read == account.written + 3


def test_the_policy_fills_what_the_source_does_not_say(tell: Tell, tmp_path: Path) -> None:
    events = tell([{"time": 1, "value": 2, "concept": "lactate"}, {"time": 1, "value": 9, "concept": "bun"}])
    events["available_time"] = pd.Series([pd.NaT] * 2, dtype=UTC_US)
    account = written(tmp_path / "meds", Batch(stays("stay"), events))
    back = whole(tmp_path / "meds").set_index("concept")
    delay = (back["available_time"] - back["time"]) / pd.Timedelta("1min")
    assert account.filled == 2
    assert delay[["lactate", "bun"]].tolist() == [15, 60]


def test_what_is_sent_again_word_for_word_is_one_fact(tell: Tell, tmp_path: Path) -> None:
    first = {"time": 1, "available": 2, "value": 70, "source_id": "x"}
    told = [
        first,
        {**first},
        {**first, "value": 71},
        {**first, "available": 3},
        {**first, "concept": "lactate", "value": 1.5},
        {**first, "source_id": "y"},
        {**first, "source_id": None},
        {**first, "source_id": None},
        {**first, "text": "as written"},
        {**first, "encounter_id": "another"},
    ]
    about = stays("stay", "another", subject="one person")
    made = written(tmp_path / "meds", Batch(about, tell(told[:1])), Batch(no_encounters(), tell(told[1:])))
    back = whole(tmp_path / "meds")
    assert (back["source_id"] == "x").sum() == 6
    assert len(back) == made.written == made.read - 1
    assert sum(n[archive.RESENT] for n in made.by_code.values()) == 1
    assert [k[1] for k, n in made.by_code.items() if n[archive.RESENT]] == ["heart_rate"]


def test_a_correction_is_never_taken_for_a_resend(tell: Tell, tmp_path: Path) -> None:
    """A final 70, corrected to 80, and the old report once more: what stands is 80."""
    final = {"time": 1, "available": 2, "value": 70, "source_id": "x"}
    told = [final, {**final, "value": 80, "status": "corrected"}, {**final}]
    told += [{**final, "value": 80, "status": "corrected"}]
    written(tmp_path / "meds", Batch(stays("stay"), tell(told)))
    back = whole(tmp_path / "meds")
    assert back.loc[back["source_id"] == "x", "numeric_value"].tolist() == [70, 80, 80]


def test_facts_at_odds_are_written_without_their_concept(tell: Tell, tmp_path: Path) -> None:
    told = [
        {"time": 1, "code": "LOINC//8480-6", "concept": None, "value": 90},
        {"time": 1, "code": "LOINC//8478-0", "concept": None, "value": 110, "unit": "mmHg"},
        {"time": 2, "code": "LOINC//8480-6", "concept": None, "value": 120},
        {"time": 2, "code": "LOINC//8478-0", "concept": None, "value": 90},
    ]
    halves = Batch(stays("stay"), tell(told[:1])), Batch(no_encounters(), tell(told[1:]))
    made = written(tmp_path / "meds", *halves)
    back = whole(tmp_path / "meds")
    back = back[back["code"].astype("str").str.startswith("LOINC")]
    assert back["concept"].isna().tolist() == [True, True, False, False]
    assert back["numeric_value"].tolist() == [90, 110, 120, 90]
    assert back["unit"].tolist() == ["mm[Hg]"] * 4
    assert made.by_code["LOINC//8478-0", "map"] == Counter(read=2, contradiction=1)
    assert made.by_code["LOINC//8480-6", "sbp"]["contradiction"] == 1
    assert made.written == made.read
    written(tmp_path / "as told", *halves, judge=False)
    assert whole(tmp_path / "as told")["concept"].notna().all()


def test_one_encounter_judged_alone_is_as_in_the_archive(tell: Tell, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    told = [
        {
            "time": int(rng.integers(4)),
            "available": int(rng.integers(4, 6)),
            "encounter_id": f"stay {k % 5}",
            "concept": str(rng.choice(["sbp", "map", "dbp", "heart_rate"])),
            "value": float(rng.integers(50, 120)),
            "source_id": f"s{k}",
        }
        for k in range(200)
    ]
    about = stays(*(f"stay {k}" for k in range(5)))
    written(tmp_path / "meds", Batch(about, tell(told)), shard_rows=60, group_rows=30)
    back = whole(tmp_path / "meds")
    kept = back[back["concept"].notna() & back["source_id"].ne("encounter")]
    online = [
        contradictions(clean(tell([r for r in told if r["encounter_id"] == s]))[0])[0]
        for s in about["encounter_id"]
    ]
    assert sorted(kept["source_id"]) == sorted(pd.concat(online)["source_id"])
    assert len(kept) < len(told)


def test_events_of_an_encounter_nobody_described_are_counted(tell: Tell, tmp_path: Path) -> None:
    account = written(tmp_path / "meds", Batch(no_encounters(), tell([{"time": 1, "value": 80}])))
    assert (account.orphans, account.written) == (1, 1)


def test_the_account_names_no_patient(tell: Tell, tmp_path: Path) -> None:
    written(
        tmp_path / "meds", Batch(stays("secret"), tell([{"encounter_id": "secret", "time": 1, "value": 1e9}]))
    )
    text = (tmp_path / "meds" / "metadata" / "wardcast.json").read_text()
    assert "secret" not in text
    assert archive.about(tmp_path / "meds")["account"]["by_code"][0]["code"]


# ------------------------------------------------------------ refusals


def test_a_run_that_fails_leaves_nothing_behind(tell: Tell, tmp_path: Path) -> None:
    def broken() -> Iterator[Batch]:
        yield Batch(stays("stay"), tell([{"time": 1, "value": 80}]))
        raise DataError("the source breaks off")

    with pytest.raises(DataError, match="breaks off"):
        archive.write(broken(), tmp_path / "meds", ReadAccount())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(DataError, match="Name a new one"):
        written(tmp_path)


def test_an_encounter_may_stand_in_one_batch_only(tell: Tell, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 encounters stand in the source more than once"):
        written(tmp_path / "meds", Batch(stays("stay"), tell([])), Batch(stays("stay"), tell([])))


def test_two_subjects_with_one_number_are_refused(
    tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "subject_number", lambda subject: 7)
    with pytest.raises(DataError, match="share one 64-bit number"):
        written(tmp_path / "meds", Batch(stays("a", "b"), tell([])))


def test_numbers_where_text_belongs_are_refused(tell: Tell, tmp_path: Path) -> None:
    events = tell([{"time": 1, "value": 80}, {"time": 2, "value": 80}])
    events["source_id"] = pd.Series(["a", 2], dtype=object)
    with pytest.raises(DataError, match="'source_id' mixes text"):
        written(tmp_path / "meds", Batch(stays("stay"), events))


def test_a_folder_of_another_house_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wardcast data convert --source meds"):
        archive.shards(tmp_path)


def test_a_lost_file_and_another_format_are_told(meds: Path) -> None:
    (meds / "encounters" / "00000.parquet").unlink()
    with pytest.raises(DataError, match="lacks 1 of its files"):
        archive.shards(meds)
    about = meds / "metadata" / "wardcast.json"
    about.write_text(about.read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(DataError, match="format 0, expected 1"):
        archive.shards(meds)


def test_a_damaged_file_is_named(meds: Path) -> None:
    (meds / "data" / "00000.parquet").write_bytes(b"no Parquet")
    with pytest.raises(DataError, match=r"00000\.parquet of the archive cannot be read"):
        list(archive.read(meds))


def test_a_large_bucket_is_split_by_more_bits(
    tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"encounter_id": f"e{k}", "time": 1, "value": 80} for k in range(300)]
    written(tmp_path / "meds", Batch(stays(*(f"e{k}" for k in range(300))), tell(rows)), shard_rows=3)
    back = whole(tmp_path / "meds")
    assert (back["concept"] == "heart_rate").sum() == 300
    sizes = [pq.read_metadata(f).num_rows for f in (tmp_path / "meds" / "data").glob("*.parquet")]
    assert max(sizes) == 3
    assert pa.compute.count_distinct(pq.read_table(tmp_path / "meds" / "data")["subject_id"]).as_py() == 300


# ------------------------------------------------------------ real sources


@pytest.mark.data
@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("mimic3", "mimic-iii-demo"),
        ("mimic4", "tinyehr/tinyehr_mimic_format"),
        ("clif", "mimic-iv-demo-clif/clif-2.1"),
        ("hl7v2", "interop/hl7v2/simhospital"),
    ],
)
def test_real_sources_become_archives_and_nothing_is_lost(
    data_dir: Path, tmp_path: Path, source: str, place: str
) -> None:
    account = ReadAccount()
    made = archive.write(reader(source)(data_dir / place, account), tmp_path / "first", account)
    useless = sum(
        n
        for counts in made.by_code.values()
        for reason, n in counts.items()
        if reason in REASONS and reason not in UNMAPPED
    )
    nowhere = sum(n for (table, _), n in made.source.left.items() if table == "archive")
    resent = sum(n[archive.RESENT] for n in made.by_code.values())
    assert made.read == made.written + useless + nowhere + resent
    assert made.orphans == 0
    for file in (tmp_path / "first" / "data").iterdir():
        DataSchema.validate(pq.read_table(file))
    CodeMetadataSchema.validate(pq.read_table(tmp_path / "first" / "metadata" / "codes.parquet"))
    again = ReadAccount()
    second = archive.write(reader("meds")(tmp_path / "first", again), tmp_path / "second", again)
    assert (second.written, second.encounters) == (made.written, made.encounters)
    by = ["encounter_id", "time", "code", "source_id", "numeric_value"]
    for one, two in zip(archive.read(tmp_path / "first"), archive.read(tmp_path / "second"), strict=True):
        left, right = (
            t.astype(dict.fromkeys(("encounter_id", "code"), "str")) for t in (one.events, two.events)
        )
        columns = [*by, "available_time"]
        pd.testing.assert_frame_equal(
            left.sort_values(columns)[columns].reset_index(drop=True),
            right.sort_values(columns)[columns].reset_index(drop=True),
            check_exact=True,
        )
