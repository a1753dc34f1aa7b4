"""timeseriesflattener: latest value, count, minimum, maximum and mean behind each prediction time.

What differs: no time since the latest value. Columns are named by whole days, so that 1 h and 6 h would collide; the
clock is therefore stretched 24 times and an hour called a day. Values are not compared.
"""

from __future__ import annotations

from _measure import Work, Workload, main


def prepare(workload: Workload) -> Work:
    import datetime as dt

    import polars as pl
    import timeseriesflattener as tsf
    from timeseriesflattener.aggregators import LatestAggregator

    start = pl.lit("2026-01-01").str.to_datetime(time_unit="us")
    stretched = start + (pl.col("timestamp") - start) * 24
    rows = pl.read_parquet(workload.rows).select(
        "subject_id", timestamp=pl.col("prediction_time").dt.replace_time_zone(None)
    )
    times = tsf.PredictionTimeFrame(rows.with_columns(stretched), "subject_id", "timestamp")
    kinds = {
        "count": tsf.CountAggregator(),
        "min": tsf.MinAggregator(),
        "max": tsf.MaxAggregator(),
        "mean": tsf.MeanAggregator(),
    }
    aggregators = [kinds[s] for s in workload.statistics]
    ever = [dt.timedelta(days=10_000)]

    def work() -> object:
        events = pl.read_parquet(workload.events, columns=["subject_id", "time", "concept", "numeric_value"])
        events = events.with_columns(timestamp=pl.col("time").dt.replace_time_zone(None)).with_columns(
            stretched
        )
        parts = events.with_columns(pl.col("concept").cast(pl.String)).partition_by("concept", as_dict=True)
        specs = []
        for concept in workload.concepts:
            values = parts[(concept,)].select(
                "subject_id", "timestamp", pl.col("numeric_value").alias(concept)
            )
            frame = tsf.ValueFrame(values, "subject_id", "timestamp")
            days = [dt.timedelta(days=h) for h in workload.lookbacks]
            specs.append(tsf.PredictorSpec(frame, days, aggregators, float("nan")))
            known = tsf.ValueFrame(values.rename({concept: f"{concept}_latest"}), "subject_id", "timestamp")
            specs.append(tsf.PredictorSpec(known, ever, [LatestAggregator("timestamp")], float("nan")))
        flattener = tsf.Flattener(times, n_workers=None if workload.cores == 1 else workload.cores)
        return flattener.aggregate_timeseries(specs).df

    return work


if __name__ == "__main__":
    main(prepare)
