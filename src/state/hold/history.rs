//! What was released, replayed or discarded is kept for a while, for people.

use tokio_postgres::Client;

use crate::mark::ledger::{LEASE, number_sql};
use crate::mark::{FencingToken, MarkError};

/// How long, and how much of it goes at once.
const KEPT_FOR: &str = "interval '30 days'";
const ROWS_AT_ONCE: i64 = 1_000;

/// Deletes history that is older than 30 days; the number of a discarded row is skipped from then on.
pub(crate) async fn forget_history(client: &Client, token: &FencingToken) -> Result<(), MarkError> {
    let sql = format!(
        "WITH {LEASE}, gone AS (\
           DELETE FROM outboxd.kept WHERE id IN (\
             SELECT k.id FROM outboxd.kept k, lease WHERE k.outbox = $1 AND k.state IN ('replayed', 'discarded') \
               AND k.at < clock_timestamp() - {KEPT_FOR} ORDER BY k.id LIMIT {ROWS_AT_ONCE}) \
           RETURNING state, generation, seq), \
         skipped AS (\
           UPDATE outboxd.outbox o SET skipped = o.skipped + given_up.numbers FROM (\
             SELECT generation, range_agg({}) AS numbers FROM gone \
             WHERE state = 'discarded' AND seq IS NOT NULL GROUP BY generation) given_up \
           WHERE o.outbox = $1 AND o.generation = given_up.generation) \
         DELETE FROM outboxd.blocked WHERE outbox = $1 AND key IN (\
           SELECT b.key FROM outboxd.blocked b, lease WHERE b.outbox = $1 AND b.state = 'released' \
             AND b.at < clock_timestamp() - {KEPT_FOR} LIMIT {ROWS_AT_ONCE})",
        number_sql("seq")
    );
    let done = client.execute(&sql, &[&token.outbox, &token.epoch]).await;
    done.map(drop)
        .map_err(MarkError::sql("forget what was released long ago"))
}
