//! The socket under every connection: TCP, TLS or unix, with the timeouts that notice a dead peer.
//!
//! Never reads or writes by itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};
use tokio_openssl::SslStream;
use tokio_util::io::poll_read_buf;

use super::{Security, TCP_USER_TIMEOUT};

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsSocket>),
}

/// A TCP connection behind a finished handshake.
#[derive(Debug)]
pub(crate) struct TlsSocket {
    pub(super) stream: SslStream<TcpStream>,
    pub(super) security: Security,
    pub(super) end_point: Option<Vec<u8>>,
}

/// Sends at once, and notices a peer that is gone.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5));
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    Ok(())
}

impl Socket {
    /// Separates reading from writing.
    pub(crate) fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Tcp(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Self::Unix(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Unix(read), WriteHalf::Unix(write))
            }
            Self::Tls(socket) => {
                let handle = socket.stream.get_ref().as_fd().try_clone_to_owned();
                let (read, write) = tokio::io::split(socket.stream);
                (ReadHalf::Tls(read, handle.ok()), WriteHalf::Tls(write))
            }
        }
    }

    /// Who can listen in, and who we know it is that answers.
    pub(crate) fn security(&self) -> Security {
        match self {
            Self::Tcp(stream) => Security::PlainText {
                is_loopback: stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()),
            },
            Self::Unix(_) => Security::Local,
            Self::Tls(socket) => socket.security.clone(),
        }
    }

    /// What SCRAM-SHA-256-PLUS binds the proof to (`tls-server-end-point`), where it can.
    pub(crate) fn end_point(&self) -> Option<&[u8]> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => None,
            Self::Tls(socket) => socket.end_point.as_deref(),
        }
    }
}

/// The side of a socket that reads.
#[derive(Debug)]
pub(crate) enum ReadHalf {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
    /// With another handle on the TCP connection under it.
    Tls(tokio::io::ReadHalf<SslStream<TcpStream>>, Option<OwnedFd>),
}

/// The side of a socket that writes.
#[derive(Debug)]
pub(crate) enum WriteHalf {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
    Tls(tokio::io::WriteHalf<SslStream<TcpStream>>),
}

impl ReadHalf {
    /// Appends what has arrived to the free capacity of `buffer`; 0 at the end of the stream.
    ///
    /// Cancel-safe: yes.
    pub(crate) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => half.read_buf(buffer).await,
            Self::Unix(half) => half.read_buf(buffer).await,
            Self::Tls(half, _) => {
                std::future::poll_fn(|cx| poll_read_records(half, cx, buffer)).await
            }
        }
    }

    /// Bounds what the kernel keeps that was not read yet, and tells how much that is now.
    ///
    /// Errors: the operating system's; `Unsupported` where the sender's side holds it, as with a unix socket.
    pub(crate) fn bound(&self, bytes: usize) -> io::Result<usize> {
        let socket = match self {
            Self::Tcp(half) => SockRef::from(AsRef::<TcpStream>::as_ref(half)),
            Self::Tls(_, Some(handle)) => SockRef::from(handle),
            Self::Tls(_, None) | Self::Unix(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        socket.set_recv_buffer_size(bytes)?;
        socket.recv_buffer_size()
    }
}

/// Reads every record that has arrived: one holds no more than the server sent at once, often one row.
fn poll_read_records(
    half: &mut tokio::io::ReadHalf<SslStream<TcpStream>>,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    let mut bytes = ready!(poll_read_buf(Pin::new(half), cx, buffer))?;
    while bytes > 0 && buffer.len() < buffer.capacity() {
        // An end or an error comes again at the next call.
        match poll_read_buf(Pin::new(half), cx, buffer) {
            Poll::Ready(Ok(more)) if more > 0 => bytes += more,
            _ => break,
        }
    }
    Poll::Ready(Ok(bytes))
}

impl WriteHalf {
    /// Sends all of `buffer`, taking what is sent off its front.
    ///
    /// Cancel-safe: yes, what is not sent stays in `buffer`.
    pub(crate) async fn write(&mut self, buffer: &mut BytesMut) -> io::Result<()> {
        match self {
            Self::Tcp(half) => half.write_all_buf(buffer).await,
            Self::Unix(half) => half.write_all_buf(buffer).await,
            Self::Tls(half) => {
                half.write_all_buf(buffer).await?;
                half.flush().await
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(socket) => Pin::new(&mut socket.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(socket) => Pin::new(&mut socket.stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(socket) => Pin::new(&mut socket.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(socket) => Pin::new(&mut socket.stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Clouds forget a connection on which nothing passes for four minutes.
    #[tokio::test]
    async fn an_idle_connection_says_every_few_seconds_that_it_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        tune(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(10)
        );
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(5)
        );
    }
}
