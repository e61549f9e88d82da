//! What a session is for, why it ended, and how it is left: within the grace period, where we were asked to stop.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use super::Run;
use crate::mark::MarkError;
use crate::source::{self, SourceError};
use crate::state::hold::Copies;

/// How long a session that ends waits for what is being recorded as put aside.
const KEEP_WITHIN: Duration = Duration::from_secs(2);
/// A loop that waits for an answer is left so long after the grace period; any other has left by then.
const OVERDUE_AFTER: Duration = Duration::from_millis(250);

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

impl Run<'_> {
    /// Ends once the grace period is over, too, whatever PostgreSQL does not answer.
    pub(super) async fn until_end_or_overdue(&mut self) -> End {
        let stop = self.session.stop.clone();
        let (grace, stop_by) = (self.relay.config.shutdown.grace, self.relay.stop_by);
        let overdue = async {
            stop.cancelled().await;
            let stop_by = stop_by.unwrap_or_else(|| Instant::now() + grace);
            sleep_until(stop_by + OVERDUE_AFTER).await;
            stop_by
        };
        tokio::select! {
            biased;
            end = self.until_end() => end,
            stop_by = overdue => {
                self.relay.stop_by.get_or_insert(stop_by);
                warn!(
                    rows = self.relay.core.rows(),
                    "`shutdown.grace` is over and PostgreSQL does not answer: rows may be sent again"
                );
                End::Stopped
            }
        }
    }

    /// Leaves the source in order; a mark whose outcome is unknown is written again later.
    pub(super) async fn leave(mut self, end: &End) {
        if let Some(marking) = self.marking.take() {
            marking.task.abort();
            self.relay.core.mark_failed(&marking.rows);
        }
        self.relay.core.mark_failed(self.owing.rows());
        // Were it committed later, a release in between would be undone.
        if !self.hold_writer.is_idle()
            && let Ok((asides, Ok(_))) = timeout(
                self.relay.within_grace(KEEP_WITHIN),
                self.hold_writer.finished(),
            )
            .await
        {
            self.recorded(&asides);
            self.confirm();
        }
        if let Some(maintenance) = self.maintenance.take() {
            maintenance.abort();
        }
        if let Some(judging) = self.sweep.judging.take() {
            judging.abort();
        }
        if let Some(catalog_check) = self.catalog_check.take() {
            catalog_check.abort();
        }
        self.relay.saw_flushed(self.session.source.server_lsn());
        let within = self.relay.within_grace(source::ENDS_WITHIN);
        self.session.source.leave(within).await;
        match end {
            End::Deposed => self.relay.depose().await,
            _ => self.relay.core.source_ended(),
        }
    }
}
