//! What a relay costs, and how late its records are, at the rates at which services live: ten to thousands of rows a
//! second.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use outboxd::commands::demo::reader::TopicReader;

use crate::contender::{Contender, Mode, Transport};
use crate::latency::{P50, P99, await_rows, percentiles};
use crate::process::Process;
use crate::relay::Relay;
use crate::report::{Figure, Section};
use crate::stand::Stand;
use crate::writer::{Writer, Written};

pub const SECTION: &str = "rates";
pub const RELAY: &str = "relay µs a row";
pub const BROKER: &str = "broker µs a row";
const CORE: &str = "relay % of a core";

/// Rows of this first time warm caches, connections and virtual machines up and are not counted.
const WARM_UP: Duration = Duration::from_secs(3);
const WARM_UP_JAVA: Duration = Duration::from_secs(12);
/// Processes count their CPU time in steps of 10 ms.
const COUNTED_USUALLY: Duration = Duration::from_secs(20);

/// Rows a second, and among how many aggregate types, each with a topic of 12 partitions.
const PACES: [(u32, u32); 6] = [
    (10, 1),
    (100, 1),
    (400, 1),
    (1_000, 1),
    (5_000, 1),
    (400, 40),
];

/// Who is measured, and on which database.
const PACED: [(Contender, &str); 3] = [
    (
        Contender::Relay(Mode::Replication, Transport::Tcp),
        "rates_replication",
    ),
    (
        Contender::Relay(Mode::Polling, Transport::Tcp),
        "rates_polling",
    ),
    (Contender::Debezium, "rates_debezium"),
];

/// The line of a contender at a pace.
pub fn line(contender: Contender, (rate, types): (u32, u32)) -> String {
    let topics = match types {
        1 => String::new(),
        types => format!(" over {types} topics"),
    };
    format!("{} at {rate} rows/s{topics}", contender.name())
}

impl Stand {
    /// Measures every contender at every pace, each on a database of its own.
    pub async fn measure_rates(&self) -> anyhow::Result<Section> {
        let about = "Rates at which services live: one-row transactions of 250 B over topics of 12 partitions; CPU of \
             relay and broker, and COMMIT answered → record consumed by one monotonic clock";
        let mut section = Section::new(SECTION, about);
        for (contender, database) in PACED {
            let mode = match contender {
                Contender::Relay(mode, _) => mode,
                Contender::Debezium if !self.plan.has_peers => continue,
                _ => Mode::Replication,
            };
            let relay = self.relay(database, mode, "ledger");
            relay.prepare(&self.kafka).await?;
            for _ in 0..self.plan.rounds {
                for pace in PACES {
                    let line = line(contender, pace);
                    let figures = self.round_at(&relay, contender, pace).await;
                    section.add(&line, &figures.context(line.clone())?);
                }
            }
            relay.remove().await?;
        }
        Ok(section)
    }

    async fn round_at(
        &self,
        relay: &Relay<'_>,
        contender: Contender,
        (rate, types): (u32, u32),
    ) -> anyhow::Result<Vec<Figure>> {
        let topics = match types {
            1 => self.kafka.topic().await?,
            types => self.kafka.wide_topics(types).await?,
        };
        let reader = TopicReader::start_on(&topics, topics.all())?;
        let (process, log) = match contender {
            Contender::Debezium => relay.start_debezium(&topics)?,
            _ => (relay.start(&topics)?, relay.log()),
        };
        let mut process: Option<(Process, PathBuf)> = Some((process, log));
        let warm_up = match contender {
            Contender::Debezium => WARM_UP_JAVA,
            _ => WARM_UP,
        };
        let writer = Writer::connect(relay).await?.of_types(types);
        let mut first = Vec::new();
        for row in 0..types {
            first.push(writer.insert(row as usize, Instant::now()).await?);
        }
        await_rows(&reader, &mut process, &first).await?;
        let counted = self.plan.watched.unwrap_or(COUNTED_USUALLY);
        let (written, used) = tokio::join!(
            writer.write(rate, warm_up + counted),
            self.cost(process.as_ref(), warm_up, counted)
        );
        let (written, (relay_used, broker_used)) = (written?, used?);
        await_rows(&reader, &mut process, &written).await?;
        if let Some((process, _)) = process {
            process.stop()?;
        }
        let seen = reader.finish().await?;
        topics.remove().await;
        let since = written.iter().map(|row| row.due_at).min();
        let since = since.context("no row was written")? + warm_up;
        let rows: Vec<&Written> = written.iter().filter(|row| row.due_at >= since).collect();
        let late =
            |row: &&Written| seen.arrivals[&row.id].saturating_duration_since(row.committed_at);
        let [p50, p99, ..] = percentiles(rows.iter().map(late).collect());
        let a_row = |used: Duration| used.as_secs_f64() * 1e6 / rows.len() as f64;
        let core = relay_used.as_secs_f64() * 100.0 / counted.as_secs_f64();
        let mut figures = vec![(RELAY, a_row(relay_used)), (CORE, core)];
        figures.extend(broker_used.map(|used| (BROKER, a_row(used))));
        figures.extend([(P50, p50), (P99, p99)]);
        Ok(figures)
    }

    /// The CPU time of relay and broker while rows are counted.
    async fn cost(
        &self,
        process: Option<&(Process, PathBuf)>,
        warm_up: Duration,
        counted: Duration,
    ) -> anyhow::Result<(Duration, Option<Duration>)> {
        let used = || {
            let relay = process.map(|(process, _)| process.cpu_of_threads());
            let relay = relay.transpose()?.unwrap_or_default();
            anyhow::Ok((relay, self.kafka.cpu()))
        };
        tokio::time::sleep(warm_up).await;
        let (relay_before, broker_before) = used()?;
        tokio::time::sleep(counted).await;
        let (relay, broker) = used()?;
        let broker = broker.zip(broker_before).map(|(now, before)| now - before);
        Ok((relay.saturating_sub(relay_before), broker))
    }
}
