//! What can go wrong in the demo, in the words of the person who runs it.

use std::path::PathBuf;

/// Why the demo could not judge the relay.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("cannot find PostgreSQL's `initdb` and `postgres`")]
    NoPostgres,
    #[error("cannot find `initdb` and `postgres` in `{0}`")]
    NotPostgres(PathBuf),
    #[error("cannot prepare `{path}`")]
    Scratch {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start `{program}`")]
    Spawn {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{command}` failed ({status}):\n{output}")]
    Command {
        command: String,
        status: std::process::ExitStatus,
        output: String,
    },
    #[error("the throwaway PostgreSQL did not come up; its log ends with:\n{log}")]
    PostgresDown { log: String },
    #[error("cannot {action} in the throwaway PostgreSQL")]
    Sql {
        action: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("cannot {action} on broker `{brokers}`")]
    Broker {
        action: &'static str,
        brokers: String,
        #[source]
        source: rdkafka::error::KafkaError,
    },
    #[error("cannot configure a client of Kafka")]
    Client(#[source] crate::kafka::KafkaError),
    #[error("cannot create topic `{topic}`: {code}")]
    Topic {
        topic: String,
        code: rdkafka::types::RDKafkaErrorCode,
    },
    #[error("the relay ended by itself ({status}); its log ends with:\n{log}")]
    RelayEnded {
        status: std::process::ExitStatus,
        log: String,
    },
    #[error("the relay published nothing for {seconds} s; its log ends with:\n{log}")]
    RelaySilent { seconds: u64, log: String },
    #[error("a part of the demo ended early")]
    Part(#[source] tokio::task::JoinError),
    #[error("interrupted")]
    Interrupted,
}

impl DemoError {}
