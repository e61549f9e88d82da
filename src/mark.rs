//! Recording rows as sent: in the ledger, in the rows themselves, by deleting them, or not at all.
//!
//! A mark is written only for rows that the broker acknowledged, and only under the lease.

pub mod change;
pub mod evidence;
pub mod ledger;
mod rows;

use std::collections::HashSet;
use std::sync::Arc;

use tokio_postgres::Client;

use crate::core::{Delivered, ReleaseOn};
use crate::postgres::catalog::Table;
use crate::row::{Lsn, OutboxRow};
use evidence::Record;
use ledger::Ledger;
#[cfg(test)]
pub(crate) use rows::Recording;
pub use rows::{Owed, RowMarks, RowStatement, load as load_marked};

/// What a mark could not do.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    #[error("cannot {what}")]
    Sql {
        what: &'static str,
        #[source]
        source: crate::postgres::PostgresError,
    },
    #[error("the ledger of `{outbox}` holds a set of numbers that can't be read")]
    Unreadable {
        outbox: String,
        #[source]
        source: crate::row::ranges::ParseMultirangeError,
    },
    #[error("PostgreSQL refuses the marks of all rows")]
    Denied {
        #[source]
        source: crate::postgres::PostgresError,
    },
    #[error("the lease of `{outbox}` is no longer ours")]
    NotLeader { outbox: String },
    #[error(
        "row {seq} of `{outbox}` has a number that was sent before and a commit above every one \
         that carried it"
    )]
    NumberReused { outbox: String, seq: i64 },
}

impl MarkError {
    /// The session takes no writes; another one may.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Sql { source, .. } | Self::Denied { source } if source.is_read_only())
    }

    pub(crate) fn sql(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Sql {
            what,
            source: source.into(),
        }
    }
}

/// Whose marks: the outbox and the epoch of the lease that every statement checks.
#[derive(Clone, Debug)]
pub struct FencingToken {
    pub outbox: String,
    pub epoch: i64,
}

/// How rows of one outbox are recorded as sent, with what is known of it.
#[derive(Debug)]
pub enum Marks {
    Ledger(Ledger),
    Rows(RowMarks),
    None,
}

/// What became of the rows of one statement. Those that it does not name are marked, or there is nothing left to mark.
#[derive(Debug, Default)]
pub struct MarkOutcome {
    /// Their commits are not visible yet, or somebody holds a lock on them: the mark is to be tried again.
    pub waiting: Vec<Delivered>,
    /// They stand, and can't be marked.
    pub refused: Vec<RefusedMark>,
}

/// A row that PostgreSQL doesn't let be marked; it stands in the table.
#[derive(Clone, Debug)]
pub struct RefusedMark {
    pub row: Delivered,
    pub error: String,
    pub aggregate_type: Option<String>,
    pub aggregate_id: Option<String>,
}

impl RefusedMark {
    fn new(row: &Delivered, error: impl Into<String>) -> Self {
        Self {
            row: row.clone(),
            error: error.into(),
            aggregate_type: None,
            aggregate_id: None,
        }
    }
}

impl MarkOutcome {
    /// Whether no row is left without a mark.
    pub fn is_complete(&self) -> bool {
        self.waiting.is_empty() && self.refused.is_empty()
    }

    /// Those of the statement's rows that need no mark any more.
    pub fn marked_of(&self, rows: &[Delivered]) -> Vec<Delivered> {
        let key = |row: &Delivered| (row.ticket, row.seq, row.id.clone());
        let refused = self.refused.iter().map(|refusal| &refusal.row);
        let unmarked: HashSet<_> = self.waiting.iter().chain(refused).map(key).collect();
        let is_marked = |row: &&Delivered| !unmarked.contains(&key(row));
        rows.iter().filter(is_marked).cloned().collect()
    }
}

/// One statement that marks rows, ready to run.
#[derive(Debug)]
pub enum Statement {
    Ledger(ledger::Checkpoint),
    Rows(RowStatement),
}

impl Statement {
    /// Runs the statement, and says which rows it did not mark.
    ///
    /// Errors: `NotLeader` when the lease moved, `Denied` when a person must act; after any other the outcome is unknown.
    pub async fn run(&self, client: &Client) -> Result<MarkOutcome, MarkError> {
        match self {
            Self::Ledger(checkpoint) => checkpoint
                .run(client)
                .await
                .map(|()| MarkOutcome::default()),
            Self::Rows(statement) => statement.run(client).await,
        }
    }

    /// The SQL of a mark in rows, which is made anew for each.
    pub fn sql(&self) -> Option<String> {
        match self {
            Self::Ledger(_) => None,
            Self::Rows(statement) => Some(statement.sql()),
        }
    }
}

impl Marks {
    /// Marks of single rows: `sent_at` or `delete`.
    pub fn rows(mark: crate::config::Mark, table: &Table, token: FencingToken) -> Self {
        Self::Rows(RowMarks::new(mark, table, token))
    }

    /// The same beside a stream, which may bring a row again whose commit stands at or below `below`.
    pub fn rows_beside_a_stream(
        mark: crate::config::Mark,
        table: &Table,
        token: FencingToken,
        record: Record,
        below: Lsn,
    ) -> Self {
        Self::Rows(RowMarks::new(mark, table, token).beside_a_stream(record, below))
    }

    pub fn settling(&self) -> ReleaseOn {
        match self {
            Self::None => ReleaseOn::OnConfirmation,
            Self::Ledger(_) | Self::Rows(_) => ReleaseOn::OnMark,
        }
    }

    /// Tells for each streamed row whether an earlier session marked it or `now` skipped it.
    pub async fn settled_before(
        &mut self,
        client: &Client,
        rows: &[OutboxRow],
    ) -> Result<Vec<bool>, MarkError> {
        match self {
            Self::Ledger(ledger) => ledger.settled_before(client, rows).await,
            Self::Rows(marks) => marks.settled_before(client, rows).await,
            Self::None => Ok(vec![false; rows.len()]),
        }
    }

    /// Whether a row whose mark is owed is not sent again when this process ends.
    pub fn remembers_what_is_owed(&self) -> bool {
        matches!(self, Self::Rows(marks) if marks.is_recorded())
    }

    /// Writes the statement that marks these rows; `None` when nothing is to be written.
    ///
    /// `resolved` is the position that may be confirmed.
    pub fn statement(&self, rows: &[Delivered], resolved: Option<Lsn>) -> Option<Arc<Statement>> {
        if rows.is_empty() {
            return None;
        }
        match self {
            Self::Ledger(ledger) => Some(Arc::new(Statement::Ledger(ledger.checkpoint(rows)))),
            Self::Rows(marks) => Some(Arc::new(Statement::Rows(marks.statement(rows, resolved)))),
            Self::None => None,
        }
    }

    /// Writes the statement that marks rows whose mark was tried before; `left` others are owed besides.
    pub fn again(&self, rows: &[Delivered], left: usize) -> Option<Arc<Statement>> {
        match self {
            Self::Rows(marks) => Some(Arc::new(Statement::Rows(marks.again(rows, left)))),
            Self::Ledger(_) | Self::None => None,
        }
    }

    /// Takes note that the statement for these rows was committed.
    pub fn committed(&mut self, rows: &[Delivered]) {
        if let Self::Ledger(ledger) = self {
            ledger.committed(rows);
        }
    }
}
