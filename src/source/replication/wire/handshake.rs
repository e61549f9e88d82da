//! The first exchange on a replication connection: who we are, and the proof.
//!
//! Never sends a password in clear text where another machine could listen in.

use std::time::Duration;

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::framing::{self, FrameReader};
use super::{ReplicationConnection, server_error};
use crate::postgres::{
    CLEAR_TEXT, ChannelBinding, ConnectOptions, FORMAT_SETTINGS, METHOD, NO_PASSWORD, NOT_BOUND,
    PostgresError, SERVER_PROOF, TCP_USER_TIMEOUT,
};

/// What the connection under the exchange can be trusted with.
pub(super) struct Channel {
    /// Whether only the server that we mean can read what we send.
    pub(super) is_private: bool,
    /// What the proof can be bound to.
    pub(super) end_point: Option<Vec<u8>>,
}

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
        channel: Channel,
    ) -> Result<(), PostgresError> {
        let binding = options.tls.channel_binding;
        let password = options.password.as_ref().map(|secret| secret.reveal());
        let password = || password.ok_or(PostgresError::Authentication(NO_PASSWORD));
        match next(&mut self.reader).await? {
            Message::AuthenticationSasl(body) => {
                let offered = offers(&body)?;
                let mechanism = mechanism(binding, offered, channel.end_point)?;
                self.scram(mechanism, password()?).await?;
            }
            _ if binding == ChannelBinding::Require => {
                return Err(PostgresError::Authentication(NOT_BOUND));
            }
            Message::AuthenticationOk => return Ok(()),
            Message::AuthenticationCleartextPassword if channel.is_private => {
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

    /// Runs SCRAM, in which the server proves that it knows the password too.
    async fn scram(
        &mut self,
        (mechanism, binding): (&'static str, sasl::ChannelBinding),
        password: &str,
    ) -> Result<(), PostgresError> {
        let mut scram = ScramSha256::new(password.as_bytes(), binding);
        self.writer
            .send(|buffer| frontend::sasl_initial_response(mechanism, scram.message(), buffer))
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

/// The mechanisms of SCRAM that a server offers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Offered {
    plain: bool,
    bound: bool,
}

pub(super) fn offers(body: &AuthenticationSaslBody) -> Result<Offered, PostgresError> {
    let mut offered = Offered::default();
    let mut mechanisms = body.mechanisms();
    while let Some(name) = mechanisms.next().map_err(|_| unexpected())? {
        offered.plain |= name == SCRAM_SHA_256;
        offered.bound |= name == SCRAM_SHA_256_PLUS;
    }
    Ok(offered)
}

/// Chooses a mechanism, bound to the server's certificate where both sides can.
///
/// A server that can bind and did not offer it notices from our answer that somebody took the offer away.
/// Source: RFC 5802, 6; libpq.
fn mechanism(
    wanted: ChannelBinding,
    offered: Offered,
    end_point: Option<Vec<u8>>,
) -> Result<(&'static str, sasl::ChannelBinding), PostgresError> {
    let end_point = end_point.filter(|_| wanted != ChannelBinding::Disable);
    match end_point {
        Some(end_point) if offered.bound => {
            let binding = sasl::ChannelBinding::tls_server_end_point(end_point);
            Ok((SCRAM_SHA_256_PLUS, binding))
        }
        _ if wanted == ChannelBinding::Require => Err(PostgresError::Authentication(NOT_BOUND)),
        _ if !offered.plain => Err(PostgresError::Authentication(METHOD)),
        Some(_) => Ok((SCRAM_SHA_256, sasl::ChannelBinding::unrequested())),
        None => Ok((SCRAM_SHA_256, sasl::ChannelBinding::unsupported())),
    }
}

/// The next message that is neither a notice nor an error.
async fn next(reader: &mut FrameReader) -> Result<Message, PostgresError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The mechanism and the first letters of what SCRAM says about binding.
    fn choice(
        wanted: ChannelBinding,
        (plain, bound): (bool, bool),
        end_point: Option<&[u8]>,
    ) -> Option<(&'static str, String)> {
        let offered = Offered { plain, bound };
        let (name, binding) = mechanism(wanted, offered, end_point.map(<[u8]>::to_vec)).ok()?;
        let scram = ScramSha256::new(b"secret", binding);
        let said = String::from_utf8_lossy(scram.message());
        let said = said.split(',').next().unwrap_or_default().to_owned();
        Some((name, said))
    }

    #[test]
    fn the_proof_is_bound_where_both_sides_can_and_a_stolen_offer_is_told() {
        use ChannelBinding::{Disable, Prefer, Require};
        let (both, plain) = ((true, true), (true, false));
        let own = Some(&b"hash"[..]);
        let bound = Some((SCRAM_SHA_256_PLUS, "p=tls-server-end-point".to_owned()));
        let with = |said: &str| Some((SCRAM_SHA_256, said.to_owned()));
        assert_eq!(choice(Prefer, both, own), bound);
        assert_eq!(choice(Require, both, own), bound);
        assert_eq!(choice(Disable, both, own), with("n"));
        assert_eq!(choice(Prefer, plain, own), with("y"));
        assert_eq!(choice(Prefer, both, None), with("n"));
        assert_eq!(choice(Require, plain, own), None);
        assert_eq!(choice(Require, both, None), None);
        assert_eq!(choice(Prefer, (false, false), own), None);
    }
}
