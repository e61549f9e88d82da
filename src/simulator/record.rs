//! The record of marks in rows, as `outboxd.marked` holds it.

use super::event::seqs_of;
use crate::core::Delivered;
use crate::core::Ticket;
use crate::mark::evidence::Record;
use crate::row::ranges::RangeSet;
use crate::row::{Lsn, Origin};

/// What a relay by replication has marked, and what need not be known any more.
#[derive(Default)]
pub struct MarkRecord {
    entries: Vec<Entry>,
    resolved: Lsn,
}

struct Entry {
    numbers: RangeSet,
    high_lsn: Lsn,
    /// Acknowledged, and not visible when the mark was tried.
    owed: Vec<Delivered>,
}

impl MarkRecord {
    /// Takes rows that were marked, others whose mark is owed, and a position before which every row was settled.
    pub fn note(&mut self, marked: &[Delivered], owed: &[Delivered], resolved: Lsn) {
        let Some(high_lsn) = marked.iter().chain(owed).map(|row| row.lsn).max() else {
            return;
        };
        self.resolved = self.resolved.max(resolved);
        self.entries
            .retain(|entry| entry.high_lsn >= resolved || !entry.owed.is_empty());
        let mut numbers = seqs_of(marked);
        numbers.extend(&seqs_of(owed));
        let of_nobody = |row: &Delivered| Delivered {
            ticket: Ticket::MAX,
            lsn: high_lsn,
            origin: match row.origin {
                Origin::Stream { .. } => row.origin,
                _ => Origin::Unknown,
            },
            ..row.clone()
        };
        self.entries.push(Entry {
            numbers,
            high_lsn,
            owed: owed.iter().map(of_nobody).collect(),
        });
    }

    /// Takes rows out whose mark was owed.
    pub fn paid(&mut self, rows: &[Delivered]) {
        for entry in &mut self.entries {
            entry
                .owed
                .retain(|owed| rows.iter().all(|row| row.id != owed.id));
        }
    }

    /// Whether the next session marks a row that was acknowledged.
    pub fn owes(&self, seq: i64) -> bool {
        let mut owed = self.entries.iter().flat_map(|entry| &entry.owed);
        owed.any(|row| row.seq == Some(seq))
    }

    /// What a session loads when it opens, and the rows whose mark an earlier one owed.
    pub fn load(&self) -> (Record, Vec<Delivered>) {
        let mut record = Record::default();
        record.resolve(self.resolved);
        for entry in self.entries.iter().rev() {
            record.add_numbers(&entry.numbers, entry.high_lsn);
        }
        let owed = self.entries.iter().flat_map(|entry| entry.owed.clone());
        (record, owed.collect())
    }
}
