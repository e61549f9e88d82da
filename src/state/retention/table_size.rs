//! How much an outbox table holds: estimates, for counting would read all of it.

use tokio_postgres::Client;

use serde::{Deserialize, Serialize};

/// Estimates what a table and its partitions hold; `table` is its name for SQL. `None` where there is no such table.
///
/// Rows as the planner estimates them, from the last VACUUM or ANALYZE and the size now; before the first one as the
/// server counted them. Reads no row.
/// Source: PostgreSQL, `pg_class.reltuples`, 14.1 "Using EXPLAIN" and `estimate_rel_size`.
pub(crate) async fn table_size(
    client: &Client,
    table: &str,
) -> Result<Option<TableSize>, tokio_postgres::Error> {
    let row = client.query_one(KEPT, &[&table]).await?;
    let number = |number: Option<f64>| number.map(|number| number.max(0.0) as u64);
    let (rows, bytes) = (number(row.try_get(0)?), number(row.try_get(1)?));
    Ok(rows
        .zip(bytes)
        .map(|(rows, bytes)| TableSize { rows, bytes }))
}

const KEPT: &str = "
    WITH RECURSIVE tree (oid) AS (
        SELECT pg_catalog.to_regclass($1)::oid
        UNION ALL
        SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.oid)
    SELECT sum(CASE WHEN c.relpages > 0 THEN c.reltuples::float8 / c.relpages * pg_catalog.pg_relation_size(c.oid)
                         / pg_catalog.current_setting('block_size')::float8
                    ELSE pg_catalog.pg_stat_get_live_tuples(c.oid) END)::float8,
           sum(pg_catalog.pg_total_relation_size(c.oid))::float8
    FROM tree JOIN pg_catalog.pg_class c USING (oid) WHERE c.relkind = 'r'";

/// Estimates of what an outbox table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableSize {
    pub rows: u64,
    /// Indexes, and values that are stored out of line, included.
    pub bytes: u64,
}
