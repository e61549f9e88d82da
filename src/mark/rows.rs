//! Marks in the rows themselves: `sent_at` set, or the row deleted.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::{MarkError, Tenure};
use crate::config::Mark;
use crate::core::Delivered;
use crate::outbox::{Layout, Lsn, OutboxRow, RowId};
use postgres_protocol::escape::{escape_identifier, escape_literal};

/// How long a mark waits for rows that the stream brought and that nobody sees yet: their commit is flushed, and the
/// backend that wrote them was not run since. It holds its lock on the table until they are visible.
const VISIBLE_WITHIN: Duration = Duration::from_secs(5);
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// The statements that mark single rows of one table.
#[derive(Debug)]
pub struct RowMarks {
    tenure: Tenure,
    mark_sql: String,
    writers_sql: String,
    unsent_sql: String,
    replayed_below: Lsn,
}

impl RowMarks {
    pub(super) fn new(mark: Mark, layout: &Layout, tenure: Tenure, replayed_below: Lsn) -> Self {
        let table = layout.sql_name();
        let id = &layout.columns[layout.id];
        let (name, ids) = (
            escape_identifier(&id.name),
            format!("($1::text[])::{}[]", id.type_name),
        );
        let lease = "EXISTS (SELECT FROM outboxd.lease WHERE outbox = $2 AND epoch = $3 AND NOT released FOR SHARE)";
        let (mark_sql, is_unsent) = match mark {
            Mark::SentAt => (
                format!(
                    "UPDATE {table} SET sent_at = clock_timestamp() \
                     WHERE {name} = ANY ({ids}) AND sent_at IS NULL AND {lease}"
                ),
                " AND sent_at IS NULL",
            ),
            _ => (
                format!("DELETE FROM {table} WHERE {name} = ANY ({ids}) AND {lease}"),
                "",
            ),
        };
        let unsent_sql =
            format!("SELECT {name}::text FROM {table} WHERE {name} = ANY ({ids}){is_unsent}");
        let literal = escape_literal(&table);
        let writers_sql = format!(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE mode = 'RowExclusiveLock' \
             AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) \
             AND pid <> pg_backend_pid() AND (relation = {literal}::regclass \
             OR relation IN (SELECT relid FROM pg_catalog.pg_partition_tree({literal}))))"
        );
        Self {
            tenure,
            mark_sql,
            writers_sql,
            unsent_sql,
            replayed_below,
        }
    }

    /// A streamed row that could have been marked before is a repetition when it no longer stands
    /// in the table unsent.
    pub(super) async fn settled_before(
        &self,
        client: &Client,
        rows: &[OutboxRow],
    ) -> Result<Vec<bool>, MarkError> {
        let is_replayed = |row: &&OutboxRow| row.lsn <= self.replayed_below;
        let ids: Vec<_> = rows
            .iter()
            .filter(is_replayed)
            .filter_map(|row| Some(row.id.as_ref()?.to_string()))
            .collect();
        if ids.is_empty() {
            return Ok(vec![false; rows.len()]);
        }
        let found = client
            .query(&self.unsent_sql, &[&ids])
            .await
            .map_err(MarkError::sql("look rows up"))?;
        let unsent: HashSet<_> = found
            .iter()
            .map(|row| RowId::from_text(row.get::<_, &str>(0).as_bytes()))
            .collect();
        let is_settled = |row: &OutboxRow| {
            row.lsn <= self.replayed_below && row.id.as_ref().is_some_and(|id| !unsent.contains(id))
        };
        Ok(rows.iter().map(is_settled).collect())
    }

    pub(super) fn statement(&self, rows: &[Delivered]) -> RowStatement {
        RowStatement {
            sql: self.mark_sql.clone(),
            writers_sql: self.writers_sql.clone(),
            ids: rows.iter().map(|row| row.id.to_string()).collect(),
            tenure: self.tenure.clone(),
        }
    }
}

/// One `UPDATE` or `DELETE` of rows by id.
#[derive(Debug)]
pub struct RowStatement {
    sql: String,
    writers_sql: String,
    ids: Vec<String>,
    tenure: Tenure,
}

impl RowStatement {
    pub(super) async fn run(&self, client: &Client) -> Result<(), MarkError> {
        let Tenure { outbox, epoch } = &self.tenure;
        let mut marked = self.mark(client).await?;
        let until = Instant::now() + VISIBLE_WITHIN;
        while marked < self.ids.len() as u64 && Instant::now() < until {
            // Asked before the next try: whoever has let go of the table is visible to it.
            let has_writers = self.has_writers(client).await?;
            marked += self.mark(client).await?;
            if !has_writers {
                break;
            }
            sleep(AGAIN_AFTER).await;
        }
        if marked > 0 {
            return Ok(());
        }
        // Nothing matched: the rows are gone already, or the lease is.
        let held = client
            .query_opt(
                "SELECT FROM outboxd.lease WHERE outbox = $1 AND epoch = $2 AND NOT released",
                &[outbox, epoch],
            )
            .await
            .map_err(MarkError::sql("read the lease"))?;
        held.map(|_| ()).ok_or_else(|| MarkError::NotLeader {
            outbox: outbox.clone(),
        })
    }

    async fn mark(&self, client: &Client) -> Result<u64, MarkError> {
        let Tenure { outbox, epoch } = &self.tenure;
        let marked = client.execute(&self.sql, &[&self.ids, outbox, epoch]).await;
        marked.map_err(MarkError::sql("mark rows as sent"))
    }

    async fn has_writers(&self, client: &Client) -> Result<bool, MarkError> {
        let row = client.query_one(&self.writers_sql, &[]).await;
        Ok(row.map_err(MarkError::sql("see who writes"))?.get(0))
    }
}
