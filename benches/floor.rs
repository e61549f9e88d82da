//! Measures outboxd against its floor: what `pg_recvlogical`, which publishes nothing, does on the same slot.
//!
//! `cargo bench --bench floor`. It reports and gates nothing. Kafka is the one that `OUTBOXD_BENCH_BROKERS`
//! names, else the one in `.servers/kafka`; `OUTBOXD_BENCH_ROWS` and `OUTBOXD_BENCH_ROUNDS` make it shorter.
//! Absolute figures differ from machine to machine; the ratios within one run count.

#[path = "floor/database.rs"]
mod database;
#[path = "floor/drain.rs"]
mod drain;
#[path = "floor/kafka.rs"]
mod kafka;
#[path = "floor/pace.rs"]
mod pace;
#[path = "floor/process.rs"]
mod process;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use outboxd::demo::DemoMode;
use outboxd::demo::latency::Latency;
use outboxd::demo::postgres::{self, Server};
use outboxd::demo::scratch::Scratch;

use database::Backlog;
use drain::{Drain, Transport};
use kafka::Kafka;

/// Latency is measured at this pace.
const ROWS_PER_SECOND: u32 = 500;
const RSS_MIB_MAX: f64 = 64.0;
const REPLICATION_RATIO_MIN: f64 = 0.7;
const POLLING_RATIO_MIN: f64 = 3.0;
const REPLICATION_P99_MAX: Duration = Duration::from_millis(20);
/// The default interval and 30 ms.
const POLLING_P99_MAX: Duration = Duration::from_millis(130);

#[tokio::main]
async fn main() -> ExitCode {
    // `cargo test --all-targets` starts benches too, without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let result = tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        result = measure() => result,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure() -> anyhow::Result<()> {
    let rows = number_from("OUTBOXD_BENCH_ROWS", 500_000)?;
    let rounds = number_from("OUTBOXD_BENCH_ROUNDS", 3)?;
    let scratch = Scratch::new()?;
    let kafka = Kafka::find_or_start(scratch.path()).await?;
    let settings = [
        ("shared_buffers", "512MB"),
        ("max_wal_size", "16GB"),
        ("checkpoint_timeout", "1h"),
    ];
    let server = Server::start(postgres::find_bin(None)?, &scratch, &settings).await?;
    eprintln!("filling a backlog of {rows} rows, one transaction each");
    let backlog = Backlog::fill(&server, &kafka, rows, scratch.path()).await?;
    let mut report = Report::new(rows, rounds);
    for transport in [Transport::Tcp, Transport::Unix] {
        let floor = best_of(rounds, async || backlog.floor(transport).await).await?;
        report.drain(
            &format!("pg_recvlogical, {}", transport.name()),
            &floor,
            None,
        );
        let relay = best_of(rounds, async || {
            backlog.drain(DemoMode::Replication, transport).await
        })
        .await?;
        report.drain(
            &format!("replication, {}", transport.name()),
            &relay,
            Some((&floor, REPLICATION_RATIO_MIN)),
        );
        if transport == Transport::Tcp {
            let polling = best_of(rounds, async || {
                backlog.drain(DemoMode::Polling, transport).await
            })
            .await?;
            report.drain("polling, TCP", &polling, Some((&floor, POLLING_RATIO_MIN)));
        }
    }
    backlog.drop_slot(database::SLOT).await?;
    drop(backlog);
    for (mode, p99_max) in [
        (DemoMode::Replication, REPLICATION_P99_MAX),
        (DemoMode::Polling, POLLING_P99_MAX),
    ] {
        let mut best: Option<Latency> = None;
        for _ in 0..rounds {
            let latency = pace::latency(&server, &kafka, mode, scratch.path()).await?;
            best = best
                .filter(|best| best.p99 <= latency.p99)
                .or(Some(latency));
        }
        report.latency(mode, best, p99_max);
    }
    println!("{}", report.text);
    Ok(())
}

/// Takes the fastest of some rounds, with the largest memory of them all.
async fn best_of(
    rounds: usize,
    round: impl AsyncFn() -> anyhow::Result<Drain>,
) -> anyhow::Result<Drain> {
    let mut best = round().await?;
    for _ in 1..rounds {
        let next = round().await?;
        let rss_bytes = best.rss_bytes.max(next.rss_bytes);
        if next.rows_per_second > best.rows_per_second {
            best = next;
        }
        best.rss_bytes = rss_bytes;
    }
    Ok(best)
}

fn number_from(variable: &str, default: usize) -> anyhow::Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("`{variable}` is not a number")),
        Err(_) => Ok(default),
    }
}

/// The text that is printed at the end; every line is said on standard error as soon as it is known.
struct Report {
    text: String,
}

impl Report {
    fn new(rows: usize, rounds: usize) -> Self {
        let mut report = Self {
            text: String::new(),
        };
        report.line(&format!(
            "\n{rows} rows of 250 B in one-row transactions, best of {rounds}\n"
        ));
        report.line(&format!(
            "{:<28}{:>10}{:>12}{:>10}{:>10}{:>8}  target",
            "", "rows/s", "CPU µs/row", "peak MiB", "first ms", "ratio"
        ));
        report
    }

    fn drain(&mut self, name: &str, drain: &Drain, floor: Option<(&Drain, f64)>) {
        let cpu_micros = drain.cpu.as_secs_f64() * 1e6 / drain.rows as f64;
        let first = drain
            .first_after
            .map_or(String::new(), |after| after.as_millis().to_string());
        let rss_mib = drain.rss_bytes as f64 / f64::from(1 << 20);
        let mut line = format!(
            "{name:<28}{:>10.0}{cpu_micros:>12.2}{rss_mib:>10.0}{first:>10}",
            drain.rows_per_second
        );
        if let Some((floor, ratio_min)) = floor {
            let ratio = drain.rows_per_second / floor.rows_per_second;
            let verdict = said(ratio >= ratio_min && rss_mib <= RSS_MIB_MAX);
            let _ = write!(
                line,
                "{ratio:>8.2}  ≥ {ratio_min}, ≤ {RSS_MIB_MAX} MiB: {verdict}"
            );
        }
        if drain.repeated > 0 {
            let _ = write!(line, "  ({} records repeated)", drain.repeated);
        }
        self.line(&line);
    }

    fn latency(&mut self, mode: DemoMode, latency: Option<Latency>, p99_max: Duration) {
        let name = mode.name();
        let line = match latency {
            Some(latency) => format!(
                "{name} at {ROWS_PER_SECOND}/s, COMMIT answered → record consumed: p50 {:.1} ms, p99 {:.1} ms, max {:.0} ms; p99 ≤ {} ms: {}",
                latency.p50.as_secs_f64() * 1e3,
                latency.p99.as_secs_f64() * 1e3,
                latency.max.as_secs_f64() * 1e3,
                p99_max.as_millis(),
                said(latency.p99 <= p99_max),
            ),
            None => format!("{name}: nothing was measured"),
        };
        self.line(&line);
    }

    fn line(&mut self, line: &str) {
        eprintln!("{line}");
        self.text.push_str(line);
        self.text.push('\n');
    }
}

fn said(is_reached: bool) -> &'static str {
    match is_reached {
        true => "reached",
        false => "missed",
    }
}
