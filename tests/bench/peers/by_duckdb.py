"""DuckDB: hourly tiles once, windows of whole rows over them, ASOF join for the latest value."""

from __future__ import annotations

from _measure import Work, Workload, main


def prepare(workload: Workload) -> Work:
    import duckdb
    import numpy as np

    con = duckdb.connect()
    con.execute(f"SET threads = {workload.cores}; SET TimeZone = 'UTC'; SET enable_progress_bar = false")
    con.execute("CREATE TABLE concepts (kind INTEGER, concept VARCHAR)")
    con.executemany("INSERT INTO concepts VALUES (?, ?)", list(enumerate(workload.concepts)))
    con.execute(
        "CREATE TABLE grid AS SELECT file_row_number::INTEGER AS place, subject_id, prediction_time AS time "
        f"FROM read_parquet('{workload.rows}', file_row_number = true)"
    )
    read = f"""
        CREATE OR REPLACE TEMP TABLE events AS
        SELECT kind, subject_id, time, numeric_value AS value
        FROM read_parquet('{workload.events}') JOIN concepts USING (concept) WHERE NOT isnan(numeric_value)"""
    formulas = {
        "count": "coalesce(sum(n) OVER w{h}, 0)",
        "min": "min(low) OVER w{h}",
        "max": "max(high) OVER w{h}",
        "mean": "sum(total) OVER w{h} / sum(n) OVER w{h}",
    }
    columns = ", ".join(
        f"({formulas[s].format(h=h)})::FLOAT AS {s}_{h}"
        for h in workload.lookbacks
        for s in workload.statistics
    )
    frames = ", ".join(
        f"w{h} AS (PARTITION BY kind, subject_id ORDER BY time RANGE BETWEEN INTERVAL {h - 1} HOUR PRECEDING "
        "AND CURRENT ROW)"
        for h in workload.lookbacks
    )
    windows = f"""
        WITH tiles AS (
            SELECT kind, subject_id, date_trunc('hour', time - INTERVAL 1 MICROSECOND) + INTERVAL 1 HOUR AS time,
                count(*) AS n, min(value) AS low, max(value) AS high, sum(value) AS total
            FROM events GROUP BY ALL),
        dense AS (
            SELECT kind, place, subject_id, time FROM grid, concepts
            UNION ALL BY NAME
            -- hours that nobody asked about still count in the windows of later ones
            SELECT kind, subject_id, time FROM tiles ANTI JOIN grid USING (subject_id, time)),
        laid AS (SELECT * FROM dense LEFT JOIN tiles USING (kind, subject_id, time)),
        rolled AS (SELECT kind, place, {columns} FROM laid WINDOW {frames})
        SELECT * EXCLUDE (kind, place) FROM rolled WHERE place IS NOT NULL ORDER BY kind, place"""
    latest = """
        WITH newest AS (SELECT kind, subject_id, time, max(value) AS value FROM events GROUP BY ALL)
        SELECT e.value::FLOAT AS last, (epoch_us(a.time) - epoch_us(e.time)) / 3.6e9 AS hours_since_last
        FROM (FROM grid, concepts) a ASOF LEFT JOIN newest e
            ON a.kind = e.kind AND a.subject_id = e.subject_id AND a.time >= e.time
        ORDER BY a.kind, a.place"""

    def work() -> object:
        con.execute(read)
        codes = len(workload.concepts)
        tables = [con.execute(sql).fetchnumpy() for sql in (latest, windows)]
        found = [np.ma.filled(column.astype(np.float32), np.nan) for t in tables for column in t.values()]
        matrix = np.empty((found[0].size // codes, codes, len(found)), np.float32)
        for k, column in enumerate(found):
            matrix[:, :, k] = column.reshape(codes, -1).T
        return matrix.reshape(len(matrix), -1)

    return work


if __name__ == "__main__":
    main(prepare)
