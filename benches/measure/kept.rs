//! What a new row costs in an outbox that keeps many sent ones, beside one that keeps none.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::backlog::fill;
use crate::contender::Mode;
use crate::relay::{Relay, drop_slot};
use crate::report::Section;
use crate::stand::Stand;
use crate::workload::{Workload, kept_below};

pub const SECTION: &str = "kept";
const DATABASE: &str = "kept";
/// With rows that are sent by then, whatever marks them.
const MARKED_AT_ONCE: &str =
    "ALTER TABLE public.outbox ALTER COLUMN sent_at SET DEFAULT clock_timestamp()";
const MARKED_LATER: &str = "ALTER TABLE public.outbox ALTER COLUMN sent_at DROP DEFAULT";

/// Segments of the ledger that are not closed; the last one stays open.
const OPEN: &str = "SELECT count(DISTINCT segment) FROM outboxd.ledger WHERE NOT closed";
const CLOSED_MAX: Duration = Duration::from_secs(120);

/// The marks that keep rows.
pub const MARKS: [&str; 2] = ["ledger", "sent_at"];

/// The line of a mark in a table that keeps rows or none.
pub fn line(mark: &str, is_full: bool) -> String {
    let kept = if is_full { "rows kept" } else { "no row kept" };
    format!("{mark}, {kept}")
}

impl Stand {
    /// Polls and marks new rows, in turn with more of them.
    pub async fn measure_kept(&self) -> anyhow::Result<Section> {
        let new = &self.plan.new;
        let kept_rows = kept_below(new);
        let about = format!(
            "New rows by polling, with {} rows kept or none: {}, {}",
            kept_rows.rows, new.rows, new.about
        );
        let mut section = Section::new(SECTION, &about);
        for mark in MARKS {
            for kept in [None, Some(&kept_rows)] {
                let relay = self.relay(DATABASE, Mode::Polling, mark);
                let client = relay.prepare(&self.kafka).await?;
                // Nobody reads it, and it would keep all WAL.
                drop_slot(&client, relay.slot).await?;
                if let Some(kept) = kept {
                    self.keep(&relay, &client, kept).await?;
                }
                for _ in 0..self.plan.rounds {
                    fill(&client, new).await?;
                    let drain = relay.drain(&client, &self.kafka, new).await?;
                    section.add(&line(mark, kept.is_some()), &drain.figures());
                }
                relay.remove().await?;
            }
        }
        Ok(section)
    }

    /// Fills the outbox with rows that are sent: a ledger is best written by a relay that sends them.
    async fn keep(
        &self,
        relay: &Relay<'_>,
        client: &Client,
        kept: &Workload,
    ) -> anyhow::Result<()> {
        eprintln!("{SECTION}: {} rows to keep", kept.rows);
        if relay.mark == "sent_at" {
            client.batch_execute(MARKED_AT_ONCE).await?;
            fill(client, kept).await?;
            client.batch_execute(MARKED_LATER).await?;
        } else {
            fill(client, kept).await?;
            relay.drain(client, &self.kafka, kept).await?;
            self.close_segments(relay, client).await?;
        }
        client.batch_execute("CHECKPOINT").await?;
        Ok(())
    }

    /// Lets a relay compare the kept rows' segments with the table: once for each of their rows, not for each new one.
    async fn close_segments(&self, relay: &Relay<'_>, client: &Client) -> anyhow::Result<()> {
        let topic = self.kafka.topic().await?;
        let mut process = relay.start(&topic)?;
        let deadline = Instant::now() + CLOSED_MAX;
        while client.query_one(OPEN, &[]).await?.get::<_, i64>(0) > 1 {
            relay.ensure_runs(&mut process, deadline)?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        process.stop()?;
        topic.remove().await;
        Ok(())
    }
}
