"""What a model is: its spec, its bundle on disk, calibration, forecasts, metrics, decisions, cards."""
