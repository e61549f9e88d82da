//! `outboxd status`: asks the relay, and the database where no relay answers.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Status, database, other};
use crate::config::{Config, ConfigError};
use crate::postgres::PostgresError;
use crate::state::names::NamesError;
use crate::text::chain;

const RELAY_TIMEOUT: Duration = Duration::from_secs(2);

/// A report and who gave it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    #[serde(flatten)]
    pub answered_by: AnsweredBy,
    #[serde(flatten)]
    pub status: Status,
}

/// Who gave a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answered_by", rename_all = "snake_case")]
pub(crate) enum AnsweredBy {
    Relay {
        address: String,
    },
    /// No relay of this table answered, for this reason.
    Database {
        no_relay: String,
        /// A relay of another outbox answered.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        another_relay: bool,
    },
}

/// Neither the relay nor the database answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatusError {
    #[error("cannot read the connection URL, and no relay answers: {no_relay}")]
    Url {
        no_relay: String,
        #[source]
        source: ConfigError,
    },
    #[error("cannot connect to the database, and no relay answers: {no_relay}")]
    Connect {
        no_relay: String,
        #[source]
        source: PostgresError,
    },
    #[error(transparent)]
    Names(#[from] NamesError),
    #[error("cannot read the status of `{outbox}` from the database")]
    Read {
        outbox: String,
        #[source]
        source: PostgresError,
    },
    #[error("cannot find the table `{outbox}` in the database")]
    NoTable { outbox: String },
}

/// Reports on the relay of this configuration, whether or not it runs.
pub(crate) async fn ask(config: &Config) -> Result<Answer, StatusError> {
    let (no_relay, another_relay) = match ask_relay(&config.admin.listen).await {
        Err(no_relay) => (no_relay, false),
        Ok(status) => match other::differs(&config.source, &status).await {
            None => {
                let address = config.admin.listen.clone();
                return Ok(Answer {
                    answered_by: AnsweredBy::Relay { address },
                    status,
                });
            }
            Some(theirs) => {
                let address = reachable(&config.admin.listen);
                let text = format!("another relay answers at {address}: it serves {theirs}");
                (text, true)
            }
        },
    };
    Ok(Answer {
        status: database::ask(&config.source, &no_relay).await?,
        answered_by: AnsweredBy::Database {
            no_relay,
            another_relay,
        },
    })
}

impl Answer {
    /// Says who answered in the place of the relay that was asked for.
    pub(crate) fn another_relay(&self) -> Option<&str> {
        match &self.answered_by {
            AnsweredBy::Database {
                no_relay,
                another_relay: true,
            } => Some(no_relay),
            _ => None,
        }
    }
}

/// Errors: why no relay answered, for people.
async fn ask_relay(listen: &str) -> Result<Status, String> {
    let address = reachable(listen);
    let url = format!("http://{address}/status");
    let asked = tokio::task::spawn_blocking(move || fetch(&url)).await;
    let text = asked.expect("asking does not panic")?;
    serde_json::from_str(&text)
        .map_err(|_| format!("what answers at {address} is not an outboxd of this version"))
}

fn fetch(url: &str) -> Result<String, String> {
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(RELAY_TIMEOUT))
        .proxy(None)
        .build()
        .new_agent();
    let text = agent
        .get(url)
        .call()
        .and_then(|mut answer| answer.body_mut().read_to_string());
    text.map_err(|error| chain(&error))
}

/// The address under which one asks a server that listens on every interface.
fn reachable(listen: &str) -> String {
    match listen.parse::<SocketAddr>() {
        Ok(address) if address.ip() == Ipv4Addr::UNSPECIFIED => {
            SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())).to_string()
        }
        Ok(address) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            SocketAddr::from((Ipv6Addr::LOCALHOST, address.port())).to_string()
        }
        _ => listen.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_on_every_interface_is_asked_on_the_loopback() {
        assert_eq!(reachable("0.0.0.0:9464"), "127.0.0.1:9464");
        assert_eq!(reachable("[::]:9464"), "[::1]:9464");
        assert_eq!(reachable("10.0.0.7:9464"), "10.0.0.7:9464");
        assert_eq!(reachable("localhost:9464"), "localhost:9464");
    }
}
