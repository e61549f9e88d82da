//! The servers that everything is measured on, and what they run on.

use std::fs;
use std::path::Path;

use outboxd::commands::demo::postgres::{self, Server};
use outboxd::commands::demo::scratch::Scratch;

use crate::contender::{Mode, Transport};
use crate::kafka::Kafka;
use crate::plan::Plan;
use crate::relay::Relay;

/// Nothing is flushed for its age or for the size of the WAL while a round runs, and nobody vacuums.
const SETTINGS: [(&str, &str); 4] = [
    ("shared_buffers", "512MB"),
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum", "off"),
];

/// A PostgreSQL and a Kafka of our own, with the plan of what is measured on them.
pub struct Stand {
    pub plan: Plan,
    pub server: Server,
    pub kafka: Kafka,
    // Last: what runs in it ends before it goes.
    scratch: Scratch,
}

impl Stand {
    pub async fn start(plan: Plan) -> anyhow::Result<Self> {
        let scratch = Scratch::new()?;
        let kafka = Kafka::find_or_start(scratch.path()).await?;
        let server = Server::start(postgres::find_bin(None)?, &scratch, &SETTINGS).await?;
        Ok(Self {
            plan,
            server,
            kafka,
            scratch,
        })
    }

    /// For configurations and logs.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// A relay over TCP, with a slot that is called as its database.
    pub fn relay<'a>(&'a self, database: &'a str, mode: Mode, mark: &'a str) -> Relay<'a> {
        Relay {
            server: &self.server,
            database,
            slot: database,
            mode,
            mark,
            retention: "none",
            transport: Transport::Tcp,
            folder: self.folder(),
        }
    }

    /// Processors, memory and the version of PostgreSQL.
    pub async fn machine(&self) -> anyhow::Result<String> {
        let client = self.server.connect("postgres").await?;
        let version = client.query_one("SHOW server_version", &[]).await?;
        let processors = std::thread::available_parallelism()?;
        let model = value_in("/proc/cpuinfo", "model name").unwrap_or_default();
        let memory = value_in("/proc/meminfo", "MemTotal").unwrap_or_default();
        let memory_kb: f64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        let memory_gib = memory_kb / f64::from(1 << 20);
        let version: &str = version.get(0);
        Ok(format!(
            "{processors} × {model}, {memory_gib:.0} GiB, PostgreSQL {version}"
        ))
    }
}

/// The value behind a name in one of the kernel's lists.
fn value_in(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
}
