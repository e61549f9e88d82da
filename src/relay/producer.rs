//! The relay's producer: its start and its end, and how a new one takes over from an outdated one, which read old
//! secrets for example, without a row twice.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{End, Relay, Run};
use crate::config::{KafkaConfig, LimitsConfig};
use crate::core::SessionEnd;
use crate::kafka::ClientFiles;
use crate::publish::{Known, PublishError, Publisher, PublisherEvent};
use crate::text::chain;

/// How long an outdated producer may be silent before what it has in flight is given up: an acknowledgement
/// that takes longer than `socket.timeout.ms`, 10 s, can't arrive at all.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// The same while no broker answers it: most likely they refuse the old secrets.
const SILENCE_UNANSWERED_MAX: Duration = Duration::from_secs(5);

/// How long rows of other partitions may take to be acknowledged once those of a lost one are given up.
const LEADERLESS_DRAIN_MAX: Duration = Duration::from_secs(1);

/// A producer and what it tells.
pub(super) struct Producer {
    pub(super) publisher: Publisher,
    pub(super) events: UnboundedReceiver<PublisherEvent>,
}

impl Producer {
    fn start(
        kafka: &KafkaConfig,
        limits: &LimitsConfig,
        known: Known,
    ) -> Result<Self, PublishError> {
        let (publisher, events) = Publisher::start_knowing(kafka, limits, known)?;
        Ok(Self { publisher, events })
    }
}

/// A producer that takes over.
pub(super) struct Successor {
    producer: Producer,
    why: &'static str,
    /// When it was started, or the one before it delivered last.
    waits_since: Instant,
}

impl Run<'_> {
    /// Starts a new producer when the old one is outdated, such as by a file with secrets that has changed.
    ///
    /// The old one stays when none can be started: the file may be half written.
    pub(super) fn renew_producer(&mut self) {
        let Some(why) = self.relay.outdated().filter(|_| self.successor.is_none()) else {
            return;
        };
        let files = ClientFiles::of(&self.relay.kafka);
        self.start_successor(why);
        if let (Some(producer), None) = (&mut self.relay.producer, &self.successor) {
            producer.publisher.keep(files);
        }
    }

    /// Starts a producer that takes over when nothing is in flight; nothing new is sent until then.
    pub(super) fn start_successor(&mut self, why: &'static str) {
        if self.successor.is_some() || self.drain_until.is_some() {
            return;
        }
        let known = Known {
            cutting: None,
            small_batches: self.relay.small_batches.clone(),
        };
        match Producer::start(&self.relay.kafka, &self.relay.config.limits, known) {
            Ok(producer) => {
                let rows = self.relay.core.sent();
                info!(
                    rows,
                    "{why}; a new producer takes over when nothing is in flight"
                );
                let waits_since = Instant::now();
                self.successor = Some(Successor {
                    producer,
                    why,
                    waits_since,
                });
            }
            Err(failure) => {
                let error = chain(&failure);
                warn!(
                    error,
                    "{why} and no new producer starts; the old one goes on"
                );
                self.relay.status.failed(error);
            }
        }
    }

    /// The old producer is not silent.
    pub(super) fn delay_successor(&mut self) {
        if let Some(successor) = &mut self.successor {
            successor.waits_since = Instant::now();
        }
    }

    /// Lets the new producer take over once nothing is in flight.
    ///
    /// What the old one can't finish is given up, and the session ends: the source hands it out again.
    pub(super) async fn succeed(&mut self) -> Option<End> {
        if std::mem::take(&mut self.has_lost_leader) {
            self.relay.give_up_leaderless().await;
            let reason = "a partition has lost its leader, and its rows stand before others";
            return Some(End::Producer(reason.to_owned()));
        }
        let successor = self.successor.as_ref()?;
        let producer = self.relay.producer.as_ref()?;
        if self.relay.core.sent() > 0 {
            let is_unanswered = producer.publisher.broker_error().borrow().is_some();
            let limit = match is_unanswered {
                true => SILENCE_UNANSWERED_MAX,
                false => SILENCE_MAX,
            };
            if successor.waits_since.elapsed() < limit {
                return None;
            }
            let why = successor.why;
            self.relay.end_producer(Duration::ZERO).await;
            let reason = format!("{why}, and the old producer did not finish the rows in flight");
            return Some(End::Producer(reason));
        }
        let successor = self.successor.take()?;
        self.relay.producer = Some(successor.producer);
        self.relay.core.ask_again();
        self.ask_questions();
        info!("the new producer has taken over");
        None
    }
}

impl Relay {
    /// Starts the producer if none lives.
    pub fn start_producer(&mut self) -> Result<(), PublishError> {
        if self.producer.is_none() {
            let limits = &self.config.limits;
            let known = Known {
                cutting: self.cutting.take(),
                small_batches: self.small_batches.clone(),
            };
            self.producer = Some(Producer::start(&self.kafka, limits, known)?);
        }
        Ok(())
    }

    /// Ends the producer within the deadline and settles what it still delivers.
    ///
    /// Rows that it did not deliver are dropped: a source hands them out again.
    pub async fn end_producer(&mut self, deadline: Duration) {
        let Some(mut producer) = self.producer.take() else {
            return;
        };
        let end = producer.publisher.end(deadline).await;
        while let Ok(event) = producer.events.try_recv() {
            if let PublisherEvent::Delivered(delivered) = event {
                self.acknowledged(&delivered);
            }
        }
        self.producer_ended(&end);
    }

    /// Gives up the rows in flight of partitions without a leader; those of others have a moment.
    pub(super) async fn give_up_leaderless(&mut self) {
        // Held from now on, they are given up once.
        self.leaderless_since = None;
        self.end_producer(LEADERLESS_DRAIN_MAX).await;
    }

    /// Draws the conclusions from a producer's end, and gives its reason.
    pub(super) fn producer_ended(&mut self, end: &SessionEnd) -> String {
        self.producer = None;
        let held: HashSet<_> = self.held_names().collect();
        self.core.producer_ended(end);
        for topic in self.held_names().filter(|topic| !held.contains(topic)) {
            self.announce_hold(&topic);
        }
        self.cutting.clone_from(&end.cutting);
        let small = end.small_batches.iter();
        let small = small.map(|(topic, bytes)| (topic.clone(), *bytes));
        self.small_batches.extend(small);
        if let Some(bytes) = end.batch_bytes_max {
            let property = "batch.size".to_owned();
            self.kafka.properties.insert(property, bytes.to_string());
        }
        match self.core.stubborn() {
            Some(id) => format!(
                "{}; event {id} draws it again and again, also when sent alone",
                end.reason
            ),
            None => end.reason.clone(),
        }
    }

    fn held_names(&self) -> impl Iterator<Item = Arc<str>> {
        self.core.held().topics().map(|(topic, _)| topic.clone())
    }

    /// Gives up a producer that waits for a broker, such as with secrets that are no longer the right ones.
    pub(super) async fn end_outdated_producer(&mut self) {
        if let Some(why) = self.outdated() {
            info!("{why}; the producer starts anew");
            self.end_producer(SILENCE_UNANSWERED_MAX).await;
        }
    }

    fn outdated(&self) -> Option<&'static str> {
        self.producer.as_ref()?.publisher.outdated()
    }
}

/// Waits for what the producer tells; for ever while there is none.
///
/// Cancel-safe: yes.
pub(super) async fn next_event(producer: &mut Option<Producer>) -> Option<PublisherEvent> {
    match producer {
        Some(producer) => producer.events.recv().await,
        None => std::future::pending().await,
    }
}
