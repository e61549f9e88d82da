//! What a relay does between two sessions: it settles what Kafka acknowledges, and drops what is no longer its own.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::machine::{Effect, LEADERLESS_DRAIN_MAX, Memory, SILENCE_UNANSWERED_MAX};
use super::{Phase, Relay, Session};
use crate::observe::status::Timestamp;
use crate::publish::{PublishError, PublisherEvent};
use crate::row::Lsn;
use crate::state::identity::ServerHistory;
use crate::state::lease::LeaseState;

/// How long PostgreSQL may take to hear that we leave, when the grace period is over.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// A server that answers needs no more than this.
const FAREWELL_MIN: Duration = Duration::from_millis(250);

impl Relay {
    /// Starts the producer if none lives.
    pub fn start_producer(&mut self) -> Result<(), PublishError> {
        self.producers.start(&self.config)
    }

    /// Ends the producer within the deadline and settles what it still delivers.
    ///
    /// Rows that it did not deliver are dropped: a source hands them out again.
    pub async fn end_producer(&mut self, deadline: Duration) {
        let Some((delivered, end)) = self.producers.end(deadline).await else {
            return;
        };
        for delivered in &delivered {
            self.memory_mut().acknowledged(delivered);
        }
        self.at_rest(|memory, effects| memory.producer_ended(&end, effects));
    }

    /// Drops everything in flight: another relay publishes from now on.
    pub async fn depose(&mut self) {
        self.end_producer(Duration::ZERO).await;
        self.memory_mut().forget_all();
    }

    /// Rows that Kafka has, or gets, and that a mark is owed for: what a stop between two sessions would send again.
    pub fn owes_marks(&self) -> bool {
        self.memory().owes_marks()
    }

    /// Takes the entries of the copies that were replayed and marked, however their session ended.
    pub fn take_replayed(&mut self) -> Vec<i64> {
        self.memory_mut().replayed.take_marked()
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
            self.memory_mut().read_table_anew();
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
                event = self.producers.next_event() => {
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
        while self.memory().core.is_stuck() {
            self.status.beat();
            tokio::select! {
                () = stop.cancelled() => return,
                changed = lease.changed() => {
                    if changed.is_err() || lease.borrow().epoch() != epoch {
                        return;
                    }
                }
                event = self.producers.next_event() => {
                    if self.take_at_rest(event) {
                        self.memory_mut().give_up_leaderless();
                        self.end_producer(LEADERLESS_DRAIN_MAX).await;
                    }
                }
                () = tokio::time::sleep(Duration::from_secs(1)) => {
                    self.look_at_waits();
                    self.end_outdated_producer().await;
                }
            }
            if self.producers.working().is_none() {
                return;
            }
        }
    }

    /// Takes what the producer tells; `true` when rows wait for a leader for too long.
    fn take_at_rest(&mut self, event: Option<PublisherEvent>) -> bool {
        match event {
            Some(PublisherEvent::Delivered(delivered)) => {
                self.memory_mut().acknowledged(&delivered);
            }
            Some(PublisherEvent::Topics(answers)) => {
                let now = self.clock.now();
                return self.at_rest(|memory, effects| memory.take_topics(&answers, now, effects));
            }
            Some(PublisherEvent::Ended(end)) => {
                self.producers.note_end(&end);
                let error = self.at_rest(|memory, effects| memory.producer_ended(&end, effects));
                warn!(error, "the producer ended");
            }
            None => self.producers.lose(),
        }
        false
    }

    /// Looks at what is in flight, and asks for the topic of a row that has waited for long; about once a second.
    fn look_at_waits(&mut self) {
        let now = self.clock.now();
        self.at_rest(|memory, effects| {
            memory.look_at_waits(now, Timestamp::now());
            memory.ask_if_silent(effects);
        });
        let seen = self.memory().in_sight();
        self.show_broker(seen);
    }

    /// Gives up a producer that waits for a broker, such as with secrets that are no longer the right ones.
    async fn end_outdated_producer(&mut self) {
        if let Some(why) = self.producers.outdated() {
            info!("{why}; the producer starts anew");
            self.end_producer(SILENCE_UNANSWERED_MAX).await;
        }
    }

    /// Lets the memory take something while no session runs, and does what follows from it.
    fn at_rest<T>(&mut self, take: impl FnOnce(&mut Memory, &mut Vec<Effect>) -> T) -> T {
        let mut effects = Vec::new();
        let taken = take(self.memory_mut(), &mut effects);
        for effect in effects {
            // Whatever is not Kafka's has to wait for a session.
            self.tell_kafka(effect);
        }
        taken
    }
}
