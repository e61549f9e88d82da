//! The batch that is being fed: which row comes next, and when its boundary is reached. Pure.

use crate::row::{Lsn, OutboxRow};
use crate::source::Batch;

/// A batch on its way to the core; `E` is what a row is encoded to.
pub(super) struct BatchCursor<E> {
    rows: std::vec::IntoIter<OutboxRow>,
    /// A row that had to wait, encoded.
    waiting: Option<(OutboxRow, E)>,
    /// Rows still to be fed before the batch's boundary, and its position.
    boundary: Option<(usize, Lsn)>,
    /// Rows were taken since the last boundary: their transaction is not read to its end.
    is_within_transaction: bool,
    /// A turn found no more: what stood in the table before the slot was read, and the rest comes through the slot.
    caught_up: bool,
}

impl<E> Default for BatchCursor<E> {
    fn default() -> Self {
        Self {
            rows: Vec::new().into_iter(),
            waiting: None,
            boundary: None,
            is_within_transaction: false,
            caught_up: false,
        }
    }
}

impl<E> BatchCursor<E> {
    /// Takes the next batch; the one before has been fed.
    pub(super) fn take(&mut self, batch: Batch) {
        *self = Self {
            rows: batch.rows.into_iter(),
            waiting: None,
            boundary: batch.boundary.map(|boundary| (boundary.rows, boundary.lsn)),
            is_within_transaction: self.is_within_transaction,
            caught_up: self.caught_up || batch.caught_up,
        };
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_none() && self.rows.len() == 0
    }

    pub(super) fn caught_up(&self) -> bool {
        self.caught_up
    }

    /// The row that had to wait, or the next one.
    pub(super) fn next(&mut self, encode: impl FnOnce(&OutboxRow) -> E) -> Option<(OutboxRow, E)> {
        if let Some(waiting) = self.waiting.take() {
            return Some(waiting);
        }
        let row = self.rows.next()?;
        let encoded = encode(&row);
        Some((row, encoded))
    }

    /// Keeps a row that has to wait: it comes again first.
    pub(super) fn wait(&mut self, row: OutboxRow, encoded: E) {
        self.waiting = Some((row, encoded));
    }

    /// Whether rows of a transaction were taken whose end was not.
    pub(super) fn is_within_transaction(&self) -> bool {
        self.is_within_transaction
    }

    /// A row was taken by the core.
    pub(super) fn row_left(&mut self) {
        self.is_within_transaction = true;
        if let Some((rows, _)) = &mut self.boundary {
            *rows -= 1;
        }
    }

    /// The boundary's position, once every row before it was taken by the core.
    pub(super) fn boundary_reached(&mut self) -> Option<Lsn> {
        let (_, lsn) = self.boundary.filter(|(rows, _)| *rows == 0)?;
        self.boundary = None;
        self.is_within_transaction = false;
        Some(lsn)
    }
}
