"""The one command, ``wardcast``: parses, calls one function, prints.

Heavy packages are imported inside the commands, so that ``wardcast --help`` answers at once.
"""

from __future__ import annotations

import os

# Before anything else is imported: no dependency may phone home, and nothing may be unpickled from a registry.
for _name, _value in {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "BENTOML_DO_NOT_TRACK": "True",
    "ITERATIVE_DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(_name, _value)

import inspect
import signal
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from features.errors import WardcastError

if TYPE_CHECKING:
    from serving.settings import Settings

app = typer.Typer(
    name="wardcast",
    help="Predictive clinical risk that a hospital can run itself: sepsis risk and bed forecasts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
forecast_app = typer.Typer(help="Forecast beds.", no_args_is_help=True)
app.add_typer(forecast_app, name="forecast")
ingest_app = typer.Typer(help="What came in.", no_args_is_help=True)
app.add_typer(ingest_app, name="ingest")
alerts_app = typer.Typer(help="Alerts and their rules.", no_args_is_help=True)
app.add_typer(alerts_app, name="alerts")
backtest_app = typer.Typer(help="Issue past forecasts again, and judge them.", no_args_is_help=True)
app.add_typer(backtest_app, name="backtest")
data_app = typer.Typer(help="Bring data of your own: convert, check, label.", no_args_is_help=True)
app.add_typer(data_app, name="data")
features_app = typer.Typer(help="Build features.", no_args_is_help=True)
app.add_typer(features_app, name="features")
out = Console()
err = Console(stderr=True)


class Product(StrEnum):
    """What Wardcast predicts."""

    sepsis = "sepsis"
    admissions = "admissions"


class Label(StrEnum):
    """What can be looked for in the past."""

    sepsis3 = "sepsis3"


class Engine(StrEnum):
    """Where features are built."""

    local = "local"
    dask = "dask"


class Shape(StrEnum):
    """What a row of a file of counts is."""

    hourly = "hourly"
    daily = "daily"
    visits = "visits"


class Start(StrEnum):
    """Where a grid of prediction times begins."""

    icu = "icu"
    hospital = "hospital"


ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="A bundle folder or an MLflow URI such as models:/sepsis@champion."),
]
BedsModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A bundle folder or an MLflow URI such as models:/admissions@champion. "
        "Default: WARDCAST_ADMISSIONS_MODEL, else the released model.",
    ),
]
SourceOption = Annotated[str, typer.Option("--source", help="Format of the input.")]
InputOption = Annotated[Path | None, typer.Option("--input", help="A file, or a folder of files.")]
ArchiveOption = Annotated[Path, typer.Option("--input", help="An archive made by `wardcast data convert`.")]
SpecOption = Annotated[Path | None, typer.Option("--spec", help="A spec.toml instead of a model.")]
MappingOption = Annotated[
    Path | None, typer.Option(help="What the site's own columns or codes mean, a TOML file.")
]
TimezoneOption = Annotated[
    str, typer.Option(envvar="WARDCAST_TIMEZONE", help="Of times without an offset.", show_envvar=True)
]
CovariatesOption = Annotated[
    list[Path] | None,
    typer.Option(help="Weather, virus series, calendars: Parquet, CSV or XLSX; may be repeated."),
]
ThreadsOption = Annotated[int, typer.Option(help="Cores to use.", min=1)]
CORES = os.cpu_count() or 1


@app.command()
def train(
    product: Product,
    source: SourceOption,
    input: InputOption = None,
    label: Annotated[Label | None, typer.Option(help="What to learn from a hospital's own data.")] = None,
    mapping: MappingOption = None,
    spec: Annotated[Path | None, typer.Option(help="Another spec.toml than the product's own.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where to write the bundle; default under var/.")
    ] = None,
    register: Annotated[bool, typer.Option(help="Log the run and register the model in MLflow.")] = True,
    threads: ThreadsOption = CORES,
) -> None:
    """Train, calibrate and evaluate a model, and log everything to MLflow.

    sepsis: --source physionet2019 --input DIR, or --source synthetic; a hospital's own data: --source mimic4 (or
    another format of `wardcast data convert`) --label sepsis3 --input ARCHIVE_OR_EXTRACT.

    admissions: --source visits --input FILE, or --source synthetic; P(admission) alone from one row a visit:
    --source triage --input FILE --mapping FILE.
    """
    from importlib import import_module

    if source == "triage":
        _refuse_unread("triage", {"--label": label, "--spec": spec})
        _admissions_only(product)
        from training import triage

        _tell(triage.train(input, mapping, output, threads=threads, register=register).summary())
        return
    _refuse_unread(
        source,
        {"--mapping": mapping},
        "Convert first (wardcast data convert --mapping), then train on the archive.",
    )
    if label is not None and product is not Product.sepsis:
        raise typer.BadParameter(f"{label.value} is learned by sepsis only.", param_hint="--label")
    trainer = import_module(f"training.{product.value}")
    more = {} if label is None else {"label": label.value}
    result = trainer.train(
        source, input, spec=spec, output=output, register=register, threads=threads, **more
    )
    _tell(result.summary())


def _admissions_only(product: Product) -> None:
    """Rows of triage teach P(admission), whatever else was asked for."""
    if product is not Product.admissions:
        raise typer.BadParameter(
            f"Rows of triage are for admissions, not for {product.value}.", param_hint="--source"
        )


def _refuse_unread(source: str, options: Mapping[str, object], remedy: str = "Leave it out.") -> None:
    """Refuse an option that this source does not read: it would look as if it had counted."""
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter(f"It is not read with --source {source}. {remedy}", param_hint=name)


@app.command()
def score(
    product: Product,
    input: Annotated[Path, typer.Option("--input", help="The file to score.")],
    output: Annotated[Path, typer.Option("--output", help="Where to write the scores, as Parquet.")],
    source: SourceOption = "physionet2019",
    model: ModelOption = None,
) -> None:
    """Score every row of a file, using at each hour only that hour and earlier ones.

    admissions: --source triage --model FOLDER, one probability a row; the file needs no outcome.
    """
    if source == "triage":
        _admissions_only(product)
        from training import triage

        _tell(triage.score_file(input, output, model).summary())
        return
    from training.scoring import score_file

    _tell(score_file(product.value, source, input, output, model).summary())


@app.command()
def evaluate(
    product: Product,
    input: Annotated[Path, typer.Option("--input", help="A file or folder with outcomes.")],
    source: SourceOption = "physionet2019",
    model: ModelOption = None,
    output: Annotated[Path | None, typer.Option(help="Also save the table, as JSON.")] = None,
    mapping: MappingOption = None,
) -> None:
    """Print the evaluation table of any model on any file, with patient-bootstrap intervals."""
    if source == "triage":
        _admissions_only(product)
        from training import triage

        _tell(triage.evaluate_file(input, model, output, mapping).summary())
        return
    _refuse_unread(source, {"--mapping": mapping})
    from training.scoring import evaluate_file

    _tell(evaluate_file(product.value, source, input, model, output).summary())


ApprovedBy = Annotated[str, typer.Option("--approved-by", help="Who answers for it.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, in a sentence; kept with the version.")]


@app.command()
def promote(
    product: Product,
    approved_by: ApprovedBy,
    reason: ReasonOption,
    version: Annotated[
        str | None, typer.Option(help="A registered version. Default: the challenger.")
    ] = None,
    gates: Annotated[Path | None, typer.Option(help="Other gates than models/gates.toml.")] = None,
) -> None:
    """Let a registered model serve as models:/PRODUCT@champion, if it passes every gate.

    Ends with 0 when it does, with 1 when a gate failed and nothing was changed, with 2 when it could not be judged.
    """
    from serving.rehearsal import rehearse
    from training.gates import rehearsal
    from training.promotion import Approval
    from training.promotion import promote as promote_version

    tried = rehearsal(rehearse) if product is Product.sepsis else None
    done = promote_version(
        product.value, Approval(approved_by, reason), version=version, gates=gates, rehearsal=tried
    )
    _tell(done.summary())
    raise typer.Exit(0 if done.promoted else 1)


@app.command()
def rollback(product: Product, approved_by: ApprovedBy, reason: ReasonOption) -> None:
    """Let the model serve again that was champion before the present one."""
    from training.promotion import Approval
    from training.promotion import rollback as roll_back

    _tell(roll_back(product.value, Approval(approved_by, reason)).summary())


@app.command()
def recalibrate(
    product: Product,
    input: Annotated[Path, typer.Option("--input", help="A file or folder of local patients with outcomes.")],
    source: SourceOption = "physionet2019",
    model: ModelOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Where to write the bundle; default under var/.")
    ] = None,
    register: Annotated[bool, typer.Option(help="Log the run and register the model in MLflow.")] = True,
    threads: ThreadsOption = CORES,
) -> None:
    """Fit a model's probabilities to a few hundred local patients: same ranking, new calibration, a challenger."""
    from training.recalibration import recalibrate as run

    made = run(product.value, source, input, output, model=model, register=register, threads=threads)
    _tell(made.summary())


@app.command()
def serve(
    model: ModelOption = None,
) -> None:
    """Run the service on one port. Settings are WARDCAST_* variables; see the README."""
    from serving.settings import Settings

    settings = Settings.from_env()
    if model is not None:
        from training.tracking import resolve

        settings = settings.with_sepsis_model(resolve(model))
    from serving.service import serve as run_service

    run_service(settings)


@app.command()
def mllp() -> None:
    """Take HL7 v2 messages on WARDCAST_MLLP_PORT and score whom they are about; `serve` does so too where it is set."""
    from serving.feeds.station import listen
    from serving.settings import Settings

    listen(Settings.from_env())


@alerts_app.command("replay")
def alerts_replay(
    rules: Annotated[
        Path | None, typer.Option(help="Rules to try, as in WARDCAST_ALERTS_FILE. Default: those that stand.")
    ] = None,
) -> None:
    """Walk the stored scores through the alert rules again: the same alerts, or what other rules would raise.

    Ends with 1 where the rules that stand give other alerts than were raised.
    """
    from serving.alert_replay import replay
    from serving.settings import Settings

    replayed = replay(Settings.from_env(), rules)
    _tell(replayed.summary())
    raise typer.Exit(0 if rules or replayed.alike else 1)


@alerts_app.command("webhooks")
def alerts_webhooks(
    again: Annotated[
        bool, typer.Option("--again", help="Let what was given up after a day be tried anew.")
    ] = False,
) -> None:
    """Count the messages to webhooks: waiting, delivered, or dead, which is given up."""
    from serving.settings import Settings
    from serving.state import wall_us
    from serving.store.store import Store
    from serving.webhooks import revive, standing, summary

    settings = Settings.from_env()
    store = Store.open(settings.store_url, settings.store_key or None, settings.site)
    try:
        with store.write() as connection:
            if again:
                _tell(f"{revive(connection, wall_us()):,} wait again.")
            _tell(summary(standing(connection)))
    finally:
        store.close()


@ingest_app.command("report")
def ingest_report() -> None:
    """Count what came in, and list by code what could not be used, with what to do."""
    from serving.ingest.report import report
    from serving.settings import Settings

    _tell(report(Settings.from_env(make=False)).summary())


@app.command()
def explain(
    prediction_id: Annotated[str, typer.Argument(help="As returned with the prediction.")],
    what_if: Annotated[
        list[str] | None,
        typer.Option(help="Also the score with another last value: lactate=1.0. May be repeated."),
    ] = None,
) -> None:
    """Repeat a logged prediction from its stored inputs and show its reasons; the numbers must be identical."""
    from serving.explain import explain_prediction
    from serving.settings import Settings
    from serving.whatif import changes_of

    changes = changes_of(what_if or ())
    out.print_json(data=explain_prediction(Settings.from_env(make=False), prediction_id, changes))


@forecast_app.command("beds")
def forecast_beds(
    at: Annotated[
        str, typer.Option(help="When, in the site's time zone: 2026-01-12T08:00. Default: now.")
    ] = "now",
    visits: Annotated[
        Path | None, typer.Option(help="A visits table instead of the service's store.")
    ] = None,
    model: BedsModelOption = None,
    hospital: Annotated[
        str, typer.Option(help="Which hospital of a table that has several; of counts, which series.")
    ] = "",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="html, pdf, xlsx, csv or json; default the suffix of --output.",
        ),
    ] = "",
    output: Annotated[
        Path | None, typer.Option(help="Where to write the report; default under var/reports.")
    ] = None,
    shape: Annotated[
        Shape | None, typer.Option(help="Forecast a site's own counts instead: what a row of --input is.")
    ] = None,
    input: Annotated[
        Path | None, typer.Option("--input", help="With --shape: counts or visits, Parquet or CSV.")
    ] = None,
    covariates: CovariatesOption = None,
    mapping: MappingOption = None,
    threads: ThreadsOption = CORES,
) -> None:
    """Write the bed forecast as one file: a page, a PDF, a spreadsheet, or figures.

    A site that has counts by hour or by day and no more: --shape hourly or daily, --input FILE. Models are fitted on
    the file's own history, and --at is the first hour or day to come; by default that after the newest count.
    """
    from serving.settings import Settings

    settings = Settings.from_env()
    if shape is not None or input is not None:
        if shape is None or input is None or visits is not None or model is not None:
            raise typer.BadParameter(
                "--shape and --input go together, and without --visits and --model: counts are forecast from "
                "their own history.",
                param_hint="--shape",
            )
        _forecast_counts(
            settings, shape, input, at, hospital, form, output, covariates or (), mapping, threads
        )
        return
    if covariates or mapping:
        raise typer.BadParameter(
            "--covariates and --mapping go with --shape and --input.", param_hint="--shape"
        )
    from serving.reports.beds import forecast_report

    if model is not None:
        from training.tracking import resolve

        settings = settings.with_admissions_model(resolve(model))
    report = forecast_report(settings, at=at, visits=visits, output=output, form=form, hospital=hospital)
    _tell(report.summary())


def _forecast_counts(
    settings: Settings, shape: Shape, input: Path, at: str, hospital: str, form: str, output: Path | None,
    covariates: Sequence[Path], mapping: Path | None, threads: int,
) -> None:  # fmt: skip
    """Forecast a file of counts, and write and print what is foreseen."""
    from serving.reports.counted import form_of, write
    from training.series_forecast import foresee

    name = form_of(form, output)
    made = foresee(
        shape.value, input, at, hospital=hospital, covariate_files=covariates, mapping=mapping,
        timezone=settings.timezone, threads=threads,
    )  # fmt: skip
    _tell(write(made, name, output, settings.var / "reports", settings.site).summary())


@backtest_app.command("beds")
def backtest_beds(
    shape: Annotated[Shape, typer.Option(help="What a row is: an hour, a day, or a visit to be counted.")],
    input: Annotated[Path, typer.Option("--input", help="Counts or visits, Parquet or CSV.")],
    start: Annotated[str, typer.Option("--from", help="First origin: 2026-01-12 or 2026-01-12T08:00.")],
    output: Annotated[Path, typer.Option("--output", help="Parquet file for every forecast issued.")],
    every: Annotated[
        str | None, typer.Option(help="Between origins. Default: 12h of hours, 1d of days.")
    ] = None,
    horizon: Annotated[
        str | None, typer.Option(help="How far ahead. Default: 48h of hours, 7d of days.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Last origin. Default: the end of the counts.")] = None,
    refit: Annotated[str, typer.Option(help="How often models are fitted anew.")] = "28d",
    covariates: CovariatesOption = None,
    mapping: MappingOption = None,
    timezone: TimezoneOption = "UTC",
    track: Annotated[bool, typer.Option(help="Record the run in MLflow.")] = True,
    threads: ThreadsOption = CORES,
) -> None:
    """Issue past forecasts again, each from what was known then, and judge them beside humble ones.

    Writes one row a forecast, with 19 quantiles; figures with intervals as JSON and plots lie beside it. Columns that
    are understood: wardcast data schema counts.
    """
    from training.series_backtest import Asked, run

    asked = Asked(start, every, horizon, refit, until, threads)
    done = run(
        shape.value, input, output, asked,
        covariate_files=covariates or (), mapping=mapping, timezone=timezone, track=track,
    )  # fmt: skip
    _tell(done.summary())


@forecast_app.command("patients")
def forecast_patients(
    at: Annotated[str, typer.Option(help="When, in the site's time zone. Default: now.")] = "now",
    visits: Annotated[
        Path | None, typer.Option(help="A visits table instead of the service's store.")
    ] = None,
    model: BedsModelOption = None,
) -> None:
    """Print P(admission) of everybody undecided in the emergency department, with its reasons, as JSON."""
    from serving.reports.patients import patients_at
    from serving.settings import Settings

    settings = Settings.from_env()
    if model is not None:
        from training.tracking import resolve

        settings = settings.with_admissions_model(resolve(model))
    out.print_json(data=patients_at(settings, at, visits))


@data_app.command("convert")
def data_convert(
    source: Annotated[
        str,
        typer.Option(
            help="mimic3, mimic4, eicu, omop, clif, meds, fhir, hl7v2, physionet2012, physionet2019 or observations."
        ),
    ],
    input: Annotated[Path, typer.Option("--input", help="A file, or a folder of files.")],
    output: Annotated[Path, typer.Option("--output", help="The archive to make: a new folder.")],
    timezone: TimezoneOption = "UTC",
    mapping: MappingOption = None,
    account: Annotated[Path | None, typer.Option(help="Also save the whole account, as JSON.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an archive that is there; nothing else is.")
    ] = False,
    threads: ThreadsOption = CORES,
) -> None:
    """Read a hospital's format and write an archive: a MEDS data set, cleaned, with nothing lost unsaid.

    Prints what became of every row. `wardcast data schema` shows what each source must look like.
    """
    from training.datasets import convert, write_account

    made = convert(
        source, input, output, timezone=timezone, mapping=mapping, threads=threads, overwrite=overwrite
    )
    if account is not None:
        write_account(made, account)
    _tell(made.summary())


@data_app.command("check")
def data_check(
    input: Annotated[Path, typer.Option("--input", help="An archive; with --source, the extract itself.")],
    source: Annotated[
        str | None,
        typer.Option(
            help="Format of an extract that is not converted yet; visits, or hourly or daily counts, for bed forecasts."
        ),
    ] = None,
    model: ModelOption = None,
    spec: SpecOption = None,
    timezone: TimezoneOption = "UTC",
    mapping: MappingOption = None,
    threads: ThreadsOption = CORES,
) -> None:
    """Compare data with what a model reads; without --model or --spec, the released sepsis model.

    Ends with 0 when everything the model reads is there, with 1 when something is absent or a file of visits cannot
    be used, with 2 when the data cannot be read at all. A concept that is merely sparse is reported and passes.
    """
    from training.datasets import check

    found = check(
        input, source=source, model=model, spec=spec, timezone=timezone, mapping=mapping, threads=threads
    )
    _tell(found.summary())
    raise typer.Exit(0 if found.ok else 1)


@data_app.command("schema")
def data_schema(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A source, or visits, counts, covariates, forecasts, events, encounters, archive."
        ),
    ] = None,
) -> None:
    """Show which tables and columns a source must have, and which it may."""
    from training.layouts import schema

    _tell(schema(name))


@data_app.command("label")
def data_label(
    input: ArchiveOption,
    output: Annotated[Path, typer.Option("--output", help="Where to write the onsets, as Parquet.")],
    label: Annotated[Label, typer.Option(help="What to look for.")] = Label.sepsis3,
    preset: Annotated[
        str, typer.Option(help="Whose reading of Sepsis-3: mimic_code, seymour_2016, ricu or physionet_2019.")
    ] = "mimic_code",
    diagnoses: Annotated[
        Path | None, typer.Option(help="The folder with discharge diagnoses, to compare with coded sepsis.")
    ] = None,
    min_age: Annotated[float, typer.Option(help="Years at admission, at least.")] = 18,
) -> None:
    """Find sepsis onsets, one row a stay, and say how many: with intervals, beside coded sepsis."""
    from training.labelling import label as label_archive

    _tell(label_archive(input, output, preset=preset, diagnoses=diagnoses, min_age=min_age).summary())


@features_app.command("build")
def features_build(
    input: ArchiveOption,
    output: Annotated[Path, typer.Option("--output", help="A new folder for the features.")],
    at: Annotated[
        str, typer.Option(help="hourly, 4h, events:lactate,map, or a Parquet file of prediction times.")
    ] = "hourly",
    start: Annotated[
        Start | None, typer.Option(help="Where hourly or 4h begins. Default: hospital admission.")
    ] = None,
    model: ModelOption = None,
    spec: SpecOption = None,
    engine: Annotated[
        Engine, typer.Option(help="This machine, or a Dask cluster: the same bits.")
    ] = Engine.local,
    scheduler: Annotated[str, typer.Option(help="Address of a Dask scheduler, tcp://…:8786.")] = "",
    workers: Annotated[int, typer.Option(help="Processes of a Dask cluster of our own.", min=1)] = CORES,
    threads: ThreadsOption = CORES,
) -> None:
    """Build the features of a model for every prediction time of an archive; default: the released sepsis model."""
    from training.building import build

    built = build(
        input, output, at, start=start and start.value, model=model, spec=spec, engine=engine.value,
        scheduler=scheduler, workers=workers, threads=threads,
    )  # fmt: skip
    _tell(built.summary())


@app.command()
def monitor(
    output: Annotated[
        Path | None, typer.Option(help="Folder for the report; default under var/monitor.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="First prediction time, ISO 8601.")] = None,
    until: Annotated[str | None, typer.Option(help="Last prediction time, ISO 8601.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Outcomes, CSV or Parquet: encounter_id, onset_time (empty: none).")
    ] = None,
    track: Annotated[bool, typer.Option(help="Record the run in MLflow.")] = True,
) -> None:
    """Compare logged predictions with the model's reference; write HTML and JSON, export metrics."""
    from serving.monitoring.run import monitor as run_monitor
    from serving.settings import Settings

    result = run_monitor(Settings.from_env(), output=output, since=since, until=until, labels=labels)
    if track:
        from training.tracking import log_monitor

        log_monitor(result.metrics, result.artifacts)
    _tell(result.summary())


@app.command()
def demo(
    days: Annotated[int, typer.Option(help="Days of hospital life to stream.")] = 4,
    seed: Annotated[int, typer.Option(help="Same seed, same hospital.")] = 7,
    keep_running: Annotated[bool, typer.Option(help="Leave the service up until Ctrl-C.")] = True,
) -> None:
    """Run a simulated hospital through the whole service, and say what came of it."""
    var = Path(os.environ.setdefault("WARDCAST_VAR", "var/demo")).absolute()  # before training reads it too
    from serving.demo import run_demo

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the demo's service is stopped with it
    training = [sys.executable, "-m", "training.demo"]
    run_demo(training, var=var, days=days, seed=seed, keep_running=keep_running)


def _reflow(*apps: typer.Typer) -> None:
    """Let help fill the terminal: Typer keeps the line breaks of every paragraph of a docstring but the first."""
    for group in apps:
        for command in group.registered_commands:
            paragraphs = inspect.cleandoc(command.callback.__doc__ or "").split("\n\n")
            command.help = "\n\n".join(" ".join(p.split("\n")) for p in paragraphs)


def _tell(text: str) -> None:
    """Print as it is: tables keep their lines, whatever the width of the terminal."""
    out.print(text, soft_wrap=True, markup=False, highlight=False)


_reflow(app, *(group.typer_instance for group in app.registered_groups if group.typer_instance))


def main() -> None:
    """Entry point: errors a user can mend are printed without a traceback, exit code 2."""
    try:
        app()
    except WardcastError as error:
        err.print("[bold red]wardcast:[/]", escape(str(error)), highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
