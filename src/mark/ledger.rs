//! The ledger of sent rows: exact ranges of `seq` in a table of ours; see "The ledger" in docs/design.md.
//!
//! Owns what is known of the numbers of the current generation. Never holds a number as sent that
//! the broker did not acknowledge.

mod recent;
mod segments;
mod statements;

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::{FencingToken, MarkError};
use crate::core::Delivered;
use crate::row::ranges::RangeSet;
use crate::row::{Lsn, OutboxRow};
use recent::Recent;
use segments::segments_of;
pub use segments::{SEGMENT_ROWS, numbers_of, segment_of};
pub(crate) use segments::{number_sql, segment_numbers_sql, segment_sql, segments_sql};
pub use statements::{Audit, Checkpoint, compact};
pub(crate) use statements::{Head, LEASE};

/// The newest number of the ledger and the row that carried it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    pub seq: i64,
    pub id: String,
}

/// What is known of the numbers of one outbox.
#[derive(Debug)]
pub struct Ledger {
    token: FencingToken,
    generation: i32,
    /// Earlier generations and the commits that each bounds, oldest first.
    earlier: Vec<(i32, Lsn)>,
    high_lsn: Lsn,
    sent: RangeSet,
    /// Skipped at the start, held, or kept as dead letters.
    skipped: RangeSet,
    /// Sent, rolled back, skipped or in a closed segment; few ranges, for rolled-back numbers fill the gaps.
    accounted: RangeSet,
    tail: Option<Tail>,
    /// Closed segments that are not in memory.
    unloaded: BTreeSet<i64>,
    /// Segments in memory that are not closed in the table.
    open: BTreeSet<i64>,
    /// A sent number that comes again is a row that moved to another partition.
    expects_moves: bool,
    /// What was asked for of the segments that are not in memory.
    recent: Recent,
}

/// What a streamed number means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    New,
    Sent,
    Reused,
    /// Another generation's, or a segment that is not in memory.
    Ask {
        generation: i32,
    },
}

impl Ledger {
    /// Loads the tail and the open segments of the current generation.
    pub async fn load(
        client: &Client,
        token: FencingToken,
        generation: i32,
        skipped: RangeSet,
    ) -> Result<Self, MarkError> {
        let heads = statements::heads(client, &token.outbox).await?;
        let mut ledger = Self::of_heads(token, generation, heads, skipped);
        let open: Vec<i64> = ledger.open.iter().copied().collect();
        let sent = statements::sent(client, &ledger.token.outbox, generation, &open).await?;
        let mut segments = sent.into_values();
        let mut sent = segments.next().unwrap_or_default();
        segments.for_each(|segment| sent.extend(&segment));
        ledger.take_sent(sent);
        Ok(ledger)
    }

    /// Knows which segments there are, and not yet what was sent of them.
    pub(crate) fn of_heads(
        token: FencingToken,
        generation: i32,
        heads: Vec<Head>,
        skipped: RangeSet,
    ) -> Self {
        let mut ledger = Self {
            token,
            generation,
            earlier: Vec::new(),
            high_lsn: Lsn(0),
            sent: RangeSet::new(),
            skipped,
            accounted: RangeSet::new(),
            tail: None,
            unloaded: BTreeSet::new(),
            open: BTreeSet::new(),
            expects_moves: false,
            recent: Recent::default(),
        };
        let mut earlier = BTreeMap::new();
        for head in heads {
            if head.generation != generation {
                let high: &mut Lsn = earlier.entry(head.generation).or_default();
                *high = (*high).max(head.high_lsn);
                continue;
            }
            ledger.take_head(head);
        }
        ledger.earlier = earlier.into_iter().collect();
        ledger
    }

    /// Takes what was sent of the open segments.
    pub(crate) fn take_sent(&mut self, sent: RangeSet) {
        self.sent = sent;
        self.accounted = self.settled();
    }

    /// From now on a sent number that comes again is a repetition, not the first of a new generation.
    pub fn expect_moves(&mut self) {
        self.expects_moves = true;
    }

    fn take_head(&mut self, head: Head) {
        self.high_lsn = self.high_lsn.max(head.high_lsn);
        if self
            .tail
            .as_ref()
            .is_none_or(|tail| tail.seq < head.last_seq)
        {
            self.tail = Some(Tail {
                seq: head.last_seq,
                id: head.last_id,
            });
        }
        let known = if head.is_closed {
            &mut self.unloaded
        } else {
            &mut self.open
        };
        known.insert(head.segment);
    }

    /// The highest number that was sent, and its row's id.
    pub fn tail(&self) -> Option<&Tail> {
        self.tail.as_ref()
    }

    pub fn generation(&self) -> i32 {
        self.generation
    }

    /// The numbers up to the highest seen that need no look-up: sent, skipped, or in a closed
    /// segment. What is missing from it is a hole, those of rolled-back transactions too: they are found again.
    pub fn settled(&self) -> RangeSet {
        let mut settled = self.sent.union(&self.skipped);
        for segment in &self.unloaded {
            settled.insert_range(numbers_of(*segment));
        }
        settled
    }

    /// Of the numbers of which it is known what became of them: those that were skipped, are held or dead letters.
    pub fn unsent(&self) -> &RangeSet {
        &self.skipped
    }

    /// Every number of which it is known what became of it, rolled-back ones included.
    pub fn accounted(&self) -> &RangeSet {
        &self.accounted
    }

    /// The highest number known to be settled, the lowest there can be where there is none.
    pub fn highest(&self) -> i64 {
        let sent = self.tail.as_ref().map_or(i64::MIN, |tail| tail.seq);
        sent.max(self.skipped.last().unwrap_or(i64::MIN))
    }

    /// Takes numbers that are recorded as held or as dead letters: settled, and never sent.
    pub fn note_kept(&mut self, kept: &RangeSet) {
        self.skipped.extend(kept);
        self.accounted.extend(kept);
    }

    /// Takes the lowest number that the sequence can give: no row will ever carry one below it.
    pub fn begins_at(&mut self, first: i64) {
        if let Some(below) = first.checked_sub(1) {
            self.accounted.insert_range(i64::MIN..=below);
        }
    }

    /// Takes numbers that no row will ever carry.
    pub fn note_rolled_back(&mut self, rolled_back: &RangeSet) {
        self.accounted.extend(rolled_back);
    }

    /// Tells for each streamed row whether its number was sent or skipped.
    ///
    /// What is not in memory is asked for by the batch: its segments are read whole, one query for each generation.
    ///
    /// Errors: `NumberReused` when the stream brings a sent number with a commit above every one
    /// that the ledger covers: a new generation has to begin before the row is published.
    pub async fn settled_before(
        &mut self,
        client: &Client,
        rows: &[OutboxRow],
    ) -> Result<Vec<bool>, MarkError> {
        let meaning = |row: &OutboxRow| row.seq.map(|seq| (seq, self.meaning(seq, row.lsn)));
        let meanings: Vec<_> = rows.iter().map(meaning).collect();
        let wanted: BTreeSet<recent::SegmentKey> =
            meanings.iter().flatten().filter_map(place).collect();
        if !wanted.is_empty() {
            let outbox = &self.token.outbox;
            self.recent.load(client, outbox, &wanted).await?;
        }
        let settled = |(row, meaning): (&OutboxRow, &Option<(i64, Meaning)>)| match meaning {
            None => Ok(false),
            Some((seq, meaning)) => self.is_settled(*seq, row.lsn, meaning),
        };
        rows.iter().zip(&meanings).map(settled).collect()
    }

    /// Whether a number was sent or skipped; the segment that it asks for is loaded.
    fn is_settled(&self, seq: i64, lsn: Lsn, meaning: &Meaning) -> Result<bool, MarkError> {
        match meaning {
            Meaning::New => Ok(false),
            Meaning::Sent => Ok(true),
            Meaning::Ask { generation } => {
                let is_sent = self.recent.is_sent(*generation, seq);
                let is_reused = is_sent && *generation == self.generation && lsn > self.high_lsn;
                if is_reused && !self.expects_moves {
                    return Err(self.reused(seq));
                }
                Ok(is_sent && !is_reused)
            }
            Meaning::Reused if self.expects_moves => Ok(false),
            Meaning::Reused => Err(self.reused(seq)),
        }
    }

    fn reused(&self, seq: i64) -> MarkError {
        MarkError::NumberReused {
            outbox: self.token.outbox.clone(),
            seq,
        }
    }

    pub(crate) fn meaning(&self, seq: i64, lsn: Lsn) -> Meaning {
        if let Some((generation, _)) = self.earlier.iter().find(|(_, high)| *high >= lsn) {
            return Meaning::Ask {
                generation: *generation,
            };
        }
        let is_loaded = !self.unloaded.contains(&segment_of(seq));
        match self.sent.contains(seq) {
            true if lsn <= self.high_lsn => Meaning::Sent,
            true => Meaning::Reused,
            false if self.skipped.contains(seq) => Meaning::Sent,
            false if is_loaded => Meaning::New,
            false => Meaning::Ask {
                generation: self.generation,
            },
        }
    }

    /// Writes down what one checkpoint adds: a row for each segment that it touches.
    pub(crate) fn checkpoint(&self, rows: &[Delivered]) -> Checkpoint {
        let sent = rows.iter().filter_map(|row| row.seq).collect();
        let row = |segment| (segment, statements::CheckpointRow::of(segment, &sent, rows));
        Checkpoint {
            token: self.token.clone(),
            generation: self.generation,
            segments: segments_of(&sent).into_iter().map(row).collect(),
        }
    }

    /// Takes a committed checkpoint into memory.
    pub(crate) fn committed(&mut self, rows: &[Delivered]) {
        let numbered = || rows.iter().filter_map(|row| Some((row.seq?, row)));
        let Some((seq, last)) = numbered().max_by_key(|(seq, _)| *seq) else {
            return;
        };
        let sent: RangeSet = numbered().map(|(seq, _)| seq).collect();
        self.sent.extend(&sent);
        self.accounted.extend(&sent);
        for segment in segments_of(&sent) {
            self.open.insert(segment);
            self.recent.forget((self.generation, segment));
        }
        let high_lsn = numbered().map(|(_, row)| row.lsn).max();
        self.high_lsn = self.high_lsn.max(high_lsn.unwrap_or_default());
        if self.tail.as_ref().is_none_or(|tail| tail.seq < seq) {
            let id = last.id.to_string();
            self.tail = Some(Tail { seq, id });
        }
    }

    /// Segments of which every number is sent, rolled back or skipped: they may be audited and closed.
    fn complete(&self) -> Vec<i64> {
        let is_complete =
            |segment: &&i64| self.accounted.gaps(numbers_of(**segment)).next().is_none();
        self.open.iter().filter(is_complete).copied().collect()
    }

    /// The audits that are due, of a table and its column of numbers; run them and hand the results to `audited`.
    pub fn audits(&self, table: &str, seq: &str) -> Vec<Audit> {
        let audit = |segment: i64| Audit {
            token: self.token.clone(),
            generation: self.generation,
            segment,
            table: table.to_owned(),
            seq: seq.to_owned(),
            accounted: self.sent.union(&self.skipped),
        };
        self.complete().into_iter().map(audit).collect()
    }

    /// Forgets a segment that was closed.
    pub fn closed(&mut self, segment: i64) {
        self.open.remove(&segment);
        self.recent.forget((self.generation, segment));
        self.unloaded.insert(segment);
        self.sent.remove_range(numbers_of(segment));
        self.accounted.insert_range(numbers_of(segment));
    }

    pub fn token(&self) -> &FencingToken {
        &self.token
    }
}

/// The segment that has to be read to know what became of a number.
fn place((seq, meaning): &(i64, Meaning)) -> Option<recent::SegmentKey> {
    match meaning {
        Meaning::Ask { generation } => Some((*generation, segment_of(*seq))),
        Meaning::New | Meaning::Sent | Meaning::Reused => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::RowId;

    fn ledger(generation: i32) -> Ledger {
        let token = FencingToken {
            outbox: "public.outbox".to_owned(),
            epoch: 1,
        };
        Ledger::of_heads(token, generation, Vec::new(), RangeSet::new())
    }

    fn delivered(seq: i64, lsn: u64) -> Delivered {
        Delivered {
            ticket: 0,
            seq: Some(seq),
            id: RowId::Uuid(uuid::Uuid::from_u128(seq as u128)),
            lsn: Lsn(lsn),
            origin: crate::row::Origin::Unknown,
        }
    }

    #[test]
    fn a_streamed_number_is_a_repetition_if_sent_with_its_commit_not_above_high_lsn() {
        let mut ledger = ledger(1);
        ledger.committed(&[delivered(7, 100)]);
        assert_eq!(ledger.meaning(7, Lsn(100)), Meaning::Sent);
        assert_eq!(ledger.meaning(7, Lsn(101)), Meaning::Reused);
        assert_eq!(ledger.meaning(6, Lsn(100)), Meaning::New);
    }

    #[test]
    fn a_streamed_row_is_compared_with_the_oldest_generation_that_bounds_its_commit() {
        let mut ledger = ledger(3);
        ledger.earlier = vec![(1, Lsn(50)), (2, Lsn(80))];
        ledger.committed(&[delivered(7, 100)]);
        assert_eq!(ledger.meaning(7, Lsn(50)), Meaning::Ask { generation: 1 });
        assert_eq!(ledger.meaning(7, Lsn(60)), Meaning::Ask { generation: 2 });
        assert_eq!(ledger.meaning(7, Lsn(90)), Meaning::Sent);
    }

    #[test]
    fn sent_is_exact_so_dead_and_skipped_numbers_are_never_counted_as_sent() {
        let mut ledger = ledger(1);
        ledger.skipped.insert(3);
        ledger.note_rolled_back(&RangeSet::parse_multirange("{[4,6)}").expect("a multirange"));
        ledger.committed(&[delivered(1, 10), delivered(2, 10)]);
        let checkpoint = ledger.checkpoint(&[delivered(1, 10), delivered(2, 10)]);
        assert_eq!(checkpoint.segments[&0].sent.to_multirange_text(), "{[1,3)}");
        assert!(!ledger.sent.contains(3) && !ledger.sent.contains(4));
    }

    #[test]
    fn a_segment_is_complete_when_every_number_is_sent_dead_or_skipped() {
        let mut ledger = ledger(1);
        ledger.accounted.insert(SEGMENT_ROWS - 1);
        // The sequence gives none below its first number.
        ledger.note_rolled_back(&[i64::MIN..=SEGMENT_ROWS - 3].into_iter().collect());
        ledger.open.insert(0);
        assert!(ledger.complete().is_empty());
        ledger.committed(&[delivered(SEGMENT_ROWS - 2, 10)]);
        assert_eq!(ledger.complete(), [0]);
    }

    #[test]
    fn a_checkpoint_across_segments_writes_one_row_for_each() {
        let rows = [delivered(SEGMENT_ROWS - 1, 10), delivered(SEGMENT_ROWS, 20)];
        let checkpoint = ledger(1).checkpoint(&rows);
        assert_eq!(
            checkpoint.segments.keys().copied().collect::<Vec<_>>(),
            [0, 1]
        );
        assert_eq!(checkpoint.segments[&1].high_lsn, Lsn(20));
        assert_eq!(checkpoint.segments[&0].last_seq, SEGMENT_ROWS - 1);
    }
}
