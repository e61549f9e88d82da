//! What a connection asks of TLS and shows of us, in libpq's words, and how it turned out.
//!
//! Never connects. Files are named here and read by `files` at each connect, so that a renewed certificate is
//! picked up without a restart.

mod files;
mod handshake;

use std::fmt;
use std::path::PathBuf;

use crate::config::{ClientCertificate, RootCertificates, SslMode, TlsOptions};

pub(super) use handshake::{alert, secure};

/// How a connection is secured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// A unix socket: no other machine is involved.
    Local,
    PlainText {
        /// The server's address is this machine's own.
        is_loopback: bool,
    },
    Tls {
        version: &'static str,
        cipher: String,
        verified: Verified,
    },
}

/// What is known of the server at the other end of a TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    Nothing,
    /// An authority that we trust issued its certificate, to whomever.
    Issuer,
    IssuerAndName,
}

/// Why a TLS connection did not come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    #[error(
        "the server offers no TLS and `sslmode={0}` never goes without: set `ssl = on` there, or find out who answers in its place"
    )]
    NotOffered(SslMode),
    #[error("bytes came before the handshake: somebody on the way tampers with the connection")]
    Injected,
    #[error("the server answers the request for TLS with an error; its log says which")]
    Refused,
    #[error("what answers the request for TLS is no PostgreSQL server")]
    Foreign,
    #[error("the server's certificate is refused: {0}")]
    Certificate(String),
    #[error("the handshake failed: {0}")]
    Handshake(String),
    #[error("`{parameter}` can't be used: `{}` {why}", path.display())]
    File {
        parameter: &'static str,
        path: PathBuf,
        why: String,
    },
    #[error("OpenSSL can't be set up: {0}")]
    Library(String),
}

impl TlsFault {
    /// Whether plain text may be tried next where `sslmode` prefers TLS and does not ask for it.
    pub(super) fn is_of_the_handshake(&self) -> bool {
        matches!(self, Self::Certificate(_) | Self::Handshake(_))
    }
}

impl Verified {
    /// What a handshake that succeeds with these options shows of the server.
    fn by(options: &TlsOptions) -> Self {
        match (&options.roots, options.mode) {
            (None, _) => Self::Nothing,
            (Some(_), SslMode::VerifyFull) => Self::IssuerAndName,
            (Some(_), _) => Self::Issuer,
        }
    }
}

impl Security {
    /// Whether only the server that we mean can read what we send.
    pub(crate) fn is_private(&self) -> bool {
        match self {
            Self::Local => true,
            Self::PlainText { .. } => false,
            Self::Tls { verified, .. } => *verified == Verified::IssuerAndName,
        }
    }

    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls { .. })
    }
}

impl fmt::Display for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("unix socket"),
            Self::PlainText { is_loopback: true } => f.write_str("not encrypted, over loopback"),
            Self::PlainText { is_loopback: false } => f.write_str("not encrypted"),
            Self::Tls {
                version,
                cipher,
                verified,
            } => {
                let verified = match verified {
                    Verified::Nothing => "the server's certificate is not verified",
                    Verified::Issuer => "the certificate's issuer is verified, its name is not",
                    Verified::IssuerAndName => "the certificate and its name are verified",
                };
                write!(f, "{version} ({cipher}), {verified}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConnectOptions, Secret};

    #[test]
    fn a_root_certificate_is_used_in_every_mode_that_encrypts() {
        let verified = |query: &str| {
            let url = Secret::new(format!("postgres://u@h/d?sslmode={query}"));
            Verified::by(&ConnectOptions::parse(&url).unwrap().tls)
        };
        assert_eq!(verified("require&sslrootcert=/ca.pem"), Verified::Issuer);
        assert_eq!(verified("require"), Verified::Nothing);
    }
}
