//! The state machine of rows in flight: what is admitted, what may be marked, what may be confirmed.
//!
//! Owns every row between the source and its mark. Does no I/O, reads no clock, awaits nothing.

mod aside;
mod asking;
mod held;
mod in_flight;
mod in_flight_row;
mod in_view;
mod outage_breaker;
mod pause;
mod positions;
mod producer;
mod redelivered;
mod row;
mod suspects;
#[cfg(test)]
mod tests;
mod topic_hold;
mod topic_partition;
mod topics;

use std::sync::Arc;

pub use held::{Followers, Held, HeldAggregate, Recorded, UNMARKABLE};
pub use producer::{Cutting, Fault, SessionEnd, SmallBatches, Ticket, TopicState};
pub use row::{
    Aggregate, Answered, Delivered, Faults, HeldRow, HoldReason, MarkSelection, Offer, ReleaseOn,
    RowFacts, Window,
};
pub use topic_hold::{Help, TopicHold};
pub use topic_partition::{TopicPartition, partition_of};
pub use topics::{OTHERS, Questions};

use crate::config::FaultPolicy;
use crate::encode::Rejection;
use crate::row::{Lsn, OutboxRow, RowId};
use asking::Asking;
use in_flight::InFlight;
use in_flight_row::{InFlightRow, RowKey, State};
use outage_breaker::OutageBreaker;
use positions::Positions;
use redelivered::Redelivered;
use suspects::Suspects;
use topics::TopicAnswer;

/// Every row in flight, in publishing order.
#[derive(Debug)]
pub struct Core {
    window: Window,
    settling: ReleaseOn,
    next: Ticket,
    entries: InFlight,
    rows: usize,
    bytes: usize,
    sent: usize,
    sent_bytes: usize,
    delivered: Vec<Ticket>,
    aside: Vec<HeldRow>,
    asking: Asking,
    positions: Positions,
    policy: FaultPolicy,
    breaker: OutageBreaker,
    held: Held,
    suspects: Suspects,
    from_before: Redelivered,
}

impl Core {
    /// Starts with nothing in flight.
    pub fn new(window: Window, settling: ReleaseOn, faults: Faults) -> Self {
        Self {
            window,
            settling,
            next: 0,
            entries: InFlight::default(),
            rows: 0,
            bytes: 0,
            sent: 0,
            sent_bytes: 0,
            delivered: Vec::new(),
            aside: Vec::new(),
            asking: Asking::default(),
            positions: Positions::default(),
            policy: faults.policy,
            breaker: OutageBreaker::new(faults.halt_share),
            held: Held::new(faults.halt_share),
            suspects: Suspects::default(),
            from_before: Redelivered::default(),
        }
    }

    /// Tells whether a row was in flight when the source restarted: it is not to be sent again.
    ///
    /// It stays known until the next restart, for it may be marked before the source hands it out.
    pub fn was_in_flight(&self, row: &OutboxRow) -> bool {
        self.from_before.has(row)
    }

    /// Tells the same of a row that was sent, and not put aside: what was put aside is replayed.
    pub fn was_sent(&self, row: &OutboxRow) -> bool {
        self.from_before.has_sent(row)
    }

    /// Tells whether a row is kept whole, where nothing is marked: reading it again says nothing new of it.
    pub fn is_kept(&self, row: &OutboxRow) -> bool {
        let is_put_aside = |seq| self.held.numbers().contains(seq);
        self.settling == ReleaseOn::OnConfirmation && row.seq.is_some_and(is_put_aside)
    }

    /// Begins with the holds that are recorded; nothing may be in flight of their rows.
    pub fn restore(&mut self, recorded: Recorded) {
        self.held.restore(recorded);
    }

    /// Half a minute has passed: what an outage is, is judged over two of them.
    pub fn half_minute_passed(&mut self) {
        self.breaker.turn();
    }

    /// Decides about the next row in publishing order: its topic, or why it can't be encoded.
    pub fn offer(&mut self, row: &RowFacts<'_>, encoded: Result<&Arc<str>, &Rejection>) -> Offer {
        if !self.has_room(row.bytes) {
            return Offer::Wait;
        }
        self.breaker.saw(row.aggregate);
        if let Some(followers) = self.held.followers_of(row.aggregate) {
            return Offer::Aside(self.follow(row, followers));
        }
        let topic = match encoded {
            Ok(topic) => topic,
            Err(rejection) => {
                return self.at_fault(row, rejection.reason.as_str(), rejection.text.clone());
            }
        };
        let key = RowKey::of(row.seq, &row.id);
        if let Some(error) = self.suspects.refusal(&key) {
            let error = error.to_owned();
            return self.at_fault(row, "refused", error);
        }
        if let Some(ahead) = self.held.topics.behind(row.aggregate, row.seq) {
            if self.has_sent_ahead(row.aggregate, topic) {
                return Offer::Wait;
            }
            return Offer::Aside(self.put_aside(row, HoldReason::Topic(ahead)));
        }
        let answer = self.held.topics.answer(topic);
        if self.asking.has(row.aggregate) {
            return self.ask(row, topic);
        }
        match answer {
            TopicAnswer::Available => {}
            TopicAnswer::Asked => return self.ask(row, topic),
            TopicAnswer::Held(name) => {
                return Offer::Aside(self.put_aside(row, HoldReason::Topic(name)));
            }
        }
        let is_suspect = self.suspects.has(&key);
        if self.suspects.is_one_alone() || (is_suspect && self.sent > 0) {
            return Offer::Wait;
        }
        self.sent += 1;
        self.sent_bytes += row.bytes;
        let ticket = self.admit(row, State::Sent, Some(topic.clone()));
        if is_suspect {
            self.suspects.send_alone(ticket);
        }
        Offer::Publish(ticket)
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.rows == 0
            || (self.rows < self.window.rows_max && self.bytes + bytes <= self.window.bytes_max)
    }

    fn admit(&mut self, row: &RowFacts<'_>, state: State, topic: Option<Arc<str>>) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        self.rows += 1;
        self.bytes += row.bytes;
        let entry = InFlightRow {
            state,
            seq: row.seq,
            id: row.id.clone(),
            lsn: row.lsn,
            origin: row.origin,
            aggregate: row.aggregate,
            bytes: row.bytes,
            topic,
        };
        self.entries.push(ticket, entry);
        ticket
    }

    /// Takes a place in the stream where no transaction is open, behind the rows offered so far.
    pub fn boundary(&mut self, lsn: Lsn) {
        self.positions.push(self.next, lsn);
        if self.positions.len() > 2 * self.entries.len() + 1_024 {
            let tickets = self.entries.iter().map(|(ticket, _)| ticket);
            self.positions.compact(tickets);
        }
        self.release_confirmed();
    }

    /// Settles rows that the broker acknowledged; a ticket of an earlier producer is ignored.
    pub fn delivered(&mut self, tickets: &[Ticket]) {
        for ticket in tickets {
            let Some(entry) = self
                .entries
                .get_mut(*ticket)
                .filter(|entry| entry.state == State::Sent)
            else {
                continue;
            };
            self.sent -= 1;
            self.sent_bytes -= entry.bytes;
            if self.suspects.is_one_alone() {
                let key = RowKey::of(entry.seq, &entry.id);
                self.suspects.delivered(*ticket, &key);
            }
            match self.settling {
                ReleaseOn::OnMark => {
                    entry.state = State::Delivered;
                    self.delivered.push(*ticket);
                }
                ReleaseOn::OnConfirmation => self.resolve_unmarked(*ticket),
            }
        }
        self.asking.delivered();
        self.release_confirmed();
    }

    fn resolve_unmarked(&mut self, ticket: Ticket) {
        if self.positions.is_in_open_transaction(ticket) {
            self.forget(ticket);
        } else if let Some(entry) = self.entries.get_mut(ticket) {
            entry.state = State::Resolved;
        }
    }

    fn forget(&mut self, ticket: Ticket) {
        if let Some(entry) = self.entries.remove(ticket)
            && entry.state != State::Waiting
        {
            self.rows -= 1;
            self.bytes -= entry.bytes;
        }
    }

    /// Rows that were delivered and are not being marked yet.
    pub fn unmarked(&self) -> usize {
        self.delivered.len()
    }

    /// Takes the rows to mark next, in publishing order; they stay in flight until `marked` or `mark_failed`.
    pub fn take_delivered(&mut self, extent: MarkSelection) -> Vec<Delivered> {
        self.delivered.sort_unstable();
        let end = match extent {
            MarkSelection::All => self.delivered.len(),
            MarkSelection::InOrder => self.delivered_in_order(),
        };
        let later = self.delivered.split_off(end);
        let tickets = std::mem::replace(&mut self.delivered, later);
        let take = |ticket: Ticket| {
            let entry = self.entries.get_mut(ticket)?;
            entry.state = State::Marking;
            Some(Delivered {
                ticket,
                seq: entry.seq,
                id: entry.id.clone(),
                lsn: entry.lsn,
                origin: entry.origin,
            })
        };
        tickets.into_iter().filter_map(take).collect()
    }

    /// How many of the delivered rows, sorted, stand before the first that is not acknowledged; none if that is not most.
    fn delivered_in_order(&self) -> usize {
        let first_sent = self.oldest_sent().unwrap_or(self.next);
        let before = self
            .delivered
            .partition_point(|ticket| *ticket < first_sent);
        if before * 2 >= self.delivered.len() {
            before
        } else {
            0
        }
    }

    /// Resolves rows whose mark was committed.
    pub fn marked(&mut self, rows: &[Delivered]) {
        for row in rows {
            self.forget(row.ticket);
        }
        self.release_confirmed();
    }

    /// Takes rows out of the window whose commits are not visible yet: they may take long, and hold nobody up. They stay
    /// in flight until `marked` or `mark_failed`.
    pub fn mark_waits(&mut self, rows: &[Delivered]) {
        for row in rows {
            if let Some(entry) = self.entries.get_mut(row.ticket)
                && entry.state != State::Waiting
            {
                entry.state = State::Waiting;
                self.rows -= 1;
                self.bytes -= entry.bytes;
            }
        }
    }

    /// Puts rows back whose mark failed or has an unknown outcome: marking twice is harmless.
    pub fn mark_failed(&mut self, rows: &[Delivered]) {
        for row in rows {
            if let Some(entry) = self.entries.get_mut(row.ticket) {
                if entry.state == State::Waiting {
                    self.rows += 1;
                    self.bytes += entry.bytes;
                }
                entry.state = State::Delivered;
                self.delivered.push(row.ticket);
            }
        }
    }

    fn first_unresolved(&self) -> Ticket {
        let unresolved = self
            .entries
            .iter()
            .find(|(_, entry)| entry.state != State::Resolved);
        unresolved.map_or(self.next, |(ticket, _)| ticket)
    }

    fn release_confirmed(&mut self) {
        let resolved_before = self.first_unresolved();
        let Some(confirmed_before) = self.positions.advance(resolved_before) else {
            return;
        };
        if self.settling == ReleaseOn::OnConfirmation {
            let confirmed: Vec<_> = self
                .entries
                .iter()
                .map(|(ticket, _)| ticket)
                .take_while(|ticket| *ticket < confirmed_before)
                .collect();
            confirmed.into_iter().for_each(|ticket| self.forget(ticket));
        }
    }

    /// The position up to which every row is delivered and marked: what may be confirmed.
    pub fn confirmable(&self) -> Option<Lsn> {
        self.positions.confirmable()
    }

    /// The newest position that came in order behind all rows before it.
    pub fn passed(&self) -> Option<Lsn> {
        self.positions.passed()
    }

    /// Forgets where the source stood; rows in flight stay and are matched when they come again.
    ///
    /// Rows put aside that are not recorded are dropped: a source hands them out again.
    pub fn source_ended(&mut self) {
        self.positions.restart();
        self.held.topics.ask_again();
        self.aside.clear();
        self.mark_published_again();
        self.forget_all_in(State::Aside);
        self.drop_asking();
        self.from_before = Redelivered::of(self.entries.iter().map(|(_, entry)| entry));
    }

    /// Drops what the ended producer did not deliver, and draws the conclusions from its faults.
    ///
    /// The source is to be restarted: it hands the dropped rows out again, and a row that was refused alone is at fault then.
    pub fn producer_ended(&mut self, end: &SessionEnd) {
        let mut troubled = Vec::new();
        for (ticket, fault) in &end.failed {
            let Some(entry) = self.entries.get(*ticket) else {
                continue;
            };
            let key = RowKey::of(entry.seq, &entry.id);
            match (fault, &entry.topic) {
                (Fault::Row(reason), _) => self.suspects.refuse(*ticket, key, reason),
                (Fault::Topic(reason), Some(topic)) => {
                    self.held.topics.refuse(topic, reason.clone());
                }
                (Fault::NoTopic(_), Some(topic)) => self.held.topics.lose(topic),
                (Fault::Topic(_) | Fault::NoTopic(_), None) => {}
                (Fault::Session(_), _) => troubled.push((key, entry.id.clone())),
            }
        }
        self.suspects.trouble(troubled);
        self.suspects.producer_ended();
        self.forget_all_in(State::Sent);
        (self.sent, self.sent_bytes) = (0, 0);
        self.source_ended();
    }

    /// The row that, sent alone, ends one producer after the other, for a reason that need not be its own.
    pub fn stubborn(&self) -> Option<&RowId> {
        self.suspects.stubborn()
    }

    fn forget_all_in(&mut self, state: State) {
        let is_in =
            |(ticket, entry): (Ticket, &InFlightRow)| (entry.state == state).then_some(ticket);
        let tickets: Vec<_> = self.entries.iter().filter_map(is_in).collect();
        tickets.into_iter().for_each(|ticket| self.forget(ticket));
    }

    /// Forgets everything that is in flight: the numbers or the database are no longer the same.
    pub fn forget_all(&mut self) {
        self.entries = InFlight::default();
        self.delivered.clear();
        self.aside.clear();
        self.asking = Asking::default();
        self.held.topics.lose_sight();
        self.suspects = Suspects::default();
        self.from_before = Redelivered::default();
        (self.rows, self.bytes) = (0, 0);
        (self.sent, self.sent_bytes) = (0, 0);
        self.positions = Positions::default();
    }

    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Rows that count in the window.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that count in the window.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Rows that the broker has not acknowledged yet.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// The first row in publishing order that the broker has not acknowledged yet.
    pub fn oldest_sent(&self) -> Option<Ticket> {
        let mut entries = self.entries.iter();
        let oldest = entries.find(|(_, entry)| entry.state == State::Sent);
        oldest.map(|(ticket, _)| ticket)
    }

    /// Where a row in flight goes to.
    pub fn topic_of(&self, ticket: Ticket) -> Option<&Arc<str>> {
        self.entries.get(ticket)?.topic.as_ref()
    }

    /// What the next row is called; every row so far has a lower ticket.
    pub fn next_ticket(&self) -> Ticket {
        self.next
    }

    /// Whether the broker has left more than half of the window without an answer.
    pub fn is_stuck(&self) -> bool {
        self.sent * 2 > self.window.rows_max || self.sent_bytes * 2 > self.window.bytes_max
    }

    /// Nothing waits for the broker, a mark that can be made, or a record; where nothing is marked rows may still wait for
    /// their confirmation.
    pub fn is_settled(&self) -> bool {
        let is_settled =
            |entry: &InFlightRow| matches!(entry.state, State::Resolved | State::Waiting);
        self.entries.iter().all(|(_, entry)| is_settled(entry))
    }

    /// Nothing is in flight, delivered or being marked.
    pub fn is_empty(&self) -> bool {
        self.entries.len() == 0
    }

    /// Whether enough is delivered that the window should be relieved at once.
    pub fn is_pressed(&self) -> bool {
        self.delivered.len() * 4 >= self.window.rows_max || self.bytes * 2 >= self.window.bytes_max
    }
}
