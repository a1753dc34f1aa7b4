"""What the service counts. Labels come from fixed lists, so no identity can become one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.ingest.events import Verdict
    from serving.scoring import Score


class Metrics:
    """The service's own Prometheus registry."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        self.requests = Counter(
            "wardcast_requests",
            "Requests by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "wardcast_request_seconds",
            "Time to answer, by route.",
            ["route"],
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.predictions = Counter(
            "wardcast_predictions",
            "Predictions by model and status.",
            ["model", "status"],
            registry=self.registry,
        )
        self.events = Counter(
            "wardcast_events",
            "Events received, by verdict and reason.",
            ["verdict", "reason"],
            registry=self.registry,
        )
        self.pages = Counter("wardcast_pages", "Alerts raised.", ["model"], registry=self.registry)
        self.denied = Counter("wardcast_denied", "Requests denied, by why.", ["why"], registry=self.registry)
        self.cards = Counter(
            "wardcast_cds_cards",
            "CDS Hooks answers by hook and indicator; none where there was no card.",
            ["hook", "indicator"],
            registry=self.registry,
        )
        self.feedback = Counter(
            "wardcast_cds_feedback",
            "CDS Hooks feedback by outcome and override reason.",
            ["outcome", "reason"],
            registry=self.registry,
        )
        self.ready = Gauge(
            "wardcast_ready",
            "1 where the service can score.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )

    def count_verdicts(self, verdicts: Iterable[Verdict]) -> None:
        """Count what became of received events."""
        for verdict in verdicts:
            self.events.labels(verdict.verdict, verdict.reason or "").inc()

    def count_scores(self, model_id: str, scores: Iterable[Score]) -> None:
        """Count predictions."""
        for score in scores:
            self.predictions.labels(model_id, score.status).inc()

    def exposition(self, extra: Path) -> bytes:
        """Everything counted, over all workers, and what other runs left in ``extra`` (``*.prom``)."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        text = generate_latest(registry)
        for path in sorted(extra.glob("*.prom")) if extra.is_dir() else ():
            text += path.read_bytes().rstrip(b"\n") + b"\n"
        return text
