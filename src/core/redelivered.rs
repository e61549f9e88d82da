//! The rows that were in flight when the source restarted: they are not to be sent again.

use std::collections::HashMap;

use super::in_flight_row::{InFlightRow, RowKey};
use crate::row::{Origin, OutboxRow, RowId};

#[derive(Debug, Default)]
pub(super) struct Redelivered(HashMap<RowKey, Known>);

#[derive(Debug)]
struct Known {
    id: RowId,
    origin: Origin,
    is_sent: bool,
}

impl Redelivered {
    pub(super) fn of<'a>(entries: impl Iterator<Item = &'a InFlightRow>) -> Self {
        let known = |entry: &InFlightRow| {
            let known = Known {
                id: entry.id.clone(),
                origin: entry.origin,
                is_sent: entry.topic.is_some(),
            };
            (RowKey::of(entry.seq, &entry.id), known)
        };
        Self(entries.map(known).collect())
    }

    pub(super) fn has(&self, row: &OutboxRow) -> bool {
        self.find(row).is_some()
    }

    /// It was sent, and not put aside.
    pub(super) fn has_sent(&self, row: &OutboxRow) -> bool {
        self.find(row).is_some_and(|known| known.is_sent)
    }

    fn find(&self, row: &OutboxRow) -> Option<&Known> {
        let id = row.id.as_ref()?;
        if self.0.is_empty() {
            return None;
        }
        let known = self.0.get(&RowKey::of(row.seq, id))?;
        let is_same = known.id == *id && !is_another_version(known.origin, row.origin);
        is_same.then_some(known)
    }
}

/// Whether a row was changed between two readings of the table: what it says now was not sent.
fn is_another_version(known: Origin, read: Origin) -> bool {
    match (known, read) {
        (Origin::Table { xmin: known }, Origin::Table { xmin: read }) => known != read,
        _ => false,
    }
}
