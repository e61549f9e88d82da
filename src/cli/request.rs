//! What commands about rows that are put aside have in common: what they open, who asks, and what became of it.

use std::os::unix::fs::MetadataExt;

use clap::Args;
use serde_json::json;
use tokio_postgres::Client;

use super::commands::{failed, resolve};
use super::{Common, ExitStatus, complain, load, print, print_error};
use crate::config::Config;
use crate::postgres::SqlConnection;
use crate::state::hold::{self, Answer, Asker, Requested};
use crate::state::lease::lease_key;

#[derive(Debug, Args)]
pub(super) struct Asking {
    /// Who asks; default: the user of the operating system.
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Write the request and do not wait for the relay.
    #[arg(long)]
    no_wait: bool,
    /// Print JSON for programs.
    #[arg(long)]
    json: bool,
}

impl Asking {
    /// Who asks and why, as the database can hold it.
    pub(super) fn asker(&self, note: Option<String>, session: &SqlConnection) -> Asker {
        let storable = |text: String| session.storable(&text).into_owned();
        Asker {
            actor: storable(self.actor.clone().unwrap_or_else(user)),
            note: note.map(storable),
        }
    }
}

/// What a command about rows that are put aside works with.
pub(super) struct Opened {
    pub config: Config,
    pub session: SqlConnection,
    /// The name in the state tables.
    pub outbox: String,
}

/// Reads the configuration and connects, unless `refusal` says what a command that can't be undone lacks.
pub(super) async fn open(common: &Common, refusal: Option<String>) -> Result<Opened, ExitStatus> {
    let config = load(common)?;
    if let Some(text) = refusal {
        complain(&text, None);
        return Err(ExitStatus::Misused);
    }
    let (session, config) = resolve(&config).await?;
    let outbox = lease_key(&config.source);
    Ok(Opened {
        config,
        session,
        outbox,
    })
}

/// Waits for the relay and says what became of the request.
pub(super) async fn fulfil(
    client: &Client,
    outbox: &str,
    requested: &Requested,
    asking: &Asking,
) -> ExitStatus {
    let count = requested.keys.len() + requested.kept.len();
    if count == 0 {
        tell(asking, 0, "done", "there is nothing to do");
        return ExitStatus::Done;
    }
    if asking.no_wait {
        tell(asking, count, "asked", "the relay is asked for it");
        return ExitStatus::Done;
    }
    if !asking.json {
        print_error("waiting for the relay …");
    }
    match hold::wait(client, outbox, requested).await {
        Ok(answer) => told(asking, count, &answer),
        Err(failure) => failed(&failure, None),
    }
}

fn told(asking: &Asking, count: usize, answer: &Answer) -> ExitStatus {
    let (word, text, outcome) = match answer {
        Answer::Done => (
            "released",
            "released: the rows are published in their order".to_owned(),
            ExitStatus::Done,
        ),
        Answer::Again {
            count,
            reason,
            error,
        } => (
            "again",
            format!("{count} still rejected ({reason}): {error}"),
            ExitStatus::Failed,
        ),
        Answer::NoRelay => (
            "no_relay",
            "no relay is running: it happens at the next start".to_owned(),
            ExitStatus::Done,
        ),
        Answer::NotYet => (
            "not_yet",
            "the relay has not done it yet; `outboxd status` says what it does, and the request stays"
                .to_owned(),
            ExitStatus::TryAgain,
        ),
    };
    tell(asking, count, word, &text);
    outcome
}

fn tell(asking: &Asking, asked: usize, outcome: &str, text: &str) {
    match asking.json {
        true => print(&json!({"asked": asked, "outcome": outcome, "text": text}).to_string()),
        false => print(text),
    }
}

/// The user of the operating system by name, or by number where no name is known.
fn user() -> String {
    let Ok(process) = std::fs::metadata("/proc/self") else {
        return std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned());
    };
    let id = process.uid().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, user) = (fields.next()?, fields.next()?, fields.next()?);
        (user == id).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("user {id}"))
}
