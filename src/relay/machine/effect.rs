//! What a session's machine wants to be done, in this order.

use std::sync::Arc;
use std::time::Duration;

use super::End;
use super::removal::Step;
use crate::core::{Questions, TopicHold};
use crate::mark::Statement;
use crate::mark::ledger::Audit;
use crate::publish::Outgoing;
use crate::row::{Lsn, RowId};
use crate::source::replication::sweep::Progress;
use crate::state::hold::HoldCheckpoint;

/// One thing to do. What ends later is heard of by an `Input`.
pub(crate) enum Effect {
    /// Hand these over to the producer, in order.
    Publish(Vec<Outgoing>),
    /// Ask for these topics.
    Ask(Questions),
    /// Let the producer look for the topic's leaders again.
    Refresh(Arc<str>),
    /// Mark rows; one at a time.
    Mark(Arc<Statement>),
    /// Record what was put aside; one at a time.
    Record(HoldCheckpoint),
    /// Everything before this position is settled; the server may forget it.
    Confirm(Lsn),
    /// Everything that the source handed out is marked or held.
    Resolved,
    /// The source is to leave this row out.
    Hold(RowId),
    /// So many rows wait for nothing but their mark.
    Owe(usize),
    /// Compare what is recorded with the table; one at a time.
    LookForMissed(Progress),
    /// An idle server says nothing of its position.
    AskPosition,
    /// Keep the state tables short, and audit these segments; one at a time.
    Maintain(Vec<Audit>),
    /// Remove old rows; one at a time.
    Remove(Step),
    AskForRequests,
    /// Start a producer beside the one that works.
    StartSuccessor(&'static str),
    /// The producer that was started is the one from now on.
    TakeOver,
    /// End the producer; what it delivers within this time counts.
    GiveUpProducer {
        within: Duration,
    },
    /// Say that the rows of this topic are held, and what helps.
    TellHold(Arc<str>, TopicHold),
    /// Show what failed.
    ShowFailure(String),
    /// The session is over.
    End(End),
}
