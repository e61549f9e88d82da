//! The application: pgbench with a script of its own.

use std::path::Path;
use std::time::Duration;

use outboxd::commands::demo::postgres::{Server, output_of};

pub struct Pgbench<'a> {
    pub server: &'a Server,
    /// For its script.
    pub folder: &'a Path,
    pub database: &'a str,
    pub script: &'a str,
    pub length: Duration,
}

impl Pgbench<'_> {
    /// Runs it to its end and gives what it prints.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let script = self.folder.join("pgbench.sql");
        std::fs::write(&script, self.script)?;
        let mut command = tokio::process::Command::new(self.server.bin().join("pgbench"));
        command
            .args(["-n", "-M", "prepared", "-U", "postgres"])
            .args(["-T", &self.length.as_secs().to_string()])
            .arg("-h")
            .arg(self.server.socket_folder())
            .args(["-p", &self.server.port().to_string()])
            .args(arguments)
            .arg("-f")
            .arg(script)
            .arg(self.database);
        Ok(output_of(command, "pgbench").await?)
    }
}
