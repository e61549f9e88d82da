//! The configuration of one relay: every key, its type and its default.
//!
//! Owns what a key means and every refusal that needs no server: `Config::load` reads the file and the
//! environment, and reports all that is wrong at once. Never connects, never shows a secret.

mod check;
mod columns;
mod convert;
mod document;
mod environment;
mod error;
mod kafka_names;
mod kafka_properties;
mod kafka_security;
mod keys;
mod known;
mod load;
mod secret;
mod settings;
mod table_name;
mod url;

/// Whether only outboxd sets the header. Names of others, such as Spring's `__TypeId__`, are theirs to set.
pub(crate) fn is_reserved(name: &str) -> bool {
    name == "id" || name.starts_with("outboxd_")
}

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::row::columns::ColumnNames;
use load::UrlFile;

pub(crate) use error::{ConfigError, ConfigErrors, Origin};
pub(crate) use kafka_security::resolve_property;
#[cfg(test)]
use keys::reference_toml;
pub use secret::{Secret, UrlSource};
pub(crate) use table_name::digest;
pub(crate) use table_name::{TableName, TableNameError};
pub use url::{
    ChannelBinding, ClientCertificate, ConnectOptions, Host, RootCertificates, SslMode, TlsOptions,
    UrlFault,
};

/// One relay: one database, one outbox table, one Kafka.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: SourceConfig,
    pub route: RouteConfig,
    pub kafka: KafkaConfig,
    pub limits: LimitsConfig,
    pub lease: LeaseConfig,
    pub shutdown: ShutdownConfig,
    pub faults: FaultsConfig,
    pub admin: AdminConfig,
    pub log: LogConfig,
}

impl Config {
    /// Reads a file and the process's environment, which goes over it.
    ///
    /// Errors: everything that is wrong, at once, each with its place and its remedy; also what is wrong with the
    /// file that `source.url_file` names.
    pub(crate) fn load(file: &Path) -> Result<Self, ConfigErrors> {
        load::load(file, UrlFile::Read)
    }

    /// The same for a command that connects to nothing: the URL's file may be on another machine.
    pub(crate) fn load_unconnected(file: &Path) -> Result<Self, ConfigErrors> {
        load::load(file, UrlFile::Unread)
    }

    /// Builds a configuration from a file's text and environment variables; reads nothing itself.
    pub fn parse(
        file_name: &str,
        text: &str,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        load::parse(file_name, text, env, UrlFile::Unread)
    }
}

#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Where the connection URL comes from; a file is read again at each connect.
    pub url: UrlSource,
    pub mode: Mode,
    /// `schema.table`, as written; the schema is `public` where none is named.
    pub table: String,
    /// What the table calls the columns that outboxd knows by names of its own.
    pub columns: ColumnNames,
    pub mark: Mark,
    pub start: Option<Start>,
    /// How old a sent row gets before it is removed; `None`: the relay removes none.
    pub retention: Option<Duration>,
    /// Orders rows where the table has no trusted `seq` (polling with `sent_at` or `delete`); the table's own name.
    pub order_column: Option<String>,
    pub polling: PollingConfig,
    pub replication: ReplicationConfig,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Replication,
    Polling,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mark {
    #[default]
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

impl SourceConfig {
    /// The table's name in its two parts.
    ///
    /// Errors: none for a configuration that `Config::parse` has built.
    pub(crate) fn table_name(&self) -> Result<TableName, TableNameError> {
        TableName::parse(&self.table)
    }
}

#[derive(Clone, Debug)]
pub struct PollingConfig {
    pub interval: Duration,
    pub batch_rows: usize,
}

#[derive(Clone, Debug)]
pub struct ReplicationConfig {
    /// Empty until `state::names` has asked the database, unless the configuration names it.
    pub slot: String,
    /// As the slot's name.
    pub publication: String,
    /// WAL that the slot may keep before it is an alarm.
    pub wal_budget_bytes: u64,
    pub on_lost_slot: OnLostSlot,
    /// Standbys keep the slot, where the server knows such slots.
    pub failover: bool,
    /// How often rows are looked for that the stream missed.
    pub sweep: Duration,
    pub catch_up: CatchUpFrom,
}

/// Where a backlog is read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CatchUpFrom {
    /// The slot: slower, in commit order.
    #[default]
    Stream,
    /// The table, in polling's order; the slot is moved behind it. Needs the ledger.
    Table,
}

/// What happens when the slot is gone or invalid, and rows with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLostSlot {
    /// A new slot is made and the table is read: needs a mark.
    #[default]
    Repair,
    /// Nothing is published until a person acts.
    Halt,
}

#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// A template such as `outbox.event.${aggregatetype}`.
    pub topic: String,
    /// Glob patterns; a topic that none matches is refused.
    pub allow: Vec<String>,
    pub null_key: NullKey,
    /// Columns sent as headers besides the standing ones: header name by column name (the key is the column).
    pub headers: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NullKey {
    #[default]
    /// A NULL aggregate id is a fault of the row.
    Block,
    /// It is published without a key.
    Publish,
}

#[derive(Clone)]
pub struct KafkaConfig {
    pub brokers: Vec<String>,
    /// librdkafka properties by name, already checked; `${file:…}` in secret ones is resolved at each use.
    pub properties: BTreeMap<String, String>,
    /// Any `partitioner` is accepted, although keys then reach other partitions than a Java producer's.
    pub allow_partitioner: bool,
    pub topics: TopicsConfig,
}

/// Shows the names of the properties only: a value may be a password.
impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("properties", &self.properties.keys())
            .field("allow_partitioner", &self.allow_partitioner)
            .field("topics", &self.topics)
            .finish()
    }
}

#[derive(Clone, Debug)]
pub struct TopicsConfig {
    pub create: bool,
    /// −1 is the broker's default.
    pub partitions: i32,
    /// −1 is the broker's default.
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

#[derive(Clone, Copy, Debug)]
pub struct FaultsConfig {
    pub policy: FaultPolicy,
    pub halt_share: f64,
}

/// What happens with a row that is at fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultPolicy {
    #[default]
    /// It blocks its aggregate: the row and its followers wait in the table.
    Block,
    /// It becomes a dead letter, and its followers too.
    Follow,
    /// It becomes a dead letter alone: its followers go on.
    Continue,
    /// Nothing is published until a person acts.
    Halt,
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}
