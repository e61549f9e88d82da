//! What commands that ask the relay for something have in common: who asks, and what became of it.

use std::os::unix::fs::MetadataExt;

use clap::Args;
use serde_json::json;
use tokio_postgres::Client;

use super::commands::failed;
use super::{Outcome, complain, print, print_error};
use crate::hold::{self, Answer, Asker, Wished};

#[derive(Debug, Args)]
pub(super) struct Asking {
    /// Who asks; default: the user of the operating system.
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Write the wish and do not wait for the relay.
    #[arg(long)]
    no_wait: bool,
    /// Print JSON for programs.
    #[arg(long)]
    json: bool,
}

impl Asking {
    pub(super) fn asker(&self, note: Option<String>) -> Asker {
        Asker {
            actor: self.actor.clone().unwrap_or_else(user),
            note,
        }
    }
}

/// Says what is missing for a command that can't be undone.
pub(super) fn refuse(text: &str) -> Outcome {
    complain(text, None);
    Outcome::Misused
}

/// Waits for the relay and says what became of the wish.
pub(super) async fn fulfil(
    client: &Client,
    outbox: &str,
    wished: &Wished,
    asking: &Asking,
) -> Outcome {
    let count = wished.keys.len() + wished.kept.len();
    if count == 0 {
        tell(asking, 0, "done", "there is nothing to do");
        return Outcome::Done;
    }
    if asking.no_wait {
        tell(asking, count, "asked", "the relay is asked for it");
        return Outcome::Done;
    }
    if !asking.json {
        print_error("waiting for the relay …");
    }
    match hold::wait(client, outbox, wished).await {
        Ok(answer) => told(asking, count, &answer),
        Err(failure) => failed(&failure, None),
    }
}

fn told(asking: &Asking, count: usize, answer: &Answer) -> Outcome {
    let (word, text, outcome) = match answer {
        Answer::Done => (
            "released",
            "released: the rows are published in their order".to_owned(),
            Outcome::Done,
        ),
        Answer::Again {
            count,
            reason,
            error,
        } => (
            "again",
            format!("{count} at fault again ({reason}): {error}"),
            Outcome::Failed,
        ),
        Answer::NoRelay => (
            "no_relay",
            "no relay is running: it happens at the next start".to_owned(),
            Outcome::Done,
        ),
        Answer::NotYet => (
            "not_yet",
            "the relay has not done it yet; `outboxd status` says what it does, and the wish stays"
                .to_owned(),
            Outcome::TryAgain,
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
