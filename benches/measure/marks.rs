//! What each kind of mark costs the database, beside the same statements run by a client that does nothing else.

use std::time::Instant;

use tokio_postgres::Client;

use crate::backlog::fill;
use crate::contender::Mode;
use crate::drain::WAL;
use crate::meter::Meter;
use crate::report::{Figure, Section};
use crate::stand::Stand;

pub const SECTION: &str = "marks";
pub const MARKED_PER_SECOND: &str = "marked rows/s";

/// A relay knows the name of its database, and halts in a copy that is called otherwise.
const ROUND: &str = "marks";
const FILLED: &str = "marks_filled";
/// As many rows as a turn of polling reads.
const BATCH_ROWS: usize = 2_000;
const FILE_BYTES: &str = "SELECT coalesce(sum(pg_relation_size(oid)), 0)::bigint FROM pg_class
    WHERE relkind IN ('r', 'i', 't', 'p') AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)";

/// One kind of mark, with the statement that makes it where it is made in the rows.
struct Mark {
    name: &'static str,
    statement: Option<&'static str>,
}

const MARKS: [Mark; 3] = [
    Mark {
        name: "ledger",
        statement: None,
    },
    Mark {
        name: "sent_at",
        statement: Some(
            "UPDATE public.outbox SET sent_at = clock_timestamp()
             WHERE id = ANY (($1::text[])::uuid[]) AND sent_at IS NULL",
        ),
    },
    Mark {
        name: "delete",
        statement: Some("DELETE FROM public.outbox WHERE id = ANY (($1::text[])::uuid[])"),
    },
];

impl Stand {
    /// Polls a full outbox with each kind of mark; each round begins with a copy of the same database.
    ///
    /// PostgreSQL 15 and newer write such a copy through the WAL, so that no page of it is written whole once more.
    pub async fn measure_marks(&self) -> anyhow::Result<Section> {
        let workload = &self.plan.marked;
        let (rows, about) = (workload.rows, workload.about);
        let about = format!("Marks, by polling: {rows} rows, {about}");
        let mut section = Section::new(SECTION, &about);
        for mark in &MARKS {
            let relay = self.relay(ROUND, Mode::Polling, mark.name);
            let client = relay.prepare(&self.kafka).await?;
            fill(&client, workload).await?;
            drop(client);
            self.copy(ROUND, FILLED).await?;
            relay.remove().await?;
            for _ in 0..self.plan.rounds {
                section.add(mark.name, &self.marks_round(mark, None).await?);
                if let Some(statement) = mark.statement {
                    let figures = self.marks_round(mark, Some(statement)).await?;
                    section.add(&alone(mark.name), &figures);
                }
            }
            self.relay(FILLED, Mode::Polling, mark.name)
                .remove()
                .await?;
        }
        Ok(section)
    }

    /// Marks every row of a copy, by the relay or by a statement alone.
    async fn marks_round(
        &self,
        mark: &Mark,
        statement: Option<&str>,
    ) -> anyhow::Result<Vec<Figure>> {
        self.copy(FILLED, ROUND).await?;
        let client = self.server.connect(ROUND).await?;
        let file_bytes =
            async || -> anyhow::Result<i64> { Ok(client.query_one(FILE_BYTES, &[]).await?.get(0)) };
        let before = file_bytes().await?;
        let (marked_per_second, wal_bytes) = match statement {
            None => self.by_relay(mark, &client).await?,
            Some(statement) => self.by_statement(statement, &client).await?,
        };
        let grown = file_bytes().await? - before;
        self.relay(ROUND, Mode::Polling, mark.name).remove().await?;
        let rows = self.plan.marked.rows as f64;
        Ok(vec![
            (MARKED_PER_SECOND, marked_per_second),
            (WAL, wal_bytes as f64 / rows),
            ("new B/row in files", grown as f64 / rows),
        ])
    }

    async fn copy(&self, database: &str, copy: &str) -> anyhow::Result<()> {
        let admin = self.server.connect("postgres").await?;
        let create = format!("CREATE DATABASE {copy} TEMPLATE {database}");
        Ok(admin.batch_execute(&create).await?)
    }

    async fn by_relay(&self, mark: &Mark, client: &Client) -> anyhow::Result<(f64, u64)> {
        let relay = self.relay(ROUND, Mode::Polling, mark.name);
        let drain = relay.drain(client, &self.kafka, &self.plan.marked).await?;
        Ok((drain.marked_per_second, drain.used.wal_bytes))
    }

    async fn by_statement(&self, statement: &str, client: &Client) -> anyhow::Result<(f64, u64)> {
        let ids = "SELECT id::text FROM public.outbox ORDER BY seq";
        let ids: Vec<String> = client
            .query(ids, &[])
            .await?
            .iter()
            .map(|row| row.get(0))
            .collect();
        let statement = client.prepare(statement).await?;
        let meter = Meter::start(client, &self.kafka).await?;
        let started_at = Instant::now();
        for batch in ids.chunks(BATCH_ROWS) {
            client.execute(&statement, &[&batch]).await?;
        }
        let marked_per_second = ids.len() as f64 / started_at.elapsed().as_secs_f64();
        Ok((marked_per_second, meter.finish().await?.wal_bytes))
    }
}

/// The line of a mark's statement alone.
pub fn alone(mark: &str) -> String {
    format!("{mark}, the statement alone")
}
