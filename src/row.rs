//! What an outbox row is: its fields, its identity, and the columns of the table it came from.
//!
//! Owns the row's representation. Never talks to a server.

pub(crate) mod columns;
pub mod ranges;

use std::fmt;

use bytes::{Bytes, BytesMut};
use postgres_protocol::escape::escape_identifier;

use crate::row::columns::ColumnNames;

/// A position in PostgreSQL's write-ahead log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl std::str::FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        let half = |digits| u32::from_str_radix(digits, 16).map_err(|_| ParseLsnError);
        Ok(Self(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

/// The text is not an LSN such as `0/16B3778`.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("not an LSN")]
pub struct ParseLsnError;

/// The value of a row's `id` column, short enough to keep for every row in flight.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowId {
    /// A uuid as PostgreSQL prints it, whatever the column's type.
    Uuid(uuid::Uuid),
    /// Any other text.
    Text(Box<str>),
}

impl RowId {
    /// Reads an id from the column's text; bytes that are not UTF-8 are replaced, which no PostgreSQL sends.
    pub fn from_text(text: &[u8]) -> Self {
        match uuid::Uuid::try_parse_ascii(text) {
            // A column of text may hold capitals, which a uuid does not print.
            Ok(uuid) if text.len() == 36 && !text.iter().any(u8::is_ascii_uppercase) => {
                Self::Uuid(uuid)
            }
            _ => Self::Text(String::from_utf8_lossy(text).into()),
        }
    }
}

impl RowId {
    /// The text of the id, made faster than `to_string` does.
    pub(crate) fn text(&self) -> String {
        let mut text = String::with_capacity(uuid::fmt::Hyphenated::LENGTH);
        self.write_to(&mut text);
        text
    }

    /// Appends the text of the id.
    pub(crate) fn write_to(&self, text: &mut String) {
        match self {
            Self::Uuid(uuid) => {
                let mut buffer = uuid::Uuid::encode_buffer();
                text.push_str(uuid.hyphenated().encode_lower(&mut buffer));
            }
            Self::Text(id) => text.push_str(id),
        }
    }
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => uuid.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// One column that the relay reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name in the table.
    pub name: String,
    /// `format_type()` of its type, such as `character varying(255)`.
    pub type_name: String,
    /// Its value is bytes: raw by polling, decoded from hex by replication.
    pub is_bytea: bool,
}

/// The columns of one outbox table, in the order in which a row's fields stand.
///
/// An optional column that the table lacks is `None`, and its feature is off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Schema of the table, unquoted.
    pub schema: String,
    /// Name of the table, unquoted.
    pub table: String,
    /// Every live column of the table, in attribute order.
    pub columns: Vec<Column>,
    pub id: usize,
    pub aggregate_type: usize,
    pub aggregate_id: usize,
    pub event_type: Option<usize>,
    pub payload: usize,
    pub headers: Option<usize>,
    pub topic: Option<usize>,
    pub partition_key: Option<usize>,
    pub seq: Option<usize>,
    pub sent_at: Option<usize>,
    /// What the table calls the columns that have a name of ours.
    pub names: ColumnNames,
}

impl Column {
    pub fn new(name: &str, type_name: &str) -> Self {
        Self {
            name: name.to_owned(),
            type_name: type_name.to_owned(),
            is_bytea: type_name == "bytea",
        }
    }

    /// `format_type()` without what is declared beside it, such as a length.
    pub(crate) fn base_type(&self) -> &str {
        self.type_name.split('(').next().unwrap_or_default()
    }

    /// An SQL expression for the column of a table called `o`: the text that pgoutput sends, NULL for NULL.
    ///
    /// Wherever a value is compared it is spelt in this way. pgoutput prints with the type's output function; so does
    /// `format`, and a cast to text only for types that have no cast of their own: that of `character(n)` loses blanks, of
    /// boolean gives `true` for `t`, of inet adds `/32`, of xml keeps a declaration.
    pub(crate) fn text(&self) -> String {
        let name = format!("o.{}", escape_identifier(&self.name));
        let base = self.base_type();
        if PRINTED_BY_CAST.contains(&base) || base.starts_with("time") {
            return format!("{name}::text");
        }
        // For a composite value IS NOT NULL asks for each of its fields.
        format!("CASE WHEN {name} IS DISTINCT FROM NULL THEN pg_catalog.format('%s', {name}) END")
    }
}

/// Types whose cast to text is their output function, or their very bytes; beside those of times.
const PRINTED_BY_CAST: [&str; 13] = [
    "uuid",
    "text",
    "character varying",
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "real",
    "double precision",
    "date",
    "interval",
    "json",
    "jsonb",
];

impl Layout {
    /// Finds the outbox's columns by our names; `None` where a mandatory one is missing.
    pub fn find(schema: &str, table: &str, columns: Vec<Column>) -> Option<Self> {
        Self::find_mapped(schema, table, columns, &ColumnNames::default())
    }

    /// Finds them by the table's names.
    pub(crate) fn find_mapped(
        schema: &str,
        table: &str,
        columns: Vec<Column>,
        names: &ColumnNames,
    ) -> Option<Self> {
        let find = |ours: &str| position(&columns, ours, names);
        Some(Self {
            schema: schema.to_owned(),
            table: table.to_owned(),
            id: find("id")?,
            aggregate_type: find("aggregatetype")?,
            aggregate_id: find("aggregateid")?,
            event_type: find("type"),
            payload: find("payload")?,
            headers: find("headers"),
            topic: find("topic"),
            partition_key: find("partitionkey"),
            seq: find("seq"),
            sent_at: find("sent_at"),
            names: names.clone(),
            columns,
        })
    }

    /// The table's name for SQL, qualified and quoted.
    pub(crate) fn sql_name(&self) -> String {
        format!(
            "{}.{}",
            escape_identifier(&self.schema),
            escape_identifier(&self.table)
        )
    }

    /// The name that the state tables know the outbox by.
    pub(crate) fn outbox(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }

    /// An SQL expression for the text of a column's value, with the table called `o`; see [`Column::text`].
    pub(crate) fn text_of(&self, column: usize) -> String {
        self.columns[column].text()
    }

    /// An SQL condition on the table called `o`: its `id` is among the texts of an array, by an index where there is one.
    ///
    /// Two ids that are equal to their type may differ in text: who must tell them apart compares `text_of`, too.
    pub(crate) fn id_is_among(&self, texts: &str) -> String {
        let id = &self.columns[self.id];
        let (name, type_name) = (escape_identifier(&id.name), &id.type_name);
        format!("o.{name} = ANY (({texts}::text[])::{type_name}[])")
    }

    /// Finds a column by the table's exact name.
    pub(crate) fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// Finds a column by our name.
    pub(crate) fn ours(&self, name: &str) -> Option<usize> {
        position(&self.columns, name, &self.names)
    }

    /// Finds a column by our name, else by the table's own: as people name it in a route.
    pub(crate) fn named(&self, name: &str) -> Option<usize> {
        self.ours(name).or_else(|| self.column(name))
    }
}

fn position(columns: &[Column], ours: &str, names: &ColumnNames) -> Option<usize> {
    let name = names.of(ours);
    let found = columns.iter().position(|column| column.name == name);
    found.filter(|_| !names.is_taken(ours))
}

/// Where one field stands in a row's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub start: u32,
    /// `Field::NULL` for SQL NULL.
    pub len: u32,
}

impl Field {
    pub(crate) const NULL: u32 = u32::MAX;
    const TOO_LARGE: u32 = u32::MAX - 1;
    const NO_COLUMN: u32 = u32::MAX - 2;
    const UNREADABLE: u32 = u32::MAX - 3;

    /// SQL NULL.
    pub(crate) const fn null() -> Self {
        Self {
            start: 0,
            len: Self::NULL,
        }
    }

    /// A value of so many bytes that it was not read.
    pub(crate) fn too_large(bytes: u64) -> Self {
        Self {
            start: u32::try_from(bytes).unwrap_or(u32::MAX),
            len: Self::TOO_LARGE,
        }
    }

    /// The table had no such column when the row was inserted.
    pub(crate) const fn no_column() -> Self {
        Self {
            start: 0,
            len: Self::NO_COLUMN,
        }
    }

    /// The server cannot send the value; five digits and capitals say why.
    pub(crate) fn unreadable(sqlstate: &str) -> Self {
        Self {
            start: u32::from_str_radix(sqlstate, 36).unwrap_or_default(),
            len: Self::UNREADABLE,
        }
    }

    /// Where its bytes stand among those of its row; `None` where it has none.
    pub(crate) fn range(self) -> Option<std::ops::Range<usize>> {
        let start = self.start as usize;
        self.has_bytes().then(|| start..start + self.len as usize)
    }

    fn has_bytes(self) -> bool {
        self.len < Self::UNREADABLE
    }

    fn is_there(self) -> bool {
        !matches!(self.len, Self::TOO_LARGE | Self::UNREADABLE)
    }

    fn left_out(self) -> Option<LeftOut> {
        match self.len {
            Self::TOO_LARGE => Some(LeftOut::TooLarge { bytes: self.start }),
            Self::NO_COLUMN => Some(LeftOut::NoColumn),
            Self::UNREADABLE => Some(LeftOut::Unreadable { code: self.start }),
            _ => None,
        }
    }
}

/// Why a row comes without a value that it has or should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeftOut {
    /// No record can carry it, so it was not read.
    TooLarge { bytes: u32 },
    /// The table had no such column when the row was inserted.
    NoColumn,
    /// The server cannot send it; the SQLSTATE as a number of base 36.
    Unreadable { code: u32 },
}

/// The SQLSTATE of a value that the server cannot send.
pub(crate) fn sqlstate(code: u32) -> String {
    let digit = |place: u32| char::from_digit(code / 36u32.pow(place) % 36, 36);
    let digits = (0..5).rev().filter_map(digit);
    digits.map(|digit| digit.to_ascii_uppercase()).collect()
}

/// Who wrote what was read of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// A copy of ours, or a row whose version nobody asks for.
    #[default]
    Unknown,
    /// The stream brought it: the top-level transaction that inserted it, which a snapshot may not show yet.
    Stream { xid: u32 },
    /// It was read from the table: the `xmin` of the version that was read.
    Table { xmin: u32 },
    /// Somebody whose transaction began before this one wrote it.
    Before { xmax: u32 },
}

/// A committed outbox row: text as PostgreSQL prints it, `bytea` as its raw bytes.
#[derive(Clone, Debug)]
pub struct OutboxRow {
    /// The largest LSN at which the row's commit can stand: its commit when streamed, the insert
    /// position read after it when polled.
    pub lsn: Lsn,
    pub origin: Origin,
    /// The number that the table's identity column gave it.
    pub seq: Option<i64>,
    /// Its `id`; `None` for SQL NULL, which is a fault of the row.
    pub id: Option<RowId>,
    bytes: Bytes,
    fields: Box<[Field]>,
}

impl OutboxRow {
    /// Builds a row whose fields stand in `bytes`, one for each column of `layout`.
    ///
    /// `seq` and `id` are read from their fields.
    pub fn new(layout: &Layout, lsn: Lsn, bytes: Bytes, fields: Box<[Field]>) -> Self {
        let mut row = Self {
            lsn,
            origin: Origin::Unknown,
            seq: None,
            id: None,
            bytes,
            fields,
        };
        row.id = row.field(layout.id).map(RowId::from_text);
        let seq = layout.seq.and_then(|column| row.field(column));
        row.seq = seq.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        row
    }

    /// The same row with some values of another one; its bytes are its own.
    pub(crate) fn with_values_of(&self, other: &Self, columns: &[usize], layout: &Layout) -> Self {
        let mut bytes = BytesMut::with_capacity(self.bytes.len() + other.bytes.len());
        let mut fields = self.fields.clone();
        for (column, field) in fields.iter_mut().enumerate() {
            let from = match columns.contains(&column) {
                true => other,
                false => self,
            };
            *field = from.fields.get(column).copied().unwrap_or(Field::null());
            if let Some(value) = from.field(column) {
                field.start = bytes.len() as u32;
                bytes.extend_from_slice(value);
            }
        }
        let mut row = Self::new(layout, self.lsn, bytes.freeze(), fields);
        row.origin = self.origin;
        row
    }

    /// A row of which only its name and its aggregate's type and id are known.
    pub(crate) fn of_aggregate(
        layout: &Layout,
        id: RowId,
        seq: Option<i64>,
        (kind, aggregate): (Option<Bytes>, Option<Bytes>),
    ) -> Self {
        let mut fields = vec![Field::null(); layout.columns.len()].into_boxed_slice();
        let mut bytes = BytesMut::new();
        let named = [
            (layout.aggregate_type, kind),
            (layout.aggregate_id, aggregate),
        ];
        for (column, text) in named {
            let Some(text) = text else { continue };
            fields[column] = Field {
                start: bytes.len() as u32,
                len: text.len() as u32,
            };
            bytes.extend_from_slice(&text);
        }
        let mut row = Self::new(layout, Lsn(0), bytes.freeze(), fields);
        (row.id, row.seq) = (Some(id), seq);
        row
    }

    /// The value of a column of the layout, `None` for SQL NULL and for what was left out.
    pub(crate) fn field(&self, column: usize) -> Option<&[u8]> {
        let range = self.fields.get(column)?.range()?;
        Some(&self.bytes[range])
    }

    /// Why the value of a column was left out, if it was.
    pub(crate) fn left_out(&self, column: usize) -> Option<LeftOut> {
        self.fields.get(column)?.left_out()
    }

    /// Whether every value that it has was read.
    pub(crate) fn is_whole(&self) -> bool {
        self.fields.iter().all(|field| field.is_there())
    }

    /// The value of a column, sharing the row's bytes.
    pub(crate) fn slice(&self, column: usize) -> Option<Bytes> {
        self.field(column).map(|value| self.bytes.slice_ref(value))
    }

    /// Bytes that the row occupies.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_cannot_be_sent_keeps_its_sqlstate() {
        for code in ["22021", "22P05", "XX001", "ZZZZZ", "00000"] {
            let Some(LeftOut::Unreadable { code: kept }) = Field::unreadable(code).left_out()
            else {
                panic!("{code}");
            };
            assert_eq!(sqlstate(kept), code);
        }
    }

    #[test]
    fn an_id_is_written_as_it_was_read() {
        for text in [
            "0198c0de-7a11-7000-8000-000000000001",
            "0198C0DE-7A11-7000-8000-000000000001",
            "0198c0de7a1170008000000000000001",
            "o-1",
        ] {
            assert_eq!(RowId::from_text(text.as_bytes()).to_string(), text);
        }
    }
}
