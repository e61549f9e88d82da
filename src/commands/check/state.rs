//! What a migration has left to do, the relay's rights, and what is known of the rows that stand.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Client;

use super::{Finding, FindingOutcome, Report, chain, shown, unknown};
use crate::config::{Config, Mark, Mode, Start};
use crate::mark::change::{self, Carry, Change};
use crate::postgres::catalog::Table;
use crate::postgres::compatibility::{self, Incompatibility, Order};
use crate::state::identity::{self, IdentityError, IdentityVerdict};
use crate::state::rename;
use crate::state::schema::{self, Lacking, MigrateError, MigrateOptions, Part, Step, StepState};
use crate::text::paste::shell_word;

/// Rows are counted up to here: `check` must stay quick on any table.
const ROWS_COUNTED_MAX: i64 = 100_000;

pub(super) async fn look(client: &Client, config: &Config, table: &Table, report: &mut Report) {
    if steps(client, config, report).await != Progress::Readable {
        return;
    }
    let Some(outbox) = home(client, table, report).await else {
        return;
    };
    numbers(client, config, table, &outbox, report).await;
    start(client, config, table, &outbox, report).await;
    mark(client, config, table, &outbox, report).await;
}

/// Whether the state stands and the relay may read it and the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Readable,
    Lacking,
}

/// What a migration has left to do, in its order, also where something is missing that comes before it.
pub(super) async fn steps(client: &Client, config: &Config, report: &mut Report) -> Progress {
    let role = match client.query_one("SELECT current_user::text", &[]).await {
        Ok(row) => row.get::<_, String>(0),
        Err(error) => {
            report.push(unknown("state", error));
            return Progress::Lacking;
        }
    };
    let options = MigrateOptions {
        relay_role: Some(role),
        ..MigrateOptions::default()
    };
    let Some(steps) = planned(client, config, &options, report).await else {
        return Progress::Lacking;
    };
    for step in &steps {
        left_to_do(step, &options, report);
    }
    let is_done = |step: &Step| step.state == StepState::AlreadyThere;
    let has_state = steps
        .iter()
        .any(|step| step.part == Part::State && is_done(step));
    // What only people read is no reason to say less of the rows.
    let mut needed = steps
        .iter()
        .filter(|step| step.part == Part::Grant && !is_for_people(step));
    let progress = match has_state && needed.all(is_done) {
        true => Progress::Readable,
        false => Progress::Lacking,
    };
    let left = steps.into_iter();
    report.steps = left
        .filter(|step| step.state == StepState::Needed)
        .collect();
    progress
}

/// The steps of a migration, as they are once what it asks for stands.
async fn planned(
    client: &Client,
    config: &Config,
    options: &MigrateOptions,
    report: &mut Report,
) -> Option<Vec<Step>> {
    let mut is_closed = false;
    match schema::plan(client, config, options).await {
        Ok(steps) => return Some(steps),
        // The findings on the table have said so already.
        Err(MigrateError::MarkNeedsColumn { .. } | MigrateError::NoSchema { .. }) => {}
        Err(error @ MigrateError::StateDenied { .. }) => {
            is_closed = true;
            report.push(Finding {
                is_step: true,
                ..refused(&error, options)
            });
        }
        Err(error) => {
            report.push(refused(&error, options));
            return None;
        }
    }
    let options = MigrateOptions {
        lacking: Lacking::Foresee,
        ..options.clone()
    };
    let mut steps = schema::plan(client, config, &options).await.ok()?;
    // The state alone may know what slot and publication are called.
    steps.retain(|step| !(is_closed && step.part == Part::Publication));
    Some(steps)
}

fn is_for_people(step: &Step) -> bool {
    step.description.contains("status view")
}

/// The name under which the state stands; nothing where it can't follow its table.
async fn home(client: &Client, table: &Table, report: &mut Report) -> Option<String> {
    let (schema, name) = (&table.layout.schema, &table.layout.table);
    let outbox = shown(table);
    let home = match rename::home(client, schema, name).await {
        Ok(home) => home,
        Err(error) => {
            report.push(Finding::warning("state", chain(&error), ""));
            return Some(outbox);
        }
    };
    if let Some(refusal) = home.refusal(&outbox) {
        report.push(Finding::missing("state", refusal.text, refusal.remedy));
        return None;
    }
    let key = home.key(&outbox).to_owned();
    if key != outbox {
        report.push(Finding::ok(
            "state",
            format!("stands under `{key}`, the table's former name: the relay takes it along when it starts"),
        ));
    }
    Some(key)
}

fn migrate_command(options: &MigrateOptions) -> String {
    let role = options.relay_role.as_deref().unwrap_or_default();
    let role = shell_word(role);
    format!("`outboxd migrate --relay-role {role}`, as the owner of table and database; or:")
}

fn refused(error: &MigrateError, options: &MigrateOptions) -> Finding {
    let remedy = match error {
        MigrateError::StateDenied { .. } => migrate_command(options)
            .trim_end_matches("; or:")
            .to_owned(),
        error => error.hint().unwrap_or_else(|| bypass(error, options)),
    };
    Finding::missing("state", chain(error), remedy)
}

/// Policies that would hide rows are the one thing that keeps a role from looking and that its rights say nothing of.
fn bypass(error: &MigrateError, options: &MigrateOptions) -> String {
    let role = options.relay_role.as_deref().unwrap_or_default();
    match error.is_of_policies() {
        true => format!("ALTER ROLE {} BYPASSRLS;", escape_identifier(role)),
        false => String::new(),
    }
}

/// One finding for a step: what stands is ok, what people alone miss is a warning.
fn left_to_do(step: &Step, options: &MigrateOptions, report: &mut Report) {
    let what = match step.part {
        Part::State | Part::Index => "state",
        Part::View => "view",
        Part::Publication => "publication",
        Part::Grant => "right",
        // The table has its own finding, the slot too, and the function is the application's affair.
        Part::Table | Part::Start | Part::Claim | Part::Slot | Part::Function => return,
    };
    let outcome = match (step.state, step.part) {
        (StepState::AlreadyThere, _) => FindingOutcome::Ok,
        (StepState::Skipped(_), _) | (_, Part::View | Part::Index) => FindingOutcome::Warning,
        (StepState::Needed, _) if is_for_people(step) => FindingOutcome::Warning,
        (StepState::Needed, _) => FindingOutcome::Missing,
    };
    let detail = match step.state {
        StepState::AlreadyThere => step.description.clone(),
        StepState::Needed => format!("{} is not there", step.description),
        StepState::Skipped(why) => format!("{}: {why}", step.description),
    };
    let remedy = match (step.state, step.part) {
        (StepState::AlreadyThere, _) => None,
        (_, Part::State | Part::Index | Part::View) => {
            let command = migrate_command(options);
            Some(command.trim_end_matches("; or:").to_owned())
        }
        _ => {
            let sql: Vec<&str> = step
                .sql
                .lines()
                .filter(|line| !line.starts_with("--"))
                .collect();
            Some(format!("{}\n{}", migrate_command(options), sql.join("\n")))
        }
    };
    report.push(Finding {
        is_step: true,
        ..Finding::new(what, outcome, detail, remedy)
    });
}

async fn numbers(
    client: &Client,
    config: &Config,
    table: &Table,
    outbox: &str,
    report: &mut Report,
) {
    if table.seq.is_none() {
        return;
    }
    let verdict = match verdict(client, config.source.mark, table, outbox).await {
        Ok(verdict) => verdict,
        Err(error) => {
            return report.push(Finding::warning("numbers", chain(&error), ""));
        }
    };
    report.push(match verdict {
        IdentityVerdict::Same => Finding::ok("numbers", "they are those that the relay knows"),
        IdentityVerdict::NewGeneration { why } => Finding::warning(
            "numbers",
            why,
            "the relay begins a new generation by itself",
        ),
        IdentityVerdict::Halt { why, remedy } => {
            let mode = crate::postgres::compatibility::mode_name(config.source.mode);
            Finding::missing("numbers", format!("{mode} would halt: {why}"), remedy)
        }
    });
}

/// What the relay would say of the numbers; where nothing is stored of them, whether they are fit to begin with.
async fn verdict(
    client: &Client,
    mark: Mark,
    table: &Table,
    outbox: &str,
) -> Result<IdentityVerdict, IdentityError> {
    let now = identity::read(client, table).await?;
    let stored = identity::load(client, outbox).await?;
    let tail = match mark {
        Mark::Ledger => identity::ledger_tail(client, outbox).await?,
        Mark::SentAt | Mark::Delete | Mark::None => None,
    };
    let evidence = identity::evidence(client, table, mark, tail).await?;
    let stored = stored.as_ref().unwrap_or(&now);
    Ok(identity::compare(mark, stored, &now, &evidence))
}

/// Rows that stand before anything is known of them need a decision, and to be read an order.
async fn start(client: &Client, config: &Config, table: &Table, outbox: &str, report: &mut Report) {
    let known =
        "SELECT start IS NOT NULL, start = 'now', caught_up FROM outboxd.outbox WHERE outbox = $1";
    let known = match client.query_opt(known, &[&outbox]).await {
        Ok(row) => row.map(|row| (row.get(0), row.get::<_, Option<bool>>(1), row.get(2))),
        Err(error) => return report.push(unknown("start", error)),
    };
    let (is_decided, is_now, is_caught_up) = known.unwrap_or((false, None, false));
    let decided = is_now.map(|is_now: bool| match is_now {
        true => Start::Now,
        false => Start::All,
    });
    let source = &config.source;
    let order = compatibility::order(source.mark, source.order_column.as_deref(), table);
    let is_read = source.mode == Mode::Replication && !is_caught_up && is_now != Some(true);
    let is_skipped = !is_decided && source.start == Some(Start::Now);
    let needs_order = is_read && !is_skipped && order == Order::Untold;
    let is_unclear = !is_decided && !is_caught_up && source.start.is_none();
    if !needs_order && !is_unclear {
        return;
    }
    let count = format!(
        "SELECT count(*) FROM (SELECT FROM {} LIMIT $1) rows",
        table.name()
    );
    let rows: i64 = match client.query_one(&count, &[&ROWS_COUNTED_MAX]).await {
        Ok(row) => row.get(0),
        Err(error) => return report.push(unknown("start", error)),
    };
    if rows == 0 {
        return;
    }
    if !is_unclear {
        let Incompatibility { text, remedy } = compatibility::untold(source.mark, table, decided);
        return report.push(Finding::missing("start", text, remedy));
    }
    let many = if rows == ROWS_COUNTED_MAX {
        "at least "
    } else {
        ""
    };
    report.push(Finding::missing(
        "start",
        format!("the table holds {many}{rows} rows and nothing is known of them"),
        compatibility::start_remedy(source.mode, order),
    ));
}

/// What follows from another mark than before.
async fn mark(client: &Client, config: &Config, table: &Table, outbox: &str, report: &mut Report) {
    let carried = match change::judge(client, outbox, &config.source, table).await {
        Ok(Change::Unchanged | Change::Record) => return,
        Ok(Change::Refuse(refusal)) => {
            return report.push(Finding::missing("mark", refusal.text, refusal.remedy));
        }
        Err(error) => return report.push(Finding::warning("mark", chain(&error), "")),
        Ok(Change::Carry(Carry::LedgerToSentAt)) => {
            "the relay sets `sent_at` of the rows that the ledger knows as sent"
        }
        Ok(Change::Carry(Carry::SentAtToLedger)) => {
            "the relay enters the rows that carry `sent_at` into the ledger"
        }
    };
    report.push(Finding::ok(
        "mark",
        format!("it is another one than before: {carried}"),
    ));
}

/// The slot that polling does not use is named by [`super::stream`].
pub(super) fn uses_slot(config: &Config) -> bool {
    config.source.mode == Mode::Replication
}
