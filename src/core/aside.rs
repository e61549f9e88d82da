//! Rows that are put aside: what a fault makes of them, and how they settle.

use super::in_flight_row::{InFlightRow, RowKey, State};
use super::{
    Aggregate, Core, Delivered, Followers, HeldRow, HoldReason, Offer, ReleaseOn, RowFacts,
};
use crate::config::FaultPolicy;
use crate::core::Ticket;

impl Core {
    pub(super) fn at_fault(
        &mut self,
        row: &RowFacts<'_>,
        reason: &'static str,
        error: String,
    ) -> Offer {
        // A row ahead of it that had to be sent again would be taken for its follower.
        if self.has_sent(row.aggregate) || self.asking.has(row.aggregate) {
            return Offer::Wait;
        }
        if self.policy == FaultPolicy::Halt {
            return Offer::Halt(format!("row {} can't be published: {error}", row.id));
        }
        if !self.breaker.admits(row.aggregate) {
            let text = "so many aggregates have a rejected row that this looks like an outage";
            return Offer::Halt(format!("{text}; the last one by row {}: {error}", row.id));
        }
        if self.held.is_full() {
            return Offer::Halt("too many aggregates are blocked".to_owned());
        }
        let dead = |blocks| HoldReason::Dead {
            reason,
            error: error.clone(),
            blocks,
        };
        let why = match row.policy(self.policy) {
            FaultPolicy::Continue => dead(None),
            FaultPolicy::Follow => {
                self.held.block(row, reason, &error, Followers::Die);
                dead(Some(row.aggregate))
            }
            FaultPolicy::Block | FaultPolicy::Halt => {
                self.held.block(row, reason, &error, Followers::Wait);
                self.count_follower(row);
                HoldReason::Blocked(row.aggregate)
            }
        };
        let ticket = self.put_aside(row, why);
        Offer::AtFault {
            ticket,
            reason,
            error,
        }
    }

    /// A row that would be put aside has rows of its aggregate ahead of it in its own topic: were they to be sent again,
    /// it might go out before them.
    pub(super) fn has_sent_ahead(&self, aggregate: Aggregate, topic: &str) -> bool {
        self.held.is_available(topic) && self.has_sent(aggregate)
    }

    fn has_sent(&self, aggregate: Aggregate) -> bool {
        let is_sent = |(_, entry): (Ticket, &InFlightRow)| {
            entry.state == State::Sent && entry.aggregate == aggregate
        };
        self.sent > 0 && self.entries.iter().any(is_sent)
    }

    /// Puts a row of a blocked aggregate aside.
    pub(super) fn follow(&mut self, row: &RowFacts<'_>, followers: Followers) -> Ticket {
        let why = match followers {
            Followers::Wait => {
                self.count_follower(row);
                HoldReason::Blocked(row.aggregate)
            }
            Followers::Die => HoldReason::Dead {
                reason: "follows",
                error: "it follows a dead letter of its aggregate".to_owned(),
                blocks: Some(row.aggregate),
            },
        };
        self.put_aside(row, why)
    }

    /// Counts a row that waits for its aggregate, unless it is handed out again: then it is recorded, and counted.
    fn count_follower(&mut self, row: &RowFacts<'_>) {
        if !self.is_counted(row) {
            self.held.count_follower(row.aggregate);
        }
    }

    fn is_counted(&self, row: &RowFacts<'_>) -> bool {
        row.seq.is_some_and(|seq| self.held.numbers().contains(seq))
    }

    pub(super) fn put_aside(&mut self, row: &RowFacts<'_>, why: HoldReason) -> Ticket {
        if let HoldReason::Topic(name) = &why {
            let rows = u64::from(!self.is_counted(row));
            let topics = &mut self.held.topics;
            topics.put_behind(row.aggregate, row.seq, name, rows);
        }
        let ticket = self.admit(row, State::Aside, None);
        self.aside.push(HeldRow {
            ticket,
            seq: row.seq,
            id: row.id.clone(),
            lsn: row.lsn,
            origin: row.origin,
            why,
        });
        ticket
    }

    /// Puts a row aside that was published and that PostgreSQL doesn't let be marked: its aggregate is blocked, all others
    /// go on. Returns its ticket.
    ///
    /// Errors: why nothing may be published until a person acts.
    pub fn refuse_mark(
        &mut self,
        row: &Delivered,
        aggregate: Aggregate,
        aggregate_type: &str,
        error: &str,
    ) -> Result<Ticket, String> {
        let what = format!(
            "row {} was published and can't be marked as sent: {error}",
            row.id
        );
        if self.policy == FaultPolicy::Halt {
            return Err(what);
        }
        if !self.breaker.admits(aggregate) || self.held.is_full() {
            return Err(format!(
                "so many rows can't be marked that nothing more is published; {what}"
            ));
        }
        self.held
            .block_published(aggregate, aggregate_type, &row.id, error);
        let ticket = self.take_back(row, aggregate);
        self.aside.push(HeldRow {
            ticket,
            seq: row.seq,
            id: row.id.clone(),
            lsn: row.lsn,
            origin: row.origin,
            why: HoldReason::Published(aggregate),
        });
        Ok(ticket)
    }

    /// The row in flight as one that is put aside; a row of an earlier process comes in anew.
    fn take_back(&mut self, row: &Delivered, aggregate: Aggregate) -> Ticket {
        self.mark_failed(std::slice::from_ref(row));
        self.delivered.retain(|ticket| *ticket != row.ticket);
        if let Some(entry) = self.entries.get_mut(row.ticket) {
            entry.state = State::Aside;
            return row.ticket;
        }
        let facts = RowFacts {
            seq: row.seq,
            id: row.id.clone(),
            lsn: row.lsn,
            origin: row.origin,
            bytes: 0,
            aggregate,
            aggregate_type: &[],
            is_whole: true,
        };
        self.admit(&facts, State::Aside, None)
    }

    /// A row that was published and put aside is not handed out a second time: its mark is tried again until it is recorded.
    pub(super) fn mark_published_again(&mut self) {
        let is_published =
            |entry: &InFlightRow| entry.state == State::Aside && entry.topic.is_some();
        let published = self.entries.iter().filter(|(_, entry)| is_published(entry));
        let published: Vec<Ticket> = published.map(|(ticket, _)| ticket).collect();
        for ticket in published {
            if let Some(entry) = self.entries.get_mut(ticket) {
                entry.state = State::Delivered;
                self.delivered.push(ticket);
            }
        }
    }

    /// Rows that were put aside and are not being recorded yet.
    pub fn aside(&self) -> usize {
        self.aside.len()
    }

    /// Takes the rows to record as put aside; they stay in flight until `kept` or `keep_failed`.
    pub fn take_aside(&mut self) -> Vec<HeldRow> {
        std::mem::take(&mut self.aside)
    }

    /// Resolves rows that are recorded as held or as dead letters.
    pub fn kept(&mut self, rows: &[HeldRow]) {
        for row in rows {
            if self.entries.get(row.ticket).is_some() {
                self.held.kept(row.seq);
                self.suspects.recorded(&RowKey::of(row.seq, &row.id));
            }
            match self.settling {
                ReleaseOn::OnMark => self.forget(row.ticket),
                ReleaseOn::OnConfirmation => self.resolve_unmarked(row.ticket),
            }
        }
        self.release_confirmed();
    }

    /// Puts rows back whose recording failed or has an unknown outcome: recording twice is harmless.
    pub fn keep_failed(&mut self, rows: Vec<HeldRow>) {
        let later = std::mem::replace(&mut self.aside, rows);
        self.aside.extend(later);
    }
}
