//! What each piece may cost: instructions a row, counted by valgrind's cachegrind, which emulates one processor
//! whatever the machine's is, beside what was recorded in `baseline.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::cases::{CASES, Case};

/// The argument that makes this program run one case; its name and the number of rounds follow.
pub const COUNT: &str = "--count";
/// A piece may cost this much more than was recorded.
const ALLOWED: f64 = 1.1;
/// Hash maps are seeded anew by each process, so that counts differ a little: the smaller one counts.
const TRIES: usize = 2;
const ROUNDS: u64 = 10;

/// What was recorded on one kind of processor.
#[derive(Deserialize, Serialize)]
struct Recorded {
    compiler: String,
    instructions_per_row: BTreeMap<String, u64>,
}

/// Fails where a piece costs more than its baseline allows.
pub fn check() -> anyhow::Result<()> {
    let recorded = read()?;
    let recorded = recorded.get(std::env::consts::ARCH).with_context(|| {
        format!(
            "no baseline for {}: `make bench-record` makes one",
            std::env::consts::ARCH
        )
    })?;
    let compiler = compiler()?;
    if recorded.compiler != compiler {
        println!(
            "The baseline was recorded with {}, this is {compiler}: a difference may be the compiler's.\n",
            recorded.compiler
        );
    }
    println!("| instructions a row | recorded | now | |\n|---|---:|---:|---|");
    let mut dearer = Vec::new();
    for case in &CASES {
        let now = instructions_per_row(case)?;
        let before = recorded.instructions_per_row.get(case.name).copied();
        let before = before.with_context(|| format!("`{}` was never recorded", case.name))?;
        let ratio = now as f64 / before as f64;
        println!("| {} | {before} | {now} | {ratio:.2}× |", case.name);
        if ratio > ALLOWED {
            dearer.push(case.name);
        }
    }
    anyhow::ensure!(
        dearer.is_empty(),
        "dearer than recorded by more than a tenth: {}; where that is worth it, `make bench-record` records it",
        dearer.join(", ")
    );
    Ok(())
}

/// Writes what each piece costs now, for this kind of processor.
pub fn record() -> anyhow::Result<()> {
    let mut recorded = read().unwrap_or_default();
    let count = |case: &Case| Ok((case.name.to_owned(), instructions_per_row(case)?));
    let now = Recorded {
        compiler: compiler()?,
        instructions_per_row: CASES.iter().map(count).collect::<anyhow::Result<_>>()?,
    };
    recorded.insert(std::env::consts::ARCH.to_owned(), now);
    let text = serde_json::to_string_pretty(&recorded)?;
    std::fs::write(path(), format!("{text}\n"))?;
    println!("{text}");
    Ok(())
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/micro/baseline.json")
}

fn read() -> anyhow::Result<BTreeMap<String, Recorded>> {
    let text =
        std::fs::read_to_string(path()).context("no baseline: `make bench-record` makes one")?;
    Ok(serde_json::from_str(&text)?)
}

/// As `rustc` calls itself, such as `rustc 1.95.0`.
fn compiler() -> anyhow::Result<String> {
    let said = Command::new("rustc").arg("--version").output()?;
    let said = String::from_utf8(said.stdout)?;
    Ok(said
        .split(" (")
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned())
}

/// What the rounds behind the first one take: that one fills caches, and before it everything is prepared.
fn instructions_per_row(case: &Case) -> anyhow::Result<u64> {
    let mut least = u64::MAX;
    for _ in 0..TRIES {
        let rounds = instructions(case, 1 + ROUNDS)?.saturating_sub(instructions(case, 1)?);
        least = least.min(rounds / (ROUNDS * case.rows as u64));
    }
    Ok(least)
}

fn instructions(case: &Case, rounds: u64) -> anyhow::Result<u64> {
    let counted = Command::new("valgrind")
        .args([
            "--tool=cachegrind",
            "--cache-sim=no",
            "--cachegrind-out-file=/dev/null",
        ])
        .arg(std::env::current_exe()?)
        .args([COUNT, case.name, &rounds.to_string()])
        .output()
        .context("cannot run `valgrind`, which counts: install the package of that name")?;
    let said = String::from_utf8_lossy(&counted.stderr);
    anyhow::ensure!(counted.status.success(), "`{}` failed: {said}", case.name);
    let count = said.lines().find_map(|line| {
        let (_, count) = line.split_once("refs:")?;
        count.trim().replace(',', "").parse().ok()
    });
    count.with_context(|| format!("valgrind counted nothing: {said}"))
}
