"""What became of logged predictions: read from the store for whoever writes them as FHIR, asked or unasked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from serving.interop.resources import Standing, standing
from serving.state import Wardcast
from serving.store import facts


def judged(connection: Connection, rows: Sequence[Mapping[str, Any]], state: Wardcast) -> dict[str, Standing]:
    """The standing of some predictions, rows of the log, by what is known of their encounters now."""
    concepts = None if "sepsis" in state.problems else state.scorer.bundle.spec.features.concepts
    ids = {str(row["encounter_id"]) for row in rows}
    told = {who: facts.told(connection, who, concepts) for who in ids}
    seen = {who: facts.pictures(connection, who) for who in ids}
    return {
        row["prediction_id"]: standing(row, told[str(row["encounter_id"])], seen[str(row["encounter_id"])])
        for row in rows
    }
