//! The publication as the stream sees it, and the slot.

use tokio_postgres::Client;

use super::{Finding, Report, chain, shown, state, unknown};
use crate::config::Config;
use crate::inspect::Table;
use crate::postgres::PostgresError;
use crate::slot::{self, Slot};

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
    match publication(client, config, table).await {
        Ok(findings) => report.findings.extend(findings),
        Err(error) => report.push(unknown("publication", error)),
    }
    let database = client
        .query_one("SELECT pg_catalog.current_database()::text", &[])
        .await;
    match database {
        Ok(row) => report.push(judge_slot(name, found, row.get(0))),
        Err(error) => report.push(Finding::warning(
            "slot",
            chain(&PostgresError::from(error)),
            "",
        )),
    }
}

/// What a publication that has the table leaves out; that it has it is the migration's finding.
async fn publication(
    client: &Client,
    config: &Config,
    table: &Table,
) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let name = &config.source.replication.publication;
    let quoted = postgres_protocol::escape::escape_identifier(name);
    let version = "SELECT pg_catalog.current_setting('server_version_num')::int4";
    let version: i32 = client.query_one(version, &[]).await?.get(0);
    let mut findings = Vec::new();
    if version < 150_000 {
        return Ok(findings); // Row filters and column lists came with 15.
    }
    let Some(row) = client.query_opt(LEFT_OUT, &[name, &table.oid]).await? else {
        return Ok(findings);
    };
    let again = format!(
        "ALTER PUBLICATION {quoted} DROP TABLE {table}; ALTER PUBLICATION {quoted} ADD TABLE {table};",
        table = table.name()
    );
    if let Some(filter) = row.get::<_, Option<&str>>("filter") {
        findings.push(Finding::missing(
            "publication",
            format!(
                "`{name}` has a row filter on `{}`, {filter}: other rows never reach Kafka",
                shown(table)
            ),
            again.clone(),
        ));
    }
    let left_out: Vec<String> = row.get("left_out");
    if !left_out.is_empty() {
        let left_out = left_out.join(", ");
        findings.push(Finding::missing(
            "publication",
            format!(
                "`{name}` has a column list on `{}` without {left_out}",
                shown(table)
            ),
            again,
        ));
    }
    Ok(findings)
}

fn judge_slot(name: &str, found: Option<Slot>, database: &str) -> Finding {
    let Some(slot) = found else {
        return Finding::warning(
            "slot",
            format!("`{name}` is not there"),
            "the relay creates it at its first start, `outboxd migrate` before that",
        );
    };
    let elsewhere = slot.database.as_deref().filter(|other| *other != database);
    if let Some(other) = elsewhere {
        return Finding::missing(
            "slot",
            format!(
                "`{name}` belongs to database `{other}`; a slot's name is unique in the whole server"
            ),
            "name another in source.replication.slot",
        );
    }
    let plugin = slot
        .plugin
        .as_deref()
        .unwrap_or("none: it is a physical slot");
    if plugin != "pgoutput" {
        return Finding::missing(
            "slot",
            format!("`{name}` has the plugin {plugin}, and the relay reads pgoutput"),
            "name another in source.replication.slot",
        );
    }
    match slot.wal_status.as_deref() {
        Some("lost") => Finding::missing(
            "slot",
            format!(
                "`{name}` is lost: the server has removed WAL that it needed (max_slot_wal_keep_size)"
            ),
            "outboxd slot drop --yes, then outboxd migrate: the relay reads the table again from its marks",
        ),
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

/// Nothing where the publication has no entry for the table alone (FOR ALL TABLES leaves nothing out).
const LEFT_OUT: &str = "
    SELECT pg_catalog.pg_get_expr(r.prqual, r.prrelid) AS filter,
           coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
                     WHERE a.attrelid = r.prrelid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                       AND r.prattrs IS NOT NULL AND NOT a.attnum = ANY (r.prattrs)), '{}') AS left_out
    FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
    WHERE p.pubname = $1 AND r.prrelid = $2";
