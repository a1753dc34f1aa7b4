"""The tables of the store, for SQLite and PostgreSQL alike.

Instants are int64 microseconds UTC. Facts are append-only: a correction is a further row, and ``seq`` with
``received_time`` says what was known when. An identity or a value of a patient appears in rows only, never in a name.
Texts have no length here: the contracts of the requests bound them, and SQLite would not keep what PostgreSQL enforces.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

SCHEMA_VERSION: Final = 5

Micros = BigInteger
Sequence = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

ENCOUNTER_TIMES: Final = (
    "hospital_admission_time",
    "icu_admission_time",
    "arrival_time",
    "decision_time",
    "admission_time",
    "discharge_time",
)
ENCOUNTER_TEXTS: Final = ("encounter_class", "unit", "specialty", "sex", "icu_type", "arrival_mode")
ENCOUNTER_FACTS: Final = (*ENCOUNTER_TEXTS, "age_years", *ENCOUNTER_TIMES)

# One row each time something about an encounter became known; the newest row is the whole present picture.
encounters = Table(
    "encounters",
    metadata,
    Column("seq", Sequence, primary_key=True),
    Column("encounter_id", String, nullable=False),
    Column("subject_id", String, nullable=False),
    Column("received_time", Micros, nullable=False),
    *(Column(name, String) for name in ENCOUNTER_TEXTS),
    Column("age_years", Float),
    *(Column(name, Micros) for name in ENCOUNTER_TIMES),
    Index("encounters_latest", "encounter_id", "seq"),
    Index("encounters_of_subject", "subject_id"),
    sqlite_autoincrement=True,
)

MARKS: Final = (
    "location", "hospital_admission", "ed_arrival", "icu_admission", "hospital_discharge", "death",
)  # fmt: skip
"""Concepts of which an encounter's present picture is made."""
OF_COURSE: Final = text(f"concept in ({', '.join(map(repr, MARKS))}) and reason is null")
"""Usable events of these; written out, since a database takes a partial index only for the very condition it has."""

# One row a fact as it was received. `reason` is empty where the fact can be used; else why it was set aside.
events = Table(
    "events",
    metadata,
    Column("seq", Sequence, primary_key=True),
    Column("encounter_id", String, nullable=False),
    Column("subject_id", String, nullable=False),
    Column("time", Micros, nullable=False),
    Column("available_time", Micros, nullable=False),
    Column("received_time", Micros, nullable=False),
    Column("code", String, nullable=False),
    Column("raw_value", Float),
    Column("raw_text", Text),
    Column("raw_unit", String),
    Column("status", String, nullable=False),
    Column("source_id", String, nullable=False),
    Column("dated", Boolean, nullable=False),  # whether the sender said when it became available
    Column("content_hash", LargeBinary, nullable=False, unique=True),
    Column("concept", String),
    Column("numeric_value", Float),
    Column("unit", String),
    Column("reason", String),
    Index("events_of_encounter", "encounter_id", "seq"),
    Index("events_of_source", "encounter_id", "source_id"),
    # The few of them that the picture of a patient is made of, so that it costs the same however long the stay.
    Index("events_of_course", "encounter_id", sqlite_where=OF_COURSE, postgresql_where=OF_COURSE),
    sqlite_autoincrement=True,
)

# Every score that was ever given, with what is needed to give it again: the features it read, and either the request
# itself (`inputs`) or the place in the store up to which it read (`events_seq`, `encounter_seq`).
predictions = Table(
    "predictions",
    metadata,
    Column("seq", Sequence, primary_key=True),
    Column("prediction_id", String, nullable=False, unique=True),
    Column("road", String, nullable=False),
    Column("encounter_id", String, nullable=False),
    Column("subject_id", String, nullable=False),
    Column("encounter_class", String),
    Column("unit", String),
    Column("model_id", String, nullable=False),
    Column("prediction_time", Micros, nullable=False),
    Column("created_time", Micros, nullable=False),
    Column("status", String, nullable=False),
    Column("reason", String),
    Column("raw", Float),
    Column("probability", Float),
    Column("alert", Boolean, nullable=False),
    Column("page", Boolean, nullable=False),
    Column("features", LargeBinary, nullable=False),
    Column("reasons", Text),
    Column("inputs", LargeBinary),
    Column("events_seq", Sequence),
    Column("encounter_seq", Sequence),
    Index("predictions_of_encounter", "encounter_id", "prediction_time"),
    Index("predictions_by_time", "prediction_time"),
    sqlite_autoincrement=True,
)

# Where the folder of each model was when it last served: an old prediction is repeated with its own model.
models = Table(
    "models",
    metadata,
    Column("model_id", String, primary_key=True),
    Column("folder", Text, nullable=False),
    Column("loaded_time", Micros, nullable=False),
)

alerts = Table(
    "alerts",
    metadata,
    Column("alert_id", String, primary_key=True),
    Column("encounter_id", String, nullable=False),
    Column("prediction_id", String, nullable=False),
    Column("raised_time", Micros, nullable=False),
    Column("probability", Float, nullable=False),
    Column("reason", String, nullable=False),
    Column("ended_time", Micros),
    Column("acknowledged_time", Micros),
    Column("acknowledged_by", String),
    Index("alerts_of_encounter", "encounter_id", "raised_time"),
    Index("alerts_by_time", "raised_time"),
)

# The memory of the alert policy, one row an encounter.
alert_states = Table(
    "alert_states",
    metadata,
    Column("encounter_id", String, primary_key=True),
    Column("state", Text, nullable=False),
    Column("prediction_time", Micros, nullable=False),
)

# What receivers of webhooks are to be told, one row a message and receiver, written with what it tells of: waiting,
# delivered or dead (given up). `due_time` is when to try next.
webhooks = Table(
    "webhooks",
    metadata,
    Column("seq", Sequence, primary_key=True),
    Column("delivery_id", String, nullable=False, unique=True),
    Column("receiver", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("body", Text, nullable=False),
    Column("created_time", Micros, nullable=False),
    Column("due_time", Micros, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("state", String, nullable=False),
    Column("problem", String),
    Index("webhooks_due", "state", "due_time"),
    sqlite_autoincrement=True,
)

# How far a FHIR server that we push to has been told, the flags it has, and what it refused for good.
pushes = Table(
    "pushes",
    metadata,
    Column("target", String, primary_key=True),
    Column("predictions_seq", Sequence, nullable=False),
    Column("events_seq", Sequence, nullable=False),
    Column("told_time", Micros, nullable=False),
)
push_flags = Table(
    "push_flags",
    metadata,
    Column("target", String, primary_key=True),
    Column("alert_id", String, primary_key=True),
    Column("ended", Boolean, nullable=False),
)
push_problems = Table(
    "push_problems",
    metadata,
    Column("seq", Sequence, primary_key=True),
    Column("target", String, nullable=False),
    Column("resource", String, nullable=False),
    Column("problem", String, nullable=False),
    Column("noted_time", Micros, nullable=False),
    sqlite_autoincrement=True,
)

# What people answered: acknowledged, dismissed and why. Append-only.
feedback = Table(
    "feedback",
    metadata,
    Column("seq", Sequence, primary_key=True),
    Column("alert_id", String, nullable=False),
    Column("given_time", Micros, nullable=False),
    Column("given_by", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("comment", Text),
    Index("feedback_of_alert", "alert_id"),
    sqlite_autoincrement=True,
)

# Every CDS Hooks card that was given, and to whom: what feedback is about.
cds_cards = Table(
    "cds_cards",
    metadata,
    Column("card_id", String, primary_key=True),
    Column("client", String, nullable=False),
    Column("hook", String, nullable=False),
    Column("encounter_id", String),
    Column("prediction_id", String),
    Column("status", String, nullable=False),
    Column("indicator", String, nullable=False),
    Column("issued_time", Micros, nullable=False),
    Index("cds_cards_by_time", "issued_time"),
)

# What users did with cards, as their CDS client reports it. Append-only; a repetition has the same hash.
cds_feedback = Table(
    "cds_feedback",
    metadata,
    Column("seq", Sequence, primary_key=True),
    Column("content_hash", LargeBinary, nullable=False, unique=True),
    Column("card_id", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("reason_system", String),
    Column("reason_code", String),
    Column("comment", Text),
    Column("outcome_time", Micros, nullable=False),
    Column("received_time", Micros, nullable=False),
    Index("cds_feedback_by_time", "received_time"),
    sqlite_autoincrement=True,
)

# The tokens of CDS clients that were used and have not expired: none is taken twice.
cds_tokens = Table(
    "cds_tokens",
    metadata,
    Column("token_hash", String, primary_key=True),
    Column("expires_time", Micros, nullable=False),
    Index("cds_tokens_by_time", "expires_time"),
)

# Who did what to whose data. Each row carries the hash of the one before it.
audit = Table(
    "audit",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=False),
    Column("time", Micros, nullable=False),
    Column("actor", String, nullable=False),
    Column("role", String, nullable=False),
    Column("action", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("encounters", Text, nullable=False),
    Column("request_id", String, nullable=False),
    Column("previous", String, nullable=False),
    Column("hash", String, nullable=False),
)

# One row: the newest link. Updated first, so that writers queue here and the chain has no branches.
audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", Sequence, nullable=False),
    Column("hash", String, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_hash", String, primary_key=True),
    Column("actor", String, nullable=False),
    Column("role", String, nullable=False),
    Column("started_time", Micros, nullable=False),
    Column("seen_time", Micros, nullable=False),
)

# The replay clock, so that every worker and every restart has the same now.
replay_clock = Table(
    "replay_clock",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("now", Micros, nullable=False),
)

# Who the people are, one row each time something was said of them; the newest row is the whole present picture.
persons = Table(
    "persons",
    metadata,
    Column("seq", Sequence, primary_key=True),
    Column("subject_id", String, nullable=False),
    Column("received_time", Micros, nullable=False),
    Column("born", Micros),
    Column("sex", String),
    Index("persons_latest", "subject_id", "seq"),
    sqlite_autoincrement=True,
)

# Identities that turned out to be one: `prior` lives on as `surviving`. `kind` is subject or encounter.
merges = Table(
    "merges",
    metadata,
    Column("seq", Sequence, primary_key=True),
    Column("kind", String, nullable=False),
    Column("prior", String, nullable=False),
    Column("surviving", String, nullable=False),
    Column("received_time", Micros, nullable=False),
    Index("merges_of", "kind", "prior"),
    sqlite_autoincrement=True,
)

# HL7 v2 messages as they came, whatever became of them. In SQLite a file of its own: who writes facts and scores never
# keeps a sender waiting. `answer` is what the sender was told; `refusal` is why, where it was refused.
messages = Table(
    "messages",
    metadata,
    Column("seq", Sequence, primary_key=True),
    Column("received_time", Micros, nullable=False),
    Column("application", String, nullable=False),
    Column("facility", String, nullable=False),
    Column("control_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("version", String, nullable=False),
    Column("body_hash", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("answer", String, nullable=False),
    Column("refusal", String),
    Column("conflict", Boolean, nullable=False),
    Column("repeats", Integer, nullable=False),
    Index("messages_by_body", "body_hash", "control_id", "application", "facility", unique=True),
    Index("messages_by_identity", "control_id", "application", "facility"),
    sqlite_autoincrement=True,
)

# What became of each message that was taken, written with its facts: the newest row is how far the log was read.
outcomes = Table(
    "message_outcomes",
    metadata,
    Column("message_seq", Sequence, primary_key=True, autoincrement=False),
    Column("applied_time", Micros, nullable=False),
    Column("kind", String, nullable=False),
    Column("status", String, nullable=False),
    Column("problems", Text, nullable=False),
)

# Messages that told of a patient whose visit was not known yet: read again once it is. One row a message and patient.
orphans = Table(
    "message_orphans",
    metadata,
    Column("message_seq", Sequence, primary_key=True, autoincrement=False),
    Column("subject_id", String, primary_key=True),
    Index("message_orphans_of", "subject_id"),
)
