//! Rows by their tickets, which grow by one: found by index, as long as the rows in flight are young ones.

use std::collections::{BTreeMap, VecDeque};

use super::in_flight_row::InFlightRow;
use crate::core::Ticket;

/// Tickets between the oldest and the newest row that are found by index: bounds the empty places at about 3 MB. An
/// older row is rare, one whose partition waits for its leader, and moves to a tree.
const RECENT_MAX: usize = 1 << 15;

/// Every row in flight, in publishing order. A tree of all of them took 5 % of the relay's CPU while it drained.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    old: BTreeMap<Ticket, InFlightRow>,
    /// The ticket of the first place.
    first: Ticket,
    /// Begins and ends with a row, if there is any.
    recent: VecDeque<Option<InFlightRow>>,
    rows: usize,
}

impl InFlight {
    /// Adds a row behind all others.
    pub(super) fn push(&mut self, ticket: Ticket, entry: InFlightRow) {
        if self.recent.is_empty() {
            self.first = ticket;
        }
        while self.first + (self.recent.len() as Ticket) < ticket {
            self.recent.push_back(None);
        }
        self.recent.push_back(Some(entry));
        self.rows += 1;
        if self.recent.len() > RECENT_MAX {
            self.age();
        }
    }

    fn age(&mut self) {
        if let Some(Some(entry)) = self.recent.pop_front() {
            self.old.insert(self.first, entry);
        }
        self.first += 1;
        self.trim();
    }

    /// Drops the empty places before the first row.
    fn trim(&mut self) {
        while matches!(self.recent.front(), Some(None)) {
            self.recent.pop_front();
            self.first += 1;
        }
    }

    fn place(&self, ticket: Ticket) -> Option<usize> {
        usize::try_from(ticket.checked_sub(self.first)?).ok()
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&InFlightRow> {
        match self.place(ticket) {
            Some(place) => self.recent.get(place)?.as_ref(),
            None => self.old.get(&ticket),
        }
    }

    pub(super) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut InFlightRow> {
        match self.place(ticket) {
            Some(place) => self.recent.get_mut(place)?.as_mut(),
            None => self.old.get_mut(&ticket),
        }
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<InFlightRow> {
        let entry = match self.place(ticket) {
            Some(place) => self.recent.get_mut(place)?.take(),
            None => self.old.remove(&ticket),
        }?;
        self.rows -= 1;
        self.trim();
        Some(entry)
    }

    /// The rows with their tickets, in publishing order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ticket, &InFlightRow)> {
        let old = self.old.iter().map(|(ticket, entry)| (*ticket, entry));
        let recent = (self.first..).zip(&self.recent);
        old.chain(recent.filter_map(|(ticket, place)| Some((ticket, place.as_ref()?))))
    }

    pub(super) fn len(&self) -> usize {
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::{Aggregate, State};
    use super::*;
    use crate::row::{Lsn, Origin, RowId};

    fn id(ticket: Ticket) -> RowId {
        RowId::Uuid(uuid::Uuid::from_u128(u128::from(ticket)))
    }

    fn entry(ticket: Ticket) -> InFlightRow {
        InFlightRow {
            state: State::Sent,
            seq: None,
            id: id(ticket),
            lsn: Lsn(0),
            origin: Origin::Unknown,
            aggregate: Aggregate(0),
            bytes: 1,
            topic: None,
        }
    }

    fn listed<'a>(
        entries: impl Iterator<Item = (Ticket, &'a InFlightRow)>,
    ) -> Vec<(Ticket, RowId)> {
        entries
            .map(|(ticket, row)| (ticket, row.id.clone()))
            .collect()
    }

    #[test]
    fn a_row_that_stays_while_others_pass_is_still_found_and_first() {
        let mut entries = InFlight::default();
        let behind = 3 * RECENT_MAX as Ticket;
        for ticket in 7..=behind {
            entries.push(ticket, entry(ticket));
            if ticket > 8 {
                assert!(entries.remove(ticket - 1).is_some());
            }
            assert!(entries.recent.len() <= RECENT_MAX);
        }
        let left = [7, behind].map(|ticket| (ticket, id(ticket)));
        assert_eq!(listed(entries.iter()), left);
        assert!(entries.get(7).is_some() && entries.get_mut(7).is_some());
        assert!(entries.remove(7).is_some() && entries.remove(7).is_none());
        assert_eq!(entries.len(), 1);
    }

    proptest! {
        #[test]
        fn rows_are_found_and_listed_as_in_a_tree(steps in prop::collection::vec((any::<bool>(), 0..40_u64), 0..200)) {
            let (mut entries, mut tree) = (InFlight::default(), BTreeMap::new());
            let mut next = 0;
            for (adds, ticket) in steps {
                if adds {
                    next += 1 + ticket / 30;
                    entries.push(next, entry(next));
                    tree.insert(next, entry(next));
                } else {
                    let removed = entries.remove(ticket).map(|row| row.id);
                    prop_assert_eq!(removed, tree.remove(&ticket).map(|row| row.id));
                }
                prop_assert_eq!(entries.get(ticket).is_some(), tree.contains_key(&ticket));
                prop_assert_eq!(entries.len(), tree.len());
                let expected = listed(tree.iter().map(|(ticket, row)| (*ticket, row)));
                prop_assert_eq!(listed(entries.iter()), expected);
            }
        }
    }
}
