//! The relay under test: this very program as a process of its own, killed and started again.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use tokio::process::{Child, Command};

use super::broker::Broker;
use super::error::DemoError;
use super::postgres::{self, Server};
use super::{DemoMode, DemoOptions};

/// `outboxd run`, its configuration and its log.
pub(crate) struct Relay {
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// When the relay was killed and when it was started again, in turn.
    pub kills: Vec<Kill>,
}

/// One kill -9.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kill {
    pub killed_at: Instant,
    pub restarted_at: Instant,
}

impl Relay {
    /// Writes the configuration of a relay between these two.
    pub(crate) fn configure(
        options: &DemoOptions,
        server: &Server,
        broker: &Broker,
        folder: &Path,
    ) -> Result<Self, DemoError> {
        let config = folder.join("outboxd.toml");
        let text = configuration(options.mode, server, broker, postgres::free_port()?);
        fs::write(&config, text).map_err(|source| DemoError::Scratch {
            path: config.clone(),
            source,
        })?;
        let program = std::env::current_exe();
        let program = program.map_err(|source| DemoError::Spawn {
            program: "outboxd".into(),
            source,
        })?;
        Ok(Self {
            program,
            config,
            log: folder.join("relay.log"),
            child: None,
            kills: Vec::new(),
        })
    }

    /// Runs `outboxd migrate`.
    pub(crate) async fn migrate(&self) -> Result<(), DemoError> {
        let command = self.command("migrate");
        postgres::output_of(command, "outboxd migrate").await?;
        Ok(())
    }

    /// Starts `outboxd run`, in a process group of its own: Ctrl-C is ours.
    pub(crate) fn start(&mut self) -> Result<(), DemoError> {
        let (log, errors) = self.open_log().map_err(|source| DemoError::Scratch {
            path: self.log.clone(),
            source,
        })?;
        let mut command = self.command("run");
        command.stdout(log).stderr(errors).kill_on_drop(true);
        let spawned = command.spawn();
        self.child = Some(spawned.map_err(|source| DemoError::Spawn {
            program: self.program.clone(),
            source,
        })?);
        Ok(())
    }

    /// A command of this program that obeys our configuration and nothing in the environment.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(name).arg("--config").arg(&self.config);
        command.stdin(Stdio::null()).process_group(0);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("OUTBOXD_") {
                command.env_remove(variable);
            }
        }
        command
    }

    fn open_log(&self) -> std::io::Result<(File, File)> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        Ok((log.try_clone()?, log))
    }

    /// Sends SIGKILL and waits for the end.
    pub(crate) async fn kill(&mut self) -> Result<(), DemoError> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        child.kill().await.map_err(|source| DemoError::Spawn {
            program: self.program.clone(),
            source,
        })
    }

    /// Sends SIGKILL and starts again at once.
    pub(crate) async fn kill_and_restart(&mut self) -> Result<(), DemoError> {
        let killed_at = Instant::now();
        self.kill().await?;
        let restarted_at = Instant::now();
        self.start()?;
        self.kills.push(Kill {
            killed_at,
            restarted_at,
        });
        Ok(())
    }

    /// Fails if the relay has ended by itself.
    pub(crate) fn ensure_runs(&mut self) -> Result<(), DemoError> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => Err(DemoError::RelayEnded {
                status,
                log: self.log_tail(),
            }),
            _ => Ok(()),
        }
    }

    /// What the relay's log ends with.
    pub(crate) fn log_tail(&self) -> String {
        postgres::tail(&self.log)
    }
}

fn configuration(mode: DemoMode, server: &Server, broker: &Broker, admin_port: u16) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let brokers: Vec<String> = broker.servers.split(',').map(quoted).collect();
    let property =
        |(name, value): (&String, &String)| format!("{} = {}", quoted(name), quoted(value));
    let properties: Vec<String> = broker.properties.iter().map(property).collect();
    format!(
        r#"[source]
url = {url}
mode = "{mode}"
table = "public.outbox"
mark = "ledger"
[source.replication]
slot = "outboxd_demo"
publication = "outboxd_demo"
[route]
topic = {template}
allow = [{allow}]
[kafka]
brokers = [{brokers}]
[kafka.properties]
{properties}
[lease]
ttl = "2s"
[admin]
listen = "127.0.0.1:{admin_port}"
"#,
        url = quoted(&server.url("demo")),
        mode = mode.name(),
        template = quoted(&broker.template),
        allow = quoted(&broker.allow),
        brokers = brokers.join(", "),
        properties = properties.join("\n"),
    )
}
