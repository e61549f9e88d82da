//! What a round costs beside its own program: the server's processes, the broker, the write-ahead log.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::kafka::Kafka;
use crate::process::cpu_of;

/// The server is asked this often who serves; what each one used is read at every look.
const ASKED_EVERY: Duration = Duration::from_millis(50);
const SERVING: &str = "SELECT pid, backend_type = 'walsender' FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()";
const WRITTEN: &str = "SELECT pg_current_wal_insert_lsn()";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Walsender,
    Backend,
}

/// Watches one round on one database; the connection that asks is not counted.
pub struct Meter<'a> {
    client: &'a Client,
    kafka: &'a Kafka,
    servers: BTreeMap<u32, (Server, Duration)>,
    asked_at: Option<Instant>,
    broker_before: Option<Duration>,
    lsn_before: u64,
}

/// What was used from the start of a round to its end.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub walsender: Duration,
    pub backends: Duration,
    pub broker: Option<Duration>,
    pub wal_bytes: u64,
}

impl<'a> Meter<'a> {
    pub async fn start(client: &'a Client, kafka: &'a Kafka) -> anyhow::Result<Self> {
        Ok(Self {
            client,
            kafka,
            servers: BTreeMap::new(),
            asked_at: None,
            broker_before: kafka.cpu(),
            lsn_before: position(client).await?,
        })
    }

    /// Looks at the server's processes; one that ends is counted up to the last look.
    pub async fn look(&mut self) -> anyhow::Result<()> {
        let is_due = |at: Instant| at.elapsed() >= ASKED_EVERY;
        if self.servers.is_empty() || self.asked_at.is_none_or(is_due) {
            self.ask().await?;
        }
        for (pid, (_, cpu)) in &mut self.servers {
            *cpu = cpu_of(*pid).unwrap_or(*cpu);
        }
        Ok(())
    }

    async fn ask(&mut self) -> anyhow::Result<()> {
        for row in self.client.query(SERVING, &[]).await? {
            let pid = u32::try_from(row.get::<_, i32>(0))?;
            let server = match row.get(1) {
                Some(true) => Server::Walsender,
                _ => Server::Backend,
            };
            self.servers.entry(pid).or_insert((server, Duration::ZERO));
        }
        self.asked_at = Some(Instant::now());
        Ok(())
    }

    pub async fn finish(mut self) -> anyhow::Result<Used> {
        self.asked_at = None;
        self.look().await?;
        let of = |wanted| {
            let used = self.servers.values();
            used.filter(|(server, _)| *server == wanted)
                .map(|(_, cpu)| *cpu)
                .sum()
        };
        Ok(Used {
            walsender: of(Server::Walsender),
            backends: of(Server::Backend),
            broker: self
                .kafka
                .cpu()
                .zip(self.broker_before)
                .map(|(now, before)| now - before),
            wal_bytes: position(self.client).await? - self.lsn_before,
        })
    }
}

/// Where the write-ahead log ends.
pub async fn position(client: &Client) -> anyhow::Result<u64> {
    let row = client.query_one(WRITTEN, &[]).await?;
    Ok(row.get::<_, PgLsn>(0).into())
}
