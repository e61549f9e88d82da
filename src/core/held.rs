//! What is held back: blocked aggregates and topics that can't be written.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Aggregate, RowFacts};
use crate::outbox::RowId;
use crate::publish::TopicState;
use crate::ranges::RangeSet;

/// Bounds the memory that blocked aggregates take; about 2 MB.
const AGGREGATES_MAX: usize = 10_000;

/// An aggregate none of whose rows is published.
#[derive(Clone, Debug)]
pub struct HeldAggregate {
    /// Empty until one of its rows was handed out again.
    pub aggregate_type: String,
    /// The row at fault.
    pub row: RowId,
    /// What is wrong, without row contents.
    pub reason: String,
    /// Its rows that this source has handed out: the one at fault and its followers.
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

/// Everything that is held back, in memory.
#[derive(Debug, Default)]
pub struct Held {
    aggregates: HashMap<Aggregate, HeldAggregate>,
    topics: HashMap<Arc<str>, Topic>,
    /// The numbers of the rows that this source has handed out and that are held.
    numbers: RangeSet,
}

impl Held {
    pub(super) fn holds_aggregate(&self, aggregate: Aggregate) -> bool {
        !self.aggregates.is_empty() && self.aggregates.contains_key(&aggregate)
    }

    pub(super) fn block(&mut self, aggregate: Aggregate, row: &RowId, reason: String) {
        let held = HeldAggregate {
            aggregate_type: String::new(),
            row: row.clone(),
            reason,
            rows: 0,
        };
        self.aggregates.insert(aggregate, held);
    }

    pub(super) fn count(&mut self, row: &RowFacts<'_>, topic: Option<&Arc<str>>) {
        if let Some(seq) = row.seq {
            self.numbers.insert(seq);
        }
        match topic {
            Some(topic) => {
                if let Some(Topic::Held(hold)) = self.topics.get_mut(topic) {
                    hold.rows += 1;
                }
            }
            None => {
                if let Some(held) = self.aggregates.get_mut(&row.aggregate) {
                    held.rows += 1;
                    if held.aggregate_type.is_empty() {
                        held.aggregate_type =
                            String::from_utf8_lossy(row.aggregate_type).into_owned();
                    }
                }
            }
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

    pub(super) fn topic(&mut self, topic: &Arc<str>, state: &TopicState) -> bool {
        let was_held = matches!(self.topics.get(topic), Some(Topic::Held(_)));
        let reason = match state {
            TopicState::Available { .. } => {
                self.topics.insert(topic.clone(), Topic::Available);
                return was_held;
            }
            TopicState::Unknown => "the topic does not exist",
            TopicState::Denied => "the topic may not be described or written",
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

    /// The numbers of the rows of this source that are held back.
    pub fn numbers(&self) -> &RangeSet {
        &self.numbers
    }

    pub(super) fn source_ended(&mut self) {
        self.numbers = RangeSet::new();
        self.aggregates.values_mut().for_each(|held| held.rows = 0);
        self.topics
            .retain(|_, topic| !matches!(topic, Topic::Asked));
        for topic in self.topics.values_mut() {
            if let Topic::Held(hold) = topic {
                hold.rows = 0;
            }
        }
    }

    pub fn aggregates(&self) -> impl Iterator<Item = &HeldAggregate> {
        self.aggregates.values()
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

    /// Rows of this source that are held back.
    pub fn rows(&self) -> u64 {
        let of_topics: u64 = self.topics().map(|(_, hold)| hold.rows).sum();
        self.aggregates.values().map(|held| held.rows).sum::<u64>() + of_topics
    }
}
