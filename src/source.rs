//! Where rows come from: one contract for the stream of a slot and for polling.
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
pub(crate) use slot_advancer::{LAG_BYTES_MAX, SlotAdvancer};

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

/// A running source: its task, the rows that come from it, and what goes back to it.
///
/// Dropping it ends the task without the final acknowledgement.
#[derive(Debug)]
pub struct Source {
    ends: Ends,
    batches: mpsc::Receiver<Batch>,
    stop: CancellationToken,
    /// `None` once its end was told.
    task: Option<Task>,
}

/// What the relay and a source of this kind say to each other besides the rows.
#[derive(Debug)]
enum Ends {
    Stream(StreamEnds),
    /// The table by `seq`, in the place of a slot that follows what is confirmed.
    AheadOfSlot(SlotEnds),
    Unsent(UnsentEnds),
    /// The table by `seq`, or rows that were read before: nothing.
    Plain,
}

#[derive(Debug)]
struct StreamEnds {
    confirm: watch::Sender<Lsn>,
    server: watch::Receiver<Lsn>,
    asked: Arc<Notify>,
}

#[derive(Debug)]
struct SlotEnds {
    confirm: watch::Sender<Lsn>,
    /// Where the slot stands, once it was looked at.
    moved: watch::Receiver<Option<SlotPosition>>,
}

#[derive(Debug)]
struct UnsentEnds {
    in_vain: watch::Sender<InVain>,
    /// Batches with rows that were read, and how many of them are marked or held.
    taken: u64,
    resolved: watch::Sender<u64>,
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
pub(crate) enum SourceKind {
    /// The slot.
    Stream,
    /// The table, by number; or what was read before.
    Numbers,
    /// The table, by the mark that is missing.
    Unsent,
}

impl SourceKind {
    /// Whether the rows may be repetitions of what was marked.
    pub(crate) fn is_stream(self) -> bool {
        self == Self::Stream
    }

    /// Whether held rows are handed out again with each turn.
    pub(crate) fn repeats_held_rows(self) -> bool {
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
        let channel = Channel::new();
        let (confirm, confirmed) = watch::channel(Lsn(0));
        let (told, server) = watch::channel(Lsn(0));
        let asked = Arc::new(Notify::new());
        let ends = replication::Ends {
            batches: channel.sender.clone(),
            confirm: confirmed,
            server: told,
            asked: Arc::clone(&asked),
            stop: channel.stop.clone(),
        };
        let subscription = Subscription {
            options: options.clone(),
            slot: replication.slot.clone(),
            publication: replication.publication.clone(),
            outbox,
            value_bytes_max,
        };
        let task = subscription.start(ends).await?;
        let ends = StreamEnds {
            confirm,
            server,
            asked,
        };
        Ok(channel.source(Ends::Stream(ends), task))
    }

    /// Starts to read the table by `seq`: new rows and the holes between them.
    pub fn by_seq(polling: Polling, known: Known) -> Self {
        let channel = Channel::new();
        let (batches, stop) = (channel.sender.clone(), channel.stop.clone());
        let task = polling::poll_by_seq(polling, known, batches, stop);
        channel.source(Ends::Plain, spawn(async move { Ok(task.await?) }))
    }

    /// Starts to read the table by `seq` in the place of the slot, which follows what is confirmed.
    pub fn ahead_of_slot(polling: Polling, known: Known, advancer: SlotAdvancer) -> Self {
        let channel = Channel::new();
        let (batches, stop) = (channel.sender.clone(), channel.stop.clone());
        let (confirm, confirmed) = watch::channel(Lsn(0));
        let (told, moved) = watch::channel(None);
        let moving = advancer.run(confirmed, told);
        let polling = polling::poll_by_seq(polling, known, batches, stop);
        let task = async move {
            tokio::select! {
                polled = polling => Ok(polled?),
                moved = moving => match moved? {},
            }
        };
        let ends = SlotEnds { confirm, moved };
        channel.source(Ends::AheadOfSlot(ends), spawn(task))
    }

    /// Hands out rows that were read before, and has then caught up.
    pub fn given(rows: Vec<OutboxRow>) -> Self {
        let channel = Channel::new();
        let (batches, stop) = (channel.sender.clone(), channel.stop.clone());
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
        channel.source(Ends::Plain, spawn(task))
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
        let channel = Channel::new();
        let (batches, stop) = (channel.sender.clone(), channel.stop.clone());
        let ends = UnsentEnds {
            in_vain: watch::Sender::default(),
            taken: 0,
            resolved: watch::Sender::new(0),
        };
        let unsent = Unsent {
            mark,
            order,
            skipped,
            in_vain: ends.in_vain.subscribe(),
            resolved: ends.resolved.subscribe(),
        };
        let task = polling::poll_unsent(polling, unsent, batches, stop);
        channel.source(Ends::Unsent(ends), spawn(async move { Ok(task.await?) }))
    }

    /// Where its rows come from.
    pub(crate) fn kind(&self) -> SourceKind {
        match &self.ends {
            Ends::Stream(_) => SourceKind::Stream,
            Ends::Unsent(_) => SourceKind::Unsent,
            Ends::AheadOfSlot(_) | Ends::Plain => SourceKind::Numbers,
        }
    }

    /// Whether the rows come from the slot and may be repetitions of what was marked.
    pub(crate) fn is_stream(&self) -> bool {
        self.kind().is_stream()
    }

    /// Waits for the next batch.
    ///
    /// Errors: why the task ended, once all its batches were read.
    /// Cancel-safe: yes.
    pub async fn read(&mut self) -> Result<Batch, SourceError> {
        if let Some(batch) = self.batches.recv().await {
            if let Ends::Unsent(ends) = &mut self.ends {
                ends.taken += u64::from(!batch.rows.is_empty());
            }
            return Ok(batch);
        }
        let Some(task) = &mut self.task else {
            return Err(SourceError::Ended);
        };
        let failure = failure(task).await;
        self.task = None;
        Err(failure)
    }

    /// Confirms a position to the server, where a slot waits for it; it never goes back.
    pub fn confirm(&self, lsn: Lsn) {
        let (Ends::Stream(StreamEnds { confirm, .. })
        | Ends::AheadOfSlot(SlotEnds { confirm, .. })) = &self.ends
        else {
            return;
        };
        confirm.send_if_modified(|confirmed| {
            let is_newer = lsn > *confirmed;
            if is_newer {
                *confirmed = lsn;
            }
            is_newer
        });
    }

    /// Asks the server how far the stream has come: an idle one says nothing by itself.
    pub fn ask_position(&self) {
        if let Ends::Stream(ends) = &self.ends {
            ends.asked.notify_one();
        }
    }

    /// Tells a source that waits for it that everything it handed over is marked or held.
    pub fn resolved(&self) {
        if let Ends::Unsent(ends) = &self.ends {
            ends.resolved.send_if_modified(|resolved| {
                let is_news = *resolved != ends.taken;
                *resolved = ends.taken;
                is_news
            });
        }
    }

    /// Tells a source of unsent rows that this one is held.
    pub fn hold(&self, id: RowId) {
        if let Ends::Unsent(ends) = &self.ends {
            ends.in_vain.send_modify(|rows| {
                rows.held.insert(id);
            });
        }
    }

    /// Whether a source of unsent rows was told that this one is held.
    pub fn holds(&self, row: &OutboxRow) -> bool {
        matches!(&self.ends, Ends::Unsent(ends) if ends.in_vain.borrow().holds(row))
    }

    /// Tells a source of unsent rows how many wait for nothing but their mark.
    pub fn owe(&self, rows: usize) {
        if let Ends::Unsent(ends) = &self.ends {
            ends.in_vain.send_modify(|in_vain| in_vain.owed = rows);
        }
    }

    /// The position of the server's write-ahead log, as far as it has told.
    pub fn server_lsn(&self) -> Lsn {
        match &self.ends {
            Ends::Stream(ends) => *ends.server.borrow(),
            Ends::AheadOfSlot(ends) => ends.position().map_or(Lsn(0), |position| position.server),
            Ends::Unsent(_) | Ends::Plain => Lsn(0),
        }
    }

    /// How far the slot lags in whose place the table is read, in bytes of WAL, once it was looked at.
    pub fn slot_lag_bytes(&self) -> Option<u64> {
        match &self.ends {
            Ends::AheadOfSlot(ends) => ends.position().map(SlotPosition::lag_bytes),
            Ends::Stream(_) | Ends::Unsent(_) | Ends::Plain => None,
        }
    }

    /// Whether a stream may take over: no slot has to be moved first.
    pub fn has_moved_slot(&self) -> bool {
        let is_near = |lag_bytes| lag_bytes <= LAG_BYTES_MAX;
        !matches!(self.ends, Ends::AheadOfSlot(_)) || self.slot_lag_bytes().is_some_and(is_near)
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

impl SlotEnds {
    fn position(&self) -> Option<SlotPosition> {
        *self.moved.borrow()
    }
}

/// The channel between a source that is being started and the relay.
struct Channel {
    sender: mpsc::Sender<Batch>,
    batches: mpsc::Receiver<Batch>,
    stop: CancellationToken,
}

impl Channel {
    fn new() -> Self {
        let (sender, batches) = mpsc::channel(BATCHES_WAITING);
        let stop = CancellationToken::new();
        Self {
            sender,
            batches,
            stop,
        }
    }

    fn source(self, ends: Ends, task: Task) -> Source {
        Source {
            ends,
            batches: self.batches,
            stop: self.stop,
            task: Some(task),
        }
    }
}
