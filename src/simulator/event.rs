//! One row that a writer inserts, and what the relay reads of it.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;

use super::server::AGGREGATES;
use crate::core::{Delivered, partition_of};
use crate::encode::{Record, Rejection, RejectionReason};
use crate::postgres::catalog::{ReplicaIdentity, Table, TableKind};
use crate::row::ranges::RangeSet;
use crate::row::{Column, Field, Layout, Lsn, Origin, OutboxRow};

/// Partitions of all topics together: one for each aggregate, and one for rows without.
pub const PARTITIONS: usize = AGGREGATES + 1;
/// Partitions of one topic.
pub const TOPIC_PARTITIONS: u32 = 2;
const NAMES: [&str; PARTITIONS] = ["a0", "a1", "a2", "free"];
const FIELDS: usize = 4;

/// Why a row can't be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// It can't be encoded.
    Rejected,
    /// The broker refuses it.
    Refused,
    /// The statement that marks it fails: a foreign key.
    Unmarkable,
    /// The statement that marks it changes nothing: a trigger.
    Unchanged,
}

/// A row as its writer knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Of no other row, also after a crash that gives its number again.
    pub id: u32,
    pub seq: i64,
    /// `None`: its writer locks nothing.
    pub aggregate: Option<usize>,
    pub flaw: Flaw,
    /// Who wrote this version of it.
    pub xid: u32,
    /// Counts the changes since it was inserted.
    pub version: u32,
}

static LAYOUT: LazyLock<Arc<Layout>> = LazyLock::new(|| {
    let column = |name: &str| Column {
        name: name.to_owned(),
        type_name: "text".to_owned(),
        is_bytea: false,
    };
    Arc::new(Layout {
        schema: "public".to_owned(),
        table: "outbox".to_owned(),
        columns: ["id", "seq", "aggregateid", "version"].map(column).to_vec(),
        id: 0,
        aggregate_type: 2,
        aggregate_id: 2,
        event_type: None,
        payload: 2,
        headers: None,
        topic: None,
        partition_key: None,
        seq: Some(1),
        sent_at: None,
        names: Default::default(),
    })
});

/// The keys of the aggregates' records: each of a topic's goes to a partition of its own, and to another one once the topic
/// has grown.
static KEYS: LazyLock<[Bytes; AGGREGATES]> = LazyLock::new(|| {
    std::array::from_fn(|aggregate| {
        let keys = (0_u32..).map(|number| Bytes::from(format!("{}-{number}", NAMES[aggregate])));
        let mut keys = keys.filter(|key| {
            let record = record(aggregate, Some(key.clone()), Bytes::new());
            partition_of(&record, TOPIC_PARTITIONS) == Some(aggregate as u32 % TOPIC_PARTITIONS)
                && partition_of(&record, TOPIC_PARTITIONS + 1) == Some(TOPIC_PARTITIONS)
        });
        keys.next().expect("keys are many")
    })
});

static TOPICS: LazyLock<[Arc<str>; 2]> = LazyLock::new(|| ["orders".into(), "bills".into()]);

/// The table's columns.
pub fn layout() -> Arc<Layout> {
    LAYOUT.clone()
}

/// The topic of a partition.
pub fn topic(partition: usize) -> &'static Arc<str> {
    &TOPICS[partition / 2]
}

impl Event {
    /// Its aggregate's partition.
    pub fn partition(&self) -> usize {
        self.aggregate.unwrap_or(AGGREGATES)
    }

    /// The row as the stream hands it out.
    pub fn streamed(&self, lsn: u64) -> OutboxRow {
        let mut row = self.row(lsn);
        row.origin = Origin::Stream { xid: self.xid };
        row
    }

    /// The row as a page of unsent rows hands it out.
    pub fn paged(&self, lsn: u64) -> OutboxRow {
        let mut row = self.row(lsn);
        row.origin = Origin::Table { xmin: self.xid };
        row
    }

    /// The row, without a word of who wrote it.
    pub fn row(&self, lsn: u64) -> OutboxRow {
        let (id, seq) = (self.id.to_string(), self.seq.to_string());
        let version = self.version.to_string();
        let texts: [&str; FIELDS] = [&id, &seq, NAMES[self.partition()], &version];
        let mut fields = [Field::null(); FIELDS];
        let mut bytes = Vec::with_capacity(24);
        for (field, text) in fields.iter_mut().zip(texts) {
            *field = Field {
                start: bytes.len() as u32,
                len: text.len() as u32,
            };
            bytes.extend_from_slice(text.as_bytes());
        }
        OutboxRow::new(&LAYOUT, Lsn(lsn), Bytes::from(bytes), Box::new(fields))
    }
}

fn record(partition: usize, key: Option<Bytes>, value: Bytes) -> Record {
    Record {
        topic: topic(partition).clone(),
        key,
        value: Some(value),
        headers: Vec::new(),
    }
}

/// The record that a row is to become, or why it can't; of an event that a crash lost nothing but its number is known.
pub fn encoded(
    row: &OutboxRow,
    event: Option<Event>,
    is_mended: bool,
) -> Result<Record, Rejection> {
    if !is_mended && event.is_some_and(|event| event.flaw == Flaw::Rejected) {
        return Err(Rejection {
            reason: RejectionReason::TopicInvalid,
            text: "flawed".to_owned(),
        });
    }
    let value = u64::from(id_of(row)) << 32 | u64::from(version_of(row));
    let value = Bytes::copy_from_slice(&value.to_be_bytes());
    let partition = event.map_or(0, |event| event.partition());
    let key = event.and_then(|event| event.aggregate);
    Ok(record(
        partition,
        key.map(|aggregate| KEYS[aggregate].clone()),
        value,
    ))
}

/// The event that a record stands for, and its version.
pub fn event_of(record: &Record) -> (u32, u32) {
    let value = record.value.as_deref().unwrap_or_default();
    let value = value
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes));
    ((value >> 32) as u32, value as u32)
}

/// The text of an aggregate's type and id, by its partition.
pub fn text_of(partition: usize) -> &'static str {
    NAMES[partition]
}

/// What the catalog says of the table.
pub static TABLE: LazyLock<Table> = LazyLock::new(|| Table {
    oid: 1,
    read_at: Lsn(0),
    shape: String::new(),
    layout: Layout::clone(&LAYOUT),
    kind: TableKind::Ordinary,
    owner: String::new(),
    column_xids: Vec::new(),
    leaves: Vec::new(),
    before_insert_triggers: Vec::new(),
    subscriptions: Vec::new(),
    row_security: false,
    update_rules: Vec::new(),
    delete_rules: Vec::new(),
    is_born_sent: false,
    id_is_unique: true,
    replica_identity: ReplicaIdentity::Default,
    has_primary_key: true,
    unpublishable: Vec::new(),
    seq: None,
});

/// Which version of its event a row shows.
pub fn version_of(row: &OutboxRow) -> u32 {
    let text = row.field(FIELDS - 1).unwrap_or_default();
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// The event that a row stands for, by its id.
pub fn id_of(row: &OutboxRow) -> u32 {
    match &row.id {
        Some(crate::row::RowId::Text(text)) => text.parse().unwrap_or(0),
        _ => 0,
    }
}

/// The number and the event of a row that was delivered.
pub fn seq_and_id(row: &Delivered) -> (i64, u32) {
    let id = row.id.to_string().parse().unwrap_or(0);
    (row.seq.unwrap_or(0), id)
}

/// The numbers of rows that were delivered.
pub fn seqs_of(rows: &[Delivered]) -> RangeSet {
    rows.iter().filter_map(|row| row.seq).collect()
}
