//! What is left of half an hour of 2,000 rows/s: the size of table and indexes, WAL, the relay's memory.
//!
//! Each kind of mark has a server of its own, with autovacuum as PostgreSQL ships it, and all run side by side.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use outboxd::commands::demo::postgres::{Server, find_bin};
use outboxd::commands::demo::scratch::Scratch;
use tokio_postgres::Client;

use crate::contender::{Mode, Transport};
use crate::kafka::{Kafka, Topics};
use crate::meter::position;
use crate::pgbench::Pgbench;
use crate::relay::Relay;
use crate::report::{Figure, Section};
use crate::stand::Stand;

pub const SECTION: &str = "soak";
pub const EARLY: &str = "resident MB after a tenth";
pub const LATE: &str = "resident MB at the end";
/// What the application's rows cost without any mark comes first.
pub const KINDS: [Kind; 5] = [
    Kind::of("none", "none"),
    Kind::of("ledger", "none"),
    Kind::of("ledger", "1m"),
    Kind::of("sent_at", "none"),
    Kind::of("delete", "none"),
];

const DATABASE: &str = "soak";
const USUALLY: Duration = Duration::from_secs(30 * 60);
const TRANSACTIONS_PER_SECOND: &str = "200";
const SCRIPT: &str = "INSERT INTO public.outbox (aggregatetype, aggregateid, type, payload)
SELECT 'order', 'o-' || (random() * 10000)::int, 'OrderPlaced', json_build_object('version', n, 'note', repeat('x', 125))
FROM generate_series(1, 10) AS n;
";
const ARRIVED_MAX: Duration = Duration::from_secs(60);
/// No transaction is rolled back, so that every number is a row.
const INSERTED: &str =
    "SELECT sum(last_value)::bigint FROM pg_sequences WHERE schemaname = 'public'";
const SIZES: &str =
    "SELECT pg_table_size('public.outbox')::float8, pg_indexes_size('public.outbox')::float8,
    (SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::float8 FROM pg_class
     WHERE relkind = 'r' AND relnamespace = 'outboxd'::regnamespace)";

/// How rows are marked, and how long they are kept then.
#[derive(Clone, Copy)]
pub struct Kind {
    mark: &'static str,
    retention: &'static str,
}

impl Kind {
    const fn of(mark: &'static str, retention: &'static str) -> Self {
        Self { mark, retention }
    }

    pub fn line(self) -> String {
        match self.retention {
            "none" => self.mark.into(),
            kept => format!("{}, rows kept {kept}", self.mark),
        }
    }
}

/// One kind on its server.
struct Soak {
    kind: Kind,
    server: Server,
    // Last: the server runs in it.
    scratch: Scratch,
}

impl Stand {
    pub async fn measure_soak(&self) -> anyhow::Result<Section> {
        let watched = self.plan.watched.unwrap_or(USUALLY);
        let about = format!(
            "{} s of 2,000 rows/s by replication, ten rows of 250 B a transaction; sizes in MB, then after VACUUM FULL",
            watched.as_secs()
        );
        let mut section = Section::new(SECTION, &about);
        let mut soaks = Vec::new();
        for kind in KINDS {
            soaks.push(Soak::start(kind).await?);
        }
        let rounds = soaks.iter().map(|soak| soak.round(&self.kafka, watched));
        for (soak, figures) in soaks.iter().zip(try_join_all(rounds).await?) {
            section.add(&soak.kind.line(), &figures);
        }
        Ok(section)
    }
}

impl Soak {
    async fn start(kind: Kind) -> anyhow::Result<Self> {
        let scratch = Scratch::new()?;
        let server = Server::start(find_bin(None)?, &scratch, &[("max_wal_size", "4GB")]).await?;
        Ok(Self {
            kind,
            server,
            scratch,
        })
    }

    async fn round(&self, kafka: &Kafka, watched: Duration) -> anyhow::Result<Vec<Figure>> {
        let relay = Relay {
            server: &self.server,
            database: DATABASE,
            slot: DATABASE,
            mode: Mode::Replication,
            mark: self.kind.mark,
            retention: self.kind.retention,
            transport: Transport::Tcp,
            folder: self.scratch.path(),
        };
        let client = relay.prepare(kafka).await?;
        let topic = kafka.topic().await?;
        let mut process = relay.start(&topic)?;
        let lsn_before = position(&client).await?;
        let early = watched / 10;
        self.write(early).await?;
        let resident_early = process.resident_bytes();
        self.write(watched - early).await?;
        let resident_late = process.resident_bytes();
        let rows: i64 = client.query_one(INSERTED, &[]).await?.get(0);
        self.wait_until_marked(&relay, &client, (kafka, &topic), rows)
            .await?;
        process.ensure_runs()?;
        let wal_bytes = position(&client).await? - lsn_before;
        let cpu = process.cpu();
        let rows = rows as f64;
        let mut figures = vec![
            ("rows", rows),
            ("WAL B/row", wal_bytes as f64 / rows),
            ("CPU µs/row", cpu.as_secs_f64() * 1e6 / rows),
            (EARLY, resident_early as f64 / 1e6),
            (LATE, resident_late as f64 / 1e6),
        ];
        figures.extend(sizes(&client, ["table", "indexes", "ledger and state"]).await?);
        process.stop()?;
        client.batch_execute("VACUUM FULL public.outbox").await?;
        figures.extend(
            sizes(&client, ["table full", "indexes full", "state then"])
                .await?
                .into_iter()
                .take(2),
        );
        topic.remove().await;
        Ok(figures)
    }

    async fn write(&self, length: Duration) -> anyhow::Result<()> {
        let pgbench = Pgbench {
            server: &self.server,
            folder: self.scratch.path(),
            database: DATABASE,
            script: SCRIPT,
            length,
        };
        pgbench
            .run(&["-c", "4", "-R", TRANSACTIONS_PER_SECOND])
            .await?;
        Ok(())
    }

    async fn wait_until_marked(
        &self,
        relay: &Relay<'_>,
        client: &Client,
        (kafka, topic): (&Kafka, &Topics),
        rows: i64,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + ARRIVED_MAX;
        while kafka.records(topic)? < rows as u64 {
            anyhow::ensure!(Instant::now() < deadline, "not all of {rows} rows arrived");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        match self.kind.mark {
            "none" => Ok(()),
            "delete" => relay.wait_until_marked(client, 0).await,
            _ => relay.wait_until_marked(client, rows).await,
        }
    }
}

/// Bytes of the outbox, of its indexes and of the relay's state, in MB.
async fn sizes(client: &Client, names: [&'static str; 3]) -> anyhow::Result<Vec<Figure>> {
    let row = client.query_one(SIZES, &[]).await?;
    let size = |(place, name)| (name, row.get::<_, f64>(place) / 1e6);
    Ok(names.into_iter().enumerate().map(size).collect())
}
