//! Which rows are in flight, for those who ask.

use std::collections::HashSet;

use super::Core;
use super::in_flight_row::{InFlightRow, State};
use crate::core::Ticket;
use crate::row::RowId;
use crate::row::ranges::RangeSet;

impl Core {
    /// The numbers of all rows that are in flight or held.
    pub fn numbers(&self) -> RangeSet {
        let seqs = self.entries.iter().filter_map(|(_, entry)| entry.seq);
        let mut numbers: RangeSet = seqs.collect();
        numbers.extend(self.held.numbers());
        numbers
    }

    /// The ids of all rows that are in flight.
    pub fn ids(&self) -> HashSet<RowId> {
        self.entries
            .iter()
            .map(|(_, entry)| entry.id.clone())
            .collect()
    }

    /// The numbers of the rows that Kafka has and whose mark is not made yet.
    pub fn acknowledged(&self) -> impl Iterator<Item = Option<i64>> + '_ {
        let acknowledged = |(_, entry): (Ticket, &InFlightRow)| {
            let is_so = !matches!(entry.state, State::Asking | State::Sent | State::Aside);
            is_so.then_some(entry.seq)
        };
        self.entries.iter().filter_map(acknowledged)
    }
}
