//! What is held back: blocked aggregates and topics that can't be written.

use std::collections::HashMap;
use std::sync::Arc;

use super::row::ByAggregate;
use super::topic_hold::TopicHold;
use super::topics::Topics;
use super::{Aggregate, RowFacts};
use crate::row::RowId;
use crate::row::ranges::RangeSet;

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
#[derive(Debug)]
pub struct Held {
    aggregates: HashMap<Aggregate, HeldAggregate, ByAggregate>,
    pub(super) topics: Topics,
    /// The numbers of the rows whose hold is durable.
    numbers: RangeSet,
}

impl Held {
    /// Holds topics together where this share of them can't be written.
    pub(super) fn new(share: f64) -> Self {
        Self {
            aggregates: HashMap::default(),
            topics: Topics::new(share),
            numbers: RangeSet::new(),
        }
    }

    /// Begins with what is recorded; what is known of topics that can be written stays.
    pub(super) fn restore(&mut self, recorded: Recorded) {
        self.aggregates = recorded.aggregates.into_iter().collect();
        self.numbers = recorded.numbers;
        self.topics.restore(recorded.topics);
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

    /// Takes a row whose hold is durable.
    pub(super) fn kept(&mut self, seq: Option<i64>) {
        if let Some(seq) = seq {
            self.numbers.insert(seq);
        }
    }

    /// Topics that can be written as far as is known.
    pub fn available(&self) -> impl Iterator<Item = &Arc<str>> {
        self.topics.available()
    }

    pub fn is_available(&self, topic: &str) -> bool {
        self.topics.is_available(topic)
    }

    /// The numbers of the rows whose hold is durable.
    pub fn numbers(&self) -> &RangeSet {
        &self.numbers
    }

    pub fn aggregates(&self) -> impl Iterator<Item = (&Aggregate, &HeldAggregate)> {
        self.aggregates.iter()
    }

    pub fn aggregate(&self, aggregate: Aggregate) -> Option<&HeldAggregate> {
        self.aggregates.get(&aggregate)
    }

    pub fn topic_hold(&self, topic: &str) -> Option<&TopicHold> {
        self.topics.hold(topic)
    }

    /// Topics that are held, each by its name; `OTHERS` stands for those that are not.
    pub fn topics(&self) -> impl Iterator<Item = (&Arc<str>, &TopicHold)> {
        self.topics.holds()
    }

    /// Topics that can't be written and are held among others.
    pub fn topics_among_others(&self) -> usize {
        self.topics.missing()
    }

    /// The names behind which rows may be released: what can be written, and what is to be looked at again.
    pub fn to_release(&self) -> impl Iterator<Item = &Arc<str>> {
        self.topics.to_release()
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
