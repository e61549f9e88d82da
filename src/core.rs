//! The state machine of rows in flight: what is admitted, what may be marked, what may be confirmed.
//!
//! Owns every row between the source and its mark. Does no I/O, reads no clock, awaits nothing.

mod held;
mod positions;
#[cfg(test)]
mod properties;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

pub use held::{Held, HeldAggregate, TopicHold};

use crate::encode::Rejection;
use crate::outbox::{Layout, Lsn, OutboxRow, RowId};
use crate::publish::{Fault, SessionEnd, Ticket, TopicState};
use crate::ranges::RangeSet;
use positions::Positions;

/// An aggregate, by a hash of its type and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Aggregate(pub u64);

/// What the core needs to know of a row.
#[derive(Clone, Debug)]
pub struct RowFacts<'a> {
    pub seq: Option<i64>,
    pub id: RowId,
    pub lsn: Lsn,
    pub bytes: usize,
    pub aggregate: Aggregate,
    pub aggregate_type: &'a [u8],
}

impl<'a> RowFacts<'a> {
    /// Reads the facts of a row; a NULL id is the empty text, which `encode` rejects.
    pub fn of(layout: &Layout, row: &'a OutboxRow) -> Self {
        let mut hasher = DefaultHasher::new();
        row.field(layout.aggregate_type).hash(&mut hasher);
        row.field(layout.aggregate_id).hash(&mut hasher);
        Self {
            seq: row.seq,
            id: row.id.clone().unwrap_or(RowId::Text("".into())),
            lsn: row.lsn,
            bytes: row.size(),
            aggregate: Aggregate(hasher.finish()),
            aggregate_type: row.field(layout.aggregate_type).unwrap_or_default(),
        }
    }
}

/// When a row stops counting in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    /// When it was marked.
    OnMark,
    /// When its transaction may be confirmed; a row of the transaction still being received, when
    /// it was delivered, else a transaction larger than the window could never end (design 9).
    OnConfirmation,
}

/// How much may be in flight.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub rows_max: usize,
    pub bytes_max: usize,
}

/// The answer to a row that is offered.
#[derive(Debug, PartialEq, Eq)]
pub enum Offer {
    /// Send it under this ticket.
    Publish(Ticket),
    /// It stays in the table: its aggregate or its topic is held.
    Held,
    /// It is the first row of an aggregate that is blocked from now on.
    Blocked,
    /// Ask whether its topic can be written, and offer it again.
    LookUp,
    /// Offer it again when something was settled.
    Wait,
}

/// A delivered row that is to be marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub ticket: Ticket,
    pub seq: Option<i64>,
    pub id: RowId,
    pub lsn: Lsn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Sent,
    Delivered,
    Marking,
    /// Delivered and waiting for its transaction to be confirmed (`Settling::OnConfirmation`).
    Resolved,
}

#[derive(Debug)]
struct Entry {
    state: State,
    seq: Option<i64>,
    id: RowId,
    lsn: Lsn,
    bytes: usize,
    aggregate: Aggregate,
    topic: Arc<str>,
}

/// What matches a row that a source hands out again to the entry it became the first time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum RowKey {
    Seq(i64),
    Id(RowId),
}

impl RowKey {
    fn of(seq: Option<i64>, id: &RowId) -> Self {
        seq.map_or_else(|| Self::Id(id.clone()), Self::Seq)
    }
}

/// Every row in flight, in publishing order.
#[derive(Debug)]
pub struct Core {
    window: Window,
    settling: Settling,
    next: Ticket,
    entries: BTreeMap<Ticket, Entry>,
    rows: usize,
    bytes: usize,
    sent: usize,
    sent_bytes: usize,
    delivered: Vec<Ticket>,
    positions: Positions,
    held: Held,
    alone: Option<Ticket>,
    suspects: HashSet<RowKey>,
    from_before: HashMap<RowKey, RowId>,
}

impl Core {
    /// Starts with nothing in flight.
    pub fn new(window: Window, settling: Settling) -> Self {
        Self {
            window,
            settling,
            next: 0,
            entries: BTreeMap::new(),
            rows: 0,
            bytes: 0,
            sent: 0,
            sent_bytes: 0,
            delivered: Vec::new(),
            positions: Positions::default(),
            held: Held::default(),
            alone: None,
            suspects: HashSet::new(),
            from_before: HashMap::new(),
        }
    }

    /// Tells whether a row was in flight when the source restarted: it is not to be sent again.
    ///
    /// It stays known until the next restart, for it may be marked before the source hands it out.
    pub fn was_in_flight(&self, row: &OutboxRow) -> bool {
        let Some(id) = &row.id else { return false };
        !self.from_before.is_empty()
            && self
                .from_before
                .get(&RowKey::of(row.seq, id))
                .is_some_and(|known| known == id)
    }

    /// Decides about the next row in publishing order: its topic, or why it can't be encoded.
    pub fn offer(&mut self, row: &RowFacts<'_>, encoded: Result<&Arc<str>, &Rejection>) -> Offer {
        if self.held.holds_aggregate(row.aggregate) {
            return self.hold(row, None);
        }
        let topic = match encoded {
            Ok(topic) => topic,
            Err(rejection) => {
                self.held
                    .block(row.aggregate, &row.id, rejection.text.clone());
                self.hold(row, None);
                return Offer::Blocked;
            }
        };
        match self.held.ask_topic(topic) {
            held::TopicAnswer::Ask => return Offer::LookUp,
            held::TopicAnswer::Asked => return Offer::Wait,
            held::TopicAnswer::Held => return self.hold(row, Some(topic)),
            held::TopicAnswer::Available => {}
        }
        let is_suspect =
            !self.suspects.is_empty() && self.suspects.contains(&RowKey::of(row.seq, &row.id));
        if self.alone.is_some() || (is_suspect && self.sent > 0) || !self.has_room(row.bytes) {
            return Offer::Wait;
        }
        let ticket = self.admit(row, topic);
        if is_suspect {
            self.alone = Some(ticket);
        }
        Offer::Publish(ticket)
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.rows == 0
            || (self.rows < self.window.rows_max && self.bytes + bytes <= self.window.bytes_max)
    }

    fn admit(&mut self, row: &RowFacts<'_>, topic: &Arc<str>) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        self.rows += 1;
        self.bytes += row.bytes;
        self.sent += 1;
        self.sent_bytes += row.bytes;
        self.entries.insert(
            ticket,
            Entry {
                state: State::Sent,
                seq: row.seq,
                id: row.id.clone(),
                lsn: row.lsn,
                bytes: row.bytes,
                aggregate: row.aggregate,
                topic: topic.clone(),
            },
        );
        ticket
    }

    /// A held row takes a ticket that never resolves, so that nothing behind it is confirmed.
    fn hold(&mut self, row: &RowFacts<'_>, topic: Option<&Arc<str>>) -> Offer {
        self.positions.pin(self.next);
        self.next += 1;
        self.held.count(row, topic);
        Offer::Held
    }

    /// Takes a place in the stream where no transaction is open, behind the rows offered so far.
    pub fn boundary(&mut self, lsn: Lsn) {
        self.positions.push(self.next, lsn);
        if self.positions.len() > 2 * self.entries.len() + 1_024 {
            self.positions.compact(self.entries.keys().copied());
        }
        self.release_confirmed();
    }

    /// Settles rows that the broker acknowledged; a ticket of an earlier producer is ignored.
    ///
    /// Returns the bytes of the rows that were settled.
    pub fn delivered(&mut self, tickets: &[Ticket]) -> usize {
        let mut bytes = 0;
        for ticket in tickets {
            let Some(entry) = self
                .entries
                .get_mut(ticket)
                .filter(|entry| entry.state == State::Sent)
            else {
                continue;
            };
            self.sent -= 1;
            self.sent_bytes -= entry.bytes;
            bytes += entry.bytes;
            if self.alone == Some(*ticket) {
                self.alone = None;
                self.suspects.remove(&RowKey::of(entry.seq, &entry.id));
            }
            match self.settling {
                Settling::OnMark => {
                    entry.state = State::Delivered;
                    self.delivered.push(*ticket);
                }
                Settling::OnConfirmation => self.resolve_unmarked(*ticket),
            }
        }
        self.release_confirmed();
        bytes
    }

    fn resolve_unmarked(&mut self, ticket: Ticket) {
        if self.positions.is_in_open_transaction(ticket) {
            self.forget(ticket);
        } else if let Some(entry) = self.entries.get_mut(&ticket) {
            entry.state = State::Resolved;
        }
    }

    fn forget(&mut self, ticket: Ticket) {
        if let Some(entry) = self.entries.remove(&ticket) {
            self.rows -= 1;
            self.bytes -= entry.bytes;
        }
    }

    /// Rows that were delivered and are not being marked yet.
    pub fn unmarked(&self) -> usize {
        self.delivered.len()
    }

    /// Takes the rows to mark next; they stay in flight until `marked` or `mark_failed`.
    pub fn take_delivered(&mut self) -> Vec<Delivered> {
        let tickets = std::mem::take(&mut self.delivered);
        let take = |ticket: Ticket| {
            let entry = self.entries.get_mut(&ticket)?;
            entry.state = State::Marking;
            Some(Delivered {
                ticket,
                seq: entry.seq,
                id: entry.id.clone(),
                lsn: entry.lsn,
            })
        };
        tickets.into_iter().filter_map(take).collect()
    }

    /// Resolves rows whose mark was committed.
    pub fn marked(&mut self, rows: &[Delivered]) {
        for row in rows {
            self.forget(row.ticket);
        }
        self.release_confirmed();
    }

    /// Puts rows back whose mark failed or has an unknown outcome: marking twice is harmless.
    pub fn mark_failed(&mut self, rows: &[Delivered]) {
        for row in rows {
            if let Some(entry) = self.entries.get_mut(&row.ticket) {
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
        unresolved.map_or(self.next, |(ticket, _)| *ticket)
    }

    fn release_confirmed(&mut self) {
        let resolved_before = self.first_unresolved();
        let Some(confirmed_before) = self.positions.advance(resolved_before) else {
            return;
        };
        if self.settling == Settling::OnConfirmation {
            let confirmed: Vec<_> = self
                .entries
                .range(..confirmed_before)
                .map(|(ticket, _)| *ticket)
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
    /// Blocked aggregates stay blocked. Held topics stay held until `topic` says otherwise.
    pub fn source_ended(&mut self) {
        self.positions.restart();
        self.held.source_ended();
        let key = |entry: &Entry| (RowKey::of(entry.seq, &entry.id), entry.id.clone());
        self.from_before = self.entries.values().map(key).collect();
    }

    /// Drops what the ended producer did not deliver, and draws the conclusions from its faults.
    ///
    /// The source is to be restarted: it hands the dropped rows out again. Returns the rows that were refused alone,
    /// whose aggregates are blocked from now on, with the reasons.
    pub fn producer_ended(&mut self, end: &SessionEnd) -> Vec<(RowId, String)> {
        let mut refused = Vec::new();
        for (ticket, fault) in &end.failed {
            let Some(entry) = self.entries.get(ticket) else {
                continue;
            };
            match fault {
                Fault::Row(reason) if self.alone == Some(*ticket) => {
                    self.suspects.remove(&RowKey::of(entry.seq, &entry.id));
                    self.held.block(entry.aggregate, &entry.id, reason.clone());
                    refused.push((entry.id.clone(), reason.clone()));
                }
                Fault::Row(_) => {
                    self.suspects.insert(RowKey::of(entry.seq, &entry.id));
                }
                Fault::Topic(reason) => self.held.refuse_topic(&entry.topic, reason.clone()),
                Fault::Session(_) => {}
            }
        }
        self.alone = None;
        let undelivered =
            |(ticket, entry): (&Ticket, &Entry)| (entry.state == State::Sent).then_some(*ticket);
        let undelivered: Vec<_> = self.entries.iter().filter_map(undelivered).collect();
        undelivered
            .into_iter()
            .for_each(|ticket| self.forget(ticket));
        (self.sent, self.sent_bytes) = (0, 0);
        self.source_ended();
        refused
    }

    /// Takes what was found out about a topic; `true` when a held topic can be written again.
    pub fn topic(&mut self, topic: &Arc<str>, state: &TopicState) -> bool {
        self.held.topic(topic, state)
    }

    /// Forgets everything that is in flight: the numbers or the database are no longer the same.
    pub fn forget_all(&mut self) {
        self.entries.clear();
        self.delivered.clear();
        self.from_before.clear();
        self.alone = None;
        (self.rows, self.bytes) = (0, 0);
        (self.sent, self.sent_bytes) = (0, 0);
        self.positions = Positions::default();
    }

    pub fn held(&self) -> &Held {
        &self.held
    }

    /// The numbers of all rows that are in flight or held.
    pub fn numbers(&self) -> RangeSet {
        let mut numbers: RangeSet = self
            .entries
            .values()
            .filter_map(|entry| entry.seq)
            .collect();
        numbers.extend(self.held.numbers());
        numbers
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

    /// Whether the broker has left more than half of the window without an answer.
    pub fn is_stuck(&self) -> bool {
        self.sent * 2 > self.window.rows_max || self.sent_bytes * 2 > self.window.bytes_max
    }

    /// Nothing is in flight, delivered or being marked.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether enough is delivered that the window should be relieved at once.
    pub fn is_pressed(&self) -> bool {
        self.delivered.len() * 4 >= self.window.rows_max || self.bytes * 2 >= self.window.bytes_max
    }
}
