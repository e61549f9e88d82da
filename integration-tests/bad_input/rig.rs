//! A table of the test's own shape, its topic, and rows that are told apart by their ids.

use std::collections::BTreeMap;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Database, Postgres};
use crate::harness::relay::RelayConfig;
use crate::harness::topic::{Read, TopicReader};
use crate::harness::wait_until;
use crate::orders::ARRIVAL;

/// Resident memory of a relay at the default limits.
pub const RSS_MAX: u64 = 128 << 20;

/// A table that takes anything.
pub const LENIENT: &str = "\
    CREATE TABLE outbox (id text, aggregatetype text, aggregateid text, type text, payload text, headers text,
        topic text, partitionkey text, occurredat timestamptz, seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE)";

pub struct Rig {
    pub database: Database,
    pub config: RelayConfig,
    reader: TopicReader,
}

impl Rig {
    /// The table as this statement creates it, and the topic of the aggregate type `order`.
    pub async fn new(
        postgres: &Postgres,
        (mode, mark): (&str, &str),
        table: &str,
        change: impl FnOnce(RelayConfig) -> RelayConfig,
    ) -> Self {
        Self::with_database(
            postgres,
            (mode, mark),
            table,
            async |_: &Database| (),
            change,
        )
        .await
    }

    /// The same in a database that was made anew.
    pub async fn with_database(
        postgres: &Postgres,
        (mode, mark): (&str, &str),
        table: &str,
        make: impl AsyncFnOnce(&Database),
        change: impl FnOnce(RelayConfig) -> RelayConfig,
    ) -> Self {
        let kafka = Kafka::shared().await;
        let database = postgres.create_database("bad").await;
        make(&database).await;
        // Databases of several servers may share a name, their topics may not.
        let topic = Kafka::unique_name(&database.name);
        let config = RelayConfig::new(&database, kafka)
            .topic(&format!("{topic}.${{aggregatetype}}"))
            .mode(mode)
            .mark(mark)
            .set("source.start", "all");
        let config = change(config);
        run(&database, table).await;
        config.migrate();
        let topic = config.topic_of("order");
        kafka.create_topic(&topic, 1, &[]).await;
        Self {
            database,
            reader: kafka.reader(&[&topic]),
            config,
        }
    }

    pub async fn run(&self, sql: &str) {
        run(&self.database, sql).await;
    }

    /// Inserts a row like all others, and waits until it is published; gives everything that is.
    pub async fn pass(&mut self, id: &str) -> Vec<Read> {
        self.run(&insert(id, "type", "'placed'")).await;
        self.wait_for(id).await
    }

    /// Waits until the row of this id is published, and gives everything that is.
    pub async fn wait_for(&mut self, id: &str) -> Vec<Read> {
        let reader = &mut self.reader;
        wait_until(&format!("`{id}` is published"), ARRIVAL, async || {
            let reads = reader.read_to_end();
            match reads.iter().any(|read| read.header("id") == Some(id)) {
                true => Ok(reads.to_vec()),
                false => Err(format!("{} records", reads.len())),
            }
        })
        .await
    }
}

impl Rig {
    /// Waits until a record with this value is published, and gives everything that is.
    pub async fn wait_for_payload(&mut self, value: &str) -> Vec<Read> {
        let reader = &mut self.reader;
        wait_until(&format!("`{value}` is published"), ARRIVAL, async || {
            let reads = reader.read_to_end();
            match reads.iter().any(|read| read.value_text() == Some(value)) {
                true => Ok(reads.to_vec()),
                false => Err(format!("{} records", reads.len())),
            }
        })
        .await
    }
}

/// How often each id is in the topic.
pub fn counts(reads: &[Read]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for read in reads {
        *counts
            .entry(read.header("id").unwrap_or_default())
            .or_default() += 1;
    }
    counts
}

/// The statement that inserts a row with one column of its own; every row's aggregate is its id.
pub fn insert(id: &str, column: &str, value: &str) -> String {
    let mut row = BTreeMap::from([
        ("id", format!("'{id}'")),
        ("aggregatetype", "'order'".to_owned()),
        ("aggregateid", format!("'{id}'")),
        ("type", "'placed'".to_owned()),
        ("payload", "'{}'".to_owned()),
    ]);
    row.insert(column, value.to_owned());
    let names = row.keys().copied().collect::<Vec<_>>().join(", ");
    let values = row.into_values().collect::<Vec<_>>().join(", ");
    format!("INSERT INTO outbox ({names}) VALUES ({values});")
}

async fn run(database: &Database, sql: &str) {
    let done = database.client().await.batch_execute(sql).await;
    done.unwrap_or_else(|error| panic!("{error:?} in {sql:.2000}"));
}
