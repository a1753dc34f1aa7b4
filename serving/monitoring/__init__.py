"""Watching the model and its inputs; the only door to Evidently."""
