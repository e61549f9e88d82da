//!
//! Rows come in batches over a bounded channel, in the order in which they are to be published;
//! positions go back.

pub mod holes;
pub mod polling;
pub mod replication;
mod slot_advancer;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::ReplicationConfig;
use crate::postgres::ConnectOptions;
use crate::postgres::slot::{SlotError, SlotPosition};
use crate::row::ranges::RangeSet;
use crate::row::{Lsn, OutboxRow, RowId};
use crate::state::Skipped;
use polling::{InVain, Known, Ordering, Polling, Unsent, UnsentMark};
use replication::Subscription;
use replication::pgoutput::Described;
pub use slot_advancer::{LAG_BYTES_MAX, SlotAdvancer};

/// How long a server may take for the final acknowledgement of a stream.
const LEAVE_WITHIN: Duration = Duration::from_secs(3);
/// How long a source may take to end in order.
pub const ENDS_WITHIN: Duration = Duration::from_secs(4);
/// Batches that wait for the relay, besides the one that the source fills; four are no faster and take 3 to 5 MB more.
const BATCHES_WAITING: usize = 1;

/// Rows in publishing order.
#[derive(Debug, Default)]
pub struct Batch {
    pub rows: Vec<OutboxRow>,
    /// Where the stream stood after some of these rows, or how far in the log polling has left nothing; `None` in a
    /// transaction that is still being received, or where polling does not tell.
    pub boundary: Option<Boundary>,
    /// Numbers that no row will ever carry.
    pub rolled_back: RangeSet,
    /// The table held no more visible rows when the last of these was read; polling only.
    pub caught_up: bool,
}

impl Batch {
    /// Removes rows; the boundary stays behind those of its rows that are left.
    ///
    /// Returns how many were removed.
    pub(crate) fn remove(&mut self, repeated: &[bool]) -> usize {
        let count = |repeated: &[bool]| repeated.iter().filter(|repeated| **repeated).count();
        let removed = count(repeated);
        if removed == 0 {
            return 0;
        }
        if let Some(boundary) = &mut self.boundary {
            boundary.rows -= count(&repeated[..boundary.rows]);
        }
        let mut repeated = repeated.iter();
        self.rows.retain(|_| !repeated.next().unwrap_or(&false));
        removed
    }
}

/// A place in the log: every transaction before it is among the rows up to here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// How many rows of the batch stand before it.
    pub rows: usize,
    /// The commit's `end_lsn`, or a keepalive's position read in order with the data; polled, a position before which no
    /// commit was invisible when the rows were read.
    pub lsn: Lsn,
}

/// Why a source ended.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Replication(#[from] replication::ReplicationError),
    #[error(transparent)]
    Polling(#[from] polling::PollError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("the source ended without a reason")]
    Ended,
}

/// A running source: its task, the rows that come from it and the positions that go back.
///
/// Dropping it ends the task without the final acknowledgement.
#[derive(Debug)]
pub struct Source {
    kind: SourceKind,
    batches: mpsc::Receiver<Batch>,
    confirm: watch::Sender<Lsn>,
    server: watch::Receiver<Lsn>,
    /// Where the slot stands that is moved behind the rows; `None` where none is.
    moved: Option<watch::Receiver<Option<SlotPosition>>>,
    in_vain: watch::Sender<InVain>,
    /// Batches with rows that were read, and how many of them are marked or held.
    taken: u64,
    resolved: watch::Sender<u64>,
    asked: Arc<Notify>,
    stop: CancellationToken,
    /// `None` once its end was told.
    task: Option<Task>,
}

/// What hands out the rows; ends where it is dropped.
type Task = AbortOnDropHandle<Result<(), SourceError>>;

fn spawn(task: impl Future<Output = Result<(), SourceError>> + Send + 'static) -> Task {
    AbortOnDropHandle::new(tokio::spawn(task))
}

/// Why a task ended that nobody asked to.
async fn failure(task: &mut Task) -> SourceError {
    match task.await {
        Ok(Err(failure)) => failure,
        Ok(Ok(())) | Err(_) => SourceError::Ended,
    }
}

/// Where the rows of a source come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// The slot.
    Stream,
    /// The table, by number; or what was read before.
    Numbers,
    /// The table, by the mark that is missing.
    Unsent,
}

impl SourceKind {
    /// Whether the rows may be repetitions of what was marked.
    pub fn is_stream(self) -> bool {
        self == Self::Stream
    }

    /// Whether held rows are handed out again with each turn.
    pub fn repeats_held_rows(self) -> bool {
        self == Self::Unsent
    }
}

impl Source {
    /// Starts to stream from the slot; values above `value_bytes_max` may be left out of their rows.
    pub async fn stream(
        options: &ConnectOptions,
        replication: &ReplicationConfig,
        outbox: Described,
        value_bytes_max: usize,
    ) -> Result<Self, SourceError> {
        let (source, batches, stop) = Self::polled();
        let confirmed = source.confirm.subscribe();
        let (told, server) = watch::channel(Lsn(0));
        let ends = replication::Ends {
            batches,
            confirm: confirmed,
            server: told,
            asked: Arc::clone(&source.asked),
            stop,
        };
        let subscription = Subscription {
            options: options.clone(),
            slot: replication.slot.clone(),
            publication: replication.publication.clone(),
            outbox,
            value_bytes_max,
        };
        Ok(Self {
            kind: SourceKind::Stream,
            server,
            task: Some(subscription.start(ends).await?),
            ..source
        })
    }

    /// Starts to read the table by `seq`: new rows and the holes between them.
    pub fn by_seq(polling: Polling, known: Known) -> Self {
        let (ends, batches, stop) = Self::polled();
        let task = polling::poll_by_seq(polling, known, batches, stop);
        Self {
            kind: SourceKind::Numbers,
            task: Some(spawn(async move { Ok(task.await?) })),
            ..ends
        }
    }

    /// Starts to read the table by `seq` in the place of the slot, which follows what is confirmed.
    pub fn ahead_of_slot(polling: Polling, known: Known, advancer: SlotAdvancer) -> Self {
        let (ends, batches, stop) = Self::polled();
        let (told, moved) = watch::channel(None);
        let moving = advancer.run(ends.confirm.subscribe(), told);
        let polling = polling::poll_by_seq(polling, known, batches, stop);
        let task = async move {
            tokio::select! {
                polled = polling => Ok(polled?),
                moved = moving => match moved? {},
            }
        };
        Self {
            moved: Some(moved),
            task: Some(spawn(task)),
            ..ends
        }
    }

    /// Hands out rows that were read before, and has then caught up.
    pub fn given(rows: Vec<OutboxRow>) -> Self {
        let (ends, batches, stop) = Self::polled();
        let task = async move {
            let batch = Batch {
                rows,
                caught_up: true,
                ..Batch::default()
            };
            // A relay that no longer reads has no use for it.
            let _ = batches.send(batch).await;
            stop.cancelled().await;
            Ok(())
        };
        Self {
            task: Some(spawn(task)),
            ..ends
        }
    }

    /// Starts to read the rows of a table that are not marked, turn by turn.
    ///
    /// `skipped` ones stay unsent for good and are never handed out.
    pub fn unsent(
        polling: Polling,
        mark: UnsentMark,
        order: Ordering,
        skipped: Option<Skipped>,
    ) -> Self {
        let (ends, batches, stop) = Self::polled();
        let (in_vain, resolved) = (ends.in_vain.subscribe(), ends.resolved.subscribe());
        let task = polling::poll_unsent(
            polling,
            Unsent {
                mark,
                order,
                skipped,
                in_vain,
                resolved,
            },
            batches,
            stop,
        );
        Self {
            kind: SourceKind::Unsent,
            task: Some(spawn(async move { Ok(task.await?) })),
            ..ends
        }
    }

    /// The relay's ends of a source without a stream.
    fn polled() -> (Self, mpsc::Sender<Batch>, CancellationToken) {
        let (batches, receiver) = mpsc::channel(BATCHES_WAITING);
        let stop = CancellationToken::new();
        let ends = Self {
            kind: SourceKind::Numbers,
            batches: receiver,
            confirm: watch::Sender::new(Lsn(0)),
            server: watch::Sender::new(Lsn(0)).subscribe(),
            moved: None,
            in_vain: watch::Sender::default(),
            taken: 0,
            resolved: watch::Sender::new(0),
            asked: Arc::new(Notify::new()),
            stop: stop.clone(),
            task: None,
        };
        (ends, batches, stop)
    }

    pub fn kind(&self) -> SourceKind {
        self.kind
    }

    /// Whether the rows come from the slot and may be repetitions of what was marked.
    pub fn is_stream(&self) -> bool {
        self.kind.is_stream()
    }

    /// Waits for the next batch.
    ///
    /// Errors: why the task ended, once all its batches were read.
    /// Cancel-safe: yes.
    pub async fn read(&mut self) -> Result<Batch, SourceError> {
        if let Some(batch) = self.batches.recv().await {
            self.taken += u64::from(!batch.rows.is_empty());
            return Ok(batch);
        }
        let Some(task) = &mut self.task else {
            return Err(SourceError::Ended);
        };
        let failure = failure(task).await;
        self.task = None;
        Err(failure)
    }

    /// Confirms a position to the server; it never goes back.
    pub fn confirm(&self, lsn: Lsn) {
        self.confirm.send_if_modified(|confirmed| {
            let is_newer = lsn > *confirmed;
            if is_newer {
                *confirmed = lsn;
            }
            is_newer
        });
    }

    /// Asks the server how far the stream has come: an idle one says nothing by itself.
    pub fn ask_position(&self) {
        self.asked.notify_one();
    }

    /// Tells a source that waits for it that everything it handed over is marked or held.
    pub fn resolved(&self) {
        self.resolved.send_if_modified(|resolved| {
            let is_news = *resolved != self.taken;
            *resolved = self.taken;
            is_news
        });
    }

    /// Tells a source of unsent rows that this one is held.
    pub fn hold(&self, id: RowId) {
        self.in_vain.send_modify(|rows| {
            rows.held.insert(id);
        });
    }

    /// Whether a source of unsent rows was told that this one is held.
    pub fn holds(&self, row: &OutboxRow) -> bool {
        self.in_vain.borrow().holds(row)
    }

    /// Tells a source of unsent rows how many wait for nothing but their mark.
    pub fn owe(&self, rows: usize) {
        self.in_vain.send_modify(|in_vain| in_vain.owed = rows);
    }

    /// The position of the server's write-ahead log, as far as it has told.
    pub fn server_lsn(&self) -> Lsn {
        let moved = self.moved.as_ref().and_then(|moved| *moved.borrow());
        moved.map_or(*self.server.borrow(), |position| position.server)
    }

    /// How far the slot lags in whose place the table is read, in bytes of WAL, once it was looked at.
    pub fn slot_lag_bytes(&self) -> Option<u64> {
        let position = *self.moved.as_ref()?.borrow();
        position.map(SlotPosition::lag_bytes)
    }

    /// Whether a stream may take over: no slot has to be moved first.
    pub fn has_moved_slot(&self) -> bool {
        let is_near = |lag_bytes| lag_bytes <= LAG_BYTES_MAX;
        self.moved.is_none() || self.slot_lag_bytes().is_some_and(is_near)
    }

    /// Ends the source in order, where PostgreSQL answers in time: the server has read the last confirmation, and the slot
    /// is free.
    pub async fn leave(mut self, within: Duration) {
        self.stop.cancel();
        // What the task still hands over is read again by the next session.
        self.batches.close();
        let Some(mut task) = self.task.take() else {
            return;
        };
        if tokio::time::timeout(within, &mut task).await.is_err() {
            task.abort();
        }
    }
}
