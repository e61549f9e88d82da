//! Closed segments, and those of earlier generations, that were asked for: one query brings all that a batch needs.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::segments::segment_of;
use super::statements;
use crate::mark::MarkError;
use crate::row::ranges::RangeSet;

/// Segments kept between batches: what a stream brings again lies in one or two at a time.
const SEGMENTS_MAX: usize = 4;

/// A segment of a generation.
pub(super) type SegmentKey = (i32, i64);

/// What was sent of the segments that were asked for last.
#[derive(Debug, Default)]
pub(super) struct Recent {
    sent: BTreeMap<SegmentKey, RangeSet>,
}

impl Recent {
    /// Loads those of the segments that are not known, with one query for each generation.
    pub(super) async fn load(
        &mut self,
        client: &Client,
        outbox: &str,
        wanted: &BTreeSet<SegmentKey>,
    ) -> Result<(), MarkError> {
        if wanted.iter().all(|place| self.sent.contains_key(place)) {
            return Ok(());
        }
        if self.sent.len() + wanted.len() > SEGMENTS_MAX {
            self.sent.retain(|place, _| wanted.contains(place));
        }
        let mut missing: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for (generation, segment) in wanted.iter().filter(|place| !self.sent.contains_key(place)) {
            missing.entry(*generation).or_default().push(*segment);
        }
        for (generation, segments) in missing {
            let mut sent = statements::sent(client, outbox, generation, &segments).await?;
            for segment in segments {
                let sent = sent.remove(&segment).unwrap_or_default();
                self.sent.insert((generation, segment), sent);
            }
        }
        Ok(())
    }

    /// Whether a number of a loaded segment was sent.
    pub(super) fn is_sent(&self, generation: i32, seq: i64) -> bool {
        let sent = self.sent.get(&(generation, segment_of(seq)));
        sent.is_some_and(|sent| sent.contains(seq))
    }

    /// Forgets a segment of which more was sent, or which was closed.
    pub(super) fn forget(&mut self, place: SegmentKey) {
        self.sent.remove(&place);
    }
}
