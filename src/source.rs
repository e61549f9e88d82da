//!
//! Rows come in batches over a bounded channel, in the order in which they are to be published;
//! positions go back.

pub mod holes;
pub mod polling;
pub mod replication;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::ReplicationConfig;
use crate::outbox::{Layout, Lsn, OutboxRow};
use crate::postgres::ConnectOptions;
use crate::ranges::RangeSet;

/// How long a source may take to end in order: the final acknowledgement of a stream.
const LEAVE_WITHIN: Duration = Duration::from_secs(3);
/// Batches that wait for the relay, besides the one that the source fills.
const BATCHES_WAITING: usize = 4;

/// Rows in publishing order.
#[derive(Debug, Default)]
pub struct Batch {
    pub rows: Vec<OutboxRow>,
    /// Where the stream stood after some of these rows; `None` when polled, or in a transaction
    /// that is still being received.
    pub boundary: Option<Boundary>,
    /// Numbers that no row will ever carry.
    pub dead: RangeSet,
    pub caught_up: bool,
}

/// A place in the stream where no transaction is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// How many rows of the batch stand before it.
    pub rows: usize,
    /// The commit's `end_lsn`, or a keepalive's position read in order with the data.
    pub lsn: Lsn,
}

/// Why a source ended.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Replication(#[from] replication::ReplicationError),
    #[error("the source ended without a reason")]
    Ended,
}

/// A running source: its task, the rows that come from it and the positions that go back.
///
/// Dropping it ends the task without the final acknowledgement.
#[derive(Debug)]
pub struct Source {
    kind: Kind,
    batches: mpsc::Receiver<Batch>,
    confirm: watch::Sender<Lsn>,
    server: watch::Receiver<Lsn>,
    stop: CancellationToken,
    /// `None` once its end was told.
    task: Option<JoinHandle<Result<(), SourceError>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Stream,
    Table,
}

impl Source {
    /// Starts to stream from the slot.
    pub async fn stream(
        options: &ConnectOptions,
        replication: &ReplicationConfig,
        layout: Arc<Layout>,
    ) -> Result<Self, SourceError> {
        let ReplicationConfig { slot, publication } = replication;
        let stream = replication::Stream::start(options, slot, publication, layout).await?;
        let (batches, receiver) = mpsc::channel(BATCHES_WAITING);
        let (confirm, confirmed) = watch::channel(Lsn(0));
        let (told, server) = watch::channel(Lsn(0));
        let stop = CancellationToken::new();
        let ends = replication::Ends {
            batches,
            confirm: confirmed,
            server: told,
            stop: stop.clone(),
        };
        let task = tokio::spawn(async move { stream.run(ends).await.map_err(SourceError::from) });
        Ok(Self {
            kind: Kind::Stream,
            batches: receiver,
            confirm,
            server,
            stop,
            task: Some(task),
        })
    }

    /// Whether the rows come from the slot and may be repetitions of what was marked.
    pub fn is_stream(&self) -> bool {
        self.kind == Kind::Stream
    }

    /// Waits for the next batch.
    ///
    /// Errors: why the task ended, once all its batches were read.
    /// Cancel-safe: yes.
    pub async fn read(&mut self) -> Result<Batch, SourceError> {
        if let Some(batch) = self.batches.recv().await {
            return Ok(batch);
        }
        let Some(task) = &mut self.task else {
            return Err(SourceError::Ended);
        };
        let ended = task.await;
        self.task = None;
        match ended {
            Ok(Err(failure)) => Err(failure),
            Ok(Ok(())) | Err(_) => Err(SourceError::Ended),
        }
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

    /// The position of the server's write-ahead log, as far as it has told.
    pub fn server_lsn(&self) -> Lsn {
        *self.server.borrow()
    }

    /// Ends the source in order: the server has read the last confirmation, and the slot is free.
    pub async fn leave(mut self) {
        self.stop.cancel();
        // What the task still hands over is read again by the next session.
        self.batches.close();
        let Some(mut task) = self.task.take() else {
            return;
        };
        if tokio::time::timeout(LEAVE_WITHIN + Duration::from_secs(1), &mut task)
            .await
            .is_err()
        {
            task.abort();
        }
    }
}
