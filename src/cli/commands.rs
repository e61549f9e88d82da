//! What each command does.

use std::error::Error;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Common, ExitStatus, Form, Migrate, complain, load, print};
use crate::commands::demo::{DemoOptions, DemoOutcome};
use crate::commands::{check, migrate};
use crate::config::Config;
use crate::observe::admin::Admin;
use crate::observe::metrics::Metrics;
use crate::observe::status::StatusCell;
use crate::observe::{status, telemetry};
use crate::postgres::slot::{self, Consent};
use crate::relay::session;
use crate::relay::supervise::Supervisor;
use crate::state::names::{self, NamesError};
use crate::state::schema::{self, MigrateOptions};
use crate::text::chain;

/// Says what failed, each cause on a line of its own.
pub(super) fn failed(failure: &dyn Error, hint: Option<&str>) -> ExitStatus {
    let mut text = failure.to_string();
    let mut cause = failure.source();
    while let Some(next) = cause {
        text.push_str("\n  caused by: ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    complain(&text, hint);
    ExitStatus::Failed
}

/// Prints an answer for people or for programs.
pub(super) fn show(answer: &(impl std::fmt::Display + serde::Serialize), json: bool) {
    match serde_json::to_string_pretty(answer) {
        Ok(text) if json => super::print_as_it_is(&text),
        _ => print(&answer.to_string()),
    }
}

/// Publishes until SIGTERM or SIGINT, which are heeded before anything else is done: they may come at once.
pub(super) async fn run(common: &Common) -> ExitStatus {
    let stop = CancellationToken::new();
    if let Err(failure) = stop_on_signals(&stop) {
        return failed(&failure, None);
    }
    match load(common) {
        Ok(config) => publish(config, stop).await,
        Err(outcome) => outcome,
    }
}

async fn publish(config: Config, stop: CancellationToken) -> ExitStatus {
    let _log = match telemetry::start(&config.log) {
        Ok(guard) => guard,
        Err(failure) => {
            failed(&failure, None);
            return ExitStatus::Misused;
        }
    };
    let config = Arc::new(config);
    let (metrics, cell) = (Arc::new(Metrics::new()), StatusCell::new(&config.source));
    let admin = match Admin::start(&config.admin.listen, cell.clone(), metrics.clone()).await {
        Ok(admin) => admin,
        Err(failure) => return failed(&failure, None),
    };
    info!(version = env!("CARGO_PKG_VERSION"), "outboxd started");
    for (property, reason) in config.kafka.weaknesses() {
        warn!(property, reason, "the connection to Kafka is not protected");
    }
    let done = Supervisor::new(config, metrics, cell, stop).run().await;
    admin.stop().await;
    match done {
        Ok(()) => ExitStatus::Done,
        Err(failure) => {
            error!(error = %chain(&failure), "outboxd can't run");
            failed(&failure, None);
            ExitStatus::Misused
        }
    }
}

/// SIGTERM and SIGINT drain; a second one ends the process at once. SIGHUP is ignored: the configuration is read once,
/// and files with secrets at each connect.
fn stop_on_signals(stop: &CancellationToken) -> std::io::Result<()> {
    // The handler stays when its stream is dropped.
    let _ = signal(SignalKind::hangup())?;
    // A log that is as large as its file may be loses lines, and ends nobody: `ulimit -f`.
    let _ = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stop.is_cancelled() {
                crate::kafka::native::exit(1);
            }
            info!("asked to stop");
            stop.cancel();
        }
    });
    Ok(())
}

pub(super) async fn check(config: &Config, form: Form) -> ExitStatus {
    let report = check::run(config).await;
    match form {
        Form::Human => show(&report, false),
        // Nothing of a row stands in it: its commands are completed, too.
        Form::Json => match serde_json::to_string_pretty(&report) {
            Ok(text) => print(&text),
            Err(failure) => return failed(&failure, None),
        },
        Form::Script => super::print_as_it_is(report.script().trim_end()),
    }
    if report.is_complete() {
        ExitStatus::Done
    } else {
        ExitStatus::Failed
    }
}

pub(super) async fn migrate(config: &Config, arguments: &Migrate) -> ExitStatus {
    let options = MigrateOptions {
        relay_role: arguments.relay_role.clone(),
        application_role: arguments.application_role.clone(),
        partition_rows: arguments.partitioned.then_some(arguments.partition_rows),
        adopt: arguments.adopt,
        ..MigrateOptions::default()
    };
    if arguments.print {
        return match schema::script(config, &options) {
            Ok(script) => {
                print(&script);
                ExitStatus::Done
            }
            Err(failure) => failed(&failure, failure.hint().as_deref()),
        };
    }
    let (session, config) = match resolve(config).await {
        Ok(resolved) => resolved,
        Err(outcome) => return outcome,
    };
    match migrate::run(&session.client, &config, &options, &mut std::io::stdout()).await {
        Ok(()) => ExitStatus::Done,
        Err(failure) => failed(&failure, failure.hint().as_deref()),
    }
}

pub(super) async fn status(config: &Config, json: bool) -> ExitStatus {
    match status::ask(config).await {
        Ok(answer) => {
            show(&answer, json);
            let Some(text) = answer.another_relay() else {
                return ExitStatus::Done;
            };
            let hint = "set `admin.listen` to the address of this outbox's own relay; two relays on one machine need two";
            complain(text, Some(hint));
            ExitStatus::Failed
        }
        Err(failure) => {
            failed(&failure, None);
            ExitStatus::TryAgain
        }
    }
}

pub(super) async fn slot_status(config: &Config, json: bool) -> ExitStatus {
    let (session, config) = match resolve(config).await {
        Ok(resolved) => resolved,
        Err(outcome) => return outcome,
    };
    let name = &config.source.replication.slot;
    match slot::status(&session.client, name).await {
        Ok(Some(slot)) => {
            show(&slot, json);
            ExitStatus::Done
        }
        Ok(None) => {
            complain(
                &format!("slot `{name}` does not exist"),
                Some("`outboxd migrate` creates it"),
            );
            ExitStatus::Failed
        }
        Err(failure) => failed(&failure, None),
    }
}

pub(super) async fn slot_drop(config: &Config, yes: bool) -> ExitStatus {
    let (session, config) = match resolve(config).await {
        Ok(resolved) => resolved,
        Err(outcome) => return outcome,
    };
    let name = &config.source.replication.slot;
    match foreign(&session.client, &config).await {
        Ok(None) => {}
        Ok(Some(text)) => {
            let drops = names::drop_statement(name);
            complain(
                &text,
                Some(&format!(
                    "nothing is dropped; SQL drops it all the same: {drops}"
                )),
            );
            return ExitStatus::Failed;
        }
        Err(failure) => return failed(&failure, None),
    }
    let consent = if yes {
        Consent::Given
    } else {
        Consent::Missing
    };
    match slot::drop_slot(&session.client, name, consent).await {
        Ok(()) => {
            print(&format!("slot `{name}` is dropped"));
            ExitStatus::Done
        }
        Err(failure) => failed(&failure, None),
    }
}

pub(super) async fn demo(options: DemoOptions) -> ExitStatus {
    match crate::commands::demo::run(options).await {
        Ok(DemoOutcome::Passed) => ExitStatus::Done,
        Ok(DemoOutcome::Failed) => ExitStatus::Failed,
        Err(failure) => failed(&failure, None),
    }
}

/// Why a slot that stands is not this outbox's to drop.
async fn foreign(client: &Client, config: &Config) -> Result<Option<String>, NamesError> {
    let facts = names::facts(client, &config.source).await?;
    if facts.slot(&config.source.replication.slot).is_none() {
        return Ok(None);
    }
    let refused = names::slot_refused(&facts, &config.source)?;
    Ok(refused.map(|refusal| refusal.text))
}

/// Connects and finds out the names that the configuration leaves open.
pub(super) async fn resolve(
    config: &Config,
) -> Result<(crate::postgres::SqlConnection, Config), ExitStatus> {
    let session = connect(config).await?;
    let source = names::resolve(&session.client, &config.source).await;
    let source = source.map_err(|failure| failed(&failure, None))?;
    let config = Config {
        source,
        ..config.clone()
    };
    Ok((session, config))
}

async fn connect(config: &Config) -> Result<crate::postgres::SqlConnection, ExitStatus> {
    let connected = async {
        let options = session::connect_options(config)?;
        session::connect(&options, "command").await
    };
    connected.await.map_err(|failure| failed(&failure, None))
}
