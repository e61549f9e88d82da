//! Rows that ordinary integration tests show: they run in a process of their own.

use std::process::{Command, Stdio};

use crate::matrix::tally::Tally;

/// Runs the tests whose names contain one of these, three at a time: each is a run, each that fails a broken criterion.
pub fn run(names: &[&str]) -> Tally {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.args(["test", "--locked", "--quiet", "--test", "integration", "--"]);
    command
        .args(["--test-threads=3", "--format=pretty"])
        .args(names);
    let output = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .output();
    let output = output.expect("run cargo");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut tally = Tally::default();
    for line in text.lines() {
        let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|line| line.rsplit_once(" ... "))
        else {
            continue;
        };
        tally.runs += 1;
        if outcome != "ok" {
            tally.broken.push(format!("{name}: {outcome}"));
        }
    }
    if tally.runs == 0 || !output.status.success() && tally.broken.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        tally
            .broken
            .push(format!("the tests {names:?} did not run: {said}"));
    }
    for name in names {
        if !text.contains(name) {
            tally.broken.push(format!("there is no test `{name}`"));
        }
    }
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    tally
        .remarks
        .push(format!("judged by the tests {}", names.join(", ")));
    tally
}
