//! The way down: a batch is screened for repetitions, each row is encoded and offered to the core,
//! and what it admits goes to the producer.

use std::collections::HashSet;

use tokio::time::Instant;
use tracing::{error, trace};

use super::topics::place_of;
use super::{End, Phase, Run, Session};
use crate::core::Ticket;
use crate::core::{Answered, Followers, Offer, RowFacts};
use crate::mark::{MarkError, Marks};
use crate::publish::Outgoing;
use crate::row::OutboxRow;
use crate::source::{Batch, SourceError};
use crate::state::Commits;
use crate::text::chain;

/// Records handed to the producer at once.
const OUTGOING_ROWS: usize = 500;

/// Held rows that come again with every turn; bounds memory, and what each turn reads in vain.
const HELD_IDS_MAX: usize = 100_000;

impl Run<'_> {
    /// Takes the next batch, without the rows that went out before.
    pub(super) async fn take_batch(&mut self, batch: Result<Batch, SourceError>) -> Option<End> {
        let mut batch = match batch {
            Ok(batch) => batch,
            Err(failure) => return Some(End::Source(failure)),
        };
        self.relay.metrics.read(batch.rows.len());
        // Before a stream nothing dies of locks alone: it may still bring the row.
        if let Marks::Ledger(ledger) = &mut self.session.marks
            && self.session.phase != Phase::CatchUp
        {
            ledger.note_rolled_back(&batch.rolled_back);
        }
        if let Err(failure) = self.screen(&mut batch).await {
            return Some(match failure {
                MarkError::NumberReused { .. } => End::Renumbered(chain(&failure)),
                other => End::Mark(other),
            });
        }
        let highest = batch.rows.iter().filter_map(|row| row.seq).max();
        self.top = self.top.max(highest.unwrap_or(i64::MIN));
        self.feed.take(batch);
        None
    }

    /// Removes rows that are in flight or were settled by an earlier session.
    async fn screen(&mut self, batch: &mut Batch) -> Result<(), MarkError> {
        if batch.rows.is_empty() {
            return Ok(());
        }
        let skipped = self.skipped_ids(&batch.rows).await?;
        let owed = self.owed_keys();
        let (core, state, read_before) = (
            &self.relay.core,
            &self.session.state,
            &mut self.relay.read_before,
        );
        let is_owed = |row: &OutboxRow| {
            let id = row.id.as_ref().filter(|_| !owed.is_empty());
            id.is_some_and(|id| owed.contains(&(row.seq, id.clone())))
        };
        let is_skipped = |row: &OutboxRow| {
            state.skips(row)
                || !skipped.is_empty()
                    && row
                        .id
                        .as_ref()
                        .is_some_and(|id| skipped.contains(&id.to_string()))
        };
        let is_replay = matches!(self.session.phase, Phase::Replay(_));
        let was_taken = |row: &OutboxRow| match is_replay {
            true => core.was_sent(row),
            false => core.was_in_flight(row) || core.is_kept(row),
        };
        let source = &self.session.source;
        let is_known = |row: &OutboxRow| {
            was_taken(row) || is_skipped(row) || source.holds(row) || is_owed(row)
        };
        let mut repeated: Vec<_> = batch.rows.iter().map(is_known).collect();
        if self.session.source.is_stream() {
            let settled = self
                .session
                .marks
                .settled_before(&self.session.sql.client, &batch.rows)
                .await?;
            repeated
                .iter_mut()
                .zip(settled)
                .for_each(|(repeated, settled)| *repeated |= settled);
            repeated
                .iter_mut()
                .zip(&batch.rows)
                .for_each(|(repeated, row)| *repeated |= read_before.has(row));
        } else if let Marks::None = self.session.marks {
            batch.rows.iter().for_each(|row| read_before.note(row));
        }
        let owing = &mut self.owing;
        let paid = batch.rows.iter().map(|row| owing.take_paid(row));
        repeated
            .iter_mut()
            .zip(paid)
            .for_each(|(repeated, is_paid)| *repeated |= is_paid);
        let count = batch.remove(&repeated);
        self.relay.metrics.repeated(count);
        Ok(())
    }

    /// The ids of those of these rows that the first start skipped by their ids.
    async fn skipped_ids(&self, rows: &[OutboxRow]) -> Result<HashSet<String>, MarkError> {
        let Session {
            source,
            state,
            layout,
            sql,
            ..
        } = &self.session;
        // A source of unsent rows hands out none of them.
        if source.repeats_held_rows() {
            return Ok(HashSet::new());
        }
        let commits = match source.is_stream() {
            true => Commits::Known,
            false => Commits::Bounded,
        };
        let outbox = layout.outbox();
        let asked = state.skipped_ids(&sql.client, &outbox, rows, commits);
        asked.await.map_err(MarkError::sql("look skipped rows up"))
    }

    /// Feeds rows until one has to wait or the batch ends.
    pub(super) fn feed_rows(&mut self) -> Option<End> {
        let mut outgoing = Vec::new();
        let mut end = None;
        loop {
            if let Some(lsn) = self.feed.boundary_reached() {
                self.relay.core.boundary(lsn);
            }
            if !self.feeds() {
                break;
            }
            let encoder = &self.session.encoder;
            let Some((row, encoded)) = self.feed.next(|row| encoder.encode(row)) else {
                break;
            };
            let facts = RowFacts::of(&self.session.layout, &row);
            let topic = encoded
                .as_ref()
                .map(|record| place_of(&self.leaderless, record).clone());
            let offer = self
                .relay
                .core
                .offer(&facts, topic.as_ref().map_err(|fault| *fault));
            match offer {
                Offer::Publish(ticket) => {
                    trace!(event_id = %facts.id, ticket, "publishing");
                    if let Ok(record) = encoded {
                        let partition = self.partition_of(&record);
                        outgoing.push(Outgoing {
                            ticket,
                            record,
                            partition,
                        });
                    }
                }
                Offer::Aside(ticket) => end = self.note_aside(ticket, row),
                Offer::AtFault {
                    ticket,
                    reason,
                    error,
                } => {
                    self.announce_fault(&facts, reason, &error);
                    end = self.note_aside(ticket, row);
                }
                Offer::Halt(reason) => {
                    end = Some(End::Halt(reason));
                    break;
                }
                Offer::Ask(ticket) => {
                    if let Ok(record) = encoded {
                        self.asking.insert(ticket, (row, record));
                    }
                }
                Offer::Wait => {
                    self.feed.wait(row, encoded);
                    break;
                }
            }
            self.feed.row_left();
            if end.is_some() {
                break;
            }
            if outgoing.len() >= OUTGOING_ROWS {
                self.publish(std::mem::take(&mut outgoing));
            }
        }
        self.publish(outgoing);
        self.ask_questions();
        end.or_else(|| self.caught_up())
    }

    /// Sends or puts aside the rows that have heard of their topic.
    pub(super) fn feed_answered(&mut self) -> Option<End> {
        let (asking, leaderless) = (&self.asking, &self.leaderless);
        let place = |ticket| {
            let (_, record) = asking.get(&ticket)?;
            Some(place_of(leaderless, record).clone())
        };
        let answered = self.relay.core.take_answered(place);
        let (mut outgoing, mut end) = (Vec::new(), None);
        for (ticket, answer) in answered {
            let Some((row, record)) = self.asking.remove(&ticket) else {
                continue;
            };
            match answer {
                Answered::Publish => {
                    self.handed_over.add_apart(ticket);
                    let partition = self.partition_of(&record);
                    outgoing.push(Outgoing {
                        ticket,
                        record,
                        partition,
                    });
                }
                Answered::Aside => end = end.or(self.note_aside(ticket, row)),
            }
        }
        self.hand_over(outgoing);
        end
    }

    /// Keeps the row until it is recorded; a source of unsent rows hands a held one out again with each turn.
    pub(super) fn note_aside(&mut self, ticket: Ticket, row: OutboxRow) -> Option<End> {
        self.relay.metrics.held();
        self.relay.read_before.forget(row.seq);
        let source = &self.session.source;
        let id = row.id.as_ref().filter(|_| source.repeats_held_rows());
        let held = id.map_or(0, |id| source.hold(id));
        self.hold_writer.put(ticket, row);
        (held > HELD_IDS_MAX).then(|| {
            End::Halt(format!(
                "polling reads all unsent rows with every turn, and more than {HELD_IDS_MAX} of them are held; \
                 `outboxd blocked list` shows what they wait for: fix it, then retry or skip it"
            ))
        })
    }

    fn publish(&mut self, outgoing: Vec<Outgoing>) {
        let Some(last) = outgoing.last().map(|last| last.ticket) else {
            return;
        };
        self.handed_over.add(last, outgoing.len(), Instant::now());
        self.hand_over(outgoing);
    }

    fn hand_over(&self, outgoing: Vec<Outgoing>) {
        if let Some(producer) = &self.relay.producer
            && !outgoing.is_empty()
        {
            producer.publisher.publish(outgoing);
        }
    }

    /// Whether rows go out: all of them, or in a drain the rest of a transaction.
    pub(super) fn feeds(&self) -> bool {
        self.drain_until.is_none() || self.is_within_transaction()
    }

    /// Whether rows went out of a transaction that is not read to its end, and no mark would say so to the next relay:
    /// all it begins with is a position, which can't stand in the middle.
    pub(super) fn is_within_transaction(&self) -> bool {
        matches!(self.session.marks, Marks::None)
            && self.session.source.is_stream()
            && self.feed.is_within_transaction()
    }

    /// Whether the next batch may be read: when this one is fed, unless we drain or the stream is about to take over.
    pub(super) fn wants_batch(&self) -> bool {
        self.feed.is_empty() && self.feeds() && !self.has_read_all()
    }

    fn has_read_all(&self) -> bool {
        let is_read = self.feed.caught_up() && self.session.source.has_moved_slot();
        self.session.phase != Phase::Steady && is_read
    }

    /// A catch-up or a replay is over when all that stood there was read and is settled.
    fn caught_up(&self) -> Option<End> {
        let is_over = self.has_read_all() && self.feed.is_empty() && self.relay.core.is_settled();
        if !is_over || self.marking.is_some() || !self.hold_writer.is_idle() {
            return None;
        }
        match &self.session.phase {
            Phase::CatchUp => Some(End::CaughtUp),
            Phase::Replay(copies) => Some(End::Replayed(copies.entries().to_vec())),
            Phase::Steady => None,
        }
    }

    fn announce_fault(&self, row: &RowFacts<'_>, reason: &'static str, error: &str) {
        self.relay.metrics.blocked(reason);
        let held = self.relay.core.held().aggregate(row.aggregate);
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
