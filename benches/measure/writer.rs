//! Who writes rows at a steady pace and remembers when each was committed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use outboxd::commands::demo::broker::Broker;
use outboxd::config::Config;
use outboxd::kafka::producer_config;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use crate::relay::Relay;

/// Commits wait for the disk in each of these at once.
const CONNECTIONS: usize = 16;
const INSERT: &str = "INSERT INTO public.outbox (id, aggregatetype, aggregateid, type, payload)
    VALUES ($1, $3, $2, 'OrderPlaced', json_build_object('version', 1, 'note', repeat('x', 125)))";

/// As long as what INSERT writes.
const PAYLOAD: &[u8; 153] = &[b'x'; 153];

/// The times of one row at its writer.
pub struct Written {
    pub id: Uuid,
    pub due_at: Instant,
    pub committed_at: Instant,
}

/// Connections that commit rows side by side.
#[derive(Clone)]
pub struct Writer {
    connections: Arc<Vec<(Client, Statement)>>,
    /// Aggregate types, each with a topic.
    types: u32,
    publisher: Option<Publisher>,
}

/// Publishes a row once it is committed, as the relay would, to show what Kafka alone takes.
#[derive(Clone)]
struct Publisher {
    producer: ThreadedProducer<DefaultProducerContext>,
    topic: String,
}

impl Writer {
    pub async fn connect(relay: &Relay<'_>) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = relay.server.connect(relay.database).await?;
            let insert = client.prepare(INSERT).await?;
            connections.push((client, insert));
        }
        Ok(Self {
            connections: Arc::new(connections),
            types: 1,
            publisher: None,
        })
    }

    /// Writes rows of so many aggregate types.
    pub fn of_types(self, types: u32) -> Self {
        Self { types, ..self }
    }

    /// Publishes each row itself, by a producer with the relay's properties.
    pub fn publishing(self, relay: &Relay<'_>, topic: &Broker) -> anyhow::Result<Self> {
        let config = Config::parse("outboxd.toml", &relay.configuration(topic)?, [])?;
        let publisher = Publisher {
            producer: producer_config(&config.kafka, &config.limits)?.create()?,
            topic: topic.topic.clone(),
        };
        Ok(Self {
            publisher: Some(publisher),
            ..self
        })
    }

    /// Sends each row when it is due; a connection whose commit takes long is sent the next ones behind it.
    pub async fn write(&self, rate: u32, length: Duration) -> anyhow::Result<Vec<Written>> {
        let (writer, runtime) = (self.clone(), tokio::runtime::Handle::current());
        // A thread of its own: the runtime's timers are a millisecond coarse.
        let paced = tokio::task::spawn_blocking(move || {
            let mut rows = JoinSet::new();
            let started_at = Instant::now();
            let count = length.as_secs() * u64::from(rate);
            for row in 0..count {
                let due_at = started_at + Duration::from_secs_f64(row as f64 / f64::from(rate));
                std::thread::sleep(due_at.saturating_duration_since(Instant::now()));
                let writer = writer.clone();
                let insert = async move { writer.insert(row as usize, due_at).await };
                rows.spawn_on(insert, &runtime);
            }
            rows
        });
        let mut rows = paced.await?;
        let mut written = Vec::new();
        while let Some(row) = rows.join_next().await {
            written.push(row??);
        }
        Ok(written)
    }

    pub async fn insert(&self, row: usize, due_at: Instant) -> anyhow::Result<Written> {
        let (client, insert) = &self.connections[row % self.connections.len()];
        let id = Uuid::new_v4();
        let aggregate = format!("o-{}", fastrand::u32(..1000));
        let kind = match self.types {
            1 => "order".to_owned(),
            types => format!("type-{}", row % types as usize),
        };
        client.execute(insert, &[&id, &aggregate, &kind]).await?;
        let committed_at = Instant::now();
        if let Some(publisher) = &self.publisher {
            publisher.publish(id, &aggregate)?;
        }
        Ok(Written {
            id,
            due_at,
            committed_at,
        })
    }
}

impl Publisher {
    fn publish(&self, id: Uuid, aggregate: &str) -> anyhow::Result<()> {
        let id = id.to_string();
        let header = Header {
            key: "id",
            value: Some(&id),
        };
        let record = BaseRecord::to(&self.topic)
            .key(aggregate)
            .payload(PAYLOAD)
            .headers(OwnedHeaders::new().insert(header));
        let sent = self.producer.send(record);
        sent.map_err(|(error, _)| error).context("publish a row")
    }
}
