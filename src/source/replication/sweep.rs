//! What is watched beside a stream: rows that it should have brought and did not.
//!
//! One contract for both ways to tell an unsent row: by its number, or by its mark.

use std::collections::HashSet;

use crate::postgres::SqlConnection;
use crate::row::ranges::RangeSet;
use crate::row::{Lsn, RowId};
use crate::source::polling::PollError;

pub(crate) mod gaps;
pub(crate) mod unmarked;

use gaps::GapWatch;
use unmarked::UnmarkedWatch;

/// How far the stream has come, taken at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    /// The numbers that need no look-up: sent, skipped, rolled back, held or in flight.
    pub settled: RangeSet,
    /// The highest number that the stream has brought.
    pub top: i64,
    /// The rows in flight.
    pub in_flight: HashSet<RowId>,
    /// The newest position that came in order behind all rows before it.
    pub passed: Lsn,
    /// Whether a sweep is due: rows are looked for that no number between others points at.
    pub is_sweep: bool,
}

/// What a look found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Judgement {
    /// Numbers that no row will ever carry.
    pub rolled_back: RangeSet,
    /// Rows that stand in the table, and the stream has passed their commit without them.
    pub missed: Missed,
}

/// Rows that the stream missed: by number with the ledger, by id with marks in the rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Missed {
    pub numbers: RangeSet,
    pub ids: HashSet<RowId>,
}

impl Missed {
    pub(crate) fn is_empty(&self) -> bool {
        self.numbers.is_empty() && self.ids.is_empty()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.numbers.len().saturating_add(self.ids.len() as u64)
    }

    /// The rows that are not in `other`.
    pub(crate) fn difference(&self, other: &Self) -> Self {
        Self {
            numbers: self.numbers.difference(&other.numbers),
            ids: self.ids.difference(&other.ids).cloned().collect(),
        }
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        self.numbers.extend(&other.numbers);
        self.ids.extend(other.ids.iter().cloned());
    }
}

/// Finds what the stream missed, over a connection of its own.
pub enum Watch {
    Numbers(GapWatch),
    Rows(UnmarkedWatch),
}

impl Watch {
    /// Looks once.
    pub(crate) async fn look(&mut self, progress: &Progress) -> Result<Judgement, PollError> {
        match self {
            Self::Numbers(watch) => watch.look(progress).await,
            Self::Rows(watch) => watch.look(progress).await,
        }
    }

    /// Whether the next look needs the stream to have passed a position.
    pub(crate) fn awaits_stream(&self) -> bool {
        match self {
            Self::Numbers(watch) => watch.awaits_stream(),
            Self::Rows(watch) => watch.awaits_stream(),
        }
    }

    /// Whether the connection has ended: nothing learned outlives it.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Numbers(watch) => watch.session().client.is_closed(),
            Self::Rows(watch) => watch.session().client.is_closed(),
        }
    }
}

/// Reads the position behind every commit that an earlier statement saw.
pub(super) async fn insert_position(session: &SqlConnection) -> Result<Lsn, PollError> {
    let query = "SELECT pg_catalog.pg_current_wal_insert_lsn()::text";
    let row = session.client.query_one(query, &[]).await;
    let row = PollError::check(session, "read the insert position", row).await?;
    let position = row.get::<_, &str>(0).parse();
    position.map_err(|_| PollError::Unexpected("a position it does not print"))
}
