//! The output plugin's messages, protocol version 1 in text format, as rows of the outbox.
//!
//! Pure: no I/O and no clock. Never trusts a length or a count that the bytes do not bear out.
//!
//! Source: PostgreSQL 17, 53.9 Logical Replication Message Formats.

mod cursor;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;

use crate::outbox::{Field, Layout, Lsn, OutboxRow};
use cursor::Cursor;

/// `bytea` in every PostgreSQL.
const BYTEA_OID: u32 = 17;
/// Types below it are PostgreSQL's own; a domain over `bytea` stands above.
const FIRST_USER_OID: u32 = 16_384;
/// Between the epochs of Unix and of PostgreSQL.
const EPOCH: Duration = Duration::from_secs(946_684_800);

/// What one message says.
#[derive(Debug)]
pub enum Change {
    /// A committed transaction follows; `final_lsn` is where its commit stands.
    Begin {
        final_lsn: Lsn,
        commit_time: SystemTime,
        xid: u32,
    },
    /// It is complete; `end_lsn` is what may be confirmed once all its rows are resolved.
    Commit {
        commit_lsn: Lsn,
        end_lsn: Lsn,
        commit_time: SystemTime,
    },
    /// One inserted row of the outbox.
    Row(OutboxRow),
    /// Nothing that concerns us: a description, another table, or something other than an insert.
    Skipped,
}

/// A message that can't be used; the stream can't go on behind it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("message `{message}` ends too early at byte {offset}")]
    Truncated { message: char, offset: usize },
    #[error("message `{message}` holds what it must not at byte {offset}: {what}")]
    Malformed {
        message: char,
        offset: usize,
        what: &'static str,
    },
    #[error("message `{message}` does not belong here: {what}")]
    OutOfPlace { message: char, what: &'static str },
    #[error("the outbox has lost its column `{column}` in the stream")]
    MissingColumn { column: String },
}

/// What the messages of one connection have told so far.
///
/// A new connection needs a new decoder: the server describes every relation again.
pub struct Decoder {
    layout: Arc<Layout>,
    relations: HashMap<u32, Relation>,
    /// The open transaction's `final_lsn`.
    open: Option<Lsn>,
}

/// A table that the stream has described.
enum Relation {
    Outbox(Box<[TupleColumn]>),
    Other,
}

/// What becomes of one column of a tuple.
#[derive(Clone, Copy)]
struct TupleColumn {
    /// Its place in the layout; the layout may be older than the table.
    column: Option<usize>,
    is_bytea: bool,
}

impl Decoder {
    pub fn new(layout: Arc<Layout>) -> Self {
        Self {
            layout,
            relations: HashMap::new(),
            open: None,
        }
    }

    /// Whether a transaction has begun and its commit was not read yet.
    pub fn is_in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Understands one message; a row shares the message's bytes, `bytea` decoded in place.
    pub fn decode(&mut self, data: BytesMut) -> Result<Change, DecodeError> {
        let mut cursor = Cursor::new(&data)?;
        match cursor.message() {
            b'B' => self.begin(&mut cursor),
            b'C' => self.commit(&mut cursor),
            b'R' => self.relation(&mut cursor),
            b'I' => match self.tuple_columns(&mut cursor)? {
                Some(columns) => row(&self.layout, columns, self.row_lsn()?, data),
                None => Ok(Change::Skipped),
            },
            b'O' | b'Y' | b'T' | b'U' | b'D' | b'M' => Ok(Change::Skipped),
            _ => Err(cursor.malformed("a message of this kind is not known")),
        }
    }

    fn begin(&mut self, cursor: &mut Cursor<'_>) -> Result<Change, DecodeError> {
        if self.open.is_some() {
            return Err(out_of_place('B', "a transaction is open"));
        }
        let final_lsn = Lsn(cursor.u64()?);
        let change = Change::Begin {
            final_lsn,
            commit_time: time(cursor.u64()?),
            xid: cursor.u32()?,
        };
        self.open = Some(final_lsn);
        Ok(change)
    }

    fn commit(&mut self, cursor: &mut Cursor<'_>) -> Result<Change, DecodeError> {
        cursor.u8()?;
        let commit_lsn = Lsn(cursor.u64()?);
        if self.open != Some(commit_lsn) {
            return Err(out_of_place('C', "another transaction is open, or none"));
        }
        let change = Change::Commit {
            commit_lsn,
            end_lsn: Lsn(cursor.u64()?),
            commit_time: time(cursor.u64()?),
        };
        self.open = None;
        Ok(change)
    }

    fn row_lsn(&self) -> Result<Lsn, DecodeError> {
        self.open.ok_or(out_of_place('I', "no transaction is open"))
    }

    /// Notes what a relation's tuples look like from now on.
    fn relation(&mut self, cursor: &mut Cursor<'_>) -> Result<Change, DecodeError> {
        let relation_id = cursor.u32()?;
        let schema = cursor.text()?;
        let table = cursor.text()?;
        let is_named =
            schema == self.layout.schema.as_bytes() && table == self.layout.table.as_bytes();
        // A table that is renamed under way stays the one it is.
        let is_known = matches!(self.relations.get(&relation_id), Some(Relation::Outbox(_)));
        let relation = if is_named || is_known {
            Relation::Outbox(self.described_columns(cursor)?)
        } else {
            Relation::Other
        };
        self.relations.insert(relation_id, relation);
        Ok(Change::Skipped)
    }

    fn described_columns(
        &self,
        cursor: &mut Cursor<'_>,
    ) -> Result<Box<[TupleColumn]>, DecodeError> {
        let layout = &self.layout;
        cursor.u8()?;
        let count = usize::from(cursor.u16()?);
        let mut columns = Vec::new();
        for _ in 0..count {
            cursor.u8()?;
            let name = cursor.text()?;
            let type_oid = cursor.u32()?;
            cursor.u32()?;
            let named = |column: &crate::outbox::Column| column.name.as_bytes() == name;
            let column = layout.columns.iter().position(named);
            let is_domain =
                |column: usize| layout.columns[column].is_bytea && type_oid >= FIRST_USER_OID;
            let is_bytea = type_oid == BYTEA_OID || column.is_some_and(is_domain);
            columns.push(TupleColumn { column, is_bytea });
        }
        let needed = [
            layout.id,
            layout.aggregate_type,
            layout.aggregate_id,
            layout.payload,
        ];
        for column in needed {
            if !columns
                .iter()
                .any(|described| described.column == Some(column))
            {
                let column = layout.columns[column].name.clone();
                return Err(DecodeError::MissingColumn { column });
            }
        }
        Ok(columns.into_boxed_slice())
    }

    /// The columns of an insert's tuple; `None` where it is not an insert into the outbox.
    fn tuple_columns(
        &self,
        cursor: &mut Cursor<'_>,
    ) -> Result<Option<&[TupleColumn]>, DecodeError> {
        match self.relations.get(&cursor.u32()?) {
            Some(Relation::Outbox(columns)) => Ok(Some(columns)),
            Some(Relation::Other) => Ok(None),
            None => Err(out_of_place('I', "its relation was never described")),
        }
    }
}

/// Where an insert's tuple begins: behind the message's kind and the relation's id.
const TUPLE_AT: usize = 5;

fn row(
    layout: &Layout,
    columns: &[TupleColumn],
    lsn: Lsn,
    mut data: BytesMut,
) -> Result<Change, DecodeError> {
    let mut fields = vec![Field::null(); layout.columns.len()].into_boxed_slice();
    let mut offset = tuple_start(&data, columns.len())?;
    for tuple_column in columns {
        let mut cursor = Cursor::at(&data, offset)?;
        let value = cursor.value()?;
        offset = cursor.offset();
        let (Some(column), Some(range)) = (tuple_column.column, value) else {
            continue;
        };
        let start = range.start;
        let len = if tuple_column.is_bytea {
            decode_hex(&mut data, range)?
        } else {
            range.len()
        };
        // A message is shorter than 2 GiB, so that both numbers fit.
        fields[column] = Field {
            start: start as u32,
            len: len as u32,
        };
    }
    if offset != data.len() {
        return Err(Cursor::at(&data, offset)?.malformed("bytes behind the last column"));
    }
    let bytes = data.freeze();
    Ok(Change::Row(OutboxRow::new(layout, lsn, bytes, fields)))
}

/// Checks a tuple's head and says where its first column stands.
fn tuple_start(data: &BytesMut, columns: usize) -> Result<usize, DecodeError> {
    let mut cursor = Cursor::at(data, TUPLE_AT)?;
    if cursor.u8()? != b'N' {
        return Err(cursor.malformed("no new tuple"));
    }
    if usize::from(cursor.u16()?) != columns {
        return Err(cursor.malformed("a number of columns that its relation does not have"));
    }
    Ok(cursor.offset())
}

/// Turns `\x6f6b` into the bytes it stands for, at the same place, and returns how many they are.
fn decode_hex(data: &mut BytesMut, range: std::ops::Range<usize>) -> Result<usize, DecodeError> {
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

fn out_of_place(message: char, what: &'static str) -> DecodeError {
    DecodeError::OutOfPlace { message, what }
}

/// A PostgreSQL timestamp: signed microseconds; the Unix epoch where it can't be represented.
fn time(micros: u64) -> SystemTime {
    let micros = micros as i64;
    let epoch = SystemTime::UNIX_EPOCH + EPOCH;
    let distance = Duration::from_micros(micros.unsigned_abs());
    let time = if micros < 0 {
        epoch.checked_sub(distance)
    } else {
        epoch.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}
