"""The demo: a simulated hospital streams into the real service, over HTTP, hour by hour.

Nothing here is a special road: the service is the one that ``wardcast serve`` starts, with the sender's clock instead
of the wall's, so that days pass in a minute. The simulator knows who became septic and when; the service does not.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from features.errors import ConfigError
from features.sources.synthetic import Hospital, encounters_at, simulate
from serving.monitoring.run import monitor as run_monitor
from serving.reports.beds import forecast_report
from serving.settings import Settings
from serving.store.store import Store

FIRST_DAY: Final = datetime(2026, 1, 5, tzinfo=UTC)
"""A Monday. The demo's calendar is fixed, so that the same seed tells the same story."""
HISTORY_DAYS: Final = 42
MEETING: Final = timedelta(hours=8)
"""The stream ends on the morning after the last day, in time for the bed meeting."""
ICU_BEDS: Final = 24
USEFUL_LEAD: Final = timedelta(hours=24)
"""An alert counts as true when sepsis begins within a day of it."""
CLOCK_TELLS: Final = timedelta(hours=48)
"""From then on the length of a stay gave sepsis away in PhysioNet 2019."""
BATCH: Final = 5_000

EVENT_FIELDS: Final = ("encounter_id", "code", "time", "available_time", "unit", "status", "source_id")

console = Console()


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the alerts, judged by the simulator's truth."""

    septic: int
    caught: int
    true: int
    late: int
    false: int
    false_by_clock: int
    leads_h: tuple[float, ...]
    patient_days: float

    def lines(self) -> list[str]:
        """The tally in words."""
        alerts = self.true + self.late + self.false
        hours = USEFUL_LEAD // timedelta(hours=1)
        said = [
            f"{alerts} alerts over {self.patient_days:.0f} adult ICU patient-days: {self.true} true (sepsis began "
            f"within {hours} h), {self.late} after onset, {self.false} false; {self.false_by_clock} of the false ones "
            "came after two days in intensive care, where the model also follows the clock of its training data "
            "(see its card).",
            f"{self.caught} of {self.septic} patients who became septic had a true alert before onset.",
        ]
        if self.leads_h:
            low, mid, high = pd.Series(self.leads_h).quantile([0.25, 0.5, 0.75])
            said.append(
                f"First true alert: median {mid:.1f} h before onset (middle half {low:.1f} to {high:.1f} h)."
            )
        return said


def tally(alerts: pd.DataFrame, truth: pd.DataFrame, since: pd.Timestamp, patient_days: float) -> Tally:
    """Judge alerts by the truth: true when onset follows within :data:`USEFUL_LEAD`, late after onset, else false.

    Parameters
    ----------
    alerts : DataFrame with encounter_id, raised_time
    truth : DataFrame with encounter_id, onset_time, icu_admission_time
        The adult ICU encounters that were watched; NaT = never septic.
    since : Timestamp
        Start of the watch: onsets before it are not counted as missed.
    """
    judged = alerts.merge(truth, on="encounter_id")
    lead = judged["onset_time"] - judged["raised_time"]
    true = (lead > pd.Timedelta(0)) & (lead <= USEFUL_LEAD)
    late = lead <= pd.Timedelta(0)
    false = ~true & ~late
    long_stay = judged["raised_time"] - judged["icu_admission_time"] > CLOCK_TELLS
    first = lead[true].dt.total_seconds().groupby(judged["encounter_id"]).max() / 3600
    return Tally(
        septic=int((truth["onset_time"] > since).sum()),
        caught=len(first),
        true=int(true.sum()),
        late=int(late.sum()),
        false=int(false.sum()),
        false_by_clock=int((false & long_stay).sum()),
        leads_h=tuple(first),
        patient_days=patient_days,
    )


def run_demo(training: Sequence[str], *, var: Path, days: int, seed: int, keep_running: bool) -> None:
    """Simulate, serve, stream, tally, forecast, monitor; then leave the service up until Ctrl-C.

    Parameters
    ----------
    training : command
        Trains and logs the demo's models while the hospital streams in. A process of its own: serving knows nothing of
        training.
    var : Path
        Where the demo keeps its state; what an earlier demo left there is replaced.
    """
    started = time.monotonic()
    settings = _fresh_settings(var)
    start = FIRST_DAY + timedelta(days=HISTORY_DAYS)
    with _service(settings) as server, _trainer(training, settings) as trainer:
        with console.status(f"Simulating {HISTORY_DAYS + days} days of a hospital"):
            hospital = simulate(HISTORY_DAYS + days + 1, seed, FIRST_DAY, icu_beds=ICU_BEDS)
        _write_open_beds(settings.var, hospital)
        _say(f"Simulated a hospital: {len(hospital.visits):,} visits, {len(hospital.events):,} observations.")
        _wait_ready(settings, server)
        end = start + timedelta(days=days) + MEETING
        _stream(settings, hospital, start, end)
        _report(settings, hospital, start, end)
        _models(trainer, settings)
        _say(f"Done in {time.monotonic() - started:.0f} s.")
        _farewell(settings)
        if keep_running:
            _until_interrupted(server)


def _say(line: str) -> None:
    console.print("[bold green]•[/]", line, highlight=False, soft_wrap=True)


def _fresh_settings(var: Path) -> Settings:
    if os.environ.get("WARDCAST_STORE_URL", "").strip():
        raise ConfigError(
            "The demo fills a store of its own; in yours, simulated patients would lie among the real ones. "
            "Unset WARDCAST_STORE_URL."
        )
    if var.exists():
        if not (var / "demo").exists() and any(var.iterdir()):
            raise ConfigError(f"{var} holds something that no demo made. Set WARDCAST_VAR to another folder.")
        shutil.rmtree(var)
    var.mkdir(parents=True)
    (var / "demo").touch()
    settings = Settings.from_env()
    return replace(settings, port=_free_port(settings.port), clock="replay")


def _free_port(wanted: int) -> int:
    for port in range(wanted, wanted + 20):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise ConfigError(f"Ports {wanted} to {wanted + 19} are all in use. Set WARDCAST_PORT to a free one.")


@contextmanager
def _service(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """The service as a process of its own, stopped cleanly at the end; its log is under ``var``."""
    log = settings.var / "service.log"
    with log.open("wb") as sink:
        server = subprocess.Popen(
            [sys.executable, "-m", "cli", "serve"],
            env={**os.environ, **settings.environment()},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@contextmanager
def _trainer(command: Sequence[str], settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Training beside the stream, a little less urgent than the service."""
    with (settings.var / "training.log").open("wb") as log:
        trainer = subprocess.Popen(  # noqa: S603  # our own command, no shell
            list(command), stdout=subprocess.PIPE, stderr=log, preexec_fn=partial(os.nice, 10)
        )
    try:
        yield trainer
    finally:
        trainer.kill()
        trainer.wait()


def _wait_ready(settings: Settings, server: subprocess.Popen[bytes]) -> None:
    with console.status("Waiting for the service"):
        for _ in range(600):
            if server.poll() is not None:
                break
            try:
                if httpx.get(f"{settings.url}/readyz", timeout=2).status_code == 200:
                    _say(f"The service answers at {settings.url}.")
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
    raise ConfigError(f"The service did not start; its last words are in {settings.var / 'service.log'}.")


def _client(settings: Settings) -> httpx.Client:
    headers = {"Authorization": f"Bearer {settings.token}"}
    return httpx.Client(base_url=settings.url, headers=headers, timeout=120)


def _stream(settings: Settings, hospital: Hospital, start: datetime, end: datetime) -> None:
    """Send the history, then every hour's news with the sender's clock; at the end ask about those out of scope."""
    bar = Progress(TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hours = [start + timedelta(hours=h) for h in range((end - start) // timedelta(hours=1) + 1)]
    known: pd.DataFrame | None = None
    scored, before = 0, pd.Timestamp(FIRST_DAY) - pd.Timedelta(days=400)
    with _client(settings) as client, bar:
        task = bar.add_task("Streaming the hospital, an hour at a time", total=len(hours))
        for now in hours:
            encounters = encounters_at(hospital, now)
            changed = encounters if known is None else _changed(encounters, known)
            events = _between(hospital.events, encounters if known is None else None, before, now)
            scored += _post(client, changed, events, now)
            known, before = encounters, pd.Timestamp(now)
            bar.advance(task)
    _say(
        f"Streamed {len(hours) - 1} hours in hourly batches; the service scored adult ICU patients {scored:,} times."
    )
    with _client(settings) as client:
        _ask_others(client, encounters_at(hospital, hours[-1]))


def _ask_others(client: httpx.Client, encounters: pd.DataFrame) -> None:
    """The model learned from adult ICU patients; about anyone else the service must say that it cannot tell."""
    present = encounters[encounters["discharge_time"].isna() & (encounters["encounter_class"] != "icu")]
    answers = [
        client.get("/v1/risk", params={"encounter": who}).raise_for_status().json()["status"]
        for who in present["encounter_id"].head(25)
    ]
    said = pd.Series(answers).value_counts()
    _say(
        "Asked about ED and ward patients: " + ", ".join(f"{n} {status}" for status, n in said.items()) + "."
    )


def _write_open_beds(var: Path, hospital: Hospital) -> None:
    """Tell the bed forecast how many beds are open, as a site would."""
    table = pd.DataFrame(hospital.open_beds.items(), columns=["specialty", "open_beds"])
    table.to_csv(var / "open_beds.csv", index=False)


def _changed(now: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """Encounters that are new or differ from what was last sent."""
    old = before.set_index("encounter_id").reindex(now["encounter_id"]).reset_index()
    same = (now.reset_index(drop=True) == old[now.columns]) | (now.reset_index(drop=True).isna() & old.isna())
    return now[~same.all(axis=1).to_numpy()]


def _between(
    events: pd.DataFrame, first_batch: pd.DataFrame | None, after: pd.Timestamp, upto: datetime
) -> pd.DataFrame:
    """Events that became available in ``(after, upto]``; of the past, only those of patients still in hospital."""
    low, high = events["available_time"].searchsorted([after, pd.Timestamp(upto)], side="right")
    news = events.iloc[low:high]
    if first_batch is None:
        return news
    present = first_batch.loc[first_batch["discharge_time"].isna(), "encounter_id"]
    return news[news["encounter_id"].isin(present)]


def _post(client: httpx.Client, encounters: pd.DataFrame, events: pd.DataFrame, now: datetime) -> int:
    """Send one batch in calls of bounded size, encounters first; the last call carries the clock forward."""
    people = json.loads(encounters.to_json(orient="records", date_format="iso", date_unit="us"))
    facts = events[list(EVENT_FIELDS)].assign(value=events["numeric_value"])
    rows = json.loads(facts.to_json(orient="records", date_format="iso", date_unit="us", double_precision=15))
    calls: list[dict[str, Any]] = [{"encounters": part} for part in _parts(people)]
    calls += [{"events": part} for part in _parts(rows)]
    scored = 0
    for call in calls or [{}]:
        answer = client.post("/v1/events", json=call | {"as_of": now.isoformat()})
        answer.raise_for_status()
        scored += int(answer.json().get("scored", 0))
    return scored


def _parts(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    clean = [{k: v for k, v in row.items() if v is not None} for row in rows]
    return [clean[i : i + BATCH] for i in range(0, len(clean), BATCH)]


def _report(settings: Settings, hospital: Hospital, start: datetime, end: datetime) -> None:
    """Judge the alerts, write the bed forecast and the drift report, and say what each found."""
    store = Store.open(settings.store_url, settings.store_key)
    predictions = store.predictions()
    watched = predictions.loc[predictions["status"] == "scored", "encounter_id"].unique()
    admitted = hospital.encounters[["encounter_id", "icu_admission_time"]]
    truth = hospital.truth.loc[hospital.truth["encounter_id"].isin(watched), ["encounter_id", "onset_time"]]
    truth = truth.merge(admitted, on="encounter_id")
    hours = int((predictions["status"] == "scored").sum())
    found = tally(store.alerts(start, end), truth, pd.Timestamp(start), hours / 24)
    refused = predictions.loc[predictions["status"] != "scored", "status"].value_counts()
    for line in found.lines():
        _say(line)
    if len(refused):
        _say("Not scored: " + ", ".join(f"{n:,} {status}" for status, n in refused.items()) + ".")
    report = forecast_report(settings, at=end.isoformat(), visits=None, output=None)
    _say(report.summary())
    result = run_monitor(settings, output=None, since=None, until=None)
    _say(result.summary())


def _models(trainer: subprocess.Popen[bytes], settings: Settings) -> None:
    with console.status("Training both models on the simulated hospital"):
        lines, _ = trainer.communicate()
    if trainer.returncode != 0:
        raise ConfigError(f"Training did not finish; its last words are in {settings.var / 'training.log'}.")
    for line in lines.decode().splitlines():
        _say(line)


def _farewell(settings: Settings) -> None:
    where = {
        "Open": f"{settings.url}/sign-in#token={settings.token}  (signs you in; then Worklist, Beds, Monitor, Model)",
        "Runs": f".venv/bin/mlflow ui --backend-store-uri sqlite:///{settings.var}/mlflow.db",
        "Files": f"{settings.var}/reports and {settings.var}/monitor",
    }
    console.print()
    for what, place in where.items():
        console.print(f"[bold]{what:5}[/]", place, highlight=False, soft_wrap=True)


def _until_interrupted(server: subprocess.Popen[bytes]) -> None:
    console.print("The service keeps running. Ctrl-C stops it.", highlight=False)
    try:
        server.wait()
    except KeyboardInterrupt:
        console.print("Stopped.")
