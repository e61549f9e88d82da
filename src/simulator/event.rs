//! One row that a writer inserts, and what the relay reads of it.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;

use super::server::AGGREGATES;
use crate::encode::{Rejection, RejectionReason};
use crate::outbox::{Column, Field, Layout, Lsn, OutboxRow};

/// Partitions of all topics together: one for each aggregate, and one for rows without.
pub const PARTITIONS: usize = AGGREGATES + 1;
const NAMES: [&str; PARTITIONS] = ["a0", "a1", "a2", "free"];
const FIELDS: usize = 3;

/// Why a row can't be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// It can't be encoded.
    Rejected,
    /// The broker refuses it.
    Refused,
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
        columns: ["id", "seq", "aggregateid"].map(column).to_vec(),
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

    /// The row as a source hands it out.
    pub fn row(&self, lsn: u64) -> OutboxRow {
        let (id, seq) = (self.id.to_string(), self.seq.to_string());
        let texts: [&str; FIELDS] = [&id, &seq, NAMES[self.partition()]];
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

    /// Its topic, or why there is none.
    pub fn encoded(&self, is_mended: bool) -> Result<Arc<str>, Rejection> {
        if self.flaw == Flaw::Rejected && !is_mended {
            return Err(Rejection {
                reason: RejectionReason::TopicInvalid,
                text: "flawed".to_owned(),
            });
        }
        Ok(topic(self.partition()).clone())
    }
}

/// The event that a row stands for, by its id.
pub fn id_of(row: &OutboxRow) -> u32 {
    match &row.id {
        Some(crate::outbox::RowId::Text(text)) => text.parse().unwrap_or(0),
        _ => 0,
    }
}
