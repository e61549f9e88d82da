//! What a change makes of a row that is still in hand.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::row::{Layout, OutboxRow};

/// A change of one row.
#[derive(Debug)]
pub struct Update {
    /// The key or the whole row of before; `None` where the key has not changed.
    pub(super) old: Option<OutboxRow>,
    pub(super) new: OutboxRow,
    /// Columns whose large values have not changed and are not repeated.
    pub(super) unchanged: Vec<usize>,
    /// The columns of the replica identity, by which the row is found.
    pub(super) keys: Vec<usize>,
}

impl Update {
    /// The columns of the replica identity.
    pub(crate) fn keys(&self) -> &[usize] {
        &self.keys
    }

    /// The hash of the key that the row had.
    pub(crate) fn key_hash(&self) -> u64 {
        key_hash(self.before(), &self.keys)
    }

    /// Whether the row is the one that was changed.
    pub(crate) fn concerns(&self, row: &OutboxRow) -> bool {
        let before = self.before();
        let is_same = |key: &usize| before.field(*key) == row.field(*key);
        !self.keys.is_empty() && self.keys.iter().all(is_same)
    }

    /// The number that the row has now.
    pub(crate) fn seq(&self) -> Option<i64> {
        self.new.seq
    }

    /// What the row is now.
    pub(crate) fn applied_to(self, row: &OutboxRow, layout: &Layout) -> OutboxRow {
        if self.unchanged.is_empty() {
            return self.new;
        }
        self.new.with_values_of(row, &self.unchanged, layout)
    }

    fn before(&self) -> &OutboxRow {
        self.old.as_ref().unwrap_or(&self.new)
    }
}

/// The hash of a row's key.
pub(crate) fn key_hash(row: &OutboxRow, keys: &[usize]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for key in keys {
        row.field(*key).hash(&mut hasher);
    }
    hasher.finish()
}
