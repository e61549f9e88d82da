//! What may keep the mark of a single row from being made: triggers, checks and foreign keys. The relay finds such a row,
//! names it and blocks its aggregate; it is better known beforehand.

use tokio_postgres::Client;

use super::{Finding, Report, unknown};
use crate::config::{Config, Mark};
use crate::postgres::catalog::Table;

const TREE: &str = "
    WITH RECURSIVE tree (oid) AS (
        SELECT $1::oid
        UNION ALL
        SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.oid)";

/// Bits of tgtype: 1 row, 2 before, 8 delete, 16 update.
const TRIGGERS: &str = "
    SELECT pg_catalog.format('%I on %s', t.tgname, t.tgrelid::regclass), t.tgtype & 2 <> 0
    FROM tree JOIN pg_catalog.pg_trigger t ON t.tgrelid = tree.oid
    WHERE t.tgtype & 1 = 1 AND t.tgtype & $2 <> 0 AND NOT t.tgisinternal AND t.tgenabled <> 'D'
    ORDER BY 1";

/// Checks and exclusions that look at the column `$2`.
const CONSTRAINTS: &str = "
    SELECT DISTINCT pg_catalog.format('%I of %s', c.conname, c.conrelid::regclass)
    FROM tree JOIN pg_catalog.pg_constraint c ON c.conrelid = tree.oid
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
    WHERE c.contype IN ('c', 'x') AND c.conparentid = 0 AND a.attname = $2
    ORDER BY 1";

/// Those that refuse the deletion of a row which is referred to.
const REFERENCES: &str = "
    SELECT pg_catalog.format('%I of %s', c.conname, c.conrelid::regclass)
    FROM tree JOIN pg_catalog.pg_constraint c ON c.confrelid = tree.oid
    WHERE c.contype = 'f' AND c.confdeltype IN ('a', 'r') AND c.conparentid = 0
    ORDER BY 1";

pub(super) async fn look(client: &Client, config: &Config, table: &Table, report: &mut Report) {
    let (event, bit) = match config.source.mark {
        Mark::SentAt => ("UPDATE", 16_i16),
        Mark::Delete => ("DELETE", 8),
        Mark::Ledger | Mark::None if config.source.retention.is_some() => ("DELETE", 8),
        Mark::Ledger | Mark::None => return,
    };
    let triggers = format!("{TREE}{TRIGGERS}");
    match client.query(&triggers, &[&table.oid, &bit]).await {
        Err(error) => report.push(unknown("triggers", error)),
        Ok(rows) => rows.iter().for_each(|row| {
            let trigger: &str = row.get(0);
            let (when, which) = match row.get(1) {
                true => ("before", "that it keeps as it is"),
                false => ("after", "for which it raises an error"),
            };
            report.push(Finding::warning(
                "mark",
                format!("the trigger {trigger} runs {when} each {event}: a row {which} can't be marked, and blocks its aggregate"),
                format!("DROP TRIGGER {trigger}; -- unless it lets every row pass"),
            ));
        }),
    }
    if event == "UPDATE" {
        return look_at_constraints(client, table, report).await;
    }
    let references = format!("{TREE}{REFERENCES}");
    match client.query(&references, &[&table.oid]).await {
        Err(error) => report.push(unknown("foreign keys", error)),
        Ok(rows) => rows.iter().for_each(|row| {
            let key: &str = row.get(0);
            report.push(Finding::warning(
                "mark",
                format!("the foreign key {key} refers to the table: a row that is referred to can't be deleted, and blocks its aggregate"),
                "let the foreign key say ON DELETE CASCADE or SET NULL, or set source.mark = \"ledger\"",
            ));
        }),
    }
}

async fn look_at_constraints(client: &Client, table: &Table, report: &mut Report) {
    let constraints = format!("{TREE}{CONSTRAINTS}");
    let sent_at = table.layout.names.of("sent_at");
    match client.query(&constraints, &[&table.oid, &sent_at]).await {
        Err(error) => report.push(unknown("constraints", error)),
        Ok(rows) => rows.iter().for_each(|row| {
            let constraint: &str = row.get(0);
            report.push(Finding::warning(
                "mark",
                format!("the constraint {constraint} looks at `{sent_at}`: a row whose mark it refuses can't be marked, and blocks its aggregate"),
                "drop it, unless it lets every row be marked; or set source.mark = \"ledger\"",
            ));
        }),
    }
}
