"""Instants between the wire and the store: aware datetimes and int64 microseconds, exactly."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


def to_us(instant: datetime) -> int:
    """Microseconds since the epoch."""
    since = instant - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_us(micros: int) -> datetime:
    """The inverse of :func:`to_us`, in UTC."""
    return EPOCH + micros * MICROSECOND


def iso(micros: int | None) -> str | None:
    """Microseconds as ISO 8601 in UTC; None stays None."""
    return None if micros is None else from_us(micros).isoformat().replace("+00:00", "Z")
