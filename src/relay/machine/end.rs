//! What a session is for, and why it ended.

use crate::mark::MarkError;
use crate::source::SourceError;
use crate::state::hold::Copies;

/// What the source of a session is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The rows that stood before the slot; the stream takes over afterwards.
    CatchUp,
    /// Rows that were kept whole; table and stream follow.
    Replay(Copies),
    Steady,
}

/// Why a session ended.
#[derive(Debug)]
pub enum End {
    /// We were asked to stop, and everything in flight was settled or the grace period passed.
    Stopped,
    /// The source or the marking connection was lost; the producer and what is in flight stay.
    Source(SourceError),
    /// A mark could not be written.
    Mark(MarkError),
    /// The producer ended; what it did not deliver is read again.
    Producer(String),
    /// PostgreSQL said on the lease's connection that it is stopping: it waits for the stream to end.
    PostgresStops,
    /// The lease is somebody else's.
    Deposed,
    /// A person must act.
    Halt(String),
    /// Rows stand in the table that the source will not bring: read it again.
    Reread(String),
    /// What was held goes out again, from where it is kept whole.
    Released(String),
    /// The table is not the one that the session was opened on.
    Moved(String),
    /// A sent number came again with a new row: a new generation of numbers begins.
    Renumbered(String),
    /// The rows that stood before the slot are delivered and marked; the stream takes over.
    CaughtUp,
    /// The rows that were kept whole are delivered or put aside again.
    Replayed(Vec<i64>),
}
