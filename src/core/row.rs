//! The words in which the core speaks: what it is told of a row, and what it answers.

use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::config::FaultPolicy;
use crate::core::Ticket;
use crate::row::{Layout, Lsn, Origin, OutboxRow, RowId};

/// An aggregate, by a hash of its type and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Aggregate(pub u64);

impl Aggregate {
    /// Of the text of its type and id; NULL is a value of its own.
    pub fn of(aggregate_type: Option<&[u8]>, id: Option<&[u8]>) -> Self {
        let mut hasher = DefaultHasher::new();
        (aggregate_type, id).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// For sets of aggregates, which are hashes already: 4 % of the relay's CPU in a drain by polling.
pub(super) type ByAggregate = BuildHasherDefault<Taken>;

/// Takes the number that it is given for its hash.
#[derive(Debug, Default)]
pub(super) struct Taken(u64);

impl Hasher for Taken {
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What the core needs to know of a row.
#[derive(Clone, Debug)]
pub struct RowFacts<'a> {
    pub seq: Option<i64>,
    pub id: RowId,
    pub lsn: Lsn,
    pub origin: Origin,
    pub bytes: usize,
    pub aggregate: Aggregate,
    pub aggregate_type: &'a [u8],
    /// Every value was read, so that it can be kept as a dead letter.
    pub is_whole: bool,
}

impl<'a> RowFacts<'a> {
    /// Reads the facts of a row; a NULL id is the empty text, which `encode` rejects.
    pub fn of(layout: &Layout, row: &'a OutboxRow) -> Self {
        let aggregate_type = row.field(layout.aggregate_type);
        Self {
            seq: row.seq,
            id: row.id.clone().unwrap_or(RowId::Text("".into())),
            lsn: row.lsn,
            origin: row.origin,
            bytes: row.size(),
            aggregate: Aggregate::of(aggregate_type, row.field(layout.aggregate_id)),
            aggregate_type: aggregate_type.unwrap_or_default(),
            is_whole: row.is_whole(),
        }
    }

    /// What becomes of it when it is at fault: what can't be kept whole stays where it is.
    pub(super) fn policy(&self, policy: FaultPolicy) -> FaultPolicy {
        match self.is_whole {
            true => policy,
            false => FaultPolicy::Block,
        }
    }
}

/// When a row stops counting in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseOn {
    /// When it was marked.
    OnMark,
    /// When its transaction may be confirmed; a row of the transaction still being received, when
    /// it was delivered, else a transaction larger than the window could never end (docs/design.md, "Large transactions").
    OnConfirmation,
}

/// How much may be in flight.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub rows_max: usize,
    pub bytes_max: usize,
}

/// How rows at fault are dealt with.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub policy: FaultPolicy,
    /// Halt when this share of the aggregates seen in a minute is at fault.
    pub halt_share: f64,
}

/// The answer to a row that is offered.
#[derive(Debug, PartialEq, Eq)]
pub enum Offer {
    /// Send it under this ticket.
    Publish(Ticket),
    /// It is put aside under this ticket, and settled once that is durable.
    Aside(Ticket),
    /// It is at fault, and put aside under this ticket with these words.
    AtFault {
        ticket: Ticket,
        reason: &'static str,
        error: String,
    },
    /// Nothing may be published until a person acts.
    Halt(String),
    /// It waits under this ticket to hear whether its topic can be written; `take_answered` ends that.
    Ask(Ticket),
    /// Offer it again when something was settled.
    Wait,
}

/// What becomes of a row that has waited to hear of its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    Publish,
    Aside,
}

/// A delivered row that is to be marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub ticket: Ticket,
    pub seq: Option<i64>,
    pub id: RowId,
    pub lsn: Lsn,
    pub origin: Origin,
}

/// Which delivered rows are marked next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkSelection {
    /// Those before the first row that is not acknowledged, unless most stand behind it: partitions answer in turn, and
    /// numbers without gaps make a short ledger.
    InOrder,
    All,
}

/// Why a row is put aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldReason {
    /// It waits behind the blocked aggregate, or is the row that blocks it.
    Blocked(Aggregate),
    /// It was published, and PostgreSQL doesn't let it be marked: it blocks its aggregate.
    Published(Aggregate),
    /// It waits for its topic.
    Topic(Arc<str>),
    /// It becomes a dead letter; `blocks` its aggregate where its followers become dead letters too.
    Dead {
        reason: &'static str,
        error: String,
        blocks: Option<Aggregate>,
    },
}

/// A row that is not published now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRow {
    pub ticket: Ticket,
    pub seq: Option<i64>,
    pub id: RowId,
    pub lsn: Lsn,
    pub origin: Origin,
    pub why: HoldReason,
}
