"""BentoML around the service: processes, sockets, TLS, restarts. The only module that knows BentoML.

Every path is answered by our own application. BentoML's index loads a remote script, and its probes and metrics know
nothing of ours: its metrics and traces are off, and its routes step aside.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from typing import Any, Final

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")  # read by BentoML once, on its import

import bentoml
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from features.errors import ConfigError, DataError
from features.sources.vocabulary import site_map
from models.bundle import Bundle
from serving import messenger, schedule
from serving.alerting import Alerting
from serving.app import create_app
from serving.companion import keep_loaded
from serving.feeds.station import LISTENER, Keeper, check_port
from serving.interop import push
from serving.interop.smart import read_target
from serving.reports.mail import Mailbox
from serving.security.clients import CdsClients
from serving.security.identity import Credentials
from serving.settings import ROOT, Settings, worker_count
from serving.state import Wardcast as State
from serving.store.store import Store

SERVICE: Final = "serving.service:Wardcast"
TIMEOUT_S: Final = 60
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


@cache
def application() -> FastAPI:
    """The application of this process, made on first use with the settings of its environment."""
    return create_app(Settings.from_env())


async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
    """The application as BentoML mounts it: importing this module makes nothing yet."""
    await application()(scope, receive, send)


class OursFirst:
    """Answer every request before BentoML routes it: its probes know neither store nor model, its index is not ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand requests to our application, and BentoML what is its own: start and stop."""
        await (mounted if scope["type"] == "http" else self._app)(scope, receive, send)


@bentoml.service(
    name="wardcast",
    workers=worker_count(),
    traffic={"timeout": TIMEOUT_S},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    # Nobody is told of any span: to make and drop some cost a millisecond a request.
    tracing={"excluded_urls": [".*"]},
)
@bentoml.asgi_app(mounted, path="/")
class Wardcast:
    """One worker process."""

    def __init__(self) -> None:
        state: State = application().state.wardcast
        if "sepsis" in state.bundles:
            state.scorer.warm()
        keep_loaded()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Give the store's connections back."""
        state: State = application().state.wardcast
        state.store.close()


Wardcast.add_asgi_middleware(OursFirst)  # type: ignore[attr-defined]  # the decorator's type hides the service


def keep_control_private() -> None:
    """Give BentoML's process manager control sockets that only this user can open.

    BentoML puts them on loopback TCP, where any account of this machine could have it start a command in our name.

    Raises
    ------
    ConfigError
        This BentoML starts its processes another way, and the sockets could be open: better not to serve.
    """
    from bentoml._internal.utils import circus as manager

    if not hasattr(manager, "create_standalone_arbiter"):
        raise ConfigError(
            "This BentoML is not known to be safe on a shared machine; install the locked version."
        )
    folder = tempfile.mkdtemp(
        prefix="wardcast-"
    )  # 0700; in the system's folder, since socket paths must be short
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def private(watchers: list[Any], *, threaded: bool = False, **options: Any) -> Any:
        made = manager.ThreadedArbiter if threaded else manager.Arbiter
        options.setdefault("check_delay", 10)
        return made(
            watchers, endpoint=f"ipc://{folder}/control", pubsub_endpoint=f"ipc://{folder}/news", **options
        )

    manager.create_standalone_arbiter = private


def _site_codes(settings: Settings) -> None:
    try:
        site_map(settings.site_map)
    except DataError as error:
        raise ConfigError(f"WARDCAST_SITE_MAP {settings.site_map}: {error}") from None


def preflight(settings: Settings) -> None:
    """Find out now what would else make workers fail one after another.

    Raises
    ------
    WardcastError
        A bundle is missing or was changed, the store does not open, the credentials, the callers of cards or the
        site's codes cannot be read, the mail server or its readers are no such thing, or the port is taken.
    """
    Alerting.of(settings).policy(Bundle.load_served(settings.sepsis_model))
    Bundle.load(settings.admissions_model)
    Store.open(settings.store_url, settings.store_key or None).close()
    Credentials.of(settings)
    CdsClients.of(settings)
    _site_codes(settings)
    Mailbox.of(settings.smtp, settings.mail_from, settings.mail_to, settings.smtp_password_file)
    check_port(settings.host, settings.port, "WARDCAST_PORT")
    if settings.push_file is not None:
        read_target(settings.push_file)
    if settings.mllp_port is not None:
        check_port(settings.mllp_host, settings.mllp_port, "WARDCAST_MLLP_PORT")


def serve(settings: Settings) -> None:
    """Run the service until it is told to stop.

    Raises
    ------
    WardcastError
        See :func:`preflight`.
    """
    preflight(settings)
    keep_control_private()
    os.environ.update(settings.environment())
    os.environ.setdefault("BENTOML_HOME", str(settings.var / "bentoml"))
    print(f"Wardcast is starting at {settings.url}", flush=True)
    if settings.token is not None:
        print(f"Sign in: {settings.url}/sign-in#token={settings.token}", flush=True)
    tls: dict[str, Any] = {}
    if settings.tls_cert and settings.tls_key:
        tls = {
            "ssl_certfile": str(settings.tls_cert),
            "ssl_keyfile": str(settings.tls_key),
            "ssl_ciphers": CIPHERS,
        }
    kept = [Keeper(command, settings.environment()) for command in companions(settings)]
    try:
        bentoml.serve(
            SERVICE, host=settings.host, port=settings.port, working_dir=str(ROOT), blocking=True, **tls
        )
    finally:
        for keeper in kept:
            keeper.stop()


def companions(settings: Settings) -> list[tuple[str, ...]]:
    """What runs beside the process that answers: HL7 v2, FHIR push, webhooks, and what is done by the clock."""
    wanted = (
        (LISTENER, settings.mllp_port is not None),
        (push.PROCESS, settings.push_file is not None),
        (messenger.PROCESS, bool(Alerting.of(settings).receivers)),
        (schedule.PROCESS, bool(schedule.jobs_of(settings))),
    )
    return [command for command, on in wanted if on]
