//! `outboxd check`: what stands between a configuration and a relay that works, with the remedy for each thing.
//!
//! Only looks: never creates, changes or publishes anything.

mod connection;
mod failover;
mod kafka;
mod marks;
mod retention;
mod room;
mod route;
mod script;
mod server;
mod state;
mod stream;
mod table;
mod writable;

use std::fmt;

use serde::Serialize;

use crate::config::Config;
use crate::postgres::catalog::Table;
use crate::postgres::{SqlConnection, connect};
use crate::state::names;
use crate::state::schema::Step;
use table::Looked;

/// How a finding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FindingOutcome {
    Ok,
    /// The relay works, and a person should know.
    Warning,
    /// The relay does not work without it.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub what: String,
    pub outcome: FindingOutcome,
    pub detail: String,
    /// The exact SQL, command or setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// A step of the migration mends it.
    #[serde(skip)]
    is_step: bool,
}

/// Everything that was looked at, in the order in which it was.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    pub findings: Vec<Finding>,
    /// What a migration has left to do.
    #[serde(skip)]
    steps: Vec<Step>,
}

impl Finding {
    fn ok(what: &str, detail: impl Into<String>) -> Self {
        Self::new(what, FindingOutcome::Ok, detail, None)
    }

    fn warning(what: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(what, FindingOutcome::Warning, detail, Some(remedy.into()))
    }

    fn missing(what: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(what, FindingOutcome::Missing, detail, Some(remedy.into()))
    }

    fn new(
        what: &str,
        outcome: FindingOutcome,
        detail: impl Into<String>,
        remedy: Option<String>,
    ) -> Self {
        Self {
            what: what.to_owned(),
            outcome,
            detail: detail.into(),
            remedy,
            is_step: false,
        }
    }
}

impl Report {
    /// One SQL script of all remedies, with comments that say who runs what.
    pub(crate) fn script(&self) -> String {
        script::script(self)
    }

    /// Nothing is missing: exit code 0.
    pub(crate) fn is_complete(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.outcome != FindingOutcome::Missing)
    }

    fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let outcome = match finding.outcome {
                FindingOutcome::Ok => "ok",
                FindingOutcome::Warning => "warning",
                FindingOutcome::Missing => "missing",
            };
            writeln!(f, "{outcome:<8} {}: {}", finding.what, finding.detail)?;
            let remedy = finding
                .remedy
                .as_deref()
                .filter(|remedy| !remedy.is_empty());
            for line in remedy.into_iter().flat_map(str::lines) {
                writeln!(f, "           {line}")?;
            }
        }
        let count = |outcome| {
            let with = self
                .findings
                .iter()
                .filter(|finding| finding.outcome == outcome);
            with.count()
        };
        let (missing, warnings) = (
            count(FindingOutcome::Missing),
            count(FindingOutcome::Warning),
        );
        write!(
            f,
            "{} checks, {missing} failed, {warnings} warnings",
            self.findings.len()
        )
    }
}

/// Looks at PostgreSQL and Kafka as the configuration names them.
///
/// Never fails: what cannot be reached or read is a finding. Takes up to 15 s where nobody answers.
pub(crate) async fn run(config: &Config) -> Report {
    let mut report = Report::default();
    let topics = match open(config).await {
        Err(finding) => {
            report.push(finding);
            route::fixed_topics(config)
        }
        Ok(session) => match names::resolve(&session.client, &config.source).await {
            Ok(source) => {
                let config = Config {
                    source,
                    ..config.clone()
                };
                look_at_postgres(&session, &config, &mut report).await
            }
            Err(error) => {
                report.push(Finding::missing("slot", chain(&error), ""));
                route::fixed_topics(config)
            }
        },
    };
    kafka::look(config, topics, &mut report).await;
    report
}

async fn open(config: &Config) -> Result<SqlConnection, Finding> {
    let failed = |error: &dyn std::error::Error| {
        let remedy = "`source.url` or `source.url_file` says where and as whom; the server's log says why it refuses";
        Finding::missing("PostgreSQL", chain(error), remedy)
    };
    let options = config
        .source
        .url
        .options()
        .map_err(|error| failed(&error))?;
    connect(&options, "check")
        .await
        .map_err(|error| failed(&error))
}

/// Gives back the topics that the rows in the table go to.
async fn look_at_postgres(
    session: &SqlConnection,
    config: &Config,
    report: &mut Report,
) -> Vec<String> {
    let client = &session.client;
    report.push(connection::finding(&session.security));
    match crate::postgres::obstacles::pooler(client).await {
        Ok(None) => {}
        Ok(Some(refusal)) => report.push(Finding::missing("pooler", refusal.text, refusal.remedy)),
        Err(error) => report.push(unknown("pooler", error)),
    }
    server::look(client, config, report).await;
    let table = match table::look(client, config, report).await {
        Looked::Usable(table) => table,
        Looked::Missing => {
            state::steps(client, config, report).await;
            stream::slot(client, config, report).await;
            return route::fixed_topics(config);
        }
        Looked::Unusable => return route::fixed_topics(config),
    };
    marks::look(client, config, &table, report).await;
    retention::look(client, config, &table, report).await;
    state::look(client, config, &table, report).await;
    stream::look(client, config, &table, report).await;
    route::look(client, config, &table, report).await
}

/// An error with what caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let cause_text = error.to_string();
        // Some errors repeat their cause in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        cause = error.source();
    }
    text
}

/// A finding for a statement that failed: what it would have told is not known.
fn unknown(what: &str, error: tokio_postgres::Error) -> Finding {
    let error = crate::postgres::PostgresError::from(error);
    Finding::warning(what, format!("cannot be looked at: {}", chain(&error)), "")
}

/// The table's name as people write it.
fn shown(table: &Table) -> String {
    format!("{}.{}", table.layout.schema, table.layout.table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_with_warnings_alone_is_complete() {
        let mut report = Report::default();
        report.push(Finding::ok("wal_level", "logical"));
        report.push(Finding::warning("mark", "rows are deleted", ""));
        assert!(report.is_complete());
        report.push(Finding::missing("slot", "lost", "SELECT 1;\nSELECT 2;"));
        assert!(!report.is_complete());
        assert_eq!(
            report.to_string(),
            "ok       wal_level: logical\nwarning  mark: rows are deleted\nmissing  slot: lost\n           \
             SELECT 1;\n           SELECT 2;\n3 checks, 1 failed, 1 warnings"
        );
    }
}
