"""polars as hard as we could drive it: all patients on one line of hours, and rolling windows of whole rows over it.

Only for hourly grids. Each patient's hours stand on the line behind as many empty ones as the longest window is long,
so that no window reaches into the patient before; then no group is needed, events are summed up by hour once, and
windows roll over dense columns. ``group_by_dynamic`` over the same line of integers cost a fifth more.
"""

from __future__ import annotations

from _measure import Work, Workload, main

HOUR_US = 3_600_000_000


def prepare(workload: Workload) -> Work:
    import polars as pl

    f32, value, time = pl.Float32, pl.col("value"), pl.col("time").to_physical()
    ceiling = -((-time) // HOUR_US)
    concepts, lookbacks = workload.concepts, workload.lookbacks
    if "slope" in workload.statistics or "sum" in workload.statistics:
        raise ValueError("The line of hours does count, min, max and mean.")
    rows = pl.read_parquet(workload.rows, columns=["subject_id", "prediction_time"])
    blank = max(lookbacks) - 1

    def line(events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Where each subject begins on the line, and where each row stands."""
        grid = rows.with_columns(hour=pl.col("prediction_time").to_physical() // HOUR_US)
        spans = grid.group_by("subject_id").agg(first=pl.col("hour").min(), final=pl.col("hour").max())
        earliest = events.group_by("subject_id").agg(early=ceiling.min())
        spans = spans.join(earliest, on="subject_id", how="left").sort("subject_id")
        spans = spans.with_columns(first=pl.min_horizontal("first", "early"))
        length = pl.col("final") - pl.col("first") + 1 + blank
        spans = spans.with_columns(base=length.cum_sum() - length + blank - pl.col("first"))
        return spans, grid.join(spans, on="subject_id", how="left", maintain_order="left")

    def hourly(events: pl.DataFrame, whole: pl.DataFrame) -> pl.DataFrame:
        """One concept by the hour: null where nothing happened."""
        cells = events.group_by("at").agg(
            count=pl.len().cast(f32),
            min=value.min().cast(f32),
            max=value.max().cast(f32),
            sum=value.sum(),
            last=value.last().cast(f32),
            seen=pl.col("time").last(),
        )
        return whole.join(cells, on="at", how="left", maintain_order="left")

    def windows() -> list[pl.Expr]:
        made = []
        for h in lookbacks:
            n, low, high, total = (
                pl.col("count").rolling_sum(h, min_samples=1),
                pl.col("min").rolling_min(h, min_samples=1),
                pl.col("max").rolling_max(h, min_samples=1),
                pl.col("sum").rolling_sum(h, min_samples=1),
            )
            parts = {"count": n.fill_null(0), "min": low, "max": high, "mean": (total / n).cast(f32)}
            made += [parts[s].alias(f"{s}_{h}") for s in workload.statistics]
        return made

    def work() -> object:
        kinds = pl.Enum(concepts)
        events = (
            pl.scan_parquet(workload.events)
            .select(
                "subject_id", "time", pl.col("concept").cast(pl.String).cast(kinds), value="numeric_value"
            )
            .filter(value.is_not_nan())
            .collect()
        )
        spans, grid = line(events)
        placed = events.join(spans, on="subject_id", maintain_order="left").filter(ceiling <= pl.col("final"))
        placed = placed.select("concept", "value", time, at=ceiling + pl.col("base"))
        parts = placed.partition_by("concept", as_dict=True, include_key=False)
        place = grid.select((pl.col("hour") + pl.col("base")).cast(pl.UInt32))["hour"]
        whole = pl.DataFrame({"at": pl.int_range(0, place.max() + 1, eager=True)})
        own, now = grid["first"] + grid["base"], grid["prediction_time"].to_physical()
        columns: list[pl.Series] = []
        for concept in concepts:
            cells = hourly(parts.get((concept,), placed.clear().drop("concept")), whole)
            held = pl.when(pl.col("seen").is_not_null()).then("at").forward_fill().alias("held")
            dense = cells.select(held, pl.col("last", "seen").forward_fill(), *windows())[place]
            mine = pl.col("held") >= own
            age = ((now - pl.col("seen")) / 3.6e9).cast(f32)
            columns += dense.select(
                last=pl.when(mine).then("last"), since=pl.when(mine).then(age)
            ).get_columns()
            columns += dense.drop("held", "last", "seen").get_columns()
        return pl.DataFrame([c.alias(str(k)) for k, c in enumerate(columns)]).to_numpy()

    return work


if __name__ == "__main__":
    main(prepare)
