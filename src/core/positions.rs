//! Which position may be confirmed: boundaries of the stream against tickets.

use std::collections::VecDeque;

use crate::core::Ticket;
use crate::row::Lsn;

/// The boundaries that were read and can't be confirmed yet, oldest first.
///
/// A boundary stands at the ticket that the next row would get: it may be confirmed once every
/// ticket below it is resolved.
#[derive(Debug, Default)]
pub(super) struct Positions {
    boundaries: VecDeque<(Ticket, Lsn)>,
    confirmable: Option<Lsn>,
    passed: Option<Lsn>,
}

impl Positions {
    /// Takes a boundary behind all tickets below `ticket`.
    ///
    /// Boundaries between the same two rows are one.
    pub(super) fn push(&mut self, ticket: Ticket, lsn: Lsn) {
        debug_assert!(
            self.boundaries.back().is_none_or(|last| last.0 <= ticket),
            "boundaries come in the order of their tickets"
        );
        self.passed = self.passed.max(Some(lsn));
        match self.boundaries.back_mut() {
            Some(last) if last.0 == ticket => last.1 = last.1.max(lsn),
            _ => self.boundaries.push_back((ticket, lsn)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.boundaries.len()
    }

    /// Keeps only the newest boundary between two unresolved tickets (ascending): the others can't
    /// become confirmable on their own.
    pub(super) fn compact(&mut self, unresolved: impl Iterator<Item = Ticket>) {
        let mut unresolved = unresolved.peekable();
        let mut kept: VecDeque<(Ticket, Lsn)> = VecDeque::new();
        let mut gap_of_last = None;
        let mut gap = 0_usize;
        for boundary in self.boundaries.drain(..) {
            while unresolved.next_if(|ticket| *ticket < boundary.0).is_some() {
                gap += 1;
            }
            if gap_of_last == Some(gap) {
                kept.pop_back();
            }
            kept.push_back(boundary);
            gap_of_last = Some(gap);
        }
        self.boundaries = kept;
    }

    /// Whether no boundary stands behind the ticket yet.
    pub(super) fn is_in_open_transaction(&self, ticket: Ticket) -> bool {
        self.boundaries
            .back()
            .is_none_or(|(boundary, _)| *boundary <= ticket)
    }

    /// Advances over the boundaries below which every ticket is resolved.
    ///
    /// Returns the ticket of the newest one, if there was any.
    pub(super) fn advance(&mut self, resolved_before: Ticket) -> Option<Ticket> {
        let mut newest = None;
        while let Some((ticket, lsn)) = self.boundaries.front().copied() {
            if ticket > resolved_before {
                break;
            }
            self.boundaries.pop_front();
            self.confirmable = self.confirmable.max(Some(lsn));
            newest = Some(ticket);
        }
        newest
    }

    pub(super) fn confirmable(&self) -> Option<Lsn> {
        self.confirmable
    }

    pub(super) fn passed(&self) -> Option<Lsn> {
        self.passed
    }

    /// Forgets what the last source read; what may be confirmed stays.
    pub(super) fn restart(&mut self) {
        self.boundaries.clear();
        self.passed = None;
    }
}
