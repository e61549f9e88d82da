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
    ("[route.headers]\ntype = \"outboxd_x\"", 6, "route.headers.type", &["which is reserved", "other than `id` and `outboxd_…`"]),
    ("[route]\nnull_key = \"skip\"", 6, "route.null_key", &["\"block\", \"publish\"", "write one of"]),
    ("[faults]\nafter_dead_letter = \"contineu\"", 6, "faults.after_dead_letter", &["did you mean \"continue\"?"]),
    ("[kafka.topics]\ncreate = \"yes\"", 6, "kafka.topics.create", &["is neither true nor false", "write one of them"]),
    ("[limits]\nin_flight_rows_max = \"10k\"", 6, "limits.in_flight_rows_max", &["is not a whole number", "such as 2000"]),
    ("[lease]\nttl = \"4\"", 6, "lease.ttl", &["has no unit", "write a text with a unit, such as \"100ms\", \"4s\" or \"7d\""]),
    ("[lease]\nttl = \"PT4S\"", 6, "lease.ttl", &["is not a duration", "write a text with a unit, such as \"100ms\", \"4s\" or \"7d\""]),
    ("[lease]\nttl = \"-4s\"", 6, "lease.ttl", &["is not a duration", "write a text with a unit, such as \"100ms\", \"4s\" or \"7d\""]),
    ("[lease]\nttl = 4000", 6, "lease.ttl", &["has no unit", "write a text with a unit, such as \"100ms\", \"4s\" or \"7d\""]),
    ("[lease]\nttl = true", 6, "lease.ttl", &["is not a duration", "write a text with a unit, such as \"100ms\", \"4s\" or \"7d\""]),
    ("[limits]\nin_flight_rows_max = -5", 6, "limits.in_flight_rows_max", &["is not a whole number of at least 1", "write one such as 2000, without quotes and unit"]),
    ("[limits]\nin_flight_rows_max = 1.5", 6, "limits.in_flight_rows_max", &["is not a whole number of at least 1", "write one such as 2000, without quotes and unit"]),
    ("[limits]\nin_flight_bytes_max = \"32M\"", 6, "limits.in_flight_bytes_max", &["is not a size above zero", "did you mean \"32MiB\"? write bytes such as 33554432, or a text with kB, MB, GB, KiB, MiB or GiB, such as \"32MiB\""]),
    ("[limits]\nin_flight_bytes_max = \"1.5GiB\"", 6, "limits.in_flight_bytes_max", &["is not a size above zero", "write bytes such as 33554432, or a text with kB, MB, GB, KiB, MiB or GiB, such as \"32MiB\""]),
    ("[limits]\nin_flight_bytes_max = \"32mib\"", 6, "limits.in_flight_bytes_max", &["is not a size above zero", "did you mean \"32MiB\"? write bytes such as 33554432, or a text with kB, MB, GB, KiB, MiB or GiB, such as \"32MiB\""]),
    ("[admin]\nlisten = \":9464\"", 6, "admin.listen", &["= \":9464\" is no address with a port", "write an IP address and a port, such as \"127.0.0.1:9464\" or \"0.0.0.0:9464\""]),
    ("[admin]\nlisten = \"http://0.0.0.0:9464\"", 6, "admin.listen", &["= (value not shown) is no address with a port", "write an IP address and a port, such as \"127.0.0.1:9464\" or \"0.0.0.0:9464\""]),
    ("[admin]\nlisten = \"0.0.0.0:99999\"", 6, "admin.listen", &["= \"0.0.0.0:99999\" is no address with a port", "write an IP address and a port, such as \"127.0.0.1:9464\" or \"0.0.0.0:9464\""]),
    ("[admin]\nlisten = \"*:9464\"", 6, "admin.listen", &["= \"*:9464\" is no address with a port", "write an IP address and a port, such as \"127.0.0.1:9464\" or \"0.0.0.0:9464\""]),
    ("[log]\nlevel = \"warning\"", 6, "log.level", &["= \"warning\" is no level", "did you mean \"warn\"? write error, warn, info, debug or trace, and module=level behind a comma for one module"]),
    ("[log]\nlevel = \"INFO\"", 6, "log.level", &["= \"INFO\" is no level", "did you mean \"info\"? write error, warn, info, debug or trace, and module=level behind a comma for one module"]),
    ("[log]\nformat = \"JSON\"", 6, "log.format", &["= \"JSON\" is none of \"human\", \"json\"", "did you mean \"json\"?"]),
    ("[log]\nlevel = \"info,outboxd::state::lease\"", 6, "log.level", &["= \"info,outboxd::state::lease\" is no level", "write error, warn, info, debug or trace, and module=level behind a comma for one module"]),
    ("[route]\ntopic = \"outbox.event.{aggregatetype}\"", 6, "route.topic", &["= \"outbox.event.{aggregatetype}\" holds '{', which no topic may", "use letters, digits, `.`, `_` and `-`, and columns as ${column}"]),
    ("[route]\ntopic = \"outbox.event.$aggregatetype\"", 6, "route.topic", &["= \"outbox.event.$aggregatetype\" holds '$', which no topic may", "use letters, digits, `.`, `_` and `-`, and columns as ${column}"]),
    ("[route]\ntopic = \"outbox.event.%s\"", 6, "route.topic", &["= \"outbox.event.%s\" holds '%', which no topic may", "use letters, digits, `.`, `_` and `-`, and columns as ${column}"]),
    ("[route]\ntopic = \"outbox event\"", 6, "route.topic", &["= \"outbox event\" holds ' ', which no topic may", "use letters, digits, `.`, `_` and `-`, and columns as ${column}"]),
    ("[route]\ntopic = \"outbox.event.${}\"", 6, "route.topic", &["= \"outbox.event.${}\" has a `${…}` that names no column", "write ${column} with the name of a column of the outbox table"]),
    ("[route]\ntopic = \"${aggregatetype | lower}\"", 6, "route.topic", &["= \"${aggregatetype | lower}\" has a `${…}` that names no column", "write ${column} with the name of a column of the outbox table"]),
    ("[route]\nallow = [\"outbox.event.#\"]", 6, "route.allow", &["holds \"outbox.event.#\", which matches no topic", "use letters, digits, `.`, `_`, `-`, and `*` for any text"]),
    ("[route]\nallow = \"^outbox.*$\"", 6, "route.allow", &["holds \"^outbox.*$\", which matches no topic", "use letters, digits, `.`, `_`, `-`, and `*` for any text"]),
    ("[route.headers]\ntype = \"id\"", 6, "route.headers.type", &["names the header \"id\", which is reserved", "choose a name other than `id` and `outboxd_…`"]),
    ("[route.headers]\ntype = \"\"", 6, "route.headers.type", &["names no header", "write the header's name, or remove it"]),
    ("[route.headers]\ntype = \"x\"\npayload = \"x\"", 6, "route.headers.type", &["gives its value the header \"x\", which `route.headers.payload` has", "name them apart"]),
    ("[route.headers]\ntype = [\"a\"]", 6, "route.headers.type", &["is not a text", "write it in double quotes"]),
    ("[route]\nheaders = [\"type\"]", 6, "route.headers", &["is a section and has no value", "write [route.headers] on a line of its own"]),
    ("[route.headers.type]\nname = \"x\"", 5, "route.headers.type", &["is a section and has to be a text", "write type = \"...\" in one line"]),
    ("[faults]\npolicy = \"dlq\"", 6, "faults.policy", &["= \"dlq\" is none of \"block\", \"dead_letter\", \"halt\"", "write one of \"block\", \"dead_letter\", \"halt\""]),
    ("[faults]\nhalt_share = \"50%\"", 6, "faults.halt_share", &["is not a share above 0 and up to 1", "write one such as 0.5"]),
    ("[faults]\nhalt_share = 50", 6, "faults.halt_share", &["is not a share above 0 and up to 1", "write one such as 0.5"]),
    ("[kafka.topics]\npartitions = \"six\"", 6, "kafka.topics.partitions", &["is neither -1 nor a whole number of at least 1", "write -1 for the broker's default"]),
    ("[kafka.topics]\nreplication_factor = -2", 6, "kafka.topics.replication_factor", &["is neither -1 nor a whole number of at least 1", "write -1 for the broker's default"]),
    ("[source.replication]\nslot = \"my-slot\"", 6, "source.replication.slot", &["= \"my-slot\" is no name that PostgreSQL allows for a slot", "write 1 to 63 lower-case letters, digits and underscores"]),
    ("[source.replication]\npublication = \"\"", 6, "source.replication.publication", &["is no name that PostgreSQL allows", "write 1 to 63 bytes, without double quotes around them"]),
    ("[source.replication]\ncatch_up = \"snapshot\"", 6, "source.replication.catch_up", &["= \"snapshot\" is none of \"stream\", \"table\"", "write one of \"stream\", \"table\""]),
    ("[source.replication]\nfailover = \"yes\"", 6, "source.replication.failover", &["is neither true nor false", "write one of them, without quotes"]),
    ("[kafka.properties]\n\"enable.idempotence\" = false", 6, "kafka.properties.\"enable.idempotence\"", &["= \"false\" would repeat and reorder rows whenever librdkafka sends a request again", "remove it: outboxd always uses an idempotent producer"]),
    ("[kafka.properties]\n\"bootstrap.servers\" = \"k:1\"", 6, "kafka.properties.\"bootstrap.servers\"", &["is set from `kafka.brokers`", "write the brokers there"]),
    ("[kafka.properties]\n\"auto.offset.reset\" = \"earliest\"", 6, "kafka.properties.\"auto.offset.reset\"", &["is a consumer's property, and outboxd only produces", "remove it"]),
    ("[kafka.properties]\n\"max.in.flight.requests.per.connection\" = 10", 6, "kafka.properties.\"max.in.flight.requests.per.connection\"", &["= \"10\" would reorder rows: brokers keep the order of at most 5 requests at a time", "remove it, or write a number from 1 to 5"]),
    ("[kafka.properties]\n\"client.id\" = [\"a\"]", 6, "kafka.properties.\"client.id\"", &["is not a single value", "write a text, as librdkafka's documentation gives it"]),
    ("[kafka.properties]\n\"linger.ms\" = \"5ms\"", 6, "kafka.properties.\"linger.ms\"", &["is no number, and librdkafka would drop what stands behind it", "write the number alone: its unit is in the property's name"]),
    ("[kafka.properties]\n\"sasl.password\" = \"${file:/nowhere/x}\"", 6, "kafka.properties.\"sasl.password\"", &["is ignored without `security.protocol`, and everything is sent in plain text", "add \"security.protocol\" = \"SASL_SSL\" under [kafka.properties]"]),
    ("[kafka.properties]\n\"sasl.password\" = \"${env:PASSWORD}\"", 6, "kafka.properties.\"sasl.password\"", &["holds a placeholder, and outboxd fills none in", "set the variable OUTBOXD_KAFKA__PROPERTIES__SASL_PASSWORD, or write a secret as \"${file:/run/secrets/…}\""]),
    ("[kafka.properties]\n\"sasl.password\" = \"${PASSWORD}\"", 6, "kafka.properties.\"sasl.password\"", &["holds a placeholder, and outboxd fills none in", "set the variable OUTBOXD_KAFKA__PROPERTIES__SASL_PASSWORD, or write a secret as \"${file:/run/secrets/…}\""]),
    ("[kafka.properties]\n\"client.id\" = \"${HOSTNAME}\"", 6, "kafka.properties.\"client.id\"", &["holds a placeholder, and outboxd fills none in", "set the variable OUTBOXD_KAFKA__PROPERTIES__CLIENT_ID, or write a secret as \"${file:/run/secrets/…}\""]),
];

/// Lines behind `GOOD` with a key that there is not: its line, its name, and what is said.
#[rustfmt::skip]
const UNKNOWN: &[(&str, usize, &str, &[&str])] = &[
    ("[source.columns]\nevent_id = \"id\"", 6, "source.columns.event_id", &["the other way round", "as in id = \"event_id\""]),
    ("[source.columns]\naggregate_type = \"kind\"", 6, "source.columns.aggregate_type", &["did you mean `source.columns.aggregatetype`?"]),
    ("[source.columns]\noccurredat = \"at\"", 6, "source.columns.occurredat", &["the names to map are id, aggregatetype", "sent_at"]),
    ("[source.column]\nid = \"a\"", 5, "source.column", &["did you mean `source.columns`?"]),
    ("[columns]\nid = \"a\"", 5, "columns", &["did you mean `source.columns`?"]),
    ("[admin]\nport = 9464", 6, "admin.port", &["[admin] has listen"]),
    ("[kafka.topics]\nauto_create = true", 6, "kafka.topics.auto_create", &["[kafka.topics] has create, partitions, replication_factor"]),
    ("[database]\nurl = \"x\"", 5, "database", &["it is a part of `source.url`: postgres://user:password@host:port/database?sslmode=…"]),
    ("[postgres]\nurl = \"x\"", 5, "postgres", &["the sections are source, route, kafka, limits, lease, shutdown, faults, admin, log"]),
    ("[lease]\nseconds = 4", 6, "lease.seconds", &["[lease] has ttl"]),
    ("[metrics]\nport = 1", 5, "metrics", &["the sections are source, route, kafka, limits, lease, shutdown, faults, admin, log"]),
    ("[outbox]\ntable = \"x\"", 5, "outbox", &["the sections are source, route, kafka, limits, lease, shutdown, faults, admin, log"]),
    ("[sink]\ntopic = \"x\"", 5, "sink", &["the sections are source, route, kafka, limits, lease, shutdown, faults, admin, log"]),
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
    ("OUTBOXD_SOURCE__URL", "${DATABASE_URL}", "source.url", &["holds a placeholder, and outboxd fills none in", "set the variable OUTBOXD_SOURCE__URL itself, or name a file in `source.url_file`"]),
    ("OUTBOXD_LEASE__TTL", "4", "lease.ttl", &["has no unit", "write a text with a unit, such as \"100ms\", \"4s\" or \"7d\""]),
    ("OUTBOXD_LIMITS__IN_FLIGHT_BYTES_MAX", "32M", "limits.in_flight_bytes_max", &["is not a size above zero", "did you mean \"32MiB\"? write bytes such as 33554432, or a text with kB, MB, GB, KiB, MiB or GiB, such as \"32MiB\""]),
    ("OUTBOXD_KAFKA__TOPICS__CREATE", "yes", "kafka.topics.create", &["is neither true nor false", "write one of them, without quotes"]),
    ("OUTBOXD_ADMIN__LISTEN", "9464", "admin.listen", &["= \"9464\" is no address with a port", "write an IP address and a port, such as \"127.0.0.1:9464\" or \"0.0.0.0:9464\""]),
    ("OUTBOXD_SOURCE__REPLICATION__SLOT", "My-Slot", "source.replication.slot", &["= \"My-Slot\" is no name that PostgreSQL allows for a slot", "write 1 to 63 lower-case letters, digits and underscores"]),
    ("OUTBOXD_ROUTE__HEADERS", "type", "route.headers", &["is a section and has no value", "set a variable for each of its keys, such as OUTBOXD_ROUTE__HEADERS__NAME"]),
    ("OUTBOXD_ROUTE__HEADERS__TYPE", "id", "route.headers.type", &["names the header \"id\", which is reserved", "choose a name other than `id` and `outboxd_…`"]),
    ("OUTBOXD_KAFKA__PROPERTIES__LINGER_MS", "5ms", "kafka.properties.\"linger.ms\"", &["is no number, and librdkafka would drop what stands behind it", "write the number alone: its unit is in the property's name"]),
    ("OUTBOXD_SOURCE__START", "latest", "source.start", &["= \"latest\" is none of \"all\", \"now\"", "write one of \"all\", \"now\""]),
    ("OUTBOXD_KAFKA__BROKERS", "http://k:9092", "kafka.brokers", &["holds a URL", "write host:port alone", "how the connection is secured says \"security.protocol\" under [kafka.properties]"]),
    ("OUTBOXD_KAFKA__BROKERS", "k:9092 l:9092", "kafka.brokers", &["holds \"k:9092 l:9092\", which is not host:port", "write the brokers as host:port, such as [\"kafka:9092\"]"]),
    ("OUTBOXD_SOURCE__URL_FILE", "postgres://u:hunter2@h/d", "source.url_file", &["is a URL and not a path", "write it to `source.url`, or to a file and name that"]),
];

/// Lines of `[source]` behind its `url`, which is line 2.
#[rustfmt::skip]
const SOURCE: &[(&str, usize, &str, &[&str])] = &[
    ("mode = \"cdc\"", 3, "source.mode", &["= \"cdc\" is none of \"replication\", \"polling\"", "write one of \"replication\", \"polling\""]),
    ("mark = \"sent\"", 3, "source.mark", &["= \"sent\" is none of \"ledger\", \"sent_at\", \"delete\", \"none\"", "write one of \"ledger\", \"sent_at\", \"delete\", \"none\""]),
    ("table = \"\"", 3, "source.table", &["= \"\" is not a table name", "write `schema.table`, with double quotes where SQL needs them, such as 'shop.\"Outbox\"'"]),
    ("table = \"\\\"outbox\"", 3, "source.table", &["= \"\\\"outbox\" has an opening quote without a closing one", "write `schema.table`, with double quotes where SQL needs them, such as 'shop.\"Outbox\"'"]),
    ("table = \"outbox;drop\"", 3, "source.table", &["= \"outbox;drop\" is not a table name", "write `schema.table`, with double quotes where SQL needs them, such as 'shop.\"Outbox\"'"]),
    ("table = \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"", 3, "source.table", &["= \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\" has a part longer than PostgreSQL's 63 bytes", "write `schema.table`, with double quotes where SQL needs them, such as 'shop.\"Outbox\"'"]),
    ("start = \"latest\"", 3, "source.start", &["= \"latest\" is none of \"all\", \"now\"", "write one of \"all\", \"now\""]),
    ("retention = \"7 days ago\"", 3, "source.retention", &["is not a duration", "write a text with a unit, such as \"100ms\", \"4s\" or \"7d\""]),
    ("order_column = \"\"", 3, "source.order_column", &["is no name that PostgreSQL allows", "write 1 to 63 bytes, without double quotes around them"]),
    ("mode = \"Replication\"", 3, "source.mode", &["= \"Replication\" is none of \"replication\", \"polling\"", "did you mean \"replication\"?"]),
    ("columns = \"id\"", 3, "source.columns", &["is a section and has no value", "write [source.columns] on a line of its own"]),
    ("polling = true", 3, "source.polling", &["is a section and has no value", "write [source.polling] on a line of its own"]),
];

/// The same with a key that there is not.
#[rustfmt::skip]
const SOURCE_UNKNOWN: &[(&str, usize, &str, &[&str])] = &[
    ("slot = \"x\"", 3, "source.slot", &["did you mean `source.replication.slot`?"]),
    ("brokers = [\"k:1\"]", 3, "source.brokers", &["did you mean `kafka.brokers`?"]),
    ("password = \"hunter2\"", 3, "source.password", &["it is a part of `source.url`: postgres://user:password@host:port/database?sslmode=…"]),
    ("schema = \"x\"", 3, "source.schema", &["[source] has url_file, url, mode, table, mark, start, order_column, retention, columns, polling, replication"]),
    ("topic = \"x\"", 3, "source.topic", &["did you mean `route.topic`?"]),
    ("urlfile = \"/x\"", 3, "source.urlfile", &["did you mean `source.url_file`?"]),
    ("sslmode = \"require\"", 3, "source.sslmode", &["it is a part of `source.url`: postgres://user:password@host:port/database?sslmode=…"]),
];

/// Variables that name no key.
#[rustfmt::skip]
const VARIABLES_UNKNOWN: &[(&str, &str, &str, &[&str])] = &[
    ("OUTBOXD_SOURCE__TABEL", "x", "source.tabel", &["did you mean OUTBOXD_SOURCE__TABLE?"]),
    ("OUTBOXD_SOURCE__COLUMNS__AGGREGATE_TYPE", "kind", "source.columns.aggregate_type", &["did you mean OUTBOXD_SOURCE__COLUMNS__AGGREGATETYPE?"]),
    ("OUTBOXD_KAFKA__BROKER", "k:1", "kafka.broker", &["did you mean OUTBOXD_KAFKA__BROKERS?"]),
];

/// Whole files, and what the answer begins with.
#[rustfmt::skip]
const FILES: &[(&str, &str, &[&str])] = &[
    ("[source]\nurl = \"postgres://u:p@h/d\"\n", "error: o.toml: `kafka.brokers`", &["is missing", "write the brokers as host:port, such as [\"kafka:9092\"]"]),
    ("[kafka]\nbrokers = [\"k:9092\"]\n", "error: o.toml: `source.url_file`", &["is missing", "name a file that holds postgres://user:password@host:port/database, or set `source.url`"]),
    ("[source]\nurl_file = \"\"\n[kafka]\nbrokers = [\"k:9092\"]\n", "error: o.toml:2: `source.url_file`", &["is empty", "name the file that holds the connection URL"]),
    ("[source]\nurl_file = \"postgres://u:hunter2@h/d\"\n[kafka]\nbrokers = [\"k:9092\"]\n", "error: o.toml:2: `source.url_file`", &["is a URL and not a path", "write it to `source.url`, or to a file and name that"]),
    ("[source]\nurl = \"$DATABASE_URL\"\n[kafka]\nbrokers = [\"k:9092\"]\n", "error: o.toml:2: `source.url`", &["is no PostgreSQL URL", "write postgres://user:password@host:port/database"]),
    ("[source]\nurl = \"postgres://u:${PGPASSWORD}@h/d\"\n[kafka]\nbrokers = [\"k:9092\"]\n", "error: o.toml:2: `source.url`", &["holds a placeholder, and outboxd fills none in", "set the variable OUTBOXD_SOURCE__URL itself, or name a file in `source.url_file`"]),
    ("[source]\nurl = \"postgres://u:p@h/d\"\n[kafka]\nbrokers = \"http://k:9092\"\n", "error: o.toml:4: `kafka.brokers`", &["holds a URL", "write host:port alone", "how the connection is secured says \"security.protocol\" under [kafka.properties]"]),
    ("[source]\nurl = \"postgres://u:p@h/d\"\n[kafka]\nbrokers = [\"PLAINTEXT://k:9092\"]\n", "error: o.toml:4: `kafka.brokers`", &["holds a URL", "write host:port alone", "how the connection is secured says \"security.protocol\" under [kafka.properties]"]),
    ("[source]\nurl = \"postgres://u:p@h/d\"\n[kafka]\nbrokers = [\"k\"]\n", "error: o.toml:4: `kafka.brokers`", &["holds \"k\", which is not host:port", "write the brokers as host:port, such as [\"kafka:9092\"]"]),
    ("[source]\nurl = \"postgres://u:p@h/d\"\n[kafka]\nbrokers = [\"u:hunter2@k:9092\"]\n", "error: o.toml:4: `kafka.brokers`", &["holds (value not shown), which is not host:port", "write the brokers as host:port, such as [\"kafka:9092\"]"]),
    ("[source]\nurl = \"postgres://u:p@h/d\"\n[kafka]\nbrokers = { host = \"k\" }\n", "error: o.toml:4: `kafka.brokers`", &["is not a list", "write [\"a\", \"b\"]"]),
    ("[source]\nurl = \"postgres://u:p@h/d\"\n[kafka]\nbrokers = [\"k:9092\"]\ntopic = \"x\"\n", "error: o.toml:5: unknown key `kafka.topic`", &["did you mean `route.topic`?"]),
    ("[source]\nurl = \"postgres://u:p@h/d\"\n[kafka]\nbrokers = [\"${KAFKA}\"]\n", "error: o.toml:4: `kafka.brokers`", &["holds \"${KAFKA}\", which is not host:port", "write the brokers as host:port, such as [\"kafka:9092\"]"]),
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
    let in_source = |lines: &str| GOOD.replace("[kafka]", &format!("{lines}\n[kafka]"));
    let source = SOURCE
        .iter()
        .map(|(lines, line, key, says)| file(in_source(lines), at(*line, key), *says));
    let unknown_in_source = SOURCE_UNKNOWN.iter().map(|(lines, line, key, says)| {
        let begins = format!("error: o.toml:{line}: unknown key `{key}`; ");
        file(in_source(lines), begins, *says)
    });
    let unknown_variables = VARIABLES_UNKNOWN
        .iter()
        .map(|(name, value, key, says)| Case {
            file: GOOD.to_owned(),
            env: vec![((*name).to_owned(), (*value).to_owned())],
            begins: format!("error: environment variable {name}: unknown key `{key}`; "),
            says,
        });
    let files = FILES
        .iter()
        .map(|(text, begins, says)| file((*text).to_owned(), (*begins).to_owned(), *says));
    urls.chain(properties)
        .chain(rest)
        .chain(unknown)
        .chain(variables)
        .chain(source)
        .chain(unknown_in_source)
        .chain(unknown_variables)
        .chain(files)
        .collect()
}

#[test]
fn each_is_answered_by_place_key_reason_and_remedy_and_no_secret() {
    let cases = cases();
    assert!(cases.len() >= 200, "{}", cases.len());
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
