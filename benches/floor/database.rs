//! The backlog that every round drains anew, and the relay's state before the first round.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use outboxd::demo::DemoMode;
use outboxd::demo::broker::Broker;
use outboxd::demo::postgres::{Server, free_port, tail};
use tokio_postgres::Client;

use crate::drain::Transport;
use crate::kafka::Kafka;
use crate::process::Process;

/// The slot in which the whole backlog stays; rounds read copies of it.
pub const SLOT: &str = "outboxd_bench";

/// 95 bytes of other columns and this payload make a row of 250 B.
const FILL: &str = "
    CREATE PROCEDURE fill(rows bigint) LANGUAGE plpgsql AS $$
    BEGIN
        FOR row IN 1..rows LOOP
            INSERT INTO public.outbox (aggregatetype, aggregateid, type, payload)
            VALUES ('order', 'o-' || row % 10000, 'OrderPlaced',
                    json_build_object('order', row % 10000, 'version', row, 'note', repeat('x', 110)));
            COMMIT;
        END LOOP;
    END $$;";

/// Copies every table of the relay's state, so that each round starts where the first one did.
const SAVE_STATE: &str = "
    CREATE SCHEMA saved;
    DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'outboxd' LOOP
            EXECUTE format('CREATE TABLE saved.%I AS TABLE outboxd.%I', name, name);
        END LOOP;
    END $$;";
const RESTORE_STATE: &str = "
    DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'saved' LOOP
            EXECUTE format('DELETE FROM outboxd.%I', name);
            EXECUTE format('INSERT INTO outboxd.%I OVERRIDING SYSTEM VALUE TABLE saved.%I', name, name);
        END LOOP;
    END $$;";

/// A database with a full outbox that nobody has read.
pub struct Backlog<'a> {
    pub server: &'a Server,
    pub kafka: &'a Kafka,
    pub client: Client,
    pub folder: PathBuf,
    pub rows: usize,
    /// Where the stream of the backlog ends.
    pub end_lsn: String,
}

impl<'a> Backlog<'a> {
    /// Creates outbox and slot, lets a relay take possession of them, and fills the table.
    pub async fn fill(
        server: &'a Server,
        kafka: &'a Kafka,
        rows: usize,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let client = prepare(server, kafka, "backlog", folder).await?;
        client.batch_execute(FILL).await?;
        client.batch_execute("SET synchronous_commit = off").await?;
        client.batch_execute(&format!("CALL fill({rows})")).await?;
        let position = "SELECT pg_current_wal_insert_lsn()::text";
        let end_lsn = client.query_one(position, &[]).await?.get(0);
        client
            .batch_execute("SET synchronous_commit = on; CREATE TABLE flushed ()")
            .await?;
        client.batch_execute("VACUUM ANALYZE public.outbox").await?;
        client.batch_execute("CHECKPOINT").await?;
        client.batch_execute(SAVE_STATE).await?;
        Ok(Self {
            server,
            kafka,
            client,
            folder: folder.to_owned(),
            rows,
            end_lsn,
        })
    }

    /// Makes a copy of the full slot, and the relay forget every earlier round.
    pub async fn rewind(&self, slot: &str) -> anyhow::Result<()> {
        self.client.batch_execute(RESTORE_STATE).await?;
        let copy = format!("SELECT pg_copy_logical_replication_slot('{SLOT}', '{slot}')");
        self.client.batch_execute(&copy).await?;
        Ok(())
    }

    /// Removes a copy as soon as nobody reads it any more.
    pub async fn drop_slot(&self, slot: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
        while let Err(error) = self.client.batch_execute(&drop).await {
            anyhow::ensure!(
                Instant::now() < deadline,
                "slot `{slot}` stays in use: {error}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

/// Creates a database with an outbox, and lets a relay start and stop on it once.
pub async fn prepare(
    server: &Server,
    kafka: &Kafka,
    database: &str,
    folder: &Path,
) -> anyhow::Result<Client> {
    let admin = server.connect("postgres").await?;
    admin
        .batch_execute(&format!("CREATE DATABASE {database}"))
        .await?;
    let client = server.connect(database).await?;
    let topic = kafka.topic().await?;
    let relay = Relay {
        server,
        database,
        slot: SLOT,
        mode: DemoMode::Replication,
        transport: Transport::Tcp,
    };
    let config = relay.configure(&topic, folder)?;
    let migrated = relay_command("migrate", &config)
        .stdin(Stdio::null())
        .output()?;
    anyhow::ensure!(
        migrated.status.success(),
        "migrate: {}",
        String::from_utf8_lossy(&migrated.stderr)
    );
    let mut process = relay.start(&topic, folder)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let is_caught_up = "SELECT EXISTS (SELECT FROM outboxd.outbox WHERE caught_up)";
    while !client.query_one(is_caught_up, &[]).await?.get::<_, bool>(0) {
        process
            .ensure_runs()
            .with_context(|| tail(&folder.join("relay.log")))?;
        anyhow::ensure!(
            Instant::now() < deadline,
            "the relay does not start: {}",
            tail(&folder.join("relay.log"))
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    process.stop()?;
    topic.remove().await;
    Ok(client)
}

/// How one `outboxd run` is configured.
pub struct Relay<'a> {
    pub server: &'a Server,
    pub database: &'a str,
    pub slot: &'a str,
    pub mode: DemoMode,
    pub transport: Transport,
}

impl Relay<'_> {
    /// Starts the relay; what it says goes to `relay.log` in the folder.
    pub fn start(&self, topic: &Broker, folder: &Path) -> anyhow::Result<Process> {
        let config = self.configure(topic, folder)?;
        Process::start(
            &mut relay_command("run", &config),
            &folder.join("relay.log"),
        )
    }

    fn configure(&self, topic: &Broker, folder: &Path) -> anyhow::Result<PathBuf> {
        let brokers: Vec<String> = topic
            .servers
            .split(',')
            .map(|server| format!("\"{server}\""))
            .collect();
        let text = format!(
            r#"[source]
url = "{url}"
mode = "{mode}"
mark = "ledger"
[source.replication]
slot = "{slot}"
publication = "{SLOT}"
[route]
topic = "{template}"
allow = ["{allow}"]
[kafka]
brokers = [{brokers}]
[lease]
ttl = "2s"
[admin]
listen = "127.0.0.1:{port}"
"#,
            url = self.transport.url(self.server, self.database),
            mode = self.mode.name(),
            slot = self.slot,
            template = topic.template,
            allow = topic.allow,
            brokers = brokers.join(", "),
            port = free_port()?,
        );
        let config = folder.join("outboxd.toml");
        std::fs::write(&config, text)?;
        Ok(config)
    }
}

fn relay_command(name: &str, config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
    command.arg(name).arg("--config").arg(config);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("OUTBOXD_") {
            command.env_remove(variable);
        }
    }
    command
}
