//! Rows whose mark was owed and is paid: a page that was read before may still hand them out, once.

use std::collections::{HashSet, VecDeque};

use crate::core::Delivered;
use crate::row::{OutboxRow, RowId};

/// Rows remembered: far more than are paid while one turn of the source is under way.
const ROWS_MAX: usize = 10_000;

type Key = (Option<i64>, RowId);

/// Rows that were owed and are marked by now.
///
/// One turn of the source may have read them before. It is over before the next begins, so that a row which comes a
/// second time was made unsent again.
#[derive(Debug, Default)]
pub(super) struct Paid {
    rows: HashSet<Key>,
    in_order: VecDeque<Key>,
}

impl Paid {
    /// Remembers rows that are marked.
    pub(super) fn add(&mut self, rows: &[Delivered]) {
        for row in rows {
            let key = (row.seq, row.id.clone());
            if self.rows.insert(key.clone()) {
                self.in_order.push_back(key);
            }
        }
        while self.in_order.len() > ROWS_MAX {
            if let Some(oldest) = self.in_order.pop_front() {
                self.rows.remove(&oldest);
            }
        }
    }

    /// Whether a row of a page is marked since the page was read; says so once.
    pub(super) fn take(&mut self, row: &OutboxRow) -> bool {
        let Some(id) = row.id.as_ref().filter(|_| !self.rows.is_empty()) else {
            return false;
        };
        self.rows.remove(&(row.seq, id.clone()))
    }
}
