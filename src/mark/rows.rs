//! Marks in the rows themselves: `sent_at` set, or the row deleted.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::{MarkError, Tenure};
use crate::config::Mark;
use crate::core::Delivered;
use crate::inspect::{SeqIndex, Table};
use crate::outbox::{Lsn, OutboxRow, RowId};
use postgres_protocol::escape::{escape_identifier, escape_literal};

/// How long a mark waits for rows that the stream brought and that nobody sees yet: their commit is flushed, and the
/// backend that wrote them was not run since. It holds its lock on the table until they are visible.
const VISIBLE_WITHIN: Duration = Duration::from_secs(5);
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Numbers between the lowest and the highest row, for each row, up to which they are read in the order of their numbers:
/// that takes a fifth of the time that finding each row by a random uuid does (delete: 45k against 250–300k rows/s).
const SPREAD_MAX: u64 = 16;
const LEASE: &str = "EXISTS (SELECT FROM outboxd.lease WHERE outbox = $2 AND epoch = $3 AND NOT released FOR SHARE)";

/// The statements that mark single rows of one table.
#[derive(Debug)]
pub struct RowMarks {
    tenure: Tenure,
    sql: Arc<Sql>,
    unsent_sql: String,
    replayed_below: Lsn,
}

#[derive(Debug)]
struct Sql {
    /// Marks rows by their ids.
    by_id: String,
    /// Marks the same rows where their numbers lie between two others, close together.
    in_range: Option<String>,
    /// Whether anybody else writes to the table.
    writers: String,
}

impl RowMarks {
    pub(super) fn new(mark: Mark, table: &Table, tenure: Tenure, replayed_below: Lsn) -> Self {
        let layout = &table.layout;
        let name = |column: usize| escape_identifier(&layout.columns[column].name);
        let (table_name, id) = (layout.sql_name(), name(layout.id));
        let type_name = &layout.columns[layout.id].type_name;
        let by_id = format!("{id} = ANY (($1::text[])::{type_name}[])");
        let (verb, is_unsent) = match mark {
            Mark::SentAt => (
                format!("UPDATE {table_name} SET sent_at = clock_timestamp()"),
                " AND sent_at IS NULL",
            ),
            _ => (format!("DELETE FROM {table_name}"), ""),
        };
        let mark_sql = |rows: &str| format!("{verb} WHERE {rows}{is_unsent} AND {LEASE}");
        let is_found_by_number = table
            .seq
            .as_ref()
            .is_some_and(|seq| seq.index != SeqIndex::None);
        let seq = layout.seq.filter(|_| is_found_by_number).map(name);
        // The text, so that no index on the id is taken for it.
        let in_range = |seq| format!("{seq} BETWEEN $4 AND $5 AND {id}::text = ANY ($1)");
        let seq = seq.filter(|_| is_its_text(type_name));
        let literal = escape_literal(&table_name);
        let writers_sql = format!(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE mode = 'RowExclusiveLock' \
             AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) \
             AND pid <> pg_backend_pid() AND (relation = {literal}::regclass \
             OR relation IN (SELECT relid FROM pg_catalog.pg_partition_tree({literal}))))"
        );
        Self {
            tenure,
            sql: Arc::new(Sql {
                by_id: mark_sql(&by_id),
                in_range: seq.map(|seq| mark_sql(&in_range(seq))),
                writers: writers_sql,
            }),
            unsent_sql: format!("SELECT {id}::text FROM {table_name} WHERE {by_id}{is_unsent}"),
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
            sql: Arc::clone(&self.sql),
            ids: rows.iter().map(|row| row.id.to_string()).collect(),
            range: self
                .sql
                .in_range
                .as_ref()
                .and_then(|_| close_together(rows)),
            tenure: self.tenure.clone(),
        }
    }
}

/// Whether what the relay knows of an id of this type is what a cast to text gives.
fn is_its_text(type_name: &str) -> bool {
    matches!(type_name, "uuid" | "text" | "bigint" | "integer")
        || type_name.starts_with("character varying")
}

/// The lowest and the highest number of rows that leave out few numbers between them.
fn close_together(rows: &[Delivered]) -> Option<(i64, i64)> {
    let (mut low, mut high) = (i64::MAX, i64::MIN);
    for row in rows {
        low = low.min(row.seq?);
        high = high.max(row.seq?);
    }
    let numbers = high.checked_sub(low)?.unsigned_abs();
    (numbers / SPREAD_MAX < rows.len() as u64).then_some((low, high))
}

/// One `UPDATE` or `DELETE` of rows.
#[derive(Debug)]
pub struct RowStatement {
    sql: Arc<Sql>,
    ids: Vec<String>,
    range: Option<(i64, i64)>,
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
        let marked = match (&self.range, &self.sql.in_range) {
            (Some((low, high)), Some(sql)) => {
                let values: [&(dyn ToSql + Sync); 5] = [&self.ids, outbox, epoch, low, high];
                client.execute(sql, &values).await
            }
            _ => {
                client
                    .execute(&self.sql.by_id, &[&self.ids, outbox, epoch])
                    .await
            }
        };
        marked.map_err(MarkError::sql("mark rows as sent"))
    }

    async fn has_writers(&self, client: &Client) -> Result<bool, MarkError> {
        let row = client.query_one(&self.sql.writers, &[]).await;
        Ok(row.map_err(MarkError::sql("see who writes"))?.get(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(seq: Option<i64>) -> Delivered {
        Delivered {
            ticket: 0,
            seq,
            id: RowId::Uuid(uuid::Uuid::nil()),
            lsn: Lsn(0),
            origin: crate::outbox::Origin::Unknown,
        }
    }

    #[test]
    fn rows_are_found_by_a_range_only_where_it_holds_few_others() {
        let range = |numbers: &[Option<i64>]| {
            let rows: Vec<_> = numbers.iter().copied().map(delivered).collect();
            close_together(&rows)
        };
        assert_eq!(range(&[Some(7), Some(5), Some(9)]), Some((5, 9)));
        assert_eq!(range(&[Some(5), Some(36)]), Some((5, 36)));
        assert_eq!(range(&[Some(5), Some(37)]), None);
        assert_eq!(range(&[Some(5), None]), None);
        assert_eq!(range(&[Some(i64::MIN), Some(i64::MAX)]), None);
    }
}
