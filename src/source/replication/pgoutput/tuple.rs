//! The columns of one row in a message, and what they become.

use bytes::{Bytes, BytesMut};

use super::cursor::{Cursor, Value};
use super::{Change, DecodeError, Transaction, Update};
use crate::row::{Field, Layout, Origin, OutboxRow};

/// What an insert's tuple looks like.
pub(super) struct Tuple {
    pub(super) columns: Box<[TupleColumn]>,
    /// Columns that a row needs and that the table did not have then.
    lacking: Vec<usize>,
    has_bytea: bool,
}

/// What becomes of one column of a tuple.
#[derive(Clone, Copy)]
pub(super) struct TupleColumn {
    /// Its place in the layout; the layout may be older than the table.
    pub(super) column: Option<usize>,
    pub(super) is_bytea: bool,
    /// It is part of the replica identity.
    pub(super) is_key: bool,
}

/// Where the first tuple begins: behind the message's kind and the relation's id.
const TUPLE_AT: usize = 5;

/// One tuple of a message.
struct Read {
    fields: Box<[Field]>,
    /// Columns whose large values the message does not repeat.
    unchanged: Vec<usize>,
    /// Behind its last column.
    end: usize,
}

impl Tuple {
    pub(super) fn new(columns: Vec<TupleColumn>, lacking: Vec<usize>) -> Self {
        Self {
            has_bytea: columns.iter().any(|column| column.is_bytea),
            columns: columns.into_boxed_slice(),
            lacking,
        }
    }

    /// The row of an insert, which shares the message's bytes.
    pub(super) fn row(
        &self,
        layout: &Layout,
        transaction: Transaction,
        mut data: BytesMut,
    ) -> Result<Change, DecodeError> {
        let read = self.read(layout, &mut data, TUPLE_AT, b'N')?;
        ends_at(&data, read.end)?;
        let row = built(layout, transaction, data.freeze(), read.fields);
        Ok(Change::Row(row))
    }

    /// What an update makes of a row: the old key or row, where it is told, and the new one.
    pub(super) fn update(
        &self,
        layout: &Layout,
        transaction: Transaction,
        mut data: BytesMut,
    ) -> Result<Update, DecodeError> {
        let kind = Cursor::at(&data, TUPLE_AT)?.u8()?;
        let old = match kind {
            b'K' | b'O' => Some(self.read(layout, &mut data, TUPLE_AT, kind)?),
            _ => None,
        };
        let at = old.as_ref().map_or(TUPLE_AT, |old| old.end);
        let new = self.read(layout, &mut data, at, b'N')?;
        ends_at(&data, new.end)?;
        let bytes = data.freeze();
        let row = |fields| built(layout, transaction, bytes.clone(), fields);
        let keys = self.columns.iter().filter(|column| column.is_key);
        Ok(Update {
            old: old.map(|old| row(old.fields)),
            new: row(new.fields),
            unchanged: new.unchanged,
            // A key that the layout does not know tells rows apart as little as none.
            keys: keys
                .map(|key| key.column)
                .collect::<Option<_>>()
                .unwrap_or_default(),
        })
    }

    #[inline]
    fn read(
        &self,
        layout: &Layout,
        data: &mut [u8],
        at: usize,
        kind: u8,
    ) -> Result<Read, DecodeError> {
        let mut fields = vec![Field::null(); layout.columns.len()].into_boxed_slice();
        for column in &self.lacking {
            fields[*column] = Field::no_column();
        }
        let mut unchanged = Vec::new();
        let mut cursor = tuple_start(data, at, kind, self.columns.len())?;
        for tuple_column in &self.columns {
            let value = cursor.value()?;
            let Some(column) = tuple_column.column else {
                continue;
            };
            fields[column] = match value {
                // A message is shorter than 2 GiB, so that both numbers fit.
                Value::Text(range) => Field {
                    start: range.start as u32,
                    len: range.len() as u32,
                },
                Value::LeftOut { len } => {
                    Field::too_large(printed_bytes(len, tuple_column.is_bytea))
                }
                Value::Unchanged if cursor.message() == b'I' => {
                    return Err(cursor.malformed("an unchanged value, which no insert has"));
                }
                Value::Unchanged => {
                    unchanged.push(column);
                    continue;
                }
                Value::Null => continue,
            };
        }
        let end = cursor.offset();
        if self.has_bytea {
            self.decode_bytea(data, &mut fields)?;
        }
        Ok(Read {
            fields,
            unchanged,
            end,
        })
    }

    fn decode_bytea(&self, data: &mut [u8], fields: &mut [Field]) -> Result<(), DecodeError> {
        let bytea = self.columns.iter().filter(|column| column.is_bytea);
        for column in bytea.filter_map(|column| column.column) {
            if let Some(range) = fields[column].range() {
                fields[column].len = decode_hex(data, range)? as u32;
            }
        }
        Ok(())
    }
}

#[inline]
fn built(
    layout: &Layout,
    transaction: Transaction,
    bytes: Bytes,
    fields: Box<[Field]>,
) -> OutboxRow {
    let mut row = OutboxRow::new(layout, transaction.final_lsn, bytes, fields);
    row.origin = Origin::Stream {
        xid: transaction.xid,
    };
    row
}

fn ends_at(data: &[u8], end: usize) -> Result<(), DecodeError> {
    if end == data.len() {
        return Ok(());
    }
    Err(Cursor::at(data, end)?.malformed("bytes behind the last column"))
}

/// How many bytes a value has whose text is so long.
fn printed_bytes(len: u32, is_bytea: bool) -> u64 {
    let len = u64::from(len);
    if is_bytea {
        len.saturating_sub(2) / 2
    } else {
        len
    }
}

/// Checks a tuple's head, and stands where its first column does.
fn tuple_start(
    data: &[u8],
    at: usize,
    kind: u8,
    columns: usize,
) -> Result<Cursor<'_>, DecodeError> {
    let mut cursor = Cursor::at(data, at)?;
    if cursor.u8()? != kind {
        return Err(cursor.malformed("no new tuple"));
    }
    if usize::from(cursor.u16()?) != columns {
        return Err(cursor.malformed("a number of columns that its relation does not have"));
    }
    Ok(cursor)
}

/// Turns `\x6f6b` into the bytes it stands for, at the same place, and returns how many they are.
fn decode_hex(data: &mut [u8], range: std::ops::Range<usize>) -> Result<usize, DecodeError> {
    let malformed = DecodeError::Malformed {
        message: 'I',
        offset: range.start,
        what: "bytea that is not in hex format",
    };
    let text = &mut data[range];
    if !text.starts_with(b"\\x") || !text.len().is_multiple_of(2) {
        return Err(malformed);
    }
    let count = text.len() / 2 - 1;
    let mut bad = 0;
    for index in 0..count {
        let high = HEX[usize::from(text[2 + 2 * index])];
        let low = HEX[usize::from(text[3 + 2 * index])];
        bad |= high | low;
        text[index] = high << 4 | low;
    }
    if bad & NOT_HEX != 0 {
        return Err(malformed);
    }
    Ok(count)
}

const NOT_HEX: u8 = 0x80;
/// The value of each hexadecimal digit, [`NOT_HEX`] for every other byte.
const HEX: [u8; 256] = {
    let mut table = [NOT_HEX; 256];
    let mut digit = 0;
    while digit < 16 {
        table[b"0123456789abcdef"[digit] as usize] = digit as u8;
        table[b"0123456789ABCDEF"[digit] as usize] = digit as u8;
        digit += 1;
    }
    table
};
