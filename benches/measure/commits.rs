//! What a relay costs the application: commits of pgbench beside nothing, beside a slot that is read, beside a relay.

use std::time::Duration;

use anyhow::Context;

use crate::contender::{Contender, Mode, Transport};
use crate::pgbench::Pgbench;
use crate::process::Process;
use crate::report::{Figure, Section};
use crate::stand::Stand;

pub const SECTION: &str = "commits";
pub const COMMITS_PER_SECOND: &str = "commits/s";
/// The line without anything that reads.
pub const ALONE: &str = "no reader";

const DATABASE: &str = "commits";
const WATCHED_USUALLY: Duration = Duration::from_secs(6);
const CLIENTS: &str = "8";
const SCRIPT: &str = "\\set order random(1, 10000)
INSERT INTO public.outbox (aggregatetype, aggregateid, type, payload)
VALUES ('order', 'o-' || :order::int, 'OrderPlaced', json_build_object('order', :order::int, 'note', repeat('x', 125)));
";

/// What reads while pgbench commits.
const READERS: [Option<Contender>; 4] = [
    None,
    Some(Contender::Receive(Transport::Tcp)),
    Some(Contender::Relay(Mode::Replication, Transport::Tcp)),
    Some(Contender::Relay(Mode::Polling, Transport::Tcp)),
];

impl Stand {
    /// Each round has a database of its own, so that nobody finds what another one left.
    pub async fn measure_commits(&self) -> anyhow::Result<Section> {
        let about = format!(
            "Commits of one row of 250 B by pgbench: as many as {CLIENTS} clients can, and 1,000/s"
        );
        let mut section = Section::new(SECTION, &about);
        for _ in 0..self.plan.rounds {
            for reader in READERS {
                let name = reader.map_or_else(|| ALONE.into(), Contender::name);
                let commits = self.commits_beside(reader).await;
                let commits = commits.with_context(|| name.clone())?;
                section.add(&name, &commits);
            }
        }
        Ok(section)
    }

    async fn commits_beside(&self, reader: Option<Contender>) -> anyhow::Result<[Figure; 2]> {
        let mode = match reader {
            Some(Contender::Relay(mode, _)) => mode,
            _ => Mode::Replication,
        };
        let relay = self.relay(DATABASE, mode, "ledger");
        relay.prepare(&self.kafka).await?;
        let topic = self.kafka.topic().await?;
        let process = match reader {
            None => None,
            Some(Contender::Relay(..)) => Some(relay.start(&topic)?),
            Some(_) => {
                let mut command = relay.receiver();
                Some(Process::start(&mut command, &relay.log())?)
            }
        };
        let paced = self.pgbench(&["-R", "1000"], "latency average = ").await?;
        let commits = self.pgbench(&[], "tps = ").await?;
        if let Some(mut process) = process {
            process.ensure_runs()?;
            process.stop()?;
        }
        topic.remove().await;
        relay.remove().await?;
        Ok([
            (COMMITS_PER_SECOND, commits),
            ("ms a commit at 1,000/s", paced),
        ])
    }

    /// Runs pgbench and gives the number that it prints behind `figure`.
    async fn pgbench(&self, pace: &[&str], figure: &str) -> anyhow::Result<f64> {
        let pgbench = Pgbench {
            server: &self.server,
            folder: self.folder(),
            database: DATABASE,
            script: SCRIPT,
            length: self.plan.watched.unwrap_or(WATCHED_USUALLY),
        };
        let arguments = [&["-c", CLIENTS], pace].concat();
        let said = pgbench.run(&arguments).await?;
        let rest = said.lines().find_map(|line| line.strip_prefix(figure));
        let number = rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.with_context(|| format!("pgbench printed no `{figure}`: {said}"))
    }
}
