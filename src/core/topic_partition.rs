//! A partition as something that rows may have to wait for, under a name that no topic can have.

use std::fmt;
use std::sync::Arc;

use crate::encode::Record;

/// One partition of a topic that has so many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: u32,
    pub partitions: u32,
    /// What `Display` writes.
    name: Arc<str>,
}

impl TopicPartition {
    pub fn new(topic: &Arc<str>, partition: u32, partitions: u32) -> Self {
        Self {
            topic: topic.clone(),
            partition,
            partitions,
            name: format!("{topic}[{partition}/{partitions}]").into(),
        }
    }

    /// Reads what `Display` writes; `None` for the name of a topic.
    pub fn parse(name: &Arc<str>) -> Option<Self> {
        let (topic, rest) = name.split_once('[')?;
        let (partition, partitions) = rest.strip_suffix(']')?.split_once('/')?;
        Some(Self {
            topic: topic.into(),
            partition: partition.parse().ok()?,
            partitions: partitions
                .parse()
                .ok()
                .filter(|&partitions| partitions > 0)?,
            name: name.clone(),
        })
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether the producer puts this record there; one without a key goes where a leader is.
    pub fn takes(&self, record: &Record) -> bool {
        record.topic == self.topic && partition_of(record, self.partitions) == Some(self.partition)
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The partition of so many into which the producer puts a record; one without a key goes to any.
pub fn partition_of(record: &Record, partitions: u32) -> Option<u32> {
    let key = record.key.as_deref()?;
    (murmur2(key) & 0x7fff_ffff).checked_rem(partitions)
}

/// Source: `org.apache.kafka.common.utils.Utils.murmur2`; `murmur2` and `murmur2_random` of librdkafka agree with it.
fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    // Keys are shorter than 4 GB: a record is.
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let word = u32::from_le_bytes(*word).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ (word ^ (word >> 24)).wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_as_in_kafkas_own_test() {
        // UtilsTest.testMurmur2 of Apache Kafka.
        for (key, hash) in [
            (&b"21"[..], -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key).cast_signed(), hash);
        }
    }

    #[test]
    fn a_place_is_read_as_it_is_written_and_no_topic_is_one() {
        let place = TopicPartition::new(&"orders.v1".into(), 3, 12);
        assert_eq!(place.to_string(), "orders.v1[3/12]");
        assert_eq!(TopicPartition::parse(place.name()), Some(place));
        for name in ["orders", "orders[3]", "orders[3/0]", "orders[x/2]"] {
            assert_eq!(TopicPartition::parse(&name.into()), None, "{name}");
        }
    }
}
