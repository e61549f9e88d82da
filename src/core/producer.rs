//! What a producer says of rows and topics, in words that decisions are made by. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Names one row in flight; tickets grow by one in publishing order.
pub type Ticket = u64;

/// Whether records can be written to a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicState {
    Available {
        partitions: usize,
    },
    Unknown,
    /// Unknown, and a broker refused to create it with these words.
    NotCreated(String),
    Denied,
    /// Said of a `TopicPartition` only, a single partition.
    Leaderless,
}

/// The bytes that a batch for a topic may have, where brokers refused larger ones.
pub type SmallBatches = BTreeMap<Arc<str>, usize>;

/// Why a producer session ended.
#[derive(Debug)]
pub struct SessionEnd {
    /// The rows whose own reports carried a broker's code, with that code's class; or which a broker may have cut off.
    pub failed: Vec<(Ticket, Fault)>,
    /// The chain of what went wrong, without row contents.
    pub reason: String,
    /// A broker may have cut off a batch as too large: the `batch.size` for the next session.
    pub batch_bytes_max: Option<usize>,
    /// The same of topics that refused one.
    pub small_batches: SmallBatches,
    /// A broker cut off what it was sent: the next session looks at it from its start.
    pub cutting: Option<Cutting>,
}

/// A broker that cuts off what it is sent, and a topic that it can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cutting {
    pub broker: i32,
    pub topic: Arc<str>,
}

/// Whose fault a failed delivery report can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// May be the row's own (too large, invalid): a suspect, guilty only when refused alone.
    Row(String),
    /// The topic's: it may not be written.
    Topic(String),
    /// The topic's: it is not there.
    NoTopic(String),
    /// The session's or the cluster's: never condemns a row.
    Session(String),
}

impl Fault {
    /// What the broker or librdkafka said.
    pub fn text(&self) -> &str {
        match self {
            Self::Row(text) | Self::Topic(text) | Self::NoTopic(text) | Self::Session(text) => text,
        }
    }
}
