//! Turns a row into the record that Kafka stores, or says why it can't: pure.
//!
//! Owns the wire form: topic, key, value and headers are a function of the row and the
//! configuration alone. Never does I/O, never prints row data.

mod headers;
pub(crate) mod route;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::config::{NullKey, RouteConfig};
use crate::row::{Layout, LeftOut, OutboxRow, sqlstate};
use headers::HeaderColumns;
use route::Route;

/// How many topic and header names are kept; beyond that the cache starts anew.
const NAMES_MAX: usize = 10_000;

/// What Kafka stores for one row.
#[derive(Clone, Debug)]
pub struct Record {
    pub topic: Arc<str>,
    /// `None` is a record without a key; an empty key is a key.
    pub key: Option<Bytes>,
    /// `None` is a tombstone.
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
}

impl Record {
    /// Bytes of key, value and headers, without what Kafka's format adds.
    pub(crate) fn size(&self) -> usize {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let header = |header: &Header| header.name.len() + length(&header.value);
        length(&self.key) + length(&self.value) + self.headers.iter().map(header).sum::<usize>()
    }
}

/// One header of a record.
#[derive(Clone, Debug)]
pub struct Header {
    pub name: Arc<str>,
    pub value: Option<Bytes>,
}

/// The route can't be used with this table.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("cannot use `{place}`: the table has no column `{column}`, it has {columns}")]
    UnknownColumn {
        place: &'static str,
        column: String,
        columns: String,
    },
    #[error("cannot use the topic template `{template}`: {rule}")]
    Template {
        template: String,
        rule: &'static str,
    },
    #[error("cannot send column `{column}` as header `{header}`: {rule}")]
    Header {
        column: String,
        header: String,
        rule: &'static str,
    },
}

/// Why a row can't become a record; the row is at fault. Without row content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Rejection {
    pub reason: RejectionReason,
    pub text: String,
}

/// The kinds of rejection, few enough for a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectionReason {
    NullId,
    NullKey,
    TopicInvalid,
    TopicNotAllowed,
    HeadersInvalid,
    HeaderReserved,
    TooLarge,
    NoColumn,
    Unreadable,
}

impl RejectionReason {
    /// The label's value.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NullId => "null_id",
            Self::NullKey => "null_key",
            Self::TopicInvalid => "topic_invalid",
            Self::TopicNotAllowed => "topic_not_allowed",
            Self::HeadersInvalid => "headers_invalid",
            Self::HeaderReserved => "header_reserved",
            Self::TooLarge => "too_large",
            Self::NoColumn => "no_column",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Encodes the rows of one table.
#[derive(Debug)]
pub struct Encoder {
    route: Route,
    headers: HeaderColumns,
    id: usize,
    aggregate_id: usize,
    partition_key: Option<usize>,
    payload: usize,
    /// Every column that a record is made from, with its name.
    used: Vec<(usize, Box<str>)>,
    null_key: NullKey,
    record_bytes_max: usize,
    names: Mutex<Names>,
}

impl Encoder {
    /// Prepares the route for a table.
    ///
    /// `record_bytes_max` is the producer's `message.max.bytes`.
    /// Errors: a column of the route that the table lacks, a template that makes no topic, a
    /// reserved header name.
    pub fn new(
        route: &RouteConfig,
        layout: &Layout,
        record_bytes_max: usize,
    ) -> Result<Self, EncodeError> {
        let headers = HeaderColumns::new(route, layout)?;
        let route_columns = Route::new(route, layout)?;
        let mut used = vec![
            layout.id,
            layout.aggregate_type,
            layout.aggregate_id,
            layout.payload,
        ];
        used.extend(layout.partition_key);
        used.extend(headers.columns());
        used.extend(route_columns.columns());
        used.sort_unstable();
        used.dedup();
        let named = |column: usize| (column, layout.columns[column].name.as_str().into());
        Ok(Self {
            used: used.into_iter().map(named).collect(),
            route: route_columns,
            headers,
            id: layout.id,
            aggregate_id: layout.aggregate_id,
            partition_key: layout.partition_key,
            payload: layout.payload,
            null_key: route.null_key,
            record_bytes_max,
            names: Mutex::default(),
        })
    }

    /// The columns that records are made from.
    pub(crate) fn columns(&self) -> impl Iterator<Item = usize> {
        self.used.iter().map(|(column, _)| *column)
    }

    /// The record of a row, sharing the row's bytes.
    pub fn encode(&self, row: &OutboxRow) -> Result<Record, Rejection> {
        self.check_read(row)?;
        let id = row.slice(self.id).ok_or_else(|| Rejection {
            reason: RejectionReason::NullId,
            text: "the column `id` is NULL".into(),
        })?;
        // A panic while it was held leaves at worst a half-written buffer, which is cleared first.
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let record = Record {
            topic: self.topic(row, &mut names)?,
            key: self.key(row)?,
            value: row.slice(self.payload),
            headers: self.headers.read(row, id, &mut names)?,
        };
        let size = record.size();
        if size > self.record_bytes_max {
            return Err(self.too_large(row, size));
        }
        Ok(record)
    }

    /// Refuses a row that came without a value which its record needs.
    fn check_read(&self, row: &OutboxRow) -> Result<(), Rejection> {
        for (column, name) in &self.used {
            let max = self.record_bytes_max;
            let (reason, text) = match row.left_out(*column) {
                None => continue,
                Some(LeftOut::TooLarge { bytes }) => (
                    RejectionReason::TooLarge,
                    format!("the column `{name}` has {bytes} bytes, `message.max.bytes` is {max}"),
                ),
                Some(LeftOut::NoColumn) => (
                    RejectionReason::NoColumn,
                    format!(
                        "the table had no column `{name}` when the row was inserted, or its publication left it out"
                    ),
                ),
                Some(LeftOut::Unreadable { code }) => (
                    RejectionReason::Unreadable,
                    format!(
                        "PostgreSQL cannot send the value of the column `{name}` (SQLSTATE {})",
                        sqlstate(code)
                    ),
                ),
            };
            return Err(Rejection { reason, text });
        }
        Ok(())
    }

    fn too_large(&self, row: &OutboxRow, size: usize) -> Rejection {
        let bytes = |column: usize| row.field(column).map_or(0, <[u8]>::len);
        let largest = self.used.iter().max_by_key(|(column, _)| bytes(*column));
        let (name, bytes) = largest.map_or(("", 0), |(column, name)| (name, bytes(*column)));
        let max = self.record_bytes_max;
        Rejection {
            reason: RejectionReason::TooLarge,
            text: format!(
                "the record has {size} bytes, {bytes} of them in the column `{name}`; \
                 `message.max.bytes` is {max}"
            ),
        }
    }

    /// Tells whether a row may reach a topic of this name; for `check`, which has no row.
    pub(crate) fn check_topic(&self, topic: &str) -> Result<(), Rejection> {
        self.route.check(topic)
    }

    fn topic(&self, row: &OutboxRow, names: &mut Names) -> Result<Arc<str>, Rejection> {
        let mut buffer = std::mem::take(&mut names.buffer);
        let topic = self.route.render(row, &mut buffer).and_then(|()| {
            if let Some(known) = names.topics.get(buffer.as_str()) {
                return Ok(Arc::clone(known));
            }
            self.route.check(&buffer)?;
            Ok(remember(&mut names.topics, &buffer))
        });
        names.buffer = buffer;
        topic.map_err(|rejection| Rejection {
            text: format!(
                "{}; it comes from {}",
                rejection.text,
                self.route.origin(row)
            ),
            ..rejection
        })
    }

    fn key(&self, row: &OutboxRow) -> Result<Option<Bytes>, Rejection> {
        let own = self.partition_key.and_then(|column| row.slice(column));
        match (own.or_else(|| row.slice(self.aggregate_id)), self.null_key) {
            (None, NullKey::Block) => Err(Rejection {
                reason: RejectionReason::NullKey,
                text: "the column `aggregateid` is NULL and `route.null_key` is `block`".into(),
            }),
            (key, _) => Ok(key),
        }
    }
}

/// Names that were seen before; topics among them are checked ones.
#[derive(Debug, Default)]
struct Names {
    buffer: String,
    topics: HashSet<Arc<str>>,
    headers: HashSet<Arc<str>>,
}

fn remember(names: &mut HashSet<Arc<str>>, name: &str) -> Arc<str> {
    if let Some(known) = names.get(name) {
        return Arc::clone(known);
    }
    if names.len() >= NAMES_MAX {
        names.clear();
    }
    let name: Arc<str> = name.into();
    names.insert(Arc::clone(&name));
    name
}

fn find_column(layout: &Layout, name: &str, place: &'static str) -> Result<usize, EncodeError> {
    layout.named(name).ok_or_else(|| {
        let names = layout
            .columns
            .iter()
            .map(|column| format!("`{}`", column.name));
        EncodeError::UnknownColumn {
            place,
            column: name.to_owned(),
            columns: names.collect::<Vec<_>>().join(", "),
        }
    })
}
