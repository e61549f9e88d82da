//! Kafka: whether a broker answers, and whether topics are there.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;

use super::{Finding, Report, chain};
use crate::config::Config;
use crate::kafka::create_command;
use crate::kafka::look_up_config;

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn look(config: &Config, topics: Vec<String>, report: &mut Report) {
    let brokers = config.kafka.brokers.join(",");
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
    let asked = topics.clone();
    let answer = tokio::task::spawn_blocking(move || ask(&client_config, &asked)).await;
    let states = match answer {
        Ok(Ok(states)) => states,
        Ok(Err(error)) => {
            let remedy = "`kafka.brokers` and `kafka.properties` say where and how";
            let detail = format!("no broker of {brokers} answers: {}", chain(&error));
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
    for (topic, state) in topics.iter().zip(states) {
        report.push(judge(config, topic, &state));
    }
}

/// How a topic stands.
enum TopicState {
    Partitions(usize),
    Unknown,
    Denied,
    Failed(String),
}

/// Asks for each topic; one state for each, in their order.
fn ask(client_config: &ClientConfig, topics: &[String]) -> Result<Vec<TopicState>, KafkaError> {
    let consumer: BaseConsumer = client_config.create()?;
    if topics.is_empty() {
        consumer.fetch_metadata(None, ANSWER_WITHIN)?;
    }
    topics
        .iter()
        .map(|topic| ask_topic(&consumer, topic))
        .collect()
}

fn ask_topic(consumer: &BaseConsumer, topic: &str) -> Result<TopicState, KafkaError> {
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
        TopicState::Unknown => Finding::missing(
            "topic",
            format!("`{topic}` is not there"),
            create_command(&config.kafka, topic),
        ),
        TopicState::Denied => Finding::missing(
            "topic",
            format!("`{topic}` is closed to this principal"),
            format!("grant it WRITE and DESCRIBE on topic `{topic}`"),
        ),
        TopicState::Failed(code) => Finding::warning(
            "topic",
            format!("`{topic}` cannot be looked at: {code}"),
            "",
        ),
    }
}
