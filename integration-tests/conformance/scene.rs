//! What a case works with: a database of its own with an outbox, topics of its own, and a relay's configuration.

use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::kafka::Kafka;
use crate::harness::load;
use crate::harness::oracle::{Oracle, Truth, payload};
use crate::harness::postgres::{Database, Postgres};
use crate::harness::relay::{Relay, RelayConfig, said};
use crate::harness::topic::{Read, TopicReader};
use crate::harness::wait_until;

pub use crate::harness::SOON;

pub const PARTITIONS: i32 = 4;

/// A mode with a mark, on a major version of PostgreSQL.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub mode: &'static str,
    pub mark: &'static str,
    pub major: u32,
}

impl Pair {
    pub fn is_polled(self) -> bool {
        self.mode == "polling"
    }
}

pub struct Scene {
    pub pair: Pair,
    pub database: Database,
    pub client: Client,
    pub kafka: &'static Kafka,
    pub config: RelayConfig,
}

impl Scene {
    /// A table as `outboxd migrate` creates it, and the topic of the aggregate type `order`.
    pub async fn new(pair: Pair) -> Self {
        let scene = Self::bare(pair).await;
        scene.config.migrate();
        scene
    }

    /// No outbox yet.
    pub async fn bare(pair: Pair) -> Self {
        let postgres = Postgres::shared(pair.major).await;
        Self::on(postgres, pair).await
    }

    /// No outbox yet; what the case creates is published from its first row on.
    pub async fn own_table(pair: Pair) -> Self {
        let mut scene = Self::bare(pair).await;
        scene.config = scene.config.clone().set("source.start", "all");
        scene
    }

    pub async fn on(postgres: &Postgres, pair: Pair) -> Self {
        let kafka = Kafka::shared().await;
        let database = postgres.create_database("conformance").await;
        let client = database.client().await;
        load::prepare(&client, 50).await;
        let config = RelayConfig::new(&database, kafka)
            .mode(pair.mode)
            .mark(pair.mark);
        let scene = Self {
            pair,
            database,
            client,
            kafka,
            config,
        };
        scene.create_topic(&scene.topic(), &[]).await;
        scene
    }

    /// Creates a table with every column that a case may need, whose payload has a type of its own.
    pub async fn create_table(&self, name: &str, payload_type: &str) {
        let sql = format!(
            "CREATE TABLE {name} (
                id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255),
                type varchar(255) NOT NULL, payload {payload_type},
                seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE, sent_at timestamptz)"
        );
        self.client
            .batch_execute(&sql)
            .await
            .expect("create an outbox");
    }

    pub async fn create_topic(&self, name: &str, configuration: &[(&str, &str)]) {
        self.kafka
            .create_topic(name, PARTITIONS, configuration)
            .await;
    }

    /// The topic of the aggregate type `order`.
    pub fn topic(&self) -> String {
        self.config.topic_of("order")
    }

    /// What the topic takes at most, by its `max.message.bytes`.
    pub async fn limit_records(&self, bytes: &str) {
        let topic = self.topic();
        self.kafka
            .alter_topic(&topic, "max.message.bytes", bytes)
            .await;
    }

    pub fn start(&self) -> Relay {
        Relay::start(&self.config)
    }

    /// Starts a relay and waits until it delivers what is committed from now on in its steady way: before, a streaming
    /// relay reads the table for what stood there before its slot.
    pub async fn start_steady(&self) -> Relay {
        let relay = self.start();
        let text = match self.pair.is_polled() {
            true => "took the lease",
            false => "the rows that stood in the table are published",
        };
        relay.wait_for_log(text, SOON).await;
        relay
    }

    pub fn reader(&self) -> TopicReader {
        self.kafka.reader(&[&self.topic()])
    }

    pub async fn oracle(&self) -> Oracle {
        Oracle::new(self.database.client().await, self.reader())
    }

    /// Waits until everything committed is in Kafka, and panics unless it is there in order and once.
    pub async fn judge(&self) {
        let mut oracle = self.oracle().await;
        oracle.verdict_when_drained(SOON).await.assert_clean(0);
    }

    /// `judge`, then waits for the marks, stops the relay and looks once more.
    pub async fn judge_to_the_end(&self, relay: &mut Relay) {
        self.judge_to_the_end_with(relay, 0).await;
    }

    /// `judge_to_the_end` with so many duplicates allowed.
    pub async fn judge_to_the_end_with(&self, relay: &mut Relay, duplicates_max: usize) {
        let mut oracle = self.oracle().await;
        let verdict = oracle.verdict_when_drained(SOON).await;
        verdict.assert_clean(duplicates_max);
        self.wait_until_marked().await;
        self.wait_until_confirmed().await;
        stop(relay);
        oracle.verdict().await.assert_clean(duplicates_max);
    }

    /// Waits until every row of the table is marked.
    pub async fn wait_until_marked(&self) {
        let sql = match self.pair.mark {
            "delete" => "SELECT count(*) FROM outbox",
            "none" => return,
            _ => "SELECT count(*) FROM outbox_status WHERE NOT sent",
        };
        let probe = async || match count(&self.client, sql).await {
            0 => Ok(()),
            rows => Err(format!("{rows} are not")),
        };
        wait_until("every row is marked", SOON, probe).await;
    }

    /// Waits until the slot is confirmed up to where the server stands now.
    pub async fn wait_until_confirmed(&self) {
        if self.pair.is_polled() {
            return;
        }
        let now: String = text(&self.client, "SELECT pg_current_wal_insert_lsn()::text").await;
        let sql = format!(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots
             WHERE database = current_database() AND confirmed_flush_lsn < '{now}'"
        );
        let probe = async || match self.client.query_opt(&sql, &[]).await {
            Ok(None) => Ok(()),
            Ok(Some(row)) => Err(format!("{} is before {now}", row.get::<_, &str>(0))),
            Err(error) => Err(error.to_string()),
        };
        wait_until("the slot is confirmed", SOON, probe).await;
    }

    /// Waits until the topics of a reader hold so many records, and returns them all.
    pub async fn wait_for(&self, reader: &mut TopicReader, records: usize) -> Vec<Read> {
        wait_until("the records are in Kafka", SOON, async || {
            let reads = tokio::task::block_in_place(|| reader.read_to_end());
            if reads.len() >= records {
                Ok(reads.to_vec())
            } else {
                Err(format!("{} of {records}", reads.len()))
            }
        })
        .await
    }

    /// Waits until a row is in Kafka.
    pub async fn wait_for_row(&self, reader: &mut TopicReader, id: Uuid) {
        wait_until("the row is in Kafka", SOON, async || {
            let reads = tokio::task::block_in_place(|| reader.read_to_end());
            if has(reads, id) {
                Ok(())
            } else {
                Err(format!("{} others are", reads.len()))
            }
        })
        .await;
    }
}

/// Stops a relay, which must end well.
pub fn stop(relay: &mut Relay) {
    let status = relay.terminate();
    assert!(status.success(), "the relay ended with {status}");
}

/// Whether a row is among the records.
pub fn has(reads: &[Read], id: Uuid) -> bool {
    let id = id.to_string();
    reads.iter().any(|read| read.header("id") == Some(&id))
}

/// Inserts a row of the aggregate type `order` and its truth, in the transaction that is open.
pub async fn insert(client: &Client, aggregate: &str, version: i64) -> Uuid {
    insert_of(client, "order", aggregate, version).await
}

/// `insert` for any aggregate type.
pub async fn insert_of(
    client: &Client,
    aggregate_type: &str,
    aggregate: &str,
    version: i64,
) -> Uuid {
    let row = Truth {
        event_id: Uuid::new_v4(),
        aggregate: aggregate.to_owned(),
        version,
    };
    let sql = "WITH truth AS (INSERT INTO truth VALUES ($1, $2, $3))
               INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
               VALUES ($1, $5, $2, 'Changed', $4::text::json)";
    client
        .execute(
            sql,
            &[
                &row.event_id,
                &aggregate,
                &version,
                &payload(&row, ""),
                &aggregate_type,
            ],
        )
        .await
        .expect("insert a row");
    row.event_id
}

/// Asks for the release of everything that is blocked.
pub fn retry_all(scene: &Scene) {
    let done = scene.config.outboxd(&["blocked", "retry", "--all"]);
    assert!(done.status.success(), "blocked retry: {}", said(&done));
}

pub async fn execute(client: &Client, sql: &str) {
    client
        .batch_execute(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

pub async fn count(client: &Client, sql: &str) -> i64 {
    let row = client.query_one(sql, &[]).await;
    row.unwrap_or_else(|error| panic!("{sql}: {error}")).get(0)
}

pub async fn text(client: &Client, sql: &str) -> String {
    let row = client.query_one(sql, &[]).await;
    row.unwrap_or_else(|error| panic!("{sql}: {error}")).get(0)
}
