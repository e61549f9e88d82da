//! How long Kafka takes for what is handed over together. Pure.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use crate::core::Ticket;

/// Rows that were handed to the producer, by the batches in which they were.
#[derive(Debug, Default)]
pub(super) struct HandedOver {
    batches: VecDeque<Batch>,
    /// Rows that waited to hear of their topic, of no batch: later ones went ahead of them.
    apart: HashSet<Ticket>,
}

#[derive(Debug)]
struct Batch {
    last: Ticket,
    /// Rows that were not acknowledged yet.
    left: usize,
    at: Duration,
}

impl HandedOver {
    /// Takes rows whose tickets stand behind all that were taken before.
    pub(super) fn add(&mut self, last: Ticket, rows: usize, at: Duration) {
        self.batches.push_back(Batch {
            last,
            left: rows,
            at,
        });
    }

    /// Takes a row that was handed over behind later ones.
    pub(super) fn add_apart(&mut self, ticket: Ticket) {
        self.apart.insert(ticket);
    }

    /// How long each batch took of which no row is left now.
    pub(super) fn acknowledged(&mut self, tickets: &[Ticket], now: Duration) -> Vec<Duration> {
        let mut took = Vec::new();
        for ticket in tickets {
            if !self.apart.is_empty() && self.apart.remove(ticket) {
                continue;
            }
            let place = self.batches.partition_point(|batch| batch.last < *ticket);
            let Some(batch) = self.batches.get_mut(place) else {
                continue;
            };
            batch.left = batch.left.saturating_sub(1);
            if batch.left == 0 {
                took.push(now.saturating_sub(batch.at));
                self.batches.remove(place);
            }
        }
        took
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_takes_until_the_last_of_its_rows_is_acknowledged_whatever_else_is() {
        let at = Duration::from_secs;
        let seconds = |took: Vec<Duration>| took.iter().map(Duration::as_secs).collect::<Vec<_>>();
        let mut handed_over = HandedOver::default();
        handed_over.add(12, 3, at(0));
        // 13 waits for its topic.
        handed_over.add(15, 2, at(1));
        handed_over.add_apart(13);
        // Those behind 10 are of another partition.
        assert!(handed_over.acknowledged(&[11, 12, 14], at(2)).is_empty());
        assert_eq!(seconds(handed_over.acknowledged(&[15], at(3))), [2]);
        assert!(handed_over.acknowledged(&[13], at(4)).is_empty());
        assert_eq!(seconds(handed_over.acknowledged(&[10], at(9))), [9]);
        // A row of the producer before.
        assert!(handed_over.acknowledged(&[3], at(9)).is_empty());
    }
}
