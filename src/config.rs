//! The configuration of one relay: every key, its type and its default.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A text that can't print itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// One relay: one database, one outbox table, one Kafka.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: SourceConfig,
    pub route: RouteConfig,
    pub kafka: KafkaConfig,
    pub limits: LimitsConfig,
    pub lease: LeaseConfig,
    pub shutdown: ShutdownConfig,
    pub admin: AdminConfig,
    pub log: LogConfig,
}

#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Where the connection URL comes from; a file is read again at each connect.
    pub url: UrlSource,
    pub mode: Mode,
    /// `schema.table`, as written; the schema is `public` where none is named.
    pub table: String,
    pub mark: Mark,
    pub start: Option<Start>,
    /// Orders rows where the table has no trusted `seq` (polling with `sent_at` or `delete`).
    pub order_column: Option<String>,
    pub polling: PollingConfig,
    pub replication: ReplicationConfig,
}

#[derive(Clone, Debug)]
pub enum UrlSource {
    Inline(Secret),
    File(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Replication,
    Polling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Ledger,
    SentAt,
    Delete,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    All,
    Now,
}

#[derive(Clone, Debug)]
pub struct PollingConfig {
    pub interval: Duration,
    pub batch_rows: usize,
}

#[derive(Clone, Debug)]
pub struct ReplicationConfig {
    pub slot: String,
    pub publication: String,
}

#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// A template such as `outbox.event.${aggregatetype}`.
    pub topic: String,
    /// Glob patterns; a topic that none matches is refused.
    pub allow: Vec<String>,
    pub null_key: NullKey,
    /// Columns sent as headers besides the standing ones: header name by column name.
    pub headers: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NullKey {
    /// A NULL aggregate id is a fault of the row.
    Block,
    /// It is published without a key.
    Publish,
}

#[derive(Clone, Debug)]
pub struct KafkaConfig {
    pub brokers: Vec<String>,
    /// librdkafka properties by name, already checked; `${file:…}` in secret ones is resolved at each use.
    pub properties: BTreeMap<String, String>,
    pub topics: TopicsConfig,
}

#[derive(Clone, Debug)]
pub struct TopicsConfig {
    pub create: bool,
    pub partitions: i32,
    pub replication_factor: i32,
}

#[derive(Clone, Debug)]
pub struct LimitsConfig {
    pub in_flight_rows_max: usize,
    pub in_flight_bytes_max: usize,
}

#[derive(Clone, Debug)]
pub struct LeaseConfig {
    pub ttl: Duration,
}

#[derive(Clone, Debug)]
pub struct ShutdownConfig {
    pub grace: Duration,
}

#[derive(Clone, Debug)]
pub struct AdminConfig {
    pub listen: String,
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    pub format: LogFormat,
    pub level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Human,
    Json,
}
