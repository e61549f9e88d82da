//! Takes an insert or update that is too long to be kept as it arrives, and leaves out the values that no record can carry.
//!
//! Pure. The message that results is shorter and otherwise the same: of a value that was left out stand only a kind of
//! our own, [`LEFT_OUT`], and its length.
//!
//! Source: PostgreSQL 17, 53.4 Streaming Replication Protocol (XLogData) and 53.9 (TupleData).

use bytes::{Buf, BufMut, BytesMut};

/// The kind of a value that was left out; no output plugin sends it.
pub(in crate::source::replication) const LEFT_OUT: u8 = b'x';
/// Tag, length, XLogData's head; then an insert's kind, relation, `N` and number of columns.
const HEAD_BYTES: usize = 5 + 25 + 8;
/// Where the plugin's message begins.
const KIND_AT: usize = 5 + 25;
/// `N` and number of columns.
const NEW_HEAD_BYTES: usize = 3;
/// A value's kind and its length.
const VALUE_HEAD_BYTES: usize = 5;

/// One long message on its way.
pub(super) struct Oversize {
    value_bytes_max: usize,
    kept: BytesMut,
    /// Bytes of the message that were not read yet.
    to_come: usize,
    /// Of these, bytes that are kept as they are.
    to_keep: usize,
    /// Of these, bytes of a value that is left out.
    to_skip: usize,
    /// Columns whose values were not read yet.
    columns: usize,
    /// An update's new tuple follows the one that is being read.
    has_new_behind: bool,
    has_head: bool,
}

impl Oversize {
    /// Begins with a message of so many bytes, header included, none of which was taken yet.
    pub(super) fn new(message_bytes: usize, value_bytes_max: usize) -> Self {
        Self {
            value_bytes_max,
            kept: BytesMut::new(),
            to_come: message_bytes,
            to_keep: 0,
            to_skip: 0,
            columns: 0,
            has_new_behind: false,
            has_head: false,
        }
    }

    /// Memory that is taken.
    #[cfg(any(test, fuzzing))]
    pub(super) fn bytes(&self) -> usize {
        self.kept.capacity()
    }

    /// Takes what has arrived; the message once nothing is to come.
    pub(super) fn take(&mut self, buffer: &mut BytesMut) -> Option<BytesMut> {
        while self.to_come > 0 {
            let has_moved = if self.to_skip > 0 {
                let bytes = self.arrived(self.to_skip, buffer);
                buffer.advance(bytes);
                self.to_skip -= bytes;
                bytes > 0
            } else if self.to_keep > 0 {
                let bytes = self.arrived(self.to_keep, buffer);
                self.kept.put(buffer.split_to(bytes));
                self.to_keep -= bytes;
                bytes > 0
            } else if self.has_head {
                self.value_head(buffer)
            } else {
                self.head(buffer)
            };
            if !has_moved {
                return None;
            }
        }
        let mut message = std::mem::take(&mut self.kept);
        // The length counts itself and not the tag; it is smaller than it was, so it fits.
        let length = (message.len() - 1) as u32;
        message[1..5].copy_from_slice(&length.to_be_bytes());
        Some(message)
    }

    /// How many of so many bytes are there, counted as taken.
    fn arrived(&mut self, wanted: usize, buffer: &BytesMut) -> usize {
        let bytes = wanted.min(buffer.len());
        self.to_come -= bytes;
        bytes
    }

    /// Of a delete nothing is of use behind its kind; what is too short for a change is kept.
    fn head(&mut self, buffer: &mut BytesMut) -> bool {
        if buffer.len() < HEAD_BYTES {
            return false;
        }
        self.has_head = true;
        let is_change = buffer[5] == b'w' && matches!(buffer[KIND_AT], b'I' | b'U' | b'D');
        if !is_change {
            self.to_keep = self.to_come;
        } else if buffer[KIND_AT] != b'D' {
            self.has_new_behind = matches!(buffer[HEAD_BYTES - 3], b'K' | b'O');
            let columns = [buffer[HEAD_BYTES - 2], buffer[HEAD_BYTES - 1]];
            self.columns = usize::from(u16::from_be_bytes(columns));
            self.to_keep = HEAD_BYTES;
        } else {
            self.kept.put_slice(&buffer[..=KIND_AT]);
            self.to_skip = self.to_come;
        }
        true
    }

    /// Behind an update's old tuple stands the new one; what is too short for it is kept.
    fn new_head(&mut self, buffer: &BytesMut) -> bool {
        if buffer.len() < NEW_HEAD_BYTES && self.to_come >= NEW_HEAD_BYTES {
            return false;
        }
        self.has_new_behind = false;
        self.to_keep = NEW_HEAD_BYTES.min(self.to_come);
        if self.to_come >= NEW_HEAD_BYTES {
            self.columns = usize::from(u16::from_be_bytes([buffer[1], buffer[2]]));
        }
        self.to_keep > 0
    }

    /// What can't be a value is kept, for the decoder to complain of.
    fn value_head(&mut self, buffer: &mut BytesMut) -> bool {
        if self.columns == 0 && self.has_new_behind {
            return self.new_head(buffer);
        }
        if self.columns == 0 {
            self.to_keep = self.to_come;
            return true;
        }
        if buffer.is_empty() {
            return false;
        }
        if buffer[0] != b't' {
            self.columns -= 1;
            self.to_keep = 1;
            return true;
        }
        if buffer.len() < VALUE_HEAD_BYTES {
            // Where less is to come, the message is cut off.
            self.to_keep = if self.to_come < VALUE_HEAD_BYTES {
                self.to_come
            } else {
                0
            };
            return self.to_keep > 0;
        }
        self.columns -= 1;
        let length = [buffer[1], buffer[2], buffer[3], buffer[4]];
        let value_bytes = u32::from_be_bytes(length) as usize;
        if value_bytes > self.value_bytes_max && VALUE_HEAD_BYTES + value_bytes <= self.to_come {
            self.kept.put_u8(LEFT_OUT);
            self.kept.put_slice(&length);
            self.to_skip = VALUE_HEAD_BYTES + value_bytes;
        } else {
            self.to_keep = (VALUE_HEAD_BYTES + value_bytes).min(self.to_come);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message;
    use super::*;

    fn insert(values: &[Option<Vec<u8>>], left_out_above: usize) -> BytesMut {
        let mut body = vec![b'w'];
        body.extend_from_slice(&[7; 24]);
        body.push(b'I');
        body.extend_from_slice(&[0, 0, 0, 9, b'N']);
        body.extend_from_slice(&(values.len() as u16).to_be_bytes());
        for value in values {
            let Some(value) = value else {
                body.push(b'n');
                continue;
            };
            let is_left_out = value.len() > left_out_above;
            body.push(if is_left_out { LEFT_OUT } else { b't' });
            body.extend_from_slice(&(value.len() as u32).to_be_bytes());
            if !is_left_out {
                body.extend_from_slice(value);
            }
        }
        message(b'd', &body)
    }

    fn oversize(bytes: &[u8], step: usize, value_bytes_max: usize) -> Option<BytesMut> {
        let mut oversize = Oversize::new(bytes.len(), value_bytes_max);
        let mut buffer = BytesMut::new();
        for part in bytes.chunks(step) {
            buffer.extend_from_slice(part);
            if let Some(message) = oversize.take(&mut buffer) {
                assert!(buffer.is_empty());
                return Some(message);
            }
        }
        None
    }

    #[test]
    fn of_an_update_the_large_values_of_both_rows_are_left_out() {
        let update = |old: &[u8], new: &[u8]| {
            let mut body = vec![b'w'];
            body.extend_from_slice(&[7; 24]);
            body.extend_from_slice(&[b'U', 0, 0, 0, 9, b'K', 0, 2]);
            body.extend_from_slice(old);
            body.extend_from_slice(&[b'n', b'N', 0, 2, b'u']);
            body.extend_from_slice(new);
            message(b'd', &body)
        };
        let value = |kind: u8, bytes: &[u8]| {
            let mut value = vec![kind, 0, 0, 0, 100];
            value.extend_from_slice(bytes);
            value
        };
        let sent = update(&value(b't', &[1; 100]), &value(b't', &[2; 100]));
        let whole = oversize(&sent, 7, 100).unwrap();
        assert_eq!(whole, sent);
        for step in [1, 3, 50] {
            let kept = oversize(&sent, step, 99).unwrap();
            assert_eq!(kept, update(&value(LEFT_OUT, &[]), &value(LEFT_OUT, &[])));
        }
    }

    #[test]
    fn of_a_delete_stays_its_kind_and_of_other_messages_everything() {
        let mut delete = insert(&[Some(vec![1; 100])], usize::MAX);
        delete[KIND_AT] = b'D';
        let kept = oversize(&delete, 7, 10).unwrap();
        assert_eq!((kept.len(), kept[KIND_AT]), (KIND_AT + 1, b'D'));
        let mut relation = insert(&[Some(vec![1; 100])], usize::MAX);
        relation[KIND_AT] = b'R';
        assert_eq!(oversize(&relation, 7, 10).unwrap(), relation);
    }

    proptest! {
        #[test]
        fn large_values_are_left_out_however_the_bytes_arrive(
            sizes in prop::collection::vec(prop::option::of(0usize..60), 1..6),
            step in 1usize..70,
        ) {
            let value = |size: &Option<usize>| size.map(|size| vec![size as u8; size]);
            let values: Vec<_> = sizes.iter().map(value).collect();
            let sent = insert(&values, usize::MAX);
            prop_assert_eq!(oversize(&sent, step, 30).unwrap(), insert(&values, 30));
        }

        #[test]
        fn any_bytes_are_taken_to_their_end_without_a_panic(
            body in prop::collection::vec(any::<u8>(), HEAD_BYTES..120),
            kind in prop::sample::select(&b"IUDRBC"[..]),
            step in 1usize..30,
        ) {
            let mut sent = message(b'd', &body);
            (sent[5], sent[KIND_AT]) = (b'w', kind);
            let kept = oversize(&sent, step, 20).unwrap();
            prop_assert!(kept.len() <= sent.len());
        }
    }
}
