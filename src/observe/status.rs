//! What the relay is doing: the one report behind `/status`, `/readyz`, the gauges and `outboxd status`.
//!
//! Owns the report and the cell that the relay writes it to. Never holds what a row contains: a held row is
//! named by its aggregate type and its event id.

mod answer;
mod cell;
mod counting;
mod database;
mod human;
mod other;

use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::postgres::{ConnectOptions, Host};
use crate::state::retention::TableSize;
use crate::state::unsent::Unsent;

pub(crate) use answer::{Answer, AnsweredBy, StatusError, ask};
pub(crate) use cell::{LEASE_RAN_OUT, OPENING, StatusCell, because};
pub(crate) use counting::Counting;
pub(crate) use other::SYSTEM_IDENTIFIER;

/// The report of one relay at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub version: String,
    /// `replication` or `polling`.
    pub mode: String,
    /// `ledger`, `sent_at`, `delete` or `none`.
    pub mark: String,
    /// `schema.table`.
    pub table: String,
    /// The host and port that it works with; before the first session those of the URL.
    #[serde(default)]
    pub server: Option<String>,
    /// The server's own number, which no other cluster has.
    #[serde(default)]
    pub system_identifier: Option<String>,
    #[serde(default)]
    pub database: Option<String>,
    /// By replication, once its name is known.
    #[serde(default)]
    pub slot: Option<String>,
    pub role: Role,
    pub state: State,
    /// Why it is in this state, such as `waiting for PostgreSQL`; empty where there is nothing to say.
    pub reason: String,
    /// When role, state and reason became what they are.
    pub since: Timestamp,
    pub lease: Option<Lease>,
    pub position: Position,
    pub lag: Lag,
    /// Age of the oldest row that was not sent, held rows included; `None` where there is none or it is not known.
    pub oldest_unsent_age_seconds: Option<f64>,
    pub in_flight: InFlight,
    /// What stands in the table, sent or not, by the server's statistics.
    #[serde(default)]
    pub table_size: Option<TableSize>,
    pub held: Vec<HeldRows>,
    pub held_topics: Vec<HeldTopic>,
    /// Topics that can't be written and are not in that list; `*` in it stands for the rows of many of them.
    #[serde(default)]
    pub held_topics_left_out: u64,
    /// Rows that wait for any of these topics.
    #[serde(default)]
    pub held_topic_rows: Option<u64>,
    /// All blocked aggregates, of which `held` shows some; `outboxd blocked list` shows them.
    #[serde(default)]
    pub blocked_aggregates: Option<u64>,
    /// Rows of these aggregates that wait, those at fault included.
    #[serde(default)]
    pub blocked_rows: Option<u64>,
    /// Rows kept as dead letters, counted up to 100,000; `outboxd dead-letters list` shows them.
    #[serde(default)]
    pub dead_letters: Option<u64>,
    pub postgres: Peer,
    pub kafka: Peer,
    /// Bytes of WAL that the slot keeps on the server.
    pub slot_retained_bytes: Option<u64>,
    /// What the slot may keep, and whether that is an alarm; by replication, once the server was asked.
    pub wal_budget: Option<WalBudget>,
    /// Ranges of numbers below the highest one whose rows did not appear and may still do.
    pub holes_open: Option<u64>,
    /// What the publication keeps from the stream, with the SQL that mends it.
    #[serde(default)]
    pub drift: Vec<String>,
    /// Slots of this outbox that keep WAL and that nobody reads, with the SQL that drops them.
    #[serde(default)]
    pub unread_slots: Vec<String>,
    pub last_error: Option<LastError>,
}

/// The part that a relay plays among those of one outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    Starting,
    Standby,
    Leader,
    /// Alive and publishing nothing until a person acts; the reason says what to do.
    Halted,
    /// No relay holds the lease; said only by the database.
    Stopped,
}

/// What it does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Starting,
    /// Publishes nothing, but will by itself.
    Waiting,
    Publishing,
    /// Publishes nothing until a person acts.
    Halted,
    /// Settles what is in flight before it ends.
    Draining,
    /// Only the relay itself could say.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub holder: String,
    pub epoch: Option<i64>,
}

/// How far the relay has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Everything up to here is resolved; by replication.
    pub confirmed_lsn: Option<String>,
    /// The highest number that was sent, where the table has `seq`.
    pub sent_seq: Option<i64>,
}

/// How far it is behind; `None` where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lag {
    /// Rows that stand in the table and were not sent.
    pub rows: Option<u64>,
    /// The rows were not all counted: there are at least so many.
    #[serde(default)]
    pub rows_at_least: bool,
    /// WAL between the confirmed position and the server's, other tables' included.
    pub bytes: Option<u64>,
    /// Age of the oldest row that was not sent and does not wait for a blocked aggregate or a paused topic.
    pub seconds: Option<f64>,
    /// When it was known last, where nobody could count since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_known_since: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InFlight {
    pub rows: u64,
    pub bytes: u64,
}

/// A row that could not be published, and the rows of its aggregate behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldRows {
    pub aggregate_type: String,
    /// The `id` of the row at fault.
    pub event_id: String,
    pub rows: u64,
    /// Says why, without the row's content.
    pub reason: String,
}

/// A topic whose rows wait until it can be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldTopic {
    pub topic: String,
    pub rows: u64,
    pub reason: String,
    /// What ends it: the command that creates the topic or lets the relay write it, or what to change where none helps.
    pub command: Option<String>,
}

/// Whether PostgreSQL or Kafka answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// `None` before the first answer or failure.
    pub is_up: Option<bool>,
    /// Why not.
    pub error: Option<String>,
}

/// What the slot may keep on the primary before somebody should act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WalBudget {
    /// `source.replication.wal_budget`, or the server's own limit where that is smaller.
    pub bytes: u64,
    pub alarm: WalAlarm,
}

/// How much of the budget is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WalAlarm {
    None,
    /// Half of it.
    Warning,
    /// Four fifths of it, or the server is about to give the slot up, or has.
    Critical,
}

impl WalAlarm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastError {
    pub text: String,
    pub at: Timestamp,
}

/// A moment, written as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timestamp(pub SystemTime);

impl Timestamp {
    pub(crate) fn now() -> Self {
        Self(SystemTime::now())
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        humantime::format_rfc3339_seconds(self.0).fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match humantime::parse_rfc3339(&text) {
            Ok(time) => Ok(Self(time)),
            Err(error) => Err(serde::de::Error::custom(error)),
        }
    }
}

impl Status {
    /// What is known before anything was tried.
    pub(crate) fn starting(config: &crate::config::SourceConfig) -> Self {
        use crate::config::{Mark, Mode};
        let mode = match config.mode {
            Mode::Replication => "replication",
            Mode::Polling => "polling",
        };
        let mark = match config.mark {
            Mark::Ledger => "ledger",
            Mark::SentAt => "sent_at",
            Mark::Delete => "delete",
            Mark::None => "none",
        };
        let table = match config.table_name() {
            Ok(name) => name.to_string(),
            Err(_) => config.table.clone(),
        };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: mode.to_owned(),
            mark: mark.to_owned(),
            table,
            server: None,
            system_identifier: None,
            database: None,
            slot: None,
            role: Role::Starting,
            state: State::Starting,
            reason: String::new(),
            since: Timestamp::now(),
            lease: None,
            position: Position::default(),
            lag: Lag::default(),
            oldest_unsent_age_seconds: None,
            in_flight: InFlight::default(),
            table_size: None,
            held: Vec::new(),
            held_topics: Vec::new(),
            held_topics_left_out: 0,
            held_topic_rows: None,
            blocked_aggregates: None,
            blocked_rows: None,
            dead_letters: None,
            postgres: Peer::default(),
            kafka: Peer::default(),
            slot_retained_bytes: None,
            wal_budget: None,
            holes_open: None,
            drift: Vec::new(),
            unread_slots: Vec::new(),
            last_error: None,
        }
    }

    /// Notes which outbox this is, as far as it is known without asking.
    pub(crate) fn locate(
        &mut self,
        config: &crate::config::SourceConfig,
        options: &ConnectOptions,
    ) {
        let hosts: Vec<String> = options.hosts.iter().map(Host::to_string).collect();
        self.server = Some(hosts.join(","));
        self.database = Some(options.dbname.clone());
        let slot = Some(config.replication.slot.clone()).filter(|slot| !slot.is_empty());
        self.slot = slot.filter(|_| config.mode == crate::config::Mode::Replication);
    }

    /// Whether rows that are committed now go out now.
    pub(crate) fn publishes(&self) -> bool {
        self.role == Role::Leader && self.state == State::Publishing
    }
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Standby => "standby",
            Self::Leader => "leader",
            Self::Halted => "halted",
            Self::Stopped => "stopped",
        }
    }
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Waiting => "waiting",
            Self::Publishing => "publishing",
            Self::Halted => "halted",
            Self::Draining => "draining",
            Self::Unknown => "unknown",
        }
    }
}

/// Writes into a report what a question for unsent rows found.
fn show_unsent(unsent: &Unsent, status: &mut Status) {
    status.lag.rows = Some(unsent.rows);
    status.lag.rows_at_least = unsent.is_at_least;
    status.lag.seconds = unsent.unheld_seconds;
    status.oldest_unsent_age_seconds = unsent.oldest_seconds;
}
