//! Names and values of librdkafka's properties: what it does not know, and what is meant instead.
//!
//! Asks librdkafka itself, so that what is refused here is what it would refuse when a client is made. Never holds a
//! value.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::error::{Problem, shown};

/// Refuses what librdkafka does not know, or another value than those that it takes.
pub(super) fn check(name: &str, value: &str) -> Result<(), Problem> {
    let java = JAVA.iter().find(|(names, _)| names.contains(&name));
    if let Some((_, remedy)) = java {
        return Err(Problem::new(
            "is a property of Java clients, and outboxd's is librdkafka",
            *remedy,
        ));
    }
    if let Some(choice) = CHOICES.iter().find(|choice| choice.names.contains(&name)) {
        return choice.check(value);
    }
    if name.starts_with("sasl.kerberos.") {
        return Err(Problem::new(
            "is Kerberos's, which is not built in",
            format!("remove it, and write one of {MECHANISMS} as \"sasl.mechanism\""),
        ));
    }
    if has_unit(name, value) {
        return Err(Problem::new(
            "is no number, and librdkafka would drop what stands behind it",
            "write the number alone: its unit is in the property's name",
        ));
    }
    // A file's content is a text that any of these properties takes.
    let value = match value.starts_with("${file:") {
        true => "x",
        false => value,
    };
    let mut config = ClientConfig::new();
    match config.set(name, value).create_native_config() {
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Err(Problem::new("is not known to librdkafka", meant(name)))
        }
        Err(KafkaError::ClientConfig(_, text, ..)) => Err(refused(&text)),
        // What else could be wrong shows when a client is made.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn meant(name: &str) -> String {
    let distance = |one: &&&str| strsim::damerau_levenshtein(one, name);
    let nearest = KNOWN.iter().min_by_key(distance);
    let near = (name.len() / 6).clamp(1, 4);
    match nearest.filter(|one| distance(one) <= near) {
        Some(one) => format!("did you mean \"{one}\"?"),
        None => {
            "its CONFIGURATION.md lists every property: https://github.com/confluentinc/librdkafka"
                .to_owned()
        }
    }
}

/// A number with a unit, of which librdkafka reads the number and drops the rest.
fn has_unit(name: &str, value: &str) -> bool {
    let is_number = [
        ".ms",
        ".bytes",
        ".kbytes",
        ".messages",
        ".max",
        ".size",
        ".level",
    ];
    let begins = value.starts_with(|c: char| c.is_ascii_digit());
    begins && value.parse::<f64>().is_err() && is_number.iter().any(|end| name.ends_with(end))
}

/// By librdkafka's own words, of which only numbers are kept: they may quote the value.
fn refused(text: &str) -> Problem {
    let range = text.split("outside allowed range ").nth(1);
    let range = range.and_then(|range| range.trim().split_once(".."));
    let is_number = |text: &str| text.parse::<f64>().is_ok();
    match range {
        Some((low, high)) if is_number(low) && is_number(high) => Problem::new(
            "is out of range",
            format!("write a number from {low} to {high}"),
        ),
        _ if text.starts_with("Expected bool") || text.starts_with("Bool ") => {
            Problem::new("is neither true nor false", "write one of them")
        }
        _ if text.starts_with("Integer ") || text.starts_with("Float ") => {
            Problem::new("is empty", "write a number, or remove it")
        }
        _ => Problem::new(
            "has a value that librdkafka does not take",
            "its CONFIGURATION.md says which it takes: https://github.com/confluentinc/librdkafka",
        ),
    }
}

/// Properties with few values.
struct Choice {
    names: &'static [&'static str],
    values: &'static [&'static str],
    /// Small letters or capitals.
    case: Case,
    /// What others take for a value, and why it is none.
    others: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Any,
    AsWritten,
}

impl Choice {
    fn check(&self, value: &str) -> Result<(), Problem> {
        let value = value.trim();
        let is_meant = |one: &&&str| match self.case {
            Case::Any => one.eq_ignore_ascii_case(value),
            Case::AsWritten => **one == value,
        };
        if self.values.iter().any(|one| is_meant(&one)) {
            return Ok(());
        }
        let all = self.values.join(", ");
        let other = |(name, _): &&(&str, &str)| name.eq_ignore_ascii_case(value);
        if let Some((name, why)) = self.others.iter().find(other) {
            return Err(Problem::new(
                format!("= {name:?} {why}"),
                format!("write one of {all}"),
            ));
        }
        let near = |one: &&&str| {
            strsim::damerau_levenshtein(&one.to_lowercase(), &value.to_lowercase()) <= 2
        };
        let remedy = match self.values.iter().find(near) {
            Some(one) => format!("did you mean {one:?}? It takes {all}"),
            None => format!("write one of {all}"),
        };
        Err(Problem::new(
            format!("= {} is not known", shown(value)),
            remedy,
        ))
    }
}

/// What is built in.
pub(super) const MECHANISMS: &str = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER";

const CHOICES: &[Choice] = &[
    Choice {
        names: &["security.protocol"],
        values: &["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        case: Case::Any,
        others: &[
            ("TLS", "is called SSL here"),
            ("SASL_TLS", "is called SASL_SSL here"),
        ],
    },
    Choice {
        names: &["sasl.mechanism", "sasl.mechanisms"],
        values: &["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"],
        case: Case::AsWritten,
        others: &[
            ("GSSAPI", "is Kerberos, which is not built in"),
            ("KERBEROS", "is not built in"),
            (
                "AWS_MSK_IAM",
                "is not built in; MSK also takes SCRAM-SHA-512, with the user in AWS Secrets Manager",
            ),
        ],
    },
    Choice {
        names: &["sasl.oauthbearer.method"],
        values: &["oidc"],
        case: Case::Any,
        others: &[("default", "makes no token without a program's help")],
    },
    Choice {
        names: &["compression.type", "compression.codec"],
        values: &["none", "gzip", "snappy", "lz4", "zstd"],
        case: Case::Any,
        others: &[],
    },
    Choice {
        names: &["ssl.endpoint.identification.algorithm"],
        values: &["https", "none"],
        case: Case::Any,
        others: &[("", "does what Java calls none")],
    },
    Choice {
        names: &["broker.address.family"],
        values: &["any", "v4", "v6"],
        case: Case::Any,
        others: &[("ipv4", "is called v4 here"), ("ipv6", "is called v6 here")],
    },
    Choice {
        names: &["client.dns.lookup"],
        values: &[
            "use_all_dns_ips",
            "resolve_canonical_bootstrap_servers_only",
        ],
        case: Case::Any,
        others: &[("default", "is a value that Java dropped")],
    },
];

/// Java's names, and what is meant by them here.
const JAVA: &[(&[&str], &str)] = &[
    (
        &["ssl.truststore.location", "ssl.truststore.certificates"],
        "write \"ssl.ca.location\" with a PEM file: keytool -exportcert -rfc writes one from a truststore",
    ),
    (
        &["ssl.truststore.password", "ssl.truststore.type"],
        "remove it: \"ssl.ca.location\" names a PEM file, which has no password",
    ),
    (
        &["ssl.keystore.type"],
        "remove it: \"ssl.keystore.location\" takes PKCS#12; for PEM write \"ssl.certificate.location\" and \"ssl.key.location\"",
    ),
    (&["ssl.keystore.key"], "write \"ssl.key.pem\""),
    (
        &["ssl.keystore.certificate.chain"],
        "write \"ssl.certificate.pem\"",
    ),
    (
        &[
            "ssl.protocol",
            "ssl.enabled.protocols",
            "ssl.provider",
            "ssl.secure.random.implementation",
            "ssl.trustmanager.algorithm",
            "ssl.keymanager.algorithm",
            "ssl.engine.factory.class",
            "security.providers",
        ],
        "remove it: OpenSSL chooses, TLS 1.2 or newer",
    ),
    (
        &["sasl.jaas.config"],
        "write \"sasl.username\" and \"sasl.password\"; for OAUTHBEARER \"sasl.oauthbearer.client.id\" and \"sasl.oauthbearer.client.secret\"",
    ),
    (
        &[
            "sasl.client.callback.handler.class",
            "sasl.login.callback.handler.class",
            "sasl.login.class",
        ],
        "remove it: no Java class can be loaded; PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 and OAUTHBEARER by OIDC are built in",
    ),
    (
        &[
            "key.serializer",
            "value.serializer",
            "key.converter",
            "value.converter",
        ],
        "remove it: keys and payloads are sent as they stand in the row",
    ),
    (
        &["schema.registry.url", "auto.register.schemas"],
        "remove it: payloads are sent as they are, without a schema registry",
    ),
    (
        &["buffer.memory"],
        "write `limits.in_flight_bytes_max`, such as \"32MiB\"",
    ),
    (&["max.request.size"], "write \"message.max.bytes\""),
    (
        &["max.block.ms", "default.api.timeout.ms"],
        "remove it: outboxd waits as long as it takes",
    ),
    (&["send.buffer.bytes"], "write \"socket.send.buffer.bytes\""),
    (
        &["receive.buffer.bytes"],
        "write \"socket.receive.buffer.bytes\"",
    ),
    (
        &["socket.connection.setup.timeout.max.ms"],
        "write \"socket.connection.setup.timeout.ms\"",
    ),
    (
        &["partitioner.class"],
        "remove it: keys reach the partitions that a Java producer chooses",
    ),
    (
        &[
            "partitioner.ignore.keys",
            "partitioner.adaptive.partitioning.enable",
            "partitioner.availability.timeout.ms",
        ],
        "remove it: a row's partition follows from its key",
    ),
    (
        &[
            "interceptor.classes",
            "metric.reporters",
            "metrics.num.samples",
            "metrics.recording.level",
            "metrics.sample.window.ms",
            "auto.include.jmx.reporter",
        ],
        "remove it: no Java class can be loaded; `admin.listen` serves the metrics",
    ),
    (
        &[
            "enable.metrics.push.interval.ms",
            "telemetry.compression.type",
        ],
        "remove it",
    ),
];

/// Names that a misspelt one is compared with: those that a relay may have use for.
const KNOWN: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "api.version.request",
    "api.version.request.timeout.ms",
    "batch.num.messages",
    "batch.size",
    "broker.address.family",
    "broker.address.ttl",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.level",
    "compression.type",
    "connections.max.idle.ms",
    "debug",
    "enable.idempotence",
    "enable.metrics.push",
    "enable.random.seed",
    "enable.ssl.certificate.verification",
    "https.ca.location",
    "https.ca.pem",
    "linger.ms",
    "log.connection.close",
    "log.thread.name",
    "log_level",
    "max.in.flight.requests.per.connection",
    "message.copy.max.bytes",
    "message.max.bytes",
    "message.timeout.ms",
    "metadata.max.age.ms",
    "metadata.recovery.strategy",
    "partitioner",
    "queue.buffering.backpressure.threshold",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "receive.message.max.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "request.timeout.ms",
    "retries",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.assertion.algorithm",
    "sasl.oauthbearer.assertion.private.key.file",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.extensions",
    "sasl.oauthbearer.grant.type",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.max.fails",
    "socket.nagle.disable",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "socket.timeout.ms",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "ssl.sigalgs.list",
    "statistics.interval.ms",
    "sticky.partitioning.linger.ms",
    "topic.metadata.refresh.interval.ms",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether librdkafka knows the name, whatever the value.
    fn is_known(name: &str) -> bool {
        let mut config = ClientConfig::new();
        !matches!(
            config.set(name, "1").create_native_config(),
            Err(KafkaError::ClientConfig(
                RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN,
                ..
            ))
        )
    }

    #[test]
    fn librdkafka_knows_every_name_that_is_offered() {
        let choices = CHOICES.iter().flat_map(|choice| choice.names);
        for name in KNOWN.iter().chain(choices) {
            assert!(is_known(name), "{name}");
        }
    }

    #[test]
    fn librdkafka_takes_every_value_that_is_offered_and_no_name_of_javas() {
        for choice in CHOICES {
            for (name, value) in choice
                .names
                .iter()
                .flat_map(|name| choice.values.iter().map(move |value| (name, value)))
            {
                assert!(check(name, value).is_ok(), "{name} = {value}");
                let mut config = ClientConfig::new();
                assert!(
                    config.set(*name, *value).create_native_config().is_ok(),
                    "{name} = {value}"
                );
            }
        }
        for name in JAVA.iter().flat_map(|(names, _)| *names) {
            let mut config = ClientConfig::new();
            assert!(
                config.set(*name, "1").create_native_config().is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_value_is_refused_with_what_is_allowed_and_is_not_shown() {
        let refused = |name: &str, value: &str| {
            let problem = check(name, value).expect_err(name);
            format!("{}; {}", problem.problem, problem.remedy)
        };
        assert_eq!(
            refused("linger.ms", "4711000"),
            "is out of range; write a number from 0 to 900000"
        );
        assert!(refused("socket.keepalive.enable", "hush").contains("true nor false"));
        assert!(!refused("socket.timeout.ms", "hush").contains("hush"));
        assert!(
            refused("sasl.mechanism", "scram-sha-512").contains("did you mean \"SCRAM-SHA-512\"?")
        );
        assert!(refused("ssl.ca.loction", "/x").contains("did you mean \"ssl.ca.location\"?"));
        assert!(refused("nonsense", "1").contains("CONFIGURATION.md"));
        assert!(check("sasl.password", "${file:/run/secret}").is_ok());
    }
}
