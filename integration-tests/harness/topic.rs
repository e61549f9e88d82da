//! Reading topics from the beginning, without a consumer group.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

/// One record, as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// When it was created, in milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
}

impl Read {
    /// The first header of this name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }

    pub fn key_text(&self) -> Option<&str> {
        std::str::from_utf8(self.key.as_deref()?).ok()
    }

    pub fn value_text(&self) -> Option<&str> {
        std::str::from_utf8(self.value.as_deref()?).ok()
    }
}

impl From<&BorrowedMessage<'_>> for Read {
    fn from(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().map(|headers| {
            headers
                .iter()
                .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                .collect()
        });
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
            timestamp_ms: message.timestamp().to_millis(),
        }
    }
}

/// Reads all partitions of some topics and keeps what it read.
pub struct TopicReader {
    consumer: BaseConsumer,
    partitions: HashMap<String, i32>,
    reads: Vec<Read>,
}

impl TopicReader {
    /// Begins at the first record of every partition; panics when a topic does not exist.
    pub fn open(brokers: &str, topics: &[&str]) -> Self {
        let mut settings = client(brokers);
        settings
            .set("group.id", "outboxd-tests")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "20");
        settings
            .set("enable.partition.eof", "true")
            .set("fetch.error.backoff.ms", "50")
            .set("check.crcs", "true");
        let consumer: BaseConsumer = settings.create().expect("a consumer of known settings");
        let mut partitions = HashMap::new();
        let mut assignment = TopicPartitionList::new();
        for topic in topics {
            let metadata = consumer
                .fetch_metadata(Some(topic), super::SOON)
                .expect("look a topic up");
            let count = metadata.topics()[0].partitions().len();
            assert!(count > 0, "topic `{topic}` does not exist");
            partitions.insert((*topic).to_owned(), count as i32);
            for partition in 0..count {
                let added =
                    assignment.add_partition_offset(topic, partition as i32, Offset::Beginning);
                added.expect("a partition starts at its beginning");
            }
        }
        consumer.assign(&assignment).expect("assign partitions");
        Self {
            consumer,
            partitions,
            reads: Vec::new(),
        }
    }

    /// How many partitions each topic has.
    pub fn partitions(&self) -> &HashMap<String, i32> {
        &self.partitions
    }

    /// Reads on until what every partition holds now was read, and returns everything since the beginning.
    ///
    /// Blocks; panics when the broker gives nothing for so long as `SOON`.
    pub fn read_to_end(&mut self) -> &[Read] {
        let mut unread = self.unread();
        let mut moved_at = Instant::now();
        while !unread.is_empty() {
            assert!(
                moved_at.elapsed() < super::SOON,
                "nothing to read, yet missing: {unread:?}"
            );
            match self.consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    let place = (message.topic().to_owned(), message.partition());
                    if unread
                        .get(&place)
                        .is_some_and(|end| message.offset() + 1 >= *end)
                    {
                        unread.remove(&place);
                    }
                    self.reads.push(Read::from(&message));
                    moved_at = Instant::now();
                }
                // While the log grows there is one for every few records: it costs nothing to pass them.
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                // A partition of control records or of deleted ones ends without a record.
                None => unread = self.unread(),
                Some(Err(_)) => {}
            }
        }
        &self.reads
    }

    pub fn reads(&self) -> &[Read] {
        &self.reads
    }

    pub fn into_reads(self) -> Vec<Read> {
        self.reads
    }

    /// The ends of the partitions whose end was not reached.
    fn unread(&self) -> HashMap<(String, i32), i64> {
        let positions = self.consumer.position().expect("ask for positions");
        let mut unread = HashMap::new();
        let all: HashSet<_> = self
            .partitions
            .iter()
            .flat_map(|(topic, count)| (0..*count).map(move |p| (topic, p)))
            .collect();
        for (topic, partition) in all {
            let (first, end) = self.end_of(topic, partition);
            let position = positions
                .find_partition(topic, partition)
                .map(|element| element.offset());
            let reached = match position {
                Some(Offset::Offset(offset)) => offset,
                _ => first,
            };
            if reached < end {
                unread.insert((topic.clone(), partition), end);
            }
        }
        unread
    }

    fn end_of(&self, topic: &str, partition: i32) -> (i64, i64) {
        super::wait_until_blocking("a partition's end is known", super::SOON, || {
            self.consumer
                .fetch_watermarks(topic, partition, Duration::from_secs(5))
                .map_err(|error| error.to_string())
        })
    }
}

/// Settings of a librdkafka client that notices a broker's return within half a second.
pub fn client(brokers: &str) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", brokers)
        .set("broker.address.family", "v4");
    settings
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "500")
        .set("log_level", "0");
    settings
}
