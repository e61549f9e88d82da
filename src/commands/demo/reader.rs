//! Reads the topic from its start while the relay writes to it.
//!
//! The mock broker keeps 5 MB of a partition, so the reader follows closely and keeps what it saw.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use uuid::Uuid;

use super::broker::Broker;
use super::error::DemoError;
use super::judge::Held;

const LAST_READ_MAX: Duration = Duration::from_secs(15);

/// What the reader has seen so far.
#[derive(Debug, Default)]
pub struct Seen {
    pub held: Vec<Held>,
    /// When the first record of each event arrived.
    pub arrivals: HashMap<Uuid, Instant>,
    pub arrived_at: Option<Instant>,
}

/// A thread that consumes every partition from offset 0.
pub struct TopicReader {
    seen: Arc<Mutex<Seen>>,
    is_last: Arc<AtomicBool>,
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), KafkaError>>>,
    brokers: String,
}

impl TopicReader {
    /// Starts to read the broker's topic.
    pub fn start(broker: &Broker) -> Result<Self, DemoError> {
        let topic = (broker.topic.clone(), broker.partitions);
        Self::start_on(broker, &[topic])
    }

    /// Starts to read these topics, each with the number of its partitions.
    pub fn start_on(broker: &Broker, topics: &[(String, i32)]) -> Result<Self, DemoError> {
        let consumer = assigned(broker, topics).map_err(|source| DemoError::Broker {
            action: "read the topic",
            brokers: broker.servers.clone(),
            source,
        })?;
        let mut reader = Self {
            seen: Arc::default(),
            is_last: Arc::default(),
            is_stopped: Arc::default(),
            thread: None,
            brokers: broker.servers.clone(),
        };
        let follower = Follower {
            consumer,
            topics: topics.to_vec(),
            seen: reader.seen.clone(),
            is_last: reader.is_last.clone(),
            is_stopped: reader.is_stopped.clone(),
            next: HashMap::new(),
        };
        reader.thread = Some(std::thread::spawn(move || follower.follow()));
        Ok(reader)
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        locked(&self.seen)
    }

    /// Whether every one of these events has arrived.
    pub fn has_all<'a>(&self, ids: impl IntoIterator<Item = &'a Uuid>) -> bool {
        let seen = self.seen();
        ids.into_iter().all(|id| seen.arrivals.contains_key(id))
    }

    /// Reads to the end of every partition and gives all that the broker holds.
    ///
    /// The relay must have ended: what it writes later is not seen. Errors: the end was not reached.
    pub async fn finish(mut self) -> Result<Seen, DemoError> {
        self.is_last.store(true, Ordering::Release);
        let thread = self.thread.take().expect("only `finish` takes the thread");
        let brokers = self.brokers.clone();
        let joined = tokio::task::spawn_blocking(move || thread.join())
            .await
            .map_err(DemoError::Part)?;
        let ended = joined.unwrap_or(Err(KafkaError::Canceled));
        ended.map_err(|source| DemoError::Broker {
            action: "read the topic to its end",
            brokers,
            source,
        })?;
        Ok(std::mem::take(&mut *self.seen()))
    }
}

impl Drop for TopicReader {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The place of a topic, and one of its partitions.
type Partition = (usize, i32);

/// The reader's thread.
struct Follower {
    consumer: BaseConsumer,
    /// Each with the number of its partitions.
    topics: Vec<(String, i32)>,
    seen: Arc<Mutex<Seen>>,
    is_last: Arc<AtomicBool>,
    is_stopped: Arc<AtomicBool>,
    /// The offset that comes next in each partition, by the topic's place.
    next: HashMap<Partition, i64>,
}

impl Follower {
    fn follow(mut self) -> Result<(), KafkaError> {
        while !self.is_stopped.load(Ordering::Acquire) && !self.is_last.load(Ordering::Acquire) {
            self.take(Duration::from_millis(100));
        }
        let deadline = Instant::now() + LAST_READ_MAX;
        let ends = match self.is_stopped.load(Ordering::Acquire) {
            true => return Ok(()),
            false => self.ends()?,
        };
        while ends
            .iter()
            .any(|(partition, end)| self.next.get(partition).unwrap_or(&0) < end)
        {
            if Instant::now() > deadline || self.is_stopped.load(Ordering::Acquire) {
                return Err(KafkaError::Canceled);
            }
            self.take(Duration::from_millis(100));
        }
        Ok(())
    }

    fn ends(&self) -> Result<Vec<(Partition, i64)>, KafkaError> {
        let mut ends = Vec::new();
        for (place, (topic, partitions)) in self.topics.iter().enumerate() {
            for partition in 0..*partitions {
                let watermarks = self
                    .consumer
                    .fetch_watermarks(topic, partition, LAST_READ_MAX)?;
                ends.push(((place, partition), watermarks.1));
            }
        }
        Ok(ends)
    }

    /// Takes one record, if one comes in time; librdkafka repeats what failed by itself.
    fn take(&mut self, timeout: Duration) {
        let Some(Ok(message)) = self.consumer.poll(timeout) else {
            return;
        };
        let now = Instant::now();
        let place = self
            .topics
            .iter()
            .position(|(topic, _)| topic == message.topic());
        let partition = (place.unwrap_or_default(), message.partition());
        self.next.insert(partition, message.offset() + 1);
        let held = held(&message);
        let mut seen = locked(&self.seen);
        seen.arrived_at = Some(now);
        if let Some(id) = held.id {
            seen.arrivals.entry(id).or_insert(now);
        }
        seen.held.push(held);
    }
}

/// A thread that panicked while it held the lock has left whole records.
fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn assigned(broker: &Broker, topics: &[(String, i32)]) -> Result<BaseConsumer, KafkaError> {
    let mut client = broker.client.clone();
    let consumer: BaseConsumer = client
        .set("group.id", format!("{}-reader", broker.topic))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", broker.fetch_wait_ms.to_string())
        .create()?;
    let mut partitions = TopicPartitionList::new();
    for (topic, count) in topics {
        for partition in 0..*count {
            partitions.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
    }
    consumer.assign(&partitions)?;
    Ok(consumer)
}

/// A header's text without the quotes that Debezium puts around it.
fn bare(value: &[u8]) -> &[u8] {
    let inner = value
        .strip_prefix(b"\"")
        .and_then(|value| value.strip_suffix(b"\""));
    inner.unwrap_or(value)
}

fn held(message: &BorrowedMessage<'_>) -> Held {
    let id = message
        .headers()
        .and_then(|headers| headers.iter().find(|header| header.key == "id"));
    let id = id
        .and_then(|header| header.value)
        .and_then(|value| Uuid::try_parse_ascii(bare(value)).ok());
    let aggregate = message
        .key()
        .map(|key| String::from_utf8_lossy(key).into_owned());
    let value = message
        .payload()
        .and_then(|value| serde_json::from_slice::<serde_json::Value>(value).ok());
    let version = value.and_then(|value| value.get("version")?.as_i64());
    Held {
        partition: message.partition(),
        offset: message.offset(),
        id,
        aggregate,
        version,
    }
}
