//! The streaming source: decodes the slot's stream into batches and answers the server on its own
//! timer, whatever the relay does.

mod gathered;
pub mod pgoutput;
pub(crate) mod sweep;
mod thread;
pub mod wire;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::{Batch, Boundary, SourceError, Task};
use crate::postgres::{Class, ConnectOptions, PostgresError};
use crate::row::Lsn;
use gathered::{ChangeOutcome, Gathered};
use pgoutput::{Change, DecodeError, Decoder, Described, Update};
use wire::{Frame, ReadMode, ReplicationConnection, Reply, WalReader, WalWriter};

/// After this long without a message from us the server ends the connection; a start-up parameter.
const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the server hears from us: a third of its patience (docs/design.md, "Parking").
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// A server that was asked and says nothing for this long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Leave the slot when the relay takes nothing for this long (docs/design.md, "Parking").
const PARK_AFTER: Duration = Duration::from_secs(20);
/// A batch follows the one before after so much time for each of that one's rows, and after [`HAND_OVER_EVERY`] at the
/// latest: above 6,000 rows a second many rows share the cost of waking the relay and of a request to Kafka, below
/// nothing waits.
const HAND_OVER_ROW: Duration = Duration::from_micros(150);
const HAND_OVER_EVERY: Duration = Duration::from_millis(5);
/// The same for late rows: a request to Kafka costs the broker what ten rows do (over a unix socket 2.5 instead of 3.9 µs
/// a row, and 0.6 of the relay's).
const HAND_OVER_LATE: Duration = Duration::from_millis(25);
/// Rows that the server sends so long after their commit wait for nobody in particular: then speed counts.
const LATE: Duration = Duration::from_secs(1);
/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    #[error("cannot start replication on slot `{slot}`")]
    Start {
        slot: String,
        #[source]
        source: PostgresError,
    },
    #[error("the replication stream broke off")]
    Stream(#[source] PostgresError),
    #[error("PostgreSQL cannot send the transaction that commits at {commit_lsn}")]
    CannotSend {
        commit_lsn: Lsn,
        #[source]
        source: PostgresError,
    },
    #[error("cannot understand the replication stream")]
    Decode(#[from] DecodeError),
    #[error("PostgreSQL was silent for {SILENCE_MAX:?}")]
    Silent,
    #[error("PostgreSQL ended the replication stream")]
    Ended,
    #[error("cannot start a thread for the replication stream")]
    Thread(#[source] io::Error),
    #[error("the slot was left because nothing could be published for {PARK_AFTER:?}")]
    Parked,
}

/// What the stream's task shares with the relay.
pub(super) struct Ends {
    pub(super) batches: mpsc::Sender<Batch>,
    pub(super) confirm: watch::Receiver<Lsn>,
    /// The largest position that the server has told.
    pub(super) server: watch::Sender<Lsn>,
    /// Told when the relay wants to know how far the stream has come.
    pub(super) asked: Arc<Notify>,
    pub(super) stop: CancellationToken,
}

/// What is streamed, and from where.
pub(super) struct Subscription {
    pub(super) options: ConnectOptions,
    pub(super) slot: String,
    pub(super) publication: String,
    pub(super) outbox: Described,
    /// Larger values may be left out of their rows.
    pub(super) value_bytes_max: usize,
}

impl Subscription {
    /// Waits until the stream has started, on a thread of its own; the task ends with it.
    ///
    /// Cancel-safe: yes, a stream that is being opened is dropped.
    pub(super) async fn start(self, ends: Ends) -> Result<Task, SourceError> {
        let (tell, is_open) = oneshot::channel();
        let streaming = thread::alone(async move {
            let stream = self.open().await?;
            // Whoever no longer waits for it drops this too.
            let _ = tell.send(());
            stream.run(ends).await
        });
        let mut task = super::spawn(async {
            let ended = streaming.await.map_err(ReplicationError::Thread)?;
            Ok(ended?)
        });
        match is_open.await {
            Ok(()) => Ok(task),
            Err(_) => Err(super::failure(&mut task).await),
        }
    }

    /// Connects and starts at the slot's confirmed position, which the server knows best (docs/design.md, "Where a stream begins").
    async fn open(self) -> Result<Stream, ReplicationError> {
        let failed = |source| ReplicationError::Start {
            slot: self.slot.clone(),
            source,
        };
        let connection = ReplicationConnection::connect(&self.options, WAL_SENDER_TIMEOUT)
            .await
            .map_err(failed)?;
        // `bytea` comes as two digits a byte.
        let text_bytes_max = self.value_bytes_max.saturating_mul(2).saturating_add(2);
        let started = connection.start(&self.slot, &self.publication, text_bytes_max);
        let (reader, writer) = started.await.map_err(failed)?;
        Ok(Stream {
            reader,
            writer,
            gathered: Gathered::new(&self.outbox),
            decoder: Decoder::new(self.outbox),
        })
    }
}

/// A started stream, before its first byte is read.
struct Stream {
    reader: WalReader,
    writer: WalWriter,
    decoder: Decoder,
    gathered: Gathered,
}

impl Stream {
    /// Streams until it is told to stop or the connection ends.
    async fn run(self, ends: Ends) -> Result<(), ReplicationError> {
        let mut status = interval(STATUS_EVERY);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let streaming = Streaming {
            stream: self,
            ends,
            waiting_since: None,
            is_late: false,
            due_at: Instant::now(),
            committed_at: SystemTime::UNIX_EPOCH,
            sent_at: SystemTime::UNIX_EPOCH,
        };
        streaming.run(status).await
    }
}

struct Streaming {
    stream: Stream,
    ends: Ends,
    /// A change of the open transaction came too late for its row, and that was said.
    is_late: bool,
    /// Since when a batch waits for the relay to take it.
    waiting_since: Option<Instant>,
    /// When the next batch may follow the last one.
    due_at: Instant,
    /// When the last transaction was committed and the last message sent, both by the server's clock.
    committed_at: SystemTime,
    sent_at: SystemTime,
}

/// What the loop woke up for.
enum Wake {
    Stop,
    Confirm,
    Ask,
    Status,
    Handed,
    More,
    Gone,
}

impl Streaming {
    async fn run(mut self, mut status: Interval) -> Result<(), ReplicationError> {
        loop {
            self.decode().await?;
            match self.wake(&mut status).await? {
                Wake::Stop => return self.finish().await,
                Wake::Confirm => self.report(Reply::NotRequested).await?,
                Wake::Ask => self.report(Reply::Requested).await?,
                Wake::Status => self.check_pulse().await?,
                Wake::Gone => return Ok(()),
                Wake::Handed | Wake::More => {}
            }
        }
    }

    /// Waits for the next thing to do. A batch that is ready goes first; when it is full and the
    /// relay does not take it, the socket rests, but the timers run.
    async fn wake(&mut self, status: &mut Interval) -> Result<Wake, ReplicationError> {
        let is_ready = self.stream.gathered.is_ready();
        let is_full = self.stream.gathered.is_full();
        let due_at = self.due_at;
        let is_due = is_full || self.stream.reader.is_resting() || Instant::now() >= due_at;
        if is_ready && !is_due {
            self.stream.reader.gather_until(due_at);
        }
        tokio::select! {
            biased;
            () = self.ends.stop.cancelled() => Ok(Wake::Stop),
            _ = status.tick() => Ok(Wake::Status),
            () = self.ends.asked.notified() => Ok(Wake::Ask),
            changed = self.ends.confirm.changed() => Ok(if changed.is_ok() { Wake::Confirm } else { Wake::Gone }),
            permit = self.ends.batches.reserve(), if is_ready && is_due => {
                let Ok(permit) = permit else { return Ok(Wake::Gone) };
                let batch = self.stream.gathered.take();
                let worth = HAND_OVER_ROW.saturating_mul(batch.rows.len() as u32);
                let at_most = match self.read_mode() {
                    ReadMode::CatchUp => HAND_OVER_LATE,
                    ReadMode::Prompt => HAND_OVER_EVERY,
                };
                self.due_at = Instant::now() + worth.min(at_most);
                permit.send(batch);
                self.waiting_since = None;
                Ok(Wake::Handed)
            }
            () = sleep_until(due_at), if is_ready && !is_due => Ok(Wake::More),
            filled = self.stream.reader.fill(), if !is_full => {
                filled.map_err(ReplicationError::Stream)?;
                Ok(Wake::More)
            }
        }
    }

    /// Decodes what has been read, as far as the batch has room.
    async fn decode(&mut self) -> Result<(), ReplicationError> {
        while !self.stream.gathered.is_full() {
            let frame = match self.stream.reader.try_next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return Err(self.failed(error).await),
            };
            match frame {
                Frame::Wal { sent_at, data, .. } => {
                    self.take(data)?;
                    self.sent_at = sent_at;
                }
                Frame::Keepalive {
                    end,
                    reply_requested,
                } => {
                    if self.stream.decoder.open_transaction().is_none() {
                        self.stream.gathered.boundary(end);
                    }
                    if reply_requested {
                        self.report(Reply::NotRequested).await?;
                    }
                }
                Frame::CopyDone => return Err(ReplicationError::Ended),
            }
        }
        if self.stream.gathered.has_rows_ready() {
            self.waiting_since.get_or_insert_with(Instant::now);
        }
        self.stream.reader.set_read_mode(self.read_mode());
        let received = self.stream.reader.received();
        self.ends
            .server
            .send_if_modified(|server| std::mem::replace(server, received) != received);
        Ok(())
    }

    fn read_mode(&self) -> ReadMode {
        let since_commit = self.sent_at.duration_since(self.committed_at);
        match since_commit {
            Ok(since) if since >= LATE => ReadMode::CatchUp,
            _ => ReadMode::Prompt,
        }
    }

    /// Explains the stream's end. Where the server gave up on a row, what it sent before is handed over: the slot will not
    /// bring it again.
    async fn failed(&mut self, source: PostgresError) -> ReplicationError {
        let open = self.stream.decoder.open_transaction();
        let (Class::Unsendable, Some(commit_lsn)) = (source.class(), open) else {
            return ReplicationError::Stream(source);
        };
        let rest = self.stream.gathered.take_all();
        tokio::select! {
            () = self.ends.stop.cancelled() => {}
            _ = self.ends.batches.send(rest) => {}
        }
        ReplicationError::CannotSend { commit_lsn, source }
    }

    fn take(&mut self, data: bytes::BytesMut) -> Result<(), ReplicationError> {
        match self.stream.decoder.decode(data)? {
            Change::Row(row) => self.stream.gathered.push(row),
            Change::Update(update) => self.update(*update),
            Change::Commit { end_lsn, .. } => self.stream.gathered.boundary(end_lsn),
            Change::Begin { commit_time, .. } => {
                self.stream.gathered.begin();
                (self.committed_at, self.is_late) = (commit_time, false);
            }
            Change::Skipped => {}
        }
        Ok(())
    }

    fn update(&mut self, update: Update) {
        let outcome = self.stream.gathered.update(update);
        if outcome == ChangeOutcome::TooLate && !std::mem::replace(&mut self.is_late, true) {
            let commit_lsn = self.stream.decoder.open_transaction().unwrap_or_default();
            error!(
                %commit_lsn,
                rows_max = gathered::ROWS_MAX,
                bytes_max = gathered::BYTES_MAX,
                "a large transaction changed rows of its own that were handed on before: they are sent as they were inserted"
            );
        }
    }

    async fn report(&mut self, reply: Reply) -> Result<(), ReplicationError> {
        let confirmed = *self.ends.confirm.borrow_and_update();
        let received = self.stream.reader.received();
        self.stream
            .writer
            .status_update(received, confirmed, reply)
            .await
            .map_err(ReplicationError::Stream)
    }

    /// Reports on time, asks a silent server for a sign, and leaves when it or the relay is stuck.
    async fn check_pulse(&mut self) -> Result<(), ReplicationError> {
        let waiting = self.waiting_since.map(|since| since.elapsed());
        if waiting.is_some_and(|waiting| waiting >= PARK_AFTER) {
            debug!("leaving the slot for a while");
            return Err(ReplicationError::Parked);
        }
        // While the relay takes nothing we do not read, so silence says nothing of the server.
        let silence = if waiting.is_some() {
            Duration::ZERO
        } else {
            self.stream.reader.read_at().elapsed()
        };
        if silence >= SILENCE_MAX {
            return Err(ReplicationError::Silent);
        }
        let reply = if silence >= STATUS_EVERY / 2 {
            Reply::Requested
        } else {
            Reply::NotRequested
        };
        self.report(reply).await
    }

    /// Ends the stream so that the server has read the last confirmation and the slot is free.
    async fn finish(self) -> Result<(), ReplicationError> {
        let confirmed = *self.ends.confirm.borrow();
        let Stream { reader, writer, .. } = self.stream;
        wire::finish(reader, writer, confirmed, super::LEAVE_WITHIN)
            .await
            .map_err(ReplicationError::Stream)
    }
}
