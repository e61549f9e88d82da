//! Everything that reads what a server sends, given bytes that nobody vouches for.
//!
//! For the property tests here and for the fuzz target of `fuzz/`; no part of the relay.

use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::message::backend::{COPY_DATA_TAG, Message};

use super::framing::{self, Arrived};
use super::{STREAM_BYTES_MAX, handshake, server_error, stream, texts};
use crate::postgres::catalog::TableKind;
use crate::row::{Column, Layout, Lsn};
use crate::source::replication::pgoutput::{Change, Decoder, Described, Needed};
use crate::source::replication::wire::Frame;

pub(crate) const OUTBOX_OID: u32 = 70_000;
/// What is left out of a long insert.
const VALUE_BYTES_MAX: usize = 1 << 20;
/// What one read brings.
const PIECE_BYTES: usize = 1_000;
/// Room for a read, on top of twice what has arrived.
const BYTES_BEFORE: usize = 256 << 10;

/// Reads the bytes as the start-up reads them, and again as the stream does.
///
/// Panics where more memory is taken than for what has arrived, and where a reader does.
pub(crate) fn read(bytes: &[u8]) {
    let mut arrived = Arrived::new();
    read_all(&mut arrived, bytes, |message| {
        understand(message);
        true
    });
    read_stream(bytes, |_| {});
}

/// Reads what follows the start-up, up to the first message that can't be used.
fn read_stream(bytes: &[u8], mut take: impl FnMut(Change)) {
    let mut arrived = Arrived::new();
    arrived.copy_bytes_max = STREAM_BYTES_MAX;
    arrived.value_bytes_max = VALUE_BYTES_MAX;
    let mut decoder = Decoder::new(outbox());
    let mut has_begun = false;
    read_all(&mut arrived, bytes, |message| {
        has_begun |= message[0] == COPY_DATA_TAG;
        if !has_begun {
            return true;
        }
        match stream::frame(message) {
            Ok(Some(Frame::Wal { data, .. })) => decoder.decode(data).map(&mut take).is_ok(),
            Ok(_) => true,
            Err(_) => false,
        }
    });
}

/// An outbox whose catalog was read at position 1,000.
pub(crate) fn outbox() -> Described {
    let columns = [
        ("id", "uuid"),
        ("aggregatetype", "text"),
        ("aggregateid", "text"),
        ("type", "text"),
        ("payload", "bytea"),
        ("seq", "bigint"),
    ];
    let columns = columns.map(|(name, type_name)| Column::new(name, type_name));
    let layout = Layout::find("public", "outbox", columns.to_vec());
    let layout = layout.expect("every mandatory column");
    // The type's column is not among them, and all are older than any transaction.
    let needed = [0, 1, 2, 4, 5].map(|column| Needed { column, xid: 1 });
    Described {
        layout: Arc::new(layout),
        needed: needed.to_vec(),
        oid: OUTBOX_OID,
        read_at: Lsn(1_000),
        kind: TableKind::Ordinary,
    }
}

/// Cuts the bytes into messages as they arrive, until one can't be used.
fn read_all(arrived: &mut Arrived, bytes: &[u8], mut take: impl FnMut(BytesMut) -> bool) {
    let mut bytes_arrived = 0;
    for piece in bytes.chunks(PIECE_BYTES) {
        bytes_arrived += piece.len();
        arrived.with_room().extend_from_slice(piece);
        loop {
            match arrived.try_message() {
                Ok(Some(message)) => {
                    if !take(message) {
                        return;
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        let bytes_max = 2 * bytes_arrived + BYTES_BEFORE;
        let taken = arrived.bytes();
        assert!(taken <= bytes_max, "{taken} bytes for {bytes_arrived}");
    }
}

/// Reads all of a message that can come before the stream.
fn understand(mut message: BytesMut) {
    match framing::parse(&mut message) {
        Ok(Message::ErrorResponse(body)) => drop(server_error(&body)),
        Ok(Message::AuthenticationSasl(body)) => drop(handshake::offers(&body)),
        Ok(Message::DataRow(body)) => drop(texts(&body)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::super::message;
    use super::*;
    use crate::source::replication::pgoutput::tests as plugin;

    /// A stream that a server could send: errors and rows of the start-up, then two transactions.
    fn valid() -> Vec<u8> {
        let columns = plugin::COLUMNS;
        let text = |value: &str| Some(value.as_bytes().to_vec());
        let row = [
            text("1"),
            text("a"),
            None,
            text("o"),
            text("1"),
            None,
            text("\\x6f6b"),
        ];
        let mut bytes = BytesMut::new();
        bytes.put(message(
            b'R',
            b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0",
        ));
        bytes.put(message(b'N', b"SNOTICE\0C00000\0Msomething\0\0"));
        bytes.put(message(b'D', b"\0\x02\xff\xff\xff\xff\0\0\0\x0242"));
        bytes.put(keepalive());
        bytes.put(wal(&plugin::begin(500)));
        bytes.put(wal(&plugin::relation("outbox", &columns)));
        bytes.put(wal(&plugin::insert(&row)));
        bytes.put(wal(&plugin::commit(500, 540)));
        bytes.put(wal(&plugin::begin(1_500)));
        bytes.put(wal(b"O"));
        bytes.put(wal(&plugin::commit(1_500, 1_540)));
        bytes.put(message(b'c', b""));
        bytes.to_vec()
    }

    /// What `fuzz/` begins with: a fuzzer alone makes up no relation that is the outbox.
    #[test]
    fn the_seed_of_the_fuzz_target_is_fresh() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/fuzz/corpus/server_messages/stream"
        );
        if std::env::var_os("OUTBOXD_BLESS").is_some() {
            std::fs::write(path, valid()).unwrap();
        }
        let seed = std::fs::read(path).unwrap_or_default();
        let advice =
            "the seed is stale: OUTBOXD_BLESS=1 cargo test the_seed_of_the_fuzz_target_is_fresh";
        assert!(seed == valid(), "{advice}");
    }

    fn wal(data: &[u8]) -> BytesMut {
        message(b'd', &[&b"w"[..], &[0; 24], data].concat())
    }

    fn keepalive() -> BytesMut {
        message(b'd', &[&b"k"[..], &[0; 16], b"\x01"].concat())
    }

    #[test]
    fn an_announced_gigabyte_takes_no_memory_before_it_arrives() {
        for tag in [b'd', b'D', b'E'] {
            let mut bytes = vec![tag];
            bytes.put_u32(1 << 30);
            bytes.extend_from_slice(&[b'w'; 4_000]);
            read(&bytes);
        }
        let mut insert = wal(&plugin::insert(&[])).to_vec();
        insert[1..5].copy_from_slice(&(1u32 << 30).to_be_bytes());
        insert.extend_from_slice(b"t\x3f\xff\xff\xff");
        insert.extend_from_slice(&[b'x'; 100_000]);
        read(&insert);
    }

    #[test]
    fn relations_without_end_end_the_stream() {
        let mut decoder = Decoder::new(outbox());
        decoder.decode(plugin::begin(500)).unwrap();
        let mut describe = |id| decoder.decode(plugin::relation_of(id, "orders", &[]));
        let refused = (0..u32::MAX).find(|id| describe(*id).is_err());
        assert_eq!(refused, Some(1 << 20));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..3_000)) {
            read(&bytes);
        }

        #[test]
        fn any_body_of_a_known_message_is_read(
            tag in prop::sample::select(b"RNEDdCTKSZcW".to_vec()),
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            read(&message(tag, &body));
            read(&wal(&body));
        }

        #[test]
        fn a_stream_that_is_cut_off_or_changed_is_read(
            cut in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let mut bytes = valid();
            for (at, byte) in changes {
                *at.get_mut(&mut bytes) = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            read(&bytes);
        }
    }

    #[test]
    fn the_stream_that_is_changed_was_whole() {
        let mut rows = 0;
        let count = |change| rows += usize::from(matches!(change, Change::Row(_)));
        read_stream(&valid(), count);
        assert_eq!(rows, 1);
    }
}
