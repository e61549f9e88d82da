//! Messages on a socket: cut from what was read, bounded in length, and sent whole.
//!
//! Never looks into a message's body, but for values of the stream that are too large to be kept.

use std::io;

use bytes::BytesMut;
use postgres_protocol::message::backend::{COPY_DATA_TAG, Header, Message};

use super::oversize::Oversize;
use crate::postgres::{PostgresError, ReadHalf, WriteHalf};

/// Free capacity that a read finds at least.
const READ_BYTES_MIN: usize = 16 << 10;
/// Capacity that the buffer grows by; also the least that one row in flight can keep in memory.
const READ_BYTES: usize = 64 << 10;
/// What CopyData may have beside a few values of the largest size; a longer one is not kept whole.
const COPY_BYTES_USUAL: usize = 1 << 20;
/// A message that is no CopyData is longer than this only if somebody means harm.
const COMMAND_BYTES_MAX: usize = 1 << 20;
/// The tag and the length, which counts itself.
const HEADER_BYTES: usize = 5;

/// The receiving side of a connection.
pub(super) struct FrameReader {
    socket: ReadHalf,
    pub(super) arrived: Arrived,
}

/// What was read and not taken yet.
///
/// Grows with what arrives, never with what a length announces.
pub(super) struct Arrived {
    buffer: BytesMut,
    /// A longer CopyData is refused; of every other kind, one above [`COMMAND_BYTES_MAX`].
    pub(super) copy_bytes_max: usize,
    /// Of a long message in the stream, a longer value is left out.
    pub(super) value_bytes_max: usize,
    /// The long message that is arriving.
    oversize: Option<Oversize>,
}

/// What one read brought.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill {
    pub(super) bytes: usize,
    /// The socket held more than the buffer had room for.
    pub(super) is_full: bool,
}

impl FrameReader {
    pub(super) fn new(socket: ReadHalf) -> Self {
        Self {
            socket,
            arrived: Arrived::new(),
        }
    }

    /// Waits for bytes and appends them to the buffer.
    ///
    /// Errors: `Closed` at the end of the stream.
    /// Cancel-safe: yes.
    pub(super) async fn fill(&mut self) -> Result<Fill, PostgresError> {
        let buffer = self.arrived.with_room();
        let room = buffer.capacity() - buffer.len();
        let read = self.socket.read(buffer).await;
        match read.map_err(PostgresError::lost)? {
            0 => Err(PostgresError::Closed),
            bytes => Ok(Fill {
                bytes,
                is_full: bytes >= room,
            }),
        }
    }

    /// Chooses how much the kernel keeps that was not read yet; false where it grants less than `bytes_min`.
    pub(super) fn bound(&self, bytes: usize, bytes_min: usize) -> bool {
        let granted = self.socket.bound(bytes);
        granted.is_ok_and(|granted| granted >= bytes_min)
    }

    /// Cuts the next message off, header included, if all of it has been read.
    pub(super) fn try_message(&mut self) -> Result<Option<BytesMut>, PostgresError> {
        self.arrived.try_message()
    }

    /// Waits for the next message, header included.
    ///
    /// Cancel-safe: yes.
    pub(super) async fn message(&mut self) -> Result<BytesMut, PostgresError> {
        loop {
            if let Some(message) = self.try_message()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }
}

impl Arrived {
    pub(super) fn new() -> Self {
        Self {
            buffer: BytesMut::with_capacity(READ_BYTES),
            copy_bytes_max: COMMAND_BYTES_MAX,
            value_bytes_max: usize::MAX,
            oversize: None,
        }
    }

    /// The buffer, with room for a read.
    pub(super) fn with_room(&mut self) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
            self.buffer.reserve(READ_BYTES);
        }
        &mut self.buffer
    }

    /// Memory that is taken.
    #[cfg(any(test, fuzzing))]
    pub(super) fn bytes(&self) -> usize {
        self.buffer.capacity() + self.oversize.as_ref().map_or(0, Oversize::bytes)
    }

    /// Cuts the next message off, header included, if all of it is there.
    pub(super) fn try_message(&mut self) -> Result<Option<BytesMut>, PostgresError> {
        if self.oversize.is_none() {
            let is_copy = self.buffer.first() == Some(&COPY_DATA_TAG);
            let bytes_max = if is_copy {
                self.copy_bytes_max
            } else {
                COMMAND_BYTES_MAX
            };
            let Some(bytes) = length(&self.buffer, bytes_max)? else {
                return Ok(None);
            };
            let bytes_usual = self.value_bytes_max.saturating_add(COPY_BYTES_USUAL);
            if bytes <= bytes_usual || !is_copy {
                return Ok(cut(&mut self.buffer, bytes));
            }
            self.oversize = Some(Oversize::new(bytes, self.value_bytes_max));
        }
        let message = self
            .oversize
            .as_mut()
            .and_then(|oversize| oversize.take(&mut self.buffer));
        if message.is_some() {
            self.oversize = None;
        }
        Ok(message)
    }
}

/// The length of the message that begins the buffer, header included, once its header has been read.
fn length(buffer: &BytesMut, bytes_max: usize) -> Result<Option<usize>, PostgresError> {
    let header = Header::parse(buffer).map_err(|error| malformed(&error))?;
    let Some(header) = header else {
        return Ok(None);
    };
    // The header's length is at least 4, or it would not have been parsed.
    let bytes = 1 + header.len() as usize;
    if bytes > bytes_max {
        return Err(PostgresError::Protocol(format!(
            "a message of {bytes} bytes, more than {bytes_max}"
        )));
    }
    debug_assert!(bytes >= HEADER_BYTES);
    Ok(Some(bytes))
}

fn cut(buffer: &mut BytesMut, bytes: usize) -> Option<BytesMut> {
    (buffer.len() >= bytes).then(|| buffer.split_to(bytes))
}

/// Understands a whole message.
pub(super) fn parse(message: &mut BytesMut) -> Result<Message, PostgresError> {
    match Message::parse(message) {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(PostgresError::Protocol("an incomplete message".to_owned())),
        Err(error) => Err(malformed(&error)),
    }
}

fn malformed(error: &io::Error) -> PostgresError {
    PostgresError::Protocol(error.to_string())
}

/// The sending side of a connection.
pub(super) struct Writer {
    socket: WriteHalf,
    buffer: BytesMut,
}

impl Writer {
    pub(super) fn new(socket: WriteHalf) -> Self {
        Self {
            socket,
            buffer: BytesMut::new(),
        }
    }

    /// Sends what `write` appends to the buffer.
    ///
    /// Errors: the caller ends the connection.
    /// Cancel-safe: yes; the rest of a message goes out before the next one.
    pub(super) async fn send<F>(&mut self, write: F) -> Result<(), PostgresError>
    where
        F: FnOnce(&mut BytesMut) -> io::Result<()>,
    {
        self.flush().await?;
        write(&mut self.buffer).map_err(|error| malformed(&error))?;
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), PostgresError> {
        let sent = self.socket.write(&mut self.buffer).await;
        sent.map_err(PostgresError::lost)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn next(buffer: &mut BytesMut) -> Result<Option<BytesMut>, PostgresError> {
        Ok(length(buffer, 1 << 20)?.and_then(|bytes| cut(buffer, bytes)))
    }

    #[test]
    fn a_message_longer_than_the_limit_is_refused_before_it_is_read() {
        let mut buffer = BytesMut::from(&b"d\x7f\xff\xff\xff"[..]);
        let error = next(&mut buffer).unwrap_err();
        assert!(matches!(error, PostgresError::Protocol(_)));
    }

    #[test]
    fn a_length_below_its_own_size_is_refused() {
        let mut buffer = BytesMut::from(&b"d\0\0\0\x03"[..]);
        assert!(next(&mut buffer).is_err());
        let mut buffer = BytesMut::from(&b"d\xff\xff\xff\xff"[..]);
        assert!(next(&mut buffer).is_err());
    }

    proptest! {
        #[test]
        fn messages_are_cut_the_same_however_the_bytes_arrive(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            step in 1usize..20,
        ) {
            let mut stream = BytesMut::new();
            for body in &bodies {
                stream.extend_from_slice(&super::super::message(b'd', body));
            }
            let mut buffer = BytesMut::new();
            let mut cuts = Vec::new();
            for part in stream.chunks(step) {
                buffer.extend_from_slice(part);
                while let Some(message) = next(&mut buffer).unwrap() {
                    cuts.push(message[HEADER_BYTES..].to_vec());
                }
            }
            prop_assert_eq!(cuts, bodies);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn any_bytes_are_cut_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(mut message)) = next(&mut buffer) {
                let _ = parse(&mut message);
            }
        }
    }
}
