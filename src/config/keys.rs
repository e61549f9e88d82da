//! The table of keys: every key, its default and its meaning, in the order of the reference file.
//!
//! The only place that holds a default. Drives the reference file, the defaults, the search for unknown keys
//! and what "not there yet" answers.

use std::fmt::Write;

/// One key.
pub(super) struct Key {
    pub path: &'static str,
    pub preset: Preset,
    pub about: &'static str,
}

/// What a key holds when nobody sets it; TOML.
pub(super) enum Preset {
    Value(&'static str),
    /// Nothing; an example for the reference file.
    Unset(&'static str),
    /// An empty table with free names; an example entry.
    Table(&'static str),
}

const fn key(path: &'static str, preset: Preset, about: &'static str) -> Key {
    Key {
        path,
        preset,
        about,
    }
}

use Preset::{Table, Unset, Value};

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("source.url_file", Unset(r#""/run/secrets/orders-db-url""#), "File that holds the connection URL, read again at each connect. Required: this or `url`."),
    key("source.url", Unset(r#""postgres://outboxd:password@localhost:5432/orders""#), "The connection URL itself; for trying, a file keeps the password out of here."),
    key("source.mode", Value(r#""replication""#), "How rows are read: \"replication\" (a slot, commit order, lowest latency) or \"polling\" (SQL only)."),
    key("source.table", Value(r#""public.outbox""#), "The outbox table, `schema.table` as in SQL: names that need double quotes have them here too."),
    key("source.mark", Value(r#""ledger""#), "How a row is marked as sent: \"ledger\" (ranges in a table of ours), \"sent_at\", \"delete\" or \"none\"."),
    key("source.start", Unset(r#""all""#), "What happens to rows older than the relay: \"all\" or \"now\" (skip them); required only where the table already has rows."),
    key("source.order_column", Unset(r#""created_at""#), "Orders rows where `seq` does not, with \"sent_at\" or \"delete\": for polling and for what stands before a slot."),
    key("source.retention", Value(r#""none""#), "How long rows are kept before those that were sent are removed, such as \"7d\"; \"none\": the relay removes none."),
    key("source.columns", Table(r#"id = "event_id""#), "Columns that have other names: the name that outboxd expects = \"the table's\". `outboxd check` proposes them."),
    key("source.polling.interval", Value(r#""100ms""#), "Pause after a read that found less than a full batch."),
    key("source.polling.batch_rows", Value("2000"), "Rows read at once."),
    key("source.replication.slot", Unset(r#""outboxd_shop__public__outbox""#), "The replication slot; default: the one that the state knows, else `outboxd_`, database, schema and table in [a-z0-9_]."),
    key("source.replication.publication", Unset(r#""outboxd_shop__public__outbox""#), "The publication; default: as the slot's."),
    key("source.replication.wal_budget", Value(r#""10GiB""#), "WAL that the slot may keep on the server: alarms at 50 and 80 % of it, or of a smaller `max_slot_wal_keep_size`."),
    key("source.replication.on_lost_slot", Unset(r#""repair""#), "A slot gone or invalid: \"repair\" (a new one, the table is read; default with a mark) or \"halt\"."),
    key("source.replication.failover", Value("true"), "Make the slot one that standbys keep, on PostgreSQL 17 and newer."),
    key("source.replication.sweep", Value(r#""60s""#), "How often the table is searched for rows that the stream missed; at least 1s."),
    key("source.replication.catch_up", Value(r#""stream""#), "Where a lag above 64 MiB is read: \"stream\" (slot, commit order) or \"table\" (faster, polling's order, ledger only)."),
    key("route.topic", Value(r#""outbox.event.${aggregatetype}""#), "The topic of a row: text, and columns as ${column}."),
    key("route.allow", Value(r#"["outbox.event.*"]"#), "Topics that a row may reach, `*` for any text; a row for any other topic is rejected."),
    key("route.null_key", Value(r#""block""#), "A row whose aggregate id is NULL: \"block\" (it is rejected) or \"publish\" (without a key, in no order)."),
    key("route.headers", Table(r#"type = "eventType""#), "Further columns sent as headers: column = \"header name\"."),
    key("kafka.brokers", Unset(r#"["localhost:9092"]"#), "The first brokers to ask, host:port. Required."),
    key("kafka.allow_partitioner", Value("false"), "Accept any `partitioner` below, although keys then reach other partitions than a Java producer's."),
    key("kafka.properties", Table(r#""compression.type" = "zstd""#), "Properties of librdkafka by name; what would break a guarantee is refused. Passwords: \"${file:/run/secrets/…}\"."),
    key("kafka.topics.create", Value("false"), "Create a missing topic; else its rows wait, and the command that creates it is printed."),
    key("kafka.topics.partitions", Value("-1"), "Partitions of a created topic; -1: the broker's default."),
    key("kafka.topics.replication_factor", Value("-1"), "Replicas of a created topic; -1: the broker's default."),
    key("limits.in_flight_rows_max", Value("10000"), "Rows read and not yet marked; bounds memory, and duplicates after a crash."),
    key("limits.in_flight_bytes_max", Value(r#""32MiB""#), "The same in bytes, as a number or with a unit."),
    key("lease.ttl", Value(r#""4s""#), "A standby takes over after the relay was silent this long; at least 2s."),
    key("shutdown.grace", Value(r#""10s""#), "After SIGTERM, how long rows in flight are waited for."),
    key("faults.policy", Value(r#""block""#), "A row that can't be published: \"block\" (its aggregate waits, all others flow), \"dead_letter\" or \"halt\"."),
    key("faults.after_dead_letter", Value(r#""follow""#), "What comes after a dead letter in its aggregate: \"follow\" (it becomes one too) or \"continue\" (it is published)."),
    key("faults.halt_share", Value("0.5"), "Halt when this share of the aggregates seen in a minute have a rejected row, and at least 100 do: an outage."),
    key("admin.listen", Value(r#""127.0.0.1:9464""#), "Address of /metrics, /livez, /readyz and /status; in a container 0.0.0.0:9464."),
    key("log.format", Value(r#""human""#), "\"human\" or \"json\"."),
    key("log.level", Value(r#""info""#), "error, warn, info, debug or trace; for one module as in \"info,outboxd::publish=debug\"."),
];

/// Keys and sections that later versions bring, and what holds until then.
pub(super) const LATER: &[(&str, &str)] = &[
    (
        "schema_registry",
        "payloads are sent as they are, without a schema registry",
    ),
    ("replay", "rows can't be published a second time yet"),
    (
        "tls",
        "TLS to Kafka is set in kafka.properties (`security.protocol`, `ssl.ca.location`)",
    ),
];

/// What a path names.
pub(super) enum PathMeaning {
    Key(&'static Key),
    /// A name in a table with free names.
    Name,
    Section,
    /// Below a key, which is no section.
    BelowKey(&'static Key),
    Later(&'static str),
    Unknown,
}

/// Looks a path up.
pub(super) fn place(path: &[String]) -> PathMeaning {
    let joined = path.join(".");
    if let Some(key) = KEYS.iter().find(|key| key.path == joined) {
        return PathMeaning::Key(key);
    }
    if KEYS.iter().any(|key| is_below(key.path, &joined)) {
        return PathMeaning::Section;
    }
    let parent = KEYS.iter().find(|key| is_below(&joined, key.path));
    if let Some(key) = parent {
        let depth = key.path.split('.').count();
        return match key.preset {
            Preset::Table(_) if path.len() == depth + 1 => PathMeaning::Name,
            _ => PathMeaning::BelowKey(key),
        };
    }
    let is_later = |later: &str| joined == later || is_below(&joined, later);
    let later = LATER.iter().find(|(later, _)| is_later(later));
    later.map_or(PathMeaning::Unknown, |(_, reason)| {
        PathMeaning::Later(reason)
    })
}

fn is_below(path: &str, section: &str) -> bool {
    let rest = path.strip_prefix(section);
    rest.is_some_and(|rest| rest.starts_with('.'))
}

/// Every key, in order.
pub(super) fn paths() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.path)
}

/// The keys and sections that stand right in a section, or in the file as a whole.
pub(super) fn names_in(section: &str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for path in paths() {
        let rest = match section {
            "" => Some(path),
            section => path
                .strip_prefix(section)
                .and_then(|rest| rest.strip_prefix('.')),
        };
        let name = rest.and_then(|rest| rest.split('.').next());
        if let Some(name) = name.filter(|name| !names.contains(name)) {
            names.push(name);
        }
    }
    names
}

/// The key or section that somebody meant who wrote `key`.
///
/// The same last name in another section wins, then the nearest spelling, if it is near.
pub(super) fn meant(key: &str) -> Option<&'static str> {
    let last = |path: &str| path.rsplit('.').next().map(str::to_owned);
    let moved = paths().find(|path| last(path) == last(key));
    if moved.is_some() {
        return moved;
    }
    let distance = |path: &&str| strsim::damerau_levenshtein(path, key);
    let nearest = names().min_by_key(distance)?;
    let near = (nearest.len() / 4).clamp(1, 3);
    (distance(&nearest) <= near).then_some(nearest)
}

/// Every key and every section.
fn names() -> impl Iterator<Item = &'static str> {
    let sections = |path: &'static str| path.match_indices('.').map(|(end, _)| &path[..end]);
    paths().chain(paths().flat_map(sections))
}

/// Writes the reference file: every setting with its default and one line of explanation.
pub(crate) fn reference_toml() -> String {
    let mut text = String::from(
        "# Every setting of outboxd with its default. What has no default stands behind `#`.\n\
         # Read by --config FILE, else by the name in OUTBOXD_CONFIG, else as /etc/outboxd/outboxd.toml.\n\
         # A variable such as OUTBOXD_SOURCE__MODE goes over `source.mode` in this file.\n\
         # In a variable a list has commas or brackets: OUTBOXD_KAFKA__BROKERS=k1:9092,k2:9092, or ='[\"k1:9092\", \"k2:9092\"]'.\n\
         # Durations are text with a unit: \"100ms\", \"4s\", \"7d\".\n",
    );
    let mut section = "";
    for key in KEYS {
        let (parent, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        let own = if let Table(_) = key.preset {
            key.path
        } else {
            parent
        };
        let about = match key.preset {
            Table(_) => format!("\n# {}\n[{own}]\n", key.about),
            _ if own != section => format!("\n[{own}]\n# {}\n", key.about),
            _ => format!("# {}\n", key.about),
        };
        section = own;
        text.push_str(&about);
        match key.preset {
            Value(value) => writeln!(text, "{name} = {value}"),
            Unset(example) => writeln!(text, "#{name} = {example}"),
            Table(example) => writeln!(text, "#{example}"),
        }
        .expect("a String takes every text");
    }
    text.push_str("\n# Not there yet in this version:\n");
    for (path, reason) in LATER {
        writeln!(text, "# {path}: {reason}").expect("a String takes every text");
    }
    text
}
