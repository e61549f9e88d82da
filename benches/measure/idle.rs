//! What a relay costs while nothing happens, how soon its first row is out, and how large the program is.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::contender::Mode;
use crate::relay::{Relay, program};
use crate::report::{Figure, Section};
use crate::stand::Stand;

pub const SECTION: &str = "idle";
pub const BINARY: &str = "binary";
pub const CPU: &str = "CPU % of a core";
pub const RESIDENT: &str = "resident MB";
pub const FIRST: &str = "start → first record ms";
pub const MB: &str = "MB";

const INSERT: &str = "INSERT INTO public.outbox (aggregatetype, aggregateid, type, payload)
    VALUES ('order', 'o-1', 'OrderPlaced', '{}')";
const WATCHED_USUALLY: Duration = Duration::from_secs(30);
/// What a relay does at its start is over.
const SETTLED: Duration = Duration::from_secs(2);
const FIRST_MAX: Duration = Duration::from_secs(20);

impl Stand {
    pub async fn measure_idle(&self) -> anyhow::Result<Section> {
        let watched = self.plan.watched.unwrap_or(WATCHED_USUALLY);
        let about = format!("Idle for {} s, and started", watched.as_secs());
        let mut section = Section::new(SECTION, &about);
        let binary = std::fs::metadata(program()?)?.len();
        section.add(BINARY, &[(MB, binary as f64 / 1e6)]);
        for mode in [Mode::Replication, Mode::Polling] {
            let relay = self.relay("idle", mode, "ledger");
            let client = relay.prepare(&self.kafka).await?;
            for _ in 0..self.plan.rounds {
                let first = [self.first_record(&relay, &client).await?];
                section.add(mode.name(), &first);
            }
            section.add(mode.name(), &self.idle(&relay, watched).await?);
            relay.remove().await?;
        }
        Ok(section)
    }

    /// Starts a relay for which a row waits, until that row stands in the topic.
    async fn first_record(&self, relay: &Relay<'_>, client: &Client) -> anyhow::Result<Figure> {
        let topic = self.kafka.topic().await?;
        client.batch_execute(INSERT).await?;
        let started_at = Instant::now();
        let mut process = relay.start(&topic)?;
        while self.kafka.records(&topic)? == 0 {
            relay.ensure_runs(&mut process, started_at + FIRST_MAX)?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let first_after = started_at.elapsed();
        process.stop()?;
        topic.remove().await;
        Ok((FIRST, first_after.as_secs_f64() * 1e3))
    }

    async fn idle(&self, relay: &Relay<'_>, watched: Duration) -> anyhow::Result<Vec<Figure>> {
        let topic = self.kafka.topic().await?;
        let mut process = relay.start(&topic)?;
        tokio::time::sleep(SETTLED).await;
        let before = process.cpu_of_threads()?;
        tokio::time::sleep(watched).await;
        process.ensure_runs()?;
        let used = process.cpu_of_threads()?.saturating_sub(before);
        let used = used.as_secs_f64() / watched.as_secs_f64();
        let resident = process.resident_bytes() as f64 / 1e6;
        process.stop()?;
        topic.remove().await;
        Ok(vec![(CPU, used * 100.0), (RESIDENT, resident)])
    }
}
