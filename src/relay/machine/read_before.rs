//! What a catch-up read where nothing is marked, for the stream brings some of it again.

use crate::row::ranges::RangeSet;
use crate::row::{Lsn, OutboxRow};

/// Numbers that were read from the table, and a position that bounds their commits.
#[derive(Default)]
pub(super) struct ReadBefore {
    numbers: RangeSet,
    until: Lsn,
}

impl ReadBefore {
    pub(super) fn note(&mut self, row: &OutboxRow) {
        if let Some(seq) = row.seq {
            self.numbers.insert(seq);
            self.until = self.until.max(row.lsn);
        }
    }

    pub(super) fn forget(&mut self, seq: Option<i64>) {
        if let Some(seq) = seq {
            self.numbers.remove(seq);
        }
    }

    pub(super) fn has(&self, row: &OutboxRow) -> bool {
        row.lsn <= self.until && row.seq.is_some_and(|seq| self.numbers.contains(seq))
    }
}
