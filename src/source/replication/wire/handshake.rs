//! The first exchange on a replication connection: who we are, and the proof.
//!
//! Never sends a password in clear text where another machine could listen in.

use std::time::Duration;

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::framing::{self, Reader};
use super::{ReplicationConnection, server_error};
use crate::postgres::{
    CLEAR_TEXT, ConnectOptions, FORMAT_SETTINGS, METHOD, NO_PASSWORD, PostgresError, SERVER_PROOF,
    TCP_USER_TIMEOUT,
};

impl ReplicationConnection {
    /// Says who we are and pins what values look like: the walsender obeys the role's settings else.
    pub(super) async fn introduce(
        &mut self,
        options: &ConnectOptions,
        wal_sender_timeout: Duration,
    ) -> Result<(), PostgresError> {
        let application_name = options.application_name("replication");
        let tcp_user_timeout = format!("{}ms", TCP_USER_TIMEOUT.as_millis());
        let wal_sender_timeout = format!("{}ms", wal_sender_timeout.as_millis());
        let parameters = [
            ("user", options.user.as_str()),
            ("database", &options.dbname),
            ("replication", "database"),
            ("application_name", &application_name),
            ("tcp_user_timeout", &tcp_user_timeout),
            ("wal_sender_timeout", &wal_sender_timeout),
        ];
        let parameters = parameters.into_iter().chain(FORMAT_SETTINGS);
        self.writer
            .send(|buffer| frontend::startup_message(parameters, buffer))
            .await
    }

    /// Answers what the server asks for until it lets us in.
    pub(super) async fn authenticate(
        &mut self,
        options: &ConnectOptions,
        is_local: bool,
    ) -> Result<(), PostgresError> {
        let password = options.password.as_ref().map(|secret| secret.reveal());
        let password = || password.ok_or(PostgresError::Authentication(NO_PASSWORD));
        match next(&mut self.reader).await? {
            Message::AuthenticationOk => return Ok(()),
            Message::AuthenticationCleartextPassword if is_local => {
                self.send_password(password()?.as_bytes()).await?;
            }
            Message::AuthenticationCleartextPassword => {
                return Err(PostgresError::Authentication(CLEAR_TEXT));
            }
            Message::AuthenticationMd5Password(body) => {
                let (user, password) = (options.user.as_bytes(), password()?.as_bytes());
                let hash = md5_hash(user, password, body.salt());
                self.send_password(hash.as_bytes()).await?;
            }
            Message::AuthenticationSasl(body) => self.scram(&body, password()?).await?,
            _ => return Err(PostgresError::Authentication(METHOD)),
        }
        match next(&mut self.reader).await? {
            Message::AuthenticationOk => Ok(()),
            _ => Err(unexpected()),
        }
    }

    async fn send_password(&mut self, password: &[u8]) -> Result<(), PostgresError> {
        self.writer
            .send(|buffer| frontend::password_message(password, buffer))
            .await
    }

    /// Runs SCRAM-SHA-256, in which the server proves that it knows the password too.
    async fn scram(
        &mut self,
        offer: &AuthenticationSaslBody,
        password: &str,
    ) -> Result<(), PostgresError> {
        let mechanisms = offer.mechanisms();
        let is_offered = mechanisms.filter(|name| Ok(*name == SCRAM_SHA_256)).next();
        if !matches!(is_offered, Ok(Some(_))) {
            return Err(PostgresError::Authentication(METHOD));
        }
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        self.writer
            .send(|buffer| frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), buffer))
            .await?;
        let Message::AuthenticationSaslContinue(body) = next(&mut self.reader).await? else {
            return Err(unexpected());
        };
        scram.update(body.data()).map_err(|_| disproved())?;
        self.writer
            .send(|buffer| frontend::sasl_response(scram.message(), buffer))
            .await?;
        let Message::AuthenticationSaslFinal(body) = next(&mut self.reader).await? else {
            return Err(unexpected());
        };
        scram.finish(body.data()).map_err(|_| disproved())
    }

    /// Waits until the server takes commands.
    pub(super) async fn await_ready(&mut self) -> Result<(), PostgresError> {
        loop {
            match next(&mut self.reader).await? {
                Message::ReadyForQuery(_) => return Ok(()),
                Message::BackendKeyData(body) => {
                    self.process_id = body.process_id();
                    self.secret_key = body.secret_key();
                }
                Message::ParameterStatus(_) => {}
                _ => return Err(unexpected()),
            }
        }
    }
}

/// The next message that is neither a notice nor an error.
async fn next(reader: &mut Reader) -> Result<Message, PostgresError> {
    loop {
        let mut message = reader.message().await?;
        match framing::parse(&mut message)? {
            Message::NoticeResponse(_) => {}
            Message::ErrorResponse(body) => return Err(server_error(&body)),
            message => return Ok(message),
        }
    }
}

fn disproved() -> PostgresError {
    PostgresError::Authentication(SERVER_PROOF)
}

fn unexpected() -> PostgresError {
    PostgresError::Protocol("a message that does not belong to the start-up".to_owned())
}
