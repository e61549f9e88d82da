//! The running stream: WAL and keepalives come, status updates go.
//!
//! Never confirms a position by itself.

use std::time::{Duration, SystemTime};

use bytes::{Buf, BufMut, BytesMut};
use postgres_protocol::message::backend::{
    COMMAND_COMPLETE_TAG, COPY_DATA_TAG, COPY_DONE_TAG, ERROR_RESPONSE_TAG, Message,
    NOTICE_RESPONSE_TAG, PARAMETER_STATUS_TAG, READY_FOR_QUERY_TAG,
};
use postgres_protocol::message::frontend;
use tokio::time::Instant;

use super::framing::{self, FrameReader, Writer};
use super::pace::{Found, Pace, REST_MIN, ReadMode};
use super::server_error;
use crate::postgres::PostgresError;
use crate::postgres::time::{from_micros, to_micros};
use crate::row::Lsn;

/// Tag and length of a message, and the tag of what CopyData holds.
const FRAME_TAG_AT: usize = 5;
/// Start, end and clock, each 8 bytes, behind the tags.
const WAL_HEADER_BYTES: usize = FRAME_TAG_AT + 1 + 24;
/// End and clock, then one byte: is a reply wanted.
const KEEPALIVE_BYTES: usize = FRAME_TAG_AT + 1 + 17;
/// Within a transaction the walsender reads our messages only when its own can't be written, or after half
/// of `wal_sender_timeout`. So what follows the last status is read for a while and then left standing for
/// a while, which fills the buffers between us (a few MB, at 15 MB/s on a busy machine).
const READING_SPELL: Duration = Duration::from_millis(200);
const SILENT_SPELL: Duration = Duration::from_millis(800);
/// How long the server may take to end the command; in a long transaction the close ends it.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// What the server sends while it streams.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// One message of the output plugin. `start` is 0/0 for descriptions of relations; `sent_at` is by the server's clock.
    Wal {
        start: Lsn,
        end: Lsn,
        sent_at: SystemTime,
        data: BytesMut,
    },
    /// How far the server has looked, published tables or not.
    Keepalive { end: Lsn, reply_requested: bool },
    /// The server has ended the stream.
    CopyDone,
}

/// Whether the server is asked for a keepalive at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Requested,
    NotRequested,
}

/// The receiving side of the stream.
pub(crate) struct WalReader {
    reader: FrameReader,
    received: Lsn,
    read_at: Instant,
    pace: Pace,
    read_mode: ReadMode,
    /// How long after the last read the next one may come.
    wait: Duration,
    /// The last read left something in the socket.
    has_more: bool,
}

impl WalReader {
    pub(super) fn new(reader: FrameReader, pace: Pace) -> Self {
        Self {
            reader,
            received: Lsn(0),
            read_at: Instant::now(),
            pace,
            read_mode: ReadMode::default(),
            wait: Duration::ZERO,
            has_more: false,
        }
    }

    /// Takes the next frame that has been read whole, `None` when [`WalReader::fill`] must read more.
    pub(crate) fn try_next(&mut self) -> Result<Option<Frame>, PostgresError> {
        while let Some(message) = self.reader.try_message()? {
            if let Some(frame) = frame(message)? {
                if let Frame::Wal { end, .. } | Frame::Keepalive { end, .. } = &frame {
                    self.received = self.received.max(*end);
                }
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Waits for bytes from the server; under load a little longer, so that there are many.
    ///
    /// Blocks its thread for as long as [`Pace`] says: while a driver waits for the socket, each message wakes it.
    /// Errors: `Closed` or `Lost` when the connection has ended.
    /// Cancel-safe: yes.
    pub(crate) async fn fill(&mut self) -> Result<(), PostgresError> {
        std::thread::sleep(self.wait.saturating_sub(self.read_at.elapsed()));
        self.wait = Duration::ZERO;
        let fill = self.reader.fill().await?;
        let found = Found {
            bytes: fill.bytes,
            is_full: fill.is_full,
            after: std::mem::replace(&mut self.read_at, Instant::now()).elapsed(),
        };
        self.has_more = fill.is_full;
        self.wait = self.pace.next_after(found, self.read_mode);
        Ok(())
    }

    /// Lets the next read wait until then where nobody needs it earlier: what comes is read at once, not message by message.
    ///
    /// For as long as the server can go on sending, a few milliseconds.
    pub(crate) fn gather_until(&mut self, at: Instant) {
        if self.read_mode == ReadMode::Prompt && !self.has_more {
            self.wait = self.wait.max(at.saturating_duration_since(self.read_at));
        }
    }

    /// Whether the next read waits so long that nothing should wait for it.
    pub(crate) fn is_resting(&self) -> bool {
        self.wait >= REST_MIN
    }

    /// Says what the next reads are after.
    pub(crate) fn set_read_mode(&mut self, read_mode: ReadMode) {
        self.read_mode = read_mode;
    }

    /// Waits for the next frame.
    ///
    /// Cancel-safe: yes.
    pub(crate) async fn next(&mut self) -> Result<Frame, PostgresError> {
        loop {
            if let Some(frame) = self.try_next()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// The largest position received: the `write` of a status update.
    pub(crate) fn received(&self) -> Lsn {
        self.received
    }

    /// When the server was last heard.
    pub(crate) fn read_at(&self) -> Instant {
        self.read_at
    }
}

/// The sending side of the stream.
pub(crate) struct WalWriter {
    writer: Writer,
    flush: Lsn,
}

impl WalWriter {
    pub(super) fn new(writer: Writer) -> Self {
        Self {
            writer,
            flush: Lsn(0),
        }
    }

    /// Tells the server how far we are; `flush` moves `confirmed_flush_lsn`, never backwards.
    ///
    /// Cancel-safe: yes; the rest of a message goes out before the next one.
    pub(crate) async fn status_update(
        &mut self,
        write: Lsn,
        flush: Lsn,
        reply: Reply,
    ) -> Result<(), PostgresError> {
        self.flush = self.flush.max(flush);
        let status = status(write.max(self.flush), self.flush, reply);
        self.writer
            .send(|buffer| frontend::CopyData::new(&status[..]).map(|copy| copy.write(buffer)))
            .await
    }
}

/// Confirms `flush` for the last time and leaves the slot, so that the next reader finds it free.
///
/// A status update and a close alone lose the confirmation, because unread bytes make the kernel reset
/// the connection (14 of 15 times). Here the server's CopyDone proves that it has read the status; what it
/// still streams is discarded and will be sent again.
/// Errors: `Timeout` when the proof did not come within `patience`.
pub(crate) async fn finish(
    mut reader: WalReader,
    mut writer: WalWriter,
    flush: Lsn,
    patience: Duration,
) -> Result<(), PostgresError> {
    reader.set_read_mode(ReadMode::Prompt);
    let confirmed = async {
        writer
            .status_update(reader.received, flush, Reply::Requested)
            .await?;
        let copy_done = |buffer: &mut BytesMut| {
            frontend::copy_done(buffer);
            Ok(())
        };
        writer.writer.send(copy_done).await?;
        await_copy_done(&mut reader).await
    };
    let confirmed = tokio::time::timeout(patience, confirmed).await;
    confirmed.unwrap_or(Err(PostgresError::Timeout(patience)))?;
    // The confirmation stands, however the command ends.
    let left = tokio::time::timeout(LEAVE_TIMEOUT, leave(&mut reader, &mut writer)).await;
    left.unwrap_or(Ok(()))
}

/// Discards what the server streams until it has ended the stream.
async fn await_copy_done(reader: &mut WalReader) -> Result<(), PostgresError> {
    loop {
        let reading = async {
            while reader.next().await? != Frame::CopyDone {}
            Ok(())
        };
        if let Ok(done) = tokio::time::timeout(READING_SPELL, reading).await {
            return done;
        }
        tokio::time::sleep(SILENT_SPELL).await;
    }
}

/// Waits until the server has let the slot go, then says goodbye.
async fn leave(reader: &mut WalReader, writer: &mut WalWriter) -> Result<(), PostgresError> {
    loop {
        let message = reader.reader.message().await?;
        match message[0] {
            READY_FOR_QUERY_TAG => break,
            _ => {
                frame(message)?;
            }
        }
    }
    let terminate = |buffer: &mut BytesMut| {
        frontend::terminate(buffer);
        Ok(())
    };
    writer.writer.send(terminate).await
}

/// Understands one message of the stream; `None` for what says nothing about it.
pub(super) fn frame(mut message: BytesMut) -> Result<Option<Frame>, PostgresError> {
    match message[0] {
        COPY_DATA_TAG => copy_frame(message).map(Some),
        COPY_DONE_TAG => Ok(Some(Frame::CopyDone)),
        NOTICE_RESPONSE_TAG | PARAMETER_STATUS_TAG | COMMAND_COMPLETE_TAG => Ok(None),
        ERROR_RESPONSE_TAG => match framing::parse(&mut message)? {
            Message::ErrorResponse(body) => Err(server_error(&body)),
            _ => Err(unexpected(ERROR_RESPONSE_TAG)),
        },
        tag => Err(unexpected(tag)),
    }
}

fn copy_frame(mut message: BytesMut) -> Result<Frame, PostgresError> {
    let tag = message.get(FRAME_TAG_AT).copied().unwrap_or(0);
    let mut body = message.get(FRAME_TAG_AT + 1..).unwrap_or(&[]);
    match tag {
        b'w' if message.len() >= WAL_HEADER_BYTES => {
            let (start, end) = (Lsn(body.get_u64()), Lsn(body.get_u64()));
            let sent_at = from_micros(body.get_i64());
            message.advance(WAL_HEADER_BYTES);
            Ok(Frame::Wal {
                start,
                end,
                sent_at,
                data: message,
            })
        }
        b'k' if message.len() == KEEPALIVE_BYTES => Ok(Frame::Keepalive {
            end: Lsn(body.get_u64()),
            reply_requested: body[8] != 0,
        }),
        tag => Err(unexpected(tag)),
    }
}

fn unexpected(tag: u8) -> PostgresError {
    PostgresError::Protocol(format!("`{}` in the stream", tag.escape_ascii()))
}

/// The body of a standby status update.
fn status(write: Lsn, flush: Lsn, reply: Reply) -> BytesMut {
    let mut status = BytesMut::with_capacity(34);
    status.put_u8(b'r');
    for lsn in [write, flush, flush] {
        status.put_u64(lsn.0);
    }
    status.put_i64(to_micros(SystemTime::now()));
    status.put_u8(u8::from(reply == Reply::Requested));
    status
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message;
    use super::*;

    #[test]
    fn wal_and_keepalives_are_told_apart() {
        let mut wal = b"w".to_vec();
        wal.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9]);
        wal.extend_from_slice(&[0; 8]);
        wal.extend_from_slice(b"Ixyz");
        let expected = Frame::Wal {
            start: Lsn(7),
            end: Lsn(9),
            sent_at: from_micros(0),
            data: BytesMut::from(&b"Ixyz"[..]),
        };
        assert_eq!(frame(message(b'd', &wal)).unwrap(), Some(expected));
        let mut keepalive = b"k".to_vec();
        keepalive.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 9]);
        keepalive.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let expected = Frame::Keepalive {
            end: Lsn(9),
            reply_requested: true,
        };
        assert_eq!(frame(message(b'd', &keepalive)).unwrap(), Some(expected));
    }

    #[test]
    fn a_status_update_has_the_layout_of_the_manual() {
        let status = status(Lsn(3), Lsn(2), Reply::Requested);
        assert_eq!(status.len(), 34);
        assert_eq!(status[0], b'r');
        assert_eq!(status[8], 3);
        assert_eq!((status[16], status[24], status[33]), (2, 2, 1));
    }

    #[test]
    fn an_error_in_the_stream_keeps_the_sqlstate_and_drops_the_detail() {
        let body = b"SFATAL\0C57P01\0Mterminating connection\0DKey (id)=(secret)\0\0";
        let error = frame(message(b'E', body)).unwrap_err();
        assert_eq!(error.sqlstate(), Some("57P01"));
        assert!(!format!("{error:?}").contains("secret"));
    }

    proptest! {
        #[test]
        fn any_message_is_read_without_a_panic(
            tag in any::<u8>(),
            body in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = frame(message(tag, &body));
            let _ = frame(message(b'd', &body));
        }
    }
}
