//! How statements on the outbox are prepared and read.

use tokio_postgres::types::ToSql;
use tokio_postgres::{RowStream, Statement};

use super::PollError;
use crate::postgres::SqlConnection;

/// The plans must not depend on statistics, which a new or emptied outbox has none of: every statement here is an index scan
/// in the index's order. Costs that are high on purpose must not start workers.
pub(in crate::source) const PLANNER: &str = "\
    SET enable_bitmapscan = off; SET enable_sort = off; SET max_parallel_workers_per_gather = 0";

pub(in crate::source) async fn prepare(
    session: &SqlConnection,
    query: &str,
) -> Result<Statement, PollError> {
    let statement = session.client.prepare(query).await;
    PollError::check(session, "prepare a statement on the outbox", statement).await
}

/// Starts a statement whose rows are read one by one.
pub(in crate::source) async fn stream<const N: usize>(
    session: &SqlConnection,
    statement: &Statement,
    params: [&(dyn ToSql + Sync); N],
) -> Result<RowStream, PollError> {
    let stream = session.client.query_raw(statement, params).await;
    PollError::check(session, "read from the outbox", stream).await
}
