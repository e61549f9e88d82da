//! Stands between tokio-postgres and its socket while the server asks who we are.
//!
//! Never lets a request for the password in clear text through where another machine could listen in:
//! tokio-postgres would answer it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::Socket;

/// Tag, length and the kind of an authentication request.
const REQUEST_BYTES: usize = 9;
const AUTHENTICATION_TAG: u8 = b'R';
const OK: u32 = 0;
const CLEAR_TEXT: u32 = 3;

/// A socket that ends with an error where the server asks for the password in clear text.
pub(super) struct Guard {
    socket: Socket,
    watch: Option<Watch>,
}

/// How much of the server's first messages went by.
#[derive(Default)]
struct Watch {
    /// The beginning of the message that is going by.
    head: Vec<u8>,
    /// Bytes of it that are still to come behind its head.
    rest: usize,
}

/// What the server's messages have shown so far.
#[derive(Debug, PartialEq, Eq)]
enum Authentication {
    Undecided,
    Admitted,
    AsksForClearText,
}

#[derive(Debug, thiserror::Error)]
#[error("the server asks for the password in clear text")]
struct ClearTextRefusal;

/// Whether the guard made this error.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|source| source.is::<ClearTextRefusal>())
}

impl Guard {
    pub(super) fn new(socket: Socket) -> Self {
        let watch = (!socket.security().is_private()).then(Watch::default);
        Self { socket, watch }
    }
}

/// Tells tokio-postgres that the connection is encrypted already.
pub(super) struct AlreadySecured;

impl TlsConnect<Guard> for AlreadySecured {
    type Stream = Guard;
    type Error = Infallible;
    type Future = Ready<Result<Guard, Infallible>>;

    fn connect(self, stream: Guard) -> Self::Future {
        ready(Ok(stream))
    }
}

impl TlsStream for Guard {
    fn channel_binding(&self) -> ChannelBinding {
        match self.socket.end_point() {
            Some(end_point) => ChannelBinding::tls_server_end_point(end_point.to_vec()),
            None => ChannelBinding::none(),
        }
    }
}

impl Watch {
    /// Looks at the next bytes from the server.
    fn pass(&mut self, mut bytes: &[u8]) -> Authentication {
        while !bytes.is_empty() {
            let skipped = self.rest.min(bytes.len());
            self.rest -= skipped;
            bytes = &bytes[skipped..];
            let Some((&byte, tail)) = bytes.split_first() else {
                break;
            };
            bytes = tail;
            self.head.push(byte);
            match self.judge() {
                Authentication::Undecided => {}
                verdict => return verdict,
            }
        }
        Authentication::Undecided
    }

    /// Judges a head that has just grown.
    fn judge(&mut self) -> Authentication {
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
        };
        let (tag, length) = (self.head[0], self.head.get(1..5).map(number));
        match length {
            None => Authentication::Undecided,
            Some(length) if tag != AUTHENTICATION_TAG || length < 8 => {
                self.rest = (length as usize).saturating_sub(4);
                self.head.clear();
                Authentication::Undecided
            }
            Some(_) if self.head.len() < REQUEST_BYTES => Authentication::Undecided,
            Some(length) => {
                let kind = number(&self.head[5..]);
                self.rest = length as usize - 8;
                self.head.clear();
                match kind {
                    OK => Authentication::Admitted,
                    CLEAR_TEXT => Authentication::AsksForClearText,
                    _ => Authentication::Undecided,
                }
            }
        }
    }
}

impl AsyncRead for Guard {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let guard = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut guard.socket).poll_read(cx, buf);
        let Some(watch) = guard.watch.as_mut() else {
            return polled;
        };
        match watch.pass(&buf.filled()[before..]) {
            Authentication::Undecided => {}
            Authentication::Admitted => guard.watch = None,
            Authentication::AsksForClearText => {
                return Poll::Ready(Err(io::Error::other(ClearTextRefusal)));
            }
        }
        polled
    }
}

impl AsyncWrite for Guard {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A notice, then an authentication request of the kind.
    fn stream(kind: u32) -> Vec<u8> {
        let mut bytes = b"N\0\0\0\x09Sabc\0".to_vec();
        bytes.extend_from_slice(b"R\0\0\0\x0c");
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(b"salt");
        bytes
    }

    fn verdict(bytes: &[u8], step: usize) -> Authentication {
        let mut watch = Watch::default();
        let verdicts = bytes.chunks(step).map(|part| watch.pass(part));
        verdicts
            .into_iter()
            .find(|verdict| *verdict != Authentication::Undecided)
            .unwrap_or(Authentication::Undecided)
    }

    proptest! {
        #[test]
        fn a_request_is_recognised_however_its_bytes_arrive(step in 1usize..30) {
            prop_assert_eq!(verdict(&stream(3), step), Authentication::AsksForClearText);
            prop_assert_eq!(verdict(&stream(5), step), Authentication::Undecided);
            let mut admitted = stream(5);
            admitted.extend_from_slice(b"R\0\0\0\x08\0\0\0\0");
            prop_assert_eq!(verdict(&admitted, step), Authentication::Admitted);
        }

        #[test]
        fn any_bytes_pass_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = verdict(&bytes, 7);
        }
    }
}
