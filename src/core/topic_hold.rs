//! Why a topic's rows are held, and what ends it.

/// A topic none of whose rows is published.
#[derive(Clone, Debug)]
pub struct TopicHold {
    pub reason: String,
    /// Its records were refused, whatever a look-up says of it: to be tried again now and then.
    pub is_refused: bool,
    pub help: Help,
    pub rows: u64,
}

/// What ends a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Help {
    /// Somebody creates the topic.
    Create,
    /// Somebody lets the relay describe and write it.
    Allow,
    /// The brokers refuse to create it, and say why.
    AsBrokersSay,
    /// It comes back by itself, or nobody has asked yet.
    Unknown,
}
