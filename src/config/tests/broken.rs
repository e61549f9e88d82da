//! Broken configurations as people write them: each is answered by one line with its place, its key, what is wrong and what
//! is allowed or to be done, and without a secret.

use super::*;

/// In many of these files, and in no answer.
const SECRET: &str = "hunter2";

/// A file, variables, and what the one error begins with and says.
pub(crate) struct Case {
    pub file: String,
    pub env: Vec<(String, String)>,
    begins: String,
    says: &'static [&'static str],
}

const FORM: &str = "postgres://user:password@host:port/database";
const ENCODED: &[&str] = &[
    "the password holds characters that must be percent-encoded",
    "%40",
    "%2F",
    "%3F",
];
const MODES: &[&str] = &[
    "sslmode",
    "disable, allow, prefer, require, verify-ca or verify-full",
];
const PORT: &[&str] = &[
    "has a port that is no number from 1 to 65535",
    "host:port",
    "%3A",
];
const HOST: &[&str] = &[
    "names a host with a character that no host's name holds",
    "percent-encoded",
];

/// Values of `source.url`.
#[rustfmt::skip]
const URLS: &[(&str, &[&str])] = &[
    ("", &["is empty", FORM]),
    ("localhost:5432/orders", &["is no PostgreSQL URL", FORM]),
    ("mysql://u:hunter2@h/d", &["is no PostgreSQL URL", FORM]),
    ("jdbc:postgresql://h/d?user=u&password=hunter2", &["is one of JDBC", "leave out `jdbc:`", FORM]),
    ("postgresql+asyncpg://u:hunter2@h/d", &["names a driver", "leave it out"]),
    ("Postgres://u:hunter2@h/d", &["begins with capitals", "postgres:// in small letters"]),
    ("'postgres://u:hunter2@h/d'", &["stands in quotes", "without them"]),
    ("host=h dbname=d password=hunter2", &["is a list of keywords", FORM]),
    ("postgres://u:hunter2/x@h/d", ENCODED),
    ("postgres://u:x/hunter2@h/d", ENCODED),
    ("postgres://u:a@hunter2/b@h/d", ENCODED),
    ("postgres://u:a@b/hunter2@h:5432/d?sslmode=require", ENCODED),
    ("postgres://u:hunter2?x@h/d", ENCODED),
    ("postgres://u:1?hunter2=b@h/d", ENCODED),
    ("postgres://u:a@hunter2?b@h/d", ENCODED),
    ("postgres://u:hunter2%@h/d", &["holds a `%`", "write %25"]),
    ("postgres://u:hunter2%zz@h/d", &["holds a `%`", "write %25"]),
    ("postgres://u:hunter2%ff@h/d", &["is not UTF-8", "%C3%A9"]),
    ("postgres://u:hunter2%00@h/d", &["holds a zero byte", "remove %00"]),
    ("postgres://u:hunter2@h/d\\nx", &["holds a line break", "in one line"]),
    ("postgres://h/d", &["names no user", FORM]),
    ("postgres://:hunter2@h/d", &["names no user", FORM]),
    ("postgres://u:hunter2@/d", &["names no host", FORM]),
    ("postgres://u:hunter2@:5432/d", &["names no host", FORM]),
    ("postgres://u:hunter2@h:port/d", PORT),
    ("postgres://u:hunter2@h:99999/d", PORT),
    ("postgres://u:hunter2@h:0/d", PORT),
    ("postgres://u:hunter2@::1/d", PORT),
    ("postgres://u:hunter2@my host/d", HOST),
    ("postgres://u@hunter2%40h/d", HOST),
    ("postgres://u:hunter2@h;x/d", HOST),
    ("postgres://u:hunter2@h1,h2/d?port=1,2,3", &["another number of ports than of hosts", "one port for all"]),
    ("postgres://u@h/d?sslmode=verify_full", MODES),
    ("postgres://u@h/d?sslmode=hunter2", MODES),
    ("postgres://u@h/d?sslmode=", MODES),
    ("postgres://u@h/d?sslmode=verify-full", &["has `sslmode=verify-full` without `sslrootcert`", "write sslrootcert="]),
    ("postgres://u@h/d?sslrootcert=system&sslmode=require", &["has `sslrootcert=system`", "write sslmode=verify-full"]),
    ("postgres://u@h/d?sslcert=/c.pem", &["has one of `sslcert` and `sslkey`", "its key's in sslkey"]),
    ("postgres://u@h/d?channel_binding=hunter2", &["`channel_binding`", "disable, prefer or require"]),
    ("postgres://u@h/d?target_session_attrs=standby", &["`target_session_attrs`", "read-write, primary or any"]),
    ("postgres://u@h/d?connect_timeout=hunter2", &["`connect_timeout`", "number of seconds"]),
    ("postgres://u@h/d?connect_timeout=0", &["`connect_timeout`", "connect_timeout=5"]),
    ("postgres://u@h/d?sslmod=require", &["has a parameter `sslmod`", "did you mean `sslmode`?"]),
    ("postgres://u@h/d?pasword=hunter2", &["has a parameter `pasword`", "did you mean `password`?"]),
    ("postgres://u@h/d?ssl=true", &["has a parameter `ssl`", "write sslmode=require"]),
    ("postgres://u@h/d?schema=shop", &["has a parameter `schema`", "source.table"]),
    ("postgres://u@h/d?options=x", &["has a parameter `options`", "ALTER ROLE"]),
    ("postgres://u@h/d?sslpassword=hunter2", &["has a parameter `sslpassword`", "passphrase"]),
    ("postgres://u@h/d?service=orders", &["has a parameter `service`", "no file of libpq's"]),
    ("postgres://u@h/d?colour=red", &["has a parameter `colour`", "known are host, port, user"]),
    ("postgres://u:hunter2@k:9092/d", &["names k:9092, which `kafka.brokers` names too", "usually 5432"]),
];

/// Lines below `[kafka.properties]`, which are lines 6 and 7; which of them, and what is said of which property.
#[rustfmt::skip]
const PROPERTIES: &[(&str, usize, &str, &[&str])] = &[
    ("\"security.protocol\" = \"TLS\"", 6, "security.protocol", &["is called SSL here", "PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"]),
    ("\"security.protocol\" = \"SASL\"", 6, "security.protocol", &["= \"SASL\" is not known", "PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"]),
    ("\"security.protocol\" = \"sasl-ssl\"", 6, "security.protocol", &["did you mean \"SASL_SSL\"?", "PLAINTEXT"]),
    ("\"sasl.mechanism\" = \"GSSAPI\"", 6, "sasl.mechanism", &["is Kerberos, which is not built in", "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER"]),
    ("\"sasl.mechanism\" = \"AWS_MSK_IAM\"", 6, "sasl.mechanism", &["is not built in", "SCRAM-SHA-512", "OAUTHBEARER"]),
    ("\"sasl.mechanisms\" = \"scram-sha-256\"", 6, "sasl.mechanisms", &["did you mean \"SCRAM-SHA-256\"?"]),
    ("\"sasl.mechanism\" = \"PLAIN\"", 6, "sasl.mechanism", &["is ignored without `security.protocol`", "in plain text", "add \"security.protocol\" = \"SASL_SSL\""]),
    ("\"sasl.username\" = \"u\"\n\"sasl.password\" = \"hunter2\"", 7, "sasl.password", &["is ignored without `security.protocol`", "add \"security.protocol\" = \"SASL_SSL\""]),
    ("\"ssl.ca.location\" = \"/ca.pem\"", 6, "ssl.ca.location", &["is ignored without `security.protocol`", "add \"security.protocol\" = \"SSL\""]),
    ("\"enable.ssl.certificate.verification\" = false", 6, "enable.ssl.certificate.verification", &["is ignored without", "add \"security.protocol\" = \"SSL\""]),
    ("\"security.protocol\" = \"plaintext\"\n\"sasl.password\" = \"hunter2\"", 7, "sasl.password", &["is ignored with", "PLAINTEXT", "write SASL_SSL"]),
    ("\"security.protocol\" = \"SSL\"\n\"sasl.username\" = \"u\"", 7, "sasl.username", &["is ignored with", "write SASL_SSL"]),
    ("\"security.protocol\" = \"PLAINTEXT\"\n\"ssl.key.password\" = \"hunter2\"", 7, "ssl.key.password", &["is ignored with", "SSL for TLS alone"]),
    ("\"security.protocol\" = \"SASL_SSL\"", 6, "security.protocol", &["asks for a login", "\"sasl.mechanism\" is missing", "PLAIN, SCRAM-SHA-256"]),
    ("\"security.protocol\" = \"SASL_SSL\"\n\"sasl.mechanism\" = \"PLAIN\"", 7, "sasl.mechanism", &["needs \"sasl.username\", which is missing", "add \"sasl.username\""]),
    ("\"security.protocol\" = \"SASL_SSL\"\nsasl = { mechanism = \"PLAIN\", username = \"u\" }", 7, "sasl.mechanism", &["needs \"sasl.password\"", "${file:/run/secrets/kafka-password}"]),
    ("\"security.protocol\" = \"SASL_SSL\"\n\"sasl.mechanism\" = \"OAUTHBEARER\"", 7, "sasl.mechanism", &["needs \"sasl.oauthbearer.method\"", "oidc"]),
    ("\"sasl.oauthbearer.method\" = \"default\"", 6, "sasl.oauthbearer.method", &["makes no token", "write one of oidc"]),
    ("\"sasl.kerberos.service.name\" = \"kafka\"", 6, "sasl.kerberos.service.name", &["is Kerberos's, which is not built in", "PLAIN"]),
    ("\"ssl.truststore.location\" = \"/t.jks\"", 6, "ssl.truststore.location", &["is a property of Java clients", "write \"ssl.ca.location\" with a PEM file"]),
    ("\"ssl.truststore.password\" = \"hunter2\"", 6, "ssl.truststore.password", &["is a property of Java clients", "ssl.ca.location"]),
    ("\"sasl.jaas.config\" = \"hunter2\"", 6, "sasl.jaas.config", &["is a property of Java clients", "\"sasl.username\" and \"sasl.password\""]),
    ("\"key.serializer\" = \"S\"", 6, "key.serializer", &["is a property of Java clients", "remove it"]),
    ("\"buffer.memory\" = 33554432", 6, "buffer.memory", &["is a property of Java clients", "limits.in_flight_bytes_max"]),
    ("\"max.request.size\" = 1048576", 6, "max.request.size", &["is a property of Java clients", "write \"message.max.bytes\""]),
    ("\"ssl.keystore.type\" = \"PEM\"", 6, "ssl.keystore.type", &["is a property of Java clients", "ssl.certificate.location"]),
    ("\"interceptor.classes\" = \"x\"", 6, "interceptor.classes", &["is a property of Java clients", "admin.listen"]),
    ("\"sasl.client.callback.handler.class\" = \"x\"", 6, "sasl.client.callback.handler.class", &["is a property of Java clients", "SCRAM-SHA-512"]),
    ("\"schema.registry.url\" = \"http://u:hunter2@r\"", 6, "schema.registry.url", &["is a property of Java clients", "without a schema registry"]),
    ("\"ssl.ca.loction\" = \"/ca.pem\"", 6, "ssl.ca.loction", &["is not known to librdkafka", "did you mean \"ssl.ca.location\"?"]),
    ("\"sasl.pasword\" = \"hunter2\"", 6, "sasl.pasword", &["is not known to librdkafka", "did you mean \"sasl.password\"?"]),
    ("\"compresion.type\" = \"zstd\"", 6, "compresion.type", &["is not known to librdkafka", "did you mean \"compression.type\"?"]),
    ("\"nonsense\" = \"hunter2\"", 6, "nonsense", &["is not known to librdkafka", "CONFIGURATION.md"]),
    ("\"compression.type\" = \"brotli\"", 6, "compression.type", &["= \"brotli\" is not known", "none, gzip, snappy, lz4, zstd"]),
    ("\"compression.codec\" = \"ztsd\"", 6, "compression.codec", &["did you mean \"zstd\"?", "gzip"]),
    ("\"linger.ms\" = 1000000", 6, "linger.ms", &["is out of range", "a number from 0 to 900000"]),
    ("\"message.max.bytes\" = 10", 6, "message.max.bytes", &["is out of range", "a number from 1000 to 1000000000"]),
    ("\"socket.timeout.ms\" = \"hunter2\"", 6, "socket.timeout.ms", &["has a value that librdkafka does not take", "CONFIGURATION.md"]),
    ("\"socket.keepalive.enable\" = \"hunter2\"", 6, "socket.keepalive.enable", &["is neither true nor false", "write one of them"]),
    ("\"ssl.endpoint.identification.algorithm\" = \"\"", 6, "ssl.endpoint.identification.algorithm", &["what Java calls none", "https, none"]),
    ("\"broker.address.family\" = \"ipv4\"", 6, "broker.address.family", &["is called v4 here", "any, v4, v6"]),
];

/// Lines behind `GOOD`: the line that is wrong, its key, and what is said.
#[rustfmt::skip]
const REST: &[(&str, usize, &str, &[&str])] = &[
    ("[source.columns]\nid = \"\"", 6, "source.columns.id", &["is no name that PostgreSQL allows", "write 1 to 63 bytes"]),
    ("[source.columns]\nid = 7", 6, "source.columns.id", &["is not a text", "in double quotes"]),
    ("[source.columns]\nid = \"a\"\npayload = \"a\"", 7, "source.columns.payload", &["= \"a\" is the column that", "`source.columns.id` names too (o.toml:6)", "remove one of the two"]),
    ("[source.columns]\nid = { name = \"a\" }", 6, "source.columns.id", &["is a section and has to be a text", "= \"...\""]),
    ("[source.columns.id]\nname = \"a\"", 5, "source.columns.id", &["is a section and has to be a text", "= \"...\""]),
    ("[route.headers]\ntype = \"outboxd_x\"", 5, "route.headers", &["which is reserved", "other than `id` and `outboxd_…`"]),
    ("[route]\nnull_key = \"skip\"", 6, "route.null_key", &["\"block\", \"publish\"", "write one of"]),
    ("[faults]\nafter_dead_letter = \"contineu\"", 6, "faults.after_dead_letter", &["did you mean \"continue\"?"]),
    ("[kafka.topics]\ncreate = \"yes\"", 6, "kafka.topics.create", &["is neither true nor false", "write one of them"]),
    ("[limits]\nin_flight_rows_max = \"10k\"", 6, "limits.in_flight_rows_max", &["is not a whole number", "such as 2000"]),
];

/// Lines behind `GOOD` with a key that there is not: its line, its name, and what is said.
#[rustfmt::skip]
const UNKNOWN: &[(&str, usize, &str, &[&str])] = &[
    ("[source.columns]\nevent_id = \"id\"", 6, "source.columns.event_id", &["the other way round", "as in id = \"event_id\""]),
    ("[source.columns]\naggregate_type = \"kind\"", 6, "source.columns.aggregate_type", &["did you mean `source.columns.aggregatetype`?"]),
    ("[source.columns]\noccurredat = \"at\"", 6, "source.columns.occurredat", &["the names to map are id, aggregatetype", "sent_at"]),
    ("[source.column]\nid = \"a\"", 5, "source.column", &["did you mean `source.columns`?"]),
    ("[columns]\nid = \"a\"", 5, "columns", &["did you mean `source.columns`?"]),
];

/// Variables over `GOOD`, and what is said of which key.
#[rustfmt::skip]
const VARIABLES: &[(&str, &str, &str, &[&str])] = &[
    ("OUTBOXD_SOURCE__URL", "postgres://u:hunter2/x@h/d", "source.url", ENCODED),
    ("OUTBOXD_SOURCE__URL", "postgres://u:hunter2@h/d?sslmode=on", "source.url", MODES),
    ("OUTBOXD_SOURCE__COLUMNS__ID", "", "source.columns.id", &["is no name that PostgreSQL allows", "write 1 to 63 bytes"]),
    ("OUTBOXD_SOURCE__MODE", "poling", "source.mode", &["did you mean \"polling\"?"]),
    ("OUTBOXD_KAFKA__BROKERS", "k", "kafka.brokers", &["holds \"k\", which is not host:port", "write the brokers as host:port"]),
    ("OUTBOXD_KAFKA__BROKERS", "[\"k:9092\", 7]", "kafka.brokers", &["holds what is not a text", "write a,b or [\"a\", \"b\"]"]),
    ("OUTBOXD_KAFKA__BROKERS", "[k:9092, l:9092]", "kafka.brokers", &["is not a list in brackets", "write a,b or [\"a\", \"b\"]"]),
    ("OUTBOXD_KAFKA__BROKERS", "[\"k:9092\"", "kafka.brokers", &["is not a list in brackets", "write a,b or [\"a\", \"b\"]"]),
    ("OUTBOXD_KAFKA__BROKERS", "k:9092,,l:9092", "kafka.brokers", &["holds \"\", which is not host:port", "write the brokers as host:port"]),
    ("OUTBOXD_KAFKA__BROKERS", "k:9092;l:9092", "kafka.brokers", &["holds \"k:9092;l:9092\", which is not host:port", "[\"kafka:9092\"]"]),
    ("OUTBOXD_KAFKA__BROKERS", " ", "kafka.brokers", &["is empty", "write the brokers as host:port"]),
    ("OUTBOXD_ROUTE__ALLOW", "[]", "route.allow", &["no row could be published", "write patterns"]),
    ("OUTBOXD_ROUTE__ALLOW", "[\"outbox.event.*\", \"a b\"]", "route.allow", &["holds \"a b\", which matches no topic", "`*` for any text"]),
    ("OUTBOXD_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "tls", "kafka.properties.\"security.protocol\"", &["is called SSL here", "SASL_SSL"]),
    ("OUTBOXD_KAFKA__PROPERTIES__SASL_PASSWORD", "hunter2", "kafka.properties.\"sasl.password\"", &["is ignored without", "add \"security.protocol\""]),
    ("OUTBOXD_KAFKA__PROPERTIES__SASL_MECHANISM", "GSSAPI", "kafka.properties.\"sasl.mechanism\"", &["is not built in", "PLAIN"]),
    ("OUTBOXD_LIMITS__IN_FLIGHT_ROWS_MAX", "many", "limits.in_flight_rows_max", &["is not a whole number", "such as 2000"]),
];

pub(crate) fn cases() -> Vec<Case> {
    let at = |line: usize, key: &str| format!("error: o.toml:{line}: `{key}` ");
    let file = |file: String, begins: String, says| Case {
        file,
        env: Vec::new(),
        begins,
        says,
    };
    let urls = URLS.iter().map(|(url, says)| {
        let text = GOOD
            .replace("postgres://u:p@h/d", url)
            .replace("\\\\n", "\\n");
        file(text, at(2, "source.url"), *says)
    });
    let properties = PROPERTIES.iter().map(|(lines, line, name, says)| {
        let text = format!("{GOOD}[kafka.properties]\n{lines}\n");
        file(
            text,
            at(*line, &format!("kafka.properties.\"{name}\"")),
            *says,
        )
    });
    let rest = REST
        .iter()
        .map(|(lines, line, key, says)| file(format!("{GOOD}{lines}\n"), at(*line, key), *says));
    let unknown = UNKNOWN.iter().map(|(lines, line, key, says)| {
        let begins = format!("error: o.toml:{line}: unknown key `{key}`; ");
        file(format!("{GOOD}{lines}\n"), begins, *says)
    });
    let variables = VARIABLES.iter().map(|(name, value, key, says)| Case {
        file: GOOD.to_owned(),
        env: vec![((*name).to_owned(), (*value).to_owned())],
        begins: format!("error: environment variable {name}: `{key}` "),
        says,
    });
    urls.chain(properties)
        .chain(rest)
        .chain(unknown)
        .chain(variables)
        .collect()
}

#[test]
fn each_is_answered_by_place_key_reason_and_remedy_and_no_secret() {
    let cases = cases();
    assert!(cases.len() >= 100, "{}", cases.len());
    for Case {
        file,
        env,
        begins,
        says,
    } in cases
    {
        let parsed = Config::parse("o.toml", &file, env.clone());
        let error = match parsed {
            Ok(_) => panic!("accepted: {file}{env:?}"),
            Err(error) => error.to_string(),
        };
        assert!(error.starts_with(&begins), "{error}\n  expected {begins}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(
            error.contains("; "),
            "what is to be done is missing: {error}"
        );
        for part in says {
            assert!(error.contains(part), "`{part}` is not in {error}");
        }
        assert!(!error.contains(SECRET), "{error}");
    }
}

#[test]
fn the_file_of_a_url_is_read_and_named_with_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let (file, url) = (folder.path().join("o.toml"), folder.path().join("url"));
    let text = format!(
        "[source]\nurl_file = \"{}\"\n[kafka]\nbrokers = [\"k:9092\"]\n",
        url.display()
    );
    std::fs::write(&file, text).unwrap();
    let begins = format!("error: {}:2: `source.url_file` names ", file.display());
    let error = || Config::load(&file).unwrap_err().to_string();
    let missing = error();
    assert!(
        missing.starts_with(&begins) && missing.contains("can't be read (No such file"),
        "{missing}"
    );
    assert!(Config::load_unconnected(&file).is_ok());
    for (content, says) in [
        ("", &["which is empty", FORM][..]),
        ("\n", &["which is empty", FORM]),
        ("orders-db\n", &["whose URL is no PostgreSQL URL", FORM]),
        ("postgres://u:hunter2/x@h/d\n", ENCODED),
        (
            "postgres://u:hunter2@h/d\npostgres://u:hunter2@h2/d\n",
            &["holds a line break", "in one line"],
        ),
        (
            "\"postgres://u:hunter2@h/d\"\n",
            &["stands in quotes", "without them"],
        ),
        ("postgres://u:hunter2@h/d?sslmode=yes", MODES),
        (
            "DATABASE_URL=postgres://u:hunter2@h/d",
            &["is no PostgreSQL URL", FORM],
        ),
        (
            "postgres://u:hunter2@k:9092/d",
            &["`kafka.brokers` names too"],
        ),
    ] {
        std::fs::write(&url, content).unwrap();
        let error = error();
        assert!(error.starts_with(&begins[..begins.len() - 6]), "{error}");
        for part in says {
            assert!(error.contains(part), "`{part}` is not in {error}");
        }
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(!error.contains(SECRET), "{error}");
    }
    std::fs::write(&url, "postgres://u:hunter2@h/d\n").unwrap();
    assert!(Config::load(&file).is_ok());
}
