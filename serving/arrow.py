"""Scoring in bulk by columns: an Arrow stream of patients in, a stream of scores out.

One row a patient; ``events`` is a list of facts, each a final report of its own (corrections go by JSON). No object is
made of an event: hundreds of thousands are cleaned and laid out at once, by the tables and the code of every other
road.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pydantic import ValidationError

from features.clean import clean, contradictions
from features.featureset import FeatureSet
from serving.answers import Refusal, too_many_events
from serving.clock import to_us
from serving.ingest.events import AFTER, DUPLICATE, FUTURE, TOLERANCE_US, Fault, Item, fault_of, policy_us
from serving.schemas import EncounterIn, FieldProblem, explain_errors
from serving.scoring import Explain, Ints, Readings, Score
from serving.stateless import encounter_of, moment

STREAM: Final = "application/vnd.apache.arrow.stream"
INSTANT: Final = pa.timestamp("us", "UTC")
EVENT: Final = {
    "concept": pa.string(), "code": pa.string(), "time": INSTANT, "available_time": INSTANT, "value": pa.float64(),
    "text": pa.string(), "unit": pa.string(),
}  # fmt: skip
"""Fields of an event; as in JSON, ``time`` and one of ``concept`` and ``code``, and ``value`` or ``text``."""
ABOUT: Final = {
    name: INSTANT if name.endswith("_time") else pa.float64() if name == "age_years" else pa.string()
    for name in EncounterIn.model_fields
}
"""What a row says of its encounter; as in JSON."""
ASKED: Final = {"prediction_time": INSTANT, "explain": pa.bool_()}
ANSWER: Final = pa.schema(
    [
        ("encounter_id", pa.string()), ("prediction_id", pa.string()), ("prediction_time", INSTANT),
        ("status", pa.string()), ("probability", pa.float64()), ("raw", pa.float64()), ("threshold", pa.float64()),
        ("alert", pa.bool_()), ("interval", pa.list_(pa.float64())),
        ("indeterminate", pa.bool_()), ("reasons", pa.list_(pa.string())), ("used", pa.int32()),
        ("ignored", pa.list_(pa.struct({"event": pa.int32(), "field": pa.string(), "reason": pa.string()}))),
        ("problem", pa.string()),
    ]
)  # fmt: skip
FIRST: Final = to_us(datetime(1900, 1, 1, tzinfo=UTC))
LAST: Final = to_us(datetime(2200, 1, 1, tzinfo=UTC))
LONGEST_LABEL: Final = 4 * 128
"""Bytes of a text about an encounter, of which the contract takes 128 characters."""
LONGEST: Final = {"concept": 64, "code": 256, "text": 2000, "unit": 64}
_FINAL: Final = pd.Index(["final"], dtype=object)
NAT: Final = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Batch:
    """Patients of a stream that can be scored, with their place in it, and why the others cannot be.

    ``ignored`` holds, by place in the stream, the events that were left out: position and fault.
    """

    places: list[int]
    encounters: list[dict[str, Any]]
    when: list[int]
    explain: list[Explain]
    readings: Readings
    counts: npt.NDArray[np.int64]
    ignored: dict[int, list[tuple[int, Fault]]]
    refused: dict[int, FieldProblem]


def read_stream(body: bytes, most: int) -> pa.Table:
    """The table of an uncompressed Arrow IPC stream, every buffer checked, in the columns of the contract.

    Raises
    ------
    Refusal
        400 where it is no such stream, 413 where it has more than ``most`` rows, 422 where a column is unknown, missing
        or of another type.
    """
    try:
        _refuse_packed(body)
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        if table.num_rows > most:
            raise too_many_events(table.num_rows, most, "patients")
        table.validate(full=True)
    except (pa.ArrowException, OSError, struct.error, ValueError, IndexError):
        raise Refusal(
            400, "invalid_arrow", "The body is no Arrow IPC stream that can be read.",
            "Send one stream (pyarrow.ipc.new_stream), complete and uncompressed.",
        ) from None  # fmt: skip
    return _in_columns(table)


def _refuse_packed(body: bytes) -> None:
    """A packed buffer could unpack to any size, so what is read stays as large as what was sent."""
    source = pa.BufferReader(body)
    while source.tell() < source.size():
        try:
            message = pa.ipc.read_message(source)
        except EOFError:
            break
        flat = message.metadata.to_pybytes()
        if message.type == "record batch" and _field(flat, _table_of(flat), 3):
            raise Refusal(
                415, "packed_arrow", "The buffers of the stream are compressed.",
                "Write the stream without compression.",
            )  # fmt: skip


def _table_of(flat: bytes) -> int:
    """Where the header table of a flatbuffer message begins."""
    root = struct.unpack_from("<I", flat, 0)[0]
    at = root + _field(flat, root, 2)
    return int(at + struct.unpack_from("<I", flat, at)[0])


def _field(flat: bytes, table: int, slot: int) -> int:
    """Offset of a field within a flatbuffer table; 0 where it is not there."""
    vtable = table - struct.unpack_from("<i", flat, table)[0]
    place = 4 + 2 * slot
    size = struct.unpack_from("<H", flat, vtable)[0]
    return int(struct.unpack_from("<H", flat, vtable + place)[0]) if place < size else 0


def _in_columns(table: pa.Table) -> pa.Table:
    known = ABOUT | ASKED
    unknown = sorted(set(table.column_names) - set(known) - {"events"})
    absent = [name for name in ("encounter_id", "events") if name not in table.column_names]
    if unknown or absent or len(set(table.column_names)) < table.num_columns:
        raise _no_column(
            f"lacks {', '.join(absent)}" if absent else "has columns that are not known, or twice"
        )
    columns = {name: _cast(table[name], known[name], name) for name in table.column_names if name in known}
    return pa.table(columns | {"events": _events(table["events"])})


def _events(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not listed or not pa.types.is_struct(kind.value_type):
        raise _no_column("has events that are no list of structs")
    fields = [field.name for field in kind.value_type]
    if set(fields) - set(EVENT) or len(set(fields)) < len(fields) or "time" not in fields:
        raise _no_column("has events with fields that are not known, or without time")
    if not pa.types.is_timestamp(kind.value_type.field("time").type):
        # Nulls and codes of a dictionary take hardly a byte: a small body could hold any number of events.
        raise _no_column("has events with time that is no plain timestamp")
    for field in kind.value_type:
        _check_kind(field.type, EVENT[field.name], f"events.{field.name}")
    return column


def _cast(column: pa.ChunkedArray, wanted: pa.DataType, name: str) -> pa.ChunkedArray:
    _check_kind(column.type, wanted, name)
    if pa.types.is_dictionary(column.type) and _longest_label(column) > LONGEST_LABEL:
        raise _no_column(f"has values in {name} that are too long")  # each row would get its copy
    try:
        return column.cast(wanted)
    except pa.ArrowException:
        raise _no_column(f"has values in {name} that are no {wanted}") from None


def _longest_label(column: pa.ChunkedArray) -> int:
    """Bytes of the longest label of a dictionary of texts; 0 of other dictionaries."""
    labels = column.type.value_type
    if not (pa.types.is_string(labels) or pa.types.is_large_string(labels)):
        return 0
    longest = (pa.compute.max(pa.compute.binary_length(c.dictionary)).as_py() for c in column.chunks)
    return max((size or 0 for size in longest), default=0)


def _check_kind(found: pa.DataType, wanted: pa.DataType, name: str) -> None:
    """Refuse another kind of value; an instant must carry a time zone."""
    plain = found.value_type if pa.types.is_dictionary(found) else found
    same = {
        pa.string(): pa.types.is_string(plain) or pa.types.is_large_string(plain),
        pa.float64(): pa.types.is_floating(plain) or pa.types.is_integer(plain),
        INSTANT: pa.types.is_timestamp(plain) and plain.tz is not None,
        pa.bool_(): pa.types.is_boolean(plain),
    }[wanted]
    if not (same or pa.types.is_null(plain)):
        raise _no_column(f"has {name} as {plain}, expected {wanted}")


def _no_column(what: str) -> Refusal:
    return Refusal(
        422, "invalid_input", f"The table {what}.",
        f"Columns: {', '.join([*ABOUT, *ASKED])}, and events, a list of structs of {', '.join(EVENT)}. "
        "Instants are timestamps with a time zone.",
    )  # fmt: skip


def understand_table(table: pa.Table, features: FeatureSet, now: int, wall: int) -> Batch:
    """Read every patient of a table from :func:`read_stream`; as :func:`serving.stateless.understand`."""
    told, refused, when = _encounters(table, now, wall)
    places = sorted(told)
    lists = table["events"].combine_chunks()
    lengths = np.diff(np.asarray(lists.offsets)) * np.asarray(lists.is_valid())
    inside, owner, columns = _flat_events(lists, lengths)
    wrong = _contract_faults(owner, inside, columns)
    refused |= {place: problem for place, problem in wrong.items() if place not in refused}
    places = [place for place in places if place not in refused]
    rank = np.full(len(lengths), -1, dtype=np.int64)
    rank[places] = np.arange(len(places))
    chosen = np.flatnonzero(rank[owner] >= 0)
    part = {name: values.take(chosen).reset_index(drop=True) for name, values in columns.items()}
    explain: list[Explain] = ["auto"] * len(lengths)
    if "explain" in table.column_names:
        explain = ["auto" if wish is None else wish for wish in table["explain"].to_pylist()]
    encounters = [told[place] for place in places]
    moments = [when[place] for place in places]
    ignored, readings = _sift(part, rank[owner[chosen]], inside[chosen], encounters, moments, now, features)
    return Batch(
        places, encounters, moments, [explain[p] for p in places], readings,
        lengths[places], {places[k]: faults for k, faults in ignored.items()}, refused,
    )  # fmt: skip


def _encounters(
    table: pa.Table, now: int, wall: int
) -> tuple[dict[int, dict[str, Any]], dict[int, FieldProblem], dict[int, int]]:
    """By row: what is known of the encounter, or why it is refused, and the prediction time."""
    told: dict[int, dict[str, Any]] = {}
    refused: dict[int, FieldProblem] = {}
    when: dict[int, int] = {}
    rows = table.select([n for n in table.column_names if n in ABOUT]).to_pylist()
    asked = [None] * len(rows)
    if "prediction_time" in table.column_names:
        asked = table["prediction_time"].cast(pa.int64()).to_pylist()
    for place, (row, moment_) in enumerate(zip(rows, asked, strict=True)):
        try:
            about = EncounterIn.model_validate({k: v for k, v in row.items() if v is not None})
            if moment_ is not None and not FIRST <= moment_ < LAST:
                raise Refusal(422, "invalid_input", "prediction_time is outside 1900 to 2199.", "Check it.")
            when[place] = moment(moment_, now, wall)
            told[place] = encounter_of(about, now)
        except ValidationError as error:
            refused[place] = explain_errors(error.errors(include_url=False), EncounterIn)[0]
        except Refusal as refusal:
            refused[place] = FieldProblem(
                field="encounter", problem=f"{refusal.code}: {refusal.message}", remedy=refusal.remedy
            )
    return told, refused, when


def _flat_events(lists: Any, lengths: Ints) -> tuple[Ints, Ints, dict[str, pd.Series]]:
    """Position of every event in its list, the row it belongs to, and its fields as columns."""
    owner = np.repeat(np.arange(lengths.size), lengths)
    inside = np.arange(owner.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    values = lists.flatten()
    columns: dict[str, pd.Series] = {}
    for name, kind in EVENT.items():
        place = values.type.get_field_index(name)
        column = pa.nulls(len(values), kind) if place < 0 else values.field(place)
        if values.null_count:
            column = pa.compute.if_else(values.is_valid(), column, pa.scalar(None, column.type))
        columns[name] = _column(column, kind)
    return inside, owner, columns


def _column(column: Any, kind: pa.DataType) -> pd.Series:
    if kind == INSTANT:
        micros = column.cast(INSTANT).cast(pa.int64()).fill_null(NAT).to_numpy()
        return pd.Series(micros, dtype=np.int64)
    if kind == pa.float64():
        return pd.Series(column.cast(kind).to_numpy(zero_copy_only=False), dtype=np.float64)
    plain = column if pa.types.is_dictionary(column.type) else column.cast(kind).dictionary_encode()
    # A dictionary may hold a label twice, or none as a label.
    place, labels = pd.factorize(pd.Index(plain.dictionary.to_pylist(), dtype=object))
    codes = np.append(place, -1)[plain.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)]
    return pd.Series(pd.Categorical.from_codes(codes, categories=labels))


def _contract_faults(owner: Ints, inside: Ints, columns: dict[str, pd.Series]) -> dict[int, FieldProblem]:
    """The first event of each row that breaks the contract, as JSON would refuse it."""
    time, available = columns["time"].to_numpy(), columns["available_time"].to_numpy()
    value, text = columns["value"].to_numpy(), columns["text"].isna().to_numpy()
    named = columns["concept"].notna().to_numpy() ^ columns["code"].notna().to_numpy()
    checks = [
        ("time", (time < FIRST) | (time >= LAST), "is missing or outside the years 1900 to 2199"),
        ("available_time", (available != NAT) & ((available < FIRST) | (available >= LAST)),
         "is outside the years 1900 to 2199"),
        ("concept", ~named, "exactly one of code and concept is needed"),
        ("value", np.isinf(value), "is infinite"),
        ("value", np.isnan(value) & text, "neither value nor text is there"),
    ]  # fmt: skip
    checks += [(name, _too_long(columns[name], size), "is too long") for name, size in LONGEST.items()]
    found: dict[int, FieldProblem] = {}
    for field, wrong, problem in checks:
        for k in np.flatnonzero(wrong).tolist():
            told = FieldProblem(
                field=f"events[{inside[k]}].{field}",
                problem=problem,
                remedy="See /openapi.json for the contract.",
            )
            found.setdefault(int(owner[k]), told)
    return found


def _too_long(column: pd.Series, limit: int) -> npt.NDArray[np.bool_]:
    long = np.array([not 0 < len(str(label)) <= limit for label in column.cat.categories] + [False])
    return np.asarray(long[column.cat.codes.to_numpy()], dtype=np.bool_)


def _sift(
    columns: dict[str, pd.Series],
    owner: Ints,
    inside: Ints,
    encounters: Sequence[dict[str, Any]],
    when: Sequence[int],
    now: int,
    features: FeatureSet,
) -> tuple[dict[int, list[tuple[int, Fault]]], Readings]:
    """What had to be left out, by encounter, and the events that can be used."""
    events = _event_table(columns, owner, now)

    def item(k: int) -> Item:
        return _item(events, columns, k, encounters[int(owner[k])]["encounter_id"], now)

    faults: dict[int, Fault] = {}
    moments = np.array(when, dtype=np.int64)[owner]
    for field in ("available_time", "time"):
        stamps = events[field].array.asi8
        for k in np.flatnonzero(stamps > moments).tolist():
            reason = FUTURE if stamps[k] > now + TOLERANCE_US else AFTER
            faults[k] = (reason[0], field, reason[2])
    for k in _repeated(events, columns, list(faults)):
        faults[k] = DUPLICATE
    kept = np.setdiff1d(np.arange(owner.size), np.array(list(faults), dtype=np.int64))
    usable, account = clean(events.take(kept))
    aside = account.set_aside
    for place, reason in zip(aside["position"].tolist(), aside["reason"].tolist(), strict=True):
        k = int(kept[place])
        faults[k] = fault_of(reason, item(k))
    usable = contradictions(usable)[0] if features.judge else usable
    rows = usable["row"].to_numpy()

    def sources(some: Ints) -> pd.Series:
        named = [item(int(k)).source_id for k in rows[some].tolist()]
        return pd.Series(named, dtype="str")

    order = pd.Index(np.arange(len(encounters)))
    readings = Readings.of(usable.assign(encounter_id=owner[rows]), order, features.concepts)
    by_encounter: dict[int, list[tuple[int, Fault]]] = {}
    for k in sorted(faults):
        by_encounter.setdefault(int(owner[k]), []).append((int(inside[k]), faults[k]))
    return by_encounter, Readings(
        readings.encounter, readings.concept, readings.time, readings.available, readings.value, sources
    )


def _event_table(columns: dict[str, pd.Series], owner: Ints, now: int) -> pd.DataFrame:
    """Events as :func:`features.clean.clean` reads them; ``row`` leads back to where they came from."""
    code, concept = columns["code"].cat, columns["concept"].cat
    own = [str(label).strip() for label in code.categories]
    ours = [f"WARDCAST//{label}" for label in concept.categories]
    labels = pd.Index(dict.fromkeys([*own, *ours]), dtype=object)
    place = np.append(labels.get_indexer(pd.Index([*own, *ours], dtype=object)), -1)
    by_code, by_concept = code.codes.to_numpy(), concept.codes.to_numpy()
    codes = place[np.where(by_code >= 0, by_code, np.where(by_concept >= 0, len(own) + by_concept, -1))]
    delay = np.array([policy_us(str(label)) for label in labels] + [0], dtype=np.int64)[codes]
    time, stated = columns["time"].to_numpy(), columns["available_time"].to_numpy()
    available = np.where(stated == NAT, np.maximum(time, np.minimum(time + delay, now)), stated)
    return pd.DataFrame(
        {
            "row": np.arange(owner.size),
            "encounter_id": owner,
            "time": _instants(time),
            "available_time": _instants(available),
            "code": pd.Categorical.from_codes(codes, categories=labels),
            "concept": pd.Series(
                pd.Categorical.from_codes(np.full(owner.size, -1), categories=pd.Index([], dtype=object))
            ),
            "numeric_value": columns["value"].to_numpy(),
            "text_value": columns["text"],
            "unit": columns["unit"],
            "status": pd.Categorical.from_codes(np.zeros(owner.size, np.int64), categories=_FINAL),
            "source_id": "",
        }
    )


def _instants(micros: Ints) -> pd.Series:
    return pd.Series(pd.DatetimeIndex(micros.astype(np.int64).view("datetime64[us]"), tz="UTC"))


def _repeated(events: pd.DataFrame, columns: dict[str, pd.Series], late: Sequence[int]) -> list[int]:
    """Rows that say over again what an earlier row of their encounter said."""
    key = ["encounter_id", "code", "time"]
    kept = events.drop(index=list(late))
    near = kept[kept.duplicated(key, keep=False)]
    told = near[["row", *key]].assign(
        stated=columns["available_time"].take(near["row"].to_numpy()),
        value=[repr(v) for v in near["numeric_value"].tolist()],
        text=near["text_value"].astype(object),
        unit=near["unit"].astype(object),
    )
    again = told.duplicated([*key, "stated", "value", "text", "unit"])
    return [int(k) for k in told.loc[again, "row"]]


def _item(events: pd.DataFrame, columns: dict[str, pd.Series], k: int, encounter_id: str, now: int) -> Item:
    """One event as the road of JSON knows it: its identity decides ties, and names what is wrong with it."""
    row: Any = events.iloc[k]
    stated = int(columns["available_time"].to_numpy()[k])
    value = float(row["numeric_value"])
    text, unit = (None if pd.isna(row[name]) else str(row[name]) for name in ("text_value", "unit"))
    named_by = "concept" if columns["code"].cat.codes.to_numpy()[k] < 0 else "code"
    time = int(columns["time"].to_numpy()[k])
    about = (encounter_id, str(row["code"]), time, None if stated == NAT else stated)
    said = (None if value != value else value, text, unit, "final")
    return Item.told(about, said, None, now, named_by=named_by)


def write_stream(
    table: pa.Table,
    batch: Batch,
    scores: Sequence[Score],
    identities: Sequence[str],
    about: dict[str, str],
    threshold: float,
) -> bytes:
    """The answer to a table: one row each, in its order; ``about`` goes into the schema's metadata."""
    given = dict(zip(batch.places, zip(scores, identities, batch.counts.tolist(), strict=True), strict=True))
    rows = []
    for place, who in enumerate(table["encounter_id"].to_pylist()):
        row: dict[str, Any] = {"encounter_id": who, "threshold": threshold}
        if place in batch.refused:
            wrong = batch.refused[place]
            row |= {"status": "invalid_input", "problem": f"{wrong.field}: {wrong.problem} {wrong.remedy}"}
        else:
            row |= _row(*given[place], batch.ignored.get(place, []))
        rows.append(row)
    answer = pa.Table.from_pylist(rows, ANSWER.with_metadata(about))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, answer.schema) as writer:
        writer.write_table(answer)
    return bytes(sink.getvalue())


def _row(score: Score, identity: str, sent: int, ignored: Sequence[tuple[int, Fault]]) -> dict[str, Any]:
    lacking = [*score.unknown, *score.missing]
    return {
        "prediction_id": identity,
        "prediction_time": score.prediction_time,
        "status": score.status,
        "probability": score.probability,
        "raw": score.raw,
        "alert": score.alert,
        "interval": score.interval,
        "indeterminate": score.indeterminate,
        "reasons": [reason.text for reason in score.reasons],
        "used": sent - len(ignored),
        "ignored": [{"event": k, "field": f, "reason": reason} for k, (reason, f, _) in ignored],
        "problem": f"missing: {', '.join(lacking)}" if lacking else None,
    }
