//! What is held back: blocked aggregates and topics that can't be written.

use std::collections::HashMap;
use std::sync::Arc;

use super::row::ByAggregate;
use super::{Aggregate, RowFacts};
use crate::outbox::RowId;
use crate::publish::TopicState;
use crate::ranges::RangeSet;

/// Bounds the memory that blocked aggregates take; about 2 MB.
const AGGREGATES_MAX: usize = 10_000;

/// The short name of a row that was published and can't be marked.
pub const UNMARKABLE: &str = "mark";

/// What becomes of the rows behind a row at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followers {
    /// They wait in the table.
    Wait,
    /// They become dead letters too, in order.
    Die,
}

/// An aggregate none of whose rows is published.
#[derive(Clone, Debug)]
pub struct HeldAggregate {
    /// Empty until one of its rows was handed out.
    pub aggregate_type: String,
    /// The row at fault.
    pub row: RowId,
    /// A short name of what is wrong, and what is wrong; without row contents.
    pub reason: String,
    pub error: String,
    pub followers: Followers,
    /// Its rows that wait: the one at fault and its followers.
    pub rows: u64,
}

/// A topic none of whose rows is published.
#[derive(Clone, Debug)]
pub struct TopicHold {
    pub reason: String,
    /// Its records were refused, whatever a look-up says of it: to be tried again now and then.
    pub is_refused: bool,
    pub rows: u64,
}

#[derive(Debug)]
enum Topic {
    Asked,
    Available,
    Held(TopicHold),
}

pub(super) enum TopicAnswer {
    Ask,
    Asked,
    Held,
    Available,
}

/// What a session finds recorded when it begins.
#[derive(Debug, Default)]
pub struct Recorded {
    pub aggregates: Vec<(Aggregate, HeldAggregate)>,
    pub topics: Vec<(Arc<str>, TopicHold)>,
    /// The numbers of all rows that are held or kept as dead letters.
    pub numbers: RangeSet,
    /// What the copies of held rows take.
    pub kept_bytes: u64,
}

/// Everything that is held back.
#[derive(Debug, Default)]
pub struct Held {
    aggregates: HashMap<Aggregate, HeldAggregate, ByAggregate>,
    topics: HashMap<Arc<str>, Topic>,
    /// The numbers of the rows whose hold is durable.
    numbers: RangeSet,
}

impl Held {
    /// Begins with what is recorded; what is known of topics that can be written stays.
    pub(super) fn restore(&mut self, recorded: Recorded) {
        self.aggregates = recorded.aggregates.into_iter().collect();
        self.numbers = recorded.numbers;
        for (topic, hold) in recorded.topics {
            self.topics.insert(topic, Topic::Held(hold));
        }
    }

    pub(super) fn followers_of(&self, aggregate: Aggregate) -> Option<Followers> {
        if self.aggregates.is_empty() {
            return None;
        }
        Some(self.aggregates.get(&aggregate)?.followers)
    }

    pub(super) fn block(
        &mut self,
        row: &RowFacts<'_>,
        reason: &str,
        error: &str,
        followers: Followers,
    ) {
        let held = HeldAggregate {
            aggregate_type: String::from_utf8_lossy(row.aggregate_type).into_owned(),
            row: row.id.clone(),
            reason: reason.to_owned(),
            error: error.to_owned(),
            followers,
            rows: 0,
        };
        self.aggregates.insert(row.aggregate, held);
    }

    /// Blocks an aggregate by a row that was published.
    pub(super) fn block_published(
        &mut self,
        aggregate: Aggregate,
        aggregate_type: &str,
        row: &RowId,
        error: &str,
    ) {
        self.aggregates
            .entry(aggregate)
            .or_insert_with(|| HeldAggregate {
                aggregate_type: aggregate_type.to_owned(),
                row: row.clone(),
                reason: UNMARKABLE.to_owned(),
                error: error.to_owned(),
                followers: Followers::Wait,
                rows: 0,
            });
        self.count_follower(aggregate);
    }

    pub(super) fn count_follower(&mut self, aggregate: Aggregate) {
        if let Some(held) = self.aggregates.get_mut(&aggregate) {
            held.rows += 1;
        }
    }

    pub(super) fn count_of_topic(&mut self, topic: &Arc<str>) {
        if let Some(Topic::Held(hold)) = self.topics.get_mut(topic) {
            hold.rows += 1;
        }
    }

    /// Takes a row whose hold is durable.
    pub(super) fn kept(&mut self, seq: Option<i64>) {
        if let Some(seq) = seq {
            self.numbers.insert(seq);
        }
    }

    pub(super) fn ask_topic(&mut self, topic: &Arc<str>) -> TopicAnswer {
        match self.topics.get(topic) {
            None => {
                self.topics.insert(topic.clone(), Topic::Asked);
                TopicAnswer::Ask
            }
            Some(Topic::Asked) => TopicAnswer::Asked,
            Some(Topic::Held(_)) => TopicAnswer::Held,
            Some(Topic::Available) => TopicAnswer::Available,
        }
    }

    /// Holds a topic whose records were refused.
    pub(super) fn refuse_topic(&mut self, topic: &Arc<str>, reason: String) {
        let is_refused = true;
        let hold = TopicHold {
            reason,
            is_refused,
            rows: 0,
        };
        self.topics.insert(topic.clone(), Topic::Held(hold));
    }

    /// Takes what was found out about a topic; `true` when rows that waited for it can go out.
    pub(super) fn topic(&mut self, topic: &Arc<str>, state: &TopicState) -> bool {
        let known = self.topics.get(topic);
        let (was_held, has_rows) = match known {
            Some(Topic::Held(hold)) => (true, hold.rows > 0),
            _ => (false, false),
        };
        let reason = match state {
            TopicState::Available { .. } => {
                self.topics.insert(topic.clone(), Topic::Available);
                return has_rows;
            }
            TopicState::Unknown => "the topic does not exist",
            TopicState::Denied => "the topic may not be described or written",
            TopicState::Leaderless => "the partition has no leader",
        };
        if !was_held {
            let hold = TopicHold {
                reason: reason.to_owned(),
                is_refused: false,
                rows: 0,
            };
            self.topics.insert(topic.clone(), Topic::Held(hold));
        }
        false
    }

    /// Topics that can be written as far as is known.
    pub fn available(&self) -> impl Iterator<Item = &Arc<str>> {
        let is_available = |(name, topic): (_, &Topic)| match topic {
            Topic::Available => Some(name),
            _ => None,
        };
        self.topics.iter().filter_map(is_available)
    }

    /// The numbers of the rows whose hold is durable.
    pub fn numbers(&self) -> &RangeSet {
        &self.numbers
    }

    /// A row waits to hear whether its topic can be written.
    pub fn is_asking(&self) -> bool {
        let mut topics = self.topics.values();
        topics.any(|topic| matches!(topic, Topic::Asked))
    }

    /// A topic that is being asked for is asked for again.
    pub(super) fn ask_again(&mut self) {
        self.topics
            .retain(|_, topic| !matches!(topic, Topic::Asked));
    }

    pub fn aggregates(&self) -> impl Iterator<Item = (&Aggregate, &HeldAggregate)> {
        self.aggregates.iter()
    }

    pub fn aggregate(&self, aggregate: Aggregate) -> Option<&HeldAggregate> {
        self.aggregates.get(&aggregate)
    }

    pub fn topic_hold(&self, topic: &str) -> Option<&TopicHold> {
        match self.topics.get(topic) {
            Some(Topic::Held(hold)) => Some(hold),
            _ => None,
        }
    }

    pub fn topics(&self) -> impl Iterator<Item = (&Arc<str>, &TopicHold)> {
        self.topics.iter().filter_map(|(name, topic)| match topic {
            Topic::Held(hold) => Some((name, hold)),
            _ => None,
        })
    }

    /// Too many aggregates are blocked to keep them in memory.
    pub fn is_full(&self) -> bool {
        self.aggregates.len() >= AGGREGATES_MAX
    }

    /// Rows that are held back.
    pub fn rows(&self) -> u64 {
        let of_topics: u64 = self.topics().map(|(_, hold)| hold.rows).sum();
        self.aggregates.values().map(|held| held.rows).sum::<u64>() + of_topics
    }
}
