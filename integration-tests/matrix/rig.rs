//! What a fault is tried on: a database, a topic and a relay's configuration, with light load.

use std::ops::Range;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::scene::Scene;
use crate::harness::cluster::Cluster;
use crate::harness::kafka::Kafka;
use crate::harness::load::{Load, Running};
use crate::harness::oracle::{Oracle, Verdict, truth};
use crate::harness::postgres::{Database, Postgres, USUAL};
use crate::harness::proxy::Proxy;
use crate::harness::relay::{Relay, RelayConfig};
use crate::harness::topic::TopicReader;
use crate::harness::wait_until;

pub use crate::harness::SOON;

/// `limits.in_flight_rows_max`: what one kill may repeat.
pub const WINDOW_ROWS: usize = 500;

/// When a fault is over: the pause between attempts, and what has gathered meanwhile.
const CATCHES_UP_WITHIN: Duration = Duration::from_secs(20);

/// Rows of the largest transaction of the load.
pub const TRANSACTION_ROWS: usize = 6;

pub const PARTITIONS: i32 = 4;

/// A mode with a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair(pub &'static str, pub &'static str);

/// What every other test takes.
pub const STREAMED: Pair = Pair("replication", "ledger");
pub const POLLED: Pair = Pair("polling", "ledger");

impl Pair {
    pub fn is_streamed(self) -> bool {
        self.0 == "replication"
    }

    /// Without marks a lost connection repeats what its batch held, and what went out of the transaction that was open.
    pub fn repeated_by_cuts(self, cuts: usize) -> usize {
        match self.1 {
            "none" => cuts * (WINDOW_ROWS + TRANSACTION_ROWS),
            _ => 0,
        }
    }
}

/// The marks of one run, one for each mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    pub streamed: &'static str,
    pub polled: &'static str,
}

impl Marks {
    pub const LEDGER: Self = marks("ledger", "ledger");

    /// Every mark of each mode, two different ones at a time.
    pub const ROTATION: [Self; 4] = [
        marks("ledger", "sent_at"),
        marks("sent_at", "delete"),
        marks("delete", "ledger"),
        marks("none", "sent_at"),
    ];
}

const fn marks(streamed: &'static str, polled: &'static str) -> Marks {
    Marks { streamed, polled }
}

/// A database with an outbox, its topic, and how a relay finds both.
pub struct Rig {
    pub pair: Pair,
    pub database: Database,
    pub config: RelayConfig,
    brokers: String,
}

impl Rig {
    /// On the servers that tests share.
    pub async fn shared(pair: Pair) -> Self {
        Self::new(pair, Postgres::shared(USUAL).await, Kafka::shared().await).await
    }

    pub async fn new(pair: Pair, postgres: &Postgres, kafka: &Kafka) -> Self {
        let rig = Self::without_topic(pair, postgres, kafka).await;
        let topic = rig.config.topic_of("order");
        kafka.create_topic(&topic, PARTITIONS, &[]).await;
        rig
    }

    /// `new` on three brokers, the topic with so many replicas of each partition.
    pub async fn on_cluster(
        pair: Pair,
        cluster: &Cluster,
        replicas: i32,
        configuration: &[(&str, &str)],
    ) -> Self {
        let postgres = Postgres::shared(USUAL).await;
        let kafka = &cluster.brokers[0];
        let mut rig = Self::without_topic(pair, postgres, kafka).await;
        let addresses = cluster.addresses();
        rig.brokers = addresses.join(",");
        rig.set("kafka.brokers", toml_edit::Array::from_iter(addresses));
        let topic = rig.config.topic_of("order");
        kafka
            .create_replicated(&topic, 2 * PARTITIONS, replicas, configuration)
            .await;
        rig
    }

    async fn without_topic(pair: Pair, postgres: &Postgres, kafka: &Kafka) -> Self {
        let database = postgres.create_database("faults").await;
        let config = RelayConfig::new(&database, kafka)
            .mode(pair.0)
            .mark(pair.1)
            .set("limits.in_flight_rows_max", WINDOW_ROWS as i64);
        config.migrate();
        Self {
            pair,
            database,
            config,
            brokers: kafka.brokers(),
        }
    }

    pub fn relay(&self) -> Relay {
        Relay::start(&self.config)
    }

    pub async fn client(&self) -> Client {
        self.database.client().await
    }

    /// Some hundred rows a second, until it is stopped.
    pub async fn load(&self) -> Running {
        self.load_of(0..300).await
    }

    pub async fn load_of(&self, padding_bytes: Range<usize>) -> Running {
        let load = Load {
            writers: 5,
            pause: Duration::from_millis(20),
            padding_bytes,
            seed: fastrand::u64(..),
            ..Load::default()
        };
        load.start(&self.database.url).await
    }

    pub async fn oracle(&self) -> Oracle {
        let topic = self.config.topic_of("order");
        let reader = TopicReader::open(&self.brokers, &[&topic]);
        Oracle::new(self.client().await, reader)
    }

    /// Leads the relay to PostgreSQL through a proxy.
    pub async fn through_proxy(&mut self) -> Proxy {
        let proxy = Proxy::start(self.database.port()).await;
        self.set("source.url", self.database.url_through(&proxy));
        proxy
    }

    /// Leads the relay to Kafka through a proxy of `Kafka::start_behind_proxy`.
    pub fn through_kafka_proxy(&mut self, proxy: &Proxy) {
        let brokers = format!("127.0.0.1:{}", proxy.port);
        self.set("kafka.brokers", toml_edit::Array::from_iter([brokers]));
    }

    /// Sets a key of the relay's configuration.
    pub fn set(&mut self, key: &str, value: impl Into<toml_edit::Value>) {
        self.config = self.config.clone().set(key, value);
    }

    /// Ends the load, waits until all of it is in Kafka and panics unless it is there in order, with at most so many
    /// duplicates.
    pub async fn judge(&self, load: Running, duplicates_max: usize) -> Verdict {
        load.stop().await;
        let verdict = self.oracle().await.verdict_when_drained(SOON).await;
        verdict.assert_clean(duplicates_max);
        verdict
    }

    /// `judge` that tells a scene instead of panicking; here each repetition must also be a run from before.
    pub async fn show(&self, scene: &Scene, load: Running, duplicates_max: usize) -> Verdict {
        self.judge_standstill(scene).await;
        load.stop().await;
        self.show_log(scene, duplicates_max).await
    }

    /// Once the fault is over, what stands in the table goes out while new rows come: the oldest one does not grow old.
    async fn judge_standstill(&self, scene: &Scene) {
        let mut oracle = self.oracle().await;
        let standing = truth(&self.client().await).await;
        let healed_at = Instant::now();
        let probe = async || match oracle.missing(&standing) {
            0 => Ok(()),
            rows => Err(format!("{rows} of {} are not", standing.len())),
        };
        wait_until("what stood there is published", SOON, probe).await;
        let what = format!("what stood there is published, {}", self.pair.0);
        scene.took(&what, healed_at.elapsed(), CATCHES_UP_WITHIN);
    }

    /// How old the oldest committed row is that is not in Kafka now; rows that were sent may be gone from the table.
    pub async fn oldest_age(&self, client: &Client, oracle: &mut Oracle) -> Duration {
        let sql = "SELECT id, extract(epoch FROM clock_timestamp() - created_at)::float8
                   FROM outbox ORDER BY seq DESC LIMIT 20000";
        let rows = client.query(sql, &[]).await.expect("read the outbox");
        let log = oracle.published();
        let waiting = rows.iter().filter(|row| !log.contains(&row.get(0)));
        let oldest = waiting.map(|row| row.get(1)).fold(0.0, f64::max);
        Duration::from_secs_f64(oldest)
    }

    /// `show` when the writers have ended.
    pub async fn show_log(&self, scene: &Scene, duplicates_max: usize) -> Verdict {
        let verdict = self.verdict(scene, duplicates_max).await;
        scene.require(verdict.torn.is_empty(), || {
            format!(
                "{} repetitions pass over a row: {:?}",
                verdict.torn.len(),
                verdict.torn.first()
            )
        });
        verdict
    }

    /// `show_log` where repetitions may mix with what a frozen relay had sent, or where single rows are repaired.
    pub async fn verdict(&self, scene: &Scene, duplicates_max: usize) -> Verdict {
        let verdict = self.oracle().await.verdict_when_drained(SOON).await;
        eprintln!(
            "{}+{}: {} rows, {} duplicates",
            self.pair.0, self.pair.1, verdict.committed, verdict.duplicates
        );
        scene.judged(&verdict, duplicates_max);
        verdict
    }

    /// The process ids of the relay's backends.
    pub async fn backends(&self, client: &Client) -> Vec<i32> {
        let sql = "SELECT pid FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name LIKE 'outboxd%'";
        let rows = client.query(sql, &[]).await.expect("list the backends");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Waits until every row of the table is marked.
    pub async fn await_marked(&self, client: &Client) {
        let sql = match self.pair.1 {
            "delete" => "SELECT count(*) FROM outbox",
            _ => "SELECT count(*) FROM outbox_status WHERE NOT sent",
        };
        wait_until("every row is marked", SOON, async || {
            let row = client
                .query_one(sql, &[])
                .await
                .map_err(|error| error.to_string())?;
            match row.get::<_, i64>(0) {
                0 => Ok(()),
                rows => Err(format!("{rows} are not")),
            }
        })
        .await;
    }

    /// Waits until the relay reads its slot: before, it reads the table for what stood there first.
    pub async fn await_streaming(&self, client: &Client) {
        wait_until("the slot is read", SOON, async || {
            match self.is_slot_active(client).await {
                Some(true) => Ok(()),
                other => Err(format!("active: {other:?}")),
            }
        })
        .await;
    }

    /// Whether a walsender reads the relay's slot; `None` where it has none.
    pub async fn is_slot_active(&self, client: &Client) -> Option<bool> {
        let sql = "SELECT active FROM pg_replication_slots WHERE database = current_database()";
        let row = client.query_opt(sql, &[]).await.expect("look at the slot");
        row.map(|row| row.get(0))
    }
}

/// Rows that this process of the relay has published.
pub async fn published(relay: &Relay) -> u64 {
    let (_, text) = relay.get("/metrics").unwrap_or_default();
    let value = text.lines().find_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        let is_it = name == METRIC || name.starts_with(&format!("{METRIC}{{"));
        is_it.then(|| value.parse::<f64>().unwrap_or_default())
    });
    value.unwrap_or_default() as u64
}

const METRIC: &str = "outboxd_published_rows_total";

/// Waits until the relay has published rows beyond `before`, and says how long it took.
pub async fn await_publishing(relay: &Relay, before: u64, within: Duration) -> Duration {
    let started_at = std::time::Instant::now();
    wait_until("the relay publishes", within, async || {
        match published(relay).await {
            rows if rows > before => Ok(()),
            rows => Err(format!("{rows} rows")),
        }
    })
    .await;
    started_at.elapsed()
}

/// Lets a random time pass: the moment of a fault is what is varied, so no fact is waited for.
pub async fn random_moment(up_to: Duration) {
    tokio::time::sleep(up_to.mul_f64(fastrand::f64())).await;
}
