//! The producer session: the only module that imports rdkafka's producer.
//!
//! Owns one producer and the thread that drives it. Records go in by `Publisher::publish`, reports
//! come out as events. A session never repairs itself: the first failed report ends it, and the
//! supervisor starts the next one.

mod clocks;
mod cut_off;
mod fault;
mod first_ack_gate;
mod lanes;
mod log_lines;
mod metadata;
mod reports;
mod session;
#[cfg(test)]
mod tests;
mod trials;
mod witness;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{oneshot, watch};

use crate::config::{KafkaConfig, LimitsConfig};
use crate::core::{Cutting, Fault, SessionEnd, SmallBatches, Ticket, TopicPartition, TopicState};
use crate::encode::Record;
use crate::kafka::{ClientFiles, KafkaError};
use clocks::Clocks;
pub(crate) use metadata::refused_creations;
use metadata::{LookUps, Question};
use reports::Broker;
use session::{Command, ProducerThread, Ties};
use trials::Trials;

/// A record and the row it stands for.
#[derive(Debug)]
pub struct Outgoing {
    pub ticket: Ticket,
    pub record: Record,
    /// Where the producer puts it; `None` where nobody can say or no order is kept.
    pub partition: Option<u32>,
}

/// Rows that a broker acknowledged.
#[derive(Debug, Default)]
pub struct Deliveries {
    /// In the order in which the reports came.
    pub tickets: Vec<Ticket>,
    /// Of their keys and values.
    pub bytes: u64,
}

/// What the producer thread tells the relay.
#[derive(Debug)]
pub enum PublisherEvent {
    Delivered(Deliveries),
    /// Answers to `Publisher::look_up`; before the answer for a topic, one for each partition without a leader.
    Topics(Vec<(Arc<str>, TopicState)>),
    /// A report failed, or the producer died: nothing more is sent, everything was purged and
    /// harvested; what was neither delivered nor listed here is to be sent again.
    Ended(SessionEnd),
}

/// What a session begins with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// What the session before said of a broker.
    pub cutting: Option<Cutting>,
    /// Topics that take no larger batches.
    pub small_batches: SmallBatches,
}

/// The producer session can't begin.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("cannot configure the producer")]
    Config(#[from] KafkaError),
    #[error("cannot start a thread of the producer")]
    Thread(#[source] std::io::Error),
}

/// One producer session.
///
/// Dropping it purges what is in flight without waiting for reports; `end` drains it first.
#[derive(Debug)]
pub struct Publisher {
    commands: mpsc::Sender<Command>,
    look_ups: mpsc::Sender<Question>,
    broker: Broker,
    files: ClientFiles,
    clocks: Clocks,
}

impl PublishError {
    /// Another content of a file may mend it.
    pub(crate) fn is_of_files(&self) -> bool {
        matches!(self, Self::Config(error) if error.is_of_files())
    }
}

impl Publisher {
    /// Starts a session without waiting for Kafka, which may be absent.
    ///
    /// Secrets, keys and certificates are read from their files now.
    pub fn start(
        kafka: &KafkaConfig,
        limits: &LimitsConfig,
    ) -> Result<(Self, UnboundedReceiver<PublisherEvent>), PublishError> {
        Self::start_knowing(kafka, limits, Known::default())
    }

    /// `start` with what earlier sessions found out.
    pub(crate) fn start_knowing(
        kafka: &KafkaConfig,
        limits: &LimitsConfig,
        known: Known,
    ) -> Result<(Self, UnboundedReceiver<PublisherEvent>), PublishError> {
        let files = ClientFiles::of(kafka);
        let (events, receiver) = unbounded_channel();
        let (commands, command_receiver) = mpsc::channel();
        let (look_ups, look_up_receiver) = mpsc::channel();
        let broker = Broker::default();
        let config = crate::kafka::producer_config(kafka, limits)?;
        let ties = Ties {
            broker: broker.clone(),
            commands: command_receiver,
            events: events.clone(),
        };
        let trials = Trials::new(kafka.clone(), known.cutting);
        let session = ProducerThread::new(&config, known.small_batches, ties, trials)?;
        let asking = LookUps::new(kafka.clone(), broker.clone(), look_up_receiver, events);
        spawn("publish", move || session.run())?;
        spawn("look-up", move || asking.run())?;
        let publisher = Self {
            commands,
            look_ups,
            broker,
            files,
            clocks: Clocks::now(),
        };
        Ok((publisher, receiver))
    }

    /// Hands records over for sending, in this order; never blocks, the core's window bounds it.
    ///
    /// After the session ended it does nothing.
    pub fn publish(&self, records: Vec<Outgoing>) {
        // Nobody takes commands any more once the session has ended.
        let _ = self.commands.send(Command::Publish(records));
    }

    /// Asks whether topics can be written; `PublisherEvent::Topics` answers as soon as a broker has, many at once.
    ///
    /// WRITE is not asked for: only the C binding can. A topic that may be described but not written
    /// is `Available` here, and its first record ends the session with `Fault::Topic`.
    pub fn look_up(&self, topics: Vec<Arc<str>>) {
        self.ask(Question::Usual(topics));
    }

    /// `look_up` before all other questions.
    pub(crate) fn look_up_urgently(&self, topics: Vec<Arc<str>>) {
        self.ask(Question::Urgent(topics));
    }

    /// `look_up` of topics that no row waits for: what is missing is not created.
    pub(crate) fn watch(&self, topics: Vec<Arc<str>>) {
        self.ask(Question::Watched(topics));
    }

    fn ask(&self, question: Question) {
        // The thread lives as long as this sender, unless it panicked.
        let _ = self.look_ups.send(question);
    }

    /// What last went wrong on the way to Kafka, `None` since a broker answered again.
    pub(crate) fn broker_error(&self) -> watch::Receiver<Option<String>> {
        self.broker.subscribe()
    }

    /// Whether a broker refuses records now, for fewer replicas are in sync than their topic asks for.
    pub(crate) fn lacks_replicas(&self) -> bool {
        self.broker.is_lacking_replicas()
    }

    /// Lets the producer ask for a topic's leaders, and for its brokers where it knows none any more; nothing waits for
    /// the answer.
    ///
    /// It takes up new partitions at once, so this is for a topic that was seen to have as many as before.
    pub fn refresh(&self, topic: Arc<str>) {
        // Nobody takes commands any more once the session has ended.
        let _ = self.commands.send(Command::Refresh(topic));
    }

    /// Why a new session would do better than this one.
    pub(crate) fn outdated(&self) -> Option<&'static str> {
        if self.files.have_changed() {
            return Some("a file with secrets of Kafka has changed");
        }
        let is_late = self.clocks.were_set_back();
        is_late.then_some("this machine's clock was set back, and librdkafka waits by it")
    }

    /// Keeps this session although its files or the clock have changed, until they change again.
    pub(crate) fn keep(&mut self, files: ClientFiles) {
        (self.files, self.clocks) = (files, Clocks::now());
    }

    /// Sends what was handed over, waits for its reports until `deadline` has passed, purges the rest.
    ///
    /// Every report was sent as an event before this returns; no `Ended` follows it. The producer's
    /// threads may outlive it for a moment.
    /// Cancel-safe: yes, the session ends all the same.
    pub(crate) async fn end(self, deadline: Duration) -> SessionEnd {
        let (reply, end) = oneshot::channel();
        let deadline = Instant::now() + deadline;
        let _ = self.commands.send(Command::End { deadline, reply });
        end.await.unwrap_or_else(|_| SessionEnd {
            failed: Vec::new(),
            reason: "the session had ended".into(),
            batch_bytes_max: None,
            small_batches: SmallBatches::new(),
            cutting: None,
        })
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), PublishError> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(run).map(drop).map_err(PublishError::Thread)
}
