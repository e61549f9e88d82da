//! The contract of a source: what replication and polling both hand to the relay.
//!
//! Rows come in batches over a bounded channel, in the order in which they are to be published;
//! one position goes back.

use crate::outbox::{Lsn, OutboxRow};

/// Rows in publishing order.
#[derive(Debug, Default)]
pub struct Batch {
    pub rows: Vec<OutboxRow>,
    /// Where the stream stood after some of these rows; `None` when polled, or in a transaction
    /// that is still being received.
    pub boundary: Option<Boundary>,
}

/// A place in the stream where no transaction is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// How many rows of the batch stand before it.
    pub rows: usize,
    /// The commit's `end_lsn`, or a keepalive's position read in order with the data.
    pub lsn: Lsn,
}
