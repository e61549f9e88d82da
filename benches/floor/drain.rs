//! One round: the whole backlog is read once, by `pg_recvlogical` or by the relay.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use outboxd::demo::DemoMode;
use outboxd::demo::postgres::{Server, tail};

use crate::database::{Backlog, Relay, SLOT};
use crate::process::Process;

const DRAIN_MAX: Duration = Duration::from_secs(300);
const COPY: &str = "outboxd_bench_round";
const MARKED: &str = "SELECT coalesce(sum(upper(part) - lower(part)), 0)::bigint
    FROM outboxd.ledger, unnest(sent) AS part";

/// How a program connects to PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Unix,
}

impl Transport {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Unix => "unix socket",
        }
    }

    /// The host, as libpq takes it.
    fn host(self, server: &Server) -> String {
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

/// What one round took.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    pub rows: usize,
    /// By `pg_recvlogical` from its start; by the relay from the first record that stood in the topic.
    pub rows_per_second: f64,
    /// From the start of the relay's process to its first record.
    pub first_after: Option<Duration>,
    pub cpu: Duration,
    pub rss_bytes: u64,
    /// Records beyond one for each row.
    pub repeated: u64,
}

impl Backlog<'_> {
    /// Lets `pg_recvlogical` read the backlog and throw it away.
    pub async fn floor(&self, transport: Transport) -> anyhow::Result<Drain> {
        self.rewind(COPY).await?;
        let mut command = Command::new(self.server.bin().join("pg_recvlogical"));
        command.args([
            "-h",
            &transport.host(self.server),
            "-p",
            &self.server.port().to_string(),
        ]);
        command.args([
            "-U",
            "postgres",
            "-d",
            "backlog",
            "--start",
            "--no-loop",
            "-f",
            "/dev/null",
        ]);
        command.args(["-S", COPY, "-E", &self.end_lsn, "-o", "proto_version=1"]);
        command.args(["-o", &format!("publication_names={SLOT}")]);
        let started_at = Instant::now();
        let mut process = Process::start(&mut command, &self.folder.join("floor.log"))?;
        let (mut cpu, mut rss_bytes) = (Duration::ZERO, 0);
        let status = loop {
            (cpu, rss_bytes) = (cpu.max(process.cpu()), rss_bytes.max(process.rss_bytes()));
            if let Some(status) = process.ended()? {
                break status;
            }
            anyhow::ensure!(
                started_at.elapsed() < DRAIN_MAX,
                "pg_recvlogical does not reach the end"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let rows_per_second = self.rows as f64 / started_at.elapsed().as_secs_f64();
        anyhow::ensure!(
            status.success(),
            "pg_recvlogical: {}",
            tail(&self.folder.join("floor.log"))
        );
        self.drop_slot(COPY).await?;
        Ok(Drain {
            rows: self.rows,
            rows_per_second,
            first_after: None,
            cpu,
            rss_bytes,
            repeated: 0,
        })
    }

    /// Lets the relay publish and mark the backlog.
    pub async fn drain(&self, mode: DemoMode, transport: Transport) -> anyhow::Result<Drain> {
        self.rewind(COPY).await?;
        let topic = self.kafka.topic().await?;
        let relay = Relay {
            server: self.server,
            database: "backlog",
            slot: COPY,
            mode,
            transport,
        };
        let started_at = Instant::now();
        let mut process = relay.start(&topic, &self.folder)?;
        let rows = self.rows as u64;
        let (mut first_at, mut first_records) = (started_at, 0);
        loop {
            let records = self.kafka.records(&topic)?;
            if first_records == 0 && records > 0 && records < rows {
                (first_at, first_records) = (Instant::now(), records);
            }
            if records >= rows {
                break;
            }
            let log = || tail(&self.folder.join("relay.log"));
            process.ensure_runs().with_context(log)?;
            anyhow::ensure!(started_at.elapsed() < DRAIN_MAX, "no end: {}", log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let rows_per_second = (rows - first_records) as f64 / first_at.elapsed().as_secs_f64();
        let cpu = process.cpu();
        self.wait_until_marked().await?;
        let rss_bytes = process.rss_bytes();
        process.stop()?;
        let repeated = self.kafka.records(&topic)? - rows;
        topic.remove().await;
        self.drop_slot(COPY).await?;
        Ok(Drain {
            rows: self.rows,
            rows_per_second,
            first_after: Some(first_at - started_at),
            cpu,
            rss_bytes,
            repeated,
        })
    }

    /// Waits until the ledger holds every row: the last checkpoint comes a moment after the last record.
    async fn wait_until_marked(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let marked: i64 = self.client.query_one(MARKED, &[]).await?.get(0);
            if marked == self.rows as i64 {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "the ledger holds {marked} of {} rows",
                self.rows
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
