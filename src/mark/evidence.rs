//! What tells whether a row was marked. Only what was seen counts. Pure: no I/O and no clock.
//!
//! A query that does not return a row says nothing by itself: the row's commit may be flushed and not visible yet, which
//! can last for longer than any timeout (a synchronous standby that is away), or anybody may have deleted it. So a mark
//! that a row-marking relay makes beside a stream is recorded, and a row is called gone only when a snapshot shows that the
//! transaction that wrote it is over.

use std::collections::{BTreeMap, HashMap};

use crate::core::Delivered;
use crate::row::ranges::RangeSet;
use crate::row::{Lsn, Origin, OutboxRow, RowId};

/// Which transactions a statement saw as over.
///
/// Source: PostgreSQL 17, 9.27.10 Transaction ID and Snapshot Information Functions (`xmin:xmax:xip_list`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction below it is over.
    xmin: u32,
    /// No transaction from here on is.
    xmax: u32,
    /// Those between that were not over.
    running: Vec<u32>,
}

impl Snapshot {
    /// Reads what `pg_current_snapshot()` prints; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        // The lower half of a transaction's 64 bits is what rows and the stream carry.
        let number = |text: &str| text.parse::<u64>().ok().map(|xid| xid as u32);
        let mut parts = text.split(':');
        let (xmin, xmax) = (number(parts.next()?)?, number(parts.next()?)?);
        let running = parts.next()?.split(',').filter(|xid| !xid.is_empty());
        Some(Self {
            xmin,
            xmax,
            running: running.map(number).collect::<Option<_>>()?,
        })
    }

    /// Whether a transaction was over when the snapshot was taken: what it committed is visible.
    fn has_seen_the_end_of(&self, xid: u32) -> bool {
        is_before(xid, self.xmax) && !self.running.contains(&xid)
    }
}

/// Whether one transaction's number was given before another's; numbers wrap around.
fn is_before(xid: u32, other: u32) -> bool {
    (xid.wrapping_sub(other) as i32) < 0
}

/// Why a row still lacks its mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmarked {
    /// Its commit is not visible yet: the mark is tried again, with what is known now of who wrote it.
    Waits(Origin),
    /// It does not stand any more, or not as it was read: there is nothing to mark.
    Gone,
    /// It stands, and the mark changed nothing.
    Refused,
}

/// Judges a row that a mark did not find, by one look at the table afterwards: whether the row stands unsent, as it was
/// read, and what the look's snapshot shows.
pub fn judge(row: &Delivered, stands: bool, snapshot: &Snapshot) -> Unmarked {
    if stands {
        return Unmarked::Refused;
    }
    match row.origin {
        // It was visible when it was read.
        Origin::Table { .. } => Unmarked::Gone,
        Origin::Stream { xid } if snapshot.has_seen_the_end_of(xid) => Unmarked::Gone,
        Origin::Stream { .. } => Unmarked::Waits(row.origin),
        Origin::Before { xmax } if !is_before(snapshot.xmin, xmax) => Unmarked::Gone,
        Origin::Before { .. } => Unmarked::Waits(row.origin),
        // Somebody wrote it before this look.
        Origin::Unknown if snapshot.xmin == snapshot.xmax => Unmarked::Gone,
        Origin::Unknown => Unmarked::Waits(Origin::Before {
            xmax: snapshot.xmax,
        }),
    }
}

/// The marks that are recorded beside a stream: which rows need not be sent again when it brings them again.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Every row whose commit stands before it is marked or held.
    resolved: Lsn,
    /// Ranges of numbers by their first one: the last one, and a bound of the commits. No two overlap.
    numbers: BTreeMap<i64, (i64, Lsn)>,
    covered: RangeSet,
    /// Where rows have no number of their own.
    ids: HashMap<(RowId, Option<i64>), Lsn>,
}

impl Record {
    /// Takes note of a position before which nothing is to be sent again.
    pub fn resolve(&mut self, position: Lsn) {
        self.resolved = self.resolved.max(position);
    }

    /// Adds numbers that were marked, with a bound of their commits; of one number the first bound holds, so that the
    /// newest marks are to be added first.
    pub fn add_numbers(&mut self, numbers: &RangeSet, high_lsn: Lsn) {
        for range in numbers.difference(&self.covered).ranges() {
            self.numbers
                .insert(*range.start(), (*range.end(), high_lsn));
        }
        self.covered.extend(numbers);
    }

    /// Adds a row that has no number of its own.
    pub fn add_id(&mut self, id: RowId, seq: Option<i64>, high_lsn: Lsn) {
        let known = self.ids.entry((id, seq)).or_default();
        *known = high_lsn.max(*known);
    }

    /// Whether a streamed row was marked, or settled in another way.
    pub fn has(&self, row: &OutboxRow) -> bool {
        row.lsn < self.resolved || self.marked_until(row).is_some_and(|high| row.lsn <= high)
    }

    fn marked_until(&self, row: &OutboxRow) -> Option<Lsn> {
        if let Some(seq) = row.seq
            && let Some((_, (last, high_lsn))) = self.numbers.range(..=seq).next_back()
            && seq <= *last
        {
            return Some(*high_lsn);
        }
        if self.ids.is_empty() {
            return None;
        }
        let id = row.id.clone()?;
        self.ids.get(&(id, row.seq)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(origin: Origin) -> Delivered {
        Delivered {
            ticket: 0,
            seq: None,
            id: RowId::from_text(b"1"),
            lsn: Lsn(0),
            origin,
        }
    }

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::parse(text).expect("a snapshot")
    }

    #[test]
    fn a_row_is_gone_only_when_the_transaction_that_wrote_it_is_over() {
        let seen = snapshot("10:20:10,15");
        let judged = |xid| judge(&delivered(Origin::Stream { xid }), false, &seen);
        let waits = |xid| Unmarked::Waits(Origin::Stream { xid });
        assert_eq!(judged(9), Unmarked::Gone);
        assert_eq!(judged(10), waits(10));
        assert_eq!(judged(14), Unmarked::Gone);
        assert_eq!(judged(15), waits(15));
        assert_eq!(judged(20), waits(20));
        let stands = judge(&delivered(Origin::Stream { xid: 10 }), true, &seen);
        assert_eq!(stands, Unmarked::Refused);
    }

    #[test]
    fn numbers_of_transactions_wrap_around() {
        let seen = snapshot("8589934590:8589934600:8589934592");
        let judged = |xid| judge(&delivered(Origin::Stream { xid }), false, &seen);
        assert_eq!(judged(u32::MAX), Unmarked::Gone);
        assert!(matches!(judged(0), Unmarked::Waits(_)));
        assert_eq!(judged(1), Unmarked::Gone);
        assert!(matches!(judged(8), Unmarked::Waits(_)));
    }

    #[test]
    fn a_row_of_an_unknown_writer_waits_for_everybody_who_was_at_work() {
        let first = judge(&delivered(Origin::Unknown), false, &snapshot("10:20:10"));
        let bounded = Origin::Before { xmax: 20 };
        assert_eq!(first, Unmarked::Waits(bounded));
        let later = |text| judge(&delivered(bounded), false, &snapshot(text));
        assert_eq!(later("19:30:19"), Unmarked::Waits(bounded));
        assert_eq!(later("20:30:20"), Unmarked::Gone);
        let idle = judge(&delivered(Origin::Unknown), false, &snapshot("20:20:"));
        assert_eq!(idle, Unmarked::Gone);
    }

    #[test]
    fn a_version_that_was_read_and_is_no_more_is_gone() {
        let row = delivered(Origin::Table { xmin: 15 });
        assert_eq!(judge(&row, false, &snapshot("10:20:15")), Unmarked::Gone);
    }

    #[test]
    fn what_is_no_snapshot_is_none() {
        for text in ["", "10", "10:20", "a:b:", "10:20:x"] {
            assert_eq!(Snapshot::parse(text), None, "{text}");
        }
    }

    fn row(seq: Option<i64>, id: &str, lsn: u64) -> OutboxRow {
        let layout = crate::postgres::catalog::tests::trusted().layout;
        let bytes = bytes::Bytes::new();
        let mut row = OutboxRow::new(&layout, Lsn(lsn), bytes, Box::new([]));
        (row.seq, row.id) = (seq, Some(RowId::from_text(id.as_bytes())));
        row
    }

    #[test]
    fn a_number_is_recorded_up_to_the_commits_that_its_mark_covers() {
        let mut record = Record::default();
        record.add_numbers(&[5..=9].into_iter().collect(), Lsn(200));
        record.add_numbers(&[1..=6].into_iter().collect(), Lsn(100));
        let has = |seq, lsn| record.has(&row(Some(seq), "x", lsn));
        assert!(has(6, 200) && has(1, 100));
        assert!(!has(6, 201) && !has(1, 101) && !has(10, 1));
    }

    #[test]
    fn a_row_without_a_number_is_recorded_by_its_id() {
        let mut record = Record::default();
        record.add_id(RowId::from_text(b"a"), None, Lsn(100));
        assert!(record.has(&row(None, "a", 100)));
        assert!(!record.has(&row(None, "a", 101)) && !record.has(&row(None, "b", 1)));
        record.resolve(Lsn(50));
        assert!(record.has(&row(None, "b", 49)) && !record.has(&row(None, "b", 50)));
    }
}
