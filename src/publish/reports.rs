//! What librdkafka calls back: delivery reports, errors on the way to the brokers, its log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::log_lines::{self, Line};
use super::{Deliveries, Ticket};

/// Events that are served at once.
const EVENTS_MAX: usize = 1_000;

/// How long a refusal for want of replicas is told.
const LACKING_FOR: Duration = Duration::from_secs(5);

/// The state of the way to Kafka, shared by the clients of one session.
#[derive(Clone, Debug)]
pub(super) struct Broker {
    error: watch::Sender<Option<String>>,
    /// When a broker refused records last for want of replicas.
    lacked_replicas_at: Arc<Mutex<Option<Instant>>>,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            error: watch::Sender::new(None),
            lacked_replicas_at: Arc::default(),
        }
    }
}

impl Broker {
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<String>> {
        self.error.subscribe()
    }

    /// A broker refused records, for fewer replicas are in sync than the topic asks for.
    pub(super) fn lacks_replicas(&self) {
        *self.lacked() = Some(Instant::now());
    }

    /// Whether a broker did so just now: librdkafka sends them again each second at least.
    pub(super) fn is_lacking_replicas(&self) -> bool {
        let at = *self.lacked();
        at.is_some_and(|at| at.elapsed() < LACKING_FOR)
    }

    fn lacked(&self) -> MutexGuard<'_, Option<Instant>> {
        // It is stored at once.
        let lacked = self.lacked_replicas_at.lock();
        lacked.unwrap_or_else(PoisonError::into_inner)
    }

    /// A broker answered.
    pub(super) fn answered(&self) {
        self.error.send_if_modified(|error| error.take().is_some());
    }

    /// An attempt to reach a broker failed.
    pub(super) fn failed(&self, code: Option<RDKafkaErrorCode>, text: &str) {
        self.error.send_if_modified(|error| {
            // What made the last broker unreachable says more than that all of them are.
            let says_less = code == Some(RDKafkaErrorCode::AllBrokersDown) && error.is_some();
            let is_known = error.as_deref() == Some(text);
            if says_less || is_known {
                return false;
            }
            debug!(error = text, "kafka is unreachable");
            *error = Some(text.to_owned());
            true
        });
    }
}

/// What the callbacks of one turn brought.
#[derive(Debug, Default)]
pub(super) struct Harvest {
    pub(super) delivered: Deliveries,
    pub(super) failed: Vec<Failure>,
    pub(super) is_fatal: bool,
    /// What the log said of connections, in its order.
    pub(super) lines: Vec<Line>,
    /// Callbacks of any kind.
    pub(super) callbacks: u64,
}

/// A record whose report carries an error.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) topic: Box<str>,
    pub(super) ticket: Ticket,
    pub(super) code: RDKafkaErrorCode,
    /// Of key and value.
    pub(super) bytes: usize,
}

/// The context of a session's clients.
#[derive(Debug)]
pub(super) struct Reports {
    broker: Broker,
    harvest: Mutex<Harvest>,
}

impl Reports {
    pub(super) fn new(broker: Broker) -> Self {
        Self {
            broker,
            harvest: Mutex::default(),
        }
    }

    /// Serves every event that waits; each poll serves one.
    pub(super) fn serve(&self, producer: &BaseProducer<Self>) {
        for _ in 0..EVENTS_MAX {
            let before = self.harvest().callbacks;
            producer.poll(Duration::ZERO);
            if self.harvest().callbacks == before {
                return;
            }
        }
    }

    pub(super) fn harvest(&self) -> MutexGuard<'_, Harvest> {
        // Every change to it is one push or one store.
        self.harvest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        let mut harvest = self.harvest();
        harvest.callbacks += 1;
        if matches!(level, RDKafkaLogLevel::Debug) {
            harvest.lines.extend(log_lines::read(facility, text));
            return;
        }
        drop(harvest);
        // What matters comes as an error or a report too; librdkafka repeats itself while a broker is away, and says what
        // is fatal twice.
        match level {
            _ if facility == "FATAL" => debug!(facility, text, "librdkafka"),
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                warn!(facility, text, "librdkafka");
            }
            _ => debug!(facility, text, "librdkafka"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        let mut harvest = self.harvest();
        harvest.callbacks += 1;
        if code == Some(RDKafkaErrorCode::Fatal) {
            harvest.is_fatal = true;
        } else {
            self.broker.failed(code, reason);
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, report: &DeliveryResult<'_>, opaque: usize) {
        let mut harvest = self.harvest();
        harvest.callbacks += 1;
        let ticket = opaque as Ticket;
        match report {
            Ok(message) => {
                let delivered = &mut harvest.delivered;
                delivered.tickets.push(ticket);
                delivered.bytes += (message.key_len() + message.payload_len()) as u64;
            }
            Err((error, message)) => {
                let code = error
                    .rdkafka_error_code()
                    .unwrap_or(RDKafkaErrorCode::Unknown);
                let bytes = message.key_len() + message.payload_len();
                harvest.failed.push(Failure {
                    topic: message.topic().into(),
                    ticket,
                    code,
                    bytes,
                });
            }
        }
    }
}
