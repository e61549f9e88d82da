//! The loop of one session as a machine: what happened goes in, what is to be done comes out.
//!
//! Owns every decision between the source and the marks. Does no I/O, reads no clock, awaits nothing: `relay.rs` carries
//! its effects out, and so does the simulator.

mod batch_cursor;
mod effect;
mod end;
mod feed;
mod handed_over;
mod holds;
mod input;
mod maintenance;
mod marking;
mod memory;
mod owing;
mod paid;
mod read_before;
mod removal;
mod stall_detector;
mod succession;
mod sweep;
mod topics;

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::config::{Mark, Mode};
use crate::core::Recorded;
use crate::mark::{FencingToken, MarkError, Marks, Owed};
use crate::row::{Layout, Lsn};
use crate::source::SourceKind;
use crate::text::chain;
pub(crate) use effect::Effect;
pub use end::{End, Phase};
use feed::Feed;
use holds::HoldWriter;
pub(crate) use input::{Arrival, Connection, Input, LeaseInSight, Moment};
pub(crate) use maintenance::Finding;
use maintenance::{Maintenance, Requests};
pub(crate) use marking::Failing;
use marking::Marking;
pub(crate) use memory::{InSight, Memory, Partitioner};
use owing::Owing;
use removal::Removals;
pub(crate) use removal::{Removal, RemovalOutcome, RemovalTerms, Step};
pub(crate) use stall_detector::Wait;
use succession::Succession;
pub(crate) use succession::{LEADERLESS_DRAIN_MAX, SILENCE_UNANSWERED_MAX};
use sweep::Sweep;
pub(crate) use sweep::{Look, Looks};

/// What stays the same throughout one session.
pub(crate) struct Terms {
    pub(crate) mark: Mark,
    pub(crate) mode: Mode,
    pub(crate) phase: Phase,
    pub(crate) source: SourceKind,
    /// Rows that stand in the table can be read from it in their order.
    pub(crate) order_is_told: bool,
    pub(crate) layout: Arc<Layout>,
    pub(crate) generation: i32,
    pub(crate) token: FencingToken,
    /// How often PostgreSQL had said that it stops when the session began.
    pub(crate) shutdown_notices: u64,
    pub(crate) sweep_every: Duration,
    /// Who looks for what the stream missed; where rows are marked.
    pub(crate) looks: Option<Looks>,
    /// Where old rows are removed.
    pub(crate) removal: Option<RemovalTerms>,
}

/// What a session finds when it begins.
pub(crate) struct Found {
    pub(crate) marks: Marks,
    /// What is held, as it is recorded.
    pub(crate) recorded: Recorded,
    /// Rows whose mark an earlier process owed.
    pub(crate) owed: Owed,
}

/// One session.
pub(crate) struct Machine {
    memory: Memory,
    terms: Terms,
    marks: Marks,
    feed: Feed,
    marking: Marking,
    owing: Owing,
    holds: HoldWriter,
    succession: Succession,
    sweep: Sweep,
    removals: Removals,
    maintenance: Maintenance,
    requests: Requests,
    /// Set while we stop: everything in flight is settled until then.
    drain_until: Option<Duration>,
    confirmed: Lsn,
    /// Seconds that have passed.
    ticks: u32,
}

impl Machine {
    /// Begins a session with what the relay remembers.
    pub(crate) fn begin(mut memory: Memory, terms: Terms, found: Found, now: Duration) -> Self {
        if let Phase::Replay(copies) = &terms.phase {
            memory.replayed.begin(copies);
        }
        let holds = HoldWriter::new(found.recorded.kept_bytes);
        memory.core.restore(found.recorded);
        let feed = Feed::new(memory.leaderless());
        Self {
            feed,
            marking: Marking::new(now),
            owing: Owing::new(found.owed, now),
            holds,
            succession: Succession::Settled,
            sweep: Sweep::new(terms.sweep_every, terms.looks),
            removals: Removals::new(terms.removal, now),
            maintenance: Maintenance::Idle,
            requests: Requests::Answered,
            drain_until: None,
            confirmed: Lsn(0),
            ticks: 0,
            marks: found.marks,
            memory,
            terms,
        }
    }

    /// Takes what happened and says what is to be done; after `Effect::End` nothing is.
    pub(crate) fn handle(&mut self, input: Input, moment: &Moment<'_>, effects: &mut Vec<Effect>) {
        let end = self
            .take(input, moment, effects)
            .or_else(|| self.succeed(moment, effects))
            .or_else(|| self.turn(moment, effects));
        if let Some(end) = end {
            effects.push(Effect::End(end));
        }
    }

    fn take(
        &mut self,
        input: Input,
        moment: &Moment<'_>,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        let now = moment.now;
        match input {
            Input::TimePassed => None,
            Input::StopAsked { until } => self.drain(until),
            Input::LeaseGone => Some(End::Deposed),
            Input::Arrived(arrival) => self.take_batch(arrival),
            Input::LookUpFailed(failure) => Some(match failure {
                MarkError::NumberReused { .. } => End::Renumbered(chain(&failure)),
                other => End::Mark(other),
            }),
            Input::SourceEnded(failure) => Some(End::Source(failure)),
            Input::Delivered(delivered) => self.take_delivered(&delivered, now),
            Input::TopicsAnswered(answers) => self.take_topics(&answers, now, effects),
            Input::ProducerEnded(end) => Some(self.take_producer_end(end, effects)),
            Input::ProducerOutdated(why) => self.start_successor(why, effects),
            Input::SuccessorStarted => self.succession.started(now),
            Input::SuccessorFailed => {
                self.memory.grown.clear();
                self.succession.failed()
            }
            Input::ProducerGivenUp { delivered, end } => {
                Some(self.take_given_up(&delivered, end, effects))
            }
            Input::Marked(result, connection) => self.take_mark(result, connection, now, effects),
            Input::Recorded(result, connection) => self.take_record(result, connection, now),
            Input::Maintained(result, connection) => self.take_maintenance(result, connection),
            Input::Removed(removal) => self.take_removed(removal, now, effects),
            Input::Looked(look) => self.take_look(look, now, effects),
            Input::Requested { is_asked_for } => self.take_request(is_asked_for),
            Input::TableMoved(why) => Some(End::Moved(why)),
            Input::TopicsDue => self.ask_for_topics(now, effects),
            Input::LookDue => self.look_for_missed(now, effects),
            Input::MaintenanceDue => self.maintain(effects),
            Input::SecondPassed(on) => {
                self.memory.look_at_waits(now, on);
                self.memory.ask_if_silent(effects);
                self.ask_for_requests(effects);
                self.count_second();
                None
            }
        }
    }

    /// Does what can be done without waiting; tells when the session is over.
    fn turn(&mut self, moment: &Moment<'_>, effects: &mut Vec<Effect>) -> Option<End> {
        if self.succession.is_giving_up() {
            return None;
        }
        let lease = moment.lease;
        if lease.epoch != Some(self.terms.token.epoch) {
            return Some(End::Deposed);
        }
        if lease.shutdown_notices != self.terms.shutdown_notices {
            return Some(End::PostgresStops);
        }
        if lease.may_publish && self.succession.is_settled() {
            // In a drain too: what went out behind a row that asks waits for it.
            let mut end = self.feed_answered(effects);
            if end.is_none() && self.feeds() {
                end = self
                    .too_much_is_kept()
                    .or_else(|| self.feed_rows(moment, effects));
            }
            if end.is_some() {
                return end;
            }
        }
        self.settle(moment.now, effects)
    }

    /// Marks and confirms what came back; tells when a drain is over.
    fn settle(&mut self, now: Duration, effects: &mut Vec<Effect>) -> Option<End> {
        self.start_mark(now, effects);
        self.start_record(now, effects);
        self.remove_old(now, effects);
        self.confirm(effects);
        let is_settled = self.is_settled();
        // A row that still waits for its topic is not to be read again.
        if is_settled && self.feed.is_empty() && self.memory.core.asking() == 0 {
            self.feed.resolve(effects);
        }
        let deadline = self.drain_until?;
        let is_owed = !self.owing.is_empty() && !self.marks.remembers_what_is_owed();
        if is_settled && !is_owed && !self.is_within_transaction() {
            return Some(End::Stopped);
        }
        if now < deadline {
            return None;
        }
        warn!(
            rows = self.memory.core.rows(),
            "`shutdown.grace` is over and not everything is settled: rows may be sent again"
        );
        Some(End::Stopped)
    }

    fn confirm(&mut self, effects: &mut Vec<Effect>) {
        let confirmable = self.memory.core.confirmable();
        if let Some(lsn) = confirmable.filter(|lsn| *lsn > self.confirmed) {
            self.confirmed = lsn;
            effects.push(Effect::Confirm(lsn));
        }
    }

    fn is_settled(&self) -> bool {
        let core = &self.memory.core;
        // Where nothing is marked what went out behind a row that waits for an answer would be sent again.
        let is_answered = core.asking() == 0 || !matches!(self.marks, Marks::None);
        let is_idle = self.marking.is_idle() && self.holds.is_idle() && is_answered;
        is_idle && core.sent() == 0 && core.unmarked() == 0 && core.aside() == 0
    }

    fn drain(&mut self, until: Duration) -> Option<End> {
        info!(rows = self.memory.core.rows(), "draining");
        self.drain_until = Some(until);
        None
    }

    /// When something is due although nothing happens.
    pub(crate) fn wakes_at(&self) -> Option<Duration> {
        let owed_at = self.owing.again_at().filter(|_| self.marking.is_idle());
        let unmarked = self.memory.core.unmarked();
        [
            self.drain_until,
            self.holds.again_at(),
            owed_at,
            self.removals.due_at(),
            self.marking.due_at().filter(|_| unmarked > 0),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Ends the session; what it asked to be marked has an unknown outcome, and is marked again later.
    ///
    /// `was_recorded` says whether the record that was under way is known to be written. A relay that is deposed forgets
    /// everything afterwards.
    pub(crate) fn leave(mut self, was_recorded: bool, effects: &mut Vec<Effect>) -> Memory {
        if let Some(rows) = self.marking.abandon() {
            self.memory.core.mark_failed(&rows);
        }
        self.memory.core.mark_failed(self.owing.rows());
        // Who was to take over has gone with the session: the next one sees again what has grown.
        self.memory.grown.clear();
        if let (true, Some(asides)) = (was_recorded, self.holds.take_running()) {
            self.note_recorded(&asides);
            self.confirm(effects);
        }
        self.memory
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// What the look-up of a batch in the tables works with.
    pub(crate) fn marks_mut(&mut self) -> &mut Marks {
        &mut self.marks
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain_until.is_some()
    }

    /// Whether a new producer waits, or is being started.
    pub(crate) fn has_successor(&self) -> bool {
        !self.succession.is_settled()
    }

    /// Since when marks fail, and why.
    pub(crate) fn failing(&self) -> Option<&Failing> {
        self.marking.failing()
    }
}
