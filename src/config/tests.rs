//! Whole configurations: what is refused and with which words, which layer wins, what never shows.

pub(crate) mod broken;
mod reference;

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// Lines 1 to 4 of a configuration that is right.
const GOOD: &str = "[source]\nurl = \"postgres://u:p@h/d\"\n[kafka]\nbrokers = [\"k:9092\"]\n";

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse("o.toml", text, [])
}

fn parse_with(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let env = env
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()));
    Config::parse("o.toml", text, env)
}

fn errors(text: &str) -> String {
    parse(text).map_or_else(
        |errors| errors.to_string(),
        |config| panic!("accepted: {config:?}"),
    )
}

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn the_fewest_keys_give_the_defaults() {
    let config = parse(GOOD).unwrap();
    let source = &config.source;
    assert!(matches!(&source.url, UrlSource::Inline(url) if url.reveal() == "postgres://u:p@h/d"));
    assert_eq!(
        (source.mode, source.mark, source.start),
        (Mode::Replication, Mark::Ledger, None)
    );
    assert_eq!(
        (source.table.as_str(), &source.order_column),
        ("public.outbox", &None)
    );
    assert_eq!(source.polling.interval, Duration::from_millis(100));
    assert_eq!(source.polling.batch_rows, 2000);
    let replication = &source.replication;
    assert!(replication.slot.is_empty() && replication.publication.is_empty());
    assert_eq!(config.route.topic, "outbox.event.${aggregatetype}");
    assert_eq!(config.route.allow, ["outbox.event.*"]);
    assert_eq!(config.route.null_key, NullKey::Block);
    assert_eq!(config.kafka.brokers, ["k:9092"]);
    assert!(config.kafka.properties.is_empty() && !config.kafka.allow_partitioner);
    let topics = &config.kafka.topics;
    assert_eq!(
        (topics.create, topics.partitions, topics.replication_factor),
        (false, -1, -1)
    );
    assert_eq!(config.limits.in_flight_rows_max, 10_000);
    assert_eq!(config.limits.in_flight_bytes_max, 32 << 20);
    assert_eq!(config.lease.ttl, Duration::from_secs(4));
    assert_eq!(config.shutdown.grace, Duration::from_secs(10));
    assert_eq!(config.admin.listen, "127.0.0.1:9464");
    assert_eq!(
        (config.log.format, config.log.level.as_str()),
        (LogFormat::Human, "info")
    );
}

#[test]
fn every_key_can_be_set() {
    let text = r#"
        [source]
        url_file = "/run/secrets/url"
        mode = "polling"
        table = 'shop."Outbox"'
        mark = "sent_at"
        start = "now"
        order_column = "created_at"
        retention = "7d"
        polling = { interval = "1s", batch_rows = 5 }
        [source.replication]
        slot = "a"
        publication = "B"
        on_lost_slot = "halt"
        failover = false
        sweep = "2s"
        catch_up = "stream"
        [route]
        topic = "${topic}"
        allow = ["orders", "shop.*"]
        null_key = "publish"
        headers = { type = "eventType" }
        [kafka]
        brokers = "a:1, b:2"
        allow_partitioner = true
        topics = { create = true, partitions = 6, replication_factor = 3 }
        [kafka.properties]
        partitioner = "consistent"
        compression.type = "zstd"
        "linger.ms" = 5
        "enable.metrics.push" = false
        [limits]
        in_flight_rows_max = 7
        in_flight_bytes_max = 1_000
        [lease]
        ttl = "1m"
        [shutdown]
        grace = "30s"
        [faults]
        policy = "dead_letter"
        after_dead_letter = "continue"
        [admin]
        listen = "[::1]:1"
        [log]
        format = "json"
        level = "info,outboxd::publish=debug"
    "#;
    let config = parse(text).unwrap();
    assert_eq!(
        config.source.table_name().unwrap().quoted(),
        r#""shop"."Outbox""#
    );
    assert_eq!(config.kafka.brokers, ["a:1", "b:2"]);
    let property = |name| config.kafka.properties.get(name).map(String::as_str);
    assert_eq!(property("compression.type"), Some("zstd"));
    assert_eq!(property("linger.ms"), Some("5"));
    assert_eq!(property("enable.metrics.push"), Some("false"));
    assert_eq!(config.route.headers["type"], "eventType");
    assert_eq!(config.limits.in_flight_bytes_max, 1000);
    assert_eq!(config.source.polling.batch_rows, 5);
}

/// Appended to `GOOD`, so that its first line is line 5: what is written, and what the one error says.
#[rustfmt::skip]
const BROKEN: &[(&str, &str)] = &[
    ("[sorce]\na = 1\nb = 2", "error: o.toml:5: unknown key `sorce`; did you mean `source`?"),
    ("allow_partitoner = true", "error: o.toml:5: unknown key `kafka.allow_partitoner`; did you mean `kafka.allow_partitioner`?"),
    ("slot = \"x\"", "error: o.toml:5: unknown key `kafka.slot`; did you mean `source.replication.slot`?"),
    ("compression.type = \"zstd\"", "error: o.toml:5: unknown key `kafka.compression`; [kafka] has brokers, allow_partitioner, properties, topics; a property of librdkafka"),
    ("[xyz]", "error: o.toml:5: unknown key `xyz`; the sections are source, route, kafka"),
    ("[limits]\nin_flight_rows_max = 0", "error: o.toml:6: `limits.in_flight_rows_max` is not a whole number of at least 1; write one such as 2000"),
    ("[limits]\nin_flight_bytes_max = \"32 parsecs\"", "error: o.toml:6: `limits.in_flight_bytes_max` is not a size above zero; write bytes such as 33554432"),
    ("[lease]\nttl = \"1s\"", "error: o.toml:6: `lease.ttl` is shorter than 2s: the lease is renewed each second and would end at every hiccup; write at least \"2s\""),
    ("[lease]\nttl = 4", "error: o.toml:6: `lease.ttl` has no unit; write a text with a unit, such as \"100ms\""),
    ("[shutdown]\ngrace = \"soon\"", "error: o.toml:6: `shutdown.grace` is not a duration; write a text with a unit"),
    ("[shutdown]\ngrace = \"0s\"", "error: o.toml:6: `shutdown.grace` is zero; write a longer one"),
    ("[admin]\nlisten = \"localhost:9464\"", "error: o.toml:6: `admin.listen` = \"localhost:9464\" is no address with a port; write an IP address and a port"),
    ("[log]\nformat = \"jsn\"", "error: o.toml:6: `log.format` = \"jsn\" is none of \"human\", \"json\"; did you mean \"json\"?"),
    ("[log]\nlevel = \"inof\"", "error: o.toml:6: `log.level` = \"inof\" is no level; write error, warn, info, debug or trace"),
    ("[log.level]\nx = 1", "error: o.toml:5: `log.level` is not a text; write it in double quotes"),
    ("[route]\ntopic = \"orders.${type}\"", "error: o.toml:6: `route.topic` can never be a topic that `route.allow` lets through: every row would be rejected; add its pattern to `route.allow`"),
    ("[route]\ntopic = \"outbox.event.${type\"", "error: o.toml:6: `route.topic` = \"outbox.event.${type\" has a `${` without its `}`; write ${column}"),
    ("[route]\ntopic = \"outbox.event/${type}\"", "error: o.toml:6: `route.topic` = \"outbox.event/${type}\" holds '/', which no topic may; use letters"),
    ("[route]\nallow = [\n\"outbox/*\"]", "error: o.toml:6: `route.allow` holds \"outbox/*\", which matches no topic; use letters"),
    ("[route]\nallow = []", "error: o.toml:6: `route.allow` is empty: no row could be published; write patterns"),
    ("[route.headers]\ntype = \"id\"", "error: o.toml:6: `route.headers.type` names the header \"id\", which is reserved; choose a name other than"),
    ("[kafka.properties]\n\"acks\" = 1", "error: o.toml:6: `kafka.properties.\"acks\"` = \"1\" would lose rows: they are marked as sent while only some replicas have them, and the next leader may have none; remove it: outboxd always uses acks=all"),
    ("[kafka.properties]\nmax.in.flight = 6", "error: o.toml:6: `kafka.properties.\"max.in.flight\"` = \"6\" would reorder rows: brokers keep the order of at most 5 requests at a time; remove it"),
    ("[kafka.properties]\n\"linger.ms\" = 1\nlinger.ms = 2", "error: o.toml:7: `kafka.properties.\"linger.ms\"` is given a second time, first by o.toml:6; remove one of them"),
    ("[kafka.properties]\npartitioner = \"random\"", "error: o.toml:6: `kafka.properties.\"partitioner\"` = \"random\" would send keys to other partitions than a Java producer does; remove it, or set `kafka.allow_partitioner = true`"),
    ("[kafka.topics]\npartitions = 0", "error: o.toml:6: `kafka.topics.partitions` is neither -1 nor a whole number of at least 1; write -1"),
    ("topics = 3", "error: o.toml:5: `kafka.topics` is a section and has no value; write [kafka.topics] on a line of its own"),
    ("[kafka.properties]\n\"client.id\" = \"${file:/x}\"", "error: o.toml:6: `kafka.properties.\"client.id\"` is not read from a file by `${file:…}`; only these are: sasl.password"),
    ("[source.replication]\nslot = \"Orders\"", "error: o.toml:6: `source.replication.slot` = \"Orders\" is no name that PostgreSQL allows for a slot; write 1 to 63 lower-case letters"),
    ("[source.replication]\nsweep = \"10ms\"", "error: o.toml:6: `source.replication.sweep` is less than a second; write \"1s\" or more; \"60s\" is the default"),
    ("[faults]\npolicy = \"skip\"", "error: o.toml:6: `faults.policy` = \"skip\" is none of \"block\", \"dead_letter\", \"halt\"; write one of"),
    ("[faults]\nhalt_share = 1.5", "error: o.toml:6: `faults.halt_share` is not a share above 0 and up to 1; write one such as 0.5"),
    ("[schema_registry]\nurl = \"http://x\"", "error: o.toml:5: `schema_registry` is not there yet in this version; remove it: payloads are sent as they are"),
    ("[replay]", "error: o.toml:5: `replay` is not there yet in this version; remove it: rows can't be published a second time yet"),
    ("[tls]\nca = 1", "error: o.toml:5: `tls` is not there yet in this version; remove it: TLS to Kafka is set in kafka.properties"),
];

#[test]
fn a_broken_file_gives_one_error_with_line_key_and_remedy() {
    for (text, expected) in BROKEN {
        let error = errors(&format!("{GOOD}{text}\n"));
        assert!(
            error.starts_with(expected),
            "{text}\n  got      {error}\n  expected {expected}"
        );
        assert_eq!(error.lines().count(), 1, "{text}: {error}");
    }
}

/// Put in place of the first two lines of `GOOD`.
#[rustfmt::skip]
const BROKEN_SOURCE: &[(&str, &str)] = &[
    ("url = \"mysql://u:hunter2@h/d\"", "error: o.toml:2: `source.url` is no PostgreSQL URL; write postgres://"),
    ("url = 5", "error: o.toml:2: `source.url` is not a text; write it in double quotes"),
    ("url = \"${file:/hunter2}\"", "error: o.toml:2: `source.url` is not read from a file by `${file:…}`; that works only for"),
    ("url_file = \"postgres://u:hunter2@h/d\"", "error: o.toml:2: `source.url_file` is a URL and not a path; write it to `source.url`"),
    ("url = \"postgres://hunter2@h\"\nurl_file = \"x\"", "error: o.toml:2: `source.url` stands beside `source.url_file`; remove one of them"),
    ("", "error: o.toml: `source.url_file` is missing; name a file that holds postgres://"),
    ("url_file = \"x\"\nmode = \"poling\"", "error: o.toml:3: `source.mode` = \"poling\" is none of \"replication\", \"polling\"; did you mean \"polling\"?"),
    ("url_file = \"x\"\nmode = \"polling\"\nmark = \"none\"", "error: o.toml:4: `source.mark` = \"none\" can't be polled: without a mark every row would be published again at each start; write \"ledger\""),
    ("url_file = \"x\"\nmark = \"sent-at\"", "error: o.toml:3: `source.mark` = \"sent-at\" is none of \"ledger\", \"sent_at\", \"delete\", \"none\"; did you mean \"sent_at\"?"),
    ("url_file = \"x\"\nmark = \"sent_at\"\n[source.replication]\ncatch_up = \"table\"", "error: o.toml:5: `source.replication.catch_up` = \"table\" needs `source.mark = \"ledger\"`"),
    ("url_file = \"x\"\ntable = \"a.b.c\"", "error: o.toml:3: `source.table` = \"a.b.c\" has more than two parts; write `schema.table`"),
    ("url_file = \"x\"\ntable = \"my outbox\"", "error: o.toml:3: `source.table` = \"my outbox\" is not a table name; write `schema.table`"),
    ("url_file = \"x\"\nretention = 7", "error: o.toml:3: `source.retention` has no unit; write a text with a unit"),
    ("url_file = \"x\"\nretention = \"10ms\"", "error: o.toml:3: `source.retention` is less than a second; write how long rows are kept"),
    ("url_file = \"x\"\nmark = \"delete\"\nretention = \"7d\"", "error: o.toml:4: `source.retention` has nothing to remove: with `source.mark = \"delete\"` a row goes as soon as it was sent; remove it"),
    ("url_file = \"x\"\nmark = \"none\"\nretention = \"7d\"", "error: o.toml:4: `source.retention` needs a mark: with `source.mark = \"none\"` nothing says which rows were sent; remove it"),
    ("url_file = \"x\"\nmod = \"polling\"", "error: o.toml:3: unknown key `source.mod`; did you mean `source.mode`?"),
    ("url_file = \"x\"\npolling.interval = \"0ms\"", "error: o.toml:3: `source.polling.interval` is zero; write a longer one"),
    ("url_file = \"x\"\nmode.x = \"polling\"", "error: o.toml:3: `source.mode` is not a text; write it in double quotes"),
    ("url_file = \"x\"\nmode = polling", "error: o.toml:3:8: not valid TOML: a text must stand in double quotes"),
];

#[test]
fn a_broken_source_gives_one_error_with_line_key_and_remedy_and_no_secret() {
    for (text, expected) in BROKEN_SOURCE {
        let error = errors(&format!(
            "[source]\n{text}\n[kafka]\nbrokers = [\"k:9092\"]\n"
        ));
        assert!(
            error.starts_with(expected),
            "{text}\n  got      {error}\n  expected {expected}"
        );
        assert_eq!(error.lines().count(), 1, "{text}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    for (brokers, expected) in [
        (
            "[]",
            "error: o.toml:4: `kafka.brokers` is empty; write the brokers as host:port",
        ),
        (
            "[\"kafka\"]",
            "error: o.toml:4: `kafka.brokers` holds \"kafka\", which is not host:port; write",
        ),
        (
            "[\"u:hunter2@kafka\"]",
            "error: o.toml:4: `kafka.brokers` holds (value not shown), which",
        ),
    ] {
        let error = errors(&GOOD.replace("[\"k:9092\"]", brokers));
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn all_errors_are_told_at_once_by_line_and_the_environment_last() {
    let text = "[kafka]\n[log]\nformat = 1\n[source]\nmod = 1\n[limits]\nin_flight_rows_max = 0\n";
    let error = parse_with(text, &[("OUTBOXD_LEASE__TTL", "1s")]).unwrap_err();
    let message = error.to_string();
    let lines: Vec<&str> = message.lines().collect();
    let starts = [
        "error: o.toml:3: `log.format`",
        "error: o.toml:5: unknown key `source.mod`",
        "error: o.toml:7: `limits.in_flight_rows_max`",
        "error: o.toml: `source.url_file` is missing",
        "error: o.toml: `kafka.brokers` is missing",
        "error: environment variable OUTBOXD_LEASE__TTL: `lease.ttl`",
    ];
    assert_eq!(lines.len(), starts.len(), "{message}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn the_environment_goes_over_the_file_and_stays_text() {
    let text = format!("{GOOD}[kafka.properties]\n\"compression.type\" = \"lz4\"\n");
    let env = [
        ("OUTBOXD_SOURCE__MODE", "polling"),
        ("OUTBOXD_SOURCE__URL_FILE", "/run/secrets/url"),
        ("OUTBOXD_SOURCE__POLLING__BATCH_ROWS", "17"),
        ("OUTBOXD_KAFKA__BROKERS", "a:1,b:2"),
        ("OUTBOXD_KAFKA__TOPICS__CREATE", "true"),
        ("OUTBOXD_KAFKA__PROPERTIES__COMPRESSION_TYPE", "zstd"),
        ("OUTBOXD_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "ssl"),
        ("OUTBOXD_KAFKA__PROPERTIES__SSL_KEY_PASSWORD", "00123456"),
        ("OUTBOXD_LIMITS__IN_FLIGHT_BYTES_MAX", "1MiB"),
        ("OUTBOXD_PORT", "tcp://10.0.0.1:9464"),
        ("PATH", "/bin"),
    ];
    let config = parse_with(&text, &env).unwrap();
    assert_eq!(config.source.mode, Mode::Polling);
    // The file's `url` yields to the environment's `url_file`.
    assert!(matches!(&config.source.url, UrlSource::File(path) if path.ends_with("url")));
    assert_eq!(config.source.polling.batch_rows, 17);
    assert_eq!(config.kafka.brokers, ["a:1", "b:2"]);
    assert!(config.kafka.topics.create);
    assert_eq!(config.kafka.properties["compression.type"], "zstd");
    assert_eq!(config.kafka.properties["ssl.key.password"], "00123456");
    assert_eq!(config.limits.in_flight_bytes_max, 1 << 20);
}

#[test]
fn a_wrong_variable_is_named_with_its_remedy() {
    for (name, value, expected) in [
        (
            "OUTBOXD_SOURCE__MOD",
            "polling",
            "error: environment variable OUTBOXD_SOURCE__MOD: unknown key `source.mod`; did you mean OUTBOXD_SOURCE__MODE?",
        ),
        (
            "OUTBOXD_SOURCE_URL_FILE",
            "/x",
            "error: environment variable OUTBOXD_SOURCE_URL_FILE: unknown key `source_url_file`; did you mean OUTBOXD_SOURCE__URL_FILE, with two underscores?",
        ),
        (
            "OUTBOXD_KAFKA__PROPERTIES__ACKS",
            "0",
            "error: environment variable OUTBOXD_KAFKA__PROPERTIES__ACKS: `kafka.properties.\"acks\"` = \"0\" would lose rows",
        ),
        (
            "OUTBOXD_TLS__CA",
            "/x",
            "error: environment variable OUTBOXD_TLS__CA: `tls.ca` is not there yet in this version; remove it",
        ),
        (
            "OUTBOXD_SOURCE__URL",
            "",
            "error: environment variable OUTBOXD_SOURCE__URL: `source.url` is empty; write",
        ),
    ] {
        let error = parse_with(GOOD, &[(name, value)]).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_file_that_is_missing_is_named_with_the_cause() {
    let error = Config::load(Path::new("/nowhere/o.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("error: cannot read `/nowhere/o.toml`\n  caused by: "),
        "{error}"
    );
}

#[test]
fn the_examples_are_accepted() {
    for (file, mode) in [("minimal", Mode::Replication), ("polling", Mode::Polling)] {
        let path = repository(&format!("config/{file}.toml"));
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(parse(&text).unwrap().source.mode, mode);
    }
}

#[test]
fn config_reference_is_fresh() {
    let path = repository("config/outboxd.toml");
    if std::env::var_os("OUTBOXD_BLESS").is_some() {
        std::fs::write(&path, reference_toml()).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let advice =
        "config/outboxd.toml is stale: OUTBOXD_BLESS=1 cargo test config_reference_is_fresh";
    assert!(text == reference_toml(), "{advice}");
}

#[test]
fn the_reference_holds_every_key_once_and_every_default() {
    // The reference with its required keys filled means the same as a file with nothing else.
    let mut text = reference_toml();
    for key in keys::KEYS {
        let (_, name) = key.path.rsplit_once('.').unwrap();
        let count = match key.preset {
            keys::Preset::Value(value) => text.matches(&format!("\n{name} = {value}\n")).count(),
            keys::Preset::Unset(example) => {
                text.matches(&format!("\n#{name} = {example}\n")).count()
            }
            keys::Preset::Table(example) => text
                .matches(&format!("\n[{}]\n#{example}\n", key.path))
                .count(),
        };
        assert_eq!(count, 1, "{}", key.path);
        assert!(
            !key.about.contains('\n') && key.about.len() < 120,
            "{}",
            key.path
        );
    }
    for required in ["url_file = ", "brokers = "] {
        text = text.replace(&format!("\n#{required}"), &format!("\n{required}"));
    }
    let fewest = "[source]\nurl_file = \"/run/secrets/orders-db-url\"\n[kafka]\nbrokers = [\"localhost:9092\"]\n";
    let shown = |text: &str| format!("{:?}", parse(text).unwrap());
    assert_eq!(shown(&text), shown(fewest));
}

#[test]
fn the_examples_of_unset_keys_are_accepted() {
    let mut text = reference_toml();
    for key in keys::KEYS.iter().filter(|key| key.path != "source.url") {
        let name = key.path.rsplit('.').next().unwrap();
        text = match key.preset {
            keys::Preset::Unset(_) => text.replace(&format!("\n#{name} ="), &format!("\n{name} =")),
            keys::Preset::Table(example) => {
                text.replace(&format!("\n#{example}"), &format!("\n{example}"))
            }
            keys::Preset::Value(_) => text,
        };
    }
    let config = parse(&text).unwrap();
    assert_eq!(config.source.start, Some(Start::All));
    assert_eq!(
        config.kafka.properties.len() + config.route.headers.len(),
        2
    );
}

#[test]
fn a_configuration_does_not_show_its_secrets() {
    let text = format!(
        "{}[kafka.properties]\n\"ssl.key.password\" = \"hunter2\"\n\"security.protocol\" = \"SSL\"\n",
        GOOD.replace("u:p@", "u:hunter2@")
    );
    let shown = format!("{:?}", parse(&text).unwrap());
    assert!(
        !shown.contains("hunter2") && shown.contains("ssl.key.password"),
        "{shown}"
    );
}

/// Files with a secret in many places, most of them wrong ones.
#[rustfmt::skip]
const LEAKY: &[&str] = &[
    "[source]\nurl = \"mysql://u:SECRET@h/d\"\n",
    "[source]\nurl = postgres://u:SECRET@h/d\n",
    "[source]\nurl = \"postgres://u:SECRET/x@h/d\"\n",
    "[source]\nurl = \"postgres://u:x/SECRET@h/d\"\n",
    "[source]\nurl = \"postgres://u:x@SECRET/y@h/d\"\n",
    "[source]\nurl = \"postgres://u:x?SECRET=y@h/d\"\n",
    "[source]\nurl = \"postgres://u:x@h/d?sslmode=SECRET\"\n",
    "[source]\nurl = \"jdbc:postgresql://h/d?user=u&password=SECRET\"\n",
    "[kafka.properties]\n\"sasl.jaas.config\" = \"SECRET\"\n",
    "[kafka.properties]\n\"linger.ms\" = \"SECRET\"\n",
    "[source]\nurl = SECRET\n",
    "[source]\nurl = \"postgres://u:SECRET@h/d\n",
    "[source]\nurl = 'postgres://u:SECRET@h/d\n",
    "[source]\nurl = \"postgres://u:\\SECRET@h/d\"\n",
    "[source]\nurl = [\"SECRET\"]\n",
    "[source]\nurl = { password = \"SECRET\" }\n",
    "[source.url]\npassword = \"SECRET\"\n",
    "[source]\nurl = \"postgres://u:SECRET@h\"\nurl = \"postgres://u:SECRET@h\"\n",
    "[source]\nurl \"postgres://u:SECRET@h/d\"\n",
    "[source]\nurl: SECRET\n",
    "[source]\npostgres://u:SECRET@h/d\n",
    "[source]\n\"postgres://u:SECRET@h/d\" = 1\n",
    "[source]\nmode.\"postgres://u:SECRET@h/d\" = 1\n",
    "[\"postgres://u:SECRET@h/d\"]\n",
    "[postgres://u:SECRET@h/d]\n",
    "[source]\npassword = \"SECRET\"\nurl = 1\n",
    "[source]\nurl_file = \"postgres://u:SECRET@h/d\"\n",
    "[source]\ntable = \"postgres://u:SECRET@h/d\"\n",
    "[source]\nmode = \"postgres://u:SECRET@h/d\"\n",
    "[kafka]\nbrokers = [\"SASL_SSL://u:SECRET@k:9092\"]\n",
    "[kafka]\nsasl.password = \"SECRET\"\n",
    "[kafka.properties]\n\"sasl.password\" = [\"SECRET\"]\n",
    "[kafka.properties]\n\"sasl.password\" = \"SECRET\n",
    "[kafka.properties]\n\"sasl.password\" = \"SECRET${file:/x}\"\n",
    "[kafka.properties]\n\"sasl.pasword\" = \"SECRET\"\n\"acks\" = 1\n",
    "[kafka.properties]\nsasl.password = SECRET\n",
    "[kafka.properties]\n\"ssl.key.pem\" = \"\"\"SECRET\n",
    "[admin]\nlisten = \"postgres://u:SECRET@h/d\"\n",
    "[route]\ntopic = \"postgres://u:SECRET@h/d\"\n",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn no_error_holds_a_secret(secret in "[a-z0-9]{4}[A-Za-z0-9]{8,12}", cut in 0..200usize) {
        let variables = ["OUTBOXD_SOURCE__URL", "OUTBOXD_KAFKA__PROPERTIES__SASL_PASSWORD", "OUTBOXD_SOURCE_URL", "OUTBOXD_SOURCE__PASSWORD"];
        for text in LEAKY {
            let text = text.replace("SECRET", &secret);
            let cut = text.char_indices().nth(cut).map_or(text.len(), |(at, _)| at);
            for text in [text.as_str(), &text[..cut]] {
                for variable in variables {
                    let env = [(variable.to_owned(), format!("mysql://u:{secret}@h"))];
                    if let Err(error) = Config::parse("o.toml", text, env) {
                        prop_assert!(!error.to_string().contains(&secret), "{error}\n{text}");
                        prop_assert!(!format!("{error:?}").contains(&secret), "{error:?}\n{text}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>(), line in "[\\[\\]{}=\"'a-z.\\\\\n0-9é ]{0,60}") {
        let _ = parse(&text);
        let _ = parse(&line);
    }
}
