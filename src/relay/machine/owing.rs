//! Rows that Kafka acknowledged and whose mark waits for their commit, or for somebody's lock.

use std::time::Duration;

use super::marking::MARK_AGAIN_AFTER;
use super::paid::Paid;
use crate::core::Delivered;
use crate::row::OutboxRow;

/// How long a row waits whose commit is not visible, before its mark is tried again; it doubles up to a second.
const OWED_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Rows whose mark is tried again in one statement.
const OWED_ROWS_MAX: usize = 1_000;

/// Rows whose mark is owed.
pub(super) struct Owing {
    rows: Vec<Delivered>,
    again_at: Option<Duration>,
    pause: Duration,
    paid: Paid,
}

impl Owing {
    /// Begins with what an earlier process owed.
    pub(super) fn new(rows: Vec<Delivered>, now: Duration) -> Self {
        Self {
            again_at: (!rows.is_empty()).then_some(now),
            rows,
            pause: OWED_AGAIN_AFTER,
            paid: Paid::default(),
        }
    }

    /// Whether a row that a page hands out was marked since the page was read; says so once.
    pub(super) fn take_paid(&mut self, row: &OutboxRow) -> bool {
        self.paid.take(row)
    }

    /// Remembers rows that are marked by now.
    pub(super) fn pay(&mut self, rows: &[Delivered]) {
        self.paid.add(rows);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn rows(&self) -> &[Delivered] {
        &self.rows
    }

    pub(super) fn again_at(&self) -> Option<Duration> {
        self.again_at
    }

    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.again_at.is_some_and(|at| now >= at)
    }

    /// Takes some rows to be marked; what is left has its turn after them.
    pub(super) fn take(&mut self) -> Vec<Delivered> {
        let taken = self.rows.len().min(OWED_ROWS_MAX);
        self.rows.drain(..taken).collect()
    }

    /// Adds rows to be tried later; sooner where some of the last ones could be marked.
    pub(super) fn add(&mut self, rows: Vec<Delivered>, has_progress: bool, now: Duration) {
        self.pause = match has_progress {
            true => OWED_AGAIN_AFTER,
            false => (self.pause * 2).min(MARK_AGAIN_AFTER),
        };
        self.rows.extend(rows);
        self.again_at = (!self.rows.is_empty()).then(|| now + self.pause);
    }
}
