//! The server: its version, its role, and what logical replication asks of it.

use tokio_postgres::Client;

use super::{Finding, Report, unknown};
use crate::config::{Config, Mark, Mode};
use crate::postgres::obstacles::replication::{
    REPLICATION, SENDERS, SLOTS, full, may_not_replicate, wal_level,
};

/// The first minor of each major without the loss of changes beside a concurrent ALTER PUBLICATION or ALTER TYPE,
/// and without the memory fault of its first repair. Source: release notes of May and August 2025.
const SOUND_MINORS: [(i32, i32); 4] = [(14, 19), (15, 14), (16, 10), (17, 6)];

pub(super) async fn look(client: &Client, config: &Config, report: &mut Report) {
    let row = match client.query_one(SERVER, &[]).await {
        Ok(row) => row,
        Err(error) => return report.push(unknown("PostgreSQL", error)),
    };
    report.push(version(
        row.get("version"),
        row.get("database"),
        row.get("role"),
    ));
    report
        .findings
        .extend(encoding(row.get("encoding"), config.source.mark));
    super::writable::look(client, report).await;
    super::room::look(client, config, report).await;
    if config.source.mode == Mode::Replication {
        replication(client, config, report).await;
    }
}

fn version(number: i32, database: &str, role: &str) -> Finding {
    let (major, minor) = (number / 10_000, number % 10_000);
    let detail = format!("{major}.{minor}, database `{database}`, role `{role}`");
    if major < 14 {
        return Finding::missing("PostgreSQL", detail, "outboxd needs PostgreSQL 14 or newer");
    }
    if major > 18 {
        let remedy = "outboxd was tried with PostgreSQL 14 to 18";
        return Finding::warning("PostgreSQL", detail, remedy);
    }
    match SOUND_MINORS
        .iter()
        .find(|(of, sound)| *of == major && minor < *sound)
    {
        Some((_, sound)) => Finding::warning(
            "PostgreSQL",
            detail,
            format!(
                "{major}.{sound} or newer: older ones can lose changes beside an ALTER PUBLICATION"
            ),
        ),
        None => Finding::ok("PostgreSQL", detail),
    }
}

async fn replication(client: &Client, config: &Config, report: &mut Report) {
    let slot = &config.source.replication.slot;
    let row = match client.query_one(REPLICATION, &[slot]).await {
        Ok(row) => row,
        Err(error) => return report.push(unknown("replication", error)),
    };
    let level = "wal_level";
    report.push(match wal_level(row.get(level)) {
        None => Finding::ok(level, row.get::<_, &str>(level)),
        Some(refusal) => Finding::missing(level, refusal.text, refusal.remedy),
    });
    let role: &str = row.get("role");
    report.push(match may_not_replicate(&row) {
        None => Finding::ok("REPLICATION", format!("role `{role}` may replicate")),
        Some(refusal) => Finding::missing("REPLICATION", refusal.text, refusal.remedy),
    });
    let mut room = |what: &str, used: i64, most: i64, is_ours: bool| {
        let full = full(what, used, most).filter(|_| !is_ours);
        report.push(match full {
            None => Finding::ok(what, format!("{used} of {most} used")),
            Some(refusal) => Finding::missing(what, refusal.text, refusal.remedy),
        });
    };
    let (has_slot, is_read): (bool, bool) = (row.get("has_slot"), row.get("is_read"));
    room(SLOTS, row.get("slots"), row.get("slots_max"), has_slot);
    room(SENDERS, row.get("senders"), row.get("senders_max"), is_read);
    report.push(kept(row.get("kept")));
    report.findings.extend(idle(row.get("idle")));
}

/// Such a database takes any bytes as text, and what is sent must be text.
fn encoding(name: &str, mark: Mark) -> Option<Finding> {
    let what = match mark {
        // Nobody knows which rows of such a transaction went out, and the table can't say.
        Mark::None => "the relay halts at such a row",
        _ => "such a row blocks its aggregate",
    };
    (name == "SQL_ASCII").then(|| {
        Finding::warning(
            "encoding",
            format!("SQL_ASCII: the database takes bytes that are no UTF-8; PostgreSQL can't send them, and {what}"),
            "dump the database and restore it into one of ENCODING 'UTF8', or let the application write UTF-8 alone",
        )
    })
}

/// Bounded or not, what the slot keeps is watched.
fn kept(most: &str) -> Finding {
    let detail = match most {
        "-1" => "no limit: a slot that nobody reads fills the disk; the relay raises the alarm before, at source.replication.wal_budget".to_owned(),
        most => format!("{most}: beyond that the server gives the slot up"),
    };
    Finding::ok("max_slot_wal_keep_size", detail)
}

/// A relay that waits for Kafka reads its slot in time; one that is down can't.
fn idle(timeout: Option<&str>) -> Option<Finding> {
    let timeout = timeout.filter(|timeout| *timeout != "0")?;
    Some(Finding::warning(
        "idle_replication_slot_timeout",
        format!("{timeout}: the server gives the slot up when the relay is down for longer"),
        "make it longer than the relay may ever be down, or 0: ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
    ))
}

const SERVER: &str = "
    SELECT pg_catalog.current_setting('server_version_num')::int4 AS version, pg_catalog.current_database()::text AS database, current_user::text AS role,
           pg_catalog.current_setting('server_encoding') AS encoding";
