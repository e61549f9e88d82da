//! The demo: a relay that is killed again and again, and a judge who counts what became of every order.
//!
//! Everything it needs it brings along or makes in a temporary folder; everything it started is gone at
//! its end, on errors and on Ctrl-C too. The relay is this very program, run as a process of its own.

pub mod broker;
pub(crate) mod error;
pub(crate) mod judge;
pub(crate) mod latency;
pub(crate) mod load;
pub mod postgres;
pub mod reader;
pub(crate) mod relay;
pub(crate) mod report;
pub mod scratch;

use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use broker::Broker;
pub(crate) use error::DemoError;
use latency::Latency;
use load::{Load, Tally};
use postgres::Server;
use reader::{Seen, TopicReader};
use relay::{Kill, Relay};
use report::{NEXT_STEPS, Progress, Report};
use scratch::Scratch;

/// A relay that publishes nothing for this long is not waited for any longer.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Records that were sent before a kill may arrive this long after it.
const STRAGGLERS: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_millis(20);

/// Shows on a throwaway PostgreSQL and a broker in this process that nothing is lost
///
/// Starts a PostgreSQL of its own in a temporary folder and a broker in this process, creates the outbox,
/// lets twelve writers commit orders (with rollbacks, rolled back savepoints and late commits), kills the
/// relay with SIGKILL at random moments, and counts what the broker holds against what the database
/// committed. Exit code 0 only if nothing is lost, invented, out of order or altered.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DemoOptions {
    /// Publish to these brokers instead of the one in this process; a topic of a new name is created
    /// there, and removed at the end
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',')]
    pub brokers: Vec<String>,
    /// A property of librdkafka for those brokers, such as security.protocol=SASL_SSL or
    /// sasl.password=${file:/run/secrets/kafka}; as often as needed
    #[arg(long, value_name = "NAME=VALUE", requires = "brokers", value_parser = property)]
    pub kafka_property: Vec<(String, String)>,
    /// The folder of PostgreSQL's programs; else the PATH's, else the newest under /usr/lib/postgresql
    #[arg(long, value_name = "DIR")]
    pub postgres_bin: Option<PathBuf>,
    /// How the relay reads the outbox
    #[arg(long, value_enum, default_value_t = DemoMode::Replication)]
    pub mode: DemoMode,
    /// How long orders are written
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// How often the relay is killed meanwhile
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub kills: u32,
    /// Print the result as JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

fn property(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.trim().to_owned(), value.to_owned()))
}

/// How the relay reads the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DemoMode {
    /// From the write-ahead log, by a replication slot
    Replication,
    /// From the table, by its numbers
    Polling,
}

impl DemoMode {
    /// Its name in the configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Replication => "replication",
            Self::Polling => "polling",
        }
    }
}

/// How the judge decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DemoOutcome {
    /// Nothing lost, no phantom, nothing out of order or altered.
    Passed,
    Failed,
}

/// Runs the demo and prints its result on standard output, its progress on standard error.
///
/// Errors: the relay could not be judged. Cancel-safe: yes, apart from a topic on a broker elsewhere.
pub(crate) async fn run(options: DemoOptions) -> Result<DemoOutcome, DemoError> {
    let bin = postgres::find_bin(options.postgres_bin.as_deref())?;
    let scratch = Scratch::new()?;
    let mut interrupt = pin!(interrupted());
    let broker = tokio::select! {
        biased;
        () = &mut interrupt => return Err(DemoError::Interrupted),
        broker = open_broker(&options) => broker?,
    };
    let result = tokio::select! {
        biased;
        () = &mut interrupt => Err(DemoError::Interrupted),
        result = play(&options, bin, &scratch, &broker) => result,
    };
    broker.remove().await;
    drop(scratch);
    let report = result?;
    print(&report, &options);
    match report.has_passed() {
        true => Ok(DemoOutcome::Passed),
        false => Ok(DemoOutcome::Failed),
    }
}

async fn open_broker(options: &DemoOptions) -> Result<Broker, DemoError> {
    match options.brokers.as_slice() {
        [] => Broker::inside(),
        brokers => {
            let properties = options.kafka_property.iter().cloned().collect();
            Broker::outside(&brokers.join(","), properties, broker::PARTITIONS).await
        }
    }
}

fn print(report: &Report, options: &DemoOptions) {
    if options.json {
        println!("{:#}", report.json());
        return;
    }
    let decision = match report.has_passed() {
        true => "PASS: every committed order event is on the broker, in order, and nothing else",
        false => "FAIL: the broker does not hold what the database committed",
    };
    println!("{}\n{decision}\n{NEXT_STEPS}", report.table());
}

/// Ends on Ctrl-C and on SIGTERM.
async fn interrupted() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        }
        Err(_) => {
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}

async fn play(
    options: &DemoOptions,
    bin: PathBuf,
    scratch: &Scratch,
    broker: &Broker,
) -> Result<Report, DemoError> {
    let mut progress = Progress::new();
    progress.step(&format!("starting PostgreSQL from {}", bin.display()));
    let server = Server::start(bin, scratch, &[]).await?;
    let (client, mut stage) = set_the_stage(options, &server, scratch, broker, progress).await?;
    stage.relay.start()?;
    stage
        .progress
        .step("outboxd run: waiting for the order that stood there before");
    stage.wait_for_record_after(Instant::now()).await?;
    let started_at = Instant::now();
    stage.progress.step(&format!(
        "{} writers commit orders, the relay is killed at random",
        stage.load.writers()
    ));
    stage.load.start(&server);
    stage
        .write_and_kill(Duration::from_secs(options.seconds))
        .await?;
    stage.load.finish().await?;
    let load_time = started_at.elapsed();
    stage.drain().await?;
    let Stage {
        mut relay,
        load,
        reader,
        ..
    } = stage;
    relay.kill().await?;
    let seen = reader.finish().await?;
    let truth = load::truth(&client)
        .await
        .map_err(failed_to("read what was committed"))?;
    let tally = load.tally();
    let steady = latency(&seen, &tally, started_at, &relay.kills);
    let overall = latency(&seen, &tally, started_at, &[]);
    let report = Report {
        verdict: judge::judge(&truth, seen.held),
        tally,
        mode: options.mode.name(),
        broker: broker.name.clone(),
        writers: load.writers(),
        kills: relay.kills.len(),
        load: load_time,
        steady,
        overall,
    };
    if !report.has_passed() {
        eprintln!("the relay's log ends with:\n{}", relay.log_tail());
    }
    Ok(report)
}

/// Makes database, table and relay, and places the first order.
async fn set_the_stage(
    options: &DemoOptions,
    server: &Server,
    scratch: &Scratch,
    broker: &Broker,
    mut progress: Progress,
) -> Result<(tokio_postgres::Client, Stage), DemoError> {
    let client = server.connect("postgres").await;
    let client = client.map_err(failed_to("connect"))?;
    let created = client.batch_execute("CREATE DATABASE demo").await;
    created.map_err(failed_to("create a database"))?;
    let client = server.connect("demo").await;
    let mut client = client.map_err(failed_to("connect"))?;
    let relay = Relay::configure(options, server, broker, scratch.path())?;
    progress.step("outboxd migrate: table, publication, slot and the relay's own tables");
    relay.migrate().await?;
    let prepared = load::prepare(&client).await;
    prepared.map_err(failed_to("create the shop's tables"))?;
    let load = Load::open_shop(&mut client).await;
    let stage = Stage {
        relay,
        load: load.map_err(failed_to("place the first order"))?,
        reader: TopicReader::start(broker)?,
        progress,
        kills_max: options.kills,
    };
    Ok((client, stage))
}

fn failed_to(action: &'static str) -> impl FnOnce(tokio_postgres::Error) -> DemoError {
    move |source| DemoError::Sql { action, source }
}

/// The parts that play while orders are written.
struct Stage {
    relay: Relay,
    load: Load,
    reader: TopicReader,
    progress: Progress,
    kills_max: u32,
}

impl Stage {
    /// Waits until the relay has published something after this moment.
    async fn wait_for_record_after(&mut self, moment: Instant) -> Result<(), DemoError> {
        let deadline = Instant::now() + SILENCE_MAX;
        while self.reader.seen().arrived_at.is_none_or(|at| at <= moment) {
            self.relay.ensure_runs()?;
            if Instant::now() > deadline {
                return Err(DemoError::RelaySilent {
                    seconds: SILENCE_MAX.as_secs(),
                    log: self.relay.log_tail(),
                });
            }
            self.say();
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    /// Lets the load run for this long, and until every kill was made.
    ///
    /// Each kill has a slice of the time and falls on a random moment of it, but never before the
    /// relay has published again: a relay that is killed while it starts would prove little.
    async fn write_and_kill(&mut self, time: Duration) -> Result<(), DemoError> {
        let started_at = Instant::now();
        for kill in 0..self.kills_max {
            let slice = time / self.kills_max;
            let due_at = started_at + slice * kill + slice.mul_f64(fastrand::f64());
            self.wait_until(due_at).await?;
            self.relay.kill_and_restart().await?;
            self.wait_for_record_after(Instant::now() + STRAGGLERS)
                .await?;
            self.wait_until(Instant::now() + Duration::from_millis(fastrand::u64(..300)))
                .await?;
        }
        self.wait_until(started_at + time).await
    }

    async fn wait_until(&mut self, moment: Instant) -> Result<(), DemoError> {
        while Instant::now() < moment {
            self.relay.ensure_runs()?;
            self.say();
            tokio::time::sleep(TICK.min(moment.saturating_duration_since(Instant::now()))).await;
        }
        Ok(())
    }

    /// Waits until everything committed stands on the broker, or nothing comes any more.
    async fn drain(&mut self) -> Result<(), DemoError> {
        self.progress
            .step("waiting until every committed event stands on the broker");
        let committed = self.load.tally().committed_at;
        let begun_at = Instant::now();
        while !self.reader.has_all(committed.keys()) {
            self.relay.ensure_runs()?;
            let last_at = self
                .reader
                .seen()
                .arrived_at
                .map_or(begun_at, |at| at.max(begun_at));
            if last_at.elapsed() > SILENCE_MAX {
                self.progress
                    .step("nothing comes any more, though something is missing");
                return Ok(());
            }
            self.say();
            tokio::time::sleep(TICK).await;
        }
        // Whatever should not come gets the time to come.
        self.wait_until(Instant::now() + Duration::from_millis(500))
            .await
    }

    fn say(&mut self) {
        let committed = self.load.committed();
        let published = self.reader.seen().arrivals.len();
        let (kills, kills_max) = (self.relay.kills.len(), self.kills_max);
        self.progress.update(&format!(
            "committed {committed}, on the broker {published}, kills {kills} of {kills_max}"
        ));
    }
}

/// The latency of all events that were committed after `since` and outside the shadow of these kills.
///
/// A kill's shadow is from 250 ms before it until 500 ms after the first record that came after it.
fn latency(seen: &Seen, tally: &Tally, since: Instant, kills: &[Kill]) -> Option<Latency> {
    let shadow = |kill: &Kill| {
        let restarted_at = kill.restarted_at + STRAGGLERS;
        let recovered_at = seen
            .arrivals
            .values()
            .filter(|at| **at > restarted_at)
            .min()
            .copied();
        let begins_at = kill
            .killed_at
            .checked_sub(Duration::from_millis(250))
            .unwrap_or(kill.killed_at);
        (
            begins_at,
            recovered_at.map(|at| at + Duration::from_millis(500)),
        )
    };
    let shadows: Vec<(Instant, Option<Instant>)> = kills.iter().map(shadow).collect();
    let is_shadowed = |at: Instant| {
        shadows
            .iter()
            .any(|(begin, end)| at >= *begin && end.is_none_or(|end| at <= end))
    };
    let of_event = |(id, at): (&uuid::Uuid, &Instant)| {
        let is_counted = *at >= since && !is_shadowed(*at);
        is_counted
            .then(|| seen.arrivals.get(id))
            .flatten()
            .map(|arrival| arrival.saturating_duration_since(*at))
    };
    Latency::of(tally.committed_at.iter().filter_map(of_event).collect())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_shadow_of_a_kill_is_left_out_of_the_steady_latency() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let events = [(100, 110), (1_000, 3_000), (2_900, 3_005), (5_000, 5_020)];
        let (mut seen, mut tally) = (Seen::default(), Tally::default());
        for (committed, arrived) in events {
            let id = Uuid::new_v4();
            tally.committed_at.insert(id, at(committed));
            seen.arrivals.insert(id, at(arrived));
        }
        let kills = [Kill {
            killed_at: at(1_100),
            restarted_at: at(1_110),
        }];
        let steady = latency(&seen, &tally, start, &kills).unwrap();
        assert_eq!((steady.events, steady.max), (2, Duration::from_millis(20)));
        let overall = latency(&seen, &tally, start, &[]).unwrap();
        assert_eq!((overall.events, overall.max), (4, Duration::from_secs(2)));
    }
}
