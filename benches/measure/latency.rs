//! From commit to Kafka at a steady pace: rows are sent when they are due, however long earlier ones take.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use outboxd::demo::postgres::tail;
use outboxd::demo::reader::Reader;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use crate::contender::{Contender, Mode, Transport};
use crate::kafka::Topics;
use crate::process::Process;
use crate::relay::Relay;
use crate::report::{Figure, Section};
use crate::stand::Stand;

pub const SECTION: &str = "latency";
pub const P50: &str = "p50 ms";
pub const P99: &str = "p99 ms";

/// Rows of this first time warm caches and connections up and are not counted.
const WARM_UP: Duration = Duration::from_secs(2);
/// A virtual machine compiles what it runs meanwhile.
const WARM_UP_JAVA: Duration = Duration::from_secs(10);
const COUNTED_USUALLY: Duration = Duration::from_secs(10);
/// Commits wait for the disk in each of these at once.
const CONNECTIONS: usize = 16;
const ARRIVED_MAX: Duration = Duration::from_secs(60);
const INSERT: &str = "INSERT INTO public.outbox (id, aggregatetype, aggregateid, type, payload)
    VALUES ($1, 'order', $2, 'OrderPlaced', json_build_object('version', 1, 'note', repeat('x', 125)))";

/// The times of one row at its writer.
struct Written {
    id: Uuid,
    due_at: Instant,
    committed_at: Instant,
}

/// Who is measured, and on which database.
const PACED: [(Contender, &str); 3] = [
    (
        Contender::Relay(Mode::Replication, Transport::Tcp),
        "paced_replication",
    ),
    (
        Contender::Relay(Mode::Polling, Transport::Tcp),
        "paced_polling",
    ),
    (Contender::Debezium, "paced_debezium"),
];

/// The line of a contender at a pace.
pub fn line(contender: Contender, rate: u32) -> String {
    format!("{} at {rate} rows/s", contender.name())
}

/// One that is measured.
struct Paced<'a> {
    contender: Contender,
    relay: Relay<'a>,
}

impl Paced<'_> {
    /// Starts it; with its log.
    fn start(&self, topic: &Topics) -> anyhow::Result<(Process, PathBuf)> {
        match self.contender {
            Contender::Debezium => self.relay.start_debezium(topic),
            _ => Ok((self.relay.start(topic)?, self.relay.log())),
        }
    }

    fn warm_up(&self) -> Duration {
        match self.contender {
            Contender::Debezium => WARM_UP_JAVA,
            _ => WARM_UP,
        }
    }
}

impl Stand {
    /// Measures every contender at every pace, each on a database of its own.
    pub async fn measure_latency(&self) -> anyhow::Result<Section> {
        let about = "Latency of one-row transactions of 250 B, by one monotonic clock: COMMIT answered → record \
             consumed; *due* counts from when the row was due to be sent";
        let mut section = Section::new(SECTION, about);
        let mut all = Vec::new();
        for (contender, database) in PACED {
            let mode = match contender {
                Contender::Relay(mode, _) => mode,
                _ if self.plan.has_peers => Mode::Replication,
                _ => continue,
            };
            let relay = self.relay(database, mode, "ledger");
            relay.prepare(&self.kafka).await?;
            all.push(Paced { contender, relay });
        }
        for _ in 0..self.plan.rounds {
            for &rate in &self.plan.rates {
                for paced in &all {
                    let line = line(paced.contender, rate);
                    let figures = self.latency_round(paced, rate).await;
                    section.add(&line, &figures.context(line.clone())?);
                }
            }
        }
        for paced in &all {
            paced.relay.remove().await?;
        }
        Ok(section)
    }

    async fn latency_round(&self, paced: &Paced<'_>, rate: u32) -> anyhow::Result<Vec<Figure>> {
        let (relay, warm_up) = (&paced.relay, paced.warm_up());
        let topic = self.kafka.topic().await?;
        let reader = Reader::start(&topic)?;
        let (mut process, log) = paced.start(&topic)?;
        let writer = Writer::connect(relay).await?;
        let first = writer.insert(0, Instant::now()).await?;
        wait_for(&reader, (&mut process, &log), &[first]).await?;
        let counted = self.plan.watched.unwrap_or(COUNTED_USUALLY);
        let written = writer.write(rate, warm_up + counted).await?;
        wait_for(&reader, (&mut process, &log), &written).await?;
        process.stop()?;
        let seen = reader.finish().await?;
        topic.remove().await;
        let since = written.iter().map(|row| row.due_at).min();
        let since = since.context("no row was written")? + warm_up;
        let counted: Vec<&Written> = written.iter().filter(|row| row.due_at >= since).collect();
        let latencies = |from: fn(&Written) -> Instant| {
            let late = |row: &&Written| seen.arrivals[&row.id].saturating_duration_since(from(row));
            percentiles(counted.iter().map(late).collect())
        };
        let [p50, p99, p999, max] = latencies(|row| row.committed_at);
        let [due_p50, due_p99, _, due_max] = latencies(|row| row.due_at);
        Ok(vec![
            (P50, p50),
            (P99, p99),
            ("p99.9 ms", p999),
            ("max ms", max),
            ("due p50 ms", due_p50),
            ("due p99 ms", due_p99),
            ("due max ms", due_max),
        ])
    }
}

/// Connections that commit rows side by side.
#[derive(Clone)]
struct Writer {
    connections: Arc<Vec<(Client, Statement)>>,
}

impl Writer {
    async fn connect(relay: &Relay<'_>) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = relay.server.connect(relay.database).await?;
            let insert = client.prepare(INSERT).await?;
            connections.push((client, insert));
        }
        Ok(Self {
            connections: Arc::new(connections),
        })
    }

    /// Sends each row when it is due; a connection whose commit takes long is sent the next ones behind it.
    async fn write(&self, rate: u32, length: Duration) -> anyhow::Result<Vec<Written>> {
        let (writer, runtime) = (self.clone(), tokio::runtime::Handle::current());
        // A thread of its own: the runtime's timers are a millisecond coarse.
        let paced = tokio::task::spawn_blocking(move || {
            let mut rows = JoinSet::new();
            let started_at = Instant::now();
            let count = length.as_secs() * u64::from(rate);
            for row in 0..count {
                let due_at = started_at + Duration::from_secs_f64(row as f64 / f64::from(rate));
                std::thread::sleep(due_at.saturating_duration_since(Instant::now()));
                let writer = writer.clone();
                let insert = async move { writer.insert(row as usize, due_at).await };
                rows.spawn_on(insert, &runtime);
            }
            rows
        });
        let mut rows = paced.await?;
        let mut written = Vec::new();
        while let Some(row) = rows.join_next().await {
            written.push(row??);
        }
        Ok(written)
    }

    async fn insert(&self, row: usize, due_at: Instant) -> Result<Written, tokio_postgres::Error> {
        let (client, insert) = &self.connections[row % self.connections.len()];
        let id = Uuid::new_v4();
        let aggregate = format!("o-{}", fastrand::u32(..1000));
        client.execute(insert, &[&id, &aggregate]).await?;
        Ok(Written {
            id,
            due_at,
            committed_at: Instant::now(),
        })
    }
}

async fn wait_for(
    reader: &Reader,
    (process, log): (&mut Process, &Path),
    rows: &[Written],
) -> anyhow::Result<()> {
    let deadline = Instant::now() + ARRIVED_MAX;
    while !reader.has_all(rows.iter().map(|row| &row.id)) {
        process.ensure_runs().with_context(|| tail(log))?;
        anyhow::ensure!(Instant::now() < deadline, "rows are late: {}", tail(log));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The 50th, 99th and 99.9th percentile by nearest rank, and the largest, in milliseconds.
fn percentiles(mut latencies: Vec<Duration>) -> [f64; 4] {
    latencies.sort_unstable();
    let rank = |permille: usize| (latencies.len() * permille).div_ceil(1_000).max(1) - 1;
    [500, 990, 999, 1_000].map(|permille| {
        let latency = latencies.get(rank(permille));
        latency.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    })
}
