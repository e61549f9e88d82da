//! One round: the whole backlog is read once, by one contender.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use outboxd::commands::demo::postgres::tail;
use tokio_postgres::Client;

use crate::backlog::Backlog;
use crate::contender::{Contender, Mode, Transport};
use crate::kafka::Kafka;
use crate::meter::{Meter, Used};
use crate::process::Process;
use crate::publishing::{Pace, Publishing};
use crate::relay::{Relay, drop_slot};
use crate::report::{Figure, Section};
use crate::select;
use crate::stand::Stand;
use crate::workload::Workload;

pub const ROWS_PER_SECOND: &str = "rows/s";
pub const CPU: &str = "CPU µs/row";
pub const PEAK: &str = "peak MB";
pub const BACKEND: &str = "backend µs/row";
pub const WAL: &str = "WAL B/row";

pub const DRAIN_MAX: Duration = Duration::from_secs(300);
pub const LOOK_EVERY: Duration = Duration::from_millis(20);
/// CPU time is counted in steps of 10 ms, which a walsender needs for fewer rows than these.
const TOLD_FROM: usize = 20_000;
/// Drains that warm Kafka up and are not counted: while its compilers work they take a quarter of both processors.
const WARMING: usize = 20;
const COPY: &str = "outboxd_bench_round";
/// Rows in the ledger, however they are marked.
const LEDGER: &str = "SELECT coalesce(sum(upper(part) - lower(part)), 0)::bigint
    FROM outboxd.ledger, unnest(sent) AS part";
const SENT_AT: &str = "SELECT count(sent_at) FROM public.outbox";
const LEFT: &str = "SELECT -count(*) FROM public.outbox";

/// What one round took.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    pub rows: usize,
    pub pace: Pace,
    /// Until the last row was marked, where rows are.
    pub marked_per_second: f64,
    pub peak_bytes: u64,
    pub used: Used,
    /// From the start of a process that publishes to its first record.
    pub first_after: Option<Duration>,
    /// Records beyond one for each row.
    pub repeated: u64,
}

impl Drain {
    /// Fails if rows came by another way than the mode's.
    fn of(self, mode: Mode) -> anyhow::Result<Self> {
        let has_streamed = self.used.walsender > Duration::ZERO || self.rows < TOLD_FROM;
        anyhow::ensure!(
            mode != Mode::Replication || has_streamed,
            "the rows did not come from the stream"
        );
        Ok(self)
    }

    pub fn figures(&self) -> Vec<Figure> {
        let rows = self.rows as f64;
        let micros = |cpu: Duration| cpu.as_secs_f64() * 1e6 / rows;
        let mut figures = vec![
            (ROWS_PER_SECOND, self.pace.rows_per_second),
            (CPU, self.pace.cpu_micros),
            ("walsender µs/row", micros(self.used.walsender)),
            (BACKEND, micros(self.used.backends)),
        ];
        let first_ms = self.first_after.map(|after| after.as_secs_f64() * 1e3);
        if let (Some(_), Some(broker)) = (first_ms, self.used.broker) {
            figures.push(("broker µs/row", micros(broker)));
        }
        figures.push((PEAK, self.peak_bytes as f64 / 1e6));
        if let Some(first_ms) = first_ms {
            figures.push((WAL, self.used.wal_bytes as f64 / rows));
            figures.push(("first record ms", first_ms));
            figures.push(("repeated", self.repeated as f64));
        }
        figures
    }
}

impl Stand {
    /// Lets every contender drain every workload, in turn.
    pub async fn measure_drains(&self) -> anyhow::Result<Vec<Section>> {
        let mut sections = Vec::new();
        for workload in &self.plan.workloads {
            let backlog = Backlog::fill(self, workload).await?;
            let about = format!("Drain of {} rows, {}", workload.rows, workload.about);
            let mut section = Section::new(workload.name, &about);
            if sections.is_empty() {
                for _ in 0..WARMING {
                    let relay = Contender::Relay(Mode::Polling, Transport::Tcp);
                    backlog.drain(relay).await?;
                }
            }
            for _ in 0..self.plan.rounds {
                for &contender in &self.plan.contenders {
                    let drain = backlog.drain(contender).await?;
                    section.add(&contender.name(), &drain.figures());
                }
            }
            backlog.relay.remove().await?;
            sections.push(section);
        }
        Ok(sections)
    }
}

impl Backlog<'_> {
    /// Lets one contender read the backlog.
    pub async fn drain(&self, contender: Contender) -> anyhow::Result<Drain> {
        self.rewind(COPY).await?;
        let drained = match contender {
            Contender::Receive(transport) => self.receive(transport).await,
            Contender::Select => self.select().await,
            Contender::Debezium => self.drain_by_debezium(COPY).await,
            Contender::Relay(mode, transport) => {
                let relay = Relay {
                    mode,
                    transport,
                    slot: COPY,
                    ..self.relay
                };
                let drained = relay.drain(&self.client, self.kafka, &self.workload).await;
                drained.and_then(|drain| drain.of(mode))
            }
        };
        let drained = drained.with_context(|| contender.name())?;
        drop_slot(&self.client, COPY).await?;
        Ok(drained)
    }

    async fn receive(&self, transport: Transport) -> anyhow::Result<Drain> {
        let copy = Relay {
            transport,
            slot: COPY,
            ..self.relay
        };
        let mut command = copy.receiver();
        command.args(["-E", &self.end_lsn]);
        let started_at = Instant::now();
        let mut drain = self.run_to_end(command).await?;
        drain.pace.rows_per_second = self.workload.rows as f64 / started_at.elapsed().as_secs_f64();
        Ok(drain)
    }

    async fn select(&self) -> anyhow::Result<Drain> {
        let Relay {
            server, database, ..
        } = self.relay;
        let command = select::command(&Transport::Tcp.url(server, database))?;
        let mut drain = self.run_to_end(command).await?;
        let said = select::said(&tail(&self.floor_log()))?;
        let rows = self.workload.rows;
        anyhow::ensure!(said.rows == rows, "{} of {rows} rows", said.rows);
        drain.pace.rows_per_second = rows as f64 / said.elapsed.as_secs_f64();
        Ok(drain)
    }

    /// Measures a program that ends by itself; how fast it was is not known yet.
    async fn run_to_end(&self, mut command: Command) -> anyhow::Result<Drain> {
        let mut meter = Meter::start(&self.client, self.kafka).await?;
        let deadline = Instant::now() + DRAIN_MAX;
        let mut process = Process::start(&mut command, &self.floor_log())?;
        let (mut cpu, mut peak_bytes) = (Duration::ZERO, 0);
        let status = loop {
            meter.look().await?;
            cpu = cpu.max(process.cpu());
            peak_bytes = peak_bytes.max(process.peak_bytes());
            if let Some(status) = process.ended()? {
                break status;
            }
            anyhow::ensure!(Instant::now() < deadline, "it does not reach the end");
            tokio::time::sleep(LOOK_EVERY).await;
        };
        anyhow::ensure!(status.success(), "{status}: {}", tail(&self.floor_log()));
        Ok(Drain {
            rows: self.workload.rows,
            pace: Pace {
                rows_per_second: 0.0,
                cpu_micros: cpu.as_secs_f64() * 1e6 / self.workload.rows as f64,
            },
            marked_per_second: 0.0,
            peak_bytes,
            used: meter.finish().await?,
            first_after: None,
            repeated: 0,
        })
    }

    fn floor_log(&self) -> std::path::PathBuf {
        self.relay.folder.join("floor.log")
    }
}

impl Relay<'_> {
    /// Lets the relay publish and mark the backlog.
    pub async fn drain(
        &self,
        client: &Client,
        kafka: &Kafka,
        workload: &Workload,
    ) -> anyhow::Result<Drain> {
        let marked = self.marked(client).await?;
        let rows = workload.rows;
        let topic = kafka.topics(workload.types).await?;
        let process = (self.start(&topic)?, self.log());
        let mut publishing = Publishing::watch((client, kafka), process, topic, rows).await?;
        publishing.until_published().await?;
        let pace = publishing.pace();
        self.wait_until_marked(client, marked + rows as i64).await?;
        let marked_per_second = publishing.pace().rows_per_second;
        Ok(Drain {
            marked_per_second,
            ..publishing.finish(pace).await?
        })
    }

    /// Rows that are marked; where a mark deletes them, minus those that stand.
    pub async fn marked(&self, client: &Client) -> anyhow::Result<i64> {
        let query = match self.mark {
            "sent_at" => SENT_AT,
            "delete" => LEFT,
            _ => LEDGER,
        };
        Ok(client.query_one(query, &[]).await?.get(0))
    }

    /// Waits until so many rows are marked: the last mark comes a moment after the last record.
    pub async fn wait_until_marked(&self, client: &Client, wanted: i64) -> anyhow::Result<()> {
        let deadline = Instant::now() + DRAIN_MAX;
        loop {
            let found = self.marked(client).await?;
            if found == wanted {
                return Ok(());
            }
            let is_early = Instant::now() < deadline;
            anyhow::ensure!(is_early, "{found} rows are marked, not {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
