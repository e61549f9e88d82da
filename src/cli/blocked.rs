//! `outboxd blocked`: blocked aggregates and paused topics, and how they go on.

use clap::{Args, Subcommand};

use super::commands::{failed, show};
use super::request::{Asking, Opened, fulfil, open};
use super::{Common, ExitStatus, print};
use crate::commands::blocked::{BlockedTable, Lines, Request, Which};
use crate::postgres::catalog;
use crate::state::hold::{Asker, Requested};
use crate::text::paste::shell_word;

#[derive(Debug, Subcommand)]
pub(super) enum Blocked {
    /// List what is blocked: what, since when, how many rows wait, and why.
    List(List),
    /// Show one entry: the rejected row, the statement that selects it, and how to fix it.
    Show(Show),
    /// Publish the rejected row and the rows that wait behind it.
    ///
    /// First fix the cause: correct the row in the table (as the table's owner), the topic or the configuration. The rows
    /// are read from the table again, in order. If the rows behind it became dead letters, those are replayed.
    ///
    /// Exits with 1 if it is rejected again, and with 75 if the relay has not taken the request after 15 s. If no relay is
    /// running, the request is kept for the next one.
    ///
    /// Example: UPDATE outbox SET headers = NULL WHERE id = '…'; then
    /// outboxd blocked retry 1f0c9a2e --note 'headers removed' --config outboxd.toml
    Retry(Retry),
    /// Discard the rejected row permanently and publish the rows that wait behind it.
    ///
    /// The row is never published. Who decided that, when and why is kept for at least 30 days.
    ///
    /// Example: outboxd blocked skip 1f0c9a2e --yes --note 'sent by hand, ticket 4711' --config outboxd.toml
    Skip(Skip),
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    common: Common,
    /// Print JSON for programs.
    #[arg(long)]
    json: bool,
    /// Include entries that were resumed, as far back as they are kept.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    common: Common,
    /// The entry, as `list` names it.
    id: String,
    /// Print JSON for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Retry {
    #[command(flatten)]
    common: Common,
    /// The entry, as `list` names it.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    id: Option<String>,
    /// Everything that is blocked.
    #[arg(long)]
    all: bool,
    /// Why.
    #[arg(long, alias = "reason", value_name = "TEXT")]
    note: Option<String>,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
pub(super) struct Skip {
    #[command(flatten)]
    common: Common,
    /// The entry, as `list` names it.
    id: String,
    /// Really give the row up.
    #[arg(long)]
    yes: bool,
    /// Why; who reads it later should understand.
    #[arg(long, alias = "reason", value_name = "TEXT")]
    note: String,
    #[command(flatten)]
    asking: Asking,
}

/// Runs a command of this family.
pub(super) async fn run(command: Blocked) -> ExitStatus {
    match open(command.common(), command.refusal()).await {
        Ok(opened) => run_with(opened, command).await,
        Err(outcome) => outcome,
    }
}

impl Blocked {
    fn common(&self) -> &Common {
        match self {
            Self::List(List { common, .. })
            | Self::Show(Show { common, .. })
            | Self::Retry(Retry { common, .. })
            | Self::Skip(Skip { common, .. }) => common,
        }
    }

    fn refusal(&self) -> Option<String> {
        let Self::Skip(Skip {
            yes: false,
            id,
            note,
            ..
        }) = self
        else {
            return None;
        };
        let (word, note) = (shell_word(id), shell_word(note));
        Some(format!(
            "the row at fault of `{id}` would never be published; repeat with `--yes`: \
             `outboxd blocked skip {word} --yes --note {note}`"
        ))
    }
}

async fn run_with(opened: Opened, command: Blocked) -> ExitStatus {
    let Opened {
        config,
        session,
        outbox,
    } = opened;
    let table = match config.source.table_name() {
        Ok(name) => {
            let columns = &config.source.columns;
            let table = catalog::inspect(&session.client, &name.schema, &name.table, columns).await;
            table.ok()
        }
        Err(_) => None,
    };
    let table = BlockedTable {
        client: &session.client,
        outbox: &outbox,
        mark: config.source.mark,
        layout: table.as_ref().map(|table| &table.layout),
    };
    match command {
        Blocked::List(list) => match table.list(list.all).await {
            Ok(entries) if list.json => super::print_json(&entries),
            Ok(entries) if entries.is_empty() => print("nothing is blocked"),
            Ok(entries) => print(&lines(&entries)),
            Err(failure) => return failed(&failure, None),
        },
        Blocked::Show(entry) => match table.show(&entry.id).await {
            Ok(shown) => show(&shown, entry.json),
            Err(failure) => return failed(&failure, None),
        },
        Blocked::Retry(Retry {
            id, note, asking, ..
        }) => {
            let which = id.map_or(Which::All, Which::Id);
            let asker = asking.asker(note, &session);
            return request(&table, &which, Request::Retry, asking, asker).await;
        }
        Blocked::Skip(Skip {
            id, note, asking, ..
        }) => {
            let asker = asking.asker(Some(note), &session);
            return request(&table, &Which::Id(id), Request::Skip, asking, asker).await;
        }
    }
    ExitStatus::Done
}

async fn request(
    table: &BlockedTable<'_>,
    which: &Which,
    request: Request,
    asking: Asking,
    asker: Asker,
) -> ExitStatus {
    let entries = match table.request(which, request, &asker).await {
        Ok(entries) => entries,
        Err(failure) => return failed(&failure, None),
    };
    let requested = Requested {
        keys: entries.into_iter().map(|entry| entry.key).collect(),
        kept: Vec::new(),
    };
    fulfil(table.client, table.outbox, &requested, &asking).await
}

fn lines(entries: &[crate::commands::blocked::Blocked]) -> String {
    let terminal = super::terminal_columns();
    Lines { entries, terminal }.to_string()
}
