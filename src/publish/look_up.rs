//! Asking whether topics exist and may be seen, on a thread and a client of their own.
//!
//! Never through the producer's client: its metadata calls would make it switch partition counts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::metadata::MetadataPartition;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, info, warn};

use super::reports::{Broker, Reports};
use super::{Place, PublisherEvent, TopicState};
use crate::config::KafkaConfig;
use crate::kafka::{self, KafkaError};

/// How long one question waits for a broker.
pub(super) const ASK_MAX: Duration = Duration::from_secs(3);
/// Pause before a question that no broker answered is asked again.
const PAUSE: Duration = Duration::from_millis(300);
/// The client is closed when nobody has asked for this long.
const IDLE: Duration = Duration::from_secs(10);

/// Topics that were asked for and not yet answered.
pub(super) struct LookUps {
    kafka: KafkaConfig,
    broker: Broker,
    questions: Receiver<Arc<str>>,
    events: UnboundedSender<PublisherEvent>,
    pending: VecDeque<Arc<str>>,
    client: Option<BaseProducer<Reports>>,
}

/// Nobody wants answers any more.
struct Gone;

impl LookUps {
    pub(super) fn new(
        kafka: KafkaConfig,
        broker: Broker,
        questions: Receiver<Arc<str>>,
        events: UnboundedSender<PublisherEvent>,
    ) -> Self {
        Self {
            kafka,
            broker,
            questions,
            events,
            pending: VecDeque::new(),
            client: None,
        }
    }

    /// Answers until the publisher is dropped.
    pub(super) fn run(mut self) {
        while self.take_question().is_ok() {
            let Some(topic) = self.pending.pop_front() else {
                continue;
            };
            match self.ask(&topic) {
                Some(state) => {
                    self.broker.answered();
                    // Nobody listens when the relay is gone; the next question finds out.
                    let _ = self.events.send(PublisherEvent::Topic { topic, state });
                }
                None => {
                    self.pending.push_back(topic);
                    if self.wait_for_question(PAUSE).is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn take_question(&mut self) -> Result<(), Gone> {
        let pause = match (&self.client, self.pending.is_empty()) {
            (_, false) => Duration::ZERO,
            (Some(_), true) => IDLE,
            // A plain wait: nothing is open that would have to be closed.
            (None, true) => Duration::from_secs(3600),
        };
        self.wait_for_question(pause)?;
        if self.pending.is_empty() {
            self.client = None;
        }
        Ok(())
    }

    fn wait_for_question(&mut self, pause: Duration) -> Result<(), Gone> {
        let mut question = self.questions.recv_timeout(pause);
        loop {
            match question {
                Ok(topic) if self.pending.contains(&topic) => {}
                Ok(topic) => self.pending.push_back(topic),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Gone),
            }
            question = self.questions.recv_timeout(Duration::ZERO);
        }
    }

    /// `None` when no broker could say.
    fn ask(&mut self, name: &Arc<str>) -> Option<TopicState> {
        let place = Place::parse(name);
        let topic = place.as_ref().map_or(name, |place| &place.topic);
        let client = match self.open() {
            Ok(client) => client,
            Err(error) => {
                self.broker.failed(None, &error.to_string());
                return None;
            }
        };
        let answer = client.client().fetch_metadata(Some(topic), ASK_MAX);
        // Serves errors and logs, which would pile up else.
        for _ in 0..100 {
            client.poll(Duration::ZERO);
        }
        let metadata = match answer {
            Ok(metadata) => metadata,
            Err(error) => {
                debug!(%error, "no broker answered");
                let text = error.rdkafka_error_code().map(|code| code.to_string());
                // The connection's own error, where there is one, says more.
                let text = text.as_deref().unwrap_or("no broker answered");
                self.broker
                    .failed(Some(RDKafkaErrorCode::AllBrokersDown), text);
                // It may know no broker any more, as `bootstrap.rs` tells: each question has a new one until a broker
                // answers.
                self.client = None;
                return None;
            }
        };
        let found = metadata
            .topics()
            .iter()
            .find(|found| found.name() == &**topic)?;
        match found.error() {
            None if found.partitions().is_empty() => None,
            None => Some(self.state_of(topic, place.as_ref(), found.partitions())),
            Some(
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION,
            ) if self.kafka.topics.create => self.create(topic),
            Some(
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION,
            ) => Some(TopicState::Unknown),
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED) => {
                Some(TopicState::Denied)
            }
            Some(_) => None,
        }
    }

    /// What a topic's partitions say of it, or of one of them.
    fn state_of(
        &self,
        topic: &Arc<str>,
        place: Option<&Place>,
        partitions: &[MetadataPartition],
    ) -> TopicState {
        let available = TopicState::Available {
            partitions: partitions.len(),
        };
        let count = u32::try_from(partitions.len()).unwrap_or(u32::MAX);
        let leaderless = partitions.iter().filter(|found| found.leader() < 0);
        let mut leaderless = leaderless.filter_map(|found| u32::try_from(found.id()).ok());
        if let Some(place) = place {
            return match leaderless.any(|partition| partition == place.partition) {
                true => TopicState::Leaderless,
                false => available,
            };
        }
        for partition in leaderless {
            let topic = Place::new(topic, partition, count).name().clone();
            let state = TopicState::Leaderless;
            let _ = self.events.send(PublisherEvent::Topic { topic, state });
        }
        available
    }

    fn open(&mut self) -> Result<&BaseProducer<Reports>, KafkaError> {
        if self.client.is_none() {
            let config = kafka::look_up_config(&self.kafka)?;
            let context = Reports::new(self.broker.clone());
            self.client = Some(config.create_with_context(context)?);
        }
        Ok(self.client.as_ref().expect("it was opened above"))
    }

    /// Creates a topic; `None` means ask again, also after success: metadata follows a moment later.
    fn create(&self, topic: &str) -> Option<TopicState> {
        match self.try_create(topic) {
            Ok(()) => {
                info!(topic, "topic created");
                None
            }
            Err(CreateError::Refused(RDKafkaErrorCode::TopicAlreadyExists)) => None,
            Err(CreateError::Refused(code)) => {
                warn!(topic, error = %code, "cannot create the topic");
                let is_denied = matches!(
                    code,
                    RDKafkaErrorCode::TopicAuthorizationFailed
                        | RDKafkaErrorCode::ClusterAuthorizationFailed
                );
                Some(if is_denied {
                    TopicState::Denied
                } else {
                    TopicState::Unknown
                })
            }
            Err(CreateError::Unanswered(error)) => {
                debug!(
                    topic,
                    error, "nobody answered the request to create the topic"
                );
                None
            }
        }
    }

    fn try_create(&self, topic: &str) -> Result<(), CreateError> {
        let unanswered = |error: &dyn std::fmt::Display| CreateError::Unanswered(error.to_string());
        let config = kafka::look_up_config(&self.kafka).map_err(|error| unanswered(&error))?;
        let admin: AdminClient<DefaultClientContext> = config
            .create()
            .map_err(|error| unanswered(&KafkaError::from(error)))?;
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.map_err(|error| unanswered(&error))?;
        let replication = TopicReplication::Fixed(self.kafka.topics.replication_factor);
        let new = NewTopic::new(topic, self.kafka.topics.partitions, replication);
        let options = AdminOptions::new().request_timeout(Some(ASK_MAX));
        let results = runtime.block_on(admin.create_topics([&new], &options));
        match results.map_err(|error| unanswered(&error))?.pop() {
            Some(Err((_, code))) => Err(CreateError::Refused(code)),
            _ => Ok(()),
        }
    }
}

enum CreateError {
    Refused(RDKafkaErrorCode),
    Unanswered(String),
}
