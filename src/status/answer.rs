//! `outboxd status`: asks the relay, and the database where no relay answers.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Status, database};
use crate::config::{Config, ConfigError};
use crate::names::NamesError;
use crate::postgres::PostgresError;
use crate::telemetry::chain;

const RELAY_TIMEOUT: Duration = Duration::from_secs(2);

/// A report and who gave it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    #[serde(flatten)]
    pub answered_by: AnsweredBy,
    #[serde(flatten)]
    pub status: Status,
}

/// Who gave a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answered_by", rename_all = "snake_case")]
pub enum AnsweredBy {
    Relay {
        address: String,
    },
    /// No relay of this table answered, for this reason.
    Database {
        no_relay: String,
    },
}

/// Neither the relay nor the database answered.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
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
pub async fn ask(config: &Config) -> Result<Answer, StatusError> {
    let table = Status::starting(&config.source).table;
    match ask_relay(&config.admin.listen, &table).await {
        Ok(status) => Ok(Answer {
            answered_by: AnsweredBy::Relay {
                address: config.admin.listen.clone(),
            },
            status,
        }),
        Err(no_relay) => Ok(Answer {
            status: database::ask(&config.source, &no_relay).await?,
            answered_by: AnsweredBy::Database { no_relay },
        }),
    }
}

/// Errors: why no relay of this table answered, for people.
async fn ask_relay(listen: &str, table: &str) -> Result<Status, String> {
    let address = reachable(listen);
    let url = format!("http://{address}/status");
    let asked = tokio::task::spawn_blocking(move || fetch(&url)).await;
    let text = asked.expect("asking does not panic")?;
    let status: Status = serde_json::from_str(&text)
        .map_err(|_| format!("what answers at {address} is not an outboxd of this version"))?;
    if status.table != table {
        let other = status.table;
        return Err(format!("the relay at {address} serves the table {other}"));
    }
    Ok(status)
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
