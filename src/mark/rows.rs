//! Marks in the rows themselves: `sent_at` set, or the row deleted.
//!
//! Beside a stream each mark is recorded in `outboxd.marked`, in the same statement, until the position that may be
//! confirmed stands behind it: the stream may bring the row again, and that it does not stand in the table says nothing.

mod record;
mod sql;
mod statement;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio_postgres::Client;

use super::evidence::Record;
use super::{FencingToken, MarkError};
use crate::config::Mark;
use crate::core::Delivered;
use crate::postgres::catalog::Table;
use crate::row::{Lsn, OutboxRow};
pub use record::{Owed, load};
pub(crate) use sql::Recording;
use sql::{Batch, Sql};
pub use statement::RowStatement;

/// The statements that mark single rows of one table.
#[derive(Debug)]
pub struct RowMarks {
    token: FencingToken,
    sql: Arc<Sql>,
    stream: Option<Replays>,
    was_looked_at: Arc<AtomicBool>,
}

/// What is known of the rows that a stream may bring again.
#[derive(Debug)]
struct Replays {
    /// The insert position at the start of the session: a row whose commit stands at or below it may have been marked.
    below: Lsn,
    record: Record,
}

impl RowMarks {
    pub(super) fn new(mark: Mark, table: &Table, token: FencingToken) -> Self {
        Self {
            token,
            sql: Arc::new(Sql::new(mark, table)),
            stream: None,
            was_looked_at: Arc::default(),
        }
    }

    pub(super) fn beside_a_stream(mut self, record: Record, below: Lsn) -> Self {
        self.stream = Some(Replays { below, record });
        self
    }

    /// A streamed row is a repetition when its mark is recorded, or seen. That it does not stand in the table is no sign.
    pub(super) async fn settled_before(
        &self,
        client: &Client,
        rows: &[OutboxRow],
    ) -> Result<Vec<bool>, MarkError> {
        let Some((record, below)) = self.recorded() else {
            return Ok(vec![false; rows.len()]);
        };
        let mut settled: Vec<_> = rows.iter().map(|row| record.has(row)).collect();
        let asked: Vec<_> = (0..rows.len())
            .filter(|place| !settled[*place] && rows[*place].lsn <= below)
            .collect();
        let asked_rows: Vec<_> = asked
            .iter()
            .filter_map(|place| row(&rows[*place]))
            .collect();
        let batch = Batch::of(&asked_rows, &self.sql);
        let Some(query) = self.sql.sent(&batch) else {
            return Ok(settled);
        };
        let found = client.query(&query, &batch.values(&[])).await;
        let found = found.map_err(MarkError::sql("look rows up"))?;
        let sent: HashSet<&str> = found.iter().map(|row| row.get(0)).collect();
        for place in asked {
            let key = row(&rows[place]).map(|row| sql::key(&row, &self.sql));
            settled[place] = key.is_some_and(|key| sent.contains(key.as_str()));
        }
        Ok(settled)
    }

    /// What is recorded beside a stream, and up to where a row that it brings may have been marked.
    pub(crate) fn recorded(&self) -> Option<(&Record, Lsn)> {
        let replays = self.stream.as_ref()?;
        Some((&replays.record, replays.below))
    }

    /// Whether a mark outlives the process that could not make it.
    pub(super) fn is_recorded(&self) -> bool {
        self.stream.is_some()
    }

    /// Marks delivered rows; `resolved` is the position that may be confirmed.
    pub(super) fn statement(&self, rows: &[Delivered], resolved: Option<Lsn>) -> RowStatement {
        self.with(
            rows,
            match self.stream {
                Some(_) => Recording::Marks(resolved.unwrap_or_default()),
                None => Recording::Nothing,
            },
        )
    }

    /// Marks rows whose mark was tried before; `left` others are owed besides.
    pub(super) fn again(&self, rows: &[Delivered], left: usize) -> RowStatement {
        self.with(
            rows,
            match self.stream {
                Some(_) if left == 0 => Recording::Payment,
                _ => Recording::Nothing,
            },
        )
    }

    fn with(&self, rows: &[Delivered], recording: Recording) -> RowStatement {
        RowStatement {
            token: self.token.clone(),
            sql: Arc::clone(&self.sql),
            rows: rows.to_vec(),
            recording,
            was_looked_at: Arc::clone(&self.was_looked_at),
        }
    }
}

/// A streamed row as one that is to be marked; `None` for a row without an id, which is never published.
fn row(row: &OutboxRow) -> Option<Delivered> {
    Some(Delivered {
        ticket: 0,
        seq: row.seq,
        id: row.id.clone()?,
        lsn: row.lsn,
        origin: row.origin,
    })
}
