//! The output plugin's messages, protocol version 1 in text format, as rows of the outbox.
//!
//! Pure: no I/O and no clock. Never trusts a length or a count that the bytes do not bear out.
//!
//! Source: PostgreSQL 17, 53.9 Logical Replication Message Formats.

mod cursor;
#[cfg(test)]
pub(super) mod tests;
mod tuple;
mod update;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;

use crate::config::RouteConfig;
use crate::postgres::catalog::{Table, TableKind};
use crate::postgres::publication;
use crate::postgres::time::from_micros;
use crate::row::{Layout, Lsn, OutboxRow};
use cursor::Cursor;
use tuple::{Tuple, TupleColumn};
pub(crate) use update::{Update, key_hash};

/// `bytea` in every PostgreSQL.
const BYTEA_OID: u32 = 17;
/// What is kept of one connection's relations: about 32 MiB.
const DESCRIBED_MAX: usize = 1 << 20;
/// Of the column's flags: it is part of the replica identity.
const KEY_FLAG: u8 = 1;
/// Types below it are PostgreSQL's own; a domain over `bytea` stands above.
const FIRST_USER_OID: u32 = 16_384;

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
    /// A row of the outbox was changed, in a transaction that inserted rows: one of them, or an older one.
    Update(Box<Update>),
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
    #[error("the outbox has lost its column `{column}`")]
    MissingColumn { column: String },
    #[error("the outbox comes with other columns than it had")]
    OtherColumns,
}

/// The outbox as the catalog described it before the stream began.
#[derive(Clone, Debug)]
pub struct Described {
    pub layout: Arc<Layout>,
    pub needed: Vec<Needed>,
    /// The table's oid: whatever its name was, these are its rows.
    pub oid: u32,
    /// A position before which the catalog was not read: what the stream says of earlier transactions is history.
    pub read_at: Lsn,
    pub kind: TableKind,
}

impl Described {
    /// A table whose records are made as the route says.
    pub fn new(route: &RouteConfig, table: &Table) -> Self {
        let needed = publication::needed(route, &table.layout);
        let xid = |column: usize| table.column_xids.get(column).copied();
        let needed = needed.into_iter().map(|column| Needed {
            column,
            xid: xid(column).unwrap_or(u32::MAX),
        });
        Self {
            needed: needed.collect(),
            layout: Arc::new(table.layout.clone()),
            oid: table.oid,
            read_at: table.read_at,
            kind: table.kind,
        }
    }
}

/// A column without which a row has no record, or another one.
#[derive(Clone, Copy, Debug)]
pub struct Needed {
    pub column: usize,
    /// The transaction that wrote its entry in the catalog.
    pub xid: u32,
}

impl Needed {
    /// Whether the table had the column in this transaction: a later one has written its entry where it was added since.
    fn stood_in(&self, xid: u32) -> bool {
        self.xid < FIRST_NORMAL_XID || (self.xid.wrapping_sub(xid) as i32) < 0
    }
}

/// Those below it are older than all others.
const FIRST_NORMAL_XID: u32 = 3;

/// What the messages of one connection have told so far.
///
/// A new connection needs a new decoder: the server describes every relation again.
pub struct Decoder {
    outbox: Described,
    relations: HashMap<u32, Relation>,
    /// Relations, and columns of those that are the outbox.
    described: usize,
    open: Option<Transaction>,
    /// The open transaction has inserted rows of the outbox.
    has_rows: bool,
}

/// A transaction that has begun and whose commit was not read yet.
#[derive(Clone, Copy)]
struct Transaction {
    final_lsn: Lsn,
    xid: u32,
}

/// A table that the stream has described.
enum Relation {
    Outbox(Tuple),
    Other,
}

impl Relation {
    fn size(&self) -> usize {
        match self {
            Self::Outbox(tuple) => 1 + tuple.columns.len(),
            Self::Other => 1,
        }
    }
}

impl Decoder {
    pub fn new(outbox: Described) -> Self {
        Self {
            outbox,
            relations: HashMap::new(),
            described: 0,
            open: None,
            has_rows: false,
        }
    }

    /// Where the commit of the transaction stands that has begun and whose commit was not read yet.
    pub(crate) fn open_transaction(&self) -> Option<Lsn> {
        Some(self.open?.final_lsn)
    }

    /// Understands one message; a row shares the message's bytes, `bytea` decoded in place.
    pub fn decode(&mut self, data: BytesMut) -> Result<Change, DecodeError> {
        let mut cursor = Cursor::new(&data)?;
        match cursor.message() {
            b'B' => self.begin(&mut cursor),
            b'C' => self.commit(&mut cursor),
            b'R' => self.relation(&mut cursor),
            b'I' => match self.tuple(&mut cursor)? {
                Some(tuple) => {
                    let row = tuple.row(&self.outbox.layout, self.transaction()?, data);
                    self.has_rows = true;
                    row
                }
                None => Ok(Change::Skipped),
            },
            b'U' if self.has_rows => match self.tuple(&mut cursor)? {
                Some(tuple) => {
                    let update = tuple.update(&self.outbox.layout, self.transaction()?, data)?;
                    Ok(Change::Update(Box::new(update)))
                }
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
        let commit_time = from_micros(cursor.u64()? as i64);
        let xid = cursor.u32()?;
        self.open = Some(Transaction { final_lsn, xid });
        self.has_rows = false;
        Ok(Change::Begin {
            final_lsn,
            commit_time,
            xid,
        })
    }

    fn commit(&mut self, cursor: &mut Cursor<'_>) -> Result<Change, DecodeError> {
        cursor.u8()?;
        let commit_lsn = Lsn(cursor.u64()?);
        if self.open_transaction() != Some(commit_lsn) {
            return Err(out_of_place('C', "another transaction is open, or none"));
        }
        let change = Change::Commit {
            commit_lsn,
            end_lsn: Lsn(cursor.u64()?),
            commit_time: from_micros(cursor.u64()? as i64),
        };
        self.open = None;
        Ok(change)
    }

    fn transaction(&self) -> Result<Transaction, DecodeError> {
        self.open.ok_or(out_of_place('I', "no transaction is open"))
    }

    /// Notes what a relation's tuples look like from now on.
    fn relation(&mut self, cursor: &mut Cursor<'_>) -> Result<Change, DecodeError> {
        let relation_id = cursor.u32()?;
        let schema = cursor.text()?;
        let table = cursor.text()?;
        let layout = &self.outbox.layout;
        let is_named = schema == layout.schema.as_bytes() && table == layout.table.as_bytes();
        let relation = if is_named || relation_id == self.outbox.oid {
            Relation::Outbox(self.described_tuple(cursor)?)
        } else {
            Relation::Other
        };
        self.described += relation.size();
        if let Some(before) = self.relations.insert(relation_id, relation) {
            self.described -= before.size();
        }
        if self.described > DESCRIBED_MAX {
            return Err(out_of_place(
                'R',
                "there are more relations than can be kept",
            ));
        }
        Ok(Change::Skipped)
    }

    fn described_tuple(&self, cursor: &mut Cursor<'_>) -> Result<Tuple, DecodeError> {
        let layout = &self.outbox.layout;
        cursor.u8()?;
        let count = usize::from(cursor.u16()?);
        let mut columns = Vec::new();
        for _ in 0..count {
            let is_key = cursor.u8()? & KEY_FLAG != 0;
            let name = cursor.text()?;
            let type_oid = cursor.u32()?;
            cursor.u32()?;
            let named = |column: &crate::row::Column| column.name.as_bytes() == name;
            let column = layout.columns.iter().position(named);
            let is_domain =
                |column: usize| layout.columns[column].is_bytea && type_oid >= FIRST_USER_OID;
            let is_bytea = type_oid == BYTEA_OID || column.is_some_and(is_domain);
            columns.push(TupleColumn {
                column,
                is_bytea,
                is_key,
            });
        }
        let has = |column: usize| columns.iter().any(|found| found.column == Some(column));
        let lacking: Vec<Needed> = self
            .outbox
            .needed
            .iter()
            .copied()
            .filter(|needed| !has(needed.column))
            .collect();
        let lacking = self.judge_lacking(lacking)?;
        if !self.is_history() && columns.iter().any(|described| described.column.is_none()) {
            return Err(DecodeError::OtherColumns);
        }
        Ok(Tuple::new(columns, lacking))
    }

    /// Those of the lacking columns that a row can't be without.
    ///
    /// A column that was added since is NULL in older rows. One that stood there was left out by the publication.
    fn judge_lacking(&self, lacking: Vec<Needed>) -> Result<Vec<usize>, DecodeError> {
        let layout = &self.outbox.layout;
        let is_mandatory = |column: usize| {
            let mandatory = [
                layout.id,
                layout.aggregate_type,
                layout.aggregate_id,
                layout.payload,
            ];
            mandatory.contains(&column)
        };
        if self.is_history() {
            let xid = self.open.map_or(0, |open| open.xid);
            let lacking = lacking.into_iter();
            let lacking = lacking.filter(|one| is_mandatory(one.column) || one.stood_in(xid));
            return Ok(lacking.map(|one| one.column).collect());
        }
        match lacking.iter().find(|one| is_mandatory(one.column)) {
            Some(one) => Err(DecodeError::MissingColumn {
                column: layout.columns[one.column].name.clone(),
            }),
            None if lacking.is_empty() => Ok(Vec::new()),
            None => Err(DecodeError::OtherColumns),
        }
    }

    /// Whether the catalog was read after the open transaction: where it says otherwise, the table has changed since.
    fn is_history(&self) -> bool {
        self.open
            .is_some_and(|open| open.final_lsn < self.outbox.read_at)
    }

    /// What a change's tuples look like; `None` where it is not one of the outbox.
    fn tuple(&self, cursor: &mut Cursor<'_>) -> Result<Option<&Tuple>, DecodeError> {
        match self.relations.get(&cursor.u32()?) {
            Some(Relation::Outbox(tuple)) => Ok(Some(tuple)),
            Some(Relation::Other) => Ok(None),
            None => Err(out_of_place('I', "its relation was never described")),
        }
    }
}

fn out_of_place(message: char, what: &'static str) -> DecodeError {
    DecodeError::OutOfPlace { message, what }
}
