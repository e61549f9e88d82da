//! The publication as the stream sees it, and the slot.

use tokio_postgres::Client;

use super::{Finding, FindingOutcome, Report, chain, state, unknown};
use crate::config::{Config, Mark, OnLostSlot};
use crate::postgres::PostgresError;
use crate::postgres::catalog::Table;
use crate::postgres::publication;
use crate::postgres::slot::{self, Fitness, Slot};
use crate::state::names::{self, Facts};

pub(super) async fn look(client: &Client, config: &Config, table: &Table, report: &mut Report) {
    let name = &config.source.replication.slot;
    let found = match slot::status(client, name).await {
        Ok(found) => found,
        Err(error) => return report.push(Finding::warning("slot", chain(&error), "")),
    };
    if !state::uses_slot(config) {
        if let Some(slot) = found {
            let retained = slot.retained_bytes.unwrap_or_default();
            report.push(Finding::warning(
                "slot",
                format!("`{name}` is there and polling does not use it; it keeps {retained} bytes of WAL"),
                "outboxd slot drop --yes",
            ));
        }
        return;
    }
    let mut is_ours = true;
    match names::facts(client, &config.source).await {
        Ok(facts) => {
            is_ours = ownership(&facts, config, report);
            leftovers(&facts, config, report);
        }
        Err(error) => report.push(Finding::warning("slot", chain(&error), "")),
    }
    publication(client, config, table, report).await;
    if config.source.replication.failover {
        super::failover::look(client, found.as_ref(), report).await;
    }
    let database = client
        .query_one("SELECT pg_catalog.current_database()::text", &[])
        .await;
    match database {
        Ok(row) => {
            let policy = config.source.replication.on_lost_slot;
            let finding = judge_slot(name, found, row.get(0), policy);
            if is_ours || finding.outcome == FindingOutcome::Missing {
                report.push(finding);
            }
        }
        Err(error) => report.push(Finding::warning(
            "slot",
            chain(&PostgresError::from(error)),
            "",
        )),
    }
}

/// The slot of a table that is still to be made.
pub(super) async fn slot(client: &Client, config: &Config, report: &mut Report) {
    let replication = &config.source.replication;
    if !state::uses_slot(config) {
        return;
    }
    match slot::status(client, &replication.slot).await {
        Ok(None) => report.push(absent(&replication.slot)),
        // Whose it is shows once the table stands.
        Ok(Some(_)) => {}
        Err(error) => report.push(Finding::warning("slot", chain(&error), "")),
    }
}

fn absent(name: &str) -> Finding {
    Finding::warning(
        "slot",
        format!("`{name}` is not there"),
        "the relay creates it at its first start, `outboxd migrate` before that",
    )
}

/// Says whose slot and publication are, where they are not this outbox's; tells whether they are.
fn ownership(facts: &Facts, config: &Config, report: &mut Report) -> bool {
    match names::refusals_of(facts, &config.source) {
        Ok(refusals) => {
            let is_ours = refusals.is_empty();
            let findings = refusals.into_iter();
            let findings = findings.map(|one| Finding::missing("slot", one.text, one.remedy));
            report.findings.extend(findings);
            is_ours
        }
        Err(error) => {
            report.push(Finding::warning("slot", chain(&error), ""));
            true
        }
    }
}

/// Names what keeps WAL for nobody. Without a mark another relay may read another slot.
fn leftovers(facts: &Facts, config: &Config, report: &mut Report) {
    if config.source.mark == Mark::None {
        return;
    }
    for left in names::leftovers(facts, &config.source.replication.slot) {
        report.push(Finding::warning("slot", left.text, left.remedy));
    }
}

/// What `migrate` mends is the migration's finding.
async fn publication(client: &Client, config: &Config, table: &Table, report: &mut Report) {
    match publication::drift(client, config, table).await {
        Ok(drift) => {
            let found = drift.into_iter().filter(|drift| !drift.is_migrated);
            let found =
                found.map(|drift| Finding::missing("publication", drift.text, drift.remedy));
            report.findings.extend(found);
        }
        Err(error) => report.push(unknown("publication", error)),
    }
    if let Some(why) = publication::inserts_alone(config.source.mark, table) {
        report.push(Finding::warning("changes", why.text, why.remedy));
    }
}

fn judge_slot(name: &str, found: Option<Slot>, database: &str, policy: OnLostSlot) -> Finding {
    let Some(slot) = found else {
        return absent(name);
    };
    match slot.fitness(database) {
        Fitness::Foreign(text) => {
            return Finding::missing("slot", text, "name another in source.replication.slot");
        }
        Fitness::Lost(text) => return lost(text, policy),
        Fitness::Usable => {}
    }
    match slot.wal_status.as_deref() {
        Some("unreserved") => Finding::warning(
            "slot",
            format!(
                "`{name}` is about to be lost: the next checkpoint may remove WAL that it needs"
            ),
            "ALTER SYSTEM SET max_slot_wal_keep_size = …; SELECT pg_reload_conf(); -- and start the relay",
        ),
        _ => match slot.reader {
            Some(reader) => Finding::ok("slot", format!("`{name}`, read by {reader}")),
            None => Finding::ok("slot", format!("`{name}`, read by nobody now")),
        },
    }
}

fn lost(text: String, policy: OnLostSlot) -> Finding {
    match policy {
        OnLostSlot::Repair => Finding::warning(
            "slot",
            text,
            "the relay makes a new one and reads the table again from its marks",
        ),
        OnLostSlot::Halt => Finding::missing(
            "slot",
            text,
            "`outboxd slot drop --yes`, then `outboxd migrate`: with a mark the relay reads the table again",
        ),
    }
}
