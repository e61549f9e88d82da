//! The contract of a source: what replication and polling both hand to the relay.
//!
//! Rows come in batches over a bounded channel, in the order in which they are to be published;
//! positions go back.

pub mod replication;

use crate::outbox::{Lsn, OutboxRow};
use crate::ranges::RangeSet;

/// Rows in publishing order.
#[derive(Debug, Default)]
pub struct Batch {
    pub rows: Vec<OutboxRow>,
    /// Where the stream stood after some of these rows; `None` when polled, or in a transaction
    /// that is still being received.
    pub boundary: Option<Boundary>,
    /// Numbers that no row will ever carry.
    pub dead: RangeSet,
    /// A turn of polling ended here and found no more rows than it read.
    pub caught_up: bool,
}

/// A place in the stream where no transaction is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// How many rows of the batch stand before it.
    pub rows: usize,
    /// The commit's `end_lsn`, or a keepalive's position read in order with the data.
    pub lsn: Lsn,
}
