//! Rows that ordinary tests show: they run in a process of their own, and their oracles write what they counted.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::matrix::tally::Tally;

/// Runs the tests whose names contain one of these, three at a time: each is a run, each that fails a broken
/// criterion.
pub fn run(row: u8, names: &[&str]) -> Tally {
    let verdicts =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/faults/verdicts-{row}"));
    let _ = fs::remove_file(&verdicts);
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.args(["test", "--locked", "--lib", "--test", "integration", "--"]);
    // What takes a minute, or mounts a file system, is left out of `make test`.
    command
        .args(["--test-threads=3", "--include-ignored"])
        .args(names);
    command
        .env("OUTBOXD_VERDICTS", &verdicts)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null());
    let output = command.output().expect("run cargo");
    let text = String::from_utf8_lossy(&output.stdout);
    let _ = fs::write(verdicts.with_extension("log"), &output.stdout);
    let mut tally = outcomes(&text);
    if tally.runs == 0 || !output.status.success() && tally.broken.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        tally.broken.push(format!("the tests did not run: {said}"));
    }
    for name in names {
        if !text.contains(name) {
            tally.broken.push(format!("there is no test `{name}`"));
        }
    }
    for line in fs::read_to_string(&verdicts).unwrap_or_default().lines() {
        count(&mut tally, line);
    }
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    let what = if tally.committed > 0 {
        "runs are"
    } else {
        "judged by"
    };
    tally
        .remarks
        .push(format!("{what} the tests {}", names.join(", ")));
    tally
}

/// One run for each test, and one broken criterion for each that failed.
fn outcomes(text: &str) -> Tally {
    let mut tally = Tally::default();
    let lines = text.lines().filter_map(|line| line.strip_prefix("test "));
    for (name, outcome) in lines.filter_map(|line| line.rsplit_once(" ... ")) {
        tally.runs += 1;
        if outcome != "ok" {
            tally.broken.push(format!("{name}: {outcome}"));
        }
    }
    tally
}

/// A line that an oracle wrote: committed, lost, phantom, out of order, wrong, duplicates, and how many may be.
fn count(tally: &mut Tally, line: &str) {
    let mut numbers = line.split(' ').filter_map(|number| number.parse().ok());
    let mut next = || numbers.next().unwrap_or_default();
    tally.add(Tally {
        committed: next(),
        lost: next(),
        phantom: next(),
        out_of_order: next(),
        wrong: next(),
        duplicates: next(),
        duplicates_max: next(),
        ..Tally::default()
    });
}
