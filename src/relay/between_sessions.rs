//! What a relay does between two sessions: it settles what Kafka acknowledges, and drops what is no longer its own.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::producer::next_event;
use super::sweep::Reread;
use super::{Phase, ReadBefore, Relay, Session};
use crate::publish::{Deliveries, PublisherEvent};
use crate::row::Lsn;
use crate::state::hold::Replayed;
use crate::state::identity::ServerHistory;
use crate::state::lease::LeaseState;

/// How long PostgreSQL may take to hear that we leave, when the grace period is over.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// A server that answers needs no more than this.
const FAREWELL_MIN: Duration = Duration::from_millis(250);

impl Relay {
    /// Drops everything in flight: another relay publishes from now on.
    pub async fn depose(&mut self) {
        self.end_producer(Duration::ZERO).await;
        self.core.forget_all();
        self.read_before = ReadBefore::default();
        self.reread = Reread::default();
        self.replayed = Replayed::default();
    }

    /// Rows that Kafka has, or gets, and that a mark is owed for: what a stop between two sessions would send again.
    pub fn owes_marks(&self) -> bool {
        self.core.sent() + self.core.unmarked() > 0
    }

    /// Takes and counts rows that a broker acknowledged, whether a session is open or not.
    pub(super) fn acknowledged(&mut self, delivered: &Deliveries) {
        self.core.delivered(&delivered.tickets);
        self.delivered_rows += delivered.tickets.len() as u64;
        self.metrics.delivered(delivered);
    }

    /// When a stop that was asked for is to be over.
    pub fn stop_by(&mut self) -> Instant {
        let deadline = Instant::now() + self.config.shutdown.grace;
        *self.stop_by.get_or_insert(deadline)
    }

    /// How long a step of leaving may take: as long as usual, but not beyond the moment that follows the grace period.
    pub fn within_grace(&self, usual: Duration) -> Duration {
        let Some(stop_by) = self.stop_by else {
            return usual;
        };
        let left = (stop_by + FAREWELL_MAX).saturating_duration_since(Instant::now());
        usual.min(left.max(FAREWELL_MIN))
    }

    /// Takes over a session that was opened; drops what is in flight where its numbers are others now.
    ///
    /// A row of another timeline or generation may not be there, and its number be another row's.
    pub async fn enter(&mut self, session: &Session) {
        let generation = session.state.generation;
        let is_same = self.generation.is_none_or(|known| known == generation)
            && self
                .history
                .as_ref()
                .is_none_or(|known| known.is_of(&session.history));
        if !is_same {
            self.depose().await;
        }
        if session.phase == Phase::CatchUp {
            // What an earlier reading of the table did not bring to Kafka may be gone by now: the stream brings it.
            self.read_before = ReadBefore::default();
        }
        self.generation = Some(generation);
        self.saw(session.history.clone());
    }

    /// How far the server's history was seen.
    pub fn history(&self) -> Option<&ServerHistory> {
        self.history.as_ref()
    }

    /// Takes note of a server's history, which another timeline begins anew.
    pub fn saw(&mut self, history: ServerHistory) {
        match &mut self.history {
            Some(known) if known.is_of(&history) => {
                known.flushed = known.flushed.max(history.flushed)
            }
            known => *known = Some(history),
        }
    }

    /// Takes note of a position that the present server had on disk.
    pub fn saw_flushed(&mut self, lsn: Lsn) {
        if let Some(history) = &mut self.history {
            history.flushed = history.flushed.max(lsn);
        }
    }

    /// Settles what Kafka acknowledges during a pause between sessions.
    ///
    /// Cancel-safe: yes.
    pub async fn rest(&mut self, pause: Duration, stop: &CancellationToken) {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(until) => return,
                event = next_event(&mut self.producer) => {
                    self.take_at_rest(event);
                }
            }
        }
    }

    /// Waits until the broker has answered for half of the window, or the lease is somebody else's.
    ///
    /// What was delivered is not marked meanwhile, so it counts as room: the next session marks it first.
    ///
    /// Cancel-safe: yes.
    pub async fn await_room(
        &mut self,
        lease: &mut watch::Receiver<LeaseState>,
        stop: &CancellationToken,
    ) {
        let epoch = lease.borrow().epoch();
        while self.core.is_stuck() {
            self.status.beat();
            tokio::select! {
                () = stop.cancelled() => return,
                changed = lease.changed() => {
                    if changed.is_err() || lease.borrow().epoch() != epoch {
                        return;
                    }
                }
                event = next_event(&mut self.producer) => {
                    if self.take_at_rest(event) {
                        self.give_up_leaderless().await;
                    }
                }
                () = tokio::time::sleep(Duration::from_secs(1)) => {
                    self.look_at_waits();
                    self.ask_if_silent();
                    self.end_outdated_producer().await;
                }
            }
            if self.producer.is_none() {
                return;
            }
        }
    }

    /// Takes what the producer tells; `true` when rows wait for a leader for too long.
    fn take_at_rest(&mut self, event: Option<PublisherEvent>) -> bool {
        match event {
            Some(PublisherEvent::Delivered(delivered)) => self.acknowledged(&delivered),
            Some(PublisherEvent::Topics(answers)) => {
                return self.take_topics_at_rest(&answers);
            }
            Some(PublisherEvent::Ended(end)) => {
                let error = self.producer_ended(&end);
                warn!(error, "the producer ended");
            }
            None => self.producer = None,
        }
        false
    }
}
