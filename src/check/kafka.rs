//! Kafka: whether a broker answers, and whether the topics of the rows that stand are there.

use std::collections::BTreeSet;
use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use tokio_postgres::Client;

use super::{Finding, Report, chain};
use crate::config::{Config, ConfigError, resolve_property};
use crate::inspect::Table;

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The newest rows tell the topics; the table is not read through for them.
const ROWS_READ_MAX: usize = 1_000;
const TOPICS_MAX: usize = 50;

/// The topic of a template without columns.
pub(super) fn fixed_topics(config: &Config) -> Vec<String> {
    let topic = &config.route.topic;
    if topic.contains("${") {
        Vec::new()
    } else {
        vec![topic.clone()]
    }
}

/// The topics that the newest rows of the table go to; none where they cannot be read.
pub(super) async fn topics(client: &Client, config: &Config, table: &Table) -> Vec<String> {
    let Some(topic) = topic_expression(&config.route.topic, table) else {
        return Vec::new();
    };
    let order = table.layout.seq.map_or("", |_| "ORDER BY \"seq\" DESC");
    let sql = format!(
        "SELECT DISTINCT {topic} AS topic FROM (SELECT * FROM {} {order} LIMIT {ROWS_READ_MAX}) newest \
         WHERE {topic} IS NOT NULL ORDER BY topic LIMIT {TOPICS_MAX}",
        table.name()
    );
    let rows = client.query(&sql, &[]).await.unwrap_or_default();
    let found = rows.iter().map(|row| row.get::<_, String>(0));
    let topics: BTreeSet<String> = fixed_topics(config).into_iter().chain(found).collect();
    topics.into_iter().collect()
}

/// The template as an SQL expression over the table's columns; a row's own `topic` goes before it.
fn topic_expression(template: &str, table: &Table) -> Option<String> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once("${") {
        let (column, after) = after.split_once('}')?;
        table.layout.column(column)?;
        parts.push(escape_literal(text));
        parts.push(format!("{}::text", escape_identifier(column)));
        rest = after;
    }
    parts.push(escape_literal(rest));
    let template = parts.join(" || ");
    Some(match table.layout.topic {
        Some(_) => format!("coalesce(\"topic\"::text, {template})"),
        None => template,
    })
}

pub(super) async fn look(config: &Config, topics: Vec<String>, report: &mut Report) {
    let brokers = config.kafka.brokers.join(",");
    let client_config = match client_config(config) {
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

fn client_config(config: &Config) -> Result<ClientConfig, ConfigError> {
    let mut client_config = ClientConfig::new();
    for (name, value) in &config.kafka.properties {
        client_config.set(name, resolve_property(name, value)?.reveal());
    }
    client_config
        .set("bootstrap.servers", config.kafka.brokers.join(","))
        .set("allow.auto.create.topics", "false")
        // What only a producer knows is in these properties too, and no reason to warn.
        .set("log_level", "2");
    Ok(client_config)
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
            create_command(config, topic),
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

/// Counts below one stand for the broker's own defaults.
fn create_command(config: &Config, topic: &str) -> String {
    let settings = &config.kafka.topics;
    let mut command = format!(
        "kafka-topics.sh --bootstrap-server {} --create --topic '{}'",
        config.kafka.brokers.join(","),
        topic.replace('\'', "'\\''"),
    );
    if settings.partitions > 0 {
        command.push_str(&format!(" --partitions {}", settings.partitions));
    }
    if settings.replication_factor > 0 {
        command.push_str(&format!(
            " --replication-factor {}",
            settings.replication_factor
        ));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::tests::five_columns;

    #[test]
    fn a_template_becomes_an_expression_over_the_tables_columns() {
        let mut table = five_columns();
        let expression = topic_expression("a'.${aggregatetype}.x", &table);
        assert_eq!(
            expression.as_deref(),
            Some("'a''.' || \"aggregatetype\"::text || '.x'")
        );
        table.layout.topic = Some(3);
        let expression = topic_expression("fixed", &table);
        assert_eq!(
            expression.as_deref(),
            Some("coalesce(\"topic\"::text, 'fixed')")
        );
        assert_eq!(topic_expression("${tenant}", &table), None);
    }
}
