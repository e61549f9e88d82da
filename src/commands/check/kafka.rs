//! Kafka: whether a broker answers, and whether topics are there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError as RdKafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

use super::{Finding, Report, chain};
use crate::config::{Config, TopicsConfig};
use crate::kafka::{
    KafkaError, NOT_CREATED, allow_command, create_command, in_plain_words, look_up_config,
};
use crate::publish::refused_creations;

const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// What librdkafka may have told while it tried.
const EVENTS_MAX: usize = 100;

pub(super) async fn look(config: &Config, topics: Vec<String>, report: &mut Report) {
    let brokers = config.kafka.brokers.join(",");
    for (property, reason) in config.kafka.weaknesses() {
        let detail = format!("`{property}`: {reason}");
        report.push(Finding::warning("Kafka", detail, "remove it from `kafka.properties`, and give `ssl.ca.location` where the authority is your own"));
    }
    let client_config = match look_up_config(&config.kafka) {
        Ok(client_config) => client_config,
        Err(error) => {
            report.push(Finding::missing(
                "Kafka",
                chain(&error),
                "correct `kafka.properties`",
            ));
            return;
        }
    };
    let (asked, settings) = (topics.clone(), config.kafka.topics.clone());
    let answer = tokio::task::spawn_blocking(move || ask(&client_config, &settings, &asked)).await;
    let states = match answer {
        Ok(Ok(states)) => states,
        Ok(Err(error)) => {
            let remedy = "`kafka.brokers` and `kafka.properties` say where and how";
            let detail = format!("no broker of {brokers} answers: {error}");
            report.push(Finding::missing("Kafka", detail, remedy));
            return;
        }
        Err(error) => {
            report.push(Finding::warning(
                "Kafka",
                format!("cannot be looked at: {error}"),
                "",
            ));
            return;
        }
    };
    report.push(Finding::ok("Kafka", format!("{brokers} answers")));
    if topics.is_empty() {
        report.push(untold(config));
    }
    for (topic, state) in topics.iter().zip(states) {
        report.push(judge(config, topic, &state));
    }
}

/// How a topic stands.
enum TopicState {
    Partitions(usize),
    Unknown,
    /// And the brokers would not create it, in these words.
    NotCreated(String),
    Denied,
    Failed(String),
}

/// What last went wrong on the way to a broker.
#[derive(Default)]
struct Complaint(Mutex<Option<String>>);

impl ClientContext for Complaint {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: RdKafkaError, reason: &str) {
        // What made the last broker unreachable says more than that all of them are.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            let mut complaint = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *complaint = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Complaint {}

/// Asks for each topic; one state for each, in their order.
///
/// Errors: why no broker answers.
fn ask(
    client_config: &ClientConfig,
    settings: &TopicsConfig,
    topics: &[String],
) -> Result<Vec<TopicState>, String> {
    let consumer: Result<BaseConsumer<Complaint>, _> =
        client_config.create_with_context(Complaint::default());
    let consumer = consumer.map_err(|error| KafkaError::from(error).to_string())?;
    let answer = ask_all(&consumer, topics).map(|mut states| {
        if settings.create {
            try_creations(&consumer, settings, topics, &mut states);
        }
        states
    });
    answer.map_err(|error| {
        // Each poll serves one event, and logs are events too.
        for _ in 0..EVENTS_MAX {
            consumer.poll(Duration::ZERO);
        }
        let complaint = consumer.context().0.lock();
        let complaint = complaint.unwrap_or_else(PoisonError::into_inner).take();
        in_plain_words(&complaint.unwrap_or_else(|| chain(&error)))
    })
}

fn ask_all(
    consumer: &BaseConsumer<Complaint>,
    topics: &[String],
) -> Result<Vec<TopicState>, RdKafkaError> {
    if topics.is_empty() {
        consumer.fetch_metadata(None, ANSWER_WITHIN)?;
    }
    let states = topics.iter().map(|topic| ask_topic(consumer, topic));
    states.collect()
}

/// Has the brokers say whether they would create what is not there; they create nothing.
fn try_creations(
    consumer: &BaseConsumer<Complaint>,
    settings: &TopicsConfig,
    topics: &[String],
    states: &mut [TopicState],
) {
    let is_missing = |state: &TopicState| matches!(state, TopicState::Unknown);
    let missing = topics.iter().zip(&*states);
    let missing = missing.filter(|(_, state)| is_missing(state));
    let missing: Vec<Arc<str>> = missing.map(|(topic, _)| topic.as_str().into()).collect();
    if missing.is_empty() {
        return;
    }
    let refused = refused_creations(consumer.client(), settings, &missing).unwrap_or_default();
    for (topic, words) in refused {
        let place = topics.iter().position(|known| *known == topic);
        if let Some(state) = place.and_then(|place| states.get_mut(place)) {
            *state = TopicState::NotCreated(words);
        }
    }
}

fn ask_topic(consumer: &BaseConsumer<Complaint>, topic: &str) -> Result<TopicState, RdKafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_WITHIN)?;
    let found = metadata.topics().iter().find(|one| one.name() == topic);
    Ok(
        match found.map(|one| (one.error(), one.partitions().len())) {
            Some((None, partitions)) if partitions > 0 => TopicState::Partitions(partitions),
            Some((Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED), _)) => {
                TopicState::Denied
            }
            None
            | Some((None | Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART), _)) => {
                TopicState::Unknown
            }
            Some((Some(code), _)) => TopicState::Failed(format!("{code:?}")),
        },
    )
}

/// Without a row the template tells no topic.
fn untold(config: &Config) -> Finding {
    let missing = match config.kafka.topics.create {
        true => "the relay creates one that is missing",
        false => {
            "rows for one that is missing wait, and the command that creates it is said: or set kafka.topics.create = true"
        }
    };
    let template = &config.route.topic;
    Finding::ok(
        "topic",
        format!("`{template}`: no row names one yet; {missing}"),
    )
}

fn judge(config: &Config, topic: &str, state: &TopicState) -> Finding {
    let settings = &config.kafka.topics;
    match state {
        TopicState::Partitions(count) => {
            Finding::ok("topic", format!("`{topic}`, {count} partitions"))
        }
        TopicState::Unknown if settings.create => Finding::ok(
            "topic",
            format!("`{topic}` is not there; the relay creates it"),
        ),
        TopicState::NotCreated(words) => Finding::missing(
            "topic",
            format!("`{topic}` is not there, and the brokers do not create it: {words}"),
            NOT_CREATED,
        ),
        TopicState::Unknown => Finding::missing(
            "topic",
            format!("`{topic}` is not there"),
            create_command(&config.kafka, topic),
        ),
        TopicState::Denied => Finding::missing(
            "topic",
            format!("`{topic}` is closed to this principal"),
            allow_command(&config.kafka, topic),
        ),
        TopicState::Failed(code) => Finding::warning(
            "topic",
            format!("`{topic}` cannot be looked at: {code}"),
            "",
        ),
    }
}
