//! From commit to Kafka at a steady pace: rows are sent when they are due, however long earlier ones take.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use outboxd::commands::demo::postgres::tail;
use outboxd::commands::demo::reader::TopicReader;

use crate::contender::{Contender, Mode, Transport};
use crate::kafka::Topics;
use crate::process::Process;
use crate::relay::Relay;
use crate::report::{Figure, Section};
use crate::stand::Stand;
use crate::writer::{Writer, Written};

pub const SECTION: &str = "latency";
pub const P50: &str = "p50 ms";
pub const P99: &str = "p99 ms";

/// Rows of this first time warm caches and connections up and are not counted.
const WARM_UP: Duration = Duration::from_secs(2);
/// A virtual machine compiles what it runs meanwhile.
const WARM_UP_JAVA: Duration = Duration::from_secs(10);
const COUNTED_USUALLY: Duration = Duration::from_secs(10);
const ARRIVED_MAX: Duration = Duration::from_secs(60);

/// The line of a writer that publishes its rows itself once they are committed: what Kafka alone takes.
const ALONE: &str = "the writer itself, no relay";

/// Who is measured, and on which database.
const PACED: [(Option<Contender>, &str); 4] = [
    (None, "paced_writer"),
    (
        Some(Contender::Relay(Mode::Replication, Transport::Tcp)),
        "paced_replication",
    ),
    (
        Some(Contender::Relay(Mode::Polling, Transport::Tcp)),
        "paced_polling",
    ),
    (Some(Contender::Debezium), "paced_debezium"),
];

/// The line of a contender at a pace.
pub fn line(contender: Option<Contender>, rate: u32) -> String {
    let name = contender.map_or_else(|| ALONE.into(), Contender::name);
    format!("{name} at {rate} rows/s")
}

/// One that is measured.
struct Paced<'a> {
    contender: Option<Contender>,
    relay: Relay<'a>,
}

impl Paced<'_> {
    /// Starts who publishes beside the writer, if somebody does; with its log.
    fn start(&self, topic: &Topics) -> anyhow::Result<Option<(Process, PathBuf)>> {
        match self.contender {
            None => Ok(None),
            Some(Contender::Debezium) => self.relay.start_debezium(topic).map(Some),
            Some(_) => Ok(Some((self.relay.start(topic)?, self.relay.log()))),
        }
    }

    fn warm_up(&self) -> Duration {
        match self.contender {
            Some(Contender::Debezium) => WARM_UP_JAVA,
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
                Some(Contender::Relay(mode, _)) => mode,
                Some(Contender::Debezium) if !self.plan.has_peers => continue,
                _ => Mode::Replication,
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
        let reader = TopicReader::start(&topic)?;
        let mut process = paced.start(&topic)?;
        let writer = match process {
            Some(_) => Writer::connect(relay).await?,
            None => Writer::connect(relay).await?.publishing(relay, &topic)?,
        };
        let first = writer.insert(0, Instant::now()).await?;
        await_rows(&reader, &mut process, &[first]).await?;
        let counted = self.plan.watched.unwrap_or(COUNTED_USUALLY);
        let written = writer.write(rate, warm_up + counted).await?;
        await_rows(&reader, &mut process, &written).await?;
        if let Some((process, _)) = process {
            process.stop()?;
        }
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

/// Waits until all of these rows have arrived.
pub async fn await_rows(
    reader: &TopicReader,
    process: &mut Option<(Process, PathBuf)>,
    rows: &[Written],
) -> anyhow::Result<()> {
    let deadline = Instant::now() + ARRIVED_MAX;
    while !reader.has_all(rows.iter().map(|row| &row.id)) {
        if let Some((process, log)) = process {
            process.ensure_runs().with_context(|| tail(log))?;
        }
        let said = || process.as_ref().map(|(_, log)| tail(log));
        let is_early = Instant::now() < deadline;
        anyhow::ensure!(is_early, "rows are late: {}", said().unwrap_or_default());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The 50th, 99th and 99.9th percentile by nearest rank, and the largest, in milliseconds.
pub fn percentiles(mut latencies: Vec<Duration>) -> [f64; 4] {
    latencies.sort_unstable();
    let rank = |permille: usize| (latencies.len() * permille).div_ceil(1_000).max(1) - 1;
    [500, 990, 999, 1_000].map(|permille| {
        let latency = latencies.get(rank(permille));
        latency.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    })
}
