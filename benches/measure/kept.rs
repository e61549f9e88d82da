//! What a new row costs in an outbox that keeps many sent ones, beside one that keeps none.

use std::time::Duration;

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

/// Every segment of the ledger is, but the last.
const ARE_CLOSED: &str = "SELECT count(DISTINCT segment) <= 1 FROM outboxd.ledger WHERE NOT closed";
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
            // Each kept row is compared with the ledger once, and not for each new one.
            let topic = self.kafka.topic().await?;
            relay
                .run_until(client, topic, ARE_CLOSED, CLOSED_MAX)
                .await?;
        }
        client.batch_execute("CHECKPOINT").await?;
        Ok(())
    }
}
