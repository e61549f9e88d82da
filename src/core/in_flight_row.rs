//! One row in flight, and what tells it from others.

use std::sync::Arc;

use super::Aggregate;
use crate::row::{Lsn, Origin, RowId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Waits to hear whether its topic can be written.
    Asking,
    Sent,
    Delivered,
    Marking,
    /// Its mark waits; it doesn't count in the window.
    Waiting,
    /// Put aside, and that is not durable yet.
    Aside,
    /// Delivered and waiting for its transaction to be confirmed (`Settling::OnConfirmation`).
    Resolved,
}

#[derive(Debug)]
pub(super) struct InFlightRow {
    pub(super) state: State,
    pub(super) seq: Option<i64>,
    pub(super) id: RowId,
    pub(super) lsn: Lsn,
    pub(super) origin: Origin,
    pub(super) aggregate: Aggregate,
    pub(super) bytes: usize,
    /// `None` where it is put aside.
    pub(super) topic: Option<Arc<str>>,
}

/// What matches a row that a source hands out again to the entry it became the first time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum RowKey {
    Seq(i64),
    Id(RowId),
}

impl RowKey {
    pub(super) fn of(seq: Option<i64>, id: &RowId) -> Self {
        seq.map_or_else(|| Self::Id(id.clone()), Self::Seq)
    }
}
