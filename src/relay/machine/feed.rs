//! The way down: a batch is screened for repetitions, each row is encoded and offered to the core,
//! and what it admits goes to the producer.

use std::collections::HashMap;
use std::time::Duration;

use tracing::{error, trace};

use super::batch_cursor::BatchCursor;
use super::handed_over::HandedOver;
use super::topics::{AwaitedAnswer, place_of};
use super::{Arrival, Effect, End, Machine, Moment, Phase};
use crate::core::{Answered, Followers, Offer, RowFacts, Ticket, TopicPartition};
use crate::encode::{Record, Rejection};
use crate::mark::Marks;
use crate::publish::{Deliveries, Outgoing};
use crate::row::OutboxRow;

/// Records handed to the producer at once.
const OUTGOING_ROWS: usize = 500;

/// Held rows that come again with every turn; bounds memory, and what each turn reads in vain.
const HELD_ROWS_MAX: usize = 100_000;

/// Rows between the source and the core, and those that wait for an answer.
pub(super) struct Feed {
    cursor: BatchCursor<Result<Record, Rejection>>,
    /// Rows that wait to hear whether their topic can be written, and the records they are to become.
    asking: HashMap<Ticket, (OutboxRow, Record)>,
    pub(super) awaited: Option<AwaitedAnswer>,
    /// Partitions whose rows are held.
    pub(super) leaderless: Vec<TopicPartition>,
    handed_over: HandedOver,
    /// The highest number that the source has brought.
    top: i64,
    resolution: Resolution,
    /// Rows that the source was told to leave out.
    held_rows: usize,
}

/// Whether everything that the source handed out is marked or held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolution {
    Open,
    /// And the source knows it.
    Told,
}

/// What became of the next row.
enum Fed {
    On,
    /// Nothing goes on before something else happens.
    Waits,
    Ends(End),
}

impl Feed {
    pub(super) fn new(leaderless: Vec<TopicPartition>) -> Self {
        Self {
            cursor: BatchCursor::default(),
            asking: HashMap::new(),
            awaited: None,
            leaderless,
            handed_over: HandedOver::default(),
            top: i64::MIN,
            resolution: Resolution::Told,
            held_rows: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.cursor.is_empty()
    }

    pub(super) fn top(&self) -> i64 {
        self.top
    }

    pub(super) fn is_resolved(&self) -> bool {
        self.resolution == Resolution::Told
    }

    /// Tells the source that all its rows are marked or held, once.
    pub(super) fn resolve(&mut self, effects: &mut Vec<Effect>) {
        if self.resolution == Resolution::Open {
            self.resolution = Resolution::Told;
            effects.push(Effect::Resolved);
        }
    }
}

impl Machine {
    /// Takes the next batch, without the rows that went out before.
    pub(super) fn take_batch(&mut self, arrival: Arrival) -> Option<End> {
        let Arrival { mut batch, known } = arrival;
        // Before a stream nothing dies of locks alone: it may still bring the row.
        if let Marks::Ledger(ledger) = &mut self.marks
            && self.terms.phase != Phase::CatchUp
        {
            ledger.note_rolled_back(&batch.rolled_back);
        }
        if !batch.rows.is_empty() {
            self.feed.resolution = Resolution::Open;
            let repeated = self.repeated(&batch.rows, known);
            let count = batch.remove(&repeated);
            self.memory.metrics.repeated(count);
        }
        let highest = batch.rows.iter().filter_map(|row| row.seq).max();
        self.feed.top = self.feed.top.max(highest.unwrap_or(i64::MIN));
        self.feed.cursor.take(batch);
        None
    }

    /// Which rows are in flight or were settled by an earlier session.
    fn repeated(&mut self, rows: &[OutboxRow], known: Vec<bool>) -> Vec<bool> {
        let owed = self.owed_keys();
        let is_owed = |row: &OutboxRow| {
            let id = row.id.as_ref().filter(|_| !owed.is_empty());
            id.is_some_and(|id| owed.contains(&(row.seq, id.clone())))
        };
        let is_replay = matches!(self.terms.phase, Phase::Replay(_));
        let core = &self.memory.core;
        let was_taken = |row: &OutboxRow| match is_replay {
            true => core.was_sent(row),
            false => core.was_in_flight(row) || core.is_kept(row),
        };
        let read_before = &mut self.memory.read_before;
        let is_stream = self.terms.source.is_stream();
        let mut repeated = known;
        repeated.resize(rows.len(), false);
        for (repeated, row) in repeated.iter_mut().zip(rows) {
            *repeated |= was_taken(row) || is_owed(row);
            if is_stream {
                *repeated |= read_before.has(row);
            } else if let Marks::None = self.marks {
                read_before.note(row);
            }
            *repeated |= self.owing.take_paid(row);
        }
        repeated
    }

    /// Feeds rows until one has to wait or the batch ends.
    pub(super) fn feed_rows(
        &mut self,
        moment: &Moment<'_>,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        let mut outgoing = Vec::new();
        let end = loop {
            if let Some(lsn) = self.feed.cursor.boundary_reached() {
                self.memory.core.boundary(lsn);
            }
            if !self.feeds() {
                break None;
            }
            match self.feed_row(moment, &mut outgoing, effects) {
                Fed::On => {}
                Fed::Waits => break None,
                Fed::Ends(end) => break Some(end),
            }
            if outgoing.len() >= OUTGOING_ROWS {
                self.publish(std::mem::take(&mut outgoing), moment.now, effects);
            }
        };
        self.publish(outgoing, moment.now, effects);
        self.memory.ask_questions(effects);
        end.or_else(|| self.caught_up(moment))
    }

    /// Offers the next row of the batch.
    fn feed_row(
        &mut self,
        moment: &Moment<'_>,
        outgoing: &mut Vec<Outgoing>,
        effects: &mut Vec<Effect>,
    ) -> Fed {
        let Some((row, encoded)) = self.feed.cursor.next(moment.encode) else {
            return Fed::Waits;
        };
        let facts = RowFacts::of(&self.terms.layout, &row);
        let topic = encoded
            .as_ref()
            .map(|record| place_of(&self.feed.leaderless, record).clone());
        let core = &mut self.memory.core;
        let mut end = None;
        match core.offer(&facts, topic.as_ref().map_err(|fault| *fault)) {
            Offer::Publish(ticket) => {
                trace!(event_id = %facts.id, ticket, "publishing");
                if let Ok(record) = encoded {
                    outgoing.push(self.outgoing(ticket, record));
                }
            }
            Offer::Aside(ticket) => end = self.put_aside(ticket, row, effects),
            Offer::AtFault {
                ticket,
                reason,
                error,
            } => {
                self.announce_fault(&facts, reason, &error);
                end = self.put_aside(ticket, row, effects);
            }
            Offer::Halt(reason) => return Fed::Ends(End::Halt(reason)),
            Offer::Ask(ticket) => {
                if let Ok(record) = encoded {
                    self.feed.asking.insert(ticket, (row, record));
                }
            }
            Offer::Wait => {
                self.feed.cursor.wait(row, encoded);
                return Fed::Waits;
            }
        }
        self.feed.cursor.row_left();
        end.map_or(Fed::On, Fed::Ends)
    }

    fn outgoing(&self, ticket: Ticket, record: Record) -> Outgoing {
        let partition = self.memory.partition_of(&record);
        Outgoing {
            ticket,
            record,
            partition,
        }
    }

    /// Sends or puts aside the rows that have heard of their topic.
    pub(super) fn feed_answered(&mut self, effects: &mut Vec<Effect>) -> Option<End> {
        let (asking, leaderless) = (&self.feed.asking, &self.feed.leaderless);
        let place = |ticket| {
            let (_, record) = asking.get(&ticket)?;
            Some(place_of(leaderless, record).clone())
        };
        let answered = self.memory.core.take_answered(place);
        let (mut outgoing, mut end) = (Vec::new(), None);
        for (ticket, answer) in answered {
            let Some((row, record)) = self.feed.asking.remove(&ticket) else {
                continue;
            };
            match answer {
                Answered::Publish => {
                    self.feed.handed_over.add_apart(ticket);
                    outgoing.push(self.outgoing(ticket, record));
                }
                Answered::Aside => end = end.or(self.put_aside(ticket, row, effects)),
            }
        }
        if !outgoing.is_empty() {
            effects.push(Effect::Publish(outgoing));
        }
        end
    }

    /// Keeps the row until it is recorded; a source of unsent rows hands a held one out again with each turn.
    pub(super) fn put_aside(
        &mut self,
        ticket: Ticket,
        row: OutboxRow,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        self.memory.metrics.held();
        self.memory.read_before.forget(row.seq);
        if let Some(id) = row.id.as_ref()
            && self.terms.source.repeats_held_rows()
        {
            self.feed.held_rows += 1;
            effects.push(Effect::Hold(id.clone()));
        }
        self.holds.put(ticket, row);
        (self.feed.held_rows > HELD_ROWS_MAX).then(|| {
            End::Halt(format!(
                "polling reads all unsent rows with every turn, and more than {HELD_ROWS_MAX} of them are held; \
                 `outboxd blocked list` shows what they wait for: fix it, then retry or skip it"
            ))
        })
    }

    fn publish(&mut self, outgoing: Vec<Outgoing>, now: Duration, effects: &mut Vec<Effect>) {
        if let Some(last) = outgoing.last() {
            self.feed.handed_over.add(last.ticket, outgoing.len(), now);
            effects.push(Effect::Publish(outgoing));
        }
    }

    /// Takes rows that a broker acknowledged; observes how long what was handed over together took until all of it was.
    pub(super) fn take_delivered(&mut self, delivered: &Deliveries, now: Duration) -> Option<End> {
        self.memory.acknowledged(delivered);
        self.note_unmarked(now);
        for took in self.feed.handed_over.acknowledged(&delivered.tickets, now) {
            self.memory.metrics.delivery(took);
        }
        self.succession.delay(now);
        None
    }

    /// Whether rows go out: all of them, or in a drain the rest of a transaction.
    pub(super) fn feeds(&self) -> bool {
        self.drain_until.is_none() || self.is_within_transaction()
    }

    /// Whether rows went out of a transaction that is not read to its end, and no mark would say so to the next relay:
    /// all it begins with is a position, which can't stand in the middle.
    pub(super) fn is_within_transaction(&self) -> bool {
        matches!(self.marks, Marks::None)
            && self.terms.source.is_stream()
            && self.feed.cursor.is_within_transaction()
    }

    /// Whether the next batch may be read: when this one is fed, unless we drain or the stream is about to take over.
    pub(crate) fn wants_batch(&self, has_moved_slot: bool) -> bool {
        self.feed.is_empty() && self.feeds() && !self.has_read_all(has_moved_slot)
    }

    /// Whether a turn of the source found no more.
    pub(crate) fn has_caught_up(&self) -> bool {
        self.feed.cursor.caught_up()
    }

    fn has_read_all(&self, has_moved_slot: bool) -> bool {
        self.terms.phase != Phase::Steady && self.has_caught_up() && has_moved_slot
    }

    /// A catch-up or a replay is over when all that stood there was read and is settled.
    fn caught_up(&self, moment: &Moment<'_>) -> Option<End> {
        let is_read = self.has_read_all(moment.has_moved_slot) && self.feed.is_empty();
        if !is_read || !self.memory.core.is_settled() {
            return None;
        }
        if !self.marking.is_idle() || !self.holds.is_idle() {
            return None;
        }
        match &self.terms.phase {
            Phase::CatchUp => Some(End::CaughtUp),
            Phase::Replay(copies) => Some(End::Replayed(copies.entries().to_vec())),
            Phase::Steady => None,
        }
    }

    fn announce_fault(&self, row: &RowFacts<'_>, reason: &'static str, error: &str) {
        self.memory.metrics.blocked(reason);
        let held = self.memory.core.held().aggregate(row.aggregate);
        let what = match held.map(|held| held.followers) {
            Some(Followers::Wait) => {
                "its aggregate is blocked, the row and its followers stay in the table"
            }
            Some(Followers::Die) => {
                "it becomes a dead letter, and what follows in its aggregate too"
            }
            None => "it becomes a dead letter, its aggregate goes on",
        };
        let event_id = &row.id;
        error!(%event_id, reason, error, "row can't be published: {what}");
    }
}
