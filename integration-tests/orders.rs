//! A small outbox for tests that ask whether rows arrive at all: its database, its topic, rows with known ids.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Database, Postgres};
use crate::harness::relay::{Relay, RelayConfig};
use crate::harness::topic::TopicReader;
use crate::harness::{SOON, wait_until};

/// How long rows may take to arrive on a busy machine.
pub const ARRIVAL: Duration = SOON;

pub const INSERT: &str = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) \
                          SELECT 'order', 'a', 'placed', '{}' FROM generate_series(1, $1::int8) RETURNING id";

pub struct Orders {
    pub database: Database,
    pub client: Client,
    pub config: RelayConfig,
    reader: Mutex<TopicReader>,
}

impl Orders {
    /// A database of this server and a topic on the shared broker; nothing in the database yet.
    pub async fn bare(postgres: &Postgres, prefix: &str) -> Self {
        Self::on(Kafka::shared().await, postgres, prefix).await
    }

    /// `bare` with the topic on this broker.
    pub async fn on(kafka: &Kafka, postgres: &Postgres, prefix: &str) -> Self {
        let create = async |topic: &str| kafka.create_topic(topic, 1, &[]).await;
        Self::at(&kafka.brokers(), postgres, prefix, create).await
    }

    /// `bare` at any brokers, on which the topic of this name is created as asked.
    pub async fn at(
        brokers: &str,
        postgres: &Postgres,
        prefix: &str,
        create_topic: impl AsyncFnOnce(&str),
    ) -> Self {
        let database = postgres.create_database(prefix).await;
        // Databases of several servers may share a name, their topics may not.
        let topic = Kafka::unique_name(&database.name);
        create_topic(&format!("{topic}.order")).await;
        let config = RelayConfig::of(&database.name, &database.url, brokers)
            .topic(&format!("{topic}.${{aggregatetype}}"));
        let reader = Mutex::new(TopicReader::open(brokers, &[&config.topic_of("order")]));
        Self {
            client: database.client().await,
            database,
            config,
            reader,
        }
    }

    /// `bare` with the configuration changed, then migrated.
    pub async fn create(
        postgres: &Postgres,
        prefix: &str,
        change: impl FnOnce(RelayConfig) -> RelayConfig,
    ) -> Self {
        let mut orders = Self::bare(postgres, prefix).await;
        orders.config = change(orders.config);
        orders.config.migrate();
        orders
    }

    /// Commits so many rows and gives their ids.
    pub async fn insert(&self, rows: i64) -> Vec<Uuid> {
        let rows = self.client.query(INSERT, &[&rows]).await;
        let rows = rows.expect("insert into the outbox");
        rows.iter().map(|row| row.get(0)).collect()
    }

    pub async fn run(&self, sql: &str) {
        let done = self.client.batch_execute(sql).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// The ids of all records, in the order of their offsets.
    pub fn published(&self) -> Vec<Uuid> {
        // A reader that panicked has read what it has read.
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let reads = reader.read_to_end();
        reads
            .iter()
            .map(|read| read.header("id").expect("an id").parse().expect("a uuid"))
            .collect()
    }

    /// Waits until every one of these rows is in the topic.
    pub async fn wait_for(&self, ids: &[Uuid]) {
        let what = format!("{} rows are published", ids.len());
        wait_until(&what, ARRIVAL, async || {
            let published: HashSet<Uuid> = self.published().into_iter().collect();
            match ids.iter().filter(|id| !published.contains(id)).count() {
                0 => Ok(()),
                missing => Err(format!("{missing} are missing")),
            }
        })
        .await;
    }

    /// Waits until the view calls every row of the table sent.
    pub async fn wait_until_marked(&self) {
        let sql = "SELECT count(*) FROM outbox_status WHERE NOT sent";
        wait_until("every row is marked", ARRIVAL, async || {
            let row = self.client.query_one(sql, &[]).await;
            match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
                0 => Ok(()),
                unsent => Err(format!("{unsent} are not")),
            }
        })
        .await;
    }
}

/// Waits until `/status` satisfies a condition, and gives it.
pub async fn wait_for_status(relay: &Relay, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait_until(&format!("the relay says {what}"), ARRIVAL, async || {
        let status = relay.try_status()?;
        if is_so(&status) {
            Ok(status)
        } else {
            Err(status.to_string())
        }
    })
    .await
}

/// Waits until role and reason of `/status` say this, whatever the upper case.
pub async fn wait_for_reason(relay: &Relay, role: &str, text: &str) -> Value {
    let what = format!("`{role}` and `{text}`");
    wait_for_status(relay, &what, |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        status["role"] == role && reason.to_lowercase().contains(&text.to_lowercase())
    })
    .await
}
