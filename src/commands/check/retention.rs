//! How much the table holds, and whether what was sent goes.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Client;

use super::{Finding, Report, unknown};
use crate::config::{Config, Mark};
use crate::postgres::catalog::{Table, TableKind};
use crate::state::retention;

pub(super) async fn look(client: &Client, config: &Config, table: &Table, report: &mut Report) {
    match retention::table_size(client, &table.name()).await {
        Err(error) => report.push(unknown("kept rows", error)),
        Ok(None) => {}
        Ok(Some(kept)) => {
            let (rows, mib) = (kept.rows, kept.bytes.div_ceil(1 << 20));
            let detail = format!("about {rows} rows, {mib} MiB with indexes, by the statistics");
            report.push(Finding::ok("kept rows", detail));
        }
    }
    let Some(keep) = config.source.retention else {
        return;
    };
    report.push(match retention::row_age::age(config.source.mark, table) {
        Ok(age) => {
            let keep = humantime::format_duration(keep);
            let column = age.column();
            let detail = format!("rows that were sent go {keep} after their `{column}`");
            Finding::ok("retention", detail)
        }
        // `run` publishes all the same.
        Err(refusal) => Finding::warning(
            "retention",
            format!("no row can be removed: {}", refusal.text),
            refusal.remedy,
        ),
    });
    if table.kind == TableKind::Partitioned && config.source.mark == Mark::Ledger {
        owner(client, table, report).await;
    }
}

/// Who makes and drops partitions has to own the table.
async fn owner(client: &Client, table: &Table, report: &mut Report) {
    let sql = "SELECT pg_catalog.pg_has_role(c.relowner, 'USAGE'), pg_catalog.quote_ident(current_user) \
               FROM pg_catalog.pg_class c WHERE c.oid = $1";
    match client.query_one(sql, &[&table.oid]).await {
        Err(error) => report.push(unknown("partitions", error)),
        Ok(row) if row.get(0) => report.push(Finding::ok(
            "partitions",
            "the relay may make and drop them",
        )),
        Ok(row) => {
            let (owner, role) = (escape_identifier(&table.owner), row.get::<_, &str>(1));
            report.push(Finding::warning(
                "partitions",
                "only the owner of the table may make and drop them, and this role is not: rows go to the default partition",
                format!("GRANT {owner} TO {role};"),
            ));
        }
    }
}
