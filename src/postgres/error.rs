//! What can go wrong with PostgreSQL, and which kind of trouble it is.
//!
//! Never holds a server's DETAIL, HINT or CONTEXT, which may quote rows, nor the URL or its password.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;
use tokio_postgres::types::WrongType;

use super::tls::{self, TlsFault};
use super::{Host, advice, guard};
use crate::config::UrlFault;

/// A failure to connect to PostgreSQL or to talk to it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PostgresError {
    #[error("the connection URL {0}")]
    Url(#[from] UrlFault),
    #[error("cannot make a TLS connection to `{address}`: {fault}")]
    Tls {
        address: String,
        fault: Box<TlsFault>,
    },
    #[error("the other side ended the TLS connection: {0}")]
    TlsEnded(String),
    #[error("cannot connect to `{address}`")]
    Connect {
        address: String,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("cannot connect to `{address}` within {after:?}")]
    ConnectTimeout { address: String, after: Duration },
    #[error(
        "`{address}` takes the connection and does not answer within {after:?}: is it PostgreSQL? Its port is usually 5432, \
         and 9092 is Kafka's"
    )]
    Unanswered { address: String, after: Duration },
    #[error(
        "`{address}` closed the connection before it said a word of PostgreSQL's protocol: is it PostgreSQL? Its port is \
         usually 5432, and 9092 is Kafka's"
    )]
    Mute { address: String },
    #[error("cannot authenticate: {0}")]
    Authentication(&'static str),
    #[error(transparent)]
    Server(ServerError),
    #[error("the connection to PostgreSQL was lost")]
    Lost(#[source] Arc<io::Error>),
    #[error("the connection to PostgreSQL was closed")]
    Closed,
    #[error("PostgreSQL did not answer within {0:?}")]
    Timeout(Duration),
    #[error("PostgreSQL sent what the protocol does not allow here: {0}")]
    Protocol(String),
    #[error("cannot use a statement or its result: {0}")]
    Statement(String),
}

/// What a server's error says about itself, without anything that may quote a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {sqlstate}){}", advised(self))]
pub struct ServerError {
    pub sqlstate: String,
    pub message: String,
    /// The function of the server's source that complained: unlike the message it is in no language.
    pub routine: String,
}

fn advised(error: &ServerError) -> String {
    advice::advice(error).map_or_else(String::new, |advice| format!("; {advice}"))
}

/// The kinds of trouble that people and the supervisor tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The URL asks for something that can't be done; only a person can change that.
    Configuration,
    /// The server refuses who we are, or we who it is.
    Authentication,
    /// A database, schema, table, slot or publication does not exist.
    Missing,
    /// Somebody else reads the slot.
    SlotInUse,
    /// The connection did not come about or ended, for a reason that passes.
    Lost,
    /// The server is starting or stopping, or somebody ended our backend.
    Shutdown,
    /// No connection, walsender or slot is left.
    TooManyConnections,
    /// The role may not do what we tried.
    Permission,
    /// The server cannot send a value of a row: it is too large, no text of ours, or damaged.
    Unsendable,
    /// Anything else.
    Other,
}

impl Class {
    /// The class of the server's own failure, where one stands behind an error of ours.
    pub(crate) fn behind(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<PostgresError>() {
                return Some(error.class());
            }
            cause = error.source();
        }
        None
    }
}

impl PostgresError {
    /// The kind of trouble.
    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Url(_) => Class::Configuration,
            Self::Authentication(_) | Self::Tls { .. } | Self::TlsEnded(_) => Class::Authentication,
            Self::Server(error) => error.class(),
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Unanswered { .. }
            | Self::Mute { .. }
            | Self::Lost(_)
            | Self::Closed
            | Self::Timeout(_) => Class::Lost,
            Self::Protocol(_) | Self::Statement(_) => Class::Other,
        }
    }

    /// The server's SQLSTATE, where it was the server that complained.
    pub(crate) fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(error) => Some(&error.sqlstate),
            _ => None,
        }
    }

    /// The session takes no writes: its default was set when it began.
    pub(crate) fn is_read_only(&self) -> bool {
        self.sqlstate() == Some("25006")
    }

    /// A policy of row security would hide rows from this role.
    pub(crate) fn is_of_policies(&self) -> bool {
        matches!(self, Self::Server(error) if error.routine == advice::OF_POLICIES)
    }

    pub(crate) fn lost(error: io::Error) -> Self {
        if let Some(alert) = tls::alert(&error) {
            return Self::TlsEnded(alert);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Lost(Arc::new(error)),
        }
    }

    pub(super) fn tls(host: &Host, fault: TlsFault) -> Self {
        Self::Tls {
            address: host.to_string(),
            fault: Box::new(fault),
        }
    }

    pub(super) fn connect(address: String, error: io::Error) -> Self {
        let source = Arc::new(error);
        Self::Connect { address, source }
    }
}

impl From<tokio_postgres::Error> for PostgresError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(server) = error.as_db_error() {
            let routine = server.routine().unwrap_or_default().to_owned();
            let error = ServerError::new(server.code().code(), server.message());
            return Self::Server(ServerError { routine, ..error });
        }
        if error.is_closed() {
            return Self::Closed;
        }
        let text = error.to_string();
        let Some(source) = error.into_source() else {
            return Self::Statement(text);
        };
        match source.downcast::<io::Error>() {
            Ok(_) if text.starts_with("authentication") => Self::Authentication(SERVER_PROOF),
            Ok(source) if guard::is_refusal(&source) => Self::Authentication(CLEAR_TEXT),
            Ok(source) => Self::lost(*source),
            Err(source) if source.to_string() == DRIVERS_NOT_BOUND => {
                Self::Authentication(NOT_BOUND)
            }
            Err(_) if text.starts_with("authentication") => Self::Authentication(METHOD),
            Err(_) if text.starts_with("invalid configuration") => {
                Self::Authentication(NO_PASSWORD)
            }
            Err(source) if source.is::<WrongType>() => Self::Statement(format!("{text}: {source}")),
            Err(_) => Self::Statement(text),
        }
    }
}

pub(crate) const CLEAR_TEXT: &str = "the server asks for the password in clear text, which is only sent over a unix socket or with `sslmode=verify-full`";
pub(crate) const NOT_BOUND: &str = "the server does not bind the password's proof to its certificate (SCRAM-SHA-256-PLUS), and `channel_binding=require` asks for it";
/// What tokio-postgres says for it.
const DRIVERS_NOT_BOUND: &str = "server did not use channel binding";
pub(crate) const NO_PASSWORD: &str = "the server asks for a password and the URL has none";
pub(crate) const METHOD: &str = "the server asks for a method that is not supported";
pub(crate) const SERVER_PROOF: &str = "the server's proof that it knows the password does not hold";

impl ServerError {
    /// Keeps the message, less the value that a data exception (SQLSTATE 22…) quotes after a colon.
    pub(crate) fn new(sqlstate: &str, message: &str) -> Self {
        let message = match message.split_once(':') {
            // Its message quotes the character.
            _ if sqlstate == "22P05" => "a character has no equivalent in UTF-8",
            Some((what, _)) if sqlstate.starts_with("22") => what,
            _ => message,
        };
        Self {
            sqlstate: sqlstate.to_owned(),
            message: message.to_owned(),
            routine: String::new(),
        }
    }

    /// Reads the fields of an ErrorResponse.
    pub(crate) fn from_fields(mut fields: ErrorFields<'_>) -> Self {
        let (mut sqlstate, mut message, mut routine) = Default::default();
        while let Ok(Some(field)) = fields.next() {
            let value = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => sqlstate = value(),
                b'M' => message = value(),
                b'R' => routine = value(),
                _ => {}
            }
        }
        let sqlstate: String = sqlstate;
        let message: String = message;
        Self {
            routine,
            ..Self::new(&sqlstate, &message)
        }
    }

    fn class(&self) -> Class {
        match self.sqlstate.as_str() {
            "28000" | "28P01" => Class::Authentication,
            "3D000" | "3F000" | "42P01" | "42704" => Class::Missing,
            "55006" => Class::SlotInUse,
            "57P01" | "57P02" | "57P03" => Class::Shutdown,
            "53300" | "53400" => Class::TooManyConnections,
            "42501" => Class::Permission,
            // The memory of the server itself; damaged data, such as a missing chunk of a large value.
            "53200" | "XX001" => Class::Unsendable,
            "XX000" if self.is_of_memory() => Class::Unsendable,
            // A value that is no text in UTF-8 (22021, 22P05) or can't be printed; a buffer's limit.
            code if code.starts_with("22") || code.starts_with("54") => Class::Unsendable,
            "25P03" | "57P05" => Class::Lost,
            code if code.starts_with("08") => Class::Lost,
            _ => Class::Other,
        }
    }

    /// Whether more memory was asked for than one value may have.
    ///
    /// Source: PostgreSQL, mcxt.c: `MemoryContextSizeFailure` from 17 on, before each function that allocates.
    fn is_of_memory(&self) -> bool {
        let allocators = ["MemoryContext", "palloc", "repalloc", "AllocSet"];
        allocators.iter().any(|name| self.routine.starts_with(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(sqlstate: &str, message: &str) -> Class {
        PostgresError::Server(ServerError::new(sqlstate, message)).class()
    }

    #[test]
    fn a_value_that_the_server_quotes_is_not_kept() {
        let message = "invalid input syntax for type uuid: \"4111 1111 1111 1111\"";
        let error = ServerError::new("22P02", message);
        assert_eq!(
            error.to_string(),
            "invalid input syntax for type uuid (SQLSTATE 22P02)"
        );
    }

    #[test]
    fn classes_follow_the_sqlstate() {
        assert_eq!(class("28P01", ""), Class::Authentication);
        assert_eq!(class("3D000", ""), Class::Missing);
        assert_eq!(class("57P01", ""), Class::Shutdown);
        assert_eq!(class("53300", ""), Class::TooManyConnections);
        assert_eq!(class("42501", ""), Class::Permission);
        assert_eq!(class("08006", ""), Class::Lost);
        assert_eq!(class("55006", ""), Class::SlotInUse);
        for unsendable in ["22021", "22P05", "54000", "53200", "XX001"] {
            assert_eq!(class(unsendable, ""), Class::Unsendable, "{unsendable}");
        }
        assert_eq!(class("XX000", "cache lookup failed"), Class::Other);
    }

    #[test]
    fn the_routine_tells_what_a_message_says_in_any_language() {
        for (routine, of) in [
            ("palloc", Class::Unsendable),
            ("MemoryContextSizeFailure", Class::Unsendable),
            ("getTypeOutputInfo", Class::Other),
        ] {
            let error = ServerError {
                routine: routine.to_owned(),
                ..ServerError::new("XX000", "ung\u{fc}ltige Gr\u{f6}\u{df}e")
            };
            assert_eq!(PostgresError::Server(error).class(), of, "{routine}");
        }
    }
}
