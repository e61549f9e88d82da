//! A second connection to a broker that cuts the first: whether it stands, and is answered meanwhile.
//!
//! Asks for a topic, ten times a second, on a thread and a client of its own, as long as somebody wants to know.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, Producer};
use tracing::debug;

use super::Cutting;
use super::cut_off::Stand;
use super::log_lines::Event;
use super::reports::{Broker, Reports};
use crate::config::KafkaConfig;
use crate::kafka::native::{Inquiry, Reply, answering_broker};
use crate::kafka::{self, KafkaError};

/// From one question to the next.
const PACE: Duration = Duration::from_millis(100);
/// A broker that takes longer is not well.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// How long the first broker may take to be found.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// One such connection, which ends when it is dropped.
pub(super) struct Witness {
    cutting: Cutting,
    stand: Arc<Mutex<Option<Stand>>>,
    is_wanted: Arc<AtomicBool>,
}

/// The thread's part of it.
struct Asking {
    kafka: KafkaConfig,
    cutting: Cutting,
    stand: Arc<Mutex<Option<Stand>>>,
    is_wanted: Arc<AtomicBool>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.is_wanted.store(false, Ordering::Relaxed);
    }
}

impl Witness {
    /// Opens a connection to this broker, and asks it for this topic again and again.
    pub(super) fn call(kafka: &KafkaConfig, cutting: Cutting) -> Self {
        let witness = Self {
            cutting: cutting.clone(),
            stand: Arc::default(),
            is_wanted: Arc::new(AtomicBool::new(true)),
        };
        let asking = Asking {
            kafka: kafka.clone(),
            cutting,
            stand: witness.stand.clone(),
            is_wanted: witness.is_wanted.clone(),
        };
        // Without the thread nothing is ever proved.
        let _ = super::spawn("witness", move || asking.run());
        witness
    }

    /// Whom it asks.
    pub(super) fn cutting(&self) -> &Cutting {
        &self.cutting
    }

    /// Since when the connection stands, and when it was last answered.
    pub(super) fn stand(&self) -> Option<Stand> {
        *self.stand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asking {
    fn run(self) {
        while self.is_wanted() {
            match self.connect() {
                Ok(client) => self.ask(&client),
                Err(error) => debug!(%error, "no witness can be had"),
            }
            std::thread::sleep(PACE);
        }
    }

    fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    fn connect(&self) -> Result<BaseProducer<Reports>, KafkaError> {
        let config = kafka::witness_config(&self.kafka)?;
        Ok(config.create_with_context(Reports::new(Broker::default()))?)
    }

    /// Asks until nobody wants to know, or no broker is found.
    fn ask(&self, client: &BaseProducer<Reports>) {
        if answering_broker(client.client(), CONNECT_MAX).is_err() {
            return;
        }
        let broker = self.cutting.broker;
        let topics = [self.cutting.topic.clone()];
        while self.is_wanted() {
            let inquiry = Inquiry::describe(client.client(), broker, &topics, ANSWER_MAX);
            let reply = inquiry.and_then(|inquiry| inquiry.wait(2 * ANSWER_MAX));
            let is_answered = matches!(reply, Some(Reply::Found(_)));
            // A connection that broke was told of before the answer of the next one.
            let has_broken = self.has_broken(client);
            self.note(is_answered, has_broken, Instant::now());
            std::thread::sleep(PACE);
        }
    }

    fn note(&self, is_answered: bool, has_broken: bool, now: Instant) {
        let mut stand = self.stand.lock().unwrap_or_else(PoisonError::into_inner);
        let since = stand
            .filter(|_| !has_broken)
            .map_or(now, |stand| stand.since);
        let until = now;
        *stand = is_answered.then_some(Stand { since, until });
    }

    fn has_broken(&self, client: &BaseProducer<Reports>) -> bool {
        client.context().serve(client);
        let lines = std::mem::take(&mut client.context().harvest().lines);
        let of_connection = |event| matches!(event, Event::Closed | Event::Failed);
        let mut lines = lines.into_iter();
        lines.any(|line| line.broker == self.cutting.broker && of_connection(line.event))
    }
}
