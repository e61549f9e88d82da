//! The producer session: the only file that imports rdkafka's producer.

use std::sync::Arc;

use crate::encode::Record;

/// Names one row in flight; tickets grow by one in publishing order.
pub type Ticket = u64;

/// A record and the row it stands for.
#[derive(Debug)]
pub struct Outgoing {
    pub ticket: Ticket,
    pub record: Record,
}

/// What the producer thread tells the relay.
#[derive(Debug)]
pub enum PublisherEvent {
    /// The broker acknowledged these rows, in the order in which the reports came.
    Delivered(Vec<Ticket>),
    /// The answer to `Publisher::look_up`.
    Topic { topic: Arc<str>, state: TopicState },
    /// A report failed, or the producer died: nothing more is sent, everything was purged and
    /// harvested; what was neither delivered nor listed here is to be sent again.
    Ended(SessionEnd),
}

/// Whether records can be written to a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicState {
    Available { partitions: usize },
    Unknown,
    Denied,
}

/// Why a producer session ended.
#[derive(Debug)]
pub struct SessionEnd {
    /// The rows whose own reports carried a broker's code, with that code's class.
    pub failed: Vec<(Ticket, Fault)>,
    /// The chain of what went wrong, without row contents.
    pub reason: String,
}

/// Whose fault a failed delivery report can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// May be the row's own (too large, invalid): a suspect, guilty only when refused alone.
    Row(String),
    /// The topic's (unknown, not writable).
    Topic(String),
    /// The session's or the cluster's: never condemns a row.
    Session(String),
}
