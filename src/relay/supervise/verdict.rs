//! What follows after an attempt at a session: every such decision, and what is told of it. Pure.

use super::Attempt;
use crate::config::Mark;
use crate::postgres::slot::SlotError;
use crate::postgres::{Class, PostgresError};
use crate::relay::End;
use crate::relay::session::OpenError;
use crate::source::SourceError;
use crate::source::polling::PollError;
use crate::source::replication::ReplicationError;
use crate::source::replication::pgoutput::DecodeError;
use crate::text::chain;

/// What the supervisor does after a session ended or could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextStep {
    Stop,
    /// Open the next session at once.
    Again,
    /// Try again after a pause.
    Retry,
    /// Somebody else reads the slot: wait for it.
    AwaitSlot,
    /// Wait until there is room in the window.
    AwaitRoom,
    /// A person must act; look again now and then.
    Halt,
}

pub(crate) fn verdict(attempt: &Attempt, mark: Mark) -> NextStep {
    match attempt {
        Attempt::NoProducer(_) => NextStep::Retry,
        Attempt::Ended(end) => match end {
            End::Stopped => NextStep::Stop,
            End::Source(failure) => of_source(failure, mark),
            // The keeper may not have noticed yet: a pause keeps us from asking it in a circle.
            End::Deposed | End::PostgresStops | End::Mark(_) | End::Producer(_) => NextStep::Retry,
            End::Halt(_) => NextStep::Halt,
            End::Reread(_)
            | End::Released(_)
            | End::Moved(_)
            | End::Renumbered(_)
            | End::CaughtUp
            | End::Replayed(_) => NextStep::Again,
        },
        Attempt::NotOpened(failure) => match failure {
            OpenError::Source(failure) => of_source(failure, mark),
            OpenError::Postgres { source, .. } => of_class(source.class()),
            OpenError::SlotLost { .. } => NextStep::Again,
            OpenError::Slot(SlotError::Active { .. }) => NextStep::AwaitSlot,
            OpenError::Slot(_) => Class::behind(failure).map_or(NextStep::Retry, of_class),
            OpenError::Halt { .. }
            | OpenError::Rewound { .. }
            | OpenError::Encode(_)
            | OpenError::Missing(_) => NextStep::Halt,
            OpenError::Migrate(_) | OpenError::Names(_) | OpenError::Inspect { .. } => {
                Class::behind(failure).map_or(NextStep::Halt, of_class)
            }
            OpenError::Url(_)
            | OpenError::NoSender { .. }
            | OpenError::Identity(_)
            | OpenError::Moved { .. }
            | OpenError::State(_)
            | OpenError::Rename(_)
            | OpenError::Carry(_)
            | OpenError::Mark(_) => NextStep::Retry,
        },
    }
}

fn of_source(failure: &SourceError, mark: Mark) -> NextStep {
    match failure {
        SourceError::Replication(ReplicationError::Parked) => NextStep::AwaitRoom,
        SourceError::Replication(
            ReplicationError::Start { source, .. } | ReplicationError::Stream(source),
        ) => match source.class() {
            // The next opening looks at slot and publication itself, and knows what they are good for.
            Class::Missing => NextStep::Retry,
            class => of_class(class),
        },
        SourceError::Replication(ReplicationError::Decode(DecodeError::OtherColumns)) => {
            NextStep::Again
        }
        // Without a mark nobody knows which rows of the table were sent.
        SourceError::Replication(ReplicationError::CannotSend { .. }) if mark == Mark::None => {
            NextStep::Halt
        }
        SourceError::Replication(ReplicationError::CannotSend { .. }) => NextStep::Again,
        SourceError::Replication(ReplicationError::Decode(_)) => NextStep::Halt,
        SourceError::Replication(
            ReplicationError::Silent | ReplicationError::Ended | ReplicationError::Thread(_),
        ) => NextStep::Retry,
        // The next opening looks at the slot itself.
        SourceError::Slot(_) => NextStep::Retry,
        SourceError::Polling(PollError::NoOrder | PollError::Untold(_)) => NextStep::Halt,
        SourceError::Polling(PollError::TableChanged) => NextStep::Again,
        SourceError::Polling(_) | SourceError::Ended => NextStep::Retry,
    }
}

/// Whether the stream came to rows whose publication did not exist when they were committed (PostgreSQL 14 to 17).
///
/// By the routine, which is in no language; other objects may be undefined, too.
pub(super) fn lacks_publication(failure: &SourceError) -> bool {
    let SourceError::Replication(ReplicationError::Stream(PostgresError::Server(failure))) =
        failure
    else {
        return false;
    };
    failure.sqlstate == "42704" && failure.routine == "get_publication_oid"
}

fn of_class(class: Class) -> NextStep {
    match class {
        Class::SlotInUse => NextStep::AwaitSlot,
        Class::Configuration | Class::Missing => NextStep::Halt,
        Class::Authentication
        | Class::Permission
        | Class::Lost
        | Class::Shutdown
        | Class::TooManyConnections
        | Class::Unsendable
        | Class::Other => NextStep::Retry,
    }
}

pub(crate) fn reason(attempt: &Attempt) -> String {
    match attempt {
        Attempt::NoProducer(failure) => chain(failure),
        Attempt::NotOpened(failure) => chain(failure),
        Attempt::Ended(end) => match end {
            End::Stopped => "asked to stop".to_owned(),
            End::Source(failure) => chain(failure),
            End::Mark(failure) => chain(failure),
            End::PostgresStops => {
                "PostgreSQL is stopping, or somebody ended the relay's connections".to_owned()
            }
            End::Deposed => "another relay holds the lease".to_owned(),
            End::Producer(reason)
            | End::Halt(reason)
            | End::Reread(reason)
            | End::Released(reason)
            | End::Moved(reason)
            | End::Renumbered(reason) => reason.clone(),
            End::CaughtUp => "the rows that stood in the table are published".to_owned(),
            End::Replayed(_) => "the rows that were kept are replayed".to_owned(),
        },
    }
}

/// The low-cardinality name of what happened.
pub(super) fn label(attempt: &Attempt) -> &'static str {
    match attempt {
        Attempt::NoProducer(_) => "no_producer",
        Attempt::NotOpened(_) => "not_opened",
        Attempt::Ended(end) => match end {
            End::Stopped => "stopped",
            End::Source(_) => "source",
            End::Mark(_) => "mark",
            End::Producer(_) => "producer",
            End::PostgresStops => "postgres_stops",
            End::Deposed => "deposed",
            End::Halt(_) => "halt",
            End::Reread(_) => "reread",
            End::Released(_) => "released",
            End::Moved(_) => "moved",
            End::Renumbered(_) => "renumbered",
            End::CaughtUp => "caught_up",
            End::Replayed(_) => "replayed",
        },
    }
}
