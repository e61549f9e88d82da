//! Which partitions know this producer.
//!
//! A broker takes any sequence number from a producer that it does not know (Kafka 4.1.1): were the first request of a
//! partition refused, the ones behind it would be appended, and overtake it. So nothing follows the first record of a
//! partition until it is acknowledged; from then on the broker refuses what does not follow.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Outgoing, Ticket};

/// Brokers forget a producer that was idle for `producer.id.expiration.ms`, a day where nobody set it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// One partition.
#[derive(Clone, Copy, Debug, Default)]
struct PartitionUse {
    /// The record whose acknowledgement is waited for.
    first: Option<Ticket>,
    used_at: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct FirstAckGate {
    topics: HashMap<Arc<str>, Vec<PartitionUse>>,
    firsts: HashMap<Ticket, (Arc<str>, usize)>,
}

impl FirstAckGate {
    /// The first record of this one's partition is not acknowledged yet.
    pub(super) fn holds_back(&self, outgoing: &Outgoing) -> bool {
        if self.firsts.is_empty() {
            return false;
        }
        let Some(partition) = outgoing.partition else {
            return false;
        };
        let partitions = self.topics.get(&outgoing.record.topic);
        let opening = partitions.and_then(|partitions| partitions.get(partition as usize));
        opening.is_some_and(|opening| opening.first.is_some())
    }

    /// Notes a record that librdkafka has taken.
    pub(super) fn sent(&mut self, outgoing: &Outgoing, now: Instant) {
        let Some(partition) = outgoing.partition else {
            return;
        };
        let (topic, partition) = (&outgoing.record.topic, partition as usize);
        let partitions = match self.topics.get_mut(topic) {
            Some(partitions) => partitions,
            None => self.topics.entry(topic.clone()).or_default(),
        };
        if partitions.len() <= partition {
            partitions.resize(partition + 1, PartitionUse::default());
        }
        let opening = &mut partitions[partition];
        let is_known = opening
            .used_at
            .is_some_and(|at| now.duration_since(at) < FORGOTTEN_AFTER);
        opening.used_at = Some(now);
        if !is_known {
            opening.first = Some(outgoing.ticket);
            self.firsts
                .insert(outgoing.ticket, (topic.clone(), partition));
        }
    }

    pub(super) fn delivered(&mut self, tickets: &[Ticket]) {
        if self.firsts.is_empty() {
            return;
        }
        for ticket in tickets {
            if let Some((topic, partition)) = self.firsts.remove(ticket)
                && let Some(partitions) = self.topics.get_mut(&topic)
            {
                partitions[partition].first = None;
            }
        }
    }
}
