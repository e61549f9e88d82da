//! A program that drains a backlog into a topic: how fast, and at which cost, once it runs steadily.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use outboxd::commands::demo::postgres::tail;
use tokio_postgres::Client;

use crate::drain::{DRAIN_MAX, Drain, LOOK_EVERY};
use crate::kafka::{Kafka, Topics};
use crate::meter::Meter;
use crate::process::Process;

/// Speed and CPU count from when this part of the rows has arrived: virtual machines have compiled by then what they run.
const STEADY_FROM: u64 = 5;

/// A running program and what is known of it.
pub struct Publishing<'a> {
    kafka: &'a Kafka,
    topic: Topics,
    rows: u64,
    meter: Meter<'a>,
    process: Process,
    log: PathBuf,
    started: Moment,
    first_at: Option<Instant>,
    steady: Option<Moment>,
}

struct Moment {
    at: Instant,
    records: u64,
    cpu: Duration,
}

/// What was reached since the program ran steadily.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub rows_per_second: f64,
    pub cpu_micros: f64,
}

impl<'a> Publishing<'a> {
    /// Watches a program that has just been started and writes to the topic and to the log.
    pub async fn watch(
        (client, kafka): (&'a Client, &'a Kafka),
        (process, log): (Process, PathBuf),
        topic: Topics,
        rows: usize,
    ) -> anyhow::Result<Self> {
        let started = Moment {
            at: Instant::now(),
            records: 0,
            cpu: Duration::ZERO,
        };
        Ok(Self {
            kafka,
            topic,
            rows: rows as u64,
            meter: Meter::start(client, kafka).await?,
            process,
            log,
            started,
            first_at: None,
            steady: None,
        })
    }

    /// Waits until the topic holds as many records as there are rows.
    pub async fn until_published(&mut self) -> anyhow::Result<()> {
        loop {
            let records = self.kafka.records(&self.topic)?;
            self.note(records);
            if records >= self.rows {
                return Ok(());
            }
            let log = || tail(&self.log);
            self.process.ensure_runs().with_context(log)?;
            let is_early = self.started.at.elapsed() < DRAIN_MAX;
            anyhow::ensure!(is_early, "{records} of {} rows: {}", self.rows, log());
            self.meter.look().await?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn note(&mut self, records: u64) {
        if records > 0 {
            self.first_at.get_or_insert_with(Instant::now);
        }
        let is_steady = records >= self.rows / STEADY_FROM && records < self.rows;
        if is_steady && self.steady.is_none() {
            self.steady = Some(Moment {
                at: Instant::now(),
                records,
                cpu: self.process.cpu(),
            });
        }
    }

    /// From when it ran steadily until now, with every row published; a backlog too short for that counts from the start.
    pub fn pace(&self) -> Pace {
        let since = self.steady.as_ref().unwrap_or(&self.started);
        let rows = (self.rows - since.records) as f64;
        Pace {
            rows_per_second: rows / since.at.elapsed().as_secs_f64(),
            cpu_micros: (self.process.cpu() - since.cpu).as_secs_f64() * 1e6 / rows,
        }
    }

    /// Stops the program and removes the topic.
    pub async fn finish(self, pace: Pace) -> anyhow::Result<Drain> {
        let used = self.meter.finish().await?;
        let peak_bytes = self.process.peak_bytes();
        self.process.stop()?;
        let repeated = self.kafka.records(&self.topic)? - self.rows;
        self.topic.remove().await;
        Ok(Drain {
            rows: self.rows as usize,
            pace,
            marked_per_second: 0.0,
            peak_bytes,
            used,
            first_after: self.first_at.map(|at| at - self.started.at),
            repeated,
        })
    }
}
