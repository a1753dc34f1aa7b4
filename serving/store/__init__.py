"""Durable state: encounters, events, predictions, alerts, audit. SQLCipher file or PostgreSQL."""
