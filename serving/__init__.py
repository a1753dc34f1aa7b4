"""The running service: store, ingest, scoring, alerts, pages, monitoring, security."""
