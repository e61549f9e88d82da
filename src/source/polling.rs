//! Polling: rows read from the table itself, for servers without logical replication and for draining backlogs.
//!
//! Owns the turns, what each reads, and their pace. The rule for missing numbers stands in [`holes`](super::holes). Never
//! writes to the database, and never decides what was sent.

mod ahead;
mod apart;
mod gate;
pub(in crate::source) mod locks;
pub(in crate::source) mod look_up;
mod raw_column;
mod rows;
mod shape;
pub(in crate::source) mod statement;
mod turn;
mod unsent;
mod unskipped;
mod writers;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Batch;
use crate::postgres::{PostgresError, SqlConnection};
use crate::row::ranges::RangeSet;
use crate::row::{Layout, RowId};

pub(crate) use ahead::read_ahead;
pub(crate) use locks::Locks;
pub(crate) use unsent::{InVain, Ordering, Unsent, UnsentMark, poll_unsent};

/// What both kinds of polling need.
pub struct Polling {
    /// A connection of its own, with the settings of [`postgres::connect`](crate::postgres::connect).
    pub session: SqlConnection,
    pub layout: Arc<Layout>,
    /// The name that the state tables know the table by.
    pub outbox: String,
    /// The table's name for SQL, qualified and quoted.
    pub table: String,
    pub oid: u32,
    /// Its columns when `layout` was read, as [`SHAPE`](crate::postgres::catalog::SHAPE) gives them.
    pub shape: String,
    /// Rows that one turn reads at most.
    pub batch_rows: usize,
    /// A value of more bytes is not read: no record can carry it.
    pub value_bytes_max: usize,
    /// Time between two turns that did not fill a batch.
    pub interval: Duration,
    pub caught_up: CaughtUp,
}

/// When a turn that found no more rows may say so, and whether it says how far in the log that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaughtUp {
    /// At once.
    WithTheTable,
    /// At once; with every turn that can tell comes a boundary behind the commits of which nothing is left, by `seq` only.
    WithPositions,
    /// The same, when what was being written as polling began has become visible, too: nothing committed before is left.
    WithTheWriters,
}

/// What is known of the numbers when polling begins.
#[derive(Clone, Debug)]
pub struct Known {
    /// The lowest number that the sequence gives, usually 1.
    pub first: i64,
    /// The highest number seen, where there is one.
    pub top: Option<i64>,
    /// The id of the row at `top`; `None` where it is not known yet.
    pub top_id: Option<RowId>,
    /// The numbers up to `top` that need no look-up; the others are holes.
    pub settled: RangeSet,
}

/// Why polling ended.
#[derive(Debug, thiserror::Error)]
pub enum PollError {
    #[error("cannot {what}")]
    Statement {
        what: &'static str,
        #[source]
        source: PostgresError,
    },
    #[error("the row with the highest `seq`, {seq}, {found}")]
    TopRow { seq: i64, found: TopRow },
    #[error("the table's columns have changed")]
    TableChanged,
    #[error("PostgreSQL answered with {0}")]
    Unexpected(&'static str),
    #[error("the table has no column `seq`")]
    NoOrder,
    /// The stream knows the order of what it brings; these may have come before it.
    #[error("{0}")]
    Untold(Box<str>),
}

/// What stands in the place of the highest row: the numbers are not what they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopRow {
    /// No row: it was deleted, or the table truncated.
    Gone,
    /// A row with another id.
    Other,
}

impl std::fmt::Display for TopRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gone => "is gone",
            Self::Other => "has another id",
        })
    }
}

impl PollError {
    /// Explains a statement's failure by the connection's end, where it has ended.
    pub(in crate::source) async fn check<T>(
        session: &SqlConnection,
        what: &'static str,
        result: Result<T, tokio_postgres::Error>,
    ) -> Result<T, Self> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                let source = session.explain(error).await;
                Err(Self::Statement { what, source })
            }
        }
    }
}

/// Why a turn did not end as turns do.
enum Ended {
    /// Nobody takes batches any more.
    ReceiverGone,
    Failed(PollError),
}

impl From<PollError> for Ended {
    fn from(error: PollError) -> Self {
        Self::Failed(error)
    }
}

/// What the next turn waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The batch was full: there is more.
    AtOnce,
    AfterInterval,
}

/// Polls a table whose numbers are trusted, by `seq`: rows above the highest seen, and holes as they fill.
///
/// Batches are in publishing order and carry the numbers found rolled back; a batch with `caught_up` ends a turn that read all there
/// was. The rows' `lsn` is the WAL insert position read after them.
///
/// Errors: the connection's end, or `TopRow` when the numbers are not what they were. Nothing learned outlives an error.
/// Ends without one when `stop` is cancelled or nobody takes batches.
/// Cancel-safe: yes, rows that were read and not handed over are lost with everything else that was learned.
pub(crate) async fn poll_by_seq(
    polling: Polling,
    known: Known,
    batches: mpsc::Sender<Batch>,
    stop: CancellationToken,
) -> Result<(), PollError> {
    let interval = polling.interval;
    let work = async {
        let mut turns = turn::Turns::prepare(polling, known).await?;
        loop {
            match turns.turn(&batches).await? {
                Next::AtOnce => {}
                Next::AfterInterval => tokio::time::sleep(jittered(interval)).await,
            }
        }
    };
    until_stopped(work, stop, &batches).await
}

/// Runs until the work fails, `stop` is cancelled or the receiver is dropped.
async fn until_stopped(
    work: impl Future<Output = Result<std::convert::Infallible, Ended>>,
    stop: CancellationToken,
    batches: &mpsc::Sender<Batch>,
) -> Result<(), PollError> {
    tokio::select! {
        // Being stopped is no error, whatever the work says.
        biased;
        () = stop.cancelled() => Ok(()),
        () = batches.closed() => Ok(()),
        ended = work => match ended {
            Err(Ended::Failed(error)) => Err(error),
            Err(Ended::ReceiverGone) => Ok(()),
        },
    }
}

/// A duration that is up to a tenth shorter, so that relays do not poll in step.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(1.0 - fastrand::f64() / 10.0)
}

/// Hands a batch over.
async fn send(batches: &mpsc::Sender<Batch>, batch: Batch) -> Result<(), Ended> {
    let sent = batches.send(batch).await;
    sent.map_err(|_| Ended::ReceiverGone)
}
