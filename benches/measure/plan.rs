//! What is measured, as the environment asks for it.

use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;

use crate::contender::Contender;
use crate::debezium;
use crate::workload::{MARKED, NEW, Workload};

/// One part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Drain,
    Marks,
    Latency,
    /// Ten to thousands of rows a second: with `FULL=1`.
    Rates,
    Commits,
    Idle,
    /// New rows on top of many: with `FULL=1`.
    Kept,
    /// Half an hour: with `SOAK=1`.
    Soak,
}

impl Part {
    const ALL: [(&'static str, Self); 8] = [
        ("drain", Self::Drain),
        ("marks", Self::Marks),
        ("latency", Self::Latency),
        ("rates", Self::Rates),
        ("commits", Self::Commits),
        ("idle", Self::Idle),
        ("kept", Self::Kept),
        ("soak", Self::Soak),
    ];
}

/// Everything that one run measures.
#[derive(Debug)]
pub struct Plan {
    pub parts: Vec<Part>,
    pub workloads: Vec<Workload>,
    pub marked: Workload,
    pub new: Workload,
    pub rounds: usize,
    /// Debezium Server drains the same backlogs.
    pub has_peers: bool,
    /// Those who drain a backlog.
    pub contenders: Vec<Contender>,
    /// Rows per second at which latency is measured.
    pub rates: Vec<u32>,
    /// How long latency, commits, an idle relay and a soaked one are watched.
    pub watched: Option<Duration>,
    /// The command that asks for the same again.
    pub command: String,
}

impl Plan {
    /// Reads `FULL`, `SOAK`, `PART`, `WORKLOAD`, `ONLY`, `ROUNDS`, `ROWS`, `RATES`, `WATCH` and `PEERS`; an empty
    /// variable is not set.
    pub fn from_environment() -> anyhow::Result<Self> {
        let is_full = variable("FULL").is_some();
        let mut workloads = Workload::choose(variable("WORKLOAD").as_deref(), is_full)?;
        let (mut marked, mut new) = (MARKED, NEW);
        if let Some(rows) = number("ROWS")? {
            for workload in workloads.iter_mut().chain([&mut marked, &mut new]) {
                workload.rows = rows;
            }
        }
        let has_peers = has_peers()?;
        Ok(Self {
            parts: parts(variable("PART").as_deref(), is_full)?,
            workloads,
            marked,
            new,
            rounds: number("ROUNDS")?.unwrap_or(3),
            has_peers,
            contenders: contenders(variable("ONLY").as_deref(), has_peers)?,
            rates: rates(is_full)?,
            watched: number("WATCH")?.map(|seconds| Duration::from_secs(seconds as u64)),
            command: command(),
        })
    }
}

/// Those whose names contain a part that `ONLY` names, separated by commas; all of them where it names none.
fn contenders(only: Option<&str>, has_peers: bool) -> anyhow::Result<Vec<Contender>> {
    let all: Vec<Contender> = Contender::all(has_peers).collect();
    let Some(only) = only else { return Ok(all) };
    let parts: Vec<&str> = only.split(',').map(str::trim).collect();
    let names = || all.iter().map(|known| known.name()).collect::<Vec<_>>();
    for part in &parts {
        let is_known = names().iter().any(|name| name.contains(part));
        let known = || names().join("; ");
        anyhow::ensure!(is_known, "nobody is called `{part}`; there are {}", known());
    }
    let is_wanted =
        |contender: &Contender| parts.iter().any(|part| contender.name().contains(part));
    Ok(all.iter().copied().filter(is_wanted).collect())
}

/// The parts of `PART`, separated by commas; for none those that fit into half an hour, and what else is asked for.
fn parts(names: Option<&str>, is_full: bool) -> anyhow::Result<Vec<Part>> {
    let is_soaked = variable("SOAK").is_some();
    let Some(names) = names else {
        let is_wanted = |part: &Part| match part {
            Part::Kept | Part::Rates => is_full,
            Part::Soak => is_soaked,
            _ => true,
        };
        let all = Part::ALL.map(|(_, part)| part);
        return Ok(all.into_iter().filter(is_wanted).collect());
    };
    let find = |name: &str| {
        let found = Part::ALL.iter().find(|(known, _)| *known == name);
        let known = || Part::ALL.map(|(known, _)| known).join(", ");
        let (_, part) =
            found.with_context(|| format!("no part is called `{name}`; there are {}", known()))?;
        Ok(*part)
    };
    names.split(',').map(find).collect()
}

fn has_peers() -> anyhow::Result<bool> {
    let is_wanted = variable("PEERS").is_some();
    anyhow::ensure!(
        !is_wanted || debezium::is_installed(),
        "no Debezium Server: benches/peers/fetch.sh fetches it"
    );
    Ok(is_wanted)
}

/// The rates of `RATES`, separated by commas.
fn rates(is_full: bool) -> anyhow::Result<Vec<u32>> {
    match (variable("RATES"), is_full) {
        (Some(rates), _) => {
            let rate = |text: &str| text.parse().ok().filter(|&rate| rate > 0);
            let rates: Option<Vec<u32>> = rates.split(',').map(rate).collect();
            rates.context("`RATES` are not positive numbers, separated by commas")
        }
        (None, true) => Ok(vec![20, 500, 2_000, 5_000]),
        (None, false) => Ok(vec![500, 2_000]),
    }
}

fn command() -> String {
    let names = [
        "FULL", "SOAK", "PART", "WORKLOAD", "ONLY", "ROUNDS", "ROWS", "RATES", "WATCH", "PEERS",
    ];
    let set = |name: &&str| Some(format!(" {name}={}", variable(name)?));
    let arguments: String = names.iter().filter_map(set).collect();
    format!("make bench{arguments}")
}

fn number(name: &str) -> anyhow::Result<Option<usize>> {
    let parse = |text: String| {
        let number = usize::from_str(&text).ok().filter(|&number| number > 0);
        number.with_context(|| format!("`{name}={text}` is not a positive number"))
    };
    variable(name).map(parse).transpose()
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
