//! `outboxd dead-letters`: rows that were set aside by `faults.policy = "dead_letter"`.

use clap::{Args, Subcommand};

use super::commands::{failed, show};
use super::request::{Asking, Opened, fulfil, open};
use super::{Common, ExitStatus, print};
use crate::commands::dead_letters::{LetterTable, Lines, Which};
use crate::postgres::SqlConnection;
use crate::text::paste::shell_word;

#[derive(Debug, Subcommand)]
pub(super) enum DeadLetters {
    /// List the dead letters: number, aggregate, row, since when, and why.
    List(List),
    /// Show one letter; the contents of its row only with --content.
    Show(Show),
    /// Publish letters again: the same row, with the same id, key and headers.
    ///
    /// With `faults.after_dead_letter = "follow"` all letters of an aggregate are published together, in order, and then the
    /// rows behind them; you can't replay a later one alone. A row that is still rejected becomes a dead letter again.
    ///
    /// Exits with 1 if a row is still rejected, and with 75 if the relay has not taken the request after 15 s. If no relay
    /// is running, the request is kept for the next one.
    ///
    /// Example: outboxd dead-letters replay --aggregate order 4711 --note 'topic allowed' --config outboxd.toml
    Replay(Replay),
    /// Discard letters permanently.
    ///
    /// They are never published. Who decided that, when and why is kept for at least 30 days.
    ///
    /// Example: outboxd dead-letters discard 12 13 --yes --note 'test data' --config outboxd.toml
    Discard(Discard),
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    common: Common,
    /// Print JSON for programs.
    #[arg(long)]
    json: bool,
    /// Include letters that were replayed or discarded, as far back as they are kept.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    common: Common,
    /// The letter's number.
    id: i64,
    /// Print JSON for programs.
    #[arg(long)]
    json: bool,
    /// Show the row itself, column by column: text as it is, other bytes in hex. It may be private.
    #[arg(long)]
    content: bool,
}

#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = false, args = ["ids", "aggregate", "all"])]
pub(super) struct Replay {
    #[command(flatten)]
    common: Common,
    /// The letters' numbers.
    ids: Vec<i64>,
    /// All letters of one aggregate.
    #[arg(long, num_args = 2, value_names = ["TYPE", "ID"])]
    aggregate: Option<Vec<String>>,
    /// All letters.
    #[arg(long)]
    all: bool,
    /// Why.
    #[arg(long, alias = "reason", value_name = "TEXT")]
    note: Option<String>,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
pub(super) struct Discard {
    #[command(flatten)]
    common: Common,
    /// The letters' numbers.
    #[arg(required = true)]
    ids: Vec<i64>,
    /// Really give them up.
    #[arg(long)]
    yes: bool,
    /// Why.
    #[arg(long, alias = "reason", value_name = "TEXT")]
    note: Option<String>,
    #[command(flatten)]
    asking: Asking,
}

/// Runs a command of this family.
pub(super) async fn run(command: DeadLetters) -> ExitStatus {
    match open(command.common(), command.refusal()).await {
        Ok(opened) => run_with(&opened, command).await,
        Err(outcome) => outcome,
    }
}

impl DeadLetters {
    fn common(&self) -> &Common {
        match self {
            Self::List(List { common, .. })
            | Self::Show(Show { common, .. })
            | Self::Replay(Replay { common, .. })
            | Self::Discard(Discard { common, .. }) => common,
        }
    }

    fn refusal(&self) -> Option<String> {
        let Self::Discard(Discard {
            yes: false,
            ids,
            note,
            ..
        }) = self
        else {
            return None;
        };
        let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
        let note = note.as_ref().map_or(String::new(), |note| {
            format!(" --note {}", shell_word(note))
        });
        Some(format!(
            "the letters would never be published; repeat with `--yes`: `outboxd dead-letters discard {} --yes{note}`",
            ids.join(" ")
        ))
    }
}

async fn run_with(opened: &Opened, command: DeadLetters) -> ExitStatus {
    let table = LetterTable {
        client: &opened.session.client,
        outbox: &opened.outbox,
    };
    let session = &opened.session;
    match command {
        DeadLetters::List(arguments) => list(&table, &arguments).await,
        DeadLetters::Show(arguments) => {
            let found = match arguments.content {
                true => table.open(arguments.id).await,
                false => table.find(arguments.id).await,
            };
            match found {
                Ok(letter) => show(&letter, arguments.json),
                Err(failure) => return failed(&failure, None),
            }
            ExitStatus::Done
        }
        DeadLetters::Replay(arguments) => replay(&table, session, arguments).await,
        DeadLetters::Discard(Discard {
            ids, note, asking, ..
        }) => match table.discard(&ids, &asking.asker(note, session)).await {
            Ok(letters) => discarded(&letters),
            Err(failure) => failed(&failure, None),
        },
    }
}

async fn list(table: &LetterTable<'_>, arguments: &List) -> ExitStatus {
    match table.list(arguments.all).await {
        Ok((letters, _)) if arguments.json => super::print_json(&letters),
        Ok((letters, _)) if letters.is_empty() => print("there are no dead letters"),
        Ok((letters, count)) => {
            print(&lines(&letters));
            if usize::try_from(count).is_ok_and(|count| count > letters.len()) {
                print(&format!("the oldest {} of {count}", letters.len()));
            }
        }
        Err(failure) => return failed(&failure, None),
    }
    ExitStatus::Done
}

async fn replay(table: &LetterTable<'_>, session: &SqlConnection, arguments: Replay) -> ExitStatus {
    let mut aggregate = arguments.aggregate.unwrap_or_default().into_iter();
    let which = match (aggregate.next(), aggregate.next()) {
        (Some(kind), Some(id)) => Which::Aggregate { kind, id },
        _ if arguments.all => Which::All,
        _ => Which::Ids(arguments.ids),
    };
    let asker = arguments.asking.asker(arguments.note, session);
    match table.replay(&which, &asker).await {
        Ok(requested) => fulfil(table.client, table.outbox, &requested, &arguments.asking).await,
        Err(failure) => failed(&failure, None),
    }
}

fn discarded(letters: &[crate::commands::dead_letters::DeadLetter]) -> ExitStatus {
    print(&format!("{} discarded", letters.len()));
    let mut told = Vec::new();
    for blocked in letters.iter().filter_map(|letter| letter.blocked.as_ref()) {
        if !told.contains(&blocked) {
            print(&format!(
                "what follows in the aggregate of `{blocked}` still becomes dead letters; \
                 `outboxd blocked retry {blocked}` replays those that are left and lets it go on"
            ));
            told.push(blocked);
        }
    }
    ExitStatus::Done
}

fn lines(letters: &[crate::commands::dead_letters::DeadLetter]) -> String {
    let terminal = super::terminal_columns();
    Lines { letters, terminal }.to_string()
}
