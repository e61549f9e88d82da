//! From a TCP connection to an encrypted one: the request, the answer, the handshake.
//!
//! Never goes on in plain text where TLS is asked for, and takes nothing that came before the handshake.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::BytesMut;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::ssl::{self, Ssl, SslContext, SslRef, SslVerifyMode};
use openssl::x509::X509Ref;
use openssl::x509::verify::X509CheckFlags;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use super::super::socket::{Socket, TlsSocket};
use super::super::{Host, PostgresError};
use super::{Security, SslMode, TlsFault, TlsOptions, Verified, files};

/// Most names of a certificate that an error repeats.
const NAMES_MAX: usize = 5;
// Source: OpenSSL, `x509_vfy.h`.
const HAS_EXPIRED: i32 = 10;
const NOT_YET_VALID: i32 = 9;
const UNKNOWN_ISSUER: [i32; 5] = [2, 7, 18, 19, 20];
const WRONG_NAME: [i32; 2] = [62, 64];

/// Asks the server for TLS and makes it; plain text only where `sslmode` allows it and the server has no TLS.
///
/// Reads certificates and keys anew.
/// Cancel-safe: yes, the connection is dropped.
pub(in super::super) async fn secure(
    mut stream: TcpStream,
    host: &Host,
    options: &TlsOptions,
) -> Result<Socket, PostgresError> {
    let failed = |fault| PostgresError::tls(host, fault);
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    let asked = stream.write_all(&request).await;
    asked.map_err(PostgresError::lost)?;
    // One byte and nothing more may come: else it would pass for the server's encrypted word.
    let mut answer = [0; 2];
    let read = stream.read(&mut answer).await;
    match (read.map_err(PostgresError::lost)?, answer[0]) {
        (0, _) => Err(PostgresError::Mute {
            address: host.to_string(),
        }),
        (_, b'E') => Err(failed(TlsFault::Refused)),
        (1, b'S') => shake_hands(stream, host, options).await,
        (1, b'N') if options.mode <= SslMode::Prefer => Ok(Socket::Tcp(stream)),
        (1, b'N') => Err(failed(TlsFault::NotOffered(options.mode))),
        (_, b'S' | b'N') => Err(failed(TlsFault::Injected)),
        _ => Err(failed(TlsFault::Foreign)),
    }
}

async fn shake_hands(
    stream: TcpStream,
    host: &Host,
    options: &TlsOptions,
) -> Result<Socket, PostgresError> {
    let failed = |fault| PostgresError::tls(host, fault);
    let context = context(options.clone()).await.map_err(failed)?;
    let library = |errors: ErrorStack| failed(TlsFault::Library(errors.to_string()));
    let mut ssl = session(&context, host, Verified::by(options)).map_err(library)?;
    let shown = Arc::new(OnceLock::new());
    if options.roots.is_some() {
        keep_names(&mut ssl, shown.clone());
    }
    let mut stream = SslStream::new(ssl, stream).map_err(library)?;
    if let Err(error) = Pin::new(&mut stream).connect().await {
        return Err(match error.into_io_error() {
            Ok(error) => PostgresError::lost(error),
            Err(error) => failed(match shown.get() {
                Some(names) => TlsFault::Certificate(refusal(stream.ssl(), host, names)),
                None => TlsFault::Handshake(reason(&error)),
            }),
        });
    }
    let ssl = stream.ssl();
    let cipher = ssl.current_cipher().map_or("no cipher", |one| one.name());
    let security = Security::Tls {
        version: ssl.version_str(),
        cipher: cipher.to_owned(),
        verified: Verified::by(options),
    };
    let end_point = ssl.peer_certificate().and_then(|own| end_point(&own));
    Ok(Socket::Tls(Box::new(TlsSocket {
        stream,
        security,
        end_point,
    })))
}

/// Reads the files where they can block nobody else: they may stand on a slow disk.
async fn context(options: TlsOptions) -> Result<SslContext, TlsFault> {
    match tokio::task::spawn_blocking(move || files::context(&options)).await {
        Ok(context) => context,
        // The runtime is ending, and with it this task.
        Err(_) => std::future::pending().await,
    }
}

fn session(context: &SslContext, host: &Host, verified: Verified) -> Result<Ssl, ErrorStack> {
    let mut ssl = Ssl::new(context)?;
    let Host::Tcp { name, .. } = host else {
        return Ok(ssl);
    };
    let address = name.parse::<IpAddr>();
    if address.is_err() {
        ssl.set_hostname(name)?;
    }
    if verified == Verified::IssuerAndName {
        let check = ssl.param_mut();
        check.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
        match address {
            Ok(address) => check.set_ip(address)?,
            Err(_) => check.set_host(name)?,
        }
    }
    Ok(ssl)
}

/// Notes the names of a certificate that is refused: they can't be had later.
fn keep_names(ssl: &mut Ssl, shown: Arc<OnceLock<String>>) {
    ssl.set_verify_callback(SslVerifyMode::PEER, move |is_verified, store| {
        if !is_verified {
            shown.get_or_init(|| store.current_cert().map(names).unwrap_or_default());
        }
        is_verified
    });
}

fn refusal(ssl: &SslRef, host: &Host, names: &str) -> String {
    let result = ssl.verify_result();
    let text = result.error_string();
    match result.as_raw() {
        HAS_EXPIRED | NOT_YET_VALID => format!("{text}; renew it on the server"),
        code if UNKNOWN_ISSUER.contains(&code) => {
            format!("{text}; name the authority that issued it in `sslrootcert`")
        }
        code if WRONG_NAME.contains(&code) => {
            format!("it is not for `{host}` but for {names}; connect by such a name")
        }
        _ => text.to_owned(),
    }
}

/// The names of a certificate that nobody vouches for yet.
fn names(certificate: &X509Ref) -> String {
    let shown = |name: &str| format!("`{}`", name.escape_debug());
    let alternatives = certificate.subject_alt_names();
    let names = alternatives.iter().flatten().filter_map(|name| {
        let address = name.ipaddress().map(address_text);
        name.dnsname().map(str::to_owned).or(address)
    });
    let names: Vec<String> = names.take(NAMES_MAX).map(|name| shown(&name)).collect();
    if names.is_empty() {
        return "no name at all".to_owned();
    }
    names.join(", ")
}

fn address_text(bytes: &[u8]) -> String {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return IpAddr::from(bytes).to_string();
    }
    <[u8; 16]>::try_from(bytes).map_or_else(
        |_| "an address".to_owned(),
        |bytes| IpAddr::from(bytes).to_string(),
    )
}

/// The hash of the server's certificate to which SCRAM-SHA-256-PLUS binds, by the hash of its signature.
///
/// `None` for signatures without one hash, such as Ed25519: the server can't bind to them either.
/// Source: RFC 5929, 4.1.
fn end_point(certificate: &X509Ref) -> Option<Vec<u8>> {
    let signature = certificate.signature_algorithm().object().nid();
    let digest = match signature.signature_algorithms()?.digest {
        Nid::MD5 | Nid::SHA1 => Nid::SHA256,
        digest => digest,
    };
    let hash = certificate.digest(MessageDigest::from_nid(digest)?);
    Some(hash.ok()?.to_vec())
}

/// What the other side says when it ends an established connection, such as that it refuses our certificate.
pub(in super::super) fn alert(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<ssl::Error>()?;
    Some(reason(error))
}

fn reason(error: &ssl::Error) -> String {
    let errors = error.ssl_error().map(ErrorStack::errors);
    let first = errors.and_then(|errors| errors.first()?.reason());
    first.unwrap_or("no reason was given").to_owned()
}
