//! Rows whose mark was owed and is paid: a page that was read before may still hand them out.

use std::collections::{HashSet, VecDeque};

use crate::core::Delivered;
use crate::outbox::{Origin, OutboxRow, RowId};

/// Versions remembered: far more than what is owed while one turn of the source is under way.
const VERSIONS_MAX: usize = 10_000;

/// Versions of rows that were read from the table and are marked. None of them ever stands unsent again: whoever makes a
/// row unsent writes another version.
#[derive(Debug, Default)]
pub(crate) struct Paid {
    versions: HashSet<(RowId, u32)>,
    in_order: VecDeque<(RowId, u32)>,
}

impl Paid {
    /// Remembers rows that were owed and are marked.
    pub(crate) fn add(&mut self, rows: &[Delivered]) {
        for row in rows {
            let Origin::Table { xmin } = row.origin else {
                continue;
            };
            let version = (row.id.clone(), xmin);
            if self.versions.insert(version.clone()) {
                self.in_order.push_back(version);
            }
        }
        while self.in_order.len() > VERSIONS_MAX {
            if let Some(oldest) = self.in_order.pop_front() {
                self.versions.remove(&oldest);
            }
        }
    }

    /// Whether this very version of the row is marked.
    pub(crate) fn has(&self, row: &OutboxRow) -> bool {
        let (Origin::Table { xmin }, false) = (row.origin, self.versions.is_empty()) else {
            return false;
        };
        let id = row.id.clone();
        id.is_some_and(|id| self.versions.contains(&(id, xmin)))
    }
}
