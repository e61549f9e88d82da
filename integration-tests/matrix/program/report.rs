//! The table of what every row has shown, for a terminal and for `docs/faults.md`.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::results::{Results, Sum};
use crate::harness::workspace;
use crate::matrix::machine;
use crate::matrix::scene::Size;
use crate::matrix::table::{Modes, Row, Shown};
use crate::matrix::tally::Tally;

const HEAD: &str = "\
| row | fault | modes | runs | rows | lost | phantom | out of order | duplicates | bound | verdict | seconds |
|---|---|---|---|---|---|---|---|---|---|---|---|
";

pub fn verdict(tally: &Tally) -> &'static str {
    if tally.is_green() { "green" } else { "RED" }
}

/// One line for each row that ran, then what was measured, then what did not run and why.
pub fn table(rows: &[&Row], results: &Results, size: Size) -> String {
    let mut text = HEAD.to_owned();
    for row in rows {
        if let Some(sum) = results.of(row.number) {
            line(&mut text, row, sum);
        }
    }
    text += "\n";
    for row in rows {
        if let Some(sum) = results.of(row.number) {
            measured(&mut text, row, sum);
        }
    }
    let missing: String = rows
        .iter()
        .filter_map(|row| not_run(row, results, size))
        .collect();
    if !missing.is_empty() {
        let _ = write!(text, "\nNot run:\n\n{missing}");
    }
    text
}

/// Writes `docs/faults.md`.
pub fn write(rows: &[&Row], results: &Results, size: Size) {
    let full = if size == Size::Full { " FULL=1" } else { "" };
    let seconds = results.seconds();
    let green = rows
        .iter()
        .filter(|row| {
            results
                .of(row.number)
                .is_some_and(|sum| sum.tally.is_green())
        })
        .count();
    let ran = rows
        .iter()
        .filter(|row| results.of(row.number).is_some())
        .count();
    let text = format!(
        "# The fault matrix\n\n\
         Written by `make faults{full}` on {date}, of commit {commit}, on {class}, in {minutes:.0} minutes: {green} of {ran} rows \
         that ran are green.\n\n\
         Each row runs the relay against a real PostgreSQL and a real Kafka under writers that commit, roll back, commit late, \
         in two phases and by COPY, injects its fault, and compares every record of the topic with every committed row. \
         *Runs* counts injected faults in all modes together; rows that tests show count tests. *Bound* is how many \
         duplicates the promise allows. `make faults ROW=14` runs one row.\n\n{table}",
        date = today(),
        commit = workspace::commit(),
        class = machine::class(),
        minutes = seconds / 60.0,
        table = table(rows, results, size),
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/faults.md");
    fs::write(path, text).expect("write docs/faults.md");
}

fn line(text: &mut String, row: &Row, sum: &Sum) {
    let tally = &sum.tally;
    let counts = match &row.shown {
        Shown::ByTests(_) if tally.committed == 0 => {
            format!("{} tests | | | | | | ", tally.runs)
        }
        _ => counts(tally),
    };
    let (number, fault, modes) = (name(row), row.fault, modes(row.modes));
    let verdict = verdict(tally);
    let _ = writeln!(
        text,
        "| {number} | {fault} | {modes} | {counts} | {verdict} | {:.0} |",
        sum.seconds
    );
}

/// A table of one line.
pub fn sum(row: &str, fault: &str, tally: &Tally, took: Duration) -> String {
    let (counts, verdict, seconds) = (counts(tally), verdict(tally), took.as_secs());
    format!("{HEAD}| {row} | {fault} | replication, polling | {counts} | {verdict} | {seconds} |\n")
}

/// From the column *runs* to the column *bound*.
fn counts(tally: &Tally) -> String {
    let Tally {
        runs,
        committed,
        lost,
        phantom,
        out_of_order,
        duplicates,
        ..
    } = tally;
    let bound = match tally.duplicates_max {
        usize::MAX => "none".to_owned(),
        bound => bound.to_string(),
    };
    format!("{runs} | {committed} | {lost} | {phantom} | {out_of_order} | {duplicates} | {bound}")
}

fn measured(text: &mut String, row: &Row, sum: &Sum) {
    let tally = &sum.tally;
    let timings = tally
        .timings
        .iter()
        .map(|(what, timing)| format!("{what}: {timing}"));
    let broken = tally
        .broken
        .iter()
        .map(|text| format!("RED: {}", text.lines().next().unwrap_or_default()));
    let facts: Vec<String> = timings
        .chain(tally.remarks.iter().cloned())
        .chain(broken)
        .collect();
    if !facts.is_empty() {
        let _ = writeln!(text, "- {}: {}", name(row), facts.join("; "));
    }
}

/// Why a row did not run, or not to its end.
fn not_run(row: &Row, results: &Results, size: Size) -> Option<String> {
    let rounds = if size == Size::Full { row.rounds } else { 1 };
    let reason = match &row.shown {
        Shown::Nowhere(reason) => (*reason).to_owned(),
        Shown::By(needs, _) if needs.iter().any(|need| need.lacks().is_some()) => {
            let lacks: Vec<String> = needs.iter().filter_map(|need| need.lacks()).collect();
            lacks.join("; ")
        }
        _ if results.rounds(row.number) < rounds => {
            format!("{} of {rounds} rounds so far", results.rounds(row.number))
        }
        _ => return None,
    };
    Some(format!("- {} {}: {reason}\n", name(row), row.fault))
}

fn name(row: &Row) -> String {
    if row.number == 0 {
        "O6".to_owned()
    } else {
        row.number.to_string()
    }
}

fn modes(modes: Modes) -> &'static str {
    match modes {
        Modes::Both => "replication, polling",
        Modes::Replication => "replication",
        Modes::Neither => "",
    }
}

fn today() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now.split('T').next().unwrap_or_default().to_owned()
}
