//! The producers of one session: the usual one, and one with smaller batches for topics that take no larger ones.
//!
//! librdkafka knows one size of batches for all topics of a producer: with that of the smallest, one topic's limit would
//! make all others slow.

use std::sync::Arc;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, Producer, PurgeConfig};
use rdkafka::types::RDKafkaErrorCode;

use super::Outgoing;
use super::reports::{Broker, Harvest, Reports};
use crate::core::SmallBatches;
use crate::kafka::KafkaError;
use crate::kafka::native::Handles;

pub(super) struct Lanes {
    usual: Lane,
    /// Only where a topic needs it.
    small: Option<Lane>,
    topics: SmallBatches,
}

/// One producer.
struct Lane {
    // First, for it must be dropped before the producer.
    handles: Handles,
    producer: Arc<BaseProducer<Reports>>,
    /// Of one request's records of a partition, at most.
    batch_bytes: usize,
}

impl Lane {
    fn new(config: &ClientConfig, broker: &Broker) -> Result<Self, KafkaError> {
        let batch_bytes = config.get("batch.size").map(str::parse);
        let producer = config.create_with_context(Reports::new(broker.clone()))?;
        Ok(Self {
            handles: Handles::default(),
            producer: Arc::new(producer),
            batch_bytes: batch_bytes.and_then(Result::ok).unwrap_or(usize::MAX),
        })
    }

    fn harvest(&self) -> Harvest {
        let reports = self.producer.context();
        reports.serve(&self.producer);
        std::mem::take(&mut *reports.harvest())
    }
}

impl Lanes {
    pub(super) fn new(
        config: &ClientConfig,
        topics: SmallBatches,
        broker: &Broker,
    ) -> Result<Self, KafkaError> {
        let small = match topics.values().min() {
            Some(bytes) => {
                let mut config = config.clone();
                config.set("batch.size", bytes.to_string());
                Some(Lane::new(&config, broker)?)
            }
            None => None,
        };
        Ok(Self {
            usual: Lane::new(config, broker)?,
            small,
            topics,
        })
    }

    fn of(&self, topic: &str) -> &Lane {
        match &self.small {
            Some(small) if self.topics.contains_key(topic) => small,
            _ => &self.usual,
        }
    }

    /// The bytes of one request's records of a partition of this topic, at most.
    pub(super) fn batch_bytes(&self, topic: &str) -> usize {
        self.of(topic).batch_bytes
    }

    /// The same of topics of which nothing else is known.
    pub(super) fn usual_batch_bytes(&self) -> usize {
        self.usual.batch_bytes
    }

    /// Hands one record to the producer of its topic.
    pub(super) fn send(&mut self, outgoing: &Outgoing) -> Result<(), RDKafkaErrorCode> {
        let lane = match &mut self.small {
            Some(small) if self.topics.contains_key(&outgoing.record.topic) => small,
            _ => &mut self.usual,
        };
        lane.handles
            .send(&lane.producer, outgoing.ticket, &outgoing.record)
    }

    /// Serves every event that waits, and takes what the callbacks brought.
    pub(super) fn harvest(&self) -> Harvest {
        let mut harvest = self.usual.harvest();
        if let Some(small) = &self.small {
            // Its connections are others than those that the trials of a broker look at.
            let more = small.harvest();
            harvest.delivered.tickets.extend(more.delivered.tickets);
            harvest.delivered.bytes += more.delivered.bytes;
            harvest.failed.extend(more.failed);
            harvest.is_fatal |= more.is_fatal;
        }
        harvest
    }

    pub(super) fn purge(&self, what: PurgeConfig) {
        for lane in self.all() {
            // A broker's thread may hang in a name look-up; the reports are waited for with a limit.
            lane.producer.purge(what.non_blocking());
        }
    }

    pub(super) fn producer_of(&self, topic: &str) -> Arc<BaseProducer<Reports>> {
        self.of(topic).producer.clone()
    }

    /// The topic of the last record of the usual producer.
    pub(super) fn last_topic(&self) -> Option<&Arc<str>> {
        self.usual.handles.last_topic()
    }

    pub(super) fn fatal_error(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.all()
            .find_map(|lane| lane.producer.client().fatal_error())
    }

    fn all(&self) -> impl Iterator<Item = &Lane> {
        std::iter::once(&self.usual).chain(&self.small)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_topics_limit_leaves_the_batches_of_all_others_as_they_are() {
        let mut config = ClientConfig::new();
        config.set("batch.size", "100000");
        let lanes = |topics| Lanes::new(&config, topics, &Broker::default()).expect("producers");
        let usual = lanes(SmallBatches::new());
        assert_eq!((usual.all().count(), usual.batch_bytes("a")), (1, 100_000));
        let both = lanes([("a".into(), 900), ("b".into(), 400)].into());
        let sizes = ["a", "b", "c"].map(|topic| both.batch_bytes(topic));
        assert_eq!((both.all().count(), sizes), (2, [400, 400, 100_000]));
        let same =
            |one: &str, other: &str| Arc::ptr_eq(&both.producer_of(one), &both.producer_of(other));
        assert!(same("a", "b") && !same("a", "c"));
    }
}
