//! A relay as a process of its own: its configuration, its tables, its start.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use outboxd::commands::demo::broker::Broker;
use outboxd::commands::demo::postgres::{Server, free_port, tail};
use tokio_postgres::Client;

use crate::contender::{Mode, Transport};
use crate::kafka::{Kafka, Topics};
use crate::process::Process;

/// In every database.
pub const PUBLICATION: &str = "outboxd_bench";
/// A relay starts, or a walsender ends, within this time.
const START_MAX: Duration = Duration::from_secs(20);

/// The relay's program as users get it; this one stands in `examples` beside it.
pub fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent);
    let program = folder
        .context("no folder above this program's")?
        .join("outboxd");
    anyhow::ensure!(
        program.is_file(),
        "no `{}`: `make bench` builds it",
        program.display()
    );
    Ok(program)
}

/// How one `outboxd run` is configured.
#[derive(Clone, Copy)]
pub struct Relay<'a> {
    pub server: &'a Server,
    pub database: &'a str,
    pub slot: &'a str,
    pub mode: Mode,
    pub mark: &'a str,
    pub retention: &'a str,
    pub transport: Transport,
    /// For its configuration and its log.
    pub folder: &'a Path,
}

impl Relay<'_> {
    /// Creates its database with an outbox, and lets it start and stop on that once, by replication.
    pub async fn prepare(&self, kafka: &Kafka) -> anyhow::Result<Client> {
        let first = Relay {
            mode: Mode::Replication,
            ..*self
        };
        let admin = self.server.connect("postgres").await?;
        let create = format!("CREATE DATABASE {}", self.database);
        admin.batch_execute(&create).await?;
        let client = self.server.connect(self.database).await?;
        let topic = kafka.topic().await?;
        let migrated = first
            .command("migrate", &topic)?
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&migrated.stderr);
        anyhow::ensure!(migrated.status.success(), "migrate: {said}");
        let is_caught_up = "SELECT EXISTS (SELECT FROM outboxd.outbox WHERE caught_up)";
        first
            .run_until(&client, topic, is_caught_up, START_MAX)
            .await?;
        Ok(client)
    }

    /// Starts the relay and stops it when a query answers true; removes the topic.
    pub async fn run_until(
        &self,
        client: &Client,
        topic: Topics,
        query: &str,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let mut process = self.start(&topic)?;
        let deadline = Instant::now() + patience;
        while !client.query_one(query, &[]).await?.get::<_, bool>(0) {
            self.ensure_runs(&mut process, deadline)?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        process.stop()?;
        topic.remove().await;
        Ok(())
    }

    /// Removes its database and its slot, and what WAL that has kept.
    pub async fn remove(&self) -> anyhow::Result<()> {
        let admin = self.server.connect("postgres").await?;
        let slots = "SELECT slot_name::text FROM pg_replication_slots WHERE database = $1";
        for row in admin.query(slots, &[&self.database]).await? {
            drop_slot(&admin, row.get(0)).await?;
        }
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.database);
        admin.batch_execute(&drop).await?;
        admin.batch_execute("CHECKPOINT").await?;
        Ok(())
    }

    /// Starts the relay; what it says goes to `relay.log` in the folder.
    pub fn start(&self, topic: &Broker) -> anyhow::Result<Process> {
        Process::start(&mut self.command("run", topic)?, &self.log())
    }

    /// A `pg_recvlogical` that reads its slot and throws away what it reads.
    pub fn receiver(&self) -> Command {
        let server = self.server;
        let mut command = Command::new(server.bin().join("pg_recvlogical"));
        command
            .args(["-h", &self.transport.host(server)])
            .args(["-p", &server.port().to_string(), "-U", "postgres"])
            .args(["-d", self.database, "-S", self.slot])
            .args(["--start", "--no-loop", "-f", "/dev/null"])
            .args(["-o", "proto_version=1"])
            .args(["-o", &format!("publication_names={PUBLICATION}")]);
        command
    }

    /// Fails with the end of the log if the process has ended or the time is up.
    pub fn ensure_runs(&self, process: &mut Process, deadline: Instant) -> anyhow::Result<()> {
        let log = || tail(&self.log());
        process.ensure_runs().with_context(log)?;
        anyhow::ensure!(Instant::now() < deadline, "the relay is late: {}", log());
        Ok(())
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("relay.log")
    }

    /// A command that obeys our configuration and nothing in the environment.
    fn command(&self, name: &str, topic: &Broker) -> anyhow::Result<Command> {
        let config = self.folder.join("outboxd.toml");
        std::fs::write(&config, self.configuration(topic)?)?;
        let mut command = Command::new(program()?);
        command.arg(name).arg("--config").arg(config);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("OUTBOXD_") {
                command.env_remove(variable);
            }
        }
        Ok(command)
    }

    /// Its whole configuration.
    pub fn configuration(&self, topic: &Broker) -> anyhow::Result<String> {
        let brokers: Vec<&str> = topic.servers.split(',').collect();
        let (source_keys, replication_keys) = self.mode.keys();
        Ok(format!(
            r#"[source]
url = "{url}"
{source_keys}
mark = "{mark}"
retention = "{retention}"
[source.replication]
{replication_keys}
slot = "{slot}"
publication = "{PUBLICATION}"
[route]
topic = "{template}"
allow = ["{allow}"]
[kafka]
brokers = {brokers:?}
[lease]
ttl = "2s"
[admin]
listen = "127.0.0.1:{port}"
"#,
            url = self.transport.url(self.server, self.database),
            mark = self.mark,
            retention = self.retention,
            slot = self.slot,
            template = topic.template,
            allow = topic.allow,
            port = free_port()?,
        ))
    }
}

/// Removes a slot as soon as nobody reads it any more.
pub async fn drop_slot(client: &Client, slot: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_MAX;
    let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
    while let Err(error) = client.batch_execute(&drop).await {
        let is_early = Instant::now() < deadline;
        anyhow::ensure!(is_early, "slot `{slot}` stays in use: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
