//! librdkafka's properties: which of them would break a guarantee.
//!
//! Knows no defaults of the producer.

use super::error::{Problem, shown};
use super::kafka_security::check_file;
use super::{LimitsConfig, check, kafka_names};

/// Which partitioners are accepted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Partitioners {
    /// Those that agree with a Java producer.
    Java,
    Any,
}

/// Refuses a property that would break a guarantee or that outboxd sets from another key.
pub(super) fn check(
    name: &str,
    value: &str,
    partitioners: Partitioners,
    limits: &LimitsConfig,
) -> Result<(), Problem> {
    check_file(name, value)?;
    if check::holds_placeholder(value) {
        return Err(Problem::new(
            "holds a placeholder, and outboxd fills none in",
            format!(
                "set the variable OUTBOXD_KAFKA__PROPERTIES__{}, or write a secret as \"${{file:/run/secrets/…}}\"",
                name.to_uppercase().replace('.', "_")
            ),
        ));
    }
    if name == "partitioner" && partitioners == Partitioners::Any {
        return Ok(());
    }
    if let Some(rule) = RULES.iter().find(|rule| rule.names.contains(&name)) {
        return rule.check(value);
    }
    check_queue(name, value, limits)?;
    if name.ends_with("_cb") || CODE_ONLY.contains(&name) {
        return Err(Problem::new("can be set only by a program", "remove it"));
    }
    if name.starts_with("test.mock.") {
        return Err(Problem::new(
            "would publish to a broker that exists only in memory, and mark the rows as sent",
            "remove it",
        ));
    }
    if CONSUMER.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(Problem::new(
            "is a consumer's property, and outboxd only produces",
            "remove it",
        ));
    }
    kafka_names::check(name, value)
}

/// librdkafka must hold what the window admits, else the window is never full and memory is bounded twice.
fn check_queue(name: &str, value: &str, limits: &LimitsConfig) -> Result<(), Problem> {
    let (unit, least, key) = match name {
        "queue.buffering.max.messages" => {
            (1, limits.in_flight_rows_max, "limits.in_flight_rows_max")
        }
        "queue.buffering.max.kbytes" => (
            1024,
            limits.in_flight_bytes_max,
            "limits.in_flight_bytes_max",
        ),
        _ => return Ok(()),
    };
    let queue = value.parse::<usize>().ok();
    let is_unbounded = name == "queue.buffering.max.messages" && queue == Some(0);
    if is_unbounded || queue.is_some_and(|queue| queue.saturating_mul(unit) >= least) {
        return Ok(());
    }
    Err(Problem::new(
        format!("= {} is less than `{key}` lets in", shown(value)),
        format!("remove it: outboxd sets it from `{key}`"),
    ))
}

const CODE_ONLY: &[&str] = &[
    "opaque",
    "default_topic_conf",
    "enabled_events",
    "interceptors",
    "msg_order_cmp",
    "ssl_key",
    "ssl_certificate",
    "ssl_ca",
    "ssl_engine_callback_data",
];

const CONSUMER: &[&str] = &[
    "group.",
    "auto.offset.reset",
    "auto.commit.",
    "offset.store.",
    "consume.",
    "enable.auto.",
    "enable.partition.eof",
    "isolation.level",
    "fetch.",
    "queued.m",
    "max.poll.",
    "max.partition.fetch.bytes",
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "partition.assignment.strategy",
    "coordinator.query.interval.ms",
    "check.crcs",
];

/// Properties under all their names, the values that keep the guarantee, and why no other.
struct Rule {
    names: &'static [&'static str],
    accepts: Accepts,
    reason: &'static str,
    remedy: &'static str,
}

enum Accepts {
    Nothing,
    OneOf(&'static [&'static str]),
    Between(i64, i64),
}

const TRUE: Accepts = Accepts::OneOf(&["true", "t", "1"]);
const FALSE: Accepts = Accepts::OneOf(&["false", "f", "0"]);

impl Rule {
    fn check(&self, value: &str) -> Result<(), Problem> {
        let value = value.trim();
        let lower = value.to_ascii_lowercase();
        let is_accepted = match self.accepts {
            Accepts::Nothing => return Err(Problem::new(self.reason, self.remedy)),
            Accepts::OneOf(values) => values.contains(&lower.as_str()),
            Accepts::Between(low, high) => {
                lower.parse().is_ok_and(|n: i64| (low..=high).contains(&n))
            }
        };
        if is_accepted {
            return Ok(());
        }
        Err(Problem::new(
            format!("= {} {}", shown(value), self.reason),
            self.remedy,
        ))
    }
}

#[rustfmt::skip]
const RULES: &[Rule] = &[
    Rule { names: &["acks", "request.required.acks"], accepts: Accepts::OneOf(&["all", "-1"]),
        reason: "would lose rows: they are marked as sent while only some replicas have them, and the next leader may have none",
        remedy: "remove it: outboxd always uses acks=all" },
    Rule { names: &["enable.idempotence"], accepts: TRUE,
        reason: "would repeat and reorder rows whenever librdkafka sends a request again",
        remedy: "remove it: outboxd always uses an idempotent producer" },
    Rule { names: &["enable.gapless.guarantee"], accepts: TRUE,
        reason: "would leave holes: the rows behind a refused one reach the log before it is sent again",
        remedy: "remove it: outboxd always uses it" },
    Rule { names: &["max.in.flight", "max.in.flight.requests.per.connection"], accepts: Accepts::Between(1, 5),
        reason: "would reorder rows: brokers keep the order of at most 5 requests at a time",
        remedy: "remove it, or write a number from 1 to 5" },
    Rule { names: &["message.timeout.ms", "delivery.timeout.ms"], accepts: Accepts::Between(0, 0),
        reason: "would give rows up that wait for a broker; outboxd waits as long as it takes",
        remedy: "remove it: outboxd always uses 0, without end" },
    Rule { names: &["retries", "message.send.max.retries"], accepts: Accepts::Between(i32::MAX as i64, i32::MAX as i64),
        reason: "would give rows up after a few attempts; librdkafka repeats them in order without end",
        remedy: "remove it" },
    Rule { names: &["partitioner"], accepts: Accepts::OneOf(&["murmur2_random", "murmur2"]),
        reason: "would send keys to other partitions than a Java producer does",
        remedy: "remove it, or set `kafka.allow_partitioner = true` if nobody else writes to these topics" },
    Rule { names: &["queuing.strategy"], accepts: Accepts::OneOf(&["fifo"]),
        reason: "would reorder rows",
        remedy: "remove it: outboxd always sends first in, first out" },
    Rule { names: &["delivery.report.only.error"], accepts: FALSE,
        reason: "would hide what was delivered, and no row would ever be marked as sent",
        remedy: "remove it" },
    Rule { names: &["topic.metadata.propagation.max.ms"], accepts: Accepts::Between(3_600_000, 3_600_000),
        reason: "would fail the rows of a topic that vanished one by one, and those behind them get through",
        remedy: "remove it: outboxd uses the longest, 3600000" },
    Rule { names: &["allow.auto.create.topics"], accepts: FALSE,
        reason: "would create a topic for every misspelt name",
        remedy: "remove it, and set `kafka.topics.create = true` to have topics created that `route.allow` names" },
    Rule { names: &["enable.sasl.oauthbearer.unsecure.jwt"], accepts: FALSE,
        reason: "would make tokens that anybody can forge",
        remedy: "remove it, and set \"sasl.oauthbearer.method\" = \"oidc\"" },
    Rule { names: &["transactional.id"], accepts: Accepts::Nothing,
        reason: "makes the producer transactional, which outboxd does not use: a row is marked when it is delivered",
        remedy: "remove it" },
    Rule { names: &["bootstrap.servers", "metadata.broker.list"], accepts: Accepts::Nothing,
        reason: "is set from `kafka.brokers`",
        remedy: "write the brokers there" },
];

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LimitsConfig = LimitsConfig {
        in_flight_rows_max: 10_000,
        in_flight_bytes_max: 32 << 20,
    };

    fn refusal(name: &str, value: &str) -> Option<String> {
        let refused = check(name, value, Partitioners::Java, &LIMITS).err()?;
        Some(format!("{}; {}", refused.problem, refused.remedy))
    }

    #[test]
    fn a_property_that_breaks_a_guarantee_is_refused_under_every_name() {
        for (name, value) in [
            ("acks", "1"),
            ("acks", "0"),
            ("request.required.acks", "2"),
            ("enable.idempotence", "False"),
            ("enable.gapless.guarantee", "0"),
            ("max.in.flight", "6"),
            ("max.in.flight.requests.per.connection", "1000000"),
            ("message.timeout.ms", "300000"),
            ("delivery.timeout.ms", "1"),
            ("retries", "3"),
            ("message.send.max.retries", "2147483646"),
            ("partitioner", "consistent_random"),
            ("queuing.strategy", "lifo"),
            ("delivery.report.only.error", "true"),
            ("topic.metadata.propagation.max.ms", "30000"),
            ("allow.auto.create.topics", "true"),
            ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
            ("transactional.id", "x"),
            ("bootstrap.servers", "h:1"),
            ("metadata.broker.list", "h:1"),
            ("queue.buffering.max.messages", "9999"),
            ("queue.buffering.max.kbytes", "32767"),
            ("queue.buffering.max.kbytes", "many"),
            ("dr_msg_cb", "x"),
            ("test.mock.num.brokers", "3"),
            ("group.id", "x"),
            ("enable.partition.eof", "true"),
        ] {
            let refusal = refusal(name, value).unwrap_or_default();
            assert!(refusal.contains("; "), "{name} = {value}: {refusal:?}");
        }
    }

    #[test]
    fn every_rule_names_a_property_that_librdkafka_knows_and_a_value_that_it_takes() {
        for rule in RULES {
            for name in rule.names {
                let value = match rule.accepts {
                    Accepts::Nothing => "h:1".to_owned(),
                    Accepts::OneOf(values) => values[0].to_owned(),
                    Accepts::Between(low, _) => low.to_string(),
                };
                let mut config = rdkafka::ClientConfig::new();
                config.set(*name, value);
                assert!(config.create_native_config().is_ok(), "{name}");
            }
        }
    }

    #[test]
    fn a_property_that_keeps_every_guarantee_is_accepted() {
        for (name, value) in [
            ("acks", "all"),
            ("request.required.acks", "-1"),
            ("enable.idempotence", "TRUE"),
            ("max.in.flight", "1"),
            ("message.timeout.ms", "0"),
            ("retries", "2147483647"),
            ("partitioner", "murmur2"),
            ("queue.buffering.max.messages", "0"),
            ("queue.buffering.max.messages", "10000"),
            ("queue.buffering.max.kbytes", "32768"),
            ("queue.buffering.max.ms", "5"),
            ("message.max.bytes", "10000000"),
            ("compression.type", "zstd"),
            ("sasl.password", "${file:/run/secrets/kafka}"),
            ("enable.metrics.push", "false"),
        ] {
            assert_eq!(refusal(name, value), None, "{name} = {value}");
        }
        assert!(check("partitioner", "random", Partitioners::Any, &LIMITS).is_ok());
    }
}
