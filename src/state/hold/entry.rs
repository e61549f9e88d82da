//! What is recorded of rows that were put aside: the entry that they wait behind, and rows that are kept whole.

use std::sync::Arc;

use crate::core::{Followers, Held, HeldRow, HoldReason};
use crate::row::ranges::RangeSet;
use crate::row::{Layout, LeftOut, OutboxRow};

/// What is blocked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum What {
    Aggregate {
        kind: Option<String>,
        id: Option<String>,
    },
    Topic(Arc<str>),
}

impl What {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Aggregate { .. } => "aggregate",
            Self::Topic(_) => "topic",
        }
    }

    pub(super) fn aggregate_type(&self) -> Option<&str> {
        match self {
            Self::Aggregate { kind, .. } => kind.as_deref(),
            Self::Topic(_) => None,
        }
    }

    pub(super) fn aggregate_id(&self) -> Option<&str> {
        match self {
            Self::Aggregate { id, .. } => id.as_deref(),
            Self::Topic(_) => None,
        }
    }

    pub(super) fn topic(&self) -> Option<&str> {
        match self {
            Self::Aggregate { .. } => None,
            Self::Topic(topic) => Some(topic),
        }
    }
}

/// What one checkpoint adds to one entry of `outboxd.blocked`.
#[derive(Clone, Debug)]
pub(crate) struct HoldEntry {
    pub what: What,
    pub held: RangeSet,
    pub row_seq: Option<i64>,
    pub row_id: String,
    pub reason: String,
    pub error: String,
    pub followers: Followers,
}

/// One row to be kept whole.
#[derive(Clone, Debug)]
pub(crate) struct KeptRow {
    pub(crate) row: OutboxRow,
    /// A dead letter; else a held row.
    pub(crate) is_dead: bool,
    pub(crate) behind: Option<What>,
    pub(super) reason: String,
    pub(super) error: String,
}

impl KeptRow {
    /// A row that was put aside, with what is known of its hold.
    pub(crate) fn new(aside: &HeldRow, row: OutboxRow, behind: Option<What>, held: &Held) -> Self {
        let (is_dead, reason, error) = match &aside.why {
            HoldReason::Dead { reason, error, .. } => (true, (*reason).to_owned(), error.clone()),
            HoldReason::Blocked(aggregate) | HoldReason::Published(aggregate) => {
                let held = held.aggregate(*aggregate);
                let words = held.map(|held| (held.reason.clone(), held.error.clone()));
                let (reason, error) = words.unwrap_or_default();
                (false, reason, error)
            }
            HoldReason::Topic(topic) => {
                let hold = held.topic_hold(topic);
                let error = hold.map(|hold| hold.reason.clone()).unwrap_or_default();
                (false, "topic".to_owned(), error)
            }
        };
        Self {
            row,
            is_dead,
            behind,
            reason,
            error,
        }
    }

    /// The sizes of values that were not read, by column: without them the row would come back with NULL.
    pub(super) fn left_out(&self, layout: &Layout) -> Option<String> {
        let sizes = layout.columns.iter().enumerate();
        let sizes = sizes.filter_map(|(column, known)| match self.row.left_out(column) {
            Some(LeftOut::TooLarge { bytes }) => Some((known.name.clone(), bytes.into())),
            // Larger than any record: it must not come back as NULL.
            Some(LeftOut::Unreadable { .. }) => Some((known.name.clone(), u32::MAX.into())),
            Some(LeftOut::NoColumn) | None => None,
        });
        let sizes: serde_json::Map<String, serde_json::Value> = sizes.collect();
        (!sizes.is_empty()).then(|| serde_json::Value::Object(sizes).to_string())
    }

    pub(super) fn key(&self) -> (Option<i64>, String) {
        let id = self.row.id.as_ref().map(ToString::to_string);
        (self.row.seq, id.unwrap_or_default())
    }
}
