//! Debezium Server, the relay most widely used, on the same slot and the same Kafka.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use outboxd::commands::demo::broker::Broker;
use outboxd::commands::demo::postgres::free_port;

use crate::backlog::Backlog;
use crate::drain::Drain;
use crate::process::Process;
use crate::publishing::Publishing;
use crate::relay::{PUBLICATION, Relay};

/// What is the same in every run.
const SETTINGS: &str = include_str!("../peers/debezium.properties");
/// Enough for its queue; more only makes it larger.
const HEAP: &str = "-Xmx512m";

/// Whether `benches/peers/fetch.sh` has brought it.
pub fn is_installed() -> bool {
    folder().join("stamp").is_file()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".servers/debezium")
}

impl Backlog<'_> {
    pub async fn drain_by_debezium(&self, slot: &str) -> anyhow::Result<Drain> {
        let topic = self.kafka.topics(self.workload.types).await?;
        let process = Relay { slot, ..self.relay }.start_debezium(&topic)?;
        let on = (&self.client, self.kafka);
        let mut publishing = Publishing::watch(on, process, topic, self.workload.rows).await?;
        publishing.until_published().await?;
        let pace = publishing.pace();
        publishing.finish(pace).await
    }
}

impl Relay<'_> {
    /// Starts it on the relay's slot, in a folder of its own in which it finds its configuration; with its log.
    pub fn start_debezium(&self, topic: &Broker) -> anyhow::Result<(Process, PathBuf)> {
        let own = self.folder.join("debezium");
        fs::create_dir_all(own.join("config"))?;
        let settings = format!("{SETTINGS}\n{}", self.debezium_settings(topic)?);
        fs::write(own.join("config/application.properties"), settings)?;
        let folder = folder();
        let runner = format!("{0}/*:{0}/lib/*", folder.display());
        let packed = folder.join("java/bin/java");
        let java = if packed.is_file() {
            packed
        } else {
            "java".into()
        };
        let mut command = Command::new(java);
        command
            .args([HEAP, "-cp", &runner, "io.debezium.server.Main"])
            .current_dir(&own);
        let log = own.join("log");
        Ok((Process::start(&mut command, &log)?, log))
    }

    fn debezium_settings(&self, topic: &Broker) -> anyhow::Result<String> {
        let (database, slot) = (self.database, self.slot);
        let (port, http_port) = (self.server.port(), free_port()?);
        let servers = &topic.servers;
        // Its own placeholder, which is to get past Java's properties and past Quarkus.
        let replacement = topic
            .template
            .replace("${aggregatetype}", "\\\\${routedByValue}");
        Ok(format!(
            "debezium.source.database.hostname=127.0.0.1
debezium.source.database.port={port}
debezium.source.database.user=postgres
debezium.source.database.dbname={database}
debezium.source.slot.name={slot}
debezium.source.publication.name={PUBLICATION}
debezium.transforms.outbox.route.topic.replacement={replacement}
debezium.sink.kafka.producer.bootstrap.servers={servers}
quarkus.http.port={http_port}
"
        ))
    }
}
