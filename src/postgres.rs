//! Connecting to PostgreSQL: the URL, the socket, TLS, and sessions for SQL.
//!
//! Owns what every connection has in common and what its errors say. Never issues a statement.

mod advice;
mod attempt;
pub mod catalog;
pub mod compatibility;
mod encoding;
mod error;
mod guard;
mod incompatibility;
pub(crate) mod obstacles;
pub(crate) mod publication;
pub(crate) mod slot;
mod socket;
pub(crate) mod time;
mod tls;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::config::{self, SslNegotiation};
use tokio_postgres::{Client, Config};

use guard::{AlreadySecured, Guard};

pub use crate::config::{ChannelBinding, ConnectOptions, Host, SslMode, TlsOptions, UrlFault};
pub(crate) use attempt::Attempt;
pub(crate) use error::{CLEAR_TEXT, METHOD, NO_PASSWORD, NOT_BOUND, SERVER_PROOF};
pub use error::{Class, PostgresError, ServerError};
pub(crate) use socket::{ReadHalf, Socket, WriteHalf};
pub use tls::{Security, TlsFault, Verified};

/// How long unacknowledged bytes may stand in a socket, on our side and on the server's.
///
/// A checkpointer was seen to wait for an unread socket (docs/design.md, "Parking").
pub(crate) const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Settings of every connection: what a value looks like must not depend on the role's own settings.
pub(crate) const FORMAT_SETTINGS: [(&str, &str); 6] = [
    ("client_encoding", "UTF8"),
    ("bytea_output", "hex"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
];

/// Settings of SQL sessions, besides [`FORMAT_SETTINGS`].
///
/// Plans must not depend on statistics, which a new or restored outbox has none of: the lag of a ledger with 2 million sent
/// rows took 330 ms by a sequential scan and takes 0.1 ms. What has no index is scanned all the same, and not compiled.
///
/// Names of types are read as the server writes them.
///
/// An idle session of ours is none that was forgotten: the role's own limits for those would end it.
const SESSION_SETTINGS: [(&str, &str); 9] = [
    ("quote_all_identifiers", "off"),
    ("enable_seqscan", "off"),
    ("jit", "off"),
    ("synchronous_commit", "on"),
    ("row_security", "off"),
    ("lock_timeout", "1s"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("idle_session_timeout", "0"),
    ("statement_timeout", "30s"),
];

/// A connection for SQL, together with the reason of its end.
///
/// Dropping it closes the connection.
pub struct SqlConnection {
    /// Sends statements. Its own errors do not say why a connection ended: see [`Session::explain`].
    pub client: Client,
    pub security: Security,
    /// Where it goes.
    pub host: Host,
    /// The server was a hot standby when it was connected to: nothing can be written there.
    pub is_standby: bool,
    /// `server_encoding`.
    encoding: String,
    ended: watch::Receiver<Option<PostgresError>>,
    /// The reason that a statement was told; the connection itself then only saw its end.
    told: OnceLock<PostgresError>,
}

/// Opens a session for SQL; hosts are tried in the order of the URL, and a standby is taken only where none is a primary.
///
/// `name` is appended to the application name, such as `lease`.
/// Errors: the last host's, where every host fails.
/// Cancel-safe: yes, a connection that is being opened is dropped.
pub async fn connect(options: &ConnectOptions, name: &str) -> Result<SqlConnection, PostgresError> {
    let config = session_config(options, name);
    let mut failure = PostgresError::Url(UrlFault::no_host());
    let mut standby = None;
    for attempt in Attempt::all(options) {
        let is_answered = |session: &SqlConnection| session.host == attempt.host;
        if !attempt.is_due(&failure) || standby.as_ref().is_some_and(is_answered) {
            continue;
        }
        match tokio::time::timeout(options.connect_timeout, open(&attempt, &config)).await {
            Ok(Ok(session)) if session.is_standby => {
                standby = Some(session);
            }
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = attempt.timed_out(options.connect_timeout),
        }
    }
    standby.ok_or(failure)
}

impl SqlConnection {
    /// Waits until the connection has ended and says why.
    ///
    /// Cancel-safe: yes.
    pub(crate) async fn closed(&self) -> PostgresError {
        let mut ended = self.ended.clone();
        // An error means that the connection's task is gone without a word.
        let _ = ended.wait_for(Option::is_some).await;
        self.end().unwrap_or(PostgresError::Closed)
    }

    /// A text as the database's encoding can hold it.
    pub(crate) fn storable<'a>(&self, text: &'a str) -> Cow<'a, str> {
        encoding::storable(text, &self.encoding)
    }

    /// The reason of the connection's end, `None` while it stands.
    pub(crate) fn end(&self) -> Option<PostgresError> {
        let ended = self.ended.borrow().clone();
        match (ended, self.told.get()) {
            (Some(PostgresError::Closed), Some(told)) => Some(told.clone()),
            (ended, _) => ended,
        }
    }

    /// Says why a statement failed: where the connection ended meanwhile, the reason of its end.
    ///
    /// Cancel-safe: yes.
    pub(crate) async fn explain(&self, error: tokio_postgres::Error) -> PostgresError {
        match PostgresError::from(error) {
            PostgresError::Closed => self.closed().await,
            error if error.class() == Class::Shutdown => {
                self.told.get_or_init(|| error.clone());
                error
            }
            error => error,
        }
    }
}

async fn open(attempt: &Attempt, config: &Config) -> Result<SqlConnection, PostgresError> {
    let socket = attempt.open().await?;
    let security = socket.security();
    let mut config = config.clone();
    if security.is_encrypted() {
        // What stands here asks tokio-postgres to request nothing of the server.
        config.ssl_mode(config::SslMode::Require);
        config.ssl_negotiation(SslNegotiation::Direct);
    }
    let connected = config.connect_raw(Guard::new(socket), AlreadySecured).await;
    let (client, connection) = connected.map_err(|error| {
        let is_plain = matches!(security, Security::PlainText { .. });
        match PostgresError::from(error) {
            PostgresError::Closed if is_plain => PostgresError::Mute {
                address: attempt.host.to_string(),
            },
            error => error,
        }
    })?;
    // Told by PostgreSQL 14 and newer, at the start and when it changes.
    let is_standby = connection.parameter("in_hot_standby") == Some("on");
    let encoding = connection.parameter("server_encoding");
    let encoding = encoding.unwrap_or("UTF8").to_owned();
    let (sender, ended) = watch::channel(None);
    tokio::spawn(async move {
        let reason = match connection.await {
            Ok(()) => PostgresError::Closed,
            Err(error) => PostgresError::from(error),
        };
        sender.send_replace(Some(reason));
    });
    Ok(SqlConnection {
        client,
        host: attempt.host.clone(),
        is_standby,
        encoding,
        security,
        ended,
        told: OnceLock::new(),
    })
}

fn session_config(options: &ConnectOptions, name: &str) -> Config {
    let mut settings = String::new();
    for (setting, value) in FORMAT_SETTINGS.iter().chain(&SESSION_SETTINGS) {
        let _ = write!(settings, "-c {setting}={value} ");
    }
    let _ = write!(
        settings,
        "-c tcp_user_timeout={}",
        TCP_USER_TIMEOUT.as_millis()
    );
    let mut config = Config::new();
    config
        .user(&options.user)
        .dbname(&options.dbname)
        .application_name(options.application_name(name))
        .options(settings)
        .ssl_mode(config::SslMode::Disable)
        .channel_binding(match options.tls.channel_binding {
            ChannelBinding::Disable => config::ChannelBinding::Disable,
            ChannelBinding::Prefer => config::ChannelBinding::Prefer,
            ChannelBinding::Require => config::ChannelBinding::Require,
        });
    if let Some(password) = &options.password {
        config.password(password.reveal());
    }
    config
}
