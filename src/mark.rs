//! Recording rows as sent: in the ledger, in the rows themselves, by deleting them, or not at all.
//!
//! A mark is written only for rows that the broker acknowledged, and only under the lease.

pub mod evidence;
pub mod ledger;
mod rows;

use std::sync::Arc;

use tokio_postgres::Client;

use crate::core::{Delivered, Settling};
use crate::inspect::Table;
use crate::outbox::{Lsn, OutboxRow};
use ledger::Ledger;
use rows::RowMarks;

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
        source: crate::ranges::ParseMultirangeError,
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
    pub(crate) fn sql(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Sql {
            what,
            source: source.into(),
        }
    }
}

/// Whose marks: the outbox and the epoch of the lease that every statement checks.
#[derive(Clone, Debug)]
pub struct Tenure {
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

/// One statement that marks rows, ready to run.
#[derive(Debug)]
pub enum Statement {
    Ledger(ledger::Checkpoint),
    Rows(rows::RowStatement),
}

impl Statement {
    /// Runs the statement; it has marked every row or none.
    ///
    /// Errors: `NotLeader` when the lease moved; after any other the outcome is unknown.
    pub async fn run(&self, client: &Client) -> Result<(), MarkError> {
        match self {
            Self::Ledger(checkpoint) => checkpoint.run(client).await,
            Self::Rows(statement) => statement.run(client).await,
        }
    }
}

impl Marks {
    /// Marks of single rows: `sent_at` or `delete`.
    ///
    /// `replayed_below` is the insert position at the start of the session: a streamed row at or
    /// below it may have been marked by an earlier one.
    pub fn rows(
        mark: crate::config::Mark,
        table: &Table,
        tenure: Tenure,
        replayed_below: Lsn,
    ) -> Self {
        Self::Rows(RowMarks::new(mark, table, tenure, replayed_below))
    }

    pub fn settling(&self) -> Settling {
        match self {
            Self::None => Settling::OnConfirmation,
            Self::Ledger(_) | Self::Rows(_) => Settling::OnMark,
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

    /// Writes the statement that marks these rows; `None` when nothing is to be written.
    pub fn statement(&self, rows: &[Delivered]) -> Option<Arc<Statement>> {
        if rows.is_empty() {
            return None;
        }
        match self {
            Self::Ledger(ledger) => Some(Arc::new(Statement::Ledger(ledger.checkpoint(rows)))),
            Self::Rows(marks) => Some(Arc::new(Statement::Rows(marks.statement(rows)))),
            Self::None => None,
        }
    }

    /// Takes note that the statement for these rows was committed.
    pub fn committed(&mut self, rows: &[Delivered]) {
        if let Self::Ledger(ledger) = self {
            ledger.committed(rows);
        }
    }
}
