//! Shown with messages as the server sends them.

use super::super::pgoutput::tests::{begin, commit, insert, relation, update};
use super::super::pgoutput::{Change, Decoder};
use super::super::wire::exercise;
use super::*;

const TEXT_OID: u32 = 25;
const COLUMNS: [(&str, u32); 6] = [
    ("id", TEXT_OID),
    ("aggregatetype", TEXT_OID),
    ("aggregateid", TEXT_OID),
    ("type", TEXT_OID),
    ("payload", TEXT_OID),
    ("seq", 20),
];

fn values(id: &str, aggregate: &str, payload: &str, seq: i64) -> Vec<Option<Vec<u8>>> {
    let seq = seq.to_string();
    let texts = [id, "order", aggregate, "placed", payload, &seq];
    texts
        .iter()
        .map(|text| Some(text.as_bytes().to_vec()))
        .collect()
}

struct Stream {
    decoder: Decoder,
    gathered: Gathered,
}

impl Stream {
    fn new() -> Self {
        Self::of(TableKind::Ordinary)
    }

    fn of(kind: TableKind) -> Self {
        let outbox = Described {
            kind,
            ..exercise::outbox()
        };
        let mut stream = Self {
            gathered: Gathered::new(&outbox),
            decoder: Decoder::new(outbox),
        };
        stream.take(begin(500));
        stream.take(relation("outbox", &COLUMNS));
        stream
    }

    fn take(&mut self, message: bytes::BytesMut) -> Option<ChangeOutcome> {
        match self.decoder.decode(message).unwrap() {
            Change::Begin { .. } => self.gathered.begin(),
            Change::Commit { end_lsn, .. } => self.gathered.boundary(end_lsn),
            Change::Row(row) => self.gathered.push(row),
            Change::Update(update) => return Some(self.gathered.update(*update)),
            Change::Skipped => {}
        }
        None
    }

    /// The ids and payloads that are handed over.
    fn handed(&mut self) -> Vec<(String, String)> {
        let text = |row: &OutboxRow, column| {
            String::from_utf8_lossy(row.field(column).unwrap_or_default()).into_owned()
        };
        let batch = self.gathered.take();
        let rows = batch.rows.iter();
        rows.map(|row| (text(row, 0), text(row, 4))).collect()
    }
}

fn pair(id: &str, payload: &str) -> (String, String) {
    (id.to_owned(), payload.to_owned())
}

#[test]
fn a_change_by_its_own_transaction_belongs_to_a_row() {
    let mut stream = Stream::new();
    stream.take(insert(&values("a", "", "first", 1)));
    stream.take(insert(&values("b", "1", "other", 2)));
    let outcome = stream.take(update(None, &values("a", "1", "second", 1)));
    assert_eq!(outcome, Some(ChangeOutcome::Applied));
    assert!(!stream.gathered.is_ready(), "its transaction is open");
    // The key changes, and a large value is not repeated.
    let key = [Some(b"a".to_vec()), None, None, None, None, None];
    stream.take(update(Some(&key), &values("c", "2", "u", 1)));
    stream.take(commit(500, 540));
    let batch = stream.gathered.take();
    let (row, boundary) = (&batch.rows[0], batch.boundary.unwrap());
    assert_eq!(row.field(0), Some(&b"c"[..]));
    assert_eq!(
        (row.field(2), row.field(4)),
        (Some(&b"2"[..]), Some(&b"second"[..]))
    );
    assert_eq!((row.seq, row.lsn, boundary.rows), (Some(1), Lsn(500), 2));
    assert_eq!(batch.rows[1].field(4), Some(&b"other"[..]));
}

#[test]
fn a_change_of_a_row_that_was_committed_before_is_none_of_ours() {
    let mut stream = Stream::new();
    stream.take(insert(&values("a", "1", "first", 1)));
    stream.take(commit(500, 540));
    stream.take(begin(600));
    let unread = stream.take(update(None, &values("a", "1", "later", 1)));
    assert_eq!(
        unread, None,
        "a transaction without rows of its own is not looked at"
    );
    stream.take(insert(&values("b", "1", "second", 2)));
    let outcome = stream.take(update(None, &values("a", "1", "later", 1)));
    assert_eq!(outcome, Some(ChangeOutcome::OfAnother));
    stream.take(commit(600, 640));
    assert_eq!(stream.handed(), [pair("a", "first"), pair("b", "second")]);
}

#[test]
fn rows_wait_for_their_commit_up_to_the_size_of_a_batch() {
    let mut stream = Stream::new();
    stream.take(insert(&values("a", "1", "first", 1)));
    stream.take(commit(500, 540));
    stream.take(begin(600));
    stream.take(insert(&values("b", "1", "second", 2)));
    assert_eq!(stream.handed(), [pair("a", "first")]);
    assert!(!stream.gathered.is_ready());
    for seq in 3..=ROWS_MAX as i64 + 1 {
        stream.take(insert(&values(&seq.to_string(), "1", "x", seq)));
    }
    assert!(stream.gathered.is_full() && stream.gathered.is_ready());
    assert_eq!(stream.handed().len(), ROWS_MAX);
    let late = stream.take(update(None, &values("b", "1", "late", 2)));
    assert_eq!(late, Some(ChangeOutcome::TooLate));
    let older = stream.take(update(None, &values("a", "1", "older", 1)));
    assert_eq!(older, Some(ChangeOutcome::OfAnother));
    stream.take(insert(&values("z", "1", "last", 9_999)));
    stream.take(update(None, &values("z", "1", "in time", 9_999)));
    stream.take(commit(600, 640));
    assert_eq!(stream.handed(), [pair("z", "in time")]);
}

#[test]
fn a_keepalive_before_an_open_transaction_is_told_without_its_rows() {
    let mut stream = Stream::new();
    stream.take(commit(500, 540));
    stream.gathered.boundary(Lsn(590));
    stream.take(begin(600));
    stream.take(insert(&values("b", "1", "second", 2)));
    let batch = stream.gathered.take();
    assert_eq!(
        (
            batch.rows.len(),
            batch.boundary.map(|boundary| boundary.lsn)
        ),
        (0, Some(Lsn(590)))
    );
    assert_eq!(stream.gathered.take_all().rows.len(), 1);
}

#[test]
fn a_row_that_moves_to_another_partition_in_its_transaction_comes_once() {
    let mut stream = Stream::of(TableKind::Partitioned);
    stream.take(insert(&values("a", "1", "before", 1)));
    stream.take(insert(&values("b", "1", "other", 2)));
    stream.take(insert(&values("a", "1", "moved", 1)));
    stream.take(commit(500, 540));
    assert_eq!(stream.handed(), [pair("a", "moved"), pair("b", "other")]);
}
