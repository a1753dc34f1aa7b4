"""Tells a hospital's FHIR server of every score and alert: a process that ``wardcast serve`` keeps when one is named.

Resources carry our own ids and are put there (``PUT RiskAssessment/ID``), so that sending one twice changes nothing.
What was told is a place in the prediction log; a score whose facts were corrected later, or whose encounter was
corrected or merged, is told again, with its new status and under the identities that live on. A server that is away is
asked again, ever more slowly; what it refuses for good is noted and does not hold up the rest.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection

from models.scope import SCORED
from serving.companion import told_to_stop
from serving.interop.judging import judged
from serving.interop.resources import Resource, flag, observation, provenance, risk_assessment
from serving.interop.smart import BackendClient, BatchRefused, PushError, read_target
from serving.rounds import STORED
from serving.settings import Settings
from serving.state import Wardcast, wall_us
from serving.store import audit, people, pushes

BATCH: Final = 50
FACTS: Final = 5_000
REST_S: Final = 1.0
LONGEST_REST_S: Final = 300.0
AGAIN: Final = frozenset({408, 409, 423, 425, 429})
"""Answers after which the same request may succeed later; so may all from 500 on."""
UNREADABLE: Final = frozenset({400, 413, 422})
"""Answers to a whole batch for which one entry, or their number, may be the cause."""
PATIENCE: Final = 10
"""So often an entry is tried again that fails while others of its batch are taken."""
PROCESS: Final = (sys.executable, "-m", "serving.interop.push")
logger = logging.getLogger("wardcast")


class Pusher:
    """Brings one FHIR server up to date, again and again."""

    def __init__(self, state: Wardcast, client: BackendClient) -> None:
        self._state = state
        self._client = client
        self._name = client.target.fhir
        self._stuck = 0

    def start(self) -> None:
        """Begin at the end of the log where this server was never told anything."""
        with self._state.store.write() as connection:
            if pushes.place(connection, self._name) is None:
                pushes.keep_place(connection, self._name, pushes.newest(connection), wall_us())
                pushes.skip_flags(connection, self._name)
            if pushes.pictures_place(connection, self._name) is None:
                at = pushes.newest_picture(connection)
                pushes.keep_pictures_place(connection, self._name, at, wall_us())

    def step(self) -> int:
        """Tell what is new, at most one batch of each kind; how many resources were sent.

        Raises
        ------
        PushError
            The server is away or refuses all; nothing is marked as told.
        """
        return self._predictions() + self._corrections() + self._pictures() + self._flags()

    def run(self, stop: threading.Event) -> None:
        """Until told to stop, or until the parent process is gone."""
        parent, rest = os.getppid(), REST_S
        self.start()
        while not stop.is_set() and os.getppid() == parent:
            try:
                sent = self.step()
                rest = REST_S
                if sent:
                    continue
            except PushError as error:
                rest = min(2 * rest, LONGEST_REST_S)
                logger.error("push problem=%s again_s=%.0f", error, rest)
            stop.wait(rest)

    def _predictions(self) -> int:
        with self._state.store.read() as connection:
            at = pushes.place(connection, self._name) or pushes.newest(connection)
            rows = pushes.untold(connection, at.predictions_seq, STORED, BATCH)
            made = self._written(connection, rows)
        if not rows:
            return 0
        self._tell(made)
        with self._state.store.write() as connection:
            told = replace(at, predictions_seq=rows[-1]["seq"])
            pushes.keep_place(connection, self._name, told, wall_us())
        return len(made)

    def _corrections(self) -> int:
        """Tell again the scores that read a fact which was corrected or withdrawn since."""
        with self._state.store.read() as connection:
            at = pushes.place(connection, self._name) or pushes.newest(connection)
            end, encounters = pushes.changed(connection, at.events_seq, FACTS)
            made: list[Resource] = []
            for who in encounters:
                rows = pushes.told_of(connection, who, STORED, at.predictions_seq)
                older = [row for row in rows if row["events_seq"] and row["events_seq"] < end]
                made += self._written(connection, older, changed_only=True)
        if end == at.events_seq:
            return 0
        self._tell_all(made)
        with self._state.store.write() as connection:
            pushes.keep_place(connection, self._name, replace(at, events_seq=end), wall_us())
        return len(made)

    def _pictures(self) -> int:
        """Tell again what was told of encounters that were merged, given to another patient, or corrected."""
        with self._state.store.read() as connection:
            at = pushes.place(connection, self._name) or pushes.newest(connection)
            after = pushes.pictures_place(connection, self._name) or 0
            end, encounters = pushes.changed_pictures(connection, after, FACTS)
            made: list[Resource] = []
            for who in encounters:
                rows = pushes.told_of(connection, who, STORED, at.predictions_seq)
                made += self._written(connection, rows, changed_only=True)
            flags = pushes.told_flags(connection, self._name, encounters)
            made += self._raised(connection, flags)
        if end == after:
            return 0
        self._tell_all(made)
        with self._state.store.write() as connection:
            pushes.keep_pictures_place(connection, self._name, end, wall_us())
        return len(made)

    def _raised(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> list[Resource]:
        if "Flag" not in self._client.target.send:
            return []
        named = people.as_now(connection, rows)
        return [flag(row, str(row["subject_id"])) for row in named if row["subject_id"] is not None]

    def _tell_all(self, made: Sequence[Resource]) -> None:
        for start in range(0, len(made), 2 * BATCH):
            self._tell(made[start : start + 2 * BATCH])

    def _flags(self) -> int:
        if "Flag" not in self._client.target.send:
            return 0
        with self._state.store.read() as connection:
            rows = pushes.flags_to_tell(connection, self._name, BATCH)
            made = self._raised(connection, rows)
        if not rows:
            return 0
        self._tell(made)
        with self._state.store.write() as connection:
            pushes.keep_flags(connection, self._name, rows)
        return len(made)

    def _written(
        self, connection: Connection, rows: Sequence[dict[str, Any]], *, changed_only: bool = False
    ) -> list[Resource]:
        """The resources of some predictions, of the kinds this server wants.

        With ``changed_only``, of those that are no longer what was said when they were made.
        """
        state = self._state
        scorer = None if "sepsis" in state.problems else state.scorer
        became, made = judged(connection, rows, state), []
        for row, now in zip(rows, people.as_now(connection, rows), strict=True):
            stands = became[row["prediction_id"]]
            if changed_only and stands.status == "final" and now == row:
                continue
            own = scorer if scorer and scorer.bundle.model_id == row["model_id"] else None
            made += [observation(now, stands), provenance(now, stands)]
            made += [risk_assessment(now, stands, own)] if row["status"] == SCORED else []
        return [r for r in made if r["resourceType"] in self._client.target.send]

    def _tell(self, resources: Sequence[Resource]) -> None:
        if not resources:
            return
        statuses = self._statuses(resources)
        refused = [(r, s) for r, s in zip(resources, statuses, strict=True) if s >= 400]
        later = [s for _, s in refused if s in AGAIN or s >= 500]
        # Where the rest is taken, what fails again and again is at fault itself, and must not hold up what follows.
        self._stuck = self._stuck + 1 if later else 0
        if later and (len(later) == len(resources) or self._stuck < PATIENCE):
            raise PushError(
                f"The FHIR server answered {later[0]} to {len(later)} of {len(resources)} entries."
            )
        if refused:
            logger.error("push refused=%d first_status=%d", len(refused), refused[0][1])
        noted = [(f"{r['resourceType']}/{r['id']}", f"{r['resourceType']} {s}") for r, s in refused]
        with self._state.store.write() as connection:
            pushes.add_problems(connection, self._name, noted, wall_us())
            audit.record(connection, _disclosed(resources), wall_us())

    def _statuses(self, resources: Sequence[Resource]) -> list[int]:
        """The answer to each; a batch that is refused as a whole is sent in ever smaller parts."""
        try:
            return self._client.post_bundle(batch(resources))
        except BatchRefused as refused:
            if refused.status not in UNREADABLE:
                raise
            if len(resources) == 1:
                return [refused.status]
            half = len(resources) // 2
            return self._statuses(resources[:half]) + self._statuses(resources[half:])


def _disclosed(resources: Sequence[Resource]) -> audit.Act:
    """Whose data left the house: as whoever asks for it is audited, so is what we send unasked."""
    about = [r["encounter"]["identifier"]["value"] for r in resources if "encounter" in r]
    kinds = ", ".join(sorted({r["resourceType"] for r in resources}))
    return audit.Act("push", "service", f"push {kinds}", "done", about)


def batch(resources: Sequence[Resource]) -> Resource:
    """A Bundle that puts each resource under its own id; each entry is answered for itself."""
    return {
        "resourceType": "Bundle",
        "type": "batch",
        "entry": [
            {"resource": r, "request": {"method": "PUT", "url": f"{r['resourceType']}/{r['id']}"}}
            for r in resources
        ],
    }


def main() -> None:
    """The process that ``wardcast serve`` keeps."""
    settings = Settings.from_env()
    if settings.push_file is None:
        return
    stop = told_to_stop()
    client = BackendClient(*read_target(settings.push_file))
    state = Wardcast(settings)
    try:
        Pusher(state, client).run(stop)
    finally:
        client.close()
        state.store.close()


if __name__ == "__main__":
    main()
