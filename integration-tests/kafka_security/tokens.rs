//! A token endpoint as an OIDC provider has one: client credentials against a token that nobody signed.
//!
//! Kafka's own validator for trying takes such tokens and checks when they expire.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use openssl::ssl::{SslAcceptor, SslMethod};

use crate::harness::certificates::Identity;

/// What the endpoint asks for.
pub const CLIENT: &str = "relay";
pub const CLIENT_SECRET: &str = "oidc-hush";

/// Answers until the process ends.
pub struct Tokens {
    pub url: String,
    given: Arc<AtomicU32>,
}

impl Tokens {
    /// Gives tokens that hold for this long, without TLS.
    pub fn start(lifetime: Duration) -> Self {
        Self::listen("http", move |connection| answer(connection, lifetime))
    }

    /// The same with TLS, as this server.
    pub fn start_with_tls(lifetime: Duration, server: &Identity) -> Self {
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        acceptor.set_certificate(&server.certificate).unwrap();
        acceptor.set_private_key(&server.key).unwrap();
        let acceptor = acceptor.build();
        Self::listen("https", move |connection| {
            let refused = |error| std::io::Error::other(format!("{error:?}"));
            answer(acceptor.accept(connection).map_err(refused)?, lifetime)
        })
    }

    fn listen(
        protocol: &str,
        answer: impl Fn(TcpStream) -> std::io::Result<bool> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{protocol}://{}/token", listener.local_addr().unwrap());
        let given = Arc::new(AtomicU32::new(0));
        let counter = given.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                // A client that went away asks again.
                if let Ok(true) = answer(connection) {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { url, given }
    }

    /// How many tokens were given.
    pub fn given(&self) -> u32 {
        self.given.load(Ordering::Relaxed)
    }
}

/// Whether a token was given.
fn answer(mut connection: impl Read + Write, lifetime: Duration) -> std::io::Result<bool> {
    let mut reader = BufReader::new(&mut connection);
    let (mut head, mut bytes) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        let line = line.trim().to_owned();
        if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            bytes = length.trim().parse().unwrap();
        }
        head += &line;
    }
    let mut body = vec![0; bytes];
    reader.read_exact(&mut body)?;
    let credentials = STANDARD.encode(format!("{CLIENT}:{CLIENT_SECRET}"));
    let is_known = head.contains(&format!("Basic {credentials}"));
    let (status, answer) = match is_known {
        true => ("200 OK", token(lifetime)),
        false => (
            "401 Unauthorized",
            r#"{"error":"invalid_client"}"#.to_owned(),
        ),
    };
    write!(
        connection,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
        answer.len()
    )?;
    Ok(is_known)
}

fn token(lifetime: Duration) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let part = |claims: serde_json::Value| URL_SAFE_NO_PAD.encode(claims.to_string());
    let head = part(serde_json::json!({ "alg": "none" }));
    let claims = part(serde_json::json!({
        "sub": CLIENT,
        "iat": now.as_secs(),
        "exp": (now + lifetime).as_secs(),
    }));
    let token = format!("{head}.{claims}.");
    let seconds = lifetime.as_secs();
    serde_json::json!({ "access_token": token, "token_type": "Bearer", "expires_in": seconds })
        .to_string()
}
