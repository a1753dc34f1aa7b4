"""Which registered model serves: an alias that moves only through gates, with who approved it and why.

Every attempt is a run in MLflow, with the gates as they were judged; a refused one leaves the alias where it was. What
served before is written down with the version that took its place, so that ``rollback`` finds it again; a second one
goes further back, and never returns to what was withdrawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from features.errors import ConfigError
from models.bundle import Bundle, dump_json
from training import tracking
from training.gates import Gate, Gates, Rehearsal
from training.layouts import aligned

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "champion_previous"
"""What served before a champion, the latest first, comma-separated."""
REMEMBERED: Final = 20


@dataclass(frozen=True, slots=True)
class Approval:
    """Who answers for a change of the model that serves, and why it is made.

    Raises
    ------
    ConfigError
        One of the two is empty.
    """

    approved_by: str
    reason: str

    def __post_init__(self) -> None:
        if not self.approved_by.strip():
            raise ConfigError("This needs somebody who answers for it: --approved-by NAME.")
        if not self.reason.strip():
            raise ConfigError("This needs a reason. Say in a sentence why this model should serve.")

    def tags(self) -> dict[str, str]:
        """As kept with a version."""
        return {
            "champion_approved_by": self.approved_by,
            "champion_reason": self.reason,
            "champion_time": datetime.now(UTC).isoformat(timespec="seconds"),
        }


@dataclass(frozen=True)
class Promotion:
    """What came of an attempt to promote a version.

    Attributes
    ----------
    version, previous : versions of the model that was judged and of the one that served before, if any
    promoted : whether the alias moved
    """

    name: str
    version: str
    model_id: str
    previous: str | None
    gates: Sequence[Gate]
    gates_digest: str
    promoted: bool

    def summary(self) -> str:
        """The gates as a table, and what became of the alias."""
        head = ("", "gate", "asked", "found")
        rows = [("pass" if g.passed else "FAIL", g.name, g.asked, g.found) for g in self.gates]
        failed = sum(not g.passed for g in self.gates)
        served = f"version {self.previous} serves on" if self.previous else f"there is no {CHAMPION}"
        said = (
            f"Promoted: {self.name} version {self.version} ({self.model_id}) is {CHAMPION}; before it: "
            f"{self.previous or 'none'}."
            if self.promoted
            else f"Not promoted: {failed} of {len(self.gates)} gates failed for {self.name} version {self.version} "
            f"({self.model_id}); {served}."
        )
        return f"{aligned(rows, head)}\n\nGates {self.gates_digest}.\n{said}"


def promote(
    name: str,
    approval: Approval,
    *,
    version: str | None = None,
    gates: Path | None = None,
    rehearsal: Rehearsal | None = None,
) -> Promotion:
    """Make a registered model the champion, if it passes every gate.

    Parameters
    ----------
    name : str
        The product, such as ``sepsis``.
    version : str, optional
        Default: the challenger.
    gates : Path, optional
        Another file than ``models/gates.toml``.
    rehearsal : callable, optional
        Tries the service's road; without it parity with the service and latency are not asked.

    Raises
    ------
    ConfigError
        There is no such version, or the gates cannot be read.
    """
    version = version or tracking.version_of(name, CHALLENGER)
    if version is None:
        raise ConfigError(f"No {CHALLENGER} of {name} is registered. Train one first: wardcast train {name}.")
    read = Gates.load(name, gates)
    bundle = Bundle.load(tracking.resolve(f"models:/{name}/{version}"))
    judged = read.judge(bundle, rehearsal)
    passed = all(gate.passed for gate in judged)
    before = tracking.version_of(name, CHAMPION)
    earlier = _served_before(name, before)
    if before is not None and before != version:
        earlier = [before, *earlier]
    previous = earlier[0] if earlier else None
    result = Promotion(name, version, bundle.model_id, previous, judged, read.digest, passed)
    _log(result, approval)
    if passed:
        tracking.set_alias(name, version, CHAMPION, approval.tags() | _remembered(earlier))
    return result


def _served_before(name: str, version: str | None) -> list[str]:
    """What served before a champion, the latest first."""
    if version is None:
        return []
    return [v for v in tracking.tags_of(name, version).get(PREVIOUS, "").split(",") if v]


def _remembered(versions: Sequence[str]) -> dict[str, str]:
    return {PREVIOUS: ",".join(versions[:REMEMBERED])}


def _log(result: Promotion, approval: Approval) -> None:
    outcome = "promoted" if result.promoted else "refused"
    about = {
        "origin": "promotion",
        "outcome": outcome,
        "version": result.version,
        "model_id": result.model_id,
    }
    table = {"gates": [gate.to_dict() for gate in result.gates], "digest": result.gates_digest}
    tracking.log_decision(
        result.name,
        f"promote {result.version}: {outcome}",
        about | approval.tags() | {"gates_digest": result.gates_digest},
        {"gates.json": dump_json(table), "gates.txt": result.summary() + "\n"},
    )


@dataclass(frozen=True)
class Rollback:
    """The champion gave way to the one before it."""

    name: str
    withdrawn: str
    restored: str

    def summary(self) -> str:
        """One line."""
        return f"Rolled back: {self.name} version {self.restored} is {CHAMPION} again, version {self.withdrawn} is not."


def rollback(name: str, approval: Approval) -> Rollback:
    """Let the previous champion serve again. No gate is asked: it has served before, and haste may be needed.

    Twice goes back twice. The version that is withdrawn is struck from what may come back, also where it had served
    earlier too, so that two versions never take turns.

    Raises
    ------
    ConfigError
        Nothing is champion, or nothing was before it.
    """
    current = tracking.version_of(name, CHAMPION)
    if current is None:
        raise ConfigError(f"No {CHAMPION} of {name} is registered, so there is nothing to roll back.")
    earlier = [v for v in _served_before(name, current) if v != current]
    if not earlier:
        raise ConfigError(
            f"Nothing served before {name} version {current}, so there is nothing to go back to. Promote another: "
            f"wardcast promote {name} --version N."
        )
    previous, rest = earlier[0], [v for v in earlier[1:] if v != earlier[0]]
    result = Rollback(name, current, previous)
    about = {"origin": "rollback", "outcome": "rolled back", "version": previous, "withdrawn": current}
    papers = {"rollback.txt": result.summary() + "\n"}
    tracking.log_decision(name, f"roll back to {previous}", about | approval.tags(), papers)
    restored = {"champion_restored_after": current}
    tracking.set_alias(name, previous, CHAMPION, approval.tags() | _remembered(rest) | restored)
    withdrawn = {"champion_withdrawn_by": approval.approved_by, "champion_withdrawn_reason": approval.reason}
    tracking.tag(name, current, withdrawn)
    return result
