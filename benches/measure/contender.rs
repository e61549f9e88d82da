//! Who drains a backlog.

use outboxd::commands::demo::postgres::Server;

/// How a program connects to PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Unix,
}

impl Transport {
    /// The host, as libpq takes it.
    pub fn host(self, server: &Server) -> String {
        match self {
            Self::Tcp => "127.0.0.1".into(),
            Self::Unix => server.socket_folder().display().to_string(),
        }
    }

    pub fn url(self, server: &Server, database: &str) -> String {
        format!(
            "postgres:///{database}?host={}&port={}&user=postgres",
            self.host(server),
            server.port()
        )
    }
}

/// How a relay reads the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Replication,
    /// By replication, and from the table as long as it is behind.
    CatchUp,
    Polling,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Replication => "replication",
            Self::CatchUp => "catch-up",
            Self::Polling => "polling",
        }
    }

    /// Its keys in the configuration, in the table `source` and in `source.replication`.
    pub fn keys(self) -> (&'static str, &'static str) {
        match self {
            Self::Replication => ("mode = \"replication\"", ""),
            Self::CatchUp => ("mode = \"replication\"", "catch_up = \"table\""),
            Self::Polling => ("mode = \"polling\"", ""),
        }
    }
}

/// A program that reads the whole backlog once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// `pg_recvlogical`, which throws away what it reads.
    Receive(Transport),
    /// A client that runs polling's SELECTs and throws away what it reads.
    Select,
    Relay(Mode, Transport),
    /// Debezium Server by replication over TCP, tuned.
    Debezium,
}

impl Contender {
    const ALL: [Self; 8] = [
        Self::Receive(Transport::Tcp),
        Self::Receive(Transport::Unix),
        Self::Select,
        Self::Relay(Mode::Replication, Transport::Tcp),
        Self::Relay(Mode::Replication, Transport::Unix),
        Self::Relay(Mode::CatchUp, Transport::Tcp),
        Self::Relay(Mode::Polling, Transport::Tcp),
        Self::Debezium,
    ];

    /// All, with the peers where they are wanted.
    pub fn all(has_peers: bool) -> impl Iterator<Item = Self> {
        let is_wanted = move |contender: &Self| has_peers || *contender != Self::Debezium;
        Self::ALL.into_iter().filter(is_wanted)
    }

    pub fn name(self) -> String {
        let (program, transport) = match self {
            Self::Receive(transport) => ("pg_recvlogical", transport),
            Self::Select => ("polling's SELECTs alone", Transport::Tcp),
            Self::Relay(mode, transport) => (mode.name(), transport),
            Self::Debezium => ("Debezium Server", Transport::Tcp),
        };
        match transport {
            Transport::Tcp => format!("{program}, TCP"),
            Transport::Unix => format!("{program}, unix socket"),
        }
    }
}
