//! One shape in one mode with one mark: its database, topics, table and relay, and what came of it.

mod outbox;

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};

use super::check::{self, Answer, Refusal};
use super::events::{Wanted, Writer, told};
use super::judge::{self, Log};
use super::scenario;
use super::server::Servers;
use super::shape::{Made, Pair, Past, Role, Shape, Twin, filled};
use crate::harness::POLL;
use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Database, Postgres};
use crate::harness::relay::{Relay, RelayConfig, said};
use crate::harness::topic::TopicReader;

/// How long nothing comes before it is asked whether something is blocked.
const EXCUSED_AFTER: Duration = Duration::from_secs(4);
/// How long something may stand still.
const STILL_MAX: Duration = Duration::from_secs(30);

/// A case that takes so long has come to a stop.
const LASTS_MAX: Duration = Duration::from_secs(300);

const PARTITIONS: i32 = 2;

/// `invalid_parameter_value`: a locale that is not installed.
const INVALID_VALUE: &str = "22023";

/// The aggregate types of a case, each with a topic; only rows of the first may be published at first.
pub const KINDS: [&str; 2] = ["order", "invoice"];

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Holds,
    /// By `check` and `run` alike.
    Refused(String),
    /// This machine can't make it.
    LeftOut(String),
    Broken(Vec<String>),
}

/// A case, before it is run.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub shape: Shape,
    pub pair: Pair,
}

impl Case {
    /// A name for people and for results.
    pub fn name(&self) -> String {
        format!(
            "{}, {}, {}",
            self.shape.name, self.pair.mode, self.pair.mark
        )
    }

    /// A number that stays the same from run to run, by which cases take turns.
    pub fn turn(&self) -> usize {
        let hash = |sum: u32, byte: u8| sum.wrapping_mul(31).wrapping_add(u32::from(byte));
        (self.name().bytes().fold(7, hash) >> 3) as usize
    }

    /// Whether its walsender is cut amid a commit that nobody sees; else the relay is stopped and started there.
    pub fn is_cut(&self) -> bool {
        self.turn().is_multiple_of(3)
    }

    pub fn past(&self) -> Past {
        match self.shape.past {
            Past::InTurn if self.turn().is_multiple_of(2) => Past::All(100),
            Past::InTurn => Past::Now(100),
            past => past,
        }
    }

    /// Runs it to its end, which may be a panic.
    pub async fn run(&self, servers: &mut Servers) -> Outcome {
        let played = AssertUnwindSafe(play(self, servers)).catch_unwind();
        match tokio::time::timeout(LASTS_MAX, played).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => {
                let text = panic.downcast_ref::<String>().cloned();
                Outcome::Broken(vec![text.unwrap_or_else(|| "panicked".to_owned())])
            }
            Err(_) => Outcome::Broken(vec![format!("did not end within {LASTS_MAX:?}")]),
        }
    }
}

/// An outbox with its writer, its topics and its relay.
pub struct Outbox {
    pub case: Case,
    pub table: String,
    pub database: Database,
    pub config: RelayConfig,
    pub writer: Writer,
    pub relay: Option<Relay>,
    reader: TopicReader,
    /// Rows that can't be marked were asked to be tried again, and so they are sent again.
    pub sends_again: bool,
}

async fn play(case: &Case, servers: &mut Servers) -> Outcome {
    let server = servers.of(case.shape.major);
    let kafka = Kafka::shared().await;
    let mut outboxes = match set_up(case, server, kafka).await {
        Ok(outboxes) => outboxes,
        Err(fault) if fault.starts_with(INVALID_VALUE) => return Outcome::LeftOut(fault),
        Err(fault) => return Outcome::Broken(vec![fault]),
    };
    let mut faults = Vec::new();
    let mut refused = None;
    match asked(&mut outboxes).await {
        Err(fault) => faults.push(fault),
        Ok(Some((index, refusal))) => {
            let outbox = &mut outboxes[index];
            faults.extend(refuse(outbox, &refusal).await.err());
            refused = Some(refusal.line());
        }
        Ok(None) => match scenario::run(&mut outboxes, server).await {
            Ok(()) => {}
            Err(fault) => match halted(&mut outboxes).await {
                Some(reason) => refused = Some(reason),
                None => faults.push(fault),
            },
        },
    }
    for outbox in &mut outboxes {
        faults.extend(outbox.verdict(refused.is_some() || !faults.is_empty()));
    }
    tidy(outboxes, server, kafka).await;
    match refused {
        _ if !faults.is_empty() => Outcome::Broken(faults),
        Some(reason) => Outcome::Refused(reason),
        None => Outcome::Holds,
    }
}

/// `migrate`, then `check`, for each outbox; which one is refused.
async fn asked(outboxes: &mut [Outbox]) -> Result<Option<(usize, Refusal)>, String> {
    for (index, outbox) in outboxes.iter_mut().enumerate() {
        let migrated = outbox.migrate();
        if migrated.is_ok() {
            outbox.once_migrated().await?;
        }
        match (check::ask(&outbox.config)?, migrated) {
            (Answer::Refuses(refusal), Err(text)) if outbox.should_be_made(&refusal) => {
                // What `migrate` is asked for and refuses, with a remedy, leaves no table.
                return match text.contains("\nhint: ") {
                    true => Ok(Some((index, refusal.because(text)))),
                    false => Err(format!("migrate fails: {text}")),
                };
            }
            (Answer::Refuses(refusal), _) => return Ok(Some((index, refusal))),
            (Answer::Passes(_), Ok(())) => {}
            (Answer::Passes(_), Err(text)) => {
                return Err(format!("check passes, and migrate fails: {text}"));
            }
        }
    }
    Ok(None)
}

/// Why a relay halted that was promised no more: `check` warned of it, or refuses what has come since.
async fn halted(outboxes: &mut [Outbox]) -> Option<String> {
    for outbox in outboxes {
        let status = outbox.relay.as_ref()?.try_status().ok()?;
        if status["state"] != "halted" {
            continue;
        }
        if check::warns(&outbox.config, "the relay halts at such a row").ok()? {
            return Some(status["reason"].to_string());
        }
        if let Answer::Refuses(refusal) = check::ask(&outbox.config).ok()? {
            outbox.stop().ok()?;
            refuse(outbox, &refusal).await.ok()?;
            return Some(refusal.line());
        }
    }
    None
}

/// What `check` refuses `run` refuses too, and publishes nothing that is wrong.
async fn refuse(outbox: &mut Outbox, refusal: &Refusal) -> Result<(), String> {
    outbox.relay = check::refused(&outbox.config, refusal).await?;
    Ok(())
}

async fn set_up(
    case: &Case,
    server: &mut Postgres,
    kafka: &'static Kafka,
) -> Result<Vec<Outbox>, String> {
    let shape = &case.shape;
    let tables: &[&str] = match shape.twin {
        Twin::Table(table) => &[shape.table, table],
        Twin::Database => &[shape.table, shape.table],
        Twin::None => &[shape.table],
    };
    let mut outboxes: Vec<Outbox> = Vec::new();
    for (index, table) in tables.iter().enumerate() {
        let own = match outboxes.first() {
            Some(first) if shape.twin != Twin::Database => first.database.clone(),
            _ => create_database(shape, server).await?,
        };
        let outbox = Outbox::new(*case, index, table, own, kafka).await?;
        outboxes.push(outbox);
    }
    Ok(outboxes)
}

async fn create_database(shape: &Shape, server: &Postgres) -> Result<Database, String> {
    let base = server.create_database("shape").await;
    let admin = server.client("postgres").await;
    let name = &base.name;
    let run = async |sql: String| {
        let done = admin.batch_execute(&sql).await;
        done.map_err(|error| told(&error, &sql))
    };
    if !shape.database.is_empty() {
        run(format!("DROP DATABASE {name}")).await?;
        let options = shape.database;
        run(format!(
            "CREATE DATABASE {name} TEMPLATE template0 {options}"
        ))
        .await?;
    }
    for setting in shape.database_settings {
        run(format!("ALTER DATABASE {name} SET {setting}")).await?;
    }
    let settings = match shape.role {
        Role::Superuser => return Ok(base),
        Role::Least(settings) => {
            run(format!("CREATE ROLE {name} LOGIN REPLICATION")).await?;
            settings
        }
        Role::Owner(settings) => {
            run(format!("CREATE ROLE {name} LOGIN REPLICATION")).await?;
            run(format!("ALTER DATABASE {name} OWNER TO {name}")).await?;
            settings
        }
    };
    for setting in settings {
        run(format!("ALTER ROLE {name} {setting}")).await?;
    }
    Ok(base)
}

/// What an outbox and its topics are called.
struct Names<'a> {
    index: usize,
    table: &'a str,
    topics: &'a str,
}

/// What stands in the table before the relay knows of it.
async fn fill(case: &Case, writer: &mut Writer) -> Result<(), String> {
    match case.past() {
        Past::All(0) | Past::Now(0) => Ok(()),
        Past::Now(rows) => writer.past(rows, Wanted::Never).await,
        Past::All(rows) => writer.past(rows, Wanted::Always).await,
        Past::InTurn => unreachable!("`past` has chosen"),
    }
}

fn configuration(
    case: &Case,
    names: &Names<'_>,
    database: &Database,
    kafka: &Kafka,
) -> RelayConfig {
    let Case { shape, pair } = case;
    let url = match shape.role {
        Role::Superuser => database.url.clone(),
        Role::Least(_) | Role::Owner(_) => {
            let role = format!("//{}@", database.name);
            database.url.replacen("//postgres@", &role, 1)
        }
    };
    let start = match case.past() {
        Past::Now(_) => "now",
        _ => "all",
    };
    let Names {
        index,
        table,
        topics,
    } = names;
    let name = format!("{}_{index}", database.name);
    let mut config = RelayConfig::of(&name, &url, &kafka.brokers())
        .mode(pair.mode)
        .mark(pair.mark)
        .table(table)
        .set("source.start", start)
        .topic(&format!("{topics}.${{aggregatetype}}"))
        .set("route.allow", allowed(topics, &KINDS[..1]));
    if shape.twin != Twin::None {
        // Beside another outbox, the names that are given where none is configured.
        config = config
            .without("source.replication.slot")
            .without("source.replication.publication");
    }
    for (ours, name) in shape.renamed {
        config = config.set(&format!("source.columns.{ours}"), *name);
    }
    for (key, value) in shape.settings {
        let value: toml_edit::Value = value.parse().expect("a TOML value");
        config = config.set(key, value);
    }
    config
}

/// Lets rows of every kind through.
pub fn allow_all(config: &RelayConfig) -> RelayConfig {
    let topics = config.topic_of("");
    let topics = topics.trim_end_matches('.');
    config.clone().set("route.allow", allowed(topics, &KINDS))
}

fn allowed(topics: &str, kinds: &[&str]) -> toml_edit::Array {
    kinds
        .iter()
        .map(|kind| format!("{topics}.{kind}"))
        .collect()
}

/// Leaves the server as it was for the next case, and the broker without the topics.
async fn tidy(outboxes: Vec<Outbox>, server: &mut Postgres, kafka: &Kafka) {
    let admin = server.client("postgres").await;
    for mut outbox in outboxes {
        if let Some(mut relay) = outbox.relay.take() {
            relay.kill9();
        }
        let topics = KINDS.map(|kind| outbox.config.topic_of(kind));
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let options = rdkafka::admin::AdminOptions::new();
        let _ = kafka.admin().delete_topics(&topics, &options).await;
        let name = outbox.database.name.clone();
        drop(outbox);
        for sql in [
            format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"),
            format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                 WHERE (database = '{name}' OR starts_with(slot_name, 'outboxd_{name}_')) AND NOT active"
            ),
            format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
            format!("DROP ROLE IF EXISTS {name}"),
        ] {
            let _ = admin.batch_execute(&sql).await;
        }
    }
}

/// Polls until a probe answers `Ok`; the last observation when it does not in time.
pub async fn until<T>(
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, String> {
    let started_at = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(seen) if started_at.elapsed() > STILL_MAX => {
                return Err(format!("waited until {what}; last seen: {seen}"));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
