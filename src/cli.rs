//! The command line: what can be asked, and what each answer exits with.

mod blocked;
mod commands;
#[cfg(test)]
mod documentation;
mod file;
mod letters;
#[cfg(test)]
mod reference;
mod request;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::commands::demo::DemoOptions;
use crate::config::{Config, ConfigErrors};
use crate::kafka::native::exit;
use crate::text::paste;

/// Relays a transactional outbox from PostgreSQL to Kafka: nothing lost, nothing reordered.
///
/// A service inserts its events into an `outbox` table in the transaction of its business change. outboxd reads
/// the committed rows, publishes them keyed by aggregate id and marks them sent.
///
/// Exit codes: 0 done, 1 failed, 2 wrong arguments or configuration, 75 try again.
#[derive(Debug, Parser)]
#[command(name = "outboxd", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Publish committed rows until SIGTERM.
    ///
    /// Starts even when PostgreSQL or Kafka is down: it retries with backoff up to 15 s and says what it is waiting for on
    /// `admin.listen` (/status, /metrics, /readyz, /livez). SIGTERM finishes the rows in flight and exits with 0.
    Run(Common),
    /// Report what is missing before `run`, and the SQL or setting that fixes it.
    ///
    /// Validates the file, connects to PostgreSQL and Kafka, and changes nothing. Reports everything that is missing, in the
    /// order in which to fix it, and exits with 1 if anything is.
    Check(Check),
    /// Create what a relay needs: outbox table, state, publication, slot, grants.
    ///
    /// Can be run again at any time; prints what it creates and what already exists.
    Migrate(Migrate),
    /// Show what the relay is doing: role, position, lag, waiting rows, last error.
    ///
    /// Asks the relay on `admin.listen`. If no relay answers, asks the database. The output says which of them answered.
    Status(Report),
    /// List, retry or skip blocked aggregates and paused topics.
    #[command(subcommand)]
    Blocked(blocked::Blocked),
    /// List, replay or discard dead letters.
    #[command(subcommand)]
    DeadLetters(letters::DeadLetters),
    /// Show or drop the replication slot.
    #[command(subcommand)]
    Slot(Slot),
    /// Kill the relay under load and count what the broker holds: nothing to install or configure.
    Demo(DemoOptions),
}

#[derive(Debug, Args)]
struct Common {
    /// The configuration: one file for one database; config/outboxd.toml explains every key.
    ///
    /// Default: the file named by the variable OUTBOXD_CONFIG, otherwise /etc/outboxd/outboxd.toml. Environment variables
    /// override the file: OUTBOXD_SOURCE__URL_FILE overrides `source.url_file`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Report {
    #[command(flatten)]
    common: Common,
    /// Print JSON for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    report: Report,
    /// Print one SQL script for psql that fixes everything SQL can fix; each part says which role runs it.
    #[arg(long, conflicts_with = "json")]
    script: bool,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug)]
enum Form {
    Human,
    Json,
    Script,
}

impl Check {
    fn form(&self) -> Form {
        match (self.script, self.report.json) {
            (true, _) => Form::Script,
            (false, true) => Form::Json,
            (false, false) => Form::Human,
        }
    }
}

#[derive(Debug, Args)]
struct Migrate {
    #[command(flatten)]
    common: Common,
    /// Print the SQL for an empty database without connecting to one.
    #[arg(long)]
    print: bool,
    /// The role that outboxd connects with; it gets the grants a relay needs. Without this option a group `outboxd_relay` is
    /// created, which needs the right to create roles.
    #[arg(long, value_name = "ROLE")]
    relay_role: Option<String>,
    /// The role of the application; it gets INSERT on the outbox and nothing else.
    #[arg(long, value_name = "ROLE")]
    application_role: Option<String>,
    /// Create the outbox as a table partitioned by ranges of `seq`: retention drops whole partitions.
    #[arg(long)]
    partitioned: bool,
    /// How many numbers each partition holds.
    #[arg(long, value_name = "ROWS", default_value_t = 1_000_000, requires = "partitioned", value_parser = clap::value_parser!(i64).range(100..))]
    partition_rows: i64,
    /// Take the table's numbers as they are now, after a restore or an upgrade that halted the relay.
    #[arg(long)]
    adopt: bool,
}

#[derive(Debug, Subcommand)]
enum Slot {
    /// Say who reads the slot, how far it is and what it retains.
    Status(Report),
    /// Drop the slot. Refused while somebody reads it.
    Drop(SlotDrop),
}

#[derive(Debug, Args)]
struct SlotDrop {
    #[command(flatten)]
    common: Common,
    /// Really drop it: what it alone would have delivered is then read from the table.
    #[arg(long)]
    yes: bool,
}

/// How a command ended, as an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExitStatus {
    Done,
    Failed,
    Misused,
    TryAgain,
}

impl ExitStatus {
    fn code(self) -> u8 {
        // 75 is EX_TEMPFAIL of sysexits.h.
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Misused => 2,
            Self::TryAgain => 75,
        }
    }
}

/// Parses the arguments, runs the command, says on stderr why it failed, and ends the process.
pub fn main() -> ! {
    let cli = Cli::parse();
    // The loop that publishes runs on this thread, all else on one worker; with two, rows by polling took 2 MB more and
    // went no faster.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start the runtime: {error}"), None);
            exit(ExitStatus::Failed.code());
        }
    };
    let outcome = runtime.block_on(dispatch(cli.command));
    // A look-up thread may still wait for a broker that is away: nothing of it is needed any more.
    runtime.shutdown_background();
    exit(outcome.code())
}

async fn dispatch(command: Command) -> ExitStatus {
    match command {
        Command::Run(common) => commands::run(&common).await,
        Command::Check(check) => match load(&check.report.common) {
            Ok(config) => commands::check(&config, check.form()).await,
            Err(outcome) => outcome,
        },
        Command::Migrate(migrate) => match load_for(&migrate) {
            Ok(config) => commands::migrate(&config, &migrate).await,
            Err(outcome) => outcome,
        },
        Command::Status(report) => match load(&report.common) {
            Ok(config) => commands::status(&config, report.json).await,
            Err(outcome) => outcome,
        },
        Command::Blocked(command) => blocked::run(command).await,
        Command::DeadLetters(command) => letters::run(command).await,
        Command::Slot(Slot::Status(report)) => match load(&report.common) {
            Ok(config) => commands::slot_status(&config, report.json).await,
            Err(outcome) => outcome,
        },
        Command::Slot(Slot::Drop(drop)) => match load(&drop.common) {
            Ok(config) => commands::slot_drop(&config, drop.yes).await,
            Err(outcome) => outcome,
        },
        Command::Demo(options) => commands::demo(options).await,
    }
}

fn load(common: &Common) -> Result<Config, ExitStatus> {
    load_by(common, Config::load)
}

fn load_by(
    common: &Common,
    read: impl FnOnce(&Path) -> Result<Config, ConfigErrors>,
) -> Result<Config, ExitStatus> {
    let file = file::find(common.config.as_deref()).map_err(|failure| {
        complain(&failure.to_string(), None);
        ExitStatus::Misused
    })?;
    if file != Path::new(file::USUAL) {
        paste::name(&file);
    }
    read(&file).map_err(|errors: ConfigErrors| {
        print_error(&format!("{errors}"));
        ExitStatus::Misused
    })
}

/// What is only printed needs no server, and no file that says where one is.
fn load_for(migrate: &Migrate) -> Result<Config, ExitStatus> {
    match migrate.print {
        true => load_by(&migrate.common, Config::load_unconnected),
        false => load(&migrate.common),
    }
}

/// Prints an error and what can be done about it.
fn complain(error: &str, hint: Option<&str>) {
    print_error(&format!("error: {error}"));
    if let Some(hint) = hint {
        print_error(&format!("hint: {hint}"));
    }
}

/// Prints a line on stderr; nobody is left to tell when that fails.
fn print_error(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", paste::complete(text));
}

/// How wide the terminal is that reads stdout; nothing where a program does.
fn terminal_columns() -> Option<usize> {
    let (columns, _) = terminal_size::terminal_size_of(std::io::stdout())?;
    Some(usize::from(columns.0))
}

/// Prints an answer for programs.
fn print_json(answer: &impl serde::Serialize) {
    match serde_json::to_string_pretty(answer) {
        Ok(text) => print_as_it_is(&text),
        Err(failure) => print_error(&format!("error: {failure}")),
    }
}

/// Prints what a program reads: no command in it is completed.
fn print_as_it_is(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a line on stdout; a reader that went away has read enough.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", paste::complete(text));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::broken;

    #[test]
    fn a_broken_configuration_ends_every_command_with_code_2() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("o.toml");
        let common = Common {
            config: Some(file.clone()),
        };
        for case in broken::cases().into_iter().step_by(10) {
            // The process's own variables are another test's.
            if case.env.is_empty() {
                std::fs::write(&file, &case.file).unwrap();
                assert_eq!(
                    load(&common).err(),
                    Some(ExitStatus::Misused),
                    "{}",
                    case.file
                );
            }
        }
        assert_eq!(ExitStatus::Misused.code(), 2);
    }
}
