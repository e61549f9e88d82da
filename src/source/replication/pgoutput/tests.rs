//! Shown with a hand-written encoder of the messages.

use bytes::BufMut;
use proptest::prelude::*;

use super::*;
use crate::row::LeftOut;
use crate::source::replication::wire::exercise;

const RELATION_ID: u32 = exercise::OUTBOX_OID;
const TEXT_OID: u32 = 25;

/// Of a catalog that was read at 1,000, after most transactions of these tests.
fn decoder() -> Decoder {
    Decoder::new(exercise::outbox())
}

pub(in crate::source::replication) fn begin(lsn: u64) -> BytesMut {
    let mut data = BytesMut::from(&b"B"[..]);
    data.put_u64(lsn);
    data.put_i64(1_000_000);
    data.put_u32(77);
    data
}

pub(in crate::source::replication) fn commit(lsn: u64, end: u64) -> BytesMut {
    let mut data = BytesMut::from(&b"C\0"[..]);
    data.put_u64(lsn);
    data.put_u64(end);
    data.put_i64(1_000_000);
    data
}

pub(in crate::source::replication) fn relation(name: &str, columns: &[(&str, u32)]) -> BytesMut {
    relation_of(RELATION_ID, name, columns)
}

pub(in crate::source::replication) fn relation_of(
    id: u32,
    name: &str,
    columns: &[(&str, u32)],
) -> BytesMut {
    let mut data = BytesMut::from(&b"R"[..]);
    data.put_u32(id);
    data.put_slice(b"public\0");
    data.put_slice(name.as_bytes());
    data.put_slice(b"\0d");
    data.put_u16(columns.len() as u16);
    for (name, type_oid) in columns {
        data.put_u8(u8::from(*name == "id"));
        data.put_slice(name.as_bytes());
        data.put_u8(0);
        data.put_u32(*type_oid);
        data.put_i32(-1);
    }
    data
}

pub(in crate::source::replication) fn insert(values: &[Option<Vec<u8>>]) -> BytesMut {
    let mut data = BytesMut::from(&b"I"[..]);
    data.put_u32(RELATION_ID);
    data.put_u8(b'N');
    data.put_u16(values.len() as u16);
    for value in values {
        match value {
            None => data.put_u8(b'n'),
            Some(value) => {
                data.put_u8(b't');
                data.put_u32(value.len() as u32);
                data.put_slice(value);
            }
        }
    }
    data
}

/// An update: its old key where that has changed, and the new values, `b"u"` alone for one that is not repeated.
pub(in crate::source::replication) fn update(
    key: Option<&[Option<Vec<u8>>]>,
    values: &[Option<Vec<u8>>],
) -> BytesMut {
    let mut data = BytesMut::from(&b"U"[..]);
    data.put_u32(RELATION_ID);
    for (kind, values) in [(b'K', key), (b'N', Some(values))] {
        let Some(values) = values else { continue };
        data.put_u8(kind);
        data.put_u16(values.len() as u16);
        for value in values {
            match value.as_deref() {
                None => data.put_u8(b'n'),
                Some(b"u") => data.put_u8(b'u'),
                Some(value) => {
                    data.put_u8(b't');
                    data.put_u32(value.len() as u32);
                    data.put_slice(value);
                }
            }
        }
    }
    data
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    format!("\\x{}", digits.collect::<String>()).into_bytes()
}

/// The outbox's columns in another order than the layout's, with one that the layout does not know.
pub(in crate::source::replication) const COLUMNS: [(&str, u32); 7] = [
    ("seq", 20),
    ("id", 2950),
    ("extra", TEXT_OID),
    ("aggregatetype", TEXT_OID),
    ("aggregateid", TEXT_OID),
    ("type", TEXT_OID),
    ("payload", BYTEA_OID),
];

fn ready() -> Decoder {
    let mut decoder = decoder();
    decoder.decode(begin(500)).unwrap();
    decoder.decode(relation("outbox", &COLUMNS)).unwrap();
    decoder
}

fn text(value: &str) -> Option<Vec<u8>> {
    Some(value.as_bytes().to_vec())
}

#[test]
fn a_transaction_is_read_in_its_order() {
    let mut decoder = decoder();
    let change = decoder.decode(begin(500)).unwrap();
    let Change::Begin {
        final_lsn,
        xid,
        commit_time,
    } = change
    else {
        panic!("not a begin");
    };
    assert_eq!((final_lsn, xid), (Lsn(500), 77));
    let since = commit_time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(since.as_secs(), 946_684_801);
    assert_eq!(decoder.open_transaction(), Some(Lsn(500)));
    decoder.decode(relation("outbox", &COLUMNS)).unwrap();
    let values = [
        text("42"),
        text("3f2504e0-4f89-41d3-9a0c-0305e82c3301"),
        text("?"),
        text("order"),
        text("ü-1"),
        None,
        Some(hex(b"\0\xffok")),
    ];
    let Change::Row(row) = decoder.decode(insert(&values)).unwrap() else {
        panic!("not a row");
    };
    assert_eq!((row.lsn, row.seq), (Lsn(500), Some(42)));
    assert_eq!(
        row.id.as_ref().unwrap().to_string(),
        "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
    );
    assert_eq!(row.field(2), Some("ü-1".as_bytes()));
    assert_eq!(row.field(3), None);
    assert_eq!(row.field(4), Some(&b"\0\xffok"[..]));
    let change = decoder.decode(commit(500, 540)).unwrap();
    assert!(matches!(
        change,
        Change::Commit {
            end_lsn: Lsn(540),
            ..
        }
    ));
    assert_eq!(decoder.open_transaction(), None);
}

#[test]
fn a_column_that_the_row_needs_is_named_when_the_table_loses_it() {
    for lost in ["id", "aggregatetype", "aggregateid", "payload"] {
        let columns = COLUMNS.into_iter().filter(|column| column.0 != lost);
        let columns: Vec<_> = columns.collect();
        let mut decoder = decoder();
        decoder.decode(begin(1_500)).unwrap();
        let error = decoder.decode(relation("outbox", &columns)).unwrap_err();
        let column = lost.to_owned();
        assert_eq!(error, DecodeError::MissingColumn { column });
    }
}

#[test]
fn a_row_from_before_its_column_came_back_says_that_there_was_none() {
    let mut decoder = decoder();
    decoder.decode(begin(500)).unwrap();
    let columns = &COLUMNS[..6];
    decoder.decode(relation("outbox", columns)).unwrap();
    let values = [text("1"), text("a"), None, text("o"), text("1"), None];
    let Change::Row(row) = decoder.decode(insert(&values)).unwrap() else {
        panic!("not a row");
    };
    assert_eq!(
        (row.field(4), row.left_out(4)),
        (None, Some(LeftOut::NoColumn))
    );
    assert_eq!((row.field(3), row.left_out(3)), (None, None));
}

#[test]
fn a_new_column_ends_the_stream_unless_the_catalog_was_read_after_it() {
    let mut decoder = decoder();
    decoder.decode(begin(1_500)).unwrap();
    let error = decoder.decode(relation("outbox", &COLUMNS)).unwrap_err();
    assert_eq!(error, DecodeError::OtherColumns);
    assert!(ready().open_transaction().is_some());
}

#[test]
fn a_value_that_was_left_out_comes_with_its_size() {
    let mut data = insert(&[text("1"), text("a"), None, text("o"), text("1"), None]);
    data[7] = COLUMNS.len() as u8;
    data.put_u8(crate::source::replication::wire::LEFT_OUT);
    data.put_u32(2_000_002);
    let Change::Row(row) = ready().decode(data).unwrap() else {
        panic!("not a row");
    };
    let bytes = 1_000_000;
    assert_eq!(
        (row.field(4), row.left_out(4)),
        (None, Some(LeftOut::TooLarge { bytes }))
    );
}

#[test]
fn an_optional_column_that_the_table_loses_is_null_from_then_on() {
    let mut decoder = ready();
    let columns: Vec<_> = COLUMNS
        .into_iter()
        .filter(|column| column.0 != "type")
        .collect();
    decoder.decode(relation("outbox", &columns)).unwrap();
    let values = [
        text("1"),
        text("a"),
        None,
        text("o"),
        text("1"),
        Some(hex(b"x")),
    ];
    let Change::Row(row) = decoder.decode(insert(&values)).unwrap() else {
        panic!("not a row");
    };
    assert_eq!((row.field(3), row.field(4)), (None, Some(&b"x"[..])));
}

#[test]
fn other_tables_and_other_changes_are_skipped() {
    let mut decoder = decoder();
    decoder.decode(begin(500)).unwrap();
    decoder
        .decode(relation_of(RELATION_ID + 1, "orders", &[("id", TEXT_OID)]))
        .unwrap();
    let mut other = insert(&[text("1")]);
    other[1..5].copy_from_slice(&(RELATION_ID + 1).to_be_bytes());
    let change = decoder.decode(other).unwrap();
    assert!(matches!(change, Change::Skipped));
    for kind in [&b"O"[..], b"Y", b"T", b"U", b"D", b"M"] {
        let change = decoder.decode(BytesMut::from(kind)).unwrap();
        assert!(matches!(change, Change::Skipped));
    }
}

#[test]
fn a_renamed_outbox_stays_the_outbox() {
    let mut decoder = decoder();
    decoder.decode(begin(500)).unwrap();
    decoder.decode(relation("outbox_2", &COLUMNS)).unwrap();
    let values = [None, text("a"), None, text("o"), text("1"), None, None];
    let change = decoder.decode(insert(&values)).unwrap();
    assert!(matches!(change, Change::Row(_)));
}

#[test]
fn what_does_not_belong_here_is_an_error() {
    let mut decoder = decoder();
    assert!(decoder.decode(commit(500, 540)).is_err());
    assert!(decoder.decode(insert(&[])).is_err());
    decoder.decode(begin(500)).unwrap();
    assert!(decoder.decode(begin(501)).is_err());
    assert!(decoder.decode(commit(501, 540)).is_err());
    decoder.decode(relation("outbox", &COLUMNS)).unwrap();
    assert!(decoder.decode(insert(&[text("1")])).is_err());
    decoder.decode(commit(500, 540)).unwrap();
    let values = [None, text("a"), None, text("o"), text("1"), None, None];
    let error = decoder.decode(insert(&values)).unwrap_err();
    assert!(matches!(
        error,
        DecodeError::OutOfPlace { message: 'I', .. }
    ));
    assert!(decoder.decode(BytesMut::new()).is_err());
    assert!(decoder.decode(BytesMut::from(&b"\x01"[..])).is_err());
}

#[test]
fn bytea_that_is_not_hex_is_an_error_that_does_not_show_it() {
    for payload in ["\\xzz", "\\x1", "abc", ""] {
        let values = [
            None,
            text("a"),
            None,
            text("o"),
            text("1"),
            None,
            text(payload),
        ];
        let error = ready().decode(insert(&values)).unwrap_err();
        assert!(matches!(error, DecodeError::Malformed { .. }), "{error}");
        assert!(payload.is_empty() || !error.to_string().contains(payload));
    }
}

#[test]
fn an_unchanged_value_in_an_insert_is_an_error() {
    let mut data = insert(&[]);
    data[7] = COLUMNS.len() as u8;
    data.put_slice(b"u");
    let error = ready().decode(data).unwrap_err();
    assert!(error.to_string().contains("unchanged"), "{error}");
}

proptest! {
    #[test]
    fn rows_come_out_as_they_went_in(
        texts in prop::collection::vec(prop::option::of(".{0,30}"), 5),
        seq in prop::option::of(any::<i64>()),
        payload in prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
    ) {
        let bytes = |column: usize| texts[column].clone().map(String::into_bytes);
        let values = [
            seq.map(|seq| seq.to_string().into_bytes()),
            bytes(0),
            bytes(1),
            bytes(2),
            bytes(3),
            bytes(4),
            payload.as_deref().map(hex),
        ];
        let Change::Row(row) = ready().decode(insert(&values)).unwrap() else {
            panic!("not a row");
        };
        prop_assert_eq!(row.seq, seq);
        for (column, value) in [(0, 0), (1, 2), (2, 3), (3, 4)] {
            prop_assert_eq!(row.field(column), texts[value].as_deref().map(str::as_bytes));
        }
        prop_assert_eq!(row.field(4), payload.as_deref());
        let shared = row.slice(4);
        prop_assert_eq!(shared.as_deref(), payload.as_deref());
    }

    #[test]
    fn any_bytes_are_decoded_without_a_panic(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..4),
        kind in prop::sample::select(&b"BCRIOYTUDM"[..]),
    ) {
        let mut decoder = ready();
        for mut message in messages {
            let _ = decoder.decode(BytesMut::from(&message[..]));
            message.insert(0, kind);
            let _ = decoder.decode(BytesMut::from(&message[..]));
        }
    }

    #[test]
    fn a_damaged_message_never_panics(at in 0usize..60, byte in any::<u8>(), keep in 0usize..80) {
        let values = [text("1"), text("a"), None, text("o"), text("1"), None, Some(hex(b"xyz"))];
        for message in [insert(&values), relation("outbox", &COLUMNS), begin(500), commit(500, 540)] {
            let mut damaged = message;
            if let Some(place) = damaged.get_mut(at) {
                *place = byte;
            }
            damaged.truncate(keep);
            let _ = ready().decode(damaged);
        }
    }
}
