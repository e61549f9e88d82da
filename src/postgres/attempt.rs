//! The attempts that a URL allows: each host in turn, encrypted or not as `sslmode` says.
//!
//! Never weakens: plain text follows TLS only with `prefer`, and only where TLS was tried and failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};

use super::PostgresError;
use super::socket::{self, Socket};
use super::tls;
use crate::config::{ConnectOptions, Host, SslMode, TlsOptions};

/// `invalid_authorization_specification`: `pg_hba.conf` does not admit us, or not like this.
const NOT_ADMITTED: &str = "28000";

/// One way to connect to one server.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(super) host: Host,
    way: Way,
    tls: TlsOptions,
    /// Somebody took the connection.
    is_connected: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    /// Plain text only if the first way fails.
    PlainInstead,
    /// With `prefer` on a server without TLS it stays plain text.
    Tls,
    /// TLS only if the first way fails.
    TlsInstead,
}

impl Attempt {
    /// What the URL allows, in order; never empty.
    pub(crate) fn all(options: &ConnectOptions) -> impl Iterator<Item = Self> {
        let attempts = |host: &Host| {
            let (host, tls) = (host.clone(), options.tls.clone());
            ways(&host, tls.mode).iter().map(move |way| Self {
                host: host.clone(),
                way: *way,
                tls: tls.clone(),
                is_connected: Arc::default(),
            })
        };
        options.hosts.iter().flat_map(attempts)
    }

    /// Whether to make it after the attempt before it failed so.
    pub(crate) fn is_due(&self, failure: &PostgresError) -> bool {
        let is_not_admitted = failure.sqlstate() == Some(NOT_ADMITTED);
        match self.way {
            Way::Plain | Way::Tls => true,
            Way::TlsInstead => is_not_admitted,
            Way::PlainInstead => {
                let is_handshake = matches!(failure, PostgresError::Tls { fault, .. } if fault.is_of_the_handshake());
                is_handshake || is_not_admitted
            }
        }
    }

    /// Why it did not end within so long.
    pub(crate) fn timed_out(&self, after: Duration) -> PostgresError {
        let address = self.host.to_string();
        match self.is_connected.load(Ordering::Relaxed) {
            true => PostgresError::Unanswered { address, after },
            false => PostgresError::ConnectTimeout { address, after },
        }
    }

    /// Connects, up to the first byte of PostgreSQL's own protocol.
    ///
    /// Cancel-safe: yes, the connection is dropped.
    pub(crate) async fn open(&self) -> Result<Socket, PostgresError> {
        let failed = |error| PostgresError::connect(self.host.to_string(), error);
        let stream = match &self.host {
            Host::Tcp { name, port } => TcpStream::connect((name.as_str(), *port)).await,
            Host::Unix { .. } => {
                let stream = UnixStream::connect(self.host.socket_path()).await;
                return stream.map(Socket::Unix).map_err(failed);
            }
        };
        let stream = stream.map_err(failed)?;
        self.is_connected.store(true, Ordering::Relaxed);
        socket::tune(&stream).map_err(failed)?;
        match self.way {
            Way::Plain | Way::PlainInstead => Ok(Socket::Tcp(stream)),
            Way::Tls | Way::TlsInstead => tls::secure(stream, &self.host, &self.tls).await,
        }
    }
}

/// Source: libpq, "SSL Support"; a unix socket is never encrypted.
fn ways(host: &Host, mode: SslMode) -> &'static [Way] {
    match (host, mode) {
        (Host::Unix { .. }, _) | (_, SslMode::Disable) => &[Way::Plain],
        (_, SslMode::Allow) => &[Way::Plain, Way::TlsInstead],
        (_, SslMode::Prefer) => &[Way::Tls, Way::PlainInstead],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Way::Tls],
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ServerError, TlsFault};
    use super::*;
    use crate::config::Secret;

    fn attempts(parameters: &str) -> Vec<Attempt> {
        let url = Secret::new(format!("postgres://r@db/d?{parameters}"));
        let options = ConnectOptions::parse(&url).unwrap();
        Attempt::all(&options).collect()
    }

    fn ways_of(parameters: &str) -> Vec<Way> {
        attempts(parameters).iter().map(|one| one.way).collect()
    }

    #[test]
    fn a_mode_that_asks_for_tls_has_no_other_way() {
        for mode in ["require", "verify-ca", "verify-full"] {
            let parameters = format!("sslmode={mode}&sslrootcert=/ca.pem");
            assert_eq!(ways_of(&parameters), [Way::Tls]);
        }
        assert_eq!(ways_of("sslmode=disable"), [Way::Plain]);
        assert_eq!(ways_of("sslmode=require&host=/run/pg"), [Way::Plain]);
    }

    #[test]
    fn the_other_way_follows_a_refusal_and_nothing_else() {
        let instead = &attempts("")[1];
        let tls = |fault| PostgresError::tls(&instead.host, fault);
        let server = |sqlstate| PostgresError::Server(ServerError::new(sqlstate, ""));
        assert!(instead.is_due(&tls(TlsFault::Handshake(String::new()))));
        assert!(instead.is_due(&server("28000")));
        assert!(!instead.is_due(&tls(TlsFault::Injected)));
        assert!(!instead.is_due(&tls(TlsFault::Refused)));
        assert!(!instead.is_due(&server("28P01")));
        assert!(!instead.is_due(&PostgresError::Closed));
        let instead = &attempts("sslmode=allow")[1];
        assert!(instead.is_due(&server("28000")));
        assert!(!instead.is_due(&PostgresError::Closed));
    }
}
