//! What happens to a session, as its machine hears of it.

use std::sync::Arc;
use std::time::Duration;

use super::maintenance::Finding;
use super::removal::Removal;
use super::sweep::Look;
use crate::core::{SessionEnd, TopicState};
use crate::encode::{Record, Rejection};
use crate::mark::{MarkError, MarkOutcome};
use crate::observe::status::Timestamp;
use crate::publish::Deliveries;
use crate::row::OutboxRow;
use crate::source::{Batch, SourceError};

/// One thing that happened.
pub(crate) enum Input {
    /// Nothing but time has passed, or the lease has another state: `Moment` says which.
    TimePassed,
    /// We were asked to stop: what is in flight is settled until then.
    StopAsked {
        until: Duration,
    },
    /// Nobody keeps the lease any more.
    LeaseGone,
    /// The source has handed rows out.
    Arrived(Arrival),
    /// What was handed out could not be compared with what is recorded.
    LookUpFailed(MarkError),
    SourceEnded(SourceError),
    Delivered(Deliveries),
    TopicsAnswered(Vec<(Arc<str>, TopicState)>),
    /// Nothing more comes from the producer; without a word where its thread is gone.
    ProducerEnded(Option<SessionEnd>),
    /// The producer goes on with what is not right any more, for this reason.
    ProducerOutdated(&'static str),
    SuccessorStarted,
    /// The old producer goes on.
    SuccessorFailed,
    /// What `Effect::GiveUpProducer` asked for is done.
    ProducerGivenUp {
        delivered: Vec<Deliveries>,
        end: Option<SessionEnd>,
    },
    /// The statement of `Effect::Mark` has ended.
    Marked(Result<MarkOutcome, MarkError>, Connection),
    /// The statement of `Effect::Record` has ended, with the bytes that it added.
    Recorded(Result<u64, MarkError>, Connection),
    Maintained(Result<Vec<Finding>, MarkError>, Connection),
    /// The step of `Effect::Remove` has ended.
    Removed(Removal),
    /// The look of `Effect::LookForMissed` has ended.
    Looked(Look),
    /// The answer to `Effect::AskForRequests`: whether somebody asked for a release or a replay.
    Requested {
        is_asked_for: bool,
    },
    /// The table is not the one that the session was opened on.
    TableMoved(String),
    /// The topics are to be asked for.
    TopicsDue,
    /// What the stream left out is to be looked for.
    LookDue,
    MaintenanceDue,
    /// A second has passed, by the clock on the wall.
    SecondPassed(Timestamp),
}

/// Rows that the source handed out.
pub(crate) struct Arrival {
    pub(crate) batch: Batch,
    /// For each row whether it is known from elsewhere: marked or skipped as is recorded, or held as the source knows.
    pub(crate) known: Vec<bool>,
}

/// How the connection stands over which a statement went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    Open,
    Closed,
}

/// What is so while one input is handled.
pub(crate) struct Moment<'a> {
    /// By a clock that never goes back, and is the same for all sessions of a process.
    pub(crate) now: Duration,
    pub(crate) lease: LeaseInSight,
    /// A stream may take over from the table: no slot has to be moved first.
    pub(crate) has_moved_slot: bool,
    /// No broker answers the producer.
    pub(crate) is_unanswered: bool,
    pub(crate) encode: &'a dyn Fn(&OutboxRow) -> Result<Record, Rejection>,
}

/// What matters of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseInSight {
    /// The epoch that is ours, if any is.
    pub(crate) epoch: Option<i64>,
    /// It was renewed in time.
    pub(crate) may_publish: bool,
    /// How often PostgreSQL has said that it stops.
    pub(crate) shutdown_notices: u64,
}
