//! What every row passes in the relay, piece by piece, without servers.
//!
//! `make bench-micro` times the pieces with Criterion, for whoever works on one. `make bench-check` counts their
//! instructions, which no load on the machine changes, and fails where one costs more than its baseline allows.

#[path = "micro/baseline.rs"]
mod baseline;
#[path = "micro/cases.rs"]
mod cases;
#[path = "micro/messages.rs"]
mod messages;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use criterion::{Criterion, Throughput};

use cases::{CASES, Case};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [baseline::COUNT, name, rounds, ..] => run(name, rounds),
        ["--check", ..] => baseline::check(),
        ["--record", ..] => baseline::record(),
        _ if words.contains(&"--bench") => {
            time();
            Ok(())
        }
        _ => Err(anyhow::anyhow!(
            "one of --check, --record and --bench says what to do"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn time() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let mut group = criterion.benchmark_group("row");
    for case in CASES {
        let mut round = (case.prepare)();
        group.throughput(Throughput::Elements(case.rows as u64));
        group.bench_function(case.name, |bencher| bencher.iter(&mut round));
    }
    group.finish();
    criterion.final_summary();
}

/// Runs one case so many times, for who counts.
fn run(name: &str, rounds: &str) -> anyhow::Result<()> {
    let case: Option<&Case> = CASES.iter().find(|case| case.name == name);
    let mut round = (case.context("no case is called so")?.prepare)();
    for _ in 0..rounds.parse()? {
        round();
    }
    Ok(())
}
