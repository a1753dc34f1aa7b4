"""Sends what webhooks are to be told: a process that ``wardcast serve`` keeps where somebody wants to be told."""

from __future__ import annotations

import sys
from typing import Final

from serving.alerting import Alerting
from serving.companion import told_to_stop
from serving.settings import Settings
from serving.state import wall_us
from serving.store.store import Store
from serving.webhooks import run

PROCESS: Final = (sys.executable, "-m", "serving.messenger")


def main() -> None:
    """Until told to stop."""
    settings, stop = Settings.from_env(), told_to_stop()
    store = Store.open(settings.store_url, settings.store_key or None, settings.site)
    try:
        run(store, Alerting.of(settings).receivers, stop, wall_us)
    finally:
        store.close()


if __name__ == "__main__":
    main()
