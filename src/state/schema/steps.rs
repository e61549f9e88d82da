//! What a migration does, from what stands already. Pure.

use postgres_protocol::escape::escape_identifier;

use super::existing_objects::{ExistingObjects, Grants, View};
use super::fragment::{COLUMNS, GRANTS, OUTBOX, STATE, STATUS, Values, literal};
use super::partitioned;
use super::{Lacking, MigrateError, Names, Part, RELAY_ROLE, Step, StepState};
use crate::config::{Mark, Mode};
use crate::postgres::catalog::{Table, qualified};
use crate::postgres::compatibility::{self, Order, mark_name};
use crate::postgres::publication::Operations;
use crate::row::columns::{OURS, is_mandatory};

/// The `server_version_num` from which on standbys can keep a logical slot.
const FAILOVER_SINCE: i32 = 170_000;

/// How the comment of every status view begins; a view without it is not ours to replace.
const STATUS_COMMENT: &str = "outboxd: which rows were sent";

/// Every step in the order in which they build on each other.
pub(super) fn steps(names: &Names, existing: &ExistingObjects) -> Result<Vec<Step>, MigrateError> {
    let values = values(names, existing)?;
    let mut steps = vec![Step {
        part: Part::State,
        description: "the relay's state in schema `outboxd`".to_owned(),
        sql: values.render(STATE, ""),
        state: needed(!existing.has_state || existing.version.is_none()),
    }];
    // A table with columns of other names is the user's own.
    if existing.table.is_some() || names.columns.is_empty() {
        steps.push(Step {
            part: Part::Table,
            description: format!("table `{}`", names.outbox()),
            sql: values.render(OUTBOX, "table"),
            state: needed(existing.table.is_none()),
        });
    }
    if existing.has_state && !existing.has_index {
        steps.push(Step {
            part: Part::Index,
            description: "the index `outboxd.kept_by_state` of the relay's state".to_owned(),
            sql: values.render(STATE, "index"),
            state: StepState::Needed,
        });
    }
    if existing.is_undecided {
        steps.push(Step {
            part: Part::Start,
            description: "the start with everything, for the table is empty".to_owned(),
            sql: values.render(OUTBOX, "start"),
            state: StepState::Needed,
        });
    }
    steps.extend(function(names, existing, &values));
    steps.push(view(names, existing, &values));
    if names.mode == Mode::Replication {
        steps.extend(publication(names, existing, &values));
    }
    grants(names, existing, &values, &mut steps);
    if names.mode == Mode::Replication {
        steps.extend(slot(names, existing, &values));
    }
    Ok(steps)
}

fn needed(is_needed: bool) -> StepState {
    if is_needed {
        StepState::Needed
    } else {
        StepState::AlreadyThere
    }
}

fn values(names: &Names, existing: &ExistingObjects) -> Result<Values, MigrateError> {
    if let Some(table) = &existing.table {
        let column = match names.mark {
            Mark::Ledger if table.layout.seq.is_none() => Some("seq"),
            Mark::SentAt if table.layout.sent_at.is_none() => Some("sent_at"),
            _ => None,
        };
        if let Some(column) = column.filter(|_| names.lacking == Lacking::Refuse) {
            let (mark, table) = (mark_name(names.mark), names.outbox());
            return Err(MigrateError::MarkNeedsColumn {
                mark,
                column,
                table,
            });
        }
    }
    let mut values = Values::new(&names.schema, &names.table, &names.columns);
    // What is unsent is found without what was sent before. The price: an update touches every index (PostgreSQL 15:
    // 240 bytes of WAL a row and not 80), even where its page has room for the new version.
    let index = match names.mark {
        Mark::SentAt => format!(
            "CREATE INDEX ON {} (seq) WHERE sent_at IS NULL;\n",
            qualified(&names.schema, &names.table)
        ),
        Mark::Ledger | Mark::Delete | Mark::None => String::new(),
    };
    values.set("sent_at_index", index);
    let (column, storage) = match names.mark {
        Mark::SentAt => (
            ",\n    sent_at          timestamptz",
            " WITH (fillfactor = 50)",
        ),
        Mark::Ledger | Mark::Delete | Mark::None => ("", ""),
    };
    values.set("sent_at_column", column.to_owned());
    values.set("storage", storage.to_owned());
    partitioned::set(&mut values, names, existing)?;
    if let Some(sequence) = existing.table.as_ref().and_then(Table::sequence) {
        values.set("sequence", sequence.name.clone());
    } else if let Some(free) = &existing.sequence {
        values.set("sequence", qualified(&names.schema, free));
    }
    values.set_identifier("publication", &names.publication);
    values.set("operations", operations(names, existing).sql().to_owned());
    // The relay moves the state of a renamed table, under the lease.
    values.set_literal("state_key", existing.home.key(&names.outbox()));
    values.set_literal("slot", &names.slot);
    values.set_literal("publication_name", &names.publication);
    // What stands was looked at before; a script meets a database that nobody has seen.
    let condition = match existing.has_slot {
        true => "",
        false => {
            "\nWHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = {slot})"
        }
    };
    let condition = condition.replace("{slot}", &literal(&names.slot));
    values.set("claim_condition", condition);
    let is_kept = names.failover && existing.server_version >= FAILOVER_SINCE;
    let options = if is_kept { ", false, false, true" } else { "" };
    values.set("slot_options", options.to_owned());
    values.set_identifier("relay_role", names.relay_role());
    values.set_literal("relay_role_name", names.relay_role());
    if let Some(role) = &names.application_role {
        values.set_identifier("application_role", role);
    }
    let columns: Vec<String> = status_columns(names, existing)
        .iter()
        .map(|column| format!("o.{}", escape_identifier(column)))
        .collect();
    values.set("status_columns", columns.join(", "));
    values.set_literal("status_comment", &status_comment(names));
    Ok(values)
}

/// The table's columns as the view shows them after `sent` and `sent_at`.
fn status_columns<'a>(names: &'a Names, existing: &'a ExistingObjects) -> Vec<&'a str> {
    match &existing.table {
        None if names.columns.is_empty() => COLUMNS.to_vec(),
        None => {
            let is_there = |ours: &&str| is_mandatory(ours) || names.columns.of(ours) != *ours;
            let there = OURS.into_iter().filter(is_there);
            let there = there.map(|ours| names.columns.of(ours));
            there
                .filter(|name| !matches!(*name, "sent" | "sent_at"))
                .collect()
        }
        Some(table) => {
            let names = table
                .layout
                .columns
                .iter()
                .map(|column| column.name.as_str());
            names
                .filter(|name| !matches!(*name, "sent" | "sent_at"))
                .collect()
        }
    }
}

fn status_comment(names: &Names) -> String {
    let read = match names.mark {
        Mark::Ledger => "seq",
        Mark::SentAt => "sent_at",
        Mark::Delete | Mark::None => "",
    };
    let column = match names.columns.of(read) {
        same if same == read => String::new(),
        other => format!(", {read} = {other}"),
    };
    format!(
        "{STATUS_COMMENT} (mark = {}{column})",
        mark_name(names.mark)
    )
}

/// Only for a table with all columns that the function writes.
fn function(names: &Names, existing: &ExistingObjects, values: &Values) -> Option<Step> {
    if !names.columns.is_empty() {
        return None;
    }
    if let Some(table) = &existing.table {
        let is_there = |column: &str| table.layout.column(column).is_some();
        if !COLUMNS.iter().all(|column| is_there(column)) {
            return None;
        }
    }
    let sql = values.render(OUTBOX, "publish function");
    let body = sql.split("$outboxd$").nth(1);
    let stands = existing.function.is_some() && existing.function.as_deref() == body;
    Some(Step {
        part: Part::Function,
        description: format!("function `{}_publish`", names.outbox()),
        state: needed(!stands),
        sql,
    })
}

fn view(names: &Names, existing: &ExistingObjects, values: &Values) -> Step {
    let wanted = ["sent", "sent_at"]
        .into_iter()
        .chain(status_columns(names, existing));
    let state = match &existing.view {
        None => StepState::Needed,
        Some(View { comment, .. }) if !comment.starts_with(STATUS_COMMENT) => {
            StepState::Skipped("something else of that name is there")
        }
        Some(View {
            comment,
            columns,
            is_of_table,
        }) => {
            let is_known = *comment == status_comment(names) && wanted.eq(columns.iter());
            needed(!is_known || !is_of_table)
        }
    };
    Step {
        part: Part::View,
        description: format!("view `{}_status`", names.outbox()),
        sql: values.render(STATUS, mark_name(names.mark)),
        state,
    }
}

/// What the publication brings; a table that is made here has a primary key.
fn operations(names: &Names, existing: &ExistingObjects) -> Operations {
    match &existing.table {
        Some(table) => Operations::of(names.mark, table),
        None if names.mark == Mark::SentAt => Operations::Inserts,
        None => Operations::InsertsAndUpdates,
    }
}

fn publication(names: &Names, existing: &ExistingObjects, values: &Values) -> Vec<Step> {
    let name = &names.publication;
    let operations = operations(names, existing);
    let step = |description: String, fragment: &str, state: StepState| Step {
        part: Part::Publication,
        description,
        sql: values.render(OUTBOX, fragment),
        state,
    };
    let mut steps = Vec::new();
    match &existing.publication {
        None => steps.push(step(
            format!("publication `{name}`"),
            "publication",
            StepState::Needed,
        )),
        Some(found) if !found.has_table => steps.push(step(
            format!("table `{}` in publication `{name}`", names.outbox()),
            "publication table",
            StepState::Needed,
        )),
        Some(_) => steps.push(step(
            format!("publication `{name}`"),
            "publication",
            StepState::AlreadyThere,
        )),
    }
    if let Some(found) = existing.publication.as_ref().filter(|found| {
        let has_updates = operations == Operations::InsertsAndUpdates;
        !found.is_plain || found.has_updates != has_updates
    }) {
        let state = match (found.is_claimed, found.is_alone) {
            (true, true) => StepState::Needed,
            (true, false) => {
                StepState::Skipped("it publishes other tables too, and other operations")
            }
            (false, _) => StepState::Skipped("it was not made for this outbox alone"),
        };
        let description = format!(
            "publication `{name}` of {}, through the partition root",
            operations.sql()
        );
        steps.push(step(description, "publication options", state));
    }
    steps
}

fn slot(names: &Names, existing: &ExistingObjects, values: &Values) -> Vec<Step> {
    let step = |description: String, fragment: &str, is_needed: bool| Step {
        part: match fragment {
            "claim" => Part::Claim,
            _ => Part::Slot,
        },
        description,
        sql: values.render(OUTBOX, fragment),
        state: needed(is_needed),
    };
    let mut steps = Vec::new();
    // A second relay that marks nothing begins with its slot; the first one does not read the table again for it.
    let is_second = names.mark == Mark::None && existing.has_another_slot;
    if !existing.has_slot && existing.is_caught_up && !is_second {
        let description =
            "the request to read the rows that are older than the new slot".to_owned();
        steps.push(step(description, "read again", true));
    }
    steps.push(step(
        format!("note that slot `{}` is this outbox's", names.slot),
        "claim",
        !existing.has_claim,
    ));
    steps.push(step(
        format!(
            "slot `{}` (waits for the transactions that are open)",
            names.slot
        ),
        "slot",
        !existing.has_slot,
    ));
    if !existing.has_slot && !is_order_told(names, existing) {
        let description = "a check for rows that the new slot does not contain".to_owned();
        steps.push(step(description, "nothing before", true));
    }
    steps
}

/// Whether rows that stand in the table can be read from it in their order.
fn is_order_told(names: &Names, existing: &ExistingObjects) -> bool {
    let order_column = names.order_column.as_deref();
    let order = |table: &Table| compatibility::order(names.mark, order_column, table);
    let order = existing.table.as_ref().map(order);
    order.is_none_or(|order| order != Order::Untold)
}

fn grants(names: &Names, existing: &ExistingObjects, values: &Values, steps: &mut Vec<Step>) {
    let may = existing.relay.role_exists || names.relay_role.is_some() || existing.may_create_role;
    // Without a server nothing is known of the roles: the script creates the group.
    let is_script = existing.server_version == 0;
    for Right {
        fragment,
        what,
        is_needed,
    } in rights(names, existing, steps)
    {
        let state = match needed(is_needed) {
            StepState::Needed if !may && !is_script => StepState::Skipped(
                "this role may not create roles: `outboxd migrate --relay-role NAME` grants to one that is there",
            ),
            state => state,
        };
        steps.push(Step {
            part: Part::Grant,
            description: what,
            sql: values.render(GRANTS, fragment),
            state,
        });
    }
    if let Some(role) = &names.application_role {
        application_grants(role, existing, values, steps);
    }
}

/// A right of the relay's role, and the fragment that grants it.
struct Right {
    fragment: &'static str,
    what: String,
    is_needed: bool,
}

/// What the relay's role needs, in order.
fn rights(names: &Names, existing: &ExistingObjects, steps: &[Step]) -> Vec<Right> {
    let relay = names.relay_role();
    let is_made = |part: Part| {
        let mut steps = steps.iter();
        steps.any(|step| step.part == part && step.state == StepState::Needed)
    };
    let Grants {
        reads,
        updates_sent_at,
        deletes,
        state,
        status,
        ..
    } = existing.relay;
    let mut rights = Vec::new();
    let mut push = |fragment, what: &str, is_needed| {
        rights.push(Right {
            fragment,
            what: format!("right of `{relay}` to {what}"),
            is_needed,
        });
    };
    push("relay", "read the table", !reads);
    if let Some((fragment, is_needed)) = sequence_right(names, existing) {
        push(fragment, "read the sequence", is_needed);
    }
    if names.mark == Mark::SentAt {
        push("relay sent_at", "set `sent_at`", !updates_sent_at);
    }
    if names.removes || names.mark == Mark::Delete {
        push("relay delete", "delete rows that were sent", !deletes);
    }
    let (state_made, view_made) = (is_made(Part::State), is_made(Part::View));
    push("relay state", "keep its state", state_made || !state);
    push("relay status", "read the status view", view_made || !status);
    if names.relay_role.is_none() {
        let group = Right {
            fragment: "relay role",
            what: format!("group role `{RELAY_ROLE}`"),
            is_needed: !existing.relay.role_exists,
        };
        rights.insert(0, group);
    }
    rights
}

/// The fragment that lets the relay's role read the sequence, and whether it is needed; nothing where there is none.
fn sequence_right(names: &Names, existing: &ExistingObjects) -> Option<(&'static str, bool)> {
    let table = existing.table.as_ref();
    let is_unseen = match table {
        None => !names.columns.is_empty(),
        // It is foreseen.
        Some(table) => names.mark == Mark::Ledger && table.layout.seq.is_none(),
    };
    if is_unseen {
        let is_used = names.mark == Mark::Ledger || names.columns.of("seq") != "seq";
        return is_used.then_some(("relay sequence of a column", true));
    }
    let has_seq = table.is_none_or(|table| table.sequence().is_some());
    has_seq.then_some(("relay sequence", !existing.relay.reads_sequence))
}

fn application_grants(
    role: &str,
    existing: &ExistingObjects,
    values: &Values,
    steps: &mut Vec<Step>,
) {
    steps.push(Step {
        part: Part::Grant,
        description: format!("right of `{role}` to insert rows"),
        sql: values.render(GRANTS, "application"),
        state: needed(!existing.application.inserts),
    });
    let function = steps.iter().find(|step| step.part == Part::Function);
    let Some(is_made) = function.map(|function| function.state == StepState::Needed) else {
        return;
    };
    steps.push(Step {
        part: Part::Grant,
        description: format!("right of `{role}` to call the function"),
        sql: values.render(GRANTS, "application function"),
        state: needed(is_made || !existing.application.executes),
    });
}

#[cfg(test)]
mod tests;
