//! The replication connection: its commands, up to the start of the stream.
//!
//! Owns the protocol between us and one walsender. Never decides what to confirm, and never looks into
//! the WAL data it hands over.
//!
//! Source: PostgreSQL 17, 53.4 Streaming Replication Protocol.

#[cfg(any(test, fuzzing))]
pub(crate) mod exercise;
mod framing;
mod handshake;
mod oversize;
mod pace;
mod stream;

use std::time::{Duration, Instant};

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;

use crate::postgres::{Attempt, ConnectOptions, PostgresError, ServerError};
use crate::row::Lsn;
use framing::{FrameReader, Writer};
use handshake::Channel;
use pace::{NEAR, Pace, WINDOW_BYTES, WINDOW_BYTES_MIN};

pub(in crate::source::replication) use oversize::LEFT_OUT;
pub(crate) use pace::ReadMode;
pub(crate) use stream::{Frame, Reply, WalReader, WalWriter, finish};

/// How long a command may take that does not wait for other transactions.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a cancelled command may take to end.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Every command answers with one row at most.
const ROWS_MAX: usize = 1;
/// PostgreSQL's own limit of a message's body is 1 GiB; a frame adds its header.
const STREAM_BYTES_MAX: usize = (1 << 30) + (1 << 16);
const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// A connection to a walsender that takes commands.
pub struct ReplicationConnection {
    reader: FrameReader,
    writer: Writer,
    attempt: Attempt,
    process_id: i32,
    secret_key: i32,
}

/// Which cluster this is, and where its WAL ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    pub system_identifier: String,
    pub timeline: u32,
    /// The end of the flushed WAL.
    pub xlogpos: Lsn,
    pub database: Option<String>,
}

impl ReplicationConnection {
    /// Opens a replication connection; hosts are tried in the order of the URL.
    ///
    /// The server ends the stream when it has heard nothing for `wal_sender_timeout`.
    /// Errors: the last host's, where every host fails.
    /// Cancel-safe: yes, a connection that is being opened is dropped.
    pub async fn connect(
        options: &ConnectOptions,
        wal_sender_timeout: Duration,
    ) -> Result<Self, PostgresError> {
        let mut failure = PostgresError::Closed;
        for attempt in Attempt::all(options) {
            if !attempt.is_due(&failure) {
                continue;
            }
            let opening = Self::open(&attempt, options, wal_sender_timeout);
            match tokio::time::timeout(options.connect_timeout, opening).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => failure = error,
                Err(_) => failure = attempt.timed_out(options.connect_timeout),
            }
        }
        Err(failure)
    }

    async fn open(
        attempt: &Attempt,
        options: &ConnectOptions,
        wal_sender_timeout: Duration,
    ) -> Result<Self, PostgresError> {
        let socket = attempt.open().await?;
        let channel = Channel {
            is_private: socket.security().is_private(),
            end_point: socket.end_point().map(<[u8]>::to_vec),
        };
        let (read, write) = socket.into_split();
        let mut connection = Self {
            reader: FrameReader::new(read),
            writer: Writer::new(write),
            attempt: attempt.clone(),
            process_id: 0,
            secret_key: 0,
        };
        connection.introduce(options, wal_sender_timeout).await?;
        connection.authenticate(options, channel).await?;
        connection.await_ready().await?;
        Ok(connection)
    }

    /// Asks which cluster this is.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, PostgresError> {
        let row = self.row("IDENTIFY_SYSTEM", COMMAND_TIMEOUT).await?;
        let [
            Some(system_identifier),
            Some(timeline),
            Some(xlogpos),
            database,
            ..,
        ] = &row[..]
        else {
            return Err(unusable("IDENTIFY_SYSTEM"));
        };
        Ok(SystemIdentity {
            system_identifier: system_identifier.clone(),
            timeline: timeline.parse().map_err(|_| unusable("IDENTIFY_SYSTEM"))?,
            xlogpos: xlogpos.parse().map_err(|_| unusable("IDENTIFY_SYSTEM"))?,
            database: database.clone(),
        })
    }

    /// Starts the stream at the slot's confirmed position; values longer than `value_bytes_max` may be left out of it.
    ///
    /// A missing publication is not noticed here but at the first change (18: skipped rows).
    /// Errors: class `SlotInUse`, `Missing`.
    pub(crate) async fn start(
        mut self,
        slot: &str,
        publication: &str,
        value_bytes_max: usize,
    ) -> Result<(WalReader, WalWriter), PostgresError> {
        let pace = self.pace().await?;
        let names = quote_literal(&quote_identifier(publication));
        // A position of our own could only skip rows silently (docs/design.md, "Where a stream begins").
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {names})",
            quote_identifier(slot)
        );
        self.send_query(&command).await?;
        let started = tokio::time::timeout(COMMAND_TIMEOUT, self.await_copy_both()).await;
        started.map_err(|_| PostgresError::Timeout(COMMAND_TIMEOUT))??;
        self.reader.arrived.copy_bytes_max = STREAM_BYTES_MAX;
        self.reader.arrived.value_bytes_max = value_bytes_max;
        Ok((
            WalReader::new(self.reader, pace),
            WalWriter::new(self.writer),
        ))
    }

    /// Bounds the receive window where the server is near; far away, what the kernel chooses is faster.
    async fn pace(&mut self) -> Result<Pace, PostgresError> {
        let asked_at = Instant::now();
        self.identify_system().await?;
        let is_near = asked_at.elapsed() < NEAR;
        let has_window = is_near && self.reader.bound(WINDOW_BYTES, WINDOW_BYTES_MIN);
        Ok(Pace::new(has_window))
    }

    async fn await_copy_both(&mut self) -> Result<(), PostgresError> {
        loop {
            let mut message = self.reader.message().await?;
            // `Message::parse` does not know this one.
            if message[0] == COPY_BOTH_RESPONSE_TAG {
                return Ok(());
            }
            match framing::parse(&mut message)? {
                Message::ErrorResponse(body) => return Err(server_error(&body)),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                _ => return Err(unusable("START_REPLICATION")),
            }
        }
    }

    async fn send_query(&mut self, command: &str) -> Result<(), PostgresError> {
        self.writer
            .send(|buffer| frontend::query(command, buffer))
            .await
    }

    /// Runs a command that answers with one row.
    async fn row(
        &mut self,
        command: &str,
        patience: Duration,
    ) -> Result<Vec<Option<String>>, PostgresError> {
        let mut rows = self.rows(command, patience).await?;
        rows.pop().ok_or_else(|| unusable("a command"))
    }

    async fn rows(
        &mut self,
        command: &str,
        patience: Duration,
    ) -> Result<Vec<Vec<Option<String>>>, PostgresError> {
        self.send_query(command).await?;
        match tokio::time::timeout(patience, self.result()).await {
            Ok(result) => result,
            Err(_) => {
                self.cancel().await;
                Err(PostgresError::Timeout(patience))
            }
        }
    }

    async fn result(&mut self) -> Result<Vec<Vec<Option<String>>>, PostgresError> {
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            let mut message = match self.reader.message().await {
                // After a FATAL error there is no more than the end of the stream.
                Err(error) => return Err(failure.unwrap_or(error)),
                Ok(message) => message,
            };
            match framing::parse(&mut message)? {
                Message::DataRow(_) if rows.len() == ROWS_MAX => return Err(unusable("a command")),
                Message::DataRow(body) => rows.push(texts(&body)?),
                Message::ErrorResponse(body) => failure = Some(server_error(&body)),
                Message::ReadyForQuery(_) => return failure.map_or(Ok(rows), Err),
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::NoticeResponse(_)
                | Message::ParameterStatus(_) => {}
                _ => return Err(unusable("a command")),
            }
        }
    }

    /// Cancels the running command over a second connection and waits for its end; best effort.
    async fn cancel(&mut self) {
        let cancelled = async {
            let (_read, write) = self.attempt.open().await?.into_split();
            let (process_id, secret_key) = (self.process_id, self.secret_key);
            let mut writer = Writer::new(write);
            writer
                .send(|buffer| {
                    frontend::cancel_request(process_id, secret_key, buffer);
                    Ok(())
                })
                .await?;
            self.result().await
        };
        let _ = tokio::time::timeout(CANCEL_TIMEOUT, cancelled).await;
    }
}

/// The texts of a row's columns, `None` for SQL NULL.
fn texts(body: &DataRowBody) -> Result<Vec<Option<String>>, PostgresError> {
    let text = |range: Option<std::ops::Range<usize>>| {
        Ok(range.map(|range| String::from_utf8_lossy(&body.buffer()[range]).into_owned()))
    };
    let ranges = body.ranges().map(text);
    ranges.collect().map_err(|_| unusable("a command"))
}

fn server_error(body: &postgres_protocol::message::backend::ErrorResponseBody) -> PostgresError {
    PostgresError::Server(ServerError::from_fields(body.fields()))
}

fn unusable(command: &str) -> PostgresError {
    PostgresError::Protocol(format!("an answer to `{command}` that can't be used"))
}

fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text for a replication command, whose grammar knows no `E''` and takes backslashes as they are.
fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A frame of one tag and its body.
#[cfg(test)]
fn message(tag: u8, body: &[u8]) -> bytes::BytesMut {
    use bytes::BufMut;
    let mut frame = bytes::BytesMut::new();
    frame.put_u8(tag);
    frame.put_u32(4 + body.len() as u32);
    frame.put_slice(body);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_twice_where_a_literal_holds_them() {
        let names = quote_literal(&quote_identifier("we\"ird, p'ub"));
        assert_eq!(names, "'\"we\"\"ird, p''ub\"'");
    }
}
