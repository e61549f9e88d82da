//! Measures what outboxd costs and how fast it is, beside programs that do less: `make bench`.
//!
//! Rounds go in turn through all contenders, medians count. It reports and gates nothing. Kafka is the one that
//! `OUTBOXD_BENCH_BROKERS` names, else the one in `.servers/kafka`. Absolute figures differ from machine to machine;
//! the ratios within one run count.

#[path = "measure/backlog.rs"]
mod backlog;
#[path = "measure/claims.rs"]
mod claims;
#[path = "measure/commits.rs"]
mod commits;
#[path = "measure/contender.rs"]
mod contender;
#[path = "measure/debezium.rs"]
mod debezium;
#[path = "measure/drain.rs"]
mod drain;
#[path = "measure/idle.rs"]
mod idle;
#[path = "measure/kafka.rs"]
mod kafka;
#[path = "measure/kept.rs"]
mod kept;
#[path = "measure/latency.rs"]
mod latency;
#[path = "measure/marks.rs"]
mod marks;
#[path = "measure/meter.rs"]
mod meter;
#[path = "measure/pgbench.rs"]
mod pgbench;
#[path = "measure/plan.rs"]
mod plan;
#[path = "measure/process.rs"]
mod process;
#[path = "measure/publishing.rs"]
mod publishing;
#[path = "measure/rates.rs"]
mod rates;
#[path = "measure/relay.rs"]
mod relay;
#[path = "measure/report.rs"]
mod report;
#[path = "measure/run.rs"]
mod run;
#[path = "measure/select.rs"]
mod select;
#[path = "measure/soak.rs"]
mod soak;
#[path = "measure/stand.rs"]
mod stand;
#[path = "measure/workload.rs"]
mod workload;
#[path = "measure/writer.rs"]
mod writer;

use std::process::ExitCode;
use std::time::SystemTime;

use plan::{Part, Plan};
use run::Run;
use stand::Stand;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [argument, url] if argument == select::ARGUMENT => select::run(url).await,
        _ => tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
            result = measure() => result,
        },
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
    let stand = Stand::start(Plan::from_environment()?).await?;
    let began = SystemTime::now();
    let mut sections = Vec::new();
    for part in &stand.plan.parts {
        match part {
            Part::Drain => sections.extend(stand.measure_drains().await?),
            Part::Marks => sections.push(stand.measure_marks().await?),
            Part::Latency => sections.push(stand.measure_latency().await?),
            Part::Rates => sections.push(stand.measure_rates().await?),
            Part::Commits => sections.push(stand.measure_commits().await?),
            Part::Idle => sections.push(stand.measure_idle().await?),
            Part::Kept => sections.push(stand.measure_kept().await?),
            Part::Soak => sections.push(stand.measure_soak().await?),
        }
    }
    let run = Run {
        date: humantime::format_rfc3339_seconds(began).to_string(),
        took: began.elapsed()?,
        machine: stand.machine().await?,
        command: stand.plan.command.clone(),
        rounds: stand.plan.rounds,
        sections,
    };
    println!("{}", run.markdown());
    let path = run.write()?;
    eprintln!(
        "the same in a file, and as JSON beside it: {}",
        path.display()
    );
    Ok(())
}
