"""Outcomes. The only code that may look forward in time; no score may import it."""
