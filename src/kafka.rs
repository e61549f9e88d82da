//! How the relay's clients connect to Kafka: librdkafka's properties, ours first, the user's over them.
//!
//! Owns the values that the guarantees stand on. Never prints the value of a property.

mod files;
pub(crate) mod native;
mod stranger;

pub(crate) use files::ClientFiles;
pub(crate) use stranger::in_plain_words;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::types::RDKafkaConfRes;

use crate::config::{ConfigError, KafkaConfig, LimitsConfig, TopicsConfig, resolve_property};

/// Bytes of the largest record that the producer takes, so that broker and topic decide; `batch.size`
/// keeps requests small all the same.
const MESSAGE_BYTES_MAX: usize = 10_485_760;

/// What the guarantees and the outages that were measured ask for.
const PRODUCER: [(&str, &str); 14] = [
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("enable.gapless.guarantee", "true"),
    // Retries go on for ever: an expired record would leave a hole.
    ("message.timeout.ms", "0"),
    // Its maximum: records of a topic that metadata loses for a moment wait in order.
    ("topic.metadata.propagation.max.ms", "3600000"),
    // With the default 60 s one frozen broker stops its partitions for as long as it is frozen.
    ("socket.timeout.ms", "10000"),
    ("request.timeout.ms", "5000"),
    // The partition that a Java producer chooses.
    ("partitioner", "murmur2_random"),
    // Rows of a backlog come in bursts of thousands and fill requests by themselves; a row that comes alone does not wait.
    ("linger.ms", "0.5"),
    ("batch.size", "1000000"),
    ("batch.num.messages", "10000"),
    // A refresh takes up new partitions at once, amid what is in flight: the relay looks for them itself, every 30 s.
    // Leaders that move are found without it.
    ("topic.metadata.refresh.interval.ms", "300000"),
    ("statistics.interval.ms", "0"),
    CONNECTIONS_LOGGED,
];

/// The log tells of every connection that changes; `publish::log_lines` reads it.
const CONNECTIONS_LOGGED: (&str, &str) = ("debug", "broker");

/// What every client has.
const CONNECTION: [(&str, &str); 7] = [
    ("client.id", "outboxd"),
    ("allow.auto.create.topics", "false"),
    // Clouds forget a connection that is silent for so long, and tell nobody: Azure for 4 minutes, AWS for 350 s. The first
    // row after that would wait for `socket.timeout.ms`.
    ("connections.max.idle.ms", "180000"),
    // By the machine's settings, of which the usual ones begin after two hours: it ends dead connections, and keeps none.
    ("socket.keepalive.enable", "true"),
    // The default 10 s would be added to every outage of a broker.
    ("reconnect.backoff.max.ms", "2000"),
    ("log.connection.close", "false"),
    ("enable.metrics.push", "false"),
];

/// Second names of properties that are set here; librdkafka would take the two in any order.
const ALIASES: [(&str, &str); 5] = [
    ("queue.buffering.max.ms", "linger.ms"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("request.required.acks", "acks"),
    ("metadata.broker.list", "bootstrap.servers"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
];

/// Properties of a producer that a client for look-ups must not have.
const PRODUCER_ONLY: [&str; 3] = ["enable.idempotence", "enable.gapless.guarantee", "acks"];

/// A client of Kafka can't be configured.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    #[error("cannot read the value of `kafka.properties.\"{property}\"`")]
    Property {
        property: String,
        #[source]
        source: Box<ConfigError>,
    },
    #[error("cannot set `kafka.properties.\"{property}\"`: librdkafka does not know it")]
    UnknownProperty { property: String },
    #[error("cannot set `kafka.properties.\"{property}\"`: librdkafka refuses its value")]
    InvalidValue { property: String },
    #[error("cannot create the Kafka client: {reason}")]
    Create { reason: String },
}

impl KafkaError {
    /// Another content of a file may mend it; else only another configuration does.
    pub(crate) fn is_of_files(&self) -> bool {
        match self {
            Self::Property { .. } | Self::Create { .. } => true,
            Self::UnknownProperty { .. } | Self::InvalidValue { .. } => false,
        }
    }
}

impl From<rdkafka::error::KafkaError> for KafkaError {
    /// Keeps the property's name and drops its value, which may be a secret.
    fn from(error: rdkafka::error::KafkaError) -> Self {
        use rdkafka::error::KafkaError as Source;
        match error {
            Source::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, property, _) => {
                Self::UnknownProperty { property }
            }
            Source::ClientConfig(_, _, property, _) => Self::InvalidValue { property },
            Source::ClientCreation(reason) => Self::Create { reason },
            other => Self::Create {
                reason: other.to_string(),
            },
        }
    }
}

/// Properties of the producer: the relay's own, the user's over them.
///
/// Reads the files of `${file:…}` values, so that a rotated secret counts from the next session on.
pub fn producer_config(
    kafka: &KafkaConfig,
    limits: &LimitsConfig,
) -> Result<ClientConfig, KafkaError> {
    let record_bytes = record_bytes_max(kafka);
    // Twice the window, so that the window and never librdkafka's queue is what is full.
    let rows = limits
        .in_flight_rows_max
        .saturating_mul(2)
        .clamp(1_000, i32::MAX as usize);
    let bytes = limits
        .in_flight_bytes_max
        .max(record_bytes)
        .saturating_mul(2);
    let kilobytes = (bytes / 1024 + 1).min(i32::MAX as usize);
    let mut config = connection_config(kafka);
    for (property, value) in PRODUCER {
        config.set(property, value);
    }
    config
        .set("message.max.bytes", record_bytes.to_string())
        .set("queue.buffering.max.messages", rows.to_string())
        .set("queue.buffering.max.kbytes", kilobytes.to_string());
    set_properties(&mut config, kafka)?;
    log_connections(&mut config);
    Ok(config)
}

/// Properties of a client that only asks, and tells what becomes of its connections.
pub(crate) fn witness_config(kafka: &KafkaConfig) -> Result<ClientConfig, KafkaError> {
    let mut config = look_up_config(kafka)?;
    log_connections(&mut config);
    Ok(config)
}

/// Properties of a client that only asks for metadata and creates topics.
pub(crate) fn look_up_config(kafka: &KafkaConfig) -> Result<ClientConfig, KafkaError> {
    let mut config = connection_config(kafka);
    config.set("socket.timeout.ms", "10000");
    set_properties(&mut config, kafka)?;
    for property in PRODUCER_ONLY {
        config.remove(property);
    }
    Ok(config)
}

/// Bytes of the largest record that the producer takes.
pub(crate) fn record_bytes_max(kafka: &KafkaConfig) -> usize {
    let own = kafka.properties.get("message.max.bytes");
    own.and_then(|text| text.parse().ok())
        .unwrap_or(MESSAGE_BYTES_MAX)
}

/// The command that creates a topic, for a person to type; the broker's own counts where none are set.
pub(crate) fn create_command(kafka: &KafkaConfig, topic: &str) -> String {
    let mut command = format!(
        "kafka-topics.sh --bootstrap-server {} --create --topic '{}'",
        kafka.brokers.join(","),
        topic.replace('\'', "'\\''"),
    );
    let TopicsConfig {
        partitions,
        replication_factor,
        ..
    } = kafka.topics;
    for (option, count) in [
        ("partitions", partitions),
        ("replication-factor", replication_factor),
    ] {
        if count > 0 {
            command.push_str(&format!(" --{option} {count}"));
        }
    }
    command
}

/// What helps where brokers refuse to create a topic.
pub(crate) const NOT_CREATED: &str = "fix what the brokers say: the topic's name by `route.topic`, `kafka.topics.partitions` \
    and `kafka.topics.replication_factor`, or the right to create topics";

/// The command that lets a principal write a topic, for a person to type.
pub(crate) fn allow_command(kafka: &KafkaConfig, topic: &str) -> String {
    let principal = kafka.properties.get("sasl.username");
    let principal = principal.map_or("<principal>", String::as_str);
    format!(
        "kafka-acls.sh --bootstrap-server {} --add --allow-principal 'User:{principal}' --operation Write \
         --operation Describe --topic '{}'",
        kafka.brokers.join(","),
        topic.replace('\'', "'\\''"),
    )
}

fn connection_config(kafka: &KafkaConfig) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.brokers.join(","));
    for (property, value) in CONNECTION {
        config.set(property, value);
    }
    config.set_log_level(RDKafkaLogLevel::Info);
    config
}

/// Whatever else is logged by the user's request.
fn log_connections(config: &mut ClientConfig) {
    let (property, context) = CONNECTIONS_LOGGED;
    let own = config.get(property).unwrap_or_default();
    let contexts = match own.split(',').any(|own| own.trim() == context) {
        true => own.to_owned(),
        false => format!("{context},{own}"),
    };
    config.set(property, contexts.trim_end_matches(','));
    config.set_log_level(RDKafkaLogLevel::Debug);
}

fn set_properties(config: &mut ClientConfig, kafka: &KafkaConfig) -> Result<(), KafkaError> {
    for (property, value) in &kafka.properties {
        let alias = ALIASES.iter().find(|(alias, _)| alias == property);
        if let Some((_, ours)) = alias {
            config.remove(ours);
        }
        let value = resolve_property(property, value).map_err(|source| KafkaError::Property {
            property: property.clone(),
            source: Box::new(source),
        })?;
        config.set(property, value.reveal());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;

    use rdkafka::producer::BaseProducer;

    use super::*;
    use crate::config::TopicsConfig;

    const LIMITS: LimitsConfig = LimitsConfig {
        in_flight_rows_max: 10_000,
        in_flight_bytes_max: 32 << 20,
    };

    fn kafka(properties: &[(&str, &str)]) -> KafkaConfig {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        KafkaConfig {
            brokers: vec!["a:9092".into(), "b:9092".into()],
            properties: properties.iter().map(own).collect::<BTreeMap<_, _>>(),
            allow_partitioner: false,
            topics: TopicsConfig {
                create: false,
                partitions: 1,
                replication_factor: 1,
            },
        }
    }

    #[test]
    fn librdkafka_takes_every_property_that_the_relay_sets() {
        let config = producer_config(&kafka(&[]), &LIMITS).unwrap();
        assert_eq!(config.get("bootstrap.servers"), Some("a:9092,b:9092"));
        assert_eq!(config.get("enable.gapless.guarantee"), Some("true"));
        assert_eq!(config.get("connections.max.idle.ms"), Some("180000"));
        config.create::<BaseProducer>().unwrap();
        look_up_config(&kafka(&[]))
            .unwrap()
            .create::<BaseProducer>()
            .unwrap();
    }

    #[test]
    fn librdkafka_knows_every_way_of_authentication_and_every_compression() {
        let native = ClientConfig::new().create_native_config().unwrap();
        let features = native.get("builtin.features").unwrap();
        let features: Vec<&str> = features.split(',').collect();
        for feature in [
            "ssl",
            "sasl_plain",
            "sasl_scram",
            "sasl_oauthbearer",
            "oidc",
            "gzip",
            "snappy",
            "lz4",
            "zstd",
        ] {
            assert!(features.contains(&feature), "{feature} in {features:?}");
        }
    }

    #[test]
    fn the_users_properties_stand_over_the_relays() {
        let own = kafka(&[
            ("queue.buffering.max.ms", "50"),
            ("message.max.bytes", "2000000"),
        ]);
        let config = producer_config(&own, &LIMITS).unwrap();
        assert_eq!(config.get("linger.ms"), None);
        assert_eq!(config.get("message.max.bytes"), Some("2000000"));
        assert_eq!(record_bytes_max(&own), 2_000_000);
    }

    #[test]
    fn connections_are_logged_whatever_else_is() {
        for (own, all) in [
            (None, "broker"),
            (Some("msg,topic"), "broker,msg,topic"),
            (Some("msg, broker"), "msg, broker"),
        ] {
            let own: Vec<_> = own.map(|own| ("debug", own)).into_iter().collect();
            let config = producer_config(&kafka(&own), &LIMITS).unwrap();
            assert_eq!(config.get("debug"), Some(all));
            config.create::<BaseProducer>().unwrap();
            let config = witness_config(&kafka(&own)).unwrap();
            assert_eq!(config.get("debug"), Some(all));
        }
        let config = look_up_config(&kafka(&[])).unwrap();
        assert_eq!(config.get("debug"), None);
    }

    #[test]
    fn the_queue_holds_twice_the_window_and_two_of_the_largest_records() {
        let limits = LimitsConfig {
            in_flight_rows_max: 1,
            in_flight_bytes_max: 1,
        };
        let config = producer_config(&kafka(&[]), &limits).unwrap();
        assert_eq!(config.get("queue.buffering.max.messages"), Some("1000"));
        assert_eq!(config.get("queue.buffering.max.kbytes"), Some("20481"));
        let config = producer_config(&kafka(&[]), &LIMITS).unwrap();
        assert_eq!(config.get("queue.buffering.max.messages"), Some("20000"));
        assert_eq!(config.get("queue.buffering.max.kbytes"), Some("65537"));
    }

    #[test]
    fn a_value_in_a_file_is_read_without_its_line_end() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "hush").unwrap();
        let value = format!("${{file:{}}}", file.path().display());
        let config = producer_config(&kafka(&[("sasl.password", &value)]), &LIMITS).unwrap();
        assert_eq!(config.get("sasl.password"), Some("hush"));
        let missing = kafka(&[("sasl.password", "${file:/nowhere/at/all}")]);
        let error = producer_config(&missing, &LIMITS).unwrap_err();
        let error = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(
            error.contains("sasl.password") && error.contains("/nowhere/at/all"),
            "{error}"
        );
    }

    #[test]
    fn a_refused_value_is_not_in_the_error() {
        for property in ["security.protocol", "no.such.property"] {
            let config = producer_config(&kafka(&[(property, "hush")]), &LIMITS).unwrap();
            let error = config.create::<BaseProducer>().err().unwrap();
            let error = KafkaError::from(error).to_string();
            assert!(
                error.contains(property) && !error.contains("hush"),
                "{error}"
            );
        }
    }
}
